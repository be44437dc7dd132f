"""Draws the loss of one or several runs as an SVG picture.

    python -P -m tinyllm.reference.week4.curve OUT.svg NAME=RUN ...

RUN is a folder that train.py saves to, or a JSON file that holds its history.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 44  # margins
COLOURS = ("#1f6feb", "#d1570a", "#2da44e", "#8250df")
TICKS = (0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)  # of the loss; its axis is logarithmic
SMOOTHING = 0.9  # weight of the past in the running mean that is drawn

Point = tuple[int, float]  # step, loss


def draw(curves: Mapping[str, Sequence[Point]]) -> str:
    """An SVG document with one line for each curve: loss, in nats a token, over steps."""
    steps = max(step for points in curves.values() for step, _ in points)
    losses = [loss for points in curves.values() for _, loss in points]
    low, high = math.log(min(losses) * 0.95), math.log(max(losses) * 1.05)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / steps

    def y(loss: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log(loss) - low) / (high - low)

    def text(at_x: float, at_y: float, said: str, anchor: str = "middle", fill: str = "#57606a") -> str:
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}" fill="{fill}">{said}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tick in TICKS:
        if low <= math.log(tick) <= high:
            parts.append(f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" stroke="#d0d7de"/>')
            parts.append(text(LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
    for fifth in range(6):
        step = steps * fifth // 5
        parts.append(text(x(step), HEIGHT - BOTTOM + 18, f"{step:,}"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "step"))
    parts.append(
        f'<g transform="rotate(-90)">{text(-(TOP + HEIGHT - BOTTOM) / 2, 14, "loss (nats a token)")}</g>'
    )
    for number, (name, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in smooth(points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(text(WIDTH - RIGHT - 8, TOP + 16 + 18 * number, name, "end", colour))
    return "\n".join([*parts, "</svg>\n"])


def smooth(points: Sequence[Point]) -> list[Point]:
    """Each loss as a running mean of those up to it, a batch alone being noisy."""
    result: list[Point] = []
    total = weight = 0.0
    for step, loss in points:
        total = SMOOTHING * total + (1 - SMOOTHING) * loss
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        result.append((step, total / weight))
    return result


def read(run: Path) -> list[Point]:
    """The history of a run: (step, loss)."""
    file = run / "state.json" if run.is_dir() else run
    return [(line["step"], line["loss"]) for line in json.loads(file.read_text(encoding="utf-8"))["history"]]


def main(arguments: Sequence[str]) -> None:
    out, *named = arguments
    runs = dict(pair.split("=", 1) for pair in named)
    Path(out).write_text(draw({name: read(Path(run)) for name, run in runs.items()}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
