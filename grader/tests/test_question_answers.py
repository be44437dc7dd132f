"""The answers of check questions are what the reference does, for every draw of the question.

The reference is imported by name: to the grader's own modules a solution tree is something that a child runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tinyllm.grader import catalog
from tinyllm.grader.arithmetic import Value, evaluate
from tinyllm.grader.clone import Clone

attention, generation, gqa, norm_mlp, rope, sampling = (
    importlib.import_module(f"tinyllm.reference.week1.{name}")
    for name in ("attention", "generation", "gqa", "norm_mlp", "rope", "sampling")
)
batching, flash_attention, kv_cache, protocol, quantize, scheduler = (
    importlib.import_module(f"tinyllm.reference.week2.{name}")
    for name in ("batching", "flash_attention", "kv_cache", "protocol", "quantize", "scheduler")
)

CLONE = Clone(Path(__file__).resolve().parents[2])
COURSE = catalog.load(CLONE)


def draws(day: str, name: str) -> Iterator[tuple[dict[str, Value], Value]]:
    """Each draw of a question, with its right answer."""
    question = next(q for q in catalog.questions(CLONE, COURSE.day(day)) if q.id == name)
    for names in question.draws():
        yield names, evaluate(question.answer, names)


def cached(tokens: int, H: int = 1, D: int = 8) -> Any:
    cache = kv_cache.TinyKvStepCache()
    cache.update_and_fetch(mx.zeros((1, H, tokens, D)), mx.zeros((1, H, tokens, D)))
    return cache


def test_week_1_shapes_and_masks() -> None:
    for n, answer in draws("1.1", "scores-shape"):
        shape = []
        q = mx.zeros((n["N"], n["H"], n["L"], n["E"] // n["H"]))
        mask = mx.zeros((n["N"], n["H"], n["L"], n["L"]))  # raises where the scores have another shape
        shape = attention.scaled_dot_product_attention_simple(q, q, q, mask=mask).shape
        assert shape == q.shape
        assert mask.shape == answer
    for n, answer in draws("1.2", "table-shape"):
        table = rope.RoPE(n["D"], 32).cos[: n["L"]]
        assert table[None].shape == answer
    for n, answer in draws("1.3", "masked-entries"):
        mask = gqa.causal_mask(n["L"], n["S"], mx.float32)
        assert mx.sum(mask == -mx.inf).item() == answer
    for n, answer in draws("1.4", "eps-inside"):
        x = mx.full((64,), n["ms"] ** 0.5)
        assert norm_mlp.RMSNorm(64, mx.ones(64), n["eps"])(x)[0].item() == pytest.approx(answer, rel=1e-4)


def test_rope_turns_as_the_answer_says() -> None:
    for n, answer in draws("1.2", "pair-frequency"):
        sine = rope.RoPE(n["D"], 2, base=n["base"]).sin[1, 0, n["i"]].item()
        assert sine == pytest.approx(mx.sin(mx.array(answer)).item(), rel=1e-4)


def test_generation_calls() -> None:
    for n, answer in draws("1.6", "positions-without-cache"):
        if n["P"] + n["R"] <= 200:
            seen: list[int] = []

            def model(x: mx.array, seen: list[int] = seen) -> mx.array:
                seen.append(x.shape[1])
                return mx.zeros((1, 1, 4))

            list(generation.generate_tokens(model, [1] * n["P"], [3], max_tokens=n["R"]))
            assert sum(seen) == answer
    for n, answer in draws("1.6", "max-tokens-calls"):
        calls: list[int] = []

        def ending(x: mx.array, calls: list[int] = calls, end: int = n["e"]) -> mx.array:
            calls.append(1)
            return mx.eye(4)[3 if len(calls) == end else 1][None, None]

        list(generation.generate_tokens(ending, [1], [3], max_tokens=n["M"]))
        assert len(calls) == answer


def test_filters_keep_as_many() -> None:
    for n, answer in draws("1.7", "top-p-kept"):
        kept = sampling.apply_top_p(mx.log(mx.array([n["p"]])), n["top_p"])
        assert mx.sum(kept > -mx.inf).item() == answer
    for n, answer in draws("1.7", "min-p-kept"):
        kept = sampling.apply_min_p(mx.log(mx.array([[n[letter] for letter in "abcdef"]])), n["m"])
        assert mx.sum(kept > -mx.inf).item() == answer


def test_caches() -> None:
    for n, answer in draws("2.1", "room-shape"):
        assert cached(n["n"], n["H"], n["D"]).state[0].shape == answer
    for n, answer in draws("2.6", "batch-columns"):
        cache = batching.BatchingKvCache(3, 512)
        cache.add_request(cached(n["a"], n["H"], n["D"]), 0)
        cache.add_request(cached(n["c"], n["H"], n["D"]), 2)
        new = mx.zeros((3, n["H"], 1, n["D"]))
        assert cache.update_and_fetch(new, new)[0].shape == answer
    for n, answer in draws("2.6", "first-column-seen"):
        mask = batching.batch_mask([n["a"], n["c"]], n["L"], mx.float32)
        assert mask[1, 0, 0].tolist().index(0.0) == answer


def test_quantisation() -> None:
    for n, answer in draws("2.2", "weight-in-a-word"):
        word = mx.array([[n["w"]]], mx.uint32)
        assert int(n["text"], 16) == n["w"]
        assert quantize.unpack(word, 4)[0].tolist()[n["k"]] == answer
    for n, answer in draws("2.2", "group-scale"):
        w = mx.concatenate([mx.array([n["lo"], n["hi"]]), mx.zeros(62)])[None]
        assert quantize.quantize(w, 64, n["bits"]).scales.item() == pytest.approx(answer, rel=1e-5)
    for n, answer in draws("2.2", "scales-shape"):
        if n["O"] * n["I"] < 5e6:
            assert quantize.quantize(mx.zeros((n["O"], n["I"])), n["g"], 4).scales.shape == answer
    for n, answer in draws("1.5", "packed-shape"):
        if n["O"] * n["I"] < 5e6:
            assert quantize.quantize(mx.zeros((n["O"], n["I"])), 64, n["bits"]).weight.shape == answer


def test_flash_attention_states() -> None:
    for n, answer in draws("2.4", "causal-tiles"):
        key = mx.zeros((1, n["L"] + n["P"], 8))
        _, tiles = flash_attention.flash_attention_tiled(mx.zeros((1, n["L"], 8)), key, key, mask="causal")
        assert tiles[0] == answer
    for day, name in (("2.4", "new-maximum"), ("2.5", "merged-sum")):
        for n, answer in draws(day, name):
            a, b = (
                [mx.array([[float(x)]]) for x in (*state, 0)]
                for state in ((n["m"], n["s"]), (n["n"], n["r"]))
            )
            merged = flash_attention.merge(tuple(a), tuple(b))
            assert merged[1].item() == pytest.approx(answer, rel=1e-5)
    for n, answer in draws("2.5", "bank-conflicts"):
        banks = [j * (n["D"] + n["pad"]) % 32 for j in range(32)]
        assert banks.count(0) == answer == gcd(n["D"] + n["pad"], 32)


def _decoding(n: dict[str, Value]) -> Any:
    """A scheduler in which n["d"] requests decode, and room for prompts besides."""
    made = scheduler.Scheduler(n.get("N", n["d"] + 2), 4096, n["T"], n["C"])
    for _ in range(n["d"]):
        made.submit([1], scheduler.Settings(max_tokens=4000))
    while sum(g.status is scheduler.Status.DECODE for g in made.active) < n["d"]:
        _step(made)
    return made


def _step(made: Any) -> Any:
    plan = made.plan()
    made.commit(plan, dict.fromkeys(plan.ids_sampled, 5))
    return plan


def test_schedules() -> None:
    for n, answer in draws("2.7", "steps-of-a-prompt"):
        made, steps = _decoding(n), 0
        request = made.submit([1] * n["P"])
        while request.status is not scheduler.Status.DECODE:
            _step(made)
            steps += 1
        assert steps == answer
    for n, answer in draws("2.7", "tokens-in-a-step"):
        made = _decoding(n)
        made.submit([1] * n["P"])
        made.submit([1] * n["P"])
        assert made.plan().tokens == answer
    for n, answer in draws("2.7", "reply-length"):
        made = scheduler.Scheduler(1, n["M"], 64, 64)
        request = made.submit([1] * n["P"], scheduler.Settings(max_tokens=n["m"]))
        while request.status is not scheduler.Status.FINISHED:
            _step(made)
        assert len(request.tokens) == answer
    for n, answer in draws("2.7", "ageing"):
        made = scheduler.Scheduler(ageing=n["A"])
        made.step = n["s"]
        assert made.rank(made.submit([1], scheduler.Settings(priority=n["p"])))[0] == answer
    for n, answer in draws("2.7", "last-chunk"):
        made = scheduler.Scheduler(1, 4096, 4096, n["C"])
        made.submit([1] * n["P"])
        plan = _step(made)
        while not plan.prefill[0].last:
            plan = _step(made)
        assert len(plan.prefill[0].tokens) == answer


def test_events() -> None:
    for n, answer in draws("2.8", "event-bytes"):
        assert len(protocol.sse(n["text"].strip("'"))) == answer
