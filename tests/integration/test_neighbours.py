"""Other tools that handle signals, traces or debug registers, beside an armed watch: both go on working."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from .conftest import Cell

PROGRAM = """\
import numpy as np
import hwwatch

a = np.zeros(8)


def work(n):
    for i in range(n):
        a[3] = i
    if n > 100:
        a[3] = -1
    return a.sum()


w = hwwatch.watch(a[3:4])
work(3)
work(2)
print("hits", w.hits, "lines", sorted(set(w.timeline().line.astype(int))), "lost", w.lost)
"""
TOLD = "hits 5 lines [9] lost 0"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def run(*command: object, **options: Any) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=100, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# coverage.py


@pytest.mark.slow
@pytest.mark.parametrize("core", ["ctrace", "sysmon"])
def test_coverage_py(program: Path, core: str) -> None:
    """The lines that it sees are those that ran, and hwwatch's lines are the same with it."""
    if core == "sysmon" and sys.version_info < (3, 12):
        core = "pytrace"  # its third core; sys.monitoring came with Python 3.12
    environment = {**os.environ, "COVERAGE_CORE": core, "COVERAGE_FILE": str(program.with_suffix(".data"))}
    out = run("-m", "coverage", "run", program, env=environment, cwd=program.parent)
    assert TOLD in out
    report = program.with_suffix(".json")
    run("-m", "coverage", "json", "-q", "-o", report, program, env=environment, cwd=program.parent)
    found = next(iter(json.loads(report.read_text())["files"].values()))
    assert found["missing_lines"] == [11]
    assert 9 in found["executed_lines"]


# faulthandler


def test_faulthandler(in_child: Callable[..., Any]) -> None:
    """Dumps on demand and by time, in C, while hits come; SIGSEGV, which hwwatch guards, still dumps."""

    def work(folder):
        import faulthandler

        array = np.zeros(8)
        # A file each: dumps by time are written by a thread of faulthandler, so two in one file would mix.
        with open(folder + "/asked", "w+") as asked, open(folder + "/timed", "w+") as timed:
            faulthandler.enable(asked)
            w = hwwatch.watch(array[3:4])
            faulthandler.register(signal.SIGUSR1, asked, chain=False)
            faulthandler.dump_traceback_later(0.05, repeat=True, file=timed)
            n, end = 0, time.monotonic() + 0.5
            while time.monotonic() < end:
                array[3] = n
                n += 1
                if n % 500 == 0:
                    os.kill(os.getpid(), signal.SIGUSR1)
            faulthandler.cancel_dump_traceback_later()
            hits, lost = w.hits, w.lost
            asked.seek(0)
            timed.seek(0)
            dumps, timeouts = asked.read().count("in work"), timed.read().count("Timeout")
            faulthandler.disable()
        return n, hits, lost, timeouts, dumps

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        n, hits, lost, timeouts, dumps = in_child(work, folder)
    assert (hits, lost) == (n, 0)
    assert timeouts >= 3
    assert dumps == n // 500


def test_faulthandler_enabled_before_and_after(in_child: Callable[..., Any]) -> None:
    def work(when, report):
        import faulthandler

        if when == "before":
            faulthandler.enable(all_threads=False)
        array = np.zeros(8)
        w = hwwatch.watch(array[3:4])
        if when == "after":
            faulthandler.enable(all_threads=False)
        array[3] = 1
        report([w.hits, w.lost])
        ctypes.string_at(8)

    for when in ("before", "after"):
        assert in_child(work, when, expect=-11) == [1, 0]


# pdb, IPython's magics


@pytest.mark.slow
def test_pdb(program: Path) -> None:
    """Steps go from line to line as ever, and a hit is a hit."""
    terminal = pexpect.spawn(sys.executable, ["-m", "pdb", str(program)], encoding="utf-8", timeout=60)
    for command in ("b work", "c", "n", "n", "n", "p int(a[3])", "cl 1", "c"):
        terminal.expect_exact("(Pdb) ")
        terminal.sendline(command)
        if command == "cl 1":
            terminal.expect_exact("Deleted breakpoint 1")
    terminal.expect_exact(TOLD)
    terminal.close(force=True)


def test_breakpoint_function(in_child: Callable[..., Any]) -> None:
    def work():
        import io
        import pdb

        array = np.zeros(8)
        w = hwwatch.watch(array[3:4])
        said = io.StringIO()
        debugger = pdb.Pdb(stdin=io.StringIO("array[3] = 5\nn\nn\np int(array[3])\nc\n"), stdout=said)
        debugger.set_trace()
        array[3] += 1
        array[4] = 2
        return said.getvalue(), w.timeline()["new"].tolist()

    said, new = in_child(work)
    assert new == [5.0, 6.0]
    assert "(Pdb) 6" in said


@pytest.mark.slow
def test_ipython_magics(in_shell: Callable[..., list[Cell]]) -> None:
    prun, timeit, failed, debug, counted = in_shell(
        "%watch a[3]\ndef f(n):\n    for i in range(n):\n        a[3] = i\n%prun -q -s cumulative f(50)",
        "%timeit -n 10 -r 2 f(1)",
        "def g():\n    value = 41\n    a[3] = value\n    raise ValueError('here')\ng()",
        "import io, sys\n_stdin, sys.stdin = sys.stdin, io.StringIO('p value + 1\\n!a[3] = 9\\nq\\n')\n"
        "%debug\nsys.stdin = _stdin",
        "hwwatch.watches()[0].hits, hwwatch.watches()[0].lost, float(a[3])",
    )
    assert prun.error == ""
    assert "loops each" in timeit.out
    assert failed.error == "ValueError"
    assert "42" in debug.out
    hits, lost, value = eval(counted.value)
    assert (hits, lost, value) == (50 + 20 + 1 + 1, 0, 9.0)


# pytest


@pytest.mark.slow
def test_pytest_with_its_own_handlers(tmp_path: Path) -> None:
    """Its faulthandler plugin, output capture, assertion rewriting, and a time limit by SIGALRM."""
    test = tmp_path / "test_inside.py"
    test.write_text(
        "import time\nimport numpy as np\nimport pytest\nimport hwwatch\n\n\n"
        "@pytest.fixture\ndef watched():\n    a = np.zeros(8)\n    with hwwatch.watching(a[3:4]) as w:\n"
        "        yield a, w\n\n\n"
        "@pytest.mark.parametrize('n', [1, 1000])\ndef test_counts(watched, n, capfd):\n"
        "    a, w = watched\n    for i in range(n):\n        a[3] = i\n"
        "    print('said')\n    assert w.hits == n\n    assert capfd.readouterr().out == 'said\\n'\n"
        "    assert set(w.timeline().line) == {18}\n\n\n"
        "@pytest.mark.timeout(1, method='signal')\ndef test_too_long(watched):\n"
        "    a, w = watched\n    while True:\n        a[3] = 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", "-q", str(test)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    assert "Timeout" in done.stdout


# debugpy


class Dap:
    """The least of a client of the Debug Adapter Protocol."""

    def __init__(self, port: int) -> None:
        end = time.monotonic() + 30
        while True:
            try:
                self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < end
                time.sleep(0.1)
        self._file = self._socket.makefile("rb")
        self._number = 0

    def send(self, command: str, **arguments: Any) -> int:
        self._number += 1
        message = {"seq": self._number, "type": "request", "command": command, "arguments": arguments}
        body = json.dumps(message).encode()
        self._socket.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        return self._number

    def messages(self) -> Iterator[dict[str, Any]]:
        while True:
            length = 0
            while (line := self._file.readline().strip()) or not length:
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            yield json.loads(self._file.read(length))

    def wait(self, kind: str, name: str) -> dict[str, Any]:
        for message in self.messages():
            if message["type"] == kind and message.get("command", message.get("event")) == name:
                return message
        raise AssertionError(f"no {name}")

    def close(self) -> None:
        self._socket.close()


@pytest.mark.slow
def test_debugpy_attach(tmp_path: Path) -> None:
    """A breakpoint of the IDE stops in a watched loop; hits before, in the stop and after are recorded."""
    script = tmp_path / "served.py"
    script.write_text(
        "import sys, time\nimport debugpy\nimport numpy as np\nimport hwwatch\n"
        "a = np.zeros(8)\nw = hwwatch.watch(a[3:4])\n"
        "print('port', debugpy.listen(('127.0.0.1', 0))[1], flush=True)\n"
        "debugpy.wait_for_client()\n"
        "for i in range(200):\n    a[3] = i\n    time.sleep(0.001)\n"
        "print('hits', w.hits, 'lost', w.lost, 'lines', set(w.timeline().line), 'value', a[3], flush=True)\n"
    )
    served = subprocess.Popen(
        [sys.executable, "-X", "frozen_modules=off", str(script)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert served.stdout is not None
        port = int(served.stdout.readline().split()[1])
        client = Dap(port)
        client.send("initialize", adapterID="test", pathFormat="path", linesStartAt1=True)
        client.wait("response", "initialize")
        client.send("attach", justMyCode=False)
        client.wait("event", "initialized")
        client.send(
            "setBreakpoints", source={"path": str(script)}, breakpoints=[{"line": 11, "hitCondition": "5"}]
        )
        client.wait("response", "setBreakpoints")
        client.send("configurationDone")
        stopped = client.wait("event", "stopped")
        thread = stopped["body"]["threadId"]
        client.send("stackTrace", threadId=thread, levels=1)
        frame = client.wait("response", "stackTrace")["body"]["stackFrames"][0]
        assert (frame["line"], Path(frame["source"]["path"]).name) == (11, "served.py")
        client.send("evaluate", expression="a.__setitem__(3, 77.0)", frameId=frame["id"], context="repl")
        client.wait("response", "evaluate")
        client.send("setBreakpoints", source={"path": str(script)}, breakpoints=[])
        client.wait("response", "setBreakpoints")
        client.send("continue", threadId=thread)
        client.wait("response", "continue")
        client.send("disconnect", terminateDebuggee=False)
        out, _ = served.communicate(timeout=60)
        client.close()
    finally:
        served.kill()
        served.wait()
    found = re.search(r"hits (\d+) lost (\d+)", out)
    assert found, out
    assert (int(found[1]), int(found[2])) == (201, 0)
    assert "value 199.0" in out
