"""What the README shows is what the program does."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tinyllm.grader import catalog
from tinyllm.grader.bench.workshop import GRADE, environment, finished_copy
from tinyllm.grader.cli import main
from tinyllm.grader.clone import Clone, installed_root

CLONE = Clone(installed_root())
README = (CLONE.root / "README.md").read_text(encoding="utf-8")


def marked(name: str) -> str:
    """The code block after the marker `<!-- name -->`."""
    found = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```\n<!-- end -->", README, re.S)
    assert found, name
    return found[1]


def test_the_failure_shown_is_the_one_that_comes(tmp_path: Path) -> None:
    copy = finished_copy(CLONE, tmp_path / "clone")
    misconception = next(
        m for m in catalog.load(copy).day("1.1").task(3).misconceptions if m.id == "no-scale"
    )
    module = copy.exercises / misconception.module
    module.write_text(module.read_text().replace(misconception.find, misconception.replace))
    done = subprocess.run(
        [*GRADE, "day1.1", "--task", "3", "--no-progress"],
        env=environment(copy),
        cwd=copy.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    shown = re.search(r"^  task 3, failed.*?^    next .*?\n", done.stdout, re.S | re.M)
    assert shown

    # The last digits of a float32 sum may differ from machine to machine.
    def digits(text: str) -> str:
        return re.sub(r"\d\.\d+(e-\d+)?", "#", text)

    assert digits(marked("failure example")) == digits(shown[0]), shown[0]


def test_every_command_and_option_shown_exists() -> None:
    for name in re.findall(r"^\| `(\w+)[ `]", README, re.M):
        assert name in main.commands, name
    options = {o for p in main.commands["grade"].params for o in p.opts}
    section = README.partition("Grading options:")[2].partition("Exit codes")[0]
    for option in re.findall(r"`(--?[a-z-]+)", section):
        assert option in options, option
    for command, title in (("generate", "Talk to it"), ("bench", "Measure it")):
        options = {o for p in main.commands[command].params for o in p.opts}
        shown = set(re.findall(r"(--[a-z-]+)", README.partition(f"## {title}")[2].partition("\n## ")[0]))
        assert shown == {o for o in options if o.startswith("--")}


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (CLONE.root / ".ci" / "run").read_text(encoding="utf-8")
    line = re.search(r"^command=(.*)$", script, re.M)
    assert line
    taken = subprocess.run(
        ["bash", "-c", f"echo {line[1]}"], cwd=CLONE.root, capture_output=True, text=True, check=True
    )
    assert taken.stdout.strip() == marked("test command").strip()


@pytest.mark.parametrize("day", catalog.load(CLONE).days, ids=lambda d: d.name)
def test_every_day_is_in_the_readme(day: catalog.Day) -> None:
    modules = ", ".join(f"`exercises/{m}`" for m in day.modules)
    assert f"| {day.id} | {day.title} | {modules} |" in README
