"""All of one panel's widgets: they show views, and hand what is clicked or typed to the session."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets

from hwwatch.widgets import views
from hwwatch.widgets.adders import Adder
from hwwatch.widgets.frontends import answer_at_once
from hwwatch.widgets.glances import Glance, error_text
from hwwatch.widgets.parts import Acts, close_all, error_line, line, plain, put, show_error
from hwwatch.widgets.rows import Row

if TYPE_CHECKING:
    from hwwatch.sessions import Session

QUEUED = "A cell is running, and this kernel takes clicks between cells: they are queued until it ends."


class Board:
    """All of one panel's widgets.

    Parameters
    ----------
    session : Session
    wake : callable
        Has the panel updated soon.
    choose : callable
        Called with a watch's id or None, some text, and a number of rows: which hits are to be shown.
    close : callable
        Takes the panel away.
    """

    def __init__(
        self,
        session: Session,
        wake: Callable[[], None],
        choose: Callable[[int | None, str, int], None],
        close: Callable[[], None],
    ) -> None:
        self._acts, self._choose = Acts(session, wake), choose
        self._rows: dict[int, Row] = {}
        self._lock = threading.RLock()
        self._style = plain("")
        self._style.layout.display = "none"
        self._state = plain("", "hww-grow")
        self._queued = error_line()
        self._adder = Adder(self._acts)
        self._error = error_line()
        self._coverage = plain("", "hww-soft")
        self._coverage.add_class("hww-grow")
        tip = "End the panel; its tables stay, and so do the watches"
        ending = self._button("Close panel", "sign-out", tip, close)
        buttons = [
            self._button("Arm all", "check", "Arm every watch", lambda: self._each(True)),
            self._button("Disarm all", "pause", "Disarm every watch; they and their hits stay", self._none),
            self._button("Clear hits", "eraser", "Forget the recorded hits; watches stay", session.clear),
        ]
        self._list = ipywidgets.VBox([])
        self._list.layout.grid_gap = "6px"
        self._watch = ipywidgets.Dropdown(
            options=[("all watches", 0)],
            value=0,
            description="Hits of",
            style={"description_width": "initial"},
            layout={"width": "220px"},
        )
        self._line = ipywidgets.Combobox(
            placeholder="any line; such as In [3]:5",
            description="Line contains",
            tooltip="part of a place or function, such as In [3]:5, bug.py or update",
            continuous_update=False,
            ensure_option=False,
            style={"description_width": "initial"},
            layout={"width": "300px"},
        )
        self._most = ipywidgets.Dropdown(
            options=[10, 20, 50, 100],
            value=10,
            description="Last",
            style={"description_width": "initial"},
            layout={"width": "110px"},
        )
        self._follow = ipywidgets.Checkbox(
            True, description="follow new hits", indent=False, tooltip="off: the table stays as it is"
        )
        self._follow.add_class("hww-check")
        self._table = plain("")
        self.box = ipywidgets.VBox(
            [
                self._style,
                line(self._state, *buttons),
                self._queued,
                self._error,
                self._list,
                self._adder.box,
                line(self._coverage, ending),
                line(self._watch, self._line, self._most, self._follow),
                self._table,
            ]
        )
        self.box.add_class("hww-panel")
        for widget in (self._watch, self._line, self._most):
            widget.observe(self._filter, "value")
        self._follow.observe(self._filter, "value")
        for widget in (self._watch, self._line, self._most, self._follow, self.box):
            answer_at_once(widget)

    def _button(self, text: str, icon: str, tip: str, call: Callable[[], object]) -> ipywidgets.Button:
        button = ipywidgets.Button(description=text, icon=icon, tooltip=tip)
        button.on_click(lambda _: self._acts.clicked() and self._acts.do(call, self._error))
        answer_at_once(button)
        return button

    @property
    def follows(self) -> bool:
        """Whether the table of hits shows new ones."""
        return bool(self._follow.value)

    # what is shown

    def style(self, text: str) -> None:
        """Set the style sheet."""
        put(self._style, "value", text)

    def update(self, glance: Glance) -> None:
        """Show the watches."""
        with self._lock:
            self._update_rows(glance)
            sentence, problems = views.coverage(glance)
            items = "".join(f"<li>{html.escape(item)}</li>" for item in problems)
            text = html.escape(sentence)
            put(
                self._coverage,
                "value",
                f"<details><summary>{text}</summary><ul>{items}</ul></details>" if items else text,
            )

    def _update_rows(self, glance: Glance) -> None:
        there = {seen.id: seen for seen in glance.watches}
        for number in [number for number in self._rows if number not in there]:
            gone = self._rows.pop(number)
            put(self._list, "children", tuple(row.box for row in self._rows.values()))
            gone.close()
        for number, seen in there.items():
            view = views.row(seen)
            if number in self._rows:
                self._rows[number].update(view)
            else:
                self._rows[number] = Row(self._acts, seen.watch, view, self._removed)
        put(self._list, "children", tuple(row.box for row in self._rows.values()))
        options = (("all watches", 0), *((seen.name, seen.id) for seen in glance.watches))
        if tuple(self._watch.options) != options:
            chosen = self._watch.value
            put(self._watch, "options", options)
            still = chosen in there
            put(self._watch, "value", chosen if still else 0)
            if chosen and not still:
                self._filter(None)

    def fail(self, error: Exception) -> None:
        """Tell that something could not be shown."""
        show_error(self._error, error_text(error))

    def say_queued(self, queued: bool) -> None:
        """Tell whether a click now would have to wait."""
        put(self._queued, "value", f'<p class="hww-soft" style="margin:0">{QUEUED}</p>' if queued else "")
        put(self._queued.layout, "display", None if queued else "none")

    def announce(self, text: str) -> None:
        """Show the status line, which screen readers read out; not more often than once a second."""
        put(self._state, "value", f'<span role="status">{html.escape(text)}</span>')

    def show_hits(self, table: str, lines: tuple[str, ...]) -> None:
        """Show the table of hits, and which lines there are to choose from."""
        put(
            self._table,
            "value",
            f'<div class="hww-hits" tabindex="0" role="region" aria-label="last hits">{table}</div>',
        )
        put(self._line, "options", lines)

    def close(self) -> None:
        """Take all widgets from the front end."""
        with self._lock:
            close_all(self.box)

    # what is clicked

    def _filter(self, change: Any) -> None:
        if change is not None and not self._acts.clicked():
            return
        self._choose(self._watch.value or None, self._line.value, self._most.value)
        self._acts.wake()

    def _each(self, on: bool) -> None:
        for watch in self._acts.session.watches():
            if on and not watch.enabled:
                watch.enabled = True
            elif not on:
                watch.disarm()

    def _none(self) -> None:
        self._each(False)

    def _removed(self, row: Row) -> None:
        rows = list(self._rows.values())
        at = rows.index(row) if row in rows else 0
        after = [other for other in (*rows[at + 1 :], *rows[:at][::-1]) if other is not row]
        (after[0] if after else self._adder).focus()
