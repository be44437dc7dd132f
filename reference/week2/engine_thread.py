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
        return len(self.open)

    # ---- called in the event loop

    async def start(self) -> None:
        """Start the thread and wait until the engine is there.

        After start, state is "running"; what making the engine raised is raised by start.
        """
        self.loop = asyncio.get_running_loop()
        self.started: asyncio.Future[Any] = self.loop.create_future()
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self.thread.start()
        self.engine = await self.started
        self.state = "running"

    async def submit(
        self, prompt: str | Sequence[int], settings: Settings, wants_logprobs: bool = False
    ) -> Stream:
        """Hand a request to the engine; return its Stream once the engine has taken it.

        After a failure it raises EngineFailed, while closing and after it Closing, with queue_limit requests
        in hand Busy: at once, without waiting for the thread.

        A caller that is cancelled while it waits here leaves nothing behind: its request is cancelled too.
        """
        if self.state == "failed":
            raise EngineFailed(self.reason)
        if self.state != "running":
            raise Closing
        if self.in_hand >= self.queue_limit:
            raise Busy
        stream = Stream(wants_logprobs, self.give_up)
        # subtle: counted now. Counted when the engine answers, a burst of requests would all be let in.
        self.open.add(stream)
        self.commands.put(("submit", (stream, prompt, settings)))
        try:
            await stream.accepted
        except BaseException:  # CancelledError is no Exception
            stream.cancel()
            raise
        return stream

    def give_up(self, stream: Stream) -> None:
        """Cancel a request.

        A request that is given up leaves in_hand at once, the engine cancels it before its next step, and
        nothing of it arrives any more. One that is not in hand is left alone.
        """
        if stream in self.open:
            self.open.discard(stream)
            self.commands.put(("cancel", stream))

    def accept(self, stream: Stream) -> None:
        """The engine has taken a request."""
        if not stream.accepted.done():  # else its caller is gone
            stream.accepted.set_result(None)

    def deliver(self, pieces: list[tuple[Stream, Piece]]) -> None:
        """Hand the pieces of a step to the streams in hand; those with a finish_reason leave it."""
        for stream, piece in pieces:
            if stream in self.open:
                stream.arrived.put_nowait(piece)
                if piece.finish_reason is not None:
                    self.open.discard(stream)

    def end(self, stream: Stream, error: Exception) -> None:
        """A request in hand ends with an error, which its caller gets wherever it waits."""
        if stream not in self.open:
            return
        self.open.discard(stream)
        if stream.accepted.done():
            stream.arrived.put_nowait(error)
        else:
            stream.accepted.set_exception(error)

    def fail(self, reason: str) -> None:
        """The engine has failed, and with it every request in hand."""
        logging.getLogger("tinyllm.server").error("the engine failed: %s", reason)
        self.state, self.reason = "failed", reason
        for stream in list(self.open):
            self.end(stream, EngineFailed(reason))

    async def close(self, seconds: float) -> None:
        """Shut down.

        Nothing new is taken. The requests in hand have `seconds` to end; those that have not are cancelled
        and raise Closing. Then the thread ends, and state is "closed", or stays "failed".

        It returns after little more than `seconds`, whatever the engine does, and may be called again.
        """
        if self.state == "running":
            self.state = "closing"
        deadline = time.monotonic() + seconds
        while self.open and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        for stream in list(self.open):
            self.commands.put(("cancel", stream))
            self.end(stream, Closing())
        self.commands.put(("stop", None))
        # subtle: join blocks, so not in the loop. A step that never ends keeps the thread: it is a daemon.
        await asyncio.to_thread(self.thread.join, STOP_SECONDS)
        if self.state != "failed":
            self.state = "closed"

    # ---- called in the engine's thread

    def tell(self, what: Callable[..., None], *arguments: Any) -> None:
        """Have the loop call something. What is told arrives in the order of the telling."""
        self.loop.call_soon_threadsafe(what, *arguments)

    def run(self) -> None:
        """What the thread does: make the engine, then take commands and step, in turns, until it is told to
        stop.

        Of each step the loop is told once, with all its pieces.
        """
        try:
            engine = self.source() if callable(self.source) else self.source
        except BaseException as error:
            self.tell(self.started.set_exception, error)
            return
        self.tell(self.started.set_result, engine)
        try:
            while self.take_commands(engine):
                pieces = []
                for event in engine.step():
                    stream = self.streams.get(event.id)
                    if stream is None:  # cancelled
                        continue
                    pieces.append((stream, self.piece(engine, stream, event)))
                    if event.finish_reason is not None:
                        self.forget(stream)
                self.figures = engine.waiting_count, engine.active_count
                if pieces:
                    self.tell(self.deliver, pieces)
        except BaseException as error:  # also SystemExit: this thread does not end without a word
            if not self.loop.is_closed():  # else there is nobody left to tell
                self.tell(self.fail, in_words(error))

    def take_commands(self, engine: Any) -> bool:
        """Carry out all commands that wait; while the engine has no work, wait for the next one.

        Returns whether there is a step to make; False means that the thread is to stop.

        A request that is cancelled is in no step after that, and a thread without work uses no processor
        time.
        """
        while True:
            try:
                name, what = self.commands.get(block=not engine.has_work)
            except queue.Empty:
                return True
            match name:
                case "submit":
                    self.submit_to(engine, *what)
                case "cancel" if what in self.ids:  # else it has ended
                    engine.cancel(self.ids[what])
                    self.forget(what)
                case "stop":
                    return False

    def submit_to(self, engine: Any, stream: Stream, prompt: str | Sequence[int], settings: Settings) -> None:
        """Give a request to the engine, and tell the loop what it said."""
        try:
            id = engine.submit(prompt, settings)
        except ValueError as error:
            self.tell(self.end, stream, Refused(str(error)))
        except Exception as error:
            self.tell(self.end, stream, EngineFailed(in_words(error)))
        else:
            self.streams[id], self.ids[stream] = stream, id
            self.tell(self.accept, stream)

    def forget(self, stream: Stream) -> None:
        """The engine has nothing more of this request."""
        del self.streams[self.ids.pop(stream)]

    def piece(self, engine: Any, stream: Stream, event: Any) -> Piece:
        """An event of the engine's as a piece."""
        logprobs = [
            TokenText(
                self.text(engine, s.token), s.logprob, tuple((self.text(engine, t), p) for t, p in s.top)
            )
            for s in (event.logprobs if stream.wants_logprobs else ())
        ]
        return Piece(event.text, event.prompt_tokens, len(event.tokens), tuple(logprobs), event.finish_reason)

    def text(self, engine: Any, token: int) -> str:
        if token not in self.texts:
            self.texts[token] = engine.tokenizer.decode([token])
        return self.texts[token]
