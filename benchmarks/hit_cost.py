"""What one hit costs: hwwatch, with each policy, against a bare counting handler on the same address.

Short batches of all variants in shuffled order, so that a slow moment of the machine hits all alike; the
ratio is that of the medians.
"""

from __future__ import annotations

import ctypes
import random
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

import hwwatch

BATCH = 400  # hits
ROUNDS = 60
#: Ends the name of a variant that is like the one without it, on the other backend.
PTRACE = " (ptrace)"


def deep(depth: int, call: Callable[[], float]) -> float:
    """`call` under `depth` Python frames."""
    return call() if depth <= 1 else deep(depth - 1, call)


def variants(floor: Any, place: np.ndarray[Any, Any]) -> dict[str, Callable[[], float]]:
    """Name → a function that runs one batch and returns ns a hit."""
    data, code = place.ctypes.data, ctypes.cast(floor.floor_function, ctypes.c_void_p).value or 0
    landing = ctypes.cast(floor.floor_landing, ctypes.c_void_p).value or 0
    runs = {"w": floor.floor_store, "rw": floor.floor_load, "x": floor.floor_call}

    def bare(mode: str, signal: int) -> float:
        address = code if mode == "x" else data
        if floor.floor_open(address, 8, ord({"w": "w", "rw": "b", "x": "x"}[mode]), signal):
            raise SystemExit("perf_event_open refused: see `hwwatch doctor`")
        spent = float(runs[mode](data, BATCH))
        floor.floor_close()
        return spent

    def full(mode: str, frames: int, **options: Any) -> float:
        target = code if mode == "x" else place
        options = {"backend": "perf", **options}
        with hwwatch.watching(target, mode, stack=frames, kernel=False, **options) as watch:
            spent = deep(max(frames, 1), lambda: float(runs[mode](data, BATCH)))
            if watch.counted != BATCH:
                raise SystemExit(f"{watch.counted} of {BATCH} hits")
        hwwatch.clear()
        return spent

    return {
        "w: kernel counts only": lambda: bare("w", 0),
        "w: bare counting handler": lambda: bare("w", 1),
        "w: full record, no frames": lambda: full("w", 0),
        "w: full record, 16 frames": lambda: full("w", 16),
        "w: condition false": lambda: full("w", 16, when="hits < 0"),
        "w: condition true": lambda: full("w", 16, when="hits > 0"),
        "w: skip": lambda: full("w", 16, policy="skip"),
        "w: native function": lambda: full("w", 16, policy=floor.floor_policy),
        "rw: bare counting handler": lambda: bare("rw", 1),
        "rw: full record, 16 frames": lambda: full("rw", 16),
        "x: bare counting handler": lambda: bare("x", 1),
        "x: full record, 16 frames": lambda: full("x", 16),
        "x: skip": lambda: full("x", 16, policy="skip"),
        "x: Return": lambda: full("x", 16, policy=hwwatch.Return(42)),
        "x: Goto": lambda: full("x", 16, policy=hwwatch.Goto(landing)),
        "x: native function": lambda: full("x", 16, policy=floor.floor_policy),
        **{
            f"{mode}: full record, 16 frames{PTRACE}": lambda mode=mode: full(mode, 16, backend="ptrace")
            for mode in runs
        },
    }


def measure(floor: Any, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """One row a variant: median, minimum, maximum in µs a hit, the ratio to its bare handler.

    A variant on ptrace has the ratio to the same on perf, too: ``"to_perf"``.
    """
    place = np.zeros(1, np.uint64)
    runs = variants(floor, place)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for name in order:  # warm-up
        runs[name]()
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            spent[name].append(runs[name]() / 1000)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    return [
        {
            "what": name,
            "median": medians[name],
            "min": min(spent[name]),
            "max": max(spent[name]),
            "ratio": medians[name] / medians[f"{name.partition(':')[0]}: bare counting handler"],
            **({"to_perf": medians[name] / medians[name.removesuffix(PTRACE)]} if PTRACE in name else {}),
        }
        for name in runs
    ]
