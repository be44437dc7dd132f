"""How the program says times and lists of days."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def duration(seconds: float) -> str:
    """To the minute: "1 h 20 min", "2 h", "45 min"; "under 1 min" for less, "0 min" for nothing."""
    minutes = int(seconds / 60 + 0.5)
    if minutes == 0:
        return "under 1 min" if seconds > 0 else "0 min"
    hours, minutes = divmod(minutes, 60)
    return " ".join(part for part in (hours and f"{hours} h", minutes and f"{minutes} min") if part)


def spans(chosen: Iterable[str], everything: Sequence[str]) -> str:
    """Days by their ids, in order, neighbours in `everything` run together: "1.1 to 1.4, 1.6"."""
    runs: list[list[int]] = []
    for at in sorted(everything.index(c) for c in chosen):
        if runs and runs[-1][-1] == at - 1:
            runs[-1].append(at)
        else:
            runs.append([at])
    shown = []
    for run in runs:
        first, last = everything[run[0]], everything[run[-1]]
        if len(run) > 2:
            shown.append(f"{first} to {last}")
        else:
            shown += [first] if len(run) == 1 else [first, last]
    return ", ".join(shown)
