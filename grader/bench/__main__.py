"""The command line of the measurements."""

from __future__ import annotations

import sys

import click

from .. import cli
from ..clone import find_clone
from ..errors import CourseError
from . import kills as kill_sweep
from . import latency as latency_bench
from . import products, saving


@click.group()
def main() -> None:
    """Measure the course's own tools on this machine."""


@main.command()
@click.argument("day", default="day1.1")
@click.option("--runs", type=click.IntRange(min=1), help="Interleaved runs (default: 5), or saves (12).")
@click.option("--save", is_flag=True, help="From saving a file to the verdict of `watch`; DAY may be week1.")
def latency(day: str, runs: int | None, save: bool) -> None:
    """From keystroke to verdict, beside bare pytest on the same tests with the reference as the solution."""
    try:
        if save:
            found = saving.measure(find_clone(), day, runs or 12, say=click.echo)
            sys.exit(0 if all(s.within_bar for s in found) else 1)
        result = latency_bench.measure(find_clone(), day, runs or 5, say=click.echo)
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


@main.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def model(arguments: tuple[str, ...]) -> None:
    """The same as `tinyllm-grade bench model`."""
    cli.main(["bench", "model", *arguments], prog_name="tinyllm-grade")


if __name__ == "__main__":
    main()
