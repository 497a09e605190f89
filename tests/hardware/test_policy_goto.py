"""Policy `Goto`: the thread goes on at an address of the user's choice."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwwatch

SOURCE = r"""
__attribute__((noinline)) long first(long a) { return a * 10 + 1; }
__attribute__((noinline)) long second(long a) { return a * 10 + 2; }
volatile long place;

/* Stores, then comes by `straight`, unless it is sent to `detour`. */
__attribute__((noinline)) long fork_in_the_road(long value)
{
    long sum = 0;
    __asm__ volatile("movq %1, %2\n"
                     ".globl straight\nstraight: addq $1, %0\n"
                     "jmp 1f\n"
                     ".globl detour\ndetour: addq $1000, %0\n"
                     "1:"
                     : "+r"(sum)
                     : "r"(value), "m"(place)
                     : "memory");
    return sum;
}
long many(long n) { long sum = 0; while (n--) sum += first(n); return sum; }
long many_roads(long n) { long sum = 0; while (n--) sum += fork_in_the_road(n); return sum; }
"""


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    made = load(SOURCE, "-Wl,-Bsymbolic")
    for name in ("first", "second", "fork_in_the_road", "many", "many_roads"):
        getattr(made, name).restype, getattr(made, name).argtypes = ctypes.c_long, [ctypes.c_long]
    ctypes.c_long.in_dll(made, "place").value = 0
    return made


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _label(library: ctypes.CDLL, name: str) -> int:
    return ctypes.addressof(ctypes.c_char.in_dll(library, name))


@pytest.mark.parametrize("how", ["address", "NumPy", "hexadecimal", "symbol", "function"])
def test_another_function_runs_instead(session: Any, library: ctypes.CDLL, how: str) -> None:
    second = _address(library.second)
    to = {
        "address": second,
        "NumPy": np.uint64(second),
        "hexadecimal": hex(second),
        "symbol": f"{Path(library._name).name}!second",
        "function": library.second,
    }[how]
    with session.watching(library.first, "x", policy=hwwatch.Goto(to)) as watch:
        assert [library.first(n) for n in range(5)] == [2, 12, 22, 32, 42]
    assert library.first(1) == 11
    rows = watch.timeline()
    assert rows.action.tolist() == ["jumped"] * 5
    assert "policy goto " in repr(watch)
    assert set(rows.pc) == {_address(library.first)}
    assert rows.arg0.tolist() == [0, 1, 2, 3, 4]
    assert (watch.counted, watch.hits, watch.lost) == (5, 5, 0)


def test_functions_of_the_math_library(session: Any) -> None:
    library = ctypes.CDLL("libm.so.6")
    for function in (library.cos, library.sin):
        function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double]
    sine = library.sin(0.5)
    with session.watching(library.cos, "x", policy=hwwatch.Goto("libm.so.6!sin")):
        assert library.cos(0.5) == sine
    assert library.cos(0.0) == 1.0


@pytest.mark.slow
def test_hundred_thousand_hits(session: Any, library: ctypes.CDLL) -> None:
    with session.watching(library.first, "x", policy=hwwatch.Goto(_address(library.second))) as watch:
        assert library.many(100_000) == sum(n * 10 + 2 for n in range(100_000))
    assert (watch.counted, watch.hits, watch.lost) == (100_000, 100_000, 0)
    assert watch.timeline().action.value_counts()["jumped"] == 100_000


@pytest.mark.parametrize("mode", ["w", "rw"])
def test_after_a_store(session: Any, library: ctypes.CDLL, mode: str) -> None:
    """The access is done; the thread goes on elsewhere."""
    place = ctypes.c_long.in_dll(library, "place")
    assert library.fork_in_the_road(1) == 1
    policy = hwwatch.Goto(_label(library, "detour"))
    with session.watching(place, mode, policy=policy) as watch:
        assert [library.fork_in_the_road(n) for n in (7, 7, 8)] == [1000] * 3
        assert library.many_roads(2000) == 2_000_000
    assert library.fork_in_the_road(1) == 1
    rows = watch.timeline()
    assert set(rows.action) == {"jumped"}
    assert set(rows.pc) == {_label(library, "straight")}
    assert rows.new.tolist() == [7, 7, 8, *range(1999, -1, -1)]
    assert (watch.counted, watch.hits, watch.lost) == (2003, 2003, 0)


def test_the_place_gone_to_may_be_watched_too(session: Any, library: ctypes.CDLL) -> None:
    """Its breakpoint is not covered up by the resume flag of the first (Intel SDM vol. 3B, 18.3.1.1)."""
    with (
        session.watching(
            library.first, "x", policy=hwwatch.Goto(_address(library.second)), name="a"
        ) as first,
        session.watching(library.second, "x", name="b") as second,
    ):
        assert [library.first(n) for n in range(100)] == [n * 10 + 2 for n in range(100)]
    assert (first.hits, second.hits) == (100, 100)
    assert session.timeline().watch.tolist() == ["a", "b"] * 100


def test_in_four_threads_at_once(session: Any, library: ctypes.CDLL) -> None:
    results: list[int] = []
    policy = hwwatch.Goto(_address(library.second))
    with session.watching(library.first, "x", policy=policy) as watch:
        workers = [threading.Thread(target=lambda: results.append(library.many(1000))) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert results == [sum(n * 10 + 2 for n in range(1000))] * 4
    assert (watch.counted, watch.hits, watch.lost) == (4000, 4000, 0)


def test_outside_executable_memory_is_refused(session: Any, library: ctypes.CDLL) -> None:
    data = np.zeros(8)
    page = mmap.mmap(-1, 4096)
    where = ctypes.addressof(ctypes.c_char.from_buffer(page))
    for address in (data.ctypes.data, where, 0, 1 << 46, hex(where)):
        with pytest.raises(hwwatch.NotSupported, match=r"not in executable memory\. Name a func") as error:
            session.watch(library.first, "x", policy=hwwatch.Goto(address))
        assert "\n" not in str(error.value)
    with pytest.raises(hwwatch.TargetError, match="has no symbol `kosinus`"):
        session.watch(library.first, "x", policy=hwwatch.Goto("libm.so.6!kosinus"))
    assert session.watches() == []
    assert session.coverage().slots_free == 4


@pytest.mark.parametrize("wrong", [None, 3.5, True, b"f", [1], np.zeros(4), lambda: 0])
def test_nothing_to_go_to(session: Any, library: ctypes.CDLL, wrong: Any) -> None:
    with pytest.raises(hwwatch.TargetError, match=r"^policy .* is needed\. Name .*\[policy\]$") as error:
        session.watch(library.first, "x", policy=hwwatch.Goto(wrong))
    assert "\n" not in str(error.value)
    assert session.watches() == []
