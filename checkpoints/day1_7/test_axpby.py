"""Day 1.7, task 6: the axpby kernel in C++, against the same formula in float64 NumPy."""

import mlx.core as mx
import numpy as np

from tinyllm.grader.testing import as_float64, check, every_dtype, require, sample, task

# Most sizes are no multiple of anything that a compiler vectorises by.
SIZES = (1, 2, 7, 64, 1000, 100_003)


def check_axpby(solution, x, x64, y, y64, alpha, beta, *, dtype, what):
    """6 roundings of the sizes that are added: two factors, two products, the sum, the store."""
    size = np.abs(alpha * x64) + np.abs(beta * y64)
    got = solution.axpby(x, y, alpha, beta)
    want = alpha * x64 + beta * y64
    check.close(got, want, dtype=dtype, terms=2, roundings=6, magnitude=size, what=what, fact="axpby-formula")


@task(6)
@every_dtype
def test_axpby(solution, dtype):
    """alpha * x + beta * y of two matrices"""
    x, x64 = sample((3, 5), dtype, seed=1)
    y, y64 = sample((3, 5), dtype, seed=2)
    check_axpby(
        solution, x, x64, y, y64, 2.5, -0.75, dtype=dtype, what="axpby(x, y, 2.5, -0.75), x and y (3, 5)"
    )


@task(6)
@every_dtype
def test_axpby_of_views(solution, dtype):
    """views that are not contiguous"""
    x, x64 = sample((4, 3, 7), dtype, seed=3)
    y, y64 = sample((7, 3, 8), dtype, seed=4)
    views, values = (x.T, y[..., ::2]), (x64.T, y64[..., ::2])
    what = "axpby(x.T, y[..., ::2], -1.5, 3.0), both (7, 3, 4)"
    check_axpby(solution, views[0], values[0], views[1], values[1], -1.5, 3.0, dtype=dtype, what=what)


@task(6)
@every_dtype
def test_axpby_rounds_once(solution, dtype):
    """nothing is rounded before the sum"""
    # (1 + 2^-12) x - x is x / 4096: exact in float32, and gone when alpha or a product is rounded to 16 bits.
    x = mx.arange(1, 100).astype(dtype)
    x64 = as_float64(x)
    alpha = 1 + 2.0**-12
    require(float(np.float32(alpha)) == alpha, "alpha must be a float32")
    want = x64 * 2.0**-12
    got = solution.axpby(x, x, alpha, -1.0)
    what = "axpby(x, x, 1 + 2**-12, -1.0), x (99,)"
    check.close(got, want, dtype=dtype, terms=1, roundings=1, what=what, fact="axpby-float")


@task(6)
def test_axpby_of_every_size(solution):
    """from one element to a hundred thousand"""
    for size in SIZES:
        x, x64 = sample((size,), mx.float32, seed=5)
        y, y64 = sample((size,), mx.float32, seed=6)
        what = f"axpby(x, y, 0.5, 4.0), x and y ({size},)"
        check_axpby(solution, x, x64, y, y64, 0.5, 4.0, dtype=mx.float32, what=what)


@task(6)
def test_axpby_only_reads(solution):
    """x and y stay as they were"""
    x, x64 = sample((6, 7), mx.float32, seed=7)
    y, y64 = sample((6, 7), mx.float32, seed=8)
    what = "axpby(x, y, 3.0, 2.0), x and y (6, 7)"
    check_axpby(solution, x, x64, y, y64, 3.0, 2.0, dtype=mx.float32, what=what)
    check.unchanged(x64, x, what="x after axpby(x, y, 3.0, 2.0)", fact="axpby-reads")
    check.unchanged(y64, y, what="y after axpby(x, y, 3.0, 2.0)", fact="axpby-reads")
