"""Compiles a tree's C++ kernels and the glue in kernels/cpp into one Python module.

    native = load(tree / "kernels")      # native.axpby(x, y, alpha, beta)

The glue is compiled once per machine set-up (about 20 s); after an edit only the edited kernel is compiled
again (one to three seconds), and a state that was built before is just loaded. Built modules live in the
user's cache folder, named by the hash of everything that went into them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from . import cache

GLUE = Path(__file__).parent / "cpp"
ABSENT = GLUE / "absent"  # what stands in for a kernel file that is left out
MODULE = "tinyllm_native"
MONTH = 30 * 24 * 3600.0  # seconds


class BuildFault(Exception):
    """The kernels cannot be built here, and the learner's code is not the reason."""


class NoCompiler(BuildFault):
    """This machine has no C++ compiler."""


@dataclass(frozen=True)
class Complaint:
    """The compiler's first error, at the learner's file and line."""

    file: str  # relative to the kernels folder: "axpby.cpp"
    line: int  # 0 when the error has none
    message: str


class DoesNotCompile(Exception):
    """A kernel's source does not compile or link. `output` is all that the compiler said."""

    def __init__(self, complaint: Complaint, output: str) -> None:
        super().__init__(f"{complaint.file}:{complaint.line}: {complaint.message}")
        self.complaint = complaint
        self.output = output


def load(
    folder: Path, overlays: Mapping[str, Path] | None = None, only: Collection[str] | None = None
) -> ModuleType:
    """The module built from the `*.cpp` files in `folder`; `overlays` ({"axpby.cpp": file}) replaces some.

    With `only`, file names, the other files are left out: whether they compile does not matter, and what is
    theirs raises when it is used. So does what is of files that the folder never had. Builds the module when
    that has not been done before. One process can load one state of a tree's kernels. Raises DoesNotCompile,
    or BuildFault when compiler, CMake or MLX's headers are at fault.
    """
    built = build(folder, overlays, only)
    try:
        return _import(built)
    except ImportError as error:
        # A kernel that is declared and never defined is missed only now, when the module is loaded.
        missing = re.search(r"tinyllm\d+(?P<name>[a-z_0-9]+?)I", str(error))
        if missing is None:
            raise BuildFault(f"the built module cannot be loaded: {error}") from None
        complaint = Complaint(
            _where_named(missing["name"], folder), 0, f"{missing['name']} is used, but not defined"
        )
        raise DoesNotCompile(complaint, str(error)) from None


def build(
    folder: Path, overlays: Mapping[str, Path] | None = None, only: Collection[str] | None = None
) -> Path:
    """The built module's file; builds it if it is not there. Safe to call from several processes at once."""
    sources = read_sources(folder, overlays, only)
    compiler = find_compiler()
    setup, built = _place(sources, compiler)
    if built.is_file():
        built.touch()
        return built
    workshop = built.parent / f"build-{setup}"
    try:
        workshop.mkdir(parents=True, exist_ok=True)
        _drop_old(built.parent)
        with _locked(workshop / ".lock"):
            if not built.is_file():
                _compile(workshop, sources, compiler, built)
    except OSError as error:
        raise BuildFault(f"{error.filename or built.parent}: {error.strerror}") from None
    return built


def is_built(folder: Path, only: Collection[str] | None = None) -> bool:
    """Whether load would compile nothing. False also where nothing can be compiled."""
    try:
        return _place(read_sources(folder, None, only), find_compiler())[1].is_file()
    except (OSError, BuildFault):
        return False


def _place(sources: Mapping[str, str], compiler: str) -> tuple[str, Path]:
    """The hash of the set-up, and where the module built from these sources is or would be."""
    # The path of the glue too: a workshop, once configured, names its files where they were.
    setup = _hash([str(GLUE), _toolchain(compiler), *(f"{p.name}\0{p.read_text()}" for p in _glue())])
    state = _hash([setup, *(f"{name}\0{text}" for name, text in sorted(sources.items()))])
    return setup, cache.folder("kernels") / f"{MODULE}-{state}.so"


def read_sources(
    folder: Path, overlays: Mapping[str, Path] | None = None, only: Collection[str] | None = None
) -> dict[str, str]:
    """The kernels' sources by file name: overlays in place, and stand-ins for what is left out."""
    files = {p.name: p for p in folder.glob("*.cpp")} | dict(overlays or {})
    wanted = files.keys() if only is None else only
    stand_ins = {p.name: p for p in ABSENT.iterdir() if p.name not in wanted}
    files = {name: file for name, file in files.items() if name in wanted} | stand_ins
    return {name: Path(file).read_text(encoding="utf-8") for name, file in files.items()}


def find_compiler() -> str:
    """The C++ compiler's path: CXX if set, else c++, clang++ or g++. Raises NoCompiler."""
    for name in (os.environ.get("CXX", ""), "c++", "clang++", "g++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise NoCompiler("there is no C++ compiler")


# ---- compiling ----


def _compile(workshop: Path, sources: Mapping[str, str], compiler: str, built: Path) -> None:
    """Bring the workshop's copy of the tree up to date, build, and put the module in its place."""
    tree = workshop / "tree"
    tree.mkdir(exist_ok=True)
    for stale in {p.name for p in tree.iterdir()} - set(sources):
        (tree / stale).unlink()
    for name, text in sources.items():
        if not (tree / name).is_file() or (tree / name).read_text(encoding="utf-8") != text:
            (tree / name).write_text(text, encoding="utf-8")
    names = sorted(sources)
    listed = workshop / "sources.txt"
    if not (workshop / "build.ninja").is_file() or _text(listed) != "\n".join(names):
        _configure(workshop, [tree / name for name in names], compiler)
        listed.write_text("\n".join(names))
    done = _run([_tool("cmake"), "--build", str(workshop), "--parallel", "2"])
    if done.returncode != 0:
        output = done.stdout + done.stderr
        complaint = _complaint(output, tree)
        if complaint is None:
            raise BuildFault(f"the C++ glue could not be built:\n{_tail(output)}")
        raise DoesNotCompile(complaint, output)
    (module,) = [p for p in workshop.glob(f"{MODULE}*") if p.suffix in (".so", ".pyd")]
    temporary = built.with_name(f"{built.name}.{os.getpid()}")
    shutil.copyfile(module, temporary)
    temporary.replace(built)


def _configure(workshop: Path, sources: list[Path], compiler: str) -> None:
    import mlx
    import nanobind

    packages = {
        "MLX_DIR": Path(next(iter(mlx.__path__))) / "share" / "cmake" / "MLX",
        "nanobind_DIR": nanobind.cmake_dir(),
        "Python_EXECUTABLE": sys.executable,
        "CMAKE_CXX_COMPILER": compiler,
        "CMAKE_MAKE_PROGRAM": _tool("ninja"),
        "TREE_SOURCES": ";".join(map(str, sources)),
    }
    flags = [f"-D{key}={value}" for key, value in packages.items()]
    done = _run([_tool("cmake"), "-S", str(GLUE), "-B", str(workshop), "-G", "Ninja", *flags])
    if done.returncode != 0:
        raise BuildFault(f"CMake could not prepare the build:\n{_tail(done.stdout + done.stderr)}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    plain = {**os.environ, "LC_ALL": "C", "CLICOLOR_FORCE": "0", "NINJA_STATUS": ""}
    try:
        return subprocess.run(
            command, env=plain, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise BuildFault(f"{command[0]} could not be started: {error.strerror}") from None


def _tool(name: str) -> str:
    """The cmake or ninja that was installed with this Python, else the system's."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        raise BuildFault(f"{name} is not installed")
    return found


def _complaint(output: str, tree: Path) -> Complaint | None:
    """The first error that the compiler places in a source of the tree."""
    place = (
        rf"^{re.escape(str(tree))}/(?P<file>[^:\n]+):(?P<line>\d+):(?:\d+:)? (?:fatal )?error: (?P<what>.*)$"
    )
    found = re.search(place, output, re.M)
    return Complaint(found["file"], int(found["line"]), found["what"].strip()) if found else None


def _where_named(name: str, folder: Path) -> str:
    """The kernel file that is called like the function, else the function's name."""
    return f"{name}.cpp" if (folder / f"{name}.cpp").is_file() else name


def _tail(output: str, lines: int = 15) -> str:
    return "\n".join(output.strip().splitlines()[-lines:])


# ---- what a build depends on ----


def _glue() -> list[Path]:
    return sorted(p for p in GLUE.iterdir() if p.is_file())


def _toolchain(compiler: str) -> str:
    """Everything but the sources that decides what the compiler makes."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("mlx", "nanobind", "cmake")]
    said = _run([compiler, "--version"]).stdout.splitlines()
    return "\n".join([*versions, sys.version, _processor(), compiler, *said[:1], *map(str, _mlx_paths())])


def _processor() -> str:
    """What the kernels may use of this machine: a cache folder can be seen by several machines."""
    listed = Path("/proc/cpuinfo")
    if not listed.is_file():
        return f"{platform.machine()} {platform.processor()}"
    features = re.search(r"^(flags|Features)\s*: (.*)$", listed.read_text(), re.M)
    return f"{platform.machine()} {features[2] if features else ''}"


def _mlx_paths() -> list[str]:
    spec = importlib.util.find_spec("mlx")
    return list(spec.submodule_search_locations or []) if spec else []


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\0\0".join(parts).encode()).hexdigest()[:16]


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _drop_old(kept: Path) -> None:
    """Keep the cache small: what nobody built or used for a month goes. A build tree takes 30 MB."""
    for entry in kept.glob("*"):
        with contextlib.suppress(OSError):  # another process may be tidying up too
            if time.time() - entry.stat().st_mtime > MONTH:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One build at a time; the lock goes with the process that holds it."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---- loading ----


def _import(built: Path) -> ModuleType:
    import mlx.core as mx  # the module needs MLX's library in the process

    spec = importlib.util.spec_from_file_location(MODULE, built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _probe(module.same, mx.array([1.0, 2.0]))
    return module


def _probe(same: Callable[..., object], array: object) -> None:
    """Pass an array through the module: with another nanobind than MLX's own, none would get through."""
    try:
        same(array)
    except TypeError:
        version = importlib.metadata.version("nanobind")
        raise BuildFault(
            "toolchain mismatch, not your code: this MLX takes no arrays from a module that was built "
            f"with nanobind {version}"
        ) from None
