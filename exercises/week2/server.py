"""Day 2.8: the engine behind HTTP, in the form of OpenAI's API.

This file joins the parts: bytes to requests and pieces to JSON is protocol.py's work, the way to the engine
engine_thread.py's. What is left is what HTTP has and a function call has not: clients that go away, bodies
without end, more requests than can be served, and a server that is to stop.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .engine_thread import Busy, Closing, EngineFailed, EngineThread, Refused, Stream
from .protocol import DONE, ApiError, Ask, Kind, Limits, Piece, Reply, read_request, sse

RETRY = {"Retry-After": "1"}  # seconds


def api_error(error: Exception) -> ApiError:
    """What a client is told of an exception.

    An ApiError is told as it is; Refused is 400 with its text and code "context_length_exceeded"; Busy is 429
    with code "rate_limit_exceeded", Closing 503 with code "shutting_down", both with the header Retry-After;
    EngineFailed is 500 with code "engine_failed"; the framework's HTTPException keeps its status, detail and
    headers.

    Any other exception is 500. Neither its text nor EngineFailed's is told: it may hold what is nobody's
    business.
    """
    raise NotImplementedError("day 2.8, task 4: api_error")


def error_response(error: Exception) -> JSONResponse:
    """The response that tells a client of an exception, in OpenAI's shape."""
    told = api_error(error)
    return JSONResponse(told.body(), status_code=told.status, headers=told.headers)


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request.

    A body of more than `most` bytes raises ApiError 413 with code "body_too_large": before any of it is read
    where Content-Length tells, else as soon as more than `most` bytes have come.
    """
    raise NotImplementedError("day 2.8, task 4: read_body")


def has_key(request: Request, api_key: str | None) -> bool:
    """Whether a request may pass.

    It may where api_key is None, and else with an Authorization header that is "Bearer " and the key.

    The comparison takes the same time wherever the first difference is.
    """
    raise NotImplementedError("day 2.8, task 4: has_key")


def require_key(request: Request, api_key: str | None) -> None:
    """Raise ApiError 401 with code "invalid_api_key" unless the request may pass."""
    if not has_key(request, api_key):
        raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")


def prompt_of(ask: Ask, tokenizer: Any) -> str | tuple[int, ...]:
    """What the engine is to go on from.

    For a text that is its prompt; for a chat it is tokenizer.apply_chat_template(list of messages,
    tokenize=False, add_generation_prompt=True, enable_thinking=False).

    A template that raises gives ApiError 400 with param "messages"; so does a tokenizer whose
    has_chat_template is false.
    """
    raise NotImplementedError("day 2.8, task 4: prompt_of")


async def unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result of `work`, for as long as somebody waits for it.

    When the client goes away first, `work` is cancelled and has ended before ClientDisconnect is raised.

    The request's body has been read: what request.receive() gives then is http.disconnect, once the client is
    gone.
    """
    raise NotImplementedError("day 2.8, task 4: unless_gone")


async def all_pieces(stream: Stream) -> list[Piece]:
    """All pieces of a stream. However this ends, also by being cancelled, the stream is cancelled then."""
    raise NotImplementedError("day 2.8, task 4: all_pieces")


async def events(stream: Stream, reply: Reply) -> AsyncIterator[bytes]:
    """A stream as server-sent events.

    First the reply's opening, then the chunks of each piece as soon as the piece is there, then the closing
    and [DONE].

    When the stream raises, the status has long been sent: the error's object is the last event, and no [DONE]
    follows.
    """
    raise NotImplementedError("day 2.8, task 4: events")


class EventStream(StreamingResponse):
    """`events` as a response of type text/event-stream.

    When the response is over, in whatever way, its stream is cancelled: the framework ends a response whose
    client has gone away.
    """

    def __init__(self, stream: Stream, reply: Reply) -> None:
        raise NotImplementedError("day 2.8, task 4: EventStream.__init__")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError("day 2.8, task 4: EventStream.__call__")


@dataclass(frozen=True)
class Service:
    """What every request is answered with."""

    thread: EngineThread
    model_name: str
    max_body_bytes: int
    max_tokens: int
    api_key: str | None


async def complete(service: Service, kind: Kind, request: Request) -> Response:
    """Answer a request for a completion.

    First the key is checked, then the body read, then the request, then the engine is asked; the first that
    raises decides what the client is told, and 200 is sent only for a request that the engine has taken.

    A reply has an id of its own, the time of its making, and either comes as an EventStream or, when all of
    it is there, as JSON; a client that goes away while that is waited for ends the engine's work too.
    """
    raise NotImplementedError("day 2.8, task 4: complete")


def health_of(thread: EngineThread) -> Response:
    """200 and status "ok" while the engine runs, else 503 and the state as status; and how much there is to
    do."""
    ok = thread.state == "running"
    waiting, active = thread.figures
    told = {"in_hand": thread.in_hand, "waiting": waiting, "active": active}
    told["status"] = "ok" if ok else thread.state  # without the reason: no key is asked for here
    return JSONResponse(told, status_code=200 if ok else 503)


def make_app(
    engine: Any,
    model_name: str,
    *,
    queue_limit: int = 64,
    max_body_bytes: int = 2**18,
    max_tokens: int = 4096,
    api_key: str | None = None,
    grace_seconds: float = 10.0,
) -> Starlette:
    """The server, for uvicorn or another ASGI server. This function is given; it is no task.

    POST /v1/chat/completions and /v1/completions, GET /v1/models, /v1/models/NAME and /health, which alone
    needs no key. app.state.engine_thread is the EngineThread, which starts and ends with the app.

    Args:
        engine: an Engine, or a function that makes one: it is called in the engine's thread, where what MLX
            has not computed yet can be computed.
        model_name: what requests must name as `model`.
        queue_limit: requests in hand, running or waiting; the next one is answered with 429.
        max_body_bytes, max_tokens: of a request; of a reply.
        api_key: None where everybody may ask.
        grace_seconds: for the requests in hand, when the app is to end.
    """
    thread = EngineThread(engine, queue_limit)
    service = Service(thread, model_name, max_body_bytes, max_tokens, api_key)
    card = {"id": model_name, "object": "model", "created": int(time.time()), "owned_by": "tinyllm"}

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await thread.start()
        try:
            yield
        finally:
            await thread.close(grace_seconds)

    async def health(request: Request) -> Response:
        return health_of(thread)

    async def models(request: Request) -> Response:
        require_key(request, api_key)
        return JSONResponse({"object": "list", "data": [card]})

    async def one_model(request: Request) -> Response:
        require_key(request, api_key)
        name = request.path_params["name"]
        if name != model_name:
            told = f"The model {name!r} does not exist here; {model_name!r} does."
            raise ApiError(404, told, param="model", code="model_not_found")
        return JSONResponse(card)

    async def tell(request: Request, error: Exception) -> Response:
        return error_response(error)

    # ClientDisconnect is told to nobody, but without a handler it would be logged as a fault of the server's.
    told = (ApiError, Refused, Busy, Closing, EngineFailed, HTTPException, ClientDisconnect, Exception)
    app = Starlette(
        routes=[
            Route("/health", health, methods=["GET"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{name:path}", one_model, methods=["GET"]),
            Route("/v1/chat/completions", partial(complete, service, "chat"), methods=["POST"]),
            Route("/v1/completions", partial(complete, service, "text"), methods=["POST"]),
        ],
        exception_handlers=dict.fromkeys(told, tell),
        lifespan=lifespan,
    )
    app.state.engine_thread = thread
    return app
