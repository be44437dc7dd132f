"""A throw-away clone of the course whose exercises are already done, for measurements to grade."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ..clone import Clone

GRADE = (sys.executable, "-P", "-c", "from tinyllm.grader.cli import main; main()")


def finished_copy(clone: Clone, root: Path, *, models: bool = False) -> Clone:
    """Copy `clone` to `root` with the reference as its exercises, as a git repository of its own.

    With `models` its reference/models is the clone's own: for what only reads them.
    """
    skip = shutil.ignore_patterns("__pycache__", "models", "attempts.jsonl", ".lock", "saved")
    for part in ("checkpoints", "reference", "progress"):
        shutil.copytree(clone.root / part, root / part, ignore=skip)
    shutil.copytree(clone.reference, root / "exercises", ignore=skip)
    if models:
        theirs = (clone.reference / "models").resolve()
        (root / "reference" / "models").symlink_to(theirs, target_is_directory=True)
    subprocess.run(["git", "init", "-q", str(root)], check=True, capture_output=True)
    return Clone(root)


def environment(clone: Clone) -> dict[str, str]:
    """The environment in which the program, wherever it is installed, grades `clone`."""
    return {**os.environ, "TINYLLM_ROOT": str(clone.root), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
