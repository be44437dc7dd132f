"""checkpoint.toml and course.toml: what is read, and every error with its file and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tinyllm.grader import catalog
from tinyllm.grader.clone import Clone, find_clone, installed_root
from tinyllm.grader.errors import EnvironmentFault, SpecError, UsageError
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy

SPEC = "checkpoints/day1_1/checkpoint.toml"


@pytest.fixture
def course(tmp_path: Path) -> Toy:
    return toy.make(tmp_path)


def test_a_course_is_read(course: Toy) -> None:
    read = course.course
    assert [d.name for d in read.days] == ["day1.1", "day1.2"]
    day = read.day("Day1.1")
    assert (day.week, day.checks, day.modules) == (1, 5, ("week1/sums.py",))
    assert str(day.task(1).symbols[0]) == "week1/sums.py::double"
    assert day.task(1).misconceptions[0].module == "week1/sums.py"
    assert [r.api for r in day.rules] == ["mlx.core.fast.*", "numpy.*"]
    assert [d.id for d in read.before(read.day("1.2"))] == ["1.1"]
    assert read.limits.check_seconds == 3


@pytest.mark.parametrize(
    ("text", "ids"),
    [("1.2", ["1.2"]), ("day1.2", ["1.2"]), ("week1", ["1.1", "1.2"]), ("ALL", ["1.1", "1.2"])],
)
def test_days_are_selected(course: Toy, text: str, ids: list[str]) -> None:
    assert [d.id for d in course.course.select(text)] == ids


@pytest.mark.parametrize("text", ["1.9", "week7", "tomorrow", ""])
def test_what_is_not_there_is_a_usage_error(course: Toy, text: str) -> None:
    with pytest.raises(UsageError, match=r"day1\.1 day1\.2|week1"):
        course.course.select(text)
    with pytest.raises(UsageError, match="its tasks are 1, 2"):
        course.course.day("1.1").task(3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('id = "1.1"', 'id = "one"', "id: 'one' is not of the form week.day"),
        ('id = "1.1"', 'id = "1.3"', "id: '1.3' does not belong in a folder called day1_1"),
        ('title = "Sums"\n', "", "title: is missing"),
        ('title = "Sums"', "title = 3", "title: must be a string, not 3"),
        ("checks = 3", 'checks = "3"', r"tasks\[0\].checks: must be a whole number, not '3'"),
        ("checks = 3", "checks = true", r"tasks\[0\].checks: must be a whole number, not True"),
        ("id = 2", "id = 4", "tasks: ids must be 1, 2, 3"),
        ('symbols = ["row_sums"]', "symbols = [7]", r"tasks\[1\].symbols: must be a list of strings"),
        (
            'symbols = ["row_sums"]',
            'symbols = ["a.py::b"]',
            r"tasks\[1\].symbols: 'a.py::b': a.py is not among",
        ),
        ('id = "squares"', 'id = "squares"\ncolour = "red"', "colour: is not a key this file can have"),
        ("[[facts]]", "[facts]", "facts: must be an array of tables"),
        (
            'modules = ["week1/sums.py"]',
            'modules = ["a.py", "b.py"]',
            "must name its module: the day has several",
        ),
        ("[[tasks]]\nid = 1", "[[tasks]]\nid 1", "line"),
    ],
)
def test_a_wrong_spec_names_file_and_key(course: Toy, old: str, new: str, message: str) -> None:
    assert old in toy.DAY_1
    course.write(SPEC, toy.DAY_1.replace(old, new, 1))
    with pytest.raises(SpecError, match=message) as caught:
        catalog.load(course.clone)
    assert caught.value.message.startswith(SPEC)


def test_two_misconceptions_of_one_name(course: Toy) -> None:
    extra = '[[tasks.misconceptions]]\nid = "squares"\nfind = "a"\nreplace = "b"\nsays = "c"\n'
    course.write(SPEC, toy.DAY_1.replace("[[tasks]]\nid = 2", f"{extra}[[tasks]]\nid = 2"))
    with pytest.raises(SpecError, match="two misconceptions are called 'squares'"):
        catalog.load(course.clone)


def test_days_may_build_on_earlier_days_only(course: Toy) -> None:
    course.write(SPEC, toy.DAY_1.replace("[[facts]]", 'builds_on = ["1.2"]\n[[facts]]', 1))
    with pytest.raises(SpecError, match=r"builds_on: '1\.2' is no earlier day"):
        catalog.load(course.clone)


ENGINE = """
[[engines]]
id = "toy"
title = "adds"
days = ["1.1"]
model = "week1/sums.py::double"
generate = "week1/sums.py::row_sums"
sampler = "week1/means.py::Mean"
"""


def test_engines_are_read(course: Toy) -> None:
    course.write("checkpoints/course.toml", toy.COURSE + ENGINE)
    (engine,) = course.course.engines
    assert (engine.id, engine.days, str(engine.sampler)) == ("toy", ("1.1",), "week1/means.py::Mean")
    assert course.course.engine("TOY") == engine
    with pytest.raises(UsageError, match="There is no engine called 'x'"):
        course.course.engine("x")
    assert course.course.day_of("week1/means.py").id == "1.2"
    assert course.course.day_of("week1/none.py") is None


def test_the_courses_engines_are_in_the_reference() -> None:
    clone = Clone(installed_root())
    for engine in catalog.load(clone).engines:
        for symbol in (engine.model, engine.generate, engine.sampler):
            text = (clone.reference / symbol.module).read_text()
            assert re.search(rf"^(def|class) {symbol.name}\b", text, re.M), symbol


SERVING = """
[serving]
days = ["1.1", "1.2"]
engines = ["toy"]
engine = "week1/sums.py::double"
app = "week1/means.py::Mean"
"""


def test_serving_is_read(course: Toy) -> None:
    course.write("checkpoints/course.toml", toy.COURSE + ENGINE)
    assert course.course.serving is None
    course.write("checkpoints/course.toml", toy.COURSE + ENGINE + SERVING)
    serving = course.course.serving
    assert (serving.days, serving.engines, str(serving.app)) == (
        ("1.1", "1.2"),
        ("toy",),
        "week1/means.py::Mean",
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"1.2"]', '"1.9"]', r"serving.days: there is no 1.9"),
        ('["toy"]', '["none"]', r"serving.engines: there is no none"),
        ("sums.py::double", "other.py::double", r"serving.engine: must be module.py::name"),
        ("app =", "colour = 1\napp =", r"serving.colour: is not a key"),
    ],
)
def test_a_wrong_serving_names_the_key(course: Toy, old: str, new: str, message: str) -> None:
    assert old in SERVING
    course.write("checkpoints/course.toml", toy.COURSE + ENGINE + SERVING.replace(old, new, 1))
    with pytest.raises(SpecError, match=message):
        catalog.load(course.clone)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "adds"', "", r"engines\[0\].title: is missing"),
        ('title = "adds"', 'title = "adds"\ncolour = 1', r"engines\[0\].colour: is not a key"),
        ('["1.1"]', '["1.9"]', r"engines\[0\].days: '1.9' is no day of this course"),
        (
            "sums.py::double",
            "other.py::double",
            r"engines\[0\].model: must be module.py::name",
        ),
        ("sums.py::row_sums", "sums.py", r"engines\[0\].generate: must be module.py::name"),
        (ENGINE, ENGINE + ENGINE, r"engines\[1\].id: two engines are called 'toy'"),
    ],
)
def test_a_wrong_engine_names_the_key(course: Toy, old: str, new: str, message: str) -> None:
    assert old in ENGINE
    course.write("checkpoints/course.toml", toy.COURSE + ENGINE.replace(old, new, 1))
    with pytest.raises(SpecError, match=message) as caught:
        catalog.load(course.clone)
    assert caught.value.message.startswith("checkpoints/course.toml: ")


def test_a_day_of_an_unknown_week(course: Toy) -> None:
    course.write("checkpoints/day9_1/checkpoint.toml", toy.DAY_1.replace('"1.1"', '"9.1"', 1))
    with pytest.raises(SpecError, match=r"week 9 is not in course\.toml"):
        catalog.load(course.clone)


def test_a_course_file_that_is_missing_or_no_text(course: Toy) -> None:
    (course.root / SPEC).write_bytes(b"\xff")
    with pytest.raises(SpecError, match=SPEC):
        catalog.load(course.clone)
    (course.root / "checkpoints/course.toml").unlink()
    with pytest.raises(SpecError, match=r"course\.toml is missing"):
        catalog.load(course.clone)


def test_the_clone_is_found(course: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLLM_ROOT", str(course.root))
    assert find_clone().root == course.root
    monkeypatch.setenv("TINYLLM_ROOT", str(course.root / "exercises"))
    with pytest.raises(UsageError, match=r"no checkpoints/course\.toml"):
        find_clone()
    monkeypatch.delenv("TINYLLM_ROOT")
    own = installed_root()
    assert find_clone(own / "grader").root == own
    assert find_clone(tmp_path.parent).root == own
    with pytest.raises(EnvironmentFault, match="installed from"):
        find_clone(course.root / "exercises")


def test_paths_are_shown_as_the_learner_types_them(tmp_path: Path) -> None:
    clone = Clone(tmp_path)
    assert clone.relative(tmp_path / "exercises" / "a.py") == "exercises/a.py"
    assert clone.relative("/elsewhere/a.py") == "/elsewhere/a.py"


def test_a_days_foundation_is_what_its_code_runs(tmp_path: Path) -> None:
    course = toy.make(tmp_path).course
    first, second = course.days
    assert course.foundation(first) == (first,)
    assert course.foundation(second) == (first, second)
    assert course.days[1].compared is None
