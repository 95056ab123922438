"""`gemline fetch`: a model is brought whole and as its sums say, or not at all."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gemline.demo.shipped import SHIPPED
from gemline.engine.manifest import MANIFEST, sha256_of
from gemline.errors import CheckpointError, ConfigurationError
from gemline.serve.fetch import fetch

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCE = f"hf://acme/tiny@{COMMIT}"


def test_the_demo_model_is_brought_with_its_sums(tmp_path: Path) -> None:
    target = fetch("demo://", tmp_path / "models" / "demo")
    assert {path.name for path in target.iterdir()} >= {"model.safetensors", "tokenizer.json", MANIFEST}
    assert sha256_of(target / "model.safetensors") == sha256_of(SHIPPED / "model.safetensors")
    assert [path.name for path in target.parent.iterdir()] == ["demo"]


def test_a_second_time_nothing_is_brought_but_everything_is_checked(tmp_path: Path) -> None:
    target = fetch("demo://", tmp_path / "demo")
    before = (target / "config.json").stat().st_ino
    fetch("demo://", target)
    assert (target / "config.json").stat().st_ino == before
    (target / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: SHA-256 is .*, but SHA256SUMS says"):
        fetch("demo://", target)


def test_a_directory_is_checked_where_it_is(tmp_path: Path) -> None:
    target = fetch("demo://", tmp_path / "demo")
    assert fetch(str(target), None) == target
    assert fetch(str(target), None, sha256_of(target / MANIFEST)) == target


def test_other_sums_than_the_operator_named_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "demo"
    with pytest.raises(CheckpointError, match="but 00 was asked for"):
        fetch("demo://", target, "00")
    assert not target.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_without_sums_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no SHA256SUMS"):
        fetch(str(tmp_path), None)


def test_a_file_that_no_sum_speaks_of_is_refused(tmp_path: Path) -> None:
    target = fetch("demo://", tmp_path / "demo")
    (target / "model-2.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"says nothing of model-2\.safetensors"):
        fetch(str(target), None)


@pytest.mark.parametrize("source", ["hf://acme/tiny", "hf://acme/tiny@main", "s3://bucket/model", "demo://x"])
def test_a_source_that_is_none_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="must be a directory, demo:// or hf://"):
        fetch(source, tmp_path / "model")


def test_a_source_from_elsewhere_needs_a_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs --to"):
        fetch("demo://", None)


class Hub:
    """A stand-in for Hugging Face's hub: one model, one commit."""

    def __init__(self) -> None:
        names = ("config.json", "tokenizer.json", "model.safetensors")
        self.files = {name: (SHIPPED / name).read_bytes() for name in names} | {"README.md": b"a card"}
        self.said = dict(self.files)  # what it says of them, which may be something else

    def application(self) -> web.Application:
        """Its routes."""
        app = web.Application()
        app.router.add_get("/api/models/acme/tiny/revision/{commit}", self.info)
        app.router.add_get("/api/models/acme/tiny/tree/{commit}", self.tree)
        app.router.add_get("/acme/tiny/resolve/{commit}/{name}", self.file)
        return app

    async def info(self, request: web.Request) -> web.Response:
        """What it says of the commit."""
        if request.match_info["commit"] != COMMIT:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RevisionNotFound"})
        siblings = [self._sibling(name, content) for name, content in self.said.items()]
        return web.json_response({"id": "acme/tiny", "sha": COMMIT, "siblings": siblings})

    async def tree(self, request: web.Request) -> web.Response:
        """The same, as a listing."""
        rows = [
            {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
            for name, content in self.said.items()
        ]
        return web.json_response(rows)

    async def file(self, request: web.Request) -> web.Response:
        """Its bytes."""
        content = self.files[request.match_info["name"]]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return web.Response(body=content, headers={"X-Repo-Commit": COMMIT, "ETag": etag})

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_id(content)}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
        return sibling


def git_id(content: bytes) -> str:
    """As git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Hub]:
    stand_in = Hub()
    runner = web.AppRunner(stand_in.application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield stand_in
    await runner.cleanup()


async def in_thread(source: str, target: Path) -> Path:
    """Fetch while the stand-in answers on this loop."""
    return await asyncio.to_thread(fetch, source, target)


async def test_a_model_of_the_hub_is_brought_with_sums_of_its_commit(hub: Hub, tmp_path: Path) -> None:
    target = await in_thread(SOURCE, tmp_path / "models" / "tiny")
    assert {path.name for path in target.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        MANIFEST,
    }
    assert (target / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert fetch(str(target), None) == target


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
async def test_bytes_that_are_not_the_commits_are_refused(name: str, hub: Hub, tmp_path: Path) -> None:
    content = hub.files[name]
    hub.files[name] = content[:-2] + bytes([content[-2] ^ 1, content[-1]])
    with pytest.raises(CheckpointError, match=f"{name}: is .*, but the hub says"):
        await in_thread(SOURCE, tmp_path / "models" / "tiny")
    assert list((tmp_path / "models").iterdir()) == []


async def test_a_commit_that_is_not_there_is_said(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no such commit"):
        await in_thread(SOURCE.replace(COMMIT, "f" * 40), tmp_path / "tiny")


def test_the_command_prints_where_the_model_is(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from gemline.cli.main import app

    result = CliRunner().invoke(app(), ["fetch", "demo://", "--to", str(tmp_path / "demo")])
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'demo'}\n"
    assert json.loads((tmp_path / "demo" / "config.json").read_text())["architectures"] == ["Gemma2ForCausalLM"]
