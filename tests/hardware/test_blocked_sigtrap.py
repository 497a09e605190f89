"""A thread that blocks SIGTRAP: its hits are counted, not told exactly, and the coverage names it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import hwwatch

pytestmark = pytest.mark.perf


class Blocker(threading.Thread):
    """Blocks SIGTRAP, stores ten times, waits, unblocks it and stores once more."""

    def __init__(self, array: Any) -> None:
        super().__init__(name="the blocker", daemon=True)
        self.array = array
        self.steps = [threading.Event() for _ in range(4)]
        self.go = [threading.Event() for _ in range(4)]
        self.start()

    def run(self) -> None:
        for step, action in enumerate((self.block, self.store, self.unblock, self.store_once)):
            self.go[step].wait(20)
            action()
            self.steps[step].set()

    def block(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTRAP})

    def store(self) -> None:
        for value in range(1, 11):
            self.array[3] = value

    def unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTRAP})

    def store_once(self) -> None:
        self.array[3] = 11

    def next(self) -> None:
        step = next(i for i, go in enumerate(self.go) if not go.is_set())
        self.go[step].set()
        assert self.steps[step].wait(10)


@pytest.fixture
def blocker() -> Iterator[Any]:
    thread = Blocker(np.zeros(8))
    yield thread
    for go in thread.go:
        go.set()
    thread.join(10)


def test_counted_late_and_named(session: Any, blocker: Blocker) -> None:
    blocker.next()
    watch = session.watch(blocker.array[3:4])
    named = [(tid, name) for tid, name, _ in watch.coverage.blind_threads]
    assert (blocker.native_id, "the blocker") in named
    assert not watch.coverage.full
    assert any("the blocker" in problem for problem in session.coverage().problems)

    blocker.next()
    assert (watch.counted, watch.hits, watch.lost) == (10, 0, 10)
    assert len(watch.timeline()) == 0

    blocker.next()
    rows = watch.timeline()
    assert (watch.counted, watch.hits, watch.lost) == (10, 1, 9)
    assert rows.exact.tolist() == [False]
    assert rows.tid.tolist() == [blocker.native_id]
    assert rows[["line", "column", "function", "file"]].isna().all(axis=None)
    assert rows.confidence.tolist() == ["none"]
    assert rows.instruction.tolist() == [""] or rows.instruction.isna().all()
    assert watch.coverage.tally.late == 1

    blocker.next()
    rows = watch.timeline()
    assert rows.exact.tolist() == [False, True]
    assert rows.new.tolist() == [10, 11]
    assert rows.function.iloc[1] == "Blocker.store_once"
    assert (watch.counted, watch.hits, watch.lost) == (11, 2, 9)
    assert blocker.native_id not in [tid for tid, _, _ in watch.coverage.blind_threads]


def test_pending_signal_does_not_kill_after_the_end(in_child: Callable[..., Any]) -> None:
    """A hit still waits in a thread when everything is disarmed; met by the default action it would kill."""

    def work():
        from hwwatch.sessions import default_session

        array = np.zeros(8)
        blocked, stored, go = threading.Event(), threading.Event(), threading.Event()

        def thread():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTRAP})
            blocked.set()
            go.wait()
            array[3] = 1
            go.clear()
            stored.set()
            go.wait()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTRAP})

        worker = threading.Thread(target=thread)
        worker.start()
        blocked.wait()
        watch = hwwatch.watch(array[3:4])
        go.set()
        stored.wait()
        default_session().close()
        go.set()
        worker.join()
        return watch.counted, watch.counted - watch.hits - watch.lost

    assert in_child(work) == [1, 0]
