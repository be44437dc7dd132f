"""A checkpoint's folder into mlx-lm's model, and a prompt into token ids (runs in a child process).

mlx-lm's own loader brings in transformers, which takes a second or two; nothing here does.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx


class NotLoadable(Exception):
    """The folder does not hold what a model needs; the message says what."""


def mlx_lm_module(name: str) -> ModuleType:
    """A module of mlx-lm that needs MLX alone, such as "models.qwen2", to build an oracle from.

    mlx-lm's own __init__ brings in transformers, which takes a second or two; it is not run here. So
    `mlx_lm.load` and its like are missing in a process that has called this before importing mlx_lm.
    """
    if "mlx_lm" not in sys.modules:
        spec = importlib.util.find_spec("mlx_lm")
        if spec is None:
            raise ModuleNotFoundError("No module named 'mlx_lm'", name="mlx_lm")
        sys.modules["mlx_lm"] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"mlx_lm.{name}")


def load_model(folder: Path, *, dequantized: bool = False) -> Any:
    """mlx-lm's model with the weights of `folder`: what `mlx_lm.load` returns, without the tokenizer.

    Layers that have scales in the file become quantised ones, with the group size and bits that config.json
    gives them; with `dequantized`, plain ones of the same values. Raises NotLoadable.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = mlx_lm_module(f"models.{config['model_type']}")
    except (OSError, ValueError, KeyError, ModuleNotFoundError) as error:
        raise NotLoadable(f"{folder / 'config.json'}: {type(error).__name__}: {error}") from None
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise NotLoadable(f"{folder} holds no model*.safetensors.")
    try:
        weights = {name: array for file in files for name, array in mx.load(str(file)).items()}
        model = family.Model(family.ModelArgs.from_dict(config))
        if hasattr(model, "sanitize"):
            weights = model.sanitize(weights)
        if quantization := config.get("quantization"):
            if dequantized:
                weights = _dequantized(quantization, weights)
            else:
                _quantize(model, quantization, weights)
        model.load_weights(list(weights.items()))
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise NotLoadable(f"{folder} does not load: {error}") from None
    model.eval()
    return model


def _quantize(model: Any, quantization: dict[str, Any], weights: dict[str, mx.array]) -> None:
    import mlx.nn as nn  # here: every grading child imports this module, and few need a model

    def recipe(path: str, layer: Any) -> bool | dict[str, Any]:
        own = quantization.get(path)  # a checkpoint may give single layers other bits, or none
        if own is not None:
            return own
        return hasattr(layer, "to_quantized") and f"{path}.scales" in weights

    nn.quantize(model, quantization["group_size"], quantization["bits"], class_predicate=recipe)


def _dequantized(quantization: dict[str, Any], weights: dict[str, mx.array]) -> dict[str, mx.array]:
    plain = {}
    for name, array in weights.items():
        layer, _, part = name.rpartition(".")
        if f"{layer}.scales" not in weights:
            plain[name] = array
        elif part == "weight":
            own = quantization.get(layer, quantization)
            scales, biases = weights[f"{layer}.scales"], weights[f"{layer}.biases"]
            plain[name] = mx.dequantize(array, scales, biases, own["group_size"], own["bits"])
        elif part == "bias":
            plain[name] = array
    return plain


def encode(folder: Path, prompt: str) -> list[int]:
    """The prompt's token ids, without special tokens added. Raises NotLoadable."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise NotLoadable(f"{file} does not load: {error}") from None
    return tokenizer.encode(prompt, add_special_tokens=False).ids
