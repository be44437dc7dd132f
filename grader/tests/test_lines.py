"""A function followed line by line: what each statement made, the same way by both of Python's hooks."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tinyllm.grader.lines import Loop, Made, Step, Traced, Tracer, Unevaluable

CODE = '''
import mlx.core as mx


def helper(x):
    y = x * 2
    return y


def straight(x, scale=2.0):
    """Its docstring is no statement."""
    a, b = x + 1, x - 1
    total = (
        a
        * b
    )
    if scale is None:
        total = None
    out = helper(total)  # a comment
    out[0] = 7.0
    out += 1
    return out


def looping(x):
    rounds = []
    for i in range(5):
        x = x + i
        for j in range(2):
            rounds.append((i, j))
    n = 0
    while n < 3:
        n += 1
    for nothing in []:
        x = None
    return x


def failing(x, w):
    y = x * 2
    z = y @ w
    return z


def caught(x):
    try:
        y = x.no_such_thing
    except AttributeError:
        y = x
    return y


def lazy(x):
    y = x / 0
    return mx.where(x > 0, y, x)


def pieces(x):
    for i in range(3):
        yield x + i


class Layer:
    def __init__(self, w):
        self.w = w

    def __call__(self, x):
        self.seen = x
        return x @ self.w
'''


@pytest.fixture
def code(tmp_path: Path) -> Any:
    file = tmp_path / "my code.py"
    file.write_text(CODE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("followed", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def hook(tracer: Tracer, kind: str) -> Iterator[None]:
    with tracer._monitored() if kind == "monitoring" else tracer._settrace():
        yield


KINDS = ["settrace", *(["monitoring"] if hasattr(sys, "monitoring") else [])]


@pytest.fixture(params=KINDS)
def follow(request: pytest.FixtureRequest) -> Callable[..., Traced]:
    def follow(function: Any, *args: Any, run: Callable[[], Any] | None = None) -> Traced:
        tracer = Tracer(function.__code__, function.__name__, lambda code: code.co_name == "helper")
        before = sys.gettrace()
        try:
            with hook(tracer, request.param):
                run() if run else function(*args)
        except (ValueError, AttributeError):
            pass
        assert sys.gettrace() is before
        return tracer.traced

    return follow


def steps(traced: Traced) -> list[Step]:
    return [n for n in traced.nodes if isinstance(n, Step)]


def names(step: Step) -> list[str]:
    return [m.name for m in step.made]


def value(made: Made) -> list[float]:
    return made.value.tolist()


def test_each_statement_and_what_it_made(code: Any, follow: Any) -> None:
    traced = follow(code.straight, mx.array([1.0, 2.0]))
    assert [(m.name, m.value if m.name == "scale" else value(m)) for m in traced.given] == [
        ("x", [1.0, 2.0]),
        ("scale", 2.0),
    ]
    found = steps(traced)
    assert [s.statement.source for s in found] == [
        "a, b = x + 1, x - 1",
        "total = ( a * b )",
        "if scale is None:",
        "out = helper(total)",
        "out[0] = 7.0",
        "out += 1",
        "return out",
    ]
    assert [names(s) for s in found] == [["a", "b"], ["total"], [], ["out"], ["out"], ["out"], ["return"]]
    # Copies: a later write does not reach what was noted before.
    assert [value(s.made[0]) for s in found[3:]] == [[0.0, 6.0], [7.0, 6.0], [8.0, 7.0], [8.0, 7.0]]
    assert traced.returned
    assert [(t.name, len(t.nodes)) for t in traced.inner] == [("helper", 2)]


def test_first_and_last_round_of_a_loop(code: Any, follow: Any) -> None:
    traced = follow(code.looping, mx.array([0.0]))
    loops = [n for n in traced.nodes if isinstance(n, Loop)]
    assert [loop.rounds for loop in loops] == [5, 3, 0]
    outer = loops[0]

    def made(nodes: list[Any], name: str) -> Any:
        return next(m.value for n in nodes if isinstance(n, Step) for m in n.made if m.name == name)

    assert [made(outer.first, "i"), made(outer.last, "i")] == [0, 4]
    assert [made(outer.first, "x").item(), made(outer.last, "x").item()] == [0.0, 10.0]
    assert [n.rounds for n in outer.last if isinstance(n, Loop)] == [2]
    assert [made(loops[1].first, "n"), made(loops[1].last, "n")] == [1, 3]


def test_an_error_at_its_line_with_the_operands(code: Any, follow: Any) -> None:
    traced = follow(code.failing, mx.zeros((2, 3)), mx.zeros((4, 5)))
    last = steps(traced)[-1]
    assert last.statement.source == "z = y @ w"
    assert isinstance(last.error, ValueError)
    assert [(m.name, m.value.shape) for m in last.operands] == [("y", (2, 3)), ("w", (4, 5))]
    assert not traced.returned
    assert traced.error is last.error


def test_an_error_that_the_code_handles(code: Any, follow: Any) -> None:
    traced = follow(code.caught, mx.array([1.0]))
    assert traced.returned
    assert [s.error is not None for s in steps(traced)].count(True) == 1


def test_infinities_are_there_at_the_line_that_makes_them(code: Any, follow: Any) -> None:
    traced = follow(code.lazy, mx.array([1.0, -1.0]))
    assert value(steps(traced)[0].made[0]) == [float("inf"), float("-inf")]


def test_a_generator_is_followed_to_its_end(code: Any, follow: Any) -> None:
    traced = follow(code.pieces, run=lambda: list(code.pieces(mx.array([1.0]))))
    assert traced.yielded == 3
    assert traced.returned
    loop = traced.nodes[0]
    assert isinstance(loop, Loop)
    assert loop.rounds == 3


def test_a_method_and_its_object(code: Any, follow: Any) -> None:
    layer = code.Layer(mx.eye(2))
    traced = follow(code.Layer.__call__, run=lambda: layer(mx.array([[3.0, 4.0]])))
    assert [m.name for m in traced.given] == ["self.w", "x"]
    assert [names(s) for s in steps(traced)] == [["self.seen"], ["return"]]


def test_what_cannot_be_computed_is_told_at_its_line(
    code: Any, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = follow(code.straight, Refusing())
    assert isinstance(steps(traced)[0].error, Exception) or isinstance(
        steps(traced)[0].made[0].value, Unevaluable
    )


class Refusing:
    """Adds up to nothing that MLX knows."""

    def __add__(self, other: Any) -> Any:
        raise ValueError("no")
