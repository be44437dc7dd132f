"""Day 2.1, measured: positions a step runs, bytes a cache's update allocates, the loop beside week 1's.

The counts have bars. The races have none: how much is won depends on the machine and on the model's size.
"""

import mlx.core as mx

from tinyllm.grader.measuring import Bench

PROMPT, REPLY = 256, 24  # tokens
STORED, UPDATES = 4000, 32


def measure(bench: Bench) -> None:
    bench.stage("counting")
    steps = positions_run(bench, REPLY)
    bench.count("positions run by a decode step, the most", max(steps[1:]), equals=1)
    whole = f"positions run for a prompt of {PROMPT} tokens and a reply of {REPLY}"
    bench.count(whole, sum(steps), equals=PROMPT + REPLY - 1)

    full, step = bench.solution.TinyKvFullCache, bench.solution.TinyKvStepCache
    stored = 2 * 2 * 1000 * 64 * 4
    said = "bytes allocated by an update behind 1000 tokens (H = 2, D = 64)"
    bench.count(f"{said}, joined", bytes_of_an_update(full), unit="bytes")
    bench.count(f"{said}, with room", bytes_of_an_update(step), unit="bytes", at_most=stored // 8)

    bench.race(
        f"{UPDATES} updates behind {STORED} tokens (H = 4, D = 128)",
        {"TinyKvFullCache": (filled(full), update), "TinyKvStepCache": (filled(step), update)},
        unit="updates/s",
        work=UPDATES,
        inputs=lambda number: tokens(UPDATES, seed=number),
    )

    mlx_model = bench.shipped_model()
    week1 = bench.reference_module("week1/generation.py").generate_tokens
    plain = bench.reference_module("week1/qwen2_model.py").Qwen2ModelWeek1(mlx_model)
    bench.race(
        f"tiny-qwen2: a reply of {REPLY} tokens to a prompt of {PROMPT}",
        {
            "yours": loop(bench.solution, mlx_model),
            "reference": loop(bench.reference, mlx_model),
            "week 1's loop": lambda prompt: mx.array(list(week1(plain, prompt, set(), None, REPLY))),
        },
        unit="tokens/s",
        work=REPLY,
        inputs=lambda number: (prompt_of(mlx_model, seed=number),),
    )


def prompt_of(mlx_model, *, seed: int) -> list[int]:
    ids = mx.random.randint(0, mlx_model.args.vocab_size, (PROMPT,), key=mx.random.key(seed))
    return ids.tolist()


def loop(names, mlx_model):
    """A function from a prompt to the ids of the reply, with no token that ends it."""
    model = names.Qwen2ModelWeek2(mlx_model)
    return lambda prompt: mx.array(
        list(names.generate_tokens_with_kv_cache(model, prompt, set(), None, REPLY))
    )


def positions_run(bench: Bench, steps: int) -> list[int]:
    """The positions that the first layer's q_proj is given before each token of a reply."""
    mlx_model = bench.shipped_model()
    first = mlx_model.model.layers[0].self_attn.q_proj
    run = []

    def linear_of(layer):
        apply = bench.solution.dense_linear(layer)

        def counted(x):
            run.append(x.shape[0] * x.shape[1])
            return apply(x)

        return counted if layer is first else apply

    model = bench.solution.Qwen2ModelWeek2(mlx_model, linear_of)
    found = []
    prompt = prompt_of(mlx_model, seed=0)
    for _ in bench.solution.generate_tokens_with_kv_cache(model, prompt, set(), None, steps):
        found.append(sum(run))
        run.clear()
    return found


def tokens(count: int, *, seed: int, H: int = 4, D: int = 128) -> tuple[mx.array, mx.array]:
    """Keys and values of that many tokens, (count, 1, H, 1, D)."""
    keys = mx.random.split(mx.random.key(seed), 2)
    key, value = (mx.random.normal((count, 1, H, 1, D), key=k) for k in keys)
    mx.eval(key, value)
    return key, value


def bytes_of_an_update(cache_class) -> int:
    """What MLX has to find for an update by one token and for what it returns."""
    cache = cache_class()
    mx.eval(cache.update_and_fetch(mx.ones((1, 2, 1000, 64)), mx.ones((1, 2, 1000, 64)))[:2])
    key, value = tokens(2, seed=0, H=2, D=64)
    for i in (0, 1):  # the first brings the room to its size
        new = key[i], value[i]
        mx.eval(new)
        mx.synchronize()  # else what earlier work has just let go of still counts as in use
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(cache.update_and_fetch(*new)[:2])
        needed = max(0, mx.get_peak_memory() - before)
    return needed


def filled(cache_class):
    """A function that makes a cache of STORED tokens for the updates that follow."""

    def setup(key, value):
        cache = cache_class()
        old = mx.zeros((1, key.shape[2], STORED, key.shape[4]))
        mx.eval(cache.update_and_fetch(old, old)[:2])
        return cache, key, value

    return setup


def update(job):
    cache, key, value = job
    for i in range(UPDATES):
        mx.eval(cache.update_and_fetch(key[i], value[i])[:2])
    return cache.state
