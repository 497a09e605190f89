"""A fifth watch is refused before anything is armed, and the four go on working."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hwwatch


def test_fifth_watch_names_the_holders(session: Any) -> None:
    array = np.zeros(8)
    names = ["first", "second", "third", "fourth"]
    watches = [session.watch(array[i : i + 1], name=name) for i, name in enumerate(names)]
    array[0] = 5
    with pytest.raises(hwwatch.NoSlotError) as caught:
        session.watch(array[4:5], name="fifth")
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in [*names, "fifth"])
    assert caught.value.slug == "no-slot"
    assert caught.value.hint == "Free one: `hwwatch.unwatch('first')`."
    assert [watch.name for watch in session.watches()] == names
    for i in range(5):
        array[i] = 7
    assert [(w.armed, w.counted, w.hits, w.lost) for w in watches] == [(True, 2, 2, 0)] + [
        (True, 1, 1, 0)
    ] * 3
    assert session.timeline().new.tolist() == [5, 7, 7, 7, 7]

    session.unwatch("second")
    fifth = session.watch(array[4:5], name="fifth")
    array[4] = 9
    assert (fifth.hits, fifth.lost) == (1, 0)


def test_watch_of_several_slots_needs_them_all(session: Any) -> None:
    array = np.zeros(8)
    session.watch(array[0:2], name="two")
    with pytest.raises(hwwatch.NoSlotError, match="needs 3 of 4 debug registers, 2 free; taken by two"):
        session.watch(array[2:5], name="three")
    last = session.watch(array[2:4], name="last two")
    array[:4] = 1
    assert (last.counted, last.hits, last.lost) == (2, 2, 0)


def test_holders_in_other_sessions_are_named(session: Any) -> None:
    from hwwatch.sessions import Session

    array = np.zeros(8)
    with Session("other") as other:
        other.watch(array[0:3], name="theirs")
        with pytest.raises(hwwatch.NoSlotError, match="theirs"):
            session.watch(array[4:6], name="mine")


def test_too_wide_for_four_slots(session: Any) -> None:
    array = np.zeros(8)
    with pytest.raises(hwwatch.TargetError) as caught:
        session.watch(array[:5])
    assert "\n" not in str(caught.value)
    assert session.watches() == []
