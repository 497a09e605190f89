"""One store over several watches raises one trap, which names one of them.

The handler also sees those whose bytes changed. A watch that got the value it already had is neither named
nor changed; the CPU counted it all the same. Here such hits are found again: the decoded store reaches the
watch, the watch was armed, it has no record of that trap, and its count says that one is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwwatch.attribution import WRITE, Bools, Indices, Life, Rows, access_of, covered
from hwwatch.native import lib
from hwwatch.records import Hits
from hwwatch.targets.model import Leaf

#: Bytes of each leaf of a life, from the left: (leaves, 32) uint8.
Values = NDArray[np.uint8]


@dataclass(frozen=True)
class Unnamed:
    """Hits of one life that no signal named and no change gave away, as far as decoding tells.

    Attributes
    ----------
    rows : Rows
        One a leaf, old and new the same; the counters in it are 0.
    on : (m,) bool
        By row: the watch was surely on then, neither being armed nor paused.
    traps : (t,) int64
        The records of other lives that tell of them, one for each trap.
    traps_on : (t,) bool
    pieces : (t, pieces) bool
        Which pieces each trap reached.
    left_out : (t,) int64
        Rows that each would have, left out by a condition or as writes of a watch for reads.
    """

    rows: Rows
    on: Bools
    traps: Indices
    traps_on: Bools
    pieces: NDArray[np.bool_]
    left_out: NDArray[np.int64]

    def extra(self, *, surely: bool) -> Extra:
        """What taking all of them, or those that surely were, would add."""
        rows = self.on if surely else np.ones(len(self.on), np.bool_)
        traps = self.traps_on if surely else np.ones(len(self.traps), np.bool_)
        counts = self.pieces[traps].sum(axis=0)
        return Extra(int(rows.sum()), int(self.left_out[traps].sum()), tuple(counts.tolist()))

    def between(self, hits: Hits, start: int, end: int) -> Unnamed:
        """Those of traps from one ring position to before another."""
        inside = [
            (hits.positions[record] >= np.uint64(start)) & (hits.positions[record] < np.uint64(end))
            for record in (self.rows.record, self.traps)
        ]
        return Unnamed(
            self.rows.only(inside[0]),
            self.on[inside[0]],
            self.traps[inside[1]],
            self.traps_on[inside[1]],
            self.pieces[inside[1]],
            self.left_out[inside[1]],
        )


class Extra(NamedTuple):
    """What unnamed hits add to a tally: rows, hits left out, and counts by piece."""

    rows: int
    filtered: int
    counts: tuple[int, ...]


NO_EXTRA = Extra(0, 0, ())


def can_be_found(life: Life) -> bool:
    """Whether its unnamed hits can be: not of code, nor with a condition that asks for the number of hits."""
    return life.mode != "x" and not any(
        settings.operations[i].code == lib.HWW_OP_HITS
        for _, settings in life.settings
        for i in range(settings.noperations)
    )


class Heard(NamedTuple):
    """The records of one life; `first` row of each, its `times`, and the earliest and latest of these."""

    part: Rows
    record: Indices
    first: Indices
    times: NDArray[np.uint64]
    begun: int
    ended: int


def heard(hits: Hits, part: Rows) -> Heard | None:
    """What other lives' unnamed hits are looked for in; None where there are no records."""
    if not len(part.record):
        return None
    record, first = np.unique(part.record, return_index=True)
    times = hits.records["time"][record]
    return Heard(part, record, first, times, int(times.min()), int(times.max()))


def find_unnamed(hits: Hits, part: Rows, everything: Sequence[Heard], before: Values) -> Unnamed | None:
    """The unnamed hits of one life; None where there are none.

    Parameters
    ----------
    hits : Hits
    part : Rows
        Of the life whose are looked for.
    everything : sequence of Heard
        Of all lives.
    before : (leaves, 32) uint8
        Values before the first of its rows. A condition that was in force is asked now.
    """
    since, until = part.life.since, part.life.until
    candidates = [
        _reaching(hits, other, part)
        for other in everything
        if other.part is not part and since <= other.ended and (until is None or other.begun <= until)
    ]
    found = [item for item in candidates if len(item.record)]
    if not found:
        return None
    record = np.concatenate([item.record for item in found])
    leaves = np.concatenate([item.leaves for item in found])
    pieces = np.concatenate([item.pieces for item in found])
    source = np.repeat(np.arange(len(found)), [len(item.record) for item in found])
    # A trap with records of several other watches is one trap.
    traps = np.stack([hits.records["time"][record], hits.records["tid"][record].astype(np.uint64)], axis=1)
    _, once = np.unique(traps, axis=0, return_index=True)
    record, leaves, pieces, source = record[once], leaves[once], pieces[once], source[once]
    return _made(hits, part, record, leaves, pieces, source, [item.other for item in found], before)


def choose(missing: Sequence[int], every: Extra, sure: Extra) -> Extra | None:
    """Which of a life's unnamed hits are taken: all, those that surely were, or None of them.

    Never more than the CPU counted beyond the records, by piece: where all are more, those of moments when
    the watch may have been off are left out; where these are more still, the reach was an upper bound (a
    masked store), and none is taken.
    """
    for extra in (every, sure):
        fits = all(count <= max(left, 0) for count, left in zip(extra.counts, missing, strict=True))
        if fits:
            return extra if any(extra.counts) else None
    return None


def with_unnamed(part: Rows, unnamed: Unnamed, *, surely: bool) -> Rows:
    """`part` and the rows of its unnamed hits, in order; `surely` leaves those of unsure moments out."""
    added = unnamed.rows.only(unnamed.on) if surely else unnamed.rows
    extra = unnamed.extra(surely=surely)
    both = replace(
        part,
        record=np.concatenate([part.record, added.record]),
        leaf=np.concatenate([part.leaf, added.leaf]),
        sure=np.concatenate([part.sure, added.sure]),
        old=np.concatenate([part.old, added.old]),
        new=np.concatenate([part.new, added.new]),
        places=part.places + added.places,
        place=np.concatenate([part.place, added.place + len(part.places)]),
        access=np.concatenate([part.access, added.access]),
        filtered=part.filtered + extra.filtered,
        correction=tuple(a + b for a, b in zip(part.correction, extra.counts, strict=True)),
    )
    return both.only(np.lexsort((both.leaf, both.record)))


class _Reached(NamedTuple):
    """Records of another life whose instruction reached the bytes of this one."""

    record: Indices
    leaves: NDArray[np.bool_]
    pieces: NDArray[np.bool_]
    other: Rows


def _reaching(hits: Hits, other: Heard, part: Rows) -> _Reached:
    """Records of `other` whose instruction reached `part`'s bytes, which has no record of that trap."""
    then = other.times >= np.uint64(part.life.since)
    if part.life.until is not None:
        then &= other.times <= np.uint64(part.life.until)
    then &= (hits.records["flags"][other.record] & np.uint32(lib.HWW_HIT_LATE | lib.HWW_HIT_KERNEL)) == 0
    record, place = other.record[then], other.part.place[other.first[then]]
    leaves, pieces, known = covered(hits, record, part.life, other.part.places, place)
    known &= pieces.any(axis=1)
    known &= ~np.isin(_trap_keys(hits, record), _trap_keys(hits, part.record))
    return _Reached(record[known], leaves[known], pieces[known], other.part)


def _trap_keys(hits: Hits, record: Indices) -> NDArray[np.uint64]:
    # Time in ns of a thread's trap, mixed with the thread: no two traps of a session share both.
    mixed = hits.records["tid"][record].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray(hits.records["time"][record] ^ mixed)


def _surely_on(hits: Hits, record: Indices, life: Life) -> NDArray[np.bool_]:
    times = hits.records["time"][record]
    out = np.ones(len(record), np.bool_)
    for since, until in life.unsure:
        out &= (times < np.uint64(since)) | (times > np.uint64(until))
    return out


def _made(
    hits: Hits,
    part: Rows,
    record: Indices,
    leaves: NDArray[np.bool_],
    pieces: NDArray[np.bool_],
    source: Indices,
    others: list[Rows],
    before: Values,
) -> Unnamed:
    """Rows for each leaf that these traps touched; writes under a watch for reads are left out."""
    life = part.life
    passes = _passing(hits, part, record, before)
    which, leaf = np.nonzero(leaves & passes[:, None])
    values = np.zeros((len(which), 32), np.uint8)
    for number, item in enumerate(life.leaves):
        mine = np.flatnonzero(leaf == number)
        values[mine] = values_before(hits, part, number, record[which[mine]], before[number])
        for index, other in enumerate(others):
            theirs = mine[source[which[mine]] == index]
            seen = _values_seen(hits, other.life, record[which[theirs]], item)
            if seen is not None:
                values[theirs] = seen
    first = np.cumsum([0] + [len(other.places) for other in others])
    place = np.zeros(len(record), np.int64)
    for number, other in enumerate(others):
        mine = np.flatnonzero(source == number)
        place[mine] = first[number] + other.place[np.searchsorted(other.record, record[mine])]
    places = [found for other in others for found in other.places]
    access = access_of(hits, record, life, places, place, which, leaf, values, values)
    keep = access != WRITE if life.mode == "r" else np.ones(len(which), np.bool_)
    left_out = (~passes).astype(np.int64) + np.bincount(which[~keep], minlength=len(record))
    which, leaf, values, access = which[keep], leaf[keep], values[keep], access[keep]
    on = _surely_on(hits, record, life)
    rows = Rows(
        life,
        record[which],
        leaf.astype(np.int64),
        np.ones(len(which), np.bool_),
        values,
        values,
        places,
        place[which],
        access,
        0,
        (0,) * len(life.pieces),
        0,
    )
    return Unnamed(rows, on[which], record, on, pieces, left_out)


_ALL = 2**lib.HWW_SNAPSHOT - 1  # bytes of a snapshot


def _passing(hits: Hits, part: Rows, record: Indices, before: Values) -> NDArray[np.bool_]:
    """Which records pass the condition that was in force, with all values as they were before."""
    life = part.life
    out = np.ones(len(record), np.bool_)
    if not any(settings.noperations for _, settings in life.settings):
        return out
    snapshots = np.zeros((len(record), lib.HWW_SNAPSHOT), np.uint8)
    for number, (offset, leaf) in enumerate(zip(life.offsets, life.leaves, strict=True)):
        size = leaf.dtype.itemsize
        values = values_before(hits, part, number, record, before[number])
        snapshots[:, offset : offset + size] = values[:, :size]
    begins = np.array([since for since, _ in life.settings], np.uint64)
    force = np.maximum(np.searchsorted(begins, hits.records["time"][record], "right") - 1, 0)
    tids = hits.records["tid"][record]
    for i in range(len(record)):
        settings = life.settings[force[i]][1]
        if settings.noperations:
            given = snapshots[i].tobytes()
            out[i] = lib.hww_condition_true(settings, given, given, _ALL, 0, int(tids[i]))
    return out


def _values_seen(hits: Hits, other: Life, record: Indices, leaf: Leaf) -> Values | None:
    """A leaf's bytes as another watch's records have them, if that watches them too."""
    size, at = leaf.dtype.itemsize, 0
    for piece in other.pieces:
        offset = leaf.address - piece.address
        if 0 <= offset <= piece.nbytes - size:
            out = np.zeros((len(record), 32), np.uint8)
            out[:, :size] = hits.old[record, at + offset : at + offset + size]
            return out
        at += piece.nbytes
    return None


def values_before(hits: Hits, part: Rows, leaf: int, record: Indices, before: NDArray[np.uint8]) -> Values:
    """A leaf's bytes just before each of some records: what its last row left, else `before`."""
    own = np.flatnonzero(part.leaf == leaf)
    at = np.searchsorted(part.record[own], record) - 1  # the last that is earlier
    out = np.broadcast_to(before, (len(record), 32)).copy()
    some = np.flatnonzero(at >= 0)
    out[some] = left_behind(hits, part, own[at[some]])
    return out


def left_behind(hits: Hits, part: Rows, rows: Indices) -> Values:
    """The bytes that stood there after some rows."""
    skipped = hits.records["action"][part.record[rows]] == lib.HWW_SKIPPED
    return np.where(skipped[:, None], part.old[rows], part.new[rows])
