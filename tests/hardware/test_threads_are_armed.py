"""Threads that exist are armed, threads born later inherit, and none is armed twice."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwwatch


class Writer(threading.Thread):
    """Stores a value each time it is asked to, and lives until `end`."""

    def __init__(self, array: Any, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.array = array
        self.todo: list[float] = []
        self.turn, self.done, self.over = threading.Semaphore(0), threading.Semaphore(0), False
        self.start()

    def run(self) -> None:
        while True:
            self.turn.acquire()
            if self.over:
                return
            self.array[3] = self.todo.pop()
            self.done.release()

    def store(self, value: float) -> None:
        self.todo.append(value)
        self.turn.release()
        assert self.done.acquire(timeout=10)

    def end(self) -> None:
        self.over = True
        self.turn.release()
        self.join(10)


def test_threads_before_and_after(session: Any) -> None:
    array = np.zeros(8)
    early = [Writer(array, f"early {i}") for i in range(5)]
    watch = session.watch(array[3:4])
    late = [Writer(array, f"late {i}") for i in range(5)]
    for value, writer in enumerate(early + late):
        writer.store(value + 1)
    rows = watch.timeline()
    coverage = watch.coverage
    for writer in early + late:
        writer.end()
    assert rows.new.tolist() == list(range(1, 11))
    assert rows.old.tolist() == list(range(10))
    assert rows.thread.tolist() == [writer.name for writer in early + late]
    assert rows.tid.tolist() == [writer.native_id for writer in early + late]
    assert set(rows.function) == {"Writer.run"}
    assert (watch.counted, watch.hits, watch.lost) == (10, 10, 0)
    named = {tid for tid, _, _ in coverage.blind_threads}
    assert not named & {writer.native_id for writer in early + late}
    assert coverage.threads_armed >= 11
    assert coverage.threads_alive - coverage.threads_armed <= len(named)


def test_hits_of_ended_threads_stay(session: Any) -> None:
    array = np.zeros(8)
    watch = session.watch(array[3:4])
    tids = []
    for value in range(50):
        writer = Writer(array, "short")
        writer.store(value)
        tids.append(writer.native_id)
        writer.end()
    rows = watch.timeline()
    assert rows.tid.tolist() == tids
    assert (watch.counted, watch.hits, watch.lost) == (50, 50, 0)


def test_threads_storing_at_once(session: Any, load: Callable[..., ctypes.CDLL]) -> None:
    """Several threads add to one number without a lock of their own: every addition is one row."""
    library = load("""
        #include <pthread.h>
        static void *work(void *p)
        { for (int i = 0; i < 5000; i++) __atomic_add_fetch((long *)p, 1, __ATOMIC_SEQ_CST); return 0; }
        void race(void *p)
        {
            pthread_t threads[4];
            for (int i = 0; i < 4; i++) pthread_create(&threads[i], 0, work, p);
            for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
        }
    """)
    number = np.zeros(1, np.int64)
    with session.watching(number) as watch:
        library.race(ctypes.c_void_p(number.ctypes.data))
    rows = watch.timeline()
    assert number[0] == 20_000
    assert (watch.counted, watch.hits, watch.lost) == (20_000, 20_000, 0)
    assert rows.groupby("tid").size().tolist() == [5000] * 4
    # Of two threads that trap at once, one may see its change first and the other write its record first:
    # the changes make an unbroken chain, but their rows may stand in another order.
    chain = rows[rows.changed].sort_values("old")
    assert [0, *chain.new] == [*chain.old, 20_000]
    assert set(rows.access) == {"readwrite"}
    # A handler reads a moment after its store, when another may have stored again: values then repeat
    # or leap, but they never run backwards within a thread, and the steps make up the whole.
    assert (rows.groupby("tid").new.diff().dropna() >= 0).all()
    assert (rows.new - rows.old).sum() == 20_000


CHURN = """
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
volatile long writing, stop, stored, threads, active, pause_us;
static long *place;
static void *short_lived(void *unused)
{
    if (pause_us)
        usleep(rand() % pause_us);
    __atomic_add_fetch(&active, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&writing, __ATOMIC_SEQ_CST)) {
        __atomic_add_fetch(place, 1, __ATOMIC_SEQ_CST);
        __atomic_add_fetch(&stored, 1, __ATOMIC_SEQ_CST);
    }
    __atomic_add_fetch(&threads, 1, __ATOMIC_SEQ_CST);
    __atomic_sub_fetch(&active, 1, __ATOMIC_SEQ_CST);
    return unused;
}
static void *spawner(void *unused)
{
    while (!stop) {
        pthread_t some[3];
        int made = 0;
        for (; made < 3; made++)
            if (pthread_create(&some[made], 0, short_lived, 0))
                break;
        while (made)
            pthread_join(some[--made], 0);
    }
    return unused;
}
static pthread_t spawners[3];
void begin(long *where)
{
    place = where;
    stop = writing = stored = threads = 0;
    for (int i = 0; i < 3; i++)
        pthread_create(&spawners[i], 0, spawner, 0);
}
void end(void) { stop = 1; for (int i = 0; i < 3; i++) pthread_join(spawners[i], 0); }
"""


def churn(path: str, seconds: float, pause: int) -> Any:
    """Arm and disarm while threads come and go; in between each of them stores once."""
    library = ctypes.CDLL(path)
    ctypes.c_long.in_dll(library, "pause_us").value = pause
    number = np.zeros(1, np.int64)

    def value(name):
        return ctypes.c_long.in_dll(library, name).value

    def write(on):
        ctypes.c_long.in_dll(library, "writing").value = on
        while not on and value("active"):  # somebody may be between the question and the store
            time.sleep(0)

    library.begin(ctypes.c_void_p(number.ctypes.data))
    wrong, rounds, hits = [], 0, 0
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        watch = hwwatch.watch(number)
        stored = value("stored")
        write(1)
        time.sleep(0.02)
        write(0)
        stored = value("stored") - stored
        figures = (watch.counted, watch.hits, watch.lost)
        watch.disarm()
        after = (watch.counted, watch.hits, watch.lost)
        if figures != (stored, stored, 0) or after != figures:
            wrong.append((stored, figures, after))
        rounds += 1
        hits += stored
        hwwatch.unwatch()
        hwwatch.clear()
    total = value("threads")
    library.end()
    return {"wrong": wrong, "rounds": rounds, "hits": hits, "threads": total, "sum": int(number[0])}


@contextlib.contextmanager
def births_held_up() -> Iterator[None]:
    """Where cgroups may be made: moving a process between two holds up every clone() half-way.

    A clone() has copied its caller's events by then, and does not show in /proc yet (copy_process takes
    cgroup_threadgroup_rwsem in cgroup_can_fork, after perf_event_init_task).
    """
    groups: list[Path] = []
    with contextlib.suppress(OSError):
        for root in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
            if (root / "cgroup.procs").exists():
                for name in "ab":
                    group = root / f"hwwatch-test-{os.getpid()}-{name}"
                    group.mkdir()
                    groups.append(group)
                break
    pawn = subprocess.Popen(["sleep", "1000"])
    over = threading.Event()

    def move() -> None:
        while not over.wait(0.002):
            for group in groups:
                with contextlib.suppress(OSError):
                    (group / "cgroup.procs").write_text(str(pawn.pid))

    mover = threading.Thread(target=move)
    mover.start()
    try:
        yield
    finally:
        over.set()
        mover.join()
        pawn.kill()
        pawn.wait()
        for group in groups:
            deadline = time.monotonic() + 5
            while group.exists() and time.monotonic() < deadline:  # the pawn may not quite have left it
                with contextlib.suppress(OSError):
                    group.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize(
    "seconds", [2, pytest.param(5, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("pause", [0, 1000])
def test_thousands_of_short_lived_threads(
    in_child: Callable[..., Any], build: Callable[..., str], seconds: float, pause: int
) -> None:
    """Many are born just when a watch is armed, from threads that are and that are not armed yet."""
    with births_held_up():
        found = in_child(churn, build(CHURN), seconds, pause, timeout=seconds + 30)
    assert found["wrong"] == []
    assert found["hits"] == found["sum"]
    assert found["threads"] > 500 * seconds
    assert found["rounds"] > 5 * seconds
    assert found["hits"] > 100 * seconds


@pytest.mark.slow
@pytest.mark.parametrize("env", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_names_that_cannot_be_decoded(in_child: Callable[..., Any], env: dict[str, str]) -> None:
    """The kernel cuts the names of threads and programs at 15 bytes, maybe amid a character."""

    def work():
        import mmap
        import subprocess

        array, libc = np.frombuffer(mmap.mmap(-1, 4096)), ctypes.CDLL(None)
        ready, done = threading.Event(), threading.Event()

        def store():
            libc.prctl(15, "Datenbank-Zugr\u00fcn".encode(), 0, 0, 0)  # PR_SET_NAME
            array[3] = 1
            ready.set()
            done.wait()

        watch = hwwatch.watch(array[3:4])
        thread = threading.Thread(target=store, name="worker", daemon=True)
        thread.start()
        ready.wait()
        os.symlink("/bin/sleep", b"Datenbank-Zugr\xc3")
        with subprocess.Popen([os.path.abspath(b"Datenbank-Zugr\xc3"), "10"]) as program:
            found = watch.timeline().thread.tolist(), str(hwwatch.coverage()), hwwatch.doctor().works
            hwwatch.export("hits.csv")
            program.kill()
        done.set()
        thread.join()
        return found

    names, coverage, works = in_child(work, env=env)
    assert names == ["worker"]
    assert "Datenbank-Zugr\ufffd" in coverage
    assert works
