"""Sub-interpreters: threads and frames of their own, the same memory and the same debug registers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def test_hits_of_subinterpreters(in_child: Callable[..., Any]) -> None:
    """Created before and after arming, run on the main thread and on others.

    Where Python tells a thread's state by its main interpreter only (3.11), the line is the one that runs
    the sub-interpreter.
    """

    def work():
        import importlib

        name = next(n for n in ("_interpreters", "_xxsubinterpreters") if importlib.util.find_spec(n))
        interpreters = importlib.import_module(name)
        array = np.zeros(8, np.int64)
        address = array[3:].ctypes.data
        code = (
            "import _ctypes, ctypes\n"
            "def inside(value):\n"
            "    ctypes.c_long.from_address({address}).value = value\n"
            "inside({value})\n"
        )

        def run(which, value):
            text = code.format(address=address, value=value)
            if hasattr(interpreters, "run_string"):
                interpreters.run_string(which, text)
            else:
                interpreters.exec(which, text)

        def create():
            """One that shares the GIL, in which ctypes can be loaded."""
            if name == "_interpreters":
                return interpreters.create("legacy")
            return interpreters.create(isolated=False)

        early = create()
        w = hwwatch.watch(array[3:4])
        run(early, 1)
        late = create()
        run(late, 2)
        for which, value in ((early, 3), (late, 4)):
            thread = threading.Thread(target=run, args=(which, value))
            thread.start()
            thread.join()
        array[3] = 5
        interpreters.destroy(early)
        interpreters.destroy(late)
        array[3] = 6
        frame = w.timeline()
        return frame.new.tolist(), frame.function.astype(str).tolist(), w.lost, w.counted

    new, functions, lost, counted = in_child(work)
    assert (new, lost, counted) == ([1, 2, 3, 4, 5, 6], 0, 6)
    assert {name.rpartition(".")[2] for name in functions[:4]} <= {"inside", "run"}


def test_hits_of_isolated_ones(in_child: Callable[..., Any]) -> None:
    """With a GIL of their own (3.12 and later): a call of C from each, one after the other and at once."""

    def work():
        import importlib

        name = next(n for n in ("_interpreters", "_xxsubinterpreters") if importlib.util.find_spec(n))
        interpreters = importlib.import_module(name)
        code = "import os\ndef asks():\n    for _ in range(100):\n        os.getppid()\nasks()\n"
        some = [interpreters.create() for _ in range(3)]
        w = hwwatch.watch("libc!getppid", "x")
        run = interpreters.run_string if hasattr(interpreters, "run_string") else interpreters.exec
        run(some[0], code)
        threads = [threading.Thread(target=run, args=(which, code)) for which in some[1:]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for which in some:
            interpreters.destroy(which)
        os.getppid()
        w.enabled = False
        frame = w.timeline()
        functions = frame.function.astype(str)
        mine = frame[functions.str.rpartition(".")[2].isin(["asks", "work"])]
        return w.hits, w.lost, len(mine), mine.tid.nunique()

    hits, lost, mine, tids = in_child(work)
    assert (hits, lost) == (301, 0)
    if sys.version_info >= (3, 12):
        assert (mine, tids) == (301, 3)
