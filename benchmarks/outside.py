"""The peers that watch a program from outside, or from an agent inside it; each is used at its best."""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from sessions import HERE, Peer, PeerError, Process

SCRIPTS = HERE / "peers"
GDB = ["-q", "-nx", "-batch", "-iex", "set auto-load off", "-iex", "set confirm off"]

NO_RECORD = "perf record, mem: (pc only)"
GDB_VALUES = "gdb, Python stop(): old, new, pc"
GDB_LINE = "gdb, Python stop() with the Python line, by fixed offsets"
GDB_HELPER = "gdb, Python stop() with the Python line, by CPython's gdb helper"
GDB_STACK = "gdb, Python stop() with 16 Python frames, by fixed offsets"
GDB_COMMANDS = "gdb, commands: value, pc"
LLDB = "lldb, Python loop: value, pc"
PTRACE_LOOP = "a bare ptrace loop in C: old, new, pc"
FRIDA = "Frida, JavaScript record: old, new, pc"
BPFTRACE = "bpftrace, watchpoint: value, pc"


def found(program: str) -> str:
    """The program's path, else a reason."""
    path = shutil.which(program)
    if not path:
        raise PeerError(f"{program} is not installed")
    return path


def layout() -> dict[str, int]:
    """Where this CPython keeps its frames, as hwwatch knows it."""
    from hwwatch import interpreter

    python = interpreter.layout()
    names = (
        "tstate_frame",
        "cframe_frame",
        "has_cframe",
        "frame_code",
        "frame_previous",
        "frame_instruction",
        "code_filename",
    )
    more = ("code_linetable", "code_firstlineno", "code_bytecode", "str_ascii_data")
    return {name: int(getattr(python, name)) for name in (*names, *more)}


def gdb_helper() -> str:
    """CPython's own gdb helper for this version: beside the interpreter, or where distributions put it."""
    python = Path(sys.executable).resolve()
    name = f"python{sysconfig.get_python_version()}-gdb.py"
    for place in (
        python.with_name(f"{python.name}-gdb.py"),
        Path(f"/usr/share/gdb/auto-load{python}-gdb.py"),
        Path("/usr/share/gdb/auto-load/usr/bin", name),
        Path("/usr/share/gdb/auto-load/usr/local/bin", name),
    ):
        if place.exists():
            return str(place)
    raise PeerError(f"{name} is not installed (Debian: python3-dbg)")


def gdb_stop(task: dict[str, Any]) -> list[str]:
    return [found("gdb"), *GDB, "-p", str(task["pid"]), "-x", str(SCRIPTS / "gdb_stop.py")]


def gdb_commands(task: dict[str, Any]) -> list[str]:
    place = f"*(unsigned long *) {task['address']}"
    print_it = f'printf "HIT %lu %p\\n", {place}, $pc'
    script = Path(task["folder"], "commands.gdb")
    script.write_text(
        f"watch {place}\ncommands\nsilent\n{print_it}\ncontinue\nend\necho READY\\n\ncontinue\n"
    )
    return [found("gdb"), *GDB, "-p", str(task["pid"]), "-x", str(script)]


def lldb_stop(task: dict[str, Any]) -> list[str]:
    steps = [
        f"process attach -p {task['pid']}",
        f"command script import {SCRIPTS / 'lldb_stop.py'}",
        "script lldb_stop.serve()",
    ]
    lldb = [found("lldb"), "-x", "-b", *(part for step in steps for part in ("-o", step))]
    # Debian's lldb 14 looks for its own Python module where it is not.
    modules = sorted(glob.glob("/usr/lib/llvm-*/lib/python3*/dist-packages"))
    return ["env", f"PYTHONPATH={os.pathsep.join(reversed(modules))}", *lldb]


def perf_record(task: dict[str, Any]) -> list[str]:
    """perf itself, told to begin by its control channel so that it is known when it has begun."""
    data = str(Path(task["folder"], "perf.data"))
    return perf_of(task, "wu", data)


def perf_record_all(task: dict[str, Any]) -> list[str]:
    """The kernel's accesses, too; times as the program's own clock has them."""
    return perf_of(task, "w", str(Path(task["folder"], "perf.data")), "-k", "CLOCK_MONOTONIC")


def perf_of(task: dict[str, Any], kind: str, data: str, *more: str) -> list[str]:
    event = f"mem:{task['address']:#x}/8:{kind}"
    words = [
        found("perf"),
        "record",
        "-q",
        "-e",
        event,
        "-c",
        "1",
        "-m",
        "2048",
        "-p",
        str(task["pid"]),
        *more,
    ]
    return [sys.executable, "-S", str(SCRIPTS / "perf_begin.py"), *words, "-o", data]


def printed(folder: Path, eyes: Process) -> int:
    """Of a peer that prints a line a hit."""
    return eyes.hits


def perf_count(folder: Path, eyes: Process) -> int:
    script = [found("perf"), "script", "-i", str(folder / "perf.data"), "-F", "ip"]
    return len(subprocess.run(script, capture_output=True, check=True).stdout.split())


def tracer(task: dict[str, Any]) -> list[str]:
    built = Path(task["folder"], "tracer")
    subprocess.run(
        [task["compiler"], "-O2", "-o", str(built), str(SCRIPTS / "tracer.c")],
        check=True,
        capture_output=True,
    )
    return [str(built), str(task["pid"]), str(task["address"])]


def frida_agent(task: dict[str, Any]) -> list[str]:
    if importlib.util.find_spec("frida") is None:
        raise PeerError("frida is not installed (pip install 'hwwatch[bench]')")
    return [sys.executable, str(SCRIPTS / "frida_watch.py")]


def bpftrace(task: dict[str, Any]) -> list[str]:
    address = task["address"]
    program = (
        f'BEGIN {{ printf("READY\\n"); }} '
        f"watchpoint:{address:#x}:8:w "
        f'{{ printf("HIT %lx %lu\\n", reg("ip"), *(uint64 *)uptr({address})); }} '
    )
    return [found("bpftrace"), "-p", str(task["pid"]), "-e", program]


def nobody(task: dict[str, Any]) -> list[str]:
    return ["sh", "-c", "echo READY; read line"]


NOBODY = Peer("nobody", 400, nobody, count=lambda folder, eyes: None)


def peers(compiler: str) -> list[Peer]:
    """All of them; those that are not installed raise when they are started."""
    offsets = layout()
    try:
        helper: str | None = gdb_helper()
    except PeerError:
        helper = None

    def with_helper(task: dict[str, Any]) -> list[str]:
        gdb_helper()
        return gdb_stop(task)

    return [
        Peer(GDB_VALUES, 60, gdb_stop, more={"way": "values", "layout": offsets}),
        Peer(GDB_LINE, 40, gdb_stop, more={"way": "offsets", "layout": offsets}),
        Peer(GDB_HELPER, 20, with_helper, more={"way": "helper", "layout": offsets, "helper": helper}),
        Peer(GDB_STACK, 20, gdb_stop, more={"way": "stack", "layout": offsets}),
        Peer(GDB_COMMANDS, 60, gdb_commands, count=printed),
        Peer(LLDB, 20, lldb_stop),
        Peer(PTRACE_LOOP, 300, tracer, more={"compiler": compiler}),
        Peer(NO_RECORD, 400, perf_record, count=perf_count),
        Peer(FRIDA, 400, frida_agent, first=True),
        Peer(BPFTRACE, 400, bpftrace, count=printed),
    ]
