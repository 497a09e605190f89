"""The backend for where perf is refused: a helper sets the debug registers of all threads, and is gone.

Registers that were used stay on the accounts of the threads, and perf has none left: these tests run in
a process of their own (test_denied.py).
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwwatch

pytestmark = pytest.mark.ptrace

SOURCE = r"""
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <unistd.h>
void store(volatile int64_t *p, long n) { for (long i = 1; i <= n; i++) *p = i; }
void store_twice(volatile int64_t *p, volatile int64_t *q) { *p = 7; *q = 7; }
long load(const volatile int64_t *p, long n) { long sum = 0; while (n--) sum += *p; return sum; }
/* Where it read from is not to be seen afterwards. */
long chase(long *p) { __asm__ volatile("mov (%0), %0" : "+r"(p) : : "memory"); return (long)p; }
__attribute__((noinline)) int function(int x) { __asm__ volatile(""); return x + 1; }
static void *run(void *p) { store(p, 1); return 0; }
/* A thread of C that stores with its first instruction. */
int in_thread(void *p)
{
    pthread_t thread;
    return pthread_create(&thread, 0, run, p) || pthread_join(thread, 0);
}
"""


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    return load(SOURCE, "-Wl,-Bsymbolic")


def _at(value: np.ndarray[Any, Any], index: int = 0) -> ctypes.c_void_p:
    return ctypes.c_void_p(value[index:].ctypes.data)


def _children() -> list[str]:
    return [
        pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    ]


def test_hundred_thousand_hits(traced: Any, library: ctypes.CDLL) -> None:
    value = np.zeros(1, np.int64)
    with traced.watching(value) as watch:
        library.store(_at(value), ctypes.c_long(100_000))
        assert _children() == []
        status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
        assert status["TracerPid"] == "0"
    rows = watch.timeline()
    assert (watch.counted, watch.hits, watch.lost) == (100_000, 100_000, 0)
    assert np.array_equal(rows.new, np.arange(1, 100_001))
    assert np.array_equal(rows.old, np.arange(100_000))
    assert rows.exact.all()
    assert set(rows.access) == {"write"}
    assert watch.backend.startswith("ptrace (")
    assert "ptrace" in repr(watch)


def test_threads_before_and_after(traced: Any, library: ctypes.CDLL) -> None:
    """Old ones are armed, new ones before their first own instruction, Python's and C's alike."""
    value = np.zeros(1, np.int64)
    go, done = threading.Event(), threading.Event()

    def old() -> None:
        go.wait()
        value[0] = -1
        done.set()

    thread = threading.Thread(target=old)
    thread.start()
    with traced.watching(value) as watch:
        go.set()
        done.wait()
        thread.join()
        for number in range(20):
            young = threading.Thread(target=value.__setitem__, args=(0, number))
            young.start()
            young.join()
            assert library.in_thread(_at(value)) == 0
        coverage = watch.coverage
        named = {tid for tid, _, _ in coverage.blind_threads}
        assert coverage.threads_armed + len(named) == coverage.threads_alive
    rows = watch.timeline()
    assert rows.new.tolist() == [-1] + [new for number in range(20) for new in (number, 1)]
    assert rows.tid.nunique() >= 2
    assert watch.lost == 0


def test_many_threads_at_once(traced: Any, library: ctypes.CDLL) -> None:
    """While others are armed and disarmed, each thread of a crowd is seen by the watch that stays."""
    values = np.zeros(2, np.int64)
    stop = threading.Event()

    def toggle() -> None:
        while not stop.is_set():
            with traced.watching(values[1:]):
                pass

    with traced.watching(values[:1]) as watch:
        toggler = threading.Thread(target=toggle)
        toggler.start()
        for _ in range(10):
            crowd = [
                threading.Thread(target=library.store, args=(_at(values), ctypes.c_long(5)))
                for _ in range(20)
            ]
            for thread in crowd:
                thread.start()
            for thread in crowd:
                thread.join()
        stop.set()
        toggler.join()
    assert (watch.hits, watch.lost) == (1000, 0)


def test_changes_while_a_thread_stores(traced: Any, library: ctypes.CDLL) -> None:
    """Modes, pauses, and other watches come and go; of what is on all the time nothing is missed."""
    values = np.zeros(2, np.int64)
    hits = 20_000
    worker = threading.Thread(target=library.store, args=(_at(values), ctypes.c_long(hits)))
    with traced.watching(values[:1]) as watch:
        worker.start()
        for mode in ("rw", "w", "r", "w") * 3:
            with traced.watching(values[1:], "rw") as other:
                watch.mode = "w" if mode == "r" else mode
                other.enabled = False
                other.enabled = True
        worker.join()
    assert (watch.counted, watch.hits, watch.lost) == (hits, hits, 0)
    assert np.array_equal(watch.timeline().new, np.arange(1, hits + 1))


def test_paused_and_disarmed_nothing_traps(traced: Any, library: ctypes.CDLL) -> None:
    value = np.zeros(1, np.int64)
    watch = traced.watch(value)
    library.store(_at(value), ctypes.c_long(3))
    watch.enabled = False
    library.store(_at(value), ctypes.c_long(5))
    watch.enabled = True
    library.store(_at(value), ctypes.c_long(2))
    watch.disarm()
    library.store(_at(value), ctypes.c_long(5))
    assert watch.timeline().new.tolist() == [1, 2, 3, 1, 2]
    assert watch.timeline().old.tolist() == [0, 1, 2, 5, 1]
    assert traced.coverage().slots_free == 4


def test_modes_policies_conditions_limit(traced: Any, library: ctypes.CDLL) -> None:
    value = np.zeros(1, np.int64)
    with traced.watching(value, "rw") as watch:
        library.store(_at(value), ctypes.c_long(2))
        assert library.load(_at(value), ctypes.c_long(3)) == 6
    assert watch.timeline().access.tolist() == ["write"] * 2 + ["read"] * 3
    with traced.watching(value, "r") as watch:
        library.store(_at(value), ctypes.c_long(2))
        library.load(_at(value), ctypes.c_long(3))
    assert watch.timeline().access.tolist() == ["read"] * 3
    with traced.watching(value, policy="skip") as watch:
        library.store(_at(value), ctypes.c_long(9))
    assert (value[0], watch.hits, set(watch.timeline().action)) == (2, 9, {"skipped"})
    with traced.watching(value, when="new % 4 == 0") as watch:
        library.store(_at(value), ctypes.c_long(12))
    assert watch.timeline().new.tolist() == [4, 8, 12]
    watch = traced.watch(value, limit=5)
    library.store(_at(value), ctypes.c_long(50))
    assert (watch.armed, watch.hits, watch.counted, watch.lost) == (False, 5, 5, 0)
    with traced.watching(library.function, "x") as watch:
        assert [library.function(n) for n in range(3)] == [1, 2, 3]
        watch.policy = hwwatch.Return(42)
        assert library.function(1) == 42
        watch.policy = hwwatch.Goto(library_address(library.store))
        library.function(_at(value), ctypes.c_long(1))
    rows = watch.timeline()
    assert rows.action.tolist() == ["continued"] * 3 + ["returned", "jumped"]
    assert set(rows.access) == {"execute"}


def test_which_of_several_is_told_by_the_instruction(traced: Any, library: ctypes.CDLL) -> None:
    """No signal names one: reads and equal writes are told apart all the same, what cannot be is marked."""
    values = np.zeros(3, np.int64)
    watches = [traced.watch(values[i : i + 1], mode, name=mode) for i, mode in enumerate(("rw", "w", "r"))]
    library.load(_at(values, 0), ctypes.c_long(2))
    library.load(_at(values, 1), ctypes.c_long(2))
    library.load(_at(values, 2), ctypes.c_long(2))
    library.store_twice(_at(values, 0), _at(values, 1))
    library.store_twice(_at(values, 1), _at(values, 0))  # the values that are there
    library.store_twice(_at(values, 2), _at(values, 2))
    rows = traced.timeline()
    found = [rows[rows.watch == watch.name].access.tolist() for watch in watches]
    assert found == [["read"] * 2 + ["write"] * 2, ["write"] * 2, ["read"] * 2]
    assert set(rows.confidence) == {"exact"}
    assert [watch.lost for watch in watches] == [0] * 3
    traced.clear()
    library.chase(_at(values, 0))
    rows = traced.timeline()
    assert sorted(rows.watch) == ["r", "rw"]  # each of them may have been read
    assert set(rows.confidence) == {"guess"}


def library_address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def test_children(in_child: Callable[..., Any]) -> None:
    """Forked ones are armed as they begin, unless they are not to be; the parent's end ends them, too."""

    def work():
        values = np.zeros(2, np.int64)
        watch = hwwatch.watch(values[:1], backend="ptrace")
        alone = hwwatch.watch(values[1:], backend="ptrace", follow_fork=False)
        to_child, to_parent = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            values[:] = 1
            thread = threading.Thread(target=values.__setitem__, args=(0, 2))
            thread.start()
            thread.join()
            os.write(to_parent[1], b"1")
            os.read(to_child[0], 1)
            for value in range(50):
                values[0] = value
            os._exit(0)
        os.read(to_parent[0], 1)
        values[:] = 5
        watch.disarm()
        os.write(to_child[1], b"2")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, watch.timeline().new.tolist(), alone.timeline().new.tolist(), watch.lost

    assert in_child(work) == [0, [1, 2, 5], [5], 0]


FORK_HANDLER = """
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#define COUNT 16
static pthread_t threads[COUNT];
static int created, joined;
static volatile int ended, go;
static volatile long *place;
static void *work(void *number)
{
    while ((long)number < COUNT / 2 ? !ended : !go)
        usleep(100);
    if ((long)number >= COUNT / 2)
        __atomic_fetch_add(place, 1, __ATOMIC_SEQ_CST);
    return 0;
}
static void before_fork(void)
{
    ended = 1;
    for (; joined < created && joined < COUNT / 2; joined++)
        pthread_join(threads[joined], 0);
}
void install(volatile long *at) { place = at; pthread_atfork(before_fork, 0, 0); }
int fork_with_new_threads(void)
{
    int status;
    ended = go = created = joined = 0;
    for (; created < COUNT; created++)
        pthread_create(&threads[created], 0, work, (void *)(long)created);
    pid_t child = fork();
    if (!child)
        _exit(0);
    go = 1;
    for (; joined < created; joined++)
        pthread_join(threads[joined], 0);
    waitpid(child, &status, 0);
    return status;
}
"""


def test_fork_handlers_that_wait_for_new_threads(
    in_child: Callable[..., Any], build: Callable[..., str]
) -> None:
    """As OpenBLAS's do: those that want to be armed meanwhile go on, and are armed when the fork is done."""

    def work(path):
        library, values = ctypes.CDLL(path), np.zeros(1, np.int64)
        library.install(ctypes.c_void_p(values.ctypes.data))
        watch = hwwatch.watch(values, backend="ptrace")
        results = [library.fork_with_new_threads() for _ in range(20)]
        return any(results), values[0], watch.hits, watch.lost

    assert in_child(work, build(FORK_HANDLER)) == [False, 160, 160, 0]


def test_one_that_blocks_sigtrap_is_never_armed(in_child: Callable[..., Any]) -> None:
    """A hit would kill the process: it is disarmed before it blocks the signal, and armed again later."""

    def work():
        value = np.zeros(1, np.int64)
        steps = [threading.Event() for _ in range(6)]

        def thread():
            steps[0].wait()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTRAP})
            for number in range(10):
                value[0] = number
            steps[1].set()
            steps[2].wait()
            value[0] = 77
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTRAP})
            value[0] = 88
            steps[3].set()
            steps[4].wait()

        worker = threading.Thread(target=thread, name="the deaf")
        worker.start()
        with hwwatch.watching(value, backend="ptrace") as watch:
            value[0] = -1
            steps[0].set()
            steps[1].wait()
            told = [(name, why) for _, name, why in watch.coverage.blind_threads if name == "the deaf"]
        with hwwatch.watching(value, backend="ptrace") as again:
            steps[2].set()
            steps[3].wait()
            later = [name for _, name, _ in again.coverage.blind_threads]
            steps[4].set()
            worker.join()
        return watch.timeline().new.tolist(), told, again.timeline().new.tolist(), later

    first, told, second, later = in_child(work)
    assert first == [-1]
    assert len(told) == 1
    assert "blocks SIGTRAP" in told[0][1]
    assert second == [88]
    assert "the deaf" not in later


HANDLERS = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
static volatile int64_t *place;
static void handler(int number) { *place += number; }
/* A handler that blocks all signals while it stores. */
int install(int number, void *p)
{
    struct sigaction action = {.sa_handler = handler};
    place = p;
    sigfillset(&action.sa_mask);
    return sigaction(number, &action, 0);
}
int blocks_trap(int number)
{
    struct sigaction found;
    return sigaction(number, 0, &found) ? -1 : sigismember(&found.sa_mask, SIGTRAP);
}
/* Waits without end for one event; -errno. */
int wait_for(int fd)
{
    struct epoll_event event = {.events = EPOLLIN};
    int epoll = epoll_create1(0);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
        return -errno;
    int count = epoll_wait(epoll, &event, 1, -1);
    return count < 0 ? -errno : count;
}
"""


def test_signal_handlers_that_block_everything(
    in_child: Callable[..., Any], build: Callable[..., str]
) -> None:
    """A hit in one would kill: while something is armed they do not block SIGTRAP, and do again later."""

    def work(path):
        library = ctypes.CDLL(path)
        value = np.zeros(1, np.int64)
        place = ctypes.c_void_p(value.ctypes.data)
        masks = [library.install(signal.SIGUSR1, place)]
        with hwwatch.watching(value, backend="ptrace") as watch:
            masks.append(library.install(signal.SIGUSR2, place))
            masks += [library.blocks_trap(signal.SIGUSR1), library.blocks_trap(signal.SIGUSR2)]
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR2)
            os.kill(os.getpid(), signal.SIGUSR1)
        masks += [library.blocks_trap(signal.SIGUSR1), library.blocks_trap(signal.SIGUSR2)]
        return masks, watch.timeline().new.tolist()

    masks, new = in_child(work, build(HANDLERS))
    assert masks == [0, 0, 0, 0, 1, 1]
    assert new == [10, 22, 32]


def test_system_calls_go_on(traced: Any, load: Callable[..., ctypes.CDLL]) -> None:
    """A thread that waits in one is stopped again and again, and notices nothing."""
    library = load(HANDLERS)
    reader, writer = os.pipe()
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(library.wait_for(reader)))
    thread.start()
    value = np.zeros(1)
    for _ in range(20):
        with traced.watching(value):
            value[0] += 1
    assert answers == []
    os.write(writer, b"!")
    thread.join()
    os.close(reader)
    os.close(writer)
    assert answers == [1]


def test_library_loaded_later(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    """Its threads are armed from their start, too."""

    def work(path):
        value = np.zeros(1, np.int64)
        with hwwatch.watching(value, backend="ptrace") as watch:
            library = ctypes.CDLL(path)
            library.in_thread(ctypes.c_void_p(value.ctypes.data))
            coverage = watch.coverage
        return watch.timeline().new.tolist(), list(coverage.notes)

    assert in_child(work, build(SOURCE, "-Wl,-Bsymbolic")) == [[1], []]


KILLER = """
import os, signal, sys
from pathlib import Path
pid = int(sys.argv[1])
print("ready", flush=True)
killed = 0
while True:
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                if int(child) != os.getpid():
                    os.kill(int(child), signal.SIGKILL)
                    killed += 1
    except OSError:
        if not Path(f"/proc/{pid}").exists():
            break
"""


def test_helper_killed_again_and_again(in_child: Callable[..., Any]) -> None:
    """The program lives, each call either works or says why not, and hits of what is armed are all there."""

    def work(killer):
        import subprocess

        value, other = np.zeros(1, np.int64), np.zeros(1, np.int64)
        watch = hwwatch.watch(value, backend="ptrace")
        process = subprocess.Popen([sys.executable, "-c", killer, str(os.getpid())], stdout=subprocess.PIPE)
        process.stdout.readline()
        told, worked = set(), 0
        for number in range(30):
            value[0] = number + 1
            try:
                with hwwatch.watching(other, backend="ptrace"):
                    worked += 1
            except hwwatch.HwwatchError as error:
                told.add(error.slug)
            thread = threading.Thread(target=other.__setitem__, args=(0, number))
            thread.start()
            thread.join()
        process.kill()
        process.wait()
        tally = watch.hits, watch.lost
        coverage = watch.coverage
        watch.disarm()
        with hwwatch.watching(other, backend="ptrace") as last:
            other[0] = -5
        return {
            "tally": tally,
            "told": sorted(told),
            "worked": worked > 0 or bool(told),
            "notes": coverage.notes,
            "last": last.timeline().new.tolist(),
        }

    found = in_child(work, KILLER, timeout=100)
    hits, lost = found["tally"]
    assert lost == 0
    assert hits == 30 or any("was killed" in note for note in found["notes"])
    assert set(found["told"]) <= {"ptrace-killed"}
    assert found["worked"]
    assert found["last"] == [-5]


def test_parent_killed_as_its_helper_is_born(in_child: Callable[..., Any]) -> None:
    """No helper outlives it: it would hold memory and pipes of a program that is gone."""

    def work():
        import select
        import struct

        # Killed at prctl(PR_SET_PTRACER, helper), which comes after its birth and before its errand.
        load, equal, give = 0x20, 0x15, 0x06  # linux/bpf_common.h
        rows = [(load, 0, 0, 0), (equal, 0, 3, 157), (load, 0, 0, 16), (equal, 0, 1, 0x59616D61)]
        rows += [(give, 0, 0, 0x80000000), (give, 0, 0, 0x7FFF0000)]  # SECCOMP_RET_KILL_PROCESS, _ALLOW
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
        program = struct.pack("HxxxxxxQ", len(rows), ctypes.addressof(code))
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the helper comes second
            prctl = ctypes.CDLL(None).prctl
            assert not prctl(38, *map(ctypes.c_ulong, (1, 0, 0, 0)))  # PR_SET_NO_NEW_PRIVS
            assert not prctl(22, ctypes.c_ulong(2), program, *map(ctypes.c_ulong, (0, 0)))  # PR_SET_SECCOMP
            hwwatch.watch(np.zeros(1, np.int64), backend="ptrace")
            os._exit(0)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        ended = select.select([reader], [], [], 10)[0] and os.read(reader, 1) == b""
        return os.WTERMSIG(status), bool(ended)

    assert in_child(work) == [signal.SIGSYS, True]


def test_exec_while_another_thread_arms(in_child: Callable[..., Any]) -> None:
    """The helper ends with the thread that has sent it: the new program is neither armed nor traced."""

    def work():
        import random
        from pathlib import Path

        random.seed(5)
        libc = ctypes.CDLL(None)
        libc.ptrace.argtypes, libc.ptrace.restype = [ctypes.c_long] * 4, ctypes.c_long
        array = np.zeros(8)
        found = []
        for _ in range(60):
            child = os.fork()
            if not child:
                armed = threading.Event()

                def arm(armed=armed):
                    watch = hwwatch.watch(array[3:4], backend="ptrace")
                    armed.set()
                    while True:
                        watch.mode = "rw"
                        watch.mode = "w"

                threading.Thread(target=arm, daemon=True).start()
                armed.wait()
                time.sleep(random.uniform(0.001, 0.01))
                os.execv("/bin/sleep", ["sleep", "60"])
            while Path(f"/proc/{child}/comm").read_text() != "sleep\n":
                time.sleep(0.002)
            time.sleep(0.02)
            seized = libc.ptrace(0x4206, child, 0, 0) == 0  # PTRACE_SEIZE
            libc.ptrace(0x4207, child, 0, 0)  # PTRACE_INTERRUPT
            if seized:
                os.waitpid(child, 0x40000000)  # __WALL
                libc.ptrace.restype = ctypes.c_long
                found.append(libc.ptrace(3, child, 848 + 7 * 8, 0))  # PTRACE_PEEKUSR, u_debugreg[7]
            else:
                found.append("traced")
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0x40000000)
        return [register for register in found if register]

    assert in_child(work, timeout=100) == []


def test_disarming_without_a_free_descriptor(in_child: Callable[..., Any]) -> None:
    """The helper looks into /proc: it closes copies of the program's, which it does not need."""

    def work():
        import contextlib
        import resource

        array = np.zeros(8)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        watch = hwwatch.watch(array[3:4], backend="ptrace")
        array[3] = 1
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        watch.disarm()
        for fd in taken:
            os.close(fd)
        array[3] = 2
        return watch.armed, watch.hits, len(taken) > 0

    assert in_child(work) == [False, 1, True]


TRACER = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(ctypes.c_long(0x4206), ctypes.c_long(int(sys.argv[1])), None, None) == 0  # PTRACE_SEIZE
print("traced", flush=True)
time.sleep(60)
"""


def test_traced_already(in_child: Callable[..., Any]) -> None:
    """A debugger is attached: the refusal names it; afterwards all is well."""

    def work(tracer):
        import subprocess

        value = np.zeros(1)
        process = subprocess.Popen([sys.executable, "-c", tracer, str(os.getpid())], stdout=subprocess.PIPE)
        process.stdout.readline()
        try:
            hwwatch.watch(value, backend="ptrace")
        except hwwatch.PermissionRefused as error:
            said, slug = str(error), error.slug
        process.kill()
        process.wait()
        watch = hwwatch.watch(value, backend="ptrace")
        value[0] = 1
        return said, slug, process.pid, watch.hits, len(hwwatch.watches())

    said, slug, pid, hits, watches = in_child(work, TRACER)
    assert slug == "ptrace-traced"
    assert f"pid {pid}" in said
    assert "python" in said
    assert "\n" not in said
    assert (hits, watches) == (1, 1)


PASSING_ON = """
import ctypes, os, sys
libc, pid = ctypes.CDLL(None), int(sys.argv[1])
libc.ptrace.argtypes = [ctypes.c_long] * 4
assert libc.ptrace(0x4206, pid, 0, 0) == 0  # PTRACE_SEIZE
print("traced", flush=True)
while True:
    _, status = os.waitpid(pid, 0x40000000)  # __WALL
    if not os.WIFSTOPPED(status):
        break
    libc.ptrace(7, pid, 0, 0 if status >> 16 else os.WSTOPSIG(status))  # PTRACE_CONT
"""


def test_blocking_sigtrap_while_a_tracer_is_attached(in_child: Callable[..., Any]) -> None:
    """Nobody can clear the thread's registers, so it goes on hearing of hits, which would kill it else."""

    def work(tracer):
        import subprocess

        value = np.zeros(1)
        watch = hwwatch.watch(value, backend="ptrace")
        with subprocess.Popen([sys.executable, "-c", tracer, str(os.getpid())], stdout=-1) as process:
            process.stdout.readline()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTRAP, signal.SIGUSR1})
            value[0] = 1
            blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTRAP, signal.SIGUSR1})
            process.kill()
        return watch.timeline().new.tolist(), sorted(blocked)

    assert in_child(work, PASSING_ON) == [[1], [signal.SIGUSR1]]


def test_kernel_accesses_are_refused(traced: Any) -> None:
    value = np.zeros(1)
    with pytest.raises(
        hwwatch.NotSupported, match=r"ptrace backend does not see accesses by the kernel.*\[kernel\]"
    ):
        traced.watch(value, kernel=True)
    watch = traced.watch(value)
    assert "not seen" in watch.coverage.kernel
    assert not watch.coverage.full or "not" in watch.coverage.kernel


def test_no_more_than_four(traced: Any) -> None:
    values = np.zeros(5)
    watches = [traced.watch(values[i : i + 1], name=f"number {i}") for i in range(4)]
    with pytest.raises(hwwatch.NoSlotError, match="number 0"):
        traced.watch(values[4:])
    values[:] = 3
    assert [watch.hits for watch in watches] == [1] * 4
    watches[2].disarm()
    fifth = traced.watch(values[4:])
    values[4] = 9
    assert fifth.hits == 1


def test_the_stack_is_refused(traced: Any, load: Callable[..., ctypes.CDLL]) -> None:
    """The C library blocks SIGTRAP while it uses it, as in posix_spawn: a hit then would kill."""
    library = load("void *below(void) { return __builtin_frame_address(0) - 900; }")
    library.below.restype = ctypes.c_void_p
    with pytest.raises(hwwatch.NotSupported, match=r"does not watch the main thread's stack.*\[stack\]"):
        traced.watch(library.below() & ~7, nbytes=8, name="stack")


def test_children_keep_the_mode_they_were_born_with(in_child: Callable[..., Any]) -> None:
    """Their registers cannot be reached: the coverage says so."""

    def work():
        value = np.zeros(1, np.int64)
        watch = hwwatch.watch(value, backend="ptrace")
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            value[0] = 1
            int(value[0])
            os._exit(0)
        os.read(ready[0], 1)
        watch.mode = "rw"
        problems = hwwatch.coverage().problems
        os.write(go[1], b"x")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, child, problems, watch.timeline().access.tolist(), watch.coverage.full

    code, child, problems, accesses, full = in_child(work)
    assert (code, accesses, full) == (0, ["write"], False)
    assert any("whose registers keep the mode before" in text and f"({child})" in text for text in problems)
