"""Day 1.6: from logits to text: one step, the loop, whole characters, stop strings.

The plain version: it keeps nothing of the model's work between steps, so every step runs all tokens so far
through the model again. Day 2.1 adds the key-value cache, and day 2.6 serves several prompts at once; what
turns tokens into text stays as it is here.

Letters: L tokens so far, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

import mlx.core as mx

Model = Callable[[mx.array], mx.array]  # (1, L) token ids -> (1, L, V) logits
Sampler = Callable[[mx.array], mx.array]  # (1, V) log-probabilities -> (1,) token ids


class Tokenizer(Protocol):
    """What this day uses of the tokenizer that mlx_lm.load returns."""

    eos_token_ids: Collection[int]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str: ...


def next_token(logits: mx.array, sampler: Sampler | None = None) -> int:
    """The token that follows, chosen from a model's logits.

    Only the last position counts: the next token comes from logits[:, -1, :].

    sampler=None is greedy: the token with the largest logit.

    A sampler is called once, with the normalised log-probabilities of the last position, an array of shape
    (1, V) in the logits' dtype; it returns an integer array of shape (1,).

    Log-probabilities are finite, also where the probability itself rounds to 0.

    Args:
        logits: (1, L, V), floating dtype.
        sampler: (1, V) log-probabilities -> (1,) token ids, or None.

    Returns:
        The token's id, a Python int.
    """
    last = logits[:, -1, :]  # (1, V)
    if sampler is None:
        # subtle: of the logits. In bfloat16 the rounding of log-probabilities can make two tokens equal.
        return mx.argmax(last, axis=-1).item()
    wide = last.astype(mx.float32)
    # subtle: not log(softmax(x)). That takes the log of a number that has underflowed to 0 and gives -inf.
    logprobs = wide - mx.logsumexp(wide, axis=-1, keepdims=True)
    return sampler(logprobs.astype(logits.dtype)).item()


def generate_tokens(
    model: Model,
    tokens: Sequence[int],
    eos_token_ids: Collection[int],
    sampler: Sampler | None = None,
    max_tokens: int = 256,
) -> Iterator[int]:
    """The reply's token ids, one at a time.

    Each step calls model(inputs) once, with all tokens so far: an integer array of shape (1, L), first the
    prompt, then one token longer at every step.

    Every token comes from next_token with the sampler given, and is yielded before the model is called for
    the next one.

    Any id in eos_token_ids ends the reply and is not part of it.

    max_tokens is the largest number of tokens to generate, an EOS included; after that many model calls
    there is no other, and with 0 there is none.

    The caller's list of tokens is only read.

    A prompt without tokens raises ValueError, at the latest when the first token or piece is asked for.

    Args:
        model: (1, L) integer array -> (1, L, V) logits.
        tokens: the prompt's ids.
        eos_token_ids: ids that end the reply.
        sampler: as next_token takes it.
        max_tokens: 0 or more.
    """
    if not tokens:
        raise ValueError("the prompt has no tokens, so there is no position to predict from")
    history = list(tokens)
    for _ in range(max_tokens):
        token = next_token(model(mx.array(history)[None]), sampler)
        if token in eos_token_ids:
            return
        yield token
        history.append(token)


def simple_generate(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str,
    sampler: Sampler | None = None,
    max_tokens: int = 256,
) -> str:
    """The model's reply to a prompt.

    The prompt is encoded with tokenizer.encode(prompt, add_special_tokens=False); a chat template is the
    caller's business.

    Any id in tokenizer.eos_token_ids ends the reply.

    The result is tokenizer.decode of the reply's ids with skip_special_tokens=True: no prompt, no EOS, no
    special tokens.

    Nothing is printed.

    Calls are independent of each other: nothing is kept from one to the next.

    A prompt without tokens raises ValueError, at the latest when the first token or piece is asked for.

    Args:
        model, sampler, max_tokens: as generate_tokens takes them.
        tokenizer: what mlx_lm.load returns beside the model.
        prompt: text.
    """
    tokens = tokenizer.encode(prompt, add_special_tokens=False)
    reply = list(generate_tokens(model, tokens, tokenizer.eos_token_ids, sampler, max_tokens))
    return tokenizer.decode(reply, skip_special_tokens=True)


class IncrementalDetokenizer:
    """Turns the tokens of one reply into text as they come.

    add_token returns the text that has become whole, "" if there is none; finish returns what is left at
    the end of the reply.

    Bytes of an unfinished UTF-8 character wait: no piece holds a part of a character. Once the tokens so
    far end with a whole character, all their text has been returned.

    All pieces joined are tokenizer.decode of all the tokens with skip_special_tokens=True, also when the
    reply ends inside a character or holds bytes that are no UTF-8.

    Each IncrementalDetokenizer is one reply's: two of them share nothing.

    For byte-level tokenizers such as Qwen2's. A SentencePiece tokenizer drops the space in front of what it
    decodes, so there the token before would have to be decoded along.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """tokenizer: its `decode` is used."""
        self.tokenizer = tokenizer
        self.waiting: list[int] = []  # tokens whose text has not been returned

    def add_token(self, token: int) -> str:
        """Take the reply's next token; return the text that is whole now."""
        self.waiting.append(token)
        text = self.tokenizer.decode(self.waiting, skip_special_tokens=True)
        # decode writes U+FFFD for bytes that are no character, or not yet. At the end it may be "not yet".
        if text.endswith("\ufffd"):
            return ""
        self.waiting = []
        return text

    def finish(self) -> str:
        """The text of the tokens that still wait, as decode gives it; the reply has ended."""
        text = self.tokenizer.decode(self.waiting, skip_special_tokens=True)
        self.waiting = []
        return text


class StopMatcher:
    """Passes text on until it contains a stop string.

    The text ends before the stop string that is complete first; of several complete at the same character,
    before the one that begins first. The stop string and what follows it are dropped.

    A stop string is found wherever it stands: across pieces, inside one, or right at the start.

    push returns everything that can no longer become part of a stop string. Held back is only the longest
    end of the text with which some stop string begins.

    finish returns what is held back, or "" after a stop. `stopped` says whether a stop string was found.

    An empty stop string raises ValueError.

    Each StopMatcher is one reply's: two of them share nothing.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """stop: the stop strings, in any order; () stops nothing."""
        if "" in stop:
            raise ValueError("an empty stop string would end every reply before it begins")
        self.stop = tuple(stop)
        self.stopped = False
        self.held = ""

    def push(self, text: str) -> str:
        """Take the text that follows; return the text that may go out now, "" if there is none."""
        ready = ""
        for character in text:  # so that where the text is cut into pieces makes no difference
            self.held += character
            found = [s for s in self.stop if self.held.endswith(s)]
            if found:
                self.stopped = True
                ready += self.held[: -len(max(found, key=len))]
                self.held = ""
                return ready
            keep = self._open_end()
            ready += self.held[: len(self.held) - keep]
            self.held = self.held[len(self.held) - keep :]
        return ready

    def finish(self) -> str:
        """The text that was held back; the reply has ended."""
        held, self.held = self.held, ""
        return held

    def _open_end(self) -> int:
        """Length of the longest end of `held` with which a stop string begins."""
        lengths = range(len(self.held), 0, -1)
        return next((n for n in lengths if any(s.startswith(self.held[-n:]) for s in self.stop)), 0)


def stream_generate(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str,
    sampler: Sampler | None = None,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """simple_generate's text in pieces, as soon as there is something to show.

    With stop=() the pieces joined are the text of simple_generate, and no piece is empty.

    When the tokens so far end with a whole character, their text has been yielded before the model is
    called again, but for what a stop string could begin with.

    The reply's text is cut as StopMatcher does it; after a stop the model is not called again. Stop strings
    in the prompt do not count.

    When the reply ends at an EOS or at max_tokens, the text held back is yielded.

    A prompt without tokens raises ValueError, at the latest when the first token or piece is asked for. So
    does an empty stop string.

    Args:
        model, tokenizer, prompt, sampler, max_tokens: as simple_generate takes them.
        stop: non-empty strings; a tuple or a list.
    """
    detokenizer = IncrementalDetokenizer(tokenizer)
    matcher = StopMatcher(stop)
    tokens = tokenizer.encode(prompt, add_special_tokens=False)
    for token in generate_tokens(model, tokens, tokenizer.eos_token_ids, sampler, max_tokens):
        piece = matcher.push(detokenizer.add_token(token))
        if piece:
            yield piece
        if matcher.stopped:
            return
    rest = matcher.push(detokenizer.finish()) + matcher.finish()
    if rest:
        yield rest
