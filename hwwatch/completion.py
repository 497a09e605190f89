"""Completion for the magics: options, the user's names, watches (IPython's matcher API)."""

# IPython's decorators are untyped:
# mypy: allow-untyped-decorators

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from IPython.core.completer import CompletionContext, SimpleCompletion, context_matcher

from hwwatch import words
from hwwatch.exports import SUFFIXES
from hwwatch.sessions import default_session
from hwwatch.targets import buffers, cdata, foreign, functions, tables
from hwwatch.types import KINDS, MODES, XS

_IDENTIFIER = "hwwatch"
_LINE = re.compile(r"\s*%{1,2}(watch|unwatch|watch_timeline|watch_plot|watch_export)\s+(.*)", re.DOTALL)
_DOTTED = re.compile(r"[\w.]*$")
_OPTIONS = {
    "watch": (
        "--mode",
        "--policy",
        "--when",
        "--name",
        "--limit",
        "--break",
        "--no-hold",
        "-m",
        "-p",
        "-w",
        "-n",
        "-l",
    ),
    "unwatch": ("--all",),
    "watch_timeline": ("--output", "--stack", "-o"),
    "watch_plot": ("--kind", "-k", "-x"),
    "watch_export": ("--overwrite", "--stack", "--registers"),
}
_VALUES = {
    ("watch", "-m"): MODES,
    ("watch", "-p"): ("continue", "skip", "return=", "goto="),
    ("watch", "-w"): ('"new < 0"', '"new != old"', '"isnan(new)"'),
    ("watch", "-n"): (),
    ("watch", "-l"): (),
    ("watch_plot", "-k"): KINDS,
    ("watch_plot", "-x"): XS,
}
_LONG = {
    "--mode": "-m",
    "--policy": "-p",
    "--when": "-w",
    "--name": "-n",
    "--limit": "-l",
    "--output": "-o",
    "--kind": "-k",
}


def register(shell: Any) -> None:
    """Add the matcher to a shell's completer."""
    shell.Completer.custom_matchers.append(_matcher(shell))


def unregister(shell: Any) -> None:
    """Take it out again."""
    matchers = shell.Completer.custom_matchers
    matchers[:] = [m for m in matchers if getattr(m, "matcher_identifier", "") != _IDENTIFIER]


def _matcher(shell: Any) -> Any:
    @context_matcher(identifier=_IDENTIFIER, priority=100)
    def match(context: CompletionContext) -> Any:
        found = _LINE.fullmatch(context.text_until_cursor)
        line = words.scan(found[2]) if found else None
        if found is None or line is None or (line.quoted and not _begins_name(found[1], line)):
            return {"completions": [], "suppress": False}
        if line.inside and not line.quoted:  # an index; keys are known to IPython's own matcher
            fragment = _DOTTED.search(line.words[-1])[0]  # type: ignore[index]  # it can be empty
            texts = _expressions(shell, fragment) if fragment else []
        else:
            fragment = line.words[-1]
            texts = list(_candidates(shell, found[1], line))
        return {
            "completions": [SimpleCompletion(str(text)) for text in texts],
            "matched_fragment": fragment,
            "suppress": line.quoted or not line.inside,
            "ordered": True,
        }

    return match


def _begins_name(magic: str, line: words.Words) -> bool:
    """Whether quotes that are still open are those around a watch's name."""
    return magic != "watch" and line.words[-1][0] in "'\""


def _candidates(shell: Any, magic: str, line: words.Words) -> Iterable[str]:
    """Completions of the last word, best first."""
    word = line.words[-1]
    before = line.words[-2] if len(line.words) > 1 else ""
    values = _VALUES.get((magic, _LONG.get(before, before)))
    if values is not None:
        return [value for value in values if value.startswith(word)]
    if word.startswith("-"):
        return [option for option in _OPTIONS[magic] if option.startswith(word)]
    if magic == "watch" or before in ("-o", "--output"):
        return _expressions(shell, word)
    if magic == "watch_export" and len(line.words) == 1:
        return _files(word)
    session = default_session()
    watches = session.watches() if magic == "unwatch" else session._choose(())
    start, quote = (word[1:], word[0]) if word[:1] in ("'", '"') else (word, "")
    texts = [words.quoted(watch.name) for watch in watches if watch.name.startswith(start)]
    if quote:
        return [
            f"{quote}{words.unquoted(text)}{quote}" for text in texts if quote not in words.unquoted(text)
        ]
    texts += [str(watch.id) for watch in watches if str(watch.id).startswith(start)]
    return [text for text in dict.fromkeys(texts) if text]


def _files(word: str) -> list[str]:
    """Names that an export may have, and folders that begin so."""
    folder, slash, start = word.rpartition("/")
    stem = start.partition(".")[0] or "hits"
    names = [stem + suffix for suffix in SUFFIXES]
    with contextlib.suppress(OSError), os.scandir(os.path.expanduser(folder + slash) or ".") as entries:
        found = [entry.name for entry in entries if entry.is_dir() and " " not in entry.name]
        names += sorted(f"{name}/" for name in found if name.startswith(".") == start.startswith("."))
    return [f"{folder}{slash}{name}" for name in names if name.startswith(start)]


def _expressions(shell: Any, word: str) -> list[str]:
    return list(shell.Completer.attr_matches(word)) if "." in word else _names(shell, word)


def _names(shell: Any, word: str) -> list[str]:
    """The user's names, those that can be watched first."""
    hidden = shell.user_ns_hidden
    names = [
        name
        for name, value in shell.user_ns.items()
        if name.startswith(word)
        and (word.startswith("_") or not name.startswith("_"))
        and not (name in hidden and hidden[name] is value)
    ]
    return sorted(names, key=lambda name: (not watchable(shell.user_ns[name]), name))


def watchable(value: object) -> bool:
    """Whether a value is of a kind that has memory to watch; asks for no memory, so it is cheap.

    A large array counts, since its elements can be watched.
    """
    if isinstance(value, type):
        return False
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    if isinstance(value, np.generic | str | bytes):
        return False
    return (
        cdata.is_cdata(value)
        or foreign.is_ctypes(value)
        or (functions.is_function(value) and not isinstance(value, type(len)))
        or tables.is_pandas(value)
        or buffers.lends_memory(value)
    )
