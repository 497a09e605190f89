"""A debug exception whose cause was lost on its way, as virtual machines lose it now and then.

The kernel takes one with an empty DR6 for an icebp instruction: SIGTRAP with code TRAP_BRKPT, which names no
watch and would kill the program.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable
from typing import Any

import pytest

import hwwatch

pytestmark = pytest.mark.perf

SOURCE = """
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
/* Change a number past the debug registers, then have the trap that they would have raised. */
int trap(long *place, long value, int code)
{
    if (place) {
        struct iovec local = {&value, sizeof value}, remote = {place, sizeof value};
        if (syscall(SYS_process_vm_writev, getpid(), &local, 1, &remote, 1, 0) != sizeof value)
            return -1;
    }
    siginfo_t info;
    memset(&info, 0, sizeof info);
    info.si_signo = SIGTRAP;
    info.si_code = code;
    return syscall(SYS_rt_tgsigqueueinfo, getpid(), (int)syscall(SYS_gettid), SIGTRAP, &info);
}
void icebp(void) { __asm__ volatile(".byte 0xf1"); }
"""
TRAP_BRKPT, TRAP_HWBKPT = 1, 4


@pytest.mark.slow
@pytest.mark.parametrize("code", [TRAP_BRKPT, TRAP_HWBKPT])
def test_what_has_changed_is_recorded(
    in_child: Callable[..., Any], build: Callable[..., str], code: int
) -> None:
    def work(path, code):
        library = ctypes.CDLL(path)
        numbers = np.zeros(2, np.int64)
        one, two = hwwatch.watch(numbers[:1]), hwwatch.watch(numbers[1:])
        numbers[0] = 1
        answers = [library.trap(ctypes.c_void_p(numbers.ctypes.data), ctypes.c_long(7), code)]
        numbers[0] = 2
        full = hwwatch.coverage().full
        answers.append(library.trap(None, ctypes.c_long(0), code))  # nothing has changed
        coverage = hwwatch.coverage()
        hwwatch.unwatch()
        answers.append(library.trap(None, ctypes.c_long(0), code))  # late, when nothing is watched any more
        rows = hwwatch.timeline()
        tallies = [(watch.counted, watch.hits, watch.lost) for watch in (one, two)]
        return (
            answers,
            rows.old.tolist(),
            rows.new.tolist(),
            tallies,
            full,
            coverage.unexplained,
            str(coverage),
        )

    answers, old, new, tallies, full, unexplained, text = in_child(work, build(SOURCE), code)
    assert answers == [0, 0, 0]
    assert (old, new) == ([0, 1, 7], [1, 7, 2])
    assert tallies == [[3, 3, 0], [0, 0, 0]]
    assert (full, unexplained) == (True, 1)
    assert "1 traps came without a word on their cause" in text


def test_an_icebp_instruction_is_none_of_ours(
    in_child: Callable[..., Any], build: Callable[..., str]
) -> None:
    def work(path, report):
        numbers = np.zeros(1, np.int64)
        watch = hwwatch.watch(numbers)
        numbers[0] = 1
        report(watch.hits)
        ctypes.CDLL(path).icebp()

    assert in_child(work, build(SOURCE), expect=-signal.SIGTRAP) == 1


def test_before_anything_was_watched_it_kills_as_ever(
    in_child: Callable[..., Any], build: Callable[..., str]
) -> None:
    def work(path, code):
        from hwwatch.native import lib, open_core

        open_core()
        lib.hww_trap_open()
        ctypes.CDLL(path).trap(None, ctypes.c_long(0), code)

    in_child(work, build(SOURCE), TRAP_BRKPT, expect=-signal.SIGTRAP)


def test_another_owner_of_debug_registers_gets_its_traps(
    session: Any, load: Callable[..., ctypes.CDLL]
) -> None:
    """TRAP_HWBKPT goes to whoever had SIGTRAP before, when somebody had."""
    library = load(
        SOURCE
        + """
        int seen;
        static void handler(int n, siginfo_t *info, void *context) { seen += info->si_code; }
        void take(void)
        {
            struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
            sigaction(SIGTRAP, &action, 0);
        }
        void give(void) { signal(SIGTRAP, SIG_DFL); }
        """
    )
    number = ctypes.c_long(0)
    library.take()
    try:
        with session.watching(number):
            library.trap(None, ctypes.c_long(0), TRAP_HWBKPT)
        assert ctypes.c_int.in_dll(library, "seen").value == TRAP_HWBKPT
        assert hwwatch.coverage().unexplained == 0
    finally:
        session.close()
        library.give()
