"""No hit of a long loop is lost, doubled or out of order."""

from __future__ import annotations

from typing import Any

import numpy as np

HITS = 100_000


def test_every_hit_of_a_loop_is_there_in_order(session: Any) -> None:
    array = np.full(8, -1.0)
    with session.watching(array[3:4]) as watch:
        for i in range(HITS):
            array[3] = i
    assert (watch.counted, watch.hits, watch.lost) == (HITS, HITS, 0)
    rows = watch.timeline()
    assert np.array_equal(rows.new, np.arange(HITS))
    assert np.array_equal(rows.old, np.arange(HITS) - 1)
    assert rows.changed.all()
    assert rows.exact.all()
    assert rows.line.nunique() == 1
    assert rows.time.is_monotonic_increasing
    assert rows.index.tolist() == list(range(HITS))
    assert rows.attrs["hwwatch"]["lost"] == 0
