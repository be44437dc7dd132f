"""What this machine can do at most: bytes read from memory and float operations, a second (in a child).

Both are the best of a few passes: what disturbs a pass only ever makes it slower. Neighbours on the same
machine do so for seconds on end: what is held against a limit is measured right beside passes of its own.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from tinyllm.kernels.blas import BlasState, processors

READ_BYTES = 512 << 20  # far more than any cache holds
READ_PASSES = 8
READ_AGAIN_PASSES = 4  # beside a turn of a race
PRODUCT = 1536  # rows and columns of the matrices
PRODUCT_PASSES = 5


@dataclass(frozen=True)
class Limit:
    """A rate and how it was measured."""

    per_second: float
    how: str


def on_gpu() -> bool:
    return mx.default_device().type == mx.DeviceType.gpu


class MemoryReader:
    """Reads memory as fast as the device MLX runs on can. It holds what it reads, to read it again."""

    how: str  # what a pass is

    def __init__(self) -> None:
        if on_gpu():
            numbers = mx.ones((READ_BYTES // 4,), dtype=mx.uint32)
            mx.eval(numbers)
            self._bytes = numbers.nbytes
            self._read: Callable[[], object] = lambda: mx.eval(mx.sum(numbers))
            self.how = f"MLX's sum of {READ_BYTES >> 20} MB on the GPU"
            return
        threads = _processors()
        # Written before it is read: untouched memory is one page of zeros, which a cache holds.
        parts = [np.full(READ_BYTES // threads // 8, n, dtype=np.int64) for n in range(threads)]

        def read() -> None:
            workers = [threading.Thread(target=part.sum) for part in parts]  # without the interpreter's lock
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()

        self._bytes = sum(p.nbytes for p in parts)
        self._read = read
        self.how = f"sums of {READ_BYTES >> 20} MB by {_threads(threads)}"

    def per_second(self, passes: int) -> float:
        """Bytes/s of the best pass."""
        return self._bytes / _best(self._read, passes)


def read_bandwidth() -> Limit:
    """Bytes that the device MLX runs on can read from its memory, in bytes/s."""
    reader = MemoryReader()
    return Limit(reader.per_second(READ_PASSES), reader.how)


def product_peak(blas: BlasState) -> Limit:
    """FLOP/s of a float32 matrix product: by the GPU, or by all processors and the BLAS in use."""
    threads, restore = "", lambda: None
    if blas.in_use and not on_gpu():
        openblas = ctypes.CDLL(str(blas.path))
        openblas.scipy_openblas_set_num_threads64_(_processors())
        threads = f", {_threads(_processors())}"
        restore = lambda: openblas.scipy_openblas_set_num_threads64_(blas.threads)  # noqa: E731
    side = PRODUCT if blas.in_use or on_gpu() else PRODUCT // 4  # the slow BLAS takes seconds
    a = mx.random.normal((side, side))
    mx.eval(a)
    try:
        seconds = _best(lambda: mx.eval(a @ a), PRODUCT_PASSES)
    finally:
        restore()
    by = "MLX on the GPU" if on_gpu() else f"{blas.library or 'the BLAS of MLX'}{threads}"
    return Limit(2 * side**3 / seconds, f"float32 matrix product by {by}")


def _best(work: Callable[[], object], passes: int) -> float:
    """Seconds of the fastest pass."""
    seconds = []
    for _ in range(passes):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _processors() -> int:
    try:
        return processors()
    except (AttributeError, OSError):  # no affinity on macOS
        return os.cpu_count() or 1


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"
