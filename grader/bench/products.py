"""How fast MLX multiplies float32 matrices on the CPU, as shipped and with the BLAS of kernels.blas."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import EnvironmentFault

SIZES = (512, 1024)

# One process each time: the BLAS is chosen before MLX is loaded.
MULTIPLY = """
import json, sys, time
from tinyllm.kernels import blas
state = blas.prepare()
import mlx.core as mx
speeds = {}
for size in map(int, sys.argv[1:]):
    a = mx.random.normal((size, size), stream=mx.cpu)
    seconds = []
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        mx.eval(mx.matmul(a, a, stream=mx.cpu))
        seconds.append(time.perf_counter() - began)
    speeds[size] = 2 * size**3 / sorted(seconds[1:])[1] / 1e9
print(json.dumps({"state": str(state), "speeds": speeds}))
"""


@dataclass
class Products:
    """GFLOP/s by size, one figure a run (the median of three products), of two ways to multiply."""

    with_blas: dict[int, list[float]] = field(default_factory=lambda: {size: [] for size in SIZES})
    as_shipped: dict[int, list[float]] = field(default_factory=lambda: {size: [] for size in SIZES})
    state: str = ""


def measure(runs: int, say: Callable[[str], None]) -> Products:
    """The two ways in turns, `runs` times each. Raises EnvironmentFault when MLX does not run."""
    result = Products()
    for run in range(1, runs + 1):
        state, fast = _one_run({})
        _, slow = _one_run({"TINYLLM_BLAS": "off"})
        result.state = state
        for size in SIZES:
            result.with_blas[size].append(fast[size])
            result.as_shipped[size].append(slow[size])
        say(f"run {run}: " + "; ".join(f"{n}^3 {slow[n]:.3g} and {fast[n]:.3g} GFLOP/s" for n in SIZES))
    return result


def summary(result: Products) -> str:
    lines = [f"as shipped, and with {result.state}; float32 GFLOP/s, median (from, to):"]
    for size in SIZES:
        slow, fast = result.as_shipped[size], result.with_blas[size]
        ratio = statistics.median(f / s for f, s in zip(fast, slow, strict=True))
        lines.append(f"{size}^3: {_spread(slow)}, and {_spread(fast)}: {ratio:.1f} times")
    return "\n".join(lines)


def _spread(figures: list[float]) -> str:
    return f"{statistics.median(figures):.3g} ({min(figures):.3g}, {max(figures):.3g})"


def _one_run(environment: dict[str, str]) -> tuple[str, dict[int, float]]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", MULTIPLY, *map(str, SIZES)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise EnvironmentFault(f"MLX did not multiply:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout)
    return answer["state"], {int(size): speed for size, speed in answer["speeds"].items()}
