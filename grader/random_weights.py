"""Checkpoints of real shapes with random weights, for measurements: made on the spot, no download.

The layout is mlx-lm's: config.json and model.safetensors, linears and embedding in 4 bits with groups of 64.
The packed numbers are drawn as they are stored, tensor by tensor, so nothing is ever unpacked; scales are
chosen so that activations stay near 1 through all layers. There is no tokenizer: ids are drawn, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.kernels import cache

from .errors import EnvironmentFault, UsageError
from .figures import size

VERSION = 1  # of what is drawn: a new one makes the kept ones anew
SEED = 20
GROUP, BITS = 64, 4
PER_WORD = 32 // BITS
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4}
SPREAD_OF_A_DIGIT = math.sqrt((4**BITS - 1) / 12)  # standard deviation of 0..15


@dataclass(frozen=True)
class Shape:
    """The numbers of a config.json that decide how large a Qwen2 is."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int = 32768
    rope_theta: float = 1000000.0
    rms_norm_eps: float = 1e-6


SHAPES = {
    "tiny": Shape(256, 4, 4, 2, 384, 1856, True, 1024, 10000.0),  # tiny-qwen2's, which comes with the course
    "qwen2-0.5b": Shape(896, 24, 14, 2, 4864, 151936, True),
    "qwen2-7b-2layers": Shape(3584, 2, 28, 4, 18944, 152064, False),  # two of its 28 layers
}


@dataclass(frozen=True)
class _Tensor:
    name: str
    kind: str  # a safetensors dtype
    shape: tuple[int, ...]
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.kind]


def checkpoint(
    shape: str, dtype: str = "float32", *, on_making: Callable[[str], None] = lambda told: None
) -> Path:
    """The folder of the random checkpoint called `shape`, made first where it is not kept yet.

    dtype is that of everything but the packed weights. `on_making` is told, in words, what is made. Raises
    UsageError for an unknown name and EnvironmentFault where it cannot be written.
    """
    if shape not in SHAPES:
        raise UsageError(f"There is no shape called '{shape}'. Shapes: {' '.join(SHAPES)}")
    if dtype not in STORED:
        raise UsageError(f"There is no dtype '{dtype}' here: {' '.join(STORED)}")
    tensors = list(_tensors(SHAPES[shape], STORED[dtype]))
    folder = cache.folder("checkpoints") / f"{shape}-{dtype}-{_fingerprint(SHAPES[shape])}"
    if _is_whole(folder, tensors):
        return folder
    total = sum(t.nbytes for t in tensors)
    on_making(f"a random checkpoint of {shape}, {size(total)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder.parent).free < 1.1 * total:
            raise EnvironmentFault(f"{folder.parent} has no room for a checkpoint of {size(total)}.")
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as making:
            _write(Path(making) / "new", SHAPES[shape], dtype, tensors)
            shutil.rmtree(folder, ignore_errors=True)  # damaged
            with contextlib.suppress(FileExistsError):  # another process was faster
                (Path(making) / "new").rename(folder)
    except OSError as error:
        raise EnvironmentFault(f"{folder.parent} cannot be written: {error.strerror or error}") from None
    if not _is_whole(folder, tensors):
        raise EnvironmentFault(f"{folder} was not written whole.")
    return folder


def _fingerprint(shape: Shape) -> str:
    said = json.dumps([VERSION, SEED, asdict(shape)])
    return hashlib.sha256(said.encode()).hexdigest()[:8]


def _is_whole(folder: Path, tensors: list[_Tensor]) -> bool:
    """Whether the kept checkpoint has the size it must have; it was put there by one rename."""
    weights = folder / "model.safetensors"
    expected = len(_header(tensors)) + sum(t.nbytes for t in tensors)
    return (folder / "config.json").is_file() and weights.is_file() and weights.stat().st_size == expected


def _tensors(shape: Shape, kind: str) -> Iterator[_Tensor]:
    """Every tensor of the file, with what it is drawn from."""
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    keys = hidden // heads * shape.num_key_value_heads

    def packed(name: str, rows: int, columns: int) -> Iterator[_Tensor]:
        # q * scale + bias has mean 0 and standard deviation 1 / sqrt(columns): a product keeps its input's
        # size. Scales differ by group, so that a kernel that mixes up groups is seen.
        unit = 1 / (SPREAD_OF_A_DIGIT * math.sqrt(columns))

        def scales(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
            return rng.uniform(0.5 * unit, 1.5 * unit, shape).astype(np.float32)

        def biases(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
            return (-(2**BITS - 1) / 2 * rng.uniform(0.9 * unit, 1.1 * unit, shape)).astype(np.float32)

        yield _Tensor(f"{name}.weight", "U32", (rows, columns // PER_WORD), _digits)
        yield _Tensor(f"{name}.scales", kind, (rows, columns // GROUP), scales)
        yield _Tensor(f"{name}.biases", kind, (rows, columns // GROUP), biases)

    yield from packed("model.embed_tokens", shape.vocab_size, hidden)
    for number in range(shape.num_hidden_layers):
        layer = f"model.layers.{number}"
        for part, rows in (("q", hidden), ("k", keys), ("v", keys)):
            yield from packed(f"{layer}.self_attn.{part}_proj", rows, hidden)
            yield _Tensor(f"{layer}.self_attn.{part}_proj.bias", kind, (rows,), _small)
        yield from packed(f"{layer}.self_attn.o_proj", hidden, hidden)
        for part in ("gate", "up"):
            yield from packed(f"{layer}.mlp.{part}_proj", shape.intermediate_size, hidden)
        yield from packed(f"{layer}.mlp.down_proj", hidden, shape.intermediate_size)
        yield _Tensor(f"{layer}.input_layernorm.weight", kind, (hidden,), _near_one)
        yield _Tensor(f"{layer}.post_attention_layernorm.weight", kind, (hidden,), _near_one)
    yield _Tensor("model.norm.weight", kind, (hidden,), _near_one)
    if not shape.tie_word_embeddings:
        yield from packed("lm_head", shape.vocab_size, hidden)


def _digits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 2**32, shape, dtype=np.uint32)


def _small(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(0, 0.1, shape).astype(np.float32)


def _near_one(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.8, 1.2, shape).astype(np.float32)


# ---- the files


def _write(folder: Path, shape: Shape, dtype: str, tensors: list[_Tensor]) -> None:
    folder.mkdir()
    rng = np.random.Generator(np.random.SFC64(SEED))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(_header(tensors))
        for tensor in tensors:
            drawn = _as_stored(tensor.draw(rng, tensor.shape), tensor.kind)
            file.write(memoryview(drawn).cast("B"))
        file.flush()
        os.fsync(file.fileno())
    config: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        **asdict(shape),
        "torch_dtype": dtype,
        "quantization": {"group_size": GROUP, "bits": BITS},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _header(tensors: list[_Tensor]) -> bytes:
    """The head of a safetensors file: its own length, then where each tensor lies."""
    places: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for t in tensors:
        places[t.name] = {"dtype": t.kind, "shape": t.shape, "data_offsets": [end, end + t.nbytes]}
        end += t.nbytes
    said = json.dumps(places).encode()
    said += b" " * (-len(said) % 8)
    return struct.pack("<Q", len(said)) + said


def _as_stored(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "F16":
        return values.astype(np.float16)
    if kind == "BF16":  # NumPy has none: the upper half of a float32, rounded
        return ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    return values
