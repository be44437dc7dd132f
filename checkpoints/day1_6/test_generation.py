"""Day 1.6: one step, the loop, whole characters and stop strings, against plain Python and float64 NumPy.

The models here are fakes whose next token can be predicted. HistoryModel's depends on every token so far, so
that a lost, repeated or added one changes all that follow; ScriptedModel's are given. Both lead by a wide
margin in every dtype, and note what they were called with. ByteTokenizer behaves like the tokenizer of
mlx_lm.load on text of our choice: tokens that cut characters, special tokens, several EOS, a detokenizer
that is a fresh object at every access. At the end of tasks 2 to 4 stands the real thing: the model and the
tokenizer that come with the course. Nothing is asked of what that model has learnt.
"""

import contextlib
import functools
import io
import itertools
import zlib

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import (
    ShippedTokenizer,
    as_float64,
    check,
    dtype_name,
    every_dtype,
    kept,
    mlx_lm_module,
    require,
    sample,
    shipped_model,
    task,
)

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
MARGIN = 2.0  # by which the best logit leads the second, that the third, and that all others, in every dtype
UNSURE = 1e-3  # of the largest logit; two computations in float32 differ by less than a tenth of that
MOST_CALLS = 120  # of a model: the longest reply here has far fewer tokens


# ---- fakes ----


class ByteTokenizer:
    """A byte-level tokenizer with the interface of mlx-lm's TokenizerWrapper.

    Ids 0 to 255 are bytes, then come `pieces` (byte strings of any kind), then the special tokens START, END,
    HALT and NOTE. END and HALT are EOS, and so is every id of `more_eos`. encode takes the longest piece that
    fits and, unless told otherwise, puts START in front.
    """

    def __init__(self, *pieces, more_eos=()):
        self._bytes = [bytes([n]) for n in range(256)] + list(pieces)
        self._longest = sorted(pieces, key=len, reverse=True)
        self._special = ["<|start|>", "<|end|>", "<|halt|>", "<|note|>"]
        self.START, self.END, self.HALT, self.NOTE = (len(self._bytes) + i for i in range(4))
        self.eos_token_id = self.END
        self.eos_token_ids = {self.END, self.HALT} | {self.id(piece) for piece in more_eos}
        # As in real checkpoints: tokens that were added as special need not be among these.
        self.all_special_ids = [self.START, self.END]

    def __len__(self):
        return len(self._bytes) + len(self._special)

    def id(self, piece):
        return self._bytes.index(piece)

    def ids(self, *pieces):
        """Byte strings and ids -> ids, a byte string that is no piece in single bytes."""
        found = []
        for piece in pieces:
            if isinstance(piece, int):
                found.append(piece)
            else:
                found += [self.id(piece)] if piece in self._bytes else list(piece)
        return found

    def encode(self, text, add_special_tokens=True):
        data, ids = text.encode(), [self.START] if add_special_tokens else []
        while data:
            piece = next((p for p in self._longest if data.startswith(p)), data[:1])
            ids.append(self.id(piece))
            data = data[len(piece) :]
        return ids

    def decode(self, token_ids, skip_special_tokens=False):
        token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return b"".join(self._bytes_of(t, skip_special_tokens) for t in token_ids).decode(errors="replace")

    @property
    def detokenizer(self):
        return Detokenizer(self)

    def _bytes_of(self, token, skip_special_tokens=False):
        if token < len(self._bytes):
            return self._bytes[token]
        return b"" if skip_special_tokens else self._special[token - len(self._bytes)].encode()


class Detokenizer:
    """mlx-lm's streaming detokenizer: text comes out once it is whole, special tokens are spelled out."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.reset()

    def reset(self):
        self.tokens, self.text, self.offset, self._unflushed = [], "", 0, []

    def add_token(self, token):
        self.tokens.append(token)
        self._unflushed.append(token)
        if not self._tokenizer.decode(self._unflushed).endswith("\ufffd"):
            self.finalize()

    def finalize(self):
        self.text += self._tokenizer.decode(self._unflushed)
        self._unflushed = []

    @property
    def last_segment(self):
        segment = self.text[self.offset :]
        self.offset = len(self.text)
        return segment


class _Watched:
    """(1, L) integer ids -> (1, L, V) logits; `inputs` lists the ids of every call."""

    def __init__(self):
        self.inputs = []

    def __call__(self, inputs):
        if not (isinstance(inputs, mx.array) and mx.issubdtype(inputs.dtype, mx.integer)):
            raise TypeError("the model takes one integer mx.array, (1, L)")
        if inputs.ndim != 2 or inputs.shape[0] != 1 or inputs.size == 0:
            raise ValueError(f"the model takes inputs of shape (1, L) with L > 0, not {tuple(inputs.shape)}")
        ids = inputs[0].tolist()
        self.inputs.append(ids)
        if len(self.inputs) > MOST_CALLS:
            raise RuntimeError(f"the model was called {len(self.inputs)} times: does the loop end?")
        return self.logits(ids)


class _FakeModel(_Watched):
    def __init__(self, vocabulary, dtype=F32):
        super().__init__()
        self.vocabulary, self.dtype = vocabulary, dtype

    def logits(self, ids):
        rows = np.stack([self.row(tuple(ids[: n + 1])) for n in range(len(ids))])
        return mx.array(rows[None]).astype(self.dtype)


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


class HistoryModel(_FakeModel):
    """The next token depends on all tokens so far, and on their order."""

    def row(self, history):
        return planted_row(self.vocabulary, zlib.crc32(np.array(history, dtype=np.int32).tobytes()))


class ScriptedModel(_FakeModel):
    """Replies with the ids of `script`, whatever the prompt. Called once more than that, it raises."""

    def __init__(self, vocabulary, script):
        super().__init__(vocabulary)
        self.script, self.prompt_length = script, 0

    def row(self, history):
        self.prompt_length = self.prompt_length or len(self.inputs[0])
        step = len(history) - self.prompt_length
        if step >= len(self.script):
            raise RuntimeError(f"the model was called again after the reply's last token, {self.script[-1]}")
        return planted_row(self.vocabulary, len(history), self.script[step] if step >= 0 else None)


# One is enough: what follows it is certain or not by what the model has learnt.
OPENINGS = (
    "Once there was a girl named Anna.",
    "Once upon a time there was Anna the cat.",
    "Anna was sad because the kite was gone. Anna looked in the",
    "It began to rain. Anna was wet because she had no",
)


@functools.cache
def real_model():
    return shipped_model("tiny-qwen2")


@kept
def real_logits(ids):
    return real_model()(mx.array([ids]))


class RealModel(_Watched):
    """tiny-qwen2, as mlx-lm computes it."""

    def logits(self, ids):
        return real_logits(ids)


class RealTokenizer(ShippedTokenizer):
    """tiny-qwen2's, with a detokenizer that is a fresh object at every access."""

    def __init__(self):
        super().__init__("tiny-qwen2")

    @property
    def detokenizer(self):
        return Detokenizer(self)


class Recorder:
    """A sampler that notes what it was given and picks the `rank`-th most probable token of the last row."""

    def __init__(self, rank=2, dtype=mx.uint32):
        self.rank, self.dtype, self.given = rank, dtype, []

    def __call__(self, logprobs):
        self.given.append(logprobs)
        order = mx.argsort(logprobs.astype(F32), axis=-1)
        return order[..., -self.rank].astype(self.dtype)


# ---- oracles ----


def logprobs64(row):
    """Normalised log-probabilities of logits (V,), float64."""
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def history_reply(prompt, count, vocabulary, rank=1):
    """What HistoryModel replies to the ids of a prompt when the rank-th token is taken at every step."""
    history = list(prompt)
    for _ in range(count):
        row = planted_row(vocabulary, zlib.crc32(np.array(history, dtype=np.int32).tobytes()))
        history.append(int(np.argsort(row)[-rank]))
    return history[len(prompt) :]


@kept
def greedy_reply(prompt, count, eos):
    """tiny-qwen2's greedy reply by mlx-lm, made with its key-value cache: at most `count` tokens.

    It ends before an EOS, and where the best logit leads by so little that another order of the same sums
    could choose another token.
    """
    model = real_model()
    cache = [mlx_lm_module("models.cache").KVCache() for _ in model.layers]
    reply, ids = [], list(prompt)
    while len(reply) < count:
        row = as_float64(model(mx.array([ids]), cache=cache))[0, -1]
        second, best = np.sort(row)[-2:]
        token = int(row.argmax())
        if best - second < UNSURE * np.abs(row).max() or token in eos:
            break
        reply.append(token)
        ids = [token]
    return reply


def until_stop(text, stop):
    """(the part of `text` that may be shown, whether it contains a stop string), from the definition."""
    for end in range(1, len(text) + 1):
        begins = [end - len(s) for s in stop if text[:end].endswith(s)]
        if begins:
            return text[: min(begins)], True
    open_ends = [n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])]
    return text[: len(text) - max(open_ends, default=0)], False


# ---- comparisons ----


def check_refused(call, *, what, fact):
    """`call()` raises ValueError."""
    raised = ""
    try:
        call()
    except ValueError:
        raised = "ValueError"
    check.exact(raised, "ValueError", what=f"the error raised by {what}", fact=fact)


def check_logprobs(given, logits, dtype, *, what, fact):
    """What a sampler was given, against the last row of logits."""
    row = as_float64(logits)[0, -1]
    want = logprobs64(row)
    # Rounded: the exponentials and their sum, its logarithm, the difference; numbers as large as these.
    size = np.abs(row).max() + np.abs(row - want).max()
    check.close(
        given, want[None], dtype=dtype, terms=len(row), roundings=5, magnitude=size, what=what, fact=fact
    )


def streamed(solution, model, tokenizer, prompt="ask", **options):
    """The pieces, and the text that was out at each model call and at the end: ([pieces], [texts])."""
    pieces, shown = [], {}
    for piece in solution.stream_generate(model, tokenizer, prompt, **options):
        pieces.append(piece)
        shown[len(model.inputs)] = "".join(map(str, pieces))
    texts, last = [], ""
    for calls in range(1, len(model.inputs) + 1):
        last = shown.get(calls, last)
        texts.append(last)
    return pieces, texts


def check_stream(solution, tokenizer, script, want, *, what, fact, stop=(), **options):
    """stream_generate on a scripted reply: whole pieces, in time, and joined the text wanted."""
    model = ScriptedModel(len(tokenizer), script)
    if stop:
        options["stop"] = stop
    pieces, texts = streamed(solution, model, tokenizer, **options)
    said = ", ".join(f"{name}={value!r}" for name, value in options.items())
    call = f'stream_generate(model, tokenizer, "ask"{", " + said if said else ""})'
    check.exact("".join(map(str, pieces)), want, what=f"{call} joined, {what}", fact=fact)
    odd = [p for p in pieces if not isinstance(p, str) or not p]
    check.exact(odd, [], what=f"pieces of {call} that are empty or no strings, {what}", fact="stream-pieces")
    broken = [p for p in pieces if "\ufffd" in p and "\ufffd" not in want]
    check.exact(broken, [], what=f"pieces of {call} with a broken character, {what}", fact="whole-characters")
    for step, text in enumerate(texts, start=1):
        reply = [t for t in script[:step] if t not in tokenizer.eos_token_ids]
        so_far = tokenizer.decode(reply, skip_special_tokens=True)
        if so_far.endswith("\ufffd") or step == len(texts):
            continue  # inside a character the part before it may be out or not; the end was compared above
        may, _ = until_stop(so_far, stop)
        what_step = f"the text yielded before model call {step + 1} of {call}, {what}"
        check.exact(text, may, what=what_step, fact="stream-in-time")
    return model


# ---- task 1: one step ----


@task(1)
@every_dtype
def test_greedy_takes_the_last_position(solution, dtype):
    """greedy: the best token of the last position"""
    for seed, best in ((1, 7), (2, 0), (3, 10)):
        rows = [planted_row(11, 100 * seed + i, (best + 3 * i) % 11) for i in (4, 3, 2, 1, 0)]
        logits = mx.array(np.stack(rows)[None]).astype(dtype)
        require(len({int(r.argmax()) for r in rows}) == 5, "two positions have the same best token")
        what = f"next_token(logits), logits (1, 5, 11) {dtype_name(dtype)}"
        check.exact(solution.next_token(logits), best, what=what, fact="last-position")


@task(1)
def test_greedy_first_of_all_is_not_the_last(solution):
    """greedy: a larger logit at an earlier position does not count"""
    rows = np.stack([planted_row(6, seed, best) + lift for seed, best, lift in ((5, 1, 20), (6, 4, 0))])
    got = solution.next_token(mx.array(rows[None].astype(np.float32)))
    check.exact(got, 4, what="next_token(logits), logits (1, 2, 6), the first row 20 higher", fact="greedy")


@task(1)
def test_greedy_one_position(solution):
    """greedy: a prompt of one token, and logits that are all negative"""
    row = planted_row(9, 8, 6) - 40.0
    got = solution.next_token(mx.array(row[None, None]))
    check.exact(got, 6, what="next_token(logits), logits (1, 1, 9), all below -20", fact="greedy")


@task(1)
@every_dtype
def test_sampler_is_given_log_probabilities(solution, dtype):
    """what a sampler is given"""
    for seed in (10, 11):
        logits, _ = sample((1, 4, 7), dtype, seed=seed, scale=3.0, mean=2.0)
        sampler = Recorder()
        solution.next_token(logits, sampler)
        what = f"next_token(logits, sampler), logits (1, 4, 7) {dtype_name(dtype)}"
        check.exact(len(sampler.given), 1, what=f"calls of the sampler in {what}", fact="sampler-input")
        what = f"the sampler's argument in {what}"
        check_logprobs(sampler.given[0], logits, dtype, what=what, fact="sampler-input")


@task(1)
@every_dtype
def test_sampler_far_apart(solution, dtype):
    """log-probabilities of tokens that are next to impossible, around +height and -height"""
    apart, height = (40.0, 60.0) if dtype == F16 else (200.0, 300.0)
    for shift in (height, -height):
        row = shift + np.array([0.0, -apart, -1.0, -apart / 2, 0.5])
        logits = mx.array(np.stack([row[::-1], row])[None].astype(np.float32)).astype(dtype)
        given = as_float64(logits)[0, -1]
        with np.errstate(over="ignore"):
            tiny = np.exp(given - given.max()).astype(np.float16 if dtype == F16 else np.float32)
        require(tiny[1] == 0, "the smallest probability does not underflow")
        sampler = Recorder(rank=1)
        solution.next_token(logits, sampler)
        what = f"logits (1, 2, 5) around {shift}, {apart} apart, {dtype_name(dtype)}"
        check.exact(len(sampler.given), 1, what=f"calls of the sampler, {what}", fact="sampler-input")
        what = f"the sampler's argument, {what}"
        check_logprobs(sampler.given[0], logits, dtype, what=what, fact="logprobs-finite")


@task(1)
@pytest.mark.parametrize("ids", [mx.uint32, mx.int32, mx.int64], ids=dtype_name)
def test_sampler_decides(solution, ids):
    """the sampler's token is the next one, also when it is not the best"""
    row = planted_row(8, 20)
    for rank in (2, 3, 1):
        want = int(np.argsort(row)[-rank])
        got = solution.next_token(mx.array(np.stack([row[::-1], row])[None]), Recorder(rank, ids))
        what = f"next_token(logits, sampler), a sampler that takes number {rank}, as {dtype_name(ids)}"
        check.exact(got, want, what=what, fact="sampler-input")


# ---- task 2: the loop ----


@task(2)
@every_dtype
def test_loop_feeds_every_token_back(solution, dtype):
    """the loop: the model sees all tokens so far, and each token is yielded before the next call"""
    for prompt in ([3, 1, 4, 1, 5], [9]):
        want = history_reply(prompt, 6, 50)
        model = HistoryModel(50, dtype)
        seen = [
            (token, len(model.inputs))
            for token in solution.generate_tokens(model, list(prompt), {50}, max_tokens=6)
        ]
        what = f"generate_tokens(model, {prompt}, ...), {dtype_name(dtype)}"
        steps = [prompt + want[:n] for n in range(6)]
        check.exact(model.inputs, steps, what=f"inputs[0] of each model call of {what}", fact="model-input")
        check.exact([t for t, _ in seen], want, what=f"the tokens of {what}", fact="model-input")
        calls = [n for _, n in seen]
        what = f"model calls made when each token of {what} came"
        check.exact(calls, [1, 2, 3, 4, 5, 6], what=what, fact="loop-yields")


@task(2)
def test_loop_ends_at_any_eos(solution):
    """the loop: every EOS id ends the reply and is no part of it"""
    for eos in (30, 31, 7):
        model = ScriptedModel(40, [5, 6, 8, eos])
        got = list(solution.generate_tokens(model, [1, 2], {30, 31, 7}))
        what = f"list(generate_tokens(model, [1, 2], {{30, 31, 7}})), the model says 5, 6, 8, {eos}"
        check.exact(got, [5, 6, 8], what=what, fact="eos-ends")
    got = list(solution.generate_tokens(ScriptedModel(40, [31]), [1, 2], {30, 31}))
    what = "list(generate_tokens(model, [1, 2], {30, 31})), the model says 31 at once"
    check.exact(got, [], what=what, fact="eos-ends")


@task(2)
def test_loop_max_tokens(solution):
    """the loop: at most max_tokens tokens, and no model call more"""
    for most in (4, 1, 0):
        model = HistoryModel(50)
        got = list(solution.generate_tokens(model, [3, 1, 4], {50}, max_tokens=most))
        what = f"generate_tokens(model, [3, 1, 4], {{50}}, max_tokens={most})"
        check.exact(got, history_reply([3, 1, 4], most, 50), what=f"the tokens of {what}", fact="max-tokens")
        check.exact(len(model.inputs), most, what=f"model calls of {what}", fact="max-tokens")


@task(2)
def test_loop_only_reads_the_prompt(solution):
    """the loop: the caller's list of tokens stays as it was"""
    prompt = [3, 1, 4]
    got = list(solution.generate_tokens(HistoryModel(50), prompt, {50}, max_tokens=5))
    check.exact(got, history_reply([3, 1, 4], 5, 50), what="generate_tokens(model, tokens, {50}, None, 5)")
    check.exact(prompt, [3, 1, 4], what="the caller's tokens after generate_tokens", fact="tokens-read")


@task(2)
def test_loop_with_a_sampler(solution):
    """the loop: the sampler chooses every token, and is given its position's log-probabilities"""
    sampler = Recorder(rank=2)
    got = list(solution.generate_tokens(HistoryModel(50), [2, 7], {50}, sampler, 4))
    want = history_reply([2, 7], 4, 50, rank=2)
    what = "list(generate_tokens(model, [2, 7], {50}, sampler, 4)), a sampler that takes the second best"
    check.exact(got, want, what=what, fact="loop-yields")
    check.exact(len(sampler.given), 4, what=f"calls of the sampler in {what}", fact="loop-yields")


PROMPT_PIECES = (b"the", b" cat", b" sat")


@task(2)
@every_dtype
def test_generate_replies(solution, dtype):
    """simple_generate: the reply's text for two prompts, encoded without special tokens"""
    tokenizer = ByteTokenizer(*PROMPT_PIECES)
    for text in ("the cat", "Où est le chat ?"):
        prompt = tokenizer.encode(text, add_special_tokens=False)
        want = tokenizer.decode(history_reply(prompt, 7, len(tokenizer)), skip_special_tokens=True)
        model = HistoryModel(len(tokenizer), dtype)
        got = solution.simple_generate(model, tokenizer, text, max_tokens=7)
        call = f"simple_generate(model, tokenizer, {text!r}, max_tokens=7), {dtype_name(dtype)}"
        what = f"the first inputs[0] of the model in {call}"
        check.exact((model.inputs or [[]])[0], prompt, what=what, fact="prompt-encoding")
        check.exact(got, want, what=call, fact="reply-text")


@task(2)
def test_generate_ends_at_any_eos(solution):
    """simple_generate: each of the tokenizer's EOS ids ends the reply, also one that is an ordinary token"""
    tokenizer = ByteTokenizer(b"Hello", b"\n\n", more_eos=[b"\n\n"])
    for eos in (tokenizer.END, tokenizer.HALT, tokenizer.id(b"\n\n")):
        model = ScriptedModel(len(tokenizer), tokenizer.ids(b"Hello", b" ", b"there", eos))
        got = solution.simple_generate(model, tokenizer, "ask")
        what = f"simple_generate(model, tokenizer, 'ask'), the reply ends with {tokenizer.decode([eos])!r}"
        check.exact(got, "Hello there", what=what, fact="eos-of-tokenizer")


@task(2)
def test_generate_leaves_out_special_tokens(solution):
    """simple_generate: special tokens inside a reply are not shown"""
    tokenizer = ByteTokenizer(b"yes", b"no")
    script = tokenizer.ids(
        tokenizer.START, b"yes", tokenizer.NOTE, b", ", b"no", tokenizer.NOTE, tokenizer.HALT
    )
    got = solution.simple_generate(ScriptedModel(len(tokenizer), script), tokenizer, "ask")
    what = "simple_generate(model, tokenizer, 'ask'), the reply <|start|>yes<|note|>, no<|note|><|halt|>"
    check.exact(got, "yes, no", what=what, fact="reply-text")


@task(2)
def test_generate_split_characters(solution):
    """simple_generate: characters whose bytes are spread over tokens"""
    tokenizer = ByteTokenizer(b"caf\xc3", b"\xa9 \xe2\x82", b"\xf0\x9f")
    script = tokenizer.ids(b"caf\xc3", b"\xa9 \xe2\x82", b"\xac", b"\xf0\x9f", b"\x98\x80", tokenizer.END)
    got = solution.simple_generate(ScriptedModel(len(tokenizer), script), tokenizer, "ask")
    what = "simple_generate(model, tokenizer, 'ask'), the reply 'café €😀' with characters cut by tokens"
    check.exact(got, "café €😀", what=what, fact="reply-text")


@task(2)
def test_generate_max_tokens(solution):
    """simple_generate: max_tokens counts the tokens of the reply, not of the prompt"""
    tokenizer = ByteTokenizer(*PROMPT_PIECES)
    for most, want in ((3, "abc"), (1, "a"), (0, "")):
        model = ScriptedModel(len(tokenizer), list(b"abcdef"))
        got = solution.simple_generate(model, tokenizer, "the cat sat", max_tokens=most)
        what = f"simple_generate(model, tokenizer, 'the cat sat', max_tokens={most}), the reply 'abcdef'"
        check.exact(got, want, what=what, fact="max-tokens")
        check.exact(len(model.inputs), most, what=f"model calls of {what}", fact="max-tokens")


@task(2)
def test_generate_empty_prompt(solution):
    """simple_generate: a prompt without tokens is refused"""
    tokenizer = ByteTokenizer()

    def call():
        return solution.simple_generate(HistoryModel(len(tokenizer)), tokenizer, "", max_tokens=3)

    check_refused(call, what="simple_generate(model, tokenizer, '')", fact="empty-prompt")


@task(2)
def test_generate_prints_nothing(solution):
    """simple_generate: nothing is printed"""
    tokenizer = ByteTokenizer()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        model = ScriptedModel(len(tokenizer), [*b"quiet", tokenizer.END])
        got = solution.simple_generate(model, tokenizer, "ask")
    check.exact(got, "quiet", what="simple_generate(model, tokenizer, 'ask')", fact="reply-text")
    check.exact(printed.getvalue(), "", what="what simple_generate printed", fact="prints-nothing")


@task(2)
def test_generate_calls_are_independent(solution):
    """simple_generate: the same call twice, with a sampler, and another prompt between"""
    tokenizer = ByteTokenizer()
    for text in ("one", "other", "one"):
        want = tokenizer.decode(history_reply(list(text.encode()), 5, len(tokenizer), rank=3), True)
        model = HistoryModel(len(tokenizer))
        got = solution.simple_generate(model, tokenizer, text, Recorder(rank=3), 5)
        what = f"simple_generate(model, tokenizer, {text!r}, sampler, 5), the sampler takes the third best"
        check.exact(got, want, what=what, fact="independent-calls")


@task(2)
def test_generate_with_tiny_qwen2(solution):
    """simple_generate: the greedy reply of tiny-qwen2, the model that comes with the course"""
    tokenizer, model = RealTokenizer(), RealModel()
    for text in OPENINGS:
        prompt = tokenizer.encode(text, add_special_tokens=False)
        reply = greedy_reply(prompt, 4, sorted(tokenizer.eos_token_ids))
        if len(reply) >= 2:
            break
    require(len(reply) >= 2, "after no opening are two tokens of the reply beyond doubt")
    steps = [prompt + reply[:n] for n in range(len(reply))]
    without_cache = [int(as_float64(real_logits(ids))[0, -1].argmax()) for ids in steps]
    require(without_cache == reply, f"with its cache mlx-lm replies {reply}, without it {without_cache}")
    want = tokenizer.decode(reply, skip_special_tokens=True)
    got = solution.simple_generate(model, tokenizer, text, max_tokens=len(reply))
    call = f"simple_generate(model, tokenizer, {text!r}, max_tokens={len(reply)}), tiny-qwen2"
    check.exact(model.inputs, steps, what=f"inputs[0] of each model call of {call}", fact="model-input")
    check.exact(got, want, what=call, fact="reply-text")


@task(2)
def test_generate_with_the_tokenizer_of_tiny_qwen2(solution):
    """simple_generate: a tool call and each EOS of tiny-qwen2's tokenizer"""
    tokenizer = RealTokenizer()
    want = 'Café.\n<tool_call>\n{"name": "add"}\n</tool_call>'
    reply = tokenizer.encode(want, add_special_tokens=False)
    require(len(tokenizer.encode("<tool_call>")) == 1, "<tool_call> is no token")
    require(len(tokenizer.eos_token_ids) > 1, "there is only one EOS")
    (turn,) = tokenizer.encode("<|im_start|>")  # a special token, which is not shown
    for eos in sorted(tokenizer.eos_token_ids):
        script = [*reply[:-1], turn, reply[-1], eos]
        got = solution.simple_generate(ScriptedModel(len(tokenizer), script), tokenizer, "ask")
        said = f"{want!r} with <|im_start|> inside, then {tokenizer.decode(eos)}"
        what = f"simple_generate(model, tiny-qwen2's tokenizer, 'ask'), the reply {said}"
        check.exact(got, want, what=what, fact="eos-of-tokenizer")


# ---- task 3: whole characters, as they come ----


def check_detokenizer(solution, tokenizer, tokens, *, what, fact):
    """An IncrementalDetokenizer on tokens: no broken pieces, no lag, and all of the text."""
    detokenizer = solution.IncrementalDetokenizer(tokenizer)
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    out = ""
    for n, token in enumerate(tokens, start=1):
        piece = detokenizer.add_token(token)
        call = f"add_token({token}), token {n} of {what}"
        check.exact(type(piece).__name__, "str", what=f"the type of {call}", fact=fact)
        out += piece
        so_far = tokenizer.decode(tokens[:n], skip_special_tokens=True)
        if not so_far.endswith("\ufffd"):
            check.exact(out, so_far, what=f"the text returned up to {call}", fact=fact)
        elif "\ufffd" not in whole:
            check.exact(piece, piece.replace("\ufffd", ""), what=call, fact="whole-characters")
    rest = detokenizer.finish()
    check.exact(
        type(rest).__name__, "str", what=f"the type of finish() after {what}", fact="detokenizer-whole"
    )
    check.exact(out + rest, whole, what=f"all text of {what}", fact="detokenizer-whole")


@task(3)
def test_detokenizer_whole_tokens(solution):
    """detokenizer: whole tokens come out at once"""
    tokenizer = ByteTokenizer(*PROMPT_PIECES)
    for text in ("the cat sat", "on the\n mat."):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        check_detokenizer(solution, tokenizer, tokens, what=repr(text), fact="whole-characters")


@task(3)
@pytest.mark.parametrize("character", ["é", "€", "😀"], ids=["2 bytes", "3 bytes", "4 bytes"])
def test_detokenizer_split_character(solution, character):
    """detokenizer: a character that comes byte by byte, and two in a row"""
    tokenizer = ByteTokenizer()
    for text in (f"a{character}b", f"{character}{character}"):
        check_detokenizer(solution, tokenizer, list(text.encode()), what=repr(text), fact="whole-characters")


@task(3)
def test_detokenizer_tokens_across_characters(solution):
    """detokenizer: tokens that end one character and begin the next"""
    tokenizer = ByteTokenizer(b"caf\xc3", b"\xa9 \xe2\x82", b"\xac\xf0\x9f", b"\x98\x80!")
    tokens = tokenizer.ids(b"caf\xc3", b"\xa9 \xe2\x82", b"\xac\xf0\x9f", b"\x98\x80!")
    require(len(tokens) == 4, "the tokens fell into bytes")
    check_detokenizer(solution, tokenizer, tokens, what="'café €😀!' in four tokens", fact="whole-characters")


@task(3)
def test_detokenizer_ends_inside_a_character(solution):
    """detokenizer: a reply that ends inside a character"""
    tokenizer = ByteTokenizer()
    for data in (b"10 \xe2\x82", b"\xf0\x9f\x98", b"ab"):
        check_detokenizer(solution, tokenizer, list(data), what=f"the bytes {data}", fact="detokenizer-whole")


@task(3)
def test_detokenizer_bytes_that_are_no_text(solution):
    """detokenizer: bytes that are no UTF-8, and a real U+FFFD"""
    tokenizer = ByteTokenizer()
    for data in (b"a\xffb\xe2\x82c", b"\xef\xbf\xbdx", b"x\xef\xbf\xbd", b"\x80\x80"):
        check_detokenizer(solution, tokenizer, list(data), what=f"the bytes {data}", fact="detokenizer-whole")


@task(3)
def test_detokenizer_special_tokens(solution):
    """detokenizer: special tokens have no text"""
    tokenizer = ByteTokenizer(b"yes", b"no")
    tokens = tokenizer.ids(b"yes", tokenizer.NOTE, b", ", b"no", tokenizer.START)
    what = "yes<|note|>, no<|start|>"
    check_detokenizer(solution, tokenizer, tokens, what=what, fact="detokenizer-whole")


@task(3)
def test_detokenizers_share_nothing(solution):
    """detokenizer: two replies in turns"""
    tokenizer = ByteTokenizer()
    one, two = solution.IncrementalDetokenizer(tokenizer), solution.IncrementalDetokenizer(tokenizer)
    pieces = [
        d.add_token(t) for a, b in zip("é!".encode(), b"xyz", strict=True) for d, t in ((one, a), (two, b))
    ]
    want = ["", "x", "é", "y", "!", "z"]
    check.exact(pieces, want, what="pieces of 'é!' and 'xyz', fed in turns", fact="detokenizer-own")
    check.exact(one.finish() + two.finish(), "", what="finish() of both", fact="detokenizer-own")


@task(3)
def test_stream_text(solution):
    """stream_generate: pieces in time, and joined the whole text"""
    tokenizer = ByteTokenizer(*PROMPT_PIECES, b"caf\xc3")
    for pieces in ((b"the", b" cat", b" sat"), (b"caf\xc3", b"\xa9", b" ", "€😀".encode(), b"!")):
        script = tokenizer.ids(*pieces, tokenizer.END)
        want = b"".join(pieces).decode()
        check_stream(solution, tokenizer, script, want, what=f"the reply {want!r}", fact="stream-pieces")


@task(3)
def test_stream_special_tokens(solution):
    """stream_generate: special tokens are not shown, and give no empty piece"""
    tokenizer = ByteTokenizer(b"yes")
    script = tokenizer.ids(
        tokenizer.NOTE, b"yes", tokenizer.NOTE, b", ", tokenizer.START, b"yes", tokenizer.HALT
    )
    what = "the reply <|note|>yes<|note|>, <|start|>yes<|halt|>"
    check_stream(solution, tokenizer, script, "yes, yes", what=what, fact="stream-pieces")


@task(3)
def test_stream_ends_at_any_eos(solution):
    """stream_generate: each of the tokenizer's EOS ids ends the reply"""
    tokenizer = ByteTokenizer(b"\n\n", more_eos=[b"\n\n"])
    for eos in (tokenizer.END, tokenizer.HALT, tokenizer.id(b"\n\n")):
        what = f"the reply 'done' and then {tokenizer.decode([eos])!r}"
        check_stream(solution, tokenizer, [*b"done", eos], "done", what=what, fact="stream-pieces")


@task(3)
def test_stream_ends_inside_a_character(solution):
    """stream_generate: max_tokens or an EOS inside a character"""
    tokenizer = ByteTokenizer()
    script = [*b"5 \xe2\x82", tokenizer.END]
    check_stream(solution, tokenizer, script, "5 \ufffd", what="the reply 5 \\xe2\\x82", fact="stream-pieces")
    options = {"what": "the reply '5 €'", "max_tokens": 3}
    check_stream(solution, tokenizer, list("5 €".encode()), "5 \ufffd", fact="stream-pieces", **options)


@task(3)
def test_stream_max_tokens(solution):
    """stream_generate: at most max_tokens tokens, and no model call more"""
    tokenizer = ByteTokenizer()
    for most, want in ((4, "abcd"), (1, "a"), (0, "")):
        options = {"what": "the reply 'abcdef'", "max_tokens": most}
        model = check_stream(solution, tokenizer, list(b"abcdef"), want, fact="stream-pieces", **options)
        what = f"model calls of stream_generate(..., max_tokens={most})"
        check.exact(len(model.inputs), most, what=what, fact="max-tokens")


@task(3)
@every_dtype
def test_stream_is_simple_generate(solution, dtype):
    """stream_generate: the text of simple_generate, greedy and with a sampler"""
    tokenizer = ByteTokenizer(*PROMPT_PIECES)
    for rank, sampler in ((1, None), (2, Recorder(rank=2))):
        prompt = tokenizer.encode("the cat", add_special_tokens=False)
        want = tokenizer.decode(history_reply(prompt, 8, len(tokenizer), rank), skip_special_tokens=True)
        model = HistoryModel(len(tokenizer), dtype)
        pieces, _ = streamed(solution, model, tokenizer, "the cat", sampler=sampler, max_tokens=8)
        what = f"stream_generate(model, tokenizer, 'the cat', sampler, 8) joined, {dtype_name(dtype)}"
        first = f"the first inputs[0] of the model in {what}"
        check.exact((model.inputs or [[]])[0], prompt, what=first, fact="prompt-encoding")
        check.exact("".join(map(str, pieces)), want, what=what, fact="stream-pieces")


@task(3)
def test_streams_side_by_side(solution):
    """stream_generate: two replies read in turns"""
    tokenizer = ByteTokenizer()
    replies = ("é1é2", "a€b€")
    texts = ["", ""]
    models = [ScriptedModel(len(tokenizer), [*r.encode(), tokenizer.END]) for r in replies]
    streams = [solution.stream_generate(m, tokenizer, "ask") for m in models]
    for _ in range(8):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    check.exact(tuple(texts), replies, what="two streams, read in turns, joined", fact="independent-calls")


@task(3)
def test_stream_empty_prompt(solution):
    """stream_generate: a prompt without tokens is refused"""
    tokenizer = ByteTokenizer()

    def call():
        return list(solution.stream_generate(HistoryModel(len(tokenizer)), tokenizer, "", max_tokens=3))

    check_refused(call, what="list(stream_generate(model, tokenizer, ''))", fact="empty-prompt")


# No story of the course's has these characters, so the tokenizer spells them in bytes.
MANY_BYTES = "Anna saw a 🦊, said 你好 and ate crème brûlée. 🎉"


@task(3)
def test_detokenizer_with_the_tokenizer_of_tiny_qwen2(solution):
    """detokenizer: emoji, Chinese and accents in tiny-qwen2's tokens"""
    tokenizer = RealTokenizer()
    tokens = tokenizer.encode(MANY_BYTES, add_special_tokens=False)
    require(sum("\ufffd" in tokenizer.decode(t) for t in tokens) > 8, "the tokens cut no characters")
    what = f"{MANY_BYTES!r} in tiny-qwen2's tokens"
    check_detokenizer(solution, tokenizer, tokens, what=what, fact="whole-characters")


@task(3)
def test_stream_with_the_tokenizer_of_tiny_qwen2(solution):
    """stream_generate: emoji, Chinese and accents in tiny-qwen2's tokens, also cut off in the middle"""
    tokenizer = RealTokenizer()
    tokens = tokenizer.encode(MANY_BYTES, add_special_tokens=False)
    what = f"the reply {MANY_BYTES!r} in tiny-qwen2's tokens"
    script = [*tokens, tokenizer.eos_token_id]
    check_stream(solution, tokenizer, script, MANY_BYTES, what=what, fact="stream-pieces")
    cut = len(tokens) - 1
    want = tokenizer.decode(tokens[:cut], skip_special_tokens=True)
    require(want.endswith("\ufffd"), "the cut is at the end of a character")
    check_stream(solution, tokenizer, tokens, want, what=what, fact="stream-pieces", max_tokens=cut)


# ---- task 4: stop strings ----


def check_matcher(solution, pieces, stop, *, fact):
    """A StopMatcher on pieces of text: what comes out after each, whether it stopped, what is left."""
    matcher = solution.StopMatcher(stop)
    out, fed, stopped = "", "", False
    call = f"StopMatcher({stop!r})"
    for piece in pieces:
        fed += piece
        out += str(matcher.push(piece))
        want, stopped = until_stop(fed, stop)
        what = f"{call}, pieces {pieces!r} up to {fed!r}"
        check.exact(out, want, what=f"the text of {what}", fact="stop-held" if not stopped else fact)
        check.exact(bool(matcher.stopped), stopped, what=f"stopped of {what}", fact=fact)
        if stopped:
            break
    rest = "" if stopped else fed[len(want) :]
    check.exact(matcher.finish(), rest, what=f"finish() of {call} after {fed!r}", fact="stop-finish")


@task(4)
def test_matcher_inside_a_piece(solution):
    """stop: a stop string inside a piece, and at its start and end"""
    for text in ("one END two", "END", "END two", "one END", "no stop here"):
        check_matcher(solution, [text], ("END",), fact="stop-first")


@task(4)
def test_matcher_across_pieces(solution):
    """stop: a stop string spread over pieces, cut at every place"""
    for cut in range(1, 7):
        text = "ab###c"
        check_matcher(solution, [text[:cut], text[cut:], "d"], ("###",), fact="stop-anywhere")
    check_matcher(solution, list("ab###cd"), ("###",), fact="stop-anywhere")


@task(4)
def test_matcher_false_alarms(solution):
    """stop: text that begins like a stop string and goes on otherwise"""
    for text, stop in (("aaab", "aab"), ("ababac", "abac"), ("x##y###", "###"), ("nnno", "no")):
        check_matcher(solution, list(text), (stop,), fact="stop-anywhere")
    for pieces, stop in ((["a", "aa", "b"], "aab"), (["##", "#"], "###"), (["#", "a", "##a"], "##b")):
        check_matcher(solution, pieces, (stop,), fact="stop-held")


@task(4)
def test_matcher_several(solution):
    """stop: of several stop strings the first to be complete counts, whatever their order"""
    stops = [("END", "\n"), ("\n", "END"), ("abc", "bc"), ("bc", "abc"), ("abcd", "bc"), ("bc", "abcd")]
    for stop in stops:
        for text in ("one\ntwo END", "one END two\n", "xabcdy", "xbcd"):
            check_matcher(solution, [text], stop, fact="stop-first")
            check_matcher(solution, list(text), stop, fact="stop-first")


@task(4)
def test_matcher_holds_back_no_more_than_needed(solution):
    """stop: only what a stop string could begin with is held back"""
    check_matcher(solution, ["Hello", " Us", "er", " Use", "r:"], ("User:", "</s>"), fact="stop-held")
    check_matcher(solution, list("a<b </ </s>"), ("</s>", "</section>"), fact="stop-held")


@task(4)
def test_matcher_against_the_definition(solution):
    """stop: texts of two letters in random pieces, with random stop strings"""
    rng = np.random.default_rng(30)
    ended = 0
    for _ in range(60):
        text = "".join(rng.choice(list("ab"), 12))
        stop = tuple("".join(rng.choice(list("abb"), rng.integers(3, 6))) for _ in range(rng.integers(1, 4)))
        cuts = [0, *sorted(set(rng.integers(1, 12, 4).tolist())), 12]
        pieces = [text[i:j] for i, j in itertools.pairwise(cuts)]
        ended += until_stop(text, stop)[1]
        check_matcher(solution, pieces, stop, fact="stop-first")
    require(15 < ended < 55, f"{ended} of 60 texts hold a stop string")


@task(4)
def test_matcher_finish(solution):
    """stop: held-back text comes out at the end, none after a stop; matchers share nothing"""
    for text in ("one EN", "E", "one"):
        check_matcher(solution, list(text), ("END", "ENTER"), fact="stop-finish")
    one, two = solution.StopMatcher(("END",)), solution.StopMatcher(("END",))
    got = [one.push("xE"), two.push("yEN"), one.push("ND"), two.push("T"), one.finish(), two.finish()]
    what = "push('xE'), push('ND') and finish(), in turns with another's push('yEN'), push('T') and finish()"
    check.exact(got, ["x", "y", "", "ENT", "", ""], what=what, fact="stop-own")


@task(4)
def test_matcher_without_stop_strings(solution):
    """stop: no stop strings at all, and an empty one"""
    check_matcher(solution, ["one", "\n", "two"], (), fact="stop-first")
    matcher = solution.StopMatcher
    check_refused(lambda: matcher(("END", "")), what='StopMatcher(("END", ""))', fact="stop-empty")


@task(4)
@pytest.mark.parametrize("cut", ["bytes", "token", "astride"])
def test_stream_stops(solution, cut):
    """stream_generate: a stop string in bytes, inside one token, and astride two"""
    tokenizer = ByteTokenizer(b"one\nUser: two", b"one\nUs", b"er: two")
    pieces = {
        "bytes": [*b"one\nUser: two"],
        "token": [b"one\nUser: two"],
        "astride": [b"one\nUs", b"er: two"],
    }
    script = tokenizer.ids(*pieces[cut], tokenizer.END)
    options = {"what": f"the reply 'one\\nUser: two' ({cut})", "stop": ("\nUser:", "###")}
    model = check_stream(solution, tokenizer, script, "one", fact="stop-stream", **options)
    calls = {"bytes": 9, "token": 1, "astride": 2}[cut]
    check.exact(len(model.inputs), calls, what=f"model calls, {options['what']}", fact="stop-stream")


@task(4)
def test_stream_flushes_what_was_held_back(solution):
    """stream_generate: text held back is yielded at an EOS and at max_tokens"""
    tokenizer = ByteTokenizer()
    for text in ("one EN", "EN", "xE"):
        options = {"what": f"the reply {text!r}", "stop": ["END"]}
        script = [*text.encode(), tokenizer.END]
        check_stream(solution, tokenizer, script, text, fact="stop-flush", **options)
        options["max_tokens"] = len(text)
        script = [*text.encode(), *b"D more"]
        check_stream(solution, tokenizer, script, text, fact="stop-flush", **options)


@task(4)
def test_stream_stop_strings_of_many_bytes(solution):
    """stream_generate: stop strings of split characters, and a reply that ends inside one"""
    tokenizer = ByteTokenizer()
    options = {"what": "the reply '5 €uro'", "stop": ("€u", "é")}
    check_stream(solution, tokenizer, [*"5 €uro".encode()], "5 ", fact="stop-stream", **options)
    options = {"what": "the reply 5€ \\xe2\\x82", "stop": ("€ !",)}
    script = [*"5€ ".encode(), 0xE2, 0x82, tokenizer.END]
    check_stream(solution, tokenizer, script, "5€ \ufffd", fact="stop-flush", **options)


@task(4)
def test_stream_stop_in_the_prompt(solution):
    """stream_generate: a stop string in the prompt, or begun in it, does not count"""
    tokenizer = ByteTokenizer()
    for prompt in ("say END now", "say EN"):
        options = {"what": f"the prompt {prompt!r}", "stop": ("END",)}
        model = ScriptedModel(len(tokenizer), [*b"Dear", tokenizer.END])
        pieces, _ = streamed(solution, model, tokenizer, prompt, stop=options["stop"])
        what = f"stream_generate(model, tokenizer, {prompt!r}, stop=('END',)) joined, the reply 'Dear'"
        check.exact("".join(pieces), "Dear", what=what, fact="stop-stream")


@task(4)
def test_stream_without_stop_strings(solution):
    """stream_generate: stop=() and stop strings that never come change nothing; an empty one is refused"""
    tokenizer = ByteTokenizer()
    script = [*"né END\n".encode(), tokenizer.HALT]
    for stop in ((), ["STOP", "ENDE"]):
        options = {"what": "the reply 'né END\\n'", "stop": stop}
        check_stream(solution, tokenizer, script, "né END\n", fact="stop-stream", **options)

    def call():
        model = ScriptedModel(len(tokenizer), script)
        return list(solution.stream_generate(model, tokenizer, "ask", stop=["END", ""]))

    what = 'list(stream_generate(model, tokenizer, "ask", stop=["END", ""]))'
    check_refused(call, what=what, fact="stop-empty")


@task(4)
def test_stream_stops_with_the_tokenizer_of_tiny_qwen2(solution):
    """stream_generate: a stop string that begins and ends inside tiny-qwen2's tokens"""
    tokenizer = RealTokenizer()
    text = "Once there was a girl named Anna. She had a red ball 🎈 and a kite."
    tokens = tokenizer.encode(text, add_special_tokens=False)
    ends = [tokenizer.decode(tokens[:n]) for n in range(len(tokens) + 1)]
    for stop in ("irl nam", "l 🎈 an"):
        before = text[: text.index(stop)]
        require(before not in ends and before + stop not in ends, f"{stop!r} begins or ends with a token")
        calls = next(n for n, end in enumerate(ends) if stop in end)
        what = f"the reply {text!r} in tiny-qwen2's tokens"
        options = {"what": what, "stop": ("###", stop)}
        model = check_stream(solution, tokenizer, tokens, before, fact="stop-stream", **options)
        check.exact(len(model.inputs), calls, what=f"model calls, stop {stop!r}, {what}", fact="stop-stream")
