"""What /proc tells of processes; whatever is gone or hidden is left out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ASLEEP = ("S", "I", "Z", "X")  # interruptibly, idle, dead: proc(5), /proc/pid/stat, field 3


class Process(NamedTuple):
    """A process by id and name (proc(5), comm)."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.pid})"


def _text(path: str) -> str:
    """Of a file; names in it are cut at 15 bytes, maybe amid a character, or were never UTF-8."""
    return Path(path).read_text(encoding="utf-8", errors="replace")


def status_of(task: int | str) -> dict[str, str]:
    """Fields of ``/proc/<task>/status``; empty where there is none."""
    with contextlib.suppress(OSError):
        lines = _text(f"/proc/{task}/status").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


def process(pid: int) -> Process:
    """A process; its name is "unknown" where it is hidden."""
    with contextlib.suppress(OSError):
        return Process(pid, _text(f"/proc/{pid}/comm").strip())
    return Process(pid, "unknown")


def alive_process(pid: int) -> bool:
    """Whether it is there and has not ended; one whose end its parent has not taken note of has."""
    return status_of(pid).get("State", "X")[0] not in "XZ"


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


def descendants(pid: int) -> Iterator[int]:
    """Processes that came from this one; none where the kernel does not say (CONFIG_PROC_CHILDREN)."""
    for task in _tasks(pid):
        try:
            children = _text(f"{task}/children").split()
        except OSError:  # ended meanwhile
            continue
        for child in map(int, children):
            yield child
            yield from descendants(child)


def started_programs() -> list[Process]:
    """Children, grandchildren … that run a program of their own: by `subprocess`, spawn, forkserver.

    A forked child has its arguments and environment where its parent has them; exec(2) puts them elsewhere
    (proc_pid_stat(5), arg_start and env_start; with address space layout randomization).

    Returns
    -------
    list of Process
    """
    own = _image("self")
    found = []
    for pid in descendants(os.getpid()):
        image = _image(str(pid))
        if image is not None and own is not None and image[1] != own[1] and any(image[1]):
            found.append(Process(pid, image[0]))
    return found


def _image(process: str) -> tuple[str, list[str]] | None:
    """A process' name, and where its arguments and environment begin; None where it has ended."""
    try:
        head, _, rest = _text(f"/proc/{process}/stat").rpartition(")")
    except OSError:
        return None
    fields = rest.split()
    return head.partition("(")[2], [field for field in (fields[45], fields[47]) if field != "0"]


def runs(pid: int) -> bool:
    """Whether a thread of a process has the CPU, or waits for it or in the kernel."""
    for task in _tasks(pid):
        try:
            if _text(f"{task}/stat").rpartition(")")[2].split()[0] not in ASLEEP:
                return True
        except (OSError, IndexError):
            continue
    return False


def _tasks(pid: int) -> list[str]:
    """Folders of a process' threads; none where it has ended."""
    with contextlib.suppress(OSError):
        return [entry.path for entry in os.scandir(f"/proc/{pid}/task")]
    return []
