"""Arming, changing the mode and disarming, in a process with few and many threads, against the system calls
alone."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from batches import Row, interleave, median, row
from floors import Setting

import hwwatch

TITLE = "Arm, switch, disarm"
THREADS = (1, 14, 100)
STEPS = ("arm", "switch", "disarm")


@contextmanager
def company(count: int) -> Iterator[list[int]]:
    """A process of `count` threads, all but this one asleep: their ids."""
    over = threading.Event()
    time.sleep(0.5)  # threads of earlier sections are gone by then
    others = [threading.Thread(target=over.wait) for _ in range(count - len(os.listdir("/proc/self/task")))]
    for thread in others:
        thread.start()
    try:
        yield [int(name) for name in os.listdir("/proc/self/task")]
    finally:
        over.set()
        for thread in others:
            thread.join()


def system_calls(floor: Any, address: int, tids: list[int]) -> tuple[float, float, float]:
    """µs of the calls that arm these threads, change the mode and back (half of it), disarm."""
    threads = (ctypes.c_int * len(tids))(*tids)
    moments = [time.perf_counter_ns()]
    failed = floor.floor_arm(address, threads, len(tids))
    moments.append(time.perf_counter_ns())
    failed |= floor.floor_switch(address, 1) | floor.floor_switch(address, 0)
    moments.append(time.perf_counter_ns())
    floor.floor_disarm()
    moments.append(time.perf_counter_ns())
    if failed:
        raise SystemExit("perf_event_open refused: see `hwwatch doctor`")
    return split(moments)


def watch(place: Any) -> tuple[float, float, float]:
    """The same by hwwatch, with all that it makes sure of."""
    moments = [time.perf_counter_ns()]
    one = hwwatch.watch(place, "w", kernel=False, backend="perf")
    moments.append(time.perf_counter_ns())
    one.mode = "rw"
    one.mode = "w"
    moments.append(time.perf_counter_ns())
    one.disarm()
    moments.append(time.perf_counter_ns())
    hwwatch.unwatch(one)
    return split(moments)


def split(moments: list[int]) -> tuple[float, float, float]:
    """µs of each step; the middle one was done twice."""
    arm, switch, disarm = ((end - begin) / 1000 for begin, end in pairwise(moments))
    return arm, switch / 2, disarm


def measure(setting: Setting) -> list[Row]:
    """µs by step and number of threads; ``"ratio"`` is to the system calls alone."""
    place = np.zeros(8)
    rows: list[Row] = []
    for count in THREADS:
        with company(count) as tids:
            found: dict[str, list[tuple[float, float, float]]] = {"system calls": [], "hwwatch": []}

            def calls(tids: list[int] = tids, found: Any = found) -> float:
                found["system calls"].append(system_calls(setting.floor, place.ctypes.data, tids))
                return 0.0

            def ours(found: Any = found) -> float:
                found["hwwatch"].append(watch(place[:1]))
                return 0.0

            interleave({"system calls": calls, "hwwatch": ours}, setting.rounds)
        for number, step in enumerate(STEPS):
            name = f"{step}, {len(tids)} thread{'s' * (len(tids) > 1)}"
            for who, spent in found.items():  # the first was for warming up
                rows.append(row(f"{name}: {who}", "µs", [one[number] for one in spent[1:]]))
            base = median(rows, f"{name}: system calls") or 1
            rows[-1] |= {"ratio": rows[-1]["median"] / base, "to": f"{name}: system calls"}
    return rows
