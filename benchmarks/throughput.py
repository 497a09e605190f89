"""How many hits a second, what a million of them take to become a table or a file, what an import takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from batches import Row, interleave, median, row
from floors import Setting
from sessions import HERE

import hwwatch

TITLE = "Throughput, memory, import"
THREADS = (1, 2, 4)
BATCH = 2000  # hits of each thread
MILLION = 1_000_000
TIMELINE, FLOOR = "{} hits: timeline()", "{} hits: plain NumPy and pandas, all known"
IMPORTS = {
    "import hwwatch, beyond NumPy": "import numpy",
    "import hwwatch.sessions, beyond NumPy and pandas": "import numpy, pandas",
}
SPILL = """
import sys, time
import floors, numpy as np, hwwatch
from pathlib import Path
floor = floors.load(Path(sys.argv[1]))
hwwatch.storage(capacity=int(sys.argv[2]))
place = np.zeros(1)
watch = hwwatch.watch(place, kernel=False, stack=0)
count = int(sys.argv[3])
floor.floor_store(place.ctypes.data, 20000)
print(floor.floor_store(place.ctypes.data, count) / 1000)
assert watch.hits == watch.counted == count + 20000, watch
spilled = hwwatch.storage().spilled
assert (spilled > 0) == (int(sys.argv[2]) < count), spilled
"""


def together(floor: Any, place: Any, count: int) -> float:
    """Thousand hits a second of so many threads that write to one place."""
    gate = threading.Barrier(count + 1)

    def write() -> None:
        gate.wait()
        floor.floor_store(place.ctypes.data, BATCH)

    threads = [threading.Thread(target=write) for _ in range(count)]
    for thread in threads:
        thread.start()
    gate.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return count * BATCH / (time.perf_counter() - start) / 1000


def rates(setting: Setting) -> list[Row]:
    """By number of threads; ``"ratio"`` is to the bare handler."""
    place = np.zeros(1)
    floor = setting.floor

    def bare(count: int) -> float:
        import ctypes

        floor.floor_bare()
        floor.floor_arm(place.ctypes.data, (ctypes.c_int * 1)(threading.get_native_id()), 1)
        spent = together(floor, place, count)  # its threads inherit the event
        floor.floor_disarm()
        floor.floor_bare_close()
        return spent

    def full(count: int) -> float:
        with hwwatch.watching(place, kernel=False, backend="perf") as watch:
            spent = together(floor, place, count)
            if (watch.counted, watch.lost) != (count * BATCH, 0):
                raise SystemExit(f"{watch.counted} hits, {watch.lost} lost, of {count * BATCH}")
        hwwatch.unwatch(watch)
        hwwatch.clear()
        return spent

    names = {count: f"{count} thread{'s' * (count > 1)} writing" for count in THREADS}
    runs: dict[str, Callable[[], float]] = {}
    for count, name in names.items():
        runs[f"{name}: bare counting handler"] = partial(bare, count)
        runs[f"{name}: hwwatch"] = partial(full, count)
    rows = [row(name, "kHz", values) for name, values in interleave(runs, setting.rounds).items()]
    for one in rows:
        one["to"] = f"{one['what'].partition(':')[0]}: bare counting handler"
        one["ratio"] = one["median"] / (median(rows, one["to"]) or 1)
    return rows


def child(code: list[str], **environment: str) -> str:
    """What a Python process says."""
    surroundings = {**os.environ, "PYTHONPATH": str(HERE), **environment}
    done = subprocess.run([sys.executable, *code], capture_output=True, text=True, env=surroundings)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


def million(setting: Setting) -> list[Row]:
    """What `million.py` finds: times in one process, memory in another, where freed memory goes back to the
    system at once, which takes time."""
    count = MILLION // 20 if setting.quick else MILLION
    code = [str(HERE / "million.py"), str(setting.compiled), str(count)]
    found = json.loads(child([*code, "2" if setting.quick else "7"]))
    given_back = {f"MALLOC_{what}_THRESHOLD_": "262144" for what in ("MMAP", "TRIM")}
    peaks = json.loads(child([*code, "2"], **given_back))["costs"]
    hits = f"{count:_}".replace("_", " ")
    names = {
        "timeline": TIMELINE.format(hits),
        "floor": FLOOR.format(hits),
        "parquet": f"{hits} hits: export to Parquet",
        "csv": f"{hits} hits: export to CSV",
    }
    rows = []
    for key, name in names.items():
        seconds = [spent for spent, _ in found["costs"][key]]
        note = f"{found['sizes'][key]:.1f} MB file" if key in found["sizes"] else ""
        note = note or f"the frame itself: {found['frame MB']:.0f} MB"
        rows.append(row(name, "s", seconds, note=note))
        rows.append(row(f"{name}, peak memory on top", "MB", [peak for _, peak in peaks[key]]))
    for one, base in ((rows[0], rows[2]), (rows[1], rows[3])):
        one |= {"ratio": one["median"] / max(base["median"], 1e-9), "to": base["what"]}
    rows.append(row("bytes stored a hit, 1 frame, in a loop", "bytes", [found["bytes a hit"]]))
    return rows


def spilling(setting: Setting) -> list[Row]:
    """µs a hit where memory has room, and where hits go on in the file."""
    count = 20_000 if setting.quick else 100_000

    def run(capacity: int) -> float:
        return float(child(["-c", SPILL, str(setting.compiled), str(capacity), str(count)]))

    runs = {"a hit kept in memory": partial(run, 1 << 21), "a hit spilled to the file": partial(run, 8192)}
    spent = interleave(runs, 2 if setting.quick else 5, warm_up=False)
    rows = [row(name, "µs", values) for name, values in spent.items()]
    rows[1] |= {"ratio": rows[1]["median"] / rows[0]["median"], "to": rows[0]["what"]}
    return rows


def imports(setting: Setting) -> list[Row]:
    """ms, each in a process of its own."""

    def run(name: str) -> float:
        what = name.partition(",")[0]
        code = f"{IMPORTS[name]}, time; t = time.perf_counter(); {what}; print(time.perf_counter() - t)"
        return float(child(["-c", code])) * 1000

    spent = interleave({name: partial(run, name) for name in IMPORTS}, max(3, setting.rounds // 3))
    return [row(name, "ms", values) for name, values in spent.items()]


def measure(setting: Setting) -> list[Row]:
    """All of it."""
    return [*rates(setting), *million(setting), *spilling(setting), *imports(setting)]
