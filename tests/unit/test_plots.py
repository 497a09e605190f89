"""What the pictures show, read from the artists; how they look is in test_plot_images.py."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

import hwwatch
from hwwatch.plots.thinning import columns, extremes
from hwwatch.types import KINDS

mpl.use("agg")


@pytest.fixture(autouse=True)
def no_figure_stays() -> Iterator[None]:
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


def legend_of(ax: Axes) -> list[str]:
    figure = ax.figure
    boxes = [box for box in (ax.get_legend(), *figure.legends) if box is not None]
    return [text.get_text() for box in boxes for text in box.get_texts()]


def coordinates(ax: Axes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    lines = [line for line in ax.lines if len(line.get_xdata()) and line.get_transform() == ax.transData]
    return (
        np.concatenate([np.asarray(line.get_xdata(), float) for line in lines]),
        np.concatenate([np.asarray(line.get_ydata(), float) for line in lines]),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_every_kind_draws_and_leaves_matplotlib_alone(story: pd.DataFrame, kind: str, style: str) -> None:
    import matplotlib.pyplot as plt

    with plt.style.context(style):
        ax = story.hwwatch.plot(kind=kind)
        ax.figure.canvas.draw()
        assert isinstance(ax, Axes)
        assert ax.has_data()


def test_panels_colours_and_legend(story: pd.DataFrame) -> None:
    ax = story.hwwatch.plot()
    axes = ax.figure.axes
    assert [panel.get_title(loc="left") for panel in axes] == [
        "a · [0]: 9 hits",
        "n · [0]: 4 hits",
        "n · [1]: 2 hits",
    ]
    assert axes[0] is ax
    assert axes[-1].get_xlabel().splitlines() == [
        "time since the first hit (ms)",
        "0 is 2026-01-02 03:04:05.000000 UTC",
    ]
    assert len({panel.get_xlim() for panel in axes}) == 1
    texts = legend_of(ax)
    lines = story.drop_duplicates("line")
    assert [text for text in texts if "conftest" in text] == [
        f"conftest.py:{line} {name} ({hits})"
        for line, name, hits in zip(lines.line, lines.function, (10, 4, 1), strict=True)
    ]
    assert {"by line (hits)", "by thread", "MainThread", "write", "skipped", "changed without a row"} <= {
        *texts
    }
    box = ax.figure.legends[0]
    ax.figure.canvas.draw()
    edge = max(panel.get_window_extent().x1 for panel in axes)
    assert box.get_window_extent().x0 >= edge  # outside the data


def test_steps_go_through_every_value(story: pd.DataFrame) -> None:
    ax = story[story.watch == "a"].hwwatch.plot()
    held = story.hwwatch.values("a").to_numpy()
    x, y = coordinates(ax)
    for i, value in zip((0, 1, 2, 3, 4, 5, 9, 10, 12), held, strict=True):
        assert np.any((x == i) & (y == value)), (i, value)
    assert np.any((x == 9) & (y == 9.0))  # the skipped write, as a mark
    solid = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert not any(9.0 in np.asarray(line.get_ydata()) for line in solid)  # never held
    dotted = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert any(2.0 in np.asarray(line.get_ydata()) for line in dotted)  # the change without a row


def test_marks_tell_threads_and_skips_apart(story: pd.DataFrame) -> None:
    ax = story[story.watch == "a"].hwwatch.plot()
    marks = [line for line in ax.lines if line.get_marker() not in ("None", None, "")]
    worker = [line for line in marks if 4.0 in np.asarray(line.get_xdata())]
    main = [line for line in marks if 0.0 in np.asarray(line.get_xdata())]
    assert {line.get_marker() for line in worker}.isdisjoint({line.get_marker() for line in main})
    skipped = [line for line in marks if 9.0 in np.asarray(line.get_ydata())]
    assert {line.get_marker() for line in skipped} == {"o", "x"}
    assert any(line.get_markerfacecolor() == "none" for line in skipped)
    assert all(line.get_markerfacecolor() != "none" for line in main)


def test_reads_are_hollow(story: pd.DataFrame) -> None:
    access = pd.Categorical(["write", "read"] + ["write"] * 7, categories=story.access.cat.categories)
    ax = story[story.watch == "a"].assign(access=access).hwwatch.plot()
    hollow = [line for line in ax.lines if line.get_marker() == "o" and line.get_markerfacecolor() == "none"]
    assert [1.0] in [np.asarray(line.get_xdata()).tolist() for line in hollow]
    assert "read" in legend_of(ax)


def test_bars_add_up(story: pd.DataFrame) -> None:
    import matplotlib.pyplot as plt

    for kind, wanted in (("by_line", [10, 4, 1]), ("by_instruction", [15])):
        _, ax = plt.subplots()
        story.hwwatch.plot(kind=kind, ax=ax)
        total = dict.fromkeys(range(len(wanted)), 0.0)
        for bar in ax.patches:
            total[round(bar.get_y() + bar.get_height() / 2)] += bar.get_width()
        assert list(total.values()) == wanted
        assert [label.get_text() for label in ax.texts] == [str(count) for count in wanted]


def test_one_colour_a_line_in_all_pictures(story: pd.DataFrame) -> None:
    bars = story.hwwatch.plot(kind="by_line")
    colours = {
        label.get_text(): to_hex(bar.get_facecolor())
        for label, bar in zip(
            bars.get_yticklabels(), sorted(bars.patches, key=lambda b: b.get_y()), strict=True
        )
    }
    box = story.hwwatch.plot().figure.legends[0]
    for handle, text in zip(box.legend_handles, box.get_texts(), strict=True):
        name = text.get_text().rpartition(" (")[0]
        if name in colours and "story" not in name:  # its bar is hollow: all of it was skipped
            assert to_hex(handle.get_color()) == colours[name]


def test_more_lines_than_colours(story: pd.DataFrame) -> None:
    frame = pd.concat([story[story.watch == "a"]] * 3).assign(
        line=pd.array([*range(1, 20), *[1] * 8], "Int64")
    )
    texts = legend_of(frame.reset_index(drop=True).hwwatch.plot())
    assert any(text.startswith("14 other lines (") for text in texts), texts


def test_callers_axes(story: pd.DataFrame) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2)
    assert story.hwwatch.plot(ax=left, legend=False) is left
    assert len(figure.axes) == 4  # three panels share the place of the left one
    assert not right.has_data()
    assert left.get_position().x1 < right.get_position().x0
    free = figure.add_axes((0.1, 0.1, 0.3, 0.3))
    assert story.hwwatch.plot(ax=free) is free
    assert plt.get_fignums() == [figure.number]


def test_against_the_number_of_the_hit(story: pd.DataFrame) -> None:
    ax = story[story.watch == "n"].hwwatch.plot(x="seq")
    assert ax.figure.axes[-1].get_xlabel() == "number of the hit (seq)"
    assert {6.0, 7.0, 8.0, 13.0} <= {*coordinates(ax)[0]}


class Pair(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int32), ("tag", ctypes.c_char * 4))


VALUES = [
    ("bool", [True, False, True], {"False", "True"}),
    ("S3", [b"abc", b"xyz", b""], {"b'abc'", "b'xyz'"}),
    ("V3", [b"\x01\x02\xff", b"\x00\x00\x01"], {"01 02 ff", "00 00 01"}),
    ("U2", ["ab", "ü"], {"'ab'", "'ü'"}),
    ("f8", [1.0, np.nan, np.inf, -np.inf], {"nan", "inf", "−inf"}),
    ("f2", [1.0, np.nan], {"nan"}),
    ("g", [1.0, np.inf], {"inf"}),
    ("M8[s]", ["2020-01-01", "NaT", "2021-01-01"], {"NaT"}),
    ("m8[s]", [5, "NaT", 7], {"NaT"}),
    ("f8", [1e-300, 1e300, -1e200, 1.7e308], {"0"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "values", "ticks"), VALUES, ids=[f"{v[0]}-{i}" for i, v in enumerate(VALUES)]
)
@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
def test_values_of_every_type(
    history: Callable[..., pd.DataFrame], dtype: str, values: Any, ticks: set[str]
) -> None:
    ax = history(np.zeros(2, dtype), values).hwwatch.plot()
    ax.figure.canvas.draw()
    low, high = sorted(ax.get_ylim())
    shown = {label.get_text() for label in ax.get_yticklabels() if low <= label.get_position()[1] <= high}
    assert ticks <= shown, shown
    marks = [line for line in ax.lines if line.get_marker() not in ("None", None, "")]
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in marks])
    assert np.isfinite(drawn).sum() >= len(values)  # none is invisible


@pytest.mark.parametrize(
    "dtype", ["M8[D]", "M8[us]", "M8[s]", "M8[W]", "M8[as]", "M8[10ns]", "m8[ps]", "m8[Y]"]
)
@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
def test_times_far_from_now(fake_session: Any, fake: Any, dtype: str) -> None:
    """What is no date that a calendar has is drawn beside it."""
    array = np.zeros(1, dtype)
    fake_session.watch(array)
    for number in (2**62, -(2**62), -(2**63), 7):
        fake.store(array.ctypes.data, np.int64(number).tobytes())
    ax = hwwatch.plot(session=fake_session)
    ax.figure.canvas.draw()
    texts = {label.get_text() for label in ax.get_yticklabels()}
    assert "NaT" in texts
    if dtype in ("M8[D]", "M8[us]", "M8[s]", "M8[W]"):
        assert {"< 500", "> 9500"} <= texts
    marks = [line for line in ax.lines if line.get_marker() not in ("None", None, "")]
    assert all(np.isfinite(np.asarray(line.get_ydata(), float)).all() for line in marks)


@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
def test_complex_numbers_have_two_panels(history: Callable[..., pd.DataFrame]) -> None:
    ax = history(np.zeros(1, complex), (1 + 2j, 3 - 1j)).hwwatch.plot()
    titles = [panel.get_title(loc="left") for panel in ax.figure.axes]
    assert [title.partition(",")[2].partition(":")[0] for title in titles] == [
        " real part",
        " imaginary part",
    ]


def test_a_structure_has_a_panel_a_field(fake_session: Any, fake: Any) -> None:
    pair = Pair()
    watch = fake_session.watch(pair, name="pair")
    fake.store(ctypes.addressof(pair), bytes(ctypes.c_int32(7)))
    fake.store(ctypes.addressof(pair) + 4, b"go\0\0")
    ax = watch.timeline().hwwatch.plot()
    assert [panel.get_title(loc="left") for panel in ax.figure.axes] == [
        "pair · x: 1 hit",
        "pair · tag: 1 hit",
    ]


def test_many_elements_are_lanes(fake_session: Any, fake: Any) -> None:
    array = np.zeros(16, np.uint8)
    watch = fake_session.watch(array[:8], name="bytes")
    for i in (7, 0, 3, 4, 1):
        fake.store(array.ctypes.data + i, b"\x01")
    for kind in ("values", "elements"):
        ax = watch.timeline().hwwatch.plot(kind=kind)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["[0]", "[1]", "[3]", "[4]", "[7]"]
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first element is on top


def test_too_many_watches_are_told(fake_session: Any, fake: Any) -> None:
    array = np.zeros(12)
    for i in range(12):
        with fake_session.watching(array[i : i + 1], name=f"w{i}"):
            fake.store(array[i:].ctypes.data, np.float64(1).tobytes())
    ax = fake_session.plot()
    assert len(ax.figure.axes) == 7
    assert "not shown: 5 hits of 5 more watches" in ax.figure.axes[-1].get_xlabel()


def words(ax: Axes) -> str:
    return " ".join(" ".join(text.get_text() for text in ax.texts).split())


def test_no_hits_say_what_that_means(fake_session: Any, fake: Any) -> None:
    assert words(fake_session.plot()) == "Nothing has been watched."
    array = np.zeros(2)
    watch = fake_session.watch(array[:1], name="v")
    for kind in KINDS:
        assert words(fake_session.plot(watch, kind=kind)).startswith("no hits")
    fake.store(array.ctypes.data, np.float64(1).tobytes())
    none = watch.timeline()
    assert (
        words(none[none.new > 5].hwwatch.plot())
        == "None of the 1 hits that were recorded is among these rows."
    )
    other = fake_session.watch(array[1:], name="u")
    fake_session.unwatch(other)
    assert "watched no more" in words(
        fake_session.timeline("u").hwwatch.plot() if other.hits else _gone(none)
    )


def _gone(frame: pd.DataFrame) -> Axes:
    frame = frame[:0].copy()
    frame.attrs["hwwatch"] = {"coverage": {**frame.attrs["hwwatch"]["coverage"], "watches": []}}
    axes: Axes = frame.hwwatch.plot()
    return axes


@pytest.mark.parametrize(("option", "value"), [("kind", "pie"), ("x", "clock")])
def test_unknown_choices(story: pd.DataFrame, option: str, value: str) -> None:
    with pytest.raises(hwwatch.TargetError, match=f"{option}='{value}' is none of "):
        story.hwwatch.plot(**{option: value})


def test_module_function(story: pd.DataFrame, fake_session: Any) -> None:
    ax = hwwatch.plot("a", session=fake_session)
    assert ax.get_title(loc="left").startswith("a · [0]: 9 hits")


def large(story: pd.DataFrame, count: int) -> pd.DataFrame:
    """A random walk with two spikes that one hit each makes, by many lines and two threads."""
    random = np.random.default_rng(5)
    frame = story.iloc[random.integers(0, 6, count)].reset_index(drop=True).rename_axis("seq")
    walk = np.cumsum(random.normal(size=count))
    walk[count // 3], walk[count // 2] = 1e4, -1e4
    time = story.time.iloc[0] + pd.to_timedelta(np.cumsum(random.integers(1, 30_000, count)), unit="ns")
    return frame.assign(
        time=pd.DatetimeIndex(time).as_unit("ns"),
        new=walk,
        old=np.append(0, walk[:-1]),
        line=pd.array(random.integers(1, 12, count), "Int64"),
    )


def test_thinning_keeps_extremes_and_their_lines(story: pd.DataFrame) -> None:
    frame = large(story, 200_000)
    ax = frame.hwwatch.plot()
    x, y = coordinates(ax)
    assert len(x) < 120_000
    assert np.nanmax(y) == 1e4
    assert np.nanmin(y) == -1e4
    # 250 columns, each of 4 of those that are drawn
    column = columns((frame.time - frame.time.iloc[0]).dt.total_seconds().to_numpy(), 250)
    table = frame.new.groupby(column)
    values = set(y[~np.isnan(y)])
    assert all(low in values and high in values for low, high in zip(table.min(), table.max(), strict=True))
    assert "extremes" in ax.get_title(loc="left")


@pytest.mark.parametrize("seed", range(20))
def test_extremes_are_those_of_a_plain_loop(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 60))
    groups, values = random.integers(0, 7, count), random.integers(-3, 3, count).astype(float)
    values[random.random(count) < 0.2] = np.nan
    chosen = set(extremes(groups, values).tolist())
    for group in set(groups.tolist()):
        rows = [i for i in range(count) if groups[i] == group and not np.isnan(values[i])]
        if rows:
            assert min(rows, key=lambda i: (values[i], i)) in chosen
            assert max(rows, key=lambda i: (values[i], -i)) in chosen
        else:
            assert any(groups[i] == group for i in chosen)
    assert len(chosen) <= 3 * len(set(groups.tolist()))


@pytest.mark.slow
def test_a_million_hits(story: pd.DataFrame) -> None:
    """Drawn with few artists and few points; how long it takes is the benchmark's to tell."""
    frame = large(story, 1_000_000)
    for kind, x in itertools.product(KINDS, ("time", "seq")):
        ax = frame.hwwatch.plot(kind=kind, x=x)
        with contextlib.suppress(ValueError):  # bars have no lines
            assert len(coordinates(ax)[0]) < 100_000
        assert len(ax.lines) < 300
