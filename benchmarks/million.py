"""Many hits, then what becomes of them: `million.py FLOOR_LIBRARY HITS ROUNDS` prints JSON.

The floor of `timeline()` is what plain NumPy and pandas take to make the same columns from the records, when
all that is to be found out (instructions, symbols, lines, names) is known beforehand.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import floors
import numpy as np
import pandas as pd

import hwwatch
from hwwatch import native
from hwwatch.columns import Columns
from hwwatch.records import RECORD


def memory(name: str) -> int:
    """Bytes: VmRSS, VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def cost(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and MB at the peak on top of what there was."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = memory("VmRSS"), time.perf_counter()
    result = work()
    spent, peak = time.perf_counter() - start, (memory("VmHWM") - before) / 1e6
    del result
    return spent, peak


class Known:
    """All that a row needs beyond its record, from an earlier timeline of the same hits."""

    def __init__(self, frame: pd.DataFrame, records: Any) -> None:
        self.records, self.frame = records, frame.iloc[:1]
        self.keys = {}
        for field, names in {
            "pc": ("instruction", "confidence", "symbol", "module", "access"),
            "stack": ("function", "file", "line", "column", "cell"),
            "tid": ("thread",),
            "watch": ("watch", "address", "nbytes", "element"),
            "action": ("action",),
        }.items():
            _, first = np.unique(records[field], return_index=True)
            self.keys[field] = names, frame.iloc[first][list(names)].reset_index(drop=True)

    def build(self) -> pd.DataFrame:
        """The same columns by plain NumPy and pandas."""
        records = self.records
        made: Columns = {}
        for field, (_, table) in self.keys.items():
            _, codes = np.unique(records[field], return_inverse=True)
            made |= {name: self.looked_up(table[name], codes) for name in table}
        value = self.frame["new"].dtype
        made["old"], made["new"] = (records[name].copy().view(value) for name in ("old_bytes", "new_bytes"))
        made["changed"] = records["old_bytes"] != records["new_bytes"]
        made["time"] = pd.DatetimeIndex(records["time"].astype(np.int64).view("M8[ns]")).tz_localize("UTC")
        made["pc"] = records["pc"].copy()
        made["tid"], made["pid"] = records["tid"].astype(np.int64), records["pid"].astype(np.int64)
        origin = self.frame["origin"].array.categories
        made["origin"] = pd.Categorical.from_codes((records["flags"] & 16 != 0).astype(np.int8), origin)
        made["exact"] = records["flags"] & 1 == 0
        index = pd.Index(np.arange(len(records)), name="seq")
        return pd.DataFrame({name: made[name] for name in self.frame.columns}, index=index, copy=False)

    def looked_up(self, column: pd.Series[Any], codes: Any) -> Any:
        if isinstance(column.dtype, pd.CategoricalDtype):
            return pd.Categorical.from_codes(column.cat.codes.to_numpy()[codes], column.cat.categories)
        return column.array[codes] if column.dtype != object else column.to_numpy()[codes]


def main() -> None:
    """Measure."""
    library, count, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    floor = floors.load(Path(library))
    place = np.zeros(4)
    shared = native.open_core()
    watch = hwwatch.watch(place[1:2], kernel=False)
    floor.floor_store(place[1:].ctypes.data, 1000)
    head, arena = shared.head, shared.arena_used
    start = time.perf_counter()
    floor.floor_store(place[1:].ctypes.data, count - 1000)
    spent = time.perf_counter() - start
    stored = (shared.head - head) * RECORD.itemsize + shared.arena_used - arena
    watch.disarm()
    assert (watch.counted, watch.lost) == (count, 0), watch
    frame = hwwatch.timeline()
    records = watch._session._ledger.ring().read().records
    known = Known(frame, records)
    plain = known.build()
    assert list(plain.columns) == list(frame.columns)
    assert (plain.dtypes == frame.dtypes).all(), (plain.dtypes, frame.dtypes)
    assert plain["new"].equals(frame["new"].set_axis(plain.index))
    figures: dict[str, Any] = {"frame MB": frame.memory_usage(deep=False).sum() / 1e6}
    del frame, plain
    works: dict[str, Callable[[], Any]] = {"timeline": hwwatch.timeline, "floor": known.build}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("parquet", "csv"):
            path = Path(folder, f"hits.{suffix}")
            works[suffix] = lambda path=path: hwwatch.export(path, overwrite=True)
        order = [name for name in works for _ in range(rounds if name in ("timeline", "floor") else 2)]
        random.shuffle(order)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
        for name in order:
            found[name].append(cost(works[name]))
        sizes = {path.suffix[1:]: path.stat().st_size / 1e6 for path in Path(folder).iterdir()}
    figures |= {"costs": found, "sizes": sizes, "bytes a hit": stored / (count - 1000)}
    print(json.dumps({**figures, "recording": spent / (count - 1000) * 1e6}))


if __name__ == "__main__":
    main()
