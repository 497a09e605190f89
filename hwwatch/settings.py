"""Settings: all of a watch that may change while it is armed, as the core takes it in one piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwwatch.errors import NotSupported, TargetError
from hwwatch.native import ffi
from hwwatch.policies import Resolved
from hwwatch.targets.model import Piece
from hwwatch.types import Policy

if TYPE_CHECKING:
    from hwwatch.conditions import Condition
    from hwwatch.watchpoints import Watch


def check_name(name: object) -> None:
    """Raise TargetError where this cannot be a watch's name."""
    if not isinstance(name, str) or not name.strip():
        raise TargetError(f"name={name!r}: some text is needed.", slug="name")


def check_limit(limit: int | None) -> None:
    """Raise TargetError where a limit is no positive number of hits, or none that 64 bits hold."""
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise TargetError(f"limit={limit!r}: a number of hits from 1 on is needed.", slug="limit")
    if limit >= 1 << 64:
        raise TargetError("limit: at most 2**64 - 1 hits can be counted.", slug="limit")


def check_on_hit(on_hit: Any) -> None:
    """Raise TargetError where `on_hit` can be neither called nor broken into."""
    if on_hit is not None and on_hit != "break" and not callable(on_hit):
        raise TargetError(f'on_hit={on_hit!r}: a function or "break" is needed.', slug="on-hit")


def check_undo(watch: Watch, policy: Policy) -> None:
    """Raise NotSupported where stores would be undone in memory that may belong to somebody else by then."""
    if policy != "skip":
        return
    if not watch.hold:
        raise NotSupported(
            'policy "skip" with hold=False: once the object is freed, undoing stores would destroy what the '
            "memory is used for next.",
            hint='Use policy "continue", or keep the object: hold=True.',
            slug="policy",
        )
    if watch.home.gives_back:
        raise NotSupported(
            f'policy "skip" on a {watch.home.gives_back}, which may free that memory while it is watched: '
            "undoing what is stored there next could crash the program.",
            hint="Keep the values in a NumPy array, a ctypes object or an mmap.",
            slug="policy",
        )


def compile_for(watch: Watch, when: str | None, mode: str) -> Condition | None:
    """The condition for a watch's values; None without one."""
    if when is None:
        return None
    from hwwatch.conditions import compile_condition

    dtypes = [] if mode == "x" else [leaf.dtype for leaf in watch.target.leaves]
    return compile_condition(when, dtypes, code=mode == "x")


def settings_of(
    watch: Watch, policy: Resolved, condition: Condition | None, limit: int | None, notify: bool
) -> Any:
    """A ``struct hww_settings *``."""
    settings = ffi.new("struct hww_settings *")
    settings.policy = policy.kind
    settings.value = policy.value
    settings.return_float = policy.return_float
    settings.code_size = len(policy.code)
    ffi.buffer(settings.code)[: len(policy.code)] = policy.code
    settings.limit = limit or 0
    settings.notify = int(notify)
    settings.anchor, settings.anchored = watch.home.anchor
    if condition is not None:
        from hwwatch.attribution import leaf_offsets
        from hwwatch.conditions import fill

        # of code there are no bytes to compare: the snapshot holds its arguments
        leaves = () if watch.target.kind == "code" or watch.mode == "x" else watch.target.leaves
        offsets = leaf_offsets(watch.pieces, leaves)
        places = [(at, leaf.dtype.itemsize) for at, leaf in zip(offsets, leaves, strict=True)]
        fill(settings, condition, places)
    return settings


def wanted_bytes(piece: Piece, ranges: tuple[tuple[int, int], ...]) -> int:
    """Bit b: byte b of the piece is watched; the others are neighbours that it covers, too."""
    return sum(
        1 << b
        for b in range(piece.nbytes)
        if any(start <= piece.address + b < start + length for start, length in ranges)
    )
