"""Where one run of `gemline up` keeps its logs: a folder in the cache, the last few runs' beside it."""

import os
import shutil
import time
from pathlib import Path

from gemline.cache import cache_dir
from gemline.errors import ConfigurationError

_NUM_KEPT = 8


def make_run_dir() -> Path:
    """A new folder, named by the time and this process; folders of runs long over are removed.

    Raises ConfigurationError when the cache cannot be written.
    """
    runs = cache_dir() / "runs"
    made = runs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        made.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"{made}: the logs cannot be written there: {error.strerror}") from error
    for old in sorted(runs.iterdir())[:-_NUM_KEPT]:
        if not _lives(old):
            shutil.rmtree(old, ignore_errors=True)
    return made


def _lives(run_dir: Path) -> bool:
    pid = run_dir.name.rpartition("-")[2]
    return pid.isdigit() and Path(f"/proc/{pid}").exists()
