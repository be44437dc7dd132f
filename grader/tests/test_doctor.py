"""What `doctor` finds where something is missing: real environments, made poorer by PATH and files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy

slow_blas = pytest.mark.skipif(
    sys.platform != "linux" or not list(Path(pytest.__file__).parents[1].glob("mlx_cpu.libs/libblas-*")),
    reason="only MLX's CPU wheel for Linux brings the slow BLAS",
)


@pytest.fixture
def course(tmp_path: Path) -> Toy:
    return toy.make(tmp_path / "clone")


def said(course: Toy, **environment: str) -> str:
    return " ".join(course.grade("doctor", **environment).stdout.split())


def test_no_git_and_no_compiler(course: Toy, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    text = said(course, PATH=str(tmp_path / "empty"), CXX="")
    assert "later git: not found" in text
    assert "later C++ compiler: none found" in text
    assert "ready days 1.1 to 1.2 need" in text


def test_no_repository(course: Toy, tmp_path: Path) -> None:
    text = said(course, GIT_CEILING_DIRECTORIES=str(tmp_path))
    assert "this folder is in no repository" in text
    assert f"fix: git init {course.root}" in text


def test_two_builds_of_mlx_at_once(course: Toy, tmp_path: Path) -> None:
    for name in ("mlx_cpu", "mlx_cuda_12"):
        info = tmp_path / "site" / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n"
        )
    done = course.grade("doctor", PYTHONPATH=str(tmp_path / "site"))
    text = " ".join(done.stdout.split())
    assert done.returncode == 3
    assert re.search(r"MISSING MLX library: mlx-cpu and mlx-cuda-12( and mlx-\w+)? are both", text)


def test_an_mlx_that_cannot_be_imported(course: Toy, tmp_path: Path) -> None:
    broken = tmp_path / "site" / "mlx"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')\n")
    done = course.grade("doctor", PYTHONPATH=str(tmp_path / "site"))
    text = " ".join(done.stdout.split())
    assert done.returncode == 3
    assert "MISSING MLX: ImportError: libmlx.so: cannot open shared object file" in text
    assert "note BLAS: not measured" in text
    assert "not here days 1.1 to 1.2 need" in text
    graded = course.grade("day1.1", PYTHONPATH=str(tmp_path / "site"))
    assert graded.returncode == 3
    assert "could not be graded: the grading process could not start" in " ".join(graded.stdout.split())
    assert "libmlx.so" in graded.stdout
    assert "tinyllm-grade doctor" in graded.stdout


@slow_blas
def test_which_blas_is_in_use(course: Toy, tmp_path: Path) -> None:
    text = said(course, TINYLLM_CACHE=str(tmp_path / "cache"))
    assert re.search(
        r"ok BLAS: OpenBLAS 0\.[\d.]+, \d+ threads?: [\d.e+]+ GFLOP/s \(float32, 512 x 512 x 512\)",
        text,
    )
    text = said(course, TINYLLM_CACHE=str(tmp_path / "cache"), TINYLLM_BLAS="off")
    assert re.search(r"later BLAS: MLX's own, because TINYLLM_BLAS is off: [\d.e+]+ GFLOP/s", text)
    assert "fix: unset TINYLLM_BLAS" in text


@slow_blas
def test_no_compiler_for_a_faster_blas(course: Toy, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    text = said(course, PATH=str(tmp_path / "empty"), CC="", TINYLLM_CACHE=str(tmp_path / "cache"))
    assert "later BLAS: MLX's own, because there is no C compiler to connect a faster one" in text
    assert (
        "fix: sudo apt install gcc (or your system's name); without root: python -m pip install ziglang"
        in text
    )


@slow_blas
def test_a_blas_preloaded_by_the_user(course: Toy, tmp_path: Path) -> None:
    library = tmp_path / "own.so"
    own = b"void cblas_sgemm(void) {}"
    subprocess.run(["cc", "-x", "c", "-shared", "-fPIC", "-o", library, "-"], input=own, check=True)
    text = said(course, LD_PRELOAD=str(library), TINYLLM_CACHE=str(tmp_path / "cache"))
    assert re.search(r"note BLAS: OpenBLAS .* but MLX's products go elsewhere", text)


def test_a_day_that_needs_a_compiler(course: Toy, tmp_path: Path) -> None:
    day = toy.DAY_2.replace('builds_on = ["1.1"]', 'builds_on = ["1.1"]\nneeds = ["compiler"]')
    course.write("checkpoints/day1_2/checkpoint.toml", day)
    (tmp_path / "empty").mkdir()
    text = said(course, PATH=str(tmp_path / "empty"), CXX="")
    assert "ready day 1.1 needs Python and MLX" in text
    assert "not here day 1.2 needs compiler" in text


def test_a_terminal_without_unicode(course: Toy) -> None:
    text = said(course, PYTHONIOENCODING="ascii")
    assert "note terminal: ascii: plain signs are used" in text
    assert sys.version.split()[0] in text
