"""HTML and plain text for people: watch lists, results of a `%%watch` cell, coverage."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from hwwatch.coverages import Coverage
    from hwwatch.watchpoints import Watch


def table_html(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """A plain HTML table; everything is escaped."""
    top = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    cells = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{top}<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def watches_html(watches: Sequence[Watch]) -> str:
    """Watches, one a row."""
    head = ("id", "name", "mode", "bytes", "address", "type", "state", "slots", "hits", "lost")
    return table_html(head, [_watch_row(watch) for watch in watches])


def _watch_row(watch: Watch) -> tuple[Any, ...]:
    return (
        watch.id,
        watch.name,
        watch.mode,
        watch.nbytes,
        f"{watch.address:#x}",
        watch.dtype,
        watch._state(),
        watch.slots,
        watch.hits,
        watch.lost,
    )


class WatchList(list["Watch"]):
    """A list of watches that shows well."""

    def __repr__(self) -> str:
        return "\n".join(repr(watch) for watch in self) or "nothing is watched"

    def _repr_html_(self) -> str:
        return watches_html(self) if self else "<p>nothing is watched</p>"


def coverage_html(coverage: Coverage) -> str:
    """Coverage, one watch a row, then what is not seen."""
    head = ("watch", "state", "threads", "kernel accesses", "counted", "recorded", "lost", "self-test")
    rows = [
        (
            w.name,
            w.state,
            f"{w.threads_armed} of {w.threads_alive}",
            w.kernel,
            w.tally.counted,
            w.tally.hits,
            w.tally.lost,
            w.last_test,
        )
        for w in coverage.watches
    ]
    problems = "".join(f"<li>{html.escape(problem)}</li>" for problem in coverage.problems)
    verdict = (
        f"<p>not seen, or not exactly:</p><ul>{problems}</ul>"
        if problems
        else "<p>coverage is full: zero hits would mean zero accesses</p>"
    )
    return (table_html(head, rows) if rows else "<p>nothing is watched</p>") + verdict


def by_line(frame: pd.DataFrame) -> pd.DataFrame:
    """Hits grouped by watch and writing line.

    Parameters
    ----------
    frame : DataFrame
        A timeline.

    Returns
    -------
    DataFrame
        A row for each watch, access, function and line, in order of the first hit: ``hits``, ``first``
        (old value before the first hit), ``last`` (new value after the last), ``symbol`` of the first.
    """
    import pandas as pd

    keys = ["watch", "access", "function", "file", "line"]
    columns = [*keys, "cell", "symbol", "hits", "first", "last"]
    if frame.empty:
        return pd.DataFrame(columns=columns)
    groups = frame.groupby(keys, observed=True, dropna=False, sort=False)
    out = groups.agg(
        cell=("cell", "first"),
        symbol=("symbol", "first"),
        hits=("pc", "size"),
        first=("old", _first),
        last=("new", _last),
    )
    return out.reset_index()[columns]


def _first(values: pd.Series[Any]) -> Any:
    return values.iloc[0]


def _last(values: pd.Series[Any]) -> Any:
    return values.iloc[-1]
