"""Snapshots on real repositories made with the git program."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tinyllm.grader import snapshots
from tinyllm.grader.clone import Clone
from tinyllm.grader.errors import EnvironmentFault, UsageError
from tinyllm.grader.snapshots import FILE, LINK, PROGRAM, REF, NoRepository


@pytest.fixture(autouse=True)
def _settings(tmp_path_factory, monkeypatch):
    """No settings, identity or variables of the machine that runs the tests."""
    home = tmp_path_factory.mktemp("home")
    for name in [n for n in os.environ if n.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "")


def git(folder: Path, *arguments: str, **options) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make(root: Path, files: dict[str, bytes] | None = None) -> Clone:
    """A clone's folders with some exercises, and no repository."""
    files = {"week1/rope.py": b"def rope(x):\n    return x\n", "__init__.py": b""} if files is None else files
    for path, data in files.items():
        (root / "exercises" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "exercises" / path).write_bytes(data)
    (root / "checkpoints").mkdir(parents=True)
    (root / "checkpoints" / "course.toml").write_text("")
    return Clone(root)


def commit_all(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "commit", "-qm", "first")


@pytest.fixture
def clone(tmp_path):
    """A clone with one commit of the learner's."""
    made = make(tmp_path / "clone")
    git(made.root, "init", "-q")
    commit_all(made.root)
    return made


def state_of(root: Path) -> dict[str, object]:
    """All that a snapshot may not change: what git says, every file git keeps, every file of the learner."""
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    refs = git(root, "for-each-ref", env=quiet).splitlines()
    told = {
        "status": git(root, "status", "--porcelain=v2", "--branch", "--untracked-files=all", env=quiet),
        "refs": [line for line in refs if not line.endswith(REF)],
    }
    for path in sorted(root.rglob("*")):
        if ".git/objects" in path.as_posix() or ".git/refs/tinyllm" in path.as_posix():
            continue
        status = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        told[str(path)] = (status.st_mode, None if path.is_dir() else status.st_mtime_ns, data)
    return told


def stored(clone: Clone) -> dict[str, tuple[int, bytes]]:
    return snapshots.files_of(clone, snapshots.take(clone, "test", {}))


# ---- what it holds


def test_the_commit_holds_the_exercises_below_their_folder(clone):
    made = snapshots.take(clone, "graded day 1.2", {"Day": "1.2", "Verdict": "passed"})
    names = git(clone.root, "ls-tree", "-r", "--name-only", made).split()
    assert names == ["exercises/__init__.py", "exercises/week1/rope.py"]
    assert git(clone.root, "rev-parse", REF).strip() == made
    assert git(clone.root, "log", "-1", "--format=%B", made).strip() == (
        "graded day 1.2\n\nDay: 1.2\nVerdict: passed"
    )
    assert git(clone.root, "log", "-1", "--format=%an <%ae>", made) == git(
        clone.root, "log", "-1", "--format=%cn <%ce>", made
    )


def test_nothing_of_the_learners_changes(clone):
    (clone.exercises / "week1/rope.py").write_text("staged\n")
    git(clone.root, "add", "-A")
    git(clone.root, "branch", "other")
    git(clone.root, "tag", "mark")
    (clone.exercises / "week1/rope.py").write_text("not staged\n")
    (clone.exercises / "new.py").write_text("untracked\n")
    (clone.root / "checkpoints/course.toml").unlink()
    before = state_of(clone.root)
    made = snapshots.take(clone, "one", {})
    assert [m.id for m in snapshots.history(clone)] == [made]
    assert snapshots.files_of(clone, made)["new.py"] == (FILE, b"untracked\n")
    assert state_of(clone.root) == before


def test_names_and_kinds_of_files(clone, tmp_path):
    odd = [
        "with space.py",
        "ünï©ode.py",
        "-dash.py",
        'quote"d.py',
        "back\\slash.py",
        "tab\t.py",
        "new\nline.py",
    ]
    for name in odd:
        (clone.exercises / name).write_text(name)
    # A Mac takes no name that is not UTF-8.
    raw = "plain.py" if sys.platform == "darwin" else os.fsdecode(b"latin-\xe9.py")
    (clone.exercises / raw).write_bytes(b"\xe9\xff\x00\r\n")
    program = clone.exercises / "run.sh"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.py").write_text("not ours")
    (clone.exercises / "link.py").symlink_to("week1/rope.py")
    (clone.exercises / "folder").symlink_to(tmp_path / "outside")
    (clone.exercises / "dangling").symlink_to("nowhere at all")
    (clone.exercises / "empty").mkdir()
    held = stored(clone)
    for name in odd:
        assert held[name] == (FILE, name.encode())
    assert held[raw] == (FILE, b"\xe9\xff\x00\r\n")
    assert held["run.sh"] == (PROGRAM, b"#!/bin/sh\n")
    assert held["link.py"] == (LINK, b"week1/rope.py")
    assert held["folder"] == (LINK, os.fsencode(tmp_path / "outside"))
    assert held["dangling"] == (LINK, b"nowhere at all")
    assert len(held) == len(odd) + 1 + 1 + 3 + 2
    assert git(clone.root, "fsck", "--strict", "--no-dangling") == ""


def test_names_that_other_systems_take_for_git_s_own(clone):
    """No file system here confuses them with .git, and they are the learner's work."""
    git(clone.root, "config", "core.protectHFS", "true")  # as on a Mac
    names = ("git~1", ".git.", ".git ", ".g\u200cit", "con.py", "week1:stream")
    for name in names:
        (clone.exercises / name).write_text(name)
    (clone.exercises / ".GIT").write_text("this one no repository can hold")
    assert set(stored(clone)) == {*names, "week1/rope.py", "__init__.py"}


def test_caches_and_inner_repositories(clone):
    for path in ("week1/__pycache__/rope.cpython-311.pyc", "old.pyc", ".pytest_cache/README.md", ".DS_Store"):
        (clone.exercises / path).parent.mkdir(exist_ok=True)
        (clone.exercises / path).write_bytes(b"cache")
    inner = clone.exercises / "experiment"
    inner.mkdir()
    git(inner, "init", "-q")
    (inner / "try.py").write_text("inner")
    commit_all(inner)
    (clone.exercises / ".gitignore").write_text("ignored.py\n")
    (clone.exercises / "ignored.py").write_text("still the learner's work")
    before = state_of(clone.root)
    held = stored(clone)
    assert set(held) == {"week1/rope.py", "__init__.py", "experiment/try.py", ".gitignore", "ignored.py"}
    assert held["experiment/try.py"] == (FILE, b"inner")
    assert state_of(clone.root) == before


def test_what_is_left_out_is_named(clone, monkeypatch):
    monkeypatch.chdir(clone.exercises)  # a socket's path must be short
    os.mkfifo(clone.exercises / "pipe")
    with socket.socket(socket.AF_UNIX) as server, (clone.exercises / "big.bin").open("wb") as big:
        big.truncate(snapshots.LARGEST + 1)
        server.bind("sock")
        (clone.exercises / ".gitmodules").symlink_to("week1/rope.py")
        snapshots.take(clone, "test", {"Day": "1.1"})
    [made] = snapshots.history(clone)
    assert made.trailers["Skipped"] == (
        ".gitmodules (a link of a name that git reserves), big.bin (larger than 16 MiB), "
        "pipe (not a regular file), sock (not a regular file)"
    )
    assert set(snapshots.files_of(clone, made.id)) == {"week1/rope.py", "__init__.py"}


@contextmanager
def unprivileged():
    """Without root's right to read everything, when the tests run as root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_unreadable_files_and_folders_are_left_out():
    with tempfile.TemporaryDirectory() as folder:
        clone = make(Path(folder) / "clone", {"a.py": b"a", "b.py": b"b", "locked/c.py": b"c"})
        Path(folder).chmod(0o755)
        (clone.exercises / "b.py").chmod(0)
        (clone.exercises / "locked").chmod(0)
        try:
            with unprivileged():
                files, skipped = snapshots.contents(clone)
        finally:
            (clone.exercises / "locked").chmod(0o755)
    assert files == {"a.py": FILE}
    assert skipped == {"b.py": "cannot be read", "locked/": "cannot be read"}


def test_no_exercises_and_empty_exercises(clone):
    git(clone.root, "rm", "-rqf", "exercises")
    assert not clone.exercises.exists()
    assert snapshots.take(clone, "none", {}) is None
    assert snapshots.history(clone) == []
    clone.exercises.mkdir()
    assert stored(clone) == {}


def test_an_unchanged_tree_makes_no_commit(clone):
    first = snapshots.take(clone, "one", {})
    assert snapshots.take(clone, "two", {}) == first
    (clone.exercises / "week1/rope.py").write_text("changed")
    second = snapshots.take(clone, "three", {})
    (clone.exercises / "week1/rope.py").chmod(0o755)
    third = snapshots.take(clone, "four", {})
    assert len({first, second, third}) == 3
    assert git(clone.root, "rev-list", "--parents", REF).split("\n")[:3] == [
        f"{third} {second}",
        f"{second} {first}",
        first,
    ]


# ---- in odd repositories


def test_before_the_first_commit(tmp_path):
    clone = make(tmp_path / "clone")
    git(clone.root, "init", "-q")
    before = state_of(clone.root)
    assert snapshots.take(clone, "one", {})
    assert state_of(clone.root) == before


def test_with_the_index_locked_and_head_detached(clone):
    git(clone.root, "checkout", "-q", "--detach")
    (clone.root / ".git/index.lock").write_bytes(b"")
    before = state_of(clone.root)
    assert snapshots.take(clone, "one", {})
    assert state_of(clone.root) == before


def test_settings_that_get_in_the_way_of_ordinary_commits(clone):
    for key, value in {
        "user.useConfigOnly": "true",
        "commit.gpgSign": "true",
        "gpg.program": "/nonexistent/gpg",
        "log.showSignature": "true",
        "core.splitIndex": "true",
        "core.logAllRefUpdates": "false",
        "i18n.commitEncoding": "ISO-8859-1",
        "color.ui": "always",
        "core.abbrev": "4",
    }.items():
        git(clone.root, "config", key, value)
    files = sorted(p.name for p in (clone.root / ".git").iterdir())
    assert snapshots.take(clone, "grüße", {"Day": "1.1"})
    [made] = snapshots.history(clone)
    assert (made.message, made.day) == ("grüße", "1.1")
    assert "\nencoding" not in git(clone.root, "cat-file", "commit", made.id)
    assert sorted(p.name for p in (clone.root / ".git").iterdir()) == files


def test_bytes_are_stored_as_they_are(clone):
    git(clone.root, "config", "core.autocrlf", "true")
    git(clone.root, "config", "core.safecrlf", "true")
    git(clone.root, "config", "filter.shout.clean", "tr a-z A-Z")
    (clone.exercises / ".gitattributes").write_bytes(b"*.py text eol=lf filter=shout ident\n")
    mixed = b"one\r\ntwo\nthree\r$Id$\r\n"
    (clone.exercises / "week1/rope.py").write_bytes(mixed)
    assert stored(clone)["week1/rope.py"] == (FILE, mixed)


@pytest.mark.parametrize("where", ["hooks", "elsewhere"])
def test_no_hook_runs(clone, tmp_path, where):
    hooks = clone.root / ".git/hooks" if where == "hooks" else tmp_path / "elsewhere"
    hooks.mkdir(exist_ok=True)
    if where == "elsewhere":
        git(clone.root, "config", "core.hooksPath", str(hooks))
    git(clone.root, "config", "core.fsmonitor", str(hooks / "monitor"))
    names = (
        "pre-commit",
        "commit-msg",
        "post-commit",
        "reference-transaction",
        "post-index-change",
        "monitor",
    )
    for name in names:
        (hooks / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/ran\nexit 1\n")
        (hooks / name).chmod(0o755)
    assert snapshots.take(clone, "one", {})
    assert len(snapshots.history(clone)) == 1
    assert not (tmp_path / "ran").exists()


def test_in_a_linked_worktree(clone, tmp_path):
    git(clone.root, "worktree", "add", "-q", "-b", "linked", str(tmp_path / "linked tree"))
    linked = Clone(tmp_path / "linked tree")
    (linked.exercises / "week1/rope.py").write_text("in the linked tree")
    before = state_of(clone.root), state_of(linked.root)
    made = snapshots.take(linked, "one", {})
    assert snapshots.files_of(clone, made)["week1/rope.py"] == (FILE, b"in the linked tree")
    assert (state_of(clone.root), state_of(linked.root)) == before


def test_in_a_subfolder_of_a_larger_repository(tmp_path):
    clone = make(tmp_path / "big repo" / "courses" / "tiny $HOME ~ llm")
    git(tmp_path / "big repo", "init", "-q")
    commit_all(tmp_path / "big repo")
    before = state_of(tmp_path / "big repo")
    made = snapshots.take(clone, "one", {})
    names = git(tmp_path / "big repo", "ls-tree", "-r", "--name-only", made).split()
    assert names == ["exercises/__init__.py", "exercises/week1/rope.py"]
    assert set(snapshots.files_of(clone, made)) == {"__init__.py", "week1/rope.py"}
    assert state_of(tmp_path / "big repo") == before


def test_in_a_repository_of_sha256(tmp_path):
    clone = make(tmp_path / "clone")
    git(clone.root, "init", "-q", "--object-format=sha256")
    made = snapshots.take(clone, "one", {})
    assert len(made) == 64
    assert snapshots.files_of(clone, made)["__init__.py"] == (FILE, b"")


def test_called_from_a_hook_of_another_repository(clone, tmp_path):
    """git gives hooks its own GIT_DIR and GIT_INDEX_FILE: they are not the clone's."""
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    (other / "file").write_text("x")
    code = f"""
from pathlib import Path
from tinyllm.grader import clone, snapshots
import os
assert "GIT_INDEX_FILE" in os.environ
snapshots.take(clone.Clone(Path({str(clone.root)!r})), "from a hook", {{}})
"""
    (tmp_path / "hook.py").write_text(code)
    hook = other / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\nexec {sys.executable} -P {tmp_path}/hook.py\n")
    hook.chmod(0o755)
    commit_all(other)
    assert git(other, "ls-tree", "-r", "--name-only", "HEAD").split() == ["file"]
    assert git(other, "for-each-ref", REF) == ""
    assert [s.message for s in snapshots.history(clone)] == ["from a hook"]


@pytest.mark.parametrize(
    "name",
    [
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_COMMON_DIR",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_QUARANTINE_PATH",
    ],
)
def test_variables_that_name_another_repository(clone, tmp_path, monkeypatch, name):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    below = {"GIT_WORK_TREE": "..", "GIT_OBJECT_DIRECTORY": ".git/objects", "GIT_INDEX_FILE": "index"}
    elsewhere = str((other / below.get(name, ".git")).resolve())
    before = state_of(clone.root), state_of(other)
    monkeypatch.setenv(name, elsewhere)
    made = snapshots.take(clone, "one", {})
    assert set(snapshots.files_of(clone, made)) == {"week1/rope.py", "__init__.py"}
    assert os.environ[name] == elsewhere
    monkeypatch.delenv(name)
    assert [s.id for s in snapshots.history(clone)] == [made]
    assert (state_of(clone.root), state_of(other)) == before
    assert not [p for p in (other / ".git/objects").rglob("*") if p.is_file()]


def test_garbage_collection_keeps_snapshots(clone):
    made = snapshots.take(clone, "one", {})
    git(clone.root, "gc", "-q", "--prune=now")
    assert "week1/rope.py" in snapshots.files_of(clone, made)
    (clone.exercises / "week1/rope.py").write_text("after")
    assert snapshots.take(clone, "two", {}) != made


# ---- no repository


def test_no_repository(tmp_path):
    clone = make(tmp_path / "clone")
    with pytest.raises(NoRepository, match=r"clone is not in a git repository\.$") as caught:
        snapshots.take(clone, "one", {})
    assert isinstance(caught.value, EnvironmentFault)
    with pytest.raises(NoRepository):
        snapshots.history(clone)


def test_a_repository_of_another_owner(clone, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch to play that part
    with pytest.raises(NoRepository, match="belongs to another user") as caught:
        snapshots.take(clone, "one", {})
    assert "\n" not in caught.value.message
    assert caught.value.next_step.startswith("git config --global --add safe.directory ")
    subprocess.run(caught.value.next_step.split(), check=True)
    assert snapshots.take(clone, "one", {})


def test_no_git_on_the_path(clone, tmp_path, monkeypatch):
    import git as _gitpython  # noqa: F401 -- loaded while there was a git

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoRepository, match=r"^git is not installed, or not on the PATH\.$"):
        snapshots.take(clone, "one", {})


def test_no_git_when_gitpython_is_loaded(clone, tmp_path):
    code = f"""
from pathlib import Path
from tinyllm.grader import clone, snapshots
try:
    snapshots.take(clone.Clone(Path({str(clone.root)!r})), "one", {{}})
except snapshots.NoRepository as error:
    print(error.message)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("git is not installed, or not on the PATH.\n", "")


def test_no_gitpython(clone, monkeypatch):
    monkeypatch.setitem(sys.modules, "git", None)  # Python's own way to say: not to be found
    with pytest.raises(NoRepository, match="GitPython is not installed"):
        snapshots.take(clone, "one", {})


def test_importing_the_module_does_not_import_gitpython():
    code = (
        "import sys; from tinyllm.grader import snapshots, restoring, diffing;"
        "print({'git', 'rich'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_broken_settings_and_refs_are_reported_in_a_line(clone):
    made = snapshots.take(clone, "one", {})
    (clone.exercises / "week1/rope.py").write_text("two")
    (clone.root / ".git" / REF).unlink()
    (clone.root / ".git/refs/tinyllm").rmdir()
    (clone.root / ".git/refs/tinyllm").write_text(made)
    started = time.monotonic()
    with pytest.raises(NoRepository, match=r"^git update-ref failed: fatal: .*$"):
        snapshots.take(clone, "two", {})
    assert time.monotonic() - started < snapshots.PATIENCE / 2
    with (clone.root / ".git/config").open("a") as file:
        file.write("[core\n")
    with pytest.raises(NoRepository, match=r"^git hash-object failed: fatal: bad config line"):
        snapshots.take(clone, "two", {})


def test_a_lock_that_stays(clone, monkeypatch):
    snapshots.take(clone, "one", {})
    (clone.exercises / "week1/rope.py").write_text("two")
    (clone.root / ".git" / f"{REF}.lock").write_bytes(b"")
    monkeypatch.setattr(snapshots, "PATIENCE", 0.2)
    with pytest.raises(NoRepository, match=r"history\.lock': File exists"):
        snapshots.take(clone, "two", {})
    (clone.root / ".git" / f"{REF}.lock").unlink()
    assert snapshots.take(clone, "two", {})


def test_a_store_that_cannot_be_written(clone, tmp_path, monkeypatch):
    for n in range(256):  # where git would make its folders
        if not (clone.root / f".git/objects/{n:02x}").exists():
            (clone.root / f".git/objects/{n:02x}").write_bytes(b"")
    (clone.exercises / "week1/rope.py").write_text("new")
    with pytest.raises(NoRepository, match=r"^git hash-object failed: error: .*$"):
        snapshots.take(clone, "one", {})
    assert snapshots.history(clone) == []


def test_no_room_for_temporary_files(clone, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(NoRepository, match=r"A snapshot could not be made or read: .*No such file"):
        snapshots.take(clone, "one", {})


# ---- many at once


def run_all(scripts: list[str]) -> list[str]:
    """Run programs at the same time; their outputs."""
    running = [
        subprocess.Popen([sys.executable, "-P", "-c", s], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for s in scripts
    ]
    results = [(*p.communicate(timeout=60), p.returncode) for p in running]
    assert all(code == 0 for _, _, code in results), results
    return [out.decode() for out, _, _ in results]


TAKE = """
import time
from pathlib import Path
from tinyllm.grader import clone, snapshots
import git
root = Path({root!r})
(Path({gate!r}) / "{n}").touch()
while len(list(Path({gate!r}).iterdir())) < {all}:
    time.sleep(0.001)
for turn in range({turns}):
    (root / "exercises/{n}.py.new").write_text(f"{n} {{turn}}")
    (root / "exercises/{n}.py.new").replace(root / "exercises/{n}.py")
    print(snapshots.take(clone.Clone(root), "by {n}", {{"Day": "1.1"}}))
"""


def test_eight_graders_at_once_in_eight_worktrees(clone, tmp_path):
    """They share one chain, and their trees differ: each must get its own commit."""
    (tmp_path / "gate").mkdir()
    scripts = []
    for n in range(8):
        root = tmp_path / f"tree{n}"
        git(clone.root, "worktree", "add", "-q", str(root), "--detach")
        scripts.append(TAKE.format(root=str(root), gate=str(tmp_path / "gate"), n=n, all=8, turns=1))
    made = [out.strip() for out in run_all(scripts)]
    assert len(set(made)) == 8
    assert set(git(clone.root, "rev-list", "--first-parent", REF).split()) == set(made)


def test_eight_graders_at_once_in_one_clone(clone, tmp_path):
    (tmp_path / "gate").mkdir()
    gate = str(tmp_path / "gate")
    scripts = [TAKE.format(root=str(clone.root), gate=gate, n=n, all=8, turns=3) for n in range(8)]
    made = [line for out in run_all(scripts) for line in out.split()]
    chain = git(clone.root, "rev-list", "--first-parent", REF).split()
    assert len(made) == 24
    assert set(made) == set(chain)  # nobody's snapshot was lost, none was made for nothing
    assert git(clone.root, "fsck", "--strict", "--no-dangling") == ""


# ---- reading


@pytest.fixture
def three(clone):
    """A clone with three snapshots, oldest first."""
    made = []
    for n, verdict in enumerate(("not passed", "not passed", "passed"), 1):
        (clone.exercises / "week1/rope.py").write_text(f"version {n}")
        made.append(
            snapshots.take(clone, f"graded day 1.{n}", {"Day": f"1.{n}", "Verdict": verdict, "Task": None})
        )
    return clone, made


def test_history(three):
    clone, made = three
    listed = snapshots.history(clone)
    assert [s.id for s in listed] == made[::-1]
    assert [s.number for s in listed] == [3, 2, 1]
    assert [s.day for s in listed] == ["1.3", "1.2", "1.1"]
    assert [s.verdict for s in listed] == ["passed", "not passed", "not passed"]
    assert [s.message for s in listed] == ["graded day 1.3", "graded day 1.2", "graded day 1.1"]
    assert all(s.id.startswith(s.short) and len(s.short) == 7 for s in listed)
    assert all(abs(datetime.now(UTC) - s.when) < timedelta(minutes=1) for s in listed)
    assert set(listed[0].trailers) == {"Day", "Verdict"}


@pytest.mark.parametrize(
    ("message", "trailers", "read", "found"),
    [
        ("", {}, "snapshot", {}),
        ("one\n\ntwo three\n", {}, "one\n\ntwo three", {}),
        ("one\n\nTwo: three", {}, "one", {"Two": "three"}),  # what looks like trailers is taken for them
        ("one\n\nTwo: three", {"Day": "1.1"}, "one\n\nTwo: three", {"Day": "1.1"}),
        ("Day: 9.9", {}, "Day: 9.9", {}),
        ("only", {"Odd": "two\nlines\0 and \ta tab", "None": None}, "only", {"Odd": "two lines and a tab"}),
        ("nul\0 and \udce9", {}, "nul and \\udce9", {}),
    ],
)
def test_messages_come_back(clone, message, trailers, read, found):
    snapshots.take(clone, message, trailers)
    [made] = snapshots.history(clone)
    assert (made.message, made.trailers) == (read, found)


def test_resolve(three):
    clone, made = three

    def found(text):
        return snapshots.resolve(clone, text).id

    assert [found(t) for t in ("latest", " Latest ", "-1", "3", made[2], made[2][:7].upper())] == [
        made[2]
    ] * 6
    assert [found("1"), found("-3")] == [made[0]] * 2
    assert found(made[1][:10]) == made[1]
    for text in ("0", "4", "-4", "-0", "", "x", "zzzz", made[0][:3] + "zz", "--all", "HEAD"):
        with pytest.raises(UsageError, match=r"There is no snapshot '.*'; they are numbered 1 to 3"):
            snapshots.resolve(clone, text)


def test_resolve_when_ids_begin_alike(clone):
    """Among 1500 ids some agree in four digits. Their dates are fixed, so it is always the same ones."""
    stream = "".join(f"commit {REF}\ncommitter a <a@b> {n} +0000\ndata 1\nx\n" for n in range(1500))
    git(clone.root, "fast-import", "--quiet", input=stream)
    listed = snapshots.history(clone)
    assert len(listed) == 1500
    assert len({s.short for s in listed}) == 1500
    heads = [s.id[:4] for s in listed]
    double = next(h for h in heads if heads.count(h) > 1)
    with pytest.raises(UsageError, match=f"'{double}' begins several ids: {double}"):
        snapshots.resolve(clone, double)


def test_resolve_without_snapshots(clone):
    with pytest.raises(UsageError, match="no snapshots yet"):
        snapshots.resolve(clone, "latest")


@pytest.mark.parametrize("text", ["deadbeef", "--all", "", "0" * 40])
def test_files_of_what_is_no_snapshot(clone, text):
    snapshots.take(clone, "one", {})
    with pytest.raises(UsageError, match="There is no snapshot"):
        snapshots.files_of(clone, text)


def test_short_ids_grow_until_they_differ():
    assert snapshots._distinct([]) == 7
    assert snapshots._distinct(["a" * 40, "a" * 9 + "b" * 31]) == 10
