"""Day 2.7: the scheduler decides which tokens run in a step, and keeps account of every request.

It knows ids of requests, slots and numbers of tokens. It does not know the model, caches or text: engine.py
puts it together with those, and nothing here computes with arrays. So a whole schedule can be played through
with made-up tokens, in microseconds, and compared exactly.

A step is three verbs: `plan` says what runs, somebody runs it, `commit` takes what came of it. What is not
here: requests are never moved out of their slot once they have one (vLLM does, when memory runs out).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum


class RequestRefused(ValueError):
    """A request that cannot be served; the message says why. Others are not concerned."""


@dataclass(frozen=True)
class Settings:
    """What one request asks for. Values that make no sense raise ValueError."""

    max_tokens: int = 256  # the largest number of tokens to generate, an EOS included
    stop: tuple[str, ...] = ()  # strings that end the reply and are not part of it
    temperature: float = 0.0  # 0 is greedy
    top_p: float | None = None  # top_p, top_k and min_p as on day 1.7
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None  # None draws differently every time
    priority: int = 0  # smaller goes first
    logprobs: int = 0  # alternatives to report beside each token's own log-probability

    def __post_init__(self) -> None:
        for holds, says in (
            (self.max_tokens >= 1, f"max_tokens is {self.max_tokens}: a reply has at least one token"),
            (not isinstance(self.stop, str), "stop is a tuple of strings, not one string"),
            ("" not in self.stop, "an empty stop string would end every reply before it begins"),
            (
                self.temperature >= 0 and math.isfinite(self.temperature),
                f"temperature is {self.temperature}",
            ),
            (self.top_p is None or 0 <= self.top_p <= 1, f"top_p is {self.top_p}: a probability"),
            (0 <= self.min_p <= 1, f"min_p is {self.min_p}: a probability"),
            (self.repetition_penalty > 0, f"repetition_penalty is {self.repetition_penalty}"),
            (self.logprobs >= 0, f"logprobs is {self.logprobs}"),
        ):
            if not holds:
                raise ValueError(says)


DEFAULTS = Settings()


class Status(Enum):
    """Where a request stands. It goes down this list, and never back."""

    WAITING = "waiting"  # without a slot
    PREFILL = "prefill"  # in a slot, a part of its prompt has run
    DECODE = "decode"  # all of its prompt has run, and its first token is there
    FINISHED = "finished"


@dataclass
class Generation:
    """One request's life. The scheduler alone changes it."""

    id: int
    prompt: tuple[int, ...]
    settings: Settings
    submitted: int  # the number of the step before which it came
    status: Status = Status.WAITING
    slot: int | None = None
    prefilled: int = 0  # tokens of the prompt that have run
    tokens: list[int] = field(default_factory=list)  # of the reply, without an EOS
    finish_reason: str | None = None  # "stop", "length" or "cancelled"


@dataclass(frozen=True)
class Chunk:
    """A part of a prompt that runs: tokens that stand at `start` and behind it."""

    id: int
    slot: int
    start: int
    tokens: tuple[int, ...]
    last: bool  # the prompt ends with it, so it gives the reply's first token
    settings: Settings = DEFAULTS


@dataclass(frozen=True)
class Decode:
    """The newest token of a reply, which runs so that the next one comes."""

    id: int
    slot: int
    token: int
    offset: int  # tokens of this request that have run before
    settings: Settings = DEFAULTS


@dataclass(frozen=True)
class Plan:
    """What runs in one step. A value: whoever holds it can run it, and nothing else is needed for that."""

    step: int
    released: tuple[
        int, ...
    ] = ()  # slots whose requests have ended: what is kept for them goes, first of all
    prefill: tuple[Chunk, ...] = ()
    decode: tuple[Decode, ...] = ()

    @property
    def tokens(self) -> int:
        """How many tokens run."""
        return len(self.decode) + sum(len(chunk.tokens) for chunk in self.prefill)

    @property
    def ids_sampled(self) -> tuple[int, ...]:
        """The requests that get a token: those that decode, then those whose prompt ends."""
        return tuple(d.id for d in self.decode) + tuple(c.id for c in self.prefill if c.last)


class Scheduler:
    """Who runs when.

    In each step every decoding request runs its newest token. What is left of the budget goes to prompts, in
    chunks, and the requests that wait come into slots that are free.

    `generations` holds the requests that have not ended, by id, in the order in which they came; one that has
    ended is forgotten. `to_release` holds slots that are free again and that no committed plan has named yet.
    """

    def __init__(
        self,
        max_active_requests: int = 8,
        max_seq_len: int = 512,
        token_budget: int = 64,
        prefill_step: int = 32,
        eos_token_ids: Collection[int] = (),
        ageing: int = 64,
    ) -> None:
        """
        Args:
            max_active_requests: the number of slots.
            max_seq_len: tokens that a request may have, prompt and reply.
            token_budget: tokens that a step may run, at least one for each slot: so beside all that decode
                a prompt goes on too.
            prefill_step: tokens of one prompt that a step may run.
            eos_token_ids: tokens that end a reply.
            ageing: steps of waiting that make up for one unit of priority.
        """
        if min(max_active_requests, max_seq_len, token_budget, prefill_step) < 1 or ageing < 0:
            raise ValueError("slots, lengths, budget and step are at least 1, and ageing is not negative")
        if token_budget < max_active_requests:
            raise ValueError(
                f"a budget of {token_budget} tokens is too small for {max_active_requests} slots: all could "
                "decode in a step, with a token each"
            )
        self.max_active_requests = max_active_requests
        self.max_seq_len = max_seq_len
        self.token_budget = token_budget
        self.prefill_step = prefill_step
        self.eos_token_ids = frozenset(eos_token_ids)
        self.ageing = ageing
        self.step = 0
        self.next_id = 0
        self.generations: dict[int, Generation] = {}
        self.to_release: set[int] = set()

    @property
    def waiting(self) -> list[Generation]:
        """The requests without a slot, in the order in which they came."""
        return [g for g in self.generations.values() if g.slot is None]

    @property
    def active(self) -> list[Generation]:
        """The requests with a slot, by slot."""
        return sorted((g for g in self.generations.values() if g.slot is not None), key=lambda g: g.slot)

    @property
    def has_work(self) -> bool:
        """Whether a plan would hold anything, a slot to release included."""
        return bool(self.generations or self.to_release)

    def submit(self, prompt: Sequence[int], settings: Settings = DEFAULTS) -> Generation:
        """Take a request in; it waits.

        Ids count up from 0. The result is what the scheduler itself keeps, so its fields show how the
        request stands, also after its end.

        A prompt without tokens raises RequestRefused, and so does one that leaves no room for a token of the
        reply, len(prompt) >= max_seq_len, with both numbers in the message; nothing changes, and no id is
        used up.

        Args:
            prompt: token ids.
        """
        raise NotImplementedError("day 2.7, task 1: Scheduler.submit")

    def rank(self, generation: Generation) -> tuple[int, int]:
        """Who goes first: the request with the smaller rank.

        The rank is (submitted + priority * ageing, id): each unit of priority counts as `ageing` steps of
        waiting, and of equals the one that came first goes first.

        It never changes, so nobody has to count how long anyone has waited: of two requests, both grow older
        at the same pace.
        """
        raise NotImplementedError("day 2.7, task 1: Scheduler.rank")

    def plan(self) -> Plan:
        """What runs in this step.

        plan only reads: asked twice it gives the same plan, and what it says is done when it is committed.

        Decode comes first: every request that decodes is in `decode`, by slot.

        Then, by rank, the requests whose prompt has not run whole: each gets one chunk, of at most
        prefill_step tokens and of what is left of the budget, until nothing is left.

        A request that waits gets its slot with its first chunk, the lowest that is free; a free slot is one
        that no request has, be it in `released` or not. Where no slot is free it is passed over.

        `released` names the slots in to_release, in rising order.

        No request starves. While it waits, each step runs max_active_requests tokens or more, all of them of
        requests that have a slot or go before it: if those may still run W tokens in all, it gets its slot
        within W // max_active_requests + 1 steps.
        """
        raise NotImplementedError("day 2.7, task 1: Scheduler.plan")

    def commit(self, plan: Plan, results: Mapping[int, int]) -> list[Generation]:
        """Take what came of a plan, and go on to the next step.

        Chunks have run: their requests have their slots, and are in PREFILL, or in DECODE after the last one.

        results maps the id of every request that decodes, and of every one whose prompt ends, to its token.
        Any id in eos_token_ids ends the reply with "stop" and is not part of it. Every other token is
        appended; the reply then ends with "length" if it has max_tokens tokens, or if prompt and reply have
        max_seq_len.

        What the plan released is no longer in to_release.

        A request that has ended since the plan was made stays as it is; the slot that the plan gave it is
        released by the next one.

        The result lists the requests that got a token, in the order of results; those that had ended before
        are not in it.

        A plan of another step, or other ids than these in results, raises ValueError, and nothing changes.
        """
        raise NotImplementedError("day 2.7, task 2: Scheduler.commit")

    def finish(self, id: int, reason: str) -> bool:
        """End a request, wherever it stands.

        It is FINISHED, with this finish_reason and without a slot; its slot is free at once and in
        to_release, so that the next plan names it.

        The result is True. An id that is not in generations changes nothing and gives False: the request has
        ended before, with the reason that it had.
        """
        raise NotImplementedError("day 2.7, task 2: Scheduler.finish")

    def cancel(self, id: int) -> bool:
        """finish with "cancelled"."""
        return self.finish(id, "cancelled")

    def check(self) -> None:
        """Assert what must hold between any two calls. For tests; it is no task."""
        slots = [g.slot for g in self.active]
        assert len(set(slots)) == len(slots), f"two requests in one slot: {slots}"
        assert set(slots) <= set(range(self.max_active_requests)), f"no such slot: {slots}"
        assert not self.to_release & set(slots), f"slots {self.to_release} to release, {slots} in use"
        for g in self.generations.values():
            where = f"request {g.id}, {g.status.value}"
            assert g.status is not Status.FINISHED, f"{where}: not forgotten"
            assert (g.slot is None) == (g.status is Status.WAITING), f"{where}: in slot {g.slot}"
            done = g.prefilled == len(g.prompt)
            assert done == (g.status is Status.DECODE), f"{where}: {g.prefilled} tokens prefilled"
            assert bool(g.tokens) == (g.status is Status.DECODE), f"{where}: {len(g.tokens)} tokens"
            assert len(g.prompt) + len(g.tokens) < self.max_seq_len, f"{where}: too long"
