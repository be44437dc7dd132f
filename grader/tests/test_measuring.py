"""What a bench.py is written with: races and counts, judged and told."""

from __future__ import annotations

import itertools
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tinyllm.grader import benching_child, machine, measuring, model_speed
from tinyllm.grader.benching import ModelOptions
from tinyllm.grader.catalog import Engine, Symbol
from tinyllm.grader.clone import Clone
from tinyllm.grader.errors import UsageError
from tinyllm.grader.figures import Race, Verdict
from tinyllm.grader.measuring import Bench, MisusedBench, Unfit, arrays_in
from tinyllm.grader.model_speed import Speed
from tinyllm.grader.tests import passes
from tinyllm.grader.trees import Tree
from tinyllm.kernels import build
from tinyllm.kernels.blas import BlasState


class Heard:
    """The events that a bench tells."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, data: Mapping[str, Any]) -> None:
        self.events.append((event, dict(data)))

    def races(self) -> list[Race]:
        return [Race.read(data) for event, data in self.events if event == "race"]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def bench(heard: Heard, tmp_path: Path) -> Bench:
    mine, theirs = Tree("exercises", tmp_path / "exercises"), Tree("reference", tmp_path / "reference")
    return Bench(Clone(tmp_path), mine, theirs, heard)


@pytest.fixture
def reference(heard: Heard, tmp_path: Path) -> Bench:
    """A bench that measures the reference."""
    theirs = Tree("reference", tmp_path / "reference")
    return Bench(Clone(tmp_path), theirs, theirs, heard)


def waiting(seconds: float) -> Callable[..., mx.array]:
    def run(*given: object) -> mx.array:
        time.sleep(seconds)
        return mx.ones((2,)) * 3

    return run


def test_a_race_is_run_in_turns(bench: Bench, heard: Heard) -> None:
    medians = bench.race("r", {"yours": waiting(0.001), "reference": waiting(0.02)}, rounds=3)
    turns = [data["name"] for event, data in heard.events if event == "turn"]
    assert turns == ["yours", "reference", "reference", "yours"] * 2  # a round to warm up, then three
    assert medians["yours"] < medians["reference"]
    [race] = heard.races()
    assert [len(lane.figures) for lane in race.lanes] == [3, 3]


def test_a_rate_is_work_in_a_second(bench: Bench) -> None:
    assert 1 < bench.race("r", {"yours": waiting(0.01)}, unit="tokens/s", work=10)["yours"] < 1000


def test_lazy_results_are_evaluated_in_the_timed_part(bench: Bench, heard: Heard) -> None:
    a = mx.random.normal((400, 400))
    mx.eval(a)

    def lazily(n: int) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            x = a
            for _ in range(n):
                x = mx.sin(x)
            return {"x": [x]}

        return run

    medians = bench.race("r", {"yours": lazily(40), "reference": lazily(2)}, unit="ms")
    assert medians["yours"] > 4 * medians["reference"]


def test_a_setup_is_not_timed_and_its_arrays_are_ready(bench: Bench) -> None:
    class Cache:
        def __init__(self, filled: mx.array) -> None:
            self.filled = filled

    def setup(x: mx.array) -> tuple[mx.array, Cache]:
        time.sleep(0.1)
        return x, Cache(x + 1)

    def run(given: tuple[mx.array, Cache]) -> mx.array:
        return given[0] + given[1].filled

    seen: list[int] = []

    def inputs(turn: int) -> tuple[mx.array]:
        seen.append(turn)
        return (mx.full((3,), turn),)

    medians = bench.race("r", {"yours": (setup, run)}, inputs=inputs, rounds=2)
    assert medians["yours"] < 0.1
    assert seen == [0, 1, 2]


def test_results_that_differ_leave_no_times(bench: Bench, heard: Heard) -> None:
    def wrong() -> mx.array:
        return mx.array([1.0, 2.0]) + 1e-3

    def right() -> mx.array:
        return mx.array([1.0, 2.0])

    bench.race("r", {"yours": wrong, "reference": right}, same=True, bar=("yours", "reference", 0.1))
    [race] = heard.races()
    assert race.differing == "yours"
    assert race.differs.startswith("yours gives something else than reference: up to 0.001 away")
    assert race.bars == ()
    bench.race("r", {"yours": wrong, "reference": right}, same=1e-2, rounds=1)
    assert heard.races()[1].agreement == "The results agree within 1e-02 of the largest element."


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (mx.zeros((3,)), r"shape \(3,\), not \(2,\)"),
        (mx.array([1.0, float("nan")]), "up to nan away"),
        (mx.array([1, 2]), "dtype"),
        ([mx.zeros((2,)), mx.zeros((2,))], "2 arrays, not 1"),
    ],
)
def test_what_is_different_is_said(bench: Bench, heard: Heard, wrong: Any, told: str) -> None:
    bench.race("r", {"yours": lambda: wrong, "reference": lambda: mx.array([1.0, 2.0])}, same=True)
    assert re.search(told, heard.races()[0].differs)


def test_integers_must_be_the_same(bench: Bench, heard: Heard) -> None:
    bench.race("r", {"yours": lambda: mx.array([1, 3]), "mlx-lm": lambda: mx.array([1, 2])}, same=True)
    assert "1 of 2 elements differ" in heard.races()[0].differs


def test_a_bar_is_on_the_ratio(bench: Bench, heard: Heard) -> None:
    lanes = {"yours": waiting(0.001), "reference": waiting(0.03)}
    bench.race("r", lanes, bar=[("yours", "reference", 2), ("reference", "yours", 2), ("yours", "mlx-lm", 1)])
    [race] = heard.races()
    assert [b.verdict for b in race.bars] == [Verdict.MET, Verdict.MISSED]
    assert race.bars[0].says == "yours at least 2 times as fast as reference"


def test_noise_brings_more_rounds_and_then_no_verdict(bench: Bench, heard: Heard) -> None:
    turns = iter(range(1000))

    def unsteady() -> mx.array:
        time.sleep(0.02 if next(turns) % 2 else 0.001)
        return mx.ones(1) + 1

    bench.race("r", {"yours": unsteady, "reference": waiting(0.006)}, rounds=3, bar=("yours", "reference", 1))
    [race] = heard.races()
    assert [b.verdict for b in race.bars] == [Verdict.NOISY]
    assert len(race.lanes[0].figures) == 9


def test_a_slow_contestant_takes_part_in_fewer_rounds(
    bench: Bench, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "PATIENCE_SECONDS", 0.5)
    lanes = {"yours": waiting(0.0001), "reference": waiting(0.2), "mlx-lm": waiting(0.6)}
    bench.race("r", lanes, rounds=4, bar=("yours", "mlx-lm", 5))
    [race] = heard.races()
    assert [len(lane.figures) for lane in race.lanes] == [4, 2, 1]
    assert race.lanes[1].remark == "2 rounds of 0 s"
    assert race.bars[0].verdict is Verdict.MET


def test_of_the_reference_only_the_reference_runs(reference: Bench, heard: Heard) -> None:
    run = waiting(0)
    bars = [("yours", "reference", 0.5), ("yours", "mlx-lm", 1e-9), ("reference", "mlx-lm", 1e-9)]
    medians = reference.race("r", {"yours": run, "reference": run, "mlx-lm": run}, rounds=3, bar=bars)
    assert list(medians) == ["reference", "mlx-lm"]
    assert [b.says for b in heard.races()[0].bars] == ["reference at least 1e-09 times as fast as mlx-lm"]
    assert list(reference.race("r", {"yours": run, "mlx-lm": run}, rounds=1)) == ["reference", "mlx-lm"]


def test_nothing_computed_is_nothing_to_time(bench: Bench) -> None:
    with pytest.raises(Unfit, match="yours gave None: there is nothing to time"):
        bench.race("r", {"yours": lambda: None})
    assert bench.race("r", {"yours": lambda: 7}, rounds=1)["yours"] > 0  # a number has been computed


def test_counts_and_their_bars(bench: Bench, heard: Heard) -> None:
    bench.count("a", 1, at_most=1)
    bench.count("b", 3, at_least=4, unit="tokens")
    bench.count("c", 5, equals=5)
    bench.count("d", 0.5)
    told = [(d["title"], d["bar"] and (d["bar"]["says"], d["bar"]["verdict"])) for _, d in heard.events]
    assert told == [
        ("a", ("at most 1", "met")),
        ("b", ("at least 4", "missed")),
        ("c", ("exactly 5", "met")),
        ("d", None),
    ]


def test_a_bench_that_makes_no_sense_is_the_course_s_fault(bench: Bench) -> None:
    with pytest.raises(MisusedBench, match="one bar"):
        bench.count("a", 1, at_most=1, at_least=1)
    with pytest.raises(MisusedBench, match="names mine"):
        bench.race("r", {"yours": waiting(0)}, bar=("mine", "yours", 1))
    with pytest.raises(MisusedBench, match="no day"):
        _ = bench.solution


def test_arrays_are_found_wherever_they_are() -> None:
    class Holder:
        def __init__(self) -> None:
            self.kept = [mx.zeros(1)]
            self.itself = self

    class Model(Holder):
        def __call__(self) -> None: ...

    assert len(list(arrays_in({"a": (mx.zeros(1), [mx.zeros(2), None, 3])}))) == 2
    assert list(arrays_in(Holder()))
    assert not list(arrays_in(Model()))  # a model's weights are no result


# ---- a whole model


def speed(bench: Bench, heard: Heard, folder: Path, **options: Any) -> Speed:
    engine = Engine("e", "", (), MODEL, MODEL, MODEL, {"bandwidth_share": 1e-9, "mlx_lm": 1e-9})
    asked = ModelOptions("", str(folder), "float32", "mlx-lm", (4,), 6, 3, 1, plot=True)
    return Speed(bench, engine, BlasState(False), asdict(replace(asked, **options)), heard)


MODEL = Symbol("week1/model.py", "Model")
CACHED = """
class Cache:
    offset = 0
    computed = set()  # of how many tokens, with no logits of theirs

    @property
    def state(self):
        self.computed.add(self.offset)
        return [self.ids]

class Model:
    def __init__(self, mlx_model):
        self.inner = mlx_model

    def create_kv_cache(self):
        return [Cache()]

    def __call__(self, inputs, offset, cache):
        import mlx.core as mx
        assert cache[0].offset == offset
        cache[0].offset += inputs.shape[1]
        cache[0].ids = mx.concatenate([cache[0].ids, inputs], axis=1) if offset else inputs
        return self.inner(cache[0].ids)[:, -inputs.shape[1]:]
"""


@pytest.fixture
def tiny(reference: Bench, tmp_path: Path) -> Iterator[Path]:
    """A tiny checkpoint, and a reference whose model counts how many tokens its cache has seen."""
    (tmp_path / "reference/week1").mkdir(parents=True)
    (tmp_path / "reference/week1/model.py").write_text(CACHED)
    reference.mine.install()
    yield passes.write_checkpoint(tmp_path / "tiny", bits=4)
    sys.meta_path.remove(reference.mine)
    for name in [n for n in sys.modules if n.startswith("tinyllm.reference")]:
        del sys.modules[name]


def test_a_model_with_a_cache_is_run_with_it(
    reference: Bench, heard: Heard, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_speed, "CACHES_HOLD", 0)
    monkeypatch.setattr(machine, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "PRODUCT", 64)
    speed(reference, heard, tiny).measure()
    assert {3, 5} <= sys.modules["tinyllm.reference.week1.model"].Cache.computed  # all but the last token
    prefill, decode = heard.races()
    assert prefill.title == "prefill of 4 tokens"
    assert decode.title == "decode, 3 tokens after 6"  # and not: each from all tokens so far
    names = ["reference", "mlx-lm", "mlx-lm, dense weights"]
    assert [lane.name for lane in decode.lanes] == names
    assert decode.agreement.startswith("The results agree")
    assert [b.verdict for r in (prefill, decode) for b in r.bars] == [Verdict.MET] * 2
    told = dict(heard.events)
    assert told["limits"]["bandwidth"] > 0
    assert [x["name"] for x in told["limits"]["lanes"]] == names
    assert told["count"]["title"] == "share of the limit, reference"
    assert [p["part"] for p in told["roofline"]["points"]] == ["prefill 4"] * 3 + ["decode"] * 3


def test_a_turn_is_held_to_the_bandwidth_measured_right_before_it(
    reference: Bench, heard: Heard, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each measurement gives twice what the one before gave, so its number tells them apart."""
    monkeypatch.setattr(model_speed, "CACHES_HOLD", 0)
    monkeypatch.setattr(machine, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "PRODUCT", 64)
    counted = itertools.count()
    monkeypatch.setattr(machine.MemoryReader, "per_second", lambda self, passes: 2.0 ** next(counted))
    speed(reference, heard, tiny, rounds=3).measure()
    decode = heard.races()[1]
    limits = dict(heard.events)["limits"]
    moved = limits["weight_bytes"] + limits["cache_bytes"]
    measured = []
    for lane, share in zip(decode.lanes, limits["lanes"], strict=True):
        pairs = zip(lane.figures, share["figures"], strict=True)
        measured.append([math.log2(100 * figure * moved / percent) for figure, percent in pairs])
    assert all(turns == sorted(turns) for turns in measured)
    # Three contestants had a turn each that warms up, and then three more.
    assert sorted(n for turns in measured for n in turns) == pytest.approx(range(3, 12))


def test_who_would_take_too_long_is_left_out_and_named(
    reference: Bench, heard: Heard, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_speed, "LONGEST_PREFILL", 0.0)
    speed(reference, heard, tiny, against="none", plot=False).measure()
    assert not heard.races()
    notes = [data["text"] for event, data in heard.events if event == "note"]
    assert "reference, prefill of 4: not timed, a turn could take 0 min." in notes
    assert "reference, decode: not timed, a turn could take 0 min." in notes


def test_a_slow_one_decodes_fewer_tokens_from_fewer(
    reference: Bench, heard: Heard, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_speed, "LONGEST_SETUP", 0.0)
    monkeypatch.setattr(model_speed, "TURN_SECONDS", 1e-9)
    speed(reference, heard, tiny, against="none", plot=False).measure()
    assert heard.races()[1].lanes[0].remark == "1 token after 1"


def test_what_the_model_or_the_machine_cannot_hold_is_left_out(
    reference: Bench, heard: Heard, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="--tokens 64: this model takes at most 64"):
        speed(reference, heard, tiny, against="none", tokens=64, prefill=(65,), plot=False).measure()
    monkeypatch.setattr(model_speed, "DENSE_MARGIN", 1e12)
    speed(reference, heard, tiny, plot=False).measure()
    notes = [data["text"] for event, data in heard.events if event == "note"]
    assert any(n.startswith("mlx-lm, dense weights: left out, ") for n in notes)
    assert [len(r.lanes) for r in heard.races()] == [2, 2]


def test_logits_must_be_logits(reference: Bench, heard: Heard, tiny: Path) -> None:
    file = reference.mine.folder / "week1/model.py"
    file.write_text(CACHED.replace(":, -inputs.shape[1]:", ":, -1"))
    with pytest.raises(measuring.Unfit, match=r"reference gave logits \(1, 128\) for ids \(1, 1\)"):
        speed(reference, heard, tiny).measure()


def test_a_kernel_that_does_not_compile_is_told_at_its_line(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "exercises/kernels/axpby.cpp"
    file.parent.mkdir(parents=True)
    file.write_text("int f() {\n  return x;\n}\n")
    complaint = build.Complaint("axpby.cpp", 2, "'x' was not declared")
    why = measuring.NoKernels(bench.mine, build.DoesNotCompile(complaint, ""))
    told = benching_child._unbuilt(why, bench.clone, bench.mine)
    assert told is not None
    assert (told["kind"], told["module"]) == ("code", "kernels/axpby.cpp")
    assert told["summary"] == "exercises/kernels/axpby.cpp does not compile: 'x' was not declared"
    assert (told["frames"][0]["line"], told["frames"][0]["source"]) == (2, "return x;")
    told = benching_child._unbuilt(build.BuildFault("no compiler"), bench.clone, bench.mine)
    assert told is not None
    assert told["kind"] == "machine"
