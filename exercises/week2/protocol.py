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
    raise NotImplementedError("day 2.8, task 1: parse_object")


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
    raise NotImplementedError("day 2.8, task 1: read_settings")


def read_messages(data: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    """The conversation of a chat, as the chat template takes it.

    messages is a list of one message or more; each comes back as {"role", "content"} and nothing else.

    A role is system, user, assistant or developer, which becomes system. Content is text, or a list of
    {"type": "text", "text": ...} parts, which are joined.

    Anything else, such as other roles, images, tool calls or no content, raises ApiError 400 with param
    "messages".
    """
    raise NotImplementedError("day 2.8, task 1: read_messages")


def read_prompt(data: Mapping[str, Any], limits: Limits) -> str | tuple[int, ...]:
    """The prompt of a text.

    prompt is a string, or a list of token ids, which comes back as a tuple; a list of exactly one of these
    counts as that one.

    Several prompts, an empty one, and an id that is no whole number from 0 to limits.vocabulary - 1 raise
    ApiError 400 with param "prompt".
    """
    raise NotImplementedError("day 2.8, task 1: read_prompt")


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
    raise NotImplementedError("day 2.8, task 1: read_request")


# ---- task 2: a reply is written ----


def sse(data: Mapping[str, Any] | str) -> bytes:
    """One server-sent event.

    An event is "data: ", the JSON of the object (a str goes as it is) on one line, and an empty line, in
    UTF-8.
    """
    raise NotImplementedError("day 2.8, task 2: sse")


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
    raise NotImplementedError("day 2.8, task 2: chat_logprobs")


def text_logprobs(tokens: Sequence[TokenText], offset: int = 0) -> dict[str, Any]:
    """The log-probabilities of a text's tokens.

    A text's logprobs are four lists with an element for each token: tokens, token_logprobs, top_logprobs and
    text_offset. An element of top_logprobs is a dict from text to log-probability, of the alternatives and of
    the token itself, or None where there are no alternatives.

    text_offset begins with `offset`, and each token's text begins where that of the one before ends.
    """
    raise NotImplementedError("day 2.8, task 2: text_logprobs")


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
        raise NotImplementedError("day 2.8, task 2: Reply.whole")

    def chunks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The chunks that one piece of a stream gives.

        A piece with text, or with log-probabilities, gives a chunk with finish_reason None: its delta is
        {"content": text} in a chat, else it has text. The last piece then gives one more, with delta {} or
        text "", logprobs None and the finish_reason. So a piece without any of these gives none.
        """
        raise NotImplementedError("day 2.8, task 2: Reply.chunks")

    def opening(self) -> Iterator[dict[str, Any]]:
        """What comes before the pieces.

        A stream begins, in a chat, with a chunk whose delta is {"role": "assistant", "content": ""}; a text's
        begins with its first piece.
        """
        raise NotImplementedError("day 2.8, task 2: Reply.opening")

    def closing(self) -> Iterator[dict[str, Any]]:
        """What a stream ends with, before [DONE].

        With include_usage a last chunk has no choices and the usage, and all others have usage None; without
        it no chunk has the key, and there is no such chunk.
        """
        raise NotImplementedError("day 2.8, task 2: Reply.closing")
