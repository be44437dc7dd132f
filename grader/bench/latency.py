"""How long a learner waits for a verdict, as a ratio to bare pytest in the same interleaved run."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import catalog
from ..catalog import Day
from ..clone import Clone
from ..errors import EnvironmentFault
from .workshop import GRADE, environment, finished_copy

RATIO_BAR = 1.5
SECONDS_BAR = 2.0


@dataclass(frozen=True)
class Latency:
    """Seconds of each run: to the printed verdict, to the program's end, and of bare pytest."""

    verdict: list[float]
    end: list[float]
    pytest: list[float]

    @property
    def ratios(self) -> list[float]:
        return [v / p for v, p in zip(self.verdict, self.pytest, strict=True)]

    @property
    def within_bar(self) -> bool:
        return statistics.median(self.ratios) <= RATIO_BAR and statistics.median(self.verdict) <= SECONDS_BAR


def measure(clone: Clone, day: str, runs: int, say: Callable[[str], None]) -> Latency:
    """Grade a finished copy of the course, recorded as a learner's grade is, in turns with bare pytest.

    One unmeasured turn of each comes first: the very first run of anything compiles bytecode.
    """
    with tempfile.TemporaryDirectory(prefix="tinyllm-bench-") as folder:
        copy = finished_copy(clone, Path(folder) / "clone", models=True)
        chosen = catalog.load(copy).day(day)
        env = environment(copy)
        grade = [*GRADE, chosen.name]
        bare = [
            *(sys.executable, "-P", "-m", "pytest", "-q", "-p", "tinyllm.grader.plugin"),
            *("-c", os.devnull, f"--rootdir={copy.root}", "--import-mode=importlib"),
            *("-p", "no:cacheprovider", "--solution", "reference"),
            *map(str, chosen.tests),
        ]
        result = Latency([], [], [])
        for turn in range(runs + 1):
            to_verdict, to_end = _time_grade(grade, chosen, copy, env)
            began = time.perf_counter()
            done = subprocess.run(bare, env=env, cwd=copy.root, capture_output=True, text=True, check=False)
            to_pytest = time.perf_counter() - began
            if done.returncode != 0:
                raise EnvironmentFault(f"bare pytest failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            if turn == 0:
                continue
            result.verdict.append(to_verdict)
            result.end.append(to_end)
            result.pytest.append(to_pytest)
            say(
                f"run {turn}: verdict {to_verdict:.3f} s, end {to_end:.3f} s, pytest {to_pytest:.3f} s, "
                f"ratio {to_verdict / to_pytest:.2f}"
            )
        return result


def summary(result: Latency) -> str:
    ratio = statistics.median(result.ratios)
    seconds = statistics.median(result.verdict)
    state = "within" if result.within_bar else "OVER"
    return (
        f"median ratio {ratio:.2f} (from {min(result.ratios):.2f} to {max(result.ratios):.2f}; "
        f"bar {RATIO_BAR}), median verdict after {seconds:.2f} s (bar {SECONDS_BAR}): {state} the bar"
    )


def _time_grade(command: list[str], day: Day, copy: Clone, env: dict[str, str]) -> tuple[float, float]:
    """Seconds until the verdict's line is printed, and until the program has ended."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env=env, cwd=copy.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    seen = ""
    to_verdict = None
    for line in process.stdout:
        seen += line
        if line.startswith(f"{day.name}: passed"):
            to_verdict = time.perf_counter() - began
    process.wait()
    if to_verdict is None:
        raise EnvironmentFault(f"the finished copy of {day.name} did not pass:\n{seen[-2000:]}")
    return to_verdict, time.perf_counter() - began
