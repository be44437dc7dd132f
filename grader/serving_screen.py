"""What `serve` prints: where the server is, how to try it, what goes wrong, and that it has ended."""

from __future__ import annotations

import contextlib
import json
import signal

from .conversation import TRY
from .errors import CourseError
from .render import Screen
from .serving import GRACE_SECONDS, Host, Serving, Trouble, is_private
from .speaking import NotSpoken


class Interrupt(KeyboardInterrupt):
    """SIGTERM, which ends a server as Ctrl-C does."""


def serve(host: Host, screen: Screen) -> int:
    """Serve until Ctrl-C; returns the exit code."""

    def terminated(*_: object) -> None:
        raise Interrupt

    signal.signal(signal.SIGTERM, terminated)
    _greet(host, screen)
    try:
        try:
            _show(host.until_serving(), host, screen)
            for event in host.events():
                _show(event, host, screen)
        except KeyboardInterrupt:
            screen.paragraph(
                f"Ending: replies in progress have {GRACE_SECONDS:.0f} s. Ctrl-C again ends at once.", "dim"
            )
            for event in host.close():
                _show(event, host, screen)
    except KeyboardInterrupt:
        host.end()
    except NotSpoken as fault:
        _prints(host, screen)
        screen.paragraph(fault.message, "red")
        screen.frames(fault.frames, "your line" if host.solution == "exercises" else "line")
        if fault.next_step:
            screen.labelled("next", fault.next_step, "bold")
        return fault.exit_code
    except CourseError:
        _prints(host, screen)
        raise
    _prints(host, screen)
    screen.paragraph("Ended.", "dim")
    return 0


def _greet(host: Host, screen: Screen) -> None:
    code = "your code" if host.solution == "exercises" else "the reference"
    borrowed = ", ".join(d.name for d in host.borrow)
    screen.paragraph(f"{host.model.name}: {host.model.size}", "bold")
    screen.paragraph(
        f"Served by {code}{f' with {borrowed} of the reference' if borrowed else ''}, engine "
        f"{host.engine.id}, {host.options.slots} requests at a time. Loading.",
        "dim",
    )


def _show(event: object, host: Host, screen: Screen) -> None:
    _prints(host, screen)
    match event:
        case Serving():
            _tell_how(event, host, screen)
        case Trouble():
            screen.paragraph(f"A request failed: {event.summary}", "red")
            screen.frames(event.frames, "your line" if host.solution == "exercises" else "line")


def _tell_how(serving: Serving, host: Host, screen: Screen) -> None:
    said = TRY.get(host.model.name, ("Tell me a story.",))[0]
    body = {"model": host.model.name, "messages": [{"role": "user", "content": said}], "temperature": 0}
    key = " -H 'Authorization: Bearer KEY'" if host.api_key else ""
    screen.paragraph(f"Serving on {serving.url}/v1   (Ctrl-C ends)", "bold green")
    screen.line("Try:", "dim")
    screen.line(f"  curl -N {serving.url}/v1/chat/completions{key} -H 'Content-Type: application/json' \\")
    screen.line(f"    -d '{json.dumps({**body, 'stream': True})}'")
    if not is_private(serving.host):
        others = "Whoever reaches this machine can use it"
        screen.paragraph(f"{others}{' with the key' if host.api_key else ': consider --api-key'}.", "yellow")


def _prints(host: Host, screen: Screen) -> None:
    with contextlib.suppress(ValueError):  # ended
        if printed := host.prints():
            screen.printed(printed, "dim")
