"""Runs a command where perf_event_open is refused with EPERM, as under Docker's default seccomp profile.

python tests/refused.py COMMAND [ARG ...]
"""

import ctypes
import os
import struct
import sys

LOAD, JUMP, RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K (linux/bpf_common.h)
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
PERF_EVENT_OPEN, X86_64, EPERM = 298, 0xC000003E, 1
PROGRAM = (
    (LOAD, 0, 0, ARCHITECTURE),
    (JUMP, 0, 3, X86_64),
    (LOAD, 0, 0, NUMBER),
    (JUMP, 0, 1, PERF_EVENT_OPEN),
    (RETURN, 0, 0, 0x00050000 | EPERM),  # SECCOMP_RET_ERRNO
    (RETURN, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
)


class Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_char_p))


def refuse() -> None:
    """From now on, for this process and all that it starts (prctl(2), seccomp(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = b"".join(struct.pack("HBBI", *line) for line in PROGRAM)
    for words in ((38, 1, 0, 0, 0), (22, 2, ctypes.byref(Filter(len(PROGRAM), code)))):
        if libc.prctl(*words):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    refuse()
    os.execvp(sys.argv[1], sys.argv[1:])
