"""Rotary position embedding, RoPE (day 1.2).

What this is: rotation by tables of cosines and sines that are computed once. What it is not: context
extension (no scaling of positions or frequencies) or partial rotation (every feature is rotated).

Letters: N batch, L tokens of this call, H heads, D head dimension.
"""

import mlx.core as mx


class RoPE:
    """Rotates pairs of a head's features by angles that grow with the token's position.

    Pair i of a token at position p turns by the angle p * base ** (-2 * i / dims), for i from 0 to
    dims / 2 - 1. Positions count from 0.
    A pair (a, b) becomes (a * cos - b * sin, a * sin + b * cos).
    With traditional=False pair i is features i and i + dims / 2; with traditional=True it is features
    2 * i and 2 * i + 1.

    Args:
        dims: D, the head dimension; even.
        seq_len: positions 0 to seq_len - 1 can be asked for.
        base: called theta in Qwen2's config (1000000 there).
        traditional: neighbouring features as pairs instead of split halves. Qwen2 uses the halves.

    Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding",
    equations 14, 15 and 34.
    """

    def __init__(self, dims: int, seq_len: int, base: float = 10000, traditional: bool = False) -> None:
        self.half = dims // 2
        self.traditional = traditional
        positions = mx.arange(seq_len, dtype=mx.float32)
        frequencies = mx.power(base, -mx.arange(self.half, dtype=mx.float32) / self.half)
        # subtle: float32 up to here. bfloat16 has no number between 256 and 258, so the angles of
        # neighbouring tokens would be the same.
        # subtle: the axis of length 1 is H's. Without it the table's L would line up with the heads.
        angles = positions[:, None, None] * frequencies  # (seq_len, 1, D/2)
        self.cos = mx.cos(angles)
        self.sin = mx.sin(angles)

    def __call__(self, x: mx.array, offset: slice | list[slice] | None = None) -> mx.array:
        """x with every head of every token rotated to its position.

        x is N x L x H x D with D == dims, and the result has x's shape and dtype.
        The angles are computed in float32, whatever x's dtype.
        offset says which positions the L tokens have: slice(s, s + L) means s to s + L - 1 in every row
        of the batch, and None means slice(0, L).
        A list holds one slice for each row of the batch: row n is at the positions of offset[n].
        x is only read: the caller's array stays as it was.

        Args:
            x: float32, float16 or bfloat16.
            offset: every slice has length L and lies inside slice(0, seq_len).
        """
        if offset is None:
            offset = slice(0, x.shape[1])
        if isinstance(offset, list):
            cos = mx.stack([self.cos[rows] for rows in offset])  # (N, L, 1, D/2)
            sin = mx.stack([self.sin[rows] for rows in offset])
        else:
            cos, sin = self.cos[offset], self.sin[offset]  # (L, 1, D/2), for every row of the batch

        x32 = x.astype(mx.float32)
        if self.traditional:
            a, b = x32[..., 0::2], x32[..., 1::2]
        else:
            a, b = x32[..., : self.half], x32[..., self.half :]
        turned_a = a * cos - b * sin  # (N, L, H, D/2)
        turned_b = a * sin + b * cos
        if self.traditional:
            y = mx.stack([turned_a, turned_b], axis=-1).flatten(-2)  # (.., D/2, 2) -> a0 b0 a1 b1 ..
        else:
            y = mx.concatenate([turned_a, turned_b], axis=-1)
        return y.astype(x.dtype)
