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
    """The reply's token ids, one at a time: those of day 1.6's generate_tokens.

    Args:
        model: called with (1, L) integer ids, the tokens its caches hold, and the caches.
        tokens, eos_token_ids, sampler, max_tokens: as generate_tokens takes them.
    """
    if not tokens:
        raise ValueError("the prompt has no tokens, so there is no position to predict from")
    if max_tokens == 0:
        return
    cache = model.create_kv_cache()
    *before, newest = tokens
    if before:  # prefill
        # Nobody asks for these logits, so MLX never computes them: a row of V numbers for each token.
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

    Args: as stream_generate_with_kv_cache takes them.
    """
    return "".join(stream_generate_with_kv_cache(model, tokenizer, prompt, sampler, max_tokens))
