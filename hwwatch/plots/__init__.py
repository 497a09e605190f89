"""Pictures of a timeline: values over time, hits by line or instruction, hits of elements over time.

All take a DataFrame and know no session. Colours tell writing lines apart, marker shapes tell threads, and
filling tells what took place.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from hwwatch.coverages import Coverage
from hwwatch.displays import zero_hits
from hwwatch.errors import TargetError
from hwwatch.plots.bars import draw_bars
from hwwatch.plots.lanes import draw_lanes
from hwwatch.plots.marks import Marks, fewer, marks, renumbered, sorts
from hwwatch.plots.panels import Panel, axes_for, elements_panel, value_panels
from hwwatch.plots.scales import cut
from hwwatch.plots.steps import MOST_HITS, draw_steps
from hwwatch.plots.styles import MOST_LINES, MOST_THREADS, OTHER, colours, explain
from hwwatch.summaries import INSTRUCTION, check, coverage_of, numbered
from hwwatch.types import KINDS, XS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_WIDTH = 8.0  # inches, of a figure made here
_MOST_BARS = 15
_MARGIN = 0.03


def draw(
    frame: pd.DataFrame,
    *,
    kind: str = "values",
    ax: Axes | None = None,
    x: str = "time",
    legend: bool = True,
    shown: bool = True,
) -> Axes:
    """Draw a timeline; see `hwwatch.plot`.

    Parameters
    ----------
    frame : DataFrame
        A timeline, or some rows of one.
    kind : {"values", "by_line", "by_instruction", "elements"}
    ax : matplotlib Axes, optional
    x : {"time", "seq"}
    legend : bool
    shown : bool
        Whether a new figure is one of pyplot's, which shows it; else it belongs to the caller alone.

    Returns
    -------
    matplotlib Axes
        The topmost of the panels.

    Raises
    ------
    TargetError
        `kind` or `x` is none of those, or the timeline lacks the columns for it.
    FrameError
        The frame is no timeline.
    """
    check(frame)
    for name, value, choices in (("kind", kind, KINDS), ("x", x, XS)):
        if value not in choices:
            raise TargetError(f"{name}={value!r} is none of {', '.join(map(repr, choices))}.", slug="usage")
    if kind == "by_instruction" and "instruction" not in frame.columns:
        raise TargetError("this timeline has no column `instruction` to draw.", slug="no-timeline")
    if frame.index.name == "seq" and not frame.index.is_monotonic_increasing:
        frame = frame.sort_index(kind="stable")
    if not len(frame):
        return _empty(frame, ax, shown)
    if kind in ("by_line", "by_instruction"):
        return _bars(frame, kind, ax, legend, shown)
    return _panels(frame, kind, ax, x, legend, shown)


def _panels(frame: pd.DataFrame, kind: str, ax: Axes | None, x: str, legend: bool, shown: bool) -> Axes:
    every = marks(frame, x, MOST_LINES, MOST_THREADS)
    panels, left_out = ([elements_panel(frame)], "") if kind == "elements" else value_panels(frame, every)
    own = ax is None
    axes = axes_for(ax, [panel.height for panel in panels], _WIDTH, shown)
    palette = colours(axes[0], every)
    margin = _MARGIN * float(every.x[-1] - every.x[0]) or 0.5
    limits = (float(every.x[0]) - margin, float(every.x[-1]) + margin)
    unseen = False
    for at, panel in zip(axes, panels, strict=True):
        unseen |= _draw_panel(at, panel, every.take(panel.rows), palette, limits)
    axes[0].set_xlim(*limits)
    for at in axes[:-1]:
        at.tick_params(labelbottom=False)
    axes[-1].set_xlabel("\n".join(filter(None, (every.label, left_out))))
    if legend:
        rows = explain(axes[0], every, palette, unseen=unseen, whole=own and len(axes) > 1)
        if own:
            _make_room(axes[0], rows)
    return axes[0]


def _draw_panel(ax: Axes, panel: Panel, rows: Marks, palette: list[str], limits: tuple[float, float]) -> bool:
    count = len(panel.rows)
    title = f"{panel.title}: {count:,} hit{'' if count == 1 else 's'}"
    unseen = False
    if panel.reading is not None:
        if count > MOST_HITS:
            title += ", of which the extremes are drawn"
        unseen = draw_steps(ax, rows, panel.reading, palette, limits)
        ax.set_ylabel(panel.reading.unit)
    elif panel.lane is not None:
        draw_lanes(ax, rows, panel.lane, panel.labels, palette)
    ax.set_title(title, loc="left", fontsize="medium")
    return unseen


def _bars(frame: pd.DataFrame, kind: str, ax: Axes | None, legend: bool, shown: bool) -> Axes:
    names = [str(name) for name in frame["watch"].dropna().unique()]
    if kind == "by_line":
        # The same colours as in the other pictures; more lines have bars than have colours.
        groups = marks(frame, "seq", _MOST_BARS, 1).lines
    else:
        heads, codes = renumbered(numbered(frame, INSTRUCTION))
        rows = frame[[n for n in INSTRUCTION if n in frame.columns]].iloc[heads].to_dict("records")
        groups = fewer(codes, [_instruction(row) for row in rows], _MOST_BARS, "other instructions")
    (ax,) = axes_for(ax, [0.3 * len(groups.labels) + 0.3], _WIDTH, shown)
    coloured = marks(frame, "seq", MOST_LINES, 1)
    of_line = colours(ax, coloured)
    palette = [of_line[0]] * len(groups.labels)
    if kind == "by_line":
        present, heads = np.unique(groups.codes, return_index=True)
        for group, head in zip(present.tolist(), heads.tolist(), strict=True):
            palette[group] = of_line[coloured.lines.codes[head]]
    if groups.others:
        palette[-1] = OTHER
    draw_bars(ax, groups, sorts(frame), palette, monospace=kind == "by_instruction", legend=legend)
    title = ", ".join(names) if len(names) <= 3 else f"{len(names)} watches"
    ax.set_title(f"{title}: hits {kind.replace('_', ' ')}", loc="left", fontsize="medium")
    return ax


def _instruction(row: dict[Any, Any]) -> str:
    text = row.get("instruction")
    parts = [text if isinstance(text, str) and text else "(instruction unknown)"]
    symbol = row.get("symbol")
    if isinstance(symbol, str) and symbol:
        parts.append(f"  {cut(symbol, 30)}")
    return "\n".join(parts)


def _make_room(ax: Axes, rows: int) -> None:
    """Make a figure of ours high enough for its legend."""
    figure = ax.figure  # ours, so no subfigure
    assert isinstance(figure, Figure)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, max(height, 0.185 * rows + 0.6))


def _empty(frame: pd.DataFrame, ax: Axes | None, shown: bool) -> Axes:
    """No hits: the picture says so in words, and what that means."""
    (ax,) = axes_for(ax, [1.3], _WIDTH, shown)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.text(
        0.5,
        0.5,
        "\n".join(textwrap.wrap(_no_hits(frame), 72)),
        ha="center",
        va="center",
        transform=ax.transAxes,
    )
    ax.set_title("no hits", loc="left", fontsize="medium")
    return ax


def _no_hits(frame: pd.DataFrame) -> str:
    found = coverage_of(frame)
    names = list(frame["watch"].cat.categories) if hasattr(frame["watch"], "cat") else []
    coverage = Coverage.from_dict(found) if found else None
    if coverage is None:
        return "This timeline has no rows, and does not say what was watched."
    if not names and not coverage.watches:
        return "Nothing has been watched."
    if names:
        coverage = coverage.of(names)
    if coverage.recorded:
        return f"None of the {coverage.recorded:,} hits that were recorded is among these rows."
    if not coverage.watches:
        return "No hits were recorded. It is watched no more: whether something was missed is not known."
    return zero_hits(coverage)[1]
