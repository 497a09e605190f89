"""Session: the watches that belong together, and their hits."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwwatch import interpreter, native, safepoints
from hwwatch.arming import SLOTS, check_frames, check_mode, pieces_of, place_of
from hwwatch.armory import Armory, backend_of, release_signals
from hwwatch.coverages import Coverage, Tally, WatchCoverage, describe
from hwwatch.errors import HwwatchError, TargetError
from hwwatch.letters import encodable
from hwwatch.native import lib
from hwwatch.picking import meant, unique, unknown
from hwwatch.quiet import lock, own, uninterrupted
from hwwatch.settings import check_limit, check_name, check_on_hit
from hwwatch.types import Policy
from hwwatch.watchpoints import Watch

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from hwwatch.widgets import Panel

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
        self._armory = Armory()
        self._watches = self._armory.watches
        self._ledger = self._armory.ledger
        self._clock = self._armory.clock
        self._next = 1
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
                    unique(encodable(str(name or place.name)), self._watches.values()),
                    place,
                    pieces,
                    mode,
                    policy,
                    frames=int(stack),
                    kernel=kernel,
                    follow_fork=follow_fork,
                    hold=hold or place.kind == "code",
                )
                settings = self._armory.prepare(watch, policy, when, limit, on_hit)
                self._armory.arm(watch, self._backend if backend == "auto" else backend, settings)
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
                        self._armory.set_enabled(watch, False)
                        watch._moved_away = True
                    notes.append(f"{trouble}; paused; {home.remedy}")
            if home.is_news(renamed := home.renamed):
                notes.append(f"{renamed}; watch it again to follow the name")
            for note in notes:
                warnings.warn(f"{watch.name}: {note}.", RuntimeWarning, stacklevel=4)

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
            found = meant(which, self._watches.values())
            if not found:
                raise unknown(which, self._watches.values())
            return found[0]

    def unwatch(self, *which: Watch | int | str) -> None:
        """Disarm and forget watches by object, id or name, without arguments all; their hits stay."""
        with uninterrupted:
            chosen = [self.find(item) for item in which] if which else list(self._watches.values())
            for watch in chosen:
                self._armory.disarm(watch)
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

    def panel(self) -> Panel:
        """The watches as rows of controls; see `hwwatch.panel`."""
        from hwwatch.widgets import Panel

        return Panel(self)

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
            chosen += meant(item, every.values()) or [self.find(item)]
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
        with self._lock:
            gone = [watch for watch in self._choose(()) if watch.id not in self._watches]
            return self._cover(self._coverage_of, [watch for watch in gone if self._tally(watch).lost])

    def _cover(self, one: Callable[[Watch], WatchCoverage], also: Sequence[Watch] = ()) -> Coverage:
        """The coverage, each watch by `one`; of watches that were let go `also` these, which lost hits."""
        with self._lock:
            owner = lib.hww_trap_owner() if lib.hww_core_shared() != native.ffi.NULL else lib.HWW_OWNER_NONE
            names = {lib.HWW_OWNER_US: "hwwatch", lib.HWW_OWNER_OTHER: "another handler"}
            watches = tuple(one(watch) for watch in (*self._watches.values(), *also))
            free = SLOTS
            if self._watches:
                try:
                    free = backend_of(next(iter(self._watches.values()))).slots_free()
                except HwwatchError:  # refused meanwhile, as by a sandbox: none can be had
                    free = 0
            unexplained = int(native.shared().unexplained) if watches else 0
            return Coverage(watches, names.get(owner, "nobody"), _frames_problem(), free, unexplained)

    def _coverage_of(self, watch: Watch) -> WatchCoverage:
        with self._lock:
            blind, notes = self._armory.unseen(watch)
            return describe(watch, self._tally(watch), unarmed=blind, missed=notes)

    # ending

    def close(self) -> None:
        """Disarm everything, and give SIGTRAP back when no other session needs it."""
        with uninterrupted:
            for watch in list(self._watches.values()):
                self._armory.disarm(watch)
                watch._let_go()
            self._watches.clear()
        safepoints.unsubscribe(self._armory.deliver)
        release_signals()


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


def _close_all() -> None:
    for session in list(_sessions):
        with contextlib.suppress(HwwatchError):
            session.close()


atexit.register(_close_all)
