"""The measuring child: one process in which a day's bench.py, or a whole model, is measured.

    python -P -m tinyllm.grader.benching_child '<job as JSON>'

Started by benching.py, which reads the events: "stage", "turn", "note", "count", "race", "limits",
"roofline" and "schedules" as they come, then "fault" or "done".
"""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from tinyllm.kernels import blas

from . import catalog
from .catalog import KERNELS, Course, Day
from .child import Emitter, die_with_parent
from .clone import Clone
from .errors import CourseError, UsageError
from .report import Frame
from .trees import Tree


def main(job: Mapping[str, Any]) -> None:
    """Run one job. Ends the process itself: a thread that the tree's code left must not keep it alive."""
    die_with_parent(job["lifeline"])
    stacks = Path(job["stack_file"]).open("w")  # noqa: SIM115 - faulthandler writes to it to the end
    faulthandler.enable(file=stacks, all_threads=False)
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=False)
    emit = Emitter(job["events"], job["token"])
    emit("stage", {"name": "starting"})
    # transformers comes with mlx-lm, and would remark that there is no PyTorch.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    state = blas.prepare()
    # On GPUs with TF32 a float32 product keeps 10 bits by default; results are compared as float32.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    clone = Clone(Path(job["root"]))
    course = catalog.load(clone)
    theirs = Tree("reference", clone.reference)
    mine = theirs
    if job["solution"] != "reference":
        overlays = {k: Path(v) for k, v in job["overlays"].items()}
        mine = Tree(job["solution"], clone.tree(job["solution"]), overlays)
        mine.install()
    theirs.install()
    try:
        _measure(job, clone, course, mine, theirs, emit, state)
        emit("done", {})
    except BaseException as error:  # SystemExit and KeyboardInterrupt are the tree's code's here as well
        emit("fault", _told(error, clone, mine, theirs))
    os._exit(0)


def _measure(
    job: Mapping[str, Any],
    clone: Clone,
    course: Course,
    mine: Tree,
    theirs: Tree,
    emit: Emitter,
    state: blas.BlasState,
) -> None:
    from .measuring import Bench

    day = course.day(job["day"]) if job["day"] else None
    days = [day] if day else [course.day(d) for d in course.engine(job["engine"]).days]
    for tree in dict.fromkeys((mine, theirs)):
        _build_kernels(course, tree, days, emit)
    bench = Bench(clone, mine, theirs, emit, day=day, rounds=job["rounds"])
    emit("stage", {"name": "measuring"})
    if day is not None:
        _module_of(day.folder / "bench.py").measure(bench)
        return
    from .model_speed import Speed

    Speed(bench, course.engine(job["engine"]), state, job["model"], emit).measure()


def _build_kernels(course: Course, tree: Tree, days: Sequence[Day], emit: Emitter) -> None:
    """Compile the kernels that the days' code runs before anything is timed. Raises NoKernels."""
    from tinyllm.kernels import build

    from .measuring import NoKernels

    files = course.kernels(days)
    kernels = tree.kernels(files)
    modules = {m for day in days for d in course.foundation(day) for m in d.modules if m.endswith(".py")}
    paths = [tree.path_of(m) for m in modules]
    own = any(m.endswith(".cpp") for day in days for m in day.modules)
    if not files or not (own or any(b"tinyllm.kernels" in p.read_bytes() for p in paths if p.is_file())):
        return  # where one is used all the same it is compiled then
    emit("stage", {"name": "compiling the kernels (about 15 s the first time)"})
    try:
        kernels.load()
    except (build.BuildFault, build.DoesNotCompile) as error:
        raise NoKernels(tree, error) from error


def _module_of(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("tinyllm_bench", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- what goes wrong


def _told(error: BaseException, clone: Clone, mine: Tree, theirs: Tree) -> dict[str, Any]:
    """An exception as a fault: whose it is, what it says, and the lines of the tree that is measured."""
    from . import faults
    from .frames import FrameRecorder
    from .measuring import YOURS, ImportFailed, Missing, Unfit

    shown = faults.shown_path(clone, mine)
    recorder = FrameRecorder(mine.owns, shown)
    detail = "".join(traceback.format_exception(error))
    told: dict[str, Any] = {"module": "", "frames": [], "day": "", "task": 0, "detail": detail}
    if isinstance(error, CourseError):
        kind = "usage" if isinstance(error, UsageError) else "machine"
        return {**told, "kind": kind, "summary": error.message, "next_step": error.next_step}
    if isinstance(error, ImportFailed):
        tree = mine if error.tree is mine else theirs
        recorder = FrameRecorder(tree.owns, faults.shown_path(clone, tree))
        found = faults.in_importing(error.module, error.error, tree, recorder, faults.shown_path(clone, tree))
        frames = [asdict(f) for f in faults.ends(found.frames)]
        told |= {"summary": found.summary, "module": found.missing or error.module, "frames": frames}
        return {**told, "kind": "code" if tree is mine else "course"}
    if unbuilt := _unbuilt(error, clone, mine):
        return {**told, **unbuilt}
    if isinstance(error, Missing):
        file = clone.relative(error.tree.path_of(error.module))
        kind = "code" if error.tree is mine else "course"
        return {**told, "kind": kind, "summary": f"{file} {error}", "module": error.module}
    if isinstance(error, Unfit):
        kind = "code" if error.name == YOURS or mine is theirs else "course"
        return {**told, "kind": kind, "summary": str(error)}
    frames = recorder.of_traceback(error.__traceback__)
    # A C++ kernel's stub is raised where its result is needed, which may be in the tree's code or not.
    if stub := faults.unwritten(error, () if isinstance(error, RuntimeError) else frames):
        return {**told, "kind": "unwritten", "summary": str(error), "day": stub[0], "task": stub[1]}
    summary = faults.in_words(error)
    told |= {"summary": summary, "frames": [asdict(f) for f in faults.ends(frames)]}
    return {**told, "kind": "code" if _raised_in(mine, error.__traceback__, theirs) else "course"}


def _unbuilt(error: BaseException, clone: Clone, mine: Tree) -> dict[str, Any] | None:
    """The fault of an exception that says why there are no kernels."""
    from tinyllm.kernels import build

    from .measuring import NoKernels

    tree = mine
    if isinstance(error, NoKernels):
        tree, error = error.tree, error.why
    if isinstance(error, build.BuildFault):
        step = "tinyllm-grade doctor"
        summary = f"The kernels cannot be built here: {error}"
        return {"kind": "machine", "summary": summary, "next_step": step}
    if not isinstance(error, build.DoesNotCompile):
        return None
    complaint = error.complaint
    module = KERNELS + complaint.file
    path = tree.path_of(module)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    source = lines[complaint.line - 1].strip() if 0 < complaint.line <= len(lines) else ""
    frame = Frame(path=clone.relative(path), line=complaint.line, function="", source=source)
    summary = f"{clone.relative(path)} does not compile: {complaint.message}"
    kind = "code" if tree is mine else "course"
    return {"kind": kind, "summary": summary, "module": module, "frames": [asdict(frame)]}


def _raised_in(mine: Tree, trace: TracebackType | None, theirs: Tree) -> bool:
    """Whether the innermost frame of either tree belongs to the one that is measured."""
    owner = None
    for frame, _ in traceback.walk_tb(trace):
        file = frame.f_code.co_filename
        owner = mine if mine.owns(file) else theirs if theirs.owns(file) else owner
    return owner is mine


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
