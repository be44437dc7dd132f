"""What can be told about a day by reading it: its spec, its lesson and its tests belong together.

Whether the tests see mistakes is verify.py's question. Problems are sentences that begin with the file.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..catalog import QUESTIONS, Day, Misconception, questions
from ..clone import Clone
from ..errors import SpecError
from . import question_checks
from .mutants import misconceived

MISCONCEPTIONS = 4  # at least, a task
HINTS = 3
CODE_COLUMNS = 80
LESSON_SECONDS = 120
QUESTIONS_HEADING = "Questions of the day"


def problems(clone: Clone, days: Sequence[Day]) -> list[str]:
    """Everything that is wrong with the days' files, one sentence each."""
    found: list[str] = []
    for day in days:
        spec = clone.relative(day.folder / "checkpoint.toml")
        found += [f"{spec}: {problem}" for problem in _spec_problems(clone, day)]
        asked = questions(clone, day)
        shown = clone.relative(day.folder / QUESTIONS)
        found += [f"{shown}: {problem}" for problem in question_checks.problems(clone, asked)]
        lesson = _Lesson.read(day.lesson)
        shown = clone.relative(day.lesson)
        if lesson is None:
            found.append(f"{shown} is missing.")
        else:
            found += [f"{shown}: {problem}" for problem in _lesson_problems(day, lesson)]
            section = _normalised(lesson.sections.get(QUESTIONS_HEADING, ""))
            found += [f"{shown}: {p}" for p in question_checks.lesson_problems(day, asked, section)]
            found += [f"{shown}:{problem}" for problem in _code_problems(lesson)]
        found += _test_problems(clone, day)
        found += [f"{spec}: {problem}" for problem in _fact_problems(clone, day)]
    return found


# ---- checkpoint.toml beside the reference ----


def _spec_problems(clone: Clone, day: Day) -> Iterator[str]:
    for name in sorted({f.id for f in day.facts if [g.id for g in day.facts].count(f.id) > 1}):
        yield f"two facts are called '{name}'"
    for task in day.tasks:
        if task.checks < 1:
            yield f"task {task.id}: checks must be the number of its tests"
        if len(task.hints) < HINTS:
            yield f"task {task.id}: {_count(len(task.hints), 'hint')}, and a task has at least {HINTS}"
        if len(task.misconceptions) < MISCONCEPTIONS:
            yield (
                f"task {task.id}: {_count(len(task.misconceptions), 'misconception')}, "
                f"and a task has at least {MISCONCEPTIONS}"
            )
        for mistake in task.misconceptions:
            problem = _edit_problem(clone, mistake)
            if problem:
                yield f"task {task.id}: {problem}"


def _edit_problem(clone: Clone, mistake: Misconception) -> str:
    path = clone.reference / mistake.module
    try:
        source = path.read_text(encoding="utf-8")
        edited = misconceived(source, mistake)
    except FileNotFoundError:
        return f"misconception '{mistake.id}': reference/{mistake.module} does not exist"
    except SpecError as error:
        return error.message
    if not mistake.module.endswith(".py"):
        return "" if edited != source else f"misconception '{mistake.id}' changes nothing"
    try:
        same = ast.dump(ast.parse(edited)) == ast.dump(ast.parse(source))
    except SyntaxError as error:
        return f"misconception '{mistake.id}': the edited module does not parse: {error.msg}"
    return f"misconception '{mistake.id}' changes no code" if same else ""


# ---- lesson.md ----


@dataclass(frozen=True)
class _Block:
    language: str
    line: int  # of its first code line, 1-based
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Lesson:
    path: Path
    text: str
    headings: tuple[str, ...]
    sections: dict[str, str]  # heading -> what stands below it, deeper headings included
    blocks: tuple[_Block, ...]

    @classmethod
    def read(cls, path: Path) -> _Lesson | None:
        if not path.is_file():
            return None
        text = path.read_text(encoding="utf-8")
        headings: list[tuple[int, str, int]] = []  # depth, text, line index
        blocks: list[_Block] = []
        fence, language, start = "", "", 0
        lines = text.split("\n")
        for index, line in enumerate(lines):
            mark = re.match(r"\s*(`{3,}|~{3,})\s*(\S*)", line)
            if fence:
                if mark and mark[1].startswith(fence) and not mark[2]:
                    blocks.append(_Block(language, start + 1, tuple(lines[start:index])))
                    fence = ""
            elif mark:
                fence, language, start = mark[1], mark[2], index + 1
            elif heading := re.match(r"(#+)\s+(.*?)\s*#*\s*$", line):
                headings.append((len(heading[1]), heading[2], index))
        sections = {}
        for depth, title, index in headings:
            ends = (i for d, _, i in headings if i > index and d <= depth)
            sections[title] = "\n".join(lines[index + 1 : next(ends, len(lines))])
        return cls(path, text, tuple(title for _, title, _ in headings), sections, tuple(blocks))


def _lesson_problems(day: Day, lesson: _Lesson) -> Iterator[str]:
    if QUESTIONS_HEADING not in lesson.headings:
        yield f"has no section '{QUESTIONS_HEADING}'"
    for task in day.tasks:
        for mistake in task.misconceptions:
            if mistake.lesson not in lesson.headings:
                yield f"misconception '{mistake.id}' points to a heading '{mistake.lesson}' that is not there"
    text = _normalised(lesson.text)
    for fact in day.facts:
        if fact.text not in text:
            yield f"fact '{fact.id}' is not stated word for word: {fact.text}"


def _code_problems(lesson: _Lesson) -> Iterator[str]:
    """Problems of the code blocks, each beginning with its line."""
    for block in lesson.blocks:
        for number, line in enumerate(block.lines, start=block.line):
            if len(line) > CODE_COLUMNS:
                yield f"{number}: this line of code has {len(line)} columns; {CODE_COLUMNS} fit on a page"
    python = [b for b in lesson.blocks if b.language == "python"]
    if python:
        yield from _run_blocks(python)


# Runs a lesson's blocks one after another in one namespace, and says which line failed and how.
_RUN = """
import json, sys, traceback
names = {"__name__": "lesson"}
for line, code in json.load(sys.stdin):
    try:
        exec(compile("\\n" * (line - 1) + code, "lesson.md", "exec"), names)
    except BaseException as error:
        at = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
        for frame in traceback.extract_tb(error.__traceback__):
            at = frame.lineno if frame.filename == "lesson.md" else at
        said = f": {error}" if str(error) else ""
        print(f"{at or line}: this code raises {type(error).__name__}{said}", file=sys.stderr)
        sys.exit(1)
"""


def _run_blocks(blocks: list[_Block]) -> Iterator[str]:
    first = blocks[0].line
    job = json.dumps([[b.line, "\n".join(b.lines)] for b in blocks])
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", _RUN],
                input=job,
                capture_output=True,
                text=True,
                timeout=LESSON_SECONDS,
                cwd=folder,
            )
        except subprocess.TimeoutExpired:
            yield f"{first}: the lesson's code does not end within {LESSON_SECONDS} s"
            return
    if done.returncode:
        yield (done.stderr.strip().splitlines() or [f"{first}: the lesson's code ends the program"])[-1]


# ---- tests and facts ----


def _test_problems(clone: Clone, day: Day) -> Iterator[str]:
    numbers = {task.id for task in day.tasks}
    covered: set[int] = set()
    for path in day.tests:
        shown = clone.relative(path)
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError as error:
            yield f"{shown}:{error.lineno}: does not parse: {error.msg}"
            continue
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test"):
                continue
            at = f"{shown}:{node.lineno}: {node.name}"
            number = _task_mark(node)
            if number not in numbers:
                yield f"{at} needs @task(N) with N a task of {day.name}"
            else:
                covered.add(number)
            if not ast.get_docstring(node):
                yield f"{at} needs a docstring: its first line is what the learner sees"
            if "solution" not in [a.arg for a in node.args.args]:
                yield f"{at} must take the code under test from `solution`"
            for mark in ("skip", "skipif", "xfail"):
                if any(f"mark.{mark}" in ast.unparse(d) for d in node.decorator_list):
                    yield f"{at} is marked {mark}: use not_run_here(reason), which never counts as a pass"
    for number in sorted(numbers - covered):
        yield f"{clone.relative(day.folder)}: no test belongs to task {number}"


def _task_mark(test: ast.FunctionDef) -> int | None:
    for decorator in test.decorator_list:
        match decorator:
            case ast.Call(func=ast.Name(id="task"), args=[ast.Constant(value=int(number))]):
                return number
    return None


def _fact_problems(clone: Clone, day: Day) -> Iterator[str]:
    cited = _cited_facts(day)
    known = {fact.id for fact in day.facts}
    for name in sorted(cited - known):
        yield f"a test cites fact '{name}', which is not among the facts"
    docstrings = _docstrings(clone, day)
    for fact in day.facts:
        if fact.id not in cited:
            yield f"""fact '{fact.id}' is cited by no check: say fact="{fact.id}" where it is graded"""
        for symbol in fact.symbols:
            name = symbol.rpartition("::")[2]
            if name not in docstrings:
                yield f"fact '{fact.id}': the day's modules have no {symbol}"
            elif fact.text not in docstrings[name]:
                yield f"fact '{fact.id}' does not stand in the docstring of {symbol}: {fact.text}"


def _cited_facts(day: Day) -> set[str]:
    cited = set()
    for path in day.tests:
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:
            continue  # told by _test_problems
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "fact" and isinstance(node.value, ast.Constant):
                cited.add(node.value.value)
    return cited - {""}


def _docstrings(clone: Clone, day: Day) -> dict[str, str]:
    """Whitespace-normalised docstring of every function, class and method in the day's Python modules.

    A class's is followed by those of its methods: a convention stands where it is needed.
    """
    found: dict[str, str] = {}

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            found[prefix + node.name] = _normalised(ast.get_docstring(node) or "")
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{prefix}{node.name}.")
                methods = [text for name, text in found.items() if name.startswith(f"{prefix}{node.name}.")]
                found[prefix + node.name] = "\n".join([found[prefix + node.name], *methods])

    for module in day.modules:
        path = clone.reference / module
        if module.endswith(".py") and path.is_file():
            try:
                collect(ast.parse(path.read_bytes()).body, "")
            except SyntaxError:
                continue  # told by the stubs
    return found


def _normalised(text: str) -> str:
    """Words with one space between; the `>` of Markdown's quotations is no word."""
    return " ".join(re.sub(r"(?m)^\s*>\s?", "", text).split())


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
