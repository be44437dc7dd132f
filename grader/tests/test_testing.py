"""The comparisons that tests are written with: what they accept, what they refuse and what they say."""

from __future__ import annotations

import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.report import Failure
from tinyllm.grader.testing import (
    FALSE_ALARM,
    FLOATS,
    UNIT_ROUNDOFF,
    Check,
    CheckFailed,
    CourseFault,
    as_float64,
    not_run_here,
    require,
    sample,
)

WHAT = "f(x)"


def refusal(call) -> Failure:
    with pytest.raises(CheckFailed) as caught:
        call()
    return caught.value.failure


def close(got, want, dtype=mx.float32, **options):
    check = Check()
    check.close(got, np.asarray(want), dtype=dtype, terms=4, what=WHAT, **options)
    return check.ratios[-1]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_sample_is_known_exactly(dtype) -> None:
    array, values = sample((3, 5), dtype, seed=1, scale=2.0, mean=1.0)
    assert array.dtype == dtype
    assert np.array_equal(as_float64(array), values)
    again, _ = sample((3, 5), dtype, seed=1, scale=2.0, mean=1.0)
    assert mx.array_equal(array, again)
    assert abs(values.mean() - 1.0) < 2.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_rounding_is_accepted_and_ten_tolerances_are_not(dtype) -> None:
    want = np.array([0.1, 0.7, 1.3])
    got = mx.array(want.astype(np.float32)).astype(dtype)
    assert close(got, want, dtype) < 0.2
    tolerance = 1.3 * UNIT_ROUNDOFF[dtype] * (8 + 2)
    off = mx.array((want + 10 * tolerance).astype(np.float32)).astype(dtype)
    found = refusal(lambda: close(off, want, dtype))
    assert found.ratio is not None
    assert 8 < found.ratio < 12


def test_the_tolerance_may_be_given_an_elementwise_size() -> None:
    want = np.array([1.0, 1000.0])
    got = mx.array([1.0 + 1e-4, 1000.0])
    assert close(got, want) < 1  # the largest |want| sets the size
    assert refusal(lambda: close(got, want, magnitude=np.abs(want))).where.startswith("first at [0]")


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (None, "is there a `return`"),
        ([1.0, 2.0], "not an mx.array"),
        (np.ones(2), "not an mx.array"),
        (mx.ones((2, 1)), "look at your reshapes"),
        (mx.ones(3), "The shape is wrong."),
        (mx.ones(2, dtype=mx.float16), "dtype is wrong"),
        (mx.array([1.0, float("nan")]), "not finite"),
        (mx.array([1.0, float("inf")]), "not finite"),
        (mx.array([1.0, 3.0]), "too far"),
        (mx.zeros(2), "Every element is too far"),
    ],
)
def test_each_kind_of_wrong_has_its_words(got, words: str) -> None:
    found = refusal(lambda: close(got, [1.0, 2.0], fact="a-fact", why="Because."))
    assert words in found.summary
    assert (found.checked, found.fact) == (WHAT, "a-fact")
    if "wrong." not in found.summary and got is not None and "mx.array" not in found.summary:
        assert found.summary.endswith("Because.")


def test_a_transposed_shape_is_told_as_that() -> None:
    found = refusal(lambda: close(mx.ones((3, 2)), np.ones((2, 3))))
    assert "look at your transposes" in found.summary
    assert (found.expected, found.got) == ("mx.array (2, 3) float32", "mx.array (3, 2) float32")


def test_infinities_must_be_where_the_oracle_has_them() -> None:
    want = [0.0, -np.inf]
    assert close(mx.array([0.0, float("-inf")]), want) == 0
    assert "1 x inf" in refusal(lambda: close(mx.array([0.0, float("inf")]), want)).got
    assert refusal(lambda: close(mx.array([0.0, -1e30]), want)).where == (
        "first at [1]: expected -inf, got -1e+30"
    )


def test_an_all_zero_answer_needs_zeros() -> None:
    assert close(mx.zeros(2), [0.0, 0.0]) == 0
    assert refusal(lambda: close(mx.array([0.0, 1e-20]), [0.0, 0.0])).ratio > 1e6


def test_exact_compares_kind_and_value() -> None:
    check = Check()
    check.exact("abc", "abc", what=WHAT)
    check.exact(mx.array([1, 2]), mx.array([1, 2]), what=WHAT)
    check.exact(mx.array([0.0, float("-inf")]), mx.array([0.0, float("-inf")]), what=WHAT)
    assert check.ratios == [0.0] * 3
    found = refusal(lambda: check.exact(True, 1, what=WHAT))
    assert (found.expected, found.got, found.ratio) == ("1 (int)", "True (bool)", None)
    assert refusal(lambda: check.exact(mx.array([1, 3]), mx.array([1, 2]), what=WHAT)).where == (
        "first at [1]: expected 2, got 3"
    )
    nan = mx.array([float("nan")])
    assert "exactly" in refusal(lambda: check.exact(nan, nan, what=WHAT)).summary


def test_raises_and_unchanged() -> None:
    check = Check()
    check.raises(ValueError, lambda: int("x"), what=WHAT)
    found = refusal(lambda: check.raises(ValueError, lambda: mx.ones(2), what=WHAT, why="Too long."))
    assert found.got == "returned mx.array (2,) float32"
    x = mx.ones(2)
    check.unchanged(as_float64(x), x, what=WHAT)
    assert "caller's array" in refusal(lambda: check.unchanged(np.zeros(2), x, what=WHAT)).summary
    with pytest.raises(ZeroDivisionError):
        check.raises(ValueError, lambda: 1 // 0, what=WHAT)


def test_begin_forgets_what_was_compared() -> None:
    check = Check()
    check.exact(1, 1, what=WHAT)
    check.begin()
    assert check.ratios == []


def test_the_course_blames_itself_for_a_bad_input() -> None:
    require(True, "fine")
    with pytest.raises(CourseFault, match="no small values"):
        require(False, "no small values")
    with pytest.raises(pytest.skip.Exception, match="no GPU"):
        not_run_here("no GPU")


def test_long_values_are_shortened() -> None:
    found = refusal(lambda: Check().exact(list(range(100)), 1, what=WHAT))
    assert len(found.got) < 80
    assert found.got.endswith("... (list)")
    assert refusal(lambda: Check().exact(np.ones((2, 3)), 1, what=WHAT)).got == "numpy array (2, 3) float64"


def test_a_module_of_mlx_lm_comes_without_transformers() -> None:
    code = (
        "import sys\n"
        "from tinyllm.grader.testing import mlx_lm_module\n"
        "qwen2 = mlx_lm_module('models.qwen2')\n"
        "assert mlx_lm_module('models.qwen2') is qwen2\n"
        "import mlx_lm.models.qwen2\n"
        "assert mlx_lm.models.qwen2.Model is qwen2.Model\n"
        "print('transformers' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def ids(got, want) -> None:
    Check().ids(got, np.asarray(want), what=WHAT)


@pytest.mark.parametrize("dtype", [mx.int32, mx.uint32, mx.int64, mx.uint8])
def test_token_ids_may_have_any_integer_dtype(dtype) -> None:
    check = Check()
    check.ids(mx.array([[1, 2], [0, 7]], dtype=dtype), np.array([[1, 2], [0, 7]]), what=WHAT)
    assert check.ratios == [0.0]


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (None, "is there a `return`"),
        (3, "not an mx.array"),
        (mx.array([1.0, 2.0]), "dtype is wrong"),
        (mx.array([True, False]), "dtype is wrong"),
        (mx.array([[1, 2]]), "look at your reshapes"),
        (mx.array([1, 3]), "1 of 2 elements is not the right token id"),
    ],
)
def test_wrong_token_ids_are_refused(got, words: str) -> None:
    assert words in refusal(lambda: ids(got, [1, 2])).summary


def test_what_token_ids_must_be_is_said() -> None:
    found = refusal(lambda: ids(mx.array([1.0, 2.0]), [1, 2]))
    assert (found.expected, found.got) == ("mx.array (2,) of integers", "mx.array (2,) float32")
    assert refusal(lambda: ids(mx.array([1, 3]), [1, 2])).where == "first at [1]: expected 2, got 3"


ROWS = np.array([[0.5, 0.3, 0.2, 0.0], [0.1, 0.0, 0.1, 0.8]])
COUNT = 4000


def drawn(rows: np.ndarray, seed: int, count: int = COUNT) -> mx.array:
    """`count` draws from each row, (count, rows)."""
    rng = np.random.default_rng(seed)
    return mx.array(np.stack([rng.choice(rows.shape[-1], count, p=row) for row in rows], axis=-1))


def draws(got, rows: np.ndarray = ROWS, count: int = COUNT, **options) -> float:
    check = Check()
    check.draws(got, rows, count=count, what=WHAT, **options)
    return check.ratios[-1]


def test_right_draws_are_accepted() -> None:
    assert max(draws(drawn(ROWS, seed)) for seed in range(50)) < 0.6
    assert draws(mx.array([2] * 10), np.array([0.0, 0.0, 1.0]), count=10) == 0


def test_the_tolerance_of_draws_is_hoeffding_s() -> None:
    """What it promises, over cells and both sides, is FALSE_ALARM / 2; the other half is for absent ids."""
    off = np.array([[0.3, 0.5, 0.2, 0.0], [0.1, 0.0, 0.1, 0.8]])
    found = refusal(lambda: draws(drawn(off, 1)))
    assert found.ratio is not None
    tolerance = 0.2 / found.ratio
    bound = 2 * ROWS.size * np.exp(-2 * COUNT * tolerance**2)
    assert 0.3 < np.log(bound) / np.log(FALSE_ALARM / 2) < 1.1
    assert found.checked == f"{WHAT}, {COUNT} draws"
    assert found.where.startswith("id 0 in row [0]: expected a share of 0.500, got 0.")
    assert draws(drawn(off, 1), slack=0.2) < 1


def test_an_impossible_id_is_refused_at_its_first_coming() -> None:
    got = np.array(drawn(ROWS, 2))
    got[17, 1] = 1
    found = refusal(lambda: draws(mx.array(got)))
    assert found.ratio is None
    assert "may never come out" in found.summary
    assert (found.expected, found.got) == ("ids of {0, 2, 3}", "id 1, 1 times in row [1]")


def test_an_id_that_must_come_out_is_missed() -> None:
    without = np.array([[0.5, 0.3, 0.2, 0.0], [0.2, 0.0, 0.0, 0.8]])
    found = refusal(lambda: draws(drawn(without, 3)))
    assert found.ratio is None
    assert "never came out" in found.summary
    assert found.expected == "id 2 about 400 times in row [1]"
    assert found.got == "only ids of {0, 3}"
    # Few draws prove nothing: an id of probability 0.1 is easily missed ten times.
    assert draws(mx.array([[0, 3]] * 10), without * 0.9 + ROWS * 0.1, count=10) < 1


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (None, "is there a `return`"),
        (mx.zeros((COUNT, 2)), "dtype is wrong"),
        (mx.zeros((COUNT,), dtype=mx.int32), "shape is wrong"),
        (mx.full((COUNT, 2), 4), "no token id: ids go from 0 to 3"),
        (mx.full((COUNT, 2), -1), "no token id"),
    ],
)
def test_draws_of_the_wrong_kind_are_refused(got, words: str) -> None:
    assert words in refusal(lambda: draws(got)).summary
