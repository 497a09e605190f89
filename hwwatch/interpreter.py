"""Where this CPython keeps what the frame reader in `_core/frames.c` needs.

3.13 and later publish their offsets: ``_PyRuntime`` begins with ``_Py_DebugOffsets`` (cookie ``xdebugpy``,
CPython Include/internal/pycore_debug_offsets.h). 3.11 and 3.12 do not; their layouts are final, and stand
here as constants (Include/cpython/code.h, Include/internal/pycore_frame.h of those branches). Whatever is
used is proved by a self-test before a single frame is believed: a wrong layout switches frames off.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import types
from typing import Any

from hwwatch._core import ffi, lib

#: Why Python frames are not read, or "" where they are. Shown in the coverage.
problem = "not set up yet"

_COOKIE = b"xdebugpy"
_FIXED: dict[tuple[int, int], dict[str, int]] = {
    (3, 11): {
        "tstate_frame": 56,
        "cframe_frame": 8,
        "has_cframe": 1,
        "frame_code": 32,
        "frame_previous": 48,
        "frame_instruction": 56,
        "frame_owner": 69,
        "first_foreign_owner": 255,
        "code_filename": 112,
        "code_qualname": 128,
        "code_linetable": 136,
        "code_firstlineno": 72,
        "code_bytecode": 184,
    },
    (3, 12): {
        "tstate_frame": 56,
        "cframe_frame": 0,
        "has_cframe": 1,
        "frame_code": 0,
        "frame_previous": 8,
        "frame_instruction": 56,
        "frame_owner": 70,
        "first_foreign_owner": 3,  # FRAME_OWNED_BY_CSTACK
        "code_filename": 112,
        "code_qualname": 128,
        "code_linetable": 136,
        "code_firstlineno": 68,
        "code_bytecode": 192,
    },
}
# How many numbers the sections of _Py_DebugOffsets have: runtime, interpreter, thread (with what comes before
# the next), frame. The code object's follow. For a version that is not here, the one before it is tried.
_SECTIONS: dict[tuple[int, int], tuple[int, int, int, int]] = {
    (3, 13): (3, 13, 9, 6),
    (3, 14): (3, 16, 9, 8),
    (3, 15): (3, 16, 17, 8),
}


def _published() -> dict[str, int]:
    """Offsets from `_PyRuntime`; KeyError or ValueError where they make no sense."""
    raw = bytes((ctypes.c_char * 1024).in_dll(ctypes.pythonapi, "_PyRuntime"))
    if not raw.startswith(_COOKIE):
        raise ValueError("_PyRuntime does not begin with debug offsets")
    values = struct.unpack_from("<120Q", raw, 8)
    version, free_threaded = values[:2]
    if version >> 16 != sys.hexversion >> 16:
        raise ValueError(f"debug offsets are of version {version:#x}")
    if free_threaded:
        raise ValueError("free-threaded builds keep bytecode per thread")
    runtime, interpreter, threads, frames = max(
        (known, sizes) for known, sizes in _SECTIONS.items() if known <= sys.version_info[:2]
    )[1]
    at = 2 + runtime + interpreter
    thread = values[at : at + threads]
    at += threads
    frame = values[at : at + frames]
    at += frames
    code = values[at : at + 10]
    return {
        "tstate_frame": thread[4],
        "frame_previous": frame[1],
        "frame_code": frame[2],
        "frame_instruction": frame[3],
        "frame_owner": frame[5],
        "first_foreign_owner": 3,  # 3.13: CSTACK; 3.14: INTERPRETER, CSTACK; 3.15: INTERPRETER
        "code_filename": code[1],
        "code_qualname": code[3],
        "code_linetable": code[4],
        "code_firstlineno": code[5],
        "code_bytecode": code[9],
    }


def _strings() -> dict[str, int]:
    """How str objects are laid out, read off four of them: one for each storage kind."""
    state_at = 32  # PyASCIIObject.state, behind ob_base, length and hash; the same in 3.11-3.15
    samples = {
        text: int.from_bytes(ctypes.string_at(id(text) + state_at, 4), "little")
        for text in ("hwwatch", bytes([0xE9, 0xE8]).decode("latin-1"), "\u0100\u0101", "\U0001f600")
    }
    kinds = (1, 1, 2, 4)
    for shift in range(24):
        if all(
            state >> shift & 7 == kind for state, kind in zip(samples.values(), kinds, strict=True)
        ) and all(
            (state >> shift + 3 & 1, state >> shift + 4 & 1) == (1, text.isascii())
            for text, state in samples.items()
        ):
            break
    else:
        raise ValueError("the state bits of str objects are not recognised")
    latin1 = next(text for text in samples if not text.isascii())
    return {
        "object_type": 8,
        "bytes_size": 16,
        "bytes_data": bytes.__basicsize__ - 1,
        "str_length": 16,
        "str_state": state_at,
        "str_kind_shift": shift,
        "str_compact_bit": shift + 3,
        "str_ascii_bit": shift + 4,
        "str_ascii_data": sys.getsizeof("") - 1,
        "str_other_data": sys.getsizeof(latin1) - len(latin1) - 1,
    }


def layout() -> Any:
    """The ``struct hww_python *`` of the running interpreter.

    Raises
    ------
    ValueError
        This interpreter's layout is unknown.
    """
    if sys.implementation.name != "cpython":
        raise ValueError(f"frames can be read in CPython, not in {sys.implementation.name}")
    offsets = _FIXED.get(sys.version_info[:2]) or _published()
    address = ctypes.cast(ctypes.pythonapi.PyGILState_GetThisThreadState, ctypes.c_void_p).value
    return ffi.new(
        "struct hww_python *",
        {"thread_state": address, "code_type": id(types.CodeType), **offsets, **_strings()},
    )


def configure() -> None:
    """Tell the core the layout and prove it; without proof frames stay off, and `problem` says why."""
    global problem
    if sys.implementation.name == "cpython" and sys.version_info < (3, 13):
        received = ctypes.cast(ctypes.pythonapi._PyEval_SignalReceived, ctypes.c_void_p).value or 0
        main = ctypes.pythonapi.PyInterpreterState_Main
        main.restype = ctypes.c_void_p
        lib.hww_signals_configure(received, main())
    try:
        python = layout()
    except (ValueError, KeyError) as error:
        problem = str(error)
        return
    lib.hww_trap_open()  # the fault guard: a wrong layout must not crash
    try:
        lib.hww_frames_configure(python)
        problem = _self_test()
    finally:
        if problem:
            python.thread_state = 0
            lib.hww_frames_configure(python)
        lib.hww_trap_close()


def _self_test() -> str:
    """Compare a known call stack with what the core sees of it; "" where they agree."""
    from hwwatch.code.source import Source

    def inner() -> int:
        return int(lib.hww_frames_here(4))

    def outer() -> int:
        return next(inner() for _ in range(1))

    stack = outer()
    if not stack:
        return "the self-test saw no frames"
    seen = Source().frames(stack)[:3]
    middle = next(code for code in outer.__code__.co_consts if isinstance(code, types.CodeType))
    expected = [
        (code, code.co_firstlineno + step)
        for code, step in ((inner.__code__, 1), (middle, 0), (outer.__code__, 1))
    ]
    for frame, (code, line) in zip(seen, expected, strict=True):
        if frame[:3] != (code.co_qualname, code.co_filename, line):
            return f"the self-test saw {frame[:3]} in place of {(code.co_qualname, code.co_filename, line)}"
    return ""
