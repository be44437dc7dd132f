"""A learner who does tasks of week 1 wrong once is told what is wrong, and passes when they are right."""

from __future__ import annotations

import pytest

from tinyllm.grader import catalog
from tinyllm.grader.authoring import rehearsal, scratch
from tinyllm.grader.clone import find_clone
from tinyllm.grader.errors import SpecError

SEED, TASKS = 3, 2
HOME = find_clone()
COURSE = catalog.load(HOME)


def test_some_tasks_wrong_and_then_right() -> None:
    turns = list(rehearsal.play(HOME, COURSE.select("week1"), SEED, TASKS))
    assert [turn for turn in turns if isinstance(turn, str)] == []
    assert [turn.faults for turn in turns] == [()] * TASKS
    for turn in turns:
        assert turn.task.title in turn.told
        assert turn.named, turn.told


@pytest.mark.parametrize("day", COURSE.select("week1"), ids=lambda day: day.name)
def test_every_task_can_be_written_wrong_alone(day: catalog.Day) -> None:
    """Each has a misconception that shows while the later tasks are stubs."""
    for task in day.tasks:
        done = {other.id for other in day.tasks if other.id <= task.id}
        right = scratch.sources(HOME, COURSE, day, done)
        wrong = [scratch.sources(HOME, COURSE, day, done, mistake) for mistake in task.misconceptions]
        assert any(sources != right for sources in wrong)
        for sources in [right, *wrong]:
            for module, text in sources.items():
                if module.endswith(".py"):
                    compile(text, module, "exec")


def test_a_symbol_that_is_not_there_is_told() -> None:
    """What stays as it is would be right code in a task that is to be wrong."""
    task = COURSE.day("1.1").tasks[0]
    module, name = task.symbols[0].module, task.symbols[0].name
    there = (HOME.reference / module).read_text(encoding="utf-8")
    for text, stub in ((there, "x = 1\n"), ("x = 1\n", there)):
        with pytest.raises(SpecError, match=f"{module} has no {name}, which a task lists"):
            scratch._undone(text, stub, module, task, ())


def test_what_is_no_answer_is_told() -> None:
    day = COURSE.day("1.1")
    task = day.tasks[0]
    faults = list(rehearsal._faults("Traceback\n" + "x" * 81, 0, day, task))
    assert faults[:2] == ["the exit code is 0, not 1", "a traceback"]
    assert faults[2:5] == [
        "nothing says that task 1 failed",
        "nothing says what to type next",
        "there is no verdict",
    ]
    assert faults[5].startswith("a line of 81 columns")
