"""The comparing child: the reference's pass, the learner's pass, and what is different in them.

    python -P -m tinyllm.grader.comparing_child '<job as JSON>'

Started by comparing.py, which reads the events: "stage" for what begins, then "result" or "problem".
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm.kernels import blas

from . import catalog
from .catalog import Compared, Course, Day, Symbol
from .child import Emitter, die_with_parent
from .clone import Clone
from .comparing import YOURS, Finding, Row, State, day_of

if TYPE_CHECKING:
    from .judging import Alignment, Difference, Fault, Pair
    from .recording import Recorder
    from .trees import Tree

UNFINISHED = re.compile(r"day (\d+\.\d+), task (\d+): (.+)")


def main(job: Mapping[str, Any]) -> None:
    """Run one job. Ends the process itself: a learner's thread that never ends must not keep it alive."""
    die_with_parent(job["lifeline"])
    stacks = Path(job["stack_file"]).open("w")  # noqa: SIM115 - faulthandler writes to it to the end
    faulthandler.enable(file=stacks, all_threads=False)
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=False)
    emit = Emitter(job["events"], job["token"])
    emit("stage", {"name": "loading the model"})
    blas.prepare()
    # On GPUs with TF32 a float32 matmul keeps 10 bits by default; the tolerances are those of float32.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    clone = Clone(Path(job["root"]))
    course = catalog.load(clone)
    passes = Passes(clone, course, course.day(job["day"]), job["solution"])
    try:
        passes.load(Path(job["model"]), job["prompt"])
        emit("stage", {"name": "running the reference's pass"})
        passes.run_reference()
        emit("stage", {"name": YOURS})
        passes.run_learner()
        emit("stage", {"name": "comparing"})
        emit("result", passes.found())
    except _Problem as problem:
        emit("problem", {"message": str(problem), "usage": problem.usage})
    os._exit(0)


class _Problem(Exception):
    """Why there is nothing to compare, when that is not the learner's code's doing."""

    def __init__(self, message: str, *, usage: bool = False) -> None:
        super().__init__(message)
        self.usage = usage


class _NoModel(Exception):
    """The learner's module does not define the model."""


class Passes:
    """The two passes of one day's model."""

    def __init__(self, clone: Clone, course: Course, day: Day, solution: str) -> None:
        from .trees import Tree

        assert day.compared is not None
        self.clone, self.course, self.day = clone, course, day
        self.compared: Compared = day.compared
        self.days = course.foundation(day)
        self.theirs_tree = Tree("reference", clone.reference)
        self.mine_tree = Tree("exercises", clone.tree(solution))  # also when that is the reference's folder
        self.stop: Finding | None = None
        self.mine: Recorder | None = None
        self.instances: dict[str, Any] = {}

    def load(self, folder: Path, prompt: str) -> None:
        from .loading import NotLoadable, encode, load_model

        try:
            self.tokens = encode(folder, prompt)
            self.weights = load_model(folder)
        except NotLoadable as error:
            raise _Problem(str(error)) from None
        longest = getattr(self.weights.args, "max_position_embeddings", None)
        if not self.tokens:
            raise _Problem("--prompt has no tokens.", usage=True)
        if longest is not None and len(self.tokens) > longest:
            raise _Problem(
                f"--prompt has {len(self.tokens)} tokens, and the model takes {longest}.", usage=True
            )

    def run_reference(self) -> None:
        from .recording import Recorder

        self.theirs = Recorder(self.theirs_tree, self._symbols(self.theirs_tree))
        self.logits = self._run(self.theirs_tree, self.theirs, "theirs")

    def run_learner(self) -> None:
        from .recording import Recorder

        try:
            self.mine = Recorder(self.mine_tree, self._symbols(self.mine_tree))
            self._run(self.mine_tree, self.mine, "mine")
        except BaseException as error:  # SystemExit and KeyboardInterrupt are the learner's here as well
            self.stop = self._stopped_by(error)

    def _symbols(self, tree: Tree) -> list[Symbol]:
        """Make the tree importable and import its days; the public symbols of their tasks."""
        tree.install()
        tree.kernels(self.course.kernels([self.day]))
        for day in self.days:
            for module in day.modules:
                if module.endswith(".py"):
                    tree.import_module(module)
        symbols = [s for d in self.days for t in d.tasks for s in t.symbols]
        return [s for s in symbols if s.module.endswith(".py")]

    def _run(self, tree: Tree, recorder: Recorder, whose: str) -> Any:
        import mlx.core as mx

        symbol = self.compared.model
        model_class = recorder.plain.get(symbol)
        if model_class is None:
            file = self.clone.relative(tree.path_of(symbol.module))
            raise _NoModel(f"{file} has no {symbol.name}: was it renamed or deleted?")
        with recorder.recording():
            model = model_class(self.weights)
            self.instances[whose] = model
            logits = model(mx.array(self.tokens)[None])
            mx.eval(logits)
        return logits

    # ---- what is told ----

    def found(self) -> dict[str, Any]:
        from .judging import ROUNDOFFS, Alignment, Judge, tolerance
        from .testing import dtype_name

        dtype = self.logits.dtype
        told: dict[str, Any] = {
            "tokens": len(self.tokens),
            "dtype": dtype_name(dtype),
            "roundoffs": ROUNDOFFS.get(dtype, 0),
            "tolerance": tolerance(dtype),
            "layers": 0,
            "rows": [],
            "fault": None,
            "stop": asdict(self.stop) if self.stop else None,
        }
        if self.mine is None:  # not even imported
            return told
        judge = Judge(self.mine, self.theirs, self.compared.layer)
        if "mine" in self.instances:  # made with the same weights: no need to make the reference's once more
            judge.stand_in(self.instances["mine"], self.instances["theirs"])
        fault = judge.first_fault()
        alignment = Alignment(self.mine, self.theirs, self.compared.layer)
        told["layers"] = alignment.layers
        told["rows"] = [asdict(r) for r in _Rows(alignment, self.mine, fault, stopped=self.stop is not None)]
        told["fault"] = asdict(self._fault(fault, alignment)) if fault else None
        return told

    def _fault(self, fault: Fault, alignment: Alignment) -> Finding:
        from .judging import SUSPICIOUS, clue, layers_in, tolerance
        from .testing import dtype_name

        assert self.mine is not None
        call, difference = fault.call, fault.difference
        path = alignment.path_to(call)
        labels = [p.label for p in path[1:]]
        name = call.symbol.name + (f".{call.method}" if call.method not in ("", "__call__") else "")
        layer = next((f" in {label}" for label in labels if label.startswith("layer ")), "")
        day = next(d for d in self.days if call.symbol.module in d.modules)
        if path[0].either.constructs:
            labels = ["making the model", *labels]
        details = [("where", " / ".join(labels) or "the model itself")]
        if fault.writes:
            details.append(
                ("what", "It writes into an array of its caller's, and so changes what comes after.")
            )
        elif difference.mismatch:
            details.append(("what", f"Its result is {difference.mismatch}, for the same inputs."))
        else:
            assert difference.dtype is not None
            limit = tolerance(difference.dtype, layers_in(call, self.compared.layer), SUSPICIOUS)
            details.append(
                (
                    "what",
                    f"For the same inputs the reference returns something else: difference "
                    f"{difference.relative:.1g}, and rounding in {dtype_name(difference.dtype)} explains "
                    f"{limit:.0e}.",
                )
            )
        method = call.method
        if not fault.writes and call.children:
            inside, method = clue(path[-1], self.mine, self.theirs, alignment.layers)
            details.append(("inside", f"What it calls is right for what it is given. {inside}".strip()))
        details.append(("your line", self._definition(call.symbol, method)))
        return Finding(
            f"{name}{layer} is the first to differ (day {day.id}, {day.title}).",
            tuple(details),
            f"tinyllm-grade {day.name}",
        )

    def _definition(self, symbol: Symbol, method: str) -> str:
        """Where the learner defines a function or method."""
        import inspect

        assert self.mine is not None
        function = inspect.unwrap(self.mine.function(symbol, method))
        code = getattr(function, "__code__", None)
        if code is None:  # something callable that is no function
            return self.clone.relative(self.mine_tree.path_of(symbol.module))
        return f"{self.clone.relative(code.co_filename)}:{code.co_firstlineno} in {code.co_qualname}"

    def _day_of(self, file: Path) -> Day:
        return day_of(self.course, self.day, file, self.mine_tree.folder)

    def _stopped_by(self, error: BaseException) -> Finding:
        """Why the learner's pass ended, with the line."""
        from .frames import FrameRecorder
        from .render import where

        frames = FrameRecorder(self.mine_tree.owns, self.clone.relative).of_traceback(error.__traceback__)
        day = self._day_of(self.clone.root / frames[-1].path) if frames else self.day
        details = [("your line", where(frames[-1])), ("", "  " + frames[-1].source)] if frames else []
        unfinished = UNFINISHED.search(str(error))
        if isinstance(error, (NotImplementedError, RuntimeError)) and unfinished:
            named = self.course.day(unfinished[1])
            title = (
                f"{unfinished[3]} is not written yet: day {named.id} ({named.title}), task {unfinished[2]}."
            )
            return Finding(title, (), f"tinyllm-grade {named.name}")
        if isinstance(error, SyntaxError):
            file = self.clone.relative(error.filename or "")
            line = f"{file}:{error.lineno}" if error.lineno else file
            details = [("your line", line), ("", "  " + (error.text or "").strip())]
            title = f"Your code has a syntax error: {error.msg}."
            day = self._day_of(Path(error.filename or ""))
        elif isinstance(error, _NoModel):
            title = str(error)
        else:
            first = (str(error).strip() or "no message").splitlines()[0]
            title = f"Your code raises {type(error).__name__}: {first}"
        return Finding(title, tuple(details), f"tinyllm-grade {day.name}")


class _Rows:
    """The rows of the table, in the order of the reference's calls."""

    def __init__(self, alignment: Alignment, mine: Recorder, fault: Fault | None, *, stopped: bool) -> None:
        from .judging import calls_in

        self.alignment = alignment
        self.stopped = stopped
        self.ended = {call: place for place, call in enumerate(mine.finished)}
        self.fault = fault
        self.fault_place = self.ended[fault.call] if fault else len(self.ended)
        self.within_fault = set(calls_in(fault.call)) if fault else set()

    def __iter__(self) -> Iterator[Row]:
        for root in self.alignment.pairs:
            if root.either.constructs:
                yield from self._below(root.children, "making the model", 0)
            else:
                yield from self._below(root.children, "", 0)
                yield self._row(root, "", 0)

    def _below(self, pairs: list[Pair], section: str, depth: int) -> Iterator[Row]:
        for pair in pairs:
            if pair.either.constructs:
                yield from self._below(pair.children, section, depth)
                continue
            own = section or (pair.label if pair.label.startswith("layer ") else "")
            yield self._row(pair, own, depth)
            yield from self._below(pair.children, own, depth + 1)

    def _row(self, pair: Pair, section: str, depth: int) -> Row:
        found = pair.difference
        return Row(
            section=section,
            depth=depth,
            label=pair.label,
            shape=_shape(pair.either.result),
            difference=found.relative if found is not None and not found.mismatch else None,
            remark=found.short if found is not None else "",
            state=self._state(pair, found),
        )

    def _state(self, pair: Pair, found: Difference | None) -> State:
        call = pair.mine
        if call is None or not call.returned:
            return State.NOT_REACHED if self.stopped else State.NOT_CALLED
        if self.fault is not None and call is self.fault.call:
            return State.FIRST
        if pair.theirs is None:
            return State.EXTRA
        # What ended before the first wrong operation began is right, however it was arranged.
        affected = self.ended[call] > self.fault_place or call in self.within_fault
        return State.DIFFERS if affected and found and found.beyond(self.alignment.layers) else State.AGREES


def _shape(result: Any) -> str:
    from .recording import arrays_in

    return ", ".join(str(tuple(a.shape)) for a in arrays_in(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
