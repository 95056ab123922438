"""Where gemline keeps what it can make again: the demo model, logs, the ready file."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """$GEMLINE_CACHE, $XDG_CACHE_HOME/gemline or ~/.cache/gemline. It may not be there yet."""
    if own := os.environ.get("GEMLINE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemline"
