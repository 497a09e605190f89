"""The magics in a real IPython shell; the cell In [1] is that of the fixture."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.hardware

InShell = Callable[..., list[Any]]

BUG = "def bug():\n    for i in range(3):\n        a[3] = i\nbug()"
ROW = "t = %watch_timeline\n(len(t), int(t.line[0]), int(t.cell[0]), t.function[0], float(t.new[2]))"
NOTHING = "(len(hwwatch.watches()), perf_descriptors())"


def test_row_has_line_and_cell(in_shell: InShell) -> None:
    watch, bug, row = in_shell("%watch a[3]", BUG, ROW)
    assert watch.value.startswith("<Watch 1 'a[3]' w 8 bytes at 0x")
    assert (watch.out.count("<Watch"), bug.out) == (1, "")
    assert ast.literal_eval(row.value) == (3, 3, 3, "bug", 2.0)


def test_lines_written_one_to_a_cell_share_no_number(in_shell: InShell) -> None:
    *_, cells = in_shell(
        "%watch a[3]", "a[3] = 1", "a[3] = 1", "a[3] = 2", "hwwatch.timeline().cell.tolist()"
    )
    assert cells.value == "[3, 4, 5]"


def test_several_expressions_and_the_list(in_shell: InShell) -> None:
    both, bare, hits, listed = in_shell(
        "%watch a[3] m[1, 2] -m rw",
        "%watch",
        "m[1, 2] = 4; a[3] = m[1, 2]",
        "t = hwwatch.timeline(); list(zip(t.watch, t.access))",
    )
    assert both.value.count("<Watch") == 2
    assert bare.value.count("<Watch") == 2
    assert "'m[1, 2]' rw 8 bytes" in bare.value
    assert hits.error == ""
    assert ast.literal_eval(listed.value) == [("m[1, 2]", "write"), ("m[1, 2]", "read"), ("a[3]", "write")]


def test_expressions_are_taken_as_typed(in_shell: InShell) -> None:
    done = in_shell(
        "d = {'{i} j': np.zeros(2)}\n%watch d['{i} j'][1] -n odd  # the odd one",
        "get_ipython().run_line_magic('watch', f'{a.ctypes.data + 8:#x}:8 {m.ctypes.data}:4')",
        "%watch 'libm.so.6!cos' -m x",
        "d['{i} j'][1] = 2; a[1] = 3",
        "(list(hwwatch.timeline().watch), [w.nbytes for w in hwwatch.watches()])",
    )
    assert [cell.error for cell in done] == [""] * 5, done
    names, sizes = ast.literal_eval(done[-1].value)
    assert names[0] == "odd"
    assert names[1].endswith(":8")
    assert sizes == [8, 8, 4, 1]


def test_unwatch(in_shell: InShell) -> None:
    done = in_shell(
        "%watch a[3] a[4] m[1, 2] m[0,0]",
        "a[3] = 1",
        "%unwatch 2 a[3]",
        "%unwatch m[1,2]",
        "[w.name for w in hwwatch.watches()]",
        "%unwatch nope",
        "%unwatch",
        "%unwatch --all",
        f"len(hwwatch.timeline('a[3]')), *{NOTHING}",
    )
    assert done[2].out.splitlines() == [
        "unwatched 2 (a[4]); it had no hits",
        "unwatched 1 (a[3]); its hit stays in the timeline",
    ]
    assert done[4].value == "['m[0, 0]']"
    assert done[5].err.startswith("UsageError: there is no watch 'nope'; there are: 4 (m[0, 0])")
    assert "unwatched 4" in done[6].out
    assert done[7].out == "nothing is watched\n"
    assert done[8].value == "(1, 0, [])"


def test_names_with_blanks_are_quoted(in_shell: InShell) -> None:
    """As what says that no register is free suggests, and completion offers."""
    done = in_shell(
        "%watch a[0] -n 'left eye'",
        "hwwatch.watch(a[1:2], name='a[3] (2)'), hwwatch.watch(a[2:3], name=\"it's\")",
        "%watch a[4] -n 'left foot'",
        "%watch a[5]",
        "[complete('%unwatch ' + text)['plain'] for text in ('', 'le', \"'le\", '\"left ', '\"a')]",
        '%unwatch \'left eye\' "a[3] (2)" "it\'s"',
        "%watch_timeline 'left foot'",
    )
    assert "Free one: `%unwatch 'left eye'`." in done[3].err
    every = ["'left eye'", "'a[3] (2)'", '"it\'s"', "'left foot'"]
    assert ast.literal_eval(done[4].value) == [
        [*every, "1", "2", "3", "4"],
        ["'left eye'", "'left foot'"],
        ["'left eye'", "'left foot'"],
        ['"left eye"', '"left foot"'],
        ['"a[3] (2)"'],
    ]
    assert [line.split(";")[0] for line in done[5].out.splitlines()] == [
        "unwatched 1 (left eye)",
        "unwatched 2 (a[3] (2))",
        "unwatched 3 (it's)",
    ]
    assert done[6].error == ""


def test_watching_again_replaces(in_shell: InShell) -> None:
    *_, last = in_shell(
        "%watch a[3]",
        "a[3] = 1",
        "a = np.ones(8)\n%watch a[3]",
        "a[3] = 2",
        "([w.id for w in hwwatch.watches()], list(hwwatch.timeline('a[3]').new))",
    )
    assert last.value == "([2], [1.0, 2.0])"


def test_a_failed_command_arms_nothing_and_keeps_what_was(in_shell: InShell) -> None:
    done = in_shell(
        "%watch a[0] zz[1]",
        NOTHING,
        "%watch a[3] a[5] m[0, 0]",
        "%watch a[3] m[1, 1] m[2, 2]",  # a[3] would be replaced, and one register is missing
        "[(w.name, w.armed) for w in hwwatch.watches()]",
        "a[3] = 5; len(hwwatch.timeline('a[3]'))",
    )
    assert done[0].error == "UsageError"
    assert done[1].value == "(0, [])"
    assert done[3].err.startswith("UsageError: cannot watch m[2, 2]")
    assert done[4].value == "[('a[3]', True), ('a[5]', True), ('m[0, 0]', True)]"
    assert done[5].value == "1"


USER_ERRORS = [
    ("%watch zz[3]", "no name `zz`"),
    ("%watch aa[3]", "there is no name `aa`"),
    ("%watch a[3", "never closed"),
    ("%watch a[33]", "33"),
    ("%watch a", "`a[3]`"),
    ("%watch a[1:8]", "32"),
    ("%watch a[0] + 1", "cannot read `+`"),
    ("%watch 5", "`5:8`"),
    ("%watch a[0] -m q", "invalid choice: 'q'"),
    ("%watch a[0] -q", "unrecognized arguments: -q. See `%watch?`"),
    ("%watch a[0] -p wait", "policy 'wait' is unknown"),
    ("%watch a[0] -p return=x", "`return=42`"),
    ("%watch a[0] -w new < 0", 'quotes, as in `-w "new < 0"`'),
    ("%watch a[0] -w 'import os'", "import os"),
    ("%watch a[0] a[1] -n x", "-n x names one watch"),
    ("%watch x", "immutable"),
    ("%watch [1, 2]", "[1, 2]"),
    ("%watch boom()[0]", "line one line two"),
    ("%%watch\npass", "%%watch needs something to watch"),
    ("%%watch zz[3]\na[3] = 9", "no name `zz`"),
    ("%%watch a[3]\nawait x", "awaits at its top level"),
    ("%%watch a[3]\nasync with x: pass", "awaits at its top level"),
    ("%unwatch 17", "there is no watch"),
    ("%unwatch a[3] --all", "exclude each other"),
    ("%watch_timeline nope", "there is no watch 'nope'"),
    ("%watch_timeline -o 3x", "a variable's name"),
    ("%watch_coverage a", "takes no arguments"),
    ("%watch_doctor a", "takes no arguments"),
    ("%watch -w 'new < 0'", "needs something to watch, such as `%watch a[3]`"),
    ("%watch_timeline -o class", "a variable's name is needed"),
    ("%watch_export", "required: FILE. See `%watch_export?`"),
    ("%watch a[0] -l 18446744073709551616", "2**64"),
]


def test_user_errors_are_one_line_each_and_change_nothing(in_shell: InShell) -> None:
    cells = [
        "x = 5\ndef boom():\n    raise ValueError('line one\\nline two')",
        "%watch a[3]",
        "a[3] = 1",
        *(cell for cell, _ in USER_ERRORS),
        "([w.name for w in hwwatch.watches() if w.armed], len(hwwatch.timeline()), a[3] == 1)",
    ]
    done = in_shell(*cells)
    for (cell, words), got in zip(USER_ERRORS, done[3:-1], strict=True):
        assert got.error == "UsageError", (cell, got)
        assert got.out == "", (cell, got)
        assert got.err.startswith("UsageError: "), (cell, got)
        assert got.err.count("\n") == 1, (cell, got)
        assert words in got.err, (cell, got)
    assert done[-1].value == "(['a[3]'], 1, np.True_)"


def test_policies_conditions_and_limits(in_shell: InShell) -> None:
    done = in_shell(
        "import ctypes\nlibc = ctypes.CDLL(None)\n%watch libc.getppid -m x -p return=42",
        "libc.getppid()",
        "%watch a[3] -w 'new < 0' -n negative",
        "%watch a[5] --limit 2",
        "for i in (1, -2, 3):\n    a[3] = i\n    a[5] = i",
        "t = hwwatch.timeline('negative', 'a[5]'); (list(map(int, t.new)), hwwatch.watches()[-1].armed)",
        "%%watch a[3] -p skip\na[3] = 99\na[3]",
        "%%watch a[4] -w 'new < 0'\na[4] = 1",
    )
    assert [cell.error for cell in done] == [""] * len(done), done
    assert done[1].value == "42"
    assert done[5].value == "([1, -2, -2], False)"
    assert done[6].value == "np.float64(3.0)"
    assert "skipped" in done[6].out
    assert "no hits: all 1 accesses that the CPU counted are left out by mode or condition" in done[7].out


def test_timeline_magic(in_shell: InShell) -> None:
    done = in_shell(
        "%watch a[3] a[4]",
        "def f(): a[3] = 1\ndef g(): f()\ng(); a[4] = 2",
        "%unwatch",
        "%watch_timeline a[4] -o hits",
        "%watch_timeline 1 --stack -o deep",
        "(list(hits.watch), list(deep.watch), [entry.split()[0] for entry in deep['stack'][0][:3]])",
        "len(_ if (_ := get_ipython().run_line_magic('watch_timeline', '')) is not None else [])",
    )
    assert (done[3].value, done[3].out) == ("None", "")
    assert ast.literal_eval(done[5].value) == (["a[4]"], ["a[3]"], ["f", "g", "<module>"])
    assert done[6].value == "2"


@pytest.mark.slow
def test_coverage_and_doctor(in_shell: InShell) -> None:
    none, _, coverage, doctor = in_shell("%watch_coverage", "%watch a[3]", "%watch_coverage", "%watch_doctor")
    assert none.value.startswith("nothing is watched")
    assert coverage.value.startswith("a[3]: armed (perf")
    assert "[ok] watch writes: a test access trapped" in doctor.value


def test_help(in_shell: InShell) -> None:
    (got,) = in_shell("%watch?")
    for words in ("%watch a[3]", "%%watch m[1, 2] s.count -m rw", "--mode", "ADDRESS:NBYTES", "%unwatch"):
        assert words in got.out, got.out


# Completion


@pytest.mark.slow
def test_completion(in_shell: InShell) -> None:
    setup = (
        "import ctypes\nclass S(ctypes.Structure):\n"
        "    _fields_ = [('size', ctypes.c_int), ('side', ctypes.c_int)]\n"
        "sss = S()\nssnumber = 3\n"
        "rec = np.zeros(2, [('my field', 'f8'), ('other', 'f8')])\n%watch a[3] m[1, 2]"
    )
    lines = [
        "%watch s",
        "%watch a[3] ss",
        "%%watch sss.si",
        "%watch a[3] --m",
        "%watch a[3] -m ",
        "%watch a[3] --mode r",
        "%watch a[3] -p ret",
        "%unwatch ",
        "%unwatch m[1, 2] a",
        "%unwatch --",
        "%watch_timeline --s",
        "%watch rec['my",
        "%watch a[3] m[0, ssn",
        "x = 1; ssn",
    ]
    done = in_shell(setup, f"[complete(line) for line in {lines!r}]")
    found = dict(zip(lines, ast.literal_eval(done[1].value), strict=True))
    for way in ("plain", "jedi"):
        got = {line: answers[way] for line, answers in found.items()}
        assert got["%watch s"][0] == "sss", way  # what can be watched comes first
        assert "ssnumber" in got["%watch s"]
        assert got["%watch a[3] ss"] == ["sss", "ssnumber"]
        assert [text.split(".")[-1] for text in got["%%watch sss.si"]] == ["side", "size"]
        assert got["%watch a[3] --m"] == ["--mode"]
        assert got["%watch a[3] -m "] == ["w", "rw", "r", "x"]
        assert got["%watch a[3] --mode r"] == ["rw", "r"]
        assert got["%watch a[3] -p ret"] == ["return="]
        assert got["%unwatch "] == ["a[3]", "m[1, 2]", "1", "2"]
        assert got["%unwatch m[1, 2] a"] == ["a[3]"]
        assert got["%unwatch --"] == ["--all"]
        assert got["%watch_timeline --s"] == ["--stack"]
        assert any("my field" in text for text in got["%watch rec['my"]), (way, got["%watch rec['my"])
        assert "ssnumber" in got["%watch a[3] m[0, ssn"]
        assert "ssnumber" in got["x = 1; ssn"]


# Loading and unloading

LEFT = """\
names = ("watch", "unwatch", "watch_timeline", "watch_coverage", "watch_doctor")
magics = [name for name in names if shell.find_line_magic(name) or shell.find_cell_magic(name)]
matchers = shell.Completer.custom_matchers
(perf_descriptors(), catches(5), threads() == before, magics, matchers, events() == seen)
"""


def test_unload_leaves_nothing(in_shell: InShell) -> None:
    done = in_shell(
        "import pandas\n%unload_ext hwwatch",
        "def events(): return [len(calls) for calls in shell.events.callbacks.values()]\n"
        "hwwatch.timeline(); before = threads(); seen = events()",
        LEFT,
        "%load_ext hwwatch\n%watch a[3] m[0, 0]",
        "a[3] = 1\n(len(perf_descriptors()) > 0, catches(5), len(hwwatch.timeline()))",
        "old = hwwatch.watches()\n%unload_ext hwwatch",
        LEFT,
        "([w.armed for w in old], len(hwwatch.watches()), len(hwwatch.timeline()))",
        "%watch a[3]",
    )
    assert done[2].value == "([], False, True, [], [], True)"
    assert done[4].value == "(True, True, 1)"
    assert done[6].value == "([], False, True, [], [], True)"
    assert done[7].value == "([False, False], 0, 0)"
    assert done[8].error == "UsageError"


def test_reload(in_shell: InShell) -> None:
    done = in_shell(
        "%watch a[3]",
        "%reload_ext hwwatch",
        f"(len(shell.Completer.custom_matchers), *{NOTHING})",
        "%watch a[3]",
        "a[3] = 1; len(hwwatch.timeline())",
        "%load_ext hwwatch",
        "len(shell.Completer.custom_matchers), len(hwwatch.watches())",
    )
    assert [cell.error for cell in done] == [""] * len(done), done
    assert done[2].value == "(1, 0, [])"
    assert done[4].value == "1"
    assert done[6].value == "(1, 1)"


def test_own_sessions_survive_unloading(in_shell: InShell) -> None:
    *_, last = in_shell(
        "mine = hwwatch.Session('mine')\nw = mine.watch(a[3:4])\n%watch a[5]",
        "%unload_ext hwwatch",
        "a[3] = 1; a[5] = 1; (w.armed, w.hits, catches(5))",
    )
    assert last.value == "(True, 1, True)"


@pytest.mark.slow
def test_plot_in_a_shell(in_shell: InShell) -> None:
    done = in_shell(
        "import matplotlib; matplotlib.use('agg')\nimport matplotlib.pyplot as plt\n%watch a[3] m[0, 0]",
        "for i in range(5): a[3] = i; m[0, 0] = -i",
        "ax = %watch_plot a[3] -x seq",
        "(ax.get_xlabel(), len(ax.figure.axes), ax.get_title(loc='left'), plt.get_fignums())",
        "[t.get_xlabel().split(' (')[0] for t in (%watch_plot).figure.axes][1:]",
        "bars = %watch_plot --kind by_line",
        "(bars.get_title(loc='left'), [round(float(bar.get_width())) for bar in bars.patches])",
        "%watch_plot z",
        "%watch_plot -x nothing",
        "%watch_plot --kind pie",
    )
    assert [cell.error for cell in done[:4]] == [""] * 4, done
    assert ast.literal_eval(done[3].value) == ("number of the hit (seq)", 1, "a[3] · [3]: 5 hits", [1])
    assert "hits by line" in done[6].value
    assert "there is no watch 'z'" in done[7].err
    assert "invalid choice: 'nothing'" in done[8].err
    assert "invalid choice: 'pie'" in done[9].err
    assert all(cell.error == "UsageError" and cell.err.count("\n") == 1 for cell in done[7:])


@pytest.mark.slow
def test_export(in_shell: InShell, tmp_path: Path) -> None:
    done = in_shell(
        f"%cd -q {tmp_path}",
        "%watch a[3] m[0, 0]",
        BUG,
        "%watch_export hits.csv",
        "%watch_export hits.csv",
        "%watch_export hits.csv a[3] --overwrite --stack",
        "%watch_export 'my report.html' m[0,0]",
        "%watch_export hits.xls",
        "%watch_export",
        "(complete('%watch_export h')['plain'], complete('%watch_export hits.csv --o')['plain'])",
        "t = hwwatch.load('hits.csv')\n(len(t), int(t.line[0]), int(t.cell[0]), t['stack'][0][0].split()[0])",
    )
    assert done[3].out == f"3 hits written to {tmp_path}/hits.csv\n"
    assert done[4].err.startswith("UsageError: ")
    assert "hits.csv exists." in done[4].err
    assert "--overwrite" in done[4].err
    assert done[5].out == done[3].out
    assert done[6].out == f"0 hits written to {tmp_path}/my report.html\n"
    assert "must end in .csv, " in done[7].err
    assert "the following arguments are required: FILE" in done[8].err
    names, options = ast.literal_eval(done[9].value)
    assert names[:2] == ["h.csv", "h.parquet"]
    assert options == ["--overwrite"]
    assert ast.literal_eval(done[10].value) == (3, 3, 4, "bug")
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["hits.csv", "my report.html"]
