"""What is no condition, and in which words it is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hwwatch.conditions import compile_condition
from hwwatch.errors import ConditionError, HwwatchError

INT = np.dtype("int32")


def refusal(text: Any, *dtypes: Any) -> str:
    with pytest.raises(ConditionError) as caught:
        compile_condition(text, [np.dtype(dtype) for dtype in dtypes])
    return str(caught.value)


KNOWN = "Known are old, new, changed, hits, thread, True, False, nan, inf."


@pytest.mark.parametrize(
    ("text", "column", "rest"),
    [
        ("new < zero", 7, f"`zero`: unknown name. {KNOWN}"),
        ("nwe < 0", 1, "`nwe`: unknown name. Did you mean `new`?"),
        ("  new < true", 9, "`true`: unknown name. Did you mean `True`?"),
        ("new", 1, "`new`: a number is no condition. Did you mean `new != 0`?"),
        (
            "changed and new - old",
            13,
            "`new - old`: a number, and `and` takes conditions. Did you mean `new - old != 0`?",
        ),
        ("changed or not new", 16, "`new`: a number, and `not` takes a condition. Did you mean `new != 0`?"),
        ("new = 5", 5, "`=`: invalid syntax. Did you mean `==`?"),
        ("new <", 6, "the end: invalid syntax."),
        ("", 1, "the end: nothing to decide. For all hits: when=None."),
        ("(new) & 1 == 0", 7, "`&`: unknown operator. Write `and` between comparisons."),
        ("new is nan", 5, "`is`: unknown operator. Write `==`."),
        ("1 < new not in (1, 2)", 9, "`not`: unknown operator. Write `not 0 <= new < 10`."),
        ("~changed", 1, "`~changed`: unknown operator `~`. Write `not`."),
        ("np.isnan(new)", 1, "`np.isnan`: unknown function. Did you mean `isnan`?"),
        ("sqrt(new) < 1", 1, "`sqrt`: unknown function. Known are isnan, isinf, abs."),
        ("isnan(new, old)", 1, "`isnan(new, old)`: `isnan` takes one value. Such as `isnan(new)`."),
        ("isnan or changed", 1, "`isnan`: a function without its argument. Such as `isnan(new)`."),
        ("new // 0 == 1", 8, "`0`: division by zero. Use `/` for an infinity or nan."),
        ("1 + new % old == 1", 11, "`old`: `%` takes a constant on its right. Use `/`."),
        ("new // 2.5 == 1", 8, "`2.5`: a float, and `//` takes integers. Use `/`."),
        (
            "new == 'zéro' or zéro",
            8,
            "`'zéro'`: text can only be compared with `thread`, by `==` or `!=`. "
            'Such as `thread == "MainThread"`.',
        ),
        ("'zéro' == zéro", 11, f"`zéro`: unknown name. {KNOWN}"),
    ],
)
def test_refusals_name_the_column_and_what_helps(text: str, column: int, rest: str) -> None:
    assert refusal(text, INT) == f'when="{text}": at column {column}, {rest} [condition]'


def test_refusals_are_printable() -> None:
    assert refusal("new <\0 0").startswith(
        'when="new <\\x00 0": at column 6, `\\x00`: no character of a text.'
    )
    assert refusal("a\ud800").startswith('when="a\\ud800": at column 2, `\\ud800`: no character of a text.')
    assert refusal("(new\n < \v'a\tb')", INT).startswith(
        "when=\"(new  <  'a\\tb')\": at column 10, `'a\\tb'`: text"
    )
    assert refusal('"a" == 1').startswith('when=\'"a" == 1\': at column 1, `"a"`: text')
    message = refusal("changed and " * 20 + "x" + " and changed" * 20)
    assert message.startswith('when="…')
    assert '…": at column 241, `x`: unknown name.' in message


@pytest.mark.parametrize(
    "text",
    [
        *["new[0] < 1", "new.real < 1", "1 if changed else 0", "lambda: changed", "[changed]", "{changed}"],
        *["(changed, changed)", "(x := changed)", "f'{new}' == ''", "None", "...", "new == 1j", "b'' == new"],
        *["changed if changed else changed", "[changed for new in old]", "await changed", "yield", "'a'"],
        *[
            "__import__('os')",
            "isnan(*new)",
            "isnan(x=new)",
            "isnan()",
            "changed()",
            "print(new)",
            "(isnan)(*[])",
        ],
        *[
            "new := 1",
            "new < 1; new",
            "import os",
            "new < 1)",
            "new ** 2 > 1",
            "~changed",
            "new << 1 == 2",
            "new @ 1",
        ],
        *[
            "thread < 'MainThread'",
            "'a' == 'a'",
            "thread + 1 == 'MainThread'",
            "isnan('a')",
            "-'a'",
            "not 'a'",
        ],
    ],
)
def test_the_rest_of_python_is_refused(text: str) -> None:
    message = refusal(text, INT)
    assert message.startswith("when=")
    assert "at column" in message


def test_nothing_is_evaluated() -> None:
    namespace: list[int] = []
    globals()["trap_of_this_test"] = namespace.append
    try:
        refusal("trap_of_this_test(1) == None", INT)
        refusal("(lambda: trap_of_this_test(1))()", INT)
    finally:
        del globals()["trap_of_this_test"]
    assert namespace == []


@pytest.mark.parametrize(
    ("dtype", "found", "hint"),
    [
        ("M8[ns]", "datetime64[ns]", "Watch a view of it as int64, or use `changed`."),
        ("m8[s]", "timedelta64[s]", "Watch a view of it as int64, or use `changed`."),
        ("c16", "complex128", "Watch its .real or .imag, or use `changed`."),
        ("g", str(np.dtype("g")), "Use `changed`."),
        ("S4", "|S4", "Use `changed`."),
        ("U2", "<U2", "Use `changed`."),
        ("V3", "|V3", "Use `changed`."),
        ("O", "object", "Use `changed`."),
    ],
)
def test_dtypes_that_cannot_be_compared(dtype: str, found: str, hint: str) -> None:
    assert refusal("0 < new", dtype) == (
        f'when="0 < new": at column 5, `new`: the dtype is {found}, not bool, integer or float of at most '
        f"8 bytes. {hint} [condition]"
    )


def test_values_that_are_not_alike_or_missing() -> None:
    assert "`new`: the watch's values are not alike (int32, float64). Watch one" in refusal(
        "new < 0", "i4", "f8", "i4"
    )
    assert "`old`: the watch has no values. `hits` and `thread` can be used." in refusal("old < 0")
    compile_condition("new < 0", [np.dtype("l"), np.dtype("q")])  # two names of int64


@pytest.mark.parametrize("wrong", [None, 5, b"new < 0", lambda: True, np.array(["new < 0"])])
def test_a_condition_is_text(wrong: Any) -> None:
    assert 'Write when="new < 0".' in refusal(wrong, INT)


def test_the_error_is_caught_as_value_error() -> None:
    with pytest.raises(ValueError, match="column 1") as caught:
        compile_condition("x", [INT])
    assert isinstance(caught.value, HwwatchError)
    assert caught.value.slug == "condition"
