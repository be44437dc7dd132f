"""Day 2.5: flash attention on the GPU: what launches the three kernels of kernels/flash_attention.metal.

Where MLX computes on a GPU of Apple or NVIDIA the kernels run there. Elsewhere they run in a simulator, which
counts what they read, and is far too slow for more than a few hundred tokens.

Letters: B batch, H_q query heads, H key/value heads, L queries, S keys, D head dim. `N..` is zero or more
leading axes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx

from tinyllm.kernels import gpu

from .kv_cache import Mask
from .qwen2_model import Qwen2ModelWeek2

metal = gpu.of(__name__, "flash_attention.metal")  # the kernels of this tree's file; compiled when launched

# Constants of the kernels' file, by their names there.
SIMD_WIDTH, SPLITS, SIMD_GROUPS, KEYS = 32, 8, 4, 32
NO_MASK, CAUSAL, ARRAY = 0, 1, 2

FEW_QUERIES = 8  # up to so many, attention_decode; MLX's own kernels part at the same number
LARGEST_HEAD = 128
THREADGROUP_MEMORY = 32 * 1024  # bytes that a threadgroup may hold


class MaskArgument(NamedTuple):
    """A mask as the kernels take it."""

    kind: int  # NO_MASK, CAUSAL or ARRAY
    array: mx.array  # float32 or bool
    strides: tuple[int, int, int, int]  # the entry of (b, h, i, j) is at the sum of b, h, i and j times these


def mask_argument(mask: Mask) -> MaskArgument:
    """A mask for scores of shape (B, H_q, L, S), which are never made, as the kernels take it.

    An array has up to four axes that broadcast to B x H_q x L x S, and stays as large as it came: an axis
    along which it is broadcast, one of size 1 or one that is missing in front, has the stride 0, and the
    others have those of a contiguous array of the mask's own shape.

    A boolean mask stays boolean, any other becomes float32.

    Without an array, for None and "causal", the array is mx.zeros((1,)) and all strides are 0.
    """
    raise NotImplementedError("day 2.5, task 1: mask_argument")


def tile_rows(D: int, itemsize: int) -> int:
    """How many rows a tile of attention_tiled has: the largest of 32, 16 and 8 whose memory fits.

    A threadgroup holds the queries, rows x D, and a tile of KEYS rows of D numbers each with 4 bytes of
    padding, in numbers of `itemsize` bytes; together that may be 32 KB. ValueError when 8 rows are too many.
    """
    raise NotImplementedError("day 2.5, task 3: tile_rows")


def launch_plain(query: mx.array, key: mx.array, value: mx.array, scale: float, mask: Mask) -> mx.array:
    """attention_plain: a thread for each query of each head, 32 queries of a head in a threadgroup.

    All three launches compute softmax(scale * query key^T + mask) value: query is B x H_q x L x D, key and
    value are B x H x S x D, all of one dtype, and the result has query's shape and dtype.
    """
    raise NotImplementedError("day 2.5, task 1: launch_plain")


def launch_decode(query: mx.array, key: mx.array, value: mx.array, scale: float, mask: Mask) -> mx.array:
    """attention_decode: a threadgroup of SPLITS SIMD-groups for each query of each head.

    All three launches compute softmax(scale * query key^T + mask) value: query is B x H_q x L x D, key and
    value are B x H x S x D, all of one dtype, and the result has query's shape and dtype.
    """
    raise NotImplementedError("day 2.5, task 2: launch_decode")


def launch_tiled(query: mx.array, key: mx.array, value: mx.array, scale: float, mask: Mask) -> mx.array:
    """attention_tiled: a threadgroup of SIMD_GROUPS SIMD-groups for each tile of rows of each key head.

    All three launches compute softmax(scale * query key^T + mask) value: query is B x H_q x L x D, key and
    value are B x H x S x D, all of one dtype, and the result has query's shape and dtype.
    """
    raise NotImplementedError("day 2.5, task 3: launch_tiled")


def launch(
    kernel: str,
    call: tuple[mx.array, mx.array, mx.array, float, Mask],
    grid: tuple[int, int, int],
    threads: int,
    **template: int,
) -> mx.array:
    """Launch one of the kernels, which all have the same parameters. call: query, key, value, scale, mask.

    Args:
        grid: threads in all, in x, y and z.
        threads: threads of a threadgroup, all of them in x.
        template: what the kernel's template has besides T, M and D.
    """
    query, key, value, scale, mask = call
    _, H_q, L, D = query.shape
    H, S = key.shape[1:3]
    kind, array, strides = mask_argument(mask)
    numbers = {"H_q": H_q, "H": H, "L": L, "S": S, "scale": scale, "kind": kind}
    (out,) = metal.launch(
        kernel,
        inputs={"query": query, "key": key, "value": value, "mask": array},
        outputs={"out": query.shape},
        scalars=numbers | dict(zip(("mask_b", "mask_h", "mask_i", "mask_j"), strides, strict=True)),
        template={"D": D, **template},
        grid=grid,
        threadgroup=(threads, 1, 1),
    )
    return out


def flash_attention_gpu(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    scale: float | None = None,
    mask: Mask = None,
) -> mx.array:
    """Attention on the GPU: softmax(scale * query key^T + mask) value, without ever holding the scores.

    query is N.. x H_q x L x D, key and value are N.. x H x S x D, all of one dtype; the result has query's
    shape and dtype. Query head h reads key head h // (H_q // H).

    scale is a Python float; None means 1 / sqrt(D).

    mask is None, "causal", a boolean array (True where a query may look) or an additive one; an array
    broadcasts to N.. x H_q x L x S.

    L of at most 8 is one launch of attention_decode, more is one of attention_tiled; a D that is no multiple
    of 32, or is larger than 128, is one of attention_plain, which takes any.

    Nothing of size L x S is made, neither the scores nor a mask that is larger than the one given.

    The arrays are only read.
    """
    raise NotImplementedError("day 2.5, task 4: flash_attention_gpu")


def flash_gpu_model(mlx_model: Any) -> Qwen2ModelWeek2:
    """Day 2.1's model on the GPU's attention.

    flash_gpu_model(mlx_model) is a Qwen2ModelWeek2 whose layers all call flash_attention_gpu.

    Its weights are dequantised once, as day 2.1 has them.

    Args:
        mlx_model: the model that mlx_lm.load returns beside the tokenizer, model_type qwen2 or qwen3.
    """
    raise NotImplementedError("day 2.5, task 4: flash_gpu_model")
