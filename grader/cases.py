"""The failures that are kept: a folder for each failing check, with its case and a program that runs it.

    progress/failures/day1.3/test_grouped-float32/{case.npz, case.json, repro.py}

The grading child writes those it can run again (cases_child); this side writes the program alone where it
could not, removes what passes, and reads them for `replay` and `trace`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .catalog import Day
from .clone import Clone
from .report import CheckResult, DayReport, Outcome

CASE, ARRAYS, PROGRAM = "case.json", "case.npz", "repro.py"
SCHEMA = 1
LEAVE_A_CASE = (Outcome.FAILED, Outcome.CRASHED, Outcome.TIMED_OUT, Outcome.OUT_OF_MEMORY)
NO_COUNT = 1 << 62  # elements of a case whose inputs are not known
WHY = {
    Outcome.CRASHED: "it ended the process",
    Outcome.TIMED_OUT: "it did not come to an end",
    Outcome.OUT_OF_MEMORY: "it used up the memory",
}


@dataclass(frozen=True)
class Kept:
    """One kept failure."""

    folder: Path
    data: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.data["check"]

    @property
    def task(self) -> int:
        return self.data["task"]

    @property
    def title(self) -> str:
        case = self.id.partition("[")[2].rstrip("]")
        return self.data["title"] + (f" [{case}]" if case else "")

    @property
    def elements(self) -> int:
        return self.data["elements"]

    @property
    def has_inputs(self) -> bool:
        """Whether the case holds all it takes; otherwise the check itself is run."""
        return self.data["story"] is not None

    @property
    def picks(self) -> list[int] | None:
        """What leads to the smallest of a check's random cases."""
        return self.data.get("picks")

    @property
    def program(self) -> Path:
        return self.folder / PROGRAM

    @property
    def stop_line(self) -> int:
        """The line of the program that calls the learner's code."""
        return self.data["stop_line"]


def folder_of(clone: Clone, day: Day, check_id: str = "") -> Path:
    """Where the failures of a day, or of one of its checks, are kept."""
    folder = clone.progress / "failures" / day.name
    if not check_id:
        return folder
    name = check_id.partition("::")[2] or check_id
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")
    return folder / plain[:80]


def kept(clone: Clone, day: Day) -> list[Kept]:
    """The kept failures of a day by task, each task's smallest first. A damaged one is passed over."""
    found = []
    for file in folder_of(clone, day).glob(f"*/{CASE}"):
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(data, dict) and data.get("schema") == SCHEMA and (file.parent / PROGRAM).is_file():
            found.append(Kept(file.parent, data))
    # The maths is settled before precision: float32 comes first.
    return sorted(found, key=lambda k: (k.task, k.elements, "float16" in k.id, k.id))


def latest_day(clone: Clone, days: Sequence[Day]) -> Day | None:
    """The day of which a failure was kept last."""
    times = {d: max((k.data["time"] for k in kept(clone, d)), default=0.0) for d in days}
    day = max(times, key=lambda d: times[d], default=None)
    return day if day is not None and times[day] else None


def lost(clone: Clone, day: Day, report: DayReport, began: float) -> list[str]:
    """The failing checks whose child was ended by another check before it could write their cases."""
    results = [c for t in report.tasks for c in t.checks]
    if not any(c.outcome in WHY for c in results):
        return []
    failed = [c.id for c in results if c.outcome is Outcome.FAILED]
    return [i for i in failed if not _is_of(folder_of(clone, day, i), began)]


def settle(clone: Clone, day: Day, report: DayReport, began: float) -> None:
    """After a grading: forget what passes, and keep a program for what failed and could not be run again.

    began: time.time() before the grading; a case that is older is of another one.
    """
    results = [c for t in report.tasks for c in t.checks]
    for result in results:
        folder = folder_of(clone, day, result.id)
        if result.outcome is Outcome.PASSED:
            shutil.rmtree(folder, ignore_errors=True)
        elif result.outcome in LEAVE_A_CASE and not _is_of(folder, began):
            reason = WHY.get(result.outcome, "it takes long, or fails now and then")
            write(folder, describe(day, result, reason=reason, borrowed=report.borrowed))
    parent = folder_of(clone, day)
    for empty in (parent, parent.parent):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()


def _is_of(folder: Path, began: float) -> bool:
    try:
        return json.loads((folder / CASE).read_text(encoding="utf-8"))["time"] >= began
    except (OSError, ValueError, KeyError):
        return False


def describe(
    day: Day,
    result: CheckResult,
    *,
    story: Mapping[str, Any] | None = None,
    reason: str = "",
    arrays: Mapping[str, Any] | None = None,
    borrowed: Sequence[str] = (),
    picks: Sequence[int] | None = None,
) -> dict[str, Any]:
    """What case.json holds. `arrays`: shape, dtype and seed of each. `reason`: why there is no story.
    `picks`: what was picked for the smallest of random cases."""
    noted = dict(arrays or {})
    inputs = [n for k, n in noted.items() if not n.get("output")]
    count = sum(_product(n["shape"]) for n in inputs)
    return {
        "schema": SCHEMA,
        "day": day.id,
        "check": result.id,
        "task": result.task,
        "title": result.title,
        "outcome": result.outcome.value,
        "summary": result.failure.summary if result.failure else "",
        "checked": result.failure.checked if result.failure else "",
        "time": time.time(),
        "elements": count if story is not None or inputs else NO_COUNT,
        "arrays": noted,
        "borrowed": list(borrowed),
        "versions": versions(),
        "reason": reason,
        "picks": picks,
        "story": story,
    }


def _product(shape: Sequence[int]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def versions() -> dict[str, str]:
    """What the failure may depend on."""
    found = {"python": platform.python_version()}
    for name in ("mlx", "mlx-lm", "numpy", "tinyllm"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return {**found, "os": platform.platform(), "processor": platform.machine()}


def write(
    folder: Path, data: dict[str, Any], lines: Sequence[str] = (), stop: int = 0, npz: bytes = b""
) -> None:
    """Put a failure into its folder, whole or not at all; an earlier one goes.

    lines: the calls of the program, of which `stop` (from 0) is the one that fails.
    """
    text, data["stop_line"] = program(data, lines, stop)
    new = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        if npz:
            (new / ARRAYS).write_bytes(npz)
        (new / CASE).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        (new / PROGRAM).write_text(text, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def program(data: Mapping[str, Any], lines: Sequence[str], stop: int) -> tuple[str, int]:
    """repro.py, and its line (from 1) that calls the learner's code."""
    kept = Kept(Path(), data)
    title = f"day{data['day']}, task {data['task']}: {kept.title}"
    if data["story"] is None:
        about = f"This runs the check itself, without pytest's runner: {data['reason']}."
        lines, stop = ["check, given = case.check()", "check(**given)", "case.passes()"], 1
        first: list[str] = []
    else:
        about = "Its inputs are in case.npz (as `a`), the rest of it in case.json."
        first = ["a, solution = case.arrays, case.solution"]
    imports = ["import mlx.core as mx", ""] if any("mx." in line for line in lines) else []
    head = [
        *textwrap.wrap(f'"""{title}'.replace("\\", "/"), 100),
        "",
        *textwrap.wrap(about, 100),
        "    python -m pdb -c 'until LINE' repro.py    then s steps into your code",
        '"""',
        *imports,
        "from tinyllm.grader.repro import Case",
        "",
        "case = Case(__file__)",
        *first,
    ]
    line = len(head) + stop + 1
    return "\n".join([*head, *lines]).replace("until LINE", f"until {line}", 1) + "\n", line
