"""Imports one solution tree from an exact folder, whatever is installed (runs in the grading child).

With an editable install of another clone, `import tinyllm.exercises` would silently find that clone's
files. The finder here answers for the tree's package first and never lets another finder answer.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinyllm.kernels.native import Kernels


class FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles each time: a .pyc is dated in whole seconds, so after a quick edit the old code could run."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class Tree(importlib.abc.MetaPathFinder):
    """The tree in `folder`, importable as `tinyllm.<name>`; `overlays` puts other files in modules' places.

    `overlays` maps a path relative to the tree ("week1/rope.py") to the file that takes its place.
    """

    def __init__(self, name: str, folder: Path, overlays: Mapping[str, Path] | None = None) -> None:
        self.package = f"tinyllm.{name}"
        self.folder = folder
        self.overlays = {k: Path(v) for k, v in (overlays or {}).items()}
        self._files: dict[str, bool] = {}

    def install(self) -> None:
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def replace(self, overlays: Mapping[str, Path]) -> None:
        """Put these files in modules' places, before any of the tree is imported."""
        self.overlays = dict(overlays)
        self._files.clear()

    def uninstall(self) -> None:
        """Forget the tree's modules: another state of it can be installed then."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name in [n for n in sys.modules if n == self.package or n.startswith(self.package + ".")]:
            del sys.modules[name]

    def kernels(self, only: Collection[str]) -> Kernels:
        """The tree's C++ kernels, overlays in place; `only` these files of its kernels folder are compiled.

        For all of the tree's modules in this process. To be called before any of them uses a kernel.
        """
        from tinyllm.kernels import native

        overlays = {Path(m).name: p for m, p in self.overlays.items() if m.endswith(".cpp")}
        return native.choose(self.package, self.folder / "kernels", overlays=overlays, only=only)

    def path_of(self, module: str) -> Path:
        """The file that stands for `module` ("week1/rope.py"), overlays included."""
        return self.overlays.get(module, self.folder / module)

    def import_module(self, module: str) -> ModuleType:
        """Import "week1/rope.py". Raises whatever importing it raises."""
        dotted = module.removesuffix(".py").replace("/", ".")
        return importlib.import_module(f"{self.package}.{dotted}")

    def owns(self, filename: str) -> bool:
        """Whether a code object's file name belongs to this tree (asked often, so remembered)."""
        known = self._files.get(filename)
        if known is None:
            path = Path(filename)
            known = path.is_relative_to(self.folder) or path in self.overlays.values()
            self._files[filename] = known
        return known

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.package and not fullname.startswith(self.package + "."):
            return None
        relative = fullname[len(self.package) + 1 :].replace(".", "/")
        package = self.folder / relative / "__init__.py"
        if package.is_file():
            return importlib.util.spec_from_file_location(
                fullname,
                package,
                loader=FreshLoader(fullname, str(package)),
                submodule_search_locations=[str(package.parent)],
            )
        if (self.folder / relative).is_dir():  # the learner lost an __init__.py; nothing hangs on it
            spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(self.folder / relative)]
            return spec
        file = self.path_of(f"{relative}.py")
        if file.is_file():
            return importlib.util.spec_from_file_location(
                fullname, file, loader=FreshLoader(fullname, str(file))
            )
        raise ModuleNotFoundError(f"No module named '{fullname}'", name=fullname)
