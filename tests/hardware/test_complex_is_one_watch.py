"""A value that takes two debug registers is one watch; each row shows it whole."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

STORE = """
#include <emmintrin.h>
void store(double *to, const double *from) { _mm_storeu_pd(to, _mm_loadu_pd(from)); }
"""


def test_one_store_of_both_halves_is_one_row(session: Any, load: Callable[..., ctypes.CDLL]) -> None:
    library = load(STORE)
    array = np.zeros(4, np.complex128)
    values = np.array([3 - 4j, 3 + 5j, 3 + 5j])
    with session.watching(array[1:2]) as watch:
        for i in range(3):
            library.store(ctypes.c_void_p(array[1:].ctypes.data), ctypes.c_void_p(values[i:].ctypes.data))
    rows = watch.timeline()
    assert watch.slots == 2
    assert rows.new.dtype == np.complex128
    assert rows.old.tolist() == [0, 3 - 4j, 3 + 5j]
    assert rows.new.tolist() == [3 - 4j, 3 + 5j, 3 + 5j]
    assert rows.nbytes.tolist() == [16] * 3
    assert rows.instruction.str.contains("xmm").all()
    assert (watch.counted, watch.hits, watch.lost) == (3, 3, 0)


def test_assignment(session: Any) -> None:
    """NumPy may store the halves one after the other: then a row for each store, and no more."""
    array = np.zeros(4, np.complex128)
    values = [3 - 4j, 3 + 5j, 7j]
    with session.watching(array[1:2]) as watch:
        for value in values:
            array[1] = value
            array[0] = array[2] = 9
    rows = watch.timeline()
    assert len(rows) in (3, 6)
    assert rows.new.tolist()[len(rows) // 3 - 1 :: len(rows) // 3] == values
    assert rows.old.tolist() == [0, *rows.new.tolist()[:-1]]
    assert rows.line.nunique() == 1
    assert watch.counted == watch.hits == len(rows)
    assert watch.lost == 0


def test_one_half_of_it(session: Any) -> None:
    array = np.zeros(4, np.complex128)
    with session.watching(array[1:2]) as watch:
        array.imag[1] = 2
        array.real[1] = 1
    rows = watch.timeline()
    assert rows.old.tolist() == [0, 2j]
    assert rows.new.tolist() == [2j, 1 + 2j]
    assert (watch.counted, watch.hits, watch.lost) == (2, 2, 0)
