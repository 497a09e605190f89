"""Places in objects that lend their memory: bytearray, memoryview, array, mmap, shared memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from hwwatch.errors import TargetError
from hwwatch.targets.arrays import Grid, axes_of, grid_of, grid_target
from hwwatch.targets.model import Target


def lends_memory(obj: object) -> bool:
    """Whether ``obj`` has the buffer protocol."""
    try:
        memoryview(obj).release()  # type: ignore[arg-type]
    except (TypeError, BufferError, ValueError):
        return False
    return True


def buffer_grid(obj: Any, what: str) -> tuple[Grid, object]:
    """Geometry of a buffer, and the object to keep for it.

    The buffer is released before this returns: a bytearray can grow afterwards, a mapping can be
    closed. The owner of a memoryview is the object behind it, for the same reason.

    Raises
    ------
    TargetError
        The object is closed or released.
    """
    try:
        view = memoryview(obj)
    except (TypeError, BufferError, ValueError) as error:
        raise TargetError(f"cannot watch `{what}`: {error}.", slug="closed") from error
    with view:
        owner = view.obj if isinstance(obj, memoryview) and view.obj is not None else obj
        try:
            array = np.asarray(view)
        except (ValueError, RuntimeError):
            array = np.frombuffer(view, np.uint8)  # a format that NumPy cannot read: plain bytes
        grid = grid_of(array)
        copied = array.flags.owndata
        del array
    if copied:
        raise TargetError(
            f"cannot watch `{what}`: NumPy copies {type(obj).__name__} instead of viewing it.",
            hint='Cast it to bytes first: `memoryview(x).cast("B")`.',
            slug="copy",
        )
    return grid, owner


def buffer_target(obj: Any, what: str, *, name: str | None = None) -> Target:
    """Target for all bytes of a buffer, one value for each of its items."""
    grid, owner = buffer_grid(obj, what)
    hint = 'Watch a few bytes of it: `hwwatch.locate("b[0:8]")`, or `memoryview(b)[0:8]`.'
    return grid_target(grid, what, name=name, owner=owner, note=_note(owner), hint=hint)


def buffer_item(obj: Any, key: object, what: str, *, name: str | None = None) -> Target:
    """Target for ``obj[key]``, where key is an integer, a slice, or a tuple of them."""
    grid, owner = buffer_grid(obj, what)
    axes = axes_of(key, grid.shape, what)
    return grid_target(grid, what, name=name, owner=owner, note=_note(owner), axes=axes)


def unwrap(obj: Any, what: str) -> Any:
    """What multiprocessing's wrappers hold: ``.buf`` of SharedMemory, ``get_obj()`` of Array and Value.

    Any other object is returned as it is.
    """
    module = type(obj).__module__
    if module == "multiprocessing.shared_memory" and hasattr(obj, "buf"):
        if obj.buf is None:
            raise TargetError(f"cannot watch `{what}`: the shared memory is closed.", slug="closed")
        return obj.buf
    if module == "multiprocessing.sharedctypes" and hasattr(obj, "get_obj"):
        return obj.get_obj()
    return obj


def _note(owner: object) -> str:
    if type(owner).__name__ in ("bytearray", "array"):
        kind = type(owner).__name__
        return f"resizing the {kind} may move its memory; the watch is then paused, `w.retarget()` follows"
    return ""
