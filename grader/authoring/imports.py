"""Who may import whom, enforced over the syntax trees of every part.

Reads files only; nothing is imported. A dynamic import is not seen here: the tripwires catch what matters.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..catalog import Course
from ..clone import Clone
from .stubs import NOT_COPIED

# The grader's modules that run in a child. Only they import MLX, and only they import each other:
# loading one of them in the grader's own process would load MLX there.
CHILD_SIDE = frozenset(
    {"child", "faults", "frames", "plugin", "testing", "tripwires", "warm_child", "spares"}
    | {"keeping", "preparing"}  # of what checks compute once
    | {"comparing_child", "judging", "loading", "recording"}  # of `compare`
    | {"guilt_child"}  # of `why`
    | {"boundary", "cases_child", "check_function", "picks", "repro", "story"}  # of failures that are kept
    | {"lines", "tracing_child"}  # of `trace`
    | {"likely_child", "likeness", "witness"}  # of the likely mistake
    | {"speaker", "voice"}  # of `generate` and `chat`
    | {"serving_child"}  # of `serve`
    | {"strict_child", "strict_start"}  # of `--strict`
    | {"benching_child", "machine", "measuring", "model_speed"}  # of `bench`
)

TREES = ("exercises", "reference")
PARTS = (*TREES, "checkpoints", "kernels", "grader")

# What a day may lift: allowed in the modules of a day whose rules, course's and own, do not forbid it.
LIFTABLE = ("numpy", "mlx_lm")

# What modules that learners do not get may use besides: the trainer's tokenizer.
REFERENCE_ONLY = frozenset({"tokenizers"})


@dataclass(frozen=True)
class Violation:
    path: str  # relative to the clone's root
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class _Import:
    """One imported name: `from .rope import RoPE` in reference/week1/gqa.py is
    tinyllm.reference.week1.rope.RoPE, relative."""

    name: str
    line: int
    relative: bool
    leaves: bool = False  # a relative import with more dots than there are folders


def violations(clone: Clone, course: Course) -> list[Violation]:
    """Every import that the table does not allow, every star import, and every __init__ with code in it."""
    files = [(part, path) for part in PARTS for path in _files(clone, part)]
    return [violation for part, path in files for violation in _violations_in(clone, course, part, path)]


def count_files(clone: Clone) -> int:
    return sum(len(_files(clone, part)) for part in PARTS)


def _files(clone: Clone, part: str) -> list[Path]:
    folder = clone.root / part
    found = (p for p in folder.rglob("*.py") if p.is_file())
    return sorted(p for p in found if not p.relative_to(folder).as_posix().startswith(NOT_COPIED))


def _violations_in(clone: Clone, course: Course, part: str, path: Path) -> Iterator[Violation]:
    shown = path.relative_to(clone.root).as_posix()
    inside = path.relative_to(clone.root / part).as_posix()
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        yield Violation(shown, getattr(error, "lineno", None) or 1, f"does not parse: {error}")
        return
    if path.name == "__init__.py":
        for node in tree.body[1 if ast.get_docstring(tree) is not None else 0 :]:
            yield Violation(shown, node.lineno, "an __init__ holds a docstring and nothing else")
    complaint = _table(course, part, inside)
    for item in _imports(tree, part, inside):
        if item.name.endswith(".*"):
            yield Violation(shown, item.line, f"star import of {item.name[:-2]}: name what you use")
        elif item.leaves:
            yield Violation(shown, item.line, f"a relative import leaves {part}/")
        elif problem := complaint(item):
            yield Violation(shown, item.line, f"imports {item.name}: {problem}")


def _imports(tree: ast.Module, part: str, inside: str) -> Iterator[_Import]:
    package = ["tinyllm", part, *Path(inside).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import(alias.name, node.lineno, relative=False)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            leaves = node.level > 0 and len(base) < 2
            for alias in node.names:
                name = ".".join([*base, *filter(None, [node.module]), alias.name])
                yield _Import(name, node.lineno, relative=node.level > 0, leaves=leaves)


# ---- the table ----

Complaint = Callable[[_Import], str]  # why the import is not allowed; empty when it is


def _table(course: Course, part: str, inside: str) -> Complaint:
    if part in TREES:
        lifted = lifted_for(course, inside) | packages_of(course, inside)
        if part == "reference" and course.is_reference_only(inside):
            lifted |= REFERENCE_ONLY
        return lambda item: _solution_complaint(item, part, lifted)
    if part == "checkpoints":
        return lambda item: _day_complaint(item, inside, course)
    if part == "kernels":
        return _kernels_complaint
    module = inside.removesuffix(".py").replace("/", ".")
    is_test = inside.startswith("tests/")
    return lambda item: _grader_complaint(item, in_child=is_test or module in CHILD_SIDE)


def lifted_for(course: Course, module: str) -> frozenset[str]:
    """The packages out of LIFTABLE that every day of this module ("week3/rag.py") leaves unforbidden."""
    days = [day for day in course.days if module in day.modules]
    return frozenset(
        package
        for package in LIFTABLE
        if days and not any(rule.api in (package, f"{package}.*") for day in days for rule in day.rules)
    )


def packages_of(course: Course, module: str) -> frozenset[str]:
    """The packages that every day of this module ("week2/server.py") names in its spec."""
    named = [frozenset(day.packages) for day in course.days if module in day.modules]
    return frozenset.intersection(*named) if named else frozenset()


def _solution_complaint(item: _Import, tree: str, lifted: frozenset[str]) -> str:
    allowed = ("mlx.core", "mlx.nn", "tinyllm.kernels", *lifted)
    if item.relative or _is_stdlib(item.name) or any(_within(item.name, name) for name in allowed):
        return ""
    if _within(item.name, f"tinyllm.{tree}"):
        return "a tree imports its own modules by relative imports, so that both trees read alike"
    return "a tree imports the standard library, mlx.core, mlx.nn, tinyllm.kernels and its own modules"


def _day_complaint(item: _Import, inside: str, course: Course) -> str:
    """For a day's tests and for its measurement, bench.py."""
    measures = inside.endswith("/bench.py")
    allowed = ["numpy", "mlx", "mlx_lm", "tinyllm.grader.testing"]
    for day in course.days:
        if inside.startswith(f"{day.folder.name}/"):
            allowed += [*day.packages, *day.test_packages]
    allowed.append("tinyllm.grader.measuring" if measures else "pytest")
    if not item.relative and (_is_stdlib(item.name) or any(_within(item.name, name) for name in allowed)):
        return ""
    if measures:
        return "a bench.py imports numpy, mlx, mlx_lm and tinyllm.grader's measuring and testing"
    return "tests import pytest, numpy, mlx, mlx_lm and tinyllm.grader.testing; the rest is `solution`'s"


def _kernels_complaint(item: _Import) -> str:
    if _within(item.name, "tinyllm") and not _within(item.name, "tinyllm.kernels"):
        return "kernels/ knows nothing else of ours"
    return ""


def _grader_complaint(item: _Import, in_child: bool) -> str:
    for tree in TREES:
        if _within(item.name, f"tinyllm.{tree}"):
            return "the grader never imports a solution tree; it starts a child that does"
    if in_child:
        return ""
    if _within(item.name, "mlx") or _within(item.name, "mlx_lm"):
        return "MLX stays out of the grader's own process (CHILD_SIDE lists the modules of the child)"
    if any(_within(item.name, f"tinyllm.grader.{module}") for module in CHILD_SIDE):
        return "this module runs in the grading child and would load MLX here"
    return ""


def _is_stdlib(name: str) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")
