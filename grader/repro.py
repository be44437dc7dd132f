"""What a kept failure's repro.py runs with: its inputs, the learner's code, the comparison.

    case = Case(__file__)
    a, solution = case.arrays, case.solution
    got = solution.softmax(a.x, axis=-1)
    case.compare(got)

No runner, no child. A failure is told in the course's words and ends the program with exit code 1. It is
raised as an exception, so that `python -m pdb` stops there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

from . import catalog, faults
from .cases import CASE, Kept
from .catalog import Day
from .clone import find_clone
from .errors import CourseError
from .render import Screen
from .replaying import command
from .report import Failure
from .trees import Tree


class Case:
    """One kept failure. Made first of all: it puts the learner's tree in place."""

    def __init__(self, program: str) -> None:
        os.environ.setdefault("MLX_ENABLE_TF32", "0")
        sys.excepthook = self._told
        folder = Path(program).resolve().parent
        self._kept = Kept(folder, json.loads((folder / CASE).read_text(encoding="utf-8")))
        self._clone = find_clone(folder)
        self._course = catalog.load(self._clone)
        self._day: Day = self._course.day(self._kept.data["day"])
        borrowed = [self._course.day(d) for d in self._kept.data["borrowed"]]
        overlays = {m: self._clone.reference / m for d in borrowed for m in d.modules}
        self._tree = Tree("exercises", self._clone.exercises, overlays)
        self._tree.install()
        self._recording = ExitStack()

        from .cases_child import load_arrays  # brings in MLX
        from .frames import FrameRecorder
        from .story import Player
        from .testing import check

        self._check = check
        self._relative = faults.shown_path(self._clone, self._tree)
        self._frames = FrameRecorder(self._tree.owns, self._relative)
        self._arrays = load_arrays(folder, self._kept.data)
        self._native: Any = None
        if self._kept.has_inputs:
            self._build_kernels()
        self._test_module: Any = None
        self.solution = self.arrays = None
        if self._kept.has_inputs:
            self.solution = SimpleNamespace(**self._names())
            self._player = Player(self._kept.data["story"], self._arrays, self._look_up, self.own)
            self.arrays = SimpleNamespace(**self._player.given)
        self._recording.enter_context(self._frames.recording())

    # ---- what the program uses

    def before(self, *names: str) -> Any:
        """Make the calls that come before the one that fails; the objects they made, by name."""
        self._player.run(len(self._kept.data["story"]["steps"]) - 1)
        found = [self._player.results[name] for name in names]
        return found[0] if len(found) == 1 else tuple(found)

    def compare(self, got: Any) -> None:
        """Compare as the check does; says that it passes, or raises what is wrong."""
        self._recording.close()
        self._player.compare(self._check, got)
        self.passes()

    def refuses(self, call: Callable[[], Any]) -> None:
        """`call()` must raise what the check says."""
        self._player.refuses(self._check, call)
        self.passes()

    def own(self, name: str) -> Any:
        """What the check's own file calls `name`: a class or function that it gives the code."""
        if self._test_module is None:
            file = self._day.folder / self._kept.id.partition("::")[0]
            spec = importlib.util.spec_from_file_location(f"tinyllm_{file.stem}", file)
            self._test_module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(self._test_module)
        return getattr(self._test_module, name)

    def check(self) -> tuple[Callable[..., None], dict[str, Any]]:
        """The check's function and what it is given."""
        from . import picks
        from .check_function import find

        function, given, needs = find(self._clone, self._day, self._tree, self._kept.id)
        if self._kept.picks is not None and picks.has_cases(function):
            self._recording.enter_context(picks.repeating(function, self._kept.picks))
        if "monkeypatch" in needs:
            import pytest

            given["monkeypatch"] = self._recording.enter_context(pytest.MonkeyPatch.context())
        if "tmp_path" in needs:
            given["tmp_path"] = Path(self._recording.enter_context(tempfile.TemporaryDirectory()))
        return function, given

    def passes(self) -> None:
        """Say that it passes."""
        self._recording.close()
        screen = Screen()
        screen.paragraph(
            f"day{self._day.id}, task {self._kept.task}, passes now: {self._kept.title}", "green"
        )
        screen.paragraph(f"the whole day: tinyllm-grade {self._day.name}")

    # ---- the tree

    def _build_kernels(self) -> None:
        files = self._course.kernels([self._day])
        modules = [m for d in self._course.foundation(self._day) for m in d.modules]
        used = [self._tree.path_of(m) for m in modules if m.endswith(".py")]
        if (files and any(b"tinyllm.kernels" in p.read_bytes() for p in used if p.is_file())) or _native(
            self._day
        ):
            self._native = self._tree.kernels(files).load()
            self._native.watch_outputs(True)

    def _names(self) -> dict[str, Any]:
        """The solution's names that the story uses, so that a debugger's step leads straight into them."""
        found: dict[str, Any] = {}

        def look(value: Any) -> None:
            if isinstance(value, dict):
                if "solution" in value:
                    name = value["solution"].partition(".")[0]
                    found[name] = self._look_up(name, value["module"])
                for item in value.values():
                    look(item)
            elif isinstance(value, list):
                for item in value:
                    look(item)

        look(self._kept.data["story"])
        return found

    def _look_up(self, name: str, module: str) -> Any:
        owner = self._native if module.endswith(".cpp") else self._tree.import_module(module)
        for part in name.split("."):
            owner = getattr(owner, part)
        return owner

    # ---- a failure, told

    def _told(self, kind: type[BaseException], error: BaseException, tb: TracebackType | None) -> None:
        self._recording_off()
        screen = Screen()
        if isinstance(error, CourseError):
            screen.error(error.message, error.next_step)
            return
        if isinstance(error, KeyboardInterrupt):
            return
        day, kept = self._day, self._kept
        screen.paragraph(f"day{day.id}, task {kept.task}, still fails: {kept.title}", "bold")
        screen.failure(self._failure(error, tb))
        screen.command(*command(kept))

    def _recording_off(self) -> None:
        sys.setprofile(None)

    def _failure(self, error: BaseException, tb: TracebackType | None) -> Failure:
        from .testing import CheckFailed

        if isinstance(error, CheckFailed):
            fact = next((f.text for f in self._day.facts if f.id == error.failure.fact), "")
            return replace(error.failure, fact=fact, frames=self._frames.after_return())
        summary = f"{type(error).__name__}: {faults.first_line(error)}"
        checked = self._kept.data["checked"]
        return Failure(summary=summary, checked=checked, frames=self._frames.of_traceback(tb))


def _native(day: Day) -> bool:
    return any(m.endswith(".cpp") for m in day.modules)
