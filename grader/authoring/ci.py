"""The one front door: every proof of the project in order, all of them run, all failures told at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

COVERAGE_PERCENT = 90
# Tested, but where coverage cannot count: beside a trace function of their own, in a Python that starts
# without the hooks of site-packages, in a child that is killed, or in a fork that leaves by os._exit.
UNCOUNTED = ("tracing_child", "strict_child", "strict_start", "serving_child", "preparing")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What a step found. A step that has no items of its own counts as one."""

    passed: int = 0
    failed: int = 0
    failures: tuple[str, ...] = ()  # sentences for the list at the end

    @classmethod
    def of(cls, failures: Iterable[str]) -> Result:
        """One item, which failed when there is anything to say."""
        said = tuple(failures)
        return cls(passed=0 if said else 1, failed=1 if said else 0, failures=said)


@dataclass(frozen=True)
class Step:
    title: str
    run: Callable[[], Result]


def run_steps(steps: Sequence[Step], say: Say) -> bool:
    """Run every step under a headline, then list the failures. True when there are none.

    A step that raises has failed; the steps after it run all the same.
    """
    done: list[tuple[Step, Result, float]] = []
    for step in steps:
        say(f"\n== {step.title}")
        began = time.monotonic()
        try:
            result = step.run()
        except Exception as error:
            result = Result.of([f"{type(error).__name__}: {error}"])
        taken = time.monotonic() - began
        say(f"-- {'failed' if result.failed else 'passed'} in {taken:.1f} s")
        done.append((step, result, taken))
    say("\n== summary")
    for step, result, taken in done:
        say(f"{'failed' if result.failed else 'passed'}  {taken:6.1f} s  {step.title}")
        for failure in result.failures:
            say(f"    {failure}")
    failed = sum(result.failed for _, result, _ in done)
    say(f"{sum(result.passed for _, result, _ in done)} passed, {failed} failed")
    return failed == 0


def command(arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Result:
    """`python -m` these arguments in `folder`, printing as they go. Fails when the exit code is not 0."""
    sys.stdout.flush()
    done = subprocess.run(
        [sys.executable, "-P", "-m", *arguments],
        cwd=folder,
        # -P does not reach the processes that this one starts; the variable does.
        env={**os.environ, "PYTHONSAFEPATH": "1", **(environment or {})},
        check=False,
    )
    told = f"`python -m {' '.join(arguments)}` ended with exit code {done.returncode}"
    return Result.of([told] if done.returncode else [])


def run_tests(root: Path, folder: Path, jobs: int = 1) -> Result:
    """The project's own tests, `jobs` files at a time. `folder` is for their report, so that the clone stays
    clean."""
    junit = folder / "junit.xml"
    return _told(junit, command(_pytest(junit, jobs), root).failures)


def measured_tests(root: Path, folder: Path, jobs: int = 1) -> Result:
    """The same under coverage, which takes half as long again; fails below COVERAGE_PERCENT too."""
    junit = folder / "junit.xml"
    measured = {"COVERAGE_FILE": str(folder / ".coverage")}
    ran = command(["coverage", "run", "--parallel-mode", "-m", *_pytest(junit, jobs)], root, measured)
    # A grading child that was killed while it wrote its data leaves a file that cannot be read.
    combined = command(["coverage", "combine", "--quiet"], root, {**measured, "PYTHONWARNINGS": "ignore"})
    for unreadable in folder.glob(".coverage.*"):
        unreadable.unlink()
    # The tests are left out here by their full path: a process that ran elsewhere has counted them in.
    omitted = [f"{root}/grader/tests/*", *(f"{root}/grader/{name}.py" for name in UNCOUNTED)]
    report = [
        "--show-missing",
        "--skip-covered",
        f"--omit={','.join(omitted)}",
        f"--fail-under={COVERAGE_PERCENT}",
    ]
    enough = command(["coverage", "report", *report], root, measured)
    return _told(junit, (*ran.failures, *combined.failures, *enough.failures))


def _pytest(junit: Path, jobs: int) -> list[str]:
    # A file stays in one process: what its tests share (a compiled kernel, a trained model) is made once.
    # In the files' order, not those with many tests first: single tests that take a minute would come last.
    several = ["-n", str(jobs), "--dist", "loadfile", "--no-loadscope-reorder"] if jobs > 1 else []
    return ["pytest", "grader/tests", f"--junitxml={junit}", *several]


def _told(junit: Path, failures: Sequence[str]) -> Result:
    """The tests' results, with what else went wrong."""
    passed, wrong = _counts(junit)
    return Result(passed, max(len(wrong), 1 if failures else 0), (*wrong, *failures))


def _counts(junit: Path) -> tuple[int, list[str]]:
    """Tests that passed, and the names of those that failed or broke. Skipped ones are neither."""
    if not junit.is_file():
        return 0, []
    passed, wrong = 0, []
    for case in ElementTree.parse(junit).iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            wrong.append(f"{case.get('classname')}::{case.get('name')}")
        elif "skipped" not in kinds:
            passed += 1
    return passed, wrong
