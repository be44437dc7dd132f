"""How each day stands: computed from the course, the log and the files as they are now. Nothing is stored.

Which attempts count. Those on `exercises`, where the day's own modules were not borrowed, and where the
verdict is not "environment". Borrowing other days is allowed and noted.

A task passes in an attempt when all its checks pass. A day passes when all its tasks have passed on the
same files: in one grading, or in several `--task` gradings with no edit between them. Its "own state"
is the content hashes of its modules; the day is "edited since" when no pass has the own state of now.

The latest result of a task is the last one on the own state of now, or, where there is none, the last
one at all. Results that say nothing about the day's code (not run here, not reached, blocked, course
fault) do not replace one that does. A day that passed once and has a task whose latest result is no pass
is "now broken".

Time: all events that name a day, of all days together, in order of time. The gap before each goes to its
day, unless it is longer than 30 minutes: then nobody gets it. The first event has no gap, so a day that
was graded once has no time yet. Regression attempts are left out: nobody was working on their day.

Mastery is the share of the day's check questions that were right when last answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from .attempts import Answer, Attempt, Diff, Event, Hint, Snapshot, TaskTally
from .files import MISSING, content_hash, short_hash
from .report import Outcome, Verdict

if TYPE_CHECKING:
    from .catalog import Course, Day
    from .clone import Clone

PAUSE = timedelta(minutes=30)  # a longer gap between two events is time spent elsewhere


class Status(StrEnum):
    NOT_STARTED = "not started"  # no check has had code of the learner's to judge
    IN_PROGRESS = "in progress"
    PARTIAL = "partial"  # all that could run passed, but not everything could
    PASSED = "passed"
    EDITED = "passed, edited since"
    BROKEN = "passed, now broken"


class Looked(StrEnum):
    """Whether the reference was looked at, set against the day's first pass."""

    NO = "no"
    BEFORE = "before passing"
    AFTER = "after passing"


class TaskStanding(NamedTuple):
    id: int
    title: str
    outcome: str  # the latest result, a value of report.Outcome; "" when there is none
    passed_checks: int  # in the latest result
    expected_checks: int
    passed_ever: bool
    hints: int  # different hints taken
    hints_shown: int  # hints taken, repeats included

    @property
    def passed(self) -> bool:
        """Whether the latest result is a pass."""
        return self.outcome == Outcome.PASSED


class Pass(NamedTuple):
    """The pass that stands: on the files as they are now if there is one, else on the last that passed."""

    at: datetime  # when this state of the files first passed
    files: str  # short hash of the day's modules (see files_hash)
    snapshot: str  # commit that holds them; "" when none was made
    borrowed: tuple[str, ...]  # days that were borrowed for it


class Standing(NamedTuple):
    day: str
    title: str
    week: int | None  # None for a retired day
    status: Status
    tasks: tuple[TaskStanding, ...]
    attempts: int  # gradings the learner asked for
    seconds: float  # time spent
    hints: int  # different hints taken
    hints_shown: int
    looked: Looked
    looked_at: datetime | None  # the first look at the reference
    first_passed_at: datetime | None
    passed: Pass | None
    edited: tuple[str, ...]  # modules that differ from what passed
    last_graded: Attempt | None  # the last counting attempt at the whole day
    retired: bool = False  # in the log, but no longer in the course
    questions: int = 0  # check questions that the day has
    answered: int = 0  # of these, how many have ever been answered
    mastered: int = 0  # of these, how many were right when last answered

    @property
    def tasks_passed(self) -> int:
        """Tasks whose latest result is a pass."""
        return sum(t.passed for t in self.tasks)

    @property
    def tasks_passed_ever(self) -> int:
        return sum(t.passed_ever for t in self.tasks)

    @property
    def finished(self) -> bool:
        """Whether the learner may go on: the day passed and is not known to be broken."""
        return self.status in (Status.PASSED, Status.EDITED)


def exercise_hashes(clone: Clone, course: Course) -> dict[str, str]:
    """The content hashes of every day's modules in exercises/, by path relative to the clone.

    The one function here that reads the disk.
    """
    modules = {m for day in course.days for m in day.modules}
    return {_exercise(m): content_hash(clone.exercises / m) for m in sorted(modules)}


def standings(course: Course, events: Iterable[Event], hashes: Mapping[str, str]) -> tuple[Standing, ...]:
    """Every day of the course in its order, then the days that only the log knows.

    `hashes` is what exercise_hashes gives; a module without one counts as missing.
    """
    ordered = sorted(events, key=lambda e: e.at)
    seconds = time_spent(ordered)
    snapshots = {e.attempt: e.commit for e in ordered if isinstance(e, Snapshot) and e.attempt}
    by_day: dict[str, list[Event]] = {day.id: [] for day in course.days}
    for event in ordered:
        if event.day:
            by_day.setdefault(event.day, []).append(event)
    subjects = [_Subject.of(day) for day in course.days]
    known = {day.id for day in course.days}
    subjects += [_Subject.retired(day, by_day[day]) for day in sorted(by_day.keys() - known, key=_order)]
    return tuple(_standing(s, by_day[s.day], snapshots, seconds.get(s.day, 0.0), hashes) for s in subjects)


def time_spent(events: Iterable[Event]) -> dict[str, float]:
    """Seconds of work by day id, from the gaps between events (see the module's docstring)."""
    work = sorted(
        (e for e in events if e.day and not (isinstance(e, Attempt) and e.regression)), key=lambda e: e.at
    )
    seconds: dict[str, float] = {}
    for before, event in pairwise(work):
        gap = event.at - before.at
        if gap <= PAUSE:
            seconds[event.day] = seconds.get(event.day, 0.0) + gap.total_seconds()
    return seconds


def next_unfinished(course: Course, standings: Sequence[Standing]) -> Day | None:
    """The first day that is neither finished nor partial, else the first partial one, else None.

    A partial day waits, because what is left of it needs another machine.
    """
    status = {s.day: s for s in standings}
    for day in course.days:
        if not status[day.id].finished and status[day.id].status is not Status.PARTIAL:
            return day
    return next((day for day in course.days if not status[day.id].finished), None)


def changed_since_graded(
    course: Course, standings: Sequence[Standing], hashes: Mapping[str, str], day: Day
) -> tuple[Day, ...]:
    """The days before `day` that have passed and whose files differ from those last graded as a whole.

    A day's files are its own modules, and of what it builds on those that its last attempt recorded
    (see upstream_files).
    """
    by_id = {s.day: s for s in standings}
    changed = []
    for earlier in course.before(day):
        standing = by_id[earlier.id]
        if standing.passed is None:
            continue
        if standing.last_graded is None:  # it passed in `--task` gradings only
            differs = bool(standing.edited)
        else:
            graded = standing.last_graded.files
            own = {_exercise(m) for m in earlier.modules}
            differs = any(hashes.get(p) != graded.get(p) for p in own | (graded.keys() & hashes.keys()))
        if differs:
            changed.append(earlier)
    return tuple(changed)


def upstream_files(
    course: Course, day: Day, hashes: Mapping[str, str], borrowed: Iterable[str] = ()
) -> dict[str, str]:
    """The hashes of the exercises that `day` runs besides its own: of the days it builds on, at any depth.

    Given to attempts.attempt_event, they let changed_since_graded see that a day's foundations were
    edited. Borrowed days are left out: their exercises did not run.
    """
    by_id = {d.id: d for d in course.days}
    found: set[str] = set()
    todo = list(day.builds_on)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += by_id[name].builds_on
    paths = {_exercise(m) for name in found - set(borrowed) for m in by_id[name].modules}
    return {p: hashes[p] for p in sorted(paths) if p in hashes}


def files_hash(digests: Mapping[str, str]) -> str:
    """One short hash for a day's modules: the file's own if there is one, else of "hash  module" lines."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    return short_hash(
        "".join(f"{digest}  {module}\n" for module, digest in digests.items()).encode(errors="replace")
    )


# --- one day

_State = tuple[str, ...]  # content hashes of the day's modules, in the spec's order

# Outcomes that say nothing about the day's own code.
_SILENT = frozenset(
    {
        Outcome.NOT_RUN_HERE.value,
        Outcome.NOT_REACHED.value,
        Outcome.COURSE_FAULT.value,
        Outcome.BLOCKED.value,
    }
)
# Outcomes that an untouched stub has.
_UNTOUCHED = _SILENT | {Outcome.NOT_STARTED.value}


class _Subject(NamedTuple):
    """What is asked of a day: from the course, or for a retired day from its own attempts."""

    day: str
    title: str
    week: int | None
    modules: tuple[str, ...]
    tasks: dict[int, tuple[str, int]]  # id -> title, checks
    questions: tuple[str, ...] = ()

    @staticmethod
    def of(day: Day) -> _Subject:
        tasks = {t.id: (t.title, t.checks) for t in day.tasks}
        return _Subject(day.id, day.title, day.week, day.modules, tasks, day.questions)

    @staticmethod
    def retired(day: str, events: Sequence[Event]) -> _Subject:
        whole = [e for e in events if isinstance(e, Attempt) and e.only_task is None]
        tasks = {n: ("", tally.expected) for n, tally in whole[-1].tasks.items()} if whole else {}
        return _Subject(day, "", None, (), tasks)

    def state_in(self, attempt: Attempt) -> _State:
        # "" is no hash: an attempt that did not record a module never matches the files of now.
        return tuple(attempt.files.get(_exercise(m), "") for m in self.modules)

    def state_now(self, hashes: Mapping[str, str]) -> _State:
        return tuple(hashes.get(_exercise(m), MISSING) for m in self.modules)


def _standing(
    subject: _Subject,
    events: Sequence[Event],
    snapshots: Mapping[str, str],
    seconds: float,
    hashes: Mapping[str, str],
) -> Standing:
    attempts = [e for e in events if isinstance(e, Attempt) and _counts(e)]
    now = subject.state_now(hashes)
    latest = _latest(attempts, [a for a in attempts if subject.state_in(a) == now])
    passes = _passes(attempts, set(subject.tasks))
    passes_now = [a for a in passes if subject.state_in(a) == now]
    whole = [a for a in attempts if a.only_task is None and a.verdict != Verdict.INTERRUPTED]
    hints = [(e.task, e.hint) for e in events if isinstance(e, Hint)]
    looks = [e.at for e in events if isinstance(e, Diff)]
    first_pass = passes[0].at if passes else None

    tasks = []
    for number, (title, checks) in subject.tasks.items():
        tally = latest.get(number)
        shown = [h for task, h in hints if task == number]
        tasks.append(
            TaskStanding(
                id=number,
                title=title,
                outcome=tally.outcome if tally else "",
                passed_checks=tally.passed if tally else 0,
                expected_checks=tally.expected if tally else checks,
                passed_ever=any(_passed(a, number) for a in attempts),
                hints=len(set(shown)),
                hints_shown=len(shown),
            )
        )

    last_answers = latest_answers(events)
    answers = [last_answers[q].right for q in subject.questions if q in last_answers]

    stands, edited = None, ()
    if passes:
        last = subject.state_in(passes[-1])
        stands = _stands(subject, passes_now or [a for a in passes if subject.state_in(a) == last], snapshots)
        if not passes_now:
            compared = zip(subject.modules, last, now, strict=True)
            edited = tuple(module for module, then, here in compared if then != here)

    failing = [t for t in tasks if not t.passed and t.outcome not in _SILENT]
    if passes:
        if failing:
            status = Status.BROKEN
        else:
            status = Status.PASSED if passes_now else Status.EDITED
    elif whole and whole[-1].verdict == Verdict.PARTIAL and not failing:
        status = Status.PARTIAL
    elif any(t.passed or t.outcome not in _UNTOUCHED for a in attempts for t in _graded(a).values()):
        status = Status.IN_PROGRESS
    else:
        status = Status.NOT_STARTED

    return Standing(
        day=subject.day,
        title=subject.title,
        week=subject.week,
        status=status,
        tasks=tuple(tasks),
        attempts=sum(not a.regression for a in attempts),
        seconds=seconds,
        hints=len(set(hints)),
        hints_shown=len(hints),
        looked=_looked(looks, first_pass),
        looked_at=looks[0] if looks else None,
        first_passed_at=first_pass,
        passed=stands,
        edited=edited,
        last_graded=whole[-1] if whole else None,
        retired=subject.week is None,
        questions=len(subject.questions),
        answered=len(answers),
        mastered=sum(answers),
    )


def latest_answers(events: Iterable[Event]) -> dict[str, Answer]:
    """The last answer to each question of one day, by its id; `events` are that day's, in order."""
    return {e.question: e for e in events if isinstance(e, Answer)}


def _counts(attempt: Attempt) -> bool:
    return (
        attempt.solution == "exercises"
        and attempt.day not in attempt.borrowed
        and attempt.verdict != Verdict.ENVIRONMENT
    )


def _graded(attempt: Attempt) -> dict[int, TaskTally]:
    """The tasks the attempt was about."""
    if attempt.only_task is None:
        return attempt.tasks
    return {n: t for n, t in attempt.tasks.items() if n == attempt.only_task}


def _passed(attempt: Attempt, task: int) -> bool:
    tally = _graded(attempt).get(task)
    return tally is not None and tally.outcome == Outcome.PASSED


def _latest(attempts: Sequence[Attempt], on_files_now: Sequence[Attempt]) -> dict[int, TaskTally]:
    """Each task's latest result. What weighs more comes later and overwrites."""
    latest: dict[int, TaskTally] = {}
    everything = [t for a in attempts for t in _graded(a).items()]
    latest.update((n, t) for n, t in everything if t.outcome in _SILENT)
    latest.update((n, t) for n, t in everything if t.outcome not in _SILENT)
    latest.update((n, t) for a in on_files_now for n, t in _graded(a).items() if t.outcome not in _SILENT)
    return latest


def _passes(attempts: Sequence[Attempt], wanted: set[int]) -> list[Attempt]:
    """The attempts with which every wanted task had passed on the same files, with the same days borrowed."""
    passed_on: dict[tuple[object, ...], set[int]] = {}
    passes = []
    for attempt in attempts:
        key = (tuple(sorted(attempt.files.items())), attempt.borrowed)
        passed = passed_on.setdefault(key, set())
        for number, tally in _graded(attempt).items():
            if tally.outcome == Outcome.PASSED:
                passed.add(number)
            elif tally.outcome not in _SILENT:
                passed.discard(number)
        if wanted and wanted <= passed and any(_passed(attempt, n) for n in wanted):
            passes.append(attempt)
    return passes


def _stands(subject: _Subject, same: Sequence[Attempt], snapshots: Mapping[str, str]) -> Pass:
    """Of the passes on one own state: the first that borrowed nothing, else the first."""
    chosen = next((a for a in same if not a.borrowed), same[0])
    commits = [snapshots[a.id] for a in (chosen, *same) if a.id in snapshots]
    digests = dict(zip(subject.modules, subject.state_in(chosen), strict=True))
    return Pass(
        at=chosen.at,
        files=files_hash(digests) if digests else "",
        snapshot=commits[0] if commits else "",
        borrowed=chosen.borrowed,
    )


def _looked(looks: Sequence[datetime], first_pass: datetime | None) -> Looked:
    if not looks:
        return Looked.NO
    return Looked.AFTER if first_pass is not None and looks[0] >= first_pass else Looked.BEFORE


def _exercise(module: str) -> str:
    return f"exercises/{module}"


def _order(day: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts "1.10" after "1.9", and copes with whatever a log may call a day."""
    return tuple((0, int(p), "") if p.isdecimal() and len(p) < 10 else (1, 0, p) for p in day.split("."))
