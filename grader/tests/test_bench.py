"""The measurements, each in its shortest form on the toy course."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllm.grader.bench import latency
from tinyllm.grader.bench.model import OURS, THEIRS, Speeds
from tinyllm.grader.bench.workshop import finished_copy
from tinyllm.grader.clone import Clone, installed_root
from tinyllm.grader.tests import passes, toy
from tinyllm.grader.tests.toy import Toy


@pytest.fixture
def course(tmp_path: Path) -> Toy:
    course = toy.make(tmp_path)
    course.write("progress/tiny-llm-tracker.md", "My notes.\n")
    return course


def bench(course: Toy, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "tinyllm.grader.bench", *arguments],
        cwd=course.root,
        env=course.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_latency_prints_the_ratio_of_each_run(course: Toy) -> None:
    done = bench(course, "latency", "day1.1", "--runs", "2")
    assert done.returncode in (0, 1), (
        done.stderr
    )  # the machine may be busy: the verdict is not the point here
    assert done.stdout.count("ratio") == 3
    assert "bar 1.5" in done.stdout


def test_latency_needs_a_reference_that_passes(course: Toy) -> None:
    course.write("reference/week1/sums.py", toy.SUMS_STUB)
    done = bench(course, "latency", "day1.1", "--runs", "1")
    assert done.returncode == 3
    assert "did not pass" in done.stderr


def test_the_bar_is_on_ratio_and_seconds() -> None:
    assert latency.Latency([1.0, 1.1], [2.0, 2.0], [1.0, 1.0]).within_bar
    assert not latency.Latency([1.6], [2.0], [1.0]).within_bar
    assert not latency.Latency([2.1], [3.0], [2.0]).within_bar


def test_kills_lose_nothing(course: Toy) -> None:
    done = bench(course, "kills", "day1.1", "--runs", "12")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 runs" in done.stdout
    assert "0 faults" in done.stdout


def test_an_unknown_day_is_told(course: Toy) -> None:
    for command in ("latency", "kills"):
        done = bench(course, command, "day8.8")
        assert done.returncode == 2
        assert "no day called" in done.stderr


def test_blas_compares_the_two_ways(course: Toy) -> None:
    done = bench(course, "blas", "--runs", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"run 1: 512\^3 [\d.e+]+ and [\d.e+]+ GFLOP/s; 1024\^3", done.stdout)
    assert len(re.findall(r"[\d.]+ times$", done.stdout, re.M)) == 2


def test_blas_needs_an_mlx(course: Toy) -> None:
    course.write("site/mlx/__init__.py", "raise ImportError('no MLX here')\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tinyllm.grader.bench", "blas", "--runs", "1"],
        env=course.environment(PYTHONPATH=str(course.root / "site")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "no MLX here" in done.stderr


SMALL = ("--runs", "2", "--prompt", "6", "--tokens", "2")


def test_model_beside_mlx_lm(tmp_path: Path) -> None:
    """Tiny sizes: the figures mean nothing, but both parts and all models are there and agree."""
    folder = passes.write_checkpoint(tmp_path / "tiny")
    done = bench(Toy(Clone(installed_root())), "model", "--model", str(folder), *SMALL)
    assert done.returncode in (0, 1), done.stderr
    assert "prefill of 6 tokens:" in done.stdout
    assert "2 tokens from there" in done.stdout
    assert len(re.findall(r"^  mlx-lm +[\d.]+ \([\d.]+, [\d.]+\) +ratio [\d.]+ \(", done.stdout, re.M)) >= 2
    assert "mlx-lm, weights dequantised" in done.stdout
    assert ("within it" in done.stdout) == (done.returncode == 0)


def test_model_must_agree_with_mlx_lm(tmp_path: Path) -> None:
    copy = finished_copy(Clone(installed_root()), tmp_path / "clone")
    module = copy.reference / "week1/rope.py"
    module.write_text(module.read_text().replace("a * sin + b * cos", "b * cos - a * sin"))
    folder = passes.write_checkpoint(tmp_path / "tiny", bits=None)
    done = bench(Toy(copy), "model", "--model", str(folder), *SMALL)
    assert done.returncode == 3
    assert "the logits of mlx-lm are" in done.stderr


def test_model_needs_weights(course: Toy) -> None:
    done = bench(course, "model", "--model", "nowhere")
    assert done.returncode == 2
    assert "There is no folder nowhere" in done.stderr


def test_the_bar_of_the_model_is_on_both_parts() -> None:
    def speeds(prefill: float, decode: float) -> Speeds:
        return Speeds("", "", 8, 2, {OURS: [prefill], THEIRS: [1.0]}, {OURS: [decode], THEIRS: [1.0]})

    assert speeds(1.0, 1.2).within_bar
    assert not speeds(0.9, 1.2).within_bar
    assert not speeds(1.2, 0.9).within_bar
