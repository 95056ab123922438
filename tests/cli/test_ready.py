"""Where a command finds the stack of this machine, and whom it tells the key."""

import json
from pathlib import Path

import pytest

from gemline.cli.options import find_stack
from gemline.cli.ready import default_ready_file, read_ready
from gemline.errors import ConfigurationError


@pytest.fixture
def ready_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "ready.json"
    processes = [{"role": "decode", "pid": 7, "address": "127.0.0.1:2", "metrics": "127.0.0.1:3"}]
    fields = {"http": "http://127.0.0.1:1", "grpc": "127.0.0.1:5", "api_key": "gk_a", "model": "m"}
    path.write_text(json.dumps({**fields, "processes": processes}))
    monkeypatch.setenv("GEMLINE_READY_FILE", str(path))
    return path


def test_the_ready_file_says_where_everything_is(ready_file: Path) -> None:
    ready = read_ready(ready_file)
    assert (ready.http, ready.grpc, ready.api_key, ready.model) == ("http://127.0.0.1:1", "127.0.0.1:5", "gk_a", "m")


def test_what_gemline_up_writes_is_read_back(tmp_path: Path) -> None:
    from gemline.serve.ready import ProcessInfo, Ready

    processes = (ProcessInfo("gateway", 1, "127.0.0.1:2", "127.0.0.1:3"),)
    written = Ready("http://h:1", "h:2", "", "m", "redis://h:3", "/tmp/logs", processes)
    written.write(tmp_path / "sub" / "ready.json")
    ready = read_ready(tmp_path / "sub" / "ready.json")
    assert (ready.grpc, ready.api_key) == ("h:2", None)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"grpc": "a:1"}', '{"http": ""}'])
def test_a_damaged_ready_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ready.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=str(path)):
        read_ready(path)


def test_a_missing_ready_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="run `gemline up`, or give --address"):
        read_ready(tmp_path / "ready.json")


def test_the_variable_goes_before_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GEMLINE_READY_FILE", raising=False)
    monkeypatch.delenv("GEMLINE_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_ready_file() == tmp_path / ".cache" / "gemline" / "ready.json"
    monkeypatch.setenv("GEMLINE_CACHE", "/elsewhere")
    assert default_ready_file() == Path("/elsewhere/ready.json")
    monkeypatch.setenv("GEMLINE_READY_FILE", "/this.json")
    assert default_ready_file() == Path("/this.json")


@pytest.mark.parametrize(
    ("address", "api_key", "expected"),
    [
        (None, None, ("127.0.0.1:5", "gk_a")),
        (None, "gk_mine", ("127.0.0.1:5", "gk_mine")),
        ("127.0.0.1:5", None, ("127.0.0.1:5", "gk_a")),
        ("elsewhere:5", None, ("elsewhere:5", None)),
        ("elsewhere:5", "gk_mine", ("elsewhere:5", "gk_mine")),
    ],
)
def test_the_ready_files_key_goes_to_its_own_stack_alone(
    ready_file: Path, address: str | None, api_key: str | None, expected: tuple[str, str | None]
) -> None:
    assert find_stack(address, api_key) == expected


def test_a_given_address_needs_no_ready_file(ready_file: Path) -> None:
    ready_file.write_text("damaged")
    assert find_stack("elsewhere:5", None) == ("elsewhere:5", None)
    ready_file.unlink()
    assert find_stack("elsewhere:5", None) == ("elsewhere:5", None)
