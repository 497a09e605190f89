"""The six points of the request of 2010, each on the real CPU, without ptrace and without a second process.

A program wants to use the CPU's breakpoint registers for itself: program them, hand them on to threads and
children, be stopped at the access, look at it in a handler, change the pc there, and go on behind it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwwatch

SOURCE = r"""
#define _GNU_SOURCE
#include <string.h>
#include <hwwatch.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- what is watched ---- */
volatile long place, progress;

/* A store and a step of progress, again and again. */
void run(long n)
{
    for (long i = 1; i <= n; i++) {
        place = i;
        __asm__ volatile("" ::: "memory");
        progress = i;
    }
}

/* One store with labels around it, and numbers in registers that the handler is to find. */
__attribute__((noinline)) void marked(long value)
{
    __asm__ volatile("movq $0x5eed, %%rbx\n"
                     ".globl at_store\nat_store: movq %0, (%1)\n"
                     ".globl behind_store\nbehind_store: movq $0, %%rbx\n"
                     :
                     : "r"(value), "r"(&place)
                     : "rbx", "memory");
}

/* `trigger` is the watched instruction. It adds 1; the one at `past` adds 100, the one at `landing` 10000. */
__attribute__((noinline)) long steps(void)
{
    long sum = 0;
    __asm__ volatile(".globl trigger\ntrigger: addq $1, %0\n"
                     ".globl past\npast: addq $100, %0\n"
                     ".globl landing\nlanding: addq $10000, %0\n"
                     : "+r"(sum));
    return sum;
}

long many(long n)
{
    long sum = 0;
    while (n--)
        sum += steps();
    return sum;
}

long who(void) { return syscall(SYS_gettid); }

/* ---- handlers ---- */
struct seen {
    uint64_t pc, rip, rbx, progress, tid, gettid, old, new_;
};
struct seen seen[4096];
volatile long nseen;

int look(hwwatch_hit *hit, ucontext_t *context)
{
    struct seen *s = &seen[nseen++ % 4096];
    s->pc = hit->pc;
    s->rip = context->uc_mcontext.gregs[REG_RIP];
    s->rbx = context->uc_mcontext.gregs[REG_RBX];
    s->progress = progress;
    s->tid = hit->tid;
    s->gettid = syscall(SYS_gettid);
    memcpy(&s->old, hit->old_bytes, 8);
    memcpy(&s->new_, hit->new_bytes, 8);
    return HWWATCH_CONTINUE;
}

extern char past[], landing[];

int go_past(hwwatch_hit *hit, ucontext_t *context)
{
    (void)hit;
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)past;
    return HWWATCH_CONTINUE;
}

int go_to_landing(hwwatch_hit *hit, ucontext_t *context)
{
    (void)hit;
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)landing;
    return HWWATCH_CONTINUE;
}
"""


class Seen(ctypes.Structure):
    """What the handler `look` wrote down."""

    _fields_ = [
        (name, ctypes.c_uint64) for name in ("pc", "rip", "rbx", "progress", "tid", "gettid", "old", "new")
    ]


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    made = load(SOURCE, f"-I{hwwatch.include()}")
    made.steps.restype = made.many.restype = made.who.restype = ctypes.c_long
    for name in ("place", "progress", "nseen"):
        _word(made, name).value = 0
    return made


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """No tracer, and no process beside this one: before, and at the end, while things were watched."""
    _nobody_helps()
    yield
    _nobody_helps()


def _nobody_helps() -> None:
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert int(status["TracerPid"]) == 0
    children = [(task / "children").read_text() for task in Path("/proc/self/task").iterdir()]
    assert "".join(children).strip() == ""


def _word(library: ctypes.CDLL, name: str) -> Any:
    return ctypes.c_long.in_dll(library, name)


def _label(library: ctypes.CDLL, name: str) -> int:
    return ctypes.addressof(ctypes.c_char.in_dll(library, name))


def _seen(library: ctypes.CDLL) -> list[Seen]:
    count = _word(library, "nseen").value
    return list((Seen * 4096).in_dll(library, "seen")[:count])


def test_1_program_the_four_registers_for_itself_with_a_granularity_of_one_byte(
    session: Any, library: ctypes.CDLL
) -> None:
    """Read, write, execute: four at once, each for one byte, all four registers pinned."""
    data = np.zeros(16, np.uint8)
    write = session.watch(data[5:6], "w", name="write")
    both = session.watch(data[6:7], "rw", name="both")
    read = session.watch(data[7:8], "r", name="read")
    run = session.watch(_label(library, "trigger"), "x", name="run")
    _nobody_helps()
    assert session.coverage().slots_free == 0
    with pytest.raises(hwwatch.NoSlotError, match=r"write \(1\), both \(1\), read \(1\), run \(1\)"):
        session.watch(data[9:10])

    for index in range(16):
        data[index] = index + 1
    for index in range(16):
        assert data[index] == index + 1
    assert library.steps() == 10101

    rows = session.timeline()
    assert list(zip(rows.watch, rows.access, strict=True)) == [
        ("write", "write"),
        ("both", "write"),
        ("both", "read"),
        ("read", "read"),
        ("run", "execute"),
    ]
    assert rows.new.tolist()[:4] == [6, 7, 7, 8]
    assert rows.nbytes.tolist() == [1] * 5
    assert [(watch.counted, watch.lost, watch.slots) for watch in (write, both, read, run)] == [
        (1, 0, 1),
        (2, 0, 1),
        (2, 0, 1),
        (1, 0, 1),
    ]


def test_2_clone_and_fork_hand_them_on_to_threads_and_children(
    in_child: Callable[..., Any], build: Callable[..., str]
) -> None:
    def work(path):
        library = ctypes.CDLL(path)
        place = ctypes.c_long.in_dll(library, "place")
        trigger = ctypes.addressof(ctypes.c_char.in_dll(library, "trigger"))
        go = threading.Event()

        def act(value):
            library.marked(ctypes.c_long(value))
            library.steps()

        earlier = threading.Thread(target=lambda: (go.wait(), act(1)))
        earlier.start()
        data, code = hwwatch.watch(place, name="data"), hwwatch.watch(trigger, "x", name="code")
        go.set()
        earlier.join()
        later = threading.Thread(target=act, args=(2,))
        later.start()
        later.join()

        def in_fork():
            act(3)
            thread = threading.Thread(target=act, args=(4,))
            thread.start()
            thread.join()

        child = os.fork()
        if not child:
            in_fork()
            os._exit(0)
        os.waitpid(child, 0)
        rows = hwwatch.timeline()
        names = {earlier.native_id: "earlier", later.native_id: "later", child: "child"}
        return {
            "rows": [
                [row.watch, "child" if row.pid == child else "parent", names.get(row.tid, "its thread")]
                for row in rows.itertuples()
            ],
            "new": rows[rows.watch == "data"].new.tolist(),
            "lost": [data.lost, code.lost],
        }

    assert in_child(work, build(SOURCE, f"-I{hwwatch.include()}")) == {
        "rows": [
            [watch, process, thread]
            for process, thread in (
                ("parent", "earlier"),
                ("parent", "later"),
                ("child", "child"),
                ("child", "its thread"),
            )
            for watch in ("data", "code")
        ],
        "new": [1, 2, 3, 4],
        "lost": [0, 0],
    }


def test_3_the_thread_that_triggers_is_stopped_at_once_by_sigtrap(session: Any, library: ctypes.CDLL) -> None:
    """The handler runs between the store and the next instruction, on the thread that stored."""
    status = Path("/proc/self/status").read_text()
    watch = session.watch(_word(library, "place"), policy=library.look)
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    assert not int(caught, 16) >> (signal.SIGTRAP - 1) & 1
    status = Path("/proc/self/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    assert int(caught, 16) >> (signal.SIGTRAP - 1) & 1

    workers = [threading.Thread(target=library.run, args=(500,)) for _ in range(3)]
    for worker in workers:
        worker.start()
        worker.join()
    tids = [worker.native_id for worker in workers for _ in range(500)]
    values = [value for _ in workers for value in range(1, 501)]
    _nobody_helps()

    seen = _seen(library)
    assert [item.gettid for item in seen] == [item.tid for item in seen] == tids
    assert [item.new for item in seen] == values
    assert [item.old for item in seen] == [0, *values[:-1]]
    # The step that follows the store had not been taken.
    assert [item.progress for item in seen] == [0, *values[:-1]]
    rows = watch.timeline()
    assert rows.tid.tolist() == tids
    assert set(rows.pid) == {os.getpid()}
    assert rows.new.tolist() == values
    assert rows.old.tolist() == [0, *values[:-1]]
    assert rows.exact.all()
    assert rows.pc.tolist() == [item.pc for item in seen]
    assert rows.pc.nunique() == 1
    assert (watch.counted, watch.hits, watch.lost) == (1500, 1500, 0)


def test_4_from_the_triggering_pc_straight_into_the_handler(session: Any, library: ctypes.CDLL) -> None:
    """The handler finds pc and registers as they were: behind the store, and at an instruction to execute."""
    with session.watching(_word(library, "place"), policy=library.look) as stored:
        library.marked(ctypes.c_long(77))
    with session.watching(_label(library, "at_store"), "x", policy=library.look) as reached:
        library.marked(ctypes.c_long(78))
    behind, at = _label(library, "behind_store"), _label(library, "at_store")
    first, second = _seen(library)
    assert (first.pc, first.rip, first.rbx) == (behind, behind, 0x5EED)
    assert (first.old, first.new) == (0, 77)
    assert (second.pc, second.rip, second.rbx) == (at, at, 0x5EED)
    assert _word(library, "place").value == 78
    rows = session.timeline(registers=True)
    assert rows.pc.tolist() == [behind, at]
    assert rows.rbx.tolist() == [0x5EED, 0x5EED]
    assert rows.action.tolist() == ["native", "native"]
    assert (stored.hits, reached.hits) == (1, 1)


def test_5_the_handler_changes_the_pc_so_that_the_instruction_is_not_returned_to(
    session: Any, library: ctypes.CDLL
) -> None:
    """Past the triggering instruction: by a handler of one's own, and by policy "skip"."""
    trigger = _label(library, "trigger")
    assert library.steps() == 10101
    with session.watching(trigger, "x") as stays:
        assert library.steps() == 10101
    with session.watching(trigger, "x", policy=library.go_past) as own:
        assert library.steps() == 10100
    with session.watching(trigger, "x", policy="skip") as skips:
        assert library.steps() == 10100
    assert library.steps() == 10101
    assert [watch.counted for watch in (stays, own, skips)] == [1, 1, 1]
    assert session.timeline().action.tolist() == ["continued", "native", "skipped"]
    assert session.timeline().pc.tolist() == [trigger] * 3


def test_6_the_thread_goes_on_there(session: Any, library: ctypes.CDLL) -> None:
    """A thousand times in each of four threads, which live on and are the same as before."""
    trigger, landing = _label(library, "trigger"), _label(library, "landing")
    results: dict[int, tuple[int, int, int]] = {}

    def work() -> None:
        before = library.who()
        results[threading.get_native_id()] = before, library.many(1000), library.who()

    for policy in (library.go_to_landing, hwwatch.Goto(landing)):
        results.clear()
        with session.watching(trigger, "x", policy=policy) as watch:
            workers = [threading.Thread(target=work) for _ in range(4)]
            for worker in workers:
                worker.start()
            _nobody_helps()
            for worker in workers:
                worker.join()
        assert len(results) == 4
        assert all(result == (tid, 1000 * 10000, tid) for tid, result in results.items())
        assert (watch.counted, watch.hits, watch.lost) == (4000, 4000, 0)
        assert watch.timeline().tid.value_counts().to_dict() == dict.fromkeys(results, 1000)
    actions = session.timeline().action.value_counts()
    assert (actions["native"], actions["jumped"]) == (4000, 4000)
    assert library.steps() == 10101
