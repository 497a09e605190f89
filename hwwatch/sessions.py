"""Session: the watches that belong together, and their hits."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwwatch import deliveries, interpreter, names, native, safepoints
from hwwatch.arming import (
    SLOTS,
    check_frames,
    check_mode,
    is_shared,
    kernel_note,
    no_slot,
    pieces_of,
    place_of,
)
from hwwatch.backends.select import select
from hwwatch.coverages import Coverage, Tally, WatchCoverage, describe, threads
from hwwatch.deliveries import Delivery
from hwwatch.errors import HwwatchError, NoSlotError, NotSupported, PermissionRefused, TargetError
from hwwatch.ledgers import Ledger
from hwwatch.letters import encodable
from hwwatch.native import lib
from hwwatch.policies import resolve
from hwwatch.quiet import lock, own, uninterrupted
from hwwatch.records import clock_offset
from hwwatch.settings import (
    check_limit,
    check_name,
    check_on_hit,
    check_undo,
    compile_for,
    settings_of,
    wanted_bytes,
)
from hwwatch.targets.memory import a_kind
from hwwatch.types import ArmRequest, Backend, Policy
from hwwatch.watchpoints import Watch

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_UNCHANGED: Any = object()

_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """Watches with their hits; a context manager that disarms on leaving.

    Parameters
    ----------
    name : str
        For messages.
    backend : str
        "auto" or the name of a backend; a watch may ask for another.
    """

    def __init__(self, name: str = "session", *, backend: str = "auto") -> None:
        self.name = name
        self._backend = backend
        self._lock = lock
        self._watches: dict[int, Watch] = {}
        self._next = 1
        self._ledger = Ledger()
        self._delivery = Delivery()
        self._clock = clock_offset()
        self._said_dropped = False
        _sessions.add(self)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        armed = sum(watch.armed for watch in self._watches.values())
        return f"<Session {self.name!r}: {len(self._watches)} watches, {armed} armed>"

    # arming

    @own
    def watch(
        self,
        target: Any,
        mode: str = "w",
        *,
        nbytes: int | None = None,
        name: str | None = None,
        policy: Policy = "continue",
        when: str | None = None,
        limit: int | None = None,
        on_hit: Any = None,
        kernel: bool | str = "auto",
        follow_fork: bool = True,
        hold: bool = True,
        stack: int = 16,
        backend: str = "auto",
    ) -> Watch:
        """Watch a place in memory; see `hwwatch.watch`."""
        check_mode(mode)
        check_frames(stack)
        check_limit(limit)
        check_on_hit(on_hit)
        if kernel not in (True, False, "auto"):
            raise TargetError(f'kernel={kernel!r} is none of True, False, "auto".', slug="kernel")
        if name is not None:
            check_name(name)
        place = place_of(target, mode, nbytes, name)
        check_name(place.name)
        pieces = pieces_of(place, mode)
        made: list[Watch] = []
        try:
            with uninterrupted:
                watch = Watch(
                    self,
                    self._next,
                    self._unique(encodable(str(name or place.name))),
                    place,
                    pieces,
                    mode,
                    policy,
                    frames=int(stack),
                    kernel=kernel,
                    follow_fork=follow_fork,
                    hold=hold or place.kind == "code",
                )
                settings = self._prepare(watch, policy, when, limit, on_hit)
                self._arm(watch, self._backend if backend == "auto" else backend, settings)
                made.append(watch)
                self._watches[watch.id] = watch
                self._next += 1
                return watch
        except BaseException:  # an interrupt that came meanwhile: nothing is armed when this raises
            if made:
                self.unwatch(*made)
            raise

    @contextlib.contextmanager
    def watching(self, target: Any, mode: str = "w", **options: Any) -> Iterator[Watch]:
        """Watch for the length of a `with` block; disarmed on leaving, also by an exception."""
        watch = self.watch(target, mode, **options)
        del target  # this frame lives as long as the block; with hold=False it must not keep the object
        try:
            yield watch
        finally:
            watch.disarm()

    def _unique(self, name: str) -> str:
        taken = {watch.name for watch in self._watches.values()}
        if name not in taken:
            return name
        return next(f"{name} ({n})" for n in range(2, len(taken) + 3) if f"{name} ({n})" not in taken)

    def _prepare(self, watch: Watch, policy: Policy, when: str | None, limit: int | None, on_hit: Any) -> Any:
        """Settings for these options, once all of them are found right; only then the watch has them."""
        check_undo(watch, policy)
        resolved = resolve(policy, watch.target, watch.mode)
        condition = compile_for(watch, when, watch.mode)
        if on_hit is not None:
            deliveries.prepare(self._deliver, rows=True)
        elif watch.mode == "r" or limit is not None:
            # Decoding writers, and freeing slots at a limit, can also wait until somebody asks.
            with contextlib.suppress(NotSupported):
                deliveries.prepare(self._deliver)
        watch._policy, watch._when, watch._limit, watch._on_hit = policy, when, limit, on_hit
        return settings_of(watch, resolved, condition, limit, on_hit is not None)

    def _arm(self, watch: Watch, backend_name: str, settings: Any = None) -> None:
        """Arm it, with its own settings where none have just been made of them."""
        self._reap()
        backend, reason = select(backend_name)
        free = backend.slots_free(len(watch.pieces))
        if len(watch.pieces) > free:
            raise no_slot(watch, free, armed_watches())
        if settings is None:
            settings = self._prepare(watch, watch._policy, watch._when, watch._limit, watch._on_hit)
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
        self._ledger.ring()
        watch.backend, watch._asked = f"{backend.name} ({reason})", backend_name
        watch._enabled, watch.stopped = True, ""
        since = time.monotonic_ns()
        watch._armed = backend.arm(request)
        watch.parent = 0
        self._ledger.open(watch, backend, watch._armed, since)

    def _reap(self) -> None:
        """Close the books on watches that their handler has ended at a limit."""
        for watch in self._watches.values():
            self._is_armed(watch)

    def _is_armed(self, watch: Watch) -> bool:
        armed = watch._armed
        if armed is None or self._backend_of(watch).alive(armed):
            return armed is not None
        if native.shared().watches[armed.index].dropped and native.shared().on_full == lib.HWW_FULL_STOP:
            watch.stopped = 'disarmed when memory for hits was full, as storage(on_full="stop") asks'
            warnings.warn(f"{watch.name}: {watch.stopped}.", RuntimeWarning, stacklevel=2)
        self._disarm(watch)
        return False

    def _backend_of(self, watch: Watch) -> Any:
        return select(watch.backend.partition(" ")[0]).backend

    def _disarm(self, watch: Watch) -> None:
        with uninterrupted:
            armed, watch._armed = watch._armed, None
            if armed is None:
                return
            since = time.monotonic_ns()
            try:
                self._backend_of(watch).disarm(armed)
            finally:
                self._ledger.close(watch, since)
                lib.hww_watch_free(armed.index, armed.generation)

    def _set_name(self, watch: Watch, name: str) -> None:
        check_name(name)
        name = encodable(str(name))
        with uninterrupted:
            for other in self._watches.values():
                if other is not watch and other.name == name:
                    raise TargetError(
                        f"name={name!r}: watch {other.id} has this name.",
                        hint="Take another, or rename or unwatch that one first.",
                        slug="name",
                    )
            watch._name = name

    def _set_mode(self, watch: Watch, mode: str) -> None:
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
                watch._armed = self._backend_of(watch).modify(watch._armed, mode)
                self._ledger.change(watch, watch._armed)
                watch.kernel_note = kernel_note(watch, watch._armed.request.kernel, watch.backend)
                if mode == "r":
                    with contextlib.suppress(NotSupported):
                        deliveries.prepare(self._deliver)

    def _set_options(
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
                watch._told = self._ledger.ring().committed()
            settings = self._prepare(watch, policy, when, limit, on_hit)
            if watch.armed and watch._armed is not None:
                self._backend_of(watch).configure(watch._armed, settings)
                self._ledger.configure(watch, settings)

    def _deliver(self) -> list[Watch]:
        """At a safe point: call `on_hit` with the new hits; returns the watches that want the debugger."""
        with self._lock:
            self._reap()
            batch = self._delivery.collect(self._ledger, list(self._watches.values()), self._clock)
        if batch.calls:
            batch.call()
            with self._lock:
                self._delivery.called(self._ledger)
        return batch.stopped

    def _set_enabled(self, watch: Watch, on: bool) -> None:
        with uninterrupted:
            if not watch.armed or watch._armed is None:
                if on:
                    if self._watches.get(watch.id) is not watch:
                        raise TargetError(f"{watch.name} was let go.", hint="Watch it anew.", slug="no-watch")
                    self._arm(watch, watch._asked)
                return
            since = time.monotonic_ns()
            self._backend_of(watch).enable(watch._armed, on)
            self._ledger.enable(watch, on, since)
            watch._enabled = on

    def _retarget(self, watch: Watch) -> None:
        with uninterrupted:
            target, home = watch.home.found(watch.target)
            if home is watch.home:
                return
            pieces = pieces_of(target, watch.mode)
            armed, enabled = watch.armed, watch._enabled or watch._moved_away
            self._disarm(watch)
            watch._aim(target, home, pieces)
            if armed:
                self._arm(watch, watch._asked)
                if not enabled:
                    self._set_enabled(watch, False)

    def notice(self) -> None:
        """At a safe point: warn of armed watches whose object has moved, died or lost its name, once each.

        A watch whose object has moved or was closed is paused: what is written there is somebody else's. On
        threads other than the main one nothing is done: nobody would see what they say; the coverage tells.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for watch in list(self._watches.values()):
            if not watch.armed:
                continue
            home, notes = watch.home, []
            if home.is_news(trouble := home.trouble):
                if home.died is not None:
                    notes.append(f"{trouble}; `w.disarm()` ends it")
                else:
                    if watch._enabled:
                        self._set_enabled(watch, False)
                        watch._moved_away = True
                    notes.append(f"{trouble}; paused; `w.retarget()` aims at where it is now")
            if home.is_news(renamed := home.renamed):
                notes.append(f"{renamed}; watch it again to follow the name")
            for note in notes:
                warnings.warn(f"{watch.name}: {note}.", RuntimeWarning, stacklevel=4)

    def _verify(self, watch: Watch) -> bool:
        with self._lock:
            stamp = time.strftime("%H:%M:%S")
            if not watch.armed or watch._armed is None:
                watch.last_test = f"self-test at {stamp}: not armed"
                return False
            request = watch._armed.request
            try:
                self._backend_of(watch).canary(request.mode, request.pieces[0].nbytes, request.kernel)
            except NoSlotError:
                # The scratch location needs a register of its own for a moment; ours are all in use.
                watch.last_test = f"self-test at {stamp}: no free slot for the test access"
                return False
            except HwwatchError as error:
                watch.last_test = f"self-test failed at {stamp}: {error}"
                return False
            watch.last_test = f"self-test passed at {stamp}"
            return True

    # asking

    @own
    def watches(self) -> list[Watch]:
        """All watches, armed or not, in order of id."""
        from hwwatch.displays import WatchList

        self.notice()
        with self._lock:
            return WatchList(self._watches.values())

    def find(self, which: Watch | int | str) -> Watch:
        """A watch by object, id or name; text that is no name may be an id.

        Raises
        ------
        TargetError
            There is none.
        """
        with self._lock:
            found = _meant(which, self._watches.values())
            names = ", ".join(f"{watch.id} ({watch.name})" for watch in self._watches.values()) or "none"
        if found:
            return found[0]
        if isinstance(which, Watch | str) or _is_number(which):
            shown = which.name if isinstance(which, Watch) else which
            raise TargetError(f"there is no watch {shown!r}; there are: {names}.", slug="no-watch")
        several = isinstance(which, list | tuple | set)
        raise TargetError(
            f"{a_kind(which)} names no watch: a Watch, its id or its name is needed; there are: {names}.",
            hint="Give several one by one, or with a star: `*watches`." if several else "",
            slug="no-watch",
        )

    def unwatch(self, *which: Watch | int | str) -> None:
        """Disarm and forget watches by object, id or name, without arguments all; their hits stay."""
        with uninterrupted:
            chosen = [self.find(item) for item in which] if which else list(self._watches.values())
            for watch in chosen:
                self._disarm(watch)
                watch._let_go()
                self._watches.pop(watch.id, None)

    @own
    def timeline(
        self, *which: Watch | int | str, stack: bool = False, registers: bool = False
    ) -> pd.DataFrame:
        """All hits, or those of some watches, as a DataFrame; see `hwwatch.timeline`."""
        from hwwatch.readings import whole

        self.notice()
        with self._lock:
            watches = self._choose(which)
            return whole(self._ledger, watches, self._clock, self._reported, stack=stack, registers=registers)

    def frames(
        self, *which: Watch | int | str, stack: bool = False, registers: bool = False
    ) -> Iterator[pd.DataFrame]:
        """The timeline as consecutive pieces, for more hits than memory has room for.

        Yields
        ------
        DataFrame
            Some ten thousand rows each, at least one piece; columns and dtypes of all are equal, but
            for categories, to which later pieces may add. Only the first has `attrs`.

        Raises
        ------
        HwwatchError
            The hits were cleared meanwhile.
        """
        from hwwatch.readings import pieces

        with self._lock:
            watches = self._choose(which)
        return pieces(
            self._ledger, self._lock, watches, self._clock, self._reported, stack=stack, registers=registers
        )

    @own
    def export(
        self,
        path: str | os.PathLike[str],
        *which: Watch | int | str,
        overwrite: bool = False,
        stack: bool = False,
        registers: bool = False,
    ) -> Path:
        """Write all hits, or those of some watches, to a file; see `hwwatch.export`."""
        return self._export(path, which, overwrite=overwrite, stack=stack, registers=registers)[0]

    def _export(
        self,
        path: str | os.PathLike[str],
        which: tuple[Watch | int | str, ...],
        *,
        overwrite: bool,
        stack: bool = False,
        registers: bool = False,
        coverage: Coverage | None = None,
    ) -> tuple[Path, int]:
        """The file and how many hits are in it; `coverage` is what it says of it, instead of the present."""
        from hwwatch.exports import check_file, write
        from hwwatch.progress import track

        file = check_file(path, overwrite=overwrite)
        frames = self.frames(*which, stack=stack, registers=registers)
        if coverage is not None:
            first = next(frames)
            first.attrs["hwwatch"] |= {"coverage": coverage.to_dict(), "lost": coverage.lost}
            frames = itertools.chain([first], frames)
        with self._lock:
            total = self._ledger.ring().committed() - self._ledger.start
        return write(track(frames, total, f"export to {file.name}"), file, overwrite=overwrite)

    @own
    def plot(self, *which: Watch | int | str, **options: Any) -> Axes:
        """Draw all hits, or those of some watches; see `hwwatch.plot`."""
        frame: Any = self.timeline(*which)
        axes: Axes = frame.hwwatch.plot(**options)
        return axes

    def _reported(self) -> dict[str, Any]:
        """The coverage, for a timeline; warns once where hits are lost for want of room."""
        coverage = self.coverage()
        dropped = sum(watch.tally.dropped for watch in coverage.watches)
        if dropped and not self._said_dropped:
            self._said_dropped = True
            warnings.warn(
                f"{dropped} hits are lost for want of room; `hwwatch.clear()` makes some, "
                "`hwwatch.storage(…)` sets how much there is.",
                RuntimeWarning,
                stacklevel=5,
            )
        return coverage.to_dict()

    def _choose(self, which: tuple[Watch | int | str, ...]) -> list[Watch]:
        # Watches that were let go still have hits, and may be asked for.
        every = {entry.watch.id: entry.watch for entry in self._ledger.entries} | self._watches
        if not which:
            return list(every.values())
        chosen = []
        for item in which:
            chosen += _meant(item, every.values()) or [self.find(item)]
        return chosen

    def clear(self) -> None:
        """Forget recorded hits; watches stay armed."""
        with uninterrupted:
            self._ledger.clear()
            # Other sessions may still want their hits of this stretch.
            wanted = [session._ledger.start for session in list(_sessions) if session._ledger.entries]
            self._ledger.release(min([self._ledger.start, *wanted]))

    def _tally(self, watch: Watch) -> Tally:
        with self._lock:
            return self._ledger.tally(watch)

    def _hits(self, watch: Watch) -> int:
        with self._lock:
            return self._ledger.tally(watch, patience=0).hits

    @own
    def coverage(self) -> Coverage:
        """What is and what is not being seen; see `hwwatch.coverage`."""
        self.notice()
        return self._cover(self._coverage_of)

    def _cover(self, one: Callable[[Watch], WatchCoverage]) -> Coverage:
        with self._lock:
            owner = lib.hww_trap_owner() if lib.hww_core_shared() != native.ffi.NULL else lib.HWW_OWNER_NONE
            names = {lib.HWW_OWNER_US: "hwwatch", lib.HWW_OWNER_OTHER: "another handler"}
            watches = tuple(one(watch) for watch in self._watches.values())
            free = SLOTS
            if watches:
                try:
                    free = self._backend_of(next(iter(self._watches.values()))).slots_free()
                except HwwatchError:  # refused meanwhile, as by a sandbox: none can be had
                    free = 0
            unexplained = int(native.shared().unexplained) if watches else 0
            return Coverage(watches, names.get(owner, "nobody"), _frames_problem(), free, unexplained)

    def _coverage_of(self, watch: Watch) -> WatchCoverage:
        with self._lock:
            blind, notes = {}, ()
            if watch.armed and watch._armed is not None:
                backend = self._backend_of(watch)
                blind, notes = backend.blind(watch._armed), backend.notes(watch._armed)
            return describe(watch, self._tally(watch), unarmed=blind, missed=notes)

    # ending

    def close(self) -> None:
        """Disarm everything, and give SIGTRAP back when no other session needs it."""
        with uninterrupted:
            for watch in list(self._watches.values()):
                self._disarm(watch)
                watch._let_go()
            self._watches.clear()
        safepoints.unsubscribe(self._deliver)
        release_signals()

    def _forget_parent(self) -> None:
        # In a forked child: the events belong to the parent.
        for watch in self._watches.values():
            if watch._armed is not None:
                watch.parent = int(native.shared().watches[watch._armed.index].owner)
            watch._armed = None


def _is_number(which: object) -> bool:
    return isinstance(which, int | np.integer) and not isinstance(which, bool)


def _meant(which: object, watches: Collection[Watch]) -> list[Watch]:
    """Those of some watches that are meant by an object, id or name; a name comes before an id."""
    if isinstance(which, Watch):
        return [watch for watch in watches if watch is which]
    if isinstance(which, str):
        name = encodable(which)
        return [w for w in watches if w.name == name] or [w for w in watches if str(w.id) == name]
    return [watch for watch in watches if watch.id == which] if _is_number(which) else []


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
    return [watch for session in list(_sessions) for watch in list(session._watches.values()) if watch.armed]


def _frames_problem() -> str:
    return "" if lib.hww_core_shared() == native.ffi.NULL else interpreter.problem


_default: Session | None = None


def default_session() -> Session:
    """The session that the module functions use."""
    global _default
    if _default is None:
        with lock:
            _default = _default or Session("default")
    return _default


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


def _close_all() -> None:
    for session in list(_sessions):
        with contextlib.suppress(HwwatchError):
            session.close()


def _after_fork() -> None:
    names.forked()
    for session in list(_sessions):
        session._forget_parent()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
