"""Prints a grading: task lines as they come, failures in about twelve lines, the verdict at the end.

Nothing here decides anything. Rich is imported with the first line, while the grading child boots.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .report import ArrayNote, CheckResult, DayReport, Failure, Frame, Outcome, Tampering, TaskResult, Verdict

if TYPE_CHECKING:
    from rich.console import Console

LABEL = 11  # columns of a label such as "expected"
NO_BREAK = "\xa0"  # textwrap leaves it alone
MOST_THERE = 210  # characters about the line's variables, three or four lines of a terminal
WIDEST = 100  # a wider terminal does not make prose easier to read

STYLE = {
    Outcome.PASSED: "green",
    Outcome.NOT_STARTED: "dim",
    Outcome.BLOCKED: "yellow",
    Outcome.NOT_RUN_HERE: "yellow",
    Outcome.NOT_REACHED: "yellow",
}
SIGN = {Outcome.PASSED: "✓", Outcome.NOT_STARTED: "·", Outcome.BLOCKED: "·", Outcome.NOT_RUN_HERE: "?"}
ASCII_SIGN = {"✓": "+", "✗": "x", "·": "-", "?": "?"}


class Screen:
    """The terminal, pipe or file that the program prints to."""

    def __init__(self, *, verbose: bool = False, stderr: bool = False) -> None:
        self.verbose = verbose
        self._stream = sys.stderr if stderr else sys.stdout

    @cached_property
    def console(self) -> Console:
        from rich.console import Console

        console = Console(file=self._stream, highlight=False, soft_wrap=False)
        if not console.is_terminal:
            console = Console(file=self._stream, highlight=False, width=80, soft_wrap=True)
        return console

    @property
    def width(self) -> int:
        return min(self.console.width, WIDEST)

    @cached_property
    def unicode(self) -> bool:
        encoding = getattr(self._stream, "encoding", None) or "ascii"
        try:
            "✓✗·".encode(encoding)
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    def sign(self, outcome: Outcome) -> str:
        sign = SIGN.get(outcome, "✗")
        return sign if self.unicode else ASCII_SIGN[sign]

    def line(self, text: str = "", style: str | None = None) -> None:
        from rich.text import Text

        self.console.print(Text(self._printable(text), style=style or ""), soft_wrap=True)

    def _printable(self, text: str) -> str:
        text = text.replace(NO_BREAK, " ")
        if self.unicode:
            return text
        return text.replace("·", "-").replace("×", "x").encode("ascii", "replace").decode()

    def paragraph(self, text: str, style: str | None = None, indent: int = 0) -> None:
        for line in textwrap.wrap(text, self.width - indent, break_on_hyphens=False) or [""]:
            self.line(" " * indent + line, style)

    def labelled(
        self, label: str, text: str, style: str | None = None, indent: int = 4, width: int = LABEL
    ) -> None:
        """ "    expected   mx.array (3, 7) float32", wrapped under itself."""
        from rich.text import Text

        first = " " * indent + label.ljust(width)
        rest = " " * len(first)
        lines: list[str] = []
        for part in text.splitlines() or [""]:
            lines += textwrap.wrap(
                part, self.width - len(first), break_long_words=False, break_on_hyphens=False
            ) or [""]
        for i, line in enumerate(lines):
            shown = Text(first if i == 0 else rest, style="dim")
            shown.append(self._printable(line), style=style or "none")
            self.console.print(shown, soft_wrap=True)

    def frames(self, frames: tuple[Frame, ...], label: str = "your line") -> None:
        """Where it went wrong: the line, and the arrays and values there."""
        for i, frame in enumerate(_shown_frames(frames, all_of_them=self.verbose)):
            place = where(frame)
            if len(place) > self.width - LABEL - 4:
                place = f"{frame.path}:{frame.line}"
            self.labelled(label if i == 0 else "", place)
            if frame.source:
                self.labelled("", "  " + frame.source, "cyan")
            if frame.values:
                self.labelled("there", _shapes(frame.values))

    def failure(self, failure: Failure) -> None:
        """Why a check did not pass."""
        self.paragraph(failure.summary, "red", indent=4)
        for label in ("checked", "expected", "got", "where", "error"):
            text = getattr(failure, label)
            if text:
                self.labelled(label, text)
        self.frames(failure.frames)
        if failure.fact:
            self.labelled("rule", failure.fact)
        if failure.prints.strip():
            self.printed(failure.prints)

    def command(self, program: str, file: str) -> None:
        """A command to copy, which may be longer than the line: a backslash ends what goes on below."""
        whole = f"{program} {file}"
        lines = [whole] if len(whole) + 4 <= self.width else [f"{program} \\", f"    {file}"]
        for line in lines:
            self.line(f"    {line}", "bold")

    def printed(self, text: str, style: str | None = None) -> None:
        """What the learner's code printed, both ends of it."""
        self.labelled("printed", _ends(text.strip(), 40 if self.verbose else 5), style)

    def error(self, message: str, next_step: str = "") -> None:
        """A fault that ends the command, in one or two lines."""
        self.paragraph(message, "red")
        if next_step:
            self.paragraph(next_step)


class GradingScreen:
    """Follows one day's grading on a Screen."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self._status: Any = None

    def begin(self, name: str, title: str, graded: Sequence[str], borrowed: Sequence[str]) -> None:
        screen = self.screen
        screen.line()
        screen.line(f"{name}  {title}", "bold")
        shown = f"grading {', '.join(graded)}"
        if borrowed:
            shown += f", with {', '.join('day' + b for b in borrowed)} from the reference"
        screen.paragraph(shown, "dim")
        if screen.console.is_terminal:
            self._status = screen.console.status("starting", spinner="dots" if screen.unicode else "line")
            self._status.start()

    def show_running(self, text: str) -> None:
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(text[: self.screen.width - 4], no_wrap=True))

    def task_done(self, task: TaskResult) -> None:
        screen = self.screen
        outcome = task.outcome
        how_far = f"{task.passed} of {task.expected} checks"
        if outcome not in (Outcome.PASSED, Outcome.FAILED):
            how_far = outcome.value if not task.passed else f"{how_far}, {outcome.value}"
        room = screen.width - 8 - len(how_far) - 2
        title = task.title if len(task.title) <= room else task.title[: room - 3] + "..."
        screen.line(
            f"  {screen.sign(outcome)} {task.id}  {title.ljust(room)}  {how_far}", STYLE.get(outcome, "red")
        )

    def stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def failures(self, report: DayReport, next_steps: dict[int, str]) -> None:
        """The first failure of each task that went wrong; with -v every one. The same cause is told once."""
        told: set[str] = set()
        for task in report.tasks:
            wrong = [c for c in task.checks if c.failure and c.outcome not in QUIET]
            wrong.sort(key=lambda c: c.outcome is not task.outcome)
            for result in wrong if self.screen.verbose else wrong[:1]:
                failure = result.failure
                if failure is None or (
                    failure.summary in told and not failure.where and not self.screen.verbose
                ):
                    continue
                told.add(failure.summary)
                self._failure(task, result, failure, len(wrong), next_steps.get(task.id, ""))

    def _failure(
        self, task: TaskResult, result: CheckResult, failure: Failure, wrong: int, next_step: str
    ) -> None:
        screen = self.screen
        screen.line()
        others = f"  (and {wrong - 1} more check{'s' if wrong > 2 else ''})"
        more = others if wrong > 1 and not screen.verbose else ""
        case = result.id.partition("[")[2].rstrip("]")
        title = result.title + (f" [{case}]" if case else "")
        screen.paragraph(f"task {task.id}, {result.outcome.value}: {title}{more}", "bold", indent=2)
        screen.failure(failure)
        if next_step:
            screen.labelled("next", next_step, "bold")
        if screen.verbose and failure.detail:
            for line in failure.detail.rstrip().splitlines():
                screen.line("      " + line, "dim")

    def verdict(self, report: DayReport, graded: str, advice: Iterable[str]) -> None:
        """The last lines of a grading."""
        screen = self.screen
        screen.line()
        count = f"{report.passed} of {report.expected} checks passed"
        if report.ran < report.expected:
            count += f", {report.ran} ran"
        screen.paragraph(f"graded {graded}: {count}, {report.seconds:.1f} s", "dim")
        name = f"day{report.day}"
        match report.verdict:
            case Verdict.PASSED if report.only_task:
                screen.paragraph(f"{name}, task {report.only_task}: passed", "bold green")
            case Verdict.PASSED:
                screen.paragraph(f"{name}: passed", "bold green")
            case Verdict.PARTIAL:
                screen.paragraph(f"{name}: partial, not everything could run on this machine", "bold yellow")
            case Verdict.NOT_PASSED if report.only_task:
                screen.paragraph(f"{name}, task {report.only_task}: not passed yet", "bold")
            case Verdict.NOT_PASSED:
                done = sum(t.outcome is Outcome.PASSED for t in report.tasks)
                screen.paragraph(f"{name}: not passed yet, {done} of {len(report.tasks)} tasks", "bold")
            case Verdict.INTERRUPTED:
                screen.paragraph(f"{name}: {report.problem}; what had run is kept", "bold yellow")
            case Verdict.REFUSED:
                self.tampering(report.tampering)
                screen.paragraph(f"{name}: refused, this result says nothing about the code", "bold red")
            case Verdict.ENVIRONMENT:
                reason = report.problem or "the course's own check is at fault, not your code"
                screen.paragraph(f"{name}: could not be graded: {reason}", "bold red")
        for line in advice:
            screen.paragraph(line)

    def tampering(self, found: Sequence[Tampering]) -> None:
        """What --strict found, each thing in its place; without -v the first of many."""
        screen = self.screen
        shown = found if screen.verbose else found[:12]
        for finding in shown:
            place = f"{finding.path}:{finding.line}" if finding.line else finding.path
            screen.labelled(finding.kind, finding.what, "red", indent=2)
            screen.labelled("", place, indent=2)
            if finding.source:
                screen.labelled("", "  " + finding.source[:100], "cyan", indent=2)
        if len(found) > len(shown):
            screen.paragraph(f"and {len(found) - len(shown)} more: -v shows all", indent=2)


# Outcomes that a task's own line says all about.
QUIET = {Outcome.PASSED, Outcome.NOT_STARTED, Outcome.NOT_REACHED}


def where(frame: Frame) -> str:
    inside = f" in {frame.function}" if frame.function and frame.function != "<module>" else ""
    return f"{frame.path}:{frame.line}{inside}"


def _shown_frames(frames: tuple[Frame, ...], *, all_of_them: bool) -> tuple[Frame, ...]:
    """The innermost frame of the learner's: where it went wrong."""
    return frames if all_of_them else frames[-1:]


def _shapes(values: Sequence[ArrayNote]) -> str:
    """The arrays of a frame, then its plain values: "float32: x (3, 5) · y (3, 5); scale = None".

    Plain values that would make it too long are left out, and counted.
    """
    parts = []
    for dtype in dict.fromkeys(v.dtype for v in values if v.shape):
        arrays = [v for v in values if v.shape and v.dtype == dtype]
        notes = (f"{v.name} {v.shape} {v.note}".rstrip() for v in arrays)
        parts.append(f"{dtype}: " + " · ".join(_unbroken(n) for n in notes))
    plain = [_unbroken(f"{v.name} = {v.value}") for v in values if not v.shape]
    while plain and len("; ".join([*parts, *plain])) > MOST_THERE:
        plain.pop()
    left_out = sum(not v.shape for v in values) - len(plain)
    return "; ".join([*parts, *plain]) + (f"; and {left_out} more" if left_out else "")


def _unbroken(text: str) -> str:
    """The text with spaces at which no line is broken."""
    return text.replace(" ", NO_BREAK)


def _ends(text: str, lines: int) -> str:
    """The first and last `lines` lines of a text."""
    all_lines = text.splitlines()
    if len(all_lines) <= 2 * lines:
        return text
    left_out = len(all_lines) - 2 * lines
    return "\n".join([*all_lines[:lines], f"... {left_out} lines ...", *all_lines[-lines:]])
