"""The launcher: signatures, calls that fit them, the texts that Metal and CUDA get, grading .metal files."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import mlx.core as mx
import pytest

from tinyllm.grader import runner
from tinyllm.grader.authoring import stubs
from tinyllm.grader.report import DayReport, Failure, Outcome, Verdict
from tinyllm.grader.symbols import is_empty_region
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.compiler import needs_compiler
from tinyllm.kernels import gpu, gpu_cuda_check
from tinyllm.kernels.gpu_source import Source

KERNELS = Path(__file__).parent / "gpu_kernels.metal"

ADD = """\
// Adds.

// Twice a number.
template <typename T>
T twice(T v) {
  // [task 1
  return v + v;
  // task 1]
}

// cuda: T = float, half; SHIFT = 1
template <typename T, int SHIFT>
kernel void add(
    const device T* x,  // (n,)
    device T* y,        // (n,)
    constant int& n) {
  const int i = thread_position_in_grid.x;
  // [task 2
  if (i < n) {
    y[i] = twice(x[i]) + T(SHIFT);
  }
  // task 2]
}

// cuda:
kernel void zero(device float* y) { y[thread_position_in_grid.x] = 0; }
"""

DAY = """
id = "1.3"
title = "GPU"
summary = "You add."
needs = ["compiler"]
modules = ["week1/adding.py", "kernels/add.metal"]
[[tasks]]
id = 1
title = "twice"
goal = "Twice."
checks = 1
symbols = ["kernels/add.metal::twice"]
hints = ["?", "?", "?"]
[[tasks]]
id = 2
title = "add"
goal = "Add."
checks = 2
symbols = ["kernels/add.metal::add"]
hints = ["?", "?", "?"]
"""

MODULE = '''"""Launches."""

from __future__ import annotations

import mlx.core as mx

from tinyllm.kernels import gpu

_metal = gpu.of(__name__, "add.metal")


def plus_one(x: mx.array) -> mx.array:
    """2 x + 1."""
    return add(x, x.size)


def add(x: mx.array, n: int) -> mx.array:
    """2 x + 1 for the first n."""
    size = (x.size,)
    threads = (gpu.round_up(n, 32), 1, 1)
    return _metal.launch(
        "add",
        inputs={"x": x},
        outputs={"y": size},
        scalars={"n": n},
        template={"SHIFT": 1},
        grid=threads,
        threadgroup=(32, 1, 1),
    )[0]
'''

TESTS = """
import mlx.core as mx
import numpy as np
from tinyllm.grader.testing import check, simulated, task

@task(1)
def test_twice(solution):
    x = mx.arange(40).astype(mx.float32)
    check.exact(solution.plus_one(x), 2 * x + 1, what="x")

@task(2)
def test_add(solution):
    with simulated() as launches:
        got = solution.plus_one(mx.arange(5).astype(mx.float16))
    check.exact(got, mx.array([1, 3, 5, 7, 9]).astype(mx.float16), what="x")
    check.exact(launches[0].bytes_read, 10, what="bytes")

@task(2)
def test_part(solution):
    check.exact(solution.add(mx.zeros((4,)), 4), mx.ones((4,)), what="x")
"""


def parsed(text: str) -> Source:
    return Source("add.metal", text)


# ---- reading ----


def test_a_signature_is_read_and_positions_are_those_that_the_body_names():
    kernel = parsed(ADD).kernels["add"]
    assert (kernel.types, kernel.constants) == (("T",), (("SHIFT", "int"),))
    assert [(b.name, b.element, b.output) for b in kernel.buffers] == [("x", "T", False), ("y", "T", True)]
    assert [(s.name, s.type) for s in kernel.scalars] == [("n", "int")]
    assert kernel.positions == ["thread_position_in_grid"]
    assert kernel.cuda == {"T": ("float", "half"), "SHIFT": ("1",)}


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("kernel void k(const device float* x) { }", 1, "has no output"),
        ("\nkernel void k(device float* y [[buffer(0)]]) { }", 2, "without attributes"),
        ("kernel void k(device real* y) { }", 1, "real is neither"),
        ("kernel void k(device float* y, int n) { }", 1, "a number `constant int& K`"),
        ("template <float F>\nkernel void k(device float* y) { }", 1, "write typename, int or bool"),
        ("kernel float k(device float* y) { }", 1, "a kernel begins with"),
        ("kernel void k(device float* y) { }\nkernel void k(device float* y) { }", 2, "two kernels called k"),
        ("kernel void k(device float* y) {\n  if (1) {\n}\n", 1, "does not end"),
        ("int f() { return 1; } }\n", 1, "a `}` too many"),
        ("int f() {\n  int thread = 1;\n}\n", 2, "`thread` is a word of the language"),
    ],
)
def test_what_cannot_be_read_is_told_at_its_line(text, line, told):
    with pytest.raises(gpu.DoesNotCompile) as caught:
        parsed(text)
    assert caught.value.line == line
    assert told in caught.value.message


def test_what_every_metal_file_begins_with_may_be_there():
    source = parsed("#include <metal_stdlib>\nusing namespace metal;\n" + ADD)
    header, _ = gpu.parts(source, source.kernels["add"], "cuda")
    assert "metal" not in header.partition("// Adds.")[2].replace("add.metal", "")
    assert '#line 2 "add.metal"\n\n' in header


# ---- the texts for the two GPUs ----


def test_metal_gets_the_file_as_it_is_written_with_its_lines():
    source = parsed(ADD)
    header, body = gpu.parts(source, source.kernels["add"], "metal")
    assert "T twice(T v) {" in header
    assert "kernel void" not in header + body
    first, *rest = body.split("\n")
    assert first == "const int n = as_type<int>(uint(launch_scalars[0]));"
    assert rest[0] == '#line 16 "add.metal"'
    assert rest[1:4] == ["", *ADD.split("\n")[16:17], "   "]  # the rest of line 16, line 17, a comment's line


def test_cuda_gets_marked_functions_shared_arrays_and_plain_pointers():
    source = Source("toy.metal", KERNELS.read_text(encoding="utf-8"))
    header, body = gpu.parts(source, source.kernels["tiled"], "cuda")
    assert "template <typename T>\n __device__ float dot_of(  const T* a,   const T* b, int stride)" in header
    assert "constexpr   int TILE = 16;" in header
    assert "__shared__ T a_tile[TILE][TILE];" in body
    assert "const uint3 thread_position_in_grid = at::thread_position_in_grid();" in body
    assert " device " not in body


def test_the_name_that_mlx_remembers_a_kernel_by_follows_its_text(monkeypatch):
    names = []
    monkeypatch.setattr(mx.fast, "metal_kernel", lambda **given: names.append(given["name"]))
    for text in (ADD, ADD, ADD.replace("v + v", "v * 2")):
        source = parsed(text)
        gpu.compiled(source, source.kernels["add"], {"T": mx.float32, "SHIFT": 1}, "metal")
    assert names[0] == names[1] != names[2]
    assert all(n.startswith("add_") for n in names)


# ---- what is handed over ----


@pytest.fixture
def kernels(tmp_path) -> gpu.Kernels:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "add.metal").write_text(ADD, encoding="utf-8")
    package = types.ModuleType("tinyllm.toy_of_launch")
    package.__path__ = [str(tmp_path)]
    sys.modules[package.__name__] = package
    return gpu.of("tinyllm.toy_of_launch.week2.some", "add.metal")


GIVEN = {
    "inputs": {"x": mx.zeros((40,))},
    "outputs": {"y": (40,)},
    "scalars": {"n": 40},
    "template": {"SHIFT": 1},
    "grid": (64, 1, 1),
    "threadgroup": (32, 1, 1),
}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"grid": (40, 1, 1)},
            "the grid has 40 threads in x, no multiple of the threadgroup's 32: round it up to 64",
        ),
        ({"threadgroup": (64, 32, 1)}, "has 2048 threads; a GPU takes at most 1024"),
        ({"grid": (64, 0, 1)}, "must be three numbers from 1 on"),
        ({"inputs": {}}, "add: inputs lacks x"),
        ({"inputs": {"x": mx.zeros((1,)), "z": mx.zeros((1,))}}, "has z, which the signature has not"),
        ({"inputs": {"x": mx.zeros((1,), dtype=mx.complex64)}}, "input x is complex64"),
        ({"inputs": {"x": mx.zeros((0,))}}, "input x is empty"),
        ({"outputs": {"y": ((40,), mx.float16)}}, "output y is float32 by its signature, not float16"),
        ({"outputs": {"y": (0,)}}, "output y would be empty"),
        ({"scalars": {}}, "scalars lacks n"),
        ({"scalars": {"n": 2**40}}, "which no int holds"),
        ({"template": {}}, "template lacks SHIFT"),
        ({"device": "tpu"}, "'tpu' is none of auto, metal, cuda, simulator"),
        ({"device": "cuda"}, "this MLX has no cuda"),
    ],
)
def test_a_launch_that_does_not_fit_the_signature_is_refused(kernels, changed, told):
    if changed.get("device") == "cuda" and mx.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match=r"\w") as caught:
        kernels.launch("add", **{**GIVEN, **changed})
    assert told in str(caught.value)


def test_an_unknown_kernel_is_refused_with_those_there_are(kernels):
    with pytest.raises(ValueError, match=r"add\.metal has no kernel called sub; it has add, zero"):
        kernels.launch("sub", **GIVEN)


def test_small_inputs_are_padded_so_that_metal_has_them_in_device_memory():
    padded = gpu._padded(mx.array([[1.0, 2.0]]))
    assert padded.tolist() == [1, 2, 0, 0, 0, 0, 0, 0]
    assert gpu._padded(mx.zeros((2, 4))).shape == (2, 4)


# ---- grading ----


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    """One cache for this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def course(tmp_path: Path, cache: None) -> toy.Toy:
    course = toy.make(tmp_path / "a clone")
    course.write("checkpoints/day1_3/checkpoint.toml", DAY)
    course.write("checkpoints/day1_3/test_adding.py", TESTS)
    for tree in ("reference", "exercises"):
        course.write(f"{tree}/week1/adding.py", MODULE)
        course.write(f"{tree}/kernels/add.metal", ADD)
    return course


def grade(course: toy.Toy, text: str, **options) -> DayReport:
    course.write("exercises/kernels/add.metal", text)
    return runner.grade(course.clone, course.course, course.course.day("1.3"), **options)


def outcomes(report: DayReport) -> list[Outcome]:
    return [t.outcome for t in report.tasks]


def failure(report: DayReport, task: int) -> Failure:
    return next(c.failure for t in report.tasks if t.id == task for c in t.checks if c.failure)


@needs_compiler
def test_a_right_kernel_passes_and_a_stub_is_not_started(course):
    assert grade(course, ADD).verdict is Verdict.PASSED
    stub = stubs.region_stub(ADD, "1.3", {1, 2}, "reference/kernels/add.metal")
    report = grade(course, stub, only_task=2)
    assert [c.outcome for c in report.tasks[0].checks] == [Outcome.NOT_STARTED] * 2
    half = ADD.replace("  return v + v;", '  NOT_WRITTEN("day 1.3, task 1: twice");')
    assert outcomes(grade(course, half)) == [Outcome.NOT_STARTED, Outcome.BLOCKED]


@needs_compiler
def test_a_kernel_that_reads_outside_is_told_at_the_line_of_its_file(course):
    report = grade(course, ADD.replace("if (i < n) {", "if (i <= n) {"))
    told = failure(report, 1)
    assert told.summary == (
        "exercises/kernels/add.metal, line 20: thread (8, 0, 0) of threadgroup (1, 0, 0) reads x[40], and x "
        "has 40 elements."
    )
    assert told.frames[-1].path == "exercises/kernels/add.metal"
    assert told.frames[-1].source == "y[i] = twice(x[i]) + T(SHIFT);"


@needs_compiler
def test_a_kernel_that_does_not_compile_is_told_at_the_line_of_its_file(course):
    told = failure(grade(course, ADD.replace("return v + v;", "return v + w;")), 2)
    assert told.summary.startswith("exercises/kernels/add.metal, line 7: ")
    assert "'w'" in told.summary or "‘w’" in told.summary
    assert "error" in told.detail


@needs_compiler
def test_another_file_in_a_kernels_place_is_graded(course, tmp_path):
    wrong = tmp_path / "wrong.metal"
    wrong.write_text(ADD.replace("v + v", "v + v + v"), encoding="utf-8")
    report = grade(course, ADD, solution="reference", overlays={"kernels/add.metal": wrong})
    assert outcomes(report) == [Outcome.FAILED, Outcome.FAILED]


def test_the_stub_of_a_kernel_names_its_function_and_is_seen_as_empty():
    stub = stubs.region_stub(ADD, "1.3", {1, 2}, "reference/kernels/add.metal")
    assert '  NOT_WRITTEN("day 1.3, task 1: twice");  // write this part\n' in stub
    assert '  NOT_WRITTEN("day 1.3, task 2: add");  // write this part\n' in stub
    assert is_empty_region(
        '// [task 2\n  NOT_WRITTEN("day 1.3, task 2: add");  // write this part\n// task 2]'
    )
    source = parsed(stub)
    assert source.unwritten(source.kernels["add"]) == "day 1.3, task 2: add"
    assert source.unwritten(source.kernels["zero"]) == ""
    filled = parsed(stub.replace('NOT_WRITTEN("day 1.3, task 2: add");', "y[i] = twice(x[i]);"))
    assert filled.unwritten(filled.kernels["add"]) == "day 1.3, task 1: twice"


# ---- CUDA without a GPU ----


def needs_nvrtc() -> None:
    try:
        gpu_cuda_check._library()
    except gpu_cuda_check.NoNvrtc as error:
        pytest.skip(str(error))


def test_kernels_compile_for_cuda(tmp_path):
    needs_nvrtc()
    text = KERNELS.read_text(encoding="utf-8")
    right = tmp_path / "toy.metal"
    right.write_text(text[: text.index("// ---- wrong ----")], encoding="utf-8")
    done = gpu_cuda_check.check_file(right)
    assert {"tiled<half>", "lanes<bfloat>", "numbers<3, true>", "rows"} <= set(done)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("    y[i] = twice(x[i]) + T(SHIFT);", "    y[i] = twice(x[i]) + missing;", 20),
        ("  return v + v;", "  return v + ;", 7),
        ("const int i = thread_position_in_grid.x;", "const int i = thread_position_in_grid.q;", 17),
    ],
)
def test_a_broken_kernel_is_refused_for_cuda_at_its_line(tmp_path, old, new, line):
    needs_nvrtc()
    assert old in ADD
    broken = tmp_path / "add.metal"
    broken.write_text(ADD.replace(old, new), encoding="utf-8")
    with pytest.raises(gpu.DoesNotCompile, match="as CUDA: ") as caught:
        gpu_cuda_check.check_file(broken)
    assert (caught.value.file, caught.value.line) == ("add.metal", line)


def test_a_kernel_without_values_to_compile_it_with_is_refused(tmp_path):
    file = tmp_path / "add.metal"
    file.write_text(ADD.replace("// cuda: T = float, half; SHIFT = 1\n", ""), encoding="utf-8")
    with pytest.raises(gpu.DoesNotCompile, match=r"has no line `// cuda: T = \.\.\.` above it"):
        gpu_cuda_check.check_file(file)
