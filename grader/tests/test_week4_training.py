"""The trainer of the shipped model: its corpus and checker, its gradients, resuming, exporting.

reference/week4 belongs to no day, so no checkpoint tests it. It is imported by name: to the grader's own
code, which never imports a solution tree, it stays foreign.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.tests import small_models

WEEK4 = "tinyllm.reference.week4"
corpus, stories, data, gpt, induction, training, checkpointing, quality, tokenizer, words = (
    importlib.import_module(f"{WEEK4}.{name}")
    for name in (
        *("corpus", "stories", "data", "gpt", "induction", "training", "checkpointing", "quality"),
        *("tokenizer", "words"),
    )
)

MODEL = gpt.GPTConfig(
    vocab_size=768,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=64,
)
CONFIG = training.TrainConfig(
    steps=6, rows=2, length=192, warm_up=3, learning_rate=3e-3, accumulate=2, long_steps=1, quantised_from=-1
)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(tokenizer.train(vocab_size=MODEL.vocab_size, samples=400), folder)
    return folder


@pytest.fixture(scope="module")
def encode(tokenizer_folder: Path) -> Any:
    trained = tokenizer.load(tokenizer_folder)
    return lambda text: trained.encode(text, add_special_tokens=False).ids


# ---- the corpus ----


def text_of(sample: Any) -> str:
    return "".join(text for text, _ in sample.pieces())


def sample(split: str, index: int) -> Any:
    """Sample `index`, counted from the first of all kinds."""
    return corpus.sample(split, index + (corpus.FIRST_NOTES if split == "train" else 0))


def test_the_corpus_is_the_same_in_every_process() -> None:
    code = (
        f"import hashlib; from {WEEK4} import corpus; print(hashlib.sha256(''.join(t for s in corpus.SPLITS "
        "for i in range(200) for t, _ in corpus.sample(s, i).pieces()).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    command = [sys.executable, "-P", "-c", code]
    there = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    here = "".join(text_of(corpus.sample(split, i)) for split in corpus.SPLITS for i in range(200))
    assert there.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


def test_training_begins_with_lists_of_notes() -> None:
    first = [corpus.sample("train", i) for i in range(300)]
    assert {item.kind for item in first} == {"question"}
    assert not any("Once upon" in text_of(item) or "There once lived" in text_of(item) for item in first)


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_every_sample_passes_its_own_check_and_no_other_reply_does(split: str) -> None:
    kinds = set()
    for index in range(1000):
        item = sample(split, index)
        for prompt, want in item.prompts():
            assert item.grade(prompt, want, want.content) == [], text_of(item)
            for wrong in ("", want.content[:-5], want.content + " Anna said thank you to Ben."):
                assert item.grade(prompt, want, wrong) or "<tool_call>" in want.content, wrong
            kinds.add((item.kind, item.plain, want.content[:11] == "<tool_call>"))
    # Stories and questions, each plain and as chat; long questions; tool calls; answers after one.
    assert len(kinds) == 7


def test_the_splits_share_no_prompt_and_no_pair_of_hero_and_thing() -> None:
    train, held_out = ([sample(s, i) for i in range(2000)] for s in corpus.SPLITS)
    assert not {s.about for s in train if s.about} & {s.about for s in held_out if s.about}
    questions = [
        {s.turns[0].content for s in split if s.kind in ("question", "tool")} for split in (train, held_out)
    ]
    assert not questions[0] & questions[1]


def test_no_noun_begins_with_a_vowel() -> None:
    """So "a" is right before each of them."""
    assert not [w for w in stories.SLOT_WORDS["thing"] if w[0] in "aeiou" or w.startswith("hour")]


def test_every_sentence_reads_back_as_the_event_it_tells() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        events = stories.make_story(rng, rng.choice(words.NAMES), rng.choice(words.THINGS))
        for (kind, slots), sentence in events:
            read = stories.read(sentence)
            assert read is not None
            assert read[0] == kind
            assert {k: v for k, v in read[1].items() if k in slots} == {
                k: slots[k] for k in read[1] if k in slots
            }


STUCK = (
    "Once upon a time there was Anna the otter. Anna had a kite, and the kite was red. "
    "One day Anna took the kite to the park. "
    "The wind blew the kite into a tall tree. Anna was sad because the kite was in the tree. "
    "Anna could not climb. Then there came Ben the cat to the park. Ben could climb very well. "
    "Ben climbed up the tree and got the kite. Ben gave the kite to Anna. "
    "Anna was happy because she had the kite again. Anna thanked Ben the cat. "
    "Then Anna the otter went home with the kite, and the kite was red."
)
SHARED = (
    "There once lived Tom the boy. Tom had a drum, and the drum was blue. At first Tom had seven plums. "
    "One day Tom took the drum to the farm. Then there came Mia the girl to the farm. "
    "Mia was hungry because she had no food. Tom gave three plums to Mia. "
    "Now Tom had four plums and Mia had three plums. "
    "Mia ate the plums and was not hungry any more. Mia thanked Tom the boy. Tom and Mia became good friends."
)
LOST = (
    "Once upon a time there was Ivy the girl. Ivy had a doll, and the doll was pink. "
    "In the morning Ivy played with the doll in the barn. "
    "Then Ivy went to the school and forgot the doll. Ivy was sad because the doll was gone. "
    "Ivy looked in the school, but the doll was not there. "
    "In the school there was also Leo the owl. "
    "Leo told Ivy to think, and Ivy thought of the barn. So Ivy and Leo went back to the barn. "
    "Leo found the doll in the barn. Leo gave the doll to Ivy. Ivy said thank you to Leo. "
    "Ivy took the doll home, and the doll was pink."
)


@pytest.mark.parametrize("story", [STUCK, SHARED, LOST])
def test_consistent_stories_have_no_faults(story: str) -> None:
    assert stories.check_story(story) == []


@pytest.mark.parametrize(
    ("story", "right", "wrong", "fault"),
    [
        (
            STUCK,
            "home with the kite, and the kite was red",
            "home with the kite, and the kite was blue",
            "the kite is red",
        ),
        (STUCK, "because she had", "because he had", "Anna is she, not he"),
        (STUCK, "was in the tree", "was in the water", "the kite is not in the water"),
        (STUCK, "Ben gave the kite to Anna. ", "", "Anna does not have the kite"),
        (STUCK, "there came Ben the cat", "there came Ben the mole", "Ben cannot climb"),
        (STUCK, "Ben climbed up the tree", "Ben swam across the water", "that does not free the kite"),
        (STUCK, "Anna could not climb", "Anna could not swim", "Anna can swim"),
        (STUCK, "the cat to the park", "the cat to the mill", "nobody is in the mill"),
        (STUCK, "had a kite, and the kite", "had a kite, and the drum", "not a sentence"),
        (STUCK, "Anna thanked Ben the cat", "Ben thanked Anna the otter", "Anna did nothing for Ben"),
        (STUCK, "thanked Ben the cat", "thanked Ben the frog", "Ben is no frog"),
        (STUCK, "Then Anna the otter", "Then Anna the swan", "Anna is no swan"),
        (
            STUCK,
            " Then Anna the otter went home with the kite, and the kite was red.",
            "",
            "the story stops before its end",
        ),
        (STUCK, "got the kite", "got the bell", "no bell has been mentioned"),
        (STUCK, "Anna thanked Ben", "Anna thanked Zoe", "Zoe has not been introduced"),
        (STUCK, "Anna thanked Ben", "Anna sang to Ben", "not a sentence of these stories"),
        (
            STUCK,
            "Anna thanked Ben the cat.",
            "Anna thanked Ben the cat. Anna thanked Ben the cat.",
            "a sentence is told twice",
        ),
        (SHARED, "had four plums", "had five plums", "Tom has 4 plums"),
        (SHARED, "gave three", "gave nine", "Tom has 7 plums"),
        (SHARED, "Mia the girl", "Mia the boy", "Mia is not a boy"),
        (SHARED, "Tom and Mia became", "Tom and Tom became", "somebody does something to themselves"),
        (LOST, "found the doll in the barn", "found the doll in the school", "the doll is not in the school"),
        (LOST, "So Ivy and Leo went back to the barn. ", "", "Leo is not in the barn"),
        (LOST, "thought of the barn", "thought of the cave", "nothing was left in the cave"),
        (LOST, "forgot the doll. Ivy was sad", "forgot the doll. Ivy was glad", "not a sentence"),
    ],
)
def test_a_planted_inconsistency_is_named(story: str, right: str, wrong: str, fault: str) -> None:
    assert story.count(right) == 1
    assert any(fault in line for line in stories.check_story(story.replace(right, wrong)))


def test_a_tool_call_is_compared_as_json() -> None:
    want = corpus.Turn("assistant", corpus.tool_call("calculator", "2 + 3"))
    sample = corpus.Sample("tool", (corpus.Turn("user", "Add 2 and 3."), want), tools=("calculator",))
    assert want.content == (
        '<tool_call>\n{"name": "calculator", "arguments": {"expression": "2 + 3"}}\n</tool_call>'
    )
    assert sample.grade("", want, want.content.replace(": ", ":")) == []
    for wrong in ("5", want.content.replace("2", "4"), want.content.replace('"}}', "}}"), want.content * 2):
        assert sample.grade("", want, wrong)


# ---- tokens and batches ----


def test_transformers_reads_the_tokenizer_and_its_template_writes_the_corpus(tokenizer_folder: Path) -> None:
    import transformers

    auto = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    own = tokenizer.load(tokenizer_folder)
    for index in range(60):
        item = sample("train", index)
        text = text_of(item)
        ids = own.encode(text, add_special_tokens=False).ids
        assert auto.encode(text, add_special_tokens=False) == ids
        assert auto.decode(ids) == text
        if not item.plain:
            messages = [{"role": t.role, "content": t.content} for t in item.turns]
            tools = [corpus.tool_schema(name) for name in item.tools] or None
            assert auto.apply_chat_template(messages, tools=tools, tokenize=False) == text
            if item.tools and item.kind == "tool":  # as an OpenAI client sends the call back
                call = json.loads(item.turns[1].content.split("\n")[1])
                messages[1] = {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}
                assert auto.apply_chat_template(messages, tools=tools, tokenize=False) == text
    assert auto.eos_token == corpus.TURN_END
    assert [len(own.encode(t).tokens) for t in (*tokenizer.SPECIAL, *tokenizer.MARKS, "7")] == [1] * 8
    odd = "Ünïcode 日本 🙂\t<b>"
    assert auto.decode(auto.encode(odd, add_special_tokens=False)) == odd


def test_a_batch_is_a_function_of_the_position(encode: Any) -> None:
    packer = data.Packer(encode, rows=3, length=200)
    batches = [packer.next() for _ in range(2)]
    position = packer.position
    third = packer.next()
    again = data.Packer(encode, rows=3, length=200, position=position).next()
    for field in ("tokens", "segments", "places", "targets", "weights"):
        assert mx.array_equal(getattr(third, field), getattr(again, field)), field
    assert not mx.array_equal(batches[0].tokens, batches[1].tokens)
    flat = third.tokens.reshape(-1)
    assert mx.array_equal(flat[third.places + 1], third.targets)
    assert third.used <= 600


def test_texts_in_one_row_do_not_see_each_other(encode: Any) -> None:
    parameters = gpt.init_parameters(MODEL, seed=3)
    one, two = (encode(text_of(corpus.sample("train", i)))[:40] for i in (0, 1))
    segments = mx.array([[1] * len(one) + [2] * len(two)])
    packed = gpt.forward(parameters, MODEL, mx.array([one + two]), segments)
    alone = gpt.forward(parameters, MODEL, mx.array([two]))
    assert mx.allclose(packed[:, len(one) :], alone, atol=1e-5)


# ---- the model and its training ----


def test_parameters_are_named_and_shaped_as_in_a_qwen2_checkpoint() -> None:
    parameters = gpt.init_parameters(MODEL, seed=0)
    assert {n: p.shape for n, p in parameters.items()} == MODEL.shapes()
    assert parameters["model.layers.1.self_attn.k_proj.bias"].shape == (32,)
    assert "lm_head.weight" not in parameters
    assert gpt.GPTConfig().head_dim == 64
    assert 2e6 <= gpt.GPTConfig().parameter_count <= 8e6
    with pytest.raises(ValueError, match="3 query heads cannot share 2 KV heads"):
        gpt.GPTConfig(hidden_size=192, num_attention_heads=3, num_key_value_heads=2)


def said_again(parameters: Any, model: Any) -> float:
    """The share of words that are foreseen in lists of random words, said a second time in other order.

    Each row holds four runs of eight words; only the first word of a run cannot be foreseen.
    """
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(16):
        runs = rng.permutation(model.vocab_size)[:32].reshape(4, 8)
        rows.append(np.concatenate([runs.ravel(), rng.permutation(runs).ravel()]))
    tokens = np.array(rows)
    hidden = gpt.forward(parameters, model, mx.array(tokens))
    foreseen = np.array(mx.argmax(gpt.logits(parameters, hidden), axis=-1))
    asked = np.array([i for i in range(32, 64) if i % 8])
    return float((foreseen[:, asked - 1] == tokens[:, asked]).mean())


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-qwen2-draft"])
def test_a_model_is_born_with_heads_that_look_words_up(name: str) -> None:
    model = importlib.import_module(f"{WEEK4}.train").MODELS[name]
    plain = gpt.init_parameters(model, seed=0)
    born = induction.with_induction(plain, model, seed=0)
    assert said_again(plain, model) < 0.02
    assert said_again(born, model) > 0.6
    assert {n: p.shape for n, p in born.items()} == model.shapes()
    changed = {n for n in plain if not mx.array_equal(plain[n], born[n])}
    assert changed
    assert all("layers.0.self_attn" in n or "layers.1.self_attn" in n for n in changed)


def test_a_word_without_its_space_begins_near_the_one_with_it(tokenizer_folder: Path) -> None:
    trained = tokenizer.load(tokenizer_folder)
    twins = tokenizer.twins(trained)
    named = {trained.id_to_token(a): trained.id_to_token(b) for a, b in twins.items()}
    assert named["The"] == "\u0120The"
    assert not any(word.startswith("\u0120") for word in named)
    plain = gpt.init_parameters(MODEL, seed=0)
    name = "model.embed_tokens.weight"
    before, after = (np.array(p[name]) for p in (plain, induction.with_twins(plain, twins, seed=0)))
    pairs = np.array(list(twins.items()))
    unit = after / np.linalg.norm(after, axis=1, keepdims=True)
    assert np.mean(np.sum(unit[pairs[:, 0]] * unit[pairs[:, 1]], axis=1)) == pytest.approx(0.8, abs=0.05)
    others = np.setdiff1d(np.arange(len(before)), pairs[:, 0])
    assert (before[others] == after[others]).all()


def test_gradients_agree_with_finite_differences(encode: Any) -> None:
    batch = data.Packer(encode, rows=1, length=192).next()
    parameters = gpt.init_parameters(MODEL, seed=1)
    # Larger than at the start of training, and none of them 0, so that the loss depends on all well above
    # float32's noise.
    keys = mx.random.split(mx.random.key(9), len(parameters))
    parameters = {
        n: p * 1.5 + 0.1 * mx.random.normal(p.shape, key=key) if p.ndim == 2 else p
        for (n, p), key in zip(parameters.items(), keys, strict=True)
    }
    _, gradients = mx.value_and_grad(training.loss)(parameters, MODEL, batch)
    assert gradients.keys() == parameters.keys()
    for name in (n for n in parameters if "layers.1" not in n):
        # Along the gradient itself the loss changes most; a fixed random part asks about the other
        # directions.
        g = np.array(gradients[name], dtype=np.float64)
        noise = np.random.default_rng(5).normal(size=g.shape)
        along = g / np.linalg.norm(g) + 0.3 * noise / np.linalg.norm(noise)
        reach = 0.01

        def at(distance: float, name: str = name, along: np.ndarray = along) -> float:
            moved = parameters | {name: parameters[name] + mx.array(distance * along, dtype=mx.float32)}
            return float(training.loss(moved, MODEL, batch).item())

        slope = (at(reach) - at(-reach)) / (2 * reach)
        want = float(np.sum(g * along))
        assert slope == pytest.approx(want, rel=0.02, abs=2e-4), name


def test_adamw_is_the_papers(encode: Any) -> None:
    rng = np.random.default_rng(2)
    config = replace(CONFIG, weight_decay=0.1)
    p, q = rng.normal(size=(3, 4)), rng.normal(size=4)
    arrays = {"w": mx.array(p, dtype=mx.float32), "b": mx.array(q, dtype=mx.float32)}
    zeros = {n: mx.zeros_like(a) for n, a in arrays.items()}
    state = training.State(dict(arrays), dict(zeros), dict(zeros))
    m, v = {"w": 0.0, "b": 0.0}, {"w": 0.0, "b": 0.0}
    want = {"w": p, "b": q}
    for t in range(1, 5):
        gradients = {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4)}
        training.adamw(state, {n: mx.array(g, dtype=mx.float32) for n, g in gradients.items()}, config)
        state.step += 1
        rate = training.learning_rate(config, t - 1)
        for n, g in gradients.items():
            m[n] = 0.9 * m[n] + 0.1 * g
            v[n] = 0.98 * v[n] + 0.02 * g * g
            decay = config.weight_decay if n == "w" else 0.0
            change = m[n] / (1 - 0.9**t) / (np.sqrt(v[n] / (1 - 0.98**t)) + 1e-8)
            want[n] = want[n] - rate * (change + decay * want[n])
    for n, array in want.items():
        np.testing.assert_allclose(np.array(state.parameters[n]), array, rtol=2e-5, atol=1e-6)


def test_the_learning_rate_warms_up_and_falls() -> None:
    config = training.TrainConfig(steps=1000, warm_up=100, learning_rate=1.0, final_fraction=0.1)
    rates = [training.learning_rate(config, s) for s in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[99] == pytest.approx(1.0)
    assert rates[550] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[1000] == pytest.approx(0.1)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    again = replace(config, steps=1600, restart=1000)
    assert [training.learning_rate(again, s) for s in range(1000)] == rates[:1000]
    assert training.learning_rate(again, 1099) == pytest.approx(0.5)
    assert training.learning_rate(again, 1350) == pytest.approx(0.5 * (0.1 + 0.9 * 0.5))
    assert training.learning_rate(again, 1600) == pytest.approx(0.05)
    thrice = replace(config, steps=3000, restart=1000, period=800)
    for start in (1000, 1800, 2600):
        assert training.learning_rate(thrice, start - 1) < 0.11
        assert training.learning_rate(thrice, start + 99) == pytest.approx(0.5)
    assert training.learning_rate(thrice, 2999) == pytest.approx(0.05, rel=1e-3)


def run(state: Any, config: Any, encode: Any) -> list[float]:
    return [report["loss"] for report in training.train(state, MODEL, config, encode)]


def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(encode: Any, tmp_path: Path) -> None:
    whole = training.State.fresh(MODEL, seed=4)
    losses = run(whole, CONFIG, encode)

    state = training.State.fresh(MODEL, seed=4)
    begun = []
    for report in training.train(state, MODEL, CONFIG, encode):
        begun.append(report["loss"])
        if state.step == 3:
            break
    checkpointing.save(tmp_path / "run", state, MODEL, CONFIG)
    checkpointing.save(tmp_path / "run", state, MODEL, CONFIG)  # over the first
    resumed, model, config = checkpointing.load(tmp_path / "run")
    assert (model, config) == (MODEL, CONFIG)
    assert begun + run(resumed, config, encode) == losses
    assert (resumed.step, resumed.position) == (whole.step, whole.position)
    for part in checkpointing.ARRAYS:
        for name, array in getattr(whole, part).items():
            assert mx.array_equal(array, getattr(resumed, part)[name]), f"{part} {name}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_save_that_was_cut_short_leaves_the_run_before_it(encode: Any, tmp_path: Path) -> None:
    state = training.State.fresh(MODEL, seed=4)
    folder = tmp_path / "run"
    checkpointing.save(folder, state, MODEL, CONFIG)
    (tmp_path / "run.new").mkdir()  # it stopped while writing
    assert checkpointing.load(folder)[0].step == 0
    folder.rename(tmp_path / "run.old")  # it stopped between the two renames
    assert checkpointing.load(folder)[0].step == 0
    state.step = 7
    checkpointing.save(folder, state, MODEL, CONFIG)
    assert checkpointing.load(folder)[0].step == 7


def test_a_few_steps_lower_the_loss(encode: Any) -> None:
    batch = data.Packer(encode, rows=2, length=192, split="held-out").next()
    state = training.State.fresh(MODEL, seed=0)
    state.position = corpus.FIRST_NOTES  # the batch has all kinds

    def now() -> float:
        return float(training.loss(training.quantised(state.parameters), MODEL, batch).item())

    before = now()
    assert before > math.log(MODEL.vocab_size) - 1  # nothing known yet
    losses = run(state, replace(CONFIG, steps=20, accumulate=1, quantised_from=15), encode)
    assert all(math.isfinite(x) for x in losses)
    assert now() < before - 0.7


def test_rows_get_longer_late_in_a_run(encode: Any) -> None:
    config = replace(CONFIG, rows=8, steps=8)
    short, late = (training.packer_of(config, step, encode) for step in (6, 7))
    late.position = corpus.FIRST_NOTES
    assert short.next().tokens.shape == (8, 192)
    batches = [late.next() for _ in range(8)]
    assert {batch.tokens.shape for batch in batches} == {(2, 768)}
    # and hold samples that the short ones have no room for
    sizes = [(batch.segments == s).sum(axis=1).max().item() for batch in batches for s in range(1, 8)]
    assert max(sizes) > 192


def test_processes_that_share_a_step_take_the_step_of_one(tokenizer_folder: Path, tmp_path: Path) -> None:
    states = []
    for processes in ("1", "2"):
        folder = tmp_path / processes
        command = [sys.executable, "-P", "-m", f"{WEEK4}.train", str(folder), "--processes", processes]
        command += ["--tokenizer", str(tokenizer_folder), "--model", "tiny-qwen2-draft", "--rows", "1"]
        command += ["--steps", "3", "--accumulate", "2"]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        states.append(checkpointing.load(folder)[0])
    one, two = states
    assert one.position == two.position > 0
    for name, p in one.parameters.items():
        assert mx.array_equal(p, two.parameters[name]), name


def test_bfloat16_computes_on_float32_parameters(encode: Any) -> None:
    config = replace(CONFIG, steps=1, accumulate=1, bfloat16=True)
    state = training.State.fresh(MODEL, seed=0)
    (loss,) = run(state, config, encode)
    (want,) = run(training.State.fresh(MODEL, seed=0), replace(config, bfloat16=False), encode)
    assert loss == pytest.approx(want, rel=0.01)
    assert {p.dtype for p in state.parameters.values()} == {mx.float32}


# ---- using it ----


def test_greedy_with_a_cache_and_padding_is_the_plain_argmax(encode: Any) -> None:
    parameters = gpt.init_parameters(MODEL, seed=2)
    prompts = [encode("Once there was"), encode("Tom was a kind boy. Tom had"), encode("Mia")]
    replies = gpt.greedy(parameters, MODEL, prompts, stop=set(), max_tokens=6)
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = list(prompt)
        for token in reply:
            scores = gpt.logits(parameters, gpt.forward(parameters, MODEL, mx.array([ids]))[0, -1])
            assert token == mx.argmax(scores).item()
            ids.append(token)
        assert len(reply) == 6
    first = replies[0][2]
    stopped = gpt.greedy(parameters, MODEL, prompts[:1], stop={first}, max_tokens=6)
    assert stopped[0] == replies[0][: replies[0].index(first)]


def test_the_export_loads_in_mlx_lm_with_the_same_logits(
    tokenizer_folder: Path, encode: Any, tmp_path: Path
) -> None:
    mlx_lm = small_models.whole_mlx_lm()
    state = training.State.fresh(MODEL, seed=6)
    run(state, replace(CONFIG, steps=2, accumulate=1), encode)  # biases and norms off their first values
    ends = [encode(corpus.TURN_END)[0], encode(corpus.END)[0]]
    checkpointing.export(tmp_path, state, MODEL, tokenizer_folder, ends)
    parameters, model = checkpointing.load_exported(tmp_path)
    assert model == MODEL
    tokens = mx.array([encode("There once lived Ben the cat. Ben had a kite, and the kite was red.")])
    got = gpt.logits(parameters, gpt.forward(parameters, model, tokens))

    theirs, their_tokenizer = mlx_lm.load(str(tmp_path))
    assert set(their_tokenizer.eos_token_ids) == set(ends)
    assert their_tokenizer.has_tool_calling
    theirs.set_dtype(mx.float32)
    want = theirs(tokens)
    assert mx.max(mx.abs(got - want)).item() < 1e-4 * mx.max(mx.abs(want)).item()
    # What is exported is what training on quantised parameters saw.
    seen = training.quantised(state.parameters)
    for name, p in parameters.items():
        assert mx.array_equal(p, seen[name]), name


def test_quality_counts_what_is_right(
    encode: Any, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = tokenizer.load(tokenizer_folder).decode
    answers = {
        tuple(encode(prompt)): encode(want.content)
        for i in range(30)
        for prompt, want in corpus.sample("held-out", i).prompts()
    }

    def oracle(parameters: Any, model: Any, prompts: Any, stop: Any, max_tokens: int) -> list[list[int]]:
        return [answers[tuple(prompt)] for prompt in prompts]

    monkeypatch.setattr(quality, "greedy", oracle)
    draft = gpt.init_parameters(MODEL, seed=0), MODEL
    scores = quality.measure(
        {}, MODEL, encode, lambda i: decode(i, skip_special_tokens=False), samples=30, draft=draft
    )
    assert set(scores) == {"story", "question", "long", "tool call", "tool answer", "draft"}
    proposed = scores.pop("draft")
    assert proposed.asked == sum(len(ids) for ids in answers.values())
    assert proposed.share < 0.1  # it knows nothing
    assert all(score.right == score.asked > 0 for score in scores.values())


def test_a_draft_that_is_the_model_agrees_with_it(encode: Any) -> None:
    parameters = gpt.init_parameters(MODEL, seed=2)
    prompt = encode("Tom was a kind boy.")
    (reply,) = gpt.greedy(parameters, MODEL, [prompt], stop=set(), max_tokens=8)
    assert quality._agreed(parameters, MODEL, prompt, reply) == 8
    assert quality._agreed(parameters, MODEL, prompt, [*reply[:-1], reply[-1] + 1]) == 7


def test_the_command_trains_goes_on_and_exports(tokenizer_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", f"{WEEK4}.train", str(tmp_path / "run")]
    command += ["--tokenizer", str(tokenizer_folder), "--model", "tiny-qwen2-draft", "--rows", "1"]

    def train(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, check=False)

    begun = train("--steps", "2", "--export", str(tmp_path / "model"))
    assert begun.returncode == 0, begun.stderr
    assert "2/2  loss " in begun.stdout
    assert {p.name for p in (tmp_path / "model").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "history.json"),
    }
    assert "step 2 of 2" in train("--steps", "2").stdout
    other = train("--steps", "3")
    assert other.returncode == 1
    assert "was begun with other settings" in other.stderr
    longer = train("--steps", "9", "--change", "--until", "3")
    assert "step 2 of 9" in longer.stdout, longer.stderr
    state, _, config = checkpointing.load(tmp_path / "run")
    assert (state.step, config.steps) == (3, 9)
