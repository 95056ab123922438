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
from support.decode_workers import wait_for_workers
from support.processes import descendants, gone, listens_beyond_this_machine
from support.stack import Running, start_stack

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("shared-stacks")]


@pytest.fixture(scope="module")
def ray_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Its decode worker has two ranks, which Ray may place on several nodes, so that they meet at a port."""
    options = ("--runner", "ray", "--dtype", "float32", "--first-prompt", "", "--threads", "1")
    ranks = ("--tensor-parallel", "2", "--prefill-tensor-parallel", "1", "--tensor-parallel-placement", "PACK")
    running = start_stack(tmp_path_factory.mktemp("ray"), *options, *ranks)
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


def rank_actors(running: Running) -> list[int]:
    """The processes of the ranks that are not replicas themselves."""
    children = descendants(running.process.pid)
    return [pid for pid in children if "ray::RankActor" in Path(f"/proc/{pid}/cmdline").read_text()]


def decode_pid(running: Running) -> int:
    (worker,) = wait_for_workers(running, 1)
    return worker.pid


def test_a_rank_that_dies_takes_its_replica_along_and_serve_replaces_both(ray_stack: Running) -> None:
    before, replica = ask(ray_stack), decode_pid(ray_stack)
    (rank,) = rank_actors(ray_stack)
    killed_s = time.monotonic()
    os.kill(rank, signal.SIGKILL)
    assert gone([rank, replica], within_s=5)
    print(f"the replica was gone {time.monotonic() - killed_s:.2f} s after its rank")
    assert_answers_again(ray_stack, before)
    assert decode_pid(ray_stack) != replica


def test_serve_replaces_a_worker_that_was_killed_and_its_ranks_go_with_it(ray_stack: Running) -> None:
    before, replica = ask(ray_stack), decode_pid(ray_stack)
    ranks = rank_actors(ray_stack)
    killed_s = time.monotonic()
    os.kill(replica, signal.SIGKILL)
    assert gone([*ranks, replica], within_s=5)
    print(f"the ranks were gone {time.monotonic() - killed_s:.2f} s after their replica")
    assert_answers_again(ray_stack, before)


def assert_answers_again(ray_stack: Running, before: str) -> None:
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


def test_a_replica_that_cannot_start_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT", "1")  # of three each imports torch, and waits longer
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
