"""Starts a strict grading child: an isolated Python, without what site-packages runs at start.

    python -I -S strict_start.py FD

The job comes through the file descriptor. The grader and the kernels are those of the folder that the job
names, compiled afresh; other packages come from the folders it names too. sitecustomize, usercustomize and
.pth files have no part in it, and neither has the environment.
"""

import importlib.machinery
import importlib.util
import json
import os
import sys
import types


class _Sources(importlib.machinery.SourceFileLoader):
    """Compiles each time: a .pyc beside a source could hold anything."""

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Ours:
    """Finds tinyllm.grader and tinyllm.kernels in their own folders, and no other tinyllm package."""

    def __init__(self, root):
        self.root = root

    def find_spec(self, fullname, path=None, target=None):
        parts = fullname.split(".")
        if len(parts) < 2 or parts[0] != "tinyllm" or parts[1] not in ("grader", "kernels"):
            return None
        base = os.path.join(self.root, *parts[1:])  # noqa: PTH118 - pathlib is not imported yet
        package = os.path.join(base, "__init__.py")  # noqa: PTH118
        if os.path.isfile(package):  # noqa: PTH113
            loader = _Sources(fullname, package)
            return importlib.util.spec_from_file_location(
                fullname, package, loader=loader, submodule_search_locations=[base]
            )
        if os.path.isfile(base + ".py"):  # noqa: PTH113
            return importlib.util.spec_from_file_location(
                fullname, base + ".py", loader=_Sources(fullname, base + ".py")
            )
        return None


def main():
    with os.fdopen(int(sys.argv[1]), "rb") as pipe:
        job = json.loads(pipe.read())
    sys.argv = ["tinyllm-grade"]
    sys.dont_write_bytecode = True
    sys.path += job["strict"]["packages"]
    package = types.ModuleType("tinyllm")
    package.__path__ = []
    sys.modules["tinyllm"] = package
    sys.meta_path.insert(0, _Ours(job["strict"]["program"]))
    from tinyllm.grader import child

    child.main(job)


if __name__ == "__main__":
    main()
