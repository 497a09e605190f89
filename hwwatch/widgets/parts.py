"""What all of the panel's controls are made of: clicks told from changes, errors, labels."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets

from hwwatch.widgets.frontends import cells
from hwwatch.widgets.glances import error_text

if TYPE_CHECKING:
    from hwwatch.sessions import Session

#: Markup that only screen readers see.
HIDDEN = (
    '<span style="position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);'
    'white-space:nowrap">{}</span>'
)
_pushing = threading.local()


class Acts:
    """What a click does: the call, its error if it fails, and a fresh look afterwards."""

    def __init__(self, session: Session, wake: Callable[[], None]) -> None:
        self.session, self.wake = session, wake

    def clicked(self) -> bool:
        """Whether a person did what is being told, not `put`; notes on which thread it came in."""
        if by_program():
            return False
        cells.clicked()
        return True

    def do(self, call: Callable[[], object], error: ipywidgets.HTML) -> bool:
        """Make a call; show in `error` why it failed, or nothing. Returns whether it went well."""
        try:
            call()
        except Exception as problem:
            show_error(error, error_text(problem))
            return False
        else:
            show_error(error, "")
            return True
        finally:
            self.wake()


def show_error(error: ipywidgets.HTML, text: str) -> None:
    """Put an error where screen readers announce it; an empty one takes it away."""
    markup = f'<p role="alert" class="hww-error">⚠ {html.escape(text)}</p>' if text else ""
    put(error, "value", markup)
    put(error.layout, "display", None if text else "none")


def put(widget: Any, name: str, value: Any) -> None:
    """Set a trait where it differs; not taken for a click."""
    if getattr(widget, name) != value:
        pushed, _pushing.on = by_program(), True
        try:
            setattr(widget, name, value)
        finally:
            _pushing.on = pushed


def by_program() -> bool:
    """Whether a change that is being told was made by `put`."""
    return bool(getattr(_pushing, "on", False))


def labelled(text: str, of: str) -> str:
    """A label that says for screen readers what it is about."""
    return f"{html.escape(text)}{HIDDEN.format(' of ' + html.escape(of))}"


def plain(text: str, css: str = "") -> ipywidgets.HTML:
    """Markup, without a label of its own."""
    widget = ipywidgets.HTML(text)
    if css:
        widget.add_class(css)
    return widget


def line(*children: Any) -> ipywidgets.HBox:
    """Widgets side by side, on more lines where they do not fit."""
    box = ipywidgets.HBox(list(children))
    box.add_class("hww-line")
    return box


def error_line() -> ipywidgets.HTML:
    """A place for `show_error`; hidden while there is none."""
    widget = plain("")
    widget.layout.display = "none"
    return widget


def close_all(box: Any) -> None:
    """Close a widget and all inside it, with their layouts and styles."""
    for child in getattr(box, "children", ()):
        close_all(child)
    for part in (getattr(box, "layout", None), getattr(box, "style", None), box):
        if part is not None:
            part.close()
