"""deploy/docker: what its linter says, that every package is locked, and that the install steps give what serves."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from support.decode_workers import living

from gemline.cluster.records import Role

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
LOCKS = sorted(DOCKER.glob("requirements/*.txt"))
TARGETS = ("gateway", "worker-cpu", "worker-cuda")


class Stage(NamedTuple):
    """One FROM and what follows it."""

    base: str
    steps: list[tuple[str, str]]  # (instruction, the rest)


def stages() -> dict[str, Stage]:
    text = re.sub(r"\\\n\s*", "", (DOCKER / "Dockerfile").read_text())
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found[name] = Stage(base, [])
        elif current is not None and word and not word.startswith("#"):
            current.steps.append((word, rest))
    return found


def test_hadolint_finds_nothing() -> None:
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    result = subprocess.run([linter, "--failure-threshold", "style", DOCKER / "Dockerfile"], capture_output=True)
    assert result.stdout.decode() == ""
    assert result.returncode == 0


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    careless = tmp_path / "Dockerfile"
    careless.write_text("FROM python:latest\nRUN cd /tmp && apt-get install g++\n")
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    assert subprocess.run([linter, careless], capture_output=True).returncode == 1


def test_the_base_is_named_by_its_digest_and_every_stage_stands_on_it() -> None:
    (base,) = re.findall(r"^ARG BASE=(\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base)
    found = stages()
    assert all(stage.base == "${BASE}" or stage.base in found for stage in found.values())


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_nobody_in_particular(target: str) -> None:
    steps = stages()[target].steps
    assert ("USER", "10001:10001") in steps
    assert steps.index(("USER", "10001:10001")) > max(i for i, (word, _) in enumerate(steps) if word == "COPY")
    assert steps[-1] == ("ENTRYPOINT", '["gemline"]')


def test_pip_installs_nothing_without_a_hash() -> None:
    installs = [rest for stage in stages().values() for word, rest in stage.steps if word == "RUN" and "pip" in rest]
    assert len(installs) == 7
    for command in installs:
        assert ("--require-hashes" in command and "--only-binary=:all:" in command) or "--no-index" in command


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_package_of_a_lock_is_pinned_and_hashed(lock: Path) -> None:
    requirements = lock.read_text().replace("\\\n", " ").strip().splitlines()
    assert requirements
    for line in requirements:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^ ;]+( ;[^-]+)?\s+--hash=sha256:[0-9a-f]{64}", line), line[
            :80
        ]


def names(target: str) -> dict[str, str]:
    """Versions by package."""
    text = (DOCKER / "requirements" / f"{target}.txt").read_text()
    return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([^ ;\\]+)", text, re.MULTILINE))


def test_what_is_locked_is_what_is_tested_with() -> None:
    lines = (ROOT / "deploy" / "constraints.txt").read_text().splitlines()[1:]
    tested = {name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines)}
    for target in TARGETS:
        for name, version in names(target).items():
            if name in tested and (target, name) != ("worker-cuda", "triton"):  # torch with CUDA has one of its own
                assert version.partition("+")[0] == tested[name], (target, name)


def test_the_gateways_image_has_neither_torch_nor_ray() -> None:
    assert {"torch", "ray", "triton", "numpy"} & set(names("gateway")) == set()
    assert {"redis", "fastapi", "tokenizers"} <= set(names("gateway"))


def test_the_gateways_image_has_what_rollout_and_certificates_ask_the_api_server_with() -> None:
    """They run in it, in the cluster."""
    assert {"kubernetes", "cryptography"} <= set(names("gateway"))


def test_workers_have_the_ray_of_the_chart() -> None:
    values = yaml.safe_load((ROOT / "charts" / "gemline" / "values.yaml").read_text())
    for target in ("worker-cpu", "worker-cuda"):
        assert names(target)["ray"] == values["ray"]["version"]


def test_only_the_image_for_gpus_brings_cuda() -> None:
    assert names("worker-cpu")["torch"].endswith("+cpu")
    assert not any(name.startswith("nvidia-") for name in names("worker-cpu"))
    assert "+" not in names("worker-cuda")["torch"]
    assert "nvidia-nccl-cu13" in names("worker-cuda")


def environment() -> dict[str, str]:
    """With this machine's Python for the base image's. What runs a few times need not be compiled by pip."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SSL_CERT"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"PATH": path, "PIP_NO_COMPILE": "1", "PIP_RETRIES": "1"}


def replay(stage: str, source: Path, root: Path) -> None:
    """The Dockerfile's own RUN lines, with /opt below `root` and /dist beside `source`."""
    for word, command in stages()[stage].steps:
        if word == "RUN":
            here = command.replace("/opt/", f"{root}/opt/").replace("/dist", f"{source.parent}/dist")
            subprocess.run(["bash", "-euo", "pipefail", "-c", here], cwd=source, env=environment(), check=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is copied into a build; the wheel is made."""
    source = tmp_path_factory.mktemp("image") / "src"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("services", "kernels", "deploy/docker/requirements"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    replay("wheel", source, source.parent)
    return source


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """What an image is installed below. It is large, and gone afterwards."""
    yield tmp_path
    shutil.rmtree(tmp_path / "opt")


def installed(target: str, source: Path, root: Path) -> Path:
    """The folder of that image's commands."""
    replay(f"{target}-packages", source, root)
    return root / "opt" / "gemline" / "bin"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_gateways_steps_give_a_gateway(source: Path, root: Path) -> None:
    scripts, variables = installed("gateway", source, root), environment()
    shown = subprocess.run([scripts / "gemline", "gateway", "--help"], env=variables, capture_output=True, text=True)
    assert shown.returncode == 0
    assert "--redis-url" in shown.stdout
    imported = (
        "import sys, gemline.gateway.process\n"
        "import gemline.cli.gateway, gemline.cli.keys\n"
        "print(sorted({'torch', 'ray', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([scripts / "python", "-c", imported], env=variables, capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
    missing = subprocess.run([scripts / "python", "-c", "import torch"], env=variables, capture_output=True)
    assert b"No module named 'torch'" in missing.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_cpu_workers_steps_give_workers_that_serve(
    source: Path, root: Path, redis_url: str, tiny_checkpoint: Path
) -> None:
    scripts, variables = installed("worker-cpu", source, root), environment() | {"GEMLINE_REDIS_URL": redis_url}
    roles = (Role.TOKENIZATION, Role.DECODE)
    model = ["--model-dir", str(tiny_checkpoint), "--served-model-name", "tiny"]
    workers = [subprocess.Popen([scripts / "gemline", "worker", role.value, *model], env=variables) for role in roles]
    try:
        limit_s = time.monotonic() + 120
        while not all(living(redis_url, role) for role in roles):
            assert time.monotonic() < limit_s, "they do not register"
            assert all(worker.poll() is None for worker in workers)
            time.sleep(0.2)
    finally:
        for worker in workers:
            worker.terminate()
        statuses = [worker.wait(60) for worker in workers]
    assert statuses == [0, 0]
