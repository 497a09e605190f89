"""What the panel says of a policy."""

from __future__ import annotations

import ctypes

import pytest

import hwwatch
from hwwatch.widgets.views import split_policy

ABS = ctypes.CDLL(None).abs


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("skip", ("skip", "")),
        (hwwatch.Return(4), ("return", "4")),
        (hwwatch.Goto(0x7F00), ("goto", "0x7f00")),
        (hwwatch.Goto("libm.so.6!sin"), ("goto", "libm.so.6!sin")),
        (hwwatch.Goto(ABS), ("goto", "abs")),
        (ABS, ("native abs", "")),
    ],
)
def test_kind_and_argument(policy: object, words: tuple[str, str]) -> None:
    assert split_policy(policy) == words
