"""Day 2.3: three kernels for the packed product on a GPU, and which of them is used when.

The oracle unpacks the words in NumPy and multiplies in float64. Checks run in the simulator, which counts;
those called "on this machine" run on its GPU where MLX has one.
"""

from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import as_float64, check, every_dtype, require, sample, simulated, task

PLAIN, MATVEC, TILED = "quantized_matmul_plain", "quantized_matvec", "quantized_matmul_tiled"
LINE = 128  # bytes


class Packed:
    """A random weight matrix O x I as MLX packs it, and what it stands for in float64."""

    def __init__(
        self, outputs: int, inputs: int, group_size: int, bits: int, dtype: mx.Dtype, *, seed: int
    ) -> None:
        w = mx.array(np.random.default_rng(seed).normal(0.3, 1.0, (outputs, inputs)).astype(np.float32))
        packed, scales, biases = mx.quantize(w.astype(dtype), group_size=group_size, bits=bits)
        self._set(packed, scales.astype(dtype), biases.astype(dtype), group_size, bits)

    def _set(self, packed: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int) -> None:
        self.arguments = (scales, biases, group_size, bits)  # the first four of every function of the day
        self.packed = packed
        words = np.array(packed)[..., None]
        q = ((words >> np.arange(0, 32, bits, dtype=np.uint32)) & (2**bits - 1)).reshape(words.shape[0], -1)
        s, b = (np.repeat(as_float64(v), group_size, axis=1) for v in (scales, biases))
        self.w = s * q + b
        self.size = np.abs(s) * q + np.abs(b)  # of the numbers that make up a weight

    @classmethod
    def of(cls, packed: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int) -> Packed:
        """From arrays as they are."""
        made = cls.__new__(cls)
        made._set(packed, scales, biases, group_size, bits)
        return made

    @property
    def layer(self) -> SimpleNamespace:
        """With the names of day 2.2's QuantizedWeights."""
        scales, biases, group_size, bits = self.arguments
        return SimpleNamespace(
            scales=scales, biases=biases, group_size=group_size, bits=bits, weight=self.packed
        )


def product(launch, kernel: str, shape: tuple[int, int, int], dtype: mx.Dtype, group_size: int, bits: int):
    """Launch on random numbers, compare with the oracle; what the launch cost. shape: M, I, O."""
    M, inputs, outputs = shape
    w = Packed(outputs, inputs, group_size, bits, dtype, seed=M + inputs + outputs)
    a, a64 = sample((M, inputs), dtype, seed=7)
    with simulated() as launches:
        got = launch(*w.arguments, a, w.packed)
        what = f"a ({M}, {inputs}), w ({outputs}, {inputs}), {bits} bits in groups of {group_size}"
        close(got, a64, w, dtype, what)
    check.exact([r.kernel for r in launches], [kernel], what=f"the kernels that were launched, {what}")
    return launches[0]


def close(got, a64: np.ndarray, w: Packed, dtype: mx.Dtype, what: str, fact: str = "gpu-weight") -> None:
    """Compare a w^T. A weight is a product and a sum (2 roundings), then times x, the sum, and storing it."""
    check.close(
        got,
        a64 @ w.w.T,
        dtype=dtype,
        terms=a64.shape[-1],
        roundings=8,
        magnitude=np.abs(a64) @ w.size.T,
        what=what,
        fact=fact,
    )


def by_hand(launch, kernel: str, bits: int) -> None:
    """One row, two outputs, two groups, whole numbers: every order of the sums is exact."""
    inputs = 64
    q = np.stack([np.arange(inputs) % 2**bits, (np.arange(inputs) * 5 + 1) % 2**bits]).astype(np.uint32)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    words = (q.reshape(2, -1, 32 // bits) << shifts).sum(axis=-1, dtype=np.uint32)
    scales = mx.array([[2.0, 0.5], [1.0, -4.0]])
    biases = mx.array([[-8.0, 3.0], [0.5, 16.0]])
    w = Packed.of(mx.array(words), scales, biases, 32, bits)
    a64 = (np.arange(inputs) % 7 - 2.0)[None]
    want = mx.array((a64 @ w.w.T).astype(np.float32))
    require(np.abs(a64 @ w.w.T).max() < 2**22, "whole numbers, and halves, are exact in float32")
    with simulated() as launches:
        got = launch(*w.arguments, mx.array(a64.astype(np.float32)), w.packed)
        check.exact(
            got, want, what=f"whole numbers, {bits} bits: the first weight is the lowest", fact="gpu-weight"
        )
    check.exact([r.kernel for r in launches], [kernel], what="the kernels that were launched")


def sums_in_float(launch, M: int) -> None:
    """Weights of 1; 256 inputs of 32, then 4096 of 1/8, which a sum in bfloat16 no longer notices: at 256,
    where a lane of the matvec kernel is after its first word, the next number is 258."""
    inputs = 4352
    words = mx.full((2, inputs // 8), 0x88888888, dtype=mx.uint32)
    scales, biases = mx.full((2, inputs // 32), 0.125, mx.bfloat16), mx.zeros((2, inputs // 32), mx.bfloat16)
    a = mx.where(mx.arange(inputs) < 256, 32.0, 0.125).astype(mx.bfloat16) * mx.ones((M, 1), mx.bfloat16)
    want = mx.full((M, 2), 256 * 32 + 4096 / 8, mx.bfloat16)
    require(want[0, 0].item() == 8704, "the sum is a number in bfloat16")
    with simulated():
        got = launch(scales, biases, 32, 4, a, words)
        check.exact(got, want, what="8192 and then 4096 eighths, bfloat16", fact="gpu-float")


def at_most(count: int, bar: float, what: str, fact: str) -> None:
    """A count that has a bar."""
    check.exact(count <= bar, True, what=f"{what}: {count}, and at most {bar:.0f} are allowed", fact=fact)


def plain_bytes(M: int, inputs: int, outputs: int, itemsize: int, bits: int, group_size: int) -> float:
    """What one thread for each output reads at least: its rows of x and w, and each group's two numbers."""
    return M * outputs * (inputs * itemsize + inputs * bits / 8 + 2 * inputs / group_size * itemsize)


# ---- task 1: one thread, one output ----


@task(1)
@pytest.mark.parametrize("bits", [4, 8])
def test_plain_by_hand(solution, bits):
    """the plain kernel on whole numbers"""
    by_hand(solution.launch_plain, PLAIN, bits)


@task(1)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_plain_groups(solution, group_size):
    """the plain kernel with groups of 32, 64 and 128"""
    product(solution.launch_plain, PLAIN, (3, 384, 37), mx.float32, group_size, 4)


@task(1)
@pytest.mark.parametrize(("M", "outputs"), [(5, 33), (4, 32), (2, 31), (1, 1)], ids=lambda n: str(n))
def test_plain_sizes(solution, M, outputs):
    """the plain kernel on sizes that fit no threadgroup"""
    product(solution.launch_plain, PLAIN, (M, 64, outputs), mx.float32, 64, 4)


@task(1)
@every_dtype
def test_plain_dtypes(solution, dtype):
    """the plain kernel in every dtype, 8 bits"""
    product(solution.launch_plain, PLAIN, (3, 192, 5), dtype, 64, 8)


@task(1)
def test_plain_sums_in_float(solution):
    """the plain kernel adds up in float"""
    sums_in_float(solution.launch_plain, 2)


@task(1)
def test_plain_reads_a_word_once(solution):
    """the plain kernel reads each packed word once a thread"""
    M, inputs, outputs = 3, 256, 37
    cost = product(solution.launch_plain, PLAIN, (M, inputs, outputs), mx.float32, 32, 4)
    at_most(cost.read["w"], M * outputs * inputs / 2, "bytes of w read by all threads", fact="plain-reads")


@task(1)
def test_plain_on_this_machine(solution):
    """the plain kernel on this machine's GPU, or simulated; a is a transposed view"""
    w = Packed(19, 96, 32, 4, mx.float32, seed=3)
    a, a64 = sample((96, 6), mx.float32, seed=4)
    got = solution.launch_plain(*w.arguments, a.T, w.packed)
    close(got, a64.T, w, mx.float32, "a a transposed view (6, 96), w (19, 96), 4 bits", fact="launch-shapes")


# ---- task 2: a SIMD-group, one output ----


@task(2)
@pytest.mark.parametrize("bits", [4, 8])
def test_matvec_by_hand(solution, bits):
    """the matvec kernel on whole numbers"""
    by_hand(solution.launch_matvec, MATVEC, bits)


@task(2)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_matvec_groups(solution, group_size):
    """the matvec kernel with groups of 32, 64 and 128"""
    product(solution.launch_matvec, MATVEC, (3, 640, 37), mx.float32, group_size, 4)


@task(2)
@pytest.mark.parametrize(("M", "outputs"), [(3, 5), (1, 4), (2, 3), (1, 1)], ids=lambda n: str(n))
def test_matvec_sizes(solution, M, outputs):
    """the matvec kernel on rows shorter than a SIMD-group's reach, and odd numbers of them"""
    product(solution.launch_matvec, MATVEC, (M, 96, outputs), mx.float32, 32, 4)


@task(2)
@every_dtype
def test_matvec_dtypes(solution, dtype):
    """the matvec kernel in every dtype, 8 bits"""
    product(solution.launch_matvec, MATVEC, (2, 192, 5), dtype, 64, 8)


@task(2)
def test_matvec_sums_in_float(solution):
    """the matvec kernel adds up in float"""
    sums_in_float(solution.launch_matvec, 1)


@task(2)
def test_matvec_shares_a_row_among_lanes(solution):
    """the matvec kernel shares a row among 32 lanes"""
    inputs, outputs = 2048, 12
    cost = product(solution.launch_matvec, MATVEC, (1, inputs, outputs), mx.float32, 64, 4)
    at_most(cost.read["w"], outputs * inputs / 2, "bytes of w read", fact="matvec-lanes")
    at_most(
        cost.most_read,
        plain_bytes(1, inputs, 1, 4, 4, 64) / 8,
        "bytes that one thread reads",
        "matvec-lanes",
    )


@task(2)
def test_matvec_reads_neighbouring_words(solution):
    """the matvec kernel's lanes read neighbouring words"""
    inputs, outputs = 2048, 12
    cost = product(solution.launch_matvec, MATVEC, (1, inputs, outputs), mx.float32, 64, 4)
    bar = 1.25 * outputs * inputs / 2 / LINE
    at_most(cost.lines["w"], bar, "lines of 128 bytes fetched to read w", fact="matvec-coalesced")


@task(2)
def test_matvec_on_this_machine(solution):
    """the matvec kernel on this machine's GPU, or simulated"""
    w = Packed(18, 512, 64, 4, mx.float32, seed=3)
    a, a64 = sample((2, 512), mx.float32, seed=4)
    got = solution.launch_matvec(*w.arguments, a, w.packed)
    close(got, a64, w, mx.float32, "a (2, 512), w (18, 512), 4 bits", fact="launch-shapes")


# ---- task 3: tiles ----


@task(3)
@pytest.mark.parametrize("bits", [4, 8])
def test_tiled_by_hand(solution, bits):
    """the tiled kernel on whole numbers"""
    by_hand(solution.launch_tiled, TILED, bits)


@task(3)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_tiled_groups(solution, group_size):
    """the tiled kernel with groups of 32, 64 and 128"""
    product(solution.launch_tiled, TILED, (34, 256, 45), mx.float32, group_size, 4)


@task(3)
@pytest.mark.parametrize(
    ("M", "outputs"), [(31, 33), (33, 31), (32, 64), (17, 16), (1, 1)], ids=lambda n: str(n)
)
def test_tiled_sizes(solution, M, outputs):
    """the tiled kernel on sizes around its tile"""
    product(solution.launch_tiled, TILED, (M, 64, outputs), mx.float32, 64, 4)


@task(3)
@every_dtype
def test_tiled_dtypes(solution, dtype):
    """the tiled kernel in every dtype, 8 bits"""
    product(solution.launch_tiled, TILED, (35, 192, 20), dtype, 64, 8)


@task(3)
def test_tiled_sums_in_float(solution):
    """the tiled kernel adds up in float"""
    sums_in_float(solution.launch_tiled, 2)


@task(3)
@pytest.mark.parametrize("bits", [4, 8])
def test_tiled_reads_an_eighth(solution, bits):
    """the tiled kernel reads at most 1/8 of what one thread an output would read"""
    M, inputs, outputs = 64, 128, 64
    cost = product(solution.launch_tiled, TILED, (M, inputs, outputs), mx.float32, 64, bits)
    bar = plain_bytes(M, inputs, outputs, 4, bits, 64) / 8
    at_most(cost.bytes_read, bar, "bytes of device memory read", fact="tiled-reads")


@task(3)
def test_tiled_on_this_machine(solution):
    """the tiled kernel on this machine's GPU, or simulated"""
    w = Packed(50, 128, 64, 4, mx.float32, seed=3)
    a, a64 = sample((40, 128), mx.float32, seed=4)
    got = solution.launch_tiled(*w.arguments, a, w.packed)
    close(got, a64, w, mx.float32, "a (40, 128), w (50, 128), 4 bits", fact="launch-shapes")


# ---- task 4: which kernel when ----


@task(4)
@pytest.mark.parametrize(
    ("leading", "kernel"),
    [((8,), MATVEC), ((9,), TILED), ((2, 4), MATVEC), ((3, 5), TILED), ((1, 1), MATVEC), ((), MATVEC)],
    ids=str,
)
def test_matmul_gpu_chooses_by_rows(solution, leading, kernel):
    """up to 8 rows one kernel, more the other, whatever the axes"""
    w = Packed(21, 64, 32, 4, mx.float32, seed=5)
    a, a64 = sample((*leading, 64), mx.float32, seed=6)
    what = f"quantized_matmul_gpu, a {a.shape}"
    with simulated() as launches:
        close(
            solution.quantized_matmul_gpu(*w.arguments, a, w.packed),
            a64,
            w,
            mx.float32,
            what,
            fact="gpu-axes",
        )
    check.exact(
        [r.kernel for r in launches], [kernel], what=f"the kernels launched by {what}", fact="gpu-rows"
    )


@task(4)
@every_dtype
def test_matmul_gpu_casts_scales(solution, dtype):
    """scales and biases of another dtype"""
    w = Packed(7, 128, 64, 4, mx.bfloat16, seed=5)
    scales, biases, group_size, bits = w.arguments
    same = Packed.of(w.packed, scales.astype(dtype), biases.astype(dtype), group_size, bits)
    a, a64 = sample((2, 128), dtype, seed=6)
    with simulated():
        got = solution.quantized_matmul_gpu(*w.arguments, a, w.packed)
        close(got, a64, same, dtype, "quantized_matmul_gpu, scales in bfloat16", fact="gpu-cast")


@task(4)
@every_dtype
def test_linear_gpu(solution, dtype):
    """a layer with a bias, and one without"""
    w = Packed(14, 96, 32, 4, dtype, seed=8)
    a, a64 = sample((2, 3, 96), dtype, seed=9)
    bias, bias64 = sample((14,), dtype, seed=10, scale=30.0)
    with simulated():
        close(solution.quantized_linear_gpu(a, w.layer), a64, w, dtype, "no bias", fact="gpu-linear")
        check.close(
            solution.quantized_linear_gpu(a, w.layer, bias),
            a64 @ w.w.T + bias64,
            dtype=dtype,
            terms=97,
            roundings=9,
            magnitude=np.abs(a64) @ w.size.T + np.abs(bias64),
            what="quantized_linear_gpu(x, w, bias), x (2, 3, 96)",
            fact="gpu-linear",
        )


@task(4)
def test_linear_gpu_bias_of_another_dtype(solution):
    """the result keeps x's dtype"""
    w = Packed(14, 96, 32, 8, mx.float16, seed=8)
    a, a64 = sample((10, 96), mx.float16, seed=9)
    bias, bias64 = sample((14,), mx.float32, seed=10)
    with simulated():
        check.close(
            solution.quantized_linear_gpu(a, w.layer, bias),
            a64 @ w.w.T + bias64,
            dtype=mx.float16,
            terms=97,
            roundings=9,
            magnitude=np.abs(a64) @ w.size.T + np.abs(bias64),
            what="quantized_linear_gpu(x, w, bias), x float16, bias float32",
            fact="gpu-linear",
        )
