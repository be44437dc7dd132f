"""Day 2.6, the real thing: a batch of Qwen2's rows beside mlx-lm's model on each text alone.

The model is day 2.1's, on small random weights, with caches that the day's code makes; the oracle is mlx-lm's
model without a cache, one text at a time. At the end stands tiny-qwen2, with text.
"""

import importlib

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from tinyllm.grader.testing import (
    SMALL_QWEN2,
    ShippedTokenizer,
    as_float64,
    check,
    dtype_name,
    every_dtype,
    mlx_lm_module,
    require,
    shipped_model,
    task,
)

F32 = mx.float32
UNSURE = 1e-3  # of the largest logit; two computations in float32 differ by less than a tenth of that


def week2_model(solution, mlx_model):
    """Day 2.1's model, of the tree that is graded."""
    package = solution.BatchingKvCache.__module__.rpartition(".")[0]
    return importlib.import_module(f"{package}.qwen2_model").Qwen2ModelWeek2(mlx_model)


def checkpoint(dtype, *, seed):
    """An mlx-lm model with seeded weights in `dtype`, of size 1 / sqrt(inputs)."""
    family = mlx_lm_module("models.qwen2")
    model = family.Model(family.ModelArgs(**SMALL_QWEN2))
    rng = np.random.default_rng(seed)

    def normal(shape, scale, mean=0.0):
        values = rng.normal(mean, scale, shape).astype(np.float32)
        return mx.array(values).astype(dtype)

    for path, layer in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        if isinstance(layer, nn.RMSNorm):
            layer.weight = normal(layer.weight.shape, 0.3, 1.0)
        elif layer.parameters():  # RoPE has none
            gain = 2.0 if path.endswith("embed_tokens") else 1.0
            layer.weight = normal(layer.weight.shape, gain * layer.weight.shape[-1] ** -0.5)
            if "bias" in layer:
                layer.bias = normal(layer.bias.shape, 0.5)
    return model


def oracle_of(model):
    """mlx-lm's model of the same weights, computing in float32."""
    oracle = type(model)(model.args)
    oracle.update(model.parameters())
    oracle.set_dtype(F32)
    return oracle


# Roundings of a block are counted as on day 2.1: norm, attention, sum, norm, MLP, sum.
BLOCK = 10 + 24 + 1 + 10 + 16 + 1


def check_logits(got, want, length, dtype, what):
    """Logits against mlx-lm's after `length` tokens, with the tolerance of day 2.1's checks."""
    block = BLOCK + (2 * length if dtype == F32 else 0)  # RoPE's angles
    roundings = SMALL_QWEN2["num_hidden_layers"] * block + 12
    check.close(
        got,
        want,
        dtype=dtype,
        terms=SMALL_QWEN2["intermediate_size"],
        roundings=2 * roundings if dtype == F32 else roundings,  # in float32 mlx-lm rounds as well
        magnitude=np.sqrt((want**2).mean(axis=-1, keepdims=True)),
        what=what,
        fact="batch-alone",
    )


class Batch:
    """Texts of random ids in the slots of the day's caches, and mlx-lm's logits for each of them alone."""

    def __init__(self, solution, dtype, *, seed, slots=3):
        self.mlx_model = checkpoint(dtype, seed=seed)
        self.oracle = oracle_of(self.mlx_model)
        self.model = week2_model(solution, self.mlx_model)
        self.cache = solution.create_batching_cache(self.model, slots, 40)
        self.solution, self.dtype = solution, dtype
        self.rng = np.random.default_rng(seed)
        self.texts = [None] * slots  # the ids that each slot holds
        self.told = []

    def ids(self, n):
        return [int(n) for n in self.rng.integers(0, SMALL_QWEN2["vocab_size"], n)]

    def add(self, n, id):
        self.told.append(f"{n} tokens to slot {id}")
        self.texts[id] = self.ids(n)
        prefilled = self.model.create_kv_cache()
        self.model(mx.array([self.texts[id]]), 0, prefilled)
        for layer, own in zip(self.cache, prefilled, strict=True):
            layer.add_request(own, id)

    def remove(self, id):
        self.told.append(f"slot {id} removed")
        self.texts[id] = None
        for layer in self.cache:
            layer.remove_request(id)

    def run(self, L=1):
        """Run L tokens of every slot and compare the last logits of each with its text's alone."""
        self.told.append(f"a step of {L}" if L > 1 else "a step")
        new = [self.ids(L) for _ in self.texts]
        if L == 1:
            logits = self.solution.decode_step(self.model, self.cache, [ids[0] for ids in new])
        else:
            logits = self.model(mx.array(new), self.cache[0].offset, self.cache)[:, -1]
        kind = dtype_name(self.dtype)
        finite = bool(mx.all(mx.isfinite(logits)).item())
        what = f"whether all logits of the batch are finite, {kind}: {', '.join(self.told)}"
        check.exact(finite, True, what=what, fact="batch-alone")
        for id, text in enumerate(self.texts):
            if text is None:
                continue
            text += new[id]
            want = as_float64(self.oracle(mx.array([text])))[0, -1]
            what = f"logits of slot {id}, {len(text)} tokens, {kind}: {', '.join(self.told)}"
            check_logits(logits[id], want, len(text), self.dtype, what)


@task(4)
@every_dtype
def test_model_in_a_batch(solution, dtype):
    """Qwen2 in a batch: the logits of each row are those of its text alone"""
    batch = Batch(solution, dtype, seed=1)
    batch.add(5, 1)
    batch.run()
    batch.add(9, 0)
    batch.run()
    batch.add(1, 2)
    batch.run()
    batch.remove(0)
    batch.run()
    batch.add(3, 0)
    batch.run()


@task(4)
def test_model_chunk_in_a_batch(solution):
    """Qwen2 in a batch: several new tokens in every row at once, and an empty slot"""
    batch = Batch(solution, F32, seed=2, slots=4)
    batch.add(6, 3)
    batch.add(2, 0)
    batch.run(3)
    batch.add(10, 1)
    batch.run(2)
    batch.run()


PROMPTS = ("Once there was a girl named Anna.", "The dog", "One day, Tom found a box. He", "Mia and a kite")
REPLY = 6  # tokens


def sure_reply(mlx_model, prompt, eos):
    """mlx-lm's greedy reply without a cache, up to an EOS or a token that rounding could change."""
    reply = []
    while len(reply) < REPLY:
        row = as_float64(mlx_model(mx.array([[*prompt, *reply]])))[0, -1]
        second, best = np.sort(row)[-2:]
        token = int(row.argmax())
        if best - second < UNSURE * np.abs(row).max() or token in eos:
            break
        reply.append(token)
    return reply


@task(4)
def test_tiny_qwen2_in_a_batch(solution):
    """tiny-qwen2: every text begins as mlx-lm's reply to that prompt alone"""
    tokenizer, mlx_model = ShippedTokenizer("tiny-qwen2"), shipped_model("tiny-qwen2")
    encoded = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in PROMPTS]
    length = max(map(len, encoded)) + REPLY
    require(len({len(ids) for ids in encoded}) > 1, "all prompts are equally long")
    model = week2_model(solution, mlx_model)
    got = dict(solution.batch_generate(model, tokenizer, list(PROMPTS), length, 3, 4))
    compared = 0
    for idx, prompt in enumerate(PROMPTS):
        reply = sure_reply(mlx_model, encoded[idx], tokenizer.eos_token_ids)
        want = tokenizer.decode(reply, skip_special_tokens=True).rstrip("\ufffd")
        compared += len(reply)
        what = f"the beginning of the reply to {prompt!r}, tiny-qwen2 in a batch of 3"
        check.exact(got[idx][: len(want)], want, what=what, fact="batch-alone")
    require(compared >= 4, f"only {compared} tokens of all replies are beyond doubt")
