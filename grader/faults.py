"""What went wrong in learner code, in words about the learner's files (runs in the grading child)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .clone import Clone
from .frames import FrameRecorder
from .report import Frame
from .trees import Tree

STUB_MESSAGE = re.compile(r"day (\d+\.\d+), task (\d+)")


class ImportProblem(NamedTuple):
    """Why a module cannot be imported."""

    summary: str
    frames: tuple[Frame, ...]
    missing: str = ""  # the file that does not exist, when that is why
    ended: bool = False  # importing it ended the program


def shown_path(clone: Clone, tree: Tree) -> Callable[[Path | str], str]:
    """A function from a file to the path as the learner knows it: an overlay is shown as the module it
    stands for."""

    def relative(path: Path | str) -> str:
        for module, file in tree.overlays.items():
            if Path(path) == file:
                return clone.relative(tree.folder / module)
        return clone.relative(path)

    return relative


def unwritten(error: BaseException, frames: tuple[Frame, ...]) -> tuple[str, int] | None:
    """The day's id and the task that an exception says is not written yet; None for any other exception."""
    if isinstance(error, NotImplementedError) and frames:
        stub = STUB_MESSAGE.search(str(error))
    elif isinstance(error, RuntimeError) and not frames:
        # A C++ kernel's stub throws on MLX's thread; MLX raises it again where the result is needed.
        stub = STUB_MESSAGE.match(str(error))
    else:
        stub = None
    return (stub[1], int(stub[2])) if stub else None


def in_importing(
    module: str,
    error: BaseException,
    tree: Tree,
    recorder: FrameRecorder,
    relative: Callable[[Path | str], str],
) -> ImportProblem:
    """Why importing `module` ("week1/rope.py") of the tree raised `error`."""
    shown = relative(tree.path_of(module))
    frames = recorder.of_traceback(error.__traceback__)
    if isinstance(error, SyntaxError):
        where = f"line {error.lineno}" if error.lineno else "the file"
        shown = relative(error.filename or shown)
        if error.lineno:
            source = (error.text or "").strip()
            frames = (Frame(path=shown, line=error.lineno, function="", source=source),)
        if "utf-8" in str(error) and "decode" in str(error):
            return ImportProblem(f"{shown} is not UTF-8 text: {error.msg}.", frames)
        return ImportProblem(f"{shown} has a syntax error on {where}: {error.msg}.", frames)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith(tree.package):
        missing = (error.name or "")[len(tree.package) + 1 :].replace(".", "/") + ".py"
        path = relative(tree.folder / missing)
        return ImportProblem(f"{path} does not exist.", frames, missing=missing)
    if isinstance(error, ImportError) and "circular import" in str(error):
        return ImportProblem(f"Importing {shown} goes round in a circle: {first_line(error)}.", frames)
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        ended = f"Importing {shown} ended the program ({type(error).__name__})."
        return ImportProblem(ended, frames, ended=True)
    if isinstance(error, NotImplementedError) and STUB_MESSAGE.search(str(error)):
        return ImportProblem(f"Importing {shown} calls something unfinished: {error}.", frames)
    return ImportProblem(f"Importing {shown} raises {type(error).__name__}: {first_line(error)}", frames)


def in_words(error: BaseException) -> str:
    """What an exception of the tree's code says, in a sentence."""
    match error:
        case SystemExit() | KeyboardInterrupt():
            return f"The code ended the program: {type(error).__name__}."
        case RecursionError():
            return "The code calls itself without end (RecursionError)."
        case MemoryError():
            return "The code asked for more memory than there is."
        case RuntimeError() if "allocate" in str(error):  # MLX's own words
            return f"There is not enough memory: {first_line(error)}"
        case _:
            return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def ends(frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """The outermost and the innermost of many frames: a recursion has thousands."""
    return frames if len(frames) <= 4 else (*frames[:2], *frames[-2:])
