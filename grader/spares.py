"""A fork of the warm process that waits for its job (in a child).

Whoever does a job is to be the grader's child, and the grader adopts orphans: so there are two forks, and the
first one ends at once. What waits says so on its socket, and ends when the other end of that is closed.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from .messages import receive, send


def fork() -> tuple[socket.socket, bool]:
    """In this process the socket to which a job can be sent; in the fork its own end, and True.

    The other end of a fork that could not be made is closed.
    """
    ours, theirs = socket.socketpair()
    between = os.fork()
    if between:
        theirs.close()
        os.waitpid(between, 0)
        return ours, False
    ours.close()
    between = os.getpid()
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)
    os.setsid()
    while os.getppid() == between:
        time.sleep(0.0002)
    return theirs, True


def wait_for_job(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Say that this process waits, then do so: the job, which it says that it has, and its descriptors.

    The process leads a session of its own by now: only so can it be ended together with all that it starts.
    """
    try:
        send(control, {"pid": os.getpid()})
        job, descriptors = receive(control)
        if job is None:
            os._exit(0)  # there is none for it any more
        send(control, {})
    except OSError:
        os._exit(0)  # the grader is gone
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    control.close()
    return job, descriptors
