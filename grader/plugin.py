"""The pytest side of grading: the `solution` fixture, the tripwires, and one event per check.

Runs in the grading child (see child.py). To run a day's tests under plain pytest:

    python -P -m pytest -p tinyllm.grader.plugin --solution reference checkpoints/day1_1
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from tinyllm import kernels
from tinyllm.kernels.gpu_source import GpuFault

from . import catalog, faults, forbid
from .catalog import KERNELS, Day, Task
from .clone import Clone, find_clone
from .faults import ends, first_line, unwritten
from .frames import FrameRecorder, library_tail, source_line
from .report import Failure, Frame, Outcome
from .testing import CheckFailed, CourseFault, check
from .trees import Tree
from .tripwires import ForbiddenAPI, Tripwires
from .witness import write as write_ending

if TYPE_CHECKING:
    from tinyllm.kernels import build

METAL = ".metal"
KERNEL_MODULES = Path(kernels.__path__[0])

Emit = Callable[[str, Mapping[str, Any]], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--solution",
        choices=("exercises", "reference"),
        default="exercises",
        help="which tree the `solution` fixture gives",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Set up grading for a bare pytest run; the grading child registers its own Grading instead."""
    if config.pluginmanager.has_plugin("tinyllm-grading"):
        return
    clone = find_clone()
    course = catalog.load(clone)
    folders = {Path(str(a).split("::")[0]).resolve() for a in config.args}
    days = [d for d in course.days if any(f == d.folder or d.folder in f.parents for f in folders)]
    if len(days) != 1:
        raise pytest.UsageError("name the tests of exactly one day, for example checkpoints/day1_1")
    name = config.getoption("--solution")
    grading = Grading(clone, course, days[0], Tree(name, clone.tree(name)))
    grading.prepare()
    config.pluginmanager.register(grading, "tinyllm-grading")


class NotThere(Exception):
    """The solution has no such name, or its module cannot be imported; carries the failure."""

    def __init__(self, failure: Failure, outcome: Outcome = Outcome.FAILED) -> None:
        super().__init__(failure.summary)
        self.failure = failure
        self.outcome = outcome


class Solution:
    """What the `solution` fixture gives: the names of the day's modules, imported when first asked for."""

    def __init__(self, grading: Grading) -> None:
        self._grading = grading

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        modules = self._grading.modules_with(name)
        for module in modules:
            value = getattr(self._grading.module(module), name, None)
            if value is not None:
                path = str(self._grading.tree.path_of(module))
                self._grading.tripwires.check_provided(value, name=name, path=path)
                return value
        raise NotThere(
            Failure(
                summary=f"{' or '.join(modules)} has no `{name}`.",
                expected=f"`{name}`, defined at the top level of the module",
                got="no such name: was it renamed or deleted?",
            )
        )


class Grading:
    """One day's grading inside pytest. `emit(event, data)` is told what happens as it happens."""

    def __init__(
        self,
        clone: Clone,
        course: catalog.Course,
        day: Day,
        tree: Tree,
        *,
        emit: Emit = lambda event, data: None,
        only_ids: frozenset[str] | None = None,
        only_task: int | None = None,
        witness: Path | None = None,  # a file for the endings of checks that fail
    ) -> None:
        self.witness = witness
        self.clone = clone
        self.course = course
        self.day = day
        self.tree = tree
        self.emit = emit
        self.only_ids = only_ids
        self.only_task = only_task
        self.first_tasks: tuple[int, ...] = ()  # whose checks run before the others', in this order
        self.share: frozenset[str] | None = None  # the checks of this process, where others run beside it
        self.wait: Callable[[], None] = lambda: None  # called when the tests are collected, nothing has run
        self._relative = faults.shown_path(clone, tree)
        self.frames = FrameRecorder(tree.owns, self._relative)
        self.tripwires = Tripwires(day.rules, tree.owns, self._is_ours)
        self.findings: tuple[tuple[str, forbid.Finding], ...] = ()
        self.finished = 0
        self._modules: dict[str, ModuleType] = {}
        self._import_failure: NotThere | None = None
        self._absent: dict[str, NotThere] = {}  # kernels that could not be built
        self._results: dict[str, dict[str, Any]] = {}
        self.given = Solution(self)  # what the `solution` fixture gives
        self.checks: dict[str, tuple[int, str]] = {}  # id -> (task, title)
        self.beside: list[Any] = []  # further plugins; they may come with the job
        self.at_end: list[Callable[[], None]] = []  # what is to be done when all is reported
        self.everything: list[pytest.Item] = []  # all that the day's tests hold

    # ---- before the tests ----

    def prepare(self) -> None:
        """Make the tree importable and arm the tripwires. No learner code has run yet."""
        # On GPUs with TF32 a float32 matmul keeps 10 bits by default; the tolerances are those of float32.
        os.environ.setdefault("MLX_ENABLE_TF32", "0")
        self.tree.install()
        self.tripwires.arm()

    def stand_in(self, items: list[pytest.Item]) -> Solution:
        """The tree's code for checks that are run to see what they give, and are not judged: nothing is
        refused. Compiles and imports what `items` need."""
        self.tree.install()
        self._find_gpu_kernels()
        self._build_kernels(items)
        self._import_solution()
        return self.given

    def _find_gpu_kernels(self) -> None:
        """Where single .metal files are replaced by others, launches read those."""
        replaced = {
            m.removeprefix(KERNELS): file
            for m, file in self.tree.overlays.items()
            if m.startswith(KERNELS) and m.endswith(METAL)
        }
        if replaced:
            from tinyllm.kernels import gpu

            gpu.overlay(self.tree.package, replaced)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        config.addinivalue_line("markers", "task(n): the task that a check belongs to")
        # In the day's order, however its test files are called.
        self.everything = sorted(items, key=_task_number)
        kept = self._chosen()
        config.hook.pytest_deselected(items=[i for i in items if i not in kept])
        items[:] = kept

    def _asked_for(self) -> list[pytest.Item]:
        """The checks of the grading, of which other processes may run some."""
        return [i for i in self.everything if self.only_task in (None, _task_number(i))]

    def _chosen(self) -> list[pytest.Item]:
        """The checks that this process is to run."""
        kept = self._asked_for()
        if self.share is not None:
            kept = [i for i in kept if check_id(i) in self.share]
        if self.only_ids is not None:
            kept = [i for i in kept if check_id(i) in self.only_ids]
        first = {task: n - len(self.first_tasks) for n, task in enumerate(self.first_tasks)}
        return sorted(kept, key=lambda i: first.get(_task_number(i), 0))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.config.option.collectonly:
            return
        self.wait()
        session.items[:] = self._chosen()  # a job that came meanwhile may want only some
        for plugin in self.beside:
            if not session.config.pluginmanager.is_registered(plugin):
                session.config.pluginmanager.register(plugin)
        self._find_gpu_kernels()
        self.make_ready(session.items)
        self.import_modules()

    def make_ready(self, items: list[pytest.Item]) -> None:
        """Tell which checks there are, and compile what they need. No learner code has run yet."""
        self.checks = {check_id(i): (_task_number(i), _title(i)) for i in self._asked_for()}
        told = [{"id": i, "task": task, "title": title} for i, (task, title) in self.checks.items()]
        self.emit("collected", {"checks": told})
        self._build_kernels(items)

    def import_modules(self) -> None:
        """Import the day's modules: the first learner code to run."""
        self.emit("importing", {})
        self._import_solution()
        self.emit("imported", {})

    def _build_kernels(self, items: list[pytest.Item]) -> None:
        """Compile and load the C++ kernels that the day's code runs, so that no check's time goes into it."""
        files = self.course.kernels([self.day])
        if not files or not self._use_kernels(items):
            return
        from tinyllm.kernels import build

        self.emit("building", {})
        mine = [m for m in self.day.modules if m.endswith(".cpp")]
        kernels = self.tree.kernels(files)
        try:
            native = kernels.load()
        except (build.BuildFault, build.DoesNotCompile) as error:
            self._absent = dict.fromkeys(mine, self._unbuilt(error))
        else:
            native.watch_outputs(True)
            self._modules |= dict.fromkeys(mine, native)

    def _use_kernels(self, items: list[pytest.Item]) -> bool:
        """Whether a check that will run is about a kernel, or about Python code that may call one."""
        tasks = {_task_number(i) for i in items}
        if any(s.module.endswith(".cpp") for t in self.day.tasks if t.id in tasks for s in t.symbols):
            return True
        modules = [m for d in self.course.foundation(self.day) for m in d.modules if m.endswith(".py")]
        paths = [self.tree.path_of(m) for m in modules]
        return any(b"tinyllm.kernels" in p.read_bytes() for p in paths if items and p.is_file())

    def _unbuilt(self, error: build.BuildFault | build.DoesNotCompile) -> NotThere:
        """Why there are no kernels, as every check that needs one is told."""
        from tinyllm.kernels import build

        if isinstance(error, build.DoesNotCompile):
            return self._compile_failure(error.complaint, error.output)
        return NotThere(Failure(summary=f"The kernels cannot be built here: {error}"), Outcome.NOT_RUN_HERE)

    def _compile_failure(self, complaint: build.Complaint, output: str) -> NotThere:
        file = self.tree.path_of(KERNELS + complaint.file)
        shown = self._relative(file)
        frames: tuple[Frame, ...] = ()
        if complaint.line:
            frames = (Frame(shown, complaint.line, "", source_line(str(file), complaint.line)),)
        summary = f"{shown} does not compile: {complaint.message}"
        return NotThere(Failure(summary=summary, frames=frames, detail=output))

    def _import_solution(self) -> None:
        """Import every module of the day now, so that a hang or crash there is told as what it is."""
        python = [m for m in self.day.modules if m.endswith(".py")]
        for module in python:
            try:
                self._modules[module] = self.tree.import_module(module)
            except BaseException as error:
                self._import_failure = self._import_problem(module, error)
                return
        for trip in self.tripwires.tripped:  # also one that the module caught
            refusal = self._refusal(trip.api, trip.rule, trip.path, trip.line, ())
            self._import_failure = NotThere(refusal, Outcome.REFUSED)
            return
        found = []
        for module in python:
            path = self.tree.path_of(module)
            package = f"{self.tree.package}.{module.rpartition('/')[0].replace('/', '.')}".rstrip(".")
            source = path.read_text(encoding="utf-8")
            found += [(module, f) for f in forbid.scan(source, self._relative(path), self.day.rules, package)]
        self.findings = tuple(found)

    def module(self, name: str) -> ModuleType:
        """A module of the day. Raises NotThere when it could not be imported or built."""
        if name in self._absent:
            raise self._absent[name]
        if self._import_failure is not None and name.endswith(".py"):
            raise self._import_failure
        return self._modules[name]

    def modules_with(self, name: str) -> tuple[str, ...]:
        """The modules that a task asks to define `name`; for a name that no task lists, all of the day's."""
        symbols = [s for t in self.day.tasks for s in t.symbols if not s.module.endswith(METAL)]
        named = [s.module for s in symbols if s.name.split(".")[0] == name]
        return tuple(dict.fromkeys(named)) or tuple(m for m in self.day.modules if m.endswith(".py"))

    def _import_problem(self, module: str, error: BaseException) -> NotThere:
        """Why a module cannot be imported, in words about the learner's file."""
        detail = "".join(traceback.format_exception(error))
        if isinstance(error, ForbiddenAPI):
            frames = self.frames.of_traceback(error.__traceback__)
            return NotThere(
                self._refusal(error.api, error.rule, error.path, error.line, frames), Outcome.REFUSED
            )
        found = faults.in_importing(module, error, self.tree, self.frames, self._relative)
        if found.missing:
            detail = f"Bring it back with `tinyllm-grade reset {self.day.name}`.\n\n{detail}"
        failure = Failure(summary=found.summary, frames=found.frames, detail=detail)
        return NotThere(failure, Outcome.CRASHED if found.ended else Outcome.FAILED)

    # ---- a check ----

    @pytest.fixture
    def solution(self) -> Solution:
        """The code under test."""
        return self.given

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.emit("start", {"id": check_name(nodeid)})

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        check.begin()
        self.tripwires.clear()
        try:
            with self.frames.recording():
                return (yield)
        except KeyboardInterrupt as error:
            # Raised by the learner's code: the terminal's Ctrl-C goes to the parent only.
            raise SystemExit("KeyboardInterrupt") from error

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "call" or (call.when == "setup" and call.excinfo is not None):
            error = call.excinfo.value if call.excinfo else None
            outcome, failure = self._judge(item, error)
            if self.witness is not None and outcome is Outcome.FAILED and error is not None:
                self._keep_ending(check_id(item), error)
            self._results[item.nodeid] = {
                "id": check_id(item),
                "outcome": outcome.value,
                "seconds": round(call.duration, 6),
                "ratio": max(check.ratios, default=None),
                "failure": asdict(failure) if failure else None,
            }
            if outcome not in (Outcome.PASSED, Outcome.NOT_RUN_HERE) and report.passed:
                report.outcome = "failed"  # so that a bare pytest run says the same as the grader
                report.longrepr = failure.summary if failure else outcome.value
        return report

    def result_of(self, item: pytest.Item) -> dict[str, Any] | None:
        """What the event "finish" will say of a check that has just run."""
        return self._results.get(item.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.finished += 1
        self.emit("finish", self._results.pop(nodeid, {"id": check_name(nodeid)}))

    def _keep_ending(self, name: str, error: BaseException) -> None:
        """Keep what the check saw last, so that it can be set beside what known mistakes make."""
        if not isinstance(error, NotThere):
            check.witness.raised(error)  # unless a comparison has failed
        if check.witness.ending is not None:
            write_ending(self.witness, name, check.witness.ending)

    # ---- the judgement ----

    def _judge(self, item: pytest.Item, error: BaseException | None) -> tuple[Outcome, Failure | None]:
        outcome, failure = self._judge_exception(item, error)
        if outcome in (Outcome.PASSED, Outcome.FAILED):
            for trip in self.tripwires.tripped:
                # The learner's code caught the refusal and went on.
                return Outcome.REFUSED, self._refusal(trip.api, trip.rule, trip.path, trip.line, ())
            for module, finding in self.findings:
                if _concerns(finding, module, self._task(item)):
                    return Outcome.REFUSED, self._refusal(
                        finding.api, finding.rule, str(self.tree.path_of(module)), finding.line, ()
                    )
        if outcome is Outcome.PASSED and not check.ratios:
            return Outcome.COURSE_FAULT, Failure(summary="This check compared nothing, so it cannot pass.")
        return outcome, failure

    def _judge_exception(
        self, item: pytest.Item, error: BaseException | None
    ) -> tuple[Outcome, Failure | None]:
        if error is None:
            return Outcome.PASSED, None
        if _is_from_building(error):
            error = self._unbuilt(error)
        tb = error.__traceback__
        frames = self.frames.of_traceback(tb)
        detail = "".join(traceback.format_exception(error))
        match error:
            case CheckFailed():
                failure = replace(
                    error.failure, fact=self._fact(error.failure.fact), frames=self.frames.after_return()
                )
                return Outcome.FAILED, failure
            case NotThere():
                return error.outcome, error.failure
            case ForbiddenAPI():
                return Outcome.REFUSED, self._refusal(error.api, error.rule, error.path, error.line, frames)
            case pytest.skip.Exception():
                return Outcome.NOT_RUN_HERE, Failure(summary=str(error))
            case CourseFault():
                return Outcome.COURSE_FAULT, Failure(
                    summary=f"The check's own input is not what it must be: {error}", detail=detail
                )
            case NotImplementedError() | RuntimeError() if stub := unwritten(error, frames):
                return self._unfinished(item, *stub, str(error), frames, detail)
            case SystemExit():
                name = "KeyboardInterrupt" if error.__cause__ else "SystemExit (sys.exit or exit)"
                frames = frames or self.frames.of_traceback(
                    error.__cause__.__traceback__ if error.__cause__ else None
                )
                return Outcome.CRASHED, Failure(
                    summary=f"The code ended the program: {name}.", frames=frames, detail=detail
                )
            case GpuFault():
                return self._gpu_failure(error, frames, detail)
            case MemoryError():
                return Outcome.OUT_OF_MEMORY, Failure(
                    summary="The code asked for more memory than there is.", frames=frames, detail=detail
                )
            case AssertionError() if not frames:
                return Outcome.COURSE_FAULT, Failure(
                    summary=f"The check itself failed: {first_line(error)}", detail=detail
                )
            case RecursionError():
                summary = "The code calls itself without end (RecursionError)."
            case _:
                summary = f"{type(error).__name__}: {first_line(error)}"
        checked = " ".join(getattr(error, "__notes__", ()))  # what a check says it was doing
        if not checked and not frames:
            checked = f"called as: {library_tail(tb, self.day.folder)}"
        return Outcome.FAILED, Failure(summary=summary, checked=checked, frames=ends(frames), detail=detail)

    def _gpu_failure(
        self, error: GpuFault, frames: tuple[Frame, ...], detail: str
    ) -> tuple[Outcome, Failure]:
        """A GPU kernel that does not compile or did what no kernel may, at its line in the .metal file."""
        file, line, message = error.place
        path = self.tree.path_of(KERNELS + file)
        shown = self._relative(path)
        kernel = Frame(path=shown, line=line, function="", source=source_line(str(path), line))
        summary = f"{shown}, line {line}: {message}."
        return Outcome.FAILED, Failure(summary=summary, frames=(*ends(frames)[:2], kernel), detail=detail)

    def _unfinished(
        self, item: pytest.Item, day_id: str, number: int, text: str, frames: tuple[Frame, ...], detail: str
    ) -> tuple[Outcome, Failure]:
        """A stub was reached: the task's own (not started), or one that comes before it (blocked)."""
        if day_id == self.day.id and number == _task_number(item):
            return Outcome.NOT_STARTED, Failure(summary=text, frames=frames, detail=detail)
        name = text.partition(":")[2].strip()
        if day_id == self.day.id:
            summary, needs = f"Task {number} comes first: {name} is not written yet.", ""
        else:
            title = next((f" ({d.title})" for d in self.course.days if d.id == day_id), "")
            summary, needs = f"This needs day {day_id}{title}: {name} is not written yet.", day_id
        # The last frame is the stub itself; the line that called it says more.
        return Outcome.BLOCKED, Failure(summary=summary, needs_day=needs, frames=frames[:-1], detail=detail)

    def _refusal(
        self, api: str, rule: catalog.Rule, path: str, line: int, frames: tuple[Frame, ...]
    ) -> Failure:
        if not frames:
            source = ""
            if Path(path).is_file():
                lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
                source = lines[line - 1].strip() if 0 < line <= len(lines) else ""
            frames = (Frame(path=self._relative(path), line=line, function="", source=source),)
        return Failure(
            summary=f"{api} may not be used on day {self.day.id}: {rule.why}.",
            expected=f"use instead: {rule.instead}",
            frames=ends(frames),
        )

    def _fact(self, fact_id: str) -> str:
        return next((f.text for f in self.day.facts if f.id == fact_id), "")

    def _task(self, item: pytest.Item) -> Task | None:
        return next((t for t in self.day.tasks if t.id == _task_number(item)), None)

    def _is_ours(self, filename: str) -> bool:
        """Whether a file may use everything: a test, or what launches a solution's kernels."""
        path = Path(filename)
        return path.is_relative_to(self.clone.checkpoints) or path.parent == KERNEL_MODULES


def check_name(nodeid: str) -> str:
    """ "test_attention.py::test_softmax[float32]", however pytest spells the folder before it."""
    file, _, name = nodeid.partition("::")
    return f"{Path(file).name}::{name}"


def check_id(item: pytest.Item) -> str:
    return check_name(item.nodeid)


def _task_number(item: pytest.Item) -> int:
    mark = item.get_closest_marker("task")
    return int(mark.args[0]) if mark and mark.args else 0


def _title(item: pytest.Item) -> str:
    doc = getattr(getattr(item, "obj", None), "__doc__", None) or item.name
    return doc.strip().splitlines()[0].rstrip(".")


def _is_from_building(error: BaseException) -> bool:
    """Whether Python code under test asked for kernels that could not be built."""
    build = sys.modules.get("tinyllm.kernels.build")
    return build is not None and isinstance(error, build.BuildFault | build.DoesNotCompile)


def _concerns(finding: forbid.Finding, module: str, task: Task | None) -> bool:
    """Whether a forbidden use stands in code of `task`: in one of its symbols, or outside any symbol."""
    if task is None:
        return True
    names = [s.name.split(".")[0] for s in task.symbols if s.module == module]
    return bool(names) and (not finding.symbol or finding.symbol.split(".")[0] in names)
