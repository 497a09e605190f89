"""Storage: how much room there is for hits, in memory and on disk, and what is done when it is full."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hwwatch import native
from hwwatch.errors import HwwatchError
from hwwatch.native import lib

ON_FULL = {"spill": lib.HWW_FULL_SPILL, "drop": lib.HWW_FULL_DROP, "stop": lib.HWW_FULL_STOP}


@dataclass(frozen=True)
class Storage:
    """Room for the hits of this process and its forked children.

    Attributes
    ----------
    on_full : {"spill", "drop", "stop"}
        What is done with a hit for which memory has no room.
    capacity : int
        Records in memory; a hit takes one, or two when many registers have changed.
    disk : int
        Bytes that the spill file may take; 0 where there is none.
    used, spilled : int
        Records in memory and in the file now.
    """

    on_full: str
    capacity: int
    disk: int
    used: int
    spilled: int

    def __repr__(self) -> str:
        return (
            f"<Storage on_full={self.on_full!r}: {self.used} of {self.capacity} records in memory, "
            f"{self.spilled} in the spill file ({self.spilled * lib.HWW_SLOT} of {self.disk} bytes)>"
        )


def storage(
    on_full: str | None = None,
    *,
    capacity: int | None = None,
    disk: int | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Storage:
    """Tell how much room there is for hits, or set it, for all sessions and forked children.

    Parameters
    ----------
    on_full : {"spill", "drop", "stop"}
        What is done with a hit for which memory has no room: it goes to a file (default), is left out and
        counted as lost, or that and its watch is disarmed. May be set at any time.
    capacity : int
        Records in memory, rounded up to a power of two from 8192 on (default 2097152, 128 bytes each); a hit
        takes one, or two when many registers have changed. Before the first watch.
    disk : int
        Bytes that the file may take, rounded down to a power of two (default 16 GiB; never more than half of
        what is free). What finds no room there either is counted as lost. Before the first watch.
    folder : path
        Where the file is; it has no name, and nobody else can open it. Default: the roomiest of
        ``$XDG_RUNTIME_DIR`` and the folder for temporary files. Before the first watch.

    Returns
    -------
    Storage

    Raises
    ------
    HwwatchError
        A value is none of these, or comes too late.
    """
    if on_full is not None and on_full not in ON_FULL:
        raise HwwatchError(f'on_full={on_full!r} is none of "spill", "drop", "stop".', slug="storage")
    fixed = {"capacity": capacity, "disk": disk, "folder": folder}
    chosen = [f"{name}={value!r}" for name, value in fixed.items() if value is not None]
    if chosen and lib.hww_core_shared() != native.ffi.NULL:
        raise HwwatchError(
            f"{', '.join(chosen)}: the room for hits is set up with the first watch of a process.",
            hint="Call `hwwatch.storage(…)` before it.",
            slug="storage",
        )
    for name, value, least in (("capacity", capacity, 1), ("disk", disk, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise HwwatchError(f"{name}={value!r}: a number from {least} on is needed.", slug="storage")
    if folder is not None and not isinstance(folder, str | os.PathLike):
        raise HwwatchError(f"folder={folder!r}: a path is needed.", slug="storage")
    if folder is not None and not (Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise HwwatchError(f"folder={os.fspath(folder)!r}: no folder to write to.", slug="storage")
    if capacity is not None:
        native.CAPACITY = max(1 << (capacity - 1).bit_length(), lib.HWW_SPILL_CHUNK)
    if disk is not None:
        native.DISK_BYTES = disk
    if folder is not None:
        native.FOLDER = os.fspath(folder)
    if on_full is not None:
        native.ON_FULL = ON_FULL[on_full]
        if lib.hww_core_shared() != native.ffi.NULL:
            native.shared().on_full = native.ON_FULL
    return _now()


def _now() -> Storage:
    name = next(name for name, code in ON_FULL.items() if code == native.ON_FULL)
    if lib.hww_core_shared() == native.ffi.NULL:
        return Storage(name, native.CAPACITY, native.DISK_BYTES, 0, 0)
    shared = native.shared()
    head, spill, tail = int(shared.head), int(shared.spill), int(shared.tail)
    spilled = head - max(spill, tail) if spill else 0
    return Storage(
        name, int(shared.capacity), int(shared.spill_slots) * lib.HWW_SLOT, head - tail - spilled, spilled
    )
