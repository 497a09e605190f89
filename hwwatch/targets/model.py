"""Target: which bytes to watch, and how to read values out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

#: An index inside the watched array such as ``(2, 3)``, a field's path such as ``"x"``, ``"a.b"``
#: or ``"[2].x[1]"`` (index, field, index in a sub-array), or None where there is only one value.
Element = tuple[int, ...] | str | None

#: What 4 slots can hold: 4 x 8 aligned bytes. Targets that are wider are refused at once.
MAX_BYTES = 32


class Piece(NamedTuple):
    """What one debug register can hold: 1, 2, 4 or 8 naturally aligned bytes.

    Source: Intel SDM vol. 3B, 18.2.4 (LENn fields; breakpoint addresses must be aligned).
    """

    address: int
    nbytes: int


class Leaf(NamedTuple):
    """One value inside a target: an array element, a field, or the whole of it."""

    element: Element
    address: int
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Target:
    """A place in memory that can be watched.

    Attributes
    ----------
    name : str
        As the user wrote it, or derived from the object.
    ranges : tuple of (address, nbytes)
        Ascending, disjoint, with touching ranges merged. One range for contiguous data.
    leaves : tuple of Leaf
        The values in it, in logical order. A strided view has a leaf an element. Leaves may
        overlap (unions) or be alike (broadcast). Empty for code, which has no values.
    dtype : numpy.dtype
        Of each leaf where all are alike; else the structured dtype of the whole. ``uint8`` for code.
    owner : object
        Keeps the memory alive; None for a raw address.
    note : str
        What the user should know ("bit-field: the 4 bytes that hold it"); may be empty.
    again : callable or None
        Finds the place anew, for owners that do not tell where their memory is. Raises ReferenceError where
        the object is gone, TargetError or what the object raises where it has no such place any more.
    bound : callable or None
        Name that the expression began with, where it stands for another object by now; else empty.
    kind : {"data", "code"}
        Code has one range of 1 byte, the instruction's first: an execute breakpoint needs one
        slot and no alignment.
    """

    name: str
    ranges: tuple[tuple[int, int], ...]
    leaves: tuple[Leaf, ...]
    dtype: np.dtype[Any]
    owner: object = field(default=None, repr=False, compare=False)
    note: str = ""
    again: Callable[[], Target] | None = field(default=None, repr=False, compare=False)
    bound: Callable[[], str] | None = field(default=None, repr=False, compare=False)
    kind: Literal["data", "code"] = "data"

    @property
    def address(self) -> int:
        """First watched byte."""
        return self.ranges[0][0]

    @property
    def nbytes(self) -> int:
        """Number of watched bytes, gaps not counted."""
        return sum(length for _, length in self.ranges)


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sort ranges by address and merge those that touch or overlap; empty ones vanish."""
    merged: list[tuple[int, int]] = []
    for address, nbytes in sorted(r for r in ranges if r[1] > 0):
        if merged and address <= merged[-1][0] + merged[-1][1]:
            start, length = merged[-1]
            merged[-1] = (start, max(length, address + nbytes - start))
        else:
            merged.append((address, nbytes))
    return tuple(merged)


def split_pieces(ranges: Iterable[tuple[int, int]]) -> tuple[Piece, ...]:
    """Cover each range exactly with the fewest naturally aligned 8/4/2/1-byte pieces.

    Greedy from the left is optimal, since the lengths are powers of two and alignment nests.
    """
    pieces: list[Piece] = []
    for start, nbytes in ranges:
        address, end = start, start + nbytes
        while address < end:
            length = 8
            while address % length or address + length > end:
                length //= 2
            pieces.append(Piece(address, length))
            address += length
    return tuple(pieces)


def cover_pieces(ranges: Iterable[tuple[int, int]], most: int) -> tuple[Piece, ...]:
    """Cover ranges with at most `most` pieces and as few bytes beyond them as possible.

    An exact cover wins where it fits. Else some pieces reach over neighbouring bytes, whose hits have to be
    told apart afterwards: 12 bytes at an address of 1 modulo 8 need 5 exact pieces, and 4 with 3 bytes more.

    Returns
    -------
    tuple of Piece
        Ascending; empty where even 8-byte pieces are too many.
    """
    merged = merge_ranges(ranges)
    if not merged:
        return ()

    def wanted(first: int, last: int) -> int:
        return sum(max(0, min(last, start + n) - max(first, start)) for start, n in merged)

    def options(address: int, length: int) -> dict[int, tuple[int, tuple[Piece, ...]]]:
        """By number of pieces: the least excess inside one aligned block, and the pieces."""
        inside = wanted(address, address + length)
        if not inside:
            return {0: (0, ())}
        best: dict[int, tuple[int, tuple[Piece, ...]]] = {1: (length - inside, (Piece(address, length),))}
        if length > 1 and inside < length:
            half = length // 2
            _join(best, options(address, half), options(address + half, half))
        return best

    blocks = sorted({b for start, n in merged for b in range(start & ~7, start + n, 8)})
    if len(blocks) > most:
        return ()
    total: dict[int, tuple[int, tuple[Piece, ...]]] = {0: (0, ())}
    for block in blocks:
        joined: dict[int, tuple[int, tuple[Piece, ...]]] = {}
        _join(joined, total, options(block, 8))
        total = joined
    fitting = [(excess, number, pieces) for number, (excess, pieces) in total.items() if number <= most]
    return min(fitting)[2] if fitting else ()


def _join(
    into: dict[int, tuple[int, tuple[Piece, ...]]],
    left: dict[int, tuple[int, tuple[Piece, ...]]],
    right: dict[int, tuple[int, tuple[Piece, ...]]],
) -> None:
    """Every pairing of two covers, keeping the best for each number of pieces."""
    for n, (excess, pieces) in left.items():
        for m, (more, others) in right.items():
            candidate = (excess + more, pieces + others)
            if n + m not in into or candidate < into[n + m]:
                into[n + m] = candidate
