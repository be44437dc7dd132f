"""How good a model is, in greedy replies to samples that it was not trained on.

    python -P -m tinyllm.reference.week4.quality MODEL [SAMPLES]

MODEL is an exported folder. Prints, for each kind of reply, how many of how many are right: stories by
`stories.check_story`, answers and tool calls by comparison.
"""

# ruff: noqa: E402

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tinyllm.kernels import blas

blas.prepare()  # before the next lines import mlx.core

from . import tokenizer
from .checkpointing import load_exported
from .corpus import END, TURN_END, Sample, Turn, sample
from .gpt import GPTConfig, Parameters, greedy

BATCH = 32


@dataclass
class Score:
    right: int = 0
    asked: int = 0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.right}/{self.asked} = {self.right / max(1, self.asked):.1%}"


def measure(
    parameters: Parameters,
    model: GPTConfig,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    samples: int,
    split: str = "held-out",
    max_tokens: int = 180,
) -> dict[str, Score]:
    """Scores by kind: "story", "question", "tool call", and "tool answer" (after the tool's response)."""
    asked: list[tuple[str, Sample, str, Turn]] = []
    for index in range(samples):
        item = sample(split, index)
        asked += [(_kind(item, want), item, prompt, want) for prompt, want in item.prompts()]
    # Prompts of one kind together, short ones first: a batch runs as long as its longest.
    asked.sort(key=lambda a: (a[0], len(a[2])))
    stop = {encode(END)[0], encode(TURN_END)[0]}
    scores: dict[str, Score] = {}
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        replies = greedy(parameters, model, [encode(prompt) for _, _, prompt, _ in batch], stop, max_tokens)
        for (kind, item, prompt, want), ids in zip(batch, replies, strict=True):
            score = scores.setdefault(kind, Score())
            reply = decode(ids)
            faults = item.grade(prompt, want, reply)
            score.asked += 1
            score.right += not faults
            score.faults += [f"{reply!r}: {fault}" for fault in faults[:1]]
    return scores


def _kind(item: Sample, want: Turn) -> str:
    if item.kind != "tool":
        return item.kind
    return "tool call" if want.content.startswith("<tool_call>") else "tool answer"


def main(folder: str, samples: str = "500") -> None:
    parameters, model = load_exported(Path(folder))
    words = tokenizer.load(Path(folder))
    scores = measure(
        parameters,
        model,
        encode=lambda text: words.encode(text, add_special_tokens=False).ids,
        decode=lambda ids: words.decode(ids, skip_special_tokens=False),
        samples=int(samples),
    )
    for kind, score in sorted(scores.items()):
        print(f"{kind:12} {score}")
        for fault in score.faults[:3]:
            print(f"    {fault:.300}")


if __name__ == "__main__":
    main(*sys.argv[1:])
