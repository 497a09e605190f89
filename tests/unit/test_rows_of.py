"""Records that follow each other are not copied to be read."""

from __future__ import annotations

import numpy as np
import pytest

from hwwatch.records import rows_of


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([2, 3, 4], True),
        ([0], True),
        (range(8), True),
        ([2, 4], False),
        ([2, 2, 4], False),  # as long as 2, 3, 4, and the same ends
        ([2, 4, 3, 5], False),
        ([3, 2], False),
        ([], False),
    ],
)
def test_rows_of(rows: list[int], shared: bool) -> None:
    array = np.arange(8) * 10
    chosen = np.array(list(rows), np.int64)
    out = rows_of(array, chosen)
    assert out.tolist() == array[chosen].tolist()
    assert np.shares_memory(out, array) == shared
