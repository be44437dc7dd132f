"""`tinyllm-grade bench` from outside: on the toy course with measurements of its own, and a tiny model."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tinyllm.grader import benching
from tinyllm.grader.bench.workshop import finished_copy
from tinyllm.grader.clone import Clone, installed_root
from tinyllm.grader.figures import Count
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import PROGRAM, Toy

MEASURE = """
import mlx.core as mx
from tinyllm.grader.measuring import Bench


def measure(bench: Bench) -> None:
    double, theirs = bench.solution.double, bench.reference.double
    bench.note("A look at sums.")
    bench.count("rows", bench.module("week1/sums.py").row_sums(mx.ones((3, 2))).size, at_most=3)

    def inputs(turn):
        return (mx.random.normal((64, 64), key=mx.random.key(turn)),)

    contestants = {"yours": double, "reference": theirs, "mlx": lambda x: 2 * x}
    bar = ("yours", "reference", 0.001)
    bench.race("doubling", contestants, unit="us", inputs=inputs, same=True, bar=bar)
"""
DOUBLE = "checkpoints/day1_1/bench.py"


@pytest.fixture
def course(tmp_path: Path) -> Toy:
    course = toy.make(tmp_path)
    course.write(DOUBLE, MEASURE)
    course.sums()
    return course


def words(text: str) -> str:
    return " ".join(text.split())


# ---- a day


def test_a_day_is_measured_beside_the_reference(course: Toy) -> None:
    course.sums(top="print('hello from sums')")
    done = course.grade("bench", "day1.1", "--rounds", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    out = done.stdout
    assert "bench day1.1  Sums\nexercises beside reference\nA look at sums.\n" in out
    assert "rows: 3\n  bar: at most 3: met\n" in out
    spread = r"[\d.,]+ \([\d.,]+, [\d.,]+\)"
    assert re.search(rf"^  yours +{spread}$", out, re.M)
    assert re.search(rf"^  mlx +{spread} +{spread}$", out, re.M)
    assert "3 rounds. The results agree within 1e-04 of the largest element." in out
    assert "bar: yours at least 0.001 times as fast as reference: met" in out
    assert "printed    hello from sums" in out
    assert out.endswith("2 of 2 bars met\n")
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out


def test_the_figures_as_json(course: Toy) -> None:
    done = course.grade("bench", "1.1", "--rounds", "2", "--solution", "reference", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["exit_code"], told["error"]) == (0, 0, "")
    assert told["measured"] == "day1.1"
    assert [x["name"] for x in told["races"][0]["contestants"]] == ["reference", "mlx"]
    assert len(told["races"][0]["contestants"][0]["figures"]) == 2
    assert told["counts"] == [
        {"title": "rows", "value": 3, "unit": "", "bars": [{"bar": "at most 3", "verdict": "met"}]}
    ]


def test_a_stub_is_named_with_its_day_and_task(course: Toy) -> None:
    course.write("exercises/week1/sums.py", toy.SUMS_STUB)
    done = course.grade("bench", "day1.1")
    assert done.returncode == 1
    assert "Day 1.1, task 2 (row sums) is not written yet." in words(done.stdout)
    assert "next tinyllm-grade day1.1 or for now: --borrow 1.1, or --solution ref" in words(done.stdout)
    done = course.grade("bench", "day1.1", "--rounds", "1", "--borrow", "1.1")
    assert done.returncode == 0
    assert "with day1.1 from the reference" in done.stdout


def test_a_missed_bar_and_other_results_are_exit_1(course: Toy) -> None:
    course.sums(row_sums="return mx.concatenate([x.sum(1), x.sum(1)])")
    done = course.grade("bench", "day1.1", "--rounds", "1")
    assert done.returncode == 1
    assert "rows: 6\n  bar: at most 3: missed" in done.stdout
    course.sums(double="return x + x + 1")
    done = course.grade("bench", "day1.1", "--rounds", "1")
    assert done.returncode == 1
    assert "yours gives something else than reference: up to 1 away" in words(done.stdout)
    assert "Results differ: see above." in done.stdout


@pytest.mark.parametrize(
    ("double", "told"),
    [
        ("return x @ mx.ones((3, 3))", r"ValueError: \[matmul\] .*your line exercises/week1/sums\.py:9 in"),
        ("return None", "yours gave None: there is nothing to time"),
        ("raise SystemExit", r"ended the program: SystemExit\. your line exercises/week1/sums\.py:9"),
        ("import os; os.abort()", r"by an abort: C code gave up\. your line exercises/week1/sums\.py:9"),
        ("return )", r"sums\.py has a syntax error on line 9"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_told_at_the_learners_line(course: Toy, double: str, told: str) -> None:
    course.sums(double=double)
    done = course.grade("bench", "day1.1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(told, words(done.stdout)), done.stdout
    assert words(done.stdout).endswith("next tinyllm-grade day1.1 (Sums)")


def test_a_name_that_is_gone(course: Toy) -> None:
    course.write("exercises/week1/sums.py", toy.SUMS.replace("def double", "def doubled"))
    done = course.grade("bench", "day1.1")
    assert done.returncode == 1
    assert "exercises/week1/sums.py has no `double`: was it renamed or deleted?" in words(done.stdout)


def test_a_fault_of_the_course_is_not_the_learners(course: Toy) -> None:
    course.write(DOUBLE, "def measure(bench):\n    1 / 0\n")
    done = course.grade("bench", "day1.1")
    assert done.returncode == 3
    assert "The course's own measurement failed: ZeroDivisionError" in words(done.stdout)
    assert "bench.py" in done.stdout


SCHEDULES = """
from types import SimpleNamespace as Of


def measure(bench):
    plans = [Of(step=n, prefill=(), decode=(Of(id=n, slot=0),)) for n in range(3)]
    bench.schedules("three steps", {"yours": plans[:2], "reference": plans}, 1)
"""


def test_schedules_are_told_and_drawn(course: Toy) -> None:
    course.write(DOUBLE, SCHEDULES)
    picture = course.root / "schedule.svg"
    done = course.grade("bench", "day1.1", "--plot", str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The schedules part in step 2." in done.stdout
    assert "slot 0  D1  D2" in done.stdout
    assert "first difference: step 2" in "".join(ElementTree.parse(picture).getroot().itertext())


def test_a_measurement_without_a_picture(course: Toy) -> None:
    picture = course.root / "none.svg"
    done = course.grade("bench", "day1.1", "--rounds", "1", "--plot", str(picture))
    assert "This measurement has no picture" in words(done.stdout)
    assert not picture.exists()


def test_a_day_without_a_measurement(course: Toy) -> None:
    done = course.grade("bench", "day1.2")
    assert done.returncode == 2
    assert "day1.2 has no measurement (bench.py). Days that have one: day1.1; or: model" in done.stderr
    done = course.grade("bench", "day1.1", "--tokens", "3")
    assert done.returncode == 2
    assert "--tokens goes with bench model, not with a day." in done.stderr
    done = course.grade("bench", "day1.2", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["exit_code"]) == (2, 2)
    assert told["error"].startswith("day1.2 has no measurement")


def test_too_much_memory_is_told_at_the_line(course: Toy) -> None:
    course.sums(double="\n    ".join(["while True:", "    x = x + 0"]))
    subject = benching.Subject(day=course.course.day("1.1"))
    with benching.Measurement(course.clone, course.course, subject) as measurement:
        events = measurement.events()
        while not isinstance(next(events), Count):
            pass
        measurement.memory_limit = 1 << 20
        with pytest.raises(benching.NotMeasured, match=r"Used more than 0\.0 GiB of memory") as told:
            list(events)
    assert told.value.frames[0].path == "exercises/week1/sums.py"
    assert measurement.child.ended


def test_ctrl_c_says_the_line(course: Toy) -> None:
    course.sums(double="\n    ".join(["while True:", "    x = x + 0"]))
    with subprocess.Popen(
        [*PROGRAM, "bench", "day1.1"],
        cwd=course.root,
        env=course.environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen = ""
        while "bar: at most 3" not in seen:
            seen += process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        seen += process.stdout.read()
    assert process.returncode == 130
    assert re.search(r"stopped by Ctrl-C, at exercises/week1/sums\.py:\d+ in double", words(seen))


# ---- a model

SMALL = ("--rounds", "1", "--prefill", "6", "--prompt", "5", "--tokens", "2")


@pytest.fixture
def real(tmp_path: Path) -> Toy:
    """The course itself, with the reference as its exercises."""
    return Toy(finished_copy(Clone(installed_root()), tmp_path / "clone"))


def test_a_model_beside_the_reference_and_mlx_lm(real: Toy) -> None:
    picture = real.root / "roofline.svg"
    done = real.grade(
        "bench", "model", "--engine", "week1", *SMALL, "--plot", str(picture), TINYLLM_CACHE=str(real.root)
    )
    assert done.returncode in (0, 1, 3), done.stdout + done.stderr  # the figures mean nothing at this size
    out = words(done.stdout)
    assert "Made a random checkpoint of tiny, 1.54 MB, kept in the cache folder" in out
    assert "prefill of 6 tokens, in tokens/s" in out
    assert "decode, 2 tokens after 5, each from all tokens so far, in tokens/s" in out
    for name in ("yours", "reference", "mlx-lm", "mlx-lm, dense weights"):
        assert len(re.findall(rf"^  {name} +[\d.,]+", done.stdout, re.M)) == 2
    assert "Each token reads 1.54 MB of weights as they are stored" in out
    assert "so memory sets no limit here." in out
    assert "bar: yours at least 1 times as fast as mlx-lm" in out
    assert "yours, prefill 6: " in "".join(ElementTree.parse(picture).getroot().itertext())


def test_models_must_agree(real: Toy) -> None:
    module = real.root / "exercises/week1/rope.py"
    module.write_text(module.read_text().replace("a * sin + b * cos", "b * cos - a * sin"))
    done = real.grade("bench", "model", "--engine", "week1", *SMALL, "--against", "none")
    assert done.returncode == 1
    assert "yours gives something else than reference" in words(done.stdout)


def test_an_unfinished_model_and_weights_that_are_not_there(tmp_path: Path) -> None:
    course = Toy(Clone(installed_root()))
    done = course.grade("bench", "model", "--engine", "week1", *SMALL, TINYLLM_CACHE=str(tmp_path))
    if "NotImplementedError" in (course.root / "exercises/week1/attention.py").read_text():
        assert done.returncode == 1
        assert "is not written yet. This needs days 1.1 to 1.6." in words(done.stdout)
    done = course.grade("bench", "model", "--model", "nowhere")
    assert done.returncode == 2
    assert "There is no folder nowhere" in done.stderr
    done = course.grade("bench", "model", "--model", "tiny-qwen2", "--shape", "tiny")
    assert done.returncode == 2
    assert "--shape goes without it" in done.stderr
