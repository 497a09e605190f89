"""Sub-interpreters: threads and frames of their own, the same memory and the same debug registers."""

from __future__ import annotations

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

        early = interpreters.create()
        w = hwwatch.watch(array[3:4])
        run(early, 1)
        late = interpreters.create()
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
