"""Day 2.6: continuous batching. Several requests share each model call, and a slot that is free is filled.

What this is: a cache whose rows belong to different requests, a request that knows how far it is, and a loop
that serves a list of prompts. What it is not: a scheduler. Prompts are taken in their order, one chunk of one
prompt a turn; day 2.7 decides better who runs when, and samples.

Letters: B slots, which are the rows of a batch, H key/value heads, L new tokens of each row, S columns, D
head dim, V vocabulary size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx

from ..week1.generation import Tokenizer, next_token
from .kv_cache import Mask, TinyKvCache


class BatchingModel(Protocol):
    """What this day uses of Qwen2ModelWeek2: one row with an offset, or a batch with one for each row."""

    num_hidden_layers: int

    def create_kv_cache(self) -> list[TinyKvCache]: ...

    def __call__(self, inputs: mx.array, offset: int | list[int], cache: Sequence) -> mx.array: ...


def batch_mask(offset: list[int], L: int, dtype: mx.Dtype) -> mx.array:
    """The additive mask for L new tokens in each row of a batch whose rows end together.

    batch_mask(offset, L, dtype) is B x 1 x L x S, where B = len(offset) and S = max(offset) + L. In row b
    query i sees the columns S - L - offset[b] to S - L + i, 0 there, and no others, -inf there.

    So a query sees the tokens of its own row up to itself, and no padding. A row with offset 0 has the L new
    tokens alone, and no query sees nothing.

    Args:
        offset: tokens that each row held before these L, 0 or more.
        L: at least 1.
        dtype: floating dtype of the result.
    """
    before = max(offset)
    column = mx.arange(before + L)
    first = mx.array([before - n for n in offset])[:, None, None, None]  # where each row's tokens begin
    query = mx.arange(before, before + L)[:, None]
    seen = (column >= first) & (column <= query)  # (B, 1, L, S)
    return mx.where(seen, 0.0, -mx.inf).astype(dtype)


class BatchingKvCache:
    """The keys and values of one layer for several requests, each in a slot of its own.

    offset is a list with the tokens stored in each slot, 0 where it is empty. Every change makes a new list:
    one that was read before stays as it was.

    add_request(prefilled, id) copies the tokens of prefilled, a TinyKvCache with one row, into slot id, which
    must be empty; it holds 1 to max_seq_len tokens and is only read. remove_request(id) empties slot id.

    update_and_fetch takes B rows of L new tokens, one for each slot, and stores those of the slots that hold
    a request; an empty slot stays empty. It returns (key, value, offset, mask): key and value as B x H x S x
    D, the offset after the update, and batch_mask for the offset before it, in key's dtype and whatever mask
    was given.

    Every row ends with its newest token, in the last column. In front of its first token there are zeros,
    and the row of an empty slot is zeros throughout: nothing of an earlier request is left.

    A slot that does not exist, one to be filled that is taken, one to be emptied that is empty, a prefilled
    cache of another size, and an update that brings a request over max_seq_len raise ValueError and change
    nothing.

    While there is room an update copies nothing that is stored: MLX allocates space for the new tokens and
    the mask at most, as long as nobody holds on to what an earlier call returned.

    state lists the two arrays that hold what is stored. They have fewer than max_seq_len + 2 * step columns,
    however many updates there have been. With all slots empty state is [] and nothing is held.

    Arrays are only read: the caller's stay as they were, and what a call has returned keeps its values
    whatever comes later.
    """

    def __init__(self, max_active_requests: int, max_seq_len: int, step: int = 64) -> None:
        """max_active_requests: B; max_seq_len: the most tokens of a request; step: room is made in steps."""
        self.max_active_requests = max_active_requests
        self.max_seq_len = max_seq_len
        self.step = step
        self.offset = [0] * max_active_requests
        # (B, H, room, D). Slot b's tokens are the columns end - offset[b] to end - 1; all else is zeros.
        self.key: mx.array | None = None
        self.value: mx.array | None = None
        self.end = 0

    @property
    def state(self) -> list[mx.array]:
        return [] if self.key is None else [self.key, self.value]

    def add_request(self, prefilled: TinyKvCache, id: int) -> None:
        """Copy the tokens of `prefilled`, this layer's cache of one request, into the empty slot `id`."""
        tokens = prefilled.offset
        if self._tokens_in(id):
            raise ValueError(f"slot {id} is taken")
        if not 1 <= tokens <= self.max_seq_len:
            raise ValueError(f"a request has 1 to {self.max_seq_len} tokens, not {tokens}")
        key, value = (array[:, :, :tokens] for array in prefilled.state)  # (1, H, tokens, D)
        self._make_room(key, max(tokens, *self.offset), 0)
        start = self.end - tokens
        self.key[id : id + 1, :, start : self.end] = key
        self.value[id : id + 1, :, start : self.end] = value
        self.offset = [tokens if slot == id else n for slot, n in enumerate(self.offset)]

    def remove_request(self, id: int) -> None:
        """Empty slot `id`: its request has ended."""
        if not self._tokens_in(id):
            raise ValueError(f"slot {id} is empty")
        # subtle: a new list. The old one may be in use as the offset of a model call, for all layers.
        self.offset = [0 if slot == id else n for slot, n in enumerate(self.offset)]
        if not any(self.offset):
            self.key = self.value = None
            self.end = 0
        else:
            # subtle: a mask hides numbers, but 0 * NaN is NaN: only zeros are sure to do nothing.
            self.key[id] = 0
            self.value[id] = 0

    def update_and_fetch(
        self, key: mx.array, value: mx.array, mask_length: int | None = None, mask: Mask = None
    ) -> tuple[mx.array, mx.array, list[int], mx.array]:
        """Store L new tokens of every request and return all of them; key and value are B x H x L x D."""
        L = key.shape[2]
        before = self.offset
        longest = max(before)
        if longest + L > self.max_seq_len and longest:
            raise ValueError(f"{L} more tokens would be more than {self.max_seq_len} in a slot")
        mask = batch_mask(before, L, key.dtype)
        taken = mx.array([n > 0 for n in before])[:, None, None, None]
        key, value = mx.where(taken, key, 0), mx.where(taken, value, 0)
        if longest == 0:
            return key, value, before, mask

        self._make_room(key, longest, L)
        start, end = self.end, self.end + L
        # One column for all rows, since they end together: a single write, in place (day 2.1).
        self.key[:, :, start:end] = key
        self.value[:, :, start:end] = value
        self.end = end
        self.offset = [n + L if n else 0 for n in before]
        first = start - longest
        return self.key[:, :, first:end], self.value[:, :, first:end], self.offset, mask

    def _tokens_in(self, id: int) -> int:
        if not 0 <= id < self.max_active_requests:
            raise ValueError(f"there are slots 0 to {self.max_active_requests - 1}, and no slot {id}")
        return self.offset[id]

    def _make_room(self, like: mx.array, longest: int, ahead: int) -> None:
        """Have `longest` columns up to `end`, and at least `ahead` behind it; `like` has H, D and dtype.

        Every update takes a new column, also while requests come and go. So when the room is used up, the
        columns that still count move to the front of new arrays, and those that nobody needs are left out.
        """
        if self.key is not None and longest <= self.end and self.end + ahead <= self.key.shape[2]:
            return
        _, H, _, D = like.shape
        # subtle: a step more than is needed, or a row just short of the room would move at every update.
        room = (-(-(longest + ahead) // self.step) + 1) * self.step
        kept = max(self.offset)

        def moved(stored: mx.array | None) -> mx.array:
            larger = mx.zeros((self.max_active_requests, H, room, D), like.dtype)
            if stored is not None:
                larger[:, :, longest - kept : longest] = stored[:, :, self.end - kept : self.end]
            return larger

        self.key, self.value = moved(self.key), moved(self.value)
        self.end = longest


class Request:
    """One prompt on its way to its reply. prompt_idx is kept as it was given.

    prompt is encoded with tokenizer.encode(prompt, add_special_tokens=False). A prompt without tokens, and a
    prefill_max_step below 1, raise ValueError.

    Each request has caches of its own, kv_cache, which one call of model.create_kv_cache() makes.

    try_prefill() runs the next prefill_max_step tokens of the prompt, or what is left, through model(inputs,
    offset, kv_cache), each token once, and returns None. Only the logits of the prompt's last token are ever
    computed.

    With the last chunk the prefill is done: is_prefill_done is True, and the reply's first token is taken.
    Another try_prefill() raises ValueError.

    decode_done(token) says that next_token has been run and has given this token; it adds 1 to offset, takes
    the token and returns None. Before the prefill is done, and once the request is done, it raises
    ValueError.

    A token that is taken is next_token from then on; before the first, next_token is None. Any id in
    tokenizer.eos_token_ids makes is_done True and is not part of the reply; every other token is.

    offset is the number of its tokens that have gone through the model: prompt and reply without next_token.

    text() is tokenizer.decode of the reply so far with skip_special_tokens=True: no prompt, no EOS.
    """

    def __init__(
        self,
        model: BatchingModel,
        tokenizer: Tokenizer,
        prompt: str,
        prefill_max_step: int = 128,
        prompt_idx: int = 0,
    ) -> None:
        """prefill_max_step: the most tokens of a chunk; prompt_idx: kept for the caller, as prompt_idx."""
        if prefill_max_step < 1:
            raise ValueError(f"a chunk has 1 token or more, not {prefill_max_step}")
        self.model = model
        self.tokenizer = tokenizer
        self.prompt_idx = prompt_idx
        self.prefill_max_step = prefill_max_step
        self.prompt_tokens = tokenizer.encode(prompt, add_special_tokens=False)
        if not self.prompt_tokens:
            raise ValueError("the prompt has no tokens, so there is no position to predict from")
        self.kv_cache = model.create_kv_cache()
        self.offset = 0
        self.tokens: list[int] = []  # the reply's
        self.next_token: int | None = None
        self.is_done = False

    @property
    def is_prefill_done(self) -> bool:
        return self.offset >= len(self.prompt_tokens)

    def try_prefill(self) -> None:
        """Run one chunk of the prompt."""
        if self.is_prefill_done:
            raise ValueError("the whole prompt has been run")
        chunk = self.prompt_tokens[self.offset : self.offset + self.prefill_max_step]
        is_last = self.offset + len(chunk) == len(self.prompt_tokens)
        # The prompt's last token runs on its own, as on day 2.1: only its row of V logits is wanted.
        body = chunk[:-1] if is_last else chunk
        if body:
            self.model(mx.array(body)[None], self.offset, self.kv_cache)
            mx.eval([layer.state for layer in self.kv_cache])
            self.offset += len(body)
        if is_last:
            logits = self.model(mx.array([chunk[-1:]]), self.offset, self.kv_cache)
            self.offset += 1
            self._take(next_token(logits))

    def decode_done(self, token: int) -> None:
        """The batch has run next_token, and `token` is what follows."""
        if not self.is_prefill_done or self.is_done:
            raise ValueError("a token follows a whole prompt, and none follows an EOS")
        self.offset += 1
        self._take(token)

    def text(self) -> str:
        """The reply so far."""
        return self.tokenizer.decode(self.tokens, skip_special_tokens=True)

    def _take(self, token: int) -> None:
        self.next_token = token
        if token in self.tokenizer.eos_token_ids:
            self.is_done = True
        else:
            self.tokens.append(token)


def create_batching_cache(
    model: BatchingModel, max_active_requests: int, max_seq_len: int
) -> list[BatchingKvCache]:
    """New, empty batching caches for a model, one a layer."""
    return [BatchingKvCache(max_active_requests, max_seq_len) for _ in range(model.num_hidden_layers)]


def decode_step(model: BatchingModel, cache: Sequence[BatchingKvCache], tokens: Sequence[int]) -> mx.array:
    """Run one token of every slot in one model call.

    decode_step(model, cache, tokens) calls model(inputs, offset, cache) once, with inputs B x 1 and with the
    offset of each slot before the call, and returns the logits of each slot's token, B x V.

    Args:
        model: takes a batch.
        cache: one BatchingKvCache a layer, all with the same slots filled.
        tokens: B ids, one a slot; any id, 0 for example, where the slot is empty.
    """
    return model(mx.array(tokens)[:, None], cache[0].offset, cache)[:, -1]


def batch_generate(
    model: BatchingModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_seq_len: int = 512,
    batch_size: int = 5,
    prefill_step: int = 128,
) -> list[tuple[int, str]]:
    """The replies to several prompts, up to batch_size of them at a time.

    The result has (idx, text) for every prompt, where prompts[idx] is answered by text; greedy, and in the
    order in which they were completed. A request's text never depends on the others.

    max_seq_len counts the tokens of prompt and reply, and a reply that has reached it ends there. A prompt of
    max_seq_len tokens or more leaves no room for a reply: it raises ValueError before the model is called for
    any, and so does a prompt without tokens.

    batch_size and prefill_step below 1 raise ValueError.

    Each turn has two parts. If a slot is free and prompts wait, the first of them has one chunk of at most
    prefill_step tokens run, and takes a free slot when its prefill is done. Then, if any slot is taken, there
    is one decode_step of batch_size rows. So replies go on while another prompt is prefilled, and a slot that
    has become free is filled while the others go on.

    A request in a slot is held by the batch alone: its prefilled caches are let go, so that at most one
    request has caches of its own.

    Args:
        model: one row or a batch, as Qwen2ModelWeek2 takes them.
        tokenizer: what mlx_lm.load returns beside the model.
        prompts: texts; a chat template is the caller's business.
    """
    if batch_size < 1 or prefill_step < 1:
        raise ValueError("batch_size and prefill_step are 1 or more")
    for idx, prompt in enumerate(prompts):
        tokens = len(tokenizer.encode(prompt, add_special_tokens=False))
        if not 0 < tokens < max_seq_len:
            raise ValueError(f"prompt {idx} has {tokens} tokens; 1 to {max_seq_len - 1} are possible")

    waiting = deque(enumerate(prompts))
    prefilling: Request | None = None
    slots: list[Request | None] = [None] * batch_size
    cache = create_batching_cache(model, batch_size, max_seq_len)
    completed: list[tuple[int, str]] = []

    def has_ended(request: Request) -> bool:
        # next_token is in the reply and has not been run, so the text is one token longer than offset.
        return request.is_done or request.offset + 1 >= max_seq_len

    while waiting or prefilling or any(slots):
        if None in slots and (waiting or prefilling):
            if prefilling is None:
                idx, prompt = waiting.popleft()
                prefilling = Request(model, tokenizer, prompt, prefill_step, idx)
            prefilling.try_prefill()
            if prefilling.is_prefill_done:
                if has_ended(prefilling):
                    completed.append((prefilling.prompt_idx, prefilling.text()))
                else:
                    _fill_slot(cache, slots, prefilling)
                prefilling = None

        if any(slots):
            tokens = [request.next_token if request else 0 for request in slots]
            chosen = mx.argmax(decode_step(model, cache, tokens), axis=-1).tolist()
            for slot, (request, token) in enumerate(zip(slots, chosen, strict=True)):
                if request is None:
                    continue
                request.decode_done(token)
                if has_ended(request):
                    completed.append((request.prompt_idx, request.text()))
                    slots[slot] = None
                    for layer in cache:
                        layer.remove_request(slot)
    return completed


def _fill_slot(cache: Sequence[BatchingKvCache], slots: list[Request | None], request: Request) -> None:
    """Put a request whose prompt has been run into a free slot."""
    slot = slots.index(None)
    for layer, prefilled in zip(cache, request.kv_cache, strict=True):
        layer.add_request(prefilled, slot)
    request.kv_cache = []  # the batch has the tokens now
    slots[slot] = request
