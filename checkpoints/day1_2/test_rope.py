"""Day 1.2: RoPE against the rotation written out in float64 NumPy.

An angle of p radians computed in float32 is known to about p times float32's roundoff, so the tolerance of
each element grows with the angle it was turned by, and with nothing else.
"""

import math

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import UNIT_ROUNDOFF, check, dtype_name, every_dtype, require, sample, task

F32 = mx.float32
THETA = 1000000  # Qwen2's base
CONTEXT = 32768  # Qwen2's longest sequence

# roundings of a rotation done in x's dtype: cos 2, the products 1, their difference 1, and 4 to spare for
# devices whose cos and sin are off by a few units. A result is a sum of 2 products.
ROUNDINGS, TERMS = 8, 2


# ---- oracle ----


def rope64(x, starts, dtype, base=10000, traditional=False):
    """(x rotated, the size of the numbers rounded) for rows that begin at the positions `starts`."""
    dims, half = x.shape[-1], x.shape[-1] // 2
    exponents = 2 * np.arange(half) / dims
    positions = np.asarray(starts)[:, None] + np.arange(x.shape[1])
    angles = (positions[..., None] * float(base) ** -exponents)[:, :, None]  # (N, L, 1, D/2)
    first = np.arange(half) * (2 if traditional else 1)
    second = first + (1 if traditional else half)
    a, b = x[..., first], x[..., second]
    want, size = np.empty_like(x), np.empty_like(x)
    want[..., first] = a * np.cos(angles) - b * np.sin(angles)
    want[..., second] = a * np.sin(angles) + b * np.cos(angles)
    # The angle in float32: position times frequency, where base ** y carries an error of y ln(base) too.
    off = UNIT_ROUNDOFF[F32] * angles * (8 + 2 * math.log(base) * exponents)
    unit = UNIT_ROUNDOFF[dtype] * (ROUNDINGS + math.sqrt(TERMS))
    size[..., first] = size[..., second] = np.hypot(a, b) * (1 + off / unit)
    return want, size


def compare(got, x64, starts, dtype, *, what, fact, base=10000, traditional=False):
    want, size = rope64(x64, starts, dtype, base, traditional)
    check.close(
        got, want, dtype=dtype, terms=TERMS, roundings=ROUNDINGS, magnitude=size, what=what, fact=fact
    )


def slices(starts, length):
    return [slice(s, s + length) for s in starts]


# ---- task 1: one offset for the whole batch ----


@task(1)
@every_dtype
def test_halves(solution, dtype):
    """split halves, positions from 0"""
    x, x64 = sample((2, 5, 3, 8), dtype, seed=1)
    got = solution.RoPE(8, 64)(x)
    what = f"RoPE(8, 64)(x), x (2, 5, 3, 8) {dtype_name(dtype)}"
    compare(got, x64, [0, 0], dtype, what=what, fact="rope-angle")


@task(1)
@every_dtype
def test_traditional(solution, dtype):
    """traditional: neighbouring pairs, positions from 0"""
    x, x64 = sample((2, 5, 3, 8), dtype, seed=2)
    got = solution.RoPE(8, 64, traditional=True)(x)
    what = f"RoPE(8, 64, traditional=True)(x), x (2, 5, 3, 8) {dtype_name(dtype)}"
    compare(got, x64, [0, 0], dtype, what=what, fact="rope-pairs", traditional=True)


@task(1)
def test_one_pair(solution):
    """a single pair (1, 0) turns by one radian a token"""
    x = mx.broadcast_to(mx.array([1.0, 0.0]), (1, 4, 1, 2))
    x64 = np.broadcast_to(np.array([1.0, 0.0]), (1, 4, 1, 2))
    got = solution.RoPE(2, 16)(x)
    what = "RoPE(2, 16)(x), x (1, 4, 1, 2), every token (1, 0)"
    compare(got, x64, [0], F32, what=what, fact="rope-rotation")


@task(1)
@pytest.mark.parametrize(
    ("dims", "base", "traditional"),
    [(64, THETA, False), (128, THETA, False), (12, 500.0, True)],
    ids=["64-1e6-halves", "128-1e6-halves", "12-500-traditional"],
)
def test_bases(solution, dims, base, traditional):
    """another base: Qwen2's head sizes with theta 1000000, and a small one"""
    x, x64 = sample((1, 7, 2, dims), seed=3)
    got = solution.RoPE(dims, 128, base, traditional)(x)
    what = f"RoPE({dims}, 128, {base}, {traditional})(x), x (1, 7, 2, {dims})"
    compare(got, x64, [0], F32, what=what, fact="rope-angle", base=base, traditional=traditional)


@task(1)
def test_position_zero(solution):
    """a token at position 0 stays as it is"""
    x, _ = sample((2, 1, 3, 8), seed=4)
    got = solution.RoPE(8, 64)(x)
    check.exact(got, x, what="RoPE(8, 64)(x), x (2, 1, 3, 8)", fact="rope-angle")


@task(1)
def test_full_table(solution):
    """as many tokens as seq_len"""
    x, x64 = sample((2, 7, 3, 8), seed=5)
    got = solution.RoPE(8, 7)(x)
    compare(got, x64, [0, 0], F32, what="RoPE(8, 7)(x), x (2, 7, 3, 8)", fact="rope-offset")


@task(1)
@every_dtype
def test_slice(solution, dtype):
    """a slice as offset"""
    x, x64 = sample((2, 5, 3, 8), dtype, seed=6)
    got = solution.RoPE(8, 64)(x, slice(17, 22))
    what = f"RoPE(8, 64)(x, slice(17, 22)), x (2, 5, 3, 8) {dtype_name(dtype)}"
    compare(got, x64, [17, 17], dtype, what=what, fact="rope-offset")


@task(1)
@every_dtype
def test_far_positions(solution, dtype):
    """the last positions of a long context"""
    x, x64 = sample((2, 5, 3, 16), dtype, seed=7)
    start = CONTEXT - 5
    got = solution.RoPE(16, CONTEXT, THETA)(x, slice(start, CONTEXT))
    what = f"RoPE(16, {CONTEXT}, {THETA})(x, slice({start}, {CONTEXT})), x (2, 5, 3, 16) {dtype_name(dtype)}"
    compare(got, x64, [start, start], dtype, what=what, fact="rope-float32", base=THETA)


@task(1)
def test_prompt_then_tokens(solution):
    """one RoPE for a prompt, then for token after token, then for a new prompt"""
    rope = solution.RoPE(8, 64)
    for seed, offset, length in (
        (8, slice(0, 5), 5),
        (9, slice(5, 6), 1),
        (10, slice(6, 7), 1),
        (11, None, 5),
    ):
        x, x64 = sample((2, length, 3, 8), seed=seed)
        start = offset.start if offset else 0
        got = rope(x, offset)
        what = f"RoPE(8, 64)(x, {offset}), x (2, {length}, 3, 8)"
        compare(got, x64, [start, start], F32, what=what, fact="rope-offset")


@task(1)
@pytest.mark.parametrize("traditional", [False, True], ids=["halves", "traditional"])
def test_as_many_heads_as_tokens(solution, traditional):
    """as many heads as tokens, so that a mixed-up axis does not show in the shape"""
    x, x64 = sample((2, 4, 4, 8), seed=12)
    got = solution.RoPE(8, 64, traditional=traditional)(x, slice(3, 7))
    what = f"RoPE(8, 64, traditional={traditional})(x, slice(3, 7)), x (2, 4, 4, 8)"
    compare(got, x64, [3, 3], F32, what=what, fact="rope-shape", traditional=traditional)


@task(1)
@pytest.mark.parametrize("traditional", [False, True], ids=["halves", "traditional"])
def test_view(solution, traditional):
    """a transposed view"""
    x, x64 = sample((2, 3, 5, 8), seed=13)
    x, x64 = x.transpose(0, 2, 1, 3), x64.transpose(0, 2, 1, 3)
    got = solution.RoPE(8, 64, traditional=traditional)(x)
    what = f"RoPE(8, 64, traditional={traditional})(x), x a view (2, 5, 3, 8)"
    compare(got, x64, [0, 0], F32, what=what, fact="rope-shape", traditional=traditional)


@task(1)
def test_only_distance_counts(solution):
    """a query and a key keep their score when both move by 400 positions"""
    (q, q64), (k, k64) = sample((1, 1, 3, 8), seed=14), sample((1, 1, 3, 8), seed=15)
    rope = solution.RoPE(8, 512)
    turned_q, turned_k = rope64(q64, [7], F32)[0], rope64(k64, [2], F32)[0]
    want = (turned_q * turned_k).sum(axis=-1)
    plain = (q64 * k64).sum(axis=-1)
    require(np.abs(want - plain).min() > 0.1, "the rotation does not change this score")
    # Both angles of about 400 are known to 400 roundoffs each, times the 8 that rope64 allows.
    size = np.linalg.norm(q64, axis=-1) * np.linalg.norm(k64, axis=-1) * (1 + 2 * 8 * 407 / ROUNDINGS)
    got = mx.sum(rope(q, slice(407, 408)) * rope(k, slice(402, 403)), axis=-1)
    what = "the dot product of RoPE(8, 512)(q, slice(407, 408)) and (k, slice(402, 403)), against 7 and 2"
    check.close(got, want, dtype=F32, terms=8, magnitude=size, what=what, fact="rope-rotation")


@task(1)
def test_only_reads(solution):
    """the caller's array stays as it was"""
    x, x64 = sample((2, 5, 3, 8), seed=16)
    got = solution.RoPE(8, 64)(x)
    compare(got, x64, [0, 0], F32, what="RoPE(8, 64)(x), x (2, 5, 3, 8)", fact="rope-shape")
    check.unchanged(x64, x, what="x after RoPE(8, 64)(x)", fact="rope-reads")


# ---- task 2: one offset a row ----


@task(2)
@every_dtype
def test_list(solution, dtype):
    """a slice for each row of the batch"""
    x, x64 = sample((3, 5, 2, 8), dtype, seed=20)
    starts = [17, 0, 40]
    got = solution.RoPE(8, 64)(x, slices(starts, 5))
    what = f"RoPE(8, 64)(x, {slices(starts, 5)}), x (3, 5, 2, 8) {dtype_name(dtype)}"
    compare(got, x64, starts, dtype, what=what, fact="rope-offset-list")


@task(2)
def test_list_one_token(solution):
    """one new token for each of four sequences"""
    x, x64 = sample((4, 1, 3, 8), seed=21)
    starts = [9, 3, 30, 12]
    got = solution.RoPE(8, 64)(x, slices(starts, 1))
    what = f"RoPE(8, 64)(x, {slices(starts, 1)}), x (4, 1, 3, 8)"
    compare(got, x64, starts, F32, what=what, fact="rope-offset-list")


@task(2)
def test_list_traditional(solution):
    """a slice for each row, neighbouring pairs"""
    x, x64 = sample((3, 5, 2, 8), seed=22)
    starts = [6, 40, 2]
    got = solution.RoPE(8, 64, traditional=True)(x, slices(starts, 5))
    what = f"RoPE(8, 64, traditional=True)(x, {slices(starts, 5)}), x (3, 5, 2, 8)"
    compare(got, x64, starts, F32, what=what, fact="rope-offset-list", traditional=True)


@task(2)
def test_list_of_one(solution):
    """a batch of one row, its slice in a list"""
    x, x64 = sample((1, 5, 2, 8), seed=23)
    got = solution.RoPE(8, 64)(x, [slice(11, 16)])
    what = "RoPE(8, 64)(x, [slice(11, 16)]), x (1, 5, 2, 8)"
    compare(got, x64, [11], F32, what=what, fact="rope-offset-list")


@task(2)
def test_list_all_axes_alike(solution):
    """as many rows as tokens as heads, so that a mixed-up axis does not show in the shape"""
    x, x64 = sample((4, 4, 4, 8), seed=24)
    starts = [20, 5, 50, 9]
    got = solution.RoPE(8, 64)(x, slices(starts, 4))
    what = f"RoPE(8, 64)(x, {slices(starts, 4)}), x (4, 4, 4, 8)"
    compare(got, x64, starts, F32, what=what, fact="rope-offset-list")


@task(2)
@every_dtype
def test_list_far_apart(solution, dtype):
    """rows at the two ends of a long context"""
    x, x64 = sample((3, 5, 2, 16), dtype, seed=25)
    starts = [CONTEXT - 5, 1000, 0]
    got = solution.RoPE(16, CONTEXT, THETA)(x, slices(starts, 5))
    what = f"RoPE(16, {CONTEXT}, {THETA})(x, {slices(starts, 5)}), x (3, 5, 2, 16) {dtype_name(dtype)}"
    compare(got, x64, starts, dtype, what=what, fact="rope-float32", base=THETA)


@task(2)
def test_list_equal_rows(solution):
    """the same slice for every row, in a list"""
    x, x64 = sample((3, 5, 2, 8), seed=26)
    got = solution.RoPE(8, 64)(x, slices([8, 8, 8], 5))
    what = "RoPE(8, 64)(x, [slice(8, 13)] * 3), x (3, 5, 2, 8)"
    compare(got, x64, [8, 8, 8], F32, what=what, fact="rope-offset-list")


@task(2)
def test_list_view(solution):
    """a slice for each row of a transposed view"""
    x, x64 = sample((3, 2, 5, 8), seed=27)
    x, x64 = x.transpose(0, 2, 1, 3), x64.transpose(0, 2, 1, 3)
    starts = [31, 4, 18]
    got = solution.RoPE(8, 64)(x, slices(starts, 5))
    what = f"RoPE(8, 64)(x, {slices(starts, 5)}), x a view (3, 5, 2, 8)"
    compare(got, x64, starts, F32, what=what, fact="rope-offset-list")


@task(2)
def test_list_batches_change(solution):
    """one RoPE for batches whose rows come and go"""
    rope = solution.RoPE(8, 64)
    for seed, starts in ((28, [9, 3, 30]), (29, [10, 31]), (30, [11, 32, 0, 5])):
        x, x64 = sample((len(starts), 1, 2, 8), seed=seed)
        got = rope(x, slices(starts, 1))
        what = f"the same RoPE(8, 64)(x, {slices(starts, 1)}), x {(len(starts), 1, 2, 8)}"
        compare(got, x64, starts, F32, what=what, fact="rope-offset-list")
