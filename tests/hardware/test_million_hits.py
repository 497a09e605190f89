"""A million hits of two threads are a million rows, in order; read piece by piece they take little memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SOURCE = """
#include <pthread.h>
static long each;
static void *store(void *place) {
    for (long i = 1; i <= each; i++) *(volatile long *)place = i;
    return 0;
}
void run(long *place, long n) {
    pthread_t threads[2];
    each = n;
    for (int i = 0; i < 2; i++) pthread_create(&threads[i], 0, store, place + i);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], 0);
}
"""


#: Bytes of private memory that reading piece by piece may take for a while.
BOUND = 160 * 2**20
#: Bytes that recording may take, however many hits there are: the ring's, and what is read to count them.
RING = (256 + 128) * 2**20


def million(path, each):
    import threading

    import hwwatch
    from hwwatch.sessions import default_session

    def private():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

    array = np.zeros(8, np.int64)
    watches = [hwwatch.watch(array[i : i + 1]) for i in (3, 4)]
    array[3:5] = -1
    list(default_session().frames())  # imports all that it needs
    hwwatch.clear()
    ctypes.CDLL(path).run(ctypes.c_void_p(array[3:].ctypes.data), ctypes.c_long(each))
    before, most, last, rows = private(), [0], {}, 0
    done = threading.Event()

    def look():
        while not done.wait(0.01):
            most[0] = max(most[0], private())

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    for frame in default_session().frames():
        rows += len(frame)
        for thread, made in frame.groupby("tid"):
            assert (np.diff(made.new, prepend=last.get(thread, 0)) == 1).all()
            assert made.time.is_monotonic_increasing
            last[thread] = int(made.new.iloc[-1])
    done.set()
    looking.join()
    return {
        "figures": [(watch.counted, watch.hits, watch.lost) for watch in watches],
        "rows": rows,
        "last": list(last.values()),
        "grown": max(0, most[0] - before),
    }


def five_million(path, each):
    def resident():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

    array = np.zeros(8, np.int64)
    w = hwwatch.watch(array[3:5])
    array[3:5] = -1
    hwwatch.timeline()  # imports all that it needs
    hwwatch.clear()
    before = resident()
    ctypes.CDLL(path).run(ctypes.c_void_p(array[3:].ctypes.data), ctypes.c_long(each))
    return w.hits, w.lost, w.counted, resident() - before


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_five_million_hits_stay_in_bounds(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    """What the ring has no room for is in the file: memory grows by the ring and no more."""
    hits, lost, counted, grown = in_child(five_million, build(SOURCE, "-pthread"), 2_500_000, timeout=380)
    assert (hits, lost, counted) == (5_000_000, 0, 5_000_000)
    assert grown < RING


@pytest.mark.slow
def test_million_hits(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    found = in_child(million, build(SOURCE, "-pthread"), 500_000, timeout=110)
    assert found["figures"] == [[500_000, 500_000, 0]] * 2
    assert found["rows"] == 1_000_000
    assert found["last"] == [500_000] * 2
    assert 0 < found["grown"] < BOUND


def exported(path, each, folder):
    """Bytes that each export took for a while, and hits in its file."""
    import threading

    import hwwatch

    def private():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

    array = np.zeros(8, np.int64)
    _watches = [hwwatch.watch(array[i : i + 1]) for i in (3, 4)]
    array[3:5] = -1
    suffixes = (".csv", ".parquet", ".feather", ".html")
    for suffix in suffixes:
        hwwatch.export(f"{folder}/few{suffix}")  # imports all that it needs
    hwwatch.clear()
    ctypes.CDLL(path).run(ctypes.c_void_p(array[3:].ctypes.data), ctypes.c_long(each))
    took = {}
    for suffix in suffixes:
        before, most, done = private(), [0], threading.Event()

        def look(most=most, done=done):
            while not done.wait(0.01):
                most[0] = max(most[0], private())

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        hwwatch.export(f"{folder}/hits{suffix}")
        done.set()
        looking.join()
        took[suffix] = most[0] - before
    with open(f"{folder}/hits.csv") as file:
        lines = sum(1 for _ in file)
    from pyarrow import feather, parquet

    rows = [
        lines - 1,
        parquet.read_metadata(f"{folder}/hits.parquet").num_rows,
        feather.read_table(f"{folder}/hits.feather", columns=["seq"]).num_rows,
    ]
    return {"took": took, "rows": rows}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_million_hits_exported(
    in_child: Callable[..., Any], build: Callable[..., str], tmp_path: Path
) -> None:
    library = build(SOURCE, "-pthread")
    found = in_child(exported, library, 500_000, str(tmp_path), timeout=220)
    assert found["rows"] == [1_000_000] * 3
    assert max(found["took"].values()) < BOUND + 80 * 2**20, found
