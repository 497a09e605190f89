"""Where a target's memory is now: objects move, close and die while their bytes are watched."""

from __future__ import annotations

import array
import ctypes
import mmap
import threading
import time
import weakref
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from hwwatch.errors import TargetError
from hwwatch.targets import cdata, foreign
from hwwatch.targets.model import Target


class Span(NamedTuple):
    """The bytes that are an object's own."""

    address: int
    nbytes: int

    def holds(self, ranges: tuple[tuple[int, int], ...], shift: int = 0) -> bool:
        """Whether all of these bytes, shifted, are among them."""
        first, (last, nbytes) = ranges[0][0] + shift, ranges[-1]
        return self.address <= first and last + shift + nbytes <= self.address + self.nbytes


#: Objects that themselves move their memory.
_MOVING = (np.ndarray, bytearray, array.array, mmap.mmap)

_NO_PLACE = "pandas has no such place any more"


class Home:
    """The object whose memory a target lies in, and where that memory was at first.

    Parameters
    ----------
    target : Target
        Still with its owner.
    hold : bool
        Keep the object alive. Without it only a weak reference is kept, and its death is noted.
    span : Span, optional
        The object's memory at the time of the target; default: now.

    Attributes
    ----------
    died : int or None
        When the object began to die, ns on CLOCK_MONOTONIC: its memory is freed after that.
    blind : str
        Why its moves and its death cannot be noticed; empty where they can.

    Notes
    -----
    Nothing here exports a buffer for longer than it takes to read an address, and only of a memory mapping
    whose length has changed: a bytearray may grow meanwhile, a mapping be closed.
    """

    def __init__(self, target: Target, hold: bool, span: Span | None = None) -> None:
        self.hold, self.died, self.blind = hold, None, ""
        self._target = target if hold else replace(target, owner=None)
        self._last = ""
        self._said: set[str] = set()
        self._root: Any = None
        self._span: Span | None = None
        self._weak: weakref.ref[Any] | None = None
        if target.kind == "code" or target.owner is None:
            return
        root = root_of(target.owner)
        self._span = span or span_of(root)
        if self._span is None or not (self._span.holds(target.ranges) or isinstance(root, _MOVING)):
            self._span = None
            if not hold:
                self.blind = "the memory is not its object's own: when it is freed cannot be noticed"
            return
        if hold:
            self._root = root
            return
        try:
            self._weak = weakref.ref(root, self._note_death)
        except TypeError:
            kind = type(root).__name__
            self.blind = f"a {kind} tells nobody when it dies: neither that nor its moves can be noticed"

    died: int | None

    def _note_death(self, _: object) -> None:
        # Called before the memory is given back; from any thread, and amid anything.
        self.died = time.monotonic_ns()

    @property
    def gives_back(self) -> str:
        """The kind of object that frees its memory as soon as it grows; empty for others."""
        return type(self._root).__name__ if isinstance(self._root, bytearray | array.array) else ""

    @property
    def anchor(self) -> tuple[int, int]:
        """Where an object that can move keeps the address of its memory, and that address; else zeros."""
        root, span = self._root, self._span
        if span is None or not isinstance(root, _MOVING):
            return 0, 0
        words = np.frombuffer(ctypes.string_at(id(root), type(root).__basicsize__ & ~7), np.uint64)
        found = np.flatnonzero(words == span.address)
        return (id(root) + 8 * int(found[0]), span.address) if len(found) else (0, 0)

    @property
    def trouble(self) -> str:
        """What has become of the memory since, in words; empty while it is where it was.

        Places in pandas objects are looked up on the main thread only: the Series that this makes for a
        moment would have an assignment on another thread copy the values. Elsewhere the last answer stands.
        """
        if self.died is not None:
            return "its object is gone; hits since then are marked `after_free`"
        if self._target.again is not None:
            if threading.current_thread() is threading.main_thread():
                self._last = self._looked_up()
            return self._last
        return self._now()[1]

    def _now(self) -> tuple[Span | None, str]:
        """Where the object's memory is, None where that is nowhere; and what is wrong with that."""
        root, before = self._root if self.hold else self._weak and self._weak(), self._span
        if root is None or before is None:
            return before, ""
        kind = type(root).__name__
        if not before.holds(self._target.ranges):
            return None, f"the memory of its {kind} had moved before it was watched"
        try:
            now = span_of(root, before)
        except ValueError:
            now = None
        if now is None:
            return None, f"its {kind} was closed; the memory is no longer its own"
        if not now.holds(self._target.ranges, now.address - before.address):
            return None, f"its {kind} has become too short for it"
        return now, "" if now.address == before.address else f"the memory of its {kind} has moved"

    @property
    def remedy(self) -> str:
        """What helps where there is trouble, in words."""
        gone = self._last == _NO_PLACE if self._target.again is not None else self._now()[0] is None
        return "watch the place anew" if gone else "`w.retarget()` aims at where it is now"

    @property
    def renamed(self) -> str:
        """That the expression means another object by now, in words; empty while it does not."""
        name = self._target.bound() if self._target.bound is not None else ""
        return f"`{name}` is another object by now; the earlier one is watched" if name else ""

    def is_news(self, note: str) -> bool:
        """Whether this note has not been said yet; from now on it has."""
        new = bool(note) and note not in self._said
        self._said.add(note)
        return new

    def _looked_up(self) -> str:
        assert self._target.again is not None
        try:
            now = self._target.again()
        except ReferenceError:
            return ""  # the pandas object itself is gone; its values are here
        except Exception:
            return _NO_PLACE
        return "" if now.ranges == self._target.ranges else "pandas has moved the values"

    def leave(self) -> None:
        """Nothing is watched there any longer: keep nothing alive; when the object died stays known."""
        self._root = self._weak = None
        self._target = replace(self._target, owner=None, again=None, bound=None)

    def found(self, target: Target) -> tuple[Target, Home]:
        """The place where it is now, and a home for it; this home, where that is where it was.

        Parameters
        ----------
        target : Target
            As it was aimed at, with the owner where it is held.

        Raises
        ------
        TargetError
            It is nowhere: closed, too short, or gone.
        """
        if self.died is not None:
            raise TargetError(f"cannot retarget {target.name}: its object is gone.", slug="gone")
        if target.again is not None:
            try:
                place = replace(target.again(), name=target.name)
            except Exception as error:
                raise TargetError(f"cannot retarget {target.name}: {self._looked_up() or error}.") from error
            return (target, self) if place.ranges == target.ranges else (place, Home(place, self.hold))
        now, trouble = self._now()
        if not trouble:
            return target, self
        if now is None or self._span is None:
            raise TargetError(f"cannot retarget {target.name}: {trouble}.", slug="gone")
        owner = self._root if self.hold else self._weak and self._weak()
        place = shifted(replace(target, owner=owner), now.address - self._span.address)
        return place, Home(place, self.hold, now)


def shifted(target: Target, by: int) -> Target:
    """The same target so many bytes further on."""
    return replace(
        target,
        ranges=tuple((start + by, nbytes) for start, nbytes in target.ranges),
        leaves=tuple(leaf._replace(address=leaf.address + by) for leaf in target.leaves),
    )


def root_of(owner: Any) -> Any:
    """The object behind views of it: the array of a slice, the bytearray of a memoryview."""
    while True:
        inner: Any = None
        if isinstance(owner, np.ndarray):
            inner = owner.base
        elif isinstance(owner, memoryview):
            inner = owner.obj
        elif isinstance(owner, tuple) and owner:
            inner = owner[0]  # cffi: the whole comes first
        elif cdata.is_cdata(owner):
            inner = cdata.structure_behind(owner)
        elif foreign.is_ctypes(owner):
            inner = owner._b_base_ or _lender(owner)
        if inner is None:
            return owner
        owner = inner


# Whose buffer a ctypes object was made on (`from_buffer` keeps a memoryview among its `_objects`).
def _lender(obj: Any) -> Any:
    kept = obj._objects.values() if isinstance(obj._objects, dict) else ()
    views = [item for item in kept if isinstance(item, memoryview)]
    return views[0] if len(views) == 1 else None


def span_of(root: Any, before: Span | None = None) -> Span | None:
    """The bytes that are an object's own now; None where they are not known.

    Parameters
    ----------
    before : Span, optional
        An earlier answer.

    Raises
    ------
    ValueError
        The object is closed or released.
    """
    if isinstance(root, np.ndarray):
        return Span(root.__array_interface__["data"][0], root.size * root.itemsize)
    if isinstance(root, bytearray):
        return Span(_bytearray_address(root), len(root))
    if isinstance(root, array.array):
        return Span(root.buffer_info()[0], len(root) * root.itemsize)
    if isinstance(root, mmap.mmap):
        if before is not None and len(root) == before.nbytes:
            return before  # mremap(2) is called only for another length
        with memoryview(root) as view:
            return Span(np.frombuffer(view, np.uint8).__array_interface__["data"][0], len(view))
    if foreign.is_ctypes(root):
        return Span(ctypes.addressof(root), ctypes.sizeof(root))
    if cdata.is_cdata(root):
        return Span(*cdata.owned_span(root)) if cdata.owns(root) else None
    if isinstance(root, memoryview) and root.c_contiguous:
        if before is not None:
            return before if root.nbytes == before.nbytes else None
        return Span(np.frombuffer(root, np.uint8).__array_interface__["data"][0], root.nbytes)
    return None


# One call under the interpreter's lock: no export that another thread's append would run into.
_bytearray_address: Any = ctypes.PYFUNCTYPE(ctypes.c_size_t, ctypes.py_object)(
    ("PyByteArray_AsString", ctypes.pythonapi)
)
