"""The value of one place over time: steps in the colour of the line that wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwwatch.plots.marks import SKIPPED, WRITE, Marks
from hwwatch.plots.scales import Reading
from hwwatch.plots.styles import ink, scatter
from hwwatch.plots.thinning import columns, ends, extremes, firsts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: So many hits are drawn one by one; of more, the extremes in each column of pixels.
MOST_HITS = 2000
_COLUMNS = 1000
_MOST_MARKS = 250


def draw_steps(
    ax: Axes, marks: Marks, reading: Reading, palette: list[str], limits: tuple[float, float]
) -> bool:
    """Draw one panel; returns whether the value changed somewhere without a row.

    Parameters
    ----------
    ax : Axes
    marks : Marks
        Of one place, n rows.
    reading : Reading
        Their values.
    palette : list of str
        A colour for each line.
    limits : (float, float)
        Of the x axis: the first value is shown from the one on, the last up to the other.
    """
    old, new = reading.old, reading.new
    after = np.where(marks.sort == SKIPPED, old, new)
    unseen = np.concatenate([[False], _differ(old[1:], after[:-1])])
    holder = _holder(marks)
    every = np.arange(len(old))
    path, shown = every, every
    if len(old) > MOST_HITS:
        column = columns(marks.x, _COLUMNS)
        lines = len(palette) + 1
        held = extremes(column * lines + holder + 1, after)
        path = np.unique(np.concatenate([ends(column), held, _some(unseen, column)]))
        shown = _few_marks(marks, new)
    _draw_path(ax, marks.x[path], old[path], after[path], holder[path], unseen[path], palette, limits)
    skipped = shown[marks.sort[shown] == SKIPPED]
    for line in np.unique(marks.lines.codes[skipped]):
        rows = skipped[marks.lines.codes[skipped] == line]
        stems = _segments(marks.x[rows], old[rows], marks.x[rows], new[rows])
        ax.plot(*stems, color=palette[line], lw=0.8, ls=(0, (1, 1.5)), zorder=2)
    size = 5.5 if len(shown) <= 200 else 3.5
    scatter(ax, marks.take(shown), new[shown], palette, size)
    reading.apply(ax)
    return bool(unseen.any())


def _differ(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (one != other) & ~(np.isnan(one) & np.isnan(other))
    return found


def _few_marks(marks: Marks, new: NDArray[np.float64]) -> NDArray[np.int64]:
    """Some hits of each line, thread and sort; of skipped writes, which the path lacks, the extremes."""
    groups = marks.groups()
    kinds, groups = np.unique(groups, return_inverse=True)
    count = max(4, _MOST_MARKS // len(kinds))
    # Each kind has its own grid, or all would stand at the same places.
    position = columns(marks.x, count * len(kinds)) + groups * 7
    chosen = firsts(groups * (count + 8) + position // len(kinds))
    skipped = np.flatnonzero(marks.sort == SKIPPED)
    column = columns(marks.x, 2 * count)[skipped]
    return np.unique(np.concatenate([chosen, skipped[extremes(column, new[skipped])]]))


def _some(flags: NDArray[np.bool_], column: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first flagged row of each column, and the row before it."""
    rows = np.flatnonzero(flags)
    rows = rows[np.unique(column[rows], return_index=True)[1]]
    return np.concatenate([rows, rows - 1])


def _holder(marks: Marks) -> NDArray[np.int64]:
    """For each hit the line that wrote the value which stands after it; -1 before the first write."""
    wrote = np.where(marks.sort == WRITE, np.arange(len(marks.sort)), -1)
    last = np.maximum.accumulate(wrote) if len(wrote) else wrote
    return np.where(last < 0, -1, marks.lines.codes[last])


def _segments(
    x0: NDArray[np.float64], y0: NDArray[np.float64], x1: NDArray[np.float64], y1: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """n separate lines as one: ends, then a gap."""
    gap = np.full(len(x0), np.nan)
    return np.stack([x0, x1, gap], 1).ravel(), np.stack([y0, y1, gap], 1).ravel()


def _draw_path(
    ax: Axes,
    x: NDArray[np.float64],
    old: NDArray[np.float64],
    after: NDArray[np.float64],
    holder: NDArray[np.int64],
    unseen: NDArray[np.bool_],
    palette: list[str],
    limits: tuple[float, float],
) -> None:
    """Each hit's step: up to its value, and on until the next hit."""
    until = np.append(x[1:], limits[1])
    sure = np.append(~unseen[1:], True)
    # Between rows that were left out the value before a hit is that after the row drawn before it.
    before = np.where(unseen, old, np.concatenate([old[:1], after[:-1]]))
    for line in np.unique(holder):
        colour = ink(ax) if line < 0 else palette[line]
        rows = np.flatnonzero(holder == line)
        flat = rows[sure[rows]]
        up_x, up_y = _segments(x[rows], before[rows], x[rows], after[rows])
        on_x, on_y = _segments(x[flat], after[flat], until[flat], after[flat])
        ax.plot(
            np.concatenate([up_x, on_x]),
            np.concatenate([up_y, on_y]),
            color=colour,
            lw=1.6 if line >= 0 else 0.9,
            solid_capstyle="butt",
            zorder=1.5,
        )
    ax.plot([limits[0], x[0]], [old[0], old[0]], color=ink(ax), lw=0.9, zorder=1.4)
    gaps = np.flatnonzero(~sure)
    if len(gaps):
        flat_x, flat_y = _segments(x[gaps], after[gaps], until[gaps], after[gaps])
        jump_x, jump_y = _segments(until[gaps], after[gaps], until[gaps], old[gaps + 1])
        ax.plot(
            np.concatenate([flat_x, jump_x]),
            np.concatenate([flat_y, jump_y]),
            color=ink(ax),
            lw=1.0,
            ls=":",
            zorder=1.3,
        )
