"""The coverage says what is seen and what is not, and its numbers add up."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwwatch.coverages import Coverage, Tally, WatchCoverage, thread_names, threads

SEEN = WatchCoverage(
    name="a",
    number=1,
    state="armed",
    backend="perf (default)",
    threads_alive=3,
    threads_armed=3,
    blind_threads=(),
    kernel="seen",
    children="forked children followed",
    tally=Tally(5, 5, 0, 0, 0),
    last_test="self-test passed",
)


def coverage(*watches: WatchCoverage, handler: str = "hwwatch", frames: str = "") -> Coverage:
    return Coverage(watches, handler, frames, 2)


def test_full() -> None:
    full = coverage(SEEN)
    assert full.full
    assert SEEN.full
    assert full.problems == ()
    assert "coverage is full: zero hits would mean zero accesses" in str(full)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"blind_threads": ((7, "zmq", "blocks SIGTRAP"),)}, "a: thread 7 (zmq) blocks SIGTRAP"),
        ({"tally": Tally(5, 8, 3, 0, 0)}, "a: 3 hits were counted and not recorded"),
        ({"kernel": "not seen: kernel=False was asked for"}, "a: kernel accesses are not seen"),
        ({"notes": ("paused",)}, "a: paused"),
    ],
)
def test_whatever_is_missed_is_a_problem(change: dict[str, Any], problem: str) -> None:
    found = coverage(replace(SEEN, **change), replace(SEEN, name="b"))
    assert not found.full
    assert len(found.problems) == 1
    assert found.problems[0].startswith(problem)
    assert f"  - {problem}" in str(found)


def test_stolen_handler_and_unread_frames_are_problems() -> None:
    assert any("another handler" in line for line in coverage(SEEN, handler="another handler").problems)
    assert any("not read: why" in line for line in coverage(SEEN, frames="why").problems)
    assert coverage(replace(SEEN, state="disarmed"), handler="nobody").problems == ()


def test_lost_hits_stay_a_problem_once_disarmed() -> None:
    found = coverage(replace(SEEN, state="disarmed", tally=Tally(5, 6, 1)))
    assert found.problems == ("a: 1 hit was counted and not recorded",)


def test_nothing_armed_is_not_full() -> None:
    found = coverage(replace(SEEN, state="disarmed"))
    assert (found.full, found.problems) == (False, ())
    assert str(found).endswith("\nnothing is armed: accesses are not seen now")
    assert "nothing is armed" in found._repr_html_()


def test_totals_and_plain_values() -> None:
    other = replace(SEEN, name="b", number=2, tally=Tally(2, 6, 3, 1, 1))
    both = coverage(SEEN, other)
    assert (both.counted, both.recorded, both.lost) == (11, 7, 3)
    assert Tally(1, 2, 3, 4, 5) + Tally(10, 20, 30, 40, 50) == Tally(11, 22, 33, 44, 55)
    plain = json.loads(json.dumps(both.to_dict()))
    assert (plain["counted"], plain["recorded"], plain["lost"], plain["full"]) == (11, 7, 3, False)
    assert [watch["name"] for watch in plain["watches"]] == ["a", "b"]
    assert plain["watches"][1]["filtered"] == 1
    assert plain["watches"][1]["late"] == 1


def test_text_has_a_line_for_each_watch() -> None:
    lines = str(coverage(SEEN, replace(SEEN, name="b"))).splitlines()
    assert lines[0].startswith("a: armed (perf (default)); 3 of 3 threads; kernel accesses seen; ")
    assert "5 counted, 5 recorded, 0 filtered, 0 lost, 0 late" in lines[0]
    assert lines[1].startswith("b: armed")
    assert lines[2] == "in total: 10 counted, 10 recorded, 0 lost"
    assert str(coverage()) == "nothing is watched"


@pytest.fixture
def blocker() -> Iterator[threading.Thread]:
    """A thread that blocks SIGTRAP and waits."""
    ready, end = threading.Event(), threading.Event()

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTRAP})
        ready.set()
        end.wait(20)
        signal.sigtimedwait({signal.SIGTRAP}, 0)  # take what was sent, so that it kills nobody

    thread = threading.Thread(target=work, name="a blocker", daemon=True)
    thread.start()
    assert ready.wait(10)
    yield thread
    end.set()
    thread.join(10)


def test_threads_that_block_sigtrap(blocker: threading.Thread) -> None:
    found = {thread.tid: thread for thread in threads()}
    main = found[threading.main_thread().native_id]
    theirs = found[blocker.native_id]
    assert (main.name, main.blocks_sigtrap, main.pending_sigtrap) == ("MainThread", False, False)
    assert (theirs.name, theirs.blocks_sigtrap, theirs.pending_sigtrap) == ("a blocker", True, False)
    signal.pthread_kill(blocker.ident, signal.SIGTRAP)
    assert {thread.tid: thread.pending_sigtrap for thread in threads()}[blocker.native_id]
    assert thread_names()[blocker.native_id] == "a blocker"


def test_numbers_of_a_session(fake_session: Any, fake: Any) -> None:
    array = np.zeros(8)
    watch = fake_session.watch(array[3:4], name="a[3]")
    for value in range(4):
        fake.store(array[3:].ctypes.data, np.float64(value).tobytes())
    fake._counts[watch._armed.index][0] += 2  # two that were counted and never came
    assert (watch.counted, watch.hits, watch.lost) == (6, 4, 2)
    found = fake_session.coverage()
    assert (found.counted, found.recorded, found.lost) == (6, 4, 2)
    assert any("2 hits were counted and not recorded" in line for line in found.problems)
    assert fake_session.timeline().attrs["hwwatch"]["lost"] == 2
    other = fake_session.watch(array[:1], name="other")
    fake._counts[other._armed.index][0] += 3
    fake_session.unwatch(other)
    assert fake_session.timeline().attrs["hwwatch"]["lost"] == 5  # also of what was let go, until `clear`
    assert "other: 3 hits were counted and not recorded" in fake_session.coverage().problems
    fake_session.clear()
    assert fake_session.coverage().lost == 0
    assert (watch.counted, watch.hits, watch.lost) == (0, 0, 0)
    fake.store(array[3:].ctypes.data, np.float64(9).tobytes())
    assert (watch.counted, watch.hits, watch.lost) == (1, 1, 0)
    watch.disarm()
    assert (watch.counted, watch.hits, watch.lost) == (1, 1, 0)
    assert fake_session.coverage().watches[0].state == "disarmed"


def test_paused(fake_session: Any) -> None:
    watch = fake_session.watch(np.zeros(1))
    watch.enabled = False
    assert watch.coverage.state == "paused"
    assert not watch.coverage.full
    watch.enabled = True
    assert watch.coverage.state == "armed"


def test_a_change_of_mode_keeps_what_is_said_of_the_kernel(fake_session: Any) -> None:
    watch = fake_session.watch(np.zeros(1))
    before = watch.coverage.kernel
    watch.mode = "rw"
    assert watch.coverage.kernel == before == "not seen: the fake backend cannot"
