"""The command `hwwatch` as a user calls it, beside plain `python`."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hwwatch as package
from hwwatch.exports import SUFFIXES

pytestmark = [pytest.mark.hardware, pytest.mark.slow]

Done = subprocess.CompletedProcess[str]


def hwwatch(*words: str, cwd: Path | None = None) -> Done:
    return python("-m", "hwwatch", *words, cwd=cwd)


def python(*words: str, cwd: Path | None = None) -> Done:
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=60)


def script(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(text)
    return path


BUG = """\
import sys
import numpy as np

a = None
a = np.zeros(8)

def bug(n):
    for i in range(n):
        a[i] = i + 1

if __name__ == "__main__":
    bug(5)
    a[3] = 7
"""


def test_lines_that_wrote(tmp_path: Path) -> None:
    script(tmp_path, BUG)
    done = hwwatch("run", "script.py", "--watch", "a[3]", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == "a[3]: 2 hits by 2 lines"
    assert [line.split()[:2] for line in lines[2:4]] == [["script.py:9", "1"], ["script.py:13", "1"]]
    assert "0.0 → 4.0" in lines[2]
    assert "a[i] = i + 1" in lines[2]


@pytest.mark.parametrize(
    "words",
    [
        ("script.py", "x", "--watch", "a[3]", "a[4]"),
        ("--watch", "a[3]", "--watch=a[4]", "script.py", "x"),
        ("--watch", "a[3] a[4]", "--", "script.py", "x"),
    ],
)
def test_where_options_may_stand(tmp_path: Path, words: tuple[str, ...]) -> None:
    script(tmp_path, BUG + "print(sys.argv)\n")
    done = hwwatch("run", *words, cwd=tmp_path)
    assert done.stdout == "['script.py', 'x']\n"
    assert done.stderr.startswith("a[3], a[4]: 3 hits by 2 lines")


AROUND = """\
import os, pickle, sys
class Thing: pass
print(__name__, __file__, __spec__, __package__, __doc__, sys.argv, sys.path[0])
print(sorted(name for name in globals() if not name.startswith("__cached")))
print(pickle.loads(pickle.dumps(Thing())).__class__ is Thing, sys.modules["__main__"].__dict__ is globals())
"""


def test_the_script_sees_what_it_sees_under_python(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    (tmp_path / "link.py").symlink_to(script(folder, AROUND))
    for name in ("real/script.py", "link.py"):
        plain = python(name, "-x", "y", cwd=tmp_path)
        done = hwwatch("run", name, "-x", "y", "--watch", "nothing", cwd=tmp_path)
        assert plain.returncode == 0, plain.stderr
        assert done.stdout == plain.stdout


@pytest.mark.parametrize(
    "ending",
    [
        "pass",
        "sys.exit()",
        "sys.exit(7)",
        "sys.exit('sorry')",
        "1 / 0",
        "def f():\n    raise KeyError(1)\ntry:\n    f()\nexcept KeyError:\n    raise ValueError(2)",
        "raise KeyboardInterrupt",
        "sys.excepthook = lambda *_: print('mine', file=sys.stderr)\n1 / 0",
        "import atexit\natexit.register(print, 'last')",
        "import threading as t, time\nt.Thread(target=lambda: time.sleep(0.3) or print(4)).start()\n1 / 0",
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "import os\nos._exit(4)",
        "import os, signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "os.kill(os.getpid(), signal.SIGTERM)",
        "import os, signal, time\nchild = os.fork()\nif child == 0:\n    time.sleep(50)\n    os._exit(0)\n"
        "os.kill(child, signal.SIGTERM)\nprint(os.waitpid(child, 0)[1])",
    ],
)
def test_endings_as_under_python(tmp_path: Path, ending: str) -> None:
    script(tmp_path, f"import sys\nprint('begin')\n{ending}\n")
    plain = python("script.py", cwd=tmp_path)
    done = hwwatch("run", "script.py", "--watch", "nothing[0]", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (plain.returncode, plain.stdout)
    ours = [line for line in done.stderr.splitlines(keepends=True) if not line.startswith("hwwatch: ")]
    assert "".join(ours) == plain.stderr


def test_hits_are_shown_whatever_the_ending(tmp_path: Path) -> None:
    terminate = "import os; os.kill(os.getpid(), 15); print('never')"
    for ending, status in (
        ("sys.exit(7)", 7),
        ("1 / 0", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        (terminate, -signal.SIGTERM),
    ):
        script(tmp_path, f"{BUG}    {ending}\n")
        done = hwwatch("run", "script.py", "--watch", "a[3]", cwd=tmp_path)
        assert done.returncode == status
        assert "a[3]: 2 hits by 2 lines" in done.stderr
        assert "cli.py" not in done.stderr


TEE = "class Tee:\n    def __init__(self, file):\n        self.write = file.write\n"


@pytest.mark.parametrize(
    "ending",
    [
        "sys.stdout.close()",
        "sys.stderr.close()",
        "sys.stdout = open('log', 'w')\nsys.stdout.close()\nsys.exit(3)",
        "del sys.stdout, sys.__stdout__",
        "sys.stderr = sys.__stderr__ = None",
        "import io\nsys.stderr = io.TextIOWrapper(sys.stderr.detach(), encoding='utf-8')",
        f"{TEE}sys.stdout = Tee(sys.stdout)",
        f"{TEE}sys.stderr = Tee(sys.stderr)",
        f"{TEE}sys.stderr = Tee(sys.stderr)\n1 / 0",
        "import os\nos.close(1)",
    ],
)
def test_whatever_the_script_makes_of_its_streams(tmp_path: Path, ending: str) -> None:
    script(tmp_path, f"{BUG}\nprint('printed')\n{ending}\n")
    plain = python("script.py", cwd=tmp_path)
    done = hwwatch("run", "script.py", "--watch", "a[3]", "--out", "hits.csv", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (plain.returncode, plain.stdout)
    assert "a[3]: 2 hits by 2 lines" in done.stderr
    assert "cli.py" not in done.stderr
    assert len(package.load(tmp_path / "hits.csv")) == 2


@pytest.mark.parametrize(
    ("closing", "ending", "told"),
    [
        (">&-", "", True),
        ("2>&-", "", False),
        ("2>&-", "1 / 0", False),
        (">&- 2>&-", "", False),
        ("", "import os; os.close(2); sys.stderr.close(); f = open('other', 'w')", False),
    ],
)
def test_without_a_stream(tmp_path: Path, closing: str, ending: str, *, told: bool) -> None:
    script(tmp_path, f"{BUG}\nprint('printed')\n{ending}\n")
    words = "script.py --watch 'a[3]' --out hits.csv"
    shell = f"cd {tmp_path}; {sys.executable} -m hwwatch run {words} {closing}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    plain = subprocess.run(
        ["bash", "-c", f"cd {tmp_path}; {sys.executable} script.py {closing}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (plain.returncode, plain.stdout)
    assert ("a[3]: 2 hits by 2 lines" in done.stderr) is told
    assert len(package.load(tmp_path / "hits.csv")) == 2
    assert not (tmp_path / "other").exists() or (tmp_path / "other").read_text() == ""


def test_where_the_current_folder_goes(tmp_path: Path) -> None:
    gone = "import os, tempfile\n    with tempfile.TemporaryDirectory() as d:\n        os.chdir(d)\n"
    script(tmp_path, f"{BUG}    {gone}")
    for name in ("hits.html", "hits.csv"):
        done = hwwatch("run", "script.py", "--watch", "a[3]", "--out", name, cwd=tmp_path)
        assert done.returncode == 0
        assert "a[3]: 2 hits by 2 lines" in done.stderr
        assert done.stderr.splitlines()[-1] == f"2 hits written to {tmp_path}/{name}"


@pytest.mark.parametrize("text", ["foo bar\n", "x = 1\n  y = 2\n", "return 3\n"])
def test_syntax_errors_as_under_python(tmp_path: Path, text: str) -> None:
    script(tmp_path, text)
    plain = python("script.py", cwd=tmp_path)
    done = hwwatch("run", "script.py", "--watch", "a", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (plain.returncode, plain.stderr)


def test_missing_script_as_under_python(tmp_path: Path) -> None:
    plain = python("nope.py", cwd=tmp_path)
    done = hwwatch("run", "nope.py", "--watch", "a", cwd=tmp_path)
    assert done.returncode == plain.returncode == 2
    assert done.stderr.partition(": ")[2] == plain.stderr.partition(": ")[2]


def test_names_that_come_late_or_never(tmp_path: Path) -> None:
    script(
        tmp_path,
        "import ctypes\nimport numpy as np\n"
        "class S(ctypes.Structure):\n    _fields_ = [('x', ctypes.c_int)]\n"
        "d = {}\n"
        "for i in range(100):\n"
        "    if i == 50:\n"
        "        d['k'] = np.zeros(2)\n"
        "        d['k'][1] = 50\n"
        "sum = S()\n"
        "sum.x = 3\n"
        "def late():\n    global z\n    z = np.zeros(1)\n"
        "late()\n"
        "z[0] = 4\n"
        "number = 5\n",
    )
    wanted = ("d['k'][1]", "sum.x", "z[0]", "number", "nope[0]")
    done = hwwatch("run", "script.py", "--watch", *wanted, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith("d['k'][1], sum.x, z[0]: 3 hits by 3 lines")
    for line in ("script.py:9 ", "script.py:11 ", "script.py:16 "):
        assert line in done.stderr
    notes = [line for line in done.stderr.splitlines() if line.startswith("hwwatch: ")]
    assert "`number` was never watched: cannot watch `number`: 5 is an int" in notes[0]
    assert "`nope[0]` was never watched: its names never appeared" in notes[1]
    assert len(notes) == 2


@pytest.mark.parametrize(
    ("text", "expression", "since"),
    [
        ("a = np.zeros(8); a[3] = 1\na[3] = 2", "a[3]", 2),
        ("if (a := np.zeros(8)) is not None: a[3] = 1\na[3] = 2", "a[3]", 2),
        ("def main():\n    global a\n    a = np.zeros(8)\n    a[3] = 1\n    a[3] = 2\nmain()", "a[3]", 5),
        ("def main():\n    global a\n    a = np.zeros(8); a[3] = 1\n    a[3] = 2\nmain()", "a[3]", 4),
        (
            "def make():\n    global a\n    a = np.zeros(8)\n"
            "def main():\n    make()\n    a[3] = 1\n    a[3] = 2\nmain()",
            "a[3]",
            4,
        ),
        (
            "class App:\n    def run(self):\n        self.table = np.zeros(8)\n        for i in 1, 2:\n"
            "            self.table[3] = i\napp = App()\napp.run()",
            "app.table[3]",
            5,
        ),
        (
            "def steps():\n    global a\n    for i in range(3):\n        yield i\n        a = np.zeros(8)\n"
            "        a[3] = 1; a[3] = 2\n        return\nprint(list(steps()))",
            "a[3]",
            7,
        ),
    ],
)
def test_accesses_right_after_the_binding(tmp_path: Path, text: str, expression: str, since: int) -> None:
    script(tmp_path, f"import numpy as np\n{text}\n")
    done = hwwatch("run", "script.py", "--watch", expression, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith(f"{expression}: 2 hits by ")
    last = f"{expression}: watched since line {since}; earlier accesses were not seen"
    assert done.stderr.splitlines()[-1] == last


def test_accesses_before_the_watch_are_not_denied(tmp_path: Path) -> None:
    script(
        tmp_path,
        "import numpy as np\n"
        "def main():\n    here = globals()\n    here['a'] = np.zeros(8)\n    here['a'][3] = 1\n"
        "main()\n",
    )
    done = hwwatch("run", "script.py", "--watch", "a[3]", cwd=tmp_path)
    last = "a[3]: watched only when the script had ended; earlier accesses were not seen"
    assert done.stderr.splitlines()[-1] == last
    (tmp_path / "script.py").write_text((tmp_path / "script.py").read_text() + "a[2] = 4\nb = a\n")
    done = hwwatch("run", "script.py", "--watch", "a[3]", "b[3]", "a[2]", cwd=tmp_path)
    notes = [line for line in done.stderr.splitlines() if "earlier accesses" in line]
    assert notes[0] == "a[3], a[2]: watched since line 7; earlier accesses were not seen"
    assert len(notes) == 2


def test_a_function_is_not_traced_once_all_are_armed(tmp_path: Path) -> None:
    script(
        tmp_path,
        "import sys\nimport numpy as np\n"
        "def traces(frame):\n"
        "    tools = getattr(sys, 'monitoring', None)\n"
        "    yield sys.gettrace()\n"
        "    yield any(map(tools.get_tool, range(6))) if tools else None\n"
        "    while frame:\n"
        "        if frame.f_code.co_filename == __file__:\n"
        "            yield frame.f_trace or frame.f_trace_opcodes\n"
        "        frame = frame.f_back\n"
        "def main():\n    global a\n"
        "    a = np.zeros(2); a[0] = 1; print(any(traces(sys._getframe())))\n"
        "main()\n",
    )
    assert hwwatch("run", "script.py", "--watch", "a[0]", cwd=tmp_path).stdout == "False\n"


def test_nothing_is_traced_once_all_are_armed(tmp_path: Path) -> None:
    script(
        tmp_path,
        "import sys\nimport numpy as np\n"
        "def tools():\n"
        "    tools = getattr(sys, 'monitoring', None)\n"
        "    return sys.gettrace() is not None or bool(tools and any(map(tools.get_tool, range(6))))\n"
        "before = tools()\n"
        "a = np.zeros(2)\n"
        "print(before, tools())\n",
    )
    assert hwwatch("run", "script.py", "--watch", "a[0]", cwd=tmp_path).stdout == "True False\n"


def test_threads_and_children_of_the_script(tmp_path: Path) -> None:
    script(
        tmp_path,
        "import os, threading, time\nimport numpy as np\na = np.zeros(4)\n"
        "def late():\n    time.sleep(0.3)\n    a[1] = 9\n"
        "threading.Thread(target=late).start()\n"
        "if os.fork() == 0:\n    a[1] = 2\n    raise SystemExit\n"
        "os.wait()\n",
    )
    done = hwwatch("run", "script.py", "--watch", "a[1]", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("a[1]: 2 hits by 2 lines") == 1
    assert "script.py:6 " in done.stderr
    assert "script.py:9 " in done.stderr


def test_zero_hits_are_explained(tmp_path: Path) -> None:
    script(tmp_path, "import numpy as np\na = np.zeros(2)\na[0] = 1\n")
    done = hwwatch("run", "script.py", "--watch", "a[1]", cwd=tmp_path)
    assert done.stderr.startswith("a[1]: no hits, and no accesses: the CPU counted none in all ")


def test_timeline_file(tmp_path: Path) -> None:
    script(tmp_path, f"import os\nos.chdir('/')\n{BUG}")
    done = hwwatch("run", "script.py", "--watch", "a[3]", "-m", "rw", "-o", "hits.csv", cwd=tmp_path)
    assert "2 hits written to" in done.stderr
    with open(tmp_path / "hits.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["watch"], row["line"], row["new"]) for row in rows] == [
        ("a[3]", "11", "4.0"),
        ("a[3]", "15", "7.0"),
    ]


def test_every_kind_of_file(tmp_path: Path) -> None:
    heavy = "print([name for name in ('pandas', 'pyarrow', 'matplotlib') if name in sys.modules])"
    script(tmp_path, f"import sys; {heavy}\n{BUG}    sys.exit(3)\n")
    for suffix in SUFFIXES:
        name = f"hits{suffix}"
        done = hwwatch("run", "--watch", "a[3]", "--out", name, "script.py", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (3, "[]\n")
        assert done.stderr.splitlines()[-1] == f"2 hits written to {tmp_path}/{name}"
    back = package.load(tmp_path / "hits.parquet")
    assert back.line.tolist() == [10, 14]
    assert back.file.tolist() == [str(tmp_path / "script.py")] * 2
    assert back.attrs["hwwatch"]["coverage"]["watches"][0]["state"] == "armed"
    refused = hwwatch("run", "--watch", "a[3]", "--out", "hits.csv", "script.py", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    again = hwwatch("run", "--overwrite", "--watch", "a[3]", "--out=hits.csv", "script.py", cwd=tmp_path)
    assert again.returncode == 3
    never = hwwatch("run", "--watch", "b[3]", "--out", "none.csv", "script.py", cwd=tmp_path)
    assert "hwwatch: nothing was watched, so " in never.stderr
    assert len(list(tmp_path.iterdir())) == 1 + len(SUFFIXES)


ARGUMENTS = """\
import argparse
import numpy as np
parser = argparse.ArgumentParser()
parser.add_argument("n", type=int)
parser.add_argument("--watch-it", action="store_true")
parser.add_argument("-o")
args = parser.parse_args()
a = np.zeros(8)
for i in range(args.n):
    a[3] = i
print(args)
"""


def test_a_script_with_argparse(tmp_path: Path) -> None:
    script(tmp_path, ARGUMENTS)
    for words in (("3", "--watch-it", "-o", "x"), ("x",), ("--help",)):
        plain = python("script.py", *words, cwd=tmp_path)
        done = hwwatch("run", "script.py", *words, "--watch", "a[3]", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (plain.returncode, plain.stdout)
        assert done.stderr.startswith(plain.stderr)
    done = hwwatch("run", "script.py", "3", "--watch-it", "-o", "x", "--watch", "a[3]", cwd=tmp_path)
    assert done.stderr.startswith("a[3]: 3 hits by 1 line")


WORKERS = """\
import multiprocessing, sys
import numpy as np

def work(number):
    if a is not None:
        a[3] = number
    return number

a = None
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    a = np.frombuffer(multiprocessing.RawArray("d", 8))
    with context.Pool(2) as pool:
        print(sorted(pool.map(work, range(4))))
    a[3] = 100
"""


@pytest.mark.parametrize(("method", "hits"), [("fork", 5), ("spawn", 1), ("forkserver", 1)])
def test_a_script_with_multiprocessing(tmp_path: Path, method: str, hits: int) -> None:
    script(tmp_path, WORKERS)
    done = hwwatch("run", "script.py", method, "--watch", "a[3]", "-o", "hits.csv", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "[0, 1, 2, 3]\n")
    assert done.stderr.startswith(f"a[3]: {hits} hit")
    back = package.load(tmp_path / "hits.csv")
    assert len(back) == hits
    assert (back.pid.nunique() > 1) == (method == "fork")


def test_a_run_of_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_bug.py").write_text(
        "import numpy as np\na = np.zeros(8)\n"
        "def test_ok():\n    a[3] = 4\n"
        "def test_bad():\n    a[3] = 5\n    assert a[3] == 6\n"
    )
    script(
        tmp_path,
        "import sys\nimport pytest\nfrom test_bug import a\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'test_bug.py']))\n",
    )
    done = hwwatch("run", "script.py", "--watch", "a[3]", cwd=tmp_path)
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert done.stderr.startswith("a[3]: 2 hits by 2 lines")
    assert "test_bug.py:6 " in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "required: COMMAND"),
        (("run",), "a script is needed"),
        (("run", "script.py"), "nothing to watch"),
        (("run", "script.py", "--watch"), "--watch"),
        (("run", "script.py", "--watch", ""), "--watch: nothing to watch: the expression is empty."),
        (("run", "--watch= ", "--watch", "a[3]", "script.py"), "the expression is empty. Name a place"),
        (("run", "script.py", "--watch", "a[3]", "''"), "the expression is empty. Name a place"),
        (("run", "script.py", "--watch", "a["), "--watch: cannot read `a[`: "),
        (("run", "script.py", "--watch", "a[3]", "(b := 3)"), "cannot watch `(b := 3)`: "),
        (("run", "script.py", "--watch", "a[3] + 1"), "--watch: cannot read `+`: "),
        (("run", "script.py", "--watch", "(a[3]+1)"), "it computes a new value, which is no place"),
        (("run", "script.py", "--watch", "0x7000"), "the address 0x7000 has no length"),
        (("run", "script.py", "--watch", "a", "-o", "x.xls"), "x.xls: the name must end in .csv, "),
        (("run", "script.py", "--watch", "a", "--out", "no/such/x.csv"), "there is no folder "),
        (("run", "--out=script.csv", "--watch", "a", "script.py"), "script.csv exists. Name another file"),
        (("run", "script.py", "--watch", "a", "-m", "q"), "invalid choice: 'q'"),
        (("run", "-z", "script.py", "--watch", "a"), "unrecognized arguments: -z"),
        (("walk",), "invalid choice: 'walk'"),
    ],
)
def test_usage_errors(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    script(tmp_path, "print('ran')\n")
    (tmp_path / "script.csv").touch()
    done = hwwatch(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]


def test_doctor() -> None:
    done = hwwatch("doctor")
    assert done.returncode == 0
    assert done.stdout.startswith("Watching works: ")
    assert "[ok] watch writes: a test access trapped" in done.stdout
    found = json.loads(hwwatch("doctor", "--json").stdout)
    assert found["works"] is True
    assert any(finding["question"] == "watch writes" for finding in found["findings"])
    shell = f"{sys.executable} -m hwwatch doctor | head -1; echo ${{PIPESTATUS[0]}}"
    piped = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert piped.stdout.splitlines()[0].startswith("Watching works: ")
    assert (piped.stdout.splitlines()[1], piped.stderr) == ("0", "")


REFUSED = """\
import ctypes, struct, sys
# A seccomp filter that refuses perf_event_open (x86-64: 298) with EPERM, as container runtimes have it.
load, jump, answer = 0x20, 0x15, 0x06
code = [(load, 0, 0, 0), (jump, 0, 1, 298), (answer, 0, 0, 0x00050001), (answer, 0, 0, 0x7FFF0000)]
raw = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *item) for item in code))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(code), ctypes.addressof(raw)))) == 0
from hwwatch.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_where_breakpoints_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "refused.py").write_text(REFUSED)
    script(tmp_path, "print('ran')\n")
    monkeypatch.setenv("HWWATCH_BACKEND", "perf")  # others do without perf events
    doctor = python("refused.py", "doctor", "--json", cwd=tmp_path)
    assert (doctor.returncode, doctor.stderr) == (1, "")
    assert json.loads(doctor.stdout)["works"] is False
    done = python("refused.py", "run", "script.py", "--watch", "a", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "[perf-" in done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_where_not_all_text_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    strict = "sys.stderr.reconfigure(encoding='ascii', errors='strict')"
    script(tmp_path, f"{BUG}    größe = a\n    größe[3] = 8\n    {strict}\n")
    (tmp_path / "print.py").write_text("print('\u2192')\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    doctor = hwwatch("doctor")
    assert (doctor.returncode, doctor.stderr) == (0, "")
    assert doctor.stdout.startswith("Watching works: ")
    for words in (("--help",), ("run", "--help")):
        shown = hwwatch(*words)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "\\u2026" in shown.stdout
    done = hwwatch("run", "script.py", "--watch", "a[3]", "--out", "hits.csv", cwd=tmp_path)
    assert done.returncode == 0
    assert "0.0 \\u2192 4.0" in done.stderr
    assert "gr\\xf6\\xdfe[3] = 8" in done.stderr
    # What the script itself prints is encoded as under Python.
    done = hwwatch("run", "print.py", "--watch", "a[3]", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "UnicodeEncodeError" in done.stderr


def test_version_and_help() -> None:
    assert hwwatch("--version").stdout == f"hwwatch {package.__version__}\n"
    assert "hwwatch doctor" in hwwatch("--help").stdout
    assert "What belongs to whom" in hwwatch("run", "--help").stdout


def test_interrupt_from_outside(tmp_path: Path) -> None:
    script(tmp_path, f"{BUG}    print('ready', flush=True)\n    import time\n    time.sleep(60)\n")
    running = subprocess.Popen(
        [sys.executable, "-m", "hwwatch", "run", "script.py", "--watch", "a[3]"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        time.sleep(0.5)  # from print into sleep
        os.kill(running.pid, signal.SIGINT)
        _, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == -signal.SIGINT
    assert "a[3]: 2 hits by 2 lines" in err
    assert err.count("KeyboardInterrupt") == 1
