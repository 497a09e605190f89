"""Session: the watches that belong together, and their hits."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hwwatch import interpreter, native
from hwwatch.backends.select import select
from hwwatch.coverages import Coverage, Tally, WatchCoverage, threads
from hwwatch.errors import HwwatchError, NoSlotError, NotSupported, TargetError
from hwwatch.native import lib
from hwwatch.records import Ring, clock_offset
from hwwatch.targets import Target, split_pieces, target_of
from hwwatch.targets.model import Piece
from hwwatch.types import MODES, Armed, ArmRequest, Goto, Policy, Return
from hwwatch.watchpoints import Watch

if TYPE_CHECKING:
    import pandas as pd

    from hwwatch.attribution import Life, Rows
    from hwwatch.code.sites import Sites
    from hwwatch.records import Hits

_SLOTS = lib.HWW_MAX_PIECES
#: Seconds to wait for hits that were counted and are not recorded yet, before they are called lost.
_IN_FLIGHT = 0.02
_HARDWARE_MODE = {"w": "w", "rw": "rw", "r": "rw", "x": "x"}

_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


@dataclass
class _Life:
    """The session's books on one arming of a watch."""

    watch: Watch
    life: Life
    armed: Armed
    released: int = 0  # records forgotten by clear()
    lost_before: tuple[int, ...] = ()  # by piece, at clear()
    final: dict[str, Any] = field(default_factory=dict)  # frozen when disarmed


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
        self._lock = threading.RLock()
        self._watches: dict[int, Watch] = {}
        self._lives: list[_Life] = []
        self._next = 1
        self._ring: Ring | None = None
        self._sites: Sites | None = None
        self._start = 0
        self._clock = clock_offset()
        _sessions.add(self)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        armed = sum(watch.armed for watch in self._watches.values())
        return f"<Session {self.name!r}: {len(self._watches)} watches, {armed} armed>"

    # arming

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
        stack: int = 16,
        backend: str = "auto",
    ) -> Watch:
        """Watch a place in memory; see `hwwatch.watch`."""
        if mode not in MODES:
            raise TargetError(f"mode {mode!r} is none of {', '.join(map(repr, MODES))}.", slug="mode")
        self._check_options(policy=policy, when=when, limit=limit, on_hit=on_hit)
        if not 0 <= stack <= lib.HWW_MAX_FRAMES:
            raise TargetError(f"stack={stack}: 0 to {lib.HWW_MAX_FRAMES} frames can be kept.", slug="stack")
        if kernel not in (True, False, "auto"):
            raise TargetError(f'kernel={kernel!r} is none of True, False, "auto".', slug="kernel")
        place = _place(target, mode, nbytes, name)
        pieces = _pieces(place, mode)
        with self._lock:
            watch = Watch(
                self,
                self._next,
                self._unique(name or place.name),
                place,
                pieces,
                mode,
                policy,
                frames=stack,
                kernel=kernel,
                follow_fork=follow_fork,
            )
            self._arm(watch, self._backend if backend == "auto" else backend)
            self._watches[watch.id] = watch
            self._next += 1
            return watch

    @contextlib.contextmanager
    def watching(self, target: Any, mode: str = "w", **options: Any) -> Iterator[Watch]:
        """Watch for the length of a `with` block; disarmed on leaving, also by an exception."""
        watch = self.watch(target, mode, **options)
        try:
            yield watch
        finally:
            watch.disarm()

    def _check_options(
        self,
        *,
        policy: Policy = "continue",
        when: str | None = None,
        limit: int | None = None,
        on_hit: Any = None,
    ) -> None:
        asked = {"when": when, "limit": limit, "on_hit": on_hit}
        for option, value in asked.items():
            if value is not None:
                raise NotSupported(f"{option}={value!r}: this version records every hit.", slug=option)
        if policy == "continue":
            return
        if policy == "skip" or isinstance(policy, (Return, Goto, int)) or callable(policy):
            raise NotSupported(
                f'policy {policy!r}: this version has "continue" only, which changes nothing.', slug="policy"
            )
        raise TargetError(f'policy {policy!r} is unknown; use "continue".', slug="policy")

    def _unique(self, name: str) -> str:
        taken = {watch.name for watch in self._watches.values()}
        if name not in taken:
            return name
        return next(f"{name} ({n})" for n in range(2, len(taken) + 3) if f"{name} ({n})" not in taken)

    def _arm(self, watch: Watch, backend_name: str) -> None:
        from hwwatch.attribution import Life, leaf_offsets

        choice = select(backend_name)
        backend = choice.backend
        free = backend.slots_free()
        if len(watch.pieces) > free:
            raise _no_slot(watch, free)
        hardware = _HARDWARE_MODE[watch.mode]
        kernel = watch.kernel is True or (watch.kernel == "auto" and watch.mode != "x" and backend.kernel_visible())
        backend.canary(hardware, watch.pieces[0].nbytes, kernel)
        watch.last_test = f"self-test passed at {time.strftime('%H:%M:%S')}"
        watch.kernel_note = _kernel_note(watch, kernel, backend.name)
        request = ArmRequest(
            watch.pieces, hardware, watch.frames, kernel, watch.follow_fork, _is_shared(watch.target)
        )
        armed = backend.arm(request)
        leaves = watch.target.leaves
        life = Life(
            armed.index,
            armed.generation,
            watch.id,
            watch.mode,
            watch.pieces,
            leaves,
            leaf_offsets(watch.pieces, leaves),
        )
        if self._ring is None:
            self._ring = Ring()
            self._start = self._ring.start
        self._lives.append(_Life(watch, life, armed))
        watch._armed = armed
        watch._enabled = True
        watch.backend = f"{backend.name} ({choice.reason})"

    def _backend_of(self, watch: Watch) -> Any:
        return select(watch.backend.partition(" ")[0]).backend

    def _current(self, watch: Watch) -> _Life:
        return next(entry for entry in reversed(self._lives) if entry.watch is watch)

    def _disarm(self, watch: Watch) -> None:
        with self._lock:
            armed, watch._armed = watch._armed, None
            if armed is None:
                return
            self._backend_of(watch).disarm(armed)
            entry = self._current(watch)
            deadline = time.monotonic() + _IN_FLIGHT
            while any(self._missing(entry)) and time.monotonic() < deadline:
                time.sleep(0.001)
            entry.final = self._figures(entry)

    def _set_mode(self, watch: Watch, mode: str) -> None:
        if mode not in MODES:
            raise TargetError(f"mode {mode!r} is none of {', '.join(map(repr, MODES))}.", slug="mode")
        with self._lock:
            if mode == watch._mode:
                return
            if (mode == "x") != (watch._mode == "x"):
                raise TargetError(
                    f"{watch.name} is watched as {'code' if watch._mode == 'x' else 'data'}; mode {mode!r} "
                    "does not fit it.",
                    hint=f"Make a new watch: `hwwatch.watch(…, {mode!r})`.",
                    slug="mode",
                )
            before, was_armed = watch._mode, watch.armed
            self._disarm(watch)
            watch._mode = mode
            if was_armed:
                try:
                    self._arm(watch, watch.backend.partition(" ")[0])
                except HwwatchError:
                    watch._mode = before
                    self._arm(watch, watch.backend.partition(" ")[0])
                    raise

    def _set_enabled(self, watch: Watch, on: bool) -> None:
        with self._lock:
            if watch._armed is None:
                if on:
                    self._arm(watch, watch.backend.partition(" ")[0])
                return
            self._backend_of(watch).enable(watch._armed, on)
            watch._enabled = on

    def _verify(self, watch: Watch) -> bool:
        with self._lock:
            stamp = time.strftime("%H:%M:%S")
            if watch._armed is None:
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

    def watches(self) -> list[Watch]:
        """All watches, armed or not, in order of id."""
        with self._lock:
            return list(self._watches.values())

    def find(self, which: Watch | int | str) -> Watch:
        """A watch by object, id or name.

        Raises
        ------
        TargetError
            There is none.
        """
        with self._lock:
            for watch in self._watches.values():
                if which is watch or which == watch.id or which == watch.name:
                    return watch
            if isinstance(which, str) and which.isdigit() and int(which) in self._watches:
                return self._watches[int(which)]
            names = ", ".join(f"{watch.id} ({watch.name})" for watch in self._watches.values()) or "none"
        shown = which.name if isinstance(which, Watch) else which
        raise TargetError(f"there is no watch {shown!r}; there are: {names}.", slug="no-watch")

    def unwatch(self, *which: Watch | int | str) -> None:
        """Disarm and forget watches by object, id or name, without arguments all; hits stay in the timeline."""
        with self._lock:
            chosen = [self.find(item) for item in which] if which else list(self._watches.values())
            for watch in chosen:
                self._disarm(watch)
                self._watches.pop(watch.id, None)

    def timeline(self, *which: Watch | int | str, stack: bool = False, registers: bool = False) -> pd.DataFrame:
        """All hits, or those of some watches, as a DataFrame; see `hwwatch.timeline`."""
        from hwwatch.timelines import build

        with self._lock:
            watches = self._choose(which)
            hits, rows = self._attributed(self._lives)
            coverage = self.coverage().to_dict()
        return build(hits, rows, watches, self._clock, coverage, stack=stack, registers=registers)

    def _choose(self, which: tuple[Watch | int | str, ...]) -> list[Watch]:
        # Watches that were let go still have hits, and may be asked for.
        every = {entry.watch.id: entry.watch for entry in self._lives} | self._watches
        if not which:
            return list(every.values())
        chosen = []
        for item in which:
            gone = [w for w in every.values() if item is w or item == w.id or item == w.name]
            chosen += gone or [self.find(item)]
        return chosen

    def _attributed(self, entries: list[_Life]) -> tuple[Hits, list[Rows]]:
        from hwwatch.attribution import attribute, split
        from hwwatch.code.sites import Sites

        if self._sites is None:
            self._sites = Sites()
        if self._ring is None:
            native.open_core()
            self._ring = Ring()
            self._start = int(native.shared().head)
        hits = self._ring.read(self._start)
        mine = split(hits, [entry.life for entry in entries])
        return hits, [attribute(hits, mine[entry.life], entry.life, self._sites) for entry in entries]

    def clear(self) -> None:
        """Forget recorded hits; watches stay armed."""
        with self._lock:
            if self._ring is None:
                return
            from hwwatch.attribution import split

            hits = self._ring.read(self._start)
            mine = split(hits, [entry.life for entry in self._lives])
            for entry in self._lives:
                lost = self._lost(entry)
                entry.lost_before = tuple(
                    a + b for a, b in zip(lost, entry.lost_before or (0,) * len(lost), strict=True)
                )
                entry.released += len(mine[entry.life])
            if len(hits):
                last = hits.records["flags"][-1] & lib.HWW_HIT_EXTENDED
                self._start = int(hits.positions[-1]) + (2 if last else 1)
            self._lives = [e for e in self._lives if e.watch.armed or e.watch.id in self._watches]
            # Other sessions may still want their hits of this stretch.
            others = [s._start for s in _sessions if s is not self and s._ring is not None and s._lives]
            self._ring.release_to(min([self._start, *others]))

    # figures

    def _figures(self, entry: _Life) -> dict[str, Any]:
        if entry.final:
            return entry.final
        table = native.shared().watches[entry.armed.index]
        pieces = len(entry.life.pieces)
        counts = self._backend_of(entry.watch).counts(entry.armed)
        return {
            "counts": counts,
            "accounted": tuple(table.accounted)[:pieces],
            "nested": tuple(table.nested)[:pieces],
            "recorded": int(table.recorded),
            "inferred": int(table.inferred),
            "late": int(table.late),
        }

    def _missing(self, entry: _Life) -> list[int]:
        """By piece: counted, and not accounted for by a record or by the handler's own traps."""
        figures = self._figures(entry)
        columns = zip(figures["counts"], figures["accounted"], figures["nested"], strict=True)
        return [counted - accounted - nested for counted, accounted, nested in columns]

    def _lost(self, entry: _Life, correction: tuple[int, ...] = ()) -> list[int]:
        missing = self._missing(entry)
        before = entry.lost_before or (0,) * len(missing)
        correction = correction or (0,) * len(missing)
        return [m - b - c for m, b, c in zip(missing, before, correction, strict=True)]

    def _tally(self, watch: Watch) -> Tally:
        with self._lock:
            total = Tally()
            for entry in self._lives:
                if entry.watch is watch:
                    part = self._tally_life(entry)
                    total = Tally(*(a + b for a, b in zip(_values(total), _values(part), strict=True)))
            return total

    def _tally_life(self, entry: _Life) -> Tally:
        deadline = time.monotonic() + _IN_FLIGHT
        while True:
            figures = self._figures(entry)
            correction: tuple[int, ...] = ()
            plain = len(entry.life.leaves) == 1 and len(entry.life.pieces) == 1
            if (plain or entry.life.mode == "x") and not figures["inferred"] and entry.life.mode != "r":
                hits, filtered = figures["recorded"] - entry.released, 0
            else:
                _, (rows,) = self._attributed([entry])
                hits, filtered, correction = len(rows.record), rows.filtered, rows.correction
            lost = sum(max(0, value) for value in self._lost(entry, correction))
            if not lost or entry.final or time.monotonic() > deadline:
                return Tally(hits, hits + filtered + lost, lost, filtered, figures["late"])
            time.sleep(0.001)

    def coverage(self) -> Coverage:
        """What is and what is not being seen; see `hwwatch.coverage`."""
        with self._lock:
            owner = lib.hww_trap_owner() if lib.hww_core_shared() != native.ffi.NULL else lib.HWW_OWNER_NONE
            names = {lib.HWW_OWNER_US: "hwwatch", lib.HWW_OWNER_OTHER: "another handler"}
            watches = tuple(self._coverage_of(watch) for watch in self._watches.values())
            free = self._backend_of(next(iter(self._watches.values()))).slots_free() if watches else _SLOTS
            return Coverage(watches, names.get(owner, "nobody"), _frames_problem(), free)

    def _coverage_of(self, watch: Watch) -> WatchCoverage:
        with self._lock:
            alive = threads()
            blind: list[tuple[int, str, str]] = []
            if watch.armed and watch.backend.startswith("perf"):
                blind = [
                    (t.tid, t.name, "blocks SIGTRAP: its hits are counted, and recorded late or not at all")
                    for t in alive
                    if t.blocks_sigtrap
                ]
            notes = []
            if watch.armed and not watch._enabled:
                notes.append("paused")
            children = "forked children followed" if watch.follow_fork else "children not followed"
            if watch.mode == "x":
                children = "forked children not followed (an execute breakpoint would kill spawned programs)"
            return WatchCoverage(
                watch.name,
                watch.id,
                watch._state(),
                watch.backend,
                len(alive),
                len(alive) if watch.armed else 0,
                tuple(blind),
                watch.kernel_note,
                children,
                self._tally(watch),
                watch.last_test,
                tuple(notes),
            )

    # ending

    def close(self) -> None:
        """Disarm everything, and give SIGTRAP back when no other session needs it."""
        with self._lock:
            for watch in list(self._watches.values()):
                self._disarm(watch)
            self._watches.clear()
        release_signals()

    def _forget_parent(self) -> None:
        # In a forked child: the events belong to the parent.
        self._lock = threading.RLock()
        for watch in self._watches.values():
            watch._armed = None


def _values(tally: Tally) -> tuple[int, ...]:
    return (tally.hits, tally.counted, tally.lost, tally.filtered, tally.late)


def _place(target: Any, mode: str, nbytes: int | None, name: str | None) -> Target:
    if mode == "x" and isinstance(target, int) and not isinstance(target, bool) and nbytes is None:
        nbytes = 1
    place = target if isinstance(target, Target) else target_of(target, nbytes=nbytes, name=name)
    if place.kind == "code" and mode != "x":
        raise TargetError(f"{place.name} is a function: its execution can be watched.", hint='Use mode "x".')
    if mode == "x" and place.kind != "code":
        from hwwatch.code.maps import Maps

        mapping = Maps.read().find(place.address)
        if mapping is None or not mapping.executable:
            raise TargetError(f'mode "x": {place.name} at {place.address:#x} is not in executable memory.')
    return place


def _pieces(place: Target, mode: str) -> tuple[Piece, ...]:
    if mode == "x":
        return (Piece(place.address, 1),)
    pieces = split_pieces(place.ranges)
    if len(pieces) > _SLOTS:
        raise TargetError(
            f"cannot watch {place.name} ({place.nbytes} bytes at {place.address:#x}): it needs {len(pieces)} "
            f"debug registers, the CPU has {_SLOTS} of at most 8 aligned bytes.",
            hint="Watch an element or a shorter slice.",
            slug="too-large",
        )
    return pieces


def _no_slot(watch: Watch, free: int) -> NoSlotError:
    holders = [other for session in list(_sessions) for other in session.watches() if other.armed]
    ours = ", ".join(f"{other.name} ({other.slots})" for other in holders) or "no watch of this process"
    foreign = _SLOTS - free - sum(other.slots for other in holders)
    others = f" and {foreign} by a debugger or another program" if foreign > 0 else ""
    hint = f"Free one: `%unwatch {holders[0].name}`." if holders else "Detach the debugger that holds them."
    return NoSlotError(
        f"cannot watch {watch.name} ({watch.nbytes} bytes at {watch.address:#x}): needs {watch.slots} of "
        f"{_SLOTS} debug registers, {free} free; taken by {ours}{others}.",
        hint=hint,
    )


def _kernel_note(watch: Watch, kernel: bool, backend: str) -> str:
    if watch.mode == "x":
        return "do not apply to code"
    if kernel:
        return "seen"
    if watch.kernel is False:
        return "not seen: kernel=False was asked for"
    if backend != "perf":
        return f"not seen: the {backend} backend cannot"
    return (
        f"not seen: kernel.perf_event_paranoid is {native.paranoid()}; "
        "`sudo sysctl kernel.perf_event_paranoid=1` would show them"
    )


def _is_shared(place: Target) -> bool:
    """Whether other processes may write the bytes: then they share the last snapshot, too."""
    owner = place.owner
    if isinstance(owner, np.ndarray) and owner.flags.owndata:
        return False
    if isinstance(owner, bytearray):
        return False
    from hwwatch.code.maps import Maps

    mapping = Maps.read().find(place.address)
    return mapping is not None and mapping.shared


def _frames_problem() -> str:
    return "" if lib.hww_core_shared() == native.ffi.NULL else interpreter.problem


_default: Session | None = None


def default_session() -> Session:
    """The session that the module functions use."""
    global _default
    if _default is None:
        _default = Session("default")
    return _default


def release_signals() -> None:
    """Give SIGTRAP back, once nothing is armed and no hit is on its way."""
    if lib.hww_core_shared() == native.ffi.NULL:
        return
    if any(watch.armed for session in list(_sessions) for watch in session.watches()):
        return
    # A SIGTRAP that still waits in a thread would kill the process if it met the default action.
    if not any(thread.pending_sigtrap for thread in threads()):
        native.check(lib.hww_trap_close(), "restoring the SIGTRAP handler")


def _close_all() -> None:
    for session in list(_sessions):
        with contextlib.suppress(HwwatchError):
            session.close()


def _after_fork() -> None:
    for session in list(_sessions):
        session._forget_parent()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
