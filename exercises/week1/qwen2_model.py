"""Day 1.5: the whole Qwen2 model (and Qwen3's dense one), from token ids to logits.

The plain version: every weight is dequantised once, when the model is built, and all L positions are computed
afresh on every call. So a 4-bit checkpoint takes as much memory as an unquantised one, and writing n tokens
costs n passes over a growing text. Day 2.1 adds the key-value cache, day 2.2 multiplies by packed weights.

Letters: N batch, L tokens, E hidden size, V vocabulary size, H_q query heads, H key/value heads, D head dim.
`N..` is zero or more leading axes.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .attention import linear
from .gqa import Qwen2MultiHeadAttention
from .norm_mlp import Qwen2MLP, RMSNorm


class Embedding:
    """One row of E numbers for each of the V tokens, read in both directions.

    Embedding(vocab_size, embedding_dim, weight) holds weight, V x E; called with token ids, it returns
    row x of weight for each id x: integers of shape N.. in, N.. x E in weight's dtype out.

    as_linear(x) multiplies by the same weight the other way round, linear(x, weight): N.. x E in, N.. x V
    in x's dtype out.

    Source: Press and Wolf, "Using the Output Embedding to Improve Language Models", 2017, for the second use.
    """

    def __init__(self, vocab_size: int, embedding_dim: int, weight: mx.array) -> None:
        """vocab_size: V; embedding_dim: E; weight: (V, E), floating."""
        raise NotImplementedError("day 1.5, task 1: Embedding.__init__")

    def __call__(self, x: mx.array) -> mx.array:
        """The rows of the ids x, integers from 0 to V - 1 of shape N..; returns N.. x E."""
        raise NotImplementedError("day 1.5, task 1: Embedding.__call__")

    def as_linear(self, x: mx.array) -> mx.array:
        """How well each of the V rows goes with x, (N.., E), of the weight's dtype; returns N.. x V."""
        raise NotImplementedError("day 1.5, task 1: Embedding.as_linear")


class Qwen2TransformerBlock:
    """One layer of Qwen2 or Qwen3: attention and an MLP, each on a normalised copy of the stream.

    The block is pre-norm: h = x + self_attn(input_layernorm(x)), and the result is
    h + mlp(post_attention_layernorm(h)).

    rms_norm_eps is the eps of both norms; max_seq_len and theta go to the attention.

    bq, bk and bv go to the attention as they came: None is no bias. w_q_norm and w_k_norm, each (D,), make
    its q_norm and k_norm, an RMSNorm over D numbers with eps rms_norm_eps; None makes none.

    The mask goes to the attention as it came; None is no mask, not a causal one.

    The result has x's shape and x's dtype.

    x is only read: the caller's array stays as it was.

    Weights are stored (out, in), with the shapes of days 1.3 and 1.4; all arrays have one dtype.

    Source: the Qwen2 technical report (Yang et al., 2024), section 2.2; Xiong et al., "On Layer Normalization
    in the Transformer Architecture", 2020, for the place of the norms.
    """

    def __init__(
        self,
        num_attention_heads: int,
        num_kv_heads: int,
        hidden_size: int,
        intermediate_size: int,
        rms_norm_eps: float,
        wq: mx.array,
        wk: mx.array,
        wv: mx.array,
        wo: mx.array,
        bq: mx.array | None,
        bk: mx.array | None,
        bv: mx.array | None,
        w_gate: mx.array,
        w_up: mx.array,
        w_down: mx.array,
        w_input_layernorm: mx.array,
        w_post_attention_layernorm: mx.array,
        max_seq_len: int = 32768,
        theta: int = 1000000,
        w_q_norm: mx.array | None = None,
        w_k_norm: mx.array | None = None,
    ) -> None:
        """num_attention_heads H_q, num_kv_heads H, hidden_size E; the two layernorms' weights are (E,)."""
        raise NotImplementedError("day 1.5, task 2: Qwen2TransformerBlock.__init__")

    def __call__(self, x: mx.array, mask: mx.array | str | None = None) -> mx.array:
        """x: (N, L, E); mask as in Qwen2MultiHeadAttention. Same shape and dtype back."""
        raise NotImplementedError("day 1.5, task 2: Qwen2TransformerBlock.__call__")


def dequantize_linear(mlx_layer: Any) -> mx.array:
    """The weight of a layer of an mlx-lm model as one floating array, quantised or not.

    A layer that has `scales` is quantised: dequantize_linear returns mx.dequantize of its weight, scales and
    biases, with that layer's own group_size and bits. Of any other layer it returns the weight as it is.

    The layer is a linear or an embedding, and the result is its weight alone, (out, in) or (V, E), without a
    linear's own `bias`; it has the dtype of the layer's scales, or of the unquantised weight.

    Args:
        mlx_layer: an mlx.nn Linear, QuantizedLinear (affine mode), Embedding or QuantizedEmbedding.
    """
    raise NotImplementedError("day 1.5, task 3: dequantize_linear")


class Qwen2ModelWeek1:
    """Qwen2 or Qwen3: embedding, layers, a last norm and the head, with the weights of a model that mlx-lm
    loaded.

    Qwen2ModelWeek1(mlx_model) reads mlx_model.args, the weights below mlx_model.model (embed_tokens, layers,
    norm) and, when the head is untied, mlx_model.lm_head; it calls none of them.

    Each number of the configuration comes from mlx_model.args: hidden_size, vocab_size, intermediate_size,
    num_attention_heads, num_key_value_heads, rms_norm_eps, rope_theta, max_position_embeddings.

    Each layer's attention has what the checkpoint has: the `bias` of a projection where there is one
    (Qwen2), the weights of q_norm and k_norm where there are these (Qwen3), and None where not.

    Each layer gets the mask "causal", so a position sees itself and what stands before it; for L = 1 no mask
    is right as well.

    The stream goes through all layers in order and then through the last norm, mlx_model.model.norm. If
    args.tie_word_embeddings is true the head is the embedding's as_linear, otherwise linear with
    mlx_model.lm_head's weight.

    The model maps token ids N x L to logits N x L x V, one row for each position, in the checkpoint's dtype.

    Source: the Qwen2 technical report (Yang et al., 2024), section 2.2, and the Qwen3 technical report (Yang
    et al., 2025), section 2.
    """

    def __init__(self, mlx_model: Any) -> None:
        """mlx_model: the model that mlx_lm.load returns beside the tokenizer, model_type qwen2 or qwen3."""
        raise NotImplementedError("day 1.5, task 4: Qwen2ModelWeek1.__init__")

    def __call__(self, inputs: mx.array) -> mx.array:
        """inputs: token ids, integers (N, L), L at most max_position_embeddings; returns (N, L, V)."""
        raise NotImplementedError("day 1.5, task 4: Qwen2ModelWeek1.__call__")
