"""A minute of everything at once, and again with the core built under AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STRESS = ROOT / "tests" / "stress.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def soak(*options: str, python: tuple[str, ...] = (), **env: str) -> str:
    """What a run of it says; it must end by itself, and well."""
    done = subprocess.run(
        [sys.executable, *python, str(STRESS), *options],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert "nothing went wrong" in done.stdout
    return done.stdout


def test_a_minute_of_eight_threads() -> None:
    said = soak("--seconds", "60", "--threads", "8", "--seed", "11")
    assert all(f" {name}" in said for name in ("watch", "retarget", "mode", "timeline", "unwatch"))


def test_counters_add_up_where_nothing_may_be_lost() -> None:
    soak("--seconds", "10", "--threads", "4", "--seed", "12", "--plain")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: Any) -> dict[str, str]:
    """The environment in which hwwatch is one that was built with sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    compiler = os.environ.get("CC", "cc")
    runtimes = []
    for name in ("libasan.so", "libubsan.so"):
        found = subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True
        ).stdout.strip()
        if not Path(found).is_absolute():
            pytest.skip(f"{compiler} has no {name}")
        runtimes.append(found)
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--target", str(folder / "site"), str(ROOT)),
            *("-C", f"cmake.args=-DCMAKE_C_FLAGS={flags}", "-C", f"build-dir={folder / 'build'}"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        "LD_PRELOAD": " ".join(runtimes),
        "PYTHONPATH": f"{folder / 'site'}:{sysconfig.get_path('purelib')}",
        # our own handlers read memory that may be gone; Python itself frees nothing at its end
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:handle_sigbus=0:use_sigaltstack=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def test_under_sanitizers(sanitized: dict[str, str]) -> None:
    # -S: else the editable installation would come first
    shown = subprocess.run(
        [sys.executable, "-S", "-P", "-c", "from hwwatch import _core; print(_core.__file__)"],
        capture_output=True,
        text=True,
        env={**os.environ, **sanitized},
        cwd="/",
    )
    assert sanitized["PYTHONPATH"].split(":")[0] in shown.stdout, shown.stderr
    soak("--seconds", "20", "--threads", "4", "--seed", "13", python=("-S",), **sanitized)
