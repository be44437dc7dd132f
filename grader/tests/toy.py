"""A course of two tiny days in a temporary folder: what the grader's own tests grade, list and break."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tinyllm.grader import catalog
from tinyllm.grader.clone import Clone

COURSE = """
title = "toy"
[weeks]
1 = "Toys"
[limits]
check_seconds = 3
day_seconds = 60
memory_gib = 1.5
[[forbids]]
api = "mlx.core.fast.*"
why = "it is finished"
instead = "mx.matmul"
[[forbids]]
api = "numpy.*"
why = "it is not MLX"
instead = "mlx.core"
"""

DAY_1 = """
id = "1.1"
title = "Sums"
summary = "You add."
modules = ["week1/sums.py"]
[[facts]]
id = "double-dtype"
text = "`double` keeps its input's dtype."
symbols = ["double"]
[[tasks]]
id = 1
title = "double"
goal = "Twice the input."
checks = 3
symbols = ["double"]
hints = ["What is one and one?", "2 is 1 + 1.", "Look at +."]
[[tasks.misconceptions]]
id = "squares"
find = "x + x"
replace = "x * x"
says = "This is what you get when you square."
[[tasks]]
id = 2
title = "row sums"
goal = "The sum of each row."
checks = 2
symbols = ["row_sums"]
hints = ["Which axis?", "Rows lie along axis 1.", "mx.sum has an axis argument."]
"""

DAY_2 = """
id = "1.2"
title = "Means"
summary = "You divide."
modules = ["week1/means.py"]
builds_on = ["1.1"]
[[tasks]]
id = 1
title = "row means"
goal = "The mean of each row."
checks = 1
symbols = ["Mean"]
hints = ["How many?", "Sum over count.", "x.shape[1]"]
"""

TESTS_1 = '''
import mlx.core as mx
from tinyllm.grader.testing import check, every_dtype, sample, task

@task(1)
@every_dtype
def test_double(solution, dtype):
    """every element is doubled"""
    x, x64 = sample((3, 5), dtype, seed=1)
    what = "double(x), x (3, 5)"
    check.close(solution.double(x), 2 * x64, dtype=dtype, terms=2, what=what, fact="double-dtype")

@task(2)
def test_row_sums(solution):
    """each row is summed"""
    x, x64 = sample((3, 5), mx.float32, seed=2)
    check.close(solution.row_sums(x), x64.sum(1), dtype=mx.float32, terms=5, what="row_sums(x), x (3, 5)")

@task(2)
def test_one_row(solution):
    """a single row works"""
    x, x64 = sample((1, 5), mx.float32, seed=3)
    check.close(solution.row_sums(x), x64.sum(1), dtype=mx.float32, terms=5, what="row_sums(x), x (1, 5)")
'''

TESTS_2 = '''
import mlx.core as mx
from tinyllm.grader.testing import check, sample, task

@task(1)
def test_mean(solution):
    """each row is averaged"""
    x, x64 = sample((3, 5), mx.float32, seed=2)
    check.close(solution.Mean(5)(x), x64.mean(1), dtype=mx.float32, terms=5, what="Mean(5)(x), x (3, 5)")
'''

SUMS = '''"""Sums."""

import mlx.core as mx


def double(x: mx.array) -> mx.array:
    """Twice x. `double` keeps its input's dtype."""
    return x + x


def row_sums(x: mx.array) -> mx.array:
    """The sum of each row of x (L, D)."""
    return mx.sum(x, axis=1)
'''

SUMS_STUB = '''"""Sums."""

import mlx.core as mx


def double(x: mx.array) -> mx.array:
    """Twice x. `double` keeps its input's dtype."""
    raise NotImplementedError("day 1.1, task 1: double")


def row_sums(x: mx.array) -> mx.array:
    """The sum of each row of x (L, D)."""
    raise NotImplementedError("day 1.1, task 2: row_sums")
'''

MEANS = '''"""Means."""

import mlx.core as mx

from .sums import row_sums


class Mean:
    """Row means of D columns."""

    def __init__(self, D: int) -> None:
        """D: columns."""
        self.D = D

    def __call__(self, x: mx.array) -> mx.array:
        """The mean of each row of x (L, D)."""
        return row_sums(x) / self.D
'''

MEANS_STUB = '''"""Means."""

import mlx.core as mx

from .sums import row_sums


class Mean:
    """Row means of D columns."""

    def __init__(self, D: int) -> None:
        """D: columns."""
        raise NotImplementedError("day 1.2, task 1: Mean.__init__")

    def __call__(self, x: mx.array) -> mx.array:
        """The mean of each row of x (L, D)."""
        raise NotImplementedError("day 1.2, task 1: Mean.__call__")
'''

# A day's check questions of every kind; the wrong line is put where MODULE, SHOWN and RIGHT stand.
QUESTIONS = """
[[questions]]
id = "sum"
kind = "number"
ask = "What is {a} + {b}?"
vars = { a = [2, 3, 5], b = [10, 20] }
answer = "a + b"
wrong = [{ answer = "a * b", says = "That is {a} times {b}." }, { answer = "b - a", says = "That is less." }]
worked = "{a} + {b} = {a + b}"
why = "Count."

[[questions]]
id = "bytes"
kind = "number"
ask = "How many bytes are {n} float32 numbers?"
vars = { n = [256, 1024, 4096] }
answer = "4 * n"
unit = "bytes"
wrong = [{ answer = "n", says = "That is how many." }, { answer = "2 * n", says = "That is float16." }]
worked = "{n} * 4 bytes = {4 * n:,}"
why = "Each takes four."

[[questions]]
id = "rows"
kind = "shape"
ask = "x has the shape ({L}, {D}). Which shape have its row sums?"
vars = { L = [3, 7, 64], D = [5, 11] }
answer = "(L,)"
wrong = [
    { answer = "(D,)", says = "Those are the columns." },
    { answer = "(L, 1)", says = "That is with keepdims." },
]
worked = "one number a row: {(L,)}"
why = "The summed axis goes."

[[questions]]
id = "twice"
kind = "choice"
ask = "What is twice two?"
answer = "four"
wrong = [{ answer = "two", says = "That is once." }, { answer = "twenty-two", says = "That is two twos." }]
why = "Two and two."

[[questions]]
id = "line"
kind = "line"
ask = "Which line is wrong?"
module = "MODULE"
code = "SHOWN"
right = "RIGHT"
answer = "1"
why = "Look closely."
"""

ASKED = (
    "What is a + b? How many bytes are 1024 float32 numbers? x has the shape (L, D). Which shape have its "
    "row sums? What is twice two? `tinyllm-grade quiz day1.1` asks."
)


def questions(module: str, shown: str, right: str) -> str:
    """A questions.toml for a reference module in which the line `right` stands."""
    return QUESTIONS.replace("MODULE", module).replace("SHOWN", shown).replace("RIGHT", right)


LESSON = "# Sums\n\n`double` keeps its input's dtype.\n"


@dataclass(frozen=True)
class Toy:
    """A toy course on disk. `write` changes the learner's files; `grade` runs the program on it."""

    clone: Clone

    @property
    def root(self) -> Path:
        return self.clone.root

    @property
    def course(self) -> catalog.Course:
        return catalog.load(self.clone)

    def write(self, path: str, text: str) -> Path:
        """Write a file below the clone's root."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def sums(
        self, *, double: str = "return x + x", row_sums: str = "return mx.sum(x, axis=1)", top: str = ""
    ) -> None:
        """Write the learner's sums.py with these bodies (indented by hand where they have several lines)."""
        text = SUMS.replace("return x + x", double).replace("return mx.sum(x, axis=1)", row_sums)
        self.write(
            "exercises/week1/sums.py",
            text.replace("import mlx.core as mx\n", f"import mlx.core as mx\n{top}\n", 1),
        )

    def grade(
        self, *arguments: str, timeout: float = 60, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `tinyllm-grade` on this course in a process of its own."""
        return subprocess.run(
            [*PROGRAM, *arguments],
            cwd=self.root,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )

    def environment(self, **more: str) -> dict[str, str]:
        quiet = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR")}
        return {**quiet, "TINYLLM_ROOT": str(self.root), "PYTHONIOENCODING": "utf-8", **more}


PROGRAM = (sys.executable, "-P", "-c", "from tinyllm.grader.cli import main; main()")


def make(root: Path, *, git: bool = False) -> Toy:
    """Build the toy course in `root`; with `git`, as a repository with one commit."""
    toy = Toy(Clone(root))
    files = {
        "checkpoints/course.toml": COURSE,
        "checkpoints/day1_1/checkpoint.toml": DAY_1,
        "checkpoints/day1_1/test_sums.py": TESTS_1,
        "checkpoints/day1_1/lesson.md": LESSON,
        "checkpoints/day1_2/checkpoint.toml": DAY_2,
        "checkpoints/day1_2/test_means.py": TESTS_2,
        "checkpoints/day1_2/lesson.md": "# Means\n",
        "progress/.gitkeep": "",
    }
    for tree, sums, means in (("reference", SUMS, MEANS), ("exercises", SUMS_STUB, MEANS_STUB)):
        files |= {
            f"{tree}/__init__.py": f'"""{tree}"""\n',
            f"{tree}/week1/__init__.py": '"""Week 1."""\n',
            f"{tree}/week1/sums.py": sums,
            f"{tree}/week1/means.py": means,
        }
    for path, text in files.items():
        toy.write(path, text)
    if git:
        for command in (
            ["init", "-q", "-b", "main"],
            ["add", "-A"],
            ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "start"],
        ):
            subprocess.run(["git", *command], cwd=root, check=True, capture_output=True)
    return toy
