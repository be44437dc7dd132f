"""The grader's end of the speaking child: starts it, sends requests, turns its events into values and faults.

Nothing here prints, and nothing here runs the tree's code or MLX (speaker.py and voice.py do, in the child).
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import processes, unfinished
from .catalog import Course, Day, Engine
from .clone import Clone
from .errors import CourseError, EnvironmentFault, UsageError
from .models import Model
from .prints import Prints
from .report import Frame

POLL_SECONDS = 0.1
MEMORY_POLL_SECONDS = 0.5
GRACE_SECONDS = 2.0  # for code that is asked to stop, before it is killed
ROOM_FOR_COPIES = 3  # of the unpacked weights, that code may hold at once


class NotSpoken(CourseError):
    """The tree's code did not reply: a day is unfinished, or something in it went wrong."""

    exit_code = 1

    def __init__(self, message: str, *, next_step: str = "", frames: tuple[Frame, ...] = ()) -> None:
        super().__init__(message, next_step=next_step)
        self.frames = frames


@dataclass(frozen=True)
class Ask:
    """One request. Either `text` is gone on from as it is, or `messages` are set in the chat template."""

    text: str = ""
    messages: Sequence[Mapping[str, str]] | None = None  # {"role", "content"}, a system message only first
    max_tokens: int = 256
    temp: float = 0.0  # 0 is greedy and needs no sampler
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None  # None where the sampler is not asked for it
    stop: Sequence[str] = ()


@dataclass(frozen=True)
class Loading:
    """The model's files are being read, or its weights unpacked."""


@dataclass(frozen=True)
class Began:
    """The prompt is ready."""

    prompt_tokens: int
    dropped: int  # messages, the oldest, that no longer fitted
    most: int  # tokens that the reply may have


@dataclass(frozen=True)
class Piece:
    text: str


@dataclass(frozen=True)
class Done:
    """The reply has ended."""

    tokens: int  # calls of the model; with an end mark, that is one of them
    seconds: float  # that all tokens but the first took
    stopped: tuple[Frame, ...] | None = None  # where the code was when it was stopped; None when it was not

    @property
    def per_second(self) -> float:
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds > 0 else 0.0


Event = Loading | Began | Piece | Done


def default_engine(clone: Clone, course: Course, solution: str) -> Engine:
    """The last engine whose days have all passed (all of the reference's have), else the first.

    One whose kernels would have to be compiled first, for some 20 seconds, is used only when it is asked for.
    """
    if not course.engines:
        raise UsageError("This course has no engine to run a model with (course.toml, [[engines]]).")
    ready = list(course.engines)
    if solution != "reference" and len(ready) > 1:
        from . import attempts, standing

        events, _ = attempts.read(clone)
        hashes = standing.exercise_hashes(clone, course)
        finished = {s.day for s in standing.standings(course, events, hashes) if s.finished}
        ready = [e for e in ready if finished.issuperset(e.days)]
    runnable = (e for e in reversed(ready) if _has_its_kernels(clone, course, solution, e))
    return next(runnable, course.engines[0])


def _has_its_kernels(clone: Clone, course: Course, solution: str, engine: Engine) -> bool:
    files = course.kernels(course.day(d) for d in engine.days)
    if not files:
        return True
    from tinyllm.kernels import build

    return build.is_built(clone.tree(solution) / "kernels", files)


class Speaker:
    """A child that has, or will have, the model loaded. Started at once; use it in a `with` block."""

    def __init__(
        self,
        clone: Clone,
        course: Course,
        engine: Engine,
        model: Model,
        *,
        solution: str = "exercises",
        borrow: Sequence[Day] = (),
        seed: int | None = None,
    ) -> None:
        self.clone = clone
        self.course = course
        self.engine = engine
        self.model = model
        self.solution = solution
        self.borrow = tuple(borrow)
        self.seed = seed
        self.needs = engine.days  # whose code is run
        self.memory_limit = int(course.limits.memory_gib * 2**30 + ROOM_FOR_COPIES * model.unpacked_bytes)
        self._start()

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    # ---- the child

    def _start(self) -> None:
        self._begin("tinyllm.grader.speaker", self._job())

    def _job(self) -> dict[str, Any]:
        return {
            "root": str(self.clone.root),
            "engine": self.engine.id,
            "solution": self.solution,
            "overlays": {m: str(self.clone.reference / m) for d in self.borrow for m in d.modules},
            "model": str(self.model.path),
            "config": dict(self.model.config),
            "context": self.model.context,
            "seed": self.seed,
        }

    def _begin(self, module: str, job: Mapping[str, Any]) -> None:
        self._child = processes.Child(
            module, job, cwd=self.clone.root, requests=True, launch=processes.start_with_large_pages
        )
        self.process: subprocess.Popen[bytes] | None = self._child.process
        self._arrived: list[dict[str, Any]] = []
        self._stage = "starting"  # then importing, loading, building, ready
        self._looked_at_memory = 0.0

    def end(self) -> None:
        """Leave nothing running and nothing open. The next `ask` starts anew, from the files of then."""
        if self.process is None:
            return
        self._child.end()
        self.process = None

    def prints(self) -> str:
        """What the tree's code has printed since this was last asked."""
        text, self._child.prints = self._child.prints.text(), Prints()
        return text

    # ---- replies

    def load(self) -> None:
        """Wait until the model is loaded. Raises as `ask` does."""
        while self._stage != "ready":
            for _ in self._step():
                pass  # no reply has been asked for: only what it raises counts

    def ask(self, request: Ask) -> Iterator[Event]:
        """The events of one reply, up to Done.

        Raises NotSpoken, UsageError (the request does not fit the model) or EnvironmentFault. The child has
        ended then, but for a UsageError. After a KeyboardInterrupt, call `stop`.
        """
        if self.process is None:
            self._start()
        self._child.send(json.dumps(asdict(request)).encode() + b"\n")
        if self._stage != "ready":
            yield Loading()
        yield from self._follow(math.inf)

    def stop(self) -> Iterator[Event]:
        """Ask the code to end its reply, kill it when it does not. What still comes, with Done if it does."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            if self._stage == "ready":
                yield from self._follow(time.monotonic() + GRACE_SECONDS)
                return
        except CourseError:
            pass  # the code failed while it was stopped
        self.end()

    def _follow(self, deadline: float) -> Iterator[Event]:
        """The events up to Done; at the deadline the child is ended."""
        while time.monotonic() < deadline:
            for event in self._step():
                yield event
                if isinstance(event, Done):
                    return
        self.end()

    def _step(self) -> Iterator[Event]:
        """Wait a moment for events, and see to it that the child is alive and within its memory."""
        self._arrived += self._child.read(POLL_SECONDS)
        while self._arrived:
            event = self._take(self._arrived.pop(0))
            if event is not None:
                yield event
        if self.process is not None and self.process.poll() is not None:
            self._arrived += self._child.rest()
            if not self._arrived:
                self._died(processes.ending(self.process.returncode, "the reply"))
        self._look_at_memory()

    def _take(self, event: dict[str, Any]) -> Event | None:
        match event["event"]:
            case "importing" | "loading" | "building" | "ready":
                self._stage = event["event"]
            case "began":
                return Began(event["prompt_tokens"], event["dropped"], event["most"])
            case "piece":
                return Piece(event["text"])
            case "done":
                stood = event["stopped"]
                frames = None if stood is None else tuple(Frame.read(f) for f in stood)
                return Done(event["tokens"], event["seconds"], frames)
            case "fault":
                self._fault(event)
        return None

    def _look_at_memory(self) -> None:
        now = time.monotonic()
        if self.process is None or now - self._looked_at_memory < MEMORY_POLL_SECONDS:
            return
        self._looked_at_memory = now
        if processes.memory_of(self.process) > self.memory_limit:
            self._died(f"Used more than {self.memory_limit / 2**30:.1f} GiB of memory, and was stopped.")

    # ---- what goes wrong

    def _died(self, how: str) -> None:
        """Raise for a child that ended, or must end, without a word."""
        stage = self._stage
        self.end()
        if stage == "starting":
            said = self.prints().strip().splitlines() or [how]
            raise EnvironmentFault(
                f"The process that runs the model could not start: {said[-1]}",
                next_step="tinyllm-grade doctor",
            )
        if stage == "loading":
            raise EnvironmentFault(f"While mlx-lm read the weights: {how}")
        where = {"importing": "While importing the modules: ", "building": "While building the model: "}
        symbol = self.engine.model if stage == "building" else self.engine.generate
        raise NotSpoken(where.get(stage, "") + how, next_step=self._grade(self.course.day_of(symbol.module)))

    def _fault(self, event: Mapping[str, Any]) -> None:
        """Raise what the child told."""
        summary, frames = event["summary"], tuple(Frame.read(f) for f in event["frames"])
        match event["kind"]:
            case "usage":
                raise UsageError(summary)
            case "files":
                self.end()
                raise EnvironmentFault(
                    summary, next_step="Is every file of the model whole, and of one model?"
                )
            case "unwritten":
                self.end()
                stub = event["day"], event["task"]
                message, step = unfinished.not_written(
                    self.clone,
                    self.course,
                    self.solution,
                    self.borrow,
                    self.needs,
                    stub,
                    beyond="with --temp above 0 ",
                )
                raise NotSpoken(message, next_step=step)
        self.end()
        inner = frames[-1].path.removeprefix(f"{self.solution}/") if frames else event["module"]
        day = self.course.day_of(event["module"] or inner)
        step = self._grade(day)
        if day is not None and not (self.clone.exercises / (event["module"] or inner)).exists():
            step = f"tinyllm-grade reset {day.name}"
        raise NotSpoken(summary, next_step=step, frames=frames)

    def _grade(self, day: Day | None) -> str:
        """The command that says more about code that went wrong."""
        if self.solution == "reference":
            return "That is the reference: please report it, with the output of `tinyllm-grade doctor`."
        return f"tinyllm-grade {day.name}   ({day.title})" if day else ""


def seconds_running() -> float:
    """Seconds since this process was started."""
    if sys.platform == "linux":  # psutil knows the start of a Linux process to the second only
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    import psutil

    return time.time() - psutil.Process().create_time()
