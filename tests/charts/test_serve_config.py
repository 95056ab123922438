"""The chart's own serveConfigV2, deployed on a Ray of this machine, answers through a gateway."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from support.chart import PROFILES, ROOT, changed, manifests, ray_service

from gemline.cluster.embedded import EmbeddedRedis
from gemline.errors import ConfigurationError
from gemline.serve.fetch import fetch
from gemline.serve.ray_app import application

HERE = {"bind": "127.0.0.1", "port": 0, "metrics_port": 0}  # pods of one host


def local_cluster(values: dict[str, Any], model_dir: Path) -> dict[str, Any]:
    """The Serve config, with this machine's places in it, and what `ray start` is told in each worker's pod."""
    spec = ray_service(manifests(values))["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    for app in config["applications"]:
        app["args"] |= HERE | {"model_dir": str(model_dir)}
    del config["http_options"], config["proxy_location"]
    groups = spec["rayClusterConfig"]["workerGroupSpecs"]
    return {"serve": config, "pods": [it["rayStartParams"] for it in groups for _ in range(it["replicas"])]}


@contextmanager
def served(directory: Path, values: dict[str, Any]) -> Iterator[tuple[openai.OpenAI, dict[str, Any]]]:
    """A client of a gateway in front of all that, and where Ray has put what."""
    redis = EmbeddedRedis(directory)
    token = directory / "ray-token"
    token.write_text(secrets.token_hex(32))
    environment = {
        **os.environ,
        "GEMLINE_REDIS_URL": redis.start(),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    cluster = directory / "cluster.yaml"
    cluster.write_text(yaml.safe_dump(local_cluster(values, fetch("demo://", directory / "models" / "demo"))))
    keys, ready = directory / "keys", directory / "ready.json"
    keys.write_text("acme:sk-one\n")
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "support" / "serve_config_child.py"), str(cluster)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    options = ("--http-port=0", "--grpc-port=0", f"--keys-file={keys}", f"--ready-file={ready}")
    gateway = subprocess.Popen(
        [sys.executable, "-m", "gemline.cli.main", "gateway", *options],
        env=environment,
    )
    try:
        assert child.stdout is not None
        places = json.loads(child.stdout.readline())
        limit = time.monotonic() + 30
        while not ready.exists():
            assert time.monotonic() < limit, "the gateway found no workers"
            time.sleep(0.1)
        url = yaml.safe_load(ready.read_text())["http"]
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="sk-one", max_retries=0, timeout=60), places
    finally:
        gateway.terminate()
        assert gateway.wait(60) == 0
        child.communicate(timeout=90)
        redis.stop()
    assert child.returncode == 0


def answer(client: openai.OpenAI, model: str = "gemline-demo") -> str:
    answered = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "What is 2 + 2?"}], max_tokens=8, temperature=0
    )
    return (answered.choices[0].message.content or "").strip()


@pytest.mark.ray
@pytest.mark.timeout(420)
def test_what_the_chart_hands_to_ray_serves(tmp_path: Path) -> None:
    with served(tmp_path, PROFILES["cpu"]) as (client, places):
        assert answer(client) == "2 + 2 = 4."
    assert not places["groups"]
    assert not places["ranks"]
    assert len(places["replicas"]) == len(set(places["replicas"].values())) == 3, "a replica a pod"


@pytest.mark.ray
@pytest.mark.timeout(420)
def test_ranks_of_divided_models_are_actors_in_their_replicas_placement_groups(tmp_path: Path) -> None:
    """Of one model in the replica's pod, of another, by its values, in a pod of its own."""
    whole = changed("cpu", models__0__topology="colocated", models__0__prefill=...)["models"][0]
    near = whole | {"tensorParallel": 2}
    far = near | {"name": "far", "servedName": "gemline-far", "tensorParallelPlacement": "PACK"}
    with served(tmp_path, changed("cpu", models=[near, far])) as (client, places):
        assert answer(client) == answer(client, "gemline-far") == "2 + 2 = 4."
    strategies = {name: strategy for name, (strategy, _) in places["groups"].items()}
    assert strategies == {"gemline-decode-demo": "STRICT_PACK", "gemline-decode-far": "PACK"}
    nodes = {name: nodes for name, (_, nodes) in places["groups"].items()}
    assert all(nodes[name][0] == places["replicas"][name] for name in nodes)
    assert sorted(places["ranks"]) == sorted(place for name in nodes for place in nodes[name][1:])
    assert len(set(nodes["gemline-decode-demo"])) == 1
    assert len(set(nodes["gemline-decode-far"])) == 2
    pods = {*places["replicas"].values(), *places["ranks"]}
    assert len(pods) == 5, "each pod has one replica, or a rank, of one model"


def test_an_unknown_setting_is_named_where_the_config_is_read() -> None:
    with pytest.raises(ConfigurationError, match="worker settings have no dytpe; there are role, model_dir"):
        application({"role": "decode", "model_dir": "/m", "served_model_name": "m", "dytpe": "float32"})


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ConfigurationError, match="worker settings lack model_dir"):
        application({"role": "decode", "served_model_name": "m"})


def test_only_what_the_config_says_travels_to_replicas() -> None:
    args = {"role": "decode", "model_dir": "/m", "served_model_name": "m"}
    assert application(args)._bound_deployment.init_args == (args,)
