"""Symbols of libraries built on the spot, and of those every process has."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hwwatch.code.maps import Maps
from hwwatch.code.symbols import Symbols
from hwwatch.errors import TargetError

needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc to build libraries")

SOURCE = """
int counter = 7;
__attribute__((noinline)) static int same_name(int x) { return x + 1; }
int (*kept)(int) = same_name;
__attribute__((noinline)) static int local_function(int x) { return x * counter; }
int (*local_pointer)(int) = local_function;
int __alias_target(int x) { return local_function(x) + same_name(x); }
int alias_target(int x) __attribute__((alias("__alias_target")));
static int weakly(int x) { return x - 1; }
int weak_name(int x) __attribute__((weak, alias("weakly")));
static int chosen(int x) { return x + 42; }
static int (*choose(void))(int) { return chosen; }
int indirect(int x) __attribute__((ifunc("choose")));
int (*chosen_pointer)(int) = chosen;
__asm__(".globl label_only\\nlabel_only:\\n nop\\n nop\\n ret\\n");
"""
OTHER = "static int same_name(int x) { return x + 2; }\nint (*keep)(int) = same_name;\n"
CPP = """
namespace shapes {
struct Circle { double r; double area() const; double scale(double k); double scale(int k); };
double Circle::area() const { return 3 * r * r; }
double Circle::scale(double k) { return r *= k; }
double Circle::scale(int k) { return r *= k; }
bool operator!(const Circle &c) { return c.r == 0; }
}
"""


def build(directory: Path, name: str, *sources: str, flags: tuple[str, ...] = (), suffix: str = ".c") -> Path:
    files = []
    for i, source in enumerate(sources):
        files.append(directory / f"{name}{i}{suffix}")
        files[-1].write_text(source)
    library = directory / f"{name}.so"
    options = ("-O1", "-shared", "-fPIC", "-Wl,-soname," + f"{name}.so.3", *flags)
    compiler = "g++" if suffix == ".cpp" else "gcc"
    subprocess.run([compiler, *options, "-o", library, *files], check=True, timeout=60)
    return library


def place(library: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(library[name], ctypes.c_void_p).value or 0


def pointed(library: ctypes.CDLL, name: str) -> int:
    return ctypes.c_void_p.in_dll(library, name).value or 0


@pytest.fixture
def symbols(tmp_path: Path) -> Symbols:
    return Symbols(tmp_path / "cache")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if not shutil.which("gcc"):
        pytest.skip("needs gcc to build libraries")
    return ctypes.CDLL(str(build(tmp_path_factory.mktemp("full"), "libfull", SOURCE, OTHER)))


def test_names_offsets_and_bounds(symbols: Symbols, full: ctypes.CDLL) -> None:
    local = pointed(full, "local_pointer")
    symbol = symbols.lookup(local)
    assert (symbol.name, symbol.module, symbol.start) == ("local_function", "libfull.so", local)
    assert symbol.path == full._name
    assert symbol.end is not None
    assert local < symbol.end < local + 64
    inside = symbols.lookup(symbol.end - 1)
    assert inside.name == f"local_function+{symbol.end - 1 - local:#x}"
    assert (inside.start, inside.end) == (local, symbol.end)
    assert symbols.lookup(symbol.end).start != local


def test_best_of_several_names(symbols: Symbols, full: ctypes.CDLL) -> None:
    assert symbols.lookup(place(full, "__alias_target")).name == "alias_target"
    assert symbols.lookup(place(full, "weak_name")).name == "weak_name"
    assert symbols.lookup(place(full, "indirect")).name == "chosen"


def test_label_without_size(symbols: Symbols, full: ctypes.CDLL) -> None:
    label = place(full, "label_only")
    symbol = symbols.lookup(label + 1)
    assert (symbol.name, symbol.start) == ("label_only+0x1", label)


@pytest.mark.parametrize("library", ["libfull", "libfull.so", "libfull.so.3", "path"])
def test_resolve_by_any_name_of_the_library(symbols: Symbols, full: ctypes.CDLL, library: str) -> None:
    library = full._name if library == "path" else library
    assert symbols.resolve(f"{library}!local_function") == pointed(full, "local_pointer")
    assert symbols.resolve(f"{library}!alias_target") == place(full, "alias_target")
    assert symbols.resolve(f"{library}!counter") == ctypes.addressof(ctypes.c_int.in_dll(full, "counter"))


@pytest.mark.slow  # reads the symbols of every library in the process
def test_resolve_searches_all_libraries(symbols: Symbols, full: ctypes.CDLL) -> None:
    assert symbols.resolve("local_function") == pointed(full, "local_pointer")
    assert symbols.resolve("strlen") == place(ctypes.CDLL(None), "strlen")


def test_resolve_gives_the_function_an_ifunc_chose(symbols: Symbols, full: ctypes.CDLL) -> None:
    assert symbols.resolve("libfull!indirect") == pointed(full, "chosen_pointer")
    libc = ctypes.CDLL(None)
    assert symbols.resolve("libc!memcpy") == symbols.resolve("libc.so.6!memcpy") == place(libc, "memcpy")
    libm = ctypes.CDLL("libm.so.6")
    for spelling in ("libm!cos", "libm.so.6!cos"):
        assert symbols.resolve(spelling) == place(libm, "cos")
    # Of glibc's strlen only the resolver has a symbol where the library is stripped.
    assert symbols.lookup(place(libc, "strlen") + 5).start == place(libc, "strlen")
    assert "strlen" in symbols.lookup(place(libc, "strlen") + 5).name


@pytest.mark.slow  # reads the symbols of every library in the process
@pytest.mark.parametrize(
    ("text", "slug", "words"),
    [
        ("libfull!local_functoin", "no-symbol", "Closest: local_function"),
        ("libfull!strlen", "no-symbol", "libfull"),  # of a library it depends on
        ("libful!counter", "no-library", "Closest: libfull"),
        ("libfull!same_name", "ambiguous-symbol", "2 places"),
        ("surely_nowhere_defined", "no-symbol", "no loaded library"),
        ("libfull!", "no-symbol", "libfull"),
        ("", "no-symbol", "no loaded library"),
    ],
)
def test_what_cannot_be_resolved(
    symbols: Symbols, full: ctypes.CDLL, text: str, slug: str, words: str
) -> None:
    assert place(full, "alias_target")
    with pytest.raises(TargetError, match=words) as caught:
        symbols.resolve(text)
    assert caught.value.slug == slug
    assert "\n" not in str(caught.value)


@pytest.mark.slow  # reads the symbols of every library in the process
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_cpp_names(symbols: Symbols, tmp_path: Path) -> None:
    library = ctypes.CDLL(str(build(tmp_path, "libshapes", CPP, suffix=".cpp")))
    area = place(library, "_ZNK6shapes6Circle4areaEv")
    assert symbols.lookup(area).name == "shapes::Circle::area() const"
    for text in (
        "shapes::Circle::area",
        "libshapes!shapes::Circle::area() const",
        "libshapes!_ZNK6shapes6Circle4areaEv",
    ):
        assert symbols.resolve(text) == area
    assert symbols.resolve("libshapes!shapes::Circle::scale(int)") == place(
        library, "_ZN6shapes6Circle5scaleEi"
    )
    with pytest.raises(TargetError, match="2 places"):
        symbols.resolve("shapes::Circle::scale")
    assert symbols.resolve("shapes::operator!") == place(library, "_ZN6shapesntERKNS_6CircleE")


@needs_gcc
def test_stripped_library_has_function_starts(symbols: Symbols, tmp_path: Path) -> None:
    library = ctypes.CDLL(str(build(tmp_path, "libstripped", SOURCE, flags=("-s",))))
    local = pointed(library, "local_pointer")
    symbol = symbols.lookup(local + 1)
    assert symbol.name.startswith("libstripped.so+0x")
    base = next(mapping for mapping in Maps.read() if mapping.path == library._name).start
    assert int(symbol.name.split("+")[1], 16) == local + 1 - base
    assert symbol.start == local
    assert symbol.end is not None
    assert local < symbol.end < local + 64
    assert symbols.lookup(place(library, "alias_target")).name == "alias_target"  # from .dynsym
    chosen = symbols.lookup(pointed(library, "chosen_pointer"))
    assert (chosen.name, chosen.start) == ("indirect", pointed(library, "chosen_pointer"))


@needs_gcc
@pytest.mark.skipif(not shutil.which("objcopy") or not shutil.which("xz"), reason="needs objcopy and xz")
def test_minimal_debug_information(symbols: Symbols, tmp_path: Path) -> None:
    path = build(tmp_path, "libmini", SOURCE)
    debug = tmp_path / "mini.debug"
    subprocess.run(["objcopy", "-S", "--keep-symbol=local_function", path, debug], check=True, timeout=60)
    subprocess.run(["xz", debug], check=True, timeout=60)
    stripped = tmp_path / "libmini2.so"
    section = f".gnu_debugdata={debug}.xz"
    subprocess.run(["objcopy", "-S", "--add-section", section, path, stripped], check=True, timeout=60)
    library = ctypes.CDLL(str(stripped))
    assert symbols.lookup(pointed(library, "local_pointer")).name == "local_function"


@needs_gcc
@pytest.mark.parametrize("flags", [("-pie", "-fPIE"), ("-no-pie", "-fno-pie")], ids=["pie", "fixed"])
def test_executable_of_either_kind(tmp_path: Path, flags: tuple[str, ...]) -> None:
    # The program's own code is looked up through its mappings as another process sees them.
    from hwwatch.code.elf import Elf
    from hwwatch.code.symbols import Image

    source = tmp_path / "main.c"
    source.write_text(
        "#include <stdio.h>\n"
        'int main(void) { printf("%p\\n", (void *)main); fflush(stdout); getchar(); return 0; }\n'
    )
    program = tmp_path / "program"
    subprocess.run(["gcc", "-O1", *flags, "-o", program, source], check=True, timeout=60)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        main = int(child.stdout.readline(), 16)
        mapping = Maps.read(child.pid).find(main)
    assert mapping is not None
    with program.open("rb") as stream:
        elf = Elf(stream)
        names, strings = elf.symbols()
        image = Image(names, strings, elf.frames(), elf.segments, elf.soname())
    bias = image.bias(mapping)
    assert bias is not None
    assert (bias == 0) == ("-no-pie" in flags)
    found = image.function(main - bias)
    assert found is not None
    assert found[:2] == ("main", main - bias)


def test_places_without_a_file(symbols: Symbols) -> None:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    code = libc.mmap(None, 4096, 1 | 4, 0x22, -1, 0)  # read and execute, private and anonymous
    generated = symbols.lookup(code + 0x10)
    assert (generated.name, generated.module) == ("[anonymous]+0x10", "[anonymous]")
    assert (generated.path, generated.start, generated.end) == ("", None, None)
    nothing = symbols.lookup(16)
    assert (nothing.name, nothing.module) == ("0x10", "[unmapped]")
    vdso = next((mapping for mapping in Maps.read() if mapping.path == "[vdso]"), None)
    if vdso is not None:  # some sandboxes map none
        clock = symbols.resolve("[vdso]!__vdso_clock_gettime")
        found = symbols.lookup(clock)
        assert (found.module, found.start) == ("[vdso]", clock)
        assert "clock_gettime" in found.name


@needs_gcc
def test_library_loaded_later_is_found(symbols: Symbols, tmp_path: Path) -> None:
    assert symbols.lookup(place(ctypes.CDLL(None), "printf")).name == "printf"
    library = ctypes.CDLL(str(build(tmp_path, "liblater", SOURCE)))
    assert symbols.lookup(place(library, "alias_target")).module == "liblater.so"


@needs_gcc
def test_library_can_be_unloaded_rebuilt_and_loaded_anew(symbols: Symbols, tmp_path: Path) -> None:
    from _ctypes import dlclose

    for source in (SOURCE, "int first_now(int x) { return x * 3; }\n" + SOURCE):
        library = ctypes.CDLL(str(build(tmp_path, "librebuilt", source)))
        path = library._name
        chosen = symbols.resolve("librebuilt!indirect")
        assert symbols.lookup(chosen).name == "chosen"
        assert symbols.lookup(place(library, "alias_target")).name == "alias_target"
        assert symbols.lookup(pointed(library, "local_pointer")).name == "local_function"
        dlclose(library._handle)
        assert all(mapping.path != path for mapping in Maps.read())
        os.unlink(path)


@needs_gcc
def test_replaced_file_gives_no_wrong_names(symbols: Symbols, tmp_path: Path) -> None:
    path = build(tmp_path, "libold", SOURCE, flags=("-Wl,--build-id",))
    library = ctypes.CDLL(str(path))
    newer = build(tmp_path, "libnew", "int padding;\n" + SOURCE, flags=("-Wl,--build-id",))
    os.replace(newer, path)
    symbol = symbols.lookup(place(library, "alias_target"))
    assert symbol.start is None
    assert symbol.module.startswith("libold.so")


@needs_gcc
@pytest.mark.parametrize("harm", ["intact", "empty", "garbage", "cut", "wrong", "directory", "read-only"])
@pytest.mark.parametrize("flags", [("-Wl,--build-id",), ("-Wl,--build-id=none",)], ids=["build-id", "none"])
def test_cache_on_disk(tmp_path: Path, harm: str, flags: tuple[str, ...]) -> None:
    library = ctypes.CDLL(str(build(tmp_path, "libcached", SOURCE, flags=flags)))
    address, cache = pointed(library, "local_pointer"), tmp_path / "cache"
    before = Symbols(cache).lookup(address + 1)
    (file,) = cache.iterdir()
    if harm in ("empty", "garbage", "wrong"):
        import numpy as np

        file.write_bytes({"empty": b"", "garbage": b"PK\x03\x04" + bytes(range(200)), "wrong": b""}[harm])
        if harm == "wrong":
            np.savez(
                file, symbols=np.arange(3), strings=np.zeros(1), frames=np.zeros(2), soname=np.array("x")
            )
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:-400])
    elif harm == "directory":
        file.unlink()
        file.mkdir()
    elif harm == "read-only":
        shutil.rmtree(cache)
        cache.write_text("a file where the directory should be")
    stamp = file.stat().st_mtime_ns if harm == "intact" else 0
    assert Symbols(cache).lookup(address + 1) == before
    assert before.name == "local_function+0x1"
    if harm == "intact":
        assert file.stat().st_mtime_ns == stamp
    elif harm != "read-only":
        assert [path.name for path in cache.iterdir()] == [file.name]
        assert file.is_dir() or file.stat().st_size > 1000


def test_cache_directory_follows_xdg(tmp_path: Path) -> None:
    code = "import ctypes\nfrom hwwatch.code.symbols import Symbols\nprint(Symbols().resolve('libc!environ'))"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)
    assert any((tmp_path / "hwwatch").glob("*.npz"))


def test_from_several_threads(symbols: Symbols, full: ctypes.CDLL) -> None:
    wanted, names = pointed(full, "local_pointer"), []
    threads = [threading.Thread(target=lambda: names.append(symbols.lookup(wanted).name)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == ["local_function"] * 8


def test_interpreter_is_read_quickly(symbols: Symbols) -> None:
    address = place(ctypes.pythonapi, "PyLong_FromLong")
    begin = time.process_time()
    assert symbols.lookup(address).name == "PyLong_FromLong"
    # Some 50 ms; with a Python object a symbol it was 0.8 s.
    assert time.process_time() - begin < 0.4
    assert symbols.resolve("_PyEval_EvalFrameDefault") == place(ctypes.pythonapi, "_PyEval_EvalFrameDefault")
