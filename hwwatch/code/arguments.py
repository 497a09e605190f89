"""Arguments of a function at its entry, from the registers that the calling convention puts them in.

Source: System V Application Binary Interface, AMD64 supplement, 3.2.3: integers and pointers in rdi, rsi,
rdx, rcx, r8, r9, floating-point numbers in the low halves of xmm0 to xmm7, in order of the arguments of
each class.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Places of rdi, rsi, rdx, rcx, r8, r9 in the order of `Hits.registers`.
INTEGER = (5, 4, 3, 2, 8, 9)
FLOATS = 8

Column = tuple[str, NDArray[Any]]


def columns(function: object, registers: NDArray[np.uint64], xmm: NDArray[np.float64]) -> list[Column]:
    """Named columns of arguments, typed where the function says how.

    Parameters
    ----------
    function : object
        A ctypes function with `argtypes`, or anything else.
    registers : (n, 16) uint64
    xmm : (n, 8) float64
        Low halves of xmm0 to xmm7.

    Returns
    -------
    list of (name, (n,) array)
        ``arg0`` … by declared type; without one ``arg0`` to ``arg5``, the integer registers as uint64, and
        ``xmm0`` to ``xmm7``. Arguments that lie on the stack are left out.
    """
    declared = getattr(function, "argtypes", None)
    if declared is None:
        found = [(f"arg{i}", registers[:, place]) for i, place in enumerate(INTEGER)]
        return found + [(f"xmm{i}", xmm[:, i]) for i in range(FLOATS)]
    out: list[Column] = []
    integers = floats = 0
    for number, kind in enumerate(declared):
        if kind in (ctypes.c_double, ctypes.c_float):
            if floats < FLOATS:
                column = np.ascontiguousarray(xmm[:, floats])
                single = column.view(np.float32)[::2]
                out.append((f"arg{number}", single if kind is ctypes.c_float else column))
            floats += 1
        elif _in_one_register(kind):
            if integers < len(INTEGER):
                out.append((f"arg{number}", _integer(registers[:, INTEGER[integers]], kind)))
            integers += 1
        else:
            break  # a structure by value: which registers follow depends on what is in it
    return out


def _in_one_register(kind: Any) -> bool:
    return (
        isinstance(kind, type)
        and ctypes.sizeof(kind) <= 8
        and not issubclass(kind, (ctypes.Structure, ctypes.Union, ctypes.Array))
    )


def _integer(words: NDArray[np.uint64], kind: Any) -> NDArray[Any]:
    code = getattr(kind, "_type_", None)
    if isinstance(code, str) and code in "bBhHiIlLqQ?":
        dtype = np.dtype(kind)
        return np.asarray(np.ascontiguousarray(words).view(dtype)[:: 8 // dtype.itemsize])
    return words
