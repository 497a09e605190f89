"""Ring bytes become arrays of hits: all that is complete, in order, with every register."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from hwwatch.native import lib
from hwwatch.records import RECORD, Hits, Ring, clock_offset


def store(fake: Any, array: Any, index: int, value: float, **options: Any) -> None:
    fake.store(array[index:].ctypes.data, np.array(value, array.dtype).tobytes(), **options)


def read(session: Any) -> Hits:
    return session._ledger.ring().read(session._ledger.start)


def test_what_a_record_says(fake_session: Any, fake: Any) -> None:
    import os
    import threading

    array = np.zeros(4, np.int32)
    watch = fake_session.watch(array[1:2])
    before = time.monotonic_ns()
    store(fake, array, 1, 7, pc=1234, registers=range(16))
    after = time.monotonic_ns()
    hits = read(fake_session)
    (record,) = hits.records
    assert before <= record["time"] <= after
    assert (record["pid"], record["tid"]) == (os.getpid(), threading.get_native_id())
    assert (record["watch"], record["generation"]) == (watch._armed.index, watch._armed.generation)
    assert (record["pc"], record["hit"], record["named"]) == (1234, 1, 0)
    assert record["stack"] != 0
    assert hits.old[0, :4].view(np.int32) == 0
    assert hits.new[0, :4].view(np.int32) == 7
    assert hits.registers().tolist() == [list(range(16))]
    assert hits.registers_known.tolist() == [True]
    assert len(hits) == 1
    assert hits.torn == 0


def test_snapshot_of_several_pieces(fake_session: Any, fake: Any) -> None:
    array = np.arange(8, dtype=np.uint64)
    fake_session.watch(array[2:6])
    fake.store(array[3:].ctypes.data, np.array([33, 44], np.uint64).tobytes())
    hits = read(fake_session)
    assert hits.old.view(np.uint64).tolist() == [[2, 3, 4, 5]]
    assert hits.new.view(np.uint64).tolist() == [[2, 33, 44, 5]]
    assert hits.records["hit"].tolist() == [0b0110]
    assert hits.records["flags"][0] & lib.HWW_HIT_INFERRED
    assert hits.records["flags"][0] & lib.HWW_HIT_EXTENDED


def test_positions_grow_and_rows_can_be_taken(fake_session: Any, fake: Any) -> None:
    array = np.zeros(2)
    fake_session.watch(array[:1])
    for value in range(1, 101):
        store(fake, array, 0, value, pc=value % 3, registers=[value] * (value % 17))
    hits = read(fake_session)
    assert len(hits) == 100
    assert (np.diff(hits.positions.astype(np.int64)) > 0).all()
    some = np.array([99, 5, 50])
    part = hits.take(some)
    assert len(part) == 3
    assert np.array_equal(part.registers(), hits.registers()[some])
    assert np.array_equal(hits.registers(some), hits.registers()[some])
    assert np.array_equal(part.new, hits.new[some])
    assert np.array_equal(part.records["pc"], hits.records["pc"][some])
    values = hits.registers()
    for row, value in enumerate(range(1, 101)):
        assert values[row].tolist() == [value] * (value % 17) + [0] * (16 - value % 17)


def test_empty(fake_session: Any) -> None:
    hits = Ring().read(Ring().committed())
    assert len(hits) == 0
    assert hits.registers().shape == (0, 16)
    assert hits.registers(np.zeros(0, np.int64)).shape == (0, 16)
    assert hits.records.dtype == RECORD


def test_reading_is_a_copy(fake_session: Any, fake: Any) -> None:
    array = np.zeros(2)
    fake_session.watch(array[:1])
    store(fake, array, 0, 1)
    hits = read(fake_session)
    before = hits.records.copy(), hits.new.copy()
    for value in range(50):
        store(fake, array, 0, value)
    fake_session.clear()
    assert np.array_equal(hits.records, before[0])
    assert np.array_equal(hits.new, before[1])


def test_forgotten_records_are_gone_for_all(fake_session: Any, fake: Any) -> None:
    """And those of a session that still wants them are not."""
    from hwwatch.sessions import Session

    array = np.zeros(4)
    with Session("other", backend="fake") as other:
        theirs, mine = other.watch(array[:1]), fake_session.watch(array[1:2])
        store(fake, array, 0, 1)
        store(fake, array, 1, 2)
        fake_session.clear()
        assert mine.hits == 0
        assert theirs.timeline().new.tolist() == [1]
        store(fake, array, 1, 3)
        assert mine.timeline().new.tolist() == [3]
        assert mine.timeline().old.tolist() == [2]


def test_clock_offset_is_the_wall_clocks() -> None:
    error = time.time_ns() - time.monotonic_ns() - clock_offset()
    assert abs(error) < 50_000_000
