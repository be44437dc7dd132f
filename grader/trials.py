"""Runs checks of one day with modules of the tree replaced: the parent's end of guilt_child.

A trial that hangs, crashes or eats the memory costs its check that trial and the child its life; the checks
that are left go on in a fresh child. Nothing here knows what the trials are for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import processes
from .catalog import Course, Day
from .clone import Clone
from .errors import EnvironmentFault
from .report import Outcome
from .runner import COSTLY_CHECKS, PATIENCE, stuck_reason

POLL_SECONDS = 0.05
MEMORY_POLL_SECONDS = 0.1
SHARE_OF_TIME = 0.8  # of a check's seconds, spent computing, is what it may use
BOOT_PATIENCE = 3  # times what a grading allows: nobody waits for a verdict here
WAITING = 4  # times its seconds is what a check may wait for


class OutOfTime(Exception):
    """The deadline has come."""


@dataclass(frozen=True)
class Variant:
    """What stands in the place of the tree's own modules.

    overlays: whole files, by the module they replace. parts: names of a Python module that come from the
    reference's file of the same path.
    """

    overlays: Mapping[str, Path] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tried:
    """What became of one check in one trial."""

    id: str
    task: int
    title: str
    outcome: Outcome
    seconds: float = 0.0
    summary: str = ""  # why it did not pass
    needs_day: str = ""  # the unfinished earlier day that stopped it


class Trials:
    """The checks of `day`, ready to be run on variants of the tree `solution`. To be closed."""

    def __init__(
        self,
        clone: Clone,
        course: Course,
        day: Day,
        *,
        solution: str = "exercises",
        deadline: float | None = None,
        check_seconds: float | None = None,
    ) -> None:
        """deadline: on time.monotonic's clock; after it `run` raises OutOfTime. check_seconds: what one check
        may take, in place of the course's floor."""
        self.clone = clone
        self.course = course
        self.day = day
        self.solution = solution
        self.deadline = deadline
        self.check_seconds = check_seconds or course.limits.check_seconds
        self.checks: dict[str, tuple[int, str]] = {}  # id -> task and title, once a child has collected them
        self.boots = 0  # children started
        self._child: processes.Child | None = None
        self._kernels: dict[str, str] = {}  # the C++ files that the child was started with

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def prepare(self, variant: Variant) -> None:
        """Start a child for this variant, so that `checks` is known."""
        self._ready(variant)

    def run(self, variant: Variant, ids: Sequence[str] | None = None) -> dict[str, Tried]:
        """Run these checks, or all of the day's, on a variant. Raises OutOfTime and EnvironmentFault."""
        found: dict[str, Tried] = {}
        costly = 0
        while True:
            child = self._ready(variant)
            left = [i for i in (self.checks if ids is None else ids) if i not in found]
            if costly >= COSTLY_CHECKS:
                for i in left:
                    found[i] = self._tried(i, Outcome.NOT_REACHED)
                left = []
            if not left:
                return found
            request = {
                "overlays": {m: str(f) for m, f in variant.overlays.items()},
                "parts": {m: list(names) for m, names in variant.parts.items()},
                "ids": left,
            }
            child.send(json.dumps(request).encode() + b"\n")
            try:
                ended = _Following(self, child, found, left).to_the_end()
            except BaseException:
                self.close()
                raise
            if not ended:
                costly += 1
                self.close()

    def _tried(self, check: str, outcome: Outcome, **more: Any) -> Tried:
        task, title = self.checks[check]
        return Tried(check, task, title, outcome, **more)

    def _ready(self, variant: Variant) -> processes.Child:
        """A child that waits for trials of this variant."""
        kernels = {m: str(f) for m, f in variant.overlays.items() if m.endswith(".cpp")}
        if self._child is not None and not self._child.ended and kernels == self._kernels:
            return self._child
        self.close()
        job = {
            "root": str(self.clone.root),
            "day": self.day.id,
            "solution": self.solution,
            "overlays": {m: str(f) for m, f in variant.overlays.items()},
        }
        self._child = processes.Child("tinyllm.grader.guilt_child", job, cwd=self.clone.root, requests=True)
        self._kernels = kernels
        self.boots += 1
        try:
            self._boot(self._child)
        except BaseException:
            self.close()
            raise
        return self._child

    def _boot(self, child: processes.Child) -> None:
        stage, since = "starting", time.monotonic()
        while True:
            for event in child.read(POLL_SECONDS):
                match event["event"]:
                    case "collected":
                        self.checks = {c["id"]: (c["task"], c["title"]) for c in event["checks"]}
                    case "building":
                        stage, since = "building", time.monotonic()
                    case "ready":
                        return
                    case "end":
                        said = event["said"] or child.prints.text()
                        raise EnvironmentFault(f"{self.day.name}'s tests could not be collected:\n{said}")
            what, patience = PATIENCE[stage]
            if child.ended:
                raise EnvironmentFault(f"{what} failed:\n{child.prints.text().strip()}")
            if time.monotonic() - since > BOOT_PATIENCE * patience:
                raise EnvironmentFault(f"{what} took more than {BOOT_PATIENCE * patience:.0f} s")
            self.look_at_the_clock()

    def look_at_the_clock(self) -> None:
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime


class _Following:
    """One request, followed until the child is done with it or must be ended."""

    def __init__(
        self, trials: Trials, child: processes.Child, found: dict[str, Tried], ids: Sequence[str]
    ) -> None:
        self.trials = trials
        self.child = child
        self.found = found
        self.ids = ids
        self.importing = True
        self.current = ""  # the running check
        self.done = False
        self.since = time.monotonic()
        self.computed: float | None = None  # processor seconds of the child when the check began

    def to_the_end(self) -> bool:
        """True when the child is ready for more; False when it is lost, its check judged."""
        memory_looked_at = 0.0
        while True:
            for event in self.child.read(POLL_SECONDS):
                self._take(event)
            if self.done:
                return True
            now = time.monotonic()
            if self.child.ended:
                for event in self.child.rest():
                    self._take(event)
                if not self.done:
                    code = self.child.process.returncode
                    self._lost(Outcome.CRASHED, processes.ending(code, "the check"))
                return False
            if now - memory_looked_at > MEMORY_POLL_SECONDS:
                memory_looked_at = now
                limit = self.trials.course.limits.memory_gib
                if processes.memory_of(self.child.process) > limit * 2**30:
                    self._lost(Outcome.OUT_OF_MEMORY, f"Used more than {limit:g} GiB of memory.")
                    return False
            if self._too_long(now):
                self._lost(Outcome.TIMED_OUT, stuck_reason(now - self.since))
                return False
            self.trials.look_at_the_clock()

    def _too_long(self, now: float) -> bool:
        """Whether the running check has had its seconds, of the processor: other work on the machine is not
        its doing. A check that waits and computes nothing has a few times as many."""
        taken = now - self.since
        if self.computed is None and taken > POLL_SECONDS:
            self.computed = processes.computed_by(self.child.process)
        if taken <= self.trials.check_seconds or self.computed is None:
            return False
        spent = processes.computed_by(self.child.process) - self.computed
        return (
            spent > SHARE_OF_TIME * self.trials.check_seconds or taken > WAITING * self.trials.check_seconds
        )

    def _take(self, event: Mapping[str, Any]) -> None:
        self.since, self.computed = time.monotonic(), None
        match event["event"]:
            case "imported":
                self.importing = False
            case "start":
                self.current = event["id"]
            case "finish":
                failure = event.get("failure") or {}
                self._note(
                    event["id"],
                    Outcome(event.get("outcome", "crashed")),
                    seconds=event.get("seconds", 0.0),
                    summary=failure.get("summary", ""),
                    needs_day=failure.get("needs_day", ""),
                )
                self.current = ""
            case "done":
                self.done = True

    def _note(self, check: str, outcome: Outcome, **more: Any) -> None:
        self.found[check] = self.trials._tried(check, outcome, **more)

    def _lost(self, outcome: Outcome, summary: str) -> None:
        """Give the running check its outcome; where importing is at fault, every check that is left."""
        left = [i for i in self.ids if i not in self.found]
        if not self.importing:
            left = [self.current or left[0]] if left else []
        for check in left:
            seconds = time.monotonic() - self.since
            self._note(check, outcome, seconds=seconds, summary=summary)
