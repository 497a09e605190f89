"""Which lines made the hits: what a cell or a script shows when it has ended."""

from __future__ import annotations

import html
import linecache
from typing import TYPE_CHECKING, Any

from hwwatch.displays import Markup, element_text, place, place_html, table_html, table_text, zero_hits
from hwwatch.letters import plural
from hwwatch.summaries import grouped, records

if TYPE_CHECKING:
    import pandas as pd

    from hwwatch.coverages import Coverage
    from hwwatch.digests import Digest

KEYS = ("watch", "access", "action", "function", "file", "line", "exact")
ALSO = ("cell", "symbol")
_HEAD = ["line", "hits", "watch", "access", "element", "action", "values", "code", "function", "symbol"]
_MOST_VALUES = 4
_MOST_CODE = 60


class Report:
    """What a finished cell or script did to the watched places, line by line.

    Parameters
    ----------
    frame : DataFrame
        The timeline of the watches.
    coverage : Coverage
        Taken while they were still armed.
    most : int
        Lines to show; the rest is counted.
    """

    def __init__(self, frame: pd.DataFrame, coverage: Coverage, *, most: int = 40) -> None:
        self.lines = grouped(frame, KEYS, also=ALSO)
        self.coverage = coverage
        self._hits = len(frame)
        self._most = most

    @classmethod
    def of(cls, digest: Digest, coverage: Coverage, *, most: int = 40) -> Report:
        """Of a timeline in pieces, which were added up by `KEYS` and `ALSO`."""
        report = cls.__new__(cls)
        report.lines, report.coverage = digest.lines(), coverage
        report._hits, report._most = digest.hits, most
        return report

    def _head(self) -> list[str]:
        chosen = {
            "watch": self.lines["watch"].nunique() > 1,
            "access": any(access != "write" for access in self.lines["access"]),
            "element": any(len(elements) > 0 for elements in self.lines.get("elements", ())),
            "action": any(action != "continued" for action in self.lines.get("action", ())),
        }
        return [name for name in _HEAD if chosen.get(name, True)]

    def _rows(self, head: list[str]) -> list[tuple[Any, ...]]:
        return [tuple(_cell(row, name) for name in head) for row in records(self.lines.head(self._most))]

    def _summary(self) -> list[str]:
        """Lines below the table: what is left out of it, and what was not seen."""
        lines = []
        more = len(self.lines) - self._most
        if more > 0:
            lines.append(f"… and {plural(more, 'more line')}; the timeline has all")
        lost = sum(watch.tally.lost for watch in self.coverage.watches)
        if lost:
            lines.append(f"{lost} more hits were counted and not recorded")
        lines += [
            f"{watch.name}: kernel accesses are {watch.kernel}"
            for watch in self.coverage.watches
            if watch.kernel.startswith("not")
        ]
        return lines

    def _title(self) -> str:
        names = ", ".join(watch.name for watch in self.coverage.watches)
        lines = len(self.lines.drop_duplicates(_present(self.lines, "file", "line", "exact")))
        return f"{names}: {plural(self._hits, 'hit')} by {plural(lines, 'line')}"

    def __str__(self) -> str:
        if not self._hits:
            names = ", ".join(watch.name for watch in self.coverage.watches)
            return f"{names}: {zero_hits(self.coverage)[1]}"
        head = self._head()
        return "\n".join([self._title(), table_text(_shown(head), self._rows(head)), *self._summary()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.to_html(links=True)

    def to_html(self, *, links: bool) -> str:
        """As HTML, `links` to files or none: those of a notebook lead nowhere from elsewhere."""
        if not self._hits:
            return f"<p>{html.escape(str(self))}</p>"
        head = self._head()
        rows = [list(row) for row in self._rows(head)]
        for row, line in zip(rows, records(self.lines), strict=False):
            if links:
                row[head.index("line")] = place_html(line)
            code = head.index("code")
            row[code] = Markup(f"<code>{html.escape(row[code])}</code>" if row[code] else "")
        below = "".join(f"<p>{html.escape(line)}</p>" for line in self._summary())
        return table_html(_shown(head), rows, self._title()) + below


def _shown(head: list[str]) -> list[str]:
    return ["old → new" if name == "values" else name for name in head]


# One cell of the table, by column.
def _cell(row: dict[Any, Any], name: str) -> str | int:
    if name == "line":
        return place(row)
    if name == "values":
        if row["access"] == "execute":
            return ""
        return f"{_value(row['old'])} → {_value(row['new'])}"
    if name == "element":
        return _elements(row["elements"])
    if name == "code":
        code = linecache.getline(row["file"], row["line"]).strip() if _known(row) else ""
        return code if len(code) <= _MOST_CODE else f"{code[: _MOST_CODE - 1]}…"
    value = row.get(name)
    return value if isinstance(value, str | int) else ""


def _known(row: dict[Any, Any]) -> bool:
    return isinstance(row.get("file"), str) and isinstance(row.get("line"), int)


# Without any of them, all rows are one.
def _present(lines: pd.DataFrame, *names: str) -> list[str]:
    return [name for name in names if name in lines.columns] or ["hits"]


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        shown = [_value(item) for item in value[:_MOST_VALUES]]
        return f"({', '.join(shown)}{', …' if len(value) > _MOST_VALUES else ''})"
    return "" if value is None else str(value)


# Elements as they are written: [3], [1, 2], a field's name.
def _elements(elements: tuple[Any, ...]) -> str:
    names = [element_text(item) for item in elements]
    if len(names) > _MOST_VALUES:
        return f"{names[0]} … {names[-1]} ({len(names)})"
    return " ".join(names)
