"""Results that checks keep: computed once, safe from whoever gets them, carried into another process."""

from __future__ import annotations

import io
import sys
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.frames import unnoted
from tinyllm.grader.keeping import Keep
from tinyllm.grader.testing import FLOATS, as_float64


def counting(keep: Keep, value: Any) -> tuple[Any, list[Any]]:
    """(a kept function of anything that gives `value`, the arguments with which it really ran)."""
    ran: list[Any] = []

    @keep.kept
    def give(*args: Any) -> Any:
        ran.append(args)
        return value

    return give, ran


def test_the_same_arguments_compute_once() -> None:
    give, ran = counting(Keep(), 7)
    for _ in range(2):
        assert give((2, 3), {"b": 1, "a": None}, mx.bfloat16, "x", 0.5) == 7
        assert give([2, 3], {"a": None, "b": 1}, mx.bfloat16, "x", 0.5) == 7
    assert len(ran) == 1
    give((2, 3), {"b": 1, "a": None}, mx.float16, "x", 0.5)
    assert len(ran) == 2


def test_what_does_not_say_all_in_words_is_no_argument() -> None:
    give, _ = counting(Keep(), 7)
    for argument in (mx.ones(3), lambda: 1, [object()]):
        with pytest.raises(TypeError, match="plain arguments"):
            give(argument)


def test_writing_into_what_one_got_reaches_nobody_else() -> None:
    give, _ = counting(Keep(), {"w": mx.arange(3.0), "n": (np.arange(3.0), [mx.zeros((2,))])})
    mine = give()
    mine["w"] += 1
    mine["w"][0] = 9
    mine["n"][0][:] = 5
    mine["n"][1].append(1)
    del mine["n"]
    mx.eval(mine)
    again = give()
    assert again["w"].tolist() == [0, 1, 2]
    assert again["n"][0].tolist() == [0, 1, 2]
    assert len(again["n"][1]) == 1


@pytest.mark.parametrize("dtype", [*FLOATS, mx.uint32, mx.int64, mx.bool_])
def test_results_go_into_another_process_as_they_are(dtype: mx.Dtype) -> None:
    array = mx.array([[0, 1, 5], [2, 3, 4]]).astype(dtype)
    there, here = Keep(), Keep()
    value = {"a": (array, np.array([0.5])), "b": [1, "two", None]}
    counting(there, value)[0](1)
    file = io.BytesIO()
    there.write(file)
    file.seek(0)
    give, ran = counting(here, None)
    here.read(file)
    got = give(1)
    assert ran == []
    assert got["b"] == value["b"]
    assert got["a"][1].tolist() == [0.5]
    assert got["a"][0].dtype == dtype
    assert np.array_equal(as_float64(got["a"][0]), as_float64(array))


def test_nothing_is_noted_inside_what_runs_no_code_under_test() -> None:
    seen: list[str] = []

    def inside() -> int:
        return 1

    @unnoted
    def outer(fail: bool) -> int:
        if fail:
            raise ValueError("on the way")
        return inside()

    sys.setprofile(lambda frame, event, arg: seen.append(frame.f_code.co_name) if event == "call" else None)
    try:
        outer(False)
        with pytest.raises(ValueError, match="on the way"):
            outer(True)
        inside()
    finally:
        sys.setprofile(None)
    assert seen.count("inside") == 1
