"""Whether two endings of a check are the same mistake's (runs in a child).

Equal means: after the same comparisons, at the same one, and with the same output, as near as the check
itself asks right solutions to be. The tolerance is taken around the known mistake's output instead of the
right one.
"""

from __future__ import annotations

import math

import numpy as np

from .witness import Ending, Seen

# A learner's output must be much nearer to the mistake's than to the right one.
NEARER = 4.0
# Roundings by which two ways of computing one thing may differ, where the check allows none at all.
ROUNDINGS = 16
ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# The probability with which two rows of draws from one distribution are taken for different ones.
FALSE_ALARM = 1e-6


def distance(theirs: Ending, known: Ending) -> float | None:
    """How far a learner's ending is from a known mistake's, in tolerances; None when it is another one."""
    if (theirs.at, theirs.kind) != (known.at, known.kind):
        return None
    found = _between(theirs.seen, known)
    if found is None or found > 1 or (found > 0 and found * NEARER > theirs.off):
        return None
    return found


def _between(theirs: Seen, known: Ending) -> float | None:
    ours = known.seen
    if (theirs.form, theirs.shape, theirs.dtype) != (ours.form, ours.shape, ours.dtype):
        return None
    if ours.form == "draws":
        return _of_draws(theirs, ours)
    if theirs.text != ours.text:
        return None
    if ours.form not in ("array", "ndarray"):
        return 0.0
    if theirs.values is None or ours.values is None or theirs.values.shape != ours.values.shape:
        return None
    if ours.values.dtype != np.float64 or theirs.values.dtype != np.float64:
        return 0.0 if np.array_equal(theirs.values, ours.values) else None
    return _of_numbers(theirs.values, ours.values, known)


def _of_numbers(theirs: np.ndarray, ours: np.ndarray, known: Ending) -> float | None:
    finite = np.isfinite(ours)
    same_oddities = (theirs == ours) | (np.isnan(theirs) & np.isnan(ours))
    if not (same_oddities | (finite & np.isfinite(theirs))).all():
        return None
    difference = np.abs(np.where(finite, theirs, 0.0) - np.where(finite, ours, 0.0))
    if not difference.any():
        return 0.0
    largest = float(np.abs(ours[finite]).max(initial=0.0))
    allowed = known.allowed
    if allowed is None:
        allowed = ROUNDINGS * ROUNDOFF.get(known.seen.dtype, 2.0**-24) * largest
    else:
        # A mistake that makes numbers larger makes their roundings larger too.
        if known.size and math.isfinite(known.size):
            allowed = allowed * max(1.0, largest / known.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(difference > 0, difference / allowed, 0.0)
    return float(np.nan_to_num(ratio, nan=math.inf).max(initial=0.0))


def _of_draws(theirs: Seen, ours: Seen) -> float | None:
    if theirs.text == ours.text:  # the very same ids
        return 0.0
    if theirs.values is None or ours.values is None or theirs.values.shape != ours.values.shape:
        return None
    if ((theirs.values > 0) != (ours.values > 0)).any():
        return None
    count = int(ours.text.split()[0])
    # Hoeffding for the difference of two means, over all cells.
    allowed = math.sqrt(math.log(2 * ours.values.size / FALSE_ALARM) / count)
    return float(np.abs(theirs.values - ours.values).max(initial=0.0)) / allowed
