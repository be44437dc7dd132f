"""A check's function with its parameters, to be called without pytest's runner (in a child or a repro.py)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from .catalog import Day
from .clone import Clone
from .errors import CourseError
from .plugin import Grading, check_id
from .trees import Tree


class Collected:
    """A pytest plugin that takes the collected checks, and lets none of them run."""

    def __init__(self) -> None:
        self.items: list[pytest.Function] = []

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "task(n): the task that a check belongs to")
        config.option.verbose = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        self.items = list(items)
        items.clear()


def collect(clone: Clone, day: Day) -> list[pytest.Function]:
    """The day's checks; no learner code has run yet."""
    for habit in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
        os.environ.pop(habit, None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    found = Collected()
    arguments = [
        "-c", os.devnull, f"--rootdir={clone.root}", "--import-mode=importlib", "--noconftest",
        "-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:faulthandler", "-p", "no:warnings",
        "-s", *map(str, day.tests),
    ]  # fmt: skip
    pytest.main(arguments, plugins=[found])
    return found.items


def given_to(item: pytest.Function) -> tuple[dict[str, Any], set[str]]:
    """A check's parameters, and the fixtures that it needs besides."""
    parameters = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    names: Sequence[str] = item._fixtureinfo.argnames
    given = {name: parameters[name] for name in names if name in parameters}
    return given, set(names) - set(given)


def find(
    clone: Clone, day: Day, tree: Tree, name: str
) -> tuple[Callable[..., None], dict[str, Any], set[str]]:
    """The function of the check `name`, its parameters with the solution, and the fixtures it needs besides.

    Raises CourseError when the day has no such check any more.
    """
    from . import catalog

    grading = Grading(clone, catalog.load(clone), day, tree)
    item = next((i for i in collect(clone, day) if check_id(i) == name), None)
    if item is None:
        raise CourseError(
            f"{day.name} has no check {name} any more.", next_step=f"Grade it again: tinyllm-grade {day.name}"
        )
    given, needs = given_to(item)
    return item.obj, {**given, "solution": grading.stand_in([item])}, needs - {"solution"}
