"""Day 1.3: the causal mask, grouped-query attention, and the attention layer of Qwen2 and Qwen3.

The plain version: it writes the whole (L, S) score matrix of every head, it turns keys and values afresh on
every call, and it keeps nothing between calls. Day 2.1 adds the key-value cache, day 2.4 a kernel that never
holds the scores.

Letters: N batch, L query positions, S key positions, H_q query heads, H key/value heads, D head dim,
E hidden size. `N..` is zero or more batch axes.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from .attention import linear, softmax
from .rope import RoPE

HeadNorm = Callable[[mx.array], mx.array]  # N x L x H x D -> the same shape and dtype


def causal_mask(L: int, S: int, dtype: mx.Dtype) -> mx.array:
    """The additive mask that hides the future from L queries standing at the end of S keys.

    causal_mask(L, S, dtype) is additive: 0 where query i may look at key j, which is j <= i + (S - L),
    and -inf everywhere else. It needs L <= S.

    The L queries are the last L of the S positions, so the rule aligns to the end of S: the last query
    sees every key, and each query sees its own position.

    Args:
        L: number of queries, at least 1.
        S: number of keys, at least L.
        dtype: floating dtype of the result.

    Returns:
        (L, S) array of `dtype`.
    """
    raise NotImplementedError("day 1.3, task 1: causal_mask")


def scaled_dot_product_attention_grouped(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    scale: float | None = None,
    mask: mx.array | str | None = None,
) -> mx.array:
    """softmax(query key^T * scale + mask) value, where groups of query heads share one KV head.

    Query head h reads KV head h // (H_q // H): neighbouring query heads share one KV head.

    scale is a Python float; None means 1 / sqrt(D).

    mask is None (every query sees every key), "causal" (the mask of causal_mask), or an additive array
    that broadcasts to N.. x H_q x L x S.

    The result has the query's shape and the query's dtype, whatever the mask's dtype.

    query, key, value and a mask array are only read: the caller's arrays stay as they were.

    Formula: Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models", 2023, section 2.2.

    Args:
        query: (N.., H_q, L, D).
        key: (N.., H, S, D), of the query's dtype. H divides H_q.
        value: (N.., H, S, D), of the query's dtype.
        scale: factor on the scores.
        mask: see above; "causal" needs L <= S.

    Returns:
        (N.., H_q, L, D) array of the query's dtype.

    Raises:
        ValueError: H does not divide H_q.
    """
    raise NotImplementedError("day 1.3, task 2: scaled_dot_product_attention_grouped")


class Qwen2MultiHeadAttention:
    """Qwen2's and Qwen3's self-attention layer: project, rotate, attend in groups, project back.

    Weights are stored (out, in): wq is (H_q * D, E), wk and wv are (H * D, E), wo is (E, H_q * D). So D is
    wq.shape[0] // num_heads; it need not be hidden_size // num_heads.

    bq, bk and bv, arrays of H_q * D, H * D and H * D numbers, are the biases of the query, key and value
    projections; where one is None there is none. The output projection never has one.

    q_norm is called with the query heads and k_norm with the key heads, N x L x H x D, after the projection
    with its bias and before RoPE; the result takes their place. Where one is None, nothing is done.

    RoPE turns the queries and the keys, never the values: split halves (traditional=False), base theta,
    positions 0 to L - 1.

    The mask goes to scaled_dot_product_attention_grouped with S = L; None is no mask, not a causal one.

    The result has x's shape and x's dtype.

    x is only read: the caller's array stays as it was.

    Source: the Qwen2 technical report (Yang et al., 2024), section 2.2, the Qwen3 technical report (Yang et
    al., 2025), section 2, and the checkpoints' config.json.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        wq: mx.array,
        wk: mx.array,
        wv: mx.array,
        wo: mx.array,
        bq: mx.array | None,
        bk: mx.array | None,
        bv: mx.array | None,
        max_seq_len: int = 32768,
        theta: int = 1000000,
        q_norm: HeadNorm | None = None,
        k_norm: HeadNorm | None = None,
    ) -> None:
        """hidden_size E; num_heads H_q; num_kv_heads H, which divides H_q.

        max_seq_len bounds the positions (L <= max_seq_len); theta is RoPE's base. All arrays have one dtype.
        Qwen2 has the three biases and no norms, Qwen3 the two norms and no biases.
        """
        raise NotImplementedError("day 1.3, task 3: Qwen2MultiHeadAttention.__init__")

    def __call__(self, x: mx.array, mask: mx.array | str | None = None) -> mx.array:
        """Attend over x, (N, L, E), and return an array of the same shape and dtype."""
        raise NotImplementedError("day 1.3, task 3: Qwen2MultiHeadAttention.__call__")
