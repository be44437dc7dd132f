"""Qwen2 as a function of its parameters, so that mx.value_and_grad can differentiate it.

The layers are the first week's: here they are built anew, around the parameters as they stand, each time the
model runs. The parameters are one flat dict whose keys are a Qwen2 checkpoint's own
("model.layers.0.self_attn.q_proj.weight"), so saving and exporting need no table of names.

What it is not: fast at generating. `greedy` keeps keys and values, but by concatenation.

Letters: B batch, L positions, S key positions, H_q query heads, H key/value heads, D head dim, E hidden size,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..week1.attention import linear
from ..week1.norm_mlp import RMSNorm
from ..week1.rope import RoPE

Parameters = dict[str, mx.array]
Cache = list[tuple[mx.array, mx.array] | None]  # one entry a layer: keys and values, (B, H, S, D) each

HIDDEN = -1e9  # added to the score of a key that a query may not see; -inf would make an all-hidden row nan


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. Field names are those of a Qwen2 checkpoint's config.json."""

    vocab_size: int = 1920
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    intermediate_size: int = 384
    max_position_embeddings: int = 1024
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide hidden_size {self.hidden_size}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} KV heads"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and shape, in the checkpoint's order. Embedding and head are one (tied)."""
        E, F = self.hidden_size, self.intermediate_size
        Q, KV = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, E)}
        for layer in range(self.num_hidden_layers):
            p = f"model.layers.{layer}"
            shapes[f"{p}.input_layernorm.weight"] = (E,)
            for name, width in (("q_proj", Q), ("k_proj", KV), ("v_proj", KV)):
                shapes[f"{p}.self_attn.{name}.weight"] = (width, E)
                shapes[f"{p}.self_attn.{name}.bias"] = (width,)
            shapes[f"{p}.self_attn.o_proj.weight"] = (E, Q)
            shapes[f"{p}.post_attention_layernorm.weight"] = (E,)
            shapes[f"{p}.mlp.gate_proj.weight"] = (F, E)
            shapes[f"{p}.mlp.up_proj.weight"] = (F, E)
            shapes[f"{p}.mlp.down_proj.weight"] = (E, F)
        shapes["model.norm.weight"] = (E,)
        return shapes

    @property
    def parameter_count(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes().values())


def init_parameters(config: GPTConfig, seed: int) -> Parameters:
    """Fresh float32 parameters: norms 1, biases 0, most matrices normal with deviation 1 / sqrt(row length).

    The two matrices that write to the residual stream are 0: at first the stream is the token's embedding
    alone, at every depth, and each layer adds to it what training finds useful. GPT-2's deviation, 0.02 for
    all, is for wider models: with it this one learns to copy, which most of the corpus asks for, three times
    as late.
    """
    key = mx.random.key(seed)
    parameters: Parameters = {}
    for name, shape in config.shapes().items():
        if name.endswith("norm.weight"):
            parameters[name] = mx.ones(shape)
        elif name.endswith((".bias", "o_proj.weight", "down_proj.weight")):
            parameters[name] = mx.zeros(shape)
        else:
            key, use = mx.random.split(key)
            parameters[name] = shape[1] ** -0.5 * mx.random.normal(shape, key=use)
    return parameters


def forward(
    parameters: Parameters,
    config: GPTConfig,
    tokens: mx.array,
    segments: mx.array | None = None,
    cache: Cache | None = None,
) -> mx.array:
    """The final hidden states, (B, L, E), after the last norm; `logits` turns them into scores.

    Args:
        parameters: as from init_parameters; float32, or bfloat16 to compute in that.
        tokens: (B, L) integers.
        segments: (B, S) integers, or None: which text each key position belongs to. A query attends only to
            keys of its own segment, so several texts share one row without seeing each other.
        cache: None, or a list with an entry for each layer that is read and then replaced, in place. The L
            tokens then stand at the end of S = cached + L positions.
    """
    L = tokens.shape[1]
    past = 0 if cache is None or cache[0] is None else cache[0][0].shape[2]
    mask = attention_mask(L, past + L, segments)
    rope = RoPE(config.head_dim, past + L, base=config.rope_theta)
    x = parameters["model.embed_tokens.weight"][tokens]  # (B, L, E)
    for layer in range(config.num_hidden_layers):
        x = _block(parameters, config, layer, x, mask, rope, cache)
    return RMSNorm(config.hidden_size, parameters["model.norm.weight"], config.rms_norm_eps)(x)


def logits(parameters: Parameters, hidden: mx.array) -> mx.array:
    """(.., E) -> (.., V). The head is the embedding (tied)."""
    return linear(hidden, parameters["model.embed_tokens.weight"])


def attention_mask(L: int, S: int, segments: mx.array | None) -> mx.array:
    """Additive float32 mask, (L, S), or (B, 1, L, S) with segments: the past of the same segment is seen."""
    query, key = mx.arange(S - L, S)[:, None], mx.arange(S)[None, :]
    seen = key <= query  # (L, S)
    if segments is not None:
        same = segments[:, S - L :, None] == segments[:, None, :]  # (B, L, S)
        seen = (seen & same)[:, None]
    return mx.where(seen, 0.0, HIDDEN)


def greedy(
    parameters: Parameters, config: GPTConfig, prompts: Sequence[list[int]], stop: set[int], max_tokens: int
) -> list[list[int]]:
    """The likeliest continuation of each prompt, token by token, without the stop token; all in one batch."""
    L = max(len(prompt) for prompt in prompts)
    # Aligned at the end; what is before a prompt is a segment of its own and is not seen.
    tokens = mx.array([[0] * (L - len(p)) + list(p) for p in prompts], dtype=mx.int32)
    segments = mx.array([[0] * (L - len(p)) + [1] * len(p) for p in prompts], dtype=mx.int32)
    cache: Cache = [None] * config.num_hidden_layers
    replies: list[list[int]] = [[] for _ in prompts]
    running = [True] * len(prompts)
    for _ in range(max_tokens):
        hidden = forward(parameters, config, tokens, segments, cache)[:, -1]  # (B, E)
        chosen = mx.argmax(logits(parameters, hidden), axis=-1).astype(mx.int32)
        for row, token in enumerate(chosen.tolist()):
            running[row] = running[row] and token not in stop
            if running[row]:
                replies[row].append(token)
        if not any(running):
            break
        tokens = chosen[:, None]
        segments = mx.concatenate([segments, mx.ones_like(tokens)], axis=1)
    return replies


def _block(
    parameters: Parameters,
    config: GPTConfig,
    layer: int,
    x: mx.array,
    mask: mx.array,
    rope: RoPE,
    cache: Cache | None,
) -> mx.array:
    """One transformer block: x, (B, L, E), plus attention, plus MLP."""
    B, L, E = x.shape

    def p(name: str) -> mx.array:
        return parameters[f"model.layers.{layer}.{name}"]

    def heads(name: str, count: int) -> mx.array:  # (B, L, count, D)
        projected = linear(normed, p(f"self_attn.{name}.weight"), p(f"self_attn.{name}.bias"))
        return projected.reshape(B, L, count, config.head_dim)

    normed = RMSNorm(E, p("input_layernorm.weight"), config.rms_norm_eps)(x)
    here = slice(mask.shape[-1] - L, mask.shape[-1])
    query = rope(heads("q_proj", config.num_attention_heads), here).swapaxes(1, 2)  # (B, H_q, L, D)
    key = rope(heads("k_proj", config.num_key_value_heads), here).swapaxes(1, 2)  # (B, H, L, D)
    value = heads("v_proj", config.num_key_value_heads).swapaxes(1, 2)
    if cache is not None:
        if cache[layer] is not None:
            key = mx.concatenate([cache[layer][0], key], axis=2)
            value = mx.concatenate([cache[layer][1], value], axis=2)
        cache[layer] = (key, value)
    x = x + linear(_attend(query, key, value, mask), p("self_attn.o_proj.weight"))

    normed = RMSNorm(E, p("post_attention_layernorm.weight"), config.rms_norm_eps)(x)
    gate = linear(normed, p("mlp.gate_proj.weight"))
    # mx.sigmoid's gradient costs no second exp; silu's, written out, does.
    inside = gate * mx.sigmoid(gate) * linear(normed, p("mlp.up_proj.weight"))
    return x + linear(inside, p("mlp.down_proj.weight"))


def _attend(query: mx.array, key: mx.array, value: mx.array, mask: mx.array) -> mx.array:
    """Grouped attention, (B, L, H_q * D).

    As on day 1.3, but with mx.softmax, whose gradient is one operation: on a CPU exp is what a step spends
    its time on.
    """
    B, H_q, L, D = query.shape
    H = key.shape[1]
    query = (query * D**-0.5).reshape(B, H, H_q // H, L, D)
    scores = (query @ key[:, :, None].swapaxes(-1, -2)).astype(mx.float32)  # (B, H, group, L, S)
    weights = mx.softmax(scores + (mask if mask.ndim == 2 else mask[:, None]), axis=-1)
    attended = weights.astype(value.dtype) @ value[:, :, None]  # (B, H, group, L, D)
    return attended.reshape(B, H_q, L, D).swapaxes(1, 2).reshape(B, L, H_q * D)
