"""pandas: the NumPy memory behind a Series, never a copy of it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hwwatch.errors import TargetError
from hwwatch.targets import Leaf, locate, target_of


def stored(leaf: Leaf) -> Any:
    return np.frombuffer(ctypes.string_at(leaf.address, leaf.dtype.itemsize), leaf.dtype)[0]


def base(series: Any) -> int:
    return int(series.to_numpy(copy=False).ctypes.data)


SERIES_PLACES = {
    "ser.iloc[3]": [(3,)],
    "ser.iloc[-2]": [(3,)],
    "ser.iat[3]": [(3,)],
    "ser.loc['d']": [(3,)],
    "ser.at['d']": [(3,)],
    "ser['d']": [(3,)],
    "ser.iloc[1:4]": [(1,), (2,), (3,)],
    "ser.iloc[4:1:-2]": [(4,), (2,)],
    "ser.loc['b':'d']": [(1,), (2,), (3,)],
    "ser['b':'e':2]": [(1,), (3,)],
    "ser.values[3]": [(3,)],
    "ser.array[3]": [(3,)],
    "df['x'].iloc[3]": [(3,)],
    "df['x'][3]": [(3,)],
    "df.x.loc[3]": [(3,)],
    "df.iloc[3, 0]": [(3, 0)],
    "df.iat[3, 0]": [(3, 0)],
    "df.loc[3, 'x']": [(3, 0)],
    "df.at[3, 'x']": [(3, 0)],
    "df.loc[1:2, 'x']": [(1, 0), (2, 0)],
}


@pytest.mark.parametrize("text", SERIES_PLACES)
def test_places_by_position_and_label(text: str) -> None:
    ser = pd.Series(np.arange(5.0), index=list("abcde"))
    df = pd.DataFrame({"x": np.arange(5.0), "y": np.arange(5)})
    start = base(ser) if text.startswith("ser") else base(df["x"])
    target = locate(text)
    elements = SERIES_PLACES[text]
    assert [leaf.element for leaf in target.leaves] == elements
    assert [leaf.address for leaf in target.leaves] == [start + 8 * e[0] for e in elements]
    assert "copies on write" in target.note


@pytest.mark.parametrize("store", ["ser.iloc[3] = 9.5", "df.loc[3, 'x'] = 9.5", "df.iat[3, 0] = 9.5"])
def test_an_assignment_in_place_is_seen(store: str) -> None:
    ser = pd.Series(np.arange(5.0))
    df = pd.DataFrame({"x": np.arange(5.0), "y": np.arange(5)})
    target = locate("ser.iloc[3]") if store.startswith("ser") else locate("df['x'].iloc[3]")
    exec(store, {"ser": ser, "df": df})
    assert stored(target.leaves[0]) == 9.5  # the target itself holds no Series, which would force a copy


def test_whole_series_and_index() -> None:
    ser = pd.Series(np.array([1, 2, 3], dtype=np.int16))
    target = target_of(ser)
    assert target.ranges == ((base(ser), 6),)
    assert [stored(leaf) for leaf in target.leaves] == [1, 2, 3]
    assert target_of(ser.iloc[1:2]).address == base(ser) + 2
    when = pd.Series(pd.date_range("2020", periods=2))
    assert stored(target_of(when).leaves[1]) == np.datetime64("2020-01-02")
    assert stored(locate("index[1]", {"index": pd.Index([10, 20])}).leaves[0]) == 20
    masked = pd.Series([1, 2], dtype="Int64")
    assert stored(target_of(masked).leaves[1]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("words", "not backed by a NumPy array"),
        ("arrow", "not backed by a NumPy array"),
        ("arrow.iloc[0]", "not backed by a NumPy array"),
        ("boxes", "pointers to Python objects"),
        ("categories", "not backed"),
        ("steps", "RangeIndex"),
        ("missing.iloc[0]", "pointers|copies"),
        ("long", r"8,000 bytes asked.*iloc"),
        ("df", r"no single array.*iloc"),
        ("df.iloc[1]", "Name the column"),
        ("df.iloc[0:1, 0:2]", "one column"),
        ("df['z'].iloc[0]", "KeyError"),
        ("df['z']", "KeyError"),
        ("df.colunm", "Did you mean `column`"),
        ("df.iloc[9, 0]", "out of range"),
        ("long.iloc[[1, 2]]", "copy"),
        ("long.loc['q']", "KeyError"),
        ("long[long > 3].iloc[0]", "new copy"),
        ("long[long > 3]", "cannot watch `long"),
        ("long.iloc[long > 3]", "copy"),
        ("df[df.y > 1].iloc[0, 0]", "new copy"),
        ("df[df.y > 1]['y']", "new copy"),
        ("(df.y + 1).iloc[0]", "`df.y \\+ 1`: it computes a new value"),
        ("twice.loc[7]", "copy"),
        ("long > 3", "computes a new value"),
    ],
)
def test_refused(text: str, message: str) -> None:
    names = {
        "pd": pd,
        "words": pd.Series(["a", "b"]),
        "arrow": pd.Series([1, 2], dtype="int64[pyarrow]"),
        "boxes": pd.Series([[], {}], dtype=object),
        "categories": pd.Series(["a"], dtype="category"),
        "steps": pd.RangeIndex(3),
        "missing": pd.Series([1, None], dtype="Int64"),
        "long": pd.Series(np.arange(1000.0)),
        "twice": pd.Series([1.0, 2.0, 3.0], index=[7, 8, 7]),
        "df": pd.DataFrame({"column": [1.0, 2.0], "y": [1.0, 2.0]}),
    }
    with pytest.raises(TargetError, match=message):
        locate(text, names)
