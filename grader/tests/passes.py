"""Helpers for test_comparing: a tiny random checkpoint, and many wrong solutions judged in one process.

python -P -m tinyllm.grader.tests.passes '<job as JSON>'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "rope_theta": 3000.0,
    "tie_word_embeddings": True,
}
PROMPT = "the cat saw the dog and the dog saw the red ball by the old river"


def write_checkpoint(folder: Path, *, dtype: str = "float32", bits: int | None = 8) -> Path:
    """A model with seeded random weights, and a tokenizer of whole words, as a folder."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten, tree_unflatten
    from tokenizers import Tokenizer, models, pre_tokenizers

    from tinyllm.grader.testing import mlx_lm_module

    qwen2 = mlx_lm_module("models.qwen2")
    model = qwen2.Model(qwen2.ModelArgs.from_dict(CONFIG))
    key = mx.random.key(5)
    weights = []
    for n, (name, array) in enumerate(tree_flatten(model.parameters())):
        values = mx.random.normal(array.shape, key=mx.random.split(key, 500)[n]) * 0.2
        weights.append((name, (1 + values if "norm" in name else values).astype(getattr(mx, dtype))))
    model.update(tree_unflatten(weights))
    config: dict[str, Any] = dict(CONFIG)
    if bits:
        config["quantization"] = {"group_size": 32, "bits": bits}
        nn.quantize(model, group_size=32, bits=bits)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    words = {word: i for i, word in enumerate(["?", *dict.fromkeys(PROMPT.split())])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def judge(root: Path, folder: Path, cases: dict[str, dict[str, str]]) -> dict[str, Any]:
    """What is found for each case: the reference with some of its modules replaced by other files."""
    from tinyllm.grader import catalog
    from tinyllm.grader.clone import Clone
    from tinyllm.grader.comparing_child import Passes
    from tinyllm.grader.trees import Tree

    clone = Clone(root)
    course = catalog.load(clone)
    passes = Passes(clone, course, course.day("1.5"), "reference")
    passes.load(folder, PROMPT)
    passes.run_reference()
    found = {}
    for name, files in cases.items():
        for loaded in [m for m in sys.modules if m.startswith("tinyllm.exercises")]:
            del sys.modules[loaded]
        passes.mine_tree = Tree("exercises", clone.reference, {m: Path(f) for m, f in files.items()})
        passes.mine, passes.stop, passes.instances = None, None, {"theirs": passes.instances["theirs"]}
        passes.run_learner()
        found[name] = passes.found()
    return found


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps(judge(Path(job["root"]), Path(job["folder"]), job["cases"])))
