"""`tinyllm-grade list`: how each day stands, one line a day."""

from __future__ import annotations

from . import attempts, standing
from .catalog import Course
from .clone import Clone
from .render import Screen
from .standing import Standing, Status
from .words import duration

STYLE = {
    Status.PASSED: "green",
    Status.EDITED: "yellow",
    Status.BROKEN: "red",
    Status.IN_PROGRESS: "bold",
    Status.PARTIAL: "yellow",
}


def show(screen: Screen, clone: Clone, course: Course) -> None:
    """Print every day by week: status, tasks passed, attempts, time, hints, mastery."""
    events, unreadable = attempts.read(clone)
    hashes = standing.exercise_hashes(clone, course)
    days = standing.standings(course, events, hashes)
    upcoming = standing.next_unfinished(course, days)
    for week in [*course.weeks, None]:
        rows = [s for s in days if s.week == week]
        if not rows:
            continue
        screen.line(f"week {week}  {course.weeks[week]}" if week else "retired days", "bold")
        for row in rows:
            mark = ">" if upcoming and row.day == upcoming.id else " "
            state = f"{row.status.value}, {row.tasks_passed}/{len(row.tasks)} tasks"
            room = screen.width - len(state) - 9
            title = row.title if len(row.title) <= room else row.title[: room - 3] + "..."
            screen.line(f"{mark} {row.day:<5}{title.ljust(room)}  {state}", STYLE.get(row.status))
            if facts := _facts(row):
                screen.line(f"       {facts}", "dim")
    if unreadable:
        lines = ", ".join(map(str, unreadable[:5]))
        screen.paragraph(f"progress/attempts.jsonl: line {lines} cannot be read and is left out.", "yellow")
    if upcoming:
        screen.line(f"next: tinyllm-grade read {upcoming.name}")


def _facts(row: Standing) -> str:
    """ "3 attempts, 42 min, 1 hint, 6 of 9 questions", as far as there is something to say."""
    facts = []
    if row.attempts:
        facts += [_count(row.attempts, "attempt"), duration(row.seconds)]
    if row.hints:
        facts.append(_count(row.hints, "hint"))
    if row.answered:
        facts.append(f"{row.mastered} of {row.questions} questions")
    return ", ".join(facts)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
