"""Programs that are started under a watch run as ever: their process shares our memory until it execs."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwwatch


def spawn(names):
    import subprocess

    libc = ctypes.CDLL(None)
    watches = [hwwatch.watch(getattr(libc, name), "x", name=name) for name in names]
    codes = []
    for i in range(5):
        done = subprocess.run(["/bin/sh", "-c", f"exit {i}"], close_fds=True)
        codes.append(done.returncode)
        codes.append(subprocess.run(["/bin/true"], close_fds=False, cwd="/").returncode)
        pid = os.posix_spawn("/bin/true", ["true"], {}, setsigmask=[])
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        codes.append(os.waitstatus_to_exitcode(os.system("exit 0")))
    child = os.fork()
    if not child:
        os.execv("/bin/true", ["true"])
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return codes, [watch.armed for watch in watches], sum(watch.lost for watch in watches)


@pytest.mark.parametrize(
    "names",
    [
        ("execve", "close", "dup2", "sigprocmask"),
        ("_exit", "vfork", "fork", "chdir"),
        ("write", "open", "read"),
    ],
)
def test_four_execute_watches_at_once(in_child: Callable[..., Any], names: tuple[str, ...]) -> None:
    """A vfork or posix_spawn child that met an execute breakpoint would die of SIGTRAP (exit -5)."""
    codes, armed, lost = in_child(spawn, names, timeout=30)
    assert codes == [code for i in range(5) for code in (i, 0, 0, 0)] + [0]
    assert all(armed)
    assert lost == 0


def test_data_watch(in_child: Callable[..., Any]) -> None:
    def work():
        import subprocess

        array = np.zeros(4)
        watch = hwwatch.watch(array[1:2])
        codes = []
        for i in range(5):
            array[1] = i
            codes.append(subprocess.run(["/bin/sh", "-c", "exit 0"]).returncode)
            pid = os.posix_spawn("/bin/true", ["true"], {})
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            codes.append(subprocess.run(["/bin/true"], preexec_fn=lambda: array.__setitem__(1, 9)).returncode)
        rows = watch.timeline()
        return codes, rows.new.tolist(), rows.pid.nunique(), watch.lost

    new = [value for i in range(5) for value in (i, 9)]
    assert in_child(work, timeout=30) == [[0] * 15, new, 6, 0]


def test_nothing_of_ours_in_the_program(in_child: Callable[..., Any]) -> None:
    """Neither descriptors, nor a blocked or ignored SIGTRAP, nor a breakpoint."""

    def work():
        import subprocess

        array = np.zeros(4)
        watch = hwwatch.watch(array[1:2])
        script = "ls -l /proc/self/fd | grep -c perf_event; grep -E 'Sig(Blk|Ign|Pnd)' /proc/self/status"
        lines = subprocess.run(
            ["/bin/sh", "-c", script], capture_output=True, text=True, close_fds=False
        ).stdout.splitlines()
        masks = [int(line.split()[1], 16) >> 4 & 1 for line in lines[1:]]
        return watch.armed, lines[0], masks

    assert in_child(work) == [True, "0", [0, 0, 0]]
