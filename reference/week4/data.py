"""Samples as batches of tokens: packed rows, in a seeded order that can be taken up anywhere.

Several samples share a row; `segments` keeps them from seeing each other. The only state is the number of the
next sample (`Packer.position`): a batch is a function of it, so a resumed run sees exactly the batches that
an unbroken one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from .corpus import Sample, sample

Encode = Callable[[str], list[int]]  # text to token ids, nothing added


@dataclass(frozen=True)
class Batch:
    """B rows of L tokens. Unused places hold token 0, in segment 0, with weight 0."""

    tokens: mx.array  # (B, L) int32
    segments: mx.array  # (B, L) int32; 1, 2, ... for the texts of a row
    places: mx.array  # (P,) int32: places in the flattened (B * L) whose next token counts in the loss
    targets: mx.array  # (P,) int32: that next token
    weights: mx.array  # (P,) float32: how much it counts
    used: int  # tokens that are no padding


@dataclass
class Packer:
    """Batches of `rows` x `length` tokens.

    Args:
        encode: text to ids.
        prompt_weight: what a token that the model need not write (a question, a text given) counts in the
            loss; a reply's counts 1. Above 0, names and things in questions teach copying early.
    """

    encode: Encode
    rows: int
    length: int
    prompt_weight: float = 0.1
    split: str = "train"
    position: int = 0  # the next sample's index

    def next(self) -> Batch:
        """The next batch. A sample longer than a row is left out."""
        rows: list[list[tuple[list[int], list[float]]]] = [[] for _ in range(self.rows)]
        room = [self.length] * self.rows
        while True:
            ids, weights = encode_sample(sample(self.split, self.position), self.encode, self.prompt_weight)
            if len(ids) <= self.length:
                fits = [r for r in range(self.rows) if len(ids) <= room[r]]
                if not fits:
                    break  # this sample opens the next batch
                rows[fits[0]].append((ids, weights))
                room[fits[0]] -= len(ids)
            self.position += 1
        return self._batch(rows)

    def _batch(self, rows: list[list[tuple[list[int], list[float]]]]) -> Batch:
        tokens = [[0] * self.length for _ in rows]
        segments = [[0] * self.length for _ in rows]
        places, targets, counted = [], [], []
        for r, texts in enumerate(rows):
            at = 0
            for number, (ids, weights) in enumerate(texts, start=1):
                tokens[r][at : at + len(ids)] = ids
                segments[r][at : at + len(ids)] = [number] * len(ids)
                for i in range(1, len(ids)):
                    if weights[i] > 0:  # the place before predicts token i
                        places.append(r * self.length + at + i - 1)
                        targets.append(ids[i])
                        counted.append(weights[i])
                at += len(ids)
        return Batch(
            tokens=mx.array(tokens, dtype=mx.int32),
            segments=mx.array(segments, dtype=mx.int32),
            places=mx.array(places, dtype=mx.int32),
            targets=mx.array(targets, dtype=mx.int32),
            weights=mx.array(counted, dtype=mx.float32),
            used=sum(len(ids) for texts in rows for ids, _ in texts),
        )


def encode_sample(item: Sample, encode: Encode, prompt_weight: float) -> tuple[list[int], list[float]]:
    """A sample's ids, and each one's weight in the loss."""
    ids: list[int] = []
    weights: list[float] = []
    for text, learnt in item.pieces():
        piece = encode(text)
        ids += piece
        weights += [1.0 if learnt else prompt_weight] * len(piece)
    return ids, weights
