"""Starting, watching and ending the grading child and everything it started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

TOKEN_VARIABLE = "TINYLLM_GRADING"


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
