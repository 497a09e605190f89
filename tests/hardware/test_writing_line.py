"""The Python line of a hit is the line that wrote: function, file, line and column, for each kind of write.

Each writer below is real code of this file. The comment ``#: writes`` marks the line that does it; what
stands between the quotes after it is where the column must point.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import re
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int32), ("y", ctypes.c_double))


class Kind(NamedTuple):
    write: Callable[..., Any]
    place: Callable[[], tuple[Any, Any]]  # what the writer gets, and what is watched of it
    changes: list[float]  # the values that the place takes, one after the other
    function: str  # qualified name of the function that writes


def element() -> tuple[Any, Any]:
    array = np.zeros(8)
    return array, array[3:4]


def field() -> tuple[Any, Any]:
    from hwwatch import locate

    point = Point()
    return point, locate("p.y", {"p": point})


def byte() -> tuple[Any, Any]:
    view = memoryview(bytearray(16))
    return view, view[3:4]


KINDS: list[Kind] = []


def kind(
    *changes: float, place: Callable[[], tuple[Any, Any]] = element, function: str = "{}"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(write: Callable[..., Any]) -> Callable[..., Any]:
        KINDS.append(Kind(write, place, list(changes), function.format(write.__name__)))
        return write

    return register


@kind(7)
def item_assignment(a):
    a[3] = 7  #: writes "a[3]"


@kind(2)
def augmented_item_assignment(a):
    a[3] += 2  #: writes "a[3]"


@kind(2)
def augmented_assignment_of_an_array(a):
    a += 2  #: writes "a += 2"


@kind(7)
def slice_assignment(a):
    a[2:5] = 7  #: writes "a[2:5]"


@kind(4.5, place=field)
def ctypes_field(p):
    p.y = 4.5  #: writes "p.y"


@kind(9, place=byte)
def memoryview_item(m):
    m[3] = 9  #: writes "m[3]"


@kind(9, place=byte)
def memoryview_slice(m):
    m[3:4] = b"\x09"  #: writes "m[3:4]"


@kind(7)
def numpy_copyto(a):
    np.copyto(a, 7)  #: writes "np.copyto"


@kind(1, 2)
def numpy_add_at(a):
    np.add.at(a, [3, 3], 1)  #: writes "np.add.at"


@kind(7)
def memmove_over_two_lines(a):
    source = ctypes.c_double(7)
    ctypes.memmove(  #: writes "ctypes.memmove"
        a.ctypes.data + 24, ctypes.byref(source), 8
    )


@kind(1, 2, 3, function="innermost")
def three_functions_deep(a):
    outermost(a)  #: third


def outermost(a):
    for value in (1, 2, 3):
        middle(a, value)  #: second


def middle(a, value):
    innermost(a, value)  #: first


def innermost(a, value):
    for i in range(2, 5):
        a[i] = value  #: writes "a[i]"


@kind(1, 2, function="{}.<locals>.stores")
def generator(a):
    def stores():
        for value in (1, 2):
            a[3] = value  #: writes "a[3]"
            yield value

    assert sum(stores()) == 3


@kind(1, 2, function="{}.<locals>.<listcomp>" if sys.version_info < (3, 12) else "{}")
def comprehension(a):
    return [
        None
        for value in (1, 2)
        if a.__setitem__(3, value) is None  #: writes "a.__setitem__"
    ]


@kind(7)
def multi_line_tuple(a):
    return (
        a.__setitem__(2, 5),
        a.__setitem__(3, 7),  #: writes "a.__setitem__"
        a.__setitem__(4, 5),
    )


@kind(7)
def fill(a):
    a.fill(7)  #: writes "a.fill"


@kind(3)
def ufunc_out(a):
    np.add(np.ones(8), 2, out=a)  #: writes "np.add"


@kind(struct.unpack("<d", b"\x01" * 8)[0])
def ctypes_memset(a):
    ctypes.memset(a.ctypes.data + 24, 1, 8)  #: writes "ctypes.memset"


@kind(1, 2)
def mapped(a):
    list(map(a.__setitem__, (3, 3), (1, 2)))  #: writes "list"


@kind(7, function="{}.<locals>.Made.__init__")
def init(a):
    class Made:
        def __init__(self):
            a[3] = 7  #: writes "a[3]"

    Made()


@kind(1, 2, function="{}.<locals>.task")
def asyncio_task(a):
    async def task(value):
        await asyncio.sleep(0)
        a[3] = value  #: writes "a[3]"

    async def main():
        for value in (1, 2):
            await asyncio.create_task(task(value))

    asyncio.run(main())


@kind(1, 2, function="{}.<locals>.<lambda>")
def lambda_sort_key(a):
    return sorted(
        [1, 2],
        key=lambda value: a.__setitem__(3, value) or value,  #: writes "a.__setitem__"
    )


@kind(7)
def except_block(a):
    try:
        a[99] = 1
    except IndexError:
        a[3] = 7  #: writes "a[3]"


@contextmanager
def opened() -> Iterator[None]:
    yield


@kind(7)
def with_block(a):
    with opened():
        a[3] = 7  #: writes "a[3]"


@kind(7, function="{}.<locals>.manager")
def leaving_a_with_block(a):
    @contextmanager
    def manager():
        yield
        a[3] = 7  #: writes "a[3]"

    with manager():
        pass


def marked(function: Callable[..., Any], mark: str = "writes") -> tuple[int, int | None]:
    """Line and column that the mark in a function's source points at."""
    lines, first = inspect.getsourcelines(function)
    (number,) = (i for i, line in enumerate(lines) if f"#: {mark}" in line)
    quoted = re.search(rf'#: {mark} "(.*)"', lines[number])
    return first + number, lines[number].index(quoted[1]) if quoted else None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.write.__name__)
def test_line_and_column(session: Any, kind: Kind) -> None:
    argument, place = kind.place()
    with session.watching(place, stack=8) as watch:
        kind.write(argument)
    rows = watch.timeline(stack=True)
    line, column = marked(innermost if kind.function == "innermost" else kind.write)
    assert rows[rows.changed].new.tolist() == kind.changes
    assert set(rows.function) == {kind.function}
    assert set(rows.file) == {__file__}
    assert set(rows.line) == {line}
    assert set(rows.column) == {column}
    assert watch.lost == 0
    assert watch.counted == watch.hits


def test_whole_chain_of_calls(session: Any) -> None:
    argument, place = element()
    with session.watching(place, stack=16) as watch:
        three_functions_deep(argument)
    rows = watch.timeline(stack=True)
    assert len(rows) == 3
    chain = [
        ("innermost", marked(innermost)),
        ("middle", marked(middle, "first")),
        ("outermost", marked(outermost, "second")),
        ("three_functions_deep", marked(three_functions_deep, "third")),
    ]
    expected = [f"{name} ({__file__}:{line})" for name, (line, _) in chain]
    for stack in rows["stack"]:
        assert list(stack[:4]) == expected
        assert stack[4].startswith(f"test_whole_chain_of_calls ({__file__}:")
        assert len(stack) == 16


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_stack_is_as_deep_as_asked(session: Any, depth: int) -> None:
    argument, place = element()
    with session.watching(place, stack=depth) as watch:
        three_functions_deep(argument)
    rows = watch.timeline(stack=True)
    assert [len(stack) for stack in rows["stack"]] == [depth] * 3
    assert set(rows.function.dropna()) == ({"innermost"} if depth else set())


def test_executed_code_string(session: Any) -> None:
    argument, place = element()
    code = compile("x = 1\n\nb[3] = x\n", "<a string>", "exec")
    with session.watching(place) as watch:
        exec(code, {"b": argument})
    (row,) = watch.timeline().itertuples()
    assert (row.function, row.file, row.line, row.column) == ("<module>", "<a string>", 3, 0)


def test_two_assignments_on_one_line(session: Any) -> None:
    argument, place = element()
    with session.watching(place) as watch:
        exec(compile("b[3] = 1; b[3] = 2\n", "<a string>", "exec"), {"b": argument})
    rows = watch.timeline()
    assert rows.new.tolist() == [1, 2]
    assert rows.line.tolist() == [1, 1]
    assert rows.column.tolist() == [0, 10]


def test_names_that_are_not_ascii(session: Any) -> None:
    argument, place = element()
    source = "def größe_数_𝛼(b):\n    b[3] = 1\ngröße_数_𝛼(b)\n"
    with session.watching(place) as watch:
        exec(compile(source, "<Zeichen ü 数 😀>", "exec"), {"b": argument})
    (row,) = watch.timeline().itertuples()
    assert (row.function, row.file, row.line) == ("größe_数_α", "<Zeichen ü 数 😀>", 2)


def test_thread_without_python_has_no_line(session: Any, load: Callable[..., ctypes.CDLL]) -> None:
    """A thread that C made: the hit is recorded with its instruction, and names no Python line."""
    library = load("""
        #include <pthread.h>
        static void *work(void *p) { *(volatile long *)p = 5; return 0; }
        int store_in_thread(void *p)
        { pthread_t t; return pthread_create(&t, 0, work, p) || pthread_join(t, 0); }
    """)
    place = np.zeros(1, np.int64)
    with session.watching(place) as watch:
        assert library.store_in_thread(ctypes.c_void_p(place.ctypes.data)) == 0
    rows = watch.timeline(stack=True)
    assert rows.new.tolist() == [5]
    assert rows[["function", "file", "line", "column"]].isna().all(axis=None)
    assert rows["stack"].tolist() == [()]
    assert rows.symbol.iloc[0].startswith("work")
