"""Day 2.1: generation with a key-value cache: the prompt runs once, then one token a step.

What chooses a token and what turns tokens into text is day 1.6's. One request at a time; day 2.6 serves
several.

Letters: L tokens of one call, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import mlx.core as mx

from ..week1.generation import IncrementalDetokenizer, Sampler, StopMatcher, Tokenizer, next_token
from .kv_cache import TinyKvCache


class CachedModel(Protocol):
    """What this day uses of Qwen2ModelWeek2."""

    def create_kv_cache(self) -> list[TinyKvCache]: ...

    def __call__(self, inputs: mx.array, offset: int, cache: list[TinyKvCache]) -> mx.array: ...


def generate_tokens_with_kv_cache(
    model: CachedModel,
    tokens: Sequence[int],
    eos_token_ids: Collection[int],
    sampler: Sampler | None = None,
    max_tokens: int = 256,
) -> Iterator[int]:
    """The reply's token ids, one at a time: those of day 1.6's generate_tokens, for less work.

    Every token goes through the model exactly once. Prefill: one call with all of the prompt but its last
    token (none if there is only one). Decode: a call with that last token, and then one with each token of
    the reply that another is to follow.

    Each call is model(inputs, offset, cache): inputs an integer array (1, L), and offset the number of tokens
    that have gone through before.

    The logits of the prefill call are never computed, only what the caches hold.

    Each reply has caches of its own, which one call of model.create_kv_cache() makes.

    Every token comes from next_token with the sampler given, and is yielded before the model is called for
    the next one. Any id in eos_token_ids ends the reply and is not part of it.

    max_tokens is the largest number of tokens to generate, an EOS included; with 0 the model is not called.

    The caller's list of tokens is only read, and a prompt without tokens raises ValueError, at the latest
    when the first token or piece is asked for.
    """
    if not tokens:
        raise ValueError("the prompt has no tokens, so there is no position to predict from")
    if max_tokens == 0:
        return
    cache = model.create_kv_cache()
    *before, newest = tokens
    if before:
        # MLX computes what is asked for. Nobody asks for these logits, a row of V numbers for each token.
        model(mx.array(before)[None], 0, cache)
        mx.eval([layer.state for layer in cache])
    for offset in range(len(before), len(before) + max_tokens):
        newest = next_token(model(mx.array([[newest]]), offset, cache), sampler)
        if newest in eos_token_ids:
            return
        yield newest


def stream_generate_with_kv_cache(
    model: CachedModel,
    tokenizer: Tokenizer,
    prompt: str,
    sampler: Sampler | None = None,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """The reply's text in pieces, as soon as there is something to show.

    It yields what day 1.6's stream_generate yields, made of the tokens of generate_tokens_with_kv_cache:
    whole characters in time, no empty piece, cut at the first stop string, and at the end what was held
    back.

    After a stop string the model is not called again.

    Args:
        model: as generate_tokens_with_kv_cache takes it.
        tokenizer, prompt, sampler, max_tokens, stop: as stream_generate takes them.
    """
    detokenizer = IncrementalDetokenizer(tokenizer)
    matcher = StopMatcher(stop)
    tokens = tokenizer.encode(prompt, add_special_tokens=False)
    for token in generate_tokens_with_kv_cache(model, tokens, tokenizer.eos_token_ids, sampler, max_tokens):
        piece = matcher.push(detokenizer.add_token(token))
        if piece:
            yield piece
        if matcher.stopped:
            return
    rest = matcher.push(detokenizer.finish()) + matcher.finish()
    if rest:
        yield rest


def simple_generate_with_kv_cache(
    model: CachedModel,
    tokenizer: Tokenizer,
    prompt: str,
    sampler: Sampler | None = None,
    max_tokens: int = 256,
) -> str:
    """The model's reply to a prompt.

    The result is the text of stream_generate_with_kv_cache without stop strings, in one piece: what
    simple_generate returns for the same model without a cache. Nothing is printed.

    Args: as stream_generate_with_kv_cache takes them.
    """
    return "".join(stream_generate_with_kv_cache(model, tokenizer, prompt, sampler, max_tokens))
