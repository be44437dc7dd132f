"""The training loop: loss, gradients, AdamW, and a schedule for its step size.

Everything that a step depends on is in `State`: parameters, the two moments, the step's number and the
position in the corpus. Saving and loading it (checkpointing.py) therefore resumes a run bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import mlx.core as mx

from .data import Batch, Encode, Packer
from .gpt import GPTConfig, Parameters, forward, init_parameters, logits
from .induction import with_induction, with_twins
from .parallel import ALONE, Group


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 9_500
    restart: int = 6_000  # from this step on the schedule begins anew, with half the rate; -1: never
    period: int = 2_000  # and anew after so many steps, and so many again
    rows: int = 2  # rows of a batch
    length: int = 256  # tokens of a row
    long_steps: int = 100  # so many, at a schedule's end, have rows 4 times as long and 4 times as few
    accumulate: int = 2  # batches whose gradients make one step; the processes of a run share them
    learning_rate: float = 6e-4  # after the warm-up; twice that learns to find far later
    final_fraction: float = 0.05  # of learning_rate, at the last step
    warm_up: int = 100  # steps
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.05  # of matrices; norms and biases are left alone
    clip: float = 1.0  # largest norm of the gradient
    prompt_weight: float = 0.05  # what a prompt's token counts in the loss; a reply's counts 1
    quantised_from: int = 5_400  # from this step on the loss is the 4-bit model's; -1: never
    bfloat16: bool = False  # compute in bfloat16, on float32 parameters (slower on a CPU, faster on a GPU)
    seed: int = 0


@dataclass
class State:
    """What a run is made of between two steps."""

    parameters: Parameters  # float32
    first: Parameters  # AdamW's mean of the gradients
    second: Parameters  # and of their squares
    step: int = 0
    position: int = 0  # the next sample of the corpus
    history: list[dict] = field(default_factory=list)  # a line for each step reported

    @classmethod
    def fresh(cls, model: GPTConfig, seed: int, twins: Mapping[int, int] | None = None) -> State:
        """Before the first step. twins: as from tokenizer.twins."""
        parameters = with_induction(init_parameters(model, seed), model, seed)
        parameters = with_twins(parameters, twins or {}, seed)
        zeros = {name: mx.zeros_like(p) for name, p in parameters.items()}
        return cls(parameters, zeros, dict(zeros))


def loss(parameters: Parameters, model: GPTConfig, batch: Batch) -> mx.array:
    """Mean cross-entropy, in nats, of the tokens that count. Computed in float32, for those places alone."""
    hidden = forward(parameters, model, batch.tokens, batch.segments)  # (B, L, E)
    hidden = hidden.reshape(-1, model.hidden_size)[batch.places]  # (P, E)
    scores = logits(parameters, hidden).astype(mx.float32)  # (P, V)
    right = mx.take_along_axis(scores, batch.targets[:, None], axis=-1)[:, 0]
    each = mx.logsumexp(scores, axis=-1) - right  # (P,)
    return mx.sum(each * batch.weights) / mx.sum(batch.weights)


def quantised(parameters: Parameters) -> Parameters:
    """The parameters as they are after 4-bit quantisation, with gradients as if nothing had happened.

    Training on these moves each weight to where its rounded value serves best (the straight-through estimator
    of Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons").
    """
    result = dict(parameters)
    for name, p in parameters.items():
        if p.ndim == 2:
            rounded = mx.dequantize(
                *mx.quantize(mx.stop_gradient(p), group_size=64, bits=4), group_size=64, bits=4
            )
            result[name] = p + mx.stop_gradient(rounded - p)
    return result


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear up to config.learning_rate over the warm-up, then half a cosine down to its final fraction.

    From config.restart on the same again every config.period steps, with half the rate: what the steps before
    have found is kept, and what they had no time for is found (Loshchilov and Hutter 2017, "SGDR", warm
    restarts).
    """
    start, end = _cycle(config, step)
    highest = config.learning_rate / 2 if start else config.learning_rate
    if step - start < config.warm_up:
        return highest * (step - start + 1) / config.warm_up
    done = (step - start - config.warm_up) / max(1, end - start - config.warm_up)
    low = config.final_fraction
    return highest * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def _cycle(config: TrainConfig, step: int) -> tuple[int, int]:
    """The steps, from the first to the one behind the last, of the schedule that `step` is in."""
    if not 0 < config.restart < config.steps:
        return 0, config.steps
    if step < config.restart:
        return 0, config.restart
    start = step - (step - config.restart) % config.period
    return start, min(start + config.period, config.steps)


def gradient_norm(gradients: Parameters) -> mx.array:
    """The length of all gradients as one vector. Summed array by array, row by row."""
    squares = [mx.sum(mx.sum(g * g, axis=-1)) for g in gradients.values()]
    return mx.sqrt(mx.sum(mx.stack(squares)))


def adamw(state: State, gradients: Parameters, config: TrainConfig) -> None:
    """One step of AdamW on state, whose step counts the steps done before this one.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
    """
    rate = learning_rate(config, state.step)
    t = state.step + 1
    unbias1, unbias2 = 1 - config.beta1**t, 1 - config.beta2**t  # the means start at 0
    for name, g in gradients.items():
        first = config.beta1 * state.first[name] + (1 - config.beta1) * g
        second = config.beta2 * state.second[name] + (1 - config.beta2) * g * g
        change = (first / unbias1) / (mx.sqrt(second / unbias2) + config.eps)
        p = state.parameters[name]
        if p.ndim == 2:
            change = change + config.weight_decay * p
        state.parameters[name] = p - rate * change
        state.first[name], state.second[name] = first, second


def packer_of(config: TrainConfig, step: int, encode: Encode) -> Packer:
    _, end = _cycle(config, step)
    longer = 4 if step >= end - config.long_steps else 1
    return Packer(encode, max(1, config.rows // longer), config.length * longer, config.prompt_weight)


def step(state: State, model: GPTConfig, config: TrainConfig, encode: Encode, group: Group = ALONE) -> dict:
    """One step: gradients of `accumulate` batches, clipped, then AdamW. Returns what there is to report."""
    packer = packer_of(config, state.step, encode)
    packer.position = state.position

    def of_batch(parameters: Parameters, batch: Batch) -> mx.array:
        if 0 <= config.quantised_from <= state.step:
            parameters = quantised(parameters)
        if config.bfloat16:
            parameters = {name: p.astype(mx.bfloat16) for name, p in parameters.items()}
        return loss(parameters, model, batch)

    sums: Parameters = {}
    used = 0
    for turn in range(config.accumulate):
        batch = packer.next()
        used += batch.used
        if turn % group.size == group.rank:
            value, gradients = mx.value_and_grad(of_batch)(state.parameters, batch)
            gradients["loss"] = value
            sums = {name: sums[name] + g for name, g in gradients.items()} if sums else gradients
            mx.eval(sums)
    gradients = group.total(sums)
    total = gradients.pop("loss")
    norm = gradient_norm(gradients) / config.accumulate
    scale = mx.minimum(1.0, config.clip / (norm + 1e-6)) / config.accumulate
    adamw(state, {name: g * scale for name, g in gradients.items()}, config)
    mx.eval(state.parameters, state.first, state.second)
    state.position = packer.position
    state.step += 1
    return {
        "step": state.step,
        "loss": total.item() / config.accumulate,
        "norm": norm.item(),
        "rate": learning_rate(config, state.step - 1),
        "tokens": used,
    }


def train(
    state: State,
    model: GPTConfig,
    config: TrainConfig,
    encode: Encode,
    group: Group = ALONE,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[dict]:
    """Steps up to config.steps, from wherever `state` is. Yields a report after each, with
    "tokens_per_second"."""
    if config.accumulate % group.size:
        raise ValueError(f"{group.size} processes cannot share {config.accumulate} batches evenly")
    while state.step < config.steps:
        before = clock()
        report = step(state, model, config, encode, group)
        report["tokens_per_second"] = report["tokens"] / max(1e-9, clock() - before)
        yield report
