"""The one door to the C core: opens it once, checks its return codes."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any

from hwwatch._core import ffi, lib
from hwwatch.errors import HwwatchError, NoSlotError, NotSupported, PermissionRefused

__all__ = ["arena", "check", "ffi", "lib", "open_core", "ring", "shared"]

#: Room for hits, in slots of 128 bytes; a hit takes one, or two when many registers changed. The memory is
#: reserved, not used: pages come to be as hits are written.
CAPACITY = 1 << 21
#: Bytes for call stacks and code objects, each stored once.
ARENA_BYTES = 256 << 20

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
                interpreter.configure()
            _opened = True
    return lib.hww_core_shared()


def shared() -> Any:
    """The ``hww_shared`` of this family of processes; opens the core if need be."""
    found = lib.hww_core_shared()
    return found if found != ffi.NULL else open_core()


def ring() -> memoryview:
    """All slots of the ring, live."""
    return memoryview(ffi.buffer(lib.hww_core_ring(), shared().capacity * lib.HWW_SLOT))


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
