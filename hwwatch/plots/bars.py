"""Hits counted: by line, by instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hwwatch.plots.marks import EXECUTE, READ, SKIPPED, SORTS, UNKNOWN, WRITE, Groups
from hwwatch.plots.styles import ink

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_HATCH = {WRITE: "", EXECUTE: "", READ: "", SKIPPED: "xxx", UNKNOWN: "..."}
_NAMES = {WRITE: "write", EXECUTE: "executed", READ: "read", SKIPPED: "skipped", UNKNOWN: "unknown"}


def draw_bars(
    ax: Axes,
    groups: Groups,
    sort: NDArray[np.int64],
    palette: list[str],
    *,
    monospace: bool = False,
    legend: bool = True,
) -> None:
    """A bar for each group, the longest on top, those of the rest last; in parts, by sort of hit.

    Reads are hollow, skipped writes crossed, as in the other pictures.
    """
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    count = len(groups.labels)
    table = np.bincount(groups.codes * len(SORTS) + sort, minlength=count * len(SORTS)).reshape(count, -1)
    total = table.sum(axis=1)
    own = count - groups.others
    order = [*np.argsort(-total[:own], kind="stable").tolist(), *range(own, count)]
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    left = np.zeros(count)
    present = [s for s in (WRITE, EXECUTE, READ, SKIPPED, UNKNOWN) if table[:, s].any()]
    for kind in present:
        filled = kind in (WRITE, EXECUTE)
        for group in np.flatnonzero(table[:, kind]).tolist():
            ax.barh(
                rank[group],
                table[group, kind],
                left=left[group],
                height=0.7,
                facecolor=palette[group] if filled else "none",
                edgecolor=palette[group],
                hatch=_HATCH[kind],
            )
        left += table[:, kind]
    for group in range(count):
        ax.annotate(
            f"{total[group]:,}",
            (total[group], rank[group]),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    ax.set_yticks(range(count), [groups.labels[group] for group in order])
    if monospace:
        for text in ax.get_yticklabels():
            text.set(family="monospace", size="small")
    ax.set_ylim(count - 0.4, -0.6)
    ax.margins(x=0.12)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    ax.set_xlabel("hits")
    if legend and present != [WRITE]:
        colour = ink(ax)
        handles = [
            Patch(
                facecolor=colour if kind in (WRITE, EXECUTE) else "none",
                edgecolor=colour,
                hatch=_HATCH[kind],
                label=_NAMES[kind],
            )
            for kind in present
        ]
        ax.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            borderaxespad=0.0,
            frameon=False,
            fontsize="small",
        )
