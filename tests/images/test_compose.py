"""deploy/compose.yaml: every command is one of ours, nothing is open beyond this machine, and all of it is hardened."""

import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.own_command import parse

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name in SERVICES if name != "redis"]


@pytest.fixture(autouse=True)
def redis_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """As every service has it."""
    monkeypatch.setenv("GEMLINE_REDIS_URL", "redis://redis:6379/0")


def by_the_schema(file: Path) -> subprocess.CompletedProcess[str]:
    """What the schema of the Compose specification says of a file."""
    checker = Path(sysconfig.get_path("scripts")) / "check-jsonschema"
    command = [str(checker), "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_specifications_schema_takes_it() -> None:
    done = by_the_schema(ROOT / "deploy" / "compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("read_only: true", "readonly: true", "'readonly' was unexpected"),
        ("cap_drop: [ALL]", "cap_drop: ALL", "'ALL' is not of type 'array'"),
        ("condition: service_healthy", "condition: healthy", "healthy"),
    ],
)
def test_the_schema_would_notice(tmp_path: Path, right: str, wrong: str, words: str) -> None:
    careless = tmp_path / "compose.yaml"
    text = (ROOT / "deploy" / "compose.yaml").read_text()
    assert right in text
    careless.write_text(text.replace(right, wrong))
    done = by_the_schema(careless)
    assert done.returncode == 1
    assert words in done.stdout


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_one_of_ours(name: str) -> None:
    params = parse(SERVICES[name]["command"])
    if SERVICES[name]["command"][0] == "worker":
        assert params["role"] == name
        assert params["bind"] == "0.0.0.0"


def test_a_command_that_is_none_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option: --kv-block"):
        parse([*SERVICES["decode"]["command"], "--kv-block=1"])


def test_ports_are_published_on_loopback_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"gateway"}
    assert all(port.startswith("127.0.0.1:") for port in published["gateway"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened_and_has_a_version(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r":\d+\.\d+\.\d+", service["image"])


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "model"])
def test_every_service_that_stays_says_how_it_is(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_a_service_waits_for_services_that_there_are() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other == "model" else "service_healthy"
            assert how == {"condition": wanted}, name
            assert other in SERVICES


def test_health_is_asked_where_the_process_listens() -> None:
    for name in OURS:
        if name == "model":
            continue
        params = parse(SERVICES[name]["command"])
        port = params["http_port"] if name == "gateway" else params["metrics_port"]
        assert f"127.0.0.1:{port}/" in SERVICES[name]["healthcheck"]["test"][-1]


def test_volumes_are_declared_and_workers_cannot_write_the_model() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in COMPOSE["volumes"], name
    for role in ("tokenization", "prefill", "decode"):
        assert "models:/models:ro" in SERVICES[role]["volumes"]


def test_no_password_stands_in_the_file() -> None:
    text = (ROOT / "deploy" / "compose.yaml").read_text()
    found = re.findall(r"redis://:([^@]*)@|REDIS_PASSWORD: \"([^\"]*)\"", text)
    assert len(found) == 2
    for value in found:
        assert "".join(value).startswith("${GEMLINE_REDIS_PASSWORD:?")


def test_images_are_those_that_the_dockerfile_makes() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "deploy/docker/Dockerfile").read_text(), re.MULTILINE))
    for name in OURS:
        assert SERVICES[name]["image"].partition(":")[0].removeprefix("gemline-") in targets
        if build := SERVICES[name].get("build"):
            assert SERVICES[name]["image"].startswith(f"gemline-{build['target']}:")


def test_the_redis_is_the_charts() -> None:
    chart = yaml.safe_load((ROOT / "charts" / "gemline" / "values.yaml").read_text())["images"]["redis"]
    assert SERVICES["redis"]["image"] == f"{chart['repository']}:{chart['tag']}@{chart['digest']}"
