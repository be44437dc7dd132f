"""Watches a strict grading from inside its child: what was patched, what was read, what was started.

A fingerprint of the code that grades (names, functions' code, classes, small tables) is taken once the
checks are collected, before learner code is imported. It is compared after the import, every few checks and
at the end, and, for what a comparison runs through, whenever a call into learner code returns: a patch that
puts itself back is seen while it lasts. An audit hook, which nothing can take out again, notes files read
and programs started.

None of this withstands code that means to deceive and knows how: it runs in the same process.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import operator
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import pytest

from .report import Tampering

# Compared name by name, additions included: a new global called `max` would stand before Python's.
WHOLE = ("tinyllm.grader",)
# What the checks and the grader call: what is there may not be replaced.
CALLED = (
    "builtins", "math", "json", "os", "sys", "numpy", "numpy.testing", "numpy.linalg", "mlx.core", "pytest",
    "_pytest", "pluggy", "tinyllm.kernels",
)  # fmt: skip
# Replaced as a matter of course while pytest and Python run.
RESTLESS = frozenset(("excepthook", "displayhook", "unraisablehook", "breakpointhook", "__breakpointhook__"))
LOOKS = 8  # checks from one whole comparison, which takes 10 ms, to the next; the last is at the end
TABLE = 64  # entries: longer lists and dicts are data, not settings
STARTS = frozenset(
    ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")
)
# fmt: off
REACHES = frozenset((
    "sys._getframe", "sys._current_frames", "gc.get_objects", "gc.get_referrers", "gc.get_referents",
    "sys.settrace", "sys.setprofile",
))
# fmt: on
READERS = ("linecache.py", "tokenize.py")  # print lines of a traceback


Parts = tuple[object, ...]


def inside(value: object) -> Parts:
    """What may change inside a value while it stays the same object: a function's code, a table's entries."""
    if isinstance(value, (MethodType, staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, FunctionType):
        return tuple(part for function in _reached(value) for part in _parts(function))
    if isinstance(value, dict) and len(value) <= TABLE:
        return tuple(part for pair in list(value.items()) for part in pair)
    if isinstance(value, (list, set)) and len(value) <= TABLE:
        return tuple(value)
    return ()


def _parts(function: FunctionType) -> Parts:
    keywords = function.__kwdefaults__
    more = tuple(keywords.items()) if keywords else ()
    return (function.__code__, function.__defaults__, *(part for pair in more for part in pair))


def _reached(function: FunctionType, depth: int = 3) -> Iterator[FunctionType]:
    """The function, and what it wraps: those that its closure holds."""
    yield function
    for cell in (function.__closure__ or ()) if depth else ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            if isinstance(cell.cell_contents, FunctionType):
                yield from _reached(cell.cell_contents, depth - 1)


def _is_plain(value: object) -> bool:
    return isinstance(value, FunctionType) and value.__closure__ is None


def same(one: Parts, other: Parts) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


class Space:
    """A namespace that is watched: of a module, a class or an object."""

    def __init__(self, name: str, names: Mapping[str, Any], *, whole: bool) -> None:
        self.name = name
        self.whole = whole  # additions count, and so do values that are no code
        self._names = names
        self._known = {k: v for k, v in list(names.items()) if self._counts(k, v)}
        self._inside = {k: found for k, v in self._known.items() if (found := inside(v))}
        # What is compared most, without a call for each: Python functions.
        self._functions = [(v, v.__code__, v.__defaults__) for v in self._known.values() if _is_plain(v)]
        self._others = [k for k in self._inside if not _is_plain(self._known[k])]
        self._ids = self._now()

    def _counts(self, name: str, value: object) -> bool:
        if name in RESTLESS or name in ("__dict__", "__weakref__", "__doc__", "__builtins__", "__cached__"):
            return False
        return self.whole or callable(value) or isinstance(value, (staticmethod, classmethod, property))

    def _now(self) -> list[int]:
        return list(map(id, self._names.values()))

    def _is_as_it_was(self, *, deep: bool) -> bool:
        if self._now() != self._ids:
            return False
        return not deep or (
            all(f.__code__ is code and f.__defaults__ is defaults for f, code, defaults in self._functions)
            and all(same(self._inside[k], inside(self._known[k])) for k in self._others)
        )

    def differences(self, allowed: Callable[[object], bool], *, deep: bool) -> Iterator[tuple[str, object]]:
        """The names that mean something else now, with what they mean. Not `deep`: by identity alone."""
        if self._is_as_it_was(deep=deep):
            return
        now = dict(self._names)
        for name, before in self._known.items():
            value = now.get(name)
            if value is before and same(self._inside.get(name, ()), inside(value)):
                continue
            if not allowed(value):
                yield name, value
        for name in now.keys() - self._known.keys() if self.whole else ():
            value = now[name]
            stands_before = hasattr(builtins, name) or callable(value)
            counts = stands_before and self._counts(name, value) and not isinstance(value, ModuleType)
            if counts and not allowed(value):
                yield name, value
        self._ids = self._now()


class Guard:
    """A pytest plugin beside plugin.Grading, whose child it watches."""

    def __init__(self, grading: Any, job: Mapping[str, Any], emit: Callable[..., None]) -> None:
        self._grading = grading
        self._emit = emit
        self._closed = tuple(str(Path(p).resolve()) for p in job["closed"])
        self._open = tuple(str(Path(p).resolve()) for p in job["open"])
        self._spaces: list[Space] = []
        self._quick: list[Space] = []
        self._seen: dict[tuple[str, str], Tampering] = {}
        self._told = 0
        self._seen_import = False
        self._finished = 0
        self._busy = threading.local()
        self._watch_returns(grading.frames)
        sys.addaudithook(self._audit)

    # ---- when it looks

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Before Grading's own hook of this name imports learner code."""
        tests = {
            item.module.__name__: item.module for item in session.items if isinstance(item, pytest.Function)
        }
        self._spaces = [s for m in _modules(WHOLE) for s in _spaces_of(m, whole=True)]
        self._spaces += [s for m in _modules(CALLED) for s in _spaces_of(m, whole=False)]
        self._spaces += [s for m in tests.values() for s in _spaces_of(m, whole=True)]
        quick = ("tinyllm.grader.testing", "builtins", "numpy", "mlx.core", "math", *tests)
        self._quick = [s for s in self._spaces if s.name.partition(":")[0] in quick]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if not self._seen_import:
            self._seen_import = True
            self._look()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._finished += 1
        self._look(deep=self._finished % LOOKS == 0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self._look()

    def _look(self, *, deep: bool = True) -> None:
        self._compare(self._spaces if deep else self._quick, deep=deep)
        for finding in list(self._seen.values())[self._told :]:
            self._emit("tampered", dataclasses.asdict(finding))
        self._told = len(self._seen)

    def _watch_returns(self, recorder: Any) -> None:
        """Look as well whenever a check's own call into learner code comes back."""
        original = recorder._event

        def event(frame: FrameType, kind: str, arg: Any) -> None:
            original(frame, kind, arg)
            if (
                kind == "return"
                and recorder._depth == 0
                and self._grading.tree.owns(frame.f_code.co_filename)
            ):
                self._compare(self._quick, deep=False)

        recorder._event = event

    # ---- what it compares

    def _compare(self, spaces: list[Space], *, deep: bool) -> None:
        for space in spaces:
            for name, value in space.differences(self._is_guard, deep=deep):
                shown = f"{space.name.partition(':')[2] or space.name}.{name}"
                path, line = self._place(value, name)
                self._note("patched", f"{shown} was replaced while the code ran", path, line)

    def _is_guard(self, value: object) -> bool:
        """Whether a value is what a tripwire put there."""
        try:
            return value in self._grading.tripwires._apis
        except TypeError:
            return False

    def _place(self, value: object, name: str) -> tuple[str, int]:
        """Where the learner's code defines what now stands there, or where it names what it replaced."""
        code = getattr(getattr(value, "__func__", value), "__code__", None)
        if code is not None and self._grading.tree.owns(code.co_filename):
            return code.co_filename, code.co_firstlineno
        for module in self._grading.day.modules:
            path = self._grading.tree.path_of(module)
            if path.suffix == ".py" and path.is_file():
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                for number, text in enumerate(lines, 1):
                    if name in text and ("=" in text or "setattr" in text):
                        return str(path), number
        return str(self._grading.tree.path_of(self._grading.day.modules[0])), 0

    def _note(self, kind: str, what: str, path: str, line: int) -> None:
        source = ""
        file = Path(path)
        if line and file.is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            source = lines[line - 1].strip() if line <= len(lines) else ""
        shown = self._grading._relative(path)
        self._seen.setdefault((kind, what), Tampering(kind, what, shown, line, source))

    # ---- what it hears

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" and event not in STARTS and event not in REACHES:
            return
        if getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            self._heard(event, arguments)
        except Exception:  # a path that is none, an interpreter that is going down: never the learner's fault
            return
        finally:
            self._busy.now = False

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        frame = sys._getframe(2)  # the one that raised the event
        if event in REACHES:
            if self._grading.tree.owns(frame.f_code.co_filename):
                what = f"it calls {event}, which leads into the code that grades"
                self._note("reaches", what, frame.f_code.co_filename, frame.f_lineno)
            return
        target = ""
        if event == "open":
            target = self._closed_path(arguments[0])
            if not target:
                return
        found = self._nearest_solution(frame, reading="/reference/" not in target)
        if found is None:
            return
        if event == "open":
            kind = "reference" if "/reference/" in target else "reads"
            what = f"it opens {'/'.join(Path(target).parts[-3:])}, a file of the course's"
        else:
            kind, what = "process", f"it starts another program ({event})"
        self._note(kind, what, found.f_code.co_filename, found.f_lineno)

    def _closed_path(self, path: object) -> str:
        """The file, if it is one of the course's that no solution reads; else ""."""
        if not isinstance(path, (str, bytes)):
            return ""
        text = path.decode(errors="replace") if isinstance(path, bytes) else path
        if not text or text.startswith("<"):
            return ""
        resolved = str(Path(text).resolve())
        closed = resolved.startswith(self._closed) and not resolved.startswith(self._open)
        return resolved if closed else ""

    def _nearest_solution(self, frame: FrameType | None, *, reading: bool) -> FrameType | None:
        """The nearest frame of learner code, unless code of ours, or Python's import, comes before it."""
        while frame is not None:
            name = frame.f_code.co_filename
            if self._grading.tree.owns(name):
                return frame
            if self._grading._is_ours(name):
                return None
            if reading and (name.startswith("<frozen importlib") or name.endswith(READERS)):
                return None
            frame = frame.f_back
        return None


def _modules(bases: tuple[str, ...]) -> list[ModuleType]:
    """The loaded modules of these names and, for packages of ours and pytest's, those below."""
    deep = tuple(f"{b}." for b in bases if b not in ("numpy", "mlx.core", "os", "json"))
    names = [n for n in sys.modules if n in bases or n.startswith(deep) or n.startswith("mlx.core.")]
    return [m for n in sorted(names) if isinstance(m := sys.modules[n], ModuleType)]


def _spaces_of(module: ModuleType, *, whole: bool) -> Iterator[Space]:
    """A module's own namespace, those of the classes it defines, and of the objects that stand in it."""
    yield Space(module.__name__, vars(module), whole=whole)
    for name, value in list(vars(module).items()):
        if isinstance(value, type):
            if getattr(value, "__module__", "") == module.__name__ and not name.startswith("__"):
                yield Space(f"{module.__name__}:{name}", vars(value), whole=False)
        elif whole and type(value).__module__.startswith("tinyllm.grader") and hasattr(value, "__dict__"):
            yield Shadows(f"{module.__name__}:{name}", value)


class Shadows(Space):
    """An object's own names: one that its class has too stands in the way of the class's."""

    def __init__(self, name: str, thing: object) -> None:
        super().__init__(name, vars(thing), whole=True)
        self._class = type(thing)

    def differences(self, allowed: Callable[[object], bool], *, deep: bool) -> Iterator[tuple[str, object]]:
        for name, value in list(self._names.items()):
            if name not in self._known and hasattr(self._class, name) and not allowed(value):
                yield name, value
