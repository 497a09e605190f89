"""Memory that Python and the handler themselves live on can be watched; nothing hangs or crashes.

Each child works until 100 000 hits are counted; its timeout is the test.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwwatch

pytestmark = pytest.mark.slow


def refcount(mode, hits):
    """ob_refcnt of an object that is passed around (CPython Include/object.h: the first word)."""
    from hwwatch.armory import backend_of

    thing = object()
    watch = hwwatch.watch(id(thing), mode, nbytes=8, stack=2)

    def use(x):
        return x

    backend, armed = backend_of(watch), watch._armed
    wanted = hits if mode == "w" else 2 * hits  # the handler's own reads count, and are taken off again
    start = time.monotonic()
    while backend.counts(armed)[0] < wanted and time.monotonic() - start < 40:
        for _ in range(2000):
            use(thing)
    watch.disarm()
    rows, tally = watch.timeline(), watch.coverage.tally
    return {
        "counted": tally.counted,
        "balance": tally.counted - tally.hits - tally.lost,
        "lost": tally.lost,
        "known": int(rows.line.notna().sum()) == len(rows),
        "functions": sorted(set(rows.function) & {"refcount", "refcount.<locals>.use"}),
        "references": sys.getrefcount(thing),
    }


@pytest.mark.parametrize(("mode", "hits"), [("w", 100_000), ("rw", 10_000)])
def test_reference_count(in_child: Callable[..., Any], mode: str, hits: int) -> None:
    found = in_child(refcount, mode, hits, timeout=60)
    assert found["counted"] >= hits
    assert (found["balance"], found["lost"]) == (0, 0)
    assert found["known"]
    assert found["functions"] == ["refcount", "refcount.<locals>.use"]
    assert found["references"] == 2


def frame_pointer(mode, calls):
    """The thread state's current frame, written at every call and return, and read by the handler."""
    from hwwatch import interpreter
    from hwwatch.armory import backend_of

    layout = interpreter.layout()
    ctypes.pythonapi.PyThreadState_Get.restype = ctypes.c_void_p
    address = ctypes.pythonapi.PyThreadState_Get() + layout.tstate_frame
    if layout.has_cframe:
        address = ctypes.c_void_p.from_address(address).value + layout.cframe_frame

    def use(x):
        return x

    watch = hwwatch.watch(address, mode, nbytes=8, stack=2)
    backend, armed = backend_of(watch), watch._armed
    for i in range(calls):
        use(i)
    backend.disarm(armed)  # at once, with little Python code of a session in between
    watch.disarm()
    rows, tally = watch.timeline(), watch.coverage.tally
    return {
        "counted": tally.counted,
        "balance": tally.counted - tally.hits - tally.lost,
        "lost": tally.lost,
        "callers": int((rows.function == "frame_pointer").sum()),
        "called": int((rows.function == "frame_pointer.<locals>.use").sum()),
        "nowhere": int(rows.function.isna().sum()),
        "faults": int(hwwatch.native.shared().faults),
    }


@pytest.mark.perf  # on 3.11 it lies on the stack, which ptrace refuses
@pytest.mark.parametrize(("mode", "calls"), [("w", 50_000), ("rw", 5_000)])
def test_frame_pointer_of_the_thread(in_child: Callable[..., Any], mode: str, calls: int) -> None:
    found = in_child(frame_pointer, mode, calls, timeout=60)
    assert found["counted"] >= 2 * calls  # a call and its return
    assert (found["balance"], found["lost"]) == (0, 0)
    assert found["callers"] >= calls
    assert found["called"] >= calls
    # Where the store comes before the new frame is complete, no line is claimed.
    assert found["faults"] <= found["nowhere"] <= 20


def code_object(mode):
    """Line table pointer of the running code object: the handler reads it at every hit."""
    from hwwatch import interpreter

    layout = interpreter.layout()
    array = np.zeros(1)
    address = id(code_object.__code__) + layout.code_linetable
    table = hwwatch.watch(address, mode, nbytes=8)
    watch = hwwatch.watch(array)
    for i in range(10_000):
        array[0] = i
    hwwatch.unwatch()
    rows = watch.timeline()
    return {
        "counted": (watch.counted, watch.hits, watch.lost),
        "functions": sorted(set(rows.function)),
        "lines": int(rows.line.nunique()),
        "table": table.counted - table.hits - table.lost,
        "table lost": table.lost,
    }


def test_code_object_that_the_handler_reads(in_child: Callable[..., Any]) -> None:
    found = in_child(code_object, "rw", timeout=60)
    assert found == {
        "counted": [10_000, 10_000, 0],
        "functions": ["code_object"],
        "lines": 1,
        "table": 0,
        "table lost": 0,
    }


def own_ring(mode):
    """The counter by which the handler reserves room in the ring."""
    from hwwatch import native

    array = np.zeros(1)
    head = native.open_core()
    address = int(native.ffi.cast("uintptr_t", native.ffi.addressof(head, "head")))
    ring = hwwatch.watch(address, mode, nbytes=8)
    watch = hwwatch.watch(array)
    for i in range(10_000):
        array[0] = i
    hwwatch.unwatch()
    return {"counted": (watch.counted, watch.hits, watch.lost), "ring": ring.lost}


@pytest.mark.parametrize("mode", ["w", "rw"])
def test_handlers_own_ring(in_child: Callable[..., Any], mode: str) -> None:
    found = in_child(own_ring, mode, timeout=60)
    assert found == {"counted": [10_000, 10_000, 0], "ring": 0}


@pytest.mark.perf  # ptrace refuses stacks
def test_stack_bytes_under_the_signal_frame(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    """Stack memory below the stack pointer, where the kernel writes the signal frame of the next trap."""

    def work(path):
        library = ctypes.CDLL(path)
        library.below.restype = ctypes.c_void_p
        address = library.below() & ~7
        array = np.zeros(1)
        watch = hwwatch.watch(address, nbytes=8, name="stack")
        other = hwwatch.watch(array)
        for i in range(1000):
            array[0] = i
        hwwatch.unwatch()
        return (other.hits, other.lost, watch.counted - watch.hits - watch.lost)

    source = "void *below(void) { char here[4096]; return __builtin_frame_address(0) - 900; }"
    assert in_child(work, build(source, "-Wno-unused-variable"), timeout=60) == [1000, 0, 0]
