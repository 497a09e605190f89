"""The panel: a session's watches as rows of controls, live while cells run.

The feed looks at the session (`feed`, `glances`, `hits`), views say what is shown of it (`views`), a board
has the widgets (`boards`, with `rows` and `adders`, made of `parts` in `styles`); what can show them differs
(`frontends`).
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
import weakref
from typing import TYPE_CHECKING, Any

from hwwatch.errors import HwwatchError
from hwwatch.widgets import frontends, views
from hwwatch.widgets.feed import feed_of
from hwwatch.widgets.frontends import cells
from hwwatch.widgets.glances import Glance
from hwwatch.widgets.hits import Recent
from hwwatch.widgets.styles import MISSING, STYLE

if TYPE_CHECKING:
    from hwwatch.sessions import Session
    from hwwatch.widgets.boards import Board

#: Seconds between two changes of the status line, and of the table of hits.
STATUS, TABLE = 1.0, 0.25
#: Hits in a table that is saved or printed.
SAVED = 10

_panels: weakref.WeakSet[Panel] = weakref.WeakSet()


class Panel:
    """What `hwwatch.panel` returns. Shown by Jupyter it is live; elsewhere it is text.

    It is brought up to date by a thread of its session, which ends with the last panel: when that is closed,
    or its output cleared.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._feed = feed_of(session)
        self._recent = Recent(session)
        self._filter: tuple[int | None, str, int] | None = None
        self._board: Any = None
        self._views = 0
        self._said = self._tabled = 0.0
        self._shown: Any = None
        self._id = uuid.uuid4().hex
        self._pid = os.getpid()
        self.closed = False
        _panels.add(self)

    @property
    def widget(self) -> Any:
        """The outermost widget, to be put into a layout of one's own; live from now on."""
        if self.closed:
            raise HwwatchError(
                "this panel is closed.", hint="Make another: `hwwatch.panel()`.", slug="closed"
            )
        if self._board is None:
            from hwwatch.widgets.boards import Board

            self._board = Board(self._session, self._feed.wake, self._choose, self.close)
            self._board.style(STYLE)
            self._board.box._view_count = 0  # have views counted
            self._board.box.observe(self._count, "_view_count")
            self._update(self._feed.look())
        self._start()
        return self._board.box

    def close(self) -> None:
        """Take it away; a table of what it said last stays in its place."""
        if self.closed:
            return
        self._stop()
        if self._board is not None and self._shown is not None:
            final = {"text/html": self._html(), "text/plain": repr(self)}
            frontends.publish(final, self._id, update=True)
            frontends.publish({"text/html": "", "text/plain": " "}, f"{self._id}-saved", update=True)
        self.closed = True
        if self._board is not None:
            self._board.close()

    def _start(self) -> None:
        cells.follow(self._cell_ended)
        self._feed.join(self._update)

    def _stop(self) -> None:
        cells.leave(self._cell_ended)
        self._feed.leave(self._update)

    def _count(self, change: Any) -> None:
        """The front end tells how many views there are: with the last one, the output was cleared."""
        now = change.new or 0
        if now and not self._views:
            self._start()
        elif self._views and not now:
            self._stop()
        self._views = now

    # what is shown

    def _choose(self, watch: int | None, line: str, most: int) -> None:
        self._filter = (watch, line, most)

    def _update(self, glance: Glance) -> None:
        """Show a glance; on the feed's thread."""
        if self._board is None or self.closed:
            return
        try:
            self._show(self._board, glance)
        except Exception as error:  # the next glance may go better
            self._board.fail(error)

    def _show(self, board: Board, glance: Glance) -> None:
        board.update(glance)
        board.say_queued(cells.queued)
        now = time.monotonic()
        if now >= self._said + STATUS:
            self._said = now
            board.announce(views.status(glance, cells.running))
        wanted, self._filter = self._filter, None
        if wanted is not None:
            self._recent.choose(*wanted)
        due = board.follows or self._recent.searching
        if wanted is not None or (due and now >= self._tabled + TABLE):
            with self._session._lock:
                self._recent.advance()
            self._tabled = now
            rows = list(self._recent.rows)
            board.show_hits(views.hits_html(rows, self._caption(len(rows))), _places(rows))

    def _caption(self, count: int) -> str:
        if self._recent.searching:
            return f"{count} hits so far, looking through earlier ones"
        if not count:
            return "no such hits" if self._recent.line or self._recent.watch else "no hits yet"
        return f"last {count} hits, latest first" if count > 1 else "1 hit"

    # what is saved

    def _now(self) -> tuple[Glance, list[Any]]:
        recent = Recent(self._session, SAVED)
        with self._session._lock:
            recent.advance(1.0)
        return self._feed.look(), list(recent.rows)

    def _html(self) -> str:
        return views.static_html(*self._now(), time.time())

    def _page(self) -> dict[str, str]:
        """What stands below the panel in a saved notebook; the live panel hides it."""
        glance, rows = self._now()
        self._shown = self._key(glance, rows)
        return {"text/html": MISSING + views.static_html(glance, rows, time.time()), "text/plain": " "}

    def _cell_ended(self) -> None:
        """Put what is now into the notebook, for readers who have no kernel."""
        if os.getpid() != self._pid:
            return
        self._feed.wake()
        if self._shown is not None and self._key(*self._now()) != self._shown:
            frontends.publish(self._page(), f"{self._id}-saved", update=True)

    @staticmethod
    def _key(glance: Glance, rows: list[Any]) -> Any:
        return [(views.row(seen), seen.tally.hits) for seen in glance.watches], rows

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """The live widget, and tables and text for where there is none."""
        if frontends.kernel() is None or self.closed:
            return {"text/plain": repr(self)}
        view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        return {"text/plain": repr(self), "text/html": self._html(), frontends.VIEW: view}

    def _ipython_display_(self) -> None:
        data = self._repr_mimebundle_()
        if frontends.VIEW not in data:
            print(data["text/plain"])
            return
        frontends.publish(data | {"text/html": views.folded(data["text/html"])}, self._id)
        frontends.publish(self._page(), f"{self._id}-saved")

    def __repr__(self) -> str:
        return views.static_text(*self._now())


def _places(rows: list[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(hit.place for hit in rows))


def close_panels(session: Session) -> None:
    """Close the panels of a session that ends."""
    for panel in list(_panels):
        if panel._session is session:
            with contextlib.suppress(Exception):
                panel.close()
