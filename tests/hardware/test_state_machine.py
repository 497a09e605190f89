"""Random programs over the public interface, against a model that knows what each access must give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SOURCE = """
void store(volatile long *place, long value) { *place = value; }
long load(volatile long *place) { return *place; }
"""


def machine(path: str, examples: int, steps: int) -> Any:
    import warnings

    from hypothesis import HealthCheck, Phase, settings
    from hypothesis import strategies as st
    from hypothesis.stateful import (
        RuleBasedStateMachine,
        initialize,
        invariant,
        precondition,
        rule,
        run_state_machine_as_test,
    )

    library = ctypes.CDLL(path)
    library.store.argtypes = [ctypes.c_void_p, ctypes.c_long]
    library.load.argtypes, library.load.restype = [ctypes.c_void_p], ctypes.c_long
    totals = {"checks": 0, "hits": 0, "refusals": 0}

    class Model:
        """One watch as it should be."""

        def __init__(self, watch, first, count, mode, follow):
            self.watch, self.first, self.count, self.mode, self.follow = watch, first, count, mode, follow
            self.policy, self.least, self.enabled, self.limit, self.armed = "continue", None, True, None, True
            self.recorded = 0  # for the limit, which counts from when it was set
            self.rows = []
            self.filtered = 0

        def covers(self, i):
            return self.first <= i < self.first + self.count

        def meets(self, access, old, new, pid):
            """One access; whether the store is undone."""
            if not (self.armed and self.enabled):
                return False
            if access == "read" and self.mode == "w":
                return False
            wanted = access == "write" or self.mode in ("rw", "r")
            wanted = wanted and not (access == "write" and self.mode == "r")
            if not wanted or (self.least is not None and not new > self.least):
                self.filtered += 1
                return False
            skipped = self.policy == "skip" and access == "write"
            self.rows.append((access, old, new, "skipped" if skipped else "continued", pid))
            self.recorded += 1
            if self.limit is not None and self.recorded >= self.limit:
                self.armed = False
            return skipped

    class Machine(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            hwwatch.unwatch()  # what an example that failed has left
            hwwatch.clear()
            self.array = np.zeros(1024, np.int64)[512:528]
            self.values = [0] * 16
            self.models, self.gone = [], []
            self.address = self.array.ctypes.data

        def teardown(self):
            try:
                self.check()
            finally:
                hwwatch.unwatch()
                hwwatch.clear()

        # arming

        @initialize(modes=st.lists(st.sampled_from(["w", "rw", "r"]), min_size=1, max_size=3))
        def begin(self, modes):
            for n, mode in enumerate(modes):
                self.watch_one(5 * n + 1, 1, mode, True)

        @rule(
            first=st.integers(0, 15),
            count=st.integers(1, 2),
            mode=st.sampled_from(["w", "w", "rw", "r"]),
            follow=st.booleans(),
        )
        def watch(self, first, count, mode, follow):
            self.watch_one(first, count, mode, follow)

        def watch_one(self, first, count, mode, follow):
            if first + count > 16 or any(
                m.covers(first) or m.covers(first + count - 1) for m in self.models if m.armed
            ):
                return
            taken = sum(m.count for m in self.models if m.armed)
            try:
                w = hwwatch.watch(self.array[first : first + count], mode, follow_fork=follow)
            except hwwatch.NoSlotError:
                totals["refusals"] += 1
                assert taken + count > 4
                return
            assert taken + count <= 4
            self.models.append(Model(w, first, count, mode, follow))

        def one(self, data, armed=True):
            found = [m for m in self.models if m.armed or not armed]
            return data.draw(st.sampled_from(found)) if found else None

        @precondition(lambda self: self.models)
        @rule(data=st.data())
        def unwatch(self, data):
            m = self.one(data, armed=False)
            hwwatch.unwatch(m.watch)
            m.armed = False
            self.models.remove(m)
            self.gone.append(m)

        @precondition(lambda self: self.models)
        @rule(data=st.data(), mode=st.sampled_from(["w", "rw", "r"]))
        def switch(self, data, mode):
            m = self.one(data)
            if m is None or (mode == "r" and m.policy == "skip"):
                return
            m.watch.mode = m.mode = mode

        @precondition(lambda self: self.models)
        @rule(data=st.data(), policy=st.sampled_from(["continue", "skip"]))
        def policy(self, data, policy):
            m = self.one(data)
            if m is None:
                return
            if policy == "skip" and m.mode == "r":
                try:
                    m.watch.policy = policy
                    raise AssertionError("a read was to be skipped")
                except hwwatch.NotSupported:
                    return
            m.watch.policy = m.policy = policy

        @precondition(lambda self: self.models)
        @rule(data=st.data(), least=st.sampled_from([None, 0, 50]))
        def when(self, data, least):
            m = self.one(data)
            if m is not None:
                m.watch.when = None if least is None else f"new > {least}"
                m.least = least

        @precondition(lambda self: self.models)
        @rule(data=st.data(), on=st.booleans())
        def enable(self, data, on):
            m = self.one(data)
            if m is not None:
                m.watch.enabled = m.enabled = on

        @rule()
        def clear(self):
            self.check()
            hwwatch.clear()
            for m in self.models + self.gone:
                m.rows.clear()
                m.filtered = 0
            self.gone.clear()

        # accesses

        def place(self, data):
            watched = [m.first + k for m in self.models if m.armed for k in range(m.count)]
            anywhere = st.integers(0, 15)
            return data.draw(
                st.one_of(st.sampled_from(watched), st.sampled_from(watched), anywhere)
                if watched
                else anywhere
            )

        def meet(self, access, i, new, pid):
            old = self.values[i]
            undone = [m.meets(access, old, new, pid) for m in self.models if m.covers(i)]
            return old if any(undone) else new

        @rule(
            data=st.data(),
            values=st.lists(st.integers(-100, 100), min_size=1, max_size=9),
            thread=st.booleans(),
        )
        def write(self, data, values, thread):
            for value in values:
                self.write_one(self.place(data), value, thread)

        def write_one(self, i, value, thread):
            work = threading.Thread(target=library.store, args=(self.address + 8 * i, value))
            if thread:
                work.start()
                work.join()
            else:
                library.store(self.address + 8 * i, value)
            self.values[i] = self.meet("write", i, value, os.getpid())

        @rule(data=st.data(), thread=st.booleans())
        def read(self, data, thread):
            i, got = self.place(data), []
            work = threading.Thread(target=lambda: got.append(library.load(self.address + 8 * i)))
            work.start() if thread else work.run()
            if thread:
                work.join()
            assert got == [self.values[i]]
            self.meet("read", i, self.values[i], os.getpid())

        @rule(data=st.data(), value=st.integers(-100, 100))
        def fork(self, data, value):
            i = self.place(data)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                child = os.fork()
            if not child:
                library.store(self.address + 8 * i, value)
                os._exit(0)
            os.waitpid(child, 0)
            for m in self.models:
                if m.covers(i) and m.follow:
                    m.meets("write", self.values[i], value, child)

        # what must hold

        @invariant()
        def memory(self):
            assert [m.armed for m in self.models] == [m.watch.armed for m in self.models]

        @rule()
        def check(self):
            totals["checks"] += 1
            for m in self.models + self.gone:
                mine = m.watch.timeline()
                columns = [mine[c] for c in ("access", "old", "new", "action", "pid")]
                found = list(zip(*(c.tolist() for c in columns), strict=True))
                assert found == m.rows, (m.watch, found, m.rows)
                tally = m.watch.coverage.tally
                assert (tally.hits, tally.lost, tally.counted) == (
                    len(m.rows),
                    0,
                    len(m.rows) + m.filtered,
                ), (
                    m.watch,
                    tally,
                    m.rows,
                    m.filtered,
                )
                totals["hits"] += len(m.rows)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # a failure shows all its steps; to make them fewer takes minutes
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return totals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("examples", "steps"),
    [
        (15, 30),
        pytest.param(30, 50, marks=pytest.mark.slow),
        pytest.param(100, 50, marks=[pytest.mark.long, pytest.mark.timeout(400)]),
    ],
)
def test_random_programs(
    in_child: Callable[..., Any], build: Callable[..., str], examples: int, steps: int
) -> None:
    totals = in_child(machine, build(SOURCE), examples, steps, timeout=380)
    assert totals["checks"] > examples
    assert totals["hits"] > examples
    assert totals["refusals"] > 0
