"""Hardware watchpoints for Python and Jupyter: who wrote to my array?

    >>> import hwwatch
    >>> w = hwwatch.watch(a[3:4])
    >>> a[3] = 5
    >>> hwwatch.timeline()

All functions here act on one default `Session`. Importing this package imports neither IPython, ipywidgets,
matplotlib nor pandas.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from hwwatch.errors import (
    CanaryError,
    ConditionError,
    ExportError,
    ExportExists,
    FrameError,
    HwwatchError,
    NoSlotError,
    NotSupported,
    PackageMissing,
    PermissionRefused,
    TargetError,
)
from hwwatch.types import Goto, Mode, Policy, Return

if TYPE_CHECKING:
    import os
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

    from hwwatch.coverages import Coverage
    from hwwatch.diagnosis import Diagnosis
    from hwwatch.sessions import Session
    from hwwatch.storages import storage
    from hwwatch.targets import Target
    from hwwatch.watchpoints import Watch
    from hwwatch.widgets import Panel

__version__ = "0.1.0"

__all__ = [
    "CanaryError",
    "ConditionError",
    "Coverage",
    "ExportError",
    "ExportExists",
    "FrameError",
    "Goto",
    "HwwatchError",
    "Mode",
    "NoSlotError",
    "NotSupported",
    "PackageMissing",
    "PermissionRefused",
    "Policy",
    "Return",
    "Session",
    "Target",
    "TargetError",
    "Watch",
    "clear",
    "coverage",
    "doctor",
    "export",
    "include",
    "load",
    "load_ipython_extension",
    "locate",
    "panel",
    "plot",
    "storage",
    "timeline",
    "unload_ipython_extension",
    "unwatch",
    "watch",
    "watches",
    "watching",
]

_LAZY = {
    "Session": "hwwatch.sessions",
    "Watch": "hwwatch.watchpoints",
    "Coverage": "hwwatch.coverages",
    "Target": "hwwatch.targets",
    "storage": "hwwatch.storages",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_sessions: Any = None


def _session(session: Session | None = None) -> Session:
    if session is not None:
        return session
    global _sessions
    if _sessions is None:  # each further import statement would call what may be watched, such as strlen
        _sessions = importlib.import_module("hwwatch.sessions")
    found: Session = _sessions.default_session()
    return found


def watch(
    target: Any,
    mode: Mode = "w",
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
    session: Session | None = None,
) -> Watch:
    """Watch a place in memory: from now on each access to it becomes a row of the timeline.

    Parameters
    ----------
    target : object
        A NumPy array or view (``a[3:4]``), a ctypes instance, cffi cdata, a buffer (bytearray, memoryview,
        array.array, mmap, shared memory), a pandas Series, a `Target` from `locate`, a function, a symbol
        (``"libm.so.6!cos"``), or an address with `nbytes`. Its bytes must fit 4 naturally aligned pieces
        of 1, 2, 4 or 8 bytes, since the CPU has 4 debug registers of that size (Intel SDM vol. 3B, 18.2).
    mode : {"w", "rw", "r", "x"}
        Writes; reads and writes; reads; execution (functions). x86 has no read-only mode: for "r" reads
        and writes trap, and the writes are left out after decoding the instruction.
    nbytes : int, optional
        Length at a raw address.
    name : str, optional
        In the timeline; default: what `target` says of itself. Made unique.
    policy : "continue", "skip", Return, Goto or a native function
        What the handler does before the thread goes on. "skip": the instruction is not run (x); the store
        is undone for the watched bytes (w, rw). ``Return(value)``: back to the caller at once (x, at a
        function's entry). ``Goto(address)``: go on there. A native function, ``int f(hwwatch_hit *,
        ucontext_t *)`` from C or a numba cfunc, runs in the handler; see the header in `include`.
    when : str, optional
        Record (and act) only where this holds, decided in the handler: a condition on ``old``, ``new``,
        ``changed``, ``hits``, ``thread`` such as ``"new < 0"`` or ``"isnan(new)"``. Not Python code. Of
        several values it must hold for one that changed, or where none did for one that was touched.
    limit : int, optional
        Disarm after so many recorded hits, from within the handler.
    on_hit : callable or "break", optional
        Called with each hit (the columns as attributes) at the main thread's next safe point; hits made
        meanwhile by that function are recorded, not delivered. "break": enter the debugger there.
    kernel : bool or "auto"
        Include accesses by the kernel on the program's behalf (``readinto``, ``recv_into``); "auto": where
        it is allowed. The coverage tells.
    follow_fork : bool
        Forked children stay watched; their hits stand in the same timeline.
    hold : bool
        Keep the object alive, so that its memory is not freed and used for something else; buffers can still
        grow, be resized or closed, which `Watch.moved` tells. An array that is referenced refuses
        ``a.resize(…)``, but for ``refcheck=False``, which NumPy asks for then. False: the address stays
        watched beyond the object's death, and a column ``after_free`` marks the hits since then.
    stack : int
        Python frames to keep for each hit, 0 to 64.
    backend : str
        "auto": the session's, else that of HWWATCH_BACKEND, else perf, or ptrace where a test access by perf
        fails; or the name of one.
    session : Session, optional
        Default: the one that all module functions share.

    Returns
    -------
    Watch

    Raises
    ------
    TargetError
        No such place, or it cannot be covered by 4 slots.
    NoSlotError
        It could, but too few debug registers are free; says who holds them.
    PermissionRefused
        The kernel or a sandbox refuses breakpoints.
    CanaryError
        Breakpoints are accepted and never fire.
    ConditionError
        `when` is no condition; points at the column.
    NotSupported
        The policy is impossible for this mode or place, or the machine cannot do it; says why.
    HwwatchError
        There is no such backend.

    Nothing is armed when it raises.
    """
    return _session(session).watch(
        target,
        mode,
        nbytes=nbytes,
        name=name,
        policy=policy,
        when=when,
        limit=limit,
        on_hit=on_hit,
        kernel=kernel,
        follow_fork=follow_fork,
        hold=hold,
        stack=stack,
        backend=backend,
    )


def watching(
    target: Any, mode: Mode = "w", *, session: Session | None = None, **options: Any
) -> AbstractContextManager[Watch]:
    """`watch` for the length of a ``with`` block; disarmed on leaving, also by an exception."""
    return _session(session).watching(target, mode, **options)


def locate(expression: str, namespace: Mapping[str, Any] | None = None) -> Target:
    """The place in memory that an expression names, such as ``"a[3]"`` or ``"s.items[2].x"``.

    Parameters
    ----------
    expression : str
        The place is watched, never a copy of its value.
    namespace : mapping, optional
        Where names are looked up; default: the caller's locals, then globals. Python 3.11 and 3.12 keep all
        that the calling function's names stand for until it returns, once they were looked up.

    Returns
    -------
    Target

    Raises
    ------
    TargetError
        Syntax error, missing name, or an expression that has no place in memory.
    """
    from hwwatch.targets import locate as resolve

    if namespace is None:
        frame = sys._getframe(1)
        namespace = {**frame.f_globals, **frame.f_locals}
    return resolve(expression, namespace)


def watches(*, session: Session | None = None) -> list[Watch]:
    """All watches, armed or not, in order of id."""
    return _session(session).watches()


def unwatch(*which: Watch | int | str, session: Session | None = None) -> None:
    """Disarm and forget watches by object, id or name; without arguments all. Their hits stay."""
    _session(session).unwatch(*which)


def timeline(
    *which: Watch | int | str,
    stack: bool = False,
    registers: bool = False,
    session: Session | None = None,
) -> pd.DataFrame:
    """All recorded hits, a row each, in order of recording.

    Parameters
    ----------
    *which : Watch, int or str
        Only hits of these watches; default: all, also of watches that were disarmed.
    stack : bool
        Add the column ``stack``: the Python call stack, innermost first.
    registers : bool
        Add a column for each general register, and ``rflags``.

    Returns
    -------
    DataFrame
        Index ``seq``. Columns time, watch, access, old, new, changed, element, address, nbytes, pc,
        instruction, confidence, symbol, module, function, file, line, column, cell, thread, tid, pid,
        origin, action, exact. ``df.attrs["hwwatch"]`` holds coverage, lost hits and versions. May be
        called from any thread while hits keep coming: it shows a consistent prefix.
    """
    return _session(session).timeline(*which, stack=stack, registers=registers)


def plot(
    *which: Watch | int | str,
    kind: str = "values",
    ax: Axes | None = None,
    x: str = "time",
    legend: bool = True,
    session: Session | None = None,
) -> Axes:
    """Draw the hits of some watches, or of all.

    Parameters
    ----------
    *which : Watch, int or str
        Only hits of these watches; default: all, also of watches that were disarmed.
    kind : {"values", "by_line", "by_instruction", "elements"}
        The value over time as steps, in the colour of the line that wrote it, one panel a value; hits by
        line; hits by instruction; hits of each element over time.
    ax : matplotlib Axes, optional
        Where to draw; default: a new figure. Several panels share its place.
    x : {"time", "seq"}
        Time since the first hit, or the number of the hit.
    legend : bool
        Beside the axes.

    Returns
    -------
    matplotlib Axes
        `ax` where it was given; the topmost one where there are several panels, which share the time axis
        and are the next in ``ax.figure.axes``.

    Notes
    -----
    The same is `df.hwwatch.plot` of a timeline, which may have been filtered. Millions of hits are thinned
    out to some for each column of pixels: the lowest and the highest value in it stay. Nothing is shown
    (``plt.show()``) and no setting of matplotlib is changed.
    """
    return _session(session).plot(*which, kind=kind, ax=ax, x=x, legend=legend)


def export(
    path: str | os.PathLike[str],
    *which: Watch | int | str,
    overwrite: bool = False,
    stack: bool = False,
    registers: bool = False,
    session: Session | None = None,
) -> Path:
    """Write the timeline to a file.

    Parameters
    ----------
    path : path
        Its suffix says how: ``.csv``; ``.parquet`` or ``.feather`` (with pyarrow, the extra ``arrow``);
        ``.json`` or ``.jsonl``, an object a line; ``.trace.json`` for Perfetto and chrome://tracing, threads
        as tracks, hits as instants, watched numbers as counters; ``.html``, a page that needs no other file,
        with tables, pictures and coverage.
    *which : Watch, int or str
        Only hits of these watches; default: all, also of watches that were disarmed.
    overwrite : bool
        Take the place of a file of that name.
    stack, registers : bool
        As in `timeline`.
    session : Session, optional
        Default: the one that all module functions share.

    Returns
    -------
    Path
        Of the file, absolute.

    Raises
    ------
    TargetError
        The suffix is none of these; there is no such watch.
    ExportExists
        There is such a file already (also a FileExistsError).
    ExportError
        It could not be written (also an OSError).
    PackageMissing
        pyarrow is not installed (also an ImportError).

    Notes
    -----
    The file has its name when it is whole; until then it is a hidden one in the same folder, which is removed
    on failure. Hits are written piece by piece, as `Session.frames` has them.

    Columns are those of `timeline`, ``seq`` among them; times in text are ISO 8601, elements are text such as
    ``(2, 3)``. Where a format has no type for the values (CSV: all but float64, int64 and bool; Parquet and
    Feather: complex numbers, bytes, records, and values of several dtypes) they are text, and a column
    ``dtype`` after them says of which NumPy dtype they were. `load` undoes all that.
    """
    return _session(session).export(path, *which, overwrite=overwrite, stack=stack, registers=registers)


def load(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a timeline back that was exported as ``.csv``, ``.parquet`` or ``.feather``.

    Parameters
    ----------
    path : path

    Returns
    -------
    DataFrame
        With the columns, dtypes and objects that `timeline` had; records of several fields are tuples. From
        CSV, categories are in order of appearance, the arguments of calls have the dtypes that pandas infers,
        and there are no `attrs`.

    Raises
    ------
    TargetError
        The suffix is none of these.
    ExportError
        There is no such file, or it holds something else.
    FrameError
        It holds a table that is no timeline.
    PackageMissing
        pyarrow is not installed.
    """
    from hwwatch.exports.loads import load as read

    return read(path)


def panel(*, session: Session | None = None) -> Panel:
    """The watches as rows of controls, with their figures and last hits; live in Jupyter while cells run.

    Returns
    -------
    Panel
        The last expression of a cell shows it; ``.close()`` takes it away. A saved notebook shows tables in
        its place, a terminal shows text.
    """
    from hwwatch.widgets import Panel

    return Panel(_session(session))


def clear(*, session: Session | None = None) -> None:
    """Forget all recorded hits; watches stay armed."""
    _session(session).clear()


def coverage(*, session: Session | None = None) -> Coverage:
    """What is and what is not being seen: threads, kernel accesses, children, lost hits, self-tests.

    Zero hits with full coverage means zero accesses, within the limits of the hardware (README).
    """
    return _session(session).coverage()


def include() -> str:
    """The folder that holds ``hwwatch.h``, for compiling native policies (``cc -I…``)."""
    from importlib.resources import files

    folder = files("hwwatch")
    installed = folder / "include"
    return str(installed if installed.is_dir() else folder / "_core")


def doctor() -> Diagnosis:
    """What this machine allows, and the command that would allow more."""
    from hwwatch.diagnosis import doctor as examine

    return examine()


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext hwwatch``."""
    from hwwatch.magics import load

    load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext hwwatch``: disarm everything and give SIGTRAP back."""
    from hwwatch.magics import unload

    unload(shell)


def _accessor() -> None:
    from hwwatch.accessors import register

    register()


_accessor()
