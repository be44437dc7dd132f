"""`compare`: the first wrong operation is named, right code is not, and what ends a pass is told."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tinyllm.grader import catalog
from tinyllm.grader.bench.workshop import finished_copy
from tinyllm.grader.clone import Clone, installed_root
from tinyllm.grader.tests import passes, toy
from tinyllm.grader.tests.toy import Toy

CLONE = Clone(installed_root())
COURSE = catalog.load(CLONE)
DAYS = COURSE.foundation(COURSE.day("1.5"))
ESCAPE = "\x1b["


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return passes.write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return finished_copy(CLONE, tmp_path_factory.mktemp("clones") / "finished clone")


@pytest.fixture
def finished(pristine: Clone) -> Toy:
    """A clone whose exercises are done. What a test changes there is put back before the next one."""
    for file in pristine.reference.glob("week1/*.py"):
        (pristine.exercises / "week1" / file.name).write_bytes(file.read_bytes())
    return Toy(pristine)


def edit(clone: Toy, module: str, find: str, replace: str) -> None:
    file = clone.clone.exercises / module
    text = file.read_text()
    assert text.count(find) == 1, find
    file.write_text(text.replace(find, replace))


def judged(folder: Path, cases: dict[str, dict[str, str]]) -> dict[str, dict]:
    job = json.dumps({"root": str(CLONE.root), "folder": str(folder), "cases": cases})
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tinyllm.grader.tests.passes", job],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def mutants(folder: Path, wanted: set[str] | None) -> tuple[dict[str, dict[str, str]], dict[str, set[str]]]:
    """Misconceptions as files, by "day/id", and the names that the task of each asks for."""
    cases, symbols = {}, {}
    for day in DAYS:
        for task in day.tasks:
            for wrong in task.misconceptions:
                name = f"{day.id}/{wrong.id}"
                if wanted is None or name in wanted:
                    file = folder / f"{len(cases)}.py"
                    source = (CLONE.reference / wrong.module).read_text()
                    assert source.count(wrong.find) == 1
                    file.write_text(source.replace(wrong.find, wrong.replace))
                    cases[name] = {wrong.module: str(file)}
                    symbols[name] = {s.name.split(".")[0] for s in task.symbols}
    return cases, symbols


# What is named first for a mistake, and where.
NAMED = {
    "1.1/sum-of-everything": (
        "softmax in layer 0",
        "layer 0 / self_attn / scaled_dot_product_attention_grouped / softmax",
    ),
    "1.1/bias-left-out": ("linear in layer 0", "layer 0 / self_attn / linear wq"),
    "1.2/pairs-exchanged": ("RoPE in layer 0", "layer 0 / self_attn / rope #1"),
    "1.2/exponent-i-over-dims": ("RoPE in layer 0", "layer 0 / self_attn / rope #1"),
    "1.3/mask-one-ahead": (
        "causal_mask in layer 0",
        "layer 0 / self_attn / scaled_dot_product_attention_grouped / causal_mask",
    ),
    "1.3/kv-tiled": (
        "scaled_dot_product_attention_grouped in layer 0",
        "layer 0 / self_attn / scaled_dot_product_attention_grouped",
    ),
    "1.3/layer-rope-not-on-key": ("Qwen2MultiHeadAttention in layer 0", "layer 0 / self_attn"),
    "1.3/layer-theta-ignored": ("Qwen2MultiHeadAttention in layer 0", "layer 0 / self_attn"),
    "1.4/rms-no-eps": ("RMSNorm in layer 0", "layer 0 / input_layernorm"),
    "1.4/rms-in-place": ("RMSNorm in layer 0", "layer 0 / input_layernorm"),
    "1.4/silu-gelu": ("silu in layer 0", "layer 0 / mlp / silu"),
    "1.4/mlp-silu-of-product": ("Qwen2MLP in layer 0", "layer 0 / mlp"),
    "1.5/embedding-scaled": ("Embedding", "embed_tokens"),
    "1.5/as-linear-cosine": ("Embedding.as_linear", "embed_tokens.as_linear"),
    "1.5/block-no-first-residual": ("Qwen2TransformerBlock in layer 0", "layer 0"),
    "1.5/block-theta-dropped": ("Qwen2TransformerBlock in layer 0", "layer 0"),
    "1.5/dequantize-symmetric": ("dequantize_linear", "making the model / dequantize_linear #1"),
    "1.5/model-mask-in-first-layer": ("Qwen2ModelWeek1", "the model itself"),
    "1.5/model-no-value-bias": ("Qwen2ModelWeek1", "the model itself"),
}
INSIDE = {
    "1.3/layer-rope-not-on-key": "It does not call rope #2, as the reference does here.",
    "1.3/layer-theta-ignored": "It makes RoPE with base=10000, the reference with base=3000.0.",
    "1.5/block-no-first-residual": "It calls post_attention_layernorm with another x than the reference does",
    "1.5/model-mask-in-first-layer": "It calls layer 1 with mask=None, the reference with mask='causal'.",
    "1.5/model-no-value-bias": "It makes Qwen2TransformerBlock with bv=None, the reference with bv=",
}


def test_each_mistake_is_named_where_it_stands(tmp_path: Path, folder: Path) -> None:
    cases, _ = mutants(tmp_path, set(NAMED))
    assert set(cases) == set(NAMED)
    found = judged(folder, cases)
    for name, (title, place) in NAMED.items():
        fault = found[name]["fault"]
        assert fault is not None, name
        day = name.partition("/")[0]
        assert fault["title"].startswith(f"{title} is the first to differ (day {day}"), (name, fault)
        details = dict(fault["details"])
        assert details["where"] == place
        assert fault["next_step"] == f"tinyllm-grade day{day}"
        assert INSIDE.get(name, "") in details.get("inside", ""), (name, fault)
    states = {(r["section"], r["label"]): r["state"] for r in found["1.3/layer-rope-not-on-key"]["rows"]}
    assert states["layer 0", "rope #2"] == "not called"
    assert states["layer 0", "linear wv"] == "agrees"
    assert states["", "norm"] == "differs"
    where = dict(found["1.3/layer-theta-ignored"]["fault"]["details"])["your line"]
    assert where.endswith("in Qwen2MultiHeadAttention.__init__")
    assert "writes into an array" in dict(found["1.4/rms-in-place"]["fault"]["details"])["what"]


def test_no_mistake_is_named_elsewhere(tmp_path: Path, folder: Path) -> None:
    """Of every third known mistake: what is named, if anything, belongs to the mistake's own task."""
    cases, symbols = mutants(tmp_path, None)
    cases = dict(list(cases.items())[::3])
    found = judged(folder, cases)
    named = [n for n in cases if found[n]["fault"]]
    for name in named:
        assert found[name]["fault"]["title"].split(" ")[0].split(".")[0] in symbols[name], name
    assert len(named) > 20


# A right solution that computes everything in the inputs' dtype, in another order and by other formulas.
OTHERWISE = {
    "week1/attention.py": [
        ("    x32 = x.astype(mx.float32)\n", "    x32 = x\n"),
        ("    y = x @ w.T  #", "    y = mx.matmul(x, w.swapaxes(0, 1))  #"),
    ],
    "week1/rope.py": [
        (
            "mx.power(base, -mx.arange(self.half, dtype=mx.float32) / self.half)",
            "1 / base ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims)",
        ),
        (
            "        x32 = x.astype(mx.float32)\n",
            "        x32, cos, sin = x, cos.astype(x.dtype), sin.astype(x.dtype)\n",
        ),
    ],
    "week1/gqa.py": [
        ("query.astype(mx.float32).reshape(", "query.reshape("),
        ("key.astype(mx.float32).reshape(*batch, H, 1, S, D)", "key.reshape(*batch, H, 1, S, D)"),
        ("value.astype(mx.float32).reshape(", "value.reshape("),
        ("scores + causal_mask(L, S, mx.float32)", "scores + causal_mask(L, S, query.dtype)"),
        ("softmax(scores, axis=-1)", "softmax(scores[..., None], axis=-2)[..., 0]"),
        (
            """        query = linear(x, self.wq, self.bq).reshape(N, L, self.num_heads, self.head_dim)
        key = linear(x, self.wk, self.bk).reshape(N, L, self.num_kv_heads, self.head_dim)
        value = linear(x, self.wv, self.bv).reshape(N, L, self.num_kv_heads, self.head_dim)
""",
            """        value = linear(x, self.wv, self.bv).reshape(N, L, self.num_kv_heads, self.head_dim)
        key = linear(x, self.wk, self.bk).reshape(N, L, self.num_kv_heads, self.head_dim)
        query = linear(x, self.wq, self.bq).reshape(N, L, self.num_heads, self.head_dim)
""",
        ),
    ],
    "week1/norm_mlp.py": [
        ("normed.astype(x.dtype) * self.weight", "(normed * self.weight.astype(mx.float32)).astype(x.dtype)"),
        ("    return x / (1 + mx.exp(-x))", "    return x * mx.sigmoid(x)"),
    ],
}


def otherwise(folder: Path) -> dict[str, str]:
    files = {}
    for module, edits in OTHERWISE.items():
        text = (CLONE.reference / module).read_text()
        for find, replace in edits:
            assert text.count(find) == 1, find
            text = text.replace(find, replace)
        (folder / Path(module).name).write_text(text)
        files[module] = str(folder / Path(module).name)
    return files


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_right_code_that_computes_otherwise_is_not_named(tmp_path: Path, dtype: str) -> None:
    folder = passes.write_checkpoint(tmp_path / "tiny", dtype=dtype, bits=None)
    found = judged(folder, {"otherwise": otherwise(tmp_path), "the same": {}})
    for name, result in found.items():
        assert result["fault"] is None, (name, result["fault"])
        assert result["stop"] is None
        assert result["dtype"] == dtype
        assert {r["state"] for r in result["rows"]} == {"agrees"}, name
    rows = {r["label"]: r for r in found["otherwise"]["rows"] if r["section"] == "layer 0"}
    assert rows["softmax"]["remark"] == "other shape"
    assert 0 < rows["linear wo"]["difference"] < found["otherwise"]["tolerance"]
    assert rows["linear wv"]["remark"] == "", (
        "keys and values are paired by what they hold, not by their order"
    )
    assert {r["difference"] for r in found["the same"]["rows"]} == {0}


def test_right_code_that_calls_something_else_is_not_named(tmp_path: Path, folder: Path) -> None:
    text = (CLONE.reference / "week1/gqa.py").read_text()
    start = text.index("    # K and V get a group axis")
    body = """    key, value = (mx.repeat(a, group, axis=-3) for a in (key, value))
    mask = causal_mask(L, S, mx.float32) if isinstance(mask, str) else mask
    return scaled_dot_product_attention_simple(query, key, value, scale, mask)


"""
    text = text[:start] + body + text[text.index("class Qwen2MultiHeadAttention") :]
    text = text.replace("import linear, softmax", "import linear, scaled_dot_product_attention_simple")
    (tmp_path / "gqa.py").write_text(text)
    found = judged(folder, {"simple": {"week1/gqa.py": str(tmp_path / "gqa.py")}})["simple"]
    assert (found["fault"], found["stop"]) == (None, None)
    states = {r["label"]: r["state"] for r in found["rows"] if r["section"] == "layer 1" and r["depth"] == 3}
    assert states["scaled_dot_product_attention_simple"] == "only yours"
    assert states["softmax"] == "not called"


def test_a_mistake_that_hides_in_half_precision_is_named_where_it_stands(tmp_path: Path) -> None:
    """GELU for SiLU: in its own result within what 16 roundoffs explain, on its way out beyond that."""
    folder = passes.write_checkpoint(tmp_path / "tiny", dtype="bfloat16", bits=None)
    cases, _ = mutants(tmp_path, {"1.4/silu-gelu"})
    fault = judged(folder, cases)["1.4/silu-gelu"]["fault"]
    assert fault["title"].startswith("silu in layer 0 ")
    off = re.search(r"difference ([\d.]+),", dict(fault["details"])["what"])
    assert off
    assert float(off[1]) < 16 * 2**-8


# ---- the program


def test_the_reference_beside_itself(finished: Toy, folder: Path) -> None:
    done = finished.grade("compare", "day1.5", "--solution", "reference", "--model", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reference beside reference: tiny, 24 tokens, float32" in done.stdout
    assert "layers 0 to 1: 36 operations agree" in done.stdout
    assert "No operation differs: " in done.stdout
    assert "500 roundoffs of float32" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80
    everything = finished.grade("compare", "--model", str(folder), "--prompt", passes.PROMPT, "-v")
    assert everything.returncode == 0
    assert len(everything.stdout.splitlines()) > len(done.stdout.splitlines()) + 36
    assert "dequantize_linear #15" in everything.stdout
    assert "exercises beside reference: tiny, 16 tokens, float32" in everything.stdout


def test_a_difference_is_shown_with_its_layer(finished: Toy, folder: Path) -> None:
    edit(finished, "week1/rope.py", "turned_b = a * sin + b * cos", "turned_b = b * cos - a * sin")
    arguments = ("compare", "1.5", "--model", str(folder), "--prompt", passes.PROMPT)
    done = finished.grade(*arguments)
    assert done.returncode == 1
    assert done.stderr == ""
    assert ESCAPE not in done.stdout
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [x.split()[:3] for x in lines if x.startswith("  ✗")] == [["✗", "rope", "#1"]]
    assert any(x.startswith("  ✓ making the model: 15 operations agree") for x in lines)
    assert any(x.startswith("  ✓     linear wq ") for x in lines)
    assert any(x.startswith("  ~ layer 1: ") for x in lines)
    assert "RoPE in layer 0 is the first to differ (day 1.2, " in done.stdout
    assert "exercises/week1/rope.py:" in done.stdout
    assert "next       tinyllm-grade day1.2" in done.stdout
    plain = finished.grade(*arguments, PYTHONIOENCODING="ascii").stdout
    assert plain.isascii()
    assert "  x     rope #1" in plain
    assert "\x1b[1;31m" in in_terminal(finished, arguments)
    assert "\x1b[1;31m" not in in_terminal(finished, arguments, NO_COLOR="1")


def in_terminal(course: Toy, arguments: tuple[str, ...], **environment: str) -> str:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*toy.PROGRAM, *arguments],
        env=course.environment(TERM="xterm-256color", COLUMNS="80", **environment),
        cwd=course.root,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    process.wait()
    os.close(master)
    return seen.decode()


def test_an_unfinished_day_is_named(finished: Toy, folder: Path) -> None:
    stub = (CLONE.exercises / "week1/norm_mlp.py").read_text()
    (finished.clone.exercises / "week1/norm_mlp.py").write_text(stub)
    done = finished.grade("compare", "1.5", "--model", str(folder))
    assert done.returncode == 1
    text = " ".join(done.stdout.split())
    assert "RMSNorm.__init__ is not written yet: day 1.4 (RMSNorm and MLP), task 1." in text
    assert "next tinyllm-grade day1.4" in text
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "find", "replace", "told"),
    [
        (
            "week1/norm_mlp.py",
            "axis=-1, keepdims=True)  #",
            "axis=-1)  #",
            [
                "Your code raises ValueError: ",
                "norm_mlp.py:",
                "in RMSNorm.__call__",
                "next tinyllm-grade day1.4",
            ],
        ),
        (
            "week1/rope.py",
            "        x32 = x.astype(mx.float32)\n",
            "        import os\n        print('seen', x.shape, flush=True)\n        os._exit(0)\n",
            ["printed seen (1, 16, 4, 16)", "Your pass ended the process with exit code 0."],
        ),
        (
            "week1/rope.py",
            "        x32 = x.astype(mx.float32)\n",
            "        import ctypes\n        ctypes.string_at(1)\n",
            ["ended the process by SIGSEGV", "rope.py:", "next tinyllm-grade day1.2"],
        ),
        (
            "week1/gqa.py",
            "from .rope import RoPE",
            "from .rope import (RoPE",
            ["syntax error", "gqa.py:", "next tinyllm-grade day1.3"],
        ),
        (
            "week1/qwen2_model.py",
            "class Qwen2ModelWeek1:",
            "class MyModel:",
            ["exercises/week1/qwen2_model.py has no Qwen2ModelWeek1"],
        ),
    ],
    ids=["raises", "exits", "segfault", "syntax", "renamed"],
)
def test_what_ends_a_pass_is_told(
    finished: Toy, folder: Path, module: str, find: str, replace: str, told: list[str]
) -> None:
    edit(finished, module, find, replace)
    done = finished.grade("compare", "1.5", "--model", str(folder), "--prompt", passes.PROMPT)
    assert done.returncode == 1, done.stderr
    text = " ".join(done.stdout.split())
    for words in told:
        assert words in text, done.stdout
    assert "Traceback" not in text + done.stderr


def test_ctrl_c_ends_a_pass_that_hangs(finished: Toy, folder: Path) -> None:
    edit(
        finished,
        "week1/rope.py",
        "        x32 = x.astype(mx.float32)\n",
        "        while True:\n            pass\n",
    )
    process = subprocess.Popen(
        [*toy.PROGRAM, "compare", "1.5", "--model", str(folder)],
        cwd=finished.root,
        env=finished.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run in the background of a shell ignores SIGINT, and so would everything it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    child = busy_child(process)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "stopped by Ctrl-C, at exercises/week1/rope.py:" in said
    assert "Traceback" not in said
    assert not child.is_running()


def test_the_child_dies_with_the_program(finished: Toy, folder: Path) -> None:
    edit(
        finished,
        "week1/rope.py",
        "        x32 = x.astype(mx.float32)\n",
        "        while True:\n            pass\n",
    )
    process = subprocess.Popen(
        [*toy.PROGRAM, "compare", "1.5", "--model", str(folder)],
        cwd=finished.root,
        env=finished.environment(),
        stdout=subprocess.DEVNULL,
    )
    child = busy_child(process)
    process.kill()
    process.wait()
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def busy_child(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> psutil.Process:
    """The process's child, once it has computed for a second."""
    for _ in range(100):
        time.sleep(0.1)
        children = psutil.Process(process.pid).children()
        if children and children[0].cpu_times().user > 1.0:
            return children[0]
    raise AssertionError("no child at work")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["day1.2"], 2, "day1.2 has no model that could be compared. Days that have one: day1.5"),
        (["day1.9"], 2, "There is no day called"),
        (["--model", "nowhere"], 2, "There is no folder nowhere"),
        (["--prompt", ""], 2, "--prompt has no tokens"),
        (["--prompt", "the " * 65], 2, "--prompt has 65 tokens, and the model takes 64"),
        (["--model", "reference"], 3, "reference: "),
    ],
)
def test_what_cannot_be_compared_is_told(
    finished: Toy, folder: Path, arguments: list[str], code: int, words: str
) -> None:
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(folder)]
    (finished.clone.reference / "config.json").write_text("{")
    done = finished.grade("compare", *arguments)
    (finished.clone.reference / "config.json").unlink()
    assert done.returncode == code, done.stdout
    assert words in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr


def test_the_shipped_model_may_be_missing(finished: Toy) -> None:
    done = finished.grade("compare")
    assert done.returncode == 3
    assert "tiny-qwen2 is missing" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            '[compare]\nmodel = "week1/sums.py::Sum"\nlayer = "week1/sums.py::double"',
            "lists week1/sums.py::Sum",
        ),
        ('[compare]\nmodel = "Mean"\nlayer = "week1/means.py::Mean"', "compare.model: must be of the form"),
        ('[compare]\nmodel = "week1/means.py::Mean"', "compare.layer: is missing"),
    ],
)
def test_a_table_that_names_nothing_is_a_broken_course(tmp_path: Path, table: str, words: str) -> None:
    course = toy.make(tmp_path)
    course.write("checkpoints/day1_2/checkpoint.toml", toy.DAY_2.replace("[[tasks]]", f"{table}\n[[tasks]]"))
    done = course.grade("list")
    assert done.returncode == 3
    assert words in " ".join(done.stderr.split())


def test_a_course_without_a_model(tmp_path: Path) -> None:
    done = toy.make(tmp_path).grade("compare")
    assert done.returncode == 2
    assert "No day of this course has a model to compare" in done.stderr
