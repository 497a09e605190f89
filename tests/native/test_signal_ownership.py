"""SIGTRAP, SIGSEGV and SIGBUS: taken, handed on where not ours, given back; without any breakpoint."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

NUMBERS = [signal.SIGTRAP, signal.SIGSEGV, signal.SIGBUS]


def test_taken_and_given_back(in_child: Callable[..., Any]) -> None:
    def work():
        import faulthandler

        faulthandler.disable()
        from hwwatch.native import lib, open_core

        def caught():
            with open("/proc/self/status") as file:
                mask = next(line.split()[1] for line in file if line.startswith("SigCgt"))
            return [int(mask, 16) >> number - 1 & 1 for number in (5, 11, 7)]

        open_core()
        states = [(caught(), lib.hww_trap_owner())]
        for action in (lib.hww_trap_open, lib.hww_trap_open, lib.hww_trap_close, lib.hww_trap_close):
            states.append((action(), caught(), lib.hww_trap_owner()))
        return states, (lib.HWW_OWNER_NONE, lib.HWW_OWNER_US)

    states, (none, us) = in_child(work)
    free, taken = [0, 0, 0], [1, 1, 1]
    assert states == [[free, none], [0, taken, us], [0, taken, us], [0, free, none], [0, free, none]]


@pytest.mark.parametrize("number", NUMBERS)
def test_sent_by_somebody_with_the_default_action(in_child: Callable[..., Any], number: int) -> None:
    def work(number, report):
        import faulthandler

        faulthandler.disable()
        from hwwatch.native import lib, open_core

        open_core()
        report(lib.hww_trap_open())
        os.kill(os.getpid(), number)

    assert in_child(work, int(number), expect=-number) == 0


@pytest.mark.parametrize("number", NUMBERS)
def test_sent_to_an_earlier_python_handler(in_child: Callable[..., Any], number: int) -> None:
    def work(number):
        from hwwatch.native import lib, open_core

        seen = []
        signal.signal(number, lambda number, frame: seen.append(number))
        open_core()
        lib.hww_trap_open()
        for _ in range(3):
            signal.raise_signal(number)
        lib.hww_trap_close()
        signal.raise_signal(number)
        return seen

    assert in_child(work, int(number)) == [number] * 4


JUMPS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
static sigjmp_buf out;
static struct sigaction before;
static int calls, hands_on;
static void handler(int number, siginfo_t *info, void *context)
{
    if (hands_on && ++calls < 100)
        before.sa_sigaction(number, info, context);
    else
        siglongjmp(out, calls ? calls : info->si_addr == (void *)64 || info->si_code <= 0 ? 2 : 3);
}
void install(int number, int hand_on, int onstack)
{
    struct sigaction action = {0};
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    if (onstack)
        sigaltstack(&stack, 0);
    hands_on = hand_on;
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO | (onstack ? SA_ONSTACK : 0);
    if (hand_on) /* past the hooks, so that it finds our handler */
        ((typeof(&sigaction))dlsym(RTLD_DEFAULT, "sigaction"))(number, &action, &before);
    else
        sigaction(number, &action, &before);
}
static int fault(int number)
{
    int r = sigsetjmp(out, 1);
    if (r)
        return r;
    if (number == SIGSEGV)
        return *(volatile int *)64;
    raise(number);
    return 0;
}
int fault_at(int number, int depth)
{
    volatile char room[256];
    memset((char *)room, depth, sizeof room);
    return depth ? fault_at(number, depth - 1) + room[3] * 0 : fault(number);
}
"""


@pytest.mark.parametrize("onstack", [0, 1])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", NUMBERS)
def test_handlers_that_jump_out(
    in_child: Callable[..., Any], build: Callable[..., str], number: int, when: str, onstack: int
) -> None:
    """As interpreters and runtimes have them, set before hwwatch or later: each fault is a new one."""

    def work(path, number, when, onstack):
        library = ctypes.CDLL(path)
        from hwwatch.native import lib, open_core

        if when == "before":
            library.install(number, 0, onstack)
        open_core()
        lib.hww_trap_open()
        if when == "after":
            library.install(number, 0, onstack)
        results = [library.fault_at(number, depth) for depth in (5, 5, 50, 5, 0, 0, 20, 200, 1)]
        lib.hww_trap_close()
        return [*results, library.fault_at(number, 0)]

    assert in_child(work, build(JUMPS, "-ldl"), int(number), when, onstack) == [2] * 10


@pytest.mark.parametrize("onstack", [0, 1])
@pytest.mark.parametrize("number", NUMBERS)
def test_one_that_hands_on_to_us_what_we_handed_on_to_it(
    in_child: Callable[..., Any], build: Callable[..., str], number: int, onstack: int
) -> None:
    """It goes to who had it first, here nobody: no loop."""

    def work(path, number, onstack, report):
        import faulthandler

        faulthandler.disable()
        from hwwatch.native import lib, open_core

        open_core()
        lib.hww_trap_open()
        library = ctypes.CDLL(path)
        library.install(number, 1, onstack)
        lib.hww_trap_open()
        report(1)
        return library.fault_at(number, 3)

    in_child(work, build(JUMPS, "-ldl"), int(number), onstack, expect=-number)


def test_taken_by_another_is_seen_and_left(in_child: Callable[..., Any]) -> None:
    """By a call of libc's sigaction that goes past the tables of the modules: then it is theirs."""

    def work():
        from hwwatch.native import lib, open_core

        open_core()
        lib.hww_trap_open()
        seen = []
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
        handler = kind(seen.append)
        ctypes.CDLL(None).signal(signal.SIGTRAP, handler)
        owner = lib.hww_trap_owner()
        lib.hww_trap_close()
        signal.raise_signal(signal.SIGTRAP)
        return owner == lib.HWW_OWNER_OTHER, seen

    assert in_child(work) == [True, [signal.SIGTRAP]]


def test_signals_that_are_not_ours_are_counted(in_child: Callable[..., Any]) -> None:
    def work():
        from hwwatch.native import lib, open_core

        signal.signal(signal.SIGTRAP, signal.SIG_IGN)
        shared = open_core()
        lib.hww_trap_open()
        for _ in range(7):
            os.kill(os.getpid(), signal.SIGTRAP)
        return int(shared.forwarded), int(shared.stale)

    assert in_child(work) == [7, 0]


def test_hit_of_a_watch_that_is_gone(in_child: Callable[..., Any]) -> None:
    """Queued hits outlive their watch; one whose entry has begun another life is counted and not shown."""

    def work():
        from hwwatch.backends.select import select
        from hwwatch.native import ffi, lib, open_core
        from hwwatch.sessions import Session

        shared, fake = open_core(), select("fake").backend
        lib.hww_trap_open()
        session, array = Session(backend="fake"), np.zeros(8)
        registers = ffi.new("uint64_t[16]")
        first = session.watch(array[3:4])
        index = first._armed.index
        old = lib.hww_trap_cookie(index, 0)
        session.unwatch()
        lib.hww_trap_simulate(old, 0, 0, registers)
        in_flight = first.timeline().shape[0]
        while (watch := session.watch(array[4:5]))._armed.index != index:
            session.unwatch()
        lib.hww_trap_simulate(old, 0, 0, registers)
        nonsense = old ^ 0x3F << 8 | 0x40 << 8
        lib.hww_trap_simulate(nonsense, 0, 0, registers)
        return in_flight, int(shared.stale), watch.hits, fake.counts(watch._armed)

    in_flight, stale, hits, counts = in_child(work)
    assert in_flight == 1
    assert stale >= 1
    assert (hits, counts) == (0, [0])
