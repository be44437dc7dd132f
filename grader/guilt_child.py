"""The child of `why`: one warm process that runs checks of a day again and again, each time with other
modules of the tree replaced by the reference's.

    python -P -m tinyllm.grader.guilt_child '<job as JSON>'

Requests ("trials") come as JSON lines on one pipe, events go as JSON lines to another, as in a grading. For
each trial the tree's modules are imported anew; pytest, NumPy, MLX and the day's tests stay. What cannot be
loaded a second time, the C++ kernels, is the same for all trials of a process: for others there is another.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from . import catalog, child
from .catalog import KERNELS
from .child import Emitter, Quiet, pytest_arguments
from .clone import Clone
from .plugin import METAL, Grading, check_id
from .trees import FreshLoader, Tree


def main(job: Mapping[str, Any]) -> None:
    """Collect the day's checks, then run trials until the pipe of requests is closed."""
    child.begin(job)
    child.settle(job["root"])
    clone = Clone(Path(job["root"]))
    course = catalog.load(clone)
    day = course.day(job["day"])
    tree = MixedTree(job["solution"], clone.tree(job["solution"]), clone.reference)
    tree.replace(job["overlays"], {})
    emit = Emitter(job["events"], job["token"])
    with os.fdopen(job["requests"], "rb") as requests:
        trials = Trials(clone, course, day, tree, emit, map(json.loads, requests))
        trials.prepare()
        quiet = Quiet()
        code = pytest.main(pytest_arguments(day), plugins=[quiet, trials])
    sys.stdout.flush()
    emit("end", {"pytest": int(code), "said": quiet.errors})
    os._exit(0)


class MixedTree(Tree):
    """A tree whose modules can be replaced between imports, whole or by single functions and classes."""

    def __init__(self, name: str, folder: Path, reference: Path) -> None:
        super().__init__(name, folder)
        self.reference = reference
        self.parts: Mapping[str, frozenset[str]] = {}
        self._known: set[Path] = set()

    def replace(self, overlays: Mapping[str, str], parts: Mapping[str, Collection[str]]) -> None:
        """From the next import on: `overlays` are whole files; of the modules in `parts` these names come
        from the reference's file, and see the tree's other names."""
        self.overlays = {module: Path(file) for module, file in overlays.items()}
        self.parts = {module: frozenset(names) for module, names in parts.items()}
        self._known |= set(self.overlays.values())

    def forget(self) -> None:
        """Drop the tree's modules, so that the next import reads them anew."""
        for name in [n for n in sys.modules if n == self.package or n.startswith(f"{self.package}.")]:
            del sys.modules[name]

    def owns(self, filename: str) -> bool:
        """As Tree says; and what has once stood in for a module is solution code for good."""
        known = self._files.get(filename)
        if known is None:
            path = Path(filename)
            folders = (self.folder, self.reference)
            known = path in self._known or any(path.is_relative_to(folder) for folder in folders)
            self._files[filename] = known
        return known

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = super().find_spec(fullname, path, target)
        module = f"{fullname[len(self.package) + 1 :].replace('.', '/')}.py"
        if spec is not None and module in self.parts:
            spec.loader = _Mixed(fullname, str(spec.origin), self.reference / module, self.parts[module])
        return spec


class _Mixed(FreshLoader):
    """Runs the tree's file, then puts single names of the reference's file into the module.

    The reference's file runs in a namespace of its own, where every other name that both files define is the
    tree's: so only the names asked for, and what the reference keeps private, are exchanged.
    """

    def __init__(self, fullname: str, path: str, reference: Path, names: frozenset[str]) -> None:
        super().__init__(fullname, path)
        self._reference = reference
        self._names = names

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        other = types.ModuleType(module.__name__)
        other.__dict__.update(__package__=module.__package__, __file__=str(self._reference))
        exec(self.source_to_code(self._reference.read_bytes(), str(self._reference)), other.__dict__)
        for name, value in list(vars(other).items()):
            if name in self._names:
                setattr(module, name, value)
            elif _is_defined_here(value, module.__name__) and not name.startswith("_"):
                setattr(other, name, getattr(module, name, value))


def _is_defined_here(value: object, module: str) -> bool:
    return isinstance(value, types.FunctionType | type) and value.__module__ == module


class Trials(Grading):
    """A day's checks inside one pytest session, run as often as there are requests."""

    def __init__(
        self,
        clone: Clone,
        course: catalog.Course,
        day: catalog.Day,
        tree: MixedTree,
        emit: Callable[[str, Mapping[str, Any]], None],
        requests: Iterator[Mapping[str, Any]],
    ) -> None:
        super().__init__(clone, course, day, tree, emit=emit)
        self.tree: MixedTree = tree
        self._requests = requests
        self._kernels: dict[str, ModuleType] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.make_ready(session.items)
        self._kernels = dict(self._modules)
        self.emit("ready", {})

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {check_id(item): item for item in session.items}
        for request in self._requests:
            self._begin(request)
            for wanted in request["ids"]:
                item = items[wanted]
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            self.emit("done", {})
        return True

    def _begin(self, request: Mapping[str, Any]) -> None:
        """Put the tree together as the request says, and import it."""
        self.tree.replace(request["overlays"], request["parts"])
        self.tree.forget()
        self._overlay_gpu_kernels()
        self._modules = dict(self._kernels)
        self._import_failure = None
        self.findings = ()
        self.tripwires.clear()
        self.import_modules()

    def _overlay_gpu_kernels(self) -> None:
        gpu = sys.modules.get("tinyllm.kernels.gpu")
        files = {m: f for m, f in self.tree.overlays.items() if m.startswith(KERNELS) and m.endswith(METAL)}
        if files and gpu is None:
            from tinyllm.kernels import gpu
        if gpu is not None:
            gpu.overlay(self.tree.package, {m.removeprefix(KERNELS): f for m, f in files.items()})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
