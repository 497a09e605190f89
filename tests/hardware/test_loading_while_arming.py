"""Modules are loaded while others are armed and threads begin: the loader's locks and ours in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize("backend", ["perf", "ptrace"])
def test_no_deadlock(in_child: Callable[..., Any], build: Callable[..., str], backend: str) -> None:
    def work(backend, path, copies):
        import _ctypes

        array, stop = np.zeros(8), threading.Event()
        w = hwwatch.watch(array[3:4], backend=backend)

        def load(copy):
            while not stop.is_set():
                _ctypes.dlclose(_ctypes.dlopen(copy, 0))

        def begin():
            while not stop.is_set():
                thread = threading.Thread(target=array.__setitem__, args=(5, 1))
                thread.start()
                thread.join()

        loaders = [threading.Thread(target=load, args=(copy,)) for copy in copies]
        crowd = [*loaders, threading.Thread(target=begin), threading.Thread(target=begin)]
        for thread in crowd:
            thread.start()
        rounds, end = 0, time.monotonic() + 4
        while time.monotonic() < end:
            with hwwatch.watching(array[4:5], backend=backend):
                array[4] = rounds
            rounds += 1
        stop.set()
        for thread in crowd:
            thread.join()
        array[3] = 1
        return rounds, w.hits, w.lost

    import shutil

    path = build("int nothing(void) { return 0; }")
    copies = [shutil.copy(path, f"{path}.{n}.so") for n in range(2)]
    rounds, hits, lost = in_child(work, backend, path, [str(copy) for copy in copies], timeout=60)
    assert rounds > 3
    assert (hits, lost) == (1, 0)
