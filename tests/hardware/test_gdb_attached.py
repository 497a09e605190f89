"""gdb on the same process: its watchpoints take debug registers, and it gets SIGTRAP first."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

PROGRAM = """\
import sys
import numpy as np
import hwwatch

a = np.zeros(64)
w = None
print("ready", a.ctypes.data, flush=True)
for line in sys.stdin:
    try:
        exec(line)
    except hwwatch.HwwatchError as error:
        print("refused", error, flush=True)
    else:
        print("done", flush=True)
"""


class Watched:
    """The program that is watched and debugged, line by line."""

    def __init__(self, script: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.address = int(self._read().split()[1])

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        said = []
        while not (text := self._read()).startswith(("done", "refused")):
            assert text, f"the program ended with {self.process.wait()} at: {line}"
            said.append(text)
        return "\n".join(said) or text


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    if not shutil.which("gdb"):
        pytest.skip("there is no gdb: sudo apt install gdb")
    script = tmp_path / "watched.py"
    script.write_text(PROGRAM)
    program = Watched(script)
    yield program
    program.process.kill()
    program.process.wait()


def attach(watched: Watched, *commands: str) -> Any:
    gdb = pexpect.spawn(
        "gdb",
        ["-q", "-nx", "-iex", "set pagination off", "-p", str(watched.process.pid)],
        encoding="utf-8",
        timeout=60,
        echo=False,
    )
    for command in ("set confirm off", *commands):
        gdb.expect_exact("(gdb) ")
        gdb.sendline(command)
    return gdb


def attach_and_watch(watched: Watched, count: int) -> Any:
    """gdb with so many watchpoints of its own, a[10] and on, and the program running under it."""
    places = (f"watch *(long *) {watched.address + 80 + 8 * i}" for i in range(count))
    gdb = attach(watched, "handle SIGTRAP nostop noprint pass", *places, "continue")
    gdb.expect("Continuing")
    return gdb


def leave(gdb: Any) -> None:
    gdb.sendintr()
    gdb.expect_exact("(gdb) ")
    gdb.sendline("detach")
    gdb.expect_exact("(gdb) ")
    gdb.sendline("quit")
    gdb.expect(pexpect.EOF)
    gdb.close()


@pytest.mark.slow
@pytest.mark.perf
def test_hits_before_during_and_after(watched: Watched) -> None:
    """With the line that the README names, gdb hands our signal on."""
    watched.do("w = hwwatch.watch(a[3:4])")
    watched.do("a[3] = 1")
    gdb = attach(watched, "handle SIGTRAP nostop noprint pass", "continue")
    gdb.expect("Continuing")
    watched.do("for i in range(50): a[3] = i")
    watched.do("v = hwwatch.watch(a[10:11], 'rw')")  # armed under gdb
    watched.do("a[10] += 1")
    leave(gdb)
    watched.do("a[3] = 2")
    watched.do("a[10] = 3")
    assert watched.do("print(w.hits, w.lost, v.hits, v.lost)") == "52 0 3 0"


@pytest.mark.slow
@pytest.mark.perf
def test_error_names_who_holds_the_registers(watched: Watched) -> None:
    watched.do("w = hwwatch.watch(a[3:4], name='mine')")
    gdb = attach_and_watch(watched, 3)
    text = watched.do("hwwatch.watch(a[40:41])")
    assert text.startswith("refused cannot watch")
    assert f"0 free; taken by mine (1) and 3 by gdb (pid {gdb.pid})" in text
    watched.do("a[3] = 1")
    leave(gdb)
    # Linux keeps a debugger's registers reserved, switched off, until the thread ends.
    text = watched.do("hwwatch.watch(a[40:41])")
    assert "3 by a debugger that is gone, or by another program" in text
    watched.do("a[3] = 2")
    assert watched.do("print(w.hits, w.lost)") == "2 0"


@pytest.mark.slow
@pytest.mark.perf
def test_watchpoints_of_both(watched: Watched) -> None:
    """gdb's own watchpoint stops in gdb, ours is recorded."""
    watched.do("w = hwwatch.watch(a[3:4])")
    gdb = attach(
        watched, "handle SIGTRAP nostop noprint pass", f"watch *(long *) {watched.address + 80}", "continue"
    )
    gdb.expect("Continuing")
    watched.do("a[3] = 1")
    assert watched.process.stdin is not None
    watched.process.stdin.write("a[10] = 5\n")
    watched.process.stdin.flush()
    gdb.expect("Hardware watchpoint 1")
    gdb.expect("New value = ")
    gdb.expect_exact("(gdb) ")
    gdb.sendline("delete")
    gdb.expect_exact("(gdb) ")
    gdb.sendline("continue")
    gdb.expect("Continuing")
    assert watched._read() == "done"
    leave(gdb)
    watched.do("a[3] = 2")
    assert watched.do("print(w.hits, w.lost)") == "2 0"


@pytest.mark.ptrace
def test_registers_of_ptrace_that_gdb_takes_over(watched: Watched) -> None:
    """While gdb is attached nothing can be changed; what it has cleared is told, and set again."""
    watched.do("w = hwwatch.watch(a[3:4], name='mine')")
    watched.do("a[3] = 1")
    gdb = attach_and_watch(watched, 4)
    assert f"this process is traced by gdb (pid {gdb.pid})" in watched.do("hwwatch.watch(a[40:41])")
    attached = f"gdb ({gdb.pid}) is attached: it may put something else into debug registers"
    assert attached in watched.do("print(hwwatch.coverage().problems)")
    watched.do("a[3] = 2")
    leave(gdb)
    assert "a debugger had put something else" in watched.do("print(hwwatch.coverage().problems)")
    watched.do("a[3] = 3")
    watched.do("v = hwwatch.watch(a[40:41])")
    watched.do("a[40] = 4")
    assert watched.do("print(w.timeline().new.tolist()[-1], v.hits)") == "3.0 1"


@pytest.mark.ptrace
def test_registers_that_changed_unseen_are_told_at_the_next_change(watched: Watched) -> None:
    watched.do("w = hwwatch.watch(a[3:4], name='mine')")
    gdb = attach_and_watch(watched, 4)
    leave(gdb)
    watched.do("v = hwwatch.watch(a[40:41])")
    assert "a debugger had put something else" in watched.do("print(hwwatch.coverage().problems)")
    watched.do("a[3] = 3")
    assert watched.do("print(w.hits, v.hits)") == "1 0"
