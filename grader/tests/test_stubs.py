"""exercises/ is the reference without its solutions, and nothing else about it changes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tinyllm.grader import catalog
from tinyllm.grader.authoring import stubs
from tinyllm.grader.authoring.cli import main
from tinyllm.grader.clone import Clone, installed_root
from tinyllm.grader.errors import SpecError
from tinyllm.grader.tests import toy

REFERENCE = '''\
"""Toy: sums and a class.

This line stays.
"""

# The course's own remark.
import math  # only a body needs it
from functools import cache

LIMIT = 3  # public, stays

# How many of them.
# Over two lines.
_SECRET = {
    "a": 1,
}
_OTHER: int = 2


def total(
    xs: list[int],  # what to add
    start: int = 0,
) -> int:
    """The sum.

    xs: whole numbers.
    """
    # Adding is easy.
    result = start
    for x in xs:
        result += _plus_one(x) - 1
    return result
    # and that is all


# Helps total.
@cache
def _plus_one(x: int) -> int:
    return x + 1


# Above bare: stays.
@cache
def bare(x: int, *, scale: float = 1.0) -> float:  # noqa: D103
    # gone
    return math.sqrt(x) * scale


def given(x: int) -> int:
    """Not a task: stays whole."""

    def inner() -> int:
        return x

    return inner()


class Counter:
    """Counts.

    With a long docstring.
    """

    step: int = 1
    names = ("a", "b")  # stays

    def __init__(self, size: int) -> None:
        """size: how many."""
        self.size = size

        self._cells = [0] * size

    # Private, and so is this.
    def _bump(self, i: int) -> None:
        self._cells[i] += self.step

    @property
    def last(self) -> int:
        return self._cells[-1]

    def __call__(self, i: int) -> int:
        """Count one more at i."""
        self._bump(i)
        return self._cells[i]


class Given:
    """Only one method is asked for."""

    def __init__(self) -> None:
        self.x = 1

    async def ask(self) -> int:
        return 2

    def rest(self) -> int:
        return self.x


_LAST = 1
'''

STUB = '''\
"""Toy: sums and a class.

This line stays.
"""

# The course's own remark.
import math  # only a body needs it
from functools import cache

LIMIT = 3  # public, stays


def total(
    xs: list[int],  # what to add
    start: int = 0,
) -> int:
    """The sum.

    xs: whole numbers.
    """
    raise NotImplementedError("day 1.1, task 1: total")


# Above bare: stays.
@cache
def bare(x: int, *, scale: float = 1.0) -> float:  # noqa: D103
    raise NotImplementedError("day 1.1, task 1: bare")


def given(x: int) -> int:
    """Not a task: stays whole."""

    def inner() -> int:
        return x

    return inner()


class Counter:
    """Counts.

    With a long docstring.
    """

    step: int = 1
    names = ("a", "b")  # stays

    def __init__(self, size: int) -> None:
        """size: how many."""
        raise NotImplementedError("day 1.1, task 2: Counter.__init__")

    @property
    def last(self) -> int:
        raise NotImplementedError("day 1.1, task 2: Counter.last")

    def __call__(self, i: int) -> int:
        """Count one more at i."""
        raise NotImplementedError("day 1.1, task 3: Counter.__call__")


class Given:
    """Only one method is asked for."""

    def __init__(self) -> None:
        self.x = 1

    async def ask(self) -> int:
        raise NotImplementedError("day 1.1, task 3: Given.ask")

    def rest(self) -> int:
        return self.x
'''

# total and Counter are listed again later: the first task's number counts.
TASKS = (["total", "bare"], ["Counter", "total"], ["Counter.__call__", "Given.ask", "Counter"])

CPP = """\
// A kernel.
#include <cmath>

  // [task 2: the loop
  for (int i = 0; i < n; ++i) {
    y[i] = x[i];
  }
  // task 2]
int given() { return 1; }
"""

CPP_STUB = """\
// A kernel.
#include <cmath>

  // [task 2: the loop
  throw NotWritten("day 1.1, task 2: copy");  // write this part
  // task 2]
int given() { return 1; }
"""


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A course of one day with a Python module, a C++ file and a module nobody has to write."""
    clone = Clone(tmp_path)
    _put(clone.checkpoints / "course.toml", 'title = "Toy"\n[weeks]\n1 = "One"\n')
    _spec(clone)
    _put(clone.reference / "__init__.py", '"""A tree."""\n')
    _put(clone.reference / "week1" / "__init__.py", '"""Week 1."""\n')
    _put(clone.reference / "week1" / "toy.py", REFERENCE)
    _put(clone.reference / "kernels" / "copy.cpp", CPP)
    _put(clone.reference / "shared.py", "_STAYS = 1  # no task: copied as it is\n")
    _put(clone.reference / "models" / "tiny" / "config.py", "x = 1\n")
    _put(clone.reference / "week1" / "notes.txt", "no source\n")
    return clone


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def _spec(clone: Clone, tasks=TASKS, modules=("week1/toy.py", "kernels/copy.cpp"), day: str = "1.1") -> None:
    lines = [
        f'id = "{day}"',
        'title = "T"',
        'summary = "S"',
        f"modules = {list(modules)!r}",
        "builds_on = []",
    ]
    for number, symbols in enumerate(tasks, start=1):
        listed = [f"{modules[0]}::{s}" for s in symbols]
        lines += [
            "[[tasks]]",
            f"id = {number}",
            'title = "t"',
            'goal = "g"',
            "checks = 1",
            f"symbols = {listed!r}",
            'hints = ["h"]',
        ]
    _put(clone.checkpoints / f"day{day.replace('.', '_')}" / "checkpoint.toml", "\n".join(lines) + "\n")


def _pristine(clone: Clone) -> dict[str, bytes]:
    return stubs.pristine(clone, catalog.load(clone))


def _signatures(source: str) -> dict[str, tuple[str, str | None]]:
    """Every function's and class's header and docstring, by dotted name."""
    found = {}

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                found[prefix + node.name] = (
                    ast.unparse(ast.Tuple(node.bases + node.decorator_list)),
                    ast.get_docstring(node),
                )
                walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                decorators = [ast.unparse(d) for d in node.decorator_list]
                returns = ast.unparse(node.returns) if node.returns else ""
                found[prefix + node.name] = (
                    f"{type(node).__name__} {decorators} {ast.unparse(node.args)} {returns}",
                    ast.get_docstring(node),
                )

    walk(ast.parse(source).body, "")
    return found


def _ruff_says(source: str) -> str:
    """What `ruff format` would print for this source."""
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "110", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def test_the_stub_is_the_reference_without_its_solution(clone: Clone) -> None:
    assert _pristine(clone)["week1/toy.py"].decode() == STUB


def test_the_toy_reference_and_its_stub_are_both_formatted() -> None:
    assert _ruff_says(REFERENCE) == REFERENCE
    assert _ruff_says(STUB) == STUB


def test_what_is_no_task_is_copied_and_what_is_no_source_is_left_behind(clone: Clone) -> None:
    files = _pristine(clone)
    assert sorted(files) == [
        "__init__.py",
        "kernels/copy.cpp",
        "shared.py",
        "week1/__init__.py",
        "week1/toy.py",
    ]
    assert files["__init__.py"] == b'"""A tree."""\n'
    assert files["shared.py"] == b"_STAYS = 1  # no task: copied as it is\n"


def test_marked_regions_of_a_kernel_are_cut_out(clone: Clone) -> None:
    assert _pristine(clone)["kernels/copy.cpp"].decode() == CPP_STUB


def test_an_earlier_days_number_is_kept_when_a_later_day_lists_the_symbol_again(clone: Clone) -> None:
    _spec(clone, tasks=(["total", "given"],), modules=("week1/toy.py",), day="1.2")
    stub = _pristine(clone)["week1/toy.py"].decode()
    assert '"day 1.1, task 1: total"' in stub
    assert '"day 1.2, task 1: given"' in stub


@pytest.mark.parametrize(
    ("source", "asked", "stub"),
    [
        ("def f(x): return x\n", ["f"], 'def f(x):\n    raise NotImplementedError("day 1.1, task 1: f")\n'),
        (
            "class A:\n    x: int\n\n    class _In:\n        pass\n\n    class B:\n        def g(self):\n"
            "            pass\n",
            ["A"],
            "class A:\n    x: int\n\n    class B:\n        def g(self):\n"
            '            raise NotImplementedError("day 1.1, task 1: A.B.g")\n',
        ),
        (
            "import a\n\n_X = 1\nY = 2\n\n\ndef _f():\n    def in_it():\n        pass\n\n    # inside\n\n\n"
            "# stays\n\nZ = 3\n",
            [],
            "import a\n\nY = 2\n\n\n# stays\n\nZ = 3\n",
        ),
        (
            "def _asked():\n    return 1\n",
            ["_asked"],
            'def _asked():\n    raise NotImplementedError("day 1.1, task 1: _asked")\n',
        ),
        (
            'def f(a="(:", *, b: dict[str, int] = {1: 2}) -> "x:y":\n    """Doc: # text."""\n    pass\n',
            ["f"],
            'def f(a="(:", *, b: dict[str, int] = {1: 2}) -> "x:y":\n    """Doc: # text."""\n'
            '    raise NotImplementedError("day 1.1, task 1: f")\n',
        ),
        (
            "for _ in range(2):\n    _ = 1\n__all__ = []\n",
            [],
            "for _ in range(2):\n    _ = 1\n__all__ = []\n",
        ),
        ("x = '\x0c\u2028'\n_y = 1\n", [], "x = '\x0c\u2028'\n"),
    ],
    ids=[
        "one line",
        "nested class",
        "gaps",
        "asked private",
        "odd headers",
        "dunders stay",
        "odd separators",
    ],
)
def test_corner_cases(source: str, asked: list[str], stub: str) -> None:
    assert stubs.python_stub(source, dict.fromkeys(asked, "day 1.1, task 1"), "toy.py") == stub


@pytest.mark.parametrize(
    ("source", "asked", "message"),
    [
        ("def f(:\n", [], "toy.py: does not parse"),
        ("x = 1\n", ["x"], "toy.py: no function or class called x, which day 1.1, task 1 asks for"),
        ("class A:\n    pass\n", ["A.go"], "no function or class called A.go"),
        ("class A:\n    def _f(self):\n        pass\n", ["A"], "toy.py:1: class A would be left empty"),
        ("_a, b = 1, 2\n", [], "toy.py:1: binds _a, b together"),
        ("_N = 3\n\n\ndef f(n=_N):\n    pass\n", ["f"], "line 1 of its stub): uses _N"),
        (
            'class A:\n    """D."""\n\n    def _f(self):\n        pass\n\n\ndef h(a):\n    a._f()\n',
            ["A"],
            "(line 6 of its stub): uses _f, which the stub leaves out",
        ),
    ],
)
def test_what_cannot_become_a_stub_is_named(source: str, asked: list[str], message: str) -> None:
    with pytest.raises(SpecError) as error:
        stubs.python_stub(source, dict.fromkeys(asked, "day 1.1, task 1"), "toy.py")
    assert message in error.value.message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("// [task 1\n// [task 2\n", "k.cpp:2: task 2 begins inside the region of task 1"),
        ("// [task 1\n// task 2]\n", "k.cpp:2: task 2 ends here but did not begin"),
        ("\n// [task 1\n", "k.cpp:2: the region of task 1 is not closed"),
        ("// [task 7\n", "k.cpp:1: day 1.1 has no task 7"),
    ],
)
def test_a_region_that_does_not_close_is_named(source: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        stubs.region_stub(source, "1.1", {1, 2}, "k.cpp")
    assert error.value.message == message


def test_every_misfit_between_reference_and_specs_is_named_at_once(clone: Clone) -> None:
    _put(clone.reference / "week1" / "late.py", "x = 1\n")
    _put(clone.reference / "kernels" / "late.metal", "")
    (clone.reference / "kernels" / "copy.cpp").unlink()
    (clone.reference / "week1" / "toy.py").write_bytes(b"# \xff\n")
    with pytest.raises(SpecError) as error:
        _pristine(clone)
    assert error.value.message.splitlines() == [
        "reference/kernels/late.metal: no day's checkpoint.toml lists it in modules",
        "reference/week1/late.py: no day's checkpoint.toml lists it in modules",
        "reference/week1/toy.py: not UTF-8 (invalid start byte)",
        "checkpoints/day1_1/checkpoint.toml: modules: reference/kernels/copy.cpp does not exist",
    ]


def test_reference_only_modules_are_not_copied_until_a_day_lists_them(clone: Clone) -> None:
    course_file = clone.checkpoints / "course.toml"
    course_file.write_text('reference_only = ["week4/*", "week1/*"]\n' + course_file.read_text())
    _put(clone.reference / "week4" / "__init__.py", "")
    _put(clone.reference / "week4" / "corpus.py", "import tokenizers\n")
    result = _pristine(clone)
    assert not [module for module in result if module.startswith("week4/")]
    assert "week1/toy.py" in result


def test_write_then_check_agree_and_stale_files_go(clone: Clone) -> None:
    _put(clone.exercises / "week1" / "stale.py", "x = 1\n")
    _put(clone.exercises / "week1" / "notes.txt", "the learner's own\n")
    course = catalog.load(clone)
    assert "week1/stale.py" in stubs.write(clone, course)
    assert not (clone.exercises / "week1" / "stale.py").exists()
    assert (clone.exercises / "week1" / "notes.txt").exists()
    assert stubs.check(clone, course) == ""
    assert stubs.write(clone, course) == []


def test_the_command_shows_what_differs(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLLM_ROOT", str(clone.root))
    run = CliRunner().invoke
    assert run(main, ["stubs"]).exit_code == 0
    assert run(main, ["stubs", "--check"]).output == "exercises/ and progress/ are as they ship.\n"

    toy = clone.exercises / "week1" / "toy.py"
    toy.write_text(toy.read_text().replace("LIMIT = 3", "LIMIT = 4"))
    _put(clone.exercises / "week1" / "stale.py", "x = 1")
    _put(clone.exercises / "week1" / "empty.py", "")
    (clone.exercises / "shared.py").unlink()
    result = run(main, ["stubs", "--check"])
    assert result.exit_code == 1
    assert "-LIMIT = 4  # public, stays\n+LIMIT = 3  # public, stays\n" in result.output
    assert "--- exercises/week1/stale.py\n+++ /dev/null\n" in result.output
    assert "--- /dev/null\n+++ generated/shared.py\n" in result.output
    assert "exercises/week1/empty.py differs from a fresh generation\n" in result.output
    assert "Run: python -m tinyllm.grader.authoring stubs" in result.output
    assert (clone.exercises / "week1" / "stale.py").exists(), "--check changes nothing"


def test_a_broken_spec_is_a_sentence_and_an_exit_code(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLLM_ROOT", str(clone.root))
    _spec(clone, tasks=(["nowhere"],))
    result = CliRunner().invoke(main, ["stubs"])
    assert result.exit_code == 3
    assert "no function or class called nowhere" in result.stderr
    assert "Traceback" not in result.output + result.stderr


def test_the_stubs_of_this_course_keep_every_header_and_docstring_and_are_formatted() -> None:
    clone = Clone(installed_root())
    for relative, data in _pristine(clone).items():
        if not relative.endswith(".py"):
            continue
        stub = data.decode()
        theirs = _signatures((clone.reference / relative).read_text(encoding="utf-8"))
        ours = _signatures(stub)
        assert {name: theirs[name] for name in ours} == ours
        assert all(name.rpartition(".")[2].startswith("_") for name in set(theirs) - set(ours))
        assert _ruff_says(stub) == stub, relative


def test_somebodys_work_is_not_overwritten(tmp_path: Path) -> None:
    course = toy.make(tmp_path)
    course.sums()
    code = (course.clone.exercises / "week1/sums.py").read_bytes()
    assert course.grade("1.1").returncode == 0
    command = [sys.executable, "-P", "-m", "tinyllm.grader.authoring", "stubs"]
    done = subprocess.run(command, env=course.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "somebody's work: not overwritten" in done.stderr
    assert (course.clone.exercises / "week1/sums.py").read_bytes() == code
    check = subprocess.run(
        [*command, "--check"], env=course.environment(), capture_output=True, text=True, check=False
    )
    assert check.returncode == 1
    assert "progress/attempts.jsonl has attempts in it" in check.stdout
    assert "progress/tiny-llm-tracker.md is not the fresh one" in check.stdout
