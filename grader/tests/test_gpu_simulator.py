"""The simulator: right kernels give exact results and counts; a planted mistake is told at its line."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.kernels import build, gpu

FILE = Path(__file__).parent / "gpu_kernels.metal"
LINES = FILE.read_text(encoding="utf-8").splitlines()

try:
    build.find_compiler()
except build.NoCompiler as error:
    pytestmark = pytest.mark.skip(reason=str(error))


def tree(folder: Path, name: str, text: str) -> gpu.Kernels:
    """The kernels of a tree that has one file."""
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels" / "toy.metal").write_text(text, encoding="utf-8")
    package = types.ModuleType(f"tinyllm.{name}")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    return gpu.of(f"{package.__name__}.week2.some", "toy.metal")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gpu.Kernels]:
    text = FILE.read_text(encoding="utf-8")
    yield tree(tmp_path_factory.mktemp("tree"), "toy_of_simulator", text)
    del sys.modules["tinyllm.toy_of_simulator"]


def one(kernels: gpu.Kernels, name: str, x: mx.array, shape: tuple[int, ...], threads: int = 64) -> mx.array:
    """Launch a kernel of one input and one output on one threadgroup."""
    return kernels.launch(
        name,
        inputs={"x": x},
        outputs={"y": shape},
        grid=(threads, 1, 1),
        threadgroup=(threads, 1, 1),
        device="simulator",
    )[0]


def line_of(name: str) -> int:
    """The line marked `// <- here` in a kernel of the file."""
    start = next(i for i, line in enumerate(LINES) if f"kernel void {name}(" in line)
    return next(i for i in range(start, len(LINES)) if "// <- here" in LINES[i]) + 1


# ---- right kernels ----


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_a_tiled_product_of_small_integers_is_exact_and_its_reads_are_counted(kernels, dtype):
    rng = np.random.default_rng(1)
    M, K, N = 19, 37, 23
    a, b = rng.integers(-3, 4, (M, K)), rng.integers(-3, 4, (K, N))
    with gpu.simulated() as launches:
        (y,) = kernels.launch(
            "tiled",
            inputs={"a": mx.array(a).astype(dtype), "b": mx.array(b.T.copy()).astype(dtype).T},
            outputs={"y": (M, N)},
            scalars={"M": M, "K": K, "N": N},
            grid=(32, 32, 1),
            threadgroup=(16, 16, 1),
        )
    assert y.dtype == dtype
    assert np.array_equal(np.array(y.astype(mx.float32)), a @ b)
    (launch,) = launches
    groups = 2  # in each direction
    assert launch.read == {"a": M * K * groups * dtype.size, "b": K * N * groups * dtype.size, "y": 0}
    assert launch.written == {"a": 0, "b": 0, "y": M * N * dtype.size}
    assert launch.bytes_read == (M * K + K * N) * groups * dtype.size
    assert launch.most_written == dtype.size
    assert launch.most_read == 2 * 3 * dtype.size  # a thread in the corner: an element of each of three tiles
    assert launch.barriers == groups * groups * 2 * 3
    assert launch.threadgroup_memory == 16 * (16 + 17) * dtype.size
    assert launch.threadgroup_written == groups * groups * 3 * 512 * dtype.size
    assert launch.simd_operations == 0


def test_a_row_reduction_with_float4_and_simd_sum_is_exact(kernels):
    x = np.arange(3 * 520).reshape(3, 520) % 11 - 5.0
    with gpu.simulated() as launches:
        (y,) = kernels.launch(
            "rows",
            inputs={"x": mx.array(x, dtype=mx.float32)},
            outputs={"y": (3,)},
            scalars={"K": 520},
            grid=(64, 3, 1),
            threadgroup=(64, 1, 1),
        )
    assert np.array_equal(np.array(y), x.sum(axis=1))
    assert launches[0].read["x"] == 3 * 520 * 4
    assert launches[0].most_read == 3 * 16  # 130 vectors over 64 threads
    assert launches[0].simd_operations == 3 * 2
    # A SIMD-group asks for 512 bytes at a time: 4 lines in row 0, 5 in the others, which begin within a line.
    assert launches[0].lines == {"x": (4 * 4 + 1) + 2 * (4 * 5 + 1), "y": 0}


@pytest.mark.parametrize("dtype", [mx.float32, mx.int32, mx.bfloat16], ids=str)
def test_every_simd_operation(kernels, dtype):
    x = np.random.default_rng(2).permutation(32) - 3
    y = np.array(one(kernels, "lanes", mx.array(x).astype(dtype), (8, 32), threads=32).astype(mx.float32))
    lane = np.arange(32)
    want = [
        np.full(32, x.sum()),
        np.full(32, x.max()),
        np.full(32, x.min()),
        x[lane ^ 5],
        np.full(32, x[3]),
        x[31 - lane],
        np.append(x[1:], 0),
        np.append(0, x[:-1]),
    ]
    assert np.array_equal(y, want)


def test_a_barrier_of_the_simd_group_orders_its_lanes(kernels):
    x = mx.arange(32).astype(mx.float32)
    assert one(kernels, "halving", x, (1,), threads=32).item() == 496


def test_numbers_arrive_whatever_their_kind(kernels):
    def numbers(**scalars):
        (y,) = kernels.launch(
            "numbers",
            inputs={},
            outputs={"y": (5,)},
            scalars=scalars,
            template={"COUNT": 3, "TWICE": True},
            grid=(32, 1, 1),
            threadgroup=(32, 1, 1),
            device="simulator",
        )
        return y.tolist()

    assert numbers(a=-7, b=2**31, c=0.25, d=True) == [-7, 1, 0.25, 1, 3.5]
    assert numbers(a=2**30, b=0, c=float("-inf"), d=False) == [2**30, 0, float("-inf"), 0, 3.5]
    with pytest.raises(ValueError, match=r"scalar a is 1\.5, and the signature says int"):
        numbers(a=1.5, b=0, c=0, d=False)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_16_bit_numbers_round_as_mlx_rounds_them(kernels, dtype):
    every = mx.arange(2**16).astype(mx.uint16).view(dtype).astype(mx.float32)
    between = (every + mx.roll(every, -1)) / 2  # halfway cases among them
    random = mx.array(np.random.default_rng(3).normal(0, 1, 2**10).astype(np.float32))
    x = mx.concatenate([every, between, random, random * 2.0**-16, random * 1e-7])
    x = mx.where(mx.isnan(x), 1.0, x)
    size = gpu.round_up(x.size, 256)
    x = mx.concatenate([x, mx.zeros((size - x.size,))])
    y, back, square = kernels.launch(
        "narrow",
        inputs={"x": x},
        outputs={"y": (size,), "back": (size,), "square": (size,)},
        template={"T": dtype},
        grid=(size, 1, 1),
        threadgroup=(256, 1, 1),
        device="simulator",
    )
    want = x.astype(dtype)
    assert mx.array_equal(y.view(mx.uint16), want.view(mx.uint16))
    assert mx.array_equal(back, want.astype(mx.float32))
    # The sign of zero and NaN apart, as numbers.
    wide = want.astype(mx.float32)
    assert mx.array_equal(square.astype(mx.float32), (wide * wide).astype(dtype).astype(mx.float32))


def test_a_launch_is_compiled_once(kernels, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYLLM_CACHE", str(tmp_path))
    x = mx.zeros((32,))
    one(kernels, "halving", x, (1,), threads=32)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert len(before) == 2  # the runtime and the kernel
    one(kernels, "halving", x, (1,), threads=32)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


# ---- planted mistakes ----

X = mx.arange(64).astype(mx.float32)
MISTAKES = {
    "reads_outside": r"thread \(63, 0, 0\) of threadgroup \(0, 0, 0\) reads x\[64\], and x has 64 elements",
    "writes_outside": r"thread \(0, 0, 0\) .* writes y\[-1\], and y has 64 elements",
    "barrier_for_some": r"63 of the 64 threads .* reach this barrier, .* thread \(63, 0, 0\) has ended",
    "simd_for_some": r"8 of the 32 lanes of SIMD-group 0 .* reach this simd_sum, and all must: .* has ended",
    "race_of_reader": r"reads .* that no thread has written|with no barrier between",
    "never_filled": r"thread \(0, 0, 0\) .* reads an element of shared that no thread has written",
    "beyond_the_row": r"thread \(32, 0, 0\) .* index 32 of the threadgroup array shared, where there are 32",
    "all_write_one": r"writes y\[0\], which another thread has written with another value",
    "forgets_the_last": r"4 of the 64 elements of y are never written, y\[60\] first",
    "too_large": r"with b a threadgroup holds 32772 bytes of threadgroup memory, and 32768 is the most",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_told_at_its_line(kernels, name):
    shape = (32,) if name == "all_write_one" else (64,)
    with pytest.raises(gpu.KernelFault, match=MISTAKES[name]) as caught:
        one(kernels, name, X, shape)
    first = caught.value.reports[0]
    assert (first.file, first.line) == ("toy.metal", line_of(name))
    assert len(caught.value.reports) <= 5


def test_a_race_with_a_later_writer_is_seen_also_between_16_bit_neighbours(kernels):
    with pytest.raises(gpu.KernelFault) as caught:
        one(kernels, "race_of_writer", X.astype(mx.float16), (64,))
    (report,) = [r for r in caught.value.reports if "read since the last barrier" in r.text]
    assert report.line == line_of("race_of_writer")


def test_a_race_is_seen_with_the_reading_thread_first_or_last(kernels):
    with pytest.raises(gpu.KernelFault) as caught:
        one(kernels, "race_of_reader", X, (64,))
    texts = [r.text for r in caught.value.reports]
    assert any("no barrier between" in t for t in texts), texts


def test_a_vector_that_begins_between_two_vectors_is_refused(kernels):
    with pytest.raises(
        gpu.KernelFault, match=r"reads x\[1\] to x\[4\] at once, which must begin at a multiple of 16"
    ):
        one(kernels, "misaligned", X, (64,))


def test_a_simd_operation_needs_whole_simd_groups(kernels):
    with pytest.raises(gpu.KernelFault, match="simd_sum needs whole SIMD-groups of 32"):
        one(kernels, "lanes", mx.zeros((32,)), (8, 32), threads=16)


# ---- what does not compile ----


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("y[i] = x[i] + missing;", "missing"),
        ("y[i] = x[i]", "expected"),
        ("x[i] = 1.0f;", "assign"),
        ("float4 v = x;", "float4"),
        ("simdgroup_float8x8 m;", "CUDA has nothing like it"),
        ("device float& z = y[0];", "take a pointer"),
        ("threadgroup float a = 1;", "cannot be given a value"),
        ("y[i] = thread_index_in_quadgroup;", "thread_index_in_quadgroup"),
    ],
)
def test_a_kernel_that_does_not_compile_is_told_at_its_line(tmp_path, statement, told):
    text = (
        "// first line\n\n/* two\n   lines */\nkernel void k(const device float* x, device float* y) {\n"
        "  uint i = thread_position_in_grid.x;\n"
        f"  {statement}\n  y[i] = x[i];\n}}\n"
    )
    kernels = tree(tmp_path, "toy_of_errors", text)
    with pytest.raises(gpu.DoesNotCompile) as caught:
        one(kernels, "k", X, (64,))
    assert caught.value.file == "toy.metal"
    assert abs(caught.value.line - 7) <= (told == "expected")  # a missing `;` is seen on the next line
    assert told in caught.value.message
    assert "simulated::" not in caught.value.message


def test_an_error_in_the_arguments_of_a_function_is_told_at_the_line_that_calls_it(tmp_path):
    text = (
        "kernel void k(const device float* x, device float* y) {\n"
        "  uint i = thread_position_in_grid.x;\n\n  y[i] = as_type<half>(x[i]);\n}\n"
    )
    kernels = tree(tmp_path, "toy_of_errors", text)
    with pytest.raises(gpu.DoesNotCompile, match="as_type keeps the size") as caught:
        one(kernels, "k", X, (64,))
    assert caught.value.line == 4


# ---- processors without a switch of our own ----


def test_other_processors_switch_stacks_with_ucontext(kernels, tmp_path, monkeypatch):
    if sys.platform != "linux":
        pytest.skip("macOS only has it on request")
    from tinyllm.kernels import gpu_simulator

    monkeypatch.setenv("TINYLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu_simulator, "FLAGS", (*gpu_simulator.FLAGS, "-DTINYLLM_UCONTEXT"))
    gpu_simulator._setup.cache_clear()
    try:
        assert one(kernels, "halving", mx.ones((32,)), (1,), threads=32).item() == 32
    finally:
        gpu_simulator._setup.cache_clear()
