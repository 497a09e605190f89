"""When the ring is full, records go on in a file: in order, complete, and given back by `clear`.

All runs in children, since a process has one ring. The hits are scripted (backend `fake`); handler, ring,
file and reader are the real ones.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

OPEN = """
import warnings
hwwatch.storage({options})
from hwwatch import native
from hwwatch.backends.select import select
from hwwatch.sessions import Session
fake = select("fake").backend
lib, ffi, shared = native.lib, native.ffi, native.open_core()
lib.hww_trap_open()  # the guard of the handler's own reads
session = Session(backend="fake")
array = np.zeros(8)

def store(value, pc=0, index=3, **more):
    fake.store(array[index:].ctypes.data, np.float64(value).tobytes(), pc=pc, **more)

def memory():
    "Resident set of this process, MiB; /proc/self/status, VmRSS"
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmRSS"].split()[0]) // 1024
"""


def script(body: str, options: str = "capacity=8192") -> str:
    return OPEN.format(options=options) + body


def test_nothing_is_lost_and_the_order_is_kept(in_child: Callable[..., Any]) -> None:
    found = in_child(
        script(
            """
watch = session.watch(array[3:4])
for value in range(1, 60_001):
    store(value, pc=value % 7)
rows = session.timeline()
room = hwwatch.storage()
report({"new": bool((rows.new == np.arange(1, 60_001)).all()), "old": bool((rows.old == rows.new - 1).all()),
        "pc": bool((rows.pc == rows.new % 7).all()), "tally": (watch.counted, watch.hits, watch.lost),
        "used": room.used, "spilled": room.spilled, "full": session.coverage().full})
"""
        )
    )
    assert found["new"]
    assert found["old"]
    assert found["pc"]
    assert found["tally"] == [60_000, 60_000, 0]
    assert found["used"] in (8191, 8192)
    assert found["spilled"] > 50_000


def test_many_rounds_of_spilling_and_clearing(in_child: Callable[..., Any]) -> None:
    """The file is used again and again; no record of an earlier round ever comes back."""
    found = in_child(
        script(
            """
import random
random.seed(5)
watch = session.watch(array[3:4])
value, wrong, spilled, registers = 0, [], 0, [0] * 16
for turn in range(40):
    many = random.choice([10, 3000, 8000, 9000, 20_000])
    kept = []
    for _ in range(many):
        value += 1
        registers[random.randrange(16)] = value
        store(value, pc=value % 5, registers=registers)
        kept.append(list(registers))
    spilled += hwwatch.storage().spilled > 0
    rows = session.timeline(registers=True)
    names = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16))]
    if (rows.new.tolist() != list(range(value - many + 1, value + 1))
            or not (rows[names].to_numpy() == np.array(kept, np.uint64)).all()):
        wrong.append((turn, many, len(rows)))
    session.clear()
    if hwwatch.storage().spilled or hwwatch.storage().used:
        wrong.append((turn, hwwatch.storage()))
report({"wrong": wrong[:3], "spilled": spilled, "lost": watch.lost, "positions": int(shared.head)})
"""
        )
    )
    assert found["wrong"] == []
    assert found["spilled"] > 5
    assert found["lost"] == 0
    assert found["positions"] > 200_000


def test_clearing_under_fire(in_child: Callable[..., Any]) -> None:
    """Threads write all the time, also while the file begins and is given back; it ends when it is empty."""
    found = in_child(
        script(
            """
watch = session.watch(array[3:4])
stop = threading.Event()
lock = threading.Lock()
counts = [0] * 3

def fire(number):
    while not stop.is_set():
        with lock:  # the scripted store is not atomic
            store(number * 1e9 + counts[number])
        counts[number] += 1

threads = [threading.Thread(target=fire, args=(n,)) for n in range(3)]
for thread in threads:
    thread.start()
begun, turns = time.monotonic(), []
while time.monotonic() - begun < 8:
    time.sleep((0.02, 1.2)[len(turns) % 2])
    turns.append(hwwatch.storage().spilled)
    session.timeline()
    session.clear()
stop.set()
for thread in threads:
    thread.join()
tally = watch.coverage.tally
session.clear()
report({"lost": tally.lost, "sum": sum(counts), "counted": watch.counted, "turns": turns,
        "after": hwwatch.storage().spilled, "ended": int(shared.spill) == 0})
"""
        )
    )
    assert found["lost"] == 0
    assert min(found["turns"]) < max(found["turns"])
    assert max(found["turns"]) > 0
    assert found["sum"] > 20_000
    assert (found["counted"], found["after"], found["ended"]) == (0, 0, True)


def test_forked_children_spill_into_the_same_file(in_child: Callable[..., Any]) -> None:
    found = in_child(
        script(
            """
watch = session.watch(array[3:4])
for value in range(1, 9001):
    store(value)
children = []
cookie, registers = lib.hww_trap_cookie(watch._armed.index, 0), ffi.new("uint64_t[16]")
for number in range(3):
    child = os.fork()
    if not child:
        for value in range(20_000):
            lib.hww_trap_simulate(cookie, 0, number + 1, registers)
        os._exit(0)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
rows = session.timeline()
report({"codes": codes, "rows": len(rows), "by child": rows[rows.pc > 0].groupby("pid").size().tolist(),
        "parent": rows[rows.pid == os.getpid()].new.tolist() == list(range(1, 9001))})
"""
        )
    )
    assert found["codes"] == [0, 0, 0]
    assert found["by child"] == [20_000] * 3
    assert found["rows"] == 69_000
    assert found["parent"]


@pytest.mark.parametrize("on_full", ["drop", "stop"])
def test_other_answers_to_a_full_ring(in_child: Callable[..., Any], on_full: str) -> None:
    found = in_child(
        script(
            """
watch, other = session.watch(array[3:4]), session.watch(array[5:6], name="other")
for value in range(1, 20_001):
    store(value)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    armed = watch.armed, other.armed
    rows, _ = session.timeline(), session.timeline()
told = str(session.coverage())
session.clear()
hwwatch.storage("spill")
watch.enabled = True
for value in range(1, 20_001):
    store(value)
report({"rows": rows.new.tolist() == list(range(1, len(rows) + 1)), "kept": len(rows), "armed": armed,
        "warnings": [str(w.message) for w in caught], "told": told, "spilled": hwwatch.storage().spilled,
        "after": len(session.timeline())})
""",
            f"on_full={on_full!r}, capacity=8000",
        )
    )
    assert found["rows"]
    assert 4096 <= found["kept"] <= 8192
    assert found["armed"] == [on_full == "drop", True]
    if on_full == "drop":
        assert len(found["warnings"]) == 1
        assert found["warnings"][0].startswith(f"{20_000 - found['kept']} hits are lost for want of room")
        assert (
            f"hits were counted and not recorded ({20_000 - found['kept']} for want of room)" in found["told"]
        )
    else:
        assert "was full" in found["warnings"][0]
        assert 'disarmed when memory for hits was full, as storage(on_full="stop") asks' in found["told"]
    assert found["spilled"] > 10_000
    assert found["after"] == 20_000


def test_full_disk_is_counted_and_told_and_the_program_goes_on(tmp_path: Path) -> None:
    """A file system that somebody else fills, in a mount namespace of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare (util-linux) makes the file system")
    body = script(
        """
watch = session.watch(array[3:4])
filler = os.path.join(sys.argv[1], "filler")
with open(filler, "wb") as file:
    file.write(bytes(27 << 20))
for value in range(1, 100_001):
    store(value)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    rows, _ = session.timeline(), session.timeline()
kept = len(rows)
assert rows.new.tolist() == list(range(1, kept + 1)), kept
assert 8192 + 2 * 8192 <= kept < 60_000, kept  # memory, and what the disk holds
assert (watch.counted, watch.hits, watch.lost) == (100_000, kept, 100_000 - kept)
assert len(caught) == 1 and str(caught[0].message).startswith(f"{100_000 - kept} hits are lost for want of")
session.clear()
os.remove(filler)
for value in range(1, 20_001):
    store(value)
assert session.timeline().new.tolist() == list(range(1, 20_001))
print("went on", watch.lost)
""",
        "capacity=8192, folder=sys.argv[1]",
    )
    (tmp_path / "script.py").write_text(
        "import os, sys, threading, time\nimport numpy as np, hwwatch\n" + textwrap.dedent(body)
    )
    folder = tmp_path / "small"
    folder.mkdir()
    command = f'mount -t tmpfs -o size=32m none "{folder}" && exec "{sys.executable}" script.py "{folder}"'
    run = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    if "unshare" in run.stderr or "mount:" in run.stderr:
        pytest.skip(f"no mount namespace here: {run.stderr.strip()}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("went on")


def test_memory_stays_bounded(in_child: Callable[..., Any]) -> None:
    """300 000 records are 37 MiB; the file's pages do not stay in the process."""
    found = in_child(
        script(
            """
watch = session.watch(array[3:4])
store(0.5)
session.timeline()
before, most = memory(), 0
cookie, registers = lib.hww_trap_cookie(watch._armed.index, 0), ffi.new("uint64_t[16]")
for value in range(300_000):
    lib.hww_trap_simulate(cookie, 0, 1, registers)
    if value % 10_000 == 0:
        most = max(most, memory() - before)
report({"most": most, "spilled": hwwatch.storage().spilled})
"""
        )
    )
    assert found["spilled"] > 280_000
    assert found["most"] < 10


def test_no_file_is_left_and_none_is_open(in_child: Callable[..., Any], tmp_path: Path) -> None:
    found = in_child(
        script(
            """
files = sorted(os.listdir(sys.argv[1]) if len(sys.argv) > 1 else [])
watch = session.watch(array[3:4])
for value in range(1, 20_001):
    store(value)
targets = []
for number in os.listdir("/proc/self/fd"):
    try:
        targets.append(os.readlink(f"/proc/self/fd/{number}"))
    except OSError:
        continue
maps = [line.split()[-2:] for line in open("/proc/self/maps") if "(deleted)" in line]
report({"open": [t for t in targets if "deleted" in t], "maps": [m for m in maps if m[0].startswith(FOLDER)],
        "left": os.listdir(FOLDER), "spilled": hwwatch.storage().spilled})
""".replace("FOLDER", repr(str(tmp_path))),
            f"capacity=8192, folder={str(tmp_path)!r}",
        )
    )
    assert found["open"] == []
    assert found["left"] == []
    assert len(found["maps"]) == 1
    assert found["spilled"] > 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_full": "wait"}, "on_full='wait' is none of"),
        ({"capacity": 0}, "capacity=0: a number from 1 on"),
        ({"capacity": True}, "capacity=True: a number"),
        ({"disk": -1}, "disk=-1: a number from 0 on"),
        ({"folder": 5}, "folder=5: a path is needed"),
        ({"folder": "/nowhere"}, "folder='/nowhere': no folder to write to"),
    ],
)
def test_bad_settings_are_refused(
    in_child: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    def work(options):
        try:
            hwwatch.storage(**options)
        except hwwatch.HwwatchError as error:
            return str(error), error.slug
        return None

    text, slug = in_child(work, options)
    assert text.startswith(message)
    assert slug == "storage"


def test_sizes_come_before_the_first_watch(in_child: Callable[..., Any]) -> None:
    found = in_child(
        script(
            """
try:
    hwwatch.storage(capacity=100_000)
except hwwatch.HwwatchError as error:
    report(str(error))
"""
        )
    )
    assert "is set up with the first watch" in found
    assert "before it" in found


@pytest.mark.parametrize(("limit", "disk"), [(64 << 20, 64 << 20), (2 << 20, 2 << 20), (100_000, 0)])
def test_limited_size_of_files(in_child: Callable[..., Any], limit: int, disk: int) -> None:
    """Going beyond RLIMIT_FSIZE would raise SIGXFSZ, which kills by default."""

    def work(limit):
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        hwwatch.storage(capacity=8192)
        value = np.zeros(1)
        with hwwatch.watching(value) as watch:
            for i in range(20_000):
                value[0] = i
        return hwwatch.storage().disk, watch.counted, watch.hits, watch.lost

    found, counted, hits, lost = in_child(work, limit)
    assert found == disk
    assert (counted, hits + lost) == (20_000, 20_000)
    assert (lost == 0) == (disk > 2 << 20)
