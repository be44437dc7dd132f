"""Comparing a learner's tree with the reference, and how the comparison reads."""

from __future__ import annotations

import io
import os
import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.grader import catalog, diffing
from tinyllm.grader.catalog import Symbol
from tinyllm.grader.clone import Clone
from tinyllm.grader.diffing import Row, Status, SymbolDiff, compare, difftool, render, rows, stat, unified
from tinyllm.grader.errors import EnvironmentFault, SpecError, UsageError
from tinyllm.grader.symbols import Segment

REFERENCE = '''\
"""Norms."""

import mlx.core as mx


def silu(x):
    """x * sigmoid(x)"""
    return x * mx.sigmoid(x)


class Norm:
    """Divides by the root of the mean square."""

    def __init__(self, eps):
        self.eps = eps

    def __call__(self, x):
        """One pass."""
        wide = x.astype(mx.float32)
        mean = mx.mean(wide * wide, axis=-1, keepdims=True)
        return (wide * mx.rsqrt(mean + self.eps)).astype(x.dtype)
'''
STUB = REFERENCE.replace("return x * mx.sigmoid(x)", 'raise NotImplementedError("day 1.4, task 1: silu")')
KERNEL = """\
// [task 1
float one() { return 1; }
// task 1]
int kept;
// [task 1
float two() { return 2; }
// task 1]
// [task 2
float three() { return 3; }
// task 2]
"""
SPEC = """
id = "1.4"
title = "Norms"
summary = "You divide."
modules = ["week1/norm.py", "kernels/k.cpp"]
[[tasks]]
id = 1
title = "one"
goal = "one"
checks = 1
symbols = ["week1/norm.py::silu", "kernels/k.cpp::both"]
hints = []
[[tasks]]
id = 2
title = "two"
goal = "two"
checks = 1
symbols = ["week1/norm.py::Norm", "week1/norm.py::Norm.__call__", "kernels/k.cpp::three"]
hints = []
"""


@pytest.fixture
def clone(tmp_path):
    """A clone where nothing is done yet but Norm, which is as in the reference."""
    made = Clone(tmp_path / "clone")
    for path, text in {
        "checkpoints/course.toml": 'title = "a course"\n[weeks]\n1 = "a week"\n',
        "checkpoints/day1_4/checkpoint.toml": SPEC,
        "exercises/week1/norm.py": STUB,
        "reference/week1/norm.py": REFERENCE,
        "exercises/kernels/k.cpp": re.sub(r"(?m)^float.*$", "// day 1.4: write this part", KERNEL),
        "reference/kernels/k.cpp": KERNEL,
    }.items():
        (made.root / path).parent.mkdir(parents=True, exist_ok=True)
        (made.root / path).write_text(text)
    return made


def day(clone: Clone) -> catalog.Day:
    return catalog.load(clone).day("1.4")


def edit(clone: Clone, old: str, new: str, path: str = "exercises/week1/norm.py") -> None:
    text = (clone.root / path).read_text()
    assert text.count(old) == 1
    (clone.root / path).write_text(text.replace(old, new))


def found(clone: Clone, name: str) -> SymbolDiff:
    return next(d for d in compare(clone, day(clone)) if d.symbol.name == name)


def pair(left: str | None, right: str, status: Status = Status.DIFFERENT, first: int = 1) -> SymbolDiff:
    learner = None if left is None else Segment(first, first + left.count("\n"), left)
    reference = Segment(first + 5, first + 5 + right.count("\n"), right)
    return SymbolDiff(1, Symbol("week1/norm.py", "f"), status, learner, reference)


# ---- what is compared


def test_every_symbol_of_the_day(clone):
    seen = [(d.task, str(d.symbol), d.status) for d in compare(clone, day(clone))]
    assert seen == [
        (1, "week1/norm.py::silu", Status.NOT_STARTED),
        (1, "kernels/k.cpp::task 1, part 1", Status.NOT_STARTED),
        (1, "kernels/k.cpp::task 1, part 2", Status.NOT_STARTED),
        (2, "week1/norm.py::Norm", Status.SAME),
        (2, "week1/norm.py::Norm.__call__", Status.SAME),
        (2, "kernels/k.cpp::three", Status.NOT_STARTED),
    ]
    assert {d.task for d in compare(clone, day(clone), 2)} == {2}
    with pytest.raises(UsageError, match="no task 3"):
        compare(clone, day(clone), 3)


def test_line_numbers_are_those_of_each_file(clone):
    edit(clone, '"""Norms."""', '"""Norms."""\n\n# mine\n')
    diff = found(clone, "silu")
    assert (diff.learner.start, diff.learner.end) == (9, 11)
    assert (diff.reference.start, diff.reference.end) == (6, 8)
    assert (diff.learner_path, diff.reference_path) == ("exercises/week1/norm.py", "reference/week1/norm.py")


def test_a_change_makes_it_different(clone):
    edit(clone, "mx.rsqrt(mean + self.eps)", "mx.rsqrt(mean)")
    assert found(clone, "Norm").status is Status.DIFFERENT
    assert found(clone, "Norm.__call__").status is Status.DIFFERENT


def test_trailing_spaces_and_line_endings_are_no_change(clone):
    path = clone.exercises / "week1/norm.py"
    path.write_bytes(b"\xef\xbb\xbf" + REFERENCE.replace("\n", "  \r\n").encode())
    assert {found(clone, "silu").status, found(clone, "Norm").status} == {Status.SAME}


def test_a_class_is_not_started_while_all_its_methods_raise(clone):
    edit(clone, "        self.eps = eps\n", "        raise NotImplementedError\n")
    assert found(clone, "Norm").status is Status.DIFFERENT
    text = (clone.exercises / "week1/norm.py").read_text()
    body = text.index("        wide =")
    (clone.exercises / "week1/norm.py").write_text(text[:body] + "        raise NotImplementedError\n")
    assert found(clone, "Norm").status is Status.NOT_STARTED


def test_broken_and_unreadable_files(clone):
    edit(clone, "def silu(x):", "def silu(x:")
    diff = found(clone, "silu")
    assert diff.status is Status.DIFFERENT
    assert diff.learner.text.startswith("def silu(x:\n")
    (clone.exercises / "week1/norm.py").write_bytes(b"\xff\xfe\x00def silu(x):\n    return '\xff'\n")
    assert found(clone, "Norm").status is Status.MISSING
    (clone.exercises / "week1/norm.py").write_bytes(b"def silu(x):\n    return '\xff'\n")
    assert found(clone, "silu").learner.text.endswith("'\ufffd'")


def test_missing_symbols_files_and_regions(clone):
    edit(clone, "def silu", "def silu2")
    assert found(clone, "silu").status is Status.MISSING
    (clone.exercises / "week1/norm.py").unlink()
    (clone.exercises / "kernels/k.cpp").unlink()
    assert {d.status for d in compare(clone, day(clone))} == {Status.MISSING}
    (clone.exercises / "week1/norm.py").mkdir()
    assert found(clone, "silu").learner is None


def test_regions_of_kernels(clone):
    (clone.exercises / "kernels/k.cpp").write_text(KERNEL.replace("return 2", "return 3"))
    parts = [d for d in compare(clone, day(clone), 1) if d.symbol.module == "kernels/k.cpp"]
    assert [d.status for d in parts] == [Status.SAME, Status.DIFFERENT]
    assert (parts[1].learner.start, parts[1].reference.start) == (5, 5)
    assert "-float two() { return 3; }\n+float two() { return 2; }\n" in unified(parts[1])


@pytest.mark.parametrize(
    ("old", "new", "path", "says"),
    [
        ("def silu", "def other", "week1/norm.py", r"reference/week1/norm\.py has no silu; day1\.4 lists it"),
        (
            "// [task 2",
            "// nothing",
            "kernels/k.cpp",
            r"reference/kernels/k\.cpp has no region marked \[task 2",
        ),
    ],
)
def test_a_reference_that_lacks_what_the_day_lists(clone, old, new, path, says):
    edit(clone, old, new, f"reference/{path}")
    with pytest.raises(SpecError, match=says):
        compare(clone, day(clone))
    (clone.reference / path).unlink()
    with pytest.raises(SpecError, match=f"reference/{path} is missing"):
        compare(clone, day(clone))


# ---- unified


def test_unified(clone):
    edit(clone, "mean + self.eps", "mean")
    edit(clone, '"""Norms."""', '"""Norms."""\n')
    assert unified(found(clone, "Norm.__call__")) == (
        "--- exercises/week1/norm.py\n"
        "+++ reference/week1/norm.py\n"
        "@@ -19,4 +18,4 @@\n"
        '         """One pass."""\n'
        "         wide = x.astype(mx.float32)\n"
        "         mean = mx.mean(wide * wide, axis=-1, keepdims=True)\n"
        "-        return (wide * mx.rsqrt(mean)).astype(x.dtype)\n"
        "+        return (wide * mx.rsqrt(mean + self.eps)).astype(x.dtype)\n"
    )


def test_unified_of_the_same_and_of_the_missing():
    assert unified(pair("a\nb", "a\nb", Status.SAME)) == ""
    assert unified(pair(None, "a\nb", Status.MISSING)).endswith("@@ -0,0 +6,2 @@\n+a\n+b\n")


LINES = st.lists(
    st.sampled_from(["", "    x = 1", "    y = x", "return", "# note", "é"]), min_size=1, max_size=30
)


@given(LINES, LINES)
def test_unified_applies_as_a_patch(left, right):
    """What was removed and added, read back, turns one into the other, at the lines that it names."""
    diff = pair("\n".join(left), "\n".join(right), first=4)
    out, at = [], 4
    for line in unified(diff).split("\n")[2:-1]:
        if line.startswith("@@"):
            start, count = map(int, re.match(r"@@ -(\d+),(\d+) ", line).groups())
            begin = start if count else start + 1
            out += left[at - 4 : begin - 4]
            at = begin
            assert int(re.search(r"\+(\d+),", line)[1]) in (len(out) + 9, len(out) + 8)
        elif line[0] == "+":
            out.append(line[1:])
        else:
            assert left[at - 4] == line[1:]
            out += [line[1:]] if line[0] == " " else []
            at += 1
    assert out + left[at - 4 :] == right


def test_git_applies_it(clone):
    edit(clone, 'raise NotImplementedError("day 1.4, task 1: silu")', "y = x\n    return y")
    edit(clone, "mean + self.eps", "mean")
    patch = unified(found(clone, "silu")) + unified(found(clone, "Norm.__call__"))
    run = ["git", "apply", "--unidiff-zero", "-p1", "--directory=exercises"]
    subprocess.run(run, cwd=clone.root, input=patch.encode(), check=True)
    assert (clone.exercises / "week1/norm.py").read_text() == REFERENCE


# ---- side by side


def test_rows(clone):
    left = "def f(x):\n    total = sum(x)\n    extra = 1\n    return total / len(x)"
    right = "def f(x):\n    total = mx.sum(x)\n    return total / len(x)\n    # end"
    assert rows(pair(left, right)) == [
        Row(1, "def f(x):", " ", 6, "def f(x):"),
        Row(2, "    total = sum(x)", "|", 7, "    total = mx.sum(x)", (), ((12, 15),)),
        Row(3, "    extra = 1", "<", None, ""),
        Row(4, "    return total / len(x)", " ", 8, "    return total / len(x)"),
        Row(None, "", ">", 9, "    # end"),
    ]


def test_edited_lines_face_each_other():
    """Among replaced lines the alike ones are partners, wherever they stand."""
    left = "a = first(x)\nc = third(x, y)"
    right = "new = something else entirely\na = first(x, 2)\nmore = of the same kind\nc = third(y)"
    marks = [(r.left_no, r.mark, r.right_no) for r in rows(pair(left, right))]
    assert marks == [(None, ">", 6), (1, "|", 7), (None, ">", 8), (2, "|", 9)]
    swapped = [(r.left, r.mark) for r in rows(pair(right, left))]
    assert [mark for _, mark in swapped] == ["<", "|", "<", "|"]


def test_changed_columns():
    [row] = rows(pair("return a + b * c", "return a - bb * c"))
    assert [row.left[i:j] for i, j in row.left_changes] == ["+", "b"]
    assert [row.right[i:j] for i, j in row.right_changes] == ["-", "bb"]


def test_a_very_long_replacement_is_paired_in_order():
    left = "\n".join(f"left {n}" for n in range(150))
    right = "\n".join(f"right {n}" for n in range(120))
    table = rows(pair(left, right))
    assert [r.mark for r in table] == ["|"] * 120 + ["<"] * 30


@given(LINES, LINES)
def test_rows_hold_every_line_once_and_in_order(left, right):
    table = rows(pair("\n".join(left), "\n".join(right)))
    assert [r.left for r in table if r.left_no] == left
    assert [r.right for r in table if r.right_no] == right
    assert [r.left_no for r in table if r.left_no] == list(range(1, len(left) + 1))
    assert [r.right_no for r in table if r.right_no] == list(range(6, len(right) + 6))
    for row in table:
        assert (row.mark == " ") == (bool(row.left_no and row.right_no) and row.left == row.right)
        assert (row.left_no is None, row.right_no is None) == (row.mark == ">", row.mark == "<")
        assert all(0 <= i < j <= len(row.left) for i, j in row.left_changes)


# ---- counts


def test_stat(clone):
    edit(clone, "mean + self.eps", "mean")
    (clone.exercises / "kernels/k.cpp").unlink()
    assert stat(compare(clone, day(clone))) == [
        ("week1/norm.py::silu", 1, 1),
        ("kernels/k.cpp::task 1, part 1", 3, 0),
        ("kernels/k.cpp::task 1, part 2", 3, 0),
        ("week1/norm.py::Norm", 1, 1),
        ("week1/norm.py::Norm.__call__", 1, 1),
        ("kernels/k.cpp::three", 3, 0),
    ]


@given(LINES, LINES)
def test_stat_agrees_with_unified(left, right):
    diff = pair("\n".join(left), "\n".join(right))
    signs = [line[0] for line in unified(diff).split("\n")[2:-1]]
    assert stat([diff]) == [("week1/norm.py::f", signs.count("+"), signs.count("-"))]


# ---- on the screen


def shown(diffs: list[SymbolDiff], width: int) -> str:
    """What a terminal of this width gets, without its colours."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=True, color_system="truecolor", legacy_windows=False
    )
    console.print(render(diffs, width=width, colour=True))
    assert "\x1b[" in out.getvalue()
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def test_plain_and_narrow(clone):
    edit(clone, "mean + self.eps", "mean")
    text = render(compare(clone, day(clone)), width=80, colour=False)
    assert "\x1b" not in text
    assert unified(found(clone, "Norm")) in text
    assert "task 1  week1/norm.py  silu: not started; the reference:\n6 def silu(x):\n" in text
    assert text.count('"""x * sigmoid(x)"""') == 1
    assert "raise NotImplementedError" not in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert render([], width=80, colour=False) == ""


def test_the_same_is_said_and_not_shown(clone):
    text = render([found(clone, "Norm")], width=200, colour=False)
    assert text == "task 2  week1/norm.py  Norm: the same as the reference\n"


def test_plain_lines_stay_whole(clone):
    long = "x = " + " + ".join(["something"] * 30)
    assert f"6 {long}\n" in render([pair(None, long, Status.MISSING)], width=80, colour=False)


def test_side_by_side():
    left = "def f(x):\n    total = sum(x)\n    extra = 1\n    return total"
    right = "def f(x):\n    total = mx.sum(x)\n    return total\n"
    text = render([pair(left, right, first=7)], width=110, colour=False)
    assert text == (
        "task 1  week1/norm.py  f: yours and the reference\n"
        "   exercises/week1/norm.py                                 reference/week1/norm.py\n"
        " 7 def f(x):                                            12 def f(x):\n"
        " 8     total = sum(x)                                 | 13     total = mx.sum(x)\n"
        " 9     extra = 1                                      <\n"
        "10     return total                                     14     return total\n"
        "                                                      > 15\n"
    )


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("width", [110, 111, 160])
def test_no_line_is_wider_than_the_terminal(width, colour):
    left = "def f(x):\n\ty = '" + "漢字" * 60 + "'\n    return " + "x + " * 60 + "x\n    z = '🙂🙂e\u0301'"
    right = left.replace("x + x", "x * x", 1).replace("漢", "汉", 1).replace("🙂", "", 1)
    from rich.cells import cell_len

    diffs = [pair(left, right), pair("pass", left, Status.NOT_STARTED)]
    text = shown(diffs, width) if colour else render(diffs[:1], width=width, colour=False)
    assert max(cell_len(line) for line in text.split("\n")) <= width
    joined = "".join(re.findall("[漢字汉]", text))
    assert joined.count("漢") + joined.count("汉") == 120 + (60 if colour else 0)


def test_colour_says_nothing_that_the_text_does_not():
    left = "def f(x):\n    total = sum(x)\n    extra = 1\n    return total"
    right = "def f(x):\n    total = mx.sum(x)\n    return total"
    diffs = [pair(left, right)]
    plain = render(diffs, width=120, colour=False)
    coloured = "\n".join(line.rstrip() for line in shown(diffs, 120).split("\n")).rstrip("\n") + "\n"
    assert coloured == plain


def test_narrow_with_colour(clone):
    edit(clone, "mean + self.eps", "mean")
    diffs = [found(clone, "Norm"), found(clone, "silu"), found(clone, "three")]
    text = shown(diffs, 100)
    assert unified(diffs[0]) in text
    assert "6 def silu(x):\n" in re.sub(" +\n", "\n", text)
    assert "9 float three() { return 3; }" in text


def test_long_stretches_of_the_same_are_left_out():
    same = "\n".join(f"line {n}" for n in range(30))
    text = render([pair(f"{same}\nold = 1", f"{same}\nnew = 1")], width=110, colour=False)
    assert "... 24 lines the same ..." in text
    assert "line 2 " in text
    assert "line 3 " not in text
    assert "line 27" in text
    short = "\n".join(f"line {n}" for n in range(8))
    assert "the same ..." not in render(
        [pair(f"{short}\nold = 1", f"{short}\nnew = 1")], width=110, colour=False
    )


def test_escape_codes_in_a_source_do_not_reach_the_terminal():
    evil = "x = '\x1b[2J\x1b]0;title\x07 \x9b31m \x7f \x00'\n\ty = 1"
    for width in (80, 120):
        for status in (Status.DIFFERENT, Status.NOT_STARTED):
            text = render([pair(evil, evil + " # ref", status)], width=width, colour=False)
            assert not set(text) & ({chr(n) for n in range(32)} - {"\n"} | {"\x7f", "\x9b"})
            assert "␛[2J" in text
            assert "    y = 1" in text
        coloured = shown([pair(evil, evil + " # ref")], width)
        assert not set(coloured) & ({chr(n) for n in range(32)} - {"\n"})


def test_highlighting_keeps_the_lines():
    code = "\n\ndef f():\n    return '\u2028 \ufeff'\n\n\n"
    for source in (code, "\ufeffx = 1", ""):
        segment = Segment(1, 1 + source.count("\n"), source)
        painted = diffing._paint(pair(source, source), segment, True)
        assert [text.plain for text in painted] == [line.rstrip() for line in source.split("\n")]


# ---- git difftool


@pytest.fixture
def _git_home(tmp_path, monkeypatch):
    for name in [n for n in os.environ if n.startswith("GIT_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def configure(*pairs: str) -> None:
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        subprocess.run(["git", "config", "--global", key, value], check=True)


@pytest.mark.usefixtures("_git_home")
def test_difftool_runs_the_configured_tool(clone, tmp_path):
    log = tmp_path / "log"
    configure(
        "diff.tool",
        "mine",
        "difftool.mine.cmd",
        f'echo "$LOCAL $REMOTE" >> {log}; cat "$LOCAL" "$REMOTE" >> {log}',
    )
    (clone.exercises / "kernels/k.cpp").unlink()
    difftool(clone, day(clone))
    text = log.read_text()
    assert text.startswith("exercises/week1/norm.py reference/week1/norm.py\n" + STUB + REFERENCE)
    assert "/dev/null reference/kernels/k.cpp\n" in text


@pytest.mark.usefixtures("_git_home")
@pytest.mark.parametrize("where", ["merge.tool", "GIT_DIFF_TOOL", "repository"])
def test_difftool_finds_its_tool_as_git_does(clone, tmp_path, monkeypatch, where):
    configure("difftool.mine.cmd", f"echo ran >> {tmp_path}/log")
    if where == "merge.tool":
        configure("merge.tool", "mine")
    elif where == "GIT_DIFF_TOOL":
        monkeypatch.setenv("GIT_DIFF_TOOL", "mine")
    else:
        subprocess.run(["git", "init", "-q"], cwd=clone.root, check=True)
        subprocess.run(["git", "config", "diff.tool", "mine"], cwd=clone.root, check=True)
    difftool(clone, day(clone))
    assert (tmp_path / "log").read_text() == "ran\nran\n"


@pytest.mark.usefixtures("_git_home")
def test_difftool_without_a_tool(clone, monkeypatch, tmp_path, capfd):
    with pytest.raises(EnvironmentFault, match="no diff tool configured") as caught:
        difftool(clone, day(clone))
    assert caught.value.next_step.startswith("git config --global diff.tool ")
    configure("diff.tool", "mine", "difftool.mine.path", "/nonexistent/tool", "difftool.mine.cmd", "exit 127")
    with pytest.raises(EnvironmentFault, match="git difftool ended with exit code 128"):
        difftool(clone, day(clone))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="git is not installed"):
        difftool(clone, day(clone))
