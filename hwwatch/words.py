"""What users type after `%watch` and `--watch`: words, places, policies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hwwatch.errors import TargetError
from hwwatch.targets import Target, locate, target_of
from hwwatch.targets.expression import bound, check_expression
from hwwatch.types import Goto, Policy, Return

_OPEN, _CLOSE, _QUOTES = "([{", ")]}", "'\""
_OPTION = re.compile(r"(--[\w-]+=|-\w=?)(?=['\"])")
_NUMBER = r"0[xX][0-9a-fA-F_]+|[0-9][0-9_]*"
_ADDRESS = re.compile(rf"({_NUMBER})(?::({_NUMBER}))?")


@dataclass(frozen=True)
class Words:
    """A line, split.

    Attributes
    ----------
    words : tuple of str
        As typed, quotes included. The last is empty where the line ends in a blank, or is empty.
    start : int
        Where the last word begins.
    inside : bool
        Whether the line ends inside brackets.
    quoted : bool
        Whether it ends inside quotes.
    """

    words: tuple[str, ...]
    start: int
    inside: bool
    quoted: bool


def scan(line: str) -> Words:
    """Split at blanks outside brackets and quotes, so that ``m[1, 2]`` and ``r["my field"]`` are one word.

    A ``#`` at the beginning of a word starts a comment, which is left out.
    """
    words: list[str] = []
    start, depth, quote, escaped = 0, 0, "", False
    for at, char in enumerate(line):
        if quote:
            if escaped or char == "\\":
                escaped = not escaped
            elif char == quote:
                quote = ""
        elif char.isspace() and not depth:
            words.append(line[start:at])
            start = at + 1
        elif char == "#" and at == start:
            line = line[:at]
            break
        elif char in _QUOTES:
            quote = char
        else:
            depth = max(0, depth + (char in _OPEN) - (char in _CLOSE))
    words.append(line[start:])
    return Words((*(word for word in words[:-1] if word), words[-1]), start, bool(depth), bool(quote))


def split(line: str) -> list[str]:
    """The words of a line; quotes around a whole word, or around an option's value, are taken off."""
    return [unquoted(word) for word in scan(line).words if word]


def unquoted(word: str) -> str:
    """A word without the quotes around it, or around an option's value."""
    option = _OPTION.match(word)
    if option:
        return option[0] + unquoted(word[option.end() :])
    # The closing quote must be the last character, or it is an expression such as "a" "b" or 'x'[0].
    if len(word) > 1 and word[0] in _QUOTES and word.find(word[0], 1) == len(word) - 1:
        return word[1:-1]
    return word


def quoted(name: str) -> str:
    """A name as one word that `split` gives back, in quotes where it needs them; "" where none will do."""
    forms = (name, f"'{name}'", f'"{name}"')
    fit = (form for form in forms if split(f"{form} x") == [name, "x"])
    return next(fit, "") if name.isprintable() and not name.startswith("-") else ""


def check(word: str, *, mode: str = "w") -> None:
    """Raise what keeps a word from naming a place, whatever the names stand for.

    Raises
    ------
    TargetError
        Its syntax; an address without a length; an expression that computes a new value.
    """
    if word in _OPERATORS:
        raise TargetError(
            f"`{word}` is no place.", hint='A condition needs quotes, as in `-w "new < 0"`.', slug="syntax"
        )
    if _address(word, mode) is None:
        check_expression(word)


def place(word: str, namespace: Mapping[str, Any], *, mode: str = "w") -> Target:
    """The place that a word names: an expression, ``ADDRESS:NBYTES``, ``library!symbol``.

    Parameters
    ----------
    word : str
        An expression as for `hwwatch.locate`; or a raw address and its length in bytes, each decimal or
        hexadecimal, as in ``0x7f0000001000:8``; for mode "x" the address alone.
    namespace : mapping
        Where names are looked up, now and later: the watch tells when a name stands for another object.

    Raises
    ------
    TargetError
        As `hwwatch.locate`.
    """
    check(word, mode=mode)
    address = _address(word, mode)
    if address is None:
        target = locate(word, namespace)
        return replace(target, bound=bound(word, namespace)) if target.kind == "data" else target
    first, nbytes = address
    if mode == "x":
        from hwwatch.targets.functions import code_target

        return code_target(first, word)
    return target_of(first, nbytes=nbytes, name=word)


# The address and its length in bytes; None of any other word.
def _address(word: str, mode: str) -> tuple[int, int] | None:
    address = _ADDRESS.fullmatch(word)
    if address is None:
        return None
    if address[2] is None and mode != "x":
        raise TargetError(
            f"the address {word} has no length.", hint=f"Give it in bytes, as in `{word}:8`.", slug="syntax"
        )
    try:
        return int(address[1], 0), int(address[2] or "1", 0)
    except ValueError:
        raise TargetError(f"{word} is no ADDRESS:NBYTES.", hint="Such as `0x7f0000001000:8`.") from None


_OPERATORS = ("<", "<=", ">", ">=", "==", "!=", "=", "and", "or", "not")


def policy(word: str) -> Policy:
    """``continue``, ``skip``, ``return=VALUE`` or ``goto=ADDRESS`` as `hwwatch.watch` takes it.

    Raises
    ------
    TargetError
        The value is missing, or is no number.
    """
    kind, equals, value = word.partition("=")
    if kind == "goto" and value:
        try:
            return Goto(int(value, 0))
        except ValueError:
            return Goto(value)
    if kind == "return" and value:
        for number in (lambda text: int(text, 0), float):
            try:
                return Return(number(value))
            except ValueError:
                continue
    if kind in ("return", "goto") or equals:
        raise TargetError(
            f"policy {word!r} cannot be read.",
            hint="Write `return=42` or `goto=0x7f0000001000`.",
            slug="policy",
        )
    return word
