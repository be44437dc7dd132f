"""Atomic writes, locks between processes and content hashes, on real files with real processes."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyllm.grader import files
from tinyllm.grader.errors import EnvironmentFault

HOLD = """
import sys, time
from pathlib import Path
from tinyllm.grader.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(lock: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that has the lock by the time this returns."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, str(lock), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "notes.md"
    files.write_atomically(path, b"one")
    files.write_atomically(path, b"two\r\n")
    assert path.read_bytes() == b"two\r\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_replaced_file_keeps_its_mode_and_a_new_one_follows_the_umask(tmp_path):
    path = tmp_path / "notes.md"
    files.write_atomically(path, b"one")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    files.write_atomically(path, b"two")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "vault").mkdir()
    real, link = tmp_path / "vault" / "notes.md", tmp_path / "notes.md"
    real.write_bytes(b"one")
    link.symlink_to(real)
    files.write_atomically(link, b"two")
    assert link.is_symlink()
    assert real.read_bytes() == b"two"


def test_a_write_that_fails_leaves_the_old_bytes_and_nothing_else(tmp_path):
    folder = tmp_path / "notes.md"
    folder.mkdir()
    (folder / "inside").write_bytes(b"kept")
    with pytest.raises(OSError, match="directory"):
        files.write_atomically(folder, b"a file cannot replace a folder")
    assert (folder / "inside").read_bytes() == b"kept"
    assert list(tmp_path.iterdir()) == [folder]


NO_ROOM = """
import resource, sys
from pathlib import Path
from tinyllm.grader import files
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.write_atomically(Path(sys.argv[1]), b"x" * 2000)
except OSError as error:
    print(error.strerror)
"""


def test_a_write_that_finds_room_for_half_leaves_the_old_bytes_and_nothing_else(tmp_path):
    path = tmp_path / "notes.md"
    path.write_bytes(b"one")
    done = subprocess.run(
        [sys.executable, "-P", "-c", NO_ROOM, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "File too large\n"
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_depends_on_the_bytes_that_were_read(tmp_path):
    path = tmp_path / "notes.md"
    assert files.replace_if_unchanged(path, None, b"one")
    assert not files.replace_if_unchanged(path, None, b"created meanwhile")
    assert not files.replace_if_unchanged(path, b"other", b"changed meanwhile")
    assert path.read_bytes() == b"one"
    assert files.replace_if_unchanged(path, b"one", b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_writers_are_removed_and_nothing_else_is(tmp_path):
    path = tmp_path / "notes.md"
    for name in ("notes.md", ".notes.md.123-abcd.tmp", ".notes.md.tmp", ".other.md.123-abcd.tmp"):
        (tmp_path / name).write_bytes(b"x")
    files.remove_leftovers(path)
    assert {p.name for p in tmp_path.iterdir()} == {"notes.md", ".notes.md.tmp", ".other.md.123-abcd.tmp"}


def test_content_hashes(tmp_path):
    path = tmp_path / "rope.py"
    path.write_bytes(b"x = 1\n")
    assert files.content_hash(path) == hashlib.sha256(b"x = 1\n").hexdigest()[:12]
    assert files.content_hash(tmp_path / "absent.py") == "missing"
    assert files.content_hash(path / "below_a_file.py") == "missing"
    assert files.content_hash(tmp_path) == "unreadable"


def test_a_lock_held_by_another_process_is_waited_for(tmp_path):
    lock = tmp_path / ".lock"
    process = hold(lock, 0.3)
    try:
        began = time.monotonic()
        with files.locked(lock):
            assert time.monotonic() - began > 0.1
    finally:
        end(process)


def test_a_lock_that_stays_held_is_an_environment_fault(tmp_path):
    lock = tmp_path / ".lock"
    process = hold(lock, 60)
    try:
        said = r"Another tinyllm-grade has held .*\.lock for 0\.1 s"
        with pytest.raises(EnvironmentFault, match=said) as e, files.locked(lock, timeout=0.1):
            pytest.fail("two holders")
        assert e.value.next_step
    finally:
        end(process)
    with files.locked(lock, timeout=0.1):
        pass  # the killed holder blocks nobody


def test_the_lock_is_given_back_when_the_body_raises(tmp_path):
    with pytest.raises(KeyError), files.locked(tmp_path / ".lock"):
        raise KeyError
    with files.locked(tmp_path / ".lock", timeout=0.1):
        pass


def test_a_lock_file_that_cannot_be_opened_is_an_environment_fault(tmp_path):
    said = "cannot be opened: No such file"
    with pytest.raises(EnvironmentFault, match=said), files.locked(tmp_path / "absent" / ".lock"):
        pytest.fail("no lock file")


def test_the_modules_import_nothing_heavy():
    code = """
import sys
before = set(sys.modules)
from tinyllm.grader import attempts, files, standing, tracker
print(*(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    imported = {name.split(".")[0] for name in done.stdout.split()}
    assert "tinyllm" in imported
    assert not imported & {"rich", "click", "git", "numpy", "mlx", "pytest", "uuid", "tempfile", "subprocess"}
