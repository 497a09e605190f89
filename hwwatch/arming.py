"""Before a watch can be armed: does it fit, what does it need, who is in the way?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hwwatch import native, words
from hwwatch.errors import NoSlotError, TargetError
from hwwatch.letters import plural
from hwwatch.native import lib
from hwwatch.processes import tracers
from hwwatch.targets import Target, cover_pieces, split_pieces, target_of
from hwwatch.targets.model import Piece
from hwwatch.types import MODES

if TYPE_CHECKING:
    from hwwatch.watchpoints import Watch

#: Debug registers of an x86 CPU (Intel SDM vol. 3B, 18.2: DR0 to DR3).
SLOTS = int(lib.HWW_MAX_PIECES)


def check_mode(mode: str) -> None:
    """Raise TargetError where there is no such mode."""
    if mode not in MODES:
        raise TargetError(f"mode {mode!r} is none of {', '.join(map(repr, MODES))}.", slug="mode")


def check_frames(frames: int) -> None:
    """Raise TargetError where so many Python frames cannot be kept."""
    if not isinstance(frames, int | np.integer) or isinstance(frames, bool):
        raise TargetError(f"stack={frames!r}: a number of frames is needed.", slug="stack")
    if not 0 <= frames <= lib.HWW_MAX_FRAMES:
        raise TargetError(f"stack={frames}: 0 to {lib.HWW_MAX_FRAMES} frames can be kept.", slug="stack")


def place_of(target: Any, mode: str, nbytes: int | None, name: str | None) -> Target:
    """The target that `mode` can watch, from whatever the user gave."""
    if mode == "x" and isinstance(target, int) and not isinstance(target, bool) and nbytes is None:
        nbytes = 1  # an instruction's first byte
    place = target if isinstance(target, Target) else target_of(target, nbytes=nbytes, name=name)
    if place.kind == "code" and mode != "x":
        raise TargetError(f"{place.name} is a function: its execution can be watched.", hint='Use mode "x".')
    if mode == "x" and place.kind != "code":
        from hwwatch.code.maps import Maps

        mapping = Maps.read().find(place.address)
        if mapping is None or not mapping.executable:
            raise TargetError(
                f'mode "x": {place.name} at {place.address:#x} is not in executable memory.',
                hint='For data use mode "w", "rw" or "r".',
            )
    return place


def pieces_of(place: Target, mode: str) -> tuple[Piece, ...]:
    """The debug registers' worth of bytes that cover a target; TargetError where 4 are not enough."""
    if mode == "x":
        return (Piece(place.address, 1),)
    pieces = cover_pieces(place.ranges, SLOTS)
    if not pieces:
        whole = [(start & ~7, (start + nbytes + 7 & ~7) - (start & ~7)) for start, nbytes in place.ranges]
        raise TargetError(
            f"cannot watch {place.name} ({plural(place.nbytes, 'byte')} at {place.address:#x}): it needs "
            f"{len(split_pieces(whole))} debug registers, the CPU has {SLOTS} of at most 8 aligned bytes.",
            hint="Watch an element or a shorter slice.",
            slug="too-large",
        )
    return pieces


def no_slot(watch: Watch, free: int, holders: Sequence[Watch]) -> NoSlotError:
    """The error for a watch that would fit, were enough registers free; names who holds them."""
    ours = ", ".join(f"{other.name} ({other.slots})" for other in holders) or "no watch of this process"
    foreign = SLOTS - free - sum(other.slots for other in holders)
    debuggers = tracers() if foreign > 0 else ()
    named = ", ".join(f"{process.name} (pid {process.pid})" for process in debuggers)
    unnamed = "a debugger that is gone, or by another program"
    if lib.hww_registers_poked():
        unnamed = "the ptrace backend or a debugger: once used, this thread keeps them from perf"
    others = f" and {foreign} by {named or unnamed}" if foreign > 0 else ""
    hint = "End what watches this one; after a debugger they are free in new threads and processes only."
    if holders:
        hint = f"Free one: `{_unwatch(holders[0])}`."
    if not holders and debuggers:
        hint = f"Detach {debuggers[0].name}, or delete watchpoints there."
    return NoSlotError(
        f"cannot watch {watch.name} ({plural(watch.nbytes, 'byte')} at {watch.address:#x}): needs "
        f"{watch.slots} of {SLOTS} debug registers, {free} free; taken by {ours}{others}.",
        hint=hint,
    )


def _unwatch(watch: Watch) -> str:
    """The command that frees its registers: the magic in IPython, else the call."""
    if getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)() is not None:
        return f"%unwatch {words.quoted(watch.name) or watch.id}"
    return f"hwwatch.unwatch({watch.name!r})"


def kernel_note(watch: Watch, kernel: bool, backend: str) -> str:
    """Whether accesses by the kernel are seen, in words for the coverage."""
    if watch.mode == "x":
        return "do not apply to code"
    if kernel:
        return "seen"
    if watch.kernel is False:
        return "not seen: kernel=False was asked for"
    if backend != "perf":
        return f"not seen: the {backend} backend cannot"
    return (
        f"not seen: kernel.perf_event_paranoid is {native.paranoid()}; "
        "`sudo sysctl kernel.perf_event_paranoid=1` would show them"
    )


def is_shared(place: Target) -> bool:
    """Whether other processes may write the bytes: then they share the last snapshot, too."""
    owner: Any = place.owner
    while isinstance(owner, np.ndarray) and not owner.flags.owndata and owner.base is not None:
        owner = owner.base
    if isinstance(owner, bytearray) or (isinstance(owner, np.ndarray) and owner.flags.owndata):
        return False
    from hwwatch.code.maps import Maps

    mapping = Maps.read().find(place.address)
    return mapping is not None and mapping.shared
