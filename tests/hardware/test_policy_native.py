"""A native function as policy: it runs in the handler, sees the hit and the machine, and decides."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cffi
import numpy as np
import pytest

import hwwatch

pytestmark = pytest.mark.slow

SOURCE = r"""
#define _GNU_SOURCE
#include <stddef.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <hwwatch.h>

hwwatch_hit last;
uint64_t rdi, rsp, rip;
volatile long calls;

int keep(hwwatch_hit *hit, ucontext_t *context)
{
    calls++;
    last = *hit;
    rdi = context->uc_mcontext.gregs[REG_RDI];
    rsp = context->uc_mcontext.gregs[REG_RSP];
    rip = context->uc_mcontext.gregs[REG_RIP];
    return HWWATCH_CONTINUE;
}
int skip(hwwatch_hit *hit, ucontext_t *context) { (void)hit; (void)context; return HWWATCH_SKIP; }
int drop(hwwatch_hit *hit, ucontext_t *context) { (void)hit; (void)context; return HWWATCH_DROP; }

/* Negative values are not let in; of the rest the even ones are not recorded. */
int clamp(hwwatch_hit *hit, ucontext_t *context)
{
    (void)context;
    int64_t value;
    memcpy(&value, hit->new_bytes, sizeof value);
    return value < 0 ? HWWATCH_SKIP : value % 2 ? HWWATCH_CONTINUE : HWWATCH_DROP;
}

/* Changes the function's argument before the function runs. */
int double_argument(hwwatch_hit *hit, ucontext_t *context)
{
    (void)hit;
    context->uc_mcontext.gregs[REG_RDI] *= 2;
    return HWWATCH_CONTINUE;
}

/* Reads and writes the watched bytes themselves. */
int touch(hwwatch_hit *hit, ucontext_t *context)
{
    (void)context;
    volatile int64_t *place = (volatile int64_t *)hit->address;
    for (int turn = 0; turn < 3; turn++)
        *place = *place + 1;
    return HWWATCH_CONTINUE;
}

extern long function(long);
volatile long from_handler;
int call_watched(hwwatch_hit *hit, ucontext_t *context)
{
    (void)hit;
    (void)context;
    from_handler += function(1);
    return HWWATCH_CONTINUE;
}

int slow(hwwatch_hit *hit, ucontext_t *context)
{
    (void)hit;
    (void)context;
    struct timespec pause = {0, 30000000};
    nanosleep(&pause, NULL);
    return HWWATCH_CONTINUE;
}

int faulty(hwwatch_hit *hit, ucontext_t *context)
{
    (void)hit;
    (void)context;
    calls++;
    *(volatile int *)8 = 1;
    return HWWATCH_SKIP;
}

int sets_errno(hwwatch_hit *hit, ucontext_t *context)
{
    (void)hit;
    (void)context;
    close(-1);
    return HWWATCH_CONTINUE;
}

int odd_answer(hwwatch_hit *hit, ucontext_t *context) { (void)hit; (void)context; return 77; }

size_t layout[] = {sizeof(hwwatch_hit), offsetof(hwwatch_hit, address), offsetof(hwwatch_hit, old_bytes),
                   offsetof(hwwatch_hit, changed)};

/* ---- what is watched ---- */
__attribute__((noinline)) long function(long a) { __asm__ volatile(""); return a + 1; }
long many(long n) { long sum = 0; while (n--) sum += function(n); return sum; }
void store(volatile long *p, long n) { for (long i = 1; i <= n; i++) *p = i; }
long load(const volatile long *p, long n) { long sum = 0; while (n--) sum += *p; return sum; }
"""


class Hit(ctypes.Structure):
    """``hwwatch_hit`` of hwwatch.h."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("time", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("nbytes", ctypes.c_uint64),
        ("pc", ctypes.c_uint64),
        ("tid", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("hits", ctypes.c_uint64),
        ("old_bytes", ctypes.c_ubyte * 32),
        ("new_bytes", ctypes.c_ubyte * 32),
        ("changed", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    made = load(SOURCE, f"-I{hwwatch.include()}", "-Wl,-Bsymbolic", "-Wall", "-Wextra", "-Werror")
    for name in ("function", "many", "load"):
        getattr(made, name).restype = ctypes.c_long
    made.function.argtypes = made.many.argtypes = [ctypes.c_long]
    for name in ("calls", "from_handler"):
        ctypes.c_long.in_dll(made, name).value = 0
    return made


def _at(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _calls(library: ctypes.CDLL) -> int:
    return int(ctypes.c_long.in_dll(library, "calls").value)


def test_header_is_found_and_says_what_the_core_does(library: ctypes.CDLL) -> None:
    assert (Path(hwwatch.include()) / "hwwatch.h").is_file()
    layout = (ctypes.c_size_t * 4).in_dll(library, "layout")
    assert list(layout) == [
        ctypes.sizeof(Hit),
        Hit.address.offset,
        Hit.old_bytes.offset,
        Hit.changed.offset,
    ]


def test_the_headers_own_example(session: Any, load: Callable[..., ctypes.CDLL]) -> None:
    """As it stands in the comment at the top of hwwatch.h."""
    text = Path(hwwatch.include(), "hwwatch.h").read_text().partition("The function runs")[0]
    example = "\n".join(line.removeprefix(" *") for line in text.splitlines()[1:])
    clamp = load(
        example, "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror", f"-I{hwwatch.include()}"
    ).clamp
    value = np.ones(1)
    with session.watching(value, policy=clamp):
        value[0] = 3
        value[0] = -3
    assert value.tolist() == [3]


def test_sees_the_hit_and_the_machine(session: Any, library: ctypes.CDLL) -> None:
    value = np.array([1, 2, 3])
    with session.watching(value[1:2], policy=library.keep) as watch:
        value[1] = 5
        value[1] = 5
        value[1] = -7
    assert _calls(library) == 3
    hit = Hit.in_dll(library, "last")
    rows = watch.timeline(registers=True)
    last = rows.iloc[-1]
    assert (hit.size, hit.version) == (ctypes.sizeof(Hit), 1)
    assert (hit.address, hit.nbytes) == (watch.address, 8)
    assert int.from_bytes(bytes(hit.old_bytes)[:8], "little", signed=True) == 5
    assert int.from_bytes(bytes(hit.new_bytes)[:8], "little", signed=True) == -7
    assert set(bytes(hit.new_bytes)[8:]) == {0}
    assert (hit.tid, hit.pid, hit.hits, hit.changed) == (threading.get_native_id(), os.getpid(), 3, 1)
    assert hit.pc == last.pc == ctypes.c_uint64.in_dll(library, "rip").value
    assert ctypes.c_uint64.in_dll(library, "rsp").value == last.rsp
    assert ctypes.c_uint64.in_dll(library, "rdi").value == last.rdi
    assert rows.action.tolist() == ["native"] * 3
    assert rows.new.tolist() == [5, 5, -7]
    assert value.tolist() == [1, -7, 3]


def test_at_a_function_it_sees_the_arguments(session: Any, library: ctypes.CDLL) -> None:
    with session.watching(library.function, "x", policy=library.keep) as watch:
        assert library.function(123) == 124
    hit = Hit.in_dll(library, "last")
    assert ctypes.c_uint64.in_dll(library, "rdi").value == 123
    assert hit.address == hit.pc == watch.address
    assert (watch.counted, watch.hits, _calls(library)) == (1, 1, 1)


def test_answer_skip(session: Any, library: ctypes.CDLL) -> None:
    value = np.array([1, 2, 3])
    with session.watching(value[1:2], policy=library.skip) as watch:
        value[:] = 9
    assert value.tolist() == [9, 2, 9]
    assert watch.timeline().action.tolist() == ["skipped"]
    # A read passes: it has happened, and there is nothing to put back.
    with session.watching(value[1:2], "rw", policy=library.skip) as watch:
        assert value[1] == 2
        value[1] = 5
    assert value.tolist() == [9, 2, 9]
    assert watch.timeline().action.tolist() == ["native", "skipped"]
    # At a function: over its first instruction, here `lea rax, [rdi + 1]`.
    with session.watching(library.function, "x", policy=library.skip) as watch:
        library.function(5)
    assert watch.timeline().action.tolist() == ["skipped"]


def test_answer_drop(session: Any, library: ctypes.CDLL) -> None:
    """The hit is counted as filtered and has no row."""
    value = np.zeros(1, np.int64)
    with session.watching(value, policy=library.drop) as watch:
        library.store(_at(value), ctypes.c_long(1000))
    assert value.tolist() == [1000]
    assert (watch.counted, watch.hits, watch.lost) == (1000, 0, 0)
    assert watch.coverage.tally.filtered == 1000
    assert len(watch.timeline()) == 0


def test_answers_by_value(session: Any, library: ctypes.CDLL) -> None:
    value = np.zeros(1, np.int64)
    with session.watching(value, policy=library.clamp) as watch:
        seen = []
        for new in (3, -1, 4, -5, 7, 8):
            value[0] = new
            seen.append(int(value[0]))
    assert seen == [3, 3, 4, 4, 7, 8]
    rows = watch.timeline()
    assert rows.new.tolist() == [3, -1, -5, 7]
    assert rows.old.tolist() == [0, 3, 4, 4]
    assert rows.action.tolist() == ["native", "skipped", "skipped", "native"]
    tally = watch.coverage.tally
    assert (tally.counted, tally.hits, tally.filtered, tally.lost) == (6, 4, 2, 0)


def test_unknown_answer_is_continue(session: Any, library: ctypes.CDLL) -> None:
    value = np.zeros(1, np.int64)
    with session.watching(value, policy=library.odd_answer) as watch:
        value[0] = 3
    assert (value[0], watch.timeline().action.tolist()) == (3, ["native"])


def test_changes_registers(session: Any, library: ctypes.CDLL) -> None:
    with session.watching(library.function, "x", policy=library.double_argument) as watch:
        assert [library.function(n) for n in range(5)] == [1, 3, 5, 7, 9]
        assert library.many(10_000) == sum(2 * n + 1 for n in range(10_000))
    assert library.function(5) == 6
    # What is recorded is the argument that the caller gave.
    assert watch.timeline().arg0.tolist()[:5] == [0, 1, 2, 3, 4]
    assert (watch.counted, watch.hits, watch.lost) == (10_005, 10_005, 0)


@pytest.mark.parametrize("mode", ["w", "rw"])
def test_touches_the_watched_bytes_itself(
    in_child: Callable[..., Any], build: Callable[..., str], mode: str
) -> None:
    """A trap inside the handler is passed over: no row, no loss, and above all an end."""

    def work(path, mode):
        library = ctypes.CDLL(path)
        value = np.zeros(1, np.int64)
        with hwwatch.watching(value, mode, policy=library.touch) as watch:
            library.store(ctypes.c_void_p(value.ctypes.data), ctypes.c_long(5000))
        rows = watch.timeline()
        return (
            value.tolist(),
            rows.new.tolist() == list(range(1, 5001)),
            watch.counted,
            watch.hits,
            watch.lost,
        )

    path = build(SOURCE, f"-I{hwwatch.include()}", "-Wl,-Bsymbolic")
    assert in_child(work, path, mode) == [[5003], True, 5000, 5000, 0]


def test_calls_the_watched_function_itself(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    def work(path):
        library = ctypes.CDLL(path)
        library.many.restype = ctypes.c_long
        with hwwatch.watching(library.function, "x", policy=library.call_watched) as watch:
            total = library.many(ctypes.c_long(5000))
        own = ctypes.c_long.in_dll(library, "from_handler").value
        return total, own, watch.counted, watch.hits, watch.lost

    path = build(SOURCE, f"-I{hwwatch.include()}", "-Wl,-Bsymbolic")
    assert in_child(work, path) == [sum(n + 1 for n in range(5000)), 10_000, 5000, 5000, 0]


def test_takes_long(session: Any, library: ctypes.CDLL) -> None:
    """Only its own thread waits, and each of them comes to its turn."""
    value = np.zeros(1, np.int64)
    free = np.zeros(4, np.int64)
    turns = 0
    with session.watching(value, policy=library.slow) as watch:
        workers = [
            threading.Thread(target=library.store, args=(_at(value), ctypes.c_long(10))) for _ in range(3)
        ]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            free += 1
            turns += 1
    rows = watch.timeline()
    assert (watch.counted, watch.hits, watch.lost) == (30, 30, 0)
    assert rows.tid.value_counts().tolist() == [10, 10, 10]
    for _, mine in rows.groupby("tid"):
        assert mine.time.diff().dropna().dt.total_seconds().min() >= 0.03
    # Together they would have taken 0.9 s one after the other.
    assert (rows.time.iloc[-1] - rows.time.iloc[0]).total_seconds() < 0.6
    assert turns > 1000
    assert free[0] == turns


def test_fault_is_caught(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    """The hit is recorded as if there had been no policy, and the program lives."""

    def work(path):
        library = ctypes.CDLL(path)
        library.many.restype = ctypes.c_long
        value = np.array([1, 2, 3])
        with hwwatch.watching(value[1:2], policy=library.faulty) as watch:
            for new in range(100):
                value[1] = new
        with hwwatch.watching(library.function, "x", policy=library.faulty) as code:
            total = library.many(ctypes.c_long(100))
        calls = ctypes.c_long.in_dll(library, "calls").value
        rows = hwwatch.timeline()
        return {
            "value": value.tolist(),
            "total": total,
            "calls": calls,
            "tallies": [(w.counted, w.hits, w.lost) for w in (watch, code)],
            "refused": [w.coverage.tally.refused for w in (watch, code)],
            "told": ["a native function crashed" in line for line in hwwatch.coverage().refusals],
            "actions": sorted(set(rows.action)),
        }

    path = build(SOURCE, f"-I{hwwatch.include()}", "-Wl,-Bsymbolic")
    assert in_child(work, path) == {
        "value": [1, 99, 3],
        "total": sum(n + 1 for n in range(100)),
        "calls": 200,
        "tallies": [[100, 100, 0]] * 2,
        "refused": [100, 100],
        "told": [True, True],
        "actions": ["continued"],
    }


def test_a_fault_elsewhere_still_kills(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    def work(path):
        library = ctypes.CDLL(path)
        value = np.zeros(1, np.int64)
        hwwatch.watch(value, policy=library.faulty)
        value[0] = 1
        ctypes.string_at(8)

    path = build(SOURCE, f"-I{hwwatch.include()}", "-Wl,-Bsymbolic")
    in_child(work, path, expect=-11)


def test_errno_is_kept(session: Any, load: Callable[..., ctypes.CDLL]) -> None:
    library = load(SOURCE, f"-I{hwwatch.include()}")
    tester = load(
        "#include <errno.h>\nint test(long *p) { errno = 33; *(volatile long *)p = 1; return errno; }"
    )
    value = np.zeros(1, np.int64)
    with session.watching(value, policy=library.sets_errno) as watch:
        assert tester.test(_at(value)) == 33
    assert watch.hits == 1


def test_by_address_and_by_cffi(session: Any, library: ctypes.CDLL, build: Callable[..., str]) -> None:
    ffi = cffi.FFI()
    ffi.cdef("int skip(void *, void *);")
    through_cffi = ffi.dlopen(build(SOURCE, f"-I{hwwatch.include()}"))
    address = ctypes.cast(library.skip, ctypes.c_void_p).value
    value = np.array([1, 2, 3])
    for policy in (address, through_cffi.skip):
        with session.watching(value[1:2], policy=policy) as watch:
            value[:] = 9
            assert value[1] == 2
        assert watch.timeline().action.tolist() == ["skipped"]


if importlib.util.find_spec("numba"):  # not everybody has it, and a skip would count as a failure

    def test_numba_cfunc(session: Any) -> None:
        import numba

        @numba.cfunc(numba.types.intc(numba.types.voidptr, numba.types.voidptr))
        def skip(hit: Any, context: Any) -> int:
            return 1

        value = np.array([1, 2, 3])
        with session.watching(value[1:2], policy=skip) as watch:
            value[:] = 9
            assert value[1] == 2
        assert watch.timeline().action.tolist() == ["skipped"]


def test_python_is_refused(session: Any) -> None:
    """With the hint that leads to where Python may run."""
    value = np.zeros(1, np.int64)
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

    def function(hit: Any, context: Any) -> int:
        return 0

    class Callable_:
        def __call__(self, hit: Any, context: Any) -> int:
            return 0

    pythonic = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(function)
    for policy in (function, lambda hit, context: 0, kind(function), pythonic, Callable_(), session.watches):
        with pytest.raises(hwwatch.NotSupported, match="Python cannot run in the trap handler") as error:
            session.watch(value, policy=policy)
        assert "on_hit=" in error.value.hint
        assert "\n" not in str(error.value)
    callback = cffi.FFI().callback("int(void *, void *)", function)
    with pytest.raises(hwwatch.NotSupported, match="Python cannot run in the trap handler"):
        session.watch(value, policy=callback)
    assert session.watches() == []
    assert session.coverage().slots_free == 4


def test_what_is_no_code_is_refused(session: Any) -> None:
    value = np.zeros(1, np.int64)
    for policy in (0, 123, value.ctypes.data, "jump", "", None, 1.5, value):
        with pytest.raises(hwwatch.HwwatchError) as error:
            session.watch(value, policy=policy)
        assert error.value.slug == "policy", policy
        assert "\n" not in str(error.value)
    assert session.watches() == []
    assert session.coverage().slots_free == 4
