"""Day 2.1: Qwen2 and Qwen3 with a key-value cache: a call runs the new tokens alone.

Built from week 1's parts. What later days make faster comes in as arguments: what a linear layer of the
checkpoint becomes, what its embedding becomes, and the attention. Day 2.2 passes functions that keep the
weights packed, day 2.4 an attention that never holds the scores; this file stays as it is.

Letters: N batch, L new tokens, S tokens so far, E hidden size, V vocabulary size, H_q query heads, H
key/value heads, D head dim. `N..` is zero or more leading axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx

from ..week1.attention import linear
from ..week1.gqa import scaled_dot_product_attention_grouped
from ..week1.norm_mlp import RMSNorm, silu
from ..week1.qwen2_model import Embedding, dequantize_linear
from ..week1.rope import RoPE
from .kv_cache import Mask, TinyKvCache, TinyKvStepCache

Linear = Callable[[mx.array], mx.array]  # (N.., in) -> (N.., out), of the same dtype
Attention = Callable[..., mx.array]  # with the arguments of scaled_dot_product_attention_grouped


class TokenEmbedding(Protocol):
    """An embedding in both directions, as day 1.5's Embedding has them."""

    def __call__(self, x: mx.array) -> mx.array: ...

    def as_linear(self, x: mx.array) -> mx.array: ...


def dense_linear(mlx_layer: Any) -> Linear:
    """A linear layer of the checkpoint as a function x -> x W^T + b, with its weight dequantised once.

    Args:
        mlx_layer: an mlx.nn Linear or QuantizedLinear; without a `bias` nothing is added.
    """
    weight, bias = dequantize_linear(mlx_layer), getattr(mlx_layer, "bias", None)
    return lambda x: linear(x, weight, bias)


def dense_embedding(mlx_layer: Any) -> TokenEmbedding:
    """The checkpoint's embedding as day 1.5's Embedding, with its weight dequantised once.

    Args:
        mlx_layer: an mlx.nn Embedding or QuantizedEmbedding.
    """
    weight = dequantize_linear(mlx_layer)
    return Embedding(*weight.shape, weight)


class CachedAttention:
    """The attention layer of Qwen2 and Qwen3, for L new tokens behind those that a cache holds.

    q_proj, k_proj, v_proj and o_proj are functions from N x L x in to N x L x out, with whatever bias they
    have inside.

    The new tokens stand at positions offset to offset + L - 1. Queries and keys are turned there, rope(x,
    slice), after q_norm and k_norm where there are these; values are not turned.

    offset is one number for all rows, or a list with one for each: row n then stands at offset[n], and rope
    is given a list of slices.

    Each call updates the cache once, with keys and values as attention reads them: N x H x L x D, and the
    keys normed and turned. The update is cache.update_and_fetch(key, value, mask_length=L, mask=mask), with
    the mask that the layer was given.

    The result of attention(query, key, value, mask=mask), with the query N x H_q x L x D and with the key,
    the value and the mask that the cache returned, goes through o_proj, heads side by side.

    The result has x's shape and x's dtype, and x is only read.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        q_proj: Linear,
        k_proj: Linear,
        v_proj: Linear,
        o_proj: Linear,
        rope: RoPE,
        q_norm: RMSNorm | None = None,
        k_norm: RMSNorm | None = None,
        attention: Attention = scaled_dot_product_attention_grouped,
    ) -> None:
        """num_heads H_q; num_kv_heads H, which divides H_q; rope and the norms take N x L x heads x D."""
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = q_proj, k_proj, v_proj, o_proj
        self.rope = rope
        self.q_norm, self.k_norm = q_norm, k_norm
        self.attention = attention

    def __call__(
        self, x: mx.array, offset: int | list[int], cache: TinyKvCache, mask: Mask = None
    ) -> mx.array:
        """x: (N, L, E), the new tokens; offset: tokens in the cache before the call; mask: for the cache."""
        N, L, _ = x.shape
        query = self.q_proj(x).reshape(N, L, self.num_heads, -1)
        key = self.k_proj(x).reshape(N, L, self.num_kv_heads, -1)
        value = self.v_proj(x).reshape(N, L, self.num_kv_heads, -1)
        if self.q_norm is not None:
            query = self.q_norm(query)
        if self.k_norm is not None:
            key = self.k_norm(key)

        # subtle: turned before they are stored. A token's position never changes, so it is turned once.
        if isinstance(offset, list):
            positions = [slice(start, start + L) for start in offset]
        else:
            positions = slice(offset, offset + L)
        # Queries and keys at once: their angles are the same, and RoPE takes any number of heads.
        turned = self.rope(mx.concatenate([query, key], axis=2), positions).transpose(0, 2, 1, 3)
        query, key = mx.split(turned, [self.num_heads], axis=1)  # (N, H_q, L, D) and (N, H, L, D)
        value = value.transpose(0, 2, 1, 3)
        key, value, _, mask = cache.update_and_fetch(key, value, mask_length=L, mask=mask)  # (N, H, S, D)

        out = self.attention(query, key, value, mask=mask)  # (N, H_q, L, D)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(N, L, -1))


class CachedBlock:
    """One layer: attention and the gated MLP, each on a normalised copy of the stream, as on day 1.5."""

    def __init__(
        self,
        input_layernorm: RMSNorm,
        self_attn: CachedAttention,
        post_attention_layernorm: RMSNorm,
        gate_proj: Linear,
        up_proj: Linear,
        down_proj: Linear,
    ) -> None:
        self.input_layernorm = input_layernorm
        self.self_attn = self_attn
        self.post_attention_layernorm = post_attention_layernorm
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj

    def __call__(
        self, x: mx.array, offset: int | list[int], cache: TinyKvCache, mask: Mask = None
    ) -> mx.array:
        """x: (N, L, E), offset, cache and mask as in CachedAttention; same shape and dtype back."""
        h = x + self.self_attn(self.input_layernorm(x), offset, cache, mask)
        normed = self.post_attention_layernorm(h)
        return h + self.down_proj(silu(self.gate_proj(normed)) * self.up_proj(normed))


class Qwen2ModelWeek2:
    """Qwen2 or Qwen3 with the weights of a model that mlx-lm loaded, run on new tokens alone.

    A linear layer of the checkpoint is used as linear_of(layer) gives it, its embedding as
    embedding_of(layer) does; every layer's attention is the one given. If args.tie_word_embeddings is true
    the head is the embedding's as_linear, otherwise linear_of(mlx_model.lm_head).

    The configuration comes from mlx_model.args, as on day 1.5, and D from the rows of q_proj's weight. Each
    attention has q_norm and k_norm where the checkpoint has them, with eps rms_norm_eps.

    model(inputs, offset, cache) maps the ids of L new tokens, N x L, to their logits, N x L x V, in the
    checkpoint's dtype. offset is the number of tokens that each cache holds before the call, one for all rows
    or a list with one for each, and layer i uses cache[i].

    A new token sees itself and everything before it, in the cache too: the mask is "causal", or None for
    L = 1.

    create_kv_cache() gives a list of new, empty caches, one a layer; num_hidden_layers is their number. The
    model itself keeps nothing from one call to the next.
    """

    def __init__(
        self,
        mlx_model: Any,
        linear_of: Callable[[Any], Linear] = dense_linear,
        embedding_of: Callable[[Any], TokenEmbedding] = dense_embedding,
        attention: Attention = scaled_dot_product_attention_grouped,
    ) -> None:
        """mlx_model: the model that mlx_lm.load returns beside the tokenizer, model_type qwen2 or qwen3."""
        args = mlx_model.args
        inner = mlx_model.model
        # subtle: from a weight's rows, which packing leaves alone. D need not be E / H_q.
        head_dim = inner.layers[0].self_attn.q_proj.weight.shape[0] // args.num_attention_heads
        # One table of cosines and sines for all layers: 34 MB for 131072 positions and D = 64.
        rope = RoPE(head_dim, args.max_position_embeddings, base=args.rope_theta, traditional=False)

        def norm(mlx_layer: Any) -> RMSNorm:
            return RMSNorm(mlx_layer.weight.shape[0], mlx_layer.weight, eps=args.rms_norm_eps)

        def block(mlx_layer: Any) -> CachedBlock:
            attn, mlp = mlx_layer.self_attn, mlx_layer.mlp
            return CachedBlock(
                input_layernorm=norm(mlx_layer.input_layernorm),
                self_attn=CachedAttention(
                    args.num_attention_heads,
                    args.num_key_value_heads,
                    q_proj=linear_of(attn.q_proj),
                    k_proj=linear_of(attn.k_proj),
                    v_proj=linear_of(attn.v_proj),
                    o_proj=linear_of(attn.o_proj),
                    rope=rope,
                    q_norm=norm(attn.q_norm) if hasattr(attn, "q_norm") else None,
                    k_norm=norm(attn.k_norm) if hasattr(attn, "k_norm") else None,
                    attention=attention,
                ),
                post_attention_layernorm=norm(mlx_layer.post_attention_layernorm),
                gate_proj=linear_of(mlp.gate_proj),
                up_proj=linear_of(mlp.up_proj),
                down_proj=linear_of(mlp.down_proj),
            )

        self.embed_tokens = embedding_of(inner.embed_tokens)
        self.layers = [block(layer) for layer in inner.layers]
        self.norm = norm(inner.norm)
        tied = args.tie_word_embeddings
        self.lm_head = self.embed_tokens.as_linear if tied else linear_of(mlx_model.lm_head)

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)

    def create_kv_cache(self) -> list[TinyKvCache]:
        return [TinyKvStepCache() for _ in self.layers]

    def __call__(self, inputs: mx.array, offset: int | list[int], cache: Sequence[TinyKvCache]) -> mx.array:
        """inputs: integers (N, L); returns (N, L, V). Positions stay below max_position_embeddings."""
        # subtle: "causal" is aligned to the end of S, so one word fits a prompt and a chunk behind others.
        mask = None if inputs.shape[1] == 1 else "causal"
        h = self.embed_tokens(inputs)  # (N, L, E)
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            h = layer(h, offset, layer_cache, mask)
        return self.lm_head(self.norm(h))  # (N, L, V)
