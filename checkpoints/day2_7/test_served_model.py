"""Day 2.7, the real thing: requests served in chunks and batches, beside mlx-lm's model on each whole text.

The model is day 2.1's, on small random weights; mlx-lm's has the same, and no cache.
"""

import importlib

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from tinyllm.grader.testing import SMALL_QWEN2, as_float64, check, mlx_lm_module, task

UNSURE = 1e-3  # of the largest logit; two computations in float32 differ by less than a tenth of that
# Roundings of a block as on day 2.1: norm, attention, sum, norm, MLP, sum.
BLOCK = 10 + 24 + 1 + 10 + 16 + 1


class Ids:
    """A tokenizer for prompts that are ids already; nothing ends a reply."""

    eos_token_ids = frozenset()

    def encode(self, text, add_special_tokens=True):
        return [int(word) for word in text.split()]

    def decode(self, token_ids, skip_special_tokens=False):
        return "".join(f"{token} " for token in token_ids)


def checkpoint(seed):
    """An mlx-lm model with seeded weights of size 1 / sqrt(inputs)."""
    family = mlx_lm_module("models.qwen2")
    model = family.Model(family.ModelArgs(**SMALL_QWEN2))
    rng = np.random.default_rng(seed)

    def normal(shape, scale, mean=0.0):
        return mx.array(rng.normal(mean, scale, shape).astype(np.float32))

    for path, layer in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        if isinstance(layer, nn.RMSNorm):
            layer.weight = normal(layer.weight.shape, 0.3, 1.0)
        elif layer.parameters():  # RoPE has none
            gain = 2.0 if path.endswith("embed_tokens") else 1.0
            layer.weight = normal(layer.weight.shape, gain * layer.weight.shape[-1] ** -0.5)
            if "bias" in layer:
                layer.bias = normal(layer.bias.shape, 0.5)
    return model


def week2_model(solution, mlx_model):
    """Day 2.1's model, of the tree that is graded."""
    package = solution.Engine.__module__.rpartition(".")[0]
    return importlib.import_module(f"{package}.qwen2_model").Qwen2ModelWeek2(mlx_model)


@task(5)
def test_qwen2(solution):
    """Qwen2 with random weights: four requests in two slots, each as mlx-lm would have it alone"""
    mlx_model = checkpoint(seed=27)
    engine = solution.Engine(week2_model(solution, mlx_model), Ids(), 2, 48, 6, 4)
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, SMALL_QWEN2["vocab_size"], n).tolist() for n in (9, 3, 1, 14)]
    settings = solution.Settings(max_tokens=8)
    events = {}
    for prompt in prompts:
        events[engine.submit(prompt, settings)] = []
        for event in engine.step():
            events[event.id].append(event)
    for _ in range(60):
        for event in engine.step():
            events[event.id].append(event)
    for prompt, (id, given) in zip(prompts, events.items(), strict=True):
        what = f"request {id}, a prompt of {len(prompt)} tokens, 2 slots, budget 6, chunks of 4"
        sampled = [s for event in given for s in event.logprobs]
        check.exact(len(sampled), 8, what=f"tokens of {what}, max_tokens 8", fact="run-sampled")
        tokens = [s.token for s in sampled]
        logits = as_float64(mlx_model(mx.array([prompt + tokens])))[0, len(prompt) - 1 : -1]
        own = logits[np.arange(8), tokens]
        best = logits.max(axis=-1) - own <= UNSURE * np.abs(logits).max()
        shown = f"whether each token is the one with mlx-lm's largest logit, {what}"
        check.exact(best.tolist(), [True] * 8, what=shown, fact="run-sampled")
        length = len(prompt) + 8
        check.close(
            mx.array([s.logprob for s in sampled]),
            own - np.log(np.exp(logits).sum(axis=-1)),
            dtype=mx.float32,
            terms=SMALL_QWEN2["intermediate_size"],
            roundings=2 * (SMALL_QWEN2["num_hidden_layers"] * (BLOCK + 2 * length) + 12),
            magnitude=np.sqrt((logits**2).mean(axis=-1)),
            what=f"log-probabilities of the tokens of {what}",
            fact="sample-logprobs",
        )
