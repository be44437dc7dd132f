"""What `bench` finds, as values, in the order in which it is found. The measuring itself runs in a child.

The child (benching_child.py) dies with this process. What goes wrong in it is told in a sentence: a stub, an
exception or a crash of the tree's code with its line, a fault of the course's as such. Nothing here prints.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import processes, unfinished
from .catalog import Course, Day, Engine
from .clone import Clone
from .errors import CourseError, EnvironmentFault, UsageError
from .figures import Count, Limits, Race, Verdict
from .report import Frame
from .roofline import Roofline
from .schedule_picture import SchedulePicture

POLL_SECONDS = 0.1
MEMORY_POLL_SECONDS = 0.5
SHARE_OF_MEMORY = 0.85  # of what is free at the start, that a measurement may use
MODULE = "tinyllm.grader.benching_child"


@dataclass(frozen=True)
class ModelOptions:
    """What `bench model` is asked for. Either `shape` names a random checkpoint or `folder` holds one."""

    shape: str
    folder: str
    dtype: str
    against: str  # "mlx-lm" or "none"
    prefill: tuple[int, ...]  # lengths
    prompt: int  # tokens before those that are decoded
    tokens: int
    rounds: int
    plot: bool  # the fastest product is measured as well, and a Roofline told


@dataclass(frozen=True)
class Stage:
    """What is being done now."""

    text: str


@dataclass(frozen=True)
class Note:
    """A sentence to print."""

    text: str


Event = Stage | Note | Count | Race | Limits | Roofline | SchedulePicture


class NotMeasured(CourseError):
    """The tree's code did not come to its end: a day is unfinished, or something in it went wrong."""

    exit_code = 1

    def __init__(self, message: str, *, next_step: str = "", frames: tuple[Frame, ...] = ()) -> None:
        super().__init__(message, next_step=next_step)
        self.frames = frames


class CourseFault(EnvironmentFault):
    """A measurement of the course's failed, not the code that is measured. `detail` is the traceback."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class Interrupted(Exception):
    """Ctrl-C. `where` is the line of the tree that was running, if one was."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where


@dataclass
class Subject:
    """What is measured: a day's bench.py, a whole model run by an engine, or a server over one."""

    day: Day | None = None
    engine: Engine | None = None
    model: ModelOptions | None = None
    called: str = "model"  # where it is no day: "model" or "serve"

    @property
    def name(self) -> str:
        return self.day.name if self.day else self.called

    def needs(self, course: Course) -> tuple[str, ...]:
        """Ids of the days whose code is run."""
        if self.day is not None:
            return tuple(d.id for d in course.foundation(self.day))
        assert self.engine is not None
        return self.engine.days


def day_to_measure(course: Course, text: str) -> Day:
    """The day called `text`. Raises UsageError, naming those with a measurement, where it has none."""
    day = course.day(text)
    if not script_of(day).is_file():
        names = " ".join(d.name for d in course.days if script_of(d).is_file()) or "none so far"
        raise UsageError(f"{day.name} has no measurement (bench.py). Days that have one: {names}; or: model")
    return day


def script_of(day: Day) -> Path:
    return day.folder / "bench.py"


def exit_code(found: Iterable[Event]) -> int:
    """0: every bar is met, or there is none. 1: one is missed, or the learner's results differ. 3: too noisy,
    or results of the course's own differ."""
    code = 0
    for event in found:
        if isinstance(event, Race) and event.differs:
            code = max(code, 1) if event.differing == "yours" else 3
        verdicts = {bar.verdict for bar in event.bars} if isinstance(event, (Count, Race)) else set()
        if Verdict.MISSED in verdicts:
            return 1
        if Verdict.NOISY in verdicts:
            code = max(code, 3)
    return code


@dataclass
class Measurement:
    """One measurement in its child. Use it in a `with` block."""

    clone: Clone
    course: Course
    subject: Subject
    solution: str = "exercises"
    borrow: Sequence[Day] = ()
    rounds: int | None = None
    stage: str = "starting"
    where: str = ""
    _done: bool = field(default=False, init=False)

    def __enter__(self) -> Measurement:
        import psutil

        least = int(self.course.limits.memory_gib * 2**30)
        self.memory_limit = max(least, int(SHARE_OF_MEMORY * psutil.virtual_memory().available))
        subject = self.subject
        job = {
            "root": str(self.clone.root),
            "solution": self.solution,
            "overlays": {m: str(self.clone.reference / m) for d in self.borrow for m in d.modules},
            "day": subject.day.id if subject.day else "",
            "engine": subject.engine.id if subject.engine else "",
            "model": asdict(subject.model) if subject.model else None,
            "rounds": self.rounds,
        }
        self.child = processes.Child(
            MODULE, job, cwd=self.clone.root, launch=processes.start_with_large_pages
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self.child.end()

    @property
    def prints(self) -> str:
        """What the measured code has printed, both ends of it."""
        return self.child.prints.text()

    def events(self) -> Iterator[Event]:
        """What is found, as it is found. Raises NotMeasured, UsageError, EnvironmentFault, Interrupted."""
        try:
            yield from self._follow()
        except KeyboardInterrupt:
            raise Interrupted(self._line(ask=True)) from None

    def _follow(self) -> Iterator[Event]:
        looked_at_memory = 0.0
        while not self._done:
            for event in self.child.read(POLL_SECONDS):
                yield from self._take(event)
            if not self._done and self.child.ended:
                for event in self.child.rest():
                    yield from self._take(event)
                if not self._done:
                    raise self._died()
            now = time.monotonic()
            if now - looked_at_memory > MEMORY_POLL_SECONDS:
                looked_at_memory = now
                if processes.memory_of(self.child.process) > self.memory_limit:
                    gib = self.memory_limit / 2**30
                    raise self._blamed(f"Used more than {gib:.1f} GiB of memory, and was stopped.", ask=True)

    def _take(self, event: Mapping[str, Any]) -> Iterator[Event]:
        told = {k: v for k, v in event.items() if k not in ("token", "event")}
        match event["event"]:
            case "stage":
                self.stage = told["name"]
                yield Stage(told["name"])
            case "turn":
                self.stage = f"{told['race']}: {told['name']}"
                number, asked = told["round"], told["rounds"]
                turn = f"round {number}" + (f" of {asked}" if number <= asked else "")
                yield Stage(f"{turn if number else 'warming up'}, {told['name']}: {told['race']}")
            case "note":
                yield Note(told["text"])
            case "count":
                yield Count.read(told)
            case "race":
                yield Race.read(told)
            case "limits":
                yield Limits.read(told)
            case "roofline":
                yield Roofline.read(told)
            case "schedules":
                yield SchedulePicture.read(told)
            case "done":
                self._done = True
            case "fault":
                raise self._fault(told)

    # ---- what goes wrong

    def _fault(self, told: Mapping[str, Any]) -> CourseError:
        summary, frames = told["summary"], tuple(Frame.read(f) for f in told["frames"])
        match told["kind"]:
            case "usage":
                return UsageError(summary)
            case "machine":
                return EnvironmentFault(summary, next_step=told["next_step"])
            case "course":
                return CourseFault(f"The course's own measurement failed: {summary}", told["detail"])
            case "unwritten":
                stub = told["day"], told["task"]
                needs = self.subject.needs(self.course)
                message, step = unfinished.not_written(
                    self.clone, self.course, self.solution, self.borrow, needs, stub
                )
                return NotMeasured(message, next_step=step)
        inner = frames[-1].path.removeprefix(f"{self.solution}/") if frames else told["module"]
        return NotMeasured(summary, next_step=self._next(told["module"] or inner), frames=frames)

    def _next(self, module: str) -> str:
        if self.solution == "reference":
            return "That is the reference: please report it, with the output of `tinyllm-grade doctor`."
        day = self.course.day_of(module) or self.subject.day
        if day is not None and module and not (self.clone.exercises / module).exists():
            return f"tinyllm-grade reset {day.name}"
        return f"tinyllm-grade {day.name}   ({day.title})" if day else ""

    def _died(self) -> CourseError:
        """For a child that ended without a word."""
        how = processes.ending(self.child.process.returncode, "the measurement")
        return self._blamed(how, ask=False)

    def _blamed(self, how: str, *, ask: bool) -> CourseError:
        """The tree's doing where a line of it was running, else the machine's or the course's."""
        where = self._line(ask=ask)
        if not where:
            said = self.prints.strip().splitlines()[-3:]
            return CourseFault(f"While {self.stage}: {how}", "\n".join(said))
        path, line = re.match(r"(.+):(\d+)", where).groups()  # type: ignore[union-attr]
        file = self.clone.root / path
        source = file.read_text(encoding="utf-8", errors="replace").splitlines()[int(line) - 1].strip()
        frame = Frame(path=path, line=int(line), function=where.partition(" in ")[2], source=source)
        step = self._next(path.removeprefix(f"{self.solution}/"))
        return NotMeasured(how, next_step=step, frames=(frame,))

    def _line(self, *, ask: bool) -> str:
        """ "exercises/week2/kv_cache.py:31 in update_and_fetch", or "" where no line of the tree's runs."""
        found = self.child.line_in(self.clone.tree(self.solution), ask=ask)
        return f"{self.clone.relative(found[0])}:{found[1]} in {found[2]}" if found else ""
