"""Ledger: the books on every arming of a session's watches. What was recorded, counted, lost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwwatch import native
from hwwatch.coverages import Tally
from hwwatch.native import lib
from hwwatch.records import Ring
from hwwatch.targets.model import Leaf, Target, merge_ranges
from hwwatch.types import Armed, Backend

if TYPE_CHECKING:
    from hwwatch.attribution import Life, Rows
    from hwwatch.code.sites import Sites
    from hwwatch.records import Hits
    from hwwatch.watchpoints import Watch

#: Seconds to wait for hits that were counted and are not recorded yet, before they are called lost.
_IN_FLIGHT = 0.02


@dataclass(frozen=True)
class _Figures:
    """What kernel and handler have counted for one life; tuples are by piece."""

    counts: tuple[int, ...]
    accounted: tuple[int, ...]
    nested: tuple[int, ...]
    recorded: int
    inferred: int
    late: int


@dataclass
class Entry:
    """One arming of a watch.

    Attributes
    ----------
    released : int
        Records forgotten by `Ledger.clear`.
    lost_before : tuple of int
        By piece: hits lost before that.
    initial : bytes
        Snapshot before the first record that is kept.
    until : int or None
        When it was disarmed, ns on CLOCK_MONOTONIC.
    final : _Figures or None
        Frozen when disarmed, since the watch table's entry is used again some day.
    """

    watch: Watch
    backend: Backend
    armed: Armed
    life: Life
    initial: bytes
    released: int = 0
    lost_before: tuple[int, ...] = ()
    until: int | None = None
    final: _Figures | None = None

    def figures(self) -> _Figures:
        """What has been counted up to now."""
        if self.final is not None:
            return self.final
        # Read before the table: what is recorded after this may be seen below, never the other way round.
        counts = self.backend.counts(self.armed)
        table = native.shared().watches[self.armed.index]
        pieces = len(counts)
        return _Figures(
            counts,
            tuple(table.accounted)[:pieces],
            tuple(table.nested)[:pieces],
            int(table.recorded),
            int(table.inferred),
            int(table.late),
        )

    def missing(self, correction: Sequence[int] = ()) -> list[int]:
        """By piece: counted since `clear`, and not accounted for by a record or the handler's own traps."""
        figures = self.figures()
        zero = (0,) * len(figures.counts)
        columns = (figures.accounted, figures.nested, self.lost_before or zero, correction or zero)
        return [count - sum(known) for count, *known in zip(figures.counts, *columns, strict=True)]


class Ledger:
    """Not thread-safe: its session holds a lock."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._ring: Ring | None = None
        self._sites: Sites | None = None
        self.start = 0  # ring position of the first record that is kept

    def ring(self) -> Ring:
        """The ring; what it held before this session is none of its business."""
        if self._ring is None:
            self._ring = Ring()
            self.start = int(native.shared().head)
        return self._ring

    def open(self, watch: Watch, backend: Backend, armed: Armed, since: int) -> None:
        """Enter a watch that was just armed; `since` is a time before that."""
        from hwwatch.attribution import Life, leaf_offsets

        leaves = watch.target.leaves + padding(watch.target)
        pieces = tuple(armed.request.pieces)
        offsets = leaf_offsets(pieces, leaves)
        life = Life(armed.index, armed.generation, watch.id, watch.mode, pieces, leaves, offsets, since)
        self.entries.append(Entry(watch, backend, armed, life, _initial(armed)))

    def close(self, watch: Watch) -> None:
        """Note that a watch was disarmed; waits a moment for hits that are on their way."""
        entry = next(entry for entry in reversed(self.entries) if entry.watch is watch)
        entry.until = time.monotonic_ns()
        deadline = time.monotonic() + _IN_FLIGHT
        while any(entry.missing()) and time.monotonic() < deadline:
            time.sleep(0.001)
        entry.final = entry.figures()

    def attributed(self) -> tuple[Hits, list[Rows]]:
        """All hits that are kept, and the rows of each entry."""
        from hwwatch.attribution import attribute, split
        from hwwatch.code.sites import Sites
        from hwwatch.overlaps import add_unnamed

        if self._sites is None:
            self._sites = Sites()
        hits = self.ring().read(self.start)
        mine = split(hits, [entry.life for entry in self.entries])
        parts = [attribute(hits, mine[entry.life], entry.life, self._sites) for entry in self.entries]
        if len(parts) > 1:
            parts = add_unnamed(
                hits,
                parts,
                [entry.missing(part.correction) for entry, part in zip(self.entries, parts, strict=True)],
                [np.frombuffer(entry.initial.ljust(32, b"\0"), np.uint8) for entry in self.entries],
                [entry.until for entry in self.entries],
            )
        return hits, parts

    def tally(self, watch: Watch) -> Tally:
        """Hits of one watch in numbers, over all its armings."""
        parts = [self._tally(number) for number, entry in enumerate(self.entries) if entry.watch is watch]
        return sum(parts, Tally())

    def _tally(self, number: int) -> Tally:
        entry = self.entries[number]
        deadline = time.monotonic() + _IN_FLIGHT
        while True:
            figures = entry.figures()
            correction: tuple[int, ...] = ()
            alone = len(self.entries) == 1 or not any(entry.missing())
            if entry.life.plain and not figures.inferred and alone:
                hits, filtered = figures.recorded - entry.released, 0
            else:
                rows = self.attributed()[1][number]
                hits, filtered, correction = len(rows.record), rows.filtered, rows.correction
            lost = sum(max(0, value) for value in entry.missing(correction))
            if not lost or entry.final or time.monotonic() > deadline:
                return Tally(hits, hits + filtered + lost, lost, filtered, figures.late)
            time.sleep(0.001)

    def clear(self, keep: set[int]) -> None:
        """Forget all complete records, and closed entries of watches that are not in `keep` (ids)."""
        from hwwatch.attribution import split

        if self._ring is None:
            return
        hits = self._ring.read(self.start)
        mine = split(hits, [entry.life for entry in self.entries])
        for entry in self.entries:
            rows = mine[entry.life]
            before = entry.lost_before or (0,) * len(entry.life.pieces)
            entry.lost_before = tuple(a + b for a, b in zip(before, entry.missing(), strict=True))
            entry.released += len(rows)
            if len(rows):
                entry.initial = hits.new[rows[-1]].tobytes()
        if len(hits):
            extended = hits.records["flags"][-1] & lib.HWW_HIT_EXTENDED
            self.start = int(hits.positions[-1]) + (2 if extended else 1)
        self.entries = [entry for entry in self.entries if entry.final is None or entry.watch.id in keep]

    def release(self, position: int) -> None:
        """Give the memory of records before `position` back; no session may want them any more."""
        if self._ring is not None:
            self._ring.release_to(position)


def padding(place: Target) -> tuple[Leaf, ...]:
    """Leaves for watched bytes that no value holds, such as the gaps inside a C structure."""
    if place.kind == "code":
        return ()
    values = merge_ranges((leaf.address, leaf.dtype.itemsize) for leaf in place.leaves)
    gaps = []
    for start, nbytes in place.ranges:
        at, end = start, start + nbytes
        for first, length in (*values, (end, 0)):
            if at < first <= end:
                gaps.append(Leaf(None, at, np.dtype(f"V{first - at}")))
            at = max(at, first + length)
    return tuple(gaps)


def _initial(armed: Armed) -> bytes:
    """The snapshot taken when it was armed: the pieces' bytes one after the other."""
    values: Any = native.shared().watches[armed.index].initial
    pieces = enumerate(armed.request.pieces)
    return b"".join(int(values[i]).to_bytes(8, "little")[: piece.nbytes] for i, piece in pieces)
