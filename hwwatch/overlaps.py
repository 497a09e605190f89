"""One store over several watches raises one trap, which names one of them.

The handler also sees those whose bytes changed. A watch that got the value it already had is neither named
nor changed; the CPU counted it all the same. Here such hits are found again: the decoded store reaches the
watch, the watch was armed, it has no record of that trap, and its count says that one is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hwwatch.attribution import Indices, Life, Rows, access_of, covered
from hwwatch.native import lib
from hwwatch.records import Hits
from hwwatch.targets.model import Leaf


def add_unnamed(
    hits: Hits,
    parts: Sequence[Rows],
    missing: Sequence[list[int]],
) -> list[Rows]:
    """`parts` with the hits that no signal named and no change gave away.

    Parameters
    ----------
    hits : Hits
    parts : sequence of Rows
        One for each life.
    missing : by life, by piece
        Counts for which there is no record; lives of one arming share a list. Never more than these are
        added, and each that is comes off. A condition that was in force is asked now; but not one on `hits`,
        whose number only the handler could tell.
    """
    out = list(parts)
    for number, part in enumerate(parts):
        life = part.life
        if life.mode == "x" or _counts_hits(life) or not any(value > 0 for value in missing[number]):
            continue
        candidates = [_reaching(hits, other, part) for other in parts if other is not part]
        found = [item for item in candidates if len(item[0])]
        if not found:
            continue
        record = np.concatenate([item[0] for item in found])
        leaves = np.concatenate([item[1] for item in found])
        pieces = np.concatenate([item[2] for item in found])
        source = np.repeat(np.arange(len(found)), [len(item[0]) for item in found])
        # A trap with records of several other watches is one trap.
        traps = np.stack(
            [hits.records["time"][record], hits.records["tid"][record].astype(np.uint64)], axis=1
        )
        _, once = np.unique(traps, axis=0, return_index=True)
        record, leaves, pieces, source = record[once], leaves[once], pieces[once], source[once]
        counts = pieces.sum(axis=0)
        if (counts > np.maximum(missing[number], 0)).any():
            # More than the CPU counted: without those of moments when the watch may have been off.
            on = _surely_on(hits, record, life)
            record, leaves, pieces, source = record[on], leaves[on], pieces[on], source[on]
            counts = pieces.sum(axis=0)
        if not len(record) or (counts > np.maximum(missing[number], 0)).any():
            continue  # the reach was an upper bound (a masked store)
        missing[number][:] = [left - int(count) for left, count in zip(missing[number], counts, strict=True)]
        others = [item[3] for item in found]
        out[number] = _with(hits, part, record, leaves, source, others, counts)
    return out


def _surely_on(hits: Hits, record: Indices, life: Life) -> NDArray[np.bool_]:
    times = hits.records["time"][record]
    out = np.ones(len(record), np.bool_)
    for since, until in life.unsure:
        out &= (times < np.uint64(since)) | (times > np.uint64(until))
    return out


def _reaching(
    hits: Hits, other: Rows, part: Rows
) -> tuple[Indices, NDArray[np.bool_], NDArray[np.bool_], Rows]:
    """Records of `other` whose instruction reached `part`'s bytes, which has no record of that trap."""
    record, first = np.unique(other.record, return_index=True)
    place = other.place[first]
    leaves, pieces, known = covered(hits, record, part.life, other.places, place)
    times = hits.records["time"][record]
    known &= pieces.any(axis=1) & (times >= np.uint64(part.life.since))
    known &= (hits.records["flags"][record] & np.uint32(lib.HWW_HIT_LATE | lib.HWW_HIT_KERNEL)) == 0
    if part.life.until is not None:
        known &= times <= np.uint64(part.life.until)
    known &= ~np.isin(_trap_keys(hits, record), _trap_keys(hits, part.record))
    return record[known], leaves[known], pieces[known], other


def _trap_keys(hits: Hits, record: Indices) -> NDArray[np.uint64]:
    # Time in ns of a thread's trap, mixed with the thread: no two traps of a session share both.
    mixed = hits.records["tid"][record].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray(hits.records["time"][record] ^ mixed)


def _with(
    hits: Hits,
    part: Rows,
    record: Indices,
    leaves: NDArray[np.bool_],
    source: Indices,
    others: list[Rows],
    counts: NDArray[np.int64],
) -> Rows:
    """`part` and a row for each leaf that the added records touched; old and new are the same.

    Writes under a watch for reads are left out, as they are where a signal named it.
    """
    passes = _passing(hits, part, record)
    which, leaf = np.nonzero(leaves & passes[:, None])
    values = np.zeros((len(which), 32), np.uint8)
    for i, (row, number) in enumerate(zip(which.tolist(), leaf.tolist(), strict=True)):
        found = part.life.leaves[number]
        value = _value_seen(hits, others[source[row]].life, int(record[row]), found)
        if value is None:
            value = _value_before(hits, part, number, int(record[row]))
        values[i, : found.dtype.itemsize] = value[: found.dtype.itemsize]
    first = np.cumsum([len(part.places)] + [len(other.places) for other in others])
    place = np.zeros(len(record), np.int64)
    for row in range(len(record)):
        other = others[source[row]]
        place[row] = first[source[row]] + other.place[np.searchsorted(other.record, record[row])]
    places = part.places + [found for other in others for found in other.places]
    access = access_of(hits, record, part.life, places, place, which, leaf, values, values)
    keep = access != "write" if part.life.mode == "r" else np.ones(len(which), np.bool_)
    filtered = part.filtered + int(len(keep) - keep.sum()) + int((~passes).sum())
    which, leaf, values, access = which[keep], leaf[keep], values[keep], access[keep]
    everything = replace(
        part,
        record=np.concatenate([part.record, record[which]]),
        leaf=np.concatenate([part.leaf, leaf.astype(np.int64)]),
        sure=np.concatenate([part.sure, np.ones(len(which), np.bool_)]),
        old=np.concatenate([part.old, values]),
        new=np.concatenate([part.new, values]),
        places=places,
        place=np.concatenate([part.place, place[which]]),
        access=np.concatenate([part.access, access]),
        filtered=filtered,
        correction=tuple(a + b for a, b in zip(part.correction, counts.tolist(), strict=True)),
    )
    order = np.lexsort((everything.leaf, everything.record))
    return replace(
        everything,
        record=everything.record[order],
        leaf=everything.leaf[order],
        sure=everything.sure[order],
        old=everything.old[order],
        new=everything.new[order],
        place=everything.place[order],
        access=everything.access[order],
    )


def _counts_hits(life: Life) -> bool:
    """Whether one of its conditions asks for the number of hits."""
    return any(
        settings.operations[i].code == lib.HWW_OP_HITS
        for _, settings in life.settings
        for i in range(settings.noperations)
    )


def _passing(hits: Hits, part: Rows, record: Indices) -> NDArray[np.bool_]:
    """Which records pass the condition that was in force, with all values as they were before."""
    life = part.life
    out = np.ones(len(record), np.bool_)
    begins = np.array([since for since, _ in life.settings], np.uint64)
    for i, row in enumerate(record.tolist()):
        at = int(np.searchsorted(begins, hits.records["time"][row], "right")) - 1
        settings = life.settings[max(at, 0)][1]
        if not settings.noperations:
            continue
        snapshot = bytearray(lib.HWW_SNAPSHOT)
        for number, (offset, leaf) in enumerate(zip(life.offsets, life.leaves, strict=True)):
            size = leaf.dtype.itemsize
            snapshot[offset : offset + size] = _value_before(hits, part, number, row)[:size].tobytes()
        given = bytes(snapshot)
        out[i] = lib.hww_condition_true(settings, given, given, 0, int(hits.records["tid"][row]))
    return out


def _value_seen(hits: Hits, other: Life, record: int, leaf: Leaf) -> NDArray[np.uint8] | None:
    """A leaf's bytes as another watch's record has them, if that watches them too."""
    size, at = leaf.dtype.itemsize, 0
    for piece in other.pieces:
        offset = leaf.address - piece.address
        if 0 <= offset <= piece.nbytes - size:
            return np.asarray(hits.old[record, at + offset : at + offset + size])
        at += piece.nbytes
    return None


def _value_before(hits: Hits, part: Rows, leaf: int, record: int) -> NDArray[np.uint8]:
    """A leaf's bytes just before a record: what its last row left, else what it was when armed."""
    earlier = np.flatnonzero((part.leaf == leaf) & (part.record < record))
    if len(earlier):
        last = earlier[-1]
        skipped = hits.records["action"][part.record[last]] == lib.HWW_SKIPPED
        return np.asarray(part.old[last] if skipped else part.new[last])
    initial = np.frombuffer(part.life.initial.ljust(32, b"\0"), np.uint8)
    return initial[part.life.offsets[leaf] :]
