"""Text that can be written anywhere."""

from __future__ import annotations

import contextlib

import numpy as np

#: After a number: a time in its unit.
SINCE = " since 1970"


def plural(number: int, noun: str) -> str:
    """The number and the noun, with an s where that is due."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def encodable(text: str) -> str:
    r"""The text with lone surrogates escaped, such as ``\udcff``.

    `os.fsdecode` and the like make them of names that are not UTF-8; no file, pipe or Arrow table takes them.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def time_text(value: np.datetime64) -> str:
    """A time as NumPy writes it; far from now, where it writes another or none, in its unit since 1970."""
    with contextlib.suppress(OverflowError):
        text = str(value)
        if np.isnat(value) or np.array(text, value.dtype)[()] == value:
            return text
    return f"{value.astype(np.int64)}{SINCE}"
