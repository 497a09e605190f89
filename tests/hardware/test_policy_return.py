"""Policy `Return`: the function does not run, its caller gets the value."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import cffi
import pytest

import hwwatch

SOURCE = r"""
long runs;
__attribute__((noinline)) long integer(long a) { runs++; return a + 1; }
__attribute__((noinline)) int small(int a) { runs++; return a + 1; }
__attribute__((noinline)) unsigned char byte(unsigned char a) { runs++; return a + 1; }
__attribute__((noinline)) double real(double a) { runs++; return a + 1; }
__attribute__((noinline)) float single(float a) { runs++; return a + 1; }
__attribute__((noinline)) const char *text(void) { runs++; return "text"; }
long many(long n) { long sum = 0; while (n--) sum += integer(n); return sum; }
/* The caller's registers and stack must be as after any return. */
long careful(long n)
{
    long a = n, b = n * 2, c = n * 3, kept[4] = {n, n + 1, n + 2, n + 3};
    long got = integer(n);
    return got + (a == n && b == 2 * n && c == 3 * n && kept[3] - kept[0] == 3);
}
"""
TYPES = {
    "integer": ctypes.c_long,
    "small": ctypes.c_int,
    "byte": ctypes.c_ubyte,
    "real": ctypes.c_double,
    "single": ctypes.c_float,
}


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    made = load(SOURCE, "-Wl,-Bsymbolic", "-fno-optimize-sibling-calls")
    for name, kind in TYPES.items():
        getattr(made, name).restype, getattr(made, name).argtypes = kind, [kind]
    made.many.restype = made.careful.restype = ctypes.c_long
    made.many.argtypes = made.careful.argtypes = [ctypes.c_long]
    ctypes.c_long.in_dll(made, "runs").value = 0
    return made


def _runs(library: ctypes.CDLL) -> int:
    return int(ctypes.c_long.in_dll(library, "runs").value)


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("integer", 42, 42),
        ("integer", 0, 0),
        ("integer", -1, -1),
        ("integer", -(2**63), -(2**63)),
        ("integer", 2**63 - 1, 2**63 - 1),
        ("integer", 2**64 - 1, -1),
        ("integer", True, 1),
        ("small", -7, -7),
        ("small", 2**31 - 1, 2**31 - 1),
        ("byte", 255, 255),
        ("real", 2.5, 2.5),
        ("real", -1e308, -1e308),
        ("real", float("inf"), float("inf")),
        ("real", 3, 3.0),
        ("single", 0.5, 0.5),
        ("single", -3, -3.0),
        ("single", 0.1, 0.10000000149011612),
    ],
)
def test_value_by_the_functions_type(
    session: Any, library: ctypes.CDLL, name: str, value: float, result: float
) -> None:
    function = getattr(library, name)
    with session.watching(function, "x", policy=hwwatch.Return(value)) as watch:
        assert [function(1) for _ in range(3)] == [result] * 3
    assert _runs(library) == 0
    assert function(1) == 2
    rows = watch.timeline()
    assert rows.action.tolist() == ["returned"] * 3
    assert rows.arg0.tolist() == [1] * 3
    assert (watch.counted, watch.hits, watch.lost) == (3, 3, 0)


def test_not_a_number(session: Any, library: ctypes.CDLL) -> None:
    with session.watching(library.real, "x", policy=hwwatch.Return(float("nan"))):
        result = library.real(1.0)
    assert result != result


def test_numpy_scalars(session: Any, library: ctypes.CDLL) -> None:
    import numpy as np

    with session.watching(library.integer, "x", policy=hwwatch.Return(np.int32(-5))):
        assert library.integer(1) == -5
    with session.watching(library.real, "x", policy=hwwatch.Return(np.float32(0.25))):
        assert library.real(1.0) == 0.25


def test_float_where_the_function_does_not_say(session: Any, library: ctypes.CDLL) -> None:
    """By address nothing is known of the type: a float is returned as a double."""
    address = ctypes.cast(library.real, ctypes.c_void_p).value
    with session.watching(address, "x", policy=hwwatch.Return(6.25)):
        assert library.real(1.0) == 6.25
    address = ctypes.cast(library.integer, ctypes.c_void_p).value
    with session.watching(address, "x", policy=hwwatch.Return(-6)):
        assert library.integer(1) == -6


def test_cffi_function(session: Any, build: Callable[..., str]) -> None:
    ffi = cffi.FFI()
    ffi.cdef("double real(double); float single(float); long integer(long);")
    library = ffi.dlopen(build(SOURCE))
    for name, value in (("real", 2.5), ("real", 4), ("single", 0.5), ("integer", -9)):
        function = getattr(library, name)
        with session.watching(function, "x", policy=hwwatch.Return(value)):
            assert function(1) == value
        assert function(1) == 2


def test_strlen_returns_42_while_watched(in_child: Callable[..., Any]) -> None:
    """And its true value afterwards; hwwatch and Python themselves must survive it."""

    def work():
        libc = ctypes.CDLL(None)
        strlen = libc.strlen
        strlen.restype, strlen.argtypes = ctypes.c_size_t, [ctypes.c_char_p]
        text = b"hello, world"
        before = strlen(text)
        watch = hwwatch.watch(strlen, "x", policy=hwwatch.Return(42))
        during = strlen(text)
        watch.policy = "continue"
        after = strlen(text)
        watch.disarm()
        with hwwatch.watching(strlen, "x", policy=hwwatch.Return(43)):
            again = strlen(text)
        rows = watch.timeline()
        mine = rows[rows.function == "work"]
        return before, during, after, again, strlen(text), mine.action.tolist(), watch.lost

    assert in_child(work) == [12, 42, 12, 43, 12, ["returned", "continued"], 0]


@pytest.mark.slow
def test_hundred_thousand_hits(session: Any, library: ctypes.CDLL) -> None:
    with session.watching(library.integer, "x", policy=hwwatch.Return(7)) as watch:
        assert library.many(100_000) == 700_000
    assert _runs(library) == 0
    assert (watch.counted, watch.hits, watch.lost) == (100_000, 100_000, 0)
    assert watch.timeline().action.value_counts()["returned"] == 100_000


def test_callers_registers_and_stack_are_kept(session: Any, library: ctypes.CDLL) -> None:
    with session.watching(library.integer, "x", policy=hwwatch.Return(100)):
        assert [library.careful(n) for n in range(50)] == [101] * 50


def test_in_four_threads_at_once(session: Any, library: ctypes.CDLL) -> None:
    results: list[int] = []
    with session.watching(library.integer, "x", policy=hwwatch.Return(3)) as watch:
        workers = [threading.Thread(target=lambda: results.append(library.many(2000))) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert results == [6000] * 4
    assert (watch.counted, watch.hits, watch.lost) == (8000, 8000, 0)


def test_in_a_forked_child(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    def work(path):
        library = ctypes.CDLL(path)
        watch = hwwatch.watch(library.small, "x", policy=hwwatch.Return(9))
        child = os.fork()
        if not child:
            os._exit(library.small(1))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, library.small(1), watch.timeline().action.tolist()

    assert in_child(work, build(SOURCE)) == [9, 9, ["returned", "returned"]]


def test_what_cannot_be_returned_is_refused(session: Any, library: ctypes.CDLL) -> None:
    library.text.restype = ctypes.c_char_p
    for function, value, message in (
        (library.integer, 2.5, r"hwwatch\.Return\(2\.5\): the function returns an integer or a pointer\."),
        (library.text, 1.5, r"the function returns an integer or a pointer"),
        (library.integer, "5", r"hwwatch\.Return\('5'\): an int or a float can be returned\."),
        (library.integer, None, r"an int or a float can be returned"),
        (library.integer, 2**64, r"does not fit 64 bits"),
        (library.integer, -(2**63) - 1, r"does not fit 64 bits"),
    ):
        with pytest.raises(hwwatch.TargetError, match=message) as error:
            session.watch(function, "x", policy=hwwatch.Return(value))
        assert error.value.slug == "policy"
        assert "\n" not in str(error.value)
    assert session.watches() == []
    assert session.coverage().slots_free == 4


def test_inside_a_function_is_refused(session: Any, library: ctypes.CDLL) -> None:
    """There the return address is not on top of the stack."""
    inside = (ctypes.cast(library.careful, ctypes.c_void_p).value or 0) + 4
    with pytest.raises(hwwatch.NotSupported, match="not the entry of a function but inside careful"):
        session.watch(inside, "x", policy=hwwatch.Return(1))
    assert session.watches() == []


@pytest.mark.slow
def test_questions_while_strlen_returns_42(in_child: Callable[..., Any]) -> None:
    """The first timeline imports what makes it, which must not be told that each string has 42 bytes."""

    def work():
        libc = ctypes.CDLL(None)
        strlen = libc.strlen
        strlen.restype, strlen.argtypes = ctypes.c_size_t, [ctypes.c_char_p]
        watch = hwwatch.watch(strlen, "x", policy=hwwatch.Return(42), name="length")
        assert strlen(b"hello, world") == 42
        hits, shown, rows = watch.hits, repr(watch), watch.timeline(stack=True)
        coverage, listed = hwwatch.coverage(), hwwatch.watches()
        watch.policy = "continue"
        own = [frames for frames in rows["stack"] if any("/hwwatch/" in frame for frame in frames or ())]
        return hits >= 1, "return 42" in shown, own, len(coverage.watches), len(listed), strlen(b"hello")

    assert in_child(work) == [True, True, [], 1, 1, 5]
