"""Without privileges, and where a sandbox says no: what works, works; what does not, is told."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwwatch

PARANOID = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text())


@pytest.mark.slow
@pytest.mark.perf
def test_ordinary_user(in_child: Callable[..., Any]) -> None:
    """kernel.perf_event_paranoid 2, the kernel's default, is enough; kernel accesses stay unseen."""

    def work():
        array = np.zeros(8)
        with hwwatch.watching(array[5:6]) as first:  # imports what may not be readable later
            array[5] = 1
        first.timeline()
        hwwatch.doctor()
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)  # and with it all capabilities
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self stays ours
        watch = hwwatch.watch(array[3:4])
        array[3] = 1
        reader, writer = os.pipe()
        os.write(writer, np.full(8, 2.0))
        os.readv(reader, [array])
        array[3] = 3
        thread = threading.Thread(target=array.__setitem__, args=(3, 4))
        thread.start()
        thread.join()
        rows = watch.timeline()
        coverage = hwwatch.coverage()
        return {
            "user": os.getuid() != 0,
            "new": rows.new.tolist(),
            "old": rows.old.tolist(),
            "tally": (watch.counted, watch.hits, watch.lost),
            "kernel": watch.coverage.kernel,
            "full": coverage.full,
            "told": [problem for problem in coverage.problems if "kernel" in problem],
            "works": bool(hwwatch.doctor()),
        }

    found = in_child(work)
    assert found["user"]
    assert found["works"]
    if PARANOID <= 1:
        assert found["new"] == [1, 2, 3, 4]
        return
    assert found["new"] == [1, 3, 4]
    assert found["old"] == [0, 1, 3]  # what the handler saw last: the 2 came unseen
    assert found["tally"] == [3, 3, 0]
    assert found["kernel"] == (
        f"not seen: kernel.perf_event_paranoid is {PARANOID}; "
        "`sudo sysctl kernel.perf_event_paranoid=1` would show them"
    )
    assert not found["full"]
    assert len(found["told"]) == 1


SANDBOX = """
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

/* From now on one system call fails with an errno, as in container runtimes. */
int deny(int number, int error)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return errno;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) ? errno : 0;
}
"""
EPERM, EACCES, ENOSYS = 1, 13, 38


@pytest.mark.slow
@pytest.mark.perf
@pytest.mark.parametrize(
    ("error", "kind", "name"),
    [
        (EPERM, "PermissionRefused", "EPERM"),
        (EACCES, "PermissionRefused", "EACCES"),
        (ENOSYS, "NotSupported", "ENOSYS"),
    ],
)
def test_perf_denied_by_a_sandbox(
    in_child: Callable[..., Any], build: Callable[..., str], error: int, kind: str, name: str
) -> None:
    """ptrace serves instead, and says why; where that is refused as well, both reasons are told."""

    def work(path, error):
        array = np.zeros(8)
        earlier = hwwatch.watch(array[3:4])
        array[3] = 1
        earlier.disarm()
        assert ctypes.CDLL(path).deny(298, error) == 0
        instead = hwwatch.watch(array[5:6], name="instead")
        array[5] = 1
        backend, hits = instead.backend, instead.hits
        hwwatch.unwatch(instead)
        hwwatch.clear()
        array[3] = 1
        assert ctypes.CDLL(path).deny(101, error) == 0
        caught = []
        for _ in range(2):
            try:
                hwwatch.watch(array[4:5])
            except hwwatch.HwwatchError as problem:
                caught.append((type(problem).__name__, str(problem), problem.slug))
        array[3] = 2
        doctor = hwwatch.doctor()
        return {
            "caught": caught,
            "names": [watch.name for watch in hwwatch.watches()] == [earlier.name],
            "hits": (hits, len(hwwatch.timeline())),
            "backend": backend,
            "works": bool(doctor),
            "lines": str(doctor).count("[no] watch"),
            "alive": True,
        }

    found = in_child(work, build(SANDBOX), error)
    assert len(found["caught"]) == 2
    for caught, message, slug in found["caught"]:
        assert caught == kind
        assert "\n" not in message
        assert name in message
        assert slug in ("perf-blocked", "no-breakpoints", "perf-paranoid")
        assert "ptrace" in message
    assert found["names"]
    assert found["hits"] == [1, 0]
    assert found["backend"].startswith("ptrace (perf: ")
    assert not found["works"]
    assert found["lines"] == 8


def test_handlers_way_to_read_denied(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    """process_vm_readv refused: a watch for reads and writes still ends, and counts each access once."""

    def work(path):
        array = np.zeros(8)
        assert ctypes.CDLL(path).deny(310, 1) == 0
        watch = hwwatch.watch(array[3:4], "rw")
        for i in range(1000):
            array[3] = i
        rows = watch.timeline()
        return rows.new.tolist() == list(range(1000)), (watch.counted, watch.hits, watch.lost)

    assert in_child(work, build(SANDBOX), timeout=30) == [True, [1000, 1000, 0]]
