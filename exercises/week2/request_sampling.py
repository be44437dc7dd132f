"""Day 2.7: a token for each row of a batch, by the settings and the seed of that row's request.

The filters are day 1.7's. New is that rows know nothing of each other: a draw depends on the request's seed
and on the place of its token, never on who else is in the batch. One row at a time for what is drawn; serving
engines filter all rows in one operation.

Letters: R rows, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..week1.sampling import apply_min_p, apply_repetition_penalty, apply_top_k, apply_top_p
from .scheduler import Settings


@dataclass(frozen=True)
class Sampled:
    """A token that was chosen."""

    token: int
    logprob: float  # natural logarithm of its probability
    top: tuple[tuple[int, float], ...] = ()  # the most probable tokens and theirs, the most probable first


def choose(logits: mx.array, settings: Settings, history: Sequence[int]) -> mx.array:
    """The token that follows, as an integer array of shape (), not computed yet.

    First the repetition penalty, for the ids in history. Temperature 0 is then the largest logit. Any other
    draws as make_sampler of day 1.7 does: from the normalised log-probabilities top-k, top-p, min-p, and
    temperature at last.

    A request with a seed draws with a key of its own, made of the seed and the number of tokens before this
    one: the same request gets the same tokens, whatever else is drawn. seed None draws from MLX's global
    random state.

    logits is only read: the caller's array stays as it was.

    Args:
        logits: (V,), float32, float16 or bfloat16.
        settings: temperature, top_p, top_k, min_p, repetition_penalty and seed are used.
        history: the request's tokens so far, prompt and reply.
    """
    raise NotImplementedError("day 2.7, task 3: choose")


def sample(
    logits: mx.array, settings: Sequence[Settings], histories: Sequence[Sequence[int]]
) -> list[Sampled]:
    """A token for each row: that of choose, with its log-probability and those of the alternatives.

    logprob is the token's log-probability in the model's own distribution, before penalty, filters and
    temperature; `top` holds as many of the most probable tokens of that distribution as settings.logprobs
    says, the most probable first.

    Everything that is computed for a call is computed at once, with one mx.eval.

    Args:
        logits: (R, V).
        settings, histories: of each row.
    """
    raise NotImplementedError("day 2.7, task 3: sample")
