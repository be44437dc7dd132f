"""The C++ kernels of a tree, for that tree's own Python modules.

    from tinyllm.kernels import native

    _cpp = native.of(__name__)         # nothing is built yet
    _cpp.axpby(x, y, 2.0, 1.0)         # now it is, the first time

A process can load one state of a tree's kernels; `choose` says which, before the first use.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from . import build


class Kernels:
    """The kernels of one tree. Its attributes are those of the module that build.load gives."""

    def __init__(self, package: str) -> None:
        """package: the tree's, such as "tinyllm.exercises"."""
        self._package = package
        self._sources: tuple[Path | None, Mapping[str, Path] | None, Collection[str] | None] = (None,) * 3
        self._module: ModuleType | None = None
        self._failure: Exception | None = None

    def build_from(
        self, folder: Path, overlays: Mapping[str, Path] | None, only: Collection[str] | None
    ) -> None:
        """What build.load is to take, in the place of all that the tree's folder holds."""
        if self._module is not None:
            raise RuntimeError(f"the kernels of {self._package} are in use already")
        self._sources, self._failure = (folder, overlays, only), None

    def load(self) -> ModuleType:
        """The built module. Raises what build.load raises, every time."""
        if self._failure is not None:
            raise self._failure
        if self._module is None:
            folder, overlays, only = self._sources
            if folder is None:
                folder = Path(next(iter(importlib.import_module(self._package).__path__))) / "kernels"
            try:
                self._module = build.load(folder, overlays, only)
            except (build.BuildFault, build.DoesNotCompile) as failure:
                self._failure = failure
                raise
        return self._module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copy, pickle and inspect ask for is no reason to compile
            raise AttributeError(name)
        return getattr(self.load(), name)


_kernels: dict[str, Kernels] = {}


def of(module: str) -> Kernels:
    """The kernels of the tree that a module belongs to, given its __name__."""
    package = ".".join(module.split(".")[:2])
    return _kernels.setdefault(package, Kernels(package))


def choose(
    package: str,
    folder: Path,
    *,
    overlays: Mapping[str, Path] | None = None,
    only: Collection[str] | None = None,
) -> Kernels:
    """Say what a tree's kernels are built from, as build.load takes it. Before they are used."""
    kernels = of(package)
    kernels.build_from(folder, overlays, only)
    return kernels
