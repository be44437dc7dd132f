"""The tracker: what it shows, and that everything around its block survives whatever happens."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyllm.grader import attempts, catalog, tracker, words
from tinyllm.grader.clone import Clone
from tinyllm.grader.errors import EnvironmentFault
from tinyllm.grader.files import content_hash

START = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
BOM = b"\xef\xbb\xbf"


def toy_course(root, titles=("Attention", "Positions")):
    """Days 1.1, 1.2, ... of two tasks and one module each; the modules exist."""
    (root / "checkpoints").mkdir()
    (root / "checkpoints" / "course.toml").write_text('title = "Toy"\n[weeks]\n1 = "First"\n2 = "Second"\n')
    for number, title in enumerate(titles, 1):
        folder = root / "checkpoints" / f"day1_{number}"
        folder.mkdir()
        lines = [
            f'id = "1.{number}"',
            f"title = {json.dumps(title)}",
            'summary = "s"',
            f'modules = ["week1/day{number}.py"]',
        ]
        for task in (1, 2):
            lines += [
                "[[tasks]]",
                f"id = {task}",
                f'title = "part {task}"',
                'goal = "g"',
                "checks = 3",
                f'symbols = ["f{task}"]',
                "hints = []",
            ]
        (folder / "checkpoint.toml").write_text("\n".join(lines))
        module = root / "exercises" / "week1" / f"day{number}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(f"day = {number}\n")
    return catalog.load(Clone(root))


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


@pytest.fixture
def course(clone):
    return toy_course(clone.root)


def attempt(clone, day="1.1", outcomes="++", minutes=0.0, **changes):
    """The line of an attempt on the files as they are."""
    words = {"+": ("passed", 3), "-": ("failed", 1)}
    path = f"exercises/week1/day{day[-1]}.py"
    event = {
        "v": 1,
        "event": "attempt",
        "id": f"{day} at {minutes}",
        "at": (START + timedelta(minutes=minutes)).isoformat(),
        "day": day,
        "solution": "exercises",
        "borrowed": [],
        "only_task": None,
        "verdict": "passed" if set(outcomes) == {"+"} else "not passed",
        "tasks": {
            str(n): {"outcome": words[o][0], "passed": words[o][1], "expected": 3}
            for n, o in enumerate(outcomes, 1)
        },
        "seconds": 1.0,
        "files": {path: content_hash(clone.root / path)},
        "regression": False,
    }
    return event | changes


def content(clone):
    return tracker.tracker_path(clone).read_bytes()


def write(clone, data):
    clone.progress.mkdir(exist_ok=True)
    tracker.tracker_path(clone).write_bytes(data)


def split(data):
    """The bytes before the block, the block, and after it, for a file whose markers are only the block's."""
    begin = data.index(b"<!-- tinyllm:begin")
    end = data.index(tracker.END) + len(tracker.END)
    return data[:begin], data[begin:end], data[end:]


def row(clone, day):
    """The table's cells of a day, by column."""
    lines = [line for line in content(clone).decode(errors="replace").splitlines() if line.startswith("| ")]
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines]
    return dict(zip(cells[0], next(c for c in cells if c[0] == day), strict=True))


# --- what it shows


def test_the_tracker_of_an_empty_log_is_the_pristine_one(clone, course):
    tracker.update(clone, course)
    assert content(clone) == tracker.pristine(course)
    before, block, after = split(content(clone))
    assert before == b""
    assert after == b"\n" + tracker.NOTES
    assert (
        b"**0 of 2 days passed**, 0 of 4 tasks, 0 min of work. Next: `tinyllm-grade day1.1`, Attention."
        in block
    )
    assert block.count(b"[ ]") == 6
    for heading in tracker.NOTE_HEADINGS:
        assert after.count(heading) == 1
    assert {*row(clone, "1.2").values()} == {"1.2", "Positions", "not started", "0/2", "–"}


def test_a_day_that_passed(clone, course):
    for event in (
        attempt(clone, outcomes="+-"),
        attempts.hint_event("1.1", task=2, hint=1, at=START + timedelta(minutes=20)),
        attempts.diff_event("1.1", task=2, at=START + timedelta(minutes=50)),
        attempt(clone, minutes=80),
        attempts.snapshot_event("0123456789abcdef", attempt="1.1 at 80", at=START + timedelta(minutes=80)),
    ):
        attempts.append(clone, event)
    update = tracker.update(clone, course)
    assert row(clone, "1.1") == {
        "Day": "1.1",
        "Title": "Attention",
        "Status": "passed",
        "Tasks": "2/2",
        "Attempts": "2",
        "Time": "1 h 20 min",
        "Hints": "1",
        "Mastery": "–",
        "Reference": "before passing, 2026-05-04",
        "Passed": "2026-05-04",
        "Snapshot": "0123456789",
        "Files": content_hash(clone.exercises / "week1" / "day1.py"),
    }
    text = content(clone).decode()
    assert (
        "- [x] day 1.1 Attention\n  - [x] task 1: part 1\n  - [x] task 2: part 2 (1 hint)\n- [ ] day 1.2"
        in text
    )
    assert "**1 of 2 days passed**, 2 of 4 tasks, 1 h 20 min of work. Next: `tinyllm-grade day1.2`" in text
    assert [s.day for s in update.standings] == ["1.1", "1.2"]
    assert (update.unreadable, update.saved) == ((), None)


def test_a_day_edited_and_then_broken(clone, course):
    attempts.append(clone, attempt(clone))
    (clone.exercises / "week1" / "day1.py").write_text("day = 0\n")
    tracker.update(clone, course)
    assert row(clone, "1.1")["Status"] == "passed, edited since"
    assert "- [x] day 1.1 Attention (edited since it passed: grade it again)" in content(clone).decode()
    for minutes, task in ((5, 1), (6, 1), (7, 2)):
        attempts.append(
            clone, attempts.hint_event("1.1", task, minutes, at=START + timedelta(minutes=minutes))
        )
    attempts.append(clone, attempt(clone, outcomes="-+", minutes=10))
    tracker.update(clone, course)
    assert row(clone, "1.1")["Status"] == "passed, now broken"
    assert row(clone, "1.1")["Tasks"] == "1/2 (best 2/2)"
    assert (
        "- [ ] day 1.1 Attention (passed before, fails now)\n"
        "  - [ ] task 1: part 1 (failed, 1 of 3 checks; 2 hints)\n"
        "  - [x] task 2: part 2 (1 hint)\n"
    ) in content(clone).decode()


def test_partial_and_borrowed_days(clone, course):
    tasks = {
        "1": {"outcome": "passed", "passed": 3, "expected": 3},
        "2": {"outcome": "not run here", "passed": 0, "expected": 3},
    }
    attempts.append(clone, attempt(clone, verdict="partial", tasks=tasks))
    attempts.append(clone, attempt(clone, "1.2", borrowed=["1.0", "1.1"]))
    tracker.update(clone, course)
    assert row(clone, "1.1")["Status"] == "partial"
    assert row(clone, "1.2")["Status"] == "passed (days 1.0, 1.1 borrowed)"
    text = content(clone).decode()
    assert "- [ ] day 1.1 Attention (everything that could run has passed)" in text
    assert "task 2: part 2 (not run here, 0 of 3 checks)" in text
    attempts.append(clone, attempt(clone, "1.2", minutes=1, borrowed=["1.1"], files={}))
    attempts.append(clone, attempt(clone, "1.1", minutes=2))
    tracker.update(clone, course)
    assert "Every day has passed." in content(clone).decode()


def test_one_borrowed_day(clone, course):
    attempts.append(clone, attempt(clone, "1.2", borrowed=["1.1"]))
    tracker.update(clone, course)
    assert row(clone, "1.2")["Status"] == "passed (day 1.1 borrowed)"


def test_days_that_left_the_course_have_a_table_of_their_own(clone, course):
    attempts.append(clone, attempt(clone, "1.1"))
    attempts.append(clone, attempts.read_event("0.9 | <!-- tinyllm:end -->\n\ud800"))
    tracker.update(clone, course)
    block = split(content(clone))[1].decode()
    assert "## No longer in the course" in block
    assert "\\| &lt;!-- tinyllm:end --> ? | – " in block
    assert "## No longer" not in tracker.pristine(course).decode()
    update = tracker.update(clone, course)
    assert [s.retired for s in update.standings] == [False, False, True]


def test_lines_of_the_log_that_cannot_be_read_are_named(clone, course):
    attempts.append(clone, attempt(clone))
    with attempts.log_path(clone).open("ab") as log:
        log.write(b"<<<<<<< HEAD\n")
    update = tracker.update(clone, course)
    assert update.unreadable == (2,)
    assert b"Left out: lines of progress/attempts.jsonl that cannot be read (2)." in content(clone)
    assert row(clone, "1.1")["Status"] == "passed"


def test_titles_cannot_break_the_table_or_the_block(tmp_path):
    clone = Clone(tmp_path)
    titles = ("a | b", "two\nlines <!-- tinyllm:end -->", "## Insights\n## Insights")
    course = toy_course(tmp_path, titles)
    tracker.update(clone, course)
    attempts.append(clone, attempt(clone))
    assert tracker.update(clone, course).saved is None
    assert content(clone).endswith(tracker.NOTES)
    assert "| a \\| b " in content(clone).decode()
    assert "two lines &lt;!-- tinyllm:end --> |" in content(clone).decode()


def test_the_table_lines_up_as_plain_text(clone, course):
    attempts.append(clone, attempt(clone))
    tracker.update(clone, course)
    lines = [line for line in content(clone).decode().splitlines() if line.startswith("| ")]
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    bars = [[i for i, c in enumerate(line) if c == "|"] for line in lines]
    assert bars == [bars[0]] * 4


def test_a_course_without_days(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "course.toml").write_text('title = "Empty"\n[weeks]\n')
    assert b"**0 of 0 days passed**, 0 of 0 tasks, 0 min of work.\n" in tracker.pristine(
        catalog.load(Clone(tmp_path))
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 min"),
        (0.5, "under 1 min"),
        (29.9, "under 1 min"),
        (30, "1 min"),
        (45 * 60, "45 min"),
        (3599, "1 h"),
        (4800, "1 h 20 min"),
        (36000, "10 h"),
    ],
)
def test_durations(seconds, text):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ("", ""),
        ("b", "b"),
        ("ba", "a, b"),
        ("cab", "a to c"),
        ("abcef", "a to c, e, f"),
        ("bdef", "b, d to f"),
    ],
)
def test_days_in_a_row_are_run_together(chosen, text):
    assert words.spans(chosen, "abcdef") == text


# --- what is the learner's


def test_an_update_with_nothing_new_does_not_touch_the_file(clone, course):
    tracker.update(clone, course)
    before = tracker.tracker_path(clone).stat()
    tracker.update(clone, course)
    after = tracker.tracker_path(clone).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


PIECES = [
    b"<!-- tinyllm:begin -->",
    b"<!-- tinyllm:begin 0123456789ab: written by hand -->",
    b"<!-- tinyllm:begin",
    b"<!-- tinyllm:end -->",
    b"<!-- tinyllm:end",
    b"<!-- tinyllm:end -->\r",
    b"## Knowledge gaps",
    b"## Blockers and solutions",
    b"## Insights",
    b"## Insights\r",
    b"# Progress: Toy",
    b"```",
    b"~~~~ python",
    b"- [x] day 1.1",
    b"| 1.1 | Attention |",
    b"\xff\xfe\x00",
    BOM,
    b"\r\n",
    b"\r",
    b"",
    "Schlüssel – 鍵".encode(),
]
NOTES = st.lists(
    st.one_of(st.sampled_from(PIECES), st.binary(max_size=12), st.text(max_size=12).map(str.encode))
)
TEXT = NOTES.map(b"\n".join)
ABOVE = st.one_of(st.just(b""), st.just(BOM), TEXT.map(lambda t: t + b"\n"))
MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """The blocks of a toy course before and after its first day passed."""
    clone = Clone(tmp_path_factory.mktemp("clone"))
    course = toy_course(clone.root)
    tracker.update(clone, course)
    first = split(content(clone))[1]
    attempts.append(clone, attempt(clone))
    tracker.update(clone, course)
    return first, split(content(clone))[1]


@MANY
@given(above=ABOVE, below=TEXT, crlf=st.booleans())
def test_everything_around_the_block_survives(blocks, above, below, crlf):
    old, new = (b.replace(b"\n", b"\r\n") if crlf else b for b in blocks)
    spliced, edited = tracker.splice(above + old + below, blocks[1])
    assert spliced == above + new + below
    assert edited == b""
    assert tracker.splice(spliced, blocks[1]) == (spliced, b"")


@MANY
@given(text=TEXT)
def test_a_file_without_a_block_gets_one_on_top_and_keeps_the_rest(blocks, text):
    # Two markers that make a pair are taken for a block edited by hand: see the test below.
    text = text.replace(b"<!-- tinyllm:begin", b"<!-- tinyllm: begin")
    spliced, edited = tracker.splice(text, blocks[1])
    kept = text.removeprefix(BOM)
    top = text[: len(text) - len(kept)]
    assert spliced.endswith(kept)
    assert spliced.startswith(top + b"<!-- tinyllm:begin")
    assert edited == b""
    if text:
        assert tracker.splice(spliced, blocks[1]) == (spliced, b"")


@MANY
@given(text=TEXT)
def test_nothing_is_ever_lost_from_any_file(blocks, text):
    spliced, edited = tracker.splice(text, blocks[1])
    newline = b"\r\n" if blocks[1].replace(b"\n", b"\r\n") in spliced else b"\n"
    block = blocks[1].replace(b"\n", newline)
    assert spliced.count(block) == 1
    before, _, after = spliced.partition(block)
    if edited:
        assert before + edited + after == text
    elif text:
        assert before in (b"", BOM)
        assert before + after.removeprefix(2 * newline) == text
    assert tracker.splice(spliced, blocks[1])[0] == spliced


@settings(MANY, max_examples=40)
@given(notes=TEXT)
def test_notes_survive_on_disk_while_the_block_changes(tmp_path_factory, notes):
    clone = Clone(tmp_path_factory.mktemp("clone"))
    course = toy_course(clone.root, titles=("Attention",))
    tracker.update(clone, course)
    with tracker.tracker_path(clone).open("ab") as file:
        file.write(notes)
    for minutes, outcomes in enumerate(("+-", "++")):
        attempts.append(clone, attempt(clone, outcomes=outcomes, minutes=minutes))
        tracker.update(clone, course)
        assert split(content(clone))[2] == b"\n" + tracker.NOTES + notes
    assert row(clone, "1.1")["Status"] == "passed"


def test_notes_below_a_moved_block_and_text_above_it(clone, course):
    fake = b"```\n<!-- tinyllm:begin -->\n<!-- tinyllm:end -->\n```\n"
    before = b"# My own title\r\n\r\n" + fake + b"## Insights\nmoved up\n"
    tracker.update(clone, course)
    block = split(content(clone))[1]
    write(clone, before + block + b"no newline at the end")
    attempts.append(clone, attempt(clone))
    assert tracker.update(clone, course).saved is None
    assert content(clone).startswith(before)
    assert content(clone).endswith(tracker.END + b"no newline at the end")
    assert b"1 of 2 days passed" in content(clone)


@pytest.mark.parametrize(
    "marker", [rb"<!-- tinyllm:begin[^\n]*\n", re.escape(tracker.END)], ids=["begin", "end"]
)
def test_a_damaged_block_is_kept_below_a_fresh_one(clone, course, marker):
    tracker.update(clone, course)
    damaged = re.sub(marker, b"", content(clone)) + b"my note\n<!-- tinyllm:end -->\n"
    write(clone, damaged)
    assert tracker.update(clone, course).saved is None
    assert content(clone) == split(tracker.pristine(course))[1] + b"\n\n" + damaged
    tracker.update(clone, course)
    assert content(clone) == split(tracker.pristine(course))[1] + b"\n\n" + damaged


def test_a_block_edited_by_hand_is_replaced_and_kept_aside(clone, course):
    tracker.update(clone, course)
    edited = content(clone).replace(b"- [ ] day 1.1", b"- [x] day 1.1 done!", 1)
    write(clone, b"above\n" + edited)
    update = tracker.update(clone, course)
    assert content(clone) == b"above\n" + tracker.pristine(course)
    assert update.saved.parent == clone.progress / "saved"
    assert update.saved.read_bytes() == split(edited)[1]
    assert tracker.update(clone, course).saved is None


def test_what_formatters_do_on_save_is_no_edit(clone, course):
    attempts.append(clone, attempt(clone))
    tracker.update(clone, course)
    padded = (
        content(clone)
        .replace(b" | ", b"   |   ")
        .replace(b"| ---", b"| --------")
        .replace(b"\n\n", b"\n \n\n")
    )
    write(clone, padded)
    attempts.append(clone, attempt(clone, "1.2", minutes=1))
    assert tracker.update(clone, course).saved is None
    assert content(clone).count(b"<!-- tinyllm:begin") == 1


def test_a_conflict_of_two_machines_in_the_block_keeps_the_notes(clone, course):
    tracker.update(clone, course)
    _, block, notes = split(content(clone))
    begin, rest = block.split(b"\n", 1)
    theirs = begin.replace(b":begin ", b":begin 9")
    write(clone, b"<<<<<<< ours\n" + begin + b"\n=======\n" + theirs + b"\n>>>>>>> theirs\n" + rest + notes)
    update = tracker.update(clone, course)
    assert update.saved is not None
    assert content(clone) == b"<<<<<<< ours\n" + begin + b"\n=======\n" + block + notes


def test_line_endings_of_the_block_follow_the_file(clone, course):
    tracker.update(clone, course)
    write(clone, content(clone).replace(b"\n", b"\r\n"))
    attempts.append(clone, attempt(clone))
    tracker.update(clone, course)
    assert b"1 of 2 days passed" in content(clone)
    assert content(clone).count(b"\n") == content(clone).count(b"\r\n")
    write(clone, b"notes\r\n")
    tracker.update(clone, course)
    assert content(clone).count(b"\n") == content(clone).count(b"\r\n")


def test_an_empty_file_is_a_new_one(clone, course):
    write(clone, b"")
    tracker.update(clone, course)
    assert content(clone) == tracker.pristine(course)


def test_a_tracker_that_is_a_link_into_a_notes_folder(clone, course):
    (clone.root / "vault").mkdir()
    clone.progress.mkdir()
    real = clone.root / "vault" / "course.md"
    real.write_bytes(b"# Vault\n")
    tracker.tracker_path(clone).symlink_to(real)
    tracker.update(clone, course)
    assert real.read_bytes().endswith(b"# Vault\n")
    assert tracker.tracker_path(clone).is_symlink()
    assert list((clone.root / "vault").iterdir()) == [real]


# --- others who write at the same time

EDITOR = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
print("ready", flush=True)
while not any(folder.glob(".*.tmp")):
    pass
with (folder / "tiny-llm-tracker.md").open("ab") as file:
    file.write(b"saved while the tracker was being written\\n")
"""

SLOW_EDITOR = """
import sys, time
from pathlib import Path
with Path(sys.argv[1]).open("wb") as file:  # in place: the file is empty until the text arrives
    print("ready", flush=True)
    time.sleep(0.02)
    file.write(b"my notes\\n")
"""


def start(code, path):
    process = subprocess.Popen([sys.executable, "-P", "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def test_what_an_editor_saves_meanwhile_is_kept(clone, course):
    # Long notes, so that writing them takes long enough for the editor to come in between.
    notes = b"a long line of notes\n" * 400_000
    write(clone, notes)
    editor = start(EDITOR, clone.progress)
    try:
        tracker.update(clone, course)
        editor.communicate(timeout=10)
    finally:
        editor.kill()
    assert content(clone).endswith(notes + b"saved while the tracker was being written\n")
    assert content(clone).startswith(b"<!-- tinyllm:begin")


def test_a_save_that_has_only_truncated_the_file_yet_is_waited_for(clone, course):
    tracker.update(clone, course)
    editor = start(SLOW_EDITOR, tracker.tracker_path(clone))
    tracker.update(clone, course)
    editor.communicate(timeout=10)
    assert content(clone).endswith(b"my notes\n")


def test_a_tracker_that_keeps_changing_is_left_to_its_editor(clone, course):
    notes = b"a long line of notes\n" * 400_000
    write(clone, notes)
    editor = start(EDITOR, clone.progress)
    try:
        with pytest.raises(EnvironmentFault, match=r"tiny-llm-tracker\.md is being written all the time"):
            tracker.update(clone, course, patience=0.0)
    finally:
        editor.kill()
        editor.communicate()
    assert content(clone) == notes + b"saved while the tracker was being written\n"
    assert not list(clone.progress.glob(".*.tmp"))


def test_a_tracker_that_cannot_be_written_is_an_environment_fault(clone, course):
    tracker.tracker_path(clone).mkdir(parents=True)
    with pytest.raises(EnvironmentFault, match=r"progress/tiny-llm-tracker\.md cannot be written"):
        tracker.update(clone, course)


GRADER = """
import sys
from pathlib import Path
from tinyllm.grader import attempts, catalog, tracker
from tinyllm.grader.clone import Clone
clone = Clone(Path(sys.argv[1]))
course = catalog.load(clone)
print("ready", flush=True)
i = 0
while True:
    i += 1
    event = attempts.hint_event("1.1", task=1, hint=i)
    attempts.append(clone, event)
    print(event["id"], flush=True)
    tracker.update(clone, course)
"""


def test_killed_at_any_moment_nothing_is_lost(clone, course):
    chance = random.Random(7)
    notes = b"\r\nmine \xff <!-- tinyllm:end -->\n" * 50
    tracker.update(clone, course)
    with tracker.tracker_path(clone).open("ab") as file:
        file.write(notes)
    promised = []
    for _ in range(12):
        grader = start(GRADER, clone.root)
        time.sleep(chance.uniform(0.01, 0.06))
        grader.kill()
        promised += grader.communicate()[0].decode().split()
        events, unreadable = attempts.read(clone)
        assert unreadable == []
        assert set(promised) <= {e.id for e in events}
        before, block, after = split(content(clone))
        assert (before, after) == (b"", b"\n" + tracker.NOTES + notes)
        assert block.startswith(b"<!-- tinyllm:begin")
    assert len(promised) > 12
    tracker.update(clone, course)
    assert row(clone, "1.1")["Hints"] == str(max(e.hint for e in events))
    assert {p.name for p in clone.progress.iterdir()} == {".lock", "attempts.jsonl", "tiny-llm-tracker.md"}


def test_eight_graders_at_once(clone, course):
    code = GRADER.replace("while True:", "sys.stdin.readline()\nwhile i < 5:")
    command = [sys.executable, "-P", "-c", code, str(clone.root)]
    graders = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(8)]
    for grader in graders:
        assert grader.stdout.readline() == b"ready\n"
    promised = []
    for grader in graders:
        grader.stdin.write(b"go\n")
        grader.stdin.flush()
    for grader in graders:
        promised += grader.communicate(timeout=60)[0].decode().split()
        assert grader.returncode == 0
    events, unreadable = attempts.read(clone)
    assert unreadable == []
    assert sorted(promised) == sorted(e.id for e in events)
    assert len(events) == 40
    final = content(clone)
    tracker.update(clone, course)
    assert content(clone) == final  # the last of them saw every line


def test_the_log_reads_quickly(clone, course):
    """A long course's log, 2000 attempts, must not be felt."""
    clone.progress.mkdir()
    line = attempt(clone)
    with Path(attempts.log_path(clone)).open("w") as log:
        for i in range(2000):
            log.write(json.dumps(line | {"id": str(i)}) + "\n")
    began = time.perf_counter()
    tracker.update(clone, course)
    assert time.perf_counter() - began < 1.0
    assert row(clone, "1.1")["Attempts"] == "2000"
