"""Each instruction is executed for real; the registers behind it are what a trap would have saved."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwwatch.code.instructions import REGISTERS, Site, read_code, resolve
from hwwatch.code.maps import Elf
from hwwatch.code.operands import operands_of

needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc to assemble the instructions")

Range = tuple[str, int | None, int]


def r(offset: int | None, size: int) -> Range:
    return "read", offset, size


def w(offset: int | None, size: int) -> Range:
    return "write", offset, size


def rw(offset: int | None, size: int) -> Range:
    return "readwrite", offset, size


# name: (set-up, with rdi = the buffer; the instruction as shown; what it touches: access, offset in the
# buffer or None where the registers cannot tell, bytes). The stack instructions use the buffer's middle.
STACK = "lea rsp, [rdi + 4096]"
CASES: dict[str, tuple[str, str, list[Range]]] = {
    "store": ("", "mov [rdi+8], rax", [w(8, 8)]),
    "store_byte": ("mov ecx, 3", "mov [rdi+rcx*4+3], dl", [w(15, 1)]),
    "store_immediate": ("", "mov dword ptr [rdi+4], 5", [w(4, 4)]),
    "load": ("", "mov rax, [rdi+8]", [r(8, 8)]),
    "load_over_base": ("", "mov rdi, [rdi+8]", [r(None, 8)]),
    "load_over_low_byte": ("", "mov dil, [rdi+8]", [r(None, 1)]),
    "load_over_index": ("xor ecx, ecx", "movzx ecx, word ptr [rdi+rcx*2]", [r(None, 2)]),
    "fs": ("", "mov rax, fs:[0]", [r(None, 8)]),
    "compare": ("", "cmp dword ptr [rdi+4], 0", [r(4, 4)]),
    "xadd": ("mov eax, 7", "lock xadd [rdi+8], eax", [rw(8, 4)]),
    "xadd_base": ("", "xadd [rdi], rdi", [rw(None, 8)]),
    "cmpxchg": ("mov rax, [rdi]", "lock cmpxchg [rdi], rcx", [rw(0, 8)]),
    "cmpxchg_failing": ("mov eax, 1", "cmpxchg [rdi], ecx", [rw(0, 4)]),
    "cmpxchg_base": ("mov rax, rdi", "cmpxchg [rax], ecx", [rw(None, 4)]),
    "cmpxchg16b": ("", "cmpxchg16b [rdi]", [rw(0, 16)]),
    "xchg": ("mov eax, 9", "xchg [rdi+4], eax", [rw(4, 4)]),
    "inc": ("", "inc word ptr [rdi+2]", [rw(2, 2)]),
    "add_nothing": ("", "add dword ptr [rdi], 0", [rw(0, 4)]),
    "bts_register": ("mov eax, 100", "bts [rdi], eax", [rw(None, 4)]),
    "bts_immediate": ("", "bts dword ptr [rdi], 3", [rw(0, 4)]),
    "movnti": ("mov eax, 9", "movnti [rdi+4], eax", [w(4, 4)]),
    "movaps": ("", "movaps [rdi+0x10], xmm0", [w(16, 16)]),
    "movsd_sse": ("", "movsd [rdi+0x10], xmm0", [w(16, 8)]),
    "fstp": ("fld1", "fstp tbyte ptr [rdi], st", [w(0, 10)]),
    "fxsave": ("", "fxsave [rdi]", [w(0, 512)]),
    "xsave": ("mov eax, 3; xor edx, edx; fninit", "xsave [rdi]", [rw(0, 0)]),
    "clflush": ("", "clflush [rdi]", [r(0, 1)]),
    "stosd": ("xor eax, eax; add rdi, 8", "stosd [rdi]", [w(8, 4)]),
    "lodsq": ("mov rsi, rdi", "lodsq [rsi]", [r(0, 8)]),
    "movsb": ("lea rsi, [rdi+100]", "movsb [rdi], [rsi]", [w(0, 1), r(100, 1)]),
    "cmpsw": ("lea rsi, [rdi+100]", "cmpsw [rsi], [rdi]", [r(100, 2), r(0, 2)]),
    "scasb": ("", "scasb [rdi]", [r(0, 1)]),
    "rep_stosb": ("xor eax, eax; mov ecx, 96", "rep stosb [rdi]", [w(32, 64)]),
    "rep_movsq": ("lea rsi, [rdi+512]; mov ecx, 16", "rep movsq [rdi], [rsi]", [w(64, 64), r(576, 64)]),
    "push": (STACK, "push rdi", [w(4088, 8)]),
    "push_rsp": (STACK, "push rsp", [w(4088, 8)]),
    "push_memory": (STACK, "push qword ptr [rdi]", [r(0, 8), w(4088, 8)]),
    "push_stack": (STACK, "push qword ptr [rsp+8]", [r(4104, 8), w(4088, 8)]),
    "pushfq": (STACK, "pushfq", [w(4088, 8)]),
    "pop": (STACK, "pop rax", [r(4096, 8)]),
    "pop_memory": (STACK, "pop qword ptr [rdi]", [w(0, 8), r(4096, 8)]),
    "pop_stack": (STACK, "pop qword ptr [rsp]", [w(4104, 8), r(4096, 8)]),
    "pop_rsp": (STACK, "pop rsp", [r(None, 8)]),
    "enter": (STACK, "enter 0x20, 0", [w(4088, 8)]),
    "leave": ("lea rbp, [rdi+4096]", "leave", [r(4096, 8)]),
}
if "avx2" in Path("/proc/cpuinfo").read_text():
    CASES |= {
        "avx_store": ("", "vmovups [rdi+0x20], ymm0", [w(32, 32)]),
        "avx_masked": ("vpcmpeqd ymm1, ymm1, ymm1", "vpmaskmovd [rdi+0x20], ymm1, ymm0", [w(32, 32)]),
        "avx_extract": ("", "vextractf128 [rdi], ymm0, 1", [w(0, 16)]),
    }
if "avx512f" in Path("/proc/cpuinfo").read_text():
    scatter = "kxnorw k1, k1, k1; vpxord zmm1, zmm1, zmm1"
    CASES |= {
        "avx512_store": ("", "vmovdqu64 [rdi+0x40], zmm16", [w(64, 64)]),
        "avx512_masked": ("kxnorw k1, k1, k1", "vmovdqu32 [rdi]{k1}, zmm0", [w(0, 64)]),
        "avx512_broadcast": ("", "vaddps zmm0, zmm1, [rdi]{1to16}", [r(0, 4)]),
        "avx512_scatter": (scatter, "vpscatterdd [rdi+zmm1*4], k1, zmm0", [w(None, 4)]),
    }
# Calls: the pc of the trap is the callee's first instruction.
CALLS: dict[str, tuple[str, str, list[Range]]] = {
    "call": (STACK, "call call_pc", [w(4088, 8)]),
    "call_register": (STACK + "; lea rbx, [rip+call_register_pc]", "call rbx", [w(4088, 8)]),
    "call_memory": (
        STACK + "; lea rbx, [rip+call_memory_pc]; mov [rdi+8], rbx",
        "call qword ptr [rdi+8]",
        [r(8, 8), w(4088, 8)],
    ),
}
# Where the assembler wants it otherwise than the disassembler shows it.
SOURCES = {name: name for name in ("stosd", "lodsq", "movsb", "cmpsw", "scasb")} | {
    "rep_stosb": "rep stosb",
    "rep_movsq": "rep movsq",
    "movsd_sse": "movsd qword ptr [rdi+0x10], xmm0",
    "fstp": "fstp tbyte ptr [rdi]",
    "avx512_scatter": "vpscatterdd [rdi+zmm1*4]{k1}, zmm0",
}
KNOWN = [name for name, (_, _, ranges) in CASES.items() if all(offset is not None for _, offset, _ in ranges)]
# Writes that happen to store what was there, or nothing.
UNCHANGING = {"add_nothing", "bts_immediate", "cmpxchg_failing", "cmpxchg_base", "cmpxchg16b"}
SAVE = "".join(f"mov [rip+saved+{8 * i}], {name}\n" for i, name in enumerate(REGISTERS))
PATTERN = random.Random(3).randbytes(8192)


# One function a case: saves what the ABI wants kept, runs the instruction, keeps all registers at NAME_pc.
def assembly() -> str:
    text = ".intel_syntax noprefix\n.bss\n.balign 64\n.globl saved\nsaved: .zero 128\nkept: .zero 8\n.text\n"
    for name, (setup, instruction, _) in (CASES | CALLS).items():
        text += f"""
.globl run_{name}, {name}_begin, {name}_pc
.type run_{name}, @function
run_{name}:
    push rbx; push rbp; push r12; push r13; push r14; push r15
    mov [rip+kept], rsp
    {setup}
{name}_begin:
    {SOURCES.get(name, instruction)}
    {"ud2" if name in CALLS else ""}
{name}_pc:
    {SAVE}
    mov rsp, [rip+kept]
    pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx
    ret
.size run_{name}, . - run_{name}
"""
    return text + (
        ".globl run_ret, ret_pc, ret_end\nrun_ret: call 1f\nret_pc:\n"
        f"{SAVE}ret\n1: ret\nret_end:\n"
        ".globl run_system, system_pc\nrun_system: mov eax, 39\nsyscall\nsystem_pc: ret\n"
        ".globl run_relative, relative_begin, relative_pc, place\nrun_relative: mov eax, 1\nrelative_begin:\n"
        "mov [rip+place], eax\nrelative_pc: ret\n.data\nplace: .zero 8\n"
        '.section .note.GNU-stack,"",@progbits\n'
    )


def build(directory: Path) -> Path:
    source, library = directory / "cases.S", directory / "libcases.so"
    source.write_text(assembly())
    subprocess.run(["gcc", "-shared", "-Wl,-Bsymbolic", "-o", library, source], check=True, timeout=60)
    return library


def address(library: ctypes.CDLL, name: str) -> int:
    return ctypes.addressof(ctypes.c_char.in_dll(library, name))


def describe(site: Site, registers: np.ndarray[Any, Any], buffer: int) -> dict[str, Any]:
    starts, sizes, known = site.ranges(registers)
    offsets = [int(s) - buffer if k else None for s, k in zip(starts[0], known, strict=True)]
    return {
        "address": site.address,
        "length": site.length,
        "text": site.text,
        "access": site.access,
        "confidence": site.confidence,
        "ranges": [
            list(t) for t in zip((o.access for o in site.operands), offsets, sizes.tolist(), strict=True)
        ],
    }


def find(
    pc: int,
    registers: np.ndarray[Any, Any],
    buffer: int,
    function: int | None,
    touched: list[tuple[int, int]],
) -> dict[str, Any]:
    site = resolve(pc, function_start=function, registers=registers, touched=touched)
    return describe(site, registers, buffer)


# Runs in a child process: an instruction that faults must not take the tests with it.
def run_all(path: str) -> dict[str, Any]:
    library = ctypes.CDLL(path)
    saved = (ctypes.c_uint64 * 16).in_dll(library, "saved")
    store = ctypes.create_string_buffer(8192 + 64)
    buffer = (ctypes.addressof(store) + 63) & ~63
    results = {}
    for name in (*CASES, *CALLS):
        ctypes.memmove(buffer, PATTERN, 8192)
        library[f"run_{name}"](ctypes.c_void_p(buffer))
        after = ctypes.string_at(buffer, 8192)
        registers = np.array([list(saved)], dtype=np.uint64)
        pc, start = address(library, f"{name}_pc"), address(library, f"run_{name}")
        expected = (CASES | CALLS)[name][2]
        # The last operand that is known, so that of two the second is put to the test as well.
        touched = [(buffer + offset, max(size, 1)) for _, offset, size in expected if offset is not None][-1:]
        elsewhere = [(buffer + 3000, 8)]

        function = pc if name in CALLS else start
        found = partial(find, pc, registers, buffer)
        results[name] = {
            "begin": address(library, f"{name}_begin"),
            "changed": [i for i in range(8192) if after[i] != PATTERN[i]],
            "swept": found(function, touched or elsewhere),
            "stripped": found(None, touched or elsewhere),
            "elsewhere": found(start, elsewhere),
        }
    library.run_ret()
    registers = np.array([list(saved)], dtype=np.uint64)
    touched = [(int(registers[0, REGISTERS.index("rsp")]) - 8, 8)]
    for key, function in (("ret", address(library, "run_ret")), ("ret_stripped", None)):
        back = resolve(
            address(library, "ret_pc"), function_start=function, registers=registers, touched=touched
        )
        results[key] = describe(back, registers, 0)
    return results


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def results(library: Path) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, __file__, str(library)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)  # type: ignore[no-any-return]


# Together, as `Site.access` has it.
def together(ranges: list[Range]) -> str:
    reads = any("read" in access for access, _, _ in ranges)
    writes = any("write" in access for access, _, _ in ranges)
    return "readwrite" if reads and writes else "read" if reads else "write"


@needs_gcc
@pytest.mark.parametrize("name", CASES)
def test_swept_from_the_function_start(results: dict[str, Any], name: str) -> None:
    _, text, ranges = CASES[name]
    site = results[name]["swept"]
    assert (site["text"], site["address"]) == (text, results[name]["begin"])
    assert (site["access"], site["confidence"]) == (together(ranges), "exact")
    assert [tuple(found) for found in site["ranges"]] == ranges


@needs_gcc
@pytest.mark.parametrize("name", CASES)
def test_changed_bytes_lie_in_the_written_ranges(results: dict[str, Any], name: str) -> None:
    ranges = [(offset, size or 8192) for access, offset, size in CASES[name][2] if "write" in access]
    changed = set(results[name]["changed"])
    assert bool(changed) == (bool(ranges) and name not in UNCHANGING)
    if name.startswith("rep_"):  # only the end of it is told
        assert max(changed) == ranges[0][0] + ranges[0][1] - 1
    elif name in KNOWN:
        assert changed <= {place for offset, size in ranges for place in range(offset, offset + size)}


@needs_gcc
@pytest.mark.parametrize("name", KNOWN)
def test_stripped_library_is_searched_backward(results: dict[str, Any], name: str) -> None:
    site = results[name]["stripped"]
    assert (site["text"], site["address"]) == (CASES[name][1], results[name]["begin"])
    assert site["confidence"] in ("filtered", "guess")


@needs_gcc
@pytest.mark.parametrize("name", [name for name in KNOWN if name != "xsave"])  # whose length is not known
def test_no_instruction_is_claimed_for_bytes_it_did_not_touch(results: dict[str, Any], name: str) -> None:
    site = results[name]["elsewhere"]
    assert (site["text"], site["access"], site["confidence"]) == ("", "unknown", "none")
    assert (site["address"], site["length"], site["ranges"]) == (0, 0, [])


@needs_gcc
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("symbols", ["swept", "stripped"])
def test_call_traps_in_the_callee(results: dict[str, Any], name: str, symbols: str) -> None:
    site = results[name][symbols]
    assert site["address"] == results[name]["begin"]
    assert site["text"].startswith("call")
    assert site["confidence"] == ("exact" if name == "call" else "filtered")
    assert [tuple(found) for found in site["ranges"]] == CALLS[name][2]


@needs_gcc
@pytest.mark.parametrize("name", ["ret", "ret_stripped"])
def test_return_traps_behind_the_call(results: dict[str, Any], name: str) -> None:
    assert (results[name]["text"], results[name]["access"]) == ("ret", "read")
    assert results[name]["confidence"] == "guess"


# --- without running anything -------------------------------------------------------------------------------


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


if __name__ == "__main__":
    print(json.dumps(run_all(sys.argv[1])))
