"""`replay`: runs kept failures again, in a grading child, and says whether they still fail."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from . import cases, runner
from .cases import Kept
from .catalog import Course, Day
from .clone import Clone
from .errors import UsageError
from .render import NO_BREAK, Screen
from .report import CheckResult, DayReport, Outcome

SHOWN = 4  # arrays of a case
LISTED = 6  # failures of a task


def choose(
    clone: Clone, course: Course, day: str | None, check: str | None, task: int | None
) -> tuple[Day, list[Kept]]:
    """The kept failures that the command line means, each task's smallest first. Raises UsageError."""
    chosen = course.day(day) if day else cases.latest_day(clone, course.days)
    if chosen is None:
        raise UsageError(
            "No failure is kept: each grading with a failing check keeps some.", next_step="tinyllm-grade"
        )
    if task is not None:
        chosen.task(task)
    everything = cases.kept(clone, chosen)
    found = [k for k in everything if task in (None, k.task)]
    if not found:
        what = chosen.name if task is None else f"{chosen.name}, task {task}"
        raise UsageError(f"No failure of {what} is kept.", next_step=f"tinyllm-grade {chosen.name}")
    if check:
        matching = [k for k in found if check in (k.id, k.folder.name, k.id.partition("::")[2])]
        matching = matching or [k for k in found if check in k.id or check in k.folder.name]
        if not matching:
            names = ", ".join(k.folder.name for k in found[:6]) + (", ..." if len(found) > 6 else "")
            raise UsageError(f"No failure of {chosen.name} that is kept is called {check}. Kept: {names}")
        found = matching
    return chosen, found


def run(
    clone: Clone,
    course: Course,
    day: Day,
    chosen: Sequence[Kept],
    *,
    timeout: float | None = None,
    on_event: Callable[[runner.Event], None] | None = None,
) -> DayReport:
    """Run the cases in the place of their checks."""
    borrowed = {d for k in chosen for d in k.data["borrowed"]}
    return runner.grade(
        clone,
        course,
        day,
        borrow=[course.day(d) for d in sorted(borrowed)],
        timeout=timeout,
        cases="replay",
        only_ids=[k.id for k in chosen],
        on_event=on_event,
    )


def show(screen: Screen, clone: Clone, day: Day, chosen: Sequence[Kept], report: DayReport) -> int:
    """Print what came of it; the exit code: 0 when nothing fails any more."""
    results = {c.id: c for t in report.tasks for c in t.checks}
    screen.line()
    screen.line(f"{day.name}  {day.title}: {_count(len(chosen))} again", "bold")
    if report.problem:
        screen.error(f"{day.name}: could not be run: {report.problem}")
        return report.verdict.exit_code
    failing = [k for k in chosen if k.id in results and results[k.id].outcome is not Outcome.PASSED]
    for task in dict.fromkeys(k.task for k in chosen):
        mine = [k for k in chosen if k.task == task]
        shown = mine if screen.verbose or len(mine) <= LISTED + 1 else mine[:LISTED]
        for kept in shown:
            _line(screen, kept, results.get(kept.id))
        if left := mine[len(shown) :]:
            still = sum(k in failing for k in left)
            screen.line(f"    {task}  and {len(left)} more, of which {still or 'none'} still fail", "dim")
    told: set[tuple[int, str]] = set()
    for kept in failing:
        result = results[kept.id]
        if result.failure is None or (not screen.verbose and any(task == kept.task for task, _ in told)):
            continue
        told.add((kept.task, kept.id))
        screen.line()
        screen.paragraph(f"task {kept.task}, still {_said(result)}: {kept.title}", "bold", indent=2)
        screen.failure(result.failure)
        for label, text in _about(kept):
            screen.labelled(label, text)
        screen.command(*command(kept))
    screen.line()
    if failing:
        screen.paragraph(f"{len(failing)} of {len(chosen)} still fail", "bold")
        screen.paragraph(
            f"line by line, with shapes: tinyllm-grade trace {day.name} --task {failing[0].task}"
        )
        return 1
    gone = [k for k in chosen if k.id not in results]
    if gone:
        screen.paragraph(f"{day.name} has no check {gone[0].id} any more.", "yellow")
        return 1
    screen.paragraph(f"{'It passes' if len(chosen) == 1 else 'All pass'} now.", "bold green")
    screen.paragraph(f"the whole day: tinyllm-grade {day.name}")
    return 0


def _said(result: CheckResult) -> str:
    return "fails" if result.outcome is Outcome.FAILED else result.outcome.value


def _count(n: int) -> str:
    return "the failure that is kept" if n == 1 else f"the {n} failures that are kept"


def _line(screen: Screen, kept: Kept, result: CheckResult | None) -> None:
    outcome = result.outcome if result is not None else Outcome.NOT_REACHED
    if result is None:
        said = "gone"
    else:
        said = "passes now" if outcome is Outcome.PASSED else f"still {_said(result)}"
    room = screen.width - 8 - len(said) - 2
    title = kept.title if len(kept.title) <= room else kept.title[: room - 3] + "..."
    style = "green" if outcome is Outcome.PASSED else "red"
    screen.line(f"  {screen.sign(outcome)} {kept.task}  {title.ljust(room)}  {said}", style)


def _about(kept: Kept) -> list[tuple[str, str]]:
    """What is in a case, and what was otherwise when it was kept."""
    inputs = [(n, a) for n, a in kept.data["arrays"].items() if not a.get("output")]
    shown = [
        (f"{name} {tuple(a['shape'])}" + (f" seed {a['seed']}" if "seed" in a else "")).replace(" ", NO_BREAK)
        for name, a in inputs
    ]
    more = f", and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    told = []
    if not kept.has_inputs:
        told.append(("case", f"the check itself: {kept.data['reason']}"))
    elif shown:
        told.append(("case", ", ".join(shown[:SHOWN]) + more))
    now = cases.versions()
    if changed := [f"{n} {v}" for n, v in kept.data["versions"].items() if now.get(n) != v]:
        told.append(("kept with", ", ".join(changed)))
    return told


def command(kept: Kept) -> tuple[str, str]:
    """How a kept failure is debugged, as it can be typed where the learner stands: program and file."""
    path = Path(os.path.relpath(kept.program))
    if path.parts[:1] == ("..",):
        path = kept.program
    return f"python -m pdb -c 'until {kept.stop_line}'", shlex.quote(str(path))
