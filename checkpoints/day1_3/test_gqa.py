"""Day 1.3: the causal mask, attention in groups, Qwen2's attention layer, against the formulas in float64 NumPy.

Dimensions differ from one another, L from S, and there are two or more KV heads, so that a mixed-up axis, a
mask at the wrong end and tiled heads all show.
"""

import mlx.core as mx
import numpy as np
import pytest
from tinyllm.grader.testing import as_float64, check, dtype_name, every_dtype, require, sample, task

F32, F16 = mx.float32, mx.float16
INF = np.inf


# ---- oracles ----
# Beside its result each gives the size of the numbers that are rounded on the way to an element. Sums of
# terms with independent roundings have the size of the root of the sum of squares.


def causal64(L, S):
    """0 where query i, at position S - L + i, may look; -inf elsewhere."""
    mask = np.zeros((L, S))
    for i in range(L):
        mask[i, S - L + i + 1 :] = -INF
    return mask


def linear64(x, w, bias=0.0):
    return x @ w.T + bias, np.sqrt((x**2) @ (w**2).T + bias**2)


def attention64(q, k, v, scale=None, mask=0.0):
    """Every KV head repeated for its group, then plain attention: (result, size).

    An error d in a score is a relative error of about d in a weight, and up to twice that after the division.
    With scores of size b, roundings of relative size u therefore cost (1 + 2 b) u of the values.
    """
    group = q.shape[-3] // k.shape[-3]
    k, v = np.repeat(k, group, axis=-3), np.repeat(v, group, axis=-3)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * (q @ k.swapaxes(-2, -1)) + mask
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    bias = np.where(np.isfinite(mask), np.abs(mask), 0.0)
    size = abs(scale) * np.sqrt((q**2) @ (k**2).swapaxes(-2, -1)) + bias
    size = np.where(weights > 0, size, 0).max(axis=-1, keepdims=True)
    return weights @ v, (weights @ np.abs(v)) * (1 + 2 * size)


def rope64(x, theta):
    """x (N, L, H, D) turned to positions 0 to L - 1, in split halves."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * float(theta) ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def layer64(x, w, num_heads, theta, mask=0.0):
    """Qwen2's attention layer: (result, size). `w` holds float64 arrays by their argument's name."""
    N, L, E = x.shape
    D = E // num_heads
    q, k, v = (linear64(x, w["w" + n], w["b" + n])[0].reshape(N, L, -1, D) for n in "qkv")
    q, k = rope64(q, theta), rope64(k, theta)
    out, size = attention64(*(a.swapaxes(1, 2) for a in (q, k, v)), mask=mask)
    out, size = (a.swapaxes(1, 2).reshape(N, L, E) for a in (out, size))
    return linear64(out, w["wo"])[0], np.sqrt((size**2) @ (w["wo"] ** 2).T)


# ---- inputs ----


def exactly(values, dtype):
    """(array of dtype, float64 of its values)."""
    array = mx.array(np.asarray(values, dtype=np.float32)).astype(dtype)
    return array, as_float64(array)


def qkv(query_shape, kv_shape, dtype=F32, *, seed, scale=1.0):
    """Samples of query, key and value: ([arrays], [their float64 values])."""
    shapes = (query_shape, kv_shape, kv_shape)
    pairs = [sample(s, dtype, seed=seed + i, scale=scale) for i, s in enumerate(shapes)]
    return [a for a, _ in pairs], [a64 for _, a64 in pairs]


def some_mask(shape, dtype=F32, *, seed):
    """A mask of -inf and finite biases that differs along every axis and leaves each query its last key."""
    rng = np.random.default_rng(seed)
    hidden = rng.random(shape) < 0.4
    hidden[..., -1] = False
    require(0 < hidden.sum() < hidden.size, "the mask hides nothing, or everything")
    return exactly(np.where(hidden, -INF, rng.normal(0.0, 1.5, shape)), dtype)


def layer_of(solution, num_heads, num_kv_heads, head_dim, dtype=F32, *, seed, **options):
    """(a Qwen2MultiHeadAttention with random weights and biases, the float64 weights by name)."""
    E, kv = num_heads * head_dim, num_kv_heads * head_dim
    require(num_heads > num_kv_heads > 1, "the layer shares no KV heads, or has only one")
    shapes = {"wq": (E, E), "wk": (kv, E), "wv": (kv, E), "wo": (E, E), "bq": (E,), "bk": (kv,), "bv": (kv,)}
    arrays, values = {}, {}
    for i, (name, shape) in enumerate(shapes.items()):
        scale = 0.6 if name.startswith("b") else E**-0.5
        arrays[name], values[name] = sample(shape, dtype, seed=seed + i, scale=scale)
    options = {"max_seq_len": 64, **options}
    return solution.Qwen2MultiHeadAttention(E, num_heads, num_kv_heads, **arrays, **options), values


def shapes_of(*arrays):
    return ", ".join(str(tuple(a.shape)) for a in arrays)


# ---- task 1: the causal mask ----


@task(1)
@every_dtype
def test_mask_square(solution, dtype):
    """the mask of a whole prompt, L = S"""
    for n in (4, 7):
        check.exact(
            solution.causal_mask(n, n, dtype),
            exactly(causal64(n, n), dtype)[0],
            what=f"causal_mask({n}, {n}, {dtype_name(dtype)})",
            fact="causal-mask",
        )


@task(1)
@every_dtype
def test_mask_after_earlier_keys(solution, dtype):
    """the mask of L queries at the end of more keys, L < S"""
    for L, S in ((2, 5), (3, 8), (6, 7)):
        check.exact(
            solution.causal_mask(L, S, dtype),
            exactly(causal64(L, S), dtype)[0],
            what=f"causal_mask({L}, {S}, {dtype_name(dtype)})",
            fact="causal-mask",
        )


@task(1)
@every_dtype
def test_mask_far_positions(solution, dtype):
    """the mask at positions beyond 2048, which half precision cannot count"""
    L, S = 3, 2100
    require(float(mx.array(S - 1).astype(mx.float16)) != S - 1, "float16 holds the positions exactly")
    check.exact(
        solution.causal_mask(L, S, dtype),
        exactly(causal64(L, S), dtype)[0],
        what=f"causal_mask({L}, {S}, {dtype_name(dtype)})",
        fact="causal-mask",
    )


@task(1)
def test_mask_of_one_query(solution):
    """the mask of a single query: it sees every key"""
    for L, S in ((1, 6), (1, 1), (2, 6)):
        check.exact(
            solution.causal_mask(L, S, F32),
            exactly(causal64(L, S), F32)[0],
            what=f"causal_mask({L}, {S}, float32)",
            fact="causal-mask",
        )


# ---- task 2: attention in groups ----
# roundings: the score 1, scale 1, mask 1, the difference from the maximum 1, exp 2, the division 1, the
# weights' cast 1, the sum's result 1. The sums over D and S come in through `terms`.
ATTENTION = 9


@task(2)
@every_dtype
def test_grouped_in_threes(solution, dtype):
    """six query heads on two KV heads, without a mask"""
    for seed in (10, 13):  # two inputs of one shape
        (q, k, v), values = qkv((3, 6, 5, 8), (3, 2, 7, 8), dtype, seed=seed)
        want, size = attention64(*values)
        check.close(
            solution.scaled_dot_product_attention_grouped(q, k, v),
            want,
            dtype=dtype,
            terms=8,
            roundings=ATTENTION,
            magnitude=size,
            what=f"scaled_dot_product_attention_grouped(query, key, value), {shapes_of(q, k, v)}",
            fact="head-groups",
        )


@task(2)
@every_dtype
def test_grouped_in_pairs(solution, dtype):
    """six query heads on three KV heads, without a mask"""
    (q, k, v), values = qkv((2, 6, 4, 8), (2, 3, 7, 8), dtype, seed=20)
    want, size = attention64(*values)
    check.close(
        solution.scaled_dot_product_attention_grouped(q, k, v),
        want,
        dtype=dtype,
        terms=8,
        roundings=ATTENTION,
        magnitude=size,
        what=f"scaled_dot_product_attention_grouped(query, key, value), {shapes_of(q, k, v)}",
        fact="head-groups",
    )


@task(2)
@pytest.mark.parametrize(("H_q", "H"), [(5, 1), (3, 3)], ids=["one KV head", "as many KV heads"])
def test_grouped_extremes(solution, H_q, H):
    """one KV head for all query heads, and one for each"""
    (q, k, v), values = qkv((2, H_q, 4, 8), (2, H, 7, 8), seed=23)
    want, size = attention64(*values)
    check.close(
        solution.scaled_dot_product_attention_grouped(q, k, v),
        want,
        dtype=F32,
        terms=8,
        roundings=ATTENTION,
        magnitude=size,
        what=f"scaled_dot_product_attention_grouped(query, key, value), {shapes_of(q, k, v)}",
        fact="head-groups",
    )


@task(2)
@pytest.mark.parametrize("batch", [(), (2, 3)], ids=["no batch axis", "two batch axes"])
def test_grouped_batch_axes(solution, batch):
    """no batch axis, and two, with and without "causal" """
    for mask in (None, "causal"):
        (q, k, v), values = qkv((*batch, 6, 4, 8), (*batch, 2, 7, 8), seed=26)
        want, size = attention64(*values, mask=0.0 if mask is None else causal64(4, 7))
        check.close(
            solution.scaled_dot_product_attention_grouped(q, k, v, mask=mask),
            want,
            dtype=F32,
            terms=8,
            roundings=ATTENTION,
            magnitude=size,
            what=f"scaled_dot_product_attention_grouped(query, key, value, mask={mask!r}), {shapes_of(q, k, v)}",
            fact="grouped-mask",
        )


@task(2)
@every_dtype
def test_grouped_scale(solution, dtype):
    """a scale of the caller's own"""
    scale = 0.85
    (q, k, v), values = qkv((2, 6, 5, 8), (2, 2, 7, 8), dtype, seed=30)
    require(abs(scale - 8**-0.5) > 0.2, "the scale is nearly the default")
    want, size = attention64(*values, scale=scale)
    check.close(
        solution.scaled_dot_product_attention_grouped(q, k, v, scale=scale),
        want,
        dtype=dtype,
        terms=8,
        roundings=ATTENTION,
        magnitude=size,
        what=f"scaled_dot_product_attention_grouped(query, key, value, scale={scale}), {shapes_of(q, k, v)}",
        fact="grouped-scale",
    )


@task(2)
@every_dtype
def test_grouped_causal_after_earlier_keys(solution, dtype):
    """mask="causal" for queries at the end of more keys"""
    (q, k, v), values = qkv((3, 6, 5, 8), (3, 2, 9, 8), dtype, seed=40)
    want, size = attention64(*values, mask=causal64(5, 9))
    check.close(
        solution.scaled_dot_product_attention_grouped(q, k, v, mask="causal"),
        want,
        dtype=dtype,
        terms=9,
        roundings=ATTENTION,
        magnitude=size,
        what=f'scaled_dot_product_attention_grouped(query, key, value, mask="causal"), {shapes_of(q, k, v)}',
        fact="grouped-mask",
    )


@task(2)
@pytest.mark.parametrize(("L", "S"), [(6, 6), (1, 6)], ids=["whole prompt", "one query"])
def test_grouped_causal(solution, L, S):
    """mask="causal" for a whole prompt, and for one query"""
    (q, k, v), values = qkv((2, 4, L, 10), (2, 2, S, 10), seed=43)
    want, size = attention64(*values, mask=causal64(L, S))
    check.close(
        solution.scaled_dot_product_attention_grouped(q, k, v, mask="causal"),
        want,
        dtype=F32,
        terms=10,
        roundings=ATTENTION,
        magnitude=size,
        what=f'scaled_dot_product_attention_grouped(query, key, value, mask="causal"), {shapes_of(q, k, v)}',
        fact="grouped-mask",
    )


@task(2)
@pytest.mark.parametrize(
    "shape",
    [(5, 7), (3, 1, 5, 7), (3, 6, 5, 7), (6, 1, 7)],
    ids=["(L, S)", "(N, 1, L, S)", "(N, H_q, L, S)", "(H_q, 1, S)"],
)
def test_grouped_mask_array(solution, shape):
    """a mask array of -inf and finite biases, in every shape that broadcasts"""
    (q, k, v), values = qkv((3, 6, 5, 8), (3, 2, 7, 8), seed=50)
    mask, mask64 = some_mask(shape, seed=53)
    want, size = attention64(*values, mask=mask64)
    check.close(
        solution.scaled_dot_product_attention_grouped(q, k, v, mask=mask),
        want,
        dtype=F32,
        terms=8,
        roundings=ATTENTION,
        magnitude=size,
        what=f"scaled_dot_product_attention_grouped(query, key, value, mask=mask), {shapes_of(q, k, v)}, "
        f"mask {shapes_of(mask)}",
        fact="grouped-mask",
    )


@task(2)
def test_grouped_mask_as_many_prompts_as_kv_heads(solution):
    """a mask for each prompt where N = H, so that a mask on the wrong axis still broadcasts"""
    (q, k, v), values = qkv((2, 6, 5, 8), (2, 2, 7, 8), seed=56)
    mask, mask64 = some_mask((2, 1, 5, 7), seed=59)
    require(q.shape[0] == k.shape[1], "N must equal H here")
    want, size = attention64(*values, mask=mask64)
    check.close(
        solution.scaled_dot_product_attention_grouped(q, k, v, mask=mask),
        want,
        dtype=F32,
        terms=8,
        roundings=ATTENTION,
        magnitude=size,
        what=f"scaled_dot_product_attention_grouped(query, key, value, mask=mask), {shapes_of(q, k, v)}, "
        f"mask {shapes_of(mask)}",
        fact="grouped-mask",
    )


@task(2)
@every_dtype
def test_grouped_mask_of_other_dtype(solution, dtype):
    """a mask whose dtype is not the query's"""
    other = F16 if dtype == F32 else F32
    (q, k, v), values = qkv((3, 6, 5, 8), (3, 2, 7, 8), dtype, seed=60)
    mask, mask64 = some_mask((5, 7), other, seed=63)
    want, size = attention64(*values, scale=0.4, mask=mask64)
    check.close(
        solution.scaled_dot_product_attention_grouped(q, k, v, scale=0.4, mask=mask),
        want,
        dtype=dtype,
        terms=8,
        roundings=ATTENTION,
        magnitude=size,
        what=f"scaled_dot_product_attention_grouped(query, key, value, scale=0.4, mask=mask), "
        f"{shapes_of(q, k, v)} {dtype_name(dtype)}, mask {shapes_of(mask)} {dtype_name(other)}",
        fact="grouped-result",
    )


@task(2)
def test_grouped_large_scores(solution):
    """scores beyond the range of exp"""
    (q, k, v), values = qkv((2, 6, 5, 8), (2, 2, 7, 8), seed=70, scale=10.0)
    scores = values[0][:, :2] @ values[1].swapaxes(-2, -1) * 8**-0.5
    require(scores.max() > 89 and scores.min() < -89, "exp of the scores stays in float32's range")
    want, size = attention64(*values)
    check.close(
        solution.scaled_dot_product_attention_grouped(q, k, v),
        want,
        dtype=F32,
        terms=8,
        roundings=ATTENTION,
        magnitude=size,
        what=f"scaled_dot_product_attention_grouped(query, key, value) with scores near 100, "
        f"{shapes_of(q, k, v)}",
        fact="grouped-scale",
    )


@task(2)
def test_grouped_views(solution):
    """query, key and value as views of other arrays; none of them may change"""
    (q, k, v), values = qkv((3, 5, 6, 8), (3, 7, 2, 16), seed=80)
    q, q64 = q.transpose(0, 2, 1, 3), values[0].transpose(0, 2, 1, 3)
    k, k64 = k.transpose(0, 2, 1, 3)[..., ::2], values[1].transpose(0, 2, 1, 3)[..., ::2]
    v, v64 = v.transpose(0, 2, 1, 3)[..., 8:], values[2].transpose(0, 2, 1, 3)[..., 8:]
    mask, mask64 = some_mask((5, 7), seed=83)
    want, size = attention64(q64, k64, v64, scale=0.5, mask=mask64)
    check.close(
        solution.scaled_dot_product_attention_grouped(q, k, v, scale=0.5, mask=mask),
        want,
        dtype=F32,
        terms=8,
        roundings=ATTENTION,
        magnitude=size,
        what=f"scaled_dot_product_attention_grouped(query, key, value, scale=0.5, mask=mask) of transposed "
        f"and sliced arrays, {shapes_of(q, k, v)}",
        fact="grouped-reads-only",
    )
    for name, array, before in (
        ("query", q, q64),
        ("key", k, k64),
        ("value", v, v64),
        ("mask", mask, mask64),
    ):
        check.unchanged(before, array, what=f"{name} after scaled_dot_product_attention_grouped")


# ---- task 3: Qwen2's attention layer ----
# roundings: those of attention, and twice (query and key) the projection 1, the bias 1 and RoPE 4, then the
# value's projection and bias 2 and wo 1. The angles are float32 in every dtype: with positions up to L they
# are off by some L roundings of float32.


def layer_roundings(dtype, L):
    return ATTENTION + 2 * 6 + 3 + (2 * L if dtype == F32 else 0)


@task(3)
@every_dtype
def test_layer_without_mask(solution, dtype):
    """the layer with groups of three, every token seeing every token"""
    layer, w = layer_of(solution, 6, 2, 8, dtype, seed=100, theta=1000000)
    x, x64 = sample((3, 5, 48), dtype, seed=110)
    want, size = layer64(x64, w, 6, 1000000)
    check.close(
        layer(x),
        want,
        dtype=dtype,
        terms=48,
        roundings=layer_roundings(dtype, 5),
        magnitude=size,
        what="Qwen2MultiHeadAttention(48, 6, 2, ...)(x), x (3, 5, 48)",
        fact="layer-weights",
    )


@task(3)
@every_dtype
def test_layer_causal(solution, dtype):
    """the layer with groups of two and mask="causal" """
    layer, w = layer_of(solution, 4, 2, 6, dtype, seed=120, theta=1000000)
    x, x64 = sample((3, 7, 24), dtype, seed=130)
    want, size = layer64(x64, w, 4, 1000000, mask=causal64(7, 7))
    check.close(
        layer(x, mask="causal"),
        want,
        dtype=dtype,
        terms=24,
        roundings=layer_roundings(dtype, 7),
        magnitude=size,
        what='Qwen2MultiHeadAttention(24, 4, 2, ...)(x, mask="causal"), x (3, 7, 24)',
        fact="layer-mask",
    )


@task(3)
@pytest.mark.parametrize(
    "shape", [(5, 5), (2, 1, 5, 5), (2, 6, 5, 5)], ids=["(L, L)", "(N, 1, L, L)", "(N, H_q, L, L)"]
)
def test_layer_mask_array(solution, shape):
    """the layer with a mask array"""
    layer, w = layer_of(solution, 6, 2, 8, seed=140)
    x, x64 = sample((2, 5, 48), seed=150)
    mask, mask64 = some_mask(shape, seed=151)
    want, size = layer64(x64, w, 6, 1000000, mask=mask64)
    check.close(
        layer(x, mask),
        want,
        dtype=F32,
        terms=48,
        roundings=layer_roundings(F32, 5),
        magnitude=size,
        what=f"Qwen2MultiHeadAttention(48, 6, 2, ...)(x, mask), x (2, 5, 48), mask {shapes_of(mask)}",
        fact="layer-mask",
    )


@task(3)
@pytest.mark.parametrize("dtype", [F16, mx.bfloat16], ids=dtype_name)
def test_layer_mask_in_float32(solution, dtype):
    """the layer in half precision with a float32 mask"""
    layer, w = layer_of(solution, 6, 2, 8, dtype, seed=160)
    x, x64 = sample((3, 5, 48), dtype, seed=170)
    mask, mask64 = some_mask((5, 5), F32, seed=171)
    want, size = layer64(x64, w, 6, 1000000, mask=mask64)
    check.close(
        layer(x, mask=mask),
        want,
        dtype=dtype,
        terms=48,
        roundings=layer_roundings(dtype, 5),
        magnitude=size,
        what=f"Qwen2MultiHeadAttention(48, 6, 2, ...)(x, mask=mask), x {dtype_name(dtype)}, mask float32",
        fact="layer-result",
    )


@task(3)
def test_layer_one_token(solution):
    """the layer on one token: it attends to itself, and the value's bias reaches the result"""
    layer, w = layer_of(solution, 6, 2, 8, seed=180)
    x, x64 = sample((1, 1, 48), seed=190)
    for mask in (None, "causal"):
        want, size = layer64(x64, w, 6, 1000000)
        check.close(
            layer(x, mask=mask),
            want,
            dtype=F32,
            terms=48,
            roundings=layer_roundings(F32, 1),
            magnitude=size,
            what=f"Qwen2MultiHeadAttention(48, 6, 2, ...)(x, mask={mask!r}), x (1, 1, 48)",
            fact="layer-biases",
        )


@task(3)
@pytest.mark.parametrize("theta", [1000000, 500], ids=["Qwen2's theta", "another theta"])
def test_layer_theta(solution, theta):
    """RoPE's base is theta, and L may be max_seq_len"""
    L = 12
    options = {} if theta == 1000000 else {"theta": theta}  # 1000000 is the default
    layer, w = layer_of(solution, 4, 2, 6, seed=200, max_seq_len=L, **options)
    x, x64 = sample((2, L, 24), seed=210)
    want, size = layer64(x64, w, 4, theta)
    said = "".join(f", {name}={value}" for name, value in options.items())
    check.close(
        layer(x),
        want,
        dtype=F32,
        terms=24,
        roundings=layer_roundings(F32, L),
        magnitude=size,
        what=f"Qwen2MultiHeadAttention(24, 4, 2, ..., max_seq_len={L}{said})(x), x (2, {L}, 24)",
        fact="layer-rope",
    )


@task(3)
def test_layer_again(solution):
    """one layer called with several inputs, one of them a view; none may change"""
    layer, w = layer_of(solution, 6, 2, 8, seed=220)
    for seed, L in ((230, 5), (231, 5), (232, 4)):
        wide, wide64 = sample((L, 3, 96), seed=seed)
        x, x64 = wide.transpose(1, 0, 2)[..., ::2], wide64.transpose(1, 0, 2)[..., ::2]
        want, size = layer64(x64, w, 6, 1000000, mask=causal64(L, L))
        check.close(
            layer(x, mask="causal"),
            want,
            dtype=F32,
            terms=48,
            roundings=layer_roundings(F32, L),
            magnitude=size,
            what=f'Qwen2MultiHeadAttention(48, 6, 2, ...)(x, mask="causal"), x (3, {L}, 48) and not contiguous',
            fact="layer-reads-only",
        )
        check.unchanged(x64, x, what="x after Qwen2MultiHeadAttention")
