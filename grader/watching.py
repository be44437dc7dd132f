"""`watch`: grades a day whenever its files are saved, and does what keys ask for.

One loop waits for a save, a key or a second's end. A grading runs inside it; while it does, the runner asks
`_interrupted` again and again, which looks at files and keys: an edit cancels the grading and it starts anew,
q cancels it and ends. Files are told apart by their content: a save without a change is none.

Gradings are logged as those of `tinyllm-grade DAY` are. One of the very files that the last attempt was about
is not another attempt, and one that an edit cancelled came to no verdict.
"""

from __future__ import annotations

import itertools
import math
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from . import attempts, grading, runner, standing, tracker
from .catalog import Course, Day
from .clone import Clone
from .errors import EnvironmentFault
from .files import MISSING, content_hash
from .keyboard import CLOSED, Keyboard
from .report import DayReport, LikelyMistake, Outcome, Verdict
from .runner import Cancelled
from .saves import Saves, without_events
from .standing import Standing
from .symbols import regions, segment
from .warm import Warm
from .watch_screen import WatchScreen

TICK = 1.0  # seconds after which files are looked at without any event
SETTLE_SECONDS = 0.15  # an editor's rename or truncation is over by then
GRACE_SECONDS = 0.4  # events that come later than this after a change are taken for none at all
WORTH_SHARING = 0.25  # seconds of checks; with less, a second child costs more than it saves
OF_ANY_CHECK = 0.001  # seconds that pytest takes for a check, whatever it does

Hashes = dict[str, str]
Look = tuple[tuple[int, int, int], ...]


@dataclass
class Watch:
    """Watches one day after the other. `command` runs another command of the program: ["hint", "day1.1"]."""

    clone: Clone
    course: Course
    day: Day
    listener: grading.Listener
    screen: WatchScreen
    keyboard: Keyboard | None
    command: Callable[[Sequence[str]], None]
    poll: bool = False  # never rely on events
    timeout: float | None = None
    record: bool = True

    report: DayReport | None = None  # the last one of this day
    graded: Hashes | None = None  # the files that it is about
    _wanted: Hashes = field(default_factory=dict)  # the files that are being graded
    _pressed: list[str] = field(default_factory=list)  # keys not yet looked after
    _quit: bool = False
    _confirm: str = ""  # the key that has to be pressed once more
    _told: set[str] = field(default_factory=set)  # edits of other days' files that were remarked on
    _looked: Look = ()
    _looked_at: float = 0.0
    _texts: dict[int, tuple[str, ...]] = field(default_factory=dict)  # each task's code, as last graded
    _tracker_due: bool = False

    def run(self) -> int:
        """Watch until told to stop; returns the exit code."""
        if not self.clone.exercises.is_dir():
            raise EnvironmentFault(
                f"{self.clone.exercises} is not there.",
                next_step=f"Bring the stub back with: tinyllm-grade reset {self.day.name}",
            )
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _leave)
        polled = self._why_poll()
        self.saves = Saves(self.clone.exercises, poll=bool(polled))
        self.warm = Warm(self.clone, self.day, ahead=1)
        try:
            self._open(polled)
            return self._loop()
        finally:
            self.warm.close()
            self.saves.close()
            if self._tracker_due:
                tracker.update(self.clone, self.course)

    # ---- the loop

    def _loop(self) -> int:
        while not self._quit:
            verdict = self._grade_if_changed()
            if verdict is Verdict.INTERRUPTED:
                return 130
            if verdict is Verdict.PASSED and self.keyboard is None:
                return 0
            waited_on: list[Any] = [self.saves]
            if self.keyboard is not None:
                waited_on.append(self.keyboard)
            if not self._pressed and not self._quit:
                ready = select.select(waited_on, [], [], TICK)[0]
                self._look_after_events(bool(ready))
            self._read_keys()
            while self._pressed and not self._quit:
                self._do(self._pressed.pop(0))
        return 0

    def _open(self, polled: str) -> None:
        """Begin with the day: say so, and take what the log knows of these very files."""
        self.report = self.graded = None
        self._confirm = ""
        self._texts = {}
        self.screen.fresh()
        self.screen.opening(self.day, [f"exercises/{m}" for m in self.day.modules], polled)

    def _grade_if_changed(self) -> Verdict | None:
        """Grade until the verdict is about the files as they are; None when there was nothing to grade."""
        found = None
        again = False
        while not self._quit:
            now = self._settled()
            if now == self.graded:
                break
            if not again and self.graded is not None:
                self.screen.fresh()
            try:
                found = self._grade(now)
            except Cancelled:
                self.listener_stop()
                self._tracker_due = True
                if not self._quit:
                    self.screen.fresh()
                    self.screen.saved_again()
                again = True
                continue
            if found is Verdict.INTERRUPTED:
                return found
        if found is not None:
            self.screen.waiting()
            self.warm.refresh()
            self.warm.have_ready(max(1, len(self._shares())))
        return found

    def _grade(self, now: Hashes, *, record: bool | None = None) -> Verdict:
        """One grading of the files as they are. Raises Cancelled."""
        if record is None:
            record = self.record and not (self.graded is None and self._known_to_the_log(now))
        self._wanted = now
        had_passed = self.report is not None and self.report.verdict is Verdict.PASSED
        options = grading.Options(
            timeout=self.timeout,
            record=record,
            how={
                "launch": self.warm.launch,
                "first_tasks": self._first_tasks(),
                "shares": self._shares(),
                "stop": self._interrupted,
            },
        )
        follower = _Follower(self.listener, self._interrupted)
        try:
            done = grading.grade(self.clone, self.course, [self.day], options, follower)
        finally:
            if follower.report is not None:  # its verdict has been told, whatever came after it
                self.report, self.graded = follower.report, now
        self._tracker_due = False
        verdict = done.reports[0].verdict
        if verdict is Verdict.PASSED and not had_passed:
            self.screen.learned(self.day, self._standing(), self._following())
        self._texts = self._code()
        return verdict

    def listener_stop(self) -> None:
        """Have a spinner of the cancelled grading end."""
        stop = getattr(self.listener, "stop", None)
        if stop is not None:
            stop()

    def _interrupted(self) -> bool:
        """Asked by the runner all the time: whether the grading that runs is of no use any more."""
        self._read_keys()
        if self._quit:
            return True
        if select.select([self.saves], [], [], 0)[0]:
            self._look_after_events(True)
        elif time.monotonic() - self._looked_at < TICK:
            return False
        return self._hashes() != self._wanted

    # ---- files

    def _files(self) -> list[str]:
        """What a verdict of the day is about: its modules and those of the days that it runs."""
        return [m for day in self.course.foundation(self.day) for m in day.modules]

    def _hashes(self) -> Hashes:
        self._looked = self._look()
        self._looked_at = time.monotonic()
        return {m: content_hash(self.clone.exercises / m) for m in self._files()}

    def _settled(self) -> Hashes:
        """The files' hashes, once none is on its way: gone for a moment, or cut to nothing."""
        end = time.monotonic() + SETTLE_SECONDS
        before = self.graded or {}
        while True:
            now = self._hashes()
            going = [m for m, h in now.items() if h in (MISSING, EMPTY) and before.get(m) != h]
            if not going or time.monotonic() >= end:
                return now
            time.sleep(0.01)

    def _look(self) -> Look:
        """When and how large the files are: cheaper than to read them."""
        found = []
        for module in self._files():
            try:
                stat = (self.clone.exercises / module).stat()
                found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
            except OSError:
                found.append((0, -1, 0))
        return tuple(found)

    def _look_after_events(self, ready: bool) -> None:
        """Take events in. Where files changed without any, go over to looking at them."""
        paths = self.saves.take()
        if self.saves.fault and not self.saves.poll:
            self._poll_from_now(f"the system tells of no changes ({self.saves.fault})")
        elif not ready and self.saves.up and not self.saves.poll and self._look() != self._looked:
            silent = not select.select([self.saves], [], [], GRACE_SECONDS)[0]
            if silent:
                self._poll_from_now("this file system tells of no changes")
        self._remark_on_other_days(paths)

    def _poll_from_now(self, why: str) -> None:
        self.saves.close()
        self.saves = Saves(self.clone.exercises, poll=True)
        self.screen.notice(f"looking five times a second: {why}")

    def _why_poll(self) -> str:
        if self.poll:
            return "--poll"
        kind = without_events(self.clone.exercises)
        return f"a {kind} file system tells of no changes" if kind else ""

    def _remark_on_other_days(self, paths: Iterable[Path]) -> None:
        """A learner may be at work on another day's file, and wonder that nothing happens."""
        mine = set(self._files())
        for path in sorted(paths):
            try:
                module = path.relative_to(self.clone.exercises).as_posix()
            except ValueError:
                continue
            owner = None if module in mine else self.course.day_of(module)
            if owner is not None and module not in self._told:
                self._told.add(module)
                self.screen.notice(
                    f"exercises/{module} is not {self.day.name}'s. For it: "
                    f"tinyllm-grade watch {owner.name}".replace("grade watch day", "grade\xa0watch\xa0day")
                )

    # ---- how to grade

    def _first_tasks(self) -> tuple[int, ...]:
        """The tasks that did not pass; when all did, those whose code is another one now."""
        if self.report is None:
            return tuple(t.id for t in self._standing().tasks if not t.passed)
        failing = tuple(t.id for t in self.report.tasks if t.outcome is not Outcome.PASSED)
        return failing or self._changed_tasks()

    def _changed_tasks(self) -> tuple[int, ...]:
        return tuple(t for t, text in self._code().items() if self._texts and self._texts.get(t) != text)

    def _code(self) -> dict[int, tuple[str, ...]]:
        """The code of each task."""
        sources: dict[str, str] = {}
        found = {}
        for task in self.day.tasks:
            texts = []
            for symbol in task.symbols:
                if symbol.module not in sources:
                    try:
                        path = self.clone.exercises / symbol.module
                        sources[symbol.module] = path.read_text(encoding="utf-8", errors="replace")
                    except OSError:
                        sources[symbol.module] = ""
                source = sources[symbol.module]
                if symbol.module.endswith(".py"):
                    texts.append(getattr(segment(source, symbol.name), "text", ""))
                else:
                    texts += [s.text for s in regions(source, task.id)]
            found[task.id] = tuple(texts)
        return found

    def _shares(self) -> list[set[str]]:
        """The day's checks for as many children as there are processors, by the time that they took.

        A task's checks stay together, in one process and in their order, unless they take longer than a
        child's part: then they are cut between two test functions.
        """
        if self.report is None or not self.warm.forks:
            return []
        count = min(_processors(), 4)
        seconds = {c.id: c.seconds + OF_ANY_CHECK for t in self.report.tasks for c in t.checks}
        total = sum(seconds.values())
        if total < WORTH_SHARING or count < 2:
            return []
        runs: list[list[str]] = []
        for task in self.report.tasks:
            runs += _cut([c.id for c in task.checks], seconds, total / count)
        shares: list[set[str]] = [set() for _ in range(count)]
        loads = [0.0] * count
        for run in sorted(runs, key=lambda ids: -sum(seconds[i] for i in ids)):
            least = loads.index(min(loads))
            shares[least].update(run)
            loads[least] += sum(seconds[i] for i in run)
        return [s for s in shares if s]

    # ---- the log

    def _standings(self) -> tuple[Standing, ...]:
        events, _ = attempts.read(self.clone)
        return standing.standings(self.course, events, standing.exercise_hashes(self.clone, self.course))

    def _standing(self) -> Standing:
        return next(s for s in self._standings() if s.day == self.day.id)

    def _known_to_the_log(self, now: Mapping[str, str]) -> bool:
        """Whether the last attempt at the whole day was about these very files."""
        last = self._standing().last_graded
        if last is None or last.borrowed:
            return False
        return all(last.files.get(f"exercises/{m}") == h for m, h in now.items())

    def _following(self) -> Day | None:
        """The next day that is not finished; where all are, the next one."""
        later = self.course.days[self.course.days.index(self.day) + 1 :]
        finished = {s.day for s in self._standings() if s.finished}
        return next((d for d in later if d.id not in finished), next(iter(later), None))

    # ---- keys

    def _read_keys(self) -> None:
        if self.keyboard is not None:
            self._pressed += self.keyboard.read()
        self._quit = self._quit or any(key in ("q", "Q", CLOSED) for key in self._pressed)

    def _do(self, key: str) -> None:
        """What a key asks for."""
        key = key.lower()
        confirmed, self._confirm = self._confirm == key, ""
        match key:
            case "h":
                self._hint()
            case "d":
                self._diff(confirmed)
            case "r":
                self._run("read", self.day.name)
            case "l":
                self._run("list")
            case "n":
                self._next(confirmed)
            case "g" | "\r" | "\n":
                self._again()
            case "?":
                self.screen.help()

    def _run(self, *arguments: str) -> None:
        """Run another command, with the terminal as it was."""
        assert self.keyboard is not None
        with self.keyboard.lent():
            self.command(arguments)
        self.screen.waiting()

    def _task(self) -> int | None:
        """The first task that does not pass."""
        if self.report is None:
            return self.day.tasks[0].id
        return next((t.id for t in self.report.tasks if t.outcome is not Outcome.PASSED), None)

    def _hint(self) -> None:
        task = self._task()
        if task is None:
            self.screen.notice(f"Every task of {self.day.name} passes; there is nothing to hint at.")
        else:
            self._run("hint", self.day.name, "--task", str(task))

    def _diff(self, confirmed: bool) -> None:
        task = self._task()
        if task is not None and not confirmed:
            self._confirm = "d"
            self.screen.notice(
                f"d once more shows the reference's task {task} beside yours. The tracker notes it.",
                "bold yellow",
            )
            return
        self._run("diff", self.day.name, *(("--task", str(task)) if task is not None else ()))

    def _next(self, confirmed: bool) -> None:
        following = self._following()
        passed = self.report is not None and self.report.verdict is Verdict.PASSED
        if following is None:
            self.screen.notice(f"{self.day.name} is the last day so far.")
        elif not passed and not confirmed:
            self._confirm = "n"
            self.screen.notice(
                f"{self.day.name} has not passed yet; n once more goes on to {following.name} all the same.",
                "bold yellow",
            )
        else:
            self.warm.close()
            self.day = following
            self.warm = Warm(self.clone, self.day, ahead=1)
            self._open("")
            self.screen.notice(f"r is the lesson. {following.summary}", "")

    def _again(self) -> None:
        """Grade on demand: where events are missed, or to see the verdict once more."""
        if self._settled() != self.graded:
            return  # the loop grades it
        self.screen.fresh()
        self.screen.unchanged()
        try:
            self._grade(self.graded or {}, record=False)
        except Cancelled:
            self.listener_stop()
            self.graded = None
            return
        self.screen.waiting()


class _Follower:
    """Passes on to a listener what happens, and keeps the report once its verdict was told."""

    def __init__(self, listener: grading.Listener, stop: Callable[[], bool]) -> None:
        self._listener = listener
        self._stop = stop  # asked while a mistake is looked for, which the verdict does not wait for
        self.report: DayReport | None = None

    def begin(self, day: Day) -> None:
        self._listener.begin(day)

    def event(self, event: runner.Event) -> None:
        self._listener.event(event)

    def end(self, day: Day, report: DayReport, so_far: Standing | None) -> None:
        self._listener.end(day, report, so_far)
        self.report = report

    def broken(self, day: Day, report: DayReport) -> None:
        self._listener.broken(day, report)

    def looking(self, done: int, total: int) -> None:
        if self._stop():
            raise Cancelled
        self._listener.looking(done, total)

    def likely(self, day: Day, found: Sequence[LikelyMistake]) -> None:
        self._listener.likely(day, found)

    def notice(self, text: str) -> None:
        self._listener.notice(text)


EMPTY = "e3b0c44298fc"  # content_hash of a file of no bytes


def _cut(ids: Sequence[str], seconds: Mapping[str, float], part: float) -> list[list[str]]:
    """A task's checks as runs of about `part` seconds, no test function's in two of them."""
    left = sum(seconds[i] for i in ids)
    cuts = math.ceil(left / part)
    runs: list[list[str]] = [[]]
    filled = 0.0
    for _, group in itertools.groupby(ids, key=lambda i: i.partition("[")[0]):
        function = list(group)
        more = sum(seconds[i] for i in function)
        # Cut where the run comes nearest to its fair part of what is left.
        if runs[-1] and len(runs) < cuts and filled + more / 2 > left / (cuts - len(runs) + 1):
            runs.append([])
            left -= filled
            filled = 0.0
        runs[-1] += function
        filled += more
    return runs


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """The terminal was closed, or somebody ended us: by way of every `finally`."""
    raise SystemExit(128 + number)
