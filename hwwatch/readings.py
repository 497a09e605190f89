"""A session's hits as DataFrames: the whole timeline, or piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pandas as pd

from hwwatch.columns import join
from hwwatch.errors import HwwatchError
from hwwatch.ledgers import Ledger
from hwwatch.progress import track
from hwwatch.timelines import Builder, attributes, frame_of
from hwwatch.watchpoints import Watch


def whole(
    ledger: Ledger,
    watches: Sequence[Watch],
    clock: int,
    coverage: Callable[[], dict[str, Any]],
    *,
    stack: bool,
    registers: bool,
) -> pd.DataFrame:
    """The timeline of some watches.

    Parameters
    ----------
    ledger : Ledger
        Whose session's lock is held.
    watches, clock, stack, registers
        As `Builder` takes them.
    coverage : callable
        Asked once the hits have been read: what it counts includes all of them.
    """
    builder = Builder(watches, clock, stack=stack, registers=registers)
    none = ledger.ring().read(0, 0)
    made = [builder.columns(none, [])]
    for stretch in track(ledger.completed(), ledger.ring().committed() - ledger.start, "timeline"):
        made.append(builder.columns(stretch.hits, stretch.parts))
    frame = frame_of(join(made))
    frame.attrs["hwwatch"] = attributes(coverage(), ledger.ring().read(0, 0).torn)
    return frame


def pieces(
    ledger: Ledger,
    lock: AbstractContextManager[None],
    watches: Sequence[Watch],
    clock: int,
    coverage: Callable[[], dict[str, Any]],
    *,
    stack: bool,
    registers: bool,
) -> Iterator[pd.DataFrame]:
    """The timeline of some watches in consecutive pieces, the first empty.

    The lock is held while a piece is made, and free between them.

    Raises
    ------
    HwwatchError
        The hits were cleared meanwhile.
    """
    with lock:
        start = ledger.start
        present, stretches = ledger.planned()
        none = ledger.ring().read(0, 0)
        builder = Builder(watches, clock, stack=stack, registers=registers, present=present)
        frame = frame_of(builder.columns(none, []))
        frame.attrs["hwwatch"] = attributes(coverage(), none.torn)
    yield frame
    while True:
        with lock:
            if ledger.start != start:
                raise HwwatchError("the hits were cleared while they were being read.", slug="cleared")
            stretch = next(stretches, None)
            if stretch is None:
                return
            frame = frame_of(builder.columns(stretch.hits, stretch.parts))
        if len(frame):
            yield frame
