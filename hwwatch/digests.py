"""What pieces of a timeline add up to, in memory that does not grow with the number of hits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hwwatch.summaries import grouped, records

if TYPE_CHECKING:
    import pandas as pd

_COUNTS = ("hits", "reads", "writes", "changed", "skipped")
_SETS = ("watches", "elements", "threads")


class Digest:
    """`grouped` of a timeline that comes in pieces.

    Parameters
    ----------
    keys, also : sequence of str
        As `grouped` takes them.

    Attributes
    ----------
    hits : int
        Rows so far.
    """

    def __init__(self, keys: Sequence[str], also: Sequence[str] = ()) -> None:
        self._keys, self._also = tuple(keys), tuple(also)
        self._rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._none: pd.DataFrame | None = None  # of no hits: for the columns and dtypes
        self.hits = 0

    def add(self, frame: pd.DataFrame) -> None:
        """One more piece."""
        self.hits += len(frame)
        if self._none is None:
            self._none = grouped(frame.iloc[:0], self._keys, also=self._also)
        # By element as well: then each group has one value before and one after.
        by_place = grouped(frame, (*self._keys, *self._places(frame)), also=self._also)
        for row in records(by_place):
            key = tuple(_known(row.get(name)) for name in self._keys)
            place = row.get("watch") if "watch" in row else row["watches"], _known(row.get("element"))
            self._fold(self._rows.setdefault(key, {}), row, place)

    def _places(self, frame: pd.DataFrame) -> list[str]:
        return [name for name in ("watch", "element") if name in frame.columns and name not in self._keys]

    def _fold(self, total: dict[str, Any], row: dict[Any, Any], place: Any) -> None:
        if not total:
            total.update({name: row[name] for name in (*self._keys, *self._also) if name in row})
            total.update({name: 0 for name in _COUNTS if name in row})
            total.update({name: {} for name in _SETS if name in row}, old={}, new={})
            total.update({name: row[name] for name in ("first", "last") if name in row})
        for name in _COUNTS:
            if name in row:
                total[name] += row[name]
        for name in _SETS:
            if name in row:
                total[name].update(dict.fromkeys(row[name]))
        if "first" in row:
            total["first"], total["last"] = min(total["first"], row["first"]), max(total["last"], row["last"])
        if row["reads"] or row["writes"] or row["old"] is not None:
            total["old"].setdefault(place, row["old"])
            total["new"][place] = row["new"]

    def lines(self) -> pd.DataFrame:
        """As `grouped` of all the pieces in one."""
        import pandas as pd

        if self._none is None or not self._rows:
            return pd.DataFrame() if self._none is None else self._none
        columns: dict[str, Any] = {name: [] for name in self._none.columns}
        for total in self._rows.values():
            for name, column in columns.items():
                column.append(_plain(total[name]) if name in ("old", "new") else _tuple(total[name]))
        out = {}
        for name, column in columns.items():
            kind = self._none[name].dtype
            categories = isinstance(kind, pd.CategoricalDtype)
            out[name] = pd.Series(column, dtype=object if categories else kind)
        return pd.DataFrame(out)


def _known(value: Any) -> Any:
    """A value that can be compared; all that is missing is None."""
    return value if isinstance(value, tuple) or (value is not None and _is_itself(value)) else None


def _is_itself(value: Any) -> bool:
    try:
        return bool(value == value)
    except TypeError:  # pandas.NA is not sure
        return False


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, dict) else value


def _plain(values: dict[Any, Any]) -> Any:
    items = tuple(values.values())
    return items if len(items) > 1 else (items[0] if items else None)
