"""`tinyllm-grade why`: the earlier day to blame, named from trials, on toy days and on the course's own."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tinyllm.grader import attempts, catalog, guilt, guilt_screen, runner
from tinyllm.grader.authoring import guilt_sweep
from tinyllm.grader.cli import main
from tinyllm.grader.clone import find_clone
from tinyllm.grader.guilt import Kind
from tinyllm.grader.render import Screen
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy
from tinyllm.grader.trials import Trials, Variant

WRONG_SUMS = "return mx.sum(x, axis=1) + 1"
WRONG_MEANS = toy.MEANS.replace("/ self.D", "/ (self.D + 1)")


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setattr(guilt_screen, "GRADE_SECONDS", 300.0)  # a busy machine is no reason to fail
    made = toy.make(tmp_path / "my clone")
    made.sums()
    made.write("exercises/week1/means.py", toy.MEANS)
    return made


def ask(course: Toy, day: str = "1.2", *, own: bool = False) -> tuple[guilt.Guilt, str]:
    """The answer, and the text of it; `own` asks the guilty day's own checks too."""
    with Trials(course.clone, course.course, course.course.day(day)) as trials:
        inquiry = guilt.Inquiry(trials, ask_own_checks=own)
        results = inquiry.all_checks()
        found = inquiry.find(results)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        guilt_screen.show(Screen(verbose=True), found, results)
    assert max(map(len, said.getvalue().splitlines())) <= 80
    return found, " ".join(said.getvalue().split())


def test_an_earlier_day_is_to_blame(course: Toy) -> None:
    course.sums(row_sums=WRONG_SUMS)
    done = course.grade("why", "1.2", "-v")
    assert done.returncode == 1
    assert done.stderr == ""
    assert "Day 1.2's own code is right; it fails because of day 1.1, row_sums." in done.stdout
    assert "exercises/week1/sums.py, row_sums" in done.stdout
    assert "day 1.1, task 2, fails too: each row is summed" in done.stdout
    assert "next       tinyllm-grade day1.1 --task 2" in done.stdout
    assert "0 of 1 pass with day 1.2's own code from the reference" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    logged = [e for e in attempts.read(course.clone)[0] if e.kind == "why"]
    assert [(e.day, e.data["guilty"]) for e in logged] == [("1.2", ["1.1"])]


def test_the_guilty_day_s_likely_mistake_stands_behind_the_colon(course: Toy) -> None:
    known = """
[[tasks.misconceptions]]
id = "one-more"
find = "mx.sum(x, axis=1)"
replace = "mx.sum(x, axis=1) + 1"
says = "This is what you get when one is added."
"""
    course.write("checkpoints/day1_1/checkpoint.toml", toy.DAY_1 + known)
    course.sums(row_sums="return 1 + mx.sum(x, axis=1)")
    _, said = ask(course, own=True)
    assert "because of day 1.1, row_sums: this is what you get when one is added." in said
    course.sums(row_sums="return mx.sum(x, axis=1) + 0.3")
    _, said = ask(course, own=True)
    assert "because of day 1.1, row_sums." in said


def test_a_failing_grade_says_so_by_itself(course: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    course.sums(row_sums=WRONG_SUMS)
    sentence = "Day 1.2's own code is right; it fails because of day 1.1, row_sums."
    monkeypatch.setenv("TINYLLM_ROOT", str(course.root))
    graded = CliRunner().invoke(main, ["day1.2"])
    assert graded.exit_code == 1
    assert graded.stdout.index("day1.2: not passed yet") < graded.stdout.index(sentence)
    unasked = CliRunner().invoke(main, ["day1.2", "--no-why", "--no-progress"])
    assert unasked.exit_code == 1
    assert sentence not in unasked.stdout


def test_no_more_is_said_where_the_earlier_day_was_graded_too(course: Toy) -> None:
    course.sums(row_sums=WRONG_SUMS)
    both = [runner.grade(course.clone, course.course, day) for day in course.course.days]
    for reports, expected in ((both, ""), (both[1:], "own code is right")):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            guilt_screen.after_grading(Screen(), course.clone, course.course, reports, record=False)
        assert (expected in said.getvalue()) if expected else said.getvalue() == ""


@pytest.mark.parametrize("module", ["sums", "means"])
def test_nothing_is_asked_where_a_file_is_no_python(course: Toy, module: str) -> None:
    course.write(f"exercises/week1/{module}.py", "def f(:\n")
    report = runner.grade(course.clone, course.course, course.course.day("1.2"))
    summary = next(c.failure.summary for t in report.tasks for c in t.checks if c.failure)
    assert f"exercises/week1/{module}.py has a syntax error on line 1" in summary
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        guilt_screen.after_grading(Screen(), course.clone, course.course, [report], record=False)
    assert said.getvalue() == ""


def test_the_days_own_code(course: Toy) -> None:
    course.write("exercises/week1/means.py", WRONG_MEANS)
    done = course.grade("why", "1.2", "--json", "--no-progress")
    assert done.returncode == 1
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["verdict"] == "own code"
    assert found["guilty"] == []
    assert found["own_code"]["at_fault"]
    assert found["exit_code"] == 1
    assert not attempts.read(course.clone)[0]
    report = runner.grade(course.clone, course.course, course.course.day("1.2"))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        guilt_screen.after_grading(Screen(), course.clone, course.course, [report])
    assert "Day 1.1 is not to blame" in said.getvalue()


def test_both_are_to_blame(course: Toy) -> None:
    course.sums(row_sums=WRONG_SUMS)
    course.write("exercises/week1/means.py", WRONG_MEANS)
    found, said = ask(course)
    assert found.kind is Kind.BOTH
    assert [(c.day.id, c.symbols) for c in found.culprits] == [("1.1", ("row_sums",))]
    assert "Two causes: day 1.2's own code, and day 1.1, row_sums." in said


def test_a_changed_signature_is_told(course: Toy) -> None:
    """The reference's module does not fit the learner's other one."""
    course.sums(row_sums="return mx.sum(x, axis=axis) + 1")
    sums = course.clone.exercises / "week1" / "sums.py"
    sums.write_text(sums.read_text().replace("row_sums(x: mx.array)", "row_sums(x: mx.array, *, axis: int)"))
    course.write("exercises/week1/means.py", toy.MEANS.replace("row_sums(x)", "row_sums(x, axis=1)"))
    found, said = ask(course)
    assert found.kind is Kind.BOTH
    assert "unexpected keyword argument 'axis'" in said
    assert "Were names or arguments changed?" in said


def test_an_earlier_day_that_is_not_written(course: Toy) -> None:
    course.write("exercises/week1/sums.py", toy.SUMS_STUB)
    found, said = ask(course)
    assert "Nothing is wrong in day 1.2; it stops at what is not written yet of day 1.1." in said
    assert "tinyllm-grade day1.1" in said
    assert found.trials == ()  # nothing had to be tried


def test_nothing_to_explain(course: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Day 1.2 passes" in ask(course)[1]
    course.write("exercises/week1/means.py", toy.MEANS_STUB)
    assert "Day 1.2 is not written yet" in ask(course)[1]
    course.sums(row_sums=WRONG_SUMS)
    assert "this day builds on no other" in ask(course, "1.1")[1]
    monkeypatch.setenv("TINYLLM_ROOT", str(course.root))
    assert CliRunner().invoke(main, ["why", "9.9"]).exit_code == 2
    assert CliRunner().invoke(main, ["why", "1.2", "--task", "7"]).exit_code == 2


def test_a_gap_in_the_earlier_days_checks(course: Toy) -> None:
    """Its own checks pass, yet it is its code: the function is named, and that they do not see it."""
    course.sums(row_sums="return mx.sum(x, axis=1) + (x.shape[0] == 4)")
    course.write("checkpoints/day1_2/test_means.py", toy.TESTS_2.replace("(3, 5)", "(4, 5)"))
    found, said = ask(course, own=True)
    assert found.culprits[0].symbols == ("row_sums",)
    assert "all 5 of day 1.1 pass: they do not see it" in said
    assert "tinyllm-grade diff day1.1 --task 2" in said


@pytest.mark.parametrize("end", ["while True: pass", "import os; os._exit(0)"], ids=["hang", "crash"])
def test_code_that_hangs_or_crashes(course: Toy, end: str) -> None:
    course.write("checkpoints/course.toml", toy.COURSE.replace("check_seconds = 3", "check_seconds = 0.5"))
    course.sums(row_sums=end)
    found, _ = ask(course)
    assert found.kind is Kind.EARLIER
    assert [c.day.id for c in found.culprits] == ["1.1"]


def test_a_module_that_cannot_be_imported(course: Toy) -> None:
    course.sums(top="import nowhere_at_all")
    assert [c.day.id for c in ask(course)[0].culprits] == ["1.1"]


def test_what_is_not_found_in_time_is_offered(course: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    course.sums(row_sums=WRONG_SUMS)
    report = runner.grade(course.clone, course.course, course.course.day("1.2"))
    monkeypatch.setattr(guilt_screen, "GRADE_SECONDS", 0.0)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        guilt_screen.after_grading(Screen(), course.clone, course.course, [report])
    assert "tinyllm-grade why day1.2" in said.getvalue()


def test_a_swapped_function_sees_the_learners_others(course: Toy) -> None:
    """One name from the reference's file; what it calls, and who calls it, stay the tree's."""
    course.write(
        "reference/week1/sums.py", toy.SUMS.replace("mx.sum(x, axis=1)", "mx.sum(double(x), axis=1) / 2")
    )
    course.sums(double="return 4 * x", row_sums="return x")
    with Trials(course.clone, course.course, course.course.day("1.1")) as trials:
        mended = trials.run(Variant(parts={"week1/sums.py": ("double",)}))
        assert [r.outcome for r in mended.values() if r.task == 1] == ["passed"] * 3
        assert "passed" not in [r.outcome for r in mended.values() if r.task == 2]
        broken = trials.run(Variant(parts={"week1/sums.py": ("row_sums",)}))
        assert "passed" not in [r.outcome for r in broken.values()]  # twice too much: the learner's double
        assert trials.boots == 1


def test_regions_of_a_kernel_are_swapped() -> None:
    mine = "a\n// [task 1\nwrong\n// task 1]\nb\n// [task 2\nmine\n// task 2]\nc"
    theirs = "x\n// [task 1\nright\nlonger\n// task 1]\ny\n// [task 2\ntheirs\n// task 2]\nz"
    assert guilt.with_regions(mine, theirs, [1]) == mine.replace("wrong", "right\nlonger")
    assert guilt.with_regions("no marks", theirs, [1]) is None


def test_planted_misconceptions_are_traced_to_their_day() -> None:
    """A few of `authoring why`'s plants, which tries them all."""
    clone = find_clone()
    course = catalog.load(clone)
    answers = []
    for name, wanted in CHOSEN.items():
        plants = [p for p in guilt_sweep.plants(course, course.day(name)) if p.mistake.id in wanted]
        assert len(plants) == len(wanted)
        answers += guilt_sweep.ask(clone, course, plants)
    print(guilt_sweep.table(answers))
    assert [a.told for a in answers if not a.right] == []
    assert sum(a.function for a in answers) >= len(answers) - 1


CHOSEN = {
    "1.3": {"second-sign-wrong", "sum-of-everything"},
    "1.4": {"weight-not-transposed"},
}
