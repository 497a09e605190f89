"""The lock of hwwatch's own Python, which also keeps it out of its users' way."""

from __future__ import annotations

import functools
import math
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from hwwatch.native import lib

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

#: Seconds after which a thread that runs Python lets others run, while the lock is held.
_SWITCH_INTERVAL = 0.0005


class QuietLock:
    """A reentrant lock; while a thread holds it, watches on code pass that thread's calls over.

    hwwatch calls strlen, malloc and the like as any Python code does: those calls are no hits of the user's
    program, and no policy may change what they return.

    Meanwhile threads that compute in Python give way more often (`sys.setswitchinterval`): NumPy lets go of
    the GIL in most of its calls, and would wait 5 ms each time to have it back.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0  # how often the thread that holds it has taken it
        self._waiting: dict[int, Callable[[], object]] = {}
        self._interval = 0.0  # that of the program, while ours is in force
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        # Another thread may have held it, and is not here to let go.
        self._lock = threading.RLock()
        self._depth = 0
        self._waiting = {}
        self._give_way_as_before()

    def _give_way_often(self) -> None:
        interval = sys.getswitchinterval()
        if interval > _SWITCH_INTERVAL:
            sys.setswitchinterval(_SWITCH_INTERVAL)
            self._interval = interval

    def _give_way_as_before(self) -> None:
        interval, self._interval = self._interval, 0.0
        if interval and math.isclose(sys.getswitchinterval(), _SWITCH_INTERVAL):  # nobody has changed it
            sys.setswitchinterval(interval)

    def __enter__(self) -> None:
        before = lib.hww_muted()
        depth = self._depth if self._lock._is_owned() else 0  # type: ignore[attr-defined]
        try:
            lib.hww_mute(1)
            self._lock.acquire()
            self._depth = depth + 1
            if not depth:
                self._give_way_often()
        except BaseException:  # KeyboardInterrupt, most likely while waiting
            if not depth and self._lock._is_owned():  # type: ignore[attr-defined]
                self._give_way_as_before()
                self._depth = 0
                self._lock.release()
            lib.hww_mute_to(before)
            raise

    def __exit__(self, *_: object) -> None:
        self.leave()
        self.call_waiting()

    def leave(self) -> None:
        """Let go of it, without the call that waits for that."""
        try:
            if self._depth == 1:
                self._give_way_as_before()
            self._depth -= 1
        finally:
            self._release()

    def _release(self) -> None:
        try:
            self._lock.release()
        finally:
            lib.hww_mute(-1)

    def call_waiting(self) -> None:
        """Make the call that waits for the end of hwwatch's own work on this thread, if there is one."""
        if self._waiting and not lib.hww_muted():
            call = self._waiting.pop(threading.get_ident(), None)
            if call is not None:
                call()

    def held_here(self) -> bool:
        """Whether the calling thread is amid hwwatch's own work, with the lock or without (`own`)."""
        return bool(lib.hww_muted())

    def when_free(self, call: Callable[[], object]) -> None:
        """Have `call` called as soon as the calling thread is done with hwwatch's own work."""
        self._waiting[threading.get_ident()] = call


def _quietly(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call it, and pass watches on code over meanwhile."""
    before = lib.hww_muted()
    try:
        lib.hww_mute(1)
        return call(*arguments)
    finally:
        lib.hww_mute_to(before)


class Uninterrupted:
    """The lock for what must be done wholly or not at all: meanwhile Ctrl-C waits.

    What is done under it takes seconds at the most. The handler of SIGINT, whatever it is, is called
    afterwards, unless that signal goes to C code, which never interrupts Python.
    """

    def __init__(self, lock: QuietLock) -> None:
        self._lock = lock
        self._before: Any = None
        self._depth = 0
        self._noted: list[types.FrameType | None] = []
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        # Not amid one's own change: then a child would not be born by this thread.
        if self._before is not None:
            _quietly(signal.signal, signal.SIGINT, self._before)
        self._before, self._depth, self._noted = None, 0, []

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            if not self._depth:
                before = _quietly(signal.getsignal, signal.SIGINT)
                if callable(before):
                    self._before, self._noted = before, []
                    _quietly(signal.signal, signal.SIGINT, self._note)
            self._depth += 1
        self._lock.__enter__()

    def _note(self, _: int, frame: types.FrameType | None) -> None:
        self._noted.append(frame)

    def __exit__(self, *_: object) -> None:
        self._lock.leave()
        noted: list[types.FrameType | None] = []
        before = None
        if threading.current_thread() is threading.main_thread():
            self._depth -= 1
            if not self._depth and self._before is not None:
                before, self._before, noted = self._before, None, self._noted
                _quietly(signal.signal, signal.SIGINT, before)
        try:
            self._lock.call_waiting()
        finally:
            if noted and before is not None:
                before(signal.SIGINT, noted[0])


#: Sessions share the ring, the watch table and the debug registers: so they share one lock.
lock = QuietLock()
uninterrupted = Uninterrupted(lock)


def own(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate what is hwwatch's own work, before and after it takes the lock: its calls are no hits either.

    Most of all, no policy changes what they return: `strlen` may be made to return 42, and an import, which
    the first timeline makes some of, would believe it.
    """

    @functools.wraps(function)
    def quiet(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        before = lib.hww_muted()
        try:
            lib.hww_mute(1)
            return function(*arguments, **options)
        finally:
            lib.hww_mute_to(before)
            lock.call_waiting()

    return quiet
