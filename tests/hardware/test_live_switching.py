"""Mode, policy, when, limit and enabled of an armed watch, changed while other threads keep hitting it."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwwatch

pytestmark = pytest.mark.slow

SOURCE = r"""
#include <errno.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

void store(volatile long *p, long n) { for (long i = 1; i <= n; i++) *p = i; }

/* Loops until *stop; *done tells how far they are. */
void store_until(volatile long *p, const volatile long *stop, volatile long *done)
{
    while (!*stop) { *p = *done + 1; ++*done; }
}
/* A write and a read in turn. */
void both_until(volatile long *p, const volatile long *stop, volatile long *done)
{
    while (!*stop) { *p = *done + 1; (void)*p; ++*done; }
}
/* Waits with epoll again and again: places[0] times, interrupted [1] times, early [2] times. */
void nap_until(volatile long *places, const volatile long *stop, int milliseconds)
{
    struct epoll_event event;
    int epoll = epoll_create1(0);
    while (!*stop) {
        struct timespec before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        int result = epoll_wait(epoll, &event, 1, milliseconds);
        clock_gettime(CLOCK_MONOTONIC, &after);
        long slept = (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000;
        places[0]++;
        places[1] += result < 0 && errno == EINTR;
        places[2] += result == 0 && slept < milliseconds * 1000L;
    }
    close(epoll);
}
__attribute__((noinline)) long function(long a) { __asm__ volatile(""); return a + 1; }
/* Counts in *odd the answers that are not the function's own. */
void odd_until(volatile long *odd, const volatile long *stop, volatile long *done)
{
    while (!*stop) { *odd += function(5) != 6; ++*done; }
}
"""


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    return load(SOURCE, "-Wl,-Bsymbolic")


def _at(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class Hammer:
    """One of the loops in a thread of its own, for the length of a block."""

    def __init__(self, loop: Any, place: Any) -> None:
        # Far from each other: a store that crosses a cache line would cost more while anything is armed.
        self._stop, self._done = np.zeros(16, np.int64), np.zeros(16, np.int64)
        arguments = _at(place), _at(self._stop), _at(self._done)
        self._worker = threading.Thread(target=loop, args=arguments, name="hammer")

    def __enter__(self) -> Hammer:
        self._worker.start()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop[0] = 1
        self._worker.join(20)
        assert not self._worker.is_alive()

    @property
    def done(self) -> int:
        """Turns so far."""
        return int(self._done[0])

    def wait(self, turns: int = 20) -> None:
        """Until it has made so many more."""
        goal, end = self.done + turns, time.monotonic() + 20
        while self.done < goal:
            assert time.monotonic() < end, "the loop stands still"
            time.sleep(0.0005)


def test_no_row_of_the_wrong_kind_after_the_switch(session: Any, library: ctypes.CDLL) -> None:
    """`r`, `w`, `rw` in turn under a loop that reads and writes; `x` is refused, and nothing changes."""
    value = np.zeros(1, np.int64)
    kinds = {"w": {"write"}, "rw": {"read", "write"}, "r": {"read"}}
    watch = session.watch(value, "r")
    since: list[tuple[int, str]] = []
    with Hammer(library.both_until, value) as hammer:
        for mode in ["w", "rw", "r", "rw", "w", "r"] * 4:
            watch.mode = mode
            since.append((time.monotonic_ns(), mode))
            with pytest.raises(hwwatch.TargetError, match="mode 'x' does not fit it"):
                watch.mode = "x"
            assert watch.mode == mode
            hammer.wait()
            since.append((time.monotonic_ns(), ""))  # the next switch may begin
    rows = watch.timeline()
    monotonic = rows.time.astype("int64").to_numpy() - session._clock
    for (start, mode), (end, _) in zip(since[::2], since[1::2], strict=True):
        there = rows[(monotonic > start) & (monotonic < end)]
        assert len(there) > 5, mode
        assert set(there.access) == kinds[mode], mode
    assert watch.lost == 0


@pytest.mark.parametrize(
    ("modes", "name"), [(("rw", "w"), "w"), (("rw", "r", "w"), "w"), (("rw", "w", "rw", "r"), "rw")]
)
def test_no_store_is_missed_between_old_and_new(
    session: Any, library: ctypes.CDLL, modes: tuple[str, ...], name: str
) -> None:
    """A thread stores 1, 2, 3 …: all are counted, and each is a row or was left out by mode r."""
    value = np.zeros(1, np.int64)
    watch = session.watch(value, name)
    switches = 0
    with Hammer(library.store_until, value) as hammer:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            watch.mode = modes[switches % len(modes)]
            switches += 1
    tally = watch.coverage.tally
    assert switches > 50
    assert tally.lost == 0
    assert tally.counted == hammer.done
    assert tally.hits + tally.filtered == hammer.done
    rows = watch.timeline()
    assert set(rows.access) == {"write"}
    if "r" not in modes:
        assert rows.new.tolist() == list(range(1, hammer.done + 1))
    # The value before is that of the store before, whatever became of that one's row.
    assert (rows.new - rows.old == 1).all()


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_several_threads_store_and_nothing_is_lost(session: Any, library: ctypes.CDLL, pieces: int) -> None:
    """One free register is enough, though it takes a moment to come back. A trap may record what another
    thread's, still on its way, is counted for."""
    value = np.zeros(pieces, np.int64)
    watch = session.watch(value)
    done = np.zeros((3, 16), np.int64)
    stop = np.zeros(16, np.int64)
    workers = [
        threading.Thread(target=library.store_until, args=(_at(value[n % pieces :]), _at(stop), _at(done[n])))
        for n in range(3)
    ]
    for worker in workers:
        worker.start()
    end = time.monotonic() + 2
    switches = 0
    while time.monotonic() < end:
        watch.mode = ("rw", "w")[switches % 2]
        switches += 1
    stop[0] = 1
    for worker in workers:
        worker.join()
    assert switches > 20
    assert not watch.gap
    assert (watch.counted, watch.hits, watch.lost) == (done[:, 0].sum(), done[:, 0].sum(), 0)


def test_in_several_threads_nothing_is_missed(session: Any, library: ctypes.CDLL) -> None:
    value = np.zeros(1, np.int64)
    watch = session.watch(value)
    workers = [
        threading.Thread(target=library.store, args=(_at(value), ctypes.c_long(5000))) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    switches = 0
    while any(worker.is_alive() for worker in workers):
        watch.mode = ("rw", "w")[switches % 2]
        switches += 1
    for worker in workers:
        worker.join()
    assert switches > 1
    assert (watch.counted, watch.hits, watch.lost) == (15_000, 15_000, 0)


@pytest.mark.parametrize("watches", [1, 4])
def test_with_all_registers_taken_the_threads_are_held(
    session: Any, library: ctypes.CDLL, watches: int
) -> None:
    """The kernel takes a breakpoint out to change it, and none is free to stand in for it."""
    value = np.zeros(4, np.int64)
    watched = [session.watch(value)] if watches == 1 else [session.watch(value[i : i + 1]) for i in range(4)]
    assert sum(watch.slots for watch in watched) == 4
    done = np.zeros((3, 16), np.int64)
    stop = np.zeros(16, np.int64)
    workers = [
        threading.Thread(target=library.store_until, args=(_at(value[n:]), _at(stop), _at(done[n])))
        for n in range(3)
    ]
    for worker in workers:
        worker.start()
    switches, end = 0, time.monotonic() + 2
    while time.monotonic() < end:
        for watch in watched:
            watch.mode = ("rw", "w")[switches % 2]
        switches += 1
    stop[0] = 1
    for worker in workers:
        worker.join()
    assert switches > 10
    assert not any(watch.gap for watch in watched)
    counted, hits, lost = (
        sum(getattr(watch, name) for watch in watched) for name in ("counted", "hits", "lost")
    )
    assert (counted, hits, lost) == (done[:, 0].sum(), done[:, 0].sum(), 0)


@pytest.mark.perf  # ptrace must stop them to set their registers
def test_threads_that_sleep_are_not_woken(session: Any, library: ctypes.CDLL) -> None:
    """Nor do those that often wait for a moment see EINTR, which no signal of theirs explains."""
    value = np.zeros(4, np.int64)
    watch = session.watch(value)
    counts, stop = np.zeros((3, 16), np.int64), np.zeros(16, np.int64)
    naps = [
        threading.Thread(target=library.nap_until, args=(_at(counts[n]), _at(stop), milliseconds))
        for n, milliseconds in enumerate((0, 1, 500))
    ]
    for nap in naps:
        nap.start()
    switches = 0
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        watch.mode = ("rw", "w")[switches % 2]
        switches += 1
    stop[0] = 1
    for nap in naps:
        nap.join()
    waits, interrupted, early = counts[:, 0], counts[:, 1], counts[:, 2]
    assert switches > 10
    assert waits[0] > 1000
    assert waits[2] in (3, 4, 5)
    assert interrupted.tolist() == [0, 0, 0]
    assert early.tolist() == [0, 0, 0]


@pytest.mark.perf
@pytest.mark.parametrize("why", ["ptrace refused", "a forked child"])
def test_where_threads_cannot_be_held_the_gap_is_told(in_child: Callable[..., Any], why: str) -> None:
    def work(why, tests):
        import time

        value = np.zeros(4, np.int64)
        watch = hwwatch.watch(value)
        ready, done = os.pipe(), os.pipe()
        if why == "ptrace refused":
            sys.path.insert(0, tests)
            from denied import NUMBERS, deny

            deny([NUMBERS["ptrace"]])
        elif os.fork() == 0:
            os.write(ready[1], b"r")
            os.read(done[0], 1)
            os._exit(0)
        else:
            os.read(ready[0], 1)
        stop = threading.Event()

        def store():
            while not stop.is_set():
                value[1] += 1

        worker = threading.Thread(target=store)
        worker.start()
        time.sleep(0.01)
        watch.mode = "r"
        told = watch.gap, watch.coverage.full, hwwatch.coverage().problems
        before = watch.counted
        watch.mode = "rw"  # the registers stay as they are
        time.sleep(0.01)
        stop.set()
        worker.join()
        os.write(done[1], b"d")
        return *told, watch.counted > before, watch.lost

    gap, full, problems, goes_on, lost = in_child(work, why, str(Path(__file__).parents[1]))
    assert (gap, full, goes_on, lost) == (True, False, True, 0)
    assert any("accesses of that moment may have been missed" in problem for problem in problems)


def test_policy(session: Any, library: ctypes.CDLL) -> None:
    """Each call meets the old policy or the new one, none of them neither."""
    odd = np.zeros(1, np.int64)
    watch = session.watch(library.function, "x", policy=hwwatch.Return(0))
    with Hammer(library.odd_until, odd) as hammer:
        for _ in range(40):
            watch.policy = "continue"
            watch.policy = hwwatch.Return(1)
    rows = watch.timeline()
    actions = rows.action.value_counts()
    assert (watch.counted, watch.hits, watch.lost) == (hammer.done, hammer.done, 0)
    assert actions["returned"] == odd[0]
    assert actions["continued"] == hammer.done - odd[0]
    assert actions["continued"] > 0
    assert actions["returned"] > 0


def test_policy_of_a_store_is_in_force_at_once(session: Any, library: ctypes.CDLL) -> None:
    value = np.zeros(1, np.int64)
    watch = session.watch(value)
    with Hammer(library.store_until, value) as hammer:
        watch.policy = "skip"
        held = int(value[0])  # perhaps in the middle of a store that is being undone
        hammer.wait()
        watch.policy = "continue"
        hammer.wait()
        assert int(value[0]) > held
    rows = watch.timeline()
    assert rows.old[rows.action == "skipped"].nunique() == 1
    actions = rows.action
    # continued, then skipped, then continued: two changes and no more
    assert (actions.astype(str) != actions.astype(str).shift()).sum() == 3
    assert (watch.counted, watch.lost) == (watch.hits, 0)


def test_when(session: Any, library: ctypes.CDLL) -> None:
    value = np.zeros(1, np.int64)
    watch = session.watch(value, when="False")
    with Hammer(library.store_until, value) as hammer:
        for _ in range(100):
            watch.when = "new % 2 == 0"
            watch.when = "new % 2 == 1"
            watch.when = None
            watch.when = "new % 10 == 0"
        watch.when = "new < 0"
        before = watch.hits
        hammer.wait()
        assert watch.hits == before
    tally = watch.coverage.tally
    assert (tally.counted, tally.lost) == (hammer.done, 0)
    assert tally.hits + tally.filtered == hammer.done
    rows = watch.timeline()
    assert 0 < len(rows) == tally.hits
    assert (rows.new - rows.old == 1).all()


def test_limit(session: Any, library: ctypes.CDLL) -> None:
    value = np.zeros(1, np.int64)
    watch = session.watch(value)
    with Hammer(library.store_until, value):
        goal = watch.hits + 20_000
        watch.limit = goal
        end = time.monotonic() + 20
        while watch.armed:
            assert time.monotonic() < end
            time.sleep(0.001)
    assert (watch.hits, watch.lost) == (goal, 0)
    rows = watch.timeline()
    assert rows.new.tolist() == list(range(1, goal + 1))
    assert session.coverage().slots_free == 4


def test_enabled(session: Any, library: ctypes.CDLL) -> None:
    """Paused, nothing comes in and the slot stays taken; then it goes on with the value of that time."""
    value = np.zeros(1, np.int64)
    watch = session.watch(value)
    with Hammer(library.store_until, value) as hammer:
        for _ in range(20):
            hammer.wait(10)
            watch.enabled = False
            time.sleep(0.005)  # for a hit that was on its way
            before = watch.counted
            assert hammer.done > 0
            hammer.wait(1000)
            assert (watch.counted, watch.hits, len(watch.timeline())) == (before, before, before)
            assert (watch.armed, watch.enabled) == (True, False)
            assert session.coverage().slots_free == 3
            watch.enabled = True
            assert watch.enabled
    assert (watch.hits, watch.lost) == (watch.counted, 0)
    rows = watch.timeline()
    # Never a value twice, never one from before; 20 gaps, and no more.
    steps = rows.new.diff().dropna()
    assert (steps > 0).all()
    assert (steps != 1).sum() <= 20


@pytest.mark.parametrize(
    ("name", "new"), [("mode", "rw"), ("mode", "r"), ("policy", "skip"), ("when", "True"), ("limit", 3)]
)
def test_a_paused_watch_stays_paused(session: Any, name: str, new: Any) -> None:
    """PERF_EVENT_IOC_MODIFY_ATTRIBUTES would switch its events on."""
    value = np.zeros(1, np.int64)
    watch = session.watch(value)
    value[0] = 1
    watch.enabled = False
    setattr(watch, name, new)
    value[0] = 2
    assert value[0] == 2
    assert (watch.state, watch.counted, watch.hits) == ("paused", 1, 1)
    watch.enabled = True
    value[0] = 3
    stored = watch.counted
    assert stored == 2
    _ = value[0].item()
    assert watch.counted == (3 if name == "mode" else 2)
    assert (watch.lost, watch.gap) == (0, False)
    assert watch.timeline().new.tolist()[:2] == [1, 3]


@pytest.mark.parametrize("name", ["mode", "policy", "when", "limit", "enabled", "on_hit"])
def test_from_another_thread(session: Any, name: str) -> None:
    """A widget's callback runs on one."""
    values = {
        "mode": "rw",
        "policy": "skip",
        "when": "new < 0",
        "limit": 2,
        "enabled": False,
        "on_hit": lambda hit: None,
    }
    value = np.zeros(1, np.int64)
    with session.watching(np.zeros(1), on_hit=lambda hit: None):  # the main thread prepares Python's part
        watch = session.watch(value)
        errors: list[BaseException] = []

        def switch() -> None:
            try:
                setattr(watch, name, values[name])
            except BaseException as error:
                errors.append(error)

        worker = threading.Thread(target=switch)
        worker.start()
        worker.join()
        assert errors == []
        assert getattr(watch, name) == values[name]
        for new in (1, -2, 3, 4):
            value[0] = new
        assert value[0] == (0 if name == "policy" else 4)
        rows = watch.timeline()
    expected = {"when": [-2], "limit": [1, -2], "enabled": []}.get(name, [1, -2, 3, 4])
    assert rows.new.tolist()[: len(expected)] == expected
    # The line that looked at the value was a read.
    assert len(rows) == len(expected) + (name == "mode")
    assert watch.lost == 0


def test_from_many_threads_at_once(session: Any, library: ctypes.CDLL) -> None:
    """Whatever order they get, the watch is whole afterwards."""
    value = np.zeros(1, np.int64)
    watch = session.watch(value)
    errors: list[BaseException] = []

    def switch(name: str, first: Any, second: Any) -> None:
        try:
            for _ in range(40):
                setattr(watch, name, first)
                setattr(watch, name, second)
        except BaseException as error:
            errors.append(error)

    with Hammer(library.store_until, value) as hammer:
        pairs = [("mode", "rw", "w"), ("policy", "skip", "continue"), ("when", "new > 5", None)]
        workers = [threading.Thread(target=switch, args=pair) for pair in pairs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert errors == []
        assert (watch.mode, watch.policy, watch.when, watch.limit) == ("w", "continue", None, None)
        hammer.wait()
    tally = watch.coverage.tally
    assert (tally.counted, tally.lost) == (hammer.done, 0)
    assert tally.hits + tally.filtered == hammer.done
    value[0] = -1
    assert watch.timeline().iloc[-1][["new", "access", "action"]].tolist() == [-1, "write", "continued"]


def test_recorded_hits_stay(session: Any) -> None:
    """Through every change, the rows of before keep what they said."""
    value = np.zeros(1, np.int64)
    watch = session.watch(value)
    value[0] = 1
    changes = [("mode", "rw"), ("when", "True"), ("policy", "skip"), ("mode", "w"), ("policy", "continue")]
    changes += [("enabled", False), ("enabled", True), ("limit", 100), ("mode", "r"), ("when", None)]
    first = watch.timeline().drop(columns="time")
    for name, new in changes:
        setattr(watch, name, new)
        assert watch.timeline().drop(columns="time").iloc[:1].equals(first), name
        assert (watch.hits, watch.counted, watch.lost) == (1, 1, 0)


@pytest.mark.perf  # ptrace cannot reach children, and says so
def test_inherited_events_change_too(in_child: Callable[..., Any]) -> None:
    """A forked child's accesses follow the parent's switch."""

    def work():
        value = np.zeros(1, np.int64)
        watch = hwwatch.watch(value)
        to_child, to_parent = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            for step in range(3):
                os.read(to_child[0], 1)
                value[0] = step + 1
                library_read = value[0]
                os.write(to_parent[1], b"x")
            os._exit(int(library_read))
        for mode in ("w", "rw", "r"):
            watch.mode = mode
            os.write(to_child[1], b"x")
            os.read(to_parent[0], 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        rows = watch.timeline()
        return code, rows.access.tolist(), set(rows.pid) == {child}, watch.lost

    assert in_child(work) == [3, ["write", "write", "read", "read"], True, 0]


def test_to_reads_after_the_signal_for_safe_points_was_given_back(
    in_child: Callable[..., Any], build: Callable[..., str]
) -> None:
    """A watch for reads asks for a safe point at once; from a thread without Python that must not crash.

    PyErr_SetInterruptEx compares the signal's handler with SIG_DFL, which needs a thread state where that
    handler is a number (CPython Modules/signalmodule.c, compare_handler).
    """

    def work(path):
        from hwwatch.sessions import Session

        library = ctypes.CDLL(path)
        value, stop, done = np.zeros(16, np.int64), np.zeros(16, np.int64), np.zeros(16, np.int64)
        with Session("first") as session:
            session.watch(value[:1], on_hit=lambda hit: None)
        arguments = [ctypes.c_void_p(array.ctypes.data) for array in (value, stop, done)]
        worker = threading.Thread(target=library.store_until, args=arguments)
        worker.start()
        for _ in range(30):
            with Session("second") as session:
                watch = session.watch(value[:1])
                watch.mode = "r"
        stop[0] = 1
        worker.join()
        return sorted(set(watch.timeline().access) - {"write"}), watch.lost  # those of the moment in mode w

    assert in_child(work, build(SOURCE, "-Wl,-Bsymbolic")) == [[], 0]
