"""Conditions: what they mean, by example, and how large they may be."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hwwatch.conditions import Condition, compile_condition, fill
from hwwatch.errors import ConditionError
from hwwatch.native import ffi, lib

INT = np.dtype("int32")
ALL = 2**32 - 1  # all bytes may have been touched


def decide(
    condition: Condition,
    old: bytes,
    new: bytes,
    places: Sequence[tuple[int, int]],
    hits: int = 1,
    thread: int = 1,
) -> bool:
    program = ffi.new("struct hww_settings *")
    fill(program, condition, places)
    snapshots = (raw.ljust(lib.HWW_SNAPSHOT, b"\0") for raw in (old, new))
    return bool(lib.hww_condition_true(program, *snapshots, ALL, hits, thread))


def holds(text: str, dtype: Any, old: Any, new: Any, **names: int) -> bool:
    """Whether a condition holds for a change of one value, or of several."""
    dtype = np.dtype(dtype)
    before, after = np.atleast_1d(np.array(old, dtype)), np.atleast_1d(np.array(new, dtype))
    places = [(n * dtype.itemsize, dtype.itemsize) for n in range(len(before))]
    condition = compile_condition(text, [dtype] * len(before))
    return decide(condition, before.tobytes(), after.tobytes(), places, **names)


def refusal(text: Any, *dtypes: Any) -> str:
    with pytest.raises(ConditionError) as caught:
        compile_condition(text, [np.dtype(dtype) for dtype in dtypes])
    return str(caught.value)


# Meaning


@pytest.mark.parametrize(
    ("text", "dtype", "old", "new", "answer"),
    [
        ("new < 0", "i4", 1, -1, True),
        ("new < 0", "i4", -1, 1, False),
        ("new < 0", "u4", 0, 2**32 - 1, False),
        ("new < 0", ">i4", 1, -1, True),
        ("new == 258", ">u2", 0, 258, True),
        ("new != old", "i8", 5, 5, False),
        ("new != old", "f8", math.nan, math.nan, True),
        ("changed", "f8", math.nan, math.nan, False),
        ("changed", "f8", 0.0, -0.0, True),
        ("new != old", "f8", 0.0, -0.0, False),
        ("isnan(new)", "f8", 0, math.nan, True),
        ("isnan(new) and not isnan(old)", "f4", math.nan, math.nan, False),
        ("isinf(new)", "f2", 0, -math.inf, True),
        ("isnan(new) or isinf(new)", "i4", 0, 1, False),
        ("abs(new - old) > 1e-3", "f8", 1.0, 1.0005, False),
        ("abs(new - old) > 1e-3", "f8", 1.0, 0.99, True),
        ("new == 0.1", "f4", 0, 0.1, False),  # widened, not narrowed
        ("abs(new - 0.1) < 1e-6", "f4", 0, 0.1, True),
        ("new == 9007199254740993", "i8", 0, 2**53 + 1, True),
        ("new == 9007199254740992.0", "i8", 0, 2**53 + 1, False),
        ("new + 0.0 == 9007199254740992.0", "i8", 0, 2**53 + 1, True),
        ("new + 1 > 9223372036854775807", "i8", 0, 2**63 - 1, True),
        ("abs(new) == 128", "i1", 0, -128, True),
        ("-new == 128", "i1", 0, -128, True),
        ("new - old < 0", "u8", 2**64 - 1, 0, True),
        ("new < 100000000000000000000000", "u8", 0, 2**64 - 1, True),
        ("new > -100000000000000000000000", "i8", 0, -(2**63), True),
        ("0 <= new < 10", "i4", 0, 9, True),
        ("0 <= new < 10", "i4", 0, 10, False),
        ("not 0 <= new < 10", "i4", 0, 10, True),
        ("1 < new > old", "i4", 3, 4, True),
        ("new // 2 == -4", "i4", 0, -7, True),
        ("new % 4 == 1", "i4", 0, -7, True),
        ("new % -4 == -3", "i4", 0, -7, True),
        ("new / 2 == -3.5", "i4", 0, -7, True),
        ("new / 0 == inf", "i4", 0, 7, True),
        ("isnan(new / 0)", "f8", 1, 0, True),
        ("1 / new == -inf", "f8", 1, -0.0, True),
        ("nan == nan or nan < nan or nan > nan or nan <= nan or nan >= nan", "f8", 0, 0, False),
        ("nan != nan", "f8", 0, 0, True),
        ("hits <= new", "f8", 0, math.nan, False),
        ("new", "?", False, True, True),
        ("not new", "?", False, True, False),
        ("old + new == 1", "?", False, True, True),
        ("new > old", "?", False, True, True),
        ("(new > 0) + (old > 0) == 2", "i4", 1, 1, True),
        ("True and not False", "i4", 0, 0, True),
        ("new < 0 or new > 0 and old < 0", "i4", 1, 1, False),
        ("  (new\n < 0 )  # remark", "i4", 0, -1, True),
    ],
)
def test_examples(text: str, dtype: str, old: Any, new: Any, answer: bool) -> None:
    assert holds(text, dtype, old, new) is answer


@pytest.mark.parametrize("byte", [1, 2, 128, 255])
def test_any_byte_but_zero_is_true(byte: int) -> None:
    condition = compile_condition("new and new == True and new + 0 == 1", [np.dtype(bool)])
    assert decide(condition, b"\0", bytes([byte]), [(0, 1)])


def test_every_half_has_its_value() -> None:
    words = np.arange(2**16, dtype=np.uint16)
    equal = compile_condition("new == hits - 1099511627776", [np.dtype("f2")])
    for word, half in zip(words, words.view(np.float16).astype(float), strict=True):
        if half.is_integer():
            assert decide(equal, b"", word.tobytes(), [(0, 2)], hits=int(half) + 2**40)
    for word in words[:: 2**4 + 1]:
        value = float(word.view(np.float16))
        text = "isnan(new)" if math.isnan(value) else f"new == {value!r}"
        assert holds(text, "f2", 0, word.view(np.float16))


def test_hits_and_thread() -> None:
    assert holds("hits % 1000 == 1", INT, 0, 0, hits=5001)
    assert not holds("hits % 1000 == 1", INT, 0, 0, hits=5000)
    assert holds("hits == 18446744073709551615", INT, 0, 0, hits=2**64 - 1)
    assert holds("thread == 77", INT, 0, 0, thread=77)
    condition = compile_condition("hits > 2 and not changed", [])
    assert decide(condition, b"\1", b"\2", [], hits=3)
    assert not decide(condition, b"\1", b"\2", [], hits=2)


def test_no_condition_lets_all_pass() -> None:
    assert lib.hww_condition_true(ffi.new("struct hww_settings *"), bytes(32), bytes(32), ALL, 1, 1)


# Several values


@pytest.mark.parametrize(
    ("text", "old", "new", "answer"),
    [
        ("new < 0", [1, 2, 3], [1, -2, 3], True),
        ("new < 0", [1, -2, 3], [1, -2, 4], False),  # the negative one did not change
        ("new < 0", [1, -2, 3], [1, -2, 3], True),  # none changed: any
        ("new < 0", [1, 2, 3], [1, 2, 3], False),
        ("not changed", [1, 2, 3], [1, 2, 4], False),
        ("not changed", [1, 2, 3], [1, 2, 3], True),
        ("new == old + 1", [1, 5, 3], [2, 9, 3], True),
        ("changed and new == 9", [1, 5, 3], [2, 9, 3], True),
    ],
)
def test_true_for_any_value_that_changed_else_for_any(text: str, old: Any, new: Any, answer: bool) -> None:
    for dtype in ("i2", ">f8", "f4"):
        assert holds(text, dtype, old, new) is answer


def test_values_that_are_not_alike_have_changed_or_not() -> None:
    condition = compile_condition("changed", [np.dtype("i4"), np.dtype("f8")])
    assert condition.value_kind == lib.HWW_VALUE_NONE
    places = [(0, 4), (4, 8)]
    assert decide(condition, b"\1" * 12, b"\1" * 11 + b"\2", places)
    assert not decide(condition, b"\1" * 12, b"\1" * 12 + b"\2", places)  # behind the values


@pytest.mark.parametrize("dtype", ["c16", "S32", "M8[s]", "g"])
def test_changed_is_known_of_any_dtype(dtype: str) -> None:
    size = np.dtype(dtype).itemsize
    condition = compile_condition("changed", [np.dtype(dtype)])
    assert decide(condition, bytes(size), bytes(size - 1) + b"\1", [(0, size)])
    assert not decide(condition, bytes(size), bytes(size), [(0, size)])


def test_a_union_of_more_values_than_the_machine_has_places_for() -> None:
    places = [(n, 1) for n in range(32)] + [(n, 2) for n in range(31)]
    program = ffi.new("struct hww_settings *")
    fill(program, compile_condition("changed", [np.dtype("u1"), np.dtype("u2")]), places)
    assert [(leaf.offset, leaf.size) for leaf in program.leaves[0 : program.nleaves]] == [(0, 32)]


def test_values_at_one_place_count_once() -> None:
    program = ffi.new("struct hww_settings *")
    fill(program, compile_condition("new < 0", [INT, INT, INT]), [(4, 4), (0, 4), (4, 4)])
    assert [(leaf.offset, leaf.size) for leaf in program.leaves[0 : program.nleaves]] == [(0, 4), (4, 4)]


def test_what_is_filled_in() -> None:
    condition = compile_condition("new < 0", [np.dtype(">i2")])
    assert condition == Condition(
        "new < 0",
        lib.HWW_VALUE_SIGNED,
        True,
        ((lib.HWW_OP_NEW, 0), (lib.HWW_OP_INT, 0), (lib.HWW_OP_LT_I, 0)),
    )
    program = ffi.new("struct hww_settings *")
    fill(program[0], condition, [(6, 2)])
    assert (program.value_kind, program.swapped, program.nleaves) == (lib.HWW_VALUE_SIGNED, 1, 1)
    assert program.noperations == 3
    assert (program.operations[0].code, program.operations[2].code) == (lib.HWW_OP_NEW, lib.HWW_OP_LT_I)


# Threads by name


def test_threads_by_name() -> None:
    leave = threading.Event()
    workers = [threading.Thread(target=leave.wait, name="worker-of-this-test") for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        equal = compile_condition('thread == "worker-of-this-test"', [])
        unequal = compile_condition("changed or 'worker-of-this-test' != thread", [])
        for worker in workers:
            assert worker.native_id is not None
            assert decide(equal, b"", b"", [], thread=worker.native_id)
            assert not decide(unequal, b"", b"", [], thread=worker.native_id)
        assert not decide(equal, b"", b"", [], thread=threading.get_native_id())
        assert decide(unequal, b"", b"", [], thread=threading.get_native_id())
        message = refusal('thread == "worker-of-this-tset"')
        assert 'at column 11, `"worker-of-this-tset"`: no living Python thread has this name' in message
        assert "Did you mean 'worker-of-this-test'? There are 'MainThread'" in message
    finally:
        leave.set()
        for worker in workers:
            worker.join()
    assert "no living Python thread" in refusal('thread == "worker-of-this-test"')


# Limits


def test_integers_up_to_127_bits() -> None:
    largest = 2**127 - 1
    for number in (largest, -largest, 2**64, -(2**64), 2**63, -(2**63) - 1, 2**126 + 12345):
        assert holds(f"hits + {number} == {number + 1}", INT, 0, 0) if number < largest else True
        assert holds(f"{number} < new", "f8", 0, np.nextafter(float(number), math.inf))
        assert not holds(f"{number} == {number - 1 if number > 0 else number + 1}", INT, 0, 0)
    assert "at column 1, `17014118" in refusal(f"{2**127} > 0")
    assert "too large, integers have up to 127 bits" in refusal(f"hits + {largest} > 0")
    assert "at column 1, `hits * thread`: too large" in refusal("hits * thread > 0")
    assert holds("new * new > 0", "i8", 0, -(2**63))
    assert "`new * new * 2`: too large" in refusal("new * new * 2 > 0", "i8")
    assert holds("(new + 0.0) * new * new > 1e56", "i8", 0, 2**63 - 1)


def test_operations_and_stack_slots() -> None:
    def long(count: int) -> str:
        return " and ".join(["changed"] * count)

    def deep(count: int) -> str:
        return "new + (" * (count - 1) + "new" + ")" * (count - 1) + " == 0"

    assert (
        len(compile_condition(long(lib.HWW_MAX_OPERATIONS // 2), []).operations) == lib.HWW_MAX_OPERATIONS - 1
    )
    assert "too long, this takes more than 64 operations" in refusal(long(lib.HWW_MAX_OPERATIONS // 2 + 1))
    assert holds(deep(lib.HWW_STACK_DEPTH), INT, 1, 0)
    assert not holds(deep(lib.HWW_STACK_DEPTH), INT, 1, 1)
    assert "nested too deeply, there is room for 16 values" in refusal(deep(lib.HWW_STACK_DEPTH + 1), INT)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(" * 900 + "changed" + ")" * 900, "too many nested parentheses"),
        ("- " * 900 + "hits < 0", "nested too deeply|too long"),
        ("not " * 450 + "changed", "nested too deeply|too long"),
        ("hits +" * 300 + "hits < 0", "nested too deeply|too long"),
        ("changed or " * 1000 + "changed", "too long, there is room for 2000 characters"),
    ],
)
def test_excess_is_refused(text: str, reason: str) -> None:
    assert any(part in refusal(text) for part in reason.split("|"))


def test_only_what_was_touched_counts() -> None:
    """Of values that all stayed as they were; of those that changed, it is known."""
    program = ffi.new("struct hww_settings *")
    fill(program, compile_condition("new > 5", [INT, INT]), [(0, 4), (4, 4)])
    small, large = (np.array(value, INT).tobytes().ljust(32, b"\0") for value in ([1, 9], [9, 1]))

    def passes(old: bytes, new: bytes, touched: int) -> bool:
        return bool(lib.hww_condition_true(program, old, new, touched, 1, 1))

    assert [passes(small, small, touched) for touched in (0x0F, 0xF0, 0xFF, 0x10)] == [
        False,
        True,
        True,
        True,
    ]
    assert passes(small, large, 0xF0)
    assert passes(large, small, 0x00)
