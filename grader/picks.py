"""The smallest case of a check of random cases, as the numbers that were picked for it (runs in a child).

`testing.every_case` finds that case by Hypothesis. Here the picks that led to it are noted, and a check
runs with that case alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .testing import Pick

NAME = "every_case"


class _Noting:
    """A Pick that writes down what it gives."""

    def __init__(self, pick: Pick, picks: list[int]) -> None:
        self._pick, self._picks = pick, picks

    def __call__(self, low: int, high: int) -> int:
        found = self._pick(low, high)
        self._picks.append(found)
        return found

    def several(self, make: Callable[[Any], Any], least: int, most: int) -> list[Any]:
        parts: list[list[int]] = []

        def noted(pick: Pick) -> Any:
            parts.append([])
            return make(_Noting(pick, parts[-1]))

        found = self._pick.several(noted, least, most)
        self._picks.append(len(found))
        for part in parts[len(parts) - len(found) :]:
            self._picks += part
        return found


class _Repeating:
    """A Pick that gives the same once more."""

    def __init__(self, picks: Iterator[int]) -> None:
        self._picks = picks

    def __call__(self, low: int, high: int) -> int:
        return next(self._picks)

    def several(self, make: Callable[[Any], Any], least: int, most: int) -> list[Any]:
        return [make(self) for _ in range(next(self._picks))]


def has_cases(function: Callable[..., Any]) -> bool:
    """Whether a check is one of random cases."""
    return NAME in function.__code__.co_names and NAME in function.__globals__


def smallest(function: Callable[..., Any], **given: Any) -> list[int] | None:
    """Run the check; the picks of the case whose failure it raises, or None when it raises nothing."""
    original = function.__globals__[NAME]
    failing: dict[int, tuple[BaseException, list[int]]] = {}

    def every_case(make: Callable[[Any], Any], run: Callable[[Any], None], **options: Any) -> None:
        current: list[int] = []

        def making(pick: Pick) -> Any:
            current.clear()
            return make(_Noting(pick, current))

        def running(case: Any) -> None:
            picks = list(current)
            try:
                run(case)
            except Exception as error:
                failing[id(error)] = (error, picks)
                raise

        original(making, running, **options)

    with _in_place(function, every_case):
        try:
            function(**given)
        except Exception as error:
            found = failing.get(id(error))
            return found[1] if found else None
    return None


@contextmanager
def repeating(function: Callable[..., Any], picks: Sequence[int]) -> Iterator[None]:
    """In the block the check `function` runs with that case alone."""

    def every_case(
        make: Callable[[Any], Any],
        run: Callable[[Any], None],
        *,
        shown: Callable[[Any], str] | None = None,
        **options: Any,
    ) -> None:
        case = make(_Repeating(iter(picks)))
        try:
            run(case)
        except Exception as error:
            error.__notes__ = [shown(case)] if shown else []
            raise

    with _in_place(function, every_case):
        yield


@contextmanager
def _in_place(function: Callable[..., Any], every_case: Callable[..., None]) -> Iterator[None]:
    names = function.__globals__
    original = names[NAME]
    names[NAME] = every_case
    try:
        yield
    finally:
        names[NAME] = original
