"""Day 2.7, runner and engine: a fake model whose next token depends on everything that its row may see.

Keys hold positions and values hold tokens, and they go through the caches. The logits follow from what the
caches return, so that a token lost, repeated, misplaced or taken from another request changes all that come
after it. How long a reply gets is told by the first byte of its prompt: "Dxyz" asks for three tokens.
"""

import functools
import gc
import weakref
import zlib
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import check, every_case, require, task

F32 = mx.float32
LETTERS = range(ord("a"), ord("z") + 1)  # what replies are made of; prompts have capitals
MOST_CALLS = 2000


# ---- fakes ----


class FakeTokenizer:
    """Ids 0 to 255 are bytes; then come START and two kinds of EOS. encode puts START in front, unless told
    not to."""

    START, END = 256, 257
    eos_token_id = END
    eos_token_ids = frozenset({END, 258})

    def __init__(self):
        self.encoded = 0

    def __len__(self):
        return 259

    def encode(self, text, add_special_tokens=True):
        self.encoded += 1
        return [self.START] * add_special_tokens + list(text.encode())

    def decode(self, token_ids, skip_special_tokens=False):
        token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
        special = b"" if skip_special_tokens else b"<|special|>"
        return b"".join(bytes([t]) if t < 256 else special for t in token_ids).decode(errors="replace")


VOCABULARY = len(FakeTokenizer())
END = FakeTokenizer.END


class FakeCache:
    """One request's cache, with the interface of TinyKvCache."""

    def __init__(self):
        self.offset, self.state = 0, []

    def update_and_fetch(self, key, value, mask_length=None, mask=None):
        new = [key, value]
        if self.state:
            pairs = zip(self.state, new, strict=True)
            new = [mx.concatenate([stored, more], axis=2) for stored, more in pairs]
        self.state, self.offset = new, new[0].shape[2]
        return *new, self.offset, mask


@functools.cache
def chance(history):
    """Logits by chance: a few likely letters, one of them the first beyond doubt; an EOS when it is time."""
    rng = np.random.default_rng(zlib.crc32(repr(history).encode()))
    row = rng.uniform(-4.0, 0.0, VOCABULARY).astype(np.float32)
    letters = rng.permutation(list(LETTERS))
    row[letters[:5]] = 5.0 + np.arange(5) * 0.6
    written = sum(token in LETTERS for token in history)
    if history and written >= history[0] - ord("A"):
        row[END + rng.integers(2)] = 40.0
    return row


def scripted(*replies):
    """Logits that give these replies, bytes, to the prompts "0", "1", ..; each ends with an EOS."""

    def row(history):
        tokens = [*replies[history[0] - ord("0")], END, END]
        right = list(history[1:]) == tokens[: len(history) - 1]
        logits = np.full(VOCABULARY, -9.0, dtype=np.float32)
        logits[tokens[len(history) - 1] if right and len(history) < len(tokens) else ord("!")] = 9.0
        return logits

    return row


class FakeModel:
    """(B, L) integer ids, offset or one for each row, caches -> (B, L, V) logits; notes its calls."""

    num_hidden_layers = 2

    def __init__(self, row_of=chance):
        self.row_of = row_of
        self.calls = []  # (ids, offset)
        self.made = 0  # lists of caches
        self.caches = []  # weak references to all of them

    def create_kv_cache(self):
        self.made += 1
        made = [FakeCache() for _ in range(self.num_hidden_layers)]
        self.caches += map(weakref.ref, made)
        return made

    def alive(self):
        """How many of the caches that were made are still held by somebody."""
        if any(ref() is not None for ref in self.caches):
            gc.collect()
        return sum(ref() is not None for ref in self.caches)

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
        self.calls.append((inputs.tolist(), offset))
        if len(self.calls) > MOST_CALLS:
            raise RuntimeError(f"the model was called {len(self.calls)} times: does it end?")
        position = mx.array(starts, dtype=F32)[:, None] + mx.arange(L)  # (B, L)
        layers = []
        for number, layer in enumerate(cache):
            key = mx.stack([position, position * 0 + number], axis=-1)[:, None]  # (B, 1, L, 2)
            value = mx.stack([inputs.astype(F32), position * 0 + number], axis=-1)[:, None]
            key, value, _, mask = layer.update_and_fetch(key, value, mask_length=L, mask="causal")
            layers.append((key, value, mask))
        mx.eval(layers)
        layers = [
            (np.array(key), np.array(value), visible(mask, B, L, key.shape[2])) for key, value, mask in layers
        ]
        return self.logits(inputs, layers)

    def logits(self, inputs, layers):
        B, L = inputs.shape
        return mx.array(np.stack([[self.row(layers, b, i) for i in range(L)] for b in range(B)]))

    def row(self, layers, b, i):
        first, *others = (seen_by(layer, b, i) for layer in layers)
        right = all(layer == first for layer in others) and [p for p, _ in first] == [*range(len(first))]
        history = tuple(token for _, token in first)
        return self.row_of(history) if right and history != (0,) else chance((0, *first))


def visible(mask, B, L, S):
    """Which columns each query sees, (B, L, S)."""
    if isinstance(mask, mx.array):
        return np.broadcast_to(np.array(mask.astype(F32)).reshape(-1, L, S) > -1e4, (B, L, S))
    seen = np.tril(np.ones((L, S), dtype=bool), S - L) if mask == "causal" else np.ones((L, S), dtype=bool)
    return np.broadcast_to(seen, (B, L, S))


def seen_by(layer, b, i):
    """(position, token) of what row b's query i sees in a layer, in order."""
    key, value, seen = layer
    columns = seen[b, i]
    return [(int(p), int(t)) for p, t in zip(key[b, 0, columns, 0], value[b, 0, columns, 0], strict=True)]


class LazyModel(FakeModel):
    """Its logits are computed by MLX when somebody asks for them, over a large vocabulary."""

    vocabulary = 20_000

    def logits(self, inputs, layers):
        best = (inputs * 7 + 3) % self.vocabulary
        return -mx.abs(mx.arange(self.vocabulary)[None, None] - best[..., None]).astype(F32)


# ---- oracles ----


def tokens_alone(solution, prompt, settings, max_seq_len=64, row_of=chance):
    """The reply's tokens and finish_reason of a request that has the model for itself; no stop strings."""
    history, reply = list(prompt), []
    while True:
        row = row_of(tuple(history))
        greedy = settings.temperature == 0 and settings.repetition_penalty == 1
        token = int(row.argmax()) if greedy else solution.choose(mx.array(row), settings, history).item()
        if token in FakeTokenizer.eos_token_ids:
            return reply, "stop"
        history.append(token)
        reply.append(token)
        if len(reply) >= min(settings.max_tokens, max_seq_len - len(prompt)):
            return reply, "length"


def prompt_of(reply, length=3, first="K"):
    """A prompt of `length` tokens whose reply has `reply` tokens."""
    rest = "".join(chr(ord("A") + (ord(first) + 7 * n) % 26) for n in range(length - 1))
    return list((chr(ord("A") + reply) + rest).encode())


# ---- plans made by hand ----


class Slots:
    """Plans for a Runner without a scheduler, and what it must give for them."""

    def __init__(self, solution, slots=4, row_of=chance, model=None):
        self.solution, self.row_of = solution, row_of
        self.model = model or FakeModel(row_of)
        self.runner = solution.Runner(self.model, slots, 64)
        self.step = 0
        self.prompts, self.settings, self.ran, self.tokens, self.slot = {}, {}, {}, {}, {}
        self.released = []

    def add(self, id, slot, prompt, settings=None):
        self.prompts[id], self.slot[id] = list(prompt), slot
        self.settings[id] = settings or self.solution.DEFAULTS
        self.ran[id], self.tokens[id] = 0, []

    def release(self, slot):
        self.released.append(slot)
        self.slot = {id: s for id, s in self.slot.items() if s != slot}

    def run(self, chunks=(), decodes=(), *, fact="run-sampled"):
        """Run `n` prompt tokens for each (id, n) of chunks, and a token of each of decodes; check results."""
        prefill, expected = [], []
        ordered = sorted(decodes, key=self.slot.get)
        decode = [
            self.solution.Decode(
                id,
                self.slot[id],
                self.tokens[id][-1],
                len(self.prompts[id]) + len(self.tokens[id]) - 1,
                self.settings[id],
            )
            for id in ordered
        ]
        for id, n in chunks:
            start, prompt = self.ran[id], self.prompts[id]
            self.ran[id] += n
            last = self.ran[id] == len(prompt)
            tokens = tuple(prompt[start : start + n])
            prefill.append(self.solution.Chunk(id, self.slot[id], start, tokens, last, self.settings[id]))
            if last:
                expected.append(id)
        plan = self.solution.Plan(self.step, tuple(self.released), tuple(prefill), tuple(decode))
        self.step, self.released = self.step + 1, []
        got = self.runner.run(plan)
        want = {}
        for id in [*ordered, *expected]:
            history = self.prompts[id] + self.tokens[id]
            row, settings = self.row_of(tuple(history)), self.settings[id]
            greedy = settings.temperature == 0 and settings.repetition_penalty == 1
            choose = self.solution.choose
            want[id] = int(row.argmax()) if greedy else choose(mx.array(row), settings, history).item()
        what = f"the tokens by id that Runner.run gives in step {plan.step}: " + self.told(plan)
        check.exact({id: s.token for id, s in got.items()}, want, what=what, fact=fact)
        for id, token in want.items():
            self.tokens[id].append(token)
        return plan

    def told(self, plan):
        parts = [f"released {plan.released}"] if plan.released else []
        parts += [f"request {d.id} decodes in slot {d.slot}" for d in plan.decode]
        parts += [
            f"request {c.id} runs {len(c.tokens)} tokens behind {c.start} in slot {c.slot}"
            for c in plan.prefill
        ]
        return "; ".join(parts) or "an empty plan"


# ---- task 4: the runner ----


@task(4)
@pytest.mark.parametrize("cuts", [(7,), (3, 4), (3, 3, 1), (1,) * 7, (6, 1)], ids=str)
def test_prompt_in_chunks(solution, cuts):
    """one prompt in chunks: what the model is called with, and its first tokens"""
    slots = Slots(solution)
    slots.add(5, 2, prompt_of(6, 7))
    want, start = [], 0
    for n in cuts:
        slots.run([(5, n)], fact="run-chunk")
        last = start + n == 7
        parts = [(start, start + n)] if not last else [(start, 6), (6, 7)]
        want += [([slots.prompts[5][a:b]], a) for a, b in parts if a < b]
        start += n
    what = f"model calls, (inputs, offset), of a prompt of 7 tokens in chunks of {cuts}"
    check.exact(slots.model.calls, want, what=what, fact="run-logits")
    check.exact(slots.model.made, 1, what=f"calls of create_kv_cache, {what}", fact="run-chunk")
    for _ in range(3):
        slots.run(decodes=[5])


@task(4)
def test_decode_in_one_call(solution):
    """all that decode run in one call, each in the row of its slot with its own offset"""
    slots = Slots(solution)
    for id, slot, length in ((7, 2, 4), (1, 0, 2), (4, 3, 6)):
        slots.add(id, slot, prompt_of(9, length, "ABC"[slot % 3]))
        slots.run([(id, length)])
    for decodes in ((7, 1, 4), (7, 1, 4)):
        del slots.model.calls[:]
        tokens = {slots.slot[id]: slots.tokens[id][-1] for id in decodes}
        offsets = {slots.slot[id]: len(slots.prompts[id]) + len(slots.tokens[id]) - 1 for id in decodes}
        slots.run(decodes=decodes, fact="run-decode")
        want = [([[tokens.get(slot, 0)] for slot in range(4)], [offsets.get(slot, 0) for slot in range(4)])]
        what = "model calls, (inputs, offset), of a step in which slots 0, 2 and 3 of 4 decode"
        check.exact(slots.model.calls, want, what=what, fact="run-decode")


@task(4)
def test_prefill_beside_decode(solution):
    """chunks of two prompts and decodes in one plan"""
    slots = Slots(solution)
    slots.add(0, 1, prompt_of(9, 3))
    slots.add(1, 0, prompt_of(9, 8, "C"))
    slots.add(2, 3, prompt_of(9, 5, "T"))
    slots.run([(0, 3)])
    slots.run([(1, 3), (2, 2)], [0])
    slots.run([(1, 5), (2, 2)], [0])
    slots.run([(2, 1)], [0, 1])
    slots.run([], [0, 1, 2])
    plan = slots.run([], [2, 0, 1])
    check.exact(plan.ids_sampled, (1, 0, 2), what="ids_sampled of a plan in which slots 0, 1 and 3 decode")


@task(4)
def test_release(solution):
    """slots that are released: of a reply, of a prompt half run, and one that nothing is kept for"""
    slots = Slots(solution)
    slots.add(0, 0, prompt_of(9, 3))
    slots.add(1, 2, prompt_of(9, 8, "C"))
    slots.add(2, 3, prompt_of(9, 5, "T"))
    slots.run([(0, 3), (1, 4), (2, 5)])
    slots.run([], [0, 2])
    for slot in (0, 2, 1):
        slots.release(slot)
    slots.run([], [2])
    runner = slots.runner
    what = "after slots 0, 1 and 2 were released, and slot 3 was not: "
    check.exact(sorted(runner.prefilling), [], what=what + "slots in prefilling", fact="run-released")
    check.exact(sorted(runner.history), [3], what=what + "slots in history", fact="run-released")
    offsets = [layer.offset for layer in runner.batch]
    want = [[0, 0, 0, len(prompt_of(9, 5)) + 2]] * 2
    check.exact(offsets, want, what=what + "offset of each layer of the batch", fact="run-released")
    slots.release(3)
    slots.run()
    kept = (runner.prefilling, runner.history, [layer.state for layer in runner.batch])
    check.exact(slots.model.alive(), 0, what="caches of prompts after all slots were released")
    what = "prefilling, history and the batch's state after all slots were released"
    check.exact(kept, ({}, {}, [[], []]), what=what, fact="run-released")


@task(4)
def test_next_request_in_a_slot(solution):
    """a slot that is released and used again in the same plan: nothing of the request before is left"""
    slots = Slots(solution, 2)
    slots.add(0, 0, prompt_of(9, 6))
    slots.add(1, 1, prompt_of(9, 4, "C"))
    slots.run([(0, 3), (1, 4)])
    slots.release(0)
    slots.add(2, 0, prompt_of(9, 5, "T"), solution.Settings(repetition_penalty=30.0))
    slots.run([(2, 5)], [1])
    slots.run([], [2, 1])
    slots.release(1)
    slots.add(3, 1, prompt_of(9, 2, "Q"), solution.Settings(repetition_penalty=30.0))
    slots.run([(3, 2)], [2])
    for _ in range(3):
        slots.run([], [3, 2])


@task(4)
def test_settings_of_each(solution):
    """each token by its request's settings, seed and tokens so far"""
    slots = Slots(solution)
    for id, slot, given in (
        (0, 3, {"temperature": 1.0, "seed": 5}),
        (1, 0, {"repetition_penalty": 30.0}),
        (2, 1, {}),
        (3, 2, {"temperature": 1.0, "seed": 6, "repetition_penalty": 3.0}),
    ):
        slots.add(id, slot, prompt_of(20, 3, "ABCD"[id]), solution.Settings(**given))
        slots.run([(id, 2)])
    slots.run([(id, 1) for id in range(4)])
    for _ in range(6):
        slots.run([], [0, 1, 2, 3])
    plain, _ = tokens_alone(solution, slots.prompts[1], solution.DEFAULTS)
    require(plain[:6] != slots.tokens[1][:6], "the penalty changes nothing")


@task(4)
def test_logprobs_of_each(solution):
    """what was sampled comes with log-probabilities, as many alternatives as its settings say"""
    model = FakeModel()
    runner = solution.Runner(model, 2, 64)
    settings = [solution.Settings(logprobs=2), solution.Settings()]
    chunks = tuple(
        solution.Chunk(id, id, 0, tuple(prompt_of(3, 3, "AB"[id])), True, settings[id]) for id in range(2)
    )
    got = runner.run(solution.Plan(0, (), chunks, ()))
    kinds = [type(s) is solution.Sampled for s in got.values()]
    check.exact(kinds, [True, True], what="whether Runner.run gives a Sampled for each id")
    counts = [len(got[id].top) for id in range(2)]
    check.exact(counts, [2, 0], what="alternatives of requests that ask for 2 and for 0", fact="run-sampled")


@task(4)
def test_prompt_lets_go(solution):
    """a request in the batch no longer has caches of its own, and its logits were not computed for nothing"""
    for cuts in ((300,), (128, 128, 44)):
        model = LazyModel()
        runner = solution.Runner(model, 2, 400)
        prompt, start = [ord("X")] * 300, 0
        mx.synchronize()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        for n in cuts:
            last = start + n == 300
            chunk = solution.Chunk(0, 1, start, tuple(prompt[start : start + n]), last)
            got = runner.run(solution.Plan(0, (), (chunk,), ()))
            start += n
        peak = mx.get_peak_memory() - before
        what = f"the first token of a prompt of 300 in chunks of {cuts}"
        check.exact(got[0].token, (ord("X") * 7 + 3) % model.vocabulary, what=what, fact="run-logits")
        every = 44 * model.vocabulary * 4
        what = (
            f"whether a prompt of 300 tokens in chunks of {cuts}, V = 20000, took less than what the logits "
            f"of 44 tokens take: {peak / 1e6:.1f} MB at the peak, those being {every / 1e6:.1f} MB"
        )
        check.exact(peak < every, True, what=what, fact="run-logits")
        check.exact(runner.prefilling, {}, what="prefilling, after the last chunk", fact="run-logits")


@task(4)
def test_random_plans(solution):
    """random plans: the smallest that gives wrong tokens"""

    def make(pick):
        return pick(1, 3), pick.several(lambda pick: [pick(0, 5) for _ in range(3)], 1, 7)

    def run(case):
        count, steps = case
        slots, next_id = Slots(solution, count), 0
        for acts in steps:
            chunks, decodes = [], []
            for slot, act in enumerate(acts[:count]):
                there = [id for id, s in slots.slot.items() if s == slot]
                if there and act == 5:
                    slots.release(slot)
                    there = []
                if not there and act:
                    slots.add(next_id, slot, prompt_of(30, act, "AHOT"[next_id % 4]))
                    there, next_id = [next_id], next_id + 1
                if not there:
                    continue
                left = len(slots.prompts[there[0]]) - slots.ran[there[0]]
                if left:
                    chunks.append((there[0], min(left, 1 + act % 3)))
                else:
                    decodes.append(there[0])  # what has a row in the batch runs in every step
            slots.run(chunks, decodes)

    every_case(make, run, examples=6, shown=str)


# ---- task 5: the engine ----


def all_events(engine, most=400):
    """Step until there is no work: the events by id."""
    events = {}
    for _ in range(most):
        if not engine.has_work:
            return events
        for event in engine.step():
            events.setdefault(event.id, []).append(event)
    raise RuntimeError(f"{most} steps, and the engine still has work")


def check_nothing_kept(engine, what):
    """An engine without work holds nothing of any request."""
    kept = {
        "replies": len(engine.replies),
        "generations": len(engine.scheduler.generations),
        "prefilling": len(engine.runner.prefilling),
        "history": len(engine.runner.history),
        "caches of prompts": engine.runner.model.alive(),
        "arrays": sum(len(layer.state) for layer in engine.runner.batch),
        "waiting": engine.waiting_count,
        "active": engine.active_count,
    }
    check.exact(kept, dict.fromkeys(kept, 0), what=f"what the engine keeps, {what}", fact="step-keeps")


def check_reply(solution, events, prompt, settings, what, *, max_seq_len=64, row_of=chance):
    """One request's events against the reply that it gets alone."""
    tokens, reason = tokens_alone(solution, prompt, settings, max_seq_len, row_of)
    got = [token for event in events for token in event.tokens]
    check.exact(got, tokens, what=f"tokens, {what}", fact="run-sampled")
    text = FakeTokenizer().decode(tokens, skip_special_tokens=True)
    check.exact("".join(e.text for e in events), text, what=f"text, {what}", fact="step-text")
    reasons = [event.finish_reason for event in events]
    right = [None] * (len(events) - 1) + [reason]
    check.exact(reasons, right, what=f"finish_reason of its events, {what}", fact="step-events")


@task(5)
def test_one_request(solution):
    """one request: an event for each token, the last with the reason"""
    for reply, most in ((4, 9), (0, 9), (1, 9), (6, 3), (3, 3)):
        tokenizer = FakeTokenizer()
        engine = solution.Engine(FakeModel(), tokenizer, 2, 64, 8, 4)
        check.exact(engine.has_work, False, what="has_work of a new engine")
        prompt = bytes(prompt_of(reply, 6)).decode()
        settings = solution.Settings(max_tokens=most)
        id = engine.submit(prompt, settings)
        check.exact((id, engine.has_work, engine.waiting_count), (0, True, 1), what="id, has_work, waiting")
        events = all_events(engine)[id]
        what = f'one request, "{prompt}", max_tokens {most}'
        check_reply(solution, events, prompt_of(reply, 6), settings, what)
        sizes = [len(event.tokens) for event in events]
        right = [1] * min(reply, most) + [0] * (reply < most)
        check.exact(sizes, right, what=f"tokens in each event, {what}", fact="step-events")
        lengths = {event.prompt_tokens for event in events}
        check.exact(lengths, {6}, what=f"prompt_tokens of its events, {what}", fact="engine-submit")
        check_nothing_kept(engine, what)


@task(5)
def test_submit_text(solution):
    """a text is encoded without special tokens; ids are taken as they are"""
    engine = solution.Engine(FakeModel(), FakeTokenizer(), 2, 64, 8, 4)
    text = bytes(prompt_of(3, 4)).decode()
    for prompt in (text, prompt_of(3, 4), tuple(prompt_of(3, 4))):
        id = engine.submit(prompt, solution.Settings(max_tokens=5))
        events = all_events(engine)[id]
        what = f"submit({prompt!r})"
        check_reply(solution, events, prompt_of(3, 4), solution.Settings(max_tokens=5), what)


@task(5)
@pytest.mark.parametrize("sizes", [(1, 8, 8), (2, 4, 1), (4, 9, 3)], ids=lambda sizes: str(sizes))
def test_sizes_do_not_matter(solution, sizes):
    """the same requests with other slots, budgets and chunks: the same tokens, sampled ones too"""
    slots, budget, step = sizes
    engine = solution.Engine(FakeModel(), FakeTokenizer(), slots, 24, budget, step)
    asked = {}
    for n, (reply, length) in enumerate(((5, 3), (0, 7), (9, 1), (25, 9), (3, 5), (7, 2))):
        given = {"max_tokens": 8}
        if n % 2:
            given |= {"temperature": 1.0, "seed": n, "top_p": 0.9, "repetition_penalty": 1.5}
        prompt, settings = prompt_of(reply, length, "AHOTZC"[n]), solution.Settings(**given)
        asked[engine.submit(prompt, settings)] = prompt, settings
    events = all_events(engine)
    for id, (prompt, settings) in asked.items():
        what = f"request {id} of 6, {slots} slots, budget {budget}, chunks of {step}"
        check_reply(solution, events[id], prompt, settings, what, max_seq_len=24)
    check_nothing_kept(engine, f"6 requests, {slots} slots, budget {budget}, chunks of {step}")


STOPS = [
    # replies, bytes; stop strings; texts; reasons; how many tokens
    (b"one two three", ("wo t",), "one t", "stop", 9),
    (b"one two three", ("two", "o t"), "one ", "stop", 7),
    (b"one two three", ("threx", "zz"), "one two three", "stop", 13),
    (b"one two three", ("o",), "", "stop", 1),
    (b"one two three", ("ee",), "one two thr", "stop", 13),
    ("grün é€ über".encode(), ("€ ü",), "grün é", "stop", 14),
    ("grün é€ über".encode(), (), "grün é€ über", "stop", 17),
]


@task(5)
@pytest.mark.parametrize("case", STOPS, ids=range(len(STOPS)))
def test_stop_strings(solution, case):
    """stop strings across tokens, and whole characters: beside another request, piece by piece"""
    reply, stop, text, reason, count = case
    row_of = scripted(reply, b"never mind the neighbour")
    engine = solution.Engine(FakeModel(row_of), FakeTokenizer(), 2, 64, 8, 4)
    other = engine.submit("1", solution.Settings(max_tokens=40))
    id = engine.submit("0", solution.Settings(max_tokens=40, stop=stop))
    events = all_events(engine)
    what = f"the reply {reply.decode()!r}, stop {stop}"
    got = "".join(event.text for event in events[id])
    check.exact(got, text, what=f"text of {what}", fact="step-text")
    check.exact(events[id][-1].finish_reason, reason, what=f"finish_reason of {what}", fact="step-stop")
    tokens = [token for event in events[id] for token in event.tokens]
    check.exact(tokens, list(reply[:count]), what=f"tokens of {what}", fact="step-stop")
    beside = "".join(event.text for event in events[other])
    check.exact(beside, "never mind the neighbour", what=f"text of the request beside {what}")
    if not stop:
        pieces = [event.text for event in events[id]][: len(reply)]
        right, waiting = [], b""
        for byte in reply:
            waiting += bytes([byte])
            whole = not waiting.decode(errors="replace").endswith("\ufffd")
            right.append(waiting.decode() if whole else "")
            waiting = b"" if whole else waiting
        check.exact(pieces, right, what=f"the pieces of {what}", fact="step-whole")
    check_nothing_kept(engine, what)


@task(5)
@pytest.mark.parametrize(
    ("most", "stop", "text", "reason"),
    [
        (3, ("two",), "one", "length"),
        (5, ("two",), "one t", "length"),
        (7, ("two",), "one ", "stop"),
        (8, ("two ",), "one ", "stop"),
        (7, ("two ",), "one two", "length"),
    ],
)
def test_stop_at_the_length(solution, most, stop, text, reason):
    """max_tokens and a stop string: what is held back comes with the last event, and a stop is a stop"""
    engine = solution.Engine(FakeModel(scripted(b"one two three")), FakeTokenizer(), 2, 64, 8, 4)
    id = engine.submit("0", solution.Settings(max_tokens=most, stop=stop))
    events = all_events(engine)[id]
    what = f"the reply 'one two three', max_tokens {most}, stop {stop}"
    check.exact("".join(e.text for e in events), text, what=f"text of {what}", fact="step-whole")
    check.exact(events[-1].finish_reason, reason, what=f"finish_reason of {what}", fact="step-stop")
    check_nothing_kept(engine, what)


@task(5)
def test_cut_character(solution):
    """a reply cut inside a character: what decode makes of it comes with the last event"""
    engine = solution.Engine(FakeModel(scripted("aé€".encode())), FakeTokenizer(), 2, 64, 8, 4)
    for most, text in ((2, "a\ufffd"), (3, "aé"), (5, "aé\ufffd"), (6, "aé€")):
        id = engine.submit("0", solution.Settings(max_tokens=most))
        pieces = [event.text for event in all_events(engine)[id]]
        what = f"the reply 'aé€' cut after {most} bytes"
        check.exact("".join(pieces), text, what=f"text of {what}", fact="step-text")


@task(5)
def test_stop_frees_the_slot(solution):
    """after a stop string the model is not called for it again, and the next one has its slot"""
    model = FakeModel(scripted(b"abcdefgh", b"xyz"))
    engine = solution.Engine(model, FakeTokenizer(), 1, 64, 8, 4)
    engine.submit("0", solution.Settings(stop=("c",)))
    engine.submit("1", solution.Settings())
    all_events(engine)
    run = [ids for ids, _ in model.calls]
    want = [[[n]] for n in b"0ab1xyz"]
    what = "inputs of the model's calls: one slot, the replies 'abcdefgh' with stop 'c', and 'xyz'"
    check.exact(run, want, what=what, fact="step-stop")


@task(5)
def test_cancel_request(solution):
    """cancelled while it waits, while its prompt runs, while it decodes, and after its end"""
    for stand, steps in (("waiting", 0), ("prompt half run", 1), ("decoding", 4)):
        engine = solution.Engine(FakeModel(), FakeTokenizer(), 2, 64, 8, 4)
        first = engine.submit(prompt_of(9, 9), solution.Settings())
        second = engine.submit(prompt_of(6, 3, "C"), solution.Settings())
        seen = [event for _ in range(steps) for event in engine.step()]
        what = f"cancel of a request that was {stand}"
        check.exact(engine.cancel(first), True, what=f"result of {what}", fact="cancel-twice")
        check.exact(engine.active_count + engine.waiting_count, 1, what=f"requests left after {what}")
        events = all_events(engine)
        last = [(e.text, e.tokens, e.finish_reason, e.prompt_tokens) for e in events[first]]
        check.exact(last, [("", (), "cancelled", 9)], what=f"events after {what}", fact="engine-cancel")
        others = [e for e in seen if e.id == second] + events[second]
        check_reply(solution, others, prompt_of(6, 3, "C"), solution.Settings(), f"the other one, {what}")
        check_nothing_kept(engine, what)
        got = [engine.cancel(id) for id in (first, second, 99)]
        what = f"a second {what}, and of requests that have ended or never were"
        check.exact(got, [False] * 3, what=f"results of {what}", fact="cancel-twice")
        check.exact(engine.has_work, False, what=f"has_work after {what}", fact="cancel-twice")


@task(5)
def test_refused(solution):
    """a prompt that is too long or empty is refused with a reason, and the rest go on"""
    engine = solution.Engine(FakeModel(), FakeTokenizer(), 2, 12, 8, 4)
    first = engine.submit(prompt_of(5, 4))
    engine.step()
    for prompt in ("X" * 12, "", [88] * 30):
        try:
            engine.submit(prompt)
        except solution.RequestRefused:
            pass
        else:
            what = f"submit of {len(prompt)} tokens, max_seq_len 12"
            check.raises(solution.RequestRefused, lambda: None, what=what)
    second = engine.submit(prompt_of(2, 11, "C"))
    check.exact(second, 1, what="id of the request after three that were refused", fact="engine-submit")
    events = all_events(engine)
    what = "the request after three that were refused, max_seq_len 12"
    check_reply(solution, events[second], prompt_of(2, 11, "C"), solution.DEFAULTS, what, max_seq_len=12)
    check.exact(events[first][-1].finish_reason, "stop", what="finish_reason of the one before them")
    check_nothing_kept(engine, "after refusals")


@task(5)
def test_logprobs_in_events(solution):
    """each token comes with its log-probability and its alternatives"""
    engine = solution.Engine(FakeModel(), FakeTokenizer(), 2, 64, 8, 4)
    id = engine.submit(prompt_of(3, 3), solution.Settings(logprobs=2))
    other = engine.submit(prompt_of(4, 5))
    events = all_events(engine)
    for request, top in ((id, 2), (other, 0)):
        for event in events[request]:
            tokens = tuple(sampled.token for sampled in event.logprobs)
            what = f"tokens in logprobs of an event, {top} alternatives asked for"
            check.exact(tokens, event.tokens, what=what, fact="step-events")
            sizes = [len(sampled.top) for sampled in event.logprobs]
            check.exact(sizes, [top] * len(event.tokens), what=f"alternatives, {top} asked for")


@task(5)
def test_generate_all(solution):
    """generate_all: texts in the order of the prompts; if one is refused, none stays behind"""
    engine = solution.Engine(FakeModel(), FakeTokenizer(), 2, 24, 8, 4)
    prompts = [prompt_of(reply, 3, first) for reply, first in ((9, "A"), (0, "H"), (4, "O"), (2, "T"))]
    texts = [bytes(prompt).decode() for prompt in prompts]
    settings = solution.Settings(max_tokens=7)
    for given in ([texts[0], *prompts[1:]], texts[::-1]):
        got = solution.generate_all(engine, given, settings)
        ids = [list(p.encode()) if isinstance(p, str) else p for p in given]
        want = [bytes(tokens_alone(solution, prompt, settings)[0]).decode() for prompt in ids]
        check.exact(got, want, what=f"generate_all(engine, {given}, max_tokens 7)", fact="generate-all")
    check.exact(solution.generate_all(engine, []), [], what="generate_all(engine, [])")
    calls = len(engine.runner.model.calls)
    what = "generate_all with a prompt of 30 tokens as the third, max_seq_len 24"
    try:
        solution.generate_all(engine, [texts[0], texts[1], "X" * 30], settings)
    except solution.RequestRefused:
        pass
    else:
        check.raises(solution.RequestRefused, lambda: None, what=what)
    check.exact(engine.has_work, False, what=f"has_work after {what}", fact="generate-all")
    check.exact(len(engine.runner.model.calls), calls, what=f"model calls after {what}")
    check_nothing_kept(engine, what)


# ---- random schedules ----


@dataclass
class Case:
    sizes: tuple  # slots, budget, chunks
    requests: list  # (arrival, length, reply, priority, seed or 0, step at which it is cancelled or 0)

    def __str__(self):
        requests = "; ".join(
            f"request {id} in step {arrival}: prompt {length}, reply {reply}, priority {priority}"
            + f", seed {seed}" * bool(seed)
            + f", cancelled in step {cancel}" * bool(cancel)
            for id, (arrival, length, reply, priority, seed, cancel) in enumerate(self.requests)
        )
        count = len(self.requests)
        slots, budget, chunks = self.sizes
        return f"{count} requests, {slots} slots, budget {budget}, chunks of {chunks}: {requests}"


@task(5)
def test_random_requests(solution):
    """random arrivals, lengths, priorities, seeds and cancels: the smallest that goes wrong"""

    def make(pick):
        def request(pick):
            return pick(0, 3), pick(1, 5), pick(0, 4), pick(0, 2), pick(0, 2), pick(0, 2) * pick(0, 3)

        slots = pick(1, 3)
        return Case((slots, slots + pick(0, 4), pick(1, 4)), sorted(pick.several(request, 1, 4)))

    def run(case):
        slots, budget, step = case.sizes
        engine = solution.Engine(FakeModel(), FakeTokenizer(), slots, 11, budget, step)
        events, asked = {}, {}
        last = max(max(arrival, cancel) for arrival, *_, cancel in case.requests)
        for now in range(150):
            for arrival, length, reply, priority, seed, _ in case.requests:
                if arrival == now:
                    given = {"temperature": 1.0, "seed": seed} if seed else {}
                    prompt = prompt_of(reply, length, "AHOTZ"[len(asked)])
                    settings = solution.Settings(priority=priority, **given)
                    asked[engine.submit(prompt, settings)] = prompt, settings
            for id, (*_, cancel) in enumerate(case.requests):
                if cancel and cancel == now:
                    engine.cancel(id)
            if now > last and not engine.has_work:
                break
            for event in engine.step():
                events.setdefault(event.id, []).append(event)
        check.exact(engine.has_work, False, what=f"has_work after 150 steps, {case}", fact="no-starvation")
        for id, (prompt, settings) in asked.items():
            if events[id][-1].finish_reason != "cancelled":
                what = f"request {id} of {case}"
                check_reply(solution, events[id], prompt, settings, what, max_seq_len=11)
        check_nothing_kept(engine, str(case))

    every_case(make, run, examples=8, shown=str)
