"""What this machine allows, and the command that would allow more."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any, NamedTuple

from hwwatch import interpreter, native
from hwwatch.backends.perf import PerfBackend
from hwwatch.coverages import threads
from hwwatch.errors import HwwatchError
from hwwatch.native import lib


class Finding(NamedTuple):
    """One answer: `ok`, what was found, and what would help where it is not ok."""

    question: str
    ok: bool
    answer: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings; true where watching works."""

    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return all(finding.ok for finding in self.findings if finding.question.startswith("watch"))

    def __str__(self) -> str:
        lines = []
        for question, ok, answer, remedy in self.findings:
            lines.append(f"[{'ok' if ok else 'no'}] {question}: {answer}")
            if remedy:
                lines.append(f"     → {remedy}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from hwwatch.displays import table_html

        rows = [(f.question, "ok" if f.ok else "no", f.answer, f.remedy) for f in self.findings]
        return table_html(("question", "", "answer", "what would help"), rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"works": bool(self), "findings": [finding._asdict() for finding in self.findings]}


def doctor() -> Diagnosis:
    """Try everything that hwwatch needs on this machine, for real, and say what fails and why.

    Returns
    -------
    Diagnosis
        True where watching works; prints as text, shows as a table in a notebook.
    """
    found = [Finding("kernel", True, f"{platform.system()} {platform.release()} on {platform.machine()}")]
    level = native.paranoid()
    found.append(
        Finding(
            "kernel.perf_event_paranoid",
            level is not None and level <= 2,
            "perf events are absent" if level is None else str(level),
            "" if level is not None and level <= 2 else "sudo sysctl kernel.perf_event_paranoid=2",
        )
    )
    backend = PerfBackend()
    found += [_canary(backend, mode, words) for mode, words in _MODES]
    found.append(_slots(backend))
    found.append(_kernel(backend))
    found.append(
        Finding(
            "Python lines",
            not interpreter.problem,
            interpreter.problem
            or f"read from {platform.python_implementation()} {platform.python_version()}",
        )
    )
    blocked = [f"{thread.tid} ({thread.name})" for thread in threads() if thread.blocks_sigtrap]
    found.append(
        Finding(
            "threads that block SIGTRAP",
            not blocked,
            ", ".join(blocked) or "none",
            "their hits are counted, and recorded late or not at all" if blocked else "",
        )
    )
    owner = lib.hww_trap_owner()
    found.append(
        Finding(
            "SIGTRAP",
            owner != lib.HWW_OWNER_OTHER,
            {lib.HWW_OWNER_US: "handled by hwwatch", lib.HWW_OWNER_OTHER: "taken by another handler"}.get(
                owner, "free"
            ),
            "the next watch takes it back" if owner == lib.HWW_OWNER_OTHER else "",
        )
    )
    from hwwatch.sessions import release_signals

    release_signals()
    return Diagnosis(tuple(found))


_MODES = (("w", "watch writes"), ("rw", "watch reads and writes"), ("x", "watch execution"))


def _canary(backend: PerfBackend, mode: str, words: str) -> Finding:
    try:
        backend.canary(mode, 8, False)
    except HwwatchError as error:
        return Finding(words, False, str(error), error.hint)
    return Finding(words, True, "a test access trapped")


def _slots(backend: PerfBackend) -> Finding:
    try:
        free = backend.slots_free()
    except HwwatchError as error:
        return Finding("free debug registers", False, str(error), error.hint)
    remedy = "" if free else "free some with hwwatch.unwatch(), or detach the debugger that holds them"
    return Finding("free debug registers", free > 0, f"{free} of {lib.HWW_MAX_PIECES}", remedy)


def _kernel(backend: PerfBackend) -> Finding:
    try:
        visible = backend.kernel_visible()
    except HwwatchError as error:
        return Finding("accesses by the kernel", False, str(error), error.hint)
    remedy = "" if visible else "sudo sysctl kernel.perf_event_paranoid=1"
    return Finding("accesses by the kernel", visible, "seen" if visible else "not seen", remedy)
