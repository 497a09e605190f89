"""Which elements did a trap really touch?

A record says what the handler could know: the piece that the signal named, and every watched piece whose
bytes had changed. Two things are settled here, with the decoded instruction and the saved registers:

* the element: a 16-byte store into a watched array is one hit for each element under it, changed or not;
* whose change it was: with several watches and several threads, a handler may see a change that another
  thread made a moment ago and whose own trap is still on its way. Such a change is taken from the wrong
  record and given to the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwwatch.code.sites import Place, Sites
from hwwatch.native import lib
from hwwatch.records import Hits, distinct, rows_of
from hwwatch.targets.homes import Home
from hwwatch.targets.model import Leaf, Piece

Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]

#: What an access may have been; rows have its place here.
ACCESSES = ("write", "read", "readwrite", "execute", "unknown")
WRITE, UNKNOWN = ACCESSES.index("write"), ACCESSES.index("unknown")

_NO_END = 2**63


@dataclass(eq=False)
class Life:
    """One arming of a watch in one mode: what its records refer to.

    Attributes
    ----------
    index, generation : int
        As in the records.
    watch : int
        The watch's id.
    mode : {"w", "rw", "r", "x"}
        As the user asked for it.
    pieces : tuple of Piece
    leaves : tuple of Leaf
    offsets : tuple of int
        Of each leaf's bytes in the snapshot.
    since : int
        When it was armed, ns on CLOCK_MONOTONIC.
    initial : bytes
        Snapshot before its first record.
    until : int or None
        When it ended.
    settings : list of (int, ``struct hww_settings *``)
        What was in force from when on, ns on CLOCK_MONOTONIC; oldest first.
    unsure : list of (int, int)
        From when to when it may have been off: while it was armed and disarmed, and in pauses.
    home : Home, optional
        Knows when the object died that the bytes were of.
    """

    index: int
    generation: int
    watch: int
    mode: str
    pieces: tuple[Piece, ...]
    leaves: tuple[Leaf, ...]
    offsets: tuple[int, ...]
    since: int = 0
    initial: bytes = b""
    until: int | None = None
    settings: list[tuple[int, Any]] = field(default_factory=list)
    unsure: list[tuple[int, int]] = field(default_factory=list)
    home: Home | None = None

    @property
    def plain(self) -> bool:
        """Whether each record is one row, whatever it says: one piece, one value, no neighbours."""
        return self.mode == "x" or (self.mode != "r" and _one_value(self))


@dataclass(frozen=True)
class Rows:
    """Timeline rows of one life, in order.

    Attributes
    ----------
    life : Life
    record : (m,) int64
        Row of the hit in `Hits`.
    leaf : (m,) int64
        Which leaf; several rows of one record differ in it.
    sure : (m,) bool
        Whether it is known that this leaf was touched, and no other in its stead.
    old, new : (m, 32) uint8
        The leaf's bytes, from the left.
    places : list of Place
    place : (m,) int64
        Index into places.
    access : (m,) int8
        Index into ACCESSES.
    filtered : int
        Records left out: the writes of a watch for reads, accesses to neighbouring bytes under a piece.
    correction : tuple of int
        By piece: kernel counts that the rows stand for, beyond what the handler had noted.
    records : int
        Records that the rows were made of.

    The last three are about the records of the stretch that was asked for, without its margins.
    """

    life: Life
    record: Indices
    leaf: Indices
    sure: Bools
    old: NDArray[np.uint8]
    new: NDArray[np.uint8]
    places: list[Place]
    place: Indices
    access: NDArray[np.int8]
    filtered: int
    correction: tuple[int, ...]
    records: int

    def between(self, hits: Hits, start: int, end: int) -> Rows:
        """The rows of records from one ring position to before another."""
        positions = hits.positions[self.record]
        keep = (positions >= np.uint64(start)) & (positions < np.uint64(end))
        if keep.all():
            return self
        inside = np.flatnonzero(keep)
        follow = len(inside) and inside[-1] - inside[0] == len(inside) - 1
        return self.only(slice(inside[0], inside[-1] + 1) if follow else inside)

    def since(self, hits: Hits, position: int) -> Rows:
        """The rows of records at or after a ring position."""
        return self.only(hits.positions[self.record] >= np.uint64(position))

    def without(self, hits: Hits, tid: int, position: int) -> Rows:
        """The rows but for those of one thread before a ring position."""
        own = hits.records["tid"][self.record] == tid
        return self.only(~(own & (hits.positions[self.record] < np.uint64(position))))

    def only(self, keep: Bools | Indices | slice) -> Rows:
        """Some of the rows, by mask, in the order of an index, or a slice."""
        return replace(
            self,
            record=self.record[keep],
            leaf=self.leaf[keep],
            sure=self.sure[keep],
            old=self.old[keep],
            new=self.new[keep],
            place=self.place[keep],
            access=self.access[keep],
        )


def leaf_offsets(pieces: Sequence[Piece], leaves: Sequence[Leaf]) -> tuple[int, ...]:
    """Where each leaf's bytes begin in a snapshot, which is the pieces' bytes one after the other."""
    offsets = []
    for leaf in leaves:
        at = 0
        for piece in pieces:
            if piece.address <= leaf.address < piece.address + piece.nbytes:
                offsets.append(at + leaf.address - piece.address)
                break
            at += piece.nbytes
    return tuple(offsets)


def split(hits: Hits, lives: Sequence[Life]) -> dict[Life, Indices]:
    """The rows of `hits` that belong to each life; hits of others' watches are left out."""
    keys = hits.records["watch"].astype(np.uint64) << np.uint64(32) | hits.records["generation"]
    found, inverse = distinct(keys)
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], np.arange(len(found) + 1))
    number = {key: i for i, key in enumerate(found.tolist())}
    out: dict[Life, Indices] = {}
    for life in lives:
        i = number.get(life.index << 32 | life.generation)
        out[life] = np.zeros(0, np.int64) if i is None else order[bounds[i] : bounds[i + 1]].astype(np.int64)
    return out


def attribute(
    hits: Hits, rows: Indices, life: Life, sites: Sites, start: int = 0, end: int = _NO_END
) -> Rows:
    """Timeline rows of one life.

    Parameters
    ----------
    hits : Hits
    rows : (n,) int64
        The life's records in `hits`, in order.
    life : Life
    sites : Sites
        Decodes instructions, each once.
    start, end : int
        Ring positions of the stretch that counts; hits outside are its margins, which only help to read it.
    """
    positions = hits.positions[rows]
    within = (positions >= np.uint64(start)) & (positions < np.uint64(end))
    places, place = sites.of(hits, rows, life.pieces, life.mode == "x")
    records = rows_of(hits.records, rows)
    inferred = (records["flags"] & lib.HWW_HIT_INFERRED) != 0
    correction = [0] * len(life.pieces)
    filtered = 0
    if life.mode == "x" or (_one_value(life) and not inferred.any()):
        chosen, leaf = np.arange(len(rows)), np.zeros(len(rows), np.int64)
        sure = np.ones(len(rows), np.bool_)
        old, new = rows_of(hits.old, rows), rows_of(hits.new, rows)
        if life.mode == "x":  # no bytes are watched; what stands there are arguments
            old, new = np.zeros_like(old), np.zeros_like(new)
    else:
        chosen, leaf, sure, old, new = _touched(hits, rows, life, places, place, within, correction)
        named = (records["named"] != 0xFF) & within
        filtered = int(named.sum() - named[np.unique(chosen)].sum())
    access = access_of(hits, rows, life, places, place, chosen, leaf, old, new)
    if life.mode == "r":
        keep = access != WRITE
        filtered += int((~keep & within[chosen]).sum())
        chosen, leaf, sure, access = chosen[keep], leaf[keep], sure[keep], access[keep]
        old, new = old[keep], new[keep]
    return Rows(
        life,
        rows[chosen],
        leaf,
        sure,
        old,
        new,
        places,
        place[chosen],
        access,
        filtered,
        tuple(correction),
        int(within.sum()),
    )


def _one_value(life: Life) -> bool:
    """One piece that holds one value and nothing else."""
    (piece, *more), (leaf, *others) = life.pieces, life.leaves
    return not more and not others and piece == Piece(leaf.address, leaf.dtype.itemsize)


def _spans(items: Sequence[Leaf] | Sequence[Piece]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    first = np.array([item.address for item in items], np.uint64)
    length = [item.dtype.itemsize if isinstance(item, Leaf) else item.nbytes for item in items]
    return first, first + np.array(length, np.uint64)


def covered(
    hits: Hits, rows: Indices, life: Life, places: list[Place], place: Indices
) -> tuple[Bools, Bools, Bools]:
    """What the instructions behind some hits reached of a life's bytes, by decoding them.

    Parameters
    ----------
    hits, rows
        The (n,) hits; they need not be of this life.
    life : Life
        Whose bytes are asked about; a write watch sees writes only.
    places, place
        The instructions, and for each hit which of them.

    Returns
    -------
    leaves : (n, leaves) bool
    pieces : (n, pieces) bool
    known : (n,) bool
        Whether the instruction and its addresses are certain; the other two mean nothing where not.
    """
    leaf_first, leaf_last = _spans(life.leaves)
    piece_first, piece_last = _spans(life.pieces)
    leaves = np.zeros((len(rows), len(leaf_first)), np.bool_)
    pieces = np.zeros((len(rows), len(piece_first)), np.bool_)
    known = np.zeros(len(rows), np.bool_)
    for number, found in enumerate(places):
        site = found.site
        operands = [
            o
            for o, operand in enumerate(site.operands)
            if life.mode != "w" or operand.access in ("write", "readwrite")
        ]
        if site.confidence not in ("exact", "filtered") or not operands or site.text.startswith("rep"):
            continue
        mine = np.flatnonzero((place == number) & hits.registers_known[rows])
        starts, sizes, sure = site.ranges(hits.registers(rows[mine]))
        if not all(sure[o] and sizes[o] > 0 for o in operands):
            continue
        for o in operands:
            first = starts[:, o : o + 1]
            last = first + np.uint64(sizes[o])
            leaves[mine] |= (first < leaf_last) & (leaf_first < last)
            pieces[mine] |= (first < piece_last) & (piece_first < last)
        known[mine] = True
    return leaves, pieces, known


def _inside(piece: Piece, leaves: Sequence[Leaf]) -> bool:
    """Whether all bytes of a piece belong to one leaf."""
    end = piece.address + piece.nbytes
    return any(leaf.address <= piece.address and end <= leaf.address + leaf.dtype.itemsize for leaf in leaves)


def _touched(
    hits: Hits,
    rows: Indices,
    life: Life,
    places: list[Place],
    place: Indices,
    within: Bools,
    correction: list[int],
) -> tuple[Indices, Indices, Bools, NDArray[np.uint8], NDArray[np.uint8]]:
    records = rows_of(hits.records, rows)
    sizes = [leaf.dtype.itemsize for leaf in life.leaves]
    old = np.zeros((len(rows), len(sizes), 32), np.uint8)
    new = np.zeros_like(old)
    for i, (offset, size) in enumerate(zip(life.offsets, sizes, strict=True)):
        old[:, i, :size] = hits.old[rows, offset : offset + size]
        new[:, i, :size] = hits.new[rows, offset : offset + size]
    changed = (old != new).any(axis=2)
    reached, pieces, known = covered(hits, rows, life, places, place)
    # A signal named this life, so an instruction that does not reach it was decoded wrongly.
    known &= pieces.any(axis=1) | (records["named"] == 0xFF)
    touched = np.where(known[:, None], reached, changed)

    # Nothing changed and the instruction does not tell: the first leaf of the named piece stands for it.
    first, last = _spans(life.leaves)
    at = np.array([piece.address for piece in life.pieces], np.uint64)
    end = at + np.array([piece.nbytes for piece in life.pieces], np.uint64)
    in_piece = (first[None, :] < end[:, None]) & (at[:, None] < last[None, :])
    same = (hits.old[rows] == hits.new[rows]).all(axis=1)  # else neighbouring bytes under a piece changed
    ambiguous = (records["flags"] & lib.HWW_HIT_AMBIGUOUS) != 0
    vague = np.flatnonzero(~known & same & ((records["named"] != 0xFF) | ambiguous))
    lowest = np.array([(bits & -bits).bit_length() - 1 for bits in range(16)])
    named = np.where(ambiguous, lowest[records["hit"] & 15], records["named"])[vague].astype(np.int64)
    touched[vague, in_piece[named].argmax(axis=1)] = True
    sure = np.ones(touched.shape, np.bool_)
    inside = np.array([_inside(piece, life.leaves) for piece in life.pieces], np.bool_)
    sure[vague] = (inside[named] & (in_piece[named].sum(axis=1) == 1) & ~ambiguous[vague])[:, None]

    # A change outside the instruction's reach is another thread's: its own record gets the old value.
    for leaf in range(len(sizes)):
        foreign = np.flatnonzero(changed[:, leaf] & ~touched[:, leaf] & known)
        own = np.flatnonzero(touched[:, leaf])
        following = np.searchsorted(own, foreign)
        for row, number in zip(foreign.tolist(), following.tolist(), strict=True):
            if number < len(own):
                old[own[number], leaf] = old[row, leaf]

    hit = (records["hit"][:, None] >> np.arange(len(life.pieces)) & 1).astype(np.int64)
    known &= within
    difference = pieces[known].astype(np.int64).sum(axis=0) - hit[known].sum(axis=0)
    for number, value in enumerate(difference.tolist()):
        correction[number] = value
    chosen, leaf_of = np.nonzero(touched)
    return (
        chosen.astype(np.int64),
        leaf_of.astype(np.int64),
        sure[chosen, leaf_of],
        old[chosen, leaf_of],
        new[chosen, leaf_of],
    )


def access_of(
    hits: Hits,
    rows: Indices,
    life: Life,
    places: list[Place],
    place: Indices,
    chosen: Indices,
    leaf: Indices,
    old: NDArray[np.uint8],
    new: NDArray[np.uint8],
) -> NDArray[np.int8]:
    """What each row's access was: by the instruction, else by what the mode and the bytes tell."""
    if life.mode == "x":
        return np.full(len(chosen), ACCESSES.index("execute"), np.int8)
    if life.mode == "w":  # a write breakpoint never fires for a mere read
        access = np.full(len(chosen), WRITE, np.int8)
    else:
        access = np.where((old != new).any(axis=1), WRITE, UNKNOWN).astype(np.int8)
    spans = [(item.address, item.dtype.itemsize) for item in life.leaves]
    here = place[chosen]
    for number, found in enumerate(places):
        if found.site.access == "unknown":
            continue
        alike = len({operand.access for operand in found.site.operands}) < 2
        if alike and life.mode == "w" and found.site.access in ("read", "write"):
            continue
        mine = np.flatnonzero(here == number)
        if not len(mine):
            continue
        if alike:
            access[mine] = ACCESSES.index(found.site.access)
            continue
        touched = [spans[i] for i in leaf[mine].tolist()]
        kinds = found.site.accesses(hits.registers(rows[chosen[mine]]), touched)
        if life.mode == "w":
            kinds = ["write" if kind in ("read", "unknown") else kind for kind in kinds]
        access[mine] = [ACCESSES.index(kind) for kind in kinds]
    return access
