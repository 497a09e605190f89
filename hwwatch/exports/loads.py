"""Exported timelines, read back."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hwwatch.attribution import ACCESSES
from hwwatch.columns import fitted
from hwwatch.errors import ExportError, TargetError
from hwwatch.exports import need_arrow
from hwwatch.exports.arrow import ATTRS
from hwwatch.exports.files import reason
from hwwatch.exports.values import DTYPE, VALUES, element_of, literal, value_of
from hwwatch.summaries import check, times
from hwwatch.timelines import ACTIONS, CONFIDENCES, ORIGINS, REGISTERS

#: Of the columns of a CSV file, all but `time`, `old` and `new`; the others are what a reader infers.
DTYPES = {
    "seq": "int64",
    **dict.fromkeys(("changed", "exact", "after_free"), "bool"),
    **dict.fromkeys(("nbytes", "tid", "pid"), "int64"),
    **dict.fromkeys(("address", "pc", *REGISTERS, "rflags"), "uint64"),
    **dict.fromkeys(("line", "column", "cell"), "Int64"),
}
_TEXT = ("watch", "access", "instruction", "confidence", "symbol", "module", "function", "file", "thread")
_CATEGORIES = (*_TEXT, "origin", "action")
_ORDER = {"access": ACCESSES, "confidence": CONFIDENCES, "origin": ORIGINS, "action": ACTIONS}
#: Columns in which an empty text is one, and no missing value.
_NEVER_MISSING = frozenset(_CATEGORIES) - {"function", "file"}
#: Later ones read floats exactly without being asked.
_EXACT: dict[str, Any] = (
    {"float_precision": "round_trip"} if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1) else {}
)
_ARGUMENT = re.compile(r"(arg|xmm)\d+")
_TRUTH = {"True": True, "False": False}
LOADED = (".csv", ".parquet", ".feather")


def load(path: str | os.PathLike[str]) -> pd.DataFrame:
    """A timeline that was exported; see `hwwatch.load`."""
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    if suffix not in LOADED:
        raise TargetError(
            f"{file} cannot be read back: its name ends in none of {', '.join(LOADED)}.", slug="suffix"
        )
    if "\0" in str(file):
        raise ExportError(f"cannot read {str(file)!r}: no file has such a name.")
    try:
        frame = _csv(file) if suffix == ".csv" else _arrow(file, suffix)
    except OSError as error:
        raise ExportError(f"cannot read {file}: {reason(error)}.") from error
    except (ValueError, pd.errors.ParserError) as error:
        raise ExportError(f"cannot read {file} as a timeline: {_first_line(error)}.") from error
    check(frame)
    return _with_objects(frame)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _csv(file: Path) -> pd.DataFrame:
    with open(file, encoding="utf-8", newline="") as text:
        names = next(csv.reader(text), [])
    dtypes: dict[Any, Any] = {name: dtype for name, dtype in DTYPES.items() if name in names}
    as_text = [*_CATEGORIES, "element", "stack", "time", *((*VALUES, DTYPE) if DTYPE in names else ())]
    dtypes |= {name: "str" for name in as_text if name in names}
    numbers = set(names) - set(dtypes)
    frame: pd.DataFrame = pd.read_csv(
        file,
        dtype=dtypes,
        keep_default_na=False,  # a function may be called "null"
        na_values={
            name: ["", "nan"] if name in numbers else [""] for name in names if name not in _NEVER_MISSING
        },
        **_EXACT,
    )
    for name in _CATEGORIES:
        if name in names:
            labels = frame[name].dropna().unique()
            frame[name] = frame[name].astype("category").cat.set_categories(list(labels))
    if "time" in names:
        frame["time"] = times(frame)
    return frame if "seq" not in names else frame.set_index("seq")


def _arrow(file: Path, suffix: str) -> pd.DataFrame:
    need_arrow(suffix)
    from pyarrow import feather, lib, parquet

    read = parquet.read_table if suffix == ".parquet" else feather.read_table
    with open(file, "rb") as stream:
        try:
            table = read(stream)
        except lib.ArrowException as error:
            raise ValueError(str(error)) from error
    frame: pd.DataFrame = table.to_pandas()
    kept = (table.schema.metadata or {}).get(ATTRS)
    frame.attrs = json.loads(kept) if kept else {}
    return frame


def _with_objects(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the objects that its texts stand for, and categories as a timeline has them."""
    for name in _CATEGORIES:
        if name in frame.columns:
            column = frame[name].astype("category")
            labels = list(_ORDER.get(name) or column.cat.categories)
            frame[name] = column.cat.set_categories(pd.Index(labels, dtype=None if labels else "object"))
    if DTYPE in frame.columns:
        kinds = frame.pop(DTYPE)
        for name, column in zip(VALUES, _values([frame[name] for name in VALUES], kinds), strict=True):
            frame[name] = column
    for name in frame.columns.tolist():
        if isinstance(frame[name].dtype, pd.StringDtype):
            frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    for name, read in (("element", element_of), ("stack", literal)):
        if name in frame.columns:
            items = [read(text) for text in frame[name]]
            frame[name] = pd.Series(_array(items), frame.index, dtype=object)
    for name in filter(_ARGUMENT.fullmatch, map(str, frame.columns)):
        if frame[name].dtype == object:
            frame[name] = pd.Series(
                _array([_number(item) for item in frame[name]]), frame.index, dtype=object
            )
    return frame


def _number(text: Any) -> Any:
    """The argument of a call that a text stands for."""
    if not isinstance(text, str):
        return text
    for kind in (_TRUTH.__getitem__, int, float):
        with contextlib.suppress(ValueError, KeyError):
            return kind(text)
    return text


def _values(columns: list[pd.Series[Any]], kinds: pd.Series[Any]) -> Any:
    """Texts as what they were: one dtype where all are of one that pandas has, else objects."""
    values = [[value_of(text, kind) for text, kind in zip(each, kinds, strict=True)] for each in columns]
    found = kinds.dropna().unique().tolist()
    if len(found) == 1 and not kinds.isna().any() and _has_column(found[0]):
        arrays = fitted([np.array(each, np.dtype(found[0])) for each in values])
    else:
        arrays = [_array(each) for each in values]
    return [pd.Series(a, kinds.index, dtype=object if a.dtype == object else None) for a in arrays]


# Of objects which NumPy would take apart, such as tuples.
def _array(items: list[Any]) -> Any:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def _has_column(kind: str) -> bool:
    if kind in ("bytes", "record", "array", "tuple", "str"):
        return False
    dtype = np.dtype(kind)
    return dtype.kind in "biufcmM" and dtype not in (np.float16, np.longdouble, np.clongdouble)
