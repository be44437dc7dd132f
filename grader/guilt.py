"""Which day is to blame for the checks that fail: found by swapping the learner's code for the reference's.

The failing checks of a day are run again with the earlier days' modules from the reference, with the day's
own, with those of one earlier day, then of the smallest set that makes them pass; within the guilty day with
one module and one function at a time. What is told is what these trials and the guilty day's own checks show.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from . import likely, runner, symbols
from .catalog import Course, Day
from .clone import Clone
from .report import CheckResult, DayReport, Outcome
from .trials import OutOfTime, Trials, Tried, Variant

WRONG = (Outcome.FAILED, Outcome.CRASHED, Outcome.TIMED_OUT, Outcome.OUT_OF_MEMORY, Outcome.REFUSED)
COSTLY = (Outcome.TIMED_OUT, Outcome.OUT_OF_MEMORY)
UNFIT = ("TypeError", "AttributeError", "ImportError")  # what code says that does not fit the reference's
SAMPLE_SECONDS = 0.5  # of failing checks that each trial runs; what they find is confirmed on all of them
ALL_EARLIER = "all earlier days"  # label of a trial
CONFIRM_SECONDS = 1.5  # of failing checks that the confirmation runs where there is a deadline
ROUNDS = 3  # of searching again for the checks that a found set leaves failing
LARGEST_TRIED_SET = 2  # larger sets are found by leaving days out of all, not by trying each


class Kind(StrEnum):
    """What the trials show."""

    PASSES = "passes"  # nothing fails
    NOT_WRITTEN = "not written"  # the day's own stub is all that stops it
    NEEDS = "earlier day not written"
    OWN = "own code"
    EARLIER = "earlier day"
    BOTH = "own code and earlier day"
    MISFIT = "misfit"  # either side works with the reference's other side
    CHANCE = "passes when run again"
    COURSE = "course"  # it fails with the reference throughout
    UNDECIDED = "undecided"  # no time, or nothing that could be tried


@dataclass(frozen=True)
class OwnChecks:
    """What the guilty day's own checks say of it."""

    ran: int = 0
    wrong: CheckResult | None = None  # the one that says most about what is at fault
    mistake: str = ""  # the likely mistake, in the words of the day's spec

    @property
    def see_it(self) -> bool:
        return self.wrong is not None


@dataclass(frozen=True)
class Culprit:
    """An earlier day whose code is at fault."""

    day: Day
    modules: tuple[str, ...]  # of the day's, those at fault
    symbols: tuple[str, ...]  # functions and classes each of which alone, from the reference, mends it
    checks: tuple[str, ...]  # failing checks that pass once this is mended
    own: OwnChecks | None = None  # None: there was no time to run them

    @property
    def tasks(self) -> tuple[int, ...]:
        """The tasks of the guilty day that ask for the symbols."""
        return tuple(t.id for t in self.day.tasks if any(top(s.name) in self.symbols for s in t.symbols))


@dataclass(frozen=True)
class Trial:
    """One trial as evidence: what came from the reference, and how many of the checks then passed."""

    label: str
    passed: int
    ran: int
    unfit: str = ""  # what the learner's code raised because it does not fit what came from the reference


@dataclass(frozen=True)
class Guilt:
    """Who is to blame for the failing checks of a day."""

    day: Day
    kind: Kind
    failing: tuple[str, ...] = ()  # ids of checks that fail
    unfinished: bool = False  # part of the day's own code is a stub
    culprits: tuple[Culprit, ...] = ()
    own_checks: tuple[str, ...] = ()  # failing checks that need the day's own code mended
    unexplained: tuple[str, ...] = ()  # that fail with the reference's code too
    unwritten: Mapping[str, str] | None = None  # earlier day -> what its stub says
    confirmed: bool = True  # on all failing checks, not on a sample alone
    trials: tuple[Trial, ...] = ()
    seconds: float = 0.0

    def own_tasks(self, checks: Mapping[str, Tried]) -> tuple[int, ...]:
        return tuple(sorted({checks[i].task for i in self.own_checks if i in checks}))


def tried_of(report: DayReport) -> list[Tried]:
    """A grading's results in the form of a trial's."""
    return [
        Tried(
            c.id,
            c.task,
            c.title,
            c.outcome,
            c.seconds,
            c.failure.summary if c.failure else "",
            c.failure.needs_day if c.failure else "",
        )
        for task in report.tasks
        for c in task.checks
    ]


def worth_asking(day: Day, results: Iterable[Tried]) -> bool:
    """Whether an earlier day could be to blame for what fails."""
    return bool(day.builds_on) and any(r.outcome in WRONG for r in results)


def label_of(days: Sequence[Day]) -> str:
    """ "day 1.1 and day 1.2", for what came from the reference in a trial."""
    return " and ".join(f"day {d.id}" for d in days)


def own_label(day: Day) -> str:
    return f"day {day.id}'s own code"


def top(name: str) -> str:
    """ "RoPE" of "RoPE.__call__"."""
    return name.split(".")[0]


class Inquiry:
    """The search, over trials of one day's checks. `stage` is told, in words, what is being tried."""

    def __init__(
        self,
        trials: Trials,
        *,
        base: Mapping[str, Path] | None = None,
        borrowed: Sequence[Day] = (),
        stage: Callable[[str], None] = lambda text: None,
        look_inside: bool = True,
        ask_own_checks: bool = True,
    ) -> None:
        """base: files that stand for modules of the learner's tree in every trial. borrowed: days whose
        modules are the reference's anyway. look_inside: find the guilty day's module and function too."""
        self.runs = trials
        self.clone: Clone = trials.clone
        self.course: Course = trials.course
        self.day = trials.day
        self.borrowed = tuple(borrowed)
        self.base = {m: self.clone.reference / m for d in borrowed for m in d.modules} | dict(base or {})
        self.stage = stage
        self.look_inside = look_inside
        self.ask_own_checks = ask_own_checks
        self.earlier = [
            d for d in self.course.foundation(self.day) if d != self.day and d not in self.borrowed
        ]
        self.evidence: list[Trial] = []
        self._known: dict[tuple[frozenset[str], tuple[str, ...]], set[str]] = {}
        self._own_checks: dict[tuple[str, tuple[str, ...]], OwnChecks] = {}
        self.began = time.monotonic()

    # ---- the whole answer

    def all_checks(self, only_task: int | None = None) -> list[Tried]:
        """The day's checks on the learner's tree as it is."""
        self.stage(f"running {self.day.name}'s checks")
        self.runs.prepare(Variant(self.base))
        ids = [i for i, (task, _) in self.runs.checks.items() if only_task in (None, task)]
        return list(self.runs.run(Variant(self.base), ids).values())

    def find(self, results: Sequence[Tried]) -> Guilt:
        """Who is to blame for what fails among `results`, the day's checks on the learner's tree.

        Never raises OutOfTime: what was not found until the deadline is UNDECIDED.
        """
        failing = [r for r in results if r.outcome in WRONG]
        unwritten = {r.needs_day: r.summary for r in reversed(results) if r.needs_day}
        unfinished = any(
            r.outcome in (Outcome.NOT_STARTED, Outcome.BLOCKED) and not r.needs_day for r in results
        )
        guilt = Guilt(self.day, Kind.UNDECIDED, tuple(r.id for r in failing), unfinished, unwritten=unwritten)
        if not failing:
            idle = Kind.NOT_WRITTEN if unfinished else Kind.PASSES
            guilt = replace(guilt, kind=Kind.NEEDS if unwritten else idle)
        elif not self.earlier:
            guilt = replace(guilt, kind=Kind.OWN, own_checks=guilt.failing)
        else:
            try:
                guilt = self._search(guilt, failing)
            except OutOfTime:
                self.runs.close()
        return replace(guilt, trials=tuple(self.evidence), seconds=time.monotonic() - self.began)

    def _search(self, guilt: Guilt, failing: Sequence[Tried]) -> Guilt:
        """Search on a sample, confirm on all; search again for what is left."""
        guilty: list[Day] = []
        own: set[str] = set()
        misfit: set[str] = set()
        hopeless: set[str] = set()
        mended: set[str] = set()
        left = list(failing)
        confirmed = True
        for _ in range(ROUNDS):
            ids = sample(left)
            found = self._blame(ids)
            if found.misfit and found.misfit <= self._passing([], ids, "nothing"):
                return replace(guilt, kind=Kind.CHANCE)  # either side mended it because nothing was wrong
            guilty += [d for d in found.days if d not in guilty]
            own |= found.own
            misfit |= found.misfit
            hopeless |= found.hopeless
            mended |= found.mended
            if len(ids) == len(left):
                break
            judged = self._to_confirm([r for r in failing if r.id not in hopeless])
            confirmed = len(judged) + len(hopeless) == len(failing)
            try:
                own_day = [self.day] if own else []
                passed = self._passing([*guilty, *own_day], [r.id for r in judged], "all at fault")
            except OutOfTime:
                confirmed = False
                break
            mended |= passed
            left = [r for r in judged if r.id not in passed]
            if not left:
                break
        else:
            confirmed = False
        guilty.sort(key=self.course.days.index)
        guilt = replace(
            guilt,
            kind=_kind(guilty, own, misfit, hopeless),
            own_checks=tuple(r.id for r in failing if r.id in own),
            unexplained=tuple(r.id for r in failing if r.id in hopeless),
            confirmed=confirmed,
        )
        if guilt.kind is Kind.OWN:
            return replace(guilt, own_checks=tuple(i for i in guilt.failing if i not in hopeless))
        return replace(guilt, culprits=self._culprits(guilty, failing, mended, bool(own)))

    def _to_confirm(self, failing: Sequence[Tried]) -> list[Tried]:
        """All that fail; where there is a deadline, the quick ones."""
        if self.runs.deadline is None:
            return list(failing)
        quick = sorted(failing, key=lambda r: r.seconds)
        spent = itertools.accumulate(r.seconds for r in quick)
        return [r for r, seconds in zip(quick, spent, strict=True) if seconds <= CONFIRM_SECONDS]

    # ---- which days

    def _blame(self, ids: tuple[str, ...]) -> _Blame:
        """Whose code must be the reference's for these checks to pass."""
        earlier = self._passing(self.earlier, ids, ALL_EARLIER)
        alone = self._passing([self.day], ids, own_label(self.day))
        rest = tuple(i for i in ids if i not in earlier | alone)
        together = self._passing([*self.earlier, self.day], rest, "everything") if rest else set()
        blame = _Blame(hopeless=set(rest) - together, mended=earlier | alone | together)
        need_earlier, need_own, either = earlier - alone, alone - earlier, earlier & alone
        if need_own or together:
            blame.own |= need_own | together
        if need_earlier or together:
            if wanted := need_earlier | (either - need_own):
                blame.days += self._smallest(_in_order(ids, wanted), [])
            if together:
                blame.days += self._smallest(_in_order(ids, together), [self.day])
        elif either and not need_own:
            blame.misfit |= either
            blame.days += self._smallest(_in_order(ids, either), [])
        blame.days = list(dict.fromkeys(blame.days))
        return blame

    def _smallest(self, ids: tuple[str, ...], besides: Sequence[Day]) -> list[Day]:
        """The smallest set of earlier days whose modules, from the reference, make all of `ids` pass.

        besides: what comes from the reference anyway.
        """
        wanted = set(ids)
        single = {d: self._passing([d, *besides], ids, label_of([d, *besides])) for d in self.earlier}
        enough = [d for d in self.earlier if single[d] >= wanted]
        if enough:
            return [self._most_suspect(enough)]
        if wanted <= set().union(*single.values()):
            cover, left = [], set(wanted)
            while left:
                best = max(self.earlier, key=lambda d: len(single[d] & left))
                cover.append(best)
                left -= single[best]
            if len(cover) <= LARGEST_TRIED_SET and self._mends([*cover, *besides], ids):
                return cover
        for size in range(2, LARGEST_TRIED_SET + 1):
            for few in itertools.combinations(self.earlier, size):
                if self._mends([*few, *besides], ids):
                    return list(few)
        kept = list(self.earlier)
        for day in self.earlier:
            fewer = [d for d in kept if d != day]
            if self._mends([*fewer, *besides], ids):
                kept = fewer
        return kept

    def _most_suspect(self, days: Sequence[Day]) -> Day:
        """Of days each of which alone would do: the first whose own checks fail, else the first."""
        if len(days) > 1 and self.ask_own_checks:
            for day in days:
                if self._own(day, ()).see_it:
                    return day
        return days[0]

    def _mends(self, days: Sequence[Day], ids: tuple[str, ...]) -> bool:
        return self._passing(days, ids, label_of(days)) >= set(ids)

    def _passing(self, days: Sequence[Day], ids: Sequence[str], label: str) -> set[str]:
        """The checks that pass with these days' modules from the reference."""
        overlays = {m: self.clone.reference / m for d in days for m in d.modules}
        return self._trial(Variant({**self.base, **overlays}), ids, label)

    def _trial(self, variant: Variant, ids: Sequence[str], label: str) -> set[str]:
        changed = {f"{m}={f}" for m, f in variant.overlays.items()}
        changed |= {f"{m}::{name}" for m, names in variant.parts.items() for name in names}
        key = (frozenset(changed), tuple(ids))
        if key not in self._known:
            self.stage(f"with {label} from the reference")
            results = self.runs.run(variant, ids)
            self._known[key] = {i for i, r in results.items() if r.outcome is Outcome.PASSED}
            odd = [r.summary for r in results.values() if r.summary.startswith(UNFIT)]
            self.evidence.append(Trial(label, len(self._known[key]), len(ids), odd[0] if odd else ""))
        return self._known[key]

    # ---- what in them

    def _culprits(
        self, guilty: Sequence[Day], failing: Sequence[Tried], mended: set[str], own: bool
    ) -> tuple[Culprit, ...]:
        ids = sample([r for r in failing if r.id in mended])
        culprits = []
        for day in guilty:
            others = [d for d in guilty if d != day] + ([self.day] if own else [])
            mine = set(mended)
            if others:
                mine = set(ids) - self._passing(others, ids, label_of(others))
            culprit = Culprit(day, day.modules, (), tuple(r.id for r in failing if r.id in mine))
            try:
                if self.look_inside:
                    culprit = self._inside(culprit, others, _in_order(ids, mine) or ids)
                if self.ask_own_checks:
                    self.stage(f"running {day.name}'s own checks")
                    culprit = replace(culprit, own=self._own(day, culprit.tasks))
            except OutOfTime:
                self.runs.close()
            culprits.append(culprit)
        return tuple(culprits)

    def _inside(self, culprit: Culprit, others: Sequence[Day], ids: tuple[str, ...]) -> Culprit:
        """The guilty day's module, and the single functions and classes that mend it."""
        beside = {**self.base, **{m: self.clone.reference / m for d in others for m in d.modules}}
        modules = list(culprit.modules)
        if len(modules) > 1:
            for module in culprit.modules:
                variant = Variant({**beside, module: self.clone.reference / module})
                if self._trial(variant, ids, module) >= set(ids):
                    modules = [module]
                    break
        found: list[str] = []
        with tempfile.TemporaryDirectory(prefix="tinyllm-why-") as folder:
            for module in modules:
                asked = [s.name for t in culprit.day.tasks for s in t.symbols if s.module == module]
                names = list(dict.fromkeys(map(top, asked)))
                if len(names) == 1 and len(modules) == 1:
                    found += names
                    break
                for name in names:
                    variant = self._with_symbol(beside, culprit.day, module, name, Path(folder))
                    if variant is not None and self._trial(variant, ids, name) >= set(ids):
                        found.append(name)
        return replace(culprit, modules=tuple(modules), symbols=tuple(found))

    def _with_symbol(
        self, beside: Mapping[str, Path], day: Day, module: str, name: str, folder: Path
    ) -> Variant | None:
        """One function or class of a module from the reference. None where that cannot be put together."""
        if module.endswith(".py"):
            return Variant(beside, {module: (name,)})
        tasks = [t.id for t in day.tasks if any(s.module == module and s.name == name for s in t.symbols)]
        file = self.base.get(module, self.clone.tree(self.runs.solution) / module)
        mixed = with_regions(
            file.read_text(encoding="utf-8", errors="replace"),
            (self.clone.reference / module).read_text(encoding="utf-8"),
            tasks,
        )
        if mixed is None:
            return None
        target = folder / name / Path(module).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(mixed, encoding="utf-8")
        return Variant({**beside, module: target})

    def _own(self, day: Day, tasks: tuple[int, ...]) -> OwnChecks:
        """What the day's own checks say, those of `tasks` above all."""
        if (day.id, tasks) not in self._own_checks:
            self._own_checks[day.id, tasks] = self._grade_own(day, tasks)
        return self._own_checks[day.id, tasks]

    def _grade_own(self, day: Day, tasks: tuple[int, ...]) -> OwnChecks:
        if self._is_late():
            raise OutOfTime
        with tempfile.TemporaryDirectory(prefix="tinyllm-") as folder:
            witness = Path(folder) / "endings.jsonl"
            report = runner.grade(
                self.clone,
                self.course,
                day,
                solution=self.runs.solution,
                overlays=self.base,
                timeout=self.runs.check_seconds,
                enough=lambda check: self._is_late(),
                witness=witness,
            )
            wrong = [c for t in report.tasks for c in t.checks if c.outcome in WRONG]
            wrong.sort(key=lambda c: c.task not in tasks)
            if not wrong and (report.ran < report.expected):
                raise OutOfTime
            said = self._mistake(day, report, wrong[0].task, witness) if wrong else ""
        return OwnChecks(report.ran, wrong[0] if wrong else None, said)

    def _is_late(self) -> bool:
        return self.runs.deadline is not None and time.monotonic() > self.runs.deadline

    def _mistake(self, day: Day, report: DayReport, task: int, witness: Path) -> str:
        """The likely mistake in a task of the day, in its spec's words; "" where none is found in time."""

        def look_at_the_clock(done: int, total: int) -> None:
            if self._is_late():
                raise OutOfTime

        of_task = replace(report, tasks=tuple(t for t in report.tasks if t.id == task))
        try:
            found = likely.explain(self.clone, day, of_task, witness, look_at_the_clock)
        except OutOfTime:
            return ""
        return " ".join(found[0].says) if found else ""


class _Blame:
    """What one round of trials shows about a sample of the failing checks."""

    def __init__(self, hopeless: set[str], mended: set[str]) -> None:
        self.days: list[Day] = []
        self.own: set[str] = set()  # checks that need the day's own code mended
        self.misfit: set[str] = set()  # checks that either side from the reference mends
        self.hopeless = hopeless  # checks that the reference's code fails too
        self.mended = mended


def _kind(guilty: Sequence[Day], own: set[str], misfit: set[str], hopeless: set[str]) -> Kind:
    if guilty and own:
        return Kind.BOTH
    if guilty:
        return Kind.MISFIT if misfit else Kind.EARLIER
    if own:
        return Kind.OWN
    return Kind.COURSE if hopeless else Kind.UNDECIDED


def sample(failing: Sequence[Tried]) -> tuple[str, ...]:
    """Ids of checks that stand for all: every one when they are quick, else the quickest of each test
    function as far as time goes, and in any case one of each task."""
    if sum(r.seconds for r in failing) <= SAMPLE_SECONDS and not any(r.outcome in COSTLY for r in failing):
        return tuple(r.id for r in failing)
    quick = sorted(failing, key=lambda r: (r.outcome in COSTLY, r.seconds))
    functions: set[str] = set()
    tasks: set[int] = set()
    chosen: set[str] = set()
    spent = 0.0
    for r in quick:
        function = r.id.partition("[")[0]
        affordable = spent + r.seconds <= SAMPLE_SECONDS and r.outcome not in COSTLY
        if r.task not in tasks or (function not in functions and affordable):
            chosen.add(r.id)
            functions.add(function)
            tasks.add(r.task)
            spent += r.seconds
    return tuple(r.id for r in failing if r.id in chosen)


def with_regions(source: str, reference: str, tasks: Sequence[int]) -> str | None:
    """`source` with the marked regions of these tasks as in `reference`; None when they do not correspond."""
    lines = symbols.split_lines(source)
    swaps = []
    for task in tasks:
        mine, theirs = symbols.regions(source, task), symbols.regions(reference, task)
        if not mine or len(mine) != len(theirs):
            return None
        swaps += list(zip(mine, theirs, strict=True))
    for old, new in sorted(swaps, key=lambda swap: swap[0].start, reverse=True):
        lines[old.start - 1 : old.end] = new.lines
    return "\n".join(lines)


def _in_order(ids: Sequence[str], chosen: set[str]) -> tuple[str, ...]:
    return tuple(i for i in ids if i in chosen)
