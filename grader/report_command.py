"""`tinyllm-grade report`: the tracker as a page or as JSON; a grading in other programs' forms."""

from __future__ import annotations

import json
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from .catalog import Course
    from .clone import Clone

FORMATS = ("html", "json", "gradescope", "github")
DEFAULT_PAGE = "report.html"  # in progress/


def text(
    clone: Clone,
    course: Course,
    form: str,
    *,
    source: Path | None,
    on: str | None,
    name: str,
    points: int,
    credit: str,
) -> str:
    """The report. source: a grading's JSON ("-": stdin), which the forms for other programs are made of."""
    if form in ("gradescope", "github"):
        from . import class_formats

        if source is None:
            raise UsageError(
                f"--format {form} is about one grading, not about the log: --from FILE names its JSON.",
                next_step=f"tinyllm-grade week1 --json | tinyllm-grade report --format {form} --from -",
            )
        grading = class_formats.read(_read(source))
        worth = class_formats.Points(points, credit)
        if form == "github":
            return class_formats.github_line(grading, worth)
        return json.dumps(class_formats.as_gradescope(grading, worth), indent=2) + "\n"
    if source is not None:
        raise UsageError(f"--from does not go with --format {form}, which is made of the log.")
    from . import html_report, progress_data

    document = progress_data.of_clone(clone, course)
    if form == "json":
        return json.dumps(document, indent=2) + "\n"
    return html_report.page(document, _date(on), name)


def write(clone: Clone, form: str, output: Path | None, content: str) -> Path | None:
    """Put the report where it is wanted: a file, or None for stdout. A page alone has a place of its own."""
    if output is None and form == "html":
        output = clone.progress / DEFAULT_PAGE
    if output is None or str(output) == "-":
        sys.stdout.buffer.write(content.encode("utf-8"))
        sys.stdout.flush()
        return None
    from .files import write_atomically

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, content.encode("utf-8"))
    except OSError as error:
        raise EnvironmentFault(f"{output} cannot be written: {error.strerror}.") from error
    return output


def _date(text: str | None) -> date:
    if text is None:
        return datetime.now(UTC).date()
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--date {text}: a date is written like 2026-09-01.") from None


def _read(source: Path) -> str:
    if str(source) == "-":
        return sys.stdin.read()
    try:
        return source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--from {source} cannot be read: {error}.") from error
