"""The feed: one thread a session that looks at it for all its panels, and ends with the last of them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hwwatch.native import lib
from hwwatch.widgets.glances import Glance, Glances

if TYPE_CHECKING:
    from hwwatch.sessions import Session

#: Seconds between two looks: at least, and while nothing changes.
BUSY, IDLE = 0.1, 0.4
#: The thread rests so many times longer than it has worked.
REST = 9

Listener = Callable[[Glance], None]


class Feed:
    """Shows a session to listeners, up to ten times a second, and less often where that is much work.

    Listeners are called on the feed's thread, which watches on code pass over: what it calls is no hit.
    """

    def __init__(self, session: Session) -> None:
        self._glances = Glances(session)
        self._looking = threading.RLock()  # a signal's handler may look, too
        self._listeners: list[Listener] = []
        self._changed = threading.Condition()
        self._woken = False
        self._thread: threading.Thread | None = None

    def forked(self) -> None:
        """In a child: its parent's panels are none of its business, and the thread is not here."""
        self._looking, self._changed = threading.RLock(), threading.Condition()
        self._listeners, self._thread = [], None

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def look(self) -> Glance:
        """The session now; on any thread."""
        with self._looking:
            return self._glances.look()

    def join(self, listener: Listener) -> None:
        """Have `listener` called with each glance."""
        with self._changed:
            if listener not in self._listeners:
                self._listeners.append(listener)
            self._woken = True
            self._changed.notify_all()
            if not self.alive:
                self._thread = threading.Thread(target=self._run, name="hwwatch-panel", daemon=True)
                self._thread.start()

    def leave(self, listener: Listener) -> None:
        """No longer; without listeners the thread ends."""
        with self._changed:
            with contextlib.suppress(ValueError):
                self._listeners.remove(listener)
            self._changed.notify_all()

    def wake(self) -> None:
        """Look soon: something was changed."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _run(self) -> None:
        lib.hww_mute(1)
        last = None
        while True:
            with self._changed:
                if not self._listeners:
                    self._thread = None
                    return
                listeners, self._woken = list(self._listeners), False
            begun = time.monotonic()
            figures: Any = None
            with contextlib.suppress(
                Exception
            ):  # such as a watch that goes this very moment; the next is due
                glance = self.look()
                for listener in listeners:
                    listener(glance)
                figures = [(seen.tally.hits, seen.rate, seen.value, seen.state) for seen in glance.watches]
            worked = time.monotonic() - begun
            pause = BUSY if figures != last else IDLE
            last = figures
            self._wait(begun + max(BUSY, REST * worked), begun + max(pause, REST * worked))

    def _wait(self, earliest: float, latest: float) -> None:
        """Until `latest`; when woken, until `earliest`."""
        with self._changed:
            while self._listeners:
                now = time.monotonic()
                left = (earliest if self._woken else latest) - now
                if left <= 0:
                    return
                self._changed.wait(left)


_feeds: weakref.WeakValueDictionary[int, Feed] = weakref.WeakValueDictionary()  # by id of their session


def _forked() -> None:
    for feed in list(_feeds.values()):
        feed.forked()


os.register_at_fork(after_in_child=_forked)


def feed_of(session: Session) -> Feed:
    """The feed that all panels of a session share."""
    feed = _feeds.get(id(session))
    if feed is None:
        feed = _feeds[id(session)] = Feed(session)
    return feed
