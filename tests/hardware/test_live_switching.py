"""Mode, policy, when, limit and enabled of an armed watch, changed while other threads keep hitting it."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import hwwatch

SOURCE = r"""
void store(volatile long *p, long n) { for (long i = 1; i <= n; i++) *p = i; }
long store_until(volatile long *p, const volatile long *stop) { long i = 0; while (!*stop) *p = ++i; return i; }
long load_until(const volatile long *p, const volatile long *stop)
{
    long n = 0;
    while (!*stop) { (void)*p; n++; }
    return n;
}
/* A read and a write in turn. */
long both_until(volatile long *p, const volatile long *stop)
{
    long i = 0;
    while (!*stop) { *p = ++i; (void)*p; }
    return i;
}
__attribute__((noinline)) long function(long a) { __asm__ volatile(""); return a + 1; }
/* How often the function gave another answer than its own. */
long odd_until(const volatile long *stop, long *n)
{
    long odd = 0;
    for (*n = 0; !*stop; ++*n)
        odd += function(5) != 6;
    return odd;
}
"""


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    made = load(SOURCE, "-Wl,-Bsymbolic")
    for name in ("store_until", "load_until", "both_until", "odd_until"):
        getattr(made, name).restype = ctypes.c_long
    return made


def _at(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@contextmanager
def _running(function: Any, *arrays: Any) -> Iterator[list[int]]:
    """The function in a thread of its own, until the end of the block; its result is in the list then."""
    stop = np.zeros(1, np.int64)
    result: list[int] = []
    worker = threading.Thread(
        target=lambda: result.append(function(*(_at(array) for array in (*arrays, stop)))), name="hammer"
    )
    worker.start()
    try:
        yield result
    finally:
        stop[0] = 1
        worker.join(20)
        assert not worker.is_alive()


def _wait(watch: Any, more: int = 20) -> None:
    """Until so many further hits came in."""
    goal, end = watch.counted + more, time.monotonic() + 10
    while watch.counted < goal:
        assert time.monotonic() < end, "no hits come in"
        time.sleep(0.001)


def _consecutive(rows: Any) -> bool:
    return bool(np.array_equal(rows.new.to_numpy()[1:] - rows.new.to_numpy()[:-1], np.ones(len(rows) - 1)))


def test_no_row_of_the_wrong_kind_after_the_switch(session: Any, library: ctypes.CDLL) -> None:
    """`r`, `w`, `rw` in turn under a loop that reads and writes; `x` is refused, and nothing changes."""
    value = np.zeros(1, np.int64)
    kinds = {"w": {"write"}, "rw": {"read", "write"}, "r": {"read"}}
    watch = session.watch(value, "r")
    since: list[tuple[int, str]] = []
    with _running(library.both_until, value):
        _wait(watch)
        for mode in ["w", "rw", "r", "rw", "w", "r"] * 4:
            watch.mode = mode
            since.append((time.monotonic_ns(), mode))
            with pytest.raises(hwwatch.TargetError, match="mode 'x' does not fit it"):
                watch.mode = "x"
            assert watch.mode == mode
            _wait(watch)
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
    """A thread stores 1, 2, 3 …: the kernel counted every one, and each is a row or was left out by mode r."""
    value = np.zeros(1, np.int64)
    watch = session.watch(value, name)
    switches = 0
    with _running(library.store_until, value) as stored:
        _wait(watch)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            watch.mode = modes[switches % len(modes)]
            switches += 1
    tally = watch.coverage.tally
    assert switches > 50
    assert tally.lost == 0
    assert tally.counted == stored[0]
    assert tally.hits + tally.filtered == stored[0]
    rows = watch.timeline()
    assert set(rows.access) == {"write"}
    if "r" not in modes:
        assert rows.new.tolist() == list(range(1, stored[0] + 1))
    # The value before is that of the store before, whatever became of that one's row.
    assert (rows.new - rows.old == 1).all()


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
    assert switches > 5
    assert (watch.counted, watch.hits, watch.lost) == (15_000, 15_000, 0)


def test_policy(session: Any, library: ctypes.CDLL) -> None:
    """Each call meets the old policy or the new one, none of them neither."""
    count = np.zeros(1, np.int64)
    stop = np.zeros(1, np.int64)
    result: list[int] = []
    worker = threading.Thread(target=lambda: result.append(library.odd_until(_at(stop), _at(count))))
    with session.watching(library.function, "x", policy=hwwatch.Return(0)) as watch:
        worker.start()
        _wait(watch)
        for _ in range(200):
            watch.policy = "continue"
            watch.policy = hwwatch.Return(1)
        stop[0] = 1
        worker.join(20)
        assert not worker.is_alive()
    rows = watch.timeline()
    actions = rows.action.value_counts()
    assert (watch.counted, watch.hits, watch.lost) == (count[0], count[0], 0)
    assert actions["returned"] == result[0]
    assert actions["continued"] == count[0] - result[0]
    assert actions["continued"] > 0
    assert actions["returned"] > 0


def test_policy_of_a_store_is_in_force_at_once(session: Any, library: ctypes.CDLL) -> None:
    value = np.zeros(1, np.int64)
    watch = session.watch(value)
    with _running(library.store_until, value):
        _wait(watch)
        watch.policy = "skip"
        held = int(value[0])  # perhaps in the middle of a store that is being undone
        _wait(watch)
        settled = {int(watch.timeline().old.iloc[-1]) for _ in range(20)}
        watch.policy = "continue"
        _wait(watch)
        assert int(value[0]) > held
    assert len(settled) == 1
    actions = watch.timeline().action
    # continued, then skipped, then continued: two changes and no more
    assert (actions.astype(str) != actions.astype(str).shift()).sum() == 3
    assert (watch.counted, watch.lost) == (watch.hits, 0)


def test_when(session: Any, library: ctypes.CDLL) -> None:
    value = np.zeros(1, np.int64)
    watch = session.watch(value, when="False")
    with _running(library.store_until, value) as stored:
        _wait(watch)
        for _ in range(100):
            watch.when = "new % 2 == 0"
            watch.when = "new % 2 == 1"
            watch.when = None
            watch.when = "new % 10 == 0"
        watch.when = "new < 0"
        before = watch.hits
        _wait(watch)
        assert watch.hits == before
    tally = watch.coverage.tally
    assert (tally.counted, tally.lost) == (stored[0], 0)
    assert tally.hits + tally.filtered == stored[0]
    rows = watch.timeline()
    assert 0 < len(rows) == tally.hits
    assert (rows.new - rows.old == 1).all()


def test_limit(session: Any, library: ctypes.CDLL) -> None:
    value = np.zeros(1, np.int64)
    watch = session.watch(value)
    with _running(library.store_until, value):
        _wait(watch)
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
    with _running(library.store_until, value):
        for _ in range(20):
            _wait(watch, 10)
            watch.enabled = False
            before = watch.counted
            rows = len(watch.timeline())
            time.sleep(0.01)
            assert (watch.counted, len(watch.timeline())) == (before, rows)
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
    assert len(rows) == len(expected) + (name == "policy") - (name == "policy") + (name == "mode")
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

    with _running(library.store_until, value) as stored:
        _wait(watch)
        pairs = [("mode", "rw", "w"), ("policy", "skip", "continue"), ("when", "new > 5", None)]
        workers = [threading.Thread(target=switch, args=pair) for pair in pairs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert errors == []
        assert (watch.mode, watch.policy, watch.when, watch.limit) == ("w", "continue", None, None)
        _wait(watch)
    tally = watch.coverage.tally
    assert (tally.counted, tally.lost) == (stored[0], 0)
    assert tally.hits + tally.filtered == stored[0]
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


def test_inherited_events_change_too(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    """A forked child's accesses follow the parent's switch."""

    def work(path):
        library = ctypes.CDLL(path)
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

    path = build(SOURCE, "-Wl,-Bsymbolic")
    assert in_child(work, path) == [3, ["write", "write", "read", "read"], True, 0]
