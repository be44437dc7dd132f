"""Puts a fast BLAS under MLX where MLX's wheel brings a slow one: on Linux, without a GPU.

    from tinyllm.kernels import blas

    state = blas.prepare()      # before anything imports mlx.core
    import mlx.core as mx

MLX's CPU wheel for Linux multiplies float32 matrices with the reference BLAS, which is written to be read.
NumPy's wheel carries OpenBLAS, ten to a hundred times faster, but under names of its own
(scipy_cblas_sgemm64_ for cblas_sgemm) and with 64-bit sizes where MLX passes 32-bit ones. A few lines of C,
the shim, close that gap. They are compiled once and kept in the user's cache folder. Opened for everyone
(RTLD_GLOBAL) before libmlx.so, the shim is where the dynamic linker finds cblas_sgemm first.

float32, float64 and complex64 products go through it: matmul, addmm, and what is made of them. bfloat16,
float16 and quantized products use no BLAS, and the decompositions of mx.linalg keep MLX's own LAPACK.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Everything is passed on as MLX passes it; only the sizes get wider. Nothing is included and nothing linked:
# a compiler alone is enough, and the result does not depend on where NumPy is installed.
SOURCE = r"""
#define PUBLIC __attribute__((visibility("default")))
typedef long long wide;

#define PRODUCT(name, scalar, pointer)                                                                       \
  typedef void name##_wide(int, int, int, wide, wide, wide, scalar, pointer, wide, pointer, wide, scalar,    \
                           void *, wide);                                                                    \
  static name##_wide *name##_target;                                                                         \
  PUBLIC void cblas_##name(int order, int trans_a, int trans_b, int m, int n, int k, scalar alpha,           \
                           pointer a, int lda, pointer b, int ldb, scalar beta, void *c, int ldc) {          \
    tinyllm_blas_used = 1;                                                                                   \
    name##_target(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);                    \
  }

PUBLIC int tinyllm_blas_used = 0;
PRODUCT(sgemm, float, const void *)
PRODUCT(dgemm, double, const void *)
PRODUCT(cgemm, const void *, const void *)

PUBLIC void tinyllm_blas_bind(void *sgemm, void *dgemm, void *cgemm) {
  sgemm_target = (sgemm_wide *)sgemm;
  dgemm_target = (dgemm_wide *)dgemm;
  cgemm_target = (cgemm_wide *)cgemm;
}
"""
FLAGS = ("-x", "c", "-O2", "-shared", "-fPIC", "-nostdlib", "-fvisibility=hidden")
PRODUCTS = ("sgemm", "dgemm", "cgemm")  # every BLAS function that libmlx.so asks for
COMPILE_SECONDS = 30.0
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")  # OpenBLAS's own


@dataclass(frozen=True)
class BlasState:
    """Which BLAS MLX's products run on in this process."""

    in_use: bool  # a fast one was put under MLX
    library: str = ""  # "OpenBLAS 0.3.31", when in use
    path: Path | None = None  # its file
    threads: int = 0  # that it may use
    reason: str = ""  # why none was put there
    fix: str = ""  # the command that changes that; empty when nothing is wrong

    def __str__(self) -> str:
        if not self.in_use:
            return f"MLX's own, {self.reason}"
        return f"{self.library}, {self.threads} thread{'s' if self.threads != 1 else ''}"


class _Unavailable(Exception):
    """There is no fast BLAS here, for the reason given."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.fix = fix


_lock = threading.Lock()
_state: BlasState | None = None
_shim: ctypes.CDLL | None = None


def prepare() -> BlasState:
    """Put a fast BLAS under MLX, if this machine's MLX needs one, and say how that went.

    Has an effect only before mlx.core is imported. Never raises: without a compiler, or when anything else is
    missing, MLX stays as it was shipped and the state gives the reason. A second call returns the first one's
    state. TINYLLM_BLAS=off switches it off.

    The number of threads is OPENBLAS_NUM_THREADS if that is set, else half the processors that this process
    may use. OpenBLAS's threads wait for each other by spinning: with as many threads as processors, one other
    busy process makes a training step two to five times slower. On an idle machine they would gain a third.
    """
    global _state
    with _lock:
        if _state is None:
            try:
                _state = _put_under_mlx()
            except _Unavailable as why:
                _state = BlasState(False, reason=str(why), fix=why.fix)
            except Exception as error:  # whatever goes wrong here, MLX works without
                _state = BlasState(
                    False, reason=f"because the faster one failed: {type(error).__name__}: {error}"
                )
        return _state


def used() -> bool:
    """Whether a product went through the library that `prepare` put there, in this process."""
    return _shim is not None and ctypes.c_int.in_dll(_shim, "tinyllm_blas_used").value != 0


def _put_under_mlx() -> BlasState:
    if os.environ.get("TINYLLM_BLAS", "").strip().lower() == "off":
        raise _Unavailable("because TINYLLM_BLAS is off", "unset TINYLLM_BLAS")
    if not _mlx_is_slow():
        raise _Unavailable("which is not the slow one of the CPU wheel for Linux")
    if "mlx.core" in sys.modules:
        raise _Unavailable("because mlx.core was imported before a faster one could be put under it")
    path = _numpys_openblas()
    openblas = ctypes.CDLL(str(path))
    openblas.scipy_openblas_get_config64_.restype = ctypes.c_char_p
    words = openblas.scipy_openblas_get_config64_().decode().split()  # OpenBLAS, 0.3.31, USE64BITINT, ...
    if not any(os.environ.get(name) for name in THREAD_VARIABLES):
        openblas.scipy_openblas_set_num_threads64_(max(1, processors() // 2))
    threads = openblas.scipy_openblas_get_num_threads64_()
    _open_shim(openblas)  # last: once MLX can find it there is no way back
    return BlasState(True, " ".join(words[:2]), path, threads)


def _mlx_is_slow() -> bool:
    """Whether the MLX installed here is a wheel that carries the reference BLAS. Does not import it."""
    if sys.platform != "linux":
        return False
    spec = importlib.util.find_spec("mlx")
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    return any(True for f in folders for _ in f.parent.glob("mlx_cpu.libs/libblas-*"))


def _numpys_openblas() -> Path:
    """The OpenBLAS with 64-bit sizes that NumPy's wheel carries. Does not import NumPy."""
    spec = importlib.util.find_spec("numpy")
    if spec is None or spec.origin is None:
        raise _Unavailable(
            "because NumPy, which brings a fast one, is missing", "python -m pip install numpy"
        )
    beside = Path(spec.origin).parents[1] / "numpy.libs"
    found = sorted(beside.glob("libscipy_openblas64_*.so"))
    if not found:
        raise _Unavailable(
            "because this NumPy brings no OpenBLAS",
            "python -m pip install --force-reinstall --only-binary numpy numpy",
        )
    return found[0]


def processors(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many processors this process may keep busy, by its affinity and its container's quota."""
    allowed = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max 100000" for no limit
        share, period = map(int, quota.read_text().split())
        allowed = min(allowed, max(1, share // period))
    return allowed


# ---- the library between MLX and OpenBLAS ----


def _open_shim(openblas: ctypes.CDLL) -> None:
    """Open the shim out of the cache, or build it first, check its products, and let MLX find it."""
    kept = cache_folder() / f"shim-{_fingerprint()}.so"
    if kept.is_file():
        try:
            cached = ctypes.CDLL(str(kept))
        except OSError:
            pass  # damaged, or of another system that shares this folder: it is replaced
        else:
            _bind(cached, kept, openblas)
            return
    with _workshop(kept.parent) as (folder, keep):
        fresh = folder / "shim.so"
        _compile(fresh)
        _bind(ctypes.CDLL(str(fresh)), fresh, openblas)
        if keep:
            fresh.replace(kept)  # in one step: others find all of it or nothing


def _bind(shim: ctypes.CDLL, file: Path, openblas: ctypes.CDLL) -> None:
    global _shim
    targets = [getattr(openblas, f"scipy_cblas_{name}64_") for name in PRODUCTS]
    shim.tinyllm_blas_bind(*(ctypes.cast(t, ctypes.c_void_p) for t in targets))
    for name in PRODUCTS:
        if not _multiplies(getattr(shim, f"cblas_{name}"), name):
            raise _Unavailable(f"because {name} of NumPy's OpenBLAS gave a wrong product")
    ctypes.c_int.in_dll(shim, "tinyllm_blas_used").value = 0
    ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)  # the same library again, from here on found by name
    _shim = shim


def cache_folder() -> Path:
    """Where the compiled shim is kept: TINYLLM_CACHE, else the user's cache folder."""
    chosen = os.environ.get("TINYLLM_CACHE")
    if chosen:
        return Path(chosen) / "blas"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyllm" / "blas"


def _fingerprint() -> str:
    parts = (SOURCE, *FLAGS, os.uname().machine)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _workshop(cache: Path) -> Iterator[tuple[Path, bool]]:
    """A folder to build in, and whether the result can be kept beside it."""
    import tempfile  # here and below: only a first use pays for such imports

    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder, keep = tempfile.TemporaryDirectory(prefix=".build-", dir=cache), True
    except OSError:  # a home folder that cannot be written to: built for this process alone
        folder, keep = tempfile.TemporaryDirectory(prefix="tinyllm-blas-"), False
    with folder as name:
        yield Path(name), keep


def _compile(target: Path) -> None:
    import subprocess

    complaint = ""
    for compiler in _compilers():
        command = [*compiler, *FLAGS, "-o", str(target), "-"]
        try:
            done = subprocess.run(
                command, input=SOURCE.encode(), capture_output=True, timeout=COMPILE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            complaint = f"{compiler[0]}: {error}"
            continue
        if done.returncode == 0:
            return
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        complaint = f"{compiler[0]}: {said[-1]}"
    fix = "sudo apt install gcc (or your system's name); without root: python -m pip install ziglang (100 MB)"
    if complaint:
        raise _Unavailable(f"because the C compiler failed: {complaint}", fix)
    raise _Unavailable("because there is no C compiler to connect a faster one", fix)


def _compilers() -> Iterator[list[str]]:
    """The C compilers here, best first: CC, the system's, and the one that PyPI's ziglang package brings."""
    import shlex
    import shutil

    for words in (shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]):
        if words and shutil.which(words[0]):
            yield words
    zig = importlib.util.find_spec("ziglang")
    if zig is not None and zig.origin is not None:
        yield [str(Path(zig.origin).parent / "zig"), "cc"]


# ---- is it right? ----

ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112  # CBLAS's own numbers
M, N, K = 3, 5, 4


def _multiplies(gemm: ctypes._CFuncPtr, name: str) -> bool:
    """Whether C = 2 A B + beta C is exact for small whole numbers, for each way of storing A and B.

    Each matrix lies in a wider one, whose other elements must not change. beta 0 must not read C: it is NaN.
    A 32-bit argument's upper half may hold anything, so it is filled with rubbish.
    """
    number = ctypes.c_double if name == "dgemm" else ctypes.c_float
    parts = 2 if name == "cgemm" else 1  # floats in one number

    def scalar(value: float) -> object:
        return ctypes.byref((number * 2)(value, 0.0)) if parts == 2 else number(value)

    def size(value: int) -> ctypes.c_longlong:
        return ctypes.c_longlong(value | 0x5A5A5A5A << 32)

    def flat(rows: list[list[complex]], fill: float) -> list[float]:
        """The rows as they lie in memory, each followed by two elements that are not its own."""
        numbers = [v for row in rows for v in (*row, complex(fill, fill), complex(fill, fill))]
        return [x for v in numbers for x in (v.real, v.imag)[:parts]]

    unit = 1j if parts == 2 else 0
    a = [[i + 2 * k - 4 + (i - k) * unit for k in range(K)] for i in range(M)]
    b = [[3 * k - j + (k + j) * unit for j in range(N)] for k in range(K)]
    product = [[sum(a[i][k] * b[k][j] for k in range(K)) for j in range(N)] for i in range(M)]
    for a_kind, b_kind, beta in itertools.product((PLAIN, TRANSPOSED), (PLAIN, TRANSPOSED), (0, 3)):
        left = a if a_kind == PLAIN else [list(column) for column in zip(*a, strict=True)]
        right = b if b_kind == PLAIN else [list(column) for column in zip(*b, strict=True)]
        before = complex(7, 1) if beta else complex("nan+nanj")
        got_in = flat([[before] * N for _ in range(M)], -1.0)
        expected = flat([[2 * v + (beta * before if beta else 0) for v in row] for row in product], -1.0)
        left_in, right_in = flat(left, 9.0), flat(right, 9.0)
        c = (number * len(got_in))(*got_in)
        gemm.restype = None
        gemm(
            *map(size, (ROW_MAJOR, a_kind, b_kind, M, N, K)),
            scalar(2.0),
            (number * len(left_in))(*left_in),
            size(len(left[0]) + 2),
            (number * len(right_in))(*right_in),
            size(len(right[0]) + 2),
            scalar(float(beta)),
            c,
            size(N + 2),
        )
        if list(c) != expected:
            return False
    return True
