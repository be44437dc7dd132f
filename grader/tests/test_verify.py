"""`authoring verify` and `ci` on toy courses: what they let pass, and every hole that they must name."""

from __future__ import annotations

import math
from pathlib import Path

import git
import mlx.core as mx
import pytest
from click.testing import CliRunner

from tinyllm.grader import catalog, edits
from tinyllm.grader.authoring import ci, cli, mutants, pictures, verify
from tinyllm.grader.authoring.cli import main
from tinyllm.grader.catalog import Misconception, Symbol
from tinyllm.grader.clone import Clone
from tinyllm.grader.errors import SpecError
from tinyllm.grader.report import CheckResult, DayReport, Failure, Outcome, TaskResult, Verdict, verdict_of
from tinyllm.grader.tests import toy

COURSE = """
title = "Toy"
[weeks]
1 = "One"
[limits]
check_seconds = 5
"""

SOUND_SPEC = """
id = "1.1"
title = "Doubling"
summary = "You double."
modules = ["week1/toy.py"]
builds_on = []

[[tasks]]
id = 1
title = "double"
goal = "Twice x."
checks = 2
symbols = ["double"]
hints = ["Once?", "1 + 1", "Look at +."]
"""

SOUND_TESTS = '''\
from tinyllm.grader.testing import FLOATS, check, sample, task


@task(1)
def test_double(solution):
    """every element is doubled"""
    for dtype in FLOATS:
        x, x64 = sample((3, 5), dtype, seed=1)
        got = solution.double(x)
        check.close(got, 2 * x64, dtype=dtype, terms=2, what="double(x)", fact="twice")


@task(1)
def test_double_a_vector(solution):
    """one axis is enough"""
    x, x64 = sample((7,), FLOATS[0], seed=2)
    check.close(solution.double(x), 2 * x64, dtype=FLOATS[0], terms=2, what="double(x)")
'''

SOUND_REFERENCE = '''\
"""Doubling."""

import mlx.core as mx


def double(x: mx.array) -> mx.array:
    """Twice x: double(x) is x + x."""
    return x + x
'''

LATER_SPEC = """
id = "1.2"
title = "Tripling"
summary = "You triple."
modules = ["week1/later.py"]
builds_on = ["1.1"]
tasks = []
"""

LATER_REFERENCE = '''\
"""Tripling."""

from .toy import double
'''

LESSON = """\
# Doubling

double(x) is x + x.

## Pitfalls

Plus is not times.

## Questions of the day

"""
LESSON += f"{toy.ASKED}\n"


def _misconception(name: str, replace: str, find: str = "return x + x") -> str:
    return (
        f'\n[[tasks.misconceptions]]\nid = "{name}"\nfind = "{find}"\nreplace = "{replace}"\n'
        'says = "This is what you get."\nlesson = "Pitfalls"\n'
    )


SOUND_EXTRAS = (
    _misconception("square", "return x * x")
    + _misconception("once", "return x")
    + _misconception("thrice", "return x + x + x")
    + _misconception("raised", "return x.no_such_attribute")
    + '\n[[facts]]\nid = "twice"\ntext = "double(x) is x + x."\nsymbols = ["double"]\n'
)


QUESTIONS = toy.questions("week1/toy.py", "return x * x", "return x + x")


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A sound day 1.1, and a day 1.2 that is not written yet."""
    clone = Clone(tmp_path)
    _put(clone, "checkpoints/course.toml", COURSE)
    _put(clone, "checkpoints/day1_1/checkpoint.toml", SOUND_SPEC + SOUND_EXTRAS)
    _put(clone, "checkpoints/day1_1/test_toy.py", SOUND_TESTS)
    _put(clone, "checkpoints/day1_1/questions.toml", QUESTIONS)
    _put(clone, "checkpoints/day1_1/lesson.md", LESSON)
    _put(clone, "reference/__init__.py", "")
    _put(clone, "reference/week1/__init__.py", "")
    _put(clone, "reference/week1/toy.py", SOUND_REFERENCE)
    return clone


def _put(clone: Clone, relative: str, text: str) -> None:
    path = clone.root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _verify(clone: Clone) -> verify.Proof:
    course = catalog.load(clone)
    return verify.verify_day(clone, course, course.days[0], jobs=2)


# ---- whole days ----


def test_a_sound_day_is_proven(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLLM_ROOT", str(clone.root))
    monkeypatch.setattr(mutants, "CHEATS", mutants.CHEATS[:2])
    _put(clone, "checkpoints/day1_2/checkpoint.toml", LATER_SPEC)
    _put(clone, "reference/week1/later.py", LATER_REFERENCE)

    result = CliRunner().invoke(main, ["verify", "1.1", "--jobs", "2", "-v"])
    lines = result.output.splitlines()
    assert result.exit_code == 0, result.output
    assert lines[0].startswith("day1.1  10 of 10 claims hold  ")
    assert "  the stub: holds" in lines
    assert "  the reference with later days unfinished: x0, test_toy.py::test_double" in lines
    assert "  task 1, misconception 'raised': exact, test_toy.py::test_double" in lines
    assert "  task 1, cheat 'zeros' for double: test_toy.py::test_double" in lines
    assert lines[-4].split() == [
        "day",
        "checks",
        "reference",
        "misconceptions",
        "named",
        "cheats",
        "taken",
        "away",
        "seconds",
    ]
    assert lines[-3].startswith("day1.1  2       0.00       4/4, least x")
    assert lines[-3].split()[-4:-1] == ["4/4", "2/2", "1/1"]
    assert lines[-2] == "likely mistakes: 4 of 4 named (100.0%); 0 wrongly"
    assert lines[-1] == "10 passed, 0 failed"


def test_the_parts_together_are_all_of_it(clone: Clone) -> None:
    course = catalog.load(clone)
    made = list(verify.claims(clone, course, course.days[0]))
    numbers = range(1, verify.PARTS + 1)
    parts = [[claim.name for claim in verify.one_part(made, number)] for number in numbers]
    right = [claim.name for claim in made if claim.kind not in verify.WRONG_CODE]
    assert right == ["the reference", "the stub"]
    wrong = [name for part in parts for name in part if name not in right]
    assert sorted([*right, *wrong]) == sorted(claim.name for claim in made)
    assert all(part[:2] == right for part in parts)
    assert {len(part) for part in parts} == {2 + 1, 2 + 2}


def test_the_commit_tells_which_part(clone: Clone) -> None:
    assert cli._part_of(clone) == 1  # no repository
    repo = git.Repo.init(clone.root)
    assert cli._part_of(clone) == 1  # no commit
    told = set()
    for number in range(60):
        # With its time given a commit has the same name everywhere.
        day, actor = "2020-01-01T00:00:00", git.Actor("a", "b@c")
        commit = repo.index.commit(
            f"number {number}", author=actor, committer=actor, author_date=day, commit_date=day
        )
        assert cli._part_of(clone) == int(commit.hexsha, 16) % verify.PARTS + 1
        told.add(cli._part_of(clone))
    assert told == set(range(1, verify.PARTS + 1))


LEAKY_SPEC = """
id = "1.1"
title = "Leaky"
summary = "Its tests see little."
modules = ["week1/toy.py"]
builds_on = []

[[tasks]]
id = 1
title = "double"
goal = "Twice x."
checks = 3
symbols = ["double"]
hints = []
""" + (
    _misconception("negative", "return -2 * x")
    + _misconception("slightly-off", "return 2.000004 * x")
    + _misconception("elsewhere", "return x / x", find="return x - x")
    + _misconception("no-module", "return x").replace('find = "', 'module = "week1/no.py"\nfind = "')
    + _misconception("forbidden", "return mx.fast.rms_norm(x, x, 1.0)")
    + """
[[tasks]]
id = 2
title = "unused"
goal = "Nobody calls it."
checks = 1
symbols = ["unused"]
hints = []
"""
)

LEAKY_TESTS = '''\
import mlx.core as mx
import numpy as np

from tinyllm.grader.testing import check, sample, task


@task(1)
def test_size(solution):
    """the size alone"""
    x, x64 = sample((3, 5), mx.float32, seed=1, mean=9.0)
    check.close(mx.abs(solution.double(x)), 2 * x64, dtype=mx.float32, terms=2, what="double(x)")


@task(2)
def test_nothing(solution):
    """nothing of the task"""
    check.exact(solution.LIMIT, 3, what="LIMIT")
'''


def test_every_hole_in_a_days_tests_is_named(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [c for c in mutants.CHEATS if c.name in ("zeros", "float32 for every dtype")]
    monkeypatch.setattr(mutants, "CHEATS", tuple(few))
    rule = '[[forbids]]\napi = "mlx.core.fast.*"\nwhy = "it is finished"\ninstead = "mx.sqrt"\n'
    _put(clone, "checkpoints/course.toml", COURSE + rule)
    _put(clone, "checkpoints/day1_1/checkpoint.toml", LEAKY_SPEC)
    _put(clone, "checkpoints/day1_1/test_toy.py", LEAKY_TESTS)
    _put(
        clone, "reference/week1/toy.py", SOUND_REFERENCE + "\n\nLIMIT = 3\n\n\ndef unused(x):\n    return x\n"
    )
    _put(clone, "checkpoints/day1_2/checkpoint.toml", LATER_SPEC)  # its module is missing

    proof = _verify(clone)
    nothing = "test_toy.py::test_nothing comes out as 'passed'"
    zeros, float32 = (c.advice for c in few)
    assert proof.problems == [
        "day1.1, the reference: task 1 promises checks = 3, and its tests hold 1: set checks = 1.",
        f"day1.1, the stub: {nothing}, not as 'not started': "
        "make the check call a symbol of its task, and list that symbol.",
        "day1.1, the reference with later days unfinished: reference/week1/later.py does not exist",
        "day1.1, task 1, misconception 'negative': it survives, every check of the task passes: "
        "add an input on which it gives another answer.",
        "day1.1, task 1, misconception 'slightly-off': the check that sees it best, test_toy.py::test_size, "
        f"is off by {_ratio_of(proof, 'slightly-off'):.1f} tolerances, and 10 are needed: "
        "choose an input that sets it further apart.",
        "day1.1, task 1, misconception 'elsewhere': misconception 'elsewhere': its find text does not occur "
        "in reference/week1/toy.py",
        "day1.1, task 1, misconception 'no-module': week1/no.py is not among the day's modules",
        "day1.1, task 1, misconception 'forbidden': test_toy.py::test_size comes out as 'refused': "
        "mlx.core.fast.rms_norm may not be used on day 1.1: it is finished.",
        "day1.1, task 1, cheat 'float32 for every dtype' for double: it passes the task: "
        f"add a check of double and {float32}.",
        f"day1.1, task 2, cheat 'zeros' for unused: it passes the task: add a check of unused and {zeros}.",
        "day1.1, task 2, cheat 'float32 for every dtype' for unused: it passes the task: "
        f"add a check of unused and {float32}.",
        "day1.1, unused replaced by one that raises: no check of the day fails: "
        "add one that calls it, or take it off the task's symbols.",
    ]
    assert 1 < _ratio_of(proof, "slightly-off") < 10
    assert verify.closing([proof]) == f"{len(proof.results) - 12} passed, 12 failed"
    assert verify.table([proof]).splitlines()[1].split()[:4] == ["day1.1", "4", "fails", "0/5"]


def _ratio_of(proof: verify.Proof, name: str) -> float:
    (ratio,) = [f.ratio for claim, f in proof.results if name in claim.name]
    assert ratio is not None
    return ratio


def test_a_reference_that_fails_and_a_stub_that_passes_fail_the_command(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYLLM_ROOT", str(clone.root))
    monkeypatch.setattr(mutants, "CHEATS", ())
    spec = SOUND_SPEC.replace('symbols = ["double"]', "symbols = []") + SOUND_EXTRAS.partition("\n[[tasks")[0]
    _put(clone, "checkpoints/day1_1/checkpoint.toml", spec)  # without symbols the stub is the reference
    _put(
        clone,
        "reference/week1/toy.py",
        SOUND_REFERENCE.replace("return x + x", "return mx.minimum(x + x, 1.5)"),
    )
    result = CliRunner().invoke(main, ["verify"])
    assert result.exit_code == 1
    assert (
        "day1.1, the reference: test_toy.py::test_double comes out as 'failed': "
        "2 of 15 elements are too far from the right answer."
    ) in result.output
    assert "day1.1, the stub: test_toy.py::test_double comes out as 'failed'" in result.output
    assert result.output.endswith("\n0 passed, 2 failed\n")


def test_a_grader_that_breaks_is_a_claim_that_fails(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutants, "CHEATS", ())
    _put(clone, "checkpoints/day1_1/checkpoint.toml", SOUND_SPEC)
    course = catalog.load(clone)
    (clone.checkpoints / "day1_1" / "test_toy.py").write_text("def broken(:\n")
    (first, *_) = verify.verify_day(clone, course, course.days[0], jobs=2).problems
    assert first.startswith(
        "day1.1, the reference: it could not be graded: the day's tests could not be collected"
    )

    def disk_full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", disk_full)
    problems = verify.verify_day(clone, course, course.days[0], jobs=2).problems
    assert "day1.1, the stub: the grader itself raised OSError: no space left" in problems


def test_ci_runs_every_step_and_tells_all_failures_at_the_end(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYLLM_ROOT", str(clone.root))
    monkeypatch.setattr(mutants, "CHEATS", mutants.CHEATS[:1])
    _put(clone, "grader/one.py", "assert True\n")
    run_one = 'import runpy\n\n\ndef test_one():\n    runpy.run_path("grader/one.py")\n'
    _put(clone, "grader/tests/test_one.py", run_one)
    assert CliRunner().invoke(main, ["stubs"]).output.endswith("4 files changed.\n")
    assert CliRunner().invoke(main, ["manifest"]).output == "written\n"
    monkeypatch.setattr(pictures, "PICTURES", ())  # they are of the real days
    fine = CliRunner().invoke(main, ["ci", "--jobs", "1"])
    titles = [
        "ruff check",
        "ruff format",
        "imports",
        "stubs",
        "specs",
        "manifest",
        "pictures",
        "cuda",
        "sanitizers",
        "tests",
        "verify",
    ]
    assert [line[3:] for line in fine.output.splitlines() if line.startswith("== ")] == [*titles, "summary"]
    assert fine.exit_code == 0, fine.output
    assert "every tenth of the wrong solutions, from number 1 on" in fine.output  # there is no commit
    assert fine.output.endswith("\n13 passed, 0 failed\n")  # 9 steps, 1 test, 3 of 8 claims

    _put(
        clone,
        "grader/tests/test_one.py",
        "import mlx\nfrom tinyllm import reference\n\n\ndef test_one():\n    assert 0\n",
    )
    _put(clone, "exercises/week1/toy.py", SOUND_REFERENCE)
    _put(clone, "checkpoints/day1_1/lesson.md", LESSON.replace("## Pitfalls", "Pitfalls"))
    spec = (SOUND_SPEC + SOUND_EXTRAS).replace("return x * x", "return x + x + 0")
    _put(clone, "checkpoints/day1_1/checkpoint.toml", spec)
    bad = CliRunner().invoke(main, ["ci", "--jobs", "1"])
    assert bad.exit_code == 1
    summary = bad.output[bad.output.index("== summary") :]
    for expected in (
        "`python -m ruff check` ended with exit code 1",
        "grader/tests/test_one.py:2: imports tinyllm.reference",
        "exercises/ differs from a fresh generation",
        "grader/upstream.sha256 is not of these files",
        "checkpoints/day1_1/lesson.md: misconception 'square' points to a heading 'Pitfalls'",
        "grader.tests.test_one::test_one",
        "day1.1, task 1, misconception 'square': it survives",
    ):
        assert f"    {expected}" in summary
    assert "passed" in summary.splitlines()[3], "ruff format has nothing to say"


# ---- wrong solutions ----

MIXED = """
import mlx.core as mx

def double(x):
    return x + x

class Shift:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x + self.by

    def twice(self, x):
        return self(self(x))

class Store:
    def __init__(self):
        self.kept = None

    def put(self, x):
        self.kept = x
        return self.kept, [x.shape[0]]

    @property
    def last(self):
        return self.kept
"""

X = mx.array([1.0, -2.0], dtype=mx.float16)


def _names(source: str) -> dict:
    names: dict = {}
    exec(source, names)
    return names


def _cheated(name: str, cheat: str) -> dict:
    (chosen,) = [c for c in mutants.CHEATS if c.name == cheat]
    return _names(mutants.cheating(MIXED, Symbol("week1/toy.py", name), chosen))


def test_a_function_can_cheat_in_every_way() -> None:
    assert _cheated("double", "zeros")["double"](X).tolist() == [0, 0]
    assert _cheated("double", "ones")["double"](x=X).tolist() == [1, 1]
    assert all(math.isnan(v) for v in _cheated("double", "NaN")["double"](X).tolist())
    assert _cheated("double", "NaN")["double"](mx.array([3])).tolist() == [-1]
    assert _cheated("double", "the input returned")["double"](X) is X
    assert _cheated("double", "the input returned")["double"](x=X) is X
    cached = _cheated("double", "the first answer cached")["double"]
    assert [cached(X).tolist(), cached(X + 1).tolist()] == [[2, -4], [2, -4]]
    wide = _cheated("double", "float32 for every dtype")["double"](X)
    assert (wide.dtype, wide.tolist()) == (mx.float32, [2, -4])


def test_a_class_cheats_when_called_and_a_method_when_it_is_the_symbol() -> None:
    names = _cheated("Shift", "zeros")
    assert names["Shift"](3)(X).tolist() == [0, 0]
    assert _cheated("Shift", "the input returned")["Shift"](3)(X) is X
    assert _cheated("Shift.twice", "zeros")["Shift"](3).twice(X).tolist() == [0, 0]
    assert _cheated("Shift.twice", "zeros")["Shift"](3)(X).tolist() == [4, 1]


def test_a_class_that_cannot_be_called_cheats_in_its_public_methods() -> None:
    store = _cheated("Store", "ones")["Store"]()
    array, sizes = store.put(X)
    assert (array.tolist(), sizes) == ([1, 1], [None])
    assert store.last is X


@pytest.mark.parametrize("name", ["double", "Shift", "Shift.twice"])
def test_a_symbol_is_taken_away(name: str) -> None:
    names = _names(mutants.raising(MIXED, Symbol("week1/toy.py", name)))
    calls = {
        "double": lambda: names["double"](X),
        "Shift": lambda: names["Shift"](1),
        "Shift.twice": lambda: names["Shift"](1).twice(X),
    }
    for other, call in calls.items():
        if other == name:
            with pytest.raises(RuntimeError, match=f"{name} was taken away"):
                call()
        elif not other.startswith(name):
            call()


def test_a_misconception_that_fits_twice_is_refused() -> None:
    mistake = Misconception("m", "week1/toy.py", "+", "-", "says")
    with pytest.raises(SpecError) as error:
        edits.misconceived("a + b + c", mistake)
    assert error.value.message == "misconception 'm': its find text occurs 2 times in reference/week1/toy.py"


# ---- the judges, on reports that a toy course cannot easily be brought to make ----


def _report(*checks: CheckResult, expected: int | None = None, verdict: Verdict | None = None) -> DayReport:
    tasks = (TaskResult(1, "t", len(checks) if expected is None else expected, checks),)
    return DayReport(
        day="1.1",
        title="T",
        solution="reference",
        graded=(),
        borrowed=(),
        only_task=None,
        tasks=tasks,
        verdict=verdict or verdict_of(tasks),
        seconds=0.1,
        problem="the compiler is missing" if verdict else "",
    )


def _check(
    outcome: Outcome, *, ratio: float | None = None, said: str = "", off: float | None = None, needs: str = ""
) -> CheckResult:
    passed = outcome is Outcome.PASSED
    failure = None if passed else Failure(summary=said, ratio=off, needs_day=needs)
    return CheckResult("test_a.py::test_x", 1, "x", outcome, ratio=ratio, failure=failure)


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (_check(Outcome.NOT_STARTED), True),
        (_check(Outcome.BLOCKED), True),
        (_check(Outcome.BLOCKED, needs="0.9"), False),
        (_check(Outcome.FAILED, said="ValueError"), False),
        (_check(Outcome.PASSED), False),
    ],
)
def test_a_stub_is_judged_by_whose_part_is_unwritten(check: CheckResult, holds: bool) -> None:
    assert (verify.judge_stub(_report(check)).problem == "") is holds


def test_the_reference_must_stay_well_inside_its_tolerance() -> None:
    assert verify.judge_reference(_report(_check(Outcome.PASSED, ratio=0.3))).ratio == 0.3
    near = verify.judge_reference(_report(_check(Outcome.PASSED), _check(Outcome.PASSED, ratio=0.31)))
    assert near.problem.startswith("test_a.py::test_x uses 0.31 of its tolerance, and 0.3 is allowed")
    skipped = verify.judge_reference(_report(_check(Outcome.NOT_RUN_HERE, said="no compiler")))
    assert skipped.problem == "test_a.py::test_x comes out as 'not run here': no compiler"
    odd = verify.judge_reference(_report(_check(Outcome.PASSED), verdict=Verdict.ENVIRONMENT))
    assert odd.problem == "its verdict is 'environment', not 'passed': the compiler is missing"


def test_the_widest_miss_decides_about_a_misconception() -> None:
    judge = verify.judge_misconception
    assert judge(_report(_check(Outcome.FAILED, off=2.0), _check(Outcome.FAILED, off=12.0))).told.startswith(
        "x12,"
    )
    assert (
        judge(_report(_check(Outcome.PASSED), _check(Outcome.TIMED_OUT))).told == "exact, test_a.py::test_x"
    )
    assert judge(_report(_check(Outcome.FAILED, off=9.0))).problem
    fault = judge(_report(_check(Outcome.FAILED), _check(Outcome.COURSE_FAULT, said="no property")))
    assert fault.problem == "test_a.py::test_x comes out as 'course fault': no property"
    cheat = verify.judge_cheat(
        _report(_check(Outcome.REFUSED, said="no")), Symbol("m", "f"), mutants.CHEATS[0]
    )
    assert cheat.problem == "test_a.py::test_x comes out as 'refused': no"


# ---- the front door's parts ----


def test_a_step_that_raises_has_failed_and_the_next_ones_still_run() -> None:
    said: list[str] = []

    def broken() -> ci.Result:
        raise RuntimeError("no ruff here")

    steps = [ci.Step("first", broken), ci.Step("second", lambda: ci.Result(3, 0))]
    assert ci.run_steps(steps, said.append) is False
    assert "    RuntimeError: no ruff here" in said
    assert any(line.startswith("passed") and line.endswith("second") for line in said)
    assert said[-1] == "3 passed, 1 failed"


def test_the_tests_step_counts_tests_and_coverage_wants_lines_run(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "clone")
    tests = (
        "import pytest\n\n\ndef test_fine():\n    pass\n\n\n@pytest.mark.skip\ndef test_skipped():\n"
        "    pass\n\n\ndef test_wrong():\n    assert False\n"
    )
    _put(clone, "grader/tests/test_it.py", tests)
    (tmp_path / "data").mkdir()
    result = ci.run_tests(clone.root, tmp_path / "data")
    assert (result.passed, result.failed) == (1, 1)
    assert result.failures[0] == "grader.tests.test_it::test_wrong"

    run_it = "import runpy\n\n\ndef test_fine():\n    runpy.run_path('grader/it.py')\n"
    _put(clone, "grader/tests/test_it.py", run_it)
    _put(clone, "grader/it.py", "if []:\n" + "    print()\n" * 20)
    _put(Clone(tmp_path), "more/.coverage.killed.pid1.Xaaa", "half written")
    result = ci.measured_tests(clone.root, tmp_path / "more")
    assert (result.passed, result.failed) == (1, 1)
    assert result.failures[0].endswith("--fail-under=90` ended with exit code 2")


def test_tests_that_left_no_report_are_no_passes(tmp_path: Path) -> None:
    assert ci._counts(tmp_path / "junit.xml") == (0, [])


def test_the_count_runs_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    for live in (True, False):
        count = cli._Count("day1.1", live=live)
        count(1, 2)
        count.end("done")
    assert capsys.readouterr().out == "\rday1.1  1/2\rday1.1  done\nday1.1  done\n"
