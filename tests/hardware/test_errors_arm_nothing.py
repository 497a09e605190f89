"""User errors are one line, arm nothing, and leave watches and their hits as they were."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwwatch
from hwwatch import HwwatchError, NotSupported, TargetError


class Pair(ctypes.Structure):
    _fields_ = (("left", ctypes.c_int), ("right", ctypes.c_int))


NAMES = {
    "a": np.zeros(8),
    "objects": np.array([1, "x"], object),
    "pair": Pair(),
    "number": 7,
    "text": "abc",
    "items": [1, 2, 3],
    "mask": np.zeros(8, bool),
    "libc": ctypes.CDLL(None),
    "frozen": b"12345678",
    "nothing": None,
}
EXPRESSIONS = {
    "typo in a name": "aa[3]",
    "missing name": "absent",
    "missing field": "pair.rigth",
    "missing attribute": "a.shpae[0]",
    "index out of range": "a[8]",
    "syntax": "a[3",
    "empty": "",
    "assignment": "a[3] = 1",
    "computed": "a + 1",
    "copy by a mask": "a[mask]",
    "copy by a list": "a[[1, 2]]",
    "python int": "number",
    "python string": "text",
    "python list": "items",
    "item of a list": "items[0]",
    "object array": "objects[0]",
    "too wide": "a[0:5]",
    "missing symbol": "libc.no_such_function",
    "missing library": "no_such_library.so!f",
    "none": "nothing",
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "address without length": lambda s: s.watch(id(NAMES)),
    "unmapped address": lambda s: s.watch(0x1000, nbytes=8),
    "negative address": lambda s: s.watch(-8, nbytes=8),
    "no bytes": lambda s: s.watch(NAMES["a"].ctypes.data, nbytes=0),
    "too many bytes": lambda s: s.watch(NAMES["a"].ctypes.data, nbytes=33),
    "unknown mode": lambda s: s.watch(NAMES["a"][3:4], "wr"),
    "unknown policy": lambda s: s.watch(NAMES["a"][3:4], policy="skipp"),
    "bad stack": lambda s: s.watch(NAMES["a"][3:4], stack=65),
    "bad kernel": lambda s: s.watch(NAMES["a"][3:4], kernel="maybe"),
    "unknown backend": lambda s: s.watch(NAMES["a"][3:4], backend="magic"),
    "execute data": lambda s: s.watch(NAMES["a"][3:4], "x"),
    "write a function": lambda s: s.watch(NAMES["libc"].strlen),
    "none": lambda s: s.watch(None),
    "an object": lambda s: s.watch(object()),
    "empty slice": lambda s: s.watch(NAMES["a"][3:3]),
    "whole array": lambda s: s.watch(NAMES["a"]),
    "unknown watch": lambda s: s.unwatch("absent"),
    "unknown id": lambda s: s.unwatch(99),
    "unknown in the timeline": lambda s: s.timeline("absent"),
}


@pytest.fixture
def harmless(session: Any) -> Any:
    """Runs something wrong beside an armed watch that has hits, and returns what it raised."""
    array = np.zeros(4)
    watch = session.watch(array[1:2], name="good")
    array[1] = 1

    def files() -> int:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum("perf_event" in os.readlink(link) for link in links if os.path.islink(link))

    def run(wrong: Callable[[Any], Any]) -> HwwatchError:
        before = files()
        with pytest.raises(HwwatchError) as caught:
            wrong(session)
        assert files() == before
        assert session.watches() == [watch]
        array[1] = 2
        assert watch.timeline().new.tolist() == [1, 2]
        assert (watch.counted, watch.hits, watch.lost) == (2, 2, 0)
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 400
        assert message.endswith(f"[{caught.value.slug}]")
        return caught.value

    return run


@pytest.mark.parametrize("case", EXPRESSIONS)
def test_expressions(harmless: Any, case: str) -> None:
    error = harmless(lambda session: session.watch(hwwatch.locate(EXPRESSIONS[case], NAMES)))
    assert isinstance(error, TargetError)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("case", CALLS)
def test_calls(harmless: Any, case: str) -> None:
    harmless(CALLS[case])


@pytest.mark.parametrize(
    ("expression", "near"), [("aa[3]", "`a`"), ("pair.rigth", "right"), ("a.shpae[0]", "shape")]
)
def test_typos_are_guessed(harmless: Any, expression: str, near: str) -> None:
    error = harmless(lambda session: session.watch(hwwatch.locate(expression, NAMES)))
    assert "Did you mean" in error.hint
    assert near in error.hint


def test_children_of_builtin_errors(session: Any) -> None:
    with pytest.raises(ValueError, match="none of 'w', 'rw', 'r', 'x'"):
        session.watch(np.zeros(1), "q")
    assert issubclass(hwwatch.NoSlotError, OSError)
    assert issubclass(hwwatch.PermissionRefused, PermissionError)
    assert issubclass(NotSupported, NotImplementedError)


def test_freed_memory_is_refused_or_told(in_child: Callable[..., Any]) -> None:
    """Memory that is unmapped while watched: the next watch of it is refused, nothing crashes."""

    def work():
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        address = libc.mmap(None, ctypes.c_size_t(4096), 3, 0x22, -1, ctypes.c_long(0))
        watch = hwwatch.watch(address, nbytes=8)
        ctypes.memset(address, 1, 8)
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(4096))
        other = np.zeros(1)
        second = hwwatch.watch(other)
        other[0] = 1
        try:
            hwwatch.watch(address, nbytes=8)
            slug = None
        except hwwatch.TargetError as error:
            slug = error.slug
        return watch.hits >= 1, watch.lost, second.hits, slug

    assert in_child(work) == [True, 0, 1, "unmapped"]
