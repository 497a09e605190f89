"""Armory: what arms the watches of a session, changes them while they are armed, and disarms them."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
import weakref
from typing import Any

from hwwatch import deliveries, names, native, safepoints
from hwwatch.arming import check_mode, is_shared, kernel_note, no_slot, pieces_of
from hwwatch.backends.select import select
from hwwatch.coverages import threads
from hwwatch.deliveries import Delivery
from hwwatch.errors import HwwatchError, NoSlotError, NotSupported, PermissionRefused, TargetError
from hwwatch.ledgers import Ledger
from hwwatch.native import lib
from hwwatch.policies import resolve
from hwwatch.quiet import lock, uninterrupted
from hwwatch.records import clock_offset
from hwwatch.settings import (
    check_limit,
    check_on_hit,
    check_undo,
    compile_for,
    settings_of,
    wanted_bytes,
)
from hwwatch.types import ArmRequest, Backend, Policy
from hwwatch.watchpoints import Watch

_UNCHANGED: Any = object()

_armories: weakref.WeakSet[Armory] = weakref.WeakSet()


class Armory:
    """Arms, changes and disarms; may be called from any thread.

    Attributes
    ----------
    watches : dict of int to Watch
        Those of the session, by id.
    ledger : Ledger
        When they were armed, and how.
    clock : int
        Wall time minus the monotonic clock, ns.
    """

    def __init__(self) -> None:
        self.watches: dict[int, Watch] = {}
        self.ledger = Ledger()
        self.clock = clock_offset()
        self._delivery = Delivery()
        _armories.add(self)

    def prepare(self, watch: Watch, policy: Policy, when: str | None, limit: int | None, on_hit: Any) -> Any:
        """Settings for these options, once all of them are found right; only then the watch has them."""
        check_undo(watch, policy)
        resolved = resolve(policy, watch.target, watch.mode)
        condition = compile_for(watch, when, watch.mode)
        if on_hit is not None:
            deliveries.prepare(self.deliver, rows=True)
        elif watch.mode == "r" or limit is not None:
            # Decoding writers, and freeing slots at a limit, can also wait until somebody asks.
            with contextlib.suppress(NotSupported):
                deliveries.prepare(self.deliver)
        watch._policy, watch._when, watch._limit, watch._on_hit = policy, when, limit, on_hit
        return settings_of(watch, resolved, condition, limit, on_hit is not None)

    def arm(self, watch: Watch, backend_name: str, settings: Any = None) -> None:
        """Arm it, with its own settings where none have just been made of them.

        Raises
        ------
        NoSlotError
            Not as many debug registers are free.
        PermissionRefused, NotSupported
            The backend cannot.
        CanaryError
            Its test access did not trap.
        """
        self.reap()
        backend, reason = select(backend_name)
        free = backend.slots_free(len(watch.pieces))
        if len(watch.pieces) > free:
            raise no_slot(watch, free, armed_watches())
        if settings is None:
            settings = self.prepare(watch, watch._policy, watch._when, watch._limit, watch._on_hit)
        kernel = _prove(backend, watch)
        watch.last_test = f"self-test passed at {time.strftime('%H:%M:%S')}"
        watch.kernel_note = kernel_note(watch, kernel, backend.name)
        request = ArmRequest(
            watch.pieces,
            [wanted_bytes(piece, watch.target.ranges) for piece in watch.pieces],
            watch.mode,
            watch.frames,
            kernel,
            watch.follow_fork,
            is_shared(watch.target),
            settings,
        )
        self.ledger.ring()
        watch.backend, watch._asked = f"{backend.name} ({reason})", backend_name
        watch._enabled, watch.stopped = True, ""
        since = time.monotonic_ns()
        watch._armed = backend.arm(request)
        watch.parent = 0
        self.ledger.open(watch, backend, watch._armed, since)

    def reap(self) -> None:
        """Close the books on watches that their handler has ended at a limit."""
        for watch in self.watches.values():
            self.is_armed(watch)

    def is_armed(self, watch: Watch) -> bool:
        """Whether debug registers are programmed for it; closes its books where its handler has ended it."""
        armed = watch._armed
        if armed is None or backend_of(watch).alive(armed):
            return armed is not None
        if native.shared().watches[armed.index].dropped and native.shared().on_full == lib.HWW_FULL_STOP:
            watch.stopped = 'disarmed when memory for hits was full, as storage(on_full="stop") asks'
            warnings.warn(f"{watch.name}: {watch.stopped}.", RuntimeWarning, stacklevel=2)
        self.disarm(watch)
        return False

    def disarm(self, watch: Watch) -> None:
        """Free its debug registers; nothing where it has none."""
        with uninterrupted:
            armed, watch._armed = watch._armed, None
            if armed is None:
                return
            since = time.monotonic_ns()
            try:
                backend_of(watch).disarm(armed)
            finally:
                self.ledger.close(watch, since)
                lib.hww_watch_free(armed.index, armed.generation)

    def set_mode(self, watch: Watch, mode: str) -> None:
        """Change the mode of a watch, armed or not; a refused one leaves it as it was."""
        check_mode(mode)
        with uninterrupted:
            if mode == watch._mode:
                return
            if (mode == "x") != (watch._mode == "x"):
                raise TargetError(
                    f"{watch.name} is watched as {'code' if watch._mode == 'x' else 'data'}; mode {mode!r} "
                    "does not fit it.",
                    hint=f"Make a new watch: `hwwatch.watch(…, {mode!r})`.",
                    slug="mode",
                )
            resolve(watch._policy, watch.target, mode)
            compile_for(watch, watch._when, mode)
            watch._mode = mode
            if watch.armed and watch._armed is not None:
                watch._armed = backend_of(watch).modify(watch._armed, mode)
                self.ledger.change(watch, watch._armed)
                watch.kernel_note = kernel_note(watch, watch._armed.request.kernel, backend_of(watch).name)
                if mode == "r":
                    with contextlib.suppress(NotSupported):
                        deliveries.prepare(self.deliver)

    def set_options(
        self,
        watch: Watch,
        *,
        policy: Any = _UNCHANGED,
        when: Any = _UNCHANGED,
        limit: Any = _UNCHANGED,
        on_hit: Any = _UNCHANGED,
    ) -> None:
        """Change options of a watch, armed or not; refused ones leave it as it was."""
        with uninterrupted:
            policy = watch._policy if policy is _UNCHANGED else policy
            when = watch._when if when is _UNCHANGED else when
            limit = watch._limit if limit is _UNCHANGED else limit
            on_hit = watch._on_hit if on_hit is _UNCHANGED else on_hit
            check_limit(limit)
            check_on_hit(on_hit)
            if on_hit is not None and watch._on_hit is None:
                watch._told = self.ledger.ring().committed()
            settings = self.prepare(watch, policy, when, limit, on_hit)
            if watch.armed and watch._armed is not None:
                backend_of(watch).configure(watch._armed, settings)
                self.ledger.configure(watch, settings)

    def deliver(self) -> list[Watch]:
        """At a safe point: call `on_hit` with the new hits; returns the watches that want the debugger."""
        with lock:
            self.reap()
            batch = self._delivery.collect(self.ledger, list(self.watches.values()), self.clock)
        if batch.calls:
            batch.call()
            with lock:
                self._delivery.called(self.ledger)
        return batch.stopped

    def set_enabled(self, watch: Watch, on: bool) -> None:
        """Pause a watch, or have it go on; one that was disarmed is armed anew."""
        with uninterrupted:
            if not watch.armed or watch._armed is None:
                if on:
                    if self.watches.get(watch.id) is not watch:
                        raise TargetError(f"{watch.name} was let go.", hint="Watch it anew.", slug="no-watch")
                    self.arm(watch, watch._asked)
                return
            since = time.monotonic_ns()
            backend_of(watch).enable(watch._armed, on)
            self.ledger.enable(watch, on, since)
            watch._enabled = on

    def retarget(self, watch: Watch) -> None:
        """Aim at the place where its object's memory is now."""
        with uninterrupted:
            target, home = watch.home.found(watch.target)
            if home is watch.home:
                return
            pieces = pieces_of(target, watch.mode)
            armed, enabled = watch.armed, watch._enabled or watch._moved_away
            self.disarm(watch)
            watch._aim(target, home, pieces)
            if armed:
                self.arm(watch, watch._asked)
                if not enabled:
                    self.set_enabled(watch, False)

    def verify(self, watch: Watch) -> bool:
        """Whether a test access traps now; the outcome is kept in `watch.last_test`."""
        with lock:
            stamp = time.strftime("%H:%M:%S")
            if not watch.armed or watch._armed is None:
                watch.last_test = f"self-test at {stamp}: not armed"
                return False
            request = watch._armed.request
            try:
                backend_of(watch).canary(request.mode, request.pieces[0].nbytes, request.kernel)
            except NoSlotError:
                # The scratch location needs a register of its own for a moment; ours are all in use.
                watch.last_test = f"self-test at {stamp}: no free slot for the test access"
                return False
            except HwwatchError as error:
                watch.last_test = f"self-test failed at {stamp}: {error}"
                return False
            watch.last_test = f"self-test passed at {stamp}"
            return True

    def unseen(self, watch: Watch) -> tuple[dict[int, str], tuple[str, ...]]:
        """Threads that it does not see, by tid, with the reason; and what else it misses."""
        if not watch.armed or watch._armed is None:
            return {}, ()
        backend = backend_of(watch)
        return backend.blind(watch._armed), backend.notes(watch._armed)

    def forget_parent(self) -> None:
        """In a forked child: the events belong to the parent."""
        for watch in self.watches.values():
            if watch._armed is not None:
                watch.parent = int(native.shared().watches[watch._armed.index].owner)
            watch._armed = None


def backend_of(watch: Watch) -> Backend:
    """The backend that serves a watch, or did last."""
    return select(watch.backend.partition(" ")[0]).backend


def _prove(backend: Backend, watch: Watch) -> bool:
    """Show by a test access that such a watch traps; returns whether kernel accesses can be included."""
    nbytes = watch.pieces[0].nbytes
    if watch.kernel is not False and watch.mode != "x":
        try:
            backend.canary(watch.mode, nbytes, True)
            return True
        except (PermissionRefused, NotSupported):
            if watch.kernel is True:
                raise
    backend.canary(watch.mode, nbytes, False)
    return False


def armed_watches() -> list[Watch]:
    """Armed watches of all sessions of this process."""
    return [watch for armory in list(_armories) for watch in list(armory.watches.values()) if watch.armed]


def release_signals() -> None:
    """Give SIGTRAP back, once nothing is armed and no hit is on its way."""
    if lib.hww_core_shared() == native.ffi.NULL:
        return
    with lock:  # else another thread may be arming
        if armed_watches():
            return
        # A SIGTRAP that still waits in a thread would kill the process if it met the default action.
        if not any(thread.pending_sigtrap for thread in threads()):
            native.check(lib.hww_trap_close(), "restoring the SIGTRAP handler")
            safepoints.uninstall()


def _after_fork() -> None:
    names.forked()
    for armory in list(_armories):
        armory.forget_parent()


os.register_at_fork(after_in_child=_after_fork)
