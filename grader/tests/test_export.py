"""--json against its schema, and JUnit XML."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import pytest

import tinyllm.grader
from tinyllm.grader.report import Outcome
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy

SCHEMA = json.loads((Path(tinyllm.grader.__file__).parent / "report.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def course(tmp_path: Path) -> Toy:
    return toy.make(tmp_path)


def test_the_schema_is_one_and_knows_every_outcome() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["$defs"]["outcome"]["enum"]) == {o.value for o in Outcome}


def valid(text: str) -> dict:
    value = json.loads(text)
    jsonschema.validate(value, SCHEMA)
    return value


def test_a_failing_day_as_json(course: Toy) -> None:
    course.sums(double="return x * x", row_sums="while True: pass")
    done = course.grade("day1.1", "--json", "--timeout", "1")
    value = valid(done.stdout)
    assert done.returncode == value["exit_code"] == 1
    assert done.stderr == ""
    (day,) = value["days"]
    assert (day["verdict"], day["checks"]) == ("not passed", {"expected": 5, "ran": 5, "passed": 0})
    failed, stuck = day["tasks"]
    assert (failed["outcome"], stuck["outcome"]) == ("failed", "timed out")
    first = failed["results"][0]["failure"]
    assert first["frames"][0]["path"] == "exercises/week1/sums.py"
    assert first["frames"][0]["values"][0] == {
        "name": "x", "shape": "(3, 5)", "dtype": "float32", "value": "", "note": "",
    }  # fmt: skip


def test_several_days_and_junit(course: Toy) -> None:
    course.sums()
    out = course.root / "out.xml"
    done = course.grade("all", "--json", "--junit", str(out))
    value = valid(done.stdout)
    assert [d["verdict"] for d in value["days"]] == ["passed", "not passed"]
    assert done.returncode == 1
    suites = ET.parse(out).getroot()
    assert [(s.get("name"), s.get("tests"), s.get("failures")) for s in suites] == [
        ("day1.1", "5", "0"),
        ("day1.2", "1", "1"),
    ]
    case = suites[1].find("testcase")
    assert case is not None
    failure = case.find("failure")
    assert failure is not None
    assert failure.get("type") == "not started"


def test_errors_are_json_too(course: Toy) -> None:
    done = course.grade("day9.9", "--json")
    value = valid(done.stdout)
    assert done.returncode == value["exit_code"] == 2
    assert "no day called" in value["error"]


def test_junit_holds_what_a_learner_prints(course: Toy) -> None:
    course.sums(top="import os", double="raise ValueError('\\x00\\x1b[31m')", row_sums="os._exit(0)")
    out = course.root / "a folder" / "out.xml"
    done = course.grade("day1.1", "--junit", str(out))
    assert done.returncode == 2
    assert "does not exist" in " ".join(done.stderr.split())
    out.parent.mkdir()
    assert course.grade("day1.1", "--junit", str(out)).returncode == 1
    (suite,) = ET.parse(out).getroot()
    assert (suite.get("failures"), suite.get("errors")) == ("3", "2")


def test_a_fault_of_the_course_is_an_error_in_junit(course: Toy) -> None:
    course.write("checkpoints/day1_1/test_sums.py", "import nothing_of_this_name\n")
    out = course.root / "out.xml"
    done = course.grade("day1.1", "--json", "--junit", str(out))
    assert done.returncode == valid(done.stdout)["exit_code"] == 3
    (suite,) = ET.parse(out).getroot()
    assert suite.get("errors") == "1"
