"""Hits → the timeline DataFrame. The only owner of its column names and dtypes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import hwwatch
from hwwatch.attribution import Rows
from hwwatch.code.arguments import columns
from hwwatch.code.source import Frame, Source, cell_log, current_cells
from hwwatch.coverages import thread_names
from hwwatch.native import lib
from hwwatch.records import Hits
from hwwatch.watchpoints import Watch

ACCESSES = ("write", "read", "readwrite", "execute", "unknown")
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


def build(
    hits: Hits,
    parts: Sequence[Rows],
    watches: Sequence[Watch],
    clock: int,
    coverage: dict[str, Any],
    *,
    stack: bool = False,
    registers: bool = False,
) -> pd.DataFrame:
    """The timeline of some watches.

    Parameters
    ----------
    hits : Hits
    parts : sequence of Rows
        Rows of each arming in the session; `seq` numbers all of them, in order of recording.
    watches : sequence of Watch
        Those whose rows are wanted.
    clock : int
        Nanoseconds from CLOCK_MONOTONIC to UTC.
    coverage : dict
        Goes into ``attrs["hwwatch"]``.
    stack, registers : bool
        Add the column ``stack`` (tuple of "function (file:line)", innermost first), the columns
        ``rax`` … ``r15``, ``rflags`` (uint64; 0 where unknown).
    """
    record = np.concatenate([part.record for part in parts]) if parts else np.zeros(0, np.int64)
    owner = np.repeat(np.arange(len(parts)), [len(part.record) for part in parts])
    leaf = np.concatenate([part.leaf for part in parts]) if parts else record
    order = np.lexsort((leaf, owner, record))
    wanted = {watch.id for watch in watches}
    chosen = np.array([part.life.watch in wanted for part in parts], np.bool_)
    seq = np.flatnonzero(chosen[owner[order]]) if len(parts) else record
    order = order[seq]
    table = _Table(hits, parts, watches, record[order], owner[order], leaf[order], order)
    columns: dict[str, Any] = {
        "time": table.time(clock),
        "watch": table.watch(),
        "access": table.access(),
        **table.values(),
        "element": table.element(),
        **table.piece(),
        "pc": table.records["pc"].astype(np.uint64),
        **table.machine(),
        **table.python(),
        **table.identity(),
        "origin": _category(
            ((table.records["flags"] & lib.HWW_HIT_KERNEL) != 0).astype(np.int64), ORIGINS, ORIGINS
        ),
        "action": _category(table.records["action"].astype(np.int64), ACTIONS, ACTIONS),
        "exact": (table.records["flags"] & lib.HWW_HIT_LATE) == 0,
    }
    ordered = {name: columns[name] for name in COLUMNS}
    ordered |= table.arguments()
    if stack:
        ordered["stack"] = table.stacks()
    if registers:
        values = hits.registers(table.record)
        ordered |= {name: values[:, i] for i, name in enumerate(REGISTERS)}
        ordered["rflags"] = table.records["eflags"].astype(np.uint64)
    index = pd.Index(seq, name="seq", dtype="int64")
    for name, column in ordered.items():
        if isinstance(column, np.ndarray) and column.dtype == object:
            # pandas 3 would make a column of its own str dtype where all happen to be text
            ordered[name] = pd.Series(column, index, dtype=object)
    frame = pd.DataFrame(ordered, index=index, copy=False)
    frame.attrs["hwwatch"] = {
        "coverage": coverage,
        "lost": coverage.get("lost", 0),
        "torn": hits.torn,
        "versions": {"hwwatch": hwwatch.__version__, "numpy": np.__version__, "pandas": pd.__version__},
    }
    return frame


def _category(
    codes: NDArray[Any], labels: Sequence[str], every: Sequence[str] | None = None
) -> pd.Categorical:
    """Categorical of `labels[codes]`; code -1 is missing. Equal labels share one category."""
    distinct = list(every) if every is not None else list(dict.fromkeys(labels))
    number = {label: i for i, label in enumerate(distinct)}
    renumber = np.array([number[label] for label in labels] + [-1], np.int64)
    return pd.Categorical.from_codes(
        renumber[codes], categories=pd.Index(distinct, dtype="object" if not distinct else None)
    )


def _nullable(values: NDArray[np.int64], missing: NDArray[np.bool_]) -> Any:
    return pd.arrays.IntegerArray(np.where(missing, 0, values).astype(np.int64), missing.copy())


class _Table:
    """The rows of one timeline, in order; each method makes columns."""

    def __init__(
        self,
        hits: Hits,
        parts: Sequence[Rows],
        watches: Sequence[Watch],
        record: NDArray[np.int64],
        owner: NDArray[np.int64],
        leaf: NDArray[np.int64],
        order: NDArray[np.int64],
    ) -> None:
        self.hits, self.parts, self.watches = hits, parts, watches
        self.record, self.owner, self.leaf, self.order = record, owner, leaf, order
        self.records = hits.records[record]
        self.mine = [np.flatnonzero(owner == number) for number in range(len(parts))]
        self._source = Source()

    def __len__(self) -> int:
        return len(self.record)

    def _joined(self, pick: Callable[[Rows], NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
        """A per-row array of the parts, in the order of the table."""
        if not self.parts:
            return empty
        return np.concatenate([pick(part) for part in self.parts])[self.order]

    def time(self, clock: int) -> Any:
        ns = self.records["time"].astype(np.int64) + clock
        return pd.DatetimeIndex(ns.view("M8[ns]")).tz_localize("UTC")

    def watch(self) -> pd.Categorical:
        names = {watch.id: watch.name for watch in self.watches}
        labels = [names.get(part.life.watch, str(part.life.watch)) for part in self.parts]
        return _category(self.owner, labels)

    def access(self) -> pd.Categorical:
        number = {label: i for i, label in enumerate(ACCESSES)}
        every = self._joined(lambda part: part.access, np.zeros(0, object))
        codes = np.fromiter((number[item] for item in every), np.int64, len(every))
        return _category(codes, ACCESSES, ACCESSES)

    def values(self) -> dict[str, Any]:
        old = self._joined(lambda part: part.old, np.zeros((0, 32), np.uint8))
        new = self._joined(lambda part: part.new, np.zeros((0, 32), np.uint8))
        dtype = self._common_dtype()
        out: dict[str, Any] = {}
        for name, raw in (("old", old), ("new", new)):
            if dtype is not None:
                out[name] = _decode(raw, dtype)
                continue
            column = np.empty(len(self), object)
            for number, part in enumerate(self.parts):
                for i, leaf in enumerate(part.life.leaves):
                    rows = self.mine[number][self.leaf[self.mine[number]] == i]
                    if part.life.mode != "x" and len(rows):
                        column[rows] = _objects(raw[rows], leaf.dtype)
            out[name] = column
        out["changed"] = (old != new).any(axis=1)
        return out

    def _common_dtype(self) -> np.dtype[Any] | None:
        """The dtype of all values, where a pandas column can hold it."""
        present = [part for number, part in enumerate(self.parts) if len(self.mine[number])]
        dtypes = {leaf.dtype for part in present for leaf in part.life.leaves if part.life.mode != "x"}
        if any(part.life.mode == "x" for part in present):
            return None
        if not present:
            dtypes = {leaf.dtype for watch in self.watches for leaf in watch.target.leaves}
            if any(watch.mode == "x" for watch in self.watches):
                return None
        dtype = dtypes.pop() if len(dtypes) == 1 else None
        return dtype if dtype is not None and dtype.kind in "biufcmM" and not _is_wide(dtype) else None

    def element(self) -> NDArray[np.object_]:
        sure = self._joined(lambda part: part.sure, np.zeros(0, np.bool_))
        column = np.empty(len(self), object)
        for number, part in enumerate(self.parts):
            for i, leaf in enumerate(part.life.leaves):
                rows = self.mine[number][self.leaf[self.mine[number]] == i]
                if leaf.element is not None:
                    column[rows[sure[rows]]] = [leaf.element] * int(sure[rows].sum())
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
        return {
            "instruction": _category(codes, [p.site.text for p in places]),
            "confidence": _category(confidence, CONFIDENCES, CONFIDENCES),
            "symbol": _category(codes, [p.symbol.name for p in places]),
            "module": _category(codes, [p.symbol.module for p in places]),
        }

    def python(self) -> dict[str, Any]:
        """Function, file, line, column, cell of the innermost Python frame."""
        stacks, codes = np.unique(self.records["stack"], return_inverse=True)
        late = (self.records["flags"] & lib.HWW_HIT_LATE) != 0
        frames = [(self._source.frames(int(stack), 1) or (_NO_FRAME,))[0] for stack in stacks]
        none = np.array([frame is _NO_FRAME for frame in frames] + [True], np.bool_)
        absent = none[codes] | late
        named = np.where(absent, -1, codes)

        def numbers(values: list[int | None]) -> Any:
            array = np.array([-1 if value is None else value for value in values] + [-1], np.int64)
            return _nullable(array[codes], (array[codes] < 0) | absent)

        return {
            "function": _category(named, [frame.function for frame in frames]),
            "file": _category(named, [frame.file for frame in frames]),
            "line": numbers([frame.line for frame in frames]),
            "column": numbers([frame.column for frame in frames]),
            "cell": self._cells(frames, codes, absent),
        }

    def _cells(self, frames: list[Frame], codes: NDArray[np.int64], absent: NDArray[np.bool_]) -> Any:
        """The cell of each row's line; one that was run again had another number then."""
        numbers = np.full(len(codes), -1, np.int64)
        times = self.records["time"]
        known = current_cells()
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
        return _nullable(numbers, (numbers < 0) | absent)

    def arguments(self) -> dict[str, Any]:
        """Columns ``arg0`` … for execute watches: what the function was called with; else none."""
        owners = {watch.id: watch.target.owner for watch in self.watches}
        out: dict[str, Any] = {}
        for number, part in enumerate(self.parts):
            rows = self.mine[number]
            if part.life.mode != "x" or not len(rows):
                continue
            taken = self.record[rows]
            low = np.ascontiguousarray(self.hits.old[taken]).view(np.float64)
            high = np.ascontiguousarray(self.hits.new[taken]).view(np.float64)
            found = columns(
                owners.get(part.life.watch), self.hits.registers(taken), np.concatenate([low, high], axis=1)
            )
            for name, values in found:
                if len(rows) == len(self) and name not in out:
                    out[name] = values
                    continue
                if name not in out or out[name].dtype != object:
                    out[name] = (
                        np.full(len(self), None, object) if name not in out else out[name].astype(object)
                    )
                out[name][rows] = values.tolist()
        return out

    def stacks(self) -> NDArray[np.object_]:
        """Whole Python call stacks, innermost first."""
        stacks, codes = np.unique(self.records["stack"], return_inverse=True)
        texts = np.empty(len(stacks) + 1, object)
        for i, stack in enumerate(stacks):
            texts[i] = tuple(
                f"{frame.function} ({frame.file}:{frame.line})" for frame in self._source.frames(int(stack))
            )
        return texts[codes]

    def identity(self) -> dict[str, Any]:
        """Thread, tid, pid."""
        tids, codes = np.unique(self.records["tid"], return_inverse=True)
        pids = self.records["pid"]
        names = thread_names()
        here = os.getpid()
        labels = []
        for i, tid in enumerate(tids.tolist()):
            pid = int(pids[np.argmax(codes == i)])
            labels.append(names.get(tid, f"thread {tid}") if pid == here else f"process {pid}")
        return {
            "thread": _category(codes.astype(np.int64), labels),
            "tid": self.records["tid"].astype(np.int64),
            "pid": pids.astype(np.int64),
        }


def _is_wide(dtype: np.dtype[Any]) -> bool:
    # long double and complex long double: pandas has no columns of them
    return dtype in (np.float16, np.longdouble, np.clongdouble)


def _decode(raw: NDArray[np.uint8], dtype: np.dtype[Any]) -> Any:
    """(n, 32) bytes → (n,) values of a plain dtype in native byte order."""
    values = np.ascontiguousarray(raw[:, : dtype.itemsize]).view(dtype).reshape(len(raw))
    if dtype.kind == "b":
        values = raw[:, 0] != 0  # a byte other than 0 and 1 is still true
    if dtype.kind in "mM" and np.datetime_data(dtype)[0] not in ("s", "ms", "us", "ns"):
        unit = "M8[s]" if dtype.kind == "M" else "m8[s]"  # coarser units have no pandas column
        return values.astype(unit) if np.datetime_data(dtype)[0] != "generic" else values.astype("i8")
    return values.astype(dtype.newbyteorder("="))


def _objects(raw: NDArray[np.uint8], dtype: np.dtype[Any]) -> list[Any]:
    """(n, 32) bytes → n Python or NumPy scalars."""
    if dtype.kind == "V" and dtype.names is None:
        return [bytes(row) for row in raw[:, : dtype.itemsize]]
    values = np.ascontiguousarray(raw[:, : dtype.itemsize]).view(dtype).reshape(len(raw))
    return list(values)
