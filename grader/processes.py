"""Starting, watching and ending a child of the grader's and everything it started."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from . import large_pages
from .prints import Prints

if TYPE_CHECKING:
    import psutil

TOKEN_VARIABLE = "TINYLLM_GRADING"
READ_BYTES = 1 << 16
READS_AT_ONCE = 64
ANSWER_SECONDS = 0.5  # for a child that is asked where it stands
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


@dataclass(frozen=True)
class Setting:
    """What a child starts with besides its job."""

    output: int  # the file descriptor that gets all it prints
    inherited: tuple[int, ...]  # descriptors that it has as well
    token: str  # marks it, and what it starts, in the environment
    cwd: str
    variables: Mapping[str, str] = field(default_factory=dict)  # added to the environment


def start(argv: Sequence[str], setting: Setting) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own: the terminal's Ctrl-C reaches the parent only."""
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=setting.output,
        stderr=setting.output,
        pass_fds=setting.inherited,
        start_new_session=True,
        env={**os.environ, **setting.variables, TOKEN_VARIABLE: setting.token},
        cwd=setting.cwd,
    )


class Process(Protocol):
    """What is used of a child process: a subprocess.Popen, or one that another process forked for us."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int, /) -> None: ...


# Starts the child that runs a module with its job.
Launch = Callable[[str, Mapping[str, Any], Setting], Process]


def start_child(module: str, job: Mapping[str, Any], setting: Setting) -> Process:
    """Start `python -P -m MODULE '<job as JSON>'`."""
    return start([sys.executable, "-P", "-m", module, json.dumps(job)], setting)


def start_with_large_pages(module: str, job: Mapping[str, Any], setting: Setting) -> Process:
    """`start_child` for one that reads a whole model at every token."""
    return start_child(module, job, replace(setting, variables=large_pages.variables(os.environ)))


def memory_of(process: Process, *, alone: bool = False) -> int:
    """Resident bytes of the child and its descendants; 0 once it is gone.

    `alone` leaves the descendants out: to find them, every process of the machine is looked at.
    """
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        own = psutil.Process(process.pid)
        for member in (own, *(() if alone else own.children(recursive=True))):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
    return total


def computed_by(process: Process) -> float:
    """Processor seconds that the child has used; 0 once it is gone."""
    import psutil

    with contextlib.suppress(psutil.Error):
        times = psutil.Process(process.pid).cpu_times()
        return times.user + times.system
    return 0.0


def end_family(process: Process, token: str) -> None:
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


class Child:
    """One child, `python -P -m MODULE '<job as JSON>'`, that reports events and dies with this process.

    The job is completed with what the child needs for that: `events` and `lifeline` (file descriptors),
    `token`, which each event carries, `stack_file`, for faulthandler, and with `requests` the end of the pipe
    that `send` writes to. `launch` may start it otherwise (warm.Warm.launch).
    """

    def __init__(
        self,
        module: str,
        job: Mapping[str, Any],
        *,
        cwd: Path,
        requests: bool = False,
        launch: Launch = start_child,
    ) -> None:
        adopt_orphans()
        self.token = secrets.token_hex(8)
        self._family = secrets.token_hex(8)  # in the environment, where anyone reads it: no event's token
        self.foreign_lines = 0  # in the pipe of events, from who does not know the token
        self.prints = Prints()
        self._folder = tempfile.TemporaryDirectory(prefix="tinyllm-")
        self._stack_file = Path(self._folder.name) / "stacks"
        self._events, events_end = os.pipe()
        self._output, output_end = os.pipe()
        lifeline_end, self._lifeline = os.pipe()
        completed = {
            **job,
            "events": events_end,
            "lifeline": lifeline_end,
            "token": self.token,
            "family": self._family,
            "stack_file": str(self._stack_file),
        }
        theirs = [events_end, lifeline_end]
        self._ours = [self._events, self._output, self._lifeline]
        self._requests = -1
        if requests:
            completed["requests"], self._requests = os.pipe()
            theirs.append(completed["requests"])
            self._ours.append(self._requests)
            os.set_blocking(self._requests, False)
        self.process = launch(module, completed, Setting(output_end, tuple(theirs), self._family, str(cwd)))
        for fd in (*theirs, output_end):
            os.close(fd)
        self._buffer = self._unsent = b""
        self._selector = selectors.DefaultSelector()  # epoll or kqueue: has a fileno
        for fd in (self._events, self._output):
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def fileno(self) -> int:
        """Readable when `read` has something to take in: for a select over several children."""
        return self._selector.fileno()

    # ---- what it says and is told

    def read(self, wait: float) -> list[dict[str, Any]]:
        """The events that come within `wait` seconds, as soon as anything does; keeps what was printed."""
        found: list[dict[str, Any]] = []
        ready = {key.fd for key, _ in self._selector.select(wait)}
        if self._requests in ready:
            self._write()
        if self._output in ready:  # before the events: what was printed before one is in the pipe before it
            self.drain_prints()
        if self._events in ready:
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(self._events, READ_BYTES):
                    self._buffer += chunk
                self._closed(self._events)
            lines = self._buffer.count(b"\n")
            found, self._buffer = events_in(self._buffer, self.token)
            self.foreign_lines += lines - len(found)
        return found

    def rest(self) -> list[dict[str, Any]]:
        """The events that are still in the pipe of a child that has ended, and the last of its prints."""
        found: list[dict[str, Any]] = []
        for _ in range(READS_AT_ONCE):  # what it started may print on for ever
            if not self._selector.get_map() or not self._selector.select(0):
                break
            found += self.read(0)
        return found

    def drain_prints(self) -> None:
        """Take in what has been printed until nothing is left, but no longer: code that prints without end
        must not keep us here. What was printed before an event fits into the pipe."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(READS_AT_ONCE):
                chunk = os.read(self._output, READ_BYTES)
                self.prints.add(chunk)
                if not chunk:
                    self._closed(self._output)
                    return

    def send(self, request: bytes) -> None:
        """Write to the pipe of requests, as `read` is called and as far as the child takes it."""
        self._unsent += request
        with contextlib.suppress(KeyError):  # already waiting
            self._selector.register(self._requests, selectors.EVENT_WRITE)

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                self._unsent = self._unsent[os.write(self._requests, self._unsent) :]
            except BrokenPipeError:
                self._unsent = b""  # it has ended
        if not self._unsent:
            self._selector.unregister(self._requests)

    def _closed(self, fd: int) -> None:
        """The child's end of a pipe is closed: it would read as ready for ever."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)

    # ---- where it stands

    def stack(self) -> list[tuple[Path, int, str]]:
        """File, line and function of each frame that faulthandler has noted, the innermost first."""
        try:
            text = self._stack_file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        frames = re.findall(r'File "(.+?)", line (\d+) in (\S+)', text)
        return [(Path(path), int(line), function) for path, line, function in frames]

    def line_in(self, tree: Path, *, ask: bool) -> tuple[Path, int, str] | None:
        """The innermost frame of `tree` that faulthandler has noted.

        With `ask` the child is sent SIGUSR2 first, at which it notes its stack, from inside C code as well.
        """
        end = time.monotonic()
        if ask and not self.ended:
            self.process.send_signal(signal.SIGUSR2)
            end += ANSWER_SECONDS
        while True:
            for path, line, function in self.stack():
                if path.is_relative_to(tree):
                    return path, line, function
            if time.monotonic() >= end:
                return None
            time.sleep(0.02)

    def end(self) -> None:
        """Leave nothing running and nothing open."""
        end_family(self.process, self._family)
        self._selector.close()
        for fd in self._ours:
            os.close(fd)
        self._folder.cleanup()
