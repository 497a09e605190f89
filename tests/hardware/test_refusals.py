"""What is impossible is refused in one line; nothing is armed, changed or forgotten by it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwwatch
from hwwatch.errors import ConditionError

SOURCE = '__attribute__((noinline)) long function(long a) { __asm__ volatile(""); return a + 1; }'

DATA, CODE = "data", "code"
#: target, mode, options → class, slug, part of the message
IMPOSSIBLE = {
    "return on a write": (DATA, "w", {"policy": hwwatch.Return(1)}, NotImplementedError, "policy", "return"),
    "return on reads": (DATA, "rw", {"policy": hwwatch.Return(1)}, NotImplementedError, "policy", '"x"'),
    "return on r": (DATA, "r", {"policy": hwwatch.Return(1)}, NotImplementedError, "policy", "return 1"),
    "skip a read": (DATA, "r", {"policy": "skip"}, NotImplementedError, "policy", "cannot be skipped"),
    "goto data": (DATA, "w", {"policy": hwwatch.Goto(8)}, NotImplementedError, "policy", "0x8"),
    "goto no symbol": (
        DATA,
        "w",
        {"policy": hwwatch.Goto("libm.so.6!kosinus")},
        ValueError,
        "no-symbol",
        "kosinus",
    ),
    "unknown policy": (DATA, "w", {"policy": "jump"}, ValueError, "policy", "'jump'"),
    "Python as policy": (DATA, "w", {"policy": print}, NotImplementedError, "policy", "on_hit"),
    "Python lambda": (CODE, "x", {"policy": lambda: 0}, NotImplementedError, "policy", "on_hit"),
    "unknown mode": (DATA, "rx", {}, ValueError, "mode", "'rx'"),
    "execute data": (DATA, "x", {}, ValueError, "target", "not in executable memory"),
    "write a function": (CODE, "w", {}, ValueError, "target", 'Use mode "x"'),
    "read a function": (CODE, "rw", {}, ValueError, "target", 'Use mode "x"'),
    "no condition": (DATA, "w", {"when": "new <"}, ValueError, "condition", "column 6"),
    "empty condition": (DATA, "w", {"when": ""}, ValueError, "condition", "nothing to decide"),
    "unknown name": (DATA, "w", {"when": "old < neu"}, ValueError, "condition", "column 7"),
    "Python in it": (DATA, "w", {"when": "print(new)"}, ValueError, "condition", "column 1"),
    "no truth": (DATA, "w", {"when": "new + 1"}, ValueError, "condition", "a number"),
    "values of code": (CODE, "x", {"when": "new < 0"}, ValueError, "condition", "no values"),
    "change of code": (CODE, "x", {"when": "changed"}, ValueError, "condition", "no values"),
    "unknown thread": (DATA, "w", {"when": 'thread == "nobody"'}, ValueError, "condition", "nobody"),
    "no limit": (DATA, "w", {"limit": 0}, ValueError, "limit", "limit=0"),
    "no on_hit": (DATA, "w", {"on_hit": 5}, ValueError, "on-hit", "on_hit=5"),
    "other on_hit": (DATA, "w", {"on_hit": "stop"}, ValueError, "on-hit", '"break"'),
    "kernel": (DATA, "w", {"kernel": "maybe"}, ValueError, "kernel", "'maybe'"),
    "stack": (DATA, "w", {"stack": 65}, ValueError, "stack", "stack=65"),
    "stack of nothing": (DATA, "w", {"stack": None}, ValueError, "stack", "stack=None"),
    "stack of a float": (DATA, "w", {"stack": 1.0}, ValueError, "stack", "stack=1.0"),
    "limit beyond 64 bits": (DATA, "w", {"limit": 1 << 64}, ValueError, "limit", "2**64"),
    "negative stack": (DATA, "w", {"stack": -1}, ValueError, "stack", "stack=-1"),
    "backend": (DATA, "w", {"backend": "quantum"}, hwwatch.HwwatchError, None, "quantum"),
}


@pytest.fixture
def targets(load: Callable[..., ctypes.CDLL]) -> dict[str, Any]:
    return {DATA: np.arange(8)[3:4], CODE: load(SOURCE).function}


def _one_line(error: hwwatch.HwwatchError, slug: str | None) -> None:
    text = str(error)
    assert "\n" not in text
    assert text.endswith(f"[{error.slug}]")
    if slug is not None:
        assert error.slug == slug
    assert len(text) < 400


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_refused_when_asked_for(session: Any, targets: dict[str, Any], case: str) -> None:
    target, mode, options, kind, slug, part = IMPOSSIBLE[case]
    other = np.zeros(4)
    earlier = session.watch(other[1:2])
    other[1] = 1
    with pytest.raises(kind) as caught:
        session.watch(targets[target], mode, **options)
    assert isinstance(caught.value, hwwatch.HwwatchError)
    _one_line(caught.value, slug)
    assert part in str(caught.value)
    # Nothing is armed by it, and what there was goes on.
    assert session.watches() == [earlier]
    assert session.coverage().slots_free == 3
    other[1] = 2
    assert session.timeline().new.tolist() == [1, 2]
    assert (earlier.armed, earlier.counted, earlier.hits, earlier.lost) == (True, 2, 2, 0)


LIVE = {
    name: case
    for name, case in IMPOSSIBLE.items()
    if set(case[2]) <= {"policy", "when", "limit", "on_hit"} and case[2]
}


@pytest.mark.parametrize("case", LIVE)
def test_refused_on_a_live_watch(session: Any, targets: dict[str, Any], case: str) -> None:
    """It stays what it was, in everything."""
    target, mode, options, kind, slug, part = LIVE[case]
    place = targets[target]
    watch = session.watch(place, mode, limit=50)
    before = {name: getattr(watch, name) for name in ("mode", "policy", "when", "limit", "on_hit", "enabled")}

    def access() -> None:
        if target == CODE:
            assert place(4) == 5
        elif mode == "r":
            assert place[0] == 3
        else:
            place[0] = 3

    access()
    assert watch.hits == 1
    ((name, value),) = options.items()
    with pytest.raises(kind) as caught:
        setattr(watch, name, value)
    assert isinstance(caught.value, hwwatch.HwwatchError)
    _one_line(caught.value, slug)
    assert part in str(caught.value)
    assert {key: getattr(watch, key) for key in before} == before
    access()
    assert (watch.armed, watch.hits, watch.lost) == (True, 2, 0)
    assert set(watch.timeline().action) == {"continued"}


def test_mode_between_data_and_code(session: Any, targets: dict[str, Any]) -> None:
    data, code = session.watch(targets[DATA]), session.watch(targets[CODE], "x")
    for watch, mode in ((data, "x"), (code, "w"), (code, "rw"), (code, "r")):
        before = watch.mode
        with pytest.raises(hwwatch.TargetError, match=f"mode '{mode}' does not fit it") as error:
            watch.mode = mode
        _one_line(error.value, "mode")
        assert (watch.mode, watch.armed) == (before, True)
    with pytest.raises(hwwatch.TargetError, match="none of"):
        data.mode = "write"


def test_mode_that_the_policy_or_the_condition_forbids(session: Any, targets: dict[str, Any]) -> None:
    watch = session.watch(targets[DATA], "rw", policy="skip")
    with pytest.raises(hwwatch.NotSupported, match="a read cannot be skipped"):
        watch.mode = "r"
    targets[DATA][0] = 77
    assert (watch.mode, watch.timeline().action.tolist()) == ("rw", ["skipped"])
    watch.policy = "continue"
    watch.mode = "r"
    with pytest.raises(hwwatch.NotSupported, match="a read cannot be skipped"):
        watch.policy = "skip"
    assert (watch.mode, watch.policy) == ("r", "continue")


def test_names_what_is_wrong_first(session: Any) -> None:
    """Several wrong options: still one error, of the first that is found."""
    with pytest.raises(hwwatch.HwwatchError) as error:
        session.watch(np.zeros(4)[1:2], "q", policy="jump", when="(", limit=0, on_hit=1)
    _one_line(error.value, None)
    assert session.watches() == []
    assert session.coverage().slots_free == 4


def test_condition_error_is_a_value_error(session: Any) -> None:
    with pytest.raises(ConditionError) as error:
        session.watch(np.zeros(4)[1:2], when="new <> 0")
    assert isinstance(error.value, ValueError)
    _one_line(error.value, "condition")
