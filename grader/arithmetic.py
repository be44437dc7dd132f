"""Formulas of check questions, and sums that a learner types as an answer: arithmetic, and nothing else.

A formula is read by Python's parser and walked node by node; what is not on the short list below is
refused. Nothing is ever handed to eval. Sizes are bounded, so `9 ** 9 ** 9` is an error and not a wait.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

LONGEST = 400  # characters of a formula
BITS = 512  # of a power's result

Value = int | float | str | tuple[Any, ...]


class FormulaError(ValueError):
    """A formula that cannot be read or has no value; the message says why, in a few words."""


_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "ceil": math.ceil,
    "exp": math.exp,
    "floor": math.floor,
    "log": math.log,
    "log2": math.log2,
    "max": max,
    "min": min,
    "round": round,
    "sqrt": math.sqrt,
}


def evaluate(formula: str, names: Mapping[str, Value] = {}) -> Value:
    """The value of a formula: numbers, `names`, + - * / // % **, comparisons, and/or/not, `a if b else c`,
    tuples, indexing, and the functions of _FUNCTIONS. Raises FormulaError."""
    if len(formula) > LONGEST:
        raise FormulaError(f"it is longer than {LONGEST} characters")
    try:
        tree = ast.parse(formula.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise FormulaError(f"'{formula}' is no formula") from None
    try:
        return _value(tree.body, names)
    except FormulaError:
        raise
    except ZeroDivisionError:
        raise FormulaError("it divides by zero") from None
    except (ArithmeticError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise FormulaError(f"'{formula}' has no value: {error}") from None


def names_in(formula: str) -> set[str]:
    """The variables that a formula mentions. Raises FormulaError when it is none."""
    try:
        tree = ast.parse(formula.strip(), mode="eval")
    except (SyntaxError, ValueError):
        raise FormulaError(f"'{formula}' is no formula") from None
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} - _FUNCTIONS.keys()


def _value(node: ast.expr, names: Mapping[str, Value]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return _bounded(value)
        case ast.Name(id=name):
            if name not in names:
                raise FormulaError(f"'{name}' is not known here")
            return names[name]
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _bounded(_power(_number(left, names), _number(right, names)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _bounded(_BINARY[type(op)](_number(left, names), _number(right, names)))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, names)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(operand, names)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, names)
        case ast.BoolOp(op=op, values=values):
            results = (bool(_value(v, names)) for v in values)
            return all(results) if isinstance(op, ast.And) else any(results)
        case ast.IfExp(test=test, body=body, orelse=other):
            return _value(body if _value(test, names) else other, names)
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [_value(n, names) for n in (left, *others)]
            if not all(type(op) in _COMPARE for op in ops):
                raise FormulaError("this comparison is not allowed")
            return all(_COMPARE[type(o)](a, b) for o, a, b in zip(ops, sides, sides[1:], strict=False))
        case ast.Tuple(elts=items):
            return tuple(_value(i, names) for i in items)
        case ast.Subscript(value=value, slice=index):
            values, at = _value(value, names), _value(index, names)
            if not isinstance(values, tuple) or not isinstance(at, int):
                raise FormulaError("only a list is indexed, with a whole number")
            return values[at]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _bounded(_FUNCTIONS[name](*(_number(a, names) for a in arguments)))
    raise FormulaError("only arithmetic is allowed")


def _number(node: ast.expr, names: Mapping[str, Value]) -> int | float:
    value = _value(node, names)
    if not isinstance(value, int | float):
        raise FormulaError(f"{value!r} is no number")
    return value


def _power(base: float, exponent: float) -> float:
    if abs(exponent) * math.log2(max(abs(base), 2)) > BITS:
        raise FormulaError("this power is too large")
    result = base**exponent
    if isinstance(result, complex):
        raise FormulaError("a root of a negative number")
    return result


def _bounded(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise FormulaError("the result is not finite")
    if isinstance(value, int) and value.bit_length() > BITS:
        raise FormulaError("the result is too large")
    return value


# ---- text with formulas in it

_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_FORMAT = re.compile(r"(.*?)(?::(,|[.,]?\d*[,.]?\d*[efgdxX%]))?", re.DOTALL)


def fill(template: str, names: Mapping[str, Value]) -> str:
    """The text with every `{formula}` and `{formula:format}` replaced by its value; `{{` is a brace.

    Raises FormulaError.
    """

    def shown(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        formula, spec = _parts(match[1])
        value = evaluate(formula, names)
        try:
            return format(value, spec) if spec else show(value)
        except (ValueError, TypeError):
            raise FormulaError(f"'{match[0]}' cannot be shown in that format") from None

    return _PLACE.sub(shown, template)


def letters(template: str) -> str:
    """The text with every `{formula}` replaced by the formula itself, as a lesson states the question."""
    return _PLACE.sub(lambda m: m[0][0] if m[1] is None else _parts(m[1])[0], template)


def formulas(template: str) -> list[str]:
    return [_parts(m[1])[0] for m in _PLACE.finditer(template) if m[1] is not None]


def show(value: Value) -> str:
    """A value as a learner reads it: 57344, 0.125, (2, 14, 64)."""
    if isinstance(value, tuple):
        inner = ", ".join(show(v) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() or 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def _parts(inner: str) -> tuple[str, str]:
    match = _FORMAT.fullmatch(inner)
    return (match[1].strip(), match[2] or "") if match else (inner.strip(), "")
