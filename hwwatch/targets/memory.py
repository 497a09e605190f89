"""Is there memory at an address, and the words for a place that cannot be watched."""

from __future__ import annotations

import numpy as np

from hwwatch.errors import TargetError
from hwwatch.letters import plural
from hwwatch.targets.model import MAX_BYTES

# User addresses end here even with 5-level paging (Linux Documentation/arch/x86/x86_64/mm.rst).
_KERNEL_HALF = 1 << 63


def check_mapped(address: int, nbytes: int, what: str, need: str = "r") -> None:
    """Make sure that every page of ``[address, address + nbytes)`` is mapped with the right ``need``.

    Parameters
    ----------
    address, nbytes : int
        In bytes.
    what : str
        The place as the user named it, for the message.
    need : {"r", "x"}
        Permission that the mapping must have.

    Raises
    ------
    TargetError
        Nothing is mapped there, or only without that permission. A place that was freed but is
        still mapped cannot be told from one in use.
    """
    where = f"cannot watch `{what}` ({plural(nbytes, 'byte')} at {address:#x})"
    if address == 0:
        raise TargetError(f"cannot watch `{what}`: it is a NULL pointer.", hint="Set it first.", slug="null")
    if address < 0 or address + nbytes > _KERNEL_HALF:
        raise TargetError(f"{where}: that is no address of this process.", slug="unmapped")
    at = address
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            span, permissions = line.split(maxsplit=2)[:2]
            low, high = (int(part, 16) for part in span.split("-"))
            if low > at:
                break
            if at >= high:
                continue
            if need not in permissions:
                verb = "readable" if need == "r" else "executable"
                raise TargetError(f"{where}: the memory is not {verb} ({permissions}).", slug="unmapped")
            at = high
            if at >= address + nbytes:
                return
    raise TargetError(
        f"{where}: no memory is mapped at {at:#x}.",
        hint="Check the address; freed memory cannot be watched.",
        slug="unmapped",
    )


def too_large(what: str, nbytes: int, hint: str = "") -> TargetError:
    """Error for a place of ``nbytes`` bytes that no set of debug registers can hold."""
    return TargetError(
        f"cannot watch `{what}`: {nbytes:,} bytes asked, 4 slots hold {MAX_BYTES} (4 x 8 aligned bytes).",
        hint=hint or "Watch one element or a short slice, such as `x[3]` or `x[2:6]`.",
        slug="too-large",
    )


def empty(what: str) -> TargetError:
    """Error for a place that has no bytes."""
    return TargetError(
        f"cannot watch `{what}`: it has no bytes.", hint="Choose a place that is not empty.", slug="empty"
    )


def reason(error: BaseException) -> str:
    """What an exception says, type first, on one line of at most 200 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:197] + "..."


def a_kind(obj: object) -> str:
    """Type of an object with its article: ``"an int"``, ``"a list"``."""
    name = type(obj).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def raw_dtype(nbytes: int) -> np.dtype[np.generic]:
    """How raw memory is shown: an unsigned integer of 1, 2, 4 or 8 bytes, else bytes (void)."""
    return np.dtype(f"u{nbytes}" if nbytes in (1, 2, 4, 8) else f"V{nbytes}")
