"""What this machine has and lacks for each day, with the command that mends it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from . import models
from .catalog import Course
from .clone import Clone, installed_root
from .errors import CourseError


class State(Enum):
    OK = "ok"
    MISSING = "missing"  # something that is needed now
    LATER = "later"  # something that only later days or single commands need
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    name: str
    state: State
    detail: str
    fix: str = ""


# Asked in a process of its own: the grader never imports MLX, and a broken MLX may crash.
ASK_MLX = """
import json, mlx.core as mx
x = mx.arange(6).reshape(2, 3).astype(mx.float32)
right = (x @ x.T).tolist() == [[5.0, 14.0], [14.0, 50.0]]
print(json.dumps({"version": mx.__version__, "device": str(mx.default_device().type).rpartition(".")[2],
                  "metal": mx.metal.is_available(), "right": right,
                  "cuda": getattr(mx, "cuda", None) is not None and mx.cuda.is_available()}))
"""

# The BLAS is chosen before MLX is loaded, once per process; 512 cubed takes 0.2 s on the slow one.
ASK_BLAS = """
import json, time
from tinyllm.kernels import blas
state = blas.prepare()
import mlx.core as mx
a = mx.random.normal((512, 512), stream=mx.cpu)
mx.eval(a)
seconds = []
for _ in range(3):
    began = time.perf_counter()
    mx.eval(mx.matmul(a, a, stream=mx.cpu))
    seconds.append(time.perf_counter() - began)
print(json.dumps({"state": str(state), "prepared": state.in_use, "used": blas.used(), "fix": state.fix,
                  "gflops": 2 * 512**3 / min(seconds) / 1e9}))
"""


def examine(clone: Clone, course: Course) -> list[Finding]:
    """Everything worth knowing, in the order in which it matters."""
    return [
        _python(),
        _install(clone),
        _mlx(),
        _mlx_builds(),
        _blas(),
        _git(clone),
        _compiler(),
        *([_shipped_model(clone)] if course.engines else []),
        _terminal(),
    ]


def day_needs(course: Course) -> list[tuple[str, str, bool]]:
    """("days 1.1 to 1.4 need", what, whether it is here), one row for each distinct set of needs."""
    rows: list[tuple[str, str, bool]] = []
    for needs in dict.fromkeys(d.needs for d in course.days):
        days = [d.id for d in course.days if d.needs == needs]
        span = f"day {days[0]} needs" if len(days) == 1 else f"days {days[0]} to {days[-1]} need"
        present = all(NEEDS[n]().state is State.OK for n in needs)
        rows.append((span, ", ".join(needs) or "Python and MLX", present and _mlx().state is State.OK))
    return rows


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    inside = "in a virtual environment" if sys.prefix != sys.base_prefix else "not in a virtual environment"
    return Finding("Python", State.OK, f"{version}, {inside}")


def _install(clone: Clone) -> Finding:
    own = installed_root()
    if own != clone.root.resolve():
        return Finding(
            "this program",
            State.MISSING,
            f"grades {clone.root}, but is installed from {own}",
            "in your clone: python -m pip install -e .",
        )
    return Finding("this program", State.OK, f"tinyllm {_version('tinyllm')}, from this clone")


def _mlx() -> Finding:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", ASK_MLX], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "MLX", State.MISSING, "did not answer within 60 s", "python -m pip install --force-reinstall mlx"
        )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"ended with exit code {done.returncode}"])[-1]
        extra = "" if sys.platform == "darwin" else "[cpu]"
        return Finding("MLX", State.MISSING, reason, f"python -m pip install 'mlx{extra}'")
    facts = json.loads(done.stdout)
    if not facts["right"]:
        return Finding("MLX", State.MISSING, "a 2 x 3 matrix product came out wrong", "reinstall mlx")
    backends = [b for b in ("metal", "cuda") if facts[b]] or ["CPU only"]
    return Finding("MLX", State.OK, f"{facts['version']} on the {facts['device']} ({', '.join(backends)})")


def _mlx_builds() -> Finding:
    """The cpu and cuda extras bring the same library file; with both, the one installed last wins."""
    builds = [n for n in ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "mlx-metal") if _version(n)]
    if len(builds) > 1:
        return Finding(
            "MLX library",
            State.MISSING,
            f"{' and '.join(builds)} are both installed and overwrite each other",
            f"python -m pip uninstall {' '.join(builds)}, then install one of them again",
        )
    if not builds:
        return Finding("MLX library", State.NOTE, "not from a wheel of ours; built from source?")
    return Finding("MLX library", State.OK, f"{builds[0]} {_version(builds[0])}")


def _blas() -> Finding:
    """What multiplies float32 matrices on the CPU, and how fast."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", ASK_BLAS], capture_output=True, text=True, timeout=60, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return Finding("BLAS", State.NOTE, "not measured: MLX did not multiply two matrices")
    facts = json.loads(done.stdout)
    speed = f"{facts['state']}: {facts['gflops']:.3g} GFLOP/s (float32, 512 x 512 x 512)"
    if facts["fix"]:
        return Finding("BLAS", State.LATER, speed, facts["fix"])
    if facts["prepared"] and not facts["used"]:
        return Finding("BLAS", State.NOTE, f"{speed}, but MLX's products go elsewhere (LD_PRELOAD?)")
    return Finding("BLAS", State.OK, speed)


def _git(clone: Clone) -> Finding:
    if not shutil.which("git"):
        return Finding(
            "git", State.LATER, "not found: history, restore and diff --tool need it", "install git"
        )
    done = subprocess.run(
        ["git", "-C", str(clone.root), "rev-parse", "--is-inside-work-tree"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return Finding(
            "git",
            State.LATER,
            "this folder is in no repository: grades are kept, snapshots of your code are not",
            f"git init {clone.root}",
        )
    return Finding("git", State.OK, "snapshots of every graded state are kept under refs/tinyllm/")


def _compiler() -> Finding:
    wanted = [os.environ.get("CXX", ""), "c++", "clang++", "g++"]
    compiler = next((c for c in wanted if c and shutil.which(c)), None)
    if compiler is None:
        fix = (
            "xcode-select --install"
            if sys.platform == "darwin"
            else "sudo apt install g++ (or your system's name)"
        )
        return Finding("C++ compiler", State.LATER, "none found; week 2's kernels will need one", fix)
    parts = [n for n in ("cmake", "ninja", "nanobind") if not _version(n)]
    if parts:
        return Finding(
            "C++ compiler",
            State.LATER,
            f"{compiler}, but {', '.join(parts)} missing",
            "python -m pip install -e .",
        )
    return Finding("C++ compiler", State.OK, f"{compiler}; cmake, ninja and nanobind {_version('nanobind')}")


def _shipped_model(clone: Clone) -> Finding:
    """Whether the model that needs no download is whole; its weights are not read."""
    try:
        model = models.resolve(clone)
    except CourseError as error:
        reason = error.message.removeprefix(f"{models.SHIPPED}: ")
        return Finding(models.SHIPPED, State.LATER, reason, error.next_step)
    return Finding(models.SHIPPED, State.OK, f"{model.size}; generate and chat run it")


def _terminal() -> Finding:
    encoding = sys.stdout.encoding or "unknown"
    if not encoding.lower().startswith("utf"):
        return Finding("terminal", State.NOTE, f"{encoding}: plain signs are used", "export LC_ALL=C.UTF-8")
    return Finding("terminal", State.OK, f"{encoding}, {shutil.get_terminal_size().columns} columns")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


# What `needs` in a checkpoint.toml may name.
NEEDS: dict[str, Callable[[], Finding]] = {"compiler": _compiler}
