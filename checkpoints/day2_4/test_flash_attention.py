"""Day 2.4, tasks 3 to 5: the kernels in C++ and the operation on them, against float64 NumPy.

Both kernels take the same checks. Their tiles are 32 queries and 64 keys, and lengths lie on both sides.
"""

import resource
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import qwen2

from tinyllm.grader.testing import (
    as_float64,
    check,
    dtype_name,
    every_dtype,
    require,
    sample,
    shipped_model,
    task,
)

F32, F16 = mx.float32, mx.float16
INF = np.inf
QUERY_TILE, KEY_TILE = 32, 64  # kernels/cpp/bodies.h


# ---- oracles ----


def causal64(L, S):
    """0 where query i, at position S - L + i, may look; -inf elsewhere."""
    return np.where(np.arange(S) <= np.arange(L)[:, None] + (S - L), 0.0, -INF)


def attention64(q, k, v, scale=None, mask=0.0):
    """Every KV head repeated for its group, then plain attention: (result, size of what is rounded).

    An error d in a score is a relative error of about d in a weight, and up to twice that after the division.
    A query that sees no key gives zeros.
    """
    group = q.shape[-3] // k.shape[-3]
    k, v = np.repeat(k, group, axis=-3), np.repeat(v, group, axis=-3)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * (q @ k.swapaxes(-2, -1)) + mask
    maximum = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(maximum), maximum, 0.0))
    normaliser = weights.sum(axis=-1, keepdims=True)
    weights /= np.where(normaliser == 0, 1.0, normaliser)
    bias = np.where(np.isfinite(mask), np.abs(mask), 0.0)
    size = abs(scale) * np.sqrt((q**2) @ (k**2).swapaxes(-2, -1)) + bias
    size = np.where(weights > 0, size, 0).max(axis=-1, keepdims=True)
    return weights @ v, (weights @ np.abs(v)) * (1 + 2 * size)


def tiles64(seen, group):
    """(B, H_q, query tiles): key tiles that a query tile sees, it or another of its head's group."""
    B, H_q, L, S = seen.shape
    starts = range(0, L, QUERY_TILE), range(0, S, KEY_TILE)
    by_tile = [
        [seen[..., i : i + QUERY_TILE, j : j + KEY_TILE].any(axis=(-2, -1)) for j in starts[1]]
        for i in starts[0]
    ]
    by_tile = np.array(by_tile).transpose(2, 3, 0, 1)  # (B, H_q, query tiles, key tiles)
    grouped = by_tile.reshape(B, H_q // group, group, *by_tile.shape[2:]).any(axis=2)
    return np.repeat(grouped, group, axis=1).sum(axis=-1)


# ---- inputs ----


def exactly(values, dtype):
    """(array of dtype, float64 of its values)."""
    array = mx.array(np.asarray(values, dtype=np.float32)).astype(dtype)
    return array, as_float64(array)


def qkv(query_shape, kv_shape, dtype=F32, *, seed, scale=1.0):
    """Samples of query, key and value: ([arrays], [their float64 values])."""
    shapes = (query_shape, kv_shape, kv_shape)
    pairs = [sample(s, dtype, seed=seed + i, scale=scale) for i, s in enumerate(shapes)]
    return [a for a, _ in pairs], [a64 for _, a64 in pairs]


def some_sight(shape, *, seed):
    """True where a query may look: at random, with dark tiles, rows that begin dark, and a row all dark."""
    rng = np.random.default_rng(seed)
    L, S = shape[-2:]
    require(L > QUERY_TILE and S > 2 * KEY_TILE, "there are too few tiles")
    seen = rng.random(shape) < 0.5
    seen[..., :QUERY_TILE, KEY_TILE : 2 * KEY_TILE] = False  # a tile
    seen[..., QUERY_TILE:, :KEY_TILE] = False  # the first tile of all further queries
    seen[..., 1, :KEY_TILE] = False  # and of one query among others
    seen[..., -1] = True
    seen[..., 3, :] = False
    return seen


def some_mask(kind, shape, *, seed):
    """(mask array, the same as an additive mask in float64)."""
    seen = some_sight(shape, seed=seed)
    if kind == "boolean":
        return mx.array(seen), np.where(seen, 0.0, -INF)
    biases = np.random.default_rng(seed + 1).normal(0.0, 1.5, shape)
    return exactly(np.where(seen, biases, -INF), F32)


def shown(option):
    return (
        f"{tuple(option.shape)} {dtype_name(option.dtype)}" if isinstance(option, mx.array) else repr(option)
    )


# ---- comparisons ----

# Roundings of float32: the score 1, scale 1, mask 1, the difference from the maximum 1, exp 2, the
# division 1, the stores of weight and result 2. Every further tile shrinks what was: exp 2, product 1, sum 1.
ATTENTION, ANOTHER_TILE = 9, 4
# Computed in float and rounded once, a 16-bit result has one rounding; the others are far below.
STORED = 4


def close(got, values, dtype, *, mask64=0.0, scale=None, what, fact):
    want, size = attention64(*values, scale=scale, mask=mask64)
    S, D = values[1].shape[-2:]
    in_float = dtype == F32
    check.close(
        got,
        want,
        dtype=dtype,
        terms=max(S, D) if in_float else 1,
        roundings=ATTENTION + ANOTHER_TILE * (-(-S // KEY_TILE) - 1) if in_float else STORED,
        magnitude=size if in_float else np.maximum(size, np.abs(want)),
        what=what,
        fact=fact,
    )


def check_kernel(solution, name, arrays, values, dtype=F32, *, scale=None, mask64=0.0, fact, **mask):
    """A kernel's result and its count of tiles. `mask`: causal=True or mask=array; mask64 says the same."""
    B, H_q, L, D = values[0].shape
    H, S = values[1].shape[1:3]
    factor = D**-0.5 if scale is None else scale
    kernel = getattr(solution, name)
    shapes = ", ".join(str(tuple(a.shape)) for a in arrays)
    told = "".join(f", {n}={shown(o)}" for n, o in mask.items())
    what = f"{name}(query, key, value, {factor:.3g}{told}), shapes {shapes}, {dtype_name(dtype)}"
    out, tiles = kernel(*arrays, factor, **mask)
    close(out, values, dtype, mask64=mask64, scale=scale, what=f"the result of {what}", fact=fact)
    seen = np.broadcast_to(np.isfinite(mask64), (B, H_q, L, S))
    want = tiles64(seen, H_q // H if name == "flash_attention_fast" else 1)
    check.exact(
        tiles,
        mx.array(want.astype(np.int32)),
        what=f"the key tiles that {what} computed",
        fact="kernel-tiles",
    )
    return out


# ---- tasks 3 and 4: the kernels ----
# What both kernels must do, by what the learner is told of it.


def groups(solution, name, dtype=F32):
    for seed in (1, 4):
        arrays, values = qkv((2, 6, 37, 64), (2, 2, 150, 64), dtype, seed=seed)
        check_kernel(solution, name, arrays, values, dtype, fact="kernel-attention")


def head_dims(solution, name):
    for D in (32, 96, 128):
        arrays, values = qkv((1, 4, 5, D), (1, 2, 70, D), seed=7)
        check_kernel(solution, name, arrays, values, scale=0.15, fact="kernel-attention")


def one_head_each(solution, name):
    for H_q, H in ((3, 3), (3, 1)):
        arrays, values = qkv((2, H_q, 33, 32), (2, H, 65, 32), seed=10)
        check_kernel(solution, name, arrays, values, fact="kernel-attention")


def lengths(solution, name):
    for L in (1, 31, 32, 33):
        for S in (1, 63, 64, 65, 129):
            arrays, values = qkv((1, 4, L, 32), (1, 2, S, 32), seed=13)
            check_kernel(solution, name, arrays, values, fact="kernel-attention")


def causal(solution, name, L, S):
    arrays, values = qkv((2, 4, L, 32), (2, 2, S, 32), seed=16)
    mask64 = causal64(L, S)
    check_kernel(solution, name, arrays, values, causal=True, mask64=mask64, fact="kernel-mask")


def masks(solution, name, kind, shape):
    arrays, values = qkv((2, 4, 70, 32), (2, 2, 150, 32), seed=20)
    mask, mask64 = some_mask(kind, shape, seed=23)
    check_kernel(solution, name, arrays, values, mask=mask, mask64=mask64, fact="kernel-mask")


def half_masked(solution, name):
    arrays, values = qkv((2, 4, 70, 32), (2, 2, 150, 32), F16, seed=26)
    mask, mask64 = some_mask("additive", (70, 150), seed=29)
    check_kernel(solution, name, arrays, values, F16, mask=mask, mask64=mask64, fact="kernel-float")


def large_scores(solution, name):
    arrays, values = qkv((1, 4, 35, 32), (1, 2, 200, 32), seed=30, scale=12.0)
    values[1] *= np.linspace(0.2, 2.0, 200)[:, None]
    arrays[1], values[1] = exactly(values[1], F32)
    scores = values[0][:, ::2] @ values[1].swapaxes(-2, -1) * 32**-0.5
    maxima = [scores[..., j : j + KEY_TILE].max(axis=-1) for j in range(0, 200, KEY_TILE)]
    rises, falls = maxima[1] - maxima[0] > 89, maxima[1] - maxima[0] < 0
    require(rises.any() and falls.any(), "the maxima go one way only, or not far")
    check_kernel(solution, name, arrays, values, fact="kernel-attention")
    check_kernel(
        solution, name, arrays, values, causal=True, mask64=causal64(35, 200), fact="kernel-attention"
    )


def far_below_zero(solution, name):
    arrays, values = qkv((1, 2, 34, 32), (1, 1, 70, 32), seed=33)
    mask, mask64 = exactly(np.full((34, 70), -1e4), F32)
    check_kernel(solution, name, arrays, values, mask=mask, mask64=mask64, fact="kernel-mask")


def views(solution, name):
    """Keys and values of a cache with room for more, stored token by token; every second query."""
    room, room64 = zip(*(sample((2, 200, 3, 64), seed=36 + i) for i in range(2)), strict=True)
    query, query64 = sample((2, 40, 6, 128), seed=38)
    arrays = [query[:, ::2, :, ::2].transpose(0, 2, 1, 3), *(a[:, :130].transpose(0, 2, 1, 3) for a in room)]
    values = [query64[:, ::2, :, ::2].swapaxes(1, 2), *(a[:, :130].swapaxes(1, 2) for a in room64)]
    check_kernel(solution, name, arrays, values, fact="kernel-attention")
    for array, before in ((query, query64), *zip(room, room64, strict=True)):
        check.unchanged(before, array, what=f"an argument of {name}", fact="kernel-attention")


CASES = {
    "groups float32": groups,
    "groups float16": lambda s, name: groups(s, name, F16),
    "groups bfloat16": lambda s, name: groups(s, name, mx.bfloat16),
    "D 32 96 128": head_dims,
    "a head each, one for all": one_head_each,
    "lengths about the tiles": lengths,
    "causal, L = S": lambda s, name: causal(s, name, 100, 100),
    "causal, L < S": lambda s, name: causal(s, name, 45, 210),
    "causal, one query": lambda s, name: causal(s, name, 1, 70),
    "boolean mask": lambda s, name: masks(s, name, "boolean", (70, 150)),
    "additive mask": lambda s, name: masks(s, name, "additive", (70, 150)),
    "boolean mask a prompt": lambda s, name: masks(s, name, "boolean", (2, 1, 70, 150)),
    "additive mask a head": lambda s, name: masks(s, name, "additive", (2, 4, 70, 150)),
    "float16 with a mask": half_masked,
    "large scores": large_scores,
    "all scores far below 0": far_below_zero,
    "views of a cache": views,
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@task(3)
@every_case
def test_plain(solution, case):
    """flash_attention_plain"""
    case(solution, "flash_attention_plain")


@task(4)
@every_case
def test_fast(solution, case):
    """flash_attention_fast"""
    case(solution, "flash_attention_fast")


@task(4)
def test_fast_masks_within_a_group(solution):
    """heads of one group that see different keys: a tile is computed if one of them sees it"""
    arrays, values = qkv((1, 4, 40, 32), (1, 2, 200, 32), seed=40)
    seen = np.zeros((1, 4, 40, 200), dtype=bool)
    for h, keys in enumerate((slice(0, 64), slice(70, 100), slice(128, 200), slice(0, 10))):
        seen[:, h, :, keys] = True
    mask, mask64 = mx.array(seen), np.where(seen, 0.0, -INF)
    check_kernel(
        solution, "flash_attention_fast", arrays, values, mask=mask, mask64=mask64, fact="kernel-tiles"
    )


@task(4)
def test_fast_shares_its_work(solution):
    """the chunks of work, and the same result to the bit each time"""
    arrays, values = qkv((2, 6, 100, 64), (2, 2, 130, 64), seed=43)
    before = solution.cpp.chunks_so_far()
    first = check_kernel(
        solution,
        "flash_attention_fast",
        arrays,
        values,
        causal=True,
        mask64=causal64(100, 130),
        fact="kernel-threads",
    )
    chunks, tiles = solution.cpp.chunks_so_far() - before, 2 * 2 * 4
    what = (
        f"whether parallel_for got {tiles} chunks or more for {tiles} query tiles of a group; it got {chunks}"
    )
    check.exact(chunks >= tiles, True, what=what, fact="kernel-threads")
    for _ in range(3):
        again, _ = solution.flash_attention_fast(*arrays, 64**-0.5, causal=True)
        check.exact(
            again, first, what="flash_attention_fast once more on the same arrays", fact="kernel-threads"
        )


def resident_peak():
    """The most memory that this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@task(4)
def test_fast_memory(solution):
    """the memory for 4096 queries and as many keys, of which the scores alone would take 64 MiB"""
    (q, k, v), _ = qkv((1, 1, 4096, 32), (1, 1, 4096, 32), seed=46)
    mx.eval(solution.flash_attention_fast(q[:, :, :64], k, v, 0.2))  # the threads are there now
    before = resident_peak()
    mx.eval(solution.flash_attention_fast(q, k, v, 0.2, causal=True))
    grown = resident_peak() - before
    what = f"whether the process grew by less than 16 MiB: it grew by {grown / 2**20:.1f} MiB"
    check.exact(grown < 2**24, True, what=what, fact="kernel-memory")


# ---- task 5: the operation, and the model on it ----


def check_op(solution, arrays, values, dtype=F32, *, mask64=0.0, fact, **options):
    shapes = ", ".join(str(tuple(a.shape)) for a in arrays)
    told = "".join(f", {n}={shown(o)}" for n, o in options.items())
    what = f"flash_attention(query, key, value{told}), shapes {shapes}, {dtype_name(dtype)}"
    got = solution.flash_attention(*arrays, **options)
    close(got, values, dtype, mask64=mask64, scale=options.get("scale"), what=what, fact=fact)


@task(5)
@every_dtype
def test_op(solution, dtype):
    """flash_attention without a mask and causal"""
    arrays, values = qkv((2, 6, 35, 64), (2, 2, 70, 64), dtype, seed=50)
    check_op(solution, arrays, values, dtype, fact="op")
    check_op(solution, arrays, values, dtype, mask="causal", mask64=causal64(35, 70), fact="op")


@task(5)
@pytest.mark.parametrize("batch", [(), (2, 3), (2, 1, 2)], ids=["none", "two", "three"])
def test_op_batch_axes(solution, batch):
    """no batch axis, two and three of them, with a mask for every prompt"""
    arrays, values = qkv((*batch, 4, 34, 32), (*batch, 2, 140, 32), seed=53)
    check_op(solution, arrays, values, scale=0.3, fact="op")
    for shape in ((*batch, 1, 34, 140), (*batch[1:], 4, 34, 140)):
        mask, mask64 = some_mask("additive", shape, seed=56)
        check_op(solution, arrays, values, mask=mask, mask64=mask64, fact="op")


@task(5)
@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_op_masks(solution, kind):
    """masks in the shapes that broadcast"""
    arrays, values = qkv((2, 4, 34, 32), (2, 2, 140, 32), seed=58)
    for shape in ((34, 140), (2, 1, 34, 140), (4, 34, 140), (2, 4, 34, 140)):
        mask, mask64 = some_mask(kind, shape, seed=61)
        check_op(solution, arrays, values, mask=mask, mask64=mask64, fact="op")
    for shape in ((140,), (1, 140), (2, 1, 1, 140)):
        mask, mask64 = some_mask(kind, (34, 140), seed=64)
        mask, mask64 = mx.broadcast_to(mask[0], shape), np.broadcast_to(mask64[0], shape)
        check_op(solution, arrays, values, mask=mask, mask64=mask64.reshape(-1, *shape[1:]), fact="op")


@task(5)
@every_dtype
def test_op_mask_of_another_dtype(solution, dtype):
    """an additive mask whose dtype is not the query's"""
    arrays, values = qkv((2, 4, 34, 32), (2, 2, 140, 32), dtype, seed=67)
    mask, _ = some_mask("additive", (34, 140), seed=70)
    mask, mask64 = exactly(as_float64(mask), F16 if dtype == F32 else F32)
    check_op(solution, arrays, values, dtype, mask=mask, mask64=mask64, fact="op")


@task(5)
@pytest.mark.parametrize("D", [8, 40, 80])
def test_op_head_dims(solution, D):
    """a D that the kernel does not take"""
    arrays, values = qkv((2, 4, 5, D), (2, 2, 9, D), seed=73)
    check_op(solution, arrays, values, fact="op-head-dim")
    check_op(solution, arrays, values, scale=0.25, mask="causal", mask64=causal64(5, 9), fact="op-head-dim")


@task(5)
def test_op_only_reads(solution):
    """views, and nothing of the caller's changes"""
    query, query64 = sample((2, 9, 4, 32), seed=76)
    room, room64 = zip(*(sample((2, 2, 50, 32), seed=77 + i) for i in range(2)), strict=True)
    arrays = [query.transpose(0, 2, 1, 3), *(a[:, :, :21] for a in room)]
    values = [query64.swapaxes(1, 2), *(a[:, :, :21] for a in room64)]
    mask, mask64 = exactly(np.random.default_rng(79).normal(0.0, 1.5, (9, 21)), F32)
    check_op(solution, arrays, values, mask=mask, mask64=mask64, fact="op-reads")
    for array, before in ((query, query64), (mask, mask64), *zip(room, room64, strict=True)):
        check.unchanged(before, array, what="an argument of flash_attention", fact="op-reads")


@task(5)
@pytest.mark.parametrize("mask", [None, "causal", "row"])
def test_op_memory(solution, mask):
    """the memory MLX finds for 2048 queries and as many keys, against that of their scores"""
    (q, k, v), _ = qkv((1, 4, 2048, 32), (1, 2, 2048, 32), seed=80)
    given = mx.arange(2048) % 2 == 0 if mask == "row" else mask
    mx.eval(q, k, v)
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(solution.flash_attention(q, k, v, mask=given))
    peak, scores = max(0, mx.get_peak_memory() - before), 4 * 2048 * 2048
    what = f"whether {peak} bytes at the peak are at most a quarter of the {scores} of one head's scores"
    what += f", mask={mask!r}" if mask != "row" else ", with a boolean mask of (2048,)"
    check.exact(peak <= scores // 4, True, what=what, fact="op-memory")


# Roundings of a block as day 2.2 counts them: norms, the MLP, sums, four unpacked matrices; and attention's.
BLOCK, ATTENDED, RMS_NORM = 10 + 1 + 10 + 16 + 1 + 16, 24, 10


def score_sizes(mlx_model, inputs, monkeypatch):
    """Each layer's largest size of a score, as attention64 has it, in mlx-lm's own pass."""
    sizes, attention = [], qwen2.scaled_dot_product_attention

    def noted(query, key, value, **options):
        keys = mx.repeat(key, query.shape[1] // key.shape[1], axis=1)
        size = options["scale"] * mx.sqrt((query**2) @ (keys**2).swapaxes(-2, -1))
        sizes.append(mx.max(mx.tril(size)).item())
        return attention(query, key, value, **options)

    with monkeypatch.context() as patched:
        patched.setattr(qwen2, "scaled_dot_product_attention", noted)
        mx.eval(mlx_model(inputs))
    return sizes


def check_logits(got, want, config, sizes, end, *, what):
    """Logits in float32 against mlx-lm's, which round too.

    What rounds in attention costs 1 + 2 b times as much where scores have the size b (see attention64): a
    trained model's heads that look words up have sizes far above 1. The angles of RoPE cost two
    roundings a position, of which there are `end`.
    """
    attended = sum(ATTENDED * (1 + 2 * size) for size in sizes)
    roundings = attended + config.num_hidden_layers * (BLOCK + 2 * end) + RMS_NORM + 2
    check.close(
        got,
        want,
        dtype=F32,
        terms=config.intermediate_size,
        roundings=2 * roundings,
        magnitude=np.sqrt((want**2).mean(axis=-1, keepdims=True)),
        what=what,
        fact="model",
    )


@task(5)
@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-qwen2-draft"])
def test_model(solution, name, monkeypatch):
    """a model that ships, in float32: a prompt, a chunk behind it, and a token"""
    mlx_model = shipped_model(name)
    mlx_model.set_dtype(F32)
    inputs = mx.array(np.random.default_rng(90).integers(0, mlx_model.args.vocab_size, (1, 80)))
    want = as_float64(mlx_model(inputs))
    sizes = score_sizes(mlx_model, inputs, monkeypatch)
    require(len(sizes) == mlx_model.args.num_hidden_layers, "mlx-lm's attention was not noted")
    model = solution.flash_model(mlx_model)
    cache = model.create_kv_cache()
    for begin, end in ((0, 40), (40, 79), (79, 80)):
        got = model(inputs[:, begin:end], begin, cache)
        what = f"flash_model({name})(inputs, {begin}, cache), inputs (1, {end - begin})"
        check_logits(got, want[:, begin:end], mlx_model.args, sizes, end, what=what)


@task(5)
def test_model_parts(solution, monkeypatch):
    """the attention that runs, and the weights that are kept"""
    mlx_model = shipped_model("tiny-qwen2")
    mx.eval(mlx_model.parameters())
    args = mlx_model.args
    calls, attention = [], solution.flash_attention

    def noted(query, key, value, scale=None, mask=None):
        calls.append((tuple(query.shape), tuple(key.shape)))
        return attention(query, key, value, scale=scale, mask=mask)

    monkeypatch.setattr(sys.modules[attention.__module__], "flash_attention", noted)
    mx.synchronize()
    before = mx.get_active_memory()
    model = solution.flash_model(mlx_model)
    cache = model.create_kv_cache()
    mx.eval(model(mx.array([[5, 7, 9]]), 0, cache))
    kept = mx.get_active_memory() - before
    H_q, H, D = (
        args.num_attention_heads,
        args.num_key_value_heads,
        args.hidden_size // args.num_attention_heads,
    )
    want = [((1, H_q, 3, D), (1, H, 3, D))] * args.num_hidden_layers
    check.exact(
        calls, want, what="the queries and keys that flash_attention gets from one call", fact="model"
    )
    unpacked = 4 * 3 * args.num_hidden_layers * args.hidden_size * args.intermediate_size
    what = (
        f"whether flash_model(tiny-qwen2) keeps less than the {unpacked} bytes of its unpacked MLPs: {kept}"
    )
    check.exact(kept < unpacked, True, what=what, fact="model")
