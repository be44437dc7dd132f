"""Day 2.1: key-value caches. What attention computed for old tokens is kept, and only new tokens are run.

Two caches behind one interface: the plainest, which joins new tokens to the old ones and so copies everything
at every step, and one that reserves room ahead and writes new tokens into it. Both hold the tokens of one
layer, with every row of a batch equally long. Day 2.6 adds a cache whose rows have lengths of their own, day
3.1 one that keeps its tokens in pages.

Letters: N batch, H key/value heads, L tokens of one call, S tokens so far, D head dim.
"""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx

Mask = mx.array | str | None  # as attention takes it


class TinyKvCache(Protocol):
    """The keys and values of one layer, for all tokens so far: what every cache of the course offers.

    A model calls update_and_fetch once for each layer and call, with what is new. Whoever drives the model
    reads `offset`, takes tokens back with rewind, and has `state` computed where nothing else asks for it.

    Each cache is on its own: two of them share nothing.
    """

    @property
    def offset(self) -> int:
        """`offset` is the number of tokens stored: 0 at first, and L more after every update."""

    @property
    def state(self) -> list[mx.array]:
        """`state` lists the two arrays that hold what is stored, key and value; it is [] before the first
        update. mx.eval(cache.state) computes them.
        """

    def update_and_fetch(
        self, key: mx.array, value: mx.array, mask_length: int | None = None, mask: Mask = None
    ) -> tuple[mx.array, mx.array, int, Mask]:
        """Store the keys and values of L new tokens and return those of all S tokens so far.

        update_and_fetch takes key and value as N x H x L x D and returns (key, value, offset, mask): key
        and value as N x H x S x D, oldest token first, in the dtype they came in, and the offset after the
        update.

        The mask is returned as it was given; mask_length is for caches that make masks of their own, and
        these two ignore it.

        Arrays are only read: the caller's stay as they were, and what a call has returned keeps its values
        whatever comes later.
        """

    def rewind(self, n: int) -> None:
        """Take tokens back.

        rewind(n) forgets the last n tokens, their keys and their values, so that the next update comes after
        those that are left; 0 <= n <= offset, and any other n raises ValueError and changes nothing.
        """


class TinyKvFullCache:
    """The plainest cache: what is new is joined to the end of what is there.

    It does what TinyKvCache says. Its `state` holds exactly the S tokens stored.
    """

    def __init__(self) -> None:
        self.key: mx.array | None = None  # (N, H, S, D)
        self.value: mx.array | None = None
        self.offset = 0

    @property
    def state(self) -> list[mx.array]:
        return [] if self.key is None else [self.key, self.value]

    def update_and_fetch(
        self, key: mx.array, value: mx.array, mask_length: int | None = None, mask: Mask = None
    ) -> tuple[mx.array, mx.array, int, Mask]:
        if self.key is not None:
            # Both are new arrays: all S tokens are copied to add L.
            key = mx.concatenate([self.key, key], axis=2)
            value = mx.concatenate([self.value, value], axis=2)
        self.key, self.value = key, value
        self.offset = key.shape[2]
        return key, value, self.offset, mask

    def rewind(self, n: int) -> None:
        if not 0 <= n <= self.offset:
            raise ValueError(f"cannot take back {n} of {self.offset} tokens")
        self.offset -= n
        if self.key is not None:
            # subtle: up to `offset`, not up to -n. For n = 0 that would be [:-0], which is nothing.
            self.key = self.key[:, :, : self.offset]
            self.value = self.value[:, :, : self.offset]


class TinyKvStepCache:
    """A cache with room ahead: new tokens are written where they belong, and what is stored stays in place.

    It does what TinyKvCache says. The arrays of its `state` are N x H x room x D, where room is the smallest
    multiple of `step` that all tokens have fitted into so far; it grows when it must and never shrinks.

    While there is room an update copies nothing that is stored: MLX allocates space for the new tokens at
    most, as long as nobody holds on to what an earlier call returned.
    """

    def __init__(self, step: int = 256) -> None:
        """step: the room is a multiple of it, in tokens."""
        self.step = step
        self.key: mx.array | None = None  # (N, H, room, D), of which the first `offset` tokens count
        self.value: mx.array | None = None
        self.offset = 0

    @property
    def state(self) -> list[mx.array]:
        return [] if self.key is None else [self.key, self.value]

    def update_and_fetch(
        self, key: mx.array, value: mx.array, mask_length: int | None = None, mask: Mask = None
    ) -> tuple[mx.array, mx.array, int, Mask]:
        start = self.offset
        end = start + key.shape[2]
        self.key = self._with_room(self.key, key, end)
        self.value = self._with_room(self.value, value, end)
        # MLX writes in place if nobody else holds the buffer, and into a copy of all of it otherwise.
        self.key[:, :, start:end] = key
        self.value[:, :, start:end] = value
        self.offset = end
        # subtle: up to `end`. Behind it are zeros, or tokens that were taken back.
        return self.key[:, :, :end], self.value[:, :, :end], end, mask

    def rewind(self, n: int) -> None:
        if not 0 <= n <= self.offset:
            raise ValueError(f"cannot take back {n} of {self.offset} tokens")
        self.offset -= n  # the next update writes over them

    def _with_room(self, stored: mx.array | None, new: mx.array, end: int) -> mx.array:
        """`stored`, or a larger array that begins with its tokens, with room for `end` of them."""
        if stored is not None and end <= stored.shape[2]:
            return stored
        N, H, _, D = new.shape
        room = -(-end // self.step) * self.step  # rounded up
        larger = mx.zeros((N, H, room, D), new.dtype)
        if stored is not None:
            larger[:, :, : self.offset] = stored[:, :, : self.offset]
        return larger
