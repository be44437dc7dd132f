"""Day 2.8, measured: what the way through the thread costs, and how soon the engine notices that nobody waits.

The engine is the reference's, over tiny-qwen2. No sockets here: `tinyllm-grade bench serve` has those.
"""

import asyncio
import threading

import mlx.core as mx

from tinyllm.grader.measuring import Bench

REQUESTS, SLOTS, TOKENS = 16, 8, 24
PROMPT = "Once there was a girl named Mia. Mia had a kite. One day"
LIMIT = 60.0  # seconds for anything that is waited for


def measure(bench: Bench) -> None:
    bench.stage("counting")
    with Loop(bench) as loop:
        bench.count("threads in which the engine is used", loop.run(threads_used(loop)), equals=1)
        said = "steps of the engine after its one request was given up"
        bench.count(said, loop.run(steps_after_giving_up(loop)), at_most=2)
        bench.count("requests left in the engine after 16 were given up", loop.run(left_after_all(loop)), equals=0)

        alone = engine_of(bench)
        bench.race(
            f"{REQUESTS} requests of {TOKENS} tokens, {SLOTS} at a time",
            {
                "through the thread": lambda: loop.run(replies(loop)),
                "the engine alone": lambda: generated(bench, alone),
            },
            unit="tokens/s",
            work=REQUESTS * TOKENS,
            same=True,
            at_least={"the engine alone": 0.5},
        )


def engine_of(bench: Bench):
    """The reference's engine over tiny-qwen2, whose replies do not end early."""
    model = bench.reference_module("week2/qwen2_model.py").Qwen2ModelWeek2(bench.shipped_model())
    made = bench.reference_module("week2/engine.py").Engine(model, Tokenizer(bench), SLOTS, 256)
    return made
