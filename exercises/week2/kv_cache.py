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
        raise NotImplementedError("day 2.1, task 1: TinyKvFullCache.__init__")

    @property
    def state(self) -> list[mx.array]:
        raise NotImplementedError("day 2.1, task 1: TinyKvFullCache.state")

    def update_and_fetch(
        self, key: mx.array, value: mx.array, mask_length: int | None = None, mask: Mask = None
    ) -> tuple[mx.array, mx.array, int, Mask]:
        raise NotImplementedError("day 2.1, task 1: TinyKvFullCache.update_and_fetch")

    def rewind(self, n: int) -> None:
        raise NotImplementedError("day 2.1, task 1: TinyKvFullCache.rewind")


class TinyKvStepCache:
    """A cache with room ahead: new tokens are written where they belong, and what is stored stays in place.

    It does what TinyKvCache says. The arrays of its `state` are N x H x room x D, where room is the smallest
    multiple of `step` that all tokens have fitted into so far; it grows when it must and never shrinks.

    While there is room an update copies nothing that is stored: MLX allocates space for the new tokens at
    most, as long as nobody holds on to what an earlier call returned.
    """

    def __init__(self, step: int = 256) -> None:
        """step: the room is a multiple of it, in tokens."""
        raise NotImplementedError("day 2.1, task 2: TinyKvStepCache.__init__")

    @property
    def state(self) -> list[mx.array]:
        raise NotImplementedError("day 2.1, task 2: TinyKvStepCache.state")

    def update_and_fetch(
        self, key: mx.array, value: mx.array, mask_length: int | None = None, mask: Mask = None
    ) -> tuple[mx.array, mx.array, int, Mask]:
        raise NotImplementedError("day 2.1, task 2: TinyKvStepCache.update_and_fetch")

    def rewind(self, n: int) -> None:
        raise NotImplementedError("day 2.1, task 2: TinyKvStepCache.rewind")
