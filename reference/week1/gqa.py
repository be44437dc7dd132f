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
    query_position = mx.arange(S - L, S)[:, None]  # (L, 1)
    key_position = mx.arange(S)[None, :]  # (1, S)
    # subtle: chosen, not multiplied. A 0/1 mask times -inf has 0 * -inf = nan where it should have 0.
    return mx.where(key_position <= query_position, 0.0, -mx.inf).astype(dtype)


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
    *batch, H_q, L, D = query.shape
    H, S = key.shape[-3], key.shape[-2]
    group = H_q // H  # query heads that share one KV head
    if scale is None:
        scale = D**-0.5

    # K and V get a group axis of length 1, which broadcasts: H heads are read from memory, not H_q. Writing
    # the repeated copies out first would give back the bytes that sharing saves.
    # subtle: (H, group), not (group, H). The head axis is cut into H runs of neighbours.
    # subtle: float32, because Qwen2's keys are large enough for a float16 score to overflow and for a
    # bfloat16 score to be off by a good part of 1, which exp then magnifies.
    q = query.astype(mx.float32).reshape(*batch, H, group, L, D)
    k = key.astype(mx.float32).reshape(*batch, H, 1, S, D)
    v = value.astype(mx.float32).reshape(*batch, H, 1, S, D)

    scores = q @ k.swapaxes(-1, -2)  # (N.., H, group, L, S)
    scores = scores.reshape(*batch, H_q, L, S) * scale  # a mask speaks of query heads
    if isinstance(mask, str):  # "causal" is the only word
        scores = scores + causal_mask(L, S, mx.float32)
    elif mask is not None:
        scores = scores + mask
    weights = softmax(scores, axis=-1)

    out = weights.reshape(*batch, H, group, L, S) @ v  # (N.., H, group, L, D)
    return out.reshape(*batch, H_q, L, D).astype(query.dtype)


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
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        # subtle: from the weight. Qwen3-0.6B has 16 heads of 128 on a hidden size of 1024.
        self.head_dim = wq.shape[0] // num_heads
        self.wq, self.wk, self.wv, self.wo = wq, wk, wv, wo
        self.bq, self.bk, self.bv = bq, bk, bv
        self.q_norm, self.k_norm = q_norm, k_norm
        self.rope = RoPE(self.head_dim, max_seq_len, base=theta, traditional=False)

    def __call__(self, x: mx.array, mask: mx.array | str | None = None) -> mx.array:
        """Attend over x, (N, L, E), and return an array of the same shape and dtype."""
        N, L, _ = x.shape
        query = linear(x, self.wq, self.bq).reshape(N, L, self.num_heads, self.head_dim)
        key = linear(x, self.wk, self.bk).reshape(N, L, self.num_kv_heads, self.head_dim)
        value = linear(x, self.wv, self.bv).reshape(N, L, self.num_kv_heads, self.head_dim)

        # subtle: before RoPE. A norm has a weight for each of the D numbers, and RoPE mixes those in pairs.
        if self.q_norm is not None:
            query = self.q_norm(query)
        if self.k_norm is not None:
            key = self.k_norm(key)

        # subtle: RoPE takes N x L x H x D and finds the position on axis 1, so it comes before the transpose.
        query = self.rope(query).transpose(0, 2, 1, 3)  # (N, H_q, L, D)
        key = self.rope(key).transpose(0, 2, 1, 3)  # (N, H, L, D)
        value = value.transpose(0, 2, 1, 3)

        out = scaled_dot_product_attention_grouped(query, key, value, mask=mask)
        out = out.transpose(0, 2, 1, 3).reshape(N, L, self.num_heads * self.head_dim)  # heads side by side
        return linear(out, self.wo)
