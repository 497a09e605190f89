"""Program counters → instructions and symbols, each decoded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwwatch.code.instructions import Site, resolve
from hwwatch.code.symbols import Symbol, Symbols
from hwwatch.native import lib
from hwwatch.records import Hits, distinct, rows_of
from hwwatch.targets.model import Piece

_SAMPLES = 16  # hits of one pc that take part in finding its instruction


class Place(NamedTuple):
    """Where in the machine code a hit came from."""

    site: Site
    symbol: Symbol


class Sites:
    """Cache of places by (pc, execute or data, kernel)."""

    def __init__(self) -> None:
        self.symbols = Symbols()
        self._places: dict[tuple[int, bool, bool], Place] = {}

    def of(
        self, hits: Hits, rows: NDArray[np.int64], pieces: Sequence[Piece], execute: bool
    ) -> tuple[list[Place], NDArray[np.int64]]:
        """The distinct places of these hits, and for each hit which of them.

        Parameters
        ----------
        hits : Hits
        rows : (n,) int64
            Hits of one watch.
        pieces : sequence of Piece
            What that watch watches.
        execute : bool
            An execute watch: the instruction is the one at the pc.
        """
        records = rows_of(hits.records, rows)
        kernel = (records["flags"] & lib.HWW_HIT_KERNEL) != 0
        keys = records["pc"] << np.uint64(1) | kernel.astype(np.uint64)  # user addresses leave bit 63 free
        keys_found, inverse = distinct(keys)
        places: list[Place] = []
        for number, key in enumerate(keys_found.tolist()):
            pc, by_kernel = key >> 1, bool(key & 1)
            found = self._places.get((pc, execute, by_kernel))
            if found is None:
                mine = rows[np.flatnonzero(inverse == number)[:_SAMPLES]]
                found = self._find(pc, hits, mine, pieces, execute, by_kernel)
                self._places[pc, execute, by_kernel] = found
            places.append(found)
        return places, inverse

    def _find(
        self,
        pc: int,
        hits: Hits,
        rows: NDArray[np.int64],
        pieces: Sequence[Piece],
        execute: bool,
        kernel: bool,
    ) -> Place:
        symbol = self.symbols.lookup(pc)
        known = hits.registers_known[rows]
        rows = rows[known] if known.any() else rows[:1]
        touched: list[tuple[int, int]] = []
        for row in rows:
            record: Any = hits.records[row]
            hit = int(record["hit"])
            chosen = [piece for number, piece in enumerate(pieces) if hit >> number & 1] or list(pieces)
            first = min(piece.address for piece in chosen)
            touched.append((first, max(piece.address + piece.nbytes for piece in chosen) - first))
        site = resolve(
            pc,
            function_start=symbol.start,
            registers=hits.registers(rows),
            touched=touched,
            kernel=kernel,
            execute=execute,
        )
        if site.address and not symbol_holds(symbol, site.address):
            symbol = self.symbols.lookup(site.address)  # the trap came on the first pc of another function
        return Place(site, symbol)


def symbol_holds(symbol: Symbol, address: int) -> bool:
    """Whether the function of that symbol contains the address."""
    return symbol.start is not None and symbol.start <= address < (symbol.end or symbol.start)
