"""Real shells and kernels, each in a process of its own."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

import pytest


class Cell(NamedTuple):
    """What running a cell gave; colours are taken off."""

    out: str  # what stands below the cell, standard error apart
    err: str
    error: str  # class of the exception, or ""
    value: str  # repr of Out[]
    html: str = ""


_SHELL = """\
import contextlib, io, re
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()

def catches(signum):
    status = open("/proc/self/status").read()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (signum - 1) & 1)

def perf_descriptors():
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if "perf_event" in os.readlink("/proc/self/fd/" + name):
                found.append(int(name))
    return found

def threads():
    return sorted(os.listdir("/proc/self/task"))

def complete(text):
    shell.Completer.use_jedi = False
    with_jedi = []
    plain = shell.Completer.complete(line_buffer=text, cursor_pos=len(text))[1]
    shell.Completer.use_jedi = True
    from IPython.core.completer import provisionalcompleter
    with provisionalcompleter():
        with_jedi = [item.text for item in shell.Completer.completions(text, len(text))]
    return {"plain": list(plain), "jedi": with_jedi}

def run(cell):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        result = shell.run_cell(cell, store_history=True)
    error = result.error_before_exec or result.error_in_exec
    plain = [re.sub(r"\\x1b\\[[0-9;]*m", "", text.getvalue()) for text in (out, err)]
    return [*plain, type(error).__name__ if error else "", repr(result.result)]

shell.user_ns.update(
    catches=catches, perf_descriptors=perf_descriptors, threads=threads, complete=complete, shell=shell
)
"""


@pytest.fixture
def in_shell(in_child: Callable[..., Any], tmp_path: Path) -> Callable[..., list[Cell]]:
    """``in_shell(*cells)``: run cells in a fresh InteractiveShell, where hwwatch and a, m are at hand.

    Cells may use ``catches``, ``perf_descriptors``, ``threads``, ``complete``, ``shell``.
    """

    def in_shell(*cells: str, timeout: float = 60) -> list[Cell]:
        first = [
            # Amid larger arrays: strlen and its like read on behind a neighbouring string.
            "%load_ext hwwatch\nimport hwwatch\nimport numpy as np\n"
            "a = np.zeros(208)[100:108]\nm = np.zeros((103, 4))[50:53]"
        ]
        work = f"{_SHELL}\nreport([run(cell) for cell in {first + list(cells)!r}])\n"
        answers = in_child(work, timeout=timeout, env={"IPYTHONDIR": str(tmp_path)})
        assert answers[0][2] == "", answers[0]
        return [Cell(*answer) for answer in answers[1:]]

    return in_shell


class Kernel:
    """A running Jupyter kernel and its client."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self.client = manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def start(self, code: str) -> str:
        """Send a cell; returns the id that `finish` wants."""
        return str(self.client.execute(code))

    def finish(self, message: str, timeout: float = 60) -> Cell:
        """Wait for a cell to end."""
        out, err, error, value, html = "", "", "", "None", ""
        end = time.monotonic() + timeout
        while True:
            try:
                got = self.client.get_iopub_msg(timeout=max(0.1, end - time.monotonic()))
            except Empty:
                pytest.fail(f"the cell still runs after {timeout} s; so far: {out}{err}")
            if got["parent_header"].get("msg_id") != message:
                continue
            kind, content = got["msg_type"], got["content"]
            if kind == "stream":
                out += content["text"] if content["name"] == "stdout" else ""
                err += content["text"] if content["name"] == "stderr" else ""
            elif kind in ("display_data", "execute_result"):
                html += content["data"].get("text/html", "")
                out += content["data"].get("text/plain", "")
                value = content["data"].get("text/plain", "") if kind == "execute_result" else value
            elif kind == "error":
                error = content["ename"]
                out += "\n".join(content["traceback"])
            elif kind == "status" and content["execution_state"] == "idle":
                break
        while (reply := self.client.get_shell_msg(timeout=timeout))["parent_header"].get("msg_id") != message:
            continue
        error = error or reply["content"].get("ename", "")
        return Cell(_plain(out), _plain(err), error, value, html)

    def run(self, code: str, timeout: float = 60) -> Cell:
        """Run a cell to its end."""
        return self.finish(self.start(code), timeout)

    def wait_for(self, text: str, timeout: float = 60) -> None:
        """Wait until a running cell has printed `text`."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            got = self.client.get_iopub_msg(timeout=timeout)
            if got["msg_type"] == "stream" and text in got["content"]["text"]:
                return
        pytest.fail(f"{text!r} was not printed within {timeout} s")

    def complete(self, code: str, timeout: float = 60) -> list[str]:
        """Completions at the end of `code`, in the kernel's order."""
        message = self.client.complete(code, len(code))
        while (reply := self.client.get_shell_msg(timeout=timeout))["parent_header"].get("msg_id") != message:
            continue
        return list(reply["content"]["matches"])

    def stop(self) -> None:
        """End it, and everything that it started."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture
def new_kernel(tmp_path: Path) -> Iterator[Callable[[], Kernel]]:
    """``new_kernel()``: a fresh kernel with the extension loaded, ended with the test."""
    with _kernels(tmp_path) as new_kernel:
        yield new_kernel


@pytest.fixture(scope="module")
def one_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel with the extension loaded, for all tests of a file."""
    with _kernels(tmp_path_factory.mktemp("kernel")) as new_kernel:
        yield new_kernel()


@contextlib.contextmanager
def _kernels(folder: Path) -> Iterator[Callable[[], Kernel]]:
    from jupyter_client.manager import KernelManager

    running: list[Kernel] = []

    def new_kernel() -> Kernel:
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel()
        try:
            kernel = Kernel(manager)
        except BaseException:
            manager.shutdown_kernel(now=True)
            raise
        running.append(kernel)
        done = kernel.run("%load_ext hwwatch\nimport hwwatch\nimport numpy as np\na = np.zeros(8)")
        assert done.error == "", done
        return kernel

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(folder))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder))
        try:
            yield new_kernel
        finally:
            for kernel in running:
                kernel.stop()
