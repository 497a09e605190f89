"""Arming, disarming and giving SIGTRAP back are safe while other threads trap."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwwatch

pytestmark = pytest.mark.slow

SOURCE = """
#include <pthread.h>
#include <unistd.h>
static volatile long stop;
volatile long pause_us;
static pthread_t threads[4];
static void *fire(void *p)
{
    while (!stop) {
        __atomic_add_fetch((long *)p, 1, __ATOMIC_SEQ_CST);
        if (pause_us)
            usleep(pause_us);
    }
    return 0;
}
void begin(long *p) { for (int i = 0; i < 4; i++) pthread_create(&threads[i], 0, fire, p + i % 2); }
void end(void) { stop = 1; for (int i = 0; i < 4; i++) pthread_join(threads[i], 0); }
"""


def fire(path, seconds, what):
    from hwwatch.sessions import Session

    def settled(watch):
        """Its tally, once no hit is on its way any more: a thread may wait long for its turn to trap."""
        deadline = time.monotonic() + 5
        while (tally := watch.coverage.tally).lost and time.monotonic() < deadline:
            time.sleep(0.001)
        if tally.lost or tally.counted != tally.hits:
            wrong.append((rounds, watch.mode, tally.counted, tally.hits, tally.lost))
        return tally.hits

    library = ctypes.CDLL(path)
    numbers = np.zeros(4, np.int64)
    session = Session()
    session.watch(numbers[3:4])
    numbers[3] = 1
    session.timeline()  # imports all that it needs
    session.unwatch()
    session.clear()
    library.begin(ctypes.c_void_p(numbers.ctypes.data))
    begun, rounds, hits, wrong = time.monotonic(), 0, 0, []
    watch = session.watch(numbers[:1]) if what in ("enable", "mode", "clear") else None
    while time.monotonic() - begun < seconds:
        rounds += 1
        if what == "close":  # and SIGTRAP back to the default action, which kills
            with Session() as other:
                one, two = other.watch(numbers[:1]), other.watch(numbers[1:2], "rw")
                time.sleep(0.002)
        elif what == "disarm":
            one, two = session.watch(numbers[:1]), session.watch(numbers[1:2], "rw")
            time.sleep(0.002)
            session.unwatch()
        elif what == "enable":
            watch.enabled = rounds % 2
            time.sleep(0.001)
        elif what == "mode":
            watch.mode = ("w", "rw")[rounds % 2]
            time.sleep(0.001)
        elif what == "clear":
            hits += watch.hits
            session.clear()
            time.sleep(0.001)
        if watch is None:
            hits += settled(one) + settled(two)
            session.clear()
    if watch is not None:
        session.unwatch()
        hits += settled(watch)
    library.end()
    session.close()
    return {"wrong": wrong, "rounds": rounds, "hits": hits}


@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("what", ["close", "disarm", "enable", "mode", "clear"])
def test_four_threads_trapping_all_the_time(
    in_child: Callable[..., Any], build: Callable[..., str], what: str, seconds: int
) -> None:
    found = in_child(fire, build(SOURCE), seconds, what, timeout=seconds + 60)
    assert found["wrong"] == []
    assert found["rounds"] >= 3
    assert found["hits"] > 10 * found["rounds"]


def test_timeline_while_hits_keep_coming(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    """Each timeline is a prefix of the next one; asking from several threads harms nobody."""

    def work(path):
        library = ctypes.CDLL(path)
        ctypes.c_long.in_dll(library, "pause_us").value = 100
        numbers = np.zeros(4, np.int64)
        watch = hwwatch.watch(numbers[:1])
        library.begin(ctypes.c_void_p(numbers.ctypes.data))
        errors, lengths = [], []

        def ask():
            try:
                before = watch.timeline()
                for _ in range(8):
                    after = watch.timeline()
                    if not after.iloc[: len(before)][["time", "tid", "old", "new"]].equals(
                        before[["time", "tid", "old", "new"]]
                    ):
                        errors.append("not a prefix")
                    lengths.append(len(after))
                    before = after
            except Exception as error:
                errors.append(repr(error))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        library.end()
        return errors, max(lengths) > min(lengths), watch.counted - watch.hits - watch.lost, watch.lost

    assert in_child(work, build(SOURCE), timeout=60) == [[], True, 0, 0]
