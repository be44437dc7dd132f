"""Refuses forbidden APIs while learner code runs, in the child process that grades it.

Forbidden callables are replaced where they live by guards that ask who is calling: of the frames on the
stack, the nearest one that belongs to a solution or a test decides. A test and its oracles thus use
everything, and so does a library that a test calls; learner code is refused however it came by the
callable (an alias, `partial`, `map`, `mx.compile`, a layer of a model it was handed).

Imports and subclassing go by the immediate frame alone: a library that imports NumPy while learner code
waits for it is no one's cheat.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from .forbid import RuleBook, explain, line_binding

if TYPE_CHECKING:
    from .catalog import Rule

_NEITHER, _SOLUTION, _TEST = 0, 1, 2


@dataclass(frozen=True)
class Trip:
    """One refused use."""

    api: str
    rule: Rule
    path: str  # the learner's file; "" when no frame of theirs is known
    line: int  # 0 when no line is known
    function: str  # qualified name; "" at no function


class ForbiddenAPI(Exception):
    """Raised in learner code at a forbidden use; its text is a sentence for the learner."""

    def __init__(self, trip: Trip) -> None:
        super().__init__(explain(trip.api, trip.rule))
        self.api = trip.api
        self.rule = trip.rule
        self.path = trip.path
        self.line = trip.line


class Tripwires:
    """The guards of one process. They stay until the process ends.

    `is_solution` and `is_test` say of a code object's file name whether it is learner code, or code that
    may use everything: tests, and launchers that learner code is meant to call. Each is asked once a name.
    """

    def __init__(
        self,
        rules: tuple[Rule, ...],
        is_solution: Callable[[str], bool],
        is_test: Callable[[str], bool],
    ) -> None:
        self._book = RuleBook(rules)
        self._is_solution = is_solution
        self._is_test = is_test
        self._kinds: dict[str, int] = {}
        self._pending = self._book.call_rules  # rules whose module nobody has imported yet
        self._awaited: tuple[str, ...] = ()  # what has to be imported first for a pending rule to be armed
        self._apis: dict[object, tuple[str, Rule]] = {}  # guards and forbidden classes
        self._guards: dict[int, FunctionType] = {}  # by the id of what each stands for
        self._main_thread = threading.main_thread().ident
        self._trips: dict[Trip, None] = {}  # in order; a loop that retries counts once

    def arm(self) -> None:
        """Guard what is loaded, now, and what gets loaded, later. To be called before learner code is
        imported, once: a name bound earlier would be the unguarded one."""
        self._guard_imports()
        self._arm_loaded()

    @property
    def tripped(self) -> list[Trip]:
        """Every refused use since the last `clear`, also where learner code caught the exception."""
        return list(self._trips)

    def clear(self) -> None:
        self._trips.clear()

    def check_provided(self, value: object, *, name: str, path: str) -> None:
        """Refuse `value`, found under `name` in the solution file `path`, if it IS a forbidden API.

        With `silu = nn.silu` no line of the solution calls anything: the test would be the caller.
        Raises ForbiddenAPI.
        """
        while True:
            if isinstance(value, functools.partial):
                value = value.func
            elif isinstance(value, (MethodType, staticmethod)):
                value = value.__func__
            else:
                break
        if isinstance(value, (FunctionType, type)) and value in self._apis:
            line = line_binding(name, Path(path).read_text(encoding="utf-8", errors="replace"))
            self._trip(Trip(*self._apis[value], path, line, ""))

    # Who is calling.

    def _kind(self, filename: str) -> int:
        kind = self._kinds.get(filename)
        if kind is None:
            if self._is_solution(filename):
                kind = _SOLUTION
            else:
                kind = _TEST if self._is_test(filename) else _NEITHER
            self._kinds[filename] = kind
        return kind

    def _refuse(self, frame: FrameType | None, api: str, rule: Rule) -> None:
        """Record and raise. `frame` is the learner's; None for a thread that runs nothing of theirs but
        the forbidden callable itself: then the line that the main thread is at is the best there is."""
        if frame is None:
            frame = sys._current_frames().get(self._main_thread)
            while frame is not None and self._kind(frame.f_code.co_filename) != _SOLUTION:
                frame = frame.f_back
        if frame is None:
            self._trip(Trip(api, rule, "", 0, ""))
        else:
            self._trip(Trip(api, rule, frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname))

    def _trip(self, trip: Trip) -> None:
        self._trips[trip] = None
        raise ForbiddenAPI(trip)

    def _immediate_solution_frame(self, frame: FrameType | None) -> FrameType | None:
        """`frame` if it is learner code. Code without a file (exec, importlib) counts as its caller's."""
        while frame is not None:
            filename = frame.f_code.co_filename
            if not filename.startswith("<") and filename != importlib.__file__:
                return frame if self._kind(filename) == _SOLUTION else None
            frame = frame.f_back
        return None

    def _forbidden_class(self, arguments: tuple[object, ...]) -> str:
        """The API name of the nearest forbidden class of a method's instance."""
        classes = type(arguments[0]).__mro__ if arguments else ()
        return next((self._apis[c][0] for c in classes if c in self._apis), "")

    # Guarding callables.

    def _guard(
        self, original: Callable[..., Any], api: str, rule: Rule, *, method: bool = False
    ) -> FunctionType:
        """A function to put in `original`'s place. It carries no `__wrapped__`: that would hand it out.

        `method`: what is refused is the instance's class, which may only inherit `original`.
        """
        known = self._guards.get(id(original))
        if known is not None:
            return known
        kinds, classify, refuse, class_of = self._kinds, self._kind, self._refuse, self._forbidden_class
        get_frame, get_thread, main_thread = sys._getframe, threading.get_ident, self._main_thread

        def guard(*args: Any, **kwargs: Any) -> Any:
            frame = get_frame(1)
            while frame is not None:
                filename = frame.f_code.co_filename
                kind = kinds.get(filename)
                if kind is None:
                    kind = classify(filename)
                if kind == _SOLUTION:
                    refuse(frame, (method and class_of(args)) or api, rule)
                if kind == _TEST:
                    break
                frame = frame.f_back
            else:
                if get_thread() != main_thread:
                    refuse(None, api, rule)
            return original(*args, **kwargs)

        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            value = getattr(original, attribute, None)
            if isinstance(value, str):
                setattr(guard, attribute, value)
        self._guards[id(original)] = guard  # `guard` keeps `original`, so the id stays its own
        self._apis[guard] = (api, rule)
        return guard

    def _arm_loaded(self) -> None:
        """Guard the modules that are loaded by now; a rule about any other one stays pending."""
        pending, awaited = [], set()
        for rule in self._pending:
            base, _, leaf = rule.api.rpartition(".")
            owner, missing = _look_up(base)
            if missing:
                pending.append(rule)
                awaited.add(missing)
            else:
                self._arm_rule(rule, owner, base, leaf)
        self._pending, self._awaited = pending, tuple(awaited)

    def _arm_rule(self, rule: Rule, owner: Any, base: str, leaf: str) -> None:
        if leaf == "*":
            self._guard_everything(base, rule)
            return
        original = getattr(owner, leaf, None)  # an older MLX may not have it
        if isinstance(original, type):
            self._guard_classes({original: rule.api}, rule)
        elif callable(original):
            guard = self._guard(original, rule.api, rule)
            for place in [owner] if isinstance(owner, type) else _family(base):
                for name in [n for n, value in vars(place).items() if value is original]:
                    setattr(place, name, guard)

    def _guard_everything(self, base: str, rule: Rule) -> None:
        """Guard the callables of the module `base` and those below, in every one that holds them."""
        classes: dict[type, str] = {}
        for module in _family(base):
            for name, value in list(vars(module).items()):
                # Private helpers serve what is allowed too, such as reading a model's weights.
                if name.startswith("_") or not _belongs(value, base) or value in self._apis:
                    continue
                api = f"{module.__name__}.{name}"
                if isinstance(value, type):
                    classes.setdefault(value, api)
                else:
                    setattr(module, name, self._guard(value, api, rule))
        self._guard_classes(classes, rule)

    def _guard_classes(self, classes: dict[type, str], rule: Rule) -> None:
        """Guard making, calling and subclassing. Classes stay what they are, for isinstance.

        The methods of a class that cannot be called (`nn.Module`) are how a model's weights are read:
        they stay free in its subclasses too.
        """
        free: set[str] = set()
        for cls, api in sorted(classes.items(), key=lambda item: len(item[0].__mro__)):
            callable_class = any("__call__" in vars(c) for c in cls.__mro__)
            if not callable_class:
                free.update(vars(cls))
            for name, value in list(vars(cls).items()):
                if name in ("__init__", "__call__") or (
                    callable_class and not name.startswith("_") and name not in free
                ):
                    self._guard_method(cls, name, value, api, rule)
            self._apis[cls] = (api, rule)
            if not any(c in self._apis for c in cls.__mro__[1:]):
                self._guard_subclassing(cls)

    def _guard_method(self, cls: type, name: str, value: object, api: str, rule: Rule) -> None:
        shown = api if name.startswith("__") else f"{api}.{name}"
        if isinstance(value, FunctionType):
            setattr(cls, name, self._guard(value, shown, rule, method=name.startswith("__")))
        elif isinstance(value, (staticmethod, classmethod)):
            setattr(cls, name, type(value)(self._guard(value.__func__, shown, rule)))

    def _guard_subclassing(self, cls: type) -> None:
        """Refuse learner classes that derive from `cls` or from a forbidden class below it."""

        def __init_subclass__(derived: type, **kwargs: Any) -> None:
            frame = self._immediate_solution_frame(sys._getframe(1))
            if frame is not None:
                self._refuse(frame, *next(self._apis[c] for c in derived.__mro__ if c in self._apis))
            super(cls, derived).__init_subclass__(**kwargs)

        cls.__init_subclass__ = classmethod(__init_subclass__)

    # Guarding imports.

    def _guard_imports(self) -> None:
        import_ = builtins.__import__
        import_module = importlib.import_module
        roots = self._book.import_roots

        def guarded_import(name, globals=None, locals=None, fromlist=(), level=0):
            # C code that imports passes an empty list, whatever Python frame is waiting for it
            # (`x.__array__()` brings NumPy in that way); an import statement never does.
            if level > 0 or name.partition(".")[0] in roots:
                frame = self._immediate_solution_frame(sys._getframe(1))
                if frame is not None and not (type(fromlist) is list and not fromlist):
                    self._refuse_import(frame, name, _package(globals), level, fromlist or ())
            module = import_(name, globals, locals, fromlist, level)
            for awaited in self._awaited:
                if awaited in sys.modules:
                    self._arm_loaded()
                    break
            return module

        def guarded_import_module(name, package=None):
            level = len(name) - len(name.lstrip("."))
            frame = self._immediate_solution_frame(sys._getframe(1))
            if frame is not None:
                self._refuse_import(frame, name[level:], package or "", level, ())
            module = import_module(name, package)
            for awaited in self._awaited:
                if awaited in sys.modules:
                    self._arm_loaded()
                    break
            return module

        builtins.__import__ = guarded_import
        importlib.__import__ = guarded_import
        importlib.import_module = guarded_import_module

    def _refuse_import(self, frame: FrameType, name: str, package: str, level: int, names: Any) -> None:
        if level:
            # A relative import within a tree is that tree's own business, also in the reference's.
            if self._book.importing(package) is not None:
                return
            parts = package.split(".")
            name = ".".join(parts[: len(parts) - level + 1] + ([name] if name else []))
        for target in (name, *(f"{name}.{n}" for n in names)):
            rule = self._book.importing(target)
            if rule is not None:
                self._refuse(frame, target, rule)


def _package(importer: dict[str, Any] | None) -> str:
    """The package that relative imports of a module with these globals start from."""
    importer = importer or {}
    return importer.get("__package__") or importer.get("__name__", "").rpartition(".")[0]


def _look_up(name: str) -> tuple[Any, str]:
    """The module called `name`, or the class of that name in a module; or None, and the first part of
    the name that is not, or not fully, imported."""
    owner: Any = None
    reached = ""
    for part in name.split("."):
        reached = f"{reached}.{part}" if reached else part
        inside = getattr(owner, part, None)
        owner = sys.modules.get(reached) or (inside if isinstance(inside, type) else None)
        # A half-imported module would be guarded in part; `import` comes back here when it is whole.
        if owner is None or getattr(getattr(owner, "__spec__", None), "_initializing", False):
            return None, reached
    return owner, ""


def _family(base: str) -> Iterator[ModuleType]:
    """The loaded modules from `base` down, outermost first: what is public there names an API."""
    for name in sorted(sys.modules, key=lambda n: (n.count("."), n)):
        if (name == base or name.startswith(base + ".")) and isinstance(sys.modules[name], ModuleType):
            yield sys.modules[name]


def _belongs(value: object, base: str) -> bool:
    """Whether `value` is a callable that `base` defines, not one that it imports for its own use."""
    module = getattr(value, "__module__", None)
    if not (callable(value) and isinstance(value, Hashable) and isinstance(module, str)):
        return False
    return module == base or module.startswith(base + ".")
