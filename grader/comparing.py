"""A forward pass of the learner's model beside one of the reference's: what `compare` finds, as values.

Both run in one child process (comparing_child.py), which dies with this one. A crash there is told in a
sentence, and a pass that does not end is ended by Ctrl-C.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from . import processes
from .catalog import Course, Day
from .clone import Clone
from .errors import EnvironmentFault, UsageError

POLL_SECONDS = 0.1


class State(StrEnum):
    """What became of one operation of the two passes."""

    AGREES = "agrees"
    FIRST = "first to differ"
    DIFFERS = "differs"  # after the first, as what it is given does
    NOT_CALLED = "not called"  # by the learner's code
    EXTRA = "only yours"  # the reference does not call it here
    NOT_REACHED = "not reached"  # the learner's pass ended before


@dataclass(frozen=True)
class Row:
    """One operation. `section` is "making the model", "layer 3", or "" where it stands in no layer."""

    section: str
    depth: int
    label: str
    shape: str  # of the reference's result, else of the learner's
    difference: float | None  # relative to the largest element; None where there is no number
    remark: str  # why there is none: "other shape"
    state: State


@dataclass(frozen=True)
class Finding:
    """What is told about the first operation that differs, or about what ended the learner's pass."""

    title: str
    details: tuple[tuple[str, str], ...]  # label and text
    next_step: str


@dataclass(frozen=True)
class Comparison:
    """What two passes have in common. `stop` is why the learner's did not come to its end."""

    day: str
    title: str
    solution: str
    model: str
    tokens: int
    layers: int
    dtype: str
    roundoffs: int
    tolerance: float
    rows: tuple[Row, ...] = ()
    fault: Finding | None = None
    stop: Finding | None = None
    prints: str = ""

    @property
    def exit_code(self) -> int:
        return 1 if self.fault or self.stop else 0


def comparable(course: Course, text: str | None) -> Day:
    """The day to compare: the one named, or the last that has a model. Raises UsageError naming those."""
    days = [d for d in course.days if d.compared is not None]
    names = " ".join(d.name for d in days) or "none so far"
    if text is None:
        if not days:
            raise UsageError("No day of this course has a model to compare.")
        return days[-1]
    day = course.day(text)
    if day.compared is None:
        raise UsageError(f"{day.name} has no model that could be compared. Days that have one: {names}")
    return day


def compare(
    clone: Clone,
    course: Course,
    day: Day,
    *,
    solution: str,
    model: Path,
    prompt: str,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Comparison:
    """Run both passes on `prompt` with the weights in the folder `model`.

    `on_stage` is told what begins. Raises UsageError, EnvironmentFault, and Interrupted on Ctrl-C.
    """
    child = _Passes(clone, course, day, solution, model, prompt, on_stage)
    try:
        return child.result()
    except KeyboardInterrupt:
        raise Interrupted(child.where()) from None
    finally:
        child.end()


class Interrupted(Exception):
    """Ctrl-C during a pass. `where` is the learner's line that was running, if one was."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where


class _Passes:
    """The child in which both passes run, and what it has told so far."""

    def __init__(
        self,
        clone: Clone,
        course: Course,
        day: Day,
        solution: str,
        model: Path,
        prompt: str,
        on_stage: Callable[[str], None],
    ) -> None:
        self.clone, self.course, self.day = clone, course, day
        self.solution, self.model = solution, model
        self.on_stage = on_stage
        self.stage = "starting"
        self.found: dict[str, Any] | None = None
        self.problem: dict[str, Any] | None = None
        job = {
            "root": str(clone.root),
            "day": day.id,
            "solution": solution,
            "model": str(model),
            "prompt": prompt,
        }
        self.child = processes.Child("tinyllm.grader.comparing_child", job, cwd=clone.root)

    def result(self) -> Comparison:
        while self.found is None and self.problem is None and not self.child.ended:
            self._take(self.child.read(POLL_SECONDS))
        self._take(self.child.rest() if self.child.ended else self.child.read(0))
        if self.problem is not None:
            kind = UsageError if self.problem["usage"] else EnvironmentFault
            raise kind(self.problem["message"])
        said = self.child.prints.text()
        if self.found is None:
            return self._died(said)
        return _comparison(self.day, self.solution, self.model, self.found, said)

    def _take(self, events: Sequence[dict[str, Any]]) -> None:
        for event in events:
            if event["event"] == "stage":
                self.stage = event["name"]
                self.on_stage(self.stage)
            elif event["event"] == "problem":
                self.problem = event
            elif event["event"] == "result":
                self.found = event

    def _died(self, said: str) -> Comparison:
        """The child ended without a result: the learner's doing only while the learner's code ran."""
        code = self.child.process.returncode
        why = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        if self.stage != YOURS:
            raise EnvironmentFault(f"The comparison ended {why} while {self.stage}:\n{said.strip()}")
        where = self._line(ask=False)
        details = (("your line", where),) if where else ()
        file = self.clone.root / where.partition(":")[0]
        day = day_of(self.course, self.day, file, self.clone.tree(self.solution))
        stop = Finding(f"Your pass ended the process {why}.", details, f"tinyllm-grade {day.name}")
        return Comparison(
            self.day.name,
            self.day.title,
            self.solution,
            self.model.name,
            0,
            0,
            "",
            0,
            0.0,
            stop=stop,
            prints=said,
        )

    def where(self) -> str:
        """The learner's line that is running, inside C code as well; "" where none is."""
        return self._line(ask=True) if self.stage == YOURS and not self.child.ended else ""

    def _line(self, *, ask: bool) -> str:
        found = self.child.line_in(self.clone.tree(self.solution), ask=ask)
        return f"{self.clone.relative(found[0])}:{found[1]} in {found[2]}" if found else ""

    def end(self) -> None:
        self.child.end()


def day_of(course: Course, day: Day, file: Path, tree: Path) -> Day:
    """The day, of those that `day` is built on, in which the learner writes `file`; else `day` itself."""
    modules = {tree / m: d for d in course.foundation(day) for m in d.modules}
    return modules.get(file, day)


YOURS = "running your pass"  # the stage in which the learner's code runs


def _comparison(day: Day, solution: str, model: Path, found: dict[str, Any], said: str) -> Comparison:
    rows = tuple(Row(**{**row, "state": State(row["state"])}) for row in found["rows"])
    return Comparison(
        day=day.name,
        title=day.title,
        solution=solution,
        model=model.name,
        rows=rows,
        fault=_finding(found["fault"]),
        stop=_finding(found["stop"]),
        prints=said,
        **{key: found[key] for key in ("tokens", "layers", "dtype", "roundoffs", "tolerance")},
    )


def _finding(data: dict[str, Any] | None) -> Finding | None:
    if data is None:
        return None
    return Finding(data["title"], tuple((a, b) for a, b in data["details"]), data["next_step"])
