"""The fast kernel of day 2.4: its result does not depend on how many threads computed it."""

from __future__ import annotations

import os
import subprocess
import sys

from tinyllm.grader.clone import Clone, installed_root
from tinyllm.grader.tests.compiler import needs_compiler

KERNELS = Clone(installed_root()).reference / "kernels"
FILES = ("flash_attention.cpp", "multiply_tile.cpp")

# Prints the threads, and a hash of results: every dtype, causal or not, many queries and one.
SCRIPT = f"""
import hashlib, sys
from pathlib import Path
import mlx.core as mx
from tinyllm.kernels import build

native = build.load(Path({str(KERNELS)!r}), only={FILES!r})
found = hashlib.sha256()
for dtype in (mx.float32, mx.float16, mx.bfloat16):
    for L, S in ((200, 200), (33, 300), (1, 500)):
        shapes = ((2, 6, L, 64), (2, 2, S, 64), (2, 2, S, 64))
        arrays = [mx.random.normal(s, key=mx.random.key(n)).astype(dtype) for n, s in enumerate(shapes)]
        for causal in (False, True):
            for out in native.flash_attention_fast(*arrays, 0.125, causal=causal):
                found.update(bytes(memoryview(mx.view(mx.contiguous(out), mx.uint8))))
print(native.thread_count(), found.hexdigest())
"""


def run(threads: int) -> list[str]:
    environment = os.environ | {"TINYLLM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@needs_compiler
def test_one_thread_and_many_give_the_same_bits() -> None:
    one, three, eight = run(1), run(3), run(8)
    assert [one[0], three[0], eight[0]] == ["1", "3", "8"]
    assert one[1] == three[1] == eight[1]
