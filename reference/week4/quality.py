"""How good a model is, in greedy replies to samples that it was not trained on.

    python -P -m tinyllm.reference.week4.quality MODEL [--draft MODEL] [--samples N] [--json FILE]

MODEL is an exported folder. Prints, for each kind of reply, how many of how many are right: stories by
`stories.check_story`, answers and tool calls by comparison; and, with a draft, how many of the model's tokens
the draft would have proposed. Ends with 1 when a figure is below its bar. With --json the figures are written
to a file as well.
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tinyllm.kernels import blas

blas.prepare()  # before the next lines import mlx.core

import mlx.core as mx

from . import tokenizer
from .checkpointing import load_exported
from .corpus import END, TURN_END, Sample, Turn, sample
from .gpt import GPTConfig, Parameters, forward, greedy, logits

BATCH = 32
BARS = {"story": 0.95, "question": 0.9, "tool call": 0.9, "draft": 0.6}  # what the shipped models must reach


@dataclass
class Score:
    right: int = 0
    asked: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.right / max(1, self.asked)

    def __str__(self) -> str:
        return f"{self.right}/{self.asked} = {self.share:.1%}"


def measure(
    parameters: Parameters,
    model: GPTConfig,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    samples: int,
    split: str = "held-out",
    max_tokens: int = 180,
    draft: tuple[Parameters, GPTConfig] | None = None,
) -> dict[str, Score]:
    """Scores by kind: "story", "question", "long", "tool call", "tool answer" (after a response), "draft"."""
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
            if draft is not None:
                proposed = scores.setdefault("draft", Score())
                proposed.asked += len(ids)
                proposed.right += _agreed(*draft, encode(prompt), ids)
    return scores


def _agreed(parameters: Parameters, model: GPTConfig, prompt: list[int], reply: list[int]) -> int:
    """How many tokens of `reply` are the draft's likeliest, each after the right tokens before it."""
    if not reply:
        return 0
    hidden = forward(parameters, model, mx.array([prompt + reply[:-1]]))[0, len(prompt) - 1 :]
    return mx.sum(mx.argmax(logits(parameters, hidden), axis=-1) == mx.array(reply)).item()


def _kind(item: Sample, want: Turn) -> str:
    if item.kind != "tool":
        return item.kind
    return "tool call" if want.content.startswith("<tool_call>") else "tool answer"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure an exported model on the held-out split.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parameters, model = load_exported(options.model)
    words = tokenizer.load(options.model)
    scores = measure(
        parameters,
        model,
        encode=lambda text: words.encode(text, add_special_tokens=False).ids,
        decode=lambda ids: words.decode(ids, skip_special_tokens=False),
        samples=options.samples,
        draft=load_exported(options.draft) if options.draft else None,
    )
    for kind, score in sorted(scores.items()):
        print(f"{kind:12} {score}")
        for fault in score.faults[:3]:
            print(f"    {fault:.300}")
    if options.json:
        counts = {kind: {"right": s.right, "asked": s.asked} for kind, s in sorted(scores.items())}
        figures = {"samples": options.samples, "scores": counts}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(score.share < BARS.get(kind, 0) for kind, score in scores.items()))


if __name__ == "__main__":
    main()
