"""Views: what the panel says, and which of its controls make sense. Plain data; knows no widgets."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hwwatch.displays import table_html, table_text
from hwwatch.policies import describe
from hwwatch.types import Goto, Policy, Return
from hwwatch.widgets.glances import Glance, Seen, value_text
from hwwatch.widgets.hits import Hit

#: What the modes are called on the panel.
MODES = {"w": "W", "r": "R", "rw": "RW", "x": "X"}
_LONG = {"w": "writes", "r": "reads", "rw": "reads and writes", "x": "execution"}
_NO_SKIP = "skip: a read cannot be skipped, the trap comes after it"
_NO_RETURN = "return: only a function that is called can return; watch one with mode X"
_ARGUMENT = {
    "return": ("value, such as 42", "the value to return, such as 42"),
    "goto": ("address or symbol", "an address or a symbol, such as libm.so.6!sin"),
}
_HEAD = ("watch", "state", "mode", "value now", "policy", "when", "hits", "rate", "lost", "last writer")
_HIT_HEAD = ("time (UTC)", "watch", "access", "value", "line", "function", "thread")


@dataclass(frozen=True)
class RowView:
    """One watch on the panel.

    Attributes
    ----------
    modes : tuple of str
        Those that can be chosen.
    fixed : str
        Why the mode cannot be changed; empty where it can.
    policies : tuple of str
        Kinds that can be chosen.
    policy, argument : str
        The kind in force, and its value.
    reasons : tuple of str
        What cannot be chosen here, each with the reason.
    """

    id: int
    name: str
    place: str
    facts: tuple[tuple[str, str, str], ...]
    armed: bool
    state: str
    mode: str
    modes: tuple[str, ...]
    fixed: str
    policies: tuple[str, ...]
    policy: str
    argument: str
    when: str
    reasons: tuple[str, ...]


def row(seen: Seen) -> RowView:
    """What the panel says of a watch."""
    code = seen.kind == "code" or seen.mode == "x"
    kind, argument = split_policy(seen.policy)
    policies = ["continue", "skip", "return", "goto"]
    if seen.mode == "r":
        policies.remove("skip")
    if not code:
        policies.remove("return")
    if kind not in policies:
        policies.append(kind)
    reasons = []
    if seen.mode == "r":
        reasons.append(_NO_SKIP)
    if not code:
        reasons += ["X: this is data, which is not executed", _NO_RETURN]
    fixed = (
        "W, R, RW: this is code, watched when it is executed; data takes a watch of its own" if code else ""
    )
    return RowView(
        seen.id,
        seen.name,
        seen.place,
        facts(seen),
        seen.state != "disarmed",
        _state(seen),
        seen.mode,
        ("x",) if code else ("w", "r", "rw"),
        fixed,
        tuple(policies),
        kind,
        argument,
        seen.when,
        tuple([fixed, *reasons] if fixed else reasons),
    )


def _state(seen: Seen) -> str:
    """In words; ends with what a limit asks for."""
    why = f": {seen.stopped}" if seen.stopped and seen.state == "disarmed" else ""
    limit = f", to be disarmed after {seen.watch.limit} hits" if seen.watch.limit else ""
    return f"{seen.state}{why}{limit}"


def facts(seen: Seen) -> tuple[tuple[str, str, str], ...]:
    """Name, text and longer text of what changes while hits come in."""
    tally = seen.tally
    about = "" if seen.exact else "≈ "
    why = "" if seen.exact else "records; the timeline decodes which of them are hits"
    writer = seen.writer
    last = {"r": "last reader", "x": "last caller"}.get(seen.mode, "last writer")
    where, long = "none yet", ""
    if writer is not None:
        where = f"{writer.place}{f' in {writer.function}' if writer.function not in ('', '<module>') else ''}"
        long = f"{writer.where} on {writer.thread}, {clock(writer.when)}"
    return (
        ("value now", seen.value or "–", ""),
        ("hits", f"{about}{tally.hits:,}", why),
        ("rate", rate_text(seen.rate), "over the last second"),
        ("lost", f"{tally.lost:,}" + (" ⚠" if tally.lost else ""), "counted by the CPU and not recorded"),
        (last, where, long),
    )


def argument_reason(policy: str) -> tuple[str, str]:
    """What the policy's argument is, or why there is none; shortly, and at length."""
    return _ARGUMENT.get(policy, ("no value needed", f"{policy} takes none, return and goto do"))


def split_policy(policy: Policy) -> tuple[str, str]:
    """Kind and argument of a policy."""
    if isinstance(policy, Return):
        return "return", repr(policy.value)
    if isinstance(policy, Goto):
        return "goto", describe(policy).removeprefix("goto ")
    if policy in ("continue", "skip"):
        return str(policy), ""
    return describe(policy), ""


def rate_text(rate: float) -> str:
    """Hits a second in few characters."""
    if rate >= 9950:
        return f"{rate / 1000:,.0f}k/s"
    if rate >= 995:
        return f"{rate / 1000:.1f}k/s"
    return f"{rate:.0f}/s" if rate >= 1 or not rate else "< 1/s"


def clock(when: int) -> str:
    """Time of day in UTC, to the millisecond."""
    seconds, rest = divmod(when, 10**9)
    return f"{time.strftime('%H:%M:%S', time.gmtime(seconds))}.{rest // 10**6:03}"


def slots(glance: Glance) -> str:
    """How many debug registers are taken and free."""
    return f"slots: {glance.used} used, {glance.free} free"


def coverage(glance: Glance) -> tuple[str, tuple[str, ...]]:
    """What is seen, in one sentence, and what stands in the way."""
    cover = glance.coverage
    if not cover.watches:
        return cover.verdict, ()
    problems = _together([*cover.problems, *cover.refusals])
    if not any(seen.state == "armed" for seen in glance.watches):
        return "nothing is armed", tuple(problems)
    if not problems:
        return cover.verdict, ()
    reasons = f"{len(problems)} reasons" if len(problems) > 1 else "one reason"
    return f"coverage is not full, for {reasons}", tuple(problems)


def _together(problems: Sequence[str]) -> list[str]:
    """The same of several watches on one line."""
    names: dict[str, list[str]] = {}
    for problem in problems:
        name, colon, what = problem.partition(": ")
        names.setdefault(what if colon else problem, []).append(name if colon else "")
    return [f"{', '.join(filter(None, who))}: {what}" if any(who) else what for what, who in names.items()]


def status(glance: Glance, running: bool) -> str:
    """One line for people who cannot watch the numbers."""
    armed = sum(seen.state == "armed" for seen in glance.watches)
    watches = f"{len(glance.watches)} watch{'es' if len(glance.watches) != 1 else ''}, {armed} armed"
    rate = sum(seen.rate for seen in glance.watches)
    pace = f" at {rate_text(rate)}" if rate >= 1 else ""
    hits = f"{glance.hits:,} hit{'s' if glance.hits != 1 else ''}{pace}"
    return f"{watches}; {hits}; {slots(glance)}{'; a cell is running' if running else ''}"


def hit_rows(hits: Iterable[Hit]) -> list[tuple[str, ...]]:
    """The table of hits, latest first."""
    return [
        (clock(hit.when), hit.name, access_text(hit), change_text(hit), hit.place, hit.function, hit.thread)
        for hit in reversed(list(hits))
    ]


def access_text(hit: Hit) -> str:
    """What was done, and to which element."""
    return f"{hit.access} {hit.element}".strip() + ("" if hit.action == "continued" else f" ({hit.action})")


def change_text(hit: Hit) -> str:
    """Old and new value."""
    if hit.access == "execute":
        return ""
    if hit.access == "read":
        return value_text(hit.new)
    return f"{value_text(hit.old)} → {value_text(hit.new)}"


def hits_html(hits: Sequence[Hit], caption: str) -> str:
    """The last hits as a table."""
    return table_html(_HIT_HEAD, hit_rows(hits), caption)


def _static_rows(glance: Glance) -> list[tuple[str, ...]]:
    rows = []
    for seen in glance.watches:
        view = row(seen)
        texts = [text for _, text, _ in view.facts]
        policy = f"{view.policy} {view.argument}".strip()
        name = f"{view.name} ({view.place})"
        rows.append((name, view.state, MODES[view.mode], texts[0], policy, view.when, *texts[1:]))
    return rows


def static_html(glance: Glance, hits: Sequence[Hit], when: float) -> str:
    """What the panel says, as tables that need no kernel."""
    words, problems = coverage(glance)
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    items = "".join(f"<li>{html.escape(item)}</li>" for item in problems)
    return (
        '<div class="hww-static">'
        + table_html(_HEAD, _static_rows(glance), f"hwwatch panel as it was on {stamp}")
        + f"<p>{html.escape(slots(glance))}; {html.escape(words)}</p>"
        + (f"<ul>{items}</ul>" if items else "")
        + (hits_html(hits, f"last {len(hits)} hits, latest first") if hits else "")
        + "</div>"
    )


def folded(tables: str) -> str:
    """Tables to be unfolded: what the panel said when it was opened; the latest stand below it."""
    return (
        "<details><summary>hwwatch panel: live with a kernel; its last tables are below, its first are here"
        f"</summary>{tables}</details>"
    )


def static_text(glance: Glance, hits: Sequence[Hit]) -> str:
    """The same for a terminal."""
    words, problems = coverage(glance)
    lines = [table_text(_HEAD, _static_rows(glance))] if glance.watches else []
    lines.append(f"{slots(glance)}; {words}")
    lines += [f"  - {item}" for item in problems]
    if hits:
        lines += ["", f"last {len(hits)} hits, latest first", table_text(_HIT_HEAD, hit_rows(hits))]
    return "\n".join(lines)


def modes_text(mode: str) -> str:
    """A mode in words."""
    return _LONG[mode]
