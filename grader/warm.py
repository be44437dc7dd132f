"""Keeps a warm process for a day, and starts grading children from it instead of from nothing.

    with Warm(clone, day) as warm:
        runner.grade(clone, course, day, launch=warm.launch)

`launch` has the interface of `processes.start_child`. A job that the warm process is not for, or one that
comes when it has died or does not answer, gets a plain child: slower, and otherwise the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import messages, processes
from .catalog import Day
from .clone import Clone

CHILD = "tinyllm.grader.child"
BOOT_SECONDS = 60.0  # a plain child would need as long as the warm process, so waiting for that is no loss
ANSWER_SECONDS = 30.0  # a fork takes milliseconds, unless the machine is very busy
PLACE_FOR_TOKEN = "0" * 16
ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1"
}  # NumPy's threads spin while they wait, beside another child's checks


class Forked:
    """A child of ours that another process forked for us, with what the grader uses of subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._handle = -1
        with contextlib.suppress(OSError, AttributeError):
            self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else took leave of it
                pid, status = self.pid, 0
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                self._close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            if self._handle >= 0:
                select.select([self._handle], [], [], left)
            else:
                time.sleep(0.001)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        self._close()


class Warm:
    """A warm process for the gradings of one day with one tree. It is started at once, in the background.

    ahead: children that are forked as soon as it is ready, and wait for their jobs.
    """

    def __init__(
        self, clone: Clone, day: Day, solution: str = "exercises", *, fork: bool = True, ahead: int = 0
    ) -> None:
        self.clone = clone
        self.day = day
        self.solution = solution
        self.why_not = ""  # why it does not fork; "" while it is not known
        self.launched = 0  # children that came out of it
        self._waiting: list[socket.socket] = []  # of forks that wait for a job
        self._fork = fork
        self._ahead = ahead
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready = False
        self._forks = False
        self._state = _state_of(clone, day)
        self._start()

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def launch(self, module: str, job: Mapping[str, Any], setting: processes.Setting) -> processes.Process:
        """Start a child for the job: from the warm process where that fits, else a plain one."""
        mine = (str(self.clone.root), self.day.id, self.solution)
        if module == CHILD and (job["root"], job["day"], job["solution"]) == mine:
            process = self._from_warm(job, setting.output)
            if process is not None:
                self.launched += 1
                return process
        return processes.start_child(module, job, setting)

    def refresh(self) -> None:
        """Start anew where there is no warm process, or what it depends on is not what it was."""
        state = _state_of(self.clone, self.day)
        if self._process is None or self._process.poll() is not None or state != self._state:
            self.close()
            self._state = state
            self._start()

    def have_ready(self, count: int) -> None:
        """Have `count` children forked in the background, which wait for their jobs from then on."""
        self._take_in()
        missing = count - len(self._waiting)
        if missing > 0 and self._ready and self._forks and self._control is not None:
            with contextlib.suppress(OSError):
                messages.send(self._control, {"now": False, "forks": missing})

    def close(self) -> None:
        """End the warm process. Children that have a job go on."""
        self._take_in()
        for control in self._waiting:
            with control:
                _end(_told(control))
        self._waiting = []
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._ready = False

    # ---- the process

    def _start(self) -> None:
        processes.adopt_orphans()
        ours, theirs = socket.socketpair()
        setting = {
            "control": theirs.fileno(),
            "root": str(self.clone.root),
            "day": self.day.id,
            "solution": self.solution,
            "fork": self._fork,
            "ahead": self._ahead,
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tinyllm.grader.warm_child", json.dumps(setting)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**ONE_THREAD, **os.environ, processes.TOKEN_VARIABLE: PLACE_FOR_TOKEN},
                cwd=self.clone.root,
            )
        self._control = ours
        self._ready = False

    def _from_warm(self, job: Mapping[str, Any], output: int) -> processes.Process | None:
        """A child out of the warm process; None where it cannot be had."""
        self.refresh()
        if not self._get_ready() or self._control is None or self._process is None:
            self.close()
            return None
        descriptors = [job["events"], job["lifeline"], output]
        if not self._forks:
            spent, self._process = self._process, None  # it is the child now
            control, self._control = self._control, None
            with control:
                if _told(control) and _hand_over(control, job, descriptors):
                    return spent
            spent.kill()
            spent.wait()
            return None
        while (control := self._waiting_one()) is not None:
            with control:
                pid = _told(control)
                if pid and _hand_over(control, job, descriptors):
                    return Forked(pid)
            _end(pid)
        self.close()
        return None

    def _waiting_one(self) -> socket.socket | None:
        """The socket of a fork that waits for a job; None where there are no forks to be had."""
        self._take_in()
        if self._waiting:
            return self._waiting.pop(0)
        assert self._control is not None
        try:
            self._control.settimeout(ANSWER_SECONDS)
            messages.send(self._control, {"now": True})
            _, descriptors = messages.receive(self._control)
        except (OSError, ValueError):
            return None
        return socket.socket(fileno=descriptors[0]) if descriptors else None

    def _take_in(self) -> None:
        """The sockets of forks that have been made meanwhile."""
        with contextlib.suppress(OSError, ValueError):
            while self._ready and self._control is not None and _readable(self._control):
                _, descriptors = messages.receive(self._control)
                if not descriptors:
                    return  # it has ended
                self._waiting.append(socket.socket(fileno=descriptors[0]))

    def _get_ready(self) -> bool:
        if self._ready or self._control is None:
            return self._ready
        try:
            self._control.settimeout(BOOT_SECONDS)
            answer, _ = messages.receive(self._control)
        except (OSError, ValueError):
            return False
        if answer is None:
            return False
        self._ready = True
        self._forks, self.why_not = answer["forks"], answer["why_not"]
        return True

    @property
    def pid(self) -> int:
        """The warm process's; 0 where there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def forks(self) -> bool:
        """Whether children are forked; waits until that is known."""
        return self._get_ready() and self._forks


def _readable(control: socket.socket) -> bool:
    return bool(select.select([control], [], [], 0)[0])


def _told(control: socket.socket) -> int:
    """The id of the process that waits for a job at the socket's other end; 0 where it has ended."""
    try:
        control.settimeout(ANSWER_SECONDS)
        message, _ = messages.receive(control)
    except (OSError, ValueError):
        return 0
    return message["pid"] if message is not None else 0


def _hand_over(control: socket.socket, job: Mapping[str, Any], descriptors: Sequence[int]) -> bool:
    """Whether the process that waits has taken the job."""
    try:
        messages.send(control, dict(job), descriptors)
        return messages.receive(control)[0] is not None
    except (OSError, ValueError):
        return False


def _end(pid: int) -> None:
    """End a fork that has no job, and take leave of it."""
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _state_of(clone: Clone, day: Day) -> tuple[tuple[str, int, int], ...]:
    """What a warm process depends on: the specs of the course, the day's tests, the models that ship."""
    files = [clone.checkpoints / "course.toml", *clone.checkpoints.glob("*/checkpoint.toml")]
    files += (clone.reference / "models").glob("*/*")
    files += sorted(Path(day.folder).glob("*.py"))
    found = []
    for file in sorted(files):
        with contextlib.suppress(OSError):
            stat = file.stat()
            found.append((str(file), stat.st_mtime_ns, stat.st_size))
    return tuple(found)
