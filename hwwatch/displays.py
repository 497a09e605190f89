"""HTML and plain text for people: watch lists, coverage, what a cell or script did."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from hwwatch.letters import time_text

if TYPE_CHECKING:
    from hwwatch.coverages import Coverage
    from hwwatch.watchpoints import Watch


class Markup(str):
    """Text that is HTML already."""


# Front ends align cells by rules of their own, which differ. Colours stay theirs, light or dark.
_STYLE = (
    "<style>table.hwwatch td, table.hwwatch th, table.hwwatch caption { text-align: left !important; } "
    "table.hwwatch caption { font-weight: bold; } table.hwwatch .number { text-align: right !important; "
    "font-variant-numeric: tabular-nums; }</style>"
)


def table_html(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """An HTML table, numbers to the right and all else to the left; everything but `Markup` is escaped."""
    body = [list(row) for row in rows]
    numbers = [bool(body) and all(_is_number(cell) for cell in column) for column in zip(*body, strict=True)]
    top = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    heads = "".join(
        f'<th scope="col"{_NUMBER if right else ""}>{html.escape(name)}</th>'
        for name, right in zip(head, numbers or [False] * len(head), strict=True)
    )
    lines = "".join(f"<tr>{''.join(map(_cell_html, row))}</tr>" for row in body)
    return (
        f'{_STYLE}<table class="hwwatch">{top}<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>'
    )


_NUMBER = ' class="number"'


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _cell_text(cell: Any) -> str:
    return time_text(cell) if isinstance(cell, np.datetime64) else str(cell)


def _cell_html(cell: Any) -> str:
    text = cell if isinstance(cell, Markup) else html.escape(_cell_text(cell))
    return f"<td{_NUMBER if _is_number(cell) else ''}>{text}</td>"


def table_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in columns of equal width, two blanks apart; as many lines as rows, and the head."""
    lines = [list(head), *([" ".join(_cell_text(cell).split()) for cell in row] for row in rows)]
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
    rows = [_watch_row(watch) for watch in watches]
    armed = sum(watch.state == "armed" for watch in watches)
    caption = f"{len(rows)} watches, {armed} armed" if len(rows) > 1 else ""
    return table_html(_WATCH_HEAD, rows, caption) + notes


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


def place(row: Mapping[Any, Any], short: Mapping[str, str] | None = None) -> str:
    """Where a hit was made, for people: ``In [3]:12``, ``bug.py:12``, or why that is unknown.

    Parameters
    ----------
    row : mapping
        With the columns ``file``, ``line``, ``cell``, ``exact`` of a timeline, as far as it has them.
    short : mapping, optional
        What to write for a file; default: its path from the current folder, where it is below it.
    """
    if not row.get("exact", True):
        return "(told late: line unknown)"
    file, line, cell = row.get("file"), _whole(row.get("line")), _whole(row.get("cell"))
    if not isinstance(file, str):
        return "(no Python on this thread)"
    if cell is not None:
        return f"In [{cell}]:{'?' if line is None else line}"
    name = short.get(file, file) if short is not None else _from_here(file)
    return f"{name}:{'?' if line is None else line}"


def _from_here(file: str) -> str:
    folder = current_folder()
    return file if folder is None else file.removeprefix(folder + os.sep)


def current_folder() -> str | None:
    """The current folder, or None where it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return None


#: Where a notebook is, whose front end follows links to files below it; None: nobody follows any.
notebook_folder: str | None = None


def place_html(row: Mapping[Any, Any]) -> Markup:
    """`place`, as a link where the front end follows it: JupyterLab does, to files below the notebook."""
    text, file = html.escape(place(row)), row.get("file")
    if notebook_folder is None or not isinstance(file, str) or _whole(row.get("cell")) is not None:
        return Markup(text)
    inside = file.startswith(notebook_folder.rstrip(os.sep) + os.sep) and os.path.isfile(file)
    if not inside or not row.get("exact", True):
        return Markup(text)
    address = html.escape(quote(os.path.relpath(file, notebook_folder)))
    return Markup(f'<a href="{address}">{text}</a>')


def _whole(number: Any) -> int | None:
    """A line's number, which is a float in some frames that were read back."""
    if isinstance(number, int):
        return number
    return int(number) if isinstance(number, float) and number == number else None


def shortened(files: Iterable[str]) -> dict[str, str]:
    """The shortest ends of paths that still tell them apart."""
    short: dict[str, str] = {}
    distinct = list(dict.fromkeys(files))
    for file in distinct:
        parts = file.split(os.sep)
        for count in range(1, len(parts) + 1):
            end = os.sep.join(parts[-count:])
            if sum(other == end or other.endswith(os.sep + end) for other in distinct) == 1:
                break
        short[file] = end
    return short


def element_text(element: Any) -> str:
    """An element as it is written: ``[3]``, ``[1, 2]``, a field's name; a frame read from CSV has text."""
    if element is None or element != element:
        return "(element unknown)"
    if isinstance(element, tuple):
        return f"[{', '.join(map(str, element))}]"
    text = str(element)
    if text.startswith("(") and text.endswith(")"):
        return f"[{text[1:-1].rstrip(',')}]"
    return text


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
    verdict = f"<p>{coverage.verdict}</p>" + (_items_html(coverage.problems) if coverage.problems else "")
    if not coverage.watches:
        return verdict
    return (
        table_html(head, rows, "coverage")
        + verdict
        + (_items_html(coverage.refusals) if coverage.refusals else "")
    )


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
