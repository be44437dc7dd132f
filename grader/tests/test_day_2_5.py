"""Day 2.5: what its two files say of each other, and what a learner reads who left out a barrier."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tinyllm.grader import catalog, runner
from tinyllm.grader.clone import Clone, installed_root
from tinyllm.grader.report import Outcome
from tinyllm.grader.tests.compiler import needs_compiler
from tinyllm.kernels.gpu_source import Source

CLONE = Clone(installed_root())
KERNELS = CLONE.reference / "kernels" / "flash_attention.metal"
LAUNCHES = CLONE.reference / "week2" / "gpu_attention.py"


def constants() -> dict[str, int]:
    """The numbers that gpu_attention.py has at its top level."""
    found: dict[str, int] = {}
    for node in ast.parse(LAUNCHES.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            names = [ast.unparse(n) for n in node.targets[0].elts]
            found |= dict(zip(names, ast.literal_eval(node.value), strict=True))
    return found


def test_the_launches_know_the_kernels_constants():
    kernels = KERNELS.read_text(encoding="utf-8")
    there = {n: int(v) for n, v in re.findall(r"^constexpr constant int (\w+) = (\d+);", kernels, re.M)}
    here = constants()
    assert there["THREADS"] == here["SIMD_GROUPS"] * here["SIMD_WIDTH"]
    shared = here.keys() & there.keys()
    assert shared == {"SIMD_WIDTH", "SPLITS", "SIMD_GROUPS", "KEYS", "CAUSAL", "ARRAY"}
    assert {n: here[n] for n in shared} == {n: there[n] for n in shared}


def test_every_kernel_is_compiled_for_cuda_with_every_dtype():
    source = Source(KERNELS.name, KERNELS.read_text(encoding="utf-8"))
    assert len(source.kernels) == 3
    for kernel in source.kernels.values():
        assert kernel.cuda["T"] == ("float", "half", "bfloat")
        assert {*kernel.types, *(name for name, _ in kernel.constants)} == kernel.cuda.keys()


@needs_compiler
@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("tiled-no-barrier-before-keys", "has written to tile, with no barrier between"),
        ("tiled-leaves-before-the-barriers", "reach this barrier, and all must"),
        ("decode-simd-sum-for-one-lane", "reach this simd_sum, and all must"),
    ],
)
def test_what_a_gpu_would_let_pass_is_told_at_its_line(tmp_path: Path, mistake: str, told: str):
    course = catalog.load(CLONE)
    day = course.day("2.5")
    task, planted = next((t, m) for t in day.tasks for m in t.misconceptions if m.id == mistake)
    wrong = tmp_path / KERNELS.name
    wrong.write_text(KERNELS.read_text(encoding="utf-8").replace(planted.find, planted.replace))
    report = runner.grade(
        CLONE,
        course,
        day,
        solution="reference",
        only_task=task.id,
        overlays={"kernels/flash_attention.metal": wrong},
        enough=lambda check: check.outcome is Outcome.FAILED,
    )
    failure = next(c.failure for t in report.tasks for c in t.checks if c.failure)
    assert told in failure.summary
    assert failure.frames[-1].source.strip()
