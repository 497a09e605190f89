"""Hits → the timeline DataFrame. The only owner of its column names and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import hwwatch
from hwwatch.attribution import ACCESSES, Life, Rows
from hwwatch.code.arguments import columns
from hwwatch.code.source import Frame, Source, cell_log, current_cells
from hwwatch.columns import (
    Columns,
    category,
    decode,
    fitted,
    has_unit,
    is_wide,
    nullable,
    objects,
    one_category,
)
from hwwatch.letters import encodable
from hwwatch.names import Names
from hwwatch.native import lib
from hwwatch.records import Hits, distinct, rows_of
from hwwatch.watchpoints import Watch

CONFIDENCES = ("exact", "filtered", "guess", "none")
ACTIONS = ("continued", "skipped", "returned", "jumped", "native")
ORIGINS = ("user", "kernel")
REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))

#: In this order.
COLUMNS = (
    *("time", "watch", "access", "old", "new", "changed", "element", "address", "nbytes", "pc"),
    *("instruction", "confidence", "symbol", "module", "function", "file", "line", "column", "cell"),
    *("thread", "tid", "pid", "origin", "action", "exact"),
)

_NO_FRAME = Frame("", "", None, None)


class Builder:
    """Makes the columns of one timeline, one stretch of hits after the other.

    Parameters
    ----------
    watches : sequence of Watch
        Those whose rows are wanted.
    clock : int
        Nanoseconds from CLOCK_MONOTONIC to UTC.
    stack, registers : bool
        Add the column ``stack`` (tuple of "function (file:line)", innermost first), the columns
        ``rax`` … ``r15``, ``rflags`` (uint64; 0 where unknown).
    present : sequence of Life, optional
        Those that will have rows. With it all stretches have the same columns and dtypes, but for categories,
        which only grow.
    names : Names, optional
        An earlier look at what threads are called; default: a look now.
    """

    def __init__(
        self,
        watches: Sequence[Watch],
        clock: int,
        *,
        stack: bool = False,
        registers: bool = False,
        present: Sequence[Life] | None = None,
        names: Names | None = None,
    ) -> None:
        self.watches, self.clock = watches, clock
        self.stack, self.registers = stack, registers
        self.wanted = {watch.id for watch in watches}
        self.source = Source()
        self.names = Names() if names is None else names
        self.cells = current_cells()
        self.present = present and [life for life in present if life.watch in self.wanted]
        self.seen = 0  # rows so far, of all watches
        self._labels: dict[str, dict[Any, int]] = {}

    def columns(self, hits: Hits, parts: Sequence[Rows]) -> Columns:
        """The columns of the next rows, and ``seq``.

        Parameters
        ----------
        hits : Hits
        parts : sequence of Rows
            Rows of each arming in the session; `seq` numbers all of them, in order of recording.
        """
        record = np.concatenate([part.record for part in parts]) if parts else np.zeros(0, np.int64)
        owner = np.repeat(np.arange(len(parts)), [len(part.record) for part in parts])
        leaf = np.concatenate([part.leaf for part in parts]) if parts else record
        order = np.lexsort((leaf, owner, record))
        chosen = np.array([part.life.watch in self.wanted for part in parts], np.bool_)
        seq = np.flatnonzero(chosen[owner[order]]) if len(parts) else record
        order = order[seq]
        table = _Table(self, hits, parts, record[order], owner[order], leaf[order], order)
        columns: Columns = {
            "time": table.time(self.clock),
            "watch": table.watch(),
            "access": table.access(),
            **table.values(),
            "element": table.element(),
            **table.piece(),
            "pc": table.records["pc"].astype(np.uint64),
            **table.machine(),
            **table.python(),
            **table.identity(),
            "origin": category(
                ((table.records["flags"] & lib.HWW_HIT_KERNEL) != 0).astype(np.int64), ORIGINS, ORIGINS
            ),
            "action": category(table.records["action"].astype(np.int64), ACTIONS, ACTIONS),
            "exact": (table.records["flags"] & lib.HWW_HIT_LATE) == 0,
        }
        ordered = {"seq": seq + self.seen} | {name: columns[name] for name in COLUMNS}
        self.seen += len(record)
        if not all(watch.hold for watch in self.watches):
            ordered["after_free"] = table.after_free()
        ordered |= table.arguments()
        if self.stack:
            ordered["stack"] = table.stacks()
        if self.registers:
            values = hits.registers(table.record)
            ordered |= {name: values[:, i] for i, name in enumerate(REGISTERS)}
            ordered["rflags"] = table.records["eflags"].astype(np.uint64)
        return ordered if self.present is None else self._alike(ordered)

    def _alike(self, columns: Columns) -> Columns:
        """The columns with categories of all stretches so far."""
        out = columns.copy()
        for name, column in columns.items():
            if isinstance(column, pd.Categorical):
                out[name] = one_category([column], self._labels.setdefault(name, {}))
        return out


def build(hits: Hits, parts: Sequence[Rows], watches: Sequence[Watch], clock: int) -> pd.DataFrame:
    """A timeline of one stretch of hits, without `attrs`."""
    return frame_of(Builder(watches, clock).columns(hits, parts))


def frame_of(columns: Columns) -> pd.DataFrame:
    """The DataFrame of some columns; ``seq`` becomes its index."""
    index = pd.Index(columns["seq"], name="seq", dtype="int64")
    ordered = {name: column for name, column in columns.items() if name != "seq"}
    if ordered["old"].dtype == ordered["new"].dtype:
        ordered["old"], ordered["new"] = fitted((ordered["old"], ordered["new"]))
    for name, column in ordered.items():
        if isinstance(column, np.ndarray) and column.dtype == object:
            # pandas 3 would make a column of its own str dtype where all happen to be text
            ordered[name] = pd.Series(column, index, dtype=object)
    return pd.DataFrame(ordered, index=index, copy=False)


def attributes(coverage: dict[str, Any], torn: int) -> dict[str, Any]:
    """What a timeline's ``attrs["hwwatch"]`` says."""
    return {
        "coverage": coverage,
        "lost": coverage.get("lost", 0),
        "torn": torn,
        "versions": {"hwwatch": hwwatch.__version__, "numpy": np.__version__, "pandas": pd.__version__},
    }


def _generic(dtype: np.dtype[Any]) -> bool:
    return np.datetime_data(dtype)[0] == "generic"


class _Table:
    """The rows of one stretch, in order; each method makes columns."""

    def __init__(
        self,
        builder: Builder,
        hits: Hits,
        parts: Sequence[Rows],
        record: NDArray[np.int64],
        owner: NDArray[np.int64],
        leaf: NDArray[np.int64],
        order: NDArray[np.int64],
    ) -> None:
        self.builder, self.hits, self.parts, self.watches = builder, hits, parts, builder.watches
        self.record, self.owner, self.leaf, self.order = record, owner, leaf, order
        self.records = rows_of(hits.records, record)
        self.mine = [np.flatnonzero(owner == number) for number in range(len(parts))]
        self._source = builder.source

    def __len__(self) -> int:
        return len(self.record)

    def _joined(self, pick: Callable[[Rows], NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
        """A per-row array of the parts, in the order of the table; to be read only."""
        if not self.parts:
            return empty
        every = [pick(part) for part in self.parts]
        return rows_of(every[0] if len(every) == 1 else np.concatenate(every), self.order)

    def time(self, clock: int) -> Any:
        ns = self.records["time"].astype(np.int64) + clock
        return pd.DatetimeIndex(ns.view("M8[ns]")).tz_localize("UTC")

    def watch(self) -> pd.Categorical:
        names = {watch.id: watch.name for watch in self.watches}
        labels = [names.get(part.life.watch, str(part.life.watch)) for part in self.parts]
        return category(self.owner, labels)

    def access(self) -> pd.Categorical:
        return category(self._joined(lambda part: part.access, np.zeros(0, np.int8)), ACCESSES, ACCESSES)

    def values(self) -> dict[str, Any]:
        old = self._joined(lambda part: part.old, np.zeros((0, 32), np.uint8))
        new = self._joined(lambda part: part.new, np.zeros((0, 32), np.uint8))
        dtype = self._common_dtype()
        out: dict[str, Any] = {}
        for name, raw in (("old", old), ("new", new)):
            if dtype is not None:
                out[name] = decode(raw, dtype)
                continue
            column = np.empty(len(self), object)
            for number, part in enumerate(self.parts):
                for i, leaf in enumerate(part.life.leaves):
                    rows = self.mine[number][self.leaf[self.mine[number]] == i]
                    if part.life.mode != "x" and len(rows):
                        column[rows] = objects(raw[rows], leaf.dtype)
            out[name] = column
        out["changed"] = (old.view(np.uint64) != new.view(np.uint64)).any(axis=1)
        return out

    def _common_dtype(self) -> np.dtype[Any] | None:
        """The dtype of all values, where a pandas column can hold it."""
        present = self._present()
        dtypes = {leaf.dtype for life in present for leaf in life.leaves if life.mode != "x"}
        if any(life.mode == "x" for life in present):
            return None
        if not present:
            dtypes = {leaf.dtype for watch in self.watches for leaf in watch.target.leaves}
            if any(watch.mode == "x" for watch in self.watches):
                return None
        dtype = dtypes.pop() if len(dtypes) == 1 else None
        if dtype is None or dtype.kind not in "biufcmM" or is_wide(dtype):
            return None
        # All pieces have one dtype, whatever fits it.
        return dtype if self.builder.present is None or has_unit(dtype) or _generic(dtype) else None

    def _present(self) -> Sequence[Life]:
        """The lives that have rows; in the whole timeline, where that is known."""
        if self.builder.present is not None:
            return self.builder.present
        return [part.life for number, part in enumerate(self.parts) if len(self.mine[number])]

    def element(self) -> NDArray[np.object_]:
        sure = self._joined(lambda part: part.sure, np.zeros(0, np.bool_))
        column = np.empty(len(self), object)
        for number, part in enumerate(self.parts):
            for i, leaf in enumerate(part.life.leaves):
                rows = self.mine[number][self.leaf[self.mine[number]] == i]
                if leaf.element is not None:
                    one = np.empty(1, object)
                    one[0] = leaf.element  # a tuple, which shall not be taken for several
                    column[rows[sure[rows]]] = one
        return column

    def piece(self) -> dict[str, Any]:
        """The watched piece: that of the row's value, where a watch has several."""
        address, nbytes = np.zeros(len(self), np.uint64), np.zeros(len(self), np.int64)
        for number, part in enumerate(self.parts):
            rows = self.mine[number]
            if part.life.mode == "x":
                address[rows], nbytes[rows] = part.life.pieces[0].address, 1
                continue
            spans = np.array(
                [(leaf.address, leaf.dtype.itemsize) for leaf in part.life.leaves], np.uint64
            ).reshape(-1, 2)
            chosen = spans[self.leaf[rows]]
            address[rows], nbytes[rows] = chosen[:, 0], chosen[:, 1].astype(np.int64)
        return {"address": address, "nbytes": nbytes}

    def machine(self) -> dict[str, Any]:
        """Instruction, confidence, symbol, module."""
        places = [place for part in self.parts for place in part.places]
        first = np.cumsum([0] + [len(part.places) for part in self.parts])
        codes = self._joined(lambda part: part.place, np.zeros(0, np.int64)) + first[self.owner]
        late = (self.records["flags"] & lib.HWW_HIT_LATE) != 0
        confidence = np.array([CONFIDENCES.index(p.site.confidence) for p in places] + [3], np.int64)[codes]
        confidence[late] = CONFIDENCES.index("none")  # delivered late: the pc is not the access's
        sure = self._joined(lambda part: part.sure, np.zeros(0, np.bool_))
        doubtful = ~sure & ((self.records["flags"] & lib.HWW_HIT_AMBIGUOUS) != 0)  # another watch, perhaps
        confidence[doubtful] = np.maximum(confidence[doubtful], CONFIDENCES.index("guess"))
        return {
            "instruction": category(codes, [p.site.text for p in places]),
            "confidence": category(confidence, CONFIDENCES, CONFIDENCES),
            "symbol": category(codes, [p.symbol.name for p in places]),
            "module": category(codes, [p.symbol.module for p in places]),
        }

    def python(self) -> dict[str, Any]:
        """Function, file, line, column, cell of the innermost Python frame."""
        stacks, codes = distinct(self.records["stack"])
        late = (self.records["flags"] & lib.HWW_HIT_LATE) != 0
        frames = [(self._source.frames(int(stack), 1) or (_NO_FRAME,))[0] for stack in stacks]
        none = np.array([frame is _NO_FRAME for frame in frames] + [True], np.bool_)
        absent = none[codes] | late
        named = np.where(absent, -1, codes)

        def numbers(values: list[int | None]) -> Any:
            array = np.array([-1 if value is None else value for value in values] + [-1], np.int64)
            return nullable(array[codes], (array[codes] < 0) | absent)

        return {
            "function": category(named, [frame.function for frame in frames]),
            "file": category(named, [frame.file for frame in frames]),
            "line": numbers([frame.line for frame in frames]),
            "column": numbers([frame.column for frame in frames]),
            "cell": self._cells(frames, codes, absent),
        }

    def _cells(self, frames: list[Frame], codes: NDArray[np.int64], absent: NDArray[np.bool_]) -> Any:
        """The cell of each row's line; one that was run again had another number then."""
        numbers = np.full(len(codes), -1, np.int64)
        times = self.records["time"]
        known = self.builder.cells
        for i, frame in enumerate(frames):
            if frame.file not in known:
                continue
            rows = np.flatnonzero(codes == i)
            if not cell_log.ambiguous(frame.file):
                numbers[rows] = known[frame.file]
                continue
            for row in rows.tolist():
                number = cell_log.number(frame.file, int(times[row]))
                numbers[row] = -1 if number is None else number
        return nullable(numbers, (numbers < 0) | absent)

    def after_free(self) -> NDArray[np.bool_]:
        """Whether the watched object had died before the hit."""
        column = np.zeros(len(self), np.bool_)
        for number, part in enumerate(self.parts):
            died = part.life.home and part.life.home.died
            if died is not None:
                rows = self.mine[number]
                column[rows] = self.records["time"][rows] >= died
        return column

    def arguments(self) -> dict[str, Any]:
        """Columns ``arg0`` … for execute watches: what the function was called with; else none."""
        owners = {watch.id: watch.target.owner for watch in self.watches}
        none = np.zeros((0, lib.HWW_REGISTERS), np.uint64), np.zeros((0, 8), np.float64)
        kinds: dict[str, list[np.dtype[Any]]] = {}
        present = self._present()
        for life in present:
            for name, column in columns(owners.get(life.watch), *none) if life.mode == "x" else ():
                kinds.setdefault(name, []).append(column.dtype)
        out: dict[str, Any] = {}
        for name, found in kinds.items():
            typed = len(found) == len(present) and len(set(found)) == 1
            out[name] = np.zeros(len(self), found[0]) if typed else np.full(len(self), None, object)
        for number, part in enumerate(self.parts):
            rows = self.mine[number]
            if part.life.mode != "x" or not len(rows):
                continue
            taken = self.record[rows]
            low = np.ascontiguousarray(self.hits.old[taken]).view(np.float64)
            high = np.ascontiguousarray(self.hits.new[taken]).view(np.float64)
            found_here = columns(
                owners.get(part.life.watch), self.hits.registers(taken), np.concatenate([low, high], axis=1)
            )
            for name, values in found_here:
                out[name][rows] = values if out[name].dtype != object else values.tolist()
        return out

    def stacks(self) -> NDArray[np.object_]:
        """Whole Python call stacks, innermost first."""
        stacks, codes = distinct(self.records["stack"])
        texts = np.empty(len(stacks) + 1, object)
        for i, stack in enumerate(stacks):
            texts[i] = tuple(
                encodable(f"{frame.function} ({frame.file}:{frame.line})")
                for frame in self._source.frames(int(stack))
            )
        return texts[codes]

    def identity(self) -> dict[str, Any]:
        """Thread, tid, pid."""
        tids, codes = distinct(self.records["tid"])
        pids = self.records["pid"]
        firsts = [int(pids[np.argmax(codes == i)]) for i in range(len(tids))]
        labels = [self.builder.names.of(tid, pid) for tid, pid in zip(tids.tolist(), firsts, strict=True)]
        return {
            "thread": category(codes, labels),
            "tid": self.records["tid"].astype(np.int64),
            "pid": pids.astype(np.int64),
        }
