"""What failing checks leave: the inputs, a program for pdb, `replay`, and `trace` on the same inputs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader import cases
from tinyllm.grader.cases_child import load_arrays
from tinyllm.grader.story import kind_of, packed, unpacked
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy

PATIENCE = 300  # seconds, on a machine that is busy with other things

DAY = """
id = "1.2"
title = "Stores"
summary = "You store."
modules = ["week1/store.py"]
builds_on = ["1.1"]
[[tasks]]
id = 1
title = "store"
goal = "Keep what comes."
checks = 10
symbols = ["Store", "add_all", "adder", "pieces"]
hints = ["What is kept?", "A list keeps.", "Look at append."]
"""

TESTS = '''
import mlx.core as mx
import numpy as np
from tinyllm.grader.testing import check, every_case, sample, task


class Turn:
    """What a check of its own gives the code."""

    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x * self.by


@task(1)
def test_later(solution):
    """the second of two additions"""
    store = solution.Store(2)
    (x, x64), (y, y64) = sample((2, 3), mx.bfloat16, seed=1), sample((2, 3), mx.bfloat16, seed=2)
    store.add(x)
    check.close(store.add(y), x64 + y64, dtype=mx.bfloat16, terms=2, what="store.add(y)")

@task(1)
def test_attribute(solution):
    """how many there are"""
    store = solution.Store(2)
    store.add(mx.zeros((2, 3)))
    check.exact(store.count, 1, what="store.count")

@task(1)
def test_own_object(solution):
    """an object of the check's own"""
    x, x64 = sample((4,), seed=3)
    got = solution.add_all([x, x], Turn(mx.array(3.0)))
    check.close(got, 6 * x64, dtype=mx.float32, terms=2, what="add_all([x, x], turn)")

@task(1)
def test_closure(solution):
    """a function that is returned"""
    add = solution.adder(2.0)
    x, x64 = sample((5,), seed=4)
    check.close(add(x), x64 + 2, dtype=mx.float32, terms=2, what="adder(2.0)(x)")

@task(1)
def test_raises(solution):
    """no rows are refused"""
    check.raises(ValueError, lambda: solution.Store(0), what="Store(0)")

@task(1)
def test_unchanged(solution):
    """the caller's array stays"""
    x, x64 = sample((3,), seed=5)
    solution.add_all([x])
    check.unchanged(x64, x, what="x of add_all([x])")

@task(1)
def test_error(solution):
    """shapes that do not fit"""
    x, _ = sample((3,), seed=6)
    check.exact(solution.add_all([x, mx.zeros((2, 4))]).shape, (2, 4), what="add_all of (3,) and (2, 4)")

@task(1)
def test_derived(solution):
    """what the check makes of several results"""
    got = [int(p.item()) for p in solution.pieces(mx.array([1, 2]))]
    check.exact(got, [1, 2], what="list(pieces([1, 2]))")

@task(1)
def test_random(solution):
    """random numbers in pieces"""

    def run(numbers):
        got = [int(p.item()) for p in solution.pieces(mx.array(numbers))]
        check.exact(got, numbers, what=f"list(pieces({numbers}))")

    every_case(lambda pick: pick.several(lambda p: p(0, 9), 1, 6), run, examples=30)

@task(1)
def test_killed(solution):
    """a process that ends"""
    check.close(solution.add_all([mx.ones(1)], "end"), np.ones(1), dtype=mx.float32, terms=1, what="add_all")
'''

STORE = '''
import os

import mlx.core as mx


class Store:
    """Adds up."""

    def __init__(self, rows):
        if rows < 1:
            raise ValueError("no rows")
        self.rows, self.count, self.total = rows, 0, None

    def add(self, x):
        self.count += 1
        self.total = x if self.total is None else self.total + x
        return self.total


def add_all(parts, turn=None):
    """Turned parts, added."""
    total = mx.array(0.0)
    for part in parts:
        if turn == "end":
            pass
        elif turn is not None:
            part = turn(part)
        total = total + part
    return total


def adder(n):
    """Adds n."""

    def add(x):
        return x + n

    return add


def pieces(x):
    """x in single elements."""
    for i in range(x.shape[0]):
        yield x[i]
'''

WRONG = (
    ("self.total is None else self.total + x", "self.total is None else x"),
    ("self.count += 1", "self.count += 2"),
    ("part = turn(part)", "part = turn(part) + 1"),
    ("return x + n", "return x - n"),
    ("if rows < 1:", "if rows < 0:"),
    ("    total = mx.array(0.0)\n", "    total = mx.array(0.0)\n    parts[0] += 1\n"),
    ("yield x[i]", "yield x[0]"),
    ('if turn == "end":\n            pass', 'if turn == "end":\n            os._exit(3)'),
)


def grade(course: Toy, *arguments: str) -> subprocess.CompletedProcess[str]:
    return course.grade(*arguments, timeout=PATIENCE)


def wrong() -> str:
    text = STORE
    for right, mistake in WRONG:
        assert right in text
        text = text.replace(right, mistake)
    return text


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A graded day in which every check failed."""
    course = toy.make(tmp_path_factory.mktemp("cases") / "my clone", git=True)
    course.sums()
    course.write("checkpoints/day1_2/checkpoint.toml", DAY)
    course.write("checkpoints/day1_2/test_means.py", TESTS)
    course.write("reference/week1/store.py", STORE)
    course.write("exercises/week1/store.py", wrong())
    done = grade(course, "day1.2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 of 10 checks passed" in done.stdout
    assert "tinyllm-grade trace day1.2 --task 1" in done.stdout
    assert "tinyllm-grade replay day1.2 --task 1" in done.stdout
    return course


def kept(course: Toy, name: str) -> cases.Kept:
    day = course.course.day("1.2")
    return next(k for k in cases.kept(course.clone, day) if k.folder.name == name)


def run(course: Toy, case: cases.Kept, *before: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *before, str(case.program)],
        cwd=course.root.parent,
        env=course.environment(),
        input=typed,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_every_failing_check_leaves_a_case(failed: Toy) -> None:
    found = cases.kept(failed.clone, failed.course.day("1.2"))
    reasons = {k.folder.name: k.data["reason"] for k in found}
    assert reasons == {
        "test_later": "",
        "test_attribute": "",
        "test_own_object": "",
        "test_closure": "",
        "test_raises": "",
        "test_unchanged": "",
        "test_error": "",
        "test_derived": "the check compares what it makes of the results",
        "test_random": "the check compares what it makes of the results",
        "test_killed": "it ended the process",
    }
    assert kept(failed, "test_random").picks == [2, 0, 1]  # two numbers, 0 and 1
    assert found[0].elements == 0  # Store(0) takes no arrays: the smallest comes first
    for case in found:
        assert set(case.data["versions"]) >= {"python", "mlx", "mlx-lm", "os"}
        lines = case.program.read_text().splitlines()
        assert len(lines) <= 16
        assert "pytest" not in "".join(line for line in lines if "import" in line)
        compile(case.program.read_text(), "repro.py", "exec")
    assert not list((failed.clone.progress / "failures" / "day1.2").glob(".*"))


def test_the_inputs_are_those_of_the_check(failed: Toy) -> None:
    case = kept(failed, "test_later")
    arrays = load_arrays(case.folder, case.data)
    assert sorted(arrays) == ["expected", "got", "x", "x_2"]
    assert arrays["x"].dtype == mx.bfloat16
    assert case.data["arrays"]["x"]["seed"] == 1
    assert case.data["arrays"]["x_2"] | {"kind": ""} == {
        "shape": [2, 3],
        "dtype": "bfloat16",
        "seed": 2,
        "kind": "",
    }
    assert mx.array_equal(arrays["got"], arrays["x_2"])
    assert arrays["expected"].dtype == np.float64
    # What was given is kept as it was before the code wrote into it.
    before = load_arrays(kept(failed, "test_unchanged").folder, kept(failed, "test_unchanged").data)
    assert np.array_equal(np.array(before["parts_0"]).astype(np.float64), before["before"])


def test_the_program_tells_in_the_usual_words(failed: Toy) -> None:
    case = kept(failed, "test_later")
    assert case.program.read_text().splitlines()[-4:] == [
        "store = solution.Store(2)",
        "made = store.add(a.x)",
        "got = store.add(a.x_2)",
        "case.compare(got)",
    ]
    done = run(failed, case)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "still fails: the second of two additions" in done.stdout
    assert "too far from the right answer." in done.stdout
    assert re.search(r"exercises/week1/store\.py:\d+ in Store\.add\n +return self\.total", done.stdout)
    assert "Traceback" not in done.stdout


def test_pdb_steps_into_the_code(failed: Toy) -> None:
    case = kept(failed, "test_later")
    typed = "s\nn\np x.shape\nq\n"
    done = run(failed, case, "-m", "pdb", "-c", f"until {case.stop_line}", typed=typed)
    assert "-> def add(self, x):" in done.stdout
    assert "(2, 3)" in done.stdout


def test_a_check_that_ends_the_process_runs_by_itself(failed: Toy) -> None:
    done = run(failed, kept(failed, "test_killed"))
    assert done.returncode == 3
    done = run(failed, kept(failed, "test_derived"))
    assert done.returncode == 1
    assert "The result is not the expected one." in done.stdout
    done = run(failed, kept(failed, "test_random"))
    assert "checked    list(pieces([0, 1]))" in done.stdout


def test_replay_and_trace(failed: Toy) -> None:
    done = grade(failed, "replay", "--task", "1", "-v")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "10 of 10 still fail" in done.stdout
    assert "error: the sizes" not in done.stdout
    assert re.search(r"python -m pdb -c 'until \d+'", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80
    one = grade(failed, "replay", "day1.2", "test_later")
    assert "case       x (2, 3) seed 1, x_2 (2, 3) seed 2" in one.stdout.replace("\xa0", " ")
    lost = grade(failed, "replay", "day1.2", "nothing")
    assert lost.returncode == 2
    assert "Kept: " in lost.stderr

    traced = grade(failed, "trace", "day1.2", "--check", "test_later")
    assert traced.returncode == 1, traced.stdout + traced.stderr
    assert re.search(r"followed   Store\.add, exercises/week1/store\.py:\d+\n", traced.stdout)
    assert "reference:" in traced.stdout
    assert "The result is not the reference's: the largest difference is" in traced.stdout
    assert max(map(len, traced.stdout.splitlines())) <= 80
    loop = grade(failed, "trace", "day1.2", "--check", "own_object", "--solution", "reference")
    assert loop.returncode == 0, loop.stdout + loop.stderr
    assert "(round 1 of 2)" in loop.stdout
    assert "(round 2 of 2)" in loop.stdout
    assert "The check passes." in loop.stdout


def test_what_passes_is_forgotten(failed: Toy) -> None:
    failed.write("exercises/week1/store.py", STORE)
    assert "1 of 10 still fail" in grade(failed, "replay", "day1.2").stdout
    done = run(failed, kept(failed, "test_own_object"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passes now" in done.stdout
    grade(failed, "day1.2")
    names = [k.folder.name for k in cases.kept(failed.clone, failed.course.day("1.2"))]
    assert names == ["test_error"]  # its shapes do not fit whoever adds them
    assert grade(failed, "replay", "day1.1").returncode == 2


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32, mx.uint32, mx.bool_, mx.complex64])
def test_arrays_are_stored_bit_for_bit(dtype: mx.Dtype, tmp_path: Path) -> None:
    array = mx.array([[0.0, 1.5, -2.25], [float("inf"), 3.0, 1e-3]]).astype(dtype)
    if dtype == mx.bfloat16:
        array = mx.concatenate([array, mx.full((1, 3), float("nan"), dtype)])
    np.savez(tmp_path / "a.npz", **packed({"x": array}))
    with np.load(tmp_path / "a.npz") as stored:
        again = unpacked(stored["x"], kind_of(array))
    assert again.dtype == dtype
    assert mx.array_equal(again.view(mx.uint8), array.view(mx.uint8))


def test_a_damaged_case_is_passed_over(tmp_path: Path) -> None:
    course = toy.make(tmp_path / "clone")
    day = course.course.day("1.1")
    folder = cases.folder_of(course.clone, day, "test_x.py::test_a[float32-(1, 2)]")
    assert folder.name == "test_a-float32-1-2"
    folder.mkdir(parents=True)
    (folder / cases.CASE).write_text(json.dumps({"schema": 1})[:-3])
    assert cases.kept(course.clone, day) == []
    assert course.clone.progress / "failures" / "day1.1" == cases.folder_of(course.clone, day)
