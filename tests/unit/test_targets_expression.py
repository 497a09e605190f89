"""Expressions: the place is watched, each part is evaluated once, errors are one helpful line."""

from __future__ import annotations

import ctypes
import types
from array import array
from typing import Any

import numpy as np
import pytest

from hwwatch.errors import TargetError
from hwwatch.targets import Leaf, locate

GLOBAL = np.arange(4.0)


def stored(leaf: Leaf) -> Any:
    return np.frombuffer(ctypes.string_at(leaf.address, leaf.dtype.itemsize), leaf.dtype)[0]


class Holder:
    def __init__(self) -> None:
        self.data = np.arange(10, dtype=np.int32)
        self.count = 3

    @property
    def fresh(self) -> np.ndarray[Any, Any]:
        return self.data * 2

    @property
    def boom(self) -> None:
        raise RuntimeError("not yet")

    @property
    def same(self) -> np.ndarray[Any, Any]:
        return self.data[2:4]


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int)]

    @property
    def twice(self) -> ctypes.c_int:
        return ctypes.c_int(2 * self.x)


class Bad:
    def __getitem__(self, key: Any) -> Any:
        raise ValueError("two\nlines")


class Store:
    """Gives a new array for each selection, as h5py does."""

    def __getitem__(self, key: Any) -> np.ndarray[Any, Any]:
        return np.arange(10.0)[key].copy()


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("a[3]", [(3,)]),
        ("a[-1]", [(9,)]),
        ("a[2:6]", [(2,), (3,), (4,), (5,)]),
        ("a[::-4]", [(9,), (5,), (1,)]),
        ("a[2:6][1]", [(1,)]),
        ("a[k]", [(1,)]),
        ("a[np.int64(4)]", [(4,)]),
        ("a[b[k]]", [(2,)]),
        ("a[len(b) - 1]", [(2,)]),
        ("a[sum(j for j in b)]", [(3,)]),
        ("a[...][3]", [(3,)]),
        ("a[3, ...]", [(3,)]),
        ("a[None, 3]", [(3,)]),
        ("m[1, 2]", [(1, 2)]),
        ("m[1][2]", [(2,)]),
        ("m[k, k + 1]", [(1, 2)]),
        ("m[:, 2]", [(0, 2), (1, 2)]),
        ("m[-1, ::2]", [(1, 0), (1, 2)]),
        ("m[..., 0]", [(0, 0), (1, 0)]),
        ("m.T[2, 1]", [(2, 1)]),
        ("m.flat[5]", [(1, 2)]),
        ("z[1].imag", [None]),
        ("z.real[1]", [(1,)]),
        ("rec['x'][1]", [(1,)]),
        ("rec[1]['x']", [None]),
        ("rec[1]", ["[1].x", "[1].y"]),
        ("rec['x']", [(0,), (1,)]),
        ("rows.x[1]", [(1,)]),
        ("rows[1].x", [None]),
        ("rows.T.x", [(0,), (1,)]),
        ("named['T'][1]", [(1,)]),
        ("named.T['y'][1]", [(1,)]),
        ("h.data[5]", [(5,)]),
        ("h.same", [(0,), (1,)]),
        ("d['k'][0]", [(0,)]),
        ("pair[1][3]", [(3,)]),
        ("ns.inner.data[0]", [(0,)]),
        ("GLOBAL[1]", [(1,)]),
    ],
)
def test_element_and_address(text: str, elements: list[Any]) -> None:
    names: dict[str, Any] = {
        "np": np,
        "a": np.arange(10.0),
        "b": np.array([0, 2, 1]),
        "k": 1,
        "m": np.arange(6.0).reshape(2, 3),
        "z": np.arange(3) * (1 + 1j),
        "rec": np.array([(1.0, 2.0), (3.0, 4.0)], dtype=[("x", "f8"), ("y", "f8")]),
        "rows": np.zeros(2, dtype=[("x", "f8"), ("y", "f8")]).view(np.recarray),
        "named": np.zeros(2, dtype=[("T", "f8"), ("y", "f8")]).view(np.recarray),
        "h": Holder(),
        "d": {"k": np.arange(3)},
        "pair": [None, np.arange(4)],
        "ns": types.SimpleNamespace(inner=Holder()),
        "GLOBAL": GLOBAL,
    }
    target = locate(text, names)
    assert [leaf.element for leaf in target.leaves] == elements
    value = np.asarray(eval(text, names))
    if value.dtype.names:
        value = np.array([value[n] for n in value.dtype.names])
    assert [stored(leaf) for leaf in target.leaves] == list(value.ravel())
    # It is the place: a store through the user's own expression is seen there.
    if not text.endswith((".imag", "h.same", "rec[1]")):
        exec(f"{text} = 55", names)
        assert {float(stored(leaf)) for leaf in target.leaves} == {55.0}


def test_callers_names_locals_before_globals() -> None:
    assert locate("GLOBAL[2]").address == GLOBAL.ctypes.data + 16
    GLOBAL_ALIAS = np.zeros(3)
    assert locate("GLOBAL_ALIAS[1]").address == GLOBAL_ALIAS.ctypes.data + 8

    def shadow() -> int:
        GLOBAL = np.zeros(2)
        return locate("GLOBAL[0]").address - GLOBAL.ctypes.data

    assert shadow() == 0


def test_name_is_the_expression_as_python_writes_it() -> None:
    a = np.arange(9.0)
    assert locate("  a[ 1+2 ]").name == "a[1 + 2]"
    assert locate("a[2:4]", name="middle").name == "middle"
    assert locate("a[2:4]", {"a": a}).owner is not None


def test_each_part_is_evaluated_once() -> None:
    calls: list[str] = []
    array = np.arange(5)

    def get() -> np.ndarray[Any, Any]:
        calls.append("get")
        return array

    def at() -> int:
        calls.append("at")
        return 3

    target = locate("get()[at()]")
    assert calls == ["get", "at"]
    assert target.address == array.ctypes.data + 24
    assert target.note == "get() was called once; what it returned is watched"


def test_namespace_is_left_alone() -> None:
    names = {"a": np.zeros(2)}
    locate("a[0]", names)
    assert list(names) == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arry[3]", r"no name `arry`. Did you mean `array`"),
        ("qqq", "no name `qqq`"),
        ("array[b]", "no name `b`"),
        ("array[10]", "index 10 is out of range for axis 0 with 10 elements"),
        ("array[-11]", "index -11 is out of range"),
        ("array[1, 2]", "2 indices for an array with 1 axes"),
        ("array[5:5]", "no bytes"),
        ("array[1.5]", "1.5 is no index"),
        ("array['x']", "no field `x`"),
        ("array[[1, 2]]", r"copy.*Use integers and slices"),
        ("array[array > 3]", "copy"),
        ("array[np.array([3])]", "copy"),
        ("array[True]", "copy"),
        ("array[1/0]", "1 / 0` raised ZeroDivisionError: division by zero"),
        ("array.nope[2]", "has no attribute 'nope'"),
        ("array.shpae", "Did you mean `shape`"),
        ("array.imag", "copy"),
        ("array[[1, 2]][0]", r"place in `array\[\[1, 2\]\]`.*new copy"),
        ("array[array > 3][0]", "new copy"),
        ("array.imag[0]", "new copy"),
        ("holder.fresh[1]", r"place in `holder.fresh`.*new copy"),
        ("store[2:4][0]", "new copy"),
        ("raw[2:6][1]", r"place in `raw\[2:6\]`.*new copy"),
        ("typed[1:3][0]", "new copy"),
        ("numbers[1:3][0]", "new copy"),
        ("point.twice", "new copy"),
        ("array[", r"cannot read `array\[`: .* at column 6"),
        ("array[3", "never closed"),
        ("", "empty"),
        ("array = 3", "cannot read"),
        ("array[i := 3]", "assigns"),
        ("(lambda: array)()[3]", "makes a function"),
        ("array + 1", "computes a new value"),
        ("array[3] + 1", "computes a new value"),
        ("-array", "computes a new value"),
        ("array != array", "computes a new value"),
        ("array.copy()", "assign what a call returns to a name"),
        ("(array + 1)[3]", "`array \\+ 1`: it computes a new value"),
        ("[1, 2]", "computes a new value"),
        ("[1, 2][0]", "pointer"),
        ("5", "immutable"),
        ("'array[3]'", "immutable"),
        ("number", "`number`: 7 is an int, an immutable object"),
        ("scalar", "copied NumPy scalar"),
        ("holder.count", r"attribute of a Holder is a pointer to a Python object.*\(here int\)"),
        ("holder.cuont", "Did you mean `count`"),
        ("holder.boom", r"RuntimeError: not yet\. \["),
        ("holder.boom[0]", r"`holder.boom` raised RuntimeError: not yet\. \["),
        ("holder", "does not lend its memory"),
        ("holder.fresh", "new copy each time"),
        ("things[0]", "element of a list is a pointer"),
        ("things[9]", "IndexError: list index out of range"),
        ("table['key']", r"element of a dict is a pointer.*\(here str\)"),
        ("table['kye']", r"KeyError.*Did you mean `key`"),
        ("module.level", "module's name is a pointer"),
        ("store[2:4]", "new copy each time"),
        ("text[0]", "a str has no such places"),
        ("boom[0]", "KeyError"),
        ("bad[0]", "ValueError: two lines"),
        ("bad[0].x[1]", "`bad\\[0\\]` raised ValueError: two lines"),
        ("objects[0]", "pointers to Python objects"),
        ("records['f']['g']", "no field `g`"),
        ("records.f", "has no attribute 'f'"),
        ("records['ff']", "Did you mean `f`"),
        ("rows.heihgt", "Did you mean `height`"),
        ("outer[0]", "0 axes"),
        ("array[3][0]", "1 indices for an array with 0 axes"),
    ],
)
def test_refused_in_one_line(text: str, message: str) -> None:
    module = types.ModuleType("module")
    module.level = 3  # type: ignore[attr-defined]
    names: dict[str, Any] = {
        "np": np,
        "array": np.arange(10.0),
        "number": 7,
        "scalar": np.float64(3),
        "holder": Holder(),
        "things": [1, 2],
        "table": {"key": "libm.so.6!cos"},
        "module": module,
        "store": Store(),
        "text": "abc",
        "boom": {},
        "bad": Bad(),
        "objects": np.array([[], None], dtype=object),
        "rows": np.rec.array([(1.0, 2.0)], dtype=[("height", "f8"), ("h", "f8")]),
        "outer": np.array(1.0),
        "raw": bytearray(8),
        "typed": array("i", [1, 2, 3]),
        "numbers": (ctypes.c_int * 4)(),
        "point": Point(),
        "records": np.zeros(2, [("f", "f8"), ("h", "i4")]),
    }
    with pytest.raises(TargetError, match=message) as caught:
        locate(text, names)
    assert "\n" not in str(caught.value)


def test_the_cause_is_kept() -> None:
    with pytest.raises(TargetError) as caught:
        locate("a[1 // 0]", {"a": GLOBAL})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(TargetError, match="takes an expression as text, not a ndarray"):
        locate(GLOBAL)  # type: ignore[arg-type]


def test_objects_in_object_arrays_can_be_passed_through() -> None:
    boxes = np.empty(2, dtype=object)
    boxes[1] = np.arange(4.0)
    assert locate("boxes[1][2]").address == boxes[1].ctypes.data + 16
