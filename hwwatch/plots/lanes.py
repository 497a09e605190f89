"""Marks on lanes: hits of each element over time; calls of watched code by the line that called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwwatch.plots.marks import Marks
from hwwatch.plots.scales import cut
from hwwatch.plots.styles import ink, scatter
from hwwatch.plots.thinning import columns, firsts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_HITS = 3000
_COLUMNS = 150
_LANE = 0.8  # the part of a lane that is drawn into
_MOST_TICKS = 32
_MOST_TEXT = 24


def draw_lanes(
    ax: Axes, marks: Marks, lane: NDArray[np.int64], labels: Sequence[str], palette: list[str]
) -> None:
    """Draw each hit on its lane, the first lane on top.

    Parameters
    ----------
    ax : Axes
    marks : Marks
        n rows.
    lane : array of int, shape (n,)
    labels : sequence of str
        Of the lanes.
    palette : list of str
        A colour for each line.

    Notes
    -----
    Of thousands of hits, one of each lane, line, thread and sort stays for every few pixels, and lines stand
    side by side in each lane.
    """
    rows, y = np.arange(len(lane)), lane.astype(np.float64)
    size = 6.0 if len(labels) <= 12 else 4.0
    if len(rows) > _MOST_HITS:
        rows = firsts(
            (lane * (marks.groups().max() + 1) + marks.groups()) * _COLUMNS + columns(marks.x, _COLUMNS)
        )
        lines = len(palette)
        y += (marks.lines.codes - (lines - 1) / 2) * (_LANE / lines)
        size = max(1.5, min(size, _LANE * 16 / lines))
    for at in range(len(labels)):
        ax.axhline(at, color=ink(ax), lw=0.5, alpha=0.25, zorder=0)
    scatter(ax, marks.take(rows), y[rows], palette, size)
    step = -(-len(labels) // _MOST_TICKS)
    ticks = range(0, len(labels), step)
    ax.set_yticks(ticks, [cut(labels[at], _MOST_TEXT) for at in ticks])
    ax.set_ylim(len(labels) - 0.5, -0.5)
