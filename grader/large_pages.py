"""Memory in pages of 2 MB, for children that read all of a model's weights at every token.

Linux hands out memory in pages of 4 KB, and a processor remembers where some thousand of them are: reading
300 MB in order, it looks up every page again. In pages of 2 MB a plain sum over 256 MB was 1.7 times as fast
(in a virtual machine, where a look-up takes longest). The malloc of glibc, where MLX gets memory, asks for
large pages if this variable says so when the process starts. Elsewhere nothing reads it.
"""

from __future__ import annotations

from collections.abc import Mapping

TUNABLES = "GLIBC_TUNABLES"
SETTING = "glibc.malloc.hugetlb"


def variables(inherited: Mapping[str, str]) -> dict[str, str]:
    """What to add to the `inherited` environment of a child. A setting that is there already stays."""
    theirs = inherited.get(TUNABLES, "")
    if SETTING in theirs:
        return {}
    return {TUNABLES: ":".join(filter(None, [theirs, f"{SETTING}=1"]))}
