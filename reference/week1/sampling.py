"""Day 1.7: from log-probabilities to a token: greedy, temperature, top-k, top-p, min-p, repetition penalty.

The plain version: top-p sorts the whole vocabulary for every token, every row of a batch has the same
settings, and the random numbers come from MLX's one global state. Serving engines keep settings and a seed
for each request.

Letters: V vocabulary. `...` is zero or more leading axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx


def draw_tokens(logprobs: mx.array, temp: float) -> mx.array:
    """One token id for each row of log-probabilities.

    logprobs has shape (..., V); the result holds token ids, of any integer dtype, in shape (...). Every row
    is drawn on its own.
    temp 0 draws nothing: the id is the argmax of its row.
    Any other temp draws id i with probability softmax(logprobs / temp)[i].
    A token at -inf never comes out.
    Draws use MLX's global random state: they differ from call to call, and mx.random.seed makes them repeat.
    logprobs is only read: the caller's array stays as it was.

    Args:
        logprobs: float32, float16 or bfloat16; -inf for tokens that a filter dropped. The largest number of a
            row is there once.
        temp: 0 or more.
    """
    if temp == 0:
        return mx.argmax(logprobs, axis=-1)
    # categorical takes logarithms and normalises by itself: what the filters cut away needs no making up for.
    return mx.random.categorical(logprobs.astype(mx.float32) / temp, axis=-1)


def apply_top_k(logprobs: mx.array, top_k: int | None) -> mx.array:
    """Keep the top_k most probable tokens of each row.

    top_k of None, 0, less than 0, or V or more keeps every token.
    A kept token's number stays as it is, a dropped one's becomes -inf; nothing is renormalised.
    The result has the shape and dtype of logprobs, and each row along the last axis is filtered on its own.
    logprobs is only read: the caller's array stays as it was.

    Args:
        logprobs: (..., V), float32, float16 or bfloat16; -inf for tokens that are dropped already. The other
            numbers of a row are all different.
        top_k: how many to keep.
    """
    if top_k is None or top_k <= 0 or top_k >= logprobs.shape[-1]:
        return logprobs
    lowest_kept = mx.min(mx.topk(logprobs, top_k, axis=-1), axis=-1, keepdims=True)  # (..., 1)
    return mx.where(logprobs >= lowest_kept, logprobs, -mx.inf)


def apply_top_p(logprobs: mx.array, top_p: float | None) -> mx.array:
    """Keep the smallest set of most probable tokens whose probabilities reach top_p (nucleus sampling).

    A token stays when all tokens more probable than it sum to less than top_p: the token that crosses top_p
    stays too.
    Probabilities are exp(logprobs) as they stand, summed in float32, also when tokens at -inf are missing
    from the sum.
    top_p of None, 0, or 1 or more keeps every token.
    A kept token's number stays as it is, a dropped one's becomes -inf; nothing is renormalised.
    The result has the shape and dtype of logprobs, and each row along the last axis is filtered on its own.
    logprobs is only read: the caller's array stays as it was.

    Args:
        logprobs: (..., V), float32, float16 or bfloat16; -inf for tokens that are dropped already. The other
            numbers of a row are all different.
        top_p: a probability.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    if top_p is None or top_p <= 0 or top_p >= 1:
        return logprobs
    order = mx.argsort(-logprobs, axis=-1)  # (..., V): ids, the most probable first
    # subtle: float32. A bfloat16 sum past 0.5 no longer grows by terms below 0.002.
    ranked = mx.exp(mx.take_along_axis(logprobs, order, axis=-1).astype(mx.float32))
    mass_before = mx.cumsum(ranked, axis=-1, inclusive=False)
    ranked_kept = mass_before < top_p
    # ranked_kept speaks of ranks; id order[r] gets what rank r has.
    kept = mx.put_along_axis(mx.zeros(order.shape, mx.bool_), order, ranked_kept, axis=-1)
    return mx.where(kept, logprobs, -mx.inf)


def apply_min_p(logprobs: mx.array, min_p: float) -> mx.array:
    """Keep the tokens that are not much less probable than the most probable one.

    A token stays when its probability is at least min_p times the largest of its row.
    min_p of 0 keeps every token.
    A kept token's number stays as it is, a dropped one's becomes -inf; nothing is renormalised.
    The result has the shape and dtype of logprobs, and each row along the last axis is filtered on its own.
    logprobs is only read: the caller's array stays as it was.

    Args:
        logprobs: (..., V), float32, float16 or bfloat16; -inf for tokens that are dropped already.
        min_p: from 0 to 1.

    Source: Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs".
    """
    if min_p == 0:
        return logprobs
    largest = mx.max(logprobs, axis=-1, keepdims=True)  # (..., 1)
    # p >= min_p * p_max, in logarithms: a product is a sum.
    return mx.where(logprobs >= largest + math.log(min_p), logprobs, -mx.inf)


def apply_repetition_penalty(logits: mx.array, tokens: list[int], penalty: float) -> mx.array:
    """Make tokens that were already there less likely to come again.

    For every id in tokens a logit above 0 is divided by penalty, and any other is multiplied by it.
    Each distinct id counts once, however often it occurs; the logits of all other ids stay as they are.
    The penalty acts on logits, before they are normalised to log-probabilities.
    The result has the shape and dtype of logits; tokens are the same for every row. No tokens, or a penalty
    of 1, change nothing.
    logits is only read: the caller's array stays as it was.

    Args:
        logits: (..., V), float32, float16 or bfloat16; -inf for tokens that are dropped already.
        tokens: the ids so far, prompt and reply or a part of them; may be empty, may repeat.
        penalty: above 0. Above 1 it discourages, below 1 it encourages.

    Source: Keskar et al. 2019, "CTRL", section 4.1, whose formula divides whatever the sign. That negative
    logits are multiplied instead is how implementations mended it.
    """
    seen = mx.zeros(logits.shape[-1:], mx.bool_)  # (V,), a mark for each id: how often is forgotten
    seen[mx.array(tokens, mx.int32)] = True
    penalised = mx.where(logits > 0, logits / penalty, logits * penalty)
    return mx.where(seen, penalised, logits)


def make_sampler(
    temp: float, top_p: float | None, top_k: int | None, min_p: float = 0.0
) -> Callable[[mx.array], mx.array]:
    """A function from log-probabilities (..., V) to token ids (...), with these settings.

    The sampler applies top-k, then top-p, then min-p, and draws at temp last.
    Every filter sees the probabilities that came in, before any filter and before the temperature; a token
    can come out when all filters keep it.
    A filter that is off (top_p None, 0, or 1 or more; top_k None, 0, less than 0, or V or more; min_p 0)
    keeps every token. temp 0 is the argmax, whatever the filters.
    The sampler returns what draw_tokens returns, and its settings hold for every call.
    logprobs is only read: the caller's array stays as it was.

    Args:
        temp: 0 or more.
        top_p: a probability.
        top_k: how many tokens to keep.
        min_p: from 0 to 1.

    Returns:
        sampler(logprobs): logprobs are normalised, (..., V), float32, float16 or bfloat16.
    """

    def sampler(logprobs: mx.array) -> mx.array:
        kept = apply_top_k(logprobs, top_k)
        kept = apply_top_p(kept, top_p)
        kept = apply_min_p(kept, min_p)
        return draw_tokens(kept, temp)

    return sampler
