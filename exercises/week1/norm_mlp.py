"""Day 1.4: RMSNorm, SiLU and Qwen2's gated MLP, the two blocks that stand around attention in every layer.

The plain version: each operation is an array operation of its own and reads and writes its whole input.
Engines fuse these into one or two kernels; day 2.9 does so too.

`N..` is zero or more leading axes.
"""

from __future__ import annotations

import mlx.core as mx

from .attention import linear


class RMSNorm:
    """Root mean square normalisation over the last axis.

    y = x / sqrt(mean(x * x) + eps) * weight, with the mean over the last axis and eps inside the root.

    The squares and their mean are computed in float32, whatever x's dtype.

    weight has x's dtype and may be applied before or after the cast back; the result has x's dtype.

    x is only read: the caller's array stays as it was.

    Formula: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, equation 4; the place of eps
    is that of the Qwen2 checkpoints' own code.
    """

    def __init__(self, dim: int, weight: mx.array, eps: float = 1e-5) -> None:
        """dim: length of the last axis; weight: (dim,); eps: added to the mean square."""
        raise NotImplementedError("day 1.4, task 1: RMSNorm.__init__")

    def __call__(self, x: mx.array) -> mx.array:
        """Normalise x, (N.., dim); same shape and dtype back."""
        raise NotImplementedError("day 1.4, task 1: RMSNorm.__call__")


def silu(x: mx.array) -> mx.array:
    """The sigmoid linear unit, x * sigmoid(x).

    silu(x) = x / (1 + exp(-x)), element by element; the result has x's shape and x's dtype and is finite
    for every finite x.

    x is only read: the caller's array stays as it was.

    Source: Elfwing, Uchibe and Doya, "Sigmoid-weighted linear units", 2017.

    Args:
        x: any shape, floating dtype.
    """
    raise NotImplementedError("day 1.4, task 2: silu")


class Qwen2MLP:
    """Qwen2's feed-forward block, a gated linear unit with SiLU (SwiGLU).

    Qwen2MLP computes down(silu(gate(x)) * up(x)); each of the three is a linear layer without a bias.

    Weights are stored (out, in): w_gate and w_up are (hidden_dim, dim), w_down is (dim, hidden_dim).

    The result has x's shape and x's dtype.

    x is only read: the caller's array stays as it was.

    Formula: Shazeer, "GLU Variants Improve Transformer", 2020, equation 6.
    """

    def __init__(self, dim: int, hidden_dim: int, w_gate: mx.array, w_up: mx.array, w_down: mx.array) -> None:
        """dim: length of x's last axis (E); hidden_dim: width inside, Qwen2's intermediate_size."""
        raise NotImplementedError("day 1.4, task 3: Qwen2MLP.__init__")

    def __call__(self, x: mx.array) -> mx.array:
        """x: (N.., dim); same shape and dtype back."""
        raise NotImplementedError("day 1.4, task 3: Qwen2MLP.__call__")
