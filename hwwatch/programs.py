"""Pieces of programs for the machine in ``_core/condition.c``: typed values and how they are computed."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hwwatch.native import lib

#: Integers are computed exactly in 128 bits; what might leave this range is refused.
LARGEST = 2**127 - 1
#: Integers up to here are exact as doubles.
EXACT = 2**53

#: ``HWW_OP_*``, and 64 bits for it as an unsigned integer.
Operation = tuple[int, int]
Kind = Literal["truth", "integer", "float"]


class Refused(ValueError):
    """The machine cannot compute this; `hint` says what could be written instead."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.hint = hint


@dataclass(frozen=True)
class Value:
    """What a piece of a program leaves on the stack, and how.

    Attributes
    ----------
    kind : {"truth", "integer", "float"}
        A truth is the integer 0 or 1.
    operations : tuple of Operation
        Not more than ``HWW_MAX_OPERATIONS``.
    depth : int
        Stack slots needed meanwhile, at most ``HWW_STACK_DEPTH``.
    low, high : int
        Bounds of a truth or integer, both included. Where they are equal it is a constant.
    """

    kind: Kind
    operations: tuple[Operation, ...]
    depth: int = 1
    low: int = 0
    high: int = 1

    def __post_init__(self) -> None:
        if self.kind == "integer" and max(-self.low, self.high) > LARGEST:
            raise Refused("too large, integers have up to 127 bits", "Adding 0.0 makes a float of one.")
        if len(self.operations) > lib.HWW_MAX_OPERATIONS:
            raise Refused(
                f"too long, this takes more than {lib.HWW_MAX_OPERATIONS} operations", "Simplify it."
            )
        if self.depth > lib.HWW_STACK_DEPTH:
            raise Refused(
                f"nested too deeply, there is room for {lib.HWW_STACK_DEPTH} values", "Simplify it."
            )

    @property
    def constant(self) -> bool:
        """Whether it is an integer or truth known beforehand."""
        return self.kind != "float" and self.low == self.high


def push(name: str, kind: Kind, low: int = 0, high: int = 1) -> Value:
    """A value that the hit brings: ``OLD``, ``NEW``, ``CHANGED``, ``HITS`` or ``THREAD``."""
    return Value(kind, ((_code(name), 0),), 1, low, high)


def integer(value: int, kind: Kind = "integer") -> Value:
    """A constant integer or truth; one that has no 64 bits is made of two that have."""
    low, high = value % 2**64, value >> 64
    if -(2**63) <= value < 2**63:
        operations = [(lib.HWW_OP_INT, low)]
    elif 0 <= value < 2**64:
        operations = [(lib.HWW_OP_UINT, low)]
    else:
        operations = [(lib.HWW_OP_INT, high % 2**64), (lib.HWW_OP_UINT, 2**63), (lib.HWW_OP_MUL_I, 0)]
        operations += [
            (lib.HWW_OP_INT, 2),
            (lib.HWW_OP_MUL_I, 0),
            (lib.HWW_OP_UINT, low),
            (lib.HWW_OP_ADD_I, 0),
        ]
    return Value(kind, tuple(operations), min(2, len(operations)), value, value)


def floating(value: float) -> Value:
    """A constant double."""
    return Value("float", ((lib.HWW_OP_FLOAT, struct.unpack("<Q", struct.pack("<d", value))[0]),))


def positive(value: Value) -> Value:
    """``+value``: a truth becomes an integer."""
    return replace(value, kind="integer") if value.kind == "truth" else value


def negative(value: Value) -> Value:
    """``-value``."""
    if value.kind != "float":
        return _integral("NEG_I", (value,), (-value.low, -value.high))
    code, bits = value.operations[-1]
    if code == lib.HWW_OP_FLOAT:  # of all that ends so, only a constant has one operation
        return replace(value, operations=((code, bits ^ 1 << 63),))
    return Value("float", *_after((value,), "NEG_F"))


def absolute(value: Value) -> Value:
    """``abs(value)``."""
    if value.kind == "float":
        return Value("float", *_after((value,), "ABS_F"))
    ends = [abs(value.low), abs(value.high)]
    return _integral("ABS_I", (value,), [*ends, 0] if value.low < 0 < value.high else ends)


def arithmetic(symbol: str, left: Value, right: Value) -> Value:
    """``left + right``, and so on for ``- * / // %``.

    Of ``//`` and ``%``, `right` must be a constant other than 0, and neither a float.

    Raises
    ------
    Refused
        An integer could need more than 127 bits; the program is too long.
    """
    name = {"+": "ADD", "-": "SUB", "*": "MUL", "/": "DIV", "//": "DIV", "%": "MOD"}[symbol]
    if symbol == "/" or "float" in (left.kind, right.kind):
        return Value("float", *_after((to_float(left), to_float(right)), name + "_F"))
    by = right.low
    match symbol:
        case "+":
            ends = [left.low + right.low, left.high + right.high]
        case "-":
            ends = [left.low - right.high, left.high - right.low]
        case "*":
            ends = [a * b for a in (left.low, left.high) for b in (right.low, right.high)]
        case "//":
            ends = [left.low // by, left.high // by]
        case _:
            ends = [left.low % by] if left.constant else [min(0, by + 1), max(0, by - 1)]
    return _integral(name + "_I", (left, right), ends)


def compare(symbol: str, left: Value, right: Value) -> Value:
    """``left < right``, and so on for ``<= == != > >=``; exact between integers and floats."""
    if symbol in (">", ">="):
        return compare({">": "<", ">=": "<="}[symbol], right, left)
    if symbol == "!=":
        return invert(compare("==", left, right))
    name = {"<": "LT", "<=": "LE", "==": "EQ"}[symbol]
    if "float" not in (left.kind, right.kind):
        return _truth(name + "_I", left, right)
    if _exact(left) and _exact(right):
        return _truth(name + "_F", to_float(left), to_float(right))
    # The machine wants the integer first. It has no mixed "less or equal", and nan rules out "not greater".
    swapped = left.kind == "float"
    pair = (right, left) if swapped else (left, right)
    equal = _truth("EQ_M", *pair)
    if name == "EQ":
        return equal
    less = _truth("GT_M" if swapped else "LT_M", *pair)
    return less if name == "LT" else combine("OR", (less, equal))


def test(name: str, value: Value) -> Value:
    """``isnan(value)`` or ``isinf(value)``; False for an integer."""
    return _truth(name.upper(), value) if value.kind == "float" else integer(0, "truth")


def combine(name: str, values: Sequence[Value]) -> Value:
    """``AND``: all of them, ``OR``: any; `values` are truths, at least one."""
    total = values[0]
    for value in values[1:]:
        total = _truth(name, total, value)
    return total


def invert(value: Value) -> Value:
    """``not value``."""
    return _truth("NOT", value)


def to_float(value: Value) -> Value:
    """A double, as by ``float()``: rounded to the nearest, ties to even."""
    if value.kind == "float":
        return value
    if value.constant:
        return floating(float(value.low))
    return Value("float", *_after((value,), "TO_FLOAT"))


def _code(name: str) -> int:
    return int(getattr(lib, f"HWW_OP_{name}"))


# Operations and depth of an operation on operands: each waits on the stack while those to its right are made.
def _after(operands: Sequence[Value], name: str) -> tuple[tuple[Operation, ...], int]:
    operations = tuple(operation for operand in operands for operation in operand.operations)
    depth = max(waiting + operand.depth for waiting, operand in enumerate(operands))
    return (*operations, (_code(name), 0)), depth


def _integral(name: str, operands: Sequence[Value], ends: Sequence[int]) -> Value:
    low, high = min(ends), max(ends)
    if low == high:
        return integer(low)
    return Value("integer", *_after(operands, name), low, high)


def _truth(name: str, *operands: Value) -> Value:
    return Value("truth", *_after(operands, name))


# Whether a double holds any value that it may have.
def _exact(value: Value) -> bool:
    if value.kind == "float" or (value.low >= -EXACT and value.high <= EXACT):
        return True
    return value.constant and int(float(value.low)) == value.low
