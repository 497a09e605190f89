"""Twelve bytes at an odd address are one watch, and only they."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

SOURCE = """
#include <string.h>
void store_byte(volatile char *to, char value) { *to = value; }
void store_two(char *to, short value)
{ __asm__ volatile("movw %1, (%0)" : : "r"(to), "r"(value) : "memory"); }
char load_byte(const volatile char *from) { return *from; }
"""
ODD = [1, 3, 5, 7]


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    return load(SOURCE)


def room(skip: int) -> tuple[np.ndarray[Any, Any], int]:
    """32 bytes, and the address `skip` behind an 8-byte boundary in the middle of them."""
    memory = np.zeros(40, np.uint8)
    start = memory.ctypes.data + 8
    return memory, start + (-start % 8) + skip


@pytest.mark.parametrize("skip", ODD)
def test_byte_stores_on_and_beside_it(session: Any, library: ctypes.CDLL, skip: int) -> None:
    memory, address = room(skip)
    first = address - memory.ctypes.data
    place = memory[first : first + 12]
    with session.watching(place) as watch:
        for offset in range(-1, 13):
            library.store_byte(ctypes.c_void_p(address + offset), offset + 50)
    rows = watch.timeline()
    assert (watch.address, watch.nbytes) == (address, 12)
    assert rows.element.tolist() == [(i,) for i in range(12)]
    assert rows.new.tolist() == [50 + i for i in range(12)]
    assert rows.old.tolist() == [0] * 12
    assert rows.address.tolist() == [address + i for i in range(12)]
    assert rows.nbytes.tolist() == [1] * 12
    assert (watch.hits, watch.lost) == (12, 0)
    assert watch.counted == watch.hits + watch.coverage.tally.filtered


@pytest.mark.parametrize("skip", ODD)
def test_each_store_alone(session: Any, library: ctypes.CDLL, skip: int) -> None:
    """At a raw address, where the twelve bytes are one value."""
    memory, address = room(skip)
    with session.watching(address, nbytes=12) as watch:
        for offset in range(-1, 13):
            library.store_byte(ctypes.c_void_p(address + offset), 7)
            assert (watch.hits, watch.lost) == (max(0, min(offset + 1, 12)), 0), offset
    rows = watch.timeline()
    expected = [b"\7" * n + b"\0" * (12 - n) for n in range(13)]
    assert [bytes(value) for value in rows.old] == expected[:-1]
    assert [bytes(value) for value in rows.new] == expected[1:]
    assert memory.sum() == 7 * 14


@pytest.mark.parametrize("skip", ODD)
def test_equal_byte_stores(session: Any, library: ctypes.CDLL, skip: int) -> None:
    memory, address = room(skip)
    first = address - memory.ctypes.data
    with session.watching(memory[first : first + 12]) as watch:
        for offset in range(-1, 13):
            library.store_byte(ctypes.c_void_p(address + offset), 0)
    rows = watch.timeline()
    assert rows.element.tolist() == [(i,) for i in range(12)]
    assert not rows.changed.any()
    assert (watch.hits, watch.lost) == (12, 0)


@pytest.mark.parametrize("skip", ODD)
def test_stores_across_its_ends(session: Any, library: ctypes.CDLL, skip: int) -> None:
    memory, address = room(skip)
    first = address - memory.ctypes.data
    with session.watching(memory[first : first + 12]) as watch:
        library.store_two(ctypes.c_void_p(address - 1), 0x0202)
        library.store_two(ctypes.c_void_p(address + 11), 0x0303)
        library.store_two(ctypes.c_void_p(address - 2), 0x0404)
        library.store_two(ctypes.c_void_p(address + 12), 0x0505)
    rows = watch.timeline()
    assert rows.element.tolist() == [(0,), (11,)]
    assert rows.new.tolist() == [2, 3]
    assert watch.lost == 0


@pytest.mark.parametrize("skip", ODD)
def test_reads_of_neighbours_are_not_reported(session: Any, library: ctypes.CDLL, skip: int) -> None:
    memory, address = room(skip)
    first = address - memory.ctypes.data
    with session.watching(memory[first : first + 12], "rw") as watch:
        for offset in range(-1, 13):
            library.load_byte(ctypes.c_void_p(address + offset))
    rows = watch.timeline()
    assert rows.element.tolist() == [(i,) for i in range(12)]
    assert set(rows.access) == {"read"}
    assert watch.lost == 0


@pytest.mark.parametrize("skip", ODD)
def test_memmove_of_twelve_bytes(session: Any, skip: int) -> None:
    memory, address = room(skip)
    first = address - memory.ctypes.data
    with session.watching(memory[first : first + 12]) as watch:
        ctypes.memmove(address, b"abcdefghijkl", 12)
    rows = watch.timeline()
    changed = rows[rows.changed]
    assert sorted(changed.element) == [(i,) for i in range(12)]
    assert bytes(changed.sort_values("address").new) == b"abcdefghijkl"
    assert set(rows.symbol.str.contains("memmove|memcpy")) == {True}
    assert watch.lost == 0
    assert watch.counted == watch.hits + watch.coverage.tally.filtered


def test_bytearray_by_an_expression(session: Any) -> None:
    from hwwatch import locate

    data = bytearray(64)
    watch = session.watch(locate("data[21:33]"))
    data[20:34] = b"Xabcdefghijkl" + b"X"
    rows = watch.timeline()
    changed = rows[rows.changed].sort_values("address")
    session.unwatch()
    assert bytes(changed.new.tolist()) == b"abcdefghijkl"
    assert changed.element.tolist() == [(i,) for i in range(21, 33)]
