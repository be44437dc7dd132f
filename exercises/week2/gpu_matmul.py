"""Day 2.3: the packed matrix product on a GPU: which kernel, with how many threads, on which arrays.

The kernels are in kernels/quantized_matmul.metal. On Apple's GPUs and NVIDIA's MLX compiles and runs them;
where there is neither they run in a simulator, which is slow: it is for being right, not for generating text.

Letters: M rows of a, I inputs (the length of a row of a and of w), O outputs (the rows of w). `N..` is zero
or more leading axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from tinyllm.kernels import gpu

if TYPE_CHECKING:
    from .quantize import QuantizedWeights

metal = gpu.of(__name__, "quantized_matmul.metal")  # the kernels of this tree's file; compiled when launched

MATVEC_ROWS = 8  # up to so many rows of a, quantized_matvec is used


def launch_plain(
    scales: mx.array, biases: mx.array, group_size: int, bits: int, a: mx.array, b: mx.array
) -> mx.array:
    """a w^T by the kernel quantized_matmul_plain: one thread for each output.

    All three launches take a, M x I, and b, O x (I * bits / 32) uint32, with scales and biases, O x (I /
    group_size), in a's dtype, and return M x O in a's dtype.

    Args:
        group_size: 32, 64 or 128; it divides I.
        bits: 4 or 8.
    """
    raise NotImplementedError("day 2.3, task 1: launch_plain")


def launch_matvec(
    scales: mx.array, biases: mx.array, group_size: int, bits: int, a: mx.array, b: mx.array
) -> mx.array:
    """a w^T by the kernel quantized_matvec: one SIMD-group, 32 threads, for each output.

    All three launches take a, M x I, and b, O x (I * bits / 32) uint32, with scales and biases, O x (I /
    group_size), in a's dtype, and return M x O in a's dtype.

    Args:
        group_size: 32, 64 or 128; it divides I.
        bits: 4 or 8.
    """
    raise NotImplementedError("day 2.3, task 2: launch_matvec")


def launch_tiled(
    scales: mx.array, biases: mx.array, group_size: int, bits: int, a: mx.array, b: mx.array
) -> mx.array:
    """a w^T by the kernel quantized_matmul_tiled: a threadgroup of 16 x 16 threads for 32 x 32 outputs.

    All three launches take a, M x I, and b, O x (I * bits / 32) uint32, with scales and biases, O x (I /
    group_size), in a's dtype, and return M x O in a's dtype.

    Args:
        group_size: 32, 64 or 128; it divides I.
        bits: 4 or 8.
    """
    raise NotImplementedError("day 2.3, task 3: launch_tiled")


def quantized_matmul_gpu(
    scales: mx.array, biases: mx.array, group_size: int, bits: int, a: mx.array, b: mx.array
) -> mx.array:
    """a w^T on a GPU, for any number of rows.

    a is N.. x I; its leading axes are flattened to M rows, and the result is N.. x O in a's dtype.

    Up to 8 rows go to quantized_matvec, more to quantized_matmul_tiled.

    scales and biases are cast to a's dtype where theirs is another.

    Args:
        group_size: 32, 64 or 128; it divides I.
        bits: 4 or 8.
        b: (O, I * bits / 32), uint32; scales and biases: (O, I / group_size).
    """
    raise NotImplementedError("day 2.3, task 4: quantized_matmul_gpu")


def quantized_linear_gpu(x: mx.array, w: QuantizedWeights, bias: mx.array | None = None) -> mx.array:
    """Day 2.2's quantized_linear on a GPU.

    quantized_linear_gpu(x, w, bias) is x w^T, plus bias if there is one: N.. x I in, N.. x O out, in x's
    dtype.

    Args:
        bias: (O,), or None for no bias.
    """
    raise NotImplementedError("day 2.3, task 4: quantized_linear_gpu")
