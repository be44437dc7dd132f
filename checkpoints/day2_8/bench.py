"""Day 2.8, measured: what the way through the thread costs, and how soon the engine learns that nobody waits.

The engine is the reference's, over tiny-qwen2. No sockets here: `tinyllm-grade bench serve` has those.
"""

import asyncio
import threading

import mlx.core as mx

from tinyllm.grader.measuring import Bench
from tinyllm.grader.testing import ShippedTokenizer

REQUESTS, SLOTS, TOKENS = 16, 8, 24
PROMPT = "Once there was a girl named Mia. Mia had a kite. One day"
LIMIT = 60.0  # seconds for anything that is waited for


def measure(bench: Bench) -> None:
    bench.stage("counting")
    Settings = bench.reference_module("week2/scheduler.py").Settings
    loops = {"yours": Loop(bench, bench.solution, Settings)}
    if not bench.is_reference:
        loops["reference"] = Loop(bench, bench.reference, Settings)
    mine = loops["yours"]
    mine.replies()
    bench.count("threads in which the engine is used", len(mine.engine.threads), equals=1)
    after = [mine.steps_after_giving_up() for _ in range(5)]
    bench.count("steps with a request after it was given up, the most of 5 tries", max(after), at_most=1)

    alone = engine_of(bench)
    generate_all = bench.reference_module("week2/engine.py").generate_all
    prompts, settings = [PROMPT] * REQUESTS, Settings(max_tokens=TOKENS)
    bench.race(
        f"{REQUESTS} requests of {TOKENS} tokens, {SLOTS} at a time",
        {name: loop.replies for name, loop in loops.items()}
        | {"the engine alone": lambda: as_array(generate_all(alone, prompts, settings))},
        unit="tokens/s",
        work=REQUESTS * TOKENS,
        same=True,
        bar=("yours", "the engine alone", 0.5),
    )


def as_array(texts: list[str]) -> mx.array:
    return mx.array(list("\n".join(texts).encode()))


class Endless(ShippedTokenizer):
    """Its replies have all the tokens that were asked for."""

    def __init__(self) -> None:
        super().__init__("tiny-qwen2")
        self.eos_token_ids = set()


def engine_of(bench: Bench):
    """The reference's engine over tiny-qwen2."""
    model = bench.reference_module("week2/qwen2_model.py").Qwen2ModelWeek2(bench.shipped_model())
    return bench.reference_module("week2/engine.py").Engine(model, Endless(), SLOTS, 256)


class Watched:
    """An engine that notes in which threads it is used, and how many steps it makes for somebody."""

    def __init__(self, engine) -> None:
        self.engine = engine
        self.threads = {threading.get_ident()}
        self.steps = 0

    def step(self):
        self.threads.add(threading.get_ident())
        self.steps += self.engine.active_count + self.engine.waiting_count > 0
        return self.engine.step()

    def submit(self, *arguments):
        self.threads.add(threading.get_ident())
        return self.engine.submit(*arguments)

    def __getattr__(self, name):
        return getattr(self.engine, name)


class Loop:
    """An event loop in a thread, and in it an EngineThread of one of the trees."""

    def __init__(self, bench: Bench, names, Settings) -> None:
        self.settings = Settings
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.bridge = names.EngineThread(lambda: Watched(engine_of(bench)), REQUESTS)
        self.run(self.bridge.start())
        self.engine = self.bridge.engine

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(LIMIT)

    def replies(self) -> mx.array:
        """REQUESTS requests at once, as one array of all their text."""

        async def one() -> str:
            stream = await self.bridge.submit(PROMPT, self.settings(max_tokens=TOKENS))
            return "".join([piece.text async for piece in stream])

        async def every() -> list[str]:
            return await asyncio.gather(*(one() for _ in range(REQUESTS)))

        return as_array(self.run(every()))

    def steps_after_giving_up(self) -> int:
        """Steps that the engine makes with a request for which nobody waits any more."""

        async def scene() -> int:
            stream = await self.bridge.submit(PROMPT, self.settings(max_tokens=150))
            reading = stream.__aiter__()
            for _ in range(3):
                await reading.__anext__()
            stream.cancel()
            before = self.engine.steps
            await asyncio.sleep(0.3)
            return self.engine.steps - before

        return self.run(scene())
