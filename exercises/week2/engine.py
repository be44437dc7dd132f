"""Day 2.7: the engine. Requests come in at any time, and every step gives each its next piece of text.

It puts the scheduler, which decides, and the runner, which computes, together with the detokenizer and the
stop strings of day 1.6. It waits for nobody and owns no thread: whoever calls step() does the work. Day 2.8
puts a server in front of it.

All calls come from one thread. MLX is used in step() alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..week1.generation import IncrementalDetokenizer, StopMatcher, Tokenizer
from .batching import BatchingModel
from .request_sampling import Sampled
from .runner import Runner
from .scheduler import DEFAULTS, Generation, Scheduler, Settings, Status


@dataclass(frozen=True)
class Event:
    """What a step brought for one request."""

    id: int
    text: str  # the next piece of the reply, "" while it is held back
    tokens: tuple[int, ...] = ()  # that came in this step; no EOS
    logprobs: tuple[Sampled, ...] = ()  # one for each of tokens
    finish_reason: str | None = None  # "stop", "length" or "cancelled" with the last event, None before
    prompt_tokens: int = 0  # length of the prompt


@dataclass
class Reply:
    """A reply on its way from tokens to text."""

    generation: Generation
    detokenizer: IncrementalDetokenizer
    matcher: StopMatcher


class Engine:
    """Serves many requests with one model.

    `replies` holds the requests whose last event has not been given, by id.
    """

    def __init__(
        self,
        model: BatchingModel,
        tokenizer: Tokenizer,
        max_active_requests: int = 8,
        max_seq_len: int = 512,
        token_budget: int = 64,
        prefill_step: int = 32,
    ) -> None:
        """
        Args:
            model: takes one row or a batch, as Qwen2ModelWeek2 does.
            tokenizer: what mlx_lm.load returns beside the model.
            max_active_requests, max_seq_len, token_budget, prefill_step: as Scheduler takes them.
        """
        self.tokenizer = tokenizer
        self.scheduler = Scheduler(
            max_active_requests, max_seq_len, token_budget, prefill_step, tokenizer.eos_token_ids
        )
        self.runner = Runner(model, max_active_requests, max_seq_len)
        self.replies: dict[int, Reply] = {}
        self.cancelled: list[Generation] = []  # whose last event the next step gives

    @property
    def has_work(self) -> bool:
        """Whether step() has anything to do."""
        return self.scheduler.has_work or bool(self.cancelled)

    @property
    def waiting_count(self) -> int:
        """Requests without a slot."""
        return len(self.scheduler.waiting)

    @property
    def active_count(self) -> int:
        """Requests with a slot."""
        return len(self.scheduler.active)

    def submit(self, prompt: str | Sequence[int], settings: Settings = DEFAULTS) -> int:
        """Take a request in and return its id.

        A text is encoded with tokenizer.encode(prompt, add_special_tokens=False); a chat template is the
        caller's business. A prompt that the scheduler refuses raises its RequestRefused, and everything else
        goes on.

        Args:
            prompt: text, or token ids.
        """
        raise NotImplementedError("day 2.7, task 5: Engine.submit")

    def cancel(self, id: int) -> bool:
        """End a request now. Its last event, with "cancelled" and no text, comes with the next step.

        The result is True. An id whose last event has been given, or that never was, changes nothing and
        gives False.
        """
        raise NotImplementedError("day 2.7, task 5: Engine.cancel")

    def step(self) -> list[Event]:
        """One step: plan, run, commit, and what that brought.

        There is one event for each request that got a token, and one for each that was cancelled since the
        step before.

        The pieces of a reply joined are its whole text: tokenizer.decode of its tokens with
        skip_special_tokens=True, cut before the first stop string as StopMatcher does it. Whole characters
        come at once; text that could begin a stop string, and bytes that are no whole character, come
        later, at the latest with the last event.

        A stop string in the text ends the request with "stop" in that very step, also where its token would
        have ended it with "length". The tokens of an event are those that were generated, stop string or not.

        The slot of a request that ended is used again from the next step on. An engine without work keeps
        nothing of any request.
        """
        raise NotImplementedError("day 2.7, task 5: Engine.step")


def generate_all(
    engine: Engine, prompts: Sequence[str | Sequence[int]], settings: Settings = DEFAULTS
) -> list[str]:
    """The replies to several prompts, in the order of the prompts, from an engine without other work.

    A prompt that is refused raises RequestRefused before any step, and none of the others stays behind.

    Args:
        engine: has no work.
        prompts: texts, or token ids.
        settings: of all of them.
    """
    raise NotImplementedError("day 2.7, task 5: generate_all")
