"""Many clients at once against a completions server: what each got, how long it took, what went wrong.

A client of plain sockets, so that on two processors it is the server that is measured. Each client asks,
reads its stream to the end, asks again; every fifth request is hung up on after a few events.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HANG_UP_EVERY = 5
LONGEST_WAIT = 60.0  # seconds for a single event


@dataclass
class Asked:
    """One request and what came of it. Times are seconds since it was sent."""

    body: Mapping[str, Any]
    text: str = ""
    tokens: int = 0
    first: float | None = None  # until the first text
    seconds: float = 0.0
    hung_up: bool = False
    problem: str = ""  # "", or what was wrong

    @property
    def completed(self) -> bool:
        return not self.hung_up and not self.problem


@dataclass
class Load:
    """So many clients for so many seconds; `asked` fills as requests end."""

    host: str
    port: int
    bodies: Sequence[Mapping[str, Any]]  # requests for /v1/completions, drawn from
    clients: int
    seconds: float
    seed: int = 0
    asked: list[Asked] = field(default_factory=list)
    took: float = 0.0

    async def run(self) -> None:
        began = time.monotonic()
        end = began + self.seconds
        await asyncio.gather(*(self._client(number, end) for number in range(self.clients)))
        self.took = time.monotonic() - began

    async def _client(self, number: int, end: float) -> None:
        draw = random.Random(self.seed * 1000 + number)
        count = number  # so that the clients do not all hang up at the same time
        while time.monotonic() < end:
            count += 1
            hang_up_after = draw.randint(1, 8) if count % HANG_UP_EVERY == 0 else None
            one = await ask(self.host, self.port, draw.choice(self.bodies), hang_up_after)
            self.asked.append(one)
            if one.problem:
                await asyncio.sleep(0.2)


async def ask(host: str, port: int, body: Mapping[str, Any], hang_up_after: int | None = None) -> Asked:
    """One streamed completion, read to its end, or hung up on after so many events."""
    one = Asked(body)
    began = time.monotonic()
    data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    try:
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(head.encode() + data)
            await _read(reader, one, began, hang_up_after)
        finally:
            writer.close()
    except (OSError, TimeoutError, ValueError) as error:
        one.problem = f"{type(error).__name__}: {error}"
    one.seconds = time.monotonic() - began
    return one


async def _read(reader: asyncio.StreamReader, one: Asked, began: float, hang_up_after: int | None) -> None:
    status = (await asyncio.wait_for(reader.readline(), LONGEST_WAIT)).decode()
    if " 200 " not in status:
        one.problem = f"status {status.strip() or 'missing'}"
        return
    events, reason, done = 0, None, False
    while line := await asyncio.wait_for(reader.readline(), LONGEST_WAIT):
        if not line.startswith(b"data: "):  # a header, the length of a chunk, an empty line
            continue
        if line == b"data: [DONE]\n":
            done = True
            continue
        event = json.loads(line[6:])
        if "error" in event:
            one.problem = f"error event: {event['error'].get('message')}"
            return
        for choice in event["choices"]:
            if choice["text"] and one.first is None:
                one.first = time.monotonic() - began
            one.text += choice["text"]
            reason = choice["finish_reason"] or reason
        if event.get("usage"):
            one.tokens = event["usage"]["completion_tokens"]
        events += 1
        if hang_up_after is not None and events >= hang_up_after and reason is None:
            one.hung_up = True
            return
    if not done or reason is None:
        one.problem = "the stream ended without a finish_reason or [DONE]"
