"""Where a clone of the course keeps things, and how the clone to grade is found."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import EnvironmentFault, UsageError


@dataclass(frozen=True)
class Clone:
    """The folders of one clone of the course, all below `root`."""

    root: Path

    @property
    def exercises(self) -> Path:
        return self.root / "exercises"

    @property
    def reference(self) -> Path:
        return self.root / "reference"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def progress(self) -> Path:
        return self.root / "progress"

    def tree(self, name: str) -> Path:
        """The folder of the tree called `name`: "exercises" or "reference"."""
        return {"exercises": self.exercises, "reference": self.reference}[name]

    def relative(self, path: Path | str) -> str:
        """`path` as the learner would type it from the clone's root; unchanged when it lies outside."""
        try:
            return Path(path).resolve().relative_to(self.root.resolve()).as_posix()
        except ValueError:
            return str(path)


def is_clone(folder: Path) -> bool:
    return (folder / "checkpoints" / "course.toml").is_file()


def find_clone(start: Path | None = None) -> Clone:
    """The clone to work on: TINYLLM_ROOT if set, else the one around `start` (default: the current
    folder), else the one this program is installed from.

    Raises UsageError when none of these is a clone of the course, and EnvironmentFault when the program
    belongs to another clone than the one around `start`: its grader and these days may not fit together.
    """
    named = os.environ.get("TINYLLM_ROOT")
    if named:
        folder = Path(named).expanduser().resolve()
        if not is_clone(folder):
            raise UsageError(f"TINYLLM_ROOT is {folder}, which has no checkpoints/course.toml.")
        return Clone(folder)
    here = (start or Path.cwd()).resolve()
    own = installed_root()
    for folder in (here, *here.parents):
        if is_clone(folder):
            if is_clone(own) and own != folder:
                raise EnvironmentFault(
                    f"You are in the clone {folder}, but this tinyllm-grade is installed from {own}.",
                    next_step="In this clone, run: python -m pip install -e .",
                )
            return Clone(folder)
    if is_clone(own):
        return Clone(own)
    raise UsageError(
        f"{here} is not inside a clone of tinyllm (no checkpoints/course.toml above it).",
        next_step="cd into your clone and run the command again.",
    )


def installed_root() -> Path:
    """The clone that this program's own files belong to (with an editable install)."""
    return Path(__file__).resolve().parent.parent
