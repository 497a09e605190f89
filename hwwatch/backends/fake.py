"""Backend `fake`: scripted hits without hardware, for tests and for trying things out.

Stores are made with `store`, which writes the bytes and then enters the real trap handler as the CPU would
have: ring, frames, snapshots and timeline are the real ones.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hwwatch import native
from hwwatch.backends.perf import CORE_MODE, OVER, claim
from hwwatch.errors import NoSlotError, NotSupported
from hwwatch.native import check, ffi, lib
from hwwatch.types import Armed, ArmRequest

SLOTS = 4


class FakeBackend:
    """Keeps to the hardware's limits: 4 slots, pieces of 1, 2, 4, 8 bytes."""

    name = "fake"
    counting = True

    def __init__(self) -> None:
        native.open_core()
        self._armed: dict[int, Armed] = {}
        self._counts: dict[int, list[int]] = {}

    def slots_free(self, most: int = SLOTS) -> int:
        """Slots not held by an armed watch, at most `most`."""
        return min(most, SLOTS - sum(len(armed.request.pieces) for armed in self._armed.values()))

    def canary(self, mode: str, nbytes: int, kernel: bool) -> None:
        """Nothing to prove; there is no kernel in it.

        Raises
        ------
        NotSupported
            Kernel accesses were asked for.
        """
        if kernel:
            raise NotSupported("the fake backend has no kernel accesses.", slug="kernel")

    def kernel_visible(self) -> bool:
        """There is no kernel in it."""
        return False

    def arm(self, request: ArmRequest) -> Armed:
        """Enter the watch into the real table."""
        if len(request.pieces) > self.slots_free():
            raise NoSlotError("all fake debug registers are taken.")
        check(lib.hww_trap_open(), "installing the fault guard")
        index = claim(request)
        lib.hww_watch_publish(index)
        armed = Armed(index, native.shared().watches[index].generation, request, 1)
        self._armed[index] = armed
        self._counts[index] = [0] * len(request.pieces)
        return armed

    def disarm(self, armed: Armed) -> None:
        """Free the slots."""
        if self._armed.pop(armed.index, None):
            lib.hww_watch_close(armed.index)

    def enable(self, armed: Armed, on: bool) -> None:
        """Pause or resume."""
        lib.hww_watch_enable(armed.index, int(on))

    def configure(self, armed: Armed, settings: Any) -> None:
        """As in hardware: one store to shared memory."""
        check(lib.hww_watch_configure(armed.index, settings), "changing a watch")

    def modify(self, armed: Armed, mode: str) -> Armed:
        """The table's part of it."""
        options, covered = ffi.new("struct hww_arm_options *"), ffi.new("int32_t *")
        generation = check(
            lib.hww_watch_modify(armed.index, CORE_MODE[mode], options, covered), "changing the mode"
        )
        changed = Armed(armed.index, generation, replace(armed.request, mode=mode), 1)
        self._armed[armed.index] = changed
        return changed

    def alive(self, armed: Armed) -> bool:
        """Whether it is still armed."""
        entry = native.shared().watches[armed.index]
        return bool(entry.generation == armed.generation and entry.state not in OVER)

    def counts(self, armed: Armed) -> tuple[int, ...]:
        """What `store` and `hit` have counted."""
        return tuple(self._counts.get(armed.index, ()))

    def threads(self, armed: Armed) -> frozenset[int]:
        """No thread has an event."""
        return frozenset()

    def blind(self, armed: Armed) -> dict[int, str]:
        """No thread is."""
        return {}

    def notes(self, armed: Armed) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def close(self) -> None:
        """Nothing to give back."""

    def store(self, address: int, data: bytes, *, pc: int = 0, registers: Sequence[int] = ()) -> int:
        """Write `data` at `address` and raise one trap for it; returns how many pieces it touched.

        As in hardware, one store over several pieces counts for each and names only the last.
        """
        ctypes.memmove(address, data, len(data))
        touched = [
            (armed, number)
            for armed in self._armed.values()
            for number, piece in enumerate(armed.request.pieces)
            if address < piece.address + piece.nbytes and piece.address < address + len(data)
        ]
        for armed, number in touched:
            self._counts[armed.index][number] += 1
        if touched:
            self.hit(*touched[-1], pc=pc, registers=registers)
        return len(touched)

    def hit(
        self, armed: Armed, piece: int = 0, *, pc: int = 0, registers: Sequence[int] = (), late: bool = False
    ) -> None:
        """Enter the trap handler for one piece of a watch."""
        values = ffi.new("uint64_t[16]", list(registers) + [0] * (16 - len(registers)))
        lib.hww_trap_simulate(lib.hww_trap_cookie(armed.index, piece), int(late), pc, values)
