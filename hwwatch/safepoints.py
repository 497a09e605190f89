"""Python code for hits: run on the main thread, at its next safe point after the trap.

The handler may not run Python. It sends the main thread a real-time signal that nobody else uses; Python runs
that signal's handler between two bytecodes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from hwwatch.errors import NotSupported
from hwwatch.native import lib
from hwwatch.quiet import lock

_deliver: list[Callable[[], list[Any]]] = []
#: What PYTHONBREAKPOINT may say for `breakpoint()` to enter pdb.
_PDB = (None, "", "pdb.set_trace")
_number = 0
_busy = _again = False


def number() -> int:
    """The signal in use; 0 before `install`."""
    return _number


def install() -> int:
    """Take the highest real-time signal that nobody handles; on the main thread, the first time.

    Raises
    ------
    NotSupported
        It is not the main thread, or no real-time signal is free.
    """
    global _number
    if _number and signal.getsignal(_number) is _on_signal:
        return _number
    if threading.current_thread() is not threading.main_thread():
        raise NotSupported(
            "on_hit: Python can be prepared for hits on the main thread only.",
            hint="Set on_hit there the first time.",
            slug="on-hit",
        )
    for candidate in range(signal.SIGRTMAX - 1, signal.SIGRTMIN, -1):
        if signal.getsignal(candidate) is signal.SIG_DFL:
            signal.signal(candidate, _on_signal)
            signal.siginterrupt(candidate, False)  # system calls of the program go on
            lib.hww_notify_configure(candidate)
            _number = candidate
            return candidate
    raise NotSupported(
        "on_hit: all real-time signals are taken.",
        hint="Free one: `signal.signal(number, signal.SIG_DFL)`.",
        slug="on-hit",
    )


def uninstall() -> None:
    """Give the signal back."""
    global _number
    if _number and threading.current_thread() is threading.main_thread():
        lib.hww_notify_configure(0)
        if signal.getsignal(_number) is _on_signal:
            signal.signal(_number, signal.SIG_DFL)
        _number = 0


def subscribe(deliver: Callable[[], list[Any]]) -> None:
    """Have `deliver` called at each safe point that a hit asked for; it returns what wants the debugger."""
    if deliver not in _deliver:
        _deliver.append(deliver)


def unsubscribe(deliver: Callable[[], list[Any]]) -> None:
    """No longer."""
    with contextlib.suppress(ValueError):
        _deliver.remove(deliver)


def ask_again() -> None:
    """From `deliver`: there may be more; the main thread goes on for a moment, then it is asked again."""
    global _again
    _again = True


def _on_signal(signum: int, frame: types.FrameType | None) -> None:
    global _busy, _again
    lib.hww_notify_taken()
    if _busy:
        _again = True
        return
    if lock.held_here():  # amid hwwatch's own work, whose state must not change under it
        lock.when_free(lambda: _raise(signum))
        return
    _busy, _again = True, False
    wanted: list[Any] = []
    try:
        for deliver in list(_deliver):
            try:
                wanted += deliver()
            except Exception:  # ours; the program that we interrupt has no part in it
                show_error()
    finally:
        _busy = False
        if _again:
            lib.hww_notify_later()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(f"{__package__}."):
        frame = frame.f_back  # a hit while hwwatch ran: its caller is the user's
    if wanted and frame is not None:
        _break(frame)  # last: from here on every call would be traced


def _raise(signum: int) -> None:
    if signum == _number:  # not given back meanwhile: its default action kills
        signal.raise_signal(signum)


def show_error() -> None:
    """Show the exception that is being handled as its front end would; it goes no further."""
    module: Any = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    if shell is not None:
        shell.showtraceback()
    else:
        sys.excepthook(*sys.exc_info())


def _break(frame: types.FrameType) -> None:
    """Enter the debugger in `frame`: IPython's where there is one, else what `breakpoint()` would.

    `set_trace` comes last, outside any `with`: whatever is called after it would be stepped into.
    """
    module: Any = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    if shell is not None:
        debugger = shell.debugger_cls()
    elif sys.breakpointhook is sys.__breakpointhook__ and os.environ.get("PYTHONBREAKPOINT") in _PDB:
        import pdb

        debugger = pdb.Pdb(nosigint=True)
    else:
        sys.breakpointhook()
        return
    debugger.set_trace(frame)
