"""Watch: one watchpoint as the user sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hwwatch.letters import plural
from hwwatch.policies import describe
from hwwatch.quiet import own
from hwwatch.targets.homes import Home
from hwwatch.targets.model import Piece, Target
from hwwatch.types import Armed, Policy

if TYPE_CHECKING:
    import pandas as pd

    from hwwatch.coverages import WatchCoverage
    from hwwatch.sessions import Session


class Watch:
    """A watchpoint: the bytes, the mode, and what has been seen of them.

    Made by `hwwatch.watch`; all methods may be called from any thread.

    Attributes
    ----------
    id : int
        Number within the session, from 1.
    target : Target
        The watched place; without its owner where that is not held.
    home : Home
        The object that the place is in, and what has become of it.
    pieces : tuple of Piece
        The debug registers' worth of bytes that cover it.
    backend : str
        Which backend serves, with the reason.
    """

    def __init__(
        self,
        session: Session,
        number: int,
        name: str,
        target: Target,
        pieces: tuple[Piece, ...],
        mode: str,
        policy: Policy,
        *,
        frames: int,
        kernel: bool | str,
        follow_fork: bool,
        hold: bool,
    ) -> None:
        self._session = session
        self._armory = session._armory
        self.id = number
        self._name = name
        self.home = Home(target, hold)
        self.target = target if hold else replace(target, owner=None)
        self._moved_away = False  # paused for that
        self.pieces = pieces
        self.frames = frames
        self.follow_fork = follow_fork
        self.kernel = kernel
        self.backend = ""
        self._asked = "auto"
        self._mode = mode
        self._policy: Policy = policy
        self._when: str | None = None
        self._limit: int | None = None
        self._on_hit: Callable[[Any], object] | str | None = None
        self._told = 0  # ring position from which on_hit is called
        self._armed: Armed | None = None
        self._enabled = True
        self.kernel_note = ""
        self.last_test = ""
        #: In a forked child: the process that had armed it, until it is armed here.
        self.parent = 0
        #: Why it was disarmed, unless somebody asked for it.
        self.stopped = ""
        #: Exceptions that `on_hit` has raised, shown when they came.
        self.errors: list[BaseException] = []

    def _aim(self, target: Target, home: Home, pieces: tuple[Piece, ...]) -> None:
        """Have another place, while it is disarmed."""
        self.home.leave()
        self.home = home
        self.target = target if self.hold else replace(target, owner=None)
        self.pieces, self._moved_away = pieces, False

    def _let_go(self) -> None:
        """Keep nothing alive any longer, but for a function, whose types its arguments are shown by."""
        if self.target.kind == "data":
            self.target = replace(self.target, owner=None, again=None, bound=None)
            self.home.leave()

    @property
    def name(self) -> str:
        """As given, or the expression; unique within the session. Setting it renames its hits, too.

        Raises
        ------
        TargetError
            No text, or the name of another watch of the session.
        """
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._session._set_name(self, name)

    # what it watches

    @property
    def address(self) -> int:
        """First watched byte."""
        return self.target.address

    @property
    def nbytes(self) -> int:
        """Watched bytes."""
        return self.target.nbytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values in its rows."""
        return self.target.dtype

    @property
    def hold(self) -> bool:
        """Whether its object is kept alive; else hits after the object's death are marked ``after_free``."""
        return self.home.hold

    @property
    def moved(self) -> bool:
        """Whether the watched bytes are no longer its object's: it has moved, was closed, or has died.

        The next call of `hwwatch.timeline`, `coverage` or `watches` on the main thread, or the end of a cell,
        warns of it, and pauses the watch, since its memory may be in other use by now; `retarget` goes on
        where it has moved. After its object's death a watch goes on, and marks later hits ``after_free``.
        """
        return bool(self.home.trouble)

    @property
    def slots(self) -> int:
        """Debug registers that it takes while armed."""
        return len(self.pieces)

    # how

    @property
    def mode(self) -> str:
        """``"w"``, ``"rw"``, ``"r"`` or ``"x"``; setting it changes the live watch and keeps its hits."""
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        self._armory.set_mode(self, mode)

    @property
    def policy(self) -> Policy:
        """What the handler does before the thread goes on; may be set while armed."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._armory.set_options(self, policy=policy)

    @property
    def when(self) -> str | None:
        """Condition on which a hit is recorded; None: always. May be set while armed."""
        return self._when

    @when.setter
    def when(self, condition: str | None) -> None:
        self._armory.set_options(self, when=condition)

    @property
    def limit(self) -> int | None:
        """Recorded hits after which the watch disarms itself; None: never. May be set while armed."""
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self._armory.set_options(self, limit=limit)

    @property
    def on_hit(self) -> Callable[[Any], object] | str | None:
        """Called with each hit at the main thread's next safe point; "break": enter the debugger there."""
        return self._on_hit

    @on_hit.setter
    def on_hit(self, on_hit: Callable[[Any], object] | str | None) -> None:
        self._armory.set_options(self, on_hit=on_hit)

    @property
    def enabled(self) -> bool:
        """False while paused: the slots stay taken, nothing is reported."""
        return self._enabled and self.armed

    @enabled.setter
    def enabled(self, on: bool) -> None:
        self._armory.set_enabled(self, bool(on))

    @property
    def armed(self) -> bool:
        """Whether debug registers are programmed for it; False once a limit was reached."""
        return self._armory.is_armed(self)

    @property
    def state(self) -> str:
        """``"armed"``, ``"paused"`` or ``"disarmed"``."""
        if not self.armed:
            return "disarmed"
        return "armed" if self._enabled else "paused"

    @property
    def gap(self) -> bool:
        """Whether a change of mode could not be made without missing accesses of that moment."""
        return self._armed is not None and self._armed.gap

    @property
    def shared(self) -> bool:
        """Whether it is armed on memory that other processes may have as well."""
        return self._armed is not None and self._armed.request.shared

    @property
    def unsure_threads(self) -> int:
        """Threads that, while it was armed, might have been creating others, which then lack it."""
        return self._armed.unsure if self._armed is not None else 0

    # what was seen

    @property
    def hits(self) -> int:
        """Rows in its timeline."""
        return self._session._hits(self)

    @property
    def counted(self) -> int:
        """Hits according to the CPU's counters: recorded, left out by mode or condition, and lost."""
        return self._session._tally(self).counted

    @property
    def lost(self) -> int:
        """Hits counted and not recorded (SIGTRAP blocked, no room left, and what the coverage names)."""
        return self._session._tally(self).lost

    @property
    def coverage(self) -> WatchCoverage:
        """What is and is not being seen."""
        return self._session._coverage_of(self)

    def verify(self) -> bool:
        """Prove again that traps of this kind arrive, by an access to a scratch location.

        Returns
        -------
        bool
            True where the watch is armed and the test access trapped; the outcome is kept in the coverage.
        """
        return self._armory.verify(self)

    def retarget(self) -> None:
        """Aim at the place where its object's memory is now; its hits stay.

        Raises
        ------
        TargetError
            The object was closed, is gone, or is too short now. The watch is as it was.
        NoSlotError
            No debug register was free for it; then it is disarmed.
        """
        self._armory.retarget(self)

    def disarm(self) -> None:
        """Free its debug registers; its hits stay."""
        self._armory.disarm(self)

    def timeline(self, *, stack: bool = False, registers: bool = False) -> pd.DataFrame:
        """Its hits as a DataFrame; see `hwwatch.timeline`."""
        return self._session.timeline(self, stack=stack, registers=registers)

    @own
    def __repr__(self) -> str:
        tally = self._session._tally(self)
        lost = f", {tally.lost} lost" if tally.lost else ""
        when = f", when {' '.join(self._when.split())}" if self._when else ""
        limit = f", limit {self._limit}" if self._limit else ""
        note = "".join(f", {note}" for note in (self.target.note, self.home.trouble) if note)
        return (
            f"<Watch {self.id} {self.name!r} {self._mode} {plural(self.nbytes, 'byte')} at {self.address:#x} "
            f"({self.dtype}), policy {describe(self._policy)}{when}{limit}, {self.state}, "
            f"{plural(self.slots, 'slot')}, backend {self.backend}: {plural(tally.hits, 'hit')}{lost}{note}>"
        )

    @own
    def _repr_html_(self) -> str:
        from hwwatch.displays import watches_html

        return watches_html([self])
