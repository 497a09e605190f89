"""Backend `ptrace`: debug registers set by a helper process, for where `perf_event_open` is refused.

The helper traces each thread for some microseconds and lets go; the registers stay, and hits come to the same
handler. What the kernel does for perf events has to be done here: new threads and forked children are armed
as they begin (`_core/hooks.c`, `_core/turns.c`). Accesses by the kernel are not seen, and there is no
counter apart from the handler's own. A register that was used once stays on its thread's account until the
thread ends (ptrace_bps in arch/x86/kernel/ptrace.c): there perf has one less from then on.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace

from hwwatch import native
from hwwatch.backends.perf import CORE_MODE, WORDS, PerfBackend, claimed
from hwwatch.code.maps import Maps
from hwwatch.coverages import threads
from hwwatch.errors import CanaryError, HwwatchError, NoSlotError, NotSupported, PermissionRefused
from hwwatch.native import check, ffi, lib
from hwwatch.processes import descendants, process, tracers
from hwwatch.types import Armed, ArmRequest

_REASONS = {
    lib.HWW_THREAD_UNSEEN: "began unseen and is not armed",
    lib.HWW_THREAD_DEAF: "blocks SIGTRAP and is not armed, since a hit would kill the process",
    lib.HWW_THREAD_STUCK: "did not stop to be armed: it is in a system call that cannot be interrupted",
    lib.HWW_THREAD_REFUSED: "could not be armed",
    lib.HWW_THREAD_TORN: "is perhaps not armed: the helper was killed while it set its registers",
}


class PtraceBackend(PerfBackend):
    """One set of debug registers, the same in all threads that can take them."""

    name = "ptrace"
    counting = False

    def __init__(self) -> None:
        super().__init__()
        self._debugged = False  # when it was asked last

    def slots_free(self, most: int = 4) -> int:
        """Debug registers that neither hwwatch nor a debugger uses; perf events hold theirs unseen."""
        with self._lock:
            return min(most, _check(lib.hww_registers_free(), "asking for free debug registers"))

    def canary(self, mode: str, nbytes: int, kernel: bool) -> None:
        """Trap on a scratch location of the same mode and size.

        Raises
        ------
        CanaryError
            The registers were accepted and no trap came, as in gVisor and some virtual machines.
        PermissionRefused, NoSlotError, NotSupported
            This process may not be traced; no register is free; kernel accesses were asked for.
        """
        if kernel:
            raise NotSupported(
                "kernel=True: the ptrace backend does not see accesses by the kernel.",
                hint='Use backend="perf", or kernel="auto".',
                slug="kernel",
            )
        with self._lock:
            check(lib.hww_trap_open(), "installing the SIGTRAP handler")
            for _ in range(3):
                code = lib.hww_registers_canary(CORE_MODE[mode], nbytes)
                if code == -errno.EDEADLK:
                    raise NotSupported(
                        "this thread blocks SIGTRAP: a hit on it would kill the process.",
                        hint="Unblock it: `signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTRAP})`.",
                        slug="sigtrap-blocked",
                    )
                if _check(code, f"setting a {WORDS[mode]} breakpoint"):
                    return
        raise CanaryError(
            f"debug registers for a {WORDS[mode]} breakpoint of {nbytes} bytes were accepted, but a test "
            "access raised no trap: this virtual machine or sandbox does not deliver debug exceptions.",
            hint="See `hwwatch.doctor()`.",
        )

    def kernel_visible(self) -> bool:
        """They never are: the kernel drops a debug exception of its own access (exc_debug_kernel)."""
        return False

    def arm(self, request: ArmRequest) -> Armed:
        """Set the registers of each thread of the process; on failure nothing stays armed."""
        options = ffi.new("struct hww_arm_options *", {"follow_fork": int(request.follow_fork)})
        report = ffi.new("struct hww_arm_report *")
        with self._lock:
            check(lib.hww_trap_open(), "installing the SIGTRAP handler")
            _refuse_stack(request)
            with claimed(request) as index:
                lib.hww_watch_publish(index)
                code = lib.hww_registers_open(index, options, report)
                _check(code, f"arming thread {report.failed_tid}" if report.failed_tid else "arming")
            generation = native.shared().watches[index].generation
        return Armed(index, generation, request, report.threads, report.unsure)

    def disarm(self, armed: Armed) -> None:
        """Clear its registers in all threads, and wait for hits that are on their way.

        Raises
        ------
        HwwatchError
            The helper was killed again and again: the watch has ended, but its registers may still be set,
            which costs time until something else is armed or disarmed.
        """
        with self._lock:
            if self._current(armed):
                code = lib.hww_registers_close(armed.index)
                lib.hww_watch_stop(armed.index)
                lib.hww_watch_close(armed.index)
                _check(code, "disarming")

    def enable(self, armed: Armed, on: bool) -> None:
        """Pause or resume, in all threads."""
        with self._lock:
            if self._current(armed):
                _check(lib.hww_registers_enable(armed.index, int(on)), "switching a watch on or off")

    def modify(self, armed: Armed, mode: str) -> Armed:
        """Change the registers of each thread while it stands still; children's cannot be reached."""
        with self._lock:
            generation = _check(lib.hww_registers_modify(armed.index, CORE_MODE[mode]), "changing the mode")
        request, unreached = replace(armed.request, mode=mode), armed.unreached
        if request.follow_fork and "w" in (mode, armed.request.mode):
            unreached = tuple(str(process(pid)) for pid in descendants(os.getpid())) or unreached
        return replace(armed, generation=generation, request=request, unreached=unreached)

    def counts(self, armed: Armed) -> tuple[int, ...]:
        """What the handler has seen, and had no room for: nobody else counts."""
        with self._lock:
            if not self._current(armed):
                return (0,) * len(armed.request.pieces)
            entry = native.shared().watches[armed.index]
            counts = [entry.accounted[p] + entry.nested[p] for p in range(len(armed.request.pieces))]
            counts[0] += entry.dropped
        return tuple(map(int, counts))

    def threads(self, armed: Armed) -> frozenset[int]:
        """Thread ids that are armed."""
        with self._lock:
            return frozenset(tid for tid, state in _states().items() if state == lib.HWW_THREAD_ARMED)

    def blind(self, armed: Armed) -> dict[int, str]:
        """Living threads that are not armed, and why; those that can be are armed first."""
        with self._lock:
            if not self._current(armed):
                return {}
            self._set_again()
            alive = threads()
            states = _states()
            for thread in alive:
                if states.get(thread.tid) != lib.HWW_THREAD_ARMED and not thread.blocks_sigtrap:
                    lib.hww_registers_belated(thread.tid)
            states = _states()
        deaf = {thread.tid: lib.HWW_THREAD_DEAF for thread in alive if thread.blocks_sigtrap}
        known = {thread.tid: lib.HWW_THREAD_UNSEEN for thread in alive} | deaf | states
        return {
            thread.tid: _REASONS[known[thread.tid]]
            for thread in alive
            if known[thread.tid] not in (lib.HWW_THREAD_ARMED, lib.HWW_THREAD_ENDED)
        }

    def _set_again(self) -> None:
        """After a debugger has left: it may have changed debug registers, and has its own cleared."""
        debugged, self._debugged = self._debugged, bool(tracers())
        if debugged and not self._debugged:
            lib.hww_registers_again()

    def notes(self, armed: Armed) -> tuple[str, ...]:
        """What may have been missed for a while: half-set threads, late ones, children."""
        if not self._current(armed):
            return ()
        entry, found = native.shared().watches[armed.index], []
        if entry.torn:
            found.append(
                f"the helper that sets debug registers was killed {entry.torn} times at its work: a thread "
                "may have gone unseen until the next one came"
            )
        if entry.belated:
            found.append(f"{entry.belated} threads began unseen: they are armed, but were not from the start")
        if entry.taken:
            found.append(
                "a debugger had put something else into its debug registers: hits were missed until these "
                "were set again"
            )
        for pid, name in tracers():
            found.append(f"{name} ({pid}) is attached: it may put something else into debug registers")
        if armed.unreached:
            found.append(
                "its mode was changed after forked children were born, whose registers keep the mode before: "
                + ", ".join(armed.unreached)
            )
        if entry.unfollowed:
            found.append(f"{entry.unfollowed} forked children could not be armed")
        return tuple(found)


def _refuse_stack(request: ArmRequest) -> None:
    """A hit while a thread blocks SIGTRAP kills, and the C library does so while it uses its stack."""
    for mapping in Maps.read() if request.mode != "x" else ():
        if mapping.path == "[stack]" and any(
            mapping.start <= piece.address < mapping.end for piece in request.pieces
        ):
            raise NotSupported(
                "the ptrace backend does not watch the main thread's stack: the C library uses it while it "
                "blocks SIGTRAP, and a hit then would kill the process.",
                hint="Watch memory of the heap, or have perf allowed: see `hwwatch.doctor()`.",
                slug="stack",
            )


def _states() -> dict[int, int]:
    count = lib.hww_registers_threads(ffi.NULL, ffi.NULL, 0)
    tids, states = ffi.new("int32_t[]", count + 64), ffi.new("uint8_t[]", count + 64)
    found = min(lib.hww_registers_threads(tids, states, count + 64), count + 64)
    return dict(zip(tids[0:found], states[0:found], strict=True))


def _yama() -> int | None:
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


_PR_GET_DUMPABLE = 3


def _refusal(text: str) -> PermissionRefused:
    """Why this process may not be traced (ptrace_attach, __ptrace_may_access in kernel/ptrace.c)."""
    import ctypes

    debuggers = tracers()
    if debuggers:
        pid, name = debuggers[0]
        return PermissionRefused(
            f"{text}: this process is traced by {name} (pid {pid}), and can have one tracer.",
            hint=f"Detach {name} first.",
            slug="ptrace-traced",
        )
    if ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 1:
        return PermissionRefused(
            f"{text}: this process is not dumpable, so nobody may trace it.",
            hint="Allow it: `ctypes.CDLL(None).prctl(4, 1)` (PR_SET_DUMPABLE).",
            slug="ptrace-dumpable",
        )
    scope = _yama()
    if scope is not None and scope >= 2:
        help_ = (
            "It can be lowered at boot only."
            if scope >= 3
            else "Allow it: `sudo sysctl kernel.yama.ptrace_scope=1`."
        )
        return PermissionRefused(
            f"{text}: kernel.yama.ptrace_scope is {scope}, hwwatch needs 1 or less.",
            hint=help_,
            slug="ptrace-scope",
        )
    return PermissionRefused(
        f"{text}: ptrace is blocked, as by a sandbox.", hint="See `hwwatch.doctor()`.", slug="ptrace-blocked"
    )


def _check(code: int, what: str) -> int:
    """Return `code` where it is no error; else raise what it means for a tracer.

    Raises
    ------
    PermissionRefused, NoSlotError, NotSupported, HwwatchError
    """
    if code >= 0:
        return code
    name = errno.errorcode.get(-code, str(-code))
    text = f"{what} by ptrace failed ({name}: {os.strerror(-code)})"
    if -code in (errno.EPERM, errno.EACCES):
        raise _refusal(text)
    if -code in (errno.ENOSPC, errno.EBUSY):
        raise NoSlotError(f"{text}: all debug registers are taken.", hint="Free one: `hwwatch.unwatch()`.")
    if -code == errno.ECHILD:
        raise HwwatchError(
            f"{what} failed: the helper process was killed again and again.",
            hint="Try again without whatever kills it.",
            slug="ptrace-killed",
        )
    if -code in (errno.ENOSYS, errno.EIO, errno.EINVAL):
        raise NotSupported(
            f"{text}: this kernel or CPU has no debug registers for ptrace.",
            hint="See `hwwatch.doctor()`.",
            slug="no-breakpoints",
        )
    raise HwwatchError(text, slug=name.lower())
