"""A day's tests under plain pytest, with the plugin alone: they say the same as the grader."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tinyllm.grader import runner
from tinyllm.grader.report import DayReport, Outcome
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy
from tinyllm.grader.warm import Warm


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """What day 1.1 is graded from: its forks have imported already what takes a child a second."""
    made = toy.make(tmp_path_factory.mktemp("plugin"))
    with Warm(made.clone, made.course.day("1.1")) as warm:
        yield warm


@pytest.fixture
def course(warm: Warm) -> Toy:
    course = Toy(warm.clone)
    course.write("exercises/week1/sums.py", toy.SUMS_STUB)
    return course


def bare(course: Toy, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "pytest", "-p", "tinyllm.grader.plugin", "-c", os.devnull, "-q"]
    return subprocess.run(
        [*command, f"--rootdir={course.root}", *arguments],
        cwd=course.root,
        env=course.environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_reference_passes_under_plain_pytest(course: Toy) -> None:
    done = bare(course, "--solution", "reference", "checkpoints/day1_1")
    assert done.returncode == 0
    assert "5 passed" in done.stdout


def test_a_wrong_answer_and_a_refusal_fail_under_plain_pytest(course: Toy) -> None:
    course.sums(double="return x", row_sums="import numpy\n    return mx.sum(x, axis=1)")
    done = bare(course, "checkpoints/day1_1")
    assert done.returncode == 1
    assert "5 failed" in done.stdout
    assert "numpy is used, which this day refuses" in done.stdout


def test_the_tests_of_one_day_are_named(course: Toy) -> None:
    done = bare(course, "checkpoints")
    assert done.returncode == 4
    assert "exactly one day" in done.stderr
    assert bare(course, "--solution", "reference", "checkpoints/day1_2/test_means.py").returncode == 0


def test_collecting_imports_no_solution(course: Toy) -> None:
    course.sums(top="raise SystemExit")
    done = bare(course, "--collect-only", "checkpoints/day1_1")
    assert done.returncode == 0
    assert "test_double[float32]" in done.stdout


@pytest.fixture
def grade(course: Toy, warm: Warm) -> Callable[[], DayReport]:
    return lambda: runner.grade(course.clone, course.course, warm.day, launch=warm.launch)


def outcome(report, task: int) -> Outcome:
    return next(t.outcome for t in report.tasks if t.id == task)


def failure(report, task: int):
    return next(c.failure for t in report.tasks if t.id == task for c in t.checks if c.failure)


@pytest.mark.parametrize(
    "top",
    [
        "try:\n    import numpy\nexcept Exception:\n    pass",
        "from mlx.core.fast import rms_norm",
        "import mlx.core.fast as quick\nnorm = quick.rms_norm",
    ],
)
def test_a_forbidden_import_refuses_the_whole_module(
    course: Toy, grade: Callable[[], DayReport], top: str
) -> None:
    course.sums(top=top)
    report = grade()
    assert outcome(report, 1) is outcome(report, 2) is Outcome.REFUSED
    assert failure(report, 1).frames[0].line in (4, 5, 6)


def test_a_refusal_that_the_code_catches_still_counts(course: Toy, grade: Callable[[], DayReport]) -> None:
    body = "name = 'rms_' + 'norm'\n    try:\n        getattr(mx.fast, name)(x, None, 1e-5)\n"
    course.sums(double=f"{body}    except Exception:\n        pass\n    return x + x")
    report = grade()
    assert outcome(report, 1) is Outcome.REFUSED
    assert outcome(report, 2) is Outcome.PASSED
    assert "getattr" in failure(report, 1).frames[-1].source


def test_a_forbidden_line_that_never_runs_is_found_in_its_task_only(
    course: Toy, grade: Callable[[], DayReport]
) -> None:
    course.sums(
        row_sums="if x.size < 0:\n        mx.fast.rms_norm(x, None, 1e-5)\n    return mx.sum(x, axis=1)"
    )
    report = grade()
    assert outcome(report, 1) is Outcome.PASSED
    assert outcome(report, 2) is Outcome.REFUSED
    assert failure(report, 2).frames[0].source == "mx.fast.rms_norm(x, None, 1e-5)"


def test_a_forbidden_function_handed_on_is_refused(course: Toy, grade: Callable[[], DayReport]) -> None:
    course.sums()
    text = toy.SUMS.replace('def double(x: mx.array) -> mx.array:\n    """Twice x. ', 'def old(x):\n    """')
    course.write("exercises/week1/sums.py", f"{text}\n\ndouble = mx.fast.rms_norm\n")
    assert outcome(grade(), 1) is Outcome.REFUSED


def test_a_call_that_does_not_fit_shows_how_it_was_called(
    course: Toy, grade: Callable[[], DayReport]
) -> None:
    text = toy.SUMS.replace("def double(x: mx.array)", "def double(x, y)")
    course.write("exercises/week1/sums.py", text)
    report = grade()
    assert "missing 1 required positional argument: 'y'" in failure(report, 1).summary
    assert "solution.double(x)" in failure(report, 1).checked


def test_a_stub_of_the_same_day_blocks_what_needs_it(course: Toy, grade: Callable[[], DayReport]) -> None:
    course.write("exercises/week1/sums.py", toy.SUMS_STUB.replace(
        'raise NotImplementedError("day 1.1, task 2: row_sums")', "return double(x)"
    ))  # fmt: skip
    report = grade()
    assert outcome(report, 1) is Outcome.NOT_STARTED
    assert outcome(report, 2) is Outcome.BLOCKED
    assert failure(report, 2).summary == "Task 1 comes first: double is not written yet."
    assert failure(report, 2).needs_day == ""


def test_many_names_and_odd_values_in_a_frame(course: Toy, grade: Callable[[], DayReport]) -> None:
    body = (
        "pair = (x, x)\n    text = 'a' * 100\n    bad = x / 0\n    nan = bad - bad\n    ints = mx.arange(3)\n"
        "    other = object()\n    return x"
    )
    course.sums(double=body)
    frame = failure(grade(), 1).frames[-1]
    notes = {v.name: v for v in frame.values}
    assert notes["pair"].value == "tuple of (3, 5), (3, 5)"
    assert notes["text"].value.endswith("...")
    assert notes["bad"].note == "has inf"
    assert notes["nan"].note == "has nan"
    assert (notes["ints"].shape, notes["ints"].note) == ("(3,)", "")
    assert "other" not in notes


def test_arrays_of_an_object_are_shown_by_their_attribute(course: Toy) -> None:
    course.sums()
    course.write(
        "exercises/week1/means.py",
        toy.MEANS.replace("self.D = D", "self.D = D\n        self.w = mx.ones((D,))").replace(
            "/ self.D", "/ self.w[0]"
        ),
    )
    report = runner.grade(course.clone, course.course, course.course.day("1.2"))
    frame = failure(report, 1).frames[-1]
    assert [(v.name, v.shape) for v in frame.values] == [("self.w", "(5,)"), ("x", "(3, 5)")]


def test_values_whose_repr_raises_are_still_named() -> None:
    class HalfMade:
        def __repr__(self) -> str:
            return self.missing

    from tinyllm.grader import frames

    assert frames.describe("given", (HalfMade(), 1)).value == "tuple"
    assert frames.describe("given", HalfMade()).value == ""
