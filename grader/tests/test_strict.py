"""--strict: every trick is found and named with its file and line; honest work passes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tinyllm.grader import baseline, catalog, cli, integrity
from tinyllm.grader import strict as strict_
from tinyllm.grader.clone import Clone, installed_root
from tinyllm.grader.report import Verdict
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy


@pytest.fixture
def course(tmp_path: Path) -> Toy:
    made = toy.make(tmp_path / "a clone with spaces", git=True)
    made.sums()
    return made


def strict(course: Toy, *more: str) -> tuple[int, dict[str, Any]]:
    done = course.grade("day1.1", "--strict", "--upstream", "HEAD", "--json", *more, timeout=240)
    assert done.stderr == ""
    value = json.loads(done.stdout)
    assert done.returncode == value["exit_code"], done.stdout
    return done.returncode, value


def findings(course: Toy, submission: Path | None = None) -> list[tuple[str, str, int]]:
    """What is refused before anything runs, as (kind, path, line)."""
    prepared = strict_.prepare(course.clone, course.course, "HEAD", submission)
    with prepared:
        report = prepared.grade(course.course.day("1.1"))
    assert report.verdict is Verdict.REFUSED
    assert (report.verdict.exit_code, report.passed, report.ran) == (4, 0, 0)
    return [(t.kind, t.path, t.line) for t in report.tampering]


def test_honest_work_passes(course: Toy) -> None:
    """With no reference beside the code that runs."""
    body = "from pathlib import Path\n    1 / (not (Path(__file__).parents[2] / 'reference').exists())"
    course.sums(double=f"{body}\n    return x + x")
    code, value = strict(course)
    (day,) = value["days"]
    assert (code, day["verdict"], day["tampering"]) == (0, "passed", [])
    assert value["strict"].startswith("HEAD (")
    assert day["graded"] == ["exercises/week1/sums.py"]


# ---- edited files and hooks: named, and nothing is run


def test_an_edited_test(course: Toy) -> None:
    text = toy.TESTS_1.replace("2 * x64", "3 * x64")
    course.write("checkpoints/day1_1/test_sums.py", text)
    line = next(n for n, t in enumerate(text.splitlines(), 1) if "3 * x64" in t)
    assert findings(course) == [("edited", "checkpoints/day1_1/test_sums.py", line)]


def test_a_test_that_is_gone_and_one_that_came(course: Toy) -> None:
    test = course.root / "checkpoints/day1_2/test_means.py"
    test.rename(test.with_name("test_other.py"))
    assert findings(course) == [
        ("missing", "checkpoints/day1_2/test_means.py", 0),
        ("added", "checkpoints/day1_2/test_other.py", 1),
    ]


def test_an_edited_reference_and_an_edited_spec(course: Toy) -> None:
    course.write("reference/week1/sums.py", toy.SUMS + "\n# more\n")
    course.write("checkpoints/day1_1/checkpoint.toml", toy.DAY_1.replace("checks = 3", "checks = 2"))
    found = findings(course)
    assert ("edited", "checkpoints/day1_1/checkpoint.toml", 14) in found
    assert ("edited", "reference/week1/sums.py", 14) in found


@pytest.mark.parametrize(
    "path",
    [
        "checkpoints/conftest.py",
        "checkpoints/day1_1/conftest.py",
        "conftest.py",
        "exercises/week1/conftest.py",
        "sitecustomize.py",
        "exercises/usercustomize.py",
        "trick.pth",
        "pytest.ini",
        "numpy/__init__.py",
        "pytest.py",
    ],
)
def test_hooks_in_the_clone(course: Toy, path: str) -> None:
    course.write(path, "import os\n")
    named = path.removesuffix("/__init__.py") if path.startswith("numpy") else path
    assert findings(course) == [("hook", named, 1)]


def test_a_hook_of_this_python(course: Toy, tmp_path: Path) -> None:
    """A sitecustomize on PYTHONPATH ran before the grader did; the child that grades never sees it."""
    hook = tmp_path / "site" / "sitecustomize.py"
    hook.parent.mkdir()
    hook.write_text("# nothing\n")
    import os

    path = os.pathsep.join([str(hook.parent), os.environ.get("PYTHONPATH", "")])
    done = course.grade("day1.1", "--strict", "--upstream", "HEAD", PYTHONPATH=path, timeout=240)
    assert done.returncode == 4
    assert "sitecustomize.py, which Python runs whenever it starts" in " ".join(done.stdout.split())


def test_a_loose_pth_and_an_edited_package(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    (site / "numpy").mkdir(parents=True)
    record = site / "numpy-2.0.dist-info" / "RECORD"
    record.parent.mkdir()
    (site / "numpy" / "a.py").write_text("x = 1\n")
    digest = integrity._record_hash(b"x = 1\n")
    record.write_text(f"numpy/a.py,sha256={digest},6\n")
    assert list(integrity._loose_pth(site)) == list(integrity._edited_packages([site])) == []
    (site / "numpy" / "a.py").write_text("x = 2\n")
    (site / "trick.pth").write_text("# comment\nimport os\n")
    (site / "folder.pth").write_text("/some/folder\n")
    (edited,) = integrity._edited_packages([site])
    assert (edited.kind, edited.path) == ("package", "site-packages/numpy/a.py")
    (hook,) = integrity._loose_pth(site)
    assert (hook.kind, hook.path, hook.line) == ("hook", "site-packages/trick.pth", 2)


def test_the_text_on_the_terminal(course: Toy) -> None:
    course.write("checkpoints/day1_1/test_sums.py", toy.TESTS_1.replace("2 * x64", "3 * x64"))
    done = course.grade("day1.1", "--strict", "--upstream", "HEAD", timeout=240)
    assert done.returncode == 4
    assert "a file of the day's checks is not as published" in done.stdout
    assert "checkpoints/day1_1/test_sums.py:11" in done.stdout
    assert "check.close(solution.double(x), 3 * x64" in done.stdout
    assert "day1.1: refused" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


# ---- what a solution does


def sums_line(course: Toy, text: str) -> int:
    lines = (course.root / "exercises/week1/sums.py").read_text().splitlines()
    return next(n for n, line in enumerate(lines, 1) if text in line)


CODE = [
    ("reference", "from ...reference.week1 import sums", ""),
    ("reference", "from tinyllm.reference.week1 import sums", ""),
    ("reaches", "import gc", ""),
    ("reaches", "import importlib.util", ""),
    ("reaches", "import subprocess", ""),
    ("reaches", "import pytest", ""),
    ("reaches", "from tinyllm.grader.testing import check", ""),
    ("reaches", "import __main__", ""),
    ("reaches", "import sys", 'sys._getframe(1).f_globals["check"] = None'),
    ("reaches", "import sys", 'sys.modules["tinyllm.grader.testing"].check = None'),
    ("reaches", "import os", "os.write(5, b'x')"),
    ("reaches", "", 'exec(open("reference/week1/sums.py").read())'),
    ("reaches", "", "print((lambda: 0).__globals__)"),
    ("reaches", "", 'getattr(x, "f_back", None)'),
    ("patched", "", "mx.eval = print"),
    ("patched", "", "mx.array.__add__ = None"),
    ("patched", "import builtins", "builtins.abs = float"),
    ("patched", "", 'setattr(mx, "eval", print)'),
    ("patched", "", 'vars(mx)["eval"] = print'),
    ("patched", "import math", 'math.__dict__["sqrt"] = abs'),
]


@pytest.mark.parametrize(("kind", "top", "body"), CODE)
def test_what_the_text_of_a_solution_tells(course: Toy, kind: str, top: str, body: str) -> None:
    course.sums(top=top, double=f"{body}\n    return x + x" if body else "return x + x")
    path = course.root / "exercises/week1/sums.py"
    found = integrity.scan_python(path.read_bytes(), "exercises/week1/sums.py")
    assert (kind, sums_line(course, body or top)) in [(f.kind, f.line) for f in found]


def test_reading_and_executing_the_reference_through_a_helper(course: Toy) -> None:
    course.write("exercises/week1/helper.py", "import runpy\n")
    course.write("exercises/scratch.py", "import subprocess\n")  # nothing imports it
    course.sums(top="from . import helper")
    assert findings(course) == [("reaches", "exercises/week1/helper.py", 1)]


def test_a_link_to_the_reference(course: Toy) -> None:
    path = course.root / "exercises/week1/sums.py"
    path.unlink()
    path.symlink_to(course.root / "reference/week1/sums.py")
    assert findings(course) == [("reference", "exercises/week1/sums.py", 0)]


def test_a_kernel_that_includes_the_reference() -> None:
    text = (
        b'// system("x")\n#include "bodies.h"\n#include "../../reference/kernels/axpby.cpp"\n system("x");\n'
    )
    found = integrity.scan_kernel(text, "exercises/kernels/axpby.cpp")
    assert [(f.kind, f.line) for f in found] == [("reference", 3), ("process", 4)]


# What no text tells is seen while the code runs.


def run_time(course: Toy, body: str, top: str = "") -> list[dict[str, Any]]:
    """The findings of a solution whose text is not looked at."""
    course.sums(double=f"{body}\n    return x + x", top=top)
    code = (
        "import sys; from tinyllm.grader import integrity; integrity.scan = lambda *a: [];"
        "from tinyllm.grader.cli import main; main()"
    )
    done = subprocess.run(
        [*toy.PROGRAM[:2], "-c", code, "day1.1", "--strict", "--upstream", "HEAD", "--json"],
        cwd=course.root, env=course.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    value = json.loads(done.stdout)
    (day,) = value["days"]
    assert (done.returncode, day["verdict"]) == (4, "refused"), done.stdout
    return day["tampering"]


def placed(found: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    return [(t["kind"], t["path"], t["line"]) for t in found]


SUMS = "exercises/week1/sums.py"


def test_a_patched_comparison_that_puts_itself_back(course: Toy) -> None:
    body = (
        "t = sys.modules['tinyllm.grader.testing']\n"
        "    old = t.Check.close\n"
        "    def close(self, *a, **k):\n"
        "        t.Check.close = old\n"
        "        self.ratios.append(0.0)\n"
        "    t.Check.close = close"
    )
    found = placed(run_time(course, body, top="import sys"))
    assert ("patched", SUMS, sums_line(course, "def close(")) in found


PATCHES = {
    "numpy.abs": "sys.modules['numpy'].abs = lambda *a: 0",
    "UNIT_ROUNDOFF": "sys.modules['tinyllm.grader.testing'].UNIT_ROUNDOFF[mx.float32] = 1e9",
    "testing.max": "sys.modules['tinyllm.grader.testing'].max = lambda *a, **k: 0",
    "builtins.chr": "sys.modules['builtins'].chr = lambda *a: True",
    "check.close": "sys.modules['tinyllm.grader.testing'].check.close = lambda *a, **k: None",
    "Check.exact": (
        "sys.modules['tinyllm.grader.testing'].Check.exact.__wrapped__.__code__ = (lambda s, *a: 0).__code__"
    ),
    "_pytest.runner.show_test_item": "sys.modules['_pytest.runner'].show_test_item = print",
    "test_sums.sample": "[m for n, m in sys.modules.items() if n.endswith('test_sums')][0].sample = print",
    "mlx.core.tan": "sys.modules['mlx.core'].tan = print",
}


def test_patches_made_while_running(course: Toy) -> None:
    value = run_time(course, "\n    ".join(PATCHES.values()), top="import sys")
    assert {(t["kind"], t["path"]) for t in value} == {("patched", SUMS)}
    for name, code in PATCHES.items():
        (found,) = [t for t in value if f"{name} was replaced" in t["what"]]
        if "print" not in code:
            assert found["line"] == sums_line(course, code), found


def test_reading_the_course_and_starting_programs(course: Toy) -> None:
    """And the command line holds no token to read: the lines after the assertion are reached."""
    reference = course.root / "reference/week1/sums.py"
    found = placed(
        run_time(
            course,
            "text = str(sys.argv) + (open('/proc/self/cmdline').read() if sys.platform == 'linux' else '')\n"
            "    assert 'lifeline' not in text and len(text) < 400, text\n"
            f"    open({str(reference)!r}).read()\n    subprocess.run(['true'])\n    sys._getframe(1)",
            top="import subprocess, sys",
        )
    )
    assert ("reference", SUMS, sums_line(course, str(reference))) in found
    assert ("process", SUMS, sums_line(course, "subprocess.run(")) in found
    assert ("reaches", SUMS, sums_line(course, "_getframe")) in found


def test_writing_to_the_pipe(course: Toy) -> None:
    """Lines of any kind are noticed, and results with the right token do not fit in between."""
    body = (
        "for fd in range(3, 30):\n"
        '        try: os.write(fd, b\'{"event": "finish", "outcome": "passed"}\' + bytes([10]))\n'
        "        except OSError: pass\n"
        "    f = sys._getframe()\n"
        "    while f.f_code.co_name != 'main' or 'job' not in f.f_locals: f = f.f_back\n"
        "    job = f.f_locals['job']\n"
        "    import json\n"
        "    event = {'token': job['token'], 'event': 'finish', 'outcome': 'passed'}\n"
        "    for i in ('float32', 'float16', 'bfloat16'):\n"
        "        event['id'] = f'test_sums.py::test_double[{i}]'\n"
        "        os.write(job['events'], (json.dumps(event) + chr(10)).encode())"
    )
    found = run_time(course, body, top="import os\nimport sys")
    assert {t["kind"] for t in found} == {"pipe", "reaches"}
    said = " ".join(t["what"] for t in found)
    assert "something that is no event was written to the grader's pipe" in said
    assert "a result that no check gave (finish)" in said


def test_the_reference_itself_has_nothing_of_the_kind() -> None:
    """What a good learner writes is not refused, on any day."""
    clone = Clone(installed_root())
    modules = [m for day in catalog.load(clone).days for m in day.modules]
    assert integrity.scan(clone.reference, integrity.reachable(clone.reference, modules)) == []


# ---- submissions


def test_a_submission_is_graded_with_this_clones_tests(course: Toy, tmp_path: Path) -> None:
    theirs = tmp_path / "their clone"
    shutil.copytree(course.root, theirs, ignore=shutil.ignore_patterns(".git"))
    (theirs / "exercises/week1/sums.py").write_text(toy.SUMS.replace("x + x", "x * x"))
    course.write("exercises/week1/sums.py", toy.SUMS_STUB)
    code, value = strict(course, "--submission", str(theirs))
    assert (code, value["days"][0]["verdict"]) == (1, "not passed")
    wrong, right = value["days"][0]["tasks"]
    assert right["outcome"] == "passed"
    assert wrong["results"][0]["failure"]["frames"][0]["path"] == "exercises/week1/sums.py"
    assert not (course.root / "progress/attempts.jsonl").exists()
    (theirs / "checkpoints/day1_1/test_sums.py").write_text(toy.TESTS_1.replace("2 * x64", "x64"))
    assert findings(course, theirs) == [("edited", "checkpoints/day1_1/test_sums.py", 11)]


def test_a_submission_of_an_older_version_is_no_trick(course: Toy, tmp_path: Path) -> None:
    theirs = tmp_path / "their clone"
    shutil.copytree(course.root, theirs, ignore=shutil.ignore_patterns(".git"))
    course.write("checkpoints/day1_1/test_sums.py", toy.TESTS_1 + "\n# newer\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "commit", "-qm", "newer", "--", "checkpoints"], cwd=course.root, check=True)
    prepared = strict_.prepare(course.clone, course.course, "HEAD", theirs)
    assert prepared.findings_for(course.course.day("1.1")) == ()


def test_only_the_exercises_are_enough_of_a_submission(course: Toy, tmp_path: Path) -> None:
    shutil.copytree(course.root / "exercises", tmp_path / "in" / "exercises")
    prepared = strict_.prepare(course.clone, course.course, "HEAD", tmp_path / "in" / "exercises")
    assert prepared.findings_for(course.course.day("1.1")) == ()
    assert prepared.submission.exercises == (tmp_path / "in" / "exercises").resolve()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--upstream", "HEAD"), "--upstream goes with --strict"),
        (("--strict", "--upstream", "nowhere"), "neither a file nor a commit"),
        (("--strict", "--upstream", "HEAD", "--submission", "checkpoints"), "no exercises/ folder"),
        (("--strict", "--solution", "reference"), "does not go with --solution reference"),
    ],
)
def test_usage(course: Toy, arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLLM_ROOT", str(course.root))
    monkeypatch.chdir(course.root)
    done = CliRunner().invoke(cli.main, ["day1.1", *arguments])
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.split())


# ---- the manifest


def test_a_manifest_sees_what_git_sees_and_not_line_ends(course: Toy) -> None:
    manifest = course.write("kept/upstream.sha256", baseline.manifest_text(course.clone))
    test = course.root / "checkpoints/day1_1/test_sums.py"
    test.write_bytes(test.read_bytes().replace(b"\n", b"\r\n"))
    found = integrity.compare(baseline.chosen(course.clone, str(manifest)), course.clone)
    assert found == []
    test.write_text("# gone\n")
    (edited,) = integrity.compare(baseline.chosen(course.clone, str(manifest)), course.clone)
    assert (edited.path, edited.line, edited.source) == ("checkpoints/day1_1/test_sums.py", 1, "# gone")


def test_an_edited_grader_and_edited_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that run are looked at, wherever the clone that is graded lies."""
    program, clone = tmp_path / "program", Clone(tmp_path / "clone")
    for name in ("grader/testing.py", "grader/tests/test_a.py", "kernels/build.py", "kernels/cpp/pool.cpp"):
        (program / name).parent.mkdir(parents=True, exist_ok=True)
        (program / name).write_text("a\nb\n")
    digests = baseline.parse(baseline.manifest_text(Clone(program)), "here")
    kept = baseline.Baseline("here", digests, lambda path: b"a\nb\n")
    monkeypatch.setattr(integrity, "installed_root", lambda: program)
    assert integrity.compare(kept, clone) == []
    (program / "grader/testing.py").write_text("a\nc\n")
    (program / "grader/tests/test_a.py").write_text("no grading depends on it\n")
    (program / "kernels/cpp/pool.cpp").unlink()
    (program / "kernels/more.py").write_text("x\n")
    found = [(f.kind, f.path, f.line) for f in integrity.compare(kept, clone)]
    assert sorted(found) == [
        ("added", "kernels/more.py", 1),
        ("edited", "grader/testing.py", 2),
        ("missing", "kernels/cpp/pool.cpp", 0),
    ]


def test_what_editors_leave_behind_is_no_finding(course: Toy) -> None:
    for path in (
        "checkpoints/day1_1/test_sums.py~",
        "checkpoints/day1_1/lesson.md",  # notes in a lesson
        "reference/.DS_Store",
        "reference/__pycache__/a.pyc",
        "tinyllm.egg-info/PKG-INFO",
        ".venv/lib/conftest.py",
        "progress/journal/day1.1.md",
    ):
        course.write(path, "")
    prepared = strict_.prepare(course.clone, course.course, "HEAD", None)
    assert prepared.findings_for(course.course.day("1.1")) == ()
