"""Who may import whom: every violation is named with file and line, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tinyllm.grader import catalog
from tinyllm.grader.authoring import imports
from tinyllm.grader.authoring.cli import main
from tinyllm.grader.clone import Clone, installed_root

SPEC = """
id = "1.1"
title = "T"
summary = "S"
modules = ["week1/rag.py"]
builds_on = []
[[tasks]]
id = 1
title = "t"
goal = "g"
checks = 1
symbols = []
hints = []
"""

FORBIDS_NUMPY = '[[forbids]]\napi = "numpy.*"\nwhy = "w"\ninstead = "i"\n'


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    clone = Clone(tmp_path)
    _course(clone, FORBIDS_NUMPY)
    _put(clone, "checkpoints/day1_1/checkpoint.toml", SPEC)
    return clone


def _course(clone: Clone, rules: str) -> None:
    _put(clone, "checkpoints/course.toml", f'title = "Toy"\n[weeks]\n1 = "One"\n{rules}')


def _put(clone: Clone, relative: str, text: str) -> None:
    path = clone.root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _found(clone: Clone) -> list[str]:
    return [str(v) for v in imports.violations(clone, catalog.load(clone))]


ALLOWED = {
    "reference/week1/gqa.py": (
        "from __future__ import annotations\nimport math\nimport mlx.core as mx\nimport mlx.nn as nn\n"
        "from mlx import nn\nfrom collections import deque\nfrom tinyllm import kernels\n"
        "from .rope import RoPE\nfrom ..week1 import rope\nfrom . import rope\nfrom .. import week1\n"
    ),
    "exercises/week1/__init__.py": '"""Week 1."""\n',
    "exercises/week1/empty/__init__.py": "",
    "checkpoints/day1_1/test_it.py": (
        "import pytest\nimport numpy as np\nimport mlx.core as mx\nimport math\n"
        "from tinyllm.grader.testing import check\nfrom tinyllm.grader import testing\n"
        "import mlx_lm\nfrom mlx_lm.models import qwen2\n"
    ),
    "checkpoints/day1_1/bench.py": (
        "import numpy as np\nimport mlx.core as mx\nfrom tinyllm.grader.measuring import Bench\n"
        "from tinyllm.grader import testing\n"
    ),
    "kernels/build.py": "import nanobind\nimport numpy\nfrom . import a\nfrom tinyllm.kernels import a\n",
    "grader/runner.py": "import click\nfrom . import catalog\nfrom .authoring import stubs\nimport numpy\n",
    "grader/testing.py": "import mlx.core as mx\nfrom . import frames\n",
    "grader/tests/test_testing.py": "import mlx.core\nfrom tinyllm.grader import testing\n",
    "reference/models/tiny/convert.py": "from torch import *\n",
}


@pytest.mark.parametrize("relative", ALLOWED)
def test_what_the_table_allows(clone: Clone, relative: str) -> None:
    _put(clone, relative, ALLOWED[relative])
    assert _found(clone) == []


REFUSED = [
    (
        "reference/week1/a.py",
        "import numpy as np",
        "imports numpy: a tree imports the standard library, mlx.core",
    ),
    (
        "exercises/week1/a.py",
        "from mlx_lm import load",
        "imports mlx_lm.load: a tree imports the standard library",
    ),
    ("exercises/a.py", "import mlx", "imports mlx: a tree imports the standard library"),
    ("exercises/a.py", "import mlx.optimizers", "imports mlx.optimizers: a tree"),
    (
        "exercises/a.py",
        "from tinyllm.exercises.week1 import b",
        "a tree imports its own modules by relative imports",
    ),
    ("exercises/a.py", "from tinyllm.reference import b", "imports tinyllm.reference.b: a tree imports"),
    ("exercises/a.py", "from tinyllm.grader import report", "imports tinyllm.grader.report: a tree imports"),
    ("exercises/week1/a.py", "from ... import reference", "a relative import leaves exercises/"),
    ("exercises/a.py", "from .. import reference", "a relative import leaves exercises/"),
    (
        "exercises/week1/a.py",
        "from .b import *",
        "star import of tinyllm.exercises.week1.b: name what you use",
    ),
    ("exercises/a.py", "from math import *", "star import of math: name what you use"),
    (
        "checkpoints/day1_1/test_a.py",
        "import torch",
        "imports torch: tests import pytest, numpy, mlx, mlx_lm",
    ),
    (
        "checkpoints/day1_1/test_a.py",
        "from tinyllm.grader.catalog import Day",
        "imports tinyllm.grader.catalog.Day: tests import",
    ),
    (
        "checkpoints/day1_1/test_a.py",
        "from tinyllm.reference.week1 import a",
        "the rest is `solution`'s",
    ),
    (
        "checkpoints/day1_1/bench.py",
        "import pytest",
        "imports pytest: a bench.py imports numpy, mlx, mlx_lm and tinyllm.grader's measuring and testing",
    ),
    ("checkpoints/day1_1/test_a.py", "from . import b", "imports tinyllm.checkpoints.day1_1.b: tests import"),
    ("kernels/a.py", "from tinyllm.grader import clone", "kernels/ knows nothing else of ours"),
    ("kernels/a.py", "from .. import reference", "a relative import leaves kernels/"),
    ("grader/a.py", "import tinyllm.reference.week1", "the grader never imports a solution tree"),
    ("grader/child.py", "from tinyllm.exercises import week1", "the grader never imports a solution tree"),
    ("grader/tests/test_a.py", "from tinyllm import reference", "the grader never imports a solution tree"),
    ("grader/a.py", "import mlx.core as mx", "MLX stays out of the grader's own process"),
    ("grader/authoring/a.py", "from mlx_lm import load", "MLX stays out of the grader's own process"),
    ("grader/a.py", "from .testing import check", "this module runs in the grading child"),
    ("grader/authoring/testing.py", "import mlx.core", "MLX stays out of the grader's own process"),
    ("grader/authoring/a.py", "from .. import plugin", "this module runs in the grading child"),
    ("grader/b/__init__.py", "VERSION = 1", "an __init__ holds a docstring and nothing else"),
    ("reference/__init__.py", "from . import week1", "an __init__ holds a docstring and nothing else"),
    ("exercises/a.py", "def f(:", "does not parse"),
]


@pytest.mark.parametrize(("relative", "code", "message"), REFUSED)
def test_each_violation_is_named_with_file_and_line(
    clone: Clone, relative: str, code: str, message: str
) -> None:
    _put(clone, relative, f'"""Doc."""\n\n{code}\n')
    (line,) = _found(clone)
    assert line.startswith(f"{relative}:3: ")
    assert message in line


def test_an_import_inside_a_function_counts_and_each_name_has_its_line(clone: Clone) -> None:
    _put(
        clone, "exercises/week1/a.py", "def f():\n    import numpy\n\n    from mlx_lm import load, generate\n"
    )
    assert [line.partition(": a tree")[0] for line in _found(clone)] == [
        "exercises/week1/a.py:2: imports numpy",
        "exercises/week1/a.py:4: imports mlx_lm.load",
        "exercises/week1/a.py:4: imports mlx_lm.generate",
    ]


def test_the_trainers_modules_may_import_tokenizers_and_nobody_else(clone: Clone) -> None:
    course_file = clone.checkpoints / "course.toml"
    course_file.write_text('reference_only = ["week4/*"]\n' + course_file.read_text())
    for module in ("reference/week4/a.py", "reference/week1/a.py", "exercises/week4/a.py"):
        _put(clone, module, "import tokenizers\n")
    lines = [str(v) for v in imports.violations(clone, catalog.load(clone))]
    assert [line.partition(":")[0] for line in lines] == ["exercises/week4/a.py", "reference/week1/a.py"]


def test_a_day_whose_rules_do_not_forbid_numpy_may_import_it_in_its_own_modules(clone: Clone) -> None:
    _course(clone, FORBIDS_NUMPY.replace("numpy", "torch"))
    _put(clone, "exercises/week1/rag.py", "import numpy as np\n")
    _put(clone, "exercises/week1/other.py", "import numpy as np\n")
    (line,) = _found(clone)
    assert line.startswith("exercises/week1/other.py:1: imports numpy")


def test_the_command_prints_the_violations_and_fails(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLLM_ROOT", str(clone.root))
    _put(clone, "exercises/a.py", "import math\n")
    fine = CliRunner().invoke(main, ["imports"])
    assert (fine.exit_code, fine.output) == (0, "Every import is allowed. Files read: 1\n")
    _put(clone, "exercises/a.py", "import numpy\n")
    wrong = CliRunner().invoke(main, ["imports"])
    assert wrong.exit_code == 1
    assert wrong.output.startswith("exercises/a.py:1: imports numpy")


def test_this_clone_obeys() -> None:
    assert _found(Clone(installed_root())) == []


def test_every_listed_child_side_module_exists() -> None:
    folder = Clone(installed_root()).root / "grader"
    files = {name: folder / f"{name.replace('.', '/')}.py" for name in sorted(imports.CHILD_SIDE)}
    assert [name for name, file in files.items() if not file.is_file()] == []


def test_packages_that_a_day_names(clone: Clone) -> None:
    spec = SPEC.replace("[[tasks]]", 'packages = ["starlette"]\ntest_packages = ["uvicorn"]\n[[tasks]]')
    _put(clone, "checkpoints/day1_1/checkpoint.toml", spec)
    _put(clone, "reference/week1/rag.py", "import starlette.routing\n")
    _put(clone, "checkpoints/day1_1/test_rag.py", "import starlette\nimport uvicorn\n")
    assert _found(clone) == []
    _put(clone, "reference/week1/rag.py", "import uvicorn\n")
    _put(clone, "reference/week1/rope.py", "import starlette\n")
    _put(clone, "checkpoints/day1_1/test_rag.py", "import openai\n")
    assert [line.split(": ")[0] for line in _found(clone)] == [
        "reference/week1/rag.py:1",
        "reference/week1/rope.py:1",
        "checkpoints/day1_1/test_rag.py:1",
    ]
