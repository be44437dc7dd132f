"""Day 2.5: three GPU kernels for attention, what launches them, and what they cost, against float64 NumPy.

Checks run in the simulator, which counts; those called "on this machine" run on its GPU where MLX has one.
Sizes are small, and stand on both sides of the kernels' tiles: 32 keys, 8 times 32 of them, 32 rows.
"""

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import (
    as_float64,
    check,
    dtype_name,
    every_dtype,
    require,
    sample,
    shipped_model,
    simulated,
    task,
)

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
INF = np.inf
LINE = 128  # bytes
KEYS, ROWS = 32, 32  # of a tile of attention_tiled
PLAIN, DECODE, TILED = "attention_plain", "attention_decode", "attention_tiled"
KERNELS = {"launch_plain": PLAIN, "launch_decode": DECODE, "launch_tiled": TILED}


# ---- oracles ----


def causal64(L, S):
    """0 where query i, at position S - L + i, may look; -inf elsewhere."""
    return np.where(np.arange(S) <= np.arange(L)[:, None] + (S - L), 0.0, -INF)


def attention64(q, k, v, scale, mask=0.0):
    """Every KV head repeated for its group, then plain attention: (result, size of what is rounded).

    An error d in a score is a relative error of about d in a weight, and up to twice that after the division.
    A query that sees no key gives zeros.
    """
    group = q.shape[-3] // k.shape[-3]
    k, v = np.repeat(k, group, axis=-3), np.repeat(v, group, axis=-3)
    scores = scale * (q @ k.swapaxes(-2, -1)) + mask
    maximum = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(maximum), maximum, 0.0))
    normaliser = weights.sum(axis=-1, keepdims=True)
    weights /= np.where(normaliser == 0, 1.0, normaliser)
    bias = np.where(np.isfinite(mask), np.abs(mask), 0.0)
    size = abs(scale) * np.sqrt((q**2) @ (k**2).swapaxes(-2, -1)) + bias
    size = np.where(weights > 0, size, 0).max(axis=-1, keepdims=True)
    return weights @ v, (weights @ np.abs(v)) * (1 + 2 * size)


# ---- inputs ----


def exactly(values, dtype):
    """(array of dtype, float64 of its values)."""
    array = mx.array(np.asarray(values, dtype=np.float32)).astype(dtype)
    return array, as_float64(array)


def qkv(query_shape, kv_shape, dtype=F32, *, seed, scale=1.0):
    """Samples of query, key and value: ([arrays], [their float64 values])."""
    pairs = [
        sample(s, dtype, seed=seed + i, scale=scale) for i, s in enumerate((query_shape, kv_shape, kv_shape))
    ]
    return [a for a, _ in pairs], [a64 for _, a64 in pairs]


def some_mask(kind, shape, *, seed):
    """(mask array, the same as an additive mask in float64): half dark at random, and a row all dark."""
    rng = np.random.default_rng(seed)
    seen = rng.random(shape) < 0.5
    seen[..., -1] = True
    if len(shape) > 1 and shape[-2] > 1:
        seen[..., 1, :] = False
        seen[..., 0, : min(40, shape[-1] - 1)] = False  # a query whose first tile of keys is dark
    if kind == "boolean":
        return mx.array(seen), np.where(seen, 0.0, -INF)
    return exactly(np.where(seen, rng.normal(0.0, 1.5, shape), -INF), F32)


def shown(mask):
    return f"{tuple(mask.shape)} {dtype_name(mask.dtype)}" if isinstance(mask, mx.array) else repr(mask)


# ---- comparisons ----

# Roundings of float32: score 1, scale 1, mask 1, the difference from the maximum 1, exp 2, the division 1,
# the result's store 1, merging 1. A maximum that rises, say once in 32 keys: exp 2, product 1, sum 1.
ATTENTION, A_RISE = 9, 4
# Computed in float and rounded once, a 16-bit result has one rounding; the others are far below.
STORED = 4


def close(got, values, dtype, *, scale, mask64=0.0, what, fact):
    want, size = attention64(*values, scale, mask64)
    S, D = values[1].shape[-2:]
    in_float = dtype == F32
    check.close(
        got,
        want,
        dtype=dtype,
        terms=max(S, D) if in_float else 1,
        roundings=ATTENTION + A_RISE * (-(-S // 32)) if in_float else STORED,
        magnitude=size if in_float else np.maximum(size, np.abs(want)),
        what=what,
        fact=fact,
    )


def check_launch(solution, name, arrays, values, dtype=F32, *, scale=0.2, mask=None, mask64=0.0, fact):
    """One launch of the kernel that `name` launches, its result, and what it cost."""
    shapes = ", ".join(str(tuple(a.shape)) for a in arrays)
    what = f"{name}(query, key, value, {scale}, {shown(mask)}), shapes {shapes}, {dtype_name(dtype)}"
    with simulated() as launches:
        got = getattr(solution, name)(*arrays, scale, mask)
        close(got, values, dtype, scale=scale, mask64=mask64, what=what, fact=fact)
    check.exact([r.kernel for r in launches], [KERNELS[name]], what=f"the kernels launched by {what}")
    return launches[0]


def at_most(count, bar, what, *, fact):
    """A count that has a bar."""
    check.exact(
        bool(count <= bar), True, what=f"{what}: {count}, and at most {bar:.0f} are allowed", fact=fact
    )


# ---- tasks 1 to 3: what every kernel must do, by what the learner is told of it ----


def groups(solution, name, dtype=F32):
    arrays, values = qkv((2, 6, 5, 64), (2, 2, 37, 64), dtype, seed=1)
    check_launch(solution, name, arrays, values, dtype, fact="launch-groups")


def head_dims(solution, name):
    arrays, values = qkv((1, 2, 3, 128), (1, 1, 37, 128), seed=4)
    check_launch(solution, name, arrays, values, fact="launches")


def lengths(solution, name):
    for L, S in ((1, 1), (7, 31), (15, 32), (16, 33), (17, 64), (33, 65), (1, 255), (2, 257), (3, 300)):
        arrays, values = qkv((1, 4, L, 64), (1, 2, S, 64), seed=7)
        check_launch(solution, name, arrays, values, fact="launches")


def causal(solution, name):
    for L, S in ((40, 40), (9, 70), (1, 40), (2, 290)):
        arrays, values = qkv((2, 4, L, 64), (2, 2, S, 64), seed=10)
        check_launch(
            solution, name, arrays, values, mask="causal", mask64=causal64(L, S), fact="launch-masks"
        )


def masks(solution, name, kind, *shapes):
    for seed, shape in enumerate(shapes):
        arrays, values = qkv((2, 6, 7, 64), (2, 3, 70, 64), seed=20 + seed)
        mask, mask64 = some_mask(kind, shape, seed=30 + seed)
        check_launch(solution, name, arrays, values, mask=mask, mask64=mask64, fact="launch-masks")


def all_dark(solution, name):
    arrays, values = qkv((1, 4, 3, 64), (1, 2, 34, 64), seed=40)
    mask64 = np.where(np.arange(34) < 33, 0.0, -INF) + np.array([[0.0], [-INF], [0.0]])
    mask, mask64 = exactly(mask64, F32)
    check_launch(solution, name, arrays, values, mask=mask, mask64=mask64, fact="launch-dark")


def large_scores(solution, name):
    arrays, values = qkv((1, 4, 9, 64), (1, 2, 290, 64), seed=44, scale=9.0)
    arrays[1], values[1] = exactly(values[1] * np.linspace(0.2, 2.0, 290)[:, None], F32)
    scores = 0.2 * values[0][:, ::2] @ values[1].swapaxes(-2, -1)
    maxima = [scores[..., j : j + KEYS].max(axis=-1) for j in range(0, 290, KEYS)]
    require(
        (maxima[3] - maxima[0] > 89).any() and (maxima[8] < maxima[7]).any(), "the maxima go one way only"
    )
    check_launch(solution, name, arrays, values, fact="launches")


def far_below_zero(solution, name):
    arrays, values = qkv((1, 2, 3, 64), (1, 1, 40, 64), seed=50)
    mask, mask64 = exactly(np.full((3, 40), -1e4), F32)
    check_launch(solution, name, arrays, values, mask=mask, mask64=mask64, fact="launch-masks")


def float_sums(solution, name):
    """Equal weights; a sum in bfloat16 stops at 256, and at 512 it counts in steps of 4."""
    S = 1024
    arrays = [mx.zeros((1, 1, 1, 64), BF16), mx.zeros((1, 1, S, 64), BF16)]
    arrays.append(
        mx.where(mx.arange(S) < S // 2, 1.0, 3.0).astype(BF16)[:, None] * mx.ones((1, 1, S, 64), BF16)
    )
    values = [as_float64(a) for a in arrays]
    check_launch(solution, name, arrays, values, BF16, fact="launch-float")


def views(solution, name):
    """Keys and values of a cache with room for more; every second query."""
    room, room64 = zip(*(sample((2, 50, 2, 64), seed=60 + i) for i in range(2)), strict=True)
    query, query64 = sample((2, 12, 4, 64), seed=62)
    arrays = [query[:, ::2].transpose(0, 2, 1, 3), *(a[:, :37].transpose(0, 2, 1, 3) for a in room)]
    values = [query64[:, ::2].swapaxes(1, 2), *(a[:, :37].swapaxes(1, 2) for a in room64)]
    check_launch(solution, name, arrays, values, fact="launches")


CASES = {
    "groups float32": groups,
    "lengths about the tiles": lengths,
    "causal": causal,
    "additive mask": lambda s, name: masks(s, name, "additive", (7, 70), (2, 1, 7, 70), (6, 1, 70)),
    "boolean mask": lambda s, name: masks(s, name, "boolean", (2, 6, 7, 70), (70,), (2, 1, 1, 70)),
    "queries that see no key": all_dark,
    "large scores": large_scores,
    "all scores far below 0": far_below_zero,
    "views of a cache": views,
    "D 128": head_dims,
    "float16": lambda s, name: groups(s, name, F16),
    "bfloat16": lambda s, name: groups(s, name, BF16),
    "sums of bfloat16": float_sums,
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


# ---- task 1: a thread for each query ----

# Shapes of masks over (2, 6, 5, 8), and their strides.
STRIDES = {
    (5, 8): (0, 0, 8, 1),
    (8,): (0, 0, 0, 1),
    (5, 1): (0, 0, 1, 0),
    (1, 1): (0, 0, 0, 0),
    (6, 1, 8): (0, 8, 0, 1),
    (2, 1, 5, 8): (40, 0, 8, 1),
    (2, 6, 1, 1): (6, 1, 0, 0),
    (2, 6, 5, 8): (240, 40, 8, 1),
}


@task(1)
def test_mask_strides(solution):
    """where a mask's entries are, for every way to broadcast"""
    for shape, strides in STRIDES.items():
        mask, mask64 = sample(shape, F16, seed=70)
        kind, array, got = solution.mask_argument(mask)
        what = f"of mask_argument of a mask {shape} float16"
        check.exact(tuple(got), strides, what=f"the strides {what}", fact="mask-strides")
        check.exact(array, exactly(mask64, F32)[0], what=f"the array {what}", fact="mask-dtype")
        check.exact(kind, solution.ARRAY, what=f"the kind {what}", fact="mask-strides")


@task(1)
def test_mask_kinds(solution):
    """no mask, causal, and a boolean one"""
    for mask, kind in ((None, solution.NO_MASK), ("causal", solution.CAUSAL)):
        got = solution.mask_argument(mask)
        what = f"mask_argument({mask!r})"
        check.exact(
            (got[0], tuple(got[2])),
            (kind, (0, 0, 0, 0)),
            what=f"kind and strides of {what}",
            fact="mask-none",
        )
        check.exact(got[1], mx.zeros((1,)), what=f"the array of {what}", fact="mask-none")
    mask = mx.array(np.random.default_rng(71).random((5, 8)) < 0.5)
    got = solution.mask_argument(mask)
    check.exact(got[1], mask, what="the array of mask_argument of a boolean mask (5, 8)", fact="mask-dtype")


@task(1)
@every_case
def test_plain(solution, case):
    """attention_plain"""
    case(solution, "launch_plain")


@task(1)
def test_plain_reads_once(solution):
    """what attention_plain reads"""
    arrays, values = qkv((2, 4, 9, 64), (2, 2, 37, 64), seed=72)
    r = check_launch(solution, "launch_plain", arrays, values, fact="launches")
    at_most(r.read["query"], arrays[0].nbytes, "bytes of query read", fact="plain-reads")
    at_most(r.read["key"], 9 * 2 * arrays[1].nbytes, "bytes of key read", fact="plain-reads")
    at_most(r.read["value"], 9 * 2 * arrays[2].nbytes, "bytes of value read", fact="plain-reads")


# ---- task 2: a threadgroup for each query ----


@task(2)
@every_case
def test_decode(solution, case):
    """attention_decode"""
    case(solution, "launch_decode")


@task(2)
def test_decode_shares_the_keys(solution):
    """512 keys, against what one thread a query reads"""
    arrays, values = qkv((1, 4, 1, 64), (1, 2, 512, 64), seed=80)
    r = check_launch(solution, "launch_decode", arrays, values, fact="launches")
    plain = (64 + 2 * 512 * 64) * 4
    at_most(
        r.most_read,
        plain / 200,
        f"bytes that the busiest of 256 threads reads, of {plain}",
        fact="decode-shares",
    )
    both = 4 * 512 * 64 * 4
    at_most(r.read["key"], both, "bytes of key read", fact="decode-shares")
    at_most(r.read["value"], both, "bytes of value read", fact="decode-shares")


@task(2)
def test_decode_reads_neighbours(solution):
    """lines of 128 bytes fetched"""
    for dtype in (F32, F16):
        arrays, values = qkv((1, 4, 2, 64), (1, 2, 80, 64), dtype, seed=83)
        r = check_launch(solution, "launch_decode", arrays, values, dtype, fact="launches")
        for name, array in (("key", arrays[1]), ("value", arrays[2])):
            whole = 4 * array.nbytes / LINE  # for each of two heads and two queries
            told = f"lines fetched to read {name}, {dtype_name(dtype)}"
            at_most(r.lines[name], 2 * whole if dtype == F16 else 1.25 * whole, told, fact="decode-coalesced")


# ---- task 3: tiles ----


@task(3)
def test_tile_rows(solution):
    """as many rows as fit into 32 KB"""
    for (D, itemsize), want in {
        (64, 4): 32,
        (64, 2): 32,
        (128, 2): 32,
        (128, 4): 16,
        (96, 4): 32,
        (160, 4): 16,
        (256, 2): 16,
        (192, 4): 8,
    }.items():
        check.exact(
            solution.tile_rows(D, itemsize), want, what=f"tile_rows({D}, {itemsize})", fact="tile-rows"
        )
    check.raises(ValueError, lambda: solution.tile_rows(256, 4), what="tile_rows(256, 4)")


@task(3)
@every_case
def test_tiled(solution, case):
    """attention_tiled"""
    case(solution, "launch_tiled")


def tiled_bytes(L, S, H, group, *, causal=False):
    """The bytes of float32 keys with D = 64 that a launch may read."""
    tiles = range(0, group * L, ROWS)
    last_rows = [min(t + ROWS, group * L) - 1 for t in tiles]
    keys = [min(S, -(-(r // group + S - L + 1) // KEYS) * KEYS) if causal else S for r in last_rows]
    return H * sum(keys) * 64 * 4


@task(3)
@pytest.mark.parametrize(("L", "S", "group"), [(32, 64, 2), (21, 70, 3)], ids=str)
def test_tiled_reads(solution, L, S, group):
    """keys and values: once a tile of rows"""
    arrays, values = qkv((1, 2 * group, L, 64), (1, 2, S, 64), seed=90)
    r = check_launch(solution, "launch_tiled", arrays, values, fact="launches")
    bar, plain = tiled_bytes(L, S, 2, group), 2 * group * L * S * 64 * 4
    for name in ("key", "value"):
        at_most(
            r.read[name], bar, f"bytes of {name} read, of {plain} with a thread a query", fact="tiled-reads"
        )
    at_most(r.read["query"], arrays[0].nbytes, "bytes of query read", fact="tiled-reads")


@task(3)
def test_tiled_skips_causal_tiles(solution):
    """a causal launch reads about half"""
    L = 96
    arrays, values = qkv((1, 2, L, 64), (1, 1, L, 64), seed=93)
    r = check_launch(
        solution, "launch_tiled", arrays, values, mask="causal", mask64=causal64(L, L), fact="launch-masks"
    )
    bar, all_of_it = tiled_bytes(L, L, 1, 2, causal=True), tiled_bytes(L, L, 1, 2)
    for name in ("key", "value"):
        at_most(
            r.read[name], bar, f"bytes of {name} read, of {all_of_it} without a mask", fact="tiled-causal"
        )


@task(3)
def test_tiled_costs(solution):
    """threadgroup memory and barriers"""
    for D, dtype, rows in ((64, F32, 32), (64, F16, 32), (128, F32, 16)):
        arrays, values = qkv((1, 2, 20, D), (1, 1, 70, D), dtype, seed=96)
        r = check_launch(solution, "launch_tiled", arrays, values, dtype, fact="launches")
        size = arrays[0].itemsize
        told = f"D = {D}, {dtype_name(dtype)}"
        memory = rows * D * size + KEYS * (D * size + 4)
        at_most(r.threadgroup_memory, memory, f"bytes of threadgroup memory, {told}", fact="tile-rows")
        tiles = -(-2 * 20 // rows)
        at_most(
            r.barriers,
            tiles * (4 * 3 + 1),
            f"barriers for {tiles} tiles of rows and 3 of keys, {told}",
            fact="tiled-barriers",
        )


# ---- task 4: what models take ----


def check_flash(solution, arrays, values, dtype=F32, *, scale=None, mask=None, mask64=0.0, fact, kernel):
    shapes = ", ".join(str(tuple(a.shape)) for a in arrays)
    what = f"flash_attention_gpu(query, key, value, scale={scale}, mask={shown(mask)}), shapes {shapes}"
    what += f", {dtype_name(dtype)}"
    with simulated() as launches:
        got = solution.flash_attention_gpu(*arrays, scale=scale, mask=mask)
        factor = values[0].shape[-1] ** -0.5 if scale is None else scale
        close(got, values, dtype, scale=factor, mask64=mask64, what=what, fact=fact)
    check.exact(
        [r.kernel for r in launches], [kernel], what=f"the kernels launched by {what}", fact="flash-schedule"
    )


@task(4)
@every_dtype
def test_flash(solution, dtype):
    """flash_attention_gpu without a mask, causal, and with a scale"""
    for L, kernel in ((5, DECODE), (13, TILED)):
        arrays, values = qkv((2, 6, L, 64), (2, 2, 40, 64), dtype, seed=100)
        check_flash(solution, arrays, values, dtype, fact="flash-scale", kernel=kernel)
        check_flash(
            solution,
            arrays,
            values,
            dtype,
            scale=0.3,
            mask="causal",
            mask64=causal64(L, 40),
            fact="flash-mask",
            kernel=kernel,
        )


@task(4)
@pytest.mark.parametrize(("L", "kernel"), [(1, DECODE), (8, DECODE), (9, TILED), (33, TILED)], ids=str)
def test_flash_schedule(solution, L, kernel):
    """which kernel for how many queries"""
    arrays, values = qkv((1, 2, L, 64), (1, 1, 35, 64), seed=103)
    check_flash(solution, arrays, values, fact="flash-shapes", kernel=kernel)


@task(4)
def test_flash_head_dims(solution):
    """a D that the faster kernels do not take"""
    for D in (40, 160):
        for L in (2, 9):
            arrays, values = qkv((2, 2, L, D), (2, 1, 11, D), seed=106)
            check_flash(solution, arrays, values, fact="flash-schedule", kernel=PLAIN)


@task(4)
@pytest.mark.parametrize("batch", [(), (2, 3), (2, 1, 2)], ids=["none", "two", "three"])
def test_flash_batch_axes(solution, batch):
    """no batch axis, two and three of them, with masks"""
    arrays, values = qkv((*batch, 4, 9, 64), (*batch, 2, 11, 64), seed=110)
    check_flash(solution, arrays, values, scale=0.3, fact="flash-shapes", kernel=TILED)
    for kind in ("additive", "boolean"):
        for shape in ((*batch, 1, 9, 11), (*batch[1:], 4, 9, 11), (11,)):
            mask, mask64 = some_mask(kind, shape, seed=113)
            check_flash(solution, arrays, values, mask=mask, mask64=mask64, fact="flash-mask", kernel=TILED)


@task(4)
def test_flash_memory(solution):
    """the memory that MLX finds, against that of the scores"""
    (q, k, v), _ = qkv((1, 4, 24, 64), (1, 1, 288, 64), seed=116)
    scores = 4 * 24 * 288 * 4
    for mask in (None, "causal", mx.zeros((288,))):
        mx.eval(q, k, v, mask if isinstance(mask, mx.array) else q)
        mx.synchronize()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        with simulated():
            mx.eval(solution.flash_attention_gpu(q, k, v, mask=mask))
        peak = max(0, mx.get_peak_memory() - before)
        what = f"bytes at the peak, mask={shown(mask)}; the scores would be {scores}"
        at_most(peak, 2 * scores / 3, what, fact="flash-memory")


@task(4)
def test_flash_only_reads(solution):
    """views, and nothing of the caller's changes"""
    query, query64 = sample((2, 9, 4, 64), seed=120)
    room, room64 = zip(*(sample((2, 2, 50, 64), seed=121 + i) for i in range(2)), strict=True)
    arrays = [query.transpose(0, 2, 1, 3), *(a[:, :, :21] for a in room)]
    values = [query64.swapaxes(1, 2), *(a[:, :, :21] for a in room64)]
    mask, mask64 = exactly(np.random.default_rng(124).normal(0.0, 1.5, (9, 21)), F32)
    check_flash(solution, arrays, values, mask=mask, mask64=mask64, fact="flash-reads", kernel=TILED)
    for array, before in ((query, query64), (mask, mask64), *zip(room, room64, strict=True)):
        check.unchanged(before, array, what="an argument of flash_attention_gpu", fact="flash-reads")


@task(4)
def test_flash_on_this_machine(solution):
    """on this machine's GPU, or simulated: prefill and decode"""
    for L in (4, 40):
        arrays, values = qkv((1, 4, L, 64), (1, 2, 70, 64), seed=126)
        got = solution.flash_attention_gpu(*arrays, mask="causal")
        close(
            got,
            values,
            F32,
            scale=0.125,
            mask64=causal64(L, 70),
            what=f"flash_attention_gpu, L = {L}, S = 70",
            fact="flash-mask",
        )


@task(4)
@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-qwen2-draft"])
def test_model(solution, name):
    """a shipped model, a prompt and then a token, beside mlx-lm's"""
    mlx_model = shipped_model(name)
    ids = mx.array([[5, 91, 400, 17, 1200, 33, 8, 260, 77, 140]])
    want64 = as_float64(mlx_model(ids))  # (1, 10, V)
    what = f"flash_gpu_model({name}), 9 tokens and then 1"
    with simulated() as launches:
        model = solution.flash_gpu_model(mlx_model)
        cache = model.create_kv_cache()
        got = mx.concatenate([model(ids[:, :9], 0, cache), model(ids[:, 9:], 9, cache)], axis=1)
        mx.eval(got)
    layers = mlx_model.args.num_hidden_layers
    wanted = [TILED] * layers + [DECODE] * layers
    check.exact([r.kernel for r in launches], wanted, what=f"the launches of {what}", fact="flash-model")
    # Both compute in float32, in another order: some 40 roundings a layer, and sums of up to 384.
    check.close(
        got,
        want64,
        dtype=F32,
        terms=384 * layers,
        roundings=40 * layers,
        magnitude=4 * np.abs(want64).max(),
        what=f"the logits of {what}",
        fact="flash-model",
    )
