"""The likely mistake behind a failure: which of the course's misconceptions gives exactly these outputs.

This is the grader's end; the mistakes are run in a child (likely_child.py). Nothing is guessed: without a
mistake whose outputs equal the learner's in every check of the task, nothing is said.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import processes
from .catalog import Day, Misconception
from .clone import Clone
from .report import DayReport, LikelyMistake, Outcome, TaskResult

SINGLE_SECONDS = 10.0  # for the mistakes of one task, one at a time
COMPILED_SECONDS = 40.0  # the same where each has to be compiled; what was compiled before is in the cache
PAIR_SECONDS = 3.0  # for two at once, a task
BOOT_SECONDS = 60.0  # a cold disk
READ_SECONDS = 0.05

# Outcomes that say something about the code; those that say nothing. With any other nothing is explained.
TELLING = (Outcome.PASSED, Outcome.FAILED)
SILENT = (Outcome.NOT_STARTED, Outcome.BLOCKED, Outcome.NOT_RUN_HERE)

# Mistakes tried, of how many (0 at first). Called all the time; what it raises ends the search.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Graded:
    """A grading of one task whose outputs are to be explained: `file` holds its endings (witness.py)."""

    key: str
    task: TaskResult
    file: Path

    @property
    def can_be_explained(self) -> bool:
        """Whether every check came to a verdict, or was not written yet, and one failed."""
        outcomes = {check.outcome for check in self.task.checks}
        return Outcome.FAILED in outcomes and outcomes <= {*TELLING, *SILENT}

    def job(self) -> dict[str, Any]:
        ids = {o: [c.id for c in self.task.checks if c.outcome is o] for o in TELLING}
        return {
            "key": self.key,
            "task": self.task.id,
            "file": str(self.file),
            "passed": ids[Outcome.PASSED],
            "failed": ids[Outcome.FAILED],
        }


@dataclass(frozen=True)
class Named:
    """What came of one Graded: ids of the mistake, or of two made at once, and of those that the task's
    checks cannot tell from it. `checks` is how many failing checks it explains."""

    key: str
    task: int
    mistakes: tuple[str, ...]
    alike: tuple[tuple[str, ...], ...]
    checks: int


def explain(
    clone: Clone, day: Day, report: DayReport, witness: Path, progress: Progress = lambda done, total: None
) -> tuple[LikelyMistake, ...]:
    """The likely mistake of each failing task that has one. Raises nothing for anything the child does."""
    graded = [Graded("", task, witness) for task in report.tasks]
    named = list(search(clone, day, graded, pairs=True, progress=progress))
    return tuple(_in_words(day, one) for one in sorted(named, key=lambda one: one.task))


def search(
    clone: Clone,
    day: Day,
    graded: Sequence[Graded],
    *,
    pairs: bool,
    progress: Progress = lambda done, total: None,
    at_once: int = 0,
    forks: bool | None = None,
    trusted: Sequence[str] | None = None,
) -> Iterator[Named]:
    """What is found out about gradings of tasks of one day, as it is found out.

    pairs: whether two mistakes at once are tried where no single one is it. forks: see likely_child; None is
    what is safe here. With `trusted` the gradings are misconceptions, the keys their ids, and are told from
    each other only; of those in `trusted` what their gradings left behind is believed, and they are not run
    again.
    """
    explained = [one for one in graded if one.can_be_explained and day.task(one.task.id).misconceptions]
    if not explained or not witnessed(explained):
        return
    tasks = [day.task(number) for number in sorted({one.task.id for one in explained})]
    compiled = any(not module.endswith(".py") for module in day.modules)
    seconds = COMPILED_SECONDS if compiled else SINGLE_SECONDS
    seconds *= max(1, len(explained) / len(tasks))
    job: dict[str, Any] = {
        "root": str(clone.root),
        "day": day.id,
        "learners": [one.job() for one in explained],
        "at_once": at_once or max(1, os.cpu_count() or 1),
        "seconds": seconds,
        "pair_seconds": PAIR_SECONDS if pairs else 0.0,
    }
    if trusted is not None:
        job["trusted"] = list(trusted)
    if forks is not None:
        job["forks"] = forks
    until = time.monotonic() + BOOT_SECONDS + len(tasks) * 6 * (seconds + 3 * PAIR_SECONDS)
    child = processes.Child("tinyllm.grader.likely_child", job, cwd=clone.root)
    tried = 0, 0
    try:
        while time.monotonic() < until:
            ended = child.ended  # asked before reading: what it wrote last is still read
            progress(*tried)
            for event in child.read(READ_SECONDS):
                match event["event"]:
                    case "tried":
                        tried = event["done"], event["total"]
                    case "named":
                        yield _named(event)
                    case "end":
                        return
            if ended:
                return
    finally:
        child.end()


def witnessed(graded: Sequence[Graded]) -> bool:
    return any(one.file.is_file() for one in graded)


def _named(event: Mapping[str, Any]) -> Named:
    alike = tuple(tuple(ids) for ids in event["alike"])
    return Named(event["key"], event["task"], tuple(event["mistakes"]), alike, event["checks"])


def _in_words(day: Day, named: Named) -> LikelyMistake:
    of = {m.id: (task.id, m) for task in day.tasks for m in task.misconceptions}
    mistakes = [of[name][1] for name in named.mistakes]
    others = {of[name][0] for name in named.mistakes} - {named.task}
    # Those that cannot be told apart, and that say something else.
    said = {m.says for m in mistakes}
    alike = [of[ids[0]][1] for ids in named.alike if len(ids) == 1 and of[ids[0]][1].says not in said]
    return LikelyMistake(
        task=named.task,
        mistakes=named.mistakes,
        says=tuple(m.says for m in mistakes),
        lessons=_lessons(mistakes),
        or_says=tuple(dict.fromkeys(m.says for m in alike)),
        through=min(others, default=None),
        checks=named.checks,
    )


def _lessons(mistakes: Sequence[Misconception]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(m.lesson for m in mistakes if m.lesson))
