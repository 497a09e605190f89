"""What the figures should be, and whether they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import line_cost
import outside
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
