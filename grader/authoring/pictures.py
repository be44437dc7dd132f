"""The README's pictures: real commands, run in a temporary clone at a fixed width, as SVG.

What differs from run to run is masked: times become one number, the clone's folder `~/tinyllm`. `differs`
compares with the pictures kept in grader/pictures/, numbers with a decimal point aside: the last digits of a
sum may differ from machine to machine.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import catalog
from ..catalog import Course
from ..clone import Clone
from ..errors import EnvironmentFault
from . import scratch, terminal

FOLDER = "grader/pictures"
WIDTH = 80
FIXED = {
    "COLUMNS": str(WIDTH), "LINES": "60", "TERM": "xterm-256color", "FORCE_COLOR": "1", "COLORTERM": "",
    "TZ": "UTC", "LC_ALL": "C.UTF-8",
}  # fmt: skip

# Rich's own format without its fonts, which it would fetch: a picture asks nothing of the network.
SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


@dataclass(frozen=True)
class Picture:
    """One picture: what has to be so beforehand, and the command whose output it shows."""

    name: str  # of the file, without .svg
    says: str  # for those who do not see it
    prepare: Callable[[Clone, Course], None]
    command: tuple[str, ...]
    exit_code: int


def _half_done(clone: Clone, course: Course) -> None:
    """Day 1.1 as it may be after an hour: two tasks right, one with a mistake in it, one not begun."""
    day = course.day("1.1")
    mistake = next(m for m in day.task(3).misconceptions if m.id == "no-scale")
    scratch.write_tasks(clone, course, day, {1, 2, 3}, mistake)


def _done(clone: Clone, course: Course) -> None:
    scratch.write_tasks(clone, course, course.day("1.1"), {1, 2, 3, 4})


def _on_the_way(clone: Clone, course: Course) -> None:
    """A clone with a log: the first day passed at the second try, a hint taken on the next."""
    _half_done(clone, course)
    _run(clone, ("day1.1",))
    _done(clone, course)
    _run(clone, ("day1.1",))
    _run(clone, ("hint", "day1.2"))


PICTURES = (
    Picture(
        "failing", "A grading that fails: the check, what was expected, the line", _half_done, ("day1.1",), 1
    ),
    Picture("passing", "A grading that passes: four tasks, 67 checks", _done, ("day1.1",), 0),
    Picture("list", "The overview of all days", _on_the_way, ("list",), 0),
)


def write(clone: Clone) -> list[str]:
    """Make every picture; the paths of those that changed."""
    changed = []
    for picture, svg in _all(clone):
        path = clone.root / FOLDER / f"{picture.name}.svg"
        path.parent.mkdir(exist_ok=True)
        if not path.is_file() or comparable(path.read_text(encoding="utf-8")) != comparable(svg):
            path.write_text(svg, encoding="utf-8")
            changed.append(clone.relative(path))
    return changed


def differs(clone: Clone) -> list[str]:
    """One sentence for each picture that is not what its command shows, with the first line that is other."""
    problems = []
    for picture, svg in _all(clone):
        path = clone.root / FOLDER / f"{picture.name}.svg"
        kept = path.read_text(encoding="utf-8") if path.is_file() else ""
        old, new = comparable(kept), comparable(svg)
        if old != new:
            lines = zip(old.splitlines(), new.splitlines(), strict=False)
            line = next((f": {b!r}, not {a!r}" for a, b in lines if a != b), "")
            shown = " ".join(picture.command)
            problems.append(f"{clone.relative(path)} is not what tinyllm-grade {shown} shows now{line}")
    return problems


def comparable(svg: str) -> str:
    """The text of a picture, a line a line, and its colours; numbers with a decimal point as "#"."""
    shown: dict[str, list[str]] = {}
    for kind, top, text in re.findall(r'<text class="([^"]*)"[^>]* y="([^"]*)"[^>]*>([^<]*)</text>', svg):
        shown.setdefault(top, []).append(f"{kind.rpartition('-')[2]}|{text.replace('&#160;', ' ')}")
    colours = re.findall(r"-r\d+ \{[^}]*\}", svg)
    text = "\n".join([*("".join(parts) for parts in shown.values()), *colours])
    return re.sub(r"\d+\.\d+(e-\d+)?", "#", text)


def _all(clone: Clone) -> Iterator[tuple[Picture, str]]:
    for picture in PICTURES:
        with scratch.clone_of(clone) as copy:
            picture.prepare(copy, catalog.load(copy))
            output, code = _run(copy, picture.command)
            if code != picture.exit_code:
                raise EnvironmentFault(
                    f"For the picture '{picture.name}', tinyllm-grade {' '.join(picture.command)} ended with "
                    f"exit code {code}, not {picture.exit_code}:\n{output}"
                )
            yield picture, svg_of(picture, masked(output, copy.root))


def _run(clone: Clone, command: tuple[str, ...]) -> tuple[str, int]:
    """What a command writes to a terminal of the fixed width, and its exit code."""
    return scratch.run(clone, *command, environment=FIXED)


def masked(output: str, root: Path) -> list[str]:
    """The lines that are left on the terminal, without what differs from run to run."""
    kept = []
    for line in terminal.lines(output):
        line = line.replace(str(root), "~/tinyllm")
        line = re.sub(r"\b\d+\.\d s\b", "0.6 s", line)
        kept.append(re.sub(r"\b(under 1|\d+) min\b", "under 1 min", line))
    while kept and not kept[-1]:
        kept.pop()
    while kept and not kept[0]:
        kept.pop(0)
    return kept


def svg_of(picture: Picture, lines: list[str]) -> str:
    """A picture of a terminal with a prompt, the command, and these lines."""
    from rich.ansi import AnsiDecoder
    from rich.console import Console
    from rich.text import Text

    console = Console(
        file=io.StringIO(), record=True, width=WIDTH, force_terminal=True, color_system="truecolor",
        legacy_windows=False, _environ={},
    )  # fmt: skip
    command = f"tinyllm-grade {' '.join(picture.command)}"
    console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
    decoder = AnsiDecoder()
    for line in lines:
        console.print(decoder.decode_line(line), soft_wrap=True, highlight=False)
    svg = console.export_svg(title=command, code_format=SVG, unique_id=f"tinyllm-{picture.name}")
    return re.sub(r"[ \t]+\n", "\n", svg)
