"""One command's worth of grading: grade, log, show the verdict, then look after the rest.

The order matters. The attempt is in the log, on disk, before its verdict is printed; the git snapshot and
the tracker, which are slower and can be made again, come after.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from . import attempts, cases, likely, runner, standing, tracker
from .catalog import Course, Day
from .clone import Clone
from .errors import CourseError
from .report import DayReport, LikelyMistake, Outcome, Verdict

if TYPE_CHECKING:
    from .strict import Strict


@dataclass(frozen=True)
class Options:
    solution: str = "exercises"
    borrow: tuple[Day, ...] = ()
    only_task: int | None = None
    timeout: float | None = None  # seconds a check may take
    record: bool = True  # write the log, the tracker and snapshots
    how: Mapping[str, Any] = field(default_factory=dict)  # what runner.grade takes besides: launch, stop, ...
    strict: Strict | None = None  # grade a copy with the checks as published

    @property
    def recorded(self) -> bool:
        """Whether this grading is the learner's: grading the reference is not."""
        return self.record and self.solution == "exercises"


class Listener(Protocol):
    """Who is told what happens, as it happens."""

    def begin(self, day: Day) -> None: ...
    def event(self, event: runner.Event) -> None: ...
    def end(self, day: Day, report: DayReport, so_far: standing.Standing | None) -> None: ...
    def broken(self, day: Day, report: DayReport) -> None: ...
    def looking(self, done: int, total: int) -> None: ...
    def likely(self, day: Day, found: Sequence[LikelyMistake]) -> None: ...
    def notice(self, text: str) -> None: ...


@dataclass
class Graded:
    """What a command graded. `broken` are earlier days that had passed and no longer do."""

    reports: list[DayReport] = field(default_factory=list)
    broken: list[DayReport] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """The gravest of the days' exit codes: interrupted, refused, environment, not passed."""
        codes = {r.verdict.exit_code for r in self.reports}
        return next((c for c in (130, 4, 3, 1) if c in codes), 0)


def grade(clone: Clone, course: Course, days: Sequence[Day], options: Options, listener: Listener) -> Graded:
    """Grade `days` in order, record each, and tell the listener. Stops after an interruption."""
    graded = Graded()
    with tempfile.TemporaryDirectory(prefix="tinyllm-") as folder:
        _grade_days(clone, course, days, options, listener, graded, Path(folder))
    if options.recorded:
        tracker.update(clone, course)
    return graded


def _grade_days(
    clone: Clone,
    course: Course,
    days: Sequence[Day],
    options: Options,
    listener: Listener,
    graded: Graded,
    folder: Path,
) -> None:
    for day in days:
        listener.begin(day)
        hashes = standing.exercise_hashes(clone, course)  # of what is graded, not of an edit meanwhile
        began = time.time()
        witness = folder / f"{day.name}.jsonl"
        with ExitStack() as later:  # at its end the child has written what failed
            report = _grade_one(clone, course, day, options, listener, later, witness)
            graded.reports.append(report)
            event = _record(clone, course, report, options, hashes)
            so_far = _standing(clone, course, day) if event else None
            listener.end(day, report, so_far)
            if event:
                _keep_snapshot(clone, event, report, so_far, listener)
        if event:
            _keep_cases(clone, course, day, report, options, began)
        if report.verdict is Verdict.NOT_PASSED and options.strict is None:
            graded.reports[-1] = _look_for_mistakes(clone, day, report, witness, event, listener)
        if report.verdict is Verdict.INTERRUPTED:
            break
    else:
        if options.recorded and options.only_task is None and options.strict is None:
            graded.broken = _regrade_changed(clone, course, days, options, listener)


def _look_for_mistakes(
    clone: Clone, day: Day, report: DayReport, witness: Path, event: dict | None, listener: Listener
) -> DayReport:
    """The report with the likely mistakes, which the listener is told and the log keeps."""
    try:
        found = likely.explain(clone, day, report, witness, listener.looking)
    except KeyboardInterrupt:  # the verdict stands; only this is given up
        found = ()
    listener.likely(day, found)
    if found and event:
        attempts.append(clone, attempts.likely_event(found, day=day.id, attempt=event["id"]))
    return replace(report, likely=found)


def _grade_one(
    clone: Clone,
    course: Course,
    day: Day,
    options: Options,
    listener: Listener,
    later: ExitStack,
    witness: Path,
) -> DayReport:
    if options.strict is not None:
        return options.strict.grade(
            day,
            borrow=options.borrow,
            only_task=options.only_task,
            timeout=options.timeout,
            on_event=listener.event,
        )
    return runner.grade(
        clone,
        course,
        day,
        solution=options.solution,
        borrow=options.borrow,
        only_task=options.only_task,
        timeout=options.timeout,
        on_event=listener.event,
        cases="keep" if options.recorded else "",
        later=later,
        witness=witness,
        **options.how,
    )


def _keep_cases(
    clone: Clone, course: Course, day: Day, report: DayReport, options: Options, began: float
) -> None:
    """See to it that what failed is kept, also what a check that ended the child has taken with it."""
    lost = cases.lost(clone, day, report, began)
    if lost and report.verdict is not Verdict.INTERRUPTED:
        runner.grade(
            clone, course, day, borrow=options.borrow, timeout=options.timeout, cases="keep", only_ids=lost
        )
    cases.settle(clone, day, report, began)


def _record(
    clone: Clone,
    course: Course,
    report: DayReport,
    options: Options,
    hashes: dict[str, str],
    *,
    regression: bool = False,
) -> dict | None:
    """Append the attempt to the log; on return it is on disk. None when this grading is not recorded."""
    if not options.recorded:
        return None
    upstream = standing.upstream_files(course, course.day(report.day), hashes, report.borrowed)
    event = attempts.attempt_event(report, upstream=upstream, regression=regression)
    attempts.append(clone, event)
    return event


def _standing(clone: Clone, course: Course, day: Day) -> standing.Standing:
    events, _ = attempts.read(clone)
    hashes = standing.exercise_hashes(clone, course)
    return next(s for s in standing.standings(course, events, hashes) if s.day == day.id)


def _keep_snapshot(
    clone: Clone, event: dict, report: DayReport, so_far: standing.Standing | None, listener: Listener
) -> None:
    """Keep the graded state of exercises/ as a commit, and log which."""
    from . import snapshots

    message = f"day{report.day}: {report.verdict.value}, {report.passed} of {report.expected} checks"
    trailers = {"Day": report.day, "Verdict": report.verdict.value, "Attempt": event["id"]}
    try:
        commit = snapshots.take(clone, message, trailers)
    except snapshots.NoRepository as error:
        if so_far is not None and so_far.attempts == 1:  # say it once, not at every grading
            listener.notice(f"No snapshots of your code are kept: {error.message}")
        return
    if commit is None:  # there is no exercises/ folder at all
        return
    attempts.append(clone, attempts.snapshot_event(commit, day=report.day, attempt=event["id"]))


def _regrade_changed(
    clone: Clone, course: Course, days: Sequence[Day], options: Options, listener: Listener
) -> list[DayReport]:
    """Grade again, quietly, the earlier passed days whose files changed; return those that broke."""
    events, _ = attempts.read(clone)
    hashes = standing.exercise_hashes(clone, course)
    now = standing.standings(course, events, hashes)
    broken = []
    for day in standing.changed_since_graded(course, now, hashes, days[-1]):
        if day in days:
            continue
        stop = {k: v for k, v in options.how.items() if k == "stop"}
        report = runner.grade(clone, course, day, timeout=options.timeout, **stop)
        _record(clone, course, report, options, hashes, regression=True)
        if report.verdict in (Verdict.NOT_PASSED, Verdict.ENVIRONMENT):
            broken.append(report)
            listener.broken(day, report)
    return broken


def first_failing_task(report: DayReport) -> int:
    """The number of the first task that did not pass."""
    return next(t.id for t in report.tasks if t.outcome is not Outcome.PASSED)


def days_to_grade(clone: Clone, course: Course, text: str | None) -> tuple[Day, ...]:
    """The days that the command line means; without a name, the next unfinished one."""
    if text:
        return course.select(text)
    if not course.days:
        raise CourseError("This course has no days yet.")
    events, _ = attempts.read(clone)
    hashes = standing.exercise_hashes(clone, course)
    day = standing.next_unfinished(course, standing.standings(course, events, hashes))
    return (day or course.days[-1],)
