"""Follows one call of a Python function line by line: what each statement made, evaluated there and then.

Runs in the tracing child. MLX is lazy, so an error or a NaN shows where a result is looked at; here every
array is computed at the statement that made it. sys.monitoring on Python 3.12 and later, sys.settrace below.

Of a loop the first and the last round are kept, with the number of rounds.
"""

from __future__ import annotations

import ast
import dis
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import mlx.core as mx

from .recording import snapshot

MOST_STATEMENTS = 20_000  # executed; after that nothing more is noted
RETURNED = "return"
YIELDED = "yield"


@dataclass(frozen=True)
class Statement:
    """A statement of the traced function: what it stores to, what it reads, and the loops around it."""

    line: int
    last_line: int
    source: str
    targets: tuple[str, ...]  # names as they are shown: "q", "self.keys", "out" of out[..., 0] = x
    reads: tuple[str, ...]
    loops: tuple[int, ...]  # first lines of the loops it stands in, outermost first
    is_loop: bool


@dataclass
class Made:
    """A name's value after a statement. Arrays are copies that later writes do not reach."""

    name: str
    value: Any


@dataclass
class Step:
    """One execution of a statement."""

    statement: Statement
    made: list[Made] = field(default_factory=list)
    error: BaseException | None = None
    operands: list[Made] = field(default_factory=list)  # where it raised: what it was about to read


@dataclass
class Loop:
    """One run through a loop: its first and last rounds."""

    statement: Statement
    rounds: int = 0
    first: list[Node] = field(default_factory=list)
    last: list[Node] = field(default_factory=list)
    current: list[Node] = field(default_factory=list)

    def next_round(self) -> None:
        if self.current:
            if self.rounds == 0:
                self.first = self.current
            else:
                self.last = self.current
            self.rounds += 1
            self.current = []


Node = Step | Loop


@dataclass
class Traced:
    """One call of a function, as it was followed."""

    name: str
    path: str
    line: int
    given: list[Made] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    returned: bool = False
    result: Any = None
    yielded: int = 0
    error: BaseException | None = None
    cut: bool = False  # so many statements that not all are noted
    inner: list[Traced] = field(default_factory=list)  # other functions of the learner's, first call of each


# ---- the function's text


def statements_of(code: CodeType) -> dict[int, Statement]:
    """The statements of a function by each of their lines; the innermost one for a line of several."""
    lines, start = inspect.getsourcelines(code)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    function = next(
        n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    )
    found: dict[int, Statement] = {}
    if isinstance(function, ast.Lambda):
        return found

    def visit(body: list[ast.stmt], loops: tuple[int, ...]) -> None:
        for node in body:
            first, last = node.lineno + start - 1, (node.end_lineno or node.lineno) + start - 1
            inner = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
            header = [n for n in inner if n and isinstance(n[0], ast.stmt)]
            if header:
                last = header[0][0].lineno + start - 2 if header[0][0].lineno > node.lineno else first
            is_loop = isinstance(node, (ast.For, ast.While))
            statement = Statement(
                first,
                max(first, last),
                _one_line(lines[first - start : max(first, last) - start + 1]),
                tuple(dict.fromkeys(_targets(node))),
                tuple(dict.fromkeys(_reads(node))),
                loops,
                is_loop,
            )
            for line in range(first, max(first, last) + 1):
                found[line] = statement
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
                for line in range(first, (node.end_lineno or node.lineno) + start):
                    found[line] = statement
                continue
            deeper = (*loops, first) if is_loop else loops
            for part in inner:
                visit([n for n in part if isinstance(n, ast.stmt)], deeper)
            for handler in getattr(node, "handlers", []):
                visit(handler.body, loops)
            for case in getattr(node, "cases", []):
                visit(case.body, loops)

    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    visit(body, ())
    return found


def _one_line(lines: list[str]) -> str:
    """A statement in one line, without its comments."""
    text = textwrap.dedent("".join(lines))
    try:
        found = [
            t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT
        ]
    except (tokenize.TokenError, IndentationError):  # the header of a block has no body here
        found = []
    rows = text.splitlines()
    for token in found:
        rows[token.start[0] - 1] = rows[token.start[0] - 1][: token.start[1]]
    return " ".join(row.strip() for row in rows if row.strip())


def _targets(node: ast.stmt) -> Iterator[str]:
    """The names that a statement stores to: locals, attributes of locals, arrays it writes into."""
    if isinstance(node, ast.Assign):
        stored: list[ast.expr] = list(node.targets)
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.For, ast.AsyncFor)):
        stored = [node.target]
    elif isinstance(node, ast.With):
        stored = [i.optional_vars for i in node.items if i.optional_vars is not None]
    else:
        stored = []
    for target in stored:
        yield from _stored(target)
    header = (
        node.test if isinstance(node, (ast.If, ast.While)) else node if not hasattr(node, "body") else None
    )
    for part in ast.walk(header) if header is not None else ():
        if isinstance(part, ast.NamedExpr):
            yield part.target.id


def _stored(target: ast.expr) -> Iterator[str]:
    if isinstance(target, (ast.Tuple, ast.List)):
        for part in target.elts:
            yield from _stored(part)
    elif isinstance(target, (ast.Starred, ast.Subscript)):
        yield from _stored(target.value)
    elif isinstance(target, (ast.Name, ast.Attribute)) and (name := _dotted(target)):
        yield name


def _dotted(node: ast.expr) -> str:
    """ "x" or "self.keys"; "" for anything longer or computed."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return ""


def _reads(node: ast.stmt) -> Iterator[str]:
    """The names that a statement's own line reads."""
    parts: list[ast.AST] = [node]
    if isinstance(node, (ast.If, ast.While)):
        parts = [node.test]
    elif isinstance(node, ast.For):
        parts = [node.iter]
    elif isinstance(node, ast.With):
        parts = [i.context_expr for i in node.items]
    elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Try)):
        return
    for part in parts:
        for inner in ast.walk(part):
            if isinstance(inner, (ast.Name, ast.Attribute)) and isinstance(inner.ctx, ast.Load):
                name = _dotted(inner)
                if name:
                    yield name
            elif isinstance(part, ast.AugAssign) and inner is part.target:
                yield from _stored(part.target)


# ---- following one frame


class _Follower:
    """Builds a Traced from the lines of one frame."""

    def __init__(self, code: CodeType, name: str) -> None:
        self.code = code
        self.statements = statements_of(code)
        self.traced = Traced(name, code.co_filename, code.co_firstlineno)
        self._loops: list[Loop] = []
        self._step: Step | None = None
        self._before: dict[str, Any] = {}
        self._seen = 0
        self._began = False

    def begin(self, frame: FrameType) -> None:
        if self._began:
            return  # a generator goes on
        self._began = True
        code = frame.f_code
        count = code.co_argcount + code.co_kwonlyargcount
        count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
        names = frame.f_locals
        for name in code.co_varnames[:count]:
            if name == "self":
                held = getattr(names.get(name), "__dict__", {})
                self.traced.given += [
                    Made(f"self.{k}", _copy(v))
                    for k, v in held.items()
                    if isinstance(v, (mx.array, int, float))
                ]
            elif name in names:
                self.traced.given.append(Made(name, _copy(names[name])))

    def line(self, frame: FrameType, number: int) -> None:
        statement = self.statements.get(number)
        if statement is None or self.traced.cut:
            return
        if self._step is not None and self._step.statement is statement and not statement.is_loop:
            return  # another line of the same statement
        self._finish(frame)
        self._seen += 1
        if self._seen > MOST_STATEMENTS:
            self.traced.cut = True
            return
        self._place(statement)
        self._before = self._values(frame)
        self._step = Step(statement)
        self._nodes().append(self._step) if not statement.is_loop else None

    def _place(self, statement: Statement) -> None:
        """Enter and leave loops, and count their rounds."""
        around = statement.loops
        while self._loops and self._loops[-1].statement.line not in (*around, statement.line):
            self._leave()
        if statement.is_loop:
            if self._loops and self._loops[-1].statement is statement:
                self._loops[-1].next_round()
            else:
                loop = Loop(statement)
                self._nodes().append(loop)
                self._loops.append(loop)

    def _leave(self) -> None:
        self._loops.pop().next_round()

    def _nodes(self) -> list[Node]:
        return self._loops[-1].current if self._loops else self.traced.nodes

    def _values(self, frame: FrameType) -> dict[str, Any]:
        names = dict(frame.f_locals)
        own = names.get("self")
        for key, value in list(getattr(own, "__dict__", {}).items()):
            names[f"self.{key}"] = value
        return names

    def _finish(self, frame: FrameType) -> None:
        """The statement before is over: note what it made, computed now."""
        step = self._step
        if step is None:
            return
        self._step = None
        now = self._values(frame)
        names = list(step.statement.targets)
        names += [n for n, v in now.items() if n not in names and self._before.get(n, _Nothing) is not v]
        for name in names:
            value, was = now.get(name, _Nothing), self._before.get(name, _Nothing)
            if value is _Nothing or name == "self":
                continue
            if value is was and (name not in step.statement.targets or step.statement.is_loop):
                continue
            step.made.append(Made(name, self._evaluated(value, step)))
        if step.statement.is_loop and step.made and self._loops:
            self._loops[-1].current.append(step)  # what the loop gives this round

    def _evaluated(self, value: Any, step: Step) -> Any:
        try:
            mx.eval(_arrays(value))
        except Exception as error:
            step.error = error
            return Unevaluable(value)
        return _copy(value)

    def raised(self, frame: FrameType, error: BaseException) -> None:
        step = self._step
        if step is None or step.error is not None:
            return
        step.error = error
        step.operands = operands(step.statement, self._values(frame))

    def returns(self, frame: FrameType, value: Any, *, yields: bool = False) -> None:
        step = self._step
        self._finish(frame)
        if step is not None and (value is not None or yields):
            step.made.append(Made(YIELDED if yields else RETURNED, self._evaluated(value, step)))
        if yields:
            self.traced.yielded += 1
            return
        self.traced.returned = True
        self.traced.result = (
            step.made[-1].value if step is not None and step.made and value is not None else value
        )
        self.close()

    def close(self) -> None:
        while self._loops:
            self._leave()

    def ended(self, error: BaseException) -> None:
        self.traced.error = error
        self.close()


class _Nothing:
    """No value."""


@dataclass
class Unevaluable:
    """What MLX could not compute; its shape and dtype are known."""

    value: Any


def operands(statement: Statement, names: dict[str, Any]) -> list[Made]:
    """What a statement was about to read, of the frame's names."""
    read = [
        n for n in statement.reads if n in names and not any(o.startswith(n + ".") for o in statement.reads)
    ]
    return [
        Made(n, _copy(names[n])) for n in read if isinstance(names[n], mx.array) or not callable(names[n])
    ]


def _arrays(value: Any, depth: int = 3) -> list[mx.array]:
    if isinstance(value, mx.array):
        return [value]
    if depth and isinstance(value, dict):
        value = list(value.values())
    if depth and isinstance(value, (list, tuple)):
        return [a for v in value for a in _arrays(v, depth - 1)]
    return []


def _copy(value: Any) -> Any:
    try:
        return snapshot(value)
    except Exception:
        return value


# ---- the two ways to be told of lines


class Tracer:
    """Follows the first call of `code` that is made inside `following`.

    wanted: whether another function's code is followed as well, its first call.
    """

    def __init__(self, code: CodeType, name: str, wanted: Callable[[CodeType], bool]) -> None:
        self.root = _Follower(code, name)
        self._wanted = wanted
        self._frames: dict[FrameType, _Follower] = {}
        self._known: dict[CodeType, _Follower] = {code: self.root}

    @property
    def traced(self) -> Traced:
        self.root.traced.inner = [f.traced for c, f in self._known.items() if c is not self.root.code]
        return self.root.traced

    @contextmanager
    def following(self) -> Iterator[None]:
        if hasattr(sys, "monitoring"):
            with self._monitored():
                yield
        else:
            with self._settrace():
                yield

    def follower(self, frame: FrameType) -> _Follower | None:
        """Who follows this frame: the first frame of a wanted code, and no other of the same code."""
        found = self._frames.get(frame)
        if found is not None:
            return found
        code = frame.f_code
        known = self._known.get(code)
        if known is None:
            if not self._wanted(code):
                return None
            try:
                known = self._known[code] = _Follower(code, getattr(code, "co_qualname", code.co_name))
            except (OSError, SyntaxError, StopIteration):
                return None
        elif known._began:
            return None
        self._frames[frame] = known
        known.begin(frame)
        return known

    # sys.settrace

    @contextmanager
    def _settrace(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        follower = self._quietly(self.follower, frame)
        return self._local if follower is not None else None

    def _local(self, frame: FrameType, event: str, arg: Any) -> Any:
        follower = self._frames.get(frame)
        if follower is None:
            return None
        if event == "line":
            self._quietly(follower.line, frame, frame.f_lineno)
        elif event == "exception":
            if not isinstance(arg[1], (StopIteration, GeneratorExit)):
                self._quietly(follower.raised, frame, arg[1])
        elif event == "return":
            self._return(frame, follower, arg)
        return self._local

    def _return(self, frame: FrameType, follower: _Follower, value: Any) -> None:
        step = follower._step
        if value is None and step is not None and step.error is not None:
            follower.ended(step.error)  # a "return" of an exception on its way out
            return
        yields = bool(frame.f_code.co_flags & inspect.CO_GENERATOR) and not _at_return(frame)
        self._quietly(follower.returns, frame, value, yields=yields)

    def _quietly(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What looking does must not be traced, and a fault in it must not become the learner's."""
        try:
            return function(*args, **kwargs)
        except Exception:
            return None

    # sys.monitoring

    @contextmanager
    def _monitored(self) -> Iterator[None]:
        monitoring = sys.monitoring  # type: ignore[attr-defined]
        tool = next(i for i in (2, 3, 4, 1, 5, 0) if monitoring.get_tool(i) is None)
        monitoring.use_tool_id(tool, "tinyllm")
        events = monitoring.events

        def frame_of(code: CodeType) -> FrameType | None:
            frame = sys._getframe(2)
            return frame if frame.f_code is code else None

        def start(code: CodeType, offset: int) -> Any:
            frame = frame_of(code)
            if frame is None or (code not in self._known and not self._wanted(code)):
                return monitoring.DISABLE
            if self._quietly(self.follower, frame) is not None:
                wanted = events.LINE | events.PY_RETURN | events.PY_YIELD
                monitoring.set_local_events(tool, code, wanted)
            return None

        def line(code: CodeType, number: int) -> None:
            frame = frame_of(code)
            if frame is not None and (follower := self._frames.get(frame)) is not None:
                self._quietly(follower.line, frame, number)

        def returns(code: CodeType, offset: int, value: Any) -> None:
            frame = frame_of(code)
            if frame is not None and (follower := self._frames.get(frame)) is not None:
                self._quietly(follower.returns, frame, value)

        def yields(code: CodeType, offset: int, value: Any) -> None:
            frame = frame_of(code)
            if frame is not None and (follower := self._frames.get(frame)) is not None:
                self._quietly(follower.returns, frame, value, yields=True)

        def raised(code: CodeType, offset: int, error: BaseException) -> None:
            frame = frame_of(code)
            follower = self._frames.get(frame) if frame is not None else None
            if follower is not None and not isinstance(error, (StopIteration, GeneratorExit)):
                self._quietly(follower.raised, frame, error)

        def unwinds(code: CodeType, offset: int, error: BaseException) -> None:
            frame = frame_of(code)
            follower = self._frames.get(frame) if frame is not None else None
            if follower is not None and not isinstance(error, GeneratorExit):
                self._quietly(follower.raised, frame, error)
                self._quietly(follower.ended, error)

        callbacks = {
            events.PY_START: start,
            events.LINE: line,
            events.PY_RETURN: returns,
            events.PY_YIELD: yields,
            events.RAISE: raised,
            events.PY_UNWIND: unwinds,
        }
        for event, callback in callbacks.items():
            monitoring.register_callback(tool, event, callback)
        monitoring.set_events(tool, events.PY_START | events.RAISE | events.PY_UNWIND)
        try:
            yield
        finally:
            monitoring.set_events(tool, 0)
            for code in self._known:
                monitoring.set_local_events(tool, code, 0)
            for event in callbacks:
                monitoring.register_callback(tool, event, None)
            monitoring.free_tool_id(tool)
            monitoring.restart_events()


def _at_return(frame: FrameType) -> bool:
    """Whether a generator's frame stands at its end, and not at a yield."""
    code = frame.f_code.co_code
    opcode = dis.opname[code[frame.f_lasti]]
    return opcode.startswith("RETURN")
