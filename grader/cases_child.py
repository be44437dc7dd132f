"""Writes down the cases of failing checks (runs in the grading child, after the verdict is known).

Each failing check is run once more with its calls recorded (boundary), the call that failed becomes a story
with its arrays (story), and the story is run: only one that fails in the same way is kept. For the others the
program runs the check itself.
"""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

from . import cases
from . import picks as picks_
from .boundary import Boundary, Moment, TooMuch
from .plugin import check_id
from .recording import arrays_in
from .report import CheckResult, Failure, Frame, Outcome
from .story import (
    MOST_BYTES,
    NotStorable,
    Player,
    Writer,
    kind_of,
    packed,
    parameter_names,
    source,
    unpacked,
)
from .testing import CheckFailed, check

if TYPE_CHECKING:
    from .plugin import Grading

SLOW_SECONDS = 2.0  # a check that takes longer is not run again
ALL_SECONDS = 5.0  # for all of a day's


@dataclass(frozen=True)
class Failed:
    """A check that failed, and what it takes to run it again."""

    result: CheckResult
    function: Callable[..., None]
    given: dict[str, Any]  # the parameters; without the fixtures
    plain: bool  # whether it takes `solution` alone besides them
    seconds: float  # of processor time, which is the same however busy the machine is


class RecordedSolution:
    """The `solution` fixture of a run that is recorded."""

    def __init__(self, grading: Grading, boundary: Boundary) -> None:
        self._grading, self._boundary = grading, boundary

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._grading.given, name)
        modules = self._grading.modules_with(name)
        module = next(
            (m for m in modules if getattr(self._grading.module(m), name, None) is value), modules[0]
        )
        return self._boundary.given(value, name, module)


class Keeper:
    """A pytest plugin beside Grading: remembers failing checks, and keeps their cases at the end."""

    def __init__(self, grading: Grading, borrowed: tuple[str, ...]) -> None:
        self.grading = grading
        self.borrowed = borrowed
        self.failed: list[Failed] = []
        self._began = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, None, None]:
        self._began = time.process_time()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Function, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        found = self.grading.result_of(item)
        if call.when == "call" and found is not None and found["outcome"] == Outcome.FAILED:
            seconds = time.process_time() - self._began
            self.failed.append(failed_check(item, _result(found, self.grading), seconds))
        return report

    def keep(self) -> None:
        """Write the cases, the first failing checks of each task before the others."""
        end = time.process_time() + ALL_SECONDS
        count: dict[int, int] = {}
        order = []
        for failed in self.failed:
            count[failed.result.task] = count.get(failed.result.task, 0) + 1
            order.append((count[failed.result.task], failed))
        for _, failed in sorted(order, key=lambda o: o[0]):
            if failed.seconds > min(SLOW_SECONDS, end - time.process_time()):
                continue  # the parent writes its program
            keep(self.grading, failed, self.borrowed)


def failed_check(item: pytest.Function, result: CheckResult, seconds: float) -> Failed:
    """The check of a test item. To be made while its fixtures are there."""
    parameters = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    names = item._fixtureinfo.argnames
    given = {name: parameters[name] for name in names if name in parameters}
    return Failed(result, item.obj, given, set(names) - set(given) == {"solution"}, seconds)


def _result(found: Mapping[str, Any], grading: Grading) -> CheckResult:
    parts = dict(found["failure"] or {})
    if parts:
        parts["frames"] = tuple(Frame.read(f) for f in parts["frames"])
    task, title = grading.checks[found["id"]]
    return CheckResult(
        found["id"], task, title, Outcome(found["outcome"]), found["seconds"], None, Failure(**parts)
    )


def keep(grading: Grading, failed: Failed, borrowed: tuple[str, ...]) -> None:
    """Write one case, or the program alone where the case cannot be stored."""
    folder = cases.folder_of(grading.clone, grading.day, failed.result.id)
    arrays: dict[str, Any] = {}
    notes: dict[str, dict[str, Any]] = {}
    story, reason = None, ""
    boundary = Boundary(grading.tree)
    picks = None
    try:
        if picks_.has_cases(failed.function) and failed.plain:
            check.begin()
            picks = picks_.smallest(failed.function, **failed.given, solution=grading.given)
        with picks_.repeating(failed.function, picks) if picks is not None else nullcontext():
            moment = record(grading, failed, boundary)
        try:
            arrays, notes = loose(moment, boundary)  # for the eye, should the story not be storable
            story, kept, noted = told(grading, moment, boundary)
            _try_out(grading, story, kept, failed)
            arrays, notes = kept, {**noted, **_got(moment, kept)}
        except NotStorable as error:
            story, reason = None, f"it takes {error}" if str(error)[:1] == "a" else str(error)
    except (NotStorable, TooMuch) as error:
        reason = str(error) or "it makes too many calls"
    for name, array in arrays.items():
        notes.setdefault(name, {"shape": list(array.shape)})["kind"] = kind_of(array)
    data = cases.describe(
        grading.day,
        failed.result,
        story=story,
        reason=reason,
        arrays=notes,
        borrowed=borrowed,
        picks=picks,
    )
    lines, stop = source(story) if story is not None else ([], 0)
    cases.write(folder, data, lines, stop, _npz(arrays))


def record(grading: Grading, failed: Failed, boundary: Boundary) -> Moment:
    """Run the check again, recorded. Raises NotStorable where that is not possible, or now passes."""
    if not failed.plain:
        raise NotStorable("it changes things around the code")
    check.begin()
    try:
        with boundary.recording(failed.function):
            failed.function(**failed.given, solution=RecordedSolution(grading, boundary))
    except TooMuch:
        raise
    except Exception as error:
        return boundary.moment_of(error)
    raise NotStorable("it does not fail each time")


def told(
    grading: Grading, moment: Moment, boundary: Boundary
) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]:
    """The story, its arrays, and what is noted of them."""
    writer = Writer(moment, boundary, lambda cls: module_of(grading, cls))
    return writer.story(), writer.arrays, writer.notes


def module_of(grading: Grading, cls: type) -> str:
    """The module of the tree that defines `cls`; "" for others."""
    prefix = grading.tree.package + "."
    name = str(cls.__module__)
    return name.removeprefix(prefix).replace(".", "/") + ".py" if name.startswith(prefix) else ""


def look_up(grading: Grading) -> Callable[[str, str], Any]:
    """The solution's names as a Player asks for them."""

    def find(name: str, module: str) -> Any:
        first, *rest = name.split(".")
        if module in grading.day.modules:
            value = getattr(grading.given, first)
        else:
            value = getattr(grading.tree.import_module(module), first)
        for part in rest:
            value = getattr(value, part)
        return value

    return find


def _try_out(grading: Grading, story: Mapping[str, Any], arrays: Mapping[str, Any], failed: Failed) -> None:
    """Run the story from what will be in the files. Raises NotStorable unless it fails as the check did."""
    kinds = {name: kind_of(a) for name, a in arrays.items()}
    fresh = {name: unpacked(a, kinds[name]) for name, a in packed(arrays).items()}
    check.begin()
    try:
        Player(story, fresh, look_up(grading), failed.function.__globals__.get).judge(check)
    except CheckFailed as error:
        same = failed.result.failure is None or _words(error.failure) == _words(failed.result.failure)
    except Exception as error:
        summary = failed.result.failure.summary if failed.result.failure else ""
        same = summary.startswith(type(error).__name__)
    else:
        same = False
    if not same:
        raise NotStorable("what it was given alone does not make it fail")


def _words(failure: Failure) -> tuple[str, ...]:
    """What a failure says of the values; where an object lies in memory is another place each time."""
    parts = (failure.summary, failure.checked, failure.expected, failure.got, failure.where, failure.error)
    return tuple(re.sub(r"0x[0-9a-f]+", "0x", part) for part in parts)


def _got(moment: Moment, arrays: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Put the result that was judged beside the inputs; what is noted of it and of what was expected."""
    notes = {}
    got = moment.comparison.got if moment.comparison is not None else None
    if isinstance(got, mx.array) and moment.call is None:
        with suppress(Exception):  # a result that cannot be computed
            mx.eval(got)
            arrays["got"] = got
    for name in ("got", "expected", "magnitude", "before"):
        if name in arrays:
            kind = kind_of(arrays[name]).partition(" ")[2]
            notes[name] = {"shape": list(arrays[name].shape), "dtype": kind, "output": True}
    return notes


def loose(moment: Moment, boundary: Boundary) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The arrays of the call that failed, or of the last one, and what was expected, as far as they fit."""
    found: dict[str, Any] = {}
    notes: dict[str, dict[str, Any]] = {}
    calls = [e for e in moment.events if hasattr(e, "callee")]
    call = moment.call or (calls[-1] if calls else None)
    if call is not None:
        args, kwargs = call.values
        named = [*zip(parameter_names(call), args, strict=False), *kwargs.items()]
        for name, value in named:
            inside = arrays_in(value)
            for i, array in enumerate(inside):
                found[name if len(inside) == 1 else f"{name}_{i}"] = array
    for name, array in found.items():
        notes[name] = {"shape": list(array.shape), "dtype": kind_of(array).partition(" ")[2]}
    comparison = moment.comparison
    if comparison is not None:
        rest = [a for a in comparison.args[:2] if isinstance(a, (mx.array, np.ndarray))]
        for name, array in zip(("got", "expected"), rest, strict=False):
            found[name] = array
            notes[name] = {
                "shape": list(array.shape),
                "dtype": kind_of(array).partition(" ")[2],
                "output": True,
            }
    while found and sum(a.nbytes for a in found.values()) > MOST_BYTES:
        largest = max(found, key=lambda n: math.prod(found[n].shape))
        del found[largest]
    return found, notes


def _npz(arrays: Mapping[str, Any]) -> bytes:
    if not arrays:
        return b""
    file = io.BytesIO()
    try:
        np.savez(file, **packed(arrays))
    except Exception:  # a lazy array that cannot be computed: the program says so when it runs
        return b""
    return file.getvalue()


class Replaying:
    """A pytest plugin: where a case with its inputs is kept for a check, that is run in the check's place."""

    def __init__(self, grading: Grading) -> None:
        self.grading = grading

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        kept = {k.id: k for k in cases.kept(self.grading.clone, self.grading.day)}
        for item in items:
            case = kept.get(check_id(item))
            if case is not None and case.has_inputs:
                item.obj = self._run(case, item.obj.__globals__.get)
            elif case is not None and case.picks is not None and picks_.has_cases(item.obj):
                item.obj = self._picked(item.obj, case.picks)

    def _picked(self, function: Callable[..., None], picks: list[int]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            with picks_.repeating(function, picks):
                function(**given)

        return run

    def _run(self, case: cases.Kept, own: Callable[[str], Any]) -> Callable[..., None]:
        arrays = load_arrays(case.folder, case.data)

        def run(**given: Any) -> None:
            Player(case.data["story"], arrays, look_up(self.grading), own).judge(check)

        return run


def load_arrays(folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a kept case, bit for bit."""
    file = folder / cases.ARRAYS
    if not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as stored:
        return {name: unpacked(stored[name], data["arrays"][name]["kind"]) for name in stored.files}
