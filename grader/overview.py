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
    """Print every day by week: status, tasks passed, attempts, time, hints."""
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
            screen.line(f"{mark} {_row(row, screen.width - 2)}", STYLE.get(row.status))
    if unreadable:
        lines = ", ".join(map(str, unreadable[:5]))
        screen.paragraph(f"progress/attempts.jsonl: line {lines} cannot be read and is left out.", "yellow")
    if upcoming:
        screen.line(f"next: tinyllm-grade read {upcoming.name}")


def _row(row: Standing, width: int) -> str:
    tasks = f"{row.tasks_passed}/{len(row.tasks)} tasks"
    facts = []
    if row.attempts:
        facts.append(f"{row.attempts} attempt{'s' if row.attempts > 1 else ''}")
        facts.append(duration(row.seconds))
    if row.hints:
        facts.append(f"{row.hints} hint{'s' if row.hints > 1 else ''}")
    left = f"{row.day:<4} {row.status.value:<20} {tasks:<10}"
    right = ", ".join(facts)
    room = max(10, width - len(left) - len(right) - 3)
    title = row.title if len(row.title) <= room else row.title[: room - 3] + "..."
    return f"{left} {title.ljust(room)} {right}".rstrip()
