"""The command line of the measurements."""

from __future__ import annotations

import sys

import click

from .. import models
from ..clone import find_clone
from ..errors import CourseError
from . import kills as kill_sweep
from . import latency as latency_bench
from . import model as model_bench
from . import products


@click.group()
def main() -> None:
    """Measure the course's own tools on this machine."""


@main.command()
@click.argument("day", default="day1.1")
@click.option("--runs", type=click.IntRange(min=1), default=5, help="Interleaved runs (default: 5).")
def latency(day: str, runs: int) -> None:
    """From keystroke to verdict, beside bare pytest on the same tests with the reference as the solution."""
    try:
        result = latency_bench.measure(find_clone(), day, runs, say=click.echo)
    except CourseError as error:
        click.echo(error.message, err=True)
        sys.exit(error.exit_code)
    click.echo(latency_bench.summary(result))
    sys.exit(0 if result.within_bar else 1)


@main.command()
@click.argument("day", default="day1.1")
@click.option("--runs", type=click.IntRange(min=1), default=200, help="Gradings to kill (default: 200).")
@click.option("--seed", type=int, default=1, help="For the moments of the kills.")
def kills(day: str, runs: int, seed: int) -> None:
    """Kill graders at random moments: no printed verdict may be missing, no file half-written."""
    try:
        result = kill_sweep.sweep(find_clone(), day, runs, seed, say=click.echo)
    except CourseError as error:
        click.echo(error.message, err=True)
        sys.exit(error.exit_code)
    click.echo(
        f"{result.runs} runs, {result.killed} killed, {result.verdicts} verdicts printed, "
        f"{result.logged} attempts in the log, {result.torn} torn lines, {len(result.faults)} faults"
    )
    for fault in result.faults:
        click.echo(fault)
    sys.exit(1 if result.faults else 0)


@main.command()
@click.option("--runs", type=click.IntRange(min=1), default=5, help="Interleaved runs (default: 5).")
def blas(runs: int) -> None:
    """Matrix products on the CPU, as MLX is shipped and with the BLAS that the course puts under it."""
    try:
        result = products.measure(runs, say=click.echo)
    except CourseError as error:
        click.echo(error.message, err=True)
        sys.exit(error.exit_code)
    click.echo(products.summary(result))


@main.command()
@click.option(
    "--model", "given", default="", metavar="NAME", help="A folder or Hugging Face id (default: tiny-qwen2)."
)
@click.option("--runs", type=click.IntRange(min=1), default=5, help="Interleaved runs (default: 5).")
@click.option(
    "--prompt", type=click.IntRange(min=1), default=128, help="Tokens to start from (default: 128)."
)
@click.option("--tokens", type=click.IntRange(min=0), default=8, help="Tokens to add (default: 8).")
def model(given: str, runs: int, prompt: int, tokens: int) -> None:
    """The week-1 model beside mlx-lm without its cache, on the same weights and tokens."""
    try:
        clone = find_clone()
        folder = models.resolve(clone, given).path
        results = model_bench.measure(clone, folder, runs=runs, prompt=prompt, steps=tokens, say=click.echo)
    except CourseError as error:
        click.echo(error.message, err=True)
        sys.exit(error.exit_code)
    for result in results:
        click.echo(model_bench.summary(result))
    state = "within" if results[0].within_bar else "BELOW"
    click.echo(
        f"bar: at least {model_bench.RATIO_BAR} times as fast as mlx-lm on the same weights: {state} it"
    )
    sys.exit(0 if results[0].within_bar else 1)


if __name__ == "__main__":
    main()
