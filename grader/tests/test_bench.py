"""The measurements, each in its shortest form on the toy course."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllm.grader.bench import latency, saving
from tinyllm.grader.tests import toy
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
    done = bench(course, "latency", "day1.1", "--runs", "1")
    assert done.returncode in (0, 1), (
        done.stderr
    )  # the machine may be busy: the verdict is not the point here
    assert done.stdout.count("ratio") == 2
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


def test_latency_from_save_to_verdict_of_every_day(course: Toy) -> None:
    done = bench(course, "latency", "week1", "--save", "--runs", "1")
    assert done.returncode in (0, 1), done.stderr
    shape = r"^day1\.[12]: from save to verdict median [\d.]+ s, p95 [\d.]+ s, .* in 1 saves \(bar 0\.5 s\): "
    assert len(re.findall(shape, done.stdout, re.M)) == 2


def test_the_bar_is_on_the_median_save() -> None:
    quick = saving.Saving("1.1", [0.2] * 18 + [0.4, 0.9])
    assert (quick.median, quick.p95, quick.within_bar) == (0.2, 0.4, True)
    assert not saving.Saving("1.1", [0.6, 0.6, 0.1]).within_bar


def test_kills_lose_nothing(course: Toy) -> None:
    done = bench(course, "kills", "day1.1", "--runs", "6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 runs" in done.stdout
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


def test_model_is_the_command_of_that_name(course: Toy) -> None:
    done = bench(course, "model", "--help")
    assert done.returncode == 0
    assert "Usage: tinyllm-grade bench" in done.stdout
