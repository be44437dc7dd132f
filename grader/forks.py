"""Runs pieces of work in forks of this process, a few at a time, each with a limit of its own (in a child).

A fork starts with everything imported, in about ten milliseconds, and nothing that its work does outlives
it. On Linux that is safe as long as this process has evaluated no array of MLX. Elsewhere work is done in
turn, in this very process (`in_turn`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Work = Callable[[], Any]  # gives a value that JSON can hold

SAFE = sys.platform == "linux"
POLL_SECONDS = 0.2
PATIENCE = 8  # seconds by the clock for one of processor time: other programs may be busy too
CLOCK = 6.0  # by how much the clock may run ahead of what a budget allows, on a busy machine


class Budget:
    """So many seconds, on `processors` of them that are free; on a busy machine longer, but not much."""

    def __init__(self, seconds: float, processors: int) -> None:
        self._work = seconds * processors
        self._until = time.monotonic() + seconds * CLOCK
        self._began = self._used()

    @staticmethod
    def _used() -> float:
        """Processor time of this process and of the forks that have ended."""
        return sum(os.times()[:4])

    @property
    def spent(self) -> bool:
        return time.monotonic() > self._until or self._used() - self._began > self._work


def forked(
    works: Sequence[Work], *, at_once: int, limit: float, budget: Budget
) -> Iterator[tuple[int, Any | None]]:
    """(number, value) of each work as it ends; the value of one that failed or took too long is None.

    limit: seconds of processor time that one may take.
    """
    waiting = list(enumerate(works))[::-1]
    # by pipe: number, process, since when, what it wrote
    running: dict[int, tuple[int, int, float, bytearray]] = {}
    selector = selectors.DefaultSelector()

    def end(pipe: int) -> tuple[int, Any | None]:
        number, process, _, wrote = running.pop(pipe)
        selector.unregister(pipe)
        os.close(pipe)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        try:
            return number, json.loads(bytes(wrote))
        except ValueError:
            return number, None

    try:
        while waiting or running:
            now = time.monotonic()
            if budget.spent:
                return
            while waiting and len(running) < at_once:
                number, work = waiting.pop()
                pipe, process = _start(work, limit)
                running[pipe] = (number, process, now, bytearray())
                selector.register(pipe, selectors.EVENT_READ)
            for key, _ in selector.select(POLL_SECONDS):
                chunk = os.read(key.fd, 1 << 16)
                running[key.fd][3].extend(chunk)
                if not chunk:
                    yield end(key.fd)
            now = time.monotonic()
            for pipe in [p for p, (_, _, since, _) in running.items() if now - since > PATIENCE * limit]:
                yield end(pipe)
    finally:
        for pipe in list(running):
            end(pipe)
        selector.close()


def _start(work: Work, limit: float) -> tuple[int, int]:
    """The pipe on which a fork writes what its work gives, and the fork's id."""
    ours, theirs = os.pipe()
    process = os.fork()
    if process:
        os.close(theirs)
        return ours, process
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: end when the parent ends
        most = math.ceil(limit)
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        with os.fdopen(theirs, "w") as pipe:
            pipe.write(json.dumps(work()))
    finally:
        os._exit(0)


def in_turn(works: Sequence[Work], *, budget: Budget) -> Iterator[tuple[int, Any | None]]:
    """The same in this process. What a work leaves behind is the caller's to clear away."""
    for number, work in enumerate(works):
        if budget.spent:
            return
        try:
            yield number, work()
        except Exception:
            yield number, None
