"""`when`: conditions on a hit, compiled into programs for the machine in ``_core/condition.c``.

A condition only looks like Python. It is parsed, checked against a short list of what is known, and turned
into operations on typed values; none of it is ever run as Python.
"""

from __future__ import annotations

import ast
import difflib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from hwwatch import programs
from hwwatch.errors import ConditionError
from hwwatch.native import lib
from hwwatch.programs import Operation, Value

__all__ = ["Condition", "compile_condition", "fill"]

#: Characters in a condition: far more than 64 operations take, and few enough for Python's parser, which
#: recurses in C.
MAX_LENGTH = 2000

NAMES = ("old", "new", "changed", "hits", "thread", "True", "False", "nan", "inf")
FUNCTIONS = ("isnan", "isinf", "abs")
_GRAMMAR = (
    "A condition is made of old, new, changed, hits, thread, numbers; + - * / // %; < <= == != > >=; "
    "and, or, not; isnan(), isinf(), abs()."
)
_KINDS = {
    np.dtype(code): kind
    for kind, codes in (
        (lib.HWW_VALUE_BOOL, "?"),
        (lib.HWW_VALUE_SIGNED, ("i1", "i2", "i4", "i8")),
        (lib.HWW_VALUE_UNSIGNED, ("u1", "u2", "u4", "u8")),
        (lib.HWW_VALUE_FLOAT, ("f2", "f4", "f8")),
    )
    for code in codes
}
_ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%"}
_COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
# What Python has and conditions have not: its symbol, and what to write.
_UNKNOWN_OPERATORS = {
    ast.BitAnd: ("&", "Write `and` between comparisons."),
    ast.BitOr: ("|", "Write `or` between comparisons."),
    ast.BitXor: ("^", "Between comparisons, write `!=` and parentheses."),
    ast.LShift: ("<<", "Multiply by a power of 2."),
    ast.RShift: (">>", "Divide by a power of 2 with `//`."),
    ast.Pow: ("**", "Multiply, as in `new * new`."),
    ast.MatMult: ("@", "Multiply by `*`."),
    ast.Is: ("is", "Write `==`."),
    ast.IsNot: ("is", "Write `!=`."),
    ast.In: ("in", "Write a chain such as `0 <= new < 10`."),
    ast.NotIn: ("not", "Write `not 0 <= new < 10`."),
}
# By kind of dtype: what can be watched instead.
_VIEWS = {
    "M": "Watch a view of it as int64, or use `changed`.",
    "m": "Watch a view of it as int64, or use `changed`.",
    "c": "Watch its .real or .imag, or use `changed`.",
}


@dataclass(frozen=True)
class Condition:
    """A compiled condition.

    Attributes
    ----------
    text : str
        As the user wrote it.
    value_kind : int
        ``HWW_VALUE_*``: how `old` and `new` are read; ``HWW_VALUE_NONE`` where they cannot be.
    swapped : bool
        The values are big-endian.
    operations : tuple of (code, operand)
        ``HWW_OP_*`` and 64 bits for it, as an unsigned integer.
    """

    text: str
    value_kind: int
    swapped: bool
    operations: tuple[Operation, ...]


def compile_condition(text: str, dtypes: Sequence[np.dtype[Any]]) -> Condition:
    """Compile a condition for a watch.

    Integers are exact, as Python's; where one meets a float in arithmetic it becomes a double, as by
    ``float()``, while comparisons between the two stay exact. ``/`` always gives a double, and division by
    zero an infinity or nan. ``//`` and ``%`` round down, and take integers and a constant divisor. float16
    and float32 are widened to double. A bool counts as 0 or 1; any byte other than 0 is True. nan is equal
    to nothing. ``isnan`` and ``isinf`` of an integer are False.

    Parameters
    ----------
    text : str
        One boolean expression of the names ``old`` and ``new`` (the value before and after), ``changed``
        (their bytes differ), ``hits`` (of this watch so far, this one included, whatever became of them),
        ``thread`` (kernel thread id); numbers, ``True``, ``False``, ``nan``, ``inf``; ``+ - * / // %``;
        comparisons, also in chains; ``and``, ``or``, ``not``; ``isnan()``, ``isinf()``, ``abs()``.
        ``thread == "MainThread"`` means the Python threads that have this name now, in this process.
    dtypes : sequence of numpy.dtype
        Of the watch's values. Where they are not all alike, or are neither bool, integer nor float of at
        most 8 bytes, ``old`` and ``new`` are refused.

    Returns
    -------
    Condition
        To be written with `fill`.

    Raises
    ------
    ConditionError
        Wrong syntax, unknown name, wrong type, an integer that could need more than 127 bits, or more than
        ``HWW_MAX_OPERATIONS`` operations or ``HWW_STACK_DEPTH`` values at one time.
    """
    if not isinstance(text, str):
        raise ConditionError(
            f"when is {programs.shown(repr(text), 0, 60)}, of type {type(text).__name__}; a condition is text, since "
            "it is decided inside the signal handler.",
            hint='Write when="new < 0".',
        )
    return _Compiler(text, dtypes).compile()


def fill(settings: Any, condition: Condition, leaves: Iterable[tuple[int, int]]) -> None:
    """Write a condition into a zeroed ``struct hww_settings``.

    The condition is true for a hit if it is for any value that changed, or where none did for any at all.

    Parameters
    ----------
    settings : cffi cdata
        ``struct hww_settings``, or a pointer to one.
    condition : Condition
        From `compile_condition`.
    leaves : iterable of (offset, nbytes)
        Where the values lie in the snapshot of the watched bytes; none for code, where ``changed`` is never
        true.
    """
    places = sorted(set(leaves))
    if condition.value_kind == lib.HWW_VALUE_NONE:
        # Only `changed` tells such values apart, so bytes do as well; overlapping ones may be too many.
        places = _merged(places)
    settings.value_kind = condition.value_kind
    settings.swapped = condition.swapped
    settings.nleaves = len(places)
    for leaf, (offset, nbytes) in zip(settings.leaves, places, strict=False):
        leaf.offset, leaf.size = offset, nbytes
    settings.noperations = len(condition.operations)
    for operation, (code, operand) in zip(settings.operations, condition.operations, strict=False):
        operation.code, operation.operand = code, operand
