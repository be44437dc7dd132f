"""The tracker as one JSON document (progress.schema.json): what `list --json` and `report` are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from . import attempts, standing
from .attempts import Attempt, Event
from .standing import Standing

if TYPE_CHECKING:
    from .catalog import Course
    from .clone import Clone
    from .snapshots import Snapshot

SCHEMA_VERSION = 1


def of_clone(clone: Clone, course: Course) -> dict[str, Any]:
    """The document of the log and the exercises as they are now."""
    events, unreadable = attempts.read(clone)
    return document(course, events, standing.exercise_hashes(clone, course), unreadable)


def document(
    course: Course, events: Sequence[Event], hashes: Mapping[str, str], unreadable: Sequence[int] = ()
) -> dict[str, Any]:
    """The same input gives the same document: nothing in it is of now."""
    days = standing.standings(course, events, hashes)
    upcoming = standing.next_unfinished(course, days)
    answers = _answers(events)
    asked = {day.id: len(day.questions) for day in course.days}
    return {
        "schema": SCHEMA_VERSION,
        "course": course.title,
        "weeks": {str(week): title for week, title in course.weeks.items()},
        "next": upcoming.id if upcoming else None,
        "unreadable_lines": list(unreadable),
        "days": [_day(s, events, answers.get(s.day, {}), asked.get(s.day, 0)) for s in days],
    }


def _day(s: Standing, events: Sequence[Event], answers: Mapping[str, bool], asked: int) -> dict[str, Any]:
    mine = [e for e in events if isinstance(e, Attempt) and e.day == s.day and e.solution == "exercises"]
    return {
        "day": s.day,
        "title": s.title,
        "week": s.week,
        "retired": s.retired,
        "status": s.status.value,
        "finished": s.finished,
        "tasks": [
            {
                "task": t.id,
                "title": t.title,
                "outcome": t.outcome,
                "passed": t.passed,
                "passed_ever": t.passed_ever,
                "checks": {"expected": t.expected_checks, "passed": t.passed_checks},
                "hints": t.hints,
            }
            for t in s.tasks
        ],
        "attempts": s.attempts,
        "seconds": round(s.seconds, 3),
        "hints": s.hints,
        "reference": {"looked": s.looked.value, "at": _time(s.looked_at)},
        "questions": {
            "asked": getattr(s, "questions", 0) or asked,
            "answered": len(answers),
            "mastered": sum(answers.values()),
        },
        "first_passed_at": _time(s.first_passed_at),
        "passed": {
            "at": _time(s.passed.at),
            "files": s.passed.files,
            "snapshot": s.passed.snapshot,
            "borrowed": list(s.passed.borrowed),
        }
        if s.passed
        else None,
        "edited": list(s.edited),
        "gradings": [_grading(a) for a in sorted(mine, key=lambda a: (a.at, a.id))],
    }


def _grading(a: Attempt) -> dict[str, Any]:
    return {
        "at": _time(a.at),
        "verdict": a.verdict,
        "only_task": a.only_task,
        "borrowed": list(a.borrowed),
        "checks": {
            "expected": sum(t.expected for t in a.tasks.values()),
            "passed": sum(t.passed for t in a.tasks.values()),
        },
        "seconds": a.seconds,
        "regression": a.regression,
    }


def _answers(events: Sequence[Event]) -> dict[str, dict[str, bool]]:
    """By day, whether each check question was right when last answered. Read from the lines as they stand."""
    found: dict[str, dict[str, bool]] = {}
    for event in sorted(events, key=lambda e: e.at):
        question, right = event.data.get("question"), event.data.get("right")
        if event.kind == "answer" and isinstance(question, str) and isinstance(right, bool):
            found.setdefault(event.day, {})[question] = right
    return found


def of_snapshots(kept: Sequence[Snapshot]) -> dict[str, Any]:
    """What `history --json` prints, the newest first."""
    return {
        "schema": SCHEMA_VERSION,
        "snapshots": [
            {
                "number": s.number,
                "commit": s.id,
                "at": _time(s.when),
                "day": s.day,
                "verdict": s.verdict,
                "message": s.message,
            }
            for s in kept
        ],
    }


def _time(at: datetime | None) -> str | None:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z") if at else None
