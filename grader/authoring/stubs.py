"""exercises/ as generated from reference/ and the specs.

Edits are made on the source text at the places the syntax tree names, so everything that stays keeps its
comments and layout to the byte. Only the standard library is needed: `reset` calls `pristine` too.
"""

from __future__ import annotations

import ast
import difflib
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..catalog import Course
from ..clone import Clone
from ..errors import SpecError

SOURCES = (".py", ".cpp", ".h", ".metal")  # what a tree holds; everything else in reference/ is its own
NOT_COPIED = "models/"  # checkpoints that both trees load from reference/

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def pristine(clone: Clone, course: Course) -> dict[str, bytes]:
    """Every file of a fresh exercises/ tree: path relative to the tree ("week1/rope.py") -> its bytes.

    Raises SpecError, one line for each problem, when reference and specs do not fit together.
    """
    problems: list[str] = []
    owners = _owners(course)
    result: dict[str, bytes] = {}
    for relative in sorted(_source_files(clone.reference)):
        if course.is_reference_only(relative):
            continue
        path = clone.reference / relative
        if not path.name.startswith("__init__.") and relative not in owners and _belongs_to_a_day(relative):
            problems.append(f"reference/{relative}: no day's checkpoint.toml lists it in modules")
            continue
        try:
            result[relative] = _stub_of(relative, path.read_bytes(), owners.get(relative))
        except SpecError as error:
            problems.append(error.message)
    for relative, module in owners.items():
        if not (clone.reference / relative).is_file():
            problems.append(f"{module.spec}: modules: reference/{relative} does not exist")
    if problems:
        raise SpecError("\n".join(problems))
    return result


def stub(clone: Clone, course: Course, relative: str) -> bytes:
    """The stub of one file of the reference ("week1/rope.py"), whatever state the others are in.

    Raises SpecError.
    """
    try:
        data = (clone.reference / relative).read_bytes()
    except FileNotFoundError:
        raise SpecError(f"reference/{relative} does not exist") from None
    return _stub_of(relative, data, _owners(course).get(relative))


def write(clone: Clone, course: Course) -> list[str]:
    """Make exercises/ what `pristine` says. Overwrites it; returns the paths that were changed or removed."""
    wanted = pristine(clone, course)
    changed = []
    for relative, data in wanted.items():
        path = clone.exercises / relative
        if path.is_file() and path.read_bytes() == data:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        changed.append(relative)
    for relative in _source_files(clone.exercises) - set(wanted):
        (clone.exercises / relative).unlink()
        changed.append(relative)
    return sorted(changed)


def check(clone: Clone, course: Course) -> str:
    """A unified diff from exercises/ to a fresh generation; empty when they agree."""
    wanted = pristine(clone, course)
    parts = []
    for relative in sorted(_source_files(clone.exercises) | set(wanted)):
        path = clone.exercises / relative
        have = path.read_bytes() if path.is_file() else None
        want = wanted.get(relative)
        if have != want:
            parts.append(_difference(relative, have, want))
    return "".join(parts)


def _difference(relative: str, have: bytes | None, want: bytes | None) -> str:
    def lines(data: bytes | None) -> list[str]:
        return _lines((data or b"").decode("utf-8", errors="replace"))

    diff = difflib.unified_diff(
        lines(have),
        lines(want),
        fromfile=f"exercises/{relative}" if have is not None else "/dev/null",
        tofile=f"generated/{relative}" if want is not None else "/dev/null",
    )
    # An empty or differently encoded file has no lines to show; its name still has to be said.
    text = "".join(line if line.endswith("\n") else f"{line}\n" for line in diff)
    return text or f"exercises/{relative} differs from a fresh generation\n"


def _source_files(tree: Path) -> set[str]:
    found = {p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.suffix in SOURCES and p.is_file()}
    return {relative for relative in found if not relative.startswith(NOT_COPIED)}


def _belongs_to_a_day(relative: str) -> bool:
    return re.match(r"(week\d+|kernels)/", relative) is not None


# ---- who asks for what ----


@dataclass
class _Module:
    """What the specs say of one file of a tree."""

    spec: str  # the first spec that lists it, for messages
    day: str  # that spec's day id
    tasks: set[int]  # that day's task numbers
    asked: dict[str, str]  # symbol -> "day 1.3, task 2", the first task that lists it


def _owners(course: Course) -> dict[str, _Module]:
    owners: dict[str, _Module] = {}
    for day in course.days:
        for relative in day.modules:
            spec = f"checkpoints/{day.folder.name}/checkpoint.toml"
            owners.setdefault(relative, _Module(spec, day.id, {t.id for t in day.tasks}, {}))
        for task in day.tasks:
            for symbol in task.symbols:
                owners[symbol.module].asked.setdefault(symbol.name, f"day {day.id}, task {task.id}")
    return owners


def _stub_of(relative: str, data: bytes, module: _Module | None) -> bytes:
    if module is None:
        return data
    try:
        source = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"reference/{relative}: not UTF-8 ({error.reason})") from None
    if relative.endswith(".py"):
        return python_stub(source, module.asked, f"reference/{relative}").encode()
    return region_stub(source, module.day, module.tasks, f"reference/{relative}").encode()


# ---- Python ----


def python_stub(source: str, asked: dict[str, str], place: str) -> str:
    """`source` with the body of every asked symbol replaced by the exception that says whose turn it is.

    `asked` maps "softmax", "RoPE" or "RoPE.__call__" to "day 1.2, task 1". Top-level names that start with
    one underscore, and such methods of asked classes, are the solution's own and are left out with their
    comments. `place` names the file in errors. Raises SpecError.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise SpecError(f"{place}: does not parse: {error}") from None
    stubber = _PythonStubber(source, asked, place)
    stubber.top_level(tree)
    missing = [name for name in asked if name not in stubber.found]
    if missing:
        lines = (f"{place}: no function or class called {n}, which {asked[n]} asks for" for n in missing)
        raise SpecError("\n".join(lines))
    result = stubber.result()
    stubber.nothing_dangles(result)
    return result


class _PythonStubber:
    """Collects line edits while walking a module, then applies them from the bottom up."""

    def __init__(self, source: str, asked: dict[str, str], place: str) -> None:
        self.lines = _lines(source)
        self.asked = asked
        self.place = place
        self.found: set[str] = set()
        self.dropped: set[str] = set()  # top-level names that are left out
        self.dropped_methods: set[str] = set()
        self.edits: list[tuple[int, int, list[str]]] = []  # first and last line (1-based), the new lines
        self.colons = _header_colons(source)

    def top_level(self, tree: ast.Module) -> None:
        for node in tree.body:
            names = _bound_names(node)
            private = [n for n in names if _is_private(n) and n not in self.asked]
            if private:
                if len(private) != len(names):
                    self.fail(node, f"binds {', '.join(names)} together: bind the private ones on their own")
                self.dropped.update(private)
                self.drop(node)
            elif isinstance(node, FunctionNode):
                if node.name in self.asked:
                    self.found.add(node.name)
                    self.empty(node, node.name, self.asked[node.name])
            elif isinstance(node, ast.ClassDef):
                self.klass(node, node.name, None)

    def klass(self, node: ast.ClassDef, name: str, inherited: str | None) -> None:
        """Empty the asked methods of a class: all of them when the class itself is asked for."""
        whole = self.asked.get(name, inherited)
        if name in self.asked:
            self.found.add(name)
        if whole is None and not any(symbol.startswith(f"{name}.") for symbol in self.asked):
            return
        kept = 0
        for item in node.body:
            if not isinstance(item, FunctionNode | ast.ClassDef):
                kept += 1
                continue
            inner = f"{name}.{item.name}"
            if _is_private(item.name) and inner not in self.asked:
                self.dropped_methods.add(item.name)
                self.drop(item)
                continue
            kept += 1
            if isinstance(item, ast.ClassDef):
                self.klass(item, inner, whole)
                continue
            turn = self.asked.get(inner, whole)
            if inner in self.asked:
                self.found.add(inner)
            if turn is not None:
                self.empty(item, inner, turn)
        if not kept:
            self.fail(node, f"class {name} would be left empty: give it a docstring")

    def empty(self, node: FunctionNode, name: str, turn: str) -> None:
        """Replace everything after the header and the docstring by the exception."""
        first = node.body[0]
        is_docstring = ast.get_docstring(node, clean=False) is not None
        line, column = self.colons[node.lineno]
        indent = " " * (node.col_offset + 4)
        body = [f'{indent}raise NotImplementedError("{turn}: {name}")\n']
        if is_docstring and first.lineno > line:
            start = first.end_lineno + 1
        elif first.lineno > line:
            start = line + 1
        else:  # def f(x): ... on one line
            start = line
            body.insert(0, self.lines[line - 1][: column + 1] + "\n")
        self.edits.append((start, self.end_with_comments(node), body))

    def drop(self, node: ast.stmt) -> None:
        """Leave a statement out, with its decorators, the comment right above, and one of its two gaps."""
        first, last = _first_line(node), self.end_with_comments(node)
        while first > 1 and self.lines[first - 2].lstrip().startswith("#"):
            first -= 1
        self.edits.append((first, last, []))

    def end_with_comments(self, node: ast.stmt) -> int:
        """The last line of a block, counting comments below its last statement that are still inside it."""
        last = line = node.end_lineno
        if not isinstance(node, FunctionNode | ast.ClassDef):
            return last
        while line < len(self.lines):
            text = self.lines[line].rstrip("\r\n")
            stripped = text.lstrip()
            if stripped.startswith("#") and len(text) - len(stripped) > node.col_offset:
                last = line + 1
            elif stripped:
                break
            line += 1
        return last

    def result(self) -> str:
        lines = list(self.lines)
        for first, last, body in sorted(self.edits, key=lambda edit: edit[:2], reverse=True):
            before, after = first - 1, last
            if not body:  # of the gaps above and below a dropped statement, the wider one stays
                while before > 0 and not lines[before - 1].strip():
                    before -= 1
                while after < len(lines) and not lines[after].strip():
                    after += 1
                at_an_end = before == 0 or after == len(lines)
                body = [] if at_an_end else ["\n"] * max(first - 1 - before, after - last)
            lines[before:after] = body
        return "".join(lines)

    def nothing_dangles(self, result: str) -> None:
        """What stays must not use what was left out, or the stub would fail on import."""
        for node in ast.walk(ast.parse(result)):
            name = ""
            if isinstance(node, ast.Name) and node.id in self.dropped:
                name = node.id
            elif isinstance(node, ast.Attribute) and node.attr in self.dropped_methods:
                name = node.attr
            if name:
                raise SpecError(
                    f"{self.place} (line {node.lineno} of its stub): uses {name}, which the stub leaves out: "
                    "give it a public name or list it in a task"
                )

    def fail(self, node: ast.stmt, message: str) -> None:
        raise SpecError(f"{self.place}:{node.lineno}: {message}")


def _lines(source: str) -> list[str]:
    """Lines as Python counts them: str.splitlines also breaks at form feeds and Unicode separators."""
    return list(io.StringIO(source, newline="\n"))


def _header_colons(source: str) -> dict[int, tuple[int, int]]:
    """Line of each `def` -> (line, column) of the colon that ends its header."""
    colons: dict[int, tuple[int, int]] = {}
    start, depth = 0, 0
    for token in tokenize.generate_tokens(io.StringIO(source, newline="\n").readline):
        if token.type == tokenize.NAME and token.string == "def":
            start, depth = token.start[0], 0
        elif start and token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
            if token.string == ":" and depth == 0:
                colons[start] = token.start
                start = 0
    return colons


def _is_private(name: str) -> bool:
    return len(name) > 1 and name.startswith("_") and not name.startswith("__")


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)])


def _bound_names(node: ast.stmt) -> list[str]:
    """The names a top-level statement gives a value to; imports and blocks are not asked."""
    if isinstance(node, FunctionNode | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        targets = [node.target]
    else:
        return []
    return [
        n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    ]


# ---- C++ and Metal ----


def region_stub(source: str, day: str, tasks: set[int], place: str) -> str:
    """`source` with each part from `// [task 2` to `// task 2]` replaced by a line: whose turn it is."""
    return "".join(_outside_regions(source, day, tasks, place))


def _not_written(place: str, day: str, task: str, function: str) -> str:
    """The line that stands for a cut part. A C++ kernel throws when it runs; a GPU kernel cannot, so its
    launcher looks for the line."""
    path = Path(place)
    if path.suffix == ".metal":
        return f'NOT_WRITTEN("day {day}, task {task}: {function or path.stem}");  // write this part'
    return f'throw NotWritten("day {day}, task {task}: {path.stem}");  // write this part'


def _outside_regions(source: str, day: str, tasks: set[int], place: str) -> Iterator[str]:
    inside: str | None = None
    opened_at = 0
    function = ""  # the one that the line is in, if its header begins at the left edge
    for number, line in enumerate(_lines(source), start=1):
        opening = re.match(r"(\s*)//\s*\[task\s+(\d+)\b", line)
        closing = re.match(r"\s*//\s*task\s+(\d+)\]", line)
        header = re.match(r"(?!//)[A-Za-z_][\w:<> ]*?\b(\w+)\(", line)
        function = header[1] if header else function
        if opening:
            if inside is not None:
                raise SpecError(
                    f"{place}:{number}: task {opening[2]} begins inside the region of task {inside}"
                )
            inside, opened_at = opening[2], number
            if int(inside) not in tasks:
                raise SpecError(f"{place}:{number}: day {day} has no task {inside}")
            yield line
            yield f"{opening[1]}{_not_written(place, day, inside, function)}\n"
        elif closing:
            if closing[1] != inside:
                raise SpecError(f"{place}:{number}: task {closing[1]} ends here but did not begin")
            inside = None
            yield line
        elif inside is None:
            yield line
    if inside is not None:
        raise SpecError(f"{place}:{opened_at}: the region of task {inside} is not closed")
