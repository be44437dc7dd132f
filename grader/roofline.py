"""The roofline picture: how near each contestant is to what memory and arithmetic allow, as an SVG document.

Both axes are logarithmic. x: operations for each byte that must be read (weights as they are stored, keys and
values), which the work decides. y: operations a second, which the program decides. Under the slope the memory
is the limit, under the flat part the arithmetic. Nothing here measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 860, 460
LEFT, RIGHT, TOP, BOTTOM = 72, 176, 34, 92  # margins; the legend stands at the right
COLOURS = ("#1f6feb", "#d1570a", "#2da44e", "#8250df", "#bf3989")
INK, FAINT, ROOF = "#57606a", "#d0d7de", "#24292f"
MARK = 5  # half a mark's width


@dataclass(frozen=True)
class Point:
    """One contestant doing one thing."""

    name: str  # "yours"
    part: str  # "prefill 512"
    intensity: float  # operations a byte
    per_second: float  # operations


@dataclass(frozen=True)
class Roofline:
    title: str
    bandwidth: float  # bytes/s
    bandwidth_how: str
    peak: float  # operations/s
    peak_how: str
    points: tuple[Point, ...]

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Roofline:
        return cls(**{**data, "points": tuple(Point(**p) for p in data["points"])})


def draw(roof: Roofline) -> str:
    """The SVG document."""
    return "\n".join(["".join(_open(roof)), *_Picture(roof).parts(), "</svg>\n"])


def _open(roof: Roofline) -> Iterator[str]:
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
    yield f'font-family="sans-serif" font-size="12" role="img"><title>Roofline: {escape(roof.title)}</title>'
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'


class _Picture:
    def __init__(self, roof: Roofline) -> None:
        self.roof = roof
        ridge = roof.peak / roof.bandwidth  # where memory and arithmetic allow the same
        xs = [ridge, *(p.intensity for p in roof.points)]
        ys = [roof.peak, *(p.per_second for p in roof.points)]
        self.x_range = 10 ** math.floor(math.log10(min(xs) / 1.5)), 10 ** math.ceil(math.log10(max(xs) * 1.5))
        self.y_range = 10 ** math.floor(math.log10(min(ys) / 1.5)), 10 ** math.ceil(math.log10(max(ys) * 1.5))

    def x(self, intensity: float) -> float:
        low, high = map(math.log10, self.x_range)
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(intensity) - low) / (high - low)

    def y(self, per_second: float) -> float:
        low, high = map(math.log10, self.y_range)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(per_second) - low) / (high - low)

    def parts(self) -> Iterator[str]:
        yield from self._axes()
        yield from self._roof()
        names = list(dict.fromkeys(p.name for p in self.roof.points))
        shapes = list(dict.fromkeys(p.part for p in self.roof.points))
        for point in self.roof.points:
            yield self._mark(point, COLOURS[names.index(point.name) % len(COLOURS)], shapes.index(point.part))
        yield from self._legend(names, shapes)

    def _axes(self) -> Iterator[str]:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for value in _decades(*self.x_range):
            at = self.x(value)
            yield f'<path d="M{at:.1f} {TOP}V{bottom}" stroke="{FAINT}"/>'
            yield _text(at, bottom + 16, f"{value:g}")
        for value in _decades(*self.y_range):
            at = self.y(value)
            yield f'<path d="M{LEFT} {at:.1f}H{right}" stroke="{FAINT}"/>'
            yield _text(LEFT - 8, at + 4, f"{value / 1e9:g}", "end")
        yield _text((LEFT + right) / 2, bottom + 34, "operations for each byte that must be read")
        middle = _text(-(TOP + bottom) / 2, 16, "GFLOP/s")
        yield f'<g transform="rotate(-90)">{middle}</g>'
        yield _text(LEFT, 20, self.roof.title, "start", ROOF)

    def _roof(self) -> Iterator[str]:
        roof, (left, right) = self.roof, self.x_range
        ridge = min(max(roof.peak / roof.bandwidth, left), right)
        low = max(left, self.y_range[0] / roof.bandwidth)  # where the slope enters the picture
        corners = [(low, low * roof.bandwidth), (ridge, roof.peak), (right, roof.peak)]
        path = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in corners)
        yield f'<polyline points="{path}" fill="none" stroke="{ROOF}" stroke-width="2"/>'
        bottom = HEIGHT - BOTTOM
        slope = f"slope: {roof.bandwidth / 1e9:.3g} GB/s read from memory ({roof.bandwidth_how})"
        flat = f"flat: {roof.peak / 1e9:.3g} GFLOP/s ({roof.peak_how})"
        yield _text(LEFT, bottom + 56, escape(slope), "start")
        yield _text(LEFT, bottom + 72, escape(flat), "start")

    def _mark(self, point: Point, colour: str, shape: int) -> str:
        told = f"{point.name}, {point.part}: {point.per_second / 1e9:.3g} GFLOP/s"
        inner = f"<title>{escape(told)}</title>"
        return _sign(self.x(point.intensity), self.y(point.per_second), colour, shape, inner)

    def _legend(self, names: list[str], shapes: list[str]) -> Iterator[str]:
        left, line = WIDTH - RIGHT + 16, TOP + 12
        for number, name in enumerate(names):
            yield _text(left, line, escape(name), "start", COLOURS[number % len(COLOURS)])
            line += 16
        line += 8
        for number, part in enumerate(shapes):
            yield _sign(left + 6, line - 4, INK, number, "")
            yield _text(left + 20, line, escape(part), "start")
            line += 16


def _sign(x: float, y: float, colour: str, shape: int, inner: str) -> str:
    """A circle, a square, a triangle or a diamond, open inside so that what lies below is seen."""
    m = MARK
    forms = (
        f"M{x - m:.1f} {y:.1f}a{m} {m} 0 1 0 {2 * m} 0a{m} {m} 0 1 0 {-2 * m} 0z",
        f"M{x - m:.1f} {y - m:.1f}h{2 * m}v{2 * m}h{-2 * m}z",
        f"M{x:.1f} {y - m:.1f}l{m} {2 * m}h{-2 * m}z",
        f"M{x:.1f} {y - m:.1f}l{m} {m}l{-m} {m}l{-m} {-m}z",
    )
    path = forms[shape % len(forms)]
    look = f'fill="{colour}" fill-opacity="0.25" stroke="{colour}" stroke-width="2"'
    return f'<path d="{path}" {look}>{inner}</path>'


def _decades(low: float, high: float) -> Iterator[float]:
    value = low
    while value <= high * 1.001:
        yield value
        value *= 10


def _text(x: float, y: float, said: str, anchor: str = "middle", fill: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{said}</text>'
