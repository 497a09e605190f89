"""`limit`: exactly so many records, and then nothing is armed any more, in no thread and no child."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwwatch

SOURCE = r"""
void store(volatile long *p, long n) { for (long i = 1; i <= n; i++) *p = i; }
void store_until(volatile long *p, const volatile long *stop) { long i = 0; while (!*stop) *p = ++i; }
long load(const volatile long *p, long n) { long sum = 0; while (n--) sum += *p; return sum; }
__attribute__((noinline)) long function(long a) { __asm__ volatile(""); return a + 1; }
long many(long n) { long sum = 0; while (n--) sum += function(n); return sum; }
"""


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    made = load(SOURCE, "-Wl,-Bsymbolic")
    made.many.restype = ctypes.c_long
    return made


def _at(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_exactly_so_many_rows(session: Any, library: ctypes.CDLL, limit: int) -> None:
    value = np.zeros(1, np.int64)
    watch = session.watch(value, limit=limit)
    assert session.coverage().slots_free == 3
    library.store(_at(value), ctypes.c_long(limit - 1))
    assert watch.armed
    library.store(_at(value), ctypes.c_long(50))
    # The handler has freed the slot itself, before anybody asked.
    assert session.coverage().slots_free == 4
    assert not watch.armed
    assert (watch.counted, watch.hits, watch.lost) == (limit, limit, 0)
    assert watch.timeline().new.tolist() == [*range(1, limit), 1]
    assert "disarmed" in repr(watch)
    assert session.watches() == [watch]


def test_slot_serves_another_watch_at_once(session: Any) -> None:
    array = np.zeros(16)
    watches = [session.watch(array[i : i + 1], limit=1) for i in range(4)]
    for round_ in range(3):
        array[:4] = round_ + 1
        more = [session.watch(array[i : i + 1], limit=1) for i in range(4, 8)]
        array[4:8] = round_ + 1
        assert not any(watch.armed for watch in more)
    assert [watch.hits for watch in watches] == [1] * 4
    assert session.coverage().slots_free == 4


def test_of_an_execute_watch(session: Any, library: ctypes.CDLL) -> None:
    with session.watching(library.function, "x", limit=10) as watch:
        assert library.many(ctypes.c_long(1000)) == sum(range(1, 1001))
        assert not watch.armed
    assert (watch.counted, watch.hits, watch.lost) == (10, 10, 0)


def test_policy_ends_with_the_limit(session: Any, library: ctypes.CDLL) -> None:
    """What the last hit asked for is still done; the next call finds the function as it was."""
    with session.watching(library.function, "x", limit=10, policy=hwwatch.Return(0)) as watch:
        assert library.many(ctypes.c_long(30)) == sum(range(1, 21))
    assert watch.timeline().action.tolist() == ["returned"] * 10
    value = np.zeros(1, np.int64)
    with session.watching(value, limit=3, policy="skip"):
        seen = []
        for new in range(1, 7):
            value[0] = new
            seen.append(int(value[0]))
    assert seen == [0, 0, 0, 4, 5, 6]


@pytest.mark.parametrize("mode", ["w", "rw", "x"])
def test_four_threads_hammering(session: Any, library: ctypes.CDLL, mode: str) -> None:
    """Hits that were on their way when another thread's was the last are left out, and counted as such."""
    value = np.zeros(1, np.int64)
    target, act = (library.function, library.many) if mode == "x" else (value, library.store)
    arguments = (ctypes.c_long(20_000),) if mode == "x" else (_at(value), ctypes.c_long(20_000))
    for limit in (1, 50, 3000):
        watch = session.watch(target, mode, limit=limit)
        workers = [threading.Thread(target=act, args=arguments) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert session.coverage().slots_free == 4
        assert not watch.armed
        tally = watch.coverage.tally
        assert (tally.hits, tally.lost) == (limit, 0)
        assert tally.counted == limit + tally.filtered
        assert tally.filtered <= 4 * 4  # on their way in other threads
        assert len(watch.timeline()) == limit


def test_of_a_read_watch_counts_rows(session: Any, library: ctypes.CDLL) -> None:
    """The limit is one of recorded hits: writes that the mode leaves out do not use it up."""
    value = np.zeros(1, np.int64)
    watch = session.watch(value, "r", limit=5)
    library.store(_at(value), ctypes.c_long(3))
    assert watch.hits == 0
    library.store(_at(value), ctypes.c_long(100))
    library.load(_at(value), ctypes.c_long(100))
    assert not watch.armed
    assert watch.hits == 5
    assert set(watch.timeline().access) == {"read"}


def test_with_a_condition(session: Any, library: ctypes.CDLL) -> None:
    """What the condition leaves out does not use it up."""
    value = np.zeros(1, np.int64)
    watch = session.watch(value, when="new % 10 == 0", limit=4)
    library.store(_at(value), ctypes.c_long(100))
    assert not watch.armed
    assert watch.timeline().new.tolist() == [10, 20, 30, 40]
    tally = watch.coverage.tally
    assert (tally.counted, tally.hits, tally.filtered, tally.lost) == (40, 4, 36, 0)


def test_set_while_armed(session: Any, library: ctypes.CDLL) -> None:
    """The hits so far count."""
    value = np.zeros(1, np.int64)
    watch = session.watch(value)
    library.store(_at(value), ctypes.c_long(10))
    watch.limit = 15
    library.store(_at(value), ctypes.c_long(100))
    assert (watch.armed, watch.hits, watch.lost) == (False, 15, 0)
    watch = session.watch(value, limit=5)
    library.store(_at(value), ctypes.c_long(4))
    watch.limit = None
    library.store(_at(value), ctypes.c_long(100))
    assert (watch.armed, watch.hits, watch.lost) == (True, 104, 0)


def test_set_below_what_was_recorded(session: Any, library: ctypes.CDLL) -> None:
    """Reached already: disarmed at once, or with the next hit, which leaves no row."""
    value = np.zeros(1, np.int64)
    watch = session.watch(value)
    library.store(_at(value), ctypes.c_long(10))
    watch.limit = 5
    library.store(_at(value), ctypes.c_long(100))
    assert (watch.armed, watch.hits, watch.lost) == (False, 10, 0)
    assert session.coverage().slots_free == 4


def test_armed_again_it_counts_anew(session: Any, library: ctypes.CDLL) -> None:
    value = np.zeros(1, np.int64)
    watch = session.watch(value, limit=5)
    library.store(_at(value), ctypes.c_long(20))
    assert not watch.armed
    watch.enabled = True
    assert watch.armed
    library.store(_at(value), ctypes.c_long(20))
    assert (watch.armed, watch.hits, watch.lost) == (False, 10, 0)
    assert watch.timeline().new.tolist() == [1, 2, 3, 4, 5] * 2


def test_reached_by_a_forked_child(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    """Parent and child share the limit; the parent's slot is free again, too."""

    def work(path):
        library = ctypes.CDLL(path)
        value = np.zeros(1, np.int64)
        watch = hwwatch.watch(value, limit=10)
        place = ctypes.c_void_p(value.ctypes.data)
        library.store(place, ctypes.c_long(4))
        child = os.fork()
        if not child:
            library.store(place, ctypes.c_long(100))
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        library.store(place, ctypes.c_long(100))
        armed, free = watch.armed, hwwatch.coverage().slots_free
        rows = watch.timeline()
        return {
            "code": code,
            "armed": armed,
            "free": free,
            "rows": [
                ["child" if pid == child else "parent", new]
                for pid, new in zip(rows.pid, rows.new, strict=False)
            ],
            "lost": watch.lost,
        }

    assert in_child(work, build(SOURCE, "-Wl,-Bsymbolic")) == {
        "code": 0,
        "armed": False,
        "free": 4,
        "rows": [["parent", n] for n in (1, 2, 3, 4)] + [["child", n] for n in (1, 2, 3, 4, 5, 6)],
        "lost": 0,
    }


def test_execute_watch_reached_by_a_forked_child(
    in_child: Callable[..., Any], build: Callable[..., str]
) -> None:
    def work(path):
        library = ctypes.CDLL(path)
        library.many.restype = ctypes.c_long
        watch = hwwatch.watch(library.function, "x", limit=10)
        library.many(ctypes.c_long(4))
        child = os.fork()
        if not child:
            total = library.many(ctypes.c_long(100))
            os._exit(0 if total == sum(range(1, 101)) else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        total = library.many(ctypes.c_long(100))
        return code, total, watch.armed, watch.hits, watch.lost, hwwatch.coverage().slots_free

    path = build(SOURCE, "-Wl,-Bsymbolic")
    assert in_child(work, path) == [0, sum(range(1, 101)), False, 10, 0, 4]


@pytest.mark.parametrize("limit", [0, -1, 1.5, "3", True])
def test_no_number_of_hits(session: Any, limit: Any) -> None:
    value = np.zeros(1, np.int64)
    with pytest.raises(hwwatch.TargetError, match=r"a number of hits from 1 on is needed\. \[limit\]"):
        session.watch(value, limit=limit)
    assert session.watches() == []
    watch = session.watch(value, limit=3)
    with pytest.raises(hwwatch.TargetError, match=r"\[limit\]"):
        watch.limit = limit
    assert (watch.limit, watch.armed) == (3, True)


def test_reached_in_a_forked_child(in_child: Callable[..., Any]) -> None:
    """The child cannot reach its parent's events: the parent ends them at its next hit, unasked."""

    def work():
        number = np.zeros(1)
        watch = hwwatch.watch(number, limit=5)
        child = os.fork()
        if not child:
            for value in range(8):
                number[0] = value
            os._exit(0)
        os.waitpid(child, 0)
        for value in range(200):
            number[0] = value
        return watch.hits, watch.counted, watch.lost, watch.armed

    hits, counted, lost, armed = in_child(work)
    assert (hits, lost, armed) == (5, 0, False)
    assert counted <= 5 + 3 + 1


def test_reached_and_not_asked_about_while_others_arm(in_child: Callable[..., Any]) -> None:
    """Its figures and registers are its own until they have been read and given back."""

    def work():
        from hwwatch.backends.select import select

        array, other = np.zeros(8), np.zeros(8)
        mine, theirs = hwwatch.Session(), hwwatch.Session()
        made = []

        def reach():  # not the main thread: nobody is told of the limit
            made.append(mine.watch(array[3:4], limit=2))
            array[3] = 1
            array[3] = 2

        thread = threading.Thread(target=reach)
        thread.start()
        thread.join()
        for i in range(70):  # the watch table has 64 entries
            with theirs.watching(other[3:4]):
                other[3] = i
        watch = made[0]
        tally = watch.hits, watch.counted, len(mine.timeline()), watch.armed
        return *tally, select(watch.backend.split()[0]).backend.slots_free()

    assert in_child(work) == [2, 2, 2, False, 4]
