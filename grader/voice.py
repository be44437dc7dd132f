"""A model run by a tree's code: loading, the prompt, the reply piece by piece (runs in the speaking child).

Whatever goes wrong ends as a `Told`: a sentence, and for the tree's code its lines.
"""

from __future__ import annotations

import inspect
import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import mlx.core as mx

from . import faults
from .catalog import Engine, Symbol
from .clone import Clone
from .frames import FrameRecorder
from .report import Frame
from .trees import Tree

REPLY_SHARE = 4  # of the context, one part in so many is kept free for the reply when old turns are dropped


class Told(Exception):
    """Something the user is told about. `kind` is "unwritten", "code", "files", "usage" or "machine"."""

    def __init__(
        self,
        kind: str,
        summary: str,
        *,
        module: str = "",  # of the tree ("week1/rope.py"), when its code is at fault
        frames: tuple[Frame, ...] = (),
        day: str = "",
        task: int = 0,
    ) -> None:
        super().__init__(summary)
        self.event = {"kind": kind, "summary": summary, "module": module, "day": day, "task": task}
        self.frames = frames

    def as_event(self) -> dict[str, Any]:
        return {**self.event, "frames": [asdict(f) for f in self.frames]}


class Stopped(BaseException):
    """Raised in the middle of a reply that is to end."""


class Voice:
    """One model, one tree's way of running it. `emit(event, data)` is told what happens as it happens."""

    def __init__(
        self, clone: Clone, engine: Engine, tree: Tree, emit: Callable[[str, Mapping[str, Any]], None]
    ) -> None:
        self.engine = engine
        self.tree = tree
        self.emit = emit
        self._shown_path = faults.shown_path(clone, tree)
        self.frames = FrameRecorder(tree.owns, self._shown_path)
        self._replying = False
        self._emitting = False
        self._stood: tuple[Frame, ...] | None = None  # where the code was when it was asked to stop

    # ---- loading

    def load(self, path: Path, config: Mapping[str, Any], *, context: int, seed: int | None) -> None:
        """Import the tree's modules, load the folder with mlx-lm and build the tree's model from it."""
        self.emit("importing", {})
        build, self._generate = self._named(self.engine.model), self._named(self.engine.generate)
        loaded = self._read(path, config, context)
        self.emit("building", {})
        with self._telling(self.engine.model):
            self.model = build(loaded)
        if not callable(self.model):
            raise self._wrong(self.engine.model, f"gave {_kind(self.model)}, which cannot be called.")
        if seed is not None:
            mx.random.seed(seed)
        self.emit("ready", {"template": self.tokenizer.has_chat_template})

    def _read(self, path: Path, config: Mapping[str, Any], context: int) -> Any:
        """What mlx-lm loads from the folder; the tokenizer is kept."""
        self.emit("loading", {})
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # libraries like to talk
                import mlx_lm

                loaded, self.tokenizer = mlx_lm.load(str(path), model_config=dict(config))
        except Exception as error:
            reason = f"{type(error).__name__}: {faults.first_line(error)}"
            raise Told("files", f"mlx-lm cannot load {path.name}: {reason}") from None
        self.vocabulary, self.context = loaded.args.vocab_size, context
        if len(self.tokenizer) > self.vocabulary:
            tokens = f"the tokenizer has {len(self.tokenizer)} tokens and the model {self.vocabulary}"
            raise Told("files", f"The files of {path.name} do not belong together: {tokens}.")
        return loaded

    def _named(self, symbol: Symbol) -> Callable[..., Any]:
        """What the tree has under a symbol's name."""
        try:
            module = self.tree.import_module(symbol.module)
        except BaseException as error:
            found = faults.in_importing(symbol.module, error, self.tree, self.frames, self._shown_path)
            raise Told(
                "code", found.summary, module=found.missing or symbol.module, frames=faults.ends(found.frames)
            ) from None
        value = getattr(module, symbol.name, None)
        if value is None:
            shown = self._shown_path(self.tree.path_of(symbol.module))
            summary = f"{shown} has no `{symbol.name}`: was it renamed or deleted?"
            raise Told("code", summary, module=symbol.module)
        return value

    # ---- a reply

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """Handles SIGINT: ends the reply, also from inside the tree's code."""
        if not self._replying or self._stood is not None:
            return
        self._stood = self.frames.of_stack(frame)
        if not self._emitting:  # half an event in the pipe would spoil the next one
            raise Stopped

    def reply(self, request: Mapping[str, Any]) -> None:
        """Reply to a request (its keys: see speaking.Ask), as events "began", "piece" ..., "done"."""
        starts: list[float] = []  # of the calls that gave a token
        self._stood = None
        self._replying = True
        try:
            prompt, tokens, dropped = self._prompt(request)
            most = min(request["max_tokens"], self.context - tokens)
            self._emit("began", {"prompt_tokens": tokens, "dropped": dropped, "most": most})
            options = {"sampler": self._sampler(request), "max_tokens": most, "stop": tuple(request["stop"])}
            watched = Watched(self.model, tokens, starts, self._check_logits)
            with self._telling(self.engine.generate):
                self._pass_on(self._generate(watched, self.tokenizer, prompt, **options))
        except Stopped:
            pass
        finally:
            self._replying = False
        ended = time.perf_counter()
        self.emit(
            "done",
            {
                "tokens": len(starts),
                "seconds": ended - starts[1] if len(starts) > 1 else 0.0,  # all but the first token's
                "stopped": None if self._stood is None else [asdict(f) for f in self._stood[-1:]],
            },
        )

    def _emit(self, event: str, data: Mapping[str, Any]) -> None:
        """Emit an event, whole even when the reply is asked to end meanwhile."""
        self._emitting = True
        self.emit(event, data)
        self._emitting = False
        if self._stood is not None:
            raise Stopped

    def _pass_on(self, pieces: Any) -> None:
        """Emit each piece as it comes."""
        if isinstance(pieces, str) or not hasattr(pieces, "__iter__"):
            raise self._wrong(self.engine.generate, f"gave {_kind(pieces)}; it must yield pieces of text.")
        for piece in pieces:
            if not isinstance(piece, str):
                raise self._wrong(self.engine.generate, f"yielded {_kind(piece)}; a piece of text is a str.")
            self._emit("piece", {"text": piece})

    def _prompt(self, request: Mapping[str, Any]) -> tuple[str, int, int]:
        """The text to go on from, its number of tokens, and how many messages were dropped to make room."""
        if request["messages"] is None:
            return self._fitting(request["text"])
        if not self.tokenizer.has_chat_template:
            raise Told(
                "usage", "This model has no chat template, so it takes no turns, only text to go on from."
            )
        messages, dropped = list(request["messages"]), 0
        room = self.context - min(request["max_tokens"], self.context // REPLY_SHARE)
        while True:
            text = self._as_turns(messages)
            oldest = 1 if messages[0]["role"] == "system" else 0
            if len(messages) - oldest < 3 or self._count(text) <= room:
                return *self._fitting(text)[:2], dropped
            del messages[oldest : oldest + 2]  # a question and its reply
            dropped += 2

    def _as_turns(self, messages: list[dict[str, str]]) -> str:
        try:
            # Qwen3 thinks at length before it replies; without a cache that takes minutes.
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except Exception as error:
            raise Told("files", f"The model's chat template fails: {faults.first_line(error)}") from None

    def _fitting(self, text: str) -> tuple[str, int, int]:
        tokens = self._count(text)
        if tokens >= self.context:
            limit = f"this model takes at most {self.context}, reply included"
            raise Told("usage", f"The prompt has {tokens} tokens; {limit}.")
        return text, tokens, 0

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def _sampler(self, request: Mapping[str, Any]) -> Callable[[mx.array], mx.array] | None:
        """The tree's sampler; None for greedy, so that the days before it are enough for that."""
        if request["temp"] == 0:
            return None
        symbol = self.engine.sampler
        make = self._named(symbol)
        extra = {}
        if request["min_p"] is not None:
            if "min_p" not in inspect.signature(make).parameters:
                raise Told("usage", f"--min-p: {symbol.name} of this tree has no min_p.")
            extra["min_p"] = request["min_p"]
        with self._telling(symbol):
            sampler = make(request["temp"], request["top_p"], request["top_k"], **extra)
        if not callable(sampler):
            raise self._wrong(symbol, f"gave {_kind(sampler)}, which cannot be called.")
        return sampler

    def _check_logits(self, inputs: Any, logits: Any, needed: bool) -> None:
        """Up to the first token: a model whose output has the wrong form would fail somewhere in the next
        day. The values are looked at only if they are `needed`: MLX would have to compute them."""
        symbol = self.engine.model
        if not isinstance(inputs, mx.array) or inputs.ndim != 2:
            given = f"ids {tuple(inputs.shape)}" if isinstance(inputs, mx.array) else _kind(inputs)
            raise self._wrong(self.engine.generate, f"calls the model with {given}, not with ids (1, L).")
        if not isinstance(logits, mx.array):
            raise self._wrong(symbol, f"called with ids gave {_kind(logits)}, not logits.")
        wanted = (inputs.shape[0], inputs.shape[1], self.vocabulary)
        if logits.ndim != 3 or (logits.shape[0], logits.shape[2]) != (wanted[0], wanted[2]):
            shapes = f"{tuple(logits.shape)}, not {wanted}"
            raise self._wrong(symbol, f"called with ids {tuple(inputs.shape)} gave logits {shapes}.")
        if needed and mx.any(mx.isnan(logits[:, -1])).item():
            raise self._wrong(symbol, "gave logits that are nan: either the code or the weights are wrong.")

    # ---- what goes wrong

    def _wrong(self, symbol: Symbol, what: str) -> Told:
        return Told("code", f"{symbol.name} {what}", module=symbol.module)

    @contextmanager
    def _telling(self, symbol: Symbol) -> Iterator[None]:
        """Tell what the tree's code raises inside the block; with no line of its own, `symbol` is blamed."""
        try:
            yield
        except (Told, Stopped):
            raise
        except BaseException as error:
            frames = self.frames.of_traceback(error.__traceback__)
            if stub := faults.unwritten(error, frames):
                raise Told("unwritten", str(error), day=stub[0], task=stub[1]) from None
            module = "" if frames else symbol.module
            raise Told("code", faults.in_words(error), module=module, frames=faults.ends(frames)) from None


class Watched:
    """The tree's model with its calls noted; everything else about it is its own.

    `starts` gets the time of each call that gives a token. A call that ends inside the prompt gives none: it
    fills caches, and its logits may never be computed. `check(inputs, logits, needed)` is called up to the
    first one that does.
    """

    def __init__(
        self, model: Any, prompt_tokens: int, starts: list[float], check: Callable[[Any, Any, bool], None]
    ) -> None:
        vars(self).update(_model=model, _prompt_tokens=prompt_tokens, _starts=starts, _check=check)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        logits = self._model(inputs, *args, **kwargs)
        needed = not self._is_inside_prompt(inputs, *args, **kwargs)
        if not self._starts:
            self._check(inputs, logits, needed)
        if needed:
            self._starts.append(start)
        return logits

    def _is_inside_prompt(self, inputs: Any, offset: Any = 0, *_: Any, **__: Any) -> bool:
        if self._starts or not isinstance(inputs, mx.array) or inputs.ndim != 2 or inputs.shape[1] == 1:
            return False
        return isinstance(offset, int) and offset + inputs.shape[1] < self._prompt_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)


def _kind(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
