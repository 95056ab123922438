"""A request that kills whatever worker reads it takes two of them, and then itself; nobody else is harmed."""

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from support.decode_workers import start_colocated, wait_for_workers
from support.sse import Told, complete
from support.stack import Running

pytestmark = pytest.mark.slow

MAGIC = 999  # a worker that sees this token id dies
BOS = 2


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    environment = {"GEMLINE_FAILPOINT": f"crash_on_token:{MAGIC}"}
    running = start_colocated(tmp_path_factory.mktemp("poison"), 3, **environment)
    yield running
    running.stop()


def innocent(seed: int) -> dict[str, Any]:
    """A request that never generates the magic token."""
    sampling = {"temperature": 1.0, "seed": seed, "logit_bias": {str(MAGIC): -100}}
    return {"prompt": f"Once upon a time {seed}", "max_tokens": 300, "ignore_eos": True} | sampling


def poison(running: Running, **options: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {running.ready['api_key']}"}
    body = {"model": running.model, "prompt": [BOS, 300, MAGIC, 301], "max_tokens": 5} | options
    return httpx.post(f"{running.base_url}/completions", json=body, headers=headers, timeout=120)


def test_a_poison_request_is_convicted_after_two_workers_and_the_others_go_on(stack: Running) -> None:
    before = {worker.pid for worker in wait_for_workers(stack, 3)}
    expected = {seed: complete(stack, **innocent(seed)) for seed in range(4)}
    got: dict[int, Told] = {}
    all_begun = threading.Barrier(len(expected) + 1)

    def begin(event: int) -> None:
        if event == 1:
            all_begun.wait(60)

    def read(seed: int) -> None:
        got[seed] = complete(stack, begin, **innocent(seed))

    readers = [threading.Thread(target=read, args=(seed,)) for seed in expected]
    for reader in readers:
        reader.start()
    all_begun.wait(60)
    answer = poison(stack)
    for reader in readers:
        reader.join()

    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "poison_request")
    assert answer.headers["x-should-retry"] == "false"
    for seed, told in expected.items():
        assert got[seed].error is None
        assert got[seed].answer == told.answer
    after = {worker.pid for worker in wait_for_workers(stack, 3)}
    assert len(before - after) == 2

    again = poison(stack, max_tokens=9)  # its prompt is known by now
    with pytest.raises(openai.InternalServerError, match="refused for another"):
        stack.openai().completions.create(model=stack.model, prompt=[BOS, 300, MAGIC, 301], max_tokens=5)
    assert again.json()["error"]["code"] == "poison_request"
    assert {worker.pid for worker in wait_for_workers(stack, 3)} == after


def test_a_token_that_kills_when_it_is_generated_is_found_out_too(stack: Running) -> None:
    before = {worker.pid for worker in wait_for_workers(stack, 3)}
    told = complete(stack, prompt="Once", max_tokens=5, temperature=0, logit_bias={str(MAGIC): 100})
    assert told.error is not None
    assert told.error["code"] == "poison_request"
    assert len(before - {worker.pid for worker in wait_for_workers(stack, 3)}) == 2
