"""A timeline in few rows: hits by line, by instruction, or by any columns; a watch's value over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwwatch.errors import FrameError, TargetError
from hwwatch.letters import encodable

if TYPE_CHECKING:
    import pandas as pd

#: Without these a frame is no timeline; a timeline whose other columns were dropped still is one.
NEEDED = ("watch", "access", "old", "new")
LINE = ("file", "line", "function", "cell")
INSTRUCTION = ("instruction", "confidence", "symbol", "module")
_READS, _WRITES = ("read", "readwrite"), ("write", "readwrite")
_MOST_NAMES = 12


def check(frame: pd.DataFrame) -> None:
    """Refuse what is no timeline.

    Raises
    ------
    FrameError
        One of the columns ``watch``, ``access``, ``old``, ``new`` is missing.
    """
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise FrameError(
            f"this DataFrame is no timeline: it lacks the column{'s' if len(missing) > 1 else ''} "
            f"{', '.join(missing)}.",
            hint="`hwwatch.timeline()` makes one; filter its rows, and keep these columns.",
        )


def numbered(frame: pd.DataFrame, keys: Sequence[str]) -> NDArray[np.int64]:
    """For each row the number of its group, counted from 0 in order of appearance.

    Rows are of one group where all `keys` are equal; missing values are equal, as are missing columns.
    """
    import pandas as pd

    groups = np.zeros(len(frame), np.int64)
    for key in keys:
        if key in frame.columns:
            codes, distinct = pd.factorize(_plain(frame[key]))
            groups = pd.factorize(groups * (len(distinct) + 1) + codes + 1)[0].astype(np.int64)
    return groups


def _plain(column: pd.Series[Any]) -> Any:
    """An array: of objects, pandas would make an index of several levels where all are tuples."""
    return column.to_numpy() if column.dtype == object else column


def records(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    """A dict a row, as `DataFrame.to_dict` makes them, also of times that pandas has not."""
    columns = [
        [_native(item) for item in column.to_numpy()] if column.dtype == object else column.tolist()
        for _, column in frame.items()
    ]
    names = list(frame.columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _native(item: Any) -> Any:
    return item.item() if isinstance(item, np.generic) and item.dtype.kind in "biufc" else item


def times(frame: pd.DataFrame) -> pd.DatetimeIndex:
    """When each hit was, also in a frame that was read from CSV, where times are text."""
    import pandas as pd

    when = frame["time"]
    text: dict[str, Any] = {} if when.dtype.kind == "M" else {"format": "ISO8601"}  # CSV drops .000
    return pd.DatetimeIndex(pd.to_datetime(when, utc=True, **text)).as_unit("ns")


def grouped(frame: pd.DataFrame, keys: Sequence[str], *, also: Sequence[str] = ()) -> pd.DataFrame:
    """Hits with equal `keys` as one row.

    Parameters
    ----------
    frame : DataFrame
        A timeline, or some rows and columns of one.
    keys : sequence of str
        Columns; those that the frame lacks are left out.
    also : sequence of str
        Columns of which the first hit's value is wanted.

    Returns
    -------
    DataFrame
        A row for each group, in order of its first hit. The keys; ``hits``; ``reads``, ``writes``,
        ``changed``, ``skipped``: how many of the hits are that (a ``readwrite`` is both); ``watches``,
        ``elements``, ``threads``: tuples of those that occur, in order of appearance; ``first``, ``last``:
        times of the first and last hit; ``old``: the value before the first hit, ``new``: that of the last
        hit, each a tuple of one value for each place where the group touched several.
    """
    import pandas as pd

    groups = numbered(frame, keys)
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups) if len(groups) else np.zeros(0, np.int64)
    ends = np.cumsum(sizes)
    heads, tails = order[ends - sizes], order[ends - 1]
    out: dict[str, Any] = {}
    for key in (*keys, *also):
        if key in frame.columns:
            out[key] = frame[key].iloc[heads].array
            if key in ("line", "cell"):  # CSV has floats
                out[key] = pd.array(out[key], dtype="Int64")

    def count(rows: Any) -> Any:
        return np.bincount(groups, np.asarray(rows, np.float64), len(sizes)).astype(np.int64)

    access = frame["access"]
    out |= {"hits": sizes, "reads": count(access.isin(_READS)), "writes": count(access.isin(_WRITES))}
    if "changed" in frame.columns:
        out["changed"] = count(frame["changed"])
    if "action" in frame.columns:
        out["skipped"] = count(frame["action"] == "skipped")
    for name, key in (("watches", "watch"), ("elements", "element"), ("threads", "thread")):
        if key in frame.columns:
            out[name] = _occurring(frame[key], groups, len(sizes))
    if "time" in frame.columns:
        when = times(frame)
        out |= {"first": when[heads], "last": when[tails]}
    out["old"], out["new"] = _values(frame, groups, len(sizes))
    return pd.DataFrame(
        {
            name: pd.Series(column, dtype=object) if isinstance(column, list) else column
            for name, column in out.items()
        }
    )


def _occurring(column: pd.Series[Any], groups: NDArray[np.int64], count: int) -> list[Any]:
    """For each group the tuple of its distinct values; missing ones do not count."""
    import pandas as pd

    codes, distinct = pd.factorize(_plain(column))
    pairs = pd.unique(groups[codes >= 0] * max(1, len(distinct)) + codes[codes >= 0])
    found: list[list[Any]] = [[] for _ in range(count)]
    labels = list(distinct)
    for pair in pairs.tolist():
        found[pair // len(labels)].append(labels[pair % len(labels)])
    return [tuple(items) for items in found]


def _values(frame: pd.DataFrame, groups: NDArray[np.int64], count: int) -> tuple[list[Any], list[Any]]:
    """For each group the value before its first hit and that of its last, by place; code has no values."""
    import pandas as pd

    rows = np.flatnonzero(np.asarray(frame["access"] != "execute"))
    data = frame.iloc[rows]
    places = numbered(data, ["watch", "element"])
    both = groups[rows] * (places.max(initial=0) + 1) + places
    first, last = ~pd.Series(both).duplicated(), ~pd.Series(both).duplicated(keep="last")
    last_of = dict(zip(both[last].tolist(), data["new"].array[np.flatnonzero(last)], strict=True))
    old: list[list[Any]] = [[] for _ in range(count)]
    new: list[list[Any]] = [[] for _ in range(count)]
    heads = np.flatnonzero(first)
    for group, place, value in zip(
        groups[rows][heads].tolist(), both[heads].tolist(), data["old"].array[heads], strict=True
    ):
        old[group].append(value)
        new[group].append(last_of[place])
    return _single(old), _single(new)


def _single(values: list[list[Any]]) -> list[Any]:
    return [tuple(items) if len(items) > 1 else (items[0] if items else None) for items in values]


def by_line(frame: pd.DataFrame) -> pd.DataFrame:
    """Hits by the Python line that made them, those with most hits first; columns as `grouped` has them.

    The keys are ``file``, ``line``, ``function``, ``cell``. Hits of threads without Python are one row, and
    those told late, whose line is unknown, another; all four keys are missing in them, and ``exact`` tells
    which is which.
    """
    found = grouped(frame, (*LINE, "exact"))
    return found.sort_values("hits", ascending=False, kind="stable", ignore_index=True)


def by_instruction(frame: pd.DataFrame) -> pd.DataFrame:
    """Hits by machine instruction, those with most hits first; columns as `grouped` has them.

    The keys are ``instruction``, ``confidence``, ``symbol``, ``module``.
    """
    missing = [name for name in INSTRUCTION if name not in frame.columns]
    if len(missing) == len(INSTRUCTION):
        raise FrameError(f"this timeline has none of the columns {', '.join(INSTRUCTION)}.")
    found = grouped(frame, INSTRUCTION)
    return found.sort_values("hits", ascending=False, kind="stable", ignore_index=True)


def values(frame: pd.DataFrame, watch: Any = None) -> pd.Series[Any]:
    """The value of a watch over time, as each of its hits left it.

    Parameters
    ----------
    frame : DataFrame
        A timeline, or some rows of one.
    watch : Watch, int or str
        By object, id or name; may be left out where the frame has only one.

    Returns
    -------
    Series
        An entry for each hit, in order of recording, under the watch's name; its own dtype where all values
        are of one. The index is ``time``, and (``element``, ``time``) where the watch holds several values.
        After a skipped write the value is the old one. An execute watch has no values: the Series is empty.

    Raises
    ------
    TargetError
        The frame has no such watch, or several and none was named.
    """
    import pandas as pd

    name = _name(frame, watch)
    rows = frame[np.asarray((frame["watch"] == name) & (frame["access"] != "execute"))]
    held = after(rows)
    kinds = set(map(type, held)) if held.dtype == object else set()
    if (
        len(kinds) == 1
        and issubclass(kind := kinds.pop(), np.number | np.bool_)
        and kind not in (np.float16, np.timedelta64)
    ):
        held = pd.Series(np.array(held.tolist(), np.dtype(kind)))
    index: Any = times(rows) if "time" in rows.columns else rows.index
    if "element" in rows.columns and rows["element"].notna().any():
        index = pd.MultiIndex.from_arrays([rows["element"].array, index], names=["element", "time"])
    else:
        index = index.rename("time" if "time" in rows.columns else rows.index.name)
    return pd.Series(held.array, index, name=name, dtype=held.dtype)


def after(frame: pd.DataFrame) -> pd.Series[Any]:
    """What each hit left in memory: ``new``, and ``old`` where the write was skipped."""
    if "action" not in frame.columns:
        return frame["new"]
    return frame["new"].where(np.asarray(frame["action"] != "skipped"), frame["old"])


def _name(frame: pd.DataFrame, watch: Any) -> str:
    names = [str(name) for name in frame["watch"].dropna().unique()]
    known = {w["id"]: w["name"] for w in coverage_of(frame).get("watches", ())}
    if watch is None and len(names) == 1:
        return names[0]
    column = frame["watch"]
    possible = {*names, *known.values(), *(column.cat.categories if hasattr(column, "cat") else ())}
    # A name comes before an id; a watch may have been renamed since.
    wanted, number = getattr(watch, "name", watch), getattr(watch, "id", watch)
    if isinstance(wanted, str):
        wanted = encodable(wanted)
        if wanted in possible:
            return wanted
        found = [name for known_id, name in known.items() if str(known_id) == str(number)]
    else:
        is_number = isinstance(number, int | np.integer) and not isinstance(number, bool)
        found = [known[number]] if is_number and number in known else []
    if found:
        return str(found[0])
    shown = ", ".join(names[:_MOST_NAMES]) + (" …" if len(names) > _MOST_NAMES else "") or "none"
    if watch is None:
        raise TargetError(
            f"which watch? This timeline has {len(names)}: {shown}.",
            hint="Name one, as in `.values('a[3]')`.",
            slug="no-watch",
        )
    raise TargetError(f"this timeline has no watch {wanted!r}; it has: {shown}.", slug="no-watch")


def coverage_of(frame: pd.DataFrame) -> dict[str, Any]:
    """What the frame says of its coverage; empty where it says nothing."""
    attrs = frame.attrs.get("hwwatch")
    found = attrs.get("coverage") if isinstance(attrs, dict) else None
    return found if isinstance(found, dict) else {}
