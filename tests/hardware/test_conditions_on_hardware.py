"""`when` on real hits: what it leaves out costs no record and is counted; nothing else is left out."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwwatch

SOURCE = r"""
void store(volatile long *p, long n) { for (long i = 1; i <= n; i++) *p = i; }
__attribute__((noinline)) long function(long a) { __asm__ volatile(""); return a + 1; }
"""


def _balanced(watch: Any) -> tuple[int, int, int]:
    """Counted, hits, filtered; each counted hit is exactly one of recorded, filtered, lost."""
    tally = watch.coverage.tally
    assert tally.counted == tally.hits + tally.filtered + tally.lost
    assert tally.lost == 0
    assert tally.hits == len(watch.timeline())
    return tally.counted, tally.hits, tally.filtered


def test_the_scientists_one_liner(session: Any) -> None:
    """Who put a nan into my array?"""
    a = np.ones(8)
    with session.watching(a[5:6], when="isnan(new)") as watch, np.errstate(all="ignore"):
        a *= 2
        a[5] = np.inf
        a -= np.inf
        a[5] = 1
        np.sqrt(np.array([1.0, 1, 1, 1, 1, -1, 1, 1]), out=a)
    rows = watch.timeline()
    assert np.isnan(rows.new).all()
    assert rows.line.nunique() == 2
    assert rows.old.tolist() == [np.inf, 1]
    assert _balanced(watch) == (5, 2, 3)


@pytest.mark.slow
def test_in_ipython_it_is_one_line(in_child: Callable[..., Any]) -> None:
    def work():
        from IPython.core.interactiveshell import InteractiveShell

        shell = InteractiveShell.instance()
        shell.run_cell("%load_ext hwwatch\nimport numpy as np\na = np.ones(8)")
        shell.run_cell('%watch a[5] -w "isnan(new)"')
        shell.run_cell("a[5] = 3\na[5] = float('nan')\na[5] = 4")
        shell.run_cell("t = %watch_timeline")
        rows = shell.user_ns["t"]
        watch = hwwatch.watches()[0]
        return len(rows), rows.old.tolist(), rows.line.tolist(), watch.when, watch.counted

    assert in_child(work) == [1, [3.0], [2], "isnan(new)", 3]


@pytest.mark.parametrize(
    ("when", "passed"),
    [
        ("new < 0", [-1, -2]),
        ("new >= 0", [0, 1, 2, 2, 0, 5]),
        ("changed", [1, -1, 2, -2, 0, 5]),
        ("not changed", [0, 2]),
        ("new != old", [1, -1, 2, -2, 0, 5]),
        ("abs(new - old) > 2", [2, -2, 5]),
        ("old < 0 or new == 5", [2, 0, 5]),
        ("-2 < new <= 1 and changed", [1, -1, 0]),
        ("hits % 3 == 0", [-1, -2]),
        ("hits <= 2", [0, 1]),
        ("isnan(new)", []),
        ("True", [0, 1, -1, 2, 2, -2, 0, 5]),
        ("False", []),
    ],
)
def test_on_integers(session: Any, when: str, passed: list[int]) -> None:
    value = np.zeros(1, np.int64)
    with session.watching(value, when=when) as watch:
        for new in (0, 1, -1, 2, 2, -2, 0, 5):
            value[0] = new
    assert watch.timeline().new.tolist() == passed
    assert _balanced(watch) == (8, len(passed), 8 - len(passed))


@pytest.mark.parametrize(
    ("kind", "values", "when", "passed"),
    [
        ("u1", [0, 200, 255, 128], "new > 127", [200, 255, 128]),
        ("i1", [0, 100, -1, -128], "new < 0", [-1, -128]),
        ("i2", [300, -300, 40, -4], "new < -5", [-300]),
        ("u8", [2**64 - 1, 0, 2**63, 5], "new > 9223372036854775807", [2**64 - 1, 2**63]),
        ("f4", [0.5, -0.5, np.nan, np.inf], "abs(new) < 1", [0.5, -0.5]),
        ("f8", [1e-4, 1e-2, -1.0, 0.0], "abs(new - old) > 1e-3", [1e-2, -1.0, 0.0]),
        ("f8", [1.0, np.inf, -np.inf, np.nan], "isinf(new)", [np.inf, -np.inf]),
        ("?", [True, False, True, True], "new", [True, True, True]),
        (">i4", [1, -1, 256, -256], "new < 0", [-1, -256]),
        (">f8", [1.5, -1.5, 3.0, -3.0], "new < -2", [-3.0]),
    ],
)
def test_typed_by_the_dtype(session: Any, kind: str, values: list[Any], when: str, passed: list[Any]) -> None:
    array = np.zeros(3, kind)
    with session.watching(array[1:2], when=when) as watch:
        for value in values:
            array[1] = value
    assert watch.timeline().new.tolist() == passed
    assert _balanced(watch) == (4, len(passed), 4 - len(passed))


def test_every_hundredth(session: Any, load: Callable[..., ctypes.CDLL]) -> None:
    value = np.zeros(1, np.int64)
    with session.watching(value, when="hits % 100 == 0") as watch:
        load(SOURCE).store(ctypes.c_void_p(value.ctypes.data), ctypes.c_long(10_000))
    rows = watch.timeline()
    assert rows.new.tolist() == list(range(100, 10_001, 100))
    # The value before is that of the store before, which has no row.
    assert rows.old.tolist() == list(range(99, 10_000, 100))
    assert _balanced(watch) == (10_000, 100, 9_900)


def test_left_out_hits_cost_no_record(session: Any, load: Callable[..., ctypes.CDLL]) -> None:
    value = np.zeros(1, np.int64)
    ring = session._ledger.ring()
    with session.watching(value, when="new < 0") as watch:
        before = ring.committed()
        load(SOURCE).store(ctypes.c_void_p(value.ctypes.data), ctypes.c_long(20_000))
        assert ring.committed() == before
        value[0] = -1
        assert ring.committed() > before
    assert _balanced(watch) == (20_001, 1, 20_000)


def test_of_one_thread(session: Any, load: Callable[..., ctypes.CDLL]) -> None:
    library = load(SOURCE)
    value = np.zeros(1, np.int64)
    go = threading.Event()

    def work() -> None:
        go.wait()
        library.store(ctypes.c_void_p(value.ctypes.data), ctypes.c_long(500))

    workers = [threading.Thread(target=work, name=name) for name in ("loader", "solver", "writer")]
    for worker in workers:
        worker.start()
    with session.watching(value, when='thread == "solver"') as watch:
        go.set()
        for worker in workers:
            worker.join()
        value[0] = -1
    assert set(watch.timeline().tid) == {workers[1].native_id}
    assert _balanced(watch) == (1501, 500, 1001)


def test_not_of_one_thread(session: Any) -> None:
    value = np.zeros(1, np.int64)
    with session.watching(value, when='thread != "MainThread"') as watch:
        value[0] = 1
        worker = threading.Thread(target=value.__setitem__, args=(0, 2))
        worker.start()
        worker.join()
    assert watch.timeline().tid.tolist() == [worker.native_id]
    assert _balanced(watch) == (2, 1, 1)


def test_true_for_any_of_several_values(session: Any) -> None:
    """A condition holds for a hit if it does for any value that changed."""
    array = np.zeros(8, np.int16)
    with session.watching(array[2:4], when="new < 0") as watch:
        array[2] = 5
        array[3] = -5
        array[2] = 6  # the other one is still negative, and did not change
        array[2:4] = [-1, 7]
    rows = watch.timeline()
    assert (-5 in rows.new.tolist(), -1 in rows.new.tolist()) == (True, True)
    assert 6 not in rows.new.tolist()
    assert watch.lost == 0


def test_of_a_function(session: Any, load: Callable[..., ctypes.CDLL]) -> None:
    function = load(SOURCE).function
    with session.watching(function, "x", when="hits % 5 == 0") as watch:
        assert [function(n) for n in range(20)] == list(range(1, 21))
    assert watch.timeline().arg0.tolist() == [4, 9, 14, 19]
    assert _balanced(watch) == (20, 4, 16)


def test_decides_on_the_policy_too(session: Any, load: Callable[..., ctypes.CDLL]) -> None:
    """Negative values are not let in; all others are, without a record."""
    value = np.zeros(1, np.int64)
    with session.watching(value, policy="skip", when="new < 0") as watch:
        seen = []
        for new in (3, -1, 4, -5, 7):
            value[0] = new
            seen.append(int(value[0]))
    assert seen == [3, 3, 4, 4, 7]
    assert watch.timeline().action.tolist() == ["skipped"] * 2
    assert watch.timeline().old.tolist() == [3, 4]
    assert _balanced(watch) == (5, 2, 3)

    function = load(SOURCE).function
    with session.watching(function, "x", policy=hwwatch.Return(0), when="hits % 2 == 0") as code:
        assert [function(n) for n in range(6)] == [1, 0, 3, 0, 5, 0]
    assert _balanced(code) == (6, 3, 3)


def test_reads_and_writes(session: Any) -> None:
    value = np.zeros(1, np.int64)
    with session.watching(value, "rw", when="not changed") as watch:
        value[0] = 1
        value[0] = 1
        assert value[0] == 1
    assert watch.timeline().access.tolist() == ["write", "read"]
    assert _balanced(watch) == (3, 2, 1)


def test_in_four_threads_at_once(session: Any, load: Callable[..., ctypes.CDLL]) -> None:
    library = load(SOURCE)
    value = np.zeros(1, np.int64)
    with session.watching(value, when="hits % 10 == 0") as watch:
        workers = [
            threading.Thread(
                target=library.store, args=(ctypes.c_void_p(value.ctypes.data), ctypes.c_long(2500))
            )
            for _ in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert _balanced(watch) == (10_000, 1000, 9000)


def test_set_while_armed(session: Any) -> None:
    value = np.zeros(1, np.int64)
    with session.watching(value) as watch:
        value[0] = 1
        watch.when = "new < 0"
        value[0] = 2
        value[0] = -3
        watch.when = None
        value[0] = 4
    assert watch.timeline().new.tolist() == [1, -3, 4]
    assert watch.timeline().old.tolist() == [0, 2, -3]
    assert _balanced(watch) == (4, 3, 1)


def test_in_a_forked_child(in_child: Callable[..., Any]) -> None:
    def work():
        value = np.zeros(1, np.int64)
        watch = hwwatch.watch(value, when="new < 0")
        value[0] = 1
        child = os.fork()
        if not child:
            value[0] = 2
            value[0] = -2
            os._exit(0)
        os.waitpid(child, 0)
        value[0] = -3
        rows, tally = watch.timeline(), watch.coverage.tally
        return rows.old.tolist(), rows.new.tolist(), [tally.counted, tally.hits, tally.filtered, tally.lost]

    assert in_child(work) == [[2, 1], [-2, -3], [4, 2, 2, 0]]
