"""The warm process: has imported and collected all that a day's gradings need, and forks one off per job.

    python -P -m tinyllm.grader.warm_child '<setting as JSON>'

It stands where a grading child stands right before it imports the learner's modules: the tripwires are armed,
the day's tests are collected, nothing of the learner's has run. A job comes over a socket with the file
descriptors that its child is to report on; the answer is the process id of a child that goes on from here.

Forking is safe as long as MLX has computed nothing: what it needs for that are threads, and a fork has only
the one that called it. So the threads are counted. Where there are more than NumPy's, or where MLX computes
on a GPU, or where orphans cannot be adopted (off Linux), this process does the first job itself, and whoever
started it starts another.

Where it forks, one fork computes what the day's checks keep (preparing.py), and every later one has that.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import child
from .messages import receive, send
from .processes import TOKEN_VARIABLE

if TYPE_CHECKING:
    from .plugin import Grading
    from .preparing import Preparation

MLX_LM_MODELS = ("models.qwen2", "models.qwen3", "models.cache")  # what checks build their oracles from


def main(setting: dict[str, Any]) -> None:
    """Warm up, then serve until the socket closes.

    `setting`: control (the socket), root, day, solution, fork (False: do the first job in this process).
    """
    child.die_by_signal()
    control = socket.socket(fileno=setting["control"])
    control.set_inheritable(False)
    child.settle(setting["root"])
    import numpy  # noqa: F401 - its BLAS starts threads, which stop for a fork and start again after it

    threads = _threads()
    import mlx.core as mx

    grading = child.make(setting["root"], setting["day"], setting["solution"])

    def serve() -> None:
        preload(grading)
        why_not = "" if setting["fork"] else "it was not asked for"
        if sys.platform != "linux":
            why_not = "orphans cannot be adopted on this system"
        elif mx.default_device().type == mx.DeviceType.gpu:
            why_not = "MLX computes on a GPU"
        elif _threads() > threads:
            why_not = "the day's tests have MLX compute as they are imported"
        _settle_memory()
        _Server(control, grading, forks=not why_not).run(why_not)

    grading.wait = serve
    grading.prepare()
    child.run(grading)


class _Server:
    """Takes jobs. `run` returns in the process that is to do one, and ends every other."""

    def __init__(self, control: socket.socket, grading: Grading, *, forks: bool) -> None:
        self.control = control
        self.grading = grading
        self.forks = forks
        self._preparation: Preparation | None = None

    def run(self, why_not: str) -> None:
        self._answer({"ready": os.getpid(), "forks": self.forks, "why_not": why_not})
        if self.forks:
            self._prepare()
        while True:
            self._wait_for_job()
            message, descriptors = receive(self.control)
            if message is None:
                os._exit(0)
            events, lifeline, output = descriptors
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            job = {**message, "events": events, "lifeline": lifeline}
            if not self.forks:
                self._answer({"pid": os.getpid()})
                self._become(job, output)
                return
            pid = self._fork(job, output)
            if pid == 0:
                return
            for descriptor in descriptors:
                os.close(descriptor)
            self._answer({"pid": pid})

    def _prepare(self) -> None:
        from .keeping import keep
        from .preparing import Preparation

        if not keep.names:
            return
        with _no_warnings():
            self._preparation = Preparation(self.grading.everything)

    def _wait_for_job(self) -> None:
        """Until the grader says something. What has been prepared meanwhile is taken in."""
        while self._preparation is not None:
            ready, _, _ = select.select([self.control, self._preparation.done], [], [])
            if self._preparation.done in ready:
                self._preparation.take_in()
                self._preparation = None
                _settle_memory()
            elif ready:
                return

    def _answer(self, message: dict[str, Any]) -> None:
        try:
            send(self.control, message)
        except OSError:
            os._exit(0)  # the grader is gone

    def _fork(self, job: dict[str, Any], output: int) -> int:
        """Fork twice, so that the grader, which adopts orphans, becomes the child's parent; 0 in the child.

        The child's id comes once it leads a session of its own: before that it cannot be ended as a group.
        """
        theirs, ours = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        with _no_warnings():
            between = os.fork()
            if between == 0:
                between = os.getpid()
                if os.fork():
                    os._exit(0)
                os.setsid()
                while os.getppid() == between:
                    time.sleep(0.0002)
                mark(job["family"])
                os.write(ours, str(os.getpid()).encode())
                os.close(theirs)
                os.close(ours)
                self._become(job, output)
                return 0
        os.close(ours)
        told = os.read(theirs, 32)  # nothing when the child could not be made
        os.close(theirs)
        os.waitpid(between, 0)
        return int(told or -1)

    def _become(self, job: dict[str, Any], output: int) -> None:
        """Make this process the job's child, as if it had been started for it."""
        self.control.close()
        for standard in (1, 2):
            os.dup2(output, standard)
        os.close(output)
        child.begin(job)
        child.take(self.grading, job)


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """For a fork: from 3.12 on Python warns of it, since NumPy's threads look like any others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _settle_memory() -> None:
    gc.collect()
    gc.freeze()  # so that a collection in a child does not touch, and so copy, all of it


def mark(token: str) -> None:
    """Have this process found by `token`, as a process is that was started with it in its environment.

    What others read of a process's environment is the memory that it began with: the token is written there.
    """
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    place = libc.getenv(TOKEN_VARIABLE.encode())
    if place and len(os.environ.get(TOKEN_VARIABLE, "")) == len(token):
        ctypes.memmove(place, token.encode("ascii"), len(token))
    os.environ[TOKEN_VARIABLE] = token


def preload(grading: Grading) -> None:
    """Do what pytest and the day's checks do only as they run: imports, as far as they are there, above all.

    mlx-lm's own modules are dropped again: a check finds them as it would in a process of its own, and they
    load quickly once all that they need is there.
    """
    import numpy.random  # noqa: F401 - NumPy itself imports it at its first use

    from . import cases_child  # noqa: F401

    for item in grading.everything:
        item.location  # noqa: B018 - a cached property, for which the check's source is read
    for name in sorted(_late_imports(grading.day.tests)):
        if name.partition(".")[0] not in ("mlx_lm", "tinyllm"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    texts = [t.read_text(encoding="utf-8") for t in grading.day.tests]
    if any("shipped_model" in t or "mlx_lm_module" in t for t in texts):
        from .loading import mlx_lm_module

        before = set(sys.modules)
        with contextlib.suppress(Exception):
            for name in MLX_LM_MODELS:
                mlx_lm_module(name)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "mlx_lm":
                del sys.modules[name]
    if any("ShippedTokenizer" in t for t in texts):
        with contextlib.suppress(ImportError):
            import tokenizers  # noqa: F401


def _late_imports(tests: tuple[Path, ...]) -> Iterator[str]:
    for test in tests:
        for node in ast.walk(ast.parse(test.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module


def _threads() -> int:
    try:
        return len(list(Path("/proc/self/task").iterdir()))
    except OSError:
        return 0


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
