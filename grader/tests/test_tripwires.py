"""Forbidden APIs at run time: real child processes in which a solution on disk is imported and called.

Each child has a solution tree, a folder of tests and a library that is neither. It arms the tripwires,
imports every solution module and calls its `run` from the tests' folder, as grading does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tinyllm.grader.catalog import Rule
from tinyllm.grader.forbid import explain

APIS = (
    "mlx.core.fast.*",
    "mlx.nn.*",
    "numpy.*",
    "torch.*",
    "mlx_lm.*",
    "tinyllm.reference.*",
    "mlx.core.softmax",
    "mlx.core.no_such_function",
    "mlx.core.no_such_module.thing",
)

CHILD = """
import importlib, json, sys, types
from pathlib import Path
from tinyllm.grader.catalog import Rule
from tinyllm.grader.tripwires import ForbiddenAPI, Tripwires

root, tree, apis, before = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(), sys.argv[4].split()
for name in before:
    importlib.import_module(name)
sys.path.append(str(root / "library"))
for package in ("exercises", "exercises.week1", "reference", "reference.week1"):
    module = sys.modules["tinyllm." + package] = types.ModuleType("tinyllm." + package)
    module.__path__ = [str(root.joinpath(*package.split(".")))]
tripwires = Tripwires(
    tuple(Rule(a, f"the reason of {a}", f"what replaces {a}") for a in apis),
    lambda filename: filename.startswith(str(root / tree)),
    lambda filename: filename.startswith(str(root / "checks")),
)
tripwires.arm()

import mlx.core as mx
sys.path.append(str(root / "checks"))
import calling

results = {}
for file in sorted((root / tree / "week1").glob("*.py")):
    tripwires.clear()
    result = results[file.stem] = {"error": None, "returned": None}
    try:
        module = importlib.import_module(f"tinyllm.{tree}.week1.{file.stem}")
        x = mx.array([[1.0, 2.0, 3.0], [0.5, 0.25, 0.125]])
        result["returned"] = repr(calling.call(module, x, tripwires))
    except ForbiddenAPI as error:
        result["error"] = "ForbiddenAPI"
        result |= {"api": error.api, "path": error.path, "line": error.line, "text": str(error)}
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
    result["tripped"] = [[t.api, t.rule.api, t.path, t.line, t.function] for t in tripwires.tripped]
results["loaded"] = [m for m in ("numpy", "mlx.nn", "mlx_lm") if m in sys.modules]
print("RESULTS " + json.dumps(results))
"""

# What a test of the course looks like to the stack; `call` may hand things over, as tests do.
CALLING = """
import mlx.core as mx

def oracle(x):
    "Everything is free to a test, in its own frames and in the libraries that it calls."
    import mlx.nn as nn
    import numpy as np

    class Derived(nn.Linear):
        pass

    rows = np.array(nn.silu(mx.softmax(mx.fast.rms_norm(x, None, 1e-5), axis=-1)))
    made = nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.GELU(), Derived(4, 3))(x)
    quantized = nn.QuantizedLinear.from_linear(nn.Linear(64, 8))(mx.ones((1, 64)))
    logits = nn.QuantizedEmbedding(8, 64).as_linear(mx.ones((1, 64)))
    return rows.shape, made.shape, quantized.shape, logits.shape

def call(module, x, tripwires):
    if hasattr(module, "run"):
        return module.run(x)
    if hasattr(module, "with_oracle"):
        return module.with_oracle(x, oracle)
    if hasattr(module, "with_layer"):
        import mlx.nn as nn
        return module.with_layer(x, nn.Linear(3, 3), nn.Embedding(5, 3))
    if hasattr(module, "with_model"):
        import mlx_lm
        from mlx_lm.models import qwen2
        settings = dict(model_type="qwen2", hidden_size=8, num_hidden_layers=1, intermediate_size=16)
        settings |= dict(num_attention_heads=2, rms_norm_eps=1e-6, vocab_size=11, num_key_value_heads=1)
        model = qwen2.Model(qwen2.ModelArgs(**settings))
        logits = model(mx.array([[1, 2, 3]]))
        mx.eval(logits)
        assert logits.shape == (1, 3, 11)
        return module.with_model(model)
    for name in module.PROVIDED:
        tripwires.check_provided(getattr(module, name), name=name, path=module.__file__)
"""

LIBRARY = """
def lazily_import_numpy():
    import numpy
    return numpy.float64(2.0)

def softmax_of(x):
    import mlx.core as mx
    return mx.softmax(x, axis=-1)
"""


@dataclass(frozen=True)
class Route:
    """A solution module, the API it must be refused for ("" for none) and the line it must be refused at."""

    api: str
    source: str
    line: int


def routes(text: str) -> dict[str, Route]:
    """The modules in a text of sections that begin `== name api`; the line to be named ends in `# here`."""
    found = {}
    for section in text.strip().removeprefix("== ").split("\n== "):
        head, _, body = section.partition("\n")
        name, _, api = head.partition(" ")
        source = f"import mlx.core as mx\n{body}\n"
        marked = [n for n, line in enumerate(source.splitlines(), 1) if line.endswith("# here")]
        assert len(marked) == bool(api)
        found[name] = Route(api, source, sum(marked))
    return found


@dataclass(frozen=True)
class Seen:
    """What a child reported, by module."""

    results: dict[str, dict[str, Any]]
    folder: Path  # where the solution modules are


def grade(
    folder: Path,
    modules: dict[str, Route],
    *,
    tree: str = "exercises",
    apis: tuple[str, ...] = APIS,
    before: tuple[str, ...] = (),
) -> Seen:
    """Arm, then import and call each module, in one child. `before` is imported before arming."""
    solution = folder / tree / "week1"
    solution.mkdir(parents=True)
    for name, route in modules.items():
        (solution / f"{name}.py").write_text(route.source, encoding="utf-8")
    for file, text in (("child.py", CHILD), ("checks/calling.py", CALLING), ("library/library.py", LIBRARY)):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")
    command = [sys.executable, "-P", folder / "child.py", folder, tree, " ".join(apis), " ".join(before)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return Seen(json.loads(done.stdout.rpartition("RESULTS ")[2]), solution)


REFUSED = routes(
    """
== attribute mlx.core.softmax
def run(x):
    return mx.softmax(x, axis=-1)  # here
== at_import mlx.core.softmax
y = mx.softmax(mx.ones((2,)))  # here
== alias mlx.core.softmax
sm = mx.softmax
def run(x):
    return sm(x)  # here
== from_import mlx.core.fast.rms_norm
from mlx.core.fast import rms_norm as r
def run(x):
    return r(x, None, 1e-5)  # here
== star_import mlx.core.softmax
from mlx.core import *
def run(x):
    return softmax(x)  # here
== module_alias mlx.core.fast.rms_norm
f = mx.fast
def run(x):
    return f.rms_norm(x, None, 1e-5)  # here
== getattr_computed mlx.core.softmax
def run(x):
    name = ''.join(['soft', 'max'])
    return getattr(mx, name)(x)  # here
== vars_of_module mlx.core.softmax
def run(x):
    return vars(mx)['softmax'](x)  # here
== attrgetter mlx.core.softmax
import operator
def run(x):
    return operator.methodcaller('softmax', x)(mx)  # here
== default_argument mlx.core.softmax
def inner(x, op=mx.softmax):
    return op(x)  # here
def run(x):
    return inner(x)
== partial mlx.core.softmax
from functools import partial
last = partial(mx.softmax, axis=-1)
def run(x):
    return last(x)  # here
== mapped mlx.core.softmax
def run(x):
    return list(map(mx.softmax, [x, x]))  # here
== comprehension mlx.core.softmax
def run(x):
    return [mx.softmax(r) for r in x]  # here
== generator mlx.core.softmax
def rows(x):
    for r in x:
        yield mx.softmax(r)  # here
def run(x):
    return list(rows(x))
== lambda_ mlx.core.softmax
sm = lambda x: mx.softmax(x)  # here
def run(x):
    return sm(x)
== compiled mlx.core.softmax
def run(x):
    return mx.compile(mx.softmax)(x)  # here
== compiled_function mlx.core.softmax
@mx.compile
def f(x):
    return mx.softmax(x)  # here
def run(x):
    return f(x)
== vmapped mlx.core.softmax
def run(x):
    return mx.vmap(mx.softmax)(x)  # here
== grad mlx.core.softmax
def run(x):
    return mx.grad(lambda y: mx.softmax(y).sum())(x)  # here
== value_and_grad mlx.core.softmax
def run(x):
    return mx.value_and_grad(mx.softmax)(x[0])  # here
== checkpointed mlx.core.softmax
def run(x):
    return mx.checkpoint(mx.softmax)(x)  # here
== evaluated mlx.core.softmax
def run(x):
    return eval('mx.softmax(x)')  # here
== executed mlx.core.softmax
def run(x):
    scope = dict(globals(), x=x)
    exec('def f():\\n  mx.softmax(x)\\nf()', scope)  # here
== staticmethod_ mlx.core.softmax
class A:
    op = staticmethod(mx.softmax)
    def f(self, x):
        return self.op(x)  # here
def run(x):
    return A().f(x)
== in_a_library mlx.core.softmax
from library import softmax_of
def run(x):
    return softmax_of(x)  # here
== caught mlx.core.softmax
def run(x):
    try:
        return mx.softmax(x)  # here
    except BaseException:
        return x
== caught_often mlx.core.softmax
def run(x):
    for _ in range(1000):
        try:
            mx.softmax(x)  # here
        except Exception:
            pass
== thread mlx.core.softmax
import threading
def work(x):
    mx.softmax(x)  # here
def run(x):
    t = threading.Thread(target=work, args=(x,))
    t.start()
    t.join()
== thread_of_nothing_else mlx.core.softmax
import threading
def run(x):
    t = threading.Thread(target=mx.softmax, args=(x,)); t.start(); t.join()  # here
== thread_pool mlx.core.softmax
from concurrent.futures import ThreadPoolExecutor
def run(x):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(mx.softmax, x).result()  # here
== nn_function mlx.nn.silu
import mlx.nn as nn
def run(x):
    return nn.silu(x)  # here
== nn_from_import mlx.nn.silu
from mlx.nn import silu
def run(x):
    return silu(x)  # here
== nn_inner_module mlx.nn.silu
def run(x):
    from mlx.nn.layers.activations import silu
    return silu(x)  # here
== nn_imported_by_name mlx.nn.silu
import importlib
def run(x):
    return importlib.import_module('mlx.nn').silu(x)  # here
== nn_loss mlx.nn.losses.mse_loss
import mlx.nn as nn
def run(x):
    return nn.losses.mse_loss(x, x)  # here
== nn_made mlx.nn.Linear
import mlx.nn as nn
def run(x):
    return nn.Linear(3, 4)(x)  # here
== nn_activation_class mlx.nn.SiLU
import mlx.nn as nn
act = nn.SiLU()  # here
== nn_layer mlx.nn.Linear
def with_layer(x, linear, table):
    return linear(x)  # here
== nn_layer_mapped mlx.nn.Linear
def with_layer(x, linear, table):
    return list(map(linear, x))  # here
== nn_layer_unbound mlx.nn.Linear
def with_layer(x, linear, table):
    return type(linear).__call__(linear, x)  # here
== nn_layer_method mlx.nn.Embedding.as_linear
def with_layer(x, linear, table):
    return table.as_linear(x)  # here
== nn_class_method mlx.nn.QuantizedLinear.from_linear
def with_layer(x, linear, table):
    import mlx.nn as nn
    nn.QuantizedLinear.from_linear(linear)  # here
== nn_static_method mlx.nn.MultiHeadAttention.create_additive_causal_mask
import mlx.nn as nn
def run(x):
    nn.MultiHeadAttention.create_additive_causal_mask(3)  # here
== nn_without_init mlx.nn.Linear
import mlx.nn as nn
def run(x):
    layer = nn.Linear.__new__(nn.Linear)
    layer['weight'] = x
    return layer(x)  # here
== nn_derived mlx.nn.Linear
import mlx.nn as nn
class A(nn.Linear):  # here
    pass
== nn_derived_from_module mlx.nn.Module
from mlx.nn import Module as M
class A(M):  # here
    def __call__(self, x): return x
== nn_derived_by_type mlx.nn.Linear
import mlx.nn as nn
A = type('A', (nn.Linear,), {})  # here
== nn_derived_in_exec mlx.nn.Linear
import mlx.nn as nn
exec('class A(nn.Linear): pass')  # here
== numpy_ numpy
import numpy as np  # here
== numpy_late numpy
def run(x):
    import numpy as np  # here
== numpy_member numpy
from numpy import exp  # here
== numpy_submodule numpy.linalg
def run(x):
    import numpy.linalg  # here
== numpy_by_name numpy
import importlib
np = importlib.import_module('numpy')  # here
== numpy_by_function numpy
np = __import__('numpy')  # here
== numpy_by_importlib numpy
import importlib
np = importlib.__import__('numpy')  # here
== numpy_in_exec numpy
exec('import numpy')  # here
== numpy_or_not numpy
try:
    import numpy  # here
except ImportError:
    numpy = None
== numpy_caught numpy
try:
    import numpy  # here
except Exception:
    numpy = None
def run(x):
    return x
== torch_ torch.nn
from torch.nn import functional  # here
== mlx_lm_ mlx_lm.utils
def run(x):
    from mlx_lm.utils import load  # here
== reference_ tinyllm.reference.week1
from tinyllm.reference.week1 import rope  # here
== reference_itself tinyllm.reference
from tinyllm import reference  # here
== reference_climbing tinyllm.reference.week1.rope
from ...reference.week1.rope import RoPE  # here
== reference_climbing_far tinyllm.reference
from ... import reference  # here
== reference_by_name tinyllm.reference.week1
import importlib
importlib.import_module('...reference.week1', __package__)  # here
== provided mlx.nn.silu
PROVIDED = ['silu']
import mlx.nn as nn
silu = nn.silu  # here
== provided_by_import mlx.core.softmax
PROVIDED = ['softmax']
from mlx.core import softmax  # here
== provided_partly mlx.core.softmax
PROVIDED = ['softmax']
from functools import partial
softmax = partial(partial(mx.softmax), axis=-1)  # here
== provided_class mlx.nn.RMSNorm
PROVIDED = ['RMSNorm']
from mlx.nn import RMSNorm  # here
== provided_static mlx.core.softmax
PROVIDED = ['softmax']
softmax = staticmethod(mx.softmax)  # here
== provided_method mlx.core.softmax
PROVIDED = ['softmax']
from types import MethodType
softmax = MethodType(mx.softmax, mx.ones(2))  # here
"""
)
# Routes on which the exception does not reach the test, so that only the record tells.
SWALLOWED = {"caught", "caught_often", "thread", "thread_of_nothing_else", "numpy_caught"}

ALLOWED = routes(
    """
== plain
def run(x):
    y = mx.exp(x - mx.max(x, axis=-1, keepdims=True))
    return y / y.sum(-1, keepdims=True)
== own_softmax
def softmax(x):
    return x
def run(x):
    mx = None
    return softmax(x)
== transforms
def f(x):
    return x.sum()
def run(x):
    return mx.compile(f)(x), mx.vmap(f)(x), mx.grad(f)(x)
== imports
import json, math, importlib
from collections import abc
import mlx.core.fast, mlx.nn
def run(x):
    return importlib.import_module('math').pi, __import__('json')
== sibling
from .plain import run as other
from . import own_softmax
import importlib
def run(x):
    return other(x), importlib.import_module('.plain', __package__)
== conversions
def run(x):
    return x.tolist(), x[0, 0].item(), bytes(memoryview(x)), x.__array__(), repr(x)
== library_imports
from library import lazily_import_numpy
def run(x):
    return lazily_import_numpy()
== library_unused
from library import softmax_of
def run(x):
    return x
== types
import mlx.nn as nn
from mlx.nn import Module
class Holder:
    layer: nn.Linear | None = None
def run(x: mx.array, layer: nn.Linear | None = None) -> tuple[bool, ...]:
    kinds = {nn.Linear: 1, nn.QuantizedLinear: 2}
    assert not isinstance(x, nn.Linear) and issubclass(nn.Linear, Module)
    return kinds[nn.Linear], nn.silu.__doc__
== reading_a_layer
import copy
import mlx.nn as nn
def with_layer(x, linear, table):
    assert isinstance(linear, nn.Linear) and not isinstance(table, nn.Linear)
    match linear:
        case nn.Linear():
            pass
    copied = copy.deepcopy(linear)
    linear.parameters(), linear.freeze(), linear.train(), linear.children(), repr(linear), table.state
    return x @ copied.weight.T + linear.bias, table.weight[mx.array([1, 2])]
== oracle_called_back
def with_oracle(x, oracle):
    return oracle(x)
== oracle_called_back_through_map
def with_oracle(x, oracle):
    return list(map(oracle, [x]))
== oracle_in_a_thread
from concurrent.futures import ThreadPoolExecutor
def with_oracle(x, oracle):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(oracle, x).result()
== provides_its_own
PROVIDED = ['softmax', 'table', 'run_']
from functools import partial
table = {}
def softmax(x):
    return mx.softmax
run_ = partial(softmax)
== after_a_refusal
def run(x):
    one = mx.grad(lambda y: y.sum())(x)
    return mx.compile(mx.exp)(x).tolist(), mx.vmap(mx.exp)(x).tolist(), one.tolist()
"""
)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return grade(tmp_path_factory.mktemp("refused"), REFUSED)


@pytest.fixture(scope="module")
def refused_with_everything_loaded(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return grade(tmp_path_factory.mktemp("loaded"), REFUSED, before=("mlx.core", "mlx.nn", "numpy"))


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    # Refusals inside MLX's transforms run first: they must leave MLX usable.
    first = {f"a_{n}": REFUSED[n] for n in ("compiled", "compiled_function", "vmapped", "grad")}
    return grade(tmp_path_factory.mktemp("allowed"), {**first, **ALLOWED})


def assert_refused(seen: Seen, name: str, route: Route) -> None:
    result = seen.results[name]
    path = str(seen.folder / f"{name}.py")
    assert [(t[0], t[2], t[3]) for t in result["tripped"]] == [(route.api, path, route.line)], result["error"]
    if name in SWALLOWED:
        assert result["error"] is None
        return
    assert result["error"] == "ForbiddenAPI"
    assert (result["api"], result["path"], result["line"]) == (route.api, path, route.line)
    rule = result["tripped"][0][1]
    assert result["text"] == explain(route.api, Rule(rule, f"the reason of {rule}", f"what replaces {rule}"))


def assert_as_marked(seen: Seen, modules: dict[str, Route]) -> None:
    for name, route in modules.items():
        if route.api:
            assert_refused(seen, name, route)
        else:
            assert (name, seen.results[name]["error"], seen.results[name]["tripped"]) == (name, None, [])


@pytest.mark.parametrize("name", REFUSED)
def test_refused(refused: Seen, name: str) -> None:
    assert_refused(refused, name, REFUSED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_refused_whatever_was_loaded_before(refused_with_everything_loaded: Seen, name: str) -> None:
    assert_refused(refused_with_everything_loaded, name, REFUSED[name])


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed(allowed: Seen, name: str) -> None:
    assert (allowed.results[name]["error"], allowed.results[name]["tripped"]) == (None, [])


@pytest.mark.parametrize("name", ["nn_from_import", "nn_inner_module", "nn_imported_by_name", "nn_derived"])
def test_the_first_to_import_mlx_nn(tmp_path: Path, name: str) -> None:
    assert_refused(grade(tmp_path, {name: REFUSED[name]}), name, REFUSED[name])


def test_a_refusal_names_the_function(refused: Seen) -> None:
    functions = {name: refused.results[name]["tripped"][0][4] for name in REFUSED}
    assert functions["attribute"] == "run"
    assert functions["default_argument"] == "inner"
    assert functions["staticmethod_"] == "A.f"
    assert functions["numpy_"] == "<module>"
    assert functions["provided"] == ""


def test_nothing_heavy_is_imported_for_the_tripwires(tmp_path: Path) -> None:
    seen = grade(tmp_path, {"plain": ALLOWED["plain"]})
    assert seen.results["loaded"] == []


def test_a_model_of_mlx_lm(tmp_path: Path) -> None:
    modules = routes(
        """
== called mlx.nn.Embedding
def with_model(model):
    return model(mx.array([[1, 2]]))  # here
== part_called mlx.nn.Linear
def with_model(model):
    return model.layers[0].mlp(mx.ones((1, 1, 8)))  # here
== read
def with_model(model):
    return model.layers[0].mlp.gate_proj.weight.shape, model.args.vocab_size
"""
    )
    seen = grade(tmp_path, modules)
    assert_as_marked(seen, modules)
    assert seen.results["read"]["returned"] == "((16, 8), 11)"


def test_the_reference_as_the_solution(tmp_path: Path) -> None:
    modules = routes(
        """
== rope
def run(x):
    return x
== gqa
import importlib
from .rope import run as other
from ...reference.week1 import rope
importlib.import_module(".rope", __package__)
def run(x):
    return other(x)
== absolute tinyllm.reference.week1
from tinyllm.reference.week1 import rope  # here
== cheating mlx.core.softmax
def run(x):
    return mx.softmax(x)  # here
"""
    )
    assert_as_marked(grade(tmp_path, modules, tree="reference"), modules)


def test_rules_about_single_names(tmp_path: Path) -> None:
    modules = routes(
        """
== function mlx.nn.silu
import mlx.nn.layers.activations as a
def run(x):
    return a.silu(x)  # here
== other_function
import mlx.nn as nn
def run(x):
    return nn.relu(x)
== layer mlx.nn.RMSNorm
import mlx.nn as nn
norm = nn.RMSNorm(3)  # here
== other_layer
import mlx.nn as nn
def run(x):
    return nn.Linear(3, 4)(x)
== layer_method mlx.nn.Embedding.as_linear
import mlx.nn as nn
def run(x):
    return nn.Embedding(5, 3).as_linear(x)  # here
== array_method mlx.core.array.logsumexp
def run(x):
    return x.logsumexp(axis=-1)  # here
== other_array_method
def run(x):
    return x.exp().sum(axis=-1)
== one_of_two_rules mlx.core.fast.rms_norm
def run(x):
    return mx.fast.rms_norm(x, None, 1e-5)  # here
== the_other_rule mlx.core.fast.layer_norm
def run(x):
    return mx.fast.layer_norm(x, None, None, 1e-5)  # here
"""
    )
    apis = (
        "mlx.core.fast.*",
        "mlx.core.fast.rms_norm",
        "mlx.core.array.logsumexp",
        "mlx.nn.silu",
        "mlx.nn.RMSNorm",
        "mlx.nn.Embedding.as_linear",
    )
    seen = grade(tmp_path, modules, apis=apis)
    assert_as_marked(seen, modules)
    assert seen.results["one_of_two_rules"]["tripped"][0][1] == "mlx.core.fast.rms_norm"


def child(program: str, environment: dict[str, str] | None = None) -> str:
    """The output of a program that is neither solution nor test to its tripwires."""
    command = [sys.executable, "-P", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_guards_do_not_show_and_do_not_hand_out_the_original() -> None:
    out = child(
        """
        import mlx.core as mx, mlx.nn as nn
        from tinyllm.grader.catalog import Rule
        from tinyllm.grader.tripwires import Tripwires
        names = lambda f: (f.__name__, f.__qualname__, f.__module__, f.__doc__)
        functions = lambda: [mx.softmax, mx.fast.rope, nn.silu, nn.Linear.__call__, nn.Module.__init__]
        before = list(map(names, functions()))
        apis = ("mlx.core.softmax", "mlx.core.fast.*", "mlx.nn.*", "wave.*")
        Tripwires(tuple(Rule(a, "", "") for a in apis), lambda name: False, lambda name: False).arm()
        import wave
        assert list(map(names, functions())) == before
        assert not any(hasattr(f, "__wrapped__") for f in functions())
        assert nn.silu is nn.layers.silu is nn.layers.activations.silu
        print(mx.softmax(mx.array([0.0, 0.0])).tolist(), nn.Linear(3, 4)(mx.ones((3,))).shape)
        """
    )
    assert out == "[0.5, 0.5] (4,)\n"


def test_a_thread_of_no_learner() -> None:
    """With no learner frame anywhere the refusal names no place."""
    out = child(
        """
        import threading
        import mlx.core as mx
        from tinyllm.grader.catalog import Rule
        from tinyllm.grader.tripwires import Tripwires
        tripwires = Tripwires((Rule("mlx.core.softmax", "", ""),), lambda name: False, lambda name: False)
        tripwires.arm()
        threading.excepthook = lambda args: print(args.exc_type.__name__)
        thread = threading.Thread(target=mx.softmax, args=(mx.ones(2),))
        thread.start(), thread.join()
        print([(t.api, t.path, t.line) for t in tripwires.tripped])
        tripwires.clear()
        print(tripwires.tripped)
        """
    )
    assert out == "ForbiddenAPI\n[('mlx.core.softmax', '', 0)]\n[]\n"


def test_cost() -> None:
    """A guarded call adds at most 10 microseconds; arming takes at most 5 ms."""
    rules = ", ".join(f'Rule("{a}", "", "")' for a in APIS)
    out = child(
        f"""
        import time, timeit
        import mlx.core as mx
        from tinyllm.grader.catalog import Rule
        from tinyllm.grader.tripwires import Tripwires
        x = mx.ones((2, 3))
        cost = lambda: min(timeit.repeat(lambda: mx.softmax(x), number=500, repeat=7)) / 500
        plain = cost()
        tripwires = Tripwires(({rules}), lambda name: False, lambda name: False)
        start = time.thread_time()
        tripwires.arm()
        arming = time.thread_time() - start
        print(1e6 * (cost() - plain), 1e3 * arming)
        """,
        # Measuring coverage would be most of the cost.
        {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
    )
    call_us, arming_ms = map(float, out.split())
    assert call_us < 10
    assert arming_ms < 5
