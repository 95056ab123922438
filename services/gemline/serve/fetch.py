"""A model brought to a directory and held to its SHA-256 sums, before anything reads it: what `gemline fetch` does.

The sums of a hub's files are the hub's own, of one commit; those of a directory are in its SHA256SUMS, which an
operator may name by its own SHA-256, and with it every byte of the model.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from gemline.demo.shipped import SHIPPED
from gemline.engine.manifest import MANIFEST, sha256_of, verify_manifest, write_manifest
from gemline.errors import CheckpointError, ConfigurationError
from gemline.serve.models import MODEL_FILES, hub_errors

DEMO = "demo://"
_HUB = re.compile(r"hf://(?P<repo_id>[A-Za-z0-9][\w.-]*/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
_NEEDED = ("config.json", "tokenizer.json")


class HubFile(Protocol):
    """A file of a repository, as huggingface_hub's RepoSibling has it."""

    @property
    def rfilename(self) -> str:
        """Its name."""

    @property
    def blob_id(self) -> str | None:
        """Its git object id: SHA-1 over a short head and the bytes."""

    @property
    def lfs(self) -> "LargeFile | None":
        """Of a file that is kept outside git."""


class LargeFile(Protocol):
    """A file that is kept outside git."""

    @property
    def sha256(self) -> str:
        """Of its bytes, hex."""


Progress = Callable[[str], None]


def fetch(source: str, target: Path | None, manifest_sha256: str = "", report: Progress = lambda line: None) -> Path:
    """The directory that holds the model, every file of it as SHA256SUMS says.

    `source` is a directory, which is checked where it is; `demo://`; or `hf://owner/name@commit`. The last two are
    brought to `target`, whole or not at all, unless it holds them already. Raises ConfigurationError for a source that
    is none of these or cannot be had, CheckpointError for files that are not what the sums say.
    """
    hub = _HUB.fullmatch(source)
    if hub is None and source != DEMO:
        if "://" in source:
            raise ConfigurationError(f"source {source}: must be a directory, {DEMO} or hf://owner/name@<40 hex digits>")
        return _checked(Path(source), manifest_sha256)
    if target is None:
        raise ConfigurationError(f"source {source}: needs --to, the directory to bring it to")
    if (target / MANIFEST).exists():
        report(f"{target}: is there; checking its files")
        return _checked(target, manifest_sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as place:
        partial = Path(place) / "model"
        report(f"{source}: bringing it to {target}")
        if hub is None:
            shutil.copytree(SHIPPED, partial)
        else:
            _download(f"source {source}", hub["repo_id"], hub["revision"], partial)
        _checked(partial, manifest_sha256)
        _move(partial, target)
    return target


def _checked(directory: Path, manifest_sha256: str) -> Path:
    manifest = directory / MANIFEST
    if not manifest.exists():
        raise CheckpointError(f"{directory}: no {MANIFEST}; `sha256sum *.json *.safetensors > {MANIFEST}` makes one")
    if manifest_sha256 and (actual := sha256_of(manifest)) != manifest_sha256:
        raise CheckpointError(f"{manifest}: SHA-256 is {actual}, but {manifest_sha256} was asked for")
    summed = {line.partition("  ")[2] for line in manifest.read_text(errors="replace").splitlines()}
    read = {path.name for path in directory.iterdir() if any(fnmatch(path.name, name) for name in MODEL_FILES)}
    if unsummed := sorted((read | set(_NEEDED)) - summed):
        raise CheckpointError(f"{manifest}: says nothing of {', '.join(unsummed)}")
    verify_manifest(directory)
    return directory


def _download(named: str, repo_id: str, revision: str, target: Path) -> None:
    with hub_errors(named, repo_id):
        from huggingface_hub import HfApi, snapshot_download

        found = HfApi().model_info(repo_id, revision=revision, files_metadata=True).siblings or []
        snapshot_download(repo_id, revision=revision, allow_patterns=MODEL_FILES, local_dir=target)
    files = [file for file in found if any(fnmatch(file.rfilename, name) for name in MODEL_FILES)]
    check_hub_files(files, target)
    shutil.rmtree(target / ".cache", ignore_errors=True)  # the hub library's own notes
    write_manifest(target, sorted(file.rfilename for file in files))


def check_hub_files(files: Iterable[HubFile], directory: Path) -> None:
    """Raises CheckpointError for the first that is missing or not, byte for byte, what the hub has."""
    for file in files:
        path = directory / file.rfilename
        if file.lfs is not None:
            said, actual = file.lfs.sha256, sha256_of(path)
        else:
            said, actual = file.blob_id or "", _git_object_id(path)
        if actual != said:
            raise CheckpointError(f"{path}: is {actual}, but the hub says {said or 'nothing'}")


def _git_object_id(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _move(partial: Path, target: Path) -> None:
    """In one step. Where somebody else was faster, theirs, which was checked too, stays."""
    try:
        partial.rename(target)
    except OSError as error:
        if not (target / MANIFEST).exists():
            raise ConfigurationError(f"{target}: cannot be put there: {error.strerror}") from error
