"""The panel's widgets: they show views, and hand what is clicked or typed to the session."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets

from hwwatch import words
from hwwatch.errors import TargetError
from hwwatch.widgets import views
from hwwatch.widgets.frontends import answer_at_once, cells, namespace
from hwwatch.widgets.glances import Glance, error_text
from hwwatch.widgets.views import MODES, RowView

if TYPE_CHECKING:
    from hwwatch.sessions import Session
    from hwwatch.watchpoints import Watch

_HIDDEN = (
    '<span style="position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);'
    'white-space:nowrap">{}</span>'
)
#: Seconds to wait for a text after its Enter.
_PATIENCE = 0.4
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
    return f"{html.escape(text)}{_HIDDEN.format(' of ' + html.escape(of))}"


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


class Row:
    """The controls of one watch."""

    def __init__(self, acts: Acts, watch: Watch, view: RowView, removed: Callable[[Row], None]) -> None:
        self._acts, self._watch, self._removed = acts, watch, removed
        self._view = view
        name = view.name
        style = {"description_width": "initial", "description_allow_html": True}
        self._armed = ipywidgets.Checkbox(
            view.armed, description=labelled("armed", name), indent=False, style=dict(style)
        )
        self._armed.description_allow_html = True
        self._armed.add_class("hww-check")
        self._title = plain("", "hww-grow")
        self._facts = plain("")
        self._mode = ipywidgets.RadioButtons(
            options=[(MODES[mode], mode) for mode in view.modes],
            value=view.mode,
            description=labelled("Mode", name),
            description_allow_html=True,
        )
        self._mode.add_class("hww-mode")
        self._policy = ipywidgets.Dropdown(
            options=view.policies,
            value=view.policy,
            description=labelled("Policy", name),
            description_allow_html=True,
            layout={"width": "165px"},
        )
        self._argument = ipywidgets.Text(
            view.argument,
            description_allow_html=True,
            continuous_update=False,
            layout={"width": "140px"},
        )
        self._argument.add_class("hww-argument")
        self._when = ipywidgets.Text(
            view.when,
            description=labelled("Condition", name),
            description_allow_html=True,
            placeholder="every hit; such as new < 0",
            tooltip="record only hits for which this holds, such as new < 0",
            continuous_update=False,
            layout={"width": "250px"},
        )
        self._remove = ipywidgets.Button(
            description=f"Remove {name}", tooltip=f"Remove {name}; its hits stay", icon="times"
        )
        self._remove.add_class("hww-remove")
        self._reasons = plain("", "hww-soft")
        self._error = plain("")
        self._error.layout.display = "none"
        self.box = ipywidgets.VBox(
            [
                line(self._armed, self._title, self._remove),
                self._facts,
                line(self._mode, self._policy, self._argument, self._when, self._reasons),
                self._error,
            ]
        )
        self.box.add_class("hww-row")
        self._armed.observe(self._arm, "value")
        self._mode.observe(self._set_mode, "value")
        self._policy.observe(self._set_policy, "value")
        self._argument.observe(self._set_argument, "value")
        self._when.observe(self._set_when, "value")
        self._remove.on_click(self._take_away)
        for widget in (self._armed, self._mode, self._policy, self._argument, self._when, self._remove):
            answer_at_once(widget)
        self._show(view)

    def update(self, view: RowView) -> None:
        """Show what has changed; what is being typed or chosen stays."""
        before, self._view = self._view, view
        if view != before:
            self._show(view, before)

    def _show(self, view: RowView, before: RowView | None = None) -> None:
        put(self._facts, "value", _facts_html(view))
        if before is not None and (view.facts, before) == (before.facts, view):
            return
        state = "" if view.state == "armed" else f" · {view.state}"
        put(
            self._title,
            "value",
            f'<span class="hww-name">{html.escape(view.name)}</span> '
            f'<span class="hww-soft">{html.escape(view.place + state)}</span>',
        )
        for css, on in (("hww-off", not view.armed),):
            if on != (css in self.box._dom_classes):
                (self.box.add_class if on else self.box.remove_class)(css)
        items = "".join(f"<li>{html.escape(reason)}</li>" for reason in view.reasons)
        put(
            self._reasons,
            "value",
            f"<details><summary>unavailable here{_HIDDEN.format(' for ' + html.escape(view.name))}"
            f"</summary><ul>{items}</ul></details>"
            if items
            else "",
        )
        put(self._mode, "disabled", bool(view.fixed))
        put(self._mode, "tooltip", view.fixed or f"which accesses are hits: {views.modes_text(view.mode)}")
        if before is None or view.armed != before.armed:
            put(self._armed, "value", view.armed)
        if before is None or view.mode != before.mode:
            put(self._mode, "value", view.mode)
        if before is None or (view.policies, view.policy) != (before.policies, before.policy):
            put(self._policy, "options", view.policies)
            put(self._policy, "value", view.policy)
        if before is None or (view.policy, view.argument) != (before.policy, before.argument):
            put(self._argument, "value", view.argument)
        if before is None or view.when != before.when:
            put(self._when, "value", view.when)
        self._explain_argument()

    def _explain_argument(self) -> None:
        kind = self._policy.value
        short, reason = views.argument_reason(kind)
        label = f"argument of the policy of {html.escape(self._view.name)}: {html.escape(reason)}"
        put(self._argument, "disabled", kind not in ("return", "goto"))
        put(self._argument, "description", _HIDDEN.format(label))
        put(self._argument, "tooltip", reason)
        put(self._argument, "placeholder", short)

    def focus(self) -> None:
        """Go to its first control."""
        self._armed.focus()

    def close(self) -> None:
        """Take its widgets from the front end."""
        close_all(self.box)

    # what is clicked

    def _arm(self, change: Any) -> None:
        if not self._acts.clicked():
            return
        watch = self._watch

        def call() -> None:
            if not change.new:
                watch.disarm()
            elif not watch.enabled:
                watch.enabled = True

        if not self._acts.do(call, self._error):
            put(self._armed, "value", watch.armed)

    def _set_mode(self, change: Any) -> None:
        if change.new is None or not self._acts.clicked():
            return
        if not self._acts.do(lambda: setattr(self._watch, "mode", change.new), self._error):
            put(self._mode, "value", self._watch.mode)

    def _set_policy(self, change: Any) -> None:
        if change.new is None or not self._acts.clicked():
            return
        self._explain_argument()
        if change.new in ("return", "goto"):
            kind, argument = views.split_policy(self._watch.policy)
            put(self._argument, "value", argument if kind == change.new else "")
            show_error(self._error, "")
            self._argument.focus()
            return
        if change.new not in ("continue", "skip"):  # a native function: only a program can give it
            return
        if not self._acts.do(lambda: setattr(self._watch, "policy", change.new), self._error):
            put(self._policy, "value", views.split_policy(self._watch.policy)[0])
            self._explain_argument()
        else:
            put(self._argument, "value", "")

    def _set_argument(self, change: Any) -> None:
        kind, text = self._policy.value, str(change.new).strip()
        if kind not in ("return", "goto") or not self._acts.clicked():
            return
        self._acts.do(lambda: setattr(self._watch, "policy", words.policy(f"{kind}={text}")), self._error)

    def _set_when(self, change: Any) -> None:
        if not self._acts.clicked():
            return
        text = str(change.new).strip() or None
        self._acts.do(lambda: setattr(self._watch, "when", text), self._error)

    def _take_away(self, _: Any) -> None:
        unwatch = self._acts.session.unwatch
        if self._acts.clicked() and self._acts.do(lambda: unwatch(self._watch), self._error):
            self._removed(self)


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
        self._error = plain("")
        self._error.layout.display = "none"
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
        self._queued = plain("")
        self._queued.layout.display = "none"
        self._adder = Adder(self._acts)
        self._error = plain("")
        self._error.layout.display = "none"
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


QUEUED = "A cell is running, and this kernel takes clicks between cells: they are queued until it ends."


def close_all(box: Any) -> None:
    """Close a widget and all inside it, with their layouts and styles."""
    for child in getattr(box, "children", ()):
        close_all(child)
    for part in (getattr(box, "layout", None), getattr(box, "style", None), box):
        if part is not None:
            part.close()


def _facts_html(view: RowView) -> str:
    cells_ = "".join(
        f'<div title="{html.escape(long)}"><dt>{html.escape(name)}</dt>'
        f"<dd{' class=hww-code' if name == 'value now' else ''}>{html.escape(text)}</dd></div>"
        for name, text, long in view.facts
    )
    return f'<dl class="hww-facts">{cells_}</dl>'
