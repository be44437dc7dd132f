"""How often a mistake is told by its name: every misconception, graded as a learner's file, must be named.

The gradings are those that verify.py makes anyway, through the very runner that learners use. What their
checks saw is handed to the search that follows a learner's verdict (likely.py), all of a day at once. One
misconception of each task is run again, as that search does it, and has to give what its grading gave. For
the others what their gradings left behind is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import likely
from ..catalog import Day
from ..clone import Clone
from ..report import TaskResult

NAMED_SHARE = 0.95  # of the misconceptions, at least


@dataclass(frozen=True)
class Trial:
    """A misconception that was graded as if it were a learner's: its id, its task, what the checks saw."""

    mistake: str
    task: TaskResult
    witness: Path


@dataclass(frozen=True)
class Naming:
    """What misconceptions were called. Ids, but for `wrong`, which are sentences."""

    itself: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()  # called by the name of one that is the same on all of the checks' inputs
    silent: tuple[str, ...] = ()  # nothing was said
    wrong: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return len(self.itself) + len(self.alike) + len(self.silent) + len(self.wrong)

    @property
    def named(self) -> int:
        return len(self.itself) + len(self.alike)

    def __add__(self, other: Naming) -> Naming:
        return Naming(
            self.itself + other.itself,
            self.alike + other.alike,
            self.silent + other.silent,
            self.wrong + other.wrong,
        )

    @property
    def problems(self) -> list[str]:
        """Why the misconceptions are not told apart well enough; empty when they are."""
        found = list(self.wrong)
        if self.named < NAMED_SHARE * self.total:
            found.append(
                f"{self.named} of {self.total} misconceptions are named, and {NAMED_SHARE:.0%} are needed; "
                f"nothing is said of {', '.join(self.silent)}"
            )
        return found

    def __str__(self) -> str:
        share = f" ({self.named / self.total:.1%})" if self.total else ""
        same = f", {len(self.alike)} of them as one that is the same" if self.alike else ""
        return f"{self.named} of {self.total} named{share}{same}; {len(self.wrong)} wrongly"


def name(clone: Clone, day: Day, trials: Sequence[Trial], *, jobs: int) -> Naming:
    """What the search makes of a day's misconceptions."""
    order = [mistake.id for task in day.tasks for mistake in task.misconceptions]
    trials = sorted(trials, key=lambda trial: order.index(trial.mistake))
    graded = [likely.Graded(trial.mistake, trial.task, trial.witness) for trial in trials]
    explained = [one for one in graded if one.can_be_explained]
    again = {one.task.id: one.key for one in reversed(explained)}.values()
    trusted = [one.key for one in explained if one.key not in again]
    searched = likely.search(clone, day, graded, pairs=False, at_once=jobs, trusted=trusted)
    found = {named.key: named for named in searched}
    result = Naming()
    for trial in trials:
        result += _judge(day, trial.mistake, found.get(trial.mistake))
    return result


def _judge(day: Day, mistake: str, named: likely.Named | None) -> Naming:
    called = f"{day.name} '{mistake}'"
    if named is None:
        return Naming(silent=(called,))
    if named.mistakes == (mistake,):
        return Naming(itself=(called,))
    if (mistake,) in named.alike:
        return Naming(alike=(called,))
    return Naming(
        wrong=(f"{day.name}: misconception '{mistake}' is taken for {' and '.join(named.mistakes)}",)
    )
