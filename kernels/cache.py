"""Where compiled things are kept between runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def folder(kind: str) -> Path:
    """The cache folder for one kind of thing: below TINYLLM_CACHE if set, else the user's of this system."""
    chosen = os.environ.get("TINYLLM_CACHE")
    if chosen:
        return Path(chosen) / kind
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tinyllm" / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyllm" / kind
