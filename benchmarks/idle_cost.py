"""What it costs to be armed and not hit: the same work with and without a watch somewhere else."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import outside
from batches import Row, Run, interleave, missing, row
from floors import Setting
from sessions import CORE, PeerError, Session

import hwwatch

TITLE = "Armed and not hit"
#: The last: a watch that is disarmed before the work begins, with all that it leaves in memory and kernel.
WAYS = ("unarmed", "bare breakpoint", "hwwatch", "hwwatch, disarmed")
LOOP = "pure Python loop, 10 000 times round"
ALIGNED, SKEWED = "NumPy add, on a cache line", "NumPy add, 16 bytes off a cache line"
MATRIX, SORT, THREAD, SWITCH = (
    "matrix product (BLAS)",
    "NumPy sort",
    "thread start",
    "a byte to a thread and back, 100 times",
)
#: Seconds. The kernel tidies up for some 30 ms after files and events were closed, on whatever core; where
#: cores are threads of one, as in many virtual machines, that makes the other slower by some per cent.
SETTLE = 0.05
COPIES = 3  # of the program that nobody watches: of two alike, one may be faster throughout
#: Peers that hold a program under a hardware watchpoint; each once, the better of free and pinned.
HELD = (outside.GDB_VALUES, outside.LLDB, outside.PTRACE_LOOP, outside.NO_RECORD, outside.FRIDA)


def aligned(count: int, offset: int) -> np.ndarray[Any, Any]:
    """Doubles that begin `offset` bytes behind a cache line."""
    raw = np.zeros(8 * count + 128, np.uint8)
    first = -raw.ctypes.data % 64 + offset
    return raw[first : first + 8 * count].view(np.float64)


def clocked(work: Callable[[], object], times: int) -> float:
    """ns of one of `times` calls, each with its small objects elsewhere, once the machine has settled."""
    settled = time.perf_counter() + SETTLE
    while time.perf_counter() < settled:
        pass
    spent = 0
    for _ in range(times):
        kept = shuffled()
        start = time.perf_counter_ns()
        work()
        spent += time.perf_counter_ns() - start
        del kept
    return spent / times


def shuffled() -> list[object]:
    """Objects in the way of the next ones: where these lie makes a loop up to a tenth faster or slower, and
    would be the same throughout for each way that is measured."""
    kept: list[object] = [[0] * (size % 16) for size in random.choices(range(64), k=random.randrange(256))]
    kept += [float(number) for number in range(random.randrange(256))]
    kept += [10**6 + number for number in range(random.randrange(256))]
    return random.sample(kept, len(kept) // 2)


def loop() -> None:
    """Ten thousand rounds of plain Python."""
    other = [0] * 16
    for i in range(10000):
        other[3] = i + 1


def start_thread() -> None:
    """One thread, from its start to its end."""
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def to_and_fro() -> None:
    """A byte to another thread and back, a hundred times: two switches each."""
    here, there = os.pipe(), os.pipe()

    def answer() -> None:
        while os.read(here[0], 1) == b"x":
            os.write(there[1], b"y")

    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(100):
        os.write(here[1], b"x")
        os.read(there[0], 1)
    os.write(here[1], b"-")
    thread.join()
    for end in (*here, *there):
        os.close(end)


def works() -> dict[str, tuple[Callable[[], object], int]]:
    """What is done, by name, and how often in a batch."""
    count = 1 << 15
    source = aligned(count, 0)
    source[:] = np.random.default_rng(7).random(count)
    level, skewed, space = aligned(count, 0), aligned(count, 16), aligned(count, 0)
    square = np.random.default_rng(8).random((192, 192))
    product = np.empty_like(square)

    def sort() -> None:
        space[:] = source
        space.sort()

    return {
        LOOP: (loop, 120),
        ALIGNED: (partial(np.add, source, 1.0, out=level), 300),
        SKEWED: (partial(np.add, source, 1.0, out=skewed), 300),
        SORT: (sort, 4),
        MATRIX: (partial(np.matmul, square, square, out=product), 4),
        THREAD: (start_thread, 20),
        SWITCH: (to_and_fro, 1),
    }


def work_of(name: str) -> str:
    """What is done, from the name of a variant."""
    return name.partition(":")[0]


def inside(floor: Any) -> dict[str, Run]:
    """Each work, not watched, under a bare breakpoint, and under a watch; ns."""
    place = np.zeros(64)

    def unarmed(work: Callable[[], object], times: int) -> float:
        return clocked(work, times)

    def bare(work: Callable[[], object], times: int) -> float:
        if floor.floor_open(place[8:].ctypes.data, 8, ord("w"), 1):
            raise SystemExit("perf_event_open refused: see `hwwatch doctor`")
        try:
            return clocked(work, times)
        finally:
            floor.floor_close()

    def watched(work: Callable[[], object], times: int) -> float:
        with hwwatch.watching(place[8:9], "w", kernel=False, backend="perf") as watch:
            spent = clocked(work, times)
            if watch.counted:
                raise SystemExit(f"{watch.counted} hits of a place that nobody touches")
        hwwatch.unwatch(watch)
        return spent

    def disarmed(work: Callable[[], object], times: int) -> float:
        with hwwatch.watching(place[8:9], "w", kernel=False, backend="perf") as watch:
            pass
        spent = clocked(work, times)
        hwwatch.unwatch(watch)
        return spent

    return {
        f"{name}: {way}": partial(run, work, times)
        for name, (work, times) in works().items()
        for way, run in zip(WAYS, (unarmed, bare, watched, disarmed), strict=True)
    }


def held(setting: Setting) -> tuple[dict[str, Session], list[Row]]:
    """Programs under a peer's watchpoint, and one that is not watched."""
    sessions: dict[str, Session] = {}
    rows: list[Row] = []
    for number, peer in enumerate(
        [outside.NOBODY] * COPIES + [*(one for one in outside.peers(setting.compiler) if one.name in HELD)]
    ):
        for where in ("free", "pinned"):
            try:
                sessions[f"{peer.name}\n{where}\n{number}"] = Session(
                    peer, setting.compiled, 2, where == "pinned"
                )
            except PeerError as error:
                if where == "free":
                    rows.append(missing(f"under {short(peer.name)}", str(error)))
    return sessions, rows


def measure(setting: Setting) -> list[Row]:
    """One row a work and way, µs, on one core; ``"ratio"``, to the same work unarmed, the rounds' median."""
    sessions, rows = held(setting)
    asked = {"idle": 20000, "thread": 20}
    outer = {
        f"{kind}\n{name}": partial(session.ask, kind, count)
        for name, session in sessions.items()
        for kind, count in asked.items()
    }
    cores = os.sched_getaffinity(0)
    try:
        # A thread that starts on another core takes longer, and which one it gets is chance.
        os.sched_setaffinity(0, {CORE})
        spent = interleave({**inside(setting.floor), **outer}, setting.rounds, group=work_of)
    finally:
        os.sched_setaffinity(0, cores)
        for session in sessions.values():
            with contextlib.suppress(PeerError):
                session.close()
    own = [row(name, "µs", [value / 1000 for value in spent[name]]) for name in spent if "\n" not in name]
    for one in own:
        one["to"] = f"{work_of(one['what'])}: {WAYS[0]}"
        one["ratio"] = statistics.median(
            mine / plain for mine, plain in zip(spent[one["what"]], spent[one["to"]], strict=True)
        )
    return own + theirs(spent) + rows


def short(peer: str) -> str:
    """Its name without what it records."""
    return peer.partition(",")[0].partition(":")[0]


def theirs(spent: dict[str, list[float]]) -> list[Row]:
    """The better of free and pinned of each peer, related to programs that nobody watches, placed alike."""
    pooled: dict[tuple[str, str, str], list[float]] = {}
    for key, values in spent.items():
        if "\n" in key:
            kind, name, where, _ = key.split("\n")
            pooled.setdefault((kind, name, where), []).extend(value / 1000 for value in values)
    rows: dict[tuple[str, str], Row] = {}
    for (kind, name, where), values in pooled.items():
        if name == outside.NOBODY.name:
            continue
        base = statistics.median(pooled[kind, outside.NOBODY.name, where])
        work = "round a Python loop" if kind == "idle" else THREAD
        one = row(f"{work}: under {short(name)}", "µs", values, at=where, also={})
        one |= {"ratio": one["median"] / base, "to": f"the same program, {where}, not watched"}
        other = rows.get((kind, name), one)
        best, rest = (one, other) if one["ratio"] < other["ratio"] else (other, one)
        rows[kind, name] = {**best, "also": {rest["at"]: rest["median"]} if rest is not best else {}}
    return list(rows.values())
