"""Timelines as files: CSV, Parquet, Feather, JSON lines, traces for Perfetto, and pages for people.

All writers take the timeline piece by piece, so that it may be larger than memory, and know no session. A
file appears under its name when it is whole. This module imports neither pandas nor pyarrow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hwwatch.errors import PackageMissing, TargetError
from hwwatch.exports.files import check_place, replacing

if TYPE_CHECKING:
    import pandas as pd

    Writer = Callable[[Iterator[pd.DataFrame], Path], int]

_WRITERS = {
    ".csv": ("texts", "write_csv"),
    ".parquet": ("arrow", "write_parquet"),
    ".feather": ("arrow", "write_feather"),
    ".trace.json": ("traces", "write_trace"),
    ".json": ("texts", "write_json"),
    ".jsonl": ("texts", "write_json"),
    ".html": ("pages", "write_page"),
}
SUFFIXES = tuple(_WRITERS)


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The suffix that says how a file is to be written.

    Raises
    ------
    TargetError
        It is none of `SUFFIXES`.
    PackageMissing
        It needs pyarrow, which is not installed.
    """
    name = Path(path).name.lower()
    found = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
    if found is None:
        raise TargetError(f"{os.fspath(path)}: the name must end in {', '.join(SUFFIXES)}.", slug="suffix")
    if _WRITERS[found][0] == "arrow":
        need_arrow(found)
    return found


def need_arrow(suffix: str) -> None:
    """Raise where pyarrow is not installed; it is not imported, which would start threads.

    Raises
    ------
    PackageMissing
    """
    try:
        found = find_spec("pyarrow") is not None
    except (ImportError, ValueError):  # blocked, or half there
        found = False
    if not found:
        raise PackageMissing(
            f"{suffix} files need pyarrow, which is not installed.",
            hint="Install it: `pip install 'hwwatch[arrow]'`; .csv needs nothing.",
        )


def check_file(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """The file that is to be written, once nothing is known to stand in its way; see `suffix_of`.

    Raises
    ------
    ExportError
        There is no such folder; the file exists, and `overwrite` is False.
    """
    file = Path(path).expanduser().absolute()
    suffix_of(file)
    check_place(file, overwrite=overwrite)
    return file


def write(
    frames: Iterable[pd.DataFrame], path: str | os.PathLike[str], *, overwrite: bool = False
) -> tuple[Path, int]:
    """Write a timeline, in the way that the file's suffix says.

    Parameters
    ----------
    frames : iterable of DataFrame
        Consecutive pieces of equal columns, at least one.
    path : path
    overwrite : bool

    Returns
    -------
    Path
        Of the file, absolute.
    int
        Hits in it.
    """
    file = check_file(path, overwrite=overwrite)
    module, name = _WRITERS[suffix_of(file)]
    writer: Writer = getattr(import_module(f"hwwatch.exports.{module}"), name)
    with replacing(file, overwrite=overwrite) as temporary:
        rows = writer(iter(frames), temporary)
    return file, rows
