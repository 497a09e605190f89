"""Ctrl-C at any moment: what was asked for is done wholly or not at all, and the interrupt is not lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
def test_interrupts_at_random(in_child: Callable[..., Any]) -> None:
    def work():
        import contextlib
        import random

        def descriptors():
            found = []
            for name in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):
                    found.append("perf_event" in os.readlink(f"/proc/self/fd/{name}"))
            return sum(found)

        chance, stop, gate, busy = random.Random(1), threading.Event(), threading.Lock(), [False]
        array, known = np.zeros(8), []

        def pester():
            while not stop.is_set():
                time.sleep(chance.uniform(0, 0.004))
                with gate:
                    if busy[0]:  # one a round, so that none meets the handling of another
                        busy[0] = False
                        os.kill(os.getpid(), signal.SIGINT)

        def turn():
            w = hwwatch.watch(array[3:4], "w", name="x")
            known.append(w)
            w.mode = "rw"
            w.policy = "skip"
            array[3] = 1
            w.when = "new > 5"
            w.enabled = False
            w.enabled = True
            hwwatch.timeline()
            hwwatch.unwatch(w)
            with hwwatch.watching(array[5:7]):
                array[5] = 1
            hwwatch.clear()

        turn()  # imports all that it needs: an import that is interrupted leaves half a module
        wrong, interrupts = [], 0
        thread = threading.Thread(target=pester)
        thread.start()
        end = time.monotonic() + 8
        while time.monotonic() < end:
            try:
                busy[0] = True
                turn()
            except KeyboardInterrupt:
                interrupts += 1
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")
            try:
                with gate:  # from here on none is on its way
                    busy[0] = False
                time.sleep(0)
            except KeyboardInterrupt:
                interrupts += 1
            hwwatch.unwatch()
            if any(w.armed for w in known):
                wrong.append("armed, and forgotten")
            known.clear()
        stop.set()
        thread.join()
        hwwatch.unwatch()
        left = descriptors()
        w = hwwatch.watch(array[3:4])
        array[3] = 77
        return wrong[:5], interrupts > 50, left, w.timeline()["new"].tolist()[-1:], w.lost

    assert in_child(work) == [[], True, 0, [77.0], 0]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["watch", "disarm", "mode", "unwatch"])
def test_interrupt_amid_a_change_comes_after_it(in_child: Callable[..., Any], place: str) -> None:
    def work(place):
        from hwwatch.backends.select import select

        kind = type(select("auto").backend)
        array = np.zeros(8)
        w = None if place == "watch" else hwwatch.watch(array[3:4])
        inner = {"watch": "arm", "disarm": "disarm", "unwatch": "disarm", "mode": "modify"}[place]
        real = getattr(kind, inner)
        steps = []

        def amid(self, *arguments):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass  # many chances for Python to raise it here
            steps.append("begun")
            answer = real(self, *arguments)
            steps.append("done")
            return answer

        setattr(kind, inner, amid)
        try:
            if place == "watch":
                hwwatch.watch(array[3:4])
            elif place == "mode":
                w.mode = "rw"
            else:
                getattr(w, place, lambda: hwwatch.unwatch(w))()
            steps.append("not interrupted")
        except KeyboardInterrupt:
            steps.append("interrupted")
        setattr(kind, inner, real)
        array[3] = 1
        float(array[3])
        return steps, [(w.armed, w.mode, w.hits) for w in hwwatch.watches()]

    steps, watches = in_child(work, place)
    assert steps == ["begun", "done", "interrupted"]
    expected = {"watch": [], "disarm": [[False, "w", 0]], "mode": [[True, "rw", 2]], "unwatch": []}
    assert watches == expected[place]


def test_the_programs_own_handler_is_called(in_child: Callable[..., Any]) -> None:
    def work():
        seen = []
        signal.signal(signal.SIGINT, lambda number, frame: seen.append((number, frame is not None)))
        from hwwatch.backends.select import select

        kind = type(select("auto").backend)
        real = kind.arm

        def amid(self, request):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass
            seen.append("armed")
            return real(self, request)

        kind.arm = amid
        w = hwwatch.watch(np.zeros(1))
        return seen, w.armed, signal.getsignal(signal.SIGINT).__name__

    assert in_child(work) == [["armed", [2, True]], True, "<lambda>"]


def test_no_signal_is_lost_where_threads_wait_for_the_cpu(in_child: Callable[..., Any]) -> None:
    """While a hit waits in a thread that does not run, the kernel gives signals to others."""

    def work():
        import subprocess

        cpu = {min(os.sched_getaffinity(0))}
        os.sched_setaffinity(0, cpu)
        rivals = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
        array, waiting = np.zeros(8), threading.Event()
        thread = threading.Thread(target=waiting.wait)
        thread.start()
        taken, lost = [], 0
        signal.signal(signal.SIGALRM, lambda *_: taken.append(1))
        try:
            with hwwatch.watching(array[3:4]) as watch:
                for number in range(40):
                    taken.clear()
                    signal.setitimer(signal.ITIMER_REAL, 0.003 + number / 1e5)
                    end = time.monotonic() + 0.5
                    while not taken and time.monotonic() < end:
                        array[3] = number
                    lost += not taken
        finally:
            for rival in rivals:
                rival.kill()
                rival.wait()
            waiting.set()
            thread.join()
        return lost, watch.hits > 40

    assert in_child(work) == [0, True]


@pytest.mark.parametrize("changes", [False, True])
def test_no_signal_is_lost_in_a_loop_that_hits(in_child: Callable[..., Any], changes: bool) -> None:
    """The kernel gives one that the main thread blocks to another; Python up to 3.12 would leave it there."""

    def work(changes):
        array, waiting = np.zeros(8), threading.Event()
        thread = threading.Thread(target=waiting.wait)
        thread.start()
        taken, lost = [], 0
        signal.signal(signal.SIGALRM, lambda *_: taken.append(1))
        with hwwatch.watching(array[3:4]) as watch:
            for number in range(60):
                taken.clear()
                signal.setitimer(signal.ITIMER_REAL, 0.003 + number / 1e5)
                end = time.monotonic() + 1
                while not taken and time.monotonic() < end:
                    array[3] = number
                    if changes:
                        watch.limit = 10**6 + number
                lost += not taken
        waiting.set()
        thread.join()
        return lost

    assert in_child(work, changes) == 0
