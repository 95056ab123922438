"""A worker dies: its requests go on, everybody else does not notice, and the platform heals."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from support.metrics import metric
from support.sse import complete
from support.stack import Running, start_stack

pytestmark = pytest.mark.slow

HEAL_LIMIT_S = 60.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # In a precision in which recomputing changes nothing; and a machine with much to do takes time to start a worker.
    options = ("--runner", "process", "--first-prompt", "", "--dtype", "float32")
    directory = tmp_path_factory.mktemp("worker-death")
    stack = start_stack(directory, *options, environment={"GEMLINE_RESUME_TIMEOUT_S": "60"})
    yield stack
    stack.stop()


def ask(running: Running) -> str:
    answer = running.openai().completions.create(
        model=running.model, prompt="Once upon a time", max_tokens=16, temperature=0
    )
    return answer.choices[0].text


def ask_until_healed(running: Running) -> str:
    limit = time.monotonic() + HEAL_LIMIT_S
    while True:
        try:
            return ask(running)
        except openai.InternalServerError as error:
            assert error.status_code == 503
            assert time.monotonic() < limit, "the platform did not heal"
            time.sleep(0.2)


def test_a_client_that_goes_away_frees_its_blocks(running: Running) -> None:
    body = {"model": running.model, "prompt": "Once", "max_tokens": 1900, "stream": True, "ignore_eos": True}
    headers = {"authorization": f"Bearer {running.ready['api_key']}"}
    free = metric(running, "decode", "gemline_kv_free_blocks")
    with httpx.stream("POST", f"{running.base_url}/completions", json=body, headers=headers, timeout=30) as answer:
        lines = answer.iter_lines()  # letting go of it would close the connection
        next(lines)
        assert metric(running, "decode", "gemline_kv_free_blocks") < free
    limit = time.monotonic() + 5  # the whole answer takes longer
    while metric(running, "decode", "gemline_kv_free_blocks") < free:
        assert time.monotonic() < limit, "the blocks are still taken"
        time.sleep(0.02)
    assert metric(running, "decode", "gemline_requests") == 0


def test_a_killed_prefill_worker_costs_time_and_no_request(running: Running) -> None:
    before = ask(running)
    os.kill(running.pids("prefill")[0], signal.SIGKILL)
    for _ in range(20):
        assert ask(running) == before


def test_a_killed_tokenization_worker_is_replaced(running: Running) -> None:
    before = ask(running)
    os.kill(running.pids("tokenization")[0], signal.SIGKILL)
    assert ask_until_healed(running) == before


def test_a_stream_goes_on_when_its_only_decode_worker_is_back(running: Running) -> None:
    asked: dict[str, Any] = {"prompt": "Once", "max_tokens": 300, "ignore_eos": True, "temperature": 0}
    before = complete(running, **asked)

    def kill(event: int) -> None:
        if event == 20:
            os.kill(running.pids("decode")[0], signal.SIGKILL)

    got = complete(running, kill, **asked)
    assert got.error is None
    assert got.answer == before.answer
    print(f"the only worker was away for {got.longest_gap_s:.1f} s")


def test_requests_in_flight_finish_when_the_stack_is_told_to_stop(running: Running) -> None:
    ask_until_healed(running)
    body = {"model": running.model, "prompt": "Once", "max_tokens": 300, "stream": True, "ignore_eos": True}
    headers = {"authorization": f"Bearer {running.ready['api_key']}"}
    with httpx.stream("POST", f"{running.base_url}/completions", json=body, headers=headers, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        running.process.send_signal(signal.SIGINT)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert running.process.wait(60) == 0
