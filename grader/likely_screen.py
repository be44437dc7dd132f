"""Prints the likely mistake behind a failure, and where the lesson explains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .catalog import Day
from .render import Screen
from .report import LikelyMistake

PATIENCE = 3  # mistakes tried before it is said that they are


class LikelyScreen:
    """Follows the search on a terminal, then says what was found."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self._status: Any = None

    def progress(self, done: int, total: int) -> None:
        if not self.screen.console.is_terminal or done < PATIENCE:
            return
        text = f"comparing with known mistakes: {done} of {total} (Ctrl-C: leave it)"
        if self._status is None:
            spinner = "dots" if self.screen.unicode else "line"
            self._status = self.screen.console.status(text, spinner=spinner)
            self._status.start()
        self._status.update(text)

    def stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def found(self, day: Day, found: Sequence[LikelyMistake]) -> None:
        self.stop()
        if not found:
            return
        self.screen.line()
        self.screen.line("likely mistake", "bold")
        for one in found:
            self._one(day, one, found)

    def _one(self, day: Day, one: LikelyMistake, found: Sequence[LikelyMistake]) -> None:
        screen, label = self.screen, f"task {one.task}"
        if one.through is not None and any(f.mistakes == one.mistakes for f in found if f.task != one.task):
            screen.labelled(label, f"The same mistake, in the code of task {one.through}.", indent=2)
            return
        both = " Two mistakes at once." if len(one.says) > 1 else ""
        where = f" It is in the code of task {one.through}." if one.through is not None else ""
        screen.labelled(label, (" And: ".join(one.says)) + both + where, "yellow", indent=2)
        for other in one.or_says[:1]:
            screen.labelled("or", other, "yellow", indent=2)
        agree = "The failing check gives" if one.checks == 1 else f"All {one.checks} failing checks give"
        screen.labelled("because", f"{agree} just what this mistake gives.", indent=2)
        for i, heading in enumerate(one.lessons):
            command = f'tinyllm-grade read {day.name} --section "{heading}"'
            screen.labelled("read" if i == 0 else "", command, "bold", indent=2)
