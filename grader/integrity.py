"""What makes a result worthless, found before anything runs: edited course files, hooks, code that reaches.

Reads files only. What can be seen while code runs is looked for in the child (strict_child). A finding names
what, the file and the line; it accuses nobody: a debugging print in a test is found like a trick.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import forbid
from .baseline import PARTS, Baseline, digest, files_below, is_guarded, is_older_version, normalised
from .catalog import Rule
from .clone import Clone, installed_root
from .report import Tampering

# Imported by Python or pytest by their names alone, wherever they come to lie on a path.
HOOKS = ("conftest.py", "sitecustomize.py", "usercustomize.py")
# Would be imported in place of the library, were the clone's root on Python's path.
SHADOWED = ("numpy", "mlx", "mlx_lm", "pytest", "_pytest", "pluggy", "tinyllm")
SETTINGS = ("pytest.ini", ".pytest.ini", "pytest.toml", "tox.ini", "setup.cfg")
PACKAGES = ("pytest", "pluggy", "numpy")  # whose Python files are compared with what pip installed

WHAT_IT_IS = {
    "checkpoints": "a file of the day's checks",
    "grader": "a file of the grader",
    "kernels": "a file of the kernels' builder",
    "reference": "a file of the reference",
}


def _rules() -> tuple[Rule, ...]:
    frames, process = "it reaches into the code that grades", "it starts or steers other programs"
    reading = "it runs code that is not in the file"
    plain = "array operations and plain functions"
    table = (
        (frames, ("gc.*", "inspect.*", "ctypes.*", "faulthandler.*", "signal.*", "__main__.*", "pdb.*")),
        (frames, ("sys._getframe", "sys._current_frames", "sys.settrace", "sys.setprofile", "sys.modules")),
        (frames, ("sys.monitoring.*", "sys.meta_path", "sys.path_hooks", "sys.addaudithook", "sys.argv")),
        ("tests are not a solution's to use", ("pytest.*", "_pytest.*", "pluggy.*", "unittest.*")),
        ("the grader is not a solution's to use", ("tinyllm.grader.*", "tinyllm.checkpoints.*")),
        ("that is the solution itself", ("tinyllm.reference.*", "reference.*")),
        (
            process,
            ("subprocess.*", "multiprocessing.*", "pty.*", "os.system", "os.popen", "os.fork", "os._exit"),
        ),
        (process, ("os.execv", "os.execve", "os.execvp", "os.posix_spawn", "os.kill", "os.killpg")),
        (
            "it writes to file descriptors that are not its own",
            ("os.write", "os.writev", "os.fdopen", "os.dup2"),
        ),
        (reading, ("runpy.*", "importlib.*", "zipimport.*", "pkgutil.*", "marshal.*", "code.*", "site.*")),
        (reading, ("builtins.exec", "builtins.eval", "builtins.compile")),
    )
    return tuple(Rule(api, why, plain) for why, apis in table for api in apis)


RULES = _rules()
KIND_OF_RULE = {"tinyllm.reference.*": "reference", "reference.*": "reference"}
# Attributes that lead from a value to the frames, globals or code of whoever called.
# fmt: off
REACHING = frozenset((
    "f_back", "f_globals", "f_locals", "f_builtins", "tb_frame", "gi_frame", "cr_frame", "ag_frame",
    "__globals__", "__closure__", "__code__", "__subclasses__", "__builtins__", "__loader__",
))
# fmt: on
FOREIGN_SOURCE = re.compile(
    r'^\s*#\s*include\s*(?P<include>["<][^">]*[">])|(?P<call>\b(?:system|popen|fork|execve?|execvp|dlopen)\s*\()',
    re.MULTILINE,
)


# ---- the course's files


def compare(baseline: Baseline, clone: Clone, *, trusted: Clone | None = None) -> list[Tampering]:
    """Where the files of `clone` are not the baseline's. The running grader and kernels are looked at too.

    With `trusted`, the clone whose tests will run, `clone` is a submission: it may lack any of them, and hold
    earlier versions that the trusted clone's repository knows.
    """
    roots = {part: clone.root / part for part in PARTS}
    if trusted is None:
        roots |= {part: installed_root() / part for part in ("grader", "kernels")}
    found = []
    for part, folder in roots.items():
        if not baseline.covers(part):
            continue
        here = {f"{part}/{p.relative_to(folder).as_posix()}": p for p in files_below(folder)}
        for name, wanted in baseline.digests.items():
            if not name.startswith(part + "/"):
                continue
            path = here.get(name)
            if path is None:
                if trusted is None:
                    found.append(Tampering("missing", f"{WHAT_IT_IS[part]} is missing", name))
                continue
            data = _bytes(path)
            if digest(data) != wanted and not (trusted is not None and is_older_version(trusted, data)):
                found.append(_edited(baseline, part, name, data))
        for name in sorted(here.keys() - baseline.digests.keys()):
            if is_guarded(name):
                found.append(_added(part, name, here[name]))
    return found


def _edited(baseline: Baseline, part: str, name: str, data: bytes) -> Tampering:
    line, source = first_difference(baseline.read(name), data)
    return Tampering("edited", f"{WHAT_IT_IS[part]} is not as published", name, line, source)


def _added(part: str, name: str, path: Path) -> Tampering:
    if path.name in HOOKS:
        return Tampering("hook", _hook_words(path.name), name, 1, _line(_bytes(path), 1))
    if path.is_symlink():
        return Tampering(
            "added", f"a link that does not ship with the course: it leads to {path.readlink()}", name
        )
    where = {"checkpoints": "among the checks", "reference": "in the reference"}.get(part, f"in {part}/")
    return Tampering(
        "added", f"a file that does not ship with the course, {where}", name, 1, _line(_bytes(path), 1)
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def first_difference(old: bytes | None, new: bytes) -> tuple[int, str]:
    """The first line of `new` that differs, from 1, and its text; (0, "") where `old` is not known."""
    if old is None or b"\0" in new:
        return 0, ""
    before, after = old.splitlines(), normalised(new).splitlines()
    for number, (was, now) in enumerate(zip(before, after, strict=False), 1):
        if was != now:
            return number, now.decode(errors="replace").strip()
    number = min(len(before), len(after)) + 1
    if number <= len(after):
        return number, after[number - 1].decode(errors="replace").strip()
    return max(len(after), 1), "(the rest is gone)"


def _line(data: bytes, number: int) -> str:
    lines = data.decode(errors="replace").splitlines()
    return lines[number - 1].strip() if 0 < number <= len(lines) else ""


# ---- hooks: what Python and pytest run without being asked


def hooks(clone: Clone) -> list[Tampering]:
    """Files outside the course's folders that Python or pytest would run or obey unasked."""
    found = []
    for path in files_below(clone.root / "exercises"):
        if path.name in HOOKS or path.suffix == ".pth":
            name = clone.relative(path)
            found.append(Tampering("hook", _hook_words(path.name), name, 1, _line(_bytes(path), 1)))
    if not clone.root.is_dir():
        return found
    for path in sorted(clone.root.iterdir()):
        stem = path.name.partition(".")[0]
        if path.name in HOOKS or path.suffix == ".pth":
            found.append(Tampering("hook", _hook_words(path.name), path.name, 1, _line(_bytes(path), 1)))
        elif path.name in SETTINGS and path.is_file():
            what = "settings of pytest that do not ship with the course"
            found.append(Tampering("hook", what, path.name, 1, _line(_bytes(path), 1)))
        elif path.name in SHADOWED or (stem in SHADOWED and path.suffix in (".py", ".so", ".pyc")):
            found.append(
                Tampering("hook", f"{path.name} would stand in for the library {stem}", path.name, 1)
            )
    return found


def _hook_words(name: str) -> str:
    if name == "conftest.py":
        return "a conftest.py, which pytest would run before the checks"
    if name.endswith(".pth"):
        return "a .pth file, whose imports Python runs whenever it starts"
    return f"a {name}, which Python runs whenever it starts"


def environment() -> list[Tampering]:
    """What this Python's folders hold that no package installed, and packages that are not as installed."""
    found = []
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    for name in ("sitecustomize", "usercustomize"):
        file = getattr(sys.modules.get(name), "__file__", None)
        if (
            file
            and Path(file).resolve().parent != standard
            and not str(Path(file).resolve()).startswith("/etc/")
        ):
            path = Path(file)
            found.append(Tampering("hook", _hook_words(path.name), _shown(path), 1, _line(_bytes(path), 1)))
    sites = [Path(p) for p in dict.fromkeys(sysconfig.get_path(n) for n in ("purelib", "platlib"))]
    for site in sites:
        found += _loose_pth(site)
    return [*found, *_edited_packages(sites)]


def _loose_pth(site: Path) -> Iterator[Tampering]:
    recorded = None
    for path in sorted(site.glob("*.pth")):
        data = _bytes(path)
        lines = data.decode(errors="replace").splitlines()
        runs = next((n for n, text in enumerate(lines, 1) if text.startswith(("import ", "import\t"))), 0)
        if not runs:
            continue
        if recorded is None:
            recorded = "\n".join(_bytes(r).decode(errors="replace") for r in site.glob("*.dist-info/RECORD"))
        entry = re.search(rf"^{re.escape(path.name)},(?:sha256=([\w=-]+))?", recorded, re.MULTILINE)
        if entry is None:
            yield Tampering("hook", _hook_words(path.name), _shown(path), runs, _line(data, runs))
        elif entry[1] and entry[1] != _record_hash(data):
            what = "a .pth file that is not as its package installed it"
            yield Tampering("hook", what, _shown(path), runs, _line(data, runs))


def _edited_packages(sites: Iterable[Path]) -> Iterator[Tampering]:
    for site in sites:
        for package in PACKAGES:
            for record in site.glob(f"{package}-*.dist-info/RECORD"):
                for name, wanted in re.findall(
                    r"^([^,\n]+\.py),sha256=([\w=-]+)", _bytes(record).decode(), re.M
                ):
                    path = site / name
                    data = _bytes(path)
                    if path.is_file() and _record_hash(data) != wanted:
                        yield Tampering(
                            "package", f"a file of {package} is not as it was installed", _shown(path)
                        )


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def _shown(path: Path) -> str:
    """A path in this Python's folders without the part that says where on this machine that is."""
    parts = path.parts
    for mark in ("site-packages", "dist-packages"):
        if mark in parts:
            return "/".join(parts[parts.index(mark) :])
    return path.name


# ---- the solution's own code


def scan(exercises: Path, modules: Iterable[str]) -> list[Tampering]:
    """What the text of these modules ("week1/rope.py", "kernels/axpby.cpp") says that no solution needs."""
    found = []
    for module in modules:
        path = exercises / module
        if path.is_symlink() or any(p.is_symlink() for p in path.relative_to(exercises).parents if p.name):
            found.append(Tampering("reference", f"a link, to {_target(path)}", f"exercises/{module}"))
        elif path.suffix == ".py":
            found += scan_python(_bytes(path), f"exercises/{module}")
        elif path.is_file():
            found += scan_kernel(_bytes(path), f"exercises/{module}")
    return found


def _target(path: Path) -> str:
    resolved = path.resolve()
    return "/".join(resolved.parts[-3:])


def scan_python(data: bytes, path: str) -> list[Tampering]:
    """Findings in one Python module. A file that does not parse has none: its checks fail anyway."""
    try:
        text = data.decode("utf-8-sig")
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    package = "tinyllm." + ".".join(path.split("/")[:-1])
    lines = text.splitlines()
    found: dict[tuple[int, str], Tampering] = {}

    def note(kind: str, what: str, line: int) -> None:
        source = lines[line - 1].strip() if 0 < line <= len(lines) else ""
        found.setdefault((line, kind), Tampering(kind, what, path, line, source))

    for finding in forbid.scan(text, path, RULES, package):
        kind = KIND_OF_RULE.get(finding.rule.api, "reaches")
        verb = {"imports": "imports", "calls": "calls"}.get(finding.how, "uses")
        note(kind, f"it {verb} {finding.api}: {finding.rule.why}", finding.line)
    foreign = _foreign_names(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) if name in REACHING:
                note("reaches", f"`{name}` leads into the code that grades", node.lineno)
            case ast.Name(id="__builtins__" | "__loader__" as name):
                note("reaches", f"`{name}` leads into the code that grades", node.lineno)
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]) if (
                name in REACHING
            ):
                note("reaches", f"`{name}` leads into the code that grades", node.lineno)
            case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[owner, *_]) if (
                root(owner) in foreign
            ):
                note(
                    "patched",
                    f"it changes `{ast.unparse(owner)}`, which is not the solution's own",
                    node.lineno,
                )
        for target in _targets(node):
            owner = _changed(target)
            if owner is not None and root(owner) in foreign:
                what = f"it changes `{ast.unparse(target)}`, which is not the solution's own"
                note("patched", what, node.lineno)
    return sorted(found.values(), key=lambda f: f.line)


def scan_kernel(data: bytes, path: str) -> list[Tampering]:
    """Findings in a C++ or GPU source: files included that are not its own, programs started."""
    text = data.decode(errors="replace")
    found = []
    for match in FOREIGN_SOURCE.finditer(text):
        line = text.count("\n", 0, match.start("include" if match["include"] else "call")) + 1
        source = _line(data, line)
        if match["call"]:
            if not source.startswith(("//", "*")):
                found.append(Tampering("process", "it starts or loads another program", path, line, source))
        elif "reference" in match["include"] or ".." in match["include"] or match["include"][1:2] == "/":
            found.append(Tampering("reference", f"it includes {match['include']}", path, line, source))
    return found


def _foreign_names(tree: ast.AST) -> frozenset[str]:
    """Names that an absolute import binds anywhere in the module: what hangs on them is somebody else's."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                names.update(a.asname or a.name.partition(".")[0] for a in aliases)
            case ast.ImportFrom(level=0, names=aliases):
                names.update(a.asname or a.name for a in aliases)
    return frozenset(names)


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            yield from targets
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            yield target


def _changed(target: ast.expr) -> ast.expr | None:
    """What an assignment changes: x of `x.a = ...`, of `x.__dict__["a"] = ...`, of `vars(x)["a"] = ...`."""
    match target:
        case ast.Attribute(value=owner):
            return owner
        case ast.Subscript(value=ast.Attribute(value=owner, attr="__dict__")):
            return owner
        case ast.Subscript(value=ast.Call(func=ast.Name(id="vars"), args=[owner])):
            return owner
    return None


def root(node: ast.expr) -> str:
    """The name that a chain of attributes starts from; "" when it starts from no name."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def reachable(exercises: Path, modules: Iterable[str]) -> list[str]:
    """These modules and all of the tree that they import, at any depth, with the packages' own files; and
    every header and source in kernels/ once one of these is there."""
    found: dict[str, None] = {}
    todo = list(modules)
    while todo:
        module = todo.pop(0)
        path = exercises / module
        if module in found or not (path.exists() or path.is_symlink()):
            continue
        found[module] = None
        if path.suffix == ".py":
            todo += [f"{parent}__init__.py" for parent in ("", *_parents(module))]
            todo += _imported(_bytes(path), module)
        elif module.startswith("kernels/"):
            todo += [p.relative_to(exercises).as_posix() for p in files_below(path.parent)]
    return list(found)


def _parents(module: str) -> Iterator[str]:
    parts = module.split("/")[:-1]
    for count in range(1, len(parts) + 1):
        yield "/".join(parts[:count]) + "/"


def _imported(data: bytes, module: str) -> Iterator[str]:
    """The files of the tree that a module's imports may mean; those that do not exist among them."""
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    package = module.split("/")[:-1]
    for node in ast.walk(tree):
        names: list[list[str]] = []
        match node:
            case ast.ImportFrom(level=level, module=name, names=aliases) if 0 < level <= len(package) + 1:
                base = package[: len(package) - level + 1] + (name.split(".") if name else [])
                names = [base, *([*base, a.name] for a in aliases)]
            case ast.ImportFrom(level=0, module=str(name), names=aliases) if name.startswith(
                "tinyllm.exercises"
            ):
                base = name.split(".")[2:]
                names = [base, *([*base, a.name] for a in aliases)]
            case ast.Import(names=aliases):
                names = [a.name.split(".")[2:] for a in aliases if a.name.startswith("tinyllm.exercises.")]
        for parts in names:
            if parts:
                yield "/".join(parts) + ".py"
                yield "/".join(parts) + "/__init__.py"
