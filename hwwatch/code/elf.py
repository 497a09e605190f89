"""ELF files: segments, symbols, functions known from unwind information, C++ names."""

from __future__ import annotations

import ctypes
import io
import lzma
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

#: ``Elf64_Sym`` (System V gABI, chapter 4).
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
#: One symbol: value and size (bytes) as in the file, offset of its name, STT_* and STB_* numbers.
SYMBOL = np.dtype(
    [("value", "<u8"), ("size", "<u8"), ("name", "<u4"), ("kind", "u1"), ("bind", "u1"), ("exported", "?")]
)
NOTYPE, OBJECT, FUNC, IFUNC = 0, 1, 2, 10
_ABSOLUTE_SECTIONS = 0xFF00  # SHN_LORESERVE: from here on no section but a special meaning


class Elf:
    """The headers of an ELF file, and on demand its symbols and function ranges.

    Read with pyelftools; tables of many entries are taken as arrays, since a Python object a symbol
    costs 0.8 s for libpython.

    Parameters
    ----------
    stream : binary file
        Of an x86-64 ELF file. Closed by the caller.

    Attributes
    ----------
    build_id : str
        In hexadecimal; empty if the file has none.
    note : (address, bytes)
        Where the build-id stands in the file's address space, with its bytes; ``(0, b"")`` without.
    segments : (k, 4) int64 array
        PT_LOAD: file offset, address, bytes in the file, flags (1 = executable).

    Raises
    ------
    ValueError
        Not a 64-bit x86 ELF file, or a damaged one.
    """

    def __init__(self, stream: BinaryIO) -> None:
        from elftools.common.exceptions import ELFError
        from elftools.construct import ConstructError
        from elftools.elf.elffile import ELFFile

        try:
            self._file: ELFFile = ELFFile(stream)
            if self._file["e_machine"] != "EM_X86_64" or self._file.elfclass != 64:
                raise ValueError(f"an ELF file for {self._file['e_machine']}, not for 64-bit x86")
            self._sections: dict[str, Any] = {s.name: s for s in self._file.iter_sections()}
            loads = [s.header for s in self._file.iter_segments("PT_LOAD")]
        except (ELFError, ConstructError, AttributeError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"no readable ELF file: {error}") from error
        rows = [(h["p_offset"], h["p_vaddr"], h["p_filesz"], h["p_flags"]) for h in loads]
        self.segments = np.array(rows, dtype=np.int64).reshape(-1, 4)
        note = self._sections.get(".note.gnu.build-id")
        self.note = (int(note["sh_addr"]), bytes(note.data())) if note is not None else (0, b"")
        self.build_id = self.note[1][16:].hex()  # after three words and the name "GNU"

    def soname(self) -> str:
        """DT_SONAME, or empty."""
        dynamic = self._sections.get(".dynamic")
        tags = dynamic.iter_tags("DT_SONAME") if dynamic is not None and hasattr(dynamic, "iter_tags") else ()
        return next((str(tag.soname) for tag in tags), "")

    def symbols(self) -> tuple[np.ndarray[Any, Any], bytes]:
        """Defined functions, objects and labels, from .symtab (or .gnu_debugdata) and .dynsym.

        Returns
        -------
        symbols : array of `SYMBOL`
        strings : bytes
            Their names, each ended by a zero byte.
        """
        tables = [self._table(".dynsym", exported=True), self._table(".symtab", exported=False)]
        packed = self._sections.get(".gnu_debugdata")
        if not len(tables[1][0]) and packed is not None:
            try:
                inner = Elf(io.BytesIO(lzma.decompress(packed.data())))
                tables[1] = inner._table(".symtab", exported=False)
            except (lzma.LZMAError, ValueError):
                pass
        tables[1][0]["name"] += len(tables[0][1])
        return np.concatenate([table for table, _ in tables]), b"".join(strings for _, strings in tables)

    def _table(self, name: str, *, exported: bool) -> tuple[np.ndarray[Any, Any], bytes]:
        section = self._sections.get(name)
        if section is None or section["sh_type"] == "SHT_NOBITS":
            return np.zeros(0, dtype=SYMBOL), b""
        data, strings = section.data(), self._file.get_section(section["sh_link"]).data() + b"\0"
        raw = np.frombuffer(data, dtype=_SYMBOL, count=len(data) // _SYMBOL.itemsize)
        kind = raw["info"] & 15
        defined = (raw["section"] > 0) & (raw["section"] < _ABSOLUTE_SECTIONS)
        raw = raw[defined & np.isin(kind, (NOTYPE, OBJECT, FUNC, IFUNC)) & (raw["name"] < len(strings))]
        table = np.zeros(len(raw), dtype=SYMBOL)
        for field in ("value", "size", "name"):
            table[field] = raw[field]
        table["kind"], table["bind"] = raw["info"] & 15, raw["info"] >> 4
        table["exported"] = exported
        return table, strings

    def frames(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Ranges of the functions with unwind information.

        Returns
        -------
        (n, 2) uint64 array
            First address and one past the last, ascending, in the file's address space. From the search
            table of .eh_frame_hdr (LSB Core, "Exception Frames").
        """
        none = np.zeros((0, 2), dtype=np.uint64)
        header, frames = self._sections.get(".eh_frame_hdr"), self._sections.get(".eh_frame")
        if header is None or header["sh_type"] == "SHT_NOBITS":
            return none
        data, base = header.data(), header["sh_addr"]
        # Version 1; count is udata4; the table holds pairs of sdata4 relative to the header.
        if len(data) < 12 or data[0] != 1 or data[1] & 0x0F != 0x0B or data[2:4] != b"\x03\x3b":
            return none
        count = min(int.from_bytes(data[8:12], "little"), (len(data) - 12) // 8)
        table = np.frombuffer(data, dtype="<i4", offset=12, count=2 * count).reshape(-1, 2).astype(np.int64)
        starts = table[:, 0] + base
        ends = np.append(starts[1:], starts[-1:])
        if frames is not None and frames["sh_type"] != "SHT_NOBITS":
            body, home = np.frombuffer(frames.data(), dtype=np.uint8), frames["sh_addr"]
            place = table[:, 1] + base - home
            place[(place < 0) | (place + 16 > len(body))] = 0
            # The usual entry: length, CIE pointer, pc-relative start, number of bytes; 4 bytes each.
            words = np.ascontiguousarray(body[place[:, None] + np.arange(8, 16)]).view("<i4").astype(np.int64)
            usual = home + place + 8 + words[:, 0] == starts
            ends = np.where(usual, starts + (words[:, 1] & 0xFFFF_FFFF), ends)
        return np.stack([starts, ends], axis=1).astype(np.uint64)


@lru_cache(maxsize=1 << 16)
def demangle(name: str) -> str:
    """A C++ name as written in the source; any other name, or all without libstdc++, unchanged."""
    if not name.startswith("_Z") or _demangler() is None:
        return name
    status = ctypes.c_int()
    pointer = _demangler()(name.encode("utf-8", "replace"), None, None, ctypes.byref(status))
    if not pointer:
        return name
    try:
        return ctypes.string_at(pointer).decode("utf-8", "replace")
    finally:
        _libc.free(pointer)


_libc = ctypes.CDLL(None)
_libc.free.argtypes = (ctypes.c_void_p,)


# __cxa_demangle (Itanium C++ ABI, 3.4), or None.
@lru_cache(maxsize=1)
def _demangler() -> Any:
    try:
        function = ctypes.CDLL("libstdc++.so.6")["__cxa_demangle"]
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    return function


def mangled_part(name: str) -> str:
    """What the mangled form of a C++ name surely contains: its longest identifier; empty if none is sure.

    Source names are spelled out there; operators, builtin types and some of std are not (Itanium C++ ABI,
    5.1.2 to 5.1.10).
    """
    if "std::" in name:
        return ""
    head = re.sub(r"<.*>", "", re.split(r"\(|\boperator\b", name)[0])
    return max(re.findall(r"[^\W\d]\w*", head), key=len, default="")


def without_parameters(name: str) -> str:
    """``ns::f(int) const`` to ``ns::f``; empty where there are none, or for a mere part of a function."""
    depth = 0
    for place in range(name.rfind(")"), -1, -1):
        depth += {")": 1, "(": -1}.get(name[place], 0)
        if not depth:
            return "" if "[clone" in name else name[:place]
    return ""
