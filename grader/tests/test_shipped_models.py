"""The models in reference/models: their form, what else runs them, and that they do what they are for."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tinyllm.grader.tests import small_models

WEEK4 = "tinyllm.reference.week4"
checkpointing, corpus, curve, dequantised, gpt, quality, tokenizer = (
    importlib.import_module(f"{WEEK4}.{name}")
    for name in ("checkpointing", "corpus", "curve", "dequantised", "gpt", "quality", "tokenizer")
)

MODELS = Path(quality.__file__).resolve().parents[1] / "models"
MODEL, DRAFT = MODELS / "tiny-qwen2", MODELS / "tiny-qwen2-draft"
BOTH = pytest.mark.parametrize("folder", [MODEL, DRAFT], ids=lambda folder: folder.name)
STORY = "<|im_start|>user\nTell me a story about Mia and a kite.<|im_end|>\n<|im_start|>assistant\n"


def test_all_models_together_take_at_most_8_mb() -> None:
    assert sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file()) <= 8_000_000


@BOTH
def test_the_form_is_a_qwen2_checkpoint_of_mlx_lm(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    assert config["hidden_size"] // config["num_attention_heads"] == 64
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["tie_word_embeddings"] is True
    assert config["quantization"] == {"group_size": 64, "bits": 4}
    weights = mx.load(str(folder / "model.safetensors"))
    assert "model.layers.0.self_attn.q_proj.bias" in weights
    assert "lm_head.weight" not in weights
    assert all(mx.all(mx.isfinite(w)).item() for w in weights.values() if w.dtype == mx.float32)


def test_both_have_the_same_tokenizer() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (MODEL / name).read_bytes() == (DRAFT / name).read_bytes()


@BOTH
def test_mlx_lm_loads_it_and_generates(folder: Path) -> None:
    mlx_lm = small_models.whole_mlx_lm()
    model, words = mlx_lm.load(str(folder))
    text = mlx_lm.generate(model, words, prompt=STORY, max_tokens=200)
    assert "Mia" in text
    if folder == MODEL:  # it ends by itself, and its own parameters say the same
        parameters, config = checkpointing.load_exported(folder)
        stop = set(words.eos_token_ids)
        prompt = words.encode(STORY, add_special_tokens=False)
        (ids,) = gpt.greedy(parameters, config, [prompt], stop, max_tokens=200)
        assert words.decode(ids) == text
        assert len(ids) < 200


def test_it_does_about_what_the_card_says(tmp_path: Path) -> None:
    """A sample, enough to see that weights, tokenizer and code still belong together."""
    # In a process of its own: there a fast BLAS comes before MLX.
    command = [sys.executable, "-P", "-m", f"{WEEK4}.quality", str(MODEL), "--draft", str(DRAFT)]
    command += ["--samples", "60", "--json", str(tmp_path / "figures.json")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    scores = json.loads((tmp_path / "figures.json").read_text())["scores"]
    for kind in quality.BARS:
        told = measured()["scores"][kind]
        assert scores[kind]["asked"] >= 5, kind
        share = scores[kind]["right"] / scores[kind]["asked"]
        assert abs(share - told["right"] / told["asked"]) < 0.35, ran.stdout


def measured() -> dict[str, Any]:
    """What `quality` wrote about these weights."""
    return json.loads((MODELS / "quality.json").read_text(encoding="utf-8"))


def test_the_card_gives_the_measured_figures() -> None:
    card = (MODELS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z ]+)` \|.*\| (\d+) of (\d+), ([\d.]+) % \|", card, re.MULTILINE)
    told = {kind: (int(right), int(asked)) for kind, right, asked, _ in rows}
    scores = measured()["scores"]
    assert told == {kind: (score["right"], score["asked"]) for kind, score in scores.items()}
    for kind, right, asked, percent in rows:
        assert percent == f"{100 * int(right) / int(asked):.1f}", kind
    assert measured()["samples"] >= 1000
    below = [k for k, bar in quality.BARS.items() if scores[k]["right"] < bar * scores[k]["asked"]]
    assert ("not reached yet" in card) == bool(below), below


def test_the_picture_is_drawn_from_the_history_that_ships() -> None:
    runs = {name: curve.read(MODELS / name / "history.json") for name in ("tiny-qwen2", "tiny-qwen2-draft")}
    assert (MODELS / "loss.svg").read_text(encoding="utf-8") == curve.draw(runs)


@BOTH
def test_transformers_gives_the_same_logits_on_the_dequantised_weights(folder: Path, tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    import transformers

    dequantised.write(folder, tmp_path / "plain")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "plain")
    ids = words(STORY, add_special_tokens=False)["input_ids"]
    parameters, config = checkpointing.load_exported(folder)
    assert ids == tokenizer.load(folder).encode(STORY, add_special_tokens=False).ids
    want = theirs(torch.tensor([ids])).logits[0].detach().numpy()
    ours = gpt.logits(parameters, gpt.forward(parameters, config, mx.array([ids])))[0]
    largest = float(abs(want).max())
    assert abs(want - ours).max() < 1e-4 * largest
    reply = theirs.generate(torch.tensor([ids]), max_new_tokens=150, do_sample=False)[0, len(ids) :]
    ends = set(json.loads((folder / "config.json").read_text())["eos_token_id"])
    (mine,) = gpt.greedy(parameters, config, [ids], ends, max_tokens=150)
    assert reply.tolist()[: len(mine)] == mine
