"""What `generate` and `chat` print: the reply to stdout as it comes, all else (figures, prints, faults) to
stderr, so that a pipe gets the reply alone.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .errors import UsageError
from .models import SHIPPED, Model
from .render import Screen
from .speaking import Ask, Began, Done, Loading, NotSpoken, Piece, Speaker, seconds_running

# What tiny-qwen2 was trained on; about anything else it knows nothing.
TRY = {
    SHIPPED: (
        "Tell me a story about Mia and a kite.",
        "The blue drum belongs to Nora. Finn likes plums. Question: What does Finn like?",
        "Write a short story about Leo and a boat.",
    )
}
HELP = (
    ("/reset", "forget the conversation"),
    ("/help", "this list"),
    ("/exit", "end; so does Ctrl-D"),
    ("Ctrl-C", "end the reply; what has come of it stays in the conversation"),
    ("\\", "at the end of a line: the message goes on in the next one"),
)
# A model may write any character; a terminal would obey some.
HARMLESS = {c: "\ufffd" for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}


@dataclass(frozen=True)
class Reply:
    text: str
    began: Began | None
    done: Done | None  # None when the code had to be killed
    interrupted: bool
    first: float  # seconds up to the first text, from wherever `clock` counts


class Printer:
    """Prints replies. `clock` says how long the user has waited, from the start of what they wait for."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        self.screen = Screen(stderr=True)
        self.plain = not sys.stdout.isatty()
        self._status: Any = None
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # what the terminal cannot show becomes a question mark
                stream.reconfigure(errors="replace")

    def load(self) -> None:
        """Wait until the model is loaded."""
        self._wait("loading the model")
        try:
            self.speaker.load()
        finally:
            self._wait("")
            self._show_prints()

    def follow(self, request: Ask, clock: Callable[[], float]) -> Reply:
        """Ask, print the reply, and return it. Ctrl-C ends the reply, a second one at once.

        Raises what Speaker.ask raises; then too, what had come of the reply is a line of its own.
        """
        reply = Reply("", None, None, False, 0.0)
        try:
            try:
                for event in self.speaker.ask(request):
                    reply = self._show(event, reply, clock)
            except KeyboardInterrupt:
                reply = replace(reply, interrupted=True)
                self._wait("stopping")
                for event in self.speaker.stop():
                    reply = self._show(event, reply, clock)
        except KeyboardInterrupt:
            self.speaker.end()
        finally:
            self._wait("")
            if not reply.text.endswith("\n") and (reply.text or reply.done):
                sys.stdout.write("\n")
            sys.stdout.flush()
            self._show_prints()
        return reply

    def _show_prints(self) -> None:
        if printed := self.speaker.prints():
            self.screen.printed(printed, "dim")

    def _show(self, event: object, reply: Reply, clock: Callable[[], float]) -> Reply:
        match event:
            case Loading():
                self._wait("loading the model")
            case Began():
                self._wait("reading the prompt")
                reply = replace(reply, began=event)
            case Piece() if event.text:
                if not reply.text:
                    reply = replace(reply, first=clock())
                    self._wait("")
                sys.stdout.write(event.text if self.plain else event.text.translate(HARMLESS))
                sys.stdout.flush()
                reply = replace(reply, text=reply.text + event.text)
            case Done():
                reply = replace(reply, done=event)
        return reply

    def _wait(self, why: str) -> None:
        """Show what is being waited for, on a terminal and until there is text; nothing for ""."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        if why and self.screen.console.is_terminal:
            spinner = "dots" if self.screen.unicode else "line"
            self._status = self.screen.console.status(f"{why} (Ctrl-C stops)", spinner=spinner)
            self._status.start()

    def figures(self, request: Ask, reply: Reply) -> None:
        """The line below a reply: how much, how fast, and why it ended where that is worth a word."""
        parts = []
        if reply.began is not None and reply.done is not None:
            limit = ""
            if reply.done.tokens >= reply.began.most and not reply.interrupted:
                limit = " (context full)" if reply.began.most < request.max_tokens else " (--max-tokens)"
            parts = [f"{reply.began.prompt_tokens} prompt tokens", f"{reply.done.tokens} tokens{limit}"]
            if reply.text:
                parts.append(f"first after {reply.first:.2f} s")
            if reply.done.per_second:
                speed = reply.done.per_second
                parts.append(f"{speed:.3g} tokens/s" if speed < 100 else f"{speed:.0f} tokens/s")
        if reply.interrupted:
            ended = reply.began is not None and reply.done is None
            parts.append("stopped: the code did not react and was ended" if ended else "stopped")
        self.screen.paragraph(", ".join(parts), "dim")
        if reply.interrupted and reply.done and reply.done.stopped and not reply.text:
            self.screen.frames(reply.done.stopped, "it was at")

    def fault(self, fault: NotSpoken) -> None:
        """What is wrong with the tree's code, in about ten lines."""
        self.screen.paragraph(fault.message, "red")
        self.screen.frames(fault.frames, "your line" if self.speaker.solution == "exercises" else "line")
        if fault.next_step:
            self.screen.labelled("next", fault.next_step, "bold")


def generate(speaker: Speaker, request: Ask) -> int:
    """One reply. Returns the exit code."""
    printer = Printer(speaker)
    try:
        reply = printer.follow(request, seconds_running)
    except NotSpoken as fault:
        printer.fault(fault)
        return fault.exit_code
    printer.figures(request, reply)
    return 130 if reply.interrupted else 0


def chat(speaker: Speaker, request: Ask, system: str) -> int:
    """Turns until the input ends. `request` holds the options; returns the exit code.

    A reply that was stopped stays in the conversation as far as it came; a turn without any reply does not.
    """
    printer = Printer(speaker)
    screen = printer.screen
    talking = sys.stdin.isatty()
    history: list[dict[str, str]] = []
    first = [{"role": "system", "content": system}] if system else []
    greet(screen, speaker)
    try:
        printer.load()
    except NotSpoken as fault:
        printer.fault(fault)
        return fault.exit_code
    for line in turns(screen, talking):
        if line.startswith("/"):
            if line in ("/exit", "/quit"):
                break
            if line == "/reset":
                history.clear()
                screen.paragraph("Forgotten.", "dim")
            else:
                if line != "/help":
                    screen.paragraph(f"There is no command {line.split()[0]}.", "red")
                for name, meaning in HELP:
                    screen.labelled(name, meaning, indent=2)
            continue
        asked = {"role": "user", "content": line}
        turn = replace(request, messages=[*first, *history, asked])
        asked_at = time.monotonic()
        try:
            reply = printer.follow(turn, lambda since=asked_at: time.monotonic() - since)
        except NotSpoken as fault:
            printer.fault(fault)
            if not talking:
                return fault.exit_code
            screen.paragraph("The conversation is kept: mend the file and ask again.", "dim")
            continue
        except UsageError as error:
            if not talking:
                raise
            screen.error(error.message, error.next_step)
            continue
        if reply.began is not None and reply.began.dropped:
            del history[: reply.began.dropped]
            full = f"The {speaker.model.context} tokens of the context are full"
            screen.paragraph(f"{full}: the oldest {reply.began.dropped} messages are forgotten.", "yellow")
        if reply.text:
            history += [asked, {"role": "assistant", "content": reply.text}]
        printer.figures(turn, reply)
    return 0


def greet(screen: Screen, speaker: Speaker) -> None:
    model: Model = speaker.model
    code = "your code" if speaker.solution == "exercises" else "the reference"
    borrowed = ", ".join(f"day{d.id}" for d in speaker.borrow)
    screen.paragraph(f"{model.name}: {model.size}", "bold")
    screen.paragraph(
        f"Run by {code}{f' with {borrowed} of the reference' if borrowed else ''}, engine "
        f"{speaker.engine.id} ({speaker.engine.title}).",
        "dim",
    )
    if model.name in TRY:
        screen.paragraph("It was trained on small stories and on questions about them. Try:", "dim")
        for text in TRY[model.name]:
            screen.paragraph(text, indent=2)
    screen.paragraph("Ctrl-C ends a reply, Ctrl-D the conversation; /help lists the rest.", "dim")


def turns(screen: Screen, talking: bool) -> Iterator[str]:
    """The messages, without empty ones; a line that ends in a backslash goes on in the next."""
    if talking:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives `input` editing and a history
    message: list[str] = []
    while True:
        try:
            line = input(("... " if message else "> ") if talking and sys.stdout.isatty() else "")
        except EOFError:
            if talking:
                sys.stdout.write("\n")
            line, ended = "", True
        except KeyboardInterrupt:
            if not talking:
                raise
            sys.stdout.write("\n")
            sys.stdout.flush()
            screen.paragraph("Ctrl-D or /exit ends the conversation.", "dim")
            message = []
            continue
        else:
            ended = False
        if line.endswith("\\"):
            message.append(line[:-1])
            continue
        text = "\n".join([*message, line]).strip()
        message = []
        if text:
            yield text
        if ended:
            return


def prompt_of(argument: str | None) -> str:
    """The prompt: the argument, or stdin when it is "-" or missing and something is piped in."""
    if argument is None and sys.stdin.isatty():
        raise UsageError("generate needs a prompt.", next_step='tinyllm-grade generate "Tell me a story."')
    if argument is None or argument == "-":
        try:
            argument = sys.stdin.buffer.read().decode().removesuffix("\n")
        except UnicodeDecodeError:
            raise UsageError("The prompt on stdin is not UTF-8 text.") from None
    if not argument.strip():
        raise UsageError("The prompt is empty.", next_step='tinyllm-grade generate "Tell me a story."')
    return argument


def check_options(request: Ask, given: Sequence[str]) -> None:
    """Refuse options that would have no effect. `given` are the sampling options on the command line."""
    if request.temp == 0 and given:
        raise UsageError(f"{given[0]} needs --temp above 0: at 0 the most probable token is taken.")
    if "" in request.stop:
        raise UsageError("--stop: an empty text would end every reply before it begins.")
