"""What a learner is told to type next."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyllm.grader import advice, catalog, runner
from tinyllm.grader.clone import Clone
from tinyllm.grader.report import CheckResult, DayReport, Outcome, TaskResult, Verdict
from tinyllm.grader.tests import toy

COURSE = catalog.load(Clone(Path(advice.__file__).resolve().parents[1]))


@pytest.mark.parametrize(
    ("only_task", "files"),
    [(1, "week2/kv_cache.py"), (4, "week2/qwen2_model.py"), (5, "week2/generation.py")],
)
def test_a_task_that_nothing_is_written_of_is_sent_to_its_own_files(only_task: int, files: str) -> None:
    day = COURSE.day("2.1")
    report = DayReport(
        day=day.id,
        title=day.title,
        solution="exercises",
        graded=tuple(f"exercises/{module}" for module in day.modules),
        borrowed=(),
        only_task=only_task,
        tasks=(TaskResult(only_task, "", 1, (CheckResult("test_a", only_task, "a", Outcome.NOT_STARTED),)),),
        verdict=Verdict.NOT_PASSED,
        seconds=1.0,
    )
    assert f"Then fill in exercises/{files} and run this again." in advice.for_day(COURSE, day, report)


@pytest.mark.parametrize(
    ("top", "double", "followed"),
    [
        ("import not_there", "return x + x", False),
        ("raise ValueError(1)", "return x + x", False),
        ("", "return (x", False),
        ("", "return nx.exp(x)", True),
    ],
    ids=["import", "raise", "syntax", "in a call"],
)
def test_what_cannot_be_imported_is_not_to_be_followed(
    tmp_path: Path, top: str, double: str, followed: bool
) -> None:
    course = toy.make(tmp_path / "clone")
    course.sums(top=top, double=double)
    day = course.course.day("1.1")
    report = runner.grade(course.clone, course.course, day)
    told = advice.for_failures(day, report)
    assert [line.rpartition("grade ")[2] for line in told] == [
        "trace day1.1 --task 1",
        "replay day1.1 --task 1",
    ] * followed
