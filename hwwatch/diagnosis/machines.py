"""What there is: kernel, CPU, hypervisor, container, permissions, Python. Only files are read."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import resource
from dataclasses import dataclass
from pathlib import Path

from hwwatch import interpreter, native
from hwwatch.processes import status_of

#: Capabilities that matter here, by number (linux/capability.h).
_CAPABILITIES = {38: "CAP_PERFMON", 21: "CAP_SYS_ADMIN", 19: "CAP_SYS_PTRACE"}
_PR_GET_DUMPABLE = 3
_CLOCKS = {"kvm-clock": "KVM", "hyperv": "Hyper-V", "xen": "Xen"}
_MARKERS = {"/.dockerenv": "Docker", "/run/.containerenv": "Podman"}
_GROUPS = {
    "kubepods": "Kubernetes",
    "docker": "Docker",
    "libpod": "Podman",
    "containerd": "containerd",
    "lxc": "LXC",
}


@dataclass(frozen=True)
class Machine:
    """What decides on hardware breakpoints, as far as files tell.

    Attributes
    ----------
    hypervisor : str
        Empty on bare metal.
    container : str
        Kind of container, and what tells of it; empty outside.
    settings : bool
        Kernel settings can be written from here: /proc/sys is not mounted for reading only, as in containers.
    seccomp : int or None
        0 none, 1 strict, 2 filters (proc(5), Seccomp); None where the kernel has none.
    paranoid, yama : int or None
        ``kernel.perf_event_paranoid`` and ``kernel.yama.ptrace_scope``; None where the kernel has none.
    capabilities : tuple of str
        Effective ones that matter here.
    user_namespace : bool
        Capabilities hold within a user namespace only, where the kernel's perf events ignore them.
    dumpable : bool
        Other processes of the same user may look into this one (prctl(2), PR_GET_DUMPABLE).
    frames : str
        Why Python lines are not read; empty where they are.
    open_files, file_limit : int
        Descriptors in use, and how many there may be (soft limit).
    """

    kernel: str
    architecture: str
    cpu: str
    hypervisor: str
    container: str
    settings: bool
    seccomp: int | None
    paranoid: int | None
    yama: int | None
    user: int
    capabilities: tuple[str, ...]
    user_namespace: bool
    dumpable: bool
    libc: str
    python: str
    frames: str
    open_files: int
    file_limit: int

    @property
    def may_perf(self) -> bool:
        """Whether paranoid and capabilities allow perf events of one's own threads (perf_event_open(2))."""
        return self.paranoid is not None and (self.paranoid <= 2 or self.monitors)

    @property
    def monitors(self) -> bool:
        """Whether capabilities stand above ``kernel.perf_event_paranoid``."""
        able = {"CAP_PERFMON", "CAP_SYS_ADMIN"} & set(self.capabilities)
        return bool(able) and not self.user_namespace


def read_machine() -> Machine:
    """Look around."""
    native.open_core()  # which finds out whether Python's frames can be read
    status = status_of("self")
    effective = int(status.get("CapEff", "0"), 16)
    return Machine(
        kernel=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        cpu=_cpu("model name") or platform.processor() or "unknown",
        hypervisor=_hypervisor(),
        container=_container(),
        settings=not os.statvfs("/proc/sys/kernel").f_flag & os.ST_RDONLY,
        seccomp=int(status["Seccomp"]) if "Seccomp" in status else None,
        paranoid=native.paranoid(),
        yama=_number("/proc/sys/kernel/yama/ptrace_scope"),
        user=os.geteuid(),
        capabilities=tuple(name for bit, name in _CAPABILITIES.items() if effective >> bit & 1),
        user_namespace=_text("/proc/self/uid_map").split() not in ([], ["0", "0", "4294967295"]),
        dumpable=ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 1,
        libc=_libc(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        frames=interpreter.problem,
        open_files=_open_files(),
        file_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    return ""


def _number(path: str) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None


def _cpu(field: str) -> str:
    found = re.search(rf"^{field}\s*:\s*(.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def _hypervisor() -> str:
    if "hypervisor" not in _cpu("flags").split() and not os.path.exists("/sys/hypervisor/type"):
        return ""
    clocks = _text("/sys/devices/system/clocksource/clocksource0/available_clocksource")
    kind = next((name for clock, name in _CLOCKS.items() if clock in clocks), "")
    product = f"{_text('/sys/class/dmi/id/sys_vendor')} {_text('/sys/class/dmi/id/product_name')}".strip()
    return ", ".join(filter(None, (kind, product))) or "of unknown kind"


def _container() -> str:
    for path, kind in _MARKERS.items():
        if os.path.exists(path):
            return f"{kind} (there is {path})"
    for variable, kind in (("KUBERNETES_SERVICE_HOST", "Kubernetes"), ("container", "")):
        if variable in os.environ:
            return f"{kind or os.environ[variable]} (${variable} is set)"
    groups = _text("/proc/self/cgroup") + _text("/proc/1/cgroup")
    return next((f"{kind} (by its control group)" for sign, kind in _GROUPS.items() if sign in groups), "")


def _libc() -> str:
    with contextlib.suppress(ValueError, OSError, TypeError):
        return str(os.confstr("CS_GNU_LIBC_VERSION") or "unknown")
    return "musl" if "ld-musl" in _text("/proc/self/maps") else "unknown"


def _open_files() -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd")) - 1  # the listing itself has one open
    return 0
