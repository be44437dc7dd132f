"""What must hold of a day's check questions: every formula for every draw, every wrong answer explained.

Problems are sentences that begin with the question's id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

from .. import arithmetic
from ..arithmetic import FormulaError
from ..catalog import Day
from ..clone import Clone
from ..questions import LETTERS, MOST_DRAWS, Question, asked, same_number

QUESTIONS = 5  # at least, a day
KINDS = 3  # different ones, at least
COMPUTED = 2  # questions with a number or a shape, at least
DRAWS = 3  # at least, of a number or a shape
WRONG = 2  # wrong answers with a sentence, at least
COLUMNS = 75  # of a line of code
LESSON_DRAWS = 500  # draws whose wording is looked for in the lesson


def problems(clone: Clone, questions: Sequence[Question]) -> Iterator[str]:
    if len(questions) < QUESTIONS:
        yield f"{len(questions)} questions, and a day has at least {QUESTIONS}"
    kinds = Counter(q.kind for q in questions)
    if len(kinds) < KINDS:
        yield f"only {', '.join(sorted(kinds)) or 'none'}: a day has at least {KINDS} kinds of questions"
    if kinds["number"] + kinds["shape"] < COMPUTED:
        yield f"fewer than {COMPUTED} with a number or a shape"
    for question in questions:
        found = _line_problems(clone, question) if question.kind == "line" else _problems(question)
        yield from (f"{question.id}: {problem}" for problem in found)


def lesson_problems(day: Day, questions: Sequence[Question], section: str) -> Iterator[str]:
    """Whether the lesson's section (one space between words) asks what the quiz asks.

    A question stands there with its letters, or as one of its draws; code is left to the quiz.
    """
    for question in questions:
        if question.kind != "line" and not any(w in section for w in _wordings(question)):
            yield f"the question '{question.id}' is not in the section of questions: {question.ask}"
    if f"tinyllm-grade quiz {day.name}" not in section:
        yield f"the section of questions does not name `tinyllm-grade quiz {day.name}`"


def _wordings(question: Question) -> Iterator[str]:
    yield arithmetic.letters(question.ask)
    try:
        for number, names in enumerate(question.draws()):
            if number >= LESSON_DRAWS:
                return
            yield arithmetic.fill(question.ask, names)
    except FormulaError:
        return  # told by `problems`


# ---- choice, number, shape


def _problems(question: Question) -> Iterator[str]:
    if len(question.wrong) < WRONG:
        yield f"{len(question.wrong)} wrong answers with a sentence, and there are at least {WRONG}"
    if question.kind == "choice" and len(question.wrong) >= len(LETTERS):
        yield f"more than {len(LETTERS)} choices"
    clash = question.variables.keys() & (question.cases[0].keys() if question.cases else set())
    if clash:
        yield f"'{min(clash)}' is among vars and cases"
    try:
        draws = list(question.draws())
    except FormulaError as error:
        yield f"where: {error}"
        return
    if len(draws) > MOST_DRAWS:
        yield f"{len(draws)} ways to draw it, and all are tried: at most {MOST_DRAWS}"
        return
    if question.kind != "choice" and len(draws) < DRAWS:
        yield f"{len(draws)} ways to draw it, and fresh numbers take at least {DRAWS}"
    yield from _unused(question)
    said: set[str] = set()
    for names in draws:
        # The first draw that shows a problem is enough.
        for problem in _draw_problems(question, names):
            kind = problem.partition(":")[0]
            if kind not in said:
                said.add(kind)
                at = ", ".join(f"{k} = {v}" for k, v in names.items())
                yield f"{problem} ({at})" if at else problem


def _unused(question: Question) -> Iterator[str]:
    texts = [question.ask, question.why, question.worked, *(w.says for w in question.wrong)]
    formulas = [question.where] if question.where else []
    if question.kind == "choice":
        texts += [question.answer, *(w.answer for w in question.wrong)]
    else:
        formulas += [question.answer, *(w.answer for w in question.wrong)]
    formulas += [f for text in texts for f in arithmetic.formulas(text)]
    try:
        used = {name for f in formulas for name in arithmetic.names_in(f)}
    except FormulaError as error:
        yield str(error)
        return
    names = [*question.variables, *(question.cases[0] if question.cases else ())]
    yield from (f"'{name}' is drawn and never used" for name in names if name not in used)


def _draw_problems(question: Question, names: dict) -> Iterator[str]:
    try:
        drawn = asked(question, names)
        for wrong in question.wrong:
            arithmetic.fill(wrong.says, names)
        if question.kind == "choice":
            values = list(drawn.choices)
        else:
            values = [arithmetic.evaluate(f, names) for f in (question.answer, *_formulas(question))]
    except FormulaError as error:
        yield f"a formula has no value: {error}"
        return
    match question.kind:
        case "choice":
            for text, count in Counter(" ".join(v.lower().split()) for v in values).items():
                if count > 1:
                    yield f"two choices are the same: {text}"
        case "shape":
            yield from _shape_problems(question, values, drawn.worked)
        case "number":
            yield from _number_problems(question, values, drawn.worked)


def _formulas(question: Question) -> list[str]:
    return [w.answer for w in question.wrong]


def _shape_problems(question: Question, values: list, worked: str) -> Iterator[str]:
    for value in values:
        whole = isinstance(value, tuple) and all(isinstance(n, int) and n >= 0 for n in value)
        if not whole:
            yield f"no shape: {value!r}"
            return
    for a, b in combinations(values, 2):
        if a == b:
            yield f"two answers are the same: {a}"
    if arithmetic.show(values[0]) not in worked:
        yield f"worked: the answer {arithmetic.show(values[0])} is not in it: {worked}"


def _number_problems(question: Question, values: list, worked: str) -> Iterator[str]:
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        yield f"no number: {values}"
        return
    right, *wrong = values
    if question.tolerance == 0 and not float(right).is_integer():
        yield f"tolerance: {right} is no whole number, so it needs one"
    if not 0 <= question.tolerance <= 0.05:
        yield f"tolerance: {question.tolerance} is not between 0 and 0.05"
    for value in wrong:
        if same_number(value, right, 2 * question.tolerance) or same_number(
            right, value, 2 * question.tolerance
        ):
            yield f"a wrong answer is right: {value}"
    for a, b in combinations(wrong, 2):
        if same_number(a, b, question.tolerance):
            yield f"two wrong answers are the same: {a}"
    shown = [float(n.replace(",", "")) for n in re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", worked)]
    if not any(same_number(n, right, max(question.tolerance, 1e-9)) for n in shown):
        yield f"worked: the answer {arithmetic.show(right)} is not in it: {worked}"


# ---- line


def _line_problems(clone: Clone, question: Question) -> Iterator[str]:
    """The code with the right line put back stands in the reference; every other line has its sentence."""
    count = len(question.code)
    if not question.answer.isdigit() or not 1 <= int(question.answer) <= count:
        yield f"answer: must be the number of a line, from 1 to {count}"
        return
    at = int(question.answer) - 1
    path = clone.reference / question.module
    if not path.is_file():
        yield f"module: reference/{question.module} does not exist"
        return
    source = path.read_text(encoding="utf-8").split("\n")
    shown = question.code[at]
    indent = shown[: len(shown) - len(shown.lstrip())]
    mended = [*question.code[:at], indent + question.right, *question.code[at + 1 :]]
    if question.right.split() == shown.split():
        yield "right: it is the line that is shown"
    if not _stands_in(mended, source):
        yield f"code: with line {question.answer} mended it does not stand in reference/{question.module}"
    if _stands_in(question.code, source):
        yield f"code: as it is shown it stands in reference/{question.module}"
    for line in question.code:
        if len(line) > COLUMNS:
            yield f"code: a line has {len(line)} columns, and {COLUMNS} fit beside its number"
    explained = Counter(w.answer for w in question.wrong)
    for number, line in enumerate(question.code, 1):
        wanted = number != at + 1 and _computes(line)
        if wanted and not explained[str(number)]:
            yield f"wrong: line {number} has no sentence: {line.strip()}"
    for number, times in explained.items():
        if times > 1 or number == question.answer or not number.isdigit() or not 1 <= int(number) <= count:
            yield f"wrong: '{number}' is not the number of one right line, given once"


def _computes(line: str) -> bool:
    """Whether a line says something that could be wrong: no blank, comment, dots, or lone bracket."""
    bare = line.strip()
    return bool(re.sub(r"[\s\[\](){},;.]", "", bare)) and not bare.startswith(("#", "//"))


def _stands_in(code: Sequence[str], source: Sequence[str]) -> bool:
    """Whether the lines follow one another in the source; `...` stands for any number of lines.

    Indentation counts only relative to the first line; blank lines and comments do not count.
    """
    wanted, there = _bare(code), _bare(source)

    def fits(w: int, s: int, shift: int) -> bool:
        while w < len(wanted):
            depth, text = wanted[w]
            if text == "...":
                return any(fits(w + 1, later, shift) for later in range(s, len(there) + 1))
            if s >= len(there) or there[s] != (depth + shift, text):
                return False
            w, s = w + 1, s + 1
        return True

    return any(fits(0, s, there[s][0] - wanted[0][0]) for s in range(len(there)))


def _bare(lines: Sequence[str]) -> list[tuple[int, str]]:
    """Indentation and text of each line that holds code, without comments at its end."""
    found = []
    for line in lines:
        text = re.sub(r"\s+(#|//) .*$", "", line).strip()
        if text and not text.startswith(("# ", "// ")):
            found.append((len(line) - len(line.lstrip()), text))
    return found
