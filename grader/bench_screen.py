"""Prints a measurement: each figure as it is found, its bar, and at the end whether all bars are met."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import roofline, schedule_picture
from .benching import CourseFault, Event, Interrupted, Measurement, Note, NotMeasured, Stage, exit_code
from .errors import EnvironmentFault
from .figures import TIMES, Bar, Count, Limits, Race, Verdict, number, size, spread
from .render import Screen
from .roofline import Roofline
from .schedule_picture import SchedulePicture

NAME, FIGURE = 24, 22  # columns
STYLE = {Verdict.MET: "green", Verdict.MISSED: "bold red", Verdict.NOISY: "yellow"}


@dataclass(frozen=True)
class Measured:
    """What one measurement came to. `problem` is why it ended before its end."""

    found: Sequence[Event]
    exit_code: int
    problem: str = ""


def follow(measurement: Measurement, screen: Screen | None, plot: Path | None) -> Measured:
    """Follow a measurement to its end; print what it finds, where there is a screen. `plot` is for a picture.

    Raises UsageError and EnvironmentFault; a CourseFault is printed, as a fault of the tree's is.
    """
    shown = BenchScreen(screen, measurement) if screen is not None else None
    found: list[Event] = []
    try:
        for event in measurement.events():
            found.append(event)
            if shown is not None:
                shown.show(event)
            if plot is not None and (picture := _drawn(event)):
                _write(plot, picture)
        if plot is not None and shown is not None and not any(map(_drawn, found)):
            shown.nothing_to_draw(plot)
        measured = Measured(found, exit_code(found))
    except Interrupted as stopped:
        line = f", at {stopped.where}" if stopped.where else ""
        measured = Measured(found, 130, f"stopped by Ctrl-C{line}")
        if shown is not None:
            shown.stopped(measured.problem)
    except (NotMeasured, CourseFault) as fault:
        measured = Measured(found, fault.exit_code, fault.message)
        if shown is not None:
            shown.fault(fault)
    else:
        if shown is not None:
            shown.end(found)
    finally:
        if shown is not None:
            shown.quiet()
    return measured


def _drawn(event: Event) -> str:
    """The picture of an event, "" if it has none."""
    match event:
        case Roofline():
            return roofline.draw(event)
        case SchedulePicture():
            return schedule_picture.draw(event)
    return ""


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(f"{file} cannot be written: {error.strerror or error}") from None


class BenchScreen:
    """One measurement on a Screen."""

    def __init__(self, screen: Screen, measurement: Measurement) -> None:
        self.screen = screen
        self.measurement = measurement
        self._status: Any = None
        subject, solution = measurement.subject, measurement.solution
        title = subject.day.title if subject.day else subject.engine.title if subject.engine else ""
        screen.line()
        screen.line(f"bench {subject.name}  {title}", "bold")
        about = f"{solution} beside reference"
        if solution == "reference" or subject.called == "serve":
            about = f"{'the reference' if solution == 'reference' else 'your code'} alone"
        if measurement.borrow:
            days = ", ".join(d.name for d in measurement.borrow)
            about += f", with {days} from the reference"
        screen.paragraph(about, "dim")
        if screen.console.is_terminal:
            spinner = "dots" if screen.unicode else "line"
            self._status = screen.console.status("starting", spinner=spinner)
            self._status.start()

    def show(self, event: Event) -> None:
        match event:
            case Stage() if self._status is not None:
                from rich.text import Text

                self._status.update(Text(event.text[: self.screen.width - 4], no_wrap=True))
            case Note():
                self.screen.paragraph(event.text)
            case Count():
                self._count(event)
            case Race():
                self._race(event)
            case Limits():
                self._limits(event)
            case SchedulePicture():
                self._schedules(event)

    def _count(self, count: Count) -> None:
        value = number(count.value) + ("%" if count.unit == "%" else f" {count.unit}" if count.unit else "")
        self.screen.line()
        self.screen.paragraph(f"{count.title}: {value}", "bold")
        self._bars(count.bars)

    def _race(self, race: Race) -> None:
        screen = self.screen
        screen.line()
        screen.paragraph(f"{race.title}, in {race.unit}", "bold")
        if race.differs:
            screen.paragraph(race.differs, "bold red", indent=2)
            screen.paragraph("So the times mean nothing, and none is shown.", indent=2)
            return
        rounds = max(len(lane.figures) for lane in race.lanes)
        first = race.lanes[0].name
        middle = "median (from, to)" if rounds > 1 else "one round"
        ratio = f"{first}, times as fast" if len(race.lanes) > 1 else ""
        screen.line(f"  {'':<{NAME}} {middle:<{FIGURE}} {ratio}".rstrip(), "dim")
        for lane in race.lanes:
            told = "" if lane.name == first else spread(race.ratios(first, lane.name))
            screen.line(f"  {lane.name:<{NAME}} {spread(lane.figures):<{FIGURE}} {told}".rstrip())
            if lane.remark:
                screen.line(f"  {'':<{NAME}} ({lane.remark})", "dim")
        if race.agreement:
            screen.paragraph(f"{rounds} rounds. {race.agreement}", "dim", indent=2)
        self._bars(race.bars)

    def _limits(self, limits: Limits) -> None:
        told = (
            f"Each token reads {size(limits.weight_bytes)} of weights as they are stored and "
            f"{size(limits.cache_bytes)} of keys and values."
        )
        if not limits.bandwidth:
            told += " A processor's caches may hold that, so memory sets no limit here."
        else:
            told += (
                f" This machine reads {size(limits.bandwidth)}/s ({limits.how}), so at most "
                f"{number(limits.per_second)} tokens/s. Share of that:"
            )
        self.screen.paragraph(told, indent=2)
        for lane in limits.lanes:
            self.screen.line(f"  {lane.name:<{NAME}} {spread(lane.figures)} %")

    def _schedules(self, picture: SchedulePicture) -> None:
        self.screen.line()
        self.screen.paragraph(f"{picture.title} (P0:4 is a prefill of 4 tokens, D0 a decode)", "bold")
        at = picture.first_difference
        if at is not None:
            self.screen.paragraph(f"The schedules part in step {at}.", "bold yellow", indent=2)
        elif len(picture.schedules) > 1:
            self.screen.paragraph("The same in every step; it begins:", indent=2)
        for line in schedule_picture.excerpt(picture).splitlines():
            self.screen.line(f"  {line}".rstrip())

    def nothing_to_draw(self, plot: Path) -> None:
        self.screen.line()
        self.screen.paragraph(f"This measurement has no picture: {plot} was not written.", "yellow")

    def _bars(self, bars: Iterable[Bar]) -> None:
        for bar in bars:
            self.screen.paragraph(f"bar: {bar.says}: {bar.verdict.value}", STYLE[bar.verdict], indent=2)

    def quiet(self) -> None:
        """Nothing is waited for any longer."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def stopped(self, why: str) -> None:
        self.quiet()
        self.screen.paragraph(why, "bold yellow")

    def _printed(self) -> None:
        self.quiet()
        if self.measurement.prints.strip():
            self.screen.line()
            self.screen.printed(self.measurement.prints, "dim")

    def fault(self, fault: NotMeasured | CourseFault) -> None:
        """What ended the measurement, in about ten lines."""
        self._printed()
        screen = self.screen
        screen.line()
        screen.paragraph(fault.message, "red")
        if isinstance(fault, NotMeasured):
            screen.frames(fault.frames, "your line" if self.measurement.solution == "exercises" else "line")
        elif fault.detail:
            for line in fault.detail.rstrip().splitlines():
                screen.line("    " + line, "dim")
        if fault.next_step:
            screen.labelled("next", fault.next_step, "bold")

    def end(self, found: Sequence[Event]) -> None:
        """The last line."""
        self._printed()
        bars = [b for e in found if isinstance(e, (Count, Race)) for b in e.bars]
        differing = any(isinstance(e, Race) and e.differs for e in found)
        self.screen.line()
        if differing:
            self.screen.paragraph("Results differ: see above.", "bold red")
            return
        if not bars:
            self.screen.paragraph("No bar: figures to look at.", "dim")
            return
        met = sum(b.verdict is Verdict.MET for b in bars)
        noisy = sum(b.verdict is Verdict.NOISY for b in bars)
        text = f"{met} of {len(bars)} bars met"
        if noisy:
            text += f", {noisy} too noisy to judge: let the machine rest and run it again"
        style = {0: "bold green", 1: "bold"}.get(exit_code(found), "bold yellow")
        self.screen.paragraph(text, style)


def as_json(name: str, solution: str, measured: Measured) -> dict[str, Any]:
    """The figures for programs."""

    def bars(event: Count | Race) -> list[dict[str, str]]:
        return [{"bar": b.says, "verdict": b.verdict.value} for b in event.bars]

    def lanes(event: Race | Limits) -> list[dict[str, Any]]:
        return [
            {"name": x.name, "figures": list(x.figures), "median": x.median if x.figures else None}
            | ({"remark": x.remark} if x.remark else {})
            for x in event.lanes
        ]

    races, counts, limits = [], [], None
    for event in measured.found:
        if isinstance(event, Count):
            told = {"title": event.title, "value": event.value, "unit": event.unit, "bars": bars(event)}
            counts.append(told)
        elif isinstance(event, Race):
            better = "less" if event.unit in TIMES else "more"
            told = {"title": event.title, "unit": event.unit, "better": better, "contestants": lanes(event)}
            races.append({**told, "bars": bars(event), "differs": event.differs})
        elif isinstance(event, Limits):
            limits = {
                "weight_bytes": event.weight_bytes,
                "cache_bytes": event.cache_bytes,
                "bytes_per_second": event.bandwidth or None,
                "tokens_per_second": event.per_second or None,
                "percent": lanes(event),
            }
    return {
        "schema": 1,
        "measured": name,
        "solution": solution,
        "exit_code": measured.exit_code,
        "error": measured.problem,
        "notes": [e.text for e in measured.found if isinstance(e, Note)],
        "counts": counts,
        "races": races,
        "limits": limits,
    }
