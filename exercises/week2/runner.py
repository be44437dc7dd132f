"""Day 2.7: runs what a plan says. The caches are here, and nothing is decided here.

Prompts run one at a time in caches of their own, and move into their slot of the batch when they are whole;
what decodes runs as one batch. Serving engines on a GPU run prompts and decodes in a single model call, over
paged caches (day 3.1).

Letters: B slots, R rows that are sampled, L tokens of a chunk, V vocabulary size.
"""

from __future__ import annotations

import mlx.core as mx

from .batching import BatchingModel, create_batching_cache, decode_step
from .kv_cache import TinyKvCache
from .request_sampling import Sampled, sample
from .scheduler import Chunk, Decode, Plan


class Runner:
    """The caches of all requests, and the model calls of a step.

    `batch` holds the decoding requests, a BatchingKvCache a layer; `prefilling` the caches of prompts that
    are not whole yet, by slot; `history` the tokens of each slot that have run.
    """

    def __init__(self, model: BatchingModel, max_active_requests: int, max_seq_len: int) -> None:
        """
        Args:
            model: takes one row or a batch, as Qwen2ModelWeek2 does.
            max_active_requests, max_seq_len: the scheduler's.
        """
        self.model = model
        self.max_active_requests = max_active_requests
        self.batch = create_batching_cache(model, max_active_requests, max_seq_len)
        self.prefilling: dict[int, list[TinyKvCache]] = {}
        self.history: dict[int, list[int]] = {}

    def run(self, plan: Plan) -> dict[int, Sampled]:
        """Run a plan's tokens; return what was sampled, by id, for every id in plan.ids_sampled.

        First the slots in plan.released are let go: their tokens in the batch, caches of a prompt that was
        not whole, their history. A slot that nothing is kept for may be among them.

        If anything decodes, one decode_step runs all of it, with token 0 in the slots that do not.

        A chunk runs as model(inputs, start, cache), inputs (1, L), on caches of its request's own, which one
        call of model.create_kv_cache() makes for its first chunk. What is computed of a chunk that is not the
        last is the caches, and no logits. Of the last chunk the last token runs on its own, behind the
        others, and its logits alone are computed; then the request moves into its slot of the batch, and its
        own caches are let go.

        Every token is sampled with the settings of its request, and with a history of all its tokens before
        this one; so what a request gets depends on nothing but its prompt and its settings.
        """
        raise NotImplementedError("day 2.7, task 4: Runner.run")
