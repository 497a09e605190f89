"""The panel's line for another watch."""

from __future__ import annotations

import threading
from typing import Any

import ipywidgets

from hwwatch import words
from hwwatch.errors import TargetError
from hwwatch.widgets.frontends import answer_at_once, namespace
from hwwatch.widgets.parts import Acts, error_line, labelled, line, put
from hwwatch.widgets.views import MODES

#: Seconds to wait for a text after its Enter.
_PATIENCE = 0.4


class Adder:
    """The line that adds a watch by its expression."""

    def __init__(self, acts: Acts) -> None:
        self._acts = acts
        self._entered: threading.Timer | None = None
        self._text = ipywidgets.Text(
            description="Watch",
            continuous_update=False,
            placeholder="a place, such as a[3] or s.field",
            tooltip="an expression, such as a[3], s.field or libc.strlen; Enter adds it",
            style={"description_width": "initial"},
            layout={"width": "330px"},
        )
        self._mode = ipywidgets.RadioButtons(
            options=[(label, mode) for mode, label in MODES.items()],
            value="w",
            description=labelled("Mode", "the new watch"),
            description_allow_html=True,
            tooltip="writes, reads, reads and writes, execution of a C function",
        )
        self._mode.add_class("hww-mode")
        self._button = ipywidgets.Button(description="Add watch", icon="plus", tooltip="Watch this place")
        self._error = error_line()
        self.box = ipywidgets.VBox([line(self._text, self._mode, self._button), self._error])
        self.box.add_class("hww-adder")
        self._text.on_msg(self._message)
        self._text.observe(self._change, "value")
        self._button.on_click(self._pressed)
        for widget in (self._text, self._mode, self._button):
            answer_at_once(widget)

    def focus(self) -> None:
        """Go to the text."""
        self._text.focus()

    def _message(self, _: Any, content: Any, __: Any) -> None:
        # Enter: the text itself comes after it, and only if it is another than before.
        if content.get("event") == "submit" and self._acts.clicked():
            self._entered = threading.Timer(_PATIENCE, self._add)
            self._entered.daemon = True
            self._entered.start()

    def _pressed(self, _: Any) -> None:
        self._acts.clicked()
        self._add()

    def _change(self, _: Any) -> None:
        if self._acts.clicked() and self._entered is not None:
            self._add()

    def _add(self) -> None:
        entered, self._entered = self._entered, None
        if entered is not None:
            entered.cancel()
        text, mode = self._text.value.strip(), self._mode.value

        def call() -> None:
            if not text:
                raise TargetError(
                    "there is nothing to watch.", hint="Write a place such as a[3].", slug="usage"
                )
            self._acts.session.watch(words.place(text, namespace(), mode=mode), mode)

        if self._acts.do(call, self._error):
            put(self._text, "value", "")
