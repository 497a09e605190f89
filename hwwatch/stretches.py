"""The ring, stretch by stretch: what its records mean, with memory for one stretch at a time.

A stretch is read with margins on both sides. They hold what belongs together and does not lie together: the
records that one trap makes for several watches, and a change that one thread saw and another had made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwwatch.attribution import Life, Rows, attribute, split
from hwwatch.code.sites import Sites
from hwwatch.overlaps import (
    NO_EXTRA,
    Extra,
    Unnamed,
    Values,
    can_be_found,
    choose,
    find_unnamed,
    heard,
    left_behind,
    with_unnamed,
)
from hwwatch.records import Hits, Ring

#: Ring positions of a stretch and of each margin; with all that is made of them some 50 MB.
SIZE, MARGIN = 65536, 8192


@dataclass(frozen=True)
class Stretch:
    """Some records, and what they mean.

    Attributes
    ----------
    start, end : int
        Ring positions.
    hits : Hits
        Of the stretch and its margins.
    parts : list of Rows
        By life, without the margins.
    unnamed : list of (Unnamed or None)
        By life; all None where they were not asked for.
    """

    start: int
    end: int
    hits: Hits
    parts: list[Rows]
    unnamed: list[Unnamed | None]

    def __len__(self) -> int:
        return self.end - self.start

    def complete(self, choices: Sequence[bool | None]) -> Stretch:
        """This with the unnamed hits of each life: all (False), the sure ones (True), or none (None)."""
        parts = [
            part if unnamed is None or surely is None else with_unnamed(part, unnamed, surely=surely)
            for part, unnamed, surely in zip(self.parts, self.unnamed, choices, strict=True)
        ]
        return replace(self, parts=parts, unnamed=[None] * len(parts))


def walk(
    ring: Ring,
    sites: Sites,
    lives: Sequence[Life],
    start: int,
    end: int,
    *,
    first: int,
    values: list[Values] | None = None,
) -> Iterator[Stretch]:
    """The stretches from one ring position to before another.

    Parameters
    ----------
    ring, sites, lives
    start, end : int
    first : int
        Where the margin of the first stretch may begin.
    values : by life, (leaves, 32) uint8, optional
        What stood there before `start`, see `initial_values`; kept up to date. With it, unnamed hits are
        looked for.
    """
    while start < end:
        stop = min(start + SIZE, end)
        hits = ring.read(max(start - MARGIN, first), min(stop + MARGIN, end))
        mine = split(hits, lives)
        whole = [attribute(hits, mine[life], life, sites, start, stop) for life in lives]
        parts = [part.between(hits, start, stop) for part in whole]
        unnamed: list[Unnamed | None] = [None] * len(lives)
        if values is not None:
            everything = [records for part in whole if (records := heard(hits, part))]
            for number, life in enumerate(lives):
                if can_be_found(life):
                    found = find_unnamed(hits, whole[number], everything, values[number])
                    unnamed[number] = found and found.between(hits, start, stop)
            for part, known in zip(parts, values, strict=True):
                if len(part.record) and part.life.mode != "x":
                    leaf, last = np.unique(part.leaf[::-1], return_index=True)
                    known[leaf] = left_behind(hits, part, len(part.leaf) - 1 - last)
        yield Stretch(start, stop, hits, parts, unnamed)
        start = stop


def initial_values(lives: Sequence[Life]) -> list[Values]:
    """By life and leaf, the bytes before its first record."""
    out = []
    for life in lives:
        initial = np.frombuffer(life.initial.ljust(64, b"\0"), np.uint8)
        rows = [initial[offset : offset + 32] for offset in life.offsets]
        out.append(np.array(rows, np.uint8).reshape(-1, 32))
    return out


@dataclass
class Sum:
    """What the stretches so far add up to, for one life.

    Attributes
    ----------
    records, rows, filtered : int
    correction : tuple of int
        By piece.
    every, sure : Extra
        What its unnamed hits would add: all, and those when it surely was on.
    last : bytes or None
        Snapshot of its last record.
    """

    records: int = 0
    rows: int = 0
    filtered: int = 0
    correction: tuple[int, ...] = ()
    every: Extra = NO_EXTRA
    sure: Extra = NO_EXTRA
    last: bytes | None = None

    def after(self, hits: Hits, part: Rows, unnamed: Unnamed | None) -> Sum:
        """This and one stretch more."""
        out = Sum(
            self.records + part.records,
            self.rows + len(part.record),
            self.filtered + part.filtered,
            _plus(self.correction, part.correction),
            self.every,
            self.sure,
            hits.new[part.record[-1]].tobytes() if len(part.record) else self.last,
        )
        if unnamed is not None:
            out.every = _add(self.every, unnamed.extra(surely=False))
            out.sure = _add(self.sure, unnamed.extra(surely=True))
        return out

    def with_unnamed(self, surely: bool | None) -> Sum:
        """This and the unnamed hits that are taken, as in `Stretch.complete`."""
        if surely is None:
            return self
        extra = self.sure if surely else self.every
        return replace(
            self,
            rows=self.rows + extra.rows,
            filtered=self.filtered + extra.filtered,
            correction=_plus(self.correction, extra.counts),
        )


def _plus(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(one or (0,) * len(other), other, strict=True))


def _add(one: Extra, other: Extra) -> Extra:
    return Extra(one.rows + other.rows, one.filtered + other.filtered, _plus(one.counts, other.counts))


@dataclass(frozen=True)
class Sums:
    """Sums of lives from one ring position to another.

    Attributes
    ----------
    lives : list of Life
    first, position : int
        All between is in.
    by_life : list of Sum
    values : by life, (leaves, 32) uint8, or None
        What stands there at `position`; None where unnamed hits are not looked for.
    """

    lives: list[Life]
    first: int
    position: int
    by_life: list[Sum]
    values: list[Values] | None

    @classmethod
    def begin(cls, lives: list[Life], position: int, *, unnamed: bool) -> Sums:
        """Nothing yet."""
        zero = [Sum(correction=(0,) * len(life.pieces)) for life in lives]
        return cls(lives, position, position, zero, initial_values(lives) if unnamed else None)

    def upto(
        self, ring: Ring, sites: Sites, end: int, learn: Callable[[Sequence[Rows]], None]
    ) -> tuple[Sums, Sums]:
        """These up to `end`, and up to the last whole stretch well before it, to be built upon later.

        `learn` sees the rows on the way.
        """
        values = _copies(self.values)
        now = whole = self
        for stretch in walk(ring, sites, self.lives, self.position, end, first=self.first, values=values):
            by_life = [
                total.after(stretch.hits, part, unnamed)
                for total, part, unnamed in zip(now.by_life, stretch.parts, stretch.unnamed, strict=True)
            ]
            now = replace(now, position=stretch.end, by_life=by_life, values=_copies(values))
            learn(stretch.parts)
            # Later records may still belong to traps near the end.
            if len(stretch) == SIZE and stretch.end + MARGIN <= end:
                whole = now
        return now, whole


def _copies(values: list[Values] | None) -> list[Values] | None:
    return None if values is None else [known.copy() for known in values]


def choices(sums: Sums, missing: Sequence[list[int]]) -> list[bool | None]:
    """By life, which of its unnamed hits are taken, as in `Stretch.complete`.

    `missing`, by life and piece: counts for which there is no record; lives of one arming share a list.
    Each hit that is taken comes off.
    """
    out: list[bool | None] = []
    for total, left in zip(sums.by_life, missing, strict=True):
        taken = choose(left, total.every, total.sure) if any(total.every.counts) else None
        out.append(None if taken is None else taken is not total.every)
        if taken is not None:
            left[:] = [value - count for value, count in zip(left, taken.counts, strict=True)]
    return out
