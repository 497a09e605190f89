"""Everything at once, at random: `make stress SECONDS=60 SEED=1`; a minute of it is among the slow tests.

Threads write and read one array, others come and go, a buffer moves, children are forked and killed, while
the main thread and others arm, change, re-aim, ask and disarm. Nothing may crash, hang, raise or be
miscounted. What is lost is shown with its watch, since the README names the cases in which that may be.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import faulthandler
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import hwwatch
from hwwatch import native

CALLS = (
    *("watch", "watch", "unwatch", "timeline", "coverage", "clear", "call"),
    *("mode", "policy", "when", "limit", "enabled", "on_hit", "retarget"),
)
CONDITIONS = (None, None, "new > 0.5", "changed", "hits % 2 == 0")
ROOM = 1_000_000  # ring slots in use before the hits are cleared


class Crowd:
    """Whoever uses the array meanwhile."""

    def __init__(self, array: Any, buffer: bytearray, seed: int, plain: bool) -> None:
        self._array, self._buffer, self._seed, self._plain = array, buffer, seed, plain
        self._stop = threading.Event()
        loops = (self._access, self._access, self._spawn, self._fork, self._grow)
        self._threads = [threading.Thread(target=self._loop, args=(n, loop)) for n, loop in enumerate(loops)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _loop(self, number: int, turn: Callable[[random.Random], None]) -> None:
        chance = random.Random(f"{self._seed} {number}")
        while not self._stop.is_set():
            turn(chance)

    def _access(self, chance: random.Random) -> None:
        array, i = self._array, chance.randrange(60)
        kind = chance.randrange(5)
        if kind == 0:
            array[i] = chance.random()
        elif kind == 1:
            array[i : i + 4] += 1
        elif kind == 2:
            np.add.at(array, [i], 1.0)
        elif kind == 3:
            float(array[i])
        else:
            array.sum()
        if chance.random() < 0.02:
            time.sleep(0.001)

    def _spawn(self, chance: random.Random) -> None:
        thread = threading.Thread(target=self._array.fill, args=(chance.random(),))
        thread.start()
        thread.join()

    def _grow(self, chance: random.Random) -> None:
        if len(self._buffer) > 20_000:
            del self._buffer[64:]
        self._buffer.extend(bytes(chance.randrange(4000)))
        self._buffer[3] = chance.randrange(256)
        time.sleep(0.002)

    def _fork(self, chance: random.Random) -> None:
        child = os.fork()
        if not child:
            for i in range(30):
                self._array[i] = i
            os._exit(0)
        if not self._plain and chance.random() < 0.3:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        time.sleep(0.01)


class Stress:
    """What one thread does with its watches."""

    def __init__(self, seed: object, plain: bool, array: Any, buffer: bytearray) -> None:
        self.chance = random.Random(f"{seed}")
        self.plain = plain
        self.array, self.buffer = array, buffer
        self.cos = ctypes.CDLL("libm.so.6").cos
        self.cos.restype, self.cos.argtypes = ctypes.c_double, [ctypes.c_double]
        self.live: list[hwwatch.Watch] = []
        self.done: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []

    def run(self, end: float) -> None:
        """Until then, and let go of all that is left."""
        while time.monotonic() < end:
            self.turn()
        for watch in self.live[:]:
            self._change(watch, "unwatch")

    def turn(self) -> None:
        """One call, whatever comes."""
        name = self.chance.choice(CALLS)
        if self.plain and name in ("when", "limit"):
            return
        try:
            if name in ("watch", "timeline", "coverage", "clear", "call"):
                getattr(self, f"_{name}")()
            elif self.live:
                self._change(self.chance.choice(self.live), name)
            if self.live and native.shared().head - native.shared().tail > ROOM:
                hwwatch.clear()
        except hwwatch.HwwatchError as error:
            name = type(error).__name__  # a refusal is an answer, too
        except Exception:
            self.wrong.append(traceback.format_exc())
        self.done[name] += 1

    def _watch(self) -> None:
        pick = self.chance.choice
        if self.chance.random() < 0.2:
            policy = pick(["continue", hwwatch.Return(2.0)])
            self.live.append(hwwatch.watch(self.cos, "x", policy=policy))
            return
        if self.chance.random() < 0.2:
            place = hwwatch.locate("buffer[3]", {"buffer": self.buffer})
            self.live.append(hwwatch.watch(place, pick(["w", "rw"]), hold=self.chance.random() < 0.8))
            return
        i, n = self.chance.randrange(60), pick([1, 1, 1, 2])
        policy = pick(["continue", "continue", "skip"])
        when, limit = (None, None) if self.plain else (pick(CONDITIONS), pick([None, None, 5]))
        place, mode = self.array[i : i + n], pick(["w", "rw", "r"])
        self.live.append(hwwatch.watch(place, mode, policy=policy, when=when, limit=limit))

    def _change(self, watch: hwwatch.Watch, name: str) -> None:
        pick = self.chance.choice
        if name == "unwatch":
            self.live.remove(watch)
            hwwatch.unwatch(watch)
            self._check(watch)
        elif name == "mode":
            watch.mode = pick(["w", "rw", "r"])
        elif name == "policy":
            other = hwwatch.Return(3.0) if watch.mode == "x" else "skip"  # cos needs its first instruction
            watch.policy = pick(["continue", other])
        elif name == "when":
            watch.when = pick(CONDITIONS)
        elif name == "limit":
            watch.limit = pick([None, 100])
        elif name == "retarget":
            watch.retarget()
        elif name == "enabled":
            watch.enabled = self.chance.random() < 0.6
        else:
            watch.on_hit = pick([None, lambda hit: None])

    def _check(self, watch: hwwatch.Watch) -> None:
        tally = watch.coverage.tally
        if tally.counted != tally.hits + tally.filtered + tally.lost:
            self.wrong.append(f"{watch}: {tally} does not add up")
        if tally.lost:
            self.done["lost"] += tally.lost
            if self.plain:
                self.wrong.append(f"{watch}: lost {tally.lost}")
            print(f"{tally.lost} of {tally.counted} lost: {watch}", flush=True)

    def _timeline(self) -> None:
        frame = hwwatch.timeline()
        if not frame.index.is_monotonic_increasing:
            self.wrong.append("the timeline is out of order")

    def _coverage(self) -> None:
        str(hwwatch.coverage())

    def _clear(self) -> None:
        hwwatch.clear()

    def _call(self) -> None:
        self.cos(0.5)


def main() -> int:
    """Exit status 0 when nothing went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="no conditions, limits, kills: nothing is lost")
    parser.add_argument("--threads", type=int, default=1, help="so many arm and disarm")
    options = parser.parse_args()
    faulthandler.enable()
    faulthandler.dump_traceback_later(options.seconds + 60, exit=True)
    warnings.simplefilter("ignore")  # moved buffers, forks amid threads
    array, buffer = np.zeros(64), bytearray(64)
    seeds: list[object] = [options.seed, *(f"{options.seed} {n}" for n in range(1, options.threads))]
    each = [Stress(seed, options.plain, array, buffer) for seed in seeds]
    hwwatch.watch(array[:1], on_hit=lambda hit: None)  # on_hit must be prepared on the main thread
    hwwatch.unwatch()
    end = time.monotonic() + options.seconds
    with Crowd(array, buffer, options.seed, options.plain):
        others = [threading.Thread(target=one.run, args=(end,)) for one in each[1:]]
        for thread in others:
            thread.start()
        each[0].run(end)
        for thread in others:
            thread.join()
    hwwatch.unwatch()
    done = sum((one.done for one in each), collections.Counter())
    wrong = [text for one in each for text in one.wrong]
    print(f"seed {options.seed}: " + ", ".join(f"{n} {name}" for name, n in sorted(done.items())))
    print("\n".join(wrong[:5]) if wrong else "nothing went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
