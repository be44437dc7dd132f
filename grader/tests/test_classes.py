"""`report`, `list --json`, and gradings as Gradescope and GitHub's reporter read them."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

import tinyllm.grader
from tinyllm.grader import attempts, class_formats, cli, html_report, progress_data
from tinyllm.grader.class_formats import Points
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy

FOLDER = Path(tinyllm.grader.__file__).parent
SCHEMA = json.loads((FOLDER / "progress.schema.json").read_text(encoding="utf-8"))
DAY = date(2026, 3, 4)


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = toy.make(tmp_path / "a clone with spaces")
    monkeypatch.setenv("TINYLLM_ROOT", str(made.root))
    monkeypatch.chdir(made.root)
    return made


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, arguments, input=stdin)


def worked(course: Toy) -> None:
    """A log: two gradings, a hint, a look at the reference, and answers to questions."""
    at = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)

    def event(kind: str, minutes: int, **fields: Any) -> dict[str, Any]:
        moment = (at + timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")
        return {"v": 1, "event": kind, "id": f"{minutes}", "at": moment, "day": "1.1", **fields}

    def attempt(minutes: int, verdict: str, first: int, second: int) -> dict[str, Any]:
        tasks = {
            "1": {"outcome": "passed" if first == 3 else "failed", "passed": first, "expected": 3},
            "2": {"outcome": "passed" if second == 2 else "failed", "passed": second, "expected": 2},
        }
        files = {"exercises/week1/sums.py": "0" * 12}
        more = {"borrowed": [], "only_task": None, "seconds": 1.5, "regression": False}
        return event(
            "attempt", minutes, solution="exercises", verdict=verdict, tasks=tasks, files=files, **more
        )

    for line in (
        event("read", 0),
        attempt(10, "not passed", 2, 0),
        event("hint", 12, task=1, hint=1),
        event("answer", 14, question="q1", right=False, given="<b>"),
        event("answer", 15, question="q1", right=True, given="b"),
        event("answer", 16, question="q2", right=False, given="c"),
        event("diff", 20, task=None),
        attempt(25, "passed", 3, 2),
    ):
        attempts.append(course.clone, line)


class Page(HTMLParser):
    """The text of a page, its tags' balance, and whatever it would ask of the network."""

    VOID = frozenset(("meta", "link", "img", "br", "hr", "input"))

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.asks: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.asks += [f"{tag} {n}={v}" for n, v in attributes if n in ("src", "href", "srcset", "action")]
        if tag in ("script", "link", "iframe", "object", "embed", "form", "img"):
            self.asks.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


# ---- the page


def test_a_page_of_nothing_yet(course: Toy) -> None:
    page = Page(html_report.page(progress_data.of_clone(course.clone, course.course), DAY))
    assert "0 of 2 days passed" in page.text
    assert "Next: day 1.1, Sums." in page.text
    assert "Day by day" not in page.text


def test_a_page_of_some_work(course: Toy) -> None:
    worked(course)
    html = html_report.page(progress_data.of_clone(course.clone, course.course), DAY, "Ann & Bo <x>")
    page = Page(html)
    assert "Progress of Ann & Bo <x>" in page.text
    assert "2026-03-04" in page.text
    assert "1 of 2 days passed" in page.text
    assert "25 min of work" in page.text
    assert "passed, edited since" in page.text  # the stub is what lies there now
    assert "before passing, 2026-03-01" in page.text
    assert "2 gradings, 2026-03-01 09:10 to 2026-03-01 09:25" in page.text
    assert "not passed, 2 of 5 checks" in page.text
    assert "double: passed , 1 hint" in page.text.replace("passed,", "passed ,")
    assert "1/0" in page.text  # one question mastered; this course lists none


def test_the_page_asks_nothing_of_the_network_and_escapes_everything(course: Toy) -> None:
    worked(course)
    document = progress_data.of_clone(course.clone, course.course)
    evil = "<script src=//x>\"'&\ud800"
    document["course"] = document["days"][0]["title"] = document["days"][0]["tasks"][0]["title"] = evil
    document["days"][0]["status"] = document["days"][0]["gradings"][0]["verdict"] = evil
    html = html_report.page(document, DAY, evil)
    html.encode("utf-8")
    page = Page(html)
    assert page.asks == []
    assert "<script" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    for where in ("prefers-color-scheme: dark", "@media print", "width=device-width"):
        assert where in html


def test_the_same_log_and_date_give_the_same_bytes(course: Toy) -> None:
    worked(course)
    first, second = (run("report", "--date", "2026-03-04", "-o", name) for name in ("a.html", "b.html"))
    assert first.exit_code == second.exit_code == 0, first.output
    assert (course.root / "a.html").read_bytes() == (course.root / "b.html").read_bytes()
    page = run("report", "--date", "2026-03-04", "-o", "-").stdout_bytes
    assert page == (course.root / "a.html").read_bytes()
    assert run("report").exit_code == 0
    assert (course.clone.progress / "report.html").is_file()


def test_a_log_with_unreadable_lines_is_no_obstacle(course: Toy) -> None:
    worked(course)
    with attempts.log_path(course.clone).open("a") as log:
        log.write("not json\n")
    assert "(9)" in Page(html_report.page(progress_data.of_clone(course.clone, course.course), DAY)).text


def test_the_progress_as_json(course: Toy) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    worked(course)
    for arguments in (["list", "--json"], ["report", "--format", "json"]):
        done = run(*arguments)
        document = json.loads(done.stdout)
        jsonschema.validate(document, SCHEMA)
        assert (done.exit_code, done.stderr) == (0, "")
        first = document["days"][0]
        assert (first["day"], first["attempts"], first["hints"], first["seconds"]) == ("1.1", 2, 1, 1500)
        assert first["questions"] == {"asked": 0, "answered": 2, "mastered": 1}
        assert [g["verdict"] for g in first["gradings"]] == ["not passed", "passed"]


def test_history_as_json(course: Toy) -> None:
    subprocess.run(["git", "init", "-q"], cwd=course.root, check=True)
    done = run("history", "--json")
    assert json.loads(done.stdout) == {"schema": 1, "snapshots": []}


# ---- other programs


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, dict[str, Any]]:
    """One task right, one wrong, graded once, with both files written beside the JSON."""
    made = toy.make(tmp_path_factory.mktemp("class") / "a clone with spaces")
    made.sums(double="return x * x")
    (made.root / "github.out").write_text("before=1\n")
    done = made.grade(
        "day1.1", "--json", "--gradescope", "results.json", "--github", "github.out", "--points", "10"
    )
    assert (done.returncode, done.stderr) == (1, "")
    return made, json.loads(done.stdout)


def test_gradescope(graded: tuple[Toy, dict[str, Any]]) -> None:
    made, document = graded
    results = json.loads((made.root / "results.json").read_text())
    assert results == class_formats.as_gradescope(document, Points(10))
    assert results["score"] == 10.0
    first, second = results["tests"]
    assert (first["score"], first["max_score"], first["status"]) == (0.0, 10.0, "failed")
    assert (second["score"], second["status"], second["number"]) == (10.0, "passed", "1.1.2")
    assert first["name"] == "day1.1, task 1: double"
    assert "Every element is too far from the right answer." in first["output"]
    assert "exercises/week1/sums.py:9" in first["output"]
    # What Gradescope's specification names, and nothing else.
    known = {"score", "execution_time", "output", "output_format", "stdout_visibility", "extra_data", "tests"}
    assert set(results) == known
    test_keys = {"name", "number", "score", "max_score", "status", "output", "output_format", "tags"}
    assert {k for t in results["tests"] for k in t} == test_keys | {"visibility", "extra_data"}
    assert {t["status"] for t in results["tests"]} <= {"passed", "failed"}


def test_github(graded: tuple[Toy, dict[str, Any]]) -> None:
    """Read as the reporter reads it: base64 of JSON from the step's output, scores summed."""
    made, document = graded
    before, line = (made.root / "github.out").read_text().splitlines()
    assert before == "before=1"
    key, _, encoded = line.partition("=")
    result = json.loads(base64.b64decode(encoded))
    assert key == "result"
    assert result == class_formats.as_github(document, Points(10))
    assert (result["version"], result["status"], result["max_score"]) == (1, "fail", 20)
    assert [(t["status"], t["score"]) for t in result["tests"]] == [("fail", 0.0), ("pass", 10.0)]
    assert result["tests"][0]["filename"] == "exercises/week1/sums.py"
    passed = sum(t["status"] == "pass" for t in result["tests"])
    assert passed / len(result["tests"]) * result["max_score"] == sum(t["score"] for t in result["tests"])


def test_credit_by_checks(graded: tuple[Toy, dict[str, Any]]) -> None:
    document = json.loads(json.dumps(graded[1]))
    document["days"][0]["tasks"][0]["checks"]["passed"] = 1
    first, second = class_formats.as_gradescope(document, Points(6, "checks"))["tests"]
    assert (first["score"], second["score"]) == (2.0, 6.0)


def test_a_refused_grading_is_worth_nothing_and_says_why(graded: tuple[Toy, dict[str, Any]]) -> None:
    document = json.loads(json.dumps(graded[1]))
    document["exit_code"], day = 4, document["days"][0]
    day["verdict"] = "refused"
    day["tampering"] = [
        {"kind": "edited", "what": "a test was edited", "path": "a.py", "line": 3, "source": ""}
    ]
    results = class_formats.as_gradescope(document, Points(1, "checks"))
    assert results["score"] == 0
    assert "edited: a test was edited (a.py:3)" in results["output"]
    assert {t["status"] for t in results["tests"]} == {"failed"}
    github = class_formats.as_github(document, Points())
    assert (github["status"], {t["status"] for t in github["tests"]}) == ("error", {"error"})


def test_the_forms_from_a_kept_document(course: Toy, graded: tuple[Toy, dict[str, Any]]) -> None:
    text = json.dumps(graded[1])
    course.write("grading.json", text)
    done = run("report", "--format", "gradescope", "--from", "grading.json", "--points", "10")
    assert json.loads(done.stdout) == class_formats.as_gradescope(graded[1], Points(10))
    done = run("report", "--format", "github", "--from", "-", stdin=text)
    assert done.stdout == class_formats.github_line(graded[1], Points())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--format", "gradescope"), "--from FILE names its JSON"),
        (("--format", "html", "--from", "x.json"), "does not go with --format html"),
        (("--format", "github", "--from", "nowhere.json"), "cannot be read"),
        (("--format", "github", "--from", "checkpoints/course.toml"), "not what `tinyllm-grade DAY --json`"),
        (("--date", "yesterday"), "a date is written like"),
    ],
)
def test_usage(course: Toy, arguments: tuple[str, ...], says: str) -> None:
    done = run("report", *arguments)
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.split())


@pytest.mark.parametrize("option", ["--gradescope", "--github"])
def test_a_result_that_cannot_be_written_is_told(course: Toy, option: str) -> None:
    """Its folder is there, and the file is a folder: only writing it shows that."""
    done = course.grade("day1.1", option, str(course.root), "--no-progress")
    assert done.returncode == 3
    assert "cannot be written: Is a directory." in " ".join(done.stderr.split())
    assert "day1.1: not passed yet" in done.stdout  # the verdict came first


def test_json_says_what_it_was_made_with(graded: tuple[Toy, dict[str, Any]]) -> None:
    versions = graded[1]["versions"]
    assert re.fullmatch(r"3\.\d+\.\d+.*", versions["python"])
    assert versions["mlx"]
    assert graded[1]["strict"] is None
