"""Day 2.6, the mask and the cache: exact against lists of tokens kept in NumPy, slot by slot.

What an update copies and what a cache holds on to is counted by MLX's own allocator. The last check does
whatever may be done to a cache in random order, and shows the shortest way in which it fails.
"""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import (
    as_float64,
    check,
    dtype_name,
    every_case,
    every_dtype,
    require,
    sample,
    task,
)

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16


# ---- task 1: the mask ----


def mask64(offset, L):
    """0 where row b's query i may look, -inf elsewhere, one entry at a time."""
    S = max(offset) + L
    mask = np.full((len(offset), 1, L, S), -np.inf)
    for b, n in enumerate(offset):
        for i in range(L):
            for j in range(S):
                own = j - (S - L - n)  # which of the row's n + L tokens stands in column j
                if 0 <= own <= n + i:
                    mask[b, 0, i, j] = 0.0
    return mask


def check_mask(solution, offset, L, dtype=F32):
    want = mx.array(mask64(offset, L).astype(np.float32)).astype(dtype)
    what = f"batch_mask({offset}, {L}, mx.{dtype_name(dtype)})"
    given = list(offset)
    check.exact(solution.batch_mask(given, L, dtype), want, what=what, fact="mask")
    check.exact(given, list(offset), what=f"the list given to {what}", fact="mask")


@task(1)
@every_dtype
def test_mask_one_token(solution, dtype):
    """the mask for one new token in rows of different lengths"""
    check_mask(solution, [4, 2, 5], 1, dtype)


@task(1)
def test_mask_chunk(solution):
    """the mask for several new tokens in each row"""
    for offset, L in (([3, 6, 1], 4), ([2, 9], 3), ([5, 5, 2, 3], 2)):
        check_mask(solution, offset, L)


@task(1)
def test_mask_empty_rows(solution):
    """the mask of rows that held nothing: the new tokens, and never nothing at all"""
    for offset, L in (([0, 3], 1), ([4, 0, 0], 3), ([0, 0], 2), ([0], 1)):
        check_mask(solution, offset, L)


@task(1)
def test_mask_equal_rows(solution):
    """the mask of rows that are equally long, and of one row"""
    for offset, L in (([4, 4, 4], 1), ([3, 3], 2), ([6], 1), ([2], 5)):
        check_mask(solution, offset, L)


# ---- task 2: a cache under test, beside what it must hold ----


class Prefilled:
    """One request's cache of n tokens, with more room than tokens, as TinyKvStepCache has."""

    def __init__(self, key, value, room=3):
        self._offset = key.shape[2]
        behind = mx.full((*key.shape[:2], room, key.shape[3]), 77.0, key.dtype)
        self._state = [mx.concatenate([a, behind], axis=2) for a in (key, value)]

    @property
    def offset(self):
        return self._offset

    @property
    def state(self):
        return list(self._state)


def tokens_of(shape, dtype=F32, *, seed):
    """(key, value) of `shape`, N x H x L x D, without zeros; no number is the same in both."""
    key, key64 = sample(shape, dtype, seed=seed)
    value, value64 = sample(shape, dtype, seed=5000 + seed, mean=3.0)
    require(not np.any(key64 == value64) and np.all(key64) and np.all(value64), "a number is 0 or repeated")
    return key, value


class Slots:
    """A BatchingKvCache under test beside the tokens that each of its slots should hold."""

    def __init__(self, solution, B, max_seq_len=100, dtype=F32, H=2, D=3, seed=0, **options):
        self.cache = solution.BatchingKvCache(B, max_seq_len, **options)
        self.B, self.H, self.D, self.dtype = B, H, D, dtype
        self.held = [np.zeros((2, H, 0, D)) for _ in range(B)]  # keys and values
        self.seeds = itertools.count(100 * seed)
        self.name = f"BatchingKvCache({B}, {max_seq_len})"
        self.told = []

    def __str__(self):
        return f"{self.name}: {', '.join(self.told) or 'nothing yet'}"

    @property
    def offset(self):
        return [tokens.shape[2] for tokens in self.held]

    def prefilled(self, n, **options):
        return Prefilled(*tokens_of((1, self.H, n, self.D), self.dtype, seed=next(self.seeds)), **options)

    def add(self, n, id, fact="cache-add", **options):
        request = self.prefilled(n, **options)
        self.told.append(f"add {n} to slot {id}")
        self.held[id] = np.stack([as_float64(a)[0, :, :n] for a in request.state])
        self.cache.add_request(request, id)
        self.check_offset(fact)

    def remove(self, id):
        self.told.append(f"remove slot {id}")
        self.held[id] = self.held[id][:, :, :0]
        self.cache.remove_request(id)
        self.check_offset(fact="cache-add")

    def check_offset(self, fact="cache-offset"):
        check.exact(self.cache.offset, self.offset, what=f"offset of {self}", fact=fact)

    def update(self, L=1, *, given=None, fact="cache-update", mask=None):
        self.told.append(f"update with {L}")
        key, value = given or tokens_of((self.B, self.H, L, self.D), self.dtype, seed=next(self.seeds))
        before = self.offset
        new = np.stack([as_float64(key), as_float64(value)], axis=1)  # (B, 2, H, L, D)
        S = max(before) + L
        want = np.zeros((self.B, 2, self.H, S, self.D))
        for b, tokens in enumerate(self.held):
            if before[b]:
                self.held[b] = np.concatenate([tokens, new[b]], axis=2)
                want[b, :, :, S - self.held[b].shape[2] :] = self.held[b]
        got = self.cache.update_and_fetch(key, value, mask_length=L, mask=mask)
        is_four = isinstance(got, tuple) and len(got) == 4
        check.exact(is_four, True, what=f"the last result is a tuple of four, {self}", fact="cache-update")
        for which, array in enumerate(("keys", "values")):
            wanted = mx.array(want[:, which].astype(np.float32)).astype(self.dtype)
            rows = "cache-rows" if fact == "cache-update" else fact
            check.exact(got[which], wanted, what=f"the {array} returned last, {self}", fact=rows)
        check.exact(got[2], self.offset, what=f"the offset returned last, {self}", fact=fact)
        self.check_offset()
        wanted = mx.array(mask64(before, L).astype(np.float32)).astype(self.dtype)
        check.exact(got[3], wanted, what=f"the mask returned last, {self}", fact="cache-update")
        return got


@task(2)
@every_dtype
def test_cache_rows_end_together(solution, dtype):
    """requests of different lengths, one token at a time"""
    slots = Slots(solution, 3, dtype=dtype)
    slots.add(4, 0)
    slots.add(6, 2)
    slots.add(1, 1)
    for _ in range(4):
        slots.update()


@task(2)
def test_cache_random(solution):
    """requests come, go and grow in random order: the shortest order that fails"""

    def operation(pick):
        return pick(0, 2), pick(0, 2), pick(1, 6), pick(1, 3)

    def acts(steps):
        """What to do at each step, and to which slot: a slot that is free can only be filled."""
        taken = set()
        for kind, id, tokens, L in steps:
            if kind == 0 or (kind == 1 and id in taken):
                yield "update", L
            elif id in taken:
                taken.remove(id)
                yield "remove", id
            else:
                taken.add(id)
                yield "add", tokens, id

    def run(steps):
        slots = Slots(solution, 3, seed=10, step=4)
        for name, *arguments in acts(steps):
            getattr(slots, name)(*arguments)

    def shown(steps):
        told = {"update": "update with {}", "remove": "remove slot {}", "add": "add {} to slot {}"}
        return "three slots: " + ", ".join(told[name].format(*rest) for name, *rest in acts(steps))

    every_case(lambda pick: pick.several(operation, 1, 14), run, examples=40, shown=shown)


@task(2)
def test_cache_join_and_leave(solution):
    """requests join and leave between updates, longer and shorter ones, into slots that were used"""
    slots = Slots(solution, 3, seed=1)
    slots.add(2, 1)
    slots.update()
    slots.add(7, 0)  # longer than everything so far
    slots.update()
    slots.remove(1)
    slots.update()
    slots.add(3, 1)  # shorter than what was there
    slots.update()
    slots.remove(0)  # the longest leaves
    slots.update()
    slots.add(12, 2)
    slots.add(5, 0)
    slots.update()
    slots.update()


@task(2)
def test_cache_chunks(solution):
    """updates of several tokens: causal within them, for every row"""
    slots = Slots(solution, 3, seed=2)
    slots.add(3, 2)
    slots.add(5, 0)
    for L in (4, 1, 2):
        slots.update(L)


@task(2)
def test_cache_empty_slots(solution):
    """empty slots stay empty, and their rows are zeros"""
    slots = Slots(solution, 4, seed=3)
    slots.check_offset()
    slots.update(2, fact="cache-rows")  # nobody is there at all
    slots.add(3, 2)
    slots.update()
    slots.update(3)
    slots.add(2, 0)
    slots.update()
    slots.remove(2)
    slots.update()
    slots.remove(0)
    slots.update(fact="cache-rows")
    slots.add(2, 1)
    slots.update()


@task(2)
def test_cache_mask_is_its_own(solution):
    """whatever mask it is given, it returns its own"""
    for mask in (None, "causal", mx.zeros((1, 1))):
        slots = Slots(solution, 2, seed=4)
        slots.add(3, 0)
        slots.add(1, 1)
        slots.update(2, mask=mask)


@task(2)
def test_cache_nothing_is_left(solution):
    """NaN in a request that has ended, or in an empty slot's new tokens, reaches nobody"""
    slots = Slots(solution, 2, seed=5)
    nan = mx.full((2, 2, 9, 3), mx.nan)
    for id in (1, 0):
        slots.cache.add_request(Prefilled(nan[:1], nan[:1]), id)
        slots.told.append(f"add 9 NaN to slot {id}")
        slots.held[id] = np.full((2, 2, 10, 3), np.nan)
    slots.cache.update_and_fetch(nan[:, :, :1], nan[:, :, :1])
    slots.told.append("update with 1 NaN")
    for id in (1, 0):
        slots.remove(id)
        slots.add(3, id)
    slots.update(fact="cache-rows")
    slots.remove(0)
    key, value = tokens_of((2, 2, 1, 3), seed=900)
    bad = mx.array([True, False])[:, None, None, None]
    given = tuple(mx.where(bad, mx.nan, a) for a in (key, value))
    mx.eval(given)
    slots.told.append("the next with NaN in slot 0's row")
    before = slots.offset
    got = slots.cache.update_and_fetch(*given)
    for array in got[:2]:
        what = f"NaN in what was returned last, {slots}"
        check.exact(bool(mx.any(mx.isnan(array)).item()), False, what=what, fact="cache-rows")
    check.exact(slots.cache.offset, [0, before[1] + 1], what=f"offset of {slots}", fact="cache-offset")


@task(2)
def test_cache_refuses(solution):
    """what cannot be done raises ValueError and changes nothing"""
    slots = Slots(solution, 3, max_seq_len=8, seed=6)
    slots.add(4, 1)
    slots.update()

    def empty():
        request = slots.prefilled(1)
        request._offset, request._state = 0, []
        return request

    refused = {
        "add_request(prefilled, 3)": lambda: slots.cache.add_request(slots.prefilled(2), 3),
        "add_request(prefilled, -1)": lambda: slots.cache.add_request(slots.prefilled(2), -1),
        "add_request(prefilled, 1), taken": lambda: slots.cache.add_request(slots.prefilled(2), 1),
        "add_request(9 tokens, 0)": lambda: slots.cache.add_request(slots.prefilled(9), 0),
        "add_request(no tokens, 0)": lambda: slots.cache.add_request(empty(), 0),
        "remove_request(0), empty": lambda: slots.cache.remove_request(0),
        "remove_request(3)": lambda: slots.cache.remove_request(3),
        "remove_request(-2)": lambda: slots.cache.remove_request(-2),
        "update_and_fetch with 4 tokens": lambda: slots.cache.update_and_fetch(
            *tokens_of((3, 2, 4, 3), seed=700)
        ),
    }
    for call, act in refused.items():
        check_refused(act, what=f"{call}, {slots}", fact="cache-refuses")
        slots.check_offset(fact="cache-refuses")
    slots.update(fact="cache-refuses")
    slots.add(8, 0)
    slots.add(6, 2)
    slots.remove(0)
    slots.update(2, fact="cache-refuses")


def check_refused(call, *, what, fact):
    """`call()` raises ValueError."""
    raised = ""
    try:
        call()
    except ValueError:
        raised = "ValueError"
    check.exact(raised, "ValueError", what=f"the error raised by {what}", fact=fact)


@task(2)
def test_cache_reads_only(solution):
    """lists and arrays that were given or returned stay as they were, and two caches share nothing"""
    slots, other = Slots(solution, 2, seed=7), Slots(solution, 2, seed=8)
    kept, offsets = [], []

    def note(*arrays):
        offsets.append((list(slots.cache.offset), slots.cache.offset))
        kept.extend((as_float64(a), a) for a in arrays)

    for step in range(3):
        request = slots.prefilled(3 + step)
        note(*request.state)
        slots.held[0] = np.stack([as_float64(a)[0, :, : 3 + step] for a in request.state])
        slots.told.append(f"add {3 + step} to slot 0")
        slots.cache.add_request(request, 0)
        if step == 0:
            slots.add(2, 1)
        other.add(4, step % 2)
        for _ in range(2):
            given = tokens_of((2, 2, 1, 3), seed=800 + next(slots.seeds))
            got = slots.update(given=given)
            note(*given, *got[:2], got[3])
            offsets.append((list(got[2]), got[2]))
            other.update()
        slots.remove(0)
        other.remove(step % 2)
        note()
    for before, array in kept:
        check.unchanged(before, array, what=f"an array given to or returned by {slots}", fact="cache-reads")
    before, after = ([list(pair[i]) for pair in offsets] for i in (0, 1))
    check.exact(after, before, what=f"the offset lists that were read before, {slots}", fact="cache-offset")


@task(2)
def test_cache_attention_by_rows(solution):
    """attention over what it returns: each row as if it were alone, and an empty slot's row finite"""
    H, D = 2, 8
    slots = Slots(solution, 4, H=H, D=D, seed=9)
    slots.add(5, 3)
    slots.add(2, 0)
    slots.update()
    slots.add(9, 1)
    slots.remove(3)
    L = 3
    key, value, _, mask = slots.update(L)
    query, query64 = sample((4, H, L, D), seed=950)
    scores = query @ key.swapaxes(-1, -2) * D**-0.5 + mask
    got = mx.softmax(scores, axis=-1) @ value
    want = np.zeros((4, H, L, D))
    for b, tokens in enumerate(slots.held):
        n = tokens.shape[2]
        if n:
            own = query64[b] @ tokens[0].swapaxes(-1, -2) * D**-0.5
            own = own + np.where(np.arange(n) <= np.arange(n - L, n)[:, None], 0.0, -np.inf)
            weights = np.exp(own - own.max(axis=-1, keepdims=True))
            want[b] = weights / weights.sum(axis=-1, keepdims=True) @ tokens[1]
    what = f"attention over what was returned last, {slots}"
    check.close(got, want, dtype=F32, terms=12, roundings=16, magnitude=12.0, what=what, fact="cache-rows")


def allocated(act):
    """The bytes MLX has to find for what `act` returns, beyond what is in use (as on day 2.1)."""
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    result = act()
    by_call = mx.get_peak_memory() - before
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(result)
    return max(0, by_call, mx.get_peak_memory() - before)


def filled(solution, lengths, max_seq_len, **options):
    """A cache of four slots with these tokens in them, 4 KV heads of 64 numbers, computed."""
    cache = solution.BatchingKvCache(4, max_seq_len, **options)
    for id, n in enumerate(lengths):
        cache.add_request(Prefilled(*(mx.ones((1, 4, n, 64)),) * 2), id)
    mx.eval(cache.state)
    return cache


@task(2)
@pytest.mark.parametrize("L", [1, 3])
def test_cache_copies_nothing(solution, L):
    """bytes allocated by an update: rarely more than the new tokens take"""
    cache = filled(solution, (300, 200, 120), 1000)
    new = mx.ones((4, 4, L, 64))
    mx.eval(new)
    stored = 2 * 4 * 4 * 300 * 64 * 4
    fetched = [allocated(lambda: fetch(cache, new)) for _ in range(48)]
    copying = [n for n in fetched if n > stored // 8]
    most = 1 + 48 * L // 64
    what = (
        f"whether at most {most} of 48 updates of {L} token{'s' if L > 1 else ''} allocate more than an "
        f"eighth of the {stored} bytes stored: {len(copying)} do, the largest takes {max(fetched)} bytes"
    )
    check.exact(len(copying) <= most, True, what=what, fact="cache-in-place")
    want = [n + 48 * L if n else 0 for n in (300, 200, 120, 0)]
    check.exact(cache.offset, want, what="offset after all of them", fact="cache-offset")


def fetch(cache, new):
    key, value, _, mask = cache.update_and_fetch(new, new)
    return key, value, mask


@task(2)
def test_cache_room_is_bounded(solution):
    """the room after 400 updates by requests that come and go"""
    cache = solution.BatchingKvCache(2, 20, step=4)
    new = mx.ones((2, 1, 1, 2))
    widest = 0
    for step in range(400):
        id = step // 5 % 2
        if step % 5 == 0:
            if cache.offset[id]:
                cache.remove_request(id)
            tokens = mx.ones((1, 1, 9, 2))
            cache.add_request(Prefilled(tokens, tokens), id)
        mx.eval(fetch(cache, new))
        widest = max(widest, *(array.shape[2] for array in cache.state))
    what = f"whether the arrays of state had fewer than 28 columns in 400 updates: they had up to {widest}"
    check.exact(widest < 28, True, what=what, fact="cache-room")


@task(2)
def test_cache_lets_go(solution):
    """with all slots empty nothing is held"""
    start = solution.BatchingKvCache(4, 1000)
    check.exact(start.state, [], what="state of an empty BatchingKvCache(4, 1000)", fact="cache-room")
    mx.synchronize()
    before = mx.get_active_memory()
    cache = filled(solution, (300, 200), 1000)
    held = mx.get_active_memory() - before
    check.exact(len(cache.state), 2, what="arrays in state, two requests stored", fact="cache-room")
    new = mx.ones((4, 4, 1, 64))
    mx.eval(fetch(cache, new))
    cache.remove_request(0)
    cache.remove_request(1)
    mx.synchronize()
    left = mx.get_active_memory() - before
    check.exact(cache.state, [], what="state when both requests are removed", fact="cache-room")
    what = f"whether less than a tenth of {held} bytes is held when both requests are removed: {left} are"
    check.exact(left < held // 10, True, what=what, fact="cache-room")
