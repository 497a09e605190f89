"""For each "no" the one command or setting that would change it; empty where there is none."""

from __future__ import annotations

from hwwatch.diagnosis.holders import Holders
from hwwatch.diagnosis.machines import Machine
from hwwatch.diagnosis.trials import Trial

_ENGINE = {
    "Docker": "docker run --cap-add PERFMON …",
    "Podman": "podman run --cap-add PERFMON …",
    "Kubernetes": "in the pod's container: securityContext: {capabilities: {add: [PERFMON]}}",
}
#: The oldest kernel that has sigtrap events (perf_event_open(2)).
_OLDEST = (5, 13)


def for_paranoid(machine: Machine, level: int) -> str:
    """Lower ``kernel.perf_event_paranoid``, which a container shares with its host."""
    where = "" if machine.settings else "on the host: "
    return f"{where}sudo sysctl kernel.perf_event_paranoid={level}"


def for_seccomp(machine: Machine) -> str:
    """A filter that refuses perf_event_open; Docker's default one has it pass with CAP_PERFMON."""
    kind = machine.container.partition(" ")[0]
    return _ENGINE.get(kind, "start Python outside the sandbox whose seccomp filter refuses perf_event_open")


def for_trial(trial: Trial, machine: Machine) -> str:
    """What would help a test access that failed."""
    filtered = machine.seccomp == 2
    if trial.slug == "perf-paranoid":
        return for_paranoid(machine, 2)
    if trial.slug == "perf-blocked" or (trial.slug == "no-breakpoints" and filtered):
        if filtered:
            return for_seccomp(machine)
        return "a security module of the kernel refuses it; its log says more: sudo dmesg | grep -i denied"
    if trial.slug == "no-breakpoints":
        version = machine.kernel.split()[-1].split(".")
        if [int(part) for part in version[:2] if part.isdigit()] < list(_OLDEST):
            return "Linux 5.13 or later"
        return "a machine or hypervisor that lets programs use debug registers"
    if trial.slug in ("canary", "crash"):
        return "another machine or hypervisor: this one takes breakpoints and does not deliver their traps"
    return trial.hint


def for_kernel(backend: str, machine: Machine) -> str:
    """Accesses by the kernel, which only perf events can show."""
    if backend != "perf":
        return "only the perf backend can show them"
    if machine.paranoid is not None and machine.paranoid > 1 and not machine.monitors:
        return for_paranoid(machine, 1)
    return ""


def for_yama(scope: int) -> str:
    """Nobody may attach; 3 cannot be lowered again (Documentation/admin-guide/LSM/Yama.rst)."""
    command = "sysctl kernel.yama.ptrace_scope=1"
    return f"sudo {command}" if scope < 3 else f"reboot without what sets it to 3, then sudo {command}"


def for_tracer(holders: Holders) -> str:
    """A debugger that is attached."""
    names = {process.name for process in holders.tracers}
    if "gdb" in names:
        return "in gdb: detach"
    return "kill " + " ".join(str(process.pid) for process in holders.tracers)


def for_swallowed(holders: Holders) -> str:
    """A debugger that gets SIGTRAP first."""
    if any(process.name == "gdb" for process in holders.tracers):
        return "in gdb: handle SIGTRAP nostop noprint pass; or: detach"
    return for_tracer(holders)


def for_slots(holders: Holders) -> str:
    """All debug registers are taken."""
    if holders.foreign and holders.tracers:
        return for_tracer(holders)
    if holders.foreign and holders.perf_users:
        return "end what holds them, perhaps " + ", ".join(map(str, holders.perf_users))
    if holders.ours:
        return f"hwwatch.unwatch({holders.ours[0][0]!r})"
    return "end the program that watches this one, or the whole machine (such as perf record -e mem:…)"


def for_stolen() -> str:
    """SIGTRAP was taken while watches are armed."""
    return "hwwatch.watches()[0].verify() takes it back, as does any new watch"


def for_blocked() -> str:
    """Threads that block SIGTRAP."""
    return "in such a thread, if it is yours: signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTRAP})"
