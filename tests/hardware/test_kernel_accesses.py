"""System calls that write into watched bytes are hits of origin `kernel`, on the line of the call.

Where the kernel does not let this user see them (kernel.perf_event_paranoid 2 and no CAP_PERFMON), nothing
is counted, and the coverage says so.
"""

from __future__ import annotations

import io
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def by_readinto(memory: Any, data: bytes, folder: Path) -> int:
    path = folder / "data"
    path.write_bytes(data)
    with io.FileIO(path) as file:
        file.readinto(memory)
        return sys._getframe().f_lineno - 1


def by_readv(memory: Any, data: bytes, folder: Path) -> int:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.readv(reader, [memory])
    os.close(reader)
    os.close(writer)
    return sys._getframe().f_lineno - 3


def by_recv_into(memory: Any, data: bytes, folder: Path) -> int:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(data)
        right.recv_into(memory)
        return sys._getframe().f_lineno - 1


@pytest.mark.perf
@pytest.mark.parametrize("write", [by_readinto, by_readv, by_recv_into])
@pytest.mark.parametrize("first", [0, 3, 16])
def test_one_row_for_a_call(session: Any, tmp_path: Path, write: Callable[..., int], first: int) -> None:
    array = np.zeros(256)
    data = np.arange(1, 257, dtype=np.float64).tobytes()
    watch = session.watch(array[first : first + 1])
    line = write(memoryview(array).cast("B"), data, tmp_path)
    array[first] = -1
    rows = watch.timeline()
    seen = watch.coverage.kernel
    if seen == "seen":
        assert rows.origin.tolist() == ["kernel", "user"]
        kernel = rows.iloc[0]
        assert (kernel.function, kernel.file, kernel.line) == (write.__name__, __file__, line)
        assert (kernel.old, kernel.new, kernel.access) == (0, first + 1, "write")
        assert kernel.instruction == "syscall"
        assert kernel.exact
    else:
        assert seen.startswith("not seen: kernel.perf_event_paranoid is")
        assert rows.origin.tolist() == ["user"]
    assert rows.new.iloc[-1] == -1
    assert (watch.counted, watch.hits, watch.lost) == (len(rows), len(rows), 0)


def test_kernel_left_out_when_asked(session: Any, tmp_path: Path) -> None:
    array = np.zeros(8)
    watch = session.watch(array[3:4], kernel=False)
    by_readv(memoryview(array).cast("B"), b"\1" * 64, tmp_path)
    assert (watch.counted, watch.hits, watch.lost) == (0, 0, 0)
    assert watch.coverage.kernel == "not seen: kernel=False was asked for"
    array[3] = 5
    assert watch.timeline().origin.tolist() == ["user"]


def test_kernel_reads(session: Any) -> None:
    array = np.zeros(8)
    watch = session.watch(array[3:4], "rw")
    reader, writer = os.pipe()
    os.write(writer, array)
    os.close(reader)
    os.close(writer)
    rows = watch.timeline()
    if watch.coverage.kernel == "seen":
        assert rows.origin.tolist() == ["kernel"]
        assert rows.access.tolist() in (["read"], ["unknown"])
        assert not rows.changed.any()
    assert (watch.counted, watch.hits, watch.lost) == (len(rows), len(rows), 0)


def test_many_calls_are_many_rows(session: Any) -> None:
    array = np.zeros(8)
    watch = session.watch(array[3:4])
    reader, writer = os.pipe()
    for i in range(1000):
        os.write(writer, np.full(8, float(i + 1)))
        os.readv(reader, [array])
    os.close(reader)
    os.close(writer)
    rows = watch.timeline()
    if watch.coverage.kernel == "seen":
        assert rows.new.tolist() == list(range(1, 1001))
        assert rows.old.tolist() == list(range(1000))
    assert (watch.counted, watch.hits, watch.lost) == (len(rows), len(rows), 0)


@pytest.mark.perf
def test_lost_hits_stay_lost_after_a_call(session: Any, tmp_path: Path) -> None:
    """What a thread that blocks SIGTRAP lost is not taken for bytes that the kernel copied."""
    import signal
    import threading

    array = np.zeros(8)
    stored, end = threading.Event(), threading.Event()

    def blocked() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTRAP})
        for value in range(10):
            array[3] = value
        stored.set()
        end.wait(20)

    watch = session.watch(array[3:4])
    thread = threading.Thread(target=blocked, daemon=True)
    thread.start()
    assert stored.wait(10)
    assert watch.lost == 10
    by_readv(memoryview(array).cast("B"), b"\1" * 64, tmp_path)
    lost = watch.lost
    end.set()
    thread.join()
    assert lost == 10
