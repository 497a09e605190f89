"""What the magics and the command line read, without hardware."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from IPython.core.error import UsageError

from hwwatch.cli import split_run
from hwwatch.completion import watchable
from hwwatch.errors import TargetError
from hwwatch.magics import WatchMagics
from hwwatch.types import Goto, Return
from hwwatch.words import place, policy, quoted, scan, split


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("a[3]", ["a[3]"]),
        ("  a[3]   b[1]  ", ["a[3]", "b[1]"]),
        ("a[3] m[1, 2] s.x -m rw", ["a[3]", "m[1, 2]", "s.x", "-m", "rw"]),
        ('rec["my field"][3] -n header', ['rec["my field"][3]', "-n", "header"]),
        ("rec['a] b'] c[0]", ["rec['a] b']", "c[0]"]),
        (r"d['it\'s here'] b", [r"d['it\'s here']", "b"]),
        ("d[(1, 2), {3: 4}] x", ["d[(1, 2), {3: 4}]", "x"]),
        ("a[3] -w 'new < 0'", ["a[3]", "-w", "new < 0"]),
        ('a[3] --when="new < 0" -w="old > 1"', ["a[3]", "--when=new < 0", "-w=old > 1"]),
        ("'libm.so.6!cos'", ["libm.so.6!cos"]),
        ("'x'[0] 'y'", ["'x'[0]", "y"]),
        ("a[3]  # the boundary [of] it's", ["a[3]"]),
        ("d['#'] x", ["d['#']", "x"]),
        ("a[3", ["a[3"]),
        ("a[3]] b", ["a[3]]", "b"]),
        ("0x7f00:8\tb", ["0x7f00:8", "b"]),
    ],
)
def test_split(line: str, words: list[str]) -> None:
    assert split(line) == words


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("a[3]", "a[3]"),
        ("m[1, 2]", "m[1, 2]"),
        ("left eye", "'left eye'"),
        ("a[3] (2)", "'a[3] (2)'"),
        ("it's here", '"it\'s here"'),
        ("r['my field']", "r['my field']"),
        ("r['my field'] (2)", "\"r['my field'] (2)\""),
        ("#1", "'#1'"),
        ("'x'", "\"'x'\""),
        ("a[", "'a['"),
        ("--all", ""),
        ("two\nlines", ""),
        ("'both' \"kinds\"", ""),
    ],
)
def test_quoted(name: str, word: str) -> None:
    assert quoted(name) == word
    assert not word or split(word) == [name]


@pytest.mark.parametrize(
    ("line", "last", "inside", "quoted"),
    [
        ("", "", False, False),
        ("a[3] ", "", False, False),
        ("a[3] b", "b", False, False),
        ("a[3] m[1, ", "m[1, ", True, False),
        ("rec['my fi", "rec['my fi", True, True),
        ("a[3] -w 'new <", "'new <", False, True),
    ],
)
def test_scan_tells_the_word_at_the_end(line: str, last: str, inside: bool, quoted: bool) -> None:
    found = scan(line)
    assert (found.words[-1], found.inside, found.quoted) == (last, inside, quoted)
    assert line[found.start :] == last


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("continue", "continue"),
        ("skip", "skip"),
        ("return=42", Return(42)),
        ("return=-1", Return(-1)),
        ("return=0x10", Return(16)),
        ("return=2.5", Return(2.5)),
        ("goto=0x7f00", Goto(0x7F00)),
        ("goto=libm.so.6!cos", Goto("libm.so.6!cos")),
    ],
)
def test_policy(word: str, expected: object) -> None:
    assert policy(word) == expected


@pytest.mark.parametrize("word", ["return", "return=", "return=abc", "goto", "goto=", "skip=1"])
def test_policy_without_a_value(word: str) -> None:
    with pytest.raises(TargetError, match=r"return=42"):
        policy(word)


def test_place_of_an_expression() -> None:
    m = np.zeros((3, 4))
    found = place("m[1, 2]", {"m": m})
    assert (found.address, found.nbytes) == (m.ctypes.data + 6 * 8, 8)


@pytest.mark.parametrize("form", ["{:#x}:8", "{}:8", "{:#x}:0x8"])
def test_place_of_an_address(form: str) -> None:
    a = np.zeros(8)
    found = place(form.format(a.ctypes.data), {})
    assert (found.address, found.nbytes) == (a.ctypes.data, 8)


def test_address_without_length() -> None:
    with pytest.raises(TargetError, match=r"`0x7f00:8`"):
        place("0x7f00", {})
    strlen = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value
    assert place(f"{strlen:#x}", {}, mode="x").kind == "code"


def test_condition_without_quotes_is_explained() -> None:
    with pytest.raises(TargetError, match='-w "new < 0"'):
        place("<", {})


def test_options_may_stand_anywhere() -> None:
    magic = WatchMagics(None)
    line = "-m rw a[3] --break m[1, 2] -l 5 -n x -w 'new < 0' -p return=4 b"
    args = magic.watch.parser.parse_intermixed_args(split(line))
    assert args.expressions == ["a[3]", "m[1, 2]", "b"]
    assert (args.mode, args.stop, args.limit, args.name) == ("rw", True, 5, "x")
    assert (args.when, args.policy) == ("new < 0", "return=4")


@pytest.mark.parametrize("line", ["a -m q", "a -q", "a -l many", "a -n"])
def test_wrong_options_are_usage_errors(line: str) -> None:
    with pytest.raises(UsageError, match=r"argument"):
        WatchMagics(None).watch.parser.parse_intermixed_args(split(line))


@pytest.mark.parametrize(
    ("line", "own", "script"),
    [
        ("s.py", [], ["s.py"]),
        ("s.py x -v --watch a[3] b -m rw", ["--watch", "a[3]", "b", "-m", "rw"], ["s.py", "x", "-v"]),
        ("s.py -m x --watch=a[3]", ["--watch=a[3]"], ["s.py", "-m", "x"]),
        ("--watch a[3] s.py x", ["--watch=a[3]"], ["s.py", "x"]),
        ("--watch a[3] s.py x --watch b", ["--watch=a[3]"], ["s.py", "x", "--watch", "b"]),
        (
            "--watch a --watch b -m rw -o o.csv s.py",
            ["--watch=a", "--watch=b", "-m", "rw", "-o", "o.csv"],
            ["s.py"],
        ),
        ("-m rw s.py -q --watch a", ["-m", "rw", "--watch", "a"], ["s.py", "-q"]),
        ("-m rw --watch=a -- -s.py --watch b", ["-m", "rw", "--watch=a"], ["-s.py", "--watch", "b"]),
        ("--help", ["--help"], []),
    ],
)
def test_what_belongs_to_the_script(line: str, own: list[str], script: list[str]) -> None:
    assert split_run(line.split()) == (own, script)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.zeros(1000), True),
        (np.zeros(2, object), False),
        (np.float64(1), False),
        (ctypes.c_int(1), True),
        (ctypes.CDLL(None).strlen, True),
        (bytearray(4), True),
        (b"abc", False),
        ("abc", False),
        (3, False),
        ([1], False),
        (len, False),
        (ctypes.c_int, False),
    ],
)
def test_watchable(value: object, expected: bool) -> None:
    assert watchable(value) is expected
