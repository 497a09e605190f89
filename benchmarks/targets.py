"""What the figures should be, and whether they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import accuracy
import idle_cost
import line_cost
import outside
import throughput
from batches import Row, median

Sections = dict[str, dict[str, Any]]


def value(sections: Sections, section: str, what: str, key: str = "median") -> float | None:
    """One figure of a section."""
    for one in sections.get(section, {}).get("rows", []):
        if one["what"] == what and key in one:
            return float(one[key])
    return None


def quotient(sections: Sections, section: str, above: str, below: str) -> float | None:
    """One median over another of the same section."""
    rows = sections.get(section, {}).get("rows", [])
    upper, lower = median(rows, above), median(rows, below)
    return upper / lower if upper is not None and lower else None


def difference(sections: Sections, section: str, work: str) -> float | None:
    """What hwwatch takes from a work beyond what a bare breakpoint takes, of what it is unarmed."""
    ours = value(sections, section, f"{work}: hwwatch", "ratio")
    bare = value(sections, section, f"{work}: bare breakpoint", "ratio")
    return None if ours is None or bare is None else ours - bare


def rounded(found: float | None) -> float | None:
    """In the steady state: the code objects and stacks that are stored once are spread over all hits."""
    return None if found is None else round(found, 2)


SWITCH = "switch, 14 threads: hwwatch"
MANY = throughput.TIMELINE.format("1 000 000")
STORED = "bytes stored a hit, 1 frame, in a loop"
IMPORT = next(iter(throughput.IMPORTS))
PROGRAM = f"hwwatch: {accuracy.USER}"
FULL = "w: full record, 16 frames"
Measure = Callable[[Sections], float | None]
#: What, how it is found, the least and the most that it may be.
TARGETS: list[tuple[str, Measure, float | None, float | None]] = [
    ("full record, 16 frames / bare handler", lambda s: value(s, "hit", FULL, "ratio"), None, 1.03),
    (
        "entered by int3, full / bare",
        lambda s: value(s, "hit", "int3: full record, 16 frames", "ratio"),
        None,
        1.15,
    ),
    (
        "gdb stop() with the Python line (CPython's helper) / hwwatch",
        lambda s: value(s, "hit", outside.GDB_HELPER, "ratio"),
        60,
        None,
    ),
    ("gdb stop(), old, new, pc / hwwatch", lambda s: value(s, "hit", outside.GDB_VALUES, "ratio"), 15, None),
    ("hwwatch / Frida", lambda s: quotient(s, "hit", FULL, outside.FRIDA), None, 0.9),
    ("switch mode, 14 threads / raw ioctls", lambda s: value(s, "arm", SWITCH, "ratio"), None, 1.5),
    (
        "arm, 14 threads, with canary / raw system calls",
        lambda s: value(s, "arm", "arm, 14 threads: hwwatch", "ratio"),
        None,
        3,
    ),
    ("bytes stored a hit", lambda s: rounded(value(s, "many", STORED)), None, 128),
    ("accesses found, user mode, %", lambda s: value(s, "accuracy", PROGRAM), 100, None),
    ("the same, exact line, %", lambda s: value(s, "accuracy", PROGRAM, "exact line"), 100, None),
    ("1e6 hits → DataFrame / plain NumPy and pandas", lambda s: value(s, "many", MANY, "ratio"), None, 2),
    ("import hwwatch beyond NumPy, ms", lambda s: value(s, "many", IMPORT), None, 60),
    (
        "armed, not hit / unarmed, pure Python",
        lambda s: value(s, "idle", f"{idle_cost.LOOP}: hwwatch", "ratio"),
        0.99,
        1.01,
    ),
    (
        "the same, NumPy on a cache line",
        lambda s: value(s, "idle", f"{idle_cost.ALIGNED}: hwwatch", "ratio"),
        0.99,
        1.01,
    ),
    (
        "the same, NumPy 16 bytes off a cache line, less a bare breakpoint's",
        lambda s: difference(s, "idle", idle_cost.SKEWED),
        -0.02,
        0.02,
    ),
    (
        "watchpoints (PyPI) idle / hwwatch idle",
        lambda s: value(s, "line", f"idle: {line_cost.WATCHPOINTS}", "to_hwwatch"),
        50,
        None,
    ),
]


def judge(sections: Sections) -> list[Row]:
    """One row a target: "met", "value", "wanted", or "missing"."""
    rows: list[Row] = []
    for what, find, least, most in TARGETS:
        found = find(sections)
        bounds = (("≥", least), ("≤", most))
        wanted = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
        if found is None:
            rows.append({"what": what, "missing": "no figure", "wanted": wanted})
            continue
        met = (least is None or found >= least) and (most is None or found <= most)
        rows.append({"what": what, "value": found, "wanted": wanted, "met": met})
    return rows
