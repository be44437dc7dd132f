"""How the program says times."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """ "42 min", "1 h 20 min", "under a minute"."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return "under a minute"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
