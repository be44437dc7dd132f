"""The serving child: one process in which a tree's code serves a model over HTTP.

    python -P -m tinyllm.grader.serving_child '<job as JSON>'

Events, with the job's token, go as JSON lines to a pipe (serving.py has the other end). The main thread runs
uvicorn's event loop; the tree's model and engine are made, and run, in the thread that its server starts.
SIGINT or SIGTERM ends it: replies in progress come to their end, new requests are refused, for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from tinyllm.kernels import blas

from . import catalog
from .catalog import Serving
from .child import Emitter, die_with_parent
from .clone import Clone
from .serving import KEY_VARIABLE
from .trees import Tree

CLOSING_SECONDS = 2.0  # for connections, once all replies have ended
LEAST_BUDGET = 64  # tokens of a step, or one for each slot


def main(job: Mapping[str, Any]) -> None:
    die_with_parent(job["lifeline"])
    # Until uvicorn has taken the signals over: a server that is still loading ends at once.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every client that hangs up
    blas.prepare()

    from .voice import Told  # MLX comes with it, so not before

    clone = Clone(Path(job["root"]))
    course = catalog.load(clone)
    engine, serving = course.engine(job["engine"]), course.serving
    assert serving is not None
    tree = Tree(
        job["solution"], clone.tree(job["solution"]), {k: Path(v) for k, v in job["overlays"].items()}
    )
    emit = Emitter(job["events"], job["token"])
    tree.install()
    tree.kernels(course.kernels(course.day(d) for d in engine.days))
    try:
        listening = bind(job["host"], job["port"])
        hosted = _hosted(clone, engine, tree, emit, serving, job)
        asyncio.run(serve(hosted, listening, job["host"], job["grace"]))
        if hosted.fault is not None:
            raise hosted.fault
        emit("ended", {})
    except Told as told:
        emit("fault", told.as_event())
    sys.stdout.flush()
    os._exit(0)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises Told where there can be none: before a second is spent on the model."""
    from .voice import Told

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        told = f"Nothing can be served on {host}, port {port}: {reason}."
        another = " Any port that is free: --port 0." if error.errno == errno.EADDRINUSE else ""
        raise Told("usage", told + another) from None


def _hosted(
    clone: Clone, engine: Any, tree: Tree, emit: Any, serving: Serving, job: Mapping[str, Any]
) -> Any:
    """The tree's app over the model, and a look at what goes wrong in it."""
    from .voice import Told, Voice

    class Hosted(Voice):
        fault: Told | None = None  # what ended the server
        server: Server | None = None

        def prepare(self) -> None:
            self.emit("importing", {})
            self.build, self.make = self._named(self.engine.model), self._named(serving.engine)
            make_app = self._named(serving.app)
            self.loaded = self._read(Path(job["model"]), job["config"], job["context"])
            self.emit("building", {})
            with self._telling(serving.app):
                self.app = make_app(
                    self.make_engine,
                    job["name"],
                    queue_limit=job["queue_limit"],
                    api_key=os.environ.get(KEY_VARIABLE) or None,
                    grace_seconds=job["grace"],
                )

        def make_engine(self) -> Any:
            """Called in the engine's thread: what the tree's code leaves uncomputed belongs to that."""
            slots = job["slots"]
            try:
                with self._telling(self.engine.model):
                    model = self.build(self.loaded)
                with self._telling(serving.engine):
                    made = self.make(
                        model,
                        self.tokenizer,
                        max_active_requests=slots,
                        max_seq_len=job["context"],
                        token_budget=max(LEAST_BUDGET, 2 * slots),
                    )
            except Told as told:
                self.fault = told
                raise
            return Watched(made, self)

        def told(self, error: BaseException, symbol: Any) -> Told:
            try:
                with self._telling(symbol):
                    raise error
            except Told as told:
                return told

        def engine_failed(self, error: BaseException) -> None:
            """Called in the engine's thread: nothing can be served any more."""
            self.fault = self.fault or self.told(error, serving.engine)
            if self.server is not None:
                self.server.end_soon()

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            """The app, for uvicorn. A stub ends the server; of another exception it tells, and goes on."""
            try:
                await self.app(scope, receive, send)
            except Exception as error:
                told = self.told(error, serving.app)
                ends = scope["type"] == "lifespan" or told.event["kind"] == "unwritten"
                if not ends:
                    self.emit("trouble", told.as_event())
                    raise
                self.fault = self.fault or told
                if self.server is not None:
                    self.server.end_soon()
                raise

    class Watched:
        """The tree's engine, with a look at what it raises."""

        def __init__(self, engine: Any, hosted: Hosted) -> None:
            self._engine, self._hosted = engine, hosted

        def step(self) -> Any:
            try:
                return self._engine.step()
            except BaseException as error:
                self._hosted.engine_failed(error)
                raise

        def __getattr__(self, name: str) -> Any:
            return getattr(self._engine, name)

    hosted = Hosted(clone, engine, tree, emit)
    hosted.prepare()
    return hosted


class Server(uvicorn.Server):
    """uvicorn's, which first lets replies come to their end when it is asked to end."""

    def __init__(self, hosted: Any, host: str, grace: float) -> None:
        # A traceback of the tree's code is told as lines of the tree, not printed.
        super().__init__(
            uvicorn.Config(
                hosted,
                log_level="critical",
                access_log=False,
                ws="none",
                timeout_graceful_shutdown=int(CLOSING_SECONDS),
            )
        )
        self.hosted, self.host, self.grace = hosted, host, grace
        self.ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and sockets:
            port = sockets[0].getsockname()[1]
            self.hosted.emit("serving", {"host": self.host, "port": port})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.ending is None:
            self.end_soon()
        else:  # asked twice
            self.should_exit = self.force_exit = True

    def end_soon(self) -> None:
        """From any thread, and from a signal handler."""
        self.loop.call_soon_threadsafe(self._begin_to_end)

    def _begin_to_end(self) -> None:
        if self.ending is None:
            self.ending = self.loop.create_task(self._end())

    async def _end(self) -> None:
        # Whatever the tree's code does, this server ends.
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.hosted.app.state.engine_thread.close(self.grace), self.grace + 2)
        self.should_exit = True


async def serve(hosted: Any, listening: socket.socket, host: str, grace: float) -> None:
    server = hosted.server = Server(hosted, host, grace)
    with contextlib.suppress(SystemExit):  # uvicorn's, when the app does not start: why is in hosted.fault
        await server.serve([listening])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
