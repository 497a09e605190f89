"""Ranges and pieces: exact cover, aligned, and no set of fewer pieces."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hwwatch.targets import Piece, merge_ranges, split_pieces

ADDRESSES = st.integers(0x7000_0000_0000, 0x7000_0000_0040)
RANGES = st.lists(st.tuples(ADDRESSES, st.integers(0, 40)), max_size=6)


def covered(ranges: object) -> set[int]:
    return {byte for start, nbytes in ranges for byte in range(start, start + nbytes)}  # type: ignore[attr-defined]


def fewest(start: int, nbytes: int) -> int:
    """Fewest aligned pieces by trying every one that fits at each place."""

    @cache
    def best(at: int) -> int:
        if at == start + nbytes:
            return 0
        fits = [n for n in (1, 2, 4, 8) if at % n == 0 and at + n <= start + nbytes]
        return 1 + min(best(at + n) for n in fits)

    return best(start)


@given(RANGES)
def test_merged_ranges_hold_the_same_bytes_apart_from_each_other(ranges: list[tuple[int, int]]) -> None:
    merged = merge_ranges(ranges)
    assert covered(merged) == covered(ranges)
    assert all(a + n < b for (a, n), (b, _) in pairwise(merged))


@given(RANGES)
def test_pieces_cover_exactly_aligned_and_fewest(ranges: list[tuple[int, int]]) -> None:
    merged = merge_ranges(ranges)
    pieces = split_pieces(merged)
    assert covered(pieces) == covered(merged)
    assert sum(p.nbytes for p in pieces) == len(covered(merged))
    assert all(p.nbytes in (1, 2, 4, 8) and p.address % p.nbytes == 0 for p in pieces)
    assert len(pieces) == sum(fewest(start, nbytes) for start, nbytes in merged)


def test_twelve_bytes_at_an_odd_address_need_five_pieces_here() -> None:
    assert split_pieces([(0x1001, 12)]) == (
        Piece(0x1001, 1),
        Piece(0x1002, 2),
        Piece(0x1004, 4),
        Piece(0x1008, 4),
        Piece(0x100C, 1),
    )
