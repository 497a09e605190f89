"""All benchmarks in one command: `python benchmarks/run.py [--json FILE] [--rounds N]`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import floors
import hit_cost


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--rounds", type=int, default=hit_cost.ROUNDS)
    options = parser.parse_args()
    machine = floors.machine()
    print(", ".join(f"{key}: {value}" for key, value in machine.items()))
    rows = hit_cost.measure(floors.build(), options.rounds)
    print(f"\ncost of a hit, {options.rounds} shuffled batches of {hit_cost.BATCH} hits each")
    print(f"{'':36}{'median µs':>10}{'min':>8}{'max':>8}{'× bare':>9}{'× perf':>9}")
    for row in rows:
        to_perf = f"{row['to_perf']:9.3f}" if "to_perf" in row else ""
        figures = f"{row['median']:10.2f}{row['min']:8.2f}{row['max']:8.2f}{row['ratio']:9.3f}{to_perf}"
        print(f"{row['what']:36}{figures}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "hit_cost": rows}, indent=1))


if __name__ == "__main__":
    main()
