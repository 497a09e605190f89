"""Some of the hits of a timeline that comes in pieces: all, or as many as a picture needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwwatch.plots.thinning import columns, extremes
from hwwatch.summaries import after, numbered

if TYPE_CHECKING:
    import pandas as pd

#: More rows than this are thinned out.
MOST = 200_000
_COLUMNS = 1024
_DRAWN = (
    *("time", "watch", "access", "old", "new", "changed", "element", "address"),
    *("symbol", "function", "file", "line", "cell", "thread", "tid", "pid", "action", "exact"),
)


class Sample:
    """What a picture of all hits is drawn from.

    Attributes
    ----------
    thinned : bool
        Whether rows were left out. Then of each stretch of time and each place, line and thread the first and
        last hit stay and those with the lowest and highest value; and `old` is what the hit before left that
        stayed.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._pieces: list[pd.DataFrame] = []
        self._count = 0
        self.thinned = False

    def add(self, frame: pd.DataFrame) -> None:
        """One more piece."""
        self._pieces.append(frame[[name for name in frame.columns if name in _DRAWN]])
        self._count += len(frame)
        if self._count > self._most:
            self.thinned = True
            few = _thinned(self._joined(), self._most // 2)
            self._pieces, self._count = [few], len(few)

    def frame(self) -> pd.DataFrame:
        """The rows, with the `attrs` of the first piece."""
        attrs = self._pieces[0].attrs
        frame = _consistent(self._joined()) if self.thinned else self._joined()
        frame.attrs = attrs
        return frame

    def _joined(self) -> pd.DataFrame:
        import pandas as pd

        if len(self._pieces) == 1:
            return self._pieces[0]
        last = self._pieces[-1]
        grown = {
            name: column.cat.categories
            for name, column in last.items()
            if isinstance(column.dtype, pd.CategoricalDtype)
        }
        pieces = [
            piece.assign(
                **{str(name): piece[name].cat.set_categories(labels) for name, labels in grown.items()}
            )
            for piece in self._pieces
            if len(piece)
        ]
        joined = pd.concat(pieces) if pieces else last
        joined.attrs = self._pieces[0].attrs
        return joined


def _thinned(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most about `most` rows."""
    groups = numbered(frame, ["watch", "element", "file", "line", "tid"])
    count = int(groups.max(initial=0)) + 1
    columns_wanted = min(_COLUMNS, most // (4 * count))
    if not columns_wanted:
        return frame.iloc[:: -(-len(frame) // most)]
    # By number of the hit: what was thinned before covers as much of that as before, in fewer rows.
    numbered_hits = frame.index.is_monotonic_increasing and frame.index.dtype.kind == "i"
    x = np.asarray(frame.index if numbered_hits else np.arange(len(frame)), np.float64)
    bins = groups * columns_wanted + columns(x, columns_wanted)
    order = np.argsort(bins, kind="stable")
    starts = np.flatnonzero(np.diff(bins[order], prepend=-1))
    ends = np.append(starts[1:], len(order)) - 1
    kept = np.unique(np.concatenate([order[starts], order[ends], extremes(bins, _numbers(frame))]))
    return frame.iloc[kept]


def _numbers(frame: pd.DataFrame) -> NDArray[np.float64]:
    import pandas as pd

    left = after(frame)
    if left.dtype.kind == "c":
        left = left.abs()
    numbers = pd.to_numeric(left, errors="coerce")
    return np.asarray(numbers, np.float64)


def _consistent(frame: pd.DataFrame) -> pd.DataFrame:
    """No gaps where rows were left out: each hit finds what the one before it left in that place."""
    places = numbered(frame, ["watch", "element"])
    left = after(frame)
    old = left.groupby(places).shift()
    old = old.where(old.notna(), frame["old"])
    return frame.assign(old=old.astype(frame["old"].dtype))
