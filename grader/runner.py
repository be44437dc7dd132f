"""Grades a day in a child process: live events, time and memory limits, a verdict whatever the child does.

The child (child.py) is replaced when a check kills it or outstays its time, and the checks not yet run go on
in a fresh one. A check counts as passed only when the child reported it and signed its run off.
"""

from __future__ import annotations

import contextlib
import math
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import processes
from .catalog import Course, Day, Limits
from .clone import Clone
from .files import content_hash
from .report import (
    CheckResult,
    DayReport,
    Failure,
    Frame,
    Outcome,
    Tampering,
    TaskResult,
    Verdict,
    verdict_of,
)

POLL_SECONDS = 0.05
MEMORY_POLL_SECONDS = 0.1
FAMILY_POLL_SECONDS = 0.5  # what the child started is looked at less often: it takes ten times as long
STUCK_ANSWER_SECONDS = 0.5
GOODBYE_SECONDS = 0.5
CASES_SECONDS = 20.0  # for the cases of failing checks to be written, after the verdict
COSTLY = (Outcome.TIMED_OUT, Outcome.OUT_OF_MEMORY)
COSTLY_CHECKS = 2  # after so many of them the rest of a task is not run
CRASHES = 3  # and after so many that ended the process: for each a new one is started
# A check that stands where another had used up its time mostly never ends either: it has this share of its
# floor, and at least so many seconds.
REPEATED_SHARE = 0.2
REPEATED_SECONDS = 1.0
# Stages before any learner code runs. A cold disk compiles all of pytest, NumPy and MLX on the first run.
PATIENCE = {"starting": ("starting the grading process", 60.0), "building": ("compiling the kernels", 300.0)}


@dataclass(frozen=True)
class Launched:
    """The grading child has been started and is booting."""


@dataclass(frozen=True)
class Building:
    """The tree's C++ kernels are being compiled."""


@dataclass(frozen=True)
class Started:
    """A check begins."""

    id: str
    title: str
    task: int
    index: int
    total: int


@dataclass(frozen=True)
class Slow:
    """A check has run for long, and why it is still allowed to."""

    id: str
    seconds: float
    limit: float  # infinite while the reference is being timed


class Cancelled(Exception):
    """`stop` ended the grading: there is no report."""


Event = Launched | Building | Started | Slow | CheckResult | TaskResult


def grade(
    clone: Clone,
    course: Course,
    day: Day,
    *,
    solution: str = "exercises",
    borrow: Sequence[Day] = (),
    only_task: int | None = None,
    timeout: float | None = None,
    overlays: Mapping[str, Path] | None = None,
    on_event: Callable[[Event], None] | None = None,
    enough: Callable[[CheckResult], bool] | None = None,
    cases: str = "",
    only_ids: Sequence[str] | None = None,
    later: contextlib.ExitStack | None = None,
    launch: processes.Launch = processes.start_child,
    first_tasks: Sequence[int] = (),
    shares: Sequence[Collection[str]] = (),
    stop: Callable[[], bool] = lambda: False,
    strict: Strict | None = None,
    witness: Path | None = None,
) -> DayReport:
    """Grade one day and report.

    solution: "exercises" or "reference", the tree to grade. borrow: days whose modules come from the
    reference. overlays: single modules ("week1/rope.py") replaced by other files. timeout: seconds a check
    may take, in place of the day's own limits. enough: told of each result; True ends the grading there, and
    the checks that are left are "not reached". cases: "keep" has failing checks leave their cases
    (cases.py), for which the child goes on, with `later` till that is closed; "replay" runs kept cases in the
    place of their checks. only_ids: these checks alone. launch: how a child is started (warm.Warm.launch).
    first_tasks: whose checks run before the others'. shares: checks that go to a child each, side by side.
    stop: asked all the time; True ends the grading in `Cancelled`, and there is no report.
    strict: watch for what makes the result worthless; the verdict is REFUSED where there is any.
    witness: a file to which the child appends what each failing check saw last (witness.py).
    Raises nothing for anything the graded code does.
    """
    replaced = {m: clone.reference / m for d in borrow for m in d.modules} | dict(overlays or {})
    run = _Run(
        clone, course.limits, day, solution, replaced, only_task, timeout, on_event or (lambda e: None)
    )
    run.enough = enough or run.enough
    run.cases, run.only_ids, run.later = cases, only_ids, later
    run.borrowed = tuple(d.id for d in borrow)
    run.launch, run.first_tasks, run.stop = launch, tuple(first_tasks), stop
    run.shares = tuple(frozenset(s) for s in shares)
    run.strict = strict
    run.witness = witness
    return run.report(tuple(d.id for d in borrow))


@dataclass(frozen=True)
class Strict:
    """That a grading is strict (see strict.py)."""

    reference: Clone  # where the reference is timed: the tree being graded has none beside it


def stuck_reason(seconds: float) -> str:
    return f"Still running after {seconds:.0f} s, and stopped."


@dataclass
class _Run:
    """The state of one grading. `results` grows as checks come to a verdict."""

    clone: Clone
    limits: Limits
    day: Day
    solution: str
    overlays: dict[str, Path]
    only_task: int | None
    timeout: float | None
    on_event: Callable[[Event], None]
    enough: Callable[[CheckResult], bool] = lambda result: False
    launch: processes.Launch = processes.start_child
    first_tasks: tuple[int, ...] = ()
    shares: tuple[frozenset[str], ...] = ()
    stop: Callable[[], bool] = lambda: False

    cases: str = ""
    only_ids: Sequence[str] | None = None
    later: contextlib.ExitStack | None = None
    borrowed: tuple[str, ...] = ()
    strict: Strict | None = None
    tampering: list[Tampering] = field(default_factory=list)
    witness: Path | None = None

    planned: dict[str, tuple[int, str]] = field(default_factory=dict)  # id -> (task, title), in order
    results: dict[str, CheckResult] = field(default_factory=dict)
    problem: str = ""
    settled: bool = False  # `enough` has said so
    began: float = field(default_factory=time.monotonic)

    def report(self, borrowed: tuple[str, ...]) -> DayReport:
        files = {
            f"{self.solution}/{m}": content_hash(self.overlays.get(m, self.clone.tree(self.solution) / m))
            for m in self.day.modules
        }
        verdict = None
        try:
            self._run_children()
            if self.stop():  # the last moment: what was graded may not be what is there
                raise Cancelled
        except KeyboardInterrupt:
            verdict, self.problem = Verdict.INTERRUPTED, "stopped by Ctrl-C"
        tasks = self._tasks()
        if verdict is None:
            verdict = Verdict.ENVIRONMENT if self.problem else verdict_of(tasks)
            verdict = Verdict.REFUSED if self.tampering else verdict
        return DayReport(
            day=self.day.id,
            title=self.day.title,
            solution=self.solution,
            graded=tuple(files),
            borrowed=borrowed,
            only_task=self.only_task,
            tasks=tasks,
            verdict=verdict,
            seconds=time.monotonic() - self.began,
            files=files,
            problem=self.problem,
            tampering=tuple(dict.fromkeys(self.tampering)),
        )

    def _tasks(self) -> tuple[TaskResult, ...]:
        chosen = [t for t in self.day.tasks if self.only_task in (None, t.id)]
        tasks = []
        for task in chosen:
            ids = [i for i, (number, _) in self.planned.items() if number == task.id]
            checks = tuple(
                self.results.get(
                    i,
                    CheckResult(id=i, task=task.id, title=self.planned[i][1], outcome=Outcome.NOT_REACHED),
                )
                for i in ids
            )
            count = task.checks if self.only_ids is None else len(ids)
            if count:
                tasks.append(TaskResult(task.id, task.title, count, checks))
        return tuple(tasks)

    # ---- children, one after another ----

    def _run_children(self) -> None:
        deadline = self.began + self.limits.day_seconds
        only_ids = None if self.only_ids is None else list(self.only_ids)
        shares: Sequence[frozenset[str] | None] = self.shares or (None,)
        launched = False
        while True:
            children: list[_Child] = []
            finished = False
            try:
                for share in shares:
                    children.append(_Child(self, only_ids, deadline, share))
                if not launched:
                    self.on_event(Launched())
                    launched = True
                finished = self.follow(children)
            finally:
                for child in children:
                    signed = child.stage == "ended"
                    if signed and self.later is not None:
                        self.later.callback(child.end_later)
                    elif signed and self.cases == "keep":
                        child.end_later()
                    else:
                        child.end()
            self._give_up_hopeless_tasks()
            left = [i for i in self.planned if i not in self.results]
            all_asked = finished and None in shares  # shares may leave out a check that is new
            if all_asked or self.settled or self.problem or not left:
                break
            if time.monotonic() > deadline:
                self._fill(
                    left, Outcome.NOT_REACHED, f"The day's {self.limits.day_seconds:.0f} s were used up."
                )
                break
            only_ids, shares = left, (None,)
        pinned = {t.id: t.checks for t in self.day.tasks if self.only_task in (None, t.id)}
        for number, expected in pinned.items():
            found = sum(task == number for task, _ in self.planned.values())
            if self.planned and found != expected and not self.problem and self.only_ids is None:
                self.problem = (
                    f"task {number} has {found} checks and checkpoint.toml says {expected}: "
                    "the course's own files do not fit together."
                )

    def follow(self, children: Sequence[_Child]) -> bool:
        """Follow children until each has ended or must be ended. True when all signed their runs off."""
        going, signed = list(children), True
        while going:
            select.select([c.child for c in going], [], [], POLL_SECONDS)
            for child in tuple(going):
                done = child.turn()
                if done is not None:
                    going.remove(child)
                    signed = signed and done
            if self.settled:
                return True
            if going and self.stop():
                raise Cancelled
        return signed

    def _give_up_hopeless_tasks(self) -> None:
        """Where checks of a task keep using up their time, or end the process, do not make the learner wait
        for the others."""
        for task in self.day.tasks:
            mine = [i for i, (number, _) in self.planned.items() if number == task.id]
            outcomes = [self.results[i].outcome for i in mine if i in self.results]
            left = [i for i in mine if i not in self.results]
            slow = sum(outcome in COSTLY for outcome in outcomes)
            crashed = outcomes.count(Outcome.CRASHED)
            if slow >= COSTLY_CHECKS:
                had = f"{slow} checks of this task had used up their time or memory"
            elif crashed >= CRASHES:
                had = f"{crashed} checks of this task had ended the process"
            else:
                continue
            self._fill(left, Outcome.NOT_REACHED, f"Not run: {had}.")

    def _fill(
        self, ids: Sequence[str], outcome: Outcome, summary: str, failure: Failure | None = None
    ) -> None:
        for check_id in ids:
            self.record(check_id, outcome, 0.0, failure=failure or Failure(summary=summary))

    def record(
        self,
        check_id: str,
        outcome: Outcome,
        seconds: float,
        *,
        ratio: float | None = None,
        failure: Failure | None = None,
    ) -> None:
        if self.settled:
            return  # it came in the same read as the check that settled it
        task, title = self.planned[check_id]
        if failure is not None and outcome is Outcome.FAILED:
            failure = replace(failure, summary=failure.summary + self._precision_note(check_id))
        result = CheckResult(check_id, task, title, outcome, seconds, ratio, failure)
        self.results[check_id] = result
        self.settled = self.settled or self.enough(result)
        self.on_event(result)
        if self._is_done(task):
            self.on_event(next(t for t in self._tasks() if t.id == task))

    def _is_done(self, task: int) -> bool:
        """Whether all checks of a task have come to a verdict."""
        return all(i in self.results for i, (number, _) in self.planned.items() if number == task)

    def _precision_note(self, check_id: str) -> str:
        """Say which of the two failed, the maths or the precision, when the float32 twin has passed."""
        for name in ("float16", "bfloat16"):
            twin = self.results.get(re.sub(rf"\b{name}\b", "float32", check_id))
            if twin and twin.id != check_id and twin.outcome is Outcome.PASSED:
                return f" The same check passes in float32, so the formula is right: look at the {name} path."
        return ""


class _Child:
    """One grading child, from start to end."""

    def __init__(
        self,
        run: _Run,
        only_ids: list[str] | None,
        deadline: float,
        share: frozenset[str] | None = None,
    ) -> None:
        """share: the checks that it is for, where others run beside it; None is all of them."""
        self.run = run
        self.share = share
        self.deadline = deadline
        job = {
            "root": str(run.clone.root),
            "day": run.day.id,
            "solution": run.solution,
            "overlays": {k: str(v) for k, v in run.overlays.items()},
            "only_task": run.only_task,
            "only_ids": only_ids,
            "cases": run.cases,
            "borrowed": run.borrowed,
            "first_tasks": run.first_tasks,
            "share": sorted(share) if share is not None else None,
            "witness": str(run.witness) if run.witness else "",
        }
        self.child = processes.Child("tinyllm.grader.child", job, cwd=run.clone.root, launch=run.launch)
        self.process = self.child.process
        self.stage = "starting"  # then building, importing, between, checking, ended
        self.current = ""  # id of the running check
        self.since = time.monotonic()
        self.stuck_frames: tuple[Frame, ...] | None = None
        self.yardstick: _Yardstick | None = None
        self.memory_checked = self.family_checked = self.since
        self.asked = self.repeated = False  # whether the running check hangs where another did

    # ---- the watch ----

    def turn(self) -> bool | None:
        """Take in what it has reported and look after its limits.

        None while it goes on; True when it signed its run off, False when it ended or must be ended.
        """
        self._pump(0)
        if self.stage == "ended":
            return True
        if self.process.poll() is not None:
            self._pump(0)  # what it wrote last
            if self.stage != "ended":
                self._died()
            return self.stage == "ended"
        now = time.monotonic()
        if now - self.memory_checked > MEMORY_POLL_SECONDS and self.stage != "building":
            self.memory_checked = now
            alone = now - self.family_checked < FAMILY_POLL_SECONDS
            if not alone:
                self.family_checked = now
            limit = self.run.limits.memory_gib * 2**30
            if processes.memory_of(self.process, alone=alone) > limit:
                used = f"Used more than {self.run.limits.memory_gib:g} GiB of memory, and was stopped."
                self._blame(Outcome.OUT_OF_MEMORY, used, self._where_it_stands())
                return False
        return False if self._too_long(now) else None

    def _too_long(self, now: float) -> bool:
        """End the check that has used up its time; say where its code stood."""
        taken = now - self.since
        if self.stage in PATIENCE:
            what, patience = PATIENCE[self.stage]
            if taken < patience:
                return False
            self.run.problem = f"{what} took more than {patience:.0f} s"
            return True
        limit = self._limit(taken)
        if self.stage == "checking" and taken > 1.0:
            self.run.on_event(Slow(self.current, taken, limit))
        if taken < limit and now < self.deadline:
            return False
        frames = self._where_it_stands()
        if self.stage == "checking" or self.stage == "importing":
            summary = stuck_reason(taken)
            if self.repeated:
                summary += " It had less time, as it stood where another check had used up its own."
            if frames:
                summary += " It was at the line below."
            self._blame(Outcome.TIMED_OUT, summary, frames)
        return True

    def _limit(self, taken: float) -> float:
        """Seconds the running stage may take.

        A floor, or a multiple of what the reference takes for the same check on this machine now. The
        reference is only timed once a check has used half the floor. Half-way through the lower floor of what
        hangs again the check is asked whether that is what it does.
        """
        if self.run.timeout is None and self.run.solution == "reference":
            return self.run.limits.day_seconds
        floor = self.run.timeout or self.run.limits.check_seconds
        lower = min(floor, max(REPEATED_SECONDS, REPEATED_SHARE * floor))
        if self.stage == "checking" and not self.asked and lower / 2 <= taken < floor / 2:
            self.repeated = self._hangs_again()
        if self.repeated:
            floor = lower
        if self.run.timeout is not None or self.stage != "checking" or taken < floor / 2:
            return floor
        if self.yardstick is None:
            self.yardstick = _Yardstick(self.run, self.current)
        return max(floor, self.run.limits.reference_multiple * self.yardstick.seconds)

    def _hangs_again(self) -> bool:
        """Whether the running check stands in the function in which another had used up its time."""
        self.asked, current = True, self.current
        hung = [r.failure for r in self.run.results.values() if r.outcome is Outcome.TIMED_OUT and r.failure]
        places = {_place(failure.frames) for failure in hung if failure.frames}
        frames = self._answer() if places else None
        # Meanwhile it may have come to its end, and another may have begun.
        if not frames or (self.stage, self.current) != ("checking", current):
            return False
        return _place(frames) in places

    def _pump(self, wait: float) -> None:
        """Read what the child printed and reported."""
        for event in self.child.read(wait):
            self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        run = self.run
        if run.strict is not None and self._is_forged(event):
            return
        if event["event"] != "stuck":  # an answer of the check that runs on, not a step of its own
            self.since = time.monotonic()
        match event["event"]:
            case "tampered":
                run.tampering.append(Tampering(**{k: event[k] for k in Tampering.__match_args__}))
            case "collected":
                wanted = [c for c in event["checks"] if run.only_ids is None or c["id"] in run.only_ids]
                for c in wanted:
                    run.planned.setdefault(c["id"], (c["task"], c["title"]))
            case "building":
                self.stage = "building"
                run.on_event(Building())
            case "importing":
                self.stage = "importing"
            case "imported":
                self.stage = "between"
            case "start":
                self.child.drain_prints()
                self.child.prints.next()
                self.stage, self.current = "checking", event["id"]
                self.asked = self.repeated = False
                task, title = run.planned[self.current]
                run.on_event(Started(self.current, title, task, len(run.results) + 1, len(run.planned)))
            case "finish":
                self.stage = "between"
                self._stop_yardstick()
                self._finish(event)
            case "stuck":
                self.stuck_frames = tuple(Frame.read(f) for f in event["frames"])
            case "end":
                if event["pytest"] in (0, 1) or run.planned:
                    self.stage = "ended"
                else:
                    self._broken_course(event["said"])

    def _is_forged(self, event: dict[str, Any]) -> bool:
        """Whether an event comes where the child sends none: a result of a check that is not running."""
        match event["event"]:
            case "finish":
                wrong = self.stage != "checking" or event.get("id") != self.current
            case "start":
                known = event.get("id") in self.run.planned and event["id"] not in self.run.results
                wrong = self.stage == "checking" or not known
            case "collected":
                wrong = self.stage != "starting"
            case "end":
                wrong = self.stage == "checking"
            case _:
                wrong = False
        if wrong:
            self._forged(f"a result that no check gave ({event['event']})")
        return wrong

    def _forged(self, what: str) -> None:
        path = f"{self.run.solution}/{self.run.day.modules[0]}"
        where = f", during {self.current}" if self.current else ""
        self.run.tampering.append(Tampering("pipe", f"{what} was written to the grader's pipe{where}", path))

    def _finish(self, event: dict[str, Any]) -> None:
        self.child.drain_prints()  # the child flushed its prints before it reported
        failure = None
        if event.get("failure"):
            parts = dict(event["failure"])
            parts["frames"] = tuple(Frame.read(f) for f in parts["frames"])
            failure = Failure(**{**parts, "prints": self.child.prints.text()})
        outcome = Outcome(event.get("outcome", "crashed"))
        self.run.record(
            event["id"], outcome, event.get("seconds", 0.0), ratio=event.get("ratio"), failure=failure
        )

    # ---- when it does not end well ----

    def _broken_course(self, said: str) -> None:
        """Pytest could not even collect the day's tests: that is never the learner's doing."""
        self.stage = "ended"
        self.run.problem = (
            "the day's tests could not be collected:\n" + (said or self.child.prints.text()).strip()
        )

    def _died(self) -> None:
        """The child ended without signing off."""
        code = self.process.returncode
        frames = self._frames_in_stack_file()
        summary = processes.ending(code, "the check")
        if self.stage in PATIENCE:
            self.run.problem = "the grading process could not start:\n" + self.child.prints.text()
        else:
            self._blame(Outcome.CRASHED, summary, frames)

    def _blame(self, outcome: Outcome, summary: str, frames: tuple[Frame, ...] = ()) -> None:
        """Give the running check its outcome; when the import is at fault, give it to every check."""
        run = self.run
        failure = Failure(summary=summary, frames=frames, prints=self.child.prints.text())
        if self.stage == "checking" and self.current not in run.results:
            run.record(self.current, outcome, time.monotonic() - self.since, failure=failure)
        elif self.stage == "importing":
            failure = replace(failure, summary=f"While importing the day's modules: {summary}")
            run._fill(self._left(), outcome, "", failure)
        else:
            # It ended between two checks, or after the last one but before it had signed off: a thread of
            # the check before, or something it left behind.
            left = self._left()
            run.record(left[0] if left else self.current, outcome, 0.0, failure=failure)

    def _left(self) -> list[str]:
        """The checks of its share that have come to no verdict."""
        planned, results = self.run.planned, self.run.results
        return [i for i in planned if i not in results and (self.share is None or i in self.share)]

    def _where_it_stands(self) -> tuple[Frame, ...]:
        """Ask the running code for its line and names; when it is inside C code, for its line."""
        answer = self._answer()
        if answer is not None:
            return answer
        if self._signal(signal.SIGABRT):
            try:
                self.process.wait(STUCK_ANSWER_SECONDS)
            except subprocess.TimeoutExpired:
                return ()
        return self._frames_in_stack_file()

    def _answer(self) -> tuple[Frame, ...] | None:
        """The running code's lines and names; None when it does not answer, inside C code. It goes on."""
        self.stuck_frames = None
        if self._signal(signal.SIGUSR2):
            end = time.monotonic() + STUCK_ANSWER_SECONDS
            while self.stuck_frames is None and time.monotonic() < end and self.process.poll() is None:
                self._pump(POLL_SECONDS)
        return self.stuck_frames

    def _signal(self, number: int) -> bool:
        if self.process.poll() is not None:
            return False
        self.process.send_signal(number)
        return True

    def _frames_in_stack_file(self) -> tuple[Frame, ...]:
        """The learner's frames in what faulthandler wrote, outermost first."""
        from linecache import getline

        owned = {
            str(self.run.overlays.get(m, self.run.clone.tree(self.run.solution) / m)): m
            for m in self._modules()
        }
        frames = []
        for path, line, function in self.child.stack():
            if str(path) in owned or path.is_relative_to(self.run.clone.tree(self.run.solution)):
                shown = self.run.clone.relative(path)
                if str(path) in owned:
                    shown = f"{self.run.solution}/{owned[str(path)]}"
                frames.append(Frame(shown, line, function, getline(str(path), line).strip()))
        return tuple(reversed(frames[:4]))

    def _modules(self) -> Sequence[str]:
        return [*self.run.day.modules, *self.run.overlays]

    def _stop_yardstick(self) -> None:
        if self.yardstick is not None:
            self.yardstick.stop()
            self.yardstick = None

    def end_later(self) -> None:
        """Let the child come to its end, which it has signed: it writes down the cases of failing checks."""
        until = time.monotonic() + CASES_SECONDS
        while time.monotonic() < until and not self.child.ended:
            self.child.read(POLL_SECONDS)  # what it prints must not fill the pipe
        self.end()

    def end(self) -> None:
        """Leave nothing running and nothing open."""
        self._stop_yardstick()
        if self.child.foreign_lines and self.run.strict is not None:
            self._forged("something that is no event")
        if self.stage == "ended":  # it is about to go by itself
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GOODBYE_SECONDS)
        self.child.end()


def _place(frames: Sequence[Frame]) -> tuple[str, str]:
    """The learner's function that was called last."""
    return frames[-1].path, frames[-1].function


class _Yardstick:
    """Times the reference on one check, beside the learner's slow run of it."""

    def __init__(self, run: _Run, check_id: str) -> None:
        self.seconds = math.inf  # until it is known: nothing is too slow before that
        self._child: _Child | None = None
        self._check_id = check_id
        clone = run.strict.reference if run.strict is not None else run.clone
        self._run = _Run(clone, run.limits, run.day, "reference", {}, None, None, lambda e: None)
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._measure, daemon=True)
        self._thread.start()

    def _measure(self) -> None:
        with self._lock:
            if self._stopped:
                return
            deadline = time.monotonic() + self._run.limits.day_seconds
            self._child = _Child(self._run, [self._check_id], deadline)
        try:
            self._run.follow([self._child])
        finally:
            with self._lock:
                self._child.end()
                self._child = None
        result = self._run.results.get(self._check_id)
        self.seconds = result.seconds if result and result.outcome is Outcome.PASSED else 0.0

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._child is not None:
                self._child._signal(signal.SIGKILL)
        self._thread.join(timeout=20)  # it ends the child; that takes a moment on a busy machine
