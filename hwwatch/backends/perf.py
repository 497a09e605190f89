"""Backend `perf`: hardware breakpoints by `perf_event_open` with `sigtrap` (Linux 5.13 and later)."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hwwatch import native
from hwwatch.coverages import hits_on_their_way
from hwwatch.errors import CanaryError, NoSlotError
from hwwatch.native import check, ffi, lib
from hwwatch.types import Armed, ArmRequest

CORE_MODE = {"w": lib.HWW_WRITE, "rw": lib.HWW_READWRITE, "r": lib.HWW_READ, "x": lib.HWW_EXECUTE}
#: Milliseconds to wait for hits that were counted and are not recorded yet, before they are called lost;
#: seconds, while threads are waiting for their turn to run.
SETTLE, PATIENCE = 10, 1.0
WORDS = {"w": "write", "rw": "read-write", "r": "read-write", "x": "execute"}


#: States of a table entry whose watch has ended.
OVER = (lib.HWW_RETIRED, lib.HWW_FREE)


class PerfBackend:
    """One event for each piece and thread; threads and children born later inherit them."""

    name = "perf"
    counting = True

    def __init__(self) -> None:
        native.open_core()
        self._lock = threading.RLock()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lock = threading.RLock()  # another thread may have held it

    def slots_free(self, most: int = 4) -> int:
        """Free debug registers of the calling thread, at most `most`, found by taking them for a moment."""
        with self._lock:
            return check(lib.hww_slots_free(0, most), "asking for free debug registers")

    def canary(self, mode: str, nbytes: int, kernel: bool) -> None:
        """Trap on a scratch location of the same mode and size.

        Raises
        ------
        CanaryError
            The kernel accepted the breakpoint and no trap came, as in gVisor and some virtual machines.
        PermissionRefused, NoSlotError, NotSupported
            The kernel refused it.
        """
        with self._lock:
            check(lib.hww_trap_open(), "installing the SIGTRAP handler")
            for _ in range(3):  # a virtual machine may lose a trap's cause now and then
                fired = check(
                    lib.hww_canary(CORE_MODE[mode], nbytes, int(kernel)),
                    f"opening a {WORDS[mode]} breakpoint",
                )
                if fired:
                    break
        if not fired:
            raise CanaryError(
                f"a {WORDS[mode]} breakpoint of {nbytes} bytes was accepted, but a test access on it raised "
                "no trap: this virtual machine or sandbox does not deliver debug exceptions, or another "
                "debugger takes them.",
                hint="See `hwwatch.doctor()`.",
            )

    def kernel_visible(self) -> bool:
        """Whether this process may include kernel accesses (paranoid <= 1, or CAP_PERFMON)."""
        with self._lock:
            check(lib.hww_trap_open(), "installing the SIGTRAP handler")
            return int(lib.hww_canary(lib.HWW_WRITE, 8, 1)) not in (-errno.EACCES, -errno.EPERM)

    def arm(self, request: ArmRequest) -> Armed:
        """Arm each thread of the process; on failure nothing stays armed."""
        options = _options(request)
        report = ffi.new("struct hww_arm_report *")
        with self._lock:
            check(lib.hww_trap_open(), "installing the SIGTRAP handler")
            with claimed(request) as index:
                code = lib.hww_watch_open(index, options, report)
                check(code, f"arming thread {report.failed_tid}" if report.failed_tid else "arming")
                lib.hww_watch_publish(index)
            generation = native.shared().watches[index].generation
        return Armed(index, generation, request, report.threads, report.unsure)

    def disarm(self, armed: Armed) -> None:
        """Disable and close all events. A fork's child cannot disarm its parent: it holds none of them."""
        with self._lock:
            if self._current(armed):
                lib.hww_watch_stop(armed.index)
                try:
                    self._settle(armed.index, PATIENCE)
                finally:
                    lib.hww_watch_close(armed.index)

    @staticmethod
    def _settle(index: int, patience: float) -> None:
        """Wait for hits that are on their way to the handler."""
        for strict, share in ((1, 0.25), (0, 1.0)):
            deadline = time.monotonic() + patience * share
            while lib.hww_watch_settle(index, SETTLE, strict) and hits_on_their_way():
                if time.monotonic() > deadline:
                    break

    def enable(self, armed: Armed, on: bool) -> None:
        """Pause or resume by ioctl, which reaches inherited events too."""
        with self._lock:
            if self._current(armed):
                check(lib.hww_watch_enable(armed.index, int(on)), "switching a watch on or off")

    def configure(self, armed: Armed, settings: Any) -> None:
        """Put new settings in force with one store to shared memory."""
        with self._lock:
            if self._current(armed):
                check(lib.hww_watch_configure(armed.index, settings), "changing a watch")

    def modify(self, armed: Armed, mode: str) -> Armed:
        """Re-aim each event by PERF_EVENT_IOC_MODIFY_ATTRIBUTES, inherited ones included."""
        request = replace(armed.request, mode=mode)
        covered = ffi.new("int32_t *")
        with self._lock:
            generation = check(
                lib.hww_watch_modify(armed.index, CORE_MODE[mode], _options(request), covered),
                "changing the mode",
            )
            deadline = time.monotonic() + PATIENCE / 40  # hits by the old registers come first
            while lib.hww_watch_settle(armed.index, 2, 0) and hits_on_their_way():
                if time.monotonic() > deadline:
                    break
        return replace(armed, generation=generation, request=request, gap=armed.gap or not covered[0])

    def alive(self, armed: Armed) -> bool:
        """Whether the table's entry still is this watch and was not ended."""
        return self._current(armed) and native.shared().watches[armed.index].state not in OVER

    def counts(self, armed: Armed) -> tuple[int, ...]:
        """What the event counters say, for each piece, children and ended threads included."""
        out = ffi.new("uint64_t[4]")
        with self._lock:
            if not self._current(armed):
                return (0,) * len(armed.request.pieces)
            lib.hww_watch_counts(armed.index, out)
        return tuple(out)[: len(armed.request.pieces)]

    def threads(self, armed: Armed) -> frozenset[int]:
        """Thread ids with an event of their own."""
        with self._lock:
            if not self._current(armed):
                return frozenset()
            count = lib.hww_watch_threads(armed.index, ffi.NULL, 0)
            tids = ffi.new("int32_t[]", count)
            lib.hww_watch_threads(armed.index, tids, count)
        return frozenset(tids)

    def blind(self, armed: Armed) -> dict[int, str]:
        """None: each thread has its event. One that blocks SIGTRAP is counted, and told in the coverage."""
        return {}

    def notes(self, armed: Armed) -> tuple[str, ...]:
        """What the program has done to the descriptors of its events."""
        with self._lock:
            closed = lib.hww_watch_closed(armed.index) if self._current(armed) else 0
        if not closed:
            return ()
        return (
            f"the program has closed {closed} of its descriptors, as daemons do: what these stood for is not "
            "watched any more; `w.disarm()`, then `w.enabled = True` arms it anew",
        )

    def close(self) -> None:
        """Give SIGTRAP back to whoever had it."""
        with self._lock:
            check(lib.hww_trap_close(), "restoring the SIGTRAP handler")

    @staticmethod
    def _current(armed: Armed) -> bool:
        # An entry that has begun another life, or belongs to the parent, is not ours to touch.
        entry = native.shared().watches[armed.index]
        return bool(entry.generation == armed.generation and entry.owner == os.getpid())


def claim(request: ArmRequest) -> int:
    """Enter a watch into the table, with its settings in force; nothing is armed yet."""
    rows = zip(request.pieces, request.wanted, strict=True)
    pieces = ffi.new("struct hww_piece[]", [(piece.address, piece.nbytes, bits) for piece, bits in rows])
    index = int(
        lib.hww_watch_claim(CORE_MODE[request.mode], len(pieces), pieces, request.frames, int(request.shared))
    )
    if index == -errno.ENOSPC:
        raise NoSlotError(
            f"all {lib.HWW_MAX_WATCHES} entries of the watch table are in use.",
            hint="Disarm some: `hwwatch.unwatch()`.",
        )
    check(index, "entering the watch")
    error = lib.hww_watch_configure(index, request.settings)
    if error:
        _give_back(index)
        check(error, "entering the watch's settings")
    return index


@contextlib.contextmanager
def claimed(request: ArmRequest) -> Iterator[int]:
    """`claim`, for a block that arms the entry; where that raises, the entry is given back."""
    index = claim(request)
    try:
        yield index
    except BaseException:
        _give_back(index)
        raise


def _give_back(index: int) -> None:
    lib.hww_watch_close(index)
    lib.hww_watch_free(index, native.shared().watches[index].generation)


def _options(request: ArmRequest) -> Any:
    return ffi.new(
        "struct hww_arm_options *",
        {"kernel": int(request.kernel), "follow_fork": int(request.follow_fork)},
    )
