"""Code objects and call stacks are kept once, by content, and never mistaken for each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow

OPEN = """
from hwwatch import native
{sizes}
from hwwatch.code.source import Source
from hwwatch.sessions import Session
lib, shared = native.lib, native.open_core()
lib.hww_trap_open()  # the guard of the handler's own reads
session = Session(backend="fake")
array = np.zeros(8)
watch = session.watch(array[3:4], stack=4)
cookie, registers = lib.hww_trap_cookie(watch._armed.index, 0), native.ffi.new("uint64_t[16]")

def hit():
    lib.hww_trap_simulate(cookie, 0, 0, registers)
"""


def child(in_child: Callable[..., Any], body: str, sizes: str = "") -> Any:
    return in_child(OPEN.format(sizes=sizes) + body)


def test_same_stack_is_kept_once(in_child: Callable[..., Any]) -> None:
    found = child(
        in_child,
        """
for i in range(2):
    hit()
used = int(shared.arena_used)
for i in range(1000):
    hit()
grown = int(shared.arena_used) - used
for i in range(1000):
    hit()
last = int(shared.arena_used) - used
rows = session.timeline(stack=True)
report((grown, last - grown, rows["stack"].map(lambda stack: stack[1]).nunique(), len(rows)))
""",
    )
    # a new line is a new stack; its code is known already
    assert 0 < found[0] < 200
    assert 0 < found[1] < 200
    assert found[2:] == [3, 2002]


def test_equal_code_at_other_addresses_is_the_same(in_child: Callable[..., Any]) -> None:
    found = child(
        in_child,
        """
source = "def f(hit):\\n    hit()\\n"
kept, growth = [], []
for i in range(50):
    names = {}
    exec(compile(source, "<one>", "exec"), names)
    kept.append(names["f"])
    before = int(shared.arena_used)
    names["f"](hit)
    growth.append(int(shared.arena_used) - before)
report((len({id(f.__code__) for f in kept}), growth[0] > 0, sum(growth[1:])))
""",
    )
    assert found == [50, True, 0]


@pytest.mark.parametrize(
    "change",
    ["name", "file", "first line", "line table", "only the column"],
)
def test_other_content_is_another(in_child: Callable[..., Any], change: str) -> None:
    sources = {
        "name": ("def f(hit):\n    hit()\nf(hit)", "def g(hit):\n    hit()\ng(hit)", "<one>"),
        "file": ("def f(hit):\n    hit()\nf(hit)", "def f(hit):\n    hit()\nf(hit)", "<two>"),
        "first line": ("def f(hit):\n    hit()\nf(hit)", "\ndef f(hit):\n    hit()\nf(hit)", "<one>"),
        "line table": ("def f(hit):\n    hit()\nf(hit)", "def f(hit):\n\n    hit()\nf(hit)", "<one>"),
        "only the column": ("def f(hit):\n    hit()\nf(hit)", "def f(hit):\n     hit()\nf(hit)", "<one>"),
    }
    one, two, file = sources[change]
    first, second = child(
        in_child,
        f"""
for source, name in (({one!r}, "<one>"), ({two!r}, {file!r})):
    names = {{"hit": hit}}
    exec(compile(source, name, "exec"), names)
frames = [Source().frames(int(i))[1] for i in session._ledger.ring().read().records["stack"]]
report([list(frame) for frame in frames])
""",
    )
    assert first[:3] == ["f", "<one>", 2]
    assert second[0] == ("g" if change == "name" else "f")
    assert second[1] == file
    assert second[2] == (3 if change in ("first line", "line table") else 2)
    assert second[3] == first[3] + (change == "only the column")


@pytest.mark.parametrize("name", ["plain", "größe", "数", "𐊀𐊁"])
def test_names_of_each_width(in_child: Callable[..., Any], name: str) -> None:
    """str objects store 1, 2 or 4 bytes a character."""
    found = child(
        in_child,
        f"""
names = {{"hit": hit}}
exec(compile("def {name}(hit):\\n    hit()\\n{name}(hit)", "<{name} file>", "exec"), names)
report(session.timeline(stack=True)["stack"].iloc[0][1])
""",
    )
    assert found == f"{name} (<{name} file>:2)"


def test_full_arena_costs_the_stack_and_not_the_hit(in_child: Callable[..., Any]) -> None:
    found = child(
        in_child,
        """
for i in range(400):
    names = {"hit": hit}
    exec(compile(f"def name_{i}(hit):\\n    hit()\\nname_{i}(hit)", "<" + "x" * 200 + ">", "exec"), names)
records = session._ledger.ring().read().records
rows = session.timeline(stack=True)
known = [stack[1].split(" ")[0] if stack else None for stack in rows["stack"]]
report({"hits": watch.hits, "known": sum(name is not None for name in known),
        "right": all(name in (None, f"name_{i}") for i, name in enumerate(known)),
        "flagged": int(((records["flags"] & lib.HWW_HIT_NO_STACK) != 0).sum()),
        "used": int(shared.arena_used) <= int(shared.arena_size)})
""",
        sizes="native.ARENA_BYTES = 1 << 15",
    )
    assert found["hits"] == 400
    assert 10 < found["known"] < 390
    assert found["flagged"] == 400 - found["known"]
    assert found["right"]
    assert found["used"]


def test_two_writers_of_the_same_thing(in_child: Callable[..., Any]) -> None:
    """Children meet the same code at once; who loses finds the winner's entry, or keeps his own."""
    found = child(
        in_child,
        """
begin = time.monotonic() + 0.2
children = []
for number in range(4):
    child = os.fork()
    if not child:
        while time.monotonic() < begin:
            pass
        for i in range(300):
            names = {"hit": hit}
            exec(compile(f"def name_{i}(hit):\\n    hit()\\nname_{i}(hit)", "<one>", "exec"), names)
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
rows = session.timeline(stack=True)
wrong = 0
for child in children:
    mine = rows[rows.pid == child]
    wrong += [stack[1].split(" ")[0] for stack in mine["stack"]] != [f"name_{i}" for i in range(300)]
report((len(rows), wrong))
""",
    )
    assert found == [1200, 0]
