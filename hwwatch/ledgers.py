"""Ledger: the books on every arming of a session's watches. What was recorded, counted, lost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwwatch import native
from hwwatch.coverages import Tally, hits_on_their_way
from hwwatch.native import lib
from hwwatch.records import Ring
from hwwatch.targets.model import Leaf, Target, merge_ranges
from hwwatch.types import Armed, Backend

if TYPE_CHECKING:
    from hwwatch.attribution import Life, Rows
    from hwwatch.code.sites import Sites
    from hwwatch.stretches import Stretch, Sum, Sums
    from hwwatch.watchpoints import Watch

_LATER = 2**63 - 1  # ns on CLOCK_MONOTONIC
_writers: set[int] = set()  # program counters that the core knows

#: Seconds to wait for hits that were counted and are not recorded yet, before they are called lost.
_IN_FLIGHT = 0.02
_PATIENCE = 2.0  # the same, while threads are waiting for their turn to run


@dataclass(frozen=True)
class _Figures:
    """What kernel and handler have counted for one life; tuples are by piece."""

    counts: tuple[int, ...]
    accounted: tuple[int, ...]
    nested: tuple[int, ...]
    recorded: int
    filtered: int
    inferred: int
    late: int
    refused: int
    dropped: int


@dataclass
class Entry:
    """One arming of a watch: its events and counters, through all changes of mode.

    Attributes
    ----------
    lives : list of Life
        One for each mode it has had; records name the life by generation.
    released : int
        Records forgotten by `Ledger.clear`.
    explained_before : tuple of int
        By piece: counts before that which no record stands for: hits lost, and what decoding had added.
    filtered_before : int
        Hits left out before that.
    lost : int
        Lost for certain: waiting has not brought them.
    final : _Figures or None
        The last that was seen of it since it was disarmed; the watch table's entry is used again some day.
    """

    watch: Watch
    backend: Backend
    armed: Armed
    lives: list[Life]
    released: int = 0
    explained_before: tuple[int, ...] = ()
    filtered_before: int = 0
    lost: int = 0
    final: _Figures | None = None

    @property
    def plain(self) -> bool:
        """Whether each record is one row, so that nothing need be decoded to count them."""
        return all(life.plain for life in self.lives)

    def figures(self) -> _Figures:
        """What has been counted up to now."""
        final = self.final
        # Read before the table: what is recorded after this may be seen below, never the other way round.
        counts = self.backend.counts(self.armed) if final is None else final.counts
        table = native.shared().watches[self.armed.index]
        pieces = len(counts)
        now = _Figures(
            counts,
            tuple(table.accounted)[:pieces],
            tuple(table.nested)[:pieces],
            int(table.recorded),
            int(table.filtered),
            int(table.inferred),
            int(table.late),
            int(table.refused),
            int(table.dropped),
        )
        if final is None:
            return now
        # Disarmed, yet a thread that was stopped inside the handler may still finish its record.
        if table.generation == self.armed.generation:
            self.final = now
        return self.final or now

    def missing(self, correction: Sequence[int] = (), figures: _Figures | None = None) -> list[int]:
        """By piece: counted since `clear`, and not accounted for by a record or the handler's own traps."""
        figures = figures or self.figures()
        zero = (0,) * len(figures.counts)
        columns = (figures.accounted, figures.nested, self.explained_before or zero, correction or zero)
        return [count - sum(known) for count, *known in zip(figures.counts, *columns, strict=True)]


class Ledger:
    """Not thread-safe: its session holds a lock."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._ring: Ring | None = None
        self._sites: Sites | None = None
        self._known: Sums | None = None  # of the lives as they are
        self.start = 0  # ring position of the first record that is kept

    def ring(self) -> Ring:
        """The ring; what it held before this session is none of its business."""
        if self._ring is None:
            self._ring = Ring()
            self.start = int(native.shared().head)
        return self._ring

    def open(self, watch: Watch, backend: Backend, armed: Armed, since: int) -> None:
        """Enter a watch that was just armed; `since` is a time before that."""
        values: Any = native.shared().watches[armed.index].initial
        initial = b"".join(
            int(values[i]).to_bytes(8, "little")[: piece.nbytes]
            for i, piece in enumerate(armed.request.pieces)
        )
        life = _life(watch, armed, since, initial, armed.request.settings)
        life.unsure.append((since, time.monotonic_ns()))
        self.entries.append(Entry(watch, backend, armed, [life]))
        self._known = None

    def change(self, watch: Watch, armed: Armed) -> None:
        """Note that an armed watch has a new mode."""
        from hwwatch.code.maps import read_code

        entry = self._open_entry(watch)
        now = time.monotonic_ns()
        entry.lives[-1].until = now
        entry.armed = armed
        # read by the kernel: a load would be a hit
        initial = b"".join(read_code(piece.address, piece.nbytes) for piece in armed.request.pieces)
        before = entry.lives[-1]
        life = _life(watch, armed, now, initial, before.settings[-1][1])
        life.unsure = [(now, end) for _, end in before.unsure if end == _LATER]
        entry.lives.append(life)
        self._known = None

    def configure(self, watch: Watch, settings: Any) -> None:
        """Note that an armed watch has new settings."""
        self._open_entry(watch).lives[-1].settings.append((time.monotonic_ns(), settings))
        self._doubt()

    def enable(self, watch: Watch, on: bool, since: int) -> None:
        """Note that an armed watch was paused or goes on; `since` is a time before that."""
        life = self._open_entry(watch).lives[-1]
        if not on:
            life.unsure.append((since, _LATER))
        elif life.unsure and life.unsure[-1][1] == _LATER:
            life.unsure[-1] = (life.unsure[-1][0], time.monotonic_ns())
        self._doubt()

    def close(self, watch: Watch, since: int) -> None:
        """Note that a watch was disarmed, and all its hits have come in; `since` is a time before that."""
        entry = self._open_entry(watch)
        entry.lives[-1].until = time.monotonic_ns()
        entry.lives[-1].unsure.append((since, _LATER))
        entry.final = entry.figures()
        self._doubt()

    def _doubt(self) -> None:
        """What is known of unnamed hits may be otherwise now."""
        if self._known is not None and self._known.values is not None:
            self._known = None

    def _open_entry(self, watch: Watch) -> Entry:
        return next(entry for entry in reversed(self.entries) if entry.watch is watch)

    def stretches(self, start: int | None = None) -> Iterator[Stretch]:
        """The hits from a ring position on (default: all that are kept), stretch by stretch.

        Hits that no signal named are not among the rows; see `completed`.
        """
        from hwwatch.stretches import walk

        ring, sites = self.ring(), self._decoder()
        start = self.start if start is None else max(start, self.start)
        for stretch in walk(ring, sites, self._lives(), start, ring.committed(), first=start):
            self._learn_writers(stretch.parts)
            yield stretch

    def completed(self) -> Iterator[Stretch]:
        """All hits that are kept by now, stretch by stretch, with those that no signal named."""
        from hwwatch.stretches import choices

        end = self.ring().committed()
        missing = self._missing()
        if not self._unnamed_wanted(missing):
            return self._walk(end, self._lives())
        sums = self._sums(end, unnamed=True)
        return self._walk(end, sums.lives, choices(sums, missing))

    def planned(self) -> tuple[list[Life], Iterator[Stretch]]:
        """The lives that have rows by now; and all hits, as `completed` gives them."""
        end = self.ring().committed()
        sums, chosen = self._plan(end)
        totals = zip(sums.lives, sums.by_life, chosen, strict=True)
        present = [life for life, total, surely in totals if total.with_unnamed(surely).rows]
        return present, self._walk(end, sums.lives, chosen)

    def _walk(self, end: int, lives: list[Life], chosen: Sequence[bool | None] = ()) -> Iterator[Stretch]:
        """The stretches up to a ring position, with the unnamed hits that are chosen, if any are."""
        from hwwatch.stretches import initial_values, walk

        first, wanted = self.start, any(surely is not None for surely in chosen)
        values = initial_values(lives) if wanted else None
        for stretch in walk(self.ring(), self._decoder(), lives, first, end, first=first, values=values):
            self._learn_writers(stretch.parts)
            yield stretch.complete(chosen) if wanted else stretch

    def _lives(self) -> list[Life]:
        return [life for entry in self.entries for life in entry.lives]

    def _missing(self) -> list[list[int]]:
        """By life and piece, counts without a record; lives of one arming share a list.

        To be asked for after the end of the records that are looked at: never more is missing than that.
        """
        missing = {id(entry): entry.missing() for entry in self.entries}
        return [missing[id(entry)] for entry in self.entries for _ in entry.lives]

    def _unnamed_wanted(self, missing: list[list[int]]) -> bool:
        return len(self.entries) > 1 and any(any(left) for left in missing)

    def _decoder(self) -> Sites:
        from hwwatch.code.sites import Sites

        if self._sites is None:
            self._sites = Sites()
        return self._sites

    def _sums(self, end: int, *, unnamed: bool) -> Sums:
        """Sums over all that is kept up to a ring position; those of earlier questions are built upon."""
        from hwwatch.stretches import Sums

        known = self._known
        if known is None or (unnamed and known.values is None):
            known = Sums.begin(self._lives(), self.start, unnamed=unnamed)
        now, self._known = known.upto(self.ring(), self._decoder(), end, self._learn_writers)
        return now

    def _plan(self, end: int) -> tuple[Sums, list[bool | None]]:
        """Sums up to a ring position, and by life which of its unnamed hits are taken."""
        from hwwatch.stretches import choices

        missing = self._missing()
        if self._unnamed_wanted(missing):
            sums = self._sums(end, unnamed=True)
            return sums, choices(sums, missing)
        sums = self._sums(end, unnamed=False)
        return sums, [None] * len(sums.lives)

    def _totals(self, end: int) -> dict[Life, Sum]:
        """By life, what its rows up to a ring position add up to, with the unnamed hits that are taken."""
        sums, chosen = self._plan(end)
        totals = zip(sums.lives, sums.by_life, chosen, strict=True)
        return {life: total.with_unnamed(surely) for life, total, surely in totals}

    @staticmethod
    def _learn_writers(parts: Sequence[Rows]) -> None:
        """Tell the handler which instructions only write: watches for reads pass them over from now on."""
        for part in parts:
            if part.life.mode == "r" and part.life.until is None:
                for site in {place.site for place in part.places}:
                    if (site.access, site.confidence) == ("write", "exact") and site.pc not in _writers:
                        _writers.add(site.pc)
                        lib.hww_writer_add(site.pc)

    def tally(self, watch: Watch, patience: float = _PATIENCE) -> Tally:
        """Hits of one watch in numbers, over all its armings.

        Waits for hits that were counted and are not recorded yet, at most `patience` seconds; after less
        than the default, what it calls lost may still come.
        """
        mine = [entry for entry in self.entries if entry.watch is watch]
        return sum((self._tally(entry, patience) for entry in mine), Tally())

    def _tally(self, entry: Entry, patience: float = _PATIENCE) -> Tally:
        begun = time.monotonic()
        while True:
            figures = entry.figures()
            correction: tuple[int, ...] = ()
            filtered = figures.filtered - entry.filtered_before
            alone = len(self.entries) == 1 or not any(entry.missing())
            if entry.plain and not figures.inferred and alone:
                hits = figures.recorded - entry.released
            else:
                totals = self._totals(self.ring().committed())
                hits = sum(totals[life].rows for life in entry.lives)
                filtered += sum(totals[life].filtered for life in entry.lives)
                correction = _correction(totals, entry)
            lost = sum(max(0, value) for value in entry.missing(correction))
            waited = time.monotonic() - begun
            if waited > (_PATIENCE if lost > entry.lost and hits_on_their_way() else _IN_FLIGHT):
                entry.lost = lost
            if lost <= entry.lost or entry.final or waited > patience:
                return Tally(
                    hits,
                    hits + filtered + lost,
                    lost,
                    filtered,
                    figures.late,
                    figures.refused,
                    figures.dropped,
                )
            time.sleep(0.001)

    def clear(self) -> None:
        """Forget all complete records, and all armings that have ended."""
        if self._ring is None:
            return
        # What is lost for certain; the rest may be on its way, and will be recorded.
        tallies = [self._tally(entry, _IN_FLIGHT).lost for entry in self.entries]
        certain = [
            lost if entry.final else min(lost, entry.lost)
            for entry, lost in zip(self.entries, tallies, strict=True)
        ]
        end = self.ring().committed()
        totals = self._totals(end)
        for entry, left in zip(self.entries, certain, strict=True):
            correction = _correction(totals, entry)
            before = entry.explained_before or (0,) * len(correction)
            explained = []
            for old, missing, added in zip(before, entry.missing(correction), correction, strict=True):
                lost = min(max(0, missing), left)
                left -= lost
                explained.append(old + added + lost)
            entry.explained_before = tuple(explained)
            entry.filtered_before = entry.figures().filtered
            entry.lost = 0
            entry.released += sum(totals[life].records for life in entry.lives)
            for life in entry.lives:
                last = totals[life].last
                if last is not None:
                    life.initial = last
            entry.lives = [life for life in entry.lives if life.until is None] or entry.lives[-1:]
            for life in entry.lives:
                life.unsure = [span for span in life.unsure if span[1] == _LATER]
        self.start, self._known = end, None
        self.entries = [entry for entry in self.entries if entry.final is None]

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


def _life(watch: Watch, armed: Armed, since: int, initial: bytes, settings: Any) -> Life:
    from hwwatch.attribution import Life, leaf_offsets

    leaves = watch.target.leaves + padding(watch.target)
    pieces = tuple(armed.request.pieces)
    return Life(
        armed.index,
        armed.generation,
        watch.id,
        armed.request.mode,
        pieces,
        leaves,
        leaf_offsets(pieces, leaves),
        since,
        initial,
        settings=[(since, settings)],
        home=watch.home,
    )


def _correction(totals: Mapping[Life, Sum], entry: Entry) -> tuple[int, ...]:
    """By piece: what the decoded instructions add to the handler's account, if others count, too."""
    if not entry.backend.counting:
        return (0,) * len(entry.armed.request.pieces)
    columns = zip(*(totals[life].correction for life in entry.lives), strict=True)
    return tuple(sum(column) for column in columns)
