"""Prints a comparison: the table by layer and operation, the first that differs, and what to type next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from .comparing import Comparison, Row, State
from .render import Screen

SIGN = {
    State.AGREES: "✓",
    State.FIRST: "✗",
    State.DIFFERS: "~",
    State.NOT_CALLED: "-",
    State.NOT_REACHED: "-",
}
ASCII_SIGN = {"✓": "+", "✗": "x"}
STYLE = {State.FIRST: "bold red", State.DIFFERS: "yellow", State.NOT_REACHED: "dim", State.NOT_CALLED: "dim"}
SHAPE = 18  # columns
NUMBER = 12
KEPT_PRINTS = 5  # lines at each end


def show(screen: Screen, found: Comparison) -> None:
    """Everything about one comparison."""
    screen.line()
    screen.line(f"{found.day}  {found.title}", "bold")
    if any(r.state is not State.NOT_REACHED for r in found.rows):
        about = f"{found.solution} beside reference: {found.model}, {found.tokens} tokens, {found.dtype}"
        screen.paragraph(about, "dim")
        screen.line()
        _table(screen, found)
        screen.line()
        screen.paragraph(_meaning(found), "dim")
    if found.prints.strip():
        lines = found.prints.strip().splitlines()
        kept = lines if screen.verbose else lines[-KEPT_PRINTS:]
        screen.line()
        screen.labelled("printed", "\n".join(kept), indent=2)
    for finding, style in ((found.fault, "bold red"), (found.stop, "bold red")):
        if finding is not None:
            screen.line()
            screen.paragraph(finding.title, style)
            for label, text in finding.details:
                screen.labelled(label, text, "cyan" if label == "" else None, indent=2)
            if finding is (found.fault or found.stop):
                screen.labelled("next", finding.next_step, "bold", indent=2)
    if found.exit_code == 0:
        count = sum(r.state is State.AGREES for r in found.rows)
        screen.line()
        screen.paragraph(f"No operation differs: {count} agree, in {found.layers} layers.", "bold green")


def _meaning(found: Comparison) -> str:
    """What the numbers are, and what counts as different."""
    text = (
        "Difference: the largest between the two passes, as a share of the largest element. An operation is "
        "the first to differ when the reference, given the inputs that yours got, returns something further "
        f"away than {found.tolerance:.0e} ({found.roundoffs} roundoffs of {found.dtype}), or another shape "
        "or dtype."
    )
    if found.fault is not None:
        text += " ~ differs as well, because what comes before it does."
    return text


def _table(screen: Screen, found: Comparison) -> None:
    _line(screen, "  operation", "shape", "difference", "dim")
    reached = [r for r in found.rows if screen.verbose or r.state is not State.NOT_REACHED]
    groups = [(name, list(rows)) for name, rows in groupby(reached, key=lambda r: r.section)]
    for folded, group in _folded(groups, open_all=screen.verbose):
        if folded:
            _summary(screen, folded, group)
            continue
        name, rows = group[0]
        rest: list[Row] = []
        if name and not name.startswith("layer "):
            _line(screen, f"  {name}", "", "", "dim")
            if not screen.verbose:  # one weight after the other: the first one says it
                rest = [r for r in rows if r.state is not State.FIRST]
                rows = [r for r in rows if r.state is State.FIRST]
        for row in rows:
            _row(screen, row)
        if rest:
            _summary(screen, _kind(rest), [("the others", rest)])
    if left := len(found.rows) - len(reached):
        _line(screen, f"- {_many(left)} not reached", "", "", "dim")


Group = tuple[str, list[Row]]


def _folded(groups: Sequence[Group], *, open_all: bool) -> Iterator[tuple[str, list[Group]]]:
    """Neighbouring sections that are told in one line, with its kind; the others one by one, with "".

    Open are the section with the first difference and what stands in no layer.
    """

    def kind(group: Group) -> str:
        name, rows = group
        opened = open_all or not name or any(r.state is State.FIRST for r in rows)
        return "" if opened else _kind(rows)

    for (what, _), some in groupby(
        groups, key=lambda g: (kind(g), g[0] if not g[0].startswith("layer ") else "")
    ):
        if what:
            yield what, list(some)
        else:
            yield from (("", [group]) for group in some)


def _summary(screen: Screen, kind: str, groups: Sequence[Group]) -> None:
    """One line: "layers 1 to 3: 54 operations agree"."""
    names = [name for name, _ in groups]
    title = names[0] if len(names) == 1 else f"layers {names[0].split()[1]} to {names[-1].split()[1]}"
    rows = [r for _, some in groups for r in some]
    sign = State.AGREES if kind == "agree" else State.DIFFERS
    largest = max((r.difference for r in rows if r.difference is not None), default=None)
    number = "" if largest is None else _number(largest)
    differing = sum(r.state is State.DIFFERS for r in rows)
    what = f"{differing} of {_many(len(rows))} differ" if kind == "differ" else f"{_many(len(rows))} agree"
    _line(screen, f"{_sign(screen, sign)} {title}: {what}", "", number, STYLE.get(sign))


def _row(screen: Screen, row: Row) -> None:
    remark = row.remark or (_number(row.difference) if row.difference is not None else "")
    if row.state in (State.NOT_CALLED, State.EXTRA, State.NOT_REACHED):
        remark = row.state.value
    _line(
        screen,
        f"{_sign(screen, row.state)} {'  ' * row.depth}{row.label}",
        row.shape,
        remark,
        STYLE.get(row.state),
    )


def _line(screen: Screen, name: str, shape: str, number: str, style: Any) -> None:
    room = screen.width - SHAPE - NUMBER - 4
    if not shape:
        room += SHAPE + 1
    name = name if len(name) <= room else name[: room - 3] + "..."
    shape = shape if len(shape) <= SHAPE else shape[: SHAPE - 3] + "..."
    middle = f" {shape:<{SHAPE}}" if shape else ""
    screen.line(f"  {name:<{room}}{middle} {number:>{NUMBER}}".rstrip(), style)


def _kind(rows: Sequence[Row]) -> str:
    return "differ" if any(r.state is State.DIFFERS for r in rows) else "agree"


def _many(count: int) -> str:
    return f"{count} operation{'s' * (count != 1)}"


def _sign(screen: Screen, state: State) -> str:
    sign = SIGN.get(state, " ")
    return sign if screen.unicode else ASCII_SIGN.get(sign, sign)


def _number(value: float) -> str:
    return f"{value:.2g}" if value == 0 or value >= 0.01 else f"{value:.0e}"
