"""A new learner's way through some days, played with an imperfect hand: each task wrong once, then right.

Each task is first written with one of its misconceptions, which the seed chooses, and graded by the command
that a learner types. What it said is kept, with what is wrong with it as an answer to a person; then the task
is written right, and has to pass.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .. import attempts, catalog, standing
from ..catalog import Course, Day, Misconception, Task
from ..clone import Clone
from ..symbols import segment
from . import scratch

WIDTH = 80
LONGEST = 18  # lines of what is said of one failing check: about twelve, and some that had to be folded
TERMINAL = {"COLUMNS": str(WIDTH), "NO_COLOR": "1"}


@dataclass(frozen=True)
class Turn:
    """One task, done wrong and then right."""

    day: Day
    task: Task
    mistake: Misconception
    told: str  # what was printed for the wrong one
    named: bool  # whether that holds the mistake's sentence
    faults: tuple[str, ...]  # what it ought not to have said, or ought to have

    @property
    def title(self) -> str:
        return f"{self.day.name}, task {self.task.id}, {self.task.title}: {self.mistake.id}"


def play(clone: Clone, days: Sequence[Day], seed: int, most: int | None = None) -> Iterator[Turn | str]:
    """The tasks of the days in order, or `most` of them that the seed chooses.

    Between them, as a text each, what is wrong with a day as a whole.

    Raises SpecError where a misconception does not fit the reference.
    """
    chosen = [(day.id, task.id) for day in days for task in day.tasks if task.misconceptions]
    if most is not None:
        chosen = random.Random(seed).sample(chosen, min(most, len(chosen)))
    with scratch.clone_of(clone, models=True) as learner:
        course = catalog.load(learner)
        for day in course.days:
            if day.id in {of for of, _ in chosen}:
                for task in day.tasks:
                    if (day.id, task.id) in chosen:
                        yield _turn(learner, course, day, task, seed)
                if most is None:
                    yield from _whole(learner, course, day)
            scratch.write_tasks(learner, course, day, [task.id for task in day.tasks])
            if day.id == days[-1].id:
                return


def _turn(learner: Clone, course: Course, day: Day, task: Task, seed: int) -> Turn:
    done = _needed(learner, day, task)
    right = scratch.sources(learner, course, day, done)
    # A mistake in code that a later task is about is not made yet.
    mistakes = [m for m in task.misconceptions if scratch.sources(learner, course, day, done, m) != right]
    mistake = random.Random(f"{seed} {day.id} {task.id}").choice(mistakes)
    command = (day.name, "--task", str(task.id))
    scratch.write_tasks(learner, course, day, done, mistake)
    told, code = scratch.run(learner, *command, environment=TERMINAL)
    faults = list(_faults(told, code, day, task))
    scratch.write_tasks(learner, course, day, done)
    passed, code = scratch.run(learner, *command, environment=TERMINAL)
    if code != 0:
        faults.append(f"written right it does not pass (exit code {code}):\n{passed}")
    named = _plain(mistake.says) in _plain(told)
    return Turn(day, task, mistake, told, named, tuple(faults))


def _needed(learner: Clone, day: Day, task: Task) -> set[int]:
    """The tasks up to this one, and later ones whose code theirs calls in the reference."""
    done = {other.id for other in day.tasks if other.id <= task.id}
    while True:
        written = "\n".join(_code(learner, other) for other in day.tasks if other.id in done)
        called = {
            other.id
            for other in day.tasks
            for symbol in other.symbols
            if re.search(rf"\b{symbol.name.partition('.')[0]}\b", written)
        }
        if called <= done:
            return done
        done |= called


def _code(learner: Clone, task: Task) -> str:
    """The task's code in the reference; nothing for a kernel, which calls no other."""
    python = [symbol for symbol in task.symbols if symbol.module.endswith(".py")]
    texts = ((learner.reference / symbol.module).read_text(encoding="utf-8") for symbol in python)
    found = (segment(text, symbol.name) for text, symbol in zip(texts, python, strict=True))
    return "\n".join(part.text for part in found if part is not None)


def _faults(told: str, code: int, day: Day, task: Task) -> Iterator[str]:
    """What is wrong with the answer to a wrong task."""
    if code != 1:
        yield f"the exit code is {code}, not 1"
    if "Traceback" in told:
        yield "a traceback"
    if f"task {task.id}, failed" not in told:
        yield f"nothing says that task {task.id} failed"
    if f"tinyllm-grade hint {day.name} --task {task.id}" not in told:
        yield "nothing says what to type next"
    if f"{day.name}, task {task.id}: not passed" not in told:
        yield "there is no verdict"
    widest = max(told.splitlines(), key=len, default="")
    if len(widest) > WIDTH:
        yield f"a line of {len(widest)} columns: {widest}"
    for block in re.findall(rf"^  task {task.id}, failed.*?(?=^\S|^$)", told, flags=re.S | re.M):
        if len(block.splitlines()) > LONGEST:
            yield f"{len(block.splitlines())} lines about one check"


def _whole(learner: Clone, course: Course, day: Day) -> Iterator[str]:
    """Grade the day as it now stands. What is wrong with that, one text each."""
    told, code = scratch.run(learner, day.name, environment=TERMINAL)
    if code != 0:
        yield f"{day.name} as a whole does not pass (exit code {code}):\n{told}"
        return
    events, _ = attempts.read(learner)
    stands = standing.standings(course, events, standing.exercise_hashes(learner, course))
    if not next(s for s in stands if s.day == day.id).finished:
        yield f"{day.name} passed, and the log does not say so"


def _plain(text: str) -> str:
    return " ".join(text.split())
