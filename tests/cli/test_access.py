"""`gemline tenant`, `project` and `key` with a real Redis: the commands as an operator types them."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gemline.cli.main import app
from gemline.errors import ConfigurationError, Conflict, GemlineError, NotFound

Call = Callable[..., Result]


@pytest.fixture
def call(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a command in this process, by far faster than in one of its own; what it raises is raised."""
    monkeypatch.setenv("GEMLINE_REDIS_URL", redis_url)
    monkeypatch.setenv("COLUMNS", "200")
    commands = app()

    def run(*arguments: str) -> Result:
        done = CliRunner().invoke(commands, arguments)
        if isinstance(done.exception, GemlineError):
            raise done.exception
        return done

    return run


def said(done: Result) -> str:
    assert done.exit_code == 0, done.output
    return done.output


def test_a_tenant_lives(call: Call) -> None:
    made = call("tenant", "create", "acme", "--requests-per-min", "60", "--weight", "2", "--models", "a,b")
    assert said(made) == "acme\n"
    assert said(call("tenant", "list")) == "acme  weight 2  default  60 requests/min  models a,b\n"
    options = ("--token-budget", "1000", "--period", "day", "--models", "none", "--disable", "--label", "the shop")
    changed = said(call("tenant", "update", "acme", *options))
    assert changed == "acme  weight 2  default  disabled  60 requests/min, 1000 tokens/day  (the shop)\n"
    assert said(
        call("tenant", "update", "acme", "--requests-per-min", "none", "--token-budget", "none", "--enable")
    ) == ("acme  weight 2  default  no limits  (the shop)\n")
    shown = json.loads(said(call("tenant", "show", "acme")))
    assert (shown["tenant_id"], shown["limits"]["period"], shown["is_disabled"]) == ("acme", "day", False)
    assert said(call("tenant", "delete", "acme")) == "acme\n"
    assert said(call("tenant", "list")) == ""


def test_a_project_lives(call: Call) -> None:
    call("tenant", "create", "acme")
    assert said(call("project", "create", "web", "--tenant", "acme", "--concurrent-requests", "3")) == "web\n"
    assert said(call("project", "list", "--tenant", "acme")) == "web  3 at once\n"
    changed = call("project", "update", "web", "--tenant", "acme", "--kv-byte-seconds", "5")
    assert said(changed) == "web  3 at once, 5 KV byte-seconds/month\n"
    assert json.loads(said(call("project", "show", "web", "--tenant", "acme")))["project_id"] == "web"
    assert said(call("project", "delete", "web", "--tenant", "acme")) == "web\n"
    with pytest.raises(NotFound):
        call("project", "show", "web", "--tenant", "acme")


def test_a_key_lives(call: Call) -> None:
    call("tenant", "create", "acme")
    call("project", "create", "web", "--tenant", "acme")
    options = ("--project", "web", "--tokens-per-min", "100", "--expires-in", "30d", "--label", "ci")
    key = said(call("key", "create", "--tenant", "acme", *options)).strip()
    key_id = key.split("_")[1]
    listed = said(call("key", "list", "--tenant", "acme"))
    pattern = rf"{key_id}  project web  expires \d{{4}}-\d\d-\d\dT[\d:]+Z  100 tokens/min  \(ci\)\n"
    assert re.fullmatch(pattern, listed)
    assert "never expires" in said(call("key", "update", key_id, "--expires-in", "none"))
    new = said(call("key", "rotate", key_id, "--grace", "10m")).strip()
    new_id = new.split("_")[1]
    lines = said(call("key", "list", "--tenant", "acme"))
    assert f"replaced by {new_id}" in lines and f"{new_id}  project web  never expires  100 tokens/min" in lines
    assert said(call("key", "revoke", key_id, new_id)) == f"{key_id}\n{new_id}\n"
    assert said(call("key", "list", "--tenant", "acme")) == ""
    audit = said(call("audit", "--limit", "2", "--format", "json"))
    assert [json.loads(line)["action"] for line in audit.splitlines()] == ["key.revoke", "key.revoke"]
    words = said(call("audit"))
    assert re.search(rf"Z  cli:\S+  key\.update  {key_id}  expires_ms: \d+ -> 0\n", words)
    for secret in (key, new):
        assert secret.rpartition("_")[2] not in words + lines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tenant", "create", "a b"), "1 to 64 letters"),
        (
            ("tenant", "create", "a", "--requests-per-min", "many"),
            "must be a number or none, is 'many'",
        ),
        (("tenant", "create", "a", "--weight", "0"), "weight must be from 0.001 to 1000, is 0"),
        (("key", "create", "--tenant", "a", "--expires-in", "soon"), "expires-in 'soon' is no span"),
        (("key", "rotate", "x", "--grace", "1w"), "grace '1w' is no span"),
        (("usage", "--since", "yesterday"), "since 'yesterday' is no time"),
        (("audit", "--limit", "0"), "limit must be from 1 to 1000, is 0"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_it(call: Call, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        call(*arguments)
    assert words in caught.value.message
    assert said(call("tenant", "list")) == ""


def test_what_is_there_is_not_made_again(call: Call) -> None:
    call("tenant", "create", "acme")
    with pytest.raises(Conflict):
        call("tenant", "create", "acme")


def test_a_label_does_not_steer_the_terminal(call: Call) -> None:
    call("tenant", "create", "acme", "--label", "red \x1b[31m")
    assert "\x1b" not in said(call("tenant", "list")) + said(call("audit"))


def test_the_running_stack_is_found(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = {"http": "http://127.0.0.1:1", "grpc": "127.0.0.1:2", "redis_url": redis_url}
    (tmp_path / "ready.json").write_text(json.dumps(ready))
    monkeypatch.setenv("GEMLINE_READY_FILE", str(tmp_path / "ready.json"))
    monkeypatch.delenv("GEMLINE_REDIS_URL", raising=False)
    assert CliRunner().invoke(app(), ["tenant", "create", "acme"]).exit_code == 0
    (tmp_path / "ready.json").unlink()
    done = CliRunner().invoke(app(), ["tenant", "list"])
    assert isinstance(done.exception, ConfigurationError)
    assert "give --redis-url" in done.exception.message
