"""cffi: places found through the backend alone, whoever declared the types."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import cffi
import numpy as np
import pytest

from hwwatch.errors import TargetError
from hwwatch.targets import Leaf, locate, target_of

ffi = cffi.FFI()
ffi.cdef("""
    typedef struct { short q[3]; char c; } inner_t;
    typedef struct { int a; double d; inner_t in; unsigned bf : 3, bg : 7; } outer_t;
    typedef struct { struct { int left; int right; }; char name[8]; } anon_t;
    typedef union { uint32_t whole; uint16_t half; } either_t;
    typedef struct node { struct node *next; int value; } node_t;
    typedef struct opaque opaque_t;
    enum color { RED, GREEN };
    size_t strlen(const char *);
    extern char **environ;
""")


def stored(leaf: Leaf) -> Any:
    return np.frombuffer(ctypes.string_at(leaf.address, leaf.dtype.itemsize), leaf.dtype)[0]


def at(cdata: Any) -> int:
    return int(ffi.cast("uintptr_t", cdata))


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("int", -5, -5),
        ("uint8_t", 250, 250),
        ("long long", -(2**40), -(2**40)),
        ("_Bool", 1, True),
        ("char", b"z", b"z"),
        ("float", 0.5, 0.5),
        ("double", -1.25, -1.25),
        ("wchar_t", "Ω", "Ω"),
        ("char16_t", "a", 97),
        ("enum color", 1, 1),
        ("size_t", 2**63, 2**63),
        ("double _Complex", 1 + 2j, 1 + 2j),
    ],
)
def test_a_pointer_is_what_it_points_at(kind: str, value: Any, expected: Any) -> None:
    place = ffi.new(f"{kind} *")
    target = target_of(place)
    assert target.ranges == ((at(place), ffi.sizeof(kind)),)
    place[0] = value
    assert stored(target.leaves[0]) == expected
    assert stored(locate("place[0]").leaves[0]) == expected


def test_arrays() -> None:
    numbers = ffi.new("int[4]")
    target = target_of(numbers)
    numbers[3] = 99
    assert [leaf.element for leaf in target.leaves] == [(0,), (1,), (2,), (3,)]
    assert stored(target.leaves[3]) == 99
    assert locate("numbers[3]").leaves == (target.leaves[3],)
    assert locate("numbers[1:3]").leaves == target.leaves[1:3]
    text = ffi.new("char[]", b"hello")
    assert stored(target_of(text).leaves[0]) == b"hello"
    grid = ffi.new("short[2][3]")
    grid[1][2] = 7
    assert stored(locate("grid[1][2]").leaves[0]) == 7
    assert [leaf.element for leaf in target_of(grid).leaves][-1] == (1, 2)
    wide = ffi.new("long double *", 1.5)
    assert stored(target_of(wide).leaves[0]) == 1.5
    borrowed = ffi.from_buffer("int[]", np.arange(3, dtype=np.int32))
    assert [stored(leaf) for leaf in target_of(borrowed).leaves] == [0, 1, 2]


def test_structures_and_fields() -> None:
    outer = ffi.new("outer_t *")
    value = outer[0]
    start = at(outer)
    for thing in (outer, value):
        target = target_of(thing)
        assert target.ranges == ((start, ffi.sizeof("outer_t")),)
        names = ["a", "d", "in.q[0]", "in.q[1]", "in.q[2]", "in.c", "bf|bg"]
        assert [leaf.element for leaf in target.leaves] == names
    outer.d = 2.5
    assert stored(locate("outer.d").leaves[0]) == stored(locate("value.d").leaves[0]) == 2.5
    assert locate("outer[0].d").leaves == locate("outer.d").leaves
    getattr(outer, "in").q[2] = -4
    assert [stored(leaf) for leaf in target_of(getattr(outer, "in").q).leaves] == [0, 0, -4]
    bits = locate("outer.bg")
    assert bits.note == "bit-field: the 4 bytes that hold it"
    outer.bg = 5
    assert stored(bits.leaves[0]) == 5 << 3


def test_fields_of_parts_keep_the_whole() -> None:
    def make() -> Any:
        return ffi.new("outer_t *", {"d": 3.5})

    target = locate("make().d")
    junk = [ffi.new("outer_t *", {"d": -1.0}) for _ in range(100)]
    assert len(junk) == 100
    assert stored(target.leaves[0]) == 3.5
    assert "called once" in target.note


def test_anonymous_members_unions_and_links() -> None:
    anon = ffi.new("anon_t *")
    anon.right, anon.name = 6, b"abc"
    assert stored(locate("anon.right").leaves[0]) == 6
    assert stored(locate("anon.name").leaves[0]) == b"abc"
    assert stored(locate("anon.name[1]").leaves[0]) == b"b"
    either = ffi.new("either_t *", [0x0001ABCD])
    assert [stored(leaf) for leaf in target_of(either).leaves] == [0x0001ABCD, 0xABCD]
    last = ffi.new("node_t *", {"value": 5})
    first = ffi.new("node_t *", {"next": last})
    assert at(first.next) == at(last)
    assert stored(locate("first.next").leaves[0]) == at(last)
    assert "pointer itself" in locate("first.next").note
    assert stored(locate("first.next.value").leaves[0]) == 5
    assert locate("first.next[0]").address == at(last)


def test_functions_and_globals_of_a_library() -> None:
    libc = ffi.dlopen(None)
    target = locate("libc.strlen")
    assert (target.kind, target.address) == ("code", at(ffi.addressof(libc, "strlen")))
    assert target_of(libc.strlen).ranges == ((at(libc.strlen), 1),)
    place = locate("libc.environ")
    assert place.address == at(ffi.addressof(libc, "environ"))
    assert stored(place.leaves[0]) == at(libc.environ)
    with pytest.raises(TargetError, match="Did you mean `strlen`"):
        locate("libc.strlne")


def test_library_in_api_mode(tmp_path: Path) -> None:
    maker = cffi.FFI()
    maker.cdef("""
        typedef struct { int a; char n[4]; } pair_t;
        extern int counter; extern double grid[3]; extern pair_t pair; int bump(int);
    """)
    maker.set_source(
        "_targets_api",
        """
        typedef struct { int a; char n[4]; } pair_t;
        int counter = 5; double grid[3] = {1, 2, 3}; pair_t pair = {7, "abc"};
        int bump(int by) { return counter += by; }
        """,
    )
    source, module = tmp_path / "_targets_api.c", tmp_path / "_targets_api.so"
    maker.emit_c_code(str(source))
    include = sysconfig.get_paths()["include"]
    subprocess.run(["cc", "-shared", "-fPIC", f"-I{include}", source, "-o", module], check=True, timeout=120)
    spec = importlib.util.spec_from_file_location("_targets_api", module)
    assert spec is not None
    lib = importlib.util.module_from_spec(spec).lib
    counter = locate("lib.counter")
    assert [(leaf.element, stored(leaf)) for leaf in counter.leaves] == [(None, 5)]
    lib.bump(3)
    assert stored(counter.leaves[0]) == 8
    assert [(leaf.element, stored(leaf)) for leaf in locate("lib.grid").leaves] == [
        ((0,), 1),
        ((1,), 2),
        ((2,), 3),
    ]
    assert [(leaf.element, stored(leaf)) for leaf in locate("lib.pair").leaves] == [("a", 7), ("n", b"abc")]
    lib.pair.a = -2
    assert stored(locate("lib.pair.a").leaves[0]) == -2
    assert stored(locate("lib.grid[2]").leaves[0]) == 3
    # The C function itself, not the wrapper that Python calls.
    place = at(importlib.import_module("_cffi_backend").FFI().addressof(lib, "bump"))
    assert locate("lib.bump").address == target_of(lib.bump).address == place
    with pytest.raises(TargetError, match=r"no symbol `bmp`\. Did you mean `bump`"):
        locate("lib.bmp")


def test_refused() -> None:
    outer = ffi.new("outer_t *")
    names: dict[str, Any] = {
        "outer": outer,
        "number": ffi.cast("int", 3),
        "null": ffi.NULL,
        "nullp": ffi.cast("node_t *", 0),
        "void": ffi.cast("void *", outer),
        "opaque": ffi.cast("opaque_t *", outer),
        "stray": ffi.cast("node_t *", 0x1000),
        "many": ffi.new("int[100]"),
    }
    for text, message in {
        "number": "copied value",
        "null": "NULL",
        "nullp.value": "NULL",
        "nullp.next.value": "NULL",
        "void": "nbytes",
        "void[0]": "nbytes",
        "opaque": "nbytes",
        "stray": "no memory is mapped",
        "stray.next.value": "no memory is mapped",
        "stray[0].next[0]": "no memory is mapped",
        "many": r"400 bytes asked",
        "many[100]": "out of range",
        "outer.dd": "Did you mean `d`",
        "outer.a[0]": "not subscriptable",
    }.items():
        with pytest.raises(TargetError, match=message):
            locate(text, names)
    assert target_of(names["void"], nbytes=8).ranges == ((at(outer), 8),)
    assert target_of(names["opaque"], nbytes=4).dtype == np.uint32
    with pytest.raises(TargetError, match="nbytes=4 is asked"):
        target_of(names["many"][0:2], nbytes=4)
