"""The magics in a real Jupyter kernel."""

from __future__ import annotations

import ast
import base64
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytestmark = [pytest.mark.hardware, pytest.mark.slow]

NewKernel = Callable[[], Any]


def descriptors(kernel: Any) -> str:
    return kernel.run(
        "import os, contextlib\nfound = []\nfor n in os.listdir('/proc/self/fd'):\n"
        "    with contextlib.suppress(OSError):\n"
        "        found += [n] if 'perf_event' in os.readlink('/proc/self/fd/' + n) else []\nprint(len(found))"
    ).out.strip()


def test_row_has_line_and_cell(new_kernel: NewKernel) -> None:
    kernel = new_kernel()
    watch = kernel.run("%watch a[3]")  # In [2]
    assert "'a[3]' w 8 bytes" in watch.value
    assert "<td>a[3]</td>" in watch.html
    kernel.run("def bug():\n    a[3] = 5\n\nbug()")  # In [3]
    kernel.run("%watch_timeline -o t")
    got = kernel.run("print([t.shape[0], int(t.line[0]), int(t.cell[0]), t.function[0], float(t.new[0])])")
    assert ast.literal_eval(got.out) == [1, 2, 3, "bug", 5.0]


def test_cell_magic_keeps_out_and_shows_its_hits(new_kernel: NewKernel) -> None:
    kernel = new_kernel()
    got = kernel.run("%%watch a[3]\n\na[3] = 7\nfor i in range(3):\n    a[3] = i\na[3] * 10")  # In [2]
    assert got.value == "np.float64(20.0)"
    assert '<td>In [2]:3</td><td class="number">1</td>' in got.html
    assert '<td>In [2]:5</td><td class="number">3</td>' in got.html
    assert "7.0 → 2.0" in got.html
    assert kernel.run("print(Out[2], len(hwwatch.watches()), len(hwwatch.timeline()))").out == "20.0 0 4\n"


def test_exception_is_shown_once_with_the_lines_of_the_cell(new_kernel: NewKernel) -> None:
    kernel = new_kernel()
    got = kernel.run("%%watch a[3]\na[3] = 7\ndef f():\n    return 1 / 0\nf()")  # In [2]
    assert got.error == "ZeroDivisionError"
    assert "In [2]:2  1" in got.out
    assert got.out.count("ZeroDivisionError: division by zero") == 1
    assert "Cell In[2], line 5" in got.out
    assert "Cell In[2], line 4, in f()" in got.out
    assert "line 1\n" not in got.out
    assert "run_cell_magic" not in got.out
    assert descriptors(kernel) == "0"


def test_interrupt_disarms(new_kernel: NewKernel) -> None:
    kernel = new_kernel()
    message = kernel.start("%%watch a[3]\nimport time\na[3] = 1\nprint('ready', flush=True)\ntime.sleep(60)")
    kernel.wait_for("ready")
    time.sleep(0.5)  # from print into sleep
    kernel.manager.interrupt_kernel()
    got = kernel.finish(message, timeout=30)
    assert got.error == "KeyboardInterrupt"
    assert "Cell In[2], line 5" in got.out
    assert "In [2]:3" in got.html
    assert kernel.run("print(len(hwwatch.watches()), len(hwwatch.timeline()))").out == "0 1\n"
    assert descriptors(kernel) == "0"


def test_user_errors_are_one_line(new_kernel: NewKernel) -> None:
    kernel = new_kernel()
    for code in ("%watch zz[3]", "%%watch zz[3]\n1", "%watch a", "%watch a[3] -m q", "%%watch a[3]\nawait x"):
        got = kernel.run(code)
        assert got.error == "UsageError", got
        assert got.err.startswith("UsageError: ")
        assert got.err.count("\n") == 1, got.err
        assert got.out == ""


def test_threads_that_block_sigtrap_are_named(new_kernel: NewKernel) -> None:
    kernel = new_kernel()
    kernel.run("%watch a[3]")
    got = kernel.run("%watch_coverage")
    assert "ZMQbg" in got.value
    assert "blocks SIGTRAP" in got.value
    assert "ZMQbg" in got.html
    zero = kernel.run("%%watch a[5]\npass")
    assert "no hits, and no accesses" in zero.out
    assert "that block SIGTRAP" in zero.out


def test_completion_over_the_wire(new_kernel: NewKernel) -> None:
    kernel = new_kernel()
    kernel.run(
        "import ctypes\nclass Head(ctypes.Structure):\n    _fields_ = [('size', ctypes.c_int)]\nhead = Head()"
    )
    assert kernel.complete("%watch he") == ["head"]
    assert "head.size" in kernel.complete("%watch a[3] head.s")
    assert kernel.complete("%watch a[3] -m ") == ["w", "rw", "r", "x"]
    kernel.run("%watch a[3]")
    assert kernel.complete("%unwatch ") == ["a[3]", "1"]


def test_unload_leaves_nothing_and_reload_works(new_kernel: NewKernel) -> None:
    kernel = new_kernel()
    kernel.run("%watch a[3] a[5]")
    assert int(descriptors(kernel)) > 0
    assert kernel.run("%unload_ext hwwatch").error == ""
    assert descriptors(kernel) == "0"
    assert kernel.run("%watch a[3]").error == "UsageError"
    assert kernel.run("%load_ext hwwatch\n%watch a[3]\na[3] = 1").error == ""
    assert kernel.run("%reload_ext hwwatch").error == ""
    assert descriptors(kernel) == "0"
    assert "no hits" not in kernel.run("%%watch a[3]\na[3] = 4").out


def test_two_kernels_do_not_disturb_each_other(new_kernel: NewKernel) -> None:
    kernels = [new_kernel(), new_kernel()]
    for kernel in kernels:
        assert kernel.run("%watch a[0] a[1] a[2] a[3]").error == ""
    messages = [
        kernel.start(f"for i in range({500 * (n + 1)}):\n    a[i % 4] = i")
        for n, kernel in enumerate(kernels)
    ]
    for kernel, message in zip(kernels, messages, strict=True):
        assert kernel.finish(message).error == ""
    ask = (
        "import os\nt = %watch_timeline\nprint(len(t), set(t.pid) == {os.getpid()}, hwwatch.coverage().lost)"
    )
    assert [kernel.run(ask).out for kernel in kernels] == ["500 True 0\n", "1000 True 0\n"]
    kernels[0].run("%unload_ext hwwatch")
    assert kernels[1].run("a[2] = 3.5\nprint(hwwatch.timeline('a[2]').new.iloc[-1])").out == "3.5\n"


@pytest.mark.parametrize("backend", ["perf", "ptrace"])
def test_restart_leaves_nothing_behind(new_kernel: NewKernel, backend: str) -> None:
    """Restarted amid hits: no process of it is left, and all registers can be had again."""
    kernel = new_kernel()
    places = "a[0:1], a[1:2], a[2:3], a[3:4]"
    arm = f"import os, hwwatch\nwatches = [hwwatch.watch(place, backend={backend!r}) for place in ({places})]"
    assert kernel.run(arm).error == ""
    before = int(kernel.run("print(os.getpid())").out)
    kernel.start("print('begun', flush=True)\nwhile True: a[2] += 1")
    kernel.wait_for("begun")
    kernel.manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=60)
    assert not os.path.exists(f"/proc/{before}")
    parents = [
        status.read_text().partition(")")[2].split()[1] for status in Path("/proc").glob("[0-9]*/stat")
    ]
    assert str(before) not in parents
    assert kernel.run("%load_ext hwwatch\nimport numpy as np\na = np.zeros(8)").error == ""
    assert kernel.run(arm).error == ""
    assert kernel.run(
        "a[2] = 1\nprint(int(os.getpid()), watches[2].hits, hwwatch.coverage().lost)"
    ).out.endswith(" 1 0\n")


def test_plot_and_export(new_kernel: NewKernel, tmp_path: Path) -> None:
    kernel = new_kernel()
    kernel.run("%watch a[3]")
    kernel.run("for i in range(5): a[3] = i")
    message = kernel.start("%watch_plot -x seq")
    pictures = []
    while (got := kernel.client.get_iopub_msg(timeout=60))["content"].get("execution_state") != "idle":
        pictures += [got["content"]["data"]["image/png"]] if got["msg_type"] == "display_data" else []
    assert kernel.client.get_shell_msg(timeout=60)["content"]["status"] == "ok", message
    (picture,) = pictures
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    exported = kernel.run(f"%watch_export {tmp_path}/hits.parquet")
    assert exported.out == f"5 hits written to {tmp_path}/hits.parquet\n"
    assert pd.read_parquet(tmp_path / "hits.parquet").new.tolist() == [0, 1, 2, 3, 4]
