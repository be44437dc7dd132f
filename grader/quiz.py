"""`tinyllm-grade quiz`: asks a day's check questions in the terminal, through a pipe, or as JSON.

Each answer is in the log before the next question is asked, so Ctrl-C loses none. Questions that were last
answered wrong come first, then those never asked, then the others, the longest ago first.
"""

from __future__ import annotations

import io
import json
import secrets
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from . import attempts, standing
from .attempts import Answer, Event
from .questions import LETTERS, Asked, Grade, Unreadable, draw

if TYPE_CHECKING:
    from .catalog import Day
    from .clone import Clone
    from .questions import Question
    from .render import Screen

PATIENCE = 5  # unreadable answers to one question before the next one comes
HOW = {
    "choice": "a letter",
    "number": "a number, or a sum such as 2 * 28 * 128",
    "shape": "a shape such as (2, 14, 64)",
    "line": "the number of the line",
}


class Stopped(Exception):
    """The learner typed q, or the input ended."""


@dataclass
class Item:
    """A question of this sitting, and what came of it."""

    day: Day
    asked: Asked
    last: Answer | None  # the last answer before this sitting
    grade: Grade | None = None
    gave_up: bool = False  # "?" was typed
    event: dict[str, Any] | None = None  # the log's line for the answer
    logged: bool = False

    @property
    def answered(self) -> bool:
        return self.grade is not None


@dataclass
class Sitting:
    """What `ask` went through. `ended` is "", "stopped" or "interrupted"."""

    seed: str
    items: list[Item]
    ended: str = ""
    mastery: dict[str, tuple[int, int]] = field(default_factory=dict)  # day -> right when last answered, of

    @property
    def right(self) -> int:
        return sum(i.grade is not None and i.grade.right for i in self.items)

    @property
    def answered(self) -> int:
        return sum(i.answered for i in self.items)

    @property
    def exit_code(self) -> int:
        if self.ended == "interrupted":
            return 130
        return 0 if self.right == len(self.items) else 1


def choose(
    questions: Sequence[tuple[Day, Question]], events: Sequence[Event], seed: str, most: int | None = None
) -> Sitting:
    """The questions of a sitting in the order in which they are due, each drawn with the seed."""
    seed = seed or secrets.token_hex(3)
    ordered = sorted(events, key=lambda e: e.at)
    last = {
        day.id: standing.latest_answers(e for e in ordered if e.day == day.id)
        for day in dict.fromkeys(day for day, _ in questions)
    }

    def due(entry: tuple[Day, Question]) -> tuple[int, float]:
        before = last[entry[0].id].get(entry[1].id)
        if before is None:
            return 1, 0.0
        return (2 if before.right else 0), before.at.timestamp()

    items = [
        Item(day, draw(q, f"{seed}:{day.id}:{q.id}"), last[day.id].get(q.id))
        for day, q in sorted(questions, key=due)[:most]
    ]
    return Sitting(seed, items)


class Reader:
    """Where answers come from: the terminal, or a pipe, whose lines are shown behind the prompt."""

    def __init__(self, screen: Screen, stream: TextIO | None = None) -> None:
        self.screen = screen
        self.stream = stream or sys.stdin or io.StringIO()  # closed, it is like an empty one
        if isinstance(self.stream, io.TextIOWrapper):
            self.stream.reconfigure(errors="replace")
        self.terminal = self.stream.isatty() and screen.console.is_terminal

    def read(self, prompt: str) -> str:
        """The next line. Raises Stopped at the end of the input."""
        if self.terminal:
            self.screen.console.file.write(prompt)
            self.screen.console.file.flush()
        line = self.stream.readline()
        if not line:
            raise Stopped
        text = line.strip()
        if not self.terminal:
            self.screen.line(f"{prompt}{text}")
        return text


def ask(clone: Clone, sitting: Sitting, screen: Screen, reader: Reader, *, record: bool = True) -> None:
    """Ask, judge, explain and log, one question after another. Fills in the sitting."""
    try:
        for number, item in enumerate(sitting.items, 1):
            show_question(screen, item, f"{number} of {len(sitting.items)}")
            _answer(item, screen, reader)
            if item.grade is None:
                continue
            _log(clone, item, record)
            show_grade(screen, item)
    except Stopped:
        sitting.ended = "stopped"
    except KeyboardInterrupt:
        # An answer that was being written is written again: the same line twice counts once.
        for item in sitting.items:
            _log(clone, item, record)
        screen.line()
        sitting.ended = "interrupted"


def _log(clone: Clone, item: Item, record: bool) -> None:
    if item.grade is None or item.logged or not record:
        return
    if item.event is None:
        grade, question = item.grade, item.asked.question
        item.event = attempts.answer_event(item.day.id, question.id, grade.right, grade.given)
    attempts.append(clone, item.event)
    item.logged = True


def _answer(item: Item, screen: Screen, reader: Reader) -> None:
    for _ in range(PATIENCE):
        text = reader.read("answer> ")
        if text.lower() in ("q", "quit", "exit", ":q"):
            raise Stopped
        if text in ("?", "idk"):
            item.grade, item.gave_up = Grade(False, "", "?"), True
            return
        if not text:
            screen.paragraph(f"Type {HOW[item.asked.kind]}; ? shows the answer, q stops.", "yellow", indent=2)
            continue
        try:
            item.grade = item.asked.grade(text)
            return
        except Unreadable as error:
            screen.paragraph(str(error), "yellow", indent=2)
    screen.paragraph("On to the next one; this one stays open.", "yellow", indent=2)


# ---- what is shown


def show_question(screen: Screen, item: Item, place: str) -> None:
    asked = item.asked
    screen.line()
    note = "  (wrong last time)" if item.last and not item.last.right else ""
    screen.line(f"{place}  {item.day.name}{note}", "dim")
    screen.paragraph(asked.ask, "bold")
    for letter, choice in zip(LETTERS, asked.choices, strict=False):
        for i, line in enumerate(textwrap.wrap(choice, screen.width - 5, break_on_hyphens=False)):
            screen.line(f"  {letter}) {line}" if i == 0 else f"     {line}")
    for number, line in enumerate(asked.question.code, 1):
        screen.line(f"  {number:>2} {line}", "cyan")


def show_grade(screen: Screen, item: Item) -> None:
    asked, grade = item.asked, item.grade
    if grade is None:
        return
    if grade.right:
        screen.paragraph("Right.", "bold green", indent=2)
    elif not item.gave_up:
        screen.paragraph(f"Not {grade.given}. {grade.says}".rstrip(), "red", indent=2)
    if not grade.right:
        screen.labelled("answer", asked.answer, "green", indent=2)
    show_reasons(screen, asked)


def show_reasons(screen: Screen, asked: Asked) -> None:
    if asked.worked:
        screen.labelled("worked", asked.worked, indent=2)
    screen.labelled("why", asked.why, indent=2)


def show_end(screen: Screen, sitting: Sitting, days: Sequence[Day], name: str, *, kept: bool) -> None:
    """How it went, how the days stand, and what to type next; `name` is what the learner called the days."""
    screen.line()
    left = len(sitting.items) - sitting.answered
    told = "; what you answered is kept" if kept and sitting.ended and sitting.answered else ""
    open_ones = f", {left} not asked yet{told}" if left else ""
    screen.paragraph(f"{sitting.right} of {sitting.answered} right{open_ones}", "bold")
    for day in days:
        if day.id in sitting.mastery:
            right, of = sitting.mastery[day.id]
            screen.paragraph(f"{day.name}: {right} of {of} questions right when last answered", "dim")
    wrong = sum(i.answered and not (i.grade and i.grade.right) for i in sitting.items)
    if wrong and kept:
        again = "The one that was wrong comes" if wrong == 1 else f"The {wrong} that were wrong come"
        screen.paragraph(f"{again} first next time, with fresh numbers: tinyllm-grade quiz {name}")


def show_answers(screen: Screen, sitting: Sitting) -> None:
    """Every question with its answer: for reading, nothing is asked."""
    for number, item in enumerate(sitting.items, 1):
        show_question(screen, item, f"{number} of {len(sitting.items)}")
        screen.labelled("answer", item.asked.answer, "green", indent=2)
        show_reasons(screen, item.asked)


def as_json(sitting: Sitting, *, with_answers: bool = False) -> dict[str, Any]:
    """The sitting as JSON; the answer to a question stands in it once it was answered."""
    return {
        "schema": 1,
        "seed": sitting.seed,
        "questions": [_item_as_json(i, with_answers) for i in sitting.items],
        "answered": sitting.answered,
        "right": sitting.right,
        "mastery": {day: {"right": right, "of": of} for day, (right, of) in sitting.mastery.items()},
        "exit_code": 0 if with_answers else sitting.exit_code,
    }


def _item_as_json(item: Item, with_answers: bool) -> dict[str, Any]:
    asked, grade = item.asked, item.grade
    found: dict[str, Any] = {
        "day": item.day.id,
        "id": asked.question.id,
        "kind": asked.kind,
        "ask": asked.ask,
    }
    if asked.choices:
        found["choices"] = dict(zip(LETTERS, asked.choices, strict=False))
    if asked.question.code:
        found["code"] = list(asked.question.code)
    if asked.question.unit:
        found["unit"] = asked.question.unit
    if grade is not None:
        found |= {"given": grade.given, "right": grade.right, "says": grade.says}
    if grade is not None or with_answers:
        found |= {"answer": asked.answer, "worked": asked.worked, "why": asked.why}
    return found


def print_json(sitting: Sitting, *, with_answers: bool = False) -> str:
    return json.dumps(as_json(sitting, with_answers=with_answers), indent=2)
