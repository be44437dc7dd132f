"""Day 1.7: greedy and temperature, the filters, the repetition penalty and the sampler made of them.

What a filter keeps is compared exactly, against a set found in float64 NumPy; a test makes sure that its
thresholds lie well between two tokens. What is drawn is compared with `check.draws`: an id that may never
come out is refused exactly; a share that is off, with a false alarm of at most 1e-12 a comparison.
"""

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import UNIT_ROUNDOFF, as_float64, check, dtype_name, every_dtype, require, task

F32 = mx.float32

# Token ids in an order that is neither sorted nor its own inverse: the most probable are 1, 3, 5, 0, 4, 2.
SIX = [0.10, 0.40, 0.04, 0.25, 0.06, 0.15]
# One token far ahead, two behind it, and four that hardly ever come.
PEAKED = [0.02, 0.14, 0.03, 0.65, 0.01, 0.05, 0.10]
SHAPES = pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (2, 3, 7)], ids=["0", "one row", "1", "2"])
DRAWS = 20000


# ---- inputs ----


def log_of(probabilities, dtype=F32):
    """Log-probabilities in dtype: (array, float64 of its values)."""
    with np.errstate(divide="ignore"):
        x = mx.array(np.log(np.asarray(probabilities)).astype(np.float32)).astype(dtype)
    return x, as_float64(x)


def random_rows(shape, dtype=F32, *, seed, spread=1.5):
    """Normalised log-probabilities of random rows, no two of a row alike: (array, float64 of its values)."""
    logits = np.random.default_rng(seed).normal(0, spread, shape)
    x, x64 = log_of(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True), dtype)
    require((np.diff(np.sort(x64, axis=-1), axis=-1) > 0).all(), "two tokens of a row are equally probable")
    return x, x64


def view_of_rows(*, seed):
    """Log-probabilities (2, 5, 7) that are not contiguous: (array, float64 of its values)."""
    x, x64 = random_rows((5, 2, 14), seed=seed)
    return x.transpose(1, 0, 2)[..., ::2], x64.transpose(1, 0, 2)[..., ::2]


# ---- oracles ----


def ranks(x64):
    """0 for the most probable token of a row, V - 1 for the least."""
    return np.argsort(np.argsort(-x64, axis=-1), axis=-1)


def top_k_set(x64, k):
    return ranks(x64) < k


def top_p_set(x64, top_p, clear=0.01):
    """What top-p keeps. No sum of probabilities may be within `clear` of top_p."""
    p = np.exp(x64)
    ranked = -np.sort(-p, axis=-1)
    before = np.cumsum(ranked, axis=-1) - ranked
    require((np.abs(before - top_p) > clear).all(), f"a sum of probabilities is too near top_p = {top_p}")
    return np.take_along_axis(before, ranks(x64), axis=-1) < top_p


def min_p_set(x64, min_p):
    """What min-p keeps. No token but the first may be within a tenth of the limit."""
    least = x64.max(axis=-1, keepdims=True) + np.log(min_p)
    require((np.abs(x64 - least) > 0.1).all() or min_p == 1, f"a token is too near min_p = {min_p}")
    return x64 >= least


def softmax64(x64):
    e = np.exp(x64 - x64.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def distribution(x64, temp, keep=True):
    """The probabilities of the ids when only those in `keep` may come out."""
    return softmax64(np.where(keep, x64, -np.inf) / temp)


# ---- comparisons ----


def check_filtered(call, x, x64, keep, *, what, fact):
    """`call(x)` is x with -inf wherever `keep` is False, and x stays as it was."""
    want = mx.array(np.where(keep, x64, -np.inf).astype(np.float32)).astype(x.dtype)
    shown = f"{what}, logprobs {tuple(x.shape)} {dtype_name(x.dtype)}"
    check.exact(call(x), want, what=shown, fact=fact)
    check.unchanged(x64, x, what=f"logprobs after {what}", fact="reads-logprobs")


def check_drawn(call, x, x64, temp, keep=True, *, seed, what, fact, count=DRAWS):
    """`call`, given `count` copies of x in one batch, draws from x at temp, restricted to `keep`."""
    copies = mx.broadcast_to(x, (count, *x.shape))
    mx.random.seed(seed)
    # Dividing by temp in x's dtype moves a logarithm by a rounding, a probability by half of that at most.
    largest = np.abs(x64[np.isfinite(x64)]).max()
    check.draws(
        call(copies),
        distribution(x64, temp, keep),
        count=count,
        slack=UNIT_ROUNDOFF[x.dtype] * largest / temp,
        what=f"{what}, logprobs {(count, *x.shape)} {dtype_name(x.dtype)}",
        fact=fact,
    )


def one_by_one(call, count):
    """The results of `count` calls, as one array; the first result when that is no array."""
    results = [call() for _ in range(count)]
    return mx.stack(results) if all(isinstance(r, mx.array) for r in results) else results[0]


def check_greedy(call, x, x64, *, what, fact):
    """Each row's largest. What draws instead draws the same each time it is graded."""
    mx.random.seed(20)
    check.ids(call(x), x64.argmax(axis=-1), what=what, fact=fact)


def check_repeats(call, *, seed, what):
    """`call` gives the same ids again after the same seed."""
    mx.random.seed(seed)
    first = call()
    mx.random.seed(seed)
    want = np.array(first.astype(mx.int32)) if isinstance(first, mx.array) else np.zeros(0)
    check.ids(call(), want, what=what, fact="seed")


# ---- task 1: draw_tokens ----


@task(1)
@every_dtype
def test_greedy(solution, dtype):
    """temp 0: the most probable token of each row"""
    for seed in (10, 11):
        x, x64 = random_rows((2, 3, 7), dtype, seed=seed)
        what = f"draw_tokens(logprobs, temp=0), logprobs (2, 3, 7) {dtype_name(dtype)}"
        check_greedy(lambda a: solution.draw_tokens(a, 0), x, x64, what=what, fact="greedy")
        check.unchanged(x64, x, what="logprobs after draw_tokens", fact="reads-logprobs")


@task(1)
@SHAPES
def test_greedy_shapes(solution, shape):
    """temp 0 on no leading axis, one and two: the last axis goes, the others stay"""
    x, x64 = random_rows(shape, seed=12)
    what = f"draw_tokens(logprobs, temp=0.0), logprobs {shape} float32"
    check_greedy(lambda a: solution.draw_tokens(a, 0.0), x, x64, what=what, fact="draw-shape")


@task(1)
def test_greedy_square(solution):
    """temp 0 on as many rows as tokens, where the wrong axis has the right shape"""
    x, x64 = random_rows((6, 6), seed=13)
    require((x64.argmax(axis=-1) != x64.argmax(axis=0)).any(), "rows and columns agree")
    what = "draw_tokens(logprobs, temp=0), logprobs (6, 6) float32"
    check_greedy(lambda a: solution.draw_tokens(a, 0), x, x64, what=what, fact="draw-shape")


@task(1)
@pytest.mark.parametrize("temp", [0.5, 1.0, 2.0])
def test_temperature(solution, temp):
    """how often each token comes out at temp 0.5, 1 and 2"""
    x, x64 = log_of(PEAKED)
    what = f"draw_tokens(logprobs, temp={temp})"
    check_drawn(lambda a: solution.draw_tokens(a, temp), x, x64, temp, seed=1, what=what, fact="temperature")


@task(1)
@every_dtype
def test_temperature_dtypes(solution, dtype):
    """rows of a batch, each with its own distribution"""
    x, x64 = random_rows((2, 3, 7), dtype, seed=15)
    what = "draw_tokens(logprobs, temp=0.7)"
    check_drawn(
        lambda a: solution.draw_tokens(a, 0.7), x, x64, 0.7, seed=2, what=what, fact="draw-shape", count=6000
    )
    check.unchanged(x64, x, what="logprobs after draw_tokens", fact="reads-logprobs")


@task(1)
def test_very_cold(solution):
    """temp 0.01: only the most probable token comes out"""
    x, x64 = log_of(SIX)
    require(np.diff(np.sort(x64))[-1] / 0.01 > 40, "the second token is too near at this temperature")
    mx.random.seed(8)
    got = solution.draw_tokens(mx.broadcast_to(x, (100, 6)), 0.01)
    what = "draw_tokens(logprobs, temp=0.01), logprobs (100, 6) float32, all rows alike"
    check.ids(got, np.full(100, x64.argmax()), what=what, fact="temperature")


@task(1)
def test_very_hot(solution):
    """temp 50: all tokens come out nearly as often as one another"""
    x, x64 = log_of(PEAKED)
    what = "draw_tokens(logprobs, temp=50)"
    check_drawn(lambda a: solution.draw_tokens(a, 50), x, x64, 50, seed=3, what=what, fact="temperature")


@task(1)
@every_dtype
def test_impossible_tokens(solution, dtype):
    """tokens at -inf never come out, however hot"""
    x, x64 = log_of([[0.0, 0.4, 0.0, 0.35, 0.25, 0.0], [0.2, 0.0, 0.3, 0.0, 0.0, 0.5]], dtype)
    for temp in (0.5, 4.0):
        what = f"draw_tokens(logprobs, temp={temp}), half of the tokens at -inf"
        check_drawn(
            lambda a, temp=temp: solution.draw_tokens(a, temp),
            x, x64, temp, seed=4, what=what, fact="impossible", count=6000,
        )  # fmt: skip
    what = "draw_tokens(logprobs, temp=0), half of the tokens at -inf"
    check_greedy(lambda a: solution.draw_tokens(a, 0), x, x64, what=what, fact="impossible")


@task(1)
def test_one_row_at_a_time(solution):
    """call after call on a single row gives other tokens"""
    x, x64 = log_of(SIX)
    mx.random.seed(5)
    check.draws(
        one_by_one(lambda: solution.draw_tokens(x, 2.0), 150),
        distribution(x64, 2.0),
        count=150,
        what="draw_tokens(logprobs, temp=2), logprobs (6,) float32, called again and again",
        fact="seed",
    )


@task(1)
def test_seed(solution):
    """the same seed gives the same tokens"""
    x, _ = random_rows((2, 40, 11), seed=15)
    check_repeats(
        lambda: solution.draw_tokens(x, 1.5),
        seed=6,
        what="draw_tokens(logprobs, temp=1.5) after the same mx.random.seed as before",
    )


@task(1)
def test_draw_views(solution):
    """views of an array, which may not change"""
    x, x64 = view_of_rows(seed=16)
    what = "draw_tokens(logprobs, temp=0), logprobs (2, 5, 7) and not contiguous"
    check_greedy(lambda a: solution.draw_tokens(a, 0), x, x64, what=what, fact="greedy")
    check_drawn(
        lambda a: solution.draw_tokens(a, 1.5),
        x[0, 0], x64[0, 0], 1.5, seed=7, what="draw_tokens(logprobs, temp=1.5), not contiguous",
        fact="temperature", count=6000,
    )  # fmt: skip
    solution.draw_tokens(x, 1.5)
    check.unchanged(x64, x, what="logprobs after draw_tokens", fact="reads-logprobs")


# ---- task 2: apply_top_k ----


def check_top_k(solution, x, x64, k, *, fact):
    check_filtered(
        lambda a: solution.apply_top_k(a, k), x, x64, top_k_set(x64, k),
        what=f"apply_top_k(logprobs, {k})", fact=fact,
    )  # fmt: skip


@task(2)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top_k(solution, k):
    """the k most probable of six tokens"""
    check_top_k(solution, *log_of(SIX), k, fact="top-k")


@task(2)
@every_dtype
def test_top_k_rows(solution, dtype):
    """the 3 most probable of each row"""
    x, x64 = random_rows((2, 3, 7), dtype, seed=20)
    third = np.sort(x64, axis=-1)[..., -3]
    require(third.min() < np.sort(x64, axis=-1)[..., -4].max(), "one limit would do for all rows")
    check_top_k(solution, x, x64, 3, fact="filter-shape")


@task(2)
@SHAPES
def test_top_k_shapes(solution, shape):
    """no leading axis, one and two"""
    check_top_k(solution, *random_rows(shape, seed=21), 4, fact="filter-shape")


@task(2)
def test_top_k_square(solution):
    """as many rows as tokens, where the wrong axis has the right shape"""
    check_top_k(solution, *random_rows((6, 6), seed=22), 2, fact="filter-shape")


@task(2)
@pytest.mark.parametrize("k", [None, 0, -1, 6, 9])
def test_top_k_off(solution, k):
    """None, 0, a negative number, V and more keep everything"""
    x, x64 = log_of(SIX)
    what = f"apply_top_k(logprobs, {k})"
    check_filtered(lambda a: solution.apply_top_k(a, k), x, x64, True, what=what, fact="top-k-off")


@task(2)
@every_dtype
def test_top_k_of_filtered(solution, dtype):
    """rows in which some tokens are at -inf already, in one of them more than k leaves"""
    x, x64 = log_of([[0.3, 0.0, 0.2, 0.1, 0.4, 0.0], [0.0, 0.0, 0.3, 0.0, 0.0, 0.7]], dtype)
    check_top_k(solution, x, x64, 3, fact="filter-values")


@task(2)
def test_top_k_far_apart(solution):
    """tokens of very small probability: only the order counts"""
    x = mx.array([[-60.0, -0.001, -300.0, -7.0, -90.0], [-1e4, -2e4, -3e-5, -5e4, -12.0]])
    check_top_k(solution, x, as_float64(x), 3, fact="filter-values")


@task(2)
def test_top_k_views(solution):
    """views of an array, which may not change"""
    for seed in (23, 24):
        check_top_k(solution, *view_of_rows(seed=seed), 2, fact="top-k")


# ---- task 3: apply_top_p and apply_min_p ----


def check_top_p(solution, x, x64, top_p, *, fact):
    check_filtered(
        lambda a: solution.apply_top_p(a, top_p), x, x64, top_p_set(x64, top_p),
        what=f"apply_top_p(logprobs, {top_p})", fact=fact,
    )  # fmt: skip


def check_min_p(solution, x, x64, min_p, *, fact):
    check_filtered(
        lambda a: solution.apply_min_p(a, min_p), x, x64, min_p_set(x64, min_p),
        what=f"apply_min_p(logprobs, {min_p})", fact=fact,
    )  # fmt: skip


@task(3)
@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.5, 0.7, 0.85, 0.93, 0.98])
def test_top_p(solution, top_p):
    """the nucleus of six tokens, whose probabilities are the lesson's"""
    check_top_p(solution, *log_of(SIX), top_p, fact="top-p")


@task(3)
@every_dtype
def test_top_p_rows(solution, dtype):
    """the nucleus of each row: rows keep different numbers of tokens"""
    x, x64 = random_rows((2, 3, 7), dtype, seed=35)
    sizes = top_p_set(x64, 0.75).sum(axis=-1)
    require(len(set(sizes.ravel())) > 2, "the nuclei are too alike")
    check_top_p(solution, x, x64, 0.75, fact="filter-shape")


@task(3)
@SHAPES
def test_top_p_shapes(solution, shape):
    """no leading axis, one and two"""
    check_top_p(solution, *random_rows(shape, seed=31), 0.8, fact="filter-shape")


@task(3)
def test_top_p_square(solution):
    """as many rows as tokens, where the wrong axis has the right shape"""
    check_top_p(solution, *random_rows((6, 6), seed=32), 0.6, fact="filter-shape")


@task(3)
@pytest.mark.parametrize("top_p", [None, 0, 0.0, 1, 1.0, 1.5])
def test_top_p_off(solution, top_p):
    """None, 0, 1 and more keep everything"""
    x, x64 = log_of(SIX)
    what = f"apply_top_p(logprobs, {top_p})"
    check_filtered(lambda a: solution.apply_top_p(a, top_p), x, x64, True, what=what, fact="top-p-off")


@task(3)
@every_dtype
def test_top_p_of_filtered(solution, dtype):
    """tokens at -inf leave less than 1 to sum: what is left counts as it stands"""
    # The three kept tokens have 0.8 together. Renormalised, the first two would have 0.81.
    x, x64 = log_of([0.0, 0.40, 0.0, 0.25, 0.0, 0.15], dtype)
    check_top_p(solution, x, x64, 0.72, fact="top-p-mass")


@task(3)
def test_top_p_beyond_what_is_left(solution):
    """what is left sums to less than top_p: all of it stays"""
    check_top_p(solution, *log_of([0.0, 0.40, 0.0, 0.25, 0.0, 0.15]), 0.9, fact="top-p-mass")


@task(3)
@every_dtype
def test_top_p_many_small_tokens(solution, dtype):
    """a long tail of small tokens, whose sum a half-precision number cannot follow"""
    # On bfloat16's grid, so that one row serves every dtype: one token of 0.94, then steps of 1/32 and 1/16.
    values = np.concatenate([[-15], -np.arange(200, 256) * 8, -np.arange(128, 256) * 16]) / 256
    x64 = np.random.default_rng(33).permutation(values)
    x = mx.array(x64.astype(np.float32)).astype(dtype)
    require(np.array_equal(as_float64(x), x64), "the dtype rounds the row")
    ranked = np.exp(values)
    require(abs(ranked.sum() - 1) < 1e-3, "the row is not normalised")
    require(
        mx.cumsum(mx.array(ranked).astype(mx.bfloat16))[-1].item() < 0.95, "a bfloat16 sum follows this row"
    )

    before = (np.cumsum(ranked) - ranked)[ranks(x64)]
    outside = before > 0.982
    settled = (before < 0.968) | outside  # between them lies what the rounding of exp in the dtype may move
    require(outside.sum() > 20 and (settled & ~outside).sum() > 5, "too few tokens on one side of top_p")
    got = solution.apply_top_p(x, 0.975)
    if isinstance(got, mx.array) and got.shape == x.shape:
        got = mx.where(mx.array(settled), got, mx.zeros_like(got))
    want = np.where(outside, -np.inf, np.where(settled, x64, 0)).astype(np.float32)
    shown = f"apply_top_p(logprobs, 0.975), logprobs ({x64.size},) {dtype_name(dtype)}"
    check.exact(got, mx.array(want).astype(dtype), what=shown, fact="top-p-mass")


@task(3)
def test_top_p_views(solution):
    """views of an array, which may not change"""
    for seed in (35, 137):
        check_top_p(solution, *view_of_rows(seed=seed), 0.7, fact="top-p")


@task(3)
@pytest.mark.parametrize("min_p", [0.05, 0.2, 0.5, 0.8])
def test_min_p(solution, min_p):
    """six tokens against the most probable one, which has 0.4"""
    check_min_p(solution, *log_of(SIX), min_p, fact="min-p")


@task(3)
@every_dtype
def test_min_p_rows(solution, dtype):
    """rows whose largest probabilities differ"""
    x, x64 = random_rows((2, 3, 7), dtype, seed=98)
    peaks = np.exp(x64.max(axis=-1))
    require(peaks.max() > 2 * peaks.min(), "the rows are alike")
    check_min_p(solution, x, x64, 0.3, fact="filter-shape")


@task(3)
@SHAPES
def test_min_p_shapes(solution, shape):
    """no leading axis, one and two"""
    check_min_p(solution, *random_rows(shape, seed=41), 0.25, fact="filter-shape")


@task(3)
@every_dtype
def test_min_p_flat(solution, dtype):
    """rows so flat that no token has probability min_p"""
    x, x64 = log_of([[0.12, 0.05, 0.11, 0.13, 0.14, 0.10, 0.095, 0.15, 0.045, 0.06]], dtype)
    require(np.exp(x64.max()) < 0.5 / 2, "a token has about min_p")
    check_min_p(solution, x, x64, 0.5, fact="min-p")


@task(3)
@every_dtype
def test_min_p_one(solution, dtype):
    """min_p 1: only the most probable token is at least as probable as itself"""
    check_min_p(solution, *random_rows((2, 3, 7), dtype, seed=42), 1.0, fact="min-p")


@task(3)
@pytest.mark.parametrize("min_p", [0, 0.0])
def test_min_p_off(solution, min_p):
    """min_p 0 keeps everything, also what is at -inf already"""
    for probabilities in (SIX, [0.0, 0.6, 0.4]):
        x, x64 = log_of(probabilities)
        what = f"apply_min_p(logprobs, {min_p})"
        check_filtered(lambda a: solution.apply_min_p(a, min_p), x, x64, True, what=what, fact="min-p-off")


@task(3)
def test_min_p_views(solution):
    """views of an array, which may not change"""
    for seed in (43, 204):
        check_min_p(solution, *view_of_rows(seed=seed), 0.3, fact="min-p")


# ---- task 4: apply_repetition_penalty ----


def penalised64(x64, tokens, penalty):
    y = x64.copy()
    for token in set(tokens):
        column = x64[..., token]
        y[..., token] = np.where(column > 0, column / penalty, column * penalty)
    return y


# Halves of a unit in the last place: the penalty 1, its inverse or the division 5 on a GPU, the product 1.
PENALTY = 7


def check_penalty(solution, x, x64, tokens, penalty, *, fact):
    before = list(tokens)
    want = penalised64(x64, tokens, penalty)
    shown = str(tokens) if len(tokens) < 8 else f"{len(tokens)} ids"
    got = solution.apply_repetition_penalty(x, tokens, penalty)
    check.close(
        got,
        want,
        dtype=x.dtype,
        terms=1,
        roundings=PENALTY,
        magnitude=np.abs(np.where(np.isfinite(want), want, 0)),
        what=f"apply_repetition_penalty(logits, {shown}, {penalty}), "
        f"logits {tuple(x.shape)} {dtype_name(x.dtype)}",
        fact=fact,
    )
    check.unchanged(x64, x, what="logits after apply_repetition_penalty", fact="reads-logits")
    check.exact(tokens, before, what="tokens after apply_repetition_penalty", fact="reads-logits")


def logits_of(shape, dtype=F32, *, seed):
    """Random logits of both signs, none of them small: (array, float64 of its values)."""
    rng = np.random.default_rng(seed)
    x = mx.array((rng.uniform(0.5, 6, shape) * rng.choice([-1, 1], shape)).astype(np.float32)).astype(dtype)
    return x, as_float64(x)


@task(4)
@every_dtype
def test_penalty(solution, dtype):
    """positive logits and negative ones"""
    x, x64 = log_of(np.exp([2.0, -1.5, 0.5, 3.0, -0.25, -4.0, 1.0]), dtype)
    require((x64[[0, 1]] > 0).tolist() == [True, False], "the penalised logits have one sign")
    check_penalty(solution, x, x64, [0, 1, 5, 3], 2.0, fact="penalty-signs")


@task(4)
@pytest.mark.parametrize("shape", [(1, 7), (5, 7), (2, 3, 7)], ids=["one row", "1", "2"])
def test_penalty_shapes(solution, shape):
    """rows in which the same id has different signs"""
    x, x64 = logits_of(shape, seed=50)
    if shape != (1, 7):
        require(len(set(np.sign(x64[..., 2]).ravel())) == 2, "id 2 has one sign in all rows")
    check_penalty(solution, x, x64, [2, 6, 3], 1.5, fact="penalty-result")


@task(4)
@every_dtype
def test_penalty_repeated(solution, dtype):
    """ids that occur several times count once"""
    x, x64 = logits_of((2, 3, 7), dtype, seed=51)
    check_penalty(solution, x, x64, [4, 1, 4, 4, 0, 1, 4], 1.8, fact="penalty-once")


@task(4)
def test_penalty_long_history(solution):
    """more tokens so far than ids there are"""
    x, x64 = logits_of((1, 11), seed=52)
    tokens = np.random.default_rng(53).integers(0, 8, 60).tolist()
    require(set(tokens) == set(range(8)), "an id below 8 is missing")
    check_penalty(solution, x, x64, tokens, 1.3, fact="penalty-once")


@task(4)
def test_penalty_square(solution):
    """as many rows as ids: it is columns that are penalised"""
    check_penalty(solution, *logits_of((6, 6), seed=54), [1, 4], 2.0, fact="penalty-result")


@task(4)
@pytest.mark.parametrize(("tokens", "penalty"), [([], 2.0), ([1, 3, 3], 1.0), ([0], 1)])
def test_penalty_that_changes_nothing(solution, tokens, penalty):
    """no tokens yet, and a penalty of 1"""
    check_penalty(solution, *logits_of((2, 3, 7), seed=55), tokens, penalty, fact="penalty-result")


@task(4)
def test_penalty_below_one(solution):
    """a penalty below 1 encourages"""
    check_penalty(solution, *logits_of((3, 7), seed=56), [0, 2, 5], 0.5, fact="penalty-signs")


@task(4)
@every_dtype
def test_penalty_of_zero_and_infinity(solution, dtype):
    """a logit of 0 stays 0, one of -inf stays -inf"""
    x = mx.array([[0.0, -mx.inf, 2.0, -mx.inf, -3.0, 1.0]]).astype(dtype)
    check_penalty(solution, x, as_float64(x), [0, 1, 2, 4], 1.5, fact="penalty-signs")


@task(4)
def test_penalty_views(solution):
    """views of an array, which may not change"""
    for seed in (57, 58):
        x, x64 = logits_of((5, 2, 14), seed=seed)
        x, x64 = x.transpose(1, 0, 2)[..., ::2], x64.transpose(1, 0, 2)[..., ::2]
        check_penalty(solution, x, x64, [seed % 7, 3], 1.5, fact="reads-logits")


# ---- task 5: make_sampler ----


def sampler_of(solution, temp, top_p, top_k, *min_p):
    sampler = solution.make_sampler(temp, top_p, top_k, *min_p)
    shown = f"make_sampler({', '.join(str(a) for a in (temp, top_p, top_k, *min_p))})"
    check.exact(callable(sampler), True, what=f"whether {shown} can be called: is there a `return`?")
    return sampler, shown


def settled_set(x64, top_p, top_k, min_p=0.0):
    """The tokens that every filter keeps, each seeing x64 as it came."""
    keep = np.isfinite(x64)
    if top_k and top_k > 0:
        keep &= top_k_set(x64, top_k)
    if top_p and top_p < 1:
        keep &= top_p_set(x64, top_p)
    if min_p:
        keep &= min_p_set(x64, min_p)
    return keep


def check_sampler(solution, x, x64, settings, *, seed, fact, count=DRAWS):
    temp, *filters = settings
    sampler, shown = sampler_of(solution, *settings)
    keep = settled_set(x64, *filters)
    check_drawn(sampler, x, x64, temp, keep, seed=seed, what=shown, fact=fact, count=count)


@task(5)
@every_dtype
def test_sampler_greedy(solution, dtype):
    """temp 0, with filters and without"""
    x, x64 = random_rows((2, 3, 7), dtype, seed=60)
    for settings in ((0, None, None), (0.0, 0.9, 3, 0.1)):
        sampler, shown = sampler_of(solution, *settings)
        what = f"{shown}(logprobs), logprobs (2, 3, 7) {dtype_name(dtype)}"
        check_greedy(sampler, x, x64, what=what, fact="sampler-greedy")


@task(5)
@SHAPES
def test_sampler_shapes(solution, shape):
    """no leading axis, one and two, where only one token is left to draw"""
    x, x64 = random_rows(shape, seed=61)
    for settings in ((1.0, 0.01, 0), (1.0, 0, 1), (1.0, 0, 0, 1.0)):
        sampler, shown = sampler_of(solution, *settings)
        what = f"{shown}(logprobs), logprobs {shape} float32"
        check_greedy(sampler, x, x64, what=what, fact="sampler-result")


@task(5)
@pytest.mark.parametrize(
    "settings",
    [(1.0, None, None), (1.0, 0.7, 0), (1.0, None, 2), (1.0, 0, 0, 0.2), (0.5, None, None), (2.0, 1.0, -1)],
    ids=["plain", "top-p", "top-k", "min-p", "cold", "hot"],
)
def test_sampler_one_setting(solution, settings):
    """one setting at a time"""
    check_sampler(solution, *log_of(SIX), settings, seed=10, fact="sampler-order")


@task(5)
def test_sampler_temperature(solution):
    """a cold sampler and two tokens close to each other"""
    check_sampler(
        solution, *log_of([0.02, 0.52, 0.43, 0.03]), (0.1, None, None), seed=19, fact="sampler-result"
    )


@task(5)
@pytest.mark.parametrize(
    "settings",
    [(1.5, 0.5, 4, 0.05), (1.5, 0.98, 2, 0.05), (1.5, 0.98, 5, 0.5), (1.5, 0.85, 4, 0.2)],
    ids=["top-p decides", "top-k decides", "min-p decides", "all"],
)
def test_sampler_three_filters(solution, settings):
    """all three filters at once, of which the strictest decides"""
    check_sampler(solution, *log_of(SIX), settings, seed=11, fact="sampler-order")


@task(5)
@pytest.mark.parametrize("temp", [0.4, 4.0])
@pytest.mark.parametrize("filters", [(0.72, None), (None, None, 0.2)], ids=["top-p", "min-p"])
def test_sampler_temperature_last(solution, temp, filters):
    """a cold and a hot sampler keep the same tokens"""
    x, x64 = log_of(SIX)
    scaled = np.log(softmax64(x64 / temp))
    require((settled_set(scaled, *filters) != settled_set(x64, *filters)).any(), "temp changes nothing")
    check_sampler(solution, x, x64, (temp, *filters), seed=12, fact="sampler-order")


@task(5)
def test_sampler_filters_see_what_came_in(solution):
    """top-p after top-k sums probabilities that were not made up for what top-k took"""
    x, x64 = log_of(SIX)
    _, left = log_of(distribution(x64, 1.0, top_k_set(x64, 3)))
    require((top_p_set(left, 0.7) != settled_set(x64, 0.7, 3)).any(), "renormalising changes nothing")
    check_sampler(solution, x, x64, (1.0, 0.7, 3), seed=13, fact="sampler-order")


@task(5)
@pytest.mark.parametrize("settings", [(1.0, 0, 9), (1.0, 1.5, None, 0.0), (1.0, None, -3, 0)])
def test_sampler_off(solution, settings):
    """every way of turning the filters off"""
    temp, *_ = settings
    x, x64 = log_of(SIX)
    sampler, shown = sampler_of(solution, *settings)
    check_drawn(sampler, x, x64, temp, seed=14, what=shown, fact="sampler-off")


@task(5)
@every_dtype
def test_sampler_rows(solution, dtype):
    """rows of a batch, each filtered and drawn on its own"""
    x, x64 = random_rows((2, 3, 7), dtype, seed=2598)
    check_sampler(solution, x, x64, (1.5, 0.8, 4, 0.1), seed=15, fact="sampler-result", count=6000)


@task(5)
@every_dtype
def test_sampler_impossible_tokens(solution, dtype):
    """tokens at -inf never come out, and a hot sampler gives the others their chance"""
    x, x64 = log_of([0.0, 0.45, 0.0, 0.3, 0.05, 0.2], dtype)
    check_sampler(solution, x, x64, (30.0, 0.9, 5, 0.05), seed=16, fact="sampler-order", count=6000)


@task(5)
def test_sampler_again(solution):
    """two samplers used in turn: each keeps its settings, and call after call gives other tokens"""
    x, x64 = log_of(SIX)
    both = [
        (sampler_of(solution, 2.0, None, 4), (None, 4)),
        (sampler_of(solution, 2.0, 0.5, None), (0.5, None)),
    ]
    mx.random.seed(17)
    for (sampler, shown), filters in both:
        check.draws(
            one_by_one(lambda: sampler(x), 100),  # noqa: B023
            distribution(x64, 2.0, settled_set(x64, *filters)),
            count=100,
            what=f"{shown}(logprobs), logprobs (6,) float32, called again and again",
            fact="sampler-result",
        )
        check.unchanged(x64, x, what="logprobs after sampling", fact="reads-logprobs")


@task(5)
def test_sampler_seed(solution):
    """the same seed gives the same tokens"""
    x, _ = random_rows((2, 40, 11), seed=63)
    sampler, shown = sampler_of(solution, 1.5, 0.97, 9)
    check_repeats(
        lambda: sampler(x), seed=18, what=f"{shown}(logprobs) after the same mx.random.seed as before"
    )


@task(5)
def test_sampler_views(solution):
    """views of an array, which may not change"""
    x, x64 = view_of_rows(seed=64)
    sampler, shown = sampler_of(solution, 1.5, 0.9, 1)
    what = f"{shown}(logprobs), logprobs (2, 5, 7) and not contiguous"
    check_greedy(sampler, x, x64, what=what, fact="sampler-result")
    sampler, shown = sampler_of(solution, 0.7, 0.9, 5, 0.05)
    sampler(x)
    check.unchanged(x64, x, what="logprobs after sampling", fact="reads-logprobs")
