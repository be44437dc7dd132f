"""Where a named function, class or method stands in a source file, in a broken file too.

Python symbols are found in the syntax tree; a file that does not parse is searched by indentation, so
that half-written code can still be shown beside the reference. C++ and Metal sources mark a task's code
with `// [task 2` ... `// task 2]`.
"""

from __future__ import annotations

import ast
import functools
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Segment:
    """Lines `start` to `end` of a file, 1-based and inclusive; `text` has no newline at its end."""

    start: int
    end: int
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")


def split_lines(source: str) -> list[str]:
    """The lines as Python counts them: form feeds and Unicode separators do not end a line."""
    return re.split(r"\r\n|\r|\n", source.removeprefix("\ufeff"))


def segment(source: str, name: str) -> Segment | None:
    """The lines that define `name` ("softmax", "RoPE.__call__"), or None when there is no such symbol.

    Decorators and the comment lines directly above belong to it, and so do comments indented below its
    last statement. Of several definitions it is the last, which is the one that Python uses.
    """
    lines = split_lines(source)
    tree = _parse("\n".join(lines))
    found = _search(lines, name) if tree is None else _find(tree, name)
    if found is None:
        return None
    first, last = found
    while first > 1 and lines[first - 2].lstrip().startswith("#"):
        first -= 1
    return _cut(lines, first, _with_trailing_comments(lines, found[0], last))


def regions(source: str, task: int) -> list[Segment]:
    """The parts marked `// [task N` ... `// task N]`, markers included, in the file's order.

    A region whose end mark is missing reaches to the next begin mark or to the end of the file.
    """
    lines = split_lines(source)
    found, start = [], 0
    for number, line in enumerate(lines, 1):
        begins = re.match(r"\s*//\s*\[\s*task\s+(\d+)\b", line)
        ends = re.match(r"\s*//\s*task\s+(\d+)\s*\]", line)
        if start and (begins or (ends and int(ends[1]) == task)):
            found.append(_cut(lines, start, number - 1 if begins else number))
            start = 0
        if begins and int(begins[1]) == task:
            start = number
    if start:
        found.append(_cut(lines, start, len(lines)))
    return found


def is_stub(text: str) -> bool:
    """Whether every function in a segment still raises NotImplementedError and does nothing else."""
    tree = _parse("if True:\n" + text if text[:1] in (" ", "\t") else text)
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)] if tree else []
    return bool(functions) and all(_only_raises(f) for f in functions)


def is_empty_region(text: str) -> bool:
    """Whether a marked region is a stub's: nothing but comments and the line that says so."""
    inner = [line.strip() for line in text.split("\n")]
    return all(not line or line.startswith(("//", "throw NotWritten(", "NOT_WRITTEN(")) for line in inner)


def _only_raises(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    body = function.body
    if ast.get_docstring(function, clean=False) is not None:
        body = body[1:]
    if len(body) != 1 or not isinstance(body[0], ast.Raise):
        return False
    error = body[0].exc
    if isinstance(error, ast.Call):
        error = error.func
    return isinstance(error, ast.Name) and error.id == "NotImplementedError"


@functools.lru_cache(maxsize=8)  # a file is asked for each of its symbols
def _parse(source: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # learners' invalid escapes are not this program's to report
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _cut(lines: list[str], first: int, last: int) -> Segment:
    return Segment(first, last, "\n".join(lines[first - 1 : last]))


# ---- in the syntax tree


def _find(tree: ast.Module, name: str) -> tuple[int, int] | None:
    node: ast.AST = tree
    for part in name.split("."):
        named = [n for n in _statements(getattr(node, "body", [])) if part in _names(n)]
        if not named:
            return None
        node = named[-1]
    decorators = getattr(node, "decorator_list", [])
    return min(n.lineno for n in (node, *decorators)), node.end_lineno


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a scope, those under `if`, `try`, `with` and the like among them."""
    for statement in body:
        yield statement
        if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
            continue
        for part in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(statement, part, []))
        for handler in getattr(statement, "handlers", []):
            yield from _statements(handler.body)


def _names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        return {statement.name}
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    return {t.id for t in targets if isinstance(t, ast.Name)}


def _with_trailing_comments(lines: list[str], first: int, last: int) -> int:
    """`last`, moved down over comments that are indented deeper than the definition."""
    depth = _indent(lines[first - 1])
    for number in range(last + 1, len(lines) + 1):
        line = lines[number - 1]
        if line.lstrip().startswith("#") and _indent(line) > depth:
            last = number
        elif line.strip():
            break
    return last


# ---- by indentation, for files that do not parse


HEAD = re.compile(r"[ \t]*(?:async[ \t]+def|def|class)[ \t]+(\w+)")


def _search(lines: list[str], name: str) -> tuple[int, int] | None:
    quoted = _quoted(lines)
    scope, last = 0, len(lines)
    for part in name.split("."):
        found = 0
        for number in range(scope + 1, last + 1):
            head = None if quoted[number - 1] else HEAD.match(lines[number - 1])
            if head and head[1] == part and _belongs(lines, quoted, number, scope):
                found = number
        if not found:
            return None
        scope, last = found, _block_end(lines, quoted, found, last)
    return _first_decorator(lines, scope), last


def _belongs(lines: list[str], quoted: list[bool], number: int, scope: int) -> bool:
    """Whether the definition at line `number` stands in `scope` (a line, 0 for the module) itself, not in
    a function or class of it."""
    depth = _indent(lines[number - 1])
    for above in range(number - 1, scope, -1):
        line = lines[above - 1]
        if quoted[above - 1] or not line.strip() or line.lstrip().startswith("#") or _indent(line) >= depth:
            continue
        if HEAD.match(line):
            return False
        depth = _indent(line)
    return scope == 0 or _indent(lines[scope - 1]) < depth


def _block_end(lines: list[str], quoted: list[bool], first: int, limit: int) -> int:
    """The last line of the block that the line `first` opens, without blank lines and comments after it."""
    depth, end, brackets = _indent(lines[first - 1]), first, 0
    for number in range(first, limit + 1):
        line, text = lines[number - 1], lines[number - 1].strip()
        if not text or (text.startswith("#") and not quoted[number - 1]):
            continue
        # A closing bracket at the margin ends a signature over several lines, not the block.
        closing = brackets > 0 and text[0] in ")]}"
        if number > first and _indent(line) <= depth and not quoted[number - 1] and not closing:
            break
        end = number
        brackets += sum(text.count(c) for c in "([{") - sum(text.count(c) for c in ")]}")
    return end


def _first_decorator(lines: list[str], first: int) -> int:
    """The line where the decorators above a definition begin; `first` itself when it has none."""
    depth = _indent(lines[first - 1])
    above = first - 1
    while above >= 1 and lines[above - 1].strip():
        line = lines[above - 1]
        if _indent(line) == depth and line.lstrip().startswith("@"):
            first = above
        elif _indent(line) <= depth and line.lstrip()[0] not in ")]}#":
            break
        above -= 1
    return first


def _quoted(lines: list[str]) -> list[bool]:
    """For each line whether it begins inside a triple-quoted string.

    A string that is never closed is taken for one that ends on its first line: the rest is code again.
    """
    inside, quote, opened = [], "", 0
    for line in lines:
        inside.append(bool(quote))
        before, quote = quote, _open_quote(line, quote)
        if quote and not before:
            opened = len(inside)
    return inside[:opened] + [False] * (len(inside) - opened) if quote else inside


def _open_quote(line: str, quote: str) -> str:
    """The triple quote that is open after `line`, given the one open before it ("" for none)."""
    for mark in re.findall(r'"""|\'\'\'|#', line):
        if not quote and mark == "#":
            return ""
        if mark == quote:
            quote = ""
        elif not quote:
            quote = mark
    return quote


def _indent(line: str) -> int:
    expanded = line.expandtabs(8)
    return len(expanded) - len(expanded.lstrip())
