"""Figures, bars, the picture and the random checkpoints: what `bench` is made of, without a child."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tinyllm.grader import benching, figures, random_weights, roofline
from tinyllm.grader.benching import exit_code
from tinyllm.grader.cli import main
from tinyllm.grader.errors import EnvironmentFault, UsageError
from tinyllm.grader.figures import Bar, Count, Lane, Race, Verdict, judge
from tinyllm.grader.roofline import Point, Roofline

# ---- bars


@pytest.mark.parametrize(
    ("ratios", "least", "verdict"),
    [
        ([1.0, 1.1, 1.2, 1.1, 1.3], 1.0, Verdict.MET),
        ([1.2, 1.1, 1.2, 1.1, 0.5], 1.0, Verdict.MET),  # one round in five may be disturbed
        ([1.2, 1.1, 0.9, 1.1, 0.5], 1.0, Verdict.NOISY),
        ([0.8, 0.9, 1.2, 1.1, 0.9], 1.0, Verdict.NOISY),
        ([0.8, 0.9, 0.7, 1.1, 0.9], 1.0, Verdict.MISSED),
        ([1.2, 1.3], 1.0, Verdict.NOISY),  # two rounds say little ...
        ([1.6, 1.7], 1.0, Verdict.MET),  # ... unless it is clear
        ([0.6], 1.0, Verdict.MISSED),
    ],
)
def test_a_bar_is_judged_by_most_rounds(ratios: list[float], least: float, verdict: Verdict) -> None:
    assert judge(ratios, least) is verdict


def test_ratios_are_of_speeds_round_by_round() -> None:
    lanes = (Lane("yours", (1.0, 2.0, 4.0)), Lane("other", (2.0, 2.0)))
    assert Race("", "ms", lanes).ratios("yours", "other") == (2.0, 1.0)  # half the time is twice as fast
    assert Race("", "tokens/s", lanes).ratios("yours", "other") == (0.5, 1.0)


def test_the_exit_code_says_the_worst_that_is_known() -> None:
    def count(verdict: Verdict) -> Count:
        return Count("", 1, "", Bar("", verdict))

    def race(differing: str) -> Race:
        return Race("", "s", (), differs="x" if differing else "", differing=differing)

    assert exit_code([]) == 0
    assert exit_code([Count("", 1, ""), count(Verdict.MET), race("")]) == 0
    assert exit_code([count(Verdict.MET), count(Verdict.NOISY)]) == 3
    assert exit_code([count(Verdict.NOISY), count(Verdict.MISSED)]) == 1
    assert exit_code([race("yours")]) == 1
    assert exit_code([race("mlx-lm")]) == 3


def test_figures_have_three_digits() -> None:
    assert figures.spread([31.44, 30.06, 32.16]) == "31.4 (30.1, 32.2)"
    assert figures.spread([1234.5]) == "1,230"
    assert figures.number(7) == "7"
    assert figures.number(16384) == "16,384"
    assert figures.size(308_600_000) == "309 MB"


# ---- the picture


def picture() -> Roofline:
    points = (
        Point("yours", "prefill 512", 800.0, 3e10),
        Point("yours", "decode", 3.2, 4e8),
        Point("<mlx & co>", "decode", 3.2, 6e9),
    )
    return Roofline("tiny", 2e10, "sums", 1e11, "a <product>", points)


def test_the_picture_is_xml_with_every_point_in_its_frame() -> None:
    root = ElementTree.fromstring(roofline.draw(picture()))
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    marks = [p for p in root.iter() if p.tag.endswith("path") and len(p)]
    assert len(marks) == 3
    for mark in marks:
        x, y = map(float, re.match(r"M(-?[\d.]+) (-?[\d.]+)", mark.attrib["d"]).groups())  # type: ignore[union-attr]
        assert 0 < x < width
        assert 0 < y < height
    said = "".join(root.itertext())
    assert "<mlx & co>, decode: 6 GFLOP/s" in said
    assert "slope: 20 GB/s" in said


def test_the_roof_is_flat_from_where_memory_is_fast_enough() -> None:
    root = ElementTree.fromstring(roofline.draw(picture()))
    line = next(p for p in root.iter() if p.tag.endswith("polyline"))
    (x0, y0), (x1, y1), (x2, y2) = (map(float, c.split(",")) for c in line.attrib["points"].split())
    assert x0 < x1 < x2
    assert y0 > y1 == y2
    # Both axes are logarithmic: over a decade the slope rises a decade. y runs downwards.
    drawn = roofline._Picture(picture())
    x_decade, y_decade = drawn.x(100) - drawn.x(10), drawn.y(1e10) - drawn.y(1e11)
    assert (y0 - y1) / y_decade == pytest.approx((x1 - x0) / x_decade, abs=0.02)


# ---- the random checkpoints


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINYLLM_CACHE", str(tmp_path))
    return tmp_path / "checkpoints"


LOAD = """
import json, sys
from pathlib import Path
from tinyllm.grader.loading import load_model
from tinyllm.grader.model_speed import traffic
import mlx.core as mx
from mlx.utils import tree_flatten
model = load_model(Path(sys.argv[1]))
logits = model(mx.arange(12)[None])
names = {name: [list(a.shape), str(a.dtype)] for name, a in tree_flatten(model.parameters())}
moved = traffic(model)
print(json.dumps({"names": names, "std": mx.std(logits).item(), "finite": mx.all(mx.isfinite(logits)).item(),
                  "dtype": str(logits.dtype), "weights": moved.weight_bytes, "numbers": moved.weight_numbers,
                  "cache": moved.cache_bytes,
                  "head": [moved.prefill_operations(10, 10) - moved.prefill_operations(10, 1)]}))
"""


def test_a_random_checkpoint_is_a_model_of_mlx_lm(kept: Path) -> None:
    made: list[str] = []
    folder = random_weights.checkpoint("tiny", "bfloat16", on_making=made.append)
    assert random_weights.checkpoint("tiny", "bfloat16", on_making=made.append) == folder
    assert len(made) == 1
    assert "tiny, 1." in made[0]
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOAD, str(folder)], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    assert told["names"]["model.embed_tokens.weight"] == [[1856, 32], "mlx.core.uint32"]
    assert told["names"]["model.embed_tokens.scales"] == [[1856, 4], "mlx.core.bfloat16"]
    assert told["names"]["model.layers.3.self_attn.k_proj.bias"] == [[128], "mlx.core.bfloat16"]
    assert told["finite"]
    assert told["head"] == [2 * 9 * 1856 * 256]  # nine tokens without logits
    assert 0.5 < told["std"] < 2  # as large as its norms make it, whatever the depth
    # By hand: 1856 x 256 of the tied head, and in each of 4 layers 256 x (256 + 128 + 128 + 256 + 3 * 384).
    numbers = 1856 * 256 + 4 * 256 * (768 + 3 * 384)
    assert told["numbers"] == numbers
    stored = numbers // 2 + numbers // 64 * 2 * 2  # 4 bits each; a scale and a bias of 2 bytes for 64
    small = 4 * (512 + 2 * 256) + 256  # biases of q, k and v, and the norms
    assert told["weights"] == stored + 2 * small
    assert told["cache"] == 2 * 4 * 2 * 64 * 2


def test_the_embedding_of_an_untied_model_is_read_by_the_row() -> None:
    shape = random_weights.SHAPES["qwen2-7b-2layers"]
    tensors = {t.name: t for t in random_weights._tensors(shape, "F32")}
    assert tensors["lm_head.weight"].shape == (152064, 3584 // 8)
    assert tensors["model.layers.1.self_attn.v_proj.weight"].shape == (512, 448)
    assert sum(t.nbytes for t in tensors.values()) == pytest.approx(0.97e9, rel=0.01)
    half = list(random_weights._tensors(random_weights.SHAPES["qwen2-0.5b"], "F32"))
    assert sum(t.nbytes for t in half) == pytest.approx(309e6, rel=0.01)
    assert not any(t.name.startswith("lm_head") for t in half)


def test_a_damaged_checkpoint_is_made_anew(kept: Path) -> None:
    folder = random_weights.checkpoint("tiny")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    assert json.loads(whole[8 : 8 + length])["__metadata__"] == {"format": "mlx"}
    file.write_bytes(whole[: len(whole) // 2])
    assert random_weights.checkpoint("tiny") == folder
    assert file.read_bytes() == whole  # the same numbers each time
    assert [p.name for p in kept.iterdir()] == [folder.name]  # and nothing half-made beside it


def test_no_room_and_no_such_shape_are_told(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no shape called 'huge'. Shapes: tiny"):
        random_weights.checkpoint("huge")
    usage = namedtuple("usage", "total used free")(1, 1, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(EnvironmentFault, match=r"no room for a checkpoint of 1\.54 MB"):
        random_weights.checkpoint("tiny")


def test_the_command_offers_the_shapes_there_are() -> None:
    options = {p.name: p for p in main.commands["bench"].params}
    assert set(options["shape"].type.choices) == set(random_weights.SHAPES)
    assert set(options["dtype"].type.choices) == set(random_weights.STORED)


def test_a_subject_says_what_it_is() -> None:
    assert benching.Subject().name == "model"
