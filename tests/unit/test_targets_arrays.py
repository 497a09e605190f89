"""NumPy: the leaves lie where the elements lie, whatever the layout."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwwatch.errors import TargetError
from hwwatch.targets import Leaf, Target, locate, target_of


def stored(leaf: Leaf) -> Any:
    return np.frombuffer(ctypes.string_at(leaf.address, leaf.dtype.itemsize), leaf.dtype)[0]


def watched(target: Target) -> set[int]:
    return {byte for start, n in target.ranges for byte in range(start, start + n)}


def truth(array: np.ndarray[Any, Any], index: tuple[int, ...]) -> int:
    return int(array.ctypes.data) + sum(i * s for i, s in zip(index, array.strides, strict=True))


SAMPLES: dict[str, tuple[np.ndarray[Any, Any], Any]] = {
    "float64": (np.arange(4.0), -7.25),
    "int8": (np.arange(8, dtype=np.int8), -3),
    "bool": (np.zeros(5, np.bool_), True),
    "big-endian": (np.arange(3, dtype=">i4"), 0x01020304),
    "float16": (np.zeros(6, np.float16), 1.5),
    "complex64": (np.zeros(2, np.complex64), 1 + 2j),
    "complex128": (np.zeros(2, np.complex128), 3 - 4j),
    "longdouble": (np.zeros(2, np.longdouble), np.longdouble(1) / 3),
    "datetime64": (np.array(["2020-01-01", "2021-01-01"], "M8[us]"), np.datetime64("1999-09-09", "us")),
    "timedelta64": (np.zeros(3, "m8[ns]"), np.timedelta64(5, "ns")),
    "bytes": (np.array([b"abc", b"de"]), b"xyz"),
    "str": (np.array(["ab", "c"]), "zü"),
    "void": (np.zeros(2, "V5"), np.void(b"12345")),
    "fortran": (np.asfortranarray(np.arange(8, dtype=np.int32).reshape(2, 4)), 99),
    "transposed": (np.arange(6, dtype=np.int16).reshape(2, 3).T, 99),
    "strided": (np.arange(24, dtype=np.int16)[1::6], 99),
    "negative": (np.arange(8, dtype=np.int32)[::-2], 99),
    "misaligned": (np.frombuffer(bytearray(33), "<f8", count=4, offset=1), 2.5),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_each_element_is_found_and_follows_a_store(kind: str) -> None:
    array, value = SAMPLES[kind]
    target = target_of(array)
    assert target.dtype == array.dtype
    assert [leaf.element for leaf in target.leaves] == list(np.ndindex(array.shape))
    for leaf in target.leaves:
        assert isinstance(leaf.element, tuple)
        assert leaf.address == truth(array, leaf.element)
        before = array[leaf.element]
        assert stored(leaf) == before
        assert before != value
        array[leaf.element] = value
        assert stored(leaf) == array[leaf.element] == array.dtype.type(value)
        array[leaf.element] = before
    assert watched(target) == {leaf.address + i for leaf in target.leaves for i in range(leaf.dtype.itemsize)}


@st.composite
def views(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    dtype = draw(st.sampled_from(["u1", ">i2", "f4", "f8", "c16"]))
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    order = draw(st.sampled_from("CF"))
    view = np.arange(math.prod(shape)).astype(dtype).reshape(shape, order=order)  # type: ignore[call-overload]
    cuts = []
    for length in shape:
        low = draw(st.integers(0, length - 1))
        cuts.append(slice(low, draw(st.integers(low + 1, length)), draw(st.sampled_from([1, 1, 2, 3]))))
    view = view[tuple(cuts)][tuple(slice(None, None, draw(st.sampled_from([1, -1]))) for _ in shape)]
    axes = draw(st.permutations(range(view.ndim)))
    view = view.transpose(axes)
    if draw(st.booleans()):
        view = np.broadcast_to(view, (draw(st.integers(1, 3)), *view.shape))
    return view


@settings(max_examples=300, deadline=None)
@given(views())
def test_watched_bytes_are_the_elements_bytes(view: np.ndarray[Any, Any]) -> None:
    expected = {truth(view, i) + b for i in np.ndindex(view.shape) for b in range(view.itemsize)}
    if len(expected) > 32:
        with pytest.raises(TargetError, match="too-large"):
            target_of(view)
        return
    target = target_of(view)
    assert watched(target) == expected
    assert target.nbytes == len(expected)
    assert [leaf.address for leaf in target.leaves] == [truth(view, i) for i in np.ndindex(view.shape)]


@settings(max_examples=300, deadline=None)
@given(views(), st.data())
def test_located_elements_carry_their_index_in_the_array(
    view: np.ndarray[Any, Any], data: st.DataObject
) -> None:
    key = tuple(
        data.draw(
            st.integers(-n, n - 1).flatmap(
                lambda i: st.sampled_from([i, slice(i, None), slice(i, i + 1 or None)])
            )
        )
        for n in view.shape[: data.draw(st.integers(1, view.ndim))]
    )
    part = np.asarray(view[(*key, ...)])
    if part.nbytes > 32:
        key, part = tuple(-1 for _ in view.shape), np.asarray(view[(*(-1 for _ in view.shape), ...)])
    target = locate(f"v[{', '.join(text(k) for k in key)}]", {"v": view})
    assert [leaf.address for leaf in target.leaves] == [truth(part, i) for i in np.ndindex(part.shape)]
    assert [leaf.address for leaf in target.leaves] == [truth(view, leaf.element) for leaf in target.leaves]  # type: ignore[arg-type]


def text(key: int | slice) -> str:
    if isinstance(key, int):
        return str(key)
    return f"{key.start}:{'' if key.stop is None else key.stop}"


RECORD = np.dtype([("x", "<i4"), ("in", [("a", "u1"), ("b", ">f8")]), ("q", "<i2", (2, 2))])


def test_structured_fields_have_paths() -> None:
    rec = np.zeros(3, RECORD)
    rec["in"]["b"] = [1.0, 2.0, 3.0]
    target = target_of(rec[2:3])
    names = ["[0].x", "[0].in.a", "[0].in.b", *(f"[0].q[{i}, {j}]" for i in (0, 1) for j in (0, 1))]
    assert [leaf.element for leaf in target.leaves] == names
    assert target.dtype == RECORD
    assert target.ranges == ((rec.ctypes.data + 2 * RECORD.itemsize, RECORD.itemsize),)
    assert stored(target.leaves[2]) == 3.0
    rec["q"][2, 1, 0] = 77
    assert stored(target.leaves[5]) == 77
    assert locate("rec[2]").leaves[1].element == "[2].in.a"
    assert locate("rec[2]").leaves[0].address == target.leaves[0].address


def test_structured_scalar_is_a_place_in_its_array() -> None:
    rec = np.zeros(3, RECORD)
    target = target_of(rec[1])
    assert target.leaves[0] == Leaf("x", rec.ctypes.data + RECORD.itemsize, np.dtype("<i4"))
    own = rec[1].copy()  # still a mutable object, with memory of its own
    other = target_of(own)
    own["x"] = 5
    assert stored(other.leaves[0]) == 5
    assert rec[1]["x"] == 0


def test_gaps_between_chosen_fields_are_not_watched() -> None:
    rec = np.zeros(2, [("x", "u1"), ("y", "<f8"), ("z", "u1")])
    target = locate('rec[["x", "z"]]')
    at = rec.ctypes.data
    assert target.ranges == ((at, 1), (at + 9, 2), (at + 19, 1))


def test_zero_dimensional_and_broadcast_and_windows() -> None:
    one = np.array(2.5)
    assert target_of(one).leaves == (Leaf(None, one.ctypes.data, np.dtype("f8")),)
    wide = np.broadcast_to(one, (3,))
    assert target_of(wide).ranges == ((one.ctypes.data, 8),)
    assert [leaf.element for leaf in target_of(wide).leaves] == [(0,), (1,), (2,)]
    huge = target_of(np.broadcast_to(one, (10**6, 10**6)))
    assert huge.ranges == ((one.ctypes.data, 8),)
    assert len(huge.leaves) == 1
    windows = np.lib.stride_tricks.sliding_window_view(np.arange(8, dtype=np.uint8), 4)
    assert target_of(windows).nbytes == 8


def test_subclasses(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "m", np.int32, "w+", shape=(100,))
    target = target_of(mapped[3:5])
    mapped[4] = 42
    assert stored(target.leaves[1]) == 42
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    target = target_of(masked)
    assert "mask" in target.note
    assert target.address == masked.data.ctypes.data
    assert locate("masked[1]").leaves[0].address == masked.data.ctypes.data + 8
    with pytest.raises(TargetError, match="constant"):
        target_of(masked[1])
    matrix = np.arange(4.0).reshape(2, 2).view(np.matrix)
    assert locate("matrix[1, 0]").leaves[0] == Leaf((1, 0), matrix.ctypes.data + 16, np.dtype("f8"))
    rec = np.zeros(2, [("x", "i4"), ("y", "f8")]).view(np.recarray)
    assert locate("rec.y[1]").leaves[0].address == rec.ctypes.data + 16
    assert locate("rec[1].y").leaves[0] == Leaf(None, rec.ctypes.data + 16, np.dtype("f8"))


def test_read_only_memory_can_be_watched() -> None:
    array = np.arange(3)
    array.flags.writeable = False
    assert target_of(array).address == array.ctypes.data


def test_owner_keeps_the_memory() -> None:
    target = target_of(np.arange(1000.0)[3:4])
    junk = [np.zeros(1000) for _ in range(50)]
    assert stored(target.leaves[0]) == 3.0
    assert len(junk) == 50


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (np.zeros(131072), r"1,048,576 bytes asked, 4 slots hold 32 .*a\[3\].*too-large"),
        (np.zeros((10**4, 10**3), "u1")[:, ::2], "5,000,000 bytes"),
        (np.zeros(5), "40 bytes asked"),
        (np.zeros(1, "S40"), "40 bytes asked"),
        (np.zeros(1, [("big", "f8", (10**6,))]), "8,000,000 bytes"),
        (np.zeros(0), "no bytes"),
        (np.zeros((3, 0, 2)), "no bytes"),
        (np.zeros(3, "V0"), "no bytes"),
        (np.array([[], None], dtype=object), "pointers to Python objects"),
        (np.zeros(1, [("x", "i4"), ("o", "O")]), "pointers to Python objects in `o`"),
        (np.array(["a"], np.dtypes.StringDType()), "pointers"),
        (np.float64(3.5), r"copied NumPy scalar .*locate"),
        (np.arange(3)[1], "copied NumPy scalar"),
        (np.zeros(2, "V5")[1], "copied NumPy scalar"),
    ],
)
def test_refused(thing: object, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        target_of(thing)
