"""Finding a model and looking over its files: every fault is a sentence that names the file."""

from __future__ import annotations

import json
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import mlx.core as mx
import pytest

from tinyllm.grader import models
from tinyllm.grader.clone import Clone
from tinyllm.grader.errors import CourseError, EnvironmentFault, UsageError
from tinyllm.grader.tests import small_models, toy

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2045893\n"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.write(tmp_path_factory.mktemp("models") / "sound")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    copy = tmp_path / "a model"
    copy.mkdir()
    for file in sound.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def told(folder: Path, kind: type[CourseError] = EnvironmentFault) -> str:
    with pytest.raises(CourseError) as caught:
        models.resolve(Clone(folder.parent), str(folder))
    assert type(caught.value) is kind
    assert caught.value.next_step
    return caught.value.message


def change(file: Path, **values: object) -> None:
    content = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


# ---- what is taken


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ({}, "float32"),
        ({"dtype": mx.bfloat16, "shards": 3}, "bfloat16"),
        ({"dtype": mx.float16}, "float16"),
        ({"bits": 4}, "4-bit"),
        ({"bits": 8, "dtype": mx.bfloat16, "shards": 2}, "8-bit"),
    ],
)
def test_sound_files_in_each_precision(tmp_path: Path, options: dict, precision: str) -> None:
    model = models.resolve(Clone(tmp_path), str(small_models.write(tmp_path / "small", **options)))
    embeddings, head_dim = 2 * 320 * 64, 32
    attention = 64 * (2 * head_dim) * 2 + 64 * head_dim * 2 + 4 * head_dim
    assert model.parameters == embeddings + 64 + 2 * (attention + 3 * 64 * 128 + 2 * 64)
    assert (model.name, model.model_type, model.context) == ("small", "qwen2", small_models.CONTEXT)
    assert model.precision == precision
    assert f"0.115 million parameters, {precision}, " in model.size
    width = 4 if options.get("dtype", mx.float32) == mx.float32 else 2
    assert model.unpacked_bytes == width * model.parameters


def test_billions_are_said_as_such() -> None:
    model = models.Model("x", Path(), "qwen2", 1, 7_600_000_000, "4-bit", 4_280_000_000, 0)
    assert model.size == "7.6 billion parameters, 4-bit, 4.28 GB"


def test_rope_theta_where_transformers_5_writes_it(folder: Path) -> None:
    change(
        folder / "config.json", rope_theta=None, rope_parameters={"rope_theta": 5e5, "rope_type": "default"}
    )
    assert models.resolve(Clone(folder.parent), str(folder)).config == {"rope_theta": 5e5}


def test_the_shipped_model_and_others_beside_it_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = Clone(tmp_path / "clone")
    with pytest.raises(EnvironmentFault, match="is missing") as caught:
        models.resolve(clone)
    assert "git checkout -- reference/models/tiny-qwen2" in caught.value.next_step
    for name in ("tiny-qwen2", "other"):
        models.shipped(clone, name).parent.mkdir(parents=True, exist_ok=True)
        small_models.write(models.shipped(clone, name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-qwen2").mkdir()
    assert models.resolve(clone).path == models.shipped(clone)
    with pytest.raises(EnvironmentFault, match=r"config\.json is missing"):  # a folder here comes first
        models.resolve(clone, "tiny-qwen2")
    assert models.resolve(clone, "other").path == models.shipped(clone, "other")


# ---- names that lead nowhere


def test_names_that_are_no_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in (
        "qwen",
        "./here",
        "/no/such/place",
        "models/qwen",
        "a/b/c",
        "~/nowhere-at-all",
        ".."[:1] + "/x",
    ):
        with pytest.raises(UsageError, match="There is no folder"):
            models.resolve(Clone(tmp_path), name)
    with pytest.raises(UsageError, match="is a file; --model takes the folder"):
        models.resolve(Clone(tmp_path), str(folder / "config.json"))


# ---- config.json


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"model_type": "llama"}, UsageError, "model_type 'llama'; supported are qwen2 and qwen3"),
        ({"model_type": None}, UsageError, "a config.json without model_type"),
        ({"hidden_size": None}, EnvironmentFault, "config.json: hidden_size is missing."),
        ({"vocab_size": "many"}, EnvironmentFault, "config.json: vocab_size is 'many', not a whole number"),
        ({"num_key_value_heads": 0}, EnvironmentFault, "num_key_value_heads is 0"),
        ({"max_position_embeddings": "x"}, EnvironmentFault, "max_position_embeddings is no whole number"),
        ({"rope_scaling": {"type": "yarn"}}, UsageError, "scales its positions (rope_scaling: yarn)"),
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, UsageError, "in the mode mxfp4"),
        ({"quantization": {"bits": 4, "model.x": {"bits": 7}}}, UsageError, "packed with 7 bits"),
        ({"quantization": 4}, EnvironmentFault, "quantization is no table"),
        ({"quantization_config": {"quant_method": "gptq"}}, UsageError, "its weights are packed by gptq"),
    ],
)
def test_a_config_that_cannot_be_run(folder: Path, values: dict, kind: type[CourseError], words: str) -> None:
    change(folder / "config.json", **values)
    assert words in told(folder, kind)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is missing."),
        (b'{"a": ', "is no JSON: Expecting value"),
        (b"[1]", "holds no JSON object."),
        (b"\xff\xfe", "is no JSON"),
        (LFS, "is a git-lfs pointer for a file of 2.05 MB, not the file itself (git lfs pull brings it)."),
        (b"\n<!DOCTYPE html><html><body>Not found", "is a web page, perhaps an error page"),
    ],
)
def test_a_json_file_that_is_not_what_it_should_be(
    folder: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    message = told(folder)
    assert message.startswith(f"a model: {name} ")
    assert words in message


def test_a_json_file_that_cannot_be_read(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()
    assert "tokenizer.json cannot be read: Is a directory" in told(folder)


# ---- weights


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights: there is no model.safetensors." in told(folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    assert "What is there, pytorch_model.bin, has another format." in told(folder)
    (folder / "model.safetensors").symlink_to(folder / "gone")
    assert "model.safetensors is a link to a file that is not there." in told(folder)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    folder = small_models.write(tmp_path / "sharded", shards=7)
    names = sorted(f.name for f in folder.glob("model-*"))
    (folder / names[2]).unlink()
    assert f"of the 7 weight files, {names[2]} is missing." in told(folder)
    for name in (*names[:2], *names[3:6]):
        (folder / name).unlink()
    assert f"{', '.join(names[:4])} and 2 more are missing." in told(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json has no weight_map." in told(folder)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def with_header(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    """The file with another header before the same data."""

    def damage(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        text = json.dumps(change(header) or header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return damage


NORM = "model.norm.weight"
SIZES = r"has [\d,]+ bytes and should have [\d,]+\."
DAMAGES = {
    "cut off": (cut, rf"model\.safetensors is cut off: it {SIZES}"),
    "cut off in the header": (lambda d: d[:300], r"is cut off: its 300 bytes end within its header\."),
    "one byte short": (lambda d: d[:-1], rf"is cut off: it {SIZES}"),
    "bytes too many": (lambda d: d + b"\0", rf"is damaged: it {SIZES}"),
    "empty": (lambda d: b"", r"has 0 bytes: it is empty or cut off\."),
    "zeros": (lambda d: bytes(len(d)), r"is no safetensors file\."),
    "a header of any bytes": (lambda d: d[:20] + b"\xff" * 40 + d[60:], "its header cannot be read"),
    "a list for a header": (with_header(lambda h: [{}]), "is no safetensors file|cannot be read"),
    "no offsets": (with_header(lambda h: h[NORM].pop("data_offsets") and None), "its header cannot be read"),
    "a wrong shape": (
        with_header(lambda h: h[NORM].update(shape=[7])),
        rf"is damaged: the header's entry for {NORM} contradicts itself",
    ),
    "a pointer": (
        lambda d: LFS,
        r"model\.safetensors \(\d+ bytes\) is a git-lfs pointer for a file of 2\.05 MB",
    ),
    "a page": (lambda d: b"<html><title>404</title>", "is a web page, perhaps an error page, not the file"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_weights(folder: Path, case: str) -> None:
    damage, words = DAMAGES[case]
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(EnvironmentFault, match=words):
        models.resolve(Clone(folder.parent), str(folder))


def test_numbers_of_another_kind(folder: Path) -> None:
    mx.save_safetensors(str(folder / "model.safetensors"), {"a": mx.zeros((2, 2), mx.int64)})
    assert "model.safetensors holds I64 numbers (a); the course reads float32" in told(folder, UsageError)


def test_packed_weights_without_what_unpacks_them(tmp_path: Path) -> None:
    folder = small_models.write(tmp_path / "packed", bits=4)
    change(folder / "config.json", quantization=None)
    assert "the weights are packed (" in told(folder)
    folder = small_models.write(tmp_path / "packed", bits=4)
    weights = mx.load(str(folder / "model.safetensors"))
    del weights["lm_head.scales"]
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    assert "lm_head.weight is packed, and its scales are missing." in told(folder)


# ---- Hugging Face, as the program meets it


@pytest.fixture
def course(tmp_path: Path) -> toy.Toy:
    course = toy.make(tmp_path / "clone")
    course.write("checkpoints/course.toml", toy.COURSE + ENGINE)
    return course


ENGINE = """
[[engines]]
id = "toy"
title = "t"
days = ["1.1"]
model = "week1/sums.py::double"
generate = "week1/sums.py::double"
sampler = "week1/means.py::Mean"
"""


def asked(course: toy.Toy, **environment: str) -> subprocess.CompletedProcess[str]:
    home = {"HF_HOME": str(course.root / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return course.grade("generate", "x", "--model", "someone/some-model", **home, **environment)


@pytest.fixture
def hub() -> Iterator[Callable[[int, str], str]]:
    """A server that answers every request with a status and one of the hub's error codes."""
    servers = []

    def start(status: int, code: str) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, *words: object) -> None: ...

        servers.append(HTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_no_network(course: toy.Toy) -> None:
    offline = asked(course, HF_HUB_OFFLINE="1")
    assert offline.returncode == 3
    words = " ".join(offline.stderr.split())
    assert "someone/some-model has not been downloaded, and HF_HUB_OFFLINE forbids downloading." in words
    assert "tiny-qwen2 comes with the course and needs no network: leave --model out." in words
    away = asked(course, HF_ENDPOINT="http://127.0.0.1:9")
    assert away.returncode == 3
    assert "and Hugging Face cannot be reached." in " ".join(away.stderr.split())


def test_what_the_hub_refuses(course: toy.Toy, hub: Callable[[int, str], str]) -> None:
    gated = asked(course, HF_ENDPOINT=hub(403, "GatedRepo"))
    assert gated.returncode == 3
    assert "someone/some-model is gated: its owner lets only those in" in " ".join(gated.stderr.split())
    unknown = asked(course, HF_ENDPOINT=hub(404, "RepoNotFound"))
    assert unknown.returncode == 2
    assert "Hugging Face has no model someone/some-model, or it is private." in " ".join(
        unknown.stderr.split()
    )


def test_a_model_in_the_cache_is_taken_and_looked_over(course: toy.Toy, sound: Path) -> None:
    repo = course.root / "cache" / "hub" / "models--someone--some-model"
    snapshot = repo / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123abcd")
    for file in sound.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (snapshot / "model.safetensors").write_bytes(b"")
    done = asked(course, HF_HUB_OFFLINE="1")
    assert done.returncode == 3
    words = " ".join(done.stderr.split())
    assert "someone/some-model: model.safetensors has 0 bytes: it is empty or cut off." in words
    assert "To fetch it anew, delete" in words
    assert "models--someone--some-model and run this again." in words
