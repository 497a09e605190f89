"""As in a container: `perf_event_open` refused by seccomp, an ordinary user, no capabilities."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = 65534
CULPRIT = re.compile(r"^(In \[\d+\]:\d+\s+\d+\s.*)$", re.MULTILINE)


def run(*command: str, uid: bool = True, also: str = "", timeout: float = 100, **env: str) -> str:
    """What a command writes, under denied.py."""
    options = ["--uid", str(NOBODY)] if uid and os.getuid() == 0 else []
    options += ["--also", also] if also else []
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/denied.py"), *options, "--", *command],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env={**os.environ, "HWWATCH_BACKEND": "auto", **env},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SCRIPT = """
import os, threading, hwwatch, numpy as np
status = open("/proc/self/status").read()
assert "CapEff:\\t0000000000000000" in status and "Seccomp:\\t2" in status
array = np.zeros(8)
watch = hwwatch.watch(array[3:4])
array[3] = 1
thread = threading.Thread(target=array.__setitem__, args=(3, 2)); thread.start(); thread.join()
child = os.fork()
if not child:
    array[3] = 3
    os._exit(0)
os.waitpid(child, 0)
print(watch.timeline().new.tolist(), watch.lost)
print(watch)
print(watch.coverage.backend)
"""


def test_ptrace_serves_and_says_why() -> None:
    hits, shown, told = run(sys.executable, "-c", SCRIPT).splitlines()
    assert hits == "[1.0, 2.0, 3.0] 0"
    reason = "ptrace (perf: perf_event_open is blocked, as container runtimes do by default)"
    assert reason in shown
    assert told == reason


REFUSED = """
import hwwatch, numpy as np
array = np.zeros(1)
for options in ({}, {"backend": "perf"}, {"backend": "ptrace"}):
    try:
        hwwatch.watch(array, **options)
    except hwwatch.PermissionRefused as error:
        print(error)
array[0] = 1
print(hwwatch.watches())
"""


def test_both_refused() -> None:
    auto, perf, ptrace, nothing = run(sys.executable, "-c", REFUSED, also="ptrace").splitlines()
    assert "perf_event_open is blocked" in auto
    assert "ptrace is blocked" in auto
    assert perf.endswith("[perf-blocked]")
    assert ptrace.endswith("[ptrace-blocked]")
    assert nothing == "nothing is watched"


NOT_DUMPABLE = """
import ctypes, hwwatch, numpy as np
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
array = np.zeros(1)
try:
    hwwatch.watch(array)
except hwwatch.PermissionRefused as error:
    print(error)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
watch = hwwatch.watch(array)
array[0] = 1
print(watch.hits)
"""


def test_not_dumpable() -> None:
    said, hits = run(sys.executable, "-c", NOT_DUMPABLE).splitlines()
    assert "not dumpable" in said
    assert "PR_SET_DUMPABLE" in said
    assert hits == "1"


@pytest.mark.slow
def test_quickstart_finds_the_same_culprits() -> None:
    """The notebook, unchanged, against a run of it with perf."""
    command = [sys.executable, "notebooks/show.py", "notebooks/01-who-wrote-this.ipynb"]
    denied = run(*command)
    allowed = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert allowed.returncode == 0, allowed.stderr
    culprits = CULPRIT.findall(allowed.stdout)
    assert len(culprits) >= 4
    assert CULPRIT.findall(denied) == culprits
    assert "backend ptrace (perf: " in denied or "(ptrace (perf: " in denied


#: The part of the hardware tests that says most about a backend; `make denied` runs all of them.
CHOSEN = [
    "test_ptrace_backend.py",
    "test_one_store_four_watches.py",
    "test_threads_are_armed.py",
    "test_fork_children.py",
    "test_execute_watch.py",
    "test_limit.py",
    "test_policy_return.py",
    "test_fifth_slot_refused.py",
]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_chosen_hardware_tests() -> None:
    """Not one of them may be skipped."""
    files = [f"tests/hardware/{name}" for name in CHOSEN]
    options = ["-q", "-p", "no:cacheprovider", "--tb=short"]
    told = run(
        sys.executable,
        *("-m", "pytest", *options, *files),
        timeout=570,
        HWWATCH_BACKEND="ptrace",
        HWWATCH_TEST_HW="1",
    )
    last = told.splitlines()[-1]
    assert "passed" in last
    assert "skipped" not in last
