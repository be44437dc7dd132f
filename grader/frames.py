"""Remembers what stood in the learner's frames: the line, the names, the shapes (runs in the grading child).

A wrong result is noticed after the learner's function has returned, when its frames are gone. So while a
check runs, each return from solution code is noted with its local names; a failure shows the last ones.
"""

from __future__ import annotations

import functools
import linecache
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, TypeVar

import mlx.core as mx

from .report import ArrayNote, Frame

KEPT_RETURNS = 6
SHOWN_VALUES = 12

F = TypeVar("F", bound=Callable[..., Any])


class FrameRecorder:
    """Notes returns from functions of solution files, and how deep in solution code each was."""

    def __init__(self, is_solution: Callable[[str], bool], relative: Callable[[str], str]) -> None:
        self._is_solution = is_solution
        self._relative = relative
        self._depth = 0
        self._returns: deque[tuple[int, CodeType, int, dict[str, Any]]] = deque(maxlen=KEPT_RETURNS)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note the returns that happen inside the `with` block."""
        self._returns.clear()
        self._depth = 0
        sys.setprofile(self._event)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _event(self, frame: FrameType, event: str, arg: Any) -> None:
        if event not in ("call", "return") or not self._is_solution(frame.f_code.co_filename):
            return
        if event == "call":
            self._depth += 1
        else:
            # Locals are kept, not looked at: looking would evaluate lazy arrays in the learner's time.
            self._returns.append((self._depth, frame.f_code, frame.f_lineno, dict(frame.f_locals)))
            self._depth -= 1

    def after_return(self) -> tuple[Frame, ...]:
        """The last call that the check itself made into solution code, as it stood on returning."""
        outer = next((i for i in reversed(range(len(self._returns))) if self._returns[i][0] == 1), None)
        if outer is None:
            return ()
        _, code, line, names = self._returns[outer]
        return (self._frame(code, line, names),)

    def of_traceback(self, tb: TracebackType | None) -> tuple[Frame, ...]:
        """The learner's frames of an exception, outermost first."""
        found = []
        for frame, line in traceback.walk_tb(tb):
            if self._is_solution(frame.f_code.co_filename):
                found.append(self._frame(frame.f_code, line, dict(frame.f_locals)))
        return tuple(found)

    def of_stack(self, frame: FrameType | None) -> tuple[Frame, ...]:
        """The learner's frames of a running stack, outermost first, without evaluating any array."""
        found = []
        for item, line in traceback.walk_stack(frame):
            if self._is_solution(item.f_code.co_filename):
                found.append(self._frame(item.f_code, line, dict(item.f_locals), evaluate=False))
        return tuple(reversed(found))

    def _frame(self, code: CodeType, line: int, names: dict[str, Any], *, evaluate: bool = True) -> Frame:
        return Frame(
            path=self._relative(code.co_filename),
            line=line,
            function=getattr(code, "co_qualname", code.co_name),
            source=source_line(code.co_filename, line),
            values=describe_names(names, evaluate=evaluate),
        )


def unnoted(function: F) -> F:
    """Mark a function of a check that runs no code under test: no return inside is worth noting.

    Being asked at every call takes as long as mlx.nn takes to build a small model.
    """

    @functools.wraps(function)
    def without_notes(*args: Any, **options: Any) -> Any:
        noting = sys.getprofile()
        sys.setprofile(None)
        try:
            return function(*args, **options)
        finally:
            sys.setprofile(noting)

    return without_notes  # type: ignore[return-value]


def source_line(filename: str, line: int) -> str:
    linecache.checkcache(filename)
    return linecache.getline(filename, line).strip()


def describe_names(names: dict[str, Any], *, evaluate: bool = True) -> tuple[ArrayNote, ...]:
    """Shapes and dtypes of the arrays among a frame's names, and the value of short plain ones."""
    notes: list[ArrayNote] = []
    for name, value in names.items():
        if name == "self":
            held = getattr(value, "__dict__", {})
            notes += [describe(f"self.{k}", v, evaluate) for k, v in held.items() if isinstance(v, mx.array)]
        elif not name.startswith("__"):
            notes.append(describe(name, value, evaluate))
    return tuple(n for n in notes if n.shape or n.value)[:SHOWN_VALUES]


def describe(name: str, value: Any, evaluate: bool = True) -> ArrayNote:
    if isinstance(value, mx.array):
        return ArrayNote(
            name,
            shape=str(tuple(value.shape)),
            dtype=str(value.dtype).rpartition(".")[2],
            note=_odd_values(value) if evaluate else "",
        )
    if isinstance(value, (list, tuple)) and any(isinstance(v, mx.array) for v in value):
        inner = ", ".join(str(tuple(v.shape)) if isinstance(v, mx.array) else type(v).__name__ for v in value)
        return ArrayNote(name, value=f"{type(value).__name__} of {inner}"[:60])
    if value is None or isinstance(value, (bool, int, float, str, slice, mx.Dtype, list, tuple)):
        try:
            text = repr(value)
            if isinstance(value, float) and len(text) > 8:
                text = f"{value:.6g}"
        except Exception:  # of an object inside, which may be half made
            text = type(value).__name__
        return ArrayNote(name, value=text if len(text) <= 40 else text[:37] + "...")
    return ArrayNote(name)


def _odd_values(array: mx.array) -> str:
    if not mx.issubdtype(array.dtype, mx.floating) or array.size == 0 or array.size > 1_000_000:
        return ""
    try:
        if mx.any(mx.isnan(array)).item():
            return "has nan"
        if mx.any(mx.isinf(array)).item():
            return "has inf"
    except Exception:
        return "cannot be evaluated"
    return ""


def library_tail(tb: TracebackType | None, test_folder: Path) -> str:
    """The file and line of the test that was running when an exception with no learner frame was raised."""
    for frame, line in traceback.walk_tb(tb):
        if Path(frame.f_code.co_filename).is_relative_to(test_folder):
            return source_line(frame.f_code.co_filename, line)
    return ""
