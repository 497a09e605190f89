"""A story with hits of every sort, told by the real handler and timeline; only the traps are made by hand."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest


def put(fake: Any, place: Any, value: Any) -> None:
    """Store into the first element of an array view as one access."""
    fake.store(place.ctypes.data, np.array(value, place.dtype).tobytes())


def count_up(fake: Any, place: Any, values: Any) -> None:
    for value in values:
        put(fake, place, value)


def reset(fake: Any, place: Any) -> None:
    put(fake, place, 0)


@pytest.fixture
def story(fake_session: Any, fake: Any) -> pd.DataFrame:
    """15 hits: 9 of `a` by three lines, two threads, one of them a skipped write; 6 of `n`, with 2 elements.

    The times are regular, a millisecond apart, so that pictures are always the same.
    """
    array, numbers = np.zeros(4), np.zeros(4, np.int32)
    a = fake_session.watch(array[1:2], name="a")
    fake_session.watch(numbers[:2], name="n")
    count_up(fake, array[1:], (1.5, 2.5, 3.5))
    reset(fake, array[1:])
    thread = threading.Thread(target=count_up, args=(fake, array[1:], (-1.0, -2.0)), name="worker")
    thread.start()
    thread.join()
    count_up(fake, numbers, (10, 20, 30))
    a.policy = "skip"
    put(fake, array[1:], 9.0)
    a.policy = "continue"
    a.enabled = False
    array[1] = 2.0  # a change without a row
    a.enabled = True
    count_up(fake, array[1:], (4.0,))
    count_up(fake, numbers[1:], (-5,))
    reset(fake, array[1:])
    reset(fake, numbers)
    reset(fake, numbers[1:])
    return regular(by_callers(fake_session.timeline(stack=True)))


def by_callers(frame: pd.DataFrame) -> pd.DataFrame:
    """The same hits by the functions here that made them; the fake backend traps in one line of its own."""
    frames = [re.fullmatch(r"(\w+) \((.*):(\d+)\)", stack[3]) for stack in frame["stack"]]
    names, files, lines = zip(*[found.groups() for found in frames if found], strict=True)
    return frame.drop(columns="stack").assign(
        function=pd.Categorical(names),
        file=pd.Categorical(files),
        line=pd.array(list(map(int, lines)), "Int64"),
    )


def regular(frame: pd.DataFrame) -> pd.DataFrame:
    """The same hits, a millisecond apart."""
    first = pd.Timestamp("2026-01-02 03:04:05", tz="UTC")
    step = pd.to_timedelta(np.arange(len(frame)), unit="ms")
    return frame.assign(time=pd.DatetimeIndex(first + step).as_unit("ns"))


@pytest.fixture
def history(fake_session: Any, fake: Any) -> Callable[..., pd.DataFrame]:
    """``history(array, values)``: the timeline of storing values into the first element of an array."""

    def history(array: Any, values: Any, **options: Any) -> pd.DataFrame:
        watch = fake_session.watch(array[:1], name="v", **options)
        count_up(fake, array, values)
        frame: pd.DataFrame = regular(watch.timeline())
        return frame

    return history
