"""What `watch` prints besides the gradings themselves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .render import Screen
from .standing import Standing
from .words import duration

if TYPE_CHECKING:
    from .catalog import Day

FACTS = 6  # shown at the end of a day; the lesson holds all
KEYS = (
    ("h", "hint", "the next hint of the first task that does not pass; recorded"),
    ("d", "diff", "your code of that task beside the reference; asks first, recorded"),
    ("r", "read", "the day's lesson"),
    ("n", "next", "on to the next day"),
    ("l", "list", "how every day stands"),
    ("g", "grade", "grade again now, where a save was not noticed"),
    ("q", "quit", "end; so does Ctrl-C"),
)


class WatchScreen:
    """Prints for `watch` on a Screen. `keys`: whether there is a keyboard. `clear`: one grading a screen."""

    def __init__(self, screen: Screen, *, keys: bool, clear: bool) -> None:
        self.screen = screen
        self.keys = keys
        self.clear = clear and screen.console.is_terminal and not screen.console.is_dumb_terminal

    def fresh(self) -> None:
        """Before a grading: an empty screen, or a line of its own."""
        if self.clear:
            self.screen.console.clear()

    def opening(self, day: Day, files: Sequence[str], polled: str) -> None:
        screen = self.screen
        screen.line(f"watching {day.name}  {day.title}", "bold")
        screen.paragraph(", ".join(files), "dim")
        if polled:
            screen.paragraph(f"looking five times a second: {polled}", "dim")
        if not self.keys:
            screen.paragraph(
                "There is no terminal here, so there are no keys: every save is graded, until the day passes "
                f"or Ctrl-C. Hints and the lesson: tinyllm-grade hint {day.name}, "
                f"tinyllm-grade read {day.name}."
            )

    def waiting(self) -> None:
        """The line under a verdict: what can be pressed."""
        if not self.keys:
            return
        parts = [f"{key} {word}" for key, word, _ in KEYS if word != "grade"]
        sign = " · " if self.screen.unicode else " - "
        self.screen.line()
        self.screen.line(f"waiting for a save{sign}{'  '.join(parts)}  ? keys", "dim")

    def help(self) -> None:
        for key, word, what in KEYS:
            self.screen.labelled(f"{key}  {word}", what, indent=2)

    def unchanged(self) -> None:
        self.screen.paragraph("These files have been graded as they are; this is not another attempt.", "dim")

    def saved_again(self) -> None:
        self.screen.paragraph(f"{time.strftime('%H:%M:%S')}  saved again, so from the start", "dim")

    def notice(self, text: str, style: str = "dim") -> None:
        self.screen.paragraph(text, style)

    def learned(self, day: Day, so_far: Standing, following: Day | None) -> None:
        """The end of a day: what there is now, what it cost, what follows."""
        screen = self.screen
        screen.line()
        screen.line(f"what {day.name} was about", "bold")
        screen.paragraph(day.summary, indent=2)
        bullet = "•" if screen.unicode else "-"
        for fact in day.facts[:FACTS]:
            screen.labelled(bullet, fact.text.replace("`", ""), indent=2, width=2)
        if len(day.facts) > FACTS:
            screen.paragraph(f"and {len(day.facts) - FACTS} rules more, in the lesson (r)", "dim", indent=4)
        screen.paragraph(cost(so_far), "bold", indent=2)
        if following is None:
            screen.paragraph("That was the last day so far.", "bold green")
        elif self.keys:
            screen.paragraph(f"n goes on to {following.name}, {following.title}.", "bold green")
        else:
            screen.paragraph(f"next: tinyllm-grade watch {following.name}", "bold green")


def cost(so_far: Standing) -> str:
    """ "3 attempts, 42 min, 1 hint"; the reference, when it was looked at before the day passed."""
    hints = f"{so_far.hints} hint{'' if so_far.hints == 1 else 's'}" if so_far.hints else "no hint"
    attempts = f"{so_far.attempts} attempt{'' if so_far.attempts == 1 else 's'}"
    parts = [attempts, duration(so_far.seconds), hints]
    if so_far.looked == "before passing":
        parts.append("the reference looked at")
    return ", ".join(parts)
