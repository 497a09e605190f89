"""Names of native functions, and addresses of names, in this process.

Import this module lazily: it loads pyelftools.
"""

from __future__ import annotations

import ctypes
import difflib
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwwatch.errors import TargetError

from .elf import FUNC, IFUNC, NOTYPE, SYMBOL, Elf, demangle, mangled_part, without_parameters
from .maps import Mapping, Maps, read_code

#: Part of the cache files' names; raise it when their contents change.
_CACHE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Symbol:
    """The native function that holds an address.

    Attributes
    ----------
    name : str
        Demangled, with ``+0x1f`` where the address is not its first. Without a symbol table
        ``libfoo.so+0x1234``, the address as the file counts it.
    module : str
        Base name of the file, a pseudo name such as ``"[vdso]"``, ``"[anonymous]"`` for generated code,
        or ``"[unmapped]"``.
    path : str
        Of the file; empty where there is none.
    start, end : int or None
        First address of the function and one past its last, where known.
    """

    name: str
    module: str
    path: str
    start: int | None = None
    end: int | None = None


class Image:
    """Symbols and function ranges of one ELF file, at the file's own addresses.

    Parameters
    ----------
    symbols : array of `SYMBOL`
    strings : bytes
        Names, each ended by a zero byte.
    frames : (n, 2) uint64 array
        Functions known from unwind information: first address, one past the last; ascending.
    segments : (k, 4) int64 array
        PT_LOAD: file offset, address, bytes, flags.
    soname : str
    """

    def __init__(
        self,
        symbols: np.ndarray[Any, Any],
        strings: bytes,
        frames: np.ndarray[Any, np.dtype[np.uint64]],
        segments: np.ndarray[Any, np.dtype[np.int64]],
        soname: str,
    ) -> None:
        self.symbols, self.strings, self.soname = symbols, strings, soname
        self.frames, self._segments = frames, segments
        code = np.zeros(len(symbols), dtype=np.bool_)
        for _, address, nbytes, flags in segments:
            if flags & 1:
                code |= (symbols["value"] >= address) & (symbols["value"] < address + nbytes)
        # An IFUNC's value is its resolver, which is not the function of that name.
        chosen = np.flatnonzero(code & np.isin(symbols["kind"], (NOTYPE, FUNC)))
        chosen = chosen[self._first_choice(chosen)]
        sized = symbols["size"][chosen] > 0
        self._sized, self._loose = chosen[sized], chosen[~sized]
        self._starts = symbols["value"][self._sized]
        self._ends = self._starts + symbols["size"][self._sized]
        self._reach = np.maximum.accumulate(self._ends)
        self._loose_starts = symbols["value"][self._loose]

    # Of several names for one address: sized, a function, global, without underscores, short.
    def _first_choice(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        table, blob = self.symbols[rows], np.frombuffer(self.strings + b"\0\0", dtype=np.uint8)
        place = table["name"].astype(np.int64)
        zeros = np.flatnonzero(blob == 0)
        length = zeros[np.searchsorted(zeros, place)] - place
        one = blob[place] == ord("_")
        underscores = one.astype(np.int64) + (one & (blob[place + 1] == ord("_")))
        rank = np.array([2, 0, 1])[np.minimum(table["bind"], 2)]  # local, global, weak
        keys = (length, underscores, rank, table["kind"] == NOTYPE, table["size"] == 0, table["value"])
        order = np.lexsort(keys)
        order = order[length[order] > 0]
        first = np.unique(table["value"][order], return_index=True)[1]
        return np.asarray(order[first])

    def name(self, row: int) -> str:
        """Of a symbol, without its version."""
        start = int(self.symbols["name"][row])
        text = self.strings[start : self.strings.index(b"\0", start)].decode("utf-8", "replace")
        return text.partition("@")[0] or text

    def rows(self, name: str) -> list[int]:
        """Places in `symbols` of a plain name, else of a C++ name as shown, with or without parameters."""
        if not name:
            return []
        return self._plain(name) or [row for shown, row in self.shown(mangled_part(name)) if shown == name]

    def _plain(self, name: str) -> list[int]:
        text = re.escape(name.encode("utf-8", "replace"))
        places = [match.start() for match in re.finditer(text + rb"(?=[@\0])", self.strings)]
        return np.flatnonzero(np.isin(self.symbols["name"], places)).tolist() if places else []

    def shown(self, part: str) -> Iterator[tuple[str, int]]:
        """C++ names with parameters, and without, of the symbols whose mangled name contains `part`."""
        for row in self._containing(part.encode("utf-8", "replace")):
            mangled = self.name(row)
            if (full := demangle(mangled)) != mangled:
                for name in {full, without_parameters(full)} - {""}:
                    yield name, row

    def _containing(self, part: bytes) -> list[int]:
        if not part:
            return list(range(len(self.symbols)))
        found = np.array([match.start() for match in re.finditer(re.escape(part), self.strings)], np.int64)
        zeros = np.flatnonzero(np.frombuffer(b"\0" + self.strings, dtype=np.uint8) == 0)
        begins = zeros[np.searchsorted(zeros, found, "right") - 1]  # a name may be the end of a longer one
        names = self.symbols["name"].astype(np.int64)
        order = np.argsort(names, kind="stable")
        first, last = np.searchsorted(names[order], begins), np.searchsorted(names[order], found, "right")
        return sorted({int(row) for i, j in zip(first, last, strict=True) for row in order[i:j]})

    def names(self) -> set[str]:
        """All plain names, without their versions."""
        return {text.partition(b"@")[0].decode("utf-8", "replace") for text in set(self.strings.split(b"\0"))}

    def bias(self, mapping: Mapping) -> int | None:
        """What to add to the file's addresses to get those of the process; None if it cannot be told."""
        for offset, address, nbytes, flags in self._segments.tolist():
            # Neighbouring segments share a page of the file: the permission tells them apart.
            if bool(flags & 1) == mapping.executable and offset & ~0xFFF <= mapping.offset < offset + nbytes:
                return int(mapping.start - mapping.offset + offset - address)
        return None

    def function(self, address: int) -> tuple[str, int, int] | None:
        """Name (empty if unknown), first address and one past the last of the function at `address`."""
        where = np.uint64(address)
        place = int(np.searchsorted(self._starts, where, side="right")) - 1
        while place >= 0 and self._reach[place] > where:
            if self._ends[place] > where:
                return self.name(self._sized[place]), int(self._starts[place]), int(self._ends[place])
            place -= 1
        frame = int(np.searchsorted(self.frames[:, 0], where, side="right")) - 1
        start, end = (int(edge) for edge in self.frames[frame]) if frame >= 0 else (0, 0)
        loose = int(np.searchsorted(self._loose_starts, where, side="right")) - 1
        label = int(self._loose_starts[loose]) if loose >= 0 else -1
        if address < end:
            return (self.name(self._loose[loose]), label, end) if label >= start else ("", start, end)
        before = max(end, int(self._reach[place]) if place >= 0 else 0)
        after = [
            int(a[i]) for a, i in ((self._loose_starts, loose + 1), (self._starts, place + 1)) if i < len(a)
        ]
        if label >= before and after:
            return self.name(self._loose[loose]), label, min(after)
        return None


class Symbols:
    """Looks up functions by address and addresses by name in the running process.

    Tables are kept per build-id and size (else path, time and size) in memory and in a cache directory; a
    cache file that is missing, damaged or not writable only costs the time to read the library again.

    Parameters
    ----------
    cache : path, optional
        Directory; default ``$XDG_CACHE_HOME/hwwatch``, else ``~/.cache/hwwatch``.
    """

    def __init__(self, cache: str | os.PathLike[str] | None = None) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self._cache = Path(cache) if cache is not None else Path(base) / "hwwatch"
        self._images: dict[str, Image] = {}
        self._of_mapping: dict[Mapping, tuple[Image, int] | None] = {}
        self._chosen: dict[Mapping, dict[int, str]] = {}
        self._maps = Maps(())

    def refresh(self) -> None:
        """Read the memory map again. Needed only after a library was unloaded: `lookup` notices new ones."""
        self._maps = Maps.read()
        # A library rebuilt and loaded anew may have the address, the path and the inode of the old one.
        self._of_mapping.clear()
        self._chosen.clear()

    def lookup(self, pc: int) -> Symbol:
        """The function that holds `pc`; never raises for an address without one."""
        mapping = self._maps.find(pc)
        if mapping is None or not mapping.executable:
            self.refresh()
            mapping = self._maps.find(pc)
        if mapping is None:
            return Symbol(f"{pc:#x}", "[unmapped]", "")
        module = os.path.basename(mapping.path) or "[anonymous]"
        path = mapping.path if mapping.is_file else ""
        loaded = self._load(mapping)
        if loaded is None:
            return Symbol(f"{module}+{pc - mapping.start + mapping.offset:#x}", module, path)
        image, bias = loaded
        found = image.function(pc - bias)
        if found is None:
            return Symbol(f"{module}+{pc - bias:#x}", module, path)
        name, start, end = found[0], found[1] + bias, found[2] + bias
        name = demangle(name) if name else self._implementations(mapping, image).get(start, "")
        if not name:
            return Symbol(f"{module}+{pc - bias:#x}", module, path, start, end)
        return Symbol(name if pc == start else f"{name}+{pc - start:#x}", module, path, start, end)

    def resolve(self, text: str) -> int:
        """Address of a symbol in a library that is already loaded.

        Parameters
        ----------
        text : str
            ``"libm.so.6!cos"``, ``"libm!cos"``, ``"/full/path!cos"``; the library by file name, soname or
            either up to its version; or ``"strlen"``, searched as the dynamic linker would and then in every
            library. C++ names as shown, with or without parameters.

        Returns
        -------
        int
            For a function chosen at load time (IFUNC, such as glibc's ``strlen``), the one chosen.

        Raises
        ------
        TargetError
            No such library or symbol (close matches are offered), or several of one name.
        """
        library, mark, name = text.partition("!")
        if not mark or "::" in library or library.endswith("operator"):  # operator! is C++
            library, name = "", text
        self.refresh()
        if not library and (exported := _exported("", [name])):
            return exported[name]
        chosen = self._named(library)
        if not chosen:
            known = {alias for m in self._libraries() for alias in self._aliases(m)}
            raise TargetError(
                f"cannot find `{text}`: no loaded library is called `{library}`.",
                hint=_offer(library, known) or "Import or load the library first.",
                slug="no-library",
            )
        loaded = {m: pair for m in chosen if (pair := self._load(m)) is not None}
        found = {a: m for m, (image, bias) in loaded.items() for a in self._addresses(m, image, bias, name)}
        if len(found) > 1:
            places = ", ".join(f"{os.path.basename(m.path)} at {a:#x}" for a, m in found.items())
            raise TargetError(
                f"`{text}` names {len(found)} places: {places}.",
                hint="Give the library (`lib!name`), a C++ name's parameters, or watch an address.",
                slug="ambiguous-symbol",
            )
        if not found:
            names = _similar(name, [image for image, _ in loaded.values()])
            owner = f"`{library}` has no" if library else "no loaded library has a"
            raise TargetError(
                f"cannot find `{text}`: {owner} symbol `{name}`.", hint=_offer(name, names), slug="no-symbol"
            )
        return next(iter(found))

    # One executable mapping a file, and the vdso.
    def _libraries(self) -> Iterator[Mapping]:
        seen: set[str] = set()
        for mapping in self._maps:
            named = mapping.is_file or mapping.path == "[vdso]"
            if named and mapping.executable and mapping.path not in seen:
                seen.add(mapping.path)
                yield mapping

    # The libraries that `name` stands for: by file name without looking into any, else by soname. "" is all.
    def _named(self, name: str) -> list[Mapping]:
        libraries = list(self._libraries())
        by_file = [m for m in libraries if name in ("", m.path, *_short(os.path.basename(m.path)))]
        return by_file or [m for m in libraries if name in self._aliases(m)]

    def _aliases(self, mapping: Mapping) -> set[str]:
        loaded = self._load(mapping)
        return _short(os.path.basename(mapping.path)) | _short(loaded[0].soname if loaded else "")

    def _addresses(self, mapping: Mapping, image: Image, bias: int, name: str) -> set[int]:
        addresses = set()
        for row in image.rows(name):
            symbol, known = image.symbols[row], image.name(row)
            # The linker knows the default one of several versions, and runs the resolver of an IFUNC.
            address = _exported(mapping.path, [known]).get(known) if symbol["exported"] else None
            if address or symbol["kind"] != IFUNC:
                addresses.add(address or int(symbol["value"]) + bias)
        return addresses

    # Names of the functions that the library's IFUNCs chose on this machine: they are local, often nameless.
    def _implementations(self, mapping: Mapping, image: Image) -> dict[int, str]:
        chosen = self._chosen.get(mapping)
        if chosen is None:
            rows = np.flatnonzero((image.symbols["kind"] == IFUNC) & image.symbols["exported"])
            # The best name of several last, to stand.
            names = sorted({image.name(int(row)) for row in rows}, key=lambda n: (n[:1] != "_", -len(n), n))
            exported = _exported(mapping.path, names) if names else {}
            chosen = self._chosen[mapping] = {address: name for name, address in exported.items()}
        return chosen

    # Image and bias; None for generated code, and for a file that is gone or was replaced.
    def _load(self, mapping: Mapping) -> tuple[Image, int] | None:
        with suppress(KeyError):
            return self._of_mapping[mapping]
        loaded = None
        with suppress(OSError, ValueError):
            loaded = self._read(mapping)
        self._of_mapping[mapping] = loaded
        return loaded

    def _read(self, mapping: Mapping) -> tuple[Image, int] | None:
        if mapping.path == "[vdso]":
            code = read_code(mapping.start, mapping.end - mapping.start)
            image = _image(Elf(io.BytesIO(code)))
            bias = image.bias(mapping)
            return None if bias is None else (image, bias)
        if not mapping.is_file:
            return None
        with open(mapping.path, "rb") as stream:
            elf, status = Elf(stream), os.fstat(stream.fileno())
            identity = f"{mapping.path}\0{status.st_mtime_ns}".encode()
            # A stripped copy has the same build-id; its size tells it apart.
            key = f"{elf.build_id or hashlib.sha256(identity).hexdigest()}-{status.st_size:x}"
            if key not in self._images:
                self._images[key] = self._cached(key, elf)
        image = self._images[key]
        bias = image.bias(mapping)
        # Another build may lie at the path by now (an upgrade); inode numbers lie on overlay file systems.
        address, note = elf.note
        if bias is None or (note and read_code(address + bias, len(note)) != note):
            return None
        return image, bias

    def _cached(self, key: str, elf: Elf) -> Image:
        path = self._cache / f"symbols-{_CACHE_VERSION}-{key}.npz"
        with suppress(Exception):  # whatever ails a cache file, the library itself is there to be read
            with np.load(path, allow_pickle=False) as file:
                symbols, strings, frames = file["symbols"], file["strings"].tobytes(), file["frames"]
                soname = str(file["soname"])
            if symbols.dtype == SYMBOL and frames.dtype == np.uint64 and frames.shape[1:] == (2,):
                return Image(symbols, strings, frames, elf.segments, soname)
        image = _image(elf)
        names = np.frombuffer(image.strings, dtype=np.uint8)
        with suppress(OSError):  # not kept: the next process reads the library again
            self._cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._cache) as fresh:
                whole, own = Path(fresh) / path.name, np.array(image.soname)
                np.savez(whole, symbols=image.symbols, strings=names, frames=image.frames, soname=own)
                os.replace(whole, path)
        return image


def _image(elf: Elf) -> Image:
    symbols, strings = elf.symbols()
    return Image(symbols, strings, elf.frames(), elf.segments, elf.soname())


# Plain names; of C++ names those that share an identifier with the name asked for.
def _similar(name: str, images: list[Image]) -> set[str]:
    names = set().union(*(image.names() for image in images))
    parts = {part for part in re.findall(r"[^\W\d]\w*", name) if len(part) > 2} if "::" in name else set()
    return names | {shown for part in parts for image in images for shown, _ in image.shown(part)}


_linker = ctypes.CDLL(None)
_linker.dlopen.restype = _linker.dlsym.restype = ctypes.c_void_p
_linker.dlopen.argtypes = (ctypes.c_char_p, ctypes.c_int)
_linker.dlsym.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
_linker.dlclose.argtypes = (ctypes.c_void_p,)


# What dlsym says of names in a loaded library; "" and the program's own file stand for the global scope.
# The handle is closed again: a library that is held could not be unloaded, rebuilt and loaded anew.
def _exported(path: str, names: Iterable[str]) -> dict[str, int]:
    handle = path and _linker.dlopen(os.fsencode(path), os.RTLD_NOLOAD | os.RTLD_LAZY)
    if not handle:
        if path and not (os.path.exists(path) and os.path.samefile(path, "/proc/self/exe")):
            return {}
        handle = _linker.dlopen(None, os.RTLD_LAZY)
    try:
        found = {name: _linker.dlsym(handle, name.encode("utf-8", "replace")) for name in names if name}
    finally:
        _linker.dlclose(handle)
    return {name: address for name, address in found.items() if address}


# "libm-2.36.so.6" is also called libm-2.36 and libm-2; "libfoo.cpython-311.so" also libfoo.
def _short(name: str) -> set[str]:
    return {name, name.split(".so")[0], name.split(".")[0]} - {""}


def _offer(name: str, known: Iterable[str]) -> str:
    near = [other for other in known if abs(len(other) - len(name)) <= 3 + len(name) // 3]
    close = difflib.get_close_matches(name, near, n=3)
    return f"Closest: {', '.join(close)}." if close else ""
