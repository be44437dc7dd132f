"""Trains a shipped model anew, from its seed, as it was trained.

    python -P -m tinyllm.reference.week4.retrain MODEL RUN OUT [--processes N]

MODEL is tiny-qwen2 or tiny-qwen2-draft; RUN is the folder of the run, OUT that of the exported model. After a
stop the same command goes on. The tokenizer, the same for both, is trained first, into RUN-tokenizer.

Each stage is one call of train.py with options of its own. tiny-qwen2 has several because the first were
found wanting: at that step size a batch of 900 tokens is too noisy. In 600 steps with twice the batch and
half the step size right answers went from 39 to 46 of 90, right tool calls from 5 to 8 of 8.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .checkpointing import load


@dataclass(frozen=True)
class Stage:
    until: int  # the last step
    options: tuple[str, ...]  # of train.py


STAGES = {
    "tiny-qwen2": (
        Stage(3600, ("--rows=2", "--steps=7500", "--quantised-from=6800", "--long-from=7200")),
        Stage(6200, ("--rows=2", "--steps=13000", "--quantised-from=11800", "--long-from=12400")),
        Stage(8000, ("--rows=4", "--steps=10000", "--quantised-from=9300", "--long-from=9700")),
        Stage(8400, ("--rows=4", "--steps=8400", "--quantised-from=8150", "--long-from=8300")),
    ),
    "tiny-qwen2-draft": (
        Stage(2400, ("--rows=4", "--steps=2400", "--quantised-from=2200", "--long-from=2300")),
    ),
}


def retrain(name: str, stages: tuple[Stage, ...], run: Path, out: Path, more: tuple[str, ...] = ()) -> None:
    """Run the stages that are not done yet, then export. `more`: options that every stage gets.

    Raises subprocess.CalledProcessError when a stage fails; train.py has then said why.
    """
    for number, stage in enumerate(stages, start=1):
        last = number == len(stages)
        if not last and _steps_done(run) >= stage.until:
            continue
        command = [sys.executable, "-P", "-m", f"{__package__}.train", str(run), f"--model={name}"]
        command += [*stage.options, f"--until={stage.until}", "--change", *more]
        subprocess.run([*command, f"--export={out}"] if last else command, check=True)


def _steps_done(run: Path) -> int:
    try:
        return load(run)[0].step
    except FileNotFoundError:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a shipped model anew.")
    parser.add_argument("model", choices=STAGES)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    more = (f"--processes={options.processes}",)
    retrain(options.model, STAGES[options.model], options.run, options.out, more)


if __name__ == "__main__":
    main()
