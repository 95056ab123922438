"""`gemline fetch`: a model brought to a directory and checked, before workers that reach no network read it."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def fetch(
    source: Annotated[str, typer.Argument(help="a directory, hf://owner/name@<40 hex digits>, or demo://")],
    to: Annotated[Path | None, typer.Option(help="directory to bring it to, unless it is one already")] = None,
    manifest_sha256: Annotated[
        str, typer.Option(help="SHA-256 of SHA256SUMS itself, 64 hex digits; default: whatever it says")
    ] = "",
) -> None:
    """Bring a model to a directory, whole or not at all, and hold every file to its SHA-256; prints the directory."""
    from gemline.serve.fetch import fetch as bring

    print(bring(source, to, manifest_sha256.lower(), lambda line: print(line, file=sys.stderr, flush=True)))
