"""What threads and processes are called, also those that have ended."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from hwwatch.letters import encodable
from hwwatch.native import arena, ffi, lib, shared

_WORD, _SIZE = 8, ffi.sizeof("struct hww_name")  # an arena id counts words
_seen: dict[int, str] = {}  # Python's names of threads, from earlier looks
_read: list[tuple[bool, int, int, str]] = []  # the core's notes, oldest first
_newest = 0  # arena id of the last of them


def thread_names() -> dict[int, str]:
    """Names of living threads by kernel thread id: Python's where it has one, else the kernel's."""
    names: dict[int, str] = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            # the kernel cuts names at 15 bytes, maybe amid a character
            names[int(task.name)] = (task / "comm").read_bytes().decode(errors="replace").rstrip("\n")
        except OSError:  # ended meanwhile
            continue
    given = {
        thread.native_id: thread.name for thread in threading.enumerate() if thread.native_id is not None
    }
    _seen.update(given)
    return names | given


class Names:
    """What to call the threads of hits: one look, good for one timeline."""

    def __init__(self) -> None:
        notes = _notes()
        self._here = os.getpid()
        self._alive = thread_names()
        # what Python gave wins, then what was noted last
        self._threads = {(pid, tid): name for _, tid, pid, name in sorted(notes, key=lambda note: note[0])}
        self._program = self._threads.get((self._here, self._here), self._alive.get(self._here, ""))

    def of(self, tid: int, pid: int) -> str:
        """Of a thread: its own name here, its process' with the pid elsewhere.

        Of a thread that has ended it is Python's name where somebody asked while it lived, else the kernel's.
        """
        if pid != self._here:
            process = self._threads.get((pid, pid), "")
            thread = self._threads.get((pid, tid), process)
            shown = f"process {pid} ({process})" if process else f"process {pid}"
            return shown if tid == pid or thread in ("", process, self._program) else f"{shown} {thread}"
        if tid in _seen:
            return _seen[tid]
        if tid in self._alive:
            return self._alive[tid]
        name = self._threads.get((pid, tid), "")
        return f"thread {tid}" if name in ("", self._program) else f"{name} ({tid})"


def _notes() -> list[tuple[bool, int, int, str]]:
    """Whether Python gave the name, thread, process, name; oldest first."""
    global _newest
    if lib.hww_core_shared() == ffi.NULL:
        return []
    memory, found = arena(), []
    at = newest = int(shared().names)
    while at and at != _newest:
        entry: Any = ffi.from_buffer("struct hww_name *", memory[at * _WORD : at * _WORD + _SIZE])
        name = ffi.string(entry.name).decode(errors="replace")
        found.append((bool(entry.given), int(entry.tid), int(entry.pid), name))
        at = int(entry.before)
    _newest = newest
    _read.extend(reversed(found))
    return _read


def forked() -> None:
    """In a forked child: multiprocessing will name it in a moment; that name is for the parent's timeline."""
    _seen.clear()
    util = sys.modules.get("multiprocessing.util")
    if util is not None and lib.hww_core_shared() != ffi.NULL:
        util.register_after_fork(_Child, _Child.begun)


class _Child:
    @staticmethod
    def begun(_: object) -> None:
        """Called by multiprocessing once the process knows its name."""
        process = sys.modules.get("multiprocessing.process")
        if process is not None:
            lib.hww_name_note(os.getpid(), os.getpid(), encodable(process.current_process().name).encode(), 1)
