"""Run the body of a `%%watch` cell as IPython would run it as a cell of its own."""

# IPython's displayhook is untyped:
# mypy: allow-untyped-calls

from __future__ import annotations

import ast
import contextlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

from IPython.core.displayhook import DisplayHook
from IPython.core.error import UsageError


class Cell:
    """A body, parsed; nothing of it has run.

    Its code has a file name that IPython knows, so that tracebacks, ``%debug`` and the timeline's column
    ``cell`` show lines and number as for any cell (IPython.core.compilerop.CachingCompiler.cache).

    Parameters
    ----------
    shell : InteractiveShell
    line : str
        What stood after ``%%watch``; it is line 1 of the cell, and the body begins in line 2.
    body : str

    Raises
    ------
    UsageError
        The body awaits something at its top level.
    SyntaxError
    """

    def __init__(self, shell: Any, line: str, body: str) -> None:
        self._shell = shell
        lines = body.splitlines(keepends=True)
        empty = next((at for at, text in enumerate(lines) if not text.isspace()), 0)
        # transform_cell drops leading empty lines
        source = f"# %%watch {line}\n" + "\n" * empty + shell.transform_cell("".join(lines[empty:]))
        raw = f"%%watch {line}\n{body}".removesuffix("\n")
        self.name = shell.compile.cache(source, _number(shell), raw_code=raw)
        tree = shell.transform_ast(shell.compile.ast_parse(source, filename=self.name))
        self._plain, self._shown = _by_display(tree.body, shell.ast_node_interactivity)
        if DisplayHook.semicolon_at_end_of_expression(body):
            self._plain, self._shown = self._plain + self._shown, []
        if shell.autoawait and self._awaits(tree):
            raise UsageError(
                "%%watch cannot run a cell that awaits at its top level. Use `%watch` in a cell before it, "
                "and `%unwatch` after it. [await]"
            )

    def _awaits(self, tree: ast.Module) -> bool:
        flags = self._shell.compile.flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        with contextlib.suppress(SyntaxError, ValueError):  # told when its statement's turn comes
            code: types.CodeType = compile(tree, self.name, "exec", flags, True)
            return bool(code.co_flags & inspect.CO_COROUTINE)
        return False

    def run(self) -> None:
        """Run it, statement by statement as IPython does: Out[] and ``_`` are kept, exceptions pass through.

        IPython prints an exception once, with the cell's own frames only.
        """
        __tracebackhide__ = True  # IPython's tracebacks and debugger skip such frames
        shell, compiler = self._shell, self._shell.compile
        try:
            for node in self._plain:
                exec(compiler(ast.Module([node], []), self.name, "exec"), shell.user_global_ns, shell.user_ns)
            for node in self._shown:
                exec(
                    compiler(ast.Interactive([node]), self.name, "single"),
                    shell.user_global_ns,
                    shell.user_ns,
                )
        except BaseException as error:
            _show_from(error, self.name, shell)
            raise


# The number that IPython gave to the running cell, by the frame of that cell.
def _number(shell: Any) -> int:
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        number = shell.compile._filename_map.get(frame.f_code.co_filename)
        if number is not None:
            return int(number)
        frame = frame.f_back
    return int(shell.displayhook.prompt_count)


# Statements that merely run, and those whose value is displayed; IPython's InteractiveShell.run_ast_nodes
# has the same rules.
def _by_display(body: list[ast.stmt], interactivity: str) -> tuple[list[ast.stmt], list[ast.stmt]]:
    if interactivity == "last_expr_or_assign" and body:
        target = _assigned(body[-1])
        if isinstance(target, ast.Name):
            shown = ast.Expr(ast.Name(target.id, ast.Load()))
            return body, [ast.fix_missing_locations(ast.copy_location(shown, body[-1]))]
    if interactivity == "all":
        return [], body
    if interactivity == "none" or not body:
        return body, []
    if interactivity == "last" or isinstance(body[-1], ast.Expr):
        return body[:-1], body[-1:]
    return body, []


def _assigned(node: ast.stmt) -> ast.expr | None:
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        return node.targets[0]
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        return node.target
    return None


def _show_from(error: BaseException, name: str, shell: Any) -> None:
    """Let IPython print the traceback from the cell's frame on, without the magic's own frames.

    IPython asks an exception for ``_render_traceback_`` before it formats one itself
    (InteractiveShell.showtraceback). The answer holds for one time and this cell.
    """
    if shell.call_pdb:  # %pdb on: that way would not start the debugger
        return
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != name:
        trace = trace.tb_next
    if trace is None:
        return

    count = shell.execution_count

    def render() -> Any:
        del error._render_traceback_  # type: ignore[attr-defined]
        # Else it was caught, and raised again by a later cell.
        here = shell.execution_count == count
        shown, offset = (trace, 0) if here else (error.__traceback__, 1)
        return shell.InteractiveTB.structured_traceback(type(error), error, shown, tb_offset=offset)

    _set_quietly(error, render)


# An exception class may forbid new attributes, or have a rendering of its own.
def _set_quietly(error: BaseException, render: Callable[[], Any]) -> None:
    if not hasattr(error, "_render_traceback_"):
        with contextlib.suppress(Exception):
            error._render_traceback_ = render  # type: ignore[attr-defined]
