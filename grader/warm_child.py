"""The warm process: has imported and collected all that a day's gradings need, and forks one off per job.

    python -P -m tinyllm.grader.warm_child '<setting as JSON>'

It stands where a grading child stands right before it imports the learner's modules: the tripwires are armed,
the day's tests are collected, nothing of the learner's has run. Asked for a fork, it answers with a socket:
who sends a job to that, with the descriptors to report on, has a child that goes on from here (spares.py).

Forking is safe as long as MLX has computed nothing: what it needs for that are threads, and a fork has only
the one that called it. So the threads are counted. Where there are more than NumPy's, or where MLX computes
on a GPU, or where orphans cannot be adopted (off Linux), this process waits for the job itself, and whoever
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
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import child
from .messages import receive, send
from .processes import TOKEN_VARIABLE
from .spares import fork, wait_for_job

if TYPE_CHECKING:
    from .plugin import Grading
    from .preparing import Preparation

Job = tuple[dict[str, Any], list[int]]  # the message, and the descriptors that came with it

MLX_LM_MODELS = ("models.qwen2", "models.qwen3", "models.cache")  # what checks build their oracles from


def main(setting: dict[str, Any]) -> None:
    """Warm up, then serve until the socket closes.

    `setting`: control (the socket), root, day, solution, fork (False: do the first job in this process),
    ahead (the forks to be made before one is asked for).
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
        _Server(control, grading, forks=not why_not, ahead=setting["ahead"]).run(why_not)

    grading.wait = serve
    grading.prepare()
    child.run(grading)


class _Server:
    """Makes forks. `run` returns in one that has got its job, and ends every other process."""

    def __init__(self, control: socket.socket, grading: Grading, *, forks: bool, ahead: int) -> None:
        self.control = control
        self.grading = grading
        self.forks = forks
        self._preparation: Preparation | None = None
        self._wanted = ahead  # so many forks are to be made once nothing is being prepared

    def run(self, why_not: str) -> None:
        try:
            send(self.control, {"forks": self.forks, "why_not": why_not})
            if self.forks:
                self._prepare()
                job = self._serve()
            else:
                job = wait_for_job(self.control)
        except OSError:
            os._exit(0)  # the grader is gone
        self._become(*job)

    def _prepare(self) -> None:
        from .keeping import keep
        from .preparing import Preparation

        if not keep.names:
            return
        with _no_warnings():
            self._preparation = Preparation(self.grading.everything)

    def _serve(self) -> Job:
        """Make forks as the grader wants them; returns in a fork, with its job."""
        while True:
            idle = self._preparation is None and self._wanted > 0
            asked = [self.control] if self._preparation is None else [self.control, self._preparation.done]
            ready, _, _ = select.select(asked, [], [], 0 if idle else None)
            now = False
            if self._preparation is not None and self._preparation.done in ready:
                self._preparation.take_in()
                self._preparation = None
                _settle_memory()
            elif ready:
                message, _ = receive(self.control)
                if message is None:
                    os._exit(0)
                now = message["now"]
                self._wanted = max(self._wanted, 1) if now else message["forks"]
            if now or idle:
                self._wanted -= 1
                job = self._fork()
                if job is not None:
                    return job

    def _fork(self) -> Job | None:
        """Make a fork and give the grader its socket. In the fork: the job, once that has come."""
        sys.stdout.flush()
        sys.stderr.flush()
        with _no_warnings():
            end, is_fork = fork()
        if is_fork:
            self.control.close()
            warm_up()
            return wait_for_job(end)
        with end:
            send(self.control, {}, [end.fileno()])
        return None

    def _become(self, message: dict[str, Any], descriptors: list[int]) -> None:
        """Make this process the job's child, as if it had been started for it."""
        events, lifeline, output = descriptors
        for standard in (1, 2):
            os.dup2(output, standard)
        os.close(output)
        job = {**message, "events": events, "lifeline": lifeline}
        mark(job["family"])
        child.begin(job)
        child.take(self.grading, job)


def warm_up() -> None:
    """What a process pays at its first array: MLX's threads. Only for one that will not be forked again."""
    import mlx.core as mx

    mx.eval(mx.ones((8, 8)) @ mx.ones((8, 8)))


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
