"""Figures as a table on the terminal, as JSON and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from batches import Row


def figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}" if value >= 0.1 else f"{value:.2g}"


def notes(one: Row) -> str:
    """What else is to be said of a row."""
    said = []
    if "at" in one:
        others = "".join(f"; {at} {figure(value)}" for at, value in one["also"].items())
        said.append(f"{one['at']}{others}")
    if one.get("made") is not None and one.get("seen") is not None and one["seen"] != one["made"]:
        said.append(f"saw {one['seen']} of {one['made']}")
    if "to_perf" in one:
        said.append(f"{one['to_perf']:.3f} × perf")
    if "note" in one:
        said.append(one["note"])
    return "; ".join(said)


def table(title: str, rows: list[Row]) -> str:
    """The rows of a section: median, minimum, maximum, ratio, notes."""
    wide = max((len(one["what"]) for one in rows), default=0) + 2
    lines = [title, f"{'':{wide}}{'median':>9}{'min':>9}{'max':>9}       {'ratio':>8}"]
    for one in rows:
        if "missing" in one:
            lines.append(f"{one['what']:{wide}}missing: {one['missing']}")
            continue
        spread = "".join(f"{figure(one[key]) if key in one else '':>9}" for key in ("median", "min", "max"))
        ratio = f"{one['ratio']:8.3f}" if "ratio" in one else " " * 8
        lines.append(f"{one['what']:{wide}}{spread} {one['unit']:6}{ratio}  {notes(one)}".rstrip())
    return "\n".join(lines)


def target_table(targets: list[Row]) -> str:
    """Each target with what was measured."""
    lines = ["Targets"]
    for one in targets:
        if "missing" in one:
            lines.append(f"  not measured  {one['what']}: {one['missing']}")
        else:
            state = "met   " if one["met"] else "MISSED"
            lines.append(f"  {state}  {one['what']}: {one['value']:.4g}, wanted {one['wanted']}")
    return "\n".join(lines)


def write(path: Path, result: dict[str, Any]) -> None:
    """All figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def is_own(what: str) -> bool:
    """Whether a row is hwwatch's, and not a floor's or a peer's."""
    mode, _, variant = what.partition(": ")
    if mode in ("w", "rw", "x", "int3"):
        return not variant.startswith(("bare", "kernel"))
    return "hwwatch" in what or "timeline()" in what or what.startswith("a hit ") or "export" in what


def draw(path: Path, result: dict[str, Any]) -> None:
    """The medians of each section with their range, on a logarithmic axis; hwwatch's own in blue."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    sections = [
        (section["title"], unit, [one for one in section["rows"] if one.get("unit") == unit and "min" in one])
        for section in result["sections"].values()
        for unit in dict.fromkeys(one["unit"] for one in section["rows"] if "min" in one)
    ]
    sections = [section for section in sections if len(section[2]) > 1]
    if not sections:
        return
    heights = [len(rows) + 2 for _, _, rows in sections]
    canvas = Figure(figsize=(10, 0.2 * sum(heights) + 1), layout="constrained")
    axes = canvas.subplots(len(sections), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axis, (title, unit, rows) in zip(axes, sections, strict=True):
        for place, one in enumerate(reversed(rows)):
            middle = one["median"]
            spread = [[max(middle - one["min"], 0)], [max(one["max"] - middle, 0)]]
            colour = "tab:blue" if is_own(one["what"]) else "0.45"
            axis.errorbar(middle, place, xerr=spread, fmt="o", color=colour, markersize=4, elinewidth=0.8)
            axis.annotate(figure(middle), (middle, place), (4, 3), textcoords="offset points", fontsize=6)
        axis.set_yticks(range(len(rows)), [one["what"] for one in reversed(rows)])
        axis.set_ylim(-1, len(rows))
        axis.set_xscale("log")
        axis.grid(axis="x", which="both", linewidth=0.3)
        axis.set_title(f"{title} ({unit}, median with minimum and maximum)", fontsize=9, loc="left")
        axis.tick_params(labelsize=7, which="both")
    machine = result["machine"]
    canvas.suptitle(f"{machine['cpu']}, Linux {machine['kernel']}, Python {machine['python']}", fontsize=9)
    canvas.savefig(path, dpi=100)
