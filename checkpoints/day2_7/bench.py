"""Day 2.7, measured: the schedule beside the reference's, how long a reply waits, sixteen requests by eight
slots beside one after another.

The schedule is played through without a model. The races run tiny-qwen2 with day 2.1's dense layers; mlx-lm
takes part with its own batch generator.
"""

import mlx.core as mx

from tinyllm.grader.measuring import Bench

SLOTS, REQUESTS = 8, 16
BUDGET, CHUNK = 64, 32
PROMPTS = (24, 7, 61, 12, 18, 5, 40, 15)  # tokens, in turn
REPLY = 32
LONG = 400  # tokens of a prompt that comes while others are replying
LENGTH = 512  # max_seq_len

# For the picture: slots, budget, chunks, and requests (step in which it comes, prompt, reply, priority).
SHOWN = 4, 16, 8
SHOWN_REQUESTS = (
    (0, 5, 9, 0),
    (0, 11, 4, 0),
    (2, 40, 6, 0),
    (3, 3, 12, 1),
    (4, 9, 5, 0),
    (5, 20, 7, -1),
    (9, 2, 8, 0),
    (12, 7, 3, 2),
)


def measure(bench: Bench) -> None:
    bench.stage("counting")
    slots, budget, chunk = SHOWN
    plans = {"yours": played(bench.solution), "reference": played(bench.reference)}
    title = f"{len(SHOWN_REQUESTS)} requests, {slots} slots, a budget of {budget}, chunks of {chunk}"
    differing = bench.schedules(title, plans, slots)
    bench.count("steps of this schedule that are not the reference's", differing, equals=0)

    mlx_model = bench.shipped_model()
    gap, whole = longest_gap(bench, mlx_model)
    title = f"tokens run between two tokens of a reply, while a prompt of {LONG} comes in, the most"
    bench.count(title, gap, at_most=BUDGET)
    bench.count("the same with the prompt in one chunk", whole)

    contestants = {}
    for name, solution, module in (
        ("yours", bench.solution, bench.module),
        ("reference", bench.reference, bench.reference_module),
    ):
        model = week2_model(module, mlx_model)
        contestants[name] = served(solution, model)
        if name == "yours" or bench.is_reference:
            contestants["one after another"] = one_by_one(module, model)
    contestants["mlx-lm"] = mlx_lm_server(mlx_model)
    bench.race(
        f"tiny-qwen2: {REQUESTS} requests, {SLOTS} slots",
        contestants,
        unit="tokens/s",
        work=REQUESTS * REPLY,
        inputs=lambda number: (prompts_of(mlx_model, seed=number),),
        bar=("yours", "one after another", 2.0),
    )


def prompts_of(mlx_model, *, seed: int) -> list[list[int]]:
    ids = mx.random.randint(0, mlx_model.args.vocab_size, (REQUESTS, max(PROMPTS)), key=mx.random.key(seed))
    return [row[: PROMPTS[i % len(PROMPTS)]] for i, row in enumerate(ids.tolist())]


def week2_model(module, mlx_model):
    return module("week2/qwen2_model.py").Qwen2ModelWeek2(mlx_model)


class Ids:
    """A tokenizer for ids alone; nothing ends a reply, and none has a text."""

    eos_token_ids = frozenset()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        return ""


def played(names) -> list:
    """The plans of SHOWN_REQUESTS, whose replies are made up."""
    slots, budget, chunk = SHOWN
    scheduler = names.Scheduler(slots, LENGTH, budget, chunk)
    plans = []
    while len(plans) < 100 and (scheduler.has_work or len(plans) <= SHOWN_REQUESTS[-1][0]):
        for arrival, prompt, reply, priority in SHOWN_REQUESTS:
            if arrival == len(plans):
                scheduler.submit([1] * prompt, names.Settings(max_tokens=reply, priority=priority))
        plan = scheduler.plan()
        scheduler.commit(plan, dict.fromkeys(plan.ids_sampled, 1))
        plans.append(plan)
    return plans


class Counted:
    """A model that counts the tokens that its calls run; rows of slots that are empty do not count."""

    def __init__(self, model) -> None:
        self.model = model
        self.tokens = 0
        self.num_hidden_layers = model.num_hidden_layers
        self.create_kv_cache = model.create_kv_cache

    def __call__(self, inputs: mx.array, offset, cache) -> mx.array:
        rows = sum(n > 0 for n in offset) if isinstance(offset, list) else inputs.shape[0]
        self.tokens += rows * inputs.shape[1]
        return self.model(inputs, offset, cache)


def longest_gap(bench: Bench, mlx_model) -> tuple[int, int]:
    """Tokens run from one token of a reply to its next, the most, while a long prompt is prefilled: with
    chunks, and with the budget and the chunk as long as the prompt."""
    found = []
    for budget, chunk in ((BUDGET, CHUNK), (LONG + SLOTS, LONG)):
        calls = Counted(week2_model(bench.module, mlx_model))
        engine = bench.solution.Engine(calls, Ids(), SLOTS, LENGTH, budget, chunk)
        settings = bench.solution.Settings(max_tokens=2 * REPLY)
        replying = [engine.submit([1 + n] * 3, settings) for n in range(SLOTS - 1)]
        engine.step()
        long = engine.submit([1] * LONG, settings)
        most, since, seen = 0, calls.tokens, set()
        while long not in seen:
            seen = {event.id for event in engine.step()}
            if replying[0] in seen:
                most, since = max(most, calls.tokens - since), calls.tokens
        found.append(most)
    return found[0], found[1]


def served(names, model):
    def run(prompts):
        engine = names.Engine(model, Ids(), SLOTS, LENGTH, BUDGET, CHUNK)
        settings = names.Settings(max_tokens=REPLY)
        replies = {engine.submit(prompt, settings): [] for prompt in prompts}
        while engine.has_work:
            for event in engine.step():
                replies[event.id] += event.tokens
        return mx.array(list(replies.values()))

    return run


def one_by_one(module, model):
    generate = module("week2/generation.py").generate_tokens_with_kv_cache
    return lambda prompts: mx.array([list(generate(model, p, set(), None, REPLY)) for p in prompts])


def mlx_lm_server(mlx_model):
    from mlx_lm.generate import BatchGenerator

    def run(prompts):
        generator = BatchGenerator(mlx_model, completion_batch_size=SLOTS, prefill_batch_size=SLOTS)
        uids = generator.insert(prompts, [REPLY] * len(prompts))
        replies = {uid: [] for uid in uids}
        while responses := generator.next_generated():
            for response in responses:
                replies[response.uid].append(response.token)
        generator.close()
        return mx.array([replies[uid] for uid in uids])

    return run
