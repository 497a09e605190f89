"""Policy `skip` on code: the instruction at the breakpoint never runs."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable
from typing import Any

import pytest

import hwwatch

# The instruction at `here` is of another length in each function.
SOURCE = r"""
#define FUNCTION(name, text)                                                                                 \
    long name(void)                                                                                          \
    {                                                                                                        \
        long sum = 0;                                                                                        \
        __asm__ volatile(".globl here_" #name "\nhere_" #name ": " text "\nadd $1000, %0" : "+a"(sum));      \
        return sum;                                                                                          \
    }
FUNCTION(one, "nop")
FUNCTION(two, "inc %%eax")
FUNCTION(four, "add $1, %0")
FUNCTION(five, "mov $0x11223344, %%eax")
FUNCTION(ten, "movabs $0x1122334455667788, %0")
FUNCTION(jump, "jmp 1f\nadd $1, %0\n1:")

long many(long n) { long sum = 0; while (n--) sum += four(); return sum; }
"""
PLAIN = {"one": 1000, "two": 1001, "four": 1001, "five": 0x11223344 + 1000, "ten": 0x1122334455667788 + 1000}
LENGTHS = {"one": 1, "two": 2, "four": 4, "five": 5, "ten": 10}


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    made = load(SOURCE)
    for name in (*PLAIN, "jump", "many"):
        getattr(made, name).restype = ctypes.c_long
    made.many.argtypes = [ctypes.c_long]
    return made


def _here(library: ctypes.CDLL, name: str) -> int:
    return ctypes.addressof(ctypes.c_char.in_dll(library, f"here_{name}"))


@pytest.mark.parametrize("name", PLAIN)
def test_instruction_of_each_length(session: Any, library: ctypes.CDLL, name: str) -> None:
    function = getattr(library, name)
    assert function() == PLAIN[name]
    with session.watching(_here(library, name), "x", policy="skip") as watch:
        assert [function() for _ in range(100)] == [1000] * 100
    assert function() == PLAIN[name]
    rows = watch.timeline()
    assert (watch.counted, watch.hits, watch.lost) == (100, 100, 0)
    assert set(rows.action) == {"skipped"}
    assert set(rows.pc) == {_here(library, name)}


def test_skipped_jump_falls_through(session: Any, library: ctypes.CDLL) -> None:
    assert library.jump() == 1000
    with session.watching(_here(library, "jump"), "x", policy="skip"):
        assert library.jump() == 1001


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "each", "action"),
    [("continue", 1001, "continued"), ("skip", 1000, "skipped")],
)
def test_hundred_thousand_hits(
    session: Any, library: ctypes.CDLL, policy: str, each: int, action: str
) -> None:
    """Right results, none trapped twice, each counted once."""
    with session.watching(_here(library, "four"), "x", policy=policy) as watch:
        assert library.many(100_000) == each * 100_000
    assert (watch.counted, watch.hits, watch.lost) == (100_000, 100_000, 0)
    assert session.timeline().action.value_counts()[action] == 100_000


def test_in_four_threads_at_once(session: Any, library: ctypes.CDLL) -> None:
    results: list[int] = []
    with session.watching(_here(library, "four"), "x", policy="skip") as watch:
        workers = [threading.Thread(target=lambda: results.append(library.many(2000))) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert results == [2_000_000] * 4
    assert (watch.counted, watch.hits, watch.lost) == (8000, 8000, 0)
    assert set(watch.timeline().action) == {"skipped"}


def test_two_breakpoints_in_a_row(session: Any, library: ctypes.CDLL) -> None:
    """The place where a skip leads to is watched, too: it traps as if it had been reached by itself."""
    here = _here(library, "four")
    with (
        session.watching(here, "x", policy="skip", name="first") as first,
        session.watching(here + 4, "x", policy="skip", name="second") as second,
    ):
        assert [library.four() for _ in range(50)] == [0] * 50
    assert library.four() == 1001
    assert (first.counted, first.hits, second.counted, second.hits) == (50, 50, 50, 50)
    assert session.timeline().watch.tolist() == ["first", "second"] * 50


# mov eax, 1; add eax, 2; ret   and the same with another `add`, or with one of another length
BEFORE, AFTER, LONGER = (
    bytes.fromhex(text) for text in ("b80100000083c002c3", "b80100000083c00ac3", "b80100000005000a0000c3")
)


@pytest.mark.parametrize(("code", "result"), [(AFTER, 11), (LONGER, 2561)])
def test_changed_code_is_not_skipped(session: Any, code: bytes, result: int) -> None:
    """The length was that of another instruction: the new one runs, and the row says so."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page[: len(BEFORE)] = BEFORE
    where = ctypes.addressof(ctypes.c_char.from_buffer(page))
    function = ctypes.CFUNCTYPE(ctypes.c_int)(where)
    assert function() == 3
    with session.watching(where + 5, "x", policy="skip") as watch:
        assert function() == 1
        page[: len(code)] = code
        assert [function() for _ in range(20)] == [result] * 20
        watch.policy = "skip"  # looks at the code again
        assert function() == 1
    assert watch.timeline().action.tolist() == ["skipped"] + ["continued"] * 20 + ["skipped"]
    assert (watch.counted, watch.hits, watch.lost) == (22, 22, 0)
    assert watch.coverage.tally.refused == 20
    told = f"{watch.name}: on 20 hits the policy was not carried out: the code had changed"
    coverage = session.coverage()
    assert coverage.problems == ()  # all was seen
    assert told in str(coverage)
    assert told in coverage._repr_html_()


def test_undecodable_instruction_is_refused(session: Any) -> None:
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page[:16] = b"\x06" * 16  # no instruction in 64-bit mode
    where = ctypes.addressof(ctypes.c_char.from_buffer(page))
    with pytest.raises(hwwatch.NotSupported, match=r"cannot be decoded\. Use policy"):
        session.watch(where, "x", policy="skip")
    assert session.watches() == []


def test_in_a_forked_child(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    def work(path):
        library = ctypes.CDLL(path)
        here = ctypes.addressof(ctypes.c_char.in_dll(library, "here_four"))
        watch = hwwatch.watch(here, "x", policy="skip")
        child = os.fork()
        if not child:
            os._exit(0 if [library.four() for _ in range(9)] == [1000] * 9 else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, library.four(), watch.timeline().action.tolist()

    assert in_child(work, build(SOURCE)) == [0, 1000, ["skipped"] * 10]
