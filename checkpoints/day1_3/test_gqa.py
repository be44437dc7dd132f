"""Day 1.3: the causal mask, attention in groups and the attention layer of Qwen2 and Qwen3, against NumPy.

Dimensions differ from one another, L from S, and there are two or more KV heads, so that a mixed-up axis, a
mask at the wrong end and tiled heads all show.
"""

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import as_float64, check, dtype_name, every_dtype, require, sample, task

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
INF = np.inf
EPS = 1e-6  # of the norms on query and key heads


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


def head_norm64(x, weight):
    """Each head, the last axis, divided by its root mean square, times `weight`; without one x itself."""
    return x if weight is None else x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS) * weight


def layer64(x, w, num_heads, theta, mask=0.0):
    """The attention layer: (result, size). `w` holds float64 arrays by their argument's name, if given."""
    N, L, _ = x.shape
    D = w["wq"].shape[0] // num_heads
    q, k, v = (linear64(x, w["w" + n], w.get("b" + n, 0.0))[0].reshape(N, L, -1, D) for n in "qkv")
    q, k = (rope64(head_norm64(a, w.get(n)), theta) for a, n in ((q, "q_norm"), (k, "k_norm")))
    out, size = attention64(*(a.swapaxes(1, 2) for a in (q, k, v)), mask=mask)
    out, size = (a.swapaxes(1, 2).reshape(N, L, num_heads * D) for a in (out, size))
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


class HeadNorm:
    """An RMSNorm for heads of (N, L, heads, D); it refuses anything that is not of that shape."""

    def __init__(self, name, weight, heads):
        self.name, self.weight, self.heads = name, weight, heads

    def __call__(self, x):
        N, L = x.shape[:2] if isinstance(x, mx.array) and x.ndim == 4 else ("N", "L")
        got = tuple(x.shape) if isinstance(x, mx.array) else type(x).__name__
        want = (N, L, self.heads, self.weight.size)
        check.exact(got, want, what=f"the shape of what {self.name} is given", fact="layer-qk-norm")
        return mx.fast.rms_norm(x, self.weight, EPS)


def layer_of(
    solution,
    num_heads,
    num_kv_heads,
    head_dim,
    dtype=F32,
    *,
    seed,
    hidden_size=None,
    parts=("bq", "bk", "bv"),
    **options,
):
    """(a Qwen2MultiHeadAttention with random weights, the float64 weights by name).

    `parts`: the biases and norms that it has, of bq, bk, bv, q_norm and k_norm; the others are None.
    """
    require(num_heads > num_kv_heads > 1, "the layer shares no KV heads, or has only one")
    D, out, kv = head_dim, num_heads * head_dim, num_kv_heads * head_dim
    E = hidden_size or out
    shapes = {"wq": (out, E), "wk": (kv, E), "wv": (kv, E), "wo": (E, out)}
    shapes |= {"bq": (out,), "bk": (kv,), "bv": (kv,), "q_norm": (D,), "k_norm": (D,)}
    given, values = {"bq": None, "bk": None, "bv": None}, {}
    for i, (name, shape) in enumerate(shapes.items()):
        if not name.startswith("w") and name not in parts:
            continue
        norm = name.endswith("norm")
        scale = 0.5 if norm else 0.6 if name.startswith("b") else shape[-1] ** -0.5
        given[name], values[name] = sample(shape, dtype, seed=seed + i, scale=scale, mean=float(norm))
        if norm:
            require(np.ptp(values[name]) > 0.5, "a norm with equal weights commutes with RoPE")
            given[name] = HeadNorm(name, given[name], num_heads if name == "q_norm" else num_kv_heads)
    options = {"max_seq_len": 64, **options}
    return solution.Qwen2MultiHeadAttention(E, num_heads, num_kv_heads, **given, **options), values


# ---- comparisons ----

# Roundings of attention: the score 1, scale 1, mask 1, the difference from the maximum 1, exp 2, the division
# 1, the weights' cast 1, the result's cast 1. The sums over D and S come in through `terms`.
ATTENTION = 9
# The layer's beside them: projection 1, bias 1 and RoPE 4 for query and for key, 2 for the value, 1 for wo.
LAYER = ATTENTION + 2 * 6 + 2 + 1
# A norm on query and key: the division and the weight, 1 each.
HEAD_NORMS = 2 * 2


def call_text(positional, options):
    """ "query, key, value, scale=0.5, mask=(5, 7) float16": arrays by shape and dtype, the rest as it is."""
    parts = [positional]
    for name, value in options.items():
        array = isinstance(value, mx.array)
        parts.append(
            f"{name}={tuple(value.shape)} {dtype_name(value.dtype)}" if array else f"{name}={value!r}"
        )
    return ", ".join(parts)


def check_mask(solution, L, S, dtype, *, fact):
    """causal_mask, every element."""
    want, _ = exactly(causal64(L, S), dtype)
    what = f"causal_mask({L}, {S}, {dtype_name(dtype)})"
    check.exact(solution.causal_mask(L, S, dtype), want, what=what, fact=fact)


def check_grouped(solution, arrays, values, dtype=F32, *, fact, mask64=0.0, **options):
    """Attention of query, key and value with the options scale and mask; mask64 is that mask's oracle."""
    want, size = attention64(*values, scale=options.get("scale"), mask=mask64)
    shapes = ", ".join(str(tuple(a.shape)) for a in arrays)
    call = call_text("query, key, value", options)
    check.close(
        solution.scaled_dot_product_attention_grouped(*arrays, **options),
        want,
        dtype=dtype,
        terms=max(values[1].shape[-2:]),
        roundings=ATTENTION,
        magnitude=size,
        what=f"scaled_dot_product_attention_grouped({call}), shapes {shapes}, {dtype_name(dtype)}",
        fact=fact,
    )


def check_layer(layer, x, x64, w, num_heads, dtype=F32, *, fact, theta=1000000, mask64=0.0, **options):
    """The layer on x with the option mask; mask64 is that mask's oracle."""
    want, size = layer64(x64, w, num_heads, theta, mask=mask64)
    # Angles are float32 in every dtype; at positions up to L they are off by some L roundings of float32.
    angles = 2 * x.shape[1] if dtype == F32 else 0
    E, D = w["wq"].shape[1], w["wq"].shape[0] // num_heads
    norms = [name for name in ("q_norm", "k_norm") if name in w]
    lacks = "".join(f", {name} None" for name in ("bq", "bk", "bv") if name not in w)
    made = f"Qwen2MultiHeadAttention({E}, {num_heads}, {w['wk'].shape[0] // D}, ...)"
    check.close(
        layer(x, **options),
        want,
        dtype=dtype,
        terms=E,
        roundings=LAYER + angles + (HEAD_NORMS if norms else 0),
        magnitude=size,
        what=f"{made}({call_text('x', options)}), x {tuple(x.shape)} {dtype_name(dtype)}"
        + (f", D {D}" if num_heads * D != E else "")
        + lacks
        + "".join(f", {name}" for name in norms),
        fact=fact,
    )


# ---- task 1: the causal mask ----


@task(1)
@every_dtype
def test_mask_square(solution, dtype):
    """the mask of a whole prompt, L = S"""
    for n in (4, 7):
        check_mask(solution, n, n, dtype, fact="causal-mask")


@task(1)
@every_dtype
def test_mask_after_earlier_keys(solution, dtype):
    """the mask of L queries at the end of more keys, L < S"""
    for L, S in ((2, 5), (3, 8), (6, 7)):
        check_mask(solution, L, S, dtype, fact="causal-mask")


@task(1)
@every_dtype
def test_mask_far_positions(solution, dtype):
    """the mask at positions beyond 2048, which half precision cannot count"""
    L, S = 3, 2100
    require(mx.array(S - 1).astype(F16).item() != S - 1, "float16 holds the positions exactly")
    check_mask(solution, L, S, dtype, fact="causal-mask")


@task(1)
def test_mask_of_one_query(solution):
    """the mask of a single query, which sees every key, and of two"""
    for L, S in ((1, 6), (1, 1), (2, 6)):
        check_mask(solution, L, S, F32, fact="causal-mask")


# ---- task 2: attention in groups ----


@task(2)
@every_dtype
def test_grouped_in_threes(solution, dtype):
    """six query heads on two KV heads"""
    for seed in (10, 13):  # two inputs of the same shapes
        arrays, values = qkv((3, 6, 5, 8), (3, 2, 7, 8), dtype, seed=seed)
        check_grouped(solution, arrays, values, dtype, fact="head-groups")


@task(2)
@every_dtype
def test_grouped_in_pairs(solution, dtype):
    """six query heads on three KV heads"""
    arrays, values = qkv((2, 6, 4, 8), (2, 3, 7, 8), dtype, seed=20)
    check_grouped(solution, arrays, values, dtype, fact="head-groups")


@task(2)
@pytest.mark.parametrize(("H_q", "H"), [(5, 1), (3, 3)], ids=["one", "all"])
def test_grouped_extremes(solution, H_q, H):
    """one KV head for all query heads, and one for each"""
    arrays, values = qkv((2, H_q, 4, 8), (2, H, 7, 8), seed=23)
    check_grouped(solution, arrays, values, fact="head-groups")


@task(2)
@pytest.mark.parametrize("batch", [(), (2, 3)], ids=["none", "two"])
def test_grouped_batch_axes(solution, batch):
    """no batch axis, and two of them, without a mask and causal"""
    arrays, values = qkv((*batch, 6, 4, 8), (*batch, 2, 7, 8), seed=26)
    check_grouped(solution, arrays, values, fact="grouped-mask")
    check_grouped(solution, arrays, values, mask="causal", mask64=causal64(4, 7), fact="grouped-mask")


@task(2)
@every_dtype
def test_grouped_scale(solution, dtype):
    """a scale of the caller's own"""
    arrays, values = qkv((2, 6, 5, 8), (2, 2, 7, 8), dtype, seed=30)
    require(abs(0.85 - 8**-0.5) > 0.2, "the scale is nearly the default")
    check_grouped(solution, arrays, values, dtype, scale=0.85, fact="grouped-scale")


@task(2)
@every_dtype
def test_grouped_causal_after_earlier_keys(solution, dtype):
    """mask="causal" for queries at the end of more keys, L < S"""
    arrays, values = qkv((3, 6, 5, 8), (3, 2, 9, 8), dtype, seed=40)
    check_grouped(solution, arrays, values, dtype, mask="causal", mask64=causal64(5, 9), fact="grouped-mask")


@task(2)
@pytest.mark.parametrize(("L", "S"), [(6, 6), (1, 6)], ids=["whole prompt", "one query"])
def test_grouped_causal(solution, L, S):
    """mask="causal" for a whole prompt, and for one query"""
    arrays, values = qkv((3, 4, L, 10), (3, 2, S, 10), seed=43)
    check_grouped(solution, arrays, values, mask="causal", mask64=causal64(L, S), fact="grouped-mask")


@task(2)
@pytest.mark.parametrize(
    "shape",
    [(5, 7), (3, 1, 5, 7), (3, 6, 5, 7), (6, 1, 7)],
    ids=["L S", "N 1 L S", "N H_q L S", "H_q 1 S"],
)
def test_grouped_mask_array(solution, shape):
    """a mask array of -inf and finite biases, in the shapes that broadcast"""
    arrays, values = qkv((3, 6, 5, 8), (3, 2, 7, 8), seed=50)
    mask, mask64 = some_mask(shape, seed=53)
    check_grouped(solution, arrays, values, mask=mask, mask64=mask64, fact="grouped-mask")


@task(2)
def test_grouped_mask_where_n_equals_h(solution):
    """a mask for each prompt, with as many prompts as KV heads: on the wrong axis it still broadcasts"""
    arrays, values = qkv((2, 6, 5, 8), (2, 2, 7, 8), seed=56)
    mask, mask64 = some_mask((2, 1, 5, 7), seed=59)
    require(values[1].shape[0] == values[1].shape[1], "N must equal H here")
    check_grouped(solution, arrays, values, mask=mask, mask64=mask64, fact="grouped-mask")


@task(2)
@every_dtype
def test_grouped_mask_of_another_dtype(solution, dtype):
    """a mask whose dtype is not the query's"""
    arrays, values = qkv((3, 6, 5, 8), (3, 2, 7, 8), dtype, seed=60)
    mask, mask64 = some_mask((5, 7), F16 if dtype == F32 else F32, seed=63)
    check_grouped(solution, arrays, values, dtype, scale=0.4, mask=mask, mask64=mask64, fact="grouped-result")


@task(2)
def test_grouped_large_scores(solution):
    """scores beyond the range of exp"""
    arrays, values = qkv((2, 4, 5, 8), (2, 2, 7, 8), seed=70, scale=10.0)
    scores = values[0][:, ::2] @ values[1].swapaxes(-2, -1) * 8**-0.5
    require(scores.max() > 89 and scores.min() < -89, "exp of the scores stays in float32's range")
    check_grouped(solution, arrays, values, fact="grouped-scale")


@task(2)
def test_grouped_views(solution):
    """query, key and value as transposed and sliced views; nothing of the caller's may change"""
    (q, k, v), (q64, k64, v64) = qkv((3, 5, 6, 8), (3, 7, 2, 16), seed=80)
    q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
    q64, k64, v64 = (a.transpose(0, 2, 1, 3) for a in (q64, k64, v64))
    arrays, values = (q, k[..., ::2], v[..., 8:]), (q64, k64[..., ::2], v64[..., 8:])
    mask, mask64 = some_mask((5, 7), seed=83)
    for options in ({}, {"scale": 0.5, "mask": mask, "mask64": mask64}):
        check_grouped(solution, arrays, values, **options, fact="grouped-reads-only")
        for name, array, before in zip(("query", "key", "value"), arrays, values, strict=True):
            check.unchanged(before, array, what=f"{name} after attention", fact="grouped-reads-only")
        check.unchanged(mask64, mask, what="mask after attention", fact="grouped-reads-only")


# ---- task 3: Qwen2's attention layer ----


@task(3)
@every_dtype
def test_layer_without_mask(solution, dtype):
    """the layer in groups of three, every token seeing every token"""
    layer, w = layer_of(solution, 6, 2, 8, dtype, seed=100)
    x, x64 = sample((3, 5, 48), dtype, seed=110)
    check_layer(layer, x, x64, w, 6, dtype, fact="layer-weights")


@task(3)
@every_dtype
def test_layer_causal(solution, dtype):
    """the layer in groups of two, causal"""
    layer, w = layer_of(solution, 4, 2, 6, dtype, seed=120)
    x, x64 = sample((3, 7, 24), dtype, seed=130)
    check_layer(layer, x, x64, w, 4, dtype, mask="causal", mask64=causal64(7, 7), fact="layer-mask")


@task(3)
@pytest.mark.parametrize("shape", [(5, 5), (2, 1, 5, 5), (2, 6, 5, 5)], ids=["L L", "N 1 L L", "N H_q L L"])
def test_layer_mask_array(solution, shape):
    """the layer with a mask array"""
    layer, w = layer_of(solution, 6, 2, 8, seed=140)
    x, x64 = sample((2, 5, 48), seed=150)
    mask, mask64 = some_mask(shape, seed=151)
    check_layer(layer, x, x64, w, 6, mask=mask, mask64=mask64, fact="layer-mask")


@task(3)
@pytest.mark.parametrize("dtype", [F16, BF16], ids=dtype_name)
def test_layer_mask_in_float32(solution, dtype):
    """the layer in half precision with a float32 mask"""
    layer, w = layer_of(solution, 6, 2, 8, dtype, seed=160)
    x, x64 = sample((3, 5, 48), dtype, seed=170)
    mask, mask64 = some_mask((5, 5), F32, seed=171)
    check_layer(layer, x, x64, w, 6, dtype, mask=mask, mask64=mask64, fact="layer-result")


@task(3)
def test_layer_one_token(solution):
    """the layer on one token, which attends to itself: values, their bias and wo are what is left"""
    layer, w = layer_of(solution, 6, 2, 8, seed=180)
    x, x64 = sample((1, 1, 48), seed=190)
    check_layer(layer, x, x64, w, 6, fact="layer-biases")
    check_layer(layer, x, x64, w, 6, mask="causal", fact="layer-biases")


@task(3)
@pytest.mark.parametrize("theta", [1000000, 500])
def test_layer_theta(solution, theta):
    """RoPE's base is theta (by default Qwen2's 1000000), and L may be max_seq_len"""
    options = {} if theta == 1000000 else {"theta": theta}
    layer, w = layer_of(solution, 4, 2, 6, seed=200, max_seq_len=12, **options)
    x, x64 = sample((2, 12, 24), seed=210)
    check_layer(layer, x, x64, w, 4, theta=theta, fact="layer-rope")


@task(3)
def test_layer_again(solution):
    """one layer called on several inputs, each a view that may not change"""
    layer, w = layer_of(solution, 6, 2, 8, seed=220)
    for seed, L in ((230, 5), (231, 5), (232, 4)):
        wide, wide64 = sample((L, 3, 96), seed=seed)
        x, x64 = wide.transpose(1, 0, 2)[..., ::2], wide64.transpose(1, 0, 2)[..., ::2]
        check_layer(layer, x, x64, w, 6, mask="causal", mask64=causal64(L, L), fact="layer-reads-only")
        check.unchanged(x64, x, what="x after Qwen2MultiHeadAttention", fact="layer-reads-only")


# Qwen3: D is not E // H_q, no biases, a norm on query and key.
QWEN3 = {"hidden_size": 40, "parts": ("q_norm", "k_norm")}


@task(3)
@pytest.mark.parametrize("has", [(), ("bv",), ("bq", "bk")], ids=["no bias", "bv", "bq bk"])
def test_layer_biases_that_are_none(solution, has):
    """the layer where some or all of the biases are None"""
    layer, w = layer_of(solution, 6, 2, 8, seed=240, parts=has)
    x, x64 = sample((2, 5, 48), seed=250)
    check_layer(layer, x, x64, w, 6, fact="layer-biases")


@task(3)
@pytest.mark.parametrize("hidden_size", [40, 90], ids=["narrower", "wider"])
def test_layer_head_dim(solution, hidden_size):
    """the layer where H_q * D is not the hidden size"""
    layer, w = layer_of(solution, 6, 2, 8, seed=260, hidden_size=hidden_size)
    x, x64 = sample((2, 5, hidden_size), seed=270)
    require(hidden_size // 6 != 8, "D is hidden_size // num_heads")
    check_layer(layer, x, x64, w, 6, mask="causal", mask64=causal64(5, 5), fact="layer-weights")


@task(3)
@every_dtype
def test_layer_of_qwen3(solution, dtype):
    """Qwen3's layer: a norm on the query and key heads, no biases, a D of its own"""
    layer, w = layer_of(solution, 6, 2, 8, dtype, seed=280, **QWEN3)
    x, x64 = sample((3, 5, 40), dtype, seed=290)
    check_layer(layer, x, x64, w, 6, dtype, mask="causal", mask64=causal64(5, 5), fact="layer-qk-norm")


@task(3)
@pytest.mark.parametrize("name", ["q_norm", "k_norm"])
def test_layer_one_norm(solution, name):
    """the layer with one of the two norms, and with biases"""
    layer, w = layer_of(solution, 6, 2, 8, seed=300, parts=("bq", "bk", "bv", name))
    x, x64 = sample((2, 6, 48), seed=310)
    check_layer(layer, x, x64, w, 6, fact="layer-qk-norm")
