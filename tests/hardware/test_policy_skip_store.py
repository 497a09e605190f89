"""Policy `skip` on data: the watched bytes keep their value, whatever wrote; their neighbours are written."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwwatch

SOURCE = r"""
#include <stdint.h>
#include <string.h>
void rep_stosb(void *p, int value, long n) {
    __asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(value) : "memory"); }
void rep_movsb(void *p, const void *from, long n) {
    __asm__ volatile("rep movsb" : "+D"(p), "+S"(from), "+c"(n) : : "memory"); }
__attribute__((target("avx"))) void avx(void *p, const void *from) {
    __asm__ volatile("vmovups (%1), %%ymm0\nvmovups %%ymm0, (%0)\nvzeroupper" : : "r"(p), "r"(from)
                     : "memory", "xmm0"); }
void sse(void *p, const void *from) {
    __asm__ volatile("movups (%1), %%xmm0\nmovups %%xmm0, (%0)" : : "r"(p), "r"(from) : "memory", "xmm0"); }
void add(long *p, long v) { __asm__ volatile("lock; addq %1, (%0)" : : "r"(p), "r"(v) : "memory"); }
void exchange(long *p, long v) { __asm__ volatile("xchg %0, (%1)" : "+r"(v) : "r"(p) : "memory"); }
long load(const volatile long *p, long n) { long sum = 0; while (n--) sum += *p; return sum; }
void store(volatile long *p, long n) { while (n--) *p = n + 1; }
void store4(volatile uint32_t *p, long n) { for (long i = 1; i <= n; i++) *p = (uint32_t)i; }
void store1(volatile uint8_t *p, long n) { for (long i = 1; i <= n; i++) *p = (uint8_t)i; }

/* How often a byte, just written, had another value a moment later, though nobody else writes it. */
long check1(volatile uint8_t *p, long n)
{
    long lost = 0;
    for (long i = 1; i <= n; i++) {
        *p = (uint8_t)i;
        for (int turn = 0; turn < 50; turn++)
            __asm__ volatile("pause");
        lost += *p != (uint8_t)i;
    }
    return lost;
}

static volatile long arrived, turn;
static void meet(void)
{
    long mine = turn;
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST) == 2) {
        arrived = 0;
        turn = mine + 1;
    }
    while (turn == mine)
        __asm__ volatile("pause");
}

/* Two threads call this: they store at the same time, again and again. What the first watched byte was left
 * with is counted, where it is not 0. */
long collide(volatile uint8_t *place, volatile uint8_t *watched, long n)
{
    long wrong = 0;
    for (long i = 1; i <= n; i++) {
        uint8_t value = (uint8_t)(i + (place == watched ? 1 : 101)) | 1;
        meet();
        for (long wait = place == watched ? 0 : i % 200; wait; wait--)
            __asm__ volatile("");
        *place = value;
        meet();
        wrong += *watched != 0;
        *watched = 0;
        meet();
    }
    return wrong;
}
"""


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    made = load(SOURCE)
    made.load.restype = made.check1.restype = made.collide.restype = ctypes.c_long
    return made


def _at(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _has_avx() -> bool:
    with open("/proc/cpuinfo") as file:
        return " avx " in file.read()


def test_assignment(session: Any) -> None:
    arr = np.arange(8.0)
    with session.watching(arr[3:4], policy="skip") as watch:
        arr[3] = 5
        assert arr[3] == 3
        arr[2] = 20
        arr[4] = 40
    assert arr.tolist() == [0, 1, 20, 3, 40, 5, 6, 7]
    rows = watch.timeline()
    assert (rows.old.tolist(), rows.new.tolist()) == ([3], [5])
    assert rows.action.tolist() == ["skipped"]
    assert rows.changed.tolist() == [True]
    arr[3] = 5
    assert arr[3] == 5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fill", [1, 1, 1, 3, 1, 1, 1, 1]),
        ("add", [1, 2, 3, 3, 5, 6, 7, 8]),
        ("ufunc", [0, 1, 4, 3, 16, 25, 36, 49]),
        ("add_at", [2, 1, 3, 3, 4, 5, 6, 7]),
        ("copy", [9, 9, 9, 3, 9, 9, 9, 9]),
        ("fancy", [0, 8, 2, 3, 8, 5, 6, 7]),
        ("put", [0, 8, 2, 3, 8, 5, 6, 7]),
    ],
)
def test_numpy_operation(session: Any, name: str, expected: list[float]) -> None:
    def act() -> None:
        if name == "fill":
            arr[:] = 1
        elif name == "add":
            arr[:] += 1
        elif name == "ufunc":
            np.multiply(arr, arr, out=arr)
        elif name == "add_at":
            np.add.at(arr, [0, 3, 3, 2, 0, 3], 1)
        elif name == "copy":
            np.copyto(arr, np.full(8, 9.0))
        elif name == "fancy":
            arr[[1, 3, 4]] = 8
        else:
            arr.put([1, 3, 4], 8)

    arr = np.arange(8.0)
    with session.watching(arr[3:4], policy="skip") as watch:
        act()
        assert arr[3] == 3
    assert arr.tolist() == expected
    rows = watch.timeline()
    if name in ("copy", "put"):  # memcpy may write a place twice
        assert 1 <= len(rows) <= 2
    else:
        assert len(rows) == (3 if name == "add_at" else 1)
    assert set(rows.action) == {"skipped"}
    assert set(rows.old) == {3}
    assert (watch.counted, watch.hits, watch.lost) == (len(rows), len(rows), 0)


def test_sort_leaves_the_value_where_it_is(session: Any) -> None:
    arr = np.array([9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0] * 5)
    wanted = np.sort(arr)
    with session.watching(arr[3:4], policy="skip") as watch:
        arr.sort()
        assert arr[3] == 6
    assert watch.hits > 0
    rows = watch.timeline()
    assert set(rows.action[rows.changed]) == {"skipped"}
    assert set(rows.old) == {6}
    assert watch.lost == 0
    arr.sort()
    assert arr[3] != wanted[3] or 6 in arr.tolist()


def test_wide_store(session: Any, library: ctypes.CDLL) -> None:
    """One instruction stores 32 bytes (16 where there is no AVX): the 8 watched ones are put back."""
    arr, values = np.arange(8.0), np.full(4, -1.0)
    with session.watching(arr[3:4], policy="skip") as watch:
        if _has_avx():
            library.avx(_at(arr[1:]), _at(values))
        else:
            library.sse(_at(arr[2:]), _at(values))
    assert arr.tolist() == [0, -1 if _has_avx() else 1, -1, 3, -1 if _has_avx() else 4, 5, 6, 7]
    assert watch.timeline().instruction.str.contains("movup").tolist() == [True]
    assert (watch.counted, watch.hits, watch.lost) == (1, 1, 0)


def test_rep_stosb(session: Any, library: ctypes.CDLL) -> None:
    """The instruction is interrupted while it iterates, and goes on with the rest."""
    for length in (9, 40, 400, 5000):
        data = np.zeros(length, np.uint8)
        data[5:9] = [1, 2, 3, 4]
        with session.watching(data[5:9], policy="skip") as watch:
            library.rep_stosb(_at(data), 0xEE, ctypes.c_long(length))
        expected = np.full(length, 0xEE, np.uint8)
        expected[5:9] = [1, 2, 3, 4]
        assert np.array_equal(data, expected), length
        assert watch.hits > 0
        assert watch.lost == 0
        rows = watch.timeline()
        assert set(rows.action[rows.changed]) == {"skipped"}
        assert rows.instruction.str.startswith("rep stos").all()


def test_rep_movsb(session: Any, library: ctypes.CDLL) -> None:
    data, source = np.zeros(64, np.uint8), np.arange(64, dtype=np.uint8)
    with session.watching(data[16:24], policy="skip") as watch:
        library.rep_movsb(_at(data), _at(source), ctypes.c_long(64))
    assert data[16:24].tolist() == [0] * 8
    assert np.array_equal(np.delete(data, range(16, 24)), np.delete(source, range(16, 24)))
    assert watch.lost == 0


def test_read_modify_write(session: Any, library: ctypes.CDLL) -> None:
    value = np.full(3, 10)
    with session.watching(value[1:2], policy="skip") as watch:
        library.add(_at(value[1:]), ctypes.c_long(5))
        library.exchange(_at(value[1:]), ctypes.c_long(7))
    assert value.tolist() == [10, 10, 10]
    rows = watch.timeline()
    assert (rows.old.tolist(), rows.new.tolist()) == ([10, 10], [15, 7])


@pytest.mark.parametrize("kind", ["u1", "i2", "f4", "f8", "c16", "S3", "V5"])
def test_each_size(session: Any, kind: str) -> None:
    """Also values that take several registers, or odd bytes under one."""
    array = np.zeros(6, kind)
    raw = array.view(np.uint8) if array.itemsize > 1 else array
    raw[:] = np.arange(len(raw)) % 200 + 1
    before = raw.copy()
    first, last = 2 * array.itemsize, 3 * array.itemsize
    with session.watching(array[2:3], policy="skip") as watch:
        raw[:] = 0xEE
        assert raw[first:last].tolist() == before[first:last].tolist()
    assert set(raw[:first]) == set(raw[last:]) == {0xEE}
    assert watch.hits > 0
    assert watch.lost == 0
    raw[:] = 0xEE
    assert set(raw) == {0xEE}


def test_equal_store_is_no_loss(session: Any) -> None:
    """There is nothing to put back, and the store counts all the same."""
    arr = np.arange(8.0)
    with session.watching(arr[3:4], policy="skip") as watch:
        arr[3] = 3
    rows = watch.timeline()
    assert arr[3] == 3
    assert rows.changed.tolist() == [False]
    assert (watch.counted, watch.hits, watch.lost) == (1, 1, 0)


@pytest.mark.slow
def test_many(session: Any, library: ctypes.CDLL) -> None:
    """Undoing a store neither traps again nor switches anything off."""
    value = np.full(3, -1)
    with session.watching(value[1:2], policy="skip") as watch:
        library.store(_at(value[1:]), ctypes.c_long(100_000))
        assert value.tolist() == [-1, -1, -1]
    assert (watch.counted, watch.hits, watch.lost) == (100_000, 100_000, 0)
    rows = watch.timeline()
    assert set(rows.action) == {"skipped"}
    assert set(rows.old) == {-1}
    assert np.array_equal(rows.new, np.arange(100_000, 0, -1))


def test_reads_pass_on_a_read_write_watch(session: Any, library: ctypes.CDLL) -> None:
    value = np.full(3, 7)
    with session.watching(value[1:2], "rw", policy="skip") as watch:
        assert library.load(_at(value[1:]), ctypes.c_long(100)) == 700
        library.store(_at(value[1:]), ctypes.c_long(3))
        assert library.load(_at(value[1:]), ctypes.c_long(2)) == 14
        library.add(_at(value[1:]), ctypes.c_long(5))
    assert value.tolist() == [7, 7, 7]
    rows = watch.timeline()
    assert rows.access.tolist() == ["read"] * 100 + ["write"] * 3 + ["read"] * 2 + ["readwrite"]
    assert rows.action.tolist() == ["continued"] * 100 + ["skipped"] * 3 + ["continued"] * 2 + ["skipped"]
    assert set(rows.old) == {7}
    assert (watch.counted, watch.hits, watch.lost) == (106, 106, 0)


def test_store_by_the_kernel(session: Any) -> None:
    """A read(2) into the watched bytes, where such accesses are seen at all."""
    import io
    import tempfile

    data = np.frombuffer(b"." * 16, np.uint8).copy()
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(b"0123456789abcdef")
        file.seek(0)
        with session.watching(data[4:8], policy="skip") as watch:
            assert isinstance(file, io.RawIOBase)
            assert file.readinto(data) == 16
    rows = watch.timeline()
    if watch.kernel_note != "seen":
        assert (bytes(data), len(rows)) == (b"0123456789abcdef", 0)
        return
    assert bytes(data) == b"0123....89abcdef"
    assert set(rows.origin) == {"kernel"}
    assert set(rows.action) == {"skipped"}


def test_two_threads_lose_no_store_outside_the_watch(session: Any, library: ctypes.CDLL) -> None:
    """One thread's stores into the watched bytes are undone, another's just beside them all last."""
    data = np.zeros(32, np.uint8)
    with session.watching(data[8:12].view(np.uint32), policy="skip") as watch:
        undone = threading.Thread(target=library.store4, args=(_at(data[8:]), ctypes.c_long(20_000)))
        undone.start()
        lost = 0
        rounds = 0
        while undone.is_alive():
            lost += library.check1(_at(data[12:]), ctypes.c_long(2000))
            rounds += 1
        undone.join()
    assert rounds > 0
    assert lost == 0
    assert data[8:12].tolist() == [0] * 4
    assert (watch.counted, watch.lost) == (20_000, 0)


def test_bytes_under_the_cover_are_not_put_back(session: Any, library: ctypes.CDLL) -> None:
    """12 bytes at address 1 mod 8: the registers cover bytes of others, whose stores must last.

    A neighbouring byte is written by one thread while another's stores into the watched bytes are undone.
    """
    memory = np.zeros(64, np.uint8)
    first = 8 + -memory.ctypes.data % 8 + 1
    with session.watching(memory[first : first + 12], policy="skip") as watch:
        covered = [
            offset
            for piece in watch.pieces
            for offset in range(
                piece.address - memory.ctypes.data, piece.address - memory.ctypes.data + piece.nbytes
            )
        ]
        foreign = sorted(set(covered) - set(range(first, first + 12)))
        assert foreign  # else this would prove nothing
        place = ctypes.c_void_p(memory.ctypes.data + foreign[-1])
        near = foreign[-1] - 1 if foreign[-1] - 1 >= first else first
        undone = threading.Thread(
            target=library.store1, args=(ctypes.c_void_p(memory.ctypes.data + near), ctypes.c_long(10_000))
        )
        undone.start()
        lost = 0
        while undone.is_alive():
            lost += library.check1(place, ctypes.c_long(200))
        undone.join()
        assert lost == 0
        assert memory[first : first + 12].tolist() == [0] * 12
        # One wide store over all of it: the watched bytes stay, every other one is written.
        memory[:] = 0xEE
        inside = np.zeros(64, np.bool_)
        inside[first : first + 12] = True
        assert set(memory[~inside]) == {0xEE}
        assert set(memory[inside]) == {0}
    assert watch.lost == 0
    rows = watch.timeline()
    assert set(rows.action[rows.changed]) == {"skipped"}


@pytest.mark.parametrize("other", [0, 1, 6, 7])
def test_two_stores_at_once_are_both_undone(session: Any, library: ctypes.CDLL, other: int) -> None:
    """On the same byte, on two bytes under one register, or one of them on a byte that is not watched.

    One handler may see the other's store, or find what the other has not undone yet.
    """
    word = np.zeros(1, np.uint64).view(np.uint8)
    with session.watching(word[:6], policy="skip") as watch:
        wrong: list[int] = []
        workers = [
            threading.Thread(
                target=lambda place: wrong.append(library.collide(place, _at(word), ctypes.c_long(6000))),
                args=(_at(word[n:]),),
            )
            for n in (0, other)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert sum(wrong) == 0
        assert not word[:6].any()
    assert watch.lost == 0
    assert bool(word[6:].any()) == (other > 5)


def test_two_threads_on_the_watched_bytes(session: Any, library: ctypes.CDLL) -> None:
    """Both are undone; at the end the value is the one from before, and every hit has a row."""
    value = np.full(3, -1)
    with session.watching(value[1:2], policy="skip") as watch:
        workers = [
            threading.Thread(target=library.store, args=(_at(value[1:]), ctypes.c_long(10_000)))
            for _ in range(2)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert value.tolist() == [-1, -1, -1]
    assert (watch.counted, watch.hits, watch.lost) == (20_000, 20_000, 0)


@pytest.mark.parametrize("first", ["skip", "plain"])
@pytest.mark.parametrize("skip_mode", ["w", "rw"])
def test_another_watch_on_the_same_bytes_sees_the_store(session: Any, skip_mode: str, first: str) -> None:
    """And the value before its next one is what was put back."""
    value = np.zeros(1, np.int64)
    watches: dict[str, Any] = {}
    for name in sorted(["plain", "skip"], reverse=first == "skip"):
        mode, policy = (skip_mode, "skip") if name == "skip" else ("w", "continue")
        watches[name] = session.watch(value, mode, policy=policy, name=name)
    for new in (5, 6, 0, 7):
        value[0] = new
    assert [(watch.counted, watch.hits, watch.lost) for watch in watches.values()] == [(4, 4, 0)] * 2
    assert value[0] == 0
    for name, watch in watches.items():
        rows = watch.timeline()
        rows = rows[rows.access == "write"]
        assert rows.old.tolist() == [0, 0, 0, 0], name
        assert rows.new.tolist() == [5, 6, 0, 7], name
        assert len(rows) == 4
    assert set(watches["plain"].timeline().action) == {"continued"}
    actions = watches["skip"].timeline().action.tolist()
    assert [actions[i] for i in (0, 1, 3)] == ["skipped"] * 3  # of an equal value there is nothing to skip


def test_in_a_forked_child(in_child: Callable[..., Any]) -> None:
    def work():
        arr = np.arange(8.0)
        watch = hwwatch.watch(arr[3:4], policy="skip")
        child = os.fork()
        if not child:
            for turn in range(10):
                arr[:] = turn
            os._exit(0 if arr.tolist() == [9, 9, 9, 3, 9, 9, 9, 9] else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        arr[:] = -1
        return code, arr.tolist(), watch.timeline().action.value_counts().to_dict()["skipped"]

    assert in_child(work) == [0, [-1, -1, -1, 3, -1, -1, -1, -1], 11]


def test_a_read_cannot_be_skipped(session: Any) -> None:
    arr = np.arange(8.0)
    with pytest.raises(hwwatch.NotSupported, match="a read cannot be skipped, the trap comes after it"):
        session.watch(arr[3:4], "r", policy="skip")
    watch = session.watch(arr[3:4], "rw", policy="skip")
    with pytest.raises(hwwatch.NotSupported, match="a read cannot be skipped"):
        watch.mode = "r"
    arr[3] = 9
    assert (arr[3], watch.mode, watch.hits) == (3, "rw", 2)
