"""Policies: what the handler does before the thread goes on, resolved to what the core needs."""

from __future__ import annotations

import contextlib
import ctypes
import operator
import platform
import struct
import sys
from typing import Any, NamedTuple

import numpy as np

from hwwatch.errors import NotSupported, TargetError
from hwwatch.native import lib
from hwwatch.targets.model import Target
from hwwatch.types import Goto, Policy, Return

#: What all functions of ctypes are; its own module keeps the name private.
_CFuncPtr: Any = type(ctypes.pythonapi.PyGILState_GetThisThreadState).__mro__[1]
_MASK = (1 << 64) - 1
#: arch_prctl(2) ARCH_SHSTK_STATUS and its bit for user shadow stacks (Linux 6.6, asm/prctl.h).
_SHSTK_STATUS, _SHSTK_ENABLED = 0x5005, 1
_SYS_ARCH_PRCTL = 158
_SUCH_AS = 'Name a function, such as "libm.so.6!cos".'


class Resolved(NamedTuple):
    """A policy as the core takes it.

    Attributes
    ----------
    kind : int
        HWW_CONTINUE, HWW_SKIP, HWW_RETURN, HWW_GOTO or HWW_CALL.
    value : int
        Bits to return, address to go to, or address of the native function.
    return_float : int
        Size of a floating-point value to return; 0 for an integer.
    code : bytes
        The instruction at an execute watch, so that it can be skipped; empty for data.
    """

    kind: int
    value: int = 0
    return_float: int = 0
    code: bytes = b""


def resolve(policy: Policy, target: Target, mode: str) -> Resolved:
    """What the core is to do.

    Parameters
    ----------
    policy : "continue", "skip", Return, Goto, or a native function
        The last as a C function from ctypes or cffi, a numba cfunc, or an address.
    target : Target
    mode : {"w", "rw", "r", "x"}

    Raises
    ------
    NotSupported
        The policy is impossible for this mode or place; the message says why.
    TargetError
        No such policy or address.
    """
    code = _instruction(target.address) if mode == "x" else b""
    if policy == "continue":
        return Resolved(lib.HWW_CONTINUE, code=code)
    if policy == "skip":
        return _skip(target, mode, code)
    if isinstance(policy, Return):
        return _return(policy, target, mode, code)
    if isinstance(policy, Goto):
        return Resolved(lib.HWW_GOTO, _address(policy), code=code)
    if isinstance(policy, str):
        raise TargetError(
            f'policy {policy!r} is unknown; use "continue", "skip", hwwatch.Return(value), '
            "hwwatch.Goto(address) or a native function.",
            slug="policy",
        )
    return Resolved(lib.HWW_CALL, _function(policy), code=code)


def describe(policy: Policy) -> str:
    """A policy in few words, for `repr` and tables."""
    if isinstance(policy, str):
        return policy
    if isinstance(policy, Return):
        return f"return {policy.value!r}"
    if isinstance(policy, Goto):
        address = policy.address
        if isinstance(address, str):
            return f"goto {address}"
        return f"goto {hex(address) if _is_address(address) else _name(address)}"
    return f"native {_name(policy)}"


def _name(function: object) -> str:
    """One line for it, whatever it is."""
    return str(getattr(function, "__name__", None) or " ".join(repr(function).split()))


def _skip(target: Target, mode: str, code: bytes) -> Resolved:
    if mode == "r":
        raise NotSupported(
            'policy "skip" with mode "r": a read cannot be skipped, the trap comes after it.',
            hint='Mode "rw" undoes writes and lets reads pass.',
            slug="policy",
        )
    if mode == "x" and not code:
        raise NotSupported(
            f'policy "skip": the instruction at {target.address:#x} cannot be decoded.',
            hint='Use policy "continue", or watch another address.',
            slug="policy",
        )
    return Resolved(lib.HWW_SKIP, code=code)


def _instruction(address: int) -> bytes:
    """The bytes of the instruction at an address; empty where there is none."""
    from iced_x86 import Decoder

    from hwwatch.code.maps import read_code

    instruction = Decoder(64, read_code(address, 15), ip=address).decode()
    return read_code(address, instruction.len) if instruction else b""


def _return(policy: Return, target: Target, mode: str, code: bytes) -> Resolved:
    if mode != "x":
        raise NotSupported(
            f"policy {describe(policy)!r} with mode {mode!r}: only a called function can return.",
            hint='Watch the function with mode "x".',
            slug="policy",
        )
    from hwwatch.code.symbols import Symbols

    symbol = Symbols().lookup(target.address)
    if symbol.start is not None and symbol.start != target.address:
        raise NotSupported(
            f"policy {describe(policy)!r}: {target.address:#x} is not the entry of a function but inside "
            f"{symbol.name}; the return address is on top of the stack at the entry only.",
            hint=f"Watch {symbol.start:#x}.",
            slug="policy",
        )
    if _has_shadow_stack():
        raise NotSupported(
            f"policy {describe(policy)!r}: this process has a shadow stack, which allows no such return.",
            hint='Use policy "continue", or on_hit= to be told.',
            slug="policy",
        )
    value, size = _bits(policy.value, target.owner)
    return Resolved(lib.HWW_RETURN, value, size, code)


def _bits(value: Any, function: object) -> tuple[int, int]:
    """Register bits of a return value, and the size of a float (0: an integer), by the function's restype."""
    kind = _float_size(function)
    if hasattr(value, "__index__"):  # int, bool, NumPy integers
        value = operator.index(value)
    elif hasattr(value, "__float__") and not isinstance(value, (str, bytes)):
        value = float(value)
    else:
        raise TargetError(f"hwwatch.Return({value!r}): an int or a float can be returned.", slug="policy")
    if kind is None:
        kind = 8 if isinstance(value, float) else 0
    if kind == 8:
        return int.from_bytes(struct.pack("<d", value), "little"), 8
    if kind == 4:
        return int.from_bytes(struct.pack("<f", value), "little"), 4
    if isinstance(value, float):
        raise TargetError(
            f"hwwatch.Return({value!r}): the function returns an integer or a pointer.", slug="policy"
        )
    if not -(1 << 63) <= value <= _MASK:
        raise TargetError(f"hwwatch.Return({value!r}): does not fit 64 bits.", slug="policy")
    return value & _MASK, 0


def _float_size(function: object) -> int | None:
    """8 and 4 for a function that returns double and float, 0 for another, None where it does not say."""
    if type(function).__module__ == "_cffi_backend":
        import _cffi_backend

        result = _cffi_backend.FFI().typeof(function).result
        return {"double": 8, "float": 4}.get(result.cname, 0)
    if not isinstance(function, _CFuncPtr):
        return None
    restype: Any = function.restype
    if restype is ctypes.c_int:  # the default, which says nothing
        return None
    return {ctypes.c_double: 8, ctypes.c_float: 4}.get(restype, 0)


def _address(policy: Goto) -> int:
    from hwwatch.code.maps import Maps
    from hwwatch.code.symbols import Symbols

    address = policy.address
    if isinstance(address, str):
        try:
            address = int(address, 0)
        except ValueError:
            address = Symbols().resolve(str(address))
    elif _is_address(address):
        address = int(address)
    else:
        address = _entry(policy)
    mapping = Maps.read().find(address) if 0 <= address <= _MASK else None
    if mapping is None or not mapping.executable:
        raise NotSupported(
            f"policy {describe(policy)!r}: {address:#x} is not in executable memory.",
            hint=_SUCH_AS,
            slug="policy",
        )
    return address


def _is_address(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _entry(policy: Goto) -> int:
    """Where a function to go to begins."""
    from hwwatch.targets import target_of

    with contextlib.suppress(TargetError):
        target = target_of(policy.address)
        if target.kind == "code":
            return target.address
    raise TargetError(
        f"policy {describe(policy)!r}: an address, a symbol or a native function is needed.",
        hint=_SUCH_AS,
        slug="policy",
    )


def _function(policy: Any) -> int:
    from hwwatch.code.maps import Maps
    from hwwatch.targets import target_of

    thunks = getattr(policy, "_objects", None)
    if isinstance(policy, _CFuncPtr) and isinstance(thunks, dict):
        python = any(type(item).__name__ == "CThunkObject" for item in thunks.values())
    else:
        python = callable(policy) and not isinstance(policy, _CFuncPtr) and not hasattr(policy, "address")
        python = python and type(policy).__module__ != "_cffi_backend"
    if python or (type(policy).__module__ == "_cffi_backend" and " calling " in repr(policy)):
        raise NotSupported(
            f"policy {policy!r}: Python cannot run in the trap handler.",
            hint="Use on_hit= for Python, or a function written in C or a numba cfunc.",
            slug="policy",
        )
    try:
        address = policy if isinstance(policy, int) else target_of(policy).address
    except TargetError as error:
        raise TargetError(f"policy {policy!r} is no function: {error}", slug="policy") from error
    mapping = Maps.read().find(address) if 0 <= address <= _MASK else None
    if mapping is None or not mapping.executable:
        raise TargetError(f"policy {policy!r}: {address:#x} is not in executable memory.", slug="policy")
    return int(address)


def _has_shadow_stack() -> bool:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    features = ctypes.c_ulong(0)
    libc = ctypes.CDLL(None)
    refused = libc.syscall(_SYS_ARCH_PRCTL, _SHSTK_STATUS, ctypes.byref(features))
    return not refused and bool(features.value & _SHSTK_ENABLED)
