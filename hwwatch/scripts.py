"""Run a script as `python script.py` would, and arm watches as soon as its globals have the names."""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from typing import Any

from hwwatch import words
from hwwatch.errors import HwwatchError, TargetError
from hwwatch.sessions import Session
from hwwatch.watchpoints import Watch


@dataclass
class Wish:
    """An expression to be watched, once it can be.

    Attributes
    ----------
    text : str
        The expression.
    watch : Watch or None
        None until it is armed.
    problem : str
        Why the last try failed; empty while its names are missing.
    """

    text: str
    watch: Watch | None = None
    problem: str = ""
    _final: bool = False  # no later try can help
    _lines: set[int] = field(default_factory=set)
    _seen: tuple[int, ...] = ()
    _wait: int = 0
    _skipped: int = 0

    def __post_init__(self) -> None:
        self._names = _names(self.text)

    @property
    def open(self) -> bool:
        """Whether another try makes sense."""
        return self.watch is None and not self._final

    def try_arm(self, session: Session, namespace: dict[str, Any], mode: str, line: int) -> None:
        """Arm it where its names exist and name a place; `line` is the script's line that comes next."""
        if not all(name in namespace or hasattr(builtins, name) for name in self._names):
            return
        if not self._is_worth(namespace, line):
            return
        try:
            self.watch = session.watch(words.place(self.text, namespace, mode=mode), mode)
        except TargetError as error:
            self.problem = str(error)
        except HwwatchError as error:
            self.problem, self._final = str(error), True

    # After a failure: when a name is bound anew or a module was imported, once on each line, and ever more
    # seldom in loops, where something may have been stored inside an object.
    def _is_worth(self, namespace: dict[str, Any], line: int) -> bool:
        seen = (len(sys.modules), *(id(namespace.get(name)) for name in self._names))
        if seen == self._seen and line in self._lines and self._skipped < self._wait:
            self._skipped += 1
            return False
        self._wait = 2 * self._wait + 1 if seen == self._seen else 0
        self._seen, self._skipped = seen, 0
        self._lines.add(line)
        return True


# Names that an expression needs before a try makes sense.
def _names(text: str) -> tuple[str, ...]:
    try:
        names = [node for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)]
    except (SyntaxError, ValueError):
        return ()
    bound = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return tuple(sorted({node.id for node in names} - bound))


def absolute(path: str) -> str:
    """A path from the root, as far as that can be told: the current folder may be gone."""
    try:
        return os.path.abspath(path)
    except OSError:
        return path


def compile_script(path: str) -> types.CodeType:
    """The code of a script, under the file name that Python itself would give it.

    Raises
    ------
    OSError
        It cannot be read.
    SyntaxError, ValueError
        It cannot be compiled.
    """
    full = absolute(path)
    with io.open_code(full) as file:
        source = file.read()
    return compile(source, full, "exec", dont_inherit=True)


def run_script(
    code: types.CodeType, arguments: Sequence[str], wishes: Sequence[Wish], session: Session, mode: str
) -> int:
    """Run a script as ``__main__``, to its end and that of its threads.

    Parameters
    ----------
    code : CodeType
        As `compile_script` made it.
    arguments : sequence of str
        ``sys.argv``: the script as it was named, then its arguments.
    wishes : sequence of Wish
        Armed while it runs.
    session : Session
    mode : str
        Of all watches.

    Returns
    -------
    int
        0, or 1 after an exception, whose traceback was printed as Python does; -2 after an interrupt.

    Raises
    ------
    SystemExit
        That of the script.
    """
    full = code.co_filename
    module = types.ModuleType("__main__")
    module.__file__, module.__builtins__ = full, builtins  # type: ignore[attr-defined]
    module.__dict__.update(
        __loader__=SourceFileLoader("__main__", full), __cached__=None, __package__=None, __annotations__={}
    )
    sys.modules["__main__"] = module
    sys.argv[:] = arguments
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(full))
    status = 0
    try:
        with _on_lines(code, wishes, session, mode, module.__dict__):
            exec(code, module.__dict__)
    except SystemExit as error:
        error.__traceback__ = None
        raise
    except BaseException as error:
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
        print_exception(error, full)
    finally:
        _wait_for_threads()
    return status


def print_exception(error: BaseException, path: str) -> None:
    """Print an exception as an uncaught one, from the script's own frame on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != path:
        trace = trace.tb_next
    error.__traceback__ = trace
    sys.excepthook(type(error), error, trace)


def _wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()


@contextlib.contextmanager
def _on_lines(
    code: types.CodeType, wishes: Sequence[Wish], session: Session, mode: str, namespace: dict[str, Any]
) -> Iterator[None]:
    """Try to arm before each line of the script's top level, and at its end; nothing else is traced."""

    def tried(line: int) -> bool:
        for wish in wishes:
            if wish.open:
                wish.try_arm(session, namespace, mode, line)
        return any(wish.open for wish in wishes)

    stop = _monitored(code, tried) if sys.version_info >= (3, 12) else _traced(code, tried)
    try:
        yield
    finally:
        stop()
        tried(0)  # what the last line bound; the script's threads may still write there


def _traced(code: types.CodeType, tried: Callable[[int], bool]) -> Callable[[], None]:
    """Python 3.11: `tried` before each line of `code`, until it is False. Calls are slower so long."""

    def stop() -> None:
        if sys.gettrace() is begin:
            sys.settrace(None)

    def begin(frame: types.FrameType, event: str, argument: object) -> Any:
        return line if frame.f_code is code else None

    def line(frame: types.FrameType, event: str, argument: object) -> Any:
        if event == "line" and not tried(frame.f_lineno):
            stop()
            return None
        return line

    sys.settrace(begin)
    return stop


def _monitored(code: types.CodeType, tried: Callable[[int], bool]) -> Callable[[], None]:
    """Python 3.12 and later: the same by sys.monitoring (PEP 669), for this code object only."""
    monitoring: Any = vars(sys)["monitoring"]
    lines = monitoring.events.LINE
    tool = next(number for number in (4, 3, 1, 0) if monitoring.get_tool(number) is None)

    def stop() -> None:
        if monitoring.get_tool(tool) == "hwwatch":
            monitoring.set_local_events(tool, code, 0)
            monitoring.register_callback(tool, lines, None)
            monitoring.free_tool_id(tool)

    def line(running: types.CodeType, number: int) -> None:
        if running is code and not tried(number):
            stop()

    monitoring.use_tool_id(tool, "hwwatch")
    monitoring.register_callback(tool, lines, line)
    monitoring.set_local_events(tool, code, lines)
    return stop
