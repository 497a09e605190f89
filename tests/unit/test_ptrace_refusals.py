"""Why a process may not be traced, in words; the Yama module, which many kernels lack, is played."""

from __future__ import annotations

import errno

import pytest

from hwwatch.backends import ptrace
from hwwatch.errors import HwwatchError, NoSlotError, NotSupported, PermissionRefused


@pytest.mark.parametrize(
    ("scope", "slug", "text"),
    [
        (None, "ptrace-blocked", "sandbox"),
        (1, "ptrace-blocked", "sandbox"),
        (2, "ptrace-scope", "sudo sysctl kernel.yama.ptrace_scope=1"),
        (3, "ptrace-scope", "at boot only"),
    ],
)
def test_yama(monkeypatch: pytest.MonkeyPatch, scope: int | None, slug: str, text: str) -> None:
    monkeypatch.setattr(ptrace, "_yama", lambda: scope)
    with pytest.raises(PermissionRefused, match=text) as error:
        ptrace._check(-errno.EPERM, "arming")
    assert error.value.slug == slug
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("number", "kind", "slug"),
    [
        (errno.ENOSPC, NoSlotError, "no-slot"),
        (errno.ECHILD, HwwatchError, "ptrace-killed"),
        (errno.ENOSYS, NotSupported, "no-breakpoints"),
        (errno.EAGAIN, HwwatchError, "eagain"),
    ],
)
def test_each_failure_has_a_name(number: int, kind: type[HwwatchError], slug: str) -> None:
    with pytest.raises(kind) as error:
        ptrace._check(-number, "arming")
    assert error.value.slug == slug
    assert "\n" not in str(error.value)
