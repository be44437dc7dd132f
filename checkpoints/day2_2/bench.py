"""Day 2.2, measured: the ladder on one matrix, what a packed model takes in memory, tiny-qwen2 on it."""

import gc

import mlx.core as mx

from tinyllm.grader.measuring import Bench

# gate_proj and up_proj of Qwen2-0.5B: 2.5 MB in 4 bits.
OUTPUTS, INPUTS, GROUP_SIZE, BITS = 4864, 896, 64, 4
STEPS = ("plain", "grouped", "vector", "threads", "tiled")
PROMPT, REPLY = 32, 16  # tokens


def measure(bench: Bench) -> None:
    packed_bytes = sum(array.nbytes for array in weights(seed=0))
    bench.count(
        "bytes of a 4864 x 896 matrix in bfloat16, over its bytes packed", 2 * OUTPUTS * INPUTS / packed_bytes
    )
    race_steps(bench, rows=1, steps=STEPS, bar=[("vector", "plain", 2.0)])
    race_steps(bench, rows=64, steps=STEPS[1:], bar=[("tiled", "grouped", 2.0)])
    for rows in (1, 64):
        race_products(bench, rows)
    measure_model(bench)


def weights(*, seed: int) -> tuple[mx.array, mx.array, mx.array]:
    """Words, scales and biases, in bfloat16 as a checkpoint has them."""
    key = mx.random.key(seed)
    words = mx.random.randint(0, 2**31 - 1, (OUTPUTS, INPUTS * BITS // 32), key=key).astype(mx.uint32)
    groups = (OUTPUTS, INPUTS // GROUP_SIZE)
    scales = (0.01 + 0.001 * mx.random.normal(groups, key=key)).astype(mx.bfloat16)
    return words, scales, (-8 * scales).astype(mx.bfloat16)


def product_inputs(rows: int):
    def inputs(number: int) -> tuple[mx.array, ...]:
        x = mx.random.normal((rows, INPUTS), key=mx.random.key(100 + number)).astype(mx.bfloat16)
        return x, *weights(seed=number)

    return inputs


def race_steps(bench: Bench, rows: int, steps, bar) -> None:
    """The steps of the tree that is measured, by their own names."""

    def step(name: str):
        kernel = getattr(bench.solution.cpp, f"quantized_matmul_{name}")
        return lambda x, words, scales, biases: kernel(x, words, scales, biases, GROUP_SIZE, BITS)

    bench.race(
        f"the ladder: {rows} {'row' if rows == 1 else 'rows'} of bfloat16 times 4864 x 896 in 4 bits",
        {name: step(name) for name in steps},
        unit="GFLOP/s",
        work=2 * rows * OUTPUTS * INPUTS / 1e9,
        inputs=product_inputs(rows),
        same=True,
        bar=bar,
    )


def race_products(bench: Bench, rows: int) -> None:
    def product(names):
        return lambda x, words, scales, biases: names.quantized_matmul(
            scales, biases, GROUP_SIZE, BITS, x, words, transpose_b=True
        )

    contestants = {"yours": product(bench.solution), "reference": product(bench.reference)}
    if rows == 1:  # for many rows MLX's own takes seconds on a CPU
        contestants["mx.quantized_matmul"] = lambda x, words, scales, biases: mx.quantized_matmul(
            x, words, scales, biases, transpose=True, group_size=GROUP_SIZE, bits=BITS
        )
    bench.race(
        f"quantized_matmul: {rows} {'row' if rows == 1 else 'rows'}, the step that it chooses",
        contestants,
        unit="GFLOP/s",
        work=2 * rows * OUTPUTS * INPUTS / 1e9,
        inputs=product_inputs(rows),
        same=True,
    )


def measure_model(bench: Bench) -> None:
    mlx_model = bench.shipped_model()
    mx.eval(mlx_model.parameters())
    gc.collect()
    before = mx.get_active_memory()
    model = bench.solution.packed_model(mlx_model)
    cache = model.create_kv_cache()
    mx.eval(model(prompt(0), 0, cache))
    mx.reset_peak_memory()
    start = mx.get_active_memory()
    mx.eval(model(prompt(0)[:, :1], PROMPT, cache))
    largest = mlx_model.args.vocab_size * mlx_model.args.hidden_size * 2
    bench.count("bytes that the packed model keeps beside the checkpoint, cache included", start - before)
    bench.count(
        "bytes taken for one token at the most, over the unpacked embedding's",
        (mx.get_peak_memory() - start) / largest,
        at_most=0.5,
    )

    def decode(model):
        def setup(ids):
            cache = model.create_kv_cache()
            mx.eval(model(ids, 0, cache))
            return ids, cache

        def run(state):
            ids, cache = state
            token, logits = ids[:, :1], []
            for offset in range(PROMPT, PROMPT + REPLY):
                logits.append(model(token, offset, cache))
                token = mx.argmax(logits[-1][:, -1:], axis=-1)
                mx.eval(token)
            return logits[0]

        return setup, run

    dense = bench.reference_module("week2/qwen2_model.py").Qwen2ModelWeek2(mlx_model)
    bench.race(
        f"tiny-qwen2, {REPLY} tokens behind {PROMPT}",
        {
            "yours": decode(model),
            "reference": decode(bench.reference.packed_model(mlx_model)),
            "weights unpacked": decode(dense),
        },
        unit="tokens/s",
        work=REPLY,
        inputs=lambda number: (prompt(number),),
        same=0.1,
    )


def prompt(seed: int) -> mx.array:
    return mx.random.randint(0, 1000, (1, PROMPT), key=mx.random.key(seed))
