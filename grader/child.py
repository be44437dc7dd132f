"""The grading child: one process that runs a day's checks and reports them on a pipe.

    python -P -m tinyllm.grader.child '<job as JSON>'

Events are JSON lines on the file descriptor that the job names, each carrying the job's token; the last one
is "end". Only that line signs the run off: an exit code proves nothing (os._exit(0) is one call away).
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import prints

if TYPE_CHECKING:
    from .catalog import Day
    from .plugin import Grading


def main(job: Mapping[str, Any]) -> None:
    """Run one job. Ends the process itself: a learner's thread that never ends must not keep it alive."""
    begin(job)
    settle(job["root"])
    grading = make(job["root"], job["day"], job["solution"])
    take(grading, job)
    grading.prepare()
    run(grading)


def begin(job: Mapping[str, Any]) -> None:
    """Tie this process to the grader that gave it the job."""
    die_with_parent(job["lifeline"])
    stacks = Path(job["stack_file"]).open("w")  # noqa: SIM115 - faulthandler writes to it to the end
    faulthandler.enable(file=stacks)  # a segfault or SIGABRT leaves the Python stack here


def settle(root: str) -> None:
    """Have nothing of the learner's own habits reach pytest, and checks load the models of this clone."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for habit in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):  # what the learner likes for their own projects
        os.environ.pop(habit, None)
    os.environ["TINYLLM_ROOT"] = root
    # kernels.blas is not used here: it takes 5 to 20 ms of every verdict, the checks' products are tiny, and
    # what a check measures should not depend on whether the machine has a compiler.


def make(root: str, day: str, solution: str) -> Grading:
    """The grading of a day with a tree; no file of the tree is read yet."""
    from . import catalog
    from .clone import Clone
    from .plugin import Grading
    from .trees import Tree

    clone = Clone(Path(root))
    course = catalog.load(clone)
    return Grading(clone, course, course.day(day), Tree(solution, clone.tree(solution)))


def take(grading: Grading, job: Mapping[str, Any]) -> None:
    """Have the grading do what the job says, and report to who gave it."""
    emit = Emitter(job["events"], job["token"])
    grading.emit = emit
    grading.only_ids = frozenset(job["only_ids"]) if job["only_ids"] is not None else None
    grading.only_task = job["only_task"]
    grading.first_tasks = tuple(job["first_tasks"])
    grading.share = frozenset(job["share"]) if job["share"] is not None else None
    grading.tree.replace({k: Path(v) for k, v in job["overlays"].items()})
    grading.witness = Path(job["witness"]) if job.get("witness") else None
    if job["cases"]:
        from . import cases_child

        if job["cases"] == "keep":
            keeper = cases_child.Keeper(grading, tuple(job["borrowed"]))
            grading.beside.append(keeper)
            grading.at_end.append(keeper.keep)
        else:
            grading.beside.append(cases_child.Replaying(grading))
    if "strict" in job:
        from .strict_child import Guard

        grading.beside.append(Guard(grading, job["strict"], emit))

    def report_where(signum: int, frame: FrameType | None) -> None:
        """The parent asks where the learner's code stands; whether it goes on is the parent's to say."""
        emit("stuck", {"frames": [asdict(f) for f in grading.frames.of_stack(frame)]})

    signal.signal(signal.SIGUSR2, report_where)


def run(grading: Grading) -> None:
    """Collect and run the day's checks, sign off and end."""
    import pytest

    quiet = Quiet()
    plugins = [quiet, grading, *grading.beside]
    code = pytest.main(pytest_arguments(grading.day), plugins=plugins)
    sys.stdout.flush()
    grading.emit("end", {"finished": grading.finished, "pytest": int(code), "said": quiet.errors})
    for last in grading.at_end:
        last()  # the verdict is printed meanwhile
    os._exit(0)


def pytest_arguments(day: Day) -> list[str]:
    """How pytest is called on a day's checks, with nothing that it would do for a person."""
    return [
        # The folder of the tests as root: pytest looks through every folder from there.
        "-c", os.devnull, f"--rootdir={day.folder}", "--import-mode=importlib", "--noconftest",
        "-p", "no:cacheprovider", "-p", "no:junitxml", "-p", "no:doctest", "-p", "no:unittest",
        "-p", "no:faulthandler", "-p", "no:terminal", "-p", "no:threadexception",
        "-p", "no:unraisableexception", "-p", "no:warnings", "-p", "no:logging", "-p", "no:stepwise",
        "-p", "no:pastebin", "-p", "no:setuponly", "-p", "no:setupplan",
        "-s", *map(str, day.tests),
    ]  # fmt: skip


class Emitter:
    """Writes events as JSON lines, each in one write, so that a kill never leaves a mixed line."""

    def __init__(self, fd: int, token: str) -> None:
        self._fd = fd
        self._token = token

    def __call__(self, event: str, data: Mapping[str, Any]) -> None:
        sys.stdout.flush()  # what was printed before the event is in the pipe before the event
        if event == "start":
            prints.mark()
        line = json.dumps({"token": self._token, "event": event, **data}) + "\n"
        payload = line.encode()
        while payload:
            payload = payload[os.write(self._fd, payload) :]


class Quiet:
    """Stands in for pytest's terminal reporter, which the child has no use for."""

    errors = ""  # why tests could not be collected

    def pytest_configure(self, config: Any) -> None:
        config.option.verbose = 0
        config.option.tbstyle = "native"  # pytest's own long one takes 40 ms a failure, and nobody reads it

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.errors += f"{report.longrepr}\n"


def die_with_parent(lifeline: int) -> None:
    """End this process when the grader dies, however it dies.

    The lifeline is a pipe whose other end the parent holds. A hang inside C code can hold the thread that
    watches it, so on Linux the kernel is asked to send SIGKILL as well.
    """
    die_by_signal()

    def watch() -> None:
        try:
            os.read(lifeline, 1)
        finally:
            os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def die_by_signal() -> None:
    """On Linux, have the kernel send this process SIGKILL when its parent dies."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
