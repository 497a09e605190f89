"""Where an object's memory is: found without a trace, and followed when it moves."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import weakref
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import cffi
import numpy as np
import pandas as pd
import pytest

from hwwatch import words
from hwwatch.errors import TargetError
from hwwatch.targets import locate, target_of
from hwwatch.targets.homes import Home, root_of, span_of

ffi = cffi.FFI()
ffi.cdef("struct pair { int a; double b[2]; };")


class Pair(ctypes.Structure):
    _fields_ = (("a", ctypes.c_int), ("b", ctypes.c_double * 2))


def moved(buffer: Any, grow: Any) -> int:
    """Make it grow until its memory lies elsewhere; how far that is."""
    before = span_of(buffer)
    assert before is not None
    others = []
    for _ in range(200):
        grow(buffer)
        others.append(bytearray(len(buffer)))  # in the way of growing in place
        now = span_of(buffer)
        assert now is not None
        if now.address != before.address:
            return now.address - before.address
    raise AssertionError("it never moved")


def test_root_behind_views() -> None:
    whole = np.zeros((4, 4))
    assert root_of(whole[1:, ::2].T) is whole
    data = bytearray(8)
    assert root_of(memoryview(data)[2:4]) is data
    assert root_of(np.frombuffer(data, np.uint16)[1:]) is data
    pair = Pair()
    assert root_of(pair.b) is pair
    pointer = ffi.new("struct pair *")
    assert root_of((pointer, pointer.b)) is pointer[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.zeros((3, 5), np.int16),
        lambda: bytearray(100),
        lambda: array.array("d", [1.0, 2.0]),
        lambda: mmap.mmap(-1, 5000),
        lambda: Pair(),
        lambda: ffi.new("double[3]"),
        lambda: ffi.new("struct pair *")[0],
        lambda: memoryview(bytes(20)),
    ],
    ids=["ndarray", "bytearray", "array", "mmap", "ctypes", "cffi-array", "cffi-struct", "memoryview"],
)
def test_span_is_the_objects_memory(make: Any) -> None:
    root = make()
    if "cffi" in type(root).__module__:
        expected = int(ffi.cast("uintptr_t", ffi.addressof(root))), ffi.sizeof(root)
    else:
        view = np.frombuffer(root, np.uint8) if not isinstance(root, np.ndarray) else root
        expected = view.ctypes.data, view.nbytes
        del view
    assert span_of(root) == expected
    assert span_of(root, span_of(root)) == expected


def test_no_export_stays() -> None:
    data, numbers, mapping = bytearray(8), array.array("i", [1, 2]), mmap.mmap(-1, 4096)
    homes = [
        Home(target_of(data), True),
        Home(locate("numbers[1]"), True),
        Home(locate("mapping[0:8]"), True),
    ]
    assert [home.trouble for home in homes] == ["", "", ""]
    data.extend(b"12345678")
    numbers.append(3)
    mapping.close()
    assert homes[2].trouble == "its mmap was closed; the memory is no longer its own"


def test_growth_is_noticed_and_followed() -> None:
    data = bytearray(64)
    target = locate("data[3]")
    home = Home(target, True)
    by = moved(data, lambda b: b.extend(bytes(4096)))
    assert home.trouble == "the memory of its bytearray has moved"
    found, other = home.found(target)
    assert found.address == target.address + by
    assert [leaf.address for leaf in found.leaves] == [target.address + by]
    assert (found.name, other.trouble) == ("data[3]", "")
    assert other.found(found) == (found, other)
    assert "had moved before" in Home(target, True).trouble


def test_array_and_ctypes_resize() -> None:
    a = np.zeros(16)
    target = locate("a[3]")
    home = Home(target, True)
    moved(a, lambda array: array.resize(len(array) * 2, refcheck=False))
    assert home.trouble == "the memory of its ndarray has moved"
    assert home.found(target)[0].address == a[3:4].ctypes.data
    pair = Pair()
    place = locate("pair.b[1]")
    home = Home(place, True)
    ctypes.resize(pair, 1 << 20)
    assert home.found(place)[0].address == ctypes.addressof(pair) + Pair.b.offset + 8


def test_too_short() -> None:
    data = bytearray(64)
    target = locate("data[40:48]")
    home = Home(target, True)
    del data[10:]
    assert home.trouble == "its bytearray has become too short for it"
    with pytest.raises(TargetError, match="too short"):
        home.found(target)


def test_shared_memory_closed() -> None:
    shared = SharedMemory(create=True, size=64)
    try:
        home = Home(target_of(shared.buf[8:16]), True)
        assert home.trouble == ""
        shared.close()
        assert "closed" in home.trouble
    finally:
        shared.unlink()


@pytest.mark.parametrize("hold", [True, False])
def test_pandas_copy_on_write(hold: bool) -> None:
    df = pd.DataFrame({"x": np.arange(4.0), "y": 1.0})
    target = locate('df["x"].iloc[1]')
    home = Home(target, hold)
    assert home.trouble == ""
    other = df[:]  # shares the values, so that the next assignment copies them
    df.loc[1, "x"] = 9.0
    assert home.trouble == "pandas has moved the values"
    found, _ = home.found(target)
    assert float(np.frombuffer(ctypes.string_at(found.address, 8))[0]) == 9.0
    assert float(other.loc[1, "x"]) == 1.0
    del df["x"]
    assert home.trouble == "pandas has no such place any more"
    with pytest.raises(TargetError, match="no such place"):
        home.found(target)


def test_pandas_objects_are_not_kept() -> None:
    for text in ('df["x"].iloc[1]', 'df.loc[1, "x"]', "df.iat[1, 0]"):
        df = pd.DataFrame({"x": np.arange(4.0)})
        home, weak = Home(locate(text, {"df": df}), True), weakref.ref(df)
        del df
        gc.collect()
        assert weak() is None, text
        assert home.trouble == ""  # its values are still here


def test_death_is_noted() -> None:
    a = np.zeros(4)
    home = Home(locate("a[1]", {"a": a}), False)
    assert (home.trouble, home.died, home.blind) == ("", None, "")
    view = a[1:]
    del a
    gc.collect()
    assert home.died is None  # a view keeps the memory
    del view
    gc.collect()
    assert home.died is not None
    assert "gone" in home.trouble
    pair = ffi.new("struct pair *")
    home = Home(locate("pair.b[1]", {"pair": pair}), False)
    inner = pair[0]
    del pair
    gc.collect()
    assert home.died is None
    del inner
    gc.collect()
    assert home.died is not None


def test_held_until_it_is_left() -> None:
    a = np.zeros(4)
    weak, home = weakref.ref(a), Home(locate("a[1]", {"a": a}), True)
    del a
    gc.collect()
    assert weak() is not None
    home.leave()
    gc.collect()
    assert weak() is None


def test_what_cannot_be_noticed_is_said() -> None:
    assert "bytearray tells nobody" in Home(target_of(bytearray(8)), False).blind
    pointer = ctypes.pointer(ctypes.c_int(3))
    far = ctypes.cast(pointer, ctypes.c_void_p)
    assert "not its object's own" in Home(target_of(far, nbytes=4), False).blind
    assert Home(target_of(far, nbytes=4), True).blind == ""


def test_a_name_that_is_bound_anew() -> None:
    names = {"a": np.zeros(4), "i": 2}
    home = Home(words.place("a[i]", names), True)
    names["i"] = 3
    assert home.renamed == ""
    names["a"] = np.zeros(4)
    assert home.renamed == "`a` is another object by now; the earlier one is watched"
