"""HTML and plain text for people: watch lists, coverage, what a cell or script did."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def table_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in columns of equal width, two blanks apart; as many lines as rows, and the head."""
    lines = [list(head), *([" ".join(str(cell).split()) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def watches_html(watches: Sequence[Watch]) -> str:
    """Watches, one a row, and the notes on them."""
    notes = "".join(
        f"<p>{html.escape(watch.name)}: {html.escape(watch.target.note)}</p>"
        for watch in watches
        if watch.target.note
    )
    return table_html(_WATCH_HEAD, [_watch_row(watch) for watch in watches]) + notes


_WATCH_HEAD = (
    "id",
    "name",
    "mode",
    "bytes",
    "address",
    "type",
    "policy",
    "when",
    "limit",
    "state",
    "slots",
    "hits",
    "lost",
    "backend",
)


def _watch_row(watch: Watch) -> tuple[Any, ...]:
    from hwwatch.policies import describe

    return (
        watch.id,
        watch.name,
        watch.mode,
        watch.nbytes,
        f"{watch.address:#x}",
        watch.dtype,
        describe(watch.policy),
        watch.when or "",
        watch.limit or "",
        watch.state,
        watch.slots,
        watch.hits,
        watch.lost,
        watch.backend,
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
    verdict = (
        f"<p>not seen, or not exactly:</p>{_items_html(coverage.problems)}"
        if coverage.problems
        else "<p>coverage is full: zero hits would mean zero accesses</p>"
    )
    if not coverage.watches:
        return "<p>nothing is watched</p>" + (verdict if coverage.problems else "")
    return table_html(head, rows) + verdict + (_items_html(coverage.refusals) if coverage.refusals else "")


def _items_html(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"


def zero_hits(coverage: Coverage) -> tuple[bool, str]:
    """What it means that watches recorded nothing.

    Parameters
    ----------
    coverage : Coverage
        Taken while the watches were still armed.

    Returns
    -------
    bool
        Whether zero hits mean zero accesses, within the documented limits of the hardware.
    str
        One line that says why.

    Notes
    -----
    A thread that blocks SIGTRAP is no reason for doubt where the kernel counts: the event's counter goes up
    on every access, whatever becomes of the signal (perf_event_open(2), "count").
    """
    doubts = []
    for watch in coverage.watches:
        if watch.state != "armed":
            doubts.append(f"{watch.name} was {watch.state} before the end")
        if watch.tally.lost:
            doubts.append(f"{watch.name}: {watch.tally.lost} accesses were counted and not recorded")
        if watch.threads_armed < watch.threads_alive:
            missed = watch.threads_alive - watch.threads_armed
            doubts.append(f"{watch.name}: {missed} of {watch.threads_alive} threads were not watched")
        if watch.kernel.startswith("not"):
            doubts.append(f"{watch.name}: kernel accesses are {watch.kernel}")
        if watch.blind_threads and not watch.backend.startswith("perf"):
            doubts.append(f"{watch.name}: {len(watch.blind_threads)} threads block SIGTRAP")
        doubts += [f"{watch.name}: {note}" for note in watch.notes if note != watch.state]
    if doubts:
        return False, f"no hits were recorded, and some may be missing: {'; '.join(doubts)}"
    count = max((watch.threads_alive for watch in coverage.watches), default=0)
    blind = max((len(watch.blind_threads) for watch in coverage.watches), default=0)
    also = f", also in the {blind} that block SIGTRAP" if blind else ""
    left_out = sum(watch.tally.filtered for watch in coverage.watches)
    if left_out:
        return (
            True,
            f"no hits: all {left_out} accesses that the CPU counted are left out by mode or condition",
        )
    return True, f"no hits, and no accesses: the CPU counted none in all {count} threads{also}"
