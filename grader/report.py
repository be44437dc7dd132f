"""What a grading run found, as values: the checks, the tasks, the day.

Everything that prints, logs or exports a result reads these; nothing here knows a terminal or a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """What became of one check. Only PASSED counts towards a pass."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_STARTED = "not started"  # the task's own stub raised
    BLOCKED = "blocked"  # an unfinished earlier day or task stopped it
    REFUSED = "refused"  # a forbidden API was used
    CRASHED = "crashed"  # the process died: a segfault, os._exit, sys.exit
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    NOT_RUN_HERE = "not run here"  # this machine lacks something the check needs
    NOT_REACHED = "not reached"  # the run ended before the check had its turn
    COURSE_FAULT = "course fault"  # the check itself is wrong, not the learner's code


@dataclass(frozen=True)
class ArrayNote:
    """One value in a learner's frame. `shape` and `dtype` are empty for what is no array."""

    name: str
    shape: str = ""  # "(2, 5, 8)"
    dtype: str = ""  # "float32"
    value: str = ""  # for scalars and short values
    note: str = ""  # "has nan", "has inf"


@dataclass(frozen=True)
class Frame:
    """A line of learner code that took part in a failure."""

    path: str  # relative to the clone's root where possible
    line: int
    function: str
    source: str
    values: tuple[ArrayNote, ...] = ()

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Frame:
        """A frame out of the dictionary that it was sent as."""
        return cls(**{**data, "values": tuple(ArrayNote(**v) for v in data["values"])})


@dataclass(frozen=True)
class Failure:
    """Why a check did not pass, in the course's terms."""

    summary: str  # one sentence: what is wrong
    checked: str = ""  # what was called, with shapes and dtype
    expected: str = ""
    got: str = ""
    where: str = ""  # the first and the worst place
    error: str = ""  # largest error and tolerance, as text
    ratio: float | None = None  # largest error / tolerance; None when the comparison is exact
    fact: str = ""  # the convention that the check relies on
    needs_day: str = ""  # the unfinished earlier day that stopped the check
    frames: tuple[Frame, ...] = ()  # learner frames, outermost first
    prints: str = ""  # what the learner's code printed, head and tail
    detail: str = ""  # the long story for -v: traceback, stack dump


@dataclass(frozen=True)
class CheckResult:
    id: str  # pytest's node name, e.g. "test_softmax_rows[float16]"
    task: int
    title: str  # a sentence
    outcome: Outcome
    seconds: float = 0.0
    ratio: float | None = None  # largest error / tolerance among the check's comparisons, when it passed
    failure: Failure | None = None


@dataclass(frozen=True)
class TaskResult:
    id: int
    title: str
    expected: int  # checks that the spec says this task has
    checks: tuple[CheckResult, ...]

    @property
    def passed(self) -> int:
        return sum(c.outcome is Outcome.PASSED for c in self.checks)

    @property
    def outcome(self) -> Outcome:
        """PASSED only when every expected check passed; else the most telling of the others.

        NOT_STARTED only when nothing else went wrong: a task half written is FAILED.
        """
        if self.passed == self.expected == len(self.checks):
            return Outcome.PASSED
        seen = {c.outcome for c in self.checks}
        for outcome in SEVERITY:
            if outcome in seen:
                return outcome
        return Outcome.NOT_REACHED  # fewer checks reported than the spec promises


# The order in which one outcome among a task's checks speaks for the task.
SEVERITY = (
    Outcome.COURSE_FAULT,
    Outcome.CRASHED,
    Outcome.OUT_OF_MEMORY,
    Outcome.TIMED_OUT,
    Outcome.REFUSED,
    Outcome.FAILED,
    Outcome.BLOCKED,
    Outcome.NOT_STARTED,
    Outcome.NOT_REACHED,
    Outcome.NOT_RUN_HERE,
)


@dataclass(frozen=True)
class Tampering:
    """Something, found with --strict, that makes a result say nothing about the learner's code."""

    kind: (
        str  # "edited", "added", "missing", "hook", "package", "reference", "reaches", "patched", "pipe", ...
    )
    what: str  # a sentence without its end
    path: str = ""  # relative to the clone's root where possible
    line: int = 0  # 0 when no line is known
    source: str = ""  # that line


class Verdict(StrEnum):
    PASSED = "passed"
    NOT_PASSED = "not passed"
    PARTIAL = "partial"  # everything that could run here passed, but not everything could
    INTERRUPTED = "interrupted"
    ENVIRONMENT = "environment"  # the machine or the course is at fault
    REFUSED = "refused"  # with --strict: the result says nothing about the code

    @property
    def exit_code(self) -> int:
        return {"passed": 0, "environment": 3, "refused": 4, "interrupted": 130}.get(self.value, 1)


@dataclass(frozen=True)
class LikelyMistake:
    """A mistake that gives just the outputs that a failing task gave, or two made at once."""

    task: int
    mistakes: tuple[str, ...]  # ids of misconceptions of the day
    says: tuple[str, ...]  # a sentence for each
    lessons: tuple[str, ...]  # headings of the lesson that explain them
    or_says: tuple[str, ...]  # sentences of others that the task's checks cannot tell from it
    through: int | None  # the task whose code holds it, where that is another one
    checks: int  # failing checks that it explains: all there are


@dataclass(frozen=True)
class DayReport:
    """One grading of one day."""

    day: str  # "1.3"
    title: str
    solution: str  # "exercises" or "reference"
    graded: tuple[str, ...]  # files graded, relative to the clone's root
    borrowed: tuple[str, ...]  # day ids whose modules came from the reference
    only_task: int | None  # --task N
    tasks: tuple[TaskResult, ...]
    verdict: Verdict
    seconds: float
    files: dict[str, str] = field(default_factory=dict)  # relative path -> content hash
    problem: str = ""  # why the verdict is ENVIRONMENT or INTERRUPTED
    tampering: tuple[Tampering, ...] = ()  # why it is REFUSED
    likely: tuple[LikelyMistake, ...] = ()  # looked for after the verdict

    @property
    def expected(self) -> int:
        return sum(t.expected for t in self.tasks)

    @property
    def ran(self) -> int:
        """Checks that came to a verdict of their own."""
        silent = {Outcome.NOT_RUN_HERE, Outcome.NOT_REACHED}
        return sum(c.outcome not in silent for t in self.tasks for c in t.checks)

    @property
    def passed(self) -> int:
        return sum(t.passed for t in self.tasks)


def verdict_of(tasks: tuple[TaskResult, ...]) -> Verdict:
    """The day's verdict from its tasks. A check that reported nothing is never a pass."""
    outcomes = {t.outcome for t in tasks}
    if outcomes == {Outcome.PASSED}:
        return Verdict.PASSED
    if Outcome.COURSE_FAULT in outcomes:
        return Verdict.ENVIRONMENT
    if outcomes <= {Outcome.PASSED, Outcome.NOT_RUN_HERE}:
        return Verdict.PARTIAL
    return Verdict.NOT_PASSED
