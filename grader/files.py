"""Files that survive being killed at any instant: atomic writes, a lock between processes, content hashes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import EnvironmentFault

MISSING = "missing"  # what content_hash says of a file that is not there
UNREADABLE = "unreadable"


def content_hash(path: Path) -> str:
    """The first 12 hex digits of the SHA-256 of the file's bytes; "missing" or "unreadable" without them."""
    try:
        return short_hash(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError:
        return UNREADABLE


def short_hash(data: bytes) -> str:
    """The first 12 hex digits of SHA-256: what `sha256sum FILE | cut -c1-12` prints."""
    return hashlib.sha256(data).hexdigest()[:12]


def read_or_none(path: Path) -> bytes | None:
    """The file's bytes, or None when there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write_atomically(path: Path, data: bytes) -> None:
    """Make `path` hold `data`: whoever looks, at whatever moment, finds the old bytes or the new ones.

    An existing file keeps its mode, and a symbolic link stays one. Raises OSError and leaves `path` as
    it was when that cannot be done.
    """
    target = Path(os.path.realpath(path))
    with _temporary(target, data) as temporary:
        temporary.replace(target)
    sync_folder(target.parent)


def replace_if_unchanged(path: Path, old: bytes | None, new: bytes) -> bool:
    """Like write_atomically, but only when `path` still holds `old` (None: does not exist).

    False, and nothing written, when somebody else changed the file since `old` was read. The look is
    taken after the new bytes are safely on disk, so the moment in which a change could be missed is the
    time between two system calls.
    """
    target = Path(os.path.realpath(path))
    with _temporary(target, new) as temporary:
        if read_or_none(target) != old:
            return False
        temporary.replace(target)
    sync_folder(target.parent)
    return True


def remove_leftovers(path: Path) -> None:
    """Remove temporary files that killed writers of `path` left beside it.

    Only for a caller who holds the lock that every writer of `path` takes: another writer's file looks
    just the same.
    """
    target = Path(os.path.realpath(path))
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def _temporary(target: Path, data: bytes) -> Iterator[Path]:
    """A synced file with `data` beside `target`, which the caller renames; removed if it is still there."""
    # Beside the target: a rename is atomic only within one file system.
    path = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            # A new file has no mode to keep; a Windows drive under Linux may refuse to change one.
            with suppress(FileNotFoundError, PermissionError):
                os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield path
    finally:
        path.unlink(missing_ok=True)


def write_all(descriptor: int, data: bytes) -> None:
    """Write `data` in one call where the system takes it whole, as it does for a regular file with room."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])


def sync_folder(folder: Path) -> None:
    """Make a new or renamed entry of `folder` survive a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network and FUSE file systems refuse to sync a folder; the file itself is synced already.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, timeout: float = 10.0) -> Iterator[None]:
    """Hold the lock file `path` against every other process (and thread) that asks for it.

    The system gives the lock back when its holder dies, so a killed grader blocks nobody. Not
    reentrant. Raises EnvironmentFault when it is not free within `timeout` seconds, or when the file
    system has no locks.
    """
    name = "/".join(path.parts[-2:])
    with faults(f"{name} cannot be opened"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        give_up = time.monotonic() + timeout
        pause = 0.001
        with faults(f"{name} cannot be locked"):
            while not _try_lock(descriptor):
                if time.monotonic() >= give_up:
                    raise EnvironmentFault(
                        f"Another tinyllm-grade has held {name} for {timeout:g} s.",
                        next_step="Let it finish or end it, then run the command again.",
                    )
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
        yield
    finally:
        os.close(descriptor)  # closing gives the lock back


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def faults(what: str) -> Iterator[None]:
    """Turn an OSError of the body into an EnvironmentFault that starts with `what`."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(f"{what}: {error.strerror or error}.") from error
