"""The log of what the learner did: progress/attempts.jsonl, one JSON object a line, only ever appended to.

Every line has "v" (1), "event", "id", "at" (UTC, ISO 8601, milliseconds) and "day" ("1.3", or "" when it
concerns no one day). The events and what each has besides:

    attempt   solution, borrowed, only_task, verdict, tasks, seconds, files, regression, failures
                                    (see Attempt)
    hint      task, hint            the number of the hint shown, from 1
    diff      task                  the reference was shown; null means the whole day
    read      -                     the lesson was shown
    answer    question, right, given    a check question was answered; `question` is its id
    note      -                     the day's journal page was opened
    snapshot  commit, attempt       the exercises were kept as this commit, after that attempt ("" if none)
    restore   commit                a snapshot was brought back
    reset     -                     the pristine stub was brought back

No line holds a path outside the clone. Lines that are no such object are skipped by `read` and reported;
events that this version does not know are kept as plain Events.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from .files import faults, locked, read_or_none, sync_folder, write_all
from .report import SEVERITY, Outcome

if TYPE_CHECKING:
    from .clone import Clone
    from .report import DayReport, TaskResult

VERSION = 1
_UNSAID = (Outcome.NOT_STARTED, Outcome.NOT_REACHED)  # outcomes that say all there is to say


@dataclass(frozen=True)
class Event:
    """One line of the log. Kinds with fields of their own are the classes below."""

    id: str
    at: datetime  # UTC
    kind: str  # the line's "event"
    day: str  # "1.3"; "" when it concerns no one day
    data: dict[str, Any] = field(repr=False)  # the line as it was read


class TaskTally(NamedTuple):
    """How one task fared in one attempt."""

    outcome: str  # a value of report.Outcome
    passed: int  # checks
    expected: int  # checks


@dataclass(frozen=True)
class Attempt(Event):
    """One grading of one day, at the moment of its verdict."""

    solution: str  # "exercises" or "reference"
    borrowed: tuple[str, ...]  # ids of the days whose modules came from the reference
    only_task: int | None  # --task N
    verdict: str  # a value of report.Verdict
    tasks: dict[int, TaskTally]
    seconds: float  # what the grading took
    files: dict[str, str]  # path relative to the clone -> content hash of what was graded
    regression: bool  # re-run because its files had changed, while another day was graded
    failures: dict[int, dict[str, str]] = field(default_factory=dict)  # task -> its first failure (see _told)


@dataclass(frozen=True)
class Answer(Event):
    question: str
    right: bool
    given: str


@dataclass(frozen=True)
class Hint(Event):
    task: int
    hint: int  # from 1


@dataclass(frozen=True)
class Diff(Event):
    task: int | None  # None: the whole day


@dataclass(frozen=True)
class Snapshot(Event):
    commit: str
    attempt: str  # the id of the attempt whose files it holds; "" if it belongs to none


def log_path(clone: Clone) -> Path:
    return clone.progress / "attempts.jsonl"


def lock(clone: Clone) -> AbstractContextManager[None]:
    """The one lock over everything in progress/. Not reentrant: `append` and tracker.update take it."""
    with faults("progress/ cannot be created"):
        clone.progress.mkdir(parents=True, exist_ok=True)
    return locked(clone.progress / ".lock")


# --- writing


def attempt_event(
    report: DayReport,
    *,
    upstream: Mapping[str, str] | None = None,
    regression: bool = False,
    at: datetime | None = None,
) -> dict[str, Any]:
    """The line for a finished grading.

    upstream: files of earlier days that ran with it (standing.upstream_files), recorded beside the
    report's own. regression: the day was re-run while another one was graded.
    """
    files = {**(upstream or {}), **report.files}
    tasks = {
        str(t.id): {"outcome": t.outcome.value, "passed": t.passed, "expected": t.expected}
        for t in report.tasks
    }
    return _event(
        "attempt",
        report.day,
        at,
        solution=report.solution,
        borrowed=list(report.borrowed),
        only_task=report.only_task,
        verdict=report.verdict.value,
        tasks=tasks,
        seconds=round(report.seconds, 3),
        # A file outside the clone would show where on this machine it is.
        files={
            path: digest for path, digest in sorted(files.items()) if not PurePosixPath(path).is_absolute()
        },
        regression=regression,
        failures={str(t.id): told for t in report.tasks if (told := _told(t))},
    )


_TOLD = 300  # characters of one text of a failure that the log keeps


def _told(task: TaskResult) -> dict[str, str]:
    """The failure that speaks for a task, as texts: for the journal and a tutor."""
    wrong = [c for c in task.checks if c.failure and c.outcome in SEVERITY and c.outcome not in _UNSAID]
    wrong.sort(key=lambda c: c.outcome is not task.outcome)
    if not wrong or wrong[0].failure is None:
        return {}
    check, failure = wrong[0], wrong[0].failure
    told = {"check": check.title, "id": check.id, "outcome": check.outcome.value}
    for key in ("summary", "checked", "expected", "got", "where", "error", "fact"):
        told[key] = getattr(failure, key)
    if failure.frames:
        frame = failure.frames[-1]
        if not PurePosixPath(frame.path).is_absolute():
            told["line"] = f"{frame.path}:{frame.line}"
            told["source"] = frame.source
        told["values"] = "; ".join(
            f"{v.name} {v.shape} {v.dtype} {v.note}".rstrip() if v.shape else f"{v.name} = {v.value}"
            for v in frame.values
        )
    return {
        key: text if len(text) <= _TOLD else text[: _TOLD - 3] + "..." for key, text in told.items() if text
    }


def answer_event(
    day: str, question: str, right: bool, given: str, *, at: datetime | None = None
) -> dict[str, Any]:
    """A check question was answered, with what was understood of the answer."""
    return _event("answer", day, at, question=question, right=right, given=given[:80])


def note_event(day: str, *, at: datetime | None = None) -> dict[str, Any]:
    """The day's journal page was opened."""
    return _event("note", day, at)


def hint_event(day: str, task: int, hint: int, *, at: datetime | None = None) -> dict[str, Any]:
    """Hint number `hint` (from 1) of a task was shown."""
    return _event("hint", day, at, task=task, hint=hint)


def diff_event(day: str, task: int | None = None, *, at: datetime | None = None) -> dict[str, Any]:
    """The reference was shown, for one task or (None) for the whole day."""
    return _event("diff", day, at, task=task)


def read_event(day: str, *, at: datetime | None = None) -> dict[str, Any]:
    """The day's lesson was shown."""
    return _event("read", day, at)


def snapshot_event(
    commit: str, *, day: str = "", attempt: str = "", at: datetime | None = None
) -> dict[str, Any]:
    """The exercises were kept as `commit`; `attempt` is the "id" of the attempt that graded them."""
    return _event("snapshot", day, at, commit=commit, attempt=attempt)


def restore_event(commit: str, *, day: str = "", at: datetime | None = None) -> dict[str, Any]:
    """The snapshot `commit` was brought back; `day` "" means all of the exercises."""
    return _event("restore", day, at, commit=commit)


def reset_event(day: str = "", *, at: datetime | None = None) -> dict[str, Any]:
    """The pristine stub of `day` was brought back; "" means all of the exercises."""
    return _event("reset", day, at)


def _event(kind: str, day: str, at: datetime | None, **fields: Any) -> dict[str, Any]:
    moment = (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="milliseconds")
    return {
        "v": VERSION,
        "event": kind,
        "id": os.urandom(6).hex(),
        "at": moment.replace("+00:00", "Z"),
        "day": day,
        **fields,
    }


def append(clone: Clone, event: dict[str, Any]) -> None:
    """Add one line to the log; on return it is on disk. Any number of processes may do so at once.

    Raises EnvironmentFault when the log cannot be locked or written.
    """
    # ASCII only: no file name or prose, however odd, can then make a line that does not decode.
    line = json.dumps(event, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    path = log_path(clone)
    with lock(clone), faults("progress/attempts.jsonl cannot be written"):
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # a torn last line must not swallow this one
            write_all(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            sync_folder(path.parent)


# --- reading


def read(clone: Clone) -> tuple[list[Event], list[int]]:
    """The log's events in the file's order, and the numbers (from 1) of lines that are no event.

    A line that stands there twice, as after merging the logs of two machines, counts once. Raises
    EnvironmentFault when the file is there but cannot be read.
    """
    with faults("progress/attempts.jsonl cannot be read"):
        data = read_or_none(log_path(clone)) or b""
    events: list[Event] = []
    unreadable: list[int] = []
    seen: set[tuple[str, str, datetime]] = set()
    for number, line in _lines(data):
        try:
            event = _parse(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            unreadable.append(number)
            continue
        key = (event.id, event.kind, event.at)
        if not event.id or key not in seen:
            seen.add(key)
            events.append(event)
    return events, unreadable


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield number, line


def _parse(data: dict[str, Any]) -> Event:
    """The event on a line. Raises one of the errors that `read` catches when it is none."""
    at = datetime.fromisoformat(_of(str, data["at"]))
    common: dict[str, Any] = {
        "id": _of(str, data.get("id", "")),
        "at": at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC),
        "kind": _of(str, data["event"]),
        "day": _of(str, data.get("day", "")),
        "data": data,
    }
    parse = _KINDS.get(common["kind"])
    # A later version may mean something else by the same word.
    if parse is None or _of(int, data["v"]) != VERSION:
        return Event(**common)
    return parse(common, data)


def _attempt(common: dict[str, Any], data: dict[str, Any]) -> Attempt:
    tasks = {
        int(number): TaskTally(_of(str, t["outcome"]), _of(int, t["passed"]), _of(int, t["expected"]))
        for number, t in data["tasks"].items()
    }
    return Attempt(
        **common,
        solution=_of(str, data["solution"]),
        borrowed=tuple(_of(str, day) for day in _of(list, data["borrowed"])),
        only_task=_optional(int, data["only_task"]),
        verdict=_of(str, data["verdict"]),
        tasks=tasks,
        seconds=float(data["seconds"]),
        files={path: _of(str, digest) for path, digest in data["files"].items()},
        regression=_of(bool, data.get("regression", False)),
        failures={
            int(number): {key: _of(str, text) for key, text in told.items()}
            for number, told in data.get("failures", {}).items()
        },
    )


def _answer(common: dict[str, Any], data: dict[str, Any]) -> Answer:
    return Answer(
        **common,
        question=_of(str, data["question"]),
        right=_of(bool, data["right"]),
        given=_of(str, data.get("given", "")),
    )


def _hint(common: dict[str, Any], data: dict[str, Any]) -> Hint:
    return Hint(**common, task=_of(int, data["task"]), hint=_of(int, data["hint"]))


def _diff(common: dict[str, Any], data: dict[str, Any]) -> Diff:
    return Diff(**common, task=_optional(int, data.get("task")))


def _snapshot(common: dict[str, Any], data: dict[str, Any]) -> Snapshot:
    return Snapshot(**common, commit=_of(str, data["commit"]), attempt=_of(str, data.get("attempt", "")))


_KINDS = {"answer": _answer, "attempt": _attempt, "hint": _hint, "diff": _diff, "snapshot": _snapshot}


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _optional(kind: type, value: Any) -> Any:
    return None if value is None else _of(kind, value)
