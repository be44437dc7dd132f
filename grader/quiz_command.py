"""What `tinyllm-grade quiz` does, from its options to its exit code."""

from __future__ import annotations

from typing import NamedTuple

from . import attempts, catalog, quiz, tracker
from .catalog import Course, Day
from .clone import Clone
from .errors import CourseError
from .render import Screen

OF_SEVERAL_DAYS = 10  # questions of a sitting about a week or all


class Options(NamedTuple):
    day: str | None
    most: int | None
    answers: bool
    seed: str
    as_json: bool
    record: bool


def run(clone: Clone, course: Course, screen: Screen, options: Options) -> int:
    """Ask the questions and print how it went; the exit code. Screen is stderr's with --json."""
    from .grading import days_to_grade

    days = days_to_grade(clone, course, options.day)
    questions = [(day, question) for day in days for question in catalog.questions(clone, day)]
    if not questions:
        raise CourseError(f"{', '.join(d.name for d in days)}: no check questions yet.")
    events, _ = attempts.read(clone)
    most = options.most or (OF_SEVERAL_DAYS if len(days) > 1 and not options.answers else None)
    sitting = quiz.choose(questions, events, options.seed, most)
    if options.answers:
        if options.as_json:
            print(quiz.print_json(sitting, with_answers=True))
        else:
            quiz.show_answers(screen, sitting)
        return 0
    reader = quiz.Reader(screen)
    first = days[0]
    title = f"{first.name}  {first.title}" if len(days) == 1 else f"{first.name} to {days[-1].name}"
    screen.line(title, "bold")
    kept = "every answer is kept at once" if options.record else "nothing is recorded"
    screen.paragraph(f"{len(sitting.items)} questions. ? shows an answer, q stops; {kept}.", "dim")
    try:
        quiz.ask(clone, sitting, screen, reader, record=options.record)
    finally:
        if options.record and sitting.answered:
            _bring_up_to_date(clone, course, sitting, days)
    if not sitting.answered and not reader.terminal and sitting.ended == "stopped":
        screen.line()
        screen.paragraph(
            "No answers came in. Pipe them, a line each, or run this in a terminal; --answers shows all."
        )
        screen.paragraph(f"The same numbers again: --seed {sitting.seed}", "dim")
    else:
        name = first.name if len(days) == 1 else options.day or "all"
        quiz.show_end(screen, sitting, days, name, kept=options.record)
    if options.as_json:
        print(quiz.print_json(sitting))
    return sitting.exit_code


def _bring_up_to_date(clone: Clone, course: Course, sitting: quiz.Sitting, days: tuple[Day, ...]) -> None:
    updated = tracker.update(clone, course)
    asked = {item.day.id for item in sitting.items}
    sitting.mastery = {
        s.day: (s.mastered, s.questions) for s in updated.standings if s.day in asked and s.questions
    }
