"""Finds the model that `--model` names, and checks its files before anything heavy is started.

Reads JSON files and the headers of the weight files, never the weights: what is wrong with 15 GB of them is
found in milliseconds and told with the file's name. Nothing here imports MLX.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .clone import Clone
from .errors import EnvironmentFault, UsageError

SHIPPED = "tiny-qwen2"  # the model that needs no download
SUPPORTED = ("qwen2", "qwen3")  # model_type in config.json
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4}  # dtypes that may come; U32 holds packed weights
DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
REQUIRED = (  # whole numbers in config.json without which no Qwen model can be built
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "vocab_size",
)  # fmt: skip
CONTEXT = 32768  # what mlx-lm takes where config.json has no max_position_embeddings
LARGEST_HEADER = 100_000_000  # bytes; the safetensors format's own limit
# What mlx-lm fetches, but for Python files: code out of a download is never run.
PATTERNS = ["*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jsonl", "*.jinja"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Model:
    """A folder that mlx-lm can be asked to load, as far as can be told without loading it."""

    name: str
    path: Path
    model_type: str
    context: int  # the most tokens it takes, prompt and reply together
    parameters: int  # numbers in the weights, packed ones counted one by one
    precision: str  # "4-bit", "bfloat16"
    file_bytes: int
    unpacked_bytes: int  # of the weights as plain arrays
    config: Mapping[str, Any] = field(default_factory=dict)  # what mlx-lm must be told beside config.json

    @property
    def size(self) -> str:
        """ "3.4 million parameters, 4-bit, 2.1 MB"."""
        unit, word = (1e9, "billion") if self.parameters >= 1e9 else (1e6, "million")
        return f"{self.parameters / unit:.3g} {word} parameters, {self.precision}, {_bytes(self.file_bytes)}"


def shipped(clone: Clone, name: str = SHIPPED) -> Path:
    """Where a model that comes with the course lies."""
    return clone.reference / "models" / name


def resolve(clone: Clone, text: str = "") -> Model:
    """The model that `text` names: a shipped one (also ""), a folder, or one on Hugging Face, then fetched.

    Raises UsageError where there is no such model or the course cannot run its kind, EnvironmentFault where
    its files are missing or damaged, or it cannot be fetched.
    """
    name = text or SHIPPED
    own = shipped(clone, name)
    named = re.fullmatch(r"[\w.-]+", name) and (name == SHIPPED or own.is_dir()) and not Path(name).is_dir()
    if not text or named:
        return check(own, name, mend=f"Bring it back: git checkout -- {clone.relative(own)}")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return check(folder.resolve(), folder.resolve().name, mend="Copy or download the folder again.")
    if folder.exists():
        raise UsageError(
            f"{name} is a file; --model takes the folder that holds config.json.",
            next_step=f"--model {folder.parent}",
        )
    if not _is_hub_id(name):
        raise UsageError(
            f"There is no folder {name}, and it is no Hugging Face id, which has the form org/name."
        )
    folder = fetch(name)
    kept = folder.parents[1] if folder.parent.name == "snapshots" else folder
    return check(folder, name, mend=f"To fetch it anew, delete {kept} and run this again.")


def _is_hub_id(text: str) -> bool:
    """Whether `text` reads as org/name rather than as a path: one slash, and no folder here called org."""
    return HUB_ID.fullmatch(text) is not None and not Path(text.partition("/")[0]).is_dir()


# ---- from Hugging Face


def fetch(repo: str) -> Path:
    """The folder of a model on Hugging Face, downloaded unless it is in the cache already.

    Without a network the cached one is taken. Progress is huggingface_hub's own bar, on stderr.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    without = f"{SHIPPED} comes with the course and needs no network: leave --model out."
    try:
        return Path(snapshot_download(repo, allow_patterns=PATTERNS))
    except GatedRepoError:
        raise EnvironmentFault(
            f"{repo} is gated: its owner lets only those in who accepted the terms on its page.",
            next_step=f"Accept them at https://huggingface.co/{repo} and run: hf auth login",
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UsageError(
            f"Hugging Face has no model {repo}, or it is private.",
            next_step="Is the id right? It is what stands at the top of the model's page, org/name.",
        ) from None
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:
            reason = f"{repo} has not been downloaded, and HF_HUB_OFFLINE forbids downloading."
        else:
            reason = f"{repo} has not been downloaded whole, and Hugging Face cannot be reached."
        raise EnvironmentFault(reason, next_step=without) from None
    except (HfHubHTTPError, OSError) as error:
        raise EnvironmentFault(
            f"{repo} could not be downloaded: {type(error).__name__}: {_first_line(error)}", next_step=without
        ) from None
    except Exception as error:  # the libraries below it have errors of their own
        if type(error).__module__.partition(".")[0] not in ("huggingface_hub", "httpx", "httpx2", "hf_xet"):
            raise
        raise EnvironmentFault(
            f"{repo} could not be downloaded: {type(error).__name__}: {_first_line(error)}", next_step=without
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ---- the files of a folder


def check(folder: Path, name: str, *, mend: str) -> Model:
    """Look over a model's files. `mend` is the next step where one of them is missing or damaged."""
    if not folder.is_dir():
        raise EnvironmentFault(f"The model's folder {folder} is missing.", next_step=mend)
    try:
        config = _json_object(folder / "config.json")
        quantized = _check_config(config)
        tensors: dict[str, Tensor] = {}
        files = _weight_files(folder)
        for file in files:
            tensors |= read_header(file)
        _check_packing(tensors, quantized)
        _json_object(folder / "tokenizer.json")
    except _Damaged as fault:
        raise EnvironmentFault(f"{name}: {fault}", next_step=mend) from None
    except _NotSupported as fault:
        raise UsageError(
            f"{name}: {fault}", next_step="The course runs Qwen2, Qwen2.5 and dense Qwen3 models."
        ) from None
    return Model(
        name=name,
        path=folder,
        model_type=config["model_type"],
        context=config.get("max_position_embeddings", CONTEXT),
        file_bytes=sum(f.stat().st_size for f in files),
        config=_beside(config),
        **_figures(tensors, quantized),
    )


class _Damaged(Exception):
    """A file is missing, cut off or not what its name says."""


class _NotSupported(Exception):
    """The files are sound, and the course cannot run this kind of model."""


@dataclass(frozen=True)
class Tensor:
    """An entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    size: int  # in bytes


def _json_object(file: Path) -> dict[str, Any]:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise _Damaged(f"{file.name} is missing.") from None
    except OSError as error:
        raise _Damaged(f"{file.name} cannot be read: {error.strerror or error}") from None
    try:
        value = json.loads(data)
    except ValueError as error:
        if what := _in_place_of_a_file(data[:1024]):
            raise _Damaged(f"{file.name} is {what}.") from None
        raise _Damaged(f"{file.name} ({_bytes(len(data))}) is no JSON: {_first_line(error)}.") from None
    if not isinstance(value, dict):
        raise _Damaged(f"{file.name} holds no JSON object.")
    return value


def _check_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Refuse what the course cannot run; return how the weights are quantized, None where they are not."""
    kind = config.get("model_type")
    if kind not in SUPPORTED:
        shown = f"model_type '{kind}'" if kind else "a config.json without model_type"
        raise _NotSupported(f"it has {shown}; supported are {' and '.join(SUPPORTED)}.")
    for key in REQUIRED:
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            shown = "is missing" if key not in config else f"is {value!r}, not a whole number above 0"
            raise _Damaged(f"config.json: {key} {shown}.")
    if not isinstance(config.get("max_position_embeddings", CONTEXT), int):
        raise _Damaged("config.json: max_position_embeddings is no whole number.")
    for key in ("rope_scaling", "rope_parameters"):
        scaling = config.get(key)
        if isinstance(scaling, dict):
            kind = scaling.get("rope_type", scaling.get("type", "default"))
            if kind != "default":
                raise _NotSupported(
                    f"it scales its positions ({key}: {kind}), and the course's RoPE does not."
                )
    quantized = config.get("quantization")
    if quantized is None and isinstance(other := config.get("quantization_config"), dict):
        method = other.get("quant_method", "an unnamed method")
        raise _NotSupported(
            f"its weights are packed by {method}; the course reads MLX's affine ones, which the models of "
            "mlx-community on Hugging Face have."
        )
    if quantized is not None and not isinstance(quantized, dict):
        raise _Damaged("config.json: quantization is no table.")
    for settings in _each_quantization(quantized or {}):
        mode, bits = settings.get("mode", "affine"), settings.get("bits", 4)
        if mode != "affine":
            raise _NotSupported(f"its weights are packed in the mode {mode}; the course unpacks affine ones.")
        if bits not in AFFINE_BITS:
            raise _NotSupported(
                f"its weights are packed with {bits} bits; MLX's affine mode has {AFFINE_BITS}."
            )
    return quantized


def _each_quantization(quantized: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings for all layers, then those that single layers have of their own."""
    if quantized:
        yield quantized
    yield from (v for v in quantized.values() if isinstance(v, dict))


def _weight_files(folder: Path) -> list[Path]:
    """The files that mlx-lm would read, all of them there."""
    files = sorted(folder.glob("model*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        places = _json_object(index).get("weight_map")
        if not isinstance(places, dict):
            raise _Damaged(f"{index.name} has no weight_map.")
        named = sorted({str(v) for v in places.values()})
        if missing := [n for n in named if not (folder / n).is_file()]:
            shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            verb = "is" if len(missing) == 1 else "are"
            raise _Damaged(f"of the {len(named)} weight files, {shown} {verb} missing.")
    if not files:
        others = [p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pth"), *folder.glob("*.gguf"))]
        found = f" What is there, {others[0]}, has another format." if others else ""
        raise _Damaged(f"no weights: there is no model.safetensors.{found}")
    if links := [f.name for f in files if not f.is_file()]:
        raise _Damaged(f"{links[0]} is a link to a file that is not there.")
    return files


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors that a safetensors file says it holds, when the file is exactly as long as that takes.

    Raises _Damaged: cut off, too long, another file under this name, or a header that contradicts itself.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(1024)
        if what := _in_place_of_a_file(head):
            raise _Damaged(f"{file.name} ({_bytes(size)}) is {what}.")
        if len(head) < 8:
            raise _Damaged(f"{file.name} has {size} bytes: it is empty or cut off.")
        (length,) = struct.unpack("<Q", head[:8])
        if length > LARGEST_HEADER or length < 2 or head[8:9] != b"{":
            raise _Damaged(f"{file.name} ({_bytes(size)}) is no safetensors file.")
        if 8 + length > size:
            raise _Damaged(f"{file.name} is cut off: its {size:,} bytes end within its header.")
        opened.seek(8)
        text = opened.read(length)
    try:
        header = json.loads(text)
        tensors, ends = {}, [0]
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            tensors[name] = tensor = Tensor(entry["dtype"], tuple(entry["shape"]), end - begin)
            if tensor.dtype not in ITEM_BYTES:
                raise _NotSupported(
                    f"{file.name} holds {tensor.dtype} numbers ({name}); the course reads float32, float16, "
                    "bfloat16 and MLX's packed ones."
                )
            if math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype] != tensor.size or begin < 0:
                raise _Damaged(f"{file.name} is damaged: the header's entry for {name} contradicts itself.")
            ends.append(end)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _Damaged(f"{file.name} is damaged: its header cannot be read.") from None
    expected = 8 + length + max(ends)
    if size < expected:
        raise _Damaged(f"{file.name} is cut off: it has {size:,} bytes and should have {expected:,}.")
    if size > expected:
        raise _Damaged(f"{file.name} is damaged: it has {size:,} bytes and should have {expected:,}.")
    return tensors


def _in_place_of_a_file(head: bytes) -> str:
    """What stands where a file should be, told by how it begins; empty when it looks like itself."""
    start = head.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        found = re.search(rb"size (\d+)", head)
        of = f" for a file of {_bytes(int(found[1]))}" if found else ""
        return f"a git-lfs pointer{of}, not the file itself (git lfs pull brings it)"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, perhaps an error page, not the file itself"
    return ""


def _check_packing(tensors: Mapping[str, Tensor], quantized: Mapping[str, Any] | None) -> None:
    packed = [n for n, t in tensors.items() if t.dtype == "U32"]
    if packed and quantized is None:
        raise _Damaged(f"the weights are packed ({packed[0]}) and config.json has no quantization.")
    for name in packed:
        if f"{name.removesuffix('.weight')}.scales" not in tensors:
            raise _Damaged(f"{name} is packed, and its scales are missing.")


def _figures(tensors: Mapping[str, Tensor], quantized: Mapping[str, Any] | None) -> dict[str, Any]:
    """How many numbers there are, in what precision, and how much room they take unpacked."""
    numbers = unpacked = 0
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        if last in ("scales", "biases") and f"{stem}.weight" in tensors:
            continue
        count = math.prod(tensor.shape)
        width = ITEM_BYTES[tensor.dtype]
        if tensor.dtype == "U32":
            own = (quantized or {}).get(stem)
            bits = (own if isinstance(own, dict) else quantized or {}).get("bits", 4)
            count, width = count * 32 // bits, ITEM_BYTES[tensors[f"{stem}.scales"].dtype]
        numbers += count
        unpacked += count * width
    if quantized is not None:
        precision = f"{quantized.get('bits', 4)}-bit"
    else:
        precision = DTYPE_NAMES[max(tensors.values(), key=lambda t: t.size).dtype] if tensors else "empty"
    return {"parameters": numbers, "unpacked_bytes": unpacked, "precision": precision}


def _beside(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 writes rope_theta into rope_parameters, where mlx-lm's qwen2 does not look."""
    nested = config.get("rope_parameters")
    if "rope_theta" not in config and isinstance(nested, dict) and "rope_theta" in nested:
        return {"rope_theta": nested["rope_theta"]}
    return {}


def _bytes(count: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"
