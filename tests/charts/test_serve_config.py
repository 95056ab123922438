"""The chart's own serveConfigV2, deployed on a Ray of this machine, answers through a gateway."""

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from support.chart import PROFILES, ROOT, manifests, ray_service

from gemline.cluster.embedded import EmbeddedRedis
from gemline.errors import ConfigurationError
from gemline.serve.fetch import fetch
from gemline.serve.ray_app import application

HERE = {"bind": "127.0.0.1", "port": 0, "metrics_port": 0}  # three pods of one host


def local_config(model_dir: Path) -> dict[str, Any]:
    """The CPU profile's config, with this machine's places in it."""
    config: dict[str, Any] = yaml.safe_load(ray_service(manifests(PROFILES["cpu"]))["spec"]["serveConfigV2"])
    for app in config["applications"]:
        app["args"] |= HERE | {"model_dir": str(model_dir)}
    del config["http_options"], config["proxy_location"]
    return config


@pytest.mark.ray
@pytest.mark.timeout(420)
def test_what_the_chart_hands_to_ray_serves(tmp_path: Path) -> None:
    redis = EmbeddedRedis(tmp_path)
    token = tmp_path / "ray-token"
    token.write_text(secrets.token_hex(32))
    environment = {
        **os.environ,
        "GEMLINE_REDIS_URL": redis.start(),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump(local_config(fetch("demo://", tmp_path / "models" / "demo"))))
    keys, ready = tmp_path / "keys", tmp_path / "ready.json"
    keys.write_text("acme:sk-one\n")
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "support" / "serve_config_child.py"), str(config)],
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
        assert child.stdout.readline() == "running\n"
        limit = time.monotonic() + 30
        while not ready.exists():
            assert time.monotonic() < limit, "the gateway found no workers"
            time.sleep(0.1)
        url = yaml.safe_load(ready.read_text())["http"]
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="sk-one", max_retries=0, timeout=60)
        answer = client.chat.completions.create(
            model="gemline-demo", messages=[{"role": "user", "content": "Hello!"}], max_tokens=8, temperature=0
        )
        assert (answer.choices[0].message.content or "").strip()
    finally:
        gateway.terminate()
        assert gateway.wait(60) == 0
        child.communicate(timeout=90)
        redis.stop()
    assert child.returncode == 0


def test_an_unknown_setting_is_named_where_the_config_is_read() -> None:
    with pytest.raises(ConfigurationError, match="worker settings have no dytpe; there are role, model_dir"):
        application({"role": "decode", "model_dir": "/m", "served_model_name": "m", "dytpe": "float32"})


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ConfigurationError, match="worker settings lack model_dir"):
        application({"role": "decode", "served_model_name": "m"})


def test_only_what_the_config_says_travels_to_replicas() -> None:
    args = {"role": "decode", "model_dir": "/m", "served_model_name": "m"}
    assert application(args)._bound_deployment.init_args == (args,)
