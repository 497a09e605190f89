"""Memory operands of an instruction, in a form that gives their addresses back from saved registers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from iced_x86 import (
    CodeSize,
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
    UsedMemory,
)

Words = np.ndarray[Any, np.dtype[np.uint64]]

#: Order of the general registers in a row of saved registers.
REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
RAX, RSP = REGISTERS.index("rax"), REGISTERS.index("rsp")

#: Fast-string microcode moves up to this many bytes between two places where it can be interrupted
#: (Intel SDM vol. 1, 7.3.9.3: "groups of iterations"; a trap then comes after the group).
REP_GROUP = 64

#: Column of each 64-bit general register, by its iced number.
INDEX: dict[int, int] = {getattr(Register, name.upper()): place for place, name in enumerate(REGISTERS)}
_ACCESS = {
    OpAccess.READ: "read",
    OpAccess.COND_READ: "read",
    OpAccess.WRITE: "write",
    OpAccess.COND_WRITE: "write",
    OpAccess.READ_WRITE: "readwrite",
    OpAccess.READ_COND_WRITE: "readwrite",
}
_WRITES = {OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE}
_BIT_TESTS = {Mnemonic.BT, Mnemonic.BTS, Mnemonic.BTR, Mnemonic.BTC}
_RETURNS_FROM_INTERRUPT = {Mnemonic.IRET, Mnemonic.IRETD, Mnemonic.IRETQ}
_MASK = 2**64 - 1
_factory = InstructionInfoFactory()


@dataclass(frozen=True, slots=True)
class Operand:
    """One range of memory that an instruction touches.

    The address is ``base + index * scale + displacement`` modulo 2**64 with the registers as they
    are **after** the instruction: what the instruction itself adds to a register (push, stos) is
    already taken off `displacement`.

    Attributes
    ----------
    access : {"read", "write", "readwrite"}
    nbytes : int
        Size; 0 where the instruction does not fix it (xsave). For masked vector accesses and for
        ``rep`` string operations the upper bound.
    base, index : int
        Column in the saved registers (see `REGISTERS`), or -1.
    scale : int
        1, 2, 4 or 8.
    displacement : int
        0 to 2**64 - 1.
    narrow : bool
        32-bit address size: the sum is cut to 32 bits.
    known : bool
        False where the registers at the trap no longer tell the address: overwritten by the
        instruction itself, a vector of indexes, or an FS/GS segment.
    """

    access: str
    nbytes: int
    base: int = -1
    index: int = -1
    scale: int = 1
    displacement: int = 0
    narrow: bool = False
    known: bool = True

    def starts(self, registers: Words) -> Words:
        """First byte touched, a hit; meaningless unless `known`.

        Parameters
        ----------
        registers : (n, 16) uint64 array

        Returns
        -------
        (n,) uint64 array
        """
        starts = np.full(len(registers), self.displacement, dtype=np.uint64)
        if self.base >= 0:
            starts += registers[:, self.base]
        if self.index >= 0:
            starts += registers[:, self.index] * np.uint64(self.scale)
        if self.narrow:
            starts &= np.uint64(0xFFFF_FFFF)
        return starts


def combine(operands: tuple[Operand, ...]) -> str:
    """What several operands do together: "read", "write", "readwrite", or "unknown" for none."""
    reads = any("read" in operand.access for operand in operands)
    writes = any("write" in operand.access for operand in operands)
    return {(True, False): "read", (False, True): "write", (True, True): "readwrite"}.get(
        (reads, writes), "unknown"
    )


def operands_of(instruction: Instruction) -> tuple[Operand, ...]:
    """All memory that `instruction` touches, implicit operands (stack, strings) included.

    lea, nop and prefetch touch none; clflush, clflushopt and clwb read.
    """
    if (
        instruction.mnemonic == Mnemonic.CLZERO
    ):  # unknown to iced; the line around rax (AMD APM vol. 3, CLZERO)
        return (Operand("write", 64, base=RAX, known=False),)
    info = _factory.info(instruction)
    if instruction.mnemonic == Mnemonic.LEAVE:  # mov rsp, rbp; pop rbp: only rsp still tells where
        return (Operand("read", 8, base=RSP, displacement=-8 & _MASK),)
    written = {
        RegisterExt.full_register(used.register)
        for used in info.used_registers()
        if used.access in _WRITES and not _is_shifted(instruction, used.register, used.access)
    }
    return tuple(
        _operand(instruction, memory, written) for memory in info.used_memory() if memory.access in _ACCESS
    )


# True where the register changes by an amount that _shift knows, so its old value can be had back.
def _is_shifted(instruction: Instruction, register: int, access: int) -> bool:
    full = RegisterExt.full_register(register)  # type: ignore[arg-type]
    if full == Register.RSP:
        # A plain WRITE besides is "pop rsp"; iret loads rsp from memory.
        return (
            instruction.is_stack_instruction
            and access == OpAccess.READ_WRITE
            and instruction.mnemonic not in _RETURNS_FROM_INTERRUPT
        )
    return instruction.is_string_instruction and full in (Register.RDI, Register.RSI)


# How far the instruction has moved the base register when the trap comes, bytes.
def _shift(instruction: Instruction, base: int, size: int) -> int:
    if base == Register.RSP and instruction.is_stack_instruction:
        return instruction.stack_pointer_increment
    # Direction flag clear, as the System V ABI (x86-64, 3.2.1) demands at function entry and return.
    return size if instruction.is_string_instruction else 0


def _operand(instruction: Instruction, memory: UsedMemory, written: set[Any]) -> Operand:
    repeated = instruction.is_string_instruction and (
        instruction.has_rep_prefix or instruction.has_repne_prefix
    )
    size = MemorySizeExt.size(instruction.memory_size if repeated else memory.memory_size)
    if repeated:
        # The last group ends where the register stands now, whether the loop is over or goes on.
        size = max(size, REP_GROUP)
    base, index = (
        RegisterExt.full_register(register) if register else 0 for register in (memory.base, memory.index)
    )
    known = (
        memory.segment not in (Register.FS, Register.GS)
        and not memory.vsib_size
        and all(not register or (register in INDEX and register not in written) for register in (base, index))
        and memory.index != Register.AL  # xlatb: gone, it loads al
        # bt m, r: the bit offset in r reaches beyond the operand (Intel SDM vol. 2, BT).
        and not (instruction.mnemonic in _BIT_TESTS and instruction.op1_kind == OpKind.REGISTER)
    )
    operand = Operand(_ACCESS[memory.access], size, narrow=memory.address_size == CodeSize.CODE32)
    if not known:
        return replace(operand, known=False)
    return replace(
        operand,
        base=INDEX.get(base, -1),
        index=INDEX.get(index, -1),
        scale=memory.scale,
        displacement=(memory.displacement - _shift(instruction, base, size)) & _MASK,
    )
