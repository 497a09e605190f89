"""Colours, marker shapes, legends: what tells lines, threads and sorts of hits apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwwatch.plots.marks import EXECUTE, READ, SKIPPED, UNKNOWN, WRITE, Marks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, "Color Universal Design", 2008: for all kinds of colour vision. Its yellow is too light for a
# light ground and its blue too dark for a dark one.
_ON_LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_ON_DARK = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00")
OTHER = "#8C8C8C"
_SHAPES = ("o", "s", "^", "D", "v", "p", "h")
MOST_LINES = len(_ON_LIGHT)
MOST_THREADS = len(_SHAPES)
_SORT_LABELS = {
    WRITE: "write",
    READ: "read",
    EXECUTE: "executed",
    SKIPPED: "skipped",
    UNKNOWN: "read, or write of the same value",
}


def ink(ax: Axes) -> str:
    """The colour of text and thin lines, as the style has it."""
    import matplotlib as mpl

    return str(mpl.rcParams["text.color"])


def is_dark(ax: Axes) -> bool:
    """Whether the ground of these axes is dark."""
    from matplotlib.colors import to_rgba

    figure = ax.get_figure()
    for ground in (ax.get_facecolor(), figure.get_facecolor() if figure is not None else "w"):
        red, green, blue, alpha = to_rgba(ground)
        if alpha > 0.5:
            return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.4
    red, green, blue, _ = to_rgba(ink(ax))
    return red + green + blue > 1.5


def colours(ax: Axes, marks: Marks) -> list[str]:
    """One for each line of the marks."""
    palette = _ON_DARK if is_dark(ax) else _ON_LIGHT
    chosen = [palette[i % len(palette)] for i in range(len(marks.lines.labels))]
    if marks.lines.others:
        chosen[-1] = OTHER
    return chosen


def look(sort: int, thread: int, colour: str, size: float) -> dict[str, Any]:
    """How a mark is drawn: the shape is the thread's, filled for what took place, hollow for the rest."""
    filled = sort in (WRITE, EXECUTE)
    return {
        "linestyle": "none",
        "marker": _SHAPES[thread % len(_SHAPES)],
        "markersize": size,
        "markerfacecolor": colour if filled else "none",
        "markeredgecolor": colour,
        "markeredgewidth": 0.5 if filled else 1.2,
    }


def scatter(ax: Axes, marks: Marks, y: NDArray[np.float64], palette: list[str], size: float) -> None:
    """Draw marks; a skipped one is hollow and crossed out."""
    key = marks.groups()
    for group in np.unique(key):
        rows = np.flatnonzero(key == group)
        sort, line, thread = (int(n[rows[0]]) for n in (marks.sort, marks.lines.codes, marks.threads.codes))
        style = look(sort, thread, palette[line], size)
        ax.plot(marks.x[rows], y[rows], zorder=3, **style)
        if sort == SKIPPED:
            cross = {**style, "marker": "x", "markersize": size * 1.5, "markeredgewidth": 1.0}
            ax.plot(marks.x[rows], y[rows], zorder=3.1, **cross)


def explain(ax: Axes, marks: Marks, palette: list[str], *, unseen: bool, whole: bool) -> int:
    """Explain colours, shapes and fillings, outside the data.

    Parameters
    ----------
    ax : Axes
    marks : Marks
    palette : list of str
    unseen : bool
        Whether values that changed without a row are drawn.
    whole : bool
        Beside the whole figure, not only beside `ax`.

    Returns
    -------
    int
        Lines of text.
    """
    from matplotlib.lines import Line2D

    text = ink(ax)
    entries: list[tuple[Any, str]] = []

    def head(title: str) -> None:
        entries.append((Line2D([], [], linestyle="none"), title))

    hits = np.bincount(marks.lines.codes, minlength=len(palette))
    head("by line (hits)")
    for line, colour in enumerate(palette):
        entries.append(
            (Line2D([], [], color=colour, linewidth=3), f"{marks.lines.labels[line]} ({hits[line]:,})")
        )
    if len(marks.threads.labels) > 1:
        head("by thread")
        for thread, label in enumerate(marks.threads.labels):
            entries.append((Line2D([], [], **look(WRITE, thread, text, 6)), label))
    sorts = np.unique(marks.sort).tolist()
    if sorts != [WRITE] or unseen:
        head("what it was")
        for sort in sorts:
            handle: Any = Line2D([], [], **look(sort, 0, text, 6))
            if sort == SKIPPED:
                cross = {**look(sort, 0, text, 9), "marker": "x", "markeredgewidth": 1.0}
                handle = (handle, Line2D([], [], **cross))
            entries.append((handle, _SORT_LABELS[sort]))
        if unseen:
            entries.append((Line2D([], [], color=text, linewidth=1, linestyle=":"), "changed without a row"))
    handles, labels = zip(*entries, strict=True)
    style: dict[str, Any] = {"frameon": False, "fontsize": "small", "handlelength": 1.4}
    if whole:
        box = ax.figure.legend(handles, labels, loc="outside right upper", **style)
    else:
        style |= {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
        box = ax.legend(handles, labels, **style)
    titles = {"by line (hits)", "by thread", "what it was"}
    for item in box.get_texts():
        if item.get_text() in titles:
            item.set_fontweight("bold")
            item.set_x(item.get_position()[0] - 20)
    return len(entries)
