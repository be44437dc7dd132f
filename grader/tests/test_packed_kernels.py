"""The packed product's kernels: the same bits for any number of threads, and no end to calls that throw."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tinyllm.grader.authoring import sanitize
from tinyllm.grader.clone import Clone, installed_root

# Built as grading day 2.2 builds them, so that they are only compiled once.
_LOAD = """
import sys
from pathlib import Path
import mlx.core as mx
import numpy as np
from tinyllm.kernels import build
cpp = build.load(Path(sys.argv[1]), only=["multiply_tile.cpp", "quantized_matmul.cpp"])
"""

_HASHES = (
    _LOAD
    + """
import hashlib
random = np.random.default_rng(22)
a = mx.array(random.standard_normal((7, 512), dtype=np.float32)).astype(mx.bfloat16)
words = mx.array(random.integers(0, 2**32, (1031, 64), dtype=np.uint32))
of_groups = random.standard_normal((2, 1031, 8), dtype=np.float32)
scales, biases = (mx.array(x).astype(mx.bfloat16) for x in of_groups)
found = [cpp.thread_count()]
for step in (cpp.quantized_matmul_vector, cpp.quantized_matmul_threads, cpp.quantized_matmul_tiled):
    got = step(a, words, scales, biases, 64, 4)
    found.append(hashlib.sha256(np.array(got.view(mx.uint16)).tobytes()).hexdigest())
print(*found)
"""
)

_THROWS = (
    _LOAD
    + """
words, one = mx.zeros((5, 8), dtype=mx.uint32), mx.ones((5, 1))
for _ in range(400):
    try:
        mx.eval(cpp.quantized_matmul_plain(mx.ones((2, 64)) * 2, words, one, one, 64, 4))
    except RuntimeError as error:
        said = str(error)
print(said)
"""
)


def output_of(code: str, tree: str, **environment: str) -> str:
    folder = Clone(installed_root()).tree(tree) / "kernels"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(folder)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    found = {}
    for threads in ("1", "2", "3"):
        count, *hashes = output_of(_HASHES, "reference", TINYLLM_THREADS=threads).split()
        assert count == threads
        found[threads] = hashes
    assert found["1"] == found["2"] == found["3"]


def test_any_number_of_calls_may_throw() -> None:
    """MLX loses count of its tasks when one throws, and would wait for ever after a hundred."""
    assert output_of(_THROWS, "exercises") == "day 2.2, task 3: quantized_matmul"


@pytest.mark.parametrize("quick", [True, False])
def test_sanitizers_that_are_built(quick: bool) -> None:
    names = [one.name for one in sanitize.builds(quick=quick)]
    assert names[0] == "address,undefined -march=native"
    assert (len(names) > 1 and names[-1].startswith("thread")) is not quick


def test_what_a_sanitizer_says_is_told() -> None:
    assert sanitize._run([sys.executable, "-c", "pass"]) == ""
    said = sanitize._run([sys.executable, "-c", "import sys; sys.exit('heap-buffer-overflow')"])
    assert said == "heap-buffer-overflow"


def test_every_kernel_is_sanitized() -> None:
    names = {p.name for p in sanitize.sources(Clone(installed_root()))}
    assert {"every_kernel.cpp", "pool.cpp", "quantized_matmul.cpp", "multiply_tile.cpp", "axpby.cpp"} <= names
