"""Day 2.1, generation with caches: what the model is called with, and what comes out, in plain Python.

HistoryModel's next token depends on every token that its caches hold and on the position it was told for
each, so that a token lost, repeated, misplaced or mixed up with another reply's changes all that follow. It
notes what it was called with. At the end stands the real thing, tiny-qwen2, with its linear layers counted.
"""

import contextlib
import functools
import io
import zlib

import mlx.core as mx
import numpy as np

from tinyllm.grader.testing import (
    ShippedTokenizer,
    as_float64,
    check,
    dtype_name,
    every_dtype,
    require,
    shipped_model,
    task,
)

F32 = mx.float32
MARGIN = 2.0  # by which the best logit leads the second, that the third, and that all others, in every dtype
UNSURE = 1e-3  # of the largest logit; two computations in float32 differ by less than a tenth of that
MOST_CALLS = 60  # of a model: the longest reply here has far fewer tokens


# ---- fakes ----


class ByteTokenizer:
    """A byte-level tokenizer with the interface of mlx-lm's TokenizerWrapper.

    Ids 0 to 255 are bytes, then come `pieces` (byte strings of any kind), then the special tokens START, END
    and HALT. END and HALT are EOS. encode takes the longest piece that fits and, unless told otherwise, puts
    START in front.
    """

    def __init__(self, *pieces):
        self._bytes = [bytes([n]) for n in range(256)] + list(pieces)
        self.START, self.END, self.HALT = (len(self._bytes) + i for i in range(3))
        self.eos_token_id, self.eos_token_ids = self.END, {self.END, self.HALT}

    def __len__(self):
        return len(self._bytes) + 3

    def encode(self, text, add_special_tokens=True):
        data, ids = text.encode(), [self.START] if add_special_tokens else []
        while data:
            piece = max((p for p in self._bytes if data.startswith(p)), key=len)
            ids.append(self._bytes.index(piece))
            data = data[len(piece) :]
        return ids

    def decode(self, token_ids, skip_special_tokens=False):
        token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
        data = [
            self._bytes[t] if t < len(self._bytes) else b"" if skip_special_tokens else b"<|special|>"
            for t in token_ids
        ]
        return b"".join(data).decode(errors="replace")


class FakeCache:
    """A cache with the interface of TinyKvCache, for keys and values of one number a token."""

    def __init__(self):
        self.keys, self.values = [], []

    @property
    def offset(self):
        return len(self.keys)

    @property
    def state(self):
        return [mx.array(a, dtype=F32).reshape(1, 1, -1, 1) for a in (self.keys, self.values) if a]

    def update_and_fetch(self, key, value, mask_length=None, mask=None):
        self.keys += key.reshape(-1).tolist()
        self.values += value.reshape(-1).tolist()
        return *self.state, self.offset, mask

    def rewind(self, n):
        if not 0 <= n <= self.offset:
            raise ValueError(f"cannot take back {n} of {self.offset} tokens")
        del self.keys[self.offset - n :], self.values[len(self.values) - n :]


class FakeModel:
    """(1, L) integer ids, offset, caches -> (1, L, V) logits; notes the ids and the offset of every call."""

    num_hidden_layers = 2

    def __init__(self, vocabulary, dtype=F32):
        self.vocabulary, self.dtype = vocabulary, dtype
        self.calls, self.given, self.made = [], [], []

    def create_kv_cache(self):
        self.made.append([FakeCache() for _ in range(self.num_hidden_layers)])
        return self.made[-1]

    def __call__(self, inputs, offset, cache):
        if not (isinstance(inputs, mx.array) and mx.issubdtype(inputs.dtype, mx.integer)):
            raise TypeError("the model takes one integer mx.array, (1, L)")
        if inputs.ndim != 2 or inputs.shape[0] != 1 or inputs.size == 0:
            raise ValueError(f"the model takes inputs of shape (1, L) with L > 0, not {tuple(inputs.shape)}")
        if type(offset) is not int:
            raise TypeError(f"offset is an int, not {type(offset).__name__}")
        if len(cache) != self.num_hidden_layers:
            raise ValueError(f"the model takes {self.num_hidden_layers} caches, not {len(cache)}")
        ids = inputs[0].tolist()
        self.calls.append((ids, offset))
        self.given.append(cache)
        if len(self.calls) > MOST_CALLS:
            raise RuntimeError(f"the model was called {len(self.calls)} times: does the loop end?")
        positions = mx.arange(offset, offset + len(ids)).reshape(1, 1, -1, 1)
        for layer in cache:
            layer.update_and_fetch(positions, inputs.reshape(1, 1, -1, 1))
        return self.logits(inputs, cache)

    def logits(self, inputs, cache):
        L = inputs.shape[1]
        seen = [[int(n) for pair in zip(c.keys, c.values, strict=True) for n in pair] for c in cache]
        ends = [2 * (cache[0].offset - L + n) for n in range(1, L + 1)]
        rows = [self.row([c[:end] for c in seen]) for end in ends]
        return mx.array(np.stack(rows)[None]).astype(self.dtype)


@functools.cache
def planted_row(vocabulary, seed, best=None):
    """Logits with a first, second and third beyond doubt: letters, where ids are bytes. `best` is first."""
    row = np.random.default_rng(seed).uniform(-4.0, 4.0, vocabulary)
    first, after = (ord("a"), ord("z") + 1) if vocabulary > 256 else (0, vocabulary)
    top = first + np.argsort(row[first:after])[-3:]
    if best is not None:
        top = [*top[top != best][-2:], best]
    row[top] = 8.0, 10.0, 12.0  # exact in every dtype; no rounding lifts the others above 4
    require((np.diff(np.sort(row)[-4:]) >= MARGIN).all(), "the first three logits are too close together")
    return row.astype(np.float32)


def history_row(vocabulary, seen):
    return planted_row(vocabulary, zlib.crc32(np.array(seen, dtype=np.int32).tobytes()))


class HistoryModel(FakeModel):
    """The next token depends on all tokens in all caches, on their order and on their positions."""

    def row(self, seen):
        return history_row(self.vocabulary, [n for layer in seen for n in layer])


class ScriptedModel(FakeModel):
    """Replies with the ids of `script`, whatever the prompt. Asked for more than that, it raises."""

    def __init__(self, vocabulary, script, prompt_length):
        super().__init__(vocabulary)
        self.script, self.prompt_length = script, prompt_length

    def row(self, seen):
        step = len(seen[0]) // 2 - self.prompt_length
        if step >= len(self.script):
            raise RuntimeError(f"the model was called again after the reply's last token, {self.script[-1]}")
        return planted_row(self.vocabulary, len(seen[0]), self.script[step] if step >= 0 else None)


class LazyModel(FakeModel):
    """Its logits are a computation that MLX does when it is asked for them, and not before."""

    def logits(self, inputs, cache):
        best = (inputs * 7 + 3) % self.vocabulary  # (1, L)
        return -mx.abs(mx.arange(self.vocabulary)[None, None] - best[..., None]).astype(F32)


class RealTokenizer(ShippedTokenizer):
    """tiny-qwen2's."""

    def __init__(self):
        super().__init__("tiny-qwen2")


class Recorder:
    """A sampler that counts its calls and picks the `rank`-th most probable token of the last row."""

    def __init__(self, rank=2):
        self.rank, self.shapes = rank, []

    def __call__(self, logprobs):
        self.shapes.append(tuple(logprobs.shape))
        return mx.argsort(logprobs.astype(F32), axis=-1)[..., -self.rank]


# ---- oracles ----


def history_reply(prompt, count, vocabulary, rank=1):
    """What HistoryModel replies to the ids of a prompt when the rank-th token is taken at every step."""
    history = list(prompt)
    for _ in range(count):
        pairs = [n for pair in enumerate(history) for n in pair]
        row = history_row(vocabulary, pairs * HistoryModel.num_hidden_layers)
        history.append(int(np.argsort(row)[-rank]))
    return history[len(prompt) :]


def right_calls(prompt, reply):
    """(ids, offset) of each call: the prompt but its last token, that token, then those of the reply."""
    *before, last = prompt
    calls = [(before, 0)] if before else []
    return calls + [([token], len(before) + n) for n, token in enumerate([last, *reply[:-1]])]


def greedy_reply(model, prompt, count, eos):
    """mlx-lm's greedy reply without a cache: at most `count` tokens.

    It ends before an EOS, and where the best logit leads by so little that another order of the same sums
    could choose another token.
    """
    reply = []
    while len(reply) < count:
        row = as_float64(model(mx.array([[*prompt, *reply]])))[0, -1]
        second, best = np.sort(row)[-2:]
        token = int(row.argmax())
        if best - second < UNSURE * np.abs(row).max() or token in eos:
            break
        reply.append(token)
    return reply


# ---- comparisons ----


def check_refused(call, *, what, fact):
    """`call()` raises ValueError."""
    raised = ""
    try:
        call()
    except ValueError:
        raised = "ValueError"
    check.exact(raised, "ValueError", what=f"the error raised by {what}", fact=fact)


def check_calls(model, prompt, reply, *, what):
    """The calls of a model for a reply of these tokens, the last of which needed a call as well."""
    ids = [ids for ids, _ in model.calls]
    offsets = [offset for _, offset in model.calls]
    wanted = right_calls(prompt, reply)
    shown = f"inputs[0] of each model call of {what}"
    check.exact(ids, [ids for ids, _ in wanted], what=shown, fact="gen-once")
    shown = f"offset of each model call of {what}"
    check.exact(offsets, [offset for _, offset in wanted], what=shown, fact="gen-offset")
    check.exact(len(model.made), 1, what=f"calls of create_kv_cache by {what}", fact="gen-own-caches")
    own = all(cache is model.made[0] for cache in model.given)
    check.exact(own, True, what=f"every model call of {what} gets that list of caches", fact="gen-own-caches")


def streamed(solution, model, tokenizer, prompt, **options):
    """The pieces, and the text that was out at each token's model call and at the end."""
    pieces, shown = [], {}
    prefills = 1 if len(tokenizer.encode(prompt, add_special_tokens=False)) > 1 else 0
    for piece in solution.stream_generate_with_kv_cache(model, tokenizer, prompt, **options):
        pieces.append(piece)
        shown[len(model.calls) - prefills] = "".join(map(str, pieces))
    texts, last = [], ""
    for step in range(1, len(model.calls) - prefills + 1):
        last = shown.get(step, last)
        texts.append(last)
    return pieces, texts


def check_stream(solution, reply, want, *, tokens=None, what, fact, **options):
    """stream_generate_with_kv_cache on a scripted reply: pieces, text in time, model calls."""
    tokenizer = ByteTokenizer()
    script = [*reply.encode(), tokenizer.END] if tokens is None else [*tokens, tokenizer.END]
    prompt = tokenizer.encode("ask", add_special_tokens=False)
    model = ScriptedModel(len(tokenizer), script, len(prompt))
    pieces, texts = streamed(solution, model, tokenizer, "ask", **options)
    said = "".join(f", {name}={value!r}" for name, value in options.items())
    call = f'stream_generate_with_kv_cache(model, tokenizer, "ask"{said})'
    check.exact("".join(map(str, pieces)), want, what=f"{call} joined, {what}", fact=fact)
    odd = [p for p in pieces if not isinstance(p, str) or not p or ("\ufffd" in p and "\ufffd" not in want)]
    check.exact(odd, [], what=f"pieces of {call} that are empty, broken or no strings, {what}", fact=fact)
    return model, texts


# ---- task 5: tokens ----


@task(5)
@every_dtype
def test_every_token_once(solution, dtype):
    """tokens: each goes through the model once, at its place, and comes out before the next call"""
    for prompt in ([3, 1, 4, 1, 5], [9, 2], [7]):
        want = history_reply(prompt, 6, 50)
        model = HistoryModel(50, dtype)
        seen = [
            (token, len(model.calls))
            for token in solution.generate_tokens_with_kv_cache(model, list(prompt), {50}, max_tokens=6)
        ]
        what = f"generate_tokens_with_kv_cache(model, {prompt}, {{50}}, max_tokens=6), {dtype_name(dtype)}"
        check_calls(model, prompt, want, what=what)
        check.exact([t for t, _ in seen], want, what=f"the tokens of {what}", fact="gen-tokens")
        first = 1 if len(prompt) == 1 else 2
        shown = f"model calls made when each token came, {what}"
        check.exact([n for _, n in seen], list(range(first, first + 6)), what=shown, fact="gen-tokens")


@task(5)
def test_ends_at_any_eos(solution):
    """tokens: every EOS id ends the reply, and is no part of it"""
    for script in ([5, 6, 30], [5, 31], [7]):
        model = ScriptedModel(40, script, 3)
        got = list(solution.generate_tokens_with_kv_cache(model, [1, 2, 3], {30, 31, 7}))
        what = f"generate_tokens_with_kv_cache(model, [1, 2, 3], {{30, 31, 7}}), the model says {script}"
        check.exact(got, script[:-1], what=f"the tokens of {what}", fact="gen-tokens")
        check_calls(model, [1, 2, 3], script, what=what)


@task(5)
def test_max_tokens(solution):
    """tokens: at most max_tokens of them, and no model call more"""
    for most in (4, 1, 0):
        model = HistoryModel(50)
        got = list(solution.generate_tokens_with_kv_cache(model, [3, 1, 4], {50}, max_tokens=most))
        what = f"generate_tokens_with_kv_cache(model, [3, 1, 4], {{50}}, max_tokens={most})"
        check.exact(got, history_reply([3, 1, 4], most, 50), what=f"the tokens of {what}", fact="gen-max")
        calls = most + 1 if most else 0
        check.exact(len(model.calls), calls, what=f"model calls of {what}", fact="gen-max")


@task(5)
def test_sampler(solution):
    """tokens: the sampler chooses each of them, from one row"""
    sampler = Recorder(rank=2)
    got = list(solution.generate_tokens_with_kv_cache(HistoryModel(50), [2, 7, 1], {50}, sampler, 4))
    what = "generate_tokens_with_kv_cache(model, [2, 7, 1], {50}, sampler, 4), the sampler takes the second"
    check.exact(got, history_reply([2, 7, 1], 4, 50, rank=2), what=f"the tokens of {what}", fact="gen-tokens")
    check.exact(sampler.shapes, [(1, 50)] * 4, what=f"shapes the sampler got in {what}", fact="gen-tokens")


@task(5)
def test_replies_do_not_mix(solution):
    """tokens: three replies of one model, two of them in turns"""
    model, prompts = HistoryModel(50), ([3, 1, 4, 1], [5, 9], [2, 6, 5])
    want = [history_reply(prompt, 5, 50) for prompt in prompts]
    first = list(solution.generate_tokens_with_kv_cache(model, prompts[0], {50}, max_tokens=5))
    turns = [solution.generate_tokens_with_kv_cache(model, p, {50}, max_tokens=5) for p in prompts[1:]]
    second, third = zip(*zip(*turns, strict=False), strict=True)
    what = f"generate_tokens_with_kv_cache of one model for {prompts[0]}, then for the others in turns"
    got = [list(tokens) for tokens in (first, second, third)]
    check.exact(got, want, what=what, fact="gen-own-caches")
    check.exact(len(model.made), 3, what=f"calls of create_kv_cache, {what}", fact="gen-own-caches")


@task(5)
def test_prompt_is_read_only(solution):
    """tokens: the caller's list stays as it was, and an empty one is refused"""
    prompt = [3, 1, 4]
    got = list(solution.generate_tokens_with_kv_cache(HistoryModel(50), prompt, {50}, max_tokens=5))
    what = "generate_tokens_with_kv_cache(model, tokens, {50}, max_tokens=5)"
    check.exact(got, history_reply([3, 1, 4], 5, 50), what=f"the tokens of {what}", fact="gen-tokens")
    check.exact(prompt, [3, 1, 4], what=f"the caller's tokens after {what}", fact="gen-prompt")

    def empty():
        return list(solution.generate_tokens_with_kv_cache(HistoryModel(50), [], {50}, max_tokens=3))

    check_refused(empty, what="generate_tokens_with_kv_cache(model, [], {50})", fact="gen-prompt")


@task(5)
def test_prefill_computes_no_logits(solution):
    """tokens: the logits of the prompt are never computed, by the memory they would take"""
    V, prompt = 20_000, list(range(1, 301))
    model = LazyModel(V)
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    got = list(solution.generate_tokens_with_kv_cache(model, prompt, set(), max_tokens=3))
    peak = mx.get_peak_memory() - before
    want = [(300 * 7 + 3) % V]
    for _ in range(2):
        want.append((want[-1] * 7 + 3) % V)
    check.exact(got, want, what="3 tokens after a prompt of 300, V = 20000", fact="gen-tokens")
    every = 300 * V * 4
    what = (
        f"whether a prompt of 300 tokens took less than a quarter of what all its logits take: "
        f"{peak / 1e6:.1f} MB at the peak, all logits being {every / 1e6:.0f} MB"
    )
    check.exact(peak < every // 4, True, what=what, fact="gen-logits")


# ---- task 5: text ----


@task(5)
@every_dtype
def test_simple_text(solution, dtype):
    """text: the whole reply to two prompts, encoded without special tokens"""
    tokenizer = ByteTokenizer(b"the", b" cat")
    for text in ("the cat", "Où ?"):
        prompt = tokenizer.encode(text, add_special_tokens=False)
        reply = history_reply(prompt, 7, len(tokenizer))
        model = HistoryModel(len(tokenizer), dtype)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            got = solution.simple_generate_with_kv_cache(model, tokenizer, text, max_tokens=7)
        what = f"simple_generate_with_kv_cache(model, tokenizer, {text!r}, max_tokens=7), {dtype_name(dtype)}"
        check_calls(model, prompt, reply, what=what)
        check.exact(got, tokenizer.decode(reply), what=what, fact="gen-simple")
        check.exact(printed.getvalue(), "", what=f"what {what} printed", fact="gen-simple")


@task(5)
def test_simple_with_a_sampler(solution):
    """text: the sampler and both EOS, special tokens left out"""
    tokenizer = ByteTokenizer()
    prompt = tokenizer.encode("one", add_special_tokens=False)
    want = tokenizer.decode(history_reply(prompt, 5, len(tokenizer), rank=3))
    got = solution.simple_generate_with_kv_cache(
        HistoryModel(len(tokenizer)), tokenizer, "one", Recorder(rank=3), 5
    )
    what = "simple_generate_with_kv_cache(model, tokenizer, 'one', sampler, 5), the sampler takes the third"
    check.exact(got, want, what=what, fact="gen-simple")
    for eos in (tokenizer.END, tokenizer.HALT):
        script = [*b"yes", tokenizer.START, *b" 5\xe2\x82\xac", eos]
        model = ScriptedModel(len(tokenizer), script, 3)
        got = solution.simple_generate_with_kv_cache(model, tokenizer, "ask")
        what = f"simple_generate_with_kv_cache(model, tokenizer, 'ask'), 'yes<|start|> 5€' and EOS {eos}"
        check.exact(got, "yes 5€", what=what, fact="gen-simple")


@task(5)
def test_stream_in_time(solution):
    """stream: every piece as soon as its characters are whole"""
    for reply in ("the cat", "né €5 😀!"):
        options = {"what": f"the reply {reply!r}", "fact": "gen-stream"}
        model, texts = check_stream(solution, reply, reply, **options)
        data = reply.encode()
        for step, text in enumerate(texts[: len(data)], start=1):
            so_far = data[:step].decode(errors="replace")
            if not so_far.endswith("\ufffd"):
                what = f"the text yielded before model call {step + 2}, {options['what']}"
                check.exact(text, so_far, what=what, fact="gen-stream")
        check.exact(len(model.calls), len(data) + 2, what=f"model calls, {options['what']}", fact="gen-once")


@task(5)
def test_stream_stop_strings(solution):
    """stream: cut at the first stop string, and the model is not called again"""
    cases = ((("END",), "one ", 7), (["\n", "e E"], "on", 5), (("two", "x"), "one END ", 11))
    for stop, want, tokens in cases:
        options = {"what": "the reply 'one END two\\n'", "fact": "gen-stream", "stop": stop}
        model, _ = check_stream(solution, "one END two\n", want, **options)
        what = f"model calls, the reply 'one END two\\n', stop={stop!r}"
        check.exact(len(model.calls), tokens + 1, what=what, fact="gen-stop")


@task(5)
def test_stream_end(solution):
    """stream: at the end what was held back comes out"""
    options = {"what": "the reply 'one EN'", "fact": "gen-stream"}
    check_stream(solution, "one EN", "one EN", stop=("END",), **options)
    check_stream(solution, "one END", "one EN", stop=("END",), max_tokens=6, **options)
    cut = [*b"5 \xe2\x82"]
    check_stream(
        solution, "", "5 \ufffd", tokens=cut, what="the reply 5 \\xe2\\x82", fact="gen-stream", stop=("€",)
    )
    check_stream(solution, "abc", "", what="the reply 'abc'", fact="gen-stream", max_tokens=0)


@task(5)
def test_streams_in_turns(solution):
    """stream: two replies of one model read in turns, with a sampler"""
    tokenizer = ByteTokenizer()
    model = HistoryModel(len(tokenizer))
    texts, prompts = ["", ""], ("one", "two words")
    streams = [
        solution.stream_generate_with_kv_cache(model, tokenizer, p, Recorder(rank=2), 6) for p in prompts
    ]
    for _ in range(6):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    replies = [history_reply(list(p.encode()), 6, len(tokenizer), rank=2) for p in prompts]
    want = [tokenizer.decode(reply) for reply in replies]
    check.exact(texts, want, what="two streams of one model, read in turns, joined", fact="gen-own-caches")


# ---- task 5: the real thing ----

# One is enough: what follows it is certain or not by what the model has learnt.
OPENINGS = (
    "Once there was a girl named Anna.",
    "Once upon a time there was Anna the cat.",
    "Anna was sad because the kite was gone. Anna looked in the",
    "It began to rain. Anna was wet because she had no",
)


@task(5)
def test_tiny_qwen2_as_without_a_cache(solution):
    """tiny-qwen2: the reply that mlx-lm makes without a cache, and one position a step"""
    tokenizer, mlx_model = RealTokenizer(), shipped_model("tiny-qwen2")
    for start in OPENINGS:
        prompt = tokenizer.encode(start, add_special_tokens=False)
        reply = greedy_reply(mlx_model, prompt, 5, tokenizer.eos_token_ids)
        if len(reply) >= 3:
            break
    require(len(reply) >= 3, "after no opening are three tokens of the reply beyond doubt")
    rows = []

    def linear_of(layer):
        apply = solution.dense_linear(layer)

        def counted(x):
            rows.append(x.shape[1])
            return apply(x)

        return counted

    model = solution.Qwen2ModelWeek2(mlx_model, linear_of)
    tokens = solution.generate_tokens_with_kv_cache(model, prompt, tokenizer.eos_token_ids)
    got, run = [], []  # the positions that each step ran, by the most that any linear layer was given
    for _ in reply:
        rows.clear()
        got.append(next(tokens, None))
        run.append(max(rows, default=0))
    what = f"the first {len(reply)} tokens after {start!r}, tiny-qwen2"
    check.exact(got, reply, what=what, fact="gen-tokens")
    what = f"positions run in each of the {len(reply) - 1} steps after the first, tiny-qwen2"
    check.exact(run[1:], [1] * (len(reply) - 1), what=what, fact="gen-once")
    check.exact(run[0], len(prompt) - 1, what="the largest call before the first token", fact="gen-once")
    want = tokenizer.decode(reply, skip_special_tokens=True)
    text = solution.simple_generate_with_kv_cache(model, tokenizer, start, max_tokens=len(reply))
    what = f"simple_generate_with_kv_cache(model, tokenizer, {start!r}, max_tokens={len(reply)}), tiny-qwen2"
    check.exact(text, want, what=what, fact="gen-simple")
