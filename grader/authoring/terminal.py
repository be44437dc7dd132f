"""What stands on a terminal after a program has written to it: lines with their colours, spinners gone.

Knows what rich's live displays write: carriage return, cursor up, erasing, colours. Other codes are left out.
"""

from __future__ import annotations

import re

_CODE = re.compile(r"\x1b\[(?P<args>[0-9;?]*)(?P<kind>[A-Za-z])|\x1b\].*?(?:\x07|\x1b\\)|\x1b[=>78]")
_Cell = tuple[str, str]  # a character, and the colour codes it stands under


def lines(written: str) -> list[str]:
    """The lines of the screen from top to bottom, each with its own colour codes and no others."""
    rows: list[list[_Cell]] = [[]]
    row = column = 0
    style = ""
    at = 0
    while at < len(written):
        code = _CODE.match(written, at)
        if code is not None:
            at = code.end()
            kind, args = code["kind"], code["args"] or ""
            count = int(args) if args.isdecimal() else 1
            if kind == "m":
                style = "" if args in ("", "0") else style + code[0]
            elif kind == "A":
                row = max(row - count, 0)
            elif kind == "B":
                row += count
            elif kind == "K":
                _row(rows, row)[column if args in ("", "0") else 0 :] = []
            elif kind == "G":
                column = count - 1
            continue
        sign = written[at]
        at += 1
        if sign == "\n":
            row, column = row + 1, 0
        elif sign == "\r":
            column = 0
        elif sign >= " ":
            cells = _row(rows, row)
            cells += [(" ", "")] * (column - len(cells))
            cells[column : column + 1] = [(sign, style)]
            column += 1
    return [_joined(cells) for cells in rows]


def _row(rows: list[list[_Cell]], number: int) -> list[_Cell]:
    while len(rows) <= number:
        rows.append([])
    return rows[number]


def _joined(cells: list[_Cell]) -> str:
    parts, style = [], ""
    for sign, its in cells:
        if its != style:
            parts.append(("\x1b[0m" if style else "") + its)
            style = its
        parts.append(sign)
    return "".join(parts).rstrip() + ("\x1b[0m" if style else "")
