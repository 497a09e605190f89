"""Builds `floor.c` and describes the machine."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any


def build() -> Any:
    """The compiled floor as a ctypes library."""
    folder = Path(tempfile.mkdtemp(prefix="hwwatch-floor-"))
    library = folder / "floor.so"
    source = Path(__file__).with_name("floor.c")
    subprocess.run(
        [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True
    )
    floor = ctypes.CDLL(str(library))
    library.unlink()
    folder.rmdir()
    floor.floor_open.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int)
    floor.floor_close.restype = ctypes.c_uint64
    for name in ("floor_store", "floor_load", "floor_call"):
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
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "virtual": "yes" if "hypervisor" in Path("/proc/cpuinfo").read_text() else "no",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
