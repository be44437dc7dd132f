"""Day 2.6, requests and batches: a fake model whose next token depends on everything that its row may see.

Keys hold positions and values hold tokens, and they go through the caches. The next token is computed from
what the caches return and from the mask, so that a token lost, repeated, misplaced or taken from another
request changes all that follow. How long a reply gets is told by the first letter of its prompt: "Dxyz" asks
for three tokens.
"""

import functools
import gc
import itertools
import math
import weakref
import zlib

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import check, dtype_name, every_case, every_dtype, require, task

F32 = mx.float32
VOCABULARY = 128
START, END, HALT = 1, 2, 3  # special tokens; END and HALT end a reply
LETTERS = range(ord("a"), ord("z") + 1)  # what replies are made of
LETTER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # what prompts are made of
MOST_CALLS = 500


# ---- fakes ----


class FakeTokenizer:
    """One token a character. encode puts START in front unless it is told not to."""

    eos_token_id = END
    eos_token_ids = frozenset({END, HALT})

    def __len__(self):
        return VOCABULARY

    def encode(self, text, add_special_tokens=True):
        return [START] * add_special_tokens + [ord(letter) for letter in text]

    def decode(self, token_ids, skip_special_tokens=False):
        token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
        special = "" if skip_special_tokens else "<|special|>"
        return "".join(chr(t) if t > HALT else special for t in token_ids)


class FakeCache:
    """One request's cache, with the interface of TinyKvCache and more room than tokens."""

    def __init__(self, made):
        self._offset, self._state = 0, []
        made.append(weakref.ref(self))

    @property
    def offset(self):
        return self._offset

    @property
    def state(self):
        return list(self._state)

    def update_and_fetch(self, key, value, mask_length=None, mask=None):
        if self._state:
            end = self._offset
            key, value = (
                mx.concatenate([old[:, :, :end], new], axis=2)
                for old, new in zip(self._state, (key, value), strict=True)
            )
        self._offset = key.shape[2]
        behind = mx.full((1, 1, 3, key.shape[3]), 77.0)
        self._state = [mx.concatenate([a, behind], axis=2) for a in (key, value)]
        return key, value, self._offset, mask

    def rewind(self, n):
        self._offset -= n


class FakeModel:
    """(B, L) integer ids, offset or one for each row, caches -> (B, L, V) logits. Notes its calls."""

    num_hidden_layers = 2

    def __init__(self, dtype=F32):
        self.dtype = dtype
        self.calls = []  # (ids, offset) of each
        self.seen = []  # of each call: what the last query of each row sees, (position, token) in each layer
        self.caches = []  # weak references to all that were made
        self.alive = []  # of each call with a batch: how many of those there were
        self.made = 0

    def create_kv_cache(self):
        self.made += 1
        return [FakeCache(self.caches) for _ in range(self.num_hidden_layers)]

    def __call__(self, inputs, offset, cache):
        if not (isinstance(inputs, mx.array) and mx.issubdtype(inputs.dtype, mx.integer)):
            raise TypeError("the model takes one integer mx.array, (B, L)")
        if inputs.ndim != 2 or inputs.size == 0:
            raise ValueError(f"the model takes inputs of shape (B, L) with L > 0, not {tuple(inputs.shape)}")
        B, L = inputs.shape
        starts = list(offset) if isinstance(offset, list) else [offset] * B
        if [type(n) for n in starts] != [int] * B:
            raise TypeError(f"offset is an int or a list of {B} of them, not {offset}")
        if len(cache) != self.num_hidden_layers:
            raise ValueError(f"the model takes {self.num_hidden_layers} caches, not {len(cache)}")
        self.calls.append((inputs.tolist(), list(offset) if isinstance(offset, list) else offset))
        if len(self.calls) > MOST_CALLS:
            raise RuntimeError(f"the model was called {len(self.calls)} times: does the loop end?")
        if isinstance(offset, list):
            self.alive.append(sum(ref() is not None for ref in self.caches) // self.num_hidden_layers)
        position = mx.array(starts, dtype=F32)[:, None] + mx.arange(L)  # (B, L)
        layers = []
        for number, layer in enumerate(cache):
            extra = mx.full((B, L), number + 1, F32)
            key = mx.stack([position, extra], axis=-1)[:, None]  # (B, 1, L, 2)
            value = mx.stack([inputs.astype(F32), extra], axis=-1)[:, None]
            key, value, _, mask = layer.update_and_fetch(
                key, value, mask_length=L, mask="causal" if L > 1 else None
            )
            layers.append((np.array(key), np.array(value), visible(mask, B, L, key.shape[2])))
        self.seen.append([[pairs(layer, b, L - 1) for layer in layers] for b in range(B)])
        return self.logits(inputs)

    def logits(self, inputs):
        """Of the last query what comes next; of those before it nothing that could be taken for that."""
        last = np.stack([self.row(seen) for seen in self.seen[-1]])  # (B, V)
        before = np.broadcast_to(planted_row(START), (inputs.shape[0], inputs.shape[1] - 1, VOCABULARY))
        return mx.array(np.concatenate([before, last[:, None]], axis=1)).astype(self.dtype)

    def row(self, seen):
        first, *others = seen
        token = next_token_of([token for _, token in first], zlib.crc32(repr(seen).encode()))
        right = all(layer == first for layer in others) and [p for p, _ in first] == [*range(len(first))]
        return planted_row(token if right else LETTERS[zlib.crc32(repr(seen).encode()) % 26])


def visible(mask, B, L, S):
    """Which columns each query sees, (B, L, S)."""
    seen = np.tril(np.ones((L, S), dtype=bool), S - L) if mask == "causal" else np.ones((L, S), dtype=bool)
    if isinstance(mask, mx.array):
        additive = np.array(mask.astype(F32))
        if additive.shape not in ((B, 1, L, S), (1, 1, L, S), (L, S)):
            raise ValueError(f"a mask {additive.shape} came back with {S} keys, for inputs {(B, L)}")
        seen = additive.reshape(-1, L, S) > -1e4
    return np.broadcast_to(seen, (B, L, S))


def pairs(layer, b, i):
    """(position, token) of what row b's query i sees in a layer, in order."""
    key, value, seen = layer
    columns = seen[b, i]
    return [(int(p), int(t)) for p, t in zip(key[b, 0, columns, 0], value[b, 0, columns, 0], strict=True)]


def next_token_of(history, chance):
    """The token after a history: a letter by chance, or END or HALT when the reply is long enough."""
    written = sum(1 for token in history if token in LETTERS)
    asked = history[0] - ord("A") if history else 0
    if len(history) > written >= asked:
        return END if chance % 2 else HALT
    return LETTERS[chance % 26]


@functools.cache
def planted_row(best):
    """Logits whose largest is beyond doubt, in every dtype."""
    row = np.random.default_rng(best).uniform(-4.0, 4.0, VOCABULARY).astype(np.float32)
    row[best] = 9.0
    return row


class LazyModel(FakeModel):
    """Its logits are a computation that MLX does when it is asked for them, over a large vocabulary."""

    vocabulary = 20_000

    def logits(self, inputs):
        best = (inputs * 7 + 3) % self.vocabulary
        return -mx.abs(mx.arange(self.vocabulary)[None, None] - best[..., None]).astype(F32)


# ---- oracles ----


@functools.cache
def reply_to(prompt):
    """The tokens of the reply to a prompt run alone, without the EOS."""
    history = [ord(letter) for letter in prompt]
    for _ in range(ord(prompt[0]) - ord("A")):
        seen = [list(enumerate(history))] * FakeModel.num_hidden_layers
        history.append(next_token_of(history, zlib.crc32(repr(seen).encode())))
    return tuple(history[len(prompt) :])


def text_of(prompt, max_seq_len=math.inf):
    room = max_seq_len - len(prompt)
    reply = reply_to(prompt)
    return "".join(map(chr, reply if len(reply) <= room else reply[:room]))


def replay(prompts, max_seq_len, batch_size, prefill_step):
    """The turn at which each prompt is completed, and how many turns have a decode step (see the lesson)."""
    waiting = list(enumerate(prompts))
    current, left, active, completed, decodes = None, 0, {}, {}, 0
    for turn in itertools.count():
        if not (waiting or left or active):
            return completed, decodes
        if len(active) < batch_size and (waiting or left):
            if not left:
                current, prompt = waiting.pop(0)
                left = len(prompt)
            left -= min(prefill_step, left)
            if not left:
                prompt = prompts[current]
                # Decode steps it needs after the token that the prefill gave: an EOS is found by one as well.
                reply, room = len(reply_to(prompt)), max_seq_len - len(prompt)
                needed = reply if reply < room else room - 1
                if needed:
                    active[current] = needed
                else:
                    completed[current] = turn
        if active:
            decodes += 1
            active = {idx: needed - 1 for idx, needed in active.items()}
            completed |= {idx: turn for idx, needed in active.items() if needed == 0}
            active = {idx: needed for idx, needed in active.items() if needed}
    return completed, decodes


def stray(model, prompts):
    """(call, what it is about) where a row first sees what no request alone would show it, or (None, "")."""
    right = set()
    for prompt in prompts:
        whole = [*map(ord, prompt), *reply_to(prompt)]
        right |= {tuple(enumerate(whole[:n])) for n in range(1, len(whole) + 1)}
    for number, rows in enumerate(model.seen, start=1):
        for b, layers in enumerate(rows):
            for i, seen in enumerate(layers):
                empty = len(seen) == 1 and seen[0][0] == 0  # nobody's row: a token alone, at position 0
                if not empty and tuple(seen) not in right:
                    return number, f"; there row {b} sees in layer {i} {shown_pairs(seen)}"
    return None, ""


def shown_pairs(seen):
    """The last of what is seen, token@position."""
    tokens = " ".join(f"{chr(t) if t > HALT else 0}@{p}" for p, t in seen[-6:])
    return (".. " * (len(seen) > 6) + tokens) or "nothing"


def check_refused(call, *, what, fact):
    """`call()` raises ValueError."""
    raised = ""
    try:
        call()
    except ValueError:
        raised = "ValueError"
    check.exact(raised, "ValueError", what=f"the error raised by {what}", fact=fact)


# ---- task 3: a request ----


def begun(solution, prompt, step=128, model=None, **options):
    model = model or FakeModel()
    return solution.Request(model, FakeTokenizer(), prompt, step, **options), model


@task(3)
@every_dtype
def test_request_prefill(solution, dtype):
    """a prompt in chunks: every token once, at its place, and then the reply's first token"""
    for prompt, step in (("DXYZWVU", 3), ("CAB", 3), ("EABCDEFG", 4), ("B", 5), ("CABDE", 1), ("DAB", 128)):
        request, model = begun(solution, prompt, step, FakeModel(dtype))
        what = f'Request(model, tokenizer, "{prompt}", {step}), {dtype_name(dtype)}'
        chunks = -(-len(prompt) // step)
        for n in range(1, chunks + 1):
            check.exact(request.is_prefill_done, False, what=f"is_prefill_done of {what}", fact="req-first")
            check.exact(request.next_token, None, what=f"next_token of {what}", fact="req-token")
            check.exact(request.try_prefill(), None, what=f"try_prefill() {n} of {what}", fact="req-prefill")
            run = min(n * step, len(prompt))
            shown = f"after {n} of {chunks} try_prefill(), {what}"
            check.exact(request.offset, run, what=f"offset {shown}", fact="req-offset")
            ids = [t for (row,), _ in model.calls for t in row]
            check.exact(ids, [*map(ord, prompt[:run])], what=f"tokens run {shown}", fact="req-prefill")
            offsets = [offset for _, offset in model.calls]
            lengths = [len(row) for (row,), _ in model.calls]
            want = [sum(lengths[:i]) for i in range(len(lengths))]
            check.exact(offsets, want, what=f"offsets of the model calls {shown}", fact="req-prefill")
        check.exact(request.is_prefill_done, True, what=f"is_prefill_done {shown}", fact="req-first")
        check.exact(request.next_token, reply_to(prompt)[0], what=f"next_token {shown}", fact="req-first")
        check.exact(request.is_done, False, what=f"is_done {shown}", fact="req-token")
        check.exact(request.text(), chr(reply_to(prompt)[0]), what=f"text() {shown}", fact="req-text")
        check.exact(model.made, 1, what=f"calls of create_kv_cache by {what}", fact="req-own")
        held = [layer.offset for layer in request.kv_cache]
        check.exact(held, [len(prompt)] * 2, what=f"offset of each of kv_cache {shown}", fact="req-own")


@task(3)
def test_request_decode(solution):
    """tokens that come one by one, up to an EOS of either kind"""
    for prompt, eos in (("FXYZ", END), ("FXYZ", HALT), ("CA", END)):
        request, _ = begun(solution, prompt)
        request.try_prefill()
        reply = reply_to(prompt)
        what = f'Request(model, tokenizer, "{prompt}")'
        for n, token in enumerate([*reply[1:], eos], start=1):
            check.exact(request.is_done, False, what=f"is_done before token {n}, {what}", fact="req-token")
            got = request.decode_done(token)
            check.exact(got, None, what=f"decode_done({token}), {what}", fact="req-decode")
            shown = f"after {n} decode_done, {what}"
            check.exact(request.offset, len(prompt) + n, what=f"offset {shown}", fact="req-offset")
            check.exact(request.next_token, token, what=f"next_token {shown}", fact="req-token")
            want = "".join(map(chr, reply[: n + 1]))
            check.exact(request.text(), want, what=f"text() {shown}", fact="req-text")
        check.exact(request.is_done, True, what=f"is_done after EOS {eos}, {what}", fact="req-token")


@task(3)
def test_request_ends_at_once(solution):
    """a reply whose first token is an EOS"""
    for prompt in ("AXYZ", "A"):
        request, _ = begun(solution, prompt, 2)
        while not request.is_prefill_done:
            request.try_prefill()
        what = f'Request(model, tokenizer, "{prompt}", 2), the reply is empty'
        check.exact(request.is_done, True, what=f"is_done after the prefill, {what}", fact="req-token")
        check.exact(request.text(), "", what=f"text(), {what}", fact="req-text")
        check_refused(lambda r=request: r.decode_done(97), what=f"decode_done(97), {what}", fact="req-decode")


@task(3)
def test_request_text(solution):
    """text: special tokens in the reply are left out, and the rest is not"""
    request, _ = begun(solution, "DXY", prompt_idx=5)
    check.exact(request.prompt_idx, 5, what="prompt_idx of Request(.., prompt_idx=5)", fact="req-idx")
    check.exact(begun(solution, "D")[0].prompt_idx, 0, what="prompt_idx of Request(..)", fact="req-idx")
    request.try_prefill()
    first = chr(reply_to("DXY")[0])
    for token in (START, ord("q"), END):
        request.decode_done(token)
    what = 'text() of Request(model, tokenizer, "DXY"), then a special token, q and an EOS'
    check.exact(request.text(), first + "q", what=what, fact="req-text")

    class EndsWithDollar(FakeTokenizer):
        eos_token_ids = frozenset({END, ord("$")})  # an ordinary token that ends a reply

    request = solution.Request(FakeModel(), EndsWithDollar(), "DXY")
    request.try_prefill()
    request.decode_done(ord("$"))
    what = 'text() of Request(model, tokenizer, "DXY") after "$", which is an EOS but no special token'
    check.exact(request.text(), first, what=what, fact="req-token")


@task(3)
def test_request_refuses(solution):
    """what makes no sense raises ValueError and changes nothing"""
    check_refused(lambda: begun(solution, ""), what='Request(model, tokenizer, "")', fact="req-prompt")
    check_refused(lambda: begun(solution, "DX", 0), what='Request(.., "DX", 0)', fact="req-prompt")
    request, model = begun(solution, "DXYZ", 2)
    request.try_prefill()
    what = 'decode_done(97) of Request(.., "DXYZ", 2) after one try_prefill()'
    check_refused(lambda: request.decode_done(97), what=what, fact="req-decode")
    check.exact(request.offset, 2, what=f"offset after {what}", fact="req-decode")
    request.try_prefill()
    calls = len(model.calls)
    what = 'a third try_prefill() of Request(.., "DXYZ", 2)'
    check_refused(request.try_prefill, what=what, fact="req-first")
    check.exact(len(model.calls), calls, what=f"model calls after {what}", fact="req-first")
    check.exact(request.offset, 4, what=f"offset after {what}", fact="req-first")


@task(3)
def test_requests_do_not_mix(solution):
    """two requests of one model, a chunk of each in turn"""
    model = FakeModel()
    prompts = ("DABCDE", "EVWXYZ")
    requests = [begun(solution, prompt, 2, model)[0] for prompt in prompts]
    for _ in range(3):
        for request in requests:
            request.try_prefill()
    got = [request.next_token for request in requests]
    want = [reply_to(prompt)[0] for prompt in prompts]
    what = f"next_token of two requests prefilled in turns, {prompts}, chunks of 2"
    check.exact(got, want, what=what, fact="req-own")
    check.exact(model.made, 2, what=f"calls of create_kv_cache, {what}", fact="req-own")


@task(3)
def test_request_computes_one_row_of_logits(solution):
    """the logits of the prompt are not computed, but for its last token: by the memory they would take"""
    for step in (128, 512):
        prompt = "D" + "X" * 299
        model = LazyModel()
        request, _ = begun(solution, prompt, step, model)
        mx.synchronize()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        while not request.is_prefill_done:
            request.try_prefill()
        peak = mx.get_peak_memory() - before
        want = (ord("X") * 7 + 3) % model.vocabulary
        check.exact(
            request.next_token, want, what=f"next_token, 300 tokens in chunks of {step}", fact="req-first"
        )
        every = min(step, 300) * model.vocabulary * 4
        what = (
            f"whether a prompt of 300 tokens in chunks of {step}, V = 20000, took less than a quarter of "
            f"what a chunk's logits take: {peak / 1e6:.1f} MB at the peak, those being {every / 1e6:.0f} MB"
        )
        check.exact(peak < every // 4, True, what=what, fact="req-logits")


# ---- task 4: a batch ----


def check_batch(solution, prompts, max_seq_len=64, batch_size=3, prefill_step=3, *, fact="batch-alone"):
    """batch_generate for these prompts: each text as if it had been alone, in order of completion."""
    model = FakeModel()
    what = told(prompts, max_seq_len, batch_size, prefill_step)
    got = solution.batch_generate(
        model, FakeTokenizer(), list(prompts), max_seq_len, batch_size, prefill_step
    )
    step, seen = stray(model, prompts)
    check.exact(step, None, what=f"the model call that goes wrong in {what}{seen}", fact="batch-alone")
    answered = sorted(idx for idx, _ in got)
    check.exact(
        answered, list(range(len(prompts))), what=f"the idx that {what} returns, sorted", fact="batch-result"
    )
    texts = [text for _, text in sorted(got)]
    want = [text_of(prompt, max_seq_len) for prompt in prompts]
    check.exact(texts, want, what=f"the texts that {what} returns, by idx", fact=fact)
    turns, decodes = replay(prompts, max_seq_len, batch_size, prefill_step)
    order = [turns[idx] for idx, _ in got]
    shown = f"the turns in which the results were completed, in the order that {what} returns them"
    check.exact(order, sorted(order), what=shown, fact="batch-result")
    return model, turns, decodes, what


def told(prompts, max_seq_len, batch_size, prefill_step):
    lengths = listed([len(prompt) for prompt in prompts])
    replies = listed([len(text_of(prompt, max_seq_len)) for prompt in prompts])
    requests = "1 request, a prompt" if len(prompts) == 1 else f"{len(prompts)} requests, prompts"
    return (
        f"batch_generate with {requests} of {lengths} tokens, {'replies' if len(prompts) > 1 else 'a reply'} "
        f"of {replies} ({max_seq_len=}, {batch_size=}, {prefill_step=})"
    )


def listed(numbers):
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last


@task(4)
@every_dtype
def test_decode_step(solution, dtype):
    """one step of a batch: one call, with each slot's own token and offset"""
    model = FakeModel(dtype)
    prompts = {2: "EABC", 0: "DX", 3: "FVWXYZ"}
    cache = solution.create_batching_cache(model, 4, 32)
    tokens = [0] * 4
    for id, prompt in prompts.items():
        request, _ = begun(solution, prompt, 128, model)
        request.try_prefill()
        for layer, prefilled in zip(cache, request.kv_cache, strict=True):
            layer.add_request(prefilled, id)
        tokens[id] = request.next_token
    for step in (1, 2):
        model.calls.clear()
        given = list(tokens)
        logits = solution.decode_step(model, cache, given)
        what = f"decode_step(model, cache, {tokens}), step {step}, prompts {prompts}"
        offsets = [len(prompts[id]) + step - 1 if id in prompts else 0 for id in range(4)]
        check.exact(
            model.calls, [([[t] for t in tokens], offsets)], what=f"model calls of {what}", fact="step"
        )
        shape = tuple(logits.shape) if isinstance(logits, mx.array) else type(logits).__name__
        check.exact(shape, (4, VOCABULARY), what=f"shape of {what}", fact="step")
        check.exact(str(logits.dtype), str(dtype), what=f"dtype of {what}", fact="step")
        best = mx.argmax(logits, axis=-1).tolist()
        want = {id: reply_to(prompt)[step] for id, prompt in prompts.items()}
        check.exact({id: best[id] for id in prompts}, want, what=f"argmax of {what}", fact="step")
        tokens = [best[id] if id in prompts else 0 for id in range(4)]


@task(4)
def test_batch_two(solution):
    """two prompts at a time, of different lengths"""
    check_batch(solution, ("FABCD", "FXY"), batch_size=2, prefill_step=8)


@task(4)
def test_batch_random(solution):
    """random requests and batch sizes: the smallest batch that fails"""

    def request(pick):
        return pick(1, 6), pick(0, 6)

    def schedule(pick):
        lengths = pick.several(request, 1, 5)
        return lengths, 7 + pick(0, 9), pick(1, 3), pick(1, 4)

    def arguments(case):
        lengths, *others = case
        # Each prompt asks for its reply with its first letter, and has other letters than the rest.
        rests = ["".join(LETTER[(7 * n + i) % 26] for i in range(L - 1)) for n, (L, _) in enumerate(lengths)]
        return [LETTER[reply] + rest for (_, reply), rest in zip(lengths, rests, strict=True)], *others

    every_case(
        schedule,
        lambda case: check_batch(solution, *arguments(case)),
        examples=20,
        shown=lambda case: told(*arguments(case)),
    )


@task(4)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batch_many(solution, batch_size):
    """eight prompts in batches of different sizes: each text as if it had been alone"""
    prompts = ("IABCDE", "BX", "FQRS", "AVW", "DJKLMNOP", "C", "HGFEDCBA", "EZ")
    check_batch(solution, prompts, batch_size=batch_size)


@task(4)
def test_batch_chunks_do_not_matter(solution):
    """the same prompts in chunks of 1, 2, 5 and 128 tokens"""
    prompts = ("GABCDEF", "DXYZ", "EPQRST", "BUV")
    for step in (1, 2, 5, 128):
        check_batch(solution, prompts, batch_size=2, prefill_step=step)


@task(4)
def test_batch_order(solution):
    """results come in the order in which they are completed"""
    prompts = ("TABC", "CXY", "KPQ", "HUVW")
    turns, _ = replay(prompts, 64, 4, 8)
    order = sorted(range(4), key=turns.__getitem__)
    require(
        order not in ([0, 1, 2, 3], [3, 2, 1, 0]) and len(set(turns.values())) == 4, "the order is no test"
    )
    got = solution.batch_generate(FakeModel(), FakeTokenizer(), list(prompts), 64, 4, 8)
    what = f"the idx of the results, {told(prompts, 64, 4, 8)}"
    check.exact([idx for idx, _ in got], order, what=what, fact="batch-result")
    what = f"type of the result, {told(prompts, 64, 4, 8)}"
    check.exact(
        [type(got).__name__, type(got[0]).__name__], ["list", "tuple"], what=what, fact="batch-result"
    )


@task(4)
def test_batch_slots_are_refilled(solution):
    """a slot that becomes free is filled while the others go on: counted in decode steps"""
    prompts = ("ZAB", "FX", "FY", "FZ", "FW")
    model, _, decodes, what = check_batch(solution, prompts, batch_size=2, prefill_step=4)
    steps = [call for call in model.calls if isinstance(call[1], list)]
    shown = f"whether there were at most {decodes} calls with a batch: {len(steps)} in {what}"
    check.exact(len(steps) <= decodes, True, what=shown, fact="batch-turns")
    rows = {len(ids) for ids, _ in steps}
    check.exact(rows, {2}, what=f"rows of each call with a batch, {what}", fact="batch-turns")


@task(4)
def test_batch_prefill_does_not_block(solution):
    """while a long prompt is prefilled the others go on: one chunk, then a decode step"""
    prompts = ("TAB", "CDEFGHIJKLMNOP")
    model, _, _, what = check_batch(solution, prompts, batch_size=2, prefill_step=3)
    steps = [isinstance(offset, list) for _, offset in model.calls]
    of_the_second = [i for i, (ids, _) in enumerate(model.calls) if not steps[i] and ids[0][0] != ord("T")]
    chunks, between = 0, []
    for i, is_step in enumerate(steps[of_the_second[0] - 1 : of_the_second[-1] + 1]):
        if is_step and i:
            between.append(chunks)
            chunks = 0
        elif not is_step:
            chunks += len(model.calls[of_the_second[0] - 1 + i][0][0])
    most = max([*between, chunks])
    shown = f"whether at most 3 prompt tokens are run between two decode steps: up to {most} are, {what}"
    check.exact(most <= 3, True, what=shown, fact="batch-turns")


@task(4)
def test_batch_max_seq_len(solution):
    """prompt and reply together have max_seq_len tokens at most"""
    # Replies that are cut, that fit exactly, one token less, and a prompt that leaves room for one token.
    prompts = ("TABC", "EDEF", "DGHI", "TJKLMNO", "BPQRSTU", "AVWXYZA")
    check_batch(solution, prompts, max_seq_len=8, batch_size=2, fact="batch-length")
    check_batch(solution, prompts, max_seq_len=8, batch_size=6, fact="batch-length")


@task(4)
def test_batch_refuses(solution):
    """a prompt that does not fit, or is empty, raises ValueError before the model is called"""
    cases = {
        "the last prompt of max_seq_len tokens": ["DA", "CX", "ABCDEFGH"],
        "a prompt of more tokens": ["DA", "ABCDEFGHIJ", "CX"],
        "an empty prompt": ["DA", ""],
    }
    for case, prompts in cases.items():
        model = FakeModel()
        what = f"batch_generate with max_seq_len=8 and {case}"
        check_refused(served(solution, model, prompts, 2, 4), what=what, fact="batch-length")
        check.exact(len(model.calls), 0, what=f"model calls of {what}", fact="batch-length")
    for batch_size, prefill_step in ((0, 4), (2, 0)):
        what = f"batch_generate with {batch_size=}, {prefill_step=}"
        call = served(solution, FakeModel(), ["DA"], batch_size, prefill_step)
        check_refused(call, what=what, fact="batch-sizes")


def served(solution, model, prompts, batch_size, prefill_step):
    return lambda: solution.batch_generate(model, FakeTokenizer(), prompts, 8, batch_size, prefill_step)


@task(4)
def test_batch_of_none(solution):
    """no prompts, and one prompt for many slots"""
    got = solution.batch_generate(FakeModel(), FakeTokenizer(), [])
    check.exact(got, [], what="batch_generate(model, tokenizer, [])", fact="batch-result")
    check_batch(solution, ("FAB",), batch_size=5, prefill_step=128)


@task(4)
def test_batch_lets_go(solution):
    """a request in a slot no longer has caches of its own"""
    prompts = ("FABCDE", "GXYZ", "EPQRS", "DU", "HMNOPQ")
    model, _, _, what = check_batch(solution, prompts, batch_size=3, prefill_step=2)
    most = max(model.alive)
    shown = f"whether at most 1 request has caches of its own at a decode step: up to {most} do, {what}"
    check.exact(most <= 1, True, what=shown, fact="batch-held")
    gc.collect()
    left = sum(ref() is not None for ref in model.caches)
    check.exact(left, 0, what=f"prefilled caches that are left after {what}", fact="batch-held")
