"""The log: whole lines from many processes, torn lines, and what `read` makes of anything."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest

from tinyllm.grader import attempts
from tinyllm.grader.clone import Clone
from tinyllm.grader.errors import EnvironmentFault
from tinyllm.grader.report import CheckResult, DayReport, Outcome, TaskResult, Verdict

NOON = datetime(2026, 5, 4, 12, 0, 0, 123456, tzinfo=UTC)

APPENDER = """
import sys
from pathlib import Path
from tinyllm.grader import attempts
from tinyllm.grader.clone import Clone
clone = Clone(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for i in range(50):
    attempts.append(clone, attempts.hint_event(sys.argv[2], task=i, hint=1))
"""


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def report(**changes):
    checks = (
        CheckResult("test_a", 1, "a", Outcome.PASSED),
        CheckResult("test_b", 1, "b", Outcome.FAILED),
    )
    values = {
        "day": "1.1",
        "title": "Attention",
        "solution": "exercises",
        "graded": ("exercises/week1/attention.py",),
        "borrowed": ("1.0",),
        "only_task": None,
        "tasks": (TaskResult(1, "softmax", 3, checks),),
        "verdict": Verdict.NOT_PASSED,
        "seconds": 1.23456,
        "files": {"exercises/week1/attention.py": "0123456789ab"},
    }
    return DayReport(**{**values, **changes})


def log(clone):
    return attempts.log_path(clone).read_bytes()


def test_an_attempt_comes_back_as_it_was_written(clone):
    event = attempts.attempt_event(report(), at=NOON, upstream={"exercises/week1/first.py": "ba9876543210"})
    attempts.append(clone, event)
    (read,), unreadable = attempts.read(clone)
    assert unreadable == []
    assert read == attempts.Attempt(
        id=event["id"],
        at=NOON.replace(microsecond=123000),
        kind="attempt",
        day="1.1",
        data=event,
        solution="exercises",
        borrowed=("1.0",),
        only_task=None,
        verdict="not passed",
        tasks={1: attempts.TaskTally("failed", 1, 3)},
        seconds=1.235,
        files={"exercises/week1/attention.py": "0123456789ab", "exercises/week1/first.py": "ba9876543210"},
        regression=False,
    )


def test_the_line_is_what_the_documentation_says(clone):
    attempts.append(clone, attempts.attempt_event(report(only_task=1), at=NOON, regression=True))
    assert log(clone).endswith(b"}\n")
    line = json.loads(log(clone))
    assert len(line.pop("id")) == 12
    assert line == {
        "v": 1,
        "event": "attempt",
        "at": "2026-05-04T12:00:00.123Z",
        "day": "1.1",
        "solution": "exercises",
        "borrowed": ["1.0"],
        "only_task": 1,
        "verdict": "not passed",
        "tasks": {"1": {"outcome": "failed", "passed": 1, "expected": 3}},
        "seconds": 1.235,
        "files": {"exercises/week1/attention.py": "0123456789ab"},
        "regression": True,
        "failures": {},
    }


def test_the_log_holds_no_path_outside_the_clone(clone):
    outside = {"/somewhere/mutant.py": "0" * 12, "exercises/week1/rope.py": "1" * 12}
    attempts.append(clone, attempts.attempt_event(report(files=outside)))
    assert b"somewhere" not in log(clone)
    assert b"exercises/week1/rope.py" in log(clone)


def test_the_other_events(clone):
    for event in (
        attempts.hint_event("1.1", task=2, hint=1),
        attempts.diff_event("1.1", task=2),
        attempts.diff_event("1.1"),
        attempts.read_event("1.2"),
        attempts.snapshot_event("c0ffee", day="1.1", attempt="abc"),
        attempts.restore_event("c0ffee"),
        attempts.reset_event("1.1"),
    ):
        attempts.append(clone, event)
    events, unreadable = attempts.read(clone)
    assert unreadable == []
    assert [(e.kind, e.day) for e in events] == [
        ("hint", "1.1"),
        ("diff", "1.1"),
        ("diff", "1.1"),
        ("read", "1.2"),
        ("snapshot", "1.1"),
        ("restore", ""),
        ("reset", "1.1"),
    ]
    hint, diff, whole, _, snapshot, restore, _ = events
    assert (hint.task, hint.hint) == (2, 1)
    assert (diff.task, whole.task) == (2, None)
    assert (snapshot.commit, snapshot.attempt) == ("c0ffee", "abc")
    assert restore.data["commit"] == "c0ffee"
    assert len({e.id for e in events}) == 7
    assert all(datetime.now(UTC) - e.at < timedelta(minutes=1) for e in events)


def test_times_are_written_and_read_as_utc(clone):
    east = timezone(timedelta(hours=5, minutes=30))
    attempts.append(clone, attempts.read_event("1.1", at=NOON.astimezone(east)))
    assert b'"2026-05-04T12:00:00.123Z"' in log(clone)
    path = attempts.log_path(clone)
    path.write_bytes(
        b'{"v":1,"event":"read","at":"2026-05-04T17:30:00+05:30"}\n{"v":1,"event":"read","at":"2026-05-04T12:00:00"}\n'
    )
    events, _ = attempts.read(clone)
    assert [e.at for e in events] == [NOON.replace(microsecond=0)] * 2
    assert events[0].at.tzinfo is UTC


def test_no_log_is_an_empty_log(clone):
    assert attempts.read(clone) == ([], [])


def test_a_torn_last_line_swallows_nothing(clone):
    attempts.append(clone, attempts.read_event("1.1"))
    whole = log(clone)
    attempts.log_path(clone).write_bytes(whole + b'{"v":1,"event":"re')
    attempts.append(clone, attempts.read_event("1.2"))
    events, unreadable = attempts.read(clone)
    assert [e.day for e in events] == ["1.1", "1.2"]
    assert unreadable == [2]
    assert log(clone).startswith(whole)


def test_a_last_line_that_only_lacks_its_newline_is_kept(clone):
    attempts.append(clone, attempts.read_event("1.1"))
    attempts.log_path(clone).write_bytes(log(clone).rstrip(b"\n"))
    attempts.append(clone, attempts.read_event("1.2"))
    events, unreadable = attempts.read(clone)
    assert [e.day for e in events] == ["1.1", "1.2"]
    assert unreadable == []


GOOD = {
    "v": 1,
    "event": "attempt",
    "id": "x",
    "at": "2026-05-04T12:00:00.000Z",
    "day": "1.1",
    "solution": "exercises",
    "borrowed": [],
    "only_task": None,
    "verdict": "passed",
    "tasks": {"1": {"outcome": "passed", "passed": 3, "expected": 3}},
    "seconds": 1,
    "files": {"exercises/week1/attention.py": "0123456789ab"},
}


@pytest.mark.parametrize(
    "change",
    [
        {"at": "yesterday"},
        {"at": 5},
        {"at": "0001-01-01T00:00:00+23:00"},
        {"event": 5},
        {"day": 1.1},
        {"v": "1"},
        {"v": True},
        {"tasks": []},
        {"tasks": {"one": {"outcome": "passed", "passed": 3, "expected": 3}}},
        {"tasks": {"1": {"outcome": "passed"}}},
        {"tasks": {"1": {"outcome": "passed", "passed": "3", "expected": 3}}},
        {"files": ["exercises/week1/attention.py"]},
        {"files": {"exercises/week1/attention.py": None}},
        {"borrowed": "1.2"},
        {"only_task": "1"},
        {"seconds": "long"},
        {"regression": 1},
    ],
    ids=str,
)
def test_a_line_with_a_wrong_value_is_skipped_and_reported(clone, change):
    clone.progress.mkdir()
    lines = [GOOD | change, GOOD]
    attempts.log_path(clone).write_text("".join(json.dumps(line) + "\n" for line in lines))
    events, unreadable = attempts.read(clone)
    assert [e.id for e in events] == ["x"]
    assert unreadable == [1]


@pytest.mark.parametrize(
    "line",
    [
        b"<<<<<<< HEAD",
        b"{",
        b"[]",
        b"7",
        b'"event"',
        b"null",
        b"{}",
        b"\xff\xfe\x00",
        b"\x00" * 512,
        b"[" * 100_000,
        b'{"v":1,"event":"read"}',
        b"1" * 5000,
    ],
    ids=lambda line: repr(line[:20]),
)
def test_a_line_that_is_no_event_is_skipped_and_reported(clone, line):
    clone.progress.mkdir()
    good = json.dumps(GOOD).encode()
    attempts.log_path(clone).write_bytes(b"\n".join((line, good, b"", b"  ", b"")))
    events, unreadable = attempts.read(clone)
    assert [e.id for e in events] == ["x"]
    assert unreadable == [1]


def test_unknown_events_and_later_versions_are_kept_uninterpreted(clone):
    clone.progress.mkdir()
    quiz = {"v": 1, "event": "quiz", "at": GOOD["at"], "day": "1.1", "score": 3}
    later = {"v": 2, "event": "hint", "at": GOOD["at"], "id": "y", "task": "two"}
    attempts.log_path(clone).write_text(json.dumps(quiz) + "\r\n" + json.dumps(later) + "\r\n")
    events, unreadable = attempts.read(clone)
    assert unreadable == []
    assert [type(e) for e in events] == [attempts.Event, attempts.Event]
    assert events[0].data == quiz
    assert (events[1].kind, events[1].day) == ("hint", "")


def test_a_line_that_merging_two_logs_doubled_counts_once(clone):
    clone.progress.mkdir()
    other = GOOD | {"at": "2026-05-04T13:00:00.000Z"}  # the same id, but another event
    nameless = {"v": 1, "event": "read", "at": GOOD["at"]}
    lines = [GOOD, other, GOOD, nameless, nameless]
    attempts.log_path(clone).write_text("".join(json.dumps(line) + "\n" for line in lines))
    events, unreadable = attempts.read(clone)
    assert len(events) == 4
    assert unreadable == []


def test_odd_text_survives(clone):
    odd = 'a "quote", a\nnewline, \u2028, \ud800, \x00 and ü'
    attempts.append(clone, attempts.read_event(odd))
    assert log(clone).count(b"\n") == 1
    assert attempts.read(clone)[0][0].day == odd


def test_eight_processes_append_fifty_lines_each(clone):
    command = [sys.executable, "-P", "-c", APPENDER, str(clone.root)]
    processes = [
        subprocess.Popen([*command, f"1.{i}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for i in range(8)
    ]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    events, unreadable = attempts.read(clone)
    assert unreadable == []
    for i in range(8):
        assert [e.task for e in events if e.day == f"1.{i}"] == list(range(50))
    assert len(events) == 400


def test_what_cannot_be_written_or_read_is_an_environment_fault(clone):
    clone.progress.write_bytes(b"a file where the folder should be")
    with pytest.raises(EnvironmentFault, match="progress/ cannot be created"):
        attempts.append(clone, attempts.read_event("1.1"))
    clone.progress.unlink()
    attempts.log_path(clone).mkdir(parents=True)
    with pytest.raises(EnvironmentFault, match=r"progress/attempts\.jsonl cannot be written"):
        attempts.append(clone, attempts.read_event("1.1"))
    with pytest.raises(EnvironmentFault, match=r"progress/attempts\.jsonl cannot be read"):
        attempts.read(clone)


NO_ROOM = """
import resource, sys
from pathlib import Path
from tinyllm.grader import attempts
from tinyllm.grader.clone import Clone
from tinyllm.grader.errors import EnvironmentFault
clone = Clone(Path(sys.argv[1]))
size = attempts.log_path(clone).stat().st_size + 20
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    attempts.append(clone, attempts.read_event("1.2"))
except EnvironmentFault as fault:
    print(fault)
"""


def test_a_line_for_which_there_is_half_the_room_harms_no_other(clone):
    attempts.append(clone, attempts.read_event("1.1"))
    done = subprocess.run(
        [sys.executable, "-P", "-c", NO_ROOM, str(clone.root)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "progress/attempts.jsonl cannot be written: File too large.\n"
    attempts.append(clone, attempts.read_event("1.3"))
    events, unreadable = attempts.read(clone)
    assert [e.day for e in events] == ["1.1", "1.3"]
    assert unreadable == [2]


def test_a_number_that_json_lacks_is_refused_before_anything_is_written(clone):
    with pytest.raises(ValueError, match="not JSON compliant"):
        attempts.append(clone, attempts.attempt_event(report(seconds=float("nan"))))
    assert attempts.read(clone) == ([], [])
