"""The ring is read stretch by stretch; where the stretches end makes no difference to what is found."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import hwwatch
from hwwatch import progress, stretches


def _fire(session: Any, fake: Any, seed: int, stores: int) -> list[Any]:
    """Many kinds of records: changed and not, over several watches, filtered, with all registers."""
    rng = random.Random(seed)
    array, small = np.zeros(6), np.zeros(4, np.int16)
    watches = [
        session.watch(array[0:2], name="two"),
        session.watch(array[1:2], "rw", name="one", when="new >= 0"),
        session.watch(small[2:4], name="small"),
    ]
    for number in range(stores):
        if number == stores // 2:
            session.unwatch(watches[2])
            watches.append(session.watch(array[4:5], name="late"))
        place = rng.choice([array[0:1], array[0:2], array[1:2], small[0:4], small[2:3], array[4:5]])
        value = np.full(len(place), rng.choice([0, 1, -1, number]), place.dtype)
        registers = [rng.choice([0, 7, number]) for _ in range(16)]
        fake.store(place.ctypes.data, value.tobytes(), pc=rng.choice([0x1000, 0x2000]), registers=registers)
    return watches


def _figures(watches: list[Any]) -> list[tuple[int, int, int]]:
    return [(watch.hits, watch.counted, watch.lost) for watch in watches]


def _same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    assert_frame_equal(one, other, check_categorical=False, check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "stores"), [(1, 150), (7, 700), (64, 700), (500, 700)])
def test_any_size_gives_the_same(
    fake_session: Any, fake: Any, monkeypatch: pytest.MonkeyPatch, size: int, stores: int
) -> None:
    watches = _fire(fake_session, fake, size, stores)
    whole = fake_session.timeline(stack=True, registers=True)
    figures = _figures(watches)
    assert len(whole) > stores / 2
    assert any(lost == 0 for *_, lost in figures)
    fake_session._ledger._known = None
    monkeypatch.setattr(stretches, "SIZE", size)
    monkeypatch.setattr(stretches, "MARGIN", 8)
    _same(fake_session.timeline(stack=True, registers=True), whole)
    assert _figures(watches) == figures
    assert _figures(watches) == figures  # now from what is kept
    pieces = list(fake_session.frames(stack=True, registers=True))
    assert len(pieces) > 1
    assert {tuple(map(str, piece.dtypes.drop(["watch"]).map(_kind))) for piece in pieces} == {
        tuple(map(str, whole.dtypes.drop(["watch"]).map(_kind)))
    }
    texts = [piece.astype(dict.fromkeys(whole.select_dtypes("category"), object)) for piece in pieces]
    joined = pd.concat([text for text in texts if len(text)])
    _same(joined, whole.astype(dict.fromkeys(whole.select_dtypes("category"), object)))


def _kind(dtype: Any) -> str:
    return "category" if isinstance(dtype, pd.CategoricalDtype) else str(dtype)


def test_sums_grow_with_the_hits(fake_session: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was summed up once is not read again; a question in between changes nothing."""
    monkeypatch.setattr(stretches, "SIZE", 16)
    monkeypatch.setattr(stretches, "MARGIN", 4)
    array = np.zeros(4)
    watch = fake_session.watch(array[:2])
    for number in range(1, 200):
        fake.store(array[number % 2 :].ctypes.data, np.float64(number).tobytes())
        assert watch.hits == number
    assert fake_session._ledger._known.position >= fake_session._ledger.start + 176
    fake_session.clear()
    assert watch.hits == 0
    fake.store(array.ctypes.data, np.float64(-1).tobytes())
    rows = watch.timeline()
    assert (rows.old.tolist(), rows.new.tolist()) == ([198.0], [-1.0])


def test_categories_only_grow(fake_session: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "SIZE", 8)
    array = np.zeros(4)
    for place in range(3):
        fake_session.watch(array[place : place + 1], name=f"a{place}")
    for number in range(60):
        fake.store(array[number // 20 :].ctypes.data, np.float64(number + 1).tobytes())
    known: list[Any] = []
    for piece in fake_session.frames():
        labels = piece.watch.cat.categories.tolist()
        assert labels[: len(known)] == known
        known = labels
    assert sorted(known) == ["a0", "a1", "a2"]


def test_one_dtype_of_all_pieces(fake_session: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a piece happens to hold values of one dtype only."""
    monkeypatch.setattr(stretches, "SIZE", 8)
    floats, ints = np.zeros(1), np.zeros(1, np.int32)
    fake_session.watch(floats)
    fake_session.watch(ints)
    for number in range(20):
        fake.store(floats.ctypes.data, np.float64(number).tobytes())
    for number in range(20):
        fake.store(ints.ctypes.data, np.int32(number).tobytes())
    assert {str(piece.new.dtype) for piece in fake_session.frames()} == {"object"}
    rows = fake_session.timeline()
    assert [type(value) for value in rows.new[[0, 39]]] == [np.float64, np.int32]
    assert {str(piece.new.dtype) for piece in fake_session.frames(1)} == {"float64"}


def test_hits_that_come_while_it_is_read_are_left_for_later(fake_session: Any, fake: Any) -> None:
    """The columns are those of the hits that were there; another dtype would not fit them."""
    floats, ints = np.zeros(1), np.zeros(1, np.int16)
    fake_session.watch(floats)
    fake_session.watch(ints)
    fake.store(floats.ctypes.data, np.float64(2.5).tobytes())
    pieces = fake_session.frames()
    next(pieces)
    fake.store(ints.ctypes.data, np.int16(3).tobytes())
    (piece,) = pieces
    assert (piece.new.dtype, piece.new.tolist()) == (np.float64, [2.5])
    assert fake_session.timeline().new.tolist() == [2.5, 3]


def test_unknown_watch_at_once(fake_session: Any) -> None:
    with pytest.raises(hwwatch.TargetError, match="there is no watch 'z'"):
        fake_session.frames("z")


def test_interrupted_sums_are_whole(fake_session: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C amid a question: the next one has the right answer."""
    monkeypatch.setattr(stretches, "SIZE", 16)
    monkeypatch.setattr(stretches, "MARGIN", 4)
    array = np.zeros(4)
    watch = fake_session.watch(array[:2])
    for number in range(1, 200):
        fake.store(array[number % 2 :].ctypes.data, np.float64(number).tobytes())
    real, seen = stretches.Sum.after, []

    def after(*arguments: Any) -> Any:
        seen.append(1)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(stretches.Sum, "after", after)
    with pytest.raises(KeyboardInterrupt):
        _ = watch.hits
    assert watch.hits == 199


def test_cleared_while_read(fake_session: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "SIZE", 8)
    array = np.zeros(1)
    fake_session.watch(array)
    for number in range(50):
        fake.store(array.ctypes.data, np.float64(number).tobytes())
    pieces = fake_session.frames()
    next(pieces)
    next(pieces)
    fake_session.clear()
    with pytest.raises(hwwatch.HwwatchError, match="cleared"):
        next(pieces)


def test_bar_after_a_second(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal; nothing where it is fast, few, or nobody sees it."""
    monkeypatch.setattr(progress, "_seen", lambda: True)
    bars = []
    real = progress._bar

    def spy() -> Any:
        bars.append(real())
        return bars[-1]

    monkeypatch.setattr(progress, "_bar", spy)
    items = [b"x" * 60_000] * 3
    assert list(progress.track(items, 180_000, "timeline")) == items
    assert capsys.readouterr().err == ""  # it took less than a second
    assert len(bars) == 1
    assert list(progress.track(items, 10, "timeline")) == items
    assert len(bars) == 1
    monkeypatch.setattr(progress, "_seen", lambda: False)
    assert list(progress.track(items, 180_000, "timeline")) == items
    assert len(bars) == 1
