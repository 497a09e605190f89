"""The IPython magics: they parse, call the default session, display."""

# IPython's decorators are untyped:
# mypy: allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import ast
import contextlib
import keyword
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import argument, magic_arguments
from IPython.display import display

from hwwatch import cells, completion, displays, sessions, words
from hwwatch.code.source import cell_log
from hwwatch.coverages import Coverage
from hwwatch.diagnosis import Diagnosis, doctor
from hwwatch.displays import WatchList
from hwwatch.errors import HwwatchError, TargetError
from hwwatch.letters import plural
from hwwatch.quiet import uninterrupted
from hwwatch.reports import Report
from hwwatch.sessions import Session, default_session
from hwwatch.types import KINDS, MODES, XS, Policy
from hwwatch.watchpoints import Watch
from hwwatch.widgets import Panel, close_panels


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Errors of hwwatch become UsageErrors, which IPython prints as one line."""
    try:
        yield
    except HwwatchError as error:
        raise UsageError(" ".join(str(error).split())) from None


def _parsed(magic: Any, line: str) -> Any:
    try:
        return magic.parser.parse_intermixed_args(words.split(line))
    except UsageError as error:
        name = magic.__name__
        raise UsageError(f"{error}. See `%{name}?`. [usage]") from None


_of_watches = argument(
    "which", metavar="ID|NAME", nargs="*", default=[], help="Only hits of these watches, also of former ones."
)


@magics_class
class WatchMagics(Magics):
    """``%watch``, ``%%watch``, ``%unwatch``, ``%watch_timeline``, ``%watch_plot``, ``%watch_export`` …"""

    shell: Any  # never None once registered

    @no_var_expand
    @line_cell_magic
    @magic_arguments()
    @argument(
        "expressions",
        metavar="EXPR",
        nargs="*",
        help="Places: a[3], a[2:6], m[1, 2], s.field, rec['x'][3], libc.strlen, libm.so.6!cos, or a raw "
        "ADDRESS:NBYTES such as 0x7f0000001000:8. Blanks separate them, except in brackets and quotes.",
    )
    @argument(
        "-m",
        "--mode",
        choices=MODES,
        metavar="w|rw|r|x",
        default="w",
        help="Writes (the default), reads and writes, reads, or execution of a C function.",
    )
    @argument(
        "-p",
        "--policy",
        default="continue",
        help="What follows a hit: continue, skip, return=VALUE, goto=ADDRESS.",
    )
    @argument("-w", "--when", metavar="COND", help='Record only hits such as "new < 0" (in quotes).')
    @argument("-n", "--name", help="Name in the timeline, instead of the expression.")
    @argument("-l", "--limit", type=int, metavar="N", help="Disarm after N recorded hits.")
    @argument("--break", action="store_true", dest="stop", help="Enter the debugger after a hit.")
    @argument(
        "--no-hold",
        action="store_false",
        dest="hold",
        help="Do not keep the object alive; the address stays watched, and hits after its death are marked.",
    )
    def watch(self, line: str, cell: str | None = None) -> Watch | WatchList | None:
        """Watch places in memory: every access becomes a row of %watch_timeline, with the line that did it.

        %watch stays armed across cells, until %unwatch; without arguments it lists all watches. Watching the
        same expression again replaces the earlier watch, whose hits stay.

        %%watch is armed for its cell only, and then shows the hits that the cell made, by line.

        Examples
        --------
          %watch a[3]

          %%watch m[1, 2] s.count -m rw
          simulate(m, s)

        The place is watched, never a copy of its value, and must exist before. All places together can take
        4 debug registers of at most 8 bytes each.
        """
        __tracebackhide__ = True
        args = _parsed(self.watch, line)
        if cell is not None:
            self._watch_cell(args, line, cell)
            return None
        with _one_line():
            if not args.expressions:
                if line.strip():
                    raise UsageError("%watch needs something to watch, such as `%watch a[3]`. [usage]")
                return WatchList(default_session().watches())
            watches = self._arm(args, again=True)
        return watches[0] if len(watches) == 1 else WatchList(watches)

    def _arm(self, args: Any, *, again: bool) -> list[Watch]:
        """A watch for each expression, or none and an error; `again` replaces those of the same names."""
        if args.name is not None and len(args.expressions) > 1:
            raise TargetError(
                f"-n {args.name} names one watch; {len(args.expressions)} expressions are given.",
                hint="Use a `%watch` for each.",
                slug="usage",
            )
        policy = words.policy(args.policy)
        places = [words.place(word, self.shell.user_ns, mode=args.mode) for word in args.expressions]
        names = [args.name or place.name for place in places]
        session = default_session()
        replaced = [w for w in session.watches() if again and w.armed and w.name in names]
        return _arm_all(session, places, names, replaced, args, policy)

    def _watch_cell(self, args: Any, line: str, cell: str) -> None:
        __tracebackhide__ = True
        if not args.expressions:
            raise UsageError("%%watch needs something to watch, such as `%%watch a[3]`. [usage]")
        body = cells.Cell(self.shell, line, cell)
        session = default_session()
        with _one_line():
            watches = self._arm(args, again=False)
        try:
            body.run()
        finally:
            coverage = _coverage(session, watches)
            _let_go(session, watches)
            display(Report(session.timeline(*watches), coverage))

    @no_var_expand
    @line_magic
    @magic_arguments()
    @argument("which", metavar="ID|NAME", nargs="*", help="Watches; without any, all.")
    @argument("--all", action="store_true", help="All watches.")
    def unwatch(self, line: str) -> None:
        """Disarm and forget watches; their hits stay in %watch_timeline.

        Examples
        --------
          %unwatch a[3]

          %unwatch --all
        """
        args = _parsed(self.unwatch, line)
        session = default_session()
        if args.all and args.which:
            raise UsageError(f"--all and {' '.join(args.which)} exclude each other. [usage]")
        with _one_line():
            chosen = [session.find(_which(session, word)) for word in args.which] or session.watches()
            if chosen:
                session.unwatch(*chosen)
        for watch in chosen:
            kept = {0: "it had no hits", 1: "its hit stays in the timeline"}
            stay = f"its {watch.hits} hits stay in the timeline"
            print(f"unwatched {watch.id} ({watch.name}); {kept.get(watch.hits, stay)}")
        if not chosen:
            print("nothing is watched")

    @no_var_expand
    @line_magic
    @magic_arguments()
    @_of_watches
    @argument("-o", "--output", metavar="VAR", help="Put the DataFrame into this variable, and show nothing.")
    @argument("--stack", action="store_true", help="Add the Python call stack of each hit.")
    def watch_timeline(self, line: str) -> Any:
        """All recorded hits as a DataFrame, a row each, in order of recording.

        Examples
        --------
          %watch_timeline

          %watch_timeline a[3] --stack -o hits
        """
        args = _parsed(self.watch_timeline, line)
        if args.output is not None and (not args.output.isidentifier() or keyword.iskeyword(args.output)):
            raise UsageError(f"-o {args.output}: a variable's name is needed. [usage]")
        session = default_session()
        with _one_line():
            frame = session.timeline(*[_which(session, word) for word in args.which], stack=args.stack)
        if args.output is None:
            return frame
        self.shell.push({args.output: frame})
        return None

    @no_var_expand
    @line_magic
    @magic_arguments()
    @_of_watches
    @argument(
        "-k",
        "--kind",
        choices=KINDS,
        metavar="|".join(KINDS),
        default="values",
        help="Values over time as steps (the default), hits by line or by instruction, hits of each element.",
    )
    @argument(
        "-x", choices=XS, metavar="|".join(XS), default="time", help="Against time, or the hits' numbers."
    )
    def watch_plot(self, line: str) -> Any:
        """Draw the recorded hits, in the colours of the lines that made them.

        Examples
        --------
          %watch_plot

          %watch_plot a[3] --kind by_line
        """
        args = _parsed(self.watch_plot, line)
        session = default_session()
        with _one_line():
            return session.plot(*[_which(session, word) for word in args.which], kind=args.kind, x=args.x)

    @no_var_expand
    @line_magic
    @magic_arguments()
    @argument(
        "file",
        metavar="FILE",
        help="Its suffix says how: .csv, .parquet, .feather, .json (an object a line), .trace.json (for "
        "Perfetto), .html (a page with tables and pictures). Quotes around it where it has blanks.",
    )
    @_of_watches
    @argument("--overwrite", action="store_true", help="Take the place of a file of that name.")
    @argument("--stack", action="store_true", help="Add the Python call stack of each hit.")
    @argument("--registers", action="store_true", help="Add the general registers of each hit.")
    def watch_export(self, line: str) -> None:
        """Write the recorded hits to a file.

        Examples
        --------
          %watch_export hits.parquet

          %watch_export report.html a[3] --overwrite
        """
        args = _parsed(self.watch_export, line)
        session = default_session()
        with _one_line():
            file, hits = session._export(
                args.file,
                tuple(_which(session, word) for word in args.which),
                overwrite=args.overwrite,
                stack=args.stack,
                registers=args.registers,
            )
        print(f"{plural(hits, 'hit')} written to {file}")

    @line_magic
    def watch_panel(self, line: str) -> Panel:
        """The watches as rows of controls, with their figures and last hits; live while cells run."""
        _no_arguments("watch_panel", line)
        with _one_line():
            return Panel(default_session())

    @line_magic
    def watch_coverage(self, line: str) -> Coverage:
        """What is and what is not being seen: threads, kernel accesses, lost hits, self-tests."""
        _no_arguments("watch_coverage", line)
        with _one_line():
            return default_session().coverage()

    @line_magic
    def watch_doctor(self, line: str) -> Diagnosis:
        """What this machine allows, and the command that would allow more."""
        _no_arguments("watch_doctor", line)
        with _one_line():
            return doctor()


def _no_arguments(name: str, line: str) -> None:
    if words.split(line):
        raise UsageError(f"%{name} takes no arguments: {line.strip()}. [usage]")


def _arm_all(
    session: Session,
    places: Sequence[Any],
    names: Sequence[str],
    replaced: Sequence[Watch],
    args: Any,
    policy: Policy,
) -> list[Watch]:
    """Arm all or none; those to be replaced make room first, and come back when it fails."""
    with uninterrupted:
        made: list[Watch] = []
        on_hit = "break" if args.stop else None
        for watch in replaced:
            watch.disarm()
        try:
            for place, name in zip(places, names, strict=True):
                made.append(
                    session.watch(
                        place,
                        args.mode,
                        name=name,
                        policy=policy,
                        when=args.when,
                        limit=args.limit,
                        on_hit=on_hit,
                        hold=args.hold,
                    )
                )
        except BaseException:
            _let_go(session, made)
            with contextlib.suppress(HwwatchError):
                for watch in replaced:
                    watch.enabled = True
            raise
        _let_go(session, replaced)
        for watch, name in zip(made, names, strict=True):  # the names are free only now
            if all(other.name != name for other in session.watches()):
                watch.name = name
        return made


def _let_go(session: Session, watches: Sequence[Watch]) -> None:
    """Unwatch those that are still there: a cell may have done it itself."""
    there = [watch for watch in session.watches() if watch in watches]
    if there:  # without arguments it would mean all
        session.unwatch(*there)


def _coverage(session: Session, watches: Sequence[Watch]) -> Coverage:
    """The coverage of some watches of a session, as it is now."""
    whole = session.coverage()
    known = {watch.number: watch for watch in whole.watches}
    chosen = tuple(known.get(watch.id) or watch.coverage for watch in watches)  # a cell may let go of its own
    return replace(whole, watches=chosen)


def _which(session: Session, word: str) -> str:
    """The name or id that a word means: names as typed, then as Python writes the expression, then ids."""
    names = {watch.name for watch in session._choose(())}
    if word in names:
        return word
    with contextlib.suppress(SyntaxError, ValueError):
        written = ast.unparse(ast.parse(word, mode="eval").body)
        if written in names:
            return written
    return word


def _notice(*_: object) -> None:
    """After a cell: say which watched objects have moved, died or lost their names in it."""
    if sessions._default is not None:
        sessions._default.notice()


def load(shell: Any) -> None:
    """Register magics and completion with a shell; twice is as good as once."""
    unload(shell)
    shell.register_magics(WatchMagics)
    in_kernel = getattr(shell, "kernel", None) is not None
    displays.notebook_folder = displays.current_folder() if in_kernel else None
    completion.register(shell)
    shell.events.register("pre_run_cell", cell_log.enter)
    shell.events.register("post_run_cell", cell_log.leave)
    shell.events.register("post_run_cell", _notice)


def unload(shell: Any) -> None:
    """Take all back: magics, completion, watches with their descriptors, the SIGTRAP handler."""
    completion.unregister(shell)
    callbacks = (
        ("pre_run_cell", cell_log.enter),
        ("post_run_cell", cell_log.leave),
        ("post_run_cell", _notice),
    )
    for event, callback in callbacks:
        if callback in shell.events.callbacks[event]:
            shell.events.unregister(event, callback)
    manager = shell.magics_manager
    if manager.registry.pop(WatchMagics.__name__, None) is not None:
        for kind, names in WatchMagics.magics.items():
            for name in names:
                manager.magics[kind].pop(name, None)
    session, sessions._default = sessions._default, None
    if session is not None:
        close_panels(session)
        session.close()
