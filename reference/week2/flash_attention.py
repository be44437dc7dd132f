"""Day 2.4: attention that never holds its L x S scores.

What this is: the softmax computed from pieces and merged, attention over tiles with array operations, and the
operation on the C++ kernel that does the same fast (kernels/flash_attention.cpp). What it is not: another
attention. Its results are those of day 1.3's scaled_dot_product_attention_grouped.

Letters: N batch, L queries, S keys, K keys of one tile, H_q query heads, H key/value heads, D head dim.
`N..` is zero or more leading axes.

Source: Dao et al., "FlashAttention", 2022, algorithm 1; Milakov and Gimelshein, "Online normalizer
calculation for softmax", 2018.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from tinyllm.kernels import native

from .kv_cache import Mask
from .quantize import packed_model
from .qwen2_model import Qwen2ModelWeek2

cpp = native.of(__name__)  # the C++ kernels of this tree; cpp.flash_attention_fast is an operation

# What some of the keys come to: (maximum, sum, total).
State = tuple[mx.array, mx.array, mx.array]


def attend_tile(scores: mx.array, value: mx.array) -> State:
    """What one tile of keys comes to.

    attend_tile(scores, value) is (maximum, sum, total): of each row the largest score, the sum of exp(score -
    maximum), and the sum of the values with these weights: N.. x L x 1, N.. x L x 1 and N.. x L x D.

    A row whose scores are all -inf has seen nothing: its maximum is -inf, its sum 0 and its total 0.

    The three arrays have the dtype of scores, which is also that of value.

    Args:
        scores: N.. x L x K, scaled and masked.
        value: N.. x K x D.
    """
    scores32 = scores.astype(mx.float32)
    maximum = mx.max(scores32, axis=-1, keepdims=True)  # (N.., L, 1)
    weights = mx.exp(scores32 - _finite(maximum))
    state = maximum, mx.sum(weights, axis=-1, keepdims=True), weights @ value.astype(mx.float32)
    return _cast(state, scores.dtype)


def merge(a: State, b: State) -> State:
    """What the keys of two states come to together.

    merge(a, b) is the state of all keys of a and b, as if they had been one tile, in the dtype of a's arrays.

    Which keys came first does not matter, and a state that has seen nothing changes nothing.

    Args:
        a, b: states of the same rows, for different keys.
    """
    a32, b32 = _cast(a, mx.float32), _cast(b, mx.float32)
    maximum = mx.maximum(a32[0], b32[0])
    # Each state was summed with its own maximum taken off: now it is the common one's turn.
    shrink_a = mx.exp(a32[0] - _finite(maximum))
    shrink_b = mx.exp(b32[0] - _finite(maximum))
    merged = maximum, a32[1] * shrink_a + b32[1] * shrink_b, a32[2] * shrink_a + b32[2] * shrink_b
    return _cast(merged, a[0].dtype)


def finish(state: State) -> mx.array:
    """The attention that a state comes to, when no more keys follow.

    finish(state) is total / sum, N.. x L x D in the state's dtype, and zeros in a row that has seen nothing.
    """
    _, normaliser, total = _cast(state, mx.float32)
    mean = total / mx.where(normaliser == 0, 1.0, normaliser)
    return mean.astype(state[2].dtype)


def _finite(maximum: mx.array) -> mx.array:
    """0 in the place of -inf: -inf - -inf would be NaN, and exp(-inf - 0) is the 0 that is wanted."""
    return mx.where(maximum == -mx.inf, 0.0, maximum)


def _cast(state: State, dtype: mx.Dtype) -> State:
    maximum, normaliser, total = state
    return maximum.astype(dtype), normaliser.astype(dtype), total.astype(dtype)


def flash_attention_tiled(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    scale: float | None = None,
    mask: Mask = None,
    query_tile: int = 32,
    key_tile: int = 64,
) -> tuple[mx.array, list[int]]:
    """Attention by tiles, with array operations: query_tile queries and key_tile keys at a time.

    The first result is softmax(scale * query key^T + mask) value, N.. x H_q x L x D in the query's dtype;
    query head h reads key head h // (H_q // H), and a scale of None is 1 / sqrt(D).

    mask is None, "causal", a boolean array (True where a query may look) or an additive one; an array
    broadcasts to N.. x H_q x L x S. "causal" needs L <= S and is aligned to the end: query i sees the keys
    j <= i + (S - L). A query that sees no key gives zeros.

    The last tile of queries, and of keys, has what is left.

    The second result lists for each tile of queries how many tiles of keys were computed for it. Those that
    no query of the tile sees, in any head and any row of the batch, are skipped.

    No array of L x S numbers is made, nor of L or S repeated heads: memory grows with L and with S, not with
    their product.

    Args:
        query: (N.., H_q, L, D).
        key, value: (N.., H, S, D), of the query's dtype; H divides H_q.
        scale: a Python float.
    """
    H_q, L, D = query.shape[-3:]
    H, S = key.shape[-3:-1]
    group = H_q // H
    scale = D**-0.5 if scale is None else scale
    rows, computed = [], []
    for i in range(0, L, query_tile):
        queries = slice(i, min(i + query_tile, L))
        q = query[..., queries, :].astype(mx.float32) * scale
        state = _nothing_seen(q)
        count = 0
        for j in range(0, S, key_tile):
            keys = slice(j, min(j + key_tile, S))
            hidden = _mask_of(mask, queries, keys, L, S)
            if hidden is not None and mx.all(hidden == -mx.inf).item():
                continue
            # Heads are repeated for one tile only.
            k, v = (mx.repeat(x[..., keys, :].astype(mx.float32), group, axis=-3) for x in (key, value))
            scores = q @ k.swapaxes(-1, -2)  # (N.., H_q, queries, keys)
            if hidden is not None:
                scores = scores + hidden
            state = merge(state, attend_tile(scores, v))
            count += 1
        rows.append(finish(state).astype(query.dtype))
        # MLX is lazy: without this, all tiles would be planned first and held together.
        mx.eval(rows[-1])
        computed.append(count)
    return mx.concatenate(rows, axis=-2), computed


def _nothing_seen(q: mx.array) -> State:
    """The state before the first key, for queries N.. x L x D."""
    column = mx.zeros((*q.shape[:-1], 1))
    return column - mx.inf, column, mx.zeros(q.shape)


def _mask_of(mask: Mask, queries: slice, keys: slice, L: int, S: int) -> mx.array | None:
    """The mask of one tile, additive in float32, broadcasting to N.. x H_q x queries x keys."""
    if mask is None:
        return None
    if isinstance(mask, str):  # "causal" is the only word
        i = mx.arange(queries.start, queries.stop)[:, None]
        j = mx.arange(keys.start, keys.stop)
        seen = j <= i + (S - L)
    else:
        seen = mx.broadcast_to(mask, (*mask.shape[:-2], L, S))[..., queries, keys]
        if seen.dtype != mx.bool_:
            return seen.astype(mx.float32)
    return mx.where(seen, 0.0, -mx.inf)


def flash_attention(
    query: mx.array, key: mx.array, value: mx.array, scale: float | None = None, mask: Mask = None
) -> mx.array:
    """Attention by the C++ kernel: scaled_dot_product_attention_grouped without its L x S arrays.

    flash_attention takes what scaled_dot_product_attention_grouped takes and boolean masks too, and returns
    what flash_attention_tiled returns first: N.. is zero or more axes, a query that sees no key gives zeros.

    D may be anything up to 256. The kernel takes multiples of 32: any other D is filled up with zeros, and a
    scale of None is 1 / sqrt(D) of the D that came in.

    Nothing of L x S numbers is made of a mask that broadcasts, nor of "causal".

    query, key, value and a mask array are only read.

    Args:
        query: (N.., H_q, L, D), float32, float16 or bfloat16.
        key, value: (N.., H, S, D), of the query's dtype; H divides H_q.
        scale: a Python float.
        mask: as flash_attention_tiled takes it.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    *batch, H_q, L, D = query.shape
    scale = D**-0.5 if scale is None else scale  # subtle: of D as it came, before it is filled up
    missing = -D % 32
    if missing:
        query, key, value = (mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) for x in (query, key, value))
    if len(batch) != 1:  # the operation takes one batch axis
        query, key, value = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
    causal = isinstance(mask, str)
    if not causal and mask is not None and mask.ndim > 3:
        # Only the batch axes must be spelled out to become one; the others go on broadcasting.
        mask = mx.broadcast_to(mask, (*batch, *mask.shape[-3:])).reshape(-1, *mask.shape[-3:])
    out, _ = cpp.flash_attention_fast(query, key, value, scale, causal, None if causal else mask)
    return out[..., :D].reshape(*batch, H_q, L, D)


def flash_model(mlx_model: Any) -> Qwen2ModelWeek2:
    """Week 2's model with its weights packed and its attention in tiles.

    flash_model(mlx_model) is packed_model(mlx_model) with flash_attention as its attention.

    Args:
        mlx_model: the model that mlx_lm.load returns beside the tokenizer, model_type qwen2 or qwen3.
    """
    return packed_model(mlx_model, attention=flash_attention)
