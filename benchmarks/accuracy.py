"""One program of known accesses given to hwwatch, gdb and perf: found, missed, blamed on the wrong line."""

from __future__ import annotations

import bisect
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import outside
from batches import Row, missing
from floors import Setting
from sessions import HERE, Peer, PeerError, Process

TITLE = "Accuracy: one seeded program of known accesses"
COUNT, SEED = 10_000, 20261128
PATIENCE = 600.0
KERNEL = "by_kernel"
NO_LINES = "tells no Python lines"
USER, FROM_KERNEL = "accesses by the program", "accesses by the kernel"

#: value, writer, line, on another thread, time before and after (ns, CLOCK_MONOTONIC)
Truth = list[tuple[int, str, int, bool, int, int]]
#: value, line or None, file
Seen = list[tuple[int, int | None, str]]


def program(setting: Setting, folder: Path, count: int, *more: str) -> list[str]:
    """Its command line."""
    return [
        sys.executable,
        str(HERE / "seeded.py"),
        str(setting.compiled),
        str(SEED),
        str(count),
        str(folder),
        *more,
    ]


def read(folder: Path, name: str) -> Any:
    """What the program left behind."""
    return json.loads((folder / f"{name}.json").read_text())


def watched_from_outside(setting: Setting, count: int, peer: Peer, folder: Path) -> Truth:
    """Run the program under a peer's eyes; the peer leaves what it saw in `folder`."""
    process, eyes = Process(program(setting, folder, count), None), None
    try:
        answer = process.line()
        if not answer or not answer.startswith("{"):
            raise PeerError(f"the program did not start: {process.last()}")
        task = {**json.loads(answer), "folder": str(folder), **peer.more}
        eyes = Process(peer.command(task), None, task)
        eyes.wait_for(peer.ready)
        process.tell("go\n")
        process.finish(PATIENCE)
        eyes.finish()
    except BaseException:
        process.finish(1)
        if eyes:
            eyes.finish(1)
        raise
    truth: Truth = read(folder, "truth")
    return truth


def by_value(name: str, truth: Truth, seen: Seen, *, lines: bool = True) -> list[Row]:
    """Compare by the value that each access wrote, which no other did."""
    found: dict[int, tuple[int | None, str]] = {value: (line, file) for value, line, file in seen}
    rows = []
    for kind, wanted in groups(truth).items():
        hit = [one for one in wanted if one[0] in found]
        told = [one for one in hit if found[one[0]][0] is not None]
        right = sum(found[one[0]][0] == one[2] and found[one[0]][1].endswith("seeded.py") for one in told)
        blame = f"{len(told) - right} on the wrong line, {len(hit) - len(told)} without a line"
        rows.append(result(name, kind, len(hit), len(wanted), blame if lines else NO_LINES))
        if lines and hit:
            rows[-1]["exact line"] = 100 * right / len(hit)
    rows[-1]["extra"] = len(seen) - len({value for value, _, _ in seen})
    return rows


def by_time(name: str, truth: Truth, times: list[int]) -> list[Row]:
    """Compare by the time at which each access was made: samples carry no value and no Python line."""
    times = sorted(times)
    rows, used = [], 0
    for kind, wanted in groups(truth).items():
        hit = 0
        for *_, before, after in wanted:
            samples = bisect.bisect_right(times, after) - bisect.bisect_left(times, before)
            hit += samples > 0
            used += samples > 0
        rows.append(result(name, kind, hit, len(wanted), NO_LINES))
    rows[-1]["extra"] = len(times) - used
    return rows


def groups(truth: Truth) -> dict[str, Truth]:
    """The accesses by the program itself, and those by the kernel."""
    return {
        USER: [one for one in truth if one[1] != KERNEL],
        FROM_KERNEL: [one for one in truth if one[1] == KERNEL],
    }


def result(name: str, kind: str, hit: int, wanted: int, blame: str) -> Row:
    """One row: the share that was found, and what was said of the lines."""
    note = f"found {hit} of {wanted}, missed {wanted - hit}, {blame}"
    return {"what": f"{name}: {kind}", "unit": "%", "median": 100 * hit / wanted, "note": note}


def hwwatch(setting: Setting, count: int, folder: Path) -> list[Row]:
    """The program watches itself."""
    done = subprocess.run(program(setting, folder, count, "watch"), capture_output=True, text=True)
    if done.returncode:
        raise PeerError(done.stderr.strip().splitlines()[-1])
    return by_value("hwwatch", read(folder, "truth"), read(folder, "seen"))


def gdb(setting: Setting, count: int, folder: Path) -> list[Row]:
    """A stop() with the Python line, where CPython's helper is installed."""
    more = {"layout": outside.layout(), "out": str(folder / "seen.json")}
    with contextlib.suppress(PeerError):
        more["helper"] = outside.gdb_helper()
    peer = Peer("gdb", 0, outside.gdb_stop, more={**more, "way": "helper" if "helper" in more else "values"})
    truth = watched_from_outside(setting, count, peer, folder)
    seen = [(new, *reversed(where or ("", None))) for _, new, _, where in read(folder, "seen")]
    return by_value("gdb", truth, [(new, line, file) for new, line, file in seen], lines="helper" in more)


def perf(setting: Setting, count: int, folder: Path) -> list[Row]:
    """Samples of the kernel's accesses, too."""
    truth = watched_from_outside(setting, count, Peer("perf", 0, outside.perf_record_all), folder)
    script = ["perf", "script", "-i", str(folder / "perf.data"), "-F", "time", "--ns"]
    text = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    seconds = [line.strip().rstrip(":").split(".") for line in text.splitlines() if line.strip()]
    return by_time("perf record", truth, [int(whole) * 10**9 + int(part) for whole, part in seconds])


def measure(setting: Setting) -> list[Row]:
    """Per tool what was found of the program's own accesses and of the kernel's, in percent."""
    count = COUNT // 20 if setting.quick else COUNT
    rows: list[Row] = []
    for tool in (hwwatch, gdb, perf):
        with tempfile.TemporaryDirectory(prefix="hwwatch-bench-") as folder:
            try:
                rows += tool(setting, count, Path(folder))
            except PeerError as error:
                rows.append(missing(tool.__name__, str(error)))
    for one in rows:
        if one.get("extra"):
            one["note"] += f"; {one['extra']} more hits than accesses"
    return rows
