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

if TYPE_CHECKING:
    from .catalog import Day
    from .clone import Clone


def main(job: Mapping[str, Any]) -> None:
    """Run one job. Ends the process itself: a learner's thread that never ends must not keep it alive."""
    die_with_parent(job["lifeline"])
    stacks = Path(job["stack_file"]).open("w")  # noqa: SIM115 - faulthandler writes to it to the end
    faulthandler.enable(file=stacks)  # a segfault or SIGABRT leaves the Python stack here
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for habit in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):  # what the learner likes for their own projects
        os.environ.pop(habit, None)
    os.environ["TINYLLM_ROOT"] = job["root"]  # the models that checks load are this clone's
    # kernels.blas is not used here: it takes 5 to 20 ms of every verdict, the checks' products are tiny, and
    # what a check measures should not depend on whether the machine has a compiler.

    import pytest

    from . import catalog
    from .clone import Clone
    from .plugin import Grading
    from .trees import Tree

    clone = Clone(Path(job["root"]))
    course = catalog.load(clone)
    day = course.day(job["day"])
    overlays = {k: Path(v) for k, v in job["overlays"].items()}
    tree = Tree(job["solution"], clone.tree(job["solution"]), overlays)
    emit = Emitter(job["events"], job["token"])
    only_ids = frozenset(job["only_ids"]) if job["only_ids"] is not None else None
    witness = Path(job["witness"]) if job.get("witness") else None
    grading = Grading(
        clone, course, day, tree, emit=emit, only_ids=only_ids, only_task=job["only_task"], witness=witness
    )

    def report_where(signum: int, frame: FrameType | None) -> None:
        """The parent's time limit: say where the learner's code stands, then end."""
        emit("stuck", {"frames": [asdict(f) for f in grading.frames.of_stack(frame)]})
        os._exit(1)

    signal.signal(signal.SIGUSR2, report_where)
    grading.prepare()
    quiet = Quiet()
    code = pytest.main(pytest_arguments(clone, day), plugins=[quiet, grading])
    sys.stdout.flush()
    emit("end", {"finished": grading.finished, "pytest": int(code), "said": quiet.errors})
    os._exit(0)


def pytest_arguments(clone: Clone, day: Day) -> list[str]:
    """How pytest is called on a day's tests: with nothing of what a user may have set up for their own."""
    return [
        "-c", os.devnull, f"--rootdir={clone.root}", "--import-mode=importlib", "--noconftest",
        "-p", "no:cacheprovider", "-p", "no:junitxml", "-p", "no:doctest", "-p", "no:unittest",
        "-p", "no:faulthandler", "-p", "no:terminal", "-p", "no:threadexception",
        "-p", "no:unraisableexception", "-p", "no:warnings", "-s", *map(str, day.tests),
    ]  # fmt: skip


class Emitter:
    """Writes events as JSON lines, each in one write, so that a kill never leaves a mixed line."""

    def __init__(self, fd: int, token: str) -> None:
        self._fd = fd
        self._token = token

    def __call__(self, event: str, data: Mapping[str, Any]) -> None:
        sys.stdout.flush()  # what was printed before the event is in the pipe before the event
        line = json.dumps({"token": self._token, "event": event, **data}) + "\n"
        payload = line.encode()
        while payload:
            payload = payload[os.write(self._fd, payload) :]


class Quiet:
    """Stands in for pytest's terminal reporter, which the child has no use for."""

    errors = ""  # why tests could not be collected

    def pytest_configure(self, config: Any) -> None:
        config.option.verbose = 0

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.errors += f"{report.longrepr}\n"


def die_with_parent(lifeline: int) -> None:
    """End this process when the grader dies, however it dies.

    The lifeline is a pipe whose other end the parent holds. A hang inside C code can hold the thread that
    watches it, so on Linux the kernel is asked to send SIGKILL as well.
    """
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        try:
            os.read(lifeline, 1)
        finally:
            os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
