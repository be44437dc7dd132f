"""A throw-away clone of the course whose exercises are already done, for measurements to grade."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..authoring.scratch import copy_of
from ..clone import Clone

GRADE = (sys.executable, "-P", "-c", "from tinyllm.grader.cli import main; main()")


def finished_copy(clone: Clone, root: Path, *, models: bool = False) -> Clone:
    """Copy `clone` to `root` with the reference as its exercises; `models` as in `copy_of`."""
    return copy_of(clone, root, exercises="reference", models=models)


def environment(clone: Clone) -> dict[str, str]:
    """The environment in which the program, wherever it is installed, grades `clone`."""
    return {**os.environ, "TINYLLM_ROOT": str(clone.root), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
