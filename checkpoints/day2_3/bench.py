"""What day 2.3 measures: what its kernels read, counted in the simulator; on a GPU, how fast they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from tinyllm.grader.measuring import Bench
from tinyllm.grader.testing import simulated

LINE = 128  # bytes
GROUP_SIZE, BITS = 64, 4


def packed(outputs: int, inputs: int, dtype: mx.Dtype = mx.float32) -> tuple[Any, ...]:
    """Random weights as the day's functions take them: (scales, biases, group_size, bits), the words."""
    w = mx.random.normal((outputs, inputs), key=mx.random.key(1)).astype(dtype)
    words, scales, biases = mx.quantize(w, group_size=GROUP_SIZE, bits=BITS)
    return (scales, biases, GROUP_SIZE, BITS), words


def cost(launch: Callable[..., mx.array], rows: int, outputs: int, inputs: int) -> Any:
    """What one launch reads, in the simulator."""
    arguments, words = packed(outputs, inputs)
    a = mx.random.normal((rows, inputs), key=mx.random.key(2))
    with simulated() as launches:
        mx.eval(launch(*arguments, a, words))
    return launches[0]


def measure(bench: Bench) -> None:
    yours = bench.solution
    bench.stage("counting in the simulator")
    plain, matvec = (cost(f, 1, 64, 2048) for f in (yours.launch_plain, yours.launch_matvec))
    has = 64 * 2048 * BITS / 8 / LINE
    bench.count("1 row: lines of w fetched by plain, for each that it has", plain.lines["w"] / has)
    bench.count("1 row: the same by matvec", matvec.lines["w"] / has, at_most=1.25)
    share = matvec.most_read / plain.most_read
    bench.count("1 row: the busiest thread of matvec, share of plain's bytes", share, at_most=1 / 8)

    plain, tiled = (cost(f, 64, 64, 256) for f in (yours.launch_plain, yours.launch_tiled))
    share = tiled.bytes_read / plain.bytes_read
    bench.count("64 rows: bytes read by tiled, share of plain's", share, at_most=1 / 8)
    bench.count(
        "64 rows: lines fetched by tiled, share of plain's",
        sum(tiled.lines.values()) / sum(plain.lines.values()),
    )
    bench.count(
        "64 rows: threadgroup memory of a tile", tiled.threadgroup_memory, at_most=32768, unit="bytes"
    )

    if mx.default_device() != mx.gpu:
        bench.note("MLX computes on the CPU here, so nothing is raced: the simulator knows no time.")
        return
    race(bench, 1, "launch_matvec")
    race(bench, 256, "launch_tiled")


def race(bench: Bench, rows: int, launch: str) -> None:
    """gate_proj of Qwen2-7B, in float16, against MLX's own kernel."""
    outputs, inputs = 18944, 3584
    arguments, words = packed(outputs, inputs, mx.float16)
    a = mx.random.normal((rows, inputs), key=mx.random.key(2)).astype(mx.float16)
    scales, biases, group_size, bits = arguments
    mx.eval(a, words, scales, biases)

    def mlx() -> mx.array:
        return mx.quantized_matmul(a, words, scales, biases, group_size=group_size, bits=bits)

    bench.race(
        f"{rows} x {inputs} by {outputs} x {inputs}, 4 bits",
        {
            "yours": lambda: getattr(bench.solution, launch)(*arguments, a, words),
            "reference": lambda: getattr(bench.reference, launch)(*arguments, a, words),
            "mlx": mlx,
        },
        unit="GB/s of weights",
        work=(words.nbytes + scales.nbytes + biases.nbytes) / 1e9,
        same=True,
    )
