"""What day 2.5 measures: what its kernels read and wait for, in the simulator; on a GPU, their speed."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from tinyllm.grader.measuring import Bench

LINE = 128  # bytes
D = 64
LONG = 2048  # tokens of the race
SCALE = D**-0.5


def inputs(heads: tuple[int, int], L: int, S: int, dtype: mx.Dtype) -> Callable[[int], tuple[mx.array, ...]]:
    """inputs(round): query, key and value for (query heads, key heads)."""

    def make(round: int) -> tuple[mx.array, ...]:
        keys = mx.random.split(mx.random.key(round), 3)
        shapes = ((1, heads[0], L, D), (1, heads[1], S, D), (1, heads[1], S, D))
        pairs = zip(shapes, keys, strict=True)
        return tuple(mx.random.normal(shape, key=key).astype(dtype) for shape, key in pairs)

    return make


def cost(bench: Bench, launch: Callable[..., mx.array], L: int, S: int, mask: Any = None) -> Any:
    """What one launch costs, in the simulator: 4 query heads, 2 key heads, float32."""
    with bench.reference.gpu.simulated() as launches:
        mx.eval(launch(*inputs((4, 2), L, S, mx.float32)(0), SCALE, mask))
    return launches[0]


def of_keys(launch: Any) -> int:
    """The bytes of keys and values that a launch reads."""
    return launch.read["key"] + launch.read["value"]


def measure(bench: Bench) -> None:
    yours = bench.solution
    plain = cost(bench, yours.launch_plain, 64, 64)
    tiled = cost(bench, yours.launch_tiled, 64, 64)
    causal = cost(bench, yours.launch_tiled, 64, 64, "causal")
    share = of_keys(tiled) / of_keys(plain)
    bench.count("64 queries: keys and values read by tiled, share of plain's", share, at_most=1 / 8)
    share = of_keys(causal) / of_keys(tiled)
    bench.count("64 queries: the same with a causal mask, share of tiled's", share, at_most=0.75)
    tiles = 4 * 2 * 2  # of rows, of keys, for each key head
    bench.count("64 queries: barriers for a tile of keys", tiled.barriers / tiles, at_most=5)
    bench.count("64 queries: threadgroup memory", tiled.threadgroup_memory, at_most=32768, unit="bytes")

    plain = cost(bench, yours.launch_plain, 1, 512)
    decode = cost(bench, yours.launch_decode, 1, 512)
    share = decode.most_read / plain.most_read
    bench.count("one query: the busiest thread of decode, share of plain's bytes", share, at_most=1 / 200)
    has = of_keys(decode) / LINE
    for name, launch in (("plain", plain), ("decode", decode)):
        lines = launch.lines["key"] + launch.lines["value"]
        bar = {"at_most": 1.25} if name == "decode" else {}
        bench.count(f"one query: lines fetched by {name}, for each that it needs", lines / has, **bar)

    if mx.default_device() != mx.gpu:
        bench.note("MLX computes on the CPU here, so nothing is raced: the simulator knows no time.")
        return
    race(bench, f"{LONG} queries and keys, causal", LONG, LONG, "causal")
    race(bench, f"one query, {2 * LONG} keys", 1, 2 * LONG, None)


def race(bench: Bench, title: str, L: int, S: int, mask: Any) -> None:
    """Qwen2-0.5B's heads, in float16, against MLX's own kernels."""

    def mlx(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(query, key, value, scale=SCALE, mask=mask)

    bench.race(
        title,
        {
            "yours": lambda *arrays: bench.solution.flash_attention_gpu(*arrays, mask=mask),
            "reference": lambda *arrays: bench.reference.flash_attention_gpu(*arrays, mask=mask),
            "mx.fast": mlx,
        },
        unit="GFLOP/s",
        work=4 * 14 * L * S * D * (0.5 if mask else 1) / 1e9,
        inputs=inputs((14, 2), L, S, mx.float16),
        same=True,
    )
