"""What goes wrong in a tree's code, and in a model's files, while a reply is made: each told as what it is.

The voice runs in this process, on a real model; the process around it is test_speaking's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tinyllm.grader import catalog, models, speaking
from tinyllm.grader.bench.workshop import finished_copy
from tinyllm.grader.clone import Clone, installed_root
from tinyllm.grader.tests import small_models
from tinyllm.grader.trees import Tree
from tinyllm.grader.voice import Told, Voice, Watched

MODEL, GENERATION, SAMPLING = "week1/qwen2_model.py", "week1/generation.py", "week1/sampling.py"
TURN = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_models.write(tmp_path_factory.mktemp("models") / "small")
    small_models.whole_mlx_lm()  # the voice takes the real one
    return folder


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return finished_copy(Clone(installed_root()), tmp_path / "clone")


Files = dict[str, str]  # of the tree, by name
Say = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def say(clone: Clone, folder: Path) -> Iterator[Say]:
    """A function that puts files into the tree, loads the model, replies, and returns the events."""
    course = catalog.load(clone)
    trees = []

    def say(
        files: Files | None = None,
        model: Path = folder,
        *,
        seed: int = 1,
        engine: str = "week1",
        replies: int = 1,
        **request: Any,
    ) -> list[dict[str, Any]]:
        for name, text in (files or {}).items():
            (clone.exercises / name).write_text(text)
        events: list[dict[str, Any]] = []
        tree = Tree("exercises", clone.exercises)
        tree.install()
        trees.append(tree)
        forget()
        voice = Voice(
            clone, course.engine(engine), tree, lambda name, data: events.append({"event": name, **data})
        )
        voice.load(model, {}, context=small_models.CONTEXT, seed=seed)
        for _ in range(replies):
            voice.reply({**vars(speaking.Ask(messages=TURN)), **request})
        return events

    yield say
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in trees]
    forget()


def forget() -> None:
    for name in [n for n in sys.modules if n.partition("tinyllm.exercises")[1]]:
        del sys.modules[name]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(e["text"] for e in events if e["event"] == "piece")


def test_a_reply(say: Say) -> None:
    events = say()
    assert text_of(events) == small_models.TEXT
    assert [e["event"] for e in events[:5]] == ["importing", "loading", "building", "ready", "began"]
    done = events[-1]
    assert (done["event"], done["tokens"], done["stopped"]) == ("done", small_models.STEPS, None)


@pytest.mark.parametrize(
    "options",
    [
        {"shards": 3},
        {"dtype": mx.bfloat16},
        {"dtype": mx.float16},
        {"bits": 4},
        {"bits": 8, "shards": 2},
        {"family": "qwen3", "bits": 4, "dtype": mx.bfloat16},
    ],
    ids=str,
)
def test_every_kind_of_weights(say: Say, tmp_path: Path, options: dict[str, Any]) -> None:
    assert text_of(say(model=small_models.write(tmp_path / "other", **options))) == small_models.TEXT


def test_the_same_seed_draws_the_same(say: Say, tmp_path: Path) -> None:
    """On a model to which all tokens are alike."""
    folder = small_models.write(tmp_path / "indifferent")
    weights = mx.load(str(folder / "model.safetensors"))
    weights["lm_head.weight"] = mx.zeros_like(weights["lm_head.weight"])
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    drawn = {"model": folder, "messages": None, "text": "x", "temp": 1.0, "max_tokens": 20}
    first, again, other = (text_of(say(seed=seed, **drawn)) for seed in (7, 7, 8))
    assert first == again != other


def generate(body: str) -> dict[str, str]:
    signature = "def stream_generate(model, tokenizer, prompt, sampler=None, max_tokens=256, stop=()):"
    return {GENERATION: f"import mlx.core as mx\n\n\n{signature}\n    {body}\n"}


def model(call: str) -> dict[str, str]:
    methods = f"    def __init__(self, m):\n        pass\n    def __call__(self, x):\n        {call}\n"
    return {MODEL: f"import mlx.core as mx\n\n\nclass Qwen2ModelWeek1:\n{methods}"}


FAULTS = {
    "nothing returned": (
        generate("pass"),
        "stream_generate gave None; it must yield pieces of text.",
        GENERATION,
    ),
    "text at once": (
        generate("return 'a'"),
        "stream_generate gave an object of type str; it must",
        GENERATION,
    ),
    "ids": (generate("yield 7"), "stream_generate yielded an object of type int; a piece", GENERATION),
    "flat ids": (
        generate("yield str(model(mx.array([1, 2])))") | model("return mx.zeros((1, 2, 320))"),
        "stream_generate calls the model with ids (2,), not with ids (1, L).",
        GENERATION,
    ),
    "a list of ids": (
        generate("yield str(model([1, 2]))") | model("return mx.zeros((1, 2, 320))"),
        "calls the model with an object of type list, not",
        GENERATION,
    ),
    "logits of one row": (
        model("return mx.zeros((1, 320))"),
        "Qwen2ModelWeek1 called with ids (1, 24) gave logits (1, 320), not (1, 24, 320).",
        MODEL,
    ),
    "nan": (
        model("return mx.zeros((1, 1, 320)) / 0"),
        "gave logits that are nan: either the code or the",
        MODEL,
    ),
    "no logits": (model("return None"), "Qwen2ModelWeek1 called with ids gave None, not logits.", MODEL),
    "no model": ({MODEL: "def Qwen2ModelWeek1(m): ..."}, "gave None, which cannot be called.", MODEL),
    "no such name": (
        {MODEL: "class Qwen2: ..."},
        "exercises/week1/qwen2_model.py has no `Qwen2ModelWeek1`: was it renamed or deleted?",
        MODEL,
    ),
    "an exit": (generate("raise SystemExit(0)"), "The code ended the program: SystemExit.", ""),
    "a recursion": (
        generate("yield from stream_generate(model, tokenizer, prompt)"),
        "The code calls itself without end (RecursionError).",
        "",
    ),
    "memory": (generate("raise MemoryError"), "The code asked for more memory than there is.", ""),
    "MLX's memory": (
        generate("raise RuntimeError('[malloc] Unable to allocate 9 bytes.')"),
        "There is not enough memory: [malloc] Unable to allocate 9 bytes.",
        "",
    ),
    "an exception": (generate("yield 1 / 0"), "ZeroDivisionError: division by zero", ""),
    "a wrong signature": (
        {GENERATION: "def stream_generate(model): ..."},
        "TypeError: stream_generate() got an unexpected keyword argument 'sampler'",
        GENERATION,
    ),
    "an import": (
        {GENERATION: "from .nothing import x"},
        "exercises/week1/nothing.py does not exist.",
        "week1/nothing.py",
    ),
    "a syntax error": (
        {GENERATION: "def stream_generate(:"},
        "exercises/week1/generation.py has a syntax error on line 1: invalid syntax.",
        GENERATION,
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_code_that_is_at_fault(say: Say, case: str) -> None:
    files, words, module = FAULTS[case]
    with pytest.raises(Told) as caught:
        say(files)
    assert caught.value.event["kind"] == "code"
    assert words in caught.value.event["summary"]
    assert caught.value.event["module"] == module
    if not module:  # then its line says whose it is
        last = caught.value.frames[-1]
        assert (last.path, last.function) == (f"exercises/{GENERATION}", "stream_generate")
        assert len(caught.value.frames) <= 4


def test_a_stub_is_named(say: Say) -> None:
    with pytest.raises(Told) as caught:
        say(generate('raise NotImplementedError("day 1.6, task 4: stream_generate")'))
    event = caught.value.as_event()
    assert (event["kind"], event["day"], event["task"]) == ("unwritten", "1.6", 4)


@pytest.mark.parametrize(
    ("body", "request_", "kind", "words"),
    [
        ("return None", {}, "code", "make_sampler gave None, which cannot be called."),
        ("return print", {"min_p": 0.1}, "usage", "--min-p: make_sampler of this tree has no min_p."),
        ("return 1 / top_k", {"top_k": 0}, "code", "ZeroDivisionError"),
        ('raise NotImplementedError("day 1.7, task 1: make_sampler")', {}, "unwritten", "day 1.7, task 1"),
    ],
)
def test_the_sampler(say: Say, body: str, request_: dict, kind: str, words: str) -> None:
    files = {SAMPLING: f"def make_sampler(temp, top_p, top_k):\n    {body}\n"}
    with pytest.raises(Told, match=words) as caught:
        say(files, temp=1.0, **request_)
    assert caught.value.event["kind"] == kind


def test_greedy_needs_no_sampler(say: Say) -> None:
    assert text_of(say({SAMPLING: "raise ValueError"})) == small_models.TEXT
    with pytest.raises(Told, match=r"Importing exercises/week1/sampling\.py raises ValueError"):
        say(temp=0.5)


def changed(folder: Path, copy: Path, name: str, change: Callable[[dict], object]) -> Path:
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    content = json.loads((copy / name).read_text())
    change(content)
    (copy / name).write_text(json.dumps(content))
    return copy


def test_files_that_do_not_fit_together(say: Say, folder: Path, tmp_path: Path) -> None:
    smaller = changed(folder, tmp_path / "smaller", "config.json", lambda c: c.update(num_hidden_layers=1))
    with pytest.raises(Told, match="mlx-lm cannot load smaller: ValueError: Received ") as caught:
        say(model=smaller)
    assert caught.value.event["kind"] == "files"

    def more_tokens(tokenizer: dict) -> None:
        last = tokenizer["added_tokens"][-1]
        for n in range(100):
            tokenizer["added_tokens"].append({**last, "id": last["id"] + 1 + n, "content": f"<|{n}|>"})

    larger = changed(folder, tmp_path / "larger", "tokenizer.json", more_tokens)
    with pytest.raises(Told, match="do not belong together: the tokenizer has 359 tokens and the model 320"):
        say(model=larger)


def test_chat_templates(say: Say, folder: Path, tmp_path: Path) -> None:
    settings = "tokenizer_config.json"
    without = changed(folder, tmp_path / "without", settings, lambda c: c.pop("chat_template"))
    with pytest.raises(Told, match="This model has no chat template") as caught:
        say(model=without)
    assert caught.value.event["kind"] == "usage"
    assert text_of(say(model=without, messages=None, text="x\n")) == small_models.TEXT
    failing = changed(
        folder,
        tmp_path / "failing",
        settings,
        lambda c: c.update(chat_template="{{ raise_exception('no') }}"),
    )
    with pytest.raises(Told, match="The model's chat template fails: no"):
        say(model=failing)


def test_the_watched_model_is_the_model_but_for_being_called() -> None:
    class Inner:
        layers = 3

        def __call__(self, inputs: mx.array, offset: int = 0, cache: object = None) -> int:
            return inputs.size + offset

    inner, starts, seen = Inner(), [], []
    watched = Watched(inner, 5, starts, lambda *given: seen.append(given[1:]))
    watched.cache = "kept"
    assert (watched.layers, inner.cache) == (3, "kept")
    # Two calls inside a prompt of five tokens, one with its last, and one with the next token.
    calls = [(mx.zeros((1, 2)), 0), (mx.zeros((1, 2)), 2), (mx.zeros((1, 1)), 4), (mx.zeros((1, 1)), 5)]
    assert [watched(ids, offset, cache=None) for ids, offset in calls] == [2, 4, 5, 6]
    assert len(starts) == 2
    assert seen == [(2, False), (4, False), (5, True)]
    with pytest.raises(AttributeError, match="nothing"):
        _ = watched.nothing


def test_the_watched_model_without_a_cache() -> None:
    starts, seen = [], []
    watched = Watched(lambda ids: ids.size, 3, starts, lambda *given: seen.append(given[1:]))
    assert [watched(mx.zeros((1, length))) for length in (3, 4)] == [3, 4]
    assert (len(starts), seen) == (2, [(3, True)])


def engines_without_kernels() -> list[str]:
    course = catalog.load(Clone(installed_root()))
    return [e.id for e in course.engines if not any(course.day(d).needs for d in e.days)]


@pytest.mark.parametrize("engine", engines_without_kernels())
def test_every_engine_says_the_same(say: Say, tmp_path: Path, engine: str) -> None:
    """Greedy, on packed weights of both families, also to a prompt of one token; with the count of tokens."""
    for family in ("qwen2", "qwen3"):
        folder = small_models.write(tmp_path / family, family=family, bits=4, dtype=mx.bfloat16)
        for asked in ({}, {"messages": None, "text": "T"}):
            events = say(model=folder, engine=engine, **asked)
            assert text_of(events) == small_models.TEXT[len(asked.get("text", "")) :]
            assert events[-1]["tokens"] == small_models.STEPS - len(asked.get("text", ""))


def test_nothing_is_kept_from_one_reply_to_the_next(say: Say) -> None:
    """Whatever an engine keeps (caches) is one reply's."""
    assert text_of(say(engine="cached", replies=3)) == small_models.TEXT * 3


def test_a_prefill_is_not_made_to_compute_its_logits(say: Say) -> None:
    """nan logits inside the prompt do not matter; those that a token is chosen from do."""

    def model(zero: str) -> Files:
        body = (
            "    def __init__(self, m): ...\n    def create_kv_cache(self): return []\n"
            f"    def __call__(self, x, offset, cache): return mx.zeros((1, x.shape[1], 320)) / ({zero})\n"
        )
        return {"week2/qwen2_model.py": f"import mlx.core as mx\n\n\nclass Qwen2ModelWeek2:\n{body}"}

    events = say(model("x.shape[1] == 1"), engine="cached", max_tokens=2)
    assert events[-1]["tokens"] == 2
    with pytest.raises(Told, match="Qwen2ModelWeek2 gave logits that are nan"):
        say(model("x.shape[1] > 1"), engine="cached")


def test_tiny_qwen2_says_the_same_with_a_cache(say: Say) -> None:
    asked = {"messages": [{"role": "user", "content": "Tell me a story about Anna."}], "max_tokens": 6}
    shipped = models.shipped(Clone(installed_root()))
    plain, cached = (text_of(say(model=shipped, engine=e, **asked)) for e in ("week1", "cached"))
    assert plain == cached != ""
