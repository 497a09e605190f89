"""Run a script as `python script.py` would, and arm watches as soon as its globals have the names."""

from __future__ import annotations

import ast
import builtins
import contextlib
import dis
import io
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    since : int
        The script's line that came next when it was armed, or went on; 0: the script had ended.
    """

    text: str
    watch: Watch | None = None
    problem: str = ""
    since: int = 0
    _final: bool = False  # no later try can help
    _spots: set[tuple[int, int]] = field(default_factory=set)
    _seen: tuple[int, ...] = ()
    _wait: int = 0
    _skipped: int = 0

    def __post_init__(self) -> None:
        self._names, self._steps = _names(self.text)

    @property
    def open(self) -> bool:
        """Whether another try makes sense."""
        return self.watch is None and not self._final

    def is_bound_by(self, step: dis.Instruction, *, top: bool) -> bool:
        """Whether an instruction of the script, at its `top` level or not, may make it name a place."""
        if step.opname == "STORE_GLOBAL" or (top and step.opname == "STORE_NAME"):
            return step.argval in self._names
        return step.opname == "STORE_ATTR" and step.argval in self._steps

    def try_arm(
        self, session: Session, namespace: dict[str, Any], mode: str, line: int, offset: int = -1
    ) -> None:
        """Arm it where its names exist and name a place.

        `line` is the script's line that comes next, or goes on at `offset` of its code.
        """
        if not all(name in namespace or hasattr(builtins, name) for name in self._names):
            return
        if not self._is_worth(namespace, (line, offset)):
            return
        try:
            self.watch = session.watch(words.place(self.text, namespace, mode=mode), mode)
            self.since = line
        except TargetError as error:
            self.problem = str(error)
        except HwwatchError as error:
            self.problem, self._final = str(error), True

    # After a failure: when a name is bound anew or a module was imported, once at each spot, and ever more
    # seldom in loops, where something may have been stored inside an object.
    def _is_worth(self, namespace: dict[str, Any], spot: tuple[int, int]) -> bool:
        seen = (len(sys.modules), *(id(namespace.get(name)) for name in self._names))
        if seen == self._seen and spot in self._spots and self._skipped < self._wait:
            self._skipped += 1
            return False
        self._wait = 2 * self._wait + 1 if seen == self._seen else 0
        self._seen, self._skipped = seen, 0
        self._spots.add(spot)
        return True


# Names that an expression needs before a try makes sense; and the attributes on its way.
def _names(text: str) -> tuple[tuple[str, ...], frozenset[str]]:
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError):
        return (), frozenset()
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    steps = frozenset(node.attr for node in nodes if isinstance(node, ast.Attribute))
    return tuple(sorted({node.id for node in names} - bound)), steps


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


@dataclass
class _Binding:
    # A code object of the script that binds what a wish needs: the lines where it does, and the offset of
    # each next instruction, with its line.
    code: types.CodeType
    lines: set[int] = field(default_factory=set)
    after: dict[int, int] = field(default_factory=dict)


def _bindings(code: types.CodeType, wishes: Sequence[Wish]) -> dict[int, _Binding]:
    """Where a script binds what the wishes need, by the `id` of the code object."""
    found: dict[int, _Binding] = {}
    left = [code]
    while left:
        this = left.pop()
        left += [value for value in this.co_consts if isinstance(value, types.CodeType)]
        binding, follows = _Binding(this), False
        for step in dis.get_instructions(this):
            line = (step.positions and step.positions.lineno) or this.co_firstlineno
            if follows:
                binding.after[step.offset] = line
                follows = step.opname == "EXTENDED_ARG"
            if any(wish.is_bound_by(step, top=this is code) for wish in wishes):
                binding.lines.add(line)
                follows = True
        if binding.lines:
            found[id(this)] = binding
    return found


@contextlib.contextmanager
def _on_lines(
    code: types.CodeType, wishes: Sequence[Wish], session: Session, mode: str, namespace: dict[str, Any]
) -> Iterator[None]:
    """Try to arm before each line of the script's top level, after what binds a needed name, and at the end.

    Nothing else is traced, and nothing at all once all are armed.
    """

    def tried(line: int, offset: int = -1) -> bool:
        for wish in wishes:
            if wish.open:
                wish.try_arm(session, namespace, mode, line, offset)
        return any(wish.open for wish in wishes)

    follow = _monitored if sys.version_info >= (3, 12) else _traced
    stop = follow(code, _bindings(code, wishes), tried)
    try:
        yield
    finally:
        stop()
        tried(0)  # what the last line bound; the script's threads may still write there


def _traced(
    code: types.CodeType, bindings: Mapping[int, _Binding], tried: Callable[..., bool]
) -> Callable[[], None]:
    """Python 3.11: `tried` before each line of `code` and after each binding, until it is False.

    Calls are slower so long. Instructions are traced on lines that bind only: a debugger that takes over
    knows none.
    """

    def stop() -> None:
        if sys.gettrace() is begin:
            sys.settrace(None)

    def begin(frame: types.FrameType, event: str, argument: object) -> Any:
        return step if frame.f_code is code or id(frame.f_code) in bindings else None

    def step(frame: types.FrameType, event: str, argument: object) -> Any:
        if event not in ("line", "opcode"):
            return step
        binding = bindings.get(id(frame.f_code))
        on_top = event == "line" and frame.f_code is code
        after = binding is not None and frame.f_lasti in binding.after
        if (on_top or after) and not tried(frame.f_lineno, frame.f_lasti if after else -1):
            stop()
            leave(frame)
            return None
        if event == "line":
            frame.f_trace_opcodes = binding is not None and frame.f_lineno in binding.lines
        return step

    def leave(frame: types.FrameType | None) -> None:
        while frame is not None:
            if frame.f_trace is step:
                frame.f_trace, frame.f_trace_opcodes = None, False
            frame = frame.f_back

    sys.settrace(begin)
    return stop


def _monitored(
    code: types.CodeType, bindings: Mapping[int, _Binding], tried: Callable[..., bool]
) -> Callable[[], None]:
    """Python 3.12 and later: the same by sys.monitoring (PEP 669), for these code objects only."""
    monitoring: Any = vars(sys)["monitoring"]
    lines, instructions = monitoring.events.LINE, monitoring.events.INSTRUCTION
    tool = next(number for number in (4, 3, 1, 0) if monitoring.get_tool(number) is None)
    thread = threading.get_ident()

    def follow(on: bool) -> None:
        for binding in bindings.values():
            monitoring.set_local_events(tool, binding.code, instructions if on else 0)
        also = instructions if id(code) in bindings else 0
        monitoring.set_local_events(tool, code, lines | also if on else 0)

    def stop() -> None:
        if monitoring.get_tool(tool) == "hwwatch":
            follow(False)
            monitoring.register_callback(tool, lines, None)
            monitoring.register_callback(tool, instructions, None)
            monitoring.free_tool_id(tool)

    def line(running: types.CodeType, number: int) -> None:
        if running is code and not tried(number):
            stop()

    def instruction(running: types.CodeType, offset: int) -> Any:
        binding = bindings.get(id(running))
        if binding is None or offset not in binding.after:
            return monitoring.DISABLE
        if threading.get_ident() == thread and not tried(binding.after[offset], offset):
            stop()
        return None

    monitoring.use_tool_id(tool, "hwwatch")
    monitoring.register_callback(tool, lines, line)
    monitoring.register_callback(tool, instructions, instruction)
    follow(True)
    return stop
