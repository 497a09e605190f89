"""The one door to the C core: opens it once, checks its return codes."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import Any

from hwwatch._core import ffi, lib
from hwwatch.errors import HwwatchError, NoSlotError, NotSupported, PermissionRefused

__all__ = ["arena", "check", "ffi", "lib", "open_core", "ring", "shared", "spill"]

#: Room for hits, in slots of 128 bytes; a hit takes one, or two when many registers changed. The memory is
#: reserved, not used: pages come to be as hits are written.
CAPACITY = 1 << 21
#: Bytes for call stacks and code objects, each stored once.
ARENA_BYTES = 256 << 20

#: What is done with a hit when that is full: 0 spill to a file, 1 drop it, 2 disarm the watch.
ON_FULL = 0
#: Bytes of disk that the file may take; no more than half of what is free when it is made.
DISK_BYTES = 16 << 30
#: Where the file is made; None: the roomiest of $XDG_RUNTIME_DIR and the folder for temporary files.
FOLDER: str | None = None

_lock = threading.Lock()
_opened = False


def open_core() -> Any:
    """Map the shared memory and set up the frame reader, once a process; returns the ``hww_shared``."""
    global _opened
    if not _opened:  # without the lock, which a forked child may find taken for ever
        with _lock:
            if lib.hww_core_shared() == ffi.NULL:
                from hwwatch import interpreter

                check(lib.hww_core_open(CAPACITY, ARENA_BYTES), "reserving memory for hits")
                lib.hww_core_shared().on_full = ON_FULL
                _open_spill()
                interpreter.configure()
            _opened = True
    return lib.hww_core_shared()


def _open_spill() -> None:
    """Give the ring a private file to go on in; where there can be none, hits are dropped when it is full."""
    import resource
    import tempfile

    most = DISK_BYTES
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY:  # to go beyond raises SIGXFSZ
        most = min(most, limit)
    folders = [FOLDER] if FOLDER is not None else [os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir()]
    found = []
    for folder in folders:
        with contextlib.suppress(OSError):
            if folder:
                system = os.statvfs(folder)
                found.append((system.f_bavail * system.f_frsize // 2, folder))
    for room, folder in sorted(found, reverse=True):
        slots = 1 << (min(most, room) // lib.HWW_SLOT).bit_length() >> 1
        with contextlib.suppress(OSError), tempfile.TemporaryFile(prefix="hwwatch-", dir=folder) as file:
            while slots >= shared().capacity:
                file.truncate(slots * lib.HWW_SLOT)
                if lib.hww_spill_open(file.fileno(), slots) == 0:
                    return
                slots >>= 1  # the address space may be limited, too


def shared() -> Any:
    """The ``hww_shared`` of this family of processes; opens the core if need be."""
    found = lib.hww_core_shared()
    return found if found != ffi.NULL else open_core()


def ring() -> memoryview:
    """All slots of the ring, live."""
    return memoryview(ffi.buffer(lib.hww_core_ring(), shared().capacity * lib.HWW_SLOT))


def spill() -> memoryview:
    """All slots of the spill file, live; empty where there is none."""
    slots = shared().spill_slots
    return memoryview(ffi.buffer(lib.hww_core_spill(), slots * lib.HWW_SLOT)) if slots else memoryview(b"")


def arena() -> memoryview:
    """The arena, live."""
    return memoryview(ffi.buffer(lib.hww_core_arena(), shared().arena_size))


def paranoid() -> int | None:
    """``kernel.perf_event_paranoid``, or None where the kernel has no perf events."""
    try:
        with open("/proc/sys/kernel/perf_event_paranoid") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def check(code: int, what: str) -> int:
    """Return `code` where it is no error; else raise what the errno means.

    Raises
    ------
    NoSlotError
        ENOSPC: all debug registers are taken.
    PermissionRefused
        EACCES, EPERM.
    NotSupported
        ENOENT, ENODEV, EOPNOTSUPP, ENOSYS, EINVAL: no such breakpoint on this kernel or CPU.
    HwwatchError
        Anything else.
    """
    if code >= 0:
        return code
    number = -code
    name = errno.errorcode.get(number, str(number))
    text = f"{what} failed ({name}: {os.strerror(number)})"
    if number == errno.ENOSPC:
        raise NoSlotError(f"{text}: all debug registers are taken.", hint="Free one: `hwwatch.unwatch()`.")
    if number in (errno.EACCES, errno.EPERM):
        level = paranoid()
        if level is not None and level > 2:
            raise PermissionRefused(
                f"{text}: kernel.perf_event_paranoid is {level}, hwwatch needs 2 or less.",
                hint="Allow it: `sudo sysctl kernel.perf_event_paranoid=2`.",
                slug="perf-paranoid",
            )
        raise PermissionRefused(
            f"{text}: perf_event_open is blocked, as container runtimes do by default.",
            hint="See `hwwatch.doctor()`.",
            slug="perf-blocked",
        )
    if number in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
        raise NotSupported(
            f"{text}: hwwatch needs Linux 5.13 or later and a CPU with debug registers.",
            hint="See `hwwatch.doctor()`.",
            slug="no-breakpoints",
        )
    if number in (errno.EMFILE, errno.ENFILE):
        raise HwwatchError(
            f"{text}: a watch needs one file descriptor for each thread and register.",
            hint="Raise the limit: `ulimit -n 4096`.",
            slug="too-many-files",
        )
    raise HwwatchError(text, slug=name.lower())
