"""The tracing child: one check of a task with the learner's code and the reference's, line by line.

    python -P -m tinyllm.grader.tracing_child '<job as JSON>'

Started by tracing.py, which reads the events: "stage" for what begins, then "result" or "problem". The check
runs as it is, so whatever it gives the code (a model, a cache) is there; the call that fails, or the last one
of the task's own functions, is the one that is followed.
"""

from __future__ import annotations

import faulthandler
import inspect
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from . import cases, catalog, faults
from .boundary import Boundary, Call, Moment, TooMuch
from .cases_child import RecordedSolution
from .catalog import Day, Task
from .check_function import collect, given_to
from .child import Emitter, die_with_parent
from .clone import Clone
from .faults import first_line, unwritten
from .frames import source_line
from .lines import Loop, Made, Node, Step, Traced, Tracer, Unevaluable, operands, statements_of
from .plugin import Grading, NotThere, check_id
from .recording import arrays_in
from .story import NotStorable, Writer, parameter_names
from .testing import CheckFailed, as_float64, check, dtype_name
from .tracing import YOURS
from .trees import Tree

ROUNDOFFS = 64  # two values that computed the same thing differently are as near as that
EPSILON = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
LOOKING_SECONDS = 3.0  # for the smallest check of a task
TELLING = 12  # elements of inputs from which on an example tells something
LARGEST = 4_000_000  # elements of an array whose values are looked at
INNER = 3  # functions of the learner's own that are shown besides


class _Problem(Exception):
    """Why there is nothing to trace."""

    def __init__(self, message: str, *, usage: bool = False, next_step: str = "") -> None:
        super().__init__(message)
        self.usage, self.next_step = usage, next_step


def main(job: Mapping[str, Any]) -> None:
    """Run one job. Ends the process itself: a learner's thread that never ends must not keep it alive."""
    die_with_parent(job["lifeline"])
    stacks = Path(job["stack_file"]).open("w")  # noqa: SIM115 - faulthandler writes to it to the end
    faulthandler.enable(file=stacks, all_threads=False)
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=False)
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    os.environ["TINYLLM_ROOT"] = job["root"]
    emit = Emitter(job["events"], job["token"])
    try:
        emit("result", Tracing(job, emit).found())
    except _Problem as problem:
        emit(
            "problem",
            {"message": str(problem), "usage": problem.usage, "next_step": problem.next_step},
        )
    os._exit(0)


@dataclass(frozen=True)
class Key:
    """Which of a check's calls is meant: the n-th of a function, or of a method of a class."""

    owner: str
    name: str
    ordinal: int


@dataclass
class Run:
    """What became of one run of the check."""

    calls: list[tuple[Key, Call]]
    error: BaseException | None = None
    moment: Moment | None = None
    traced: Traced | None = None
    call: Call | None = None  # the one that was followed


class Follow:
    """Observes a run's calls, and follows the one that is meant."""

    def __init__(self, tree: Tree, wanted: Key | None, helpers: Callable[[CodeType], bool]) -> None:
        self.tree, self.wanted, self.helpers = tree, wanted, helpers
        self.calls: list[tuple[Key, Call]] = []
        self.tracer: Tracer | None = None
        self.call: Call | None = None
        self._count: dict[tuple[str, str], int] = {}

    def around(self, call: Call, run: Callable[[], Any]) -> Any:
        callee = call.callee
        owner = type(callee.of).__name__ if callee.of is not None and callee.name else ""
        name = callee.name or getattr(call.function, "__name__", "")
        self._count[owner, name] = self._count.get((owner, name), 0) + 1
        key = Key(owner, name, self._count[owner, name])
        self.calls.append((key, call))
        if key != self.wanted:
            return run()
        self.call = call
        code = code_of(call.function)
        if code is None or not self.tree.owns(code.co_filename):
            return run()
        self.tracer = Tracer(code, getattr(call.function, "__qualname__", code.co_name), self.helpers)
        with self.tracer.following():
            result = run()
            if inspect.isgenerator(result):
                result = iter(list(result))  # its body runs here, or not in sight
        return result


def code_of(function: Any) -> CodeType | None:
    """The code of a Python function, through what wraps it."""
    function = inspect.unwrap(function) if callable(function) else function
    return function.__code__ if isinstance(function, FunctionType) else None


class Tracing:
    """One job."""

    def __init__(self, job: Mapping[str, Any], emit: Emitter) -> None:
        self.emit = emit
        self.clone = Clone(Path(job["root"]))
        self.course = catalog.load(self.clone)
        self.day: Day = self.course.day(job["day"])
        self.task: Task = self.day.task(job["task"])
        self.solution, self.name = job["solution"], job["check"]
        self.theirs = Grading(self.clone, self.course, self.day, Tree("reference", self.clone.reference))
        # Also when it is the reference's folder: two trees of one name would be one.
        self.mine = Grading(
            self.clone, self.course, self.day, Tree("exercises", self.clone.tree(self.solution))
        )
        self.relative = faults.shown_path(self.clone, self.mine.tree)
        self.symbols = {s.name.split(".")[0] for s in self.task.symbols}

    def found(self) -> dict[str, Any]:
        self.emit("stage", {"name": "starting"})
        items = [i for i in collect(self.clone, self.day) if self._is_meant(i)]
        if not items:
            raise _Problem(
                f"{self.day.name}, task {self.task.id} has no check called {self.name}.", usage=True
            )
        self.emit("stage", {"name": "looking for a small example"})
        self.theirs.stand_in(items)
        items = self._by_size(items)
        self.emit("stage", {"name": YOURS})
        self.mine.stand_in(items)
        item, plain = self._first_failing(items)
        wanted = self._wanted(plain)
        mine = self._run(item, self.mine, wanted)
        self.emit("stage", {"name": "running the reference"})
        theirs = self._run(item, self.theirs, wanted) if self.solution != "reference" else None
        return self._told(item, wanted, mine, theirs)

    def _is_meant(self, item: pytest.Function) -> bool:
        mark = item.get_closest_marker("task")
        if mark is None or int(mark.args[0]) != self.task.id:
            return False
        return not self.name or self.name in check_id(item) or self.name in self._folder(item)

    def _folder(self, item: pytest.Function) -> str:
        return cases.folder_of(self.clone, self.day, check_id(item)).name

    # ---- which check

    def _by_size(self, items: list[pytest.Function]) -> list[pytest.Function]:
        """The smallest kept failure; without one all checks, those first that give the task's code least."""
        if self.solution == "exercises":
            by_id = {check_id(i): i for i in items}
            for case in cases.kept(self.clone, self.day):
                if case.id in by_id:
                    return [by_id[case.id]]
        if len(items) == 1:
            return items
        until = time.monotonic() + LOOKING_SECONDS
        sizes: list[tuple[bool, int, int]] = []
        for position, item in enumerate(items):
            if time.monotonic() > until and sizes:
                break
            run = self._run(item, self.theirs, None)
            mine = [c for k, c in run.calls if self._is_of_task(k)]
            if mine and run.error is None:
                size = sum(a.size for c in mine for a in arrays_in(c.values))
                sizes.append((size < TELLING, size, position))
        return [items[position] for *_, position in sorted(sizes)] or items[:1]

    def _first_failing(self, items: list[pytest.Function]) -> tuple[pytest.Function, Run]:
        """The first check that the code under test fails, of those there is time for; else the first."""
        until = time.monotonic() + LOOKING_SECONDS
        runs: list[Run] = []
        for item in items:
            runs.append(self._run(item, self.mine, None))
            if runs[-1].error is not None:
                return item, runs[-1]
            if time.monotonic() > until or self.solution == "reference":
                break
        return items[0], runs[0]

    def _is_of_task(self, key: Key) -> bool:
        return bool(self.symbols & {key.owner, key.name, key.name.split(".")[0]})

    # ---- a run

    def _run(self, item: pytest.Function, grading: Grading, wanted: Key | None) -> Run:
        given, needs = given_to(item)
        follow = Follow(grading.tree, wanted, lambda code: self._is_helper(code, grading))
        boundary = Boundary(grading.tree, follow)
        check.begin()
        run = Run(follow.calls)
        with pytest.MonkeyPatch.context() as patch:
            if "monkeypatch" in needs:
                given["monkeypatch"] = patch
            try:
                with boundary.recording(item.obj):
                    item.obj(**given, solution=RecordedSolution(grading, boundary))
            except TooMuch:
                run.error = None
            except BaseException as error:
                run.error, run.moment = error, boundary.moment_of(error)
        run.call = follow.call
        run.traced = follow.tracer.traced if follow.tracer is not None else None
        return run

    def _is_helper(self, code: CodeType, grading: Grading) -> bool:
        """Whether a function is followed too: any of the reference, of the learner's what no task lists."""
        if code.co_name.startswith("<") or not grading.tree.owns(code.co_filename):
            return False
        if grading is self.theirs:
            return True
        files = {str(grading.tree.path_of(m)) for m in self.day.modules}
        listed = {s.name.split(".")[0] for t in self.day.tasks for s in t.symbols} - self.symbols
        name = getattr(code, "co_qualname", code.co_name).split(".")[0]
        return code.co_filename in files and name not in listed

    def _wanted(self, run: Run) -> Key:
        """The call to follow."""
        if isinstance(run.error, NotThere):
            raise _Problem(run.error.failure.summary)
        calls = run.calls
        own = [k for k, _ in calls if self._is_of_task(k)]
        if run.moment is not None:
            failing = run.moment.call
            if failing is None:
                try:
                    made = Writer(run.moment, Boundary(self.mine.tree), lambda cls: "")
                    failing = made._calls[made._last()[0]]
                except NotStorable:
                    failing = None
            key = next((k for k, c in calls if c is failing), None)
            if key is not None:
                return key
        if not calls:
            raise _Problem(
                "The check did not call your code: " + (first_line(run.error) if run.error else "")
            )
        methods = [k for k in own if k.owner or k.name not in self.symbols or not self._is_class(k.name)]
        return (methods or own or [calls[-1][0]])[-1]

    def _is_class(self, name: str) -> bool:
        return name[:1].isupper()

    # ---- what is told

    def _told(self, item: pytest.Function, wanted: Key, mine: Run, theirs: Run | None) -> dict[str, Any]:
        error = mine.error
        frames = self.mine.frames.of_traceback(error.__traceback__) if error is not None else ()
        stub = unwritten(error, frames) if error is not None and not isinstance(error, CheckFailed) else None
        if stub is not None:
            day, task = stub
            raise _Problem(
                f"day{day}, task {task} is not written yet: {first_line(error).partition(': ')[2]}.",
                next_step=f"tinyllm-grade read day{day}",
            )
        reference = Reference(theirs)
        rows = Rows(self.relative, reference)
        call = mine.call
        title = (item.obj.__doc__ or item.name).strip().splitlines()[0].rstrip(".")
        case = item.name.partition("[")[2].rstrip("]")
        told: dict[str, Any] = {
            "check": title + (f" [{case}]" if case else ""),
            "check_id": check_id(item),
            "function": f"{wanted.owner}.{wanted.name}".strip("."),
            "place": "",
            "passes": error is None,
            "why": "" if error is None else _why(error),
            "native": False,
        }
        if mine.traced is not None:
            traced = mine.traced
            told["place"] = f"{self.relative(traced.path)}:{traced.line}"
            rows.function(traced)
            for inner in [t for t in traced.inner if t.nodes][:INNER]:
                rows.part(f"{inner.name}, called from there", inner.line)
                rows.function(inner, inner=True)
        elif call is not None:
            told["native"] = code_of(call.function) is None
            rows.outside(call)
        if error is not None and not isinstance(error, CheckFailed):
            rows.deepest(error, self.mine)
        told["rows"] = rows.rows
        told["odd"] = rows.odd
        told["parted"] = rows.parted
        told["same"] = any(r.get("same") for r in rows.rows)
        told["result"] = self._results(mine, theirs, reference)
        return told

    def _results(self, mine: Run, theirs: Run | None, reference: Reference) -> str:
        """How the result of the followed call differs from the reference's; "" where that is not known."""
        if theirs is None or mine.call is None or theirs.call is None or not mine.call.returned:
            return ""
        if mine.error is None:
            return "same"
        if not theirs.call.returned or theirs.error is not None:
            return ""
        got, want = mine.call.result, theirs.call.result
        return difference(got, want)


def _why(error: BaseException) -> str:
    if isinstance(error, CheckFailed):
        return error.failure.summary
    return f"{type(error).__name__}: {first_line(error)}"


def difference(got: Any, want: Any) -> str:
    """How one value differs from another: "same" where it does not, "" where that cannot be said."""
    if isinstance(want, (list, tuple)) and arrays_in(want):
        if not isinstance(got, type(want)) or len(got) != len(want):
            return f"it is not a {type(want).__name__} of {len(want)}"
        parts = [(i, difference(a, b)) for i, (a, b) in enumerate(zip(got, want, strict=True))]
        return next((f"of its part {i}, {said}" for i, said in parts if said not in ("", "same")), "")
    if not isinstance(want, mx.array):
        return ""
    if not isinstance(got, mx.array):
        kind = "None" if got is None else f"of type {type(got).__name__}"
        return f"it is {kind}, the reference's an mx.array"
    if got.shape != want.shape:
        return f"its shape is {shape_of(got)}, the reference's {shape_of(want)}"
    if got.dtype != want.dtype:
        return f"its dtype is {dtype_name(got.dtype)}, the reference's {dtype_name(want.dtype)}"
    if same(got, want):
        return "same"
    try:
        a, b = values_of(got), values_of(want)
    except Exception:
        return ""
    odd = np.isfinite(a) != np.isfinite(b)
    if odd.any():
        at = [int(i) for i in np.argwhere(odd)[0]]
        return f"at {at} it is {a[tuple(at)]:.4g}, the reference's {b[tuple(at)]:.4g}"
    error = np.where(np.isfinite(a), np.abs(a - b), 0)
    at = [int(i) for i in np.unravel_index(int(error.argmax()), error.shape)]
    return (
        f"the largest difference is {error.max():.3g}, at {at}: "
        f"{a[tuple(at)]:.4g} and the reference's {b[tuple(at)]:.4g}"
    )


def values_of(array: mx.array) -> np.ndarray:
    if mx.issubdtype(array.dtype, mx.floating):
        return as_float64(array)
    return np.array(array).astype(np.float64)


def same(a: mx.array, b: mx.array) -> bool:
    """Whether two arrays hold the same, as far as their dtypes can tell."""
    if a.shape != b.shape or a.size > LARGEST or a.size == 0:
        return False
    try:
        x, y = values_of(a), values_of(b)
    except Exception:
        return False
    finite = np.isfinite(y)
    if (np.isfinite(x) != finite).any() or not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return False
    unit = max(EPSILON.get(a.dtype, 0.0), EPSILON.get(b.dtype, 0.0))
    size = np.abs(y[finite]).max(initial=0.0)
    return bool((np.abs(x[finite] - y[finite]) <= ROUNDOFFS * unit * size).all())


def shape_of(array: mx.array) -> str:
    return str(tuple(array.shape))


class Reference:
    """What the reference's run made: to tell what of the learner's is the same."""

    def __init__(self, run: Run | None) -> None:
        self.made: list[Made] = []
        self.named: dict[str, list[Any]] = {}
        self.there = run is not None and run.traced is not None
        if run is not None and run.traced is not None:
            for made in _made(run.traced.nodes):
                self.named.setdefault(made.name, []).append(made.value)
            for traced in (run.traced, *run.traced.inner):
                self.made += _made(traced.nodes)

    def has(self, value: Any) -> bool:
        """Whether some line of the reference's made the same array."""
        if not isinstance(value, mx.array) or value.size < 2:
            return False
        return any(
            same(value, other)
            for made in self.made
            for other in (arrays_in(made.value) if not isinstance(made.value, Unevaluable) else [])
            if other.shape == value.shape
        )

    def other(self, name: str, ordinal: int) -> Any:
        """The array of that name in the reference's function."""
        found = [v for v in self.named.get(name, []) if isinstance(v, mx.array)]
        return found[min(ordinal, len(found) - 1)] if found else None


def _made(nodes: list[Node]) -> Iterator[Made]:
    for node in nodes:
        if isinstance(node, Loop):
            yield from _made([*node.first, *node.last])
        else:
            yield from node.made


class Rows:
    """The lines of the listing, as plain values."""

    def __init__(self, relative: Callable[[str], str], reference: Reference) -> None:
        self._relative = relative
        self._reference = reference
        self._path = ""
        self._count: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []
        self.parted = ""  # the first array that no line of the reference makes
        self.odd: dict[str, str] = {}  # "nan" and "inf": where the first was
        self._raised: set[tuple[str, int]] = set()  # file and statement of the errors that are shown

    def function(self, traced: Traced, *, inner: bool = False) -> None:
        self._path = traced.path
        for made in traced.given:
            if not inner or not made.name.startswith("self."):
                self._value(made, "given", line=0)
        self._nodes(traced.nodes, 0)
        if traced.cut:
            self.rows.append({"kind": "note", "text": "... more than can be followed"})

    def part(self, text: str, line: int) -> None:
        self.rows.append({"kind": "part", "text": text, "line": line})

    def outside(self, call: Call) -> None:
        """A call whose inside Python cannot see: what went in and came out."""
        args, kwargs = call.values
        for name, value in [*zip(parameter_names(call), args, strict=False), *kwargs.items()]:
            self._value(Made(name, value), "given", line=0)
        if call.returned:
            self._value(Made("return", call.result), "value", line=0)

    def deepest(self, error: BaseException, grading: Grading) -> None:
        """Where in the learner's other functions it was raised, with the operands there."""
        last = None
        for frame, line in traceback.walk_tb(error.__traceback__):
            if grading.tree.owns(frame.f_code.co_filename):
                last = (frame, line)
        if last is None:
            return
        frame, line = last
        statement = statements_of(frame.f_code).get(line)
        if statement is not None and (frame.f_code.co_filename, statement.line) in self._raised:
            return
        place = f"{self._relative(frame.f_code.co_filename)}:{line} in {frame.f_code.co_name}"
        self.rows.append({"kind": "part", "text": f"raised at {place}", "line": 0})
        self._line(line, source_line(frame.f_code.co_filename, line), 0)
        if statement is not None:
            names = dict(frame.f_locals)
            for key, value in getattr(names.get("self"), "__dict__", {}).items():
                names[f"self.{key}"] = value
            for made in operands(statement, names):
                self._value(made, "operand", line=line)
        self.rows.append({"kind": "error", "text": _why(error), "depth": 0})

    def _nodes(self, nodes: list[Node], depth: int) -> None:
        for node in nodes:
            if isinstance(node, Loop):
                self._loop(node, depth)
            else:
                self._step(node, depth)

    def _loop(self, loop: Loop, depth: int) -> None:
        self._line(loop.statement.line, loop.statement.source, depth)
        if loop.rounds == 0:
            self.rows.append({"kind": "note", "text": "no round", "depth": depth})
            return
        several = loop.rounds > 1
        if several:
            self.rows.append({"kind": "note", "text": f"round 1 of {loop.rounds}", "depth": depth})
        self._nodes(loop.first, depth + 1)
        if several:
            self.rows.append(
                {"kind": "note", "text": f"round {loop.rounds} of {loop.rounds}", "depth": depth}
            )
            self._nodes(loop.last, depth + 1)

    def _step(self, step: Step, depth: int) -> None:
        statement = step.statement
        if not statement.is_loop:
            self._line(statement.line, statement.source, depth)
        for made in step.made:
            self._value(made, "value", line=statement.line)
        if step.error is not None:
            self._raised.add((self._path, statement.line))
            for made in step.operands:
                self._value(made, "operand", line=statement.line)
            self.rows.append({"kind": "error", "text": _why(step.error), "depth": depth})

    def _line(self, line: int, source: str, depth: int) -> None:
        self.rows.append({"kind": "line", "line": line, "source": source, "depth": depth})

    def _value(self, made: Made, kind: str, *, line: int) -> None:
        """A value's row; of a list or tuple a row for each array in it."""
        if made.name == "_":
            return
        value, lost = made.value, False
        if isinstance(value, Unevaluable):
            value, lost = value.value, True
        if isinstance(value, (list, tuple)) and arrays_in(value) and len(value) <= 4:
            for i, part in enumerate(value):
                self._value(Made(f"{made.name}[{i}]", Unevaluable(part) if lost else part), kind, line=line)
            return
        row = {"kind": kind, "name": made.name, **describe(value, evaluate=not lost)}
        if not row["text"] and not row["shape"]:
            return
        if lost:
            row["range"] = "cannot be computed"
        ordinal = self._count.get(made.name, 0)
        self._count[made.name] = ordinal + 1
        self._note_odd(row, line)
        if kind == "value" and isinstance(value, mx.array) and not lost and self._reference.there:
            row["same"] = self._reference.has(value)
            if not row["same"] and value.size > 1 and not self.parted:
                self.parted = f"line {line}, {made.name}" if line else ""
            other = None if row["same"] else self._reference.other(made.name, ordinal)
            if other is not None:
                row["theirs"] = describe(other)
        self.rows.append(row)

    def _note_odd(self, row: dict[str, Any], line: int) -> None:
        for kind in ("nan", "inf"):
            if kind in row["odd"] and kind not in self.odd:
                where = f"line {line}, " if line else "given as "
                self.odd[kind] = f"{where}{row['name']}, first at {row['odd'][kind]}"
                row["first"] = kind


def describe(value: Any, *, evaluate: bool = True) -> dict[str, Any]:
    """Shape, dtype and range of an array, or a short value as text."""
    row: dict[str, Any] = {"shape": "", "dtype": "", "range": "", "text": "", "odd": {}}
    if isinstance(value, mx.array):
        row["shape"], row["dtype"] = shape_of(value), dtype_name(value.dtype)
        if evaluate and value.size <= LARGEST:
            row["range"], row["odd"] = range_of(value)
        return row
    if isinstance(value, (list, tuple)) and arrays_in(value):
        row["text"] = f"{type(value).__name__} of {len(value)}, {len(arrays_in(value))} arrays"
        return row
    if value is None or isinstance(value, (bool, int, float, str, slice, mx.Dtype, list, tuple, dict, set)):
        try:
            text = repr(value)
        except Exception:
            text = type(value).__name__
        row["text"] = text if len(text) <= 50 else text[:47] + "..."
    return row


def range_of(array: mx.array) -> tuple[str, dict[str, str]]:
    """ "-2.1 .. 3.4", and of nan and inf where the first one is."""
    try:
        values = values_of(array)
    except Exception:
        return "cannot be computed", {}
    if values.size == 0:
        return "empty", {}
    odd: dict[str, str] = {}
    counts = []
    for kind, is_kind in (("nan", np.isnan), ("inf", np.isposinf), ("-inf", np.isneginf)):
        if (found := is_kind(values)).any():
            odd.setdefault(kind.strip("-"), str([int(i) for i in np.argwhere(found)[0]]))
            counts.append(f"{int(found.sum())} {kind}")
    finite = values[np.isfinite(values)]
    parts = []
    if finite.size:
        low, high = float(finite.min()), float(finite.max())
        parts.append(_number(low) if low == high else f"{_number(low)} .. {_number(high)}")
    return ", ".join([*parts, *counts]), odd


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    digits = 3 if abs(value) < 1000 else 4
    return f"{value:.{digits}g}" if math.isfinite(value) else str(value)


if __name__ == "__main__":
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 3000))
    main(json.loads(sys.argv[1]))
