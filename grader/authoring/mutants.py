"""Wrong solutions made from right ones: the source of a cheat, and of a symbol that raises.

Everything here is text to text; verify.py grades what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..catalog import Symbol


@dataclass(frozen=True)
class Cheat:
    """A way to answer without computing."""

    name: str
    answer: str  # an expression over right() and given, see _CHEATING
    advice: str  # what a check must do to notice


CHEATS = (
    Cheat("zeros", "_cheat_each(right(), mx.zeros_like)", "compare values where the answer is not 0"),
    Cheat("ones", "_cheat_each(right(), mx.ones_like)", "compare values where the answer is no constant"),
    Cheat(
        "NaN", "_cheat_each(right(), _cheat_nan)", "compare with check.close, which takes no NaN for a number"
    ),
    Cheat("the input returned", "given[0] if given else None", "use an input that the right answer changes"),
    Cheat(
        "the first answer cached", "_cheat_first(right)", "call it with inputs that have different answers"
    ),
    Cheat("float32 for every dtype", "_cheat_each(right(), _cheat_wide)", "compare the dtype in float16 too"),
)

# Appended to a reference module. In the cheat's expression right() is the reference's answer and `given` are
# the call's arguments without self. A value that holds no array becomes None: a wrong answer as well.
_CHEATING = """

import mlx.core as mx


def _cheat_each(value, change):
    if isinstance(value, mx.array):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_cheat_each(v, change) for v in value)
    return None


def _cheat_nan(a):
    return mx.full(a.shape, float("nan"), a.dtype) if mx.issubdtype(a.dtype, mx.floating) else a * 0 - 1


def _cheat_wide(a):
    return a.astype(mx.float32)


_cheat_answers = []


def _cheat_first(right):
    if not _cheat_answers:
        _cheat_answers.append(right())
    return _cheat_answers[0]


def _cheating(target, skip):
    if isinstance(target, type):
        public = [n for n, v in vars(target).items() if callable(v) and not n.startswith("_")]
        for name in ["__call__"] if "__call__" in vars(target) else public:
            setattr(target, name, _cheating(vars(target)[name], 1))
        return target

    def cheat(*args, **kwargs):
        def right():
            return target(*args, **kwargs)

        given = args[skip:] or tuple(kwargs.values())
        return <answer>

    return cheat


<name> = _cheating(<name>, <skip>)
"""

_RAISING = """

def _raising(target):
    def taken_away(*args, **kwargs):
        raise RuntimeError("<name> was taken away")

    if isinstance(target, type):
        target.__init__ = taken_away
        return target
    return taken_away


<name> = _raising(<name>)
"""


def cheating(source: str, symbol: Symbol, cheat: Cheat) -> str:
    """The reference module with `symbol` answering by `cheat`.

    Of a class it is __call__ that cheats, or every public method of a class that cannot be called.
    """
    is_method = "." in symbol.name
    epilogue = _CHEATING.replace("<answer>", cheat.answer).replace("<skip>", str(int(is_method)))
    return source + epilogue.replace("<name>", symbol.name)


def raising(source: str, symbol: Symbol) -> str:
    """The reference module with `symbol` raising when it is called; a class, when it is constructed."""
    return source + _RAISING.replace("<name>", symbol.name)
