"""Timelines as traces for Perfetto and chrome://tracing.

The format is the "Trace Event Format" of Chrome: an object with a list of events, whose times are
microseconds. Threads are tracks, hits are instants on them with all columns as arguments, and each watched
number is a counter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import hwwatch
from hwwatch.displays import element_text
from hwwatch.exports.texts import json_value, listed
from hwwatch.summaries import after, check, times

_HEXADECIMAL = ("address", "pc")
_NOT_ARGUMENTS = ("time", "thread", "tid", "pid")
_SAFE = 2**53  # viewers read numbers as doubles


def write_trace(frames: Iterator[pd.DataFrame], path: Path) -> int:
    """One event a line. Returns the number of hits."""
    trace, rows = _Trace(), 0
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write('{"traceEvents": [')
        before = "\n"
        for frame in frames:
            rows += len(frame)
            for event in trace.events(frame):
                file.write(before + json.dumps(event, ensure_ascii=False, allow_nan=False))
                before = ",\n"
        ends = {"displayTimeUnit": "ns", "otherData": trace.about()}
        file.write(f"\n],\n{json.dumps(ends, ensure_ascii=False)[1:]}\n")
    return rows


class _Trace:
    def __init__(self) -> None:
        self._first: int | None = None
        self._named: set[tuple[str, int]] = set()

    def about(self) -> dict[str, str]:
        start = "no hits" if self._first is None else f"{np.datetime64(self._first, 'ns')}Z"
        return {"producer": f"hwwatch {hwwatch.__version__}", "ts 0 is": start}

    def events(self, frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
        """Of one piece: names of threads that are new, an instant for each hit, the value that it left."""
        check(frame)
        if not len(frame):
            return
        # A frame may lack any of the columns that a timeline need not have.
        when = times(frame).asi8 if "time" in frame.columns else np.asarray(frame.index, np.int64) * 1000
        first = int(when.min())
        self._first = first if self._first is None else self._first
        pids = frame["pid"].tolist() if "pid" in frame.columns else [1] * len(frame)
        tids = frame["tid"].tolist() if "tid" in frame.columns else [1] * len(frame)
        threads = listed(frame["thread"]) if "thread" in frame.columns else ["hits"] * len(frame)
        watches, accesses = listed(frame["watch"]), listed(frame["access"])
        elements = frame["element"].tolist() if "element" in frame.columns else [None] * len(frame)
        left = after(frame).tolist()
        names = [str(name) for name in frame.columns if name not in _NOT_ARGUMENTS]
        columns = [listed(frame[name]) for name in names]
        for name, column in zip(names, columns, strict=True):
            if name in _HEXADECIMAL:
                column[:] = [hex(item) if isinstance(item, int) else item for item in column]
        for seq, row in enumerate(zip(*columns, strict=True)):
            pid, tid = int(pids[seq]), int(tids[seq])
            yield from self._introduce(pid, tid, str(threads[seq]))
            ts = (int(when[seq]) - self._first) / 1000
            arguments = {"seq": json_value(frame.index[seq])}
            arguments |= {
                name: _safe(item) for name, item in zip(names, row, strict=True) if item is not None
            }
            yield {
                "name": f"{watches[seq]} {accesses[seq]}",
                "cat": str(accesses[seq]),
                "ph": "i",
                "s": "t",
                "ts": ts,
                "pid": pid,
                "tid": tid,
                "args": arguments,
            }
            value = _number(left[seq])
            if value is not None and accesses[seq] != "execute":
                element = elements[seq]
                place = "" if element is None or element != element else f" {element_text(element)}"
                yield {
                    "name": f"{watches[seq]}{place}",
                    "ph": "C",
                    "ts": ts,
                    "pid": pid,
                    "tid": tid,
                    "args": {"value": value},
                }

    def _introduce(self, pid: int, tid: int, thread: str) -> Iterator[dict[str, Any]]:
        for kind, number, name in (("process_name", pid, f"process {pid}"), ("thread_name", tid, thread)):
            if (kind, number) not in self._named:
                self._named.add((kind, number))
                yield {"name": kind, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": {"name": name}}


def _safe(item: Any) -> Any:
    return str(item) if isinstance(item, int) and not -_SAFE <= item <= _SAFE else item


def _number(value: Any) -> float | int | None:
    """What a counter can show; NaN and infinities it cannot. Times are numbers of their units."""
    if isinstance(value, np.datetime64 | np.timedelta64):
        return None if np.isnat(value) else int(value.astype(np.int64))
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, int | float) and math.isfinite(value) else None
