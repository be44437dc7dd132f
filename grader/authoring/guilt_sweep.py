"""Proof that `why` names the right day: mistakes planted in earlier days, under the grade of a later one.

The learner is the reference with one edit, a misconception of an earlier day. Where the later day fails of
it, `why` is asked, and its answer compared with what is known. `pairs` plants two at a time, one of which may
be in the later day itself.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .. import edits
from ..catalog import Course, Day, Misconception, Task
from ..clone import Clone
from ..guilt import WRONG, Guilt, Inquiry, Kind, top
from ..trials import Trials, Tried, Variant

BAR = 0.95
SLOW = 10  # times the median is what a check may take the reference to take part


@dataclass(frozen=True)
class Plant:
    """A misconception in the tree under `later`'s grade."""

    later: Day
    day: Day
    task: Task
    mistake: Misconception

    @property
    def name(self) -> str:
        return f"{self.later.name}, {self.day.name} '{self.mistake.id}'"


@dataclass(frozen=True)
class Answer:
    """What came of a plant, or of two. `guilt` is None where the later day passes."""

    plants: tuple[Plant, ...]
    guilt: Guilt | None
    seconds: float

    @property
    def seen(self) -> bool:
        return self.guilt is not None

    @property
    def named(self) -> set[str]:
        """Ids of the days that are named."""
        if self.guilt is None:
            return set()
        own = {self.guilt.day.id} if self.guilt.kind in (Kind.OWN, Kind.BOTH) else set()
        return own | {c.day.id for c in self.guilt.culprits}

    @property
    def planted(self) -> set[str]:
        return {p.day.id for p in self.plants}

    @property
    def right(self) -> bool:
        """Exactly the days that were planted are named."""
        return self.named == self.planted and self.guilt is not None and self.guilt.kind is not Kind.MISFIT

    @property
    def innocent(self) -> set[str]:
        """Days that are named though nothing was planted there."""
        return self.named - self.planted

    @property
    def function(self) -> bool:
        """Whether the one function or class named is one that the planted misconception's task asks for."""
        if not self.right or self.guilt is None or len(self.plants) != 1:
            return False
        asked = {top(s.name) for s in self.plants[0].task.symbols}
        return bool(asked & set(self.guilt.culprits[0].symbols[:1]))

    @property
    def told(self) -> str:
        names = " and ".join(p.name for p in self.plants)
        if self.guilt is None:
            return f"{names}: not seen"
        symbols = ", ".join(s for c in self.guilt.culprits for s in c.symbols) or "no single function"
        days = ", ".join(sorted(self.named)) or "nobody"
        return f"{names}: {self.guilt.kind.value}, {days} ({symbols})  {self.seconds:.1f} s"


def plants(course: Course, later: Day) -> list[Plant]:
    """Every misconception of the earlier days whose code `later` runs."""
    days = [d for d in course.foundation(later) if d != later]
    return [Plant(later, d, t, m) for d in days for t in d.tasks for m in t.misconceptions]


def own_plants(later: Day) -> list[Plant]:
    return [Plant(later, later, t, m) for t in later.tasks for m in t.misconceptions]


def ask(
    clone: Clone,
    course: Course,
    chosen: Sequence[Plant],
    *,
    jobs: int = 1,
    told: Callable[[Answer], None] = lambda answer: None,
) -> list[Answer]:
    """Plant each of `chosen`, all of one later day, and ask. `told` hears each answer as it comes."""
    shares = [chosen[n::jobs] for n in range(jobs) if chosen[n::jobs]]
    with ThreadPoolExecutor(jobs) as pool:
        answers = pool.map(lambda share: _share(clone, course, share, told), shares)
        return [a for some in answers for a in some]


def _share(
    clone: Clone, course: Course, chosen: Sequence[Plant], told: Callable[[Answer], None]
) -> list[Answer]:
    answers = []
    with _Field(clone, course, chosen[0].later) as field:
        for plant in chosen:
            answers.append(field.ask([plant]))
            told(answers[-1])
    return answers


def ask_pairs(
    clone: Clone,
    course: Course,
    later: Day,
    count: int,
    seed: int,
    *,
    told: Callable[[Answer], None] = lambda answer: None,
) -> list[Answer]:
    """Plant `count` pairs, of two days each of which alone makes `later` fail, and ask."""
    draw = random.Random(seed)
    everything = plants(course, later) + own_plants(later)
    by_day = {p.day.id: [q for q in everything if q.day == p.day] for p in everything}
    answers: list[Answer] = []
    with _Field(clone, course, later) as field:
        for _ in range(count * 5):  # many a plant is not seen by the later day
            days = draw.sample(sorted(by_day), 2)
            pair = [draw.choice(by_day[d]) for d in days]
            if len(answers) == count:
                break
            if all(field.fails([p]) for p in pair):
                answers.append(field.ask(pair))
                told(answers[-1])
    return answers


class _Field:
    """One later day's checks in a warm child, on the reference with plants in it.

    Of each test function the first and the last case take part, and no slow ones: a plant that only others
    see counts as not seen.
    """

    def __init__(self, clone: Clone, course: Course, later: Day) -> None:
        self.clone = clone
        self._trials = Trials(clone, course, later, solution="reference")
        self._folder = tempfile.TemporaryDirectory(prefix="tinyllm-plants-")
        self._count = 0
        self._asked: list[str] = []  # the checks that take part

    def __enter__(self) -> _Field:
        timed = self._trials.run(Variant())
        usual = statistics.median(r.seconds for r in timed.values())
        quick = [i for i, r in timed.items() if r.seconds <= SLOW * usual]
        functions = [i.partition("[")[0] for i in quick]
        for function in dict.fromkeys(functions):
            mine = [i for i, f in zip(quick, functions, strict=True) if f == function]
            self._asked += dict.fromkeys((mine[0], mine[-1]))  # float32 and bfloat16, where it goes by dtype
        return self

    def __exit__(self, *_: object) -> None:
        self._trials.close()
        self._folder.cleanup()

    def ask(self, chosen: Sequence[Plant]) -> Answer:
        began = time.monotonic()
        base = self._planted(chosen)
        results = self._graded(base)
        guilt = None
        if any(r.outcome in WRONG for r in results):
            guilt = Inquiry(self._trials, base=base, ask_own_checks=False).find(results)
        if guilt is not None and guilt.kind is Kind.CHANCE:
            guilt = None  # the machine was too busy for a check, and the plant is not seen
        return Answer(tuple(chosen), guilt, time.monotonic() - began)

    def fails(self, chosen: Sequence[Plant]) -> bool:
        return any(r.outcome in WRONG for r in self._graded(self._planted(chosen)))

    def _graded(self, base: Mapping[str, Path]) -> list[Tried]:
        return list(self._trials.run(Variant(base), self._asked).values())

    def _planted(self, chosen: Iterable[Plant]) -> dict[str, Path]:
        self._count += 1
        base: dict[str, Path] = {}
        for plant in chosen:
            module = plant.mistake.module
            source = (self.clone.reference / module).read_text(encoding="utf-8")
            base[module] = Path(self._folder.name) / str(self._count) / module
            base[module].parent.mkdir(parents=True, exist_ok=True)
            base[module].write_text(edits.misconceived(source, plant.mistake), encoding="utf-8")
        return base


# ---- in words


def share(answers: Sequence[Answer]) -> float:
    """Of the plants that make the later day fail, how many are blamed on the right day."""
    seen = [a for a in answers if a.seen]
    return sum(a.right for a in seen) / len(seen) if seen else 1.0


def table(answers: Sequence[Answer]) -> str:
    """One line a later day: planted, seen by it, the right day named, the right function named."""
    rows = [("day", "planted", "seen", "right day", "right function", "seconds each")]
    days = list(dict.fromkeys(a.plants[0].later.name for a in answers))
    for day in [*days, *(["all"] if len(days) > 1 else [])]:
        mine = [a for a in answers if day in (a.plants[0].later.name, "all")]
        seen = [a for a in mine if a.seen]
        rows.append(
            (
                day,
                str(len(mine)),
                str(len(seen)),
                f"{sum(a.right for a in seen)} = {100 * share(mine):.1f} %" if seen else "none to name",
                str(sum(a.function for a in seen)),
                f"{sum(a.seconds for a in mine) / max(1, len(mine)):.1f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def pairs_told(answers: Sequence[Answer]) -> str:
    """ "40 pairs: both days named 38, one of them 2, an innocent day 0"."""
    both = sum(a.right for a in answers)
    innocent = sum(bool(a.innocent) for a in answers)
    missed = len(answers) - both
    return f"{len(answers)} pairs: both days named {both}, not both {missed}, an innocent day {innocent}"
