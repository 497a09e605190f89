"""What really works, tried out: accesses of each kind under each backend, in a process of their own.

There a trial may hang or die, and disturbs no watch: the process that asks goes on as it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwwatch.backends.select import NAMES, select
from hwwatch.errors import HwwatchError
from hwwatch.sessions import Session
from hwwatch.types import MODES

#: Backends that use hardware.
BACKENDS = tuple(name for name in NAMES if name != "fake")
#: Accesses for one measurement, and measurements.
_HITS, _BATCHES = 50, 6
#: Seconds for all trials of one backend.
PATIENCE = 60.0


@dataclass(frozen=True)
class Trial:
    """How one trial went.

    Attributes
    ----------
    what : str
        A mode, or "kernel", "threads", "children", "speed", "slots", "choice".
    ok : bool
    problem : str
        Where it is not ok: one line that says why, without what would help.
    slug, hint : str
        Of the error that refused it.
    cost : float or None
        Of a mode: microseconds that one hit takes.
    found : dict
        What else was found; see the functions that make trials.
    """

    what: str
    ok: bool
    problem: str = ""
    slug: str = ""
    hint: str = ""
    cost: float | None = None
    found: dict[str, Any] = field(default_factory=dict)


#: All that is tried of a backend, in this order.
STEPS = (*MODES, "slots", "kernel", "threads", "children", "speed")


def run_trials(backend: str, steps: Sequence[str] = STEPS) -> dict[str, Trial]:
    """Try `steps` of a backend in child processes; each ends up with a Trial, whatever becomes of it."""
    done: dict[str, Trial] = {}
    deadline = time.monotonic() + PATIENCE
    while left := [step for step in steps if step not in done]:
        told, ending = _in_child(backend, left, deadline - time.monotonic())
        done |= told
        missing = [step for step in left if step not in done]
        if missing and not told and ending.startswith("could not"):
            return done | {step: Trial(step, False, ending, "no-child") for step in missing}
        if missing:
            done[missing[0]] = Trial(missing[0], False, ending, "crash")
        if time.monotonic() > deadline:
            rest = [step for step in left if step not in done]
            return done | {step: Trial(step, False, "not tried: the time was up", "time") for step in rest}
    return done


# The search path is the asker's, so that the child finds the same hwwatch.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from hwwatch.diagnosis.trials import serve; serve(sys.argv[2], sys.argv[3:])"
)


def _in_child(backend: str, steps: Sequence[str], seconds: float) -> tuple[dict[str, Trial], str]:
    """Trials that a child told of, and how it ended."""
    python = sys.executable or ""
    if getattr(sys, "frozen", False) or not os.path.basename(python).startswith("python"):
        return {}, f"could not be tried: {python or 'this program'} is no Python interpreter to start"
    command = [python, "-c", _CHILD, json.dumps(sys.path), backend, *steps]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, "XDG_CACHE_HOME": os.devnull},  # symbols that are read are not kept
        )
    except OSError as error:
        return {}, f"could not be tried: {python} cannot be started ({error.strerror})"
    try:
        out, err = child.communicate(timeout=max(1.0, seconds))
        ending = _ending(child.returncode, err)
    except subprocess.TimeoutExpired:
        ending = f"the test process still ran after {PATIENCE:.0f} s"
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    if child.returncode is None:
        out, _ = child.communicate()
    told = {}
    for line in out.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            trial = Trial(**json.loads(line))
            told[trial.what] = trial
    if not told and child.returncode is not None and child.returncode >= 0:
        ending = f"could not be tried in a process of its own: {ending}"
    return told, ending


def _ending(status: int, err: str) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"the test access killed its process ({signal.Signals(-status).name})"
    lines = err.strip().splitlines()
    return f"the test process ended with status {status}" + (f": {lines[-1]}" if lines else "")


def run_here(backend: str, quiet: bool) -> dict[str, Trial]:
    """What can be tried in this process, where no other can be had.

    Parameters
    ----------
    backend : str
    quiet : bool
        Watches are armed: only the backend's own test accesses are made.
    """
    steps = MODES if quiet else (*MODES, "kernel", "threads")
    tried = {step: _try(_canary if quiet else _TRIALS.get(step, _mode), backend, step) for step in steps}
    kernel = {} if "kernel" in tried else {"kernel": _try(_kernel_visible, backend, "kernel")}
    return tried | kernel


def _canary(backend: str, mode: str) -> Trial:
    select(backend).backend.canary(mode, 8, False)
    return Trial(mode, True)


def _kernel_visible(backend: str, what: str) -> Trial:
    seen = select(backend).backend.kernel_visible()
    return Trial(what, seen, "" if seen else "not seen")


def _try(trial: Callable[[str, str], Trial], backend: str, step: str) -> Trial:
    try:
        return trial(backend, step)
    except HwwatchError as error:
        text = str(error).removesuffix(f" [{error.slug}]").removesuffix(error.hint).rstrip()
        return Trial(step, False, text, error.slug, error.hint)
    except (OSError, RuntimeError, ImportError) as error:  # such as no more threads or processes
        return Trial(step, False, f"{type(error).__name__}: {error}", "system")


# What runs in the child


def serve(backend: str, steps: Sequence[str]) -> None:
    """Make the trials and print each as a line of JSON, in a forked child.

    The process that exec made may have inherited its asker's watches. Linux (6.18, measured) then goes on to
    count their debug registers as taken, in about four of ten such processes, though not in their children.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTRAP})  # the asker's mask came along
    pid = os.fork()
    if pid:
        ending = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if ending < 0:
            os.kill(os.getpid(), -ending)
        sys.exit(abs(ending))
    for step in steps:
        told = _try(_TRIALS.get(step, _mode), backend, step)
        print(json.dumps(vars(told)), flush=True)


def _choice(_: str, what: str) -> Trial:
    chosen, reason = select("auto")
    return Trial(what, True, found={"backend": chosen.name, "reason": reason})


def _slots(backend: str, what: str) -> Trial:
    return Trial(what, True, found={"free": select(backend).backend.slots_free()})


def _mode(backend: str, mode: str) -> Trial:
    """The backend's own test access; then a watch, which must record all of many accesses."""
    select(backend).backend.canary(mode, 8, False)
    cells, libc = np.zeros(8), ctypes.CDLL(None)
    labs = libc.labs
    access: Callable[[], None]

    def write() -> None:
        for _ in range(_HITS):
            cells[0] = 1

    def read() -> None:
        for _ in range(_HITS):
            cells[0]

    def call() -> None:
        for _ in range(_HITS):
            labs(1)

    access = {"w": write, "x": call}.get(mode, read)
    bare = _median(access)
    with Session("doctor", backend=backend) as session:
        watch = session.watch(labs if mode == "x" else cells[:1], mode)
        armed = _median(access)
        watch.disarm()
        wanted, hits, lost = _HITS * _BATCHES, watch.hits, watch.lost
        session.unwatch()
        session.clear()
    found = {"hits": hits, "lost": lost}
    if hits < wanted or lost:
        return Trial(mode, False, f"{hits} of {wanted} accesses were recorded", "lost", found=found)
    return Trial(mode, True, cost=(armed - bare) / _HITS * 1e6, found=found)


def _median(access: Callable[[], None]) -> float:
    """Seconds of one call, the median of several."""
    times = []
    for _ in range(_BATCHES):
        start = time.perf_counter()
        access()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _seen(backend: str, what: str, access: Callable[[Any], None]) -> Trial:
    """Whether a write that `access` has somebody make becomes a hit."""
    cells = np.zeros(8)
    with Session("doctor", backend=backend) as session:
        watch = session.watch(cells[:1])
        access(cells)
        hits, note = watch.hits, watch.coverage.kernel
        session.unwatch()
        session.clear()
    if what != "kernel":
        return Trial(what, hits > 0, "" if hits else "a write of it raised no hit")
    seen = note.startswith("seen")
    problem = "not seen" if not seen else "" if hits else "a read(2) into watched bytes raised no hit"
    return Trial(what, hits > 0, problem)


def _by_kernel(cells: Any) -> None:
    reader, writer = os.pipe()
    os.write(writer, bytes(8))
    os.readv(reader, [cells])
    os.close(reader)
    os.close(writer)


def _by_thread(cells: Any) -> None:
    thread = threading.Thread(target=cells.__setitem__, args=(0, 1.0))
    thread.start()
    thread.join()


def _by_child(cells: Any) -> None:
    pid = os.fork()
    if not pid:
        cells[0] = 1
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"the forked child ended with status {os.waitstatus_to_exitcode(status)}")


def _speed(backend: str, what: str) -> Trial:
    """How much slower stores become while a register is armed elsewhere: within cache lines, and across."""
    line, nbytes, repeats = 64, 1 << 14, 40
    memory = np.zeros(nbytes + 2 * line, np.uint8)
    first = -memory.ctypes.data % line
    places = {
        "within": memory[first : first + nbytes].view(np.float64),
        "across": memory[first + 16 : first + 16 + nbytes].view(np.float64),
    }
    source, watched = np.ones(nbytes // 8), np.zeros(8)

    def best(out: Any) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            np.add(source, 1.0, out=out)
            times.append(time.perf_counter() - start)
        return min(times)

    bare = {name: best(place) for name, place in places.items()}
    with Session("doctor", backend=backend) as session:
        session.watch(watched[:1])
        armed = {name: best(place) for name, place in places.items()}
    return Trial(what, True, found={name: armed[name] / bare[name] for name in places})


_TRIALS: dict[str, Callable[[str, str], Trial]] = {
    "choice": _choice,
    "slots": _slots,
    "kernel": lambda backend, what: _seen(backend, what, _by_kernel),
    "threads": lambda backend, what: _seen(backend, what, _by_thread),
    "children": lambda backend, what: _seen(backend, what, _by_child),
    "speed": _speed,
}
