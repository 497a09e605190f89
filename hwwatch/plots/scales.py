"""Values of any type → positions on an axis, and what to write beside it."""

# matplotlib.dates is untyped:
# mypy: allow-untyped-calls

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NAMES = 8
_MOST_TEXT = 18
#: The axis has powers of ten where the largest value is so many times the median one.
_WIDE = 1e4


@dataclass
class Reading:
    """Values of a watch as positions.

    Attributes
    ----------
    label : str
        Which part of the value, such as ``"real"``; mostly empty.
    old, new : array of float, shape (n,)
        nan where there is no value.
    unit : str
        Of the numbers, for the axis.
    apply : function of an Axes
        Sets its scale, ticks and tick labels.
    """

    old: NDArray[np.float64]
    new: NDArray[np.float64]
    label: str = ""
    unit: str = "value"
    apply: Callable[[Axes], None] = field(default=lambda ax: None)


def read(old: Any, new: Any) -> list[Reading]:
    """Positions of old and new values: one Reading, and two for complex numbers.

    Parameters
    ----------
    old, new : Series
        Columns of a timeline, or parts of them.

    Notes
    -----
    Numbers stand where they are; nan and infinities on lines of their own below and above. Times stand on a
    calendar, those before the year 500 and after 9500 beside it; durations in seconds. All else (bool, text,
    bytes, structures) has a line for each distinct value, in order of appearance; where there are many, the
    rarest share one.
    """
    both = np.concatenate([_plain(old), _plain(new)])
    kind = both.dtype.kind
    if kind == "b":
        return [_named(both, ["False", "True"], both.astype(np.int64))]
    if kind == "c":
        return [_numeric(both.real, "real part"), _numeric(both.imag, "imaginary part")]
    if kind == "M":
        return [_dates(both)]
    if kind == "m":
        return [_numeric(_seconds(both), unit="duration (s)", missing="NaT")]
    if kind in "iuf":
        return [_numeric(both)]
    return [_texts(both)]


def _plain(column: Any) -> NDArray[Any]:
    """A column as an array of one NumPy dtype where its values are of one kind, else of objects."""
    array: NDArray[Any] = np.asarray(getattr(column, "array", column))
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    if array.dtype.kind in "OTU":
        array = array.astype(object)
    if array.dtype != object:
        return array
    items = array.tolist()
    classes = set(map(type, items)) - {type(None)}
    present = type(None) not in map(type, items)
    kinds = {_kind(each) for each in classes}
    if kinds == {"b"} and present:
        return array.astype(bool)
    for allowed, dtype in (("biuf", np.float64), ("biufc", np.complex128)):
        if kinds and kinds <= set(allowed):
            filled = items if present else [np.nan if item is None else item for item in items]
            return np.array(filled, dtype=dtype)
    if kinds in ({"M"}, {"m"}):
        return _times(items, kinds.pop())
    if kinds == {"text"} and present:  # CSV, where several watches share the column
        for kind in (np.float64, np.complex128):
            with contextlib.suppress(ValueError):
                return array.astype(kind)
    return array


def _times(items: list[Any], kind: str) -> NDArray[Any]:
    """Times as an array of their own unit, or of the one that pandas' have."""
    found = {item.dtype for item in items if item is not None and isinstance(item, np.generic)}
    one = found.pop() if len(found) == 1 else None
    if one is None or any(item is not None and not isinstance(item, np.generic) for item in items):
        one = np.dtype(f"{kind}8[us]")
    missing = np.array("NaT", one)[()]
    out = np.full(len(items), missing, one)
    for i, item in enumerate(items):
        with contextlib.suppress(ValueError, OverflowError, TypeError):  # of other units: no place is found
            out[i] = missing if item is None else item
    return out


def _seconds(times: NDArray[Any]) -> NDArray[np.float64]:
    """Durations, or times since 1970, in about as many seconds: what does not fit an integer is no matter."""
    unit, count = np.datetime_data(times.dtype)
    return np.where(np.isnat(times), np.nan, times.view(np.int64) * (count * _SECONDS[unit]))


_SECONDS = {"Y": 31556952.0, "M": 2629746.0, "W": 604800.0, "D": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_SECONDS |= {"ms": 1e-3, "us": 1e-6, "ns": 1e-9, "ps": 1e-12, "fs": 1e-15, "as": 1e-18, "generic": 1.0}
#: Years that a calendar has room for, with margins.
_YEARS = (500, 9500)


def _kind(each: type) -> str:
    """NumPy's letter for what values of a class are; "text" for Python's own."""
    if issubclass(each, np.generic):
        return np.dtype(each).kind
    if each is str:
        return "text"
    for kind, letter in ((bool, "b"), (int, "i"), (float, "f"), (complex, "c")):
        if issubclass(each, kind):
            return letter
    return _CLASSES.get(each.__name__, "O")


_CLASSES = {"Timestamp": "M", "datetime": "M", "Timedelta": "m", "timedelta": "m"}


def _halves(both: NDArray[np.float64], **options: Any) -> Reading:
    return Reading(both[: len(both) // 2], both[len(both) // 2 :], **options)


def _numeric(numbers: NDArray[Any], label: str = "", unit: str = "value", missing: str = "nan") -> Reading:
    whole = numbers.dtype.kind in "iu"
    numbers = numbers.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    forward, powers = _wide(finite) if _is_wide(finite) else (_same, None)
    places, beyond, low, high = _beyond(numbers, forward, missing)

    def apply(ax: Axes) -> None:
        from matplotlib.ticker import MaxNLocator, ScalarFormatter

        locator = MaxNLocator(nbins=5, integer=whole, min_n_ticks=1)
        if powers is None and not beyond:
            ax.yaxis.set_major_locator(locator)
            return
        shown = powers
        if shown is None:
            at = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
            formatter = ScalarFormatter()
            formatter.create_dummy_axis()
            formatter.set_locs(at)
            shown = [(tick, formatter(tick)) for tick in at] if len(finite) else []
        _fixed(ax, shown, beyond)

    return _halves(places, label=label, unit=unit, apply=apply)


def _beyond(
    numbers: NDArray[np.float64],
    forward: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    missing: str,
    ends: Sequence[str] = ("−inf", "inf"),
) -> tuple[NDArray[np.float64], list[tuple[float, str]], float, float]:
    """Places of numbers, with nan and infinities out of reach of the others; those; lowest, highest other."""
    places = forward(numbers)
    low, high = _range(places[np.isfinite(numbers)])
    gap = 0.12 * (high - low)
    beyond: list[tuple[float, str]] = []
    for name, mask, place in (
        (missing, np.isnan(numbers), low - 2 * gap),
        (ends[0], numbers == -np.inf, low - gap),
        (ends[1], numbers == np.inf, high + gap),
    ):
        if mask.any():
            places = np.where(mask, place, places)
            beyond.append((place, name))
    return places, beyond, low, high


def _fixed(ax: Axes, ticks: Sequence[tuple[float, str]], beyond: Sequence[tuple[float, str]]) -> None:
    """Ticks where the axis is no plain scale; dotted lines for what is beyond it."""
    for place, _ in beyond:
        ax.axhline(place, lw=0.6, ls=":", color=ax.spines["left"].get_edgecolor(), zorder=0)
    every = [*ticks, *beyond]
    ax.set_yticks([place for place, _ in every], [text for _, text in every])


def _same(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return numbers


def _range(places: NDArray[np.float64]) -> tuple[float, float]:
    if not len(places):
        return 0.0, 1.0
    low, high = float(places.min()), float(places.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _is_wide(finite: NDArray[np.float64]) -> bool:
    sizes = np.abs(finite[finite != 0])
    return len(sizes) > 0 and bool(sizes.max() > 1e300 or sizes.max() / _WIDE > np.median(sizes))


def _wide(
    finite: NDArray[np.float64],
) -> tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], list[tuple[float, str]]]:
    """Powers of ten at equal distances, zero amid them, and the ticks."""
    sizes = np.abs(finite[finite != 0])
    least = max(np.floor(np.log10(max(sizes.min(), 1e-320))), np.floor(np.log10(sizes.max())) - 40)

    def forward(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            decades = np.log10(np.abs(numbers)) - least + 1
        return np.where(numbers == 0, 0.0, np.sign(numbers) * np.maximum(decades, 0))

    most = int(np.ceil(np.log10(sizes.max())))
    step = max(1, -(-int(most - least) // 4))
    lowest = int(least) - 1 + (most - int(least)) // 8  # those about zero would stand in each other's way
    powers = range(most, lowest, -step)
    ticks = [(0.0, "0")] if (finite <= 0).any() else []
    if (finite > 0).any():
        ticks += [(float(power - least + 1), f"$10^{{{power}}}$") for power in powers]
    if (finite < 0).any():
        ticks += [(-float(power - least + 1), f"$-10^{{{power}}}$") for power in powers]
    return forward, sorted(ticks)


def _dates(both: NDArray[Any]) -> Reading:
    from matplotlib.dates import date2num

    years = 1970 + _seconds(both) / _SECONDS["Y"]
    near = (years > _YEARS[0]) & (years < _YEARS[1])
    days = np.full(len(both), np.nan)  # as it stays for NaT
    days[years <= _YEARS[0]], days[years >= _YEARS[1]] = -np.inf, np.inf
    # date2num asks for microseconds, which NumPy does not find in all of these.
    fine = np.datetime_data(both.dtype)[0] in ("ps", "fs", "as")
    days[near] = _seconds(both[near]) / 86400 if fine else date2num(both[near])
    places, beyond, low, high = _beyond(days, _same, "NaT", (f"< {_YEARS[0]}", f"> {_YEARS[1]}"))

    def apply(ax: Axes) -> None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, num2date

        locator = AutoDateLocator(minticks=2, maxticks=5)
        locator.set_axis(ax.yaxis)
        formatter = ConciseDateFormatter(locator)
        if not beyond:
            ax.yaxis.set_major_locator(locator)
            ax.yaxis.set_major_formatter(formatter)
            return
        at = [
            float(tick) for tick in locator.tick_values(num2date(low), num2date(high)) if low <= tick <= high
        ]
        _fixed(
            ax,
            list(zip(at, formatter.format_ticks(at), strict=True)) if np.isfinite(days).any() else [],
            beyond,
        )

    return _halves(places, unit="value (date)", apply=apply)


def _texts(both: NDArray[Any]) -> Reading:
    """A line for each distinct value."""
    codes, names = _distinct(both)
    if len(names) > _MOST_NAMES:
        counts = np.bincount(codes[codes >= 0], minlength=len(names))
        kept = np.sort(np.argsort(-counts, kind="stable")[: _MOST_NAMES - 1])
        renumber = np.full(len(names) + 1, len(kept), np.int64)
        renumber[kept] = np.arange(len(kept))
        renumber[-1] = -1
        others = len(names) - len(kept)
        codes, names = renumber[codes], [*(names[i] for i in kept), f"{others} other values"]
    return _named(both, names, codes)


def _distinct(both: NDArray[Any]) -> tuple[NDArray[np.int64], list[str]]:
    import pandas as pd

    try:
        found, distinct = pd.factorize(both)
    except TypeError:  # structures cannot be hashed
        found, distinct = pd.factorize(np.array([None if v is None else shown(v) for v in both], object))
    number: dict[str, int] = {}
    codes = [number.setdefault(v if type(v) is str else shown(v), len(number)) for v in distinct]
    return np.array([*codes, -1], np.int64)[found], list(number)


def _named(both: NDArray[Any], names: Sequence[str], codes: NDArray[np.int64]) -> Reading:
    def apply(ax: Axes) -> None:
        ax.set_yticks(range(len(names)), [cut(name, _MOST_TEXT) for name in names])

    return _halves(np.where(codes < 0, np.nan, codes.astype(np.float64)), apply=apply)


def shown(value: Any) -> str:
    """A value as short text: bytes that are no text in hexadecimal, others as Python writes them."""
    if isinstance(value, bytes):
        text = bytes(value).rstrip(b"\0")
        return repr(text) if text.decode("latin-1").isprintable() and text.isascii() else value.hex(" ")
    return repr(str(value)) if isinstance(value, str) else str(value)


def cut(text: str, most: int) -> str:
    """At most so many characters; an ellipsis where some are left out."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
