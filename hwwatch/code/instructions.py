"""Which machine instruction touched the watched bytes.

A data breakpoint traps **after** the access (Intel SDM vol. 3B, 18.3.1.2), so the saved pc is that of
the next instruction, and x86 code cannot be decoded backward for certain. `resolve` looks, in this order:
at a ``rep`` instruction under the pc that still iterates; at the instruction before the pc in a sweep
from the start of the function; at the ``call`` or ``ret`` that led to the pc; and last at every
instruction that could end at the pc, keeping those whose address fits the saved registers.

Import this module lazily: it loads iced-x86.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from iced_x86 import Code, Decoder, FlowControl, Formatter, FormatterSyntax, Instruction, OpKind, RegisterExt

from .maps import read_code
from .operands import INDEX, REGISTERS, RSP, Operand, Words, combine, operands_of

__all__ = ["REGISTERS", "Operand", "Site", "read_code", "resolve"]

# No xsave area is larger: with AMX tiles, the widest state component so far, it is 11 KiB.
_UNKNOWN_SPAN = 16384
# Hits of one pc tell the same tale; more of them only cost time.
_SAMPLES = 64
_LONGEST = 15  # bytes in an instruction, Intel SDM vol. 2A, 2.3.11
_WINDOW = 256  # bytes before the pc that take part in the vote; x86 code resynchronises within a few dozen
_SWEEP_LIMIT = 1 << 20  # bytes; 0.2 s. A longer way to the pc means that the function's start is wrong.
_CALLS = (FlowControl.CALL, FlowControl.INDIRECT_CALL)
_TRANSFERS = (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH, FlowControl.RETURN, *_CALLS)
_SYSTEM_CALLS = (b"\x0f\x05", b"\x0f\x34", b"\xcd\x80")  # syscall, sysenter, int 0x80

_formatter = Formatter(FormatterSyntax.INTEL)
_formatter.hex_prefix, _formatter.hex_suffix, _formatter.uppercase_hex = "0x", "", False
_formatter.space_after_operand_separator = True
_formatter.branch_leading_zeros = False
_formatter.rip_relative_addresses = False


@dataclass(frozen=True, slots=True)
class Site:
    """The instruction behind the hits at one pc.

    Attributes
    ----------
    pc : int
        As trapped.
    address, length : int
        First byte and size of the instruction; both 0 where it was not found.
    text : str
        Intel syntax, RIP-relative addresses resolved; empty where it was not found.
    access : {"write", "read", "readwrite", "execute", "unknown"}
        Over all its memory operands; `accesses` tells it hit by hit.
    confidence : {"exact", "filtered", "guess", "none"}
        "exact": decoded from the function's start (or under the pc). "filtered": the only
        instruction ending at the pc whose address fits. "guess": the likeliest of several.
    operands : tuple of Operand
        Empty for an execute trap and for a system call.
    """

    pc: int
    address: int
    length: int
    text: str
    access: str
    confidence: str
    operands: tuple[Operand, ...] = ()

    def ranges(
        self, registers: Words
    ) -> tuple[Words, np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.bool_]]]:
        """Memory touched, a hit and an operand.

        Parameters
        ----------
        registers : (n, 16) uint64 array
            In the order of `REGISTERS`, as saved at the trap.

        Returns
        -------
        starts : (n, k) uint64 array
            First byte.
        sizes : (k,) int64 array
            Bytes, an upper bound for masked and ``rep`` operands; 0 = not fixed by the instruction.
        known : (k,) bool array
            False where `starts` of that column means nothing.
        """
        count = len(self.operands)
        starts = np.zeros((len(registers), count), dtype=np.uint64)
        for column, operand in enumerate(self.operands):
            starts[:, column] = operand.starts(registers)
        sizes = np.array([operand.nbytes for operand in self.operands], dtype=np.int64)
        return starts, sizes, np.array([operand.known for operand in self.operands], dtype=np.bool_)

    def accesses(self, registers: Words, touched: Sequence[tuple[int, int]]) -> list[str]:
        """What each hit did to its own watched bytes: ``movsb`` reads one operand and writes the other.

        Parameters
        ----------
        registers : (n, 16) uint64 array
        touched : sequence of n (address, nbytes)

        Returns
        -------
        list of n str
            As `access`; the whole instruction's where no operand of known address overlaps.
        """
        if len({operand.access for operand in self.operands}) < 2:
            return [self.access] * len(touched)
        overlaps = [_overlaps(operand, registers, touched) for operand in self.operands]
        rows: list[str] = []
        for hit in range(len(touched)):
            here = tuple(o for o, overlap in zip(self.operands, overlaps, strict=True) if overlap[hit])
            rows.append(combine(here) if here else self.access)
        return rows


class _Fit(IntEnum):
    NO = 0
    UNKNOWN = 1  # an operand whose address the registers no longer tell
    SURE = 2


@dataclass(frozen=True, slots=True)
class _Hits:
    # The evidence: where it trapped, with which registers, on which bytes.
    pc: int
    registers: Words
    touched: Sequence[tuple[int, int]]

    def fit(self, operands: tuple[Operand, ...]) -> _Fit:
        # One overlap is enough: a hit may also stand for a change that was made unseen, by the kernel say,
        # and noticed only at this trap.
        if any(_overlaps(operand, self.registers, self.touched).any() for operand in operands):
            return _Fit.SURE
        return _Fit.NO if all(operand.known for operand in operands) else _Fit.UNKNOWN


def resolve(
    pc: int,
    *,
    function_start: int | None,
    registers: Words,
    touched: Sequence[tuple[int, int]],
    kernel: bool = False,
    execute: bool = False,
) -> Site:
    """Find the instruction that caused the hits at `pc`.

    Parameters
    ----------
    pc : int
        Program counter at the trap, in this process's memory.
    function_start : int or None
        Address of the function that holds `pc`, if known.
    registers : (n, 16) uint64 array
        In the order of `REGISTERS`, of n >= 1 sample hits; for data traps after the instruction.
    touched : sequence of n (address, nbytes)
        The watched piece of each sample.
    kernel : bool
        The access was made by the kernel for a system call; pc follows the ``syscall`` instruction.
    execute : bool
        An execute breakpoint: it traps **before** the instruction at `pc`.

    Returns
    -------
    Site
        With confidence "none", empty text and access "unknown" where nothing fits.
    """
    if execute:
        instruction = _decode(pc, read_code(pc, _LONGEST))
        return _site(pc, instruction, "exact", access="execute") if instruction else _nothing(pc)
    if kernel:
        code = read_code(pc - 2, 2)
        instruction = _decode(pc - 2, code) if code in _SYSTEM_CALLS else None
        return _site(pc, instruction, "exact", access="unknown") if instruction else _nothing(pc)
    rows = np.asarray(registers, dtype=np.uint64).reshape(-1, len(REGISTERS))
    hits = _Hits(pc, rows[:_SAMPLES], touched[:_SAMPLES])
    swept = _sweeps.ending_at(function_start, pc) if function_start is not None else None
    swept_fit = hits.fit(operands_of(swept)) if swept and _falls_through(swept, pc) else _Fit.NO

    under = _decode(pc, read_code(pc, _LONGEST))
    if under and _repeats(under) and hits.fit(operands_of(under)) == _Fit.SURE:
        if swept_fit == _Fit.SURE:
            return _site(pc, under, "guess")
        return _site(pc, under, "exact" if swept or pc == function_start else "filtered")
    if swept and swept_fit == _Fit.SURE:
        return _site(pc, swept, "exact")
    arrived = _called(hits) or _returned(hits, swept)
    if arrived:
        return arrived
    if swept and swept_fit == _Fit.UNKNOWN:
        return _site(pc, swept, "exact")
    return _search(hits, contradicted=swept is not None)


# Every instruction that could end at the pc, kept if its address fits.
def _search(hits: _Hits, *, contradicted: bool) -> Site:
    code = _read_before(hits.pc, _WINDOW)
    found: dict[_Fit, list[Instruction]] = {_Fit.SURE: [], _Fit.UNKNOWN: []}
    for length in range(1, min(_LONGEST, len(code)) + 1):
        instruction = _decode(hits.pc - length, code[-length:])
        if instruction and len(instruction) == length and _falls_through(instruction, hits.pc):
            operands = operands_of(instruction)
            if fit := hits.fit(operands):
                found[fit].append(instruction)
    if len(found[_Fit.SURE]) == 1:
        # A sweep that ended at another instruction speaks against it: then the function's start is doubtful.
        return _site(hits.pc, found[_Fit.SURE][0], "guess" if contradicted else "filtered")
    if found[_Fit.SURE]:
        votes = _votes(code)
        return _site(hits.pc, max(found[_Fit.SURE], key=lambda i: (votes[len(i)], len(i))), "guess")
    if found[_Fit.UNKNOWN] and not contradicted:
        votes = _votes(code)
        best = max(found[_Fit.UNKNOWN], key=lambda i: (votes[len(i)], len(i)))
        if votes[len(best)] == max(votes):
            return _site(hits.pc, best, "guess")
    return _nothing(hits.pc)


# A call that pushed its return address onto watched bytes (or read its target from them) traps at the
# callee's first instruction: the call stands before the return address, which is on top of the stack.
def _called(hits: _Hits) -> Site | None:
    back = [
        struct.unpack("<Q", top)[0]
        for rsp in hits.registers[:, RSP]
        if len(top := read_code(int(rsp), 8)) == 8
    ]
    for after in sorted(set(back), key=back.count, reverse=True)[:4]:
        code = _read_before(after, _LONGEST)
        found = []
        for length in range(2, len(code) + 1):
            call = _decode(after - length, code[-length:])
            if not call or len(call) != length or call.flow_control not in _CALLS:
                continue
            leads_here = _leads_to(call, hits)
            if leads_here is not False and hits.fit(operands_of(call)) == _Fit.SURE:
                found.append((leads_here is True, call))
        if found:
            certain, call = max(found, key=lambda pair: (pair[0], -len(pair[1])))
            direct = call.flow_control == FlowControl.CALL
            confidence = "exact" if direct else "filtered" if certain or len(found) == 1 else "guess"
            return _site(hits.pc, call, confidence)
    return None


# Whether a call goes to the trapped pc; None where its target can no longer be told.
def _leads_to(call: Instruction, hits: _Hits) -> bool | None:
    if call.flow_control == FlowControl.CALL:
        return bool(call.near_branch_target == hits.pc)
    if call.op0_kind == OpKind.REGISTER:
        register = INDEX.get(RegisterExt.full_register(call.op0_register))
        return None if register is None else bool((hits.registers[:, register] == np.uint64(hits.pc)).any())
    target = operands_of(call)[0]
    if not target.known:
        return None
    pointers = {read_code(int(start), 8) for start in target.starts(hits.registers)}
    return struct.pack("<Q", hits.pc) in pointers or None  # the pointer may have been changed since


# A ret that read watched bytes traps behind the call that it returns to. Where the ret stands is lost.
def _returned(hits: _Hits, swept: Instruction | None) -> Site | None:
    popped = Operand("read", 8, base=RSP, displacement=2**64 - 8)
    if hits.fit((popped,)) != _Fit.SURE:
        return None
    code = _read_before(hits.pc, _LONGEST)
    if swept is None:
        ending = (_decode(hits.pc - n, code[-n:]) for n in range(2, len(code) + 1))
        if not any(i and i.next_ip == hits.pc and i.flow_control in _CALLS for i in ending):
            return None
    elif swept.flow_control not in _CALLS:
        return None
    return Site(hits.pc, 0, 0, "ret", "read", "guess", (popped,))


class _Sweeps:
    # Where instructions end, by start of function; grown as far as asked, forgotten when the code changes.
    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._known: OrderedDict[int, tuple[bytes, np.ndarray[Any, np.dtype[np.int64]], int]] = OrderedDict()

    def ending_at(self, start: int, pc: int) -> Instruction | None:
        # The instruction that ends exactly at pc, if valid instructions lead from start to it.
        wanted = pc - start
        if not 0 < wanted <= _SWEEP_LIMIT:
            return None
        code = read_code(start, wanted + _LONGEST)
        if len(code) < wanted:
            return None
        swept, ends, invalid = self._known.pop(start, (b"", np.zeros(1, dtype=np.int64), _SWEEP_LIMIT * 2))
        if code[: len(swept)] != swept[: len(code)]:
            swept, ends, invalid = b"", np.zeros(1, dtype=np.int64), _SWEEP_LIMIT * 2
        if ends[-1] < wanted:
            origin = int(ends[-1])
            # Negative: not an instruction.
            lengths = np.array([len(i) if i else -len(i) for i in Decoder(64, code[origin:])], dtype=np.int64)
            more = origin + np.cumsum(np.abs(lengths))
            keep = int(np.searchsorted(more, wanted)) + 1  # what lies beyond may be cut off
            bad = np.flatnonzero(lengths[:keep] < 0)
            invalid = min(invalid, int(more[bad[0]])) if len(bad) else invalid
            ends, swept = np.concatenate([ends, more[:keep]]), code
        self._known[start] = (swept, ends, invalid)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)
        place = int(np.searchsorted(ends, wanted))
        if place >= len(ends) or ends[place] != wanted or invalid <= wanted:
            return None
        offset = int(ends[place - 1])
        return _decode(start + offset, code[offset:wanted])


_sweeps = _Sweeps(capacity=64)


# votes[n]: from how many offsets a sweep reaches the end of `code` by an instruction of n bytes.
def _votes(code: bytes) -> list[int]:
    size = len(code)
    last = [0] * size  # length of the last instruction on the way from each offset
    votes = [0] * (_LONGEST + 1)
    for offset in range(size - 1, -1, -1):
        instruction = Decoder(64, code[offset:]).decode()
        after = offset + len(instruction)
        if instruction and after <= size:
            last[offset] = len(instruction) if after == size else last[after]
            if offset < size - _LONGEST:
                votes[last[offset]] += 1
    votes[0] = 0
    return votes


def _overlaps(
    operand: Operand, registers: Words, touched: Iterable[tuple[int, int]]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if not operand.known:
        return np.zeros(len(registers), dtype=np.bool_)
    watched = np.array([address for address, _ in touched], dtype=np.uint64)
    sizes = np.array([nbytes for _, nbytes in touched], dtype=np.uint64)
    starts = operand.starts(registers)
    span = np.uint64(operand.nbytes or _UNKNOWN_SPAN)
    # Differences modulo 2**64: either range begins inside the other.
    return np.asarray(((watched - starts) < span) | ((starts - watched) < sizes), dtype=np.bool_)


def _repeats(instruction: Instruction) -> bool:
    prefixed = instruction.has_rep_prefix or instruction.has_repne_prefix
    return bool(instruction.is_string_instruction and prefixed)


# False for an instruction after which the pc cannot be the next one.
def _falls_through(instruction: Instruction, pc: int) -> bool:
    if instruction.flow_control not in _TRANSFERS:
        return True
    return bool(instruction.flow_control == FlowControl.CALL and instruction.near_branch_target == pc)


# None for what is no instruction, or cut off.
def _decode(address: int, code: bytes) -> Instruction | None:
    if not code:
        return None
    instruction = Decoder(64, code, ip=address).decode()
    return None if instruction.code == Code.INVALID else instruction


# As much as can be read of the bytes that end at an address; at most one page border lies between.
def _read_before(address: int, nbytes: int) -> bytes:
    code = read_code(address - nbytes, nbytes)
    if len(code) == nbytes:
        return code
    page = address & ~0xFFF
    return read_code(page, address - page)


def _site(pc: int, instruction: Instruction, confidence: str, *, access: str | None = None) -> Site:
    operands = operands_of(instruction) if access is None else ()
    text = _formatter.format(instruction)
    length = len(instruction)
    return Site(pc, instruction.ip, length, text, access or combine(operands), confidence, operands)


def _nothing(pc: int) -> Site:
    return Site(pc, 0, 0, "", "unknown", "none")
