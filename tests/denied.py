"""Run a command as in a container: `perf_event_open` refused, and on request as a user without privileges.

    python tests/denied.py [--uid 65534] [--also ptrace …] -- command [argument …]

The filter is Docker's default for a system call that is not on its list: errno EPERM. `ptrace` and
`process_vm_readv` are allowed there since Linux 4.8.

With --uid (as root), the command has a home of its own, and folders of the interpreter that are closed
to that user are opened in a mount namespace of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import struct
import sys
import tempfile

#: asm/unistd_64.h
NUMBERS = {"perf_event_open": 298, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311}
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_SECCOMP_MODE_FILTER = 2
_SECCOMP_RET_ERRNO, _SECCOMP_RET_ALLOW = 0x00050000, 0x7FFF0000
_AUDIT_ARCH_X86_64 = 0xC000003E
_BPF_LOAD, _BPF_EQUAL, _BPF_RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h
_EPERM = 1


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _prctl(*arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(*[ctypes.c_ulong(argument) for argument in arguments]):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({arguments[0]}): {os.strerror(number)}")


def deny(numbers: list[int], error: int = _EPERM) -> None:
    """From now on these system calls fail, here and in all programs that this process becomes."""
    rows = [(_BPF_LOAD, 0, 0, 4), (_BPF_EQUAL, 1, 0, _AUDIT_ARCH_X86_64)]  # struct seccomp_data: arch
    rows += [(_BPF_RETURN, 0, 0, _SECCOMP_RET_ERRNO | error), (_BPF_LOAD, 0, 0, 0)]  # nr
    for number in numbers:
        rows += [(_BPF_EQUAL, 0, 1, number), (_BPF_RETURN, 0, 0, _SECCOMP_RET_ERRNO | error)]
    rows.append((_BPF_RETURN, 0, 0, _SECCOMP_RET_ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
    program = _Program(len(rows), ctypes.addressof(code))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    if libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]):
        number = ctypes.get_errno()
        raise OSError(number, f"mount on {target}: {os.strerror(number)}")


def open_up(paths: list[str]) -> None:
    """In a mount namespace of our own, let everybody go through to these folders."""
    gates: dict[str, set[str]] = {}
    for path in map(os.path.realpath, paths):
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts)):
            gate = "/" + "/".join(parts[:depth])
            if not os.stat(gate).st_mode & 0o001:
                gates.setdefault(gate, set()).add(f"{gate}/{parts[depth]}")
                break
    if not gates:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE, None)
    for gate, folders in gates.items():
        held = {folder: os.open(folder, os.O_PATH) for folder in folders}
        _mount("tmpfs", gate, "tmpfs", 0, "mode=755")
        for folder, handle in held.items():
            os.mkdir(folder)
            _mount(f"/proc/self/fd/{handle}", folder, None, _MS_BIND | _MS_REC, None)
            os.close(handle)


def become(uid: int, home: str) -> None:
    """Be that user and group, with no capability and no way to one; end with the parent."""
    open_up([sys.base_prefix, sys.prefix, os.getcwd()])
    os.chown(home, uid, uid)
    os.environ["HOME"] = home
    for name in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        os.environ.pop(name, None)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)  # and with it all capabilities (capabilities(7))
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--uid", type=int, help="user and group to run as, such as 65534 (nobody)")
    parser.add_argument("--also", nargs="*", default=[], choices=sorted(NUMBERS), help="refuse these, too")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    if given.uid is not None:
        home = tempfile.mkdtemp(prefix="hwwatch-home-")
        child = os.fork()
        if child:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command gets it, too
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            shutil.rmtree(home, ignore_errors=True)
            sys.exit(status if status >= 0 else 128 - status)
        become(given.uid, home)
    deny([NUMBERS[name] for name in ("perf_event_open", *given.also)])
    os.execvp(given.command[0], given.command)


if __name__ == "__main__":
    sys.exit(main())
