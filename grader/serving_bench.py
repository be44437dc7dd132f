"""`bench serve`: a server under load, in figures. What is asked under load is asked alone before.

The server runs in its child, the clients (load.py) in this process. What is found comes as events, as of any
other measurement; nothing here prints.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .benching import CourseFault, Event, Interrupted, Note, NotMeasured, Stage, Subject
from .catalog import Course, Day, Engine
from .clone import Clone
from .figures import Bar, Count, Verdict
from .load import Asked, Load, ask
from .models import Model
from .serving import Ended, Host, Options, Serving, Trouble
from .speaking import NotSpoken

CLIENTS = 64
PROMPTS = 24  # different requests
MEMORY_EVERY = 0.5  # seconds
SLACK = 32 * 2**20  # bytes that memory may grow by in the second half, beside GROWTH
GROWTH = 0.05
QUIET_SECONDS = 10.0  # for what was hung up on to be noticed
NAMES = ("Mia", "Leo", "Anna", "Finn", "Nora", "Tom", "Ida", "Max")
THINGS = ("kite", "boat", "red ball")


def requests_of(model: str) -> list[dict[str, Any]]:
    """The requests that the clients draw from: prompts of different lengths, replies of 8 to 40 tokens."""
    bodies = []
    for number in range(PROMPTS):
        name, thing = NAMES[number % len(NAMES)], THINGS[number % len(THINGS)]
        text = f"Once there was {name}, who had a {thing}. " * (1 + number % 4) + "One day"
        count = 8 + 32 * (number % 5) // 4
        bodies.append({"model": model, "prompt": text, "max_tokens": count, "temperature": 0})
    return bodies


@dataclass
class ServeMeasurement:
    """One measurement of a server. Use it in a `with` block."""

    clone: Clone
    course: Course
    engine: Engine
    model: Model
    seconds: float
    solution: str = "exercises"
    borrow: Sequence[Day] = ()
    slots: int = 8
    stage: str = field(default="starting", init=False)
    prints: str = field(default="", init=False)

    @property
    def subject(self) -> Subject:
        return Subject(engine=self.engine, called="serve")

    def __enter__(self) -> ServeMeasurement:
        options = Options(port=0, slots=self.slots, queue_limit=2 * CLIENTS)
        self.host = Host(
            self.clone,
            self.course,
            self.engine,
            self.model,
            options,
            solution=self.solution,
            borrow=self.borrow,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self.host.end()

    def events(self) -> Iterator[Event]:
        """What is found, as it is found. Raises NotMeasured, UsageError, EnvironmentFault, Interrupted."""
        try:
            yield from self._measure()
        except NotSpoken as fault:
            raise NotMeasured(fault.message, next_step=fault.next_step, frames=fault.frames) from None
        except KeyboardInterrupt:
            raise Interrupted("") from None
        finally:
            self.prints += self.host.prints()

    def _measure(self) -> Iterator[Event]:
        yield Stage("starting the server")
        at = self.host.until_serving()
        bodies = requests_of(self.model.name)
        yield Stage(f"each of {PROMPTS} requests alone")
        alone: list[Asked] = []
        yield from self._beside(_one_by_one(at, bodies, alone))
        broken = next((one.problem for one in alone if one.problem), "")
        if broken:
            raise NotMeasured(f"A request on its own came to nothing: {broken}", next_step=self._grade())
        right = {json.dumps(one.body): one.text for one in alone}

        load = Load(at.host, at.port, bodies, CLIENTS, self.seconds)
        yield Stage(f"{CLIENTS} clients for {self.seconds:.0f} s")
        memory: list[tuple[float, int]] = []
        yield from self._beside(load.run(), memory)
        yield from self._figures(load, right, memory)

        yield Stage("waiting for what was hung up on")
        left = self._left(at)
        yield _bar(
            "requests left in hand, waiting or active in the engine, at the end", left, "", left == 0, "none"
        )
        again: list[Asked] = []
        yield from self._beside(_one_by_one(at, bodies[:3], again))
        same = sum(one.completed and one.text == right[json.dumps(one.body)] for one in again)
        yield _bar("requests alone afterwards with the same reply, of 3", same, "", same == 3, "all")
        began = time.monotonic()
        ended = any(isinstance(event, Ended) for event in self.host.close())
        took = time.monotonic() - began
        yield _bar("seconds until the server had ended when asked to", round(took, 2), "s", ended, "it ends")

    def _figures(self, load: Load, right: dict[str, str], memory: list[tuple[float, int]]) -> Iterator[Event]:
        done = [one for one in load.asked if one.completed]
        broken = [one for one in load.asked if one.problem]
        other = [one for one in done if one.text != right[json.dumps(one.body)]]
        yield Count("requests completed", len(done), "")
        yield Count("requests that were hung up on", sum(one.hung_up for one in load.asked), "")
        yield _bar("requests that failed", len(broken), "", not broken, "none")
        for problem in sorted({one.problem for one in broken})[:3]:
            yield Note(f"    {problem}")
        yield _bar("completed replies other than alone", len(other), "", not other and bool(done), "none")
        for one in other[:2]:
            yield Note(f"    alone: {right[json.dumps(one.body)]!r}, under load: {one.text!r}")
        yield Count("requests a second", len(done) / load.took, "")
        yield Count("tokens a second, of completed replies", sum(one.tokens for one in done) / load.took, "")
        if first := sorted(one.first for one in done if one.first is not None):
            yield Count("time to the first text, median", 1000 * statistics.median(first), "ms")
            yield Count(
                "time to the first text, 95th percentile", 1000 * first[int(0.95 * (len(first) - 1))], "ms"
            )
        if len(memory) >= 4:
            half, end = memory[len(memory) // 2][1], max(m for _, m in memory[-len(memory) // 4 :])
            yield Count("memory after half of the time", half / 2**20, "MiB")
            flat = end <= half * (1 + GROWTH) + SLACK
            says = f"at most {GROWTH:.0%} and {SLACK >> 20} MiB more than after half of the time"
            yield _bar("memory at the end", end / 2**20, "MiB", flat, says)

    def _beside(self, work: Any, memory: list[tuple[float, int]] | None = None) -> Iterator[Event]:
        """Run a coroutine in a thread, and look after the server meanwhile."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(work)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        began = time.monotonic()
        for event in self.host.events():
            if isinstance(event, Trouble):
                yield Note(f"A request failed: {event.summary}")
            now = time.monotonic() - began
            if memory is not None and (not memory or now - memory[-1][0] >= MEMORY_EVERY):
                memory.append((now, self.host.memory()))
            if not thread.is_alive():
                break
        if failed:
            raise CourseFault(f"The clients failed: {type(failed[0]).__name__}: {failed[0]}")

    def _left(self, at: Serving) -> int:
        """Requests that the server still has, once it has had time to notice who hung up."""
        end = time.monotonic() + QUIET_SECONDS
        while True:
            connection = http.client.HTTPConnection(at.host, at.port, timeout=5)
            connection.request("GET", "/health")
            told = json.loads(connection.getresponse().read())
            connection.close()
            left = told["in_hand"] + told["waiting"] + told["active"]
            if left == 0 or time.monotonic() > end:
                return left
            time.sleep(0.1)

    def _grade(self) -> str:
        day = self.course.day_of(self.host.serving.app.module)
        return f"tinyllm-grade {day.name}   ({day.title})" if day else ""


async def _one_by_one(at: Serving, bodies: Sequence[dict[str, Any]], into: list[Asked]) -> None:
    for body in bodies:
        into.append(await ask(at.host, at.port, body))


def _bar(title: str, value: float, unit: str, met: bool, says: str) -> Count:
    return Count(title, value, unit, Bar(says, Verdict.MET if met else Verdict.MISSED))
