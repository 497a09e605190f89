"""The result: what was found, in data; then in words."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from hwwatch.diagnosis import remedies
from hwwatch.diagnosis.holders import Holders
from hwwatch.diagnosis.machines import Machine
from hwwatch.diagnosis.trials import Trial
from hwwatch.displays import table_html
from hwwatch.types import MODES


class Finding(NamedTuple):
    """One answer.

    Attributes
    ----------
    group, question : str
    ok : bool or None
        None where it is neither good nor bad.
    answer : str
    remedy : str
        Where it is not ok: the command or setting that would change it; empty where there is none.
    """

    group: str
    question: str
    ok: bool | None
    answer: str
    remedy: str = ""


_MARKS = {True: "ok", False: "no", None: "--"}
_MODE_WORDS = {
    "w": "watch writes",
    "rw": "watch reads and writes",
    "r": "watch reads",
    "x": "watch execution",
}
_SEEN_WORDS = {
    "kernel": "accesses by the kernel",
    "threads": "threads started later",
    "children": "forked children",
}
_HERE = "this process"


@dataclass(frozen=True)
class Diagnosis:
    """What this machine allows; true where watching works, in this process and now.

    Attributes
    ----------
    machine : Machine
    holders : Holders
    choice : Trial
        What ``backend="auto"`` takes: `found` has "backend" and "reason".
    trials : dict
        By backend and then by what was tried: `Trial`.
    here : Trial or None
        The test access in this process itself; None where it would have disturbed, see `untried`.
    untried : str
    alone : str
        Why trials could not be made in a process of their own; empty where they were.
    """

    machine: Machine
    holders: Holders
    choice: Trial
    trials: dict[str, dict[str, Trial]]
    here: Trial | None
    untried: str = ""
    alone: str = ""

    @property
    def backend(self) -> str:
        """The backend that watches take; empty where none works."""
        return str(self.choice.found.get("backend", ""))

    @property
    def works(self) -> bool:
        """Whether a watch of each mode sees what it should, in this process and now."""
        return not any(self._obstacles())

    def __bool__(self) -> bool:
        return self.works

    def _obstacles(self) -> Iterator[str]:
        """What stands in the way; the first is the one to tell."""
        if self.holders.stolen:
            yield self._sigtrap().answer
        if not self.choice.ok:
            yield self.choice.problem
        for mode in MODES:
            trial = self.trials.get(self.backend, {}).get(mode)
            if trial is not None and not trial.ok and trial.slug != "no-child":
                yield trial.problem
        if self.holders.free == 0 and self.holders.foreign:
            yield self._slots().answer
        if self.here is None:
            yield self.untried
        elif not self.here.ok and not (self.here.slug == "no-slot" and not self.holders.foreign):
            yield self.here.problem

    @property
    def verdict(self) -> str:
        """The answer in one line."""
        obstacle = next(self._obstacles(), None)
        if obstacle is not None:
            return f"Watching does not work here: {obstacle}"
        costs = [trial.cost for trial in self.trials.get(self.backend, {}).values() if trial.cost is not None]
        cost = f"; a hit costs {min(costs):.1f} to {max(costs):.1f} µs" if costs else ""
        return f"Watching works: backend {self.backend} ({self.choice.found['reason']}){cost}."

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All answers, in words."""
        found = [*self._machine(), *self._process()]
        for backend, trials in self.trials.items():
            found += self._backend(backend, trials)
        return tuple(found)

    # what there is

    def _machine(self) -> Iterator[Finding]:
        machine, group = self.machine, "machine"
        yield Finding(group, "kernel", None, f"{machine.kernel} on {machine.architecture}")
        yield Finding(group, "CPU", None, machine.cpu)
        yield Finding(group, "hypervisor", None, machine.hypervisor or "none")
        yield Finding(group, "container", None, machine.container or "none")
        yield self._seccomp()
        yield self._paranoid()
        able = ", ".join(machine.capabilities) or "none that matter here"
        within = ", in a user namespace only: perf events ignore them" if machine.user_namespace else ""
        yield Finding(group, "capabilities", None, f"{able}{within} (user {machine.user})")
        yield self._yama()
        yield Finding(
            group,
            "C library, Python",
            not machine.frames,
            f"{machine.libc}, {machine.python}; "
            + (f"lines are not read: {machine.frames}" if machine.frames else "lines are read"),
            "a CPython from 3.11 on" if machine.frames else "",
        )

    def _perf_refused(self) -> bool:
        trial = self.trials.get("perf", {}).get("w")
        return trial is not None and trial.slug in ("perf-blocked", "no-breakpoints")

    def _seccomp(self) -> Finding:
        kind = {None: "not in this kernel", 0: "no filter", 1: "strict"}.get(self.machine.seccomp, "a filter")
        if self.machine.seccomp != 2:
            return Finding("machine", "seccomp", None, kind)
        if self._perf_refused():
            return Finding(
                "machine",
                "seccomp",
                False,
                "a filter that refuses perf_event_open",
                remedies.for_seccomp(self.machine),
            )
        return Finding("machine", "seccomp", None, "a filter that lets perf_event_open pass")

    def _paranoid(self) -> Finding:
        machine, name = self.machine, "kernel.perf_event_paranoid"
        if machine.paranoid is None:
            return Finding("machine", name, False, "this kernel has no perf events", "a kernel that has them")
        if machine.monitors:
            return Finding("machine", name, True, f"{machine.paranoid}, which this user's rights override")
        if machine.may_perf:
            return Finding("machine", name, True, str(machine.paranoid))
        remedy = remedies.for_paranoid(machine, 2)
        return Finding("machine", name, False, f"{machine.paranoid}; perf needs 2 or less", remedy)

    def _yama(self) -> Finding:
        scope = self.machine.yama
        words = {
            None: "not in this kernel: processes of one user may attach to each other",
            0: "0: processes of one user may attach to each other",
            1: "1: only parents may attach, and whom a process names",
            2: "2: only CAP_SYS_PTRACE may attach",
            3: "3: nobody may attach",
        }
        guarded = "" if self.machine.dumpable else "; this process is not dumpable, so that none may"
        text = words.get(scope, str(scope)) + guarded
        trial = self.trials.get("ptrace", {}).get("w")
        if trial is None or trial.ok or scope not in (2, 3):
            return Finding("machine", "Yama", None, text)
        return Finding("machine", "Yama", False, text, remedies.for_yama(scope))

    def _process(self) -> Iterator[Finding]:
        holders = self.holders
        attached = ", ".join(map(str, holders.tracers))
        yield Finding(
            _HERE,
            "debugger attached",
            not attached,
            f"{attached}: it gets every SIGTRAP first" if attached else "none",
            remedies.for_swallowed(holders) if attached else "",
        )
        yield self._slots()
        yield self._sigtrap()
        blocked = ", ".join(f"{thread.name} ({thread.tid})" for thread in holders.blocked)
        yield Finding(
            _HERE,
            "threads that block SIGTRAP",
            not blocked,
            f"{blocked}: their hits are recorded late or not at all" if blocked else "none",
            remedies.for_blocked() if blocked else "",
        )
        if self.alone:
            yield Finding(_HERE, "process for trials", None, self.alone)
        if self.here is None:
            yield Finding(_HERE, "test access", None, f"not made: {self.untried}")
        else:
            yield Finding(
                _HERE,
                "test access",
                self.here.ok,
                self.here.problem or f"trapped (backend {self.backend})",
                "" if self.here.ok else remedies.for_trial(self.here, self.machine),
            )
        left = self.machine.file_limit - self.machine.open_files
        yield Finding(
            _HERE,
            "open files",
            left >= 64,
            f"{self.machine.open_files} of {self.machine.file_limit}; "
            "a watch of perf takes one for each thread and register",
            "" if left >= 64 else "ulimit -n 4096",
        )

    def _slots(self) -> Finding:
        holders = self.holders
        if holders.free is None:
            return Finding(_HERE, "debug registers", None, f"not known: {holders.refusal}")
        taken = [f"{name} ({count})" for name, count in holders.ours]
        if holders.foreign:
            taken.append(f"{holders.foreign} {self._foreign_holder()}")
        text = f"{holders.free} of {holders.slots} free" + (f"; taken: {', '.join(taken)}" if taken else "")
        if not holders.free and holders.foreign:
            text = f"all {holders.slots} debug registers are taken: {', '.join(taken)}"
        return Finding(
            _HERE,
            "debug registers",
            holders.free > 0,
            text,
            "" if holders.free else remedies.for_slots(holders),
        )

    def _foreign_holder(self) -> str:
        """Who has the registers that are not ours: a debugger; else one that holds perf events, perhaps."""
        if self.holders.tracers:
            return "by " + ", ".join(map(str, self.holders.tracers))
        elsewhere = self.trials.get(self.backend, {}).get("slots")
        where = ""
        if elsewhere is not None and elsewhere.found.get("free", self.holders.slots) < self.holders.slots:
            where = "in every process, as `perf record -a` takes them, "
        users = ", ".join(map(str, self.holders.perf_users))
        return f"{where}perhaps by {users}" if users else f"{where}by somebody unseen"

    def _sigtrap(self) -> Finding:
        holders = self.holders
        kind, name = holders.sigtrap.kind, holders.sigtrap.name
        who = {
            "hwwatch": "hwwatch's handler",
            "default": "the default action (SIG_DFL)",
            "ignored": "ignored (SIG_IGN)",
            "python": f"Python's handler: {name}",
            "native": f"a C handler: {name}",
        }[kind]
        if not holders.stolen:
            later = "" if kind in ("hwwatch", "default") else "; while watching, hwwatch's comes first"
            return Finding(_HERE, "SIGTRAP", True, who + later)
        names = ", ".join(watch for watch, _ in holders.ours)
        fate = "the next hit kills this process" if kind == "default" else "they see no hits"
        text = f"SIGTRAP was taken from the armed watches {names} by {who}: {fate}"
        return Finding(_HERE, "SIGTRAP", False, text, remedies.for_stolen())

    def _backend(self, backend: str, trials: dict[str, Trial]) -> Iterator[Finding]:
        group, told = f"backend {backend}", ""
        for mode in MODES:
            trial = trials[mode]
            if trial.ok:
                yield Finding(group, _MODE_WORDS[mode], True, f"a test access trapped; {_cost(trial)}")
                continue
            remedy = remedies.for_trial(trial, self.machine)
            yield Finding(group, _MODE_WORDS[mode], False, trial.problem, "" if remedy == told else remedy)
            told = remedy
        if not any(trials[mode].ok for mode in MODES):
            return  # of the rest nothing can be said
        for what, question in _SEEN_WORDS.items():
            if what in trials:
                trial = trials[what]
                help_ = remedies.for_kernel(backend, self.machine) if what == "kernel" else trial.hint
                yield Finding(group, question, trial.ok, trial.problem or "seen", "" if trial.ok else help_)
        if "speed" in trials and trials["speed"].ok:
            found = trials["speed"].found
            yield Finding(
                group,
                "other code meanwhile",
                None,
                f"stores take {found['within']:.2f} × their time, {found['across']:.2f} × where they cross "
                "cache lines",
            )

    # faces

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        holders = asdict(self.holders)
        for name in ("tracers", "perf_users"):
            holders[name] = [process._asdict() for process in getattr(self.holders, name)]
        return {
            "works": self.works,
            "verdict": self.verdict,
            "backend": self.backend,
            "reason": self.choice.found.get("reason", self.choice.problem),
            "machine": asdict(self.machine),
            "process": holders,
            "here": asdict(self.here) if self.here else None,
            "untried": self.untried or self.alone,
            "backends": {
                name: {what: asdict(trial) for what, trial in trials.items()}
                for name, trials in self.trials.items()
            },
            "findings": [finding._asdict() for finding in self.findings],
        }

    def __str__(self) -> str:
        lines, group = [self.verdict], ""
        for finding in self.findings:
            if finding.group != group:
                group = finding.group
                lines += ["", group]
            lines.append(f"  [{_MARKS[finding.ok]}] {finding.question}: {finding.answer}")
            if finding.remedy:
                lines.append(f"       → {finding.remedy}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [(f.group, f.question, _MARKS[f.ok], f.answer, f.remedy) for f in self.findings]
        head = ("", "question", "", "answer", "what would help")
        return f"<p><strong>{html.escape(self.verdict)}</strong></p>{table_html(head, rows)}"


def _cost(trial: Trial) -> str:
    return "its cost was not measured" if trial.cost is None else f"{trial.cost:.1f} µs a hit"
