"""The lock of hwwatch's own Python, which also keeps it out of its users' way."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from hwwatch.native import lib


class QuietLock:
    """A reentrant lock; while a thread holds it, watches on code pass that thread's calls over.

    hwwatch calls strlen, malloc and the like as any Python code does: those calls are no hits of the user's
    program, and no policy may change what they return.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: dict[int, Callable[[], object]] = {}
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        # Another thread may have held it, and is not here to let go.
        self._lock = threading.RLock()
        self._waiting = {}

    def __enter__(self) -> None:
        before = lib.hww_muted()
        try:
            lib.hww_mute(1)
            self._lock.acquire()
        except BaseException:  # KeyboardInterrupt, most likely while waiting
            lib.hww_mute(before - lib.hww_muted())
            if not before and self._lock._is_owned():  # type: ignore[attr-defined]
                self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._lock.release()
        finally:
            lib.hww_mute(-1)
        if self._waiting and not lib.hww_muted():
            call = self._waiting.pop(threading.get_ident(), None)
            if call is not None:
                call()

    def held_here(self) -> bool:
        """Whether the calling thread holds it."""
        return bool(lib.hww_muted())

    def when_free(self, call: Callable[[], object]) -> None:
        """Have `call` called as soon as the calling thread, which holds the lock, lets go of it."""
        self._waiting[threading.get_ident()] = call


#: Sessions share the ring, the watch table and the debug registers: so they share one lock.
lock = QuietLock()
