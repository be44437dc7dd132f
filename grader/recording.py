"""Records what a tree's public functions and classes are called with and return (runs in a child process).

Functions are replaced wherever a module of the tree has them bound; classes keep their identity and get
recording methods. Arrays are kept as shallow copies: writing into the learner's own (`x += y`) does not reach
them, and nothing is computed that the code itself does not compute.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import mlx.core as mx

from .catalog import Symbol
from .trees import Tree

CONSTRUCTOR = "__init__"
CALL = "__call__"


@dataclass(eq=False)
class Call:
    """One call of a function or method. `arguments` do not hold self; `result` is None until it returned."""

    symbol: Symbol
    method: str  # "" for a function
    label: str  # how the caller knows it: "self_attn", "linear wq", "embed_tokens.as_linear"
    instance: Any
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    children: list[Call] = field(default_factory=list)
    result: Any = None
    returned: bool = False
    left: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # the arguments as they were on returning

    @property
    def key(self) -> tuple[Symbol, str]:
        return self.symbol, self.method

    @property
    def constructs(self) -> bool:
        return self.method == CONSTRUCTOR


class Recorder:
    """Wraps the symbols of an imported tree. `finished` holds the calls in the order in which they ended."""

    def __init__(self, tree: Tree, symbols: Iterable[Symbol]) -> None:
        self.tree = tree
        self.active = False
        self.roots: list[Call] = []
        self.finished: list[Call] = []
        self.plain: dict[Symbol, Any] = {}  # functions before they were wrapped, and the classes
        self.made: dict[int, Call] = {}  # how each instance was constructed, by id; the Call keeps it alive
        self._stack: list[Call] = []
        for symbol in dict.fromkeys(Symbol(s.module, s.name.split(".")[0]) for s in symbols):
            self._wrap(symbol)

    def _wrap(self, symbol: Symbol) -> None:
        module = self.tree.import_module(symbol.module)
        original = getattr(module, symbol.name, None)
        if original is None:
            return  # whoever calls it will say so
        self.plain[symbol] = original
        if isinstance(original, type):
            for name, value in list(vars(original).items()):
                if isinstance(value, FunctionType) and (name in (CONSTRUCTOR, CALL) or name[0] != "_"):
                    setattr(original, name, self._recording(value, symbol, name))
            return
        wrapped = self._recording(original, symbol, "")
        for name, other in list(sys.modules.items()):
            if name.startswith(self.tree.package + "."):
                for bound, value in list(vars(other).items()):
                    if value is original:
                        setattr(other, bound, wrapped)

    def _recording(self, function: Callable[..., Any], symbol: Symbol, method: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.active:
                return function(*args, **kwargs)
            caller = self._stack[-1] if self._stack else None
            instance, given = (args[0], args[1:]) if method else (None, args)
            holder = caller.instance if caller else None
            note = Call(
                symbol,
                method,
                _label(symbol, method, instance, args, holder),
                instance,
                snapshot((given, kwargs)),
            )
            (caller.children if caller else self.roots).append(note)
            if note.constructs and type(instance) is self.plain[symbol]:
                self.made[id(instance)] = note
            self._stack.append(note)
            try:
                result = function(*args, **kwargs)
            finally:
                self._stack.pop()
            note.result, note.returned = snapshot(result), True
            note.left = snapshot((given, kwargs))
            self.finished.append(note)
            return result

        return call

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls that are made inside the `with` block."""
        self.active = True
        try:
            yield
        finally:
            self.active = False

    def function(self, symbol: Symbol, method: str) -> Callable[..., Any]:
        """What is called by such a call, outside of any recording."""
        found = self.plain[symbol]
        return getattr(found, method) if method else found


def snapshot(value: Any) -> Any:
    """The value with its arrays as shallow copies, which writing into the originals does not change."""
    if isinstance(value, mx.array):
        return mx.array(value)
    if type(value) in (tuple, list):
        return type(value)(snapshot(v) for v in value)
    if type(value) is dict:
        return {k: snapshot(v) for k, v in value.items()}
    return value


def arrays_in(value: Any) -> list[mx.array]:
    """The arrays of a value that `snapshot` made, in order."""
    if isinstance(value, mx.array):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [a for v in value for a in arrays_in(v)]
    return []


def _label(symbol: Symbol, method: str, instance: Any, args: tuple[Any, ...], holder: Any) -> str:
    """How the caller's object knows what is called: its attribute for the object, or for a weight given."""
    held = getattr(holder, "__dict__", {})
    if method and method != CONSTRUCTOR:
        name = next((k for k, v in held.items() if v is instance), symbol.name)
        return name if method == CALL else f"{name}.{method}"
    if method:
        return symbol.name
    weight = next((k for a in args for k, v in held.items() if v is a and isinstance(a, mx.array)), "")
    return f"{symbol.name} {weight}".rstrip()
