"""`--strict`: a copy is graded with the checks as published, in an isolated Python; what is wrong is named.

First everything that can be read is looked at (integrity). Only where nothing is found does code run: a copy
of the learner's tree and of the published checks in a temporary folder, where there is no reference, graded
by a child that strict_child watches.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from . import baseline as baseline_
from . import catalog, integrity, processes, runner
from .baseline import Baseline
from .catalog import Course, Day
from .clone import Clone, installed_root
from .errors import UsageError
from .files import content_hash
from .report import DayReport, Tampering, TaskResult, Verdict

SOURCES = (".py", ".cpp", ".metal", ".h", ".hpp")  # of the learner's tree: data could be answers kept


@dataclass
class Strict:
    """One command's strict grading. To be used as a context: the copy is removed at its end."""

    clone: Clone  # whose checks run
    submission: Clone  # whose exercises are graded; the same clone where none was named
    baseline: Baseline
    course: Course
    findings: tuple[Tampering, ...]  # what concerns every day

    def __enter__(self) -> Strict:
        self._folder = tempfile.TemporaryDirectory(prefix="tinyllm-strict-")
        return self

    def __exit__(self, *failure: object) -> None:
        self._folder.cleanup()

    def findings_for(self, day: Day) -> tuple[Tampering, ...]:
        """What is known against a grading of this day before anything runs."""
        modules = [m for d in self.course.foundation(day) for m in d.modules]
        run = integrity.reachable(self.submission.exercises, modules)
        found = integrity.scan(self.submission.exercises, run)
        return tuple(dict.fromkeys((*self.findings, *found)))

    def grade(
        self,
        day: Day,
        *,
        borrow: Sequence[Day] = (),
        only_task: int | None = None,
        timeout: float | None = None,
        on_event: Callable[[runner.Event], None] | None = None,
    ) -> DayReport:
        """Grade one day, or refuse it."""
        found = self.findings_for(day)
        if found:
            return self._refused(day, found, borrow, only_task)
        stage = self._stage(borrow)
        course = catalog.load(stage)
        told: dict[str, Any] = {
            "program": str(installed_root()),
            "packages": list(dict.fromkeys(sysconfig.get_path(n) for n in ("purelib", "platlib"))),
            "closed": [
                str(root / part)
                for root in {stage.root, self.clone.root, self.submission.root, installed_root()}
                for part in ("checkpoints", "grader", "reference", "progress")
            ],
            "open": [str(stage.reference / "models"), str(self.clone.reference / "models")],
        }
        return runner.grade(
            stage,
            course,
            course.day(day.id),
            borrow=[course.day(d.id) for d in borrow],
            only_task=only_task,
            timeout=timeout,
            on_event=on_event,
            launch=partial(launch, told),
            strict=runner.Strict(self.clone),
        )

    def _refused(
        self, day: Day, found: Sequence[Tampering], borrow: Sequence[Day], only_task: int | None
    ) -> DayReport:
        """The report of a day of which nothing was run."""
        files = {f"exercises/{m}": content_hash(self.submission.exercises / m) for m in day.modules}
        chosen = [t for t in day.tasks if only_task in (None, t.id)]
        return DayReport(
            day=day.id,
            title=day.title,
            solution="exercises",
            graded=tuple(files),
            borrowed=tuple(d.id for d in borrow),
            only_task=only_task,
            tasks=tuple(TaskResult(t.id, t.title, t.checks, ()) for t in chosen),
            verdict=Verdict.REFUSED,
            seconds=0.0,
            files=files,
            problem="",
            tampering=tuple(found),
        )

    def _stage(self, borrow: Sequence[Day]) -> Clone:
        """The copy that is graded; made anew for each day, so that no day's code prepares the next one's."""
        root = Path(self._folder.name) / "clone"
        shutil.rmtree(root, ignore_errors=True)
        for name in self.baseline.digests:
            if name.startswith(("checkpoints/", "reference/models/")):
                _copy(self.clone.root / name, root / name)
        for path in baseline_.files_below(self.submission.exercises):
            if path.suffix in SOURCES and path.is_file():
                _copy(path, root / "exercises" / path.relative_to(self.submission.exercises))
        for day in borrow:
            for module in day.modules:
                _copy(self.clone.reference / module, root / "reference" / module)
        (root / "exercises").mkdir(parents=True, exist_ok=True)
        return Clone(root)


def launch(
    told: Mapping[str, Any], module: str, job: Mapping[str, Any], setting: processes.Setting
) -> subprocess.Popen[bytes]:
    """A processes.Launch that runs strict_start.py in place of `module`; `told` is the job's part for it.

    The job goes through a pipe: a command line can be read by all that runs on the machine.
    """
    theirs, ours = os.pipe()
    start = Path(__file__).with_name("strict_start.py")
    argv = [sys.executable, "-I", "-S", str(start), str(theirs)]
    process = processes.start(argv, replace(setting, inherited=(*setting.inherited, theirs)))
    os.close(theirs)
    with contextlib.suppress(BrokenPipeError), os.fdopen(ours, "wb") as pipe:
        pipe.write(json.dumps({**job, "strict": told}).encode())
    return process


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(baseline_.normalised(path.read_bytes()))


def prepare(clone: Clone, course: Course, upstream: str | None, folder: Path | None) -> Strict:
    """Compare the course's files and look for hooks: what every day's strict grading depends on.

    folder: a submission, a folder with exercises/ in it or that folder itself; its checks are not used.
    Raises UsageError when it is neither, or when `upstream` names nothing.
    """
    submission = clone if folder is None else _submission(folder)
    baseline = baseline_.chosen(clone, upstream)
    if not baseline.covers("checkpoints"):
        raise UsageError(f"{baseline.name} has no checkpoints/ to grade with.")
    found = integrity.compare(baseline, clone) + integrity.hooks(clone)
    if submission != clone:
        found += integrity.compare(baseline, submission, trusted=clone) + integrity.hooks(submission)
    found += integrity.environment()
    return Strict(clone, submission, baseline, course, tuple(dict.fromkeys(found)))


def _submission(folder: Path) -> Clone:
    root = folder.expanduser().resolve()
    if (root / "exercises").is_dir():
        return Clone(root)
    if root.name == "exercises" and root.is_dir():
        return Clone(root.parent)
    raise UsageError(
        f"--submission {folder}: there is no exercises/ folder in it.",
        next_step="Name the folder that holds the learner's exercises/, for example a clone of theirs.",
    )
