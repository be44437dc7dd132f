"""The program from outside, on a toy course: exit codes, what it prints, what it writes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tinyllm.grader import attempts
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy

ESCAPE = "\x1b["


@pytest.fixture
def course(tmp_path: Path) -> Toy:
    return toy.make(tmp_path / "my clone", git=True)


@pytest.fixture(scope="module")
def graded_course(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Graded once: for commands that must change nothing."""
    course = toy.make(tmp_path_factory.mktemp("graded") / "my clone", git=True)
    course.grade("1.1")
    return course


def events(course: Toy, kind: str) -> list[attempts.Event]:
    return [e for e in attempts.read(course.clone)[0] if e.kind == kind]


def tracker(course: Toy) -> str:
    return (course.clone.progress / "tiny-llm-tracker.md").read_text(encoding="utf-8")


# ---- grading


def test_from_not_started_to_passed(course: Toy) -> None:
    first = course.grade()
    assert first.returncode == 1
    assert "day1.1: not passed yet, 0 of 2 tasks" in first.stdout
    assert "tinyllm-grade read day1.1" in first.stdout
    course.sums(row_sums="return mx.sum(x, axis=0)")
    second = course.grade("1.1")
    assert second.returncode == 1
    assert "expected   mx.array (3,) float32" in second.stdout
    assert "got        mx.array (5,) float32" in second.stdout
    assert re.search(r"exercises/week1/sums\.py:\d+ in row_sums\n +return mx.sum\(x, axis=0\)", second.stdout)
    assert "next       tinyllm-grade hint day1.1 --task 2" in second.stdout
    course.sums()
    third = course.grade("day1.1")
    assert third.returncode == 0
    assert "graded exercises/week1/sums.py: 5 of 5 checks passed" in third.stdout
    assert "day1.1: passed" in third.stdout
    assert "attempt 3" in third.stdout
    assert [e.verdict for e in events(course, "attempt")] == ["not passed", "not passed", "passed"]
    assert "- [x]" in tracker(course)
    assert "day1.2: not passed yet" in course.grade().stdout
    for output in (first, second, third):
        assert output.stderr == ""
        assert ESCAPE not in output.stdout
        assert max(map(len, output.stdout.splitlines())) <= 80


def test_a_failure_is_about_twelve_lines(course: Toy) -> None:
    """Golden: word for word what a learner reads."""
    course.sums(double="y = x * x\n    return y")
    output = course.grade("day1.1", "--no-progress").stdout
    shown = re.sub(r"\d+\.\d s$", "S s", output, flags=re.M)
    assert shown == GOLDEN


GOLDEN = """
day1.1  Sums
grading exercises/week1/sums.py
  ✗ 1  double                                                     0 of 3 checks
  ✓ 2  row sums                                                   2 of 2 checks

  task 1, failed: every element is doubled [float32]  (and 2 more checks)
    Every element is too far from the right answer.
    checked    double(x), x (3, 5)
    where      first at [0, 0]: expected 0.691168, got 0.119428
    error      largest error 4.3 at [0, 3]; tolerance 1.5e-06 (float32, sums of
               2)
    your line  exercises/week1/sums.py:10 in double
                 return y
    there      float32: x (3, 5) · y (3, 5)
    rule       `double` keeps its input's dtype.
    next       tinyllm-grade hint day1.1 --task 1

graded exercises/week1/sums.py: 2 of 5 checks passed, S s
day1.1: not passed yet, 1 of 2 tasks

likely mistake
  task 1     This is what you get when you square.
  because    All 3 failing checks give just what this mistake gives.
"""


def test_one_task_alone(course: Toy) -> None:
    course.sums(double="return x")
    done = course.grade("1.1", "--task", "2")
    assert done.returncode == 0
    assert "day1.1, task 2: passed" in done.stdout
    assert "double" not in done.stdout
    assert "2 of 2 checks" in done.stdout
    assert "- [x] task 2" in tracker(course).lower().replace("  ", " ") or "[x]" in tracker(course)


def test_the_reference_is_graded_by_name_and_not_recorded(course: Toy) -> None:
    done = course.grade("week1", "--solution", "reference")
    assert done.returncode == 0
    assert "grading reference/week1/sums.py" in done.stdout
    assert not events(course, "attempt")


def test_borrowing_an_earlier_day(course: Toy) -> None:
    course.write("exercises/week1/means.py", toy.MEANS)
    blocked = course.grade("1.2")
    assert blocked.returncode == 1
    assert "This needs day 1.1 (Sums): row_sums is not written yet." in blocked.stdout
    assert "--borrow day1.1" in blocked.stdout
    done = course.grade("1.2", "--borrow", "1.1")
    assert done.returncode == 0
    assert "with day1.1 from the reference" in done.stdout
    assert course.grade("1.2", "--borrow", "week1").returncode == 0  # all of the week but 1.2 itself
    refused = course.grade("1.1", "--borrow", "1.1")
    assert refused.returncode == 2
    assert "would grade the reference" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["day7.7"], "There is no day called 'day7.7'. Days: day1.1 day1.2"),
        (["1.1", "--task", "9"], "day1.1 has no task 9"),
        (["all", "--task", "1"], "--task goes with one day"),
        (["1.1", "--frobnicate"], "No such option"),
        (["1.1", "--timeout", "0"], "--timeout"),
        (["hint", "1.1", "--task", "9"], "has no task 9"),
        (["diff", "1.1", "--task", "9"], "has no task 9"),
        (["restore", "zzz"], "tinyllm-grade history"),
        (["reset", "1.7"], "There is no day called '1.7'"),
    ],
)
def test_bad_usage_is_told_and_changes_nothing(graded_course: Toy, arguments: list[str], words: str) -> None:
    progress = graded_course.clone.progress
    before = {p: p.read_bytes() for p in progress.iterdir() if p.is_file()}
    done = graded_course.grade(*arguments)
    assert done.returncode == 2
    assert words in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr
    assert {p: p.read_bytes() for p in progress.iterdir() if p.is_file()} == before


def test_a_broken_course_is_no_traceback(course: Toy) -> None:
    course.write("checkpoints/day1_1/checkpoint.toml", "id = 3")
    done = course.grade("1.1")
    assert done.returncode == 3
    assert "checkpoints/day1_1/checkpoint.toml: id: must be a string, not 3" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_progress_writes_nothing(course: Toy) -> None:
    assert course.grade("1.1", "--no-progress").returncode == 1
    assert sorted(p.name for p in course.clone.progress.iterdir()) == [".gitkeep"]
    assert "nothing" not in course.grade("history").stderr


def test_verbose_shows_every_failure_with_its_traceback(course: Toy) -> None:
    course.sums(
        double="print('seen', x.shape)\n    return helper(x)", top="\ndef helper(x):\n    return x.bad\n"
    )
    brief = course.grade("1.1").stdout
    full = course.grade("1.1", "-v").stdout
    assert brief.count("AttributeError") == 1
    assert full.count("Traceback") == 3
    assert "seen (3, 5)" in brief
    assert "in helper" in brief
    assert "in double" not in brief
    assert "in double" in full


def test_a_forbidden_api_is_named_with_its_line_and_the_way_out(course: Toy) -> None:
    course.sums(
        row_sums="f = getattr(mx.fast, 'rms_norm')\n    f(x, None, 1e-5)\n    return mx.sum(x, axis=1)"
    )
    done = course.grade("1.1")
    text = " ".join(done.stdout.split())
    assert "mlx.core.fast.rms_norm may not be used on day 1.1: it is finished." in text
    assert "use instead: mx.matmul" in text
    assert re.search(r"exercises/week1/sums\.py:\d+ in row_sums f\(x, None, 1e-5\)", text)
    assert "2  row sums" in done.stdout
    course.sums(top="import numpy as np", double="return mx.array(np.array(x) * 2)")
    text = " ".join(course.grade("1.1").stdout.split())
    assert "numpy may not be used on day 1.1: it is not MLX." in text
    assert "exercises/week1/sums.py:4" in text


def test_an_edited_day_is_stale_and_a_later_grade_finds_the_break(course: Toy) -> None:
    course.sums()
    course.write("exercises/week1/means.py", toy.MEANS)
    assert course.grade("all").returncode == 0
    course.sums(double="return x * 3")
    assert "passed, edited since" in course.grade("list").stdout
    done = course.grade("1.2")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert "day1.1 had passed, its files changed since, and now task 1 (double) does not pass" in text
    assert [e.regression for e in events(course, "attempt")] == [False, False, False, True]
    assert "passed, now broken" in course.grade("list").stdout
    assert "had passed" not in course.grade("1.2").stdout  # told once: nothing changed since
    course.sums(double="return 2 * x")
    assert "had passed" not in course.grade("1.2").stdout
    assert re.search(r"1\.1 +Sums +passed, 2/2 tasks", course.grade("list").stdout)


def test_graders_at_once_log_an_attempt_each(course: Toy) -> None:
    course.sums()
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: course.grade("1.1"), range(4)))
    assert [d.returncode for d in done] == [0] * 4
    read, unreadable = attempts.read(course.clone)
    assert len([e for e in read if e.kind == "attempt"]) == 4
    assert len([e for e in read if e.kind == "snapshot"]) == 4
    assert not unreadable
    assert re.search(r"\| +4 +\|", tracker(course))


# ---- where it runs


def test_without_git_all_works_and_is_said_once(tmp_path: Path) -> None:
    course = toy.make(tmp_path / "plain")
    course.sums()
    environment = {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    first = course.grade("1.1", **environment)
    assert first.returncode == 0
    assert "No snapshots of your code are kept" in first.stdout
    second = course.grade("1.1", **environment)
    assert "No snapshots" not in second.stdout
    assert course.grade("history", **environment).returncode == 3
    done = course.grade("reset", "1.1", **environment)
    assert done.returncode == 0
    assert "kept in progress/saved/" in done.stdout
    assert "NotImplementedError" in (course.clone.exercises / "week1/sums.py").read_text()


def test_plain_signs_where_the_terminal_has_no_unicode(course: Toy) -> None:
    course.sums(double="return x")
    done = course.grade("1.1", PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert done.stdout.isascii()
    assert "  x 1  double" in done.stdout


def test_a_terminal_has_colours_unless_refused(course: Toy) -> None:
    def in_terminal(**environment: str) -> str:
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [*toy.PROGRAM, "1.1", "--no-progress"],
            env=course.environment(TERM="xterm-256color", COLUMNS="80", **environment),
            cwd=course.root,
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        seen = b""
        while True:
            try:
                chunk = os.read(master, 4096)
            except OSError:
                break
            if not chunk:
                break
            seen += chunk
        process.wait()
        os.close(master)
        return seen.decode()

    course.sums(double="return x")
    colours = in_terminal()
    assert f"{ESCAPE}31m" in colours
    assert "of 5  task" in colours  # the live line
    plain = in_terminal(NO_COLOR="1")
    assert f"{ESCAPE}31m" not in plain
    assert "day1.1: not passed yet" in plain


def test_a_pipe_that_closes_early_is_no_traceback(course: Toy) -> None:
    command = f"{' '.join(map(repr, toy.PROGRAM))} read day1.1 | true"
    done = subprocess.run(
        command,
        shell=True,
        cwd=course.root,
        env=course.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr


# ---- finding the way


def test_list(course: Toy) -> None:
    output = course.grade("list").stdout
    assert "week 1  Toys" in output
    assert re.search(r"^> 1\.1 +Sums +not started, 0/2 tasks$", output, re.M)
    assert "next: tinyllm-grade read day1.1" in output


def test_read_is_recorded_and_plain_when_piped(course: Toy) -> None:
    assert course.grade("read", "1.1").stdout == toy.LESSON + "\n"
    assert course.grade("read").stdout == toy.LESSON + "\n"
    assert [e.day for e in events(course, "read")] == ["1.1", "1.1"]


def test_hints_climb_and_are_counted(course: Toy) -> None:
    said = [course.grade("hint", "1.1", "--task", "2").stdout for _ in range(4)]
    assert "hint 1/3   Which axis?" in said[0]
    assert "more       tinyllm-grade hint day1.1 --task 2" in said[0]
    assert "hint 3/3   mx.sum has an axis argument." in said[2]
    assert "next       tinyllm-grade diff day1.1 --task 2" in said[2]
    assert "once more" in said[3]
    assert [e.hint for e in events(course, "hint")] == [1, 2, 3, 3]
    assert "3 hints" in course.grade("list").stdout
    again = course.grade("hint", "1.1", "--task", "2", "--again").stdout
    assert "hint 1     Which axis?" in again
    assert "No hint taken yet" in course.grade("hint", "1.1", "--again").stdout


def test_a_hint_without_a_task_is_for_the_first_not_passed(course: Toy) -> None:
    course.sums(row_sums="return x")
    course.grade("1.1")
    assert "task 2: row sums" in course.grade("hint").stdout


def test_diff_shows_the_solution_and_records_the_look(course: Toy) -> None:
    course.sums(double="return x * 2")
    output = course.grade("diff", "1.1", "--task", "1").stdout
    assert "return x * 2" in output
    assert "return x + x" in output
    assert "row_sums" not in output
    assert ESCAPE not in output
    assert [e.task for e in events(course, "diff")] == [1]
    stat = course.grade("diff", "1.1", "--stat").stdout
    assert re.search(r"double +\+1 +-1", stat)
    assert "before" in tracker(course)


def test_history_restore_and_reset(course: Toy) -> None:
    course.sums(double="return x * 3")
    course.grade("1.1")
    course.sums()
    course.grade("1.1")
    history = course.grade("history").stdout
    assert re.search(r"^ +2 +[0-9a-f]+ +.*day1.1: passed, 5 of 5 checks$", history, re.M)
    file = course.clone.exercises / "week1/sums.py"
    restored = course.grade("restore", "1").stdout
    assert "written    exercises/week1/sums.py" in restored
    assert "return x * 3" in file.read_text()
    assert "Nothing to change" in course.grade("restore", "1").stdout
    assert "Nothing to change" in course.grade("restore", "-1").stdout
    reset = course.grade("reset", "day1.1")
    assert reset.returncode == 0
    assert file.read_text() == toy.SUMS_STUB
    back = re.search(r"tinyllm-grade restore (\w+)", reset.stdout)
    assert back
    assert course.grade("restore", back[1], "--day", "1.1").returncode == 0
    assert "return x * 3" in file.read_text()
    kinds = [e.kind for e in attempts.read(course.clone)[0]]
    assert kinds.count("restore") == 4
    assert kinds.count("reset") == 1
    status = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"],
        cwd=course.root,
        capture_output=True,
        text=True,
    )
    assert status.stdout.strip() == "M exercises/week1/sums.py"


def test_doctor_says_what_is_here(course: Toy) -> None:
    done = course.grade("doctor")
    assert re.search(r"ok +Python: 3\.\d+", done.stdout)
    assert re.search(r"ok +MLX: \d", done.stdout)
    assert re.search(r"ready +days 1\.1 to 1\.2 need Python and MLX", done.stdout)
    assert done.returncode == 3  # this program is installed from another clone than the toy
    assert "MISSING    this program" in done.stdout


def test_help_and_version(course: Toy) -> None:
    assert "130 interrupted" in " ".join(course.grade("--help").stdout.split())
    assert "--borrow DAY" in course.grade("grade", "--help").stdout
    assert re.search(r"\d+\.\d+\.\d+", course.grade("--version").stdout)


def test_a_log_line_that_cannot_be_read_is_said(course: Toy) -> None:
    course.grade("1.1")
    with (course.clone.progress / "attempts.jsonl").open("a") as log:
        log.write('{"v": 1, "event": "att')
    assert "line 3 cannot be read" in course.grade("list").stdout
    course.sums()
    assert course.grade("1.1").returncode == 0
    assert (
        json.loads((course.clone.progress / "attempts.jsonl").read_text().splitlines()[3])["verdict"]
        == "passed"
    )


def test_what_takes_time_to_import_waits_until_it_is_needed() -> None:
    heavy = "('git', 'rich', 'numpy', 'mlx', 'mlx_lm', 'transformers', 'pytest', 'psutil')"
    modules = "tinyllm.grader.cli, tinyllm.grader.grading, tinyllm.grader.advice"
    code = f"import sys, {modules}\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    heavy = "('git', 'mlx_lm', 'mlx.nn')"
    code = f"import sys, tinyllm.grader.plugin\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pytest_habits_of_the_learner_do_not_reach_the_grading(course: Toy) -> None:
    course.sums()
    done = course.grade("1.1", PYTEST_ADDOPTS="--maxfail=1 -k nothing --no-such", PYTEST_PLUGINS="not_there")
    assert done.returncode == 0


def test_tasks_are_graded_in_the_days_order(course: Toy) -> None:
    """Task 2's checks stand in a file that pytest collects before task 1's."""
    head, first, second, third = toy.TESTS_1.split("\n@task")
    course.write("checkpoints/day1_1/test_sums.py", f"{head}\n@task{first}")
    course.write("checkpoints/day1_1/test_before.py", f"{head}\n@task{second}\n@task{third}")
    course.sums()
    done = course.grade("1.1")
    assert done.returncode == 0
    assert done.stdout.index("1  double") < done.stdout.index("2  row sums")
