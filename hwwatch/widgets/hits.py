"""The last hits of a session, read from the end of the ring; millions before them cost nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwwatch.displays import element_text, place
from hwwatch.names import Names
from hwwatch.native import lib
from hwwatch.records import Hits
from hwwatch.summaries import records

if TYPE_CHECKING:
    from hwwatch.attribution import Life
    from hwwatch.sessions import Session

#: Ring positions that are read at once, and what is looked at of them for few rows.
CHUNK = 16384
#: Records around one that is shown, which help to tell whose change it was.
_AROUND = 8
_WRITES = ("write", "readwrite")


@dataclass(frozen=True)
class Hit:
    """One hit, in words.

    Attributes
    ----------
    when : int
        ns since 1970, UTC.
    place : str
        ``In [3]:12`` or ``bug.py:12``, or why that is unknown.
    where : str
        The same with the whole path.
    """

    watch: int
    when: int
    name: str
    access: str
    element: str
    old: Any
    new: Any
    action: str
    place: str
    where: str
    function: str
    thread: str


class Tail:
    """Reads on from where it stopped; forgets all where the session's hits were cleared."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._start = self._end = -1
        self._threads: set[int] = set()
        self._names: Names | None = None

    def _names_for(self, hits: Hits) -> Names:
        """What threads are called; asked for again where there is a new one."""
        found = set(hits.records["tid"].tolist())
        if self._names is None or not found <= self._threads:
            self._names = Names()
            self._threads |= found
        return self._names

    def _cleared(self) -> bool:
        """Whether the hits were cleared since the last time, or this is the first."""
        ledger = self._session._ledger
        if self._start == ledger.start:
            return False
        self._start = self._end = ledger.start
        return True

    def _new(self, most: int) -> Hits | None:
        """The records since the last time, at most so many ring positions; None where there are none."""
        ring = self._session._ledger._ring
        if ring is None:  # before the first watch, which sets up the room for hits
            return None
        end = ring.committed()
        if end <= self._end:
            return None
        hits = ring.read(max(self._end, end - most), end)
        self._end = end
        return hits

    def _rows(self, hits: Hits, chosen: NDArray[np.int64]) -> Iterator[Hit]:
        """The rows of some records, oldest first."""
        from hwwatch.attribution import attribute, split
        from hwwatch.timelines import Builder, frame_of

        session = self._session
        if not len(chosen):
            return
        near = (chosen[:, None] + np.arange(-_AROUND, _AROUND + 1)).ravel()
        near = np.unique(near[(near >= 0) & (near < len(hits))])
        taken, mine = hits.take(near), np.searchsorted(near, chosen)
        lives = session._ledger._lives()
        sites = session._ledger._decoder()
        parts = []
        for life, rows in split(taken, lives).items():
            if len(rows):
                part = attribute(taken, rows, life, sites)
                session._ledger._learn_writers([part])
                parts.append(part.only(np.isin(part.record, mine)))
        watches = {watch.name: watch for watch in session._choose(())}
        builder = Builder(list(watches.values()), session._clock, names=self._names_for(taken))
        frame = frame_of(builder.columns(taken, parts))
        for row in records(frame):
            yield _hit(row, watches[row["watch"]].id)


class Writers(Tail):
    """Who wrote last, for each watch."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._last: dict[tuple[int, bool], Hit] = {}  # by watch, and whether it wrote

    def of(self, watch: int, mode: str) -> Hit | None:
        """The last writer of a watch, by id; of one for reads or execution, its last hit."""
        return self._last.get((watch, mode in ("w", "rw")))

    def advance(self) -> None:
        """Read what is new."""
        if self._cleared():
            self._last.clear()
        hits = self._new(4 * CHUNK)
        if hits is None:
            return
        lives = self._session._ledger._lives()
        chosen = [rows[-_AROUND:] for rows in _by_life(hits, lives) if len(rows)]
        if chosen:
            for hit in self._rows(hits, np.sort(np.concatenate(chosen))):
                self._last[hit.watch, hit.access in _WRITES] = hit


class Recent(Tail):
    """The last hits of one watch or all, and of lines that contain some text.

    Attributes
    ----------
    watch : int or None
        Only hits of this watch, by id.
    line : str
        Only hits whose place or function contains this, upper and lower case being the same.
    most : int
        So many are kept.
    """

    def __init__(self, session: Session, most: int = 10) -> None:
        super().__init__(session)
        self.watch: int | None = None
        self.line = ""
        self.most = most
        self.rows: deque[Hit] = deque(maxlen=most)
        self._back = -1  # hits before this have not been looked through

    def choose(self, watch: int | None, line: str, most: int) -> None:
        """Change what is wanted; `advance` then looks through the hits from the last to the first."""
        self.watch, self.line, self.most = watch, line.strip().lower(), most
        self._start = -1

    @property
    def searching(self) -> bool:
        """Whether earlier hits have still to be looked through."""
        return len(self.rows) < self.most and self._back > self._start

    def advance(self, seconds: float = 0.02) -> None:
        """Read what is new, and look through earlier hits for about so long."""
        if self._cleared():
            self.rows = deque(maxlen=self.most)
            ring = self._session._ledger._ring
            self._back = self._end = self._start if ring is None else ring.committed()
        hits = self._new(4 * CHUNK)
        if hits is not None:
            self.rows.extend(reversed(list(self._found(hits, self.most))))
        until = time.monotonic() + seconds
        while self.searching:
            first = max(self._start, self._back - CHUNK)
            earlier = self._session._ledger.ring().read(first, self._back)
            self._back = first
            self.rows.extendleft(self._found(earlier, self.most - len(self.rows)))
            if time.monotonic() > until:
                break

    def _found(self, hits: Hits, most: int) -> Iterator[Hit]:
        """The last of some hits that are wanted, latest first."""
        lives = [
            life for life in self._session._ledger._lives() if self.watch is None or life.watch == self.watch
        ]
        mine = _by_life(hits, lives)
        chosen = np.sort(np.concatenate(mine)) if mine else np.zeros(0, np.int64)
        if self.line and len(chosen):
            chosen = chosen[self._may_match(hits, chosen)]
        size, count = max(2 * most, 16), 0
        while len(chosen) and count < most:
            for hit in reversed(list(self._rows(hits, chosen[-size:]))):
                if self._wanted(hit) and count < most:
                    count += 1
                    yield hit
            chosen = chosen[:-size]

    def _wanted(self, hit: Hit) -> bool:
        if self.watch is not None and hit.watch != self.watch:
            return False
        return not self.line or self.line in f"{hit.place} {hit.function} {hit.where}".lower()

    def _may_match(self, hits: Hits, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which records may be of a wanted line; cells that were run again are told apart later."""
        from hwwatch.code.source import Source, cell_log, current_cells

        cells, source = current_cells(), Source()
        stacks, codes = np.unique(hits.records["stack"][rows], return_inverse=True)
        maybe = np.zeros(len(stacks), np.bool_)
        for number, stack in enumerate(stacks):
            frames = source.frames(int(stack), 1)
            if not frames or cell_log.ambiguous(frames[0].file):
                maybe[number] = True
                continue
            frame = frames[0]
            row = {"file": frame.file, "line": frame.line, "cell": cells.get(frame.file)}
            maybe[number] = self.line in f"{place(row)} {frame.function} {frame.file}:{frame.line}".lower()
        late = (hits.records["flags"][rows] & lib.HWW_HIT_LATE) != 0
        return np.asarray(maybe[codes] | late, np.bool_)


def _by_life(hits: Hits, lives: Sequence[Life]) -> list[NDArray[np.int64]]:
    from hwwatch.attribution import split

    return list(split(hits, lives).values())


def _hit(row: dict[Any, Any], watch: int) -> Hit:
    import pandas as pd

    clean = {key: None if pd.isna(row[key]) else row[key] for key in ("file", "line", "cell", "function")}
    clean["exact"] = row["exact"]
    known = isinstance(clean["file"], str) and row["exact"]
    short = place(clean)
    folder, *ends = short.rsplit("/", 2)
    if folder and len(ends) == 2:
        short = f"…/{'/'.join(ends)}"
    return Hit(
        watch,
        int(row["time"].value),
        str(row["watch"]),
        str(row["access"]),
        "" if row["element"] is None else element_text(row["element"]),
        row["old"],
        row["new"],
        str(row["action"]),
        short,
        f"{clean['file']}:{clean['line']}" if known else "",
        str(clean["function"] or "") if known else "",
        str(row["thread"]),
    )
