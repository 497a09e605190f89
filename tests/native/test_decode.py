"""The handler's small decoder against a full one, on all memory instructions of a large library."""

from __future__ import annotations

import ctypes
import importlib
import random
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from iced_x86 import Decoder, InstructionInfoFactory, MemorySizeExt, OpAccess, OpKind, Register, RegisterExt

from hwwatch.native import ffi, lib

#: As in hww_moment.
ORDER = [f"R{name}" for name in ("AX", "BX", "CX", "DX", "SI", "DI", "BP", "SP", *range(8, 16))]
NUMBERS = {getattr(Register, name): number for number, name in enumerate(ORDER)}
READS = {OpAccess.READ, OpAccess.READ_WRITE, OpAccess.COND_READ, OpAccess.READ_COND_WRITE}
WRITES = {OpAccess.WRITE, OpAccess.READ_WRITE, OpAccess.COND_WRITE, OpAccess.READ_COND_WRITE}


@pytest.fixture(scope="module")
def code() -> Any:
    """The machine code of NumPy's largest module, in memory of our own."""
    module = importlib.import_module("numpy._core._multiarray_umath")
    with open(str(module.__file__), "rb") as file:
        text = ELFFile(file).get_section_by_name(".text").data()
    return ctypes.create_string_buffer(text, len(text))


@pytest.mark.slow
def test_against_a_full_decoder(code: Any) -> None:
    """Never wrong about a plain instruction, and it knows nearly all that can be known."""
    start = ctypes.addressof(code)
    chance = random.Random(5)
    factory = InstructionInfoFactory()
    values = [chance.randrange(1 << 20, 1 << 46) for _ in ORDER]
    registers = ffi.new("uint64_t[16]", values)
    found = ffi.new("struct hww_reach[15]")
    seen = known = vague = 0
    wrong: list[str] = []
    for instruction in Decoder(64, code.raw, ip=start):
        end = instruction.ip + instruction.len
        memory = [item for item in factory.info(instruction).used_memory() if item.displacement or item.base]
        explicit = [i for i in range(instruction.op_count) if instruction.op_kind(i) == OpKind.MEMORY]
        if instruction.is_invalid or len(explicit) != 1 or len(memory) != 1 or chance.random() > 0.25:
            continue
        (item,) = memory
        # lea and nop touch nothing, gathers have many addresses, masked accesses depend on their mask
        if item.access == OpAccess.NO_MEM_ACCESS or item.vsib_size or instruction.op_mask != Register.NONE:
            continue
        if item.base not in (Register.NONE, Register.RIP, *NUMBERS) or item.segment in (
            Register.FS,
            Register.GS,
        ):
            continue
        seen += 1
        address = item.displacement + (values[NUMBERS[item.base]] if item.base in NUMBERS else 0)
        address += values[NUMBERS[item.index]] * item.scale if item.index in NUMBERS else 0
        access = (item.access in READS) * lib.HWW_REACH_READ + (item.access in WRITES) * lib.HWW_REACH_WRITE
        truth = (address % 2**64, MemorySizeExt.size(item.memory_size), access)
        written = {
            RegisterExt.full_register(used.register)
            for used in factory.info(instruction).used_registers()
            if used.access in WRITES
        }
        count = lib.hww_decode_before(end, registers, found)
        mine = [found[i] for i in range(count) if found[i].length == instruction.len]
        if not mine:
            continue
        (reach,) = mine
        clobbered = bool(written & {item.base, item.index})
        if (reach.address, reach.nbytes, reach.access) != truth or (clobbered and not reach.vague):
            wrong.append(
                f"{instruction}: {(reach.address, reach.nbytes, reach.access, reach.vague)} not {truth}"
            )
        known += 1
        vague += reach.vague
    assert wrong[:20] == []
    assert seen > 20_000
    assert known / seen > 0.9, f"{known} of {seen}"
    assert vague / seen < 0.2


def test_nothing_at_the_end_of_memory() -> None:
    """It reads 15 bytes before a pc, never more; the handler calls it under a guard."""
    code = ctypes.create_string_buffer(b"\x90" * 12 + b"\x48\x89\x07", 15)
    registers = ffi.new("uint64_t[16]", [0] * 5 + [0x1234] + [0] * 10)
    found = ffi.new("struct hww_reach[15]")
    count = lib.hww_decode_before(ctypes.addressof(code) + 15, registers, found)
    assert [(found[i].address, found[i].nbytes, found[i].length) for i in range(count)] == [
        (0x1234, 4, 2),
        (0x1234, 8, 3),
    ]
