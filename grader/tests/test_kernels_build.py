"""C++ kernels: built once, rebuilt quickly, and graded with every failure at the learner's line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tinyllm.grader import runner
from tinyllm.grader.authoring import stubs
from tinyllm.grader.clone import Clone, installed_root
from tinyllm.grader.report import DayReport, Failure, Outcome, Verdict
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy
from tinyllm.kernels import build, native

KERNEL = (Clone(installed_root()).reference / "kernels" / "axpby.cpp").read_text(encoding="utf-8")
LOOP = KERNEL[KERNEL.index("  // [task") : KERNEL.index("  // task")]

DAY = """
id = "1.3"
title = "Kernels"
summary = "You loop."
needs = ["compiler"]
modules = ["week1/plain.py", "kernels/axpby.cpp"]
[[tasks]]
id = 1
title = "in Python"
goal = "The same in Python."
checks = 1
symbols = ["week1/plain.py::plain"]
hints = ["?", "?", "?"]
[[tasks]]
id = 2
title = "in C++"
goal = "The same in C++."
checks = 3
symbols = ["kernels/axpby.cpp::axpby"]
hints = ["?", "?", "?"]
"""

TESTS = '''
import mlx.core as mx
from tinyllm.grader.testing import check, every_dtype, sample, task

@task(1)
def test_plain(solution):
    """one element"""
    x, x64 = sample((3,), mx.float32, seed=1)
    check.close(solution.plain(x), 2 * x64, dtype=mx.float32, terms=1, what="plain(x)")

@task(2)
@every_dtype
def test_axpby(solution, dtype):
    """a view that is not contiguous"""
    x, x64 = sample((3, 5), dtype, seed=1)
    y, y64 = sample((5, 3), dtype, seed=2)
    want = 2 * x64.T - 0.5 * y64
    check.close(solution.axpby(x.T, y, 2.0, -0.5), want, dtype=dtype, terms=2, what="axpby(x.T, y, 2, -0.5)")
'''

PLAIN = """
import mlx.core as mx


def plain(x: mx.array) -> mx.array:
    return x + x
"""


@pytest.fixture
def course(tmp_path: Path) -> Toy:
    course = toy.make(tmp_path / "a clone")
    course.write("checkpoints/day1_3/checkpoint.toml", DAY)
    course.write("checkpoints/day1_3/test_kernels.py", TESTS)
    for tree in ("reference", "exercises"):
        course.write(f"{tree}/week1/plain.py", PLAIN)
        course.write(f"{tree}/kernels/axpby.cpp", KERNEL.replace("task 6", "task 2"))
    return course


def never_built(source: str) -> str:
    """The same kernel as a state that no cache has. The cache is the user's: its glue is compiled already."""
    return f"{source}// {time.time_ns()}\n"


def grade(course: Toy, loop: str | None = None, **options) -> DayReport:
    """Grade day 1.3, with the kernel's loop replaced by `loop`."""
    if loop is not None:
        course.write("exercises/kernels/axpby.cpp", KERNEL.replace(LOOP, loop))
    return runner.grade(course.clone, course.course, course.course.day("1.3"), **options)


def outcome(report: DayReport, task: int) -> Outcome:
    return next(t.outcome for t in report.tasks if t.id == task)


def failure(report: DayReport) -> Failure:
    return next(c.failure for t in report.tasks for c in t.checks if c.failure)


def test_several_processes_build_at_once(course: Toy) -> None:
    folder = course.clone.reference / "kernels"
    course.write("reference/kernels/axpby.cpp", never_built(KERNEL))
    code = f"from pathlib import Path; from tinyllm.kernels import build; build.load(Path({str(folder)!r}))"
    with ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(subprocess.run, [sys.executable, "-P", "-c", code], capture_output=True)
            for _ in "abc"
        ]
    assert [r.result().returncode for r in runs] == [0, 0, 0]
    built = build.build(folder)
    assert list(built.parent.glob(f"{built.name}*")) == [built]  # and no half-copied one


def test_a_kernel_is_built_once_and_passes(course: Toy) -> None:
    assert grade(course).verdict is Verdict.PASSED
    again = grade(course)
    assert again.verdict is Verdict.PASSED
    assert again.seconds < 5


def test_an_edit_is_compiled_alone_and_graded(course: Toy) -> None:
    grade(course)
    began = time.monotonic()
    loop = "for (size_t i = 0; i < size; ++i) z[i] = static_cast<T>(alpha * float(x[i]));\n"
    report = grade(course, never_built(loop))
    assert time.monotonic() - began < 10
    assert outcome(report, 1) is Outcome.PASSED
    assert outcome(report, 2) is Outcome.FAILED
    assert failure(report).ratio is not None


def test_the_compilers_error_is_at_the_learners_line(course: Toy) -> None:
    report = grade(course, "  z[0] = alpa;\n")
    assert outcome(report, 1) is Outcome.PASSED
    assert outcome(report, 2) is Outcome.FAILED
    found = failure(report)
    assert found.summary.startswith("exercises/kernels/axpby.cpp does not compile: ")
    assert "alpa" in found.summary
    assert found.frames[0].path == "exercises/kernels/axpby.cpp"
    assert found.frames[0].source == "z[0] = alpa;"
    assert "alpa" in found.detail


def test_a_kernel_that_is_not_defined(course: Toy) -> None:
    course.write("exercises/kernels/axpby.cpp", '#include "bodies.h"\n')
    report = grade(course)
    assert outcome(report, 2) is Outcome.FAILED
    assert failure(report).summary == (
        "exercises/kernels/axpby.cpp does not compile: axpby is used, but not defined"
    )


def test_a_stub_is_not_started(course: Toy) -> None:
    source = KERNEL.replace("task 6", "task 2")
    stub = stubs.region_stub(source, "1.3", {2}, "reference/kernels/axpby.cpp")
    assert 'throw NotWritten("day 1.3, task 2: axpby");' in stub
    course.write("exercises/kernels/axpby.cpp", stub)
    report = grade(course)
    assert outcome(report, 2) is Outcome.NOT_STARTED
    assert outcome(report, 1) is Outcome.PASSED


def test_a_kernel_of_another_day_is_left_out(course: Toy) -> None:
    for tree in ("reference", "exercises"):
        course.write(f"{tree}/kernels/flash_attention.cpp", "this is no C++\n")
    assert grade(course).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("loop", "said"),
    [
        ("z[size] = T(1);", "axpby writes behind its output: element 105 of 105"),
        ("z[-1] = T(1);", "axpby writes in front of its output"),
    ],
)
def test_a_write_beside_the_output_is_told(course: Toy, loop: str, said: str) -> None:
    course.write(
        "checkpoints/day1_3/test_kernels.py", TESTS.replace("(3, 5)", "(7, 15)").replace("(5, 3)", "(15, 7)")
    )
    report = grade(course, LOOP + loop)
    assert outcome(report, 2) is Outcome.FAILED
    assert said in failure(report).summary + failure(report).got


def test_what_is_not_written_is_not_right(course: Toy) -> None:
    for _ in "ab":  # memory that an earlier run has left behind may hold the right numbers
        report = grade(course, LOOP.replace("i < size", "i < size - 1"))
        assert outcome(report, 2) is Outcome.FAILED
        assert "nan" in str(failure(report)).lower()


def test_a_crash_in_c_code_is_told(course: Toy) -> None:
    report = grade(course, "  const_cast<T*>(x)[size_t(1) << 40] = *y;\n")
    assert outcome(report, 1) is Outcome.PASSED
    assert outcome(report, 2) is Outcome.CRASHED
    assert "segmentation fault" in failure(report).summary


def test_a_loop_in_c_code_is_stopped(course: Toy) -> None:
    report = grade(course, "  for (volatile int i = 0;;) i = i + 1;\n", timeout=1.0)
    assert outcome(report, 1) is Outcome.PASSED
    assert outcome(report, 2) is Outcome.TIMED_OUT


def test_a_task_that_needs_no_kernel_builds_none(course: Toy) -> None:
    assert grade(course, "  this is no C++\n", only_task=1).verdict is Verdict.PASSED


def test_without_a_compiler_the_day_is_partial(
    course: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("CXX", raising=False)
    report = grade(course)
    assert report.verdict is Verdict.PARTIAL
    assert outcome(report, 1) is Outcome.PASSED
    assert outcome(report, 2) is Outcome.NOT_RUN_HERE
    assert "no C++ compiler" in failure(report).summary


def test_glue_that_does_not_compile_is_not_the_learners_fault(
    course: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glue = tmp_path / "cpp"
    glue.mkdir()
    (glue / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.27)\nproject(glue LANGUAGES CXX)\n"
        "add_library(tinyllm_native MODULE bindings.cpp)\n"
    )
    (glue / "bindings.cpp").write_text("nothing\n")
    monkeypatch.setattr(build, "GLUE", glue)
    monkeypatch.setenv("TINYLLM_CACHE", str(tmp_path))
    with pytest.raises(build.BuildFault, match="glue could not be built"):
        build.build(course.clone.reference / "kernels")


def test_which_kernels_a_tree_has_is_chosen_before_their_use(
    course: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_kernels", {})
    asked = native.of("tinyllm.toy_tree.week2.quantize")
    folder = course.clone.reference / "kernels"
    assert native.choose("tinyllm.toy_tree", folder, only=["axpby.cpp"]) is asked
    monkeypatch.setattr(native.build, "load", lambda *given: given)
    assert asked.load() == (folder, None, ["axpby.cpp"])
    with pytest.raises(RuntimeError, match="in use already"):
        native.choose("tinyllm.toy_tree", folder)


def test_old_leftovers_go(tmp_path: Path) -> None:
    cache = tmp_path
    (cache / "build-old").mkdir()
    (cache / "tinyllm_native-old.so").touch()
    for entry in ("build-old", "tinyllm_native-old.so"):
        os.utime(cache / entry, (0, 0))
    (cache / "tinyllm_native-new.so").touch()
    build._drop_old(cache)
    assert not (cache / "build-old").exists()
    assert not (cache / "tinyllm_native-old.so").exists()
    assert (cache / "tinyllm_native-new.so").exists()


def test_a_cache_that_cannot_be_written(course: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINYLLM_CACHE", str(tmp_path / "file"))
    report = grade(course)
    assert outcome(report, 2) is Outcome.NOT_RUN_HERE
    assert "Not a directory" in failure(report).summary
