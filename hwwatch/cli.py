"""The command `hwwatch`: doctor, run."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TextIO

from hwwatch import __version__
from hwwatch.errors import HwwatchError
from hwwatch.letters import plural
from hwwatch.types import MODES

if TYPE_CHECKING:
    from pathlib import Path

    from hwwatch.coverages import Coverage
    from hwwatch.reports import Report
    from hwwatch.scripts import Wish
    from hwwatch.sessions import Session
    from hwwatch.watchpoints import Watch

_ABOUT = """\
Hardware watchpoints for Python: who wrote to my array?

  hwwatch doctor                          what this machine allows
  hwwatch run script.py --watch 'a[3]'    which lines of a script write to a[3]
      --out hits.parquet                  … and all hits in a file
"""
_RUN = """\
hwwatch run script.py [ARG ...] --watch EXPR [EXPR ...] [-m w|rw|r|x] [-o FILE [--overwrite]]
       hwwatch run --watch EXPR [-m w|rw|r|x] [-o FILE [--overwrite]] [--] script.py [ARG ...]"""
_RUN_ABOUT = """\
Run a script as `python script.py` does. Each EXPR is looked up in the script's globals, before every line of
its top level and wherever the script binds one of its names or attributes, until it names a place; then that
place is watched. At the end the hits are shown by line, on standard error, and since which line the place was
watched. Names that are bound anew later still stand for the place that they named first.

What belongs to whom: all that follows the script's name goes to the script, up to the first `--watch`; from
there on all is hwwatch's. Options of hwwatch may also stand before the script, where each --watch takes one
EXPR; after `--`, or when --watch came before, no later word is taken for hwwatch's.

The exit status is the script's; 1 where nothing can be watched here, and the script is not run; 2 where the
command is wrong. A script that is killed, or ends itself by os._exit, shows nothing. On SIGTERM the hits are
shown before it ends, as soon as Python can run a signal handler.
"""


_WITH_VALUE = ("--watch", "-m", "--mode", "-o", "--out", "--output")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status, or leaves by SystemExit."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["run"]:
        return _run(words[1:])
    with _any_text():
        return _doctor_or_help(words)


def _doctor_or_help(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "hwwatch", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"hwwatch {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    doctor = commands.add_parser(
        "doctor", help="say what this machine allows; exit status 0 if watching works"
    )
    doctor.add_argument("--json", action="store_true", help="as JSON")
    commands.add_parser(
        "run", help="run a script and show which lines touch a place; see `hwwatch run --help`"
    )
    return _doctor(as_json=parser.parse_args(words).json)


def _doctor(*, as_json: bool) -> int:
    from hwwatch.diagnosis import doctor

    try:
        found = doctor()
    except HwwatchError as error:
        print(json.dumps({"works": False, "error": str(error)}) if as_json else f"hwwatch: {error}")
        return 1
    try:
        print(json.dumps(found.to_dict(), indent=2) if as_json else found, flush=True)
    except BrokenPipeError:  # the reader has seen enough; nothing is left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if found.works else 1


def split_run(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words after ``run`` → hwwatch's options, and the script with its arguments.

    All that follows the script's name is the script's up to the first ``--watch``; nothing is hwwatch's there
    when ``--watch`` or ``--`` came before.
    """
    own: list[str] = []
    at, closed = 0, False
    while at < len(words) and words[at].startswith("-") and not closed:
        closed = words[at] == "--"
        takes_value = words[at] in _WITH_VALUE
        if words[at] == "--watch" and at + 1 < len(words):
            own.append(f"--watch={words[at + 1]}")
        elif not closed:
            own += words[at : at + 1 + takes_value]
        at += 1 + takes_value
    script = list(words[at:])
    if closed or any(word.startswith("--watch") for word in own):
        return own, script
    mine = next((n for n, word in enumerate(script) if n and word.split("=")[0] == "--watch"), len(script))
    return own + script[mine:], script[:mine]


def _run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "hwwatch run",
        usage=_RUN,
        description=_RUN_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--watch", metavar="EXPR", nargs="+", action="extend", help="a[3], s.x, libm.so.6!cos …"
    )
    parser.add_argument(
        "-m", "--mode", choices=MODES, metavar="w|rw|r|x", default="w", help="default: writes"
    )
    parser.add_argument(
        "-o",
        "--out",
        "--output",
        dest="output",
        metavar="FILE",
        help="write all hits here as well: .csv, .parquet, .feather, .json (an object a line), .trace.json "
        "(Perfetto), .html (a page with tables and pictures)",
    )
    parser.add_argument("--overwrite", action="store_true", help="FILE may exist")
    own, script = split_run(argv)
    with _any_text():
        args = parser.parse_args(own)
    if not script:
        parser.error("a script is needed")
    if not args.watch:
        parser.error("nothing to watch: --watch EXPR is needed")
    try:
        args.watch = _expressions(args.watch, args.mode)  # before the script does anything
    except HwwatchError as error:
        parser.error(f"--watch: {error}")
    if args.output is not None:
        from hwwatch.exports import check_file

        try:
            args.output = check_file(args.output, overwrite=args.overwrite)  # before the script may leave
        except HwwatchError as error:
            parser.error(f"-o: {error}")
    return _run_script(script, args)


def _expressions(texts: Sequence[str], mode: str) -> list[str]:
    """What is to be watched, each checked as far as it can be without the script's names."""
    from hwwatch.words import check, split

    expressions = [word for text in texts for word in split(text) or [""]]
    for word in expressions:
        check(word, mode=mode)
    return expressions


def _run_script(script: Sequence[str], args: argparse.Namespace) -> int:
    from hwwatch.scripts import Wish, absolute, compile_script, print_exception, run_script
    from hwwatch.sessions import Session

    tell, full = _teller(), absolute(script[0])
    try:
        code = compile_script(script[0])
    except OSError as error:
        tell(f"hwwatch: can't open file {full!r}: [Errno {error.errno}] {error.strerror}")
        return 2
    except (SyntaxError, ValueError) as error:
        print_exception(error, full)
        return 1
    wishes = [Wish(text) for text in args.watch]
    session, here = Session("run"), os.getpid()
    try:
        _prove(args.mode)
    except HwwatchError as error:
        tell(f"hwwatch: {error}")
        return 1
    report = partial(_report, session, wishes, args.output, tell, overwrite=args.overwrite)
    try:
        with _before_sigterm(report):
            status = run_script(code, script, wishes, session, args.mode)
    finally:
        if os.getpid() == here:  # a forked child comes this way, too
            report()
    if status < 0:
        _interrupted()
    return status


@contextlib.contextmanager
def _before_sigterm(report: Callable[[], None]) -> Iterator[None]:
    """Report before a SIGTERM ends the script, unless the script decides itself what that does."""

    def end() -> None:
        report()
        os.kill(os.getpid(), signal.SIGTERM)

    def handle(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
        if lock.held_here():
            lock.when_free(end)
        else:
            end()

    def take_back() -> None:
        if signal.getsignal(signal.SIGTERM) is handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    # A child has Python's default again. A signal that comes to it before it has waits until then; else
    # Python would drop it.
    masks: dict[int, set[int]] = {}  # by thread

    def before_fork() -> None:
        masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def after_fork() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop(threading.get_ident()))

    def in_child() -> None:
        take_back()
        after_fork()

    from hwwatch.quiet import lock

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    os.register_at_fork(before=before_fork, after_in_parent=after_fork, after_in_child=in_child)
    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        take_back()


def _prove(mode: str) -> None:
    """Raise what stands in the way of any watch, before the script has done anything."""
    from hwwatch.backends.select import select

    select("auto").backend.canary({"r": "rw"}.get(mode, mode), 8, False)


def _report(
    session: Session,
    wishes: Sequence[Wish],
    output: Path | None,
    tell: Callable[[str], None],
    *,
    overwrite: bool,
) -> None:
    """What was seen, on standard error."""
    watches = [wish.watch for wish in wishes if wish.watch is not None]
    lines = []
    if watches:
        coverage = session.coverage()
        session.unwatch(*watches)
        lines.append(str(_lines(session, watches, coverage)))
        lines += _beginnings(wishes)
        if output is not None:
            try:
                _, hits = session._export(output, tuple(watches), overwrite=overwrite, coverage=coverage)
                lines.append(f"{plural(hits, 'hit')} written to {output}")
            except HwwatchError as error:
                lines.append(f"hwwatch: {error}")
    elif output is not None:
        lines.append(f"hwwatch: nothing was watched, so {output} was not written")
    for wish in wishes:
        if wish.watch is None:
            why = wish.problem or "its names never appeared in the script's globals; check the spelling"
            lines.append(f"hwwatch: `{wish.text}` was never watched: {why}")
    tell("\n".join(lines))


def _beginnings(wishes: Sequence[Wish]) -> list[str]:
    """Since which lines of the script accesses were seen."""
    by_line: dict[int, list[str]] = {}
    for wish in wishes:
        if wish.watch is not None:
            by_line.setdefault(wish.since, []).append(wish.watch.name)
    return [
        f"{', '.join(names)}: watched {f'since line {line}' if line else 'only when the script had ended'}; "
        "earlier accesses were not seen"
        for line, names in by_line.items()
    ]


def _teller() -> Callable[[str], None]:
    """Writes to what is standard error now, after all of the script, whatever that made of `sys.stderr`.

    Where there is none, or no longer, nothing is written, and nothing raised.
    """
    own, first = sys.stderr, _opened(2)

    def tell(text: str) -> None:
        for name in ("stdout", "__stdout__", "stderr"):
            with contextlib.suppress(Exception):  # any object, closed, or deleted
                getattr(sys, name).flush()
        if own is None:
            return
        with contextlib.suppress(OSError, ValueError):
            if _is_open(own):
                _write(own, text)
            elif first is not None and first == _opened(2):  # as after sys.stderr.close() or .detach()
                with open(2, "w", encoding="utf-8", closefd=False) as again:
                    _write(again, text)

    return tell


@contextlib.contextmanager
def _any_text() -> Iterator[None]:
    r"""Meanwhile standard output writes as ``\u2026`` what its encoding lacks, as standard error does."""
    out = sys.stdout
    if not isinstance(out, io.TextIOWrapper):
        yield
        return
    before = out.errors
    out.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # its reader is gone
            out.reconfigure(errors=before)


def _opened(descriptor: int) -> tuple[int, int] | None:
    """Which file a descriptor stands for."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_open(stream: TextIO) -> bool:
    try:
        return not stream.closed
    except ValueError:  # detached
        return False


def _write(stream: TextIO, text: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def _lines(session: Session, watches: Sequence[Watch], coverage: Coverage) -> Report:
    """The hits by line; of millions, piece by piece."""
    from hwwatch.digests import Digest
    from hwwatch.reports import ALSO, KEYS, Report

    digest = Digest(KEYS, ALSO)
    for frame in session.frames(*watches):
        digest.add(frame)
    return Report.of(digest, coverage)


def _interrupted() -> NoReturn:
    """Die of an interrupt as Python does, without a second traceback."""
    sys.excepthook = lambda *_: None
    raise KeyboardInterrupt
