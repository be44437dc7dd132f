"""Day 2.2: weights that stay packed, and the model that multiplies by them.

What this is: MLX's affine format by hand, with array operations, and the model's layers on the C++ kernel
that reads it (kernels/quantized_matmul.cpp). What it is not: a good quantiser; checkpoints come quantised.

Letters: M rows of a, I inputs (a row of a weight matrix), O outputs (its rows), N batch, L tokens, V
vocabulary size, E hidden size. `N..` is zero or more leading axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from tinyllm.kernels import native

from ..week1.gqa import scaled_dot_product_attention_grouped
from .qwen2_model import Qwen2ModelWeek2, TokenEmbedding, dense_embedding, dense_linear

cpp = native.of(__name__)  # the C++ kernels of this tree; cpp.quantized_matmul is an operation like mx.matmul


def pack(q: mx.array, bits: int) -> mx.array:
    """Small whole numbers, 32 / bits in each word.

    q holds whole numbers from 0 to 2^bits - 1, N.. x I, of any integer dtype; 32 / bits of them go into
    each uint32 word, the first in the lowest bits: N.. x (I * bits / 32).

    Args:
        bits: 4 or 8; 32 / bits divides I.
    """
    raise NotImplementedError("day 2.2, task 1: pack")


def unpack(packed: mx.array, bits: int) -> mx.array:
    """The whole numbers that words hold.

    unpack undoes pack: words N.. x (I * bits / 32) in, uint32 numbers N.. x I out.

    Args:
        bits: 4 or 8.
    """
    raise NotImplementedError("day 2.2, task 1: unpack")


@dataclass(frozen=True, eq=False)
class QuantizedWeights:
    """A weight matrix O x I in MLX's affine format: weight, scales and biases as a checkpoint holds them.

    Attributes:
        scales, biases: (O, I / group_size), of one floating dtype: a number each for a group, group_size
            neighbours of a row.
        group_size: 32, 64 or 128.
        bits: 4 or 8.
        weight: (O, I * bits / 32), uint32.
    """

    scales: mx.array
    biases: mx.array
    group_size: int
    bits: int
    weight: mx.array

    @staticmethod
    def from_mlx_layer(layer: Any) -> QuantizedWeights:
        """What a quantised layer of an mlx-lm model holds.

        from_mlx_layer takes weight, scales, biases, group_size and bits from the layer as they are: the very
        arrays, no copies.

        A layer whose bits are not 4 or 8 raises ValueError: the kernels read no others.

        Args:
            layer: an mlx.nn QuantizedLinear or QuantizedEmbedding in affine mode.
        """
        raise NotImplementedError("day 2.2, task 2: QuantizedWeights.from_mlx_layer")


def quantize(w: mx.array, group_size: int, bits: int) -> QuantizedWeights:
    """A weight matrix, rounded to 2^bits values a group.

    A group is group_size neighbours of a row. Its bias is its smallest number, its scale is (largest -
    smallest) / (2^bits - 1), both in w's dtype, and q is (w - bias) / scale rounded to the nearest whole
    number from 0 to 2^bits - 1.

    In a group of equal numbers every q is 0, so that the bias alone is the weight.

    Args:
        w: (O, I), floating; group_size divides I.
        bits: 4 or 8.
    """
    raise NotImplementedError("day 2.2, task 2: quantize")


def dequantize(weights: QuantizedWeights) -> mx.array:
    """The matrix that quantised weights stand for.

    Every weight is scale * q + bias, with the scale and the bias of its group: N.. x I, in the dtype of the
    scales.

    Args:
        weights: its arrays may have any leading axes N.. in the place of O.
    """
    raise NotImplementedError("day 2.2, task 2: dequantize")


def quantized_matmul(
    scales: mx.array,
    biases: mx.array,
    group_size: int,
    bits: int,
    a: mx.array,
    b: mx.array,
    transpose_b: bool = False,
) -> mx.array:
    """A matrix product whose right factor is packed: b with its scales and biases, a matrix w of O x I.

    With transpose_b the result is a w^T, by the C++ kernel: a is N.. x I, the result N.. x O.

    Without it the result is a w, a being N.. x O and the result N.. x I; no layer needs that, and w may be
    unpacked for it.

    a has the dtype of scales and biases, and so has the result.

    Args:
        b: (O, I * bits / 32), uint32; scales and biases: (O, I / group_size).
    """
    raise NotImplementedError("day 2.2, task 7: quantized_matmul")


def quantized_linear(x: mx.array, w: QuantizedWeights, bias: mx.array | None = None) -> mx.array:
    """Day 1.1's linear, with packed weights.

    quantized_linear(x, w, bias) is x w^T, plus bias if there is one: N.. x I in, N.. x O out, in x's dtype,
    which is that of the scales.

    Args:
        bias: (O,), or None for no bias.
    """
    raise NotImplementedError("day 2.2, task 7: quantized_linear")


class PackedEmbedding:
    """The token embedding, read in both directions, with its weight packed.

    Called with token ids N.., it unpacks the rows of these tokens and no others: N.. x E out, in the dtype
    of the scales.

    as_linear(x) is quantized_linear(x, weights): N.. x E in, N.. x V out.
    """

    def __init__(self, weights: QuantizedWeights) -> None:
        """weights: V x E."""
        raise NotImplementedError("day 2.2, task 8: PackedEmbedding.__init__")

    def __call__(self, x: mx.array) -> mx.array:
        """x: integers from 0 to V - 1."""
        raise NotImplementedError("day 2.2, task 8: PackedEmbedding.__call__")

    def as_linear(self, x: mx.array) -> mx.array:
        """x: N.. x E, of the scales' dtype."""
        raise NotImplementedError("day 2.2, task 8: PackedEmbedding.as_linear")


def packed_linear(mlx_layer: Any) -> Callable[[mx.array], mx.array]:
    """A linear layer of the checkpoint as a function x -> x W^T + b that reads W packed.

    A layer that has `scales` is quantised, and its own `bias` is added where it has one; any other layer is
    dense_linear(layer).

    Args:
        mlx_layer: an mlx.nn Linear or QuantizedLinear.
    """
    raise NotImplementedError("day 2.2, task 8: packed_linear")


def packed_embedding(mlx_layer: Any) -> TokenEmbedding:
    """The checkpoint's embedding as a PackedEmbedding.

    An embedding that has `scales` is quantised; any other is dense_embedding(layer).

    Args:
        mlx_layer: an mlx.nn Embedding or QuantizedEmbedding.
    """
    raise NotImplementedError("day 2.2, task 8: packed_embedding")


def packed_model(
    mlx_model: Any, attention: Callable[..., mx.array] = scaled_dot_product_attention_grouped
) -> Qwen2ModelWeek2:
    """Week 2's model with its weights packed.

    packed_model(mlx_model) is a Qwen2ModelWeek2 that reads every quantised weight packed, at each call
    anew: neither the model nor a call of it ever holds an unpacked matrix.

    attention is handed on to Qwen2ModelWeek2.

    Args:
        mlx_model: the model that mlx_lm.load returns beside the tokenizer, model_type qwen2 or qwen3.
    """
    raise NotImplementedError("day 2.2, task 8: packed_model")
