"""Which backend serves, and why."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from hwwatch.backends.fake import FakeBackend
from hwwatch.backends.perf import PerfBackend
from hwwatch.backends.ptrace import PtraceBackend
from hwwatch.errors import HwwatchError, NoSlotError
from hwwatch.types import Backend

_MAKERS: dict[str, Callable[[], Backend]] = {
    "perf": PerfBackend,
    "ptrace": PtraceBackend,
    "fake": FakeBackend,
}
NAMES = tuple(_MAKERS)


class Choice(NamedTuple):
    """A backend and the reason for it, in words for `repr` and coverage."""

    backend: Backend
    reason: str


_made: dict[str, Backend] = {}


def select(name: str = "auto") -> Choice:
    """The backend of that name; "auto" asks ``HWWATCH_BACKEND``, then takes what passes a test access.

    perf comes first, since the kernel counts its hits and arms new threads; then ptrace.

    Raises
    ------
    HwwatchError
        There is no backend of that name.
    PermissionRefused, NotSupported, CanaryError
        None of them works here; the message has the reason of each.
    """
    reason = "asked for"
    if name == "auto":
        name = os.environ.get("HWWATCH_BACKEND") or "auto"
        reason = "HWWATCH_BACKEND"
    if name == "auto":
        return _choose()
    if name not in NAMES:
        raise HwwatchError(
            f"there is no backend {name!r}; backends are auto, {', '.join(NAMES)}.",
            hint="Set HWWATCH_BACKEND to one of them, or unset it." if reason == "HWWATCH_BACKEND" else "",
            slug="backend",
        )
    return Choice(_backend(name), reason)


def _backend(name: str) -> Backend:
    if name not in _made:
        _made[name] = _MAKERS[name]()
    return _made[name]


def _refused(backend: Backend) -> HwwatchError | None:
    """What speaks against a backend; with all registers taken, it works."""
    try:
        backend.canary("w", 8, False)
    except NoSlotError:
        return None
    except HwwatchError as error:
        return error
    return None


def _choose() -> Choice:
    perf = _backend("perf")
    against = _refused(perf)
    if against is None:
        return Choice(perf, "default")
    ptrace = _backend("ptrace")
    against_ptrace = _refused(ptrace)
    if against_ptrace is None:
        return Choice(ptrace, f"perf: {_short(against)}")
    hints = dict.fromkeys(hint for hint in (against.hint, against_ptrace.hint) if hint)
    raise type(against)(
        f"{_bare(against)} And {_bare(against_ptrace)}", hint=" Or: ".join(hints), slug=against.slug
    )


def _bare(error: HwwatchError) -> str:
    text = str(error).removesuffix(f"[{error.slug}]").rstrip()
    return text.removesuffix(error.hint).rstrip()


def _short(error: HwwatchError) -> str:
    """The cause alone, for brackets: what comes after "… failed (EPERM: …): "."""
    text = _bare(error).rstrip(".")
    return text.partition("): ")[2] or text
