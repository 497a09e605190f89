"""Arming and disarming leaves no file descriptor, thread, mapping or handler behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwwatch
from hwwatch.backends.select import select


@pytest.mark.slow
def test_two_hundred_cycles(in_child: Callable[..., Any]) -> None:
    def work():
        from hwwatch.sessions import Session

        def state():
            with open("/proc/self/maps") as file:
                maps = len(file.readlines())
            return {
                "files": sorted(os.listdir("/proc/self/fd")),
                "threads": sorted(os.listdir("/proc/self/task")),
                "maps": maps,
            }

        array = np.zeros(8)
        idle = [threading.Thread(target=end.wait, daemon=True) for end in [threading.Event()] * 5]
        for thread in idle:
            thread.start()
        hits, states = 0, []
        for cycle in range(200):
            with Session() as session:
                one = session.watch(array[3:4])
                two = session.watch(array[4:6], "rw")
                array[3] = array[5] = cycle
                hits += one.hits
                if cycle % 20 == 0:
                    session.timeline()
                two.disarm()
            if cycle in (5, 199):
                states.append(state())
        before, after = states
        grown = after.pop("maps") - before.pop("maps")
        return hits, before == after, grown

    hits, same, grown = in_child(work)
    assert hits == 200
    assert same
    assert grown <= 10  # the allocator's own, not one a cycle


@pytest.mark.perf
def test_too_few_file_descriptors(in_child: Callable[..., Any]) -> None:
    """A watch needs one for each thread and register; refused half way, it leaves none open."""

    def work():
        import resource

        array = np.zeros(8)
        end = threading.Event()
        threads = [threading.Thread(target=end.wait) for _ in range(30)]
        for thread in threads:
            thread.start()
        kept = hwwatch.watch(array[:1], name="kept")
        files = len(os.listdir("/proc/self/fd"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files + 20, hard))
        try:
            hwwatch.watch(array[2:4], name="refused")
            message = None
        except hwwatch.HwwatchError as error:
            message = str(error)
        left = len(os.listdir("/proc/self/fd")) - files
        names = [watch.name for watch in hwwatch.watches()]
        array[0] = array[2] = 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        again = hwwatch.watch(array[2:4], name="again")
        array[2] = 2
        end.set()
        for thread in threads:
            thread.join()
        return message, left, names, kept.hits, again.hits

    message, left, names, kept, again = in_child(work)
    assert "\n" not in message
    assert "EMFILE" in message
    assert "ulimit -n" in message
    assert (left, names, kept, again) == (0, ["kept"], 1, 1)


def test_unwatching_under_an_exception(in_child: Callable[..., Any]) -> None:
    def work():
        import contextlib

        array = np.zeros(8)
        try:
            with hwwatch.watching(array[3:4]) as watch:
                array[3] = 1
                raise KeyError("any")
        except KeyError:
            array[3] = 2
        files = []
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # the one by which they were listed
                files.append(os.readlink(f"/proc/self/fd/{fd}"))
        return watch.armed, watch.timeline().new.tolist(), any("perf_event" in name for name in files)

    assert in_child(work) == [False, [1], False]


@pytest.mark.slow
def test_closing_while_another_thread_arms(in_child: Callable[..., Any]) -> None:
    """SIGTRAP is not given back under it: its first hit would kill."""

    def work():
        here, there, going = np.zeros(8), np.zeros(8), True

        def close_often():
            while going:
                with hwwatch.Session() as session, session.watching(there[3:4]):
                    there[3] += 1

        thread = threading.Thread(target=close_often)
        thread.start()
        end, hits = time.monotonic() + 3, 0
        while time.monotonic() < end:
            with hwwatch.watching(here[3:4]) as watch:
                here[3] += 1
            hits += watch.hits == 1
            hwwatch.unwatch(watch)
        going = False
        thread.join()
        return hits > 50

    assert in_child(work)


def test_descriptors_that_the_program_closes(in_child: Callable[..., Any]) -> None:
    """Daemons close all there are; the numbers are their own files' from then on, and stay untouched."""

    def work():
        array = np.zeros(8)
        watch = hwwatch.watch(array[3:4])
        array[3] = 1
        inherited = hwwatch.watch("libc.so.6!getppid", "x")  # set anew in a forked child
        os.closerange(3, 256)
        ends = [os.pipe() for _ in range(8)]
        for _, writer in ends:
            os.write(writer, b"0123456789abcdef")
        told = [note for note in watch.coverage.notes if "closed" in note]
        lost = watch.lost
        child = os.fork()
        if not child:
            os._exit(sum(os.read(reader, 16) == b"" for reader, _ in ends))
        status = os.waitpid(child, 0)[1]
        for _, writer in ends:
            os.write(writer, b"more")
        watch.disarm()
        inherited.disarm()
        read = {os.read(reader, 100) for reader, _ in ends}
        watch.enabled = True
        array[3] = 2
        return len(told), lost, status, sorted(text.decode() for text in read), watch.timeline().new.tolist()

    perf = select("auto").backend.name == "perf"
    assert in_child(work) == [int(perf), 0, 0, ["more"], [1, 2]]


def test_equal_options_are_kept_once(session: Any) -> None:
    """Each arming has some, and what a record may refer to is never freed."""
    from hwwatch import native

    array = np.zeros(8)
    for number in range(40):
        if number == 20:
            used = native.shared().arena_used
        with session.watching(array[3:4], when="new > 1", limit=7):
            pass
    assert native.shared().arena_used == used


@pytest.mark.perf
def test_disarming_without_a_free_descriptor(in_child: Callable[..., Any]) -> None:
    """With a hit missing, other threads are looked at for it, which takes one."""

    def work():
        import contextlib
        import resource

        from hwwatch.backends.select import select

        array = np.zeros(8)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        watch = hwwatch.watch(array[3:4])
        stored, going_on = threading.Event(), threading.Event()

        def deaf():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTRAP})
            for i in range(5):
                array[3] = i + 1
            stored.set()
            going_on.wait()

        thread = threading.Thread(target=deaf)
        thread.start()
        stored.wait()
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        watch.disarm()
        for fd in taken:
            os.close(fd)
        free = select("perf").backend.slots_free()
        going_on.set()
        thread.join()
        return watch.armed, free, watch.hits + watch.lost

    assert in_child(work) == [False, 4, 5]
