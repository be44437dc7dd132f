"""grader/upstream.sha256: the hashes of what ships, which a strict grading compares with."""

from __future__ import annotations

from ..baseline import MANIFEST, manifest_text
from ..clone import Clone
from ..files import read_or_none, write_atomically


def differs(clone: Clone) -> list[str]:
    """One sentence when the manifest is not that of the files, naming the first of them."""
    fresh = manifest_text(clone).splitlines()
    kept = (read_or_none(clone.root / MANIFEST) or b"").decode(errors="replace").splitlines()
    changed = sorted(set(fresh) ^ set(kept), key=lambda line: line[66:])
    if not changed:
        return []
    names = list(dict.fromkeys(line[66:] for line in changed))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"{MANIFEST} is not of these files: {names[0]}{more}"]


def write(clone: Clone) -> bool:
    """Write the manifest of the files as they are; whether that changed anything."""
    path, fresh = clone.root / MANIFEST, manifest_text(clone).encode()
    if read_or_none(path) == fresh:
        return False
    write_atomically(path, fresh)
    return True
