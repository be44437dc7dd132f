"""Schedules as pictures: which slot runs what in which step, as text and as an SVG document.

A schedule is made of plans of day 2.7, whatever tree they come from: `step`, and `prefill` and `decode` with
parts that have `id` and `slot`, chunks also `tokens`. Prefill and decode are told apart by form, with or
without colour: a chunk is hatched and has its number of tokens in it, a decode is plain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

CELL_WIDTH, CELL_HEIGHT = 34, 26
LEFT, TOP, GAP, BOTTOM = 88, 62, 52, 64  # margins, and what lies between two schedules
SHOWN = 48  # steps of a picture; of longer schedules those around the first difference
BEFORE = 12  # of these, how many come before it
COLOURS = ("#8ec1ff", "#ffc58a", "#93dba4", "#d0b3ff", "#f5a8d0", "#ffe07a", "#8fe0dc", "#c9ced4")
INK, FAINT, MARK = "#24292f", "#d0d7de", "#b3261e"
TEXT_STEPS = 8  # of an excerpt as text


@dataclass(frozen=True)
class Cell:
    """What a slot runs in a step: a chunk of `tokens` of a request's prompt, or with 0 its decode."""

    id: int
    tokens: int = 0

    def __str__(self) -> str:
        return f"P{self.id}:{self.tokens}" if self.tokens else f"D{self.id}"


@dataclass(frozen=True)
class Schedule:
    """What each slot runs in each step: mostly one cell, none where it rests."""

    name: str  # "yours"
    steps: tuple[tuple[tuple[Cell, ...], ...], ...]  # [step][slot]


@dataclass(frozen=True)
class SchedulePicture:
    """Schedules of the same requests, to be seen one under the other."""

    title: str
    schedules: tuple[Schedule, ...]

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> SchedulePicture:
        schedules = tuple(
            Schedule(
                s["name"],
                tuple(tuple(tuple(Cell(**c) for c in slot) for slot in step) for step in s["steps"]),
            )
            for s in data["schedules"]
        )
        return cls(data["title"], schedules)

    @property
    def first_difference(self) -> int | None:
        """The first step in which not all run the same, None where there is none."""
        return next(iter(self._different()), None)

    @property
    def differing(self) -> int:
        """How many steps are not alike."""
        return sum(1 for _ in self._different())

    def _different(self) -> Iterator[int]:
        longest = max((len(s.steps) for s in self.schedules), default=0)
        for step in range(longest):
            if len({s.steps[step] if step < len(s.steps) else None for s in self.schedules}) > 1:
                yield step


def schedule_of(name: str, plans: Iterable[Any], slots: int) -> Schedule:
    """Plans, the first of which is step 0, as a Schedule."""
    return Schedule(name, tuple(_cells(plan, slots) for plan in plans))


def _cells(plan: Any, slots: int) -> tuple[tuple[Cell, ...], ...]:
    rows: list[list[Cell]] = [[] for _ in range(slots)]
    parts = [(c.slot, Cell(c.id, len(c.tokens))) for c in plan.prefill]
    parts += [(d.slot, Cell(d.id)) for d in plan.decode]
    for slot, cell in parts:
        if slot in range(slots):
            rows[slot].append(cell)
    return tuple(map(tuple, rows))


# ---- as text ----


def schedule_text(plans: Iterable[Any], slots: int) -> str:
    """A column a step, a row a slot: P0:4 is four tokens of request 0's prompt, D0 its decode, . nothing."""
    schedule = schedule_of("", plans, slots)
    return table(schedule.steps, slots)


def table(steps: Sequence[Sequence[Sequence[Cell]]], slots: int, first: int = 0) -> str:
    """Steps as text; the first is number `first`."""
    columns = [["step", *(f"slot {slot}" for slot in range(slots))]]
    for number, step in enumerate(steps, start=first):
        columns.append([str(number), *("+".join(map(str, cells)) or "." for cells in step)])
    widths = [max(map(len, column)) for column in columns]
    lines = zip(*columns, strict=True)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def excerpt(picture: SchedulePicture) -> str:
    """The steps from the one before the first difference on, or the first ones: of each schedule where they
    are not alike."""
    at = picture.first_difference
    start = 0 if at is None else max(0, at - 1)
    parts = []
    for schedule in picture.schedules[: None if at is not None else 1]:
        slots = len(schedule.steps[0]) if schedule.steps else 0
        told = table(schedule.steps[start : start + TEXT_STEPS], slots, start)
        parts.append(f"{schedule.name}\n{told}" if at is not None else told)
    return "\n\n".join(parts)


# ---- as SVG ----


def draw(picture: SchedulePicture) -> str:
    """The SVG document: one schedule under the other over the same steps, and the first difference marked."""
    return "\n".join([*_Drawing(picture).parts(), "</svg>\n"])


class _Drawing:
    def __init__(self, picture: SchedulePicture) -> None:
        self.picture = picture
        self.slots = max((len(step) for s in picture.schedules for step in s.steps), default=1)
        longest = max((len(s.steps) for s in picture.schedules), default=0)
        at = picture.first_difference
        self.first = 0 if at is None or longest <= SHOWN else max(0, min(at - BEFORE, longest - SHOWN))
        self.last = min(longest, self.first + SHOWN)
        self.panel = self.slots * CELL_HEIGHT
        # At least as wide as the legend.
        self.width = LEFT + max(self.last - self.first, 22) * CELL_WIDTH + 20
        self.height = TOP + len(picture.schedules) * (self.panel + GAP) - GAP + BOTTOM

    def parts(self) -> Iterator[str]:
        title = escape(self.picture.title)
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'font-family="sans-serif" font-size="11" role="img"><title>Schedule: {title}</title>'
        )
        yield f'<rect width="{self.width}" height="{self.height}" fill="white"/>'
        yield (
            '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
            f'patternTransform="rotate(45)"><path d="M0 0V6" stroke="{INK}" stroke-opacity="0.35" '
            'stroke-width="2"/></pattern></defs>'
        )
        yield _text(LEFT, 20, title, "start", INK, 'font-size="13"')
        for number, schedule in enumerate(self.picture.schedules):
            yield from self._schedule(schedule, TOP + number * (self.panel + GAP))
        yield from self._difference()
        yield from self._legend()

    def x(self, step: int) -> float:
        return LEFT + (step - self.first) * CELL_WIDTH

    def _schedule(self, schedule: Schedule, top: int) -> Iterator[str]:
        yield _text(8, top - 18, escape(schedule.name), "start", INK, 'font-weight="bold"')
        for slot in range(self.slots):
            y = top + slot * CELL_HEIGHT
            yield _text(LEFT - 8, y + 17, f"slot {slot}", "end")
            yield f'<path d="M{LEFT} {y}H{self.x(self.last)}" stroke="{FAINT}"/>'
        for step in range(self.first, min(self.last, len(schedule.steps))):
            if (step - self.first) % 2 == 0:
                yield _text(self.x(step) + CELL_WIDTH / 2, top - 5, str(step))
            for slot, cells in enumerate(schedule.steps[step]):
                for cell in cells:
                    yield from _cell(cell, self.x(step), top + slot * CELL_HEIGHT, schedule.name, step, slot)
        if len(schedule.steps) < self.last:
            yield _text(self.x(max(len(schedule.steps), self.first)) + 6, top + 17, "end", "start")

    def _difference(self) -> Iterator[str]:
        bottom = self.height - BOTTOM
        at = self.picture.first_difference
        if len(self.picture.schedules) < 2:
            return
        if at is None:
            yield _text(LEFT, 38, "the same in every step", "start")
            return
        x = self.x(at)
        path = f"M{x} {TOP - 4}V{bottom + 4}"
        yield f'<path d="{path}" stroke="{MARK}" stroke-width="2" stroke-dasharray="5 3"/>'
        yield _text(LEFT, 38, f"first difference: step {at}", "start", MARK)

    def _legend(self) -> Iterator[str]:
        y = self.height - 40
        yield from _cell(Cell(3, 32), LEFT, y, "", 0, 0)
        yield _text(LEFT + 42, y + 17, "prefill: request 3 runs 32 tokens of its prompt", "start")
        yield from _cell(Cell(3), LEFT + 330, y, "", 0, 0)
        yield _text(LEFT + 372, y + 17, "decode: request 3 runs its newest token", "start")


def _cell(cell: Cell, x: float, y: float, name: str, step: int, slot: int) -> Iterator[str]:
    what = f"{cell.tokens} prompt tokens" if cell.tokens else "decode"
    told = f"{name}, step {step}, slot {slot}: request {cell.id}, {what}"
    place = f'x="{x + 1}" y="{y + 2}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 4}" rx="2"'
    colour = COLOURS[cell.id % len(COLOURS)]
    yield f'<g><title>{escape(told)}</title><rect {place} fill="{colour}" stroke="{INK}" stroke-width="0.5"/>'
    if cell.tokens:
        yield f'<rect {place} fill="url(#hatch)"/>'
        yield _text(x + CELL_WIDTH / 2, y + 12, f"{cell.id}", fill=INK, more='font-weight="bold"')
        yield _text(x + CELL_WIDTH / 2, y + 22, f"+{cell.tokens}", fill=INK, more='font-size="9"')
    else:
        yield _text(x + CELL_WIDTH / 2, y + 17, f"{cell.id}", fill=INK)
    yield "</g>"


def _text(
    x: float, y: float, said: str, anchor: str = "middle", fill: str = "#57606a", more: str = ""
) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" {more}>{said}</text>'
