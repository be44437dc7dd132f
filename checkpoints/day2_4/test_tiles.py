"""Day 2.4, tasks 1 and 2: the softmax from pieces and attention over tiles in Python, against NumPy."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import as_float64, check, dtype_name, every_dtype, require, sample, task

F32, F16 = mx.float32, mx.float16
INF = np.inf


# ---- oracles ----


def state64(scores, value):
    """(maximum, sum, total) of a tile of keys, and the sizes of what is rounded in sum and total.

    An error d in a score is a relative error of about d in its weight.
    """
    maximum = scores.max(axis=-1, keepdims=True)
    off = np.where(np.isfinite(maximum), maximum, 0.0)
    weights = np.exp(scores - off)
    rounded = weights * (1 + np.where(weights > 0, np.abs(scores - off), 0.0))
    state = maximum, weights.sum(axis=-1, keepdims=True), weights @ value
    return state, (rounded.sum(axis=-1, keepdims=True), rounded @ np.abs(value))


def merged64(states):
    """What states come to together, each (maximum, sum, total), and the sizes of what is rounded."""
    maximum = np.max([s[0] for s in states], axis=0)
    off = np.where(np.isfinite(maximum), maximum, 0.0)
    shrink = [np.exp(s[0] - off) for s in states]
    rounded = [
        f * (1 + np.where(f > 0, np.abs(s[0] - off), 0.0)) for f, s in zip(shrink, states, strict=True)
    ]
    sums = [sum(f * s[part] for f, s in zip(shrink, states, strict=True)) for part in (1, 2)]
    sizes = [sum(f * np.abs(s[part]) for f, s in zip(rounded, states, strict=True)) for part in (1, 2)]
    return (maximum, *sums), sizes


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


def tiles64(seen, L, S, query_tile, key_tile):
    """How many key tiles each query tile sees; `seen` is boolean and broadcasts to (.., L, S)."""
    seen = np.broadcast_to(seen, (*np.shape(seen)[:-2], L, S)).reshape(-1, L, S).any(axis=0)
    return [
        sum(bool(seen[i : i + query_tile, j : j + key_tile].any()) for j in range(0, S, key_tile))
        for i in range(0, L, query_tile)
    ]


# ---- inputs ----


def exactly(values, dtype):
    """(array of dtype, float64 of its values)."""
    array = mx.array(np.asarray(values, dtype=np.float32)).astype(dtype)
    return array, as_float64(array)


def tile_input(shape, D, dtype=F32, *, seed, scale=2.0):
    """(scores, value), and their float64 values: scores N.. x L x K, value N.. x K x D."""
    scores, scores64 = sample(shape, dtype, seed=seed, scale=scale)
    value, value64 = sample((*shape[:-2], shape[-1], D), dtype, seed=seed + 1)
    return (scores, value), (scores64, value64)


def qkv(query_shape, kv_shape, dtype=F32, *, seed, scale=1.0):
    """Samples of query, key and value: ([arrays], [their float64 values])."""
    shapes = (query_shape, kv_shape, kv_shape)
    pairs = [sample(s, dtype, seed=seed + i, scale=scale) for i, s in enumerate(shapes)]
    return [a for a, _ in pairs], [a64 for _, a64 in pairs]


def hidden_tiles(shape, query_tile, key_tile, *, seed):
    """True where a query may look: at random, with whole tiles, a row and row 1's first tile dark."""
    rng = np.random.default_rng(seed)
    seen = rng.random(shape) < 0.6
    seen[..., :query_tile, key_tile : 2 * key_tile] = False
    seen[..., query_tile : 2 * query_tile, :key_tile] = False
    seen[..., query_tile : 2 * query_tile, -2:] = True
    seen[..., 1, :key_tile] = False
    seen[..., 1, -1] = True
    seen[..., 2, :] = False
    require(seen.any(axis=-1).sum() > 0 and not seen[..., 2, :].any(), "row 2 must see nothing")
    return seen


# ---- comparisons ----

# Roundings of a tile's state: the difference from the maximum 1, exp 2, the cast 1; sums come in as terms.
TILE = 4
# Of merging: the difference 1, exp 2, the product 1, the sum 1, the cast 1.
MERGE = 6
# Of attention: the score 1, scale 1, mask 1, the difference from the maximum 1, exp 2, the division 1, the
# weight's cast 1, the result's cast 1. Every further tile shrinks what came before: exp 2, product 1, sum 1.
ATTENTION, ANOTHER_TILE = 9, 4

PARTS = ("maximum", "sum", "total")


def check_state(got, want, sizes, dtype, *, terms, roundings, what, fact):
    """A state, part by part: the maximum exactly, sum and total within their sizes."""
    parts = got if isinstance(got, tuple) and len(got) == 3 else (None,) * 3
    check.exact(parts[0], exactly(want[0], dtype)[0], what=f"the maximum of {what}", fact=fact)
    for name, part, oracle, size in zip(PARTS[1:], parts[1:], want[1:], sizes, strict=True):
        told = f"the {name} of {what}"
        check.close(
            part, oracle, dtype=dtype, terms=terms, roundings=roundings, magnitude=size, what=told, fact=fact
        )


def check_tile(solution, arrays, values, dtype=F32, *, fact):
    want, sizes = state64(*values)
    what = (
        f"attend_tile(scores, value), scores {values[0].shape}, value {values[1].shape}, {dtype_name(dtype)}"
    )
    K = values[0].shape[-1]
    got = solution.attend_tile(*arrays)
    check_state(got, want, sizes, dtype, terms=K, roundings=TILE, what=what, fact=fact)


def given_states(values, parts, dtype=F32):
    """The states of runs of keys, in dtype and in float64 of the same values: parts are ends of the runs."""
    scores, value = values
    pairs = []
    for begin, end in zip((0, *parts[:-1]), parts, strict=True):
        state, _ = state64(scores[..., begin:end], value[..., begin:end, :])
        pairs.append([exactly(part, dtype) for part in state])
    return [tuple(a for a, _ in p) for p in pairs], [tuple(a64 for _, a64 in p) for p in pairs]


def check_merge(solution, states, states64, dtype=F32, *, what, fact):
    want, sizes = merged64(states64)
    got = solution.merge(*states)
    check_state(got, want, sizes, dtype, terms=2, roundings=MERGE, what=what, fact=fact)


def check_tiled(
    solution,
    arrays,
    values,
    dtype=F32,
    *,
    tiles=(4, 5),
    mask64=0.0,
    fact,
    **options,
):
    """flash_attention_tiled with the options scale and mask; mask64 is that mask, additive, in float64."""
    want, size = attention64(*values, scale=options.get("scale"), mask=mask64)
    L, S = values[0].shape[-2], values[1].shape[-2]
    told = "".join(
        f", {name}={f'{tuple(o.shape)} {dtype_name(o.dtype)}' if isinstance(o, mx.array) else repr(o)}"
        for name, o in options.items()
    )
    shapes = ", ".join(str(tuple(a.shape)) for a in arrays)
    what = (
        f"flash_attention_tiled(query, key, value{told}), tiles {tiles}, shapes {shapes}, {dtype_name(dtype)}"
    )
    got = solution.flash_attention_tiled(*arrays, query_tile=tiles[0], key_tile=tiles[1], **options)
    out, computed = got if isinstance(got, tuple) and len(got) == 2 else (got, None)
    count = -(-S // tiles[1])
    check.close(
        out,
        want,
        dtype=dtype,
        terms=max(S, values[0].shape[-1]),
        roundings=ATTENTION + ANOTHER_TILE * (count - 1),
        magnitude=size,
        what=f"the result of {what}",
        fact=fact,
    )
    seen = np.isfinite(np.broadcast_to(mask64, (L, S) if np.ndim(mask64) < 2 else np.shape(mask64)))
    check.exact(
        computed,
        tiles64(seen, L, S, *tiles),
        what=f"the key tiles computed by {what}",
        fact="tiled-count",
    )


# ---- task 1: a tile's state, and merging ----


@task(1)
@every_dtype
def test_tile(solution, dtype):
    """the state of one tile of keys"""
    check_tile(solution, *tile_input((3, 5, 7), 4, dtype, seed=1), dtype, fact="tile-state")
    check_tile(solution, *tile_input((2, 6, 9), 4, dtype, seed=3), dtype, fact="tile-dtype")


@task(1)
def test_tile_of_large_scores(solution):
    """scores beyond the range of exp, both ways"""
    for mean in (-3000.0, 0.0, 3000.0):
        scores, scores64 = sample((2, 4, 6), seed=5, scale=300.0, mean=mean)
        value, value64 = sample((2, 6, 3), seed=6)
        require(np.abs(scores64).max() > 89, "exp of the scores stays in float32's range")
        check_tile(solution, (scores, value), (scores64, value64), fact="tile-state")


@task(1)
@every_dtype
def test_tile_that_is_partly_dark(solution, dtype):
    """scores of -inf, one, some and all of a row"""
    (scores, value), (scores64, value64) = tile_input((2, 5, 6), 4, dtype, seed=7)
    scores64[:, 1, :3] = -INF
    scores64[0, 2] = scores64[1, 4] = -INF
    scores64[:, 3, 5] = -INF
    scores, _ = exactly(scores64, dtype)
    check_tile(solution, (scores, value), (scores64, value64), dtype, fact="tile-nothing")


@task(1)
@every_dtype
def test_merge_is_one_tile(solution, dtype):
    """two states merged, and the same the other way round"""
    _, values = tile_input((3, 5, 9), 4, dtype, seed=11)
    states, states64 = given_states(values, (4, 9), dtype)
    require((np.abs(states64[0][0] - states64[1][0]) > 0.1).mean() > 0.5, "the maxima are nearly equal")
    for order in ((0, 1), (1, 0)):
        what = f"merge({'b, a' if order[0] else 'a, b'}), states of 4 and 5 keys, {dtype_name(dtype)}"
        chosen = [states[n] for n in order], [states64[n] for n in order]
        check_merge(solution, *chosen, dtype, what=what, fact="merge")


@task(1)
def test_merge_far_apart(solution):
    """states whose maxima differ by more than exp can hold"""
    _, values = tile_input((2, 6, 8), 3, seed=13)
    values[0][..., :4] += np.array([500.0, -500.0, 90.0, -90.0, 3e4, -3e4])[:, None]
    states, states64 = given_states(values, (4, 8))
    for order in ((0, 1), (1, 0)):
        chosen = [states[n] for n in order], [states64[n] for n in order]
        check_merge(solution, *chosen, what="merge of states with maxima far apart", fact="merge")


@task(1)
@every_dtype
def test_merge_with_nothing_seen(solution, dtype):
    """a state that has seen nothing, as the first, the second and both"""
    _, values = tile_input((2, 6, 8), 3, dtype, seed=15)
    values[0][:, 0:3, :4] = -INF  # rows 0 to 2 see nothing in the first, 2 to 4 nothing in the second
    values[0][:, 2:5, 4:] = -INF
    states, states64 = given_states(values, (4, 8), dtype)
    check_merge(
        solution,
        states,
        states64,
        dtype,
        what=f"merge, with rows of -inf, {dtype_name(dtype)}",
        fact="merge-nothing",
    )


@task(1)
@every_dtype
def test_finish(solution, dtype):
    """what a state comes to, with rows that have seen nothing"""
    for seed in (17, 19):
        _, values = tile_input((2, 5, 6), 4, dtype, seed=seed)
        values[0][0, 1] = values[0][1, 3] = -INF
        (state,), (state64_,) = given_states(values, (6,), dtype)
        want = np.where(state64_[1] > 0, state64_[2] / np.where(state64_[1] > 0, state64_[1], 1.0), 0.0)
        require((state64_[1].max() > 1.5) and (state64_[1] == 0).any(), "the sums are all 1, or none is 0")
        what = f"finish(state), rows 1 and 3 partly without keys, {dtype_name(dtype)}"
        check.close(
            solution.finish(state),
            want,
            dtype=dtype,
            terms=1,
            roundings=2,
            magnitude=np.abs(want).max(),
            what=what,
            fact="finish",
        )


@task(1)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)], ids=["in order", "mixed"])
def test_pieces_give_the_softmax(solution, order):
    """four uneven tiles of keys, merged in any order and grouping, are one softmax"""
    _, (scores64, value64) = tile_input((2, 5, 30), 4, seed=21, scale=8.0)
    scores64[:, 2, :7] = -INF  # nothing seen in the first tile
    scores64[:, 3, :] = -INF
    (scores, scores64), (value, value64) = exactly(scores64, F32), exactly(value64, F32)
    ends = (0, 7, 8, 19, 30)
    tiles = [solution.attend_tile(scores[..., a:b], value[..., a:b, :]) for a, b in itertools.pairwise(ends)]
    w, x, y, z = (tiles[n] for n in order)
    maximum = scores64.max(axis=-1, keepdims=True)
    weights = np.exp(scores64 - np.where(np.isfinite(maximum), maximum, 0.0))
    normaliser = weights.sum(axis=-1, keepdims=True)
    weights /= np.where(normaliser > 0, normaliser, 1.0)
    spread = np.where(weights > 0, np.abs(scores64 - np.where(np.isfinite(maximum), maximum, 0.0)), 0.0)
    size = (weights * (1 + 2 * spread)) @ np.abs(value64)
    for shape, got in (
        ("((w x) y) z", solution.finish(solution.merge(solution.merge(solution.merge(w, x), y), z))),
        ("(w x) (y z)", solution.finish(solution.merge(solution.merge(w, x), solution.merge(y, z)))),
    ):
        what = f"tiles of 7, 1, 11 and 11 keys, order {order}, merged as {shape}"
        check.close(
            got,
            weights @ value64,
            dtype=F32,
            terms=30,
            roundings=TILE + 3 * MERGE + 2,
            magnitude=2 * size,
            what=what,
            fact="merge",
        )


# ---- task 2: attention over tiles ----


@task(2)
@every_dtype
def test_tiled_groups(solution, dtype):
    """six query heads on two KV heads, the last tiles partial"""
    for seed in (30, 33):
        arrays, values = qkv((3, 6, 10, 8), (3, 2, 13, 8), dtype, seed=seed)
        check_tiled(solution, arrays, values, dtype, fact="tiled")


@task(2)
@pytest.mark.parametrize("tiles", [(1, 1), (3, 7), (4, 4), (64, 64)], ids=str)
def test_tiled_sizes(solution, tiles):
    """tiles of one, of parts, that fit exactly, and larger than everything"""
    arrays, values = qkv((2, 4, 8, 6), (2, 2, 12, 6), seed=36)
    check_tiled(solution, arrays, values, tiles=tiles, fact="tiled-last")


@task(2)
@pytest.mark.parametrize(
    ("L", "S"), [(10, 10), (7, 18), (1, 13)], ids=["whole prompt", "after earlier keys", "one query"]
)
def test_tiled_causal(solution, L, S):
    """mask="causal", with the tiles that are computed"""
    arrays, values = qkv((2, 4, L, 6), (2, 2, S, 6), seed=40)
    require(
        L == 1 or min(tiles64(np.isfinite(causal64(L, S)), L, S, 4, 5)) < -(-S // 5), "no tile can be skipped"
    )
    check_tiled(solution, arrays, values, mask="causal", mask64=causal64(L, S), fact="tiled-mask")


@task(2)
@pytest.mark.parametrize(
    "shape",
    [(10, 17), (2, 1, 10, 17), (4, 10, 17), (2, 4, 10, 17)],
    ids=["L S", "N 1 L S", "H_q L S", "N H_q L S"],
)
@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_tiled_mask_arrays(solution, kind, shape):
    """boolean and additive masks, with dark tiles, and a row that sees nothing"""
    arrays, values = qkv((2, 4, 10, 6), (2, 2, 17, 6), seed=44)
    seen = hidden_tiles(shape, 4, 5, seed=47)
    if kind == "boolean":
        mask, mask64 = mx.array(seen), np.where(seen, 0.0, -INF)
    else:
        biases = np.random.default_rng(48).normal(0.0, 1.5, shape)
        mask, mask64 = exactly(np.where(seen, biases, -INF), F32)
    check_tiled(solution, arrays, values, mask=mask, mask64=mask64, fact="tiled-nothing")


@task(2)
def test_tiled_masks_that_broadcast(solution):
    """masks with an axis of length 1"""
    arrays, values = qkv((2, 4, 10, 6), (2, 2, 17, 6), seed=50)
    for shape in ((1, 17), (17,), (10, 1), (2, 1, 1, 17)):
        seen = np.random.default_rng(51).random(shape) < 0.6
        seen[..., -1] |= shape[-1] > 1
        mask64 = np.where(seen, 0.0, -INF)
        check_tiled(
            solution,
            arrays,
            values,
            mask=mx.array(seen),
            mask64=mask64 if mask64.ndim > 1 else mask64[None],
            fact="tiled-mask",
        )


@task(2)
def test_tiled_scale_and_axes(solution):
    """a scale of the caller's own, and no axis before the heads, or two"""
    for batch in ((), (2, 3)):
        arrays, values = qkv((*batch, 4, 9, 6), (*batch, 2, 11, 6), seed=53)
        check_tiled(solution, arrays, values, scale=0.9, mask="causal", mask64=causal64(9, 11), fact="tiled")


@task(2)
def test_tiled_large_scores(solution):
    """scores beyond the range of exp, growing from tile to tile for one query and falling for another"""
    arrays, values = qkv((2, 4, 8, 6), (2, 2, 15, 6), seed=56, scale=12.0)
    values[1] *= np.linspace(0.2, 2.0, 15)[:, None]
    arrays[1], values[1] = exactly(values[1], F32)
    scores = values[0][:, ::2] @ values[1].swapaxes(-2, -1) * 6**-0.5
    firsts = [scores[..., j : j + 5].max(axis=-1) for j in (0, 5, 10)]
    require((firsts[1] > firsts[0]).any() and (firsts[1] < firsts[0]).any(), "the maxima go one way only")
    require(scores.max() > 89 and scores.min() < -89, "exp of the scores stays in float32's range")
    check_tiled(solution, arrays, values, fact="tiled")


@task(2)
@pytest.mark.parametrize("mask", [None, "causal"], ids=["no mask", "causal"])
def test_tiled_memory(solution, mask):
    """the memory for 768 queries and as many keys, against that of their scores"""
    (q, k, v), _ = qkv((1, 4, 768, 8), (1, 2, 768, 8), seed=60)
    mx.eval(q, k, v)
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    out, _ = solution.flash_attention_tiled(q, k, v, mask=mask, query_tile=96, key_tile=128)
    mx.eval(out)
    peak, scores = max(0, mx.get_peak_memory() - before), 4 * 4 * 768 * 768
    what = (
        f"whether {peak} bytes at the peak are at most a third of the {scores} of all scores, mask={mask!r}"
    )
    check.exact(peak <= scores // 3, True, what=what, fact="tiled-memory")
