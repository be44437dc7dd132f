"""How fast the reference's week-1 model is beside mlx-lm run as week 1 runs: without a cache.

Both compute the logits of all tokens so far at every step. They run in a child (model_child.py), with
the BLAS of kernels.blas under MLX; where there is one, the prefill is measured with MLX as shipped, too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..clone import Clone
from ..errors import EnvironmentFault

OURS = "the week-1 model"
THEIRS = "mlx-lm"
PLAIN = "mlx-lm, weights dequantised"  # as the week-1 model holds them
RATIO_BAR = 1.0

Tokens = dict[str, list[float]]  # tokens/s of each run, by model


@dataclass
class Speeds:
    """What one process measured."""

    blas: str  # what its products ran on
    dtype: str
    prompt: int
    steps: int
    prefill: Tokens = field(default_factory=dict)
    decode: Tokens = field(default_factory=dict)  # empty with no steps

    def ratios(self, part: str, other: str) -> list[float]:
        """Our tokens/s over the other's, run by run."""
        speeds = getattr(self, part)
        return [a / b for a, b in zip(speeds[OURS], speeds[other], strict=True)]

    @property
    def within_bar(self) -> bool:
        return all(
            statistics.median(self.ratios(part, THEIRS)) >= RATIO_BAR
            for part in ("prefill", "decode")
            if getattr(self, part)
        )


def measure(
    clone: Clone, folder: Path, *, runs: int, prompt: int, steps: int, say: Callable[[str], None]
) -> list[Speeds]:
    """The speeds with the BLAS, and without it where there is one. Raises EnvironmentFault when the two
    models' logits do not agree, or do not come."""
    found = [_measured(clone, folder, runs, prompt, steps, {}, say)]
    if not found[0].blas.startswith("MLX's own"):
        found.append(_measured(clone, folder, runs, prompt, 0, {"TINYLLM_BLAS": "off"}, say))
    return found


def summary(speeds: Speeds) -> str:
    lines = [
        f"{speeds.dtype}, products by {speeds.blas}",
        "tokens/s, and the ratio of ours to theirs, run by run: median (from, to)",
    ]
    for part, title in (
        ("prefill", f"prefill of {speeds.prompt} tokens"),
        ("decode", f"{speeds.steps} tokens from there, each from all tokens so far"),
    ):
        measured = getattr(speeds, part)
        if not measured:
            continue
        lines.append(f"{title}:")
        for name, figures in measured.items():
            line = f"  {name:<28} {_spread(figures):<20}"
            if name != OURS:
                line += f" ratio {_spread(speeds.ratios(part, name))}"
            lines.append(line.rstrip())
    return "\n".join(lines)


def _spread(figures: list[float]) -> str:
    middle, least, most = (_figure(x) for x in (statistics.median(figures), min(figures), max(figures)))
    return f"{middle} ({least}, {most})"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _measured(
    clone: Clone,
    folder: Path,
    runs: int,
    prompt: int,
    steps: int,
    environment: dict[str, str],
    say: Callable[[str], None],
) -> Speeds:
    job = {"root": str(clone.root), "model": str(folder), "runs": runs, "prompt": prompt, "steps": steps}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "tinyllm.grader.bench.model_child", json.dumps(job)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        speeds = None
        for line in process.stdout:
            told = json.loads(line)
            if speeds is None:
                speeds = Speeds(told["blas"], told["dtype"], prompt, steps)
                continue
            for part, tokens in (("prefill", prompt), ("decode", steps)):
                for name, seconds in told[part].items():
                    getattr(speeds, part).setdefault(name, []).append(tokens / seconds)
            say(_run_line(speeds))
        complaint = process.stderr.read()
    if process.returncode != 0 or speeds is None:
        raise EnvironmentFault(f"the models did not run:\n{complaint.strip()[-2000:]}")
    return speeds


def _run_line(speeds: Speeds) -> str:
    parts = []
    for part in ("prefill", "decode"):
        figures = [f"{name} {_figure(values[-1])}" for name, values in getattr(speeds, part).items()]
        if figures:
            parts.append(f"{part} {', '.join(figures)}")
    return f"run {len(speeds.prefill[OURS])}: {'; '.join(parts)} tokens/s"
