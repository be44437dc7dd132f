"""Gradings that are forked from a warm process: the same verdicts, and nothing goes from one to the next."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tinyllm.grader import runner
from tinyllm.grader.processes import TOKEN_VARIABLE
from tinyllm.grader.report import CheckResult, DayReport, Outcome, Verdict
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy
from tinyllm.grader.warm import Warm

linux = pytest.mark.skipif(sys.platform != "linux", reason="forked from a warm process on Linux only")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """One for all tests: none may leave anything behind for the next."""
    course = toy.make(tmp_path_factory.mktemp("warm") / "a clone with spaces")
    with Warm(course.clone, course.course.day("1.1")) as warm:
        yield warm


@pytest.fixture
def course(warm: Warm) -> Toy:
    course = Toy(warm.clone)
    course.write("exercises/week1/sums.py", toy.SUMS_STUB)
    for path, text in (
        ("checkpoints/course.toml", toy.COURSE),
        ("checkpoints/day1_1/test_sums.py", toy.TESTS_1),
    ):
        if (course.root / path).read_text(encoding="utf-8") != text:  # else the warm process starts anew
            course.write(path, text)
    return course


def grade(course: Toy, warm: Warm, **options) -> DayReport:
    """Grade with the warm process, which must have started every child, and look for what is left over."""
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    launched = warm.launched
    day = course.course.day(warm.day.id)
    options.setdefault("timeout", 60.0)  # a busy machine is no finding
    report = runner.grade(course.clone, course.course, day, launch=warm.launch, **options)
    assert warm.launched > launched
    mine = psutil.Process().children(recursive=True)
    left = [p for p in mine if p.pid not in before | {warm.pid} and p.status() != psutil.STATUS_ZOMBIE]
    assert not left
    return report


def outcomes(report: DayReport, task: int) -> list[Outcome]:
    return [c.outcome for t in report.tasks if t.id == task for c in t.checks]


def failure(report: DayReport):
    return next(c.failure for t in report.tasks for c in t.checks if c.failure)


@linux
def test_one_process_serves_many_gradings(course: Toy, warm: Warm) -> None:
    assert warm.forks, warm.why_not
    pid, launched = warm.pid, warm.launched
    assert grade(course, warm).verdict is Verdict.NOT_PASSED
    course.sums()
    assert grade(course, warm).verdict is Verdict.PASSED
    course.sums(double="return x * x")
    wrong = grade(course, warm)
    assert outcomes(wrong, 1) == [Outcome.FAILED] * 3
    assert outcomes(wrong, 2) == [Outcome.PASSED] * 2
    assert failure(wrong).frames[-1].source == "return x * x"
    assert (warm.pid, warm.launched) == (pid, launched + 3)


@linux
def test_a_grading_sees_nothing_of_the_one_before(course: Toy, warm: Warm) -> None:
    trace = (
        "import builtins, os, signal, sys\n"
        "before = [os.environ.get('LEFT'), getattr(builtins, 'left', 0), getattr(mx, 'left', 0), "
        "os.getcwd(), signal.getsignal(signal.SIGALRM), 'left' in sys.modules, '/nowhere' in sys.path, "
        "[f for f in range(3, 64) if os.path.exists(f'/proc/self/fd/{f}')]]\n"
        "os.environ['LEFT'] = builtins.left = mx.left = 'yes'\n"
        "signal.signal(signal.SIGALRM, lambda *a: None); sys.modules['left'] = sys\n"
        "os.chdir('/'); sys.path.insert(0, '/nowhere')\n"
        "left = open('/dev/null'); mx.eval(mx.ones((4, 4)) @ mx.ones((4, 4)))\n"
        "raise ValueError(str(before))"
    )
    course.sums(top=trace)
    first, second = (failure(grade(course, warm)).summary for _ in range(2))
    assert "None, 0, 0" in first
    assert first == second
    course.sums()
    assert grade(course, warm).verdict is Verdict.PASSED


@linux
@pytest.mark.parametrize(
    ("top", "body", "outcome"),
    [
        ("import os", "os._exit(0)", Outcome.CRASHED),
        ("import ctypes", "return ctypes.string_at(1)", Outcome.CRASHED),
        ("import os, signal", "os.kill(os.getpid(), signal.SIGKILL)", Outcome.CRASHED),
        ("", "while True: pass", Outcome.TIMED_OUT),
        ("", "hoard = []\n    while True: hoard.append(b'x' * 2**26)", Outcome.OUT_OF_MEMORY),
    ],
    ids=["exit", "segfault", "kill", "hang", "memory"],
)
def test_an_end_of_one_grading_does_the_next_no_harm(
    course: Toy, warm: Warm, top: str, body: str, outcome: Outcome
) -> None:
    course.write("checkpoints/course.toml", toy.COURSE.replace("memory_gib = 1.5", "memory_gib = 0.7"))
    course.sums(top=top, row_sums=body)
    report = grade(course, warm, timeout=1.0 if outcome is Outcome.TIMED_OUT else 60.0)
    assert outcomes(report, 1) == [Outcome.PASSED] * 3
    assert outcomes(report, 2)[0] is outcome
    pid = warm.pid
    course.sums()
    assert grade(course, warm).verdict is Verdict.PASSED
    assert warm.pid == pid


@linux
def test_what_left_the_group_is_ended_also_without_a_new_program(course: Toy, warm: Warm) -> None:
    """A daemon: forked twice, in a session of its own, never executed anything."""
    place = str(course.root / "daemon")  # where it writes its number
    daemon = (
        "if os.fork() == 0:\n        os.setsid()\n        if os.fork():\n            os._exit(0)\n"
        f"        open({place!r}, 'w').write(str(os.getpid()))\n        time.sleep(600)\n"
        f"    while not os.path.exists({place!r}): time.sleep(0.01)\n    return x + x"
    )
    course.sums(top="import os, time", double=daemon)
    grade(course, warm)
    assert not psutil.pid_exists(int(Path(place).read_text() or 0))


@linux
def test_a_forked_child_carries_its_own_token(course: Toy, warm: Warm) -> None:
    say = f"print('TOKEN', open('/proc/self/environ').read().partition('{TOKEN_VARIABLE}=')[2][:16])"
    course.sums(row_sums=f"{say}\n    return x")
    tokens = [failure(grade(course, warm)).prints.split("TOKEN ")[1][:16] for _ in range(2)]
    assert len(set(tokens) - {"0" * 16}) == 2


@linux
def test_nothing_a_solution_writes_can_pose_as_a_result(course: Toy, warm: Warm) -> None:
    forge = (
        "for fd in range(3, 40):\n        try:\n            "
        'os.write(fd, b\'{"event": "end", "finished": 5, "pytest": 0}\\n\')\n'
        "        except OSError:\n            pass\n    os._exit(0)"
    )
    course.sums(top="import os", double=forge)
    report = grade(course, warm)
    assert set(outcomes(report, 1)) == {Outcome.CRASHED}
    assert set(outcomes(report, 2)) == {Outcome.PASSED}
    course.sums()
    assert grade(course, warm).verdict is Verdict.PASSED


@linux
def test_a_forbidden_api_is_refused(course: Toy, warm: Warm) -> None:
    course.sums(double="return mx.fast.rms_norm(x, None, 1e-5)")
    assert set(outcomes(grade(course, warm), 1)) == {Outcome.REFUSED}


@linux
def test_overlays_and_single_tasks(course: Toy, warm: Warm) -> None:
    other = course.write("other.py", toy.SUMS.replace("x + x", "x * x"))
    report = grade(course, warm, overlays={"week1/sums.py": other})
    assert set(outcomes(report, 1)) == {Outcome.FAILED}
    course.sums()
    report = grade(course, warm, only_task=2)
    assert [t.id for t in report.tasks] == [2]
    assert report.verdict is Verdict.PASSED


@linux
def test_the_warm_process_starts_anew_for_other_tests_and_after_its_death(course: Toy, warm: Warm) -> None:
    course.sums()
    assert grade(course, warm).verdict is Verdict.PASSED
    first = warm.pid
    os.kill(first, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(first)], timeout=5)
    assert grade(course, warm).verdict is Verdict.PASSED
    second = warm.pid
    course.write("checkpoints/day1_1/test_sums.py", toy.TESTS_1.replace("seed=1", "seed=11"))
    course.sums(double="return x * x")
    assert grade(course, warm).verdict is Verdict.NOT_PASSED
    assert len({first, second, warm.pid}) == 3


KEPT = """
import os, pathlib
from tinyllm.grader.testing import kept

@kept
def answer(shape):
    with open(pathlib.Path(__file__).parents[2] / "computed", "a") as log:
        log.write(f"{os.getpid()} ")
    return (mx.ones(shape) * 3).astype(mx.bfloat16)

@task(2)
def test_kept(solution):
    \"\"\"three and three\"\"\"
    want = answer((2, 3))
    check.exact(solution.double(want), mx.full((2, 3), 6, mx.bfloat16), what="double(x)")
    check.exact(answer((2, 3)), mx.full((2, 3), 3, mx.bfloat16), what="x after double(x)")
"""


@linux
def test_what_checks_keep_is_computed_once_for_all_gradings(tmp_path: Path) -> None:
    course = toy.make(tmp_path / "clone")
    course.write("checkpoints/day1_1/test_sums.py", toy.TESTS_1 + KEPT)
    course.write("checkpoints/day1_1/checkpoint.toml", toy.DAY_1.replace("checks = 2", "checks = 3"))
    course.sums(double="x += x\n    return x")  # into its caller's array
    with Warm(course.clone, course.course.day("1.1")) as warm:
        assert warm.forks, warm.why_not
        end = time.monotonic() + 60
        while not (course.root / "computed").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert psutil.wait_procs(psutil.Process(warm.pid).children(), timeout=60)[1] == []
        for _ in range(3):
            report = runner.grade(course.clone, course.course, warm.day, launch=warm.launch, timeout=60.0)
            assert outcomes(report, 2) == [Outcome.PASSED] * 3
    assert len((course.root / "computed").read_text().split()) == 1


def waiting(warm: Warm, count: int) -> list[psutil.Process]:
    """The forks that wait for a job, once there are `count`. They are this process's own children."""
    assert warm.forks, warm.why_not
    warm.have_ready(count)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = []
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if "tinyllm.grader.warm_child" in process.cmdline() and process.pid != warm.pid:
                    found.append(process)
        if len(found) == count:
            return found
        time.sleep(0.02)
    raise AssertionError("no forks that wait")


@linux
def test_a_grading_takes_a_fork_that_waits_for_it(course: Toy, warm: Warm) -> None:
    course.sums(row_sums="import os\n    print('RAN IN', os.getpid())\n    return x")
    warm.refresh()
    ready = {p.pid for p in waiting(warm, 2)}
    ran = [int(failure(grade(course, warm)).prints.split("RAN IN ")[1].split()[0]) for _ in range(3)]
    assert set(ran[:2]) == ready
    assert ran[2] not in ready


@linux
def test_where_a_waiting_fork_has_died_another_grades(course: Toy, warm: Warm) -> None:
    course.sums()
    warm.refresh()
    for process in waiting(warm, 2):
        process.kill()
    pid, launched = warm.pid, warm.launched
    assert grade(course, warm).verdict is Verdict.PASSED
    assert (warm.pid, warm.launched) == (pid, launched + 1)


@linux
@pytest.mark.parametrize("end", ["close", "kill"])
def test_no_fork_outlives_the_warm_process_that_it_waits_for(course: Toy, end: str) -> None:
    with Warm(course.clone, course.course.day("1.1")) as other:
        assert other.forks
        before = {p.pid for p in psutil.Process().children()}
        other.have_ready(3)
        while len(new := [p for p in psutil.Process().children() if p.pid not in before]) < 2:
            time.sleep(0.02)
        if end == "kill":
            os.kill(other.pid, signal.SIGKILL)
        else:
            other.close()
    assert psutil.wait_procs(new, timeout=10)[1] == []


@linux
def test_tests_that_compute_as_they_are_imported_are_not_forked(course: Toy) -> None:
    course.write("checkpoints/day1_1/test_sums.py", toy.TESTS_1 + "\nmx.eval(mx.ones((2,)) + 1)\n")
    course.sums()
    with Warm(course.clone, course.course.day("1.1")) as warm:
        assert not warm.forks
        assert "compute" in warm.why_not
        for _ in range(2):
            assert grade(course, warm).verdict is Verdict.PASSED


def test_where_nothing_is_forked_each_process_grades_once(course: Toy) -> None:
    course.sums()
    with Warm(course.clone, course.course.day("1.1"), fork=False) as warm:
        for _ in range(2):
            assert grade(course, warm).verdict is Verdict.PASSED
        course.sums(top="import os", double="os._exit(3)")
        assert set(outcomes(grade(course, warm), 1)) == {Outcome.CRASHED}
        assert not warm.forks


def test_a_job_that_it_is_not_for_gets_a_plain_child(course: Toy, warm: Warm) -> None:
    day = course.course.day("1.2")
    launched = warm.launched
    report = runner.grade(course.clone, course.course, day, solution="reference", launch=warm.launch)
    assert report.verdict is Verdict.PASSED
    assert warm.launched == launched


@linux
def test_the_death_of_the_grader_ends_all(course: Toy) -> None:
    course.sums(row_sums="print(1)\n    while True: pass")
    script = (
        "import sys\nfrom pathlib import Path\nfrom tinyllm.grader import catalog, runner\n"
        "from tinyllm.grader.clone import Clone\nfrom tinyllm.grader.warm import Warm\n"
        "clone = Clone(Path(sys.argv[1])); course = catalog.load(clone); day = course.day('1.1')\n"
        "warm = Warm(clone, day)\n"
        "def told(event):\n"
        "    if isinstance(event, runner.Started) and event.task == 2: print('hangs', flush=True)\n"
        "runner.grade(clone, course, day, launch=warm.launch, on_event=told)\n"
    )
    program = [sys.executable, "-P", "-c", script, str(course.root)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as grader:
        assert grader.stdout is not None
        assert grader.stdout.readline() == "hangs\n"
        children = psutil.Process(grader.pid).children(recursive=True)
        assert len(children) == 2
        grader.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


# ---- tasks side by side, in another order, and stopped


@linux
def test_tasks_side_by_side_give_the_same_report(course: Toy, warm: Warm) -> None:
    course.sums(row_sums="return mx.sum(x, axis=0)")
    alone = grade(course, warm)
    order: list[str] = []

    def told(event: runner.Event) -> None:
        if isinstance(event, CheckResult):
            order.append(event.id)

    launched = warm.launched
    first, second = ({c.id for c in t.checks} for t in alone.tasks)
    cut = min(first)
    shared = grade(course, warm, shares=[first - {cut}, second | {cut}], on_event=told)
    assert warm.launched == launched + 2
    assert [[(c.id, c.outcome) for c in t.checks] for t in shared.tasks] == [
        [(c.id, c.outcome) for c in t.checks] for t in alone.tasks
    ]
    assert sorted(order) == sorted(c.id for t in alone.tasks for c in t.checks)
    course.sums(top="import os", double="os._exit(0)", row_sums="while True: pass")
    report = grade(course, warm, shares=[first, second], timeout=0.5)
    assert set(outcomes(report, 1)) == {Outcome.CRASHED}
    assert set(outcomes(report, 2)) == {Outcome.TIMED_OUT}


@linux
def test_a_check_that_is_in_no_share_runs_as_well(course: Toy, warm: Warm) -> None:
    course.sums()
    alone = grade(course, warm)
    first, second = ({c.id for c in t.checks} for t in alone.tasks)
    assert grade(course, warm, shares=[first - {min(first)}, second]).verdict is Verdict.PASSED


def test_chosen_tasks_run_first(course: Toy) -> None:
    course.sums()
    order: list[int] = []
    report = runner.grade(
        course.clone,
        course.course,
        course.course.day("1.1"),
        first_tasks=[2],
        on_event=lambda e: order.append(e.task) if isinstance(e, runner.Started) else None,
    )
    assert order == [2, 2, 1, 1, 1]
    assert [t.id for t in report.tasks] == [1, 2]
    assert report.verdict is Verdict.PASSED


def test_a_grading_can_be_called_off(course: Toy, warm: Warm) -> None:
    course.sums(row_sums="while True: pass")
    began = time.monotonic()
    with pytest.raises(runner.Cancelled):
        grade(course, warm, stop=lambda: time.monotonic() > began + 0.5)
    course.sums()
    assert grade(course, warm).verdict is Verdict.PASSED
