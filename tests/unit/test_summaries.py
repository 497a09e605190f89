"""``df.hwwatch``: what it says equals what plain pandas finds, and a frame that is no timeline is told so."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import hwwatch
from hwwatch.errors import FrameError

KEYS = ["file", "line", "function"]


def plain_counts(story: pd.DataFrame, rows: Any = slice(None)) -> dict[Any, int]:
    found = story[rows].groupby(KEYS, observed=True).size()
    return {tuple(key): int(count) for key, count in found.items()}


def test_by_line_counts_as_pandas_does(story: pd.DataFrame) -> None:
    lines = story.hwwatch.by_line()
    counts = {(row.file, row.line, row.function): row.hits for row in lines.itertuples()}
    assert counts == plain_counts(story)
    assert lines.hits.tolist() == sorted(lines.hits, reverse=True) == [10, 4, 1]
    assert lines.hits.sum() == len(story)
    assert lines.writes.tolist() == [10, 4, 1]
    assert lines.reads.tolist() == [0, 0, 0]
    assert lines.skipped.tolist() == [0, 0, 1]
    assert lines.changed.tolist() == [10, 4, 1]
    for name, pick in (("first", "min"), ("last", "max")):
        wanted = story.groupby("line")["time"].agg(pick)
        assert lines.set_index("line")[name].to_dict() == wanted.to_dict()
    assert str(lines.line.dtype) == str(lines.cell.dtype) == "Int64"


def test_by_line_tells_places_and_values(story: pd.DataFrame) -> None:
    most, reset, skipped = story.hwwatch.by_line().to_dict("records")
    assert most["watches"] == reset["watches"] == ("a", "n")
    assert most["elements"] == ((0,), (1,))
    assert (most["old"], most["new"]) == ((0.0, 0, 0), (4.0, 30, -5))
    assert (reset["old"], reset["new"]) == ((3.5, 30, -5), (0.0, 0, 0))
    assert (skipped["old"], skipped["new"]) == (-2.0, 9.0)
    assert len(most["threads"]) == 2
    assert reset["threads"] == ("MainThread",)


def test_reads_and_readwrites(story: pd.DataFrame) -> None:
    access = pd.Categorical(["read", "readwrite", "write"] * 5, categories=story.access.cat.categories)
    lines = story.assign(access=access).hwwatch.by_line()
    assert lines.reads.sum() == 10
    assert lines.writes.sum() == 10


def test_rows_without_a_line(story: pd.DataFrame) -> None:
    """Threads without Python are one row, hits told late another."""
    frame = story.copy()
    frame.loc[[0, 1, 2], KEYS] = pd.NA
    frame.loc[2, "exact"] = False
    lines = frame.hwwatch.by_line()
    unknown = lines[lines.file.isna()]
    assert unknown.hits.tolist() == [2, 1]
    assert unknown.exact.tolist() == [True, False]
    assert lines.hits.sum() == len(story)


def test_by_instruction(story: pd.DataFrame) -> None:
    frame = story.assign(instruction=pd.Categorical(["mov [rax], rcx", "stosb", "stosb"] * 5))
    found = frame.hwwatch.by_instruction()
    assert dict(zip(found.instruction, found.hits, strict=True)) == {"stosb": 10, "mov [rax], rcx": 5}
    assert found.hits.tolist() == [10, 5]
    with pytest.raises(FrameError, match="none of the columns instruction"):
        frame[["watch", "access", "old", "new"]].hwwatch.by_instruction()


def test_values_are_what_memory_held(story: pd.DataFrame) -> None:
    held = story.hwwatch.values("a")
    assert held.tolist() == [1.5, 2.5, 3.5, 0, -1, -2, -2, 4, 0]  # the skipped 9.0 never was
    assert (held.name, held.dtype) == ("a", np.float64)
    assert held.index.names == ["element", "time"]
    assert held.index.get_level_values("time").tolist() == story[story.watch == "a"].time.tolist()
    numbers = story.hwwatch.values("n")
    assert (numbers.tolist(), numbers.dtype) == ([10, 20, 30, -5, 0, 0], np.int32)


def test_values_of_one_place_stand_against_time(history: Callable[..., pd.DataFrame]) -> None:
    frame = history(np.zeros(1, np.float32), (1, 2, 3)).assign(element=None)
    held = frame.hwwatch.values()
    assert (held.tolist(), held.index.name, held.dtype) == ([1, 2, 3], "time", np.float32)
    assert held.index.tolist() == frame.time.tolist()


def test_which_watch(story: pd.DataFrame, fake_session: Any) -> None:
    assert story.hwwatch.values(fake_session.find("n")).equals(story.hwwatch.values("n"))
    assert story.hwwatch.values(2).equals(story.hwwatch.values("n"))
    with pytest.raises(hwwatch.TargetError, match=r"which watch.* has 2: a, n"):
        story.hwwatch.values()
    with pytest.raises(hwwatch.TargetError, match="no watch 'z'; it has: a, n"):
        story.hwwatch.values("z")
    watch = fake_session.find("n")
    watch.name = "1"
    for which in (watch, 2, "2", np.int64(2)):
        assert story.hwwatch.values(which).equals(story.hwwatch.values("n"))
    assert story.hwwatch.values("1").equals(story.hwwatch.values("a"))
    assert fake_session.timeline().hwwatch.values("1").tolist() == story.hwwatch.values("n").tolist()
    for nothing in (True, 1.0, np.zeros(2), [watch]):
        with pytest.raises(hwwatch.TargetError, match="it has: a, n"):
            story.hwwatch.values(nothing)


def test_filtered_and_sliced(story: pd.DataFrame) -> None:
    rows = (story.new > 0).to_numpy(bool)
    lines = story[rows].hwwatch.by_line()
    counts = {(row.file, row.line, row.function): row.hits for row in lines.itertuples()}
    assert counts == plain_counts(story, rows)
    assert story[story.watch == "none"].hwwatch.by_line().empty
    assert story[:0].hwwatch.values("a").empty
    few = story[["watch", "access", "old", "new"]].hwwatch.by_line()
    assert few.hits.tolist() == [15]


def test_read_back(story: pd.DataFrame) -> None:
    """From CSV, with everything as text or number; from Parquet, where elements are text."""
    text = io.StringIO(story.to_csv())
    packed = io.BytesIO()
    story.assign(
        old=story.old.astype(float), new=story.new.astype(float), element=story.element.astype(str)
    ).to_parquet(packed)
    wanted = story.hwwatch.by_line()
    for frame in (pd.read_csv(text, index_col="seq"), pd.read_parquet(packed)):
        lines = frame.hwwatch.by_line()
        for name in ("file", "line", "function", "hits", "writes", "skipped", "first", "last", "threads"):
            assert lines[name].tolist() == wanted[name].tolist(), name
        assert frame.hwwatch.values("a").tolist() == story.hwwatch.values("a").tolist()


def test_no_timeline() -> None:
    frame = pd.DataFrame({"x": [1], "watch": ["a"]})
    with pytest.raises(
        FrameError, match=r"no timeline: it lacks the columns access, old, new\. .*\[no-timel"
    ):
        _ = frame.hwwatch
    assert not hasattr(frame, "hwwatch")
    with pytest.raises(AttributeError) as caught:
        _ = frame.hwwatch
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["import hwwatch\nimport pandas", "import pandas\nimport hwwatch"])
def test_accessor_comes_with_pandas(in_child: Callable[..., Any], order: str) -> None:
    """Whichever is imported first; and looking for pandas is not yet importing it."""
    script = f"""
import subprocess
code = '''
import importlib.util, sys
{order}
'''
probe = '''
import importlib.util, sys
import hwwatch
assert importlib.util.find_spec("pandas") is not None and "pandas" not in sys.modules
'''
check = '''
import pandas
assert hasattr(pandas.DataFrame(columns=["watch", "access", "old", "new"]), "hwwatch")
assert type(pandas.__spec__.loader).__module__ != "hwwatch.accessors"
assert not any(type(finder).__module__ == "hwwatch.accessors" for finder in sys.meta_path)
print("yes")
'''
run = lambda text: subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
one, two = run(code + check), run(probe + check)
report([one.stdout, two.stdout, one.stderr + two.stderr])
"""
    assert in_child(script) == ["yes\n", "yes\n", ""]
