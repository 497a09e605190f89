"""Interned call stacks → Python functions, files, lines, columns, notebook cells."""

from __future__ import annotations

import dis
import struct
import sys
import time
import types
from functools import lru_cache
from typing import Any, NamedTuple

from hwwatch import native

_CODE = struct.Struct("<QIiIIIBBH")  # struct hww_code
_STACK = struct.Struct("<QII")  # struct hww_stack
_FRAME = struct.Struct("<Ii")  # struct hww_frame
_ENCODING = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}
_NOP = bytes([dis.opmap["NOP"], 0])


class Frame(NamedTuple):
    """One Python frame: what ran. Lines and columns count from 1 and 0, as in the code object."""

    function: str
    file: str
    line: int | None
    column: int | None


class _Code(NamedTuple):
    file: str
    function: str
    first_line: int
    linetable: bytes


def _empty() -> None:
    pass


@lru_cache(maxsize=4096)
def _positions(linetable: bytes, first_line: int, instructions: int) -> list[tuple[int | None, int | None]]:
    """(line, column) of each code unit, decoded by CPython itself."""
    code: types.CodeType = _empty.__code__.replace(
        co_code=_NOP * instructions, co_linetable=linetable, co_firstlineno=first_line, co_exceptiontable=b""
    )
    return [(line, column) for line, _, column, _ in code.co_positions()]


class Source:
    """Reads the arena. Ids are those of `struct hww_stack`; 0 means no Python frames."""

    def __init__(self) -> None:
        self._arena = native.arena()
        self._codes: dict[int, _Code] = {}
        self._frames: dict[tuple[int, int], Frame] = {}

    def _code(self, code_id: int) -> _Code:
        found = self._codes.get(code_id)
        if found is None:
            at = code_id * 8
            _, _, first, file_size, name_size, table_size, file_width, name_width, _ = _CODE.unpack_from(
                self._arena, at
            )
            at += _CODE.size
            parts = []
            for size in (file_size, name_size, table_size):
                parts.append(bytes(self._arena[at : at + size]))
                at += (size + 7) & ~7
            found = _Code(
                parts[0].decode(_ENCODING[file_width], "surrogatepass"),
                parts[1].decode(_ENCODING[name_width], "surrogatepass"),
                first,
                parts[2],
            )
            self._codes[code_id] = found
        return found

    def _frame(self, code_id: int, offset: int) -> Frame:
        found = self._frames.get((code_id, offset))
        if found is None:
            code = self._code(code_id)
            unit = max(offset, 0) // 2
            # rounded up, so that a code object's offsets share one decoded table
            positions = _positions(code.linetable, code.first_line, (unit // 256 + 1) * 256)
            line, column = positions[unit] if unit < len(positions) else (None, None)
            if offset == -1:  # not inside the bytecode: the function is sure, the line is not
                line = column = None
            found = Frame(code.function, code.file, line, column)
            self._frames[code_id, offset] = found
        return found

    def frames(self, stack_id: int, most: int | None = None) -> tuple[Frame, ...]:
        """The frames of a stack, innermost first."""
        if not stack_id:
            return ()
        at = stack_id * 8
        _, _, count = _STACK.unpack_from(self._arena, at)
        at += _STACK.size
        count = count if most is None else min(count, most)
        return tuple(self._frame(*_FRAME.unpack_from(self._arena, at + 8 * i)) for i in range(count))


class CellLog:
    """Which notebook cell ran when.

    ipykernel names a cell's file by a hash of its text, so a cell that is run again has the same file and
    another number. `enter` and `leave` are called around each cell, by IPython's events.
    """

    def __init__(self) -> None:
        self._runs: dict[str, list[tuple[int, int]]] = {}  # file → (begin in ns CLOCK_MONOTONIC, number)
        self._begun = 0

    def enter(self, *_: object) -> None:
        """A cell begins."""
        self._begun = time.monotonic_ns()

    def leave(self, *_: object) -> None:
        """It has ended: its file is known by now."""
        numbers = current_cells()
        latest = max(numbers.values(), default=0)
        for file, number in numbers.items():
            runs = self._runs.setdefault(file, [])
            if number == latest and not (runs and runs[-1][1] == number):
                runs.append((self._begun, number))

    def number(self, file: str, when: int) -> int | None:
        """``In [n]`` of a cell's file at a time (ns, CLOCK_MONOTONIC); None for other files."""
        current = current_cells().get(file)
        runs = self._runs.get(file, [])
        if current is not None and not (runs and runs[-1][1] == current):
            runs = [*runs, (self._begun, current)]  # it is running now
        earlier = [number for begun, number in runs if begun <= when]
        return earlier[-1] if earlier else current

    def ambiguous(self, file: str) -> bool:
        """Whether the file has had more than one number."""
        current = current_cells().get(file)
        return len({number for _, number in self._runs.get(file, [])} | {current} - {None}) > 1


#: Of this process; filled once the extension is loaded.
cell_log = CellLog()


def current_cells() -> dict[str, int]:
    """File name of each notebook cell → its latest ``In [n]``; empty outside IPython.

    Source: IPython.core.compilerop.CachingCompiler keeps this map for its own tracebacks.
    """
    module: Any = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    numbers = getattr(getattr(shell, "compile", None), "_filename_map", None)
    return dict(numbers) if numbers else {}
