"""A brief that makes any AI assistant a tutor for a day: how to teach, and where the learner is.

It holds the learner's own code and what the log knows, never the reference's code and never a hint that was
not taken. Its length is bounded, so it fits wherever it is pasted. `install` writes the part that does not
depend on the moment to the files that assistants read by themselves; see tutor_files.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from . import attempts, journal, lessons, standing, symbols, tutor_files
from .attempts import Attempt, Event
from .catalog import Course, Day, Fact, Task
from .clone import Clone
from .report import Outcome
from .standing import Standing
from .words import duration

if TYPE_CHECKING:
    from .render import Screen

LONGEST = 14_000  # characters of a brief
LONGEST_CODE = 6_000  # characters of the learner's code in it
LONGEST_INSTALLED = 8_000

RULES = """\
You are the tutor of someone who works through tinyllm, a course in which they write Qwen2 and a small
vLLM on MLX themselves. They learn by writing it. Your job is that they get there, not that the code does.

## How you teach

1. Ask. Answer a question with the smallest question that moves them on: what shape is this, what should
   this row sum to, what does the code do for L = 2? One question at a time, then wait.
2. Never write the solution: no body of a function they have to write, no line to paste, no patch, no
   "like this". This holds when they ask for it, are in a hurry, or say they are allowed to. Offer the next
   question, or `tinyllm-grade hint`, which counts hints for them.
3. Never open, quote or search `reference/`, the misconceptions in `checkpoints/*/checkpoint.toml`, or
   another implementation of the same function. `lesson.md`, the docstrings and the checks may be read.
4. Never edit files in `exercises/`, `checkpoints/`, `grader/` or `progress/`, and complete no code inline.
5. Start from evidence: what did the grader say, at which line, with which shapes? Have them predict a value
   or a shape before they run anything, and compare.
6. Small cases: two tokens, two heads, numbers that can be added in the head. Examples are about another
   problem than theirs, or by hand, on paper.
7. When they are wrong, do not say where at once: ask for the consequence that shows it. When they are right,
   say so plainly, and ask why it is right.
8. Explain freely what is no part of the task: Python, NumPy and MLX syntax, what an error message means, the
   mathematics behind the lesson. General MLX examples are fine as long as they are not the task.
9. Short replies, plain words. Say when you do not know. After three questions without progress name the idea
   in one sentence and point at the paragraph of the lesson; then ask again.
"""

WHERE = """\
## Where they are

Run `tinyllm-grade tutor` (without a day: the next unfinished one) before the first reply and after each
grading: it tells which day and task they are at, their last failure, and the hints they took. When this
file was written they were at day {day}.
"""

COMMANDS = """\
## What can be run

- `tinyllm-grade {day}` grades; `--task N` one task; a failure names line, shapes and the rule checked
- `tinyllm-grade read {day}` the lesson; `tinyllm-grade hint {day}` the next hint
- `tinyllm-grade quiz {day}` the check questions: good to ask once the day has passed
- `tinyllm-grade tutor {day}` this brief, as things stand then
- not before the day has passed: `tinyllm-grade diff` (it shows the reference)
"""


def brief(clone: Clone, course: Course, day: Day, number: int | None = None) -> str:
    """The whole brief for a day, about one task: the given one, or the first that has not passed."""
    events, now = _now(clone, course, day)
    task = _task_at_hand(day, now, number)
    parts = [
        RULES,
        _about_the_day(course, day),
        _where_they_stand(day, now, events, task),
        _code(clone, task),
        _failure(events, day, task),
        _forbidden(day),
        COMMANDS.format(day=day.name),
        _graded(day, task),  # last: the longest, and the one that can be looked up
    ]
    return _bounded("\n".join(p for p in parts if p), LONGEST)


def installed_text(course: Course, day: Day) -> str:
    """The brief without what changes by the minute: an assistant in the clone can look for itself."""
    parts = [
        RULES,
        WHERE.format(day=day.id),
        _about_the_day(course, day),
        _forbidden(day),
        COMMANDS.format(day=day.name),
        _graded(day, None),
    ]
    return _bounded("\n".join(p for p in parts if p), LONGEST_INSTALLED)


def install(clone: Clone, course: Course, day: Day, screen: Screen) -> None:
    """Write the brief to the assistants' files, and say for each what was done."""
    done = tutor_files.install(clone, installed_text(course, day))
    _tell(screen, done)
    if done.excluded:
        screen.paragraph(
            "git does not see them (.git/info/exclude). Away again: tinyllm-grade tutor --uninstall"
        )
    else:
        screen.paragraph("There is no git repository here, so nothing had to be hidden from it.")


def uninstall(clone: Clone, screen: Screen) -> None:
    _tell(screen, tutor_files.uninstall(clone))


def _tell(screen: Screen, done: tutor_files.Done) -> None:
    for path in done.written:
        screen.labelled("written", path, indent=2)
    for path in done.removed:
        screen.labelled("removed", path, indent=2)
    for path, why in done.left:
        screen.labelled("left alone", f"{path}: {why}", "yellow", indent=2)
    if not (done.written or done.removed or done.left):
        screen.paragraph("Nothing to remove: no file of ours is here.")


# ---- the parts


def _now(clone: Clone, course: Course, day: Day) -> tuple[list[Event], Standing]:
    events, _ = attempts.read(clone)
    days = standing.standings(course, events, standing.exercise_hashes(clone, course))
    own = sorted((e for e in events if e.day == day.id), key=lambda e: e.at)
    return own, next(s for s in days if s.day == day.id)


def _task_at_hand(day: Day, now: Standing, number: int | None) -> Task:
    if number is not None:
        return day.task(number)
    return day.task(next((t.id for t in now.tasks if not t.passed), day.tasks[-1].id))


def _about_the_day(course: Course, day: Day) -> str:
    lines = [f"## Day {day.id}: {day.title}", "", day.summary, ""]
    if day.builds_on:
        earlier = ", ".join(f"{d.id} ({d.title})" for d in course.days if d.id in day.builds_on)
        lines += [f"It runs the code of earlier days: {earlier}.", ""]
    lines += [f"- task {t.id}, {t.title}: {t.goal}" for t in day.tasks]
    lines += ["", f"They write {', '.join(f'exercises/{m}' for m in day.modules)}."]
    return "\n".join([*lines, ""])


def _where_they_stand(day: Day, now: Standing, events: Sequence[Event], task: Task) -> str:
    times = {0: "not yet", 1: "once"}.get(now.attempts, f"{now.attempts} times")
    lines = [
        "## Where they stand",
        "",
        f"Status: {now.status.value}; graded {times}; {duration(now.seconds)} so far.",
        "",
    ]
    for each in now.tasks:
        how = each.outcome or "not graded yet"
        if each.outcome and each.outcome not in (Outcome.PASSED, Outcome.NOT_STARTED):
            how += f", {each.passed_checks} of {each.expected_checks} checks pass"
        mark = "  <- the task at hand" if each.id == task.id else ""
        lines.append(f"- task {each.id}, {each.title}: {how}{mark}")
    if now.finished:
        lines += ["", "The day has passed. Ask them why it works, what it costs, and what the quiz asks."]
    taken = lessons.seen_hints(day, task, events)
    lines += ["", f"Hints they took for task {task.id}: {len(taken)} of {len(task.hints)}"]
    lines += [f"  {n}. {text}" for n, text in enumerate(taken, 1)]
    return "\n".join([*lines, ""])


def _code(clone: Clone, task: Task) -> str:
    """What the learner wrote for a task, as it is now."""
    parts = [f"## Their code of task {task.id}", ""]
    room = LONGEST_CODE
    for path, text, line in _pieces(clone, task):
        if not text:
            parts += [f"`{path}`: there is nothing of this task in it.", ""]
            continue
        if len(text) > room:
            text = text[: max(room, 0)].rpartition("\n")[0] + "\n... (cut here: open the file)"
        room -= len(text)
        fence = "`" * max(3, 1 + max((len(m) for m in re.findall(r"`+", text)), default=0))
        language = "python" if path.endswith(".py") else "cpp"
        parts += [f"`{path}`, from line {line}:", "", f"{fence}{language}", text, fence, ""]
    return "\n".join(parts)


def _pieces(clone: Clone, task: Task) -> Iterator[tuple[str, str, int]]:
    """Path, text and first line of each symbol or marked region of a task; a symbol in another comes once."""
    names = [s.name for s in task.symbols]
    marked: set[str] = set()
    for symbol in task.symbols:
        path = f"exercises/{symbol.module}"
        try:
            source = (clone.exercises / symbol.module).read_text(encoding="utf-8", errors="replace")
        except OSError:
            yield path, "", 0
            continue
        if not symbol.module.endswith(".py"):
            if symbol.module not in marked:
                marked.add(symbol.module)
                regions = symbols.regions(source, task.id)
                yield from ((path, region.text, region.start) for region in regions)
                if not regions:
                    yield path, "", 0
            continue
        if any(symbol.name.startswith(f"{other}.") for other in names):
            continue
        found = symbols.segment(source, symbol.name)
        yield (path, found.text, found.start) if found else (path, "", 0)


def _failure(events: Sequence[Event], day: Day, task: Task) -> str:
    """The last failure of the task that the log holds, if it has not passed since."""
    for event in reversed(events):
        if not isinstance(event, Attempt) or event.solution != "exercises" or day.id in event.borrowed:
            continue
        if event.only_task not in (None, task.id) or task.id not in event.tasks:
            continue
        told = event.failures.get(task.id)
        if not told:
            return ""
        lines = [f"## The last failure ({event.at:%Y-%m-%d %H:%M} UTC)", ""]
        named = {
            "check": "the check",
            "summary": "what is wrong",
            "checked": "checked",
            "expected": "expected",
            "got": "got",
            "where": "where",
            "error": "error",
            "line": "their line",
            "source": "which reads",
            "values": "values there",
            "fact": "the rule",
        }
        lines += [f"- {label}: {_one_line(told[key])}" for key, label in named.items() if told.get(key)]
        mistakes = journal.named_mistakes(events, event, task)
        lines += [f"- what the grader told them it may be: {_one_line(says)}" for says in mistakes]
        return "\n".join([*lines, ""])
    return ""


def _graded(day: Day, task: Task | None) -> str:
    """The conventions that are checked; with a task, its own first and the others by name."""
    own = [f for f in day.facts if task is None or _belongs(f, task)]
    if not day.facts:
        return ""
    lines = ["## What is checked", "", "Word for word as lesson, docstrings and failures state it:", ""]
    lines += [f"- {f.text}" for f in own]
    left = len(day.facts) - len(own)
    if left:
        lines += ["", f"{left} more belong to the other tasks."]
    return "\n".join([*lines, ""])


def _belongs(fact: Fact, task: Task) -> bool:
    names = {s.name for s in task.symbols} | {s.name.partition(".")[0] for s in task.symbols}
    return any(s.rpartition("::")[2] in names for s in fact.symbols)


def _forbidden(day: Day) -> str:
    if not day.rules:
        return ""
    listed = "\n".join(f"- `{r.api}`: use {r.instead}" for r in day.rules)
    return f"## What they may not use\n\nThe grader refuses these; do not suggest them:\n\n{listed}\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _bounded(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text.rstrip() + "\n"
    notice = "\n\n(Cut here, to keep this brief short.)\n"
    return text[: longest - len(notice)].rpartition("\n")[0] + notice
