"""Memory in pages of 2 MB: who is started with it, and that MLX's arrays then lie in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllm.grader import large_pages, processes

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
IN_LARGE_PAGES = """
import re
import mlx.core as mx
array = mx.ones((1 << 24,), dtype=mx.float32)  # 64 MB
mx.eval(array)
print(re.search(r"AnonHugePages: *([0-9]+) kB", open("/proc/self/smaps_rollup").read())[1])
"""


def test_a_setting_is_added_and_one_that_is_there_stays() -> None:
    assert large_pages.variables({}) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    others = {"GLIBC_TUNABLES": "glibc.malloc.check=3"}
    added = {"GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.malloc.hugetlb=1"}
    assert large_pages.variables(others) == added
    assert large_pages.variables({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}) == {}


def test_a_child_is_started_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[processes.Setting] = []
    monkeypatch.setattr(processes, "start", lambda argv, setting: given.append(setting))
    monkeypatch.delenv(large_pages.TUNABLES, raising=False)
    plain = processes.Setting(output=1, inherited=(), token="t", cwd="/")
    processes.start_with_large_pages("m", {}, plain)
    processes.start_child("m", {}, plain)
    assert given[0].variables == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert given[1] == plain


def _megabytes(variables: dict[str, str]) -> float:
    plain = {k: v for k, v in os.environ.items() if k != large_pages.TUNABLES}
    run = subprocess.run(
        [sys.executable, "-c", IN_LARGE_PAGES], env={**plain, **variables}, capture_output=True, check=True
    )
    return json.loads(run.stdout) / 1024


@pytest.mark.skipif(
    not THP.is_file() or "[madvise]" not in THP.read_text(), reason="no large pages on request here"
)
def test_the_arrays_of_mlx_lie_in_them() -> None:
    assert _megabytes({}) < 8
    assert _megabytes(large_pages.variables({})) >= 60
