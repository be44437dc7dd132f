"""Day 2.8: the bridge between the engine's thread and asyncio.

The engine blocks: a step computes for milliseconds or seconds. An event loop must never block: it serves all
connections in turns. So the engine has a thread of its own, the only one that touches it. The two sides talk
in one way each: the loop puts commands into a queue, which the thread empties before every step; the thread
has the loop call something, with call_soon_threadsafe, the only method of a loop made for other threads.

What belongs to whom, so that nothing needs a lock:

    the loop's      open, state, reason, and every Stream
    the thread's    the engine, streams, ids, texts
    of both         commands, a queue made for that; figures, a tuple that is replaced whole
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .protocol import Piece, TokenText
from .scheduler import Settings

STOP_SECONDS = 1.0  # for the thread to end, once it has been told


class Refused(Exception):
    """The engine does not take this request, and says why: the prompt does not fit, for example."""


class Busy(Exception):
    """So many requests are in hand that no other is taken."""


class Closing(Exception):
    """The server is shutting down."""


class EngineFailed(Exception):
    """The engine raised something that is no answer to a request."""


def in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class Stream:
    """One request's pieces, as they come: `async for piece in stream`. EngineThread.submit makes it.

    It ends after the piece with a finish_reason, or raises EngineFailed or Closing in that piece's place.
    """

    def __init__(self, wants_logprobs: bool, give_up: Callable[[Stream], None]) -> None:
        self.wants_logprobs = wants_logprobs
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.arrived: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self.give_up = give_up

    def cancel(self) -> None:
        """Nobody wants the rest. It may be called at any time and more than once."""
        self.give_up(self)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while True:
            item = await self.arrived.get()
            if isinstance(item, Exception):
                raise item
            yield item
            if item.finish_reason is not None:
                return


@dataclass(eq=False)
class EngineThread:
    """Runs an engine in a thread of its own and gives asyncio a way to it.

    Everything the engine does happens in that one thread, its making included where a function makes it.

    While the engine computes, the event loop goes on: what is called there awaits the thread and never blocks
    on it.

    Of every request each event that the engine gives arrives as one piece, as soon as its step is done and in
    the order of the steps. Tokens become text in the thread, with the engine's tokenizer, and only where
    log-probabilities are asked for.

    in_hand is the number of requests that submit has taken and that have neither ended nor been cancelled.

    An exception out of the engine's submit concerns that request alone: a ValueError raises Refused with the
    same text, any other EngineFailed.

    After an exception out of the engine's step nobody knows what is in the caches: every request in hand
    raises EngineFailed, so does every later one, and state is "failed", with the exception's name and text as
    reason.
    """

    source: Any  # an Engine, or a function without arguments that makes one
    queue_limit: int  # the most requests in hand

    engine: Any = field(default=None, init=False)  # once start has returned; the loop reads its tokenizer
    state: str = field(default="starting", init=False)  # then "running", "closing", "closed"; or "failed"
    reason: str = field(default="", init=False)  # of a failure
    open: set[Stream] = field(default_factory=set, init=False)  # the requests in hand
    figures: tuple[int, int] = field(default=(0, 0), init=False)  # that wait in the engine; active there
    commands: queue.SimpleQueue[tuple[str, Any]] = field(default_factory=queue.SimpleQueue, init=False)
    streams: dict[int, Stream] = field(default_factory=dict, init=False)  # by the engine's ids
    ids: dict[Stream, int] = field(default_factory=dict, init=False)  # the other way round
    texts: dict[int, str] = field(default_factory=dict, init=False)  # of tokens, once decoded

    @property
    def in_hand(self) -> int:
        raise NotImplementedError("day 2.8, task 3: EngineThread.in_hand")

    # ---- called in the event loop

    async def start(self) -> None:
        """Start the thread and wait until the engine is there.

        After start, state is "running"; what making the engine raised is raised by start.
        """
        raise NotImplementedError("day 2.8, task 3: EngineThread.start")

    async def submit(
        self, prompt: str | Sequence[int], settings: Settings, wants_logprobs: bool = False
    ) -> Stream:
        """Hand a request to the engine; return its Stream once the engine has taken it.

        After a failure it raises EngineFailed, while closing and after it Closing, with queue_limit requests
        in hand Busy: at once, without waiting for the thread.

        A caller that is cancelled while it waits here leaves nothing behind: its request is cancelled too.
        """
        raise NotImplementedError("day 2.8, task 3: EngineThread.submit")

    def give_up(self, stream: Stream) -> None:
        """Cancel a request.

        A request that is given up leaves in_hand at once, the engine cancels it before its next step, and
        nothing of it arrives any more. One that is not in hand is left alone.
        """
        raise NotImplementedError("day 2.8, task 3: EngineThread.give_up")

    def accept(self, stream: Stream) -> None:
        """The engine has taken a request."""
        raise NotImplementedError("day 2.8, task 3: EngineThread.accept")

    def deliver(self, pieces: list[tuple[Stream, Piece]]) -> None:
        """Hand the pieces of a step to the streams in hand; those with a finish_reason leave it."""
        raise NotImplementedError("day 2.8, task 3: EngineThread.deliver")

    def end(self, stream: Stream, error: Exception) -> None:
        """A request in hand ends with an error, which its caller gets wherever it waits."""
        raise NotImplementedError("day 2.8, task 3: EngineThread.end")

    def fail(self, reason: str) -> None:
        """The engine has failed, and with it every request in hand."""
        raise NotImplementedError("day 2.8, task 3: EngineThread.fail")

    async def close(self, seconds: float) -> None:
        """Shut down.

        Nothing new is taken. The requests in hand have `seconds` to end; those that have not are cancelled
        and raise Closing. Then the thread ends, and state is "closed", or stays "failed".

        It returns after little more than `seconds`, whatever the engine does, and may be called again.
        """
        raise NotImplementedError("day 2.8, task 3: EngineThread.close")

    # ---- called in the engine's thread

    def tell(self, what: Callable[..., None], *arguments: Any) -> None:
        """Have the loop call something. What is told arrives in the order of the telling."""
        raise NotImplementedError("day 2.8, task 3: EngineThread.tell")

    def run(self) -> None:
        """What the thread does: make the engine, then take commands and step, in turns, until it is told to
        stop.

        Of each step the loop is told once, with all its pieces.
        """
        raise NotImplementedError("day 2.8, task 3: EngineThread.run")

    def take_commands(self, engine: Any) -> bool:
        """Carry out all commands that wait; while the engine has no work, wait for the next one.

        Returns whether there is a step to make; False means that the thread is to stop.

        A request that is cancelled is in no step after that, and a thread without work uses no processor
        time.
        """
        raise NotImplementedError("day 2.8, task 3: EngineThread.take_commands")

    def submit_to(self, engine: Any, stream: Stream, prompt: str | Sequence[int], settings: Settings) -> None:
        """Give a request to the engine, and tell the loop what it said."""
        raise NotImplementedError("day 2.8, task 3: EngineThread.submit_to")

    def forget(self, stream: Stream) -> None:
        """The engine has nothing more of this request."""
        raise NotImplementedError("day 2.8, task 3: EngineThread.forget")

    def piece(self, engine: Any, stream: Stream, event: Any) -> Piece:
        """An event of the engine's as a piece."""
        raise NotImplementedError("day 2.8, task 3: EngineThread.piece")

    def text(self, engine: Any, token: int) -> str:
        raise NotImplementedError("day 2.8, task 3: EngineThread.text")
