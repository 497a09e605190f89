"""Many more hits than memory has room for: threads, forked children, and all are there afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwwatch

pytestmark = pytest.mark.slow

SOURCE = """
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>
static long *place, turns;
static void *add(void *unused)
{
    for (long i = 0; i < turns; i++)
        __atomic_add_fetch(place, 1, __ATOMIC_SEQ_CST);
    return unused;
}
/* Three threads and a forked child; the child's copy of the number is its own. */
int fire(long *where, long n)
{
    pthread_t threads[3];
    int status = 0;
    place = where;
    turns = n;
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], 0, add, 0);
    pid_t child = fork();
    if (!child) {
        add(0);
        _exit(0);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], 0);
    waitpid(child, &status, 0);
    return status;
}
"""


def test_all_are_there_and_in_order(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    def work(path):
        hwwatch.storage(capacity=8192)
        library = ctypes.CDLL(path)
        number = np.zeros(1, np.int64)
        watch = hwwatch.watch(number)
        status = library.fire(ctypes.c_void_p(number.ctypes.data), ctypes.c_long(20_000))
        spilled = hwwatch.storage().spilled
        rows = hwwatch.timeline()
        tally = watch.coverage.tally
        mine = rows[rows.pid == os.getpid()]
        chain = mine[mine.changed].sort_values("old")
        return {
            "status": status,
            "spilled": spilled,
            "tally": (tally.counted, tally.hits, tally.lost),
            "by thread": sorted(rows.groupby("tid").size().tolist()),
            "in order": bool((rows.groupby("tid").time.diff().dropna() >= np.timedelta64(0)).all()),
            "chain": bool((chain.old.to_numpy()[1:] == chain.new.to_numpy()[:-1]).all()),
            "last": int(chain.new.iloc[-1]),
        }

    found = in_child(work, build(SOURCE, "-pthread"), timeout=120)
    assert found["status"] == 0
    assert found["spilled"] > 60_000
    assert found["tally"] == [80_000, 80_000, 0]
    assert found["by thread"] == [20_000] * 4
    assert found["in order"]
    assert found["chain"]
    assert found["last"] == 60_000


def test_clear_makes_room_again(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    def work(path):
        hwwatch.storage(capacity=8192, disk=4 << 20)
        library = ctypes.CDLL(path)
        number = np.zeros(1, np.int64)
        watch = hwwatch.watch(number)
        found = []
        for _ in range(6):
            library.fire(ctypes.c_void_p(number.ctypes.data), ctypes.c_long(4000))
            found.append((len(hwwatch.timeline()), watch.lost, hwwatch.storage().spilled > 0))
            hwwatch.clear()
        return found, hwwatch.storage().disk

    found, disk = in_child(work, build(SOURCE, "-pthread"), timeout=120)
    assert found == [[16_000, 0, True]] * 6
    assert disk == 4 << 20
    assert hwwatch.storage().on_full == "spill"
