"""A timeline as a page: tables, pictures and coverage in one HTML file, which needs no other."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from hwwatch.coverages import Coverage
from hwwatch.digests import Digest
from hwwatch.displays import coverage_html, element_text, place, shortened, table_html
from hwwatch.exports.samples import Sample
from hwwatch.reports import ALSO, KEYS, Report
from hwwatch.summaries import INSTRUCTION, check, coverage_of, records, times

_ENDS = 100  # hits at the beginning and at the end of the timeline that are shown one by one
_MOST_INSTRUCTIONS = 40
_DPI = 144
_STYLE = """\
:root { color-scheme: light dark; --ink: #1b1b1f; --ground: #fff; --line: #d5d5dc; --soft: #f4f4f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6ea; --ground: #17171b; --line: #3b3b44; --soft: #212127; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 76rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { background: var(--soft); position: sticky; top: 0; }
img { max-width: 100%; height: auto; }
summary { cursor: pointer; }
"""


def write_page(frames: Iterator[pd.DataFrame], path: Path) -> int:
    """The page. Returns the number of hits."""
    page = _Page()
    for frame in frames:
        page.add(frame)
    path.write_text(page.text(), encoding="utf-8", errors="backslashreplace")
    return page.lines.hits


class _Page:
    """What the pieces so far have for a page; its size does not grow with the number of hits."""

    def __init__(self) -> None:
        self.lines, self.instructions = Digest(KEYS, ALSO), Digest(INSTRUCTION)
        self.sample = Sample()
        self.attrs: dict[Any, Any] | None = None
        self.coverage: Coverage | None = None
        self.first: list[dict[Any, Any]] = []
        self.last: list[dict[Any, Any]] = []
        self.times: list[pd.Timestamp] = []

    def add(self, frame: pd.DataFrame) -> None:
        """One more piece."""
        check(frame)
        if self.attrs is None:
            self.attrs = frame.attrs
            found = coverage_of(frame)
            self.coverage = Coverage.from_dict(found) if found else None
        self.lines.add(frame)
        self.instructions.add(frame)
        self.sample.add(frame)
        if len(frame) and "time" in frame.columns:
            when = times(frame)
            self.times = [*self.times[:1], when.min(), when.max()]
        beginning = frame.iloc[: _ENDS - len(self.first)]
        rest = frame.iloc[len(beginning) :]
        self.first += records(beginning.reset_index())
        self.last = [*self.last, *records(rest.iloc[-_ENDS:].reset_index())][-_ENDS:]

    def text(self) -> str:
        """The whole page."""
        coverage = self.coverage or Coverage((), "", "", 0)
        title = f"hwwatch: {_hits(self.lines.hits)}"
        parts = [f"<h1>{html.escape(title)}</h1>", *self._about()]
        if self.lines.hits:
            parts.append("<h2>Who did it</h2>")
            parts.append(_wide(Report.of(self.lines, coverage, most=200).to_html(links=False)))
            parts.append("<h2>Over time</h2>")
            parts += self._picture()
            parts.append("<h2>By instruction</h2>")
            parts.append(_wide(self._instructions()))
        parts.append("<h2>What was seen, and what was not</h2>")
        unknown = "<p>This timeline does not say what was watched.</p>"
        parts.append(_wide(coverage_html(self.coverage)) if self.coverage else unknown)
        parts += self._rows()
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n"
            + "\n".join(parts)
            + "\n</body>\n</html>\n"
        )

    def _about(self) -> Iterator[str]:
        if self.times:
            first, last = self.times[0], self.times[-1]
            seconds = (last - first).total_seconds()
            yield f"<p>From {_moment(first)} to {_moment(last)} UTC, {seconds:.6g} s.</p>"
        attrs = (self.attrs or {}).get("hwwatch")
        versions = attrs.get("versions", {}) if isinstance(attrs, dict) else {}
        if versions:
            yield f"<p>Made by {html.escape(', '.join(f'{name} {v}' for name, v in versions.items()))}.</p>"

    def _picture(self) -> Iterator[str]:
        frame = self.sample.frame()
        light, dark = (
            _png(frame, style, thinned=self.sample.thinned) for style in ("default", "dark_background")
        )
        text = f"The values that the watched places held over time: {_hits(self.lines.hits)}."
        yield (
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img src="{light}" alt="{html.escape(text)}"></picture>'
        )
        if self.sample.thinned:
            yield (
                f"<p>Drawn from {len(frame):,} of {_hits(self.lines.hits)}, which the titles count: of each "
                "stretch the first and last of each place, line and thread, and those with the lowest and "
                "highest value.</p>"
            )

    def _instructions(self) -> str:
        found = self.instructions.lines()
        if not set(INSTRUCTION) & set(found.columns):
            return "<p>This timeline names no instructions.</p>"
        found = found.sort_values("hits", ascending=False, kind="stable")
        names = [
            name for name in ("hits", *INSTRUCTION, "reads", "writes", "changed") if name in found.columns
        ]
        rows = [[_cell(row[name]) for name in names] for row in found[names].to_dict("records")]
        more = len(rows) - _MOST_INSTRUCTIONS
        below = f"<p>… and {more} more; the timeline has all.</p>" if more > 0 else ""
        return table_html(names, rows[:_MOST_INSTRUCTIONS]) + below

    def _rows(self) -> Iterator[str]:
        if not self.lines.hits:
            return
        files = [row["file"] for row in (*self.first, *self.last) if isinstance(row.get("file"), str)]
        short = shortened(files)
        left_out = self.lines.hits - len(self.first) - len(self.last)
        start = self.times[0] if self.times else None
        head = (
            "seq",
            "s",
            "watch",
            "element",
            "access",
            "old",
            "new",
            "line",
            "function",
            "thread",
            "action",
        )
        rows: list[Any] = [_row(row, head, short, start) for row in self.first]
        if left_out > 0:
            rows.append([f"… {left_out:,} more", *[""] * (len(head) - 1)])
        rows += [_row(row, head, short, start) for row in self.last]
        yield "<h2>The hits</h2>"
        count = f"the first and the last {_ENDS}" if left_out > 0 else "all of them"
        summary = f"<summary>{count}, in order of recording</summary>"
        yield f"<details>{summary}{_wide(table_html(head, rows))}</details>"


def _row(
    row: dict[Any, Any], head: tuple[str, ...], short: dict[str, str], start: pd.Timestamp | None
) -> list[Any]:
    when = pd.to_datetime(row["time"], utc=True) if "time" in row and start is not None else None
    shown: dict[str, Any] = {
        "s": "" if when is None else f"{(when - start).total_seconds():.6f}",
        "line": place(row, short),
        "element": "" if _cell(row.get("element")) == "" else element_text(row["element"]),
        "seq": next(iter(row.values())),
    }
    return [shown[name] if name in shown else _cell(row.get(name)) for name in head]


def _cell(value: Any) -> Any:
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return "nan" if isinstance(value, float) else ""
    return value


def _hits(count: int) -> str:
    return f"{count:,} hit{'' if count == 1 else 's'}"


def _moment(when: pd.Timestamp) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S.%f}"


def _wide(text: str) -> str:
    return f'<div class="wide">{text}</div>'


def _png(frame: pd.DataFrame, style: str, *, thinned: bool) -> str:
    """A picture as a URL that holds it, without a ground of its own."""
    import matplotlib.style

    from hwwatch.plots import draw

    file = io.BytesIO()
    with matplotlib.style.context(style):
        figure: Any = draw(frame, shown=False).figure
        for ax in figure.axes if thinned else ():
            title = ax.get_title(loc="left").partition(", of which")[0]
            ax.set_title(re.sub("hits?$", r"drawn \g<0>", title), loc="left", fontsize="medium")
        figure.savefig(file, format="png", dpi=_DPI, transparent=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
