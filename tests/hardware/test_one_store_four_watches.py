"""One vector store over four neighbouring watches is one trap, and a hit for each of the four."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

STORE = """
#include <immintrin.h>
__attribute__((target("avx"))) void store(double *to, const double *from)
{ _mm256_storeu_pd(to, _mm256_loadu_pd(from)); }
"""


def aligned(values: list[float]) -> np.ndarray[Any, Any]:
    """float64 array that begins on a cache line, so that its four elements lie in one vector."""
    room = np.zeros(len(values) + 8)
    skip = -room.ctypes.data % 64 // 8
    array = room[skip : skip + len(values)]
    array[:] = values
    return array


@pytest.fixture
def store(load: Callable[..., ctypes.CDLL]) -> Callable[[Any, list[float]], None]:
    library = load(STORE)

    def store(array: Any, values: list[float]) -> None:
        source = np.array(values, np.float64)
        library.store(ctypes.c_void_p(array.ctypes.data), ctypes.c_void_p(source.ctypes.data))

    return store


def watch_four(session: Any, array: Any) -> list[Any]:
    return [session.watch(array[i : i + 1], name=f"a[{i}]") for i in range(4)]


def test_four_hits_of_one_instruction(session: Any, store: Any) -> None:
    array = aligned([0, 0, 0, 0])
    watches = watch_four(session, array)
    store(array, [1, 2, 3, 4])
    rows = session.timeline()
    session.unwatch()
    assert sorted(rows.watch) == ["a[0]", "a[1]", "a[2]", "a[3]"]
    assert rows.sort_values("watch").new.tolist() == [1, 2, 3, 4]
    assert rows.changed.all()
    assert rows.pc.nunique() == 1
    assert rows.instruction.unique()[0].startswith("vmovup")
    assert "ymm" in rows.instruction.unique()[0]
    assert set(rows.confidence) == {"exact"}
    assert set(rows.access) == {"write"}
    assert rows.time.nunique() == 1  # one trap
    assert [(w.counted, w.hits, w.lost) for w in watches] == [(1, 1, 0)] * 4


def test_numpy_ufunc(session: Any) -> None:
    array, ones = aligned([0, 0, 0, 0]), aligned([1, 1, 1, 1])
    watches = watch_four(session, array)
    np.add(array, ones, out=array)
    rows = session.timeline()
    session.unwatch()
    assert sorted(rows.watch) == ["a[0]", "a[1]", "a[2]", "a[3]"]
    assert rows.new.tolist() == [1] * 4
    assert [(w.counted, w.hits, w.lost) for w in watches] == [(1, 1, 0)] * 4


@pytest.mark.parametrize("kept", [[0], [3], [0, 1], [1, 2, 3], [0, 1, 2, 3]])
def test_equal_values_are_hits_too(session: Any, store: Any, kept: list[int]) -> None:
    """The CPU counts a store of the value that is there already; so does each watch."""
    array = aligned([10, 11, 12, 13])
    watches = watch_four(session, array)
    values = [10 + i if i in kept else 20 + i for i in range(4)]
    store(array, values)
    rows = session.timeline().sort_values("watch")
    tallies = [(w.counted, w.hits, w.lost) for w in watches]
    session.unwatch()
    assert [counted for counted, _, _ in tallies] == [1] * 4
    assert [counted - hits - lost for counted, hits, lost in tallies] == [0] * 4
    assert tallies == [(1, 1, 0)] * 4
    assert rows.watch.tolist() == ["a[0]", "a[1]", "a[2]", "a[3]"]
    assert rows.old.tolist() == [10, 11, 12, 13]
    assert rows.new.tolist() == values
    assert rows.changed.tolist() == [i not in kept for i in range(4)]


def test_equal_values_among_others_in_a_loop(session: Any, store: Any) -> None:
    """Which of the four change differs from store to store; none is missed and none invented."""
    array = aligned([0, 0, 0, 0])
    watches = watch_four(session, array)
    expected: list[list[tuple[float, float]]] = [[], [], [], []]
    values = [0.0] * 4
    for step in range(1, 200):
        before = values
        values = [float(step) if step * (i + 3) % 7 < 3 else before[i] for i in range(4)]
        store(array, values)
        for i in range(4):
            expected[i].append((before[i], values[i]))
    rows = session.timeline()
    tallies = [(w.counted, w.hits, w.lost) for w in watches]
    session.unwatch()
    assert tallies == [(199, 199, 0)] * 4
    for i in range(4):
        mine = rows[rows.watch == f"a[{i}]"]
        assert list(zip(mine.old, mine.new, strict=True)) == expected[i]


def test_one_watch_of_four_elements(session: Any, store: Any) -> None:
    """The same store under one watch: a row for each element, changed or not."""
    array = aligned([10, 11, 12, 13])
    with session.watching(array) as watch:
        store(array, [10, 21, 12, 23])
        array[2] = 5
    rows = watch.timeline()
    assert rows.element.tolist() == [(0,), (1,), (2,), (3,), (2,)]
    assert rows.old.tolist() == [10, 11, 12, 13, 12]
    assert rows.new.tolist() == [10, 21, 12, 23, 5]
    assert rows.changed.tolist() == [False, True, False, True, True]
    assert watch.slots == 4
    assert (watch.counted, watch.hits, watch.lost) == (5, 5, 0)


LOAD = """
void load(double *p) { __asm__ volatile("vmovupd (%0), %%ymm0" ::"r"(p) : "xmm0", "memory"); }
"""


def test_one_load_several_watches(session: Any, store: Any, load: Callable[..., ctypes.CDLL]) -> None:
    """A load changes nothing, so the watches that no signal named are found by decoding: as reads."""
    array = aligned([10, 11, 12, 13])
    modes = ("rw", "w", "r", "rw")
    watches = [session.watch(array[i : i + 1], mode, name=f"a[{i}]") for i, mode in enumerate(modes)]
    load(LOAD).load(ctypes.c_void_p(array.ctypes.data))
    store(array, [10, 11, 12, 13])
    load(LOAD).load(ctypes.c_void_p(array.ctypes.data))
    rows = session.timeline()
    tallies = [(w.counted, w.hits, w.coverage.tally.filtered, w.lost) for w in watches]
    session.unwatch()
    found = {w.name: rows[rows.watch == w.name].access.tolist() for w in watches}
    assert found == {
        "a[0]": ["read", "write", "read"],
        "a[1]": ["write"],
        "a[2]": ["read", "read"],
        "a[3]": ["read", "write", "read"],
    }
    assert not rows.changed.any()
    assert tallies == [(3, 3, 0, 0), (1, 1, 0, 0), (3, 2, 1, 0), (3, 3, 0, 0)]


def test_several_watches_on_the_same_bytes(
    session: Any, store: Any, load: Callable[..., ctypes.CDLL]
) -> None:
    """One signal for all of them, and nothing changes: each has its hit, and its condition is asked."""
    array = aligned([10, 11, 12, 13])
    both = session.watch(array[1:2], "rw", name="both")
    odd = session.watch(array[1:2], "rw", name="odd", when="hits % 2 == 1")
    write = session.watch(array[1:2], "w", name="write")
    low = session.watch(array[1:2].view(np.uint8)[:1], "rw", name="low")
    for _ in range(3):
        load(LOAD).load(ctypes.c_void_p(array.ctypes.data))
        store(array, [10, 11, 12, 13])
    rows = session.timeline()
    tallies = {w.name: (w.hits, w.coverage.tally.filtered, w.lost) for w in (both, odd, write, low)}
    session.unwatch()
    found = {name: rows[rows.watch == name].access.tolist() for name in tallies}
    assert found["both"] == ["read", "write"] * 3
    assert found["odd"] == ["read"] * 3
    assert found["write"] == ["write"] * 3
    assert found["low"] == ["read", "write"] * 3
    assert tallies == {"both": (6, 0, 0), "odd": (3, 3, 0), "write": (3, 0, 0), "low": (6, 0, 0)}


def test_a_condition_is_asked_for_hits_that_no_signal_named(session: Any, store: Any) -> None:
    """The signal names the one armed last, and the others keep their values: they are asked later."""
    array = aligned([1, -1, 1, -1])
    conditions = ("new < 0", "new < 0", "changed", None)
    watches = [
        session.watch(array[i : i + 1], name=f"a[{i}]", when=when) for i, when in enumerate(conditions)
    ]
    store(array, [1, -1, 1, -1])
    watches[0].when = "new > 0"
    store(array, [1, -1, 1, -1])
    rows = session.timeline()
    tallies = [(w.counted, w.hits, w.coverage.tally.filtered, w.lost) for w in watches]
    session.unwatch()
    stores = [sorted(zip(row.watch, row.new, strict=True)) for _, row in rows.groupby("time")]
    assert stores == [[("a[1]", -1), ("a[3]", -1)], [("a[0]", 1), ("a[1]", -1), ("a[3]", -1)]]
    assert tallies == [(2, 1, 1, 0), (2, 2, 0, 0), (2, 0, 2, 0), (2, 2, 0, 0)]


@pytest.mark.parametrize("mode", ["w", "rw"])
def test_stores_in_a_pause_are_not_taken_for_missing_ones(session: Any, store: Any, mode: str) -> None:
    """Equal values, which no signal named and no change gave away: found by decoding, all but the pause's."""
    array = aligned([5, 5, 5, 5])
    first, *_, last = watch_four(session, array)
    for turn in range(12):
        if turn == 4:
            first.enabled = False
            first.mode = mode
        if turn == 8:
            first.enabled = True
        store(array, [5, 5, 5, 5])
    assert (last.counted, last.hits, last.lost) == (12, 12, 0)
    assert (first.counted, first.hits, first.lost) == (8, 8, 0)
    assert len(first.timeline()) == 8
