"""Day 2.6, measured: steps and bytes of a batch, and sixteen replies by eight slots beside one after another.

The model is tiny-qwen2 with day 2.1's dense layers, the replies end by their length. mlx-lm takes part with
its own batch generator.
"""

import os

import mlx.core as mx

from tinyllm.grader.measuring import Bench

SLOTS, REQUESTS = 8, 16
PROMPTS = (24, 7, 31, 12, 18, 5, 27, 15)  # tokens, in turn
LENGTH = 48  # max_seq_len: a reply has 48 tokens less those of its prompt, 17 to 43
STORED, UPDATES = 500, 48


def measure(bench: Bench) -> None:
    bench.stage("counting")
    mlx_model = bench.shipped_model()
    prompts = prompts_of(mlx_model, seed=0)
    tokens = sum(LENGTH - len(prompt) for prompt in prompts)
    calls = Counted(week2_model(bench.module, mlx_model))
    serve(bench.solution, calls, prompts, SLOTS)
    steps = [rows for rows in calls.rows if rows > 1]
    title = f"decode steps for {REQUESTS} replies of {tokens} tokens in all, {SLOTS} slots"
    # One by one it would take one for each token but the first of each reply, which the prefill gives.
    bench.count(title, len(steps), at_most=(tokens - REQUESTS) // 4)
    bench.count("replies that go on in a decode step, on average", (tokens - REQUESTS) / max(1, len(steps)))

    stored = SLOTS * 2 * 2 * STORED * 64 * 4
    said = f"bytes allocated by an update, {SLOTS} slots behind {STORED} tokens (H = 2, D = 64), the median"
    needed = sorted(bytes_of_updates(bench.solution))
    bench.count(said, needed[UPDATES // 2], unit="bytes", at_most=stored // 8)
    moved = sum(1 for n in needed if n > stored // 8)
    bench.count(f"updates of {UPDATES} that move what is stored", moved, at_most=1)

    names = {"yours": (bench.solution, bench.module), "reference": (bench.reference, bench.reference_module)}
    models = {name: week2_model(module, mlx_model) for name, (_, module) in names.items()}
    contestants = {name: server(solution, models[name], SLOTS) for name, (solution, _) in names.items()}
    contestants["one after another"] = server(bench.solution, models["yours"], 1)
    contestants["mlx-lm"] = mlx_lm_server(mlx_model)
    bench.race(
        f"tiny-qwen2: {REQUESTS} replies, {SLOTS} slots",
        contestants,
        unit="tokens/s",
        work=tokens,
        inputs=lambda number: (prompts_of(mlx_model, seed=number),),
        bar=("yours", "one after another", 2.0),
    )


def prompts_of(mlx_model, *, seed: int) -> list[list[int]]:
    ids = mx.random.randint(0, mlx_model.args.vocab_size, (REQUESTS, max(PROMPTS)), key=mx.random.key(seed))
    return [row[: PROMPTS[i % len(PROMPTS)]] for i, row in enumerate(ids.tolist())]


def week2_model(module, mlx_model):
    return module("week2/qwen2_model.py").Qwen2ModelWeek2(mlx_model)


class Ids:
    """A tokenizer of texts that are ids with spaces between them; nothing ends a reply."""

    eos_token_ids = frozenset()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        return " ".join(map(str, token_ids))


class Counted:
    """A model that notes how many rows each call has."""

    def __init__(self, model) -> None:
        self.model = model
        self.rows: list[int] = []
        self.num_hidden_layers = model.num_hidden_layers
        self.create_kv_cache = model.create_kv_cache

    def __call__(self, inputs: mx.array, offset, cache) -> mx.array:
        self.rows.append(inputs.shape[0])
        return self.model(inputs, offset, cache)


def serve(names, model, prompts, slots: int) -> mx.array:
    """The ids of all replies, prompt by prompt."""
    texts = [" ".join(map(str, prompt)) for prompt in prompts]
    replies = names.batch_generate(model, Ids(), texts, LENGTH, slots, 32)
    return mx.array([int(word) for _, text in sorted(replies) for word in text.split()])


def server(names, model, slots: int):
    return lambda prompts: serve(names, model, prompts, slots)


def mlx_lm_server(mlx_model):
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would tell that there is no PyTorch
    from mlx_lm.generate import BatchGenerator

    def run(prompts):
        generator = BatchGenerator(mlx_model, completion_batch_size=SLOTS, prefill_batch_size=SLOTS)
        uids = generator.insert(prompts, [LENGTH - len(prompt) for prompt in prompts])
        replies = {uid: [] for uid in uids}
        while responses := generator.next_generated():
            for response in responses:
                replies[response.uid].append(response.token)
        generator.close()
        return mx.array([token for uid in uids for token in replies[uid]])

    return run


class Prefilled:
    """One request's cache of STORED tokens."""

    def __init__(self) -> None:
        self.offset = STORED
        self.state = [mx.ones((1, 2, STORED, 64)), mx.ones((1, 2, STORED, 64))]


def bytes_of_updates(names) -> list[int]:
    """What MLX has to find for each of UPDATES updates by a token in every slot."""
    cache = names.BatchingKvCache(SLOTS, 4 * STORED)
    for id in range(SLOTS):
        cache.add_request(Prefilled(), id)
    new = mx.ones((SLOTS, 2, 1, 64))
    mx.eval(new, cache.state)
    found = []
    for _ in range(UPDATES):
        mx.synchronize()  # else what earlier work has just let go of still counts as in use
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        key, value, _, mask = cache.update_and_fetch(new, new)
        mx.eval(key, value, mask)
        found.append(max(0, mx.get_peak_memory() - before))
        del key, value, mask
    return found
