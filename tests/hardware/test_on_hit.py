"""`on_hit`: Python code at the main thread's next safe point, and the debugger there."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pexpect
import pytest

import hwwatch

pytestmark = pytest.mark.slow

END = pexpect.EOF
SOURCE = "void store(volatile long *p, long n) { for (long i = 1; i <= n; i++) *p = i; }"


def _safe_point() -> None:
    """A call: from 3.12 on Python looks for signals there and at backward jumps only."""


def _store(array: Any, value: Any) -> None:
    array[3] = value
    _safe_point()


def test_called_with_the_hit_at_the_next_safe_point(session: Any) -> None:
    array = np.zeros(8)
    seen: list[Any] = []
    watch = session.watch(array[3:4], on_hit=seen.append, name="here")
    array[3] = 5
    _safe_point()
    assert len(seen) == 1
    _store(array, 6)
    assert len(seen) == 2
    first, second = seen
    assert (first.watch, first.access, first.old, first.new, first.changed) == ("here", "write", 0, 5, True)
    assert (second.old, second.new, second.function) == (5, 6, "_store")
    assert (first.function, Path(first.file)) == (
        "test_called_with_the_hit_at_the_next_safe_point",
        Path(__file__),
    )
    assert (first.tid, first.action, first.origin) == (threading.get_native_id(), "continued", "user")
    assert first.instruction
    assert set(watch.timeline().columns) <= set(first._fields)
    assert (watch.counted, watch.hits, watch.lost, watch.errors) == (2, 2, 0, [])


def test_on_the_main_thread_whoever_made_the_hit(session: Any) -> None:
    array = np.zeros(8)
    seen: list[tuple[int, int, float]] = []
    session.watch(array[3:4], on_hit=lambda hit: seen.append((threading.get_native_id(), hit.tid, hit.new)))
    worker = threading.Thread(target=_store, args=(array, 7))
    worker.start()
    worker.join()
    _safe_point()
    assert seen == [(threading.get_native_id(), worker.native_id, 7)]


def test_many_hits_of_one_call_in_order(session: Any, load: Callable[..., ctypes.CDLL]) -> None:
    """In the middle of C code there is no safe point: they come together, each once."""
    value = np.zeros(1, np.int64)
    seen: list[int] = []
    watch = session.watch(value, on_hit=lambda hit: seen.append(int(hit.new)))
    for _ in range(3):
        load(SOURCE).store(ctypes.c_void_p(value.ctypes.data), ctypes.c_long(200))
        _safe_point()
    assert seen == list(range(1, 201)) * 3
    assert watch.hits == 600


def test_exception_is_shown_and_the_watch_goes_on(session: Any, capsys: pytest.CaptureFixture[str]) -> None:
    array = np.zeros(8)
    seen: list[float] = []

    def on_hit(hit: Any) -> None:
        seen.append(hit.new)
        if hit.new < 0:
            raise ValueError(f"negative: {hit.new}")

    watch = session.watch(array[3:4], on_hit=on_hit)
    for value in (1, -1, 2, -2, 3):
        _store(array, value)
    shown = capsys.readouterr().err
    assert seen == [1, -1, 2, -2, 3]
    assert [str(error) for error in watch.errors] == ["negative: -1.0", "negative: -2.0"]
    assert shown.count("Traceback (most recent call last)") == 2
    assert shown.count("ValueError: negative: -1.0") == 1
    assert shown.count("ValueError: negative: -2.0") == 1
    assert (watch.armed, watch.counted, watch.hits, watch.lost) == (True, 5, 5, 0)


def test_hits_that_the_callback_makes_are_recorded_and_not_delivered(session: Any) -> None:
    """Else it would go on for ever."""
    array = np.zeros(8)
    seen: list[float] = []

    def on_hit(hit: Any) -> None:
        seen.append(hit.new)
        array[3] = hit.new + 100

    watch = session.watch(array[3:4], on_hit=on_hit)
    _store(array, 1)
    for _ in range(10):
        _safe_point()
    _store(array, 2)
    for _ in range(10):
        _safe_point()
    assert seen == [1, 2]
    assert watch.timeline().new.tolist() == [1, 101, 2, 102]


def test_hits_of_others_during_a_callback_are_delivered(session: Any) -> None:
    array = np.zeros(8)
    seen: list[float] = []

    def on_hit(hit: Any) -> None:
        seen.append(hit.new)
        if hit.new == 1:
            worker = threading.Thread(target=_store, args=(array, 2))
            worker.start()
            worker.join()

    session.watch(array[3:4], on_hit=on_hit)
    _store(array, 1)
    deadline = time.monotonic() + 10
    while len(seen) < 2 and time.monotonic() < deadline:
        _safe_point()
    assert seen == [1, 2]


def test_safe_point_amid_work_of_hwwatch(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    """The main thread asks for hits while others make them: on_hit waits until it has its answer."""

    def work(path):
        library = ctypes.CDLL(path)
        numbers, seen = np.zeros(1, np.int64), []
        watch = hwwatch.watch(numbers, on_hit=lambda hit: seen.append(int(hit.new)))
        over = threading.Event()

        def fire():
            while not over.is_set():
                library.store(ctypes.c_void_p(numbers.ctypes.data), ctypes.c_long(20))
                time.sleep(0.001)

        threads = [threading.Thread(target=fire) for _ in range(2)]
        for thread in threads:
            thread.start()
        begun = time.monotonic()
        while time.monotonic() - begun < 3:
            hwwatch.timeline()
            watch.limit = 10**9
            str(hwwatch.coverage())
        over.set()
        for thread in threads:
            thread.join()
        deadline = time.monotonic() + 10
        while len(seen) < watch.hits and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(seen), watch.hits, watch.lost

    delivered, hits, lost = in_child(work, build(SOURCE), timeout=100)
    assert (delivered, lost) == (hits, 0)
    assert hits > 100


def test_all_that_a_safe_point_needs_is_imported_beforehand(in_child: Callable[..., Any]) -> None:
    """The program may be amid an import of the same modules when a hit comes."""

    def work():
        a = np.zeros(4)
        hwwatch.watch(a[0:1], limit=2)
        light = "hwwatch.attribution" in sys.modules and "pandas" not in sys.modules
        watch = hwwatch.watch(a[1:2], on_hit=lambda hit: None)
        before = set(sys.modules)
        a[0], a[1] = 1, 2
        os.getpid()
        new = {name for name in set(sys.modules) - before if name.partition(".")[0] in ("hwwatch", "pandas")}
        return light, sorted(new), watch.hits

    assert in_child(work) == [True, [], 1]


def test_only_what_passes_condition_mode_and_limit(session: Any) -> None:
    array = np.zeros(8)
    seen: list[float] = []
    watch = session.watch(
        array[3:4], policy="skip", when="new < 0", limit=3, on_hit=lambda hit: seen.append(hit.new)
    )
    for value in (1, -1, 2, -2, -3, -4):
        _store(array, value)
    assert seen == [-1, -2, -3]
    assert not watch.armed
    assert array[3] == -4


def test_of_a_function(session: Any, load: Callable[..., ctypes.CDLL]) -> None:
    function = load("long twice(long a) { return 2 * a; }").twice
    function.argtypes, function.restype = [ctypes.c_long], ctypes.c_long
    seen: list[int] = []
    session.watch(function, "x", on_hit=lambda hit: seen.append(int(hit.arg0)))
    for value in range(5):
        assert function(value) == 2 * value
        _safe_point()
    assert seen == [0, 1, 2, 3, 4]


def test_two_watches_each_its_own(session: Any) -> None:
    array = np.zeros(8)
    seen: list[tuple[str, str, float]] = []
    for name, place in (("a", 1), ("b", 3)):
        session.watch(
            array[place : place + 1],
            name=name,
            on_hit=lambda hit, name=name: seen.append((name, str(hit.watch), hit.new)),
        )
    silent = session.watch(array[5:6])
    array[:] = 4
    _safe_point()
    assert sorted(seen) == [("a", "a", 4), ("b", "b", 4)]
    assert silent.hits == 1


def test_names_that_are_exchanged(session: Any) -> None:
    array = np.zeros(8)
    seen: list[tuple[str, str, float]] = []
    one = session.watch(array[3:4], name="a", on_hit=lambda hit: seen.append(("one", hit.watch, hit.new)))
    two = session.watch(array[4:5], name="b", on_hit=lambda hit: seen.append(("two", hit.watch, hit.new)))
    with pytest.raises(hwwatch.TargetError, match="watch 1 has this name"):
        two.name = "a"
    one.name = "c"
    two.name = "a"
    array[3] = 1
    array[4] = 2
    _safe_point()
    assert sorted(seen) == [("one", "c", 1), ("two", "a", 2)]


def test_set_and_taken_off_while_armed(session: Any) -> None:
    """Hits from before are history: only what comes from now on is delivered."""
    array = np.zeros(8)
    seen: list[float] = []
    watch = session.watch(array[3:4])
    _store(array, 1)
    watch.on_hit = lambda hit: seen.append(hit.new)
    _store(array, 2)
    watch.on_hit = None
    _store(array, 3)
    watch.on_hit = lambda hit: seen.append(hit.new)
    _store(array, 4)
    assert seen == [2, 4]
    assert watch.timeline().new.tolist() == [1, 2, 3, 4]


def test_the_callback_may_change_and_end_the_watch(session: Any) -> None:
    array = np.zeros(8)
    seen: list[float] = []

    def on_hit(hit: Any) -> None:
        seen.append(hit.new)
        assert len(watch.timeline()) >= len(seen)
        if hit.new == 2:
            watch.mode = "rw"
        if hit.new == 4:
            watch.disarm()

    watch = session.watch(array[3:4], on_hit=on_hit)
    for value in range(1, 7):
        _store(array, value)
    assert seen == [1, 2, 3, 4]
    assert watch.errors == []
    assert (watch.armed, watch.mode) == (False, "rw")


def test_signals_are_given_back(session: Any) -> None:
    numbers = range(signal.SIGRTMIN, signal.SIGRTMAX + 1)
    before = [signal.getsignal(number) for number in numbers]
    with session.watching(np.zeros(1), on_hit=lambda hit: None):
        assert [signal.getsignal(number) for number in numbers] != before
    session.close()
    assert [signal.getsignal(number) for number in numbers] == before


def test_first_time_must_be_on_the_main_thread(in_child: Callable[..., Any]) -> None:
    def work():
        array = np.zeros(8)
        answers = []

        def arm():
            try:
                hwwatch.watch(array[3:4], on_hit=print)
            except hwwatch.NotSupported as error:
                answers.append([error.slug, "main thread" in str(error)])

        worker = threading.Thread(target=arm)
        worker.start()
        worker.join()
        return answers, len(hwwatch.watches())

    assert in_child(work) == [[["on-hit", True]], 0]


def test_signal_taken_away_by_the_program(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    """Then nothing is delivered any more; hits are recorded all the same, and nothing crashes."""

    def work(path):
        from hwwatch import safepoints

        value, seen = np.zeros(1, np.int64), []
        watch = hwwatch.watch(value, on_hit=seen.append)
        signal.signal(safepoints.number(), signal.SIG_DFL)
        place = ctypes.c_void_p(value.ctypes.data)
        worker = threading.Thread(target=ctypes.CDLL(path).store, args=(place, ctypes.c_long(100)))
        worker.start()
        worker.join()
        return len(seen), watch.hits, watch.lost

    assert in_child(work, build(SOURCE)) == [0, 100, 0]


# The debugger

SCRIPT = """\
import numpy as np
import hwwatch

def bug(array, value):
    secret = value * 10
    array[3] = value
    for _ in range(3):
        secret += 1
    return secret

a = np.zeros(8)
w = hwwatch.watch(a[3:4], on_hit="break")
print("first", bug(a, 5))
print("second", bug(a, 6))
w.on_hit = None
print("third", bug(a, 7))
print("rows", len(w.timeline()), w.lost)
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``terminal(*arguments)``: Python in a terminal of its own."""
    children = []

    def terminal(*arguments: str) -> Any:
        child = pexpect.spawn(
            sys.executable,
            list(arguments),
            encoding="utf-8",
            timeout=40,
            cwd=str(tmp_path),
            env={**os.environ, "IPYTHONDIR": str(tmp_path), "TERM": "dumb", "NO_COLOR": "1"},
            dimensions=(50, 200),
        )
        children.append(child)
        return child

    yield terminal
    for child in children:
        child.close(force=True)


def test_break_enters_pdb_in_the_frame_that_wrote(terminal: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    child = terminal("script.py")
    for value, printed in ((5, "first 53"), (6, "second 63")):
        child.expect(r"\(Pdb\) ")
        assert "script.py" in child.before
        assert "bug()" in child.before
        child.sendline("p ('value', value, secret // 10, float(array[3]))")
        child.expect(re.escape(f"('value', {value}, {value}, {value}.0)"))
        child.expect(r"\(Pdb\) ")
        child.sendline("continue")
        child.expect(printed)
    child.expect("third 73")
    child.expect("rows 3 0")
    child.expect(END)
    child.wait()
    assert child.exitstatus == 0


def test_quitting_the_debugger_goes_on(terminal: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    child = terminal("script.py")
    for _ in range(2):
        child.expect(r"\(Pdb\) ")
        child.sendline("next")
        child.expect(r"\(Pdb\) ")
        child.sendline("continue")
    child.expect("rows 3 0")


def test_breakpointhook_is_respected(in_child: Callable[..., Any]) -> None:
    """Another debugger that took over `breakpoint()` is asked instead."""

    def work():
        array = np.zeros(8)
        called = []
        sys.breakpointhook = lambda *arguments, **options: called.append(array[3])
        watch = hwwatch.watch(array[3:4], on_hit="break")
        for value in (1.0, 2.0):
            array[3] = value
            time.sleep(0)
        return called, watch.hits

    assert in_child(work) == [[1.0, 2.0], 2]


@pytest.mark.parametrize("named", ["0", "os.getpid"])
def test_pythonbreakpoint_is_respected(in_child: Callable[..., Any], named: str) -> None:
    """As `breakpoint()` does: 0 is none, else the function that is called; pdb would end the child here."""

    def work():
        array = np.zeros(8)
        watch = hwwatch.watch(array[3:4], on_hit="break")
        array[3] = 1
        time.sleep(0)
        return watch.hits

    assert in_child(work, env={"PYTHONBREAKPOINT": named}) == 1


def test_break_in_an_ipython_terminal(terminal: Callable[..., Any]) -> None:
    child = terminal(
        "-m", "IPython", "--simple-prompt", "--no-banner", "--no-confirm-exit", "--colors=NoColor"
    )
    child.expect(r"In \[1\]: ")
    child.sendline(
        "import numpy as np, hwwatch; a = np.zeros(8); get_ipython().run_line_magic('load_ext', 'hwwatch')"
    )
    child.expect(r"In \[2\]: ")
    child.sendline("%watch a[3] --break")
    child.expect(r"In \[3\]: ")
    # In one line it would be a matter of the Python version when the next line begins.
    child.sendline(r'exec("def bug():\n for i in range(2):\n  a[3] = i + 1\n  done = i\n"); bug()')
    for value in (1, 2):
        child.expect("ipdb> ")
        child.sendline("p ('value', float(a[3]))")
        child.expect(re.escape(f"('value', {value}.0)"))
        child.expect("ipdb> ")
        child.sendline("c")
    child.expect(r"In \[4\]: ")
    child.sendline("print('rows', len(hwwatch.timeline()))")
    child.expect("rows 2")
    child.expect(r"In \[5\]: ")
    child.sendline("exit")
    child.expect(END)


def test_break_in_a_notebook_asks_through_the_kernel() -> None:
    """The prompt comes as an input_request, which the notebook shows as a field to type in."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(startup_timeout=60)
    try:
        client.execute_interactive(
            "%load_ext hwwatch\nimport numpy as np, hwwatch\na = np.zeros(8)", timeout=60, allow_stdin=False
        )
        client.execute_interactive("%watch a[3] --break", timeout=60, allow_stdin=False)
        text: list[str] = []
        prompts: list[str] = []

        def answer(message: Any) -> None:
            prompts.append(message["content"]["prompt"])
            client.input("p ('value', float(a[3]))" if len(prompts) % 2 else "c")

        def collect(message: Any) -> None:
            if message["msg_type"] == "stream":
                text.append(message["content"]["text"])

        reply = client.execute_interactive(
            "def bug():\n    for i in range(2):\n        a[3] = i + 1\n"
            "bug()\nprint('rows', len(hwwatch.timeline()))",
            timeout=60,
            allow_stdin=True,
            stdin_hook=answer,
            output_hook=collect,
        )
        assert reply["content"]["status"] == "ok"
        assert prompts == ["ipdb> "] * 4
        assert "('value', 1.0)" in "".join(text)
        assert "('value', 2.0)" in "".join(text)
        assert "rows 2" in "".join(text)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_module_function_takes_it_too() -> None:
    """`hwwatch.watch(…, on_hit=…)` acts on the default session."""
    array = np.zeros(8)
    seen: list[float] = []
    with hwwatch.watching(array[3:4], on_hit=lambda hit: seen.append(hit.new)):
        _store(array, 1)
    hwwatch.unwatch()
    assert seen == [1]
