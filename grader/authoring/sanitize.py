"""Every kernel of reference/, and the thread pool, built with sanitizers and run without Python.

The program is grader/tests/sanitized/every_kernel.cpp. AddressSanitizer sees a read or write beside an
array, UndefinedBehaviorSanitizer a shift or conversion that C++ leaves open, ThreadSanitizer two threads at
one number.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tinyllm.kernels import build

from ..clone import Clone

SECONDS = 900  # for one file or one run; a busy machine takes its time
THREADS = "3"  # more than a small machine has: then they are held up at odd places


@dataclass(frozen=True)
class Build:
    """One way to build the kernels."""

    sanitizers: str  # as -fsanitize takes them
    processor: str  # the compiler's option for the vectors' width; empty for the least there is

    @property
    def name(self) -> str:
        return f"{self.sanitizers} {self.processor}".rstrip()


def builds(*, quick: bool) -> list[Build]:
    """What to build: for this processor; in full also for narrower vectors, and for races."""
    memory = "address,undefined"
    wanted = [Build(memory, "-march=native")]
    if not quick:
        narrower = ["", "-mavx2"] if platform.machine().lower() in ("x86_64", "amd64") else [""]
        wanted += [Build(memory, option) for option in narrower]
        wanted.append(Build("thread", "-march=native"))
    return wanted


def problems(clone: Clone, wanted: Sequence[Build], say: Callable[[str], None]) -> list[str]:
    """What the sanitizers and the program itself complain about, one text for each build; none is good.

    Nothing in a clone whose reference has no kernels.
    """
    found: list[str] = []
    if not any((clone.reference / "kernels").glob("*.cpp")):
        return found
    with tempfile.TemporaryDirectory(prefix="tinyllm-sanitize-") as folder:
        for number, one in enumerate(wanted):
            place = Path(folder) / str(number)
            place.mkdir()
            problem = _problem(clone, one, place)
            say(f"{one.name}: {'fails' if problem else 'clean'}")
            if problem:
                found.append(f"{one.name}: {problem}")
    return found


def sources(clone: Clone) -> list[Path]:
    """The program, the pool and the kernels."""
    program = clone.root / "grader" / "tests" / "sanitized" / "every_kernel.cpp"
    glue = clone.root / "kernels" / "cpp"
    return [program, glue / "pool.cpp", *sorted((clone.reference / "kernels").glob("*.cpp"))]


def _problem(clone: Clone, one: Build, place: Path) -> str:
    compiler = build.find_compiler()
    mlx = importlib.util.find_spec("mlx")
    assert mlx is not None
    assert mlx.submodule_search_locations is not None
    includes = [clone.root / "kernels" / "cpp", Path(next(iter(mlx.submodule_search_locations))) / "include"]
    flags = ["-std=c++20", "-O1", "-g1", "-Wno-psabi", f"-fsanitize={one.sanitizers}"]
    flags += ["-fno-sanitize-recover=all", *filter(None, [one.processor]), *(f"-I{i}" for i in includes)]

    def compiled(source: Path) -> tuple[Path, str]:
        made = place / f"{source.stem}.o"
        return made, _run([compiler, *flags, "-c", str(source), "-o", str(made)])

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = list(pool.map(compiled, sources(clone)))
    program = place / "every_kernel"
    failed = next((said for _, said in results if said), "") or _run(
        [
            compiler,
            f"-fsanitize={one.sanitizers}",
            *(str(o) for o, _ in results),
            "-pthread",
            "-o",
            str(program),
        ]
    )
    # A child of fork has no threads, which ThreadSanitizer does not follow.
    return failed or _run([str(program), *(["no-fork"] if one.sanitizers == "thread" else [])])


def _run(command: list[str]) -> str:
    """What was said when `command` did not end well, else nothing."""
    options = {
        "TINYLLM_THREADS": THREADS,
        "ASAN_OPTIONS": "detect_leaks=0",  # the pool lives as long as the process
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    try:
        done = subprocess.run(
            command,
            env=os.environ | options,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"{Path(command[0]).name} does not end within {SECONDS} s"
    if done.returncode == 0:
        return ""
    said = (done.stderr or done.stdout).strip().splitlines()
    return "\n".join(said[:30]) or f"{Path(command[0]).name} ends with {done.returncode}"
