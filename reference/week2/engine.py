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
        tokens = (
            self.tokenizer.encode(prompt, add_special_tokens=False) if isinstance(prompt, str) else prompt
        )
        generation = self.scheduler.submit(tokens, settings)
        self.replies[generation.id] = Reply(
            generation, IncrementalDetokenizer(self.tokenizer), StopMatcher(settings.stop)
        )
        return generation.id

    def cancel(self, id: int) -> bool:
        """End a request now. Its last event, with "cancelled" and no text, comes with the next step.

        The result is True. An id whose last event has been given, or that never was, changes nothing and
        gives False.
        """
        reply = self.replies.pop(id, None)
        if reply is None:
            return False
        self.scheduler.cancel(id)
        self.cancelled.append(reply.generation)
        return True

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
        cancelled, self.cancelled = self.cancelled, []
        events = [
            Event(g.id, "", finish_reason=g.finish_reason, prompt_tokens=len(g.prompt)) for g in cancelled
        ]
        plan = self.scheduler.plan()
        sampled = self.runner.run(plan)
        grown = self.scheduler.commit(plan, {id: s.token for id, s in sampled.items()})
        return events + [self._event(self.replies[g.id], sampled[g.id]) for g in grown]

    def _event(self, reply: Reply, sampled: Sampled) -> Event:
        """What a token brings for its request."""
        generation, matcher = reply.generation, reply.matcher
        text = ""
        # Of a reply that goes on or reached its length the token is a part; an EOS is not.
        is_eos = generation.finish_reason == "stop"
        if not is_eos:
            text = matcher.push(reply.detokenizer.add_token(sampled.token))
        if generation.status is Status.FINISHED and not matcher.stopped:
            text += matcher.push(reply.detokenizer.finish())
            if not matcher.stopped:
                text += matcher.finish()
        reason = generation.finish_reason
        if matcher.stopped:
            self.scheduler.finish(generation.id, "stop")
            reason = "stop"
        if reason is not None:
            del self.replies[generation.id]
        kept = () if is_eos else (sampled,)
        tokens = tuple(s.token for s in kept)
        return Event(generation.id, text, tokens, kept, reason, len(generation.prompt))


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
    ids: list[int] = []
    try:
        for prompt in prompts:
            ids.append(engine.submit(prompt, settings))
    except ValueError:
        for id in ids:
            engine.cancel(id)
        engine.step()
        raise
    texts = dict.fromkeys(ids, "")
    while engine.has_work:
        for event in engine.step():
            texts[event.id] += event.text
    return list(texts.values())
