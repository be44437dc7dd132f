"""Kills graders at random moments: no printed verdict may be lost and no file half-written."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .. import attempts, catalog, tracker
from ..clone import Clone
from .workshop import GRADE, environment, finished_copy

NOTES = b"\n```\n<!-- tinyllm:end -->\n## my own heading\n``` \xff\n"  # text that is easy to lose


@dataclass
class Kills:
    """What a sweep saw. `faults` is empty when all is well."""

    runs: int = 0
    killed: int = 0
    verdicts: int = 0  # printed before the kill
    logged: int = 0
    torn: int = 0  # lines that could not be read; a reader skips them
    faults: list[str] = field(default_factory=list)


def sweep(clone: Clone, day: str, runs: int, seed: int, say: Callable[[str], None]) -> Kills:
    """Grade a finished copy `runs` times, each ended by SIGKILL at a random moment of a usual run."""
    rng = random.Random(seed)
    result = Kills()
    with tempfile.TemporaryDirectory(prefix="tinyllm-kills-") as folder:
        copy = finished_copy(clone, Path(folder) / "clone")
        course = catalog.load(copy)
        day = course.day(day).name
        usual = _usual_seconds(copy, day)
        notes = tracker.tracker_path(copy)
        notes.write_bytes(notes.read_bytes() + NOTES)
        before = len(_attempts(copy))
        for run in range(1, runs + 1):
            printed = _killed_run(copy, day, rng.uniform(0.0, 1.3 * usual), result)
            logged = len(_attempts(copy))
            if logged < before + printed:
                result.faults.append(f"run {run}: a verdict was printed and is not in the log")
            before = logged
            _look(copy, course, run, result)
            if run % 20 == 0:
                say(f"{run} of {runs}: {result.killed} killed, {result.verdicts} verdicts printed")
        events, unreadable = attempts.read(copy)
        result.logged, result.torn = len([e for e in events if e.kind == "attempt"]), len(unreadable)
        done = subprocess.run(
            [*GRADE, day], env=environment(copy), cwd=copy.root, capture_output=True, check=False
        )
        if done.returncode != 0:
            result.faults.append(f"a grading after all kills failed: {done.stdout[-500:]!r}")
    return result


def _usual_seconds(copy: Clone, day: str) -> float:
    began = time.perf_counter()
    subprocess.run([*GRADE, day], env=environment(copy), cwd=copy.root, check=True, capture_output=True)
    return time.perf_counter() - began


def _killed_run(copy: Clone, day: str, seconds: float, result: Kills) -> int:
    """Start a grading, kill it after `seconds`; 1 when its verdict had been printed."""
    process = subprocess.Popen(
        [*GRADE, day], env=environment(copy), cwd=copy.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
    result.runs += 1
    result.killed += process.returncode == -signal.SIGKILL
    printed = int(f"{day}: passed".encode() in output)
    result.verdicts += printed
    return printed


def _attempts(copy: Clone) -> list[attempts.Event]:
    return [e for e in attempts.read(copy)[0] if e.kind == "attempt"]


def _look(copy: Clone, course: catalog.Course, run: int, result: Kills) -> None:
    """Whether log and tracker are whole."""
    lines = attempts.log_path(copy).read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            json.loads(line or b"{}")
        except ValueError:
            result.faults.append(f"run {run}: line {number} of the log is broken: {line[:80]!r}")
    text = tracker.tracker_path(copy).read_bytes()
    if not text.endswith(NOTES):
        result.faults.append(f"run {run}: the tracker lost the notes")
    without_block, edited = tracker.splice(text, b"")
    if edited or len(without_block) >= len(text):
        result.faults.append(f"run {run}: the tracker's own part is damaged")
    for day in course.days:
        if f"day {day.id}".encode() not in text:
            result.faults.append(f"run {run}: the tracker has no line for day {day.id}")
