"""Day 1.1: softmax, linear, attention, many heads, each against the same formula in float64 NumPy.

Dimensions differ from one another wherever the day's conventions let them, so that a mixed-up axis shows.
"""

import math

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import as_float64, check, dtype_name, every_dtype, require, sample, task

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
INF = np.inf


# ---- oracles ----


def softmax64(x, axis):
    exps = np.exp(x - x.max(axis=axis, keepdims=True))
    return exps / exps.sum(axis=axis, keepdims=True)


def linear64(x, w, bias=0.0):
    """(x @ w.T + bias, the size of the numbers summed for each element)."""
    return x @ w.T + bias, np.abs(x) @ np.abs(w).T + np.abs(bias)


def attention64(q, k, v, scale=None, mask=0.0):
    """(softmax(q k^T scale + mask) v, the size of the numbers rounded on the way to each element).

    An error d in a score is a relative error of about d in a weight, up to twice that after the division;
    with scores made of terms of size b, roundings of relative size u therefore cost (1 + 2 b) u of |v|.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    weights = softmax64(scale * (q @ k.swapaxes(-2, -1)) + mask, axis=-1)
    bound = scale * (np.abs(q) @ np.abs(k).swapaxes(-2, -1)) + np.where(np.isfinite(mask), np.abs(mask), 0)
    largest = np.where(weights > 0, bound, 0).max(axis=-1, keepdims=True)
    return weights @ v, (weights @ np.abs(v)) * (1 + 2 * largest)


def heads64(query, key, value, num_heads, wq, wk, wv, wo, mask=0.0):
    """(multi-head attention, the size of the numbers rounded on the way), head by head."""
    mask = np.broadcast_to(mask, (query.shape[0], num_heads, query.shape[1], query.shape[1]))
    q, k, v = query @ wq.T, key @ wk.T, value @ wv.T
    d = query.shape[-1] // num_heads
    outs, sizes = [], []
    for h in range(num_heads):
        own = slice(h * d, (h + 1) * d)
        out, size = attention64(q[..., own], k[..., own], v[..., own], mask=mask[:, h])
        outs.append(out)
        sizes.append(size)
    return np.concatenate(outs, axis=-1) @ wo.T, np.concatenate(sizes, axis=-1) @ np.abs(wo).T


# ---- inputs ----


def exactly(values, dtype):
    """(array of dtype, float64 of the same values) for values that dtype can hold, or that it rounds."""
    array = mx.array(np.asarray(values, dtype=np.float32)).astype(dtype)
    return array, as_float64(array)


def causal(length, dtype=F32):
    """The mask that hides every later key."""
    return exactly(np.triu(np.full((length, length), -INF), 1), dtype)


def hide_some(shape, seed, dtype=F32):
    """A mask of 0 and -inf that differs along every axis longer than 1 and hides no row completely."""
    hidden = np.random.default_rng(seed).random(shape) < 0.4
    hidden &= ~np.eye(shape[-1], dtype=bool)
    for axis, size in enumerate(shape):
        require(size == 1 or (hidden != np.roll(hidden, 1, axis)).any(), "the mask is the same along an axis")
    return exactly(np.where(hidden, -INF, 0.0), dtype)


def qkv(shape, dtype, seed, scale=1.0):
    """Three different samples, as ([q, k, v], [their float64 values])."""
    pairs = [sample(shape, dtype, seed=seed + i, scale=scale) for i in range(3)]
    return [a for a, _ in pairs], [a64 for _, a64 in pairs]


def weights(size, dtype, seed):
    """wq, wk, wv, wo of shape (size, size), scaled so that projecting keeps the size of its input."""
    pairs = [sample((size, size), dtype, seed=seed + i, scale=size**-0.5) for i in range(4)]
    return [a for a, _ in pairs], [a64 for _, a64 in pairs]


# ---- task 1: softmax ----
# roundings: the difference from the maximum 1, exp 2, the sum 1, the division 1, and 3 for those who
# divide by exp(logsumexp).


@task(1)
@every_dtype
def test_softmax_last_axis(solution, dtype):
    """softmax along the last axis"""
    x, x64 = sample((3, 5, 7), dtype, seed=1, scale=2.0)
    got = solution.softmax(x, axis=-1)
    check.close(
        got,
        softmax64(x64, -1),
        dtype=dtype,
        terms=7,
        what=f"softmax(x, axis=-1), x (3, 5, 7) {dtype_name(dtype)}",
        fact="softmax-axis",
    )


@task(1)
@pytest.mark.parametrize("axis", [0, 1, -2])
def test_softmax_other_axes(solution, axis):
    """softmax along an axis that is not the last"""
    x, x64 = sample((3, 5, 7), seed=2, scale=2.0)
    got = solution.softmax(x, axis=axis)
    what = f"softmax(x, axis={axis}), x (3, 5, 7)"
    check.close(got, softmax64(x64, axis), dtype=F32, terms=7, what=what, fact="softmax-axis")


@task(1)
def test_softmax_square(solution):
    """softmax of square arrays, where a lost axis does not show in the shape"""
    for seed, axis in ((3, -1), (4, -1), (5, 0)):
        x, x64 = sample((4, 4), seed=seed, scale=2.0)
        got = solution.softmax(x, axis=axis)
        what = f"softmax(x, axis={axis}), x (4, 4)"
        check.close(got, softmax64(x64, axis), dtype=F32, terms=4, what=what, fact="softmax-axis")


@task(1)
@pytest.mark.parametrize(("dtype", "height"), [(F32, 200), (F16, 25)], ids=["float32", "float16"])
def test_softmax_large(solution, dtype, height):
    """softmax of large numbers: one row high, one row low, one around zero"""
    noise = np.random.default_rng(6).normal(0.0, 2.0, (3, 7))
    x, x64 = exactly(noise + np.array([[height], [-height], [0]]), dtype)
    with np.errstate(over="ignore"):
        naive = np.exp(x64.astype(np.float32 if dtype == F32 else np.float16))
    require(
        np.isinf(naive[0]).all() and (naive[1] == 0).all(),
        "exp of these numbers is no trouble",
    )
    got = solution.softmax(x, axis=-1)
    check.close(
        got,
        softmax64(x64, -1),
        dtype=dtype,
        terms=7,
        # x - logsumexp(x) is a right way too, and rounds numbers of x's own size.
        magnitude=1 + height,
        what=f"softmax(x, axis=-1), x (3, 7) with rows around {height}, {-height} and 0, {dtype_name(dtype)}",
        fact="softmax-stable",
    )


@task(1)
@every_dtype
def test_softmax_edge_of_the_range(solution, dtype):
    """softmax where one entry is near the largest number there is"""
    top = 6e4 if dtype == F16 else 3e38
    x, _ = exactly([[top, -top, 1.0], [-top, 0.0, top], [-top, -1.0, -top]], dtype)
    got = solution.softmax(x, axis=-1)
    want = mx.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]], dtype)
    what = f"softmax(x, axis=-1), x (3, 3) with entries of {top:.0e}, {dtype_name(dtype)}"
    check.exact(got, want, what=what, fact="softmax-stable")


@task(1)
@every_dtype
def test_softmax_minus_infinity(solution, dtype):
    """softmax gives -inf the weight 0"""
    x, x64 = sample((4, 6), dtype, seed=7)
    hide = np.random.default_rng(8).random((4, 6)) < 0.5
    hide[:, 2] = False
    x, x64 = exactly(np.where(hide, -INF, x64), dtype)
    got = solution.softmax(x, axis=-1)
    what = f"softmax(x, axis=-1), x (4, 6) with -inf in it, {dtype_name(dtype)}"
    check.close(got, softmax64(x64, -1), dtype=dtype, terms=6, what=what, fact="softmax-stable")


@task(1)
def test_softmax_length_one(solution):
    """softmax along an axis of length 1 is 1"""
    x, _ = exactly([[3.5], [-120.0], [0.0]], F32)
    got = solution.softmax(x, axis=-1)
    check.exact(got, mx.ones((3, 1)), what="softmax(x, axis=-1), x (3, 1)", fact="softmax-axis")


@task(1)
def test_softmax_view(solution):
    """softmax of a transposed view"""
    base, base64 = sample((7, 10, 3), seed=9, scale=2.0)
    x, x64 = base[:, ::2].transpose(2, 1, 0), base64[:, ::2].transpose(2, 1, 0)
    got = solution.softmax(x, axis=1)
    what = "softmax(x, axis=1), x a transposed view (3, 5, 7)"
    check.close(got, softmax64(x64, 1), dtype=F32, terms=5, what=what, fact="softmax-axis")


@task(1)
def test_softmax_only_reads(solution):
    """softmax leaves its caller's array alone"""
    x, x64 = sample((3, 5), seed=10)
    got = solution.softmax(x, axis=-1)
    check.close(got, softmax64(x64, -1), dtype=F32, terms=5, what="softmax(x, axis=-1), x (3, 5)")
    check.unchanged(x64, x, what="x after softmax(x, axis=-1)", fact="softmax-reads")


# ---- task 2: linear ----
# roundings: a product 1, their sum 1 (as it grows: sqrt(terms)), the bias 1, the cast 1, and 2 to spare for
# devices that sum in blocks.


@task(2)
@every_dtype
def test_linear_without_bias(solution, dtype):
    """linear without a bias"""
    x, x64 = sample((2, 3, 7), dtype, seed=20)
    w, w64 = sample((5, 7), dtype, seed=21)
    want, size = linear64(x64, w64)
    got = solution.linear(x, w)
    what = f"linear(x, w), x (2, 3, 7), w (5, 7), {dtype_name(dtype)}"
    check.close(got, want, dtype=dtype, terms=7, roundings=6, magnitude=size, what=what, fact="linear-layout")


@task(2)
@every_dtype
def test_linear_with_bias(solution, dtype):
    """linear with a bias"""
    x, x64 = sample((2, 3, 7), dtype, seed=22)
    w, w64 = sample((5, 7), dtype, seed=23)
    bias, bias64 = sample((5,), dtype, seed=24, scale=3.0)
    want, size = linear64(x64, w64, bias64)
    got = solution.linear(x, w, bias)
    what = f"linear(x, w, bias), x (2, 3, 7), w (5, 7), bias (5,), {dtype_name(dtype)}"
    check.close(got, want, dtype=dtype, terms=8, roundings=6, magnitude=size, what=what, fact="linear-bias")


@task(2)
def test_linear_square(solution):
    """linear with a square weight, where a missing transpose does not show in the shape"""
    w, w64 = sample((6, 6), seed=25)
    for seed in (26, 27):
        x, x64 = sample((4, 6), seed=seed)
        want, size = linear64(x64, w64)
        got = solution.linear(x, w)
        what = "linear(x, w), x (4, 6), w (6, 6)"
        check.close(
            got, want, dtype=F32, terms=6, roundings=6, magnitude=size, what=what, fact="linear-layout"
        )


@task(2)
@pytest.mark.parametrize("lead", [(), (4,), (2, 3, 4)], ids=["no-axes", "one-axis", "three-axes"])
def test_linear_leading_axes(solution, lead):
    """linear on any number of leading axes"""
    x, x64 = sample((*lead, 7), seed=28)
    w, w64 = sample((5, 7), seed=29)
    bias, bias64 = sample((5,), seed=30)
    want, size = linear64(x64, w64, bias64)
    got = solution.linear(x, w, bias)
    what = f"linear(x, w, bias), x {(*lead, 7)}, w (5, 7)"
    check.close(got, want, dtype=F32, terms=8, roundings=6, magnitude=size, what=what, fact="linear-layout")


@task(2)
def test_linear_views(solution):
    """linear on transposed views"""
    x, x64 = sample((7, 3, 2), seed=31)
    w, w64 = sample((7, 10), seed=32)
    x, x64 = x.transpose(2, 1, 0), x64.transpose(2, 1, 0)
    w, w64 = w[:, ::2].T, w64[:, ::2].T
    want, size = linear64(x64, w64)
    got = solution.linear(x, w)
    what = "linear(x, w), x a view (2, 3, 7), w a view (5, 7)"
    check.close(got, want, dtype=F32, terms=7, roundings=6, magnitude=size, what=what, fact="linear-layout")


# ---- task 3: scaled_dot_product_attention_simple ----
# roundings: a score is rounded 4 times (scaling, product, mask, difference from the maximum), a weight 4
# (exp, sum, division, the cast back), the result 2; they are counted together, times the sizes of
# attention64. terms is the longest sum, D or L.


@task(3)
@every_dtype
def test_attention(solution, dtype):
    """attention with the default scale and no mask"""
    (q, k, v), arrays64 = qkv((2, 3, 5, 8), dtype, seed=40, scale=0.8)
    want, size = attention64(*arrays64)
    got = solution.scaled_dot_product_attention_simple(q, k, v)
    what = f"attention(q, k, v), each (2, 3, 5, 8) {dtype_name(dtype)}"
    check.close(got, want, dtype=dtype, terms=8, magnitude=size, what=what, fact="attention-scale")


@task(3)
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_attention_given_scale(solution, scale):
    """attention with a scale of the caller's"""
    (q, k, v), arrays64 = qkv((2, 3, 5, 8), F32, seed=43)
    want, size = attention64(*arrays64, scale=scale)
    got = solution.scaled_dot_product_attention_simple(q, k, v, scale=scale)
    what = f"attention(q, k, v, scale={scale}), each (2, 3, 5, 8)"
    check.close(got, want, dtype=F32, terms=8, magnitude=size, what=what, fact="attention-scale")


@task(3)
@every_dtype
def test_attention_causal_mask(solution, dtype):
    """attention under an (L, L) mask that hides later keys"""
    (q, k, v), arrays64 = qkv((2, 3, 5, 8), dtype, seed=46, scale=0.8)
    mask, mask64 = causal(5, dtype)
    want, size = attention64(*arrays64, mask=mask64)
    got = solution.scaled_dot_product_attention_simple(q, k, v, mask=mask)
    what = f"attention(q, k, v, mask=mask), each (2, 3, 5, 8), mask (5, 5) of 0 and -inf, {dtype_name(dtype)}"
    check.close(got, want, dtype=dtype, terms=8, magnitude=size, what=what, fact="attention-mask")


@task(3)
@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (2, 3, 5, 5)], ids=["N1LL", "NHLL"])
def test_attention_mask_shapes(solution, shape):
    """attention under a mask with batch and head axes"""
    (q, k, v), arrays64 = qkv((2, 3, 5, 8), F32, seed=49)
    mask, mask64 = hide_some(shape, seed=52)
    want, size = attention64(*arrays64, mask=mask64)
    got = solution.scaled_dot_product_attention_simple(q, k, v, mask=mask)
    what = f"attention(q, k, v, mask=mask), each (2, 3, 5, 8), mask {shape} of 0 and -inf"
    check.close(got, want, dtype=F32, terms=8, magnitude=size, what=what, fact="attention-mask")


@task(3)
def test_attention_finite_mask(solution):
    """attention under a mask of finite numbers: scale first, then add"""
    (q, k, v), arrays64 = qkv((2, 3, 5, 8), F32, seed=53)
    mask, mask64 = sample((5, 5), seed=56, scale=2.0)
    want, size = attention64(*arrays64, mask=mask64)
    got = solution.scaled_dot_product_attention_simple(q, k, v, mask=mask)
    what = "attention(q, k, v, mask=mask), each (2, 3, 5, 8), mask (5, 5) of finite numbers"
    check.close(got, want, dtype=F32, terms=8, magnitude=size, what=what, fact="attention-mask")


@task(3)
@pytest.mark.parametrize(
    ("dtype", "mask_dtype"),
    [(F32, BF16), (F16, F32), (BF16, F32)],
    ids=["float32-bfloat16", "float16-float32", "bfloat16-float32"],
)
def test_attention_mask_dtype(solution, dtype, mask_dtype):
    """attention keeps the query's dtype when the mask has another"""
    (q, k, v), arrays64 = qkv((2, 3, 5, 8), dtype, seed=57, scale=0.8)
    mask, mask64 = causal(5, mask_dtype)
    want, size = attention64(*arrays64, mask=mask64)
    got = solution.scaled_dot_product_attention_simple(q, k, v, mask=mask)
    what = f"attention(q, k, v, mask=mask), q {dtype_name(dtype)}, mask {dtype_name(mask_dtype)}"
    check.close(got, want, dtype=dtype, terms=8, magnitude=size, what=what, fact="attention-dtype")


@task(3)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3, 4)], ids=["no-axes", "one-axis", "three-axes"])
def test_attention_leading_axes(solution, lead):
    """attention on any number of leading axes"""
    (q, k, v), arrays64 = qkv((*lead, 5, 8), F32, seed=60)
    mask, mask64 = causal(5)
    want, size = attention64(*arrays64, mask=mask64)
    got = solution.scaled_dot_product_attention_simple(q, k, v, mask=mask)
    what = f"attention(q, k, v, mask=mask), each {(*lead, 5, 8)}, mask (5, 5)"
    check.close(got, want, dtype=F32, terms=8, magnitude=size, what=what, fact="attention-axes")


@task(3)
@pytest.mark.parametrize(("dtype", "spread"), [(F32, 12.0), (F16, 3.0)], ids=["float32", "float16"])
def test_attention_large_scores(solution, dtype, spread):
    """attention with scores whose exp overflows"""
    (q, k, v), (q64, k64, v64) = qkv((2, 3, 5, 8), dtype, seed=63, scale=spread)
    limit = 89 if dtype == F32 else 11.1  # exp of more is inf
    require(np.max(q64 @ k64.swapaxes(-2, -1)) / math.sqrt(8) > limit, "no score is large enough")
    want, size = attention64(q64, k64, v64)
    got = solution.scaled_dot_product_attention_simple(q, k, v)
    what = f"attention(q, k, v), each (2, 3, 5, 8), scores beyond {limit}, {dtype_name(dtype)}"
    check.close(got, want, dtype=dtype, terms=8, magnitude=size, what=what, fact="softmax-stable")


@task(3)
@every_dtype
def test_attention_one_token(solution, dtype):
    """attention of a single token is its value"""
    (q, k, v), arrays64 = qkv((1, 3, 1, 8), dtype, seed=66)
    want, size = attention64(*arrays64)
    got = solution.scaled_dot_product_attention_simple(q, k, v)
    what = f"attention(q, k, v), each (1, 3, 1, 8) {dtype_name(dtype)}"
    check.close(got, want, dtype=dtype, terms=8, magnitude=size, what=what, fact="attention-scale")


@task(3)
def test_attention_views(solution):
    """attention on transposed views, as multi-head attention makes them"""
    arrays, arrays64 = qkv((2, 5, 3, 8), F32, seed=69)
    q, k, v = (a.transpose(0, 2, 1, 3) for a in arrays)
    want, size = attention64(*(a.transpose(0, 2, 1, 3) for a in arrays64))
    got = solution.scaled_dot_product_attention_simple(q, k, v)
    what = "attention(q, k, v), each a view (2, 3, 5, 8)"
    check.close(got, want, dtype=F32, terms=8, magnitude=size, what=what, fact="attention-axes")


@task(3)
def test_attention_only_reads(solution):
    """attention leaves its caller's arrays alone"""
    arrays, arrays64 = qkv((3, 5, 8), F32, seed=72)
    want, size = attention64(*arrays64)
    got = solution.scaled_dot_product_attention_simple(*arrays)
    what = "attention(q, k, v), each (3, 5, 8)"
    check.close(got, want, dtype=F32, terms=8, magnitude=size, what=what, fact="attention-axes")
    for name, array, before in zip(("query", "key", "value"), arrays, arrays64, strict=True):
        check.unchanged(
            before, array, what=f"{name} after attention(query, key, value)", fact="attention-reads"
        )


# ---- task 4: SimpleMultiHeadAttention ----
# roundings: those of attention, and one for each of the two projections before and after it.


@task(4)
@every_dtype
def test_heads(solution, dtype):
    """multi-head attention without a mask"""
    arrays, arrays64 = qkv((2, 5, 12), dtype, seed=80, scale=0.6)
    ws, ws64 = weights(12, dtype, seed=83)
    want, size = heads64(*arrays64, 3, *ws64)
    got = solution.SimpleMultiHeadAttention(12, 3, *ws)(*arrays)
    what = f"SimpleMultiHeadAttention(12, 3, ...)(q, k, v), each (2, 5, 12) {dtype_name(dtype)}"
    check.close(got, want, dtype=dtype, terms=12, roundings=10, magnitude=size, what=what, fact="heads-split")


@task(4)
@pytest.mark.parametrize("shape", [(5, 5), (2, 1, 5, 5), (2, 3, 5, 5)], ids=["LL", "N1LL", "NHLL"])
def test_heads_mask_shapes(solution, shape):
    """multi-head attention under each shape of mask"""
    arrays, arrays64 = qkv((2, 5, 12), F32, seed=87)
    ws, ws64 = weights(12, F32, seed=90)
    mask, mask64 = hide_some(shape, seed=94)
    want, size = heads64(*arrays64, 3, *ws64, mask=mask64)
    got = solution.SimpleMultiHeadAttention(12, 3, *ws)(*arrays, mask=mask)
    what = f"SimpleMultiHeadAttention(12, 3, ...)(q, k, v, mask=mask), each (2, 5, 12), mask {shape}"
    check.close(got, want, dtype=F32, terms=12, roundings=10, magnitude=size, what=what, fact="heads-mask")


@task(4)
@pytest.mark.parametrize("dtype", [F16, BF16], ids=dtype_name)
def test_heads_mask_dtype(solution, dtype):
    """multi-head attention keeps the query's dtype when the mask is float32"""
    arrays, arrays64 = qkv((2, 5, 12), dtype, seed=95, scale=0.6)
    ws, ws64 = weights(12, dtype, seed=98)
    mask, mask64 = causal(5)
    want, size = heads64(*arrays64, 3, *ws64, mask=mask64)
    got = solution.SimpleMultiHeadAttention(12, 3, *ws)(*arrays, mask=mask)
    what = f"SimpleMultiHeadAttention(12, 3, ...)(q, k, v, mask=mask), q {dtype_name(dtype)}, mask float32"
    check.close(
        got, want, dtype=dtype, terms=12, roundings=10, magnitude=size, what=what, fact="attention-dtype"
    )


@task(4)
@pytest.mark.parametrize(
    ("batch", "length", "num_heads"),
    [(1, 5, 3), (2, 1, 3), (3, 5, 1), (2, 4, 4)],
    ids=["batch-1", "length-1", "one-head", "as-many-heads-as-tokens"],
)
def test_heads_special_sizes(solution, batch, length, num_heads):
    """multi-head attention at sizes where two axes are alike"""
    arrays, arrays64 = qkv((batch, length, 12), F32, seed=102)
    ws, ws64 = weights(12, F32, seed=105)
    want, size = heads64(*arrays64, num_heads, *ws64)
    got = solution.SimpleMultiHeadAttention(12, num_heads, *ws)(*arrays)
    what = f"SimpleMultiHeadAttention(12, {num_heads}, ...)(q, k, v), each {(batch, length, 12)}"
    check.close(got, want, dtype=F32, terms=12, roundings=10, magnitude=size, what=what, fact="heads-split")


@task(4)
def test_heads_views(solution):
    """multi-head attention on transposed views, weights included"""
    arrays, arrays64 = qkv((5, 2, 12), F32, seed=109)
    ws, ws64 = weights(12, F32, seed=112)
    arrays, arrays64 = [a.transpose(1, 0, 2) for a in arrays], [a.transpose(1, 0, 2) for a in arrays64]
    want, size = heads64(*arrays64, 3, *(w.T for w in ws64))
    got = solution.SimpleMultiHeadAttention(12, 3, *(w.T for w in ws))(*arrays)
    what = "SimpleMultiHeadAttention(12, 3, ...)(q, k, v), each a view (2, 5, 12), weights as views"
    check.close(got, want, dtype=F32, terms=12, roundings=10, magnitude=size, what=what, fact="heads-weights")


@task(4)
def test_heads_used_again(solution):
    """one multi-head attention called for different inputs and lengths"""
    ws, ws64 = weights(12, F32, seed=116)
    attention = solution.SimpleMultiHeadAttention(12, 3, *ws)
    for seed, length in ((120, 5), (123, 5), (126, 7)):
        arrays, arrays64 = qkv((2, length, 12), F32, seed=seed)
        want, size = heads64(*arrays64, 3, *ws64)
        what = f"the same SimpleMultiHeadAttention(12, 3, ...) on new arrays (2, {length}, 12)"
        got = attention(*arrays)
        check.close(
            got, want, dtype=F32, terms=12, roundings=10, magnitude=size, what=what, fact="heads-weights"
        )
