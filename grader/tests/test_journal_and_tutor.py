"""The journal keeps what the learner wrote; the tutor's brief tells where they are and gives nothing away."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tinyllm.grader import attempts, catalog, journal, tutor, tutor_files
from tinyllm.grader.clone import Clone
from tinyllm.grader.report import (
    ArrayNote,
    CheckResult,
    DayReport,
    Failure,
    Frame,
    Outcome,
    TaskResult,
    Verdict,
)
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy

START = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


@pytest.fixture
def course(tmp_path: Path) -> Toy:
    return toy.make(tmp_path / "a clone")


def failing(minutes: float, summary: str = "Every element is too far.", **more: str) -> dict:
    """The log's line of a grading in which task 1 failed at the learner's line 8."""
    frame = Frame(
        "exercises/week1/sums.py", 8, "double", "return x * x", (ArrayNote("x", "(3, 5)", "float32"),)
    )
    failure = Failure(summary, checked="double(x), x (3, 5)", frames=(frame,), **more)
    check = CheckResult(
        "test_double[float32]", 1, "every element is doubled", Outcome.FAILED, failure=failure
    )
    report = DayReport(
        day="1.1",
        title="Sums",
        solution="exercises",
        graded=("exercises/week1/sums.py",),
        borrowed=(),
        only_task=None,
        tasks=(TaskResult(1, "double", 3, (check,)), TaskResult(2, "row sums", 2, ())),
        verdict=Verdict.NOT_PASSED,
        seconds=1.0,
    )
    return attempts.attempt_event(report, at=START + timedelta(minutes=minutes))


def page(course: Toy) -> Path:
    return course.clone.progress / "journal" / "day1.1.md"


def write_page(course: Toy) -> str:
    journal.update(course.clone, course.course, course.course.day("1.1"))
    return page(course).read_text()


# ---- the log


def test_the_log_keeps_what_a_failure_said_and_stays_bounded(course: Toy) -> None:
    attempts.append(course.clone, failing(0, got="x" * 5000))
    (event,) = attempts.read(course.clone)[0]
    told = event.failures[1]
    assert told["summary"] == "Every element is too far."
    assert told["line"] == "exercises/week1/sums.py:8"
    assert told["values"] == "x (3, 5) float32"
    assert len(attempts.log_path(course.clone).read_bytes()) < 2000


# ---- the journal


def test_a_page_has_the_facts_of_the_log_and_sections_to_write(course: Toy) -> None:
    attempts.append(course.clone, failing(0))
    attempts.append(course.clone, attempts.hint_event("1.1", task=1, hint=1, at=START + timedelta(minutes=5)))
    attempts.append(course.clone, failing(12))
    text = write_page(course)
    assert "**Attempts**: 2" in text
    assert "**Time**: 12 min" in text
    assert "**Hints**: 1 of task 1" in text
    assert "- task 1, 2 times: Every element is too far. (every element is doubled, at `exercises" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Concepts",
        "## Implementation",
        "## Challenges",
        "## Insights",
        "## Next steps",
    ]
    assert "- task 2, row sums:" in text


def test_what_the_learner_wrote_stays_and_the_facts_are_renewed(course: Toy) -> None:
    write_page(course)
    own = page(course).read_bytes().replace(b"## Insights\n", b"## Insights\r\n\r\nBroadcasting! \xff\n")
    page(course).write_bytes(own)
    attempts.append(course.clone, failing(0))
    journal.update(course.clone, course.course, course.course.day("1.1"))
    new = page(course).read_bytes()
    assert b"Errors met" in new
    end = b"<!-- tinyllm:end -->"
    assert new.partition(end)[2] == own.partition(end)[2]


def test_a_file_of_the_learners_own_is_not_overwritten(course: Toy) -> None:
    page(course).parent.mkdir(parents=True)
    page(course).write_text("my notes\n")
    assert write_page(course).endswith("my notes\n")


def test_facts_edited_by_hand_are_kept_beside(course: Toy) -> None:
    text = write_page(course)
    page(course).write_text(text.replace("**Attempts**: 0", "**Attempts**: 7"))
    saved = journal.update(course.clone, course.course, course.course.day("1.1"))
    assert saved is not None
    assert "7" in saved.read_text()
    assert "**Attempts**: 0" in page(course).read_text()


def test_without_a_terminal_the_page_is_written_and_named(course: Toy) -> None:
    done = course.grade("note", "1.1", EDITOR="false")
    assert done.returncode == 0
    assert "progress/journal/day1.1.md" in done.stdout
    assert page(course).is_file()
    tracker = (course.clone.progress / "tiny-llm-tracker.md").read_text()
    assert "- [ ] day 1.1 Sums ([journal](journal/day1.1.md))" in tracker
    assert "1.2 Means\n" in tracker


def _in_terminal(course: Toy, **environment: str) -> str:
    parent, child = pty.openpty()
    done = subprocess.Popen(
        [*toy.PROGRAM, "note", "1.1"],
        cwd=course.root,
        env=course.environment(TERM="dumb", COLUMNS="80", **environment),
        stdin=child,
        stdout=child,
        stderr=child,
    )
    os.close(child)
    shown = b""
    while True:
        try:
            data = os.read(parent, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.close(parent)
    assert done.wait(30) == 0
    return shown.decode(errors="replace")


def test_the_editor_may_have_arguments_and_visual_comes_first(course: Toy, tmp_path: Path) -> None:
    script = tmp_path / "my editor.py"
    script.write_text("import sys\nopen(sys.argv[-1], 'a').write('edited with ' + sys.argv[1] + '\\n')\n")
    _in_terminal(course, VISUAL=f'{sys.executable} "{script}" -w', EDITOR="false")
    assert page(course).read_text().endswith("edited with -w\n")


@pytest.mark.parametrize(
    ("editor", "told"),
    [
        ("", "neither $VISUAL nor $EDITOR is set"),
        ("no-such-editor -w", "there is no program no-such-editor"),
        ('ed "', "which cannot be read"),
        ("false", "ended with code 1"),
    ],
)
def test_an_editor_that_cannot_be_started_is_told(course: Toy, editor: str, told: str) -> None:
    shown = " ".join(_in_terminal(course, VISUAL="", EDITOR=editor).split())
    assert told in shown
    assert "Traceback" not in shown
    assert page(course).is_file()


# ---- the tutor


def brief(course: Toy, number: int | None = None) -> str:
    return tutor.brief(course.clone, course.course, course.course.day("1.1"), number)


def test_a_brief_tells_the_task_the_code_the_failure_and_the_hints(course: Toy) -> None:
    course.sums(double="return x * x")
    attempts.append(course.clone, failing(0, expected="2.0", got="4.0"))
    attempts.append(course.clone, attempts.hint_event("1.1", task=1, hint=1))
    text = brief(course)
    assert "Never write the solution" in text
    assert "task 1, double: failed, 0 of 3 checks pass  <- the task at hand" in text
    assert "    return x * x" in text
    assert "values there: x (3, 5) float32" in text
    assert "What is one and one?" in text
    assert "2 is 1 + 1." not in text  # a hint that was not taken
    assert "`double` keeps its input's dtype." in text
    assert "`mlx.core.fast.*`" in text


def test_a_brief_holds_nothing_of_the_reference(course: Toy) -> None:
    text = brief(course)
    assert "return x + x" not in text
    assert "squares" not in text
    assert "This is what you get when" not in text


def test_a_brief_is_short_whatever_was_written(course: Toy) -> None:
    course.sums(double="\n    ".join(["y = x  # ``` and more"] * 3000) + "\n    return y")
    attempts.append(course.clone, failing(0, detail="x" * 100_000))
    text = brief(course)
    assert len(text) <= tutor.LONGEST
    assert "cut here" in text
    assert "## What they may not use" in text
    assert text.count("````") == 2  # the fence is longer than those in the code


def test_a_brief_for_a_missing_file_and_another_task(course: Toy) -> None:
    (course.clone.exercises / "week1" / "sums.py").unlink()
    assert "there is nothing of this task in it" in brief(course)
    assert "row sums: not graded yet  <- the task at hand" in brief(course, 2)
    assert "has no task 9" in course.grade("tutor", "1.1", "--task", "9").stderr


def test_no_brief_of_the_course_holds_a_body_of_the_reference() -> None:
    clone = Clone(Path(__file__).resolve().parents[2])
    whole = catalog.load(clone)
    for day in whole.days:
        text = tutor.installed_text(whole, day)
        assert len(text) <= tutor.LONGEST_INSTALLED
        for module in day.modules:
            source = (clone.reference / module).read_text()
            stub = (clone.exercises / module).read_text()
            solution = [line for line in source.splitlines() if len(line.strip()) > 40 and line not in stub]
            assert not [line for line in solution if line.strip() in text]


@pytest.fixture
def repository(tmp_path: Path) -> Toy:
    return toy.make(tmp_path / "a clone", git=True)


def _status(course: Toy) -> str:
    done = subprocess.run(
        ["git", "status", "--short"], cwd=course.root, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_install_writes_what_git_does_not_see_and_uninstall_removes_it(repository: Toy) -> None:
    exclude = repository.root / ".git" / "info" / "exclude"
    exclude.parent.mkdir(exist_ok=True)
    exclude.write_text("*.swp")  # without a newline at its end
    done = repository.grade("tutor", "1.1", "--install")
    assert done.returncode == 0, done.stderr
    for name in tutor_files.FILES:
        assert "Never write the solution" in (repository.root / name).read_text()
    assert (repository.root / ".cursor/rules/tinyllm-tutor.mdc").read_text().startswith("---\ndescription:")
    assert _status(repository) == ""
    repository.grade("tutor", "1.2", "--install")
    assert "day 1.2" in (repository.root / "AGENTS.md").read_text()
    repository.grade("tutor", "--uninstall")
    assert not any((repository.root / name).exists() for name in tutor_files.FILES)
    assert not (repository.root / ".cursor").exists()
    assert exclude.read_text() == "*.swp\n"
    assert _status(repository) == ""


def test_files_of_others_are_left_alone_and_stay_visible(repository: Toy) -> None:
    (repository.root / "AGENTS.md").write_text("mine")
    (repository.root / "CLAUDE.md").symlink_to("AGENTS.md")
    (repository.root / ".github").mkdir()
    (repository.root / ".github" / "workflow.yml").write_text("mine too")
    shown = repository.grade("tutor", "1.1", "--install").stdout
    assert "left alone AGENTS.md: it is not from" in shown
    assert "left alone CLAUDE.md: it is a link" in shown
    assert (repository.root / "AGENTS.md").read_text() == "mine"
    assert "?? AGENTS.md" in _status(repository)
    repository.grade("tutor", "--uninstall")
    assert (repository.root / "AGENTS.md").read_text() == "mine"
    assert (repository.root / ".github" / "workflow.yml").exists()
    assert not (repository.root / "GEMINI.md").exists()


def test_a_file_that_was_edited_is_neither_overwritten_nor_removed(repository: Toy) -> None:
    repository.grade("tutor", "1.1", "--install")
    path = repository.root / "AGENTS.md"
    path.write_text(path.read_text() + "and be kind\n")
    assert "edited since" in " ".join(repository.grade("tutor", "1.2", "--install").stdout.split())
    repository.grade("tutor", "--uninstall")
    assert path.read_text().endswith("and be kind\n")


def test_a_folder_that_is_a_link_is_not_followed(repository: Toy, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (repository.root / ".github").symlink_to(outside)
    assert repository.grade("tutor", "1.1", "--install").returncode == 0
    assert list(outside.iterdir()) == []


def test_install_in_a_linked_working_tree_and_without_git(
    repository: Toy, course: Toy, tmp_path: Path
) -> None:
    tree = tmp_path / "linked"
    subprocess.run(["git", "worktree", "add", "-q", str(tree)], cwd=repository.root, check=True)
    linked = Toy(Clone(tree))
    assert linked.grade("tutor", "1.1", "--install").returncode == 0
    assert _status(linked) == ""
    assert course.grade("tutor", "1.1", "--install").returncode == 0
    assert (course.root / "AGENTS.md").is_file()


def test_mistakes_that_were_named_stand_beside_the_failure(course: Toy) -> None:
    attempt = failing(0)
    attempts.append(course.clone, attempt)
    named = {
        **attempts.read_event("1.1"),
        "event": "likely",
        "attempt": attempt["id"],
        "tasks": {"1": ["squares"]},
    }
    attempts.append(course.clone, named)
    assert "  - This is what you get when you square." in write_page(course)
    assert "told them it may be: This is what you get when you square." in brief(course)


def test_log_lines_of_earlier_versions_are_read(course: Toy) -> None:
    line = failing(0)
    del line["failures"]
    attempts.log_path(course.clone).write_text(json.dumps(line) + "\n")
    assert "The last failure" not in brief(course)
    assert "Errors met" not in write_page(course)
