"""Text that can be written anywhere."""

from __future__ import annotations


def encodable(text: str) -> str:
    r"""The text with lone surrogates escaped, such as ``\udcff``.

    `os.fsdecode` and the like make them of names that are not UTF-8; no file, pipe or Arrow table takes them.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
