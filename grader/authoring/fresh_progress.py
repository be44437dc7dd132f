"""progress/ as it ships: the tracker of a learner who has done nothing yet, and no log."""

from __future__ import annotations

from .. import attempts, tracker
from ..catalog import Course
from ..clone import Clone
from ..errors import UsageError
from ..files import read_or_none, write_atomically


def differs(clone: Clone, course: Course) -> list[str]:
    """What in progress/ is not as it ships, one sentence each."""
    problems = []
    if read_or_none(tracker.tracker_path(clone)) != tracker.pristine(course):
        problems.append("progress/tiny-llm-tracker.md is not the fresh one")
    if read_or_none(attempts.log_path(clone)):
        problems.append("progress/attempts.jsonl has attempts in it")
    if (clone.progress / tracker.JOURNALS).exists():
        problems.append("progress/journal has pages in it")
    return problems


def refuse_learners_clone(clone: Clone) -> None:
    """Raise UsageError where somebody works through the course: generating would overwrite their code."""
    if read_or_none(attempts.log_path(clone)):
        raise UsageError(
            "progress/attempts.jsonl has attempts in it, so exercises/ is somebody's work: not overwritten.",
            next_step="Generate in a clone of its own. One day's stub comes back with `tinyllm-grade reset`.",
        )


def write(clone: Clone, course: Course) -> bool:
    """Write the fresh tracker; whether that changed anything."""
    path, fresh = tracker.tracker_path(clone), tracker.pristine(course)
    if read_or_none(path) == fresh:
        return False
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, fresh)
    return True
