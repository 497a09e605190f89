"""The ring, small enough to fill: laps, overflow, half-written records, many writers.

All runs in children, since a process has one ring. The hits are scripted (backend `fake`); handler, ring
and reader are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow

OPEN = """
from hwwatch import native
native.CAPACITY = {capacity}
from hwwatch.backends.select import select
from hwwatch.records import Ring
from hwwatch.sessions import Session
fake = select("fake").backend
lib, ffi, shared = native.lib, native.ffi, native.open_core()
lib.hww_trap_open()  # the guard of the handler's own reads
session = Session(backend="fake")
array = np.zeros(8)

def store(value, pc=0, index=3):
    fake.store(array[index:].ctypes.data, np.float64(value).tobytes(), pc=pc)

def slots():
    from hwwatch.records import RECORD
    return np.frombuffer(native.ring(), RECORD)
"""


def small(capacity: int, body: str) -> str:
    return OPEN.format(capacity=capacity) + body


def test_full_ring_counts_what_it_drops(in_child: Callable[..., Any]) -> None:
    found = in_child(
        small(
            64,
            """
watch = session.watch(array[3:4])
for value in range(1, 201):
    store(value)
rows = session.timeline()
report({"new": rows.new.tolist(), "old": rows.old.tolist(),
        "tally": (watch.counted, watch.hits, watch.lost),
        "dropped": int(shared.watches[watch._armed.index].dropped), "head": int(shared.head)})
""",
        )
    )
    kept = len(found["new"])
    assert kept >= 32  # a hit takes two slots at most
    assert found["new"] == list(range(1, kept + 1))
    assert found["old"] == list(range(kept))
    assert found["tally"] == [200, kept, 200 - kept]
    assert found["dropped"] == 200 - kept
    assert found["head"] <= 64


def test_many_laps(in_child: Callable[..., Any]) -> None:
    """After `clear` there is room again; no record of an earlier lap ever comes back."""
    found = in_child(
        small(
            64,
            """
watch = session.watch(array[3:4])
value, wrong = 0, []
for lap in range(150):
    many = 1 + lap * 7 % 30
    for _ in range(many):
        value += 1
        store(value, pc=lap % 5)
    rows = session.timeline()
    if rows.new.tolist() != list(range(value - many + 1, value + 1)) or rows.pc.tolist() != [lap % 5] * many:
        wrong.append((lap, many, rows.new.tolist()))
    session.clear()
report({"wrong": wrong[:3], "laps": int(shared.head) // 64, "lost": watch.lost,
        "last": len(session.timeline())})
""",
        )
    )
    assert found["wrong"] == []
    assert found["laps"] > 25
    assert found["lost"] == 0
    assert found["last"] == 0


def test_registers_of_every_record(in_child: Callable[..., Any]) -> None:
    """Most records hold only the registers that changed; all sixteen are had back, also across `clear`."""
    found = in_child(
        small(
            4096,
            """
import random
random.seed(3)
watch = session.watch(array[3:4])
registers, wrong = [random.getrandbits(64) for _ in range(16)], 0
expected = []
for step in range(1500):
    for number in random.sample(range(16), random.choice([0, 1, 2, 7, 8, 16])):
        registers[number] = random.getrandbits(64)
    place, pc = array[3:].ctypes.data, random.choice([10, 20, 30])
    fake.store(place, np.float64(step).tobytes(), pc=pc, registers=registers)
    expected.append(list(registers))
    if step % 500 == 250:
        session.clear()
        expected = []
rows = session.timeline(registers=True)
names = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16))]
report({"rows": len(rows), "expected": len(expected), "slots": int(shared.head),
        "equal": bool((rows[names].to_numpy() == np.array(expected, np.uint64)).all())})
""",
        )
    )
    assert found["rows"] == found["expected"] == 249
    assert found["equal"]
    assert 1500 < found["slots"] < 3000  # some took one slot, some two


def test_registers_across_sessions(in_child: Callable[..., Any]) -> None:
    """A record may lean on one that another session has let go."""
    found = in_child(
        small(
            4096,
            """
other = Session(backend="fake")
theirs = other.watch(array[5:6])
registers = list(range(100, 116))
fake.store(array[5:].ctypes.data, np.float64(1).tobytes(), pc=77, registers=registers)
mine = session.watch(array[3:4])
fake.store(array[3:].ctypes.data, np.float64(1).tobytes(), pc=77, registers=registers)
names = ["rax", "rbx", "rsp", "r8", "r15"]
before = session.timeline(registers=True)[names].iloc[0].tolist()
other.clear()
after = session.timeline(registers=True)[names].iloc[0].tolist()
report((before, after, int(shared.tail)))
""",
        )
    )
    assert found[0] == found[1] == [100, 101, 107, 108, 115]
    assert found[2] > 0


TORN = """
from hwwatch.records import RECORD
watch = session.watch(array[3:4])
for value in (1, 2):
    store(value)
position = int(shared.head)
tag = position // {capacity} << lib.HWW_TAG_LAP_SHIFT | lib.HWW_TAG_RESERVED
shared.head = position + 1                      # a writer reserves a slot ...
slots()["tag"][position] = {tag}                # ... and perhaps marks it ...
slots()["pid"][position] = {pid}                # ... and never finishes
slots()["new_bytes"][position] = 0x4242424242424242
for value in (3, 4):
    store(value)
first = session.timeline().new.tolist()
{finish}
begun = time.monotonic()
while len(rows := session.timeline()) < {wanted} and time.monotonic() - begun < 5:
    time.sleep(0.05)
report((first, rows.new.tolist(), rows.attrs["hwwatch"]["torn"], time.monotonic() - begun))
"""


def torn(tag: str, pid: str, wanted: int = 4, finish: str = "") -> str:
    return small(1024, TORN.format(capacity=1024, tag=tag, pid=pid, wanted=wanted, finish=finish))


def test_record_of_a_dead_writer_is_stepped_over_at_once(in_child: Callable[..., Any]) -> None:
    dead = "(lambda child: os._exit(0) if not child else os.waitpid(child, 0)[0])(os.fork())"
    first, rows, count, _ = in_child(torn("tag", dead))
    assert first == rows == [1, 2, 3, 4]
    assert count == 1


@pytest.mark.parametrize("tag", ["tag", "0"])
def test_record_of_a_silent_writer_is_stepped_over_later(in_child: Callable[..., Any], tag: str) -> None:
    first, rows, count, seconds = in_child(torn(tag, "os.getpid() if tag else 0"))
    assert first == [1, 2]
    assert rows == [1, 2, 3, 4]
    assert count == 1
    assert 0.3 < seconds < 5


def test_record_that_is_finished_in_the_end_is_shown(in_child: Callable[..., Any]) -> None:
    """Until then the timeline is a prefix: what comes behind waits."""
    finish = """
slot, model = slots()[position : position + 1], slots()[position - 1].copy()
committed = tag | lib.HWW_TAG_COMMITTED
for name in RECORD.names:
    if name != "tag":
        slot[name] = model[name]
slot["old_bytes"], slot["new_bytes"] = np.float64(2).view("u8"), np.float64(2.5).view("u8")
slot["flags"], slot["registers"], slot["base"] = 0, 0, 0
slot["tag"] = committed
"""
    first, rows, count, _ = in_child(torn("tag", "os.getpid()", 5, finish))
    assert first == [1, 2]
    assert rows == [1, 2, 2.5, 3, 4]
    assert count == 0


def test_many_writers_at_once(in_child: Callable[..., Any]) -> None:
    """Threads and forked children write into one ring without locks; nothing is lost or mixed up."""
    found = in_child(
        small(
            1 << 16,
            """
watch = session.watch(array[3:4], stack=1)
armed, index = watch._armed, watch._armed.index
cookie = lib.hww_trap_cookie(index, 0)

def write(number, count=3000):
    registers = ffi.new("uint64_t[16]", [number] * 16)
    for i in range(count):
        registers[0] = i
        lib.hww_trap_simulate(cookie, 0, 1000 + number, registers)

children = []
for number in range(3):
    child = os.fork()
    if not child:
        write(number)
        os._exit(0)
    children.append(child)
threads = [threading.Thread(target=write, args=(number,)) for number in (3, 4, 5)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for child in children:
    os.waitpid(child, 0)
rows = session.timeline(registers=True)
wrong = 0
for number in range(6):
    mine = rows[rows.pc == 1000 + number]
    wrong += mine.rax.tolist() != list(range(3000))
    wrong += set(mine.r15) != {number}
    wrong += mine.tid.nunique() != 1
report({"rows": len(rows), "wrong": int(wrong), "pids": rows.pid.nunique(), "tids": rows.tid.nunique(),
        "recorded": int(shared.watches[index].recorded), "torn": rows.attrs["hwwatch"]["torn"]})
""",
        )
    )
    assert found == {"rows": 18000, "wrong": 0, "pids": 4, "tids": 6, "recorded": 18000, "torn": 0}


def test_released_memory_is_given_back(in_child: Callable[..., Any]) -> None:
    found = in_child(
        small(
            1 << 18,
            """
def resident():
    # shared anonymous memory counts as RssShmem (proc(5))
    status = open("/proc/self/status").read()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssShmem"))) * 1024

watch = session.watch(array[3:4])
registers = ffi.new("uint64_t[16]")
cookie = lib.hww_trap_cookie(watch._armed.index, 0)
before = resident()
for i in range(200_000):
    lib.hww_trap_simulate(cookie, 0, 5, registers)
full = resident()
session.clear()
report((before, full, resident()))
""",
        )
    )
    before, full, after = found
    assert full - before > 200_000 * 128
    assert after - before < 2_000_000


@pytest.mark.parametrize(("capacity", "arena"), [(0, 4096), (3, 4096), (64, 0), (1 << 20, 1 << 36)])
def test_impossible_sizes_are_refused(in_child: Callable[..., Any], capacity: int, arena: int) -> None:
    body = f"""
from hwwatch._core import ffi, lib
report((lib.hww_core_open({capacity}, {arena}), lib.hww_core_shared() == ffi.NULL))
"""
    assert in_child(body) == [-22, True]
