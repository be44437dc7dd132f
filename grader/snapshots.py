"""Every graded state of exercises/ as a git commit under `refs/tinyllm/history`, made with GitPython.

The learner's HEAD, branches, index and working tree are never touched: files are written as objects,
put into a tree through an index of our own, and appended to the one chain of commits. The bytes are
stored as they are (no line-ending conversion), whatever the repository's settings and hooks say.
"""

from __future__ import annotations

import os
import random
import re
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from .clone import Clone
from .errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from git import Repo

REF = "refs/tinyllm/history"
PREFIX = b"exercises/"

# Git's modes for what a snapshot holds.
FILE, PROGRAM, LINK = 0o100644, 0o100755, 0o120000

LARGEST = 16 * 2**20  # bytes; a model or a data set left among the exercises does not go into history
CACHES = frozenset({"__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".DS_Store"})
STAGING = ".tinyllm-"  # our own half-written files: see restoring

# What in a repository's settings would run other programs or write to other places than asked.
SETTINGS = (
    ("core.hooksPath", os.devnull),
    ("core.fsmonitor", "false"),
    ("core.splitIndex", "false"),
    ("core.protectNTFS", "false"),  # names that another system could not hold are fine here
    ("core.protectHFS", "false"),
    ("i18n.commitEncoding", "UTF-8"),
)
# Set when a git hook runs us; they would name another repository, or forbid to write in this one.
FOREIGN = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_QUARANTINE_PATH",
)
# The chain is the program's, so nobody's identity needs to be configured.
IDENTITY = {"NAME": "tinyllm-grade", "EMAIL": "tinyllm-grade@localhost"}

PATIENCE = 10.0  # seconds to wait for another grader's lock, which a killed one leaves behind


class NoRepository(EnvironmentFault):
    """No snapshot can be made or read here; the message says in one line why."""


@dataclass(frozen=True)
class Snapshot:
    """One recorded state of exercises/."""

    number: int  # 1 is the oldest; a number keeps its meaning as snapshots are added
    id: str
    short: str
    when: datetime  # UTC
    message: str  # without the trailers
    trailers: dict[str, str] = field(default_factory=dict)

    @property
    def day(self) -> str:
        """The `Day` trailer: "1.3", or "" when the snapshot belongs to none."""
        return self.trailers.get("Day", "")

    @property
    def verdict(self) -> str:
        """The `Verdict` trailer: "passed", or "" when nothing was graded."""
        return self.trailers.get("Verdict", "")


# ---- making one


def take(clone: Clone, message: str, trailers: dict[str, object]) -> str | None:
    """Record exercises/ as it is now and return the commit's id; None when there is no such folder.

    When nothing changed since the newest snapshot, that one's id is returned and no commit is made.
    `trailers` end the commit message, one `Key: value` line each; `Day` and `Verdict` are read back by
    `history`. What is left out (see `contents`) is named in a `Skipped` trailer.

    Raises NoRepository when there is no git, no GitPython, no repository, or it cannot be written.
    """
    if not clone.exercises.is_dir():
        return None
    with _repository(clone) as repo:
        tree, skipped = _write_tree(repo, clone)
        if skipped:
            trailers = {**trailers, "Skipped": ", ".join(f"{n} ({why})" for n, why in skipped.items())}
        return _append(repo, tree, _compose(message, trailers))


def is_cache(name: str) -> bool:
    """Whether a file or folder of this name is left out of snapshots because tools remake it."""
    return name in CACHES or name.endswith((".pyc", ".pyo")) or name.startswith(STAGING)


def contents(clone: Clone) -> tuple[dict[str, int], dict[str, str]]:
    """What a snapshot taken now would hold: {path: mode}, and {path: why} for what it leaves out.

    Paths are relative to exercises/, with "/". Left out with a reason are files over 16 MiB, files that
    cannot be read, pipes, sockets and devices; left out in silence are caches and `.git`. A repository
    inside exercises/ is stored as its plain files.
    """
    files: dict[str, int] = {}
    skipped: dict[str, str] = {}
    pending = [""]
    while pending:
        below = pending.pop()
        try:
            entries = sorted(os.scandir(clone.exercises / below), key=lambda e: e.name)
        except OSError:
            skipped[below] = "cannot be read"
            continue
        for entry in entries:
            path = below + entry.name
            if is_cache(entry.name) or entry.name.lower() == ".git":
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(path + "/")
                continue
            mode, why = _judge(entry)
            if why:
                skipped[path] = why
            else:
                files[path] = mode
    return files, skipped


def _judge(entry: os.DirEntry[str]) -> tuple[int, str]:
    """The git mode of a file, and why it is left out ("" when it is not)."""
    if entry.is_symlink():
        # Git allows no link of this name: it would read settings through it.
        return LINK, "a link of a name that git reserves" if entry.name.lower() == ".gitmodules" else ""
    try:
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return 0, "not a regular file"
        if status.st_size > LARGEST:
            return 0, f"larger than {LARGEST // 2**20} MiB"
        os.close(os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW))
    except OSError:
        return 0, "cannot be read"
    return PROGRAM if status.st_mode & stat.S_IXUSR else FILE, ""


def _write_tree(repo: Repo, clone: Clone) -> tuple[str, dict[str, str]]:
    """Store the files and return the id of a tree that holds them, with what was left out."""
    for last in (False, False, True):
        files, skipped = contents(clone)
        try:
            ids = _write_blobs(repo, clone, files)
            break
        except (_GitFailed, OSError):  # an editor replaced a file between the listing and the reading
            if last:
                raise
    listing = b"".join(
        b"%06o %s\t%s%s\0" % (mode, ids[path], PREFIX, os.fsencode(path)) for path, mode in files.items()
    )
    with tempfile.TemporaryDirectory(prefix="tinyllm-") as folder:
        own = {"GIT_INDEX_FILE": os.path.join(folder, "index")}  # noqa: PTH118 -- an environment value
        _git(repo, "update-index", "-z", "--index-info", data=listing, env=own)
        return _git(repo, "write-tree", env=own).decode().strip(), skipped


def _write_blobs(repo: Repo, clone: Clone, files: dict[str, int]) -> dict[str, bytes]:
    plain = [path for path, mode in files.items() if mode != LINK]
    paths = b"".join(_quoted(os.fsencode(clone.exercises / path)) + b"\n" for path in plain)
    written = _git(repo, "hash-object", "-w", "--no-filters", "--stdin-paths", data=paths).split()
    ids = dict(zip(plain, written, strict=True))
    for path in files.keys() - ids.keys():
        target = os.fsencode((clone.exercises / path).readlink())
        ids[path] = _git(repo, "hash-object", "-w", "--no-filters", "--stdin", data=target).strip()
    return ids


def _quoted(path: bytes) -> bytes:
    """A path as git reads it from a line: in C's quotes, so that it may hold a newline."""
    return b'"%s"' % re.sub(rb'[\x00-\x1f"\\\x7f]', lambda m: b"\\%03o" % m[0][0], path)


def _append(repo: Repo, tree: str, message: bytes) -> str:
    """Put a commit of `tree` at the chain's end. Others may append meanwhile: then try again on theirs."""
    deadline = time.monotonic() + PATIENCE
    while True:
        tip, tip_tree = _tip(repo)
        if tip_tree == tree:
            return tip
        new = _commit(repo, tree, tip, message)
        try:
            # The old value makes this a compare-and-swap; "" means that the ref must not exist.
            _git(repo, "update-ref", "--no-deref", REF, new, tip)
            return new
        except _GitFailed as error:
            moved = _tip(repo)[0] != tip  # then another's turn came first, and ours comes
            waiting = "File exists" in error.complaint and time.monotonic() < deadline
            if not (moved or waiting):
                raise
        time.sleep(random.uniform(0.002, 0.03))


def _tip(repo: Repo) -> tuple[str, str]:
    """The newest snapshot's commit and tree, or two empty strings."""
    line = _git(repo, "for-each-ref", "--format=%(objectname) %(tree)", REF).decode().split()
    return (line[0], line[1]) if line else ("", "")


def _commit(repo: Repo, tree: str, parent: str, message: bytes) -> str:
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in IDENTITY.items()}
    when = f"@{int(time.time())} +0000"
    own = {**who, "GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
    parents = ("-p", parent) if parent else ()
    new = _git(repo, "commit-tree", "--no-gpg-sign", tree, *parents, data=message, env=own)
    return new.decode().strip()


def _compose(message: str, trailers: dict[str, object]) -> bytes:
    head = message.replace("\0", "").strip() or "snapshot"
    lines = [f"{key}: {_one_line(value)}" for key, value in trailers.items() if _one_line(value)]
    text = "\n\n".join([head, "\n".join(lines)] if lines else [head]) + "\n"
    return text.encode("utf-8", "backslashreplace")


def _one_line(value: object) -> str:
    return " ".join(str(value).replace("\0", "").split()) if value is not None else ""


# ---- reading them


def history(clone: Clone) -> list[Snapshot]:
    """All snapshots, newest first; empty when none was made yet. Raises NoRepository."""
    with _repository(clone) as repo:
        if not _tip(repo)[0]:
            return []
        layout = "--format=%H%n%ct%n%B"
        log = _git(repo, "log", "-z", "--first-parent", layout, REF)
    records = [r.split("\n", 2) for r in log.decode("utf-8", "replace").split("\0") if r]
    width = _distinct([r[0] for r in records])
    return [
        Snapshot(
            number=len(records) - place,
            id=commit,
            short=commit[:width],
            when=datetime.fromtimestamp(int(seconds), UTC),
            **_decompose(body),
        )
        for place, (commit, seconds, body) in enumerate(records)
    ]


def resolve(clone: Clone, text: str) -> Snapshot:
    """The snapshot meant by `latest`, a listed number (`12`), one from the end (`-1` is the latest), or
    the beginning of an id (4 digits or more).

    Raises UsageError when there is none or several, NoRepository as `history` does.
    """
    snapshots = history(clone)
    wanted = text.strip().lower()
    if not snapshots:
        raise UsageError("There are no snapshots yet: grading a day makes one.")
    if wanted == "latest":
        return snapshots[0]
    if re.fullmatch(r"-\d{1,6}", wanted) and 1 <= -int(wanted) <= len(snapshots):
        return snapshots[-int(wanted) - 1]
    if re.fullmatch(r"\d{1,6}", wanted) and 1 <= int(wanted) <= len(snapshots):
        return snapshots[-int(wanted)]
    matches = [s for s in snapshots if s.id.startswith(wanted)] if len(wanted) >= 4 else []
    if len(matches) == 1:
        return matches[0]
    if matches:
        problem = f"'{text}' begins several ids: {', '.join(s.short for s in matches[:5])}."
    else:
        problem = f"There is no snapshot '{text}'; they are numbered 1 to {len(snapshots)}."
    raise UsageError(problem, next_step="tinyllm-grade history")


def files_of(clone: Clone, id: str) -> dict[str, tuple[int, bytes]]:
    """A snapshot's files: {path relative to exercises/: (mode, bytes)}; a link's bytes are its target.

    Raises UsageError when there is no such commit, NoRepository as `history` does.
    """
    with _repository(clone) as repo:
        try:
            commit = _git(repo, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{id}^{{commit}}")
        except _GitFailed:
            raise UsageError(f"There is no snapshot '{id}'.", next_step="tinyllm-grade history") from None
        listing = _git(repo, "ls-tree", "-r", "-z", commit.decode().strip())
        entries = [e.split(b"\t", 1) for e in listing.split(b"\0") if e]
        entries = [(about.split(), path) for about, path in entries if path.startswith(PREFIX)]
        asked = b"".join(about[2] + b"\n" for about, _ in entries)
        stream = _git(repo, "cat-file", "--batch", data=asked)
    files, at = {}, 0
    for about, path in entries:  # each answer: "<id> blob <size>\n", the bytes, "\n"
        begin = stream.index(b"\n", at) + 1
        size = int(stream[at:begin].split()[2])
        at = begin + size + 1
        files[os.fsdecode(path.removeprefix(PREFIX))] = (int(about[0], 8), stream[begin : begin + size])
    return files


def _decompose(body: str) -> dict[str, object]:
    """A commit message's text and trailers, as the fields of a Snapshot."""
    head, gap, tail = body.strip().rpartition("\n\n")
    pairs = [re.fullmatch(r"([A-Za-z][A-Za-z0-9-]*): (.+)", line) for line in tail.split("\n")]
    if gap and all(pairs):
        return {"message": head.strip(), "trailers": {p[1]: p[2] for p in pairs}}
    return {"message": body.strip(), "trailers": {}}


def _distinct(ids: list[str]) -> int:
    """How many digits tell these ids apart, at least 7."""
    return next(n for n in range(7, 65) if len({i[:n] for i in ids}) == len(ids))


# ---- git


class _GitFailed(Exception):
    def __init__(self, command: str, complaint: str) -> None:
        super().__init__(command, complaint)
        self.command = command
        self.complaint = complaint


def _git(repo: Repo, *arguments: str, data: bytes = b"", env: dict[str, str] | None = None) -> bytes:
    """Run one git command and return what it printed. Raises _GitFailed."""
    settings = [part for key, value in SETTINGS for part in ("-c", f"{key}={value}")]
    command = [repo.git.GIT_PYTHON_GIT_EXECUTABLE, *settings, *arguments]
    process = repo.git.execute(command, istream=subprocess.PIPE, as_process=True, env=env)
    output, complaint = process.communicate(data)
    if process.returncode != 0:
        raise _GitFailed(arguments[0], complaint.decode("utf-8", "replace"))
    return output


@contextmanager
def _repository(clone: Clone) -> Iterator[Repo]:
    """The repository that the clone lies in. Whatever keeps git from working becomes NoRepository."""
    with _own_environment():
        try:
            import git  # 130 ms: only when a snapshot is made or read
        except ModuleNotFoundError:
            raise NoRepository("GitPython is not installed.", next_step="pip install GitPython") from None
        except ImportError:  # how GitPython says it found no git
            raise NoRepository(NO_GIT) from None
        try:
            repo = git.Repo(clone.root, search_parent_directories=True, expand_vars=False)
        except (git.InvalidGitRepositoryError, git.NoSuchPathError):
            raise NoRepository(f"{clone.root} is not in a git repository.") from None
        try:
            yield repo
        except git.GitCommandNotFound:
            raise NoRepository(NO_GIT) from None
        except _GitFailed as error:
            raise _explained(error, clone.root) from None
        except OSError as error:
            raise NoRepository(f"A snapshot could not be made or read: {error}.") from None
        finally:
            repo.close()


NO_GIT = "git is not installed, or not on the PATH."


def _explained(error: _GitFailed, root: Path) -> NoRepository:
    if re.search(r"dubious ownership|unsafe repository", error.complaint):
        named = re.search(r"safe\.directory (.+)", error.complaint)
        return NoRepository(
            f"git does not trust the repository around {root}: it belongs to another user.",
            next_step=f"git config --global --add safe.directory {named[1] if named else root}",
        )
    lines = [line.strip() for line in error.complaint.splitlines() if line.strip()]
    cause = next((line for line in lines if line.startswith(("fatal:", "error:"))), "".join(lines[:1]))
    return NoRepository(f"git {error.command} failed: {cause or 'it gave no reason'}")


@contextmanager
def _own_environment() -> Iterator[None]:
    """Without the variables that would point git at another repository or index than the clone's."""
    before = {name: os.environ.pop(name) for name in FOREIGN if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
