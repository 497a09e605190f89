"""Which panels a picture has, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwwatch.displays import element_text
from hwwatch.plots.marks import EXECUTE, Marks
from hwwatch.plots.scales import Reading, read

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MOST_PANELS = 8
_MOST_ELEMENTS = 4
_LANE = 0.22  # inches
_STEPS = 1.7


@dataclass
class Panel:
    """One panel: some rows of the timeline, as steps or on lanes.

    Attributes
    ----------
    title : str
    rows : array of int
        Positions in the frame, ascending.
    reading : Reading, optional
        Values, for steps.
    lane : array of int, optional
        The lane of each row.
    labels : sequence of str
        Of the lanes.
    """

    title: str
    rows: NDArray[np.int64]
    reading: Reading | None = None
    lane: NDArray[np.int64] | None = None
    labels: Sequence[str] = field(default_factory=list)

    @property
    def height(self) -> float:
        """In inches."""
        return _STEPS if self.lane is None else max(0.7, _LANE * len(self.labels))


def value_panels(frame: pd.DataFrame, marks: Marks) -> tuple[list[Panel], str]:
    """A panel for each value that is watched, and what had to be left out.

    Watches over many elements have one panel, a lane for each; so have watches of code, a lane for each line
    that called it. Where there are too many watches, those with the most hits are shown.
    """
    watches = _by_watch(frame)
    dropped = ""
    if len(watches) > MOST_PANELS:
        kept = {name for name, _ in sorted(watches, key=lambda found: -len(found[1]))[: MOST_PANELS - 1]}
        rest = [len(rows) for name, rows in watches if name not in kept]
        watches = [(name, rows) for name, rows in watches if name in kept]
        dropped = f"not shown: {sum(rest):,} hits of {len(rest)} more watches; plot them by name"
    split = sum(len(_places(frame, rows)) for _, rows in watches) <= MOST_PANELS
    panels: list[Panel] = []
    for name, rows in watches:
        code = marks.sort[rows] == EXECUTE
        if (frame["access"].iloc[rows] == "execute").any() or code.any():
            lines = marks.lines.codes[rows]
            used, lane = np.unique(lines, return_inverse=True)
            labels = [marks.lines.labels[i] for i in used]
            panels.append(Panel(name, rows, lane=lane.astype(np.int64), labels=labels))
            continue
        places = _places(frame, rows)
        if len(places) > (_MOST_ELEMENTS if split else 1):
            panels.append(_lanes(name, places))
            continue
        for element, inside in places:
            title = name if element is None and len(places) == 1 else f"{name} · {element_text(element)}"
            data = frame.iloc[inside]
            for reading in read(data["old"], data["new"]):
                label = f"{title}, {reading.label}" if reading.label else title
                panels.append(Panel(label, inside, reading))
    return panels, dropped


def elements_panel(frame: pd.DataFrame) -> Panel:
    """One panel with a lane for each element of each watch."""
    watches = _by_watch(frame)
    places = []
    for name, rows in watches:
        for element, inside in _places(frame, rows):
            label = name if element is None else element_text(element)
            places.append((f"{name} {label}" if len(watches) > 1 and element is not None else label, inside))
    names = [name for name, _ in watches]
    title = names[0] if len(names) == 1 else f"{len(names)} watches"
    return _joined(title, places)


def _lanes(name: str, places: Sequence[tuple[Any, NDArray[np.int64]]]) -> Panel:
    return _joined(name, [(element_text(element), rows) for element, rows in places])


def _joined(title: str, places: Sequence[tuple[str, NDArray[np.int64]]]) -> Panel:
    rows = np.concatenate([inside for _, inside in places])
    lane = np.repeat(np.arange(len(places)), [len(inside) for _, inside in places])
    order = np.argsort(rows, kind="stable")
    return Panel(title, rows[order], lane=lane[order], labels=[label for label, _ in places])


def _by_watch(frame: pd.DataFrame) -> list[tuple[str, NDArray[np.int64]]]:
    """Rows of each watch, in order of the first hit."""
    import pandas as pd

    codes, names = pd.factorize(frame["watch"])
    return [(str(name), np.flatnonzero(codes == i)) for i, name in enumerate(names)]


def _places(frame: pd.DataFrame, rows: NDArray[np.int64]) -> list[tuple[Any, NDArray[np.int64]]]:
    """Rows of each element of one watch, in order of their addresses; hits of no certain element last."""
    import pandas as pd

    if "element" not in frame.columns:
        return [(None, rows)]
    codes, elements = pd.factorize(frame["element"].iloc[rows].to_numpy(object))
    found = [(element, rows[codes == i]) for i, element in enumerate(elements)]
    if "address" in frame.columns:
        addresses = np.asarray(frame["address"])
        found.sort(key=lambda place: addresses[place[1][0]])
    if (codes < 0).any():
        found.append((None, rows[codes < 0]))
    return found


def axes_for(ax: Axes | None, heights: Sequence[float], width: float, shown: bool = True) -> list[Axes]:
    """Axes for panels one above the other, with one x axis: in a new figure, or in the place of `ax`.

    A new figure is one of pyplot's where it is to be `shown`.
    """
    if ax is None:
        ax = _new_figure(shown)(
            figsize=(width, sum(heights) + 0.35 * len(heights) + 0.7), layout="constrained"
        ).add_subplot()
    figure_of = ax.figure
    if len(heights) == 1:
        return [ax]
    spec = ax.get_subplotspec()
    if spec is not None:
        grid = spec.subgridspec(len(heights), 1, height_ratios=list(heights))
        ax.set_subplotspec(grid[0])
        return [ax, *(figure_of.add_subplot(grid[i], sharex=ax) for i in range(1, len(heights)))]
    left, bottom, wide, high = ax.get_position().bounds
    gap = 0.25 * high / len(heights)
    scale = (high - gap * (len(heights) - 1)) / sum(heights)
    made, top = [ax], bottom + high
    for number, height in enumerate(heights):
        place = (left, top - scale * height, wide, scale * height)
        if number:
            made.append(figure_of.add_axes(place, sharex=ax))
        else:
            ax.set_position(place)
        top -= scale * height + gap
    return made


def _new_figure(shown: bool) -> Any:
    if not shown:
        from matplotlib.figure import Figure

        return Figure
    import matplotlib.pyplot as plt

    return plt.figure
