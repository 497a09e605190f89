"""Places inside NumPy arrays, and the grid of values that all array-like places share."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from hwwatch.errors import TargetError
from hwwatch.targets.memory import empty, too_large
from hwwatch.targets.model import MAX_BYTES, Leaf, Target, merge_ranges

# Leaves are listed one by one only below this many bytes, overlaps counted each time
# (a sliding window shows the same 8 bytes often); above it a place is refused unseen.
_LISTED_BYTES = 4096


class Grid(NamedTuple):
    """Where an array's elements lie, without holding the array.

    ``address`` is that of element ``(0, …, 0)``, ``strides`` are in bytes. Keeping only these
    numbers lets a buffer be released at once, so that a bytearray can still grow.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


def grid_of(array: np.ndarray[Any, Any]) -> Grid:
    """Geometry of a NumPy array."""
    return Grid(array.ctypes.data, array.shape, array.strides, array.dtype)


def leaves_of(
    dtype: np.dtype[Any], address: int, index: tuple[int, ...] = (), path: str = ""
) -> Iterator[Leaf]:
    """List the plain values inside one item of ``dtype`` at ``address``.

    Parameters
    ----------
    dtype : numpy.dtype
        Plain, structured (its fields are the values) or with a sub-array.
    address : int
        Of the item.
    index : tuple of int
        The item's index in the array that holds it.
    path : str
        The item's field path, which replaces the index.
    """
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        for number, position in enumerate(np.ndindex(*shape)):
            place = address + number * base.itemsize
            if path:
                yield from leaves_of(base, place, (), path + _brackets(position))
            else:
                yield from leaves_of(base, place, index + position)
    elif dtype.names is not None:
        start = path or (_brackets(index) if index else "")
        for name in dtype.names:
            inner, offset = _field(dtype, name)
            yield from leaves_of(inner, address + offset, (), f"{start}.{name}" if start else name)
    else:
        yield Leaf(path or index or None, address, dtype)


def grid_target(
    grid: Grid,
    what: str,
    *,
    name: str | None = None,
    owner: object = None,
    note: str = "",
    axes: Sequence[range | int] | None = None,
    suffix: tuple[int, ...] = (),
    path: str = "",
    solid: bool = False,
    hint: str = "",
) -> Target:
    """Make the target for a whole grid, or for the part of it that ``axes`` selects.

    Parameters
    ----------
    grid : Grid
        The array; elements are counted in it, whatever part is selected.
    what : str
        The place as messages call it.
    name : str, optional
        The target's name; without it one is made of dtype and address.
    axes : sequence of range or int, optional
        Positions along each axis, in order.
    suffix : tuple of int
        Appended to every index (a data frame's column number).
    path : str
        Field path that stands for the index.
    solid : bool
        Watch padding between fields too: an item is then watched as a whole.
    hint : str
        What to say when the place is too large.

    Raises
    ------
    TargetError
        No bytes, more than 32 bytes, or elements that are pointers to Python objects.
    """
    dtype = grid.dtype
    _check_plain(dtype, what)
    if axes is None:
        axes = [range(length) for length in grid.shape]
    spans = [range(axis, axis + 1) if isinstance(axis, int) else axis for axis in axes]
    if dtype.itemsize == 0 or any(len(span) == 0 for span in spans):
        raise empty(what)
    # A broadcast axis repeats the same bytes: they count once.
    distinct = math.prod(len(s) for s, stride in zip(spans, grid.strides, strict=True) if stride)
    listed = distinct * _payload(dtype)
    if listed > _LISTED_BYTES:
        raise too_large(what, min(listed, distinct * dtype.itemsize), hint)
    if math.prod(len(span) for span in spans) * _payload(dtype) > _LISTED_BYTES:
        spans = [s if stride else s[:1] for s, stride in zip(spans, grid.strides, strict=True)]

    leaves: list[Leaf] = []
    ranges: list[tuple[int, int]] = []
    for index in itertools.product(*spans):
        address = grid.address + sum(i * stride for i, stride in zip(index, grid.strides, strict=True))
        found = list(leaves_of(dtype, address, index + suffix, path))
        leaves += found
        ranges += [(address, dtype.itemsize)] if solid else [(f.address, f.dtype.itemsize) for f in found]
    merged = merge_ranges(ranges)
    if not merged:
        raise empty(what)
    nbytes = sum(length for _, length in merged)
    if nbytes > MAX_BYTES:
        raise too_large(what, nbytes, hint)
    return Target(
        name=name or f"{_label(dtype)}@{merged[0][0]:#x}",
        ranges=merged,
        leaves=tuple(leaves),
        dtype=_common(leaves, dtype),
        owner=owner,
        note=note,
    )


def array_target(
    array: np.ndarray[Any, Any], what: str, *, name: str | None = None, note: str = ""
) -> Target:
    """Target for all elements of an array; a masked array's values without its mask."""
    if isinstance(array, np.ma.MaskedArray):
        if array is np.ma.masked:
            raise TargetError(
                f"cannot watch `{what}`: np.ma.masked is a constant, not a place in the array.",
                hint="Watch the values: `x.data[3]`.",
            )
        note = note or "the values of a masked array; its mask is not watched"
    plain = np.asarray(array)
    hint = "Watch one element or a short slice of it, such as `a[3]` or `a[2:6]`."
    return grid_target(grid_of(plain), what, name=name, owner=plain, note=note, hint=hint)


def array_item(
    array: np.ndarray[Any, Any], key: object, what: str, *, name: str | None = None, note: str = ""
) -> Target:
    """Target for ``array[key]``; elements carry their index in ``array``.

    Raises
    ------
    TargetError
        Index out of range, no such field, or a key that makes NumPy copy (lists, masks).
    """
    plain = np.asarray(array)
    if isinstance(array, np.ma.MaskedArray):
        note = note or "the values of a masked array; its mask is not watched"
    if isinstance(key, str) or (isinstance(key, list) and key and all(isinstance(k, str) for k in key)):
        return array_target(field_view(plain, key, what), what, name=name, note=note)
    axes = axes_of(key, plain.shape, what)
    hint = "Watch fewer elements."
    return grid_target(grid_of(plain), what, name=name, owner=plain, note=note, axes=axes, hint=hint)


def axes_of(key: object, shape: tuple[int, ...], what: str) -> list[range | int]:
    """Turn a basic index (integers, slices, ``...``, ``None``) into the positions along each axis."""
    parts = list(key) if isinstance(key, tuple) else [key]
    parts = [part for part in parts if part is not None]
    given = sum(1 for part in parts if part is not Ellipsis)
    if given > len(shape):
        raise TargetError(f"cannot watch `{what}`: {given} indices for an array with {len(shape)} axes.")
    if Ellipsis not in (part for part in parts if part is Ellipsis):
        parts.append(Ellipsis)
    at = next(i for i, part in enumerate(parts) if part is Ellipsis)
    parts[at : at + 1] = [slice(None)] * (len(shape) - given)
    return [_positions(part, n, axis, what) for axis, (part, n) in enumerate(zip(parts, shape, strict=True))]


def field_view(array: np.ndarray[Any, Any], key: str | list[str], what: str) -> np.ndarray[Any, Any]:
    """View of the named field or fields of a structured array."""
    names = array.dtype.names or ()
    for wanted in [key] if isinstance(key, str) else key:
        if wanted not in names:
            from difflib import get_close_matches

            near = get_close_matches(wanted, names, 1)
            hint = f"Did you mean `{near[0]}`?" if near else f"Its fields: {', '.join(names) or 'none'}."
            raise TargetError(f"cannot watch `{what}`: the array has no field `{wanted}`.", hint=hint)
    view: np.ndarray[Any, Any] = array[key]
    return view


def void_view(scalar: np.void) -> np.ndarray[Any, Any] | None:
    """0-d view of the array element that a structured scalar refers to; None if it is a copy.

    ``rec[2]`` is such a reference: NumPy gives structured scalars the array's own memory.
    """
    base = scalar.base
    if not isinstance(base, np.ndarray):
        return None
    view: np.ndarray[Any, Any] = np.ndarray((), scalar.dtype, buffer=scalar)
    return view if np.may_share_memory(view, base) else None


def _positions(part: Any, length: int, axis: int, what: str) -> range | int:
    if isinstance(part, slice):
        try:
            return range(*part.indices(length))
        except (TypeError, ValueError) as error:
            raise TargetError(f"cannot watch `{what}`: {error}.") from error
    try:
        if isinstance(part, bool | np.bool_):
            raise TypeError("a bool selects, it does not count")
        index = operator.index(part)
    except TypeError as error:
        if isinstance(part, float | str | bytes):
            raise TargetError(
                f"cannot watch `{what}`: {part!r} is no index.", hint="Use an integer."
            ) from error
        raise TargetError(
            f"cannot watch `{what}`: an index by {type(part).__name__} makes NumPy copy the elements.",
            hint="Use integers and slices, which give a view.",
            slug="copy",
        ) from error
    if not -length <= index < length:
        raise TargetError(
            f"cannot watch `{what}`: index {index} is out of range for axis {axis} with {length} elements."
        )
    return index % length


def _check_plain(dtype: np.dtype[Any], what: str) -> None:
    # Objects and StringDType elements are pointers: their bytes say nothing about the value.
    if not dtype.hasobject:
        return
    guilty = (
        ""
        if dtype.names is None
        else " in " + ", ".join(f"`{n}`" for n in dtype.names if _field(dtype, n)[0].hasobject)
    )
    raise TargetError(
        f"cannot watch `{what}`: dtype {_label(dtype)} holds pointers to Python objects{guilty}, not values.",
        hint="Watch a numeric array or field, or the pointer's 8 bytes by address and nbytes=8.",
        slug="object",
    )


def _payload(dtype: np.dtype[Any]) -> int:
    # Bytes in all leaves of one item, without listing them.
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return _payload(base) * math.prod(shape)
    if dtype.names is not None:
        return sum(_payload(_field(dtype, name)[0]) for name in dtype.names)
    return int(dtype.itemsize)


def _field(dtype: np.dtype[Any], name: str) -> tuple[np.dtype[Any], int]:
    # The stubs allow None, for dtypes without names; callers ask only for names that exist.
    fields: Any = dtype.fields
    return fields[name][0], fields[name][1]


def _common(leaves: Sequence[Leaf], whole: np.dtype[Any]) -> np.dtype[Any]:
    kinds = {leaf.dtype for leaf in leaves}
    return kinds.pop() if len(kinds) == 1 else whole


def _label(dtype: np.dtype[Any]) -> str:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return f"{_label(base)}{list(shape)}"
    return "struct" if dtype.names is not None else str(dtype)


def _brackets(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]"
