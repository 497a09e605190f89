"""The rows of a timeline as arrays: when, by which line, by which thread, of which sort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwwatch.displays import place, shortened
from hwwatch.plots.scales import cut
from hwwatch.summaries import numbered, times

if TYPE_CHECKING:
    import pandas as pd

SORTS = ("write", "read", "execute", "skipped", "unknown")
WRITE, READ, EXECUTE, SKIPPED, UNKNOWN = range(len(SORTS))
_OF_ACCESS = {"write": WRITE, "readwrite": WRITE, "read": READ, "execute": EXECUTE}
_UNITS = ((3600.0, 7200.0, "h"), (60.0, 180.0, "min"), (1.0, 1.0, "s"), (1e-3, 1e-3, "ms"), (1e-6, 0.0, "µs"))
_MOST_LABEL = 34


@dataclass(frozen=True)
class Groups:
    """What hits have in common, such as the line that made them, in few groups.

    Attributes
    ----------
    codes : array of int, shape (n,)
        Of each hit.
    labels : tuple of str
    others : bool
        Whether the last group stands for all that found no place of their own.
    """

    codes: NDArray[np.int64]
    labels: tuple[str, ...]
    others: bool = False


@dataclass(frozen=True)
class Marks:
    """All hits of a picture.

    Attributes
    ----------
    x : array of float, shape (n,)
        Ascending.
    label : str
        Of the x axis.
    lines, threads : Groups
    sort : array of int
        Indices into `SORTS`.
    """

    x: NDArray[np.float64]
    label: str
    lines: Groups
    threads: Groups
    sort: NDArray[np.int64]

    def groups(self) -> NDArray[np.int64]:
        """A number for each combination of sort, line and thread; other lines come first."""
        lines = len(self.lines.labels)
        line = (self.lines.codes + self.lines.others) % lines
        return (self.sort * lines + line) * len(self.threads.labels) + self.threads.codes

    def take(self, rows: NDArray[np.int64]) -> Marks:
        """Some of them."""
        lines, threads = self.lines, self.threads
        return Marks(
            self.x[rows],
            self.label,
            Groups(lines.codes[rows], lines.labels, lines.others),
            Groups(threads.codes[rows], threads.labels, threads.others),
            self.sort[rows],
        )


def marks(frame: pd.DataFrame, x: str, most_lines: int, most_threads: int) -> Marks:
    """All rows of a timeline."""
    position, label = _positions(frame, x)
    return Marks(position, label, lines(frame, most_lines), threads(frame, most_threads), sorts(frame))


def sorts(frame: pd.DataFrame) -> NDArray[np.int64]:
    """The sort of each hit; an access that is unknown is a write where it changed the value."""
    access = frame["access"]
    changed = np.asarray(frame["changed"], bool) if "changed" in frame.columns else np.zeros(len(frame), bool)
    found = np.full(len(frame), UNKNOWN, np.int64)
    found[changed] = WRITE
    for name, number in _OF_ACCESS.items():
        found[np.asarray(access == name)] = number
    if "action" in frame.columns:
        action = frame["action"]
        found[np.asarray(action == "skipped")] = SKIPPED
        # The function never ran; a store from which the thread was sent on did take place.
        found[np.asarray(action.isin(("returned", "jumped"))) & (found == EXECUTE)] = SKIPPED
    return found


def lines(frame: pd.DataFrame, most: int) -> Groups:
    """By Python line; by native function where no Python ran on the thread."""
    groups = numbered(frame, ["file", "line", "exact"])
    if "symbol" in frame.columns:
        native = np.asarray(frame["file"].isna()) if "file" in frame.columns else np.ones(len(frame), bool)
        if "exact" in frame.columns:
            native = native & np.asarray(frame["exact"], bool)
        symbols = _symbols(frame)
        groups = groups * (symbols.max(initial=0) + 2) + np.where(native, symbols + 1, 0)
    heads, codes = renumbered(groups)
    wanted = [n for n in ("file", "line", "cell", "function", "symbol", "exact") if n in frame.columns]
    rows = _records(frame.iloc[heads], wanted)
    short = shortened(row["file"] for row in rows if isinstance(row.get("file"), str))
    return fewer(codes, [_line_label(row, short) for row in rows], most, "other lines")


def _records(rows: pd.DataFrame, names: list[str]) -> list[dict[Any, Any]]:
    # Of no columns, pandas 2 has no records.
    return rows[names].to_dict("records") if names else [{} for _ in range(len(rows))]


def _symbols(frame: pd.DataFrame) -> NDArray[np.int64]:
    """Numbers of the native functions, wherever in them the hits were."""
    import pandas as pd

    codes, names = pd.factorize(frame["symbol"])
    number: dict[str, int] = {}
    function = [number.setdefault(str(name).partition("+")[0], len(number)) for name in names]
    return np.array([*function, -1], np.int64)[codes]


def _line_label(row: dict[Any, Any], short: dict[str, str]) -> str:
    text = place(row, short)
    function, symbol = row.get("function"), row.get("symbol")
    if isinstance(row.get("file"), str):
        if isinstance(function, str) and function and not function.startswith("<"):
            text += f" {function.rpartition('.')[2]}"
    elif row.get("exact", True) and isinstance(symbol, str) and symbol:
        text = f"{symbol.partition('+')[0]}, no Python"
    return cut(text, _MOST_LABEL)


def threads(frame: pd.DataFrame, most: int) -> Groups:
    """By thread and process."""
    heads, codes = renumbered(numbered(frame, ["thread", "tid", "pid"]))
    names = [n for n in ("thread", "tid", "pid") if n in frame.columns]
    labels = []
    for row in _records(frame.iloc[heads], names):
        name = row.get("thread")
        labels.append(str(name) if isinstance(name, str) else f"thread {row.get('tid', '?')}")
    repeated = {label for label in labels if labels.count(label) > 1}
    if repeated and "tid" in names:
        tids = frame["tid"].iloc[heads].tolist()
        labels = [f"{t} ({tid})" if t in repeated else t for t, tid in zip(labels, tids, strict=True)]
    return fewer(codes, [cut(label, _MOST_LABEL) for label in labels], most, "other threads")


def renumbered(groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row of each group in order of appearance, and the groups numbered in that order."""
    import pandas as pd

    codes = pd.factorize(groups)[0].astype(np.int64)
    heads = np.unique(codes, return_index=True)[1]
    return heads, codes


def fewer(codes: NDArray[np.int64], labels: Sequence[str], most: int, others: str) -> Groups:
    """Those with the most hits keep a group of their own; all others share the last one."""
    if len(labels) <= most:
        return Groups(codes, tuple(labels))
    counts = np.bincount(codes, minlength=len(labels))
    kept = np.sort(np.argsort(-counts, kind="stable")[: most - 1])
    renumber = np.full(len(labels), len(kept), np.int64)
    renumber[kept] = np.arange(len(kept))
    rest = len(labels) - len(kept)
    return Groups(renumber[codes], (*(labels[i] for i in kept), f"{rest} {others}"), True)


def _positions(frame: pd.DataFrame, x: str) -> tuple[NDArray[np.float64], str]:
    if x == "seq" or "time" not in frame.columns:
        if frame.index.name == "seq" and frame.index.dtype.kind in "iu":
            return np.asarray(frame.index, np.float64), "number of the hit (seq)"
        return np.arange(len(frame), dtype=np.float64), "number of the hit"
    when = times(frame)
    if not len(when):
        return np.zeros(0), "time"
    # Threads write their records in an order that may differ by microseconds from that of their clocks.
    ns = np.maximum.accumulate(when.asi8)
    seconds = (ns - ns[0]) / 1e9
    size, _, unit = next(found for found in _UNITS if seconds[-1] >= found[1])
    begin = when[0].strftime("%Y-%m-%d %H:%M:%S.%f")
    return seconds / size, f"time since the first hit ({unit})\n0 is {begin} UTC"
