"""Columns: arrays of a timeline before they are a DataFrame, made of codes and raw bytes, and joined."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hwwatch.letters import encodable

#: Columns by name, in order; each an array.
Columns = dict[str, Any]

_NO_CHARACTER = 0xFFFD
#: Labels that are remembered.
_FEW = 256
_UNITS = [("s", 1), ("ms", 1), ("us", 1), ("ns", 1)]
_FINE = ("ps", "fs", "as")


def category(
    codes: NDArray[Any], labels: Sequence[str], every: Sequence[str] | None = None
) -> pd.Categorical:
    """Categorical of `labels[codes]`; code -1 is missing. Equal labels share one category.

    Names that are not UTF-8 become escaped text.
    """
    few = len(labels) + len(every or ()) < _FEW
    number = _numbered_before if few else _numbered
    renumber, categories = number(tuple(labels), None if every is None else tuple(every))
    return pd.Categorical.from_codes(renumber[codes], categories=categories.view())


def _numbered(labels: tuple[str, ...], every: tuple[str, ...] | None) -> tuple[NDArray[Any], pd.Index[Any]]:
    """The category of each label, at the end -1; and the categories."""
    labels = tuple(encodable(label) for label in labels)
    distinct = list(dict.fromkeys(labels if every is None else (encodable(label) for label in every)))
    number = {label: i for i, label in enumerate(distinct)}
    renumber = np.array([number[label] for label in labels] + [-1], np.min_scalar_type(-len(distinct) - 1))
    return renumber, pd.Index(distinct, dtype="object" if not distinct else None)


_numbered_before = lru_cache(maxsize=64)(_numbered)  # stretch after stretch has the same


def nullable(values: NDArray[np.int64], missing: NDArray[np.bool_]) -> Any:
    return pd.arrays.IntegerArray(np.where(missing, 0, values).astype(np.int64), missing.copy())


def is_wide(dtype: np.dtype[Any]) -> bool:
    # long double and complex long double: pandas has no columns of them
    return dtype in (np.float16, np.longdouble, np.clongdouble)


def decode(raw: NDArray[np.uint8], dtype: np.dtype[Any]) -> Any:
    """(n, 32) bytes → (n,) values of a plain dtype in native byte order."""
    values = np.ascontiguousarray(raw[:, : dtype.itemsize]).view(dtype).reshape(len(raw))
    if dtype.kind == "b":
        values = raw[:, 0] != 0  # a byte other than 0 and 1 is still true
    if dtype.kind in "mM" and np.datetime_data(dtype)[0] == "generic":
        return values.astype("i8")
    return values.astype(dtype.newbyteorder("="))


def has_unit(dtype: np.dtype[Any]) -> bool:
    """Whether pandas has columns of a dtype, if it is one of times: they are in s, ms, us or ns."""
    return dtype.kind not in "mM" or np.datetime_data(dtype) in _UNITS


def fitted(columns: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Times of one dtype as pandas has them; as objects, of the same unit, unless all fit exactly."""
    dtype = columns[0].dtype
    if has_unit(dtype):
        return list(columns)
    unit = np.datetime_data(dtype)[0]
    if unit not in _FINE and not (dtype.kind == "m" and unit in "YM"):  # those have no certain length
        other = np.dtype(f"{dtype.kind}8[{unit if (unit, 1) in _UNITS else 's'}]")
        # What overflows raises since NumPy 2.5, and comes back as something else before.
        with contextlib.suppress(OverflowError):
            out = [column.astype(other) for column in columns]
            if all(
                np.array_equal(a.astype(dtype).view("i8"), b.view("i8"))
                for a, b in zip(out, columns, strict=True)
            ):
                return out
    return [as_objects(column) for column in columns]


def as_objects(column: NDArray[Any]) -> NDArray[np.object_]:
    """NumPy scalars: `astype(object)` would make integers or datetimes of times."""
    out = np.empty(len(column), object)
    out[:] = list(column)
    return out


def objects(raw: NDArray[np.uint8], dtype: np.dtype[Any]) -> list[Any]:
    """(n, 32) bytes → n Python or NumPy scalars. In text, U+FFFD stands for what is no character."""
    if dtype.kind == "V" and dtype.names is None:
        return [bytes(row) for row in raw[:, : dtype.itemsize]]
    values = np.array(raw[:, : dtype.itemsize]).view(dtype).reshape(len(raw))
    _mend(values)
    if dtype.kind in "mM" and np.datetime_data(dtype)[0] == "generic":
        values = values.astype("i8")  # as in a column
    return list(values)


def _mend(values: NDArray[Any]) -> None:
    """Put U+FFFD where text has what is no code point: NumPy makes broken strings of it, or SystemError."""
    dtype = values.dtype
    for name in dtype.names or ():
        _mend(values[name])
    if dtype.kind == "U" and dtype.itemsize:
        points = np.array(values).view(np.dtype("u4").newbyteorder(dtype.byteorder))
        points[points > sys.maxunicode] = _NO_CHARACTER
        values[...] = points.view(dtype).reshape(values.shape)


def join(stretches: list[Columns]) -> Columns:
    """The columns of consecutive stretches as one; `stretches` is emptied on the way, column by column."""
    names = list(dict.fromkeys(name for columns in stretches for name in columns))
    lengths = [len(columns["seq"]) for columns in stretches]
    out: Columns = {}
    for name in names:
        pieces = [columns.pop(name, None) for columns in stretches]
        out[name] = _joined(
            [(piece, n) for piece, n in zip(pieces, lengths, strict=True) if n] or [(pieces[0], 0)]
        )
    stretches.clear()
    return out


def _joined(pieces: list[tuple[Any, int]]) -> Any:
    """One column of several, each with its length; None stands for a stretch that lacks it."""
    columns = [column for column, _ in pieces]
    first = columns[0]
    if len(columns) == 1 and first is not None:
        return first
    if all(isinstance(column, pd.Categorical) for column in columns):
        return one_category(columns)
    if all(column is not None and column.dtype == first.dtype for column in columns):
        if isinstance(first, np.ndarray):
            return np.concatenate(columns)
        return pd.concat([pd.Series(column) for column in columns], ignore_index=True).array
    out = np.empty(sum(length for _, length in pieces), object)
    at = 0
    for column, length in pieces:
        out[at : at + length] = None if column is None else list(column)
        at += length
    return out


def one_category(pieces: Sequence[pd.Categorical], number: dict[Any, int] | None = None) -> pd.Categorical:
    """Several categoricals one after the other; `number` is that of earlier categories, which come first."""
    first = pieces[0].categories
    if number is None and all(piece.categories.equals(first) for piece in pieces):
        return pd.Categorical.from_codes(np.concatenate([piece.codes for piece in pieces]), first)
    number = {} if number is None else number
    codes = []
    for piece in pieces:
        here = [number.setdefault(label, len(number)) for label in piece.categories]
        codes.append(np.array([*here, -1], np.int64)[piece.codes])
    return category(np.concatenate(codes), list(number), list(number))
