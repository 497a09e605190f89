"""Exactly the watched bytes are seen, for each size of a piece, and never a neighbour."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

SOURCE = """
#include <stdint.h>
void store1(volatile uint8_t *p) { *p = 0x5a; }
void store2(volatile uint16_t *p) { *p = 0x5a5a; }
void store4(volatile uint32_t *p) { *p = 0x5a5a5a5a; }
void store8(volatile uint64_t *p) { *p = 0x5a5a5a5a5a5a5a5aull; }
int load1(const volatile uint8_t *p) { return *p; }
int load2(const volatile uint16_t *p) { return *p; }
int load4(const volatile uint32_t *p) { return *p; }
int load8(const volatile uint64_t *p) { return (int)*p; }
"""
KINDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@pytest.mark.parametrize("width", KINDS)
@pytest.mark.parametrize("mode", ["w", "rw"])
@pytest.mark.parametrize("nbytes", KINDS)
def test_accesses_that_touch_and_that_do_not(
    session: Any, load: Callable[..., ctypes.CDLL], nbytes: int, mode: str, width: int
) -> None:
    library = load(SOURCE)
    memory = np.zeros(64, np.uint8)
    base = memory.ctypes.data + 16
    base += -base % 8
    for skip in range(0, 8, nbytes):
        address = base + skip
        first = address - memory.ctypes.data
        place = memory[first : first + nbytes].view(KINDS[nbytes])
        memory[:] = 0
        expected = 0
        with session.watching(place, mode) as watch:
            for offset in range(-width, nbytes + 1):
                getattr(library, f"store{width}")(ctypes.c_void_p(address + offset))
                getattr(library, f"load{width}")(ctypes.c_void_p(address + offset))
                if -width < offset < nbytes:
                    expected += 1 if mode == "w" else 2
            figures = (watch.counted, watch.hits, watch.lost)
        assert watch.slots == 1
        assert figures == (expected, expected, 0), skip


@pytest.mark.parametrize("nbytes", KINDS)
def test_values_of_each_size(session: Any, nbytes: int) -> None:
    array = np.zeros(64, KINDS[nbytes])
    highest = np.iinfo(KINDS[nbytes]).max
    with session.watching(array[17:18]) as watch:
        for value in (1, highest, 0):
            array[16:19] = value
    rows = watch.timeline()
    changed = rows[rows.changed]
    assert changed.old.tolist() == [0, 1, highest]
    assert changed.new.tolist() == [1, highest, 0]
    assert rows.new.dtype == KINDS[nbytes]
    assert set(rows.nbytes) == {nbytes}
    assert set(rows.address) == {array[17:].ctypes.data}
