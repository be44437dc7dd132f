"""Whatever learner code does, grading ends in time, says what happened and leaves nothing running."""

from __future__ import annotations

import os
import py_compile
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tinyllm.grader import runner
from tinyllm.grader.report import CheckResult, DayReport, Outcome, Verdict
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy

MINUTE = 60.0


@pytest.fixture
def course(tmp_path: Path) -> Toy:
    return toy.make(tmp_path / "a clone with spaces")


def grade(course: Toy, day: str = "1.1", **options) -> DayReport:
    """Grade in this process's own child, and check what must hold after every grading."""
    before = set(psutil.Process().children(recursive=True))
    began = time.monotonic()
    report = runner.grade(course.clone, course.course, course.course.day(day), **options)
    assert time.monotonic() - began < MINUTE
    left = [p for p in psutil.Process().children(recursive=True) if p not in before and p.is_running()]
    assert not left, f"still running: {left}"
    return report


def checks(report: DayReport, task: int) -> list[CheckResult]:
    return [c for t in report.tasks if t.id == task for c in t.checks]


def outcomes(report: DayReport, task: int) -> set[Outcome]:
    return {c.outcome for c in checks(report, task)}


def failure(report: DayReport, task: int):
    found = next(c.failure for c in checks(report, task) if c.failure)
    assert found is not None
    return found


def test_right_code_passes_every_check(course: Toy) -> None:
    course.sums()
    report = grade(course)
    assert report.verdict is Verdict.PASSED
    assert (report.passed, report.ran, report.expected) == (5, 5, 5)
    assert report.graded == ("exercises/week1/sums.py",)


def test_a_grading_can_end_at_a_check_that_is_enough(course: Toy) -> None:
    course.sums(double="return x + 1")
    seen: list[CheckResult] = []

    def enough(result: CheckResult) -> bool:
        seen.append(result)
        return result.outcome is Outcome.FAILED

    report = grade(course, enough=enough)
    assert [c.outcome for c in seen].count(Outcome.FAILED) == 1
    assert seen[-1].outcome is Outcome.FAILED
    assert report.verdict is Verdict.NOT_PASSED
    assert outcomes(report, 2) == {Outcome.NOT_REACHED}


def test_a_stub_is_not_started(course: Toy) -> None:
    report = grade(course)
    assert report.verdict is Verdict.NOT_PASSED
    assert outcomes(report, 1) == outcomes(report, 2) == {Outcome.NOT_STARTED}


def test_a_wrong_result_says_where_and_shows_the_shapes(course: Toy) -> None:
    course.sums(row_sums="return mx.sum(x * x, axis=1)")
    report = grade(course)
    assert outcomes(report, 1) == {Outcome.PASSED}
    found = failure(report, 2)
    assert found.where.startswith("first at [0]: expected ")
    assert found.ratio is not None
    assert found.ratio > 10
    frame = found.frames[-1]
    assert (frame.path, frame.function) == ("exercises/week1/sums.py", "row_sums")
    assert frame.source == "return mx.sum(x * x, axis=1)"
    assert [(v.name, v.shape, v.dtype) for v in frame.values] == [("x", "(3, 5)", "float32")]


def test_an_infinite_loop_is_stopped_at_its_line(course: Toy) -> None:
    course.sums(double="turns = 0\n    while True:\n        turns += 1")
    report = grade(course, timeout=1.0)
    # The third check is not waited for: two of the task have used up their time.
    timed_out = [Outcome.TIMED_OUT, Outcome.TIMED_OUT, Outcome.NOT_REACHED]
    assert [c.outcome for c in checks(report, 1)] == timed_out
    assert report.tasks[0].outcome is Outcome.TIMED_OUT
    assert "2 checks of this task" in checks(report, 1)[2].failure.summary
    assert outcomes(report, 2) == {Outcome.PASSED}
    found = failure(report, 1)
    assert found.frames[-1].path == "exercises/week1/sums.py"
    assert found.frames[-1].source in ("while True:", "turns += 1")
    assert any(v.name == "turns" and int(v.value) > 1000 for v in found.frames[-1].values)


def test_what_hangs_again_is_waited_for_less(course: Toy) -> None:
    """In whichever task; what is merely slow has its own time."""
    course.sums(
        top="import time\n\ndef wait():\n    while True: pass",
        double="if x.dtype != mx.bfloat16: wait()\n    return x + x",
        row_sums="if x.shape[0] == 1: wait()\n    time.sleep(1.2)\n    return mx.sum(x, axis=1)",
    )
    report = grade(course, timeout=2.0)
    first, second, _ = checks(report, 1)
    slow, third = checks(report, 2)
    assert [c.outcome for c in (first, second, third)] == [Outcome.TIMED_OUT] * 3
    assert first.seconds >= 2 > max(second.seconds, third.seconds)
    assert min(second.seconds, third.seconds) >= 1
    repeated = "It had less time, as it stood where another check had used up its own."
    assert [repeated in c.failure.summary for c in (first, second, third)] == [False, True, True]
    assert third.failure.frames[-1].function == "wait"
    assert slow.outcome is Outcome.PASSED


def test_a_hang_in_c_code_is_stopped_at_its_line(course: Toy) -> None:
    # Joining a thread lock from C with signals blocked: Python's own handler never gets to run.
    course.sums(
        top="import ctypes",
        row_sums="libc = ctypes.PyDLL(None)\n    libc.sleep(600)\n    libc.sleep(600)\n    libc.sleep(600)",
    )
    report = grade(course, timeout=1.0)
    assert outcomes(report, 1) == {Outcome.PASSED}
    assert outcomes(report, 2) == {Outcome.TIMED_OUT}
    assert "sleep(600)" in failure(report, 2).frames[-1].source


@pytest.mark.parametrize("stop", ["os._exit(0)", "os._exit(3)"])
def test_an_exit_without_a_word_is_a_crash(course: Toy, stop: str) -> None:
    course.sums(top="import os", double=stop)
    report = grade(course)
    assert report.verdict is Verdict.NOT_PASSED
    assert outcomes(report, 1) == {Outcome.CRASHED}
    assert outcomes(report, 2) == {Outcome.PASSED}
    assert "exit code" in failure(report, 1).summary


@pytest.mark.parametrize("stop", ["sys.exit(0)", "exit()", "raise KeyboardInterrupt"])
def test_ending_the_program_is_a_crash(course: Toy, stop: str) -> None:
    course.sums(top="import sys", double=stop)
    report = grade(course)
    assert outcomes(report, 1) == {Outcome.CRASHED}
    assert outcomes(report, 2) == {Outcome.PASSED}
    assert failure(report, 1).frames[-1].source == stop


def test_what_is_drawn_is_the_same_in_every_grading(course: Toy) -> None:
    course.sums(double="return mx.random.normal(x.shape).astype(x.dtype)")
    first, second = ([c.failure.where for c in checks(grade(course), 1)] for _ in range(2))
    assert first == second
    assert all(first)


def test_what_ends_the_process_again_and_again_is_not_run_to_the_end(course: Toy) -> None:
    tests = toy.TESTS_1.replace("@every_dtype", '@pytest.mark.parametrize("n", range(5))')
    tests = tests.replace("(solution, dtype)", "(solution, n, dtype=mx.float32)")
    course.write("checkpoints/day1_1/test_sums.py", "import pytest\n" + tests)
    course.write("checkpoints/day1_1/checkpoint.toml", toy.DAY_1.replace("checks = 3", "checks = 5"))
    course.sums(top="import os", double="os._exit(0)")
    report = grade(course)
    outcome = [c.outcome for c in checks(report, 1)]
    assert outcome == [Outcome.CRASHED] * 3 + [Outcome.NOT_REACHED] * 2
    assert report.tasks[0].outcome is Outcome.CRASHED
    assert "3 checks of this task had ended the process" in checks(report, 1)[4].failure.summary
    assert outcomes(report, 2) == {Outcome.PASSED}


def test_a_segfault_is_a_crash_at_its_line(course: Toy) -> None:
    course.sums(top="import ctypes", row_sums="return ctypes.string_at(1)")
    report = grade(course)
    assert outcomes(report, 1) == {Outcome.PASSED}
    assert outcomes(report, 2) == {Outcome.CRASHED}
    found = failure(report, 2)
    assert "segmentation fault" in found.summary
    assert found.frames[-1].source == "return ctypes.string_at(1)"


def test_a_hundred_megabytes_of_prints_keep_both_ends(course: Toy) -> None:
    course.sums(double='print("first")\n    print("x" * 99 * 2**20)\n    print("last")\n    return x * 3')
    before = psutil.Process().memory_info().rss
    report = grade(course)
    assert psutil.Process().memory_info().rss - before < 50 * 2**20
    assert outcomes(report, 1) == {Outcome.FAILED}
    prints = failure(report, 1).prints
    assert prints.startswith("first\n")
    assert prints.endswith("last\n")
    assert "bytes left out" in prints
    assert len(prints) < 20_000


def test_too_much_memory_is_told_as_that(course: Toy) -> None:
    course.write("checkpoints/course.toml", toy.COURSE.replace("memory_gib = 1.5", "memory_gib = 0.5"))
    course.sums(row_sums="hoard = []\n    while True:\n        hoard.append(b'x' * 2**26)")
    report = grade(course)
    assert outcomes(report, 1) == {Outcome.PASSED}
    assert outcomes(report, 2) == {Outcome.OUT_OF_MEMORY}
    assert "0.5 GiB" in failure(report, 2).summary
    assert "hoard.append" in failure(report, 2).frames[-1].source


def test_a_syntax_error_is_told_with_its_line(course: Toy) -> None:
    course.sums(double="return x +")
    report = grade(course)
    assert outcomes(report, 1) == outcomes(report, 2) == {Outcome.FAILED}
    found = failure(report, 1)
    assert "exercises/week1/sums.py has a syntax error on line 9" in found.summary
    assert found.frames[-1].source == "return x +"


WRONG_BODIES = {
    "pass": "is there a `return`",
    "return x.tolist()": "not an mx.array",
    "return x[0]": "shape is wrong",
    "return (x + x).T": "transposes",
    "return (x + x).astype(mx.int32)": "dtype is wrong",
    "return x + float('nan')": "not finite",
    "return mx.full(x.shape, float('inf'), dtype=x.dtype)": "not finite",
    "return x.bad": "AttributeError",
    "return wrong_8(x)": "calls itself without end",
    "assert x.size < 0, 'too big'": "AssertionError: too big",
    "return x + x": "",
}


def test_wrong_results_are_told_apart(course: Toy) -> None:
    """Each in a function, a task and a check of its own, so that one grading finds them all."""
    numbers = range(len(WRONG_BODIES))
    spec, tests = toy.DAY_1[: toy.DAY_1.index("[[facts]]")], toy.TESTS_1[: toy.TESTS_1.index("@task(1)")]
    code = "import mlx.core as mx\n"
    for number, body in zip(numbers, WRONG_BODIES, strict=True):
        name = f"wrong_{number}"
        spec += f'[[tasks]]\nid = {number + 1}\ntitle = "{name}"\ngoal = "?"\nchecks = 1\n'
        spec += f'symbols = ["{name}"]\nhints = ["?", "?", "?"]\n'
        tests += f"\n@task({number + 1})\ndef test_{name}(solution):\n"
        tests += "    x, x64 = sample((3, 5), mx.float32, seed=1)\n"
        tests += (
            f'    check.close(solution.{name}(x), 2 * x64, dtype=mx.float32, terms=2, what="{name}(x)")\n'
        )
        code += f"\n\ndef {name}(x):\n    {body}\n"
    course.write("checkpoints/day1_1/checkpoint.toml", spec)
    course.write("checkpoints/day1_1/test_sums.py", tests)
    course.write("exercises/week1/sums.py", code)
    report = grade(course)
    for number, word in zip(numbers, WRONG_BODIES.values(), strict=True):
        assert outcomes(report, number + 1) == {Outcome.FAILED if word else Outcome.PASSED}
        if word:
            assert word in failure(report, number + 1).summary


def test_a_failure_only_in_half_precision_says_so(course: Toy) -> None:
    course.sums(double="return x + x if x.dtype == mx.float32 else (x + x) * 1.1")
    report = grade(course)
    results = {c.id.split("[")[1].rstrip("]"): c for c in checks(report, 1)}
    assert results["float32"].outcome is Outcome.PASSED
    assert "passes in float32" in results["float16"].failure.summary
    assert "bfloat16 path" in results["bfloat16"].failure.summary


def test_a_file_that_is_not_utf8(course: Toy) -> None:
    (course.clone.exercises / "week1/sums.py").write_bytes(b'"""\xff\xfe"""\n')
    report = grade(course)
    assert outcomes(report, 1) == {Outcome.FAILED}
    assert "not UTF-8" in failure(report, 1).summary


def test_an_import_cycle(course: Toy) -> None:
    course.sums(top="from .means import Mean")
    report = grade(course)
    assert outcomes(report, 1) == {Outcome.FAILED}
    assert "circle" in failure(report, 1).summary


def test_a_deleted_module(course: Toy) -> None:
    (course.clone.exercises / "week1/sums.py").unlink()
    report = grade(course)
    assert outcomes(report, 1) == {Outcome.FAILED}
    assert "exercises/week1/sums.py does not exist" in failure(report, 1).summary


def test_deleted_package_files_do_not_matter(course: Toy) -> None:
    course.sums()
    (course.clone.exercises / "week1/__init__.py").unlink()
    (course.clone.exercises / "__init__.py").unlink()
    assert grade(course).verdict is Verdict.PASSED


def test_a_renamed_function(course: Toy) -> None:
    path = course.clone.exercises / "week1/sums.py"
    path.write_text(toy.SUMS.replace("def double", "def doubled"), encoding="utf-8")
    report = grade(course)
    assert outcomes(report, 1) == {Outcome.FAILED}
    assert outcomes(report, 2) == {Outcome.PASSED}
    assert "has no `double`" in failure(report, 1).summary


def test_system_exit_at_import(course: Toy) -> None:
    course.sums(top="raise SystemExit")
    report = grade(course)
    assert outcomes(report, 1) == {Outcome.CRASHED}
    assert "ended the program" in failure(report, 1).summary


def test_an_exit_without_a_word_at_import(course: Toy) -> None:
    course.sums(top="import os; os._exit(0)")
    report = grade(course)
    assert outcomes(report, 1) == outcomes(report, 2) == {Outcome.CRASHED}


def test_a_hang_at_import_is_waited_for_once(course: Toy) -> None:
    course.sums(top="while True: pass")
    began = time.monotonic()
    report = grade(course, timeout=1.0)
    assert time.monotonic() - began < 5
    assert outcomes(report, 1) == outcomes(report, 2) == {Outcome.TIMED_OUT}
    assert "While importing" in failure(report, 1).summary


def test_a_thread_that_never_ends_changes_nothing(course: Toy) -> None:
    course.sums(
        top="import threading, time",
        double="threading.Thread(target=time.sleep, args=(600,)).start()\n    return x + x",
    )
    report = grade(course)
    assert report.verdict is Verdict.PASSED
    assert report.seconds < 10


def test_processes_that_leave_the_group_are_ended_too(course: Toy) -> None:
    start = "import subprocess, sys\n    subprocess.Popen(['sh', '-c', 'setsid sleep 600 & sleep 0.1'])"
    course.sums(double=f"{start}\n    return x + x")
    report = grade(course)
    assert report.verdict is Verdict.PASSED
    sleepers = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "600"]]
    assert not [p for p in sleepers if p.environ().get("TINYLLM_GRADING")]


def test_a_slow_check_is_measured_against_the_reference(course: Toy) -> None:
    """The floor is 1 s: code of 3 s fails beside a quick reference and passes beside a slow one."""

    def means(seconds: float) -> str:
        text = toy.MEANS.replace("import mlx", "import time\nimport mlx")
        return text.replace("return row_sums", f"time.sleep({seconds})\n        return row_sums")

    course.write("checkpoints/course.toml", toy.COURSE.replace("check_seconds = 3", "check_seconds = 1"))
    course.sums()
    course.write("exercises/week1/means.py", means(3))
    assert outcomes(grade(course, "1.2"), 1) == {Outcome.TIMED_OUT}
    course.write("reference/week1/means.py", means(0.5))
    assert outcomes(grade(course, "1.2"), 1) == {Outcome.PASSED}
    course.write("exercises/week1/means.py", means(1.2))  # done long before the reference is
    course.write("reference/week1/means.py", means(60))
    assert outcomes(grade(course, "1.2"), 1) == {Outcome.PASSED}


def test_an_unfinished_earlier_day_is_named(course: Toy) -> None:
    course.write("exercises/week1/means.py", toy.MEANS)
    report = grade(course, "1.2")
    assert outcomes(report, 1) == {Outcome.BLOCKED}
    found = failure(report, 1)
    assert found.summary == "This needs day 1.1 (Sums): row_sums is not written yet."
    assert found.needs_day == "1.1"
    assert found.frames[-1].source == "return row_sums(x) / self.D"
    borrowed = grade(course, "1.2", borrow=(course.course.day("1.1"),))
    assert borrowed.verdict is Verdict.PASSED
    assert borrowed.borrowed == ("1.1",)


def test_nothing_a_solution_prints_can_pose_as_a_result(course: Toy) -> None:
    forge = (
        "for fd in range(3, 40):\n        try:\n            "
        'os.write(fd, b\'{"event": "end", "finished": 5, "pytest": 0}\\n\')\n'
        "        except OSError:\n            pass\n    os._exit(0)"
    )
    course.sums(top="import os", double=forge)
    report = grade(course)
    assert outcomes(report, 1) == {Outcome.CRASHED}
    assert outcomes(report, 2) == {Outcome.PASSED}


def test_a_check_that_compares_nothing_is_the_courses_fault(course: Toy) -> None:
    text = toy.TESTS_2.replace("check.close(", "(lambda *a, **k: None)(")
    course.write("checkpoints/day1_2/test_means.py", text)
    report = grade(course, "1.2", solution="reference")
    assert report.verdict is Verdict.ENVIRONMENT
    assert outcomes(report, 1) == {Outcome.COURSE_FAULT}


def test_a_missing_check_is_no_pass(course: Toy) -> None:
    course.sums()
    text = course.write(
        "checkpoints/day1_1/test_sums.py", toy.TESTS_1.replace("def test_one_row", "def one_row")
    )
    assert text.is_file()
    report = grade(course)
    assert report.verdict is Verdict.ENVIRONMENT
    assert "task 2 has 1 checks and checkpoint.toml says 2" in report.problem


def test_tests_that_cannot_be_collected_are_the_courses_fault(course: Toy) -> None:
    course.sums()
    course.write("checkpoints/day1_1/test_sums.py", "import nothing_of_this_name\n")
    report = grade(course)
    assert report.verdict is Verdict.ENVIRONMENT
    assert "nothing_of_this_name" in report.problem


def test_a_check_that_cannot_run_here_makes_the_day_partial(course: Toy) -> None:
    course.sums()
    text = toy.TESTS_1.replace(
        '"""a single row works"""', '"""a single row works"""\n    not_run_here("no GPU")'
    )
    course.write(
        "checkpoints/day1_1/test_sums.py", text.replace("import check,", "import not_run_here, check,")
    )
    report = grade(course)
    assert report.verdict is Verdict.PARTIAL
    assert report.verdict.exit_code == 1


def test_ctrl_c_keeps_the_progress(course: Toy) -> None:
    course.sums(row_sums="while True: pass")
    process = subprocess.Popen(
        [*toy.PROGRAM, "day1.1"],
        cwd=course.root,
        env=course.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run in the background of a shell ignores SIGINT, and so would everything it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log = course.clone.progress / "attempts.jsonl"
    assert process.stdout is not None
    for line in process.stdout:
        if "1  double" in line:
            break
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(10) == 130
    assert "stopped by Ctrl-C" in rest
    assert "Traceback" not in rest
    assert '"interrupted"' in log.read_text()
    assert '"passed":3' in log.read_text()


def test_the_child_dies_with_the_grader(course: Toy) -> None:
    course.sums(double="print(1, flush=True)\n    while True: pass")
    process = subprocess.Popen(
        [*toy.PROGRAM, "day1.1", "--no-progress"], cwd=course.root, env=course.environment()
    )
    child = None
    for _ in range(100):
        time.sleep(0.1)
        children = psutil.Process(process.pid).children()
        if children and time.monotonic() and children[0].cpu_times().user > 0.5:
            child = children[0]
            break
    assert child is not None
    process.kill()
    process.wait()
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_printing_without_end_is_stopped_too(course: Toy) -> None:
    course.sums(double="while True:\n        print('again ' * 1000)")
    report = grade(course, timeout=1.0)
    assert outcomes(report, 1) == {Outcome.TIMED_OUT, Outcome.NOT_REACHED}
    assert outcomes(report, 2) == {Outcome.PASSED}


def test_an_edit_within_the_same_second_is_what_gets_graded(course: Toy) -> None:
    """Bytecode is dated in whole seconds and sized: an old .pyc of the same size must not run."""
    course.sums(double="return x * x")
    file = course.clone.exercises / "week1/sums.py"
    py_compile.compile(str(file))
    stamp = file.stat()
    course.sums(double="return x + x")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert file.stat().st_size == stamp.st_size
    assert grade(course).verdict is Verdict.PASSED


def test_grading_leaves_no_bytecode_in_the_exercises(course: Toy) -> None:
    course.sums()
    grade(course)
    assert not list(course.clone.exercises.rglob("__pycache__"))


def test_checks_that_passed_are_no_pass_without_the_signature(course: Toy) -> None:
    """The process ends after the last check has reported, while the run is being signed off."""
    top = (
        "import os, sys\nclass Dying:\n    flushes = 0\n    def write(self, text): return len(text)\n"
        "    def flush(self):\n        self.flushes += 1\n        if self.flushes == 2: os._exit(0)\n"
    )
    course.sums(top=top, row_sums="if x.shape[0] == 1: sys.stdout = Dying()\n    return mx.sum(x, axis=1)")
    report = grade(course)
    assert outcomes(report, 1) == {Outcome.PASSED}
    assert [c.outcome for c in checks(report, 2)] == [Outcome.PASSED, Outcome.CRASHED]
    assert report.verdict is Verdict.NOT_PASSED
