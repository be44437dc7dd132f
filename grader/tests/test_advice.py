"""What a learner is told to type next."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyllm.grader import advice, catalog
from tinyllm.grader.clone import Clone
from tinyllm.grader.report import CheckResult, DayReport, Outcome, TaskResult, Verdict

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
