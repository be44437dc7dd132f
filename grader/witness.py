"""What a check saw when it failed: the outputs that its comparisons looked at (runs in a child).

A check that fails ends at its first comparison that does not hold, or at an exception. That *ending* is what
one mistake leaves behind and another one does not: how many comparisons held before it, which one did not,
and the value that it was given. A learner's grading writes its endings to a file; likely_child.py makes the
same endings from known mistakes, and likeness.py compares the two.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

KEPT_ELEMENTS = 4096  # of a larger array as many are kept, evenly spaced
LARGEST_ARRAY = 1 << 22  # elements; of a larger one only shape and dtype are kept
KEPT_TEXT = 2000  # characters; of a longer text the rest goes into a hash
LARGEST_FILE = 16 << 20  # bytes of one grading; what comes after is not kept
DEEPEST = 4  # levels of lists in lists that are described

ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
TREES = re.compile(r"\b(exercises|reference)\b")  # a message may name the module that it came from


@dataclass(frozen=True, eq=False)
class Seen:
    """A value, as far as it is kept: an array, or anything else as `text`.

    `form` is "array" (with shape and dtype), "draws" (token ids drawn; the values are each id's share), or
    the name of a type. `values` are float64, for integers int64, and None where nothing is kept.
    """

    form: str
    text: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    values: np.ndarray | None = None

    @property
    def whole(self) -> bool:
        return self.values is not None and self.values.size == math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Ending:
    """How a check that failed came to its end.

    `allowed` is what the comparison lets each of the kept values be off by, in one number where it is the
    same for all; `size` is the largest number of the right answer. Both None where the comparison is exact.
    """

    at: int  # comparisons that held before
    kind: str  # the comparison's name ("close"), or "raised"
    seen: Seen
    off: float = math.inf  # tolerances by which it was off; inf when it was no matter of tolerance
    allowed: np.ndarray | float | None = None
    size: float | None = None


class Witness:
    """Follows the comparisons of one check after another; `ending` is that of the check now running."""

    def __init__(self) -> None:
        self._held = 0
        self.ending: Ending | None = None

    def begin(self) -> None:
        """Another check begins."""
        self._held, self.ending = 0, None

    def held(self) -> None:
        self._held += 1

    def failed(
        self,
        kind: str,
        seen: Callable[[], Seen],
        off: float,
        allowed: np.ndarray | float | None,
        size: float | None,
    ) -> None:
        """A comparison did not hold. Only the first counts: random cases go on, to find a smaller one."""
        if self.ending is None:
            value = seen()
            self.ending = Ending(self._held, kind, value, off, _for_each(allowed, value), size)

    def raised(self, error: BaseException) -> None:
        """The code under test raised."""
        if self.ending is None:
            self.ending = Ending(self._held, "raised", Seen(type(error).__name__, _text(_message(error))))


def witnessed(
    measure: Callable[..., tuple[np.ndarray | float | None, float | None]],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks a comparison of testing.Check: what it was given is remembered when it does not hold.

    measure(*the comparison's arguments) gives what it allows and the size of the right answer.
    """

    def mark(compare: Callable[..., None]) -> Callable[..., None]:
        kind = compare.__name__

        @functools.wraps(compare)
        def comparing(check: Any, *args: Any, **options: Any) -> None:
            try:
                compare(check, *args, **options)
            except AssertionError as error:
                failure = getattr(error, "failure", None)
                if failure is not None and check.witness.ending is None:
                    allowed, size = measure(*args, **options)
                    off = math.inf if failure.ratio is None else failure.ratio
                    value = functools.partial(_given, kind, args, options, failure.got)
                    check.witness.failed(kind, value, off, allowed, size)
                raise
            check.witness.held()

        return comparing

    return mark


def exactly(*args: Any, **options: Any) -> tuple[None, None]:
    """The measure of a comparison that allows nothing."""
    return None, None


def _given(kind: str, args: Sequence[Any], options: Mapping[str, Any], told: str) -> Seen:
    """The value that a comparison looked at."""
    if kind == "raises":  # it was given a function, and told what that returned
        return Seen("returned", _text(told))
    if kind == "unchanged":  # before, array
        return seen(args[1] if len(args) > 1 else options["array"])
    got = args[0] if args else options["got"]
    if kind == "draws":
        return _shares(got, args[1] if len(args) > 1 else options["probabilities"], options["count"])
    return seen(got)


def seen(value: Any) -> Seen:
    """What is kept of a value."""
    if isinstance(value, mx.array):
        shape, dtype = tuple(int(n) for n in value.shape), str(value.dtype).rpartition(".")[2]
        return Seen("array", "", shape, dtype, _values(value))
    if isinstance(value, np.ndarray):
        return Seen("ndarray", "", value.shape, str(value.dtype), picked(np.asarray(value, np.float64)))
    return Seen(type(value).__name__, _text(_described(value)))


def _values(array: mx.array) -> np.ndarray | None:
    if array.size > LARGEST_ARRAY:
        return None
    try:
        if mx.issubdtype(array.dtype, mx.floating):
            return picked(np.array(array.astype(mx.float32)).astype(np.float64))
        if mx.issubdtype(array.dtype, mx.complexfloating):
            return None
        return picked(np.array(array).astype(np.int64))
    except Exception:  # it is lazy, and what it is made of may raise
        return None


def picked(values: np.ndarray) -> np.ndarray:
    """The kept elements of an array, in one row."""
    flat = values.reshape(-1)
    if flat.size <= KEPT_ELEMENTS:
        return flat
    return flat[np.linspace(0, flat.size - 1, KEPT_ELEMENTS).astype(np.int64)]


def _for_each(allowed: np.ndarray | float | None, value: Seen) -> np.ndarray | float | None:
    """What is allowed for each kept value: one number where that is the same, or where the shapes differ."""
    if allowed is None:
        return None
    kept = picked(np.asarray(allowed, np.float64))
    most = float(kept.max(initial=0.0))
    if value.values is None or kept.shape != value.values.shape or bool((kept == most).all()):
        return most
    return kept


def _shares(got: Any, probabilities: np.ndarray, count: int) -> Seen:
    """Drawn token ids as each id's share of the draws; what are no such ids, as they are."""
    shown = seen(got)
    shape = np.shape(probabilities)
    cells = math.prod(shape)
    if not isinstance(got, mx.array) or shown.shape != (count, *shape[:-1]) or cells > KEPT_ELEMENTS:
        return shown
    if not mx.issubdtype(got.dtype, mx.integer):
        return shown
    ids = np.array(got).astype(np.int64).reshape(count, -1)
    if ids.size and (ids.min() < 0 or ids.max() >= shape[-1]):
        return shown
    shares = np.zeros((ids.shape[1], shape[-1]))
    for row in range(ids.shape[1]):
        shares[row] = np.bincount(ids[:, row], minlength=shape[-1]) / count
    digest = hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest()[:16]
    return Seen("draws", f"{count} {digest}", shown.shape, shown.dtype, shares.reshape(-1))


def _described(value: Any, depth: int = 0) -> str:
    """A value as text that two right readers of the same value agree on: no addresses, six digits."""
    if isinstance(value, mx.array):
        kept = _values(value)
        numbers = "" if kept is None else " ".join(f"{v:.4g}" for v in kept[:64])
        return f"array{tuple(value.shape)}{value.dtype}[{numbers}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    if depth < DEEPEST and isinstance(value, (list, tuple, set, frozenset, dict)):
        if isinstance(value, dict):
            items = [f"{_described(k, depth + 1)}: {_described(v, depth + 1)}" for k, v in value.items()]
        else:
            items = [_described(v, depth + 1) for v in value]
        items = sorted(items) if isinstance(value, (set, frozenset)) else items
        return f"{type(value).__name__}({', '.join(items)})"
    try:
        return ADDRESS.sub("0x", repr(value))
    except Exception:  # of an object that is half made
        return type(value).__name__


def _text(text: str) -> str:
    if len(text) <= KEPT_TEXT:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
    return f"{text[:KEPT_TEXT]}... {digest}"


def _message(error: BaseException) -> str:
    place = getattr(error, "place", None)  # a GPU kernel's fault: where it stands is the learner's own
    if isinstance(place, tuple) and len(place) == 3:
        return str(place[2])
    return TREES.sub("tree", ADDRESS.sub("0x", str(error)))


# ---- files ----


def write(file: Path, check_id: str, ending: Ending) -> None:
    """Append a check's ending to a file. What cannot be written is not kept: it only serves to explain."""
    values = ending.seen.values
    line = {
        "check": check_id,
        "at": ending.at,
        "kind": ending.kind,
        "off": None if math.isinf(ending.off) else ending.off,
        "form": ending.seen.form,
        "text": ending.seen.text,
        "shape": ending.seen.shape,
        "dtype": ending.seen.dtype,
        "numbers": None if values is None else str(values.dtype),
        "values": None if values is None else _packed(values),
        "allowed": _packed(ending.allowed) if isinstance(ending.allowed, np.ndarray) else ending.allowed,
        "size": ending.size,
    }
    data = json.dumps(line).encode() + b"\n"
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size + len(data) <= LARGEST_FILE:
                os.write(descriptor, data)
        finally:
            os.close(descriptor)
    except OSError:
        return


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def read(file: Path) -> dict[str, Ending]:
    """The endings in a file, by the check's id; lines that are none are left out."""
    endings = {}
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            data = json.loads(line)
            endings[str(data["check"])] = _ending(data)
        except (ValueError, KeyError, TypeError):
            continue
    return endings


def _ending(data: Mapping[str, Any]) -> Ending:
    values = None
    if data["values"] is not None:
        if data["numbers"] not in ("float64", "int64"):
            raise ValueError(data["numbers"])
        values = np.frombuffer(base64.b64decode(data["values"]), dtype=data["numbers"])
    shape = tuple(int(n) for n in data["shape"])
    shown = Seen(str(data["form"]), str(data["text"]), shape, str(data["dtype"]), values)
    off = math.inf if data["off"] is None else float(data["off"])
    allowed = data["allowed"]
    if isinstance(allowed, str):
        allowed = np.frombuffer(base64.b64decode(allowed), dtype=np.float64)
    return Ending(int(data["at"]), str(data["kind"]), shown, off, allowed, data["size"])
