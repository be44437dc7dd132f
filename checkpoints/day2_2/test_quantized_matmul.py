"""Day 2.2, tasks 3 to 6: every step of the kernel against float64 NumPy over unpacked weights.

Shapes are small and ragged: M is no multiple of a block of rows, outputs of no tile, width is one to
several groups. Scales and biases differ from group to group and from row to row, and a bias lies far from
-scale * 2^(bits - 1), where weights centred on 0 would hide a missing one.
"""

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import UNIT_ROUNDOFF, as_float64, check, dtype_name, require, sample, task

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
FORMATS = [(32, 4), (64, 4), (128, 4), (32, 8), (64, 8), (128, 8)]
# M, outputs, groups of a row.
SHAPES = [(1, 1, 1), (2, 3, 2), (5, 17, 3), (9, 37, 1), (1, 66, 5), (3, 65, 2), (8, 64, 4), (13, 131, 2)]

every_format = pytest.mark.parametrize(("group_size", "bits"), FORMATS, ids=lambda n: str(n))
half = pytest.mark.parametrize("dtype", [F16, BF16], ids=dtype_name)


class Packed:
    """A seeded matrix outputs x width in the affine format, and what it stands for in float64."""

    def __init__(self, outputs, width, group_size, bits, dtype, *, seed, step=None, mean=0.7, spread=1.0):
        """step: the scales' size, by default 2^-bits; mean, spread: of the biases."""
        rng = np.random.default_rng(seed)
        self.group_size, self.bits = group_size, bits
        self.q = rng.integers(0, 2**bits, (outputs, width))
        per_word = 32 // bits
        highest = self.q[:, per_word - 1 :: per_word]
        require(width < 64 or bool((highest >= 2 ** (bits - 1)).any()), "no word has its highest bit set")
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        words = self.q.astype(np.uint32).reshape(outputs, -1, per_word) << shifts
        self.words = mx.array(np.bitwise_or.reduce(words, axis=-1))
        groups = (outputs, width // group_size)
        self.scales, s64 = sample(groups, dtype, seed=seed + 1, scale=step or 2.0**-bits)
        self.biases, b64 = sample(groups, dtype, seed=seed + 2, scale=spread, mean=mean)
        s64, b64 = np.repeat(s64, group_size, axis=1), np.repeat(b64, group_size, axis=1)
        self.values = s64 * self.q + b64
        self.sizes = np.abs(s64) * self.q + np.abs(b64)

    def arguments(self):
        """What stands behind `a` in a call."""
        return self.words, self.scales, self.biases, self.group_size, self.bits


def check_product(got, a64, w, dtype, *, what, fact):
    """a w^T with products and sums in float32 and one rounding to dtype at the end.

    |a| (|s| q + |b|) bounds what is rounded on the way, in the plain formula and in its sum taken apart: in
    both, each number is a product of a with s q or with b, or a part of a sum of such. In float32 the
    tolerance is that size times u (8 + sqrt(width)): scale times q, plus bias, times a, the sum of width
    terms, and what taking it apart adds. In 16 bits it is the same in float32, and the last rounding.
    """
    want = a64 @ w.values.T
    size = np.abs(a64) @ w.sizes.T
    options = {"dtype": dtype, "what": what, "fact": fact}
    width = a64.shape[-1]
    if dtype == F32:
        check.close(got, want, terms=width, roundings=8, magnitude=size, **options)
        return
    computed = size * UNIT_ROUNDOFF[F32] / UNIT_ROUNDOFF[dtype] * (8 + np.sqrt(width))
    # The tolerance is 4 u |want| + the error of float32: a store is off by at most one u.
    check.close(got, want, terms=1, roundings=3, magnitude=np.abs(want) + computed / 4, **options)


def shown(name, M, outputs, width, group_size, bits, dtype):
    format = f"{bits} bits in groups of {group_size}, {dtype_name(dtype)}"
    return f"{name}, a ({M}, {width}), w {outputs} x {width}, {format}"


# ---- what every step is asked ----


def check_format(solution, name, group_size, bits, dtype=F32):
    """Several groups, both signs of scale; a with a mean, so that the biases count."""
    M, outputs, width = 3, 21, 3 * group_size
    w = Packed(outputs, width, group_size, bits, dtype, seed=10 * group_size + bits)
    a, a64 = sample((M, width), dtype, seed=1, mean=0.3)
    got = getattr(solution, name)(a, *w.arguments())
    what = shown(name, M, outputs, width, group_size, bits, dtype)
    check_product(got, a64, w, dtype, what=what, fact="kernel")


def check_shapes(solution, name):
    for number, (M, outputs, groups) in enumerate(SHAPES):
        group_size, bits = FORMATS[number % len(FORMATS)]
        width = groups * group_size
        w = Packed(outputs, width, group_size, bits, F32, seed=100 + number)
        a, a64 = sample((M, width), F32, seed=200 + number, mean=0.3)
        got = getattr(solution, name)(a, *w.arguments())
        what = shown(name, M, outputs, width, group_size, bits, F32)
        check_product(got, a64, w, F32, what=what, fact="kernel")


def check_views(solution, name):
    """Rows in (2, 3), and arrays that are not contiguous."""
    w = Packed(19, 128, 64, 4, F32, seed=300)
    wide, wide64 = sample((128, 3, 4), F32, seed=301, mean=0.3)
    a, a64 = wide[..., ::2].transpose(2, 1, 0), wide64[..., ::2].transpose(2, 1, 0)
    got = getattr(solution, name)(a, *w.arguments())
    what = f"{name}, a (2, 3, 128) not contiguous, w 19 x 128, 4 bits in groups of 64"
    check_product(got, a64, w, F32, what=what, fact="kernel")
    check.unchanged(a64, a, what=f"a after {name}", fact="kernel")


def check_rounds_once(solution, name, dtype):
    """What 16 bits would lose on the way.

    Small steps on large biases: rounded to 16 bits, w would lose its steps. The rows of a sum to 0 in each
    half of a group, so that the biases themselves leave the result. Then a row of ones and whole weights,
    whose sum is known: in 16 bits it stops growing.
    """
    w = Packed(24, 64, 32, 4, dtype, seed=400, step=2.0**-8, mean=8.0, spread=0.5)
    a, _ = sample((3, 64), dtype, seed=401)
    a = mx.concatenate([a[:, :16], -a[:, :16], a[:, 32:48], -a[:, 32:48]], axis=1)
    a64 = as_float64(a)
    require(bool((a64.reshape(3, 2, 32).sum(axis=-1) == 0).all()), "a's rows do not cancel in each group")
    got = getattr(solution, name)(a, *w.arguments())
    what = shown(name, 3, 24, 64, 32, 4, dtype) + ", small scales on large biases"
    check_product(got, a64, w, dtype, what=what, fact="rounds-once")

    width = 4096
    q = mx.full((5, width // 8), 0x11111111, dtype=mx.uint32)  # every q is 1
    one, none = mx.ones((5, width // 64), dtype=dtype), mx.zeros((5, width // 64), dtype=dtype)
    got = getattr(solution, name)(mx.ones((2, width), dtype=dtype), q, one, none, 64, 4)
    what = f"{name}, {width} products of 1, {dtype_name(dtype)}"
    check.exact(got, mx.full((2, 5), float(width), dtype=dtype), what=what, fact="rounds-once")


# ---- task 3: the formula ----


@task(3)
@every_format
def test_plain(solution, group_size, bits):
    """every format"""
    check_format(solution, "quantized_matmul_plain", group_size, bits)


@task(3)
@half
@pytest.mark.parametrize("bits", [4, 8])
def test_plain_half(solution, bits, dtype):
    """16-bit activations, scales and biases"""
    check_format(solution, "quantized_matmul_plain", 64, bits, dtype)


@task(3)
def test_plain_shapes(solution):
    """from one number to shapes that no tile divides"""
    check_shapes(solution, "quantized_matmul_plain")


@task(3)
def test_plain_views(solution):
    """leading axes, and views that are not contiguous"""
    check_views(solution, "quantized_matmul_plain")


@task(3)
@half
def test_plain_rounds_once(solution, dtype):
    """nothing is rounded to 16 bits before the end"""
    check_rounds_once(solution, "quantized_matmul_plain", dtype)


# ---- task 4: scale and bias once a group ----


@task(4)
@every_format
def test_grouped(solution, group_size, bits):
    """every format"""
    check_format(solution, "quantized_matmul_grouped", group_size, bits)


@task(4)
@half
@pytest.mark.parametrize("bits", [4, 8])
def test_grouped_half(solution, bits, dtype):
    """16-bit activations, scales and biases"""
    check_format(solution, "quantized_matmul_grouped", 64, bits, dtype)


@task(4)
def test_grouped_shapes(solution):
    """from one number to shapes that no tile divides"""
    check_shapes(solution, "quantized_matmul_grouped")


@task(4)
def test_grouped_views(solution):
    """leading axes, and views that are not contiguous"""
    check_views(solution, "quantized_matmul_grouped")


@task(4)
@half
def test_grouped_rounds_once(solution, dtype):
    """nothing is rounded to 16 bits before the end"""
    check_rounds_once(solution, "quantized_matmul_grouped", dtype)


# ---- task 5: vectors and threads ----

fast_steps = pytest.mark.parametrize("step", ["vector", "threads"])


@task(5)
@every_format
@fast_steps
def test_fast(solution, step, group_size, bits):
    """every format"""
    check_format(solution, f"quantized_matmul_{step}", group_size, bits)


@task(5)
@half
@pytest.mark.parametrize("bits", [4, 8])
@fast_steps
def test_fast_half(solution, step, bits, dtype):
    """16-bit activations, scales and biases"""
    check_format(solution, f"quantized_matmul_{step}", 64, bits, dtype)


@task(5)
@fast_steps
def test_fast_shapes(solution, step):
    """from one number to shapes that no block divides"""
    check_shapes(solution, f"quantized_matmul_{step}")


@task(5)
@fast_steps
def test_fast_views(solution, step):
    """leading axes, and views that are not contiguous"""
    check_views(solution, f"quantized_matmul_{step}")


@task(5)
@half
@fast_steps
def test_fast_rounds_once(solution, step, dtype):
    """nothing is rounded to 16 bits before the end"""
    check_rounds_once(solution, f"quantized_matmul_{step}", dtype)


def check_chunks(solution, name, M, dtype=F32):
    """Half a million weights: several chunks, the last of them smaller. The same bits each time."""
    outputs, width = 1031, 512
    w = Packed(outputs, width, 64, 8, dtype, seed=500)
    a, a64 = sample((M, width), dtype, seed=501, mean=0.3)
    kernel = getattr(solution, name)
    before = solution.cpp.chunks_so_far()
    first, second = kernel(a, *w.arguments()), kernel(a, *w.arguments())
    what = shown(name, M, outputs, width, 64, 8, dtype)
    check_product(first, a64, w, dtype, what=what, fact="chunks")
    check.exact(second, first, what=f"{what}: a second time, the same to the bit", fact="chunks")
    shared = solution.cpp.chunks_so_far() - before >= 2 * 2
    check.exact(shared, True, what=f"{what}: parallel_for gets two chunks or more", fact="chunks")


@task(5)
def test_threads_chunks(solution):
    """a large matrix is cut into chunks, and none is left out"""
    check_chunks(solution, "quantized_matmul_threads", 2)


# ---- task 6: tiles ----


@task(6)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 17, 26])
def test_multiply_tile(solution, rows):
    """c + a b in pieces of larger matrices"""
    for depth in (1, 5, 32, 128):
        a, a64 = sample((rows, depth), F32, seed=600 + rows)
        b, b64 = sample((depth, 32), F32, seed=700 + depth)
        c, c64 = sample((rows, 32), F32, seed=800 + depth, scale=3.0)
        check.close(
            solution.multiply_tile(a, b, c),
            c64 + a64 @ b64,
            dtype=F32,
            terms=depth,
            roundings=4,
            magnitude=np.abs(c64) + np.abs(a64) @ np.abs(b64),
            what=f"multiply_tile, a ({rows}, {depth}), b ({depth}, 32), c ({rows}, 32), gaps behind the rows",
            fact="tile",
        )


@task(6)
@every_format
def test_tiled(solution, group_size, bits):
    """every format"""
    check_format(solution, "quantized_matmul_tiled", group_size, bits)


@task(6)
@half
@pytest.mark.parametrize("bits", [4, 8])
def test_tiled_half(solution, bits, dtype):
    """16-bit activations, scales and biases"""
    check_format(solution, "quantized_matmul_tiled", 64, bits, dtype)


@task(6)
def test_tiled_shapes(solution):
    """from one number to shapes that no tile divides"""
    check_shapes(solution, "quantized_matmul_tiled")


@task(6)
def test_tiled_views(solution):
    """leading axes, and views that are not contiguous"""
    check_views(solution, "quantized_matmul_tiled")


@task(6)
@half
def test_tiled_rounds_once(solution, dtype):
    """nothing is rounded to 16 bits before the end"""
    check_rounds_once(solution, "quantized_matmul_tiled", dtype)


@task(6)
def test_tiled_chunks(solution):
    """a large matrix is cut into chunks, and none is left out"""
    check_chunks(solution, "quantized_matmul_tiled", 6)
