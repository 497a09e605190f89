"""A watch for reads and writes counts each once, though the handler reads the same bytes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwwatch

SOURCE = """
long load(const volatile long *from, long n) { long sum = 0; while (n--) sum += *from; return sum; }
void store(volatile long *to, long n) { while (n--) *to = n; }
void add(long *to, long n) { while (n--) __asm__ volatile("addq $1, (%0)" : : "r"(to) : "memory"); }
"""


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    made = load(SOURCE)
    made.load.restype = ctypes.c_long
    return made


def test_thousand_loads_are_thousand_reads(session: Any, library: ctypes.CDLL) -> None:
    value = np.full(1, 3)
    place = ctypes.c_void_p(value.ctypes.data)
    with session.watching(value, "rw") as watch:
        assert library.load(place, 1000) == 3000
    rows = watch.timeline()
    assert (watch.counted, watch.hits, watch.lost) == (1000, 1000, 0)
    assert set(rows.access) == {"read"}
    assert set(rows.old) == set(rows.new) == {3}
    assert not rows.changed.any()


def test_write_watch_does_not_see_reads(session: Any, library: ctypes.CDLL) -> None:
    value = np.full(1, 3)
    place = ctypes.c_void_p(value.ctypes.data)
    with session.watching(value, "w") as watch:
        library.load(place, 1000)
        library.store(place, 10)
    assert (watch.counted, watch.hits, watch.lost) == (10, 10, 0)


def test_kinds_of_access(session: Any, library: ctypes.CDLL) -> None:
    value = np.full(1, 3)
    place = ctypes.c_void_p(value.ctypes.data)
    with session.watching(value, "rw") as watch:
        library.load(place, 5)
        library.store(place, 4)
        library.add(place, 3)
    rows = watch.timeline()
    assert rows.access.tolist() == ["read"] * 5 + ["write"] * 4 + ["readwrite"] * 3
    assert rows.new.tolist() == [3] * 5 + [3, 2, 1, 0] + [1, 2, 3]
    assert (watch.counted, watch.hits, watch.lost) == (12, 12, 0)


def test_read_mode_leaves_writes_out(session: Any, library: ctypes.CDLL) -> None:
    value = np.full(1, 3)
    place = ctypes.c_void_p(value.ctypes.data)
    with session.watching(value, "r") as watch:
        library.load(place, 5)
        library.store(place, 4)
        library.add(place, 3)
    rows = watch.timeline()
    assert rows.access.tolist() == ["read"] * 5 + ["readwrite"] * 3
    assert (watch.counted, watch.hits, watch.lost) == (12, 8, 0)
    assert watch.coverage.tally.filtered == 4


def test_numpy_reads(session: Any) -> None:
    array = np.zeros(8)
    with session.watching(array[3:4], "rw") as watch:
        for _ in range(100):
            array[3]
        array.tolist()
    assert (watch.counted, watch.hits, watch.lost) == (101, 101, 0)
    assert set(watch.timeline().access) == {"read"}


def test_many_reads_end(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    """Were the handler's own reads to trap for ever, this would not end."""

    def work(path):
        from hwwatch import sessions

        library = ctypes.CDLL(path)
        for kind in (np.int8, np.int16, np.int32):
            value = np.zeros(8, kind)
            with hwwatch.watching(value[:4], "rw"):
                value.sum()
        value = np.zeros(8, np.int64)
        with hwwatch.watching(value[:4], "rw") as watch:
            library.load(ctypes.c_void_p(value.ctypes.data), ctypes.c_long(20_000))
            tally = watch.coverage.tally
            figures = sessions.default_session()._ledger.entries[-1].figures()
        return tally.counted, tally.hits, tally.lost, figures.counts, figures.accounted, figures.nested

    reads = [20_000, 0, 0, 0]
    assert in_child(work, build(SOURCE)) == [20_000, 20_000, 0, reads, reads, [0] * 4]
