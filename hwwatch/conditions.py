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


def compile_condition(text: str, dtypes: Sequence[np.dtype[Any]], *, code: bool = False) -> Condition:
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
    code : bool
        What is watched is code, which never changes by being run: ``changed`` is refused, too.

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
            f"when is {_shown(repr(text), 0, 60)}, of type {type(text).__name__}; a condition is text, since "
            "it is decided inside the signal handler.",
            hint='Write when="new < 0".',
        )
    return _Compiler(text, dtypes, code).compile()


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


def _merged(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for offset, nbytes in places:
        if merged and offset <= sum(merged[-1]):
            first, length = merged[-1]
            merged[-1] = (first, max(length, offset + nbytes - first))
        else:
            merged.append((offset, nbytes))
    return merged


class _Compiler:
    def __init__(self, text: str, dtypes: Sequence[np.dtype[Any]], code: bool) -> None:
        self.text, self.code = text, code
        # Line ends count as blanks; ast.parse, unlike eval, takes no leading blanks.
        self.line = " ".join(text.splitlines())
        self.start = len(self.line) - len(self.line.lstrip())
        self.dtypes = dtypes
        self.value_kind, self.swapped = lib.HWW_VALUE_NONE, False
        if dtypes and all(dtype == dtypes[0] for dtype in dtypes):
            self.value_kind = _KINDS.get(dtypes[0].newbyteorder("="), lib.HWW_VALUE_NONE)
            self.swapped = self.value_kind != lib.HWW_VALUE_NONE and not dtypes[0].isnative

    def compile(self) -> Condition:
        try:
            tree = self.parse()
            value = self.truth(tree, "a number is no condition")
        except (RecursionError, MemoryError):
            self.fail(0, self.line.strip(), "nested too deeply", "Simplify it.")
        return Condition(self.text, self.value_kind, self.swapped, value.operations)

    def parse(self) -> ast.expr:
        if not self.line.strip():
            self.fail(0, "", "nothing to decide", "For all hits: when=None.")
        if len(self.line) > MAX_LENGTH:
            problem = f"too long, there is room for {MAX_LENGTH} characters"
            self.fail(MAX_LENGTH, self.line[MAX_LENGTH:], problem, "Simplify it.")
        for at, char in enumerate(self.line):
            if char == "\0" or "\ud800" <= char <= "\udfff":
                self.fail(at, char, "no character of a text")
        try:
            return ast.parse(self.line[self.start :], mode="eval").body
        except SyntaxError as error:
            # Counted from 1; 0 stands for the end.
            first = self.start + error.offset - 1 if error.offset else len(self.line)
            last = self.start + (error.end_offset or 0) - 1
            piece = self.line[first : last if last > first else None].strip()
            hint = "Did you mean `==`?" if piece == "=" else ""
            self.fail(first, piece, error.msg or "invalid syntax", hint)

    # Errors

    def span(self, node: ast.expr) -> tuple[int, str]:
        """Where a piece begins, and its text; ast counts bytes of UTF-8."""
        line = self.line[self.start :].encode()
        first, last = node.col_offset, node.end_col_offset or len(line)
        return self.start + len(line[:first].decode()), line[first:last].decode()

    def refuse(self, node: ast.expr, problem: str, hint: str) -> NoReturn:
        self.fail(*self.span(node), problem, hint)

    def refuse_operator(self, left: ast.expr, op: ast.operator | ast.cmpop) -> NoReturn:
        """ast tells no place of an operator; only blanks and brackets stand before it."""
        symbol, hint = _UNKNOWN_OPERATORS[type(op)]
        first, piece = self.span(left)
        self.fail(self.line.index(symbol, first + len(piece)), symbol, "unknown operator", hint)

    def fail(self, at: int, piece: str, problem: str, hint: str = "") -> NoReturn:
        where = f"`{_shown(piece, 0, 40)}`" if piece else "the end"
        quote = "'" if '"' in self.line else '"'
        text = f"when={quote}{_shown(self.line, at, 80)}{quote}"
        raise ConditionError(f"{text}: at column {at + 1}, {where}: {problem}.", hint=hint) from None

    # Pieces

    def value(self, node: ast.expr) -> Value:
        try:
            match node:
                case ast.Constant(value=constant):
                    return self.constant(node, constant)
                case ast.Name(id=name):
                    return self.name(node, name)
                case ast.UnaryOp(op=ast.Not(), operand=operand):
                    return programs.invert(self.truth(operand, "a number, and `not` takes a condition"))
                case ast.UnaryOp(op=ast.USub(), operand=operand):
                    return programs.negative(self.value(operand))
                case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                    return programs.positive(self.value(operand))
                case ast.BinOp():
                    return self.arithmetic(node)
                case ast.BoolOp():
                    word = "and" if isinstance(node.op, ast.And) else "or"
                    problem = f"a number, and `{word}` takes conditions"
                    values = [self.truth(operand, problem) for operand in node.values]
                    return programs.combine(word.upper(), values)
                case ast.Compare():
                    return self.comparisons(node)
                case ast.Call():
                    return self.call(node)
        except programs.Refused as refused:
            self.refuse(node, str(refused), refused.hint)
        if isinstance(node, ast.UnaryOp):
            self.refuse(node, "unknown operator `~`", "Write `not`.")
        self.refuse(node, "not part of a condition", _GRAMMAR)

    def truth(self, node: ast.expr, problem: str) -> Value:
        value = self.value(node)
        if value.kind != "truth":
            self.refuse(node, problem, f"Did you mean `{_shown(self.span(node)[1], 0, 40)} != 0`?")
        return value

    def constant(self, node: ast.expr, constant: object) -> Value:
        if isinstance(constant, int):
            return programs.integer(constant, "truth" if isinstance(constant, bool) else "integer")
        if isinstance(constant, float):
            return programs.floating(constant)
        if isinstance(constant, str):
            self.refuse(node, "text can only be compared with `thread`", 'Such as `thread == "MainThread"`.')
        self.refuse(node, "not part of a condition", _GRAMMAR)

    def name(self, node: ast.expr, name: str) -> Value:
        if name in ("old", "new"):
            return self.watched(node, name)
        if name == "changed":
            if self.code:
                self.refuse(node, "the watch has no values", "`hits` and `thread` can be used.")
            return programs.push("CHANGED", "truth")
        if name in ("hits", "thread"):
            return programs.push(name.upper(), "integer", 0, 2**64 - 1)
        if name in ("nan", "inf"):
            return programs.floating(float(name))
        if name in FUNCTIONS:
            self.refuse(node, "a function without its argument", f"Such as `{name}(new)`.")
        close = difflib.get_close_matches(name, NAMES + FUNCTIONS, 1)
        known = f"Known are {', '.join(NAMES)}."
        self.refuse(node, "unknown name", f"Did you mean `{close[0]}`?" if close else known)

    def watched(self, node: ast.expr, name: str) -> Value:
        if not self.dtypes:
            self.refuse(node, "the watch has no values", "`hits` and `thread` can be used.")
        dtype = self.dtypes[0]
        if self.value_kind == lib.HWW_VALUE_BOOL:
            return programs.push(name.upper(), "truth")
        if self.value_kind == lib.HWW_VALUE_FLOAT:
            return programs.push(name.upper(), "float")
        if self.value_kind != lib.HWW_VALUE_NONE:
            limits = np.iinfo(dtype)
            return programs.push(name.upper(), "integer", int(limits.min), int(limits.max))
        if any(other != dtype for other in self.dtypes):
            kinds = _shown(", ".join(dict.fromkeys(str(other) for other in self.dtypes)), 0, 60)
            problem = f"the watch's values are not alike ({kinds})"
            self.refuse(node, problem, "Watch one of them, or use `changed`.")
        problem = f"the dtype is {_shown(str(dtype), 0, 60)}, not bool, integer or float of at most 8 bytes"
        self.refuse(node, problem, _VIEWS.get(dtype.kind, "Use `changed`."))

    def arithmetic(self, node: ast.BinOp) -> Value:
        symbol = _ARITHMETIC.get(type(node.op))
        if symbol is None:
            self.refuse_operator(node.left, node.op)
        left, right = self.value(node.left), self.value(node.right)
        if symbol in ("//", "%"):  # whose divisor is known, so that the machine never divides by zero
            for operand, value in ((node.left, left), (node.right, right)):
                if value.kind == "float":
                    self.refuse(operand, f"a float, and `{symbol}` takes integers", "Use `/`.")
            if not right.constant:
                self.refuse(node.right, f"`{symbol}` takes a constant on its right", "Use `/`.")
            if right.low == 0:
                self.refuse(node.right, "division by zero", "Use `/` for an infinity or nan.")
        return programs.arithmetic(symbol, left, right)

    def comparisons(self, node: ast.Compare) -> Value:
        operands = [node.left, *node.comparators]
        for left_of, op in zip(operands, node.ops, strict=False):
            if type(op) not in _COMPARISONS:
                self.refuse_operator(left_of, op)
        values = [None if _is_text(operand) else self.value(operand) for operand in operands]
        found = []
        for n, op in enumerate(node.ops):
            symbol = _COMPARISONS[type(op)]
            left, right = values[n], values[n + 1]
            if left is None or right is None:
                found.append(self.named_thread(symbol, operands[n], operands[n + 1]))
            else:
                found.append(programs.compare(symbol, left, right))
        return programs.combine("AND", found)

    def named_thread(self, symbol: str, left: ast.expr, right: ast.expr) -> Value:
        text, other = (left, right) if _is_text(left) else (right, left)
        if not (isinstance(other, ast.Name) and other.id == "thread") or symbol not in ("==", "!="):
            problem = "text can only be compared with `thread`, by `==` or `!=`"
            self.refuse(text, problem, 'Such as `thread == "MainThread"`.')
        name = ast.literal_eval(text)
        threads = [(t.name, t.native_id) for t in threading.enumerate() if t.native_id is not None]
        found = sorted(number for known, number in threads if known == name)
        if not found:
            names = sorted({known for known, _ in threads})
            close = difflib.get_close_matches(name, names, 1)
            hint = f"Did you mean {close[0]!r}? " if close else "Set the condition once the thread runs. "
            hint += f"There are {_shown(', '.join(map(repr, names)), 0, 200)}."
            self.refuse(text, "no living Python thread has this name", hint)
        thread = self.name(other, "thread")
        any_of = programs.combine("OR", [programs.compare("==", thread, programs.integer(n)) for n in found])
        return programs.invert(any_of) if symbol == "!=" else any_of

    def call(self, node: ast.Call) -> Value:
        called = node.func
        # Of np.isnan, the last part: what is meant is clear.
        name = str(getattr(called, "id", getattr(called, "attr", "")))
        if not isinstance(called, ast.Name) or name not in FUNCTIONS:
            close = difflib.get_close_matches(name, FUNCTIONS, 1)
            known = f"Known are {', '.join(FUNCTIONS)}."
            self.refuse(called, "unknown function", f"Did you mean `{close[0]}`?" if close else known)
        if len(node.args) != 1 or node.keywords:
            self.refuse(node, f"`{name}` takes one value", f"Such as `{name}(new)`.")
        value = self.value(node.args[0])
        return programs.absolute(value) if name == "abs" else programs.test(name, value)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


# On one line, without control characters, and of long text the part around `at`.
def _shown(text: str, at: int, width: int) -> str:
    first = max(0, min(at - width // 2, len(text) - width))
    part = text[first : first + width]
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in part)
    return "…" * (first > 0) + clean + "…" * (first + width < len(text))
