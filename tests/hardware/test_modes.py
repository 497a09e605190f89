"""Modes `w`, `rw`, `r`: which accesses are rows, of which kind, and for which bytes."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

SOURCE = r"""
#include <stdint.h>
#include <string.h>
#define OPERATIONS(T, R, bits) \
    void store##bits(T *p) { __asm__ volatile("mov %1, (%0)" : : "r"(p), R((T)5) : "memory"); } \
    void load##bits(T *p) { \
        T v; __asm__ volatile("mov (%1), %0" : "=&" R(v) : "r"(p) : "memory"); } \
    void inc##bits(T *p) { __asm__ volatile("lock; inc" #bits " (%0)" : : "r"(p) : "memory"); } \
    void xadd##bits(T *p) { \
        T v = 3; __asm__ volatile("lock; xadd %0, (%1)" : "+" R(v) : "r"(p) : "memory"); } \
    void cmpxchg##bits(T *p, T was) { \
        __asm__ volatile("lock; cmpxchg %2, (%1)" : "+a"(was) : "r"(p), R((T)7) : "memory"); } \
    void xchg##bits(T *p) { T v = 9; __asm__ volatile("xchg %0, (%1)" : "+" R(v) : "r"(p) : "memory"); } \
    void cmp##bits(T *p) { __asm__ volatile("cmp %1, (%0)" : : "r"(p), R((T)5) : "memory"); }
OPERATIONS(uint8_t, "q", b)
OPERATIONS(uint16_t, "r", w)
OPERATIONS(uint32_t, "r", l)
OPERATIONS(uint64_t, "r", q)

/* Calls code made at run time, and wipes it out before anybody can look at it. */
typedef void made(void *);
void call_and_wipe(made *code, void *p, long size) { code(p); memset((void *)code, 0x06, size); }
void storeq_many(volatile uint64_t *p, long n) { while (n--) *p = n; }
"""
TYPES = {"b": np.uint8, "w": np.uint16, "l": np.uint32, "q": np.uint64}
#: In this order: what each operation is, as a watch for reads and writes reports it.
OPERATIONS = {
    "store": "write",
    "load": "read",
    "inc": "readwrite",
    "xadd": "readwrite",
    "cmpxchg": "readwrite",
    "xchg": "readwrite",
    "cmp": "read",
}
#: The rows that these make, by mode.
SEEN = {
    "w": [kind for kind in OPERATIONS.values() if kind != "read"],
    "rw": list(OPERATIONS.values()),
    "r": [kind for kind in OPERATIONS.values() if kind != "write"],
}


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    return load(SOURCE)


def _act(library: ctypes.CDLL, width: str, address: int) -> None:
    for operation in OPERATIONS:
        getattr(library, operation + width)(ctypes.c_void_p(address), 0)


@pytest.mark.parametrize("width", TYPES)
@pytest.mark.parametrize("mode", SEEN)
def test_kinds_of_each_width(session: Any, library: ctypes.CDLL, mode: str, width: str) -> None:
    """`inc`, `xadd`, `cmpxchg`, `xchg` read and write; a watch for reads leaves out what only writes."""
    array = np.zeros(32, TYPES[width])
    with session.watching(array[8:9], mode) as watch:
        _act(library, width, array[8:].ctypes.data)
    rows = watch.timeline()
    assert rows.access.tolist() == SEEN[mode]
    assert set(rows.confidence) == {"exact"}
    # store 5, inc, xadd 3, cmpxchg that fails (0 was expected), xchg 9
    new = dict(zip(OPERATIONS, (5, 5, 6, 9, 9, 9, 9), strict=True))
    wanted = [name for name in OPERATIONS if OPERATIONS[name] in SEEN[mode]]
    assert rows.new.tolist() == [new[name] for name in wanted]
    assert rows.nbytes.tolist() == [array.itemsize] * len(wanted)
    assert (watch.hits, watch.lost) == (len(wanted), 0)
    assert watch.counted == len(OPERATIONS) - (2 if mode == "w" else 0)
    assert watch.coverage.tally.filtered == (1 if mode == "r" else 0)


@pytest.mark.parametrize("width", TYPES)
@pytest.mark.parametrize("mode", SEEN)
@pytest.mark.parametrize("nbytes", [1, 2, 4, 8])
def test_neighbours_are_never_reported(
    session: Any, library: ctypes.CDLL, nbytes: int, mode: str, width: str
) -> None:
    """Accesses of each width on every byte around the watched ones that does not reach them."""
    memory = np.zeros(64, np.uint8)
    first = 24 + -memory.ctypes.data % 8
    itemsize = np.dtype(TYPES[width]).itemsize
    for skip in range(0, 8, nbytes):
        start = first + skip
        value = memory[start : start + nbytes].view(f"u{nbytes}")
        with session.watching(value, mode) as watch:
            for place in range(start - 16, start + nbytes + 16):
                if place + itemsize <= start or place >= start + nbytes:
                    _act(library, width, memory.ctypes.data + place)
            assert watch.counted == 0
            _act(library, width, memory.ctypes.data + start - start % itemsize)
        assert watch.slots == 1
        assert (watch.hits, watch.lost) == (len(SEEN[mode]), 0)
        assert watch.timeline().access.tolist() == SEEN[mode]


def test_failed_cmpxchg_and_equal_store_are_accesses(session: Any, library: ctypes.CDLL) -> None:
    """They change nothing, and are told apart from reads by the instruction alone."""
    value = np.full(1, 5, np.uint64)
    place = ctypes.c_void_p(value.ctypes.data)
    with session.watching(value, "rw") as watch:
        library.storeq(place)
        library.cmpxchgq(place, 1)
        library.loadq(place)
    rows = watch.timeline()
    assert rows.access.tolist() == ["write", "readwrite", "read"]
    assert not rows.changed.any()
    assert set(rows.new) == {5}


def test_known_writers_of_a_read_watch_cost_no_record(session: Any, library: ctypes.CDLL) -> None:
    """Once it is decoded, an instruction that only writes is passed over in the handler, uncounted none."""
    value = np.zeros(1, np.uint64)
    place = ctypes.c_void_p(value.ctypes.data)
    with session.watching(value, "r") as watch:
        library.storeq_many(place, 10)
        assert (watch.hits, watch.counted) == (0, 10)
        before = session._ledger.ring().committed()
        library.storeq_many(place, 5000)
        assert (watch.hits, watch.counted, watch.lost) == (0, 5010, 0)
        assert session._ledger.ring().committed() == before
        library.loadq(place)
        library.incq(place)
        assert (watch.hits, watch.counted, watch.lost) == (2, 5012, 0)
    rows = watch.timeline()
    assert rows.access.tolist() == ["read", "readwrite"]
    # What the writers left is known all the same.
    assert (rows.old.tolist(), rows.new.tolist()) == ([0, 0], [0, 1])
    assert watch.coverage.tally.filtered == 5010


def test_read_watch_with_many_writers_in_threads(session: Any, library: ctypes.CDLL) -> None:
    value = np.zeros(1, np.uint64)
    place = ctypes.c_void_p(value.ctypes.data)
    with session.watching(value, "r") as watch:
        workers = [threading.Thread(target=library.storeq_many, args=(place, 3000)) for _ in range(3)]
        for worker in workers:
            worker.start()
        for _ in range(500):
            library.loadq(place)
        for worker in workers:
            worker.join()
    assert (watch.hits, watch.counted, watch.lost) == (500, 9500, 0)
    assert set(watch.timeline().access) == {"read"}


# mov qword [rdi], 9; ret   and   mov rax, [rdi]; ret
WRITER, READER = bytes.fromhex("48c70709000000c3"), bytes.fromhex("488b07c3")


@pytest.mark.parametrize(
    ("mode", "rows"),
    [
        ("w", [("write", True), ("write", False)]),
        ("rw", [("write", True), ("unknown", False), ("unknown", False)]),
        ("r", [("unknown", False), ("unknown", False)]),
    ],
)
def test_where_the_instruction_is_gone_the_bytes_decide(
    session: Any, library: ctypes.CDLL, mode: str, rows: list[tuple[str, bool]]
) -> None:
    """Code that was wiped out since: changed bytes were written, of the rest nothing is claimed."""
    value = np.zeros(1, np.uint64)
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    where = ctypes.addressof(ctypes.c_char.from_buffer(page))
    with session.watching(value, mode) as watch:
        for number, code in enumerate((WRITER, WRITER, READER)):
            # Each at an address of its own, since what was decoded there is remembered.
            page[number * 64 : number * 64 + len(code)] = code
            library.call_and_wipe(
                ctypes.c_void_p(where + number * 64), ctypes.c_void_p(value.ctypes.data), ctypes.c_long(64)
            )
    table = watch.timeline()
    assert list(zip(table.access, table.changed, strict=True)) == rows
    assert set(table.confidence) <= {"none", "guess"}
    assert (watch.counted, watch.lost) == (2 if mode == "w" else 3, 0)
