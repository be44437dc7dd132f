"""The JSON of a grading (`--json`) in the forms that Gradescope and GitHub's autograding reporter read.

Gradescope: results.json as its autograder specification has it. GitHub: the result of one runner, as the
steps before `autograding-grading-reporter` give it: JSON in base64, in the step's output `result`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import UsageError

CREDITS = ("task", "checks")
FAILURES_SHOWN = 3  # of a task


@dataclass(frozen=True)
class Points:
    """What a task is worth. credit "task": all or nothing; "checks": the share of its checks that passed."""

    each: int = 1
    credit: str = "task"

    def of(self, task: Mapping[str, Any], *, refused: bool) -> float:
        checks = task["checks"]
        if refused or not checks["expected"]:
            return 0.0
        if task["outcome"] == "passed":
            return float(self.each)
        if self.credit == "task":
            return 0.0
        return round(self.each * checks["passed"] / checks["expected"], 4)


def read(text: str) -> dict[str, Any]:
    """A document that `--json` printed. Raises UsageError when the text is none."""
    try:
        document = json.loads(text)
        if document["schema"] != 1 or not isinstance(document["days"], list):
            raise ValueError("another schema")
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"This is not what `tinyllm-grade DAY --json` prints: {error}.",
            next_step="Make it with: tinyllm-grade week1 --json > grading.json",
        ) from error
    return document


def as_gradescope(document: Mapping[str, Any], points: Points) -> dict[str, Any]:
    """The content of results.json: one test case a task."""
    tests = [
        {
            "name": f"day{day['day']}, task {task['task']}: {task['title']}",
            "number": f"{day['day']}.{task['task']}",
            "score": points.of(task, refused=_refused(day)),
            "max_score": float(points.each),
            "status": "passed" if task["outcome"] == "passed" and not _refused(day) else "failed",
            "output": _told(day, task),
            "output_format": "text",
            "tags": [f"day{day['day']}", f"week{day['day'].partition('.')[0]}"],
            "visibility": "visible",
            "extra_data": {"outcome": task["outcome"], "checks": task["checks"]},
        }
        for day, task in _tasks(document)
    ]
    return {
        "score": round(sum(t["score"] for t in tests), 4),
        "execution_time": round(sum(day["seconds"] for day in document["days"]), 3),
        "output": _summary(document),
        "output_format": "text",
        "stdout_visibility": "hidden",
        "extra_data": {
            "exit_code": document["exit_code"],
            "verdicts": {f"day{day['day']}": day["verdict"] for day in document["days"]},
            "strict": document.get("strict"),
            "versions": document.get("versions", {}),
        },
        "tests": tests,
    }


def as_github(document: Mapping[str, Any], points: Points) -> dict[str, Any]:
    """One runner's result for the reporter: a test a task."""
    tests = []
    for day, task in _tasks(document):
        passed = task["outcome"] == "passed" and not _refused(day)
        path, line = _place(task)
        tests.append(
            {
                "name": f"day{day['day']}, task {task['task']}: {task['title']}",
                "status": "pass" if passed else "error" if _is_error(day) else "fail",
                "score": points.of(task, refused=_refused(day)),
                "message": "" if passed else _told(day, task),
                "test_code": f"tinyllm-grade day{day['day']} --task {task['task']}",
                "filename": path,
                "line_no": line,
                "execution_time": f"{sum(r['seconds'] for r in task['results']):.3f}s",
            }
        )
    code = document["exit_code"]
    status = {0: "pass", 1: "fail"}.get(code, "error")
    return {"version": 1, "status": status, "max_score": points.each * len(tests), "tests": tests}


def github_line(document: Mapping[str, Any], points: Points) -> str:
    """The line that a step appends to the file $GITHUB_OUTPUT."""
    text = json.dumps(as_github(document, points), ensure_ascii=True)
    return f"result={base64.b64encode(text.encode('ascii')).decode('ascii')}\n"


def _tasks(document: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    for day in document["days"]:
        for task in day["tasks"]:
            yield day, task


def _refused(day: Mapping[str, Any]) -> bool:
    return day["verdict"] == "refused"


def _is_error(day: Mapping[str, Any]) -> bool:
    return day["verdict"] in ("refused", "environment", "interrupted")


def _summary(document: Mapping[str, Any]) -> str:
    """What stands over all tests: a line a day, and why a day has no result."""
    lines = [document["error"]] if document.get("error") else []
    for day in document["days"]:
        checks = day["checks"]
        lines.append(
            f"day{day['day']}: {day['verdict']}, {checks['passed']} of {checks['expected']} checks passed"
        )
        if day["problem"]:
            lines.append(f"  {day['problem']}")
    for finding in dict.fromkeys(t for day in document["days"] for t in _findings(day)):
        lines.append(f"  {finding}")
    return "\n".join(lines)


def _findings(day: Mapping[str, Any]) -> list[str]:
    found = []
    for t in day.get("tampering", ()):
        place = f"{t['path']}:{t['line']}" if t["line"] else t["path"]
        found.append(f"{t['kind']}: {t['what']} ({place})")
    return found


def _told(day: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    """A task's result as text: what passed, and the first failures as the terminal tells them."""
    checks = task["checks"]
    lines = [f"{task['outcome']}: {checks['passed']} of {checks['expected']} checks passed"]
    if _refused(day):
        return "\n".join(["refused: this result says nothing about the code", *_findings(day)])
    if day["problem"]:
        lines.append(day["problem"])
    failed = [r for r in task["results"] if r["failure"]]
    told: set[str] = set()
    for result in failed:
        failure = result["failure"]
        if failure["summary"] in told or len(told) == FAILURES_SHOWN:
            continue
        told.add(failure["summary"])
        lines += ["", f"{result['title']} ({result['id']})", f"  {failure['summary']}"]
        for label in ("checked", "expected", "got", "where", "error", "fact"):
            if failure[label]:
                lines.append(f"  {label if label != 'fact' else 'rule':<9} {failure[label]}")
        if failure["frames"]:
            frame = failure["frames"][-1]
            lines.append(f"  {'line':<9} {frame['path']}:{frame['line']}  {frame['source']}")
    left = len(failed) - len(told)
    if left > 0:
        lines += ["", f"{left} more did not pass"]
    return "\n".join(lines)


def _place(task: Mapping[str, Any]) -> tuple[str, int]:
    for result in task["results"]:
        if result["failure"] and result["failure"]["frames"]:
            frame = result["failure"]["frames"][-1]
            return frame["path"], frame["line"]
    return "", 0
