"""The course's files as they were published: their hashes, and where possible their bytes.

`upstream.sha256`, beside this file, lists what ships; `sha256sum -c grader/upstream.sha256` reads it as well.
It is made by `python -P -m tinyllm.grader.authoring manifest`, and CI compares. A commit, branch or tag of a
git repository can stand in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .clone import Clone
from .errors import UsageError

MANIFEST = "grader/upstream.sha256"
PARTS = ("checkpoints", "grader", "kernels", "reference")  # what is not the learner's to change
# What no grading depends on.
UNGUARDED = ("grader/authoring/", "grader/bench/", "grader/pictures/", "grader/tests/")
UNGUARDED_ENDINGS = (".md", ".svg")
JUNK_FOLDERS = frozenset(
    (
        "__pycache__",
        ".pytest_cache",
        ".ruff_cache",
        ".hypothesis",
        ".ipynb_checkpoints",
        ".vscode",
        ".idea",
        ".git",
    )
)
JUNK_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")
JUNK_ENDINGS = ("~", ".swp", ".swo", ".orig", ".rej", ".tmp")


@dataclass(frozen=True)
class Baseline:
    """What upstream's files are. `read` gives a file's bytes as published, or None: not at hand."""

    name: str
    digests: Mapping[str, str]  # path from the clone's root -> SHA-256 of its normalised bytes
    read: Callable[[str], bytes | None] = field(compare=False)

    def covers(self, part: str) -> bool:
        return any(path.startswith(part + "/") for path in self.digests)


def is_guarded(path: str) -> bool:
    """Whether a file of the course counts: not the manifest itself, nor what no grading depends on."""
    return path != MANIFEST and not path.startswith(UNGUARDED) and not path.endswith(UNGUARDED_ENDINGS)


def digest(data: bytes) -> str:
    """The SHA-256 of a file, text with its line ends as LF: a checkout with CRLF is not an edit."""
    return hashlib.sha256(normalised(data)).hexdigest()


def normalised(data: bytes) -> bytes:
    return data if b"\0" in data else data.replace(b"\r\n", b"\n")


def files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder at any depth, in order, without what editors and programs leave behind.

    Compiled Python outside __pycache__ is not left out: Python would import it in place of a source.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.is_file():
            if path.name not in JUNK_FILES and not path.name.endswith(JUNK_ENDINGS):
                yield path
        elif path.name not in JUNK_FOLDERS and not path.name.endswith(".egg-info"):
            yield from files_below(path)


def manifest_text(clone: Clone) -> str:
    """The manifest of the clone's files as they are now."""
    lines = []
    for part in PARTS:
        for path in files_below(clone.root / part):
            name = path.relative_to(clone.root).as_posix()
            if is_guarded(name):
                lines.append(f"{digest(path.read_bytes())}  {name}\n")
    return "".join(lines)


def parse(text: str, source: str) -> dict[str, str]:
    """A manifest's hashes by path. Raises UsageError naming the line that is none."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        value, _, path = line.partition("  ")
        if len(value) != 64 or not path:
            raise UsageError(f"{source}, line {number}: not a line of a manifest of hashes.")
        found[path] = value
    return found


def shipped(clone: Clone) -> Baseline:
    """The manifest that belongs to this program."""
    path = Path(__file__).with_name(Path(MANIFEST).name)
    if not path.is_file():
        raise UsageError(
            f"{MANIFEST} is not there, so nothing says what the course's own files are.",
            next_step="Bring it back with git, or name a commit: --upstream origin/main.",
        )
    return of_manifest(path, clone, "the manifest that ships with this tinyllm-grade")


def of_manifest(path: Path, clone: Clone, name: str = "") -> Baseline:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a manifest: {error}") from error
    digests = parse(text, str(path))
    return Baseline(
        name or f"the manifest {path}", digests, lambda p: _in_history(clone.root, p, digests.get(p, ""))
    )


def chosen(clone: Clone, upstream: str | None) -> Baseline:
    """What `--upstream` names: a manifest, or a commit, branch or tag; without it, the shipped manifest."""
    if upstream is None:
        return shipped(clone)
    if Path(upstream).is_file():
        return of_manifest(Path(upstream), clone)
    return of_commit(clone, upstream)


def of_commit(clone: Clone, ref: str) -> Baseline:
    """The course's files in a commit of the clone's repository."""
    repository = _repository(clone.root)
    commit = None
    if repository is not None:
        import git
        from gitdb.exc import ODBError

        try:
            commit = repository.commit(ref)
        except (git.GitError, ODBError, ValueError, IndexError):
            commit = None
    if commit is None:
        raise UsageError(
            f"--upstream {ref}: neither a file nor a commit of this clone.",
            next_step="Fetch it first: git fetch origin; then name it, for example --upstream origin/main.",
        )
    blobs: dict[str, Any] = {}
    for part in PARTS:
        try:
            tree = commit.tree / part
        except KeyError:
            continue
        blobs |= {str(b.path): b for b in tree.traverse() if b.type == "blob" and is_guarded(str(b.path))}
    digests = {path: digest(blob.data_stream.read()) for path, blob in blobs.items()}
    return Baseline(
        f"{ref} ({commit.hexsha[:10]})",
        digests,
        lambda p: normalised(blobs[p].data_stream.read()) if p in blobs else None,
    )


def is_older_version(clone: Clone, data: bytes) -> bool:
    """Whether the clone's repository knows these bytes: then they were once published, not made up."""
    repository = _repository(clone.root)
    if repository is None:
        return False
    for candidate in {normalised(data), data}:
        name = hashlib.sha1(b"blob %d\0" % len(candidate) + candidate, usedforsecurity=False).digest()
        if repository.odb.has_object(name):
            return True
    return False


def _repository(root: Path) -> Any:
    import git

    try:
        return git.Repo(root)
    except (git.GitError, OSError, ValueError):
        return None


def _in_history(root: Path, path: str, wanted: str, *, commits: int = 40) -> bytes | None:
    """The version of a file with this digest among the last commits that touched it."""
    import git
    from gitdb.exc import ODBError

    repository = _repository(root)
    if repository is None:
        return None
    try:
        for name in repository.git.rev_list("--all", f"-n{commits}", "--", path).split():
            try:
                data = (repository.commit(name).tree / path).data_stream.read()
            except KeyError:
                continue
            if digest(data) == wanted:
                return normalised(data)
    except (git.GitError, ODBError, ValueError):
        return None
    return None
