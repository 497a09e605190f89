"""The data's way is one line: a module imports only from lines above its own in style.md's list.

The list below is read from the bottom of the package to its top. Imports for type checking only are free.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "hwwatch"
#: Modules of one line are alike and do not import each other; a folder is one noun.
LAYERS = (
    "errors cells letters",
    "types _core",
    "native",
    "columns names processes programs progress quiet records storages",
    "safepoints",
    "targets",
    "code",
    "interpreter",
    "displays",
    "coverages",
    "backends",
    "attribution policies conditions words",
    "arming settings overlaps",
    "stretches",
    "ledgers",
    "watchpoints",
    "timelines",
    "deliveries readings",
    "armory picking",
    "sessions",
    "diagnosis summaries",
    "digests plots",
    "reports",
    "exports",
    "accessors",
    "widgets",
    "completion scripts",
    "magics cli",
    "__main__",
)
LEVEL = {name: number for number, line in enumerate(LAYERS) for name in line.split()}
#: Imports inside functions that go against the line, each with its reason.
UPWARD = {
    ("native", "interpreter"): "whoever opens the core tells it where CPython keeps its frames",
    ("targets", "code"): "a function is found by its symbol",
    ("displays", "policies"): "how a policy is written",
    ("sessions", "exports"): "a session hands over its hits piece by piece",
    ("sessions", "widgets"): "a session can be shown as a panel, as `hwwatch.panel` shows the default one",
}
HEAVY = ("IPython", "ipywidgets", "matplotlib", "pandas", "pyarrow", "iced_x86", "elftools", "jupyter_client")
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


class Import(NamedTuple):
    name: str  # first name below the package
    line: int
    at_top: bool  # of the file, so that it runs when the module is imported


def noun(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def _typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(file: str) -> Iterator[Import]:
    """What a file imports of the package while it runs."""
    tree = ast.parse(FILES[file].read_text())
    skipped = {id(inner) for node in ast.walk(tree) if _typing_only(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
            if node.module == "hwwatch":
                names = [f"hwwatch.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "hwwatch" and id(node) not in skipped:
                yield Import(rest.split(".")[0], node.lineno, node in tree.body)


def test_every_module_has_its_line() -> None:
    assert {noun(file) for file in FILES} - {"__init__"} - set(LEVEL) == set()


@pytest.mark.parametrize("file", [file for file in FILES if file != "__init__.py"])
def test_imports_come_from_lines_above(file: str) -> None:
    here = noun(file)
    wrong = [
        f"{file}:{line} imports {name}"
        for name, line, at_top in imports(file)
        if name != here and name in LEVEL and LEVEL[name] >= LEVEL[here]
        if at_top or (here, name) not in UPWARD
    ]
    assert wrong == []


def test_exceptions_are_still_needed() -> None:
    used = {(noun(file), found.name) for file in FILES for found in imports(file)}
    assert set(UPWARD) - used == set()


def test_package_root_imports_only_the_light_bottom() -> None:
    assert {found.name for found in imports("__init__.py") if found.at_top} <= {"errors", "types"}


def test_no_star_imports() -> None:
    for file, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert [alias.name for alias in node.names] != ["*"], file


def test_no_module_bears_the_name_of_a_function() -> None:
    import hwwatch

    functions = {name for name in hwwatch.__all__ if name.islower()}
    assert {"watch", "timeline", "coverage"} <= functions
    assert functions & {noun(file) for file in FILES} == set()


def test_every_public_name_is_there() -> None:
    import hwwatch

    assert len(hwwatch.__all__) == len(set(hwwatch.__all__))
    assert all(getattr(hwwatch, name) is not None for name in hwwatch.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = hwwatch.no_such_name


def test_import_is_light(in_child: Callable[..., Any]) -> None:
    """And it takes no signal, starts no thread, opens no file."""
    script = f"""
import subprocess
code = '''
import sys, os, threading
import hwwatch
print([name for name in {HEAVY!r} if name in sys.modules])
print(threading.active_count(), len(os.listdir("/proc/self/fd")) - 1)
status = open("/proc/self/status").read()
print(int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16) >> 4 & 1)
'''
report(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.splitlines())
"""
    assert in_child(script) == ["[]", "1 3", "0"]
