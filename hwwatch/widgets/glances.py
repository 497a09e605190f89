"""Glances: what a session is like at this moment, cheap enough to be asked ten times a second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hwwatch.code.maps import read_code
from hwwatch.columns import objects
from hwwatch.coverages import Coverage, Tally, describe, threads
from hwwatch.displays import element_text
from hwwatch.errors import HwwatchError
from hwwatch.letters import plural
from hwwatch.types import Policy
from hwwatch.widgets.hits import CHUNK, Hit, Writers

if TYPE_CHECKING:
    from hwwatch.sessions import Session
    from hwwatch.watchpoints import Watch

#: Seconds over which a rate is taken, and for which hits must be missing before they are called lost.
WINDOW = 1.0
#: Seconds between two looks at threads and free registers.
SLOW = 1.0
_MOST_VALUES = 4


@dataclass(frozen=True)
class Seen:
    """One watch at this moment.

    Attributes
    ----------
    place : str
        Address, bytes and type, in words.
    value : str
        What stands in the watched bytes now; empty for code.
    state : {"armed", "paused", "disarmed"}
    stopped : str
        Why it was disarmed, unless somebody asked for it.
    tally : Tally
    exact : bool
        Whether its hits are exactly the rows of the timeline.
    rate : float
        Hits a second, over the last second.
    writer : Hit or None
        The last that wrote; of a watch for reads or execution, the last hit.
    """

    watch: Watch
    id: int
    name: str
    kind: str
    place: str
    value: str
    mode: str
    policy: Policy
    when: str
    state: str
    stopped: str
    slots: int
    tally: Tally
    exact: bool
    rate: float
    writer: Hit | None


@dataclass(frozen=True)
class Glance:
    """A session at this moment.

    Attributes
    ----------
    watches : tuple of Seen
    free : int
        Debug registers that could still be had.
    coverage : Coverage
        At most a second old.
    """

    watches: tuple[Seen, ...]
    free: int
    coverage: Coverage

    @property
    def used(self) -> int:
        """Debug registers that the watches take."""
        return sum(seen.slots for seen in self.watches if seen.state != "disarmed")

    @property
    def hits(self) -> int:
        """Of all watches."""
        return sum(seen.tally.hits for seen in self.watches)


class Glances:
    """Looks at one session, again and again; for one thread at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._writers = Writers(session)
        self._past: dict[int, deque[tuple[float, int, int]]] = {}
        self._known: dict[int, tuple[Any, Tally | None]] = {}  # what the figures were, and mean
        self._coverage: Coverage | None = None
        self._next_slow = 0.0
        self._shape: tuple[Any, ...] = ()

    def look(self) -> Glance:
        """The session now."""
        session, now = self._session, time.monotonic()
        with session._lock:
            watches = session.watches()
            self._writers.advance()
            seen = tuple(self._seen(watch, now) for watch in watches)
            shape = tuple((item.id, item.mode, item.state) for item in seen)
            if self._coverage is None or shape != self._shape or now >= self._next_slow:
                self._coverage = self._cover(seen)
                self._shape, self._next_slow = shape, now + SLOW
        kept = {item.id for item in seen}
        self._past = {number: past for number, past in self._past.items() if number in kept}
        return Glance(seen, self._coverage.slots_free, self._coverage)

    def _seen(self, watch: Watch, now: float) -> Seen:
        tally, exact = self._tally(watch)
        past = self._past.setdefault(watch.id, deque())
        if past and tally.hits < past[-1][1]:  # cleared
            past.clear()
        past.append((now, tally.hits, tally.lost))
        while len(past) > 2 and past[1][0] <= now - WINDOW:
            past.popleft()
        begun, before, _ = past[0]
        lost = min(missing for _, _, missing in past)
        return Seen(
            watch,
            watch.id,
            watch.name,
            watch.target.kind,
            _place(watch),
            value_now(watch),
            watch.mode,
            watch.policy,
            watch.when or "",
            watch.state,
            watch.stopped,
            watch.slots,
            replace(tally, lost=lost, counted=tally.counted - tally.lost + lost),
            exact,
            (tally.hits - before) / max(now - begun, WINDOW),
            self._writers.of(watch.id, watch.mode),
        )

    def _tally(self, watch: Watch) -> tuple[Tally, bool]:
        """The watch in numbers, and whether the hits are exact.

        They are not where records would have to be decoded to count rows, and many have come, or are coming.
        """
        ledger = self._session._ledger
        entries = [entry for entry in ledger.entries if entry.watch is watch]
        figures = [entry.figures() for entry in entries]
        recorded = sum(found.recorded for found in figures)
        state = (recorded, [found.counts for found in figures], ledger.start)
        before, known = self._known.get(watch.id, (None, None))
        known = known if state == before else None
        if known is None and self._few(4 * CHUNK if state == before else CHUNK // 4):
            known = ledger.tally(watch, patience=0)
        self._known[watch.id] = (state, known)
        if known is not None:
            return known, True
        plain = all(e.plain and not f.inferred for e, f in zip(entries, figures, strict=True))
        missing = [e.missing(figures=f) for e, f in zip(entries, figures, strict=True)]
        hits = recorded - sum(entry.released for entry in entries)
        lost = sum(max(0, value) for values in missing for value in values)
        filtered = sum(f.filtered - e.filtered_before for e, f in zip(entries, figures, strict=True))
        late = sum(found.late for found in figures)
        refused = sum(found.refused for found in figures)
        dropped = sum(found.dropped for found in figures)
        return Tally(hits, hits + filtered + lost, lost, filtered, late, refused, dropped), plain

    def _few(self, most: int) -> bool:
        """Whether so many records, or fewer, would have to be decoded to count rows."""
        ledger = self._session._ledger
        if ledger._ring is None:
            return False
        known = ledger._known
        kept = known is not None and (known.values is not None or len(ledger.entries) == 1)
        start = known.position if known is not None and kept else ledger.start
        return ledger._ring.committed() - start <= most

    def _cover(self, seen: Sequence[Seen]) -> Coverage:
        tallies, alive = {item.id: item.tally for item in seen}, threads()
        return self._session._cover(lambda watch: describe(watch, tallies[watch.id], alive))


def _place(watch: Watch) -> str:
    if watch.target.kind == "code":
        return f"code at {watch.address:#x}"
    return f"{watch.dtype}, {plural(watch.nbytes, 'byte')} at {watch.address:#x}"


def value_now(watch: Watch) -> str:
    """What stands in the watched bytes, in the watch's dtype; empty for code.

    The kernel copies it: no load is made, which an armed register would report.
    """
    leaves = watch.target.leaves
    if watch.target.kind == "code" or watch.mode == "x" or not leaves:
        return ""
    shown = []
    for leaf in leaves[:_MOST_VALUES]:
        raw = read_code(leaf.address, leaf.dtype.itemsize)
        if len(raw) < leaf.dtype.itemsize:
            return "no longer mapped"
        wide = np.frombuffer(raw.ljust(32, b"\0"), np.uint8).reshape(1, 32)
        text = value_text(objects(wide, leaf.dtype)[0])
        named = len(leaves) > 1 and isinstance(leaf.element, str)
        shown.append(f"{element_text(leaf.element)}={text}" if named else text)
    more = ", …" if len(leaves) > _MOST_VALUES else ""
    return shown[0] if len(leaves) == 1 else f"[{', '.join(shown)}{more}]"


def value_text(value: Any) -> str:
    """A value in few characters."""
    if value is None:
        return ""
    text = value.hex(" ") if isinstance(value, bytes) else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def error_text(error: BaseException) -> str:
    """What went wrong, on one line."""
    text = str(error) if isinstance(error, HwwatchError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
