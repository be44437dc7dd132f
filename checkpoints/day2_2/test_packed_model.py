"""Day 2.2, tasks 7 and 8: packed products from Python, and week 2's model on them.

Products are compared with float64 NumPy over unpacked weights, the model with mlx-lm's in float32. That
nothing is unpacked is read off MLX's own account of its memory: what the model holds, and what a call takes
at its peak.
"""

import functools
import gc
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tinyllm.grader.testing import (
    SMALL_QWEN2,
    UNIT_ROUNDOFF,
    as_float64,
    check,
    dtype_name,
    every_dtype,
    mlx_lm_module,
    require,
    sample,
    shipped_model,
    task,
)

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
FORMATS = [(32, 4), (64, 4), (128, 4), (32, 8), (64, 8), (128, 8)]


# ---- packed matrices ----


class Packed:
    """A seeded matrix outputs x width in the affine format, and what it stands for in float64."""

    def __init__(self, outputs, width, group_size, bits, dtype, *, seed):
        rng = np.random.default_rng(seed)
        self.group_size, self.bits = group_size, bits
        q = rng.integers(0, 2**bits, (outputs, width))
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        words = q.astype(np.uint32).reshape(outputs, -1, 32 // bits) << shifts
        self.words = mx.array(np.bitwise_or.reduce(words, axis=-1))
        groups = (outputs, width // group_size)
        self.scales, s64 = sample(groups, dtype, seed=seed + 1, scale=2.0**-bits)
        self.biases, b64 = sample(groups, dtype, seed=seed + 2, mean=0.7)
        s64, b64 = np.repeat(s64, group_size, axis=1), np.repeat(b64, group_size, axis=1)
        self.values = s64 * q + b64
        self.sizes = np.abs(s64) * q + np.abs(b64)

    def weights(self, solution):
        return solution.QuantizedWeights(self.scales, self.biases, self.group_size, self.bits, self.words)

    def layer(self, dtype, *, bias=None, embedding=False):
        """The same as a layer of mlx-lm's."""
        outputs, width = self.values.shape
        layer = (
            nn.Embedding(outputs, width) if embedding else nn.Linear(width, outputs, bias=bias is not None)
        )
        layer = layer.to_quantized(group_size=self.group_size, bits=self.bits)
        layer.weight, layer.scales, layer.biases = self.words, self.scales, self.biases
        if bias is not None:
            layer.bias = bias
        return layer


def check_product(got, want, size, dtype, terms, *, what, fact, added=0.0):
    """Sums in float32 with one rounding to dtype, as in the kernels' checks; `added`: a bias after that.

    Adding a bias rounds twice more, numbers of the size of the product and of the result.
    """
    options = {"dtype": dtype, "what": what, "fact": fact}
    if dtype == F32:
        check.close(got, want, terms=terms, roundings=9, magnitude=size + np.abs(added), **options)
        return
    computed = size * UNIT_ROUNDOFF[F32] / UNIT_ROUNDOFF[dtype] * (8 + np.sqrt(terms))
    rounded = np.abs(want) + (np.abs(want - added) + np.abs(added) if np.any(added) else 0.0)
    check.close(got, want, terms=1, roundings=3, magnitude=rounded + computed / 4, **options)


def peak_of(call):
    """(result, bytes that MLX held at most during call() beyond what it held before)."""
    gc.collect()
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    result = call()
    mx.eval(result)
    return result, mx.get_peak_memory() - before


# ---- task 7: products ----


def check_matmul(solution, M, outputs, width, group_size, bits, dtype, *, seed):
    w = Packed(outputs, width, group_size, bits, dtype, seed=seed)
    a, a64 = sample((M, width), dtype, seed=seed + 5, mean=0.3)
    got = solution.quantized_matmul(w.scales, w.biases, group_size, bits, a, w.words, transpose_b=True)
    what = f"quantized_matmul(..., transpose_b=True), a ({M}, {width}), b {outputs} x {width}, "
    what += f"{bits} bits in groups of {group_size}, {dtype_name(dtype)}"
    size = np.abs(a64) @ w.sizes.T
    check_product(got, a64 @ w.values.T, size, dtype, width, what=what, fact="matmul-dtype")


@task(7)
@every_dtype
@pytest.mark.parametrize(("group_size", "bits"), FORMATS)
def test_quantized_matmul(solution, group_size, bits, dtype):
    """few rows and many, in every format"""
    for M, outputs in ((1, 21), (4, 9), (5, 21), (11, 67)):
        check_matmul(
            solution, M, outputs, 2 * group_size, group_size, bits, dtype, seed=M + bits + group_size
        )


@task(7)
def test_quantized_matmul_leading_axes(solution):
    """a in (2, 3) rows, in one row without an axis for it, and a view"""
    w = Packed(19, 64, 32, 4, F32, seed=20)
    for shape in ((2, 3, 64), (64,)):
        a, a64 = sample(shape, F32, seed=21, mean=0.3)
        got = solution.quantized_matmul(w.scales, w.biases, 32, 4, a, w.words, transpose_b=True)
        size = np.abs(a64) @ w.sizes.T
        what = f"quantized_matmul(..., transpose_b=True), a {shape}, b 19 x 64"
        check_product(got, a64 @ w.values.T, size, F32, 64, what=what, fact="matmul")


@task(7)
@every_dtype
def test_quantized_matmul_not_transposed(solution, dtype):
    """a times the matrix itself"""
    w = Packed(12, 64, 32, 8, dtype, seed=30)
    for shape in ((5, 12), (2, 3, 12)):
        a, a64 = sample(shape, dtype, seed=31, mean=0.3)
        got = solution.quantized_matmul(w.scales, w.biases, 32, 8, a, w.words)
        check.close(
            got,
            a64 @ w.values,
            dtype=dtype,
            terms=12,
            roundings=6,  # the weight: product, sum, two casts; the product with a, the last cast
            magnitude=np.abs(a64) @ w.sizes,
            what=f"quantized_matmul(...), transpose_b left out, a {shape}, b 12 x 64, {dtype_name(dtype)}",
            fact="not-transposed",
        )


@task(7)
def test_quantized_matmul_memory(solution):
    """a product takes no memory for unpacked weights"""
    w = Packed(1024, 512, 64, 4, F32, seed=40)
    a, a64 = sample((1, 512), F32, seed=41)
    got, peak = peak_of(
        lambda: solution.quantized_matmul(w.scales, w.biases, 64, 4, a, w.words, transpose_b=True)
    )
    what = "quantized_matmul(..., transpose_b=True), a (1, 512), b 1024 x 512, which would be 2 MB unpacked"
    check_product(got, a64 @ w.values.T, np.abs(a64) @ w.sizes.T, F32, 512, what=what, fact="matmul")
    check.exact(
        peak < 2**19, True, what=f"{what}: less than 0.5 MB taken, {peak / 2**20:.1f} MB", fact="matmul"
    )


@task(7)
@every_dtype
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_quantized_linear(solution, has_bias, dtype):
    """x w^T, with a bias and without"""
    for shape, outputs in (((1, 1, 96), 33), ((2, 5, 96), 18)):
        w = Packed(outputs, 96, 32, 4, dtype, seed=50 + outputs)
        x, x64 = sample(shape, dtype, seed=51, mean=0.3)
        bias, bias64 = sample((outputs,), dtype, seed=52, scale=20.0) if has_bias else (None, 0.0)
        got = solution.quantized_linear(x, w.weights(solution), bias)
        check_product(
            got,
            x64 @ w.values.T + bias64,
            np.abs(x64) @ w.sizes.T,
            dtype,
            96,
            added=bias64,
            what=f"quantized_linear(x, w, {'bias' if has_bias else 'None'}), x {shape}, w {outputs} x 96, "
            f"{dtype_name(dtype)}",
            fact="quantized-linear",
        )


# ---- task 8: the model ----


@task(8)
@every_dtype
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_packed_linear(solution, has_bias, dtype):
    """a quantised layer of the checkpoint, each with its own format and its own bias"""
    for outputs, group_size, bits in ((33, 64, 4), (18, 32, 8)):
        w = Packed(outputs, 128, group_size, bits, dtype, seed=60 + outputs)
        bias, bias64 = sample((outputs,), dtype, seed=61, scale=20.0) if has_bias else (None, 0.0)
        x, x64 = sample((2, 3, 128), dtype, seed=62, mean=0.3)
        got = solution.packed_linear(w.layer(dtype, bias=bias))(x)
        check_product(
            got,
            x64 @ w.values.T + bias64,
            np.abs(x64) @ w.sizes.T,
            dtype,
            128,
            added=bias64,
            what=f"packed_linear(layer)(x), {'a' if has_bias else 'no'} bias, x (2, 3, 128), "
            f"layer {outputs} x 128, {bits} bits in groups of {group_size}, {dtype_name(dtype)}",
            fact="packed-linear",
        )


@task(8)
@every_dtype
def test_packed_linear_not_quantized(solution, dtype):
    """a layer that is not quantised, with a bias and without"""
    for has_bias in (True, False):
        layer = nn.Linear(48, 20, bias=has_bias)
        layer.weight, w64 = sample((20, 48), dtype, seed=70)
        bias64 = 0.0
        if has_bias:
            layer.bias, bias64 = sample((20,), dtype, seed=71)
        x, x64 = sample((2, 3, 48), dtype, seed=72)
        check.close(
            solution.packed_linear(layer)(x),
            x64 @ w64.T + bias64,
            dtype=dtype,
            terms=48,
            roundings=4,  # the product, its cast, the addition, its cast
            magnitude=np.abs(x64) @ np.abs(w64).T + np.abs(bias64),
            what=f"packed_linear(an nn.Linear that is not quantised)(x), {dtype_name(dtype)}, "
            f"{'a' if has_bias else 'no'} bias",
            fact="packed-linear",
        )


def embedding_ids(shape, V, *, seed):
    return mx.array(np.random.default_rng(seed).integers(0, V, shape).astype(np.int32))


@task(8)
@every_dtype
@pytest.mark.parametrize(("group_size", "bits"), [(64, 4), (32, 8)])
def test_packed_embedding_rows(solution, group_size, bits, dtype):
    """the rows of token ids, unpacked"""
    w = Packed(50, 128, group_size, bits, dtype, seed=80 + bits)
    embedding = solution.PackedEmbedding(w.weights(solution))
    for seed, shape in ((81, (2, 7)), (82, (1, 1)), (83, (3,))):
        ids = embedding_ids(shape, 50, seed=seed)
        check.close(
            embedding(ids),
            w.values[np.array(ids)],
            dtype=dtype,
            terms=1,
            roundings=6,  # q, scale and bias, each converted; product, sum, and the last cast
            magnitude=w.sizes[np.array(ids)],
            what=f"PackedEmbedding(weights)(ids), ids {shape}, weights 50 x 128, {bits} bits in groups of "
            f"{group_size}, {dtype_name(dtype)}",
            fact="embedding-rows",
        )


@task(8)
@every_dtype
def test_packed_embedding_as_linear(solution, dtype):
    """the same matrix as the output layer"""
    w = Packed(50, 128, 64, 4, dtype, seed=90)
    embedding = solution.PackedEmbedding(w.weights(solution))
    for seed, shape in ((91, (2, 3, 128)), (92, (1, 1, 128))):
        x, x64 = sample(shape, dtype, seed=seed, mean=0.3)
        size = np.abs(x64) @ w.sizes.T
        what = f"PackedEmbedding(weights).as_linear(x), x {shape}, weights 50 x 128, {dtype_name(dtype)}"
        got = embedding.as_linear(x)
        check_product(got, x64 @ w.values.T, size, dtype, 128, what=what, fact="embedding-as-linear")


@task(8)
def test_packed_embedding_memory(solution):
    """looking up rows unpacks these rows alone"""
    w = Packed(4096, 128, 64, 4, F32, seed=95)
    embedding = solution.PackedEmbedding(w.weights(solution))
    ids = embedding_ids((1, 5), 4096, seed=96)
    got, peak = peak_of(lambda: embedding(ids))
    what = "PackedEmbedding(weights)(ids), ids (1, 5), weights 4096 x 128, which would be 2 MB unpacked"
    want, size = w.values[np.array(ids)], w.sizes[np.array(ids)]
    options = {"dtype": F32, "terms": 1, "roundings": 6, "magnitude": size}
    check.close(got, want, what=what, fact="embedding-rows", **options)
    small = peak < 2**19
    check.exact(
        small, True, what=f"{what}: less than 0.5 MB taken, {peak / 2**20:.1f} MB", fact="embedding-rows"
    )


@task(8)
def test_packed_embedding_of_a_layer(solution):
    """a quantised embedding of the checkpoint, and one that is not quantised"""
    w = Packed(50, 128, 32, 8, F16, seed=100)
    ids = embedding_ids((2, 4), 50, seed=101)
    x, x64 = sample((2, 3, 128), F16, seed=102)
    rows = np.array(ids)
    for quantized in (True, False):
        layer = w.layer(F16, embedding=True)
        values, sizes = w.values, w.sizes
        if not quantized:
            layer = nn.Embedding(50, 128)
            layer.weight, values = sample((50, 128), F16, seed=103)
            sizes = np.abs(values)
        embedding = solution.packed_embedding(layer)
        what = f"packed_embedding(an embedding that is {'' if quantized else 'not '}quantised)"
        packed = isinstance(embedding, solution.PackedEmbedding)
        check.exact(packed, quantized, what=f"{what}: a PackedEmbedding", fact="packed-embedding")
        check.close(
            embedding(ids),
            values[rows],
            dtype=F16,
            terms=1,
            roundings=6,
            magnitude=sizes[rows],
            what=f"{what}(ids)",
            fact="packed-embedding",
        )
        check.close(
            embedding.as_linear(x),
            x64 @ values.T,
            dtype=F16,
            terms=128,
            roundings=4,
            magnitude=np.abs(x64) @ sizes.T,
            what=f"{what}.as_linear(x)",
            fact="packed-embedding",
        )


# ---- checkpoints, as on day 2.1 ----

SMALL = SMALL_QWEN2 | {"num_hidden_layers": 2}
QWEN3 = SMALL | {"model_type": "qwen3", "head_dim": 32}
# Matrices of a megabyte and more each, beside which everything else is small.
LARGE = SMALL | {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "vocab_size": 2000,
}


@functools.cache
def pools():
    """Normal numbers and random words, from which all weights are cut."""
    rng = np.random.default_rng(22)
    normal = rng.standard_normal(300_007, dtype=np.float32)
    return mx.array(normal), mx.array(rng.integers(0, 2**32, 300_007, dtype=np.uint32))


class Weights:
    """Normal numbers and words by shape, from another place in the pools for every call."""

    def __init__(self, seed):
        self.start = 1000 * seed

    def _cut(self, pool, shape):
        self.start = (self.start + 7919) % 100_000
        # A copy, as a loaded weight has memory of its own: of a view, a kernel might make one at every call.
        return mx.contiguous(pool[self.start : self.start + math.prod(shape)]).reshape(shape)

    def normal(self, shape, dtype, scale=1.0, mean=0.0):
        return (self._cut(pools()[0], shape) * scale + mean).astype(dtype)

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


def leaves(model):
    return tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)


def checkpoint(dtype, config, *, seed, quantized):
    """An mlx-lm model with seeded weights in `dtype`.

    `quantized`: group size and bits of all layers, or a function of path and layer as nn.quantize takes it.
    """
    family = mlx_lm_module("models." + config["model_type"])
    model = family.Model(family.ModelArgs(**config))
    if callable(quantized):
        nn.quantize(model, class_predicate=quantized)
    else:
        nn.quantize(model, *quantized)
    weights = Weights(seed)
    for path, layer in leaves(model):
        if layer.parameters():  # RoPE has none
            fill(layer, dtype, weights, gain=2.0 if path.endswith("embed_tokens") else 1.0)
    mx.eval(model.parameters())
    return model


def oracle_of(model):
    """mlx-lm's model of the same weights, computing in float32."""
    formats = {
        path: {"group_size": layer.group_size, "bits": layer.bits}
        for path, layer in leaves(model)
        if hasattr(layer, "scales")
    }
    oracle = type(model)(model.args)
    nn.quantize(oracle, class_predicate=lambda path, layer: formats.get(path, False))
    oracle.update(model.parameters())
    oracle.set_dtype(F32)
    return oracle


# Roundings are counted as on days 1.5 and 2.1.
RMS_NORM, ATTENTION, MLP = 10, 24, 16
BLOCK = RMS_NORM + ATTENTION + 1 + RMS_NORM + MLP + 1
HEAD_NORMS = 2 * RMS_NORM
UNPACK = 4 * 4  # product, sum and a cast after each, in four matrices one behind the other


def logit_error(config, want, length, dtype):
    """The terms, roundings and magnitude of logits over `length` tokens, for check.close (see day 1.5)."""
    block = BLOCK + UNPACK + (HEAD_NORMS if config.model_type == "qwen3" else 0)
    block += 2 * length if dtype == F32 else 0  # RoPE's angles
    roundings = config.num_hidden_layers * block + RMS_NORM + 2
    return {
        "terms": config.intermediate_size,
        "roundings": 2 * roundings if dtype == F32 else roundings,  # in float32 mlx-lm rounds as well
        "magnitude": np.sqrt((want**2).mean(axis=-1, keepdims=True)),
    }


def check_model(model, mlx_model, dtype, *, seed, what, rows=2, cuts=(6, 1, 3)):
    """The logits of a prompt, a token and a chunk behind it, against mlx-lm's on the whole text."""
    inputs = embedding_ids((rows, sum(cuts)), mlx_model.args.vocab_size, seed=seed)
    want = as_float64(oracle_of(mlx_model)(inputs))
    cache, start = model.create_kv_cache(), 0
    for L in cuts:
        part = slice(start, start + L)
        check.close(
            model(inputs[:, part], start, cache),
            want[:, part],
            dtype=dtype,
            **logit_error(mlx_model.args, want[:, part], start + L, dtype),
            what=f"packed_model(mlx_model)(inputs, {start}, cache), inputs ({rows}, {L}), "
            f"{dtype_name(dtype)}, {what}",
            fact="packed-model",
        )
        start += L


@task(8)
@every_dtype
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_packed_model(solution, tied, dtype):
    """the logits of two rows: a prompt, a token, a chunk; head tied and untied"""
    config = SMALL | {"tie_word_embeddings": tied}
    mlx_model = checkpoint(dtype, config, seed=1, quantized=(32, 4))
    what = f"4 bits in groups of 32, {'tied' if tied else 'untied'}"
    check_model(solution.packed_model(mlx_model), mlx_model, dtype, seed=2, what=what)


@task(8)
def test_packed_model_mixed(solution):
    """layers with formats of their own, and some that are not quantised"""

    def recipe(path, layer):
        if not hasattr(layer, "to_quantized") or path.endswith(("o_proj", "layers.1.mlp.up_proj", "lm_head")):
            return False
        wide = path.endswith(("embed_tokens", "v_proj", "down_proj"))
        return {"group_size": 64 if wide else 32, "bits": 8 if wide else 4}

    config = SMALL | {"hidden_size": 192, "intermediate_size": 320, "tie_word_embeddings": False}
    mlx_model = checkpoint(F32, config, seed=3, quantized=recipe)
    model = solution.packed_model(mlx_model)
    check_model(model, mlx_model, F32, seed=4, what="4, 8 and 32 bits mixed, head not quantised")


@task(8)
def test_packed_model_embedding_not_quantized(solution):
    """only the embedding, tied, is not quantised"""

    def recipe(path, layer):
        return hasattr(layer, "to_quantized") and not path.endswith("embed_tokens")

    wider = SMALL | {"hidden_size": 192, "intermediate_size": 320}
    mlx_model = checkpoint(F32, wider, seed=5, quantized=recipe)
    model = solution.packed_model(mlx_model)
    check_model(model, mlx_model, F32, seed=6, what="4 bits in groups of 64, embedding not quantised")


@task(8)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=dtype_name)
def test_packed_model_qwen3(solution, dtype):
    """a Qwen3 checkpoint of 8 bits: no biases, norms on query and key"""
    mlx_model = checkpoint(dtype, QWEN3, seed=7, quantized=(32, 8))
    model = solution.packed_model(mlx_model)
    check_model(model, mlx_model, dtype, seed=8, what="Qwen3, 8 bits in groups of 32")


@task(8)
def test_packed_model_attention(solution):
    """the attention that is given is the one that runs, once a layer"""
    mlx_model = checkpoint(F32, SMALL, seed=9, quantized=(32, 4))
    calls = []

    def attention(query, key, value, scale=None, mask=None):
        calls.append(tuple(query.shape))
        return mx.zeros_like(query)

    model = solution.packed_model(mlx_model, attention=attention)
    mx.eval(model(embedding_ids((1, 3), 117, seed=10), 0, model.create_kv_cache()))
    what = "packed_model(mlx_model, attention=f): the queries that f gets from one call, 2 layers"
    check.exact(calls, [(1, 6, 3, 16)] * 2, what=what, fact="packed-model-attention")


@task(8)
def test_packed_model_memory(solution):
    """no unpacked matrix is kept, and none is made in passing"""
    mlx_model = checkpoint(F32, LARGE, seed=11, quantized=(64, 4))
    unpacked = sum(
        math.prod(layer.scales.shape) * layer.group_size * 4
        for _, layer in leaves(mlx_model)
        if hasattr(layer, "scales")
    )
    require(unpacked > 20e6, "the checkpoint is too small to tell")
    inputs = embedding_ids((1, 5), 2000, seed=12)
    gc.collect()
    mx.synchronize()
    before = mx.get_active_memory()
    model = solution.packed_model(mlx_model)
    cache = model.create_kv_cache()
    mx.eval(model(inputs[:, :4], 0, cache))
    gc.collect()
    kept = mx.get_active_memory() - before
    what = f"packed_model(mlx_model) of weights that would take {unpacked / 1e6:.0f} MB unpacked: "
    few = kept < unpacked / 20
    told = what + f"a twentieth of that at most is kept after a call, {kept / 1e6:.1f} MB"
    check.exact(few, True, what=told, fact="packed-model")
    _, peak = peak_of(lambda: model(inputs[:, 4:], 4, cache))
    # Unpacked, the query's projection is 1 MB, one of the MLP 2 MB, the embedding 4 MB.
    told = what + f"less than 0.5 MB is taken for a token, {peak / 1e6:.2f} MB"
    check.exact(peak < 0.5e6, True, what=told, fact="packed-model")


@task(8)
def test_packed_model_shipped(solution):
    """tiny-qwen2, the trained 4-bit model that comes with the course"""
    mlx_model = shipped_model("tiny-qwen2")
    dtype = mlx_model.model.norm.weight.dtype
    model = solution.packed_model(mlx_model)
    check_model(model, mlx_model, dtype, seed=13, what="tiny-qwen2", rows=1, cuts=(12, 1))
