"""The child that looks for the mistake behind a failure: known mistakes, run on the checks that failed.

    python -P -m tinyllm.grader.likely_child '<job as JSON>'

Each misconception of a task is an edit of the reference. It is run on the task's checks, with the same inputs
as the learner's code was, and with the reference in the place of every earlier day. One whose checks all end
as the learner's did is named. Where none does, mistakes of the day's other tasks that were named are tried,
and pairs.

The job's `learners` are gradings of one task each: what passed, what failed, and the file of their endings.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from . import catalog, edits, forks, likeness
from .catalog import Course, Day, Misconception, Task
from .child import Emitter, Quiet, die_with_parent, pytest_arguments
from .clone import Clone
from .errors import SpecError
from .plugin import Grading, Solution, check_id
from .testing import check
from .trees import Tree
from .witness import Ending, read

# A failure of less than so many tolerances is a matter of precision, and can come from anywhere.
CLEARLY_OFF = 10.0
# Mistakes this near to each other, in tolerances, cannot be told apart by the task's checks.
ALIKE = 0.25
# Failing checks on which a mistake is tried although it is not the one: the likest are tried in pairs first.
TRIED_FOR_PAIRS = 5
RICH_NUMBERS, RICH_TEXT = 4, 12  # different numbers, or characters, that hardly come about in two ways
SECONDS_EACH = {False: 3.0, True: 60.0}  # that one mistake may take; True: where kernels may be compiled


def main(job: Mapping[str, Any]) -> None:
    die_with_parent(job["lifeline"])
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for habit in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
        os.environ.pop(habit, None)
    os.environ["TINYLLM_ROOT"] = job["root"]
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    clone = Clone(Path(job["root"]))
    course = catalog.load(clone)
    emit = Emitter(job["events"], job["token"])
    learners = [Learner.of(given) for given in job["learners"]]
    with tempfile.TemporaryDirectory(prefix="tinyllm-likely-") as folder:
        search = Search(clone, course, course.day(job["day"]), learners, job, emit, Path(folder))
        pytest.main(pytest_arguments(search.day), plugins=[Quiet(), search])
        emit("end", {})
    os._exit(0)


@dataclass(frozen=True)
class Learner:
    """One grading of one task."""

    key: str
    task: int
    passed: frozenset[str]  # the ids of checks
    endings: Mapping[str, Ending]  # of those that failed

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Learner:
        known = read(Path(given["file"]))
        # Of a check that ended without a trace nothing is known, so nothing is said about its task.
        whole = all(name in known for name in given["failed"])
        endings = {name: known[name] for name in given["failed"]} if whole else {}
        return cls(given["key"], given["task"], frozenset(given["passed"]), endings)

    @property
    def is_clear(self) -> bool:
        """Whether something is wrong that is more than imprecise."""
        return any(e.off >= CLEARLY_OFF for e in self.endings.values())

    @property
    def is_rich(self) -> bool:
        """Whether the wrong outputs hold something that two mistakes hardly have in common by chance."""
        numbers: set[float] = set()
        for seen in (ending.seen for ending in self.endings.values()):
            if seen.values is None:
                if len(seen.text) > RICH_TEXT:
                    return True
            else:
                some = seen.values[:64]
                numbers |= set(some[abs(some) < math.inf])
        return len(numbers) >= RICH_NUMBERS


@dataclass(frozen=True, eq=False)
class Known:
    """A mistake to try, or two made at once."""

    mistakes: tuple[Misconception, ...]
    changed: Mapping[str, str] = field(repr=False)  # module -> source

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(m.id for m in self.mistakes)


@dataclass
class Likeness:
    """A learner's checks beside those of a known mistake."""

    farthest: float | None = 0.0  # the largest distance of any check; None: it is another mistake
    agreeing: int = 0  # failing checks that end alike


class Search:
    """The pytest plugin that runs checks on known mistakes, in the place of pytest's loop over the items."""

    def __init__(
        self,
        clone: Clone,
        course: Course,
        day: Day,
        learners: Sequence[Learner],
        job: Mapping[str, Any],
        emit: Emitter,
        folder: Path,
    ) -> None:
        self.clone, self.course, self.day = clone, course, day
        self.learners = learners
        self.emit = emit
        self.folder = folder
        self.forks: bool = job.get("forks", forks.SAFE)
        self.at_once: int = job["at_once"]
        self.seconds: float = job["seconds"]
        self.pair_seconds: float = job["pair_seconds"]
        # Where the learners are known mistakes, they are told from each other only: see likely.search.
        self.among = frozenset(one.key for one in learners) if "trusted" in job else None
        self.trusted = frozenset(job.get("trusted", ()))
        run = [module for one in course.foundation(day) for module in one.modules]
        self.compiles = any(not module.endswith(".py") for module in run)
        self._items: dict[int, list[pytest.Item]] = {}  # of each task
        self._solution: Solution | None = None  # of the mistake that is being tried
        self._error: BaseException | None = None  # of the check that ran last
        self._folders = itertools.count()

    # ---- the plugin ----

    @pytest.fixture
    def solution(self) -> Solution | None:
        """The code under test."""
        return self._solution

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "task(n): the task that a check belongs to")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for item in session.items:
            mark = item.get_closest_marker("task")
            self._items.setdefault(mark.args[0] if mark else 0, []).append(item)
        self._search()
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self) -> Generator[None, object, object]:
        check.begin()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        if call.excinfo is not None and call.when != "teardown":
            self._error = call.excinfo.value
        return (yield)

    # ---- the search ----

    def _search(self) -> None:
        named: list[Known] = []
        unnamed: list[tuple[Learner, dict[Known, Likeness]]] = []
        for task in self.day.tasks:
            learners = [one for one in self.learners if one.task == task.id and one.is_clear]
            if not learners:
                continue
            found = self._compare(task, learners, list(self._singles(task)), self._budget(self.seconds))
            for number, learner in enumerate(learners):
                beside = {known: likenesses[number] for known, likenesses in found.items()}
                alike = _alike(beside)
                if alike:
                    self._tell(learner, alike, beside[alike[0]].agreeing)
                    named.append(alike[0])
                else:
                    unnamed.append((learner, beside))
        if self.pair_seconds <= 0:
            return
        for learner, beside in unnamed:
            self._look_further(learner, beside, named)

    def _look_further(
        self, learner: Learner, beside: Mapping[Known, Likeness], named: Sequence[Known]
    ) -> None:
        """Mistakes of other tasks, whose code this one uses, and two mistakes at once."""
        task = self.day.task(learner.task)
        budget = self._budget(self.pair_seconds)
        own = sorted(beside, key=lambda known: -beside[known].agreeing)  # in the spec's order where equal
        others = [known for known in named if known not in beside]
        tries: list[Iterable[Known]] = [others]
        if learner.is_rich:
            tries.append(self._pairs(itertools.product(others, own)))
            by_rank = sorted(itertools.combinations(range(len(own)), 2), key=lambda pair: (sum(pair), pair))
            tries.append(self._pairs((own[a], own[b]) for a, b in by_rank))
        for knowns in tries:
            found = self._compare(task, [learner], list(knowns), budget, first=True)
            beside = {known: likenesses[0] for known, likenesses in found.items()}
            alike = _alike(beside)
            if alike:
                self._tell(learner, alike, beside[alike[0]].agreeing)
                return

    def _budget(self, seconds: float) -> forks.Budget:
        return forks.Budget(seconds, self.at_once if self.forks else 1)

    def _tell(self, learner: Learner, alike: Sequence[Known], agreeing: int) -> None:
        self.emit(
            "named",
            {
                "key": learner.key,
                "task": learner.task,
                "mistakes": alike[0].ids,
                "alike": [known.ids for known in alike[1:]],
                "checks": agreeing,
            },
        )

    def _singles(self, task: Task) -> Iterator[Known]:
        for mistake in task.misconceptions:
            if self.among is not None and mistake.id not in self.among:
                continue
            with contextlib.suppress(SpecError, OSError):
                source = (self.clone.reference / mistake.module).read_text(encoding="utf-8")
                yield Known((mistake,), {mistake.module: edits.misconceived(source, mistake)})

    def _pairs(self, of: Iterable[tuple[Known, Known]]) -> Iterator[Known]:
        for a, b in of:
            (first,), (second,) = a.mistakes, b.mistakes
            if first.module != second.module:
                yield Known((first, second), {**a.changed, **b.changed})
                continue
            source = (self.clone.reference / first.module).read_text(encoding="utf-8")
            if edits.apart(source, (first, second)):
                yield Known((first, second), {first.module: edits.misconceived(source, first, second)})

    def _compare(
        self,
        task: Task,
        learners: Sequence[Learner],
        knowns: Sequence[Known],
        budget: forks.Budget,
        *,
        first: bool = False,
    ) -> dict[Known, list[Likeness]]:
        """Each known mistake beside each learner; with `first`, up to the first that is somebody's.

        What does not end in its time, or cannot be run, is left out.
        """
        items = self._items.get(task.id, [])
        order = {known: number for number, known in enumerate(knowns)}
        if len(learners) == 1:  # what failed says most
            items = sorted(items, key=lambda item: check_id(item) not in learners[0].endings)
        found = {known: self._beside(known, learners) for known in knowns if self._is_trusted(known)}
        knowns = [known for known in knowns if known not in found]
        works = [lambda known=known: self._try(known, items, learners) for known in knowns]
        if self.forks:
            limit = SECONDS_EACH[self.compiles]
            results = forks.forked(works, at_once=self.at_once, limit=limit, budget=budget)
        elif self.compiles:
            return found  # one process can load one state of a tree's kernels
        else:
            results = forks.in_turn(works, budget=budget)
        for done, (number, result) in enumerate(results, 1):
            self.emit("tried", {"task": task.id, "done": done, "total": len(knowns)})
            if result is not None:
                found[knowns[number]] = [Likeness(*each) for each in result]
                if first and _alike({knowns[number]: found[knowns[number]][0]}):
                    break
        return dict(sorted(found.items(), key=lambda pair: order[pair[0]]))

    def _is_trusted(self, known: Known) -> bool:
        return len(known.ids) == 1 and known.ids[0] in self.trusted

    def _beside(self, known: Known, learners: Sequence[Learner]) -> list[Likeness]:
        """A mistake that was graded as a learner's beside each learner, by what both gradings left behind."""
        itself = next(one for one in self.learners if one.key == known.ids[0])
        beside = [Likeness() for _ in learners]
        for learner, likeness_ in zip(learners, beside, strict=True):
            for name in (*learner.endings, *learner.passed):
                ending = itself.endings.get(name)
                _judge(learner, likeness_, name, ending is not None or name in itself.passed, ending)
        return beside

    # ---- one mistake, in a fork ----

    def _try(
        self, known: Known, items: Sequence[pytest.Item], learners: Sequence[Learner]
    ) -> list[tuple[float | None, int]]:
        """The mistake's checks beside those of each learner."""
        overlays = {}
        folder = self.folder / f"{os.getpid()}-{next(self._folders)}"
        for module, source in known.changed.items():
            overlays[module] = folder / module
            overlays[module].parent.mkdir(parents=True, exist_ok=True)
            overlays[module].write_text(source, encoding="utf-8")
        tree = Tree("reference", self.clone.reference, overlays)
        beside = [Likeness() for _ in learners]
        try:
            self._solution = Grading(self.clone, self.course, self.day, tree).stand_in(list(items))
            for tried, item in enumerate(items, 1):
                name, ran, ending = check_id(item), *self._run(item)
                for learner, likeness_ in zip(learners, beside, strict=True):
                    _judge(learner, likeness_, name, ran, ending)
                hopeless = all(one.farthest is None for one in beside)
                if hopeless and (len(learners) > 1 or tried >= TRIED_FOR_PAIRS):
                    break
        finally:
            tree.uninstall()
        return [(one.farthest, one.agreeing) for one in beside]

    def _run(self, item: pytest.Item) -> tuple[bool, Ending | None]:
        """Whether the check came to an end, and how it ended; None: it passed."""
        self._error = None
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        if self._error is None:
            return True, None
        if isinstance(self._error, Exception):
            check.witness.raised(self._error)
        return check.witness.ending is not None, check.witness.ending


def _judge(learner: Learner, beside: Likeness, name: str, ran: bool, ending: Ending | None) -> None:
    """Take one check's end into account."""
    theirs = learner.endings.get(name)
    if theirs is None:
        if name in learner.passed and (not ran or ending is not None):
            beside.farthest = None
        return
    apart = likeness.distance(theirs, ending) if ran and ending is not None else None
    if apart is None:
        beside.farthest = None
        return
    beside.agreeing += 1
    if beside.farthest is not None:
        beside.farthest = max(beside.farthest, apart)


def _alike(beside: Mapping[Known, Likeness]) -> list[Known]:
    """The mistakes that the learner's outputs are those of, in their order; none, one, or several that the
    checks cannot tell apart."""
    near = {known: one.farthest for known, one in beside.items() if one.farthest is not None}
    nearest = min(near.values(), default=0.0)
    return [known for known, farthest in near.items() if farthest <= nearest + ALIKE]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
