"""A temporary clone in which commands are run as a learner runs them, and code as a learner may have it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ..catalog import Course, Day, Misconception, Symbol, Task
from ..clone import Clone
from ..edits import misconceived
from ..errors import SpecError
from ..symbols import Segment, regions, segment, split_lines
from . import stubs

PROGRAM = (sys.executable, "-P", "-c", "from tinyllm.grader.cli import main; main()")
PARTS = ("checkpoints", "exercises", "reference", "progress")
LEFT_OUT = ("__pycache__", "models", "attempts.jsonl", ".lock", "saved", "journal", "report.html")
TERMINAL = ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


@contextmanager
def clone_of(clone: Clone, *, models: bool = False) -> Iterator[Clone]:
    """A fresh clone in a temporary folder."""
    with TemporaryDirectory(prefix="tinyllm-scratch-") as folder:
        yield copy_of(clone, Path(folder) / "tinyllm", models=models)


def copy_of(clone: Clone, root: Path, *, exercises: str = "exercises", models: bool = False) -> Clone:
    """Copy `clone` to `root`, as a repository of its own, without what its learner has done in it.

    `exercises` is the tree of which its exercises are a copy. With `models` its reference/models is the
    clone's own: for what only reads them.
    """
    for part in PARTS:
        source = clone.root / (exercises if part == "exercises" else part)
        shutil.copytree(source, root / part, ignore=shutil.ignore_patterns(*LEFT_OUT))
    if models:
        theirs = (clone.reference / "models").resolve()
        (root / "reference/models").symlink_to(theirs, target_is_directory=True)
    subprocess.run(["git", "init", "-q", str(root)], check=True, capture_output=True)
    return Clone(root)


def run(clone: Clone, *arguments: str, environment: Mapping[str, str] | None = None) -> tuple[str, int]:
    """What `tinyllm-grade` with these arguments prints, and its exit code."""
    quiet = {name: value for name, value in os.environ.items() if name not in TERMINAL}
    done = subprocess.run(
        [*PROGRAM, *arguments],
        cwd=clone.root,
        env={**quiet, "TINYLLM_ROOT": str(clone.root), "PYTHONIOENCODING": "utf-8", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    # Not as text: that would make a new line of each carriage return.
    return done.stdout.decode("utf-8", "replace"), done.returncode


def write_tasks(
    clone: Clone, course: Course, day: Day, done: Collection[int], mistake: Misconception | None = None
) -> None:
    """Write the day's modules into the clone's exercises, as `sources` has them."""
    for module, text in sources(clone, course, day, done, mistake).items():
        (clone.exercises / module).write_text(text, encoding="utf-8")


def sources(
    clone: Clone, course: Course, day: Day, done: Collection[int], mistake: Misconception | None = None
) -> dict[str, str]:
    """The day's modules: the tasks in `done` are right and the others not begun, and `mistake` is made.

    Raises SpecError where a module has no such symbol, or the mistake does not fit.
    """
    result = {}
    for module in day.modules:
        text = (clone.reference / module).read_text(encoding="utf-8")
        if mistake is not None and mistake.module == module:
            text = misconceived(text, mistake)
        stub = stubs.stub(clone, course, module).decode("utf-8")
        needed = {symbol for task in day.tasks if task.id in done for symbol in task.symbols}
        for task in day.tasks:
            if task.id not in done:
                text = _undone(text, stub, module, task, needed)
        result[module] = text
    return result


def _undone(text: str, stub: str, module: str, task: Task, needed: Collection[Symbol]) -> str:
    """`text` with the task's code as it stands in the stub, but for what tasks that are done need as well."""
    for symbol in task.symbols:
        if symbol.module == module and module.endswith(".py") and symbol not in needed:
            old, new = (_found(source, symbol) for source in (text, stub))
            text = _replaced(text, old, new)
    if not module.endswith(".py"):
        for number, empty in enumerate(regions(stub, task.id)):
            text = _replaced(text, regions(text, task.id)[number], empty)
    return text


def _found(text: str, symbol: Symbol) -> Segment:
    found = segment(text, symbol.name)
    if found is None:
        raise SpecError(f"{symbol.module} has no {symbol.name}, which a task lists")
    return found


def _replaced(text: str, old: Segment, new: Segment) -> str:
    lines = split_lines(text)
    return "\n".join([*lines[: old.start - 1], *new.lines, *lines[old.end :]])
