"""Day 2.1, the model: in chunks against mlx-lm's Qwen2 and Qwen3 on the whole text.

Checkpoints are made here, with seeded weights, as on day 1.5. mlx-lm computes them in float32 and without a
cache, all tokens in one pass: each chunk's logits must be the same rows of that pass.
"""

import functools
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
    mlx_lm_module,
    require,
    shipped_model,
    task,
)

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16


# ---- checkpoints ----

# Qwen3: no biases, a norm on query and key heads, and a D that is not E / H_q.
QWEN3 = SMALL_QWEN2 | {"model_type": "qwen3", "head_dim": 32}


@functools.cache
def pools():
    """Normal numbers and random words, from which all weights are cut."""
    rng = np.random.default_rng(21)
    normal = rng.standard_normal(300_007, dtype=np.float32)
    return mx.array(normal), mx.array(rng.integers(0, 2**32, 300_007, dtype=np.uint32))


class Weights:
    """Normal numbers and words by shape, from another place in the pools for every call."""

    def __init__(self, seed):
        self.start = 1000 * seed

    def _cut(self, pool, shape):
        self.start = (self.start + 7919) % 200_000
        return pool[self.start : self.start + math.prod(shape)].reshape(shape)

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


def checkpoint(dtype, config, *, seed, quantized=None):
    """An mlx-lm model with seeded weights in `dtype`; `quantized`: group size and bits of all layers."""
    family = mlx_lm_module("models." + config["model_type"])
    model = family.Model(family.ModelArgs(**config))
    if quantized:
        nn.quantize(model, *quantized)
    weights = Weights(seed)
    for path, layer in leaves(model):
        if layer.parameters():  # RoPE has none
            fill(layer, dtype, weights, gain=2.0 if path.endswith("embed_tokens") else 1.0)
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


def token_ids(shape, vocab_size=117, *, seed):
    return mx.array(np.random.default_rng(seed).integers(0, vocab_size, shape).astype(np.int32))


# ---- comparisons ----
# Roundings are counted as on day 1.5: a block is attention and MLP behind their norms, and two additions.

RMS_NORM, ATTENTION, MLP = 10, 24, 16
BLOCK = RMS_NORM + ATTENTION + 1 + RMS_NORM + MLP + 1
HEAD_NORMS = 2 * RMS_NORM
# A quantised layer's weight: product, sum and a cast after each, in four matrices one behind the other.
DEQUANTIZE = 4 * 4


def logit_error(config, want, length, dtype, quantized):
    """The terms, roundings and magnitude of logits over `length` tokens, for check.close (see day 1.5)."""
    block = BLOCK + (DEQUANTIZE if quantized else 0)
    block += HEAD_NORMS if config.model_type == "qwen3" else 0
    block += 2 * length if dtype == F32 else 0  # RoPE's angles
    roundings = config.num_hidden_layers * block + RMS_NORM + 2
    return {
        "terms": config.intermediate_size,
        "roundings": 2 * roundings if dtype == F32 else roundings,  # in float32 mlx-lm rounds as well
        "magnitude": np.sqrt((want**2).mean(axis=-1, keepdims=True)),
    }


class Text:
    """Ids with mlx-lm's logits for all of them, and how far a model under test has come with them."""

    def __init__(self, model, mlx_model, inputs, cache, *, dtype=F32, quantized=False, shown=""):
        self.model, self.mlx_model, self.inputs, self.cache = model, mlx_model, inputs, cache
        self.dtype, self.quantized, self.shown, self.done = dtype, quantized, shown, 0
        self.want = as_float64(oracle_of(mlx_model)(inputs))

    def run(self, L, *, fact, by_rows=False):
        """Run the next L tokens and compare their logits; `by_rows`: with an offset for each row."""
        start, end = self.done, self.done + L
        part = self.inputs[:, start:end]
        offset = [start] * len(part) if by_rows else start
        got = self.model(part, offset, self.cache)
        want = self.want[:, start:end]
        shape = tuple(part.shape)
        check.close(
            got,
            want,
            dtype=self.dtype,
            **logit_error(self.mlx_model.args, want, end, self.dtype, self.quantized),
            what=f"Qwen2ModelWeek2(mlx_model)(inputs, {offset}, cache), inputs {shape}, "
            f"{dtype_name(self.dtype)}{self.shown}",
            fact=fact,
        )
        self.done = end

    def rewind(self, n):
        for layer in self.cache:
            layer.rewind(n)
        self.done -= n


def check_in_chunks(solution, mlx_model, cuts, *, rows=2, seed, fact, dtype=F32, **options):
    model = solution.Qwen2ModelWeek2(mlx_model)
    inputs = token_ids((rows, sum(cuts)), mlx_model.args.vocab_size, seed=seed)
    text = Text(model, mlx_model, inputs, model.create_kv_cache(), dtype=dtype, **options)
    for L in cuts:
        text.run(L, fact=fact)


# ---- task 4: the model ----


@task(4)
@every_dtype
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_model_in_chunks(solution, tied, dtype):
    """two rows: a prompt, single tokens, and a chunk behind them"""
    mlx_model = checkpoint(dtype, SMALL_QWEN2 | {"tie_word_embeddings": tied}, seed=1)
    shown = ", tied" if tied else ", untied"
    check_in_chunks(solution, mlx_model, (5, 1, 1, 4), seed=2, fact="model-call", dtype=dtype, shown=shown)


@task(4)
def test_model_whole_and_token_by_token(solution):
    """a whole prompt at once, token by token, and in chunks from the start"""
    mlx_model = checkpoint(F32, SMALL_QWEN2, seed=3)
    for seed, cuts in ((4, (9,)), (5, (1,) * 6), (6, (2, 3, 4)), (7, (1, 8))):
        check_in_chunks(solution, mlx_model, cuts, rows=1, seed=seed, fact="model-mask")


@task(4)
@every_dtype
def test_model_qwen3_in_chunks(solution, dtype):
    """a Qwen3 checkpoint: norms on query and key, no biases, a D of its own"""
    require(QWEN3["head_dim"] * QWEN3["num_attention_heads"] != QWEN3["hidden_size"], "D is E / H_q")
    mlx_model = checkpoint(dtype, QWEN3, seed=8)
    check_in_chunks(solution, mlx_model, (4, 1, 3), seed=9, fact="model-config", dtype=dtype, shown=", Qwen3")


@task(4)
@pytest.mark.parametrize(
    ("config", "dtype", "bits"),
    [(SMALL_QWEN2, F32, 4), (QWEN3 | {"tie_word_embeddings": False}, BF16, 8)],
    ids=["4 bits", "Qwen3 8 bits"],
)
def test_model_quantized_in_chunks(solution, config, dtype, bits):
    """a quantised checkpoint"""
    mlx_model = checkpoint(dtype, config, seed=10, quantized=(32, bits))
    options = {"dtype": dtype, "quantized": True, "shown": f", {bits} bits in groups of 32"}
    check_in_chunks(solution, mlx_model, (4, 1, 2), seed=11, fact="model-parts", **options)


@task(4)
@pytest.mark.parametrize("config", [{"rms_norm_eps": 0.3}, {"rope_theta": 20.0}], ids=["eps", "theta"])
def test_model_config(solution, config):
    """the numbers of the configuration are the checkpoint's own"""
    mlx_model = checkpoint(F32, SMALL_QWEN2 | config, seed=12)
    shown = "".join(f", {name} {value}" for name, value in config.items())
    check_in_chunks(solution, mlx_model, (4, 2), seed=13, fact="model-config", shown=shown)


@task(4)
def test_model_two_texts(solution):
    """two texts in turns through one model, each with its own caches"""
    mlx_model = checkpoint(F32, SMALL_QWEN2, seed=14)
    model = solution.Qwen2ModelWeek2(mlx_model)
    texts = [
        Text(model, mlx_model, token_ids((1, 8), seed=15 + i), model.create_kv_cache(), shown=f", text {i}")
        for i in (0, 1)
    ]
    for lengths in ((5, 3), (1, 1), (1, 3)):
        for text, L in zip(texts, lengths, strict=True):
            text.run(L, fact="model-own-caches")


@task(4)
def test_model_rewind(solution):
    """tokens taken back, and others run in their place, with one offset for all rows and with a list"""
    mlx_model = checkpoint(F32, SMALL_QWEN2, seed=17)
    model = solution.Qwen2ModelWeek2(mlx_model)
    inputs = token_ids((2, 9), seed=18)
    other = mx.concatenate([inputs[:, :4], token_ids((2, 5), seed=19)], axis=1)
    cache = model.create_kv_cache()
    text = Text(model, mlx_model, inputs, cache)
    text.run(6, fact="model-call")
    text.run(1, fact="model-call")
    text.rewind(3)
    after = Text(model, mlx_model, other, cache, shown=", after a rewind")
    after.done = text.done
    after.run(1, fact="model-call")
    after.run(3, fact="model-call", by_rows=True)


@task(4)
def test_model_caches(solution):
    """create_kv_cache gives a new cache for each layer, and a call adds its tokens to all of them"""
    for layers in (1, 4):
        mlx_model = checkpoint(F32, SMALL_QWEN2 | {"num_hidden_layers": layers}, seed=20)
        model = solution.Qwen2ModelWeek2(mlx_model)
        what = f"of a model with {layers} layer{'s' if layers > 1 else ''}"
        check.exact(
            model.num_hidden_layers, layers, what=f"num_hidden_layers {what}", fact="model-own-caches"
        )
        one, other = model.create_kv_cache(), model.create_kv_cache()
        check.exact(len(one), layers, what=f"len(create_kv_cache()) {what}", fact="model-own-caches")
        distinct = len({id(cache) for cache in (*one, *other)})
        shown = f"different caches in two results of create_kv_cache() {what}"
        check.exact(distinct, 2 * layers, what=shown, fact="model-own-caches")
        for step, L in enumerate((3, 1)):
            mx.eval(model(token_ids((2, L), seed=21 + step), 3 * step, one))
        offsets = [[cache.offset for cache in caches] for caches in (one, other)]
        shown = f"offsets of the caches that were used, and of the others, after 3 tokens and 1, {what}"
        check.exact(offsets, [[4] * layers, [0] * layers], what=shown, fact="model-own-caches")


class Counted:
    """What linear_of, embedding_of and attention are given, and the tokens that what they make is run on."""

    def __init__(self):
        self.made, self.embedded, self.rows, self.attended = [], [], [], []

    def linear_of(self, layer):
        self.made.append(layer)

        def apply(x):
            self.rows.append(x.shape[:-1])
            y = x @ layer.weight.T
            return y + layer.bias if "bias" in layer else y

        return apply

    def embedding_of(self, layer):
        self.embedded.append(layer)
        return CountedEmbedding(self, layer.weight)

    def attention(self, query, key, value, scale=None, mask=None):
        self.attended.append((query.shape[2], key.shape[2]))
        group = query.shape[1] // key.shape[1]
        key, value = (mx.repeat(a, group, axis=1) for a in (key, value))
        L, S = query.shape[2], key.shape[2]
        scores = query @ key.swapaxes(-1, -2) * query.shape[-1] ** -0.5
        if mask is not None and not isinstance(mask, str):
            raise TypeError(f"attention takes the mask 'causal' or None here, not {type(mask).__name__}")
        if mask == "causal":
            seen = mx.arange(S)[None] <= mx.arange(S - L, S)[:, None]
            scores = mx.where(seen, scores, -mx.inf)
        return mx.softmax(scores, axis=-1) @ value


class CountedEmbedding:
    def __init__(self, counted, weight):
        self.counted, self.weight = counted, weight

    def __call__(self, x):
        self.counted.rows.append(x.shape)
        return self.weight[x]

    def as_linear(self, x):
        self.counted.rows.append(x.shape[:-1])
        return x @ self.weight.T


@task(4)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_model_of_given_parts(solution, tied):
    """the linear layers, the embedding and the attention are those it was given, and see new tokens alone"""
    mlx_model = checkpoint(F32, SMALL_QWEN2 | {"tie_word_embeddings": tied}, seed=30)
    counted = Counted()
    parts = {name: getattr(counted, name) for name in ("linear_of", "embedding_of", "attention")}
    model = solution.Qwen2ModelWeek2(mlx_model, **parts)
    what = f"Qwen2ModelWeek2(mlx_model, linear_of, embedding_of, attention), {'tied' if tied else 'untied'}"
    linears = [layer for _, layer in leaves(mlx_model) if isinstance(layer, nn.Linear)]
    given = sorted(id(layer) for layer in counted.made) == sorted(id(layer) for layer in linears)
    check.exact(given, True, what=f"linear_of was given each linear layer once by {what}", fact="model-parts")
    text = Text(model, mlx_model, token_ids((2, 7), seed=31), model.create_kv_cache(), shown=", counted")
    # Each linear layer, the embedding, and the embedding once more where it is the head.
    calls = len(linears) + 1 + tied
    for L, S in ((4, 4), (1, 5), (2, 7)):
        counted.rows.clear()
        counted.attended.clear()
        text.run(L, fact="model-parts")
        shown = f"tokens run through embedding, linear layers and head, {L} of {S} being new, {what}"
        check.exact([tuple(r) for r in counted.rows], [(2, L)] * calls, what=shown, fact="model-call")
        shown = f"queries and keys of each attention, {L} of {S} tokens being new, {what}"
        check.exact(counted.attended, [(L, S)] * 3, what=shown, fact="model-parts")


@task(4)
def test_model_shipped(solution):
    """tiny-qwen2, the trained 4-bit model that comes with the course"""
    mlx_model = shipped_model("tiny-qwen2")
    dtype = mlx_model.model.norm.weight.dtype
    options = {"dtype": dtype, "quantized": True, "shown": ", tiny-qwen2"}
    check_in_chunks(solution, mlx_model, (9, 1, 1, 5), rows=1, seed=40, fact="model-call", **options)
