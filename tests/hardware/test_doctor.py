"""The doctor tells the truth, wherever it is asked, with what would help; and disturbs nothing."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwwatch

PARANOID = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text())
MODES = ("watch writes", "watch reads and writes", "watch reads", "watch execution")
#: Denials are about perf; another backend may do without.
PERF = {"HWWATCH_BACKEND": "perf"}

# What the doctor says where perf_event_open is refused: test_denied.py.
pytestmark = pytest.mark.perf

InChild = Callable[..., Any]


def by_question(found: dict[str, Any]) -> dict[str, Any]:
    """Findings of machine and process, and of the perf backend."""
    groups = ("machine", "this process", "backend perf")
    return {f["question"]: f for f in found["findings"] if f["group"] in groups}


@pytest.mark.slow
def test_whoever_asks(in_child: InChild) -> None:
    def work():
        return hwwatch.doctor().to_dict()

    found = in_child(work, env=PERF)
    assert found["works"]
    assert found["verdict"].startswith("Watching works: backend perf (HWWATCH_BACKEND); a hit costs ")
    answers = by_question(found)
    trials = found["backends"]["perf"]
    for mode in ("w", "rw", "r", "x"):
        assert trials[mode]["ok"]
        assert trials[mode]["found"] == {"hits": 300, "lost": 0}
        assert 0.5 < trials[mode]["cost"] < 1000  # µs; 12 to 17 on the machines seen
    assert [answers[question]["ok"] for question in MODES] == [True] * 4
    assert answers["debug registers"]["answer"] == "4 of 4 free"
    assert answers["SIGTRAP"]["answer"] == "the default action (SIG_DFL)"
    assert [answers[q]["ok"] for q in ("debugger attached", "test access")] == [True, True]
    assert trials["threads"]["ok"]
    assert trials["children"]["ok"]
    machine = found["machine"]
    assert machine["kernel"] == f"Linux {os.uname().release}"
    assert machine["paranoid"] == PARANOID
    assert machine["user"] == os.geteuid()
    able = bool({"CAP_PERFMON", "CAP_SYS_ADMIN"} & set(machine["capabilities"]))
    assert trials["kernel"]["ok"] == (PARANOID <= 1 or (able and not machine["user_namespace"]))


@pytest.mark.slow
def test_ordinary_user(in_child: InChild) -> None:
    """Also where that user may not start Python anew: then the trials are made in the process itself."""

    def work():
        if os.getuid() == 0:
            cells = np.zeros(8)
            with hwwatch.watching(cells[3:4]) as first:  # imports what may not be readable later
                cells[3] = 1
            first.timeline()
            hwwatch.doctor()
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self stays ours
        found = hwwatch.doctor()
        return found.to_dict(), str(found)

    found, text = in_child(work, env=PERF)
    assert found["machine"]["user"] != 0
    assert found["machine"]["capabilities"] == []
    assert found["works"] == (PARANOID <= 2), text
    answers = by_question(found)
    assert answers["kernel.perf_event_paranoid"]["ok"] == (PARANOID <= 2)
    if PARANOID > 2:
        assert answers["watch writes"]["remedy"].endswith("sudo sysctl kernel.perf_event_paranoid=2")
        return
    assert [answers[question]["ok"] for question in MODES] == [True] * 4
    answers = {f["question"]: f for f in found["findings"] if f["group"] != "backend ptrace"}
    assert all(found["backends"]["perf"][mode]["cost"] > 0.5 for mode in ("w", "rw", "r", "x"))
    kernel = answers["accesses by the kernel"]
    assert kernel["ok"] == (PARANOID <= 1)
    if PARANOID > 1:
        assert kernel["answer"] == "not seen"
        assert kernel["remedy"].endswith("sudo sysctl kernel.perf_event_paranoid=1")
        assert text.index("[ok] watch writes") < text.index("[no] accesses by the kernel: not seen")


FILTER = """
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

/* From now on one system call ends in another way. */
int filter(unsigned number, unsigned ending)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, ending),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}
"""
EPERM = 0x00050001  # SECCOMP_RET_ERRNO | EPERM, as in Docker's default profile
ACCEPTED = 0x00050000  # errno 0: the call returns 0, and has done nothing
KILL = 0x80000000  # SECCOMP_RET_KILL_PROCESS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "problem", "remedy"),
    [
        (EPERM, "(EPERM: Operation not permitted): perf_event_open is blocked", "PERFMON|sandbox"),
        (ACCEPTED, "was accepted, but a test access on it raised no trap", "another machine or hypervisor"),
        (KILL, "the test access killed its process (SIGSYS)", "another machine or hypervisor"),
    ],
)
def test_sandboxes(
    in_child: InChild, build: Callable[..., str], ending: int, problem: str, remedy: str
) -> None:
    """perf_event_open refused as in containers, taken without effect as in some sandboxes, deadly."""

    def work(path, ending):
        assert ctypes.CDLL(path).filter(298, ctypes.c_uint(ending)) == 0
        before = sorted(os.listdir("/proc/self/fd"))
        found = hwwatch.doctor()
        return bool(found), found.to_dict(), before == sorted(os.listdir("/proc/self/fd"))

    works, found, same_files = in_child(work, build(FILTER), ending, env=PERF)
    assert works is False
    assert same_files
    assert found["verdict"].startswith("Watching does not work here: ")
    assert problem in found["verdict"]
    rows = [by_question(found)[question] for question in MODES]
    assert [row["ok"] for row in rows] == [False] * 4
    assert all(problem in row["answer"] for row in rows)
    assert any(word in rows[0]["remedy"] for word in remedy.split("|"))
    seccomp = next(f for f in found["findings"] if f["question"] == "seccomp")
    assert found["machine"]["seccomp"] == 2
    assert (seccomp["ok"] is False) == (ending == EPERM)


@pytest.mark.slow
def test_perf_refused_and_the_choice_left_open(in_child: InChild, build: Callable[..., str]) -> None:
    """Watching works where, and only where, another backend passes its trials; a watch then has that one."""

    def work(path, ending):
        assert ctypes.CDLL(path).filter(298, ctypes.c_uint(ending)) == 0
        found = hwwatch.doctor()
        try:
            backend = hwwatch.watch(np.zeros(1)).backend.split()[0]
        except hwwatch.HwwatchError:
            backend = ""
        return found.to_dict(), backend

    found, backend = in_child(work, build(FILTER), EPERM, env={"HWWATCH_BACKEND": "auto"})
    assert [by_question(found)[question]["ok"] for question in MODES] == [False] * 4
    able = [name for name, trials in found["backends"].items() if trials["w"]["ok"]]
    assert found["works"] == bool(able)
    assert [backend] == (able or [""])
    assert by_question(found)["seccomp"]["ok"] is False


# All debug registers taken by a debugger

DEBUGGER = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

/* debugger PID FLAG ADDRESS*4: take all debug registers of a process, make a file, let it run. */
int main(int count, char **words)
{
    int pid = atoi(words[1]), status;
    if (count != 7 || ptrace(PTRACE_SEIZE, pid, 0, 0) || ptrace(PTRACE_INTERRUPT, pid, 0, 0))
        return 1;
    waitpid(pid, &status, 0);
    for (int i = 0; i < 4; i++)
        if (ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[i]), strtoul(words[3 + i], 0, 0)))
            return 2;
    if (ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[7]), 0xdddd0055l))
        return 3;
    close(open(words[2], O_CREAT | O_WRONLY, 0600));
    ptrace(PTRACE_CONT, pid, 0, 0);
    while (waitpid(pid, &status, 0) == pid && !WIFEXITED(status) && !WIFSIGNALED(status))
        ptrace(PTRACE_CONT, pid, 0, WSTOPSIG(status) == 5 ? 0 : WSTOPSIG(status));
    return 0;
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["seized", *(["gdb"] if shutil.which("gdb") else [])])
def test_all_slots_taken_by_a_debugger(
    in_child: InChild, build: Callable[..., str], tmp_path: Path, kind: str
) -> None:
    def work(command, flag):
        import subprocess

        cells = np.zeros(4)
        places = [hex(cells.ctypes.data + 8 * i) for i in range(4)]
        ctypes.CDLL(None).prctl(0x59616D61, -1, 0, 0, 0)  # PR_SET_PTRACER: Yama lets anybody attach
        command = [word.format(os.getpid(), flag, *places) for word in command]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as debugger:
            while not os.path.exists(flag) and debugger.poll() is None:
                time.sleep(0.01)
            try:
                found = hwwatch.doctor()
                try:
                    hwwatch.watch(np.zeros(1))
                except hwwatch.NoSlotError as error:
                    refusal = error.slug
                return found.to_dict(), refusal, debugger.pid
            finally:
                debugger.kill()

    if kind == "gdb":
        command = ["gdb", "-q", "-nx", "-batch", "-p", "{0}"]
        for i in range(4):
            command += ["-ex", f"watch *(long *) {{{i + 2}}}"]
        command += ["-ex", "shell touch {1}", "-ex", "continue"]
    else:
        program = tmp_path / "debugger"
        (tmp_path / "debugger.c").write_text(DEBUGGER)
        subprocess.run(["cc", str(tmp_path / "debugger.c"), "-o", str(program)], check=True)
        command = [str(program), "{0}", "{1}", "{2}", "{3}", "{4}", "{5}"]
    found, refusal, pid = in_child(work, command, str(tmp_path / "flag"), env=PERF)
    name = "gdb" if kind == "gdb" else "debugger"
    assert refusal == "no-slot"
    assert not found["works"]
    assert found["verdict"] == (
        f"Watching does not work here: all 4 debug registers are taken: 4 by {name} ({pid})"
    )
    answers = by_question(found)
    assert answers["debug registers"]["remedy"] == ("in gdb: detach" if kind == "gdb" else f"kill {pid}")
    assert answers["debugger attached"]["answer"].startswith(f"{name} ({pid})")
    assert answers["test access"]["answer"].startswith("not made")
    # In a process of its own there would be room.
    assert [answers[question]["ok"] for question in MODES] == [True] * 4


# SIGTRAP taken away


@pytest.mark.slow
@pytest.mark.parametrize("thief", ["python", "ignored", "default", "faulthandler"])
def test_stolen_sigtrap(in_child: InChild, thief: str) -> None:
    def work(kind):
        import faulthandler

        from hwwatch.diagnosis.holders import _handler, _Sigaction, sigtrap_owner

        def steal(handler):  # by the C library's address: past the tables through which ours stays first
            action = _Sigaction(handler=handler)
            assert ctypes.CDLL(None).sigaction(signal.SIGTRAP, ctypes.byref(action), None) == 0

        def thief(number, frame):
            pass

        cells = np.zeros(8)
        watch = hwwatch.watch(cells[3:4], name="mine")
        cells[3] = 1
        if kind == "faulthandler":
            faulthandler.register(signal.SIGUSR2, file=open(os.devnull, "w"))  # noqa: SIM115
            steal(_handler(signal.SIGUSR2))
        elif kind == "python":
            for number in (signal.SIGUSR2, signal.SIGTRAP):
                signal.signal(number, thief)
            steal(_handler(signal.SIGUSR2))
        else:
            steal({"ignored": 1, "default": 0}[kind])
        before = _handler(signal.SIGTRAP)
        found = hwwatch.doctor()
        same = _handler(signal.SIGTRAP) == before
        remedy = next(f.remedy for f in found.findings if f.question == "SIGTRAP")
        eval(remedy.split()[0])
        cells[3] = 2
        after = hwwatch.doctor()
        state = (watch.hits, watch.armed, sigtrap_owner().kind)
        return bool(found), found.to_dict(), same, remedy, bool(after), state

    works, found, same, remedy, after, state = in_child(work, thief, env=PERF)
    assert not works
    assert same
    who, fate = {
        "python": ("Python's handler: work.<locals>.thief (", "they see no hits"),
        "ignored": ("ignored (SIG_IGN)", "they see no hits"),
        "default": ("the default action (SIG_DFL)", "the next hit kills this process"),
        # by its address, where the interpreter is stripped
        "faulthandler": ("a C handler: ", "they see no hits"),
    }[thief]
    assert f"SIGTRAP was taken from the armed watches mine by {who}" in found["verdict"]
    assert found["verdict"].endswith(fate)
    assert found["process"]["sigtrap"]["kind"] == {"faulthandler": "native"}.get(thief, thief)
    assert remedy.startswith("hwwatch.watches()[0].verify()")
    assert (after, state) == (True, [2, True, "hwwatch"])


@pytest.mark.slow
def test_foreign_handler_before_any_watch(in_child: InChild) -> None:
    """It is no obstacle: hwwatch takes the signal while watching, and hands on what is not its own."""

    def work():
        seen = []
        signal.signal(signal.SIGTRAP, lambda number, frame: seen.append(number))
        found = hwwatch.doctor()
        os.kill(os.getpid(), signal.SIGTRAP)
        return bool(found), [f.answer for f in found.findings if f.question == "SIGTRAP"], seen

    works, (answer,), seen = in_child(work, env=PERF)
    assert works
    assert answer.startswith("Python's handler: work.<locals>.<lambda> (")
    assert seen == [signal.SIGTRAP]


# Nothing is disturbed, nothing stays


@pytest.mark.slow
def test_disturbs_no_watch(session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, stop = np.zeros(8), threading.Event()
    libc = ctypes.CDLL(None)
    data, reads = session.watch(cells[3:4]), session.watch(cells[5:6], "rw", when="new >= 0")
    code = session.watch(libc.labs, "x", policy=hwwatch.Return(7))
    written = 0

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            cells[3] = written = written + 1
            time.sleep(0.001)

    thread = threading.Thread(target=write)
    thread.start()
    for variable in ("TMPDIR", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    before = (sorted(os.listdir("/proc/self/fd")), session.coverage().slots_free)
    found = hwwatch.doctor()
    after = (sorted(os.listdir("/proc/self/fd")), session.coverage().slots_free)
    stop.set()
    thread.join()
    assert found.works, found.verdict
    assert before == after
    assert list(tmp_path.iterdir()) == []
    assert Path(f"/proc/self/task/{os.getpid()}/children").read_text() == ""
    assert (data.counted, data.hits, data.lost) == (written, written, 0)
    assert session.timeline(data).new.tolist() == list(range(1, written + 1))
    assert (reads.counted, code.counted) == (0, 0)
    cells[5] = 2
    assert libc.labs(-3) == 7
    assert (reads.hits, code.hits) == (1, 1)
    slots = next(f for f in found.findings if f.question == "debug registers")
    assert slots.answer == "1 of 4 free; taken: cells[3] (1), cells[5] (1), labs (1)".replace(
        "cells[3]", data.name
    ).replace("cells[5]", reads.name).replace("labs", code.name)


def test_all_slots_taken_by_own_watches(session: Any) -> None:
    """They work, so watching does; but there is room for no more."""
    watches = [session.watch(np.zeros(1), name=name) for name in "abcd"]
    found = hwwatch.doctor()
    slots = next(f for f in found.findings if f.question == "debug registers")
    assert (found.works, slots.ok) == (True, False), found.verdict
    assert slots.answer == "0 of 4 free; taken: a (1), b (1), c (1), d (1)"
    assert slots.remedy == "hwwatch.unwatch('a')"
    assert all(watch.armed for watch in watches)


@pytest.mark.slow
def test_gives_signals_back(in_child: InChild) -> None:
    def work():
        from hwwatch.diagnosis.holders import _handler

        numbers = [n for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)]
        before = {n: _handler(n) for n in numbers}
        files, mask = len(os.listdir("/proc/self/fd")), signal.pthread_sigmask(signal.SIG_BLOCK, [])
        works = [hwwatch.doctor().works for _ in range(2)]
        return (
            works,
            [int(n) for n in numbers if _handler(n) != before[n]],
            len(os.listdir("/proc/self/fd")) - files,
            mask == signal.pthread_sigmask(signal.SIG_BLOCK, []),
            threading.active_count(),
        )

    assert in_child(work, env=PERF) == [[True, True], [], 0, True, 1]


@pytest.mark.slow
def test_blocked_threads_are_named(in_child: InChild) -> None:
    def work():
        done = threading.Event()

        def blocks():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTRAP})
            ready.set()
            done.wait()

        ready = threading.Event()
        thread = threading.Thread(target=blocks, name="quiet one")
        thread.start()
        ready.wait()
        found = hwwatch.doctor()
        done.set()
        finding = next(f for f in found.findings if f.question == "threads that block SIGTRAP")
        return found.works, finding.ok, finding.answer, finding.remedy

    works, ok, answer, remedy = in_child(work, env=PERF)
    assert (works, ok) == (True, False)
    assert answer.startswith("quiet one (")
    assert "SIG_UNBLOCK" in remedy


# Trials that go wrong


@pytest.mark.slow
def test_a_trial_that_hangs(session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended, with all that it started, and the rest is not tried."""
    from hwwatch.diagnosis import trials

    marker = tmp_path / "pid"
    slow = tmp_path / "python-slow"
    slow.write_text(f'#!/bin/sh\necho \'{{"what": "w", "ok": true}}\'\nsleep 60 & echo $! > {marker}\nwait\n')
    slow.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(slow))
    monkeypatch.setattr(trials, "PATIENCE", 1.5)
    found = trials.run_trials("perf", ("w", "rw", "x"))
    assert found["w"].ok
    assert [(found[step].ok, found[step].slug) for step in ("rw", "x")] == [(False, "crash"), (False, "time")]
    assert "still ran" in found["rw"].problem
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and Path(f"/proc/{marker.read_text().strip()}").exists():
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), signal.SIG_DFL)


@pytest.mark.slow
def test_no_process_of_its_own(in_child: InChild) -> None:
    """Where no Python can be started, trials in this process decide; beside armed watches only small ones."""

    def work():
        from hwwatch import native

        told = []
        for python in ("/no/such/python3", "/bin/embedding-program", ""):
            sys.executable = python
            found = hwwatch.doctor()
            told.append((found.works, str(found), found.verdict, len(hwwatch.timeline())))
        used = [int(native.shared().head - native.shared().tail)]
        cells = np.zeros(8)
        watch = hwwatch.watch(cells[3:4])
        cells[3] = 1
        found = hwwatch.doctor()
        cells[3] = 2
        told.append((found.works, str(found), found.verdict, watch.hits))
        return told, used, watch.lost

    told, used, lost = in_child(work, env=PERF)
    for works, text, *_ in told:
        assert works
        assert "[--] process for trials: could not be tried: " in text
        assert text.count("[ok] watch ") == 4
        assert "[ok] test access: trapped" in text
    assert ["a hit costs" in verdict for _, _, verdict, _ in told] == [True, True, True, False]
    assert [hits for *_, hits in told] == [0, 0, 0, 2]
    assert (used, lost) == ([0], 0)


def test_faces(session: Any) -> None:
    """Text, HTML and JSON say the same; what needs escaping is escaped."""
    import json

    watch = session.watch(np.zeros(1), name="<b>&")
    found = hwwatch.doctor()
    text, page, data = str(found), found._repr_html_(), found.to_dict()
    assert json.loads(json.dumps(data)) == json.loads(json.dumps(found.to_dict()))
    assert text.splitlines()[0] == data["verdict"]
    assert data["works"] is found.works is bool(found) is True
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page
    for finding in found.findings:
        assert finding.answer in text
        assert finding.ok is not False or f"[no] {finding.question}" in text
        assert "\n" not in finding.answer + finding.remedy
    assert watch.armed
