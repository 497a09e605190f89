"""What every section needs: the compiled floor, how often to measure, and the machine described."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass
class Setting:
    """How a section measures."""

    rounds: int
    compiled: Path
    floor: Any
    compiler: str
    quick: bool = False


COMPILER = os.environ.get("CC", "cc")


def compile_to(folder: Path) -> Path:
    """Compile `floor.c`; the path of the library."""
    library = folder / "floor.so"
    source = Path(__file__).with_name("floor.c")
    subprocess.run([COMPILER, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def load(library: Path) -> Any:
    """The compiled floor as a ctypes library."""
    floor = ctypes.CDLL(str(library))
    floor.floor_open.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int)
    floor.floor_close.restype = floor.floor_bare_close.restype = ctypes.c_uint64
    floor.floor_arm.argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_int), ctypes.c_int)
    floor.floor_switch.argtypes = (ctypes.c_void_p, ctypes.c_int)
    floor.floor_set.argtypes = (ctypes.c_void_p, ctypes.c_uint64)
    floor.floor_set.restype = None
    floor.floor_dress.argtypes = (ctypes.c_uint64,)
    for name in ("floor_store", "floor_load", "floor_call", "floor_int3"):
        getattr(floor, name).argtypes = (ctypes.c_void_p, ctypes.c_long)
        getattr(floor, name).restype = ctypes.c_double
    return floor


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "virtual": "yes" if "hypervisor" in Path("/proc/cpuinfo").read_text() else "no",
        "kernel": platform.release(),
        "memory": f"{memory >> 30} GiB",
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "pandas")},
        "load": f"{os.getloadavg()[0]:.1f}",
        "date": datetime.date.today().isoformat(),
    }
