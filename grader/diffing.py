"""The learner's code beside the reference, one symbol of a task at a time. Prints nothing itself.

Both trees have the same signatures and docstrings, so what differs is the solution. A stub that was not
started, or is missing, has nothing to compare: the reference is then shown once, alone.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby, pairwise, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from . import symbols
from .catalog import Day, Symbol, Task
from .clone import Clone
from .errors import EnvironmentFault, SpecError
from .symbols import Segment

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

WIDE = 110  # columns from which two versions stand side by side
CONTEXT = 3  # unchanged lines around a change in a unified diff
ALIKE = 0.5  # share of common words from which two lines are one line, edited


class Status(StrEnum):
    SAME = "same"
    DIFFERENT = "different"
    NOT_STARTED = "not started"
    MISSING = "missing"  # no such symbol, or no such file, in the learner's tree


@dataclass(frozen=True)
class SymbolDiff:
    """One symbol in both trees. Line numbers are in the segments, which know their place in the file."""

    task: int
    symbol: Symbol
    status: Status
    learner: Segment | None  # None when missing
    reference: Segment

    @property
    def learner_path(self) -> str:
        return f"exercises/{self.symbol.module}"

    @property
    def reference_path(self) -> str:
        return f"reference/{self.symbol.module}"


Span = tuple[int, int]  # columns from, up to


@dataclass(frozen=True)
class Row:
    """One line of a side-by-side view.

    mark: " " the same on both sides, "|" edited, "<" only the learner's, ">" only the reference's. A side
    without a line has no number. `left_changes` and `right_changes` are the columns that an edit changed.
    """

    left_no: int | None
    left: str
    mark: str
    right_no: int | None
    right: str
    left_changes: tuple[Span, ...] = ()
    right_changes: tuple[Span, ...] = ()


# ---- finding what to compare


def compare(clone: Clone, day: Day, task: int | None = None) -> list[SymbolDiff]:
    """Every symbol of the day's tasks, or of one task, in both trees.

    Raises UsageError for an unknown task, SpecError when the reference lacks a symbol that the day lists.
    """
    tasks = day.tasks if task is None else (day.task(task),)
    return [diff for t in tasks for diff in _compare_task(clone, day, t)]


def _compare_task(clone: Clone, day: Day, task: Task) -> Iterator[SymbolDiff]:
    marked: list[str] = []  # sources of marked regions come up once, however many symbols they have
    for symbol in task.symbols:
        learner = _read(clone.exercises / symbol.module)
        reference = _read(clone.reference / symbol.module)
        if reference is None:
            raise SpecError(f"reference/{symbol.module} is missing; {day.name} needs it.")
        if not symbol.module.endswith(".py"):
            if symbol.module not in marked:
                marked.append(symbol.module)
                yield from _compare_regions(day, task, symbol.module, learner or "", reference)
            continue
        theirs = symbols.segment(reference, symbol.name)
        if theirs is None:
            raise SpecError(f"reference/{symbol.module} has no {symbol.name}; {day.name} lists it.")
        ours = symbols.segment(learner, symbol.name) if learner is not None else None
        stub = ours is not None and symbols.is_stub(ours.text)
        yield SymbolDiff(task.id, symbol, _status(ours, theirs, stub), ours, theirs)


def _compare_regions(day: Day, task: Task, module: str, learner: str, reference: str) -> Iterator[SymbolDiff]:
    theirs = symbols.regions(reference, task.id)
    if not theirs:
        raise SpecError(f"reference/{module} has no region marked [task {task.id}; {day.name} lists it.")
    names = [s.name for s in task.symbols if s.module == module]
    if len(names) != len(theirs):
        names = [f"task {task.id}, part {n}" for n in range(1, len(theirs) + 1)]
    ours = symbols.regions(learner, task.id)[: len(theirs)]
    for name, own, their in zip_longest(names, ours, theirs):
        stub = own is not None and symbols.is_empty_region(own.text)
        yield SymbolDiff(task.id, Symbol(module, name), _status(own, their, stub), own, their)


def _status(learner: Segment | None, reference: Segment, stub: bool) -> Status:
    if learner is None:
        return Status.MISSING
    if _bare(learner) == _bare(reference):
        return Status.SAME
    return Status.NOT_STARTED if stub else Status.DIFFERENT


def _read(path: Path) -> str | None:
    """A source file's text, whatever its bytes; None when there is no such file."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return None


def _bare(segment: Segment | None) -> list[str]:
    """The lines without what nobody sees at their ends."""
    return [line.rstrip() for line in segment.lines] if segment else []


# ---- views of one comparison


def unified(diff: SymbolDiff) -> str:
    """The change from the learner's lines to the reference's, as `diff -u` writes it, with the line numbers
    of both files; "" when they are the same."""
    left, right = _bare(diff.learner), _bare(diff.reference)
    first_left = diff.learner.start if diff.learner else 1
    out: list[str] = []
    for group in _matcher(left, right).get_grouped_opcodes(CONTEXT):
        (_, i1, _, j1, _), (_, _, i2, _, j2) = group[0], group[-1]
        here = _hunk(first_left + i1, i2 - i1), _hunk(diff.reference.start + j1, j2 - j1)
        out.append(f"@@ -{here[0]} +{here[1]} @@")
        for tag, a, b, c, d in group:
            out += [f" {line}" for line in left[a:b]] if tag == "equal" else []
            out += [f"-{line}" for line in left[a:b]] if tag != "equal" else []
            out += [f"+{line}" for line in right[c:d]] if tag != "equal" else []
    return "\n".join([f"--- {diff.learner_path}", f"+++ {diff.reference_path}", *out, ""]) if out else ""


def _hunk(start: int, count: int) -> str:
    return f"{start if count else start - 1},{count}"  # an empty side is named by the line before it


def rows(diff: SymbolDiff) -> list[Row]:
    """The two versions line by line, edited lines facing each other."""
    left, right = _bare(diff.learner), _bare(diff.reference)
    pairs: list[tuple[int | None, int | None]] = []
    for tag, a, b, c, d in _matcher(left, right).get_opcodes():
        if tag == "equal":
            pairs += zip(range(a, b), range(c, d), strict=True)
        else:
            pairs += _paired(left, right, range(a, b), range(c, d))
    first_left = diff.learner.start if diff.learner else 1
    return [_row(left, right, i, j, first_left, diff.reference.start) for i, j in pairs]


def stat(diffs: Sequence[SymbolDiff]) -> list[tuple[str, int, int]]:
    """(symbol, lines that only the reference has, lines that only the learner has) for each."""
    out = []
    for diff in diffs:
        left, right = _bare(diff.learner), _bare(diff.reference)
        kept = sum(block.size for block in _matcher(left, right).get_matching_blocks())
        out.append((str(diff.symbol), len(right) - kept, len(left) - kept))
    return out


def _matcher(left: list[str], right: list[str]) -> difflib.SequenceMatcher[str]:
    # Blank lines are everywhere: a match may not begin with one.
    return difflib.SequenceMatcher(lambda line: not line.strip(), left, right, autojunk=False)


def _row(
    left: list[str], right: list[str], i: int | None, j: int | None, first_left: int, first_right: int
) -> Row:
    if i is None:
        return Row(None, "", ">", first_right + j, right[j])
    if j is None:
        return Row(first_left + i, left[i], "<", None, "")
    if left[i] == right[j]:
        return Row(first_left + i, left[i], " ", first_right + j, right[j])
    changed = _changed(left[i], right[j])
    return Row(first_left + i, left[i], "|", first_right + j, right[j], *changed)


def _paired(left: list[str], right: list[str], a: range, b: range) -> Iterator[tuple[int | None, int | None]]:
    """Two replaced blocks in step: the pairing, in order, with the most likeness between partners."""
    if len(a) * len(b) > 10_000:  # too long to weigh every pair: line by line
        yield from zip_longest(a, b)
        return
    words = {("<", i): _words(left[i]) for i in a} | {(">", j): _words(right[j]) for j in b}
    # best[x][y]: the likeness that the blocks from their x-th and y-th line on can reach
    best = [[0.0] * (len(b) + 1) for _ in range(len(a) + 1)]
    alike: dict[tuple[int, int], float] = {}
    for x in reversed(range(len(a))):
        for y in reversed(range(len(b))):
            likeness = _likeness(words["<", a[x]], words[">", b[y]])
            alike[x, y] = likeness if likeness >= ALIKE else -1.0
            best[x][y] = max(best[x + 1][y], best[x][y + 1], best[x + 1][y + 1] + alike[x, y])
    x = y = 0
    while x < len(a) and y < len(b):
        if alike[x, y] > 0 and best[x][y] == best[x + 1][y + 1] + alike[x, y]:
            yield a[x], b[y]
            x, y = x + 1, y + 1
        elif best[x][y] == best[x + 1][y]:
            yield a[x], None
            x += 1
        else:
            yield None, b[y]
            y += 1
    yield from ((i, None) for i in a[x:])
    yield from ((None, j) for j in b[y:])


def _words(line: str) -> Counter[str]:
    return Counter(re.findall(r"\w+|[^\w\s]", line))


def _likeness(a: Counter[str], b: Counter[str]) -> float:
    """The share of words that two lines have in common, 0 to 1."""
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 0.0


def _changed(left: str, right: str) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """The columns that differ between two versions of a line, word by word."""
    a, b = (re.findall(r"\w+|\s+|[^\w\s]", line) for line in (left, right))
    spans: tuple[list[Span], list[Span]] = ([], [])
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        for side, parts, first, last in ((0, a, i1, i2), (1, b, j1, j2)):
            begin = len("".join(parts[:first]))
            end = begin + len("".join(parts[first:last]))
            spans[side].extend([(begin, end)] if end > begin else [])
    return tuple(spans[0]), tuple(spans[1])


# ---- showing them


def render(diffs: Sequence[SymbolDiff], *, width: int, colour: bool) -> str | Group:
    """All comparisons for a terminal of `width` columns: side by side from 110 on, else unified.

    With `colour` a rich renderable with highlighted syntax; without, a string that holds no escape code,
    whatever the sources hold. Pass width=80 for what is piped, to get a unified diff.
    """
    lines = [line for diff in diffs for line in _picture(_printable(diff), width, colour)]
    if not colour:
        return "\n".join([*(line.plain.rstrip() for line in lines[:-1]), ""])
    from rich.console import Group

    return Group(*lines)


def _picture(diff: SymbolDiff, width: int, colour: bool) -> Iterator[Text]:
    from rich.text import Text

    title = f"task {diff.task}  {diff.symbol.module}  {diff.symbol.name}: {SAYS[diff.status]}"
    yield Text(title, style="bold")
    if diff.status in (Status.NOT_STARTED, Status.MISSING):
        # Without colour it may be going to a file: lines stay whole, so that code can be copied.
        yield from _alone(diff.reference, _paint(diff, diff.reference, colour), width if colour else None)
    elif diff.status is Status.DIFFERENT and width >= WIDE:
        yield from _side_by_side(diff, width, colour)
    elif diff.status is Status.DIFFERENT:
        for line in unified(diff).rstrip("\n").split("\n"):
            yield Text(
                line, style=next((style for mark, style in UNIFIED.items() if line.startswith(mark)), "")
            )
    yield Text("")


SAYS = {
    Status.SAME: "the same as the reference",
    Status.DIFFERENT: "yours and the reference",
    Status.NOT_STARTED: "not started; the reference:",
    Status.MISSING: "missing in your file; the reference:",
}
UNIFIED = {"---": "bold", "+++": "bold", "@@": "cyan", "-": "red", "+": "green"}
MARKS = {" ": "", "|": "yellow", "<": "red", ">": "green"}


def _alone(segment: Segment, painted: list[Text], width: int | None) -> Iterator[Text]:
    """One version with its line numbers, folded to `width` columns if given."""
    digits = len(str(segment.end))
    for number, line in enumerate(painted, segment.start):
        pieces = [line] if width is None else _folded(line, max(20, width - digits - 1))
        for place, piece in enumerate(pieces):
            yield _numbered(number if place == 0 else None, digits).append_text(piece)


def _side_by_side(diff: SymbolDiff, width: int, colour: bool) -> Iterator[Text]:
    from rich.text import Text

    left, right = _paint(diff, diff.learner, colour), _paint(diff, diff.reference, colour)
    digits = len(str(max(diff.learner.end, diff.reference.end)))
    column = (width - 2 * (digits + 1) - 3) // 2  # two numbers with a space, and " mark "
    head = Text(" " * (digits + 1) + diff.learner_path[:column], style="dim")
    head.pad_right(digits + 1 + column + 3 + digits + 1 - len(head))
    yield head.append(diff.reference_path[:column])
    for row in _shortened(rows(diff)):
        if isinstance(row, int):
            yield Text(f"{'':>{digits}} ... {row} lines the same ...", style="dim")
            continue
        ours = left[row.left_no - diff.learner.start] if row.left_no else Text()
        theirs = right[row.right_no - diff.reference.start] if row.right_no else Text()
        for text, changes in ((ours, row.left_changes), (theirs, row.right_changes)):
            for begin, end in changes:
                text.stylize("bold underline", begin, end)
        folded = zip_longest(_folded(ours, column), _folded(theirs, column))
        for place, (a, b) in enumerate(folded):
            line = _numbered(row.left_no if place == 0 else None, digits)
            line.append_text(a or Text())
            line.pad_right(digits + 1 + column - line.cell_len)
            line.append(f" {row.mark} ", style=MARKS[row.mark])
            line.append_text(_numbered(row.right_no if place == 0 else None, digits))
            yield line.append_text(b or Text())


def _shortened(table: list[Row]) -> Iterator[Row | int]:
    """The rows, with the number of those left out in the middle of a long unchanged stretch (a docstring)."""
    for same, group in groupby(table, key=lambda row: row.mark == " "):
        stretch = list(group)
        if same and len(stretch) > 2 * CONTEXT + 2:
            yield from (*stretch[:CONTEXT], len(stretch) - 2 * CONTEXT, *stretch[-CONTEXT:])
        else:
            yield from stretch


def _numbered(number: int | None, digits: int) -> Text:
    """The beginning of a line: its number, or blanks for the continuation of a folded one."""
    from rich.text import Text

    line = Text(no_wrap=True, overflow="ignore")
    return line.append(f"{number if number else '':>{digits}} ", style="dim")


def _folded(line: Text, column: int) -> list[Text]:
    """A line in pieces of at most `column` cells; at least one piece."""
    from rich.cells import chop_cells

    pieces = chop_cells(line.plain, column) or [""]
    ends = [0]
    for piece in pieces[:-1]:
        ends.append(ends[-1] + len(piece))
    return [line[a:b] for a, b in pairwise([*ends, len(line.plain)])] if line.plain else [line]


def _paint(diff: SymbolDiff, segment: Segment, colour: bool) -> list[Text]:
    """A segment's lines, highlighted when there is colour."""
    from rich.text import Text

    lines = _bare(segment)
    if not colour:
        return [Text(line) for line in lines]
    from rich.syntax import Syntax

    lexer = "python" if diff.symbol.module.endswith(".py") else "cpp"
    # The terminal's own sixteen colours, so that light and dark themes both stay readable.
    code = Syntax("", lexer, theme="ansi_dark", background_color="default")
    painted = code.highlight("\n".join(lines)).split("\n", allow_blank=True)
    same = [text.plain for text in painted[: len(lines)]] == lines
    return list(painted[: len(lines)]) if same else [Text(line) for line in lines]


def _printable(diff: SymbolDiff) -> SymbolDiff:
    """The comparison with tabs expanded and control characters, escape codes among them, made visible."""
    shown = {code: 0x2400 + code for code in range(32) if code != 10} | {127: 0x2421}
    shown |= dict.fromkeys(range(128, 160), 0xFFFD)

    def clean(segment: Segment | None) -> Segment | None:
        if segment is None:
            return None
        lines = (line.expandtabs(4).translate(shown) for line in segment.lines)
        return replace(segment, text="\n".join(lines))

    return replace(diff, learner=clean(diff.learner), reference=clean(diff.reference))


# ---- handing them to another program


def difftool_commands(clone: Clone, day: Day) -> list[list[str]]:
    """One `git difftool` command for each of the day's modules, to be run in the clone's root."""
    commands = []
    for module in day.modules:
        learner = f"exercises/{module}" if (clone.exercises / module).is_file() else os.devnull
        pair = [learner, f"reference/{module}"]
        commands.append(["git", "difftool", "--no-index", "--no-prompt", "--", *pair])
    return commands


def difftool(clone: Clone, day: Day) -> None:
    """Show each of the day's modules beside the reference in the tool that git is configured to use.

    Raises EnvironmentFault when git is absent, no tool is configured, or the tool fails.
    """
    try:
        if not _configured_tool(clone):
            raise EnvironmentFault(
                "git has no diff tool configured.",
                next_step="git config --global diff.tool vimdiff   (git difftool --tool-help lists them)",
            )
        for command in difftool_commands(clone, day):
            done = subprocess.run(command, cwd=clone.root, check=False)
            if done.returncode not in (0, 1):  # 1: the files differ
                raise EnvironmentFault(f"git difftool ended with exit code {done.returncode}.")
    except FileNotFoundError:
        raise EnvironmentFault("git is not installed, or not on the PATH.") from None


def _configured_tool(clone: Clone) -> str:
    """The tool's name by git's own order: GIT_DIFF_TOOL, diff.tool, merge.tool; "" when none is set."""
    if tool := os.environ.get("GIT_DIFF_TOOL"):
        return tool
    for key in ("diff.tool", "merge.tool"):
        asked = ["git", "config", "--get", key]
        done = subprocess.run(asked, cwd=clone.root, capture_output=True, text=True, check=False)
        if tool := done.stdout.strip():
            return tool
    return ""
