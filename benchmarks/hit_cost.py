"""What one hit costs: hwwatch with each policy against a bare counting handler on the same address, and the
peers that watch a program from outside."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import outside
from batches import Row, Run, interleave, median, missing, row
from floors import Setting
from sessions import PeerError, Session

import hwwatch
from hwwatch import native
from hwwatch.native import lib

TITLE = "Cost of a hit"
BATCH = 400  # hits
FRAMES = 16
#: Ends the name of a variant that is like the one without it, on the other backend.
PTRACE = " (ptrace)"

BARE = "bare counting handler"
FULL = "full record, 16 frames"
KERNEL = "w: kernel counts only"


def deep(depth: int, call: Callable[[], float]) -> float:
    """`call` under `depth` Python frames."""
    return call() if depth <= 1 else deep(depth - 1, call)


def forget(watch: hwwatch.Watch) -> None:
    """The watch and its hits, so that the next batch finds things as this one did."""
    hwwatch.unwatch(watch)
    hwwatch.clear()


def variants(floor: Any, place: np.ndarray[Any, Any]) -> dict[str, Run]:
    """Name → a function that runs one batch and returns ns a hit."""
    data, code = place.ctypes.data, ctypes.cast(floor.floor_function, ctypes.c_void_p).value or 0
    landing = ctypes.cast(floor.floor_landing, ctypes.c_void_p).value or 0
    runs = {"w": floor.floor_store, "rw": floor.floor_load, "x": floor.floor_call}

    def bare(mode: str, signal: int) -> float:
        address = code if mode == "x" else data
        if floor.floor_open(address, 8, ord({"w": "w", "rw": "b", "x": "x"}[mode]), signal):
            raise SystemExit("perf_event_open refused: see `hwwatch doctor`")
        spent = float(runs[mode](data, BATCH))
        floor.floor_close()
        return spent

    def full(mode: str, frames: int, **options: Any) -> float:
        target = code if mode == "x" else place
        options = {"backend": "perf", **options}
        with hwwatch.watching(target, mode, stack=frames, kernel=False, **options) as watch:
            spent = deep(max(frames, 1), lambda: float(runs[mode](data, BATCH)))
            if watch.counted != BATCH:
                raise SystemExit(f"{watch.counted} of {BATCH} hits")
        forget(watch)
        return spent

    def bare_int3() -> float:
        floor.floor_bare()
        spent = float(floor.floor_int3(data, BATCH))
        if floor.floor_bare_close() != BATCH:
            raise SystemExit("int3 did not come to the handler each time")
        return spent

    def full_int3(frames: int) -> float:
        with hwwatch.watching(place, "w", stack=frames, kernel=False, backend="fake") as watch:
            floor.floor_dress(lib.hww_trap_cookie(watch._armed.index, 0))
            spent = deep(max(frames, 1), lambda: float(floor.floor_int3(data, BATCH)))
            floor.floor_undress()
            recorded = native.shared().watches[watch._armed.index].recorded
            if recorded != BATCH:
                raise SystemExit(f"{recorded} of {BATCH} hits by int3")
        forget(watch)
        return spent

    return {
        KERNEL: partial(bare, "w", 0),
        f"w: {BARE}": partial(bare, "w", 1),
        "w: full record, no frames": partial(full, "w", 0),
        f"w: {FULL}": partial(full, "w", 16),
        "w: full record, 32 frames": partial(full, "w", 32),
        "w: condition false": partial(full, "w", 16, when="hits < 0"),
        "w: condition true": partial(full, "w", 16, when="hits > 0"),
        "w: skip": partial(full, "w", 16, policy="skip"),
        "w: native function": partial(full, "w", 16, policy=floor.floor_policy),
        f"rw: {BARE}": partial(bare, "rw", 1),
        f"rw: {FULL}": partial(full, "rw", 16),
        f"x: {BARE}": partial(bare, "x", 1),
        f"x: {FULL}": partial(full, "x", 16),
        "x: skip": partial(full, "x", 16, policy="skip"),
        "x: Return": partial(full, "x", 16, policy=hwwatch.Return(42)),
        "x: Goto": partial(full, "x", 16, policy=hwwatch.Goto(landing)),
        "x: native function": partial(full, "x", 16, policy=floor.floor_policy),
        f"int3: {BARE}": bare_int3,
        "int3: full record, no frames": partial(full_int3, 0),
        f"int3: {FULL}": partial(full_int3, 16),
        "int3: full record, 32 frames": partial(full_int3, 32),
        **{f"{mode}: {FULL}{PTRACE}": partial(full, mode, 16, backend="ptrace") for mode in runs},
    }


def attach(setting: Setting) -> tuple[dict[str, dict[str, Session]], list[Row]]:
    """A session for each peer, free and on the program's core; a row for each that is missing."""
    sessions: dict[str, dict[str, Session]] = {}
    rows = []
    for peer in outside.peers(setting.compiler):
        for where in ("free", "pinned"):
            try:
                session = Session(peer, setting.compiled, FRAMES, where == "pinned")
            except PeerError as error:
                if peer.name not in sessions and where == "pinned":
                    rows.append(missing(peer.name, str(error)))
            else:
                sessions.setdefault(peer.name, {})[where] = session
    return sessions, rows


def measure(setting: Setting) -> list[Row]:
    """One row a variant, µs a hit: ``"ratio"`` is to the bare handler of its mode, of a peer to hwwatch's
    full record, for the better of free and pinned (``"at"``; the other is ``"also"``).

    A variant on ptrace has the ratio to the same on perf, too: ``"to_perf"``.
    """
    place = np.zeros(1, np.uint64)
    runs = variants(setting.floor, place)
    if outcome := unusable(runs):
        for name in outcome:
            del runs[name]
    sessions, rows = attach(setting)
    try:
        outer = {
            f"{name}\n{where}": session.batch
            for name, pair in sessions.items()
            for where, session in pair.items()
        }
        spent = interleave({**runs, **outer}, setting.rounds)
    finally:
        seen = {name: {at: one.close() for at, one in pair.items()} for name, pair in sessions.items()}
    spent = {name: [value / 1000 for value in values] for name, values in spent.items()}
    own = [row(name, "µs", spent[name]) for name in runs]
    for one in own:
        mode = one["what"].partition(":")[0]
        one["to"] = f"{mode}: {BARE}"
        one["ratio"] = one["median"] / (median(own, one["to"]) or 1)
        if PTRACE in one["what"]:
            one["to_perf"] = one["median"] / (median(own, one["what"].removesuffix(PTRACE)) or 1)
    full = median(own, f"w: {FULL}") or 1
    theirs = []
    for name, pair in sessions.items():
        pinned = {at: row(name, "µs", spent[f"{name}\n{at}"]) for at in pair}
        at = min(pinned, key=lambda key: pinned[key]["median"])
        best = {**pinned[at], "at": at, "also": {key: pinned[key]["median"] for key in pinned if key != at}}
        best |= {"made": pair[at].made, "seen": seen[name][at], "to": f"w: {FULL}"}
        theirs.append({**best, "ratio": best["median"] / full})
    return own + theirs + rows + [missing(name, reason) for name, reason in outcome.items()]


def unusable(runs: dict[str, Run]) -> dict[str, str]:
    """Variants that this machine refuses, with the reason."""
    reasons = {}
    for name, run in runs.items():
        try:
            run()
        except hwwatch.HwwatchError as error:
            reasons[name] = str(error)
    return reasons
