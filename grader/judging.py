"""Finds the first operation of a recorded pass that is wrong, and sets two passes side by side (in a child).

An operation is wrong when the reference, given the very inputs that the learner's operation got, returns
something else. What was wrong before it, or how the code around it is arranged, plays no part in that. The
first such operation to end has no wrong one inside it: the mistake is in its own lines.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from .catalog import Symbol
from .recording import CALL, CONSTRUCTOR, Call, Recorder, arrays_in
from .testing import UNIT_ROUNDOFF, as_float64, dtype_name

# How many unit roundoffs an operation may be off, relative to its largest element. A right solution that
# computes everything otherwise (all in the dtype, other formulas for angles and means, keys before queries)
# was off by 15 at most in float32 and by 4 in the half types, on a model of 4 layers. RoPE's angles need more
# room in float32: at position p they may differ by p roundoffs, so 500 serve for texts of some 2000 tokens.
# The smallest of the known mistakes that is no rounding, an eps left out, is off by about 2000.
ROUNDOFFS = {mx.float32: 500, mx.float16: 16, mx.bfloat16: 16}

# Once an operation is wrong, an operation inside it that is off by this much is taken for the cause: single
# operations of right solutions were off by 2.2 at most in the half types. There a mistake may stay below 16
# in its own place (a GELU for a SiLU is 10 roundoffs of bfloat16) and grow beyond that on its way out.
SUSPICIOUS = {mx.float32: 500, mx.float16: 5, mx.bfloat16: 5}


def tolerance(dtype: mx.Dtype, layers: int = 0, roundoffs: Mapping[mx.Dtype, int] = ROUNDOFFS) -> float:
    """The largest difference that rounding explains, relative to the largest element.

    Where several layers were run one after another, their roundings add up like a random walk.
    """
    if dtype not in roundoffs:
        return 0.0
    return roundoffs[dtype] * UNIT_ROUNDOFF[dtype] * math.sqrt(max(1, layers))


@dataclass(frozen=True)
class Difference:
    """How far a result is from the reference's: relative to the largest element, or why it has no number."""

    relative: float = 0.0
    mismatch: str = ""  # "(3, 4) float32, the reference's is (4, 3) float32"
    short: str = ""  # the mismatch in two words: "other shape"
    dtype: mx.Dtype | None = None

    def beyond(self, layers: int = 0, roundoffs: Mapping[mx.Dtype, int] = ROUNDOFFS) -> bool:
        """Whether rounding, in so many layers, does not explain it."""
        return bool(self.mismatch) or (
            self.dtype is not None and not self.relative <= tolerance(self.dtype, layers, roundoffs)
        )


def difference(got: Any, want: Any) -> Difference:
    """Compare two values made of arrays: the worst of their arrays. Raises what computing them raises."""
    mine, theirs = arrays_in(got), arrays_in(want)
    if len(mine) != len(theirs):
        return Difference(mismatch=f"{_kind(got)}, the reference's is {_kind(want)}", short="other kind")
    worst = Difference()
    for a, b in zip(mine, theirs, strict=True):
        found = _array_difference(a, b)
        if found.mismatch:
            return found
        if worst.dtype is None or found.relative > worst.relative:
            worst = found
    return worst


def _array_difference(got: mx.array, want: mx.array) -> Difference:
    if got.shape != want.shape or got.dtype != want.dtype:
        short = "other shape" if got.shape != want.shape else "other dtype"
        return Difference(mismatch=f"{_kind(got)}, the reference's is {_kind(want)}", short=short)
    if mx.array_equal(got, want).item():  # also of no elements
        return Difference(dtype=want.dtype)
    a, b = _numbers(got), _numbers(want)
    finite = np.isfinite(b)
    odd = (np.isfinite(a) != finite) | (~finite & (a != b) & ~(np.isnan(a) & np.isnan(b)))
    if odd.any():
        at = np.unravel_index(int(odd.argmax()), odd.shape)
        often = "" if odd.sum() == 1 else f", and so on in {int(odd.sum())} of {odd.size} elements"
        return Difference(
            mismatch=f"{a[at]:.3g} where the reference has {b[at]:.3g}{often}", short="inf or nan"
        )
    error = np.abs(np.where(finite, a, 0) - np.where(finite, b, 0)).max()
    size = np.abs(np.where(finite, b, 0)).max()
    return Difference(float(error / size) if size else float(error), dtype=want.dtype)


def _numbers(array: mx.array) -> np.ndarray:
    if mx.issubdtype(array.dtype, mx.floating):
        return as_float64(array)
    return np.array(array).astype(np.float64)


def _kind(value: Any) -> str:
    if isinstance(value, mx.array):
        return f"{tuple(value.shape)} {dtype_name(value.dtype)}"
    count = len(arrays_in(value))
    return f"{count} arrays" if count else type(value).__name__


# ---- which operation is wrong ----


@dataclass(frozen=True)
class Fault:
    """The first wrong operation."""

    call: Call
    difference: Difference
    writes: bool = False  # its result is right, but it writes into an array of its caller's


class Judge:
    """Puts the reference in the place of single operations of the learner's pass."""

    def __init__(self, mine: Recorder, theirs: Recorder, layer: Symbol) -> None:
        self._mine = mine
        self._theirs = theirs
        self._layer = layer
        self._standins: dict[int, Any] = {}  # for an instance of the learner's, the reference's

    def stand_in(self, instance: Any, other: Any) -> None:
        """Take the reference's object `other` for the learner's `instance`, instead of making one."""
        self._standins[id(instance)] = other

    def first_fault(self) -> Fault | None:
        for call in self._mine.finished:
            found = self.difference(call)
            if found is None or not found.beyond(layers_in(call, self._layer)):
                continue
            for inner in calls_in(call):
                if _writes(inner):
                    return Fault(inner, found, writes=True)
                own = self.difference(inner)
                if own is not None and own.beyond(layers_in(inner, self._layer), SUSPICIOUS):
                    return Fault(inner, own)
            return Fault(call, found)
        return None

    def difference(self, call: Call) -> Difference | None:
        """The learner's result beside the reference's for the same inputs; None where there is nothing to
        compare: a constructor, no such symbol in the reference, inputs that the reference does not take."""
        if call.constructs or call.symbol not in self._theirs.plain:
            return None
        try:
            args, kwargs = self._translated(call.arguments)
            function = self._theirs.function(call.symbol, call.method)
            if call.method:
                args = (self._stand_in_for(call.instance), *args)
            return difference(call.result, function(*args, **kwargs))
        except Exception:
            return None

    def _stand_in_for(self, instance: Any) -> Any:
        """The reference's object made with what the learner's was made with."""
        known = self._standins.get(id(instance))
        if known is None:
            made = self._mine.made[id(instance)]
            args, kwargs = self._translated(made.arguments)
            known = self._theirs.plain[made.symbol](*args, **kwargs)
            self._standins[id(instance)] = known
        return known

    def _translated(self, value: Any) -> Any:
        """The value with the learner's own objects replaced by the reference's."""
        if type(value) in (tuple, list):
            return type(value)(self._translated(v) for v in value)
        if type(value) is dict:
            return {k: self._translated(v) for k, v in value.items()}
        return self._stand_in_for(value) if id(value) in self._mine.made else value


def layers_in(call: Call, layer: Symbol) -> int:
    """How many layers were run inside a call."""
    return sum(c.key == (layer, CALL) for c in calls_in(call))


def calls_in(call: Call) -> Iterator[Call]:
    """The calls inside a call, in the order in which they ended."""
    for child in call.children:
        yield from calls_in(child)
        yield child


def _writes(call: Call) -> bool:
    """Whether an array that the call got was another one when it returned."""
    before, after = arrays_in(call.arguments), arrays_in(call.left)
    return any(difference(b, a) != Difference(dtype=a.dtype) for a, b in zip(before, after, strict=False))


# ---- two passes side by side ----


@dataclass(eq=False)
class Pair:
    """The same call in both passes, or a call that only one of them makes."""

    mine: Call | None
    theirs: Call | None
    label: str
    children: list[Pair]
    difference: Difference | None = None  # of the two results; None where there are not two

    @property
    def either(self) -> Call:
        call = self.theirs or self.mine
        assert call is not None
        return call


class Alignment:
    """Pairs the calls of the same function in the same place, in the reference's order.

    Of several calls of one function, those that agree belong together whatever their order: keys may be
    projected before queries. The rest go by their order.
    """

    def __init__(self, mine: Recorder, theirs: Recorder, layer: Symbol) -> None:
        self.layers = sum(c.key == (layer, CALL) for c in theirs.finished)
        self._layer = layer
        self._seen = [0, 0]  # layers labelled so far, the reference's and the learner's own
        self.pairs = self._paired(mine.roots, theirs.roots)

    def path_to(self, call: Call) -> list[Pair]:
        """The pairs from a root to the learner's `call`, both included."""

        def search(pairs: list[Pair]) -> list[Pair]:
            for pair in pairs:
                if pair.mine is call:
                    return [pair]
                if found := search(pair.children):
                    return [pair, *found]
            return []

        return search(self.pairs)

    def _paired(self, mine: list[Call], theirs: list[Call]) -> list[Pair]:
        partner: dict[Call, Call] = {}
        for key in dict.fromkeys(c.key for c in theirs):
            partner |= self._partners([c for c in mine if c.key == key], [c for c in theirs if c.key == key])
        pairs = []
        for call, label in self._labelled(theirs, 0):
            other = partner.get(call)
            inner = self._paired(other.children if other else [], call.children)
            pairs.append(Pair(other, call, label, inner, _between(other, call) if other else None))
        known = set(partner.values())
        for call, label in self._labelled([c for c in mine if c not in known], 1):
            pairs.append(Pair(call, None, label, self._paired(call.children, [])))
        return pairs

    def _partners(self, mine: list[Call], theirs: list[Call]) -> dict[Call, Call]:
        """For calls of one function: the reference's, and which of the learner's goes with each."""
        partner = {}
        left = list(mine)
        waiting = []
        for place, call in enumerate(theirs):
            in_order = mine[place : place + 1]  # the one in the same place first
            found = next((m for m in in_order + left if m in left and self._agree(m, call)), None)
            if found is None:
                waiting.append(call)
            else:
                partner[call] = found
                left.remove(found)
        return partner | dict(zip(waiting, left, strict=False))

    def _agree(self, mine: Call, theirs: Call) -> bool:
        found = _between(mine, theirs)
        return found is not None and not found.beyond(self.layers)

    def _labelled(self, calls: list[Call], side: int) -> list[tuple[Call, str]]:
        """A name for each of the calls that one call makes; those of the same name are counted."""
        names = []
        for call in calls:
            if call.constructs:
                names.append(f"{call.label}()")
            elif call.key == (self._layer, CALL):
                names.append(f"layer {self._seen[side]}")
                self._seen[side] += 1
            else:
                names.append(call.label)
        counts: dict[str, int] = {}
        labels = []
        for name in names:
            counts[name] = counts.get(name, 0) + 1
            labels.append(f"{name} #{counts[name]}" if names.count(name) > 1 else name)
        return list(zip(calls, labels, strict=True))


def _between(mine: Call, theirs: Call) -> Difference | None:
    if theirs.constructs or not mine.returned:
        return None
    try:
        return difference(mine.result, theirs.result)
    except Exception:  # recorded while mx.compile traced it: there are no numbers
        return None


# ---- the first thing inside a wrong operation that is not as in the reference ----


def clue(pair: Pair, mine: Recorder, theirs: Recorder, layers: int) -> tuple[str, str]:
    """One sentence about the operation's own lines, and the method in which they stand.

    Nothing, "", when all that the operation hands on is as in the reference.
    """
    if pair.mine is None or pair.theirs is None:
        return "", ""
    own = pair.mine.method
    made = [
        [c for c in r.made[id(call.instance)].children if c.constructs] if id(call.instance) in r.made else []
        for call, r in ((pair.mine, mine), (pair.theirs, theirs))
    ]
    for one, other in zip(*made, strict=False):
        if one.symbol == other.symbol and (said := _unlike(one, other, theirs, 0)):
            return f"It makes {one.symbol.name} with {said}.", CONSTRUCTOR
    for inner in pair.children:
        if inner.mine is None:
            return f"It does not call {inner.label}, as the reference does here.", own
        if inner.theirs is not None and not inner.theirs.constructs:
            said = _unlike(inner.mine, inner.theirs, theirs, layers)
            if said:
                return f"It calls {inner.label} with {said}.", own
    return "", own


def _unlike(mine: Call, theirs: Call, recorder: Recorder, layers: int) -> str:
    """The first argument that is not the reference's: "mask=None, the reference with mask='causal'"."""
    try:
        signature = inspect.signature(recorder.function(theirs.symbol, theirs.method))
        itself = [None] if theirs.method else []
        given = []
        for call in (mine, theirs):
            bound = signature.bind(*itself, *call.arguments[0], **call.arguments[1])
            bound.apply_defaults()
            given.append(bound.arguments)
        for name, want in given[1].items():
            got = given[0][name]
            if isinstance(want, mx.array) and isinstance(got, mx.array):
                found = difference(got, want)
                if found.short in ("other shape", "other dtype"):
                    return f"{name} {_kind(got)}, the reference with {name} {_kind(want)}"
                if found.beyond(layers):
                    how = f"difference {found.relative:.1g}" if not found.mismatch else found.mismatch
                    return f"another {name} than the reference does ({how})"
            elif not _alike(got, want):
                return f"{name}={_shown(got)}, the reference with {name}={_shown(want)}"
    except Exception:  # other parameters than the reference's, or no numbers: nothing to say
        return ""
    return ""


def _alike(got: Any, want: Any) -> bool:
    if isinstance(got, mx.array) or isinstance(want, mx.array):
        return False
    plain = (int, float, str, type(None))
    return got == want if isinstance(got, plain) and isinstance(want, plain) else True


def _shown(value: Any) -> str:
    return f"{_kind(value)}" if isinstance(value, mx.array) else repr(value)
