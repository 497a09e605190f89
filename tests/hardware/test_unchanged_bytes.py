"""A hit is a store, not a change: equal values and failed exchanges count."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

SOURCE = """
void store(long *p, long v) { __asm__ volatile("movq %1, (%0)" : : "r"(p), "r"(v) : "memory"); }
void exchange(long *p, long v) { __asm__ volatile("xchgq %0, (%1)" : "+r"(v) : "r"(p) : "memory"); }
void stream(long *p, long v) { __asm__ volatile("movnti %1, (%0)" : : "r"(p), "r"(v) : "memory"); }
void or_zero(long *p, long v) { (void)v; __asm__ volatile("orq $0, (%0)" : : "r"(p) : "memory"); }
void failing_cmpxchg(long *p, long v)
{
    long expected = *p + 1;
    __asm__ volatile("lock cmpxchgq %2, (%1)" : "+a"(expected) : "r"(p), "r"(v) : "memory");
}
"""


@pytest.mark.parametrize(
    ("name", "instruction", "access"),
    [
        ("store", "mov [rdi], rsi", "write"),
        ("exchange", "xchg", "readwrite"),
        ("stream", "movnti [rdi], rsi", "write"),
        ("or_zero", "or qword ptr [rdi], 0", "readwrite"),
        ("failing_cmpxchg", "lock cmpxchg", "readwrite"),
    ],
)
def test_equal_store_is_a_hit(
    session: Any, load: Callable[..., ctypes.CDLL], name: str, instruction: str, access: str
) -> None:
    function = getattr(load(SOURCE), name)
    value = np.array([7])
    with session.watching(value) as watch:
        for _ in range(3):
            function(ctypes.c_void_p(value.ctypes.data), ctypes.c_long(7))
    rows = watch.timeline()
    assert (watch.counted, watch.hits, watch.lost) == (3, 3, 0)
    assert rows.old.tolist() == rows.new.tolist() == [7] * 3
    assert not rows.changed.any()
    assert set(rows.access) == {access}
    assert rows.instruction.str.startswith(instruction).all(), set(rows.instruction)
    assert rows.symbol.str.startswith(name).all()


def test_python_assignment_of_the_same_value(session: Any) -> None:
    array = np.ones(8)
    with session.watching(array[3:4]) as watch:
        for value in (1, 1, 2, 2):
            array[3] = value
    assert watch.timeline().changed.tolist() == [False, False, True, False]
