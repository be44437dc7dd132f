"""progress/tiny-llm-tracker.md: a block made from the log, and notes that are the learner's.

The block stands between two marker lines. `update` makes it anew and leaves every other byte of the file
as it is: line endings, encodings, text above the block, markers quoted in a note. The begin line carries a
checksum of the block's text, so our own block is told from anything that only looks like it. Without
a block a fresh one is put at the top and all else is kept. A block that somebody edited is replaced, and
its old text kept in progress/saved/.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import attempts
from .errors import EnvironmentFault
from .files import faults, read_or_none, remove_leftovers, replace_if_unchanged, short_hash, write_atomically
from .report import Outcome
from .standing import Looked, Standing, Status, TaskStanding, exercise_hashes, next_unfinished, standings
from .words import duration

if TYPE_CHECKING:
    from .catalog import Course
    from .clone import Clone

JOURNALS = "journal"  # the folder in progress/ with a page for each day that has one (journal.py)
END = b"<!-- tinyllm:end -->"
NOTE_HEADINGS = (b"## Knowledge gaps", b"## Blockers and solutions", b"## Insights")

NOTES = b"""
## Knowledge gaps

What I do not understand yet.

## Blockers and solutions

What stopped me, and what got me going again.

## Insights

What I would tell somebody who starts this course tomorrow.
"""

_BEGIN = b"<!-- tinyllm:begin %s: written by tinyllm-grade; your own text goes outside this block -->"
_BEGIN_LINE = re.compile(rb"^<!-- tinyllm:begin\b(?: ([0-9a-f]{12}):)?[^\n]*?-->", re.MULTILINE)
_END_LINE = re.compile(rb"^" + re.escape(END), re.MULTILINE)
_BOM = b"\xef\xbb\xbf"


class Update(NamedTuple):
    """What `update` saw and did."""

    standings: tuple[Standing, ...]
    unreadable: tuple[int, ...]  # lines of the log that are no event
    saved: Path | None  # where the text of a block that had been edited by hand is kept


def tracker_path(clone: Clone) -> Path:
    return clone.progress / "tiny-llm-tracker.md"


def update(clone: Clone, course: Course, *, patience: float = 2.0) -> Update:
    """Bring the tracker up to date with the log and the files in exercises/.

    Takes the lock of progress/, so the log it shows is complete. What an editor saves meanwhile is kept:
    the file is looked at again at the last moment, and the work done over when it has changed, for
    `patience` seconds. Raises EnvironmentFault when that was not enough, or when log or tracker cannot be
    read or written.
    """
    with attempts.lock(clone):
        events, unreadable = attempts.read(clone)
        days = standings(course, events, exercise_hashes(clone, course))
        block = render(course, days, unreadable, _journals(clone, days))
        saved = put_block(clone, tracker_path(clone), block, NOTES, NOTE_HEADINGS, patience)
    return Update(days, tuple(unreadable), saved)


def put_block(
    clone: Clone,
    path: Path,
    block: bytes,
    notes: bytes,
    headings: Sequence[bytes],
    patience: float = 2.0,
) -> Path | None:
    """Make `block` the block of a file in progress/; where a block edited by hand is kept, if it was.

    For a caller who holds the lock of progress/. notes, headings: see `splice`.
    """
    shown = clone.relative(path)
    with faults(f"{shown} cannot be written"):
        path.parent.mkdir(exist_ok=True)
        remove_leftovers(path)
        give_up = time.monotonic() + patience
        while True:
            old = _settled(path)
            new, replaced = splice(old, block, notes, headings)
            saved = _save(clone, path.stem.removeprefix("tiny-llm-"), replaced) if replaced else None
            if new == old or replace_if_unchanged(path, old, new):
                return saved
            if time.monotonic() > give_up:
                raise EnvironmentFault(f"{shown} is being written all the time.")


def _journals(clone: Clone, days: Sequence[Standing]) -> set[str]:
    return {s.day for s in days if (clone.progress / JOURNALS / f"day{s.day}.md").is_file()}


def pristine(course: Course) -> bytes:
    """The whole file as it is for a learner who has done nothing yet."""
    return splice(None, render(course, standings(course, (), {})))[0]


def _settled(path: Path) -> bytes | None:
    """The file's bytes. Empty, it gets a second look: an editor that saves in place truncates first."""
    data = read_or_none(path)
    if data == b"":
        time.sleep(0.05)
        data = read_or_none(path)
    return data


def _save(clone: Clone, stem: str, block: bytes) -> Path:
    folder = clone.progress / "saved"
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}-{short_hash(block)}.md"
    write_atomically(path, block)
    return path


# --- the file around the block


def splice(
    old: bytes | None, block: bytes, notes: bytes = NOTES, headings: Sequence[bytes] = NOTE_HEADINGS
) -> tuple[bytes, bytes]:
    """The file `old` with `block` in place of its block, and the old block if somebody had edited it.

    `old` None or empty gives a new file with `notes`, whose `headings` begin what is the learner's. The
    second value is b"" for a block of ours.
    """
    if not old:
        return block + b"\n" + notes, b""
    found = _find(old, headings)
    if found is None:
        top = len(_BOM) if old.startswith(_BOM) else 0
        newline = b"\r\n" if b"\r\n" in old else b"\n"
        return old[:top] + _with_newlines(block, newline) + 2 * newline + old[top:], b""
    begin, end, verified = found
    before = old[begin:end]
    newline = b"\r\n" if b"\r\n" in before else b"\n"
    return old[:begin] + _with_newlines(block, newline) + old[end:], b"" if verified else before


def _with_newlines(block: bytes, newline: bytes) -> bytes:
    return block.replace(b"\n", newline)


def _find(data: bytes, headings: Sequence[bytes]) -> tuple[int, int, bool] | None:
    """Where the block begins and ends, and whether its checksum holds; None when there is no block.

    The first pair of markers with a true checksum is the block, wherever it stands. Without one, the
    first pair above the note sections is: a block edited by hand. Markers below them are notes.
    """
    top = len(_BOM) if data.startswith(_BOM) else 0
    # `^` does not match after a byte order mark, so the search starts behind it, in bytes of its own.
    text = data[top:]
    ends = [m.start() for m in _END_LINE.finditer(text)]
    note = re.search(rb"^(?:" + b"|".join(map(re.escape, headings)) + rb")[ \t\r]*$", text, re.MULTILINE)
    edited = None
    begins = list(_BEGIN_LINE.finditer(text))
    for i, begin in enumerate(begins):
        end = next((e for e in ends if e >= begin.end()), None)
        if end is None:
            break
        span = (top + begin.start(), top + end + len(END))
        if begin[1] and begin[1].decode() == _checksum(text[begin.end() : end]):
            return *span, True
        # Of several begin lines before one end line the last is its partner.
        is_nearest = i + 1 == len(begins) or begins[i + 1].start() > end
        if edited is None and is_nearest and (note is None or end < note.start()):
            edited = (*span, False)
    return edited


def _checksum(body: bytes) -> str:
    # Editors strip trailing spaces, change line endings and pad tables on save: none of that is an edit.
    return short_hash(re.sub(rb"[\s-]+", b"", body))


# --- the block


def render(
    course: Course, days: Sequence[Standing], unreadable: Sequence[int] = (), journals: Collection[str] = ()
) -> bytes:
    """The block with its marker lines, without a newline after the last. The same input gives the same bytes.

    days: what standing.standings gives. unreadable: numbers of the log's lines that are no event.
    journals: the days that have a journal page, which is linked to.
    """
    current = [s for s in days if not s.retired]
    retired = [s for s in days if s.retired]
    parts = [f"# Progress: {_text(course.title)}", _summary(course, current), _table(current), _LEGEND]
    if unreadable:
        numbers = ", ".join(map(str, unreadable))
        parts.append(f"Left out: lines of progress/attempts.jsonl that cannot be read ({numbers}).")
    for week, title in sorted(course.weeks.items()):
        boxes = [_checklist(s, s.day in journals) for s in current if s.week == week]
        if boxes:
            parts += [f"## Week {week}: {_text(title)}", "\n".join(boxes)]
    if retired:
        parts += ["## No longer in the course", "Kept from the log of earlier versions.", _table(retired)]
    # A lone surrogate, which JSON can hold, must not stop the tracker.
    body = ("\n" + "\n\n".join(parts) + "\n").encode(errors="replace")
    return marked(body)


def marked(body: bytes) -> bytes:
    """A block: `body` between the marker lines, with its checksum."""
    return _BEGIN % _checksum(body).encode() + body + END


_LEGEND = """\
What the columns say (– is nothing yet; dates are in UTC):

- **Status**: *not started*, *in progress*, *partial* (all that could run passed, but not everything could),
  *passed*, *passed, edited since* (the files are no longer those that passed), or *passed, now broken* (it
  fails now).
- **Tasks**: those that passed when last graded, of all; with the best so far where that was more.
- **Attempts**: gradings of your own code. **Time**: from each event of the log to the next, pauses over
  30 minutes left out. **Hints**: different hints taken.
- **Mastery**: check questions that were right when last answered (`tinyllm-grade quiz`), of the day's all.
- **Reference**: whether you first looked at the reference before or after the day first passed, and when.
- **Passed**, **Snapshot**, **Files**: when these files first passed, the snapshot that holds them
  (`tinyllm-grade history` lists all), and the start of their SHA-256."""

_COLUMNS = (
    "Day",
    "Title",
    "Status",
    "Tasks",
    "Attempts",
    "Time",
    "Hints",
    "Mastery",
    "Reference",
    "Passed",
    "Snapshot",
    "Files",
)
_NUMBERS = {"Tasks", "Attempts", "Time", "Hints", "Mastery"}  # aligned to the right
_NOTHING = "–"


def _summary(course: Course, current: Sequence[Standing]) -> str:
    finished = sum(s.finished for s in current)
    done = sum(s.tasks_passed for s in current)
    tasks = sum(len(s.tasks) for s in current)
    seconds = sum(s.seconds for s in current)
    lines = [
        f"**{finished} of {len(current)} days passed**, {done} of {tasks} tasks, {duration(seconds)} of work."
    ]
    following = next_unfinished(course, current)
    if following is not None:
        lines.append(f"Next: `tinyllm-grade {following.name}`, {_text(following.title)}.")
    elif current:
        lines.append("Every day has passed.")
    return " ".join(lines)


def _table(rows: Sequence[Standing]) -> str:
    cells = [_COLUMNS, *(_row(s) for s in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_COLUMNS))]
    right = [name in _NUMBERS for name in _COLUMNS]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    lines = []
    for row in (cells[0], rule, *cells[1:]):
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def _row(s: Standing) -> tuple[str, ...]:
    tasks = f"{s.tasks_passed}/{len(s.tasks)}" if s.tasks else _NOTHING
    if s.tasks_passed_ever > s.tasks_passed:
        tasks += f" (best {s.tasks_passed_ever}/{len(s.tasks)})"
    status = s.status.value
    if s.passed and s.passed.borrowed:
        status += f" ({_borrowed(s.passed.borrowed)})"
    looked = s.looked.value
    if s.looked_at:
        looked += f", {s.looked_at:%Y-%m-%d}"
    cells = (
        s.day,
        s.title,
        status,
        tasks,
        str(s.attempts) if s.attempts else _NOTHING,
        duration(s.seconds) if s.seconds else _NOTHING,
        str(s.hints) if s.hints else _NOTHING,
        f"{s.mastered}/{s.questions}" if s.answered else _NOTHING,
        _NOTHING if s.looked is Looked.NO else looked,
        f"{s.passed.at:%Y-%m-%d}" if s.passed else _NOTHING,
        s.passed.snapshot[:10] if s.passed else "",
        s.passed.files if s.passed else "",
    )
    return tuple(_text(c).replace("|", "\\|") or _NOTHING for c in cells)


def _checklist(s: Standing, has_journal: bool = False) -> str:
    notes = {
        Status.EDITED: "edited since it passed: grade it again",
        Status.BROKEN: "passed before, fails now",
        Status.PARTIAL: "everything that could run has passed",
    }
    note = f" ({notes[s.status]})" if s.status in notes else ""
    journal = f" ([journal]({JOURNALS}/day{s.day}.md))" if has_journal else ""
    lines = [f"- {_box(s.finished)} day {_text(s.day)} {_text(s.title)}{journal}{note}"]
    lines += [f"  - {_box(t.passed)} task {t.id}: {_text(t.title)}{_task_note(t)}" for t in s.tasks]
    return "\n".join(lines)


def _task_note(task: TaskStanding) -> str:
    notes = []
    if task.outcome and not task.passed and task.outcome != Outcome.NOT_STARTED:
        notes.append(f"{_text(task.outcome)}, {task.passed_checks} of {task.expected_checks} checks")
    if task.hints:
        notes.append("1 hint" if task.hints == 1 else f"{task.hints} hints")
    return f" ({'; '.join(notes)})" if notes else ""


def _box(ticked: bool) -> str:
    return "[x]" if ticked else "[ ]"


def _borrowed(days: Sequence[str]) -> str:
    return f"day {days[0]} borrowed" if len(days) == 1 else f"days {', '.join(days)} borrowed"


def _text(text: str) -> str:
    """One line that can start no tag and no comment, whatever the course or the log says."""
    return " ".join(text.split()).replace("<", "&lt;")
