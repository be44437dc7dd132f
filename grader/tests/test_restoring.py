"""Restoring and resetting, on real files and repositories."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyllm.grader import catalog, restoring, snapshots
from tinyllm.grader.clone import Clone
from tinyllm.grader.errors import EnvironmentFault, UsageError
from tinyllm.grader.restoring import reset, restore
from tinyllm.grader.snapshots import LINK, PROGRAM, NoRepository

FILES = {"__init__.py": b"", "week1/rope.py": b"def rope(): ...\n", "week1/gqa.py": b"def gqa(): ...\n"}


@pytest.fixture(autouse=True)
def _settings(tmp_path_factory, monkeypatch):
    for name in [n for n in os.environ if n.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def write(clone: Clone, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        (clone.exercises / path).parent.mkdir(parents=True, exist_ok=True)
        (clone.exercises / path).write_bytes(data)


@pytest.fixture
def bare(tmp_path):
    """A clone's folders, in no repository."""
    clone = Clone(tmp_path / "clone")
    write(clone, FILES)
    return clone


@pytest.fixture
def clone(bare):
    subprocess.run(["git", "init", "-q"], cwd=bare.root, check=True)
    return bare


def day(clone: Clone, *modules: str) -> catalog.Day:
    folder = clone.checkpoints / "day1_2"
    folder.mkdir(parents=True, exist_ok=True)
    (clone.checkpoints / "course.toml").write_text('title = "a course"\n[weeks]\n1 = "a week"\n')
    spec = f'id = "1.2"\ntitle = "a day"\nsummary = "of a test"\nmodules = {list(modules)}\ntasks = []\n'
    (folder / "checkpoint.toml").write_text(spec)
    return catalog.load(clone).days[0]


def tree(clone: Clone) -> dict[str, object]:
    """Everything below exercises/, caches included: {path: (kind, whether executable, bytes or target)}."""
    found = {}
    for path in clone.exercises.rglob("*"):
        mode = path.lstat().st_mode
        data = path.readlink() if path.is_symlink() else path.read_bytes() if stat.S_ISREG(mode) else None
        found[path.relative_to(clone.exercises).as_posix()] = (stat.S_IFMT(mode), mode & stat.S_IXUSR, data)
    return found


def take(clone: Clone) -> str:
    return snapshots.take(clone, "test", {})


# ---- restore


def test_everything_comes_back(clone, tmp_path):
    (clone.exercises / "run.sh").write_text("#!/bin/sh\n")
    (clone.exercises / "run.sh").chmod(0o755)
    (clone.exercises / "link").symlink_to("week1/rope.py")
    first, before = take(clone), tree(clone)
    (clone.exercises / "run.sh").chmod(0o644)
    (clone.exercises / "link").unlink()
    (clone.exercises / "week1/gqa.py").unlink()
    write(clone, {"week1/rope.py": b"rewritten", "week9/deep/new.py": b"new"})
    second, after = take(clone), tree(clone)

    change = restore(clone, first)
    assert tree(clone) == before
    assert change.written == ("link", "run.sh", "week1/gqa.py", "week1/rope.py")
    assert change.removed == ("week9/deep/new.py",)
    assert change.snapshot == second  # the state before was recorded already
    assert change

    restore(clone, change.snapshot)
    assert tree(clone) == after


def test_the_state_before_is_recorded(clone):
    first = take(clone)
    write(clone, {"week1/rope.py": b"never graded"})
    change = restore(clone, first)
    assert snapshots.files_of(clone, change.snapshot)["week1/rope.py"][1] == b"never graded"
    newest = snapshots.history(clone)[0]
    assert newest.id == change.snapshot
    assert newest.message == f"before restoring from {first[:7]}"
    assert newest.trailers == {"Event": "restore"}


def test_what_is_right_already_is_not_touched(clone):
    first = take(clone)
    before = (clone.exercises / "week1/rope.py").stat()
    change = restore(clone, first)
    assert not change
    assert (change.written, change.removed, change.snapshot) == ((), (), first)
    after = (clone.exercises / "week1/rope.py").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_one_day_only(clone):
    first = take(clone)
    write(clone, {"week1/rope.py": b"1", "week1/gqa.py": b"2", "week1/new.py": b"3"})
    change = restore(clone, first, day(clone, "week1/rope.py", "week1/new.py"))
    assert (change.written, change.removed) == (("week1/rope.py",), ("week1/new.py",))
    assert (clone.exercises / "week1/rope.py").read_bytes() == FILES["week1/rope.py"]
    assert (clone.exercises / "week1/gqa.py").read_bytes() == b"2"
    assert not (clone.exercises / "week1/new.py").exists()
    assert snapshots.history(clone)[0].day == "1.2"
    with pytest.raises(UsageError, match=r"has no file of day1\.2"):
        restore(clone, first, day(clone, "week7/unknown.py"))


def test_unknown_snapshots_and_missing_repositories(clone):
    with pytest.raises(UsageError):
        restore(clone, "0" * 40)
    shutil.rmtree(clone.root / ".git")
    with pytest.raises(NoRepository):
        restore(clone, "0" * 40)


def test_a_deleted_exercises_folder(clone):
    first, before = take(clone), tree(clone)
    shutil.rmtree(clone.exercises)
    change = restore(clone, first)
    assert tree(clone) == before
    assert change.snapshot is None


def test_caches_and_empty_folders(clone):
    first = take(clone)
    write(clone, {"week9/new.py": b"x", "week9/__pycache__/new.cpython-311.pyc": b"", "week8/a/b/c.py": b""})
    write(clone, {"week1/__pycache__/gqa.cpython-311.pyc": b"kept", ".pytest_cache/x": b""})
    (clone.exercises / "mine").mkdir()
    restore(clone, first)
    left = tree(clone)
    assert "week8" not in left
    assert "mine" in left
    assert "week9/__pycache__" in left
    assert {"week1/__pycache__/gqa.cpython-311.pyc", ".pytest_cache/x"} <= set(left)


def test_old_bytecode_is_not_taken_for_current(clone):
    """Same length, same second: Python would go on running what it compiled before."""
    module = clone.exercises / "week1/rope.py"
    stamp = (1_700_000_000, 1_700_000_000)
    keep = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    }

    def imported():
        run = [sys.executable, "-P", "-c", "import sys; sys.path[:0] = ['week1']; import rope; print(rope.x)"]
        done = subprocess.run(run, cwd=clone.exercises, env=keep, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    module.write_text("x = 1")
    first = take(clone)
    module.write_text("x = 2")
    os.utime(module, stamp)
    assert imported() == "2"
    assert list((clone.exercises / "week1/__pycache__").iterdir())
    restore(clone, first)
    os.utime(module, stamp)
    assert imported() == "1"


def test_files_become_folders_and_back(clone):
    write(clone, {"thing": b"a file", "other/__pycache__/x.pyc": b"", "other/a.py": b"a"})
    first, before = take(clone), tree(clone)
    (clone.exercises / "thing").unlink()
    shutil.rmtree(clone.exercises / "other")
    write(clone, {"thing/deep/inside.py": b"in a folder", "other": b"a file"})
    second, after = take(clone), tree(clone)
    restore(clone, first)
    assert {p for p in before if "__pycache__" not in p} == set(tree(clone))
    write(clone, {"thing2/__pycache__/x.pyc": b"", "other/__pycache__/y.pyc": b""})
    restore(clone, second)
    assert {p: v for p, v in tree(clone).items() if not p.startswith("thing2")} == after


def test_links_are_never_followed(clone, tmp_path):
    """A folder of the snapshot that is now a link to somewhere else: the link goes, somewhere else stays."""
    first = take(clone)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "rope.py").write_text("not ours")
    (outside / "__pycache__").mkdir()
    (outside / "__pycache__/rope.cpython-311.pyc").write_text("not ours")
    shutil.rmtree(clone.exercises / "week1")
    (clone.exercises / "week1").symlink_to(outside)
    (clone.exercises / "__init__.py").unlink()
    (clone.exercises / "__init__.py").symlink_to(outside / "rope.py")
    linked = take(clone)

    with pytest.raises(EnvironmentFault, match="exercises/week1 is a symbolic link"):
        restore(clone, first, day(clone, "week1/rope.py"))
    with pytest.raises(EnvironmentFault, match="exercises/week1 is a symbolic link"):
        reset(clone, {"week1/rope.py": b"stub"})
    assert (clone.exercises / "week1").is_symlink()

    change = restore(clone, first)
    assert change.removed == ("week1",)
    assert {p: v[2] for p, v in tree(clone).items()} == {**FILES, "week1": None}
    assert (outside / "rope.py").read_text() == "not ours"
    assert (outside / "__pycache__/rope.cpython-311.pyc").exists()
    restore(clone, linked)
    assert (clone.exercises / "week1").readlink() == outside
    assert snapshots.files_of(clone, linked)["week1"] == (LINK, os.fsencode(outside))


def test_a_linked_cache_is_left_alone(clone, tmp_path):
    first = take(clone)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/rope.cpython-311.pyc").write_text("not ours")
    (clone.exercises / "week1/__pycache__").symlink_to(tmp_path / "outside")
    write(clone, {"week1/rope.py": b"x"})
    restore(clone, first)
    assert (tmp_path / "outside/rope.cpython-311.pyc").exists()


@pytest.mark.parametrize("what", ["pipe", "large", "folder", "repository", "link in a folder"])
def test_what_cannot_be_saved_is_not_destroyed(clone, what):
    first = take(clone)
    path = clone.exercises / "week1/rope.py"
    path.unlink()
    write(clone, {"week1/gqa.py": b"changed"})
    if what == "pipe":
        os.mkfifo(path)
    elif what == "large":
        with path.open("wb") as file:
            file.truncate(snapshots.LARGEST + 1)
    else:
        path.mkdir()
        if what == "folder":
            os.mkfifo(path / "pipe")
        elif what == "repository":
            subprocess.run(["git", "init", "-q"], cwd=path, check=True)
        else:
            (path / ".gitmodules").symlink_to(path)
    before = tree(clone)
    for attempt in (
        lambda: restore(clone, first),
        lambda: reset(clone, {"week1/rope.py": b"", "week1/gqa.py": b""}),
    ):
        with pytest.raises(EnvironmentFault, match="Nothing was changed") as caught:
            attempt()
        assert "exercises/week1/rope.py" in caught.value.message
        assert caught.value.next_step
        assert tree(clone) == before


def test_what_snapshots_leave_out_stays(clone):
    first = take(clone)
    os.mkfifo(clone.exercises / "week1/pipe")
    write(clone, {"week1/rope.py": b"x"})
    restore(clone, first)
    assert (clone.exercises / "week1/pipe").is_fifo()


def test_a_file_where_a_folder_should_be(clone):
    first = take(clone)
    shutil.rmtree(clone.exercises / "week1")
    (clone.exercises / "week1").write_text("a file")
    with pytest.raises(EnvironmentFault, match="exercises/week1 is a file, where a folder should be"):
        restore(clone, first, day(clone, "week1/rope.py"))
    restore(clone, first)
    assert {p: v[2] for p, v in tree(clone).items()} == {**FILES, "week1": None}


def test_a_change_between_saving_and_writing(clone):
    """An editor that writes at the wrong moment wins: its bytes are in no snapshot yet."""
    entry = (restoring.snapshots.FILE, b"restored")
    change = restoring.Change(("week1/rope.py",), (), snapshot="0" * 40)
    saved = {"week1/rope.py": (restoring.snapshots.FILE, b"what was saved")}
    with pytest.raises(EnvironmentFault, match="not what was saved just now"):
        restoring._apply(clone, change, {"week1/rope.py": entry}, saved)
    assert (clone.exercises / "week1/rope.py").read_bytes() == FILES["week1/rope.py"]


@pytest.mark.parametrize(
    "path", ["../escape.py", "/etc/escape.py", "week1/../../escape.py", ".git/hooks/x", ""]
)
def test_paths_that_lead_out_are_refused(clone, path):
    with pytest.raises(EnvironmentFault, match="is no path below exercises/"):
        reset(clone, {path: b"x"})


def test_a_crafted_snapshot_cannot_lead_out(clone):
    """Trees made by other programs can hold any name."""

    def git(*arguments, data=b""):
        done = subprocess.run(
            ["git", *arguments], cwd=clone.root, input=data, capture_output=True, check=True
        )
        return done.stdout.strip()

    blob = git("hash-object", "-w", "--stdin", data=b"evil")
    raw = bytes.fromhex(blob.decode())
    up = git("hash-object", "-w", "--literally", "-t", "tree", "--stdin", data=b"100644 evil.py\0" + raw)
    for name in (b"..", b".git"):
        below = b"40000 " + name + b"\0" + bytes.fromhex(up.decode())
        sub = git("hash-object", "-w", "--literally", "-t", "tree", "--stdin", data=below)
        top = b"40000 exercises\0" + bytes.fromhex(sub.decode())
        root = git("hash-object", "-w", "--literally", "-t", "tree", "--stdin", data=top)
        commit = git(
            "-c", "user.name=a", "-c", "user.email=a@b", "commit-tree", root.decode(), data=b"x"
        ).decode()
        with pytest.raises(EnvironmentFault, match="is no path below exercises/"):
            restore(clone, commit)
    assert not list(clone.root.rglob("evil.py"))


def test_failing_to_write_changes_nothing(clone):
    """A link longer than file systems allow stops the writing before anything moved."""
    first = take(clone)
    write(clone, {"week1/rope.py": b"now"})
    before = tree(clone)
    change = restoring.Change(("week1/rope.py", "week1/link"), (), snapshot=first)
    saved = snapshots.files_of(clone, take(clone))
    wanted = {"week1/rope.py": (PROGRAM, b"then"), "week1/link": (LINK, b"x" * 5000)}
    with pytest.raises(EnvironmentFault, match=r"could not be written: .*Nothing was changed"):
        restoring._apply(clone, change, wanted, saved)
    assert tree(clone) == before


def test_exercises_that_cannot_be_made(bare):
    shutil.rmtree(bare.exercises)
    bare.exercises.write_text("a file")
    with pytest.raises(EnvironmentFault, match=r"could not be written: .*Nothing was changed"):
        reset(bare, {"week1/rope.py": b"stub"})


def test_a_name_that_this_file_system_does_not_take(clone):
    """A snapshot made elsewhere may hold one: it is refused before anything changes."""
    blob = subprocess.run(
        ["git", "hash-object", "-w", "--stdin"], cwd=clone.root, input=b"x", capture_output=True, check=True
    ).stdout.decode()
    long = "x" * 300 + ".py"
    stream = (
        f"commit {snapshots.REF}\ncommitter a <a@b> 1 +0000\ndata 1\nx\n"
        f"M 100644 {blob.strip()} exercises/{long}\nM 100644 {blob.strip()} exercises/week1/rope.py\n"
    )
    subprocess.run(["git", "fast-import", "--quiet"], cwd=clone.root, input=stream.encode(), check=True)
    before = tree(clone)
    with pytest.raises(EnvironmentFault, match="Nothing was changed"):
        restore(clone, snapshots.history(clone)[0].id)
    assert tree(clone) == before


def test_stopping_half_way_says_where_the_state_before_is():
    """A folder that may not be written to is found out only when a file is moved into it."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        clone = Clone(Path(folder) / "clone")
        write(clone, {**FILES, "aaa.py": b"mine"})
        if user == 0:  # root may write anywhere: go on as somebody else
            for path in (Path(folder), *Path(folder).rglob("*")):
                os.chown(path, 65534, 65534)
            os.seteuid(65534)
        (clone.exercises / "week1").chmod(0o555)
        try:
            with pytest.raises(EnvironmentFault, match="Stopped half way") as caught:
                reset(clone, {"aaa.py": b"stub", "week1/rope.py": b"stub"})
        finally:
            (clone.exercises / "week1").chmod(0o755)
            os.seteuid(user)
        [saved] = (clone.progress / "saved").iterdir()
        assert caught.value.message.endswith(f"The state before is progress/saved/{saved.name}.")
        assert (saved / "exercises/week1/rope.py").read_bytes() == FILES["week1/rope.py"]
        assert (saved / "exercises/aaa.py").read_bytes() == b"mine"
        assert (clone.exercises / "week1/rope.py").read_bytes() == FILES["week1/rope.py"]
        assert not list(clone.exercises.glob(".tinyllm-*"))


# ---- reset


def test_reset_with_a_repository(clone):
    write(clone, {"week1/rope.py": b"mine"})
    (clone.exercises / "week1/rope.py").chmod(0o755)
    change = reset(clone, {"week1/rope.py": b"stub", "week1/gqa.py": FILES["week1/gqa.py"], "new.py": b"new"})
    assert (change.written, change.removed, change.folder) == (("new.py", "week1/rope.py"), (), None)
    saved = snapshots.files_of(clone, change.snapshot)
    assert saved["week1/rope.py"] == (PROGRAM, b"mine")
    assert set(saved) == set(FILES)  # all of the exercises
    assert snapshots.history(clone)[0].message == "before resetting new.py, week1/rope.py"
    assert (clone.exercises / "week1/rope.py").read_bytes() == b"stub"
    assert os.access(clone.exercises / "week1/rope.py", os.X_OK)
    assert (clone.exercises / "new.py").read_bytes() == b"new"
    assert not (clone.progress / "saved").exists()


def test_reset_without_a_repository(bare):
    write(bare, {"week1/rope.py": b"mine\r\n\xff"})
    (bare.exercises / "week1/gqa.py").unlink()
    (bare.exercises / "week1/gqa.py").symlink_to("rope.py")
    stubs = {"week1/rope.py": b"stub", "week1/gqa.py": b"stub", "__init__.py": b""}
    change = reset(bare, stubs)
    assert (change.written, change.snapshot) == (("week1/gqa.py", "week1/rope.py"), None)
    assert change.folder.parent == bare.progress / "saved"
    assert re.fullmatch(r"\d{8}T\d{6}Z", change.folder.name)
    copies = change.folder / "exercises/week1"
    assert (copies / "rope.py").read_bytes() == b"mine\r\n\xff"
    assert (copies / "gqa.py").readlink() == Path("rope.py")
    assert not (change.folder / "exercises/__init__.py").exists()
    assert not (bare.exercises / "week1/gqa.py").is_symlink()
    assert {p: v[2] for p, v in tree(bare).items()} == {**stubs, "week1": None}

    folders = {change.folder}
    for n in range(3):  # within the same second too, each has a folder of its own
        write(bare, {"week1/rope.py": b"again %d" % n})
        folders.add(reset(bare, stubs).folder)
    assert len(folders) == 4
    assert sorted(p.name for p in (bare.progress / "saved").iterdir()) == sorted(f.name for f in folders)


@pytest.mark.parametrize("repository", [True, False])
def test_reset_of_what_is_pristine_saves_nothing(bare, repository):
    if repository:
        subprocess.run(["git", "init", "-q"], cwd=bare.root, check=True)
    before = tree(bare)
    change = reset(bare, FILES)
    assert not change
    assert (change.snapshot, change.folder) == (None, None)
    assert tree(bare) == before
    assert not bare.progress.exists()


def test_reset_of_what_is_gone(bare):
    (bare.exercises / "week1/rope.py").unlink()
    change = reset(bare, FILES)
    assert (change.written, change.folder) == (("week1/rope.py",), None)  # there was nothing to save
    shutil.rmtree(bare.exercises)
    assert reset(bare, FILES).written == tuple(sorted(FILES))


def test_reset_changes_nothing_when_saving_fails(bare):
    write(bare, {"week1/rope.py": b"mine"})
    before = tree(bare)
    bare.progress.write_text("a file where the folder should be")
    with pytest.raises(EnvironmentFault, match=r"could not be saved: .*Nothing was changed"):
        reset(bare, {"week1/rope.py": b"stub"})
    assert tree(bare) == before


def test_reset_leaves_no_partial_copies(bare):
    (bare.progress / "saved").mkdir(parents=True)
    # The second of these cannot be copied: its target is longer than a link may be.
    files = {"week1/rope.py": (PROGRAM, b"mine"), "week1/link": (LINK, b"x" * 5000)}
    with pytest.raises(EnvironmentFault, match="could not be saved"):
        restoring._copy(bare, files)
    assert list((bare.progress / "saved").iterdir()) == []


def test_reset_without_a_repository_refuses_what_it_cannot_copy(bare):
    (bare.exercises / "week1/rope.py").unlink()
    os.mkfifo(bare.exercises / "week1/rope.py")
    write(bare, {"week1/gqa.py": b"mine"})
    with pytest.raises(EnvironmentFault, match="Nothing was changed"):
        reset(bare, {"week1/rope.py": b"stub", "week1/gqa.py": b"stub"})
    assert (bare.exercises / "week1/gqa.py").read_bytes() == b"mine"
    assert not bare.progress.exists()


# ---- any tree

LETTERS = "abcXYZ.-_ '\"\\*?[]{}$~#%&;:,=é日🙂\n\t\u2028" + (
    "" if sys.platform == "darwin" else "\u0301\udce9"
)
RESERVED = {".", "..", ".git", ".gitmodules"}
NAMES = st.text(st.sampled_from(LETTERS), min_size=1, max_size=6).filter(
    lambda name: name.lower() not in RESERVED and not snapshots.is_cache(name)
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
KINDS = st.one_of(
    st.tuples(st.sampled_from([0o644, 0o755]), st.binary(max_size=40)),
    st.tuples(st.just(0), NAMES.map(os.fsencode)),  # a link to somewhere that may or may not exist
)


def fits(files: dict[str, object]) -> dict[str, object]:
    """Without the files that lie below other files."""
    return {p: v for p, v in files.items() if not any(p != q and p.startswith(q + "/") for q in files)}


TREES = st.dictionaries(PATHS, KINDS, max_size=5).map(fits)


def build(clone: Clone, files: dict[str, tuple[int, bytes]]) -> None:
    shutil.rmtree(clone.exercises, ignore_errors=True)
    clone.exercises.mkdir()
    for path, (permissions, data) in files.items():
        (clone.exercises / path).parent.mkdir(parents=True, exist_ok=True)
        if permissions:
            (clone.exercises / path).write_bytes(data)
            (clone.exercises / path).chmod(permissions)
        else:
            (clone.exercises / path).symlink_to(os.fsdecode(data))


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(first=TREES, second=TREES, line_endings=st.sampled_from(["true", "input", "false"]))
def test_round_trip(first, second, line_endings):
    with tempfile.TemporaryDirectory() as folder:
        clone = Clone(Path(folder) / "a clone")
        clone.root.mkdir()
        subprocess.run(["git", "init", "-q", "--template="], cwd=clone.root, check=True)
        subprocess.run(["git", "config", "core.autocrlf", line_endings], cwd=clone.root, check=True)
        build(clone, first)
        snapshot, before = take(clone), tree(clone)
        build(clone, second)
        after = tree(clone)
        change = restore(clone, snapshot)
        assert tree(clone) == before
        assert len(snapshots.files_of(clone, snapshot)) == len(first)
        restore(clone, change.snapshot)
        assert tree(clone) == after
