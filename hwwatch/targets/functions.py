"""Places in code: C functions by pointer, by name, or behind a builtin."""

from __future__ import annotations

import ctypes
import types
from typing import Any

import numpy as np

from hwwatch.errors import TargetError
from hwwatch.targets.memory import check_mapped
from hwwatch.targets.model import Target

_Function: Any = vars(ctypes)["_CFuncPtr"]  # the base of all ctypes functions, not in its type stubs


def code_target(
    address: int, what: str, *, name: str | None = None, owner: object = None, note: str = ""
) -> Target:
    """Target for the instruction at ``address``; watch it with mode ``"x"``.

    Raises
    ------
    TargetError
        NULL, or memory that is not executable (a data symbol taken for a function).
    """
    try:
        check_mapped(address, 1, what, need="x")
    except TargetError as error:
        if "not executable" not in str(error):
            raise
        raise TargetError(
            f"cannot watch `{what}` as a function: there is data at {address:#x}.",
            hint="For a variable of a library: `ctypes.c_int.in_dll(lib, name)`.",
            slug="not-code",
        ) from error
    return Target(
        name=name or what,
        ranges=((address, 1),),
        leaves=(),
        dtype=np.dtype(np.uint8),
        owner=owner,
        note=note,
        kind="code",
    )


def is_function(obj: object) -> bool:
    """Whether ``obj`` leads to native code: a ctypes function, a numba cfunc, or a builtin."""
    return isinstance(obj, (_Function, types.BuiltinFunctionType)) or _is_cfunc(obj)


def function_target(obj: Any, what: str, *, name: str | None = None) -> Target:
    """Target for the first instruction of a native function.

    A builtin such as ``math.cos`` stands for the C function that Python calls for it; a function
    of a cffi library in API mode for the C function, not for cffi's wrapper.
    """
    if isinstance(obj, _Function):
        address = ctypes.cast(obj, ctypes.c_void_p).value or 0
        return code_target(address, what, name=name or getattr(obj, "__name__", None), owner=obj)
    if _is_cfunc(obj):
        return code_target(int(obj.address), what, name=name or getattr(obj, "__name__", None), owner=obj)
    if type(obj.__self__).__name__ == "Lib" and type(obj.__self__).__module__ == "_cffi_backend":
        from hwwatch.targets.cdata import exported_target

        return exported_target(obj.__self__, obj.__name__, what, name=name or obj.__name__)
    # CPython Objects/methodobject.c: the ml_meth pointer.
    behind = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(
        ("PyCFunction_GetFunction", ctypes.pythonapi)
    )
    note = f"the C function that Python calls for {obj.__name__}"
    return code_target(behind(obj), what, name=name or obj.__name__, owner=obj, note=note)


def symbol_target(symbol: str, *, name: str | None = None) -> Target:
    """Target for a function named ``"libm.so.6!cos"`` (library, ``!``, symbol).

    Raises
    ------
    TargetError
        No such library is loaded, or it has no such function.
    """
    from hwwatch.code.symbols import Symbols

    return code_target(Symbols().resolve(symbol), symbol, name=name or symbol)


# numba is not imported: its compiled callbacks are known by what they offer.
def _is_cfunc(obj: Any) -> bool:
    # Asked of the type first: an instance's __getattr__ might do anything.
    offers = hasattr(type(obj), "address") and hasattr(type(obj), "ctypes")
    return offers and isinstance(obj.address, int) and isinstance(obj.ctypes, _Function)
