"""What a day's bench.py is written with: counts and races, of the tree that is measured beside the reference.

    from tinyllm.grader.measuring import Bench

    def measure(bench: Bench) -> None:
        bench.count("tokens recomputed per step", recomputed(bench.solution.Qwen2ModelWeek2), at_most=1)
        bench.race("decode", {"yours": f, "reference": g}, unit="tokens/s", work=64, same=True)

Runs in the measuring child. Everything found is told at once, as an event. What the tree's code raises is let
through: benching_child.py tells it with the line.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx

from tinyllm.kernels import native

from . import loading, machine, models, random_weights
from .catalog import Day
from .clone import Clone
from .figures import Bar, Count, Lane, Race, Verdict, figure, judge, number
from .machine import Limit
from .schedule_picture import SchedulePicture, schedule_of
from .trees import Tree

YOURS, REFERENCE = "yours", "reference"
PATIENCE_SECONDS = 60.0  # that one contestant may use up in a race; then it takes part in fewer rounds
MORE_ROUNDS = 3  # times as many rounds as asked for may be run to bring a noisy bar to a verdict
AGREE = {mx.float32: 1e-4, mx.float16: 2e-2, mx.bfloat16: 1e-1}  # of the largest element
NESTING = 6  # how deep arrays are looked for in what a contestant returns

Emit = Callable[[str, Mapping[str, Any]], None]


class MisusedBench(Exception):
    """A bench.py asks for something that makes no sense: the course's fault."""


class Missing(Exception):
    """A module of a tree has no such name."""

    def __init__(self, tree: Tree, module: str, name: str) -> None:
        super().__init__(f"has no `{name}`: was it renamed or deleted?")
        self.tree = tree
        self.module = module


class ImportFailed(Exception):
    """Importing a module of a tree raised `error`."""

    def __init__(self, tree: Tree, module: str, error: BaseException) -> None:
        super().__init__(str(error))
        self.tree = tree
        self.module = module
        self.error = error


class Unfit(Exception):
    """What a contestant gave cannot be timed or compared; the message begins with its name."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} {what}")
        self.name = name


class NoKernels(Exception):
    """The kernels of a tree could not be built; `why` is what kernels.build raised."""

    def __init__(self, tree: Tree, why: Exception) -> None:
        super().__init__(str(why))
        self.tree = tree
        self.why = why


class Names:
    """The names of a day's modules in one tree, kernels among them, imported when first asked for."""

    def __init__(self, tree: Tree, day: Day) -> None:
        self._tree = tree
        self._day = day

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        listed = [s.module for t in self._day.tasks for s in t.symbols if s.name.split(".")[0] == name]
        if any(m.endswith(".cpp") for m in listed):
            return getattr(native.of(f"{self._tree.package}.kernels"), name)
        modules = list(dict.fromkeys([*listed, *self._day.modules]))
        modules = [m for m in modules if m.endswith(".py")]
        for module in modules:
            value = getattr(import_module(self._tree, module), name, None)
            if value is not None:
                return value
        if not modules:
            raise MisusedBench(f"{self._day.name} has no Python module: take bench.module(...)")
        raise Missing(self._tree, modules[0], name)


def import_module(tree: Tree, module: str) -> ModuleType:
    """A module of a tree. Raises ImportFailed, whatever importing it raises."""
    try:
        return tree.import_module(module)
    except BaseException as error:  # SystemExit is the learner's here as well
        raise ImportFailed(tree, module, error) from error


@dataclass(frozen=True)
class Contestant:
    """One way of doing the work of a race."""

    name: str
    run: Callable[..., Any]
    setup: Callable[..., Any] | None = None  # what `run` is given is made by it, outside the timed part
    work: float | None = None  # where it is not the race's
    remark: str = ""


class Bench:
    """What `measure` is given. `mine` is the tree that is measured; it may be the reference itself."""

    def __init__(
        self,
        clone: Clone,
        mine: Tree,
        theirs: Tree,
        emit: Emit,
        *,
        day: Day | None = None,
        rounds: int | None = None,
    ) -> None:
        self.clone = clone
        self.mine = mine
        self.theirs = theirs
        self.day = day
        self._emit = emit
        self._rounds = rounds

    # ---- the trees and the models

    @property
    def is_reference(self) -> bool:
        """Whether the tree that is measured is the reference: then there is no other to race with."""
        return self.mine is self.theirs

    @property
    def solution(self) -> Any:
        """The names of the day's modules, of the tree that is measured."""
        return self._names(self.mine)

    @property
    def reference(self) -> Any:
        """The same names of the reference."""
        return self._names(self.theirs)

    def _names(self, tree: Tree) -> Names:
        if self.day is None:
            raise MisusedBench("no day is measured here")
        return Names(tree, self.day)

    def module(self, path: str) -> ModuleType:
        """A module ("week1/gqa.py") of the tree that is measured."""
        return import_module(self.mine, path)

    def reference_module(self, path: str) -> ModuleType:
        """A module of the reference."""
        return import_module(self.theirs, path)

    def mlx_lm(self, name: str) -> ModuleType:
        """A module of mlx-lm that needs MLX alone, such as "models.cache"."""
        return loading.mlx_lm_module(name)

    def shipped_model(self) -> Any:
        """mlx-lm's model with the weights of tiny-qwen2, packed in 4 bits."""
        return loading.load_model(models.shipped(self.clone))

    def checkpoint(self, shape: str, dtype: str = "float32") -> Any:
        """mlx-lm's model with random weights of a named shape (random_weights.SHAPES), packed in 4 bits.

        dtype is that of scales and activations.
        """
        return loading.load_model(self.checkpoint_folder(shape, dtype))

    def checkpoint_folder(self, shape: str, dtype: str = "float32") -> Path:
        """The folder of that checkpoint, which is made first where it is not kept yet."""

        def making(what: str) -> None:
            self.stage(f"making {what}")
            self.note(f"Made {what}, kept in the cache folder for the next time.")

        return random_weights.checkpoint(shape, dtype, on_making=making)

    @cached_property
    def bandwidth(self) -> Limit:
        """What this machine reads from memory, measured when first asked for, and how."""
        self.stage("measuring how fast memory is read")
        return machine.read_bandwidth()

    @property
    def read_bandwidth(self) -> float:
        """Bytes/s that this machine reads from memory with all its processors."""
        return self.bandwidth.per_second

    # ---- what is found

    def stage(self, what: str) -> None:
        """Say what begins; shown while it lasts, on a terminal."""
        self._emit("stage", {"name": what})

    def note(self, sentence: str) -> None:
        """Print a sentence."""
        self._emit("note", {"text": sentence})

    def count(
        self,
        title: str,
        value: float,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        equals: float | None = None,
        unit: str = "",
    ) -> None:
        """A figure that is counted, with the bar it is held to, if any."""
        bounds = {"at most": at_most, "at least": at_least, "exactly": equals}
        given = [(words, bound) for words, bound in bounds.items() if bound is not None]
        if len(given) > 1:
            raise MisusedBench(f"{title}: a count has one bar")
        bar = None
        for words, bound in given:
            kept = {"at most": value <= bound, "at least": value >= bound, "exactly": value == bound}[words]
            of = "%" if unit == "%" else ""
            bar = Bar(f"{words} {number(bound)}{of}", Verdict.MET if kept else Verdict.MISSED)
        self._emit("count", asdict(Count(title, value, unit, bar)))

    def schedules(self, title: str, plans: Mapping[str, Sequence[Any]], slots: int) -> int:
        """Show schedules of the same requests one under the other. Returns how many steps are not alike.

        plans: name -> the plans of day 2.7, from step 0 on. Call them "yours" and "reference": where the
        reference itself is measured, "yours" is left out.
        """
        if self.is_reference and REFERENCE in plans:
            plans = {name: given for name, given in plans.items() if name != YOURS}
        made = tuple(schedule_of(name, given, slots) for name, given in plans.items())
        picture = SchedulePicture(title, made)
        self._emit("schedules", asdict(picture))
        return picture.differing

    def share(self, title: str, percents: Sequence[float], *, at_least: float) -> None:
        """Hold shares, one a round, to a bar, all in percent. Says "too noisy" where the rounds disagree."""
        bar = Bar(f"at least {at_least:.0f}%", judge(percents, at_least))
        self._emit("count", asdict(Count(title, round(statistics.median(percents), 1), "%", bar)))

    def race(
        self,
        title: str,
        contestants: Mapping[str, Callable[..., Any] | tuple[Callable[..., Any], Callable[..., Any]]],
        *,
        unit: str = "s",
        work: float = 1.0,
        rounds: int = 5,
        inputs: Callable[[int], tuple[Any, ...]] | None = None,
        same: bool | float | None = None,
        bar: tuple[str, str, float] | Sequence[tuple[str, str, float]] | None = None,
    ) -> dict[str, float]:
        """Time several ways of doing the same, in turns. Returns the median figure of each (nan without one).

        contestants: name -> run, or (setup, run). run(*inputs) gives arrays (also nested, or in objects) or a
        number, which are evaluated inside the timed part. With a setup it is run(setup(*inputs)), and the
        setup is not timed. Call them "yours" and "reference": where the reference itself is measured, "yours"
        is left out, or stands as "reference" where there is no such.
        unit, work: a figure is work / seconds; with "s", "ms" or "us" it is the time itself.
        inputs: called with the number of each round (0 is a turn that warms up) for what every contestant is
        given in it; so no round need repeat another one's.
        same: True compares the results of each round: shapes, integers exactly, floats within AGREE of the
        largest element; a number is another such tolerance. Where results differ no time counts.
        bar: (one, other, least): in each round `one` must be at least `least` times as fast as `other`.
        """
        lanes = []
        for name, given in contestants.items():
            setup, run = given if isinstance(given, tuple) else (None, given)
            lanes.append(Contestant(name, run, setup))
        triples: list[tuple[str, str, float]] = []
        if bar is not None:
            triples = [bar] if isinstance(bar[0], str) else list(bar)  # type: ignore[list-item]
        for one, other, _ in triples:
            if missing := {one, other} - set(contestants) - {YOURS, REFERENCE, "mlx-lm"}:
                raise MisusedBench(f"{title}: the bar names {missing.pop()}, which does not take part")
        tolerance = None if same is None or same is False else (AGREE if same is True else float(same))
        found = self.run_race(title, lanes, unit, work, rounds, inputs, tolerance, triples)
        return {lane.name: lane.median if lane.figures else math.nan for lane in found.lanes}

    def run_race(
        self,
        title: str,
        contestants: Sequence[Contestant],
        unit: str,
        work: float,
        rounds: int,
        inputs: Callable[[int], tuple[Any, ...]] | None,
        tolerance: Mapping[mx.Dtype, float] | float | None,
        bars: Sequence[tuple[str, str, float]] = (),
    ) -> Race:
        """`race`, of Contestants, with everything that it found."""
        chosen, bars = self._those_that_run(contestants, bars)
        found = _Race(
            self._emit, title, chosen, unit, work, self._rounds or rounds, inputs, tolerance, bars
        ).run()
        self._emit("race", asdict(found))
        return found

    def _those_that_run(
        self, contestants: Sequence[Contestant], bars: Sequence[tuple[str, str, float]]
    ) -> tuple[list[Contestant], list[tuple[str, str, float]]]:
        names = [c.name for c in contestants]
        called = {name: name for name in names}
        if self.is_reference and YOURS in names:
            called[YOURS] = "" if REFERENCE in names else REFERENCE
        chosen = [replace(c, name=called[c.name]) for c in contestants if called[c.name]]
        if not chosen:
            raise MisusedBench("a race has no contestants")
        # Of the reference alone, what is asked of yours is asked of the reference.
        standing = {**called, YOURS: called.get(YOURS) or REFERENCE} if self.is_reference else called
        kept = [(standing.get(a, a), standing.get(b, b), least) for a, b, least in bars]
        there = {c.name for c in chosen}
        return chosen, [bar for bar in dict.fromkeys(kept) if bar[0] != bar[1] and {*bar[:2]} <= there]


class _Race:
    """One race, while it runs."""

    def __init__(
        self,
        emit: Emit,
        title: str,
        contestants: Sequence[Contestant],
        unit: str,
        work: float,
        rounds: int,
        inputs: Callable[[int], tuple[Any, ...]] | None,
        tolerance: Mapping[mx.Dtype, float] | float | None,
        bars: Sequence[tuple[str, str, float]],
    ) -> None:
        self.emit = emit
        self.title, self.unit, self.work = title, unit, work
        self.contestants = list(contestants)
        self.inputs = inputs or (lambda number: ())
        self.tolerance = tolerance
        self.bars = bars
        self.rounds = {c.name: rounds for c in contestants}  # that each takes part in
        self.asked = rounds
        self.seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
        self.agreement = ""

    def run(self) -> Race:
        number = 0
        while number <= self.asked or (number <= MORE_ROUNDS * self.asked and self._noisy()):
            problem = self._round(number)
            if problem is not None:
                return self._found(*problem)
            number += 1
        return self._found()

    def _round(self, number: int) -> tuple[str, str] | None:
        """A turn of each contestant, each in its turn the first. What differs in the results, and whose."""
        given = tuple(self.inputs(number))
        mx.eval(list(arrays_in(given)))
        racing = [c for c in self.contestants if number <= self.rounds[c.name] or self._goes_on(c)]
        if not racing:
            return None
        start = number % len(racing)
        results = {}
        for contestant in racing[start:] + racing[:start]:
            name = contestant.name
            turn = {"race": self.title, "name": name, "round": number, "rounds": self.asked}
            self.emit("turn", turn)
            seconds, results[name] = self._turn(contestant, given)
            if number == 0:
                self._allow(contestant, seconds)
            else:
                self.seconds[name].append(seconds)
        return None if self.tolerance is None else self._differing(results)

    def _goes_on(self, contestant: Contestant) -> bool:
        """Whether it takes part in rounds beyond those that were asked for."""
        return self.rounds[contestant.name] == self.asked

    def _allow(self, contestant: Contestant, seconds: float) -> None:
        """After the turn that warmed up: in how many rounds there is the patience for it."""
        affordable = int(PATIENCE_SECONDS / max(seconds, 1e-9))
        if affordable < self.asked:
            self.rounds[contestant.name] = affordable
        if affordable == 0:  # then that turn is its only one
            self.seconds[contestant.name].append(seconds)

    def _turn(self, contestant: Contestant, given: tuple[Any, ...]) -> tuple[float, list[Any]]:
        if contestant.setup is not None:
            given = (contestant.setup(*given),)
            mx.eval(list(arrays_in(given)))
        began = time.perf_counter()
        result = contestant.run(*given)
        arrays = list(arrays_in(result))
        mx.eval(arrays)
        seconds = time.perf_counter() - began
        if not arrays:
            if isinstance(result, (bool, int, float)):
                return seconds, [mx.array(result)]
            raise Unfit(contestant.name, f"gave {kind_of(result)}: there is nothing to time.")
        return seconds, arrays

    # ---- what came out

    def _noisy(self) -> bool:
        """Whether a bar could not be judged, and more rounds of both could change that."""
        return any(
            judge(self._ratios(one, other), least) is Verdict.NOISY
            for one, other, least in self.bars
            if self.rounds[one] == self.rounds[other] == self.asked
        )

    def _speeds(self, name: str) -> list[float]:
        work = next(c.work for c in self.contestants if c.name == name) or self.work
        return [work / s for s in self.seconds[name]]

    def _ratios(self, one: str, other: str) -> list[float]:
        return [a / b for a, b in zip(self._speeds(one), self._speeds(other), strict=False)]

    def _found(self, differs: str = "", differing: str = "") -> Race:
        lanes = []
        for c in self.contestants:
            seconds = self.seconds[c.name]
            remark = c.remark
            if not differs and self.rounds[c.name] < self.asked:
                few = f"{len(seconds)} round{'s' * (len(seconds) != 1)} of {max(seconds):.0f} s"
                remark = f"{remark}, {few}" if remark else few
            figures = tuple(figure(c.work or self.work, s, self.unit) for s in seconds)
            lanes.append(Lane(c.name, figures, remark))
        judged = (
            []
            if differs
            else [
                Bar(
                    f"{one} at least {number(least)} times as fast as {other}",
                    judge(self._ratios(one, other), least),
                )
                for one, other, least in self.bars
            ]
        )
        agreement = "" if differs else self.agreement
        return Race(self.title, self.unit, tuple(lanes), tuple(judged), agreement, differs, differing)

    def _differing(self, results: Mapping[str, list[Any]]) -> tuple[str, str] | None:
        """What is different in the results of a round, and whose result that is; None where they agree."""
        names = [c.name for c in self.contestants if c.name in results]
        right = REFERENCE if REFERENCE in names else names[0]
        for name in names:
            if name == right:
                continue
            told = _difference(results[name], results[right], self.tolerance)
            if told:
                return f"{name} gives something else than {right}: {told}.", name
        if len(names) > 1:
            self.agreement = "The results agree"
            kinds = {a.dtype for a in results[right] if mx.issubdtype(a.dtype, mx.floating)}
            limits = [_tolerance(self.tolerance, kind) for kind in kinds]
            if limits:
                self.agreement += f" within {max(limits):.0e} of the largest element"
            self.agreement += "."
        return None


def kind_of(result: object) -> str:
    """What a result without arrays is, in words."""
    return "None" if result is None else f"an object of type {type(result).__name__} without arrays"


def arrays_in(value: Any, depth: int = NESTING) -> Iterator[mx.array]:
    """The arrays in a value: in lists, tuples and dicts, and in the attributes of objects."""
    if isinstance(value, mx.array):
        yield value
    elif depth == 0 or isinstance(value, (str, bytes, int, float, type, ModuleType)) or value is None:
        return
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from arrays_in(inner, depth - 1)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from arrays_in(inner, depth - 1)
    elif hasattr(value, "__dict__") and not callable(value):
        yield from arrays_in(vars(value), depth - 1)


def _tolerance(given: Mapping[mx.Dtype, float] | float | None, dtype: mx.Dtype) -> float:
    if isinstance(given, Mapping):
        return given.get(dtype, 0.0)
    return given or 0.0


def _difference(got: list[Any], right: list[Any], tolerance: Any) -> str:
    """What is different, in words; "" where the arrays agree."""
    if len(got) != len(right):
        return f"{len(got)} arrays, not {len(right)}"
    for a, b in zip(got, right, strict=True):
        if a.shape != b.shape:
            return f"shape {tuple(a.shape)}, not {tuple(b.shape)}"
        floating = mx.issubdtype(b.dtype, mx.floating)
        if floating != mx.issubdtype(a.dtype, mx.floating):
            return f"dtype {a.dtype}, not {b.dtype}"
        if not floating:
            if wrong := mx.sum(a != b).item():
                return f"{number(wrong)} of {number(a.size)} elements differ"
            continue
        wide, exact = a.astype(mx.float32), b.astype(mx.float32)
        largest = mx.max(mx.abs(exact)).item()
        apart = mx.max(mx.abs(wide - exact)).item()
        limit = _tolerance(tolerance, b.dtype)
        if not apart <= limit * largest:  # also when it is nan
            return (
                f"up to {apart:.2g} away, and the largest element is {largest:.2g}; {limit:.0e} of it may be"
            )
    return ""
