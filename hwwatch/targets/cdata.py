"""Places in cffi objects, found without cffi's Python part and without the user's ``ffi``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from hwwatch.errors import TargetError
from hwwatch.targets.arrays import Grid, axes_of, grid_target
from hwwatch.targets.foreign import Field, bit_note, no_field, pointer_span, raw_target, record_dtype
from hwwatch.targets.functions import code_target
from hwwatch.targets.memory import check_mapped, too_large
from hwwatch.targets.model import MAX_BYTES, Target

_FOLLOWS = "what the pointer points at now; it is not followed when it changes"


def is_cdata(obj: object) -> bool:
    """Whether ``obj`` is a cffi cdata object (its types live in ``_cffi_backend``)."""
    return type(obj).__module__ == "_cffi_backend" and "CData" in type(obj).__name__


def is_library(obj: object) -> bool:
    """Whether ``obj`` is a cffi library, of API mode (``Lib``) or from ``ffi.dlopen``."""
    kind = type(obj)
    return (kind.__module__, kind.__name__) in {("_cffi_backend", "Lib"), ("cffi.api", "FFILibrary")}


def owns(obj: Any) -> bool:
    """Whether the memory is freed with this cdata; cffi says so only in its repr ("owning 8 bytes")."""
    return " owning " in repr(obj)


def structure_behind(obj: Any) -> Any:
    """The structure that an owning pointer keeps alive, which frees the memory; None for all else."""
    kind = _ffi().typeof(obj)
    if kind.kind == "pointer" and kind.item.kind in ("struct", "union") and owns(obj):
        return obj[0]
    return None


def owned_span(obj: Any) -> tuple[int, int]:
    """Address and length of the memory that an owning cdata frees."""
    ffi = _ffi()
    kind = ffi.typeof(obj)
    size = ffi.sizeof(kind.item) if kind.kind == "pointer" else ffi.sizeof(obj)
    return _address(obj), size


def cdata_dtype(kind: Any) -> np.dtype[Any]:
    """NumPy dtype that decodes a cffi type; pointers and functions become uint64."""
    ffi = _ffi()
    if kind.kind in ("pointer", "function"):
        return np.dtype(np.uint64)
    if kind.kind == "array":
        if kind.item.cname == "char" and kind.length:
            return np.dtype(f"S{kind.length}")
        return np.dtype((cdata_dtype(kind.item), (kind.length or 0,)))
    if kind.kind in ("struct", "union"):
        members = ((n, Field(cdata_dtype(t), offset, bits)) for n, t, offset, bits in _members(kind))
        return record_dtype(members, ffi.sizeof(kind))
    size = ffi.sizeof(kind)
    if kind.kind == "enum":
        return np.dtype(f"{'i' if int(ffi.cast(kind, -1)) < 0 else 'u'}{size}")
    if kind.cname in ("char", "_Bool"):
        return np.dtype("S1" if kind.cname == "char" else np.bool_)
    if kind.cname in ("wchar_t", "char32_t"):
        return np.dtype("U1")
    if kind.cname in ("float", "double", "long double"):
        return np.dtype(f"f{size}")
    if "complex" in kind.cname.lower():
        return np.dtype(f"c{size}")
    return np.dtype(f"{'i' if int(ffi.cast(kind, -1)) < 0 else 'u'}{size}")


def cdata_target(obj: Any, what: str, *, name: str | None = None, nbytes: int | None = None) -> Target:
    """Target for a cdata: arrays and structures themselves, for pointers what they point at.

    Raises
    ------
    TargetError
        NULL, a cast value (``ffi.cast("int", 3)``: no place), ``void *`` or an opaque
        structure without ``nbytes``, more than 32 bytes.
    """
    kind = _ffi().typeof(obj)
    if kind.kind == "function":
        return code_target(_address(obj), what, name=name, owner=obj)
    if kind.kind not in ("pointer", "array", "struct", "union"):
        raise TargetError(
            f"cannot watch `{what}`: <{kind.cname}> is a copied value, not a place.",
            hint=f'Use a place, such as `ffi.new("{kind.cname} *")`.',
            slug="copy",
        )
    address = _address(obj)
    note = _FOLLOWS if kind.kind == "pointer" else ""
    if address == 0:
        check_mapped(0, 1, what)
    if nbytes is not None and kind.kind == "pointer":
        return raw_target(address, nbytes, what, name=name, owner=obj, note=note)
    if kind.kind == "pointer":
        kind = kind.item
        _check_sized(kind, what)
        if kind.kind == "function":
            return code_target(_address(obj[0]), what, name=name, owner=obj)
        size = _ffi().sizeof(kind)
    else:
        size = _ffi().sizeof(obj)
    if size > MAX_BYTES:
        raise too_large(
            what, size, "Watch one field or element, such as `s.field` or `x[3]`, by hwwatch.locate."
        )
    if kind.kind == "array" and kind.length is None:
        text = kind.item.cname == "char"
        dtype = np.dtype(f"S{len(obj)}") if text else np.dtype((cdata_dtype(kind.item), (len(obj),)))
    else:
        dtype = cdata_dtype(kind)
    check_mapped(address, max(size, 1), what)
    label = name or f"{kind.cname}@{address:#x}"
    return grid_target(Grid(address, (), (), dtype), what, name=label, owner=obj, note=note, solid=True)


def check_followed(obj: Any, key: object, what: str) -> None:
    """Make sure that ``pointer[key]`` or ``pointer.field`` can be read: cffi would crash on a stray one."""
    kind = _ffi().typeof(obj)
    if kind.kind == "pointer":
        _check_sized(kind.item, what)
        size = _ffi().sizeof(kind.item) if kind.item.kind != "function" else 1
        address = _address(obj)
        step = int(key) * size if isinstance(key, int | np.integer) else 0
        check_mapped(address + step if address else 0, max(size, 1), what)


def cdata_item(obj: Any, key: object, what: str, *, name: str | None = None, owner: object = None) -> Target:
    """Target for ``array[key]`` or ``pointer[key]``, where key is an integer or a slice."""
    kind = _ffi().typeof(obj)
    if kind.kind not in ("pointer", "array"):
        raise TargetError(f"cannot watch `{what}`: <{kind.cname}> has no elements.", hint="Watch a field.")
    address = _address(obj)
    if address == 0:
        check_mapped(0, 1, what)
    _check_sized(kind.item, what)
    axes = axes_of(key, (len(obj),), what) if kind.kind == "array" else [pointer_span(key, what)]
    note = _FOLLOWS if kind.kind == "pointer" else ""
    grid = Grid(address, (0,), (_ffi().sizeof(kind.item),), cdata_dtype(kind.item))
    target = grid_target(grid, what, name=name, owner=owner or obj, note=note, axes=axes, solid=True)
    check_mapped(target.address, target.nbytes, what)
    return target


def cdata_field(obj: Any, field: str, what: str, *, name: str | None = None, owner: object = None) -> Target:
    """Target for the named field of a structure, of a union, or behind a pointer to one."""
    kind = _ffi().typeof(obj)
    address = _address(obj)
    if kind.kind == "pointer":
        kind = kind.item
        if address == 0:
            check_mapped(0, 1, what)
    members = {m[0]: m for m in _members(kind)} if kind.kind in ("struct", "union") else {}
    if field not in members:
        raise no_field(field, members, f"<{kind.cname}>", what)
    _, inner, offset, bits = members[field]
    _check_sized(inner, what)
    found = Field(cdata_dtype(inner), offset, bits)
    note = bit_note(found)
    if inner.kind == "pointer":
        note = f"the pointer itself; what it points at is `{what}[0]`"
    grid = Grid(address + offset, (), (), found.dtype)
    target = grid_target(grid, what, name=name, owner=owner or obj, note=note, path=field, solid=True)
    check_mapped(target.address, target.nbytes, what)
    return target


def exported_target(library: Any, symbol: str, what: str, *, name: str | None = None) -> Target:
    """Target for a function or a global variable of a cffi library.

    ``lib.counter`` copies a global's value; its address shows the place.
    """
    try:
        place = library.__addressof__(symbol) if hasattr(library, "__addressof__") else None
        if place is None:
            place = _ffi().addressof(library, symbol)
    except (AttributeError, TypeError) as error:
        names = [n for n in dir(library) if not n.startswith("_")]
        raise no_field(symbol, names, "the library", what, noun="symbol") from error
    kind = _ffi().typeof(place)
    if kind.kind == "pointer" and kind.item.kind == "function":
        return code_target(_address(place[0]), what, name=name, owner=library)
    if kind.kind == "function":
        return code_target(_address(place), what, name=name, owner=library)
    return replace(cdata_target(place, what, name=name), owner=(library, place), note="")


# A backend FFI of our own: typeof, sizeof and cast work on every cdata, whoever declared it.
def _ffi() -> Any:
    import _cffi_backend

    return _cffi_backend.FFI()


def _address(obj: Any) -> int:
    ffi = _ffi()
    if ffi.typeof(obj).kind in ("struct", "union"):
        obj = ffi.addressof(obj)
    return int(ffi.cast("uintptr_t", obj))


def _check_sized(kind: Any, what: str) -> None:
    opaque = kind.kind in ("struct", "union") and kind.fields is None
    if kind.kind == "void" or opaque:
        raise TargetError(
            f"cannot watch `{what}`: the size of <{kind.cname}> is not known.",
            hint="Pass nbytes=, or cast the pointer to a type that has a size.",
            slug="opaque",
        )


# (name, type, offset, bits) of all fields; those of anonymous members (named "") as its own.
def _members(kind: Any, origin: int = 0) -> Iterator[tuple[str, Any, int, int]]:
    for name, field in kind.fields or ():
        if name:
            yield name, field.type, origin + field.offset, max(field.bitsize, 0)
        else:
            yield from _members(field.type, origin + field.offset)
