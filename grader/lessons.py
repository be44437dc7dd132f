"""The text of a lesson, and the hints of a task one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .attempts import Event, Hint
from .catalog import Day, Task
from .errors import SpecError, UsageError


def text(day: Day) -> str:
    """The lesson's Markdown. Raises SpecError when the day has none."""
    try:
        return day.lesson.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{day.name} has no lesson that can be read: {error.strerror}.") from None


def section(day: Day, heading: str) -> str:
    """The section of the lesson whose heading is, or else holds, this text; with the sections below it.

    Raises UsageError naming the headings there are when none does.
    """
    lines = text(day).splitlines()
    headings: list[tuple[int, int, str]] = []  # line, level, text
    in_code = False
    for number, line in enumerate(lines):
        in_code ^= line.lstrip().startswith(("```", "~~~"))
        level = len(line) - len(line.lstrip("#"))
        if level and not in_code and line[level : level + 1] == " ":
            headings.append((number, level, line[level:].strip()))
    wanted = heading.strip().lower()
    fits = [h for h in headings if h[2].lower() == wanted] or [h for h in headings if wanted in h[2].lower()]
    if not fits or not wanted:
        known = "; ".join(h[2] for h in headings[1:])
        raise UsageError(f"{day.name}'s lesson has no section '{heading}'. Sections: {known}")
    first, level, _ = fits[0]
    last = next((n for n, other, _ in headings if n > first and other <= level), len(lines))
    return "\n".join(lines[first:last]).rstrip() + "\n"


@dataclass(frozen=True)
class NextHint:
    """A hint to show: `number` of `total`. `new` is False when all had been seen and the last comes again."""

    task: Task
    number: int
    total: int
    text: str
    new: bool


def next_hint(day: Day, task: Task, events: Sequence[Event]) -> NextHint:
    """The first hint of the task that the log does not know of yet; the last one when all are known."""
    seen = {e.hint for e in events if isinstance(e, Hint) and e.day == day.id and e.task == task.id}
    total = len(task.hints)
    if not total:
        raise SpecError(f"{day.name}, task {task.id} has no hints.")
    number = next((n for n in range(1, total + 1) if n not in seen), total)
    return NextHint(task, number, total, task.hints[number - 1], number not in seen)


def seen_hints(day: Day, task: Task, events: Sequence[Event]) -> list[str]:
    """The hints already taken, in order."""
    seen = {e.hint for e in events if isinstance(e, Hint) and e.day == day.id and e.task == task.id}
    return [h for n, h in enumerate(task.hints, 1) if n in seen]
