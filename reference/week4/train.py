"""Trains tiny-qwen2 from its seed, or goes on with a run that was stopped.

    python -P -m tinyllm.reference.week4.train RUN [--export MODEL] [--steps N] ...

RUN is a folder: the state is saved there every --save-every steps, and the same command takes it up again.
The tokenizer is trained first, into RUN-tokenizer, unless --tokenizer names a folder that holds one. With
--export the finished model is written in mlx-lm's layout. The other options are the fields of TrainConfig; a
run that was begun keeps those it was begun with, unless --change is given. --until N stops it early.
--processes N shares the batches of a step between N processes: the same run as with one, and on two
cores two of them were 1.6 times as fast as one.
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from tinyllm.kernels import blas

BLAS = blas.prepare()  # before the next lines import mlx.core

from . import checkpointing, tokenizer
from .corpus import END, TURN_END
from .gpt import GPTConfig
from .parallel import launch
from .training import State, TrainConfig, train

# The draft has the same tokenizer and a small part of the parameters.
MODELS = {
    "tiny-qwen2": GPTConfig(),
    "tiny-qwen2-draft": GPTConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=320,
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train tiny-qwen2.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--model", choices=MODELS, default="tiny-qwen2")
    parser.add_argument("--export", type=Path)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--until", type=int, metavar="STEP", help="save and stop after this step")
    parser.add_argument("--change", action="store_true", help="a begun run goes on with these options")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true", default=None)
    for field in fields(TrainConfig):
        if field.name != "bfloat16":
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default))
    options = parser.parse_args(arguments)
    asked = {f.name: value for f in fields(TrainConfig) if (value := getattr(options, f.name)) is not None}
    folder = options.tokenizer or options.run.with_name(options.run.name + "-tokenizer")
    if options.tokenizer is None and not (folder / "tokenizer_config.json").exists():
        tokenizer.save(tokenizer.train(), folder)
    group = launch(options.processes)  # the others find the tokenizer there
    words = tokenizer.load(folder)

    def encode(text: str) -> list[int]:
        return words.encode(text, add_special_tokens=False).ids

    try:
        state, model, config = checkpointing.load(options.run)
        if options.change:
            config = replace(TrainConfig(), **asked)
        elif replace(config, **asked) != config:
            sys.exit(f"{options.run} was begun with other settings and goes on with its own: {config}")
    except FileNotFoundError:
        model, config = MODELS[options.model], replace(TrainConfig(), **asked)
        state = State.fresh(model, config.seed, tokenizer.twins(words))
    first = group.rank == 0  # alone it prints and saves
    if first:
        print(f"{model.parameter_count / 1e6:.2f} million parameters, step {state.step} of {config.steps}")
        print(f"BLAS: {BLAS}, {group.size} process{'es' if group.size > 1 else ''}", flush=True)
    if words.get_vocab_size() > model.vocab_size:
        sys.exit(f"the tokenizer has {words.get_vocab_size()} tokens, the model {model.vocab_size}")

    began, tokens = time.perf_counter(), 0
    for report in train(state, model, config, encode, group):
        tokens += report["tokens"]
        if report["step"] % 10 == 0:
            state.history.append({name: report[name] for name in ("step", "loss", "rate", "norm")})
        if not first:
            continue
        _show(report, config, tokens / (time.perf_counter() - began))
        if report["step"] % options.save_every == 0 or report["step"] in (config.steps, options.until):
            checkpointing.save(options.run, state, model, config)
        if report["step"] == options.until:
            break
    if first and options.export:
        ends = [encode(TURN_END)[0], encode(END)[0]]
        checkpointing.export(options.export, state, model, folder, ends)


def _show(report: dict, config: TrainConfig, rate: float) -> None:
    """A bar that rewrites its line on a terminal; elsewhere a line every ten steps."""
    done = report["step"] / config.steps
    left = (config.steps - report["step"]) * report["tokens"] / rate / 60
    text = (
        f"{'#' * int(30 * done):30} {report['step']}/{config.steps}  loss {report['loss']:.3f}"
        f"  {rate:,.0f} tokens/s  {left:.0f} min left"
    )
    if sys.stdout.isatty():
        print(f"\r{text}", end="\n" if report["step"] == config.steps else "", flush=True)
    elif report["step"] % 10 == 0 or report["step"] == config.steps:
        print(text, flush=True)


if __name__ == "__main__":
    main()
