"""The grader's end of the serving child: a model served over HTTP by a tree's code.

Nothing here prints; the child (serving_child.py) runs the server. What can go wrong up to the first request
is told as for `generate`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from . import processes
from .catalog import Course, Day, Engine
from .catalog import Serving as Served
from .clone import Clone
from .errors import UsageError
from .models import Model
from .report import Frame
from .speaking import Event, Speaker

KEY_VARIABLE = "TINYLLM_API_KEY"
LONGEST_CONTEXT = 4096  # of a request, where nobody asks for more: each slot has room for so many tokens
GRACE_SECONDS = 10.0  # for replies in progress when the server is to end
PATIENCE_SECONDS = 5.0  # beyond that, for the server itself


@dataclass(frozen=True)
class Options:
    """What `serve` is asked for."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0 takes any that is free
    slots: int = 8  # requests in one batch
    queue_limit: int = 64  # requests in hand
    context: int | None = None  # tokens of a request, prompt and reply; None: the model's, or LONGEST_CONTEXT


@dataclass(frozen=True)
class Serving:
    """The server answers."""

    host: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True)
class Trouble:
    """An exception in the tree's code at one request; the server goes on."""

    summary: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Ended:
    """The server has ended as it was asked to."""


def how_to_serve(course: Course) -> Served:
    if course.serving is None:
        raise UsageError("This course has no server yet (course.toml, [serving]).")
    return course.serving


def engine_to_serve(clone: Clone, course: Course, solution: str, engine_id: str | None) -> Engine:
    """The engine asked for, or the last one that is ready and takes several requests at once."""
    from .speaking import default_engine

    able = how_to_serve(course).engines
    if engine_id is not None:
        engine = course.engine(engine_id)
        if engine.id not in able:
            raise UsageError(f"--engine {engine.id} has no cache to batch with; {', '.join(able)} have one.")
        return engine
    engine = default_engine(clone, course, solution)
    return engine if engine.id in able else course.engine(able[0])


def is_private(host: str) -> bool:
    """Whether only this machine can reach a server there."""
    return host in ("localhost", "::1") or host.startswith("127.")


class Host(Speaker):
    """A child that serves, or will. Use it in a `with` block."""

    def __init__(
        self,
        clone: Clone,
        course: Course,
        engine: Engine,
        model: Model,
        options: Options,
        *,
        solution: str = "exercises",
        borrow: Sequence[Day] = (),
        api_key: str | None = None,
    ) -> None:
        self.options = options
        self.api_key = api_key
        self.serving = how_to_serve(course)
        super().__init__(clone, course, engine, model, solution=solution, borrow=borrow)
        wanted = {*engine.days, *self.serving.days}
        self.needs = tuple(d.id for d in course.days if d.id in wanted)

    def _start(self) -> None:
        # subtle: through the environment. Other users of the machine can read a command line.
        if self.api_key is not None:
            os.environ[KEY_VARIABLE] = self.api_key
        else:
            os.environ.pop(KEY_VARIABLE, None)
        context = self.options.context or min(self.model.context, LONGEST_CONTEXT)
        job = {**self._job(), **asdict(self.options), "context": min(context, self.model.context)}
        self._begin("tinyllm.grader.serving_child", {**job, "name": self.model.name, "grace": GRACE_SECONDS})

    def until_serving(self) -> Serving:
        """Wait until the server answers. Raises what Speaker.ask raises."""
        while True:
            for event in self._step():
                if isinstance(event, Serving):
                    return event

    def events(self) -> Iterator[Event | Serving | Trouble | Ended]:
        """What happens, up to Ended; nothing at all comes for as long as nothing happens, but None now and
        then, so that the caller can do other things."""
        while True:
            for event in self._step():
                yield event
                if isinstance(event, Ended):
                    return
            yield None

    def close(self) -> Iterator[Any]:
        """Have the server end: replies in progress have GRACE_SECONDS. What happens until it has ended, or
        has taken too long."""
        if self.process is None:
            return
        if self._stage != "ready":  # still loading: there is nothing to bring to its end
            self.end()
            return
        self.process.send_signal(signal.SIGINT)
        end = time.monotonic() + GRACE_SECONDS + PATIENCE_SECONDS
        for event in self.events():
            yield event
            if time.monotonic() > end:
                return

    def memory(self) -> int:
        """Bytes that the child and what it started hold."""
        return processes.memory_of(self.process) if self.process is not None else 0

    def _take(self, event: Mapping[str, Any]) -> Any:
        match event["event"]:
            case "serving":
                self._stage = "ready"
                return Serving(event["host"], event["port"])
            case "trouble":
                return Trouble(event["summary"], tuple(Frame.read(f) for f in event["frames"]))
            case "ended":
                return Ended()
        return super()._take(event)
