"""Columns that a file format has no type for, as text, and back again."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hwwatch.letters import SINCE, encodable, time_text

#: The column that says of which NumPy dtype `old` and `new` of each row are, where the file itself does not.
DTYPE = "dtype"
VALUES = ("old", "new")

_NAT = -(2**63)
_COMPLEX = re.compile(r"(.*[^e])([+-](?:nan|inf|[\d.]+(?:e[+-]?\d+)?))j")
_NAMES = {"nan": float("nan"), "inf": float("inf")}


def plain(frame: pd.DataFrame, native: Sequence[str]) -> pd.DataFrame:
    """A timeline without objects: what is in object columns becomes text.

    Parameters
    ----------
    frame : DataFrame
    native : sequence of str
        Dtypes, or kinds of them, that `old` and `new` may keep. Others become text, and a column ``dtype``
        comes after them that says what they were; it is empty for hits that have no values.
    """
    out = frame.copy(deep=False)
    values = [name for name in VALUES if name in frame.columns]
    if any(str(frame[name].dtype) not in native and frame[name].dtype.kind not in native for name in values):
        kinds: list[str | None] = [None] * len(frame)
        for name in values:
            items = list(frame[name].to_numpy())  # of objects, or all of one dtype
            kinds = [kind or kind_of(item) for kind, item in zip(kinds, items, strict=True)]
            out[name] = pd.Series([value_text(item) for item in items], frame.index, dtype=object)
        place = out.columns.tolist().index(values[-1]) + 1
        out.insert(place, DTYPE, pd.Series(kinds, frame.index, dtype=object))
    for column in frame.columns:
        if column not in values and is_objects(frame[column].dtype):
            out[column] = pd.Series(_texts(frame[column].tolist()), frame.index, dtype=object)
    return out


def _texts(items: list[Any]) -> list[str | None]:
    """Texts of a column of objects, of which many are often equal."""
    known: dict[Any, str | None] = {}
    out = []
    for item in items:
        if not isinstance(item, tuple):  # others may be equal and look different, as 1 and True do
            out.append(_text(item))
        elif item in known:
            out.append(known[item])
        else:
            out.append(known.setdefault(item, _text(item)))
    return out


def is_objects(dtype: Any) -> bool:
    """Whether a column holds Python objects."""
    return isinstance(dtype, np.dtype) and dtype.kind == "O"


def _text(item: Any) -> str | None:
    if item is None or item is pd.NA or (isinstance(item, float) and item != item):
        return None
    return encodable(str(item))


def kind_of(value: Any) -> str | None:
    """Of which dtype a value of the columns old and new is; None for no value."""
    if value is None:
        return None
    if isinstance(value, np.generic):
        return str(value.dtype) if value.dtype.kind != "V" or value.dtype.names is None else "record"
    if isinstance(value, np.ndarray):
        return "array"
    return type(value).__name__


def value_text(value: Any) -> str | None:
    """A value as text that people read, and `value_of` reads exactly."""
    if value is None:
        return None
    if isinstance(value, np.complexfloating):
        imaginary = str(value.imag)
        sign = "" if imaginary.startswith(("-", "+")) else "+"
        return f"{value.real}{sign}{imaginary}j"
    if isinstance(value, np.timedelta64):
        return "NaT" if np.isnat(value) else str(value.astype(np.int64))
    if isinstance(value, np.datetime64):
        return time_text(value)
    if isinstance(value, np.bytes_ | np.void):
        try:
            return repr(value.item())
        except OverflowError:  # a time far from now in it, since NumPy 2.5
            return repr(value.tobytes())
    return encodable(str(value))


def value_of(text: Any, kind: Any) -> Any:
    """The value of a text that `value_text` made of one of this kind; records are tuples then."""
    if not isinstance(kind, str):
        return None
    text = text if isinstance(text, str) else ""  # of CSV, where no text and none are the same
    if kind in ("bytes", "record", "array", "tuple"):
        return literal(text)
    if kind == "str":
        return text
    dtype = np.dtype(kind)
    match dtype.kind:
        case "b":
            return np.bool_(text == "True")
        case "S":
            return np.bytes_(literal(text))
        case "m":
            return np.array(_NAT if text == "NaT" else int(text), np.int64).view(dtype)[()]
        case "M" if text.endswith(SINCE):
            return np.array(int(text.removesuffix(SINCE)), np.int64).view(dtype)[()]
        case "M":
            return np.array(text, dtype)[()]
        case "c":
            return _complex(text, dtype)
    return dtype.type(text)


def _complex(text: str, dtype: np.dtype[Any]) -> Any:
    parts = _COMPLEX.fullmatch(text)
    if parts is None:
        raise ValueError(f"{text!r} is no complex number")
    value = np.zeros((), dtype)
    value.real, value.imag = (value.real.dtype.type(part) for part in parts.groups())
    return value[()]


class _Numbers(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(_NAMES[node.id]) if node.id in _NAMES else node


def literal(text: str) -> Any:
    """What a Python literal stands for, in which ``nan`` and ``inf`` may occur; nothing is evaluated."""
    return ast.literal_eval(_Numbers().visit(ast.parse(text, mode="eval")))


def element_of(text: Any) -> Any:
    """An element of its text: an index is a tuple, a field has a name."""
    if not isinstance(text, str):
        return None
    return literal(text) if text.startswith("(") else text
