"""ctypes: fields, elements, pointers and bit-fields lie where ctypes puts them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from hwwatch.errors import TargetError
from hwwatch.targets import Leaf, locate, target_of


def stored(leaf: Leaf) -> Any:
    return np.frombuffer(ctypes.string_at(leaf.address, leaf.dtype.itemsize), leaf.dtype)[0]


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_short), ("y", ctypes.c_double)]


class Either(ctypes.Union):
    _fields_ = [("whole", ctypes.c_uint32), ("half", ctypes.c_uint16)]


class Box(ctypes.Structure):
    _anonymous_ = ("_u",)
    _fields_ = [
        ("items", Point * 3),
        ("name", ctypes.c_char * 8),
        ("wide", ctypes.c_wchar * 2),
        ("next", ctypes.POINTER(Point)),
        ("text", ctypes.c_char_p),
        ("call", ctypes.CFUNCTYPE(ctypes.c_int)),
        ("_u", Either),
        ("grid", ctypes.c_int * 3 * 2),
    ]


class Derived(Point):
    _fields_ = [("z", ctypes.c_float)]


class Swapped(ctypes.BigEndianStructure):
    _fields_ = [("a", ctypes.c_uint32), ("b", ctypes.c_int16 * 2)]


class Bits(ctypes.Structure):
    _fields_ = [
        ("low", ctypes.c_uint, 3),
        ("high", ctypes.c_uint, 20),
        ("byte", ctypes.c_ubyte),
        ("last", ctypes.c_int, 5),
    ]


SIMPLE: list[tuple[Any, Any]] = [
    (ctypes.c_double(1.5), -2.5),
    (ctypes.c_float(1.5), -2.5),
    (ctypes.c_longdouble(1.5), -2.5),
    (ctypes.c_int8(1), -2),
    (ctypes.c_uint16(1), 0xFFFE),
    (ctypes.c_int64(1), -(2**60)),
    (ctypes.c_bool(False), True),
    (ctypes.c_char(b"a"), b"z"),
    (ctypes.c_wchar("a"), "Ω"),
    (ctypes.c_int32.__ctype_be__(1), 0x01020304),
    (ctypes.c_void_p(1), 0x1234),
]


@pytest.mark.parametrize(("instance", "value"), SIMPLE, ids=lambda v: type(v).__name__)
def test_simple_instances(instance: Any, value: Any) -> None:
    target = target_of(instance)
    assert target.ranges == ((ctypes.addressof(instance), ctypes.sizeof(instance)),)
    assert [leaf.element for leaf in target.leaves] == [None]
    assert stored(target.leaves[0]) == instance.value
    instance.value = value
    assert stored(target.leaves[0]) == value
    assert locate("instance.value").leaves == target.leaves


def test_structure_is_watched_whole() -> None:
    point = Point(3, 4.5)
    target = target_of(point)
    assert target.ranges == ((ctypes.addressof(point), 16),)  # with the padding
    assert [(leaf.element, stored(leaf)) for leaf in target.leaves] == [("x", 3), ("y", 4.5)]
    assert target.dtype.names == ("x", "y")
    assert target.owner is point
    derived = target_of(Derived(1, 2.0, 3.0))
    assert [(leaf.element, stored(leaf)) for leaf in derived.leaves] == [("x", 1), ("y", 2.0), ("z", 3.0)]


def test_nested_fields_and_arrays() -> None:
    box = Box()
    at = ctypes.addressof(box)
    target = locate("box.items[2].y")
    assert target.leaves == (Leaf("y", at + 2 * 16 + 8, np.dtype("f8")),)
    box.items[2].y = 6.25
    assert stored(target.leaves[0]) == 6.25
    assert target.name == "box.items[2].y"
    target = locate("box.grid[1][-1]")
    box.grid[1][2] = 77
    assert (target.leaves[0].element, stored(target.leaves[0])) == ((2,), 77)
    names = [leaf.element for leaf in locate("box.grid").leaves]
    assert names[:4] == ["grid[0][0]", "grid[0][1]", "grid[0][2]", "grid[1][0]"]
    assert [leaf.element for leaf in locate("box.grid[1:]").leaves] == [(1, 0), (1, 1), (1, 2)]
    assert [leaf.element for leaf in locate("box.items[1]").leaves] == ["[1].x", "[1].y"]
    with pytest.raises(TargetError, match=r"bytes asked.*field"):
        target_of(box)


def test_char_arrays_are_bytes_and_not_copied() -> None:
    box = Box()
    whole, one, wide = locate("box.name"), locate("box.name[2]"), locate("box.wide")
    box.name = b"hello"
    box.wide = "é"
    assert stored(whole.leaves[0]) == b"hello"
    assert (one.leaves[0].element, stored(one.leaves[0])) == ((2,), b"l")
    assert stored(wide.leaves[0]) == "é"
    buffer = ctypes.create_string_buffer(b"abc", 8)
    target = target_of(buffer)
    buffer.value = b"xy"
    assert (target.dtype, stored(target.leaves[0])) == (np.dtype("S8"), b"xy")


def test_pointer_fields_are_the_pointer_and_names_are_what_it_points_at() -> None:
    points = (Point * 2)(Point(1, 2), Point(3, 4))
    box = Box(next=points)
    at = ctypes.addressof(points)
    slot = locate("box.next")
    assert slot.address == ctypes.addressof(box) + Box.next.offset
    assert stored(slot.leaves[0]) == at
    assert "pointer itself" in slot.note
    pointer = box.next
    for text in ("pointer", "pointer[0]", "pointer.contents", "box.next[0]", "box.next.contents"):
        assert locate(text).ranges == ((at, 16),), text
    assert "points at" in locate("pointer").note
    assert locate("box.next.contents.y").leaves == (Leaf("y", at + 8, np.dtype("f8")),)
    second = locate("pointer[1].x")
    points[1].x = -9
    assert stored(second.leaves[0]) == -9
    assert locate("pointer[-1:0]", {"pointer": ctypes.pointer(points[1])}).address == at
    assert target_of(pointer, nbytes=4).ranges == ((at, 4),)
    assert stored(locate("box.text").leaves[0]) == 0
    assert stored(locate("box.call").leaves[0]) == 0
    assert target_of(ctypes.c_void_p(at), nbytes=2).ranges == ((at, 2),)


def test_unions_and_anonymous_members() -> None:
    box = Box()
    half, whole = locate("box.half"), locate("box.whole")
    assert half.address == whole.address == ctypes.addressof(box) + Box.half.offset
    box.whole = 0x0001ABCD
    assert (stored(half.leaves[0]), stored(whole.leaves[0])) == (0xABCD, 0x0001ABCD)
    union = Either(5)
    target = target_of(union)
    assert target.nbytes == 4
    assert [leaf.element for leaf in target.leaves] == ["whole", "half"]


def test_big_endian_structure() -> None:
    swapped = Swapped(0x01020304)
    swapped.b[1] = -2
    leaves = target_of(swapped).leaves
    assert [(leaf.element, stored(leaf)) for leaf in leaves] == [("a", 0x01020304), ("b[0]", 0), ("b[1]", -2)]
    assert ctypes.string_at(leaves[0].address, 4) == b"\1\2\3\4"


def test_bit_fields_are_the_integer_that_holds_them() -> None:
    bits = Bits()
    target = locate("bits.high")
    assert target.note == "bit-field: the 4 bytes that hold it"
    assert target.ranges == ((ctypes.addressof(bits), 4),)
    bits.high = 0x12345
    assert stored(target.leaves[0]) >> 3 == 0x12345
    whole = target_of(bits)
    assert [leaf.element for leaf in whole.leaves][:2] == ["low|high", "byte"]
    assert whole.ranges == ((ctypes.addressof(bits), ctypes.sizeof(bits)),)
    assert "bit-field" in whole.note


@pytest.mark.parametrize("field", ["low", "high", "byte", "last"])
def test_a_store_to_any_bit_field_changes_only_watched_bytes(field: str) -> None:
    bits = Bits()
    target = locate(f"bits.{field}")
    setattr(bits, field, 1)
    changed = [i for i, byte in enumerate(bytes(bits)) if byte]
    start = target.address - ctypes.addressof(bits)
    assert changed
    assert all(start <= i < start + target.nbytes for i in changed)


def test_objects_on_borrowed_memory() -> None:
    array = np.arange(4, dtype=np.int32)
    view = (ctypes.c_int32 * 4).from_address(array.ctypes.data)
    assert len(view) == 4
    assert locate("view[2]").address == array.ctypes.data + 8
    with pytest.raises(TargetError, match="NULL"):
        target_of(ctypes.c_int.from_address(0))


def test_refused() -> None:
    box, point = Box(), Point()
    null = ctypes.POINTER(Point)()
    stray = ctypes.cast(0x1000, ctypes.POINTER(Point))
    wild = ctypes.cast(0x1000, ctypes.POINTER(ctypes.POINTER(Point)))
    names: dict[str, Any] = {"box": box, "point": point, "null": null, "stray": stray, "wild": wild}
    names["gone"] = (ctypes.c_int * 4).from_address(0x1000)
    for text, message in {
        "null": "NULL",
        "null[0]": "NULL",
        "null.contents": "NULL",
        "null.contents.x": "NULL",
        "box.next[0].x": "NULL",
        "stray": "no memory is mapped",
        "stray[1].x": "no memory is mapped",
        "wild[0][0]": "no memory is mapped",
        "gone[2]": "no memory is mapped",
        "wild.contents.contents.x": "no memory is mapped",
        "point.z": "Its fields: x, y",
        "box.itmes": "Did you mean `items`",
        "box.grid[2]": "out of range",
        "box.grid['a']": "no index",
        "null[1:]": "needs an end",
        "point[0]": "Name a field",
        "box.next.y": "has no field",
    }.items():
        with pytest.raises(TargetError, match=message):
            locate(text, names)
    with pytest.raises(TargetError, match="Python object"):
        target_of(ctypes.py_object(3))
    with pytest.raises(TargetError, match=r"nbytes=4 is asked, but it has 16"):
        target_of(point, nbytes=4)
