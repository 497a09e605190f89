"""What the tests share: the hardware switch, a session that leaves nothing behind, child processes.

``HWWATCH_TEST_HW`` decides on the tests that need debug registers: unset tries, and skips them where no
breakpoint fires; ``1`` must run, so that a skip is a failure; ``0`` never. ``HWWATCH_BACKEND`` is
the backend that they run on, perf unless it is set.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
NEEDS_HARDWARE = ("hardware", "integration", "browser")
SWITCH = os.environ.get("HWWATCH_TEST_HW", "")
BACKEND = os.environ.get("HWWATCH_BACKEND", "perf")


# The hardware switch


def pytest_configure(config: pytest.Config) -> None:
    if SWITCH not in ("", "0", "1"):
        raise pytest.UsageError(f"HWWATCH_TEST_HW={SWITCH!r}: unset tries, 1 must run, 0 never.")


def _needs_hardware(path: Path) -> bool:
    return any(HERE / name in path.parents for name in NEEDS_HARDWARE)


def _refusal() -> str:
    """Why breakpoints do not work here, or "" where a test access trapped."""
    from hwwatch.armory import release_signals
    from hwwatch.backends.select import select
    from hwwatch.errors import HwwatchError

    try:
        for mode in ("w", "rw", "x"):
            select(BACKEND).backend.canary(mode, 8, False)
    except HwwatchError as error:
        return str(error)
    finally:
        release_signals()
    return ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = {"ptrace" if BACKEND != "ptrace" else "perf"}
    if os.environ.get("HWWATCH_TEST_LONG") != "1":
        left_out.add("long")
    others = [item for item in items if any(item.get_closest_marker(name) for name in left_out)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]
    chosen = [item for item in items if _needs_hardware(item.path)]
    for item in chosen:
        item.add_marker(pytest.mark.hardware)
    if not chosen or SWITCH == "1":
        return
    reason = "HWWATCH_TEST_HW=0" if SWITCH == "0" else _refusal()
    if reason:
        for item in chosen:
            item.add_marker(pytest.mark.skip(reason=f"no debug registers: {reason}"))


def _no_skip(report: Any) -> None:
    if SWITCH == "1" and report.skipped and not hasattr(report, "wasxfail"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"HWWATCH_TEST_HW=1 allows no skip of a hardware test: {why}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if item.get_closest_marker("hardware"):
        _no_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    report = yield
    if _needs_hardware(collector.path):
        _no_skip(report)
    return report


# Sessions that leave nothing behind


def perf_descriptors() -> list[int]:
    """Open file descriptors that are perf events."""
    found = []
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if "perf_event" in os.readlink(entry.path):
                found.append(int(entry.name))
    return found


def catches(signum: int) -> bool:
    """Whether the process has a handler for a signal, in Python or in C (proc(5), SigCgt)."""
    status = Path("/proc/self/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (signum - 1) & 1)


def _session(backend: str) -> Iterator[Any]:
    from hwwatch.sessions import Session

    with Session("test", backend=backend) as session:
        yield session
    assert perf_descriptors() == []
    assert not catches(signal.SIGTRAP)


@pytest.fixture
def session() -> Iterator[Any]:
    """A fresh session on the real debug registers; nothing of it may stay."""
    assert perf_descriptors() == []
    yield from _session(BACKEND)


@pytest.fixture
def traced() -> Iterator[Any]:
    """A fresh session on debug registers that a helper sets by ptrace."""
    yield from _session("ptrace")


@pytest.fixture
def fake_session() -> Iterator[Any]:
    """A fresh session on the fake backend: the real handler, ring and timeline, scripted hits."""
    from hwwatch.native import lib, open_core

    open_core()
    lib.hww_trap_open()  # the guard of the handler's own reads
    yield from _session("fake")


@pytest.fixture
def fake() -> Any:
    """The fake backend, to make hits with `store` and `hit`."""
    from hwwatch.backends.select import select

    return select("fake").backend


# Native code of a test's own


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``build(source, *flags)``: the path of a shared library of some C, compiled once a session."""
    folder = tmp_path_factory.mktemp("built")

    def build(source: str, *flags: str) -> str:
        name = hashlib.sha256(repr((source, flags)).encode()).hexdigest()[:16]
        library, text = folder / f"lib{name}.so", folder / f"{name}.c"
        if not library.exists():
            text.write_text(source)
            command = [
                "cc",
                "-O1",
                "-g",
                "-shared",
                "-fPIC",
                *flags,
                str(text),
                "-o",
                str(library),
                "-lpthread",
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return str(library)

    return build


@pytest.fixture
def load(build: Callable[..., str]) -> Callable[..., ctypes.CDLL]:
    """``load(source, *flags)``: the same, loaded."""
    return lambda source, *flags: ctypes.CDLL(build(source, *flags))


# Child processes

_PRELUDE = """\
from __future__ import annotations
import ctypes, json, os, resource, signal, sys, threading, time
import numpy as np
import hwwatch

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

def report(value):
    with open({result!r}, "w") as file:
        json.dump(value, file, default=lambda item: item.item())

"""


@pytest.fixture
def in_child() -> Iterator[Callable[..., Any]]:
    """``in_child(work, *arguments, timeout=60, expect=0, env=None)``: run it in a fresh process.

    Parameters
    ----------
    work : function or str
        A function of the test file, which must bring its own imports beyond ctypes, json, os, signal, sys,
        threading, time, np and hwwatch; or the source of a script. What it returns comes back by way of
        JSON; what it gave to its argument ``report``, if it has one, also from a child that dies.
    *arguments
        Literals for the function.
    timeout : float
        Seconds, after which the child and its children are killed and the test fails.
    expect : int
        Exit status as `subprocess` tells it, -5 for death by SIGTRAP.
    env : dict
        Added to the environment.
    """
    # Not in tmp_path, which a child that gives up its privileges could not read.
    folder = Path(tempfile.mkdtemp(prefix="hwwatch-test-"))
    folder.chmod(0o755)
    count = 0

    def in_child(
        work: Callable[..., Any] | str,
        *arguments: Any,
        timeout: float = 60,
        expect: int = 0,
        env: dict[str, str] | None = None,
    ) -> Any:
        nonlocal count
        count += 1
        script, result = folder / f"child{count}.py", folder / f"result{count}.json"
        result.touch()
        result.chmod(0o666)
        text = _PRELUDE.format(result=str(result))
        if isinstance(work, str):
            text += textwrap.dedent(work)
        else:
            text += textwrap.dedent(inspect.getsource(work))
            given = ", report=report" if "report" in inspect.signature(work).parameters else ""
            text += f"\nanswer = {work.__name__}(*{arguments!r}{given})\n"
            text += "if answer is not None:\n    report(answer)\n"
        script.write_text(text)
        child = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        try:
            output, _ = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            try:
                output, _ = child.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                output = "(a process that it left behind holds its output)"
            pytest.fail(f"the child still ran after {timeout} s; it wrote:\n{output}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # what it left behind
        assert child.returncode == expect, f"exit status {child.returncode}, not {expect}:\n{output}"
        return json.loads(result.read_text() or "null")

    yield in_child
    shutil.rmtree(folder)
