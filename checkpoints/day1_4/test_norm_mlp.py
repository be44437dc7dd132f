"""Day 1.4: RMSNorm, SiLU and Qwen2's MLP, against the same formulas in float64 NumPy.

On activations of size 1 most ways of misplacing eps are right to seven digits, so rows here are also quiet
(about 1e-3 and less), loud (hundreds, whose squares no float16 holds) and zero.
"""

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import as_float64, check, dtype_name, every_dtype, require, sample, task

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
LARGEST_F16 = 65504.0


# ---- oracles ----


def rms_norm64(x, weight, eps):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def silu64(x):
    with np.errstate(over="ignore"):  # exp(-x) is inf where silu is -0
        return x / (1 + np.exp(-x))


def linear64(x, w):
    """(x @ w.T, the size of the numbers summed: the root of the sum of their squares)."""
    return x @ w.T, np.sqrt((x**2) @ (w**2).T)


def mlp64(x, w_gate, w_up, w_down):
    """(Qwen2's MLP, the size of the numbers rounded on the way to each element)."""
    (gate, gate_size), (up, up_size) = linear64(x, w_gate), linear64(x, w_up)
    gate = silu64(gate)
    # An error of gate is multiplied by up and the other way round; silu's slope, at most 1.1, changes little.
    size = gate_size * np.abs(up) + np.abs(gate) * up_size + np.abs(gate * up)
    return linear64(gate * up, w_down)[0], np.sqrt((size**2) @ (w_down**2).T)


# ---- inputs ----


def exactly(values, dtype):
    """(array of dtype, float64 of its values)."""
    array = mx.array(np.asarray(values, dtype=np.float32)).astype(dtype)
    return array, as_float64(array)


def mean_square(x64):
    return (x64 * x64).mean(axis=-1)


def weights_of(dim, hidden_dim, dtype=F32, *, seed, gain=1.0):
    """w_gate, w_up and w_down: ([arrays], [their float64 values]). `gain` multiplies the first two."""
    shapes = ((hidden_dim, dim), (hidden_dim, dim), (dim, hidden_dim))
    scales = (gain * dim**-0.5, gain * dim**-0.5, hidden_dim**-0.5)
    pairs = [
        sample(s, dtype, seed=seed + i, scale=c) for i, (s, c) in enumerate(zip(shapes, scales, strict=True))
    ]
    return [a for a, _ in pairs], [a64 for _, a64 in pairs]


# ---- comparisons ----
# Roundings are counted in halves of a unit in the last place. A GPU's 1 / sqrt is good to 2 units, exp to 4.

# The square 1, the mean's division 1 (its sum comes in through `terms`), eps 1, 1 / sqrt 4, the product with
# x 1, the cast 1, the weight 1.
RMS_NORM = 10
# exp 8, the sum 1, the division 1, the product 1, the cast 1.
SILU = 12
# gate and up 1 each, silu, the product 1, the result 1.
MLP = SILU + 4


def check_rms_norm(solution, x, x64, eps, dtype=F32, *, fact, seed=1, note=""):
    """RMSNorm with a random weight, relative to each element: every rounding is of a factor."""
    dim = x64.shape[-1]
    weight, weight64 = sample((dim,), dtype, seed=seed, mean=1.0, scale=0.5)
    want = rms_norm64(x64, weight64, eps)
    check.close(
        solution.RMSNorm(dim, weight, eps)(x),
        want,
        dtype=dtype,
        terms=dim if dtype == F32 else 1,  # the sum is float32's in every dtype
        roundings=RMS_NORM,
        magnitude=np.abs(want),
        what=f"RMSNorm({dim}, weight, eps={eps})(x), x {tuple(x.shape)} {dtype_name(dtype)}{note}",
        fact=fact,
    )


def check_silu(solution, x, x64, dtype=F32, *, fact, note=""):
    """silu, relative to |x|: what is rounded is a sigmoid, between 0 and 1."""
    check.close(
        solution.silu(x),
        silu64(x64),
        dtype=dtype,
        terms=1,
        roundings=SILU,
        magnitude=np.abs(x64),
        what=f"silu(x), x {tuple(x.shape)} {dtype_name(dtype)}{note}",
        fact=fact,
    )


def check_mlp(mlp, weights64, x, x64, dtype=F32, *, fact, note=""):
    """The MLP on x."""
    hidden_dim, dim = weights64[0].shape
    want, size = mlp64(x64, *weights64)
    check.close(
        mlp(x),
        want,
        dtype=dtype,
        terms=max(dim, hidden_dim),
        roundings=MLP,
        magnitude=size,
        what=f"Qwen2MLP({dim}, {hidden_dim}, ...)(x), x {tuple(x.shape)} {dtype_name(dtype)}{note}",
        fact=fact,
    )


# ---- task 1: RMSNorm ----


@task(1)
@every_dtype
def test_rms_rows(solution, dtype):
    """rows of size 1 whose mean is not 0"""
    x, x64 = sample((3, 5, 24), dtype, seed=10, mean=1.5)
    require(x64.mean(axis=-1).min() > 0.5, "a row's mean is near 0")
    check_rms_norm(solution, x, x64, 1e-6, dtype, fact="rms-formula")


@task(1)
@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 4, 7)], ids=["0", "1", "3"])
def test_rms_leading_axes(solution, shape):
    """no leading axis, one, and three"""
    x, x64 = sample(shape, seed=12, mean=0.5)
    check_rms_norm(solution, x, x64, 1e-6, fact="rms-formula")


@task(1)
def test_rms_square(solution):
    """as many rows as columns, where a lost axis still broadcasts"""
    x, x64 = sample((6, 6), seed=14, mean=0.5)
    check_rms_norm(solution, x, x64, 1e-6, fact="rms-formula")


@task(1)
@every_dtype
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_rms_quiet_rows(solution, dtype, eps):
    """rows so quiet that eps counts: their mean square is about eps"""
    x, x64 = sample((2, 3, 16), dtype, seed=16, scale=eps**0.5, mean=0.3 * eps**0.5)
    ratio = mean_square(x64) / eps
    require(ratio.min() > 0.2 and ratio.max() < 5, "a row's mean square is not near eps")
    check_rms_norm(solution, x, x64, eps, dtype, fact="rms-formula", note=", mean square near eps")


@task(1)
@every_dtype
def test_rms_rows_below_eps(solution, dtype):
    """rows far below eps, whose squares float16 cannot hold"""
    x, x64 = sample((3, 16), dtype, seed=18, scale=1e-4, mean=5e-5)
    require(mean_square(x64).max() < 1e-7, "a row's mean square is not far below eps")
    check_rms_norm(solution, x, x64, 1e-6, dtype, fact="rms-formula", note=", mean square far below eps")


@task(1)
@every_dtype
def test_rms_squares_that_vanish(solution, dtype):
    """rows whose squares are 0 in float16, with an eps smaller still"""
    x, x64 = exactly([[1e-4, -1.5e-4, 0.7e-4, -1.2e-4], [1.0, -2.0, 0.5, 3.0]], dtype)
    require((as_float64((x * x).astype(F16))[0] == 0).all(), "float16 holds the squares")
    check_rms_norm(solution, x, x64, 1e-10, dtype, fact="rms-float32", note=", of size 1e-4")


@task(1)
@every_dtype
def test_rms_loud_rows(solution, dtype):
    """rows in the hundreds, whose squares float16 cannot hold"""
    x, x64 = sample((2, 3, 16), dtype, seed=20, scale=300.0, mean=200.0)
    require((x64**2).max(axis=-1).min() > LARGEST_F16, "float16 holds a row's squares")
    check_rms_norm(solution, x, x64, 1e-6, dtype, fact="rms-float32", note=", of size 300")


@task(1)
@every_dtype
def test_rms_wide_rows(solution, dtype):
    """rows of 896 numbers of size 20: the squares fit float16, their sum does not"""
    x, x64 = sample((2, 896), dtype, seed=22, scale=20.0)
    require((x64**2).max() < LARGEST_F16 < (x64**2).sum(axis=-1).min(), "the sum of squares fits float16")
    check_rms_norm(solution, x, x64, 1e-6, dtype, fact="rms-float32", note=", of size 20")


@task(1)
@every_dtype
def test_rms_zero_row(solution, dtype):
    """a row of zeros among others: it stays zero"""
    x, x64 = exactly(np.random.default_rng(24).normal(size=(4, 6)) * [[1], [0], [1], [1]], dtype)
    check_rms_norm(solution, x, x64, 1e-6, dtype, fact="rms-result", note=", one row of zeros")


@task(1)
def test_rms_again(solution):
    """one norm called on several inputs, each a view that may not change"""
    weight, weight64 = sample((6,), seed=26, mean=1.0, scale=0.5)
    norm = solution.RMSNorm(6, weight, 1e-5)
    for seed, rows in ((27, 5), (28, 5), (29, 3)):
        wide, wide64 = sample((12, rows, 2), seed=seed, mean=0.5)
        x, x64 = wide.transpose(2, 1, 0)[..., ::2], wide64.transpose(2, 1, 0)[..., ::2]
        want = rms_norm64(x64, weight64, 1e-5)
        check.close(
            norm(x),
            want,
            dtype=F32,
            terms=6,
            roundings=RMS_NORM,
            magnitude=np.abs(want),
            what=f"RMSNorm(6, weight, eps=1e-05)(x), x (2, {rows}, 6) and not contiguous",
            fact="reads-only",
        )
        check.unchanged(x64, x, what="x after RMSNorm", fact="reads-only")
    check.unchanged(weight64, weight, what="weight after RMSNorm")


# ---- task 2: silu ----


@task(2)
@every_dtype
def test_silu_around_zero(solution, dtype):
    """silu from -6 to 6"""
    x, x64 = exactly(np.linspace(-6, 6, 105).reshape(3, 5, 7), dtype)
    check_silu(solution, x, x64, dtype, fact="silu")


@task(2)
@every_dtype
def test_silu_near_zero(solution, dtype):
    """silu of small numbers, and of 0: half of them"""
    x, x64 = exactly([[0.0, 1e-4, -1e-4], [3e-3, -3e-3, 0.02]], dtype)
    check_silu(solution, x, x64, dtype, fact="silu")


@task(2)
@every_dtype
def test_silu_far_out(solution, dtype):
    """silu where exp overflows: x to the right, 0 to the left"""
    far = 60000.0 if dtype == F16 else 1e30
    x, x64 = exactly([[8, 12, 30, 90, far], [-8, -12, -30, -90, -far]], dtype)
    check_silu(solution, x, x64, dtype, fact="silu", note=f", from {-far:g} to {far:g}")


@task(2)
@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4, 5)], ids=["0", "1", "4"])
def test_silu_axes(solution, shape):
    """silu of no axis, one, and four"""
    x, x64 = sample(shape, seed=30, scale=3.0)
    check_silu(solution, x, x64, fact="silu")


@task(2)
def test_silu_again(solution):
    """silu of several views, which may not change"""
    for seed in (32, 33):
        wide, wide64 = sample((8, 5), seed=seed, scale=3.0)
        x, x64 = wide.T[:, ::2], wide64.T[:, ::2]
        check_silu(solution, x, x64, fact="reads-only", note=" and not contiguous")
        check.unchanged(x64, x, what="x after silu", fact="reads-only")


# ---- task 3: Qwen2's MLP ----


@task(3)
@every_dtype
def test_mlp(solution, dtype):
    """an MLP wider inside than outside"""
    weights, weights64 = weights_of(6, 14, dtype, seed=40, gain=1.5)
    x, x64 = sample((2, 5, 6), dtype, seed=43)
    check_mlp(solution.Qwen2MLP(6, 14, *weights), weights64, x, x64, dtype, fact="mlp-formula")


@task(3)
@every_dtype
def test_mlp_open_and_closed_gates(solution, dtype):
    """gates far open and far closed, where SiLU is x or 0"""
    weights, weights64 = weights_of(6, 14, dtype, seed=46, gain=12.0)
    x, x64 = sample((3, 4, 6), dtype, seed=49)
    gate = x64 @ weights64[0].T
    require(gate.max() > 20 and gate.min() < -20, "no gate is far open, or none is far closed")
    check_mlp(solution.Qwen2MLP(6, 14, *weights), weights64, x, x64, dtype, fact="mlp-result")


@task(3)
def test_mlp_square(solution):
    """an MLP as wide inside as outside, where a weight the wrong way round still fits"""
    weights, weights64 = weights_of(7, 7, seed=50, gain=1.5)
    x, x64 = sample((2, 5, 7), seed=53)
    check_mlp(solution.Qwen2MLP(7, 7, *weights), weights64, x, x64, fact="mlp-weights")


@task(3)
def test_mlp_narrow(solution):
    """an MLP narrower inside than outside"""
    weights, weights64 = weights_of(9, 4, seed=54, gain=1.5)
    x, x64 = sample((2, 5, 9), seed=57)
    check_mlp(solution.Qwen2MLP(9, 4, *weights), weights64, x, x64, fact="mlp-weights")


@task(3)
@pytest.mark.parametrize("shape", [(5, 6), (1, 1, 6), (2, 3, 4, 6)], ids=["1", "one token", "3"])
def test_mlp_leading_axes(solution, shape):
    """one leading axis, one token, and three leading axes"""
    weights, weights64 = weights_of(6, 14, seed=58, gain=1.5)
    x, x64 = sample(shape, seed=61)
    check_mlp(solution.Qwen2MLP(6, 14, *weights), weights64, x, x64, fact="mlp-result")


@task(3)
def test_mlp_again(solution):
    """one MLP called on several inputs, each a view that may not change"""
    weights, weights64 = weights_of(6, 14, seed=64, gain=1.5)
    mlp = solution.Qwen2MLP(6, 14, *weights)
    for seed, rows in ((67, 5), (68, 5), (69, 3)):
        wide, wide64 = sample((12, rows, 2), seed=seed)
        x, x64 = wide.transpose(2, 1, 0)[..., ::2], wide64.transpose(2, 1, 0)[..., ::2]
        check_mlp(mlp, weights64, x, x64, fact="reads-only", note=" and not contiguous")
        check.unchanged(x64, x, what="x after Qwen2MLP", fact="reads-only")
