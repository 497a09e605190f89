"""All benchmarks in one command: `python benchmarks/run.py [--only hit …] [--rounds N] [--quick]`.

Prints a table of each section, and writes all figures to `results/latest.json` and a picture beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import ModuleType

import accuracy
import arm_cost
import floors
import hit_cost
import idle_cost
import line_cost
import reports
import targets
import throughput

SECTIONS: dict[str, ModuleType] = {
    "hit": hit_cost,
    "line": line_cost,
    "idle": idle_cost,
    "arm": arm_cost,
    "many": throughput,
    "accuracy": accuracy,
}
ROUNDS, QUICK = 40, 3


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections")
    parser.add_argument("--rounds", type=int, help=f"batches of each variant, {ROUNDS} unless told")
    parser.add_argument("--quick", action="store_true", help="few and small batches, to try it out")
    parser.add_argument("--to", type=Path, default=Path(__file__).with_name("results"), help="folder")
    parser.add_argument("--name", default="latest", help="name of the files")
    options = parser.parse_args()
    rounds = options.rounds or (QUICK if options.quick else ROUNDS)
    machine = floors.machine()
    print(", ".join(f"{key}: {value}" for key, value in machine.items()), flush=True)
    result: dict[str, object] = {"machine": machine, "rounds": rounds}
    sections: targets.Sections = {}
    with tempfile.TemporaryDirectory(prefix="hwwatch-bench-") as folder:
        library = floors.compile_to(Path(folder))
        setting = floors.Setting(rounds, library, floors.load(library), floors.COMPILER, options.quick)
        for name in options.only or SECTIONS:
            section, start = SECTIONS[name], time.monotonic()
            rows = section.measure(setting)
            sections[name] = {"title": section.TITLE, "rows": rows, "seconds": time.monotonic() - start}
            print("\n" + reports.table(section.TITLE, rows), flush=True)
    judged = targets.judge(sections)
    result |= {"sections": sections, "targets": judged}
    print("\n" + reports.target_table(judged))
    path = options.to / f"{options.name}.json"
    reports.write(path, result)
    reports.draw(path.with_suffix(".png"), result)
    print(f"\nwritten to {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
