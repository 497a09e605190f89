"""Places in pandas Series, Index and DataFrame columns that NumPy memory stands behind.

pandas itself is not imported: its objects are known by their module. Only the NumPy buffer is
kept, never a Series: one more living Series would make the next assignment copy (copy on write).
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from hwwatch.errors import TargetError
from hwwatch.targets.arrays import axes_of, grid_of, grid_target
from hwwatch.targets.model import Target

_INDEXERS = {"_iLocIndexer": "iloc", "_LocIndexer": "loc", "_iAtIndexer": "iat", "_AtIndexer": "at"}
NOTE = "pandas copies on write: an assignment through pandas may move the values to a new, unwatched buffer"


def is_pandas(obj: object) -> bool:
    """Whether ``obj`` is a Series, Index, DataFrame, extension array or one of their indexers."""
    return type(obj).__module__.split(".")[0] == "pandas"


def values_of(obj: Any, what: str) -> np.ndarray[Any, Any]:
    """NumPy array that is the memory of a Series, Index or extension array, not a copy of it.

    Raises
    ------
    TargetError
        Arrow-backed, object, string, categorical or computed (RangeIndex) values.
    """
    kind = type(obj).__name__
    dtype = obj.dtype
    if kind == "RangeIndex":
        raise TargetError(f"cannot watch `{what}`: a RangeIndex is computed and has no memory.", slug="copy")
    # Masked dtypes (Int64) name a NumPy dtype too; Arrow's do so without having its memory.
    on_numpy = hasattr(dtype, "numpy_dtype") and not hasattr(dtype, "pyarrow_dtype")
    if not isinstance(dtype, np.dtype) and not on_numpy:
        raise TargetError(
            f"cannot watch `{what}`: its dtype {dtype} is not backed by a NumPy array.",
            hint='Use a NumPy dtype, such as `s.astype("float64")`.',
            slug="not-numpy",
        )
    values: np.ndarray[Any, Any] = obj.to_numpy(copy=False)
    again = obj.to_numpy(copy=False)
    if values.dtype.hasobject:
        raise TargetError(
            f"cannot watch `{what}`: {dtype} values are pointers to Python objects.",
            hint='Use a NumPy dtype, such as `s.astype("float64")`.',
            slug="object",
        )
    # Two copies would lie in two places.
    if values.size and not np.may_share_memory(values, again):
        raise TargetError(
            f"cannot watch `{what}`: pandas gives only copies of its {dtype} values.", slug="copy"
        )
    return values


def pandas_target(obj: Any, what: str, *, name: str | None = None) -> Target:
    """Target for all values of a Series, Index or extension array; elements are positions."""
    if not hasattr(obj, "to_numpy") or not hasattr(obj, "dtype"):
        raise TargetError(
            f"cannot watch `{what}`: a pandas {type(obj).__name__} is no single array.",
            hint="Watch a column's value: `hwwatch.locate('df[\"x\"].iloc[3]')`.",
        )
    values = values_of(obj, what)
    hint = "Watch one value or a short slice: `s.iloc[3:4]`."
    target = grid_target(grid_of(values), what, name=name, owner=values, note=NOTE, hint=hint)
    return replace(target, again=_again(obj, lambda same: pandas_target(same, what, name=name)))


def pandas_item(obj: Any, key: Any, what: str, *, name: str | None = None) -> Target:
    """Target for one value or a slice: ``s[k]``, ``s.iloc[3]``, ``s.loc["k"]``, ``df.at["k", "x"]``.

    Labels are looked up as pandas does it; elements are positions, with the column's number
    second where a DataFrame was indexed.

    Raises
    ------
    TargetError
        No such label, or a key that selects by list or mask (pandas copies).
    """
    indexer = _INDEXERS.get(type(obj).__name__, "")
    series = obj.obj if indexer else obj

    def find(same: Any) -> Target:
        return pandas_item(getattr(same, indexer) if indexer else same, key, what, name=name)

    return replace(_item(obj, series, indexer or "loc", key, what, name), again=_again(series, find))


def _item(obj: Any, series: Any, how: str, key: Any, what: str, name: str | None) -> Target:
    suffix: tuple[int, ...] = ()
    if series.ndim == 2:
        if not isinstance(key, tuple) or len(key) != 2:
            raise TargetError(
                f"cannot watch `{what}`: a row of a DataFrame is a copy.",
                hint='Name the column too: `df.iloc[3, 0]`, `df.loc["k", "x"]`.',
                slug="copy",
            )
        key, column = key
        number = column if how in ("iloc", "iat") else series.columns.get_loc(column)
        number = axes_of(number, (series.shape[1],), what)[0]
        if isinstance(number, range):
            raise TargetError(f"cannot watch `{what}`: choose one column.", hint="`df.iloc[3, 0]`.")
        series, suffix = series.iloc[:, number], (number,)
    if not hasattr(series, "index") and how == "loc":
        how = "iloc"  # Index and extension arrays have positions only
        obj = series
    values = values_of(series, what)
    if how in ("iloc", "iat"):
        position: Any = key
    elif isinstance(key, slice):
        part = obj[key] if not suffix else series.loc[key]
        return _slice_of(values, values_of(part, what), what, name, suffix)
    elif isinstance(key, list | np.ndarray) or is_pandas(key) or callable(key):
        raise TargetError(
            f"cannot watch `{what}`: a selection by {type(key).__name__} makes pandas copy the values.",
            hint="Use one label or position, or a slice.",
            slug="copy",
        )
    else:
        position = series.index.get_loc(key)
    axes = axes_of(position, values.shape, what)
    return grid_target(grid_of(values), what, name=name, owner=values, note=NOTE, axes=axes, suffix=suffix)


# Finds a place anew in a pandas object that is kept by a weak reference only.
def _again(obj: Any, find: Callable[[Any], Target]) -> Callable[[], Target] | None:
    try:
        weak = weakref.ref(obj)
    except TypeError:
        return None

    def again() -> Target:
        same = weak()
        if same is None:
            raise ReferenceError
        return find(same)

    return again


# A slice by label: pandas has found it, its address tells the positions.
def _slice_of(
    values: np.ndarray[Any, Any],
    part: np.ndarray[Any, Any],
    what: str,
    name: str | None,
    suffix: tuple[int, ...],
) -> Target:
    whole, piece = grid_of(values), grid_of(part)
    if part.size and not np.may_share_memory(values, part):
        raise TargetError(f"cannot watch `{what}`: pandas copies this selection.", slug="copy")
    start = (piece.address - whole.address) // whole.strides[0]
    step = operator.floordiv(piece.strides[0], whole.strides[0]) or 1
    axes = [range(start, start + step * len(part), step)]
    return grid_target(whole, what, name=name, owner=values, note=NOTE, axes=axes, suffix=suffix)
