"""Single key presses from a terminal, which is as it was again at the end, whatever happens."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType, TracebackType

CLOSED = "closed"  # a "key": nobody is at the terminal any more, or Ctrl-D
ESCAPE = "\x1b"


def at_a_terminal() -> bool:
    """Whether somebody can press keys and see what comes of it."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


class Keyboard:
    """While it is entered, a key press is there at once and is not shown. Ctrl-C is a signal as ever."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._before: list | None = None

    def __enter__(self) -> Keyboard:
        self._before = termios.tcgetattr(self._fd)
        atexit.register(self.restore)
        signal.signal(signal.SIGCONT, self._continued)
        self._set()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        self.restore()
        atexit.unregister(self.restore)

    def fileno(self) -> int:
        return self._fd

    def restore(self) -> None:
        """Make the terminal what it was."""
        if self._before is not None:
            with contextlib.suppress(termios.error, OSError):  # it may be gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """The terminal as it was, for a pager or an editor. Keys left over from there are dropped."""
        self.restore()
        try:
            yield
        finally:
            with contextlib.suppress(termios.error, OSError):
                termios.tcflush(self._fd, termios.TCIFLUSH)
            self._set()

    def read(self) -> list[str]:
        """The keys pressed since, without waiting. An arrow or function key is none of ours."""
        pressed = b""
        while select.select([self._fd], [], [], 0)[0]:
            try:
                chunk = os.read(self._fd, 1024)
            except OSError:
                chunk = b""
            if not chunk:
                return [CLOSED]
            pressed += chunk
        text = pressed.decode("utf-8", "ignore").partition(ESCAPE)[0]
        return [CLOSED if key == "\x04" else key for key in text]

    def _set(self) -> None:
        with contextlib.suppress(termios.error, OSError):
            tty.setcbreak(self._fd, termios.TCSADRAIN)

    def _continued(self, number: int, frame: FrameType | None) -> None:
        """Back from Ctrl-Z: the shell has put its own settings in."""
        self._set()
