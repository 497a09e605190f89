"""Who holds what watching needs: debug registers, SIGTRAP."""

from __future__ import annotations

import ctypes
import inspect
import signal
import tempfile
from dataclasses import dataclass
from typing import Any

from hwwatch import armory
from hwwatch.arming import SLOTS
from hwwatch.coverages import Thread, threads
from hwwatch.errors import HwwatchError
from hwwatch.native import lib
from hwwatch.processes import Process, perf_users, tracers
from hwwatch.types import Backend

_SIG_DFL, _SIG_IGN = 0, 1


@dataclass(frozen=True)
class SignalOwner:
    """Who gets SIGTRAP.

    Attributes
    ----------
    kind : {"hwwatch", "default", "ignored", "python", "native"}
    name : str
        The Python function with its file and line, or the C function with its library.
    """

    kind: str
    name: str = ""


@dataclass(frozen=True)
class Holders:
    """What is taken in this process, and by whom.

    Attributes
    ----------
    slots : int
        Debug registers of a thread.
    free : int or None
        Of the calling thread; None where that cannot be found out, for the reason `refusal`.
    ours : tuple of (str, int)
        Armed watches of this process, and how many each takes.
    tracers : tuple of Process
        Debuggers attached to this process.
    perf_users : tuple of Process
        Others that hold perf events, which may be such registers; looked for where some are missing.
    sigtrap : SignalOwner
    blocked : tuple of Thread
        Threads that block SIGTRAP.
    """

    slots: int
    free: int | None
    refusal: str
    ours: tuple[tuple[str, int], ...]
    tracers: tuple[Process, ...]
    perf_users: tuple[Process, ...]
    sigtrap: SignalOwner
    blocked: tuple[Thread, ...]

    @property
    def foreign(self) -> int:
        """Registers that others hold."""
        return max(0, self.slots - (self.slots if self.free is None else self.free) - self.held)

    @property
    def held(self) -> int:
        """Registers that watches of this process hold."""
        return sum(count for _, count in self.ours)

    @property
    def stolen(self) -> bool:
        """Watches are armed, and their hits go elsewhere."""
        return bool(self.ours) and self.sigtrap.kind != "hwwatch"


def read_holders(backend: Backend | None, refusal: str) -> Holders:
    """Look around, without taking or changing anything but for free registers, for a moment.

    Parameters
    ----------
    backend : Backend or None
        Whom to ask for free registers; None where none works, for the reason `refusal`.
    """
    free = None
    if backend is not None:
        try:
            free = backend.slots_free()
        except HwwatchError as error:
            refusal = str(error)
    ours = tuple((watch.name, watch.slots) for watch in armory.armed_watches())
    missing = free is not None and free + sum(count for _, count in ours) < SLOTS
    return Holders(
        SLOTS,
        free,
        "" if free is not None else refusal,
        ours,
        tracers(),
        perf_users() if missing else (),
        sigtrap_owner(),
        tuple(thread for thread in threads() if thread.blocks_sigtrap),
    )


class _Sigaction(ctypes.Structure):
    # glibc and musl on x86-64 alike: handler, 128 bytes of mask, flags, restorer.
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def _handler(number: int) -> int:
    found = _Sigaction()
    ctypes.CDLL(None).sigaction(number, None, ctypes.byref(found))
    return int(found.handler or 0)


def sigtrap_owner() -> SignalOwner:
    """Whose handler SIGTRAP has now; `signal.getsignal` does not know those of C."""
    if lib.hww_trap_owner() == lib.HWW_OWNER_US:
        return SignalOwner("hwwatch")
    address = _handler(signal.SIGTRAP)
    if address == _SIG_DFL:
        return SignalOwner("default")
    if address == _SIG_IGN:
        return SignalOwner("ignored")
    from hwwatch.code.symbols import Symbols

    with tempfile.TemporaryDirectory(prefix="hwwatch-") as folder:  # no cache is left behind
        symbol = Symbols(folder).lookup(address)
    python = signal.getsignal(signal.SIGTRAP)
    if callable(python) and address in _python_handlers():
        return SignalOwner("python", _python_name(python))
    return SignalOwner("native", f"{symbol.name} in {symbol.path or symbol.module}")


def _python_handlers() -> set[int]:
    """The C function that stands for all Python handlers: any signal with one has it."""
    numbers = [n for n in signal.valid_signals() if callable(signal.getsignal(n))]
    addresses = [_handler(n) for n in numbers]
    return {address for address in addresses if addresses.count(address) > 1} or set(addresses)


def _python_name(function: Any) -> str:
    name = getattr(function, "__qualname__", None) or repr(function)
    code = getattr(inspect.unwrap(function), "__code__", None)
    return name if code is None else f"{name} ({code.co_filename}:{code.co_firstlineno})"
