"""A grading as JSON (schema in report.schema.json, beside this file) and as JUnit XML, for other programs."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .files import write_atomically
from .report import CheckResult, DayReport, LikelyMistake, Outcome

SCHEMA_VERSION = 1


def as_json(reports: Sequence[DayReport], exit_code: int, upstream: str = "") -> dict[str, Any]:
    """The value that `--json` prints. upstream: what --strict took for the course's own files."""
    return {
        "schema": SCHEMA_VERSION,
        "exit_code": exit_code,
        "strict": upstream or None,
        "versions": versions(),
        "days": [_day(r) for r in reports],
    }


def versions() -> dict[str, str]:
    """What a result depends on besides the code."""
    import platform
    from importlib import metadata

    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in ("tinyllm", "mlx", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _day(report: DayReport) -> dict[str, Any]:
    return {
        "day": report.day,
        "title": report.title,
        "verdict": report.verdict.value,
        "problem": report.problem,
        "solution": report.solution,
        "graded": list(report.graded),
        "borrowed": list(report.borrowed),
        "only_task": report.only_task,
        "seconds": round(report.seconds, 3),
        "checks": {"expected": report.expected, "ran": report.ran, "passed": report.passed},
        "files": report.files,
        "tampering": [asdict(t) for t in report.tampering],
        "tasks": [
            {
                "task": t.id,
                "title": t.title,
                "outcome": t.outcome.value,
                "checks": {"expected": t.expected, "passed": t.passed},
                "results": [_check(c) for c in t.checks],
                "likely": next((_likely(one) for one in report.likely if one.task == t.id), None),
            }
            for t in report.tasks
        ],
    }


def _likely(found: LikelyMistake) -> dict[str, Any]:
    return {
        "mistakes": list(found.mistakes),
        "says": list(found.says),
        "lessons": list(found.lessons),
        "or_says": list(found.or_says),
        "through": found.through,
        "checks": found.checks,
    }


def _check(result: CheckResult) -> dict[str, Any]:
    return {
        "id": result.id,
        "title": result.title,
        "outcome": result.outcome.value,
        "seconds": round(result.seconds, 6),
        "ratio": result.ratio,
        "failure": asdict(result.failure) if result.failure else None,
    }


def write_junit(reports: Sequence[DayReport], path: Path) -> None:
    """Write the JUnit XML that CI systems read: a suite a day, a case a check."""
    root = ET.Element("testsuites", name="tinyllm")
    for report in reports:
        checks = [c for t in report.tasks for c in t.checks]
        suite = ET.SubElement(
            root,
            "testsuite",
            name=f"day{report.day}",
            tests=str(len(checks)),
            failures=str(sum(_kind(c) == "failure" for c in checks)),
            errors=str(
                sum(_kind(c) == "error" for c in checks) + bool(report.problem) + len(report.tampering)
            ),
            skipped=str(sum(_kind(c) == "skipped" for c in checks)),
            time=f"{report.seconds:.3f}",
        )
        for task in report.tasks:
            for c in task.checks:
                case = ET.SubElement(
                    suite,
                    "testcase",
                    classname=f"day{report.day}.task{task.id}",
                    name=c.id,
                    time=f"{c.seconds:.6f}",
                )
                kind = _kind(c)
                if kind:
                    summary = c.failure.summary if c.failure else c.outcome.value
                    body = ET.SubElement(case, kind, message=_clean(summary), type=c.outcome.value)
                    body.text = _clean(c.failure.detail) if c.failure else ""
        for t in report.tampering:
            case = ET.SubElement(
                suite, "testcase", classname=f"day{report.day}", name=f"strict: {t.path}:{t.line}"
            )
            ET.SubElement(case, "error", message=_clean(t.what), type=t.kind).text = _clean(t.source)
        if report.problem:
            case = ET.SubElement(suite, "testcase", classname=f"day{report.day}", name="grading")
            ET.SubElement(case, "error", message=_clean(report.problem), type=report.verdict.value)
    ET.indent(root)
    write_atomically(path, ET.tostring(root, encoding="utf-8", xml_declaration=True))


def _kind(result: CheckResult) -> str:
    match result.outcome:
        case Outcome.PASSED:
            return ""
        case Outcome.NOT_RUN_HERE | Outcome.NOT_REACHED:
            return "skipped"
        case Outcome.FAILED | Outcome.NOT_STARTED | Outcome.BLOCKED | Outcome.REFUSED:
            return "failure"
        case _:
            return "error"


def _clean(text: str) -> str:
    """Text that XML can hold: a learner may print any control character."""
    return "".join(c if c in "\t\n\r" or c >= " " else "?" for c in text if c not in "\ufffe\uffff")
