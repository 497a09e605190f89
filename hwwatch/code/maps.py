"""What is mapped: regions of memory and the bytes in them."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# The kernel writes blanks, tabs, newlines and backslashes of a path as \ooo (seq_path in fs/seq_file.c).
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of ``/proc/<pid>/maps`` (proc(5)).

    Attributes
    ----------
    start, end : int
        First byte, and one past the last.
    perms : str
        ``"rwx"`` with ``-`` for what is denied, such as ``"r-x"``.
    shared : bool
        True for MAP_SHARED, False for private (copy on write).
    offset : int
        Of `start` in the file, bytes.
    inode : int
        0 where no file stands behind it.
    path : str
        File, pseudo name such as ``"[vdso]"``, or empty for anonymous memory.
    """

    start: int
    end: int
    perms: str
    shared: bool
    offset: int
    inode: int
    path: str

    @property
    def readable(self) -> bool:
        """Loads are allowed."""
        return self.perms[0] == "r"

    @property
    def writable(self) -> bool:
        """Stores are allowed."""
        return self.perms[1] == "w"

    @property
    def executable(self) -> bool:
        """Instructions may be fetched."""
        return self.perms[2] == "x"

    @property
    def is_file(self) -> bool:
        """A file stands behind it; False for anonymous memory and pseudo names."""
        return self.path.startswith("/")


class Maps:
    """A snapshot of a process's mappings, ascending and disjoint.

    Parameters
    ----------
    mappings : iterable of Mapping
        In any order.
    """

    def __init__(self, mappings: Iterable[Mapping]) -> None:
        self._mappings = tuple(sorted(mappings, key=lambda m: m.start))
        self._starts = np.array([m.start for m in self._mappings], dtype=np.uint64)
        self._ends = np.array([m.end for m in self._mappings], dtype=np.uint64)

    @classmethod
    def read(cls, pid: int | str = "self") -> Maps:
        """Take a snapshot.

        Parameters
        ----------
        pid : int or "self"

        Raises
        ------
        OSError
            No such process, or not allowed to look at it.
        """
        # Mappings may change between two read() calls of the kernel's listing; each line is consistent.
        text = Path(f"/proc/{pid}/maps").read_bytes()
        return cls(_parse(line) for line in text.decode("utf-8", "surrogateescape").split("\n") if line)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._mappings)

    def __len__(self) -> int:
        return len(self._mappings)

    def find(self, address: int) -> Mapping | None:
        """The mapping that holds `address`, or None."""
        return self.find_many(np.array([address], dtype=np.uint64))[0]

    def find_many(self, addresses: np.ndarray[Any, np.dtype[np.uint64]]) -> list[Mapping | None]:
        """The mapping of each address, or None where nothing is mapped.

        Parameters
        ----------
        addresses : (n,) uint64 array

        Returns
        -------
        list of n Mapping or None
        """
        places = np.searchsorted(self._starts, addresses, side="right").astype(np.int64) - 1
        if not len(self._mappings):
            return [None] * len(places)
        inside = (places >= 0) & (addresses < self._ends[places])
        return [self._mappings[i] if ok else None for i, ok in zip(places, inside, strict=True)]


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = (
    ctypes.c_int,
    *(ctypes.POINTER(_Iovec), ctypes.c_ulong) * 2,
    ctypes.c_ulong,
)


def read_code(address: int, nbytes: int) -> bytes:
    """Copy this process's memory without any chance of a fault, or of a trap on watched bytes.

    Parameters
    ----------
    address : int
    nbytes : int

    Returns
    -------
    bytes
        `nbytes` of them, fewer where unreadable memory begins, ``b""`` where it begins at `address`.
    """
    if nbytes <= 0 or not 0 <= address <= 2**64 - nbytes:
        return b""
    buffer = ctypes.create_string_buffer(nbytes)
    local = _Iovec(ctypes.addressof(buffer), nbytes)
    remote = _Iovec(address, nbytes)
    # Not a plain load: the mapping may vanish at any time. The kernel says how far it could copy.
    copied = _libc.process_vm_readv(os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if copied >= 0:
        return buffer.raw[:copied]
    # Memory that may only be executed, or a sandbox without process_vm_readv.
    try:
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), nbytes, address)
    except (OSError, OverflowError):
        return b""


# "7f00-7f10 r-xp 00001000 fe:00 338944    /usr/lib/ld.so": the path is the rest of the line, blanks and all.
def _parse(line: str) -> Mapping:
    span, perms, offset, _device, inode, *rest = line.split(None, 5)
    start, end = span.split("-")
    path = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), rest[0]) if rest else ""
    return Mapping(
        int(start, 16), int(end, 16), perms[:3], perms[3] == "s", int(offset, 16), int(inode), path
    )
