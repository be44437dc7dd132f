"""A day's spec, lesson, tests and reference belong together; each way in which they do not is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tinyllm.grader import catalog
from tinyllm.grader.authoring import spec_checks
from tinyllm.grader.authoring.cli import main
from tinyllm.grader.clone import Clone
from tinyllm.grader.errors import SpecError
from tinyllm.grader.tests import toy

SPEC = "checkpoints/day1_1/checkpoint.toml"
LESSON = "checkpoints/day1_1/lesson.md"
TESTS = "checkpoints/day1_1/test_it.py"
QUESTIONS = "checkpoints/day1_1/questions.toml"

FACT = "add(a, b) is the sum of its two arguments."

FILES = {
    "reference/week1/toy.py": f'''\
def add(a, b):
    """Adds.

    {FACT}
    """
    total = a + b
    return total


class Twice:
    """Doubles."""

    def __call__(self, x):
        """Twice(x) calls add
        once."""
        return add(x, x)
''',
    SPEC: """\
id = "1.1"
title = "Toy"
summary = "Adding."
modules = ["week1/toy.py"]
builds_on = []

[[facts]]
id = "sum"
text = "add(a, b) is the sum
   of its two arguments."
symbols = ["add"]

[[facts]]
id = "once"
text = "Twice(x) calls add once."
symbols = ["Twice"]

[[tasks]]
id = 1
title = "Add"
goal = "Add."
checks = 1
symbols = ["add", "Twice"]
hints = ["a?", "b", "c"]
""".replace("sum\n   of", "sum of")
    + "".join(
        f"""
[[tasks.misconceptions]]
id = "m{n}"
find = "a + b"
replace = "a - {n} * b"
says = "This is what you get when you subtract."
lesson = "Pitfalls"
"""
        for n in range(1, 5)
    ),
    QUESTIONS: toy.questions("week1/toy.py", "total = a - b", "total = a + b"),
    LESSON: """\
# Toy

> add(a, b) is the sum
> of its two arguments. Twice(x) calls add once.

```python
import mlx.core as mx

total = mx.array(1) + 2
```

## Pitfalls ##

```python
assert total.item() == 3  # a name of the block before
```

~~~text
# Not a heading
``` and no fence
~~~

## Questions of the day

`tinyllm-grade quiz day1.1` asks them.

1. What is a + b?
2. How many bytes are 1024 float32
   numbers?

### The last two

x has the shape (7, 5). Which shape have its row sums? What is twice two?
""",
    TESTS: '''\
from tinyllm.grader.testing import check, task


def helper():
    pass


@task(1)
def test_sum(solution):
    """the sum"""
    check.exact(solution.add(1, 2), 3, what="add(1, 2)", fact="sum")
    check.exact(solution.Twice()(1), 2, what="Twice()(1)", fact="once")
    check.exact(solution.Twice()(2), 4, what="Twice()(2)", fact="")
''',
}


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    clone = Clone(tmp_path)
    _put(clone, "checkpoints/course.toml", 'title = "Toy"\n[weeks]\n1 = "One"\n')
    for relative, text in FILES.items():
        _put(clone, relative, text)
    return clone


def _put(clone: Clone, relative: str, text: str) -> None:
    path = clone.root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _change(clone: Clone, relative: str, old: str, new: str) -> None:
    """Replace the first `old` in a file that has it."""
    text = (clone.root / relative).read_text()
    assert old in text
    _put(clone, relative, text.replace(old, new, 1))


def _problems(clone: Clone) -> list[str]:
    return spec_checks.problems(clone, catalog.load(clone).days)


def test_a_day_that_fits_together_has_no_problems(clone: Clone) -> None:
    assert _problems(clone) == []


WRONG = [
    (
        QUESTIONS,
        'ask = "What is twice two?"\n',
        'ask = "What is 9?"\n',
        f"{LESSON}: the question 'twice' is not in the section of questions: What is 9?",
    ),
    (LESSON, "(7, 5)", "(7, 6)", f"{LESSON}: the question 'rows' is not in the section of questions"),
    (LESSON, "quiz day1.1", "quiz day1.2", f"{LESSON}: the section of questions does not name"),
    (QUESTIONS, 'answer = "4 * n"', 'answer = "4 * m"', f"{QUESTIONS}: bytes: a formula has no value: 'm'"),
    (QUESTIONS, 'answer = "2 * n"', 'answer = "8 * n // 2"', f"{QUESTIONS}: bytes: a wrong answer is right"),
    (QUESTIONS, 'answer = "2 * n"', 'answer = "n"', f"{QUESTIONS}: bytes: two wrong answers are the same"),
    (QUESTIONS, "bytes = {4 * n:,}", "bytes = {3 * n:,}", f"{QUESTIONS}: bytes: worked: the answer"),
    (QUESTIONS, 'answer = "4 * n"', 'answer = "4.3 * n"', f"{QUESTIONS}: bytes: tolerance: "),
    (QUESTIONS, "n = [256, 1024, 4096]", "n = [256]", f"{QUESTIONS}: bytes: 1 ways to draw it"),
    (QUESTIONS, "D = [5, 11]", "D = [5, 11], N = [1, 2]", f"{QUESTIONS}: rows: 'N' is drawn and never used"),
    (QUESTIONS, 'answer = "(L, 1)"', 'answer = "(L, 0.5)"', f"{QUESTIONS}: rows: no shape"),
    (QUESTIONS, 'answer = "two"', 'answer = "Four"', f"{QUESTIONS}: twice: two choices are the same"),
    (QUESTIONS, "total = a - b", "total = a + b", f"{QUESTIONS}: line: right: it is the line that is shown"),
    (
        QUESTIONS,
        'right = "total = a + b"',
        'right = "total = b + a"',
        f"{QUESTIONS}: line: code: with line 1 mended it does not stand in reference/week1/toy.py",
    ),
    (
        QUESTIONS,
        'code = "total = a - b"',
        'code = "total = a - b\\nreturn total"',
        f"{QUESTIONS}: line: wrong: line 2 has no sentence: return total",
    ),
    (SPEC, "checks = 1", "checks = 0", f"{SPEC}: task 1: checks must be the number of its tests"),
    (SPEC, '"a?", ', "", f"{SPEC}: task 1: 2 hints, and a task has at least 3"),
    (
        SPEC,
        'find = "a + b"',
        'find = "a / b"',
        f"{SPEC}: task 1: misconception 'm1': its find text does not occur",
    ),
    (
        SPEC,
        'find = "a + b"',
        'find = "total"',
        f"{SPEC}: task 1: misconception 'm1': its find text occurs 2 times in reference/week1/toy.py",
    ),
    (
        SPEC,
        'replace = "a - 1 * b"',
        'replace = "(a  + b)"',
        f"{SPEC}: task 1: misconception 'm1' changes no code",
    ),
    (
        SPEC,
        'replace = "a - 1 * b"',
        'replace = "a -"',
        f"{SPEC}: task 1: misconception 'm1': the edited module does not parse: invalid syntax",
    ),
    (
        SPEC,
        'id = "m1"\n',
        'id = "m1"\nmodule = "week1/no.py"\n',
        f"{SPEC}: task 1: misconception 'm1': reference/week1/no.py does not exist",
    ),
    (
        SPEC,
        'lesson = "Pitfalls"',
        'lesson = "Not a heading"',
        f"{LESSON}: misconception 'm1' points to a heading 'Not a heading' that is not there",
    ),
    (SPEC, 'id = "once"', 'id = "sum"', f"{SPEC}: two facts are called 'sum'"),
    (
        SPEC,
        'symbols = ["add"]\n',
        'symbols = ["sub"]\n',
        f"{SPEC}: fact 'sum': the day's modules have no sub",
    ),
    (
        "reference/week1/toy.py",
        FACT,
        "Its sum.",
        f"{SPEC}: fact 'sum' does not stand in the docstring of add: {FACT}",
    ),
    (LESSON, "is the sum", "is a sum", f"{LESSON}: fact 'sum' is not stated word for word: {FACT}"),
    (TESTS, 'fact="sum"', 'fact="som"', f"{SPEC}: a test cites fact 'som', which is not among the facts"),
    (
        TESTS,
        ', fact="sum"',
        "",
        f"""{SPEC}: fact 'sum' is cited by no check: say fact="sum" where it is graded""",
    ),
    (
        LESSON,
        "## Questions of the day",
        "## Questions",
        f"{LESSON}: has no section 'Questions of the day'",
    ),
    (
        LESSON,
        "total = mx.array(1) + 2",
        "total = mx.array(1) + 2 " + "#" * 60,
        f"{LESSON}:9: this line of code has 84 columns; 80 fit on a page",
    ),
    (LESSON, "== 3 ", "== 4 ", f"{LESSON}:15: this code raises AssertionError"),
    (LESSON, "assert total", "assert total of", f"{LESSON}:15: this code raises SyntaxError: invalid syntax"),
    (LESSON, "total = mx", "raise SystemExit; total = mx", f"{LESSON}:9: this code raises SystemExit"),
    (
        LESSON,
        "total = mx",
        "import os; os._exit(3)\ntotal = mx",
        f"{LESSON}:7: the lesson's code ends the program",
    ),
    (TESTS, "@task(1)\n", "", f"{TESTS}:8: test_sum needs @task(N) with N a task of day1.1"),
    (TESTS, "@task(1)\n", "@task(2)\n", f"{TESTS}:9: test_sum needs @task(N) with N a task of day1.1"),
    (TESTS, "@task(1)\n", "@task(2)\n", "checkpoints/day1_1: no test belongs to task 1"),
    (TESTS, '    """the sum"""\n', "", f"{TESTS}:9: test_sum needs a docstring"),
    (TESTS, "(solution)", "(tree)", f"{TESTS}:9: test_sum must take the code under test from `solution`"),
    (
        TESTS,
        "@task(1)\n",
        "@task(1)\n@pytest.mark.skipif(True, reason='')\n",
        f"{TESTS}:10: test_sum is marked skipif: use not_run_here(reason), which never counts as a pass",
    ),
    (TESTS, "def helper():", "def helper(:", f"{TESTS}:4: does not parse: "),
]


@pytest.mark.parametrize(("relative", "old", "new", "problem"), WRONG)
def test_each_problem_is_named(clone: Clone, relative: str, old: str, new: str, problem: str) -> None:
    _change(clone, relative, old, new)
    assert [line for line in _problems(clone) if line.startswith(problem)]


def test_a_day_has_five_questions_of_three_kinds(clone: Clone) -> None:
    text = (clone.root / QUESTIONS).read_text()
    _put(clone, QUESTIONS, text[: text.index('[[questions]]\nid = "twice"')])
    problems = _problems(clone)
    assert f"{QUESTIONS}: 3 questions, and a day has at least 5" in problems
    assert f"{QUESTIONS}: only number, shape: a day has at least 3 kinds of questions" in problems


def test_a_wrong_line_that_is_in_the_reference_is_no_question(clone: Clone) -> None:
    _change(clone, "reference/week1/toy.py", "    return total", "    total = a - b\n    return total")
    assert f"{QUESTIONS}: line: code: as it is shown it stands in reference/week1/toy.py" in _problems(clone)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "shape"', 'kind = "essay"', "questions[2].rows.kind: 'essay' is none of"),
        ('unit = "bytes"', 'units = "bytes"', "questions[1].bytes.units: is not a key this file can have"),
        ('id = "rows"', 'id = "sum"', "two are called 'sum'"),
        ("n = [256, 1024, 4096]", "n = 256", "vars.n: must be a list"),
        ('id = "bytes"\nkind = "number"', 'kind = "number"\nid = "bytes"', "must begin with its id"),
    ],
)
def test_a_file_of_questions_that_cannot_be_read_is_named(
    clone: Clone, old: str, new: str, message: str
) -> None:
    _change(clone, QUESTIONS, old, new)
    with pytest.raises(SpecError) as error:
        _problems(clone)
    assert error.value.message.startswith(QUESTIONS)
    assert message in error.value.message


def test_three_misconceptions_are_too_few(clone: Clone) -> None:
    text = FILES[SPEC]
    first, last = text.index("\n[[tasks.misconceptions]]"), text.index('[[tasks.misconceptions]]\nid = "m2"')
    _put(clone, SPEC, text[:first] + "\n" + text[last:])
    assert _problems(clone) == [f"{SPEC}: task 1: 3 misconceptions, and a task has at least 4"]


def test_a_day_without_its_lesson_or_reference_is_told_so(clone: Clone) -> None:
    (clone.root / LESSON).unlink()
    assert f"{LESSON} is missing." in _problems(clone)
    _put(clone, "reference/week1/toy.py", "def (:")
    assert f"{SPEC}: fact 'sum': the day's modules have no add" in _problems(clone)


def test_code_that_never_ends_is_stopped(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_checks, "LESSON_SECONDS", 1)
    _change(clone, LESSON, "total = mx.array(1) + 2", "while True: pass")
    assert _problems(clone) == [f"{LESSON}:7: the lesson's code does not end within 1 s"]


def test_an_edit_of_a_kernel_must_change_it(clone: Clone) -> None:
    _put(clone, "reference/kernels/k.cpp", "int f() { return 1; }\n")
    _change(clone, SPEC, 'modules = ["week1/toy.py"]', 'modules = ["week1/toy.py", "kernels/k.cpp"]')
    _change(clone, SPEC, 'symbols = ["add", "Twice"]', 'symbols = ["week1/toy.py::add"]')
    _change(
        clone,
        SPEC,
        'find = "a + b"\nreplace = "a - 1 * b"',
        'module = "kernels/k.cpp"\nfind = "1"\nreplace = "1"',
    )
    assert _problems(clone) == [f"{SPEC}: task 1: misconception 'm1' changes nothing"]


def test_the_command_names_the_days(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLLM_ROOT", str(clone.root))
    fine = CliRunner().invoke(main, ["specs"])
    assert (fine.exit_code, fine.output) == (0, "Spec, lesson and tests belong together: day1.1\n")
    (clone.root / LESSON).unlink()
    wrong = CliRunner().invoke(main, ["specs", "1.1"])
    assert wrong.exit_code == 1
    assert wrong.output == f"{LESSON} is missing.\n"
    assert CliRunner().invoke(main, ["specs", "1.7"]).exit_code == 2
