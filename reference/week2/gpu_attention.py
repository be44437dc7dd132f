"""Day 2.5: flash attention on the GPU: the three kernels of kernels/flash_attention.metal, and their launches.

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

metal = gpu.of(__name__, "flash_attention.metal")

# Constants of the kernels' file, by their names there.
SIMD_WIDTH, SPLITS, SIMD_GROUPS, KEYS = 32, 8, 4, 32
NO_MASK, CAUSAL, ARRAY = 0, 1, 2

FEW_QUERIES = 8  # up to so many, attention_decode; MLX's own kernels part at the same number
THREADGROUP_MEMORY = 32 * 1024  # bytes that a threadgroup may hold


class MaskArgument(NamedTuple):
    """A mask as the kernels take it."""

    kind: int  # NO_MASK, CAUSAL or ARRAY
    array: mx.array  # float32 or bool, contiguous; a single 0 where there is no array
    strides: tuple[int, int, int, int]  # the entry of (b, h, i, j) is at the sum of b, h, i and j times these


def mask_argument(mask: Mask, shape: tuple[int, int, int, int]) -> MaskArgument:
    """The mask of a launch whose scores would have `shape`, (B, H_q, L, S). They are never made.

    An array stays as large as it came: an axis along which it is broadcast, one of size 1 or one that is
    missing in front, has the stride 0, and the others have those of a contiguous array of the mask's own
    shape. A boolean mask stays boolean, any other becomes float32.

    Without an array, for None and "causal", the array is mx.zeros((1,)) and all strides are 0.
    """
    if mask is None or isinstance(mask, str):
        return MaskArgument(NO_MASK if mask is None else CAUSAL, mx.zeros((1,)), (0, 0, 0, 0))
    own = (1,) * (len(shape) - mask.ndim) + tuple(mask.shape)
    strides, step = [], 1
    for size in reversed(own):
        strides.append(step if size > 1 else 0)
        step *= size
    array = mask if mask.dtype == mx.bool_ else mask.astype(mx.float32)
    return MaskArgument(ARRAY, array, tuple(reversed(strides)))


def tile_rows(D: int, itemsize: int) -> int:
    """How many rows a tile of attention_tiled has: the largest of 32, 16 and 8 whose memory fits.

    A threadgroup holds the queries, ROWS x D, and a tile of KEYS rows, each D numbers and 4 bytes of
    padding, in numbers of `itemsize` bytes, and all of it takes at most 32 KB.

    Raises ValueError when not even 8 rows fit.
    """
    tile = KEYS * (D * itemsize + 4)
    for rows in (32, 16, 8):
        if rows * D * itemsize + tile <= THREADGROUP_MEMORY:
            return rows
    raise ValueError(f"heads of {D} numbers of {itemsize} bytes do not fit into threadgroup memory")


# ---- launching: query (B, H_q, L, D), key and value (B, H, S, D), of one dtype; (B, H_q, L, D) back ----


def attention_plain(
    query: mx.array, key: mx.array, value: mx.array, scale: float, mask: Mask = None
) -> mx.array:
    """A thread for each query: 32 queries of a head in a threadgroup."""
    B, H_q, L, _ = query.shape
    grid = (gpu.round_up(L, SIMD_WIDTH), H_q, B)
    return launch("attention_plain", query, key, value, scale, mask, grid, SIMD_WIDTH)


def attention_decode(
    query: mx.array, key: mx.array, value: mx.array, scale: float, mask: Mask = None
) -> mx.array:
    """A threadgroup of SPLITS SIMD-groups for each query of each head."""
    B, H_q, L, _ = query.shape
    threads = SPLITS * SIMD_WIDTH
    return launch("attention_decode", query, key, value, scale, mask, (threads * L, H_q, B), threads)


def attention_tiled(
    query: mx.array, key: mx.array, value: mx.array, scale: float, mask: Mask = None
) -> mx.array:
    """A threadgroup of SIMD_GROUPS SIMD-groups for each tile of rows of each key head."""
    B, H_q, L, D = query.shape
    H = key.shape[1]
    rows = tile_rows(D, query.itemsize)
    tiles = -(-(H_q // H * L) // rows)
    threads = SIMD_GROUPS * SIMD_WIDTH
    return launch(
        "attention_tiled", query, key, value, scale, mask, (threads * tiles, H, B), threads, ROWS=rows
    )


def launch(
    kernel: str,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    scale: float,
    mask: Mask,
    grid: tuple[int, int, int],
    threads: int,
    **template: int,
) -> mx.array:
    """Launch one of the three, with threadgroups of `threads` threads in x."""
    B, H_q, L, D = query.shape
    H, S = key.shape[1:3]
    kind, array, strides = mask_argument(mask, (B, H_q, L, S))
    scalars = {"H_q": H_q, "H": H, "L": L, "S": S, "scale": scale, "kind": kind}
    (out,) = metal.launch(
        kernel,
        inputs={"query": query, "key": key, "value": value, "mask": array},
        outputs={"out": query.shape},
        scalars=scalars | dict(zip(("mask_b", "mask_h", "mask_i", "mask_j"), strides, strict=True)),
        template={"D": D} | template,
        grid=grid,
        threadgroup=(threads, 1, 1),
    )
    return out


# ---- what models take ----


def flash_attention_gpu(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    scale: float | None = None,
    mask: Mask = None,
) -> mx.array:
    """softmax(scale * query key^T + mask) value on the GPU, without ever holding the scores.

    query is N.. x H_q x L x D, key and value are N.. x H x S x D, of one dtype. The result has query's shape
    and query's dtype; sums are kept in float32.

    Query head h reads the keys and values of head h // (H_q / H).

    scale is a Python float; None means 1 / sqrt(D).

    mask is None, "causal", or an array that broadcasts to N.. x H_q x L x S: additive numbers, or booleans
    with True where a query may look. Causal is aligned to the end of S: query i sees the keys up to
    i + (S - L), and L <= S.

    A query that sees no key gets zeros.

    L of at most 8 is launched as attention_decode, more as attention_tiled: one launch a call, and nothing
    of size L x S is made.

    The arrays are only read.
    """
    *leading, H_q, L, D = query.shape
    H, S = key.shape[-3:-1]
    if scale is None:
        scale = 1 / math.sqrt(D)
    B = math.prod(leading)
    if isinstance(mask, mx.array) and mask.ndim > 3:
        # Its leading axes become one as well: whole if it has them all, else 1.
        parts = (1,) * (len(leading) + 3 - mask.ndim) + tuple(mask.shape[:-3])
        if math.prod(parts) > 1:
            mask = mx.broadcast_to(mask, (*leading, *mask.shape[-3:]))
        mask = mask.reshape(-1, *mask.shape[-3:])
    attention = attention_decode if L <= FEW_QUERIES else attention_tiled
    out = attention(
        query.reshape(B, H_q, L, D),
        key.reshape(B, H, S, D),
        value.reshape(B, H, S, D),
        scale,
        mask,
    )
    return out.reshape(query.shape)


def flash_gpu_model(mlx_model: Any) -> Qwen2ModelWeek2:
    """Week 2's model of a checkpoint that mlx-lm loaded, with flash_attention_gpu as its attention.

    The weights are dequantised, as in day 2.1's model: what keeps them packed runs on the CPU.
    """
    return Qwen2ModelWeek2(mlx_model, attention=flash_attention_gpu)
