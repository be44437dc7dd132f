"""Prints what `why` finds, as text and as JSON, by itself at the end of a failing grade too."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from . import attempts, guilt, tracker
from .catalog import Course, Day
from .clone import Clone
from .errors import CourseError
from .guilt import Culprit, Guilt, Inquiry, Kind
from .render import Screen
from .report import CheckResult, DayReport, Verdict
from .trials import Trials, Tried

GRADE_SECONDS = 10.0  # what the search may take at the end of a grading
GRADE_CHECK_SECONDS = 3.0  # what one check may take there

EXIT = {Kind.PASSES: 0, Kind.COURSE: 3}  # every other answer: 1, the day does not pass


def explain(
    screen: Screen,
    clone: Clone,
    course: Course,
    day: Day,
    *,
    solution: str = "exercises",
    borrowed: Sequence[Day] = (),
    only_task: int | None = None,
    as_json: bool = False,
    record: bool = True,
) -> int:
    """The command: run the day's checks, search, print. Returns the exit code."""
    with Trials(clone, course, day, solution=solution) as runs, _progress(screen, not as_json) as stage:
        inquiry = Inquiry(runs, borrowed=borrowed, stage=stage)
        results = inquiry.all_checks(only_task)
        found = inquiry.find(results)
    code = EXIT.get(found.kind, 1)
    if as_json:
        print(json.dumps({**as_value(found), "exit_code": code}, indent=2))
    else:
        screen.line()
        screen.line(f"{day.name}  {day.title}", "bold")
        show(screen, found, results, solution)
    if record and solution == "exercises":
        _log(clone, course, found)
    return code


def after_grading(
    screen: Screen,
    clone: Clone,
    course: Course,
    reports: Sequence[DayReport],
    *,
    borrowed: Sequence[Day] = (),
    solution: str = "exercises",
    record: bool = True,
) -> None:
    """At the end of a command's grading: say it where an earlier day is to blame, or offer the command.

    Looks at the first day that failed and builds on others, unless the learner knows: one of these was graded
    just now and failed too, or a file cannot even be read as Python. Never raises for what it cannot find
    out; takes GRADE_SECONDS at most.
    """
    failed = [r for r in reports if r.verdict is Verdict.NOT_PASSED]
    for report in failed:
        day = course.day(report.day)
        results = guilt.tried_of(report)
        known = {d.id for d in course.foundation(day)} & {r.day for r in failed if r is not report}
        if known or not guilt.worth_asking(day, results) or _has_syntax_error(clone, course, day, solution):
            continue
        deadline = time.monotonic() + GRADE_SECONDS
        check_seconds = min(GRADE_CHECK_SECONDS, course.limits.check_seconds)
        try:
            with (
                Trials(
                    clone, course, day, solution=solution, deadline=deadline, check_seconds=check_seconds
                ) as runs,
                _progress(screen, wanted=True) as stage,
            ):
                found = Inquiry(runs, borrowed=borrowed, stage=stage).find(results)
        except CourseError:
            return  # the grading has told what is wrong with this machine
        if found.kind is Kind.UNDECIDED:
            screen.paragraph("Is an earlier day to blame? It takes a while to find out:")
            screen.labelled("next", f"tinyllm-grade why {day.name}", "bold")
        elif found.kind is Kind.OWN:
            names = _days_in_words([d for d in course.foundation(day) if d != day])
            screen.paragraph(
                f"{names[:1].upper()}{names[1:]} {'is' if names.startswith('day ') else 'are'} not to blame: "
                "with the reference's in place of yours the same checks fail.",
                "dim",
            )
        else:
            screen.line()
            show(screen, found, results, solution)
        if record and solution == "exercises":
            _log(clone, course, found)
        return


def _has_syntax_error(clone: Clone, course: Course, day: Day, solution: str) -> bool:
    """Whether a module that the day runs is no Python: every check has said so."""
    for module in (m for d in course.foundation(day) for m in d.modules if m.endswith(".py")):
        try:
            ast.parse((clone.tree(solution) / module).read_bytes())
        except (SyntaxError, ValueError):  # ValueError: a null byte
            return True
        except OSError:
            pass  # it is missing, which is told as well
    return False


def _log(clone: Clone, course: Course, found: Guilt) -> None:
    if found.kind in (Kind.PASSES, Kind.UNDECIDED):
        return
    days = [c.day.id for c in found.culprits]
    attempts.append(clone, attempts.why_event(found.day.id, found.kind.value, days))
    tracker.update(clone, course)


@contextmanager
def _progress(screen: Screen, wanted: bool) -> Iterator[Callable[[str], None]]:
    """A line on a terminal that says what is being tried; nothing anywhere else."""
    if not wanted or not screen.console.is_terminal:
        yield lambda text: None
        return
    from rich.text import Text

    status = screen.console.status("looking for the cause", spinner="dots" if screen.unicode else "line")
    with status:
        yield lambda text: status.update(Text(text[: screen.width - 4], no_wrap=True))


# ---- in words


def show(screen: Screen, found: Guilt, results: Sequence[Tried], solution: str = "exercises") -> None:
    """The sentence, then what it rests on and what to type."""
    checks = {r.id: r for r in results}
    screen.paragraph(sentence(found), _style(found.kind), indent=2)
    for culprit in found.culprits:
        _show_culprit(screen, found, culprit, solution)
    if found.own_checks and found.kind in (Kind.OWN, Kind.BOTH):
        _show_own(screen, found, checks)
    if found.unexplained:
        title = checks[found.unexplained[0]].title if found.unexplained[0] in checks else ""
        screen.labelled("unexplained", f"{_count(found.unexplained)} with the reference's code too: {title}")
    for needed, said in (found.unwritten or {}).items():
        screen.labelled("not written", said)
        if found.kind is Kind.NEEDS:
            screen.labelled("next", f"tinyllm-grade day{needed}", "bold")
    if found.kind is Kind.CHANCE:
        screen.labelled("next", f"tinyllm-grade {found.day.name}", "bold")
    if found.kind is Kind.NOT_WRITTEN:
        screen.labelled("next", f"tinyllm-grade read {found.day.name}", "bold")
    if screen.verbose:
        for trial in found.trials:
            odd = f"  ({trial.unfit})" if trial.unfit else ""
            text = f"{trial.passed} of {trial.ran} pass with {trial.label} from the reference{odd}"
            screen.labelled("tried", text, "dim")


def sentence(found: Guilt) -> str:
    """Who is to blame, in one sentence."""
    day = f"day {found.day.id}"
    own = f"What is written of {day}" if found.unfinished else f"Day {found.day.id}'s own code"
    names = _culprits_in_words(found.culprits)
    if len(found.culprits) == 1 and (said := _mistake(found.culprits[0])):
        names += f": {said}"
    match found.kind:
        case Kind.PASSES:
            return f"Day {found.day.id} passes: there is nothing to explain."
        case Kind.NOT_WRITTEN:
            return f"Day {found.day.id} is not written yet: nothing that is written fails."
        case Kind.NEEDS:
            needed = _listed([f"day {d}" for d in found.unwritten or ()])
            return f"Nothing is wrong in day {found.day.id}; it stops at what is not written yet of {needed}."
        case Kind.EARLIER:
            return _ended(f"{own} is right; it fails because of {names}")
        case Kind.OWN if not found.day.builds_on:
            return f"It is day {found.day.id}'s own code: this day builds on no other."
        case Kind.OWN:
            return (
                f"It is day {found.day.id}'s own code. With the reference's earlier days in place of yours "
                "it fails as before; with the reference's own it passes."
            )
        case Kind.BOTH:
            return _ended(f"Two causes: day {found.day.id}'s own code, and {names}")
        case Kind.MISFIT:
            return _ended(
                f"Day {found.day.id}'s code and {names} do not fit together: with the reference's in place "
                "of either one it passes"
            )
        case Kind.CHANCE:
            return "Run again, the failing checks pass: they failed for lack of time, or by chance."
        case Kind.COURSE:
            return "It fails with the reference's code everywhere too: this is the course's fault, or chance."
    return "What is to blame was not found."


def _style(kind: Kind) -> str:
    return {Kind.PASSES: "bold green", Kind.COURSE: "bold red"}.get(kind, "bold")


def _show_culprit(screen: Screen, found: Guilt, culprit: Culprit, solution: str) -> None:
    day = culprit.day
    if len(found.culprits) > 1:
        screen.line()
        screen.paragraph(f"day {day.id}, {_subject(culprit)}", "bold", indent=4)
    place = ", ".join(f"{solution}/{m}" for m in culprit.modules)
    screen.labelled("there", f"{place}{', ' if culprit.symbols else ''}{', '.join(culprit.symbols)}")
    screen.labelled("proof", _proof(found, culprit))
    swaps = (guilt.label_of([day]), guilt.ALL_EARLIER)
    unfit = next((t.unfit for t in found.trials if t.label in swaps and t.unfit), "")
    if unfit and (len(found.culprits) > 1 or found.kind is Kind.BOTH):
        screen.labelled("", f"with it alone: {unfit}. Were names or arguments changed?")
    if culprit.own is None:
        screen.labelled("next", f"tinyllm-grade {day.name}", "bold")
    elif culprit.own.wrong is not None:
        _show_check(screen, day, culprit.own.wrong)
        screen.labelled("next", f"tinyllm-grade {day.name} --task {culprit.own.wrong.task}", "bold")
    else:
        task = f" --task {culprit.tasks[0]}" if culprit.tasks else ""
        screen.labelled(
            "its checks",
            f"all {culprit.own.ran} of day {day.id} pass: they do not see it, which is a gap in the course's "
            "checks worth reporting",
        )
        screen.labelled("next", f"tinyllm-grade diff {day.name}{task}", "bold")


def _proof(found: Guilt, culprit: Culprit) -> str:
    what = culprit.symbols[0] if len(culprit.symbols) == 1 else f"day {culprit.day.id}"
    count = _count(culprit.checks or found.failing)
    if not found.confirmed and culprit.checks:
        tried, all_of_them = len(culprit.checks), len(found.failing)
        count = f"of {all_of_them} failing checks {tried} were tried, and all of these pass"
    if len(found.culprits) > 1 or found.kind is Kind.BOTH:
        return f"{count} only with the reference's {what} in place of yours as well"
    text = f"{count} with the reference's {what} in place of yours"
    alone = [t.passed for t in found.trials if t.label == guilt.own_label(found.day)]
    if alone and not any(alone):
        text += f", and none with the reference's day {found.day.id}"
    return text


def _show_check(screen: Screen, day: Day, check: CheckResult) -> None:
    """What the guilty day's own check says."""
    case = check.id.partition("[")[2].rstrip("]")
    title = check.title + (f" [{case}]" if case else "")
    screen.labelled("its check", f"day {day.id}, task {check.task}, fails too: {title}")
    failure = check.failure
    if failure is not None:
        screen.labelled("", " ".join(filter(None, [failure.summary, failure.where])))


def _show_own(screen: Screen, found: Guilt, checks: Mapping[str, Tried]) -> None:
    tasks = found.own_tasks(checks)
    if found.kind is Kind.BOTH:
        screen.line()
        screen.paragraph(f"day {found.day.id} itself", "bold", indent=4)
        screen.labelled("proof", f"{_failing(found.own_checks)} with the reference's earlier days too")
    titles = [f"{t} ({found.day.task(t).title})" for t in tasks]
    screen.labelled("there", f"task{'s' * (len(tasks) != 1)} {_listed(titles)}")
    if tasks:
        screen.labelled("next", f"tinyllm-grade hint {found.day.name} --task {tasks[0]}", "bold")


def _culprits_in_words(culprits: Sequence[Culprit]) -> str:
    return _listed([f"day {c.day.id}, {_subject(c)}" for c in culprits], " and ")


def _subject(culprit: Culprit) -> str:
    """ "RoPE", or where it is not one function or class, the day's title."""
    return culprit.symbols[0] if len(culprit.symbols) == 1 else culprit.day.title


def _mistake(culprit: Culprit) -> str:
    """What is said of the likely mistake, as it stands behind a colon."""
    said = culprit.own.mistake if culprit.own else ""
    return said[:1].lower() + said[1:] if said.startswith("This ") else said


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _count(checks: Sequence[str]) -> str:
    """ "all 12 failing checks pass", "the failing check passes"."""
    return "the failing check passes" if len(checks) == 1 else f"all {len(checks)} failing checks pass"


def _failing(checks: Sequence[str]) -> str:
    return "1 check fails" if len(checks) == 1 else f"{len(checks)} checks fail"


def _listed(items: Sequence[str], last: str = " and ") -> str:
    return last.join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else ""


def _days_in_words(days: Sequence[Day]) -> str:
    return f"day {days[0].id}" if len(days) == 1 else "the earlier days"


# ---- as JSON


def as_value(found: Guilt) -> dict[str, Any]:
    """The value that `--json` prints."""
    return {
        "schema": 1,
        "day": found.day.id,
        "verdict": found.kind.value,
        "sentence": sentence(found),
        "failing": list(found.failing),
        "guilty": [_culprit_value(c) for c in found.culprits],
        "own_code": {
            "at_fault": found.kind in (Kind.OWN, Kind.BOTH),
            "checks": list(found.own_checks),
            "unfinished": found.unfinished,
        },
        "not_written": dict(found.unwritten or {}),
        "unexplained": list(found.unexplained),
        "confirmed": found.confirmed,
        "trials": [
            {"reference": t.label, "passed": t.passed, "ran": t.ran, "raised": t.unfit} for t in found.trials
        ],
        "seconds": round(found.seconds, 3),
    }


def _culprit_value(culprit: Culprit) -> dict[str, Any]:
    own = culprit.own
    wrong = own.wrong if own else None
    return {
        "day": culprit.day.id,
        "title": culprit.day.title,
        "modules": list(culprit.modules),
        "symbols": list(culprit.symbols),
        "checks": list(culprit.checks),
        "mistake": own.mistake if own else "",
        "own_checks": None
        if own is None
        else {
            "see_it": own.see_it,
            "check": wrong.id if wrong else "",
            "title": wrong.title if wrong else "",
            "summary": wrong.failure.summary if wrong and wrong.failure else "",
        },
    }
