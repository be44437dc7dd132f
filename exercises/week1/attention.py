"""Attention, from the softmax up to many heads (day 1.1).

What this is: the plain formulas, computed in float32 and cast back at the end. What it is not: fast.
The whole L x L score matrix is in memory at once, and there is no causal mask of its own, no
grouped key/value heads and no cache; those come on later days.

Letters: N batch, H heads, L sequence length, D head dimension, E hidden size, I and O the input and
output features of a linear layer, N.. zero or more leading axes.
"""

import math

import mlx.core as mx


def softmax(x: mx.array, axis: int) -> mx.array:
    """exp(x) / sum(exp(x)) along one axis, without overflow.

    softmax(x, axis) has x's shape and dtype; along `axis` its entries are between 0 and 1 and sum to 1.
    softmax is stable: for any finite x, however large, the result is finite; an entry of -inf gets
    weight 0. (A row of nothing but -inf has no right answer and is not graded.)
    x is only read: the caller's array stays as it was.

    Args:
        x: any shape; float32, float16 or bfloat16.
        axis: the axis to normalise, negative counts from the end.

    Source: softmax does not change when a constant is subtracted from x along `axis`; taking the
    maximum as that constant makes every exponent 0 or less.
    """
    raise NotImplementedError("day 1.1, task 1: softmax")


def linear(x: mx.array, w: mx.array, bias: mx.array | None = None) -> mx.array:
    """A linear layer: every vector along x's last axis goes through the same weights.

    w has shape (O, I), one row of weights for each output feature; linear(x, w, bias) is
    x @ w.T + bias. bias has shape (O,), and None means no bias. The result has x's dtype.

    Args:
        x: N.. x I; float32, float16 or bfloat16.
        w: (O, I), of x's dtype.
        bias: (O,), of x's dtype, or None.

    Returns:
        N.. x O.

    Source: the layout in which Qwen2's checkpoints, like PyTorch's nn.Linear, store their weights.
    """
    raise NotImplementedError("day 1.1, task 2: linear")


def scaled_dot_product_attention_simple(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    scale: float | None = None,
    mask: mx.array | None = None,
) -> mx.array:
    """softmax(query @ key^T * scale + mask) @ value.

    query, key and value are N.. x L x D, where N.. is zero or more axes; so is the result.
    The scores are multiplied by `scale`, a Python float; None means 1 / sqrt(D).
    The mask is additive: it is added to the scaled scores before the softmax and broadcasts to
    N.. x L x L; 0 lets query i see key j, -inf hides it, any other number is added as it stands.
    The result has the query's dtype, whatever dtype the mask has.
    query, key and value are only read: the caller's arrays stay as they were.

    Args:
        query, key, value: float32, float16 or bfloat16, all three the same.
        scale: a Python float, or None.
        mask: a float array, or None for no mask. A row that hides every key is not graded this week.

    Source: Vaswani et al. 2017, "Attention Is All You Need", equation 1.
    """
    raise NotImplementedError("day 1.1, task 3: scaled_dot_product_attention_simple")


class SimpleMultiHeadAttention:
    """Attention in H heads side by side, each in its own D of the E features.

    wq, wk, wv and wo have shape (E, E), where E is hidden_size, and are applied with linear, without bias.
    Head h works on features h * D to (h + 1) * D - 1 of the projected arrays, where D = E / H; its
    scores are scaled by 1 / sqrt(D). The heads' results are put side by side in the same order and go
    through wo.

    Args:
        hidden_size: E, a multiple of num_heads.
        num_heads: H.
        wq, wk, wv: (E, E), the projections of query, key and value.
        wo: (E, E), the projection of the heads' joined results.

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        wq: mx.array,
        wk: mx.array,
        wv: mx.array,
        wo: mx.array,
    ) -> None:
        raise NotImplementedError("day 1.1, task 4: SimpleMultiHeadAttention.__init__")

    def __call__(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        mask: mx.array | None = None,
    ) -> mx.array:
        """Project, attend in each head, join, project.

        query, key and value are N x L x E, and so is the result. The mask broadcasts to N x H x L x L:
        (L, L), (N, 1, L, L) and (N, H, L, L) are all masks, and each head applies it to its own scores.
        The result has the query's dtype, whatever dtype the mask has.

        Args:
            query, key, value: float32, float16 or bfloat16, the same as the weights. For
                self-attention the caller passes one array three times.
            mask: additive, as in scaled_dot_product_attention_simple, or None.
        """
        raise NotImplementedError("day 1.1, task 4: SimpleMultiHeadAttention.__call__")
