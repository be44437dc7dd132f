"""progress/journal/day1.3.md: a page for each day, facts from the log on top, the learner's own text below.

The facts stand in a block like the tracker's (tracker.put_block): made anew each time, every byte around it
left as it is. A page that is there is never overwritten.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import attempts, standing, tracker
from .attempts import Attempt, Event, Hint
from .catalog import Course, Day, Task
from .clone import Clone
from .report import Outcome
from .standing import Standing
from .words import duration

if TYPE_CHECKING:
    from .render import Screen

MOST_ERRORS = 8  # different errors that the facts list
_SECTIONS = (
    ("## Concepts", "What this day is about, in my own words."),
    ("## Implementation", "How my code does it, and what I chose between."),
    ("## Challenges", "What went wrong, why, and how I found it."),
    ("## Insights", "What I know now that I did not know this morning."),
    ("## Next steps", "What is still open, and what I want to try."),
)
HEADINGS = tuple(heading.encode() for heading, _ in _SECTIONS)


def path_of(clone: Clone, day: Day) -> Path:
    return clone.progress / tracker.JOURNALS / f"{day.name}.md"


def template(day: Day) -> bytes:
    """The learner's part of a new page."""
    parts = []
    for heading, prompt in _SECTIONS:
        lines = [heading, "", f"<!-- {prompt} -->", ""]
        if heading == "## Concepts":
            lines += [f"{day.summary}", ""]
        if heading == "## Implementation":
            lines += [f"- task {t.id}, {t.title}: " for t in day.tasks] + [""]
        parts.append("\n".join(lines))
    return ("\n" + "\n".join(parts)).encode()


def update(clone: Clone, course: Course, day: Day) -> Path | None:
    """Write the page, or refresh its facts; where the text of facts edited by hand is kept, if they were."""
    with attempts.lock(clone):
        events, _ = attempts.read(clone)
        hashes = standing.exercise_hashes(clone, course)
        now = next(s for s in standing.standings(course, events, hashes) if s.day == day.id)
        block = tracker.marked(facts(day, now, events).encode(errors="replace"))
        return tracker.put_block(clone, path_of(clone, day), block, template(day), HEADINGS)


def facts(day: Day, now: Standing, events: Sequence[Event]) -> str:
    """What the log knows of a day, as Markdown."""
    own = [e for e in sorted(events, key=lambda e: e.at) if e.day == day.id]
    graded = [e for e in own if isinstance(e, Attempt) and e.solution == "exercises" and not e.regression]
    lines = [
        "",
        f"# Day {day.id}: {_plain(day.title)}",
        "",
        "From the log; brought up to date by `tinyllm-grade note`.",
        "",
        f"- **Status**: {now.status.value}, {now.tasks_passed} of {len(now.tasks)} tasks",
        f"- **Attempts**: {now.attempts}{_span(graded)}",
        f"- **Time**: {duration(now.seconds)}",
        f"- **Hints**: {_hints(own)}",
    ]
    if now.questions:
        lines.append(f"- **Mastery**: {_mastery(now)}")
    if now.looked is not standing.Looked.NO:
        lines.append(f"- **Reference**: looked at {now.looked.value}")
    errors = _errors(day, graded, own)
    if errors:
        lines += ["", "Errors met, the latest first:", "", *errors]
    return "\n".join([*lines, ""])


def _span(graded: Sequence[Attempt]) -> str:
    if not graded:
        return ""
    first, last = (f"{e.at:%Y-%m-%d %H:%M}" for e in (graded[0], graded[-1]))
    return f", {first} UTC" if first == last else f", from {first} to {last} UTC"


def _hints(own: Sequence[Event]) -> str:
    taken: dict[int, set[int]] = {}
    for event in own:
        if isinstance(event, Hint):
            taken.setdefault(event.task, set()).add(event.hint)
    return ", ".join(f"{len(n)} of task {t}" for t, n in sorted(taken.items())) or "none"


def _mastery(now: Standing) -> str:
    if not now.answered:
        return f"none of the {now.questions} questions answered yet (`tinyllm-grade quiz day{now.day}`)"
    return f"{now.mastered} of {now.questions} questions right when last answered"


def named_mistakes(events: Sequence[Event], attempt: Attempt, task: Task) -> list[str]:
    """What was said of the mistakes that were named for a task after an attempt (the log's "likely")."""
    ids: set[str] = set()
    for event in events:
        if event.kind == "likely" and event.data.get("attempt") == attempt.id:
            tasks = event.data.get("tasks")
            found = tasks.get(str(task.id)) if isinstance(tasks, dict) else None
            ids |= {i for i in found if isinstance(i, str)} if isinstance(found, list) else set()
    return [m.says for m in task.misconceptions if m.id in ids]


def _errors(day: Day, graded: Sequence[Attempt], own: Sequence[Event]) -> list[str]:
    """A line for each different failure: what it was, how often it was met, where it was last."""
    met: Counter[tuple[int, str]] = Counter()
    latest: dict[tuple[int, str], dict[str, str]] = {}
    named: dict[tuple[int, str], list[str]] = {}
    known = {t.id: t for t in day.tasks}
    for attempt in graded:
        for task, told in attempt.failures.items():
            if told.get("outcome") == Outcome.BLOCKED:
                continue
            key = task, told.get("summary", "")
            met[key] += 1
            latest.pop(key, None)  # so that the order is that of the last time
            latest[key] = told
            if task in known:
                named[key] = named_mistakes(own, attempt, known[task]) or named.get(key, [])
    lines = []
    for (task, summary), told in list(reversed(latest.items()))[:MOST_ERRORS]:
        times = met[task, summary]
        often = "" if times == 1 else f", {times} times"
        at = f", at `{told['line']}`" if told.get("line") else ""
        lines.append(f"- task {task}{often}: {_plain(summary)} ({_plain(told.get('check', ''))}{at})")
        lines += [f"  - {_plain(says)}" for says in named.get((task, summary), [])]
    more = len(latest) - MOST_ERRORS
    return [*lines, f"- and {more} more"] if more > 0 else lines


def _plain(text: str) -> str:
    """One line that can start no tag and no comment."""
    return " ".join(text.split()).replace("<", "&lt;")


# ---- the editor


def open_page(clone: Clone, course: Course, day: Day, screen: Screen) -> int:
    """Bring the page up to date and open it in the learner's editor, where there is one; the exit code."""
    path = path_of(clone, day)
    is_new = not path.exists()
    attempts.append(clone, attempts.note_event(day.id))
    saved = update(clone, course, day)
    tracker.update(clone, course)
    shown = clone.relative(path)
    screen.line(f"{day.name}  {day.title}", "bold")
    screen.labelled("written" if is_new else "facts of", shown, indent=2)
    if saved:
        screen.labelled(
            "kept", f"the facts had been edited; your text is in {clone.relative(saved)}", indent=2
        )
    if not (sys.stdin.isatty() and screen.console.is_terminal):
        screen.labelled("no editor", "there is no terminal here: open the file yourself", indent=2)
        return 0
    command, problem = _editor()
    if problem:
        screen.labelled("no editor", f"{problem}; open the file yourself", "yellow", indent=2)
        return 0
    try:
        done = subprocess.run([*command, str(path)], cwd=clone.root, check=False)
    except OSError as error:
        screen.labelled("editor", f"{command[0]} cannot be started: {error.strerror}", "yellow", indent=2)
        return 0
    if done.returncode:
        screen.labelled("editor", f"{command[0]} ended with code {done.returncode}", "yellow", indent=2)
    return 0


def _editor() -> tuple[list[str], str]:
    """The command of $VISUAL or $EDITOR with its arguments, and what is wrong with it ("" for nothing)."""
    for name in ("VISUAL", "EDITOR"):
        text = os.environ.get(name, "").strip()
        if not text:
            continue
        try:
            command = shlex.split(text)
        except ValueError as error:
            return [], f"${name} is {text!r}, which cannot be read: {error}"
        if shutil.which(text):  # a path with spaces in it, not quoted
            return [text], ""
        command[0] = str(Path(command[0]).expanduser()) if command[0].startswith("~") else command[0]
        if shutil.which(command[0]) is None:
            return [], f"${name} is {text!r}, and there is no program {command[0]}"
        return command, ""
    return [], "neither $VISUAL nor $EDITOR is set"
