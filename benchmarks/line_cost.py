"""The ways to watch that work line by line inside Python, against hwwatch: what a line costs that hits, and
what one costs that does not."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from batches import Row, interleave, median, missing, row
from floors import Setting
from sessions import HERE, PeerError, Process

TITLE = "Line by line: two lines of Python round a loop"
HITS, IDLE = 200, 20000  # rounds of the loop in a batch
PLAIN, HWWATCH, SETTRACE, WATCHPOINTS = "not watched", "hwwatch", "sys.settrace", "watchpoints (PyPI)"
MONITORING = "sys.monitoring"


def later_python() -> str:
    """A Python that has sys.monitoring."""
    if sys.version_info >= (3, 12):
        return sys.executable
    places = [shutil.which(f"python3.{minor}") for minor in range(15, 11, -1)]
    beside = Path(sys.executable).resolve().parents[2]
    places += [str(path) for minor in (14, 13, 12) for path in beside.glob(f"3.{minor}*/bin/python3.{minor}")]
    for place in filter(None, places):
        tried = subprocess.run([place, "-c", "import sys; sys.monitoring"], capture_output=True)
        if tried.returncode == 0:
            return os.path.realpath(place)
    raise PeerError("needs Python 3.12 or later")


class Loop:
    """A child process that runs the loop under one way of watching."""

    def __init__(self, way: str, python: str) -> None:
        self.way = way
        self.process = Process([python, str(HERE / "lined.py"), way], None)
        self.process.wait_for("READY")

    def batch(self, kind: str, count: int) -> float:
        """ns round the loop."""
        self.process.tell(f"{kind} {count}\n")
        answer = self.process.line()
        if answer is None:
            raise PeerError(f"{self.way} ended: {self.process.last()}")
        spent, hits = json.loads(answer)
        if self.way != "none" and hits != (count if kind == "hit" else 0):
            raise PeerError(f"{self.way} saw {hits} hits of {kind} {count}")
        return float(spent) * 1e9


def start(name: str, way: str, python: Callable[[], str]) -> Loop | Row:
    """The loop, else a row that says why not."""
    if way == "watchpoints" and importlib.util.find_spec(way) is None:
        return missing(name, "not installed (pip install 'hwwatch[bench]')")
    try:
        loop = Loop(way, python())
        loop.batch("hit", HITS)  # nothing written yet: the first is 1
        return loop
    except PeerError as error:
        return missing(name, str(error))


def measure(setting: Setting) -> list[Row]:
    """Two rows a way: ns round the loop, with and without a hit; ratios are to the loop not watched by the
    same Python, and ``"to_hwwatch"`` compares the time itself, or what is added to it, with hwwatch's."""
    here = partial(str, sys.executable)
    loops = {
        PLAIN: start(PLAIN, "none", here),
        HWWATCH: start(HWWATCH, "hwwatch", here),
        SETTRACE: start(SETTRACE, "settrace", here),
        WATCHPOINTS: start(WATCHPOINTS, "watchpoints", here),
        MONITORING: start(MONITORING, "monitoring", later_python),
    }
    bases = dict.fromkeys(loops, PLAIN)
    other = loops[MONITORING]
    if isinstance(other, Loop) and sys.version_info < (3, 12):
        bases[MONITORING] = f"{PLAIN}, by the Python of {MONITORING}"
        loops[bases[MONITORING]] = start(bases[MONITORING], "none", later_python)
    running = {name: loop for name, loop in loops.items() if isinstance(loop, Loop)}
    sizes = {"hit": HITS, "idle": IDLE}
    runs = {
        f"{kind}: {name}": partial(loop.batch, kind, count)
        for name, loop in running.items()
        for kind, count in sizes.items()
    }
    try:
        spent = interleave(runs, setting.rounds)
    finally:
        for loop in running.values():
            with contextlib.suppress(PeerError):
                loop.process.finish()
    rows = [row(name, "ns", values) for name, values in spent.items()]
    for one in rows:
        kind, _, name = one["what"].partition(": ")
        one["to"] = f"{kind}: {bases.get(name, name)}"
        one["ratio"] = one["median"] / (median(rows, one["to"]) or 1)
        if own := median(rows, f"{kind}: {HWWATCH}"):
            one["to_hwwatch"] = one["median"] / own
    return [*rows, *(loop for loop in loops.values() if not isinstance(loop, Loop)), *crossing(rows)]


def crossing(rows: list[Row]) -> list[Row]:
    """From which share of executed lines that hit sys.settrace is the cheaper one: a calculation."""
    plain, traced = (median(rows, f"idle: {name}") for name in (PLAIN, SETTRACE))
    bare, hit = (median(rows, f"hit: {name}") for name in (PLAIN, HWWATCH))
    if None in (plain, traced, bare, hit):
        return []
    lines = (hit - bare) / ((traced - plain) / 2)  # type: ignore[operator]  # two lines a round
    return [{"what": "sys.settrace is cheaper once one line hits in", "unit": "lines", "median": lines}]
