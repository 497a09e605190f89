"""``df.hwwatch``: what a timeline DataFrame can say and show of itself."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_NAME = "hwwatch"


class TimelineAccessor:
    """Pictures and tables of a timeline, also of a filtered one, or of one read back from a file.

    Raises
    ------
    FrameError
        An AttributeError: the DataFrame lacks the columns ``watch``, ``access``, ``old`` or ``new``.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        from hwwatch.summaries import check

        check(frame)
        self._frame = frame

    def plot(
        self, *, kind: str = "values", ax: Axes | None = None, x: str = "time", legend: bool = True
    ) -> Axes:
        """Draw it; see `hwwatch.plot`.

        Parameters
        ----------
        kind : {"values", "by_line", "by_instruction", "elements"}
        ax : matplotlib Axes, optional
            Where to draw; default: a new figure.
        x : {"time", "seq"}
        legend : bool

        Returns
        -------
        matplotlib Axes
        """
        from hwwatch.plots import draw

        return draw(self._frame, kind=kind, ax=ax, x=x, legend=legend)

    def export(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write it to a file; see `hwwatch.export`.

        Parameters
        ----------
        path : path
            Its suffix says how.
        overwrite : bool

        Returns
        -------
        Path
        """
        from hwwatch.exports import write

        return write([self._frame], path, overwrite=overwrite)[0]

    def by_line(self) -> pd.DataFrame:
        """Hits by the Python line that made them, those with most hits first.

        Returns
        -------
        DataFrame
            A row for each ``file``, ``line``, ``function``, ``cell`` (all missing where no Python ran on the
            thread, or where the hit was told late, which ``exact`` tells); ``hits``; ``reads``, ``writes``,
            ``changed``, ``skipped``: how many of the hits are that (a ``readwrite`` is both); ``watches``,
            ``elements``, ``threads``: tuples; ``first``, ``last``: times of the first and the last hit;
            ``old``: the value before the first hit, ``new``: that of the last, each a tuple where the line
            touched several places.
        """
        from hwwatch.summaries import by_line

        return by_line(self._frame)

    def by_instruction(self) -> pd.DataFrame:
        """Hits by machine instruction, those with most hits first.

        Returns
        -------
        DataFrame
            A row for each ``instruction``, ``confidence``, ``symbol``, ``module``; the other columns are
            those of `by_line`.
        """
        from hwwatch.summaries import by_instruction

        return by_instruction(self._frame)

    def values(self, watch: Any = None) -> pd.Series[Any]:
        """The value of a watch over time, as each of its hits left it.

        Parameters
        ----------
        watch : Watch, int or str, optional
            By object, id or name; may be left out where the timeline has only one.

        Returns
        -------
        Series
            An entry for each hit, in order of recording; the index is ``time``, and (``element``, ``time``)
            where the watch holds several values. After a skipped write the value is the old one. Empty for
            an execute watch, which has no values.

        Raises
        ------
        TargetError
            There is no such watch, or there are several and none was named.
        """
        from hwwatch.summaries import values

        return values(self._frame, watch)

    def __repr__(self) -> str:
        count = f"{len(self._frame)} hits of {self._frame['watch'].nunique()} watches"
        return f"<timeline of {count}: plot(), by_line(), by_instruction(), values(watch), export(file)>"


class _Arrival(importlib.abc.MetaPathFinder):
    """Registers the accessor when pandas is imported, so that hwwatch need not import it.

    Of use to those who read an exported timeline back; building one imports pandas anyway.
    """

    def __init__(self) -> None:
        self._asking = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find; for pandas with a loader that registers afterwards."""
        if fullname != "pandas" or getattr(self._asking, "now", False):
            return None
        self._asking.now = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking.now = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(importlib.abc.Loader):
    """The loader of pandas, and then the accessor; the module keeps no trace of it."""

    def __init__(self, loader: Any, finder: _Arrival) -> None:
        self._loader, self._finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As pandas' own loader does."""
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        """Run pandas, then register."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _register()


def _register() -> None:
    import pandas as pd

    if getattr(pd.DataFrame, _NAME, None) is not TimelineAccessor:
        pd.api.extensions.register_dataframe_accessor(_NAME)(TimelineAccessor)


def register() -> None:
    """Give DataFrames their ``.hwwatch``: now, or as soon as pandas is imported."""
    if "pandas" in sys.modules:
        _register()
    elif not any(isinstance(finder, _Arrival) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Arrival())
