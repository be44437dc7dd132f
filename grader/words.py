"""How the program says times."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """To the minute: "1 h 20 min", "2 h", "45 min"; "under 1 min" for less, "0 min" for nothing."""
    minutes = int(seconds / 60 + 0.5)
    if minutes == 0:
        return "under 1 min" if seconds > 0 else "0 min"
    hours, minutes = divmod(minutes, 60)
    return " ".join(part for part in (hours and f"{hours} h", minutes and f"{minutes} min") if part)
