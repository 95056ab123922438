"""`gemline up` as a person meets it: it starts, it stops, it leaves nothing, and it says what is wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.processes import descendants, gone
from support.stack import Running, start_stack

pytestmark = pytest.mark.slow


def up(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gemline.cli.main", "up", "--runner", "process", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_no_process_outlives_a_killed_up(tmp_path: Path) -> None:
    running = start_stack(tmp_path, "--runner", "process")
    assert running.ready["admin"] == running.ready["admin_key"] == ""  # unless asked for
    children = descendants(running.process.pid)
    running.process.kill()
    running.process.wait()
    assert gone(children, within_s=45)  # workers drain first


def test_ctrl_c_while_starting_leaves_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "gemline.cli.main",
        "up",
        "--runner",
        "process",
        "--http-port",
        "0",
        "--grpc-port",
        "0",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--ready-file", str(tmp_path / "ready.json")], stdout=log, stderr=log)
    limit = time.monotonic() + 60
    while len(children := descendants(process.pid)) < 3:  # Redis, the gateway and a worker
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert not (tmp_path / "ready.json").exists()
    assert gone(children, within_s=5)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With most of what can be asked for."""
    workers = ("--decode", "2", "--tokenization", "2")
    words = ("--served-model-name", "my-gemma", "--first-prompt", "Good morning!", "--admin-port", "0")
    running = start_stack(tmp_path_factory.mktemp("many"), "--runner", "process", *workers, *words)
    yield running
    running.stop()


def test_the_first_answer_is_streamed_to_the_terminal(many: Running) -> None:
    limit = time.monotonic() + 30
    while "tokens in" not in many.output.read_text() and time.monotonic() < limit:
        time.sleep(0.05)
    output = many.output.read_text()
    assert "> Good morning!" in output
    assert "tokens in" in output
    assert "Traceback" not in output


def test_the_ready_file_is_its_owners_alone_and_tells_every_process(many: Running) -> None:
    assert (many.output.parent / "ready.json").stat().st_mode & 0o077 == 0
    roles = sorted(process["role"] for process in many.ready["processes"])
    assert roles == ["decode", "decode", "gateway", "prefill", "tokenization", "tokenization"]
    for process in many.ready["processes"]:
        os.kill(process["pid"], 0)
        host, _, port = process["address"].rpartition(":")
        socket.create_connection((host, int(port)), 5).close()
    assert httpx.get(f"{many.ready['http']}/readyz").status_code == 200


def test_the_ready_file_tells_each_process_with_what_it_computes(many: Running) -> None:
    backends = {process["role"]: process["backend"] for process in many.ready["processes"]}
    assert backends["prefill"] == backends["decode"] != ""
    assert backends["gateway"] == backends["tokenization"] == ""
    assert many.ready["dtype"] in ("float32", "bfloat16")


def test_another_name_is_served_when_asked(many: Running) -> None:
    assert [model.id for model in many.openai().models.list()] == ["my-gemma"]


def test_the_admin_api_is_on_when_asked_with_a_key_of_its_own(many: Running) -> None:
    url, key = f"{many.ready['admin']}/admin/v1/tenants", many.ready["admin_key"]
    assert httpx.get(url, headers={"authorization": f"Bearer {key}"}).json() == {"object": "list", "data": []}
    assert httpx.get(url, headers={"authorization": f"Bearer {many.ready['api_key']}"}).status_code == 401
    assert key in many.output.read_text()
    log = Path(many.ready["log_dir"]) / "gateway.log"
    assert "the admin API listens on" in log.read_text()
    assert key not in log.read_text()


def test_ctrl_c_stops_every_process_and_removes_the_ready_file(many: Running) -> None:
    """The last one that uses it."""
    children = descendants(many.process.pid)
    assert {process["pid"] for process in many.ready["processes"]} <= set(children)
    assert many.stop() == 0
    assert gone(children, within_s=5)
    assert not (many.output.parent / "ready.json").exists()


def test_a_missing_model_is_named_in_one_line() -> None:
    ended = up("--model", "/no/such/directory")
    assert ended.returncode == 1
    assert "/no/such/directory" in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout


def test_half_precision_is_refused_with_the_reason(tmp_path: Path) -> None:
    ended = up("--dtype", "float16", "--http-port", "0", "--grpc-port", "0", "--ready-file", str(tmp_path / "r.json"))
    assert ended.returncode == 1
    assert "float16" in ended.stderr
    assert "bfloat16" in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout


def test_a_checkpoint_with_a_missing_tensor_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from support.noise_model.checkpoint import TINY, make_checkpoint

    make_checkpoint(tmp_path / "model", TINY)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors")
    ended = up("--model", str(tmp_path / "model"), "--http-port", "0", "--grpc-port", "0")
    assert ended.returncode == 1
    assert "model.layers.1.mlp.up_proj.weight" in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout


def test_a_busy_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = up("--http-port", str(port), "--grpc-port", "0")
    assert ended.returncode == 1
    assert str(port) in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout


@pytest.mark.xdist_group("shared-stacks")
def test_the_ready_file_is_json_with_all_the_documented_fields(colocated_stack: Running) -> None:
    running_json = json.loads((colocated_stack.output.parent / "ready.json").read_text())
    assert {"http", "grpc", "api_key", "model", "processes"} <= set(running_json)
    assert not colocated_stack.pids("prefill")
