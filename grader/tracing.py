"""`trace`: one check of a task, its code followed line by line in a child (tracing_child.py), as values."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import processes
from .catalog import Course, Day, Task
from .clone import Clone
from .errors import CourseError, EnvironmentFault, UsageError

POLL_SECONDS = 0.1
MOST_SECONDS = 60.0  # for the learner's code
YOURS = "running your code"  # the stage in which the learner's code runs


@dataclass(frozen=True)
class Trace:
    """What was seen of one call. `rows` are the listing: dictionaries with a "kind" (tracing_child.Rows)."""

    day: Day
    task: Task
    solution: str
    check: str
    check_id: str
    function: str
    place: str  # "exercises/week1/gqa.py:41"; "" for a function that is not Python
    native: bool
    passes: bool
    why: str  # why the check fails
    rows: tuple[Mapping[str, Any], ...]
    odd: Mapping[str, str]  # "nan", "inf": where the first one was made
    same: bool  # whether some row is marked as the reference's
    parted: str  # the first array that no line of the reference makes: "line 46, scores"
    result: str  # how the result differs from the reference's; "same"; "" where there is none
    prints: str

    @property
    def exit_code(self) -> int:
        return 0 if self.passes else 1


class Interrupted(Exception):
    """Ctrl-C, and the learner's line that was running, if one was."""


class NotFollowed(CourseError):
    """The learner's code cannot be followed: it is not written yet, does not import, does not end."""

    exit_code = 1


def trace(
    clone: Clone,
    course: Course,
    day: Day,
    task: Task,
    *,
    solution: str = "exercises",
    check: str = "",
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Trace:
    """Follow one call. Raises UsageError, EnvironmentFault, NotFollowed, and Interrupted on Ctrl-C."""
    job = {"root": str(clone.root), "day": day.id, "task": task.id, "solution": solution, "check": check}
    child = processes.Child("tinyllm.grader.tracing_child", job, cwd=clone.root)
    stage, found, problem, until = "starting", None, None, float("inf")
    tree = clone.tree(solution)

    def where(*, ask: bool) -> str:
        line = child.line_in(tree, ask=ask)
        return f"{clone.relative(line[0])}:{line[1]} in {line[2]}" if line else ""

    try:
        ended = False
        while found is None and problem is None and not ended:
            ended = child.ended
            for event in child.rest() if ended else child.read(POLL_SECONDS):
                match event["event"]:
                    case "stage":
                        stage = event["name"]
                        on_stage(stage)
                        until = time.monotonic() + MOST_SECONDS if stage == YOURS else float("inf")
                    case "problem":
                        problem = event
                    case "result":
                        found = event
            if time.monotonic() > until and found is None:
                place = where(ask=True) or "no line of yours"
                raise NotFollowed(
                    f"Still running after {MOST_SECONDS:.0f} s, and stopped. It was at {place}."
                )
        if problem is not None:
            kind = UsageError if problem["usage"] else NotFollowed
            raise kind(problem["message"], next_step=problem["next_step"])
        if found is None:
            said = processes.ending(child.process.returncode, "the trace")
            place = where(ask=False)
            text = f"{said} It was at {place}." if place else f"{said} Stage: {stage}."
            raise EnvironmentFault(text, next_step=f"tinyllm-grade {day.name} --task {task.id}")
        keys = (
            "check",
            "check_id",
            "function",
            "place",
            "native",
            "passes",
            "why",
            "odd",
            "same",
            "parted",
            "result",
        )
        return Trace(
            day, task, solution, rows=tuple(found["rows"]), prints=child.prints.text(),
            **{key: found[key] for key in keys},
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(where(ask=True) if stage == YOURS else "") from None
    finally:
        child.end()
