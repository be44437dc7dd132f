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

    def __init__(
        self,
        package: str,
        folder: Path | None = None,
        overlays: Mapping[str, Path] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        """package: the tree's, such as "tinyllm.exercises". The rest as build.load takes it."""
        self._package = package
        self._folder = folder
        self._overlays = overlays
        self._only = only
        self._module: ModuleType | None = None
        self._failure: Exception | None = None

    def load(self) -> ModuleType:
        """The built module. Raises what build.load raises, every time."""
        if self._failure is not None:
            raise self._failure
        if self._module is None:
            tree = importlib.import_module(self._package)
            folder = self._folder or Path(next(iter(tree.__path__))) / "kernels"
            try:
                self._module = build.load(folder, self._overlays, self._only)
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
    """Say what a tree's kernels are built from, as build.load takes it, before a module asks for them."""
    if package in _kernels:
        raise RuntimeError(f"the kernels of {package} are in use already")
    _kernels[package] = Kernels(package, folder, overlays, only)
    return _kernels[package]
