"""Mode `x`: functions of all kinds, run exactly once, with their arguments, in children too."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cffi
import pytest

import hwwatch

SOURCE = r"""
#include <stdint.h>
long calls;
__attribute__((noinline)) long count(long a, long b) { calls++; return a * 1000 + b; }
__attribute__((noinline)) double mix(int a, double x, const char *s, float y, unsigned char c)
{
    calls++;
    return a + x + s[0] + y + c;
}
__attribute__((noinline)) long seven(long a, long b, long c, long d, long e, long f, long g)
{
    calls++;
    return a + b + c + d + e + f + g;
}
/* The first instruction changes memory: run twice, it would count twice. */
__asm__(".globl once\n.type once, @function\nonce: incq calls(%rip)\n ret\n.size once, .-once\n");
"""
CPP = r"""
namespace shapes {
struct Square {
    double side;
    double area(double scale) const;
};
double Square::area(double scale) const { return side * side * scale; }
template <class T> T twice(T value) { return value + value; }
template int twice<int>(int);
template double twice<double>(double);
}
extern "C" double area_of(double side, double scale) { return shapes::Square{side}.area(scale); }
extern "C" int twice_int(int v) { return shapes::twice<int>(v); }
extern "C" double twice_double(double v) { return shapes::twice<double>(v); }
"""
VISIBLE = "-Wl,-Bsymbolic"  # `once` may then reach `calls` directly


@pytest.fixture
def library(load: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    made = load(SOURCE, VISIBLE)
    made.count.restype = made.seven.restype = ctypes.c_long
    made.mix.restype = ctypes.c_double
    made.count.argtypes = made.seven.argtypes = made.mix.argtypes = None
    ctypes.c_long.in_dll(made, "calls").value = 0
    return made


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ctypes.CDLL]:
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "shapes.cpp").write_text(CPP)
    path = folder / "libshapes.so"
    flags = ["-O1", "-fno-inline", "-shared", "-fPIC"]
    subprocess.run(["c++", *flags, str(folder / "shapes.cpp"), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.area_of.restype = library.twice_double.restype = ctypes.c_double
    library.area_of.argtypes = [ctypes.c_double, ctypes.c_double]
    library.twice_double.argtypes = [ctypes.c_double]
    return str(path), library


def _calls(library: ctypes.CDLL) -> int:
    return int(ctypes.c_long.in_dll(library, "calls").value)


def test_ctypes_function_runs_exactly_once(session: Any, library: ctypes.CDLL) -> None:
    with session.watching(library.once, "x") as watch:
        for _ in range(1000):
            library.once()
    rows = watch.timeline()
    assert _calls(library) == 1000
    assert (watch.counted, watch.hits, watch.lost) == (1000, 1000, 0)
    assert set(rows.access) == {"execute"}
    assert set(rows.action) == {"continued"}
    assert set(rows.confidence) == {"exact"}
    assert rows.instruction.str.startswith("inc").all()
    assert set(rows.symbol) == {"once"}
    assert set(rows.pc) == set(rows.address) == {watch.address}
    assert rows.line.nunique() == 1
    assert not rows.changed.any()
    assert rows[["old", "new", "element"]].isna().all(axis=None)


def test_arguments_by_declared_type(session: Any, library: ctypes.CDLL) -> None:
    library.mix.argtypes = [
        ctypes.c_int,
        ctypes.c_double,
        ctypes.c_char_p,
        ctypes.c_float,
        ctypes.c_ubyte,
    ]
    with session.watching(library.mix, "x") as watch:
        assert library.mix(-3, 2.5, b"A", 0.5, 255) == -3 + 2.5 + 65 + 0.5 + 255
        assert library.mix(4, -1e300, b"B", -0.25, 0) == -1e300
    rows = watch.timeline()
    assert rows.arg0.tolist() == [-3, 4]
    assert rows.arg1.tolist() == [2.5, -1e300]
    assert rows.arg3.tolist() == [0.5, -0.25]
    assert rows.arg4.tolist() == [255, 0]
    assert [str(rows[f"arg{i}"].dtype) for i in (0, 1, 3, 4)] == ["int32", "float64", "float32", "uint8"]
    assert "arg5" not in rows
    assert "xmm0" not in rows


def test_arguments_without_declared_types_are_the_registers(session: Any, library: ctypes.CDLL) -> None:
    with session.watching(library.seven, "x") as watch:
        assert library.seven(*[ctypes.c_long(10**i) for i in range(7)]) == 1111111
    with session.watching(library.mix, "x") as mixed:
        library.mix(7, ctypes.c_double(2.5), b"A", ctypes.c_double(0.5), 1)
    rows = watch.timeline()
    assert [rows[f"arg{i}"].tolist() for i in range(6)] == [[10**i] for i in range(6)]
    assert {str(rows[f"arg{i}"].dtype) for i in range(6)} == {"uint64"}
    assert "arg6" not in rows  # on the stack
    rows = mixed.timeline()
    assert (rows.arg0[1], rows.xmm0[1], rows.xmm1[1]) == (7, 2.5, 0.5)


def test_cffi_function(session: Any, build: Callable[..., str]) -> None:
    ffi = cffi.FFI()
    ffi.cdef("long count(long, long);")
    library = ffi.dlopen(build(SOURCE, VISIBLE))
    with session.watching(library.count, "x") as watch:
        assert library.count(4, 2) == 4002
    rows = watch.timeline()
    assert rows.symbol.tolist() == ["count"]
    assert (rows.arg0.tolist(), rows.arg1.tolist()) == ([4], [2])
    assert (watch.counted, watch.hits, watch.lost) == (1, 1, 0)


@pytest.mark.parametrize("how", ["file", "name", "path"])
def test_symbol(session: Any, library: ctypes.CDLL, how: str) -> None:
    path = Path(library._name)
    text = {"file": path.name, "name": path.name.removesuffix(".so"), "path": str(path)}[how]
    with session.watching(f"{text}!count", "x") as watch:
        assert library.count(1, 1) == 1001
    assert (watch.counted, watch.hits) == (1, 1)
    assert watch.address == ctypes.cast(library.count, ctypes.c_void_p).value


def test_function_of_the_math_library(session: Any) -> None:
    """`cos` is an IFUNC: what is watched is the implementation that this CPU runs."""
    library = ctypes.CDLL("libm.so.6")
    library.cos.restype, library.cos.argtypes = ctypes.c_double, [ctypes.c_double]
    with session.watching("libm.so.6!cos", "x") as watch:
        assert library.cos(0.0) == 1.0
        assert library.cos(0.5) == pytest.approx(0.8775825618903728)
    assert watch.timeline().xmm0.tolist() == [0.0, 0.5]
    assert (watch.counted, watch.hits, watch.lost) == (2, 2, 0)


@pytest.mark.parametrize(
    ("name", "symbol", "call"),
    [
        ("shapes::Square::area(double) const", "shapes::Square::area(double) const", "area_of"),
        ("shapes::Square::area", "shapes::Square::area(double) const", "area_of"),
        ("int shapes::twice<int>(int)", "int shapes::twice<int>(int)", "twice_int"),
    ],
)
def test_cpp_name(session: Any, cpp: tuple[str, ctypes.CDLL], name: str, symbol: str, call: str) -> None:
    path, library = cpp
    with session.watching(f"{Path(path).name}!{name}", "x") as watch:
        assert library.area_of(3.0, 2.0) == 18.0
        assert library.twice_int(21) == 42
        assert library.twice_double(1.5) == 3.0
    rows = watch.timeline()
    assert rows.symbol.tolist() == [symbol]
    assert rows.module.tolist() == [Path(path).name]
    assert rows.xmm0.tolist() == [2.0] if call == "area_of" else rows.arg0.tolist() == [21]


def test_raw_address_inside_a_function(session: Any, library: ctypes.CDLL) -> None:
    """Any instruction, not only a function's first one."""
    entry = ctypes.cast(library.once, ctypes.c_void_p).value or 0
    behind = entry + 7  # inc qword ptr [rip + disp32]
    with session.watching(behind, "x") as watch:
        library.once()
        library.once()
    rows = watch.timeline()
    assert _calls(library) == 2
    assert rows.pc.tolist() == [behind, behind]
    assert rows.instruction.tolist() == ["ret", "ret"]
    assert rows.symbol.tolist() == ["once+0x7", "once+0x7"]
    assert watch.counted == 2


def test_two_watches_on_one_function(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    """Both events count and one signal comes, which names one of them; a forked child has both, too."""

    def work(path):
        library = ctypes.CDLL(path)
        first = hwwatch.watch(library.count, "x", name="first")
        second = hwwatch.watch(library.count, "x", name="second", when="hits % 2 == 1")
        home = hwwatch.watch(library.count, "x", name="home", follow_fork=False)
        for n in range(4):
            library.count(n, 0)
        child = os.fork()
        if not child:
            library.count(4, 0)
            os._exit(0)
        os.waitpid(child, 0)
        rows = hwwatch.timeline()
        return {
            "arguments": {
                name: rows[rows.watch == name].arg0.tolist() for name in ("first", "second", "home")
            },
            "lost": [watch.lost for watch in (first, second, home)],
        }

    assert in_child(work, build(SOURCE, VISIBLE)) == {
        "arguments": {"first": [0, 1, 2, 3, 4], "second": [0, 2, 4], "home": [0, 1, 2, 3]},
        "lost": [0, 0, 0],
    }


def test_two_policies_on_one_function(session: Any, library: ctypes.CDLL) -> None:
    """The thread returns once, whichever of the two sent it; the other has nothing left to do."""
    watches = [session.watch(library.count, "x", policy=hwwatch.Return(value)) for value in (41, 42)]
    answers = [library.count(1, 2) for _ in range(100)]
    session.unwatch()
    assert len(set(answers)) == 1
    assert answers[0] in (41, 42)
    assert _calls(library) == 0
    rows = session.timeline()
    assert sorted(rows.action.tolist()) == ["continued"] * 100 + ["returned"] * 100
    assert [(watch.counted, watch.hits, watch.lost) for watch in watches] == [(100, 100, 0)] * 2


def test_loop_of_a_recursive_function(session: Any, load: Callable[..., ctypes.CDLL]) -> None:
    library = load("long fact(long n) { return n < 2 ? 1 : n * fact(n - 1); }", "-O0")
    library.fact.restype, library.fact.argtypes = ctypes.c_long, [ctypes.c_long]
    with session.watching(library.fact, "x") as watch:
        assert library.fact(20) == 2432902008176640000
    assert watch.timeline().arg0.tolist() == list(range(20, 0, -1))


if importlib.util.find_spec("numba"):  # not everybody has it, and a skip would count as a failure

    def test_numba_cfunc(session: Any) -> None:
        import numba

        made = numba.cfunc("float64(float64, int64)")(lambda x, n: x * n)
        with session.watching(made, "x") as watch:
            assert made.ctypes(1.5, 4) == 6.0
        assert (watch.counted, watch.hits, watch.lost) == (1, 1, 0)


@pytest.mark.parametrize(
    "function",
    ["execve", "close", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dup2", "sigprocmask", "_exit"))],
)
def test_spawned_programs_survive(in_child: Callable[..., Any], function: str) -> None:
    """A breakpoint that a vfork or posix_spawn child took along would kill the program with SIGTRAP."""

    def work(function):
        import subprocess

        watch = hwwatch.watch(f"libc.so.6!{function}", "x", stack=0)
        answers = [
            subprocess.run(["/bin/echo", "hello"], capture_output=True, text=True).stdout,
            subprocess.run(["/bin/echo", "hello"], capture_output=True, text=True, close_fds=False).stdout,
            subprocess.run(["/bin/sh", "-c", "exit 7"], start_new_session=True, cwd="/").returncode,
            subprocess.run(["/bin/sh", "-c", "exit 8"], preexec_fn=int, close_fds=False).returncode,
            os.system("exit 9") >> 8,
        ]
        child = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 6"], os.environ)
        answers.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        with os.popen("echo piped") as pipe:
            answers.append(pipe.read())
        tally = watch.coverage.tally
        seen = len(watch.timeline()) > 0
        return answers, tally.counted - tally.hits - tally.lost - tally.filtered, watch.armed, seen

    expected = ["hello\n", "hello\n", 7, 8, 9, 6, "piped\n"]
    answers, balance, armed, seen = in_child(work, function)
    assert (answers, balance, armed) == (expected, 0, True)
    if function == "execve":  # of the child that is a real fork, which subprocess makes for a preexec_fn
        assert seen


@pytest.mark.slow
@pytest.mark.parametrize("how", ["python", "c"])
def test_forked_child_is_armed_again(
    in_child: Callable[..., Any], build: Callable[..., str], how: str
) -> None:
    """Its hits stand in the same timeline under its pid; the parent's watch does not suffer."""

    def work(path, how):
        library, libc = ctypes.CDLL(path), ctypes.CDLL(None)
        watch = hwwatch.watch(library.count, "x")
        library.count(1, 0)
        child = os.fork() if how == "python" else libc.fork()
        if not child:
            library.count(2, 0)
            grandchild = os.fork() if how == "python" else libc.fork()
            if not grandchild:
                library.count(3, 0)
                os._exit(0)
            status = os.waitpid(grandchild, 0)[1]
            thread = threading.Thread(target=library.count, args=(4, 0))
            thread.start()
            thread.join()
            os._exit(os.waitstatus_to_exitcode(status) & 255)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        library.count(5, 0)
        rows = watch.timeline()
        names = {os.getpid(): "parent", child: "child"}
        return {
            "code": code,
            "arguments": rows.arg0.tolist(),
            "pids": [names.get(pid, "grandchild") for pid in rows.pid],
            "tally": (watch.hits, watch.lost),
            "armed": watch.armed,
        }

    assert in_child(work, build(SOURCE, VISIBLE), how) == {
        "code": 0,
        "arguments": [1, 2, 3, 4, 5],
        "pids": ["parent", "child", "grandchild", "child", "parent"],
        "tally": [5, 0],
        "armed": True,
    }


def test_children_not_followed(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    def work(path):
        library = ctypes.CDLL(path)
        watch = hwwatch.watch(library.count, "x", follow_fork=False)
        child = os.fork()
        if not child:
            library.count(2, 0)
            os._exit(0)
        os.waitpid(child, 0)
        library.count(5, 0)
        return watch.timeline().arg0.tolist(), watch.counted, watch.lost

    assert in_child(work, build(SOURCE, VISIBLE)) == [[5], 1, 0]


def test_disarmed_by_the_parent_the_childs_ends_too(
    in_child: Callable[..., Any], build: Callable[..., str]
) -> None:
    """The parent cannot reach a child's own event: the child lets go of it at its next hit."""

    def work(path):
        library = ctypes.CDLL(path)
        watch = hwwatch.watch(library.count, "x")
        to_child, to_parent = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            library.count(1, 0)
            os.write(to_parent[1], b"1")
            os.read(to_child[0], 1)
            results = [library.count(2, n) for n in range(100)]
            os._exit(0 if results == [2000 + n for n in range(100)] else 1)
        os.read(to_parent[0], 1)
        watch.disarm()
        os.write(to_child[1], b"2")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, watch.timeline().arg0.tolist(), watch.lost

    assert in_child(work, build(SOURCE, VISIBLE)) == [0, [1], 0]


def test_no_function_is_refused(session: Any) -> None:
    """In one line, and with nothing armed."""
    for target, text in (
        ("libm.so.6!kosinus", "kosinus"),
        ("libnosuch.so!cos", "libnosuch"),
        (lambda: None, "Python function"),
        (id(session), "not in executable memory"),
    ):
        with pytest.raises(hwwatch.TargetError, match=text) as error:
            session.watch(target, "x")
        assert "\n" not in str(error.value)
    assert session.watches() == []
    assert session.coverage().slots_free == 4


@pytest.mark.slow
def test_own_calls_are_no_hits(in_child: Callable[..., Any]) -> None:
    """What hwwatch does calls C functions, too, in the thread that asks for it: while a policy is in force on
    them, most of all."""

    def work():
        libc = ctypes.CDLL(None)
        array = np.zeros(4)
        for name in ("strlen", "sigaction", "malloc"):
            hwwatch.watch(getattr(libc, name), "x", name=name)
        with hwwatch.watching(array[1:2], "w") as watch:
            array[1] = 1
            watch.mode = "rw"
            watch.when = "new > 0"
            watch.policy = "skip"
            watch.enabled = False
            assert watch.hits == 1
            hwwatch.coverage()
        hwwatch.watches()[0].disarm()
        hwwatch.timeline(watch)
        rows = hwwatch.timeline(stack=True)
        own = [frames for frames in rows["stack"] if any("/hwwatch/" in frame for frame in frames or ())]
        return watch.hits, own

    assert in_child(work) == [1, []]
