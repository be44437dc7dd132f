"""Starting, watching and ending the grading child and everything it started."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

TOKEN_VARIABLE = "TINYLLM_GRADING"
KEPT_OUTPUT = 4096  # bytes of the child's prints kept at each end
SIGNALS = {
    "SIGSEGV": "segmentation fault: C code touched memory that is not its own",
    "SIGABRT": "abort: C code gave up",
    "SIGKILL": "kill signal, often the system running out of memory",
    "SIGBUS": "bus error",
    "SIGFPE": "arithmetic fault in C code",
}


def adopt_orphans() -> None:
    """On Linux, have a grandchild whose parent died become ours, so that `end_family` still finds it."""
    if sys.platform == "linux":
        PR_SET_CHILD_SUBREAPER = 36
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(
    argv: Sequence[str], *, output: int, pass_fds: Sequence[int], token: str, cwd: str
) -> subprocess.Popen[bytes]:
    """Start the child in a session of its own: the terminal's Ctrl-C reaches the parent only.

    Everything it prints goes to the file descriptor `output`; `token` marks it and what it starts.
    """
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=pass_fds,
        start_new_session=True,
        env={**os.environ, TOKEN_VARIABLE: token},
        cwd=cwd,
    )


def memory_of(process: subprocess.Popen[bytes]) -> int:
    """Resident bytes of the child and its descendants; 0 once it is gone."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        own = psutil.Process(process.pid)
        for member in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
    return total


def end_family(process: subprocess.Popen[bytes], token: str) -> None:
    """Kill the child, its process group and whatever it started, also what left the group; wait for all.

    A process that made a session of its own and lost its parent is told by the `token` in its environment.
    """
    import psutil

    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(20):  # killing one may hand us its children: look until there are none
        left = _family(token)
        if not left:
            break
        for member in left:
            with contextlib.suppress(psutil.Error):
                member.kill()
        psutil.wait_procs(left, timeout=0.5)
    _reap(process.pid)


def _reap(session: int) -> None:
    """Take leave of the adopted dead of the child's session. Other children are not ours to wait for."""
    import psutil

    for dead in psutil.Process().children():
        with contextlib.suppress(psutil.Error, OSError):
            if dead.status() == psutil.STATUS_ZOMBIE and os.getsid(dead.pid) == session:
                os.waitpid(dead.pid, os.WNOHANG)


def _family(token: str) -> list[psutil.Process]:
    """Living processes that carry the token. On Linux orphans are ours (adopt_orphans); elsewhere ask all."""
    import psutil

    members = psutil.Process().children(recursive=True) if sys.platform == "linux" else psutil.process_iter()
    found = []
    for member in members:
        with contextlib.suppress(psutil.Error):
            if member.environ().get(TOKEN_VARIABLE) == token and member.status() != psutil.STATUS_ZOMBIE:
                found.append(member)
    return found


def ending(code: int | None, during: str) -> str:
    """How a child ended that had not signed off, as a sentence; `during` is "the check" or "the reply"."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        told = SIGNALS.get(name, name)
        return f"The process was killed by {'an' if told[0] in 'aeiou' else 'a'} {told}."
    return f"The process ended in the middle of {during} (exit code {code}): os._exit, or a C library."


def events_in(buffer: bytes, token: str) -> tuple[list[dict[str, Any]], bytes]:
    """The events among the whole lines of what came out of a child's event pipe, and what is left over."""
    *lines, rest = buffer.split(b"\n")
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the learner's code wrote to our pipe: not ours, whatever it says
        if isinstance(event, dict) and event.get("token") == token:
            events.append(event)
    return events, rest


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
