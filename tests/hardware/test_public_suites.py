"""What the suites of other debuggers and of the kernel ask for, in our words; each test names its origin."""

from __future__ import annotations

import ctypes
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwwatch

pytestmark = pytest.mark.slow

SOURCE = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <sys/wait.h>
static long *place, turns;
static void *add(void *unused)
{
    for (long i = 0; i < turns; i++)
        __atomic_add_fetch(place, 1, __ATOMIC_SEQ_CST);
    return unused;
}
/* So many threads at once, each adding 1 n times. */
void threads(long *where, int count, long n)
{
    pthread_t some[128];
    place = where;
    turns = n;
    for (int i = 0; i < count; i++)
        pthread_create(&some[i], 0, add, 0);
    for (int i = 0; i < count; i++)
        pthread_join(some[i], 0);
}
void store(void *to, int size)
{
    switch (size) {
    case 1: *(volatile uint8_t *)to = 0x11; break;
    case 2: *(volatile uint16_t *)to = 0x2222; break;
    case 4: *(volatile uint32_t *)to = 0x44444444; break;
    default: *(volatile uint64_t *)to = 0x8888888888888888ull;
    }
}
/* Its exit status; *stack is an address in the frame of whoever spawns. */
int spawn(volatile uint64_t *stack)
{
    static char program[] = "/bin/true";
    char *arguments[] = {program, 0}, *environment[] = {0};
    pid_t child;
    int status = 0;
    *stack = (uint64_t)&child;
    if (posix_spawn(&child, program, 0, 0, arguments, environment))
        return -1;
    waitpid(child, &status, 0);
    return status;
}
#define STRING(name, text)                                                                                   \
    void name(void *to, const void *from, long n)                                                            \
    {                                                                                                        \
        __asm__ volatile(text : "+D"(to), "+S"(from), "+c"(n) : "a"(0x5a5a5a5a5a5a5a5al) : "memory");        \
    }
STRING(stosb, "rep stosb") STRING(stosw, "rep stosw") STRING(stosl, "rep stosl") STRING(stosq, "rep stosq")
STRING(movsb, "rep movsb") STRING(movsw, "rep movsw") STRING(movsl, "rep movsl") STRING(movsq, "rep movsq")
STRING(stosb_down, "std\nrep stosb\ncld") STRING(movsq_down, "std\nrep movsq\ncld")
"""


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    return load(SOURCE, "-pthread")


def _at(array: Any, offset: int = 0) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data + offset)


def test_five_threads_of_three_thousand(session: Any, library: ctypes.CDLL) -> None:
    """Linux, tools/testing/selftests/perf_events, sigtrap_threads: signal_stress."""
    number = np.zeros(1, np.int64)
    with session.watching(number) as watch:
        library.threads(_at(number), 5, ctypes.c_long(3000))
    assert (watch.counted, watch.hits, watch.lost) == (15_000, 15_000, 0)
    assert watch.timeline().groupby("tid").size().tolist() == [3000] * 5


def test_five_threads_while_another_switches_it_on_and_off(session: Any, library: ctypes.CDLL) -> None:
    """The same suite: enable and disable events of threads that run."""
    number = np.zeros(1, np.int64)
    over = threading.Event()
    switches = 0

    def switch(watch: Any) -> None:
        nonlocal switches
        while not over.is_set():
            watch.enabled = switches % 2
            switches += 1
            time.sleep(0.0005)

    with session.watching(number) as watch:
        switcher = threading.Thread(target=switch, args=(watch,))
        switcher.start()
        while switches < 50:
            library.threads(_at(number), 5, ctypes.c_long(3000))
        over.set()
        switcher.join()
        watch.enabled = True
        before = watch.counted
        library.threads(_at(number), 5, ctypes.c_long(100))
        assert watch.counted - before == 500
    assert watch.lost == 0
    assert watch.hits == watch.counted
    assert (watch.timeline().groupby("tid").new.diff().dropna() >= 0).all()


def test_programs_started_under_fire(session: Any, library: ctypes.CDLL) -> None:
    """The same suite, remove_on_exec: a program started by a process under fire never dies of it."""
    number = np.zeros(1, np.int64)
    with session.watching(number, "rw") as watch:
        worker = threading.Thread(target=library.threads, args=(_at(number), 3, ctypes.c_long(10_000)))
        worker.start()
        codes = [subprocess.run(["/bin/true"], check=False).returncode for _ in range(15)]
        worker.join()
    assert codes == [0] * 15
    assert (watch.counted, watch.lost) == (watch.hits, 0)
    assert watch.hits >= 30_000


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_store_around_four_bytes(session: Any, library: ctypes.CDLL, size: int) -> None:
    """GWPSan, breakpoint_test: Overlapping."""
    memory = np.zeros(64, np.uint8)
    first = 16 + -memory.ctypes.data % 8
    with session.watching(memory[first : first + 4].view(np.int32)) as watch:
        for offset in range(-12, 13):
            before = watch.counted
            library.store(_at(memory, first + offset), size)
            overlaps = offset < 4 and offset + size > 0
            assert watch.counted - before == overlaps, offset
    assert (watch.hits >= watch.counted, watch.lost) == (True, 0)


@pytest.mark.perf  # ptrace refuses stacks
def test_spawn_with_each_word_of_the_stack_watched(
    in_child: Callable[..., Any], build: Callable[..., str]
) -> None:
    """GWPSan, breakpoint_test: Spawn. The child of posix_spawn runs on its parent's memory."""

    def work(path):
        library = ctypes.CDLL(path)
        where = np.zeros(1, np.uint64)
        place = ctypes.c_void_p(where.ctypes.data)
        library.spawn(place)
        stack = int(where[0]) & ~7
        wrong, hits = [], 0
        for word in range(-64, 960):
            with hwwatch.watching(stack - 8 * word, nbytes=8, when="False") as watch:
                if library.spawn(place):
                    wrong.append(word)
            hits += watch.coverage.tally.filtered
            hwwatch.unwatch()
        return wrong, hits > 0

    assert in_child(work, build(SOURCE, "-pthread"), timeout=120) == [[], True]


def test_a_hundred_threads_are_each_reported(session: Any, library: ctypes.CDLL) -> None:
    """LLDB, concurrent events: watchpoints hit by a hundred threads."""
    number = np.zeros(1, np.int64)
    with session.watching(number) as watch:
        library.threads(_at(number), 100, ctypes.c_long(1))
    rows = watch.timeline()
    assert (watch.counted, watch.hits, watch.lost) == (100, 100, 0)
    assert rows.tid.nunique() == 100
    assert number[0] == 100


def test_forty_of_forty(session: Any, library: ctypes.CDLL) -> None:
    """gdb, gdb.threads/watchthreads2: four threads increment ten times each; it may drop one there."""
    for _ in range(20):
        number = np.zeros(1, np.int64)
        with session.watching(number) as watch:
            library.threads(_at(number), 4, ctypes.c_long(10))
        assert (watch.counted, watch.hits, watch.lost) == (40, 40, 0)
        chain = watch.timeline().sort_values("new")
        chain = chain[chain.changed]
        assert chain.old.tolist()[0] == 0
        assert chain.new.tolist()[-1] == 40


def test_threads_that_begin_later_are_watched_by_all_four(session: Any, library: ctypes.CDLL) -> None:
    """gdb, gdb.threads/wp-replication: each register is replicated to each thread, old and new."""
    numbers = np.zeros((4, 16), np.int64)
    watches = [session.watch(numbers[n, :1]) for n in range(4)]
    for n in range(4):
        library.threads(_at(numbers[n]), 10, ctypes.c_long(3))
    assert [(w.counted, w.hits, w.lost) for w in watches] == [(30, 30, 0)] * 4
    assert [w.timeline().tid.nunique() for w in watches] == [10] * 4


def test_slots_are_used_again(session: Any, library: ctypes.CDLL) -> None:
    """gdb, gdb.base/watchpoint-reuse-slot: other addresses, sizes and kinds in the same registers."""
    memory = np.zeros(128, np.uint8)
    base = -memory.ctypes.data % 8
    keep = session.watch(memory[base + 100 : base + 101], name="keep")
    for turn in range(60):
        size, at = (1, 2, 4, 8)[turn % 4], base + 8 * (turn % 11)
        mode = ("w", "rw")[turn % 2]
        with session.watching(memory[at : at + size].view(f"i{size}"), mode) as watch:
            library.store(_at(memory, at), size)
            library.store(_at(memory, at + 8), 8)
            library.store(_at(memory, base + 100), 1)
        assert (watch.counted, watch.lost) == (1, 0), turn
        assert set(watch.timeline().nbytes) == {size}
    assert (keep.counted, keep.hits, keep.lost) == (60, 60, 0)
    assert session.coverage().slots_free == 3


@pytest.mark.parametrize("name", ["stosb", "stosw", "stosl", "stosq", "movsb", "movsw", "movsl", "movsq"])
@pytest.mark.parametrize("elements", [1, 3, 8, 64, 1000])
def test_string_instructions(session: Any, library: ctypes.CDLL, name: str, elements: int) -> None:
    """rr, string_instructions_watch: each that reaches the bytes is seen, none that ends before them."""
    size = {"b": 1, "w": 2, "l": 4, "q": 8}[name[-1]]
    memory, source = np.zeros(10_000, np.uint8), np.full(10_000, 0x5A, np.uint8)
    last = -memory.ctypes.data % 64 + 64 + (elements - 1) * size
    start = last - (elements - 1) * size
    with (
        session.watching(memory[last : last + size], name="last") as reached,
        session.watching(memory[last + size : last + 2 * size], name="behind") as behind,
    ):
        getattr(library, name)(_at(memory, start), _at(source), ctypes.c_long(elements))
    rows = reached.timeline()
    assert reached.counted >= 1
    assert (reached.lost, behind.counted, behind.hits) == (0, 0, 0)
    assert set(rows.access) == {"write"}
    assert memory[start : last + size].tolist() == [0x5A] * (elements * size)
    assert bytes(np.atleast_1d(rows.new.iloc[-1]).tobytes())[:1] == b"\x5a"


@pytest.mark.parametrize("name", ["stosb_down", "movsq_down"])
def test_string_instructions_downwards(session: Any, library: ctypes.CDLL, name: str) -> None:
    """The same suite, with the direction flag set."""
    memory, source = np.zeros(1024, np.uint8), np.full(1024, 0x5A, np.uint8)
    size = 8 if "q" in name else 1
    base = -memory.ctypes.data % 64 + 256
    with session.watching(memory[base : base + size]) as watch:
        getattr(library, name)(_at(memory, base + 20 * size), _at(source, 800), ctypes.c_long(21))
    assert watch.counted >= 1
    assert (watch.lost, int(memory[base]), int(memory[base - 1])) == (0, 0x5A, 0)


def test_armed_while_threads_hit_and_end(session: Any, library: ctypes.CDLL) -> None:
    """LLDB, concurrent events, with and without delay: what begins after arming is seen to its last hit."""
    for _ in range(10):
        number = np.zeros(1, np.int64)
        worker = threading.Thread(target=library.threads, args=(_at(number), 20, ctypes.c_long(200)))
        worker.start()
        with session.watching(number) as watch:
            worker.join()
            before = watch.counted
            library.threads(_at(number), 20, ctypes.c_long(10))
            assert watch.counted - before == 200
        assert (watch.counted, watch.lost) == (watch.hits, 0)
        assert watch.timeline().new.max() == number[0] == 4200


def test_the_module_is_left_as_it_was() -> None:
    """None of these uses the default session."""
    assert hwwatch.watches() == []
