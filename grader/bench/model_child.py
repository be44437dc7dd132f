"""Times the week-1 model of the reference and mlx-lm's on the same tokens, in turns.

    python -P -m tinyllm.grader.bench.model_child '<job as JSON>'

The first line it prints says what it runs on, each further one holds the seconds of a run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinyllm.kernels import blas

from ..clone import Clone
from .model import OURS, PLAIN, THEIRS

AGREE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}  # of the largest logit


def main(job: Mapping[str, Any]) -> None:
    state = blas.prepare()  # before MLX

    import mlx.core as mx

    from ..loading import NotLoadable, load_model
    from ..testing import dtype_name
    from ..trees import Tree

    try:
        theirs = load_model(Path(job["model"]))
        plain = load_model(Path(job["model"]), dequantized=True)
    except NotLoadable as error:
        sys.exit(str(error))
    tree = Tree("reference", Clone(Path(job["root"])).reference)
    tree.install()
    ours = tree.import_module("week1/qwen2_model.py").Qwen2ModelWeek1(theirs)
    models: dict[str, Callable[[mx.array], mx.array]] = {OURS: ours, THEIRS: theirs}
    if any("scales" in name for name in _names(theirs.parameters())):
        models[PLAIN] = plain
    tokens = mx.random.randint(0, theirs.args.vocab_size, (1, 8), key=mx.random.key(0))
    logits = [model(tokens) for model in models.values()]
    mx.eval(logits)  # the weights are read, and the week-1 model's dequantised, before anything is timed
    dtype = dtype_name(logits[0].dtype)
    print(json.dumps({"blas": str(state), "dtype": dtype}), flush=True)
    for run in range(job["runs"] + 1):
        result = _one_run(models, run, job["prompt"], job["steps"], theirs.args.vocab_size, AGREE[dtype])
        if run > 0:  # the first warms up
            print(json.dumps(result), flush=True)


def _one_run(
    models: Mapping[str, Callable[[Any], Any]], run: int, prompt: int, steps: int, vocab: int, limit: float
) -> dict[str, dict[str, float]]:
    """Seconds of each model on tokens that no run before has had."""
    import mlx.core as mx

    tokens = mx.random.randint(0, vocab, (1, prompt + steps), key=mx.random.key(1 + run))
    mx.eval(tokens)
    names = list(models)
    turns = names[run % len(names) :] + names[: run % len(names)]  # each is first in its turn
    logits: dict[str, list[Any]] = {}
    seconds: dict[str, dict[str, float]] = {"prefill": {}, "decode": {}}
    for name in turns:
        model = models[name]
        began = time.perf_counter()
        first = model(tokens[:, :prompt])
        mx.eval(first)
        seconds["prefill"][name] = time.perf_counter() - began
        logits[name] = [first]
    for name in turns if steps else ():
        model = models[name]
        began = time.perf_counter()
        for step in range(1, steps + 1):
            after = model(tokens[:, : prompt + step])
            mx.argmax(after[0, -1]).item()  # the token that a greedy reply would go on with
        seconds["decode"][name] = time.perf_counter() - began
        logits[name].append(after)
    for name in names[1:]:
        _check_agreement(name, logits[OURS], logits[name], limit)
    return {part: {name: times[name] for name in names if name in times} for part, times in seconds.items()}


def _check_agreement(name: str, ours: list[Any], theirs: list[Any], limit: float) -> None:
    import mlx.core as mx

    for a, b in zip(ours, theirs, strict=True):
        a, b = a.astype(mx.float32), b.astype(mx.float32)
        size = mx.max(mx.abs(b)).item()
        apart = mx.max(mx.abs(a - b)).item()
        if not apart <= limit * size:  # also when it is nan
            sys.exit(f"the logits of {name} are {apart:.2g} away from ours; the largest is {size:.2g}")


def _names(parameters: Any) -> list[str]:
    from mlx.utils import tree_flatten

    return [name for name, _ in tree_flatten(parameters)]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
