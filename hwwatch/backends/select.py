"""Which backend serves, and why."""

from __future__ import annotations

import os
from typing import NamedTuple

from hwwatch.backends.fake import FakeBackend
from hwwatch.backends.perf import PerfBackend
from hwwatch.errors import HwwatchError
from hwwatch.types import Backend

NAMES = ("perf", "fake")


class Choice(NamedTuple):
    """A backend and the reason for it, in words for `repr` and coverage."""

    backend: Backend
    reason: str


_made: dict[str, Backend] = {}


def select(name: str = "auto") -> Choice:
    """The backend of that name; "auto" asks ``HWWATCH_BACKEND``, then takes perf.

    Raises
    ------
    HwwatchError
        There is no backend of that name.
    """
    reason = "asked for"
    if name == "auto":
        name = os.environ.get("HWWATCH_BACKEND", "auto")
        reason = "HWWATCH_BACKEND"
    if name == "auto":
        name, reason = "perf", "default"
    if name not in NAMES:
        raise HwwatchError(
            f"there is no backend {name!r}; backends are auto, {', '.join(NAMES)}.", slug="backend"
        )
    if name not in _made:
        _made[name] = PerfBackend() if name == "perf" else FakeBackend()
    return Choice(_made[name], reason)
