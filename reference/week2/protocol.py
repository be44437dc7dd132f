"""Day 2.8: OpenAI's protocol as plain functions: bytes become a request, pieces of a reply become JSON.

Nothing here waits, starts threads or knows of sockets, and nothing depends on the web framework: the same
text in gives the same text out. What a server does between the two is engine_thread.py's and server.py's.

Two kinds of request are read: "chat" is POST /v1/chat/completions, "text" is POST /v1/completions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .scheduler import Settings

Kind = Literal["chat", "text"]

MOST_STOPS = 4  # stop strings, as OpenAI has it
MOST_ALTERNATIVES = {"chat": 20, "text": 5}  # tokens beside the chosen one, as OpenAI has it
DEFAULT_TOKENS = {"chat": 256, "text": 16}  # of a reply, where the request names no number
LARGEST_SEED = 2**63 - 1
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

# What a request may name, besides "model". Fields that change nothing of the reply are taken with any value;
# NEUTRAL ones ask for something that is not done here, unless they have the value that asks for nothing.
COMMON = frozenset(
    {"max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop", "seed"}
    | {"stream", "stream_options", "logprobs"}
)
TAKEN = {
    "chat": COMMON | {"messages", "max_completion_tokens", "top_logprobs"},
    "text": COMMON | {"prompt"},
}
HARMLESS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "best_of": 1,
    "echo": False,
    "suffix": "",
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "store": False,
}


class ApiError(Exception):
    """What a client is told when it does not get a reply: a status and OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """param: the request's field that is at fault; kind: OpenAI's `type`; headers: of the response."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.param, self.code, self.kind = param, code, kind
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """{"error": {"message", "type", "param", "code"}}, all four always there."""
        told = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": told}


@dataclass(frozen=True)
class Limits:
    """What a request may ask for at most."""

    max_tokens: int = 4096  # of a reply
    vocabulary: int = 2**31  # ids in a prompt are below it


@dataclass(frozen=True)
class Ask:
    """A request that has been read: of `messages` and `prompt` a chat has the first, a text the second."""

    kind: Kind
    settings: Settings
    messages: tuple[Mapping[str, str], ...] = ()  # {"role": system | user | assistant, "content": text}
    prompt: str | tuple[int, ...] = ""
    stream: bool = False
    include_usage: bool = False  # a last chunk with the counts; only where `stream`
    logprobs: bool = False  # whether any are reported; how many alternatives is settings.logprobs


@dataclass(frozen=True)
class TokenText:
    """A token as a reply reports it."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()  # the most probable ones there, with their log-probabilities


@dataclass(frozen=True)
class Piece:
    """What one step of the engine adds to a reply."""

    text: str
    prompt_tokens: int = 0  # of the request: the same in all its pieces
    tokens: int = 0  # of the reply, that came with this piece
    logprobs: tuple[TokenText, ...] = ()  # one for each of these, where the request asked for it
    finish_reason: str | None = None  # "stop", "length" or "cancelled" in the last piece


# ---- task 1: a request is read ----


def number(
    data: Mapping[str, Any],
    name: str,
    default: Any,
    low: float,
    high: float,
    *,
    whole: bool = False,
) -> Any:
    """data[name], a number with low <= number <= high, or `default` where it is missing or null.

    Raises ApiError 400 with `param` for anything else. True and False are no numbers, nor are nan and inf.
    """
    value = data.get(name)
    if value is None:
        return default
    kinds = int if whole else (int, float)
    # subtle: bool is a subclass of int, and nan fails every comparison.
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        what = "a whole number" if whole else "a number"
        raise ApiError(400, f"{name} must be {what} from {low} to {high}.", param=name)
    return value


def parse_object(body: bytes) -> dict[str, Any]:
    """A request's body as the JSON object it must be.

    A body that is no JSON, no UTF-8 or no object raises ApiError 400; so does text that UTF-8 cannot hold,
    such as a lone half of a surrogate pair, which JSON's escapes can write.
    """
    try:
        data = json.loads(body)
        # subtle: "\ud800" is valid JSON and no text. Found here, it cannot fail in the engine's thread.
        json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not valid JSON in UTF-8.") from None
    if not isinstance(data, dict):
        raise ApiError(400, "The body must be a JSON object.")
    return data


def read_settings(data: Mapping[str, Any], kind: Kind, limits: Limits) -> Settings:
    """How the reply is to be made.

    A field that is missing or null has its default: temperature 1, max_tokens DEFAULT_TOKENS of the kind (or
    limits.max_tokens, if that is less), and for the rest what Settings has; top_p 1 is the same as none.

    max_tokens goes from 1 to limits.max_tokens, temperature from 0 to 2, top_p is above 0 and at most 1, seed
    goes from 0 to LARGEST_SEED, top_k from 1 to limits.vocabulary, min_p from 0 to 1, repetition_penalty is
    above 0 and at most 10. Another type, or a value outside its range, raises ApiError 400 whose param is the
    field's name.

    In a chat max_completion_tokens is the newer name of max_tokens; naming both raises ApiError 400.

    stop is a string or a list of at most MOST_STOPS strings, none of them empty.

    Settings.logprobs is the number of alternatives asked for: top_logprobs, 0 to 20, in a chat, where it
    needs logprobs to be true; logprobs, 0 to 5, in a text; 0 where nothing is asked for.
    """
    name = "max_tokens"
    if kind == "chat" and data.get("max_completion_tokens") is not None:
        if data.get("max_tokens") is not None:
            raise ApiError(400, "max_tokens and max_completion_tokens mean the same: give one.", param=name)
        name = "max_completion_tokens"
    top_p = number(data, "top_p", None, 0, 1)
    penalty = number(data, "repetition_penalty", 1.0, 0, 10)
    for field_name, value in (("top_p", top_p), ("repetition_penalty", penalty)):
        if value == 0:
            raise ApiError(400, f"{field_name} must be above 0.", param=field_name)
    return Settings(
        max_tokens=number(
            data, name, min(DEFAULT_TOKENS[kind], limits.max_tokens), 1, limits.max_tokens, whole=True
        ),
        stop=_stop(data),
        temperature=float(number(data, "temperature", 1.0, 0, 2)),
        top_p=None if top_p is None or top_p == 1 else float(top_p),
        top_k=number(data, "top_k", None, 1, limits.vocabulary, whole=True),
        min_p=float(number(data, "min_p", 0.0, 0, 1)),
        repetition_penalty=float(penalty),
        seed=number(data, "seed", None, 0, LARGEST_SEED, whole=True),
        logprobs=_alternatives(data, kind),
    )


def _stop(data: Mapping[str, Any]) -> tuple[str, ...]:
    stop = data.get("stop")
    if stop is None:
        return ()
    stops = [stop] if isinstance(stop, str) else stop
    fits = isinstance(stops, list) and len(stops) <= MOST_STOPS
    if not fits or not all(isinstance(s, str) and s for s in stops):
        wanted = f"a string or a list of at most {MOST_STOPS} strings, none of them empty"
        raise ApiError(400, f"stop must be {wanted}.", param="stop")
    return tuple(stops)


def _alternatives(data: Mapping[str, Any], kind: Kind) -> int:
    most = MOST_ALTERNATIVES[kind]
    if kind == "text":
        return number(data, "logprobs", 0, 0, most, whole=True)
    count = number(data, "top_logprobs", None, 0, most, whole=True)
    if count is not None and not _flag(data, "logprobs"):
        raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
    return count or 0


def _flag(data: Mapping[str, Any], name: str) -> bool:
    value = data.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name} must be true or false.", param=name)
    return bool(value)


def read_messages(data: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    """The conversation of a chat, as the chat template takes it.

    messages is a list of one message or more; each comes back as {"role", "content"} and nothing else.

    A role is system, user, assistant or developer, which becomes system. Content is text, or a list of
    {"type": "text", "text": ...} parts, which are joined.

    Anything else, such as other roles, images, tool calls or no content, raises ApiError 400 with param
    "messages".
    """
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list of at least one message.", param="messages")
    return tuple(_message(place, message) for place, message in enumerate(messages))


def _message(place: int, message: Any) -> Mapping[str, str]:
    def refused(what: str) -> ApiError:
        return ApiError(400, f"messages[{place}]: {what}", param="messages")

    if not isinstance(message, dict):
        raise refused("a message is an object with role and content.")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise refused(f"role must be one of {', '.join(ROLES)}.")
    extra = [k for k, v in message.items() if k not in ("role", "content", "name") and v]
    if extra:
        raise refused(f"{extra[0]} is not supported.")
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            raise refused("only parts of type text are supported.")
        content = [p.get("text") for p in content]
        content = "".join(content) if all(isinstance(t, str) for t in content) else None
    if not isinstance(content, str):
        raise refused("content must be text.")
    return {"role": ROLES[role], "content": content}


def read_prompt(data: Mapping[str, Any], limits: Limits) -> str | tuple[int, ...]:
    """The prompt of a text.

    prompt is a string, or a list of token ids, which comes back as a tuple; a list of exactly one of these
    counts as that one.

    Several prompts, an empty one, and an id that is no whole number from 0 to limits.vocabulary - 1 raise
    ApiError 400 with param "prompt".
    """

    def refused(what: str) -> ApiError:
        return ApiError(400, f"prompt: {what}", param="prompt")

    prompt = data.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        if len(prompt) > 1:
            raise refused("several prompts in one request are not supported.")
        prompt = prompt[0]
    if not isinstance(prompt, (str, list)):
        raise refused("it must be a string or a list of token ids.")
    if not prompt:
        raise refused("it is empty.")
    if isinstance(prompt, str):
        return prompt
    # An id beyond the vocabulary would read beyond the embedding's rows: MLX does not check.
    if not all(type(t) is int and 0 <= t < limits.vocabulary for t in prompt):
        raise refused(f"token ids are whole numbers from 0 to {limits.vocabulary - 1}.")
    return tuple(prompt)


def read_request(kind: Kind, body: bytes, model: str, limits: Limits) -> Ask:
    """A request's body as an Ask. `model` is the name of the one model that is served.

    A model that is missing or no string raises ApiError 400; another name than the one served raises ApiError
    404 with param "model" and code "model_not_found".

    What would not be done is refused, not ignored: a field that is neither TAKEN for the kind nor HARMLESS
    nor NEUTRAL raises ApiError 400 with its name as param, and so does a NEUTRAL one with any other value
    than the neutral one. A field that is null counts as missing.

    stream is true or false; stream_options is an object, needs stream to be true, and of it include_usage is
    read.

    Ask.logprobs says whether log-probabilities are reported: in a chat logprobs is true, in a text it is a
    number, 0 too.
    """
    data = parse_object(body)
    name = data.get("model")
    if not isinstance(name, str):
        raise ApiError(400, "model is missing, or not a string.", param="model")
    if name != model:
        told = f"The model {name!r} does not exist here; {model!r} does."
        raise ApiError(404, told, param="model", code="model_not_found")
    _refuse_what_is_not_done(data, kind)
    stream = _flag(data, "stream")
    options = data.get("stream_options")
    if options is not None and not (stream and isinstance(options, dict)):
        raise ApiError(
            400, "stream_options is an object, and needs stream to be true.", param="stream_options"
        )
    settings = read_settings(data, kind, limits)
    return Ask(
        kind=kind,
        settings=settings,
        messages=read_messages(data) if kind == "chat" else (),
        prompt="" if kind == "chat" else read_prompt(data, limits),
        stream=stream,
        include_usage=_flag(options or {}, "include_usage"),
        # subtle: a text's logprobs is a number, and 0 asks for those of the chosen tokens.
        logprobs=_flag(data, "logprobs") if kind == "chat" else data.get("logprobs") is not None,
    )


def _refuse_what_is_not_done(data: Mapping[str, Any], kind: Kind) -> None:
    for name, value in data.items():
        if value is None or name == "model" or name in TAKEN[kind] or name in HARMLESS:
            continue
        if name not in NEUTRAL:
            raise ApiError(400, f"{name} is not a parameter of this endpoint.", param=name)
        # subtle: True == 1 in Python, and JSON's true is not its 1.
        if value != NEUTRAL[name] or isinstance(value, bool) != isinstance(NEUTRAL[name], bool):
            raise ApiError(400, f"{name}: only {json.dumps(NEUTRAL[name])} is supported.", param=name)


# ---- task 2: a reply is written ----


def sse(data: Mapping[str, Any] | str) -> bytes:
    """One server-sent event.

    An event is "data: ", the JSON of the object (a str goes as it is) on one line, and an empty line, in
    UTF-8.
    """
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode()


DONE = "[DONE]"  # the last event of a stream that went well


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The counts of a reply: prompt_tokens, completion_tokens, and total_tokens, which is their sum."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def chat_logprobs(tokens: Sequence[TokenText]) -> dict[str, Any]:
    """The log-probabilities of a chat's tokens.

    A chat's logprobs are {"content": [...], "refusal": None} with an entry for each token: token, logprob,
    bytes, and top_logprobs, a list of entries with the first three of these.

    bytes is the list of the UTF-8 bytes of the token's text, or None where that text holds U+FFFD: the token
    is then a part of a character.
    """

    def entry(text: str, logprob: float) -> dict[str, Any]:
        whole = "\ufffd" not in text
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}

    content = [
        {**entry(t.text, t.logprob), "top_logprobs": [entry(*other) for other in t.top]} for t in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[TokenText], offset: int = 0) -> dict[str, Any]:
    """The log-probabilities of a text's tokens.

    A text's logprobs are four lists with an element for each token: tokens, token_logprobs, top_logprobs and
    text_offset. An element of top_logprobs is a dict from text to log-probability, of the alternatives and of
    the token itself, or None where there are no alternatives.

    text_offset begins with `offset`, and each token's text begins where that of the one before ends.
    """
    starts, place = [], offset
    for token in tokens:
        starts.append(place)
        place += len(token.text)
    return {
        "tokens": [t.text for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [{**dict(t.top), t.text: t.logprob} if t.top else None for t in tokens],
        "text_offset": starts,
    }


@dataclass
class Reply:
    """One reply on its way out, in OpenAI's shapes.

    Every object has id, created (seconds since 1970), model and object, which is "chat.completion" for a
    chat, "chat.completion.chunk" for a chunk of one, and "text_completion" for a text and its chunks.

    There is one choice: index 0, logprobs, which is None where none were asked for, finish_reason, and what
    is said.
    """

    ask: Ask
    id: str
    created: int
    model: str
    prompt_tokens: int = 0  # as the pieces so far have it
    completion_tokens: int = 0  # of the pieces so far
    text_offset: int = 0  # where the text of the next token begins

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The response that is not streamed.

        It has the whole text, as message {"role": "assistant", "content": text} in a chat and as text else,
        the log-probabilities of all tokens, the last piece's finish_reason, and the usage.
        """
        text = "".join(piece.text for piece in pieces)
        tokens = [token for piece in pieces for token in piece.logprobs]
        for piece in pieces:
            self._count(piece)
        said = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        choice = self._choice(said, tokens, pieces[-1].finish_reason)
        object_name = "chat.completion" if self._is_chat else "text_completion"
        return {**self._head(object_name), "choices": [choice], "usage": self._usage()}

    def chunks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The chunks that one piece of a stream gives.

        A piece with text, or with log-probabilities, gives a chunk with finish_reason None: its delta is
        {"content": text} in a chat, else it has text. The last piece then gives one more, with delta {} or
        text "", logprobs None and the finish_reason. So a piece without any of these gives none.
        """
        self._count(piece)
        if piece.text or (self.ask.logprobs and piece.logprobs):
            said = {"delta": {"content": piece.text}} if self._is_chat else {"text": piece.text}
            yield self._chunk(self._choice(said, piece.logprobs, None))
        if piece.finish_reason is not None:
            said = {"delta": {}} if self._is_chat else {"text": ""}
            yield self._chunk(self._choice(said, None, piece.finish_reason))

    def opening(self) -> Iterator[dict[str, Any]]:
        """What comes before the pieces.

        A stream begins, in a chat, with a chunk whose delta is {"role": "assistant", "content": ""}; a text's
        begins with its first piece.
        """
        if self._is_chat:
            yield self._chunk(self._choice({"delta": {"role": "assistant", "content": ""}}, None, None))

    def closing(self) -> Iterator[dict[str, Any]]:
        """What a stream ends with, before [DONE].

        With include_usage a last chunk has no choices and the usage, and all others have usage None; without
        it no chunk has the key, and there is no such chunk.
        """
        if self.ask.include_usage:
            yield {**self._chunk(None), "usage": self._usage()}

    @property
    def _is_chat(self) -> bool:
        return self.ask.kind == "chat"

    def _count(self, piece: Piece) -> None:
        self.prompt_tokens = piece.prompt_tokens
        self.completion_tokens += piece.tokens

    def _usage(self) -> dict[str, int]:
        return usage(self.prompt_tokens, self.completion_tokens)

    def _head(self, object_name: str) -> dict[str, Any]:
        return {"id": self.id, "object": object_name, "created": self.created, "model": self.model}

    def _chunk(self, choice: Mapping[str, Any] | None) -> dict[str, Any]:
        chunk = self._head("chat.completion.chunk" if self._is_chat else "text_completion")
        chunk["choices"] = [] if choice is None else [choice]
        return {**chunk, "usage": None} if self.ask.include_usage else chunk

    def _choice(
        self, said: Mapping[str, Any], tokens: Sequence[TokenText] | None, reason: str | None
    ) -> dict[str, Any]:
        logprobs = None
        if self.ask.logprobs and tokens is not None:
            logprobs = chat_logprobs(tokens) if self._is_chat else text_logprobs(tokens, self.text_offset)
            self.text_offset += sum(len(token.text) for token in tokens)
        return {"index": 0, **said, "logprobs": logprobs, "finish_reason": reason}
