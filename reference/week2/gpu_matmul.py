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
    M, outputs = a.shape[0], b.shape[0]
    return _launch(
        "quantized_matmul_plain",
        (scales, biases, group_size, bits, a, b),
        grid=(gpu.round_up(outputs, 32), gpu.round_up(M, 4), 1),
        threadgroup=(32, 4, 1),
    )


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
    M, outputs = a.shape[0], b.shape[0]
    return _launch(
        "quantized_matvec",
        (scales, biases, group_size, bits, a, b),
        grid=(32, gpu.round_up(outputs, 4), M),
        threadgroup=(32, 4, 1),
    )


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
    M, outputs = a.shape[0], b.shape[0]
    return _launch(
        "quantized_matmul_tiled",
        (scales, biases, group_size, bits, a, b),
        grid=(gpu.round_up(outputs, 32) // 2, gpu.round_up(M, 32) // 2, 1),
        threadgroup=(16, 16, 1),
    )


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
    rows = a.reshape(-1, a.shape[-1])  # (M, I)
    launch = launch_matvec if rows.shape[0] <= MATVEC_ROWS else launch_tiled
    y = launch(scales.astype(a.dtype), biases.astype(a.dtype), group_size, bits, rows, b)
    return y.reshape(*a.shape[:-1], b.shape[0])


def quantized_linear_gpu(x: mx.array, w: QuantizedWeights, bias: mx.array | None = None) -> mx.array:
    """Day 2.2's quantized_linear on a GPU.

    quantized_linear_gpu(x, w, bias) is x w^T, plus bias if there is one: N.. x I in, N.. x O out, in x's
    dtype.

    Args:
        bias: (O,), or None for no bias.
    """
    out = quantized_matmul_gpu(w.scales, w.biases, w.group_size, w.bits, x, w.weight)
    return out if bias is None else out + bias.astype(out.dtype)


def _launch(
    kernel: str,
    call: tuple[mx.array, mx.array, int, int, mx.array, mx.array],
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
) -> mx.array:
    """Run one of the kernels: all three have the same parameters."""
    scales, biases, group_size, bits, a, b = call
    M, outputs = a.shape[0], b.shape[0]
    (y,) = metal.launch(
        kernel,
        inputs={"x": a, "w": b, "scales": scales, "biases": biases},
        outputs={"y": (M, outputs)},
        scalars={"M": M, "I": a.shape[1], "O": outputs, "group_size": group_size},
        template={"BITS": bits},
        grid=grid,
        threadgroup=threadgroup,
    )
    return y
