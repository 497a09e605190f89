"""Ring bytes → NumPy arrays of hits. The only reader of the layout in `_core/cdefs.h`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwwatch import native
from hwwatch.native import lib

#: struct hww_record; a test compares it with what the compiler made of it.
RECORD = np.dtype(
    [
        ("tag", "u4"),
        ("flags", "u4"),
        ("time", "u8"),
        ("pc", "u8"),
        ("tid", "u4"),
        ("pid", "u4"),
        ("stack", "u4"),
        ("generation", "u4"),
        ("watch", "u2"),
        ("hit", "u1"),
        ("named", "u1"),
        ("registers", "u2"),
        ("action", "u1"),
        ("reserved", "u1"),
        ("base", "u4"),
        ("eflags", "u4"),
        ("old_bytes", "u8"),
        ("new_bytes", "u8"),
        ("values", "u8", (lib.HWW_INLINE_REGISTERS,)),
    ]
)
#: struct hww_extension
EXTENSION = np.dtype(
    [
        ("tag", "u4"),
        ("reserved", "u4"),
        ("values", "u8", (9,)),
        ("old_bytes", "u8", (3,)),
        ("new_bytes", "u8", (3,)),
    ]
)
_COMMITTED = lib.HWW_TAG_RESERVED | lib.HWW_TAG_COMMITTED
#: Seconds after which a record that nobody finishes is taken for torn (its writer was killed).
TORN_AFTER = 0.5


def rows_of(array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """``array[rows]``, to be read only: a view where the rows follow each other, as most do."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return array[rows[0] : rows[-1] + 1]
    return array[rows]


def distinct(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The values, sorted, each once; and by row which of them it is. Quick where all rows are alike."""
    if (values == values[:1]).all():
        return values[:1], np.zeros(len(values), np.int64)
    found, inverse = np.unique(values, return_inverse=True)
    return found, inverse.astype(np.int64, copy=False)


@dataclass(frozen=True)
class Hits:
    """A consistent prefix of the ring, in order of recording.

    Attributes
    ----------
    records : (n,) structured array of RECORD
    positions : (n,) uint64
        Ring position of each; grows strictly.
    old, new : (n, 32) uint8
        Snapshots of the watched bytes: the pieces one after the other.
    torn : int
        Records left out because their writer died in the middle.
    """

    records: NDArray[np.void]
    positions: NDArray[np.uint64]
    old: NDArray[np.uint8]
    new: NDArray[np.uint8]
    extension: NDArray[np.void]
    extension_of: NDArray[np.int64]
    torn: int = 0

    def __len__(self) -> int:
        return len(self.records)

    def take(self, rows: NDArray[Any]) -> Hits:
        """The hits at these rows; registers can still be had."""
        return Hits(
            self.records[rows],
            self.positions[rows],
            self.old[rows],
            self.new[rows],
            self.extension,
            self.extension_of[rows],
            self.torn,
        )

    def registers(self, rows: NDArray[Any] | None = None) -> NDArray[np.uint64]:
        """(n, 16) registers rax rbx rcx rdx rsi rdi rbp rsp r8 … r15 of the hits at `rows`.

        Most records hold only the registers that differ from an earlier one's.
        """
        records = self.records if rows is None else self.records[rows]
        sources = self.extension_of if rows is None else self.extension_of[rows]
        count, inline = len(records), lib.HWW_INLINE_REGISTERS
        out = np.zeros((count, lib.HWW_REGISTERS), np.uint64)
        if not count or not len(self.extension):
            return out
        full = self.extension[np.maximum(sources, 0)]
        out[:, :inline] = full["first"]
        out[:, inline:] = full["rest"]
        mask = records["registers"].astype(np.uint32)
        rank = np.zeros(count, np.int64)
        for register in range(lib.HWW_REGISTERS):
            has = np.flatnonzero(mask >> register & 1)
            if len(has):
                out[has, register] = records["values"][has, rank[has]]
                rank[has] += 1
        out[sources < 0] = 0
        return out

    @property
    def registers_known(self) -> NDArray[np.bool_]:
        """(n,) whether `registers` is sure of that row."""
        return self.extension_of >= 0


_EXTENSION = np.dtype([("position", "u8"), ("first", "u8", (7,)), ("rest", "u8", (9,))])
#: Extended records that were released while later ones, perhaps of another session, still refer to them.
_kept: NDArray[np.void] = np.zeros(0, _EXTENSION)


class Ring:
    """Reads the ring. Not thread-safe: its session holds a lock. Records before `start` are forgotten."""

    def __init__(self) -> None:
        self._shared = native.open_core()
        self._slots: NDArray[np.void] = np.frombuffer(native.ring(), RECORD)
        self._spilled: NDArray[np.void] = np.frombuffer(native.spill(), RECORD)
        self._stuck: tuple[int, float] = (-1, 0.0)
        self._torn: dict[int, int] = {}  # position → slots to step over
        self._checked = 0  # all before is committed or torn

    @property
    def start(self) -> int:
        """First position that is still kept."""
        return int(self._shared.tail)

    def committed(self) -> int:
        """Position up to which all records are complete; steps over those of dead writers."""
        at = max(self._checked, self.start)
        while True:
            at = int(lib.hww_ring_committed(at))
            if at >= self._shared.head or not self._is_torn(at):
                self._checked = at
                return at
            tag = int(self._at(np.array([at]))["tag"][0])
            self._torn[at] = 2 if tag & lib.HWW_TAG_EXTENSION else 1
            at += self._torn[at]

    def _is_torn(self, position: int) -> bool:
        # Reserved and not finished: a writer in the middle of it, for a microsecond; or one that died.
        slot = self._at(np.array([position]))[0]
        tag = int(slot["tag"])
        if tag >> lib.HWW_TAG_LAP_SHIFT == position // len(self._slots) and tag & lib.HWW_TAG_RESERVED:
            pid = int(slot["pid"])
            if pid and not os.path.exists(f"/proc/{pid}"):
                return True
        now = time.monotonic()
        if self._stuck[0] != position:
            self._stuck = (position, now)
            return False
        return now - self._stuck[1] > TORN_AFTER

    def _spill(self) -> int:
        # Ask after `head` only: what is behind an earlier head may be in the ring still.
        return int(self._shared.spill) or 2**63

    def _at(self, positions: NDArray[Any]) -> NDArray[np.void]:
        """A copy of the slots at these positions."""
        spill = self._spill()
        out = self._slots[positions.astype(np.int64) % len(self._slots)]
        behind = np.flatnonzero(positions >= spill)
        if len(behind):
            out[behind] = self._spilled[(positions[behind].astype(np.int64) - spill) % len(self._spilled)]
        return out

    def _between(self, start: int, end: int) -> NDArray[np.void]:
        """A copy of the slots from one position to another."""
        spill = min(max(self._spill(), start), end)
        out = np.empty(end - start, RECORD)
        for slots, first, at, last in (
            (self._slots, 0, start, spill),
            (self._spilled, self._spill(), spill, end),
        ):
            while at < last:
                offset = (at - first) % len(slots)
                count = min(last - at, len(slots) - offset)
                out[at - start : at - start + count] = slots[offset : offset + count]
                at += count
        lib.hww_ring_unmap(start, end)
        return out

    def read(self, start: int | None = None, end: int | None = None) -> Hits:
        """Complete hits from `start` (default: all that are kept) to before `end`, copied out of the ring."""
        end = self.committed() if end is None else min(end, self.committed())
        start = max(self.start if start is None else start, self.start)
        end = max(end, start)
        positions = np.arange(start, end, dtype=np.uint64)
        slots = self._between(start, end)
        lap = (positions // np.uint64(len(self._slots))).astype(np.uint32) << np.uint32(lib.HWW_TAG_LAP_SHIFT)
        heads = (slots["tag"] & ~np.uint32(lib.HWW_TAG_EXTENSION)) == (lap | np.uint32(_COMMITTED))
        rows = np.flatnonzero(heads)
        if len(rows) and rows[-1] == len(slots) - 1 and slots["flags"][-1] & lib.HWW_HIT_EXTENDED:
            rows = rows[:-1]  # its second half lies behind `end`
        extended = rows[(slots["flags"][rows] & lib.HWW_HIT_EXTENDED) != 0]
        rest = slots[extended + 1].view(EXTENSION)
        records = slots[rows] if len(rows) < len(slots) else slots
        del slots
        extended = np.searchsorted(rows, extended)
        old = np.zeros((len(records), 4), np.uint64)
        new = np.zeros((len(records), 4), np.uint64)
        old[:, 0], new[:, 0] = records["old_bytes"], records["new_bytes"]
        old[extended, 1:], new[extended, 1:] = rest["old_bytes"], rest["new_bytes"]
        extension = np.zeros(len(extended), _EXTENSION)
        extension["position"] = positions[rows[extended]]
        extension["first"] = records["values"][extended]
        extension["rest"] = rest["values"]
        wanted = positions[rows] - records["base"].astype(np.uint64)
        extension = np.concatenate([self._earlier(wanted[wanted < start]), extension])
        at = np.searchsorted(extension["position"], wanted)
        known = at < len(extension)
        known[known] = extension["position"][at[known]] == wanted[known]
        return Hits(
            records,
            positions[rows],
            old.view(np.uint8),
            new.view(np.uint8),
            extension,
            np.where(known, at, -1).astype(np.int64),
            len(self._torn),
        )

    def _earlier(self, wanted: NDArray[np.uint64]) -> NDArray[np.void]:
        """Extended records before those that are read, ascending; all sessions share the ring."""
        wanted = wanted[np.diff(wanted, prepend=~wanted[:1]) != 0]  # most have that of the one before
        out = _kept[np.isin(_kept["position"], wanted)]
        inside = np.unique(wanted[wanted >= self.start])
        if not len(inside):
            return out
        heads = self._at(inside)
        rest = self._at(inside + np.uint64(1)).view(EXTENSION)
        found = np.zeros(len(inside), _EXTENSION)
        found["position"], found["first"], found["rest"] = inside, heads["values"], rest["values"]
        lap = (inside // np.uint64(len(self._slots))).astype(np.uint32) << np.uint32(lib.HWW_TAG_LAP_SHIFT)
        valid = heads["tag"] == lap | np.uint32(_COMMITTED | lib.HWW_TAG_EXTENSION)
        return np.concatenate([out, found[valid & (inside >= self.start)]])

    def release_to(self, end: int) -> None:
        """Forget the complete records before position `end` and give their memory back."""
        global _kept
        end = min(end, self.committed())
        later = self.read(end)
        wanted = later.positions - later.records["base"].astype(np.uint64)
        earlier = self._earlier(wanted[wanted < end])
        if end > self.start:
            _kept = earlier
            lib.hww_ring_release(end)
        self._torn = {position: n for position, n in self._torn.items() if position >= end}


def clock_offset() -> int:
    """Nanoseconds to add to CLOCK_MONOTONIC for UTC; the closest of five tries, measured once a session."""
    tries = []
    for _ in range(5):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        tries.append((after - before, wall - (before + after) // 2))
    return min(tries)[1]
