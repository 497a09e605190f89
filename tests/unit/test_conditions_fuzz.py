"""Random conditions decide as Python does; random texts are compiled or refused."""

from __future__ import annotations

import ast
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, reject, settings
from hypothesis import strategies as st

from hwwatch.conditions import Condition, compile_condition, fill
from hwwatch.errors import ConditionError
from hwwatch.native import ffi, lib

pytestmark = pytest.mark.slow

DTYPES = [np.dtype(order + code) for order in "<>" for code in ("?", *"bBhHiIqQefd")]
WORDS = [
    0,
    1,
    2**7 - 1,
    2**7,
    2**15,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
# A busy machine is no failure.
THOROUGH = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
UINT64 = st.sampled_from(WORDS) | st.integers(0, 2**64 - 1)


# The reference: Python itself, but for division.


class _Divisions(ast.NodeTransformer):
    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Div):
            return node
        return ast.Call(ast.Name("divide", ast.Load()), [node.left, node.right], [])


def divide(a: float, b: float) -> float:
    a, b = float(a), float(b)
    if b != 0 or math.isnan(b):
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.inf * math.copysign(1, a) * math.copysign(1, b)


def reference(text: str, **names: Any) -> Any:
    tree = ast.fix_missing_locations(_Divisions().visit(ast.parse(text, mode="eval")))
    names |= {
        "nan": math.nan,
        "inf": math.inf,
        "abs": abs,
        "divide": divide,
        "isnan": lambda x: isinstance(x, float) and math.isnan(x),
        "isinf": lambda x: isinstance(x, float) and math.isinf(x),
    }
    return eval(compile(tree, "condition", "eval"), {"__builtins__": {}}, names)


def decode(dtype: np.dtype[Any], raw: bytes) -> Any:
    """By struct, whose letters are NumPy's but for those of 64 bits."""
    if dtype.kind == "b":
        return raw != b"\0"
    letter = {"i8": "q", "u8": "Q"}.get(dtype.str[1:], dtype.char)
    return struct.unpack((">" if dtype.str.startswith(">") else "<") + letter, raw)[0]


def named(dtype: np.dtype[Any], old: bytes, new: bytes, hits: int, thread: int) -> dict[str, Any]:
    values = {"old": decode(dtype, old), "new": decode(dtype, new), "changed": old != new}
    return values | {"hits": hits, "thread": thread}


def expected(
    text: str, dtype: np.dtype[Any], pairs: list[tuple[bytes, bytes]], hits: int, thread: int
) -> bool:
    chosen = [pair for pair in pairs if pair[0] != pair[1]] or pairs
    answers = [reference(text, **named(dtype, old, new, hits, thread)) for old, new in chosen]
    assert {type(answer) for answer in answers} == {bool}
    return any(answers)


def compiled(text: str, dtypes: list[np.dtype[Any]]) -> tuple[Condition | None, str]:
    try:
        return compile_condition(text, dtypes), ""
    except ConditionError as error:
        return None, str(error)


def compiled_unless_too_large(text: str, dtypes: list[np.dtype[Any]]) -> Condition:
    condition, refusal = compiled(text, dtypes)
    if condition is None:
        limits = [limit for limit in ("too large", "too long", "nested too deeply") if limit in refusal]
        assert limits, refusal
        event(f"refused: {limits[0]}")
        reject()
    return condition


def decided(condition: Condition, pairs: list[tuple[bytes, bytes]], hits: int, thread: int) -> bool:
    program = ffi.new("struct hww_settings *")
    size = len(pairs[0][0])
    fill(program, condition, [(n * size, size) for n in range(len(pairs))])
    old, new = (b"".join(pair[n] for pair in pairs).ljust(lib.HWW_SNAPSHOT, b"\xa5") for n in (0, 1))
    return bool(lib.hww_condition_true(program, old, new, 2**32 - 1, hits, thread))


# Random conditions. Brackets are left out at random, so that precedence is compared as well.

LITERALS = [2**31, 2**53, 2**53 + 1, 2**63, 2**64, 2**64 + 1, 2**100 + 1, 2**126]


def either(*choices: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(*choices)


def joined(*parts: st.SearchStrategy[str] | str) -> st.SearchStrategy[str]:
    strategies = [st.just(part) if isinstance(part, str) else part for part in parts]
    return st.tuples(*strategies).map("".join)


def grammar(kind: str) -> tuple[st.SearchStrategy[str], st.SearchStrategy[str]]:
    """Conditions on a bool, an integer or a float; and numbers made of it."""
    values = st.sampled_from(["old", "new"])
    literal = either(
        st.integers(0, 9).map(str), st.integers(0, 2**64).map(str), st.sampled_from(LITERALS).map(str)
    )
    divisor = joined(st.sampled_from(["", "-"]), (st.integers(1, 10) | st.sampled_from(LITERALS)).map(str))
    real = either(
        st.floats(0, allow_nan=False).map(repr), st.sampled_from(["nan", "inf", "0.0", "1e-3", "1e308"])
    )
    truths: Any = st.deferred(lambda: truth)
    integers: Any = st.deferred(lambda: integer)
    floats: Any = st.deferred(lambda: floating)

    def closed(inner: Any) -> st.SearchStrategy[str]:
        return joined("(", inner, ")")

    counts = st.sampled_from(["hits", "thread", "True", "False"])
    integer = either(
        literal,
        counts,
        *[values] * 3 * (kind != "float"),
        closed(truths),
        joined(st.sampled_from(["-", "+", "- "]), either(closed(integers), integers)),
        joined("abs(", either(integers, truths), ")"),
        joined(integers, st.sampled_from([" + ", " - ", "*", "-"]), integers),
        joined(closed(integers), st.sampled_from([" + ", " - ", "*"]), closed(integers)),
        joined(either(integers, closed(integers)), st.sampled_from(["//", " % "]), divisor),
    )
    number = either(closed(integers), closed(floats))
    floating = either(
        real,
        *[values] * 3 * (kind == "float"),
        joined(st.sampled_from(["-", "+"]), either(closed(floats), floats)),
        joined("abs(", floats, ")"),
        joined(floats, st.sampled_from([" + ", " - ", "*", " / "]), number),
        joined(number, st.sampled_from([" + ", " - ", "*", " / "]), closed(floats)),
        joined(number, " / ", number),
    )
    numeric = either(integers, floats, closed(integers), closed(truths), *[values] * 2)
    comparison = joined(numeric, st.sampled_from([" < ", "<=", "==", " != ", ">", " >= "]), numeric)
    chain = joined(comparison, st.sampled_from([" < ", "<=", "==", "!=", ">", ">="]), numeric)
    truth = either(
        *[comparison] * 4,
        chain,
        *[values] * (kind == "bool"),
        st.sampled_from(["changed", "True", "False"]),
        joined(st.sampled_from(["isnan(", "isinf("]), numeric, ")"),
        joined("not ", either(truths, closed(truths))),
        joined(
            either(truths, closed(truths)), st.sampled_from([" and ", " or "]), either(truths, closed(truths))
        ),
    )
    return truth, either(integer, floating)


GRAMMARS = {"b": grammar("bool"), "i": grammar("integer"), "u": grammar("integer"), "f": grammar("float")}


def special(dtype: np.dtype[Any]) -> st.SearchStrategy[bytes]:
    """Extremes, and for floats zeros, denormals, infinities and nans with payloads, of both signs."""
    size = dtype.itemsize
    ends = [0, 1, 2, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1]
    if dtype.kind == "f":
        fraction = {2: 10, 4: 23, 8: 52}[size]
        infinity = 2 ** (8 * size - 1) - 2**fraction
        ends += [
            2**fraction - 1,
            2**fraction,
            infinity - 1,
            infinity,
            infinity + 1,
            infinity + 2 ** (fraction - 1),
        ]
        ends += [end | 2 ** (8 * size - 1) for end in ends]
    order = "big" if dtype.str.startswith(">") else "little"
    words = st.sampled_from(ends) | st.sampled_from(WORDS).map(lambda word: word % 2 ** (8 * size))
    return words.map(lambda word: word.to_bytes(size, order))


Case = tuple[np.dtype[Any], str, list[tuple[bytes, bytes]]]


@st.composite
def cases(draw: st.DrawFn, part: int, most: int) -> Case:
    """A dtype, a condition (part 0) or number (1), old and new bytes of up to so many values."""
    dtype = draw(st.sampled_from(DTYPES))
    text = draw(GRAMMARS[dtype.kind][part])
    raw = special(dtype) | st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize)
    pair = st.tuples(raw, raw) | raw.map(lambda both: (both, both))
    return dtype, text, draw(st.lists(pair, min_size=1, max_size=most))


@THOROUGH
@given(cases(0, 4), UINT64, UINT64)
def test_conditions_decide_as_python_does(case: Case, hits: int, thread: int) -> None:
    dtype, text, pairs = case
    condition = compiled_unless_too_large(text, [dtype] * len(pairs))
    assert decided(condition, pairs, hits, thread) == expected(text, dtype, pairs, hits, thread)


@THOROUGH
@given(cases(1, 1), UINT64, UINT64)
def test_numbers_have_the_value_that_python_gives_them(case: Case, hits: int, thread: int) -> None:
    dtype, text, pairs = case
    # Python raises where a huge integer meets a float; the compiler may refuse the same text by its bounds.
    compiled_unless_too_large(f"({text}) == 0", [dtype])
    value = reference(text, **named(dtype, *pairs[0], hits, thread))
    if value == 0 and isinstance(value, float):
        equal = f"1 / ({text}) == {divide(1, value)!r}"
    else:
        equal = f"({text}) == {value!r}" if value == value else f"isnan({text})"
    condition = compiled_unless_too_large(equal, [dtype])
    assert decided(condition, pairs, hits, thread)


@THOROUGH
@given(
    st.sampled_from(DTYPES),
    st.sampled_from(["<", "<=", "==", "!=", ">", ">="]),
    st.booleans(),
    st.integers(-3, 3),
    st.data(),
)
def test_integers_and_floats_compare_exactly(
    dtype: np.dtype[Any], symbol: str, swapped: bool, near: int, data: st.DataObject
) -> None:
    raw = data.draw(special(dtype) | st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize))
    value = decode(dtype, raw)
    if dtype.kind == "f":
        # Where a rounded comparison would go wrong: `hits` next to the value.
        hits = int(value) + near if math.isfinite(value) else near
        text = f"hits {symbol} new" if swapped else f"new {symbol} hits"
        hits %= 2**64
    else:
        text, hits = (
            f"{float(value)!r} {symbol} new" if swapped else f"new {symbol} {float(value + near)!r}",
            1,
        )
    condition = compile_condition(text, [dtype])
    assert decided(condition, [(raw, raw)], hits, 1) == expected(text, dtype, [(raw, raw)], hits, 1)


# Random texts

PIECES = [
    *[
        "old",
        "new",
        "changed",
        "hits",
        "thread",
        "True",
        "nan",
        "isnan",
        "abs",
        "isnan(new)",
        "0",
        "1.5",
        "1e999",
    ],
    *["(", ")", "[", "]", "{", "}", ",", ":", ".", "=", ":=", "'", '"', "#", "\\"],
    *["\n", "\t", "\0", "\x0c", "\r\n", "\u2028", "é", "\ud800"],
    *[
        "+",
        "-",
        "*",
        "/",
        "//",
        "%",
        "<",
        "<=",
        "==",
        "!=",
        "~",
        "&",
        "**",
        "@",
        "is",
        "in",
        "and",
        "or",
        "not",
        "if",
    ],
    *["else", "for", "lambda", "await", "yield", "None", "...", "1j", "f'{", "b''", "0x", "__import__"],
    *["thread == 'MainThread'", "thread != 'x'"],
]
TEXTS = st.one_of(
    st.text(),
    st.text(st.characters()),
    st.lists(st.sampled_from(PIECES)).map(" ".join),
    st.lists(st.sampled_from(PIECES)).map("".join),
    st.tuples(st.sampled_from(PIECES), st.integers(1, 3000), st.sampled_from(PIECES)).map(
        lambda parts: parts[0] * parts[1] + parts[2]
    ),
    st.tuples(
        st.sampled_from(["(", "-", "not ", "abs(", "new+(", "[", "1<", "new if "]), st.integers(1, 2000)
    ).map(lambda parts: parts[0] * parts[1] + "new < 0" + ")" * parts[1] * ("(" in parts[0])),
)


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
@THOROUGH
@given(
    TEXTS,
    st.sampled_from([*DTYPES, np.dtype("c16"), np.dtype("M8[ns]"), np.dtype("O"), np.dtype("S3"), None]),
)
def test_any_text_is_compiled_or_refused_in_one_line(text: str, dtype: np.dtype[Any] | None) -> None:
    condition, refusal = compiled(text, [] if dtype is None else [dtype])
    if condition is None:
        assert refusal.endswith("[condition]")
        assert "at column" in refusal
        assert refusal.isprintable()
        assert len(refusal) < 2000
    else:
        assert 0 < len(condition.operations) <= lib.HWW_MAX_OPERATIONS
