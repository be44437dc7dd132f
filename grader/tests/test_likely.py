"""The mistake behind a failure is named when its outputs are the learner's, and nothing is said otherwise."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tinyllm.grader import attempts, forks, likely, runner
from tinyllm.grader.authoring import naming
from tinyllm.grader.report import LikelyMistake
from tinyllm.grader.warm import Warm

from . import toy

Found = Callable[..., dict[int, LikelyMistake]]

MISTAKES = """
[[tasks.misconceptions]]
id = "adds-two"
find = "x + x"
replace = "x + 2"
says = "This is what you get when two is added."
lesson = "Doubling"
[[tasks.misconceptions]]
id = "adds-two-otherwise"
find = "return x + x"
replace = "return 2 + x"
says = "This is what you get when x is added to two."
[[tasks.misconceptions]]
id = "prints"
find = "    return x + x"
replace = "    print('x' * 100000)\\n    return x * x * x"
says = "This is what you get with a cube."
[[tasks.misconceptions]]
id = "raises"
find = "return x + x"
replace = "return x.reshape(2, 2) + x"
says = "This is what you get with a reshape."
[[tasks.misconceptions]]
id = "in-float32"
find = "return x + x"
replace = "return (x + x).astype(mx.float32)"
says = "This is what you get in float32."
"""

ROW_MISTAKES = """
[[tasks.misconceptions]]
id = "columns"
find = "axis=1)"
replace = "axis=0)"
says = "This is what you get with the columns."
[[tasks.misconceptions]]
id = "halves"
find = "axis=1)"
replace = "axis=1) / 2"
says = "This is what you get with half."
[[tasks.misconceptions]]
id = "squares-first"
find = "mx.sum(x,"
replace = "mx.sum(x * x,"
says = "This is what you get when x is squared."
"""

CHAINED = '''
@task(2)
def test_of_doubled(solution):
    """rows of doubled numbers are summed"""
    x, x64 = sample((3, 5), mx.float32, seed=4)
    got = solution.row_sums(solution.double(x))
    check.close(got, 2 * x64.sum(1), dtype=mx.float32, terms=5, what="row_sums(double(x))")
'''


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """What grades the toy course with the mistakes above; its second task also runs the first one's code."""
    made = toy.make(tmp_path_factory.mktemp("likely") / "a clone with spaces")
    spec = toy.DAY_1.replace("checks = 2", "checks = 3")
    first, second = spec.split("[[tasks]]\nid = 2")
    task_2 = second.partition("[[tasks.misconceptions]]")[0]
    made.write(
        "checkpoints/day1_1/checkpoint.toml", f"{first}{MISTAKES}\n[[tasks]]\nid = 2{task_2}{ROW_MISTAKES}"
    )
    made.write("checkpoints/day1_1/test_sums.py", toy.TESTS_1 + CHAINED)
    made.write(
        "checkpoints/day1_1/lesson.md",
        "# Sums\n\n## Doubling\n\nTwice.\n\n### Of arrays\n\nTwo.\n\n## Rows\n\nAll.\n",
    )
    with Warm(made.clone, made.course.days[0]) as warm:
        yield warm


@pytest.fixture
def course(warm: Warm) -> toy.Toy:
    """Each test writes its own sums.py into it."""
    return toy.Toy(warm.clone)


@pytest.fixture
def found(course: toy.Toy, warm: Warm) -> Found:
    """What is said about the learner's file with these bodies."""

    def found(**bodies: str) -> dict[int, LikelyMistake]:
        course.sums(**bodies)
        witness = course.root / "witness.jsonl"
        witness.unlink(missing_ok=True)
        report = runner.grade(course.clone, course.course, warm.day, witness=witness, launch=warm.launch)
        return {one.task: one for one in likely.explain(course.clone, warm.day, report, witness)}

    return found


def test_a_mistake_is_named_by_its_outputs_however_it_is_written(found: Found) -> None:
    (said,) = [one for one in found(double="y = x * 0.5\n    return (y + 1) * 2").values() if one.task == 1]
    assert said.mistakes == ("adds-two",)
    assert said.says == ("This is what you get when two is added.",)
    assert said.or_says == ("This is what you get when x is added to two.",)  # the same on every input
    assert said.lessons == ("Doubling",)
    assert said.checks == 3


def test_an_unknown_mistake_is_not_guessed_at(found: Found) -> None:
    assert found(double="return x + 2.01", row_sums="return mx.sum(x, axis=1) + 0.3") == {}


def test_a_mistake_in_another_task_s_code_is_told_as_such(found: Found) -> None:
    said = found(double="return x + 2")
    assert said[2].mistakes == ("adds-two",)
    assert said[2].through == 1


def test_two_mistakes_at_once_are_named_both(found: Found) -> None:
    said = found(row_sums="return mx.sum(x * x, axis=1) / 2")
    assert sorted(said[2].mistakes) == ["halves", "squares-first"]
    assert len(said[2].says) == 2


def test_an_exception_counts_with_its_type_and_its_words(found: Found) -> None:
    assert found(double="return mx.reshape(x, (2, 2)) * 2")[1].mistakes == ("raises",)
    assert found(double="raise ValueError('no')") == {}


def test_right_in_one_dtype_only(found: Found) -> None:
    said = found(double="return x.astype(mx.float32) * 2")
    assert said[1].mistakes == ("in-float32",)
    assert said[1].checks == 2  # float16 and bfloat16


def test_what_is_only_imprecise_is_not_called_a_mistake(found: Found) -> None:
    assert found(double="return x + x * 1.0000005") == {}


def test_a_stub_and_a_crash_are_not_explained(found: Found) -> None:
    assert found(double="raise NotImplementedError('day 1.1, task 1: double')").get(1) is None
    assert found(double="import os; os._exit(0)") == {}


def test_without_forks_the_same_is_said(course: toy.Toy) -> None:
    course.sums(double="return 2 + x")
    day, witness = course.course.days[0], course.root / "witness.jsonl"
    report = runner.grade(course.clone, course.course, day, only_task=1, witness=witness)
    graded = [likely.Graded("mine", report.tasks[0], witness)]
    (named,) = likely.search(course.clone, course.course.days[0], graded, pairs=False, forks=False)
    assert named.mistakes == ("adds-two",)
    assert named.alike == (("adds-two-otherwise",),)


def test_a_fork_that_hangs_or_dies_takes_nobody_with_it() -> None:
    def hang() -> None:
        while True:
            pass

    works = [hang, lambda: os._exit(3), lambda: 1 / 0, lambda: [1.5, None], lambda: print("x" * 10**6)]
    results = dict(forks.forked(works, at_once=2, limit=1, budget=forks.Budget(60, 2)))
    assert results == {0: None, 1: None, 2: None, 3: [1.5, None], 4: None}


def test_the_program_says_it_after_the_verdict_and_logs_it(course: toy.Toy) -> None:
    course.sums(double="return x + 2")
    done = course.grade("day1.1", timeout=300)
    assert done.returncode == 1, done.stderr
    verdict, _, after = done.stdout.partition("not passed yet")
    assert "likely mistake" not in verdict
    assert "This is what you get when two is added." in after
    assert 'tinyllm-grade read day1.1 --section "Doubling"' in after
    assert max(map(len, done.stdout.splitlines())) <= 80
    (event,) = [e for e in attempts.read(course.clone)[0] if isinstance(e, attempts.Likely)]
    assert event.tasks == {1: ("adds-two",), 2: ("adds-two",)}
    lesson = course.grade("read", "day1.1", "--section", "doubling").stdout
    assert lesson.startswith("## Doubling")
    assert "Of arrays" in lesson
    assert "Rows" not in lesson
    assert course.grade("read", "day1.1", "--section", "nowhere").returncode == 2


def test_json_holds_it(course: toy.Toy) -> None:
    course.sums(double="return x + 2", row_sums="return mx.sum(x, axis=1) + 0.3")
    done = course.grade("day1.1", "--json", "--no-progress", timeout=300)
    tasks = json.loads(done.stdout)["days"][0]["tasks"]
    assert tasks[0]["likely"]["mistakes"] == ["adds-two"]
    assert tasks[1]["likely"] is None


def test_misconceptions_graded_as_learners_are_named(course: toy.Toy, tmp_path: Path) -> None:
    day = course.course.days[0]
    trials = []
    for number, mistake in enumerate(day.task(2).misconceptions):
        source = (course.clone.reference / mistake.module).read_text().replace(mistake.find, mistake.replace)
        overlay = course.write(f"tmp/{number}.py", source)
        witness = tmp_path / f"{number}.jsonl"
        report = runner.grade(
            course.clone,
            course.course,
            day,
            solution="reference",
            overlays={mistake.module: overlay},
            only_task=2,
            witness=witness,
        )
        trials.append(naming.Trial(mistake.id, report.tasks[0], witness))
    named = naming.name(course.clone, day, trials, jobs=2)
    assert len(named.itself) == named.total == 3
    # What was graded as one and is another is found out.
    swapped = [naming.Trial("columns", trials[1].task, trials[1].witness), *trials[1:]]
    assert naming.name(course.clone, day, swapped, jobs=2).wrong
