"""Bring exercises/ back to a snapshot, or single modules back to their pristine stubs.

What is there is saved first, always; when it cannot be saved, nothing is changed. New contents are
written beside the old and moved into place whole. What a snapshot leaves out (caches, files too large
or unreadable, inner repositories' `.git`) is left where it is.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from glob import escape
from pathlib import Path, PurePosixPath

from . import snapshots
from .catalog import Day
from .clone import Clone
from .errors import EnvironmentFault, UsageError

Entry = tuple[int, bytes]  # a git mode, and a file's bytes or a link's target
OTHER: Entry = (0, b"")  # what no snapshot holds: a folder, a pipe, a file that cannot be read


@dataclass(frozen=True)
class Change:
    """What was changed in exercises/ (paths relative to it) and where the state before is kept."""

    written: tuple[str, ...]
    removed: tuple[str, ...]
    snapshot: str | None = None  # id of the snapshot of the state before
    folder: Path | None = None  # or the folder with copies, where there is no repository

    def __bool__(self) -> bool:
        return bool(self.written or self.removed)


def restore(clone: Clone, snapshot_id: str, day: Day | None = None) -> Change:
    """Make exercises/ what it was in a snapshot: files written back, files it does not hold removed.

    With `day`, only that day's modules. The state before is a snapshot of its own; the returned value
    has its id. Raises NoRepository as snapshots.take does, UsageError for an unknown snapshot or one
    without any file of the day, EnvironmentFault when something is in the way. In all of these cases
    nothing was changed.
    """
    wanted = snapshots.files_of(clone, snapshot_id)
    if day is not None:
        wanted = {path: entry for path, entry in wanted.items() if path in day.modules}
        if not wanted:
            raise UsageError(f"The snapshot {snapshot_id[:7]} has no file of {day.name}.")
    what = f"{day.name} " if day else ""
    trailers = {"Event": "restore", "Day": day.id if day else None}
    before = snapshots.take(clone, f"before restoring {what}from {snapshot_id[:7]}", trailers)
    saved = snapshots.files_of(clone, before) if before else {}
    removed = {p for p in saved.keys() - wanted.keys() if day is None or p in day.modules}
    written = {path: entry for path, entry in wanted.items() if saved.get(path) != entry}
    change = Change(tuple(sorted(written)), tuple(sorted(removed)), snapshot=before)
    _apply(clone, change, written, saved)
    return change


def reset(clone: Clone, files: Mapping[str, bytes]) -> Change:
    """Write the pristine contents of modules, {path relative to exercises/: bytes}.

    The old ones are saved first: by a snapshot of all of exercises/, or, where there is no repository, as
    copies below progress/saved/<UTC time>/. When nothing differs, nothing is saved or written. Raises
    EnvironmentFault when saving fails or something is in the way; nothing was changed then.
    """
    _refuse_odd_ways(clone, files, removed=())
    now = {path: _entry(clone.exercises / path) for path in files}
    written = {path: (_mode(now[path]), files[path]) for path in files if _bytes(now[path]) != files[path]}
    if not written:
        return Change((), ())
    paths = tuple(sorted(written))
    try:
        before = snapshots.take(clone, f"before resetting {', '.join(paths)}", {"Event": "reset"})
        saved = snapshots.files_of(clone, before) if before else {}
        change = Change(paths, (), snapshot=before)
    except snapshots.NoRepository:
        saved = {path: now[path] for path in paths if now[path] not in (None, OTHER)}
        _check(clone, written, set(), saved)
        change = Change(paths, (), folder=_copy(clone, saved) if saved else None)
    _apply(clone, change, written, saved)
    return change


def _mode(entry: Entry | None) -> int:
    return entry[0] if entry and entry[0] in (snapshots.FILE, snapshots.PROGRAM) else snapshots.FILE


def _bytes(entry: Entry | None) -> bytes | None:
    """A regular file's bytes; None for anything else, a link to the right contents included."""
    return entry[1] if entry and entry[0] in (snapshots.FILE, snapshots.PROGRAM) else None


# ---- saving without a repository


def _copy(clone: Clone, files: Mapping[str, Entry]) -> Path:
    """Copies of the files as they are, in a new folder below progress/saved. All of them or none."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    partial = None
    try:
        (clone.progress / "saved").mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=clone.progress / "saved"))
        for path, entry in files.items():
            target = partial / "exercises" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(target, entry)
        partial.chmod(0o755)
        folder, turn = clone.progress / "saved" / stamp, 1
        while folder.exists():
            turn += 1
            folder = folder.with_name(f"{stamp}-{turn}")
        return partial.rename(folder)
    except OSError as error:
        if partial:
            shutil.rmtree(partial, ignore_errors=True)
        raise EnvironmentFault(f"The old files could not be saved: {error}. Nothing was changed.") from None


# ---- changing the files


def _apply(clone: Clone, change: Change, written: Mapping[str, Entry], saved: Mapping[str, Entry]) -> None:
    """Write and remove files below exercises/, only where what is there is what was saved."""
    _check(clone, written, set(change.removed), saved)
    staged = _stage(clone, written)
    try:
        for path in change.removed:
            (clone.exercises / path).unlink(missing_ok=True)
            _forget_bytecode(clone.exercises / path)
            _drop_empty(clone, path)
        for path, new in staged.items():
            here = clone.exercises / path
            if _is_folder(here):
                shutil.rmtree(here)  # holds nothing but caches: see _refuse_full_folder
            here.parent.mkdir(parents=True, exist_ok=True)
            new.replace(here)
            _forget_bytecode(here)
    except OSError as error:
        where = clone.relative(change.folder) if change.folder else f"the snapshot {change.snapshot}"
        raise EnvironmentFault(f"Stopped half way: {error}. The state before is {where}.") from None
    finally:
        for folder in {new.parent for new in staged.values()}:
            shutil.rmtree(folder, ignore_errors=True)


def _check(clone: Clone, written: Mapping[str, Entry], removed: set[str], saved: Mapping[str, Entry]) -> None:
    """Raise unless everything that writing and removing these files would destroy was saved."""
    _refuse_odd_ways(clone, written, removed)
    for path in (*removed, *written):
        here = clone.exercises / path
        if path in written and _is_folder(here):
            _refuse_full_folder(clone, here, removed)
        elif any(str(parent) in removed for parent in PurePosixPath(path).parents):
            continue  # a file or link stands where this one's folder will be
        elif _entry(here) != saved.get(path):
            raise EnvironmentFault(
                f"exercises/{path} is not what was saved just now, or no snapshot can hold it. "
                "Nothing was changed.",
                next_step=f"Close what is writing exercises/{path}, or move it away, and try again.",
            )


def _stage(clone: Clone, written: Mapping[str, Entry]) -> dict[str, Path]:
    """Each new file under a name of its own in a folder within exercises/, to be moved into place."""
    if not written:
        return {}
    folder = None
    try:
        clone.exercises.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=snapshots.STAGING, dir=clone.exercises))
        staged = {path: folder / str(number) for number, path in enumerate(written)}
        for path, new in staged.items():
            _write(new, written[path])
        return staged
    except OSError as error:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        raise EnvironmentFault(f"The files could not be written: {error}. Nothing was changed.") from None


def _write(path: Path, entry: Entry) -> None:
    """A new file with these bytes, on the disk when this returns; the umask decides who may read it."""
    mode, data = entry
    if mode == snapshots.LINK:
        path.symlink_to(os.fsdecode(data))
        return
    permissions = 0o777 if mode == snapshots.PROGRAM else 0o666
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, permissions), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _entry(path: Path) -> Entry | None:
    """What stands at `path`, as a snapshot would hold it; None for nothing, OTHER for what it cannot hold."""
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            return snapshots.LINK, os.fsencode(path.readlink())
        if not stat.S_ISREG(status.st_mode) or status.st_size > snapshots.LARGEST:
            return OTHER
        program = status.st_mode & stat.S_IXUSR
        return snapshots.PROGRAM if program else snapshots.FILE, path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return OTHER


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:  # not there, or a name that this file system does not take
        return False


def _refuse_odd_ways(clone: Clone, written: Iterable[str], removed: Iterable[str]) -> None:
    """Raise unless every path stays below exercises/ on real folders, links and files removed beforehand."""
    for path in written:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or ".git" in map(str.lower, parts):
            raise EnvironmentFault(f"'{path}' is no path below exercises/. Nothing was changed.")
        for parent in PurePosixPath(path).parents:
            here = clone.exercises / parent
            if parent == PurePosixPath() or str(parent) in removed or not os.path.lexists(here):
                continue
            if here.is_symlink() or not here.is_dir():
                kind = "a symbolic link" if here.is_symlink() else "a file"
                raise EnvironmentFault(
                    f"exercises/{parent} is {kind}, where a folder should be. Nothing was changed.",
                    next_step=f"Move exercises/{parent} away and run the command again.",
                )


def _refuse_full_folder(clone: Clone, folder: Path, removed: set[str]) -> None:
    """Raise unless a folder that stands where a file should be will be empty but for caches."""
    for inner, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not snapshots.is_cache(name)]
        for name in (*files, *(f for f in folders if (Path(inner) / f).is_symlink())):
            path = (Path(inner) / name).relative_to(clone.exercises).as_posix()
            if path not in removed and not snapshots.is_cache(name):
                raise EnvironmentFault(
                    f"exercises/{path} is in the way and is not saved. Nothing was changed.",
                    next_step=f"Move exercises/{path} away and run the command again.",
                )


def _drop_empty(clone: Clone, path: str) -> None:
    """Remove the folders that a removed file leaves empty."""
    for parent in PurePosixPath(path).parents[:-1]:
        try:
            (clone.exercises / parent).rmdir()
        except OSError:
            return


def _forget_bytecode(path: Path) -> None:
    """Python takes old bytecode for current when size and second of the source agree, as they may here."""
    cache = path.parent / "__pycache__"
    if path.suffix == ".py" and cache.is_dir() and not cache.is_symlink():
        for old in cache.glob(f"{escape(path.stem)}.*.pyc"):
            old.unlink(missing_ok=True)
