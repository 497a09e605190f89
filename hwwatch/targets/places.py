"""One step of an expression: an element or attribute of an object, as a place and never as a copy."""

from __future__ import annotations

import types
from array import array as array_type
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import numpy as np

from hwwatch.errors import TargetError
from hwwatch.targets import arrays, buffers, cdata, foreign, tables
from hwwatch.targets.memory import a_kind, reason
from hwwatch.targets.model import Target
from hwwatch.targets.objects import explain, target_of

_POINTERS = (
    "is a pointer to a Python object; assignment replaces the pointer and never writes into the object"
)


def item(base: Any, key: Any, what: str, *, owner: object = None) -> Target:
    """Target for ``base[key]``.

    Parameters
    ----------
    base, key : object
        Already evaluated.
    what : str
        The expression's text; the target's name.
    owner : object
        What else keeps the memory alive (cffi's parts do not keep the whole).

    Raises
    ------
    TargetError
        Out of range, no such key, a copy, or an element that is only a pointer to an object.
    """
    array = _as_array(base)
    if array is not None:
        return arrays.array_item(array, key, what, name=what)
    if isinstance(base, np.flatiter) and isinstance(key, int | np.integer):
        if not -base.base.size <= key < base.base.size:
            raise TargetError(
                f"cannot watch `{what}`: index {key} is out of range for {base.base.size} elements."
            )
        spot = np.unravel_index(key % base.base.size, base.base.shape)
        return arrays.array_item(base.base, tuple(map(int, spot)), what, name=what)
    if cdata.is_cdata(base):
        return cdata.cdata_item(base, key, what, name=what, owner=owner)
    inner = buffers.unwrap(base, what)
    if foreign.is_ctypes(inner) and hasattr(inner, "_type_") and not isinstance(inner._type_, str):
        return foreign.ctypes_item(inner, key, what, name=what)
    if foreign.is_ctypes(inner) or isinstance(base, str | bytes):
        hint = "Name a field." if foreign.is_ctypes(inner) else explain(base, what).hint
        raise TargetError(f"cannot watch `{what}`: {a_kind(base)} has no such places.", hint=hint)
    if tables.is_pandas(base):
        try:
            if getattr(base, "ndim", 1) == 2 and hasattr(base, "columns"):
                return tables.pandas_target(_twice(lambda: base[key], what), what, name=what)
            return tables.pandas_item(base, key, what, name=what)
        except Exception as error:
            raise _failed(what, error, key, [str(k) for k in getattr(base, "columns", ())]) from error
    if isinstance(inner, memoryview) or buffers.lends_memory(inner):
        return buffers.buffer_item(inner, key, what, name=what)

    def get() -> Any:
        try:
            return base[key]
        except Exception as error:
            raise _failed(
                what, error, key, [str(k) for k in base] if isinstance(base, dict) else []
            ) from error

    fixed = isinstance(base, dict | list | tuple)
    return _held(get, what, f"an element of {a_kind(base)}", fixed)


def attribute(base: Any, name: str, what: str, *, owner: object = None) -> Target:
    """Target for ``base.name``; parameters and errors as for `item`."""
    array = _as_array(base)
    if array is not None:
        if _is_record_field(base, name):
            return arrays.array_target(np.asarray(array)[name], what, name=what)
        view = getattr(base, name, None)
        if isinstance(view, np.ndarray):
            _check_shared(view, array, what)
            return arrays.array_target(view, what, name=what)
        if isinstance(base, np.recarray | np.record) and not hasattr(base, name):
            raise foreign.no_field(name, base.dtype.names or (), "the record", what)
    if cdata.is_cdata(base):
        return cdata.cdata_field(base, name, what, name=what, owner=owner)
    if cdata.is_library(base):
        return cdata.exported_target(base, name, what, name=what)
    inner = buffers.unwrap(base, what) if name in ("value", "raw") else base
    if foreign.is_ctypes(inner):
        return _ctypes_attribute(inner, name, what)

    def get() -> Any:
        try:
            return getattr(base, name)
        except Exception as error:
            raise _failed(what, error, name, dir(base)) from error

    holder = "a module's name" if isinstance(base, types.ModuleType) else f"an attribute of {a_kind(base)}"
    return _held(get, what, holder, _is_stored(base, name))


def item_value(base: Any, key: Any, what: str) -> Any:
    """``base[key]`` for a further step, on the same memory.

    Array elements stay views (0-d) instead of copied scalars. What would be a copy (a list of
    indices, a slice of a bytearray or ctypes array, a mask on a Series) raises TargetError.
    """
    _check_followed(base, key, what)
    array = _as_array(base)
    if array is not None:
        value = array[key]
        if isinstance(value, np.generic) and not array.dtype.hasobject:
            parts = key if isinstance(key, tuple) else (key,)
            return array[(*parts, ...)]
        if isinstance(value, np.ndarray) and not array.dtype.hasobject:
            _check_shared(value, array, what)
        return value
    if foreign.is_ctypes(base) and isinstance(key, slice):
        raise _copy(what)
    if isinstance(base, dict | list | tuple) or cdata.is_cdata(base) or foreign.is_ctypes(base):
        return base[key]
    return _twice(lambda: base[key], what)


def attribute_value(base: Any, name: str, what: str) -> Any:
    """``base.name`` for a further step, on the same memory; errors as for `item_value`.

    A property of an ordinary object is read twice, to see whether it makes something new each time.
    """
    if name == "contents" or cdata.is_cdata(base):
        _check_followed(base, 0, what)
    array = _as_array(base)
    if array is not None:
        if _is_record_field(base, name):
            return array[name]
        value = getattr(base, name)
        if isinstance(value, np.ndarray):
            _check_shared(value, array, what)
        return value
    if foreign.is_ctypes(base):
        return foreign.ctypes_member(base, name)
    if cdata.is_cdata(base) or _is_stored(base, name):
        return getattr(base, name)
    return _twice(lambda: getattr(base, name), what)


# A value that an ordinary object's own code gives: the same memory each time, or it is a copy.
def _twice(get: Callable[[], Any], what: str) -> Any:
    value = get()
    again = get()
    if again is value:
        return value
    old, new = _memory(value), _memory(again)
    if old is not None and new is not None:
        _check_shared(new, old, what)
    elif isinstance(value, bytearray | bytes | array_type):
        raise _copy(what)
    return value


# The array behind a value, where there is one to compare.
def _memory(value: Any) -> np.ndarray[Any, Any] | None:
    if isinstance(value, np.ndarray):
        return value
    if not tables.is_pandas(value) or not hasattr(value, "dtypes"):
        return None
    if getattr(value, "ndim", 1) == 2:
        value = value.iloc[:, 0] if value.shape[1] else None
    try:
        found: np.ndarray[Any, Any] = value.to_numpy(copy=False)
    except (TypeError, ValueError, AttributeError):
        return None
    return found


def _check_shared(value: np.ndarray[Any, Any], array: np.ndarray[Any, Any], what: str) -> None:
    if value.size and array.size and not np.may_share_memory(value, array):
        raise _copy(what)


def _copy(what: str) -> TargetError:
    return TargetError(
        f"cannot watch a place in `{what}`: that is a new copy each time.",
        hint="Name the object that it is made from, with one index or slice.",
        slug="copy",
    )


# In the instance or module itself: reading it runs no code that could make something new.
def _is_stored(base: Any, name: str) -> bool:
    return name in getattr(base, "__dict__", ())


# Reading through a stray pointer would crash the process.
def _check_followed(base: Any, key: Any, what: str) -> None:
    if foreign.is_pointer(base):
        foreign.check_followed(base, key, what)
    elif cdata.is_cdata(base):
        cdata.check_followed(base, key, what)


def _ctypes_attribute(base: Any, name: str, what: str) -> Target:
    names = [n for n in dir(base) if not n.startswith("_")]
    if isinstance(base, foreign.RECORDS):
        # A property or method of the class is not a field, but may lead to a place.
        if name in names and not foreign.has_field(base, name):
            return _held(lambda: getattr(base, name), what, f"an attribute of {a_kind(base)}", False)
        return foreign.ctypes_field(base, name, what, name=what)
    if name == "contents" and foreign.is_pointer(base):
        return target_of(base, name=what)
    if name in ("value", "raw") and name in names and not foreign.is_pointer(base):
        return target_of(base, name=what)
    raise foreign.no_field(name, names, type(base).__name__, what)


# What an ordinary object holds: watchable only if it has memory and is not made anew each time.
def _held(get: Callable[[], Any], what: str, holder: str, fixed: bool) -> Target:
    value = get() if fixed else _twice(get, what)
    try:
        if isinstance(value, str):
            raise explain(value, what)
        target = target_of(value, name=what)
        if not fixed and _memory(value) is None and target_of(get(), name=what).ranges != target.ranges:
            raise _copy(what)
        return target
    except TargetError as error:
        if error.slug != "object" or isinstance(value, np.ndarray):
            raise
        hint = explain(value, what).hint
        text = f"cannot watch `{what}`: {holder} {_POINTERS} (here {type(value).__name__})."
        raise TargetError(text, hint=hint, slug="object") from error


# NumPy arrays as they are, structured scalars as the 0-d view they refer to, else None.
def _as_array(base: Any) -> np.ndarray[Any, Any] | None:
    if isinstance(base, np.ma.MaskedArray):
        return np.asarray(base)
    if isinstance(base, np.ndarray):
        return base
    return arrays.void_view(base) if isinstance(base, np.void) else None


# Only records have fields as attributes, and what every array has comes first (numpy/_core/records.py).
def _is_record_field(base: Any, name: str) -> bool:
    records = isinstance(base, np.recarray | np.record)
    return records and name in (base.dtype.names or ()) and not hasattr(np.ndarray, name)


def _failed(what: str, error: Exception, wanted: object, known: list[str]) -> TargetError:
    if isinstance(error, TargetError):
        return error
    near = get_close_matches(str(wanted), known, 1) if wanted not in known else []
    hint = f"Did you mean `{near[0]}`?" if near else ""
    return TargetError(f"cannot watch `{what}`: {reason(error)}.", hint=hint)
