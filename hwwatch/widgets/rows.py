"""A watch's row in the panel."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets

from hwwatch import words
from hwwatch.widgets import views
from hwwatch.widgets.frontends import answer_at_once
from hwwatch.widgets.parts import HIDDEN, Acts, close_all, error_line, labelled, line, plain, put, show_error
from hwwatch.widgets.views import MODES, RowView

if TYPE_CHECKING:
    from hwwatch.watchpoints import Watch


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
        self._error = error_line()
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
        state = "" if view.state == "armed" else f" · {view.state}"
        put(
            self._title,
            "value",
            f'<span class="hww-name">{html.escape(view.name)}</span> '
            f'<span class="hww-soft">{html.escape(view.place + state)}</span>',
        )
        (self.box.remove_class if view.armed else self.box.add_class)("hww-off")
        items = "".join(f"<li>{html.escape(reason)}</li>" for reason in view.reasons)
        put(
            self._reasons,
            "value",
            f"<details><summary>unavailable here{HIDDEN.format(' for ' + html.escape(view.name))}"
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
        put(self._argument, "description", HIDDEN.format(label))
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


def _facts_html(view: RowView) -> str:
    cells_ = "".join(
        f'<div title="{html.escape(long)}"><dt>{html.escape(name)}</dt>'
        f"<dd{' class=hww-code' if name == 'value now' else ''}>{html.escape(text)}</dd></div>"
        for name, text, long in view.facts
    )
    return f'<dl class="hww-facts">{cells_}</dl>'
