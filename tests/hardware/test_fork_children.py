"""Forked children write into the same timeline under their own pid, and cannot disturb their parent."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwwatch

pytestmark = pytest.mark.slow


def test_rows_carry_the_childs_pid(in_child: Callable[..., Any]) -> None:
    def work():
        array = np.zeros(8)
        watch = hwwatch.watch(array[3:4])
        array[3] = 1
        child = os.fork()
        if not child:
            array[3] = 2
            array[3] = 3
            os._exit(0)
        os.waitpid(child, 0)
        array[3] = 4
        rows = hwwatch.timeline()
        return {
            "pids": [{os.getpid(): "parent", child: "child"}[pid] for pid in rows.pid],
            "tids": (rows.tid == rows.pid).all(),
            "old": rows.old.tolist(),
            "new": rows.new.tolist(),
            "lines": (rows.line - rows.line.iloc[0]).tolist(),
            "threads": rows.thread.nunique(),
            "tally": (watch.counted, watch.hits, watch.lost),
            "children": watch.coverage.children,
        }

    assert in_child(work) == {
        "pids": ["parent", "child", "child", "parent"],
        "tids": True,
        "old": [0, 1, 2, 1],
        "new": [1, 2, 3, 4],
        "lines": [0, 3, 4, 7],
        "threads": 2,
        "tally": [4, 4, 0],
        "children": "forked children followed, programs that are started not",
    }


def test_children_not_followed(in_child: Callable[..., Any]) -> None:
    def work():
        array = np.zeros(8)
        watch = hwwatch.watch(array[3:4], follow_fork=False)
        child = os.fork()
        if not child:
            array[3] = 2
            os._exit(0)
        os.waitpid(child, 0)
        array[3] = 4
        return hwwatch.timeline().new.tolist(), watch.counted, watch.coverage.children

    assert in_child(work) == [[4], 1, "children not followed"]


def test_memory_shared_by_both(in_child: Callable[..., Any]) -> None:
    """In a shared mapping the value before a child's store is what the parent stored, and back."""

    def work():
        import mmap

        array = np.frombuffer(mmap.mmap(-1, 4096))
        watch = hwwatch.watch(array[3:4])
        for _ in range(5):
            array[3] += 1
            child = os.fork()
            if not child:
                array[3] += 1
                os._exit(0)
            os.waitpid(child, 0)
        rows = hwwatch.timeline()
        return rows.old.tolist(), rows.new.tolist(), rows.pid.nunique(), watch.lost

    assert in_child(work) == [list(range(10)), list(range(1, 11)), 6, 0]


def test_child_cannot_disarm_its_parent(in_child: Callable[..., Any]) -> None:
    """Not by its own calls, not by leaving through atexit, not by watching something of its own."""

    def work():
        def disarm():
            watch.disarm()
            hwwatch.unwatch()

        def switch():
            watch.enabled = False
            watch.mode = "rw"

        def close():
            from hwwatch.sessions import default_session

            default_session().close()

        def another():
            with hwwatch.watching(other[1:2]) as mine:
                other[1] = 5
            if mine.hits != 1 or mine.timeline().pid.tolist() != [os.getpid()]:
                os._exit(3)

        def descriptors():
            names = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd")]
            if any("perf_event" in name for name in names):
                os._exit(4)

        array, other = np.zeros(8), np.zeros(8)
        watch = hwwatch.watch(array[3:4])
        codes = []
        acts = [disarm, switch, close, another, descriptors, sys.exit]
        for number, act in enumerate(acts):
            sys.stdout.flush()
            child = os.fork()
            if not child:
                act()
                os._exit(0)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            array[3] = number + 1
        rows = watch.timeline()
        return codes, rows.new.tolist(), set(rows.pid) == {os.getpid()}, watch.armed, watch.lost

    assert in_child(work) == [[0] * 6, [1, 2, 3, 4, 5, 6], True, True, 0]


@pytest.mark.perf
@pytest.mark.parametrize("act", ["free", "canary", "switch"])
def test_born_while_registers_are_tried(in_child: Callable[..., Any], act: str) -> None:
    """Children that live on keep none of the events that another thread has open for a moment."""

    def work(act):
        from hwwatch.backends.select import select

        backend, array = select("perf").backend, np.zeros(8)
        watch = hwwatch.watch(array[3:4])
        rounds, stop = [0], threading.Event()

        def loop():
            while not stop.is_set():
                if act == "free":
                    backend.slots_free()
                elif act == "canary":
                    backend.canary("w", 8, False)
                else:
                    watch.mode = "rw" if watch.mode == "w" else "w"
                rounds[0] += 1

        def events(pid):
            names = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
            return sum("perf_event" in name for name in names)

        thread = threading.Thread(target=loop)
        thread.start()
        children = []
        for _ in range(100):
            child = os.fork()
            if not child:
                while True:
                    signal.pause()
            children.append(child)
        stop.set()
        thread.join()
        deadline = time.monotonic() + 5  # each lets go of the watch's own event as it begins
        while (kept := sum(map(events, children))) and time.monotonic() < deadline:
            time.sleep(0.1)
        found = kept, backend.slots_free()
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return *found, rounds[0] > 3

    assert in_child(work, act) == [0, 3, True]


def test_grandchildren_and_multiprocessing(in_child: Callable[..., Any]) -> None:
    def work():
        import multiprocessing

        array = np.zeros(8)
        watch = hwwatch.watch(array[3:4])

        def store(depth):
            array[3] = depth
            if depth:
                process = multiprocessing.get_context("fork").Process(target=store, args=(depth - 1,))
                process.start()
                process.join()

        store(3)
        rows = hwwatch.timeline()
        return rows.new.tolist(), rows.pid.nunique(), (watch.counted, watch.hits, watch.lost)

    assert in_child(work) == [[3, 2, 1, 0], 4, [4, 4, 0]]


def test_killed_child_leaves_whole_records(in_child: Callable[..., Any]) -> None:
    """A child that is killed in the middle of storing: what it recorded stays, nothing torn is shown."""

    def work():
        array = np.zeros(8)
        watch = hwwatch.watch(array[3:4])
        children = []
        for turn in range(12):
            child = os.fork()
            if not child:
                n = 0
                while True:
                    n += 1
                    array[3] = n
            time.sleep(0.01 + turn / 1000)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            children.append(child)
        array[3] = -1
        # A record that its writer left half-written is stepped over after a moment, not at once.
        deadline = time.monotonic() + 5
        while (rows := hwwatch.timeline()).pid.iloc[-1] != os.getpid() and time.monotonic() < deadline:
            time.sleep(0.1)
        consecutive = True
        for child in children:
            mine = rows[rows.pid == child]
            consecutive &= mine.new.tolist() == list(range(1, len(mine) + 1))
            consecutive &= mine.old.tolist() == list(range(len(mine)))
            consecutive &= len(mine) > 0
        last = rows.iloc[-1]
        return {
            "consecutive": bool(consecutive),
            "last": (last.new, last.pid == os.getpid()),
            "balance": watch.counted - watch.hits - watch.lost,
            "lost": watch.lost <= 12,  # a hit whose signal never came, at most one each
        }

    assert in_child(work) == {"consecutive": True, "last": [-1, True], "balance": 0, "lost": True}


def test_names_of_threads_and_processes_that_have_ended(in_child: Callable[..., Any], load: Any) -> None:
    def work(path):
        import multiprocessing

        library = ctypes.CDLL(path)
        library.in_thread.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        array = np.zeros(8, np.int64)
        hwwatch.watch(array[3:4])

        def inside():
            thread = threading.Thread(target=array.__setitem__, args=(3, 1))
            thread.start()
            thread.join()
            library.in_thread(array[3:].ctypes.data, b"of C")

        process = multiprocessing.get_context("fork").Process(target=inside, name="Simulation ☂ 7")
        process.start()
        process.join()
        if not os.fork():
            array[3] = 2
            os._exit(0)
        os.wait()
        library.in_thread(array[3:].ctypes.data, b"blas 3")
        asked = threading.Thread(target=lambda: (array.__setitem__(3, 4), hwwatch.timeline()), name="asked")
        asked.start()
        asked.join()
        frame = hwwatch.timeline()
        with open("/proc/self/comm") as comm:
            program = comm.read().strip()
        return frame.thread.tolist(), frame.tid.tolist(), frame.pid.tolist(), program

    source = """
    #define _GNU_SOURCE
    #include <pthread.h>
    struct work { volatile long *place; const char *name; };
    static void *body(void *given)
    {
        struct work *work = given;
        pthread_setname_np(pthread_self(), work->name);
        *work->place = 3;
        return 0;
    }
    void in_thread(void *place, const char *name)
    {
        struct work work = {place, name};
        pthread_t thread;
        pthread_create(&thread, 0, body, &work);
        pthread_join(thread, 0);
    }
    """
    names, tids, pids, program = in_child(work, load(source)._name)
    worker = f"process {pids[0]} (Simulation ☂ 7)"
    assert names == [
        worker,
        f"{worker} of C",
        f"process {pids[2]} ({program})",
        f"blas 3 ({tids[3]})",
        "asked",
    ]


def test_programs_that_share_the_memory_are_named(in_child: Callable[..., Any]) -> None:
    """subprocess, spawn and forkserver are not followed: where they may write, the coverage says so."""

    def work():
        import mmap
        import subprocess
        import sys

        array = np.zeros(8)
        mapping = np.frombuffer(mmap.mmap(-1, 4096), np.int64)
        shared, private = hwwatch.watch(mapping[:1]), hwwatch.watch(array[3:4])
        forked = os.fork()
        if not forked:
            time.sleep(30)
            os._exit(0)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            time.sleep(0.2)
            notes = shared.coverage.notes, private.coverage.notes
            text = shared.coverage.children
            child.communicate(b"\n")
        after = shared.coverage.notes
        os.kill(forked, signal.SIGKILL)
        os.wait()
        return notes, text, after, child.pid

    (shared, private), text, after, pid = in_child(work)
    assert len(shared) == 1
    assert shared[0].startswith(f"process {pid} (python")
    assert "not followed" in shared[0]
    assert (private, after) == ([], [])
    assert "programs that are started not" in text


@pytest.mark.parametrize("how", ["close", "end"])
def test_a_child_that_closes_its_session_is_not_killed(in_child: Callable[..., Any], how: str) -> None:
    """It gives no SIGTRAP back while what it has inherited goes on trapping."""

    def work(how):
        array = np.zeros(8)
        session = hwwatch.Session()
        watch = session.watch(array[3:4])
        child = os.fork()
        if not child:
            if how == "close":
                session.close()
                array[3] = 1
                os._exit(0)

            class Last:
                def __del__(self):  # after atexit, by which sessions are closed
                    array[3] = 1

            sys.last_of_all = Last()
            sys.exit()
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), watch.timeline().new.tolist()[:1]

    assert in_child(work, how) == [0, [1]]


def test_a_childs_clear_leaves_its_parents_hits(in_child: Callable[..., Any]) -> None:
    def work():
        array = np.zeros(8)
        watch = hwwatch.watch(array[3:4])
        for i in range(50):
            array[3] = i
        child = os.fork()
        if not child:
            hwwatch.clear()
            os._exit(len(hwwatch.timeline()))
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), watch.hits, len(watch.timeline())

    assert in_child(work) == [0, 50, 50]


def test_children_that_never_disarm_leave_room(in_child: Callable[..., Any]) -> None:
    """The watch table has 64 entries for the whole family."""

    def work():
        array = np.zeros(8)
        with hwwatch.watching(array[3:4]):
            pass
        for i in range(70):
            child = os.fork()
            if not child:
                hwwatch.watch(array[3:4])
                array[3] = i
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        with hwwatch.watching(array[3:4]) as watch:
            array[3] = -1
        return watch.timeline().new.tolist()

    assert in_child(work) == [-1]


@pytest.mark.perf
def test_told_where_the_process_that_armed_it_has_ended(in_child: Callable[..., Any]) -> None:
    """The kernel takes inherited events away with those of the parent; here the child arms its own."""

    def work():
        reader, writer = os.pipe()
        middle = os.fork()
        if not middle:
            array = np.zeros(8)
            watch = hwwatch.watch(array[3:4])
            middle = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == middle:
                time.sleep(0.01)
            array[3] = 1
            told = [problem for problem in hwwatch.coverage().problems if "has ended" in problem]
            watch.enabled = True
            array[3] = 2
            new = watch.timeline().new.tolist()
            again = [problem for problem in hwwatch.coverage().problems if "has ended" in problem]
            os.write(writer, json.dumps([len(told), new, len(again)]).encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(middle, 0)
        with os.fdopen(reader) as file:
            return json.loads(file.read())

    told, new, again = in_child(work)
    assert (told, again) == (1, 0)
    assert new in ([2], [1, 2])  # the parent's events may go a moment after it


def test_on_hit_in_a_child_forked_while_the_parent_was_about_to_be_told(
    in_child: Callable[..., Any], build: Callable[..., str]
) -> None:
    """The signal that was sent to the parent is no reason not to send the child its own."""

    def work(path):
        busy = ctypes.CDLL(path).busy
        array = np.zeros(8)
        hwwatch.watch(array[3:4], on_hit=lambda hit: None)
        reader, writer = os.pipe()

        def other():
            time.sleep(0.1)
            array[3] = 1  # the main thread is amid C: nobody takes note yet
            if not os.fork():
                own, seen = np.zeros(8), []
                hwwatch.watch(own[3:4], on_hit=lambda hit: seen.append(hit.new))
                for i in range(3):
                    own[3] = i + 1
                    time.sleep(0.05)
                os.write(writer, json.dumps(seen).encode())
                os._exit(0)

        thread = threading.Thread(target=other)
        thread.start()
        busy(ctypes.c_double(0.6))
        thread.join()
        os.close(writer)
        with os.fdopen(reader) as file:
            return json.loads(file.read())

    source = r"""
    #include <time.h>
    void busy(double seconds)
    {
        struct timespec rest = {(long)seconds, (long)((seconds - (long)seconds) * 1e9)};
        while (nanosleep(&rest, &rest))
            ;
    }
    """
    assert in_child(work, build(source)) == [1, 2, 3]
