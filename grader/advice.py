"""What to type next: one line for a task that is not done, and one for the day."""

from __future__ import annotations

from .cases import LEAVE_A_CASE
from .catalog import Course, Day
from .report import CheckResult, DayReport, Outcome, TaskResult, Verdict


def for_tasks(day: Day, report: DayReport) -> dict[int, str]:
    """The next step of each task that did not pass."""
    return {t.id: _for_task(day, t, report) for t in report.tasks if t.outcome is not Outcome.PASSED}


def _for_task(day: Day, task: TaskResult, report: DayReport) -> str:
    match task.outcome:
        case Outcome.BLOCKED:
            return _unblock(day, task, report)
        case Outcome.NOT_RUN_HERE:
            return "tinyllm-grade doctor"
        case Outcome.COURSE_FAULT:
            return "this is the course's fault: please report it, with the output of `tinyllm-grade doctor`"
        case _:
            return f"tinyllm-grade hint {day.name} --task {task.id}"


def _unblock(day: Day, task: TaskResult, report: DayReport) -> str:
    """The unfinished earlier day, or the command that borrows it, and whatever else the day lacks."""
    needed = next(iter(_needed_days(task)), "")
    if not needed:
        return ""
    lacking = {d for t in report.tasks for d in _needed_days(t)} | set(report.borrowed)
    borrow = " ".join(f"--borrow day{d}" for d in sorted(lacking))
    return f"tinyllm-grade day{needed}\nor for now: tinyllm-grade {day.name} {borrow}"


def _needed_days(task: TaskResult) -> list[str]:
    return [c.failure.needs_day for c in task.checks if c.failure and c.failure.needs_day]


def for_day(course: Course, day: Day, report: DayReport) -> list[str]:
    """What follows the verdict of a whole day."""
    match report.verdict:
        case Verdict.PASSED if report.only_task is None:
            later = course.days[course.days.index(day) + 1 :]
            if not later:
                return ["That was the last day so far. Compare: tinyllm-grade diff " + day.name]
            lines = [f"compare: tinyllm-grade diff {day.name}   next day: tinyllm-grade read {later[0].name}"]
            if day.questions:
                name = day.name
                lines.append(
                    f"what stayed: tinyllm-grade quiz {name}   write it down: tinyllm-grade note {name}"
                )
            return lines
        case Verdict.PASSED:
            return [f"the whole day: tinyllm-grade {day.name}"]
        case Verdict.NOT_PASSED if all(t.outcome is Outcome.NOT_STARTED for t in report.tasks):
            modules = {s.module for task in report.tasks for s in day.task(task.id).symbols}
            files = ", ".join(f for f in report.graded if f.partition("/")[2] in modules)
            return [
                f"Nothing is written yet. The lesson: tinyllm-grade read {day.name}",
                f"Then fill in {files} and run this again.",
            ]
        case Verdict.ENVIRONMENT | Verdict.PARTIAL:
            return ["what this machine has and lacks: tinyllm-grade doctor"]
    return []


def for_failures(day: Day, report: DayReport) -> list[str]:
    """How to look into what failed: line by line, or once more in a debugger."""
    task = next((t for t in report.tasks if any(c.outcome in LEAVE_A_CASE for c in t.checks)), None)
    if task is None or any(_cannot_be_imported(c) for c in task.checks):
        return []
    which = f"{day.name} --task {task.id}"
    return [
        f"line by line, with shapes: tinyllm-grade trace {which}",
        f"once more, or in pdb:      tinyllm-grade replay {which}",
    ]


def _cannot_be_imported(check: CheckResult) -> bool:
    """Whether it failed at a module's top level: then there is no call to follow or to run again."""
    last = check.failure.frames[-1:] if check.failure else ()
    return any(f.path.endswith(".py") and f.function in ("", "<module>") for f in last)
