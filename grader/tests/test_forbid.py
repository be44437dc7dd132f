"""Forbidden APIs in the syntax tree: what is found, where, and what is left alone."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tinyllm.grader.catalog import Rule
from tinyllm.grader.forbid import RuleBook, explain, line_binding, scan

RULES = tuple(
    Rule(api, why=f"{api} is not for solutions", instead="the plain operations")
    for api in (
        "mlx.core.fast.*",
        "mlx.nn.*",
        "numpy.*",
        "torch.*",
        "mlx_lm.*",
        "tinyllm.reference.*",
        "mlx.core.softmax",
        "mlx.core.linalg.norm",
    )
)

# name, source, findings as "line how api symbol"
REFUSED = [
    ("attribute", "import mlx.core as mx\nmx.softmax(x)", ["2 calls mlx.core.softmax"]),
    ("any alias", "import mlx.core as m\nm.softmax(x)", ["2 calls mlx.core.softmax"]),
    ("no alias", "import mlx.core\nmlx.core.softmax(x)", ["2 calls mlx.core.softmax"]),
    ("from mlx", "from mlx import core\ncore.softmax(x)", ["2 calls mlx.core.softmax"]),
    (
        "deeper",
        "import mlx.core as mx\nmx.linalg.norm(x)\nmx.linalg.inv(x)",
        ["2 calls mlx.core.linalg.norm"],
    ),
    ("from import", "from mlx.core import softmax", ["1 imports mlx.core.softmax"]),
    (
        "from import as",
        "from mlx.core.fast import rms_norm as r\nr(x)",
        ["1 imports mlx.core.fast.rms_norm", "2 calls mlx.core.fast.rms_norm"],
    ),
    ("module alias", "from mlx.core import fast as f\nf.rope(x)", ["2 calls mlx.core.fast.rope"]),
    ("import of a module as", "import mlx.core.fast as f\nf.rope(x)", ["2 calls mlx.core.fast.rope"]),
    ("in parentheses", "from mlx.core import (\n    exp,\n    softmax,\n)", ["3 imports mlx.core.softmax"]),
    (
        "local import",
        "def f(x):\n    from mlx.core import fast\n    return fast.rope(x)",
        ["3 calls mlx.core.fast.rope f"],
    ),
    (
        "assignment",
        "import mlx.core as mx\nsm = mx.softmax\ndef f(x):\n    return sm(x)",
        ["2 uses mlx.core.softmax", "4 calls mlx.core.softmax f"],
    ),
    (
        "annotated assignment",
        "import mlx.core as mx\nf: object = mx.fast\nf.rope(x)",
        ["3 calls mlx.core.fast.rope"],
    ),
    (
        "chain of aliases",
        "import mlx.core as mx\na = mx\nb = a.fast\nb.rope(x)",
        ["4 calls mlx.core.fast.rope"],
    ),
    ("tuple assignment", "import mlx.core as mx\na, b = mx, 1\na.softmax(x)", ["3 calls mlx.core.softmax"]),
    (
        "walrus",
        "import mlx.core as mx\n(f := mx.fast).rope(f.rope)",
        ["2 calls mlx.core.fast.rope", "2 uses mlx.core.fast.rope"],
    ),
    (
        "walrus in a comprehension",
        "import mlx.core as mx\n[(f := mx.fast) for _ in y]\nf.rope(x)",
        ["3 calls mlx.core.fast.rope"],
    ),
    ("getattr", 'import mlx.core as mx\ngetattr(mx, "softmax")(x)', ["2 calls mlx.core.softmax"]),
    (
        "getattr uncalled",
        'import mlx.core as mx\ns = getattr(mx, "softmax", None)',
        ["2 uses mlx.core.softmax"],
    ),
    ("getattr in pieces", 'import mlx.core as mx\ngetattr(mx, "soft" + "max")', ["2 uses mlx.core.softmax"]),
    (
        "getattr of a module",
        'import mlx.core as mx\ngetattr(mx, "fast").rope(x)',
        ["2 calls mlx.core.fast.rope"],
    ),
    (
        "builtins.getattr",
        'import builtins\nimport mlx.core as mx\nbuiltins.getattr(mx.fast, "rope")',
        ["3 uses mlx.core.fast.rope"],
    ),
    ("vars", 'import mlx.core as mx\nvars(mx)["softmax"](x)', ["2 calls mlx.core.softmax"]),
    ("__dict__", 'import mlx.core as mx\nmx.__dict__["softmax"]', ["2 uses mlx.core.softmax"]),
    ("the whole module", "import mlx.core as mx\ng(mx.fast)", ["2 uses mlx.core.fast"]),
    ("its vars", "import mlx.core as mx\nvars(mx.fast)[n]", ["2 uses mlx.core.fast"]),
    ("default argument", "import mlx.core as mx\ndef f(op=mx.softmax): pass", ["2 uses mlx.core.softmax f"]),
    (
        "keyword default",
        "import mlx.core as mx\ndef f(*, op=mx.softmax): pass",
        ["2 uses mlx.core.softmax f"],
    ),
    ("argument", "import mlx.core as mx\npartial(mx.softmax, axis=-1)", ["2 uses mlx.core.softmax"]),
    ("decorator", "import mlx.core as mx\n@mx.softmax\ndef f(): pass", ["2 uses mlx.core.softmax f"]),
    ("lambda", "import mlx.core as mx\ng = lambda x: mx.softmax(x)", ["2 calls mlx.core.softmax"]),
    ("comprehension", "import mlx.core as mx\n[mx.softmax(r) for r in x]", ["2 calls mlx.core.softmax"]),
    ("f-string", 'import mlx.core as mx\nf"{mx.softmax(x)}"', ["2 calls mlx.core.softmax"]),
    ("its attribute", "import mlx.core as mx\nmx.softmax.__call__(x)", ["2 calls mlx.core.softmax"]),
    ("its result", "import mlx.core as mx\nmx.softmax(x).astype(t)", ["2 calls mlx.core.softmax"]),
    (
        "either branch of try",
        "try:\n    import mlx.core as mx\nexcept ImportError:\n    mx = None\nmx.softmax(x)",
        ["5 calls mlx.core.softmax"],
    ),
    (
        "global",
        "def f():\n    global mx\n    import mlx.core as mx\ndef g(x):\n    return mx.softmax(x)",
        ["5 calls mlx.core.softmax g"],
    ),
    (
        "nonlocal",
        "import mlx.core as mx\ndef f():\n    op = None\n    def g():\n        nonlocal op\n"
        "        op = mx.fast\n    return op.rope",
        ["7 uses mlx.core.fast.rope f"],
    ),
    (
        "star import",
        "from mlx.core import *\nsoftmax(x)\nfast.rope(x)",
        ["2 calls mlx.core.softmax", "3 calls mlx.core.fast.rope"],
    ),
    ("star import of what is refused", "from mlx.core.fast import *", ["1 imports mlx.core.fast.*"]),
    # Packages that may not be imported.
    ("numpy", "import numpy", ["1 imports numpy"]),
    ("numpy used", "import numpy as np\nnp.exp(x)", ["1 imports numpy", "2 calls numpy.exp"]),
    ("numpy member", "from numpy import exp", ["1 imports numpy.exp"]),
    ("numpy submodule", "import numpy.linalg", ["1 imports numpy.linalg"]),
    ("numpy star", "from numpy import *", ["1 imports numpy.*"]),
    ("among others", "import math, torch.nn as tn", ["1 imports torch.nn"]),
    ("import_module", 'import importlib\nimportlib.import_module("numpy")', ["2 imports numpy"]),
    (
        "import_module by name",
        'from importlib import import_module as i\ni("mlx_lm.utils").load(p)',
        ["2 calls mlx_lm.utils.load"],
    ),
    ("import_module, used", 'import importlib\nnp = importlib.import_module("numpy")', ["2 imports numpy"]),
    ("__import__", '__import__("numpy")', ["1 imports numpy"]),
    ("__import__ member", '__import__("numpy.linalg").exp(x)', ["1 calls numpy.exp"]),
    ("__import__ fromlist", '__import__("numpy.linalg", fromlist=["x"]).norm', ["1 uses numpy.linalg.norm"]),
    ("sys.modules", 'import sys\nsys.modules["numpy"].exp(x)', ["2 calls numpy.exp"]),
    ("sys.modules.get", 'from sys import modules\nmodules.get("numpy")', ["2 uses numpy"]),
    (
        "import_module of an allowed module",
        'import importlib\nimportlib.import_module("mlx.core").softmax(x)',
        ["2 calls mlx.core.softmax"],
    ),
    ("reference", "from tinyllm.reference.week1 import rope", ["1 imports tinyllm.reference.week1.rope"]),
    ("reference itself", "from tinyllm import reference", ["1 imports tinyllm.reference"]),
    (
        "reference as an attribute",
        "import tinyllm\ntinyllm.reference.week1.rope.RoPE(4, 8)",
        ["2 calls tinyllm.reference.week1.rope.RoPE"],
    ),
    ("climbing out", "from ...reference.week1 import rope", ["1 imports tinyllm.reference.week1.rope"]),
    ("climbing out to the name", "from ... import reference", ["1 imports tinyllm.reference"]),
    (
        "climbing with import_module",
        'from importlib import import_module\nimport_module("...reference.week1", __package__)',
        ["2 imports tinyllm.reference.week1"],
    ),
    # mlx.nn: types may be named, nothing may be called or derived from.
    ("layer made", "import mlx.nn as nn\nnn.Linear(3, 4)", ["2 calls mlx.nn.Linear"]),
    ("layer by name", "from mlx.nn import Linear\nLinear(3, 4)", ["2 calls mlx.nn.Linear"]),
    ("layer by alias", "import mlx.nn as nn\nL = nn.Linear\nL(3, 4)", ["3 calls mlx.nn.Linear"]),
    ("function", "import mlx.nn as nn\nnn.silu(x)", ["2 calls mlx.nn.silu"]),
    ("function handed on", "import mlx.nn as nn\nact = nn.silu", ["2 uses mlx.nn.silu"]),
    ("function imported", "from mlx.nn import silu", ["1 imports mlx.nn.silu"]),
    (
        "from a submodule",
        "from mlx.nn.layers import activations as a\na.silu(x)",
        ["2 calls mlx.nn.layers.activations.silu"],
    ),
    ("unbound method", "import mlx.nn as nn\nnn.Linear.__call__(l, x)", ["2 calls mlx.nn.Linear.__call__"]),
    ("base class", "import mlx.nn as nn\nclass A(nn.Module): pass", ["2 uses mlx.nn.Module A"]),
    ("base class by alias", "from mlx.nn import Linear as L\nclass A(L): pass", ["2 uses mlx.nn.Linear A"]),
    ("module star", "from mlx.nn import *", ["1 imports mlx.nn.*"]),
    ("module handed on", "import mlx.nn as nn\nvars(nn)", ["2 uses mlx.nn"]),
]

ALLOWED = [
    ("plain operations", "import mlx.core as mx\nmx.exp(x) / mx.sum(x, axis=-1, keepdims=True)"),
    ("own function", "def softmax(x): return x\nsoftmax(x)\nfast = 3\nfast + 1"),
    ("own method", "class A:\n    def softmax(self, x): return self.softmax(x)"),
    ("own module", "from .attention import softmax\nfrom . import rope\nsoftmax(rope.RoPE(4, 8))"),
    ("own module of another week", "from ..week1.attention import softmax\nsoftmax(x)"),
    ("too many dots", "from ......reference import rope\nrope(x)"),
    (
        "import_module of a sibling",
        'import importlib\nimportlib.import_module(".rope", __package__).RoPE(4, 8)',
    ),
    ("parameter", "import mlx.core as mx\ndef f(mx): return mx.softmax(x)"),
    ("every kind of parameter", "def f(a, /, mx, *np, fast, **nn): mx.softmax(np.x, nn.silu, fast.rope)"),
    ("lambda parameter", "import mlx.core as mx\nlambda mx: mx.softmax(1)"),
    ("local variable", "import mlx.core as mx\ndef f():\n    mx = Fake()\n    return mx.softmax(x)"),
    (
        "local variable of an outer function",
        "import mlx.core as mx\ndef f(mx):\n    def g(): return mx.softmax",
    ),
    ("local tuple", "import mlx.core as mx\ndef f():\n    mx, *rest = y\n    return mx.softmax(x)"),
    ("loop variable", "import mlx.core as mx\ndef f():\n    for mx in y: mx.softmax(x)"),
    ("comprehension variable", "import mlx.core as mx\n[mx.softmax(x) for mx in y for z in mx if z]"),
    ("with", "import mlx.core as mx\ndef f():\n    with y as mx: mx.softmax(x)"),
    ("except", "import mlx.core as mx\ndef f():\n    try: y()\n    except E as mx: mx.softmax(x)"),
    (
        "match",
        "import mlx.core as mx\ndef f(y):\n    match y:\n        case {'a': 1, **mx}: mx.softmax(x)\n"
        "        case [*mx]: mx.softmax(x)\n        case mx: mx.softmax(x)",
    ),
    ("redefined", "from mlx.core import *\ndef softmax(x): return x\nsoftmax(x)"),
    ("own getattr", "import mlx.core as mx\ndef getattr(a, b): return b\ngetattr(mx, 'softmax')"),
    ("computed name", "import mlx.core as mx\ngetattr(mx, name)(x)\ngetattr(mx, name + 'x')\nvars(mx)[name]"),
    ("names that begin alike", "import numpy_like, mlx.core as mx\nmx.softmax2(x)\nmx.fastest.rope(x)"),
    (
        "a class body is no scope",
        "class A:\n    import mlx.core as mx\n    def f(self): return mx.softmax(x)",
    ),
    ("strings and comments", '"""mx.softmax(x)"""\ns = "import numpy"  # mx.fast.rope\n'),
    ("module alone", "from mlx.core import fast\nimport mlx.core.fast\nimport mlx.nn.layers.linear"),
    ("alias of itself", "mx = mx\nmx.softmax(x)\na = b\nb = a\nb.softmax(x)"),
    ("nothing", ""),
    ("calls with a text", 'print("numpy")\nopen("torch").read("numpy")'),
    ("global bound nowhere", "def f(x):\n    global softmax\n    return softmax(x)"),
    ("empty calls", "import importlib, sys\nimportlib.import_module()\nsys.modules[0]\nx[0]()()"),
    (
        "nn in annotations",
        "import mlx.nn as nn\nlayer: nn.Module\nclass A:\n    mlp: nn.Linear | None = None\n"
        "def f(a: nn.Linear, *b: 'nn.Module', **c: list[nn.Embedding]) -> nn.Module: pass",
    ),
    ("nn functions in annotations", "import mlx.nn as nn\ndef f(a: Literal[nn.silu]): pass"),
    (
        "nn in isinstance",
        "import mlx.nn as nn\nisinstance(x, (nn.Linear, nn.QuantizedLinear))\ntype(x) is nn.Linear",
    ),
    ("nn in issubclass", "from mlx.nn import Module\nissubclass(t, Module)"),
    ("nn in match", "import mlx.nn as nn\nmatch x:\n    case nn.Linear(): pass"),
    ("nn type alias", "import mlx.nn as nn\nLayer = nn.Linear | nn.QuantizedLinear\nnn.Linear.__name__"),
    ("nn modules", "from mlx.nn import layers, losses\nfrom mlx.nn.layers import linear\ny: linear.Linear"),
    ("numpy in an annotation of another name", "def f(x: np.ndarray): pass"),
]


def found(source: str, **options: str) -> list[str]:
    findings = scan(source, "attention.py", RULES, **options)
    return [f"{f.line} {f.how} {f.api} {f.symbol}".rstrip() for f in findings]


@pytest.mark.parametrize(("source", "expected"), [pytest.param(s, e, id=i) for i, s, e in REFUSED])
def test_refused(source: str, expected: list[str]) -> None:
    assert found(source) == expected


@pytest.mark.parametrize("source", [pytest.param(s, id=i) for i, s in ALLOWED])
def test_allowed(source: str) -> None:
    assert found(source) == []


def test_symbols_lines_and_columns() -> None:
    source = textwrap.dedent(
        """\
        import mlx.core as mx
        é = 1; a = mx.softmax
        if True:
            def helper(x):
                def inner(y):
                    return mx.softmax(y)
                return inner(x)
        class Attention:
            op = mx.softmax
            def __call__(self, x, op=mx.softmax):
                return [mx.softmax(v) for v in x]
            class Inner:
                def f(self):
                    mx.softmax(0)
        async def late(x):
            return mx.softmax(x)
        """
    )
    findings = scan(source, "attention.py", RULES)
    assert [(f.line, f.column, f.symbol) for f in findings] == [
        (2, 12, ""),
        (6, 20, "helper"),
        (9, 10, "Attention"),
        (10, 30, "Attention.__call__"),
        (11, 17, "Attention.__call__"),
        (14, 13, "Attention"),
        (16, 12, "late"),
    ]
    assert {f.rule for f in findings} == {RULES[6]}


def test_the_reference_may_import_its_own_tree() -> None:
    package = "tinyllm.reference.week1"
    assert found("from .rope import RoPE\nfrom . import gqa\nRoPE(gqa.x)", package=package) == []
    assert found("from ...reference.week1.rope import RoPE", package=package) == []
    assert found("from tinyllm.reference.week1 import rope", package=package) == [
        "1 imports tinyllm.reference.week1.rope"
    ]


def test_the_most_specific_rule_speaks() -> None:
    course, day = Rule("mlx.core.fast.*", "course", ""), Rule("mlx.core.fast.rope", "day", "")
    for rules in ((course, day), (day, course)):
        source = "from mlx.core.fast import rope, rms_norm"
        assert [f.rule.why for f in scan(source, "", rules)] == ["day", "course"]


def test_no_rules_no_findings() -> None:
    assert scan("import numpy\nimport mlx.core as mx\nmx.softmax(numpy.e)", "", ()) == ()


@pytest.mark.parametrize(
    "source",
    ["def f(:\n", "x = '\0'", "x = '\ud800'", "x = " + "-" * 100_000 + "1"],
    ids=["colon", "null", "half", "deep"],
)
def test_what_is_no_python_is_a_syntax_error(source: str) -> None:
    with pytest.raises(SyntaxError) as caught:
        scan(source, "week1/attention.py", RULES)
    assert caught.value.filename == "week1/attention.py"


@pytest.mark.parametrize("part", [" + 1", ".f(1)", "[0]", ".a"], ids=["sum", "calls", "items", "attributes"])
def test_long_expressions(part: str) -> None:
    assert found("import mlx.core as mx\nx = mx.softmax(y)" + part * 900) == ["2 calls mlx.core.softmax"]


def test_type_parameters() -> None:
    source = (
        "import mlx.nn as nn\ntype L = nn.silu\ndef f[T: nn.silu](x: T): T.silu(x)\nclass A[nn]: y = nn.silu"
    )
    if sys.version_info >= (3, 12):
        assert found(source) == []
    else:  # no syntax yet
        with pytest.raises(SyntaxError):
            found(source)


def test_rule_book() -> None:
    book = RuleBook((*RULES, Rule("jax", "", "")))
    assert book.import_roots == {"numpy", "torch", "mlx_lm", "tinyllm", "jax"}
    assert [r.api for r in book.call_rules] == [
        "mlx.core.softmax",
        "mlx.core.linalg.norm",
        "mlx.core.fast.*",
        "mlx.nn.*",
    ]
    assert book.importing("jax.numpy")
    assert book.importing("mlx.nn") is None
    assert book.covering("mlx.core.fast") is None
    assert book.namespace("mlx.core.fast") == RULES[0]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import mlx.nn as nn\nsilu = nn.silu\ndef f():\n    silu = 3", 2),
        ("x = 1\nfrom mlx.core import (\n    exp,\n    softmax as silu,\n)", 4),
        ("if True:\n    from mlx.nn import silu\nclass A:\n    silu = 1", 2),
        ("from mlx.nn import *\nrelu = 1", 1),
        ("silu = None\na, silu = 1, 2", 2),
        ("silu: object = lambda silu: 1", 1),
        ("setattr(module, 'silu', f)", 0),
    ],
)
def test_line_binding(source: str, line: int) -> None:
    assert line_binding("silu", source) == line


def test_explain_is_a_sentence_of_three_parts() -> None:
    rule = Rule("numpy.*", why="solutions run on the device", instead="mlx.core")
    assert explain("numpy.exp", rule) == (
        "numpy.exp is used, which this day refuses: solutions run on the device. Allowed instead: mlx.core."
    )


def test_scanning_needs_neither_mlx_nor_numpy() -> None:
    program = "import sys, tinyllm.grader.forbid; print({'mlx', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
