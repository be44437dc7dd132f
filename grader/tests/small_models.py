"""Models for the tests: of the real architecture, tiny, in any precision, and they say something known.

The blocks add nothing to the stream and the head is made for the embedding, so each token has one successor:
TEXT comes after a prompt that ends in a line break, in every precision, with a margin no rounding crosses.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tinyllm.grader.testing import mlx_lm_module

TEXT = "The quické!"  # no byte twice: a token has one successor
STEPS = len(TEXT.encode()) + 1  # calls of the model for it, with the one for the end mark
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 320
CONTEXT = 128

TEMPLATE = (
    "{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

CONFIG: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 128,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def whole_mlx_lm() -> ModuleType:
    """mlx_lm with its `load`, whatever ran before: mlx_lm_module leaves a package without it behind."""
    if not hasattr(importlib.import_module("mlx_lm"), "load"):
        del sys.modules["mlx_lm"]
    return importlib.import_module("mlx_lm")


def write(
    folder: Path,
    *,
    family: str = "qwen2",
    dtype: mx.Dtype = mx.float32,
    bits: int = 0,
    shards: int = 1,
    endless: bool = False,
    **config: Any,
) -> Path:
    """Write a model's folder: config.json, weights, tokenizer.

    family: "qwen2" or "qwen3". bits: 0 leaves the weights unpacked. An endless model begins TEXT again where
    it should end. `config` changes what config.json says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(folder)
    written = CONFIG | {"model_type": family, "head_dim": 32}
    module = mlx_lm_module(f"models.{family}")
    model = module.Model(module.ModelArgs.from_dict(written))
    mx.random.seed(0)
    model.update(tree_map(lambda p: 0.02 * mx.random.normal(p.shape), model.parameters()))
    for layer in model.layers:
        layer.self_attn.o_proj.weight *= 0
        layer.mlp.down_proj.weight *= 0
    embedding = 2 * mx.random.bernoulli(0.5, (VOCABULARY, CONFIG["hidden_size"])).astype(mx.float32) - 1
    model.model.embed_tokens.weight = embedding
    model.model.norm.weight = mx.ones_like(model.model.norm.weight)
    chain = [ids[b] for b in TEXT.encode()] + [ids["<|im_end|>"]]
    follows = dict(itertools.pairwise(chain))
    follows[ids[ord("\n")]] = chain[0]  # a chat prompt ends so
    if endless:
        follows[chain[-2]] = chain[0]
    head = 0 * embedding
    for here, there in follows.items():
        head[there] = head[there] + embedding[here]
    model.lm_head.weight = head
    model.set_dtype(dtype)
    if bits:
        nn.quantize(model, group_size=64, bits=bits)
        written["quantization"] = {"group_size": 64, "bits": bits}
    _write_weights(folder, dict(tree_flatten(model.parameters())), shards)
    written |= {"eos_token_id": ids["<|im_end|>"], **config}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in written.items() if v is not None}))
    return folder


def _write_tokenizer(folder: Path) -> dict[int | str, int]:
    """One token a byte, then Qwen's special ones. Returns their ids, by byte and by name."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ids: dict[int | str, int] = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    visible = _visible_bytes()
    return ids | {b: alphabet.index(visible[b]) for b in range(256)}


def _visible_bytes() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def _write_weights(folder: Path, weights: dict[str, mx.array], shards: int) -> None:
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
        return
    places = {}
    for part in range(shards):
        file = f"model-{part + 1:05}-of-{shards:05}.safetensors"
        mine = dict(list(weights.items())[part::shards])
        mx.save_safetensors(str(folder / file), mine, metadata={"format": "mlx"})
        places |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
