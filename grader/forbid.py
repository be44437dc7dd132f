"""APIs that a day forbids, found in the syntax tree of learner code.

Names are followed through imports, simple assignments, `getattr`, `import_module` and the like, with
Python's own scoping, so a parameter called `mx` or a function called `softmax` is the learner's. What
cannot be told from the text alone (a name computed at run time, a layer of a model that was passed in)
is left to `tripwires`, which watches the code run. In doubt nothing is reported.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .catalog import Rule

# Names below here may stand in annotations, isinstance and wherever else a type is only referred to.
_TYPE_NAMESPACES = ("mlx.nn",)
# Lower-case names below a type namespace that are modules; any other one is a function.
# fmt: off
_SUBMODULES = frozenset((
    "activations", "base", "containers", "convolution", "convolution_transpose", "distributed", "dropout",
    "embedding", "init", "layers", "linear", "losses", "normalization", "pooling", "positional_encoding",
    "quantized", "recurrent", "transformer", "upsample", "utils",
))
# fmt: on
_IMPORTERS = ("builtins.__import__", "importlib.__import__", "importlib.import_module")


@dataclass(frozen=True)
class Finding:
    """One place where code uses what a rule refuses."""

    api: str  # full dotted name of what is used: "mlx.core.fast.rms_norm"
    line: int  # from 1
    column: int  # from 1, in characters
    how: str  # "imports", "calls" or "uses"
    rule: Rule
    symbol: str  # enclosing top-level function or class, or "Class.method"; "" at module level


def explain(api: str, rule: Rule) -> str:
    """What was used, why that is refused and what is allowed instead, as prose."""
    return f"{api} is used, which this day refuses: {rule.why}. Allowed instead: {rule.instead}."


def scan(
    source: str, path: str, rules: tuple[Rule, ...], package: str = "tinyllm.exercises.week1"
) -> tuple[Finding, ...]:
    """The uses of forbidden APIs in `source`, in the order of their places.

    `path` names the file in errors; `package` is the package that relative imports start from.
    Raises SyntaxError when the source is no Python.
    """
    try:
        tree = ast.parse(source, filename=path)
    except SyntaxError as error:
        error.filename = error.filename or path  # null bytes are reported without a place
        raise
    except (ValueError, RecursionError, MemoryError) as error:  # no UTF-8; too deep to parse
        raise SyntaxError(str(error) or "too deeply nested", (path, 1, 1, "")) from None
    return _Scan(RuleBook(rules), source, package).run(tree)


def line_binding(name: str, source: str) -> int:
    """The line of the module-level import or assignment that gives `name` its meaning; 0 if none is seen."""
    line = 0
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.Lambda():
                continue
            case ast.alias(name=imported, asname=other) if name == (other or imported) or imported == "*":
                line = max(line, node.lineno)
            case ast.Name(id=bound, ctx=ast.Store()) if bound == name:
                line = max(line, node.lineno)
        todo.extend(ast.iter_child_nodes(node))
    return line


class RuleBook:
    """Which rule, if any, a dotted name falls under. The most specific rule wins.

    A rule about a package outside MLX (`numpy.*`) refuses to import it at all. A rule about a part of MLX
    refuses what it holds, while the module itself may be imported.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._exact: dict[str, Rule] = {}
        self._below: dict[str, Rule] = {}
        self._packages: dict[str, Rule] = {}
        for rule in rules:
            base = rule.api.removesuffix(".*")
            if base == rule.api and "." in base:
                self._exact[base] = rule
                continue
            self._below[base] = rule
            if base.partition(".")[0] != "mlx":
                self._packages[base] = rule

    @property
    def call_rules(self) -> list[Rule]:
        """The rules about calling something, as opposed to importing a package."""
        return [*self._exact.values(), *(r for b, r in self._below.items() if b not in self._packages)]

    @property
    def import_roots(self) -> frozenset[str]:
        """The top-level names below which some import is refused."""
        return frozenset(base.partition(".")[0] for base in self._packages)

    def covering(self, dotted: str) -> Rule | None:
        """The rule that refuses to use the thing called `dotted`."""
        if dotted in self._packages:
            return self._packages[dotted]
        name = dotted
        while name:
            if name in self._exact:
                return self._exact[name]
            name = name.rpartition(".")[0]
            if name in self._below:
                return self._below[name]
        return None

    def importing(self, dotted: str) -> Rule | None:
        """The rule that refuses to import the module `dotted`, or from it."""
        name = dotted
        while name:
            if name in self._packages:
                return self._packages[name]
            name = name.rpartition(".")[0]
        return None

    def namespace(self, dotted: str) -> Rule | None:
        """The rule about everything in the module `dotted`, when the module itself is allowed."""
        return None if dotted in self._packages else self._below.get(dotted)

    def leads_to(self, dotted: str) -> bool:
        """Whether `dotted` is, or is a module on the way to, what some rule names."""
        named = (*self._exact, *self._below)
        return any(api == dotted or api.startswith(dotted + ".") for api in named)


@dataclass(eq=False)
class _Scope:
    """The names bound in one module, function, class or comprehension.

    A binding is a dotted name (an import), an expression (a simple assignment) or None (anything else,
    which makes the name the learner's own). A name bound only to the constant None has no bindings.
    """

    kind: str
    parent: _Scope | None
    bindings: dict[str, list[str | ast.expr | None]] = field(default_factory=dict)
    declared_global: set[str] = field(default_factory=set)
    declared_nonlocal: set[str] = field(default_factory=set)

    @property
    def module(self) -> _Scope:
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    def bind(self, name: str, *values: str | ast.expr | None) -> None:
        scope: _Scope = self
        if name in self.declared_global:
            scope = self.module
        elif name in self.declared_nonlocal and self.parent is not None:
            scope = self.parent.owner(name) or self.parent
        scope.bindings.setdefault(name, []).extend(values)

    def owner(self, name: str) -> _Scope | None:
        """The scope that `name`, read in this one, comes from; None for builtins."""
        if name in self.declared_global:
            return self.module if name in self.module.bindings else None
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.bindings and (scope is self or scope.kind != "class"):
                return scope
            scope = scope.parent
        return None


@dataclass(frozen=True)
class _Site:
    """A node, where it stands, and whether it only annotates."""

    node: ast.AST
    scope: _Scope
    symbol: str
    annotation: bool

    def at(self, node: ast.AST, scope: _Scope | None = None, *, annotation: bool = False) -> _Site:
        return _Site(node, scope or self.scope, self.symbol, self.annotation or annotation)


class _Scan:
    """Two passes: the first binds names, the second resolves what is used. Neither recurses, because a
    long sum or a long chain of calls is a deep tree."""

    def __init__(self, book: RuleBook, source: str, package: str) -> None:
        self._book = book
        self._lines = source.encode().splitlines()
        self._package = package
        self._stars: list[str] = []  # modules whose names `from x import *` binds
        self._resolving: set[tuple[_Scope, str]] = set()
        self._called: set[ast.AST] = set()
        self._bases: set[ast.AST] = set()
        self._covered: set[ast.AST] = set()  # parts of an expression that has been judged as a whole
        self._findings: list[Finding] = []

    def run(self, tree: ast.Module) -> tuple[Finding, ...]:
        sites = []
        todo = [_Site(tree, _Scope("module", None), "", False)]
        while todo:
            site = todo.pop()
            sites.append(site)
            todo.extend(reversed(list(self._enter(site))))
        for site in sites:
            self._judge(site)
        return tuple(sorted(self._findings, key=lambda f: (f.line, f.column)))

    # First pass: bindings. Each method yields the sites below the one given.

    def _enter(self, site: _Site) -> Iterator[_Site]:
        node, scope = site.node, site.scope
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                yield from self._enter_function(site, node)
            case ast.ClassDef():
                yield from self._enter_class(site, node)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                yield from self._enter_comprehension(site, node)
            case ast.Import() | ast.ImportFrom():
                self._bind_import(scope, node)
            case ast.Global():
                scope.declared_global.update(node.names)
            case ast.Nonlocal():
                scope.declared_nonlocal.update(node.names)
            case ast.Assign():
                for target in node.targets:
                    yield from self._assign(site, target, node.value)
                yield site.at(node.value)
            case ast.AnnAssign():
                yield from self._assign(site, node.target, node.value)
                yield site.at(node.annotation, annotation=True)
                if node.value is not None:
                    yield site.at(node.value)
            case ast.NamedExpr():
                outer = scope
                while outer.kind == "comprehension" and outer.parent is not None:
                    outer = outer.parent
                outer.bind(node.target.id, node.value)
                yield site.at(node.value)
            case _:
                self._bind_other(scope, node)
                # `type X = ...` (3.12) only names a type.
                typing_only = type(node).__name__ == "TypeAlias"
                for child in ast.iter_child_nodes(node):
                    yield site.at(child, annotation=typing_only)

    def _enter_function(
        self, site: _Site, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    ) -> Iterator[_Site]:
        scope, symbol = site.scope, site.symbol
        inner = _Scope("function", scope)
        if not isinstance(node, ast.Lambda):
            scope.bind(node.name, None)
            if scope.kind == "module":
                symbol = node.name
            elif scope.kind == "class" and scope.parent is scope.module:
                symbol = f"{symbol}.{node.name}"
        here = _Site(node, scope, symbol, site.annotation)
        a = node.args
        for default in (*a.defaults, *a.kw_defaults):
            if default is not None:
                yield here.at(default)
        for argument in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg):
            if argument is not None:
                inner.bind(argument.arg, None)
                if argument.annotation is not None:
                    yield here.at(argument.annotation, annotation=True)
        if isinstance(node, ast.Lambda):
            yield here.at(node.body, inner)
            return
        for decorator in node.decorator_list:
            yield here.at(decorator)
        if node.returns is not None:
            yield here.at(node.returns, annotation=True)
        yield from self._type_parameters(here, node, inner)
        for statement in node.body:
            yield here.at(statement, inner)

    def _enter_class(self, site: _Site, node: ast.ClassDef) -> Iterator[_Site]:
        site.scope.bind(node.name, None)
        symbol = node.name if site.scope.kind == "module" else site.symbol
        here = _Site(node, site.scope, symbol, site.annotation)
        inner = _Scope("class", site.scope)
        for expression in (*node.decorator_list, *node.bases, *(k.value for k in node.keywords)):
            yield here.at(expression)
        yield from self._type_parameters(here, node, inner)
        for statement in node.body:
            yield here.at(statement, inner)

    def _type_parameters(self, here: _Site, node: ast.AST, inner: _Scope) -> Iterator[_Site]:
        for parameter in getattr(node, "type_params", ()):  # Python 3.12 and later
            inner.bind(parameter.name, None)
            for child in ast.iter_child_nodes(parameter):
                yield here.at(child, annotation=True)

    def _enter_comprehension(
        self, site: _Site, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    ) -> Iterator[_Site]:
        inner = _Scope("comprehension", site.scope)
        for index, generator in enumerate(node.generators):
            # Python evaluates the first iterable outside.
            yield site.at(generator.iter, inner if index else site.scope)
            yield site.at(generator.target, inner)
            for condition in generator.ifs:
                yield site.at(condition, inner)
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.comprehension):
                yield site.at(child, inner)

    def _bind_import(self, scope: _Scope, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if isinstance(node, ast.Import):
                top = alias.name.partition(".")[0]
                scope.bind(alias.asname or top, alias.name if alias.asname else top)
                continue
            base = self._absolute(node.level, node.module or "")
            if alias.name != "*":
                own = base is None or self._in_own_tree(node.level, base)
                scope.bind(alias.asname or alias.name, None if own else f"{base}.{alias.name}")
            elif base is not None:
                self._stars.append(base)

    def _bind_other(self, scope: _Scope, node: ast.AST) -> None:
        match node:
            case ast.Name(id=name, ctx=ast.Store()):
                scope.bind(name, None)
            case (
                ast.ExceptHandler(name=str(name))
                | ast.MatchAs(name=str(name))
                | ast.MatchStar(name=str(name))
            ):
                scope.bind(name, None)
            case ast.MatchMapping(rest=str(name)):
                scope.bind(name, None)

    def _assign(self, site: _Site, target: ast.expr, value: ast.expr | None) -> Iterator[_Site]:
        match target, value:
            case ast.Name(id=name), None | ast.Constant(value=None):
                site.scope.bind(name)
            case ast.Name(id=name), _:
                site.scope.bind(name, value)
            case (
                (ast.Tuple(elts=left) | ast.List(elts=left)),
                (ast.Tuple(elts=right) | ast.List(elts=right)),
            ) if len(left) == len(right) and not any(isinstance(e, ast.Starred) for e in (*left, *right)):
                for one, its_value in zip(left, right, strict=True):
                    yield from self._assign(site, one, its_value)
            case _:
                yield site.at(target)

    # Second pass: uses.

    def _judge(self, site: _Site) -> None:
        node, scope = site.node, site.scope
        match node:
            case ast.Import():
                for alias in node.names:
                    self._report(self._book.importing(alias.name), alias.name, alias, "imports", site)
            case ast.ImportFrom():
                self._judge_import_from(site, node)
            case ast.ClassDef():
                self._bases.update(node.bases)
            case (
                ast.Assign(targets=[ast.Name()], value=value)
                | ast.AnnAssign(target=ast.Name(), value=ast.expr() as value)
                | ast.NamedExpr(value=value)
            ):
                name = self._resolve(value, scope)
                if name is not None and self._book.namespace(name):
                    self._covered.add(value)  # `f = mx.fast`: its uses are what counts
            case ast.Name() | ast.Attribute() | ast.Subscript():
                self._judge_reference(site, node)
            case ast.Call():
                self._called.add(node.func)
                self._judge_reference(site, node)

    def _judge_import_from(self, site: _Site, node: ast.ImportFrom) -> None:
        base = self._absolute(node.level, node.module or "")
        if base is None or self._in_own_tree(node.level, base):
            return
        for alias in node.names:
            if alias.name == "*":
                rule = self._book.importing(base) or self._book.namespace(base)
                self._report(rule, f"{base}.*", alias, "imports", site)
                continue
            name = f"{base}.{alias.name}"
            if _is_type_name(name) or (_in_type_namespace(name) and alias.name in _SUBMODULES):
                continue
            self._report(self._book.covering(name), name, alias, "imports", site)

    def _judge_reference(self, site: _Site, node: ast.expr) -> None:
        if node in self._covered:
            self._cover_parts(node)
            return
        name = self._resolve(node, site.scope)
        if name is None:
            return
        self._cover_parts(node)
        if site.annotation:
            return
        if isinstance(node, ast.Call) and self._resolve_plain(node.func, site.scope) in _IMPORTERS:
            self._report(self._book.importing(name), name, node, "imports", site)
            return
        called = node in self._called
        if not called and node not in self._bases and _is_type_name(name):
            return
        rule = self._book.covering(name) or self._book.namespace(name)
        if rule is not None and not rule.api.endswith(".*"):
            name = rule.api
        self._report(rule, name, node, "calls" if called else "uses", site)

    def _cover_parts(self, node: ast.expr) -> None:
        match node:
            case ast.Attribute(value=part):
                self._covered.add(part)
            case ast.Call(args=[part, *_]):  # getattr(part, "name")
                self._covered.add(part)
            case ast.Subscript(value=ast.Call(args=[part]) | ast.Attribute(value=part) as whole):
                self._covered.update((part, whole))  # vars(part)["name"], part.__dict__["name"]

    def _report(self, rule: Rule | None, api: str, node: ast.alias | ast.expr, how: str, site: _Site) -> None:
        if rule is not None:
            before = self._lines[node.lineno - 1][: node.col_offset]
            column = len(before.decode(errors="replace")) + 1
            self._findings.append(Finding(api, node.lineno, column, how, rule, site.symbol))

    # What an expression stands for, as a dotted name; None when that is unknown or the learner's own.

    def _resolve(self, node: ast.expr, scope: _Scope) -> str | None:
        attributes = []
        while isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            node = node.value
        match node:
            case ast.Name(id=name):
                base = self._resolve_name(name, scope)
            case ast.Call():
                base = self._resolve_call(node, scope)
            case ast.Subscript():
                base = self._resolve_subscript(node, scope)
            case ast.NamedExpr(value=value):
                base = self._resolve(value, scope)
            case _:
                base = None
        return None if base is None else ".".join((base, *reversed(attributes)))

    def _resolve_plain(self, node: ast.expr, scope: _Scope) -> str | None:
        """As `_resolve`, for names and their attributes alone: a long chain of calls is not walked."""
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        return self._resolve(node, scope) if isinstance(root, ast.Name) else None

    def _resolve_name(self, name: str, scope: _Scope) -> str | None:
        owner = scope.owner(name)
        if owner is None:
            if hasattr(builtins, name):
                return f"builtins.{name}"
            candidates = (f"{star}.{name}" for star in self._stars)
            return next((c for c in candidates if self._book.leads_to(c)), None)
        if (owner, name) in self._resolving:
            return None
        self._resolving.add((owner, name))
        try:
            meanings = [
                self._resolve(b, owner) if isinstance(b, ast.expr) else b for b in owner.bindings[name]
            ]
        finally:
            self._resolving.discard((owner, name))
        return None if None in meanings or not meanings else meanings[0]

    def _resolve_call(self, node: ast.Call, scope: _Scope) -> str | None:
        if not node.args:
            return None
        function = self._resolve_plain(node.func, scope)
        if function == "builtins.getattr" and len(node.args) >= 2:
            return self._member(node.args[0], node.args[1], scope)
        text = _constant_text(node.args[0])
        if text is None:
            return None
        if function == "sys.modules.get":
            return text
        if function == "importlib.import_module":
            level = len(text) - len(text.lstrip("."))
            name = self._absolute(level, text[level:])
            return None if name is None or self._in_own_tree(level, name) else name
        if function in _IMPORTERS:  # __import__("a.b") gives a, unless it is to take names out of a.b
            return text if len(node.args) > 3 or node.keywords else text.partition(".")[0]
        return None

    def _resolve_subscript(self, node: ast.Subscript, scope: _Scope) -> str | None:
        match node.value:
            case ast.Call(func=function, args=[owner]) if (
                self._resolve_plain(function, scope) == "builtins.vars"
            ):
                return self._member(owner, node.slice, scope)
            case ast.Attribute(value=owner, attr="__dict__"):
                return self._member(owner, node.slice, scope)
        if self._resolve_plain(node.value, scope) == "sys.modules":
            return _constant_text(node.slice)
        return None

    def _member(self, owner: ast.expr, name: ast.expr, scope: _Scope) -> str | None:
        base, member = self._resolve(owner, scope), _constant_text(name)
        return None if base is None or member is None else f"{base}.{member}"

    def _absolute(self, level: int, module: str) -> str | None:
        """The absolute name of what `from <level dots><module> import` imports from."""
        if level == 0:
            return module
        parts = self._package.split(".")
        if level > len(parts):
            return None
        return ".".join(parts[: len(parts) - level + 1] + ([module] if module else []))

    def _in_own_tree(self, level: int, module: str) -> bool:
        """Whether a relative import stays inside the tree that the code belongs to."""
        tree = ".".join(self._package.split(".")[:2])
        return level > 0 and (module == tree or module.startswith(tree + "."))


def _in_type_namespace(dotted: str) -> bool:
    return any(dotted.startswith(base + ".") for base in _TYPE_NAMESPACES)


def _is_type_name(dotted: str) -> bool:
    """Whether `dotted` names a class of a type namespace, or a class's `__name__` and the like."""
    last = dotted.rpartition(".")[2]
    return _in_type_namespace(dotted) and (last[:1].isupper() or last.startswith("__"))


def _constant_text(node: ast.expr) -> str | None:
    """The string that an expression of string constants comes to."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=ast.Constant(value=str(text))):
            before = _constant_text(left)
            return None if before is None else before + text
    return None
