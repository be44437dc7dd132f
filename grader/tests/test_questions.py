"""Check questions: what counts as the right answer, what is said to a wrong one, and how they are asked."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.grader import arithmetic, attempts, catalog, quiz
from tinyllm.grader.arithmetic import FormulaError
from tinyllm.grader.clone import Clone
from tinyllm.grader.questions import Question, Unreadable, Wrong, asked, draw, read_number, read_shape
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


@pytest.fixture
def course(tmp_path: Path) -> Toy:
    course = toy.make(tmp_path)
    text = toy.questions("week1/sums.py", "return x * x", "return x + x")
    course.write("checkpoints/day1_1/questions.toml", text)
    return course


# ---- arithmetic


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("2 * L * H", 60),
        ("-L // 2 + 7 % 4", 0),
        ("sqrt(L + 3) * 2 ** 3", 24),
        ("(L, H, 1)", (6, 5, 1)),
        ("p[1] + max(L, H)", 8),
        ("L if L > H and H != 0 else 0", 6),
        ("(p[0] < 2) + (p[1] < 2)", 1),
    ],
)
def test_formulas(formula: str, value: object) -> None:
    assert arithmetic.evaluate(formula, {"L": 6, "H": 5, "p": (1, 2)}) == value


@pytest.mark.parametrize(
    "formula",
    [
        "__import__('os').system('true')",
        "().__class__",
        "L.real",
        "9 ** 9 ** 9",
        "2 ** 10000",
        "10 ** 100 * 10 ** 100",
        "[1, 2]",
        "lambda: 1",
        "1 / 0",
        "max(x for x in (1, 2))",
        "f'{L}'",
        "unknown",
        "'a' * 10",
        "p[9]",
        "(",
        "1" * 500,
        "(" * 300,
        "(0 - 8) ** 0.5",
        "exp(1000)",
    ],
)
def test_what_is_no_arithmetic_is_refused(formula: str) -> None:
    with pytest.raises(FormulaError):
        arithmetic.evaluate(formula, {"L": 6, "p": (1, 2)})


def test_texts_show_values_and_formats() -> None:
    names = {"n": 28672, "model": "Qwen2-7B"}
    assert (
        arithmetic.fill("{model}: {2 * n:,} of {{n}}, {n / 4096:.2f}", names)
        == "Qwen2-7B: 57,344 of {n}, 7.00"
    )
    assert arithmetic.letters("{L:,} tokens, {{x}}") == "L tokens, {x}"
    with pytest.raises(FormulaError):
        arithmetic.fill("{m}", names)


# ---- reading answers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("57344", 57344),
        (" 57,344 bytes", 57344),
        ("57 344", 57344),
        ("57_344", 57344),
        ("1,024", 1024),
        ("= 0.125", 0.125),
        (".5", 0.5),
        ("1/8", 0.125),
        ("1e3", 1000),
        ("28 %", 0.28),
        ("56 KiB", 57344),
        ("1.75GiB", 1.75 * 2**30),
        ("1.5k", 1500),
        ("5.7 billion", 5.7e9),
        ("about 11.3", 11.3),
        ("2 * 28 * 4 * 128 * 2", 57344),
        ("2 x 28 x 4", 224),
        ("2^10", 1024),
        ("sqrt(64)", 8),
        ("-3", -3),
    ],
)
def test_numbers_as_people_write_them(text: str, value: float) -> None:
    assert read_number(text, "bytes").value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "b", "1,5", "one", "1.2.3", "(2, 3)", "1 / 0", "2 *", "True", "9**9**9"]
)
def test_what_is_no_number_is_told_so(text: str) -> None:
    with pytest.raises(Unreadable):
        read_number(text)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("(2, 3)", (2, 3)),
        ("2x3", (2, 3)),
        ("2 X 3", (2, 3)),
        ("2 3", (2, 3)),
        ("[2,3]", (2, 3)),
        ("2, 3,", (2, 3)),
        ("(896,)", (896,)),
        ("896", (896,)),
        ("()", ()),
    ],
)
def test_shapes_as_people_write_them(text: str, shape: tuple[int, ...]) -> None:
    assert read_shape(text) == shape


@pytest.mark.parametrize("text", ["", "L x D", "2.5 3", "(1,024, 3)", "two", "2--3"])
def test_what_is_no_shape_is_told_so(text: str) -> None:
    with pytest.raises(Unreadable):
        read_shape(text)


@given(st.text(max_size=30))
def test_no_answer_breaks_the_reading(text: str) -> None:
    for question in QUESTIONS:
        with suppress(Unreadable):
            assert asked(question, {"n": 5}).grade(text).given


# ---- judging

KIB = Question(
    id="kib",
    kind="number",
    ask="{n}?",
    answer="57344",
    why="",
    wrong=(Wrong("28672", "Keys and values, so twice."), Wrong("57000", "Rounded.")),
    unit="bytes",
)
TENTH = Question(id="tenth", kind="number", ask="{n}?", answer="0.1", why="", wrong=(), tolerance=0.01)
SHAPE = Question(
    id="shape",
    kind="shape",
    ask="{n}?",
    answer="(2, n, 7)",
    why="",
    wrong=(Wrong("(n, 2, 7)", "Not {n} first."),),
)
CHOICE = Question(
    id="choice",
    kind="choice",
    ask="{n}?",
    answer="slice({n}, 9)",
    why="",
    wrong=(Wrong("slice(0, 9)", "From {n} on."), Wrong("no slice", "There is.")),
)
QUESTIONS = (KIB, TENTH, SHAPE, CHOICE)


@pytest.mark.parametrize(
    ("question", "text", "right", "says"),
    [
        (KIB, "57344", True, ""),
        (KIB, "57.3 kB", True, ""),
        (KIB, "56 KiB", True, ""),
        (KIB, "2 * 28 * 1024", True, ""),
        (KIB, "28,672", False, "Keys and values, so twice."),
        (KIB, "-57344", False, "The sign is the other one."),
        (KIB, "57344000", False, "The digits are right; it is off by a factor of 1,000."),
        (KIB, "3", False, ""),
        (TENTH, "0.1004", True, ""),
        (TENTH, "1/10", True, ""),
        (TENTH, "0.103", False, "Close, but rounded on the way: keep more digits until the end."),
        (TENTH, "1.0", False, "The digits are right; it is off by a factor of 10."),
        (SHAPE, "2x5x7", True, ""),
        (SHAPE, "5 2 7", False, "Not 5 first."),
        (SHAPE, "(7, 5, 2)", False, "The numbers are right, in another order."),
        (SHAPE, "(2, 5)", False, "It has 3 axes, and this has 2."),
        (CHOICE, "slice(5, 9)", True, ""),
        (CHOICE, "SLICE(0", False, "From 5 on."),
    ],
)
def test_answers_are_judged(question: Question, text: str, right: bool, says: str) -> None:
    grade = asked(question, {"n": 5}).grade(text)
    assert (grade.right, grade.says) == (right, says)


@pytest.mark.parametrize(("question", "text"), [(KIB, "56k"), (CHOICE, "slice"), (CHOICE, "d")])
def test_what_could_mean_several_things_is_asked_again(question: Question, text: str) -> None:
    with pytest.raises(Unreadable):
        asked(question, {"n": 5}).grade(text)


def test_letters_follow_the_order_shown() -> None:
    for seed in range(5):
        shown = draw(Question(**{**CHOICE.__dict__, "variables": {"n": (5,)}}), str(seed))
        right = "abc"[shown.choices.index("slice(5, 9)")]
        for text in (right, right.upper(), f"{right})", f"({right})"):
            assert shown.grade(text).right
        assert sorted(shown.choices) == ["no slice", "slice(0, 9)", "slice(5, 9)"]


def test_the_same_seed_draws_the_same_and_others_draw_others() -> None:
    question = catalog.questions(*_day("1.1"))[2]
    assert draw(question, "a").ask == draw(question, "a").ask
    assert len({draw(question, str(n)).ask for n in range(30)}) > 5


CLONE = Clone(ROOT)
COURSE = catalog.load(CLONE)


def _day(name: str) -> tuple[Clone, catalog.Day]:
    return CLONE, COURSE.day(name)


@pytest.mark.parametrize("day", [d.id for d in COURSE.days])
def test_every_right_answer_of_the_course_is_right_and_every_wrong_one_explained(day: str) -> None:
    clone, found = _day(day)
    for question in catalog.questions(clone, found):
        for seed in "abc":
            shown = draw(question, seed)
            if question.kind == "choice":
                assert shown.grade(shown.answer).right
                others = [c for c in shown.choices if c != shown.answer]
                assert all(shown.grade(c).says for c in others)
                continue
            if question.kind == "line":
                assert shown.grade(question.answer).right
                assert all(shown.grade(w.answer).says == w.says for w in question.wrong)
                continue
            assert shown.grade(str(arithmetic.evaluate(question.answer, shown.names))).right
            for wrong in question.wrong:
                text = str(arithmetic.evaluate(wrong.answer, shown.names))
                assert shown.grade(text).says == arithmetic.fill(wrong.says, shown.names), (question.id, text)


# ---- which come first


def test_what_was_wrong_comes_first_and_what_was_right_last(course: Toy) -> None:
    day = course.course.day("1.1")
    questions = [(day, q) for q in catalog.questions(course.clone, day)]
    events = []
    for minutes, (name, right) in enumerate(
        [("sum", True), ("rows", False), ("twice", True), ("sum", False), ("bytes", True), ("sum", True)]
    ):
        event = attempts.answer_event("1.1", name, right, "x", at=START + timedelta(minutes=minutes))
        attempts.append(course.clone, event)
    events, _ = attempts.read(course.clone)
    order = [i.asked.question.id for i in quiz.choose(questions, events, "s").items]
    assert order == ["rows", "line", "twice", "bytes", "sum"]


# ---- the command


def _answers(
    course: Toy, lines: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*toy.PROGRAM, "quiz", *arguments],
        cwd=course.root,
        env=course.environment(**environment),
        input=lines,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def test_a_piped_sitting(course: Toy) -> None:
    done = _answers(course, "1\nno\n5\nfour\n\n1024 4\n", "1.1", "--seed", "x")
    out = done.stdout
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "1 of 5" in out
    assert "'no' is no number" in out
    assert "5 not asked yet" not in out
    logged = [json.loads(line) for line in attempts.log_path(course.clone).read_text().splitlines()]
    assert {e["event"] for e in logged} == {"answer"}
    assert all(len(e["given"]) <= 80 for e in logged)
    tracker = (course.clone.progress / "tiny-llm-tracker.md").read_text()
    right = sum(e["right"] for e in logged)
    assert f" {right}/5 |" in tracker


def test_json_tells_the_questions_then_grades_them(course: Toy) -> None:
    first = _answers(course, "", "1.1", "--json", "--seed", "x")
    told = json.loads(first.stdout)
    assert first.returncode == 1
    assert [q["id"] for q in told["questions"]] == ["sum", "bytes", "rows", "twice", "line"]
    assert not any("answer" in q for q in told["questions"])
    a, b = map(int, re.findall(r"\d+", told["questions"][0]["ask"]))
    count = int(re.findall(r"\d+", told["questions"][1]["ask"])[0])
    rows = re.findall(r"\d+", told["questions"][2]["ask"])[0]
    lines = f"{a + b}\n{count * 4}\n({rows},)\nfour\nline 1\n"
    second = _answers(course, lines, "1.1", "--json", "--seed", "x")
    graded = json.loads(second.stdout)
    assert [q["right"] for q in graded["questions"]] == [True] * 5
    assert graded["mastery"] == {"1.1": {"right": 5, "of": 5}}
    assert second.returncode == graded["exit_code"] == 0


def test_a_wrong_answer_is_explained_with_this_times_numbers(course: Toy) -> None:
    told = json.loads(_answers(course, "", "1.1", "--json", "--seed", "y").stdout)
    a, b = map(int, re.findall(r"\d+", told["questions"][0]["ask"]))
    out = _answers(course, f"{a * b}\n", "1.1", "--seed", "y").stdout
    assert f"Not {a * b}. That is {a} times {b}." in out
    assert f"{a} + {b} = {a + b}" in out
    assert "4 not asked yet; what you answered is kept" in out


def test_answers_are_shown_without_asking_or_logging(course: Toy) -> None:
    done = _answers(course, "", "1.1", "--answers")
    assert done.returncode == 0
    assert len(re.findall(r"(?m)^  answer ", done.stdout)) == 5
    assert not attempts.log_path(course.clone).exists()


def test_nothing_is_logged_without_progress(course: Toy) -> None:
    _answers(course, "1\n", "1.1", "--no-progress")
    assert not attempts.log_path(course.clone).exists()


def test_odd_input_is_no_answer_and_no_traceback(course: Toy) -> None:
    lines = b"\xff\xfe\n" + b"9" * 5000 + b"\n" + b"(" * 150 + b"\n1e999\n"
    for stdin in (lines, None):
        done = subprocess.run(
            [*toy.PROGRAM, "quiz", "1.1", "-n", "2"],
            cwd=course.root,
            env=course.environment(),
            input=lines if stdin else None,
            stdin=None if stdin else subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr == b""


def test_an_error_is_json_too(course: Toy) -> None:
    done = _answers(course, "", "1.2", "--json")
    assert json.loads(done.stdout)["error"] == "day1.2: no check questions yet."
    assert done.returncode == 3


def test_a_day_without_questions_says_so(course: Toy) -> None:
    done = _answers(course, "", "1.2")
    assert "day1.2: no check questions yet." in done.stderr
    assert "There is no day called '7.7'" in _answers(course, "", "7.7").stderr


def test_all_asks_what_is_due(course: Toy) -> None:
    assert "1 of 3" in _answers(course, "", "all", "-n", "3").stdout


def _terminal(course: Toy, *keys: bytes | int) -> tuple[str, int]:
    """Run the quiz in a pseudo-terminal; each key is sent when a prompt is there, an int as a signal."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*toy.PROGRAM, "quiz", "1.1"],
        cwd=course.root,
        env=course.environment(TERM="xterm", COLUMNS="80"),
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
    )
    os.close(child)
    shown, asked_for, waiting = b"", 0, list(keys)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if waiting and shown.count(b"answer> ") > asked_for:
            asked_for = shown.count(b"answer> ")
            key = waiting.pop(0)
            if isinstance(key, int):
                process.send_signal(key)
            else:
                os.write(parent, key)
        if select.select([parent], [], [], 0.1)[0]:
            try:
                data = os.read(parent, 65536)
            except OSError:
                break
            if not data:
                break
            shown += data
        elif process.poll() is not None:
            break
    code = process.wait(timeout=10)
    os.close(parent)
    return shown.decode(errors="replace"), code


def test_ctrl_c_keeps_what_was_answered(course: Toy) -> None:
    shown, code = _terminal(course, b"1\n", b"2\n", signal.SIGINT)
    assert code == 130
    assert "what you answered is kept" in shown
    assert len(attempts.log_path(course.clone).read_text().splitlines()) == 2


def test_end_of_input_and_q_stop(course: Toy) -> None:
    for key in (b"\x04", b"q\n"):
        shown, code = _terminal(course, b"1\n", key)
        assert code == 1
        assert "4 not asked yet" in shown
        assert "Traceback" not in shown
