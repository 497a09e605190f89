"""Each instruction is executed for real; the registers behind it are what a trap would have saved."""

from __future__ import annotations

import ctypes
import json
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

from hwwatch.code.instructions import REGISTERS, Site, resolve

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


if __name__ == "__main__":
    print(json.dumps(run_all(sys.argv[1])))
