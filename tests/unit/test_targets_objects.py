"""Raw addresses, and a helpful refusal for what has no memory to watch."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import pytest

from hwwatch.errors import HwwatchError, TargetError
from hwwatch.targets import Target, target_of


@pytest.mark.parametrize(
    ("nbytes", "dtype"), [(1, "u1"), (2, "u2"), (4, "u4"), (8, "u8"), (3, "V3"), (32, "V32")]
)
def test_raw_address(nbytes: int, dtype: str) -> None:
    data = np.arange(64, dtype=np.uint8)
    at = int(data.ctypes.data)
    for address in (at, np.uint64(at)):
        target = target_of(address, nbytes=nbytes)
        assert target.ranges == ((at, nbytes),)
        assert target.dtype == dtype
        assert target.name == f"{at:#x}"
        assert target.owner is None
        assert len(target.leaves) == 1
    data[nbytes - 1] = 0xAB
    raw = ctypes.string_at(target.address, nbytes)
    assert np.frombuffer(raw, target.dtype)[0].tobytes()[-1] == 0xAB


def test_addresses_that_are_no_memory() -> None:
    page = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    libc = ctypes.CDLL(None)
    middle = ctypes.c_void_p(start + mmap.PAGESIZE)
    assert libc.mprotect(middle, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    cases = {
        0: "NULL",
        -8: "no address",
        1: "no memory is mapped",
        1 << 63: "no address",
        0xFFFF_FFFF_FF60_0000: "no address",
        0x7FFF_FFFF_FFFF_FFF8: "no memory",
        start + mmap.PAGESIZE - 4: "not readable",
        start + 2 * mmap.PAGESIZE - 1: "not readable",
    }
    try:
        for address, message in cases.items():
            with pytest.raises(TargetError, match=message):
                target_of(address, nbytes=8)
        assert target_of(start + mmap.PAGESIZE - 8, nbytes=8).nbytes == 8
    finally:
        libc.mprotect(middle, ctypes.c_size_t(mmap.PAGESIZE), 3)
        page.close()


def test_a_value_may_span_two_mappings() -> None:
    page = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    libc = ctypes.CDLL(None)
    assert (
        libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(mmap.PAGESIZE), 1) == 0
    )  # read-only: another line
    assert target_of(start + mmap.PAGESIZE - 4, nbytes=8).nbytes == 8
    page.close()


@pytest.mark.parametrize(
    ("nbytes", "message"),
    [(0, "nbytes is 0"), (-1, "nbytes is -1"), (33, "33 bytes asked"), (1 << 40, "too-large")],
)
def test_bad_sizes(nbytes: int, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        target_of(np.zeros(1).ctypes.data, nbytes=nbytes)


def test_sizes_of_numpy() -> None:
    address = np.zeros(4).ctypes.data
    for kind in (np.int8, np.int32, np.uint64):
        assert target_of(address, nbytes=kind(8)) == target_of(address, nbytes=8)
        assert target_of(np.uint64(address), nbytes=kind(32)).nbytes == 32


def test_target_passes_through() -> None:
    target = target_of(np.zeros(1))
    assert target_of(target) is target
    assert target_of(target, name="other").name == "other"


def test_names() -> None:
    array = np.zeros(2)
    assert target_of(array[1:]).name == f"float64@{array.ctypes.data + 8:#x}"
    assert target_of(array, name="header").name == "header"
    with pytest.raises(TargetError, match="`header`"):
        target_of(5, name="header")


class Slotted:
    __slots__ = ()


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (5, r"int, an immutable object.*nbytes="),
        (True, "bool, an immutable object"),
        (2.5, "float, an immutable object"),
        (None, "immutable object"),
        (1j, "complex, an immutable"),
        (b"abc", r"bytes, an immutable.*bytearray"),
        ("a[3]", r'hwwatch.locate\("a\[3\]"\)'),
        ([1, 2], r"list holds pointers.*NumPy"),
        ((1,), "tuple holds pointers"),
        ({"a": 1}, "dict holds pointers"),
        ({1}, "set holds pointers"),
        (Slotted(), "a Slotted does not lend"),
        (int, "does not lend"),
        (lambda: 0, "Python function"),
        (np, "a module does not lend"),
    ],
)
def test_refused(thing: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        target_of(thing)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, HwwatchError)
    assert "\n" not in str(caught.value)


def test_nbytes_must_agree_with_what_has_a_size() -> None:
    assert isinstance(target_of(np.zeros(1), nbytes=8), Target)
    with pytest.raises(TargetError, match="8 bytes of its own"):
        target_of(np.zeros(1), nbytes=4)
