"""What checks compute and the code under test has no part in: once for all gradings of a warm process.

    @kept
    def logits(dtype, seed): ...    # a check's right answer, from its plain arguments alone

In any process a marked function runs once for the same arguments. A warm process gets the results as bytes
from a fork that prepares them (preparing.py), and each later fork has them at hand.
"""

from __future__ import annotations

import copyreg
import functools
import pickle
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

import mlx.core as mx
import numpy as np

from .frames import unnoted

F = TypeVar("F", bound=Callable[..., Any])

# MLX's floats that NumPy lacks travel as their bits.
BITS = {mx.bfloat16: mx.uint16}
PLAIN = (str, int, float, bool, type(None))


class Keep:
    """The results of marked functions, by name and arguments."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}
        self.names: set[str] = set()  # of the functions that are marked

    def kept(self, make: F) -> F:
        """Mark a function of plain arguments: numbers, texts, dtypes, and tuples, lists and dicts of these.

        It gives arrays or plain values, or tuples, lists and dicts of them, which depend on the arguments
        alone. Whoever calls it may write into what it gets: nobody else sees that.
        """
        name = f"{make.__module__}.{make.__qualname__}"
        self.names.add(name)

        @functools.wraps(make)
        def found(*args: Any, **options: Any) -> Any:
            key = repr((name, _plain(args), _plain(options)))
            if key not in self._found:
                value = make(*args, **options)
                mx.eval(list(_arrays(value)))
                self._found[key] = value
            return _handed(self._found[key])

        return unnoted(found)  # type: ignore[return-value]

    def write(self, file: IO[bytes]) -> None:
        """All results so far, for another process's `read`."""
        pickler = pickle.Pickler(file, protocol=5)
        pickler.dispatch_table = copyreg.dispatch_table | {mx.array: _packed}
        pickler.dump(self._found)

    def read(self, file: IO[bytes]) -> None:
        """Take over what a fork of this process wrote: no other file, since pickle runs what a file says."""
        self._found |= pickle.load(file)


keep = Keep()
kept = keep.kept


def _plain(value: Any) -> Any:
    """`value`, of which the text says all; TypeError where it would not."""
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return sorted((str(k), _plain(v)) for k, v in value.items())
    if isinstance(value, mx.Dtype):
        return str(value)
    if not isinstance(value, PLAIN):
        raise TypeError(f"a kept function takes plain arguments, not {type(value).__name__}")
    return value


def _arrays(value: Any) -> Iterator[mx.array]:
    if isinstance(value, mx.array):
        yield value
    elif isinstance(value, (dict, tuple, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _arrays(inner)


def _handed(value: Any) -> Any:
    """The same arrays in other objects: what is written into those does not reach the kept ones."""
    if isinstance(value, mx.array):
        return value.view(value.dtype)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {k: _handed(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_handed(v) for v in value)
    return value


def _packed(array: mx.array) -> tuple[Callable[..., mx.array], tuple[Any, ...]]:
    if array.dtype in BITS:
        return _from_bits, (np.array(array.view(BITS[array.dtype])), str(array.dtype).rpartition(".")[2])
    return mx.array, (np.array(array),)


def _from_bits(bits: np.ndarray, dtype: str) -> mx.array:
    return mx.array(bits).view(
        getattr(mx, dtype)
    )  # a node of the graph: nothing is computed before it is used
