"""Check questions: their kinds, how one is drawn with fresh numbers, how an answer is read and judged.

    choice   one of several answers, shown in another order each time
    number   a number to compute; a sum may be typed in its place ("2 * 28 * 4 * 128 * 2")
    shape    the shape of an array
    line     code of the reference in which one line was made wrong: which?

Texts may hold `{formula}`s over the question's variables (see arithmetic.py). Every wrong choice, every line
that is right, and the common wrong results of a computation have a sentence of their own. Reading the spec is
catalog.questions; printing is quiz.py.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .arithmetic import FormulaError, Value, evaluate, fill, show

KINDS = ("choice", "number", "shape", "line")
MOST_DRAWS = 5000  # ways in which one question can be drawn, so that all of them can be tried
LETTERS = "abcdefgh"
LONGEST_ANSWER = 200


class Unreadable(ValueError):
    """What was typed is no answer to this kind of question; the message says what would be one."""


@dataclass(frozen=True)
class Wrong:
    """A wrong answer that people give, and what is said to them."""

    answer: str  # choice: the text. number, shape: a formula. line: the number of a line that is right.
    says: str


@dataclass(frozen=True)
class Question:
    id: str  # unique within its day; what the log calls it
    kind: str  # one of KINDS
    ask: str
    answer: str  # choice: the text. number, shape: a formula. line: the number of the wrong line.
    why: str
    wrong: tuple[Wrong, ...]
    worked: str = ""  # number, shape: the computation, with this time's numbers
    variables: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)  # each drawn by itself
    cases: tuple[Mapping[str, Value], ...] = ()  # values that belong together, drawn together
    where: str = ""  # a condition that a draw must meet
    unit: str = ""  # number: what is counted, shown behind the answer
    tolerance: float = 0.0  # number: relative; 0 is exact
    code: tuple[str, ...] = ()  # line: the lines shown
    right: str = ""  # line: what the wrong line should be
    module: str = ""  # line: where in reference/ the code stands

    def draws(self) -> Iterator[dict[str, Value]]:
        """Every way in which its variables can be drawn."""
        for case in self.cases or ({},):
            for values in itertools.product(*self.variables.values()):
                names = {**case, **dict(zip(self.variables, values, strict=True))}
                if not self.where or evaluate(self.where, names):
                    yield names


@dataclass(frozen=True)
class Grade:
    """What became of an answer."""

    right: bool
    says: str  # about this very answer; "" when nothing is known of it beyond being wrong
    given: str  # the answer as it was understood


@dataclass(frozen=True)
class Asked:
    """A question with its numbers drawn: what is shown and what is right this time."""

    question: Question
    names: Mapping[str, Value]
    ask: str
    choices: tuple[str, ...]  # in the order shown
    answer: str  # the right answer as it is shown
    worked: str
    why: str

    @property
    def kind(self) -> str:
        return self.question.kind

    def grade(self, text: str) -> Grade:
        """Judge what was typed. Raises Unreadable when it is no answer at all."""
        if len(text) > LONGEST_ANSWER:
            raise Unreadable(f"That is longer than {LONGEST_ANSWER} characters.")
        return {"choice": _grade_choice, "number": _grade_number, "shape": _grade_shape, "line": _grade_line}[
            self.kind
        ](self, text.strip())


def draw(question: Question, seed: str) -> Asked:
    """The question with the numbers and the order that belong to `seed`."""
    generator = random.Random(seed)
    possible = list(question.draws())
    return asked(question, generator.choice(possible), generator)


def asked(question: Question, names: Mapping[str, Value], generator: random.Random | None = None) -> Asked:
    """The question with these values of its variables. Raises FormulaError."""
    choices: list[str] = []
    if question.kind == "choice":
        choices = [fill(text, names) for text in (question.answer, *(w.answer for w in question.wrong))]
        answer = choices[0]
        (generator or random.Random(0)).shuffle(choices)
    elif question.kind == "line":
        answer = f"line {question.answer}: it should read `{question.right}`"
    else:
        value = evaluate(question.answer, names)
        answer = show(value) if question.kind == "shape" else _shown_number(question, value)
    return Asked(
        question=question,
        names=names,
        ask=fill(question.ask, names),
        choices=tuple(choices),
        answer=answer,
        worked=fill(question.worked, names),
        why=fill(question.why, names),
    )


def _shown_number(question: Question, value: Value) -> str:
    text = show(value)
    if isinstance(value, int | float) and 10_000 <= abs(value) < 1e15:
        text = f"{round(value):,}"
    unit = question.unit.removesuffix("s") if value == 1 and len(question.unit) > 2 else question.unit
    return f"{text} {unit}".rstrip()


# ---- choice and line


def _grade_choice(asked: Asked, text: str) -> Grade:
    chosen = _chosen(asked.choices, text)
    if chosen == asked.answer:
        return Grade(True, "", chosen)
    says = next(
        fill(w.says, asked.names) for w in asked.question.wrong if fill(w.answer, asked.names) == chosen
    )
    return Grade(False, says, chosen)


def _chosen(choices: tuple[str, ...], text: str) -> str:
    """The choice meant by "b", "b)", "(b)", "B." or the choice's own words, or the beginning of them."""
    bare = re.sub(r"^\(?([a-z])[).:]?$", r"\1", text.lower())
    if len(bare) == 1 and bare in LETTERS[: len(choices)]:
        return choices[LETTERS.index(bare)]
    plain = " ".join(text.lower().split())
    exact = [c for c in choices if c.lower() == plain]
    begins = exact or [c for c in choices if len(plain) > 1 and c.lower().startswith(plain)]
    if len(begins) == 1:
        return begins[0]
    last = LETTERS[len(choices) - 1]
    raise Unreadable(f"'{_short(text)}' is none of the choices: type a letter from a to {last}.")


def _grade_line(asked: Asked, text: str) -> Grade:
    match = re.fullmatch(r"(?:line|l)?\s*#?(\d{1,3})[.):]?", text.lower())
    lines = asked.question.code
    if not match or not 1 <= int(match[1]) <= len(lines):
        raise Unreadable(f"'{_short(text)}' is no line: type its number, from 1 to {len(lines)}.")
    number = match[1].lstrip("0")
    if number == asked.question.answer:
        return Grade(True, "", f"line {number}")
    says = next((w.says for w in asked.question.wrong if w.answer == number), "")
    return Grade(False, says or "Nothing is computed there.", f"line {number}")


# ---- numbers


@dataclass(frozen=True)
class Number:
    """A number as typed. `slack` is half of its last digit when it was given rounded, as in "57.3 kB"."""

    value: float
    slack: float = 0.0
    other: float | None = None  # the same with a k of 1024, where k alone was typed


_PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_WORDS = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "bn": 1e9}
_PLAIN = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?"
_WITH_PREFIX = re.compile(rf"({_PLAIN})\s*([kmgt]?)(i?)(b|bytes?)?", re.IGNORECASE)
_WITH_WORD = re.compile(rf"({_PLAIN})\s*({'|'.join(_WORDS)})", re.IGNORECASE)


def read_number(text: str, unit: str = "") -> Number:
    """The number that was typed: "57344", "57,344", "57 344 bytes", "56 KiB", "1.5e3", "2 * 28 * 4", "1/8".

    Raises Unreadable.
    """
    plain = text.strip().strip("=~").strip()
    plain = re.sub(r"^(?:about|around|approximately|ca\.?|circa)\s+", "", plain, flags=re.IGNORECASE)
    if unit and plain.lower().endswith(unit.lower()):
        plain = plain[: -len(unit)].rstrip()
    scale = 1.0
    if plain.endswith("%"):
        plain, scale = plain[:-1].rstrip(), 0.01
    plain = re.sub(r"(?<![\d.])(\d{1,3})((?:[,_' ]\d{3})+)(?!\d)", _without_separators, plain)
    if re.search(r"\d,\d", plain):
        raise Unreadable(
            f"'{_short(text)}': a comma separates thousands here (1,024); write decimals with a point."
        )
    number = _with_suffix(plain)
    if number is None:
        try:
            value = evaluate(re.sub(r"(?<=[\d)])\s*[x×·]\s*(?=[\d(])", "*", plain).replace("^", "**"))
        except FormulaError:
            value = None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unreadable(
                f"'{_short(text)}' is no number: type one (57344, 0.125, 56 KiB), or a sum (2 * 28 * 128)."
            )
        number = Number(value)
    return Number(number.value * scale, number.slack * scale, number.other) if scale != 1.0 else number


def _without_separators(match: re.Match[str]) -> str:
    return match[1] + re.sub(r"\D", "", match[2])


def _with_suffix(text: str) -> Number | None:
    """ "56 KiB", "1.2 GB", "12.6M", "5.7 billion"; None for what is not written so."""
    if word := _WITH_WORD.fullmatch(text):
        return Number(float(word[1]) * _WORDS[word[2].lower()], _slack(word[1]) * _WORDS[word[2].lower()])
    match = _WITH_PREFIX.fullmatch(text)
    if match is None:
        return None
    power = _PREFIXES[match[2].lower()]
    if match[3] and not power:
        return None
    value = int(match[1]) if re.fullmatch(r"[+-]?\d+", match[1]) else float(match[1])
    if not power:
        return Number(value)
    base = 1024 if match[3] else 1000
    other = None if match[3] else value * 1024**power
    return Number(value * base**power, _slack(match[1]) * base**power, other)


def _slack(digits: str) -> float:
    """Half of the last digit of "57.3"; none for fewer than three digits, which say too little."""
    mantissa = re.sub(r"e.*", "", digits.lower())
    if len(re.sub(r"\D", "", mantissa).lstrip("0")) < 3:
        return 0.0
    return 0.5 * 10.0 ** -len(mantissa.partition(".")[2])


def same_number(given: float, wanted: float, tolerance: float, slack: float = 0.0) -> bool:
    """Whether `given` is `wanted`: exactly, within the relative tolerance, or rounded to what was typed."""
    if tolerance == 0 and slack == 0 and isinstance(given, int) and isinstance(wanted, int):
        return given == wanted
    room = max(tolerance * abs(wanted), slack, 1e-9 * abs(wanted) if tolerance == 0 else 0.0)
    return abs(given - wanted) <= room * (1 + 1e-9)


def _grade_number(asked: Asked, text: str) -> Grade:
    question = asked.question
    number = read_number(text, question.unit)
    right = _scalar(evaluate(question.answer, asked.names))
    known = [(_scalar(evaluate(w.answer, asked.names)), w) for w in question.wrong]
    given = _given(number, question)

    def fits(wanted: float) -> bool:
        return same_number(number.value, wanted, question.tolerance, number.slack)

    close = [w for value, w in known if fits(value)]
    if fits(right):
        if close and not same_number(number.value, right, question.tolerance):
            raise Unreadable(f"'{_short(text)}' is too rough to judge here: give more digits.")
        return Grade(True, "", given)
    if number.other is not None and same_number(number.other, right, question.tolerance):
        raise Unreadable(
            f"'{_short(text)}' can be {number.value:,.0f} or {number.other:,.0f}: write it out, or KiB."
        )
    if close:
        return Grade(False, fill(close[0].says, asked.names), given)
    if question.tolerance and right and 0 < abs(number.value - right) <= 5 * question.tolerance * abs(right):
        return Grade(False, "Close, but rounded on the way: keep more digits until the end.", given)
    if right and number.value == -right:
        return Grade(False, "The sign is the other one.", given)
    if right and number.value and (power := _power_between(number.value, right)):
        return Grade(False, f"The digits are right; it is off by a factor of {power}.", given)
    return Grade(False, "", given)


def _given(number: Number, question: Question) -> str:
    value = int(number.value) if float(number.value).is_integer() else number.value
    return _shown_number(question, value)


def _power_between(given: float, right: float) -> str:
    """ "1000" when one is a thousand times the other, and so on; "" for no such factor."""
    ratio = abs(given / right)
    for factor in (10, 100, 1000, 1024, 1_000_000, 1024**2, 1_000_000_000, 1024**3):
        if math.isclose(ratio, factor, rel_tol=1e-6) or math.isclose(ratio, 1 / factor, rel_tol=1e-6):
            return f"{factor:,}"
    return ""


def _scalar(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormulaError(f"{value!r} is no number")
    return value


# ---- shapes


def read_shape(text: str) -> tuple[int, ...]:
    """The shape that was typed: "(2, 3)", "2x3", "2 3", "[2,3]", "(896,)", "()". Raises Unreadable."""
    how = "type numbers, as in (2, 3) or 2x3 or 2 3"
    inner = text.strip().removeprefix("shape").strip(" =:")
    if inner.lower() in ("()", "[]", "scalar", "none"):
        return ()
    if re.search(r"[,x×\s](0\d+)", inner):
        raise Unreadable(f"'{_short(text)}': write 1024 without a separator in a shape; {how}.")
    inner = re.sub(r"^[(\[]\s*|\s*[)\]]$", "", inner)
    if not re.fullmatch(r"\d+(?:\s*[,x×*;\s]\s*\d+)*\s*,?", inner, re.IGNORECASE):
        raise Unreadable(f"'{_short(text)}' is no shape: {how}.")
    return tuple(int(n) for n in re.findall(r"\d+", inner))


def _grade_shape(asked: Asked, text: str) -> Grade:
    question = asked.question
    given, right = read_shape(text), evaluate(question.answer, asked.names)
    if given == right:
        return Grade(True, "", show(given))
    for wrong in question.wrong:
        if evaluate(wrong.answer, asked.names) == given:
            return Grade(False, fill(wrong.says, asked.names), show(given))
    says = ""
    if len(given) != len(right):
        says = f"It has {len(right)} {'axis' if len(right) == 1 else 'axes'}, and this has {len(given)}."
    elif sorted(given) == sorted(right):
        says = "The numbers are right, in another order."
    return Grade(False, says, show(given))


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
