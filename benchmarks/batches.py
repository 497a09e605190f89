"""Short batches of all variants in shuffled order, so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable
from typing import Any

#: Runs one batch and returns what one operation took, in the unit of its section.
Run = Callable[[], float]
#: What a section gives for each variant: "what", "unit" and "median", "min", "max", "batches"; or "what" and
#: "missing", the reason. Some rows have a "ratio" to another row, and "to" says to which.
Row = dict[str, Any]


def interleave(
    runs: dict[str, Run], rounds: int, warm_up: bool = True, group: Callable[[str], str] = lambda name: name
) -> dict[str, list[float]]:
    """All figures of each variant; `rounds` batches of each, after one for warming up that is left out.

    Variants of one group, by what `group` makes of their names, follow one another, so that each round can be
    compared in itself.
    """
    spent: dict[str, list[float]] = {name: [] for name in runs}
    groups: dict[str, list[str]] = {}
    for name in runs:
        groups.setdefault(group(name), []).append(name)
    order = list(groups.values())
    for name in runs if warm_up else ():
        runs[name]()
    for _ in range(rounds):
        random.shuffle(order)
        for names in order:
            for name in random.sample(names, len(names)):
                spent[name].append(runs[name]())
    return spent


def row(what: str, unit: str, values: Iterable[float], **more: Any) -> Row:
    """Median, minimum and maximum of one variant."""
    values = list(values)
    return {
        "what": what,
        "unit": unit,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "batches": len(values),
        **more,
    }


def missing(what: str, reason: str) -> Row:
    """A variant that cannot be measured here, and why."""
    return {"what": what, "missing": reason}


def relate(rows: list[Row], to: str, key: str = "ratio") -> None:
    """Give each measured row its ratio to the row called `to`, of the same unit."""
    base = median(rows, to)
    for one in rows:
        if base and "median" in one:
            one[key] = one["median"] / base
            one["to"] = to


def median(rows: Iterable[Row], what: str) -> float | None:
    """The median of the row called `what`; None where it is missing."""
    return next((one["median"] for one in rows if one["what"] == what and "median" in one), None)
