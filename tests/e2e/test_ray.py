"""The same platform with its workers as Ray Serve deployments."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from support.processes import descendants, gone, listens_beyond_this_machine
from support.stack import Running, start_stack

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def ray_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = start_stack(tmp_path_factory.mktemp("ray"), "--runner", "ray", "--dtype", "float32", "--first-prompt", "")
    children = descendants(running.process.pid)
    yield running
    assert running.stop() == 0
    assert gone(children, within_s=20)


def ask(running: Running) -> str:
    answer = running.openai().completions.create(
        model=running.model, prompt="Once upon a time", max_tokens=16, temperature=0
    )
    return answer.choices[0].text


def test_ray_answers_as_bare_processes_do(ray_stack: Running, split_stack: Running) -> None:
    assert ask(ray_stack) == ask(split_stack)


def test_every_worker_is_a_process_of_its_own(ray_stack: Running) -> None:
    pids = [process["pid"] for process in ray_stack.ready["processes"]]
    assert len(pids) == len(set(pids)) == 4


def test_ray_itself_listens_on_this_machine_alone(ray_stack: Running) -> None:
    # A replica's own port is Serve's, which binds every interface whatever one says; it asks for the token.
    workers = {process["pid"] for process in ray_stack.ready["processes"] if process["role"] != "gateway"}
    others = set(descendants(ray_stack.process.pid)) - workers
    assert others
    assert [pid for pid in others if listens_beyond_this_machine(pid)] == []


def test_serve_replaces_a_worker_that_was_killed(ray_stack: Running) -> None:
    before = ask(ray_stack)
    os.kill(ray_stack.pids("decode")[0], signal.SIGKILL)
    limit = time.monotonic() + 90
    while True:
        try:
            assert ask(ray_stack) == before
            return
        except openai.InternalServerError as error:  # 503 until the replacement is up
            assert error.status_code == 503
            assert time.monotonic() < limit, "no replacement came"
            time.sleep(0.5)


def up(directory: Path, *options: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "gemline.cli.main",
        "up",
        "--runner",
        "ray",
        "--http-port",
        "0",
        "--grpc-port",
        "0",
    ]
    command += ["--ready-file", str(directory / "ready.json"), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_replica_that_cannot_start_is_told_in_one_line(tmp_path: Path) -> None:
    with up(tmp_path, "--dtype", "float16") as process:
        output, _ = process.communicate(timeout=150)
    assert process.returncode == 1
    last = output.splitlines()[-1]
    assert re.match(r"gemline: gemline-(prefill|decode): dtype float16 cannot be served", last)
    assert "Traceback" not in output


def test_ctrl_c_while_ray_starts_leaves_nothing(tmp_path: Path) -> None:
    with up(tmp_path) as process:
        time.sleep(5)
        children = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "Traceback" not in output
    assert gone(children, within_s=20)


def test_nothing_serves_on_after_up_was_killed(tmp_path: Path) -> None:
    running = start_stack(tmp_path, "--runner", "ray", "--first-prompt", "")
    running.process.kill()
    running.process.wait()
    assert gone([process["pid"] for process in running.ready["processes"]], within_s=45)  # Ray's agents take a minute
