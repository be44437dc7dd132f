"""How long a learner waits from saving a file to the verdict, with `watch` running in a terminal."""

from __future__ import annotations

import contextlib
import math
import os
import pty
import select
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import catalog
from ..catalog import Day
from ..clone import Clone
from ..errors import EnvironmentFault
from .workshop import GRADE, environment, finished_copy

SECONDS_BAR = 0.5
READY = b"waiting for a save"
PATIENCE = 120.0
PAUSE = 0.3  # seconds between two saves: nobody saves faster, and the tracker is written by then


@dataclass(frozen=True)
class Saving:
    """Seconds from the start of each save to the printed verdict of one day."""

    day: str
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        """The smallest time that 95 of 100 saves do not exceed."""
        return sorted(self.seconds)[math.ceil(0.95 * len(self.seconds)) - 1]

    @property
    def within_bar(self) -> bool:
        return self.median <= SECONDS_BAR


def measure(clone: Clone, days: str, runs: int, say: Callable[[str], None]) -> list[Saving]:
    """Save a finished module of each day `runs` times, always with other bytes; all checks run each time.

    Two unmeasured saves come first: the first grading compiles bytecode, the second is the first that knows
    how long the tasks take.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="tinyllm-bench-") as folder:
        copy = finished_copy(clone, Path(folder) / "clone", models=True)
        for day in catalog.load(copy).select(days):
            found.append(_measure_day(copy, day, runs))
            say(summary(found[-1]))
    return found


def summary(saving: Saving) -> str:
    state = "within" if saving.within_bar else "OVER"
    return (
        f"day{saving.day}: from save to verdict median {saving.median:.2f} s, p95 {saving.p95:.2f} s, "
        f"{min(saving.seconds):.2f} to {max(saving.seconds):.2f} in {len(saving.seconds)} saves "
        f"(bar {SECONDS_BAR} s): {state}"
    )


def _measure_day(copy: Clone, day: Day, runs: int) -> Saving:
    module = next(m for m in day.modules if m.endswith(".py"))
    file = copy.exercises / module
    text = file.read_text(encoding="utf-8")
    saving = Saving(day.id, [])
    with _watching(copy, day) as terminal:
        terminal.until(READY)
        for turn in range(runs + 2):
            time.sleep(PAUSE)
            began = time.perf_counter()
            file.write_text(f"{text}\n# save {turn}\n", encoding="utf-8")
            terminal.until(f"{day.name}: ".encode())
            if turn >= 2:
                saving.seconds.append(time.perf_counter() - began)
            if b": passed" not in terminal.until(READY):
                raise EnvironmentFault(f"the finished copy of {day.name} did not pass:\n{terminal.text()}")
    return saving


class _Terminal:
    """The near end of the terminal that `watch` runs in."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unread = b""
        self._last = b""  # since the last READY

    def until(self, words: bytes) -> bytes:
        """Wait for the words; returns all that came since the last READY. Raises EnvironmentFault."""
        end = time.monotonic() + PATIENCE
        while words not in self._unread:
            if time.monotonic() > end or not select.select([self._fd], [], [], PATIENCE)[0]:
                raise EnvironmentFault(f"watch did not say {words.decode()!r}:\n{self.text()}")
            try:
                chunk = os.read(self._fd, 65536)
            except OSError:
                chunk = b""
            if not chunk:
                raise EnvironmentFault(f"watch has ended:\n{self.text()}")
            self._unread += chunk
            self._last += chunk
        self._unread = self._unread.partition(words)[2]
        said = self._last
        if words == READY:
            self._last = b""
        return said

    def text(self) -> str:
        return self._last.decode("utf-8", "replace")[-2000:]


@contextlib.contextmanager
def _watching(copy: Clone, day: Day) -> Iterator[_Terminal]:
    near, far = pty.openpty()
    process = subprocess.Popen(
        [*GRADE, "watch", day.name],
        cwd=copy.root,
        env={**environment(copy), "TERM": "xterm-256color", "COLUMNS": "80"},
        stdin=far,
        stdout=far,
        stderr=far,
        start_new_session=True,
    )
    os.close(far)
    try:
        yield _Terminal(near)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(near)
