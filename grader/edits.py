"""Misconceptions as edits of the reference's text: one, or two at once.

Everything here is text to text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from .catalog import Misconception
from .errors import SpecError


def misconceived(source: str, *mistakes: Misconception) -> str:
    """A reference module with the edits of misconceptions that all stand in it.

    Raises SpecError unless each fits in one place, and ValueError when two of them change the same place.
    """
    spans = sorted((_span(source, mistake), mistake.replace) for mistake in mistakes)
    changed, end = "", 0
    for (first, last), replacement in spans:
        if first < end:
            raise ValueError("two edits of one place")
        changed += source[end:first] + replacement
        end = last
    return changed + source[end:]


def apart(source: str, mistakes: Sequence[Misconception]) -> bool:
    """Whether no two of the misconceptions, all of one module, change the same place."""
    spans = sorted(_span(source, mistake) for mistake in mistakes)
    return all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def _span(source: str, mistake: Misconception) -> tuple[int, int]:
    count = source.count(mistake.find)
    if count != 1:
        times = "does not occur" if not count else f"occurs {count} times"
        raise SpecError(f"misconception '{mistake.id}': its find text {times} in reference/{mistake.module}")
    first = source.index(mistake.find)
    return first, first + len(mistake.find)
