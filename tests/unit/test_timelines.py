"""The timeline has the columns and dtypes of the interface, whatever is in it."""

from __future__ import annotations

import ctypes
import json
import math
import os
import threading
from typing import Any

import numpy as np
import pandas as pd
import pytest

import hwwatch

COLUMNS = {
    "time": "datetime64[ns, UTC]",
    "watch": "category",
    "access": "category",
    "old": None,
    "new": None,
    "changed": "bool",
    "element": "object",
    "address": "uint64",
    "nbytes": "int64",
    "pc": "uint64",
    "instruction": "category",
    "confidence": "category",
    "symbol": "category",
    "module": "category",
    "function": "category",
    "file": "category",
    "line": "Int64",
    "column": "Int64",
    "cell": "Int64",
    "thread": "category",
    "tid": "int64",
    "pid": "int64",
    "origin": "category",
    "action": "category",
    "exact": "bool",
}
CATEGORIES = {
    "access": ["write", "read", "readwrite", "execute", "unknown"],
    "confidence": ["exact", "filtered", "guess", "none"],
    "origin": ["user", "kernel"],
    "action": ["continued", "skipped", "returned", "jumped", "native"],
}


def store(fake: Any, place: Any, value: Any) -> None:
    """Store into the first element of an array view as one access."""
    data = np.array(value, place.dtype)
    fake.store(place.ctypes.data, data.tobytes())


def check_frame(rows: pd.DataFrame) -> None:
    assert list(rows.columns[: len(COLUMNS)]) == list(COLUMNS)
    for name, dtype in COLUMNS.items():
        if dtype is not None:
            assert str(rows[name].dtype) == dtype, name
    for name, categories in CATEGORIES.items():
        assert list(rows[name].cat.categories) == categories
    assert rows.index.name == "seq"
    assert str(rows.index.dtype) == "int64"


def test_columns_and_dtypes(fake_session: Any, fake: Any) -> None:
    array = np.zeros(8)
    watch = fake_session.watch(array[3:4], name="a[3]")
    empty = watch.timeline()
    assert len(empty) == 0
    check_frame(empty)
    for value in (1, 2):
        store(fake, array[3:], value)
    rows = watch.timeline()
    check_frame(rows)
    assert rows.index.tolist() == [0, 1]
    assert rows.old.dtype == rows.new.dtype == empty.old.dtype == empty.new.dtype == np.float64


def test_nothing_was_ever_watched(fake_session: Any) -> None:
    rows = fake_session.timeline()
    check_frame(rows)
    assert len(rows) == 0


def test_a_row(fake_session: Any, fake: Any) -> None:
    array = np.zeros(8)
    fake_session.watch(array[3:4], name="a[3]")
    before = pd.Timestamp.now("UTC")
    store(fake, array[3:], 5)
    after = pd.Timestamp.now("UTC")
    (row,) = fake_session.timeline().itertuples()
    assert before - pd.Timedelta("1ms") <= row.time <= after + pd.Timedelta("1ms")
    assert (row.watch, row.access, row.old, row.new, row.changed) == ("a[3]", "write", 0, 5, True)
    assert (row.address, row.nbytes) == (array[3:].ctypes.data, 8)
    assert (row.function, row.line, row.cell) == ("FakeBackend.hit", row.line, pd.NA)
    assert row.file.endswith("fake.py")
    assert (row.tid, row.pid, row.thread) == (threading.get_native_id(), os.getpid(), "MainThread")
    assert (row.origin, row.action, row.exact) == ("user", "continued", True)
    assert row.confidence in ("guess", "none")


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("f8", -7.25), ("f4", 0.5), ("f8", math.inf), ("i1", -3), ("u1", 255), ("i2", -300), ("u2", 65535),
        ("i4", -(2**31)), ("u4", 2**32 - 1), ("i8", -(2**63)), ("u8", 2**64 - 1), (">f8", 2.5),
        (">u2", 258), ("c8", 1 - 2j), ("c16", 3 + 4j), ("?", True), (">i4", 66051),
    ],
)  # fmt: skip
def test_values_of_plain_dtypes(fake_session: Any, fake: Any, dtype: str, value: Any) -> None:
    array = np.zeros(4, dtype)
    watch = fake_session.watch(array[1:2])
    store(fake, array[1:], value)
    rows = watch.timeline()
    assert rows.new.dtype == np.dtype(dtype).newbyteorder("=")
    assert rows.new.iloc[0] == value
    assert rows.old.iloc[0] == 0
    assert rows.nbytes.tolist() == [np.dtype(dtype).itemsize]


def test_nan_and_equality(fake_session: Any, fake: Any) -> None:
    """`changed` is about bytes: one nan after the other is no change."""
    array = np.zeros(2)
    watch = fake_session.watch(array[:1])
    for value in (math.nan, math.nan, 0.0, -0.0):
        store(fake, array, value)
    assert watch.timeline().changed.tolist() == [True, False, True, True]


@pytest.mark.parametrize("unit", ["ns", "us", "ms", "s"])
def test_times_keep_their_unit(fake_session: Any, fake: Any, unit: str) -> None:
    array = np.array(["2020-01-01", "2021-01-01"], f"M8[{unit}]")
    watch = fake_session.watch(array[:1])
    store(fake, array, np.datetime64("1999-09-09", unit))
    rows = watch.timeline()
    assert str(rows.new.dtype) == f"datetime64[{unit}]"
    assert rows.new.iloc[0] == pd.Timestamp("1999-09-09")
    assert rows.old.iloc[0] == pd.Timestamp("2020-01-01")


@pytest.mark.parametrize(
    ("dtype", "value"), [("M8[D]", "1999-09-09"), ("m8[h]", 5), ("m8[ns]", 7), ("M8[ns]", "NaT")]
)
def test_times_of_other_units(fake_session: Any, fake: Any, dtype: str, value: Any) -> None:
    array = np.zeros(2, dtype)
    watch = fake_session.watch(array[:1])
    scalar = np.array(value, dtype)
    store(fake, array, scalar)
    new = watch.timeline().new
    assert new.dtype.kind == np.dtype(dtype).kind
    assert np.array_equal(new.to_numpy().astype(dtype), [scalar], equal_nan=True)


@pytest.mark.parametrize(
    ("dtype", "number", "shown"),
    [
        ("m8[ps]", 1500, object), ("m8[fs]", 7, object), ("M8[as]", 10**18 + 5, object),
        ("m8[Y]", 1, object), ("M8[D]", 2**62, object), ("m8[h]", 2**62, object), ("m8[W]", 2**60, object),
        ("m8[100ms]", 3, "m8[ms]"), ("m8[25s]", 1, "m8[s]"), ("M8[10ns]", 5, "M8[ns]"),
        ("M8[2h]", 3, "M8[s]"),
    ],
)  # fmt: skip
def test_times_that_pandas_has_not(fake_session: Any, fake: Any, dtype: str, number: int, shown: Any) -> None:
    """They are objects where they do not fit exactly."""
    array = np.zeros(2, dtype)
    watch = fake_session.watch(array[:1])
    fake.store(array.ctypes.data, np.int64(number).tobytes())
    rows = watch.timeline()
    assert rows.old.dtype == rows.new.dtype == np.dtype(shown)
    held = rows.new.iloc[0] if shown is object else rows.new.to_numpy()[0]
    assert held == array[0]
    assert watch.timeline().hwwatch.values().iloc[0] == rows.new.iloc[0]


@pytest.mark.parametrize("dtype", ["f2", "g", "S5", "U2", "V6"])
def test_values_without_a_pandas_dtype(fake_session: Any, fake: Any, dtype: str) -> None:
    values = {"f2": 1.5, "g": np.longdouble(1) / 3, "S5": b"abc", "U2": "zü", "V6": b"123456"}
    array = np.zeros(2, dtype)
    watch = fake_session.watch(array[:1])
    store(fake, array, values[dtype])
    rows = watch.timeline()
    assert rows.new.dtype == object
    assert rows.new.iloc[0] == values[dtype]


@pytest.mark.parametrize("dtype", ["<U2", ">U2", [("n", "u1"), ("s", ">U2")], [("t", "U1", (2,))]])
def test_text_that_is_no_text(fake_session: Any, fake: Any, dtype: Any) -> None:
    """It is shown with U+FFFD, and hides no other hits: Python has no such characters."""
    array, other = np.zeros(2, dtype), np.zeros(2)
    fake_session.watch(array[:1], name="text")
    fake_session.watch(other[:1], name="other")
    size = array.itemsize
    for data in (b"\xff" * size, b"\0\0\x11\0" * 2 + b"\0" * (size - 8), b"x\0\0\0\0\0\xf8\xbf".ljust(size)):
        fake.store(array.ctypes.data, data[:size])
    store(fake, other, 1)
    rows = fake_session.timeline()
    assert rows[rows.watch == "other"].new.tolist() == [1]
    texts = [str(value) for value in rows.new]
    assert any("\ufffd" in text for text in texts)
    assert "\n".join(texts).encode().decode().splitlines() == texts


def test_bool_that_is_neither_0_nor_1(fake_session: Any, fake: Any) -> None:
    array = np.zeros(2, bool)
    watch = fake_session.watch(array[:1])
    fake.store(array.ctypes.data, b"\x07")
    assert watch.timeline().new.tolist() == [True]


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int32), ("flag", ctypes.c_int8), ("y", ctypes.c_double))


def test_fields_of_a_structure(fake_session: Any, fake: Any) -> None:
    """Each row shows the field's own type; bytes that belong to no field are told apart."""
    point = Point()
    watch = fake_session.watch(point, name="p")
    address = ctypes.addressof(point)
    fake.store(address, bytes(ctypes.c_int32(-4)))
    fake.store(address + 4, b"\x05")
    fake.store(address + 8, bytes(ctypes.c_double(2.5)))
    assert watch.timeline().element.dtype == object
    fake.store(address + 6, b"\xff")
    rows = watch.timeline()
    assert rows.element.tolist() == ["x", "flag", "y", None]
    assert [type(value) for value in rows.new] == [np.int32, np.int8, np.float64, bytes]
    assert rows.new.tolist()[:3] == [-4, 5, 2.5]
    assert rows.nbytes.tolist()[:3] == [4, 1, 8]
    assert rows.address.tolist()[:3] == [address, address + 4, address + 8]
    assert rows.new.dtype == object


def test_elements(fake_session: Any, fake: Any) -> None:
    array = np.zeros((2, 2), order="F")
    watch = fake_session.watch(array)
    for index in np.ndindex(2, 2):
        fake.store(array[index[0] :, index[1] :].ctypes.data, np.float64(sum(index) + 1).tobytes())
    rows = watch.timeline()
    assert rows.element.tolist() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert rows.new.tolist() == [1, 2, 2, 3]


def test_different_dtypes_in_one_frame(fake_session: Any, fake: Any) -> None:
    floats, ints = np.zeros(2), np.zeros(2, np.int16)
    one, two = fake_session.watch(floats[:1], name="f"), fake_session.watch(ints[:1], name="i")
    store(fake, floats, 0.5)
    store(fake, ints, 3)
    rows = fake_session.timeline()
    assert rows.new.dtype == object
    assert [type(value) for value in rows.new] == [np.float64, np.int16]
    assert one.timeline().new.dtype == np.float64
    assert two.timeline().new.dtype == np.int16
    assert two.timeline().index.tolist() == [1]  # seq is the session's


def test_choice_of_watches(fake_session: Any, fake: Any) -> None:
    array = np.zeros(4)
    watches = [fake_session.watch(array[i : i + 1], name=name) for i, name in enumerate("abc")]
    for i in (2, 0, 1, 0):
        store(fake, array[i:], 1 + i)
    every = fake_session.timeline()
    assert every.watch.tolist() == ["c", "a", "b", "a"]
    assert fake_session.timeline("a").index.tolist() == [1, 3]
    assert fake_session.timeline(watches[1], 3).watch.tolist() == ["c", "b"]
    fake_session.unwatch("a")
    assert fake_session.timeline("a").index.tolist() == [1, 3]
    assert fake_session.timeline().watch.tolist() == every.watch.tolist()
    with pytest.raises(hwwatch.TargetError, match="there is no watch 'z'"):
        fake_session.timeline("z")


def test_a_name_comes_before_an_id(fake_session: Any, fake: Any) -> None:
    array = np.zeros(4)
    one, two = (fake_session.watch(array[i : i + 1], name=name) for i, name in enumerate(("x", "1")))
    for i in (0, 1, 1):
        store(fake, array[i:], 1 + i)
    assert (len(fake_session.timeline("1")), len(fake_session.timeline(1))) == (2, 1)
    assert len(fake_session.timeline("2")) == 2
    assert (fake_session.find("1"), fake_session.find(np.int64(1))) == (two, one)
    fake_session.unwatch("1")
    assert fake_session.watches() == [one]


def test_names_are_text_of_one_watch_each(fake_session: Any, fake: Any) -> None:
    array = np.zeros(4)
    for name in (5, b"x", "", " ", ["x"]):
        with pytest.raises(hwwatch.TargetError, match=r"^name=.*: some text is needed\. \[name\]"):
            fake_session.watch(array[:1], name=name)
    assert fake_session.watches() == []
    a, b = (fake_session.watch(array[i : i + 1], name=name) for i, name in enumerate("ab"))
    store(fake, array, 1)
    for name in (None, 7, "", ["x"], "b"):
        with pytest.raises(hwwatch.TargetError, match=r"^name=.*\[name\]"):
            a.name = name
    assert (a.name, fake_session.timeline().watch.tolist()) == ("a", ["a"])
    a.name = "a"
    a.name = "c"
    b.name = "a"
    assert [fake_session.find(name) for name in ("c", "a")] == [a, b]
    assert fake_session.timeline().watch.tolist() == ["c"]
    fake_session.unwatch(b)
    a.name = "a"  # free again
    assert fake_session.watch(array[2:3], name="a").name == "a (2)"


def test_what_names_no_watch(fake_session: Any) -> None:
    """Whatever it is equal to."""
    array = np.ones(4)
    watches = [fake_session.watch(array[i : i + 1], name=name) for i, name in enumerate("ab")]
    for thing in (array, array[:1], np.array(1), True, 1.0, None, pd.Series([1]), b"a", watches, {1}):
        for call in (fake_session.unwatch, fake_session.timeline, fake_session.find):
            with pytest.raises(hwwatch.TargetError) as caught:
                call(thing)
            message = str(caught.value)
            assert "names no watch: a Watch, its id or its name is needed; there are: 1 (a), 2" in message
            assert ("`*watches`" in message) == isinstance(thing, list | set)
    assert [watch.armed for watch in watches] == [True, True]


def test_stack_and_registers(fake_session: Any, fake: Any) -> None:
    array = np.zeros(2)
    watch = fake_session.watch(array[:1], stack=3)
    fake.store(array.ctypes.data, np.float64(1).tobytes(), registers=range(100, 116))
    rows = watch.timeline(stack=True, registers=True)
    names = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16))]
    assert list(rows.columns) == [*COLUMNS, "stack", *names, "rflags"]
    assert rows[names].iloc[0].tolist() == list(range(100, 116))
    assert set(map(str, rows[[*names, "rflags"]].dtypes)) == {"uint64"}
    (stack,) = rows["stack"]
    assert [frame.split(" ")[0] for frame in stack] == [
        "FakeBackend.hit",
        "FakeBackend.store",
        "test_stack_and_registers",
    ]
    assert stack[2].startswith(f"test_stack_and_registers ({__file__}:")


def test_names_that_are_not_utf_8(fake_session: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `os.fsdecode` gives them: they are escaped, for nothing writes them."""
    array = np.zeros(2)
    watch = fake_session.watch(array[:1], name="w\udcff")
    scope: dict[str, Any] = {"store": store}
    exec(compile("def odd(*args): store(*args)", "/tmp/\udcfe/m.py", "exec"), scope)
    monkeypatch.setattr(threading.current_thread(), "name", "t\udcfd")
    scope["odd"](fake, array, 1)
    (row,) = fake_session.timeline("w\udcff", stack=True).itertuples()
    assert (row.watch, row.thread) == ("w\\udcff", "t\\udcfd")
    assert any("/tmp/\\udcfe/m.py" in frame for frame in row.stack)
    assert fake_session.find("w\udcff") is watch
    repr(fake_session.watches()).encode()
    fake_session.timeline().hwwatch.values("w\udcff")


def test_late_hit_claims_no_line(fake_session: Any, fake: Any) -> None:
    array = np.zeros(2)
    watch = fake_session.watch(array[:1])
    array[0] = 3
    fake.hit(watch._armed, late=True)
    (row,) = watch.timeline().itertuples()
    assert row.exact is False or not row.exact
    assert pd.isna(row.function)
    assert pd.isna(row.file)
    assert row.line is pd.NA
    assert row.confidence == "none"
    assert watch.coverage.tally.late == 1


def test_attrs(fake_session: Any, fake: Any) -> None:
    array = np.zeros(2)
    fake_session.watch(array[:1], name="a")
    store(fake, array, 1)
    rows = fake_session.timeline()
    attrs = json.loads(json.dumps(rows.attrs["hwwatch"]))
    assert attrs["lost"] == attrs["torn"] == 0
    assert attrs["versions"]["hwwatch"] == hwwatch.__version__
    assert attrs["coverage"]["watches"][0]["recorded"] == 1


def test_asked_from_another_thread(fake_session: Any, fake: Any) -> None:
    array = np.zeros(2)
    fake_session.watch(array[:1])
    store(fake, array, 1)
    found: list[pd.DataFrame] = []
    thread = threading.Thread(target=lambda: found.append(fake_session.timeline()))
    thread.start()
    thread.join()
    assert found[0].new.tolist() == [1]


def test_watch_table_of_the_interface(fake_session: Any, fake: Any) -> None:
    """The attributes that the interface promises for a Watch."""
    array = np.zeros(4)
    watch = fake_session.watch(array[1:3], name="mine")
    assert (watch.id, watch.name, watch.address, watch.nbytes) == (1, "mine", array[1:].ctypes.data, 16)
    assert (watch.dtype, watch.mode, watch.policy) == (np.float64, "w", "continue")
    assert (watch.when, watch.limit, watch.enabled, watch.armed, watch.slots) == (None, None, True, True, 2)
    assert watch.backend.startswith("fake")
    assert repr(watch).startswith("<Watch 1 'mine' w 16 bytes at 0x")
    assert "\n" not in repr(watch)
    watch.disarm()
    assert not watch.armed
    assert "disarmed" in repr(watch)
    assert fake_session.watch(array[1:2], name="mine").name == "mine (2)"
