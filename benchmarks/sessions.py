"""A program and the peer that watches it from outside: both started, kept, asked for batches, ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PATIENCE = 60.0  # seconds that a peer may take to attach or to answer
CORE = min(os.sched_getaffinity(0))


class PeerError(Exception):
    """The peer cannot be measured here; the message is the reason that the table gives."""


@dataclass
class Peer:
    """How a program is watched by another."""

    name: str
    batch: int  # hits
    #: task (JSON of the program, with "folder") → command line
    command: Callable[[dict[str, Any]], list[str]]
    ready: str = "READY"
    #: Once both have ended: how many hits the peer saw.
    count: Callable[[Path, Process], int | None] = field(default=lambda folder, eyes: told(eyes.output))
    #: The peer is told to end before the program is.
    first: bool = False
    more: dict[str, Any] = field(default_factory=dict)


def told(output: list[str]) -> int | None:
    """The number of hits in a peer's last line."""
    for line in reversed(output):
        if line.startswith("HITS "):
            return int(json.loads(line[5:])[0])
    return None


class Process:
    """A child process whose output is read line by line, with patience."""

    def __init__(self, command: list[str], core: int | None, task: dict[str, Any] | None = None) -> None:
        if core is not None:
            command = ["taskset", "-c", str(core), *command]
        environment = dict(os.environ)
        environment.pop("DEBUGINFOD_URLS", None)
        if task is not None:
            environment["HWWATCH_BENCH"] = json.dumps(task)
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.output: list[str] = []
        self.hits = 0  # lines that stand for a hit
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.child.stdout or ():
            if line.startswith("HIT "):
                self.hits += 1
            else:
                self._lines.put(line)
        self._lines.put(None)

    def line(self, patience: float = PATIENCE) -> str | None:
        """The next line; None when there will be no more."""
        try:
            line = self._lines.get(timeout=patience)
        except queue.Empty:
            raise PeerError(f"no answer within {patience:.0f} s; it said: {self.last()}") from None
        if line is not None:
            self.output.append(line.strip())
        return line

    def wait_for(self, token: str) -> None:
        """Read until a line begins with `token`."""
        while (line := self.line()) is not None:
            if line.startswith(token):
                return
        raise PeerError(f"it ended: {self.last()}")

    def last(self) -> str:
        """The last thing it said, for an error."""
        said = [line for line in self.output if line]
        return said[-1][:160] if said else "nothing"

    def tell(self, text: str) -> None:
        """Write to its input."""
        assert self.child.stdin
        self.child.stdin.write(text)
        self.child.stdin.flush()

    def finish(self, patience: float = PATIENCE) -> None:
        """Close its input and wait for its end; kill it if it does not come."""
        with contextlib.suppress(OSError):
            assert self.child.stdin
            self.child.stdin.close()
        try:
            self.child.wait(patience)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        with contextlib.suppress(PeerError):
            while self.line(5) is not None:
                pass


class Session:
    """A program under a peer's eyes; `batch()` makes hits and returns what each took."""

    def __init__(self, peer: Peer, library: Path, frames: int, pinned: bool) -> None:
        self.peer, self.made = peer, 0
        self.folder = Path(tempfile.mkdtemp(prefix="hwwatch-bench-"))
        self.core = CORE if pinned else None
        self.eyes: Process | None = None
        self.program = Process(
            [sys.executable, "-S", str(HERE / "victim.py"), str(library), str(frames)], self.core
        )
        try:
            answer = self.program.line()
            if not answer or not answer.startswith("{"):
                raise PeerError(f"the program did not start: {answer}")
            task = {**json.loads(answer), "folder": str(self.folder), **peer.more}
            self.eyes = Process(peer.command(task), self.core, task)
            self.eyes.wait_for(peer.ready)
            self.batch(20)
        except BaseException:
            self.close()
            raise

    def batch(self, hits: int | None = None) -> float:
        """ns a hit."""
        hits = hits or self.peer.batch
        spent = self.ask("hit", hits)
        self.made += hits
        return spent

    def ask(self, kind: str, count: int) -> float:
        """ns that one of `count` operations of the program took."""
        self.program.tell(f"{kind} {count}\n")
        answer = self.program.line()
        if answer is None:
            raise PeerError(f"the program ended under it: {self.eyes.last() if self.eyes else ''}")
        return float(answer)

    def close(self) -> int | None:
        """End both; how many hits the peer has seen, if it tells."""
        seen = None
        order = [self.program, self.eyes] if not self.peer.first else [self.eyes, self.program]
        for process in order:
            if process:
                process.finish()
        if self.eyes:
            with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
                seen = self.peer.count(self.folder, self.eyes)
        shutil.rmtree(self.folder, ignore_errors=True)
        return seen
