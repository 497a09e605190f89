"""Objects that move, close and die while they are watched."""

from __future__ import annotations

import ctypes
import gc
import mmap
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hwwatch.errors import NotSupported, TargetError
from hwwatch.targets import locate

MOVED = "has moved; paused; `w.retarget\\(\\)` aims"


def grown(data: bytearray) -> None:
    """Make a bytearray's memory move."""
    address = locate("data", {"data": memoryview(data)[:1]}).address
    others = []
    while locate("data", {"data": memoryview(data)[:1]}).address == address:
        data.extend(bytes(4096))
        others.append(bytearray(len(data)))


def test_growth_pauses_and_retarget_goes_on(session: Any) -> None:
    data = bytearray(16)
    w = session.watch(locate("data[3]"), when="new > 100", limit=50)
    data[3] = 101
    grown(data)
    assert w.moved
    with pytest.warns(RuntimeWarning, match=MOVED):
        coverage = session.coverage()
    assert "data[3]: the memory of its bytearray has moved" in coverage.problems
    assert (w.armed, w.enabled, "has moved" in repr(w)) == (True, False, True)
    session.coverage()  # said once
    before = w.hits
    w.retarget()
    assert (w.moved, w.enabled, w.when, w.limit) == (False, True, "new > 100", 50)
    data[3] = 7
    data[3] = 102
    rows = w.timeline().iloc[before:]
    assert rows[["old", "new", "element"]].to_numpy().tolist() == [[7, 102, (3,)]]


def test_a_paused_watch_stays_paused(session: Any) -> None:
    data = bytearray(16)
    w = session.watch(locate("data[3]"))
    w.enabled = False
    grown(data)
    w.retarget()
    data[3] = 1
    assert (w.moved, w.enabled, w.hits) == (False, False, 0)


def test_retarget_of_what_has_not_moved_changes_nothing(session: Any) -> None:
    a = np.zeros(8)
    w = session.watch(a[3:4])
    a[3] = 1
    address = w.address
    w.retarget()
    a[3] = 2
    assert (w.address, w.timeline()["new"].tolist()) == (address, [1.0, 2.0])


def test_resized_array(session: Any) -> None:
    a = np.zeros(1000)
    w = session.watch(a[3:4])
    with pytest.raises(ValueError, match="referenced"):
        a.resize(500_000)  # NumPy sees that somebody else refers to it
    a.resize(500_000, refcheck=False)
    with pytest.warns(RuntimeWarning, match=MOVED):
        session.timeline()
    w.retarget()
    a[3] = 5
    assert w.timeline().iloc[-1][["old", "new"]].tolist() == [0.0, 5.0]


def test_closed_mapping(session: Any) -> None:
    mapping = mmap.mmap(-1, 4096)
    w = session.watch(locate("mapping[8:16]"))
    mapping[8] = 1
    mapping.close()
    with pytest.warns(RuntimeWarning, match="its mmap was closed.*; paused; watch the place anew"):
        session.watches()
    with pytest.raises(TargetError, match=r"cannot retarget .*closed"):
        w.retarget()
    assert (w.armed, w.hits) == (True, 1)
    assert w.verify()
    w.disarm()


def test_closed_shared_memory(in_child: Callable[..., Any]) -> None:
    def work():  # in a child, since it starts multiprocessing's resource tracker
        import warnings
        from multiprocessing.shared_memory import SharedMemory

        shared = SharedMemory(create=True, size=64)
        w = hwwatch.watch(shared.buf[8:16])
        shared.buf[9] = 3
        shared.close()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            rows = len(hwwatch.timeline())
        shared.unlink()
        return w.moved, rows, [str(warning.message) for warning in found]

    moved, rows, warned = in_child(work)
    assert moved
    assert rows >= 1  # and whatever is mapped there next
    assert len(warned) == 1
    assert "closed" in warned[0]


def test_pandas_copies_on_write(session: Any) -> None:
    df = pd.DataFrame({"x": np.arange(4.0)})
    w = session.watch(locate('df["x"].iloc[1]'))
    df.loc[1, "x"] = 8.0
    other = df[:]
    df.loc[1, "x"] = 9.0
    with pytest.warns(RuntimeWarning, match="pandas has moved the values; paused"):
        session.timeline()
    w.retarget()
    df.loc[1, "x"] = 10.0
    assert w.timeline()["new"].tolist() == [8.0, 10.0]
    assert other.loc[1, "x"] == 8.0


def test_held_while_watched_and_no_longer(session: Any) -> None:
    a = np.zeros(4)
    weak = weakref.ref(a)
    w = session.watch(a[1:2])
    a[1] = 1
    del a
    gc.collect()
    assert weak() is not None
    w.disarm()
    w.enabled = True  # still there
    session.unwatch(w)
    gc.collect()
    assert weak() is None
    with pytest.raises(TargetError, match="was let go"):
        w.enabled = True
    assert w.timeline()["new"].tolist() == [1.0]


def test_retarget_lets_the_earlier_memory_go(session: Any) -> None:
    data = bytearray(16)
    w = session.watch(locate("data[3]"))
    grown(data)
    w.retarget()
    data.extend(bytes(1 << 20))  # no export was left
    session.unwatch(w)


def test_use_after_free(session: Any) -> None:
    """A block is freed, and whoever gets its memory next writes there."""

    class Block(ctypes.Structure):
        _fields_ = (("head", ctypes.c_uint64), ("value", ctypes.c_uint64), ("rest", ctypes.c_uint8 * 4096))

    block = Block()
    w = session.watch(locate("block.value", {"block": block}), hold=False)
    block.value = 5
    address = w.address
    del block
    others = [ctypes.create_string_buffer(ctypes.sizeof(Block)) for _ in range(64)]
    for other in others:
        ctypes.memset(other, 7, len(other))
    with pytest.warns(RuntimeWarning, match=r"its object is gone.*after_free.*disarm"):
        frame = w.timeline()
    assert (w.moved, w.enabled) == (True, True)
    assert frame["after_free"].iloc[0] == np.False_
    assert any(ctypes.addressof(o) <= address < ctypes.addressof(o) + len(o) for o in others)
    assert (frame["after_free"] & (frame["new"] == 0x0707070707070707)).any()


def test_a_block_that_watches_without_hold_keeps_nothing(session: Any) -> None:
    a = np.zeros(4)
    weak = weakref.ref(a)
    with session.watching(locate("a[1]", {"a": a}), hold=False):
        del a
        gc.collect()
        assert weak() is None


def test_no_such_column_where_all_is_held(session: Any) -> None:
    a = np.zeros(2)
    session.watch(a[1:2])
    a[1] = 1
    assert "after_free" not in session.timeline().columns


def test_pieces_have_the_column_too(session: Any) -> None:
    a = np.zeros(2)
    w = session.watch(a[1:2], hold=False)
    a[1] = 1
    frames = list(session.frames())
    assert [list(frame.columns) for frame in frames] == [list(session.timeline().columns)] * len(frames)
    assert "after_free" in frames[0].columns
    assert w.coverage.notes == ()


def test_skip_needs_the_object(session: Any) -> None:
    a = np.zeros(2)
    with pytest.raises(NotSupported, match="hold=False"):
        session.watch(a[1:2], hold=False, policy="skip")
    w = session.watch(a[1:2], hold=False)
    with pytest.raises(NotSupported, match="hold=False"):
        w.policy = "skip"
    assert w.policy == "continue"


def test_skip_is_refused_where_memory_is_given_back(session: Any) -> None:
    """Growing frees the old memory, and malloc writes there: undoing that would crash the program."""
    import array

    data, numbers = bytearray(8), array.array("d", [1, 2])
    for place in (locate("data[3]", {"data": data}), numbers, memoryview(data)[2:4]):
        with pytest.raises(NotSupported, match="may free that memory while it is watched"):
            session.watch(place, policy="skip")
    w = session.watch(locate("data[3]", {"data": data}))
    with pytest.raises(NotSupported, match="may free"):
        w.policy = "skip"


def test_skip_leaves_memory_alone_that_is_another_mapping(in_child: Callable[..., Any]) -> None:
    def work():
        import mmap

        first = mmap.mmap(-1, 8192)
        w = hwwatch.watch(hwwatch.locate("first[8:16]", {"first": first}), policy="skip")
        first[8] = 5
        undone = first[8]
        first.close()
        others = [mmap.mmap(-1, 8192) for _ in range(20)]
        place = np.array([np.frombuffer(other, np.uint8).ctypes.data for other in others])
        reused = others[int(np.flatnonzero(place == w.address - 8)[0])]
        for value in (6, 7):
            reused[8] = value
        w.disarm()
        return undone, reused[8], w.timeline()["action"].tolist()[0], bool(w.coverage.refusal)

    assert in_child(work) == [0, 7, "skipped", True]


def test_bytearray_without_hold_says_what_is_not_seen(session: Any) -> None:
    w = session.watch(locate("data[3]", {"data": bytearray(8)}), hold=False)
    assert not w.coverage.full
    assert "a bytearray tells nobody when it dies" in str(session.coverage())


@pytest.mark.slow
def test_moving_under_fire(in_child: Callable[..., Any]) -> None:
    """A thread appends all the time: never a BufferError, never a crash, and each retarget finds the byte."""

    def work():
        import contextlib
        import random

        chance = random.Random(1)
        data, stop, errors, others = bytearray(64), threading.Event(), [], []

        def grow():
            while not stop.is_set():
                try:
                    data.extend(bytes(64))
                    others.append(bytearray(len(data)))  # in the way of growing in place
                    if len(data) > 20_000:
                        data.clear()
                        data.extend(bytes(chance.randrange(64, 10_000)))
                        del others[: chance.randrange(len(others))]
                    data[3] = 1
                except BufferError as error:
                    errors.append(str(error))

        thread = threading.Thread(target=grow)
        w = hwwatch.watch(hwwatch.locate("data[3]", {"data": data}))
        thread.start()
        end, moves = time.monotonic() + 3, 0
        while time.monotonic() < end:
            if w.moved:
                with contextlib.suppress(hwwatch.TargetError):  # too short for a moment
                    w.retarget()
                    moves += 1
            hwwatch.clear()
        stop.set()
        thread.join()
        w.retarget()
        data[3] = 77
        return errors, moves, hwwatch.timeline(w)["new"].tolist()[-1]

    errors, moves, last = in_child(work)
    assert (errors, last) == ([], 77)
    assert moves > 3
