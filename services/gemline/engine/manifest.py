"""Checks a directory's files against its SHA256SUMS, in the format of the tool sha256sum. Knows no model."""

import hashlib
from pathlib import Path

from gemline.errors import CheckpointError

MANIFEST = "SHA256SUMS"


def verify_manifest(directory: Path) -> None:
    """Nothing to do without SHA256SUMS; CheckpointError names the first file that is missing or differs."""
    path = directory / MANIFEST
    if not path.exists():
        return
    for line in path.read_text(errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        if Path(name).name != name or not name or len(expected) != 64:
            raise CheckpointError(f"{path}: {line!r:.200} is not a SHA-256 and a file name")
        if (actual := sha256_of(directory / name)) != expected:
            raise CheckpointError(f"{directory / name}: SHA-256 is {actual}, but {MANIFEST} says {expected}")


def write_manifest(directory: Path, names: list[str]) -> None:
    """Writes SHA256SUMS for those files."""
    (directory / MANIFEST).write_text("".join(f"{sha256_of(directory / name)}  {name}\n" for name in names))


def sha256_of(path: Path) -> str:
    """Hex digest of the file's bytes."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
