"""Writes an exported model without quantisation, for programs that do not read MLX's 4-bit weights.

    python -P -m tinyllm.reference.week4.dequantised MODEL OUT

OUT is then a float32 Qwen2 checkpoint as Hugging Face's `transformers` loads it. The numbers are the 4-bit
model's own, so both give the same logits:

    transformers.AutoModelForCausalLM.from_pretrained(OUT)
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx

from .checkpointing import load_exported


def write(model: Path, out: Path) -> None:
    """Write the exported folder `model` to the folder `out`, which is made."""
    parameters, _ = load_exported(model)
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    del config["quantization"]
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    mx.save_safetensors(str(out / "model.safetensors"), parameters, metadata={"format": "pt"})
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, out / name)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
