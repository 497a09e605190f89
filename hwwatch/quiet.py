"""The lock of a session, which also keeps hwwatch's own code out of its users' way."""

from __future__ import annotations

import threading

from hwwatch.native import lib

_mute = lib.hww_mute


class QuietLock:
    """A reentrant lock; while a thread holds it, watches on code pass that thread's calls over.

    hwwatch calls strlen, malloc and the like as any Python code does: those calls are no hits of the user's
    program, and no policy may change what they return.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        _mute(1)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        _mute(-1)
