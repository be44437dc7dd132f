"""Records the calls that a check makes into solution code, with their arguments (runs in a child process).

Only the boundary counts: what solution code calls itself is not recorded. Functions are wrapped as they are
handed to the check; methods of the tree's classes are wrapped in place, so that isinstance and the like hold,
and put back afterwards. A check runs unrecorded first: recording is for the one run that follows a failure.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from types import FunctionType
from typing import Any, Protocol

from .recording import arrays_in, snapshot
from .testing import Check, check
from .trees import Tree

MOST_CALLS = 5000
MOST_BYTES = 256 << 20  # of arguments that are kept during one run
COMPARISONS = ("close", "exact", "ids", "draws", "raises", "unchanged")


class TooMuch(Exception):
    """The check makes more calls, or hands over more, than is recorded."""


@dataclass(frozen=True)
class Callee:
    """What is called: a name of the solution, a method of an object, or an object itself."""

    name: str  # "softmax", "QuantizedWeights.from_mlx_layer", "RMSNorm", or the method: "update_and_fetch"
    module: str = ""  # "week1/attention.py", for a name of the solution
    of: Any = None  # the object whose method it is, or which is called

    @property
    def is_name(self) -> bool:
        return bool(self.module)


@dataclass(eq=False)
class Call:
    """One call from a check. `args` and `kwargs` are the very objects; `values` has their arrays as they
    were before the call."""

    callee: Callee
    function: Callable[..., Any]  # what runs: of a class its __init__, of an instance its method
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    values: tuple[tuple[Any, ...], dict[str, Any]]
    result: Any = None  # of a constructor the instance
    returned: bool = False


@dataclass(frozen=True)
class Held:
    """What an object of a class of the check's own held when it was handed over."""

    of: Any
    state: dict[str, Any]


@dataclass(frozen=True)
class Read:
    """The check read an attribute that an object of the solution holds."""

    of: Any
    name: str
    value: Any


@dataclass(frozen=True)
class Comparison:
    """One of `check`'s comparisons, as it was called."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def got(self) -> Any:
        """What was judged."""
        return self.args[1 if self.method == "unchanged" else 0] if self.args else None


@dataclass(frozen=True)
class Moment:
    """Where a check failed: in a call, or at a comparison after some calls."""

    events: tuple[Call | Read, ...]  # until then
    call: Call | None = None
    comparison: Comparison | None = None


class Observer(Protocol):
    """Is told of each call from the check, and may look at what runs."""

    def around(self, call: Call, run: Callable[[], Any]) -> Any: ...


@dataclass
class Boundary:
    """Wraps what a check is given of the solution, and notes its calls while `recording`."""

    tree: Tree
    observer: Observer | None = None
    events: list[Call | Read] = field(default_factory=list)
    moments: dict[int, tuple[BaseException, Moment]] = field(default_factory=dict)
    seeds: dict[int, int] = field(default_factory=dict)  # of sampled arrays, by id; they are kept alive
    own: dict[str, Any] = field(default_factory=dict)  # the names of the check's module
    _sampled: list[Any] = field(default_factory=list)
    _wrapped: dict[int, Any] = field(default_factory=dict)
    _depth: int = 0
    _bytes: int = 0
    _thread: int = 0

    @contextmanager
    def recording(self, check_function: Callable[..., Any]) -> Iterator[None]:
        """Note what the check does inside the `with` block."""
        self._thread = threading.get_ident()
        self.own = getattr(check_function, "__globals__", {})
        with self._methods(), self._comparisons(), self._samples(check_function):
            yield

    def moment_of(self, error: BaseException) -> Moment:
        """Where `error` came about; where nothing was noted of it, after all that was."""
        found = self.moments.get(id(error))
        return found[1] if found else Moment(tuple(self.events))

    @property
    def calls(self) -> list[Call]:
        return [e for e in self.events if isinstance(e, Call)]

    # ---- what the check is given

    def given(self, value: Any, name: str, module: str) -> Any:
        """`value`, the solution's `name`, as the check gets it while its calls are recorded."""
        if isinstance(value, type) or not callable(value):
            return value
        known = self._wrapped.get(id(value))
        if known is None:
            known = self._recording(value, lambda args: Callee(name, module))
            known.tinyllm_callee = Callee(name, module)
            self._wrapped[id(value)] = known
        return known

    @contextmanager
    def _methods(self) -> Iterator[None]:
        """The methods of the tree's classes, wrapped."""
        undo: list[tuple[type, str, Any]] = []
        prefix = self.tree.package + "."
        classes = {
            id(value): value
            for name, module in list(sys.modules.items())
            if name.startswith(prefix)
            for value in vars(module).values()
            if isinstance(value, type) and str(value.__module__).startswith(prefix)
        }
        try:
            for cls in classes.values():
                if issubclass(cls, Enum):
                    continue
                module = cls.__module__.removeprefix(prefix).replace(".", "/") + ".py"
                for name, value in list(vars(cls).items()):
                    wrapped = self._method(cls, name, value, module)
                    if wrapped is not None:
                        undo.append((cls, name, value))
                        setattr(cls, name, wrapped)
                undo.append((cls, "__getattribute__", vars(cls).get("__getattribute__")))
                cls.__getattribute__ = self._reading(cls.__getattribute__)  # type: ignore[method-assign]
            yield
        finally:
            for cls, name, value in reversed(undo):
                if value is None:
                    delattr(cls, name)
                else:
                    setattr(cls, name, value)

    def _method(self, cls: type, name: str, value: Any, module: str) -> Any:
        if isinstance(value, (classmethod, staticmethod)) and isinstance(value.__func__, FunctionType):
            callee = Callee(f"{cls.__name__}.{name}", module)
            bound = isinstance(value, classmethod)
            return type(value)(self._recording(value.__func__, lambda args: callee, skip=bound))
        if not isinstance(value, FunctionType) or (
            name.startswith("__") and name not in ("__init__", "__call__")
        ):
            return None
        if name == "__init__":
            return self._recording(value, self._constructor, skip=True, makes=True)
        return self._recording(value, lambda args: Callee(name, of=args[0]), skip=True)

    def _constructor(self, args: tuple[Any, ...]) -> Callee:
        cls = type(args[0])
        prefix = self.tree.package + "."
        inside = cls.__module__.startswith(prefix)
        module = cls.__module__.removeprefix(prefix).replace(".", "/") + ".py"
        return Callee(cls.__name__, module if inside else "")

    def _reading(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __getattribute__(this: Any, name: str) -> Any:
            value = original(this, name)
            if self._depth == 0 and name[:1] != "_" and not callable(value):
                self.events.append(Read(this, name, value))
            return value

        return __getattribute__

    def _recording(
        self,
        function: Callable[..., Any],
        callee: Callable[[tuple[Any, ...]], Callee],
        *,
        skip: bool = False,
        makes: bool = False,
    ) -> Callable[..., Any]:
        """`function`, noting each call from outside. `skip`: the first argument is self or the class."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._depth or threading.get_ident() != self._thread:
                return function(*args, **kwargs)
            given = args[1:] if skip else args
            note = Call(callee(args), function, given, kwargs, self._snapshot((given, kwargs)))
            self._keep(note)
            run = functools.partial(function, *args, **kwargs)
            try:
                with self._inside():
                    result = run() if self.observer is None else self.observer.around(note, run)
            except BaseException as error:
                self.moments[id(error)] = (error, Moment(tuple(self.events), call=note))
                raise
            note.result, note.returned = (args[0] if makes else self._result(result)), True
            return None if makes else note.result

        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            if isinstance(text := getattr(function, attribute, None), str):
                setattr(call, attribute, text)
        with suppress(TypeError, ValueError):  # a function in C++ has none
            call.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return call

    def _result(self, result: Any) -> Any:
        """A result as the check gets it: generators and functions of the solution go on being recorded."""
        if inspect.isgenerator(result):
            return self._driven(result)
        if isinstance(result, FunctionType) and self.tree.owns(result.__code__.co_filename):
            known = self._wrapped.get(id(result))
            if known is None:
                known = self._recording(result, lambda args: Callee("", of=known))
                self._wrapped[id(result)] = known
                self._wrapped[id(known)] = known
                known.tinyllm_original = result
            return known
        return result

    def _driven(self, generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """The generator, with what its code calls counted as inside."""
        sent = None
        while True:
            try:
                with self._inside():
                    item = generator.send(sent)
            except StopIteration as end:
                return end.value
            except BaseException as error:
                self.moments.setdefault(id(error), (error, Moment(tuple(self.events))))
                raise
            try:
                sent = yield item
            except GeneratorExit:
                with self._inside():
                    generator.close()
                raise

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def _snapshot(self, value: Any, depth: int = 4) -> Any:
        """The value as it is now: shallow copies of arrays, and what objects of the check's own hold."""
        if depth and type(value) in (tuple, list):
            return type(value)(self._snapshot(v, depth - 1) for v in value)
        if depth and type(value) is dict:
            return {k: self._snapshot(v, depth - 1) for k, v in value.items()}
        cls = type(value)
        if depth and self.own.get(cls.__name__) is cls and cls.__mro__[1:] == (object,):
            held = getattr(value, "__dict__", None)
            if held is not None:
                return Held(value, {k: self._snapshot(v, depth - 1) for k, v in held.items()})
        return snapshot(value)

    def _keep(self, note: Call) -> None:
        self._bytes += sum(a.nbytes for a in arrays_in(note.values))
        if len(self.events) >= MOST_CALLS or self._bytes > MOST_BYTES:
            raise TooMuch
        self.events.append(note)

    # ---- what the check does itself

    @contextmanager
    def _comparisons(self) -> Iterator[None]:
        for method in COMPARISONS:
            setattr(check, method, self._comparing(method))
        try:
            yield
        finally:
            for method in COMPARISONS:
                delattr(check, method)

    def _comparing(self, method: str) -> Callable[..., None]:
        original = getattr(Check, method)

        def compare(*args: Any, **kwargs: Any) -> None:
            until = len(self.events)  # a comparison may call: check.raises does
            try:
                original(check, *args, **kwargs)
            except BaseException as error:
                note = Comparison(method, args, kwargs)
                if method == "raises":
                    until = len(self.events)
                known = self.moments.get(id(error))
                call = known[1].call if known else None
                self.moments[id(error)] = (error, Moment(tuple(self.events[:until]), call, note))
                raise

        return compare

    @contextmanager
    def _samples(self, check_function: Callable[..., Any]) -> Iterator[None]:
        """Note the seeds of what the check's `sample` gives."""
        names = getattr(check_function, "__globals__", {})
        original = names.get("sample")

        def sample(*args: Any, seed: int, **kwargs: Any) -> Any:
            array, values = original(*args, seed=seed, **kwargs)
            self.seeds[id(array)] = seed
            self._sampled.append(array)
            return array, values

        if original is None:
            yield
            return
        names["sample"] = sample
        try:
            yield
        finally:
            names["sample"] = original
