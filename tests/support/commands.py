"""Runs `gemline` as a person does: a process, its exit code and what it wrote."""

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "gemline.cli.main"]


def environment(home: Path, **variables: str) -> dict[str, str]:
    """This process's environment without its gemline settings; `home` holds the cache."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GEMLINE_")}
    return {**kept, "GEMLINE_CACHE": str(home), "COLUMNS": "200", **variables}


def gemline(*arguments: str, home: Path, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        env=environment(home, **variables),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
