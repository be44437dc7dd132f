"""Day 1.5: the whole model against mlx-lm's Qwen2 and Qwen3, its parts against float64 NumPy.

Checkpoints are made here, with seeded weights: dimensions that all differ, two or more KV heads, an eps and a
theta that are no one's default. mlx-lm computes the same checkpoint in float32: what a check sees is the
error of the code under test, and not the half precision of two programs. One checkpoint is not made here: the
trained model that comes with the course. Nothing is asked of what it has learnt.
"""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tinyllm.grader.testing import (
    SMALL_QWEN2,
    as_float64,
    check,
    dtype_name,
    every_dtype,
    kept,
    mlx_lm_module,
    require,
    sample,
    shipped_model,
    task,
    tolerance,
    unnoted,
)

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
INF = np.inf


# ---- oracles of the parts ----


def linear64(x, w, bias=0.0):
    return x @ w.T + bias


def rms_norm64(x, weight, eps):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def rope64(x, theta):
    """x (N, L, H, D) turned to positions 0 to L - 1, in split halves."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * float(theta) ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def attention64(x, w, num_heads, eps, theta, mask):
    """The attention layer on x (N, L, E), with the biases and the norms on query and key that `w` has."""
    N, L, _ = x.shape
    D = w["wq"].shape[0] // num_heads
    q, k, v = (linear64(x, w["w" + n], w.get("b" + n, 0.0)).reshape(N, L, -1, D) for n in "qkv")
    q = rms_norm64(q, w["w_q_norm"], eps) if "w_q_norm" in w else q
    k = rms_norm64(k, w["w_k_norm"], eps) if "w_k_norm" in w else k
    q, k, v = (a.swapaxes(1, 2) for a in (rope64(q, theta), rope64(k, theta), v))
    k, v = (np.repeat(a, num_heads // a.shape[1], axis=1) for a in (k, v))
    scores = q @ k.swapaxes(-2, -1) / np.sqrt(D) + mask
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return linear64((weights @ v).swapaxes(1, 2).reshape(N, L, num_heads * D), w["wo"])


def mlp64(x, w):
    gate = linear64(x, w["w_gate"])
    return linear64(gate / (1 + np.exp(-gate)) * linear64(x, w["w_up"]), w["w_down"])


def block64(x, w, num_heads, eps, theta, mask=0.0):
    """(the block's result, the size of the numbers added up in each row)."""
    attended = attention64(rms_norm64(x, w["w_input_layernorm"], eps), w, num_heads, eps, theta, mask)
    h = x + attended
    passed = mlp64(rms_norm64(h, w["w_post_attention_layernorm"], eps), w)
    size = np.sqrt((x**2 + attended**2 + passed**2).mean(axis=-1, keepdims=True))
    return h + passed, size


def dequantized64(layer):
    """(weight, size) from the packed words: 32 / bits numbers in each, the first in the lowest."""
    shifts = np.arange(0, 32, layer.bits, dtype=np.uint32)
    q = (np.array(layer.weight)[..., None] >> shifts) & np.uint32(2**layer.bits - 1)
    q = q.reshape(layer.weight.shape[0], -1).astype(np.float64)
    scales, biases = (
        np.repeat(as_float64(a), layer.group_size, axis=-1) for a in (layer.scales, layer.biases)
    )
    return scales * q + biases, np.abs(scales * q) + np.abs(biases)


# ---- checkpoints ----

# One layer shows all but what several do, for which there are checks with two of them and with five.
SMALL = SMALL_QWEN2 | {"num_hidden_layers": 1}
# Qwen3: no biases, a norm on query and key heads, and a D that is not E / H_q.
QWEN3 = SMALL | {"model_type": "qwen3", "head_dim": 32}
# Qwen's own widths and heads. Layers, vocabulary, positions (of which RoPE makes a table) and the MLPs, 4864
# wide in 0.5B and 3072 in Qwen3-0.6B, are cut: nothing but time grows with them. Of 7B, whose width is 3584,
# there are the heads alone.
REAL = SMALL | {"vocab_size": 211, "rms_norm_eps": 1e-6, "rope_theta": 1e6}
QWEN2_05B = REAL | {"hidden_size": 896, "intermediate_size": 192, "num_attention_heads": 14}
HEADS_OF_7B = {"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False}
QWEN3_06B = REAL | {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 192,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


@kept
def pools():
    """A million normal numbers and a million random words, from which all weights are cut."""
    rng = np.random.default_rng(15)
    normal = rng.standard_normal(1_000_003, dtype=np.float32)
    return mx.array(normal), mx.array(rng.integers(0, 2**32, 1_000_003, dtype=np.uint32))


class Weights:
    """Normal numbers and words by shape, from another place in the pools for every call."""

    def __init__(self, seed):
        self.start = 1000 * seed

    def _cut(self, pool, shape, change=lambda stretch: stretch):
        """`change` sees the stretch before it is repeated: a large weight would take long."""
        self.start = (self.start + 7919) % 500_000
        size = math.prod(shape)
        stretch = change(pool[self.start : self.start + size])
        copies = -(-size // stretch.size)
        return mx.concatenate([stretch] * copies)[:size].reshape(shape)

    def normal(self, shape, dtype, scale=1.0, mean=0.0):
        return self._cut(pools()[0], shape, lambda stretch: (stretch * scale + mean).astype(dtype))

    def words(self, shape):
        return self._cut(pools()[1], shape)


def fill(layer, dtype, weights, gain=1.0):
    """Give a layer, norm or embedding weights of size gain / sqrt(inputs)."""
    if isinstance(layer, nn.RMSNorm):
        layer.weight = weights.normal(layer.weight.shape, dtype, 0.3, 1.0)
        return
    if hasattr(layer, "scales"):
        inputs = layer.scales.shape[-1] * layer.group_size
        step = gain * inputs**-0.5 * math.sqrt(12) / 2**layer.bits
        layer.weight = weights.words(layer.weight.shape)
        layer.scales = weights.normal(layer.scales.shape, dtype, 0.2 * step, step)
        middle = step * (2**layer.bits - 1) / 2
        layer.biases = weights.normal(layer.scales.shape, dtype, 0.1 * middle, -middle)
    else:
        layer.weight = weights.normal(layer.weight.shape, dtype, gain * layer.weight.shape[-1] ** -0.5)
    if hasattr(layer, "bias"):
        layer.bias = weights.normal(layer.bias.shape, dtype, 0.5)


def mixed(path, layer):
    """4 bits and 8, groups of 32 and of 64, and some layers as they are."""
    if not hasattr(layer, "to_quantized") or path.endswith(("o_proj", "layers.1.mlp.up_proj", "lm_head")):
        return False
    wide = path.endswith(("embed_tokens", "v_proj", "down_proj"))
    return {"group_size": 64 if wide else 32, "bits": 8 if wide else 4}


def empty_model(config, quantized):
    """mlx-lm's model of this configuration, whose weights are still to come."""
    family = mlx_lm_module("models." + config["model_type"])
    model = family.Model(family.ModelArgs(**config))
    if quantized == "mixed":
        nn.quantize(model, class_predicate=mixed)
    elif quantized:
        nn.quantize(model, *quantized)
    return model


@kept
def parameters(dtype, config, seed, quantized):
    """The seeded weights of a checkpoint, by their names in mlx-lm's model."""
    model = empty_model(config, quantized)
    weights = Weights(seed)
    for path, layer in leaves(model):
        if layer.parameters():  # RoPE has none
            fill(layer, dtype, weights, gain=2.0 if path.endswith("embed_tokens") else 1.0)
    return dict(tree_flatten(model.parameters()))


@kept
def logits(dtype, config, seed, quantized, shape, inputs_seed):
    """What mlx-lm's model of a checkpoint's weights makes of token ids, computing in float32."""
    oracle = empty_model(config, quantized)
    oracle.load_weights(list(parameters(dtype, config, seed, quantized).items()))
    oracle.set_dtype(F32)
    return as_float64(oracle(token_ids(shape, config["vocab_size"], seed=inputs_seed)))


class Checkpoint:
    """Seeded weights in `dtype`, as `mlx_model`.

    `quantized`: group size and bits of all layers, or "mixed".
    """

    @unnoted
    def __init__(self, dtype, config, *, seed, quantized=None):
        self.dtype, self.quantized = dtype, quantized
        self._recipe = (dtype, config, seed, quantized)
        self.mlx_model = empty_model(config, quantized)
        self.mlx_model.load_weights(list(parameters(*self._recipe).items()))

    def logits(self, shape, *, seed):
        return logits(*self._recipe, shape, seed)


def leaves(model):
    return tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)


def token_ids(shape, vocab_size, *, seed):
    return mx.array(np.random.default_rng(seed).integers(0, vocab_size, shape).astype(np.int32))


def quantized_layer(kind, dtype, group_size, bits, *, seed):
    """An nn.Linear (with a bias) or nn.Embedding of 24 x 256, quantised, with seeded weights."""
    layer = nn.Linear(256, 24) if kind == "linear" else nn.Embedding(24, 256)
    layer = layer.to_quantized(group_size=group_size, bits=bits)
    fill(layer, dtype, Weights(seed))
    return layer


# ---- comparisons ----
# Roundings are counted as on days 1.3 and 1.4.

RMS_NORM, ATTENTION, MLP = 10, 24, 16
# A block: each of its two parts behind a norm, and the two additions to the stream.
BLOCK = RMS_NORM + ATTENTION + 1 + RMS_NORM + MLP + 1
# The norms on query and key in Qwen3's attention.
HEAD_NORMS = 2 * RMS_NORM
# A quantised layer's weight: the product, the sum, and a cast after each. Four of the block's seven matrices
# stand one behind the other: value or query, wo, gate or up, down.
DEQUANTIZE = 4
ALONG_A_BLOCK = 4


def check_as_linear(embedding, x, x64, weight64, dtype=F32):
    check.close(
        embedding.as_linear(x),
        x64 @ weight64.T,
        dtype=dtype,
        terms=x64.shape[-1],
        roundings=2,  # the product and the cast
        magnitude=np.abs(x64) @ np.abs(weight64).T,
        what=f"Embedding(...).as_linear(x), weight {weight64.shape}, x {x64.shape} {dtype_name(dtype)}",
        fact="embedding-as-linear",
    )


def block_of(
    solution,
    dtype=F32,
    *,
    seed,
    num_heads=6,
    num_kv_heads=2,
    head_dim=None,
    eps=0.02,
    parts=("bq", "bk", "bv"),
    **options,
):
    """(a Qwen2TransformerBlock with E = 48 and an MLP of 80, its float64 weights by argument's name).

    `parts`: what the attention has of bq, bk, bv, w_q_norm and w_k_norm; the others are None.
    """
    E, hidden, D = 48, 80, head_dim or 48 // num_heads
    out, kv = num_heads * D, num_kv_heads * D
    require(num_heads > num_kv_heads > 1, "the block shares no KV heads, or has only one")
    shapes = {"wq": (out, E), "wk": (kv, E), "wv": (kv, E), "wo": (E, out)}
    shapes |= {"bq": (out,), "bk": (kv,), "bv": (kv,)}
    shapes |= {"w_gate": (hidden, E), "w_up": (hidden, E), "w_down": (E, hidden)}
    shapes |= {"w_input_layernorm": (E,), "w_post_attention_layernorm": (E,)}
    shapes |= {"w_q_norm": (D,), "w_k_norm": (D,)}
    optional = {"bq", "bk", "bv", "w_q_norm", "w_k_norm"}
    arrays, values = {"bq": None, "bk": None, "bv": None}, {}
    for i, (name, shape) in enumerate(shapes.items()):
        if name in optional and name not in parts:
            continue
        norm = name.endswith("norm")
        scale = 0.3 if norm else shape[-1] ** -0.5 if len(shape) > 1 else 0.5
        arrays[name], values[name] = sample(shape, dtype, seed=seed + i, scale=scale, mean=float(norm))
    options = {"max_seq_len": 32, **options}
    return solution.Qwen2TransformerBlock(
        num_heads, num_kv_heads, E, hidden, eps, **arrays, **options
    ), values


def check_block(
    block, x, x64, w, dtype=F32, *, fact, num_heads=6, eps=0.02, theta=1000000, mask64=0.0, **options
):
    """The block on x with the option mask; mask64 is that mask's oracle."""
    want, size = block64(x64, w, num_heads, eps, theta, mask=mask64)
    mask = options.get("mask")
    said = "" if not options else f", mask={tuple(mask.shape) if isinstance(mask, mx.array) else mask!r}"
    norms = [name for name in ("w_q_norm", "w_k_norm") if name in w]
    lacks = "".join(f", {name} None" for name in ("bq", "bk", "bv") if name not in w)
    check.close(
        block(x, **options),
        want,
        dtype=dtype,
        terms=w["w_down"].shape[1],
        # Angles are float32 in every dtype; at positions up to L they are off by some L roundings of float32.
        roundings=BLOCK + (HEAD_NORMS if norms else 0) + (2 * x.shape[1] if dtype == F32 else 0),
        magnitude=size,
        what=f"Qwen2TransformerBlock(...)(x{said}), x {x64.shape} {dtype_name(dtype)}"
        + lacks
        + "".join(f", {name}" for name in norms),
        fact=fact,
    )


def check_dequantized(solution, layer, dtype, *, what, fact):
    want, size = dequantized64(layer)
    check.close(
        solution.dequantize_linear(layer),
        want,
        dtype=dtype,
        terms=1,
        roundings=DEQUANTIZE,
        magnitude=size,
        what=f"dequantize_linear(layer), layer {what}, {dtype_name(dtype)}",
        fact=fact,
    )


def logit_error(config, want, length, dtype, quantized):
    """The terms, roundings and magnitude of logits over `length` tokens, for check.close.

    A rounding of relative size u anywhere on the way moves the stream by u of its size. The norms keep
    relative sizes, a random matrix passes a relative error on as it is, and the residual stream carries each
    error to the end: for each rounding a logit is off by u times the root mean square of its row. They are
    counted as if all added up; that they do not (their signs are random) pays for the largest of thousands
    of logits being some four standard deviations out, and for the softmax and the gate, which enlarge an
    error up to twice.
    """
    block = BLOCK + (DEQUANTIZE * ALONG_A_BLOCK if quantized else 0)
    block += HEAD_NORMS if config.model_type == "qwen3" else 0
    block += 2 * length if dtype == F32 else 0  # the angles, as in a block
    roundings = config.num_hidden_layers * block + RMS_NORM + 2  # the last norm, the head and its cast
    heads = config.num_attention_heads * getattr(config, "head_dim", 0)  # Qwen2's are as wide as the stream
    return {
        "terms": max(config.hidden_size, config.intermediate_size, heads),  # the longest sum
        "roundings": 2 * roundings if dtype == F32 else roundings,  # in float32 mlx-lm rounds as well
        "magnitude": np.sqrt((want**2).mean(axis=-1, keepdims=True)),
    }


def check_logits(got, want, args, dtype, *, fact, what="", quantized=False):
    """A model's logits against mlx-lm's in float32; `args` are mlx_model.args."""
    check.close(
        got,
        want,
        dtype=dtype,
        **logit_error(args, want, want.shape[1], dtype, quantized),
        what=f"Qwen2ModelWeek1(mlx_model)(inputs), inputs {want.shape[:2]}, {dtype_name(dtype)}{what}",
        fact=fact,
    )


def check_model(solution, checkpoint, *inputs, fact, what=""):
    """The model of a checkpoint on one batch of token ids after another, each as its shape and its seed."""
    args = checkpoint.mlx_model.args
    model = solution.Qwen2ModelWeek1(checkpoint.mlx_model)
    for shape, seed in inputs:
        want = checkpoint.logits(shape, seed=seed)
        got = model(token_ids(shape, args.vocab_size, seed=seed))
        quantized = checkpoint.quantized is not None
        check_logits(got, want, args, checkpoint.dtype, fact=fact, what=what, quantized=quantized)


# ---- task 1: the embedding ----


@task(1)
@every_dtype
def test_embedding_rows(solution, dtype):
    """the rows of a batch of token ids"""
    weight, weight64 = sample((11, 6), dtype, seed=1)
    embedding = solution.Embedding(11, 6, weight)
    for seed, shape in ((2, (3, 5)), (3, (2, 4))):
        x = token_ids(shape, 11, seed=seed)
        want = mx.array(weight64[np.array(x)].astype(np.float32)).astype(dtype)
        what = f"Embedding(11, 6, weight)(x), x {shape} int32, weight {dtype_name(dtype)}"
        check.exact(embedding(x), want, what=what, fact="embedding-lookup")


@task(1)
@pytest.mark.parametrize("ids", [mx.int32, mx.uint32, mx.int64], ids=dtype_name)
def test_embedding_shapes(solution, ids):
    """no batch axis, one token, and one axis more; the first and the last id are among them"""
    weight, weight64 = sample((9, 4), seed=4)
    embedding = solution.Embedding(9, 4, weight)
    for values in ([8, 0, 3, 3], [[5]], [[[8, 1], [0, 7], [2, 2]]]):
        x = mx.array(values).astype(ids)
        want = mx.array(weight64[np.array(values)].astype(np.float32))
        what = f"Embedding(9, 4, weight)(x), x {tuple(x.shape)} {dtype_name(ids)}"
        check.exact(embedding(x), want, what=what, fact="embedding-lookup")


@task(1)
def test_embedding_large_ids(solution):
    """ids as large as Qwen2's, in bfloat16: half precision cannot count them"""
    values = [[151935, 65537, 70001], [257, 2049, 131073]]
    require(mx.array(151935).astype(BF16).astype(F32).item() != 151935, "bfloat16 holds the id exactly")
    weight = mx.arange(151936 * 2, dtype=mx.int32).reshape(151936, 2) % 251 - 125
    weight = weight.astype(BF16)
    want = mx.array(as_float64(weight)[np.array(values)].astype(np.float32)).astype(BF16)
    what = "Embedding(151936, 2, weight)(x), x (2, 3) int32, weight bfloat16"
    got = solution.Embedding(151936, 2, weight)(mx.array(values))
    check.exact(got, want, what=what, fact="embedding-lookup")


@task(1)
@every_dtype
def test_as_linear(solution, dtype):
    """the logits of a batch"""
    weight, weight64 = sample((13, 48), dtype, seed=5, scale=48**-0.5)
    embedding = solution.Embedding(13, 48, weight)
    for seed, shape in ((6, (3, 5, 48)), (7, (2, 4, 48))):
        x, x64 = sample(shape, dtype, seed=seed)
        check_as_linear(embedding, x, x64, weight64, dtype)


@task(1)
def test_as_linear_square(solution):
    """as many tokens as dimensions, so that a forgotten transpose has the right shape"""
    weight, weight64 = sample((24, 24), seed=8, scale=24**-0.5)
    x, x64 = sample((2, 5, 24), seed=9)
    check_as_linear(solution.Embedding(24, 24, weight), x, x64, weight64)


@task(1)
def test_as_linear_shapes(solution):
    """no batch axis, one token of one prompt, and a view"""
    weight, weight64 = sample((13, 48), seed=10, scale=48**-0.5)
    embedding = solution.Embedding(13, 48, weight)
    for seed, shape in ((11, (48,)), (12, (1, 1, 48)), (13, (5, 2, 96))):
        x, x64 = sample(shape, seed=seed)
        if shape[-1] == 96:
            x, x64 = x[..., ::2].transpose(1, 0, 2), x64[..., ::2].transpose(1, 0, 2)
        check_as_linear(embedding, x, x64, weight64)
        check.unchanged(x64, x, what="x after as_linear")


# ---- task 2: the transformer block ----


@task(2)
@every_dtype
def test_block_without_mask(solution, dtype):
    """a block on a batch, every token seeing every token"""
    block, w = block_of(solution, dtype, seed=100)
    for seed, shape in ((120, (3, 5, 48)), (121, (2, 7, 48))):
        x, x64 = sample(shape, dtype, seed=seed, scale=0.7)
        check_block(block, x, x64, w, dtype, fact="block-order")


@task(2)
@every_dtype
def test_block_causal(solution, dtype):
    """a causal block"""
    block, w = block_of(solution, dtype, seed=130, num_heads=4)
    x, x64 = sample((2, 6, 48), dtype, seed=150, scale=0.7)
    mask64 = np.triu(np.full((6, 6), -INF), k=1)
    check_block(block, x, x64, w, dtype, num_heads=4, mask="causal", mask64=mask64, fact="block-mask")


@task(2)
@pytest.mark.parametrize("shape", [(5, 5), (3, 1, 5, 5), (3, 6, 5, 5)], ids=["L L", "N 1 L L", "N H_q L L"])
def test_block_mask_array(solution, shape):
    """a block with a mask array"""
    block, w = block_of(solution, seed=160)
    x, x64 = sample((3, 5, 48), seed=180, scale=0.7)
    hidden = np.random.default_rng(181).random(shape) < 0.4
    hidden[..., 0] = False
    require(0 < hidden.sum() < hidden.size, "the mask hides nothing, or everything")
    mask64 = np.where(hidden, -INF, 0.0)
    mask = mx.array(mask64.astype(np.float32))
    check_block(block, x, x64, w, mask=mask, mask64=mask64, fact="block-mask")


@task(2)
def test_block_one_token(solution):
    """a block on one token of one prompt, which attends to itself"""
    block, w = block_of(solution, seed=190)
    x, x64 = sample((1, 1, 48), seed=210, scale=0.7)
    check_block(block, x, x64, w, fact="block-result")
    check_block(block, x, x64, w, mask="causal", fact="block-result")


@task(2)
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_block_eps(solution, eps):
    """the eps of both norms, on a stream quiet enough to show it"""
    block, w = block_of(solution, seed=220, eps=eps)
    x, x64 = sample((2, 5, 48), seed=240, scale=0.7 if eps == 0.5 else 1e-3)
    check_block(block, x, x64, w, eps=eps, fact="block-settings")


@task(2)
@pytest.mark.parametrize("theta", [1000000, 300])
def test_block_theta(solution, theta):
    """RoPE's base is theta (by default Qwen2's 1000000), and L may be max_seq_len"""
    options = {} if theta == 1000000 else {"theta": theta}
    block, w = block_of(solution, seed=250, max_seq_len=12, **options)
    x, x64 = sample((2, 12, 48), seed=270, scale=0.7)
    check_block(block, x, x64, w, theta=theta, fact="block-settings")


@task(2)
def test_block_again(solution):
    """one block called on several inputs, each a view that may not change"""
    block, w = block_of(solution, seed=280)
    for seed, L in ((300, 5), (301, 5), (302, 4)):
        wide, wide64 = sample((L, 3, 96), seed=seed, scale=0.7)
        x, x64 = wide.transpose(1, 0, 2)[..., ::2], wide64.transpose(1, 0, 2)[..., ::2]
        check_block(block, x, x64, w, fact="block-reads-only")
        check.unchanged(x64, x, what="x after Qwen2TransformerBlock", fact="block-reads-only")


@task(2)
@every_dtype
def test_block_of_qwen3(solution, dtype):
    """Qwen3's block: a norm on query and key heads, no biases, a D of its own"""
    block, w = block_of(solution, dtype, seed=310, head_dim=10, parts=("w_q_norm", "w_k_norm"))
    x, x64 = sample((2, 6, 48), dtype, seed=330, scale=0.7)
    mask64 = np.triu(np.full((6, 6), -INF), k=1)
    check_block(block, x, x64, w, dtype, mask="causal", mask64=mask64, fact="block-optional")


@task(2)
@pytest.mark.parametrize(
    "parts",
    [("bq", "bv", "w_k_norm"), ("bk", "w_q_norm"), ()],
    ids=["bq bv w_k_norm", "bk w_q_norm", "none"],
)
def test_block_parts(solution, parts):
    """a block with some of the biases and norms, or with none"""
    block, w = block_of(solution, seed=340, parts=parts)
    x, x64 = sample((2, 5, 48), seed=360, scale=0.7)
    check_block(block, x, x64, w, fact="block-optional")


# ---- task 3: dequantisation ----


@task(3)
@every_dtype
@pytest.mark.parametrize(("group_size", "bits"), [(64, 4), (32, 4), (128, 8), (64, 8)])
def test_dequantize_linear(solution, group_size, bits, dtype):
    """a quantised linear layer"""
    layer = quantized_layer("linear", dtype, group_size, bits, seed=400)
    what = f"QuantizedLinear 24 x 256, {bits} bits in groups of {group_size}"
    check_dequantized(solution, layer, dtype, what=what, fact="dequantize-quantized")


@task(3)
@every_dtype
def test_dequantize_embedding(solution, dtype):
    """a quantised embedding, in two formats"""
    for group_size, bits in ((32, 8), (128, 4)):
        layer = quantized_layer("embedding", dtype, group_size, bits, seed=410 + bits)
        what = f"QuantizedEmbedding 24 x 256, {bits} bits in groups of {group_size}"
        check_dequantized(solution, layer, dtype, what=what, fact="dequantize-result")


@task(3)
@every_dtype
def test_dequantize_not_quantized(solution, dtype):
    """a linear and an embedding that are not quantised: the weight as it is"""
    for layer in (nn.Linear(7, 5), nn.Linear(5, 7, bias=False), nn.Embedding(9, 6)):
        fill(layer, dtype, Weights(430))
        name = type(layer).__name__
        what = f"dequantize_linear(layer), layer an nn.{name} {tuple(layer.weight.shape)} {dtype_name(dtype)}"
        check.exact(solution.dequantize_linear(layer), layer.weight, what=what, fact="dequantize-plain")


# ---- task 4: the model ----


@task(4)
@pytest.mark.parametrize(
    ("tied", "dtype"),
    [(True, F32), (False, F32), (True, F16), (False, BF16)],
    ids=["tied-float32", "untied-float32", "tied-float16", "untied-bfloat16"],
)
def test_model_not_quantized(solution, tied, dtype):
    """the logits of two prompts, not quantised, head tied and untied"""
    config = SMALL | {"num_hidden_layers": 2, "tie_word_embeddings": tied}
    checkpoint = Checkpoint(dtype, config, seed=500)
    what = f", {'tied' if tied else 'untied'}"
    check_model(solution, checkpoint, ((2, 5), 501), ((3, 4), 502), fact="model-head", what=what)


# Groups must divide the widths: 128 needs wider layers. D is 32 there.
WIDER = SMALL | {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 8}


@task(4)
@pytest.mark.parametrize(
    ("dtype", "bits", "group_size", "tied"),
    [
        (F32, 4, 32, True),
        (F32, 8, 128, False),
        (F16, 4, 64, False),
        (BF16, 8, 32, True),
        (BF16, 4, 64, False),
    ],
    ids=["float32-4-32", "float32-8-128", "float16-4-64", "bfloat16-8-32", "bfloat16-4-64"],
)
def test_model_quantized(solution, dtype, bits, group_size, tied):
    """the logits of a quantised checkpoint"""
    config = (SMALL if group_size == 32 else WIDER) | {"tie_word_embeddings": tied}
    checkpoint = Checkpoint(dtype, config, seed=510 + bits, quantized=(group_size, bits))
    what = f", {bits} bits in groups of {group_size}, {'tied' if tied else 'untied'}"
    check_model(solution, checkpoint, ((2, 3), 511), fact="model-logits", what=what)


@task(4)
def test_model_mixed(solution):
    """a checkpoint whose layers are quantised differently, some of them not at all"""
    config = SMALL | {"hidden_size": 192, "intermediate_size": 320, "tie_word_embeddings": False}
    config |= {"num_hidden_layers": 2}
    checkpoint = Checkpoint(F32, config, seed=520, quantized="mixed")
    check_model(solution, checkpoint, ((2, 5), 521), fact="model-reads", what=", 4 and 8 bits mixed")


@task(4)
def test_model_lengths(solution):
    """one token, one prompt, and a longer one: every position's logits, none from what comes after it"""
    checkpoint = Checkpoint(F32, SMALL, seed=530)
    check_model(solution, checkpoint, ((1, 1), 531), ((1, 23), 532), ((4, 2), 533), fact="model-causal")


@task(4)
@pytest.mark.parametrize("layers", [1, 5])
def test_model_depth(solution, layers):
    """as many layers as the checkpoint has, in their order"""
    checkpoint = Checkpoint(F32, SMALL | {"num_hidden_layers": layers}, seed=540 + layers)
    check_model(solution, checkpoint, ((2, 5), 541), fact="model-head", what=f", {layers} layers")


@task(4)
@pytest.mark.parametrize(
    "config",
    [{"rms_norm_eps": 0.3}, {"rope_theta": 20.0}, {"num_attention_heads": 4, "num_key_value_heads": 2}],
    ids=["eps", "theta", "heads"],
)
def test_model_config(solution, config):
    """each number of the configuration is the checkpoint's own"""
    checkpoint = Checkpoint(F32, SMALL | config, seed=550)
    what = "".join(f", {name} {value}" for name, value in config.items())
    check_model(solution, checkpoint, ((2, 6), 551), fact="model-config", what=what)


@task(4)
@pytest.mark.parametrize("heads", [{}, HEADS_OF_7B], ids=["0.5B", "heads-of-7B"])
def test_model_real_shapes(solution, heads):
    """Qwen2's own width and heads, cut to one layer, in 4 bits; the heads of 7B"""
    checkpoint = Checkpoint(BF16, QWEN2_05B | heads, seed=560, quantized=(64, 4))
    what = ", width of Qwen2-0.5B" + (", heads of Qwen2-7B" if heads else "")
    what += ", 4 bits in groups of 64"
    check_model(solution, checkpoint, ((1, 2), 561), fact="model-logits", what=what)


@task(4)
@every_dtype
def test_model_qwen3(solution, dtype):
    """the logits of a Qwen3 checkpoint: norms on query and key, no biases, a D of its own"""
    require(QWEN3["head_dim"] * QWEN3["num_attention_heads"] != QWEN3["hidden_size"], "D is E / H_q")
    checkpoint = Checkpoint(dtype, QWEN3, seed=570)
    check_model(solution, checkpoint, ((2, 5), 571), fact="model-optional", what=", Qwen3, tied")


@task(4)
@pytest.mark.parametrize(
    ("dtype", "bits", "tied"),
    [(F32, 8, True), (BF16, 4, False)],
    ids=["float32-8-tied", "bfloat16-4-untied"],
)
def test_model_qwen3_quantized(solution, dtype, bits, tied):
    """the logits of a quantised Qwen3 checkpoint"""
    config = QWEN3 | {"tie_word_embeddings": tied}
    checkpoint = Checkpoint(dtype, config, seed=580, quantized=(32, bits))
    what = f", Qwen3, {bits} bits in groups of 32, {'tied' if tied else 'untied'}"
    check_model(solution, checkpoint, ((2, 5), 581), fact="model-optional", what=what)


@task(4)
def test_model_qwen3_real_shapes(solution):
    """Qwen3-0.6B's own widths and heads, cut to one layer, in bfloat16"""
    checkpoint = Checkpoint(BF16, QWEN3_06B, seed=590)
    check_model(solution, checkpoint, ((1, 3), 591), fact="model-optional", what=", widths of Qwen3-0.6B")


@task(4)
def test_model_one_after_the_other(solution):
    """a Qwen3 and a Qwen2 checkpoint in turn: neither leaves anything to the other"""
    for seed, config in ((600, QWEN3), (601, SMALL), (602, QWEN3)):
        checkpoint = Checkpoint(F32, config, seed=seed)
        what = f", {config['model_type']}"
        check_model(solution, checkpoint, ((2, 4), seed), fact="model-optional", what=what)


@kept
def shipped_logits(name, shape, seed):
    """mlx-lm's logits of a model that ships, computed in float32."""
    oracle = shipped_model(name)
    oracle.set_dtype(F32)
    return as_float64(oracle(token_ids(shape, oracle.args.vocab_size, seed=seed)))


@task(4)
def test_model_shipped(solution):
    """tiny-qwen2, the trained 4-bit model that comes with the course: its logits and its next tokens"""
    mlx_model = shipped_model("tiny-qwen2")
    args, dtype = mlx_model.args, mlx_model.model.norm.weight.dtype
    want = shipped_logits("tiny-qwen2", (1, 8), 610)
    got = solution.Qwen2ModelWeek1(mlx_model)(token_ids((1, 8), args.vocab_size, seed=610))
    check_logits(got, want, args, dtype, quantized=True, fact="model-logits", what=", tiny-qwen2")

    # Where the best logit leads by more than two errors of the largest size allowed, no right computation
    # can come to another token.
    allowed = tolerance(dtype, **logit_error(args, want, want.shape[1], dtype, quantized=True))
    ordered = np.sort(want, axis=-1)
    certain = ordered[..., -1] - ordered[..., -2] > 2 * allowed[..., 0]
    require(certain.sum() >= 4, f"the next token is beyond doubt at {certain.sum()} positions only")
    best = mx.where(mx.array(certain), mx.argmax(got, axis=-1).astype(mx.int32), -1)
    what = f"tiny-qwen2's next tokens at {certain.sum()} of {certain.size} positions (-1 at the others)"
    check.ids(best, np.where(certain, want.argmax(axis=-1), -1), what=what, fact="model-logits")
