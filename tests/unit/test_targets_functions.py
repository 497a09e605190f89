"""Functions: the address is the code's."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import pytest

from hwwatch.errors import TargetError
from hwwatch.targets import Target, locate, split_pieces, target_of

libc = ctypes.CDLL(None)


def address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def test_ctypes_functions_and_callbacks() -> None:
    for target in (target_of(libc.strlen), locate("libc.strlen")):
        assert target.kind == "code"
        assert target.ranges == ((address(libc.strlen), 1),)
        assert target.leaves == ()
        assert len(split_pieces(target.ranges)) == 1
    assert (target_of(libc.strlen).name, locate("libc.strlen").name) == ("strlen", "libc.strlen")
    callback = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 3)
    assert target_of(callback).address == address(callback)
    assert target_of(callback).owner is callback


def test_builtin_is_the_c_function_behind() -> None:
    target = target_of(math.cos)
    assert target.kind == "code"
    assert "C function" in target.note
    behind = ctypes.pythonapi.PyCFunction_GetFunction
    behind.restype, behind.argtypes = ctypes.c_void_p, [ctypes.py_object]
    assert target.address == behind(math.cos)
    assert target_of(math.sin).address != target.address


def test_compiled_callback_of_numba_s_kind() -> None:
    class Compiled:  # numba's CFunc offers these two; numba is too heavy to need here
        _callback = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 3)

        @property
        def ctypes(self) -> Any:
            return self._callback

        @property
        def address(self) -> int:
            return address(self._callback)

    compiled = Compiled()
    assert target_of(compiled).address == address(compiled.ctypes)
    assert target_of(compiled).kind == "code"


def test_symbol_by_name() -> None:
    libm = ctypes.CDLL("libm.so.6")
    expected = address(libm.cbrt)
    for target in (target_of("libm.so.6!cbrt"), locate("libm.so.6!cbrt"), locate("'libm.so.6!cbrt'")):
        assert isinstance(target, Target)
        assert (target.kind, target.address, target.name) == ("code", expected, "libm.so.6!cbrt")
    with pytest.raises(TargetError):
        locate("libm.so.6!no_such_function")


def test_refused() -> None:
    null = ctypes.CFUNCTYPE(ctypes.c_int)()
    with pytest.raises(TargetError, match="NULL"):
        target_of(null)
    with pytest.raises(TargetError, match=r"data at .*in_dll"):
        locate("libc.environ")
    with pytest.raises(TargetError, match="undefined symbol"):
        locate("libc.no_such_function")
    stray = ctypes.CFUNCTYPE(ctypes.c_int)(np.zeros(1).ctypes.data)
    with pytest.raises(TargetError, match="as a function"):
        target_of(stray)
    with pytest.raises(TargetError, match="Python function"):
        target_of(test_refused)
