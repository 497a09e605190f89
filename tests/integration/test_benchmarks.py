"""The benchmarks as they are run, small: figures for what is there, a reason for what is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PEERS = ("gdb", "lldb", "perf", "bpftrace")

pytestmark = [pytest.mark.slow, pytest.mark.hardware, pytest.mark.perf, pytest.mark.timeout(600)]


def measured(folder: Path, *sections: str, path: str | None = None) -> tuple[dict[str, Any], str]:
    """The figures as written, and what was printed."""
    environment = {**os.environ, **({"PATH": path} if path else {})}
    command = [
        sys.executable,
        str(BENCHMARKS / "run.py"),
        "--quick",
        "--to",
        str(folder),
        "--only",
        *sections,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads((folder / "latest.json").read_text())
    return result, done.stdout


def test_figures(tmp_path: Path) -> None:
    result, printed = measured(tmp_path, "hit", "line", "accuracy")
    assert (tmp_path / "latest.png").stat().st_size > 10_000
    for section in result["sections"].values():
        for row in section["rows"]:
            assert row["what"] in printed
            assert row.get("missing") or row["median"] >= 0, row
            if "min" in row:
                assert 0 < row["min"] <= row["median"] <= row["max"], row
            if row.get("seen") is not None:
                assert row["seen"] == row["made"], row
    rows = {row["what"]: row for section in result["sections"].values() for row in section["rows"]}
    own = rows["hwwatch: accesses by the program"]
    assert (own["median"], own["exact line"]) == (100, 100), own
    floor, full = rows["w: bare counting handler"], rows["w: full record, 16 frames"]
    assert full["ratio"] == full["median"] / floor["median"]
    judged = {one["what"]: one for one in result["targets"]}
    assert judged["accesses found, user mode, %"]["met"]
    assert judged["1e6 hits → DataFrame / plain NumPy and pandas"]["missing"]


def test_peers_that_are_missing_are_named(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("cc", "gcc", "as", "ld", "sh", "env", "taskset"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    result, printed = measured(tmp_path, "hit", path=str(tools))
    rows = result["sections"]["hit"]["rows"]
    for peer in PEERS:
        named = [row for row in rows if row["what"].startswith(peer)]
        assert named
        assert all(row["missing"] == f"{peer} is not installed" and "median" not in row for row in named), (
            named
        )
    assert "missing: gdb is not installed" in printed
    assert next(row for row in rows if row["what"].startswith("a bare ptrace loop"))["median"] > 0
