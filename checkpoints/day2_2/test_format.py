"""Day 2.2, tasks 1 and 2: MLX's affine format by hand, against bit operations and float64 in NumPy."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from tinyllm.grader.testing import as_float64, check, dtype_name, every_dtype, require, sample, task

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
FORMATS = [(32, 4), (64, 4), (128, 4), (32, 8), (64, 8), (128, 8)]


# ---- oracles ----


def packed64(q, bits):
    """Words from whole numbers, the first of a word lowest."""
    per_word = 32 // bits
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    words = q.astype(np.uint32).reshape(*q.shape[:-1], -1, per_word) << shifts
    return np.bitwise_or.reduce(words, axis=-1)


def unpacked64(words, bits):
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    q = (np.array(words)[..., None] >> shifts) & np.uint32(2**bits - 1)
    return q.reshape(*words.shape[:-1], -1)


def numbers(shape, bits, *, seed):
    """Whole numbers of the full range. Read from the other end, or in another order, they differ."""
    q = np.random.default_rng(seed).integers(0, 2**bits, shape)
    q.flat[0], q.flat[-1] = 0, 2**bits - 1
    per_word = 32 // bits
    words = q.reshape(-1, per_word)
    require(bool((words[:, -1] >= 2 ** (bits - 1)).any()), "no word has its highest bit set")
    require(not np.array_equal(words, words[:, ::-1]), "the words read the same from both ends")
    return q


# ---- task 1: words ----


@task(1)
@pytest.mark.parametrize("bits", [4, 8])
def test_pack_by_hand(solution, bits):
    """one word of numbers that can be followed by hand"""
    q = [0, 5, 8, 15, 1, 2, 3, 4] if bits == 4 else [0, 5, 128, 255]
    word = 0x4321F850 if bits == 4 else 0xFF800500
    got = solution.pack(mx.array([q]), bits)
    what = f"pack([{q}], bits={bits}): one word, {word:#010x}"
    check.exact(got, mx.array([[word]], dtype=mx.uint32), what=what, fact="pack")


@task(1)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [mx.uint32, mx.int32, mx.uint8, mx.int64], ids=dtype_name)
def test_pack(solution, bits, dtype):
    """matrices of numbers, of several integer dtypes"""
    for seed, shape in ((1, (5, 64)), (2, (3, 96))):
        q = numbers(shape, bits, seed=seed + bits)
        got = solution.pack(mx.array(q).astype(dtype), bits)
        what = f"pack(q, bits={bits}), q {shape} {dtype_name(dtype)}"
        check.exact(got, mx.array(packed64(q, bits)), what=what, fact="pack")


@task(1)
def test_pack_leading_axes(solution):
    """any leading axes, also none"""
    for shape in ((2, 3, 4, 32), (32,), (1, 8)):
        q = numbers((4, 3, 2, 32), 4, seed=3)
        q = q.reshape(-1)[: int(np.prod(shape))].reshape(shape)
        got = solution.pack(mx.array(q.astype(np.int32)), 4)
        what = f"pack(q, bits=4), q {shape}"
        check.exact(got, mx.array(packed64(q, 4)), what=what, fact="pack")


@task(1)
@pytest.mark.parametrize("bits", [4, 8])
def test_unpack(solution, bits):
    """the numbers back, in their order"""
    for seed, shape in ((4, (5, 64)), (5, (2, 3, 32)), (6, (96,))):
        q = numbers(shape, bits, seed=seed + bits)
        words = mx.array(packed64(q, bits))
        got = solution.unpack(words, bits)
        what = f"unpack(packed, bits={bits}), packed {tuple(words.shape)} uint32"
        check.exact(got, mx.array(q.astype(np.uint32)), what=what, fact="unpack")


@task(1)
@pytest.mark.parametrize("bits", [4, 8])
def test_unpack_mlx(solution, bits):
    """words that mx.quantize packed"""
    w, _ = sample((6, 128), F32, seed=7)
    words, _, _ = mx.quantize(w, group_size=64, bits=bits)
    got = solution.unpack(words, bits)
    what = f"unpack(packed, bits={bits}), packed by mx.quantize, {tuple(words.shape)}"
    check.exact(got, mx.array(unpacked64(words, bits)), what=what, fact="unpack")


@task(1)
@pytest.mark.parametrize("bits", [4, 8])
def test_pack_undoes_unpack(solution, bits):
    """words of random bits, unpacked and packed again"""
    bits_of = np.random.default_rng(8).integers(0, 2**32, (4, 9), dtype=np.uint32)
    words = mx.array(bits_of)
    got = solution.pack(solution.unpack(words, bits), bits)
    what = f"pack(unpack(packed, {bits}), {bits}), packed (4, 9)"
    check.exact(got, words, what=what, fact="pack")


# ---- task 2: scales and biases ----


def weights_near_steps(outputs, width, group_size, bits, dtype, *, seed):
    """A matrix whose weights lie near whole steps of their group, so that no rounding is in doubt.

    Every group has a step and an offset of its own, and its smallest and largest weight are steps 0 and
    2^bits - 1.
    """
    rng = np.random.default_rng(seed)
    groups = (outputs, width // group_size)
    q = rng.integers(0, 2**bits, (*groups, group_size))
    off = rng.uniform(-0.3, 0.3, q.shape)
    first, last = rng.permutation(group_size)[:2]
    q[..., first], off[..., first] = 0, 0
    q[..., last], off[..., last] = 2**bits - 1, 0
    q = np.clip(q + off, 0, 2**bits - 1)
    step = rng.uniform(0.01, 0.04, groups) * 16 / 2**bits
    low = rng.uniform(-20, 5, groups) * step
    w = (step[..., None] * q + low[..., None]).reshape(outputs, width)
    return mx.array(w.astype(np.float32)).astype(dtype)


@task(2)
@every_dtype
@pytest.mark.parametrize(("group_size", "bits"), [(32, 4), (64, 4), (128, 8)])
def test_quantize(solution, group_size, bits, dtype):
    """scales, biases and numbers of a matrix"""
    if dtype == BF16 and bits == 8:
        bits = 4  # bfloat16 has no 255 steps between two numbers of one size
    outputs, width = 5, 3 * group_size
    w = weights_near_steps(outputs, width, group_size, bits, dtype, seed=20 + bits)
    groups = as_float64(w).reshape(outputs, -1, group_size)
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    got = solution.quantize(w, group_size, bits)
    what = f"quantize(w, group_size={group_size}, bits={bits}).{{}}, w {(outputs, width)} {dtype_name(dtype)}"
    check.exact([got.group_size, got.bits], [group_size, bits], what=what.format("group_size and bits"))
    want_biases = mx.array(low.astype(np.float32)).astype(dtype)
    check.exact(got.biases, want_biases, what=what.format("biases"), fact="quantize")
    check.close(
        got.scales,
        (high - low) / (2**bits - 1),
        dtype=dtype,
        terms=1,
        roundings=4,  # the difference, the quotient, a cast; and one more
        magnitude=(np.abs(low) + np.abs(high)) / (2**bits - 1),
        what=what.format("scales"),
        fact="quantize",
    )
    # With the scales as they were stored: theirs is a rounding that q may know of or not.
    steps = (groups - low[..., None]) / as_float64(got.scales)[..., None]
    q = np.rint(steps)
    require(bool((np.abs(np.abs(steps - q) - 0.5) > 0.02).all()), "a weight lies between two steps")
    q = np.clip(q, 0, 2**bits - 1)
    want = mx.array(packed64(q.reshape(outputs, width), bits))
    check.exact(got.weight, want, what=what.format("weight"), fact="quantize")


@task(2)
@pytest.mark.parametrize("bits", [4, 8])
def test_quantize_error(solution, bits):
    """no weight is off by more than half a step, read by mx.dequantize"""
    w, w64 = sample((4, 256), F32, seed=30, scale=0.1, mean=0.3)
    got = solution.quantize(w, 64, bits)
    groups = w64.reshape(4, -1, 64)
    step = (groups.max(axis=-1) - groups.min(axis=-1)) / (2**bits - 1)
    read = mx.dequantize(got.weight, got.scales, got.biases, group_size=64, bits=bits)
    error = np.abs(as_float64(read) - w64).reshape(groups.shape).max(axis=-1)
    # Half a step, and roundings of numbers that are some thousand steps of float32 smaller.
    what = f"mx.dequantize of quantize(w, 64, {bits}): weights off by at most half a step, w (4, 256)"
    check.exact(bool((error <= 0.501 * step).all()), True, what=what, fact="quantize")


@task(2)
@every_dtype
def test_quantize_equal_numbers(solution, dtype):
    """a group of equal numbers: every q is 0, the bias is the number"""
    w, w64 = sample((3, 128), F32, seed=31)
    w64[1, 32:64], w64[2, 96:] = 0.75, 0.0
    w = mx.array(w64.astype(np.float32)).astype(dtype)
    got = solution.quantize(w, 32, 4)
    what = f"quantize(w, 32, 4), w {dtype_name(dtype)} with a group of 0.75 and one of 0: "
    q = unpacked64(got.weight, 4)
    check.exact(
        bool(q[1, 32:64].any() or q[2, 96:].any()), False, what=what + "a q that is not 0", fact="flat"
    )
    flat = mx.array([0.75, 0.0]).astype(dtype)
    check.exact(mx.stack([got.biases[1, 1], got.biases[2, 3]]), flat, what=what + "their biases", fact="flat")
    finite = bool(np.isfinite(as_float64(got.scales)).all())
    check.exact(finite, True, what=what + "all scales finite", fact="flat")


def packed_sample(shape, group_size, bits, dtype, *, seed):
    """(words, scales, biases, their matrix in float64, the size of the numbers added to it)."""
    q = numbers(shape, bits, seed=seed)
    groups = (*shape[:-1], shape[-1] // group_size)
    # Of both signs, as mx.quantize makes them; the bias is far from -scale * 2^(bits - 1).
    scales, s64 = sample(groups, dtype, seed=seed + 1, scale=2.0**-bits)
    biases, b64 = sample(groups, dtype, seed=seed + 2, mean=0.7)
    s64, b64 = (np.repeat(x, group_size, axis=-1) for x in (s64, b64))
    return mx.array(packed64(q, bits)), scales, biases, s64 * q + b64, np.abs(s64) * q + np.abs(b64)


@task(2)
@every_dtype
@pytest.mark.parametrize(("group_size", "bits"), FORMATS)
def test_dequantize(solution, group_size, bits, dtype):
    """the matrix of packed weights"""
    words, scales, biases, want, size = packed_sample((5, 384), group_size, bits, dtype, seed=40 + bits)
    weights = solution.QuantizedWeights(scales, biases, group_size, bits, words)
    check.close(
        solution.dequantize(weights),
        want,
        dtype=dtype,
        terms=1,
        roundings=4,  # product, sum, and a cast after each
        magnitude=size,
        what=f"dequantize(weights), weights 5 x 384, {bits} bits in groups of {group_size}, "
        f"{dtype_name(dtype)}",
        fact="dequantize",
    )


@task(2)
def test_dequantize_leading_axes(solution):
    """rows in any arrangement: (2, 3) of them, and a single one"""
    for shape in ((2, 3, 128), (128,)):
        words, scales, biases, want, size = packed_sample(shape, 32, 4, F32, seed=50)
        weights = solution.QuantizedWeights(scales, biases, 32, 4, words)
        what = f"dequantize(weights), weight {tuple(words.shape)}, scales {tuple(scales.shape)}"
        got = solution.dequantize(weights)
        check.close(got, want, dtype=F32, terms=1, roundings=4, magnitude=size, what=what, fact="dequantize")


@task(2)
@every_dtype
@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_from_mlx_layer(solution, kind, dtype):
    """what a layer of the checkpoint holds, as it is"""
    for group_size, bits in ((32, 8), (64, 4)):
        layer = nn.Linear(128, 24) if kind == "linear" else nn.Embedding(24, 128)
        layer.weight = sample((24, 128), dtype, seed=60 + bits)[0]
        layer = layer.to_quantized(group_size=group_size, bits=bits)
        got = solution.QuantizedWeights.from_mlx_layer(layer)
        what = f"QuantizedWeights.from_mlx_layer(a quantised {kind}, {bits} bits, groups of {group_size})."
        for name in ("weight", "scales", "biases"):
            check.exact(getattr(got, name), layer[name], what=what + name, fact="from-layer")
        same = got.weight is layer.weight and got.scales is layer.scales and got.biases is layer.biases
        check.exact(
            same, True, what=what + "weight, scales, biases: the layer's own arrays", fact="from-layer"
        )
        options = [got.group_size, got.bits]
        check.exact(options, [group_size, bits], what=what + "group_size and bits", fact="from-layer")


@task(2)
@pytest.mark.parametrize("bits", [2, 3, 6])
def test_from_mlx_layer_of_other_bits(solution, bits):
    """a layer of 2, 3 or 6 bits is refused"""
    layer = nn.Linear(128, 24).to_quantized(group_size=64, bits=bits)
    what = f"QuantizedWeights.from_mlx_layer(a layer of {bits} bits)"
    check.raises(ValueError, lambda: solution.QuantizedWeights.from_mlx_layer(layer), what=what)
    layer = nn.Linear(128, 24).to_quantized(group_size=64, bits=8)
    got = solution.QuantizedWeights.from_mlx_layer(layer)
    check.exact(
        got.bits, 8, what="QuantizedWeights.from_mlx_layer(a layer of 8 bits).bits", fact="other-bits"
    )
