"""Says of a stub that was reached which day and task it is, what else is unfinished, and what to type."""

from __future__ import annotations

from collections.abc import Sequence

from .catalog import Course, Day
from .clone import Clone
from .words import spans


def not_written(
    clone: Clone,
    course: Course,
    solution: str,
    borrow: Sequence[Day],
    needs: Sequence[str],
    stub: tuple[str, int],
    *,
    beyond: str = "",
) -> tuple[str, str]:
    """The message and the next step.

    needs: ids of the days whose code was wanted. stub: the day's id and the task that was reached; when it is
    not among those, `beyond` says what it is wanted for ("with --temp above 0 ").
    """
    day = course.day(stub[0])
    title = next((t.title for t in day.tasks if t.id == stub[1]), day.title)
    known = [d.id for d in course.days]
    message = f"Day {day.id}, task {stub[1]} ({title}) is not written yet. "
    message += f"This needs day{'s' * (len(needs) != 1)} {spans(needs, known)}"
    message += f", and {beyond}day {day.id}." if day.id not in needs else "."
    others = [d.id for d in _stubs(clone, course, solution, borrow, needs) if d != day]
    if others:
        message += f" Unfinished too: {spans(others, known)}."
    unfinished = [d for d in course.days if d == day or d.id in others]
    lacking = [d for d in course.days if d in unfinished or d in borrow]
    options = " ".join(f"--borrow {d.id}" for d in lacking)
    other_way = f"{options}, or --solution reference" if len(lacking) < 5 else "--solution reference"
    return message, f"tinyllm-grade {unfinished[0].name}\nor for now: {other_way}"


def _stubs(
    clone: Clone, course: Course, solution: str, borrow: Sequence[Day], needs: Sequence[str]
) -> list[Day]:
    """Of the days `needs`, those in whose modules a stub's own words still stand."""
    found = []
    for day in course.days:
        if day.id in needs and day not in borrow:
            files = [clone.tree(solution) / m for m in day.modules]
            texts = [f.read_text(encoding="utf-8", errors="replace") for f in files if f.is_file()]
            if any(f'("day {day.id}, task' in t for t in texts):
                found.append(day)
    return found
