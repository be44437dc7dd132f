"""Saving a run so that it goes on as if it had not stopped, and exporting a model in mlx-lm's layout.

A saved run is a folder: state.safetensors holds every array, state.json the rest. Both are written to a new
folder beside it that then takes its place, so a reader finds the old run or the new one, never half of each.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx

from .gpt import GPTConfig, Parameters
from .training import State, TrainConfig

GROUP_SIZE, BITS = 64, 4  # of the exported weights
ARRAYS = ("parameters", "first", "second")  # State's fields that hold arrays


def save(folder: Path, state: State, model: GPTConfig, config: TrainConfig) -> None:
    """Write the run to `folder`, replacing what is there."""
    new = folder.with_name(folder.name + ".new")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    arrays = {f"{part}.{name}": a for part in ARRAYS for name, a in getattr(state, part).items()}
    mx.save_safetensors(str(new / "state.safetensors"), arrays)
    rest = {
        "step": state.step,
        "position": state.position,
        "history": state.history,
        "model": asdict(model),
        "train": asdict(config),
    }
    (new / "state.json").write_text(json.dumps(rest, indent=1) + "\n", encoding="utf-8")
    # A folder cannot be replaced in one step. Between these two it is missing, and `load` takes the old one.
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> tuple[State, GPTConfig, TrainConfig]:
    """The run that `save` wrote. Raises FileNotFoundError when there is none."""
    if not folder.exists():
        folder = folder.with_name(folder.name + ".old")
    rest = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    model = GPTConfig(**rest["model"])
    arrays = mx.load(str(folder / "state.safetensors"))
    # subtle: in the model's order, which a file does not keep. The gradient's norm is summed in it, and
    # another order rounds differently.
    parts = {part: {name: arrays[f"{part}.{name}"] for name in model.shapes()} for part in ARRAYS}
    state = State(**parts, step=rest["step"], position=rest["position"], history=rest["history"])
    return state, model, TrainConfig(**rest["train"])


def export(folder: Path, state: State, model: GPTConfig, tokenizer: Path, eos: list[int]) -> None:
    """A folder that mlx_lm.load reads: config.json, 4-bit weights, the files in the folder `tokenizer`.

    Beside them history.json says how the loss went.

    Every matrix is quantised in groups of 64 along its rows. Scales, norms and biases stay float32, so that
    the model computes in it: of the dtypes, it is the one with a BLAS on a CPU. It costs 4 bytes in 36.

    Args:
        eos: the ids that end a text; the first is that of a chat turn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = asdict(model) | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "eos_token_id": eos,
        "quantization": {"group_size": GROUP_SIZE, "bits": BITS},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}) + "\n", encoding="utf-8")
    weights: Parameters = {}
    for name, p in state.parameters.items():
        if p.ndim == 2:
            stem = name.removesuffix(".weight")
            parts = mx.quantize(p, group_size=GROUP_SIZE, bits=BITS)
            weights.update(zip((name, f"{stem}.scales", f"{stem}.biases"), parts, strict=True))
        else:
            weights[name] = p
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    lines = ",\n".join(json.dumps({"step": h["step"], "loss": round(h["loss"], 4)}) for h in state.history)
    (folder / "history.json").write_text(f'{{"history": [\n{lines}\n]}}\n', encoding="utf-8")


def load_exported(folder: Path) -> tuple[Parameters, GPTConfig]:
    """What `export` wrote, dequantised to float32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = GPTConfig(**{name: config[name] for name in GPTConfig.__dataclass_fields__})
    weights = mx.load(str(folder / "model.safetensors"))
    parameters: Parameters = {}
    for name in model.shapes():
        stem = name.removesuffix(".weight")
        if f"{stem}.scales" in weights:
            scales, biases = weights[f"{stem}.scales"], weights[f"{stem}.biases"]
            parameters[name] = mx.dequantize(weights[name], scales, biases, group_size=GROUP_SIZE, bits=BITS)
        else:
            parameters[name] = weights[name]
    return parameters, model
