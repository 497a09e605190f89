"""Places in ctypes objects: instances, fields, array elements, what pointers point at.

C types become NumPy dtypes (structures by their fields and offsets), so that their values are
decoded as any array's are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np

from hwwatch.errors import TargetError
from hwwatch.targets.arrays import Grid, axes_of, grid_target
from hwwatch.targets.memory import check_mapped, raw_dtype, too_large
from hwwatch.targets.model import MAX_BYTES, Target

_Data = (ctypes._SimpleCData, ctypes.Structure, ctypes.Union, ctypes.Array, ctypes._Pointer)
RECORDS = (ctypes.Structure, ctypes.Union)
# Type codes of simple ctypes that hold an address (Modules/_ctypes/cfield.c), shown as integers.
_ADDRESS_CODES = "PzZ"


class Field(NamedTuple):
    """A field of a C structure: its dtype, offset in bytes, and the bits if it is a bit-field.

    A bit-field's dtype and offset are those of its storage unit, the integer that holds it.
    """

    dtype: np.dtype[Any]
    offset: int
    bits: int = 0


def is_ctypes(obj: object) -> bool:
    """Whether ``obj`` is a ctypes instance that has memory."""
    return isinstance(obj, _Data)


def is_pointer(obj: object) -> bool:
    """Whether ``obj`` is a typed ctypes pointer."""
    return isinstance(obj, ctypes._Pointer)


def has_field(obj: object, name: str) -> bool:
    """Whether a ctypes structure or union has the field, also by an anonymous member."""
    return any(member[0] == name for member in _members(type(obj)))


def record_dtype(fields: Iterable[tuple[str, Field]], nbytes: int) -> np.dtype[Any]:
    """Structured dtype of a C structure or union; bit-fields in one storage unit become ``"a|b"``."""
    names: list[str] = []
    found: list[Field] = []
    units: dict[tuple[int, np.dtype[Any]], int] = {}
    for name, field in fields:
        unit = (field.offset, field.dtype)
        if field.bits and unit in units:
            names[units[unit]] += f"|{name}"
            continue
        if field.bits:
            units[unit] = len(names)
        names.append(name)
        found.append(field)
    formats, offsets = [f.dtype for f in found], [f.offset for f in found]
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": nbytes})


def ctype_dtype(kind: Any) -> np.dtype[Any]:
    """NumPy dtype that decodes a ctypes type.

    Pointers and functions become their address (uint64), char arrays ``S``, wchar_t arrays ``U``.

    Raises
    ------
    TargetError
        ``py_object``, which is a pointer to a Python object.
    """
    if issubclass(kind, ctypes.Array):
        item, length = kind._type_, kind._length_
        if length and issubclass(item, ctypes.c_char | ctypes.c_wchar):
            return np.dtype(f"{'S' if issubclass(item, ctypes.c_char) else 'U'}{length}")
        return np.dtype((ctype_dtype(item), (length,)))
    if issubclass(kind, ctypes.Structure | ctypes.Union):
        fields = (
            (n, Field(ctype_dtype(t), offset, bits)) for n, t, offset, bits in _members(kind) if bits >= 0
        )
        return record_dtype(fields, ctypes.sizeof(kind))
    if not issubclass(kind, ctypes._SimpleCData):
        return np.dtype(np.uint64)
    code = kind._type_
    if code == "O":
        raise TargetError(
            f"cannot watch a {kind.__name__}: it is a pointer to a Python object.",
            hint="Watch C data, or the pointer's 8 bytes by address and nbytes=8.",
            slug="object",
        )
    if code in _ADDRESS_CODES:
        return np.dtype(np.uint64)
    if code == "u":
        return np.dtype("U1")
    if "complex" in kind.__name__:
        return np.dtype(f"c{ctypes.sizeof(kind)}")
    plain: np.dtype[Any] = np.dtype(kind)
    return plain


def ctypes_target(obj: Any, what: str, *, name: str | None = None, nbytes: int | None = None) -> Target:
    """Target for a ctypes instance: its own bytes, or for a pointer what it points at.

    Parameters
    ----------
    obj : ctypes instance
        Simple, array, structure, union or pointer.
    nbytes : int, optional
        For a pointer or ``c_void_p``: watch so many bytes at the address that it holds.

    Raises
    ------
    TargetError
        NULL or stray pointer, more than 32 bytes, ``py_object``.
    """
    note = ""
    pointer = isinstance(obj, ctypes._Pointer)
    if nbytes is not None and (pointer or isinstance(obj, ctypes.c_void_p)):
        address = ctypes.cast(obj, ctypes.c_void_p).value or 0
        note = "what the pointer points at now; it is not followed when it changes"
        return raw_target(address, nbytes, what, name=name, owner=obj, note=note)
    if pointer:
        if not obj:
            check_mapped(0, 1, what)
        note = "what the pointer points at now; it is not followed when it changes"
        obj = obj.contents
    elif isinstance(obj, ctypes._SimpleCData) and getattr(obj, "_type_", "") in _ADDRESS_CODES:
        note = "the pointer itself, not what it points at"
    if not obj._b_needsfree_:
        check_mapped(ctypes.addressof(obj), max(ctypes.sizeof(obj), 1), what)
    if ctypes.sizeof(obj) > MAX_BYTES:
        raise too_large(what, ctypes.sizeof(obj), _narrow(obj))
    whole = Grid(ctypes.addressof(obj), (), (), ctype_dtype(type(obj)))
    label = name or f"{type(obj).__name__}@{whole.address:#x}"
    return grid_target(whole, what, name=label, owner=obj, note=note or _bit_note(type(obj)), solid=True)


def ctypes_item(obj: Any, key: object, what: str, *, name: str | None = None) -> Target:
    """Target for ``array[key]`` or ``pointer[key]``, where key is an integer or a slice."""
    item = obj._type_
    size = ctypes.sizeof(item)
    note = ""
    if isinstance(obj, ctypes.Array):
        address = ctypes.addressof(obj)
        axes: Sequence[range | int] = axes_of(key, (len(obj),), what)
    else:
        address = ctypes.cast(obj, ctypes.c_void_p).value or 0
        axes = [pointer_span(key, what)]
        note = "what the pointer points at now; it is not followed when it changes"
    grid = Grid(address, (0,), (size,), ctype_dtype(item))
    target = grid_target(grid, what, name=name, owner=obj, note=note, axes=axes, solid=True)
    if note or not obj._b_needsfree_:
        check_mapped(target.address, target.nbytes, what)
    return target


def ctypes_field(obj: Any, field: str, what: str, *, name: str | None = None) -> Target:
    """Target for the named field of a structure or union.

    Raises
    ------
    TargetError
        No such field (with a close match), or too large.
    """
    members = {member[0]: member for member in _members(type(obj))}
    if field not in members:
        raise no_field(field, members, type(obj).__name__, what)
    _, kind, offset, bits = members[field]
    if bits < 0:
        raise TargetError(
            f"cannot watch `{what}`: ctypes itself misplaces a bit-field that follows one of a wider type.",
            hint="Watch the whole structure; Python 3.14 places it right.",
            slug="bit-field",
        )
    found = Field(ctype_dtype(kind), offset, bits)
    note = bit_note(found)
    if issubclass(kind, ctypes._Pointer):
        note = f"the pointer itself; what it points at is `{what}[0]`"
    if not obj._b_needsfree_:
        check_mapped(ctypes.addressof(obj), ctypes.sizeof(obj), what)
    grid = Grid(ctypes.addressof(obj) + found.offset, (), (), found.dtype)
    return grid_target(grid, what, name=name, owner=obj, note=note, path=field, solid=True)


def ctypes_member(obj: Any, field: str) -> Any:
    """``obj.field`` as an object on the same memory (ctypes itself copies char arrays out)."""
    if isinstance(obj, ctypes.Structure | ctypes.Union):
        for name, kind, offset, _ in _members(type(obj)):
            if name == field and issubclass(kind, ctypes.Array):
                return kind.from_buffer(obj, offset)
    return getattr(obj, field)


def check_followed(pointer: Any, key: object, what: str) -> None:
    """Make sure that ``pointer[key]`` can be read: ctypes itself would crash on a stray pointer."""
    size = ctypes.sizeof(pointer._type_)
    address = (ctypes.cast(pointer, ctypes.c_void_p).value or 0) if pointer else 0
    step = int(key) * size if isinstance(key, int | np.integer) else 0
    check_mapped(address + step if address else 0, max(size, 1), what)


def raw_target(
    address: int,
    nbytes: int,
    what: str,
    *,
    name: str | None = None,
    owner: object = None,
    note: str = "",
) -> Target:
    """Target for ``nbytes`` bytes at an address, shown as an unsigned integer or as bytes.

    Raises
    ------
    TargetError
        No such address, or not 1 to 32 bytes.
    """
    if nbytes <= 0:
        raise TargetError(f"cannot watch `{what}`: nbytes is {nbytes}.", hint=f"Use 1 to {MAX_BYTES}.")
    if nbytes > MAX_BYTES:
        raise too_large(what, nbytes, f"Use nbytes=1 to {MAX_BYTES}.")
    check_mapped(address, nbytes, what)
    grid = Grid(address, (), (), raw_dtype(nbytes))
    return grid_target(grid, what, name=name or f"{address:#x}", owner=owner, note=note)


def pointer_span(key: object, what: str) -> range:
    """Positions that an integer or ``[start:stop]`` selects behind a pointer, which has no length."""
    if isinstance(key, slice):
        start, stop, step = key.start or 0, key.stop, 1 if key.step is None else key.step
        if not all(isinstance(n, int | np.integer) for n in (start, stop, step)) or step == 0:
            raise TargetError(
                f"cannot watch `{what}`: a pointer's slice needs an end.", hint="Write `p[0:4]`."
            )
        return range(start, stop, step)
    if not isinstance(key, int | np.integer) or isinstance(key, bool):
        raise TargetError(f"cannot watch `{what}`: {key!r} is no index.", hint="Use an integer or a slice.")
    return range(int(key), int(key) + 1)


def no_field(field: str, fields: Iterable[str], kind: str, what: str, *, noun: str = "field") -> TargetError:
    """Error for a field (or other `noun`) that ``kind`` does not have, with the nearest name."""
    names = list(fields)
    near = get_close_matches(field, names, 1)
    hint = f"Did you mean `{near[0]}`?" if near else f"Its {noun}s: {', '.join(names[:20]) or 'none'}."
    return TargetError(f"cannot watch `{what}`: {kind} has no {noun} `{field}`.", hint=hint)


def bit_note(field: Field) -> str:
    """What to tell about a bit-field; empty for any other field."""
    size = field.dtype.itemsize
    return (
        f"bit-field: the {size} byte{'s' * (size > 1)} that hold{'s' * (size == 1)} it" if field.bits else ""
    )


# (name, type, offset, bits) of a structure's fields, base classes first, anonymous members' fields as
# its own. A bit-field that ctypes reads from the wrong byte has bits < 0.
def _members(kind: Any, origin: int = 0) -> Iterator[tuple[str, Any, int, int]]:
    for base in reversed(kind.__mro__):
        for entry in base.__dict__.get("_fields_", ()):
            name, inner = entry[0], entry[1]
            place = base.__dict__[name]
            if name in getattr(base, "_anonymous_", ()):
                yield from _members(inner, origin + place.offset)
                continue
            bits = entry[2] if len(entry) > 2 else 0
            # `size` of a bit-field packs width and first bit; 3.14 has an attribute for the latter.
            first = getattr(place, "bit_offset", place.size & 0xFFFF)
            misplaced = bits and first + bits > 8 * ctypes.sizeof(inner)
            yield name, inner, origin + place.offset, -bits if misplaced else bits


def _bit_note(kind: Any) -> str:
    if issubclass(kind, ctypes.Structure | ctypes.Union) and any(bits for *_, bits in _members(kind)):
        return "bit-fields are shown as the integer that holds them"
    return ""


def _narrow(obj: object) -> str:
    if isinstance(obj, ctypes.Array):
        return "Watch one element or a short slice of it, such as `x[3]` or `x[2:6]`."
    return 'Watch one field, such as `hwwatch.locate("s.field")`.'
