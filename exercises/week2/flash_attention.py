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
    raise NotImplementedError("day 2.4, task 1: attend_tile")


def merge(a: State, b: State) -> State:
    """What the keys of two states come to together.

    merge(a, b) is the state of all keys of a and b, as if they had been one tile, in the dtype of a's arrays.

    Which keys came first does not matter, and a state that has seen nothing changes nothing.

    Args:
        a, b: states of the same rows, for different keys.
    """
    raise NotImplementedError("day 2.4, task 1: merge")


def finish(state: State) -> mx.array:
    """The attention that a state comes to, when no more keys follow.

    finish(state) is total / sum, N.. x L x D in the state's dtype, and zeros in a row that has seen nothing.
    """
    raise NotImplementedError("day 2.4, task 1: finish")


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
    raise NotImplementedError("day 2.4, task 2: flash_attention_tiled")


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
    raise NotImplementedError("day 2.4, task 5: flash_attention")


def flash_model(mlx_model: Any) -> Qwen2ModelWeek2:
    """Week 2's model with its weights packed and its attention in tiles.

    flash_model(mlx_model) is packed_model(mlx_model) with flash_attention as its attention.

    Args:
        mlx_model: the model that mlx_lm.load returns beside the tokenizer, model_type qwen2 or qwen3.
    """
    raise NotImplementedError("day 2.4, task 5: flash_model")
