"""Prints a trace: each line of the function, and under it what it made."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from .render import Screen
from .tracing import Trace

NUMBER = 5  # columns of a line number
MOST_NAME, MOST_SHAPE, DTYPE = 16, 18, 8


def show(screen: Screen, found: Trace) -> None:
    """Everything about one trace."""
    screen.line()
    screen.paragraph(f"{found.day.name}, task {found.task.id}: {found.task.title}", "bold")
    screen.labelled("check", found.check + (": passes" if found.passes else ": fails"), indent=2)
    place = f"{found.function}, {found.place}" if found.place else found.function
    screen.labelled("followed", place, indent=2)
    if found.native:
        screen.paragraph(
            "It is written in C++: what went in and what came out is all there is to see.", indent=2
        )
    screen.line()
    parted = found.result not in ("", "same")
    names = [len(r["name"]) for r in found.rows if "name" in r]
    room = min(max([*names, len("reference:")]), MOST_NAME)
    for row in found.rows:
        _row(screen, row, room, parted=parted)
    if found.prints.strip():
        screen.line()
        screen.printed(found.prints)
    screen.line()
    _summary(screen, found, parted=parted)


def _row(screen: Screen, row: Mapping[str, Any], room: int, *, parted: bool) -> None:
    depth = "  " * row.get("depth", 0)
    match row["kind"]:
        case "line":
            text = f"{row['line']:>{NUMBER}}  {depth}{row['source']}"
            screen.line(_cut(text, screen.width), "cyan")
        case "note":
            screen.line(f"{'':>{NUMBER}}  {depth}({row['text']})", "dim")
        case "part":
            screen.line()
            screen.line(_cut(f"  {row['text']}", screen.width), "bold")
        case "error":
            for i, part in enumerate(_wrapped(row["text"], screen.width - NUMBER - 9)):
                screen.line(f"{'!' if i == 0 else ' ':>{NUMBER}}    {part}", "bold red")
        case kind:
            label = {"given": "given", "operand": "with"}.get(kind, "")
            mark = "!" if row.get("first") == "nan" else "=" if row.get("same") else label
            style = "bold red" if mark == "!" else "dim" if kind == "given" else None
            screen.line(_cut(f"{mark:>{NUMBER}}    {_value(row, row['name'], room)}", screen.width), style)
            if parted and "theirs" in row:
                screen.line(
                    _cut(f"{'':>{NUMBER}}    {_value(row['theirs'], 'reference:', room)}", screen.width),
                    "yellow",
                )


def _value(row: Mapping[str, Any], name: str, room: int) -> str:
    if not row["shape"]:
        return f"{name:<{room}} {'=' if name != 'reference:' else ''} {row['text']}".rstrip()
    shape = row["shape"]
    return f"{name:<{room}} {shape:<{MOST_SHAPE}} {row['dtype']:<{DTYPE}} {row['range']}".rstrip()


def _summary(screen: Screen, found: Trace, *, parted: bool) -> None:
    if found.same:
        screen.paragraph("= the reference makes an array with the same values.", "dim")
    if "nan" in found.odd:
        screen.paragraph(f"! the first nan: {found.odd['nan']}", "bold red")
    if "inf" in found.odd:
        screen.paragraph(f"the first infinity: {found.odd['inf']}")
    if parted:
        if any("theirs" in r for r in found.rows):
            screen.paragraph("reference: its array of that name, which may mean something else there.", "dim")
        if found.same and found.parted:
            screen.paragraph(f"The first array that the reference does not make: {found.parted}.", "bold")
        screen.paragraph(f"The result is not the reference's: {found.result}.", "bold")
    elif found.result == "same" and not found.passes:
        screen.paragraph("This call's result is the reference's.")
    if found.passes:
        screen.paragraph("The check passes.", "green")
    else:
        screen.paragraph(f"The check fails: {found.why}", "red")
        name, task = found.day.name, found.task.id
        screen.labelled("next", f"tinyllm-grade hint {name} --task {task}", "bold", indent=2)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) or [""]
