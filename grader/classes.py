"""What a class needs of the command line: the options of a strict grading, and files for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from .catalog import Course
    from .clone import Clone
    from .strict import Strict


def grading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `grade` that are for classes; they arrive as one dictionary, `for_class`."""
    flag, file = click.option, click.Path(path_type=Path)
    options = (
        flag("--strict", is_flag=True, help="With the checks as published; names what tampers with them."),
        flag("--upstream", metavar="REF", help="With --strict: the commit, tag or manifest meant."),
        flag(
            "--submission", type=file, metavar="FOLDER", help="With --strict: grade the exercises/ in here."
        ),
        flag("--gradescope", type=file, metavar="FILE", help="Also write Gradescope's results.json."),
        flag("--github", type=file, metavar="FILE", help="Also append the result for GitHub's reporter."),
        *point_options(),
    )

    def taken(**given: Any) -> Any:
        names = ("strict", "upstream", "submission", "gradescope", "github", "points", "credit")
        return command(for_class={name: given.pop(name) for name in names}, **given)

    taken.__name__, taken.__doc__ = command.__name__, command.__doc__
    taken.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(options):
        taken = option(taken)
    return taken


def point_options() -> tuple[Callable[..., Any], ...]:
    return (
        click.option(
            "--points",
            type=click.IntRange(min=1),
            default=1,
            metavar="N",
            help="A task's points (default: 1).",
        ),
        click.option(
            "--credit",
            type=click.Choice(["task", "checks"]),
            default="task",
            help="Points for whole tasks, or by the share of checks (default: task).",
        ),
    )


def with_points(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(point_options()):
        command = option(command)
    return command


def strict_grading(
    clone: Clone, course: Course, solution: str, for_class: Mapping[str, Any]
) -> Strict | None:
    """What `--strict` asks for, read and ready to grade; None without it."""
    if not for_class["strict"]:
        for name in ("upstream", "submission"):
            if for_class[name] is not None:
                raise UsageError(f"--{name} goes with --strict.")
        return None
    if solution != "exercises":
        raise UsageError("--strict is about a learner's code: it does not go with --solution reference.")
    from . import strict

    return strict.prepare(clone, course, for_class["upstream"], for_class["submission"])


def check_files(for_class: Mapping[str, Any]) -> None:
    """Raise UsageError now, not after the grading, where a result could not be written."""
    for name in ("gradescope", "github"):
        path = for_class[name]
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"--{name} {path}: the folder {path.parent} does not exist.")


def write_files(document: Mapping[str, Any], for_class: Mapping[str, Any]) -> None:
    """Write what `--gradescope` and `--github` ask for."""
    from . import class_formats

    points = class_formats.Points(for_class["points"], for_class["credit"])
    try:
        if for_class["gradescope"] is not None:
            text = json.dumps(class_formats.as_gradescope(document, points), indent=2) + "\n"
            for_class["gradescope"].write_text(text, encoding="utf-8")
        if for_class["github"] is not None:
            with for_class["github"].open("a", encoding="utf-8") as output:
                output.write(class_formats.github_line(document, points))
    except OSError as error:
        raise EnvironmentFault(f"{error.filename} cannot be written: {error.strerror}.") from error
