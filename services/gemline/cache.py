"""Where gemline keeps what it can make again: the demo model, logs, the ready file."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """$GEMLINE_CACHE, or ~/.cache/gemline. It may not be there yet."""
    return Path(os.environ.get("GEMLINE_CACHE") or Path.home() / ".cache" / "gemline")
