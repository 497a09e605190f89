"""SIGTRAPs that are not hwwatch's go where they went before, and the earlier handler is put back."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwwatch

pytestmark = pytest.mark.slow

SOURCE = """
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <ucontext.h>

volatile int calls, code, sender, trap_blocked, usr1_blocked, onstack;
volatile unsigned long pc;
char after[1];

static void look(void)
{
    sigset_t mask;
    sigprocmask(SIG_SETMASK, 0, &mask);
    trap_blocked = sigismember(&mask, SIGTRAP);
    usr1_blocked = sigismember(&mask, SIGUSR1);
    calls++;
}
static void plain(int number) { (void)number; look(); }
static void full(int number, siginfo_t *info, void *context)
{
    (void)number;
    code = info->si_code;
    sender = info->si_pid;
    pc = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    look();
}
int install(int siginfo, int flags)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    if (siginfo)
        action.sa_sigaction = full;
    else
        action.sa_handler = plain;
    action.sa_flags = flags | (siginfo ? SA_SIGINFO : 0);
    sigaddset(&action.sa_mask, SIGUSR1);
    return sigaction(SIGTRAP, &action, 0);
}
int ours(void)
{
    struct sigaction found;
    sigaction(SIGTRAP, 0, &found);
    return found.sa_flags & SA_SIGINFO ? found.sa_sigaction == full : found.sa_handler == plain;
}
static void *simple(void) { struct sigaction found; sigaction(SIGTRAP, 0, &found); return found.sa_handler; }
int is_default(void) { return simple() == SIG_DFL; }
int is_ignored(void) { return simple() == SIG_IGN; }
void breakpoint_instruction(void) { __asm__ volatile("int3\\n.globl behind\\nbehind: nop"); }
extern char behind[];
unsigned long behind_it(void) { return (unsigned long)behind; }
"""
KILLS = ["kill", "raise", "int3"]


@pytest.fixture
def library(build: Callable[..., str]) -> str:
    return build(SOURCE)


def trap(path, how, report):
    """A foreign SIGTRAP, then a store: was the store still recorded?"""
    library = ctypes.CDLL(path)
    array = np.zeros(8)
    watch = hwwatch.watch(array[3:4])
    array[3] = 1
    report(watch.hits)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGTRAP)
    elif how == "raise":
        signal.raise_signal(signal.SIGTRAP)
    else:
        library.breakpoint_instruction()
    array[3] = 2
    return watch.hits


@pytest.mark.parametrize("how", KILLS)
def test_default_action_kills(in_child: Callable[..., Any], library: str, how: str) -> None:
    assert in_child(trap, library, how, expect=-signal.SIGTRAP) == 1


@pytest.mark.parametrize("how", ["kill", "raise"])
def test_ignored_stays_ignored(in_child: Callable[..., Any], library: str, how: str) -> None:
    def work(path, how):
        library = ctypes.CDLL(path)
        signal.signal(signal.SIGTRAP, signal.SIG_IGN)
        array = np.zeros(8)
        watch = hwwatch.watch(array[3:4])
        for value in range(3):
            if how == "kill":
                os.kill(os.getpid(), signal.SIGTRAP)
            else:
                signal.raise_signal(signal.SIGTRAP)
            array[3] = value
        hwwatch.unwatch()
        hits = watch.hits
        from hwwatch.sessions import default_session

        default_session().close()
        return hits, library.is_ignored()

    assert in_child(work, library, how) == [3, 1]


def test_ignoring_does_not_survive_int3(in_child: Callable[..., Any], library: str) -> None:
    """The kernel kills a process that ignores a trap of its own making; so it must be with hwwatch."""

    def work(path):
        signal.signal(signal.SIGTRAP, signal.SIG_IGN)
        hwwatch.watch(np.zeros(1))
        ctypes.CDLL(path).breakpoint_instruction()

    in_child(work, library, expect=-signal.SIGTRAP)


@pytest.mark.parametrize("siginfo", [0, 1])
@pytest.mark.parametrize("how", KILLS)
def test_c_handler_runs_as_before(in_child: Callable[..., Any], library: str, siginfo: int, how: str) -> None:
    def work(path, siginfo, how):
        library = ctypes.CDLL(path)
        library.behind_it.restype = ctypes.c_ulong

        def value(name, kind=ctypes.c_int):
            return kind.in_dll(library, name).value

        def send():
            if how == "kill":
                os.kill(os.getpid(), signal.SIGTRAP)
            elif how == "raise":
                signal.raise_signal(signal.SIGTRAP)
            else:
                library.breakpoint_instruction()
            seen = {name: value(name) for name in ("calls", "code", "trap_blocked", "usr1_blocked")}
            seen["pc"] = value("pc", ctypes.c_ulong) == library.behind_it() if how == "int3" else None
            seen["sender"] = value("sender") == os.getpid() if how != "int3" else None
            return seen

        library.install(siginfo, 0)
        before = send()
        array = np.zeros(8)
        watch = hwwatch.watch(array[3:4])
        array[3] = 1
        during = send()
        array[3] = 2
        hits = watch.hits
        from hwwatch.sessions import default_session

        default_session().close()
        ours = library.ours()
        after = send()
        return before, during, after, hits, ours

    before, during, after, hits, ours = in_child(work, library, siginfo, how)
    assert [before.pop("calls"), during.pop("calls"), after.pop("calls")] == [1, 2, 3]
    assert before["trap_blocked"] == before["usr1_blocked"] == 1
    assert before == during == after
    assert (hits, ours) == (2, 1)


def test_handler_for_one_signal_only(in_child: Callable[..., Any], library: str) -> None:
    """SA_RESETHAND: the first foreign signal is handled, the second kills."""

    def work(path, report):
        library = ctypes.CDLL(path)
        library.install(0, 0x80000000)  # SA_RESETHAND
        hwwatch.watch(np.zeros(1))
        os.kill(os.getpid(), signal.SIGTRAP)
        report(ctypes.c_int.in_dll(library, "calls").value)
        os.kill(os.getpid(), signal.SIGTRAP)

    assert in_child(work, library, expect=-signal.SIGTRAP) == 1


def test_python_handler_runs_as_before(in_child: Callable[..., Any]) -> None:
    def work():
        from hwwatch import native
        from hwwatch.sessions import default_session

        seen = []

        def handler(number, frame):
            seen.append((number, frame.f_code.co_name))

        signal.signal(signal.SIGTRAP, handler)
        array = np.zeros(8)
        watch = hwwatch.watch(array[3:4])
        for value in range(100):
            array[3] = value
            if value % 25 == 0:
                os.kill(os.getpid(), signal.SIGTRAP)
        hits, forwarded = watch.hits, int(native.shared().forwarded)
        default_session().close()
        os.kill(os.getpid(), signal.SIGTRAP)
        return seen, hits, forwarded, signal.getsignal(signal.SIGTRAP) is handler

    assert in_child(work) == [[[signal.SIGTRAP, "work"]] * 5, 100, 4, True]


def test_default_is_restored(in_child: Callable[..., Any], library: str) -> None:
    def work(path):
        library = ctypes.CDLL(path)
        from hwwatch.sessions import Session

        def is_default():  # what the kernel knows; the program's own question is answered as without us
            with open("/proc/self/status") as file:
                caught = next(line.split()[1] for line in file if line.startswith("SigCgt"))
            assert library.is_default()
            return int(not int(caught, 16) >> (signal.SIGTRAP - 1) & 1)

        states = [is_default()]
        array = np.zeros(8)
        for _ in range(3):
            with Session() as session:
                watch = session.watch(array[3:4])
                states.append(is_default())
                array[3] = 1
            states.append(is_default())
            states.append(watch.hits)
        return states

    assert in_child(work, library) == [1, 0, 1, 1, 0, 1, 1, 0, 1, 1]


def test_faults_are_given_back_too(in_child: Callable[..., Any]) -> None:
    """The guard around the frame walk takes SIGSEGV; a real fault still kills."""

    def work(report):
        watch = hwwatch.watch(np.zeros(1))
        report(watch.armed)
        ctypes.string_at(8)

    assert in_child(work, expect=-signal.SIGSEGV) is True


THIEF = """
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

volatile int calls;
static void handler(int number) { (void)number; calls++; }
void by_signal(int number, int kind) { signal(number, kind == 0 ? SIG_DFL : kind == 1 ? SIG_IGN : handler); }
void by_sigaction(int number, int kind)
{
    struct sigaction action, before;
    memset(&action, 0, sizeof action);
    action.sa_handler = kind == 0 ? SIG_DFL : kind == 1 ? SIG_IGN : handler;
    sigaction(number, &action, &before);
}
void *there(int number)
{
    struct sigaction found;
    sigaction(number, 0, &found);
    return (void *)found.sa_handler;
}
int is_mine(int number) { return there(number) == (void *)handler; }
int is_kind(int number, int kind) { return there(number) == (kind ? (void *)SIG_IGN : (void *)SIG_DFL); }
/* past the C library, where nobody can stand in between */
void by_system_call(int number)
{
    struct { void (*handler)(int); unsigned long flags; void (*restorer)(void); unsigned long mask; } action;
    memset(&action, 0, sizeof action);
    action.handler = SIG_IGN;
    syscall(SYS_rt_sigaction, number, &action, 0, 8);
}
"""


@pytest.mark.perf  # a trap by ptrace's registers that finds no handler kills: force_sig_fault
def test_stolen_handler_is_told_and_taken_back(
    in_child: Callable[..., Any], build: Callable[..., str]
) -> None:
    """A bare system call takes the hits away: the coverage says so, the next watch ends it."""

    def work(path):
        array = np.zeros(8)
        watch = hwwatch.watch(array[3:4])
        array[3] = 1
        ctypes.CDLL(path).by_system_call(signal.SIGTRAP)
        array[3] = 2
        stolen = hwwatch.coverage()
        figures = (stolen.handler, stolen.full, watch.counted, watch.hits, watch.lost)
        hwwatch.watch(array[5:6])
        array[3] = 3
        array[5] = 4
        return figures, hwwatch.coverage().handler, hwwatch.timeline().new.tolist()

    figures, back, rows = in_child(work, build(THIEF))
    assert figures == ["another handler", False, 2, 1, 1]
    assert (back, rows) == ("hwwatch", [1, 3, 4])


@pytest.mark.parametrize("how", ["signal", "sigaction"])
def test_whoever_sets_a_handler_stands_behind_ours(
    in_child: Callable[..., Any], build: Callable[..., str], how: str
) -> None:
    """A C library takes SIGTRAP: no hit is missed, none kills; it gets what is its own."""

    def work(path, how):
        array, found = np.zeros(8), []
        early = ctypes.CDLL(path)
        w = hwwatch.watch(array[3:4])
        for kind in (0, 1, 2):
            getattr(early, f"by_{how}")(signal.SIGTRAP, kind)
            array[3] = kind
            found.append(early.is_kind(signal.SIGTRAP, kind) if kind < 2 else early.is_mine(signal.SIGTRAP))
        os.kill(os.getpid(), signal.SIGTRAP)
        calls = ctypes.c_int.in_dll(early, "calls").value
        handler, hits, lost = hwwatch.coverage().handler, w.hits, w.lost
        from hwwatch.sessions import default_session

        default_session().close()
        os.kill(os.getpid(), signal.SIGTRAP)
        return found, calls, handler, hits, lost, ctypes.c_int.in_dll(early, "calls").value

    found, calls, handler, hits, lost, after = in_child(work, build(THIEF), how)
    assert (found, calls, handler, hits, lost, after) == ([1, 1, 1], 1, "hwwatch", 3, 0, 2)


def test_python_and_faulthandler_stand_behind_ours(in_child: Callable[..., Any]) -> None:
    def work(folder):
        import faulthandler

        array, seen = np.zeros(8), []
        w = hwwatch.watch(array[3:4])
        signal.signal(signal.SIGTRAP, signal.SIG_DFL)
        array[3] = 1
        signal.signal(signal.SIGTRAP, signal.SIG_IGN)
        array[3] = 2
        signal.signal(signal.SIGTRAP, lambda number, frame: seen.append(number))
        array[3] = 3
        os.kill(os.getpid(), signal.SIGTRAP)
        with open(folder + "/dump", "w+") as file:
            faulthandler.register(signal.SIGTRAP, file, chain=True)
            array[3] = 4
            os.kill(os.getpid(), signal.SIGTRAP)
            file.seek(0)
            dumps = file.read().count("in work")
            faulthandler.unregister(signal.SIGTRAP)
        array[3] = 5
        os.kill(os.getpid(), signal.SIGTRAP)
        return w.hits, w.lost, seen, dumps, hwwatch.coverage().handler

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        assert in_child(work, folder) == [5, 0, [5, 5, 5], 1, "hwwatch"]


def test_faults_stay_guarded_when_others_take_them(in_child: Callable[..., Any]) -> None:
    """The handler reads memory that may be gone; whoever handles SIGSEGV must not get that fault."""

    def work(report):
        import faulthandler
        import mmap

        memory = mmap.mmap(-1, 4096)
        w = hwwatch.watch(hwwatch.locate("memory[8:16]", {"memory": memory}), "rw")
        faulthandler.enable()
        memory[8] = 1
        memory.close()
        array = np.zeros(8)
        v = hwwatch.watch(array[3:4])
        for _ in range(100):
            array[3] += 1
        report([w.hits >= 1, v.hits])
        ctypes.string_at(8)

    assert in_child(work, expect=-signal.SIGSEGV) == [True, 100]


def test_children_may_set_what_they_like(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    """vfork children share our memory: what they set for themselves is not ours."""

    def work(path):
        import subprocess
        import sys

        array = np.zeros(8)
        w = hwwatch.watch(array[3:4])
        signal.signal(signal.SIGTRAP, signal.SIG_IGN)
        for restore in (True, False):
            for _ in range(5):
                subprocess.run([sys.executable, "-c", "1"], restore_signals=restore, check=True)
        child = os.fork()
        if not child:
            ctypes.CDLL(path).by_signal(signal.SIGTRAP, 0)
            array[3] = 7
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        array[3] = 1
        return status, w.timeline()["new"].tolist(), signal.getsignal(signal.SIGTRAP) == signal.SIG_IGN

    assert in_child(work, build(THIEF)) == [0, [7.0, 1.0], True]
