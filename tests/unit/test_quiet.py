"""The lock of hwwatch's own Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from hwwatch.quiet import QuietLock, lock


@pytest.fixture
def interval() -> Iterator[float]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.004)
    yield 0.004
    sys.setswitchinterval(before)


def test_threads_give_way_while_it_is_held(interval: float) -> None:
    """NumPy lets go of the GIL in most calls: beside a thread that computes, each would cost 5 ms."""
    with lock:
        outer = sys.getswitchinterval()
        with lock:
            inner = sys.getswitchinterval()
        after = sys.getswitchinterval()
    assert (outer, inner, after) == (0.0005, 0.0005, 0.0005)
    assert sys.getswitchinterval() == interval


def test_also_after_an_error(interval: float) -> None:
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    assert sys.getswitchinterval() == interval


@pytest.mark.parametrize("own", [0.0001, 0.02])
def test_what_the_program_sets_stays(interval: float, own: float) -> None:
    with lock:
        sys.setswitchinterval(own)
    assert sys.getswitchinterval() == pytest.approx(own)


def test_a_shorter_one_stays(interval: float) -> None:
    sys.setswitchinterval(0.0002)
    with lock:
        inside = sys.getswitchinterval()
    assert (inside, sys.getswitchinterval()) == pytest.approx((0.0002, 0.0002))


def test_a_child_that_is_forked_meanwhile_has_its_own_back(interval: float) -> None:
    with lock:
        child = os.fork()
        if not child:
            os._exit(sys.getswitchinterval() != interval)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_each_lock_restores_what_it_found(interval: float) -> None:
    other = QuietLock()
    with lock, other:
        pass
    assert sys.getswitchinterval() == interval
