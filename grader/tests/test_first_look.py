"""What a newcomer meets: the README's way to the first green day, the pictures, odd places for a clone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tinyllm.grader import catalog, cli, diffing, files
from tinyllm.grader.authoring import pictures, scratch, terminal
from tinyllm.grader.clone import Clone, installed_root
from tinyllm.grader.tests import toy
from tinyllm.kernels import build

CLONE = Clone(installed_root())
README = (CLONE.root / "README.md").read_text(encoding="utf-8")
# As under Windows Subsystem for Linux: spaces, a letter that is not ASCII, a folder called like a drive.
ODD = Path("mnt/c/Users/Some Näme/My Clones")


def block(name: str) -> list[str]:
    """The commands of a marked block of the README, without their comments."""
    found = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```\n<!-- end -->", README, re.S)
    assert found, name
    return [line.split("  #")[0].strip() for line in found[1].splitlines() if line.strip()]


def test_the_readmes_commands_lead_to_a_green_day(tmp_path: Path) -> None:
    """Typed one after another; the editor is a program that writes the reference's text into the stub."""
    clone = scratch.copy_of(CLONE, tmp_path / ODD / "tinyllm")
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "tinyllm-grade"
    program.write_text(
        f"#!{sys.executable} -P\nfrom tinyllm.grader.cli import main\nmain()\n", encoding="utf-8"
    )
    editor = programs / "editor"
    editor.write_text('#!/bin/sh\ncp "reference/${1#exercises/}" "$1"\n', encoding="utf-8")
    for file in (program, editor):
        file.chmod(0o755)
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")},
        "PATH": f"{programs}:{os.environ['PATH']}",
        "TINYLLM_ROOT": str(clone.root),
        "EDITOR": str(editor),
        "LC_ALL": "C.UTF-8",
    }
    commands = block("first green day")
    assert commands[0] == "tinyllm-grade day1.1"
    assert any(c.startswith("$EDITOR exercises/week1/attention.py") for c in commands)
    said = []
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=clone.root, env=environment,
            capture_output=True, text=True, encoding="utf-8", timeout=120, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stdout + done.stderr
        said.append((done.returncode, done.stdout))
    assert [code for code, _ in said] == [1, *[0] * (len(commands) - 1)]
    assert "Nothing is written yet" in said[0][1]
    graded = [text for command, (_, text) in zip(commands, said, strict=True) if command == commands[0]]
    assert "day1.1: passed" in graded[-1]
    assert "passed, 4/4 tasks" in said[-1][1]
    assert not any("\x1b" in text for _, text in said)  # a pipe has no colours
    assert max(len(line) for _, text in said[:1] + said[-1:] for line in text.splitlines()) <= 80


# ---- clones that came with CRLF, on a file system without cases


@pytest.fixture
def windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A clone in such a place whose text files all end their lines with CRLF."""
    clone = scratch.copy_of(CLONE, tmp_path / ODD / "tinyllm")
    for path in clone.root.rglob("*"):
        if ".git" not in path.parts and path.is_file() and b"\0" not in (data := path.read_bytes()):
            path.write_bytes(data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    monkeypatch.setenv("TINYLLM_ROOT", str(clone.root))
    monkeypatch.chdir(clone.root)
    return clone


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert "\r" not in done.stdout
    return done


def test_files_with_crlf_work(windows: Clone) -> None:
    module = windows.exercises / "week1/attention.py"
    stub = module.read_bytes()
    shutil.copyfile(windows.reference / "week1/attention.py", module)
    assert b"\r\n" in module.read_bytes()
    graded = run("day1.1")
    assert (graded.exit_code, "day1.1: passed" in graded.stdout) == (0, True), graded.output
    assert run("read", "day1.1").stdout.startswith("# ")
    assert "hint 1/" in run("hint", "day1.1", "--task", "1").stdout
    assert run("diff", "day1.1", "--task", "1", "--stat").stdout.count("+0    -0") == 1
    assert "passed, 4/4 tasks" in run("list").stdout
    assert run("reset", "day1.1").exit_code == 0
    assert module.read_bytes().replace(b"\r\n", b"\n") == stub.replace(b"\r\n", b"\n")
    course = catalog.load(windows)
    kernel = windows.exercises / "kernels/axpby.cpp"
    assert "[task" in kernel.read_text(encoding="utf-8")
    assert len(course.days) == len(catalog.load(CLONE).days)


def test_a_file_with_crlf_beside_one_with_lf(tmp_path: Path) -> None:
    """As a Windows editor saves it: no line of it shows as another one."""
    clone = scratch.copy_of(CLONE, tmp_path / ODD / "tinyllm")
    for module in ("week1/attention.py", "kernels/axpby.cpp"):
        data = (clone.reference / module).read_bytes()
        (clone.exercises / module).write_bytes(data.replace(b"\n", b"\r\n"))
    course = catalog.load(clone)
    for day, name in (("1.1", "attention.py"), ("1.7", "axpby.cpp")):
        stat = diffing.stat(diffing.compare(clone, course.day(day), None))
        assert {(added, removed) for symbol, added, removed in stat if name in symbol} == {(0, 0)}
    folder = clone.exercises / "kernels"
    mine, theirs = (build.read_sources(f, None, ["axpby.cpp"]) for f in (folder, clone.reference / "kernels"))
    assert mine["axpby.cpp"] == theirs["axpby.cpp"]


def test_a_drive_that_refuses_to_change_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows drives under Linux do, unless they are mounted with metadata."""

    def refuse(descriptor: int, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    path = tmp_path / "a file"
    path.write_text("old")
    files.write_atomically(path, b"new")
    assert path.read_text() == "new"


def test_no_two_files_differ_by_case_alone_and_windows_can_hold_them() -> None:
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=CLONE.root, capture_output=True, text=True, check=False
    )
    names = [n for n in done.stdout.split("\0") if n]
    if not names:
        pytest.skip("no git repository")
    assert len({n.lower() for n in names}) == len(names)
    reserved = re.compile(r'[<>:"|?*\\]|[ .]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
    assert [n for n in names for part in n.split("/") if reserved.search(part)] == []
    assert max(map(len, names)) < 120


def test_a_checkout_has_lf() -> None:
    text = (CLONE.root / ".gitattributes").read_text(encoding="utf-8")
    assert "* text=auto eol=lf" in text.splitlines()


# ---- pictures


def test_the_pictures_ask_nothing_of_the_network_and_are_all_in_the_readme() -> None:
    for picture in pictures.PICTURES:
        path = CLONE.root / pictures.FOLDER / f"{picture.name}.svg"
        svg = path.read_text(encoding="utf-8")
        assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
        assert "@font-face" not in svg
        assert f"]({pictures.FOLDER}/{picture.name}.svg)" in README
    kept = {p.stem for p in (CLONE.root / pictures.FOLDER).glob("*.svg")}
    assert kept == {p.name for p in pictures.PICTURES}


def test_what_differs_from_run_to_run_is_masked(tmp_path: Path) -> None:
    lines = pictures.masked(f"\n{tmp_path}/x: 12.3 s\n3 attempts, 17 min\n\n", tmp_path)
    assert lines == ["~/tinyllm/x: 0.6 s", "3 attempts, under 1 min"]
    one, other = (
        pictures.svg_of(pictures.PICTURES[0], ["\x1b[31mwrong\x1b[0m by " + number])
        for number in ("0.25", "0.26")
    )
    assert one != other
    assert pictures.comparable(one) == pictures.comparable(other)
    plain = pictures.svg_of(pictures.PICTURES[0], ["wrong by 0.25"])
    assert pictures.comparable(plain) != pictures.comparable(one)


def test_a_picture_shows_its_command_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way on a small course: run, write, compare, notice a change."""
    made = toy.make(tmp_path / "a clone with spaces")
    made.write("grader/.keep", "")
    picture = pictures.Picture("list", "", lambda clone, course: None, ("list",), 0)
    monkeypatch.setattr(pictures, "PICTURES", (picture,))
    assert pictures.write(made.clone) == ["grader/pictures/list.svg"]
    svg = (made.root / "grader/pictures/list.svg").read_text(encoding="utf-8")
    assert "tinyllm-grade&#160;list" in svg
    assert "Toys" in svg
    assert pictures.differs(made.clone) == []
    made.write("checkpoints/course.toml", toy.COURSE.replace("Toys", "Games"))
    (problem,) = pictures.differs(made.clone)
    assert "grader/pictures/list.svg is not what tinyllm-grade list shows now" in problem
    assert "Games" in problem


def test_a_terminal_forgets_spinners() -> None:
    written = (
        "\x1b[1mday1.1\x1b[0m\n\x1b[?25l\x1b[32m⠋\x1b[0m starting\r\x1b[2K  ✓ 1\n"
        "\x1b[32m⠙\x1b[0m more\r\x1b[2K\x1b[1A\x1b[2Kdone\n\x1b[?25h"
    )
    assert terminal.lines(written) == ["\x1b[1mday1.1\x1b[0m", "done", ""]
