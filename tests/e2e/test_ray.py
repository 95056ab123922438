"""The same platform with its workers as Ray Serve deployments."""

import os
import signal
import time
from collections.abc import Iterator

import openai
import pytest
from support.processes import descendants, gone
from support.stack import Running, start_stack

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def ray_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = start_stack(tmp_path_factory.mktemp("ray"), "--runner", "ray", "--first-prompt", "")
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
