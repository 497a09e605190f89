"""From what was found to words: machines that are not at hand, in data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hwwatch.coverages import Thread
from hwwatch.diagnosis import remedies
from hwwatch.diagnosis.findings import Diagnosis, Finding
from hwwatch.diagnosis.holders import Holders, SignalOwner
from hwwatch.diagnosis.machines import Machine
from hwwatch.diagnosis.trials import STEPS, Trial
from hwwatch.processes import Process
from hwwatch.types import MODES

MACHINE = Machine(
    kernel="Linux 6.1.0-13-amd64",
    architecture="x86_64",
    cpu="Some CPU",
    hypervisor="",
    container="",
    settings=True,
    seccomp=0,
    paranoid=2,
    yama=1,
    user=1000,
    capabilities=(),
    user_namespace=False,
    dumpable=True,
    libc="glibc 2.36",
    python="CPython 3.11.7",
    frames="",
    open_files=5,
    file_limit=1024,
)
HOLDERS = Holders(4, 4, "", (), (), (), SignalOwner("default"), ())
WORKS = {step: Trial(step, True, cost=13.0 if step in MODES else None) for step in STEPS[:-1]}
CHOICE = Trial("choice", True, found={"backend": "perf", "reason": "default"})
HERE = Trial("w", True)


def refused(slug: str, problem: str = "opening failed") -> dict[str, Trial]:
    return {step: Trial(step, False, problem, slug, "See `hwwatch.doctor()`.") for step in STEPS}


def diagnose(
    trials: dict[str, Trial] | None = None, *, holders: Holders = HOLDERS, **machine: Any
) -> Diagnosis:
    trials = WORKS if trials is None else trials
    failed = next((trials[mode] for mode in MODES if not trials[mode].ok), None)
    return Diagnosis(replace(MACHINE, **machine), holders, CHOICE, {"perf": trials}, failed or HERE)


def finding(found: Diagnosis, question: str) -> Finding:
    return next(f for f in found.findings if f.question == question)


def test_all_is_well() -> None:
    found = diagnose()
    assert found.works
    assert found.verdict == "Watching works: backend perf (default); a hit costs 13.0 to 13.0 µs."
    assert "[no]" not in str(found)
    assert "→" not in str(found)


@pytest.mark.parametrize(
    ("slug", "machine", "remedy"),
    [
        ("perf-paranoid", {"paranoid": 3}, "sudo sysctl kernel.perf_event_paranoid=2"),
        (
            "perf-paranoid",
            {"paranoid": 4, "settings": False},
            "on the host: sudo sysctl kernel.perf_event_paranoid=2",
        ),
        (
            "perf-blocked",
            {"seccomp": 2, "container": "Docker (there is /.dockerenv)"},
            "docker run --cap-add PERFMON …",
        ),
        (
            "perf-blocked",
            {"seccomp": 2, "container": "Podman (there is x)"},
            "podman run --cap-add PERFMON …",
        ),
        (
            "perf-blocked",
            {"seccomp": 2, "container": "Kubernetes (x)"},
            "in the pod's container: securityContext: {capabilities: {add: [PERFMON]}}",
        ),
        (
            "no-breakpoints",
            {"seccomp": 2},
            "start Python outside the sandbox whose seccomp filter refuses perf_event_open",
        ),
        (
            "perf-blocked",
            {},
            "a security module of the kernel refuses it; its log says more: sudo dmesg | grep -i denied",
        ),
        ("no-breakpoints", {"kernel": "Linux 5.10.0-28-amd64"}, "Linux 5.13 or later"),
        ("no-breakpoints", {}, "a machine or hypervisor that lets programs use debug registers"),
        (
            "canary",
            {},
            "another machine or hypervisor: this one takes breakpoints and does not deliver their traps",
        ),
        ("too-many-files", {}, "See `hwwatch.doctor()`."),
    ],
)
def test_refusals_and_what_would_help(slug: str, machine: dict[str, Any], remedy: str) -> None:
    found = diagnose(refused(slug), **machine)
    assert not found.works
    assert found.verdict == "Watching does not work here: opening failed"
    modes = [f for f in found.findings if f.question.startswith("watch ")]
    assert [f.remedy for f in modes] == [remedy, "", "", ""]  # told once
    assert finding(found, "test access").remedy == remedy


def test_paranoid_by_rights() -> None:
    for machine, ok in (
        ({"paranoid": 2}, True),
        ({"paranoid": 3}, False),
        ({"paranoid": None}, False),
        ({"paranoid": 4, "capabilities": ("CAP_PERFMON",)}, True),
        ({"paranoid": 4, "capabilities": ("CAP_SYS_PTRACE",)}, False),
        ({"paranoid": 4, "capabilities": ("CAP_SYS_ADMIN",), "user_namespace": True}, False),
    ):
        assert finding(diagnose(**machine), "kernel.perf_event_paranoid").ok is ok, machine
    text = finding(diagnose(capabilities=("CAP_PERFMON",), user_namespace=True), "capabilities").answer
    assert text == "CAP_PERFMON, in a user namespace only: perf events ignore them (user 1000)"


def test_kernel_accesses() -> None:
    """The setting helps where it is the reason; another backend has none."""
    blind = {**WORKS, "kernel": Trial("kernel", False, "not seen")}
    row = finding(diagnose(blind), "accesses by the kernel")
    assert (row.ok, row.remedy) == (False, "sudo sysctl kernel.perf_event_paranoid=1")
    assert diagnose(blind).works
    assert remedies.for_kernel("ptrace", MACHINE) == "only the perf backend can show them"


@pytest.mark.parametrize(("scope", "ok"), [(0, None), (1, None), (2, False), (3, False)])
def test_yama_where_attaching_is_refused(scope: int, ok: bool | None) -> None:
    found = diagnose(yama=scope)
    with_ptrace = replace(found, trials={"perf": WORKS, "ptrace": refused("ptrace-refused")})
    assert finding(found, "Yama").ok is None
    row = finding(with_ptrace, "Yama")
    assert row.ok is ok
    assert ("ptrace_scope=1" in row.remedy) == (ok is False)
    assert ("reboot" in row.remedy) == (scope == 3)


GDB, PERF = Process(42, "gdb"), Process(43, "perf")


@pytest.mark.parametrize(
    ("change", "elsewhere", "works", "answer", "remedy"),
    [
        (
            {"free": 0, "tracers": (GDB,)},
            4,
            False,
            "all 4 debug registers are taken: 4 by gdb (42)",
            "in gdb: detach",
        ),
        (
            {"free": 0, "perf_users": (PERF,)},
            0,
            False,
            "all 4 debug registers are taken: 4 in every process, as `perf record -a` takes them, perhaps by "
            "perf (43)",
            "end what holds them, perhaps perf (43)",
        ),
        (
            {"free": 0},
            4,
            False,
            "all 4 debug registers are taken: 4 by somebody unseen",
            "end the program that watches this one, or the whole machine (such as perf record -e mem:…)",
        ),
        (
            {"free": 0, "ours": (("a", 3),), "sigtrap": SignalOwner("hwwatch"), "tracers": (GDB,)},
            4,
            False,
            "all 4 debug registers are taken: a (3), 1 by gdb (42)",
            "in gdb: detach",
        ),
        (
            {"free": 0, "ours": (("a", 4),), "sigtrap": SignalOwner("hwwatch")},
            4,
            True,
            "0 of 4 free; taken: a (4)",
            "hwwatch.unwatch('a')",
        ),
        ({"free": 2, "perf_users": (PERF,)}, 4, True, "2 of 4 free; taken: 2 perhaps by perf (43)", ""),
    ],
)
def test_holders_of_debug_registers(
    change: dict[str, Any], elsewhere: int, works: bool, answer: str, remedy: str
) -> None:
    trials = {**WORKS, "slots": Trial("slots", True, found={"free": elsewhere})}
    found = diagnose(trials, holders=replace(HOLDERS, **change))
    row = finding(found, "debug registers")
    assert (found.works, row.answer, row.remedy) == (works, answer, remedy)
    assert works or answer in found.verdict


def test_threads_and_files() -> None:
    quiet = Thread(7, "ZMQ", True, False, False)
    found = diagnose(holders=replace(HOLDERS, blocked=(quiet,)), open_files=1000)
    assert found.works
    row = finding(found, "threads that block SIGTRAP")
    assert row.answer == "ZMQ (7): their hits are recorded late or not at all"
    assert finding(found, "open files").remedy == "ulimit -n 4096"


def test_a_debugger_leaves_it_unproved() -> None:
    """With registers free, but every trap going through a debugger, nothing is claimed."""
    found = replace(diagnose(holders=replace(HOLDERS, tracers=(GDB,))), here=None, untried="gdb may stop it")
    assert not found.works
    assert found.verdict == "Watching does not work here: gdb may stop it"
    assert "handle SIGTRAP nostop noprint pass" in finding(found, "debugger attached").remedy
