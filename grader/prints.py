"""What a child prints, kept in part, and cut where one check ends and the next begins."""

from __future__ import annotations

import contextlib
import os

KEPT_OUTPUT = 4096  # bytes of the prints kept at each end
MARK = b"\0next check\0"  # what the child prints before each check


def mark() -> None:
    """Say in the stream of this process's prints that a check begins. What it printed is flushed."""
    with contextlib.suppress(OSError):  # the code under test may have closed it
        os.write(1, MARK)


class HeadAndTail:
    """The first and last bytes of a stream of any length."""

    def __init__(self) -> None:
        self.head = b""
        self.tail = b""
        self.dropped = 0

    def add(self, chunk: bytes) -> None:
        room = KEPT_OUTPUT - len(self.head)
        if room > 0:
            self.head += chunk[:room]
            chunk = chunk[room:]
        self.tail += chunk
        if len(self.tail) > KEPT_OUTPUT:
            self.dropped += len(self.tail) - KEPT_OUTPUT
            self.tail = self.tail[-KEPT_OUTPUT:]

    def text(self) -> str:
        middle = f"\n... {self.dropped} bytes left out ...\n" if self.dropped else ""
        return self.head.decode("utf-8", "replace") + middle + self.tail.decode("utf-8", "replace")


class Prints:
    """A child's prints, the part up to the next mark first.

    Prints and events come in two pipes. Several checks may have run before either is read: only a mark in the
    stream says which check printed what.
    """

    def __init__(self) -> None:
        self._parts = [HeadAndTail()]
        self._held = b""  # perhaps the beginning of a mark

    def add(self, chunk: bytes) -> None:
        *ended, rest = (self._held + chunk).split(MARK)
        for part in ended:
            self._parts[-1].add(part)
            self._parts.append(HeadAndTail())
        begun = max(n for n in range(len(MARK)) if rest.endswith(MARK[:n]))
        self._parts[-1].add(rest[: len(rest) - begun])
        self._held = rest[len(rest) - begun :]

    def next(self) -> None:
        """Go on behind the next mark; where none has come, with what comes from now on."""
        self._parts = self._parts[1:] or [HeadAndTail()]

    def text(self) -> str:
        """What was printed up to the next mark."""
        return self._parts[0].text()
