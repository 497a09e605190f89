"""Which values an instruction touched: by its operands, whatever changed, and whoever else stored."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hwwatch.attribution import Life, leaf_offsets, split
from hwwatch.ledgers import padding
from hwwatch.targets import target_of
from hwwatch.targets.model import Leaf, Piece

# Assembly, and how long its machine code is. Operands go by rdi, values come from rsi and vector registers.
STORE8 = "movq %rsi, (%rdi)", 3
STORE4 = "movl %esi, (%rdi)", 2
STORE1 = "movb %sil, (%rdi)", 3
STORE16 = "movups %xmm0, (%rdi)", 3
STORE32 = "vmovups %ymm0, (%rdi)", 4
LOAD8 = "movq (%rdi), %rax", 3
ADD8 = "addq %rsi, (%rdi)", 3
REP = "rep movsb", 2
INSTRUCTIONS = [STORE8, STORE4, STORE1, STORE16, STORE32, LOAD8, ADD8, REP]
RDI = 5  # in the order of hww_record


@pytest.fixture
def code(build: Callable[..., str]) -> Callable[[tuple[str, int]], int]:
    """``code(instruction)``: the address behind it, in a function of its own."""
    functions = [
        f".globl f{n}\\n.type f{n}, @function\\nf{n}: {text}\\nnop\\nret\\n.size f{n}, . - f{n}\\n"
        for n, (text, _) in enumerate(INSTRUCTIONS)
    ]
    library = ctypes.CDLL(build("".join(f'__asm__("{function}");\n' for function in functions)))

    def code(instruction: tuple[str, int]) -> int:
        start = ctypes.cast(getattr(library, f"f{INSTRUCTIONS.index(instruction)}"), ctypes.c_void_p).value
        assert start is not None
        return start + instruction[1]

    return code


class Machine:
    """Makes stores as the CPU would: bytes, registers and pc agree."""

    def __init__(self, fake: Any, code: Callable[[tuple[str, int]], int]) -> None:
        self.fake, self.code = fake, code

    def run(self, instruction: tuple[str, int], address: int, data: bytes = b"") -> int:
        registers = [0] * 16
        registers[RDI] = address
        if not data:  # a load: nothing is written
            data = ctypes.string_at(address, 8)
        return int(self.fake.store(address, data, pc=self.code(instruction), registers=registers))


@pytest.fixture
def machine(fake: Any, code: Callable[[tuple[str, int]], int]) -> Machine:
    return Machine(fake, code)


def test_offsets_in_the_snapshot() -> None:
    pieces = [Piece(103, 1), Piece(104, 8), Piece(120, 4)]
    f4 = np.dtype("f4")
    leaves = [Leaf((0,), 103, np.dtype("u1")), Leaf((1,), 104, f4), Leaf((2,), 108, f4), Leaf((3,), 120, f4)]
    assert leaf_offsets(pieces, leaves) == (0, 1, 5, 9)


def test_split_by_life(fake_session: Any, fake: Any) -> None:
    array = np.zeros(4)
    watches = [fake_session.watch(array[i : i + 1]) for i in range(3)]
    for i in (0, 1, 0, 2, 0):
        fake.store(array[i:].ctypes.data, np.float64(i + 1).tobytes())
    ((_, hits, parts),) = [(s, s.hits, s.parts) for s in fake_session._ledger.stretches()]
    lives = [part.life for part in parts]
    rows = split(hits, lives)
    assert [rows[life].tolist() for life in lives] == [[0, 2, 4], [1], [3]]
    gone = Life(63, 99, 1, "w", (), (), ())
    assert split(hits, [gone])[gone].tolist() == []
    assert [watch.hits for watch in watches] == [3, 1, 1]


def test_padding_stands_for_bytes_of_no_value() -> None:
    class Gaps(ctypes.Structure):
        _fields_ = (("a", ctypes.c_int8), ("b", ctypes.c_int32), ("c", ctypes.c_int16))

    place = target_of(Gaps())
    gaps = [(leaf.address - place.address, leaf.dtype.itemsize) for leaf in padding(place)]
    assert gaps == [(1, 3), (10, 2)]
    assert padding(target_of(np.zeros(3))) == ()


@pytest.mark.parametrize(
    ("instruction", "first", "expected"),
    [(STORE8, 1, [1]), (STORE16, 0, [0, 1]), (STORE16, 2, [2, 3]), (STORE32, 0, [0, 1, 2, 3])],
)
@pytest.mark.parametrize("changed", [True, False])
def test_all_that_the_operand_reaches(
    fake_session: Any,
    machine: Machine,
    instruction: tuple[str, int],
    first: int,
    expected: list[int],
    changed: bool,
) -> None:
    array = np.arange(4.0)
    watch = fake_session.watch(array)
    data = array[first : first + len(expected)] + (10 if changed else 0)
    machine.run(instruction, array[first:].ctypes.data, data.tobytes())
    rows = watch.timeline()
    assert rows.element.tolist() == [(i,) for i in expected]
    assert rows.old.tolist() == [float(i) for i in expected]
    assert rows.new.tolist() == data.tolist()
    assert rows.changed.tolist() == [changed] * len(expected)
    assert set(rows.confidence) == {"exact"}
    assert (watch.counted, watch.hits, watch.lost) == (len(expected), len(expected), 0)


def test_store_across_the_end(fake_session: Any, machine: Machine) -> None:
    """Sixteen bytes that begin before the watch touch its first element only."""
    array = np.zeros(6)
    watch = fake_session.watch(array[2:4])
    machine.run(STORE16, array[1:].ctypes.data, np.ones(2).tobytes())
    machine.run(STORE16, array[3:].ctypes.data, np.ones(2).tobytes())
    rows = watch.timeline()
    assert rows.element.tolist() == [(0,), (1,)]
    assert (watch.counted, watch.hits, watch.lost) == (2, 2, 0)


def test_small_values_under_one_register(fake_session: Any, machine: Machine) -> None:
    """Eight bytes are one debug register; a one-byte store is a hit of one element."""
    array = np.zeros(8, np.uint8)
    watch = fake_session.watch(array)
    assert watch.slots <= 2
    base = array.ctypes.data
    machine.run(STORE1, base + 5, b"\x00")
    machine.run(STORE4, base + 2, b"\x01\x00\x01\x00")
    rows = watch.timeline()
    assert rows.element.tolist() == [(5,), (2,), (3,), (4,), (5,)]
    assert rows.new.tolist() == [0, 1, 0, 1, 0]
    assert rows.changed.tolist() == [False, True, False, True, False]
    assert watch.lost == 0


def test_a_change_of_another_thread_goes_to_its_own_hit(
    fake_session: Any, machine: Machine, fake: Any
) -> None:
    """Element 3 changes while the trap of element 0 is handled; the trap of element 3 comes after."""
    array = np.zeros(4)
    watch = fake_session.watch(array)
    array[3] = 7  # its trap is on its way
    machine.run(STORE8, array.ctypes.data, np.float64(1).tobytes())
    machine.run(STORE8, array[3:].ctypes.data, np.float64(7).tobytes())
    rows = watch.timeline()
    assert rows.element.tolist() == [(0,), (3,)]
    assert rows.old.tolist() == [0, 0]
    assert rows.new.tolist() == [1, 7]
    assert rows.changed.all()
    assert (watch.counted, watch.hits, watch.lost) == (2, 2, 0)


def test_a_change_seen_by_another_watch(fake_session: Any, machine: Machine) -> None:
    """The same with two watches: the row belongs to the watch whose instruction made it, once."""
    array = np.zeros(4)
    one, two = fake_session.watch(array[:1], name="one"), fake_session.watch(array[3:4], name="two")
    array[3] = 7
    machine.run(STORE8, array.ctypes.data, np.float64(1).tobytes())
    machine.run(STORE8, array[3:].ctypes.data, np.float64(7).tobytes())
    rows = fake_session.timeline()
    assert rows.watch.tolist() == ["one", "two"]
    assert rows.old.tolist() == [0, 0]
    assert rows.new.tolist() == [1, 7]
    assert [(w.counted, w.hits, w.lost) for w in (one, two)] == [(1, 1, 0)] * 2


def test_unknown_instruction_shows_what_changed(fake_session: Any, fake: Any) -> None:
    array = np.zeros(4)
    watch = fake_session.watch(array)
    fake.store(array[1:].ctypes.data, np.array([5.0, 6.0]).tobytes())
    rows = watch.timeline()
    assert rows.element.tolist() == [(1,), (2,)]
    assert rows.new.tolist() == [5, 6]
    assert set(rows.confidence) <= {"guess", "none"}
    assert set(rows.instruction) == {""} or rows.instruction.isna().all() or set(rows.confidence) == {"guess"}


def test_unknown_instruction_and_nothing_changed(fake_session: Any, fake: Any) -> None:
    """One value in the named register: it was it. Several: no element is claimed."""
    floats, bytes_ = np.zeros(2), np.zeros(8, np.uint8)
    one = fake_session.watch(floats[:2])
    fake.store(floats[1:].ctypes.data, np.float64(0).tobytes())
    rows = one.timeline()
    assert rows.element.tolist() == [(1,)]
    assert not rows.changed.any()
    fake_session.unwatch()
    several = fake_session.watch(bytes_)
    fake.store(bytes_[3:].ctypes.data, b"\0")
    rows = several.timeline()
    assert rows.element.tolist() == [None]
    assert len(rows) == 1


def test_string_instruction_does_not_bound_the_access(fake_session: Any, machine: Machine) -> None:
    """`rep movsb` names one byte and writes many: what changed counts."""
    array = np.zeros(4)
    watch = fake_session.watch(array)
    machine.run(REP, array.ctypes.data, np.array([1.0, 2.0]).tobytes())
    assert watch.timeline().element.tolist() == [(0,), (1,)]


def test_access_by_the_instruction(fake_session: Any, machine: Machine) -> None:
    array = np.zeros(1)
    watch = fake_session.watch(array, "rw")
    for instruction, data in ((LOAD8, b""), (STORE8, b"\1" * 8), (ADD8, b"\2" * 8), (STORE8, b"\2" * 8)):
        machine.run(instruction, array.ctypes.data, data)
    rows = watch.timeline()
    assert rows.access.tolist() == ["read", "write", "readwrite", "write"]
    assert rows.changed.tolist() == [False, True, True, False]


def test_access_unknown(fake_session: Any, fake: Any) -> None:
    array = np.zeros(1)
    watch = fake_session.watch(array, "rw")
    fake.store(array.ctypes.data, b"\1" * 8)
    fake.store(array.ctypes.data, b"\1" * 8)
    assert watch.timeline().access.tolist() == ["write", "unknown"]


def test_read_mode(fake_session: Any, machine: Machine) -> None:
    array = np.zeros(1)
    watch = fake_session.watch(array, "r")
    for instruction, data in ((STORE8, b"\1" * 8), (LOAD8, b""), (ADD8, b"\2" * 8), (STORE8, b"\3" * 8)):
        machine.run(instruction, array.ctypes.data, data)
    rows = watch.timeline()
    assert rows.access.tolist() == ["read", "readwrite"]
    tally = watch.coverage.tally
    assert (tally.hits, tally.filtered, tally.counted, tally.lost) == (2, 2, 4, 0)
