"""Timelines as text: CSV, and JSON lines."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from hwwatch.exports.values import plain, value_text
from hwwatch.letters import encodable

#: Dtypes that every reader of CSV finds out by itself.
INFERRED = ("float64", "int64", "bool")
_EXACT = 2**53  # integers up to here are exact for readers that have doubles only


def write_csv(frames: Iterator[pd.DataFrame], path: Path) -> int:
    """A line a hit, below the columns' names; the first column is ``seq``. Returns the number of hits."""
    rows = 0
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(_Lines(file), lineterminator="\r\n")  # both are quoted where they are values
        for number, frame in enumerate(frames):
            shown = plain(frame, INFERRED)
            if number == 0:
                writer.writerow([_index_name(frame), *shown.columns])
            # Several times as fast as DataFrame.to_csv.
            writer.writerows(
                zip(frame.index.tolist(), *(_written(shown[name]) for name in shown.columns), strict=True)
            )
            rows += len(frame)
    return rows


class _Lines:
    """Ends the lines of `csv.writer` with a newline alone; it writes one at a time."""

    def __init__(self, file: TextIO) -> None:
        self._write = file.write

    def write(self, line: str) -> int:
        return self._write(f"{line[:-2]}\n")


def _written(column: pd.Series[Any]) -> list[Any]:
    """The items of a column for `csv.writer`: floats are read back as the same, None is nothing."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind == "f":
        floats: list[Any] = column.tolist()
        return floats
    return listed(column)


def _index_name(frame: pd.DataFrame) -> str:
    return str(frame.index.name or "index")


def write_json(frames: Iterator[pd.DataFrame], path: Path) -> int:
    """A JSON object a hit and line (JSON lines); its names are those of the columns."""
    rows = 0
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        for frame in frames:
            names = [_index_name(frame), *map(str, frame.columns)]
            columns = [frame.index.tolist(), *(listed(frame[name]) for name in frame.columns)]
            file.writelines(
                f"{json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, allow_nan=False)}\n"
                for row in zip(*columns, strict=True)
            )
            rows += len(frame)
    return rows


def listed(column: pd.Series[Any]) -> list[Any]:
    """The items of a column as JSON has them; times are ISO 8601, what is missing is None."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        labels = [*map(json_value, column.cat.categories), None]
        return [labels[code] for code in column.cat.codes]
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        utc = column.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("M8[ns]")
        return [f"{text}Z" for text in np.datetime_as_string(utc, unit="ns")]
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biu":
        items: list[Any] = column.tolist()
        return items
    if isinstance(column.dtype, pd.Int64Dtype):
        whole: list[Any] = column.astype(object).where(column.notna(), None).tolist()
        return whole
    return [json_value(item) for item in column.tolist()]


def json_value(value: Any) -> Any:
    """One value as JSON has it. NaN and infinities, which it has not, are text; so are bytes and times."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, np.complexfloating | np.datetime64 | np.timedelta64 | np.longdouble):
        return value_text(value)
    if isinstance(value, bytes):
        return repr(bytes(value))
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return value if isinstance(value, int) else encodable(str(value))
