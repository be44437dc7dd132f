"""Day 2.1, caches and attention layer: exact for what is stored, float64 NumPy for what is computed.

One set of scenarios runs over every cache. What an update copies is counted by MLX's own allocator, so how a
cache is written does not matter.
"""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import as_float64, check, dtype_name, every_dtype, require, sample, task

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16


# ---- what the caches are told, and what they must answer ----


def new_tokens(shape, dtype=F32, *, seed):
    """(key, value) of `shape`, N x H x L x D; no number is the same in both."""
    key, key64 = sample(shape, dtype, seed=seed)
    value, value64 = sample(shape, dtype, seed=1000 + seed, mean=3.0)
    require(not np.any(key64 == value64), "a key is also a value")
    return key, value


def joined(arrays):
    """The tokens of N x H x L x D arrays one after the other, made without the code under test."""
    wide = np.concatenate([as_float64(a) for a in arrays], axis=2).astype(np.float32)
    return mx.array(wide).astype(arrays[0].dtype)


class Ledger:
    """A cache under test beside lists of the tokens it should hold."""

    def __init__(self, cache, name):
        self.cache, self.name = cache, name
        self.keys, self.values = [], []  # one array for each token: N x H x 1 x D
        self.told = ""  # what was done so far, for the failure's text

    def update(self, key, value, *, fact="kv-update", **options):
        self.told += f", {key.shape[2]} more" if self.told else f"{key.shape[2]} tokens"
        for i in range(key.shape[2]):
            self.keys.append(key[:, :, i : i + 1])
            self.values.append(value[:, :, i : i + 1])
        got = self.cache.update_and_fetch(key, value, **options)
        call = f"{self.name}.update_and_fetch, {self.told}, {tuple(key.shape)} {dtype_name(key.dtype)}"
        is_four = isinstance(got, tuple) and len(got) == 4
        check.exact(is_four, True, what=f"{call}: the result is a tuple of four", fact="kv-update")
        check.exact(got[0], joined(self.keys), what=f"the keys of {call}", fact=fact)
        check.exact(got[1], joined(self.values), what=f"the values of {call}", fact=fact)
        check.exact(got[2], len(self.keys), what=f"the offset returned by {call}", fact="kv-update")
        check.exact(self.cache.offset, len(self.keys), what=f"offset after {call}", fact="kv-offset")
        return got

    def rewind(self, n):
        self.told += f", {n} taken back"
        del self.keys[len(self.keys) - n :], self.values[len(self.values) - n :]
        self.cache.rewind(n)
        what = f"offset of {self.name} after rewind, {self.told}"
        check.exact(self.cache.offset, len(self.keys), what=what, fact="kv-offset")


def check_refused(call, *, what, fact):
    """`call()` raises ValueError."""
    raised = ""
    try:
        call()
    except ValueError:
        raised = "ValueError"
    check.exact(raised, "ValueError", what=f"the error raised by {what}", fact=fact)


def run_updates(make, name):
    ledger = Ledger(make(), name)
    for seed, L in enumerate((5, 1, 1, 3, 7)):
        ledger.update(*new_tokens((2, 3, L, 6), seed=seed))


def run_half_precision(make, name):
    for dtype in (F16, BF16):
        ledger = Ledger(make(), name)
        for seed, L in enumerate((3, 1, 2)):
            ledger.update(*new_tokens((2, 3, L, 6), dtype, seed=10 + seed))


def run_token_by_token(make, name):
    ledger = Ledger(make(), name)
    for seed in range(10):
        ledger.update(*new_tokens((1, 2, 1, 4), seed=20 + seed))


def run_views(make, name):
    """As a model makes them: projected to N x L x H x D, then transposed."""
    ledger = Ledger(make(), name)
    for seed, L in enumerate((4, 3)):
        key, value = (a.transpose(0, 2, 1, 3) for a in new_tokens((2, L, 3, 6), seed=40 + seed))
        ledger.update(key, value)


def run_mask(make, name):
    cache = make()
    masks = (None, "causal", mx.array([[0.0, -mx.inf]]))
    for seed, (mask, length) in enumerate(itertools.product(masks, (None, 2))):
        options = {} if length is None else {"mask_length": length}
        if mask is not None:
            options["mask"] = mask
        result = cache.update_and_fetch(*new_tokens((2, 3, 2, 4), seed=50 + seed), **options)
        shown = mask if mask is None or isinstance(mask, str) else "an array"
        what = f"{name}.update_and_fetch(key, value, mask_length={length}, mask={shown})[3] is that mask"
        check.exact(result[3] is mask, True, what=what, fact="kv-mask")


def run_rewind(make, name):
    ledger = Ledger(make(), name)
    seeds = itertools.count(60)
    for L, back in ((7, 2), (1, 0), (3, 1), (2, 5), (4, 3)):
        ledger.update(*new_tokens((2, 3, L, 6), seed=next(seeds)), fact="kv-rewind")
        ledger.rewind(back)
    ledger.update(*new_tokens((2, 3, 1, 6), seed=next(seeds)), fact="kv-rewind")


def run_rewind_everything(make, name):
    ledger = Ledger(make(), name)
    ledger.rewind(0)
    for seed in (70, 71):
        ledger.update(*new_tokens((2, 3, 5, 6), seed=seed), fact="kv-rewind")
        ledger.rewind(5)
    ledger.update(*new_tokens((2, 3, 2, 6), seed=72), fact="kv-rewind")


def run_rewind_too_far(make, name):
    ledger = Ledger(make(), name)
    check_refused(lambda: ledger.cache.rewind(1), what=f"{name}.rewind(1), empty", fact="kv-rewind")
    ledger.update(*new_tokens((2, 3, 4, 6), seed=80))
    for n in (5, -1):
        what = f"{name}.rewind({n}), 4 tokens stored"
        check_refused(lambda n=n: ledger.cache.rewind(n), what=what, fact="kv-rewind")
    ledger.update(*new_tokens((2, 3, 2, 6), seed=81), fact="kv-rewind")


def run_two_caches(make, name):
    one, other = Ledger(make(), name), Ledger(make(), "another " + name)
    for seed, (L, M) in enumerate(((4, 2), (1, 3), (1, 1))):
        one.update(*new_tokens((2, 3, L, 6), seed=90 + seed), fact="kv-own")
        other.update(*new_tokens((2, 3, M, 6), seed=95 + seed), fact="kv-own")
        if seed == 1:
            other.rewind(2)


def run_reads_only(make, name):
    """Neither what a cache was given nor what it returned changes later."""
    cache = make()
    kept = []
    for seed, (L, back) in enumerate(((3, 1), (1, 0), (1, 2), (2, 0), (4, 0))):
        given = new_tokens((2, 3, L, 6), seed=100 + seed)
        fetched = cache.update_and_fetch(*given)[:2]
        kept += [(as_float64(a), a) for a in (*given, *fetched)]
        cache.rewind(back)
    for before, array in kept:
        check.unchanged(before, array, what=f"an array given to or returned by {name}", fact="kv-reads")


def run_state(make, name):
    cache = make()
    check.exact(cache.offset, 0, what=f"offset of an empty {name}", fact="kv-offset")
    check.exact(cache.state, [], what=f"state of an empty {name}", fact="kv-state")
    given = [new_tokens((2, 3, L, 6), seed=110 + L) for L in (5, 2)]
    for key, value in given:
        cache.update_and_fetch(key, value)
    state = cache.state
    check.exact(type(state).__name__, "list", what=f"type of the state of {name}", fact="kv-state")
    check.exact(len(state), 2, what=f"length of the state of {name}", fact="kv-state")
    for array, part, which in zip(state, zip(*given, strict=True), ("keys", "values"), strict=True):
        what = f"the first 7 tokens of the {which} in the state of {name}, 5 tokens, 2 more"
        check.exact(array[:, :, :7], joined(part), what=what, fact="kv-state")


SCENARIOS = {
    "updates": run_updates,
    "half precision": run_half_precision,
    "token by token": run_token_by_token,
    "transposed arrays": run_views,
    "masks": run_mask,
    "rewind": run_rewind,
    "rewind to the start": run_rewind_everything,
    "rewind too far": run_rewind_too_far,
    "two caches": run_two_caches,
    "arrays only read": run_reads_only,
    "offset and state": run_state,
}
every_scenario = pytest.mark.parametrize("scenario", SCENARIOS)


# ---- task 1: the plainest cache ----


@task(1)
@every_scenario
def test_full_cache(solution, scenario):
    """the cache that joins"""
    SCENARIOS[scenario](solution.TinyKvFullCache, "TinyKvFullCache()")


@task(1)
def test_full_cache_holds_no_more(solution):
    """the cache that joins: state is exactly the tokens stored, also after a rewind"""
    cache = solution.TinyKvFullCache()
    tokens = [new_tokens((2, 3, L, 6), seed=120 + L) for L in (6, 3)]
    for key, value in tokens:
        cache.update_and_fetch(key, value)
    cache.rewind(4)
    for array, part, which in zip(cache.state, zip(*tokens, strict=True), ("keys", "values"), strict=True):
        what = f"the {which} in state after 6 tokens, 3 more, 4 taken back"
        check.exact(array, joined(part)[:, :, :5], what=what, fact="full-state")


# ---- task 2: the cache with room ahead ----


@task(2)
@every_scenario
def test_step_cache(solution, scenario):
    """the cache with room ahead, in steps of 4 tokens"""
    SCENARIOS[scenario](lambda: solution.TinyKvStepCache(step=4), "TinyKvStepCache(step=4)")


@task(2)
def test_step_cache_by_default(solution):
    """the cache with room ahead, in its default steps of 256 tokens"""
    ledger = Ledger(solution.TinyKvStepCache(), "TinyKvStepCache()")
    for seed, (L, room) in enumerate(((3, 256), (252, 256), (1, 256), (1, 512), (600, 1024))):
        ledger.update(*new_tokens((1, 2, L, 4), seed=130 + seed))
        shapes = [tuple(array.shape) for array in ledger.cache.state]
        what = f"shapes of the state of TinyKvStepCache(), {ledger.told}"
        check.exact(shapes, [(1, 2, room, 4)] * 2, what=what, fact="step-room")


@task(2)
def test_step_cache_room(solution):
    """the cache with room ahead: how much room there is, also after a rewind"""
    ledger = Ledger(solution.TinyKvStepCache(step=5), "TinyKvStepCache(step=5)")
    for seed, (L, back, room) in enumerate(((5, 0, 5), (1, 0, 10), (12, 9, 20), (6, 0, 20), (6, 21, 25))):
        ledger.update(*new_tokens((2, 3, L, 6), seed=140 + seed))
        ledger.rewind(back)
        shapes = [tuple(array.shape) for array in ledger.cache.state]
        what = f"shapes of the state of TinyKvStepCache(step=5), {ledger.told}"
        check.exact(shapes, [(2, 3, room, 6)] * 2, what=what, fact="step-room")


def allocated(act):
    """The bytes MLX has to find for what `act` returns, beyond what is in use.

    Counted twice, for the call and for the evaluation: what a call lets go of would hide as much of what the
    evaluation takes.
    """
    mx.synchronize()  # else what earlier work has just let go of still counts as in use
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    result = act()
    by_call = mx.get_peak_memory() - before
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(result)
    return max(0, by_call, mx.get_peak_memory() - before)


@task(2)
@pytest.mark.parametrize("L", [1, 3])
def test_step_cache_copies_nothing(solution, L):
    """the cache with room ahead: bytes allocated by an update that fits"""
    cache = solution.TinyKvStepCache(step=512)
    mx.eval(cache.update_and_fetch(*new_tokens((1, 4, 300, 128), seed=150))[:2])
    stored = 2 * 4 * 300 * 128 * 4
    tokens = [new_tokens((1, 4, L, 128), seed=151 + i) for i in range(20)]
    mx.eval(tokens)
    bytes_each = [allocated(lambda t=t: cache.update_and_fetch(*t)[:2]) for t in tokens]
    what = (
        f"updates of {L} token{'s' if L > 1 else ''} that allocate more than an eighth of the {stored} bytes "
        f"stored, of {len(bytes_each)}; the largest: {max(bytes_each)} bytes"
    )
    copying = [n for n in bytes_each if n > stored // 8]
    check.exact(len(copying), 0, what=what, fact="step-in-place")
    check.exact(cache.offset, 300 + 20 * L, what="offset after all of them", fact="kv-offset")


# ---- task 3: the attention layer ----


class PlainCache:
    """An oracle's cache: it joins, notes what it is given, and can return a mask of its own."""

    def __init__(self, key=None, value=None, other_mask=None):
        self.key, self.value, self.other_mask = key, value, other_mask
        self.updates = []

    @property
    def offset(self):
        return 0 if self.key is None else self.key.shape[2]

    @property
    def state(self):
        return [] if self.key is None else [self.key, self.value]

    def update_and_fetch(self, key, value, mask_length=None, mask=None):
        self.updates.append((key, value, mask_length, mask))
        before = [] if self.key is None else [self.key]
        self.key = mx.concatenate([*before, key], axis=2)
        self.value = mx.concatenate([*([] if self.value is None else [self.value]), value], axis=2)
        return self.key, self.value, self.offset, mask if self.other_mask is None else self.other_mask

    def rewind(self, n):
        keep = self.offset - n
        self.key, self.value = self.key[:, :, :keep], self.value[:, :, :keep]


N, E, H_Q, H, D = 2, 40, 6, 2, 8
THETA = 300.0


def turned64(x, positions):
    """x (N, L, heads, D) turned to `positions`, (L,) or (N, L), in split halves."""
    half = x.shape[-1] // 2
    angles = np.asarray(positions)[..., None] * THETA ** (-np.arange(half) / half)
    cos, sin = (f(angles)[..., None, :] for f in (np.cos, np.sin))
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def rope(x, offset):
    """Stands for day 1.2's RoPE: x (N, L, heads, D) to the positions of a slice, or of one for each row."""
    slices = offset if isinstance(offset, list) else [offset]
    odd = [type(rows).__name__ for rows in slices if not isinstance(rows, slice)]
    if odd:
        raise TypeError(f"rope takes x and a slice of positions, or a list of slices, not {odd[0]}")
    if isinstance(offset, list) and len(offset) != x.shape[0]:
        raise ValueError(f"rope is given {x.shape[0]} rows and {len(offset)} slices")
    positions = [np.arange(rows.start or 0, rows.stop) for rows in slices]
    if any(len(row) != x.shape[1] for row in positions):
        raise ValueError(f"rope is given {x.shape[1]} tokens and {[len(row) for row in positions]} positions")
    half = x.shape[-1] // 2
    angles = np.stack(positions)[..., None] * THETA ** (-np.arange(half) / half)
    cos, sin = (mx.array(f(angles).astype(np.float32))[:, :, None] for f in (np.cos, np.sin))
    a, b = x[..., :half].astype(F32), x[..., half:].astype(F32)
    return mx.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def normed64(x, weight):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 0.02) * weight


def norm_of(weight):
    """Stands for day 1.4's RMSNorm."""

    def norm(x):
        wide = x.astype(F32)
        wide = wide * mx.rsqrt(mx.mean(wide * wide, axis=-1, keepdims=True) + 0.02)
        return wide.astype(x.dtype) * weight

    return norm


class Layer:
    """A CachedAttention on seeded weights, and what it must compute."""

    def __init__(self, solution, dtype=F32, *, seed, norms=(), **options):
        shapes = {"q": (H_Q * D, E), "k": (H * D, E), "v": (H * D, E), "o": (E, H_Q * D)}
        self.dtype, self.w, self.b, self.norms, projections = dtype, {}, {}, {}, {}
        for i, (name, shape) in enumerate(shapes.items()):
            weight, self.w[name] = sample(shape, dtype, seed=seed + i, scale=shape[1] ** -0.5)
            bias, self.b[name] = sample(shape[:1], dtype, seed=seed + 10 + i, scale=0.5)
            projections[f"{name}_proj"] = lambda x, weight=weight, bias=bias: x @ weight.T + bias
        for name in norms:
            weight, self.norms[name] = sample((D,), dtype, seed=seed + ord(name), scale=0.3, mean=1.0)
            options[f"{name}_norm"] = norm_of(weight)
        self.layer = solution.CachedAttention(H_Q, H, **projections, rope=rope, **options)

    def projected64(self, name, x64, positions=None):
        """Queries, keys or values of x64 (N, L, E): (N, heads, L, D), normed and turned where they are."""
        y = (x64 @ self.w[name].T + self.b[name]).reshape(*x64.shape[:2], -1, D)
        y = normed64(y, self.norms[name]) if name in self.norms else y
        return (y if positions is None else turned64(y, positions)).swapaxes(1, 2)

    def attended64(self, query, key, value, mask):
        """(the result for queries (N, H_q, L, D), the size of its numbers)."""
        key, value = (np.repeat(a, H_Q // H, axis=1) for a in (key, value))
        scores = query @ key.swapaxes(-2, -1) / np.sqrt(D) + mask
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return self.out64((weights @ value).swapaxes(1, 2).reshape(len(query), -1, H_Q * D))

    def out64(self, heads):
        out = heads @ self.w["o"].T + self.b["o"]
        return out, np.sqrt((heads**2).mean(axis=-1, keepdims=True) + (self.b["o"] ** 2).mean())


def causal64(L, S):
    return np.where(np.arange(S) <= np.arange(S - L, S)[:, None], 0.0, -np.inf)


# Counted as on day 1.3: projection, norm, rotation, scores and softmax, each rounded in the dtype.
STORED, ATTENDED = 14, 34


def check_stored(cache, layer, x64, offset, *, what):
    """What the cache was given in its last update, x64 (N, L, E) being the new tokens."""
    L = x64.shape[1]
    key, value, mask_length, _ = cache.updates[-1]
    positions = np.arange(offset, offset + L)
    wants = {
        "keys": (key, layer.projected64("k", x64, positions), "attn-stored"),
        "values": (value, layer.projected64("v", x64), "attn-positions"),
    }
    for name, (got, want, fact) in wants.items():
        check.close(
            got,
            want,
            dtype=layer.dtype,
            terms=E,
            roundings=STORED,
            magnitude=np.sqrt((want**2).mean(axis=-1, keepdims=True)) * 2,
            what=f"the {name} given to the cache by {what}",
            fact=fact,
        )
    check.exact(mask_length, L, what=f"mask_length given to the cache by {what}", fact="attn-update")


def check_result(got, want, size, layer, *, what, fact):
    check.close(
        got,
        want,
        dtype=layer.dtype,
        terms=H_Q * D,
        roundings=ATTENDED,
        magnitude=size * 2,
        what=what,
        fact=fact,
    )


def check_chunks(layer, cuts, *, seed, fact, shown=""):
    """The layer on a sequence in chunks, against causal attention over all of it at once."""
    S = sum(cuts)
    x, x64 = sample((N, S, E), layer.dtype, seed=seed)
    positions = np.arange(S)
    key, value = layer.projected64("k", x64, positions), layer.projected64("v", x64)
    want, size = layer.attended64(layer.projected64("q", x64, positions), key, value, causal64(S, S))
    cache, start = PlainCache(), 0
    for call, L in enumerate(cuts, start=1):
        end = start + L
        part = x[:, start:end]
        got = layer.layer(part, start, cache, "causal" if L > 1 else None)
        what = (
            f"CachedAttention(...)(x, {start}, cache, mask), x {(N, L, E)} {dtype_name(layer.dtype)}{shown}"
        )
        check.exact(len(cache.updates), call, what=f"updates of the cache up to {what}", fact="attn-update")
        check_stored(cache, layer, x64[:, start:end], start, what=what)
        check_result(got, want[:, start:end], size[:, start:end], layer, what=what, fact=fact)
        check.unchanged(x64[:, start:end], part, what=f"x after {what}", fact="attn-result")
        start = end


@task(3)
@every_dtype
def test_attention_in_chunks(solution, dtype):
    """the layer: a prompt, single tokens and a chunk behind them"""
    check_chunks(Layer(solution, dtype, seed=200), (4, 1, 1, 3), seed=230, fact="attn-positions")


@task(3)
def test_attention_token_by_token(solution):
    """the layer: a sequence of single tokens, and one whole prompt"""
    layer = Layer(solution, seed=240)
    check_chunks(layer, (1,) * 6, seed=270, fact="attn-positions")
    check_chunks(layer, (7,), seed=271, fact="attn-positions")


@task(3)
@every_dtype
def test_attention_with_norms(solution, dtype):
    """the layer: Qwen3's norms on query and key"""
    layer = Layer(solution, dtype, seed=280, norms=("q", "k"))
    check_chunks(layer, (3, 1, 2), seed=310, fact="attn-stored", shown=", q_norm, k_norm")


@task(3)
@pytest.mark.parametrize("name", ["q", "k"])
def test_attention_with_one_norm(solution, name):
    """the layer: one of the two norms alone"""
    layer = Layer(solution, seed=320, norms=(name,))
    check_chunks(layer, (3, 1), seed=350, fact="attn-stored", shown=f", {name}_norm alone")


@task(3)
@pytest.mark.parametrize("L", [1, 4])
def test_attention_reads_the_cache(solution, L):
    """the layer: keys and values come from the cache, whoever put them there"""
    layer = Layer(solution, seed=360)
    (old_key, key64), (old_value, value64) = (sample((N, H, 9, D), seed=390 + i) for i in (0, 1))
    x, x64 = sample((N, L, E), seed=392)
    positions = np.arange(9, 9 + L)
    key = np.concatenate([key64, layer.projected64("k", x64, positions)], axis=2)
    value = np.concatenate([value64, layer.projected64("v", x64)], axis=2)
    want, size = layer.attended64(layer.projected64("q", x64, positions), key, value, causal64(L, 9 + L))
    got = layer.layer(x, 9, PlainCache(old_key, old_value), "causal")
    what = f"CachedAttention(...)(x, 9, cache, 'causal'), x {(N, L, E)}, 9 tokens in the cache"
    check_result(got, want, size, layer, what=what, fact="attn-attends")


@task(3)
def test_attention_with_an_offset_for_each_row(solution):
    """the layer: rows that stand at different positions, as day 2.6's requests do"""
    layer = Layer(solution, seed=480, norms=("q", "k"))
    for seed, (L, offset) in enumerate(((1, [9, 4]), (3, [2, 9]))):
        old = [sample((N, H, 9, D), seed=510 + 10 * seed + i) for i in (0, 1)]
        x, x64 = sample((N, L, E), seed=515 + 10 * seed)
        positions = np.array(offset)[:, None] + np.arange(L)  # (N, L)
        key = np.concatenate([old[0][1], layer.projected64("k", x64, positions)], axis=2)
        value = np.concatenate([old[1][1], layer.projected64("v", x64)], axis=2)
        empty = np.arange(9 + L) < 9 - np.array(offset)[:, None]  # rows end together, padded in front
        mask64 = causal64(L, 9 + L) + np.where(empty, -np.inf, 0.0)[:, None, None]
        want, size = layer.attended64(layer.projected64("q", x64, positions), key, value, mask64)
        cache = PlainCache(old[0][0], old[1][0], other_mask=mx.array(mask64.astype(np.float32)))
        got = layer.layer(x, offset, cache, "causal" if L > 1 else None)
        what = f"CachedAttention(...)(x, {offset}, cache, mask), x {(N, L, E)}"
        check_result(got, want, size, layer, what=what, fact="attn-rows")


@task(3)
def test_attention_takes_the_mask_of_the_cache(solution):
    """the layer: the mask goes to the cache, and attention gets the one that comes back"""
    layer = Layer(solution, seed=400)
    hidden = np.random.default_rng(430).random((N, 1, 3, 8)) < 0.4
    hidden[..., 0] = False
    mask64 = np.where(hidden, -np.inf, 0.0)
    require(hidden[0].sum() != hidden[1].sum(), "both rows of the batch hide as many keys")
    old = [sample((N, H, 5, D), seed=431 + i) for i in (0, 1)]
    x, x64 = sample((N, 3, E), seed=433)
    positions = np.arange(5, 8)
    key = np.concatenate([old[0][1], layer.projected64("k", x64, positions)], axis=2)
    value = np.concatenate([old[1][1], layer.projected64("v", x64)], axis=2)
    want, size = layer.attended64(layer.projected64("q", x64, positions), key, value, mask64)
    cache = PlainCache(old[0][0], old[1][0], other_mask=mx.array(mask64.astype(np.float32)))
    got = layer.layer(x, 5, cache, "causal")
    what = "CachedAttention(...)(x, 5, cache, 'causal'), x (2, 3, 40), a cache with a mask of its own"
    check.exact(
        cache.updates[-1][3], "causal", what=f"the mask given to the cache by {what}", fact="attn-update"
    )
    check_result(got, want, size, layer, what=what, fact="attn-attends")


@task(3)
def test_attention_is_an_argument(solution):
    """the layer: attention is the function it was given"""
    calls = []
    planted, planted64 = sample((N, H_Q, 3, D), seed=440)

    def attention(query, key, value, scale=None, mask=None):
        calls.append((query, key, value, mask))
        return planted

    layer = Layer(solution, seed=441, attention=attention)
    x, x64 = sample((N, 3, E), seed=470)
    cache = PlainCache()
    got = layer.layer(x, 0, cache, "causal")
    what = "CachedAttention(..., attention=attention)(x, 0, cache, 'causal'), x (2, 3, 40)"
    check.exact(len(calls), 1, what=f"calls of attention in {what}", fact="attn-attends")
    query, key, value, mask = calls[0]
    want = layer.projected64("q", x64, np.arange(3))
    size = np.sqrt((want**2).mean(axis=-1, keepdims=True)) * 2
    check.close(
        query,
        want,
        dtype=F32,
        terms=E,
        roundings=STORED,
        magnitude=size,
        what=f"the query of attention in {what}",
        fact="attn-attends",
    )
    check.exact(key, cache.key, what=f"the key of attention in {what}", fact="attn-attends")
    check.exact(value, cache.value, what=f"the value of attention in {what}", fact="attn-attends")
    check.exact(mask, "causal", what=f"the mask of attention in {what}", fact="attn-attends")
    heads = planted64.swapaxes(1, 2).reshape(N, 3, H_Q * D)
    want, size = layer.out64(heads)
    check_result(got, want, size, layer, what=what, fact="attn-attends")
