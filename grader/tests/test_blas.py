"""The BLAS under MLX, in real processes: right products, and MLX as shipped where it cannot be had."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

from tinyllm.kernels import blas

NUMPY = Path(find_spec("numpy").origin).parents[1]
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not list(NUMPY.glob("mlx_cpu.libs/libblas-*")),
    reason="only MLX's CPU wheel for Linux brings the slow BLAS",
)

SAY = """
import json
from tinyllm.kernels import blas
state = blas.prepare()
import mlx.core as mx
right = (mx.arange(6.0).reshape(2, 3) @ mx.arange(12.0).reshape(3, 4)).tolist()
assert right == [[20.0, 23.0, 26.0, 29.0], [56.0, 68.0, 80.0, 92.0]], right
print(json.dumps({"in_use": state.in_use, "used": blas.used(), "library": state.library, "says": str(state),
                  "threads": state.threads, "reason": state.reason, "fix": state.fix}))
"""

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "a cache"  # with a space: paths are never split


def child(code: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    ours = ("TINYLLM_BLAS", "TINYLLM_CACHE", "CC", *blas.THREAD_VARIABLES)
    plain = {k: v for k, v in os.environ.items() if k not in ours}
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**plain, "TINYLLM_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def answer(code: str, cache: Path, **environment: str) -> dict:
    done = child(code, cache, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def shims(cache: Path) -> list[Path]:
    return sorted((cache / "blas").iterdir())


# ---- right products ----

PRODUCTS = """
import json
from tinyllm.kernels import blas
state = blas.prepare()
import mlx.core as mx
import numpy as np

assert state.in_use, state
rng = np.random.default_rng(1)
mx.set_default_device(mx.cpu)
wrong, count, worst = [], 0, 0.0

def whole(shape, dtype):
    values = rng.standard_normal(shape)
    if dtype == np.complex64:
        values = values + 1j * rng.standard_normal(shape)
    return values.astype(dtype)

def to_mlx(x):
    return mx.array(x, dtype=getattr(mx, x.dtype.name))  # float64 would become float32 by itself

def compare(what, got, want, bound, dtype, terms):
    # The usual bound, element by element: |error| <= (terms + 4) u |a| |b|; twice that for complex products.
    global count, worst
    u = 2.0**-53 if dtype == np.float64 else 2.0**-24
    got = np.array(got)
    limit = (terms + 4) * u * bound * (2 if dtype == np.complex64 else 1)
    error = np.abs(got.astype(want.dtype) - want)
    count += 1
    if got.shape != want.shape or got.dtype != dtype or not (error <= limit + 1e-300).all():
        wrong.append(f"{what} {dtype.__name__}: {got.shape}, off by up to {error.max(initial=0.0)}")
    worst = max(worst, float((error / (limit + 1e-300)).max(initial=0.0)))

def product(what, a, b, a_view=lambda x: x, b_view=lambda x: x):
    dtype = a.dtype.type
    wide = np.complex128 if dtype == np.complex64 else np.float64
    a_np, b_np = a_view(a).astype(wide), b_view(b).astype(wide)
    got = a_view(to_mlx(a)) @ b_view(to_mlx(b))
    compare(what, got, a_np @ b_np, np.abs(a_np) @ np.abs(b_np), dtype, a_np.shape[-1])

def turn(x):
    return x.swapaxes(-1, -2)

def every_second(x):
    return x[..., ::2, ::2]

def middle(x):
    return x[..., 1:-1, 2:-3]

for dtype in (np.float32, np.float64, np.complex64):
    new = lambda *shape: whole(shape, dtype)
    for m, k, n in [(1, 1, 1), (2, 3, 4), (5, 1, 7), (17, 33, 9), (64, 64, 64), (129, 65, 257), (3, 1000, 5)]:
        product(f"{m}x{k}x{n}", new(m, k), new(k, n))
        product(f"{m}x{k}x{n} A turned", new(k, m), new(k, n), a_view=turn)
        product(f"{m}x{k}x{n} B turned", new(m, k), new(n, k), b_view=turn)
        product(f"{m}x{k}x{n} both turned", new(k, m), new(n, k), turn, turn)
    product("row times matrix", new(1, 300), new(300, 200))
    product("row times turned matrix", new(1, 300), new(200, 300), b_view=turn)
    product("matrix times column", new(200, 300), new(300, 1))
    product("vector times matrix", new(300), new(300, 200))
    product("matrix times vector", new(200, 300), new(300))
    product("vector times vector", new(300), new(300))
    product("every second", new(24, 30), new(30, 40), every_second, every_second)
    product("middle", new(24, 25), new(22, 40), middle, middle)
    product("middle, turned", new(25, 24), new(23, 40), lambda x: turn(middle(x)), lambda x: x[:, ::3])
    product("batched", new(3, 2, 5, 7), new(3, 2, 7, 4))
    product("batched, turned", new(3, 2, 5, 7), new(3, 2, 4, 7), b_view=turn)
    product("batch broadcast", new(3, 2, 5, 7), new(7, 4))
    product("batch broadcast both ways", new(3, 1, 5, 7), new(1, 2, 7, 4))
    product("heads moved", new(2, 5, 3, 8), new(2, 5, 3, 8),
            lambda x: x.transpose(0, 2, 1, 3), lambda x: x.transpose(0, 2, 3, 1))
    c, a, b = new(6, 5), new(6, 9), new(9, 5)
    wide = np.complex128 if dtype == np.complex64 else np.float64
    c_, a_, b_ = (x.astype(wide) for x in (c, a, b))
    if dtype != np.complex64:
        got = mx.addmm(to_mlx(c), to_mlx(a), to_mlx(b), alpha=0.5, beta=-2.0)
        bound = np.abs(a_) @ np.abs(b_) + 2 * np.abs(c_)
        compare("addmm", got, 0.5 * a_ @ b_ - 2 * c_, bound, dtype, 11)

x, y = whole((70, 50), np.float32), whole((50, 60), np.float32)
gradient = mx.grad(lambda x, y: (x @ y).square().sum(), argnums=(0, 1))(mx.array(x), mx.array(y))
x_, y_ = x.astype(np.float64), y.astype(np.float64)
for name, got, want, bound in [
    ("gradient by A", gradient[0], 2 * x_ @ y_ @ y_.T, 2 * abs(x_) @ abs(y_) @ abs(y_).T),
    ("gradient by B", gradient[1], 2 * x_.T @ x_ @ y_, 2 * abs(x_).T @ abs(x_) @ abs(y_)),
]:
    compare(name, got, want, bound, np.float32, 120)

empty = mx.zeros((3, 0)) @ mx.zeros((0, 4))
special = np.array(mx.array([[0.0, 1.0]]) @ mx.array([[float("nan"), float("inf"), 1.0], [1.0, 1.0, 2.0]]))
print(json.dumps({"wrong": wrong, "count": count, "worst": worst, "used": blas.used(),
                  "threads": state.threads, "empty": empty.tolist() == [[0.0] * 4] * 3,
                  "special": bool(np.isnan(special[0, :2]).all() and special[0, 2] == 2.0)}))
"""


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_products_agree_with_float64(cache: Path, threads: str) -> None:
    facts = answer(PRODUCTS, cache, OPENBLAS_NUM_THREADS=threads)
    assert facts["wrong"] == []
    assert facts["count"] > 120
    assert 0.0 < facts["worst"] < 1.0
    assert facts["used"]
    assert facts["empty"]
    assert facts["special"]
    # OpenBLAS starts no more threads than there are processors.
    assert facts["threads"] == min(int(threads), os.cpu_count())


BYTES = """
import hashlib, json
from tinyllm.kernels import blas
state = blas.prepare()
import mlx.core as mx
mx.set_default_device(mx.cpu)
mx.random.seed(3)
x, y, s = mx.random.normal((33, 65)), mx.random.normal((65, 17)), mx.random.normal((12, 12))
w = mx.random.normal((64, 128))
results = {}
for dtype in (mx.bfloat16, mx.float16):
    results[f"matmul {dtype}"] = x.astype(dtype) @ y.astype(dtype)
    results[f"vector {dtype}"] = x[0].astype(dtype) @ y.astype(dtype)
results["quantized"] = mx.quantized_matmul(mx.random.normal((5, 128)), *mx.quantize(w))
results["qr"] = mx.linalg.qr(s)[0]
results["svd"] = mx.linalg.svd(s)[1]
results["inv"] = mx.linalg.inv(s)
results["cholesky"] = mx.linalg.cholesky(s.T * s + 20 * mx.eye(12))
results["eigvalsh"] = mx.linalg.eigvalsh(s + s.T)
results["eig"] = mx.linalg.eigvals(s).real
results["lu"] = mx.linalg.lu(s)[1]
def digest(x):
    return hashlib.sha256(bytes(memoryview(x.astype(mx.float32)))).hexdigest()

print(json.dumps([{name: digest(x) for name, x in results.items()}, blas.used()]))
"""


def test_half_precision_quantized_and_lapack_are_as_shipped_to_the_bit(cache: Path) -> None:
    """Only float32, float64 and complex64 products go through cblas."""
    with_ours, _ = answer(BYTES, cache)
    as_shipped, used = answer(BYTES, cache, TINYLLM_BLAS="off")
    assert with_ours == as_shipped
    assert len(with_ours) == 12
    assert not used


def test_much_faster(cache: Path) -> None:
    """Interleaved; the ratio seen is 15 to 100."""
    code = """
import json, time
from tinyllm.kernels import blas
blas.prepare()
import mlx.core as mx
a = mx.random.normal((256, 256)); mx.eval(a, a @ a)
times = []
for _ in range(5):
    began = time.perf_counter(); mx.eval(a @ a); times.append(time.perf_counter() - began)
print(json.dumps(min(times)))
"""
    runs = [(answer(code, cache), answer(code, cache, TINYLLM_BLAS="off")) for _ in range(3)]
    assert min(fast for fast, _ in runs) * 3 < min(slow for _, slow in runs)


# ---- when and how it is prepared ----


def test_state_says_what_is_in_use(cache: Path) -> None:
    facts = answer(SAY, cache)
    assert facts["in_use"]
    assert facts["used"]
    assert facts["library"].startswith("OpenBLAS 0.")
    assert facts["threads"] == max(1, blas.processors() // 2)
    assert facts["says"] == f"{facts['library']}, {facts['threads']} thread" + "s" * (facts["threads"] != 1)
    assert facts["reason"] == facts["fix"] == ""


def test_compiled_once(cache: Path) -> None:
    assert answer(SAY, cache)["used"]
    (shim,) = shims(cache)
    made = shim.stat().st_mtime_ns
    assert answer(SAY, cache, PATH="")["used"]  # no compiler is asked for a second time
    assert [p.stat().st_mtime_ns for p in shims(cache)] == [made]


def test_users_cache_folder(tmp_path: Path) -> None:
    """XDG_CACHE_HOME, else ~/.cache, when TINYLLM_CACHE does not name one."""
    assert answer(SAY, Path(), TINYLLM_CACHE="", XDG_CACHE_HOME=str(tmp_path / "xdg"))["used"]
    assert answer(SAY, Path(), TINYLLM_CACHE="", XDG_CACHE_HOME="", HOME=str(tmp_path / "home"))["used"]
    assert len(shims(tmp_path / "xdg" / "tinyllm")) == 1
    assert len(shims(tmp_path / "home" / ".cache" / "tinyllm")) == 1


def test_concurrent_first_use(cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda _: answer(SAY, cache), range(8)))
    assert all(s["used"] for s in states)
    assert len(shims(cache)) == 1


def test_threads_of_one_process_prepare_once(cache: Path) -> None:
    code = """
import json
from concurrent.futures import ThreadPoolExecutor
from tinyllm.kernels import blas
with ThreadPoolExecutor(8) as pool:
    states = list(pool.map(lambda _: blas.prepare(), range(8)))
import mlx.core
states.append(blas.prepare())  # the import makes no difference any more
print(json.dumps([len({id(s) for s in states}), states[0].in_use]))
"""
    assert answer(code, cache) == [1, True]


def test_numpy_before_or_after_shares_one_openblas(cache: Path) -> None:
    for first, then in (("import numpy", ""), ("", "import numpy")):
        code = (
            f"{first}\nfrom tinyllm.kernels import blas\nstate = blas.prepare()\n{then}\n"
            + """
import json, numpy
import mlx.core as mx
a = numpy.arange(6.0, dtype="float32").reshape(2, 3)
same = (numpy.array(mx.array(a) @ mx.array(a.T)) == a @ a.T).all()
loaded = {line.split()[-1] for line in open("/proc/self/maps") if "openblas" in line}
print(json.dumps([bool(same), blas.used(), len(loaded)]))
"""
        )
        assert answer(code, cache) == [True, True, 1]


def test_fork_before_the_first_product(cache: Path) -> None:
    code = """
import json, os
from tinyllm.kernels import blas
assert blas.prepare().in_use
import mlx.core as mx
def product():
    a = mx.arange(300.0 * 300).reshape(300, 300) / 90000
    return bool(mx.abs((a @ mx.eye(300)) - a).max() == 0) and blas.used()
pid = os.fork()
if pid == 0:
    os._exit(0 if product() else 1)
_, status = os.waitpid(pid, 0)
print(json.dumps([status, product()]))
"""
    assert answer(code, cache, OPENBLAS_NUM_THREADS="2") == [0, True]


def test_processors_by_affinity_and_quota(tmp_path: Path) -> None:
    here = len(os.sched_getaffinity(0))
    quota = tmp_path / "cpu.max"
    assert blas.processors(quota) == here
    for text, expected in (("max 100000", here), ("100000 100000", 1), ("50000 100000", 1), ("", here)):
        quota.write_text(text + "\n")
        assert blas.processors(quota) == expected
    quota.write_text(f"{(here + 3) * 100000} 100000\n")
    assert blas.processors(quota) == here


# ---- MLX as shipped ----


def test_switched_off(cache: Path) -> None:
    facts = answer(SAY, cache, TINYLLM_BLAS="off")
    assert not facts["in_use"]
    assert not facts["used"]
    assert facts["says"] == "MLX's own, because TINYLLM_BLAS is off"
    assert facts["fix"] == "unset TINYLLM_BLAS"
    assert not cache.exists()


def test_no_compiler(cache: Path) -> None:
    facts = answer(SAY, cache, PATH="")
    assert not facts["in_use"]
    assert not facts["used"]
    assert "no C compiler" in facts["reason"]
    assert "install gcc" in facts["fix"]
    assert shims(cache) == []


def test_a_compiler_that_fails(cache: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'cannot find ld' >&2\nexit 1\n")
    broken.chmod(0o755)
    facts = answer(SAY, cache, PATH="", CC=str(broken))
    assert not facts["in_use"]
    assert facts["reason"] == f"because the C compiler failed: {broken}: cannot find ld"
    assert shims(cache) == []
    assert answer(SAY, cache, CC=str(broken))["used"]  # the next compiler is tried


def test_a_compiler_out_of_a_package(cache: Path, tmp_path: Path) -> None:
    """ziglang from PyPI: a package with the compiler beside its __init__."""
    package = tmp_path / "site" / "ziglang"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "zig").write_text(f'#!/bin/sh\nshift\nPATH={os.environ["PATH"]} exec {COMPILER} "$@"\n')
    (package / "zig").chmod(0o755)
    assert answer(SAY, cache, PATH="", PYTHONPATH=str(package.parent))["used"]


def test_mlx_imported_before(cache: Path) -> None:
    facts = answer("import mlx.core\n" + SAY, cache)
    assert not facts["in_use"]
    assert "mlx.core was imported before" in facts["reason"]
    assert not cache.exists()


def test_another_build_of_mlx(cache: Path, tmp_path: Path) -> None:
    """Without the wheel's own libblas (a Mac, CUDA, built from source) nothing is touched."""
    (tmp_path / "site" / "mlx").mkdir(parents=True)
    (tmp_path / "site" / "mlx" / "__init__.py").write_text("")
    code = (
        "import json\nfrom tinyllm.kernels import blas\n"
        "print(json.dumps([blas.prepare().in_use, blas.prepare().reason, blas.prepare().fix]))"
    )
    in_use, reason, fix = answer(code, cache, PYTHONPATH=str(tmp_path / "site"))
    assert not in_use
    assert "not the slow one" in reason
    assert fix == ""
    assert not cache.exists()


ABOUT = """
const char *scipy_openblas_get_config64_(void) { return "OpenBLAS 0.0"; }
int scipy_openblas_get_num_threads64_(void) { return 1; }
void scipy_openblas_set_num_threads64_(int threads) {}
"""


def _fake_numpy(site: Path, source: str | None) -> Path:
    """A NumPy whose OpenBLAS holds the functions in `source`, or that has none."""
    (site / "numpy").mkdir(parents=True)
    (site / "numpy" / "__init__.py").write_text("")
    if source is not None:
        (site / "numpy.libs").mkdir()
        library = site / "numpy.libs" / "libscipy_openblas64_-0.so"
        subprocess.run(
            [COMPILER, "-x", "c", "-shared", "-fPIC", "-o", library, "-"],
            input=(ABOUT + source).encode(),
            check=True,
        )
    return site


def test_a_numpy_without_openblas(cache: Path, tmp_path: Path) -> None:
    facts = answer(SAY, cache, PYTHONPATH=str(_fake_numpy(tmp_path / "site", None)))
    assert not facts["in_use"]
    assert facts["reason"] == "because this NumPy brings no OpenBLAS"
    assert "--only-binary numpy" in facts["fix"]


def test_wrong_products_are_not_trusted(cache: Path, tmp_path: Path) -> None:
    """An OpenBLAS that leaves C as it is: refused, whether the shim comes from the cache or not."""
    wrong = "".join(f"void scipy_cblas_{name}64_(void) {{}}\n" for name in blas.PRODUCTS)
    site = str(_fake_numpy(tmp_path / "site", wrong))
    for _ in range(2):
        facts = answer(SAY, cache, PYTHONPATH=site)
        assert not facts["in_use"]
        assert not facts["used"]
        assert facts["reason"] == "because sgemm of NumPy's OpenBLAS gave a wrong product"
        assert len(shims(cache)) in (0, 1)
        assert answer(SAY, cache)["used"]  # the right NumPy is trusted, and its shim kept


def test_an_openblas_of_other_names(cache: Path, tmp_path: Path) -> None:
    site = str(_fake_numpy(tmp_path / "site", "void sgemm_64_(void) {}\n"))
    facts = answer(SAY, cache, PYTHONPATH=site)
    assert not facts["in_use"]
    assert "scipy_cblas_sgemm64_" in facts["reason"]
    assert shims(cache) == []


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", b"no library at all\n" * 100])
def test_a_damaged_cache_is_mended(cache: Path, damage: bytes) -> None:
    assert answer(SAY, cache)["used"]
    (shim,) = shims(cache)
    whole = shim.read_bytes()
    shim.unlink()
    shim.write_bytes(damage)
    assert answer(SAY, cache)["used"]
    assert [p.read_bytes() for p in shims(cache)] == [whole]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    for _ in range(2):
        assert answer(SAY, tmp_path / "file" / "cache", TMPDIR=str(tmp_path / "tmp"))["used"]
    assert list((tmp_path / "tmp").iterdir()) == []
