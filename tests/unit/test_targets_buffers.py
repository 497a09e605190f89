"""Buffers: addresses of the bytes, and no export left behind."""

from __future__ import annotations

import array
import ctypes
import mmap
import multiprocessing as mp
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import pytest

from hwwatch.errors import TargetError
from hwwatch.targets import Leaf, locate, target_of


def stored(leaf: Leaf) -> Any:
    return np.frombuffer(ctypes.string_at(leaf.address, leaf.dtype.itemsize), leaf.dtype)[0]


def address_of(buffer: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def test_bytearray() -> None:
    data = bytearray(range(8))
    start = address_of(data)
    target = target_of(data)
    assert target.ranges == ((start, 8),)
    assert target.dtype == np.uint8
    assert target.owner is data
    data[5] = 200
    assert (target.leaves[5].element, stored(target.leaves[5])) == ((5,), 200)
    assert locate("data[-2]").leaves == (Leaf((6,), start + 6, np.dtype("u1")),)
    assert [leaf.element for leaf in locate("data[2:8:3]").leaves] == [(2,), (5,)]


def test_bytearray_can_grow_afterwards() -> None:
    data = bytearray(8)
    target = target_of(data)
    data.extend(bytes(5000))
    located = locate("data[3]")
    data.extend(bytes(50000))
    with pytest.raises(TargetError, match="55,008 bytes") as caught:
        target_of(data)
    with pytest.raises(TargetError, match="out of range") as second:
        locate("data[10**9]")
    data.extend(b"x")  # the errors, with their tracebacks, are still alive
    view = memoryview(data)
    through = target_of(view[0:4])
    with pytest.raises(BufferError):
        data.extend(b"x")  # the user's own view still holds it
    view.release()
    data.extend(b"x")
    assert "resizing" in target.note
    assert (located.nbytes, through.nbytes) == (1, 4)
    assert (caught.value.slug, second.value.slug) == ("too-large", "target")


@pytest.mark.parametrize("code", "bBhHiIlLqQfd")
def test_array_array(code: str) -> None:
    data = array.array(code, [1, 2, 3])
    target = target_of(data)
    assert target.address == data.buffer_info()[0]
    data[2] = 77
    assert stored(target.leaves[2]) == 77
    data.append(4)


def test_memoryviews() -> None:
    data = bytearray(range(48))
    start = address_of(data)
    strided = memoryview(data)[40::-13]
    assert [leaf.address - start for leaf in target_of(strided).leaves] == [40, 27, 14, 1]
    cube = memoryview(data).cast("h", (2, 3, 4))
    assert locate("cube[1, 2, 3]").leaves == (Leaf((1, 2, 3), start + 46, np.dtype("i2")),)
    data[46:48] = b"\x34\x12"
    assert stored(locate("cube[1, 2, 3]").leaves[0]) == 0x1234
    text = memoryview(b"immutable but memory")
    assert stored(target_of(text[2:6]).leaves[0]) == ord("m")
    fields = np.zeros(2, [("a", "<i4"), ("b", ">f4")])
    assert [leaf.element for leaf in target_of(memoryview(fields)).leaves] == [
        "[0].a",
        "[0].b",
        "[1].a",
        "[1].b",
    ]
    del cube, strided


def test_mmap_can_be_closed_afterwards() -> None:
    with mmap.mmap(-1, 4096) as memory:
        target = locate("memory[16:24]")
        assert target.address == address_of(memory) + 16
        memory[18] = 9
        assert (target.leaves[2].element, stored(target.leaves[2])) == ((18,), 9)
        with pytest.raises(TargetError, match="4,096 bytes"):
            target_of(memory)
    with pytest.raises(TargetError, match="closed"):
        locate("memory[0]")


def test_shared_memory() -> None:
    memory = SharedMemory(create=True, size=64)
    try:
        target = locate("memory.buf[8:12]")
        memory.buf[9] = 5
        assert stored(target.leaves[1]) == 5
        assert target.address == address_of(memory.buf) + 8
        with pytest.raises(TargetError, match="too-large"):
            target_of(memory)
    finally:
        memory.close()  # fails if an export were left
        memory.unlink()
    with pytest.raises(TargetError, match="closed"):
        target_of(memory)


@pytest.mark.parametrize("lock", [True, False])
def test_multiprocessing_sharedctypes(lock: bool) -> None:
    numbers: Any = mp.Array("d", [1.0, 2.0, 3.0], lock=lock)
    one: Any = mp.Value("i", 7, lock=lock)
    target = locate("numbers[1]")
    numbers[1] = 8.5
    assert (target.leaves[0].element, stored(target.leaves[0])) == ((1,), 8.5)
    assert [leaf.element for leaf in target_of(numbers).leaves] == [(0,), (1,), (2,)]
    for place in (target_of(one), locate("one.value")):
        one.value += 1
        assert stored(place.leaves[0]) == one.value


def test_empty_and_immutable() -> None:
    with pytest.raises(TargetError, match="no bytes"):
        target_of(bytearray())
    with pytest.raises(TargetError, match="immutable"):
        target_of(b"abc")
    released = memoryview(bytearray(3))
    released.release()
    with pytest.raises(TargetError, match="released"):
        target_of(released)


def test_dlpack_exporter() -> None:
    class Tensor:
        def __init__(self) -> None:
            self.array = np.arange(3, dtype=np.int32)

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    tensor = Tensor()
    assert target_of(tensor).address == tensor.array.ctypes.data
