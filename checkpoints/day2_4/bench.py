"""Day 2.4's measurement: tiles, memory, and the kernel against MLX's own attention.

TINYLLM_BENCH_LENGTH sets the queries and keys of the race, 1024 if it is not set.
"""

import os

import mlx.core as mx

from tinyllm.grader.measuring import Bench

LENGTH = int(os.environ.get("TINYLLM_BENCH_LENGTH", "1024"))
H_Q, H, D = 14, 2, 64  # Qwen2-0.5B's
CACHED = 4096  # keys of the race with one query
QUERY_TILE, KEY_TILE = 32, 64


def inputs(L, S):
    """inputs(round): query, key and value of Qwen2-0.5B's heads."""

    def make(round):
        keys = mx.random.split(mx.random.key(round), 3)
        shapes = ((1, H_Q, L, D), (1, H, S, D), (1, H, S, D))
        return tuple(mx.random.normal(shape, key=key) for shape, key in zip(shapes, keys, strict=True))

    return make


def allocated(attention, L):
    """The bytes that MLX finds for causal attention of L queries and keys, the result included."""
    arrays = inputs(L, L)(0)
    mx.eval(arrays)
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(attention(*arrays, mask="causal"))
    return mx.get_peak_memory() - before


def measure(bench: Bench) -> None:
    yours, reference = bench.solution.flash_attention, bench.reference.flash_attention

    _, tiles = bench.solution.cpp.flash_attention_fast(*inputs(LENGTH, LENGTH)(0), D**-0.5, causal=True)
    of_all = H_Q * -(-LENGTH // QUERY_TILE) * -(-LENGTH // KEY_TILE)
    share = 100 * mx.sum(tiles).item() / of_all
    bench.count(f"tiles computed with a causal mask, of {of_all}", share, at_most=60, unit="%")

    growth = allocated(yours, 2 * LENGTH) / allocated(yours, LENGTH)
    bench.count(f"memory at L = S = {2 * LENGTH}, times that at {LENGTH}", growth, at_most=2.2)
    scores = 4 * H_Q * LENGTH * LENGTH
    share = 100 * allocated(yours, LENGTH) / scores
    bench.count(f"memory at L = S = {LENGTH}, of the bytes of its scores", share, at_most=20, unit="%")

    def whole(query, key, value):
        return mx.fast.scaled_dot_product_attention(query, key, value, scale=D**-0.5)

    contestants = {"yours": yours, "reference": reference, "mx.fast": whole}
    bench.race(
        f"{LENGTH} queries, {LENGTH} keys",
        contestants,
        unit="GFLOP/s",
        work=4 * H_Q * LENGTH * LENGTH * D / 1e9,
        inputs=inputs(LENGTH, LENGTH),
        same=True,
        bar=("yours", "mx.fast", 5),
    )
    bench.race(
        f"one query, {CACHED} keys",
        contestants,
        unit="us",
        inputs=inputs(1, CACHED),
        same=True,
    )
