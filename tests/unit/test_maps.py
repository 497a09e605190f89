from __future__ import annotations

import ctypes
import io
import itertools
import mmap
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from hwwatch.code.elf import Elf, demangle, without_parameters
from hwwatch.code.maps import Mapping, Maps


def test_finds_what_holds_an_address() -> None:
    maps = Maps.read()
    strlen = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value or 0
    code = maps.find(strlen)
    assert code is not None
    assert (code.perms, code.executable, code.writable, code.shared, code.is_file) == (
        "r-x",
        True,
        False,
        False,
        True,
    )
    assert code.start <= strlen < code.end
    assert os.stat(code.path).st_size > code.offset > 0
    assert code.inode > 0
    assert maps.find(code.start) is code
    assert maps.find(code.end - 1) is code
    assert maps.find(0) is maps.find(2**64 - 1) is None
    stack = next(mapping for mapping in maps if mapping.path == "[stack]")
    assert (stack.writable, stack.is_file, stack.inode) == (True, False, 0)


def test_find_many_agrees_with_find() -> None:
    maps = Maps.read()
    edges = np.array(
        [m.start + d for m in maps for d in (-1, 0, m.end - m.start - 1, m.end - m.start)], dtype=np.uint64
    )
    assert maps.find_many(edges) == [maps.find(int(edge)) for edge in edges]
    assert maps.find_many(np.zeros(0, dtype=np.uint64)) == []
    for at, mapping in zip(edges.tolist(), maps.find_many(edges), strict=True):
        assert mapping is None or mapping.start <= at < mapping.end
    assert Maps(()).find_many(edges[:2]) == [None, None]


def test_ascending_and_disjoint_whatever_the_order_given() -> None:
    maps = Maps.read()
    again = list(Maps(reversed(list(maps))))
    assert again == list(maps)
    assert len(maps) == len(again)
    assert all(a.end <= b.start for a, b in itertools.pairwise(again))


def test_awkward_file_name_and_shared_mapping(tmp_path: Path) -> None:
    path = tmp_path / "two words\nand a \\ line é"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096, offset=4096) as memory:
        view = ctypes.c_char.from_buffer(memory)
        mapping = Maps.read().find(ctypes.addressof(view))
        del view
    assert mapping is not None
    assert (mapping.path, mapping.shared, mapping.offset) == (str(path), True, 4096)
    assert mapping.inode == path.stat().st_ino


def test_another_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert any(isinstance(mapping, Mapping) and mapping.executable for mapping in Maps.read(child.pid))
    with pytest.raises(OSError, match=str(child.pid)):
        Maps.read(child.pid)


@pytest.fixture(scope="module")
def extension() -> Path:
    import _ctypes

    return Path(_ctypes.__file__ or sysconfig.get_config_var("LIBDIR"))


def test_elf_tables_agree_with_pyelftools(extension: Path) -> None:
    from elftools.dwarf.callframe import FDE
    from elftools.elf.elffile import ELFFile

    with extension.open("rb") as stream:
        elf = Elf(stream)
        symbols, strings = elf.symbols()
        frames = elf.frames()
        file = ELFFile(stream)
        expected = {
            (symbol.name, symbol["st_value"], symbol["st_size"])
            for section in (file.get_section_by_name(".dynsym"), file.get_section_by_name(".symtab"))
            if section is not None
            for symbol in section.iter_symbols()
            if symbol["st_info"]["type"] in ("STT_FUNC", "STT_OBJECT", "STT_NOTYPE", "STT_LOOS")
            and isinstance(symbol["st_shndx"], int)
        }
        unwound = {
            (entry["initial_location"], entry["initial_location"] + entry["address_range"])
            for entry in file.get_dwarf_info().EH_CFI_entries()
            if isinstance(entry, FDE)
        }
    names = [strings[start : strings.index(b"\0", start)].decode() for start in symbols["name"].tolist()]
    found = set(zip(names, symbols["value"].tolist(), symbols["size"].tolist(), strict=True))
    assert found == expected
    assert {(start, end) for start, end in frames.tolist()} == unwound
    assert (frames[:-1, 0] <= frames[1:, 0]).all()


@pytest.mark.parametrize("kept", [0, 4, 20, 64, 500, 5000])
def test_damaged_elf_file_is_a_value_error(extension: Path, kept: int) -> None:
    with pytest.raises(ValueError, match="ELF"):
        Elf(io.BytesIO(extension.read_bytes()[:kept]))


def test_file_for_another_machine() -> None:
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xb7\x00\x01" + bytes(43)
    with pytest.raises(ValueError, match="EM_AARCH64"):
        Elf(io.BytesIO(header))


def test_demangles_where_libstdcxx_is_at_hand() -> None:
    assert demangle("main") == "main"
    assert demangle("_Z") == "_Z"
    assert demangle("_ZN2ns1fEi") in ("ns::f(int)", "_ZN2ns1fEi")


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("ns::f(int) const", "ns::f"),
        ("ns::A::operator()(std::function<void (int)>)", "ns::A::operator()"),
        ("(anonymous namespace)::f()", "(anonymous namespace)::f"),
        ("f(int) [clone .cold]", ""),
        ("ns::counter", ""),
    ],
)
def test_without_parameters(name: str, bare: str) -> None:
    assert without_parameters(name) == bare
