"""Exported timelines: what is in the files, what comes back, and what is left when something fails."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

import hwwatch
from hwwatch import stretches
from hwwatch.digests import Digest
from hwwatch.exports import SUFFIXES, samples, write
from hwwatch.exports.loads import LOADED
from hwwatch.reports import ALSO, KEYS
from hwwatch.summaries import INSTRUCTION, grouped

NAN, INF = math.nan, math.inf


def same(back: pd.DataFrame, frame: pd.DataFrame, suffix: str) -> None:
    """The same columns, dtypes and objects; CSV keeps neither the order of categories nor unused ones."""
    attrs = frame.attrs
    if suffix == ".csv":
        frame = frame.assign(
            **{name: frame[name].cat.remove_unused_categories() for name in ("watch", "function", "file")}
        )
    pd.testing.assert_frame_equal(back, frame, check_categorical=suffix != ".csv", check_exact=True)
    for name, column in frame.items():
        if column.dtype == object:
            assert [type(item) for item in back[name]] == [type(item) for item in column], name
    assert back.attrs == ({} if suffix == ".csv" else attrs)


@pytest.mark.parametrize("suffix", LOADED)
def test_what_comes_back(fake_session: Any, story: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    file = story.hwwatch.export(tmp_path / f"hits{suffix}")
    assert file == tmp_path / f"hits{suffix}"
    same(hwwatch.load(file), story, suffix)
    fake_session.clear()
    empty = fake_session.timeline()
    same(hwwatch.load(empty.hwwatch.export(tmp_path / f"none{suffix}")), empty, suffix)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", LOADED)
@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("f8", (0.1, NAN, INF, -INF, -0.0, 5e-324, 1e300)), ("f4", (0.1, NAN, INF)), ("f2", (0.1, NAN)),
        ("g", (np.longdouble(1) / 3, NAN, -INF)), ("i8", (-(2**63), 2**63 - 1)), ("u8", (2**64 - 1, 3)),
        ("i1", (-128, 5)), ("?", (True, False)), ("c16", (1 - 2.5j, complex(NAN, -INF), -1e-300j)),
        ("c8", (0.1 + 3j,)), ("G", (1 + 2j, complex(INF, NAN))), ("M8[us]", ("2026-01-02T03:04:05", "NaT")),
        ("m8[ms]", (-5, 10**9)), ("M8[D]", ("1969-12-31",)), ("S4", (b"ab'", b"\xff\n", b"")),
        ("U2", ("é,", "", "NA", "a\r", "\r\n", "\n", '"')),
    ],
)  # fmt: skip
def test_values_of_every_dtype(
    history: Callable[..., pd.DataFrame], tmp_path: Path, suffix: str, dtype: str, values: Any
) -> None:
    frame = history(np.zeros(1, dtype), values)
    same(hwwatch.load(frame.hwwatch.export(tmp_path / f"v{suffix}")), frame, suffix)


def test_columns_that_plain_readers_find(history: Callable[..., pd.DataFrame], tmp_path: Path) -> None:
    """No other columns than the timeline's, and equal dtypes, but for elements, which are text."""
    frame = history(np.zeros(1), (1.5, NAN, 3))
    packed = pd.read_parquet(frame.hwwatch.export(tmp_path / "v.parquet"))
    text = pd.read_csv(frame.hwwatch.export(tmp_path / "v.csv"), index_col="seq", parse_dates=["time"])
    lines = [json.loads(line) for line in frame.hwwatch.export(tmp_path / "v.json").read_text().splitlines()]
    pd.testing.assert_frame_equal(packed.drop(columns="element"), frame.drop(columns="element"))
    assert packed.attrs == frame.attrs
    assert list(text.columns) == list(packed.columns) == list(frame.columns)
    assert text.time.tolist() == frame.time.tolist()
    np.testing.assert_array_equal(text.new, frame.new)
    assert set(text.element) == set(packed.element) == {"(0,)"}
    assert [list(line) for line in lines] == [["seq", *frame.columns]] * 3
    assert [line["new"] for line in lines] == [1.5, "NaN", 3.0]
    assert [line["element"] for line in lines] == [[0]] * 3


@pytest.mark.parametrize("suffix", LOADED)
def test_names_that_readers_mistake(story: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    names = ["NA", "null", 'a,"b"', "two\nlines", "", "é", "None"]
    codes = np.arange(len(story)) % len(names)
    odd = [name for name in names if name]  # an empty one and none are the same in CSV
    frame = story.assign(
        watch=pd.Categorical.from_codes(codes % len(odd), odd),
        function=pd.Categorical.from_codes(np.where(codes % 3 == 2, -1, codes % len(odd)), odd),
        element=pd.Series([None, (1, -2), "x", "NA", (7,)] * 3, story.index, dtype=object),
        stack=pd.Series([("f (a:1)", "g ('b':2)"), ()] * 7 + [()], story.index, dtype=object),
        rax=np.arange(len(story), dtype=np.uint64) + np.uint64(2**63),
    )
    back = hwwatch.load(frame.hwwatch.export(tmp_path / f"odd{suffix}"))
    same(back, frame, suffix)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "dtype", ["m8[ps]", "M8[as]", "M8[D]", "M8[W]", "M8[2h]", "m8[100ms]", "m8[Y]", "m8[D]"]
)
def test_times_that_pandas_has_not(
    fake_session: Any, fake: Any, tmp_path: Path, dtype: str, suffix: str
) -> None:
    array = np.zeros(1, dtype)
    fake_session.watch(array)
    for number in (3, 2**62, -(2**62), -(2**63)):
        fake.store(array.ctypes.data, np.int64(number).tobytes())
    file = fake_session.export(tmp_path / f"hits{suffix}")
    whole = fake_session.timeline()
    whole.hwwatch.export(tmp_path / f"whole{suffix}")
    if suffix in LOADED:
        for back in (hwwatch.load(file), hwwatch.load(tmp_path / f"whole{suffix}")):
            assert back.new.dtype == whole.new.dtype
            assert [np.asarray(v).view("i8").item() for v in back.new] == [
                np.asarray(v).view("i8").item() for v in whole.new
            ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_lone_surrogates_are_escaped(
    history: Callable[..., pd.DataFrame], tmp_path: Path, suffix: str
) -> None:
    frame = history(np.zeros(1, "U3"), ("a\udcff", "é"))
    file = frame.hwwatch.export(tmp_path / f"hits{suffix}")
    if suffix in LOADED:
        back = hwwatch.load(file)
        assert back.new.tolist() == ["a\\udcff", "é"]
    else:
        assert "udcff" in file.read_text(encoding="utf-8")


def test_calls_have_no_values(story: pd.DataFrame, tmp_path: Path) -> None:
    calls = story.iloc[:3].assign(
        access=pd.Categorical(["execute"] * 3, story.access.cat.categories),
        old=pd.Series([None] * 3, story.index[:3], dtype=object),
        new=pd.Series([None] * 3, story.index[:3], dtype=object),
        arg0=pd.Series([2**64 - 1, None, True], story.index[:3], dtype=object),
        xmm1=pd.Series([0.5, -INF, None], story.index[:3], dtype=object),
    )
    for suffix in SUFFIXES:
        calls.hwwatch.export(tmp_path / f"calls{suffix}")
    for suffix in (".parquet", ".feather"):
        same(hwwatch.load(tmp_path / f"calls{suffix}"), calls, suffix)


# Pieces


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "SIZE", 4)


@pytest.mark.usefixtures("story", "small_pieces")
@pytest.mark.parametrize("suffix", LOADED)
def test_pieces_make_the_whole(fake_session: Any, tmp_path: Path, suffix: str) -> None:
    pieces = list(fake_session.frames(stack=True, registers=True))
    assert len(pieces) > 3
    file = fake_session.export(tmp_path / f"hits{suffix}", stack=True, registers=True)
    whole = fake_session.timeline(stack=True, registers=True)
    back = hwwatch.load(file)
    back.attrs, whole.attrs = {}, {}  # the coverage has the time of its self-test
    same(back, whole, suffix)
    one = fake_session.export(tmp_path / f"one{suffix}", "n")
    assert set(hwwatch.load(one).watch) == {"n"}


def in_pieces(frame: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    yield frame.iloc[:0]
    for at in range(0, len(frame), size):
        yield frame.iloc[at : at + size]


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("keys", [KEYS, INSTRUCTION])
def test_digest_is_the_summary_of_all(story: pd.DataFrame, size: int, keys: tuple[str, ...]) -> None:
    digest = Digest(keys, ALSO)
    for piece in in_pieces(story, size):
        digest.add(piece)
    whole = grouped(story, keys, also=ALSO)
    assert digest.hits == len(story)
    pd.testing.assert_frame_equal(
        digest.lines().astype(object), whole.astype(object), check_column_type=False
    )
    empty = Digest(keys)
    empty.add(story.iloc[:0])
    assert list(empty.lines().columns) == list(grouped(story.iloc[:0], keys).columns)


def test_sample_keeps_what_stands_out(history: Callable[..., pd.DataFrame]) -> None:
    values = np.sin(np.arange(3000) / 50)
    values[[700, 2100]] = 50, -60
    frame = history(np.zeros(1), values)
    sample = samples.Sample(most=500)
    for piece in in_pieces(frame, 100):
        sample.add(piece)
    few = sample.frame()
    assert sample.thinned
    assert len(few) <= 500
    assert {50.0, -60.0} <= set(few.new)
    assert few.index[0] == 0
    assert few.index[-1] == frame.index[-1]
    assert few.index.is_monotonic_increasing
    assert (few.old.iloc[1:].to_numpy() == few.new.iloc[:-1].to_numpy()).all()  # no gap that there was not
    assert few.attrs == frame.attrs
    for at in range(0, 3000, 250):  # as fine everywhere
        assert few.loc[at : at + 249].shape[0] > 4


# Traces


def strict(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def check_trace(text: str) -> list[dict[str, Any]]:
    """The rules of the Trace Event Format, of the phases that occur; the events."""
    trace = strict(text)
    assert trace["displayTimeUnit"] in ("ms", "ns")
    assert all(isinstance(value, str) for value in trace["otherData"].values())
    events: list[dict[str, Any]] = trace["traceEvents"]
    tracks, named = set(), set()
    for event in events:
        assert isinstance(event["name"], str)
        assert type(event["pid"]) is int
        assert type(event["tid"]) is int
        assert isinstance(event["ts"], int | float)
        assert event["ts"] >= 0
        assert isinstance(event["args"], dict)
        assert set(event) <= {"name", "cat", "ph", "ts", "pid", "tid", "args", "s"}
        match event["ph"]:
            case "i":
                assert event["s"] in ("g", "p", "t")
                tracks.add((event["pid"], event["tid"]))
            case "C":
                assert event["args"]
                assert all(type(value) in (int, float) for value in event["args"].values())
            case "M":
                assert event["name"] in ("process_name", "thread_name")
                assert isinstance(event["args"]["name"], str)
                named.add((event["name"], event["pid"], event["tid"]))
            case phase:
                raise AssertionError(f"phase {phase!r} is not one of ours")
    assert {(pid, tid) for name, pid, tid in named if name == "thread_name"} == tracks
    assert {pid for name, pid, _ in named if name == "process_name"} == {pid for pid, _ in tracks}
    return events


def test_trace(story: pd.DataFrame, tmp_path: Path) -> None:
    events = check_trace(story.hwwatch.export(tmp_path / "hits.trace.json").read_text())
    instants = [event for event in events if event["ph"] == "i"]
    assert [event["ts"] for event in instants] == [1000.0 * i for i in range(15)]
    assert [event["args"]["line"] for event in instants] == story.line.tolist()
    assert {event["name"] for event in instants} == {"a write", "n write"}
    threads = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert len(threads) == 2
    assert [threads[event["tid"]] for event in instants] == story.thread.tolist()
    counters = [(event["name"], event["args"]["value"]) for event in events if event["ph"] == "C"]
    assert [value for name, value in counters if name == "a [0]"] == [
        *story.hwwatch.values("a")
    ]  # after the skipped write the old value
    assert {name for name, _ in counters} == {"a [0]", "n [0]", "n [1]"}


def test_trace_of_what_json_has_not(history: Callable[..., pd.DataFrame], tmp_path: Path) -> None:
    frame = history(np.zeros(1), (1.0, NAN, INF, 2.0))
    events = check_trace(frame.hwwatch.export(tmp_path / "nan.trace.json").read_text())
    assert [event["args"]["value"] for event in events if event["ph"] == "C"] == [1.0, 2.0]
    assert [event["args"]["new"] for event in events if event["ph"] == "i"] == [1.0, "NaN", "Infinity", 2.0]
    check_trace(frame.iloc[:0].hwwatch.export(tmp_path / "none.trace.json").read_text())
    big = history(np.zeros(1, np.uint64), (2**64 - 1,))
    (event,) = [
        event
        for event in check_trace(big.hwwatch.export(tmp_path / "big.trace.json").read_text())
        if event["ph"] == "i"
    ]
    assert event["args"]["new"] == str(2**64 - 1)  # viewers have doubles only


# Pages

_VOID = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    """Tags that close, links, cells by table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        self.links += [found[name] or "" for name in ("src", "srcset", "href") if name in found]
        assert not any(name.startswith("on") for name in found)
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.mark.slow
def test_page(story: pd.DataFrame, tmp_path: Path) -> None:
    page = Page(story.hwwatch.export(tmp_path / "hits.html").read_text())
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert len(page.links) == 2  # a light and a dark picture
    for link in page.links:
        kind, _, data = link.partition(",")
        assert kind == "data:image/png;base64"
        image = matplotlib.image.imread(io.BytesIO(base64.b64decode(data)))
        assert image.shape[0] > 300
        assert image.shape[1] > 800
        assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20
    lines, instructions, coverage, hits = page.tables
    assert sum(int(row[1]) for row in lines[1:]) == len(story)
    assert {"conftest.py"} == {row[0].rpartition("/")[2].partition(":")[0] for row in lines[1:]}
    assert sum(int(row[0]) for row in instructions[1:]) == len(story)
    assert [row[0] for row in coverage[1:]] == ["a", "n"]
    assert [row[0] for row in hits[1:]] == [str(seq) for seq in story.index]
    assert "15 hits" in page.text


@pytest.mark.slow
def test_page_of_hostile_names_and_of_nothing(story: pd.DataFrame, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    hostile = story.assign(
        **{
            name: story[name].cat.rename_categories(lambda label: f"{label}{evil}")
            for name in ("watch", "function", "file", "thread", "instruction")
        }
    )
    text = hostile.hwwatch.export(tmp_path / "evil.html").read_text()
    assert "<script" not in text
    assert evil in Page(text).text
    nothing = Page(story.iloc[:0].hwwatch.export(tmp_path / "none.html").read_text())
    assert "0 hits" in nothing.text
    few = story[["watch", "access", "old", "new"]]
    few.attrs = {}
    assert "does not say what was watched" in few.hwwatch.export(tmp_path / "few.html").read_text()


def test_pyplot_is_left_alone(story: pd.DataFrame, tmp_path: Path) -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    before, figures = dict(mpl.rcParams), plt.get_fignums()
    story.hwwatch.export(tmp_path / "hits.html")
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == figures


# Files


def test_a_file_is_not_overwritten(story: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "hits.csv"
    file.write_text("mine")
    with pytest.raises(FileExistsError, match=r"hits\.csv exists\. .*overwrite=True.*\[exists\]") as caught:
        story.hwwatch.export(file)
    assert isinstance(caught.value, hwwatch.ExportError)
    assert file.read_text() == "mine"
    file.chmod(0o640)
    story.hwwatch.export(file, overwrite=True)
    assert len(hwwatch.load(file)) == 15
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["hits.csv"]


def test_a_link_goes_on_pointing(story: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "hits.csv", tmp_path / "link.csv"
    real.write_text("mine")
    link.symlink_to(real)
    with pytest.raises(hwwatch.ExportExists):
        story.hwwatch.export(link)
    story.hwwatch.export(link, overwrite=True)
    assert link.is_symlink()
    assert len(hwwatch.load(real)) == 15


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_failure_leaves_nothing(
    story: pd.DataFrame, tmp_path: Path, suffix: str, kind: type[BaseException]
) -> None:
    def broken() -> Iterator[pd.DataFrame]:
        yield story.iloc[:8]
        assert len(os.listdir(tmp_path)) == 2  # in the same folder
        raise kind

    old = tmp_path / f"hits{suffix}"
    old.write_text("mine")
    with pytest.raises(kind):
        write(broken(), old, overwrite=True)
    assert os.listdir(tmp_path) == [old.name]
    assert old.read_text() == "mine"


def test_a_file_that_appears_meanwhile_stays(story: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "hits.csv"

    def frames() -> Iterator[pd.DataFrame]:
        yield story
        file.write_text("theirs")

    with pytest.raises(hwwatch.ExportExists):
        write(frames(), file)
    assert os.listdir(tmp_path) == ["hits.csv"]
    assert file.read_text() == "theirs"


@pytest.mark.slow
def test_no_room(story: pd.DataFrame, tmp_path: Path, in_child: Callable[..., Any]) -> None:
    story.to_pickle(tmp_path / "story.pickle")
    folder = tmp_path / "full"
    folder.mkdir()
    script = f"""
    import pandas as pd
    frame = pd.read_pickle({str(tmp_path / "story.pickle")!r})
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
    said = []
    for suffix in {SUFFIXES!r}:
        try:
            frame.hwwatch.export({str(folder)!r} + "/hits" + suffix)
        except hwwatch.ExportError as error:
            said.append(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    report([said, os.listdir({str(folder)!r})])
    """
    said, left = in_child(script)
    assert left == []
    assert len(said) == len(SUFFIXES)
    for line in said:
        assert re.fullmatch(rf"cannot write {folder}/hits\.[a-z.]+: File too large\. \[export\]", line), line


def test_without_pyarrow(in_child: Callable[..., Any], story: pd.DataFrame, tmp_path: Path) -> None:
    story.hwwatch.export(tmp_path / "story.csv")
    script = f"""
    sys.modules["pyarrow"] = None
    frame = hwwatch.load({str(tmp_path / "story.csv")!r})
    said = []
    for suffix in (".parquet", ".feather"):
        try:
            frame.hwwatch.export({str(tmp_path)!r} + "/hits" + suffix)
        except ImportError as error:
            said.append([str(error), isinstance(error, hwwatch.HwwatchError)])
    frame.hwwatch.export({str(tmp_path)!r} + "/hits.csv")
    report([said, len(hwwatch.load({str(tmp_path)!r} + "/hits.csv"))])
    """
    said, rows = in_child(script)
    assert rows == 15
    for (message, ours), suffix in zip(said, (".parquet", ".feather"), strict=True):
        assert ours
        assert message.startswith(f"{suffix} files need pyarrow, which is not installed.")
        assert "`pip install 'hwwatch[arrow]'`" in message
    assert sorted(os.listdir(tmp_path)) == ["hits.csv", "story.csv"]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("hits.xls", ValueError, "hits.xls: the name must end in .csv, .parquet,"),
        ("hits", ValueError, "the name must end in"),
        ("no/such/hits.csv", OSError, "there is no folder"),
        ("folder.csv", OSError, "it is a folder"),
        ("file.txt/hits.csv", OSError, "there is no folder"),
        ("y" * 260 + ".csv", hwwatch.ExportError, "File name too long"),
        ("\0.csv", hwwatch.ExportError, "no file can have such a name"),
    ],
)
def test_refusals(
    story: pd.DataFrame, tmp_path: Path, name: str, kind: type[Exception], message: str
) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(kind, match=re.escape(message)) as caught:
        story.hwwatch.export(tmp_path / name, overwrite=True)
    assert isinstance(caught.value, hwwatch.HwwatchError)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file.txt", "folder.csv"]


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    for name, text in (("a.csv", "x,y\n1,2\n"), ("b.parquet", "no"), ("c.feather", ""), ("d.csv", "\0")):
        (tmp_path / name).write_text(text)
        with pytest.raises(hwwatch.HwwatchError) as caught:
            hwwatch.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(hwwatch.ExportError, match="no file has such a name"):
        hwwatch.load("\0.csv")
    for name in ("none.csv", "none.parquet", "none.feather"):
        with pytest.raises(hwwatch.ExportError, match=r"cannot read .*: No such file"):
            hwwatch.load(tmp_path / name)
    with pytest.raises(hwwatch.TargetError, match=r"cannot be read back: its name ends in none of \.csv"):
        hwwatch.load("hits.json")


def test_session_and_root(fake_session: Any, fake: Any, tmp_path: Path, monkeypatch: Any) -> None:
    array = np.zeros(2)
    fake_session.watch(array[:1], name="a")
    fake.store(array.ctypes.data, np.float64(5).tobytes())
    monkeypatch.chdir(tmp_path)
    file = hwwatch.export("hits.csv", session=fake_session)
    assert file == tmp_path / "hits.csv"
    assert hwwatch.load("hits.csv").new.tolist() == [5.0]
    with pytest.raises(hwwatch.TargetError, match="there is no watch 'z'"):
        hwwatch.export("z.csv", "z", session=fake_session)
    fake_session.clear()
    assert len(hwwatch.load(hwwatch.export("none.csv", session=fake_session))) == 0
