"""What is and what is not being seen. Zero hits with full coverage means zero accesses."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hwwatch.letters import plural
from hwwatch.names import thread_names
from hwwatch.processes import ASLEEP, alive_process, descendants, runs, started_programs, status_of

if TYPE_CHECKING:
    from hwwatch.watchpoints import Watch

_SIGTRAP_BIT = 1 << 4  # signal 5, in the hexadecimal masks of /proc/<pid>/status


@dataclass(frozen=True)
class Thread:
    """A thread of this process."""

    tid: int
    name: str
    blocks_sigtrap: bool
    pending_sigtrap: bool
    running: bool


def threads() -> list[Thread]:
    """All threads of this process, with what they do about SIGTRAP.

    Source: proc(5), fields SigBlk, SigPnd of /proc/self/task/*/status.
    """
    names = thread_names()
    found = []
    for tid, name in sorted(names.items()):
        masks = status_of(f"self/task/{tid}")
        if not masks:  # ended meanwhile
            continue
        found.append(
            Thread(
                tid,
                name,
                bool(int(masks.get("SigBlk", "0"), 16) & _SIGTRAP_BIT),
                bool(int(masks.get("SigPnd", "0"), 16) & _SIGTRAP_BIT),
                not masks.get("State", "S").startswith(ASLEEP),
            )
        )
    return found


def hits_on_their_way() -> bool:
    """Whether another thread, here or in a child process, may stand between a trap and its record.

    Such a thread is runnable, and waits for its turn, or for a page that the handler touches; one that sleeps
    interruptibly has been through the handler, and one that blocks SIGTRAP does not come to it.
    """
    own = threading.get_native_id()
    try:
        if any(t.running and not t.blocks_sigtrap for t in threads() if t.tid != own):
            return True
        return any(runs(pid) for pid in descendants(os.getpid()))
    except OSError:  # no descriptor is free: nothing can be looked at
        return False


@dataclass(frozen=True)
class Tally:
    """Hits of one watch, in numbers.

    ``counted == hits + filtered + lost`` always holds.

    Attributes
    ----------
    hits : int
        Rows in the timeline.
    counted : int
        Hits according to the CPU's counters: those recorded, left out and lost. An access that touches two
        pieces of one value counts once, one that touches two values of one piece twice, as their rows do.
    lost : int
        Counted and not recorded.
    filtered : int
        Not rows of the timeline: left out by mode, condition, a native function, or after the limit.
    late : int
        Delivered late: the rows say ``exact=False``.
    refused : int
        Hits on which the policy could not be carried out: the column ``action`` says what was done.
    dropped : int
        Lost because memory and spill file had no room for them.
    """

    hits: int = 0
    counted: int = 0
    lost: int = 0
    filtered: int = 0
    late: int = 0
    refused: int = 0
    dropped: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.hits + other.hits,
            self.counted + other.counted,
            self.lost + other.lost,
            self.filtered + other.filtered,
            self.late + other.late,
            self.refused + other.refused,
            self.dropped + other.dropped,
        )


@dataclass(frozen=True)
class WatchCoverage:
    """What one watch sees.

    Attributes
    ----------
    blind_threads : tuple of (tid, name, reason)
        Living threads whose accesses are not recorded, or only late.
    kernel, children : str
        In words.
    tally : Tally
    last_test : str
        When and how the last self-test went.
    notes : tuple of str
        What else may not be seen.
    refusal : str
        Why its policy was not always carried out, if so.
    """

    name: str
    number: int
    state: str
    backend: str
    threads_alive: int
    threads_armed: int
    blind_threads: tuple[tuple[int, str, str], ...]
    kernel: str
    children: str
    tally: Tally
    last_test: str
    notes: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def full(self) -> bool:
        """Whether zero hits would mean zero accesses, within the documented limits of the hardware."""
        return self.state == "armed" and not self.blind_threads and not self.tally.lost and not self.notes


@dataclass(frozen=True)
class Coverage:
    """What a session sees, watch by watch and in total.

    Attributes
    ----------
    watches : tuple of WatchCoverage
    handler : str
        Who owns SIGTRAP.
    frames : str
        Whether Python lines are read, or why not.
    slots_free : int
    unexplained : int
        Debug exceptions without a cause: writes among them were found by comparing, all else was not.
    problems : tuple of str
        Everything that stands between "no hits" and "no accesses".
    """

    watches: tuple[WatchCoverage, ...]
    handler: str
    frames: str
    slots_free: int
    unexplained: int = 0
    pid: int = field(default_factory=os.getpid)

    @property
    def problems(self) -> tuple[str, ...]:
        """One line each; empty when the coverage is full."""
        found = []
        if self.handler != "hwwatch" and any(w.state == "armed" for w in self.watches):
            found.append(f"SIGTRAP is handled by {self.handler}: hits do not reach hwwatch")
        if self.unexplained:
            found.append(
                f"{self.unexplained} traps came without a word on their cause, as virtual machines lose it "
                "now and then: they may have been accesses that left the value as it was"
            )
        if self.frames:
            found.append(f"Python lines are not read: {self.frames}")
        for watch in self.watches:
            if lost := watch.tally.lost:
                room = f" ({watch.tally.dropped} for want of room)" if watch.tally.dropped else ""
                were = f"{plural(lost, 'hit')} {'was' if lost == 1 else 'were'}"
                found.append(f"{watch.name}: {were} counted and not recorded{room}")
            if watch.state == "disarmed" and not watch.notes:
                continue
            found += [f"{watch.name}: thread {tid} ({name}) {why}" for tid, name, why in watch.blind_threads]
            if watch.kernel.startswith("not"):
                found.append(f"{watch.name}: kernel accesses are {watch.kernel}")
            found += [f"{watch.name}: {note}" for note in watch.notes]
        return tuple(found)

    @property
    def refusals(self) -> tuple[str, ...]:
        """What the watches' policies could not do; the hits were seen all the same."""
        return tuple(f"{watch.name}: {watch.refusal}" for watch in self.watches if watch.refusal)

    @property
    def full(self) -> bool:
        """Whether nothing stands in the way of seeing every access of the program's own code."""
        return any(watch.state == "armed" for watch in self.watches) and not self.problems

    @property
    def verdict(self) -> str:
        """What it comes to, in one line; where there are problems, the words before them."""
        if not self.watches:
            return "nothing is watched"
        if self.problems:
            return "not seen, or not exactly:"
        if not self.full:
            return "nothing is armed: accesses are not seen now"
        return "coverage is full: zero hits would mean zero accesses"

    @property
    def counted(self) -> int:
        """Hits counted, over all watches."""
        return sum(watch.tally.counted for watch in self.watches)

    @property
    def recorded(self) -> int:
        """Hits recorded, over all watches."""
        return sum(watch.tally.hits for watch in self.watches)

    @property
    def lost(self) -> int:
        """Hits counted and not recorded, over all watches."""
        return sum(watch.tally.lost for watch in self.watches)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `DataFrame.attrs` and JSON."""
        return {
            "full": self.full,
            "problems": list(self.problems),
            "refusals": list(self.refusals),
            "handler": self.handler,
            "slots_free": self.slots_free,
            "unexplained": self.unexplained,
            "counted": self.counted,
            "recorded": self.recorded,
            "lost": self.lost,
            "watches": [
                {
                    "name": w.name,
                    "id": w.number,
                    "state": w.state,
                    "backend": w.backend,
                    "threads_alive": w.threads_alive,
                    "threads_armed": w.threads_armed,
                    "blind_threads": [list(thread) for thread in w.blind_threads],
                    "kernel": w.kernel,
                    "children": w.children,
                    "counted": w.tally.counted,
                    "recorded": w.tally.hits,
                    "filtered": w.tally.filtered,
                    "lost": w.tally.lost,
                    "late": w.tally.late,
                    "refused": w.tally.refused,
                    "dropped": w.tally.dropped,
                    "last_test": w.last_test,
                    "notes": list(w.notes),
                }
                for w in self.watches
            ],
        }

    @staticmethod
    def from_dict(found: dict[str, Any]) -> Coverage:
        """The coverage that `to_dict` told, without its refusals and what it said of Python frames."""
        names = ("counted", "filtered", "lost", "late", "refused", "dropped")
        watches = []
        for w in found.get("watches", ()):
            tally = Tally(w.get("recorded", 0), **{name: w.get(name, 0) for name in names})
            blind = tuple((int(tid), str(name), str(why)) for tid, name, why in w.get("blind_threads", ()))
            watches.append(
                WatchCoverage(
                    w["name"],
                    w["id"],
                    w["state"],
                    w["backend"],
                    w["threads_alive"],
                    w["threads_armed"],
                    blind,
                    w["kernel"],
                    w["children"],
                    tally,
                    w["last_test"],
                    tuple(w.get("notes", ())),
                )
            )
        return Coverage(
            tuple(watches), found["handler"], "", found["slots_free"], int(found.get("unexplained", 0))
        )

    def of(self, names: Iterable[str]) -> Coverage:
        """Of these watches only."""
        wanted = set(names)
        return replace(self, watches=tuple(watch for watch in self.watches if watch.name in wanted))

    def __str__(self) -> str:
        lines = []
        for w in self.watches:
            tally = w.tally
            lines.append(
                f"{w.name}: {w.state} ({w.backend}); {w.threads_armed} of {w.threads_alive} threads; kernel "
                f"accesses {w.kernel}; {w.children}; {tally.counted} counted, {tally.hits} recorded, "
                f"{tally.filtered} filtered, {tally.lost} lost, {tally.late} late; {w.last_test}"
            )
        if len(self.watches) > 1:
            lines.append(f"in total: {self.counted} counted, {self.recorded} recorded, {self.lost} lost")
        lines.append(self.verdict)
        if self.watches:
            lines += [f"  - {problem}" for problem in self.problems]
        lines += self.refusals
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from hwwatch.displays import coverage_html

        return coverage_html(self)


def describe(
    watch: Watch,
    tally: Tally,
    alive: Sequence[Thread] | None = None,
    unarmed: Mapping[int, str] | None = None,
    missed: Iterable[str] = (),
) -> WatchCoverage:
    """What one watch sees now.

    `tally` is its figures, `alive` what `threads` has just said; `unarmed` the threads that it is blind to,
    and why; `missed` what else its backend has to tell.
    """
    alive = threads() if alive is None else alive
    unarmed = unarmed or {}
    blind: list[tuple[int, str, str]] = []
    if watch.armed and watch.backend.startswith("perf"):
        blind = [
            (t.tid, t.name, "blocks SIGTRAP: its hits are counted, and recorded late or not at all")
            for t in alive
            if t.blocks_sigtrap
        ]
    blind += [(t.tid, t.name, unarmed[t.tid]) for t in alive if t.tid in unarmed]
    notes = list(missed)
    if watch.armed and not watch.enabled:
        notes.append("paused")
    if watch.stopped:
        notes.append(watch.stopped)
    if watch.armed:
        notes += [note for note in (watch.home.trouble, watch.home.renamed, watch.home.blind) if note]
    if watch.unsure_threads:
        notes.append(
            f"{watch.unsure_threads} threads waited too long for CPU or disk while it was armed: others "
            "that they may have been creating just then are not watched"
        )
    if watch.parent and watch.backend.startswith("perf") and not alive_process(watch.parent):
        notes.append(
            f"process {watch.parent}, which had armed it, has ended, and with it what its children had "
            "inherited: they see nothing any more; `w.enabled = True` arms it here"
        )
    if watch.gap:
        notes.append(
            "its mode was changed with all debug registers taken, and not all threads and forked children "
            "could be held still for it: accesses of that moment may have been missed"
        )
    children = "children not followed"
    if watch.follow_fork:
        children = "forked children followed, programs that are started not"
    if watch.shared:
        notes += [
            f"process {pid} ({name}) runs a program of its own: not followed, and may have this memory"
            for pid, name in started_programs()
        ]
    return WatchCoverage(
        watch.name,
        watch.id,
        watch.state,
        watch.backend,
        len(alive),
        len(alive) - len(unarmed.keys() & {t.tid for t in alive}) if watch.armed else 0,
        tuple(blind),
        watch.kernel_note,
        children,
        tally,
        watch.last_test,
        tuple(notes),
        _refusal(tally.refused, watch.mode),
    )


def _refusal(count: int, mode: str) -> str:
    if not count:
        return ""
    why = (
        "the code had changed since the policy was set, another watch at the instruction came first"
        if mode == "x"
        else "the bytes could not be put back, or their object had moved"
    )
    hits = f"{count} hits" if count > 1 else "1 hit"
    return f"on {hits} the policy was not carried out: {why}, or a native function crashed"
