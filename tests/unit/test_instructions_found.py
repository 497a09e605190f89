"""Finding the instruction behind a trap, on bytes that are never executed."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import pytest

from hwwatch.code.elf import Elf
from hwwatch.code.instructions import REGISTERS, Site, read_code, resolve
from hwwatch.code.operands import operands_of


def saved(**values: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Registers of one hit; those not named hold addresses of nothing."""
    row = [values.get(name, 0xDEAD_0000 + 0x10_0000 * i) for i, name in enumerate(REGISTERS)]
    return np.array([row], dtype=np.uint64)


class CodePage:
    """Memory with instructions in it."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 4096)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def write(self, code: str) -> int:
        """Put hexadecimal `code` at the start; gives the address behind it."""
        data = bytes.fromhex(code)
        self.memory[: len(data)] = data
        return self.start + len(data)


@pytest.fixture
def page() -> CodePage:
    return CodePage()


def test_rep_under_the_pc_still_iterates(page: CodePage) -> None:
    page.write("89 c8" + "f3 aa" + "c3")  # mov eax, ecx; rep stosb; ret
    pc, registers = page.start + 2, saved(rdi=0x5001, rcx=10)
    site = resolve(pc, function_start=page.start, registers=registers, touched=[(0x5000, 8)])
    assert (site.text, site.address, site.confidence) == ("rep stosb [rdi]", pc, "exact")
    assert (
        resolve(pc, function_start=None, registers=registers, touched=[(0x5000, 8)]).confidence == "filtered"
    )
    # Ahead of rdi nothing has been stored.
    assert (
        resolve(pc, function_start=page.start, registers=registers, touched=[(0x5001, 1)]).confidence
        == "none"
    )


def test_store_before_a_rep_that_has_not_begun(page: CodePage) -> None:
    pc = page.write("48 89 07")  # mov [rdi], rax
    page.write("48 89 07 f3 48 ab")  # and then rep stosq
    site = resolve(pc, function_start=page.start, registers=saved(rdi=0x5000), touched=[(0x5000, 8)])
    assert (site.text, site.confidence) == ("mov [rdi], rax", "exact")


def test_execute_is_the_instruction_at_the_pc(page: CodePage) -> None:
    page.write("48 89 07")
    site = resolve(
        page.start, function_start=None, registers=saved(), touched=[(page.start, 1)], execute=True
    )
    assert (site.text, site.access, site.confidence) == ("mov [rdi], rax", "execute", "exact")
    assert (site.address, site.length, site.operands) == (page.start, 3, ())


def test_kernel_access_names_the_system_call(page: CodePage) -> None:
    def site(pc: int) -> Site:
        return resolve(pc, function_start=None, registers=saved(), touched=[(0x5000, 8)], kernel=True)

    found = site(page.write("0f 05"))
    assert (found.text, found.access, found.confidence) == ("syscall", "unknown", "exact")
    assert site(page.write("90 90")).confidence == "none"


def test_relative_addresses_are_shown_resolved(page: CodePage) -> None:
    pc = page.write("89 05 00 01 00 00")  # mov [rip+0x100], eax
    site = resolve(pc, function_start=page.start, registers=saved(), touched=[(pc + 0x100, 4)])
    assert site.text == f"mov [{pc + 0x100:#x}], eax"
    assert site.ranges(saved())[0].tolist() == [[pc + 0x100]]


def test_address_of_32_bits_is_cut(page: CodePage) -> None:
    pc = page.write("67 89 54 08 ff")  # mov [eax+ecx-1], edx
    registers = saved(rax=0x7_FFFF_FFFF, rcx=0x11)
    site = resolve(pc, function_start=page.start, registers=registers, touched=[(0xF, 1)])
    assert site.ranges(registers)[0].tolist() == [[0xF]]
    assert site.confidence == "exact"


def test_each_hit_has_its_own_access(page: CodePage) -> None:
    pc = page.write("a4")  # movsb
    registers = np.concatenate([saved(rdi=0x5001, rsi=0x6001)] * 3)
    touched = [(0x5000, 8), (0x6000, 8), (0x7000, 8)]
    site = resolve(pc, function_start=page.start, registers=registers, touched=touched)
    assert site.access == "readwrite"
    assert site.accesses(registers, touched) == ["write", "read", "readwrite"]
    starts, sizes, known = site.ranges(registers)
    assert (starts.shape, sizes.tolist(), known.tolist()) == ((3, 2), [1, 1], [True, True])


def test_wrong_function_start_is_not_believed(page: CodePage) -> None:
    pc = page.write("48 b8 11 22 33 44 55 66 77 88" + "48 c7 07 05 00 00 00")  # mov rax, imm64; mov [rdi], 5
    registers, touched = saved(rdi=0x5000), [(0x5000, 8)]
    right = resolve(pc, function_start=page.start, registers=registers, touched=touched)
    assert (right.text, right.confidence) == ("mov qword ptr [rdi], 5", "exact")
    for wrong in (page.start + 12, pc - 1, pc + 5, page.start - 10**9, 0):
        site = resolve(pc, function_start=wrong, registers=registers, touched=touched)
        assert site.text == "mov qword ptr [rdi], 5"
        assert site.confidence in ("filtered", "guess")


def test_rewritten_code_is_decoded_anew(page: CodePage) -> None:
    hit: dict[str, Any] = {
        "function_start": page.start,
        "registers": saved(rdi=0x5000),
        "touched": [(0x5000, 8)],
    }
    pc = page.write("90 90 48 89 07")
    assert resolve(pc, **hit).text == "mov [rdi], rax"
    longer = page.write("90 90 48 89 07 48 01 0f")  # the sweep goes on where it stopped
    assert resolve(longer, **hit).text == "add [rdi], rcx"
    assert resolve(pc, **hit).text == "mov [rdi], rax"
    page.write("48 c7 c0 89 07")  # now the middle of a mov rax, imm32
    assert resolve(pc, **hit).confidence != "exact"


@pytest.mark.parametrize(
    "code",
    ["48 8d 07", "0f 1f 00", "0f 18 47 40", "0f 0d 4f 40", "f3 0f 1e fa"],
    ids=["lea", "nop", "t0", "w", "endbr"],
)
def test_no_access(page: CodePage, code: str) -> None:
    pc = page.write(code)
    registers = saved(rdi=0x5000, rax=0x5000)
    site = resolve(pc, function_start=page.start, registers=registers, touched=[(0x5000, 8)])
    assert site.confidence == "none"


def test_read_code_stops_at_unmapped_memory() -> None:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = libc.mmap(None, 3 * 4096, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    libc.munmap(start, 4096)
    libc.munmap(start + 8192, 4096)
    middle, end = start + 4096, start + 8192
    assert read_code(end - 96, 200) == bytes(96)
    assert read_code(end, 8) == b""
    assert read_code(0, 8) == read_code(2**64 - 4, 8) == read_code(-8, 8) == read_code(middle, 0) == b""
    # The first instruction of a mapping, with nothing readable before it.
    ctypes.memmove(middle, b"\x48\x89\x07", 3)
    site = resolve(middle + 3, function_start=None, registers=saved(rdi=0x5000), touched=[(0x5000, 8)])
    assert site.text == "mov [rdi], rax"
    libc.munmap(middle, 4096)
    gone = resolve(middle + 3, function_start=middle, registers=saved(rdi=0x5000), touched=[(0x5000, 8)])
    assert gone.confidence == "none"


def test_every_instruction_of_numpy_has_sane_operands() -> None:
    from iced_x86 import Decoder
    from numpy._core import _multiarray_umath

    with open(_multiarray_umath.__file__, "rb") as stream:
        offset, _, nbytes, _ = next(row for row in Elf(stream).segments.tolist() if row[3] & 1)
        stream.seek(offset)
        code = stream.read(nbytes)
    place, seen = 0, set()
    registers = saved()
    for instruction in Decoder(64, code):
        # Once for each encoding: the opcode and what follows it, without constants.
        key = (instruction.code, instruction.memory_base, instruction.memory_index, instruction.op0_kind)
        if key in seen:
            continue
        seen.add(key)
        for operand in operands_of(instruction):
            assert operand.access in ("read", "write", "readwrite")
            assert 0 <= operand.nbytes <= 512
            assert operand.starts(registers).shape == (1,)
            place += 1
    assert place > 1000
