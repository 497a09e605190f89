"""What /proc tells of processes; whatever is gone or hidden is left out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process by id and name (proc(5), comm)."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.pid})"


def status_of(task: int | str) -> dict[str, str]:
    """Fields of ``/proc/<task>/status``; empty where there is none."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{task}/status").read_text(errors="replace").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


def process(pid: int) -> Process:
    """A process; its name is "unknown" where it is hidden."""
    with contextlib.suppress(OSError):
        return Process(pid, Path(f"/proc/{pid}/comm").read_text(errors="replace").strip())
    return Process(pid, "unknown")


def tracers() -> tuple[Process, ...]:
    """Debuggers that are attached to threads of this process (proc(5), TracerPid)."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        pid = int(status_of(f"self/task/{task}").get("TracerPid", "0"))
        if pid:
            found.add(pid)
    return tuple(process(pid) for pid in sorted(found))


def perf_users() -> tuple[Process, ...]:
    """Other processes that hold perf events, of any kind, as far as they may be looked at."""
    own = os.getpid()
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    return tuple(process(pid) for pid in pids if pid != own and any(_perf_descriptors(pid)))


def _perf_descriptors(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if "[perf_event]" in os.readlink(entry.path):
                    yield entry.name
