"""The command line of the measurements."""

from __future__ import annotations

import sys

import click

from ..clone import find_clone
from ..errors import CourseError
from . import latency as latency_bench


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


if __name__ == "__main__":
    main()
