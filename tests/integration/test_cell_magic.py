"""``%%watch`` in a real IPython shell; the cell In [1] is that of the fixture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.hardware, pytest.mark.slow]

InShell = Callable[..., list[Any]]

BUG = "def bug():\n    for i in range(3):\n        a[3] = i\nbug()"
NOTHING = "(len(hwwatch.watches()), perf_descriptors())"


def test_cell_keeps_out_and_underscore(in_shell: InShell) -> None:
    cell, out, state = in_shell(
        "%%watch a[3]\n\nx = 20\na[3] = 5\nbefore = a[3]\nx + 1",
        "(Out[2], _2, _, x, before)",
        f"(len(hwwatch.timeline('a[3]')), *{NOTHING})",
    )
    assert cell.value == "21"
    assert cell.out.startswith("Out[2]: 21\n")
    assert out.value == "(21, 21, 21, 20, np.float64(5.0))"
    assert state.value == "(1, 0, [])"


def test_cell_shows_hits_by_line(in_shell: InShell) -> None:
    _, cell = in_shell(BUG, "%%watch a[3] m[0, :2]\n\na[3] = 9\nbug()\nm[0, 0:3] = 7")
    lines = [line.split("  ") for line in cell.out.splitlines()]
    rows = [[part.strip() for part in line if part] for line in lines]
    assert rows[0] == ["a[3], m[0, :2]: 6 hits by 3 lines"]
    assert [row[:2] for row in rows[2:]] == [["In [3]:3", "1"], ["In [2]:3", "3"], ["In [3]:5", "2"]]
    assert "2.0 → 9.0" in cell.out  # the first line of the cell comes after bug() of In [2]
    assert "9.0 → 2.0" in cell.out
    assert "(0.0, 0.0) → (7.0, 7.0)" in cell.out
    assert "[0, 0] [0, 1]" in cell.out
    assert "m[0, 0:3] = 7" in cell.out


@pytest.mark.parametrize(
    ("interactivity", "body", "shown"),
    [
        ("last_expr", "1\n2", "Out[3]: 2\n"),
        ("last_expr", "1\n2;", ""),
        ("last_expr", "1\ny = 2", ""),
        ("all", "1\n2", "Out[3]: 1\nOut[3]: 2\n"),
        ("none", "1\n2", ""),
        ("last_expr_or_assign", "1\ny = 2", "Out[3]: 2\n"),
        ("last_expr_or_assign", "y: int = 3", "Out[3]: 3\n"),
        ("last", "1\nif True:\n    4", "Out[3]: 4\n"),
    ],
)
def test_cell_shows_what_a_plain_cell_shows(
    in_shell: InShell, interactivity: str, body: str, shown: str
) -> None:
    _, cell, plain = in_shell(
        f"shell.ast_node_interactivity = {interactivity!r}", f"%%watch a[3]\n{body}", body
    )
    assert cell.out.startswith(f"{shown}a[3]: no hits"), cell.out
    assert plain.out == shown.replace("Out[3]", "Out[4]")


def test_exception_shows_the_cell_once(in_shell: InShell) -> None:
    cell, after = in_shell(
        "%%watch a[3]\n\na[3] = 5\ndef f():\n    return 1 / 0\nf()",
        "import sys\ntrace = sys.last_value.__traceback__\nwhile trace.tb_next: trace = trace.tb_next\n"
        f"(trace.tb_lineno, shell.compile._filename_map[trace.tb_frame.f_code.co_filename], *{NOTHING})",
    )
    assert cell.error == "ZeroDivisionError"
    assert "In [2]:3  1" in cell.out
    assert cell.out.count("Traceback (most recent call last)") == 1
    assert cell.out.count("ZeroDivisionError: division by zero") == 1
    trace = cell.out.partition("Traceback")[2]
    assert trace.index("Cell In[2], line 6") < trace.index("Cell In[2], line 5, in f()")
    assert "----> 5     return 1 / 0" in trace
    assert "run_cell_magic" not in trace
    assert "magics.py" not in trace
    assert after.value == "(5, 2, 0, [])"


def test_syntax_error_has_the_line_of_the_cell(in_shell: InShell) -> None:
    cell, after = in_shell("%%watch a[3]\na[3] = 1\nfoo bar", NOTHING)
    assert cell.error == "SyntaxError"
    assert "Cell In[2], line 3\n    foo bar" in cell.out
    assert after.value == "(0, [])"


def test_interrupt_and_exit_disarm(in_shell: InShell) -> None:
    done = in_shell(
        "import os, signal, time",
        "%%watch a[3]\n\na[3] = 1\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)",
        NOTHING,
        "%%watch a[3]\na[3] = 2\nraise SystemExit(3)",
        f"(len(hwwatch.timeline()), *{NOTHING})",
    )
    assert done[1].error == "KeyboardInterrupt"
    assert "In [3]:3" in done[1].out
    assert done[2].value == "(0, [])"
    assert done[3].error == "SystemExit"
    assert done[4].value == "(2, 0, [])"


def test_exception_that_was_caught_shows_where_it_is_raised_again(in_shell: InShell) -> None:
    *_, again, asked = in_shell(
        "try:\n    get_ipython().run_cell_magic('watch', 'a[3]', '1 / 0')\n"
        "except ArithmeticError as error:\n    kept = error",
        "print('between')\nraise kept",
        "%tb",
    )
    for cell in (again, asked):
        assert "Cell In[3], line 2" in cell.out
        assert "ZeroDivisionError: division by zero" in cell.out


def test_events_come_once(in_shell: InShell) -> None:
    *_, counts = in_shell(
        "seen = []\nshell.events.register('pre_run_cell', lambda info: seen.append('pre'))\n"
        "shell.events.register('post_run_cell', lambda result: seen.append('post'))",
        "seen.clear()",
        "%%watch a[3]\na[3] = 1",
        "seen[:]",
    )
    assert counts.value == "['post', 'pre', 'post', 'pre']"


def test_magics_and_transformers_work_inside(in_shell: InShell) -> None:
    done = in_shell(
        "%%watch a[3]\n%time a[3] = 2\nhere = !echo hello\nhere[0]",
        "%%watch a[3]\n%%capture got\na[3] = 3\nprint('captured')",
        "got.stdout",
        "%%time\n%%watch a[3]\na[3] = 4",
        "import ast\nclass Ten(ast.NodeTransformer):\n    def visit_Constant(self, node):\n"
        "        return ast.copy_location(ast.Constant(10), node) if node.value == 9 else node\n"
        "shell.ast_transformers.append(Ten())",
        "%%watch a[3]\na[3] = 9",
        "a[3]",
        "%%watch a[3]\nfrom __future__ import annotations\ndef f(x: nope): a[3] = x\nf(6)",
    )
    assert [cell.error for cell in done] == [""] * len(done), done
    assert done[0].value == "['hello'][0]" or done[0].value == "'hello'"
    assert "1 hit" in done[0].out
    assert done[2].value == "'captured\\n'"
    assert "1 hit" in done[3].out
    assert "→ 10.0" in done[5].out
    assert done[6].value == "np.float64(10.0)"
    assert "In [9]:3" in done[7].out


def test_zero_hits_are_explained(in_shell: InShell) -> None:
    done = in_shell(
        "%%watch a[3]\na[4] = 1",
        "%%watch a[3]\nhwwatch.unwatch()\na[3] = 1",
        "import signal, threading\ndef blocked():\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTRAP})\n"
        "    for i in range(5): a[3] = i\n",
        "%%watch a[3]\nt = threading.Thread(target=blocked)\nt.start(); t.join()",
        NOTHING,
    )
    assert "no hits, and no accesses: the CPU counted none in all" in done[0].out
    assert "was disarmed before the end" in done[1].out
    assert "no accesses" not in done[3].out
    assert "counted and not recorded" in done[3].out
    assert done[4].value == "(0, [])"


def test_cell_may_unwatch_or_unload_itself(in_shell: InShell) -> None:
    done = in_shell(
        "%watch a[5]",
        "%%watch a[3]\na[3] = 1\nhwwatch.unwatch('a[3]')",
        "[w.name for w in hwwatch.watches()]",
        "%%watch a[3]\na[3] = 1\n%unload_ext hwwatch",
        "(perf_descriptors(), catches(5))",
    )
    assert [cell.error for cell in done] == [""] * 5, done
    assert "1 hit" in done[1].out
    assert done[2].value == "['a[5]']"
    assert done[4].value == "([], False)"
