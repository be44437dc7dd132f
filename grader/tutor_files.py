"""The files from which AI assistants take instructions by themselves: written, refreshed and removed.

Each of ours begins (after a header that its reader needs) with a marker line that holds a checksum of the
rest. A file without it, or whose text was edited since, is somebody else's and left alone. git is told to
ignore them in .git/info/exclude, so nothing that it tracks changes.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .clone import Clone
from .files import faults, read_or_none, short_hash, write_atomically

_CURSOR = "---\ndescription: How to tutor in this course\nglobs:\nalwaysApply: true\n---\n"
_WINDSURF = "---\ntrigger: always_on\n---\n"

# Path in the clone -> what must stand before everything else. By the tools' documentation of autumn 2026:
FILES = {
    "AGENTS.md": "",  # the common name: Codex, Cursor, Copilot, Zed, Amp, Jules, Junie, opencode and others
    "CLAUDE.md": "",  # Claude Code
    "GEMINI.md": "",  # Gemini CLI
    ".github/copilot-instructions.md": "",  # GitHub Copilot
    ".cursor/rules/tinyllm-tutor.mdc": _CURSOR,
    ".windsurf/rules/tinyllm-tutor.md": _WINDSURF,
    ".clinerules/tinyllm-tutor.md": "",  # Cline
}

_MARKER = "<!-- tinyllm-tutor {}: written by `tinyllm-grade tutor --install`, removed by `--uninstall` -->\n"
_MARKED = re.compile(rb"\A(?:---\n.*?\n---\n)?<!-- tinyllm-tutor ([0-9a-f]{12}):[^\n]*-->\n", re.DOTALL)
# The lines around ours in git's list.
_BEGIN = b"# tinyllm-grade tutor --install"
_END = b"# end of tinyllm-grade tutor --install"


@dataclass
class Done:
    """What was changed, by paths relative to the clone, and what was left alone and why."""

    written: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    excluded: bool = False  # whether there is a git repository that was told


def install(clone: Clone, text: str) -> Done:
    """Write the text to every file that is free or ours. Raises EnvironmentFault when that fails."""
    done = Done()
    reasons = {name: _not_ours(clone, clone.root / name) for name in FILES}
    done.left = [(name, why) for name, why in reasons.items() if why]
    exclude = _exclude_file(clone)
    if exclude is not None:  # before the first file is there to be seen
        edited = {name for name in reasons if _MARKED.match(_text(clone.root / name) or b"")}
        _set_excluded(exclude, sorted(name for name, why in reasons.items() if not why or name in edited))
        done.excluded = True
    for name, header in FILES.items():
        if reasons[name]:
            continue
        path = clone.root / name
        with faults(f"{name} cannot be written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, (header + _MARKER.format(_sum(text.encode())) + text).encode())
        done.written.append(name)
    return done


def uninstall(clone: Clone) -> Done:
    """Remove the files that are ours, folders that become empty, and what git was told."""
    done = Done()
    for name in FILES:
        path = clone.root / name
        if not path.exists() and not path.is_symlink():
            continue
        if why := _not_ours(clone, path):
            if _MARKED.match(_text(path) or b""):
                done.left.append((name, why))
            continue
        with faults(f"{name} cannot be removed"):
            path.unlink()
        done.removed.append(name)
        for folder in path.parents:
            if folder == clone.root:
                break
            with suppress(OSError):  # not empty: somebody keeps other things there
                folder.rmdir()
    exclude = _exclude_file(clone)
    if exclude is not None:
        _set_excluded(exclude, sorted(name for name, _ in done.left))
    return done


def _not_ours(clone: Clone, path: Path) -> str:
    """Why the file may not be written or removed; "" when it may."""
    if path.is_symlink():
        return "it is a link"
    # A folder that is a link may lead anywhere.
    if any(p.is_symlink() for p in path.parents if p != clone.root and clone.root in p.parents):
        return "its folder is a link"
    if any(p.exists() and not p.is_dir() for p in path.parents if clone.root in p.parents):
        return "its folder is a file"
    if not path.exists():
        return ""
    if not path.is_file():
        return "it is no file"
    data = _text(path)
    match = _MARKED.match(data) if data is not None else None
    if match is None:
        return "it is not from `tutor --install`"
    if match[1].decode() != _sum(data[match.end() :]):
        return "it was edited since it was written; remove it by hand if you do not want it"
    return ""


def _text(path: Path) -> bytes | None:
    try:
        data = read_or_none(path)
    except OSError:
        return None
    return None if data is None else data.replace(b"\r\n", b"\n")


def _sum(text: bytes) -> str:
    return short_hash(b" ".join(text.split()))


# ---- git's list of what it ignores here


def _exclude_file(clone: Clone) -> tuple[Path, str] | None:
    """info/exclude of the repository that the clone is in, and the clone's place in it ("" for its root).

    The file's place differs in a linked working tree. None without a repository.
    """
    for folder in (clone.root, *clone.root.parents):
        git = folder / ".git"
        if git.is_file():
            match = re.match(r"gitdir:\s*(.+)", git.read_text(encoding="utf-8", errors="replace"))
            if match is None:
                return None
            git = (folder / match[1].strip()).resolve()
            common = read_or_none(git / "commondir")
            if common is not None:
                git = (git / common.decode(errors="replace").strip()).resolve()
        if git.is_dir():
            inside = clone.root.relative_to(folder).as_posix()
            return git / "info" / "exclude", "" if inside == "." else f"{inside}/"
    return None


def _set_excluded(exclude: tuple[Path, str], names: list[str]) -> None:
    """Have our lines in the file name exactly these paths; every other line stays as it is."""
    path, inside = exclude
    with faults(".git/info/exclude cannot be written"):
        old = read_or_none(path) or b""
        ours = {_BEGIN, _END, *(f"/{inside}{name}".encode() for name in FILES)}
        lines = [line for line in old.splitlines(keepends=True) if line.strip() not in ours]
        if names:
            if lines and not lines[-1].endswith(b"\n"):
                lines[-1] += b"\n"
            lines += [_BEGIN + b"\n", *(f"/{inside}{n}\n".encode() for n in names), _END + b"\n"]
        new = b"".join(lines)
        if new != old:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, new)
