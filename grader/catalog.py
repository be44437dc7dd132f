"""checkpoint.toml -> frozen values: Course, Day, Task, Misconception, Fact, Rule; questions.toml -> Question.

The questions of a day are read when they are asked for: every command needs the days, few the questions.
Every error names the file and the key. Nothing here imports learner code, pytest or MLX.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .clone import Clone
from .errors import SpecError, UsageError

if TYPE_CHECKING:
    from .questions import Question

QUESTIONS = "questions.toml"  # beside a day's checkpoint.toml
KERNELS = "kernels/"  # a tree's folder of C++ and GPU sources, as modules are named


@dataclass(frozen=True)
class Symbol:
    """A name a task asks for: `week1/rope.py` and `RoPE.__call__`."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}::{self.name}"


@dataclass(frozen=True)
class Misconception:
    """A mistake learners make, as a one-place edit of the reference that must fail its task."""

    id: str
    module: str
    find: str
    replace: str
    says: str  # the sentence the learner is told
    lesson: str = ""  # heading of the lesson that explains it


@dataclass(frozen=True)
class Fact:
    """A convention of the day, word for word as lesson, docstrings and failures state it."""

    id: str
    text: str
    symbols: tuple[str, ...] = ()  # symbols whose docstring carries the text


@dataclass(frozen=True)
class Rule:
    """An API that solutions may not use. `api` is a dotted name, with `.*` for all below it."""

    api: str
    why: str
    instead: str


@dataclass(frozen=True)
class Task:
    id: int
    title: str
    goal: str
    checks: int
    symbols: tuple[Symbol, ...]
    hints: tuple[str, ...]
    misconceptions: tuple[Misconception, ...]


@dataclass(frozen=True)
class Compared:
    """What `tinyllm-grade compare` runs: a model made of a day's code, and what its layers are calls of."""

    model: Symbol  # a class: made with mlx-lm's model, called with token ids (1, L)
    layer: Symbol  # a class: its k-th call is layer k


@dataclass(frozen=True)
class Day:
    id: str  # "1.3"
    title: str
    summary: str
    folder: Path
    needs: tuple[str, ...]  # what the machine must have besides Python and MLX (doctor.py says how to get it)
    modules: tuple[str, ...]  # relative to a tree: "week1/gqa.py"
    builds_on: tuple[str, ...]  # ids of earlier days whose code this day runs
    tasks: tuple[Task, ...]
    facts: tuple[Fact, ...]
    rules: tuple[Rule, ...]  # the course's and the day's own
    questions: tuple[str, ...] = ()  # ids of its check questions; the function `questions` reads them
    compared: Compared | None = None  # None: the day has no model whose passes could be set side by side
    packages: tuple[str, ...] = ()  # that this day's modules and checks may import beside what all may
    test_packages: tuple[str, ...] = ()  # that its checks alone may import

    @property
    def name(self) -> str:
        return f"day{self.id}"

    @property
    def week(self) -> int:
        return int(self.id.split(".")[0])

    @property
    def lesson(self) -> Path:
        return self.folder / "lesson.md"

    @property
    def tests(self) -> tuple[Path, ...]:
        return tuple(sorted(self.folder.glob("test_*.py")))

    @property
    def checks(self) -> int:
        return sum(t.checks for t in self.tasks)

    def task(self, number: int) -> Task:
        for task in self.tasks:
            if task.id == number:
                return task
        have = ", ".join(str(t.id) for t in self.tasks)
        raise UsageError(f"{self.name} has no task {number}; its tasks are {have}.")


# What [engines.bars] may hold. mlx_lm: in prefill and decode, at least so many times as fast as mlx-lm run
# the same way. bandwidth_share: decoding, at least this share of what the memory's bandwidth allows, where
# the weights are too large for caches.
ENGINE_BARS = ("mlx_lm", "bandwidth_share")


@dataclass(frozen=True)
class Engine:
    """One way of running the model with a tree's code, for `generate`, `chat` and `bench model`.

    The three symbols take and give what their days say: model(the model that mlx_lm.load returns) is a
    function from ids, and whatever else generate passes, to logits; generate(model, tokenizer, prompt,
    sampler=, max_tokens=, stop=) yields text; sampler(temp, top_p, top_k, ...) is a function from
    log-probabilities to ids.
    """

    id: str
    title: str
    days: tuple[str, ...]  # ids of the days whose code it takes; the sampler's day only when one is used
    model: Symbol
    generate: Symbol
    sampler: Symbol
    bars: Mapping[str, float] = field(default_factory=dict)  # of `bench model`; see ENGINE_BARS


@dataclass(frozen=True)
class Serving:
    """How a tree's code is served over HTTP, for `serve` and `bench serve`.

    engine(model, tokenizer, max_active_requests=, max_seq_len=, ...) schedules requests over a model;
    app(function that makes one, model_name, ...) is an ASGI app.
    """

    days: tuple[str, ...]  # ids of the days whose code it takes beside that of the model's engine
    engines: tuple[str, ...]  # ids of the engines whose models take several rows, the earliest first
    engine: Symbol
    app: Symbol


@dataclass(frozen=True)
class Course:
    title: str
    weeks: dict[int, str]
    days: tuple[Day, ...]
    limits: Limits
    reference_only: tuple[str, ...] = ()  # patterns ("week4/*") of reference modules that learners do not get
    engines: tuple[Engine, ...] = ()  # the earliest first
    serving: Serving | None = None

    def is_reference_only(self, module: str) -> bool:
        """Whether a module of reference/ ("week4/gpt.py") is in no day and named as such in course.toml."""
        in_a_day = any(module in day.modules for day in self.days)
        return not in_a_day and any(fnmatch.fnmatchcase(module, p) for p in self.reference_only)

    def day(self, text: str) -> Day:
        """The day called `day1.3` or `1.3`. Raises UsageError naming the nearest when there is none."""
        wanted = text.strip().lower().removeprefix("day").strip()
        for day in self.days:
            if day.id == wanted:
                return day
        known = " ".join(d.name for d in self.days)
        raise UsageError(f"There is no day called '{text}'. Days: {known}")

    def select(self, text: str) -> tuple[Day, ...]:
        """The days meant by `day1.3`, `1.3`, `week1` or `all`."""
        wanted = text.strip().lower()
        if wanted == "all":
            return self.days
        match = re.fullmatch(r"week\s*(\d+)", wanted)
        if match:
            days = tuple(d for d in self.days if d.week == int(match[1]))
            if not days:
                known = " ".join(f"week{w}" for w in self.weeks)
                raise UsageError(f"There is no week {match[1]}. Weeks: {known}")
            return days
        return (self.day(text),)

    def before(self, day: Day) -> tuple[Day, ...]:
        return self.days[: self.days.index(day)]

    def day_of(self, module: str) -> Day | None:
        """The first day that lists a module ("week1/rope.py")."""
        return next((day for day in self.days if module in day.modules), None)

    def engine(self, text: str) -> Engine:
        """The engine called `text`. Raises UsageError naming those there are."""
        for engine in self.engines:
            if engine.id == text.strip().lower():
                return engine
        known = " ".join(e.id for e in self.engines) or "none"
        raise UsageError(f"There is no engine called '{text}'. Engines: {known}")

    def foundation(self, day: Day) -> tuple[Day, ...]:
        """The day and every earlier day whose code it runs, in the course's order."""
        needed = {day.id}
        for earlier in reversed(self.days[: self.days.index(day) + 1]):
            if earlier.id in needed:
                needed |= set(earlier.builds_on)
        return tuple(d for d in self.days if d.id in needed)

    def kernels(self, days: Iterable[Day]) -> tuple[str, ...]:
        """The C++ files, by their names in a tree's kernels folder, of days and of the days these run."""
        run = {module for day in days for d in self.foundation(day) for module in d.modules}
        return tuple(sorted(m.removeprefix(KERNELS) for m in run if m.endswith(".cpp")))


@dataclass(frozen=True)
class Limits:
    """How much a grading may take. Times are floors: a slow reference raises them (see runner)."""

    check_seconds: float = 10.0
    reference_multiple: float = 20.0
    day_seconds: float = 180.0
    memory_gib: float = 4.0


def load(clone: Clone) -> Course:
    """Read `checkpoints/course.toml` and every day's `checkpoint.toml`, in the days' order."""
    reader = _Reader(clone.checkpoints / "course.toml", clone)
    weeks = {int(k): str(v) for k, v in reader.table("weeks").items()}
    limits = Limits(**{k: float(v) for k, v in reader.table("limits", default={}).items()})
    rules = tuple(_rule(r) for r in reader.tables("forbids", default=[]))
    title = reader.text("title")
    reference_only = reader.strings("reference_only", default=())
    engines = reader.tables("engines", default=[])
    serving = reader.inner("serving")
    reader.done()
    folders = [f for f in clone.checkpoints.iterdir() if (f / "checkpoint.toml").is_file()]
    days = sorted((_day(f, rules, clone) for f in folders), key=lambda d: _order(d.id))
    for day in days:
        if day.week not in weeks:
            raise SpecError(
                f"{clone.relative(day.folder)}/checkpoint.toml: id: week {day.week} is not in course.toml"
            )
        known = {d.id for d in days}
        for other in day.builds_on:
            if other not in known or _order(other) >= _order(day.id):
                raise SpecError(
                    f"{clone.relative(day.folder)}/checkpoint.toml: builds_on: '{other}' is no earlier day"
                )
    course = Course(title=title, weeks=weeks, days=tuple(days), limits=limits, reference_only=reference_only)
    for day in days:
        for symbol in (day.compared.model, day.compared.layer) if day.compared else ():
            if symbol not in {s for d in course.foundation(day) for t in d.tasks for s in t.symbols}:
                raise SpecError(
                    f"{clone.relative(day.folder)}/checkpoint.toml: compare: no task of the day, "
                    f"or of a day it builds on, lists {symbol}"
                )
    course = replace(course, engines=_engines(engines, course))
    return replace(course, serving=_serving(serving, course))


def _order(day_id: str) -> tuple[int, ...]:
    return tuple(int(part) for part in day_id.split("."))


def _day(folder: Path, course_rules: tuple[Rule, ...], clone: Clone) -> Day:
    r = _Reader(folder / "checkpoint.toml", clone)
    day_id = r.text("id")
    if not re.fullmatch(r"\d+\.\d+", day_id):
        r.fail("id", f"'{day_id}' is not of the form week.day")
    if folder.name != f"day{day_id.replace('.', '_')}":
        r.fail("id", f"'{day_id}' does not belong in a folder called {folder.name}")
    modules = r.strings("modules")
    tasks = tuple(_task(t, modules) for t in r.tables("tasks"))
    if [t.id for t in tasks] != list(range(1, len(tasks) + 1)):
        r.fail("tasks", "ids must be 1, 2, 3, ... in order")
    ids = [m.id for t in tasks for m in t.misconceptions]
    for name in {i for i in ids if ids.count(i) > 1}:
        r.fail("tasks", f"two misconceptions are called '{name}'")
    day = Day(
        id=day_id,
        title=r.text("title"),
        summary=r.text("summary"),
        folder=folder,
        modules=modules,
        builds_on=r.strings("builds_on", default=()),
        needs=r.strings("needs", default=()),
        tasks=tasks,
        facts=tuple(_fact(f) for f in r.tables("facts", default=[])),
        rules=course_rules + tuple(_rule(x) for x in r.tables("forbids", default=[])),
        questions=_question_ids(folder / QUESTIONS),
        compared=_compared(r.inner("compare")),
        packages=r.strings("packages", default=()),
        test_packages=r.strings("test_packages", default=()),
    )
    r.done()
    return day


def _engines(readers: list[_Reader], course: Course) -> tuple[Engine, ...]:
    engines: list[Engine] = []
    for reader in readers:
        engine = _engine(reader, course)
        if engine.id in {e.id for e in engines}:
            reader.fail("id", f"two engines are called '{engine.id}'")
        engines.append(engine)
    return tuple(engines)


def _serving(r: _Reader | None, course: Course) -> Serving | None:
    if r is None:
        return None
    serving = Serving(
        days=r.strings("days"),
        engines=r.strings("engines"),
        engine=_listed_symbol(r, "engine", course),
        app=_listed_symbol(r, "app", course),
    )
    for key, given, known in (
        ("days", serving.days, [d.id for d in course.days]),
        ("engines", serving.engines, [e.id for e in course.engines]),
    ):
        for name in given:
            if name not in known:
                r.fail(key, f"there is no {name}")
    r.done()
    return serving


def _listed_symbol(r: _Reader, key: str, course: Course) -> Symbol:
    module, _, name = r.text(key).rpartition("::")
    if course.day_of(module) is None or not name:
        r.fail(key, "must be module.py::name, with a module that a day lists")
    return Symbol(module, name)


def _engine(r: _Reader, course: Course) -> Engine:
    def symbol(key: str) -> Symbol:
        return _listed_symbol(r, key, course)

    engine = Engine(
        id=r.text("id"),
        title=r.text("title"),
        days=r.strings("days"),
        model=symbol("model"),
        generate=symbol("generate"),
        sampler=symbol("sampler"),
        bars=r.table("bars", default={}),
    )
    for name, least in engine.bars.items():
        if name not in ENGINE_BARS or not isinstance(least, (int, float)) or isinstance(least, bool):
            r.fail("bars", f"'{name}' is none of {', '.join(ENGINE_BARS)}, with a number")
    for day in engine.days:
        if day not in {d.id for d in course.days}:
            r.fail("days", f"'{day}' is no day of this course")
    r.done()
    return engine


def _compared(r: _Reader | None) -> Compared | None:
    if r is None:
        return None
    symbols = []
    for key in ("model", "layer"):
        module, _, name = r.text(key).rpartition("::")
        if not module or not name:
            r.fail(key, "must be of the form week1/model.py::Model")
        symbols.append(Symbol(module, name))
    r.done()
    return Compared(*symbols)


def _task(r: _Reader, modules: tuple[str, ...]) -> Task:
    symbols = []
    for text in r.strings("symbols"):
        module, _, name = text.rpartition("::")
        if not module and len(modules) != 1:
            r.fail("symbols", f"'{text}' must name its module: the day has several")
        symbols.append(Symbol(module or modules[0], name))
        if symbols[-1].module not in modules:
            r.fail("symbols", f"'{text}': {symbols[-1].module} is not among the day's modules")
    task = Task(
        id=r.integer("id"),
        title=r.text("title"),
        goal=r.text("goal"),
        checks=r.integer("checks"),
        symbols=tuple(symbols),
        hints=r.strings("hints"),
        misconceptions=tuple(_misconception(m, modules) for m in r.tables("misconceptions", default=[])),
    )
    r.done()
    return task


def _misconception(r: _Reader, modules: tuple[str, ...]) -> Misconception:
    value = Misconception(
        id=r.text("id"),
        module=r.text("module", default=modules[0]),
        find=r.text("find", strip=False),
        replace=r.text("replace", strip=False),
        says=r.text("says"),
        lesson=r.text("lesson", default=""),
    )
    r.done()
    return value


def _fact(r: _Reader) -> Fact:
    value = Fact(
        id=r.text("id"), text=" ".join(r.text("text").split()), symbols=r.strings("symbols", default=())
    )
    r.done()
    return value


def _rule(r: _Reader) -> Rule:
    value = Rule(api=r.text("api"), why=r.text("why"), instead=r.text("instead"))
    r.done()
    return value


# ---- questions.toml


def _question_ids(path: Path) -> tuple[str, ...]:
    """The ids in a questions.toml, without the cost of reading TOML: `id` is the first key of each table."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ()
    return tuple(re.findall(r'^\[\[questions\]\]\s*\nid = "([^"\n]+)"', text, re.MULTILINE))


def questions(clone: Clone, day: Day) -> tuple[Question, ...]:
    """The day's check questions; none when it has no questions.toml. Raises SpecError."""
    path = day.folder / QUESTIONS
    if not path.is_file():
        return ()
    reader = _Reader(path, clone)
    found = tuple(_question(q) for q in reader.tables("questions"))
    reader.done()
    ids = [q.id for q in found]
    for name in {i for i in ids if ids.count(i) > 1}:
        reader.fail("questions", f"two are called '{name}'")
    if tuple(ids) != day.questions:
        reader.fail("questions", 'each table must begin with its id: [[questions]], then id = "..."')
    return found


# What each kind of question has besides id, kind, ask, why and wrong.
_QUESTION_KEYS = {
    "choice": {"answer", "vars", "cases", "where"},
    "number": {"answer", "vars", "cases", "where", "worked", "unit", "tolerance"},
    "shape": {"answer", "vars", "cases", "where", "worked"},
    "line": {"answer", "code", "right", "module"},
}


def _question(r: _Reader) -> Question:
    from .questions import Question, Wrong

    identity, kind = r.text("id"), r.text("kind")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", identity):
        r.fail("id", f"'{identity}' is not of the form like-this")
    r.place = f"{r.place}{identity}."
    if kind not in _QUESTION_KEYS:
        r.fail("kind", f"'{kind}' is none of {', '.join(_QUESTION_KEYS)}")
    wrong = []
    for w in r.tables("wrong", default=[]):
        wrong.append(Wrong(w.text("answer"), w.text("says")))
        w.done()
    own = _QUESTION_KEYS[kind]
    value = Question(
        id=identity,
        kind=kind,
        ask=" ".join(r.text("ask").split()),
        answer=r.text("answer"),
        why=r.text("why"),
        wrong=tuple(wrong),
        worked=r.text("worked") if "worked" in own else "",
        variables=_variables(r) if "vars" in own else {},
        cases=_cases(r) if "cases" in own else (),
        where=r.text("where", default="") if "where" in own else "",
        unit=r.text("unit", default="") if "unit" in own else "",
        tolerance=float(r.number("tolerance", default=0)) if "tolerance" in own else 0.0,
        code=tuple(r.text("code", strip=False).strip("\n").split("\n")) if "code" in own else (),
        right=r.text("right") if "right" in own else "",
        module=r.text("module") if "module" in own else "",
    )
    r.done()
    return value


def _variables(r: _Reader) -> dict[str, tuple[Any, ...]]:
    """`vars = {L = [16, 64], D = [64, 128]}`: the values from which each is drawn."""
    table = r.table("vars", default={})
    for name, values in table.items():
        if not isinstance(values, list) or not values:
            r.fail(f"vars.{name}", "must be a list of values to draw from")
    return {name: tuple(_drawable(r, f"vars.{name}", v) for v in values) for name, values in table.items()}


def _cases(r: _Reader) -> tuple[dict[str, Any], ...]:
    """`cases = [{model = "Qwen2-7B", layers = 28}, ...]`: rows of values of which one is drawn."""
    rows = r.list_of_tables("cases")
    for row in rows:
        if row.keys() != rows[0].keys():
            r.fail("cases", "every row must have the same names")
    return tuple({name: _drawable(r, f"cases.{name}", v) for name, v in row.items()} for row in rows)


def _drawable(r: _Reader, key: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_drawable(r, key, v) for v in value)
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        r.fail(key, f"{value!r} is neither a number nor a text nor a list of them")
    return value


_MISSING: Any = object()


@dataclass
class _Reader:
    """Takes typed keys out of a TOML table and complains about what is wrong, missing or left over."""

    file: Path
    clone: Clone
    data: dict[str, Any] = field(default=_MISSING)
    place: str = ""

    def __post_init__(self) -> None:
        if self.data is _MISSING:
            try:
                self.data = tomllib.loads(self.file.read_text(encoding="utf-8"))
            except FileNotFoundError:
                raise SpecError(f"{self.clone.relative(self.file)} is missing.") from None
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise SpecError(f"{self.clone.relative(self.file)}: {error}") from None
        self.data = dict(self.data)

    def fail(self, key: str, message: str) -> None:
        raise SpecError(f"{self.clone.relative(self.file)}: {self.place}{key}: {message}")

    def _take(self, key: str, kind: type, wants: str, default: Any) -> Any:
        value = self.data.pop(key, default)
        if value is _MISSING:
            self.fail(key, "is missing")
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
            self.fail(key, f"must be {wants}, not {value!r}")
        return value

    def text(self, key: str, *, default: Any = _MISSING, strip: bool = True) -> str:
        value = self._take(key, str, "a string", default)
        return value.strip() if strip else value

    def integer(self, key: str) -> int:
        return self._take(key, int, "a whole number", _MISSING)

    def number(self, key: str, *, default: Any = _MISSING) -> float:
        return self._take(key, int | float, "a number", default)

    def list_of_tables(self, key: str) -> list[dict[str, Any]]:
        value = self._take(key, list, "a list of tables", [])
        if not all(isinstance(v, dict) for v in value):
            self.fail(key, "must be a list of tables")
        return value

    def strings(self, key: str, *, default: Any = _MISSING) -> tuple[str, ...]:
        value = self._take(key, list, "a list of strings", default)
        if not all(isinstance(v, str) for v in value):
            self.fail(key, "must be a list of strings")
        return tuple(v.strip() for v in value)

    def table(self, key: str, *, default: Any = _MISSING) -> dict[str, Any]:
        return self._take(key, dict, "a table", default)

    def inner(self, key: str) -> _Reader | None:
        """A reader of a table in this one; None when there is none."""
        value = self.table(key, default=None)
        return None if value is None else _Reader(self.file, self.clone, value, f"{self.place}{key}.")

    def tables(self, key: str, *, default: Any = _MISSING) -> list[_Reader]:
        value = self._take(key, list, "an array of tables", default)
        if not all(isinstance(v, dict) for v in value):
            self.fail(key, "must be an array of tables")
        return [_Reader(self.file, self.clone, v, f"{self.place}{key}[{i}].") for i, v in enumerate(value)]

    def done(self) -> None:
        for key in self.data:
            self.fail(key, "is not a key this file can have")
