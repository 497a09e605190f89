"""`target_of`: from any watchable object to a Target."""

from __future__ import annotations

import types
from dataclasses import replace
from typing import Any

import numpy as np

from hwwatch.errors import TargetError
from hwwatch.targets import arrays, buffers, cdata, foreign, functions, tables
from hwwatch.targets.memory import a_kind
from hwwatch.targets.model import Target

_HOLDERS = (list, tuple, dict, set, frozenset)


def target_of(obj: Any, *, nbytes: int | None = None, name: str | None = None) -> Target:
    """Find the memory of an object.

    Parameters
    ----------
    obj : object
        NumPy array or view; ctypes instance or cffi cdata (of a pointer, what it points at now);
        buffer (bytearray, memoryview, array.array, mmap, shared memory); pandas Series or Index on
        NumPy memory; a raw address, with `nbytes`; a native function, or its name as
        ``"libm.so.6!cos"``; a Target, which passes through.
    nbytes : int, optional
        Number of bytes at an address or behind a pointer, 1 to 32. Values of 1, 2, 4 or 8 bytes
        are shown as unsigned integers, others as bytes.
    name : str, optional
        Name of the target; else one is made of type and address.

    Returns
    -------
    Target
        Keeps its owner alive, but no buffer export: a bytearray can still grow.

    Raises
    ------
    TargetError
        No memory, more than 32 bytes, a copied scalar, or a pointer to Python objects where a
        value was meant.

    Notes
    -----
    Safe from any thread. All bytes of a C structure are watched, padding included; of a NumPy
    record only its fields, since gaps in a dtype may be other fields.
    """
    if isinstance(obj, Target):
        return replace(obj, name=name) if name else obj
    what = name or _describe(obj)
    if nbytes is not None and (isinstance(nbytes, bool) or not isinstance(nbytes, int | np.integer)):
        raise TargetError(f"cannot watch `{what}`: nbytes is {nbytes!r}, not a number of bytes.")
    nbytes = None if nbytes is None else int(nbytes)  # NumPy's integers overflow
    if isinstance(obj, int | np.integer) and not isinstance(obj, bool) and nbytes is not None:
        return foreign.raw_target(int(obj), nbytes, name or f"{int(obj):#x}", name=name)
    if cdata.is_cdata(obj):
        return _sized(cdata.cdata_target(obj, what, name=name, nbytes=nbytes), nbytes, what)
    if foreign.is_ctypes(obj):
        return _sized(foreign.ctypes_target(obj, what, name=name, nbytes=nbytes), nbytes, what)
    return _sized(_plain_target(obj, what, name), nbytes, what)


def explain(obj: object, what: str) -> TargetError:
    """Error for a Python object that has no watchable memory, saying what to use instead."""
    kind = type(obj).__name__
    slug = "object"
    if isinstance(obj, np.generic):
        slug = "copy"
        text = f"it is a copied NumPy scalar ({kind} {obj}), not a place in an array."
        hint = 'Watch a view, `a[3:4]`, or `hwwatch.locate("a[3]")`.'
    elif isinstance(obj, str):
        text = f"the str {_describe(obj)} is an immutable object."
        place = obj if obj.isprintable() and 0 < len(obj) <= 40 and '"' not in obj else "a[3]"
        hint = f'For a place by expression: `hwwatch.locate("{place}")`; for a function: "library!symbol".'
    elif isinstance(obj, bool | int | float | complex | bytes | type(None)):
        text = f"{_describe(obj)} is {a_kind(obj)}, an immutable object: nothing ever writes into it."
        hint = "Keep the value in memory that is written, such as `x = np.zeros(1)`, and watch `x[0:1]`."
        if type(obj) is int:
            hint += " If it is an address, pass nbytes=, such as `nbytes=8`."
        if isinstance(obj, bytes):
            hint = "Use a bytearray; for C code that writes here anyway, its address with nbytes=."
    elif isinstance(obj, _HOLDERS):
        text = f"a {kind} holds pointers to objects, not values."
        hint = "Keep the values in a NumPy array, an array.array or a ctypes structure."
    elif isinstance(obj, types.FunctionType | types.MethodType):
        text = "a Python function is no machine code with a place to stop at."
        hint = 'Watch a C function, such as `libc.strlen` or "libm.so.6!cos".'
    else:
        text = f"{a_kind(obj)} does not lend its memory."
        hint = "Watch a NumPy array, ctypes or cffi object, buffer, or an address with nbytes=."
    return TargetError(f"cannot watch `{what}`: {text}", hint=hint, slug=slug)


def _plain_target(obj: Any, what: str, name: str | None) -> Target:
    if isinstance(obj, np.ndarray):
        return arrays.array_target(obj, what, name=name)
    if isinstance(obj, np.void) and (view := arrays.void_view(obj)) is not None:
        return arrays.array_target(view, what, name=name)
    if isinstance(obj, str) and "!" in obj:
        return functions.symbol_target(obj, name=name)
    if isinstance(obj, np.generic | str | bytes):
        raise explain(obj, what)
    if functions.is_function(obj):
        return functions.function_target(obj, what, name=name)
    if tables.is_pandas(obj):
        return tables.pandas_target(obj, what, name=name)
    inner = buffers.unwrap(obj, what)
    if foreign.is_ctypes(inner):
        return foreign.ctypes_target(inner, what, name=name)
    if isinstance(inner, memoryview) or buffers.lends_memory(inner):
        return buffers.buffer_target(inner, what, name=name)
    if (array := _array_of(obj)) is not None:
        return arrays.array_target(array, what, name=name)
    raise explain(obj, what)


# A tensor or other array object as a NumPy view; None where that is impossible or would copy.
def _array_of(obj: object) -> np.ndarray[Any, Any] | None:
    if isinstance(obj, type):
        return None
    try:
        if hasattr(obj, "__array_interface__"):
            view = np.asarray(obj)
            return None if view.flags.owndata else view
        if hasattr(obj, "__dlpack__"):
            return np.from_dlpack(obj)  # never copies unless asked to
    except (TypeError, ValueError, BufferError, RuntimeError):
        return None
    return None


# nbytes is for places without a size of their own.
def _sized(target: Target, nbytes: int | None, what: str) -> Target:
    # A pointer or address was given its size already; what is left has its own.
    if nbytes is None or nbytes == target.nbytes:
        return target
    raise TargetError(
        f"cannot watch `{what}`: nbytes={nbytes} is asked, but it has {target.nbytes} bytes of its own.",
        hint="Leave nbytes out (it is for addresses and pointers), or watch a slice or field.",
    )


def _describe(obj: object) -> str:
    if isinstance(obj, bool | int | float | str | bytes | type(None)):
        return repr(obj)[:40]
    return getattr(obj, "__name__", None) or f"<{type(obj).__name__}>"
