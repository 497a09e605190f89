"""Delivery: which hits `on_hit` is called with, and the calls themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwwatch import safepoints

if TYPE_CHECKING:
    from hwwatch.ledgers import Ledger
    from hwwatch.watchpoints import Watch


def prepare(deliver: Callable[[], list[Any]], *, rows: bool = False) -> None:
    """Have `deliver` called at safe points; `rows` says that it will make timeline rows there.

    Raises
    ------
    NotSupported
        Python cannot be prepared for it from this thread, or no signal is free.
    """
    # Imported now: at a safe point the program may be amid an import of the same modules.
    import hwwatch.stretches

    if rows:
        import hwwatch.timelines  # noqa: F401
    safepoints.install()
    safepoints.subscribe(deliver)


@dataclass(frozen=True)
class Batch:
    """Hits of one safe point.

    Attributes
    ----------
    calls : list of (Watch, named tuple)
        Whose `on_hit` is to be called with which row of the timeline.
    stopped : list of Watch
        Those that want the debugger.
    """

    calls: list[tuple[Watch, Any]]
    stopped: list[Watch]

    def call(self) -> None:
        """Make the calls; what they raise is shown and kept in `Watch.errors`, and ends nothing."""
        for watch, hit in self.calls:
            if callable(watch.on_hit):  # an earlier call may have changed it
                try:
                    watch.on_hit(hit)
                except Exception as error:
                    watch.errors.append(error)
                    safepoints.show_error()


class Delivery:
    """How far a session's hits have been told. Not thread-safe: its armory holds a lock."""

    def __init__(self) -> None:
        self._end = 0  # ring position up to which all have been told
        self._own_until = 0  # up to here, hits of the main thread were made by the calls

    def collect(self, ledger: Ledger, watches: Sequence[Watch], clock: int) -> Batch:
        """The hits since the last time, those left out that the calls themselves have made."""
        told = {watch.id: watch._told for watch in watches}
        # Hits that callbacks made are recorded, not delivered: else it could go on for ever.
        own, own_until = threading.get_native_id(), self._own_until
        hit: set[int] = set()
        calls: list[tuple[Watch, Any]] = []
        for stretch in ledger.stretches(self._end):
            hits = stretch.hits
            parts = [
                part.since(hits, told.get(part.life.watch, 0)).without(hits, own, own_until)
                for part in stretch.parts
            ]
            here = {part.life.watch for part in parts if len(part.record)}
            called = {watch.name: watch for watch in watches if watch.id in here and callable(watch.on_hit)}
            if called:
                from hwwatch.timelines import build

                frame = build(hits, parts, list(called.values()), clock)
                calls += [(called[str(row.watch)], row) for row in frame.itertuples(index=False, name="Hit")]
            hit |= here
            self._end = stretch.end
        return Batch(calls, [watch for watch in watches if watch.on_hit == "break" and watch.id in hit])

    def called(self, ledger: Ledger) -> None:
        """Note that a batch's calls have been made; if there were hits meanwhile, ask for another."""
        self._own_until = ledger.ring().committed()
        if self._own_until > self._end:  # others may have hit, too
            safepoints.ask_again()
