"""Pictures look as they did: compared with images in baseline/, without any text, whose shape fonts decide.

``HWWATCH_BASELINE=write`` writes the images anew; look at them before committing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.testing.compare import compare_images

mpl.use("agg")

BASELINE = Path(__file__).parent / "baseline"
#: Root mean square of the difference, of 255. Other versions of matplotlib: below 1; see the last test.
TOLERANCE = 0.75


@pytest.fixture(autouse=True)
def no_figure_stays() -> Iterator[None]:
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def draw(frame: pd.DataFrame, kind: str, style: str) -> Any:
    """The picture in axes of a fixed place."""
    import matplotlib.pyplot as plt

    with plt.style.context(["default", style]):
        figure = plt.figure(figsize=(4, 3), dpi=60)
        axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
        frame.hwwatch.plot(kind=kind, ax=axes, legend=False)
        for panel in figure.axes:
            panel.set(xlabel="", ylabel="", xticklabels=[], yticklabels=[])
            panel.set_title("", loc="left")
            for text in [*panel.texts]:
                text.remove()
    return figure


def difference(figure: Any, name: str, folder: Path) -> float:
    """How far a figure is from its baseline."""
    expected, actual = folder / "expected.png", folder / "actual.png"
    shutil.copy(BASELINE / name, expected)
    figure.savefig(actual, dpi=60, facecolor=figure.get_facecolor())
    found = compare_images(str(expected), str(actual), tol=0, in_decorator=True)
    return 0.0 if found is None else float(found["rms"])


PICTURES = [
    ("values", "default"),
    ("values", "dark_background"),
    ("by_line", "default"),
    ("elements", "dark_background"),
]


@pytest.mark.parametrize(("kind", "style"), PICTURES)
def test_looks_as_it_did(story: pd.DataFrame, tmp_path: Path, kind: str, style: str) -> None:
    figure = draw(story, kind, style)
    name = f"{kind}-{style}.png"
    if os.environ.get("HWWATCH_BASELINE") == "write":
        figure.savefig(BASELINE / name, dpi=60, facecolor=figure.get_facecolor())
    assert difference(figure, name, tmp_path) < TOLERANCE


def coloured(figure: Any) -> list[Any]:
    """Steps, one artist a line and panel."""
    lines = [line for panel in figure.axes for line in panel.lines]
    return [line for line in lines if line.get_linewidth() > 1.5 and line.get_linestyle() == "-"]


SPOILT: list[tuple[str, str, Callable[[Any], object]]] = [
    ("values", "default", lambda figure: coloured(figure)[0].remove()),
    ("values", "default", lambda figure: coloured(figure)[1].remove()),
    ("values", "default", lambda figure: coloured(figure)[0].set_color("#009E73")),
    ("values", "dark_background", lambda figure: coloured(figure)[1].set_color("#D55E00")),
    ("values", "default", lambda figure: figure.axes[2].remove()),
    ("by_line", "default", lambda figure: figure.axes[0].patches[1].set_facecolor("#009E73")),
    ("by_line", "default", lambda figure: figure.axes[0].patches[-1].remove()),
    ("elements", "dark_background", lambda figure: [line.set_marker("o") for line in figure.axes[0].lines]),
]


@pytest.mark.parametrize(("kind", "style", "spoil"), SPOILT)
def test_a_missing_or_recoloured_series_is_noticed(
    story: pd.DataFrame, tmp_path: Path, kind: str, style: str, spoil: Callable[[Any], object]
) -> None:
    figure = draw(story, kind, style)
    spoil(figure)
    assert difference(figure, f"{kind}-{style}.png", tmp_path) > 2 * TOLERANCE
